"""Text encoders behind one protocol.

A file here is a registered model; any other name is a Hugging Face id or path. This module imports no ML framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

from clipadapt.core.api.model import Backbone

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from clipadapt.core.api.context import Services
    from clipadapt.core.api.data import Inputs

DEFAULT: Final = "huggingface"
_DISTILBERT: Final = "V. Sanh et al., 2019, arXiv:1910.01108"


def served() -> dict[str, tuple[str, str, str]]:
    """Return a sentence, the paper and the needs of each form of name that the default file serves, for lists."""
    hub = "the hub, or its cache"
    return {
        "distilbert-base-uncased": ("DistilBERT", _DISTILBERT, hub),
        "ORG/NAME[@REVISION]": ("any text encoder of the Hugging Face Hub", "", hub),
        "local-dir:PATH": ("a folder with config.json and weights", "", "your files"),
        "random:ARCH": ("an architecture with random weights, for tests and timing", "", "nothing else"),
    }  # fmt: skip


Pooling = Literal["cls", "mean"]


@runtime_checkable
class TextEncoder(Backbone, Protocol):
    """A pretrained text encoder; frozen, in evaluation mode.

    Attributes:
        services: Feature cache, progress and meter that :meth:`encode` uses.
        module: The encoder, without a head.
        tokenizer: Its tokenizer.
        architecture: Model type of its configuration, such as ``distilbert``.
        width: ``D``, width of a hidden state.
        n_layers: Layers above the embeddings.
        max_length: Most tokens that the model can read, ``[CLS]`` and ``[SEP]`` included.
        n_params: Parameters of the encoder.
    """

    @property
    def services(self) -> Services: ...
    @property
    def module(self) -> PreTrainedModel: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def architecture(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def n_params(self) -> int: ...

    def tokenize(self, texts: Sequence[str], /, max_length: int | None = None) -> list[list[int]]:
        """Return the token ids of each text, special tokens included, truncated to ``max_length`` tokens.

        Raises:
            ModelError: If the model cannot read ``max_length`` tokens.
        """
        ...

    def encode(
        self,
        inputs: Inputs[str],
        /,
        layer: int = -1,
        pooling: Pooling = "cls",
        max_length: int | None = None,
    ) -> NDArray[np.float32]:
        """Encode any number of texts through the feature cache.

        Args:
            inputs: ``n`` texts.
            layer: 0 for the embeddings, 1 to ``n_layers``, or negative from the end; layers above it are not run.
            pooling: The state of the first token, or the mean over all tokens but padding.
            max_length: Tokens read per text; None reads as many as the model can.

        Returns:
            float32 features, shape ``(n, D)``.

        Raises:
            ModelError: If the model does not have the layer, or cannot read ``max_length`` tokens.
        """
        ...

    def classifier(self, classnames: Sequence[str], seed: int, /) -> PreTrainedModel:
        """Return a sequence classifier on a copy of this encoder, float32, its new head drawn from ``seed``."""
        ...

    def lora_targets(self) -> tuple[str, ...]:
        """Return the names of the query and value projections.

        Raises:
            ModelError: If they are not known for the architecture; the message says how to name them.
        """
        ...

    def clone(self) -> Any:
        """Return a copy whose weights may be trained without changing this model."""
        ...
