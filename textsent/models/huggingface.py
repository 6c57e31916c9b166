"""Any text encoder of Hugging Face: hub ids, folders, random weights.

Names: ``ORG/NAME`` or ``NAME`` on the hub, optionally with ``@REVISION``; the path of a folder (``local-dir:PATH`` if
it could be mistaken for an id); ``random:ARCH`` for a known configuration, or ``random:`` before a folder or id.
A copy in the hub cache is used as it is; only missing files are downloaded.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.model import ModelIdentity
from clipadapt.core.files import identity
from clipadapt.tensor import tokenizers
from clipadapt.tensor.devices import device_and_dtype, set_arithmetic
from textsent.models import _sources

if TYPE_CHECKING:
    from clipadapt.core.api.context import Services
    from clipadapt.core.api.model import ModelOptions
    from textsent.models import TextEncoder
    from textsent.models._sources import Source

RELEASES: Final = ("torch", "transformers")
"""Random weights depend on the versions of these packages."""


class HuggingFace:
    """Provider of hub models, folders and random weights."""

    def source(self, name: str, /) -> Source:
        """Find configuration, weights and tokenizer.

        Raises:
            ModelError: If something is not available; the message says what would work.
        """
        return _sources.find(_sources.parse(name))

    def identify(self, name: str, options: ModelOptions, /) -> ModelIdentity:
        """Check the name and hash the files, without an ML framework; an unchanged file is not read again.

        Raises:
            ModelError: If the model is not available; the message says what would work.
        """
        parsed = _sources.parse(name)
        return identity_of(_sources.find(parsed), parsed.shown, options)

    def load(self, name: str, options: ModelOptions, services: Services, /) -> TextEncoder:
        """Build the model on its device, ready to encode.

        Raises:
            ModelError: If the model cannot be built.
        """
        parsed = _sources.parse(name)
        return load_source(_sources.find(parsed), parsed.shown, options, services)


def identity_of(
    source: Source, shown: str, options: ModelOptions, *, read: bool = False
) -> ModelIdentity:
    """Return the identity of a source.

    Args:
        source: Files of the model.
        shown: Name of the model.
        options: Precision and device.
        read: Whether this process must have read the bytes; if not, a cached hash is enough.

    Raises:
        ModelError: If it has no tokenizer, or a file is damaged.
    """
    if source.tokenizer is None:
        raise _sources.no_tokenizer(shown)
    device, dtype = device_and_dtype(options)
    if source.folder is not None:
        sha256 = identity.of_files(source.files, read=read)
    else:
        tokenizer = identity.of_files(tokenizers.files_of(source.tokenizer), read=read)
        drawn = [source.config, tokenizer, identity.versions(*RELEASES)]
        sha256 = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()
    return ModelIdentity(
        shown,
        sha256,
        dtype,
        device=device,
        revision=source.revision,
        licence=source.licence,
        citation=source.citation,
        notes=source.notes,
    )


def load_source(
    source: Source, shown: str, options: ModelOptions, services: Services
) -> TextEncoder:
    """Build the model of a source under the name ``shown``."""
    device, dtype = device_and_dtype(options)
    from textsent.models import _encoder

    set_arithmetic(options, device)
    # Hashed before they are loaded, so that a damaged file is reported as such.
    loaded = identity_of(source, shown, options, read=True) if source.tokenizer else None
    encoder = _encoder.load(
        source, name=shown, device=device, dtype=dtype, services=services, options=options
    )
    encoder.identity = loaded
    return encoder


MODEL = HuggingFace()
