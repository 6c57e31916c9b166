"""Run experiments: plan, claim, fit, evaluate and record them, here or on Ray; and use the runs that were saved.

The steps are ``plan``, ``fit``, ``evaluate`` and ``record``; ``session`` and ``sweep`` execute them.
"""
