"""Adapt text encoders to sentiment."""
