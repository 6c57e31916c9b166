"""Adapt CLIP to new image tasks: methods, models, datasets and one run record.

>>> import clipadapt
>>> run = clipadapt.fit("coop-quick", "stitched", "openmoji:line", shots=4)  # doctest: +SKIP
>>> run.predict(["cat.png", "dog.png"])  # doctest: +SKIP

The records are those of the command line, in ``runs`` below the working directory unless ``out`` names another folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.python.lazy import lazy

if TYPE_CHECKING:
    from clipadapt._api import (
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
        zero_shot,
    )
    from clipadapt.sklearn import CLIPClassifier

__version__: str

__all__ = [
    "CLIPClassifier",
    "Model",
    "Results",
    "Run",
    "__version__",
    "evaluate",
    "fit",
    "load_dataset",
    "load_model",
    "load_run",
    "records",
    "sweep",
    "zero_shot",
]

if not TYPE_CHECKING:  # nothing heavy is imported before a name is used
    __getattr__, __dir__ = lazy(__name__, __all__, {"CLIPClassifier": "clipadapt.sklearn"})
