"""What a reader gets from records: tables, summaries, learning curves and the report page."""
