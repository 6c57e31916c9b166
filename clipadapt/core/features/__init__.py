"""The feature cache: features of frozen models, computed once and read from disk afterwards."""
