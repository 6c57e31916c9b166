"""What plug-in authors read: ``typing.Protocol`` classes, data, run context, registries, flags, tracks, errors."""
