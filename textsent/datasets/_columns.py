"""Usual names of the columns of text datasets."""

from __future__ import annotations

from typing import Final

from clipadapt.core.data.table_splits import Columns

TEXTS: Final = Columns(
    "text",
    (
        "text",
        "review",
        "sentence",
        "content",
        "comment",
        "body",
        "message",
        "tweet",
        "document",
        "utterance",
    ),
    (
        "label",
        "labels",
        "sentiment",
        "class",
        "target",
        "category",
        "polarity",
        "rating",
    ),
)
"""Names of the text and the label column, the most likely first."""
