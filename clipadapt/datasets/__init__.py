"""Image data sets: one file each; the name before `:` is the file."""

DEFAULT = "torchvision"
"""The file that serves a name which has none of its own."""
