"""Experiments: YAML files to typed configs, sweeps, and the settings part of a run id."""
