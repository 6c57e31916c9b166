"""Where a model's config, weights and tokenizer are.

They are looked for on this machine first, then on the network, with a short wait.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import ModelError, did_you_mean
from clipadapt.core.files import hub
from clipadapt.core.files.checksums import sha256_file
from clipadapt.core.files.identity import check_safetensors
from clipadapt.core.files.network import unreachable
from clipadapt.models import _names, _transformers_clip
from clipadapt.tensor import tokenizers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Wanted = Callable[[Sequence[str], Callable[[str], Path]], Sequence[str]]

TOWER_CONFIG: Final = "config.json"
# Of a hub repository open_clip reads the first of the first two; of the others one that has none of these.
_HUB_WEIGHTS: Final = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.pth",
)


@dataclass(frozen=True, slots=True)
class Source:
    """All that is needed to build one model.

    Attributes:
        model_cfg: open_clip's ``model_cfg``.
        preprocess_cfg: open_clip's ``preprocess_cfg``; may hold ``resize_size``, see the adapter.
        checkpoint: Weights file, or None for random weights.
        tokenizer: Folder of a Hugging Face tokenizer, or None where open_clip's own is used.
        tower: Folder of the config of a Hugging Face text tower, or None where it has none.
        arch: open_clip architecture, or empty.
        files: Files whose bytes are the model's identity.
        revision: Commit of the hub's repository of the weights, or None.
        licence: Licence of the weights, or where it stands.
        citation: How to cite the model, or where it stands.
        notes: What is worth telling the user before the run.
    """

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    tokenizer: Path | None = None
    tower: Path | None = None
    arch: str = ""
    files: tuple[Path, ...] = ()
    revision: str | None = None
    licence: str = "unknown (the user's own weights)"
    citation: str = "none (the user's own weights)"
    notes: tuple[str, ...] = ()


def find(name: _names.Name) -> Source:
    """Find everything; fetch what is not on this machine.

    Raises:
        ModelError: If something cannot be had; the message says what would work.
    """
    if name.form == "dir":
        found = _of_folder(name.path)
    elif name.form == "hub":
        found = _of_hub(name)
    else:
        model_cfg = _names.architecture_config(name.arch)
        if name.form == "random":
            drawn = "none (random weights)"
            found = Source(model_cfg, arch=name.arch, licence=drawn, citation=drawn)
        elif name.form == "file":
            found = Source(model_cfg, checkpoint=name.path, arch=name.arch, files=(name.path,))
        else:
            found = _of_tag(name, model_cfg)
    if found.checkpoint is not None:
        check_safetensors(found.checkpoint)
    return _with_text(found, name.shown)


def _with_text(source: Source, shown: str) -> Source:
    """Add what a text tower of Hugging Face needs beside the weights: its tokenizer and its config."""
    text_cfg = source.model_cfg["text_cfg"]
    tokenizer, tower, notes = source.tokenizer, source.tower, source.notes
    wanted = text_cfg.get("hf_tokenizer_name")
    if wanted and tokenizer is None:
        tokenizer, note = _text_folder(wanted, _wanted_tokenizer, f"{shown}: its tokenizer")
        notes += note
    wanted = text_cfg.get("hf_model_name")
    if wanted and tower is None:
        tower, note = _text_folder(wanted, _wanted_tower, f"{shown}: its text tower")
        notes += note
    files = source.files
    if text_cfg.get("hf_tokenizer_name") and tokenizer is not None:
        files += tokenizers.files_of(tokenizer)
    if text_cfg.get("hf_model_name") and tower is not None:
        files += (tower / TOWER_CONFIG,)
    return replace(source, tokenizer=tokenizer, tower=tower, files=files, notes=notes)


def _text_folder(name: str, wanted: Wanted, what: str) -> tuple[Path, tuple[str, ...]]:
    """Return the folder of a tokenizer or a text tower: a folder, or a repository of the hub."""
    if Path(name).is_dir():
        return Path(name), ()
    try:
        found = hub.snapshot(
            "model", name, None, wanted=wanted, error=ModelError, way_out=_names.OFFLINE_WAYS
        )
    except ModelError as err:
        raise ModelError(
            f"{what} '{name}' is not available: {err.problem}", hint=err.hint
        ) from None
    return found.folder, (found.note,) if found.note else ()


def _wanted_tokenizer(files: Sequence[str], _: Callable[[str], Path]) -> list[str]:
    if not tokenizers.has_vocabulary(files):
        raise ModelError("the repository holds no tokenizer with a vocabulary")
    return sorted(tokenizers.FILES.intersection(files))


def _wanted_tower(files: Sequence[str], _: Callable[[str], Path]) -> list[str]:
    return [TOWER_CONFIG] if TOWER_CONFIG in files else []


def save_folder(
    directory: Path,
    network: Any,
    tokenizer: Any,
    source: Source,
    state: Mapping[str, Any] | None = None,
    output: Path | None = None,
) -> None:
    """Write config, weights, tokenizer and text tower config as an open_clip folder.

    open_clip looks for the config of a Hugging Face text tower under a name: a folder, which it takes relative to the
    current one, or else a repository of the hub. So that it needs no network, the name is that of the folder itself,
    as the user wrote it. This package reads the folder it was given, wherever that has been moved.

    Args:
        directory: An existing folder.
        network: The network.
        tokenizer: open_clip's tokenizer of the model.
        source: Where the model came from.
        state: Weights in the place of the network's own.
        output: Where the folder will be; ``directory`` if left out.
    """
    from safetensors.torch import save_file

    weights = network.state_dict() if state is None else state
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()},
        directory / _names.CHECKPOINT_NAMES[0],
        metadata={"format": "pt"},
    )
    preprocess = {**network.visual.preprocess_cfg, **source.preprocess_cfg}
    text_cfg = source.model_cfg["text_cfg"]
    if text_cfg.get("hf_model_name"):
        named = {"hf_model_name": str(output or directory), "hf_model_pretrained": False}
        text_cfg = {**text_cfg, **named}
    config = {
        "model_cfg": {**source.model_cfg, "text_cfg": text_cfg},
        "preprocess_cfg": preprocess,
    }
    (directory / _names.CONFIG_NAME).write_text(json.dumps(config, indent=2), encoding="utf-8")
    text_config = getattr(getattr(network, "text", None), "config", None)
    if text_config is not None:
        text_config.save_pretrained(directory)
    if hasattr(tokenizer, "tokenizer"):
        tokenizer.tokenizer.save_pretrained(directory)


def _of_folder(folder: Path) -> Source:
    if not (folder / _names.CONFIG_NAME).is_file() and _transformers_clip.is_folder(folder):
        return _of_transformers(folder)
    config = _names.folder_config(folder)
    checkpoint = _names.folder_checkpoint(folder)
    # The folder may have been moved since it was saved; what it holds goes before what its config says.
    return Source(
        config["model_cfg"],
        config.get("preprocess_cfg", {}),
        checkpoint,
        folder if tokenizers.files_of(folder) else None,
        folder if (folder / TOWER_CONFIG).is_file() else None,
        files=(folder / _names.CONFIG_NAME, checkpoint),
    )


def _of_transformers(folder: Path) -> Source:
    """Return the source of a CLIP that transformers saved; its tensors are renamed where they are read."""
    model, preprocess = _transformers_clip.configs(folder)
    files = _transformers_clip.files_of(folder)
    return Source(model, preprocess, checkpoint=files[1], files=tuple(files))


class _NoOpenClipError(ModelError):
    """A hub repository that holds no config of open_clip's."""


