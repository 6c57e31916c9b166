"""Text encoders: one file each."""
