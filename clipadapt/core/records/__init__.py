"""What a run leaves behind: the schema of its record, predictions, the run store, environment and history."""
