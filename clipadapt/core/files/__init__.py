"""Files: atomic writes, locks, checksums, YAML, the hub, wheels, and the hardware of this machine."""
