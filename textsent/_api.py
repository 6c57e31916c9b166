"""The Python API of textsent: what ``import textsent`` gives, loaded on first use.

>>> import textsent
>>> run = textsent.fit("tfidf_svm", None, "rotten_tomatoes:offline")
>>> run.predict(["a fine film", "a dull one"])
array(['positive', 'negative'], dtype='<U8')
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipadapt.core.cli.progress import on_stderr
from clipadapt.core.python import show
from clipadapt.core.python.handles import DatasetHandle, ModelHandle
from clipadapt.core.python.library import Library
from clipadapt.core.python.results import Results
from clipadapt.core.python.run import Run
from textsent.datasets._given import text_inputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.api.model import Precision
    from clipadapt.core.api.progress import Progress
    from textsent.models import Pooling, TextEncoder

__all__ = [
    "DatasetHandle", "Model", "Results", "Run", "evaluate", "fit", "load_dataset", "load_model", "load_run", "records",
    "sweep",
]  # fmt: skip

library = Library("text", text_inputs)

load_dataset = library.load_dataset
fit = library.fit
evaluate = library.evaluate
sweep = library.sweep
load_run = library.load_run
records = library.records


class Model:
    """A text encoder; its weights are loaded when they are first used.

    Attributes:
        handle: Name and identity of the model.
    """

    def __init__(self, handle: ModelHandle) -> None:
        self.handle = handle

    @property
    def name(self) -> str:
        """Name as given."""
        return self.handle.name

    @property
    def backbone(self) -> TextEncoder:
        """The encoder itself: ``tokenize``, ``encode``, ``classifier``, ``module``, ``tokenizer``."""
        found: Any = self.handle.backbone
        return found  # type: ignore[no-any-return]

    def encode(
        self,
        texts: Any,
        *,
        layer: int = -1,
        pooling: Pooling = "cls",
        max_length: int | None = None,
    ) -> NDArray[np.float32]:
        """Return the features of texts, computed once and then read from the feature cache; shape ``(n, D)``.

        Args:
            texts: A list, array or series of ``n`` texts.
            layer: 0 for the embeddings, 1 to ``n_layers``, or negative from the end.
            pooling: ``cls``, the state of the first token, or ``mean`` over all tokens but padding.
            max_length: Tokens read per text; None reads as many as the model can.

        Raises:
            DataError: If they are not texts.
            ModelError: If the model does not have the layer, or cannot read ``max_length`` tokens.
        """
        return self.backbone.encode(text_inputs(texts), layer, pooling, max_length)

    def __repr__(self) -> str:
        return repr(self.handle)

    def _repr_html_(self) -> str:
        return show.html_facts(self.handle.facts())


def load_model(
    name: str,
    *,
    precision: Precision | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Find a model by name; its weights are loaded when they are first used.

    Args:
        name: Any name that ``--model`` accepts: ``minilm`` (offline), or an id or path of Hugging Face.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``auto``; None leaves it to the recipe of each fit.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        progress: Where bars and warnings are shown.

    Raises:
        ModelError: If the model is not available; the message says what would work.
    """
    return Model(ModelHandle("text", name, precision, device, progress or on_stderr()))
