"""Any model of open_clip: pretrained tags, weights files, folders, hub repositories, random weights.

G. Ilharco et al., "OpenCLIP", 2021. Names: ``ARCH/TAG``, ``ARCH/PATH.safetensors``, ``hf-hub:ORG/NAME``,
``local-dir:PATH``, ``random:ARCH``.
"""

from __future__ import annotations

import hashlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from clipadapt.core.api.model import ModelIdentity
from clipadapt.core.files import identity
from clipadapt.models import _names
from clipadapt.models._recalled import Memory, Noted, RecalledModel, code_sha256
from clipadapt.tensor.devices import device_and_dtype, set_arithmetic

if TYPE_CHECKING:
    from clipadapt.core.api.context import Services
    from clipadapt.core.api.model import ModelOptions
    from clipadapt.models import ImageTextModel
    from clipadapt.models._adapter import OpenClipModel
    from clipadapt.models._sources import Source

RELEASES: Final = ("open_clip_torch", "torch", "timm")
"""Random weights, and the file of a pretrained tag, depend on the versions of these packages."""


class OpenClip:
    """Provider of open_clip models."""

    def identify(self, name: str, options: ModelOptions, /) -> ModelIdentity:
        """Check the name and hash the weights; a second call loads no ML framework.

        Raises:
            ModelError: If the model is not available; the message says what would work.
        """
        parsed = _names.parse(name)
        device, dtype = device_and_dtype(options)
        facts = _facts(parsed)
        return ModelIdentity(
            parsed.shown, dtype=dtype, device=device, **{**facts, "notes": tuple(facts["notes"])}
        )

    def check_name(self, name: str, /) -> None:
        """Check the form of a name and its architecture; nothing is loaded.

        Raises:
            ModelError: If it has none of the forms, or architecture, file or folder do not exist.
        """
        _names.parse(name)

    def examine(self, name: str, /) -> str:
        """Check that texts and images reach the towers as in training; return what the model needs, in words.

        Raises:
            ModelError: If the model is not available or its tokenizer or preprocessing does not fit it.
        """
        from clipadapt.models import _preflight, _sources
        from clipadapt.models._tokenize import Tokenizer

        parsed = _names.parse(name)
        source = _sources.find(parsed)
        tokenizer = Tokenizer.of(source, parsed.shown)
        return _preflight.needs(source.model_cfg, tokenizer.context_length)

    def load(self, name: str, options: ModelOptions, services: Services, /) -> ImageTextModel:
        """Build the model on its device, ready to encode.

        Raises:
            ModelError: If the model cannot be built.
        """
        parsed = _names.parse(name)
        return load_source(_source(parsed), parsed.shown, options, services)


def load_source(
    source: Source, shown: str, options: ModelOptions, services: Services
) -> ImageTextModel:
    """Return a model under the name ``shown``; one with random weights has no ``identity``.

    A model that an earlier process has built on the CPU is built when its network is used.
    """
    device, dtype = device_and_dtype(options)
    if source.checkpoint is None or device != "cpu":
        return _built(source, shown, options, services)
    memory = Memory.of(source, options, dtype)
    build = partial(_noted, memory, source, shown, options)
    facts = memory.get("facts")
    if facts is None:
        return build(services)
    width = int(source.model_cfg["embed_dim"])
    model = RecalledModel(shown, dtype, width, options, services, memory, facts, build)
    return cast("ImageTextModel", model)


def _noted(
    memory: Memory, source: Source, shown: str, options: ModelOptions, services: Services
) -> OpenClipModel:
    """Build a model and remember what later processes may ask."""
    begun = time.perf_counter()
    model = _built(source, shown, options, services)
    if model.identity is not None and model.identity.weights_sha256 == memory.files_sha256:
        model.noted = Noted(memory, model, time.perf_counter() - begun)
    return model


def _built(source: Source, shown: str, options: ModelOptions, services: Services) -> OpenClipModel:
    from clipadapt.models._adapter import OpenClipModel
    from clipadapt.models._build import build, cast_weights
    from clipadapt.models._tokenize import Tokenizer

    device, dtype = device_and_dtype(options)
    # Hashed before they are loaded, so that a damaged file is reported as such.
    sha256 = identity.of_files(source.files, read=True) if source.checkpoint else None
    set_arithmetic(options, device)
    tokenizer = Tokenizer.of(source, shown)
    module = cast_weights(build(source, shown), device, dtype)
    model = OpenClipModel(
        module,
        tokenizer,
        source,
        name=shown,
        device=device,
        dtype=dtype,
        services=services,
        options=options,
    )
    if sha256 is not None:
        model.identity = ModelIdentity(shown, sha256, dtype)
        identity.require_files(source.files, model.identity)
    return model


def _source(name: _names.Name) -> Source:
    """Find a model; the files of a tag are remembered, because open_clip knows them and is imported for that."""
    from clipadapt.models import _sources

    if name.form != "tag":
        return _sources.find(name)
    key = f"source|{name.key}|{identity.versions(*RELEASES)}|{code_sha256()}"
    known = identity.recall(key)
    if known is None:
        source = _sources.find(name)
        identity.remember(key, _sources.to_json(source), source.files)
        return source
    return _sources.from_json(known, _names.architecture_config(name.arch))


def _facts(name: _names.Name) -> dict[str, Any]:
    """Return hash, commit, licence, citation and notes; those of a tag and of random weights are cached."""
    from clipadapt.models import _sources

    key = f"{name.key}|{identity.versions(*RELEASES)}"
    cacheable = name.form in {"tag", "random"}
    known = identity.recall(key) if cacheable else None
    if known is not None:
        return known
    source = _sources.find(name)
    sha256 = identity.of_files(source.files) if source.checkpoint else _drawn(source, name.shown)
    facts: dict[str, Any] = {
        "weights_sha256": sha256,
        "revision": source.revision,
        "licence": source.licence,
        "citation": source.citation,
        "notes": [],
    }
    if cacheable:
        identity.remember(key, facts, source.files)
    return {**facts, "notes": source.notes}


def _drawn(source: Source, shown: str) -> str:
    """Return the sha256 of random weights and of the files of the tokenizer, if it has files."""
    from clipadapt.models._build import build
    from clipadapt.models._tokenize import Tokenizer
    from clipadapt.tensor.weights import WeightsHash

    # The tokenizer is loaded here too, so that a model that cannot read a prompt fails before any work.
    Tokenizer.of(source, shown)
    weights = WeightsHash().of(build(source, shown).state_dict().items())
    if not source.files:
        return weights
    return hashlib.sha256(f"{weights} {identity.of_files(source.files)}".encode()).hexdigest()


MODEL = OpenClip()
