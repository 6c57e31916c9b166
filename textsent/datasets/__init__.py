"""Text data sets: one file each; the name before `:` is the file."""
