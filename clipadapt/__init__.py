"""Adapt CLIP to new image tasks: methods, models, data sets and one run record."""
