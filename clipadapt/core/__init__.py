"""The kernel both packages share: no ML framework is imported here."""
