"""Which examples are trained on and which are evaluated: targets, few-shot draws, leakage."""
