"""Command line of textsent."""

from __future__ import annotations

from clipadapt.core.cli import build_app, run_app

app = build_app(
    "text", "textsent", "Adapt text encoders to sentiment and compare the ways to do it."
)


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
