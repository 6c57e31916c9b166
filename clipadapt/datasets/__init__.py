"""Image datasets, one file each; the name of a dataset before ``:`` is the name of its file."""

DEFAULT = "torchvision"
"""File of the datasets that have no file of their own."""
