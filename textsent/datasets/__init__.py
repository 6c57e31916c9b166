"""Text datasets: one file each; the name before `:` is the file."""
