"""The Python API that both packages share: the same experiments, records and tables as the commands, as objects."""
