"""Methods that adapt CLIP: one file each; the file is the registered name."""
