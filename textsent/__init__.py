"""Adapt text encoders to sentiment.

>>> import textsent
>>> run = textsent.fit("lora-quick", "minilm", "rotten_tomatoes:offline")  # doctest: +SKIP
>>> run.predict(["a fine film", "a dull one"])  # doctest: +SKIP

The records are those of the command line, in ``runs`` below the working directory unless ``out`` names another folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.python.lazy import lazy

if TYPE_CHECKING:
    from textsent._api import (
        Model,
        Results,
        Run,
        evaluate,
        fit,
        load_dataset,
        load_model,
        load_run,
        records,
        sweep,
    )
    from textsent.sklearn import SentimentClassifier

__version__: str

__all__ = [
    "Model",
    "Results",
    "Run",
    "SentimentClassifier",
    "__version__",
    "evaluate",
    "fit",
    "load_dataset",
    "load_model",
    "load_run",
    "records",
    "sweep",
]

if not TYPE_CHECKING:  # nothing heavy is imported before a name is used
    __getattr__, __dir__ = lazy(__name__, __all__, {"SentimentClassifier": "textsent.sklearn"})
