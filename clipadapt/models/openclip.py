"""Any model that open_clip can hold: pretrained tags, files, folders, hub repositories, random weights.

G. Ilharco et al., "OpenCLIP", 2021. Names: ``ARCH/TAG``, ``ARCH/PATH.safetensors``, ``hf-hub:ORG/NAME``,
``local-dir:PATH``, ``random:ARCH``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clipadapt.core import identity
from clipadapt.core.protocols import ModelIdentity
from clipadapt.models import _names
from clipadapt.models._hardware import effective_dtype

if TYPE_CHECKING:
    from clipadapt.core.context import Services
    from clipadapt.core.protocols import ModelOptions
    from clipadapt.models import ImageTextModel

RELEASES: Final = ("open_clip_torch", "torch", "timm")
"""Random weights and the mapping from tag to file depend on them."""


class OpenClip:
    """Provider of open_clip models."""

    def identify(self, name: str, options: ModelOptions, /) -> ModelIdentity:
        """Check the name and hash the weights; the second time without any framework.

        Raises:
            ModelError: If the model cannot be had; the message says what would work.
        """
        parsed = _names.parse(name)
        device, dtype = effective_dtype(options)
        return ModelIdentity(parsed.shown, _sha256(parsed), dtype, device=device)

    def load(self, name: str, options: ModelOptions, services: Services, /) -> ImageTextModel:
        """Build the model on its device, ready to encode.

        Raises:
            ModelError: If the model cannot be built.
        """
        from clipadapt.models import _sources

        parsed = _names.parse(name)
        return load_source(_sources.find(parsed), parsed.shown, options, services)


def load_source(
    source: object, shown: str, options: ModelOptions, services: Services
) -> ImageTextModel:
    """Build a model from a :class:`~clipadapt.models._sources.Source`, under the name ``shown``."""
    from clipadapt.models import _adapter
    from clipadapt.models._sources import Source

    assert isinstance(source, Source)
    device, dtype = effective_dtype(options)
    tokenizer = _adapter.tokenizer_for(source, shown)
    module = _adapter.cast_weights(_adapter.build(source, shown), device, dtype)
    return _adapter.OpenClipModel(
        module, tokenizer, source, name=shown, device=device, dtype=dtype, services=services
    )


def _sha256(name: _names.Name) -> str:
    from clipadapt.models import _sources

    if name.form in {"file", "dir"}:
        return identity.of_files(name.key, _sources.find(name).files)
    key = f"{name.key}|{identity.versions(*RELEASES)}"
    known = identity.recall(key)
    if known is not None:
        return known[0]
    source = _sources.find(name)
    if source.files:
        return identity.of_files(key, source.files)
    from clipadapt.models import _adapter

    # The tokenizer is asked for now, so that what cannot read a prompt fails before any work.
    _adapter.tokenizer_for(source, name.shown)
    sha256 = _adapter.weights_sha256(_adapter.build(source, name.shown))
    identity.remember(key, sha256)
    return sha256


MODEL = OpenClip()