def _of_hub(name: _names.Name) -> Source:
    try:
        return _of_open_clips(name)
    except (
        _NoOpenClipError
    ):  # of the whole repository: what another program fetched is not all of it
        pass
    found = _snapshot(name.repo, name.revision, partial(_wanted_of_transformers, name.repo))
    theirs = _of_transformers(found.folder)
    return replace(
        _of_snapshot(found),
        model_cfg=theirs.model_cfg,
        preprocess_cfg=theirs.preprocess_cfg,
        checkpoint=theirs.checkpoint,
        files=theirs.files,
    )


def _wanted_of_transformers(
    repo: str, files: Sequence[str], read: Callable[[str], Path]
) -> list[str]:
    """Choose the files of a CLIP of transformers, which is converted where it is read."""
    kinds = _transformers_clip
    folder = read(kinds.CONFIG).parent if kinds.CONFIG in files else None
    if folder is None or not kinds.is_folder(folder):
        what = kinds.what_else(folder) if folder else f" and no {kinds.CONFIG}"
        raise ModelError(
            f"the hub repository '{repo}' holds no {_names.CONFIG_NAME}{what}",
            hint="hf-hub: takes repositories of open_clip checkpoints and of transformers' CLIP",
        )
    preprocessors = [n for n in kinds.PREPROCESSORS if n in files]
    return [kinds.CONFIG, _first_of(repo, files, kinds.WEIGHTS), *preprocessors]


