"""Any text encoder in the format of Hugging Face: hub ids, folders, random weights.

Names: ``ORG/NAME`` or ``NAME`` of the hub, ``@REVISION`` may follow; the path of a folder (``local-dir:PATH`` where it
could be mistaken for an id); ``random:ARCH``, whose configuration is known here, or ``random:`` before a folder or id.
A copy in the hub cache is taken as it is; the hub is asked only for what is not there.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

from clipadapt.core import identity
from clipadapt.core.protocols import ModelIdentity
from textsent.models import _sources
from textsent.models._hardware import effective_dtype

if TYPE_CHECKING:
    from clipadapt.core.context import Services
    from clipadapt.core.protocols import ModelOptions
    from textsent.models import TextEncoder
    from textsent.models._sources import Source

RELEASES: Final = ("torch", "transformers")
"""Random weights depend on them."""


class HuggingFace:
    """Provider of the hub's models, of folders and of random weights."""

    def source(self, name: str, /) -> Source:
        """Find configuration, weights and tokenizer.

        Raises:
            ModelError: If something cannot be had; the message says what would work.
        """
        return _sources.find(_sources.parse(name))

    def identify(self, name: str, options: ModelOptions, /) -> ModelIdentity:
        """Check the name and hash the files, without any framework; an unchanged file is not read again.

        Raises:
            ModelError: If the model cannot be had; the message says what would work.
        """
        parsed = _sources.parse(name)
        return identity_of(_sources.find(parsed), parsed.shown, parsed.key, options)

    def load(self, name: str, options: ModelOptions, services: Services, /) -> TextEncoder:
        """Build the model on its device, ready to encode.

        Raises:
            ModelError: If the model cannot be built.
        """
        parsed = _sources.parse(name)
        return load_source(_sources.find(parsed), parsed.shown, options, services)


def identity_of(source: Source, shown: str, key: str, options: ModelOptions) -> ModelIdentity:
    """Return the identity of what was found, under the name ``shown``.

    Raises:
        ModelError: If it has no tokenizer.
    """
    if source.tokenizer is None:
        raise _sources.no_tokenizer(shown)
    device, dtype = effective_dtype(options)
    if source.folder is not None:
        return ModelIdentity(shown, identity.of_files(key, source.files), dtype, device=device)
    drawn = json.dumps([source.config, identity.versions(*RELEASES)], sort_keys=True)
    sha256 = hashlib.sha256(drawn.encode()).hexdigest()
    return ModelIdentity(shown, sha256, dtype, device=device)


def load_source(
    source: Source, shown: str, options: ModelOptions, services: Services
) -> TextEncoder:
    """Build what was found, under the name ``shown``."""
    device, dtype = effective_dtype(options)
    from textsent.models import _encoder

    return _encoder.load(source, name=shown, device=device, dtype=dtype, services=services)


MODEL = HuggingFace()
