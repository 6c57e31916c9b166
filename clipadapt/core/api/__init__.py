"""The contract for plug-in authors: protocols, plain data, run context, registries, flags, tracks and errors."""
