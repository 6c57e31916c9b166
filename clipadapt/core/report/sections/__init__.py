"""Sections of the report page, one file each; :mod:`clipadapt.core.report.section` finds them here."""