def _of_open_clips(name: _names.Name) -> Source:
    def own_text(config: dict[str, Any], key: str) -> bool:
        """Tell whether open_clip, too, would take it from this very repository."""
        return config["model_cfg"]["text_cfg"].get(key) == name.repo

    def wanted(files: Sequence[str], read: Callable[[str], Path]) -> list[str]:
        if _names.CONFIG_NAME not in files:
            raise _NoOpenClipError(
                f"the hub repository '{name.repo}' holds no {_names.CONFIG_NAME}"
            )
        config = _names.checked_config(read(_names.CONFIG_NAME))
        chosen = [_names.CONFIG_NAME, _first_of(name.repo, files, _HUB_WEIGHTS)]
        if own_text(config, "hf_tokenizer_name"):
            chosen += _wanted_tokenizer(files, read)
        if own_text(config, "hf_model_name"):
            chosen += _wanted_tower(files, read)
        return chosen

    found = _snapshot(name.repo, name.revision, wanted)
    config = _names.checked_config(found.folder / _names.CONFIG_NAME)
    there = [n for n in _HUB_WEIGHTS if (found.folder / n).is_file()]
    checkpoint = found.folder / there[0]
    return replace(
        _of_snapshot(found),
        model_cfg=config["model_cfg"],
        preprocess_cfg=config.get("preprocess_cfg", {}),
        checkpoint=checkpoint,
        tokenizer=found.folder if own_text(config, "hf_tokenizer_name") else None,
        tower=found.folder if own_text(config, "hf_model_name") else None,
        files=(found.folder / _names.CONFIG_NAME, checkpoint),
    )


def _snapshot(repo: str, revision: str | None, wanted: Wanted) -> hub.Snapshot:
    return hub.snapshot(
        "model", repo, revision, wanted=wanted, error=ModelError, way_out=_names.OFFLINE_WAYS
    )


def _of_snapshot(found: hub.Snapshot) -> Source:
    """Return a source that says where it comes from, and nothing else yet."""
    return Source(
        {},
        revision=found.revision,
        licence=found.licence or found.see,
        citation=found.see,
        notes=(found.note,) if found.note else (),
    )


def _first_of(repo: str, files: Sequence[str], names: Sequence[str]) -> str:
    first = next((n for n in names if n in files), None)
    if first is None:
        raise ModelError(
            f"the hub repository '{repo}' holds none of {', '.join(names)}",
            hint="take a repository that holds its weights in one such file",
        )
    return first


def _of_tag(name: _names.Name, model_cfg: dict[str, Any]) -> Source:
    from open_clip import pretrained

    tags = pretrained.list_pretrained_tags_by_model(name.arch)
    tag_cfg = pretrained.get_pretrained_cfg(name.arch, name.tag)
    if not tag_cfg:
        _refuse_other_activation(name, pretrained.list_pretrained_models_by_tag(name.tag))
        near = did_you_mean(name.tag, tags)
        raise ModelError(
            f"{name.arch} has no weights with the tag '{name.tag}'{near}",
            hint=f"its tags are {', '.join(tags)}"
            if tags
            else f"open_clip has no weights for {name.arch}",
        )
    quick = bool(model_cfg.get("quick_gelu", False))
    if bool(tag_cfg.get("quick_gelu", False)) != quick:
        other = name.arch.removesuffix("-quickgelu") if quick else f"{name.arch}-quickgelu"
        trained, built = ("GELU", "QuickGELU") if quick else ("QuickGELU", "GELU")
        raise ModelError(
            f"the weights {name.arch}/{name.tag} were trained with {trained}, "
            f"and the architecture {name.arch} computes {built}",
            hint=f"write {other}/{name.tag}",
        )
    keys = ("mean", "std", "interpolation", "resize_mode")
    preprocess = {k: tag_cfg[k] for k in keys if tag_cfg.get(k) is not None}
    return replace(
        _tag_weights(name, tag_cfg),
        model_cfg=model_cfg,
        preprocess_cfg=preprocess,
        arch=name.arch,
    )


