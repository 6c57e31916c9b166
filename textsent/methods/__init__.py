"""Text classification methods: one file each, and the file name is the registered name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipadapt.core.api.tracks import Examples, HubTask, Track, Trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.processes import Team


def _inputs_of(texts: Sequence[str]) -> Inputs[Any]:
    from textsent.datasets._given import text_inputs

    return text_inputs(texts)


def _features_of(model: Any, inputs: Inputs[Any]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = model.encode(inputs, pooling="mean")
    return found


def _join() -> Team:
    from clipadapt.tensor.ranks import Processes

    return Processes()


TRACK = Track(
    name="text",
    program="textsent",
    inputs="texts",
    examples=Examples(
        dataset="rotten_tomatoes:offline",
        model="minilm",
        recipe="tfidf_svm",
        baseline="tfidf_svm",
        sweep="sentiment-quick",
        export_format="hf",
        needs_model=False,
    ),
    reads_classnames=False,
    compiles=False,
    hub=HubTask(
        pipeline_tag="text-classification",
        title="text classification",
        argument='"a fine film"',
        examples='["a fine film"]',
    ),
    trial=Trial(files=False, inputs=_inputs_of, features=_features_of),
    capabilities={"TextEncoder": "any encoder"},
    feature_options={"layer": -1, "pooling": "cls", "max_length": None},
    join=_join,
)
