"""Methods for sentiment: one file each; the file is the registered name."""