def _refuse_other_activation(name: _names.Name, models: list[str]) -> None:
    plain = name.arch.removesuffix("-quickgelu")
    if plain != name.arch and plain in models:
        raise ModelError(
            f"the weights {plain}/{name.tag} were trained with GELU, "
            f"and the architecture {name.arch} computes QuickGELU",
            hint=f"write {plain}/{name.tag}",
        )


def _tag_weights(name: _names.Name, tag_cfg: dict[str, Any]) -> Source:
    """Find a tag's weights where open_clip looks for them, in its order: a file, the hub, an address."""
    from open_clip import pretrained

    if tag_cfg.get("file"):
        path = Path(tag_cfg["file"])
        return Source({}, checkpoint=path, files=(path,))
    if tag_cfg.get("hf_hub"):
        repo, _, file = tag_cfg["hf_hub"].rpartition("/")
        names = _tag_names(file or _HUB_WEIGHTS[1])
        try:
            found = _snapshot(repo, None, lambda files, _: [_first_of(repo, files, names)])
        except ModelError as err:
            raise ModelError(f"'{name.shown}': {err.problem}", hint=err.hint) from None
        path = next(found.folder / n for n in names if (found.folder / n).is_file())
        return replace(_of_snapshot(found), checkpoint=path, files=(path,))
    url = str(tag_cfg["url"])
    path = Path("~/.cache/clip").expanduser() / url.rpartition("/")[2]
    if not path.is_file() or not _matches(path, url):
        require_network(url, name.shown)
        try:
            path = Path(pretrained.download_pretrained_from_url(url))
        except (OSError, RuntimeError) as err:
            raise _failed(name.shown, url, err) from err
    return Source({}, checkpoint=path, files=(path,), licence=f"see {url}", citation=f"see {url}")


def _tag_names(file: str) -> tuple[str, ...]:
    """Return the file of a tag, behind the safetensors that open_clip takes in its place."""
    if file == _HUB_WEIGHTS[1]:
        return _HUB_WEIGHTS[:2]
    stem, _, suffix = file.rpartition(".")
    return (f"{stem}.safetensors", file) if suffix in {"bin", "pth"} else (file,)


def _matches(path: Path, url: str) -> bool:
    """Tell whether a cached file has the sha256 that OpenAI's address carries (in part, mlfoundations')."""
    digest = ""
    if "openaipublic" in url:
        digest = url.split("/")[-2]
    elif "mlfoundations" in url:
        digest = path.stem.split("-")[-1]
    if not digest:
        return True
    return sha256_file(path).startswith(digest)


def require_network(url: str, shown: str) -> None:
    """Make sure, within some seconds, that the server of ``url`` answers.

    Raises:
        ModelError: If it does not; the message names what works without a network.
    """
    offline = {"1", "true", "yes", "on"}
    if any(
        os.environ.get(v, "").lower() in offline for v in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    ):
        raise ModelError(
            f"'{shown}' is not on this machine, and HF_HUB_OFFLINE forbids to fetch it",
            hint=f"unset HF_HUB_OFFLINE; {_names.OFFLINE_WAYS}",
        )
    reason = unreachable(url)
    if not reason:
        return
    host = url.split("/")[2] if "//" in url else url
    raise ModelError(
        f"'{shown}' is not on this machine, and {host} cannot be reached ({reason})",
        hint=f"check the network; {_names.OFFLINE_WAYS}",
    )


def _failed(shown: str, what: str, err: BaseException) -> ModelError:
    first = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
    return ModelError(
        f"'{shown}': {what} could not be fetched: {first}", hint=f"try again; {_names.OFFLINE_WAYS}"
    )
