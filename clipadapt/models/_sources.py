"""Find config, weights and tokenizer of a model: on this machine first, then on the network with a short timeout."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import ModelError, did_you_mean
from clipadapt.core.files.checksums import sha256_file
from clipadapt.core.files.network import unreachable
from clipadapt.models import _names, _preflight, _transformers_clip
from clipadapt.tensor import tokenizers
from clipadapt.tensor.checkpoints import check_safetensors
from clipadapt.tensor.repositories import model_files, provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from clipadapt.core.files.hub import Snapshot
    from clipadapt.core.files.hub_client import Wanted

TOWER_CONFIG: Final = "config.json"
# In the order in which open_clip looks for them in a hub repository.
_HUB_WEIGHTS: Final = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.pth",
)


@dataclass(frozen=True, slots=True)
class Source:
    """Everything that is needed to build one model.

    Attributes:
        model_cfg: open_clip's ``model_cfg``.
        preprocess_cfg: open_clip's ``preprocess_cfg``; may hold ``resize_size``, see
            :class:`clipadapt.models._preprocess.Preprocess`.
        checkpoint: Weights file, or None for random weights.
        tokenizer: Folder of a Hugging Face tokenizer, or None for open_clip's own.
        tower: Folder with the config of a Hugging Face text tower, or None for a text tower of open_clip.
        arch: open_clip architecture, or empty.
        files: Files whose bytes identify the model.
        revision: Commit of the hub repository of the weights, or None.
        licence: Licence of the weights, or where to find it.
        citation: How to cite the model, or where to find it.
        notes: Notes for the user, reported before the run starts.
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


def to_json(source: Source) -> dict[str, Any]:
    """Return a source as JSON, without the ``model_cfg`` of its architecture and the notes."""
    kept = (f.name for f in fields(source) if f.name not in {"model_cfg", "notes"})
    whole = {name: getattr(source, name) for name in kept}
    return dict(json.loads(json.dumps(whole, default=str)))


def from_json(facts: Mapping[str, Any], model_cfg: dict[str, Any]) -> Source:
    """Return the source that :func:`to_json` wrote."""
    paths = {
        n: Path(facts[n]) for n in ("checkpoint", "tokenizer", "tower") if facts[n] is not None
    }
    files = tuple(Path(file) for file in facts["files"])
    # As open_clip has them: a tuple is described differently from a list.
    preprocess = {
        k: tuple(v) if isinstance(v, list) else v for k, v in facts["preprocess_cfg"].items()
    }
    return Source(model_cfg, **{**facts, **paths, "files": files, "preprocess_cfg": preprocess})


def find(name: _names.Name) -> Source:
    """Find everything; download what is not on this machine.

    Raises:
        ModelError: If something is not available; the message says what would work.
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
            found = _of_file(name, model_cfg)
        else:
            found = _of_tag(name, model_cfg)
    if found.checkpoint is not None:
        check_safetensors(found.checkpoint)
    if name.form in {"dir", "hub"}:
        notes = _preflight.check_images(found.model_cfg, found.preprocess_cfg, name.shown)
        found = replace(found, notes=found.notes + notes)
    return _with_text(found, name.shown)


def _of_file(name: _names.Name, model_cfg: dict[str, Any]) -> Source:
    """Return the source of a weights file, which does not say how its images were preprocessed.

    Where an image tower was trained with another preprocessing than open_clip's default, that one is used.
    """
    preprocess, notes = _preflight.trained_preprocessing(model_cfg), list[str]()
    if preprocess:
        how = _preflight.described(preprocess)
        notes.append(
            f"{name.shown}: images are preprocessed as in the training of {name.arch}: {how}"
        )
    path = name.path
    return Source(model_cfg, preprocess, path, arch=name.arch, files=(path,), notes=tuple(notes))


def _with_text(source: Source, shown: str) -> Source:
    """Add the tokenizer and the config of a Hugging Face text tower."""
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
    """Return the folder of a tokenizer or text tower that is named by a folder or a hub repository, and notes."""
    if Path(name).is_dir():
        return Path(name), ()
    try:
        found = _files(name, None, wanted)
    except ModelError as err:
        raise ModelError(
            f"{what} '{name}' is not available: {err.problem}", hint=err.hint
        ) from None
    return found.folder, (found.note,) if found.note else ()


def _wanted_tokenizer(files: Sequence[str], _: Callable[[str], Path]) -> list[str]:
    chosen = tokenizers.select(files)
    if not chosen:
        raise ModelError("the repository holds no tokenizer with a vocabulary")
    return chosen


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

    open_clip finds the config of a Hugging Face text tower by a name: a folder, relative to the current folder, or
    else a hub repository. To need no network, the name is the path of the folder itself, as the user wrote it. This
    package reads the config from the folder that it is given, also if the folder has been moved.

    Args:
        directory: An existing folder.
        network: The network.
        tokenizer: open_clip's tokenizer of the model.
        source: The source that the model was built from.
        state: Weights, used instead of the network's own.
        output: Final path of the folder; ``directory`` if omitted.
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
    # The folder may have been moved since it was saved, so its files take precedence over the paths in its config.
    return Source(
        config["model_cfg"],
        config.get("preprocess_cfg", {}),
        checkpoint,
        folder if tokenizers.files_of(folder) else None,
        folder if (folder / TOWER_CONFIG).is_file() else None,
        files=(folder / _names.CONFIG_NAME, checkpoint),
    )


def _of_transformers(folder: Path) -> Source:
    """Return the source of a CLIP that transformers saved; its tensors are renamed when they are loaded."""
    model, preprocess = _transformers_clip.configs(folder)
    files = _transformers_clip.files_of(folder)
    return Source(model, preprocess, checkpoint=files[1], files=tuple(files))


class _NoOpenClipError(ModelError):
    """A hub repository without a config of open_clip."""


def _of_hub(name: _names.Name) -> Source:
    try:
        return _of_open_clip_repo(name)
    except _NoOpenClipError:  # only raised if the list of all files of the repository is known
        pass
    found = _files(name.repo, name.revision, partial(_wanted_of_transformers, name.repo))
    return replace(_of_transformers(found.folder), **provenance(found))


def _wanted_of_transformers(
    repo: str, files: Sequence[str], read: Callable[[str], Path]
) -> list[str]:
    """Select the files of a CLIP of transformers."""
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


def _of_open_clip_repo(name: _names.Name) -> Source:
    def own_text(config: dict[str, Any], key: str) -> bool:
        """Return whether the config names this same repository."""
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

    found = _files(name.repo, name.revision, wanted)
    config = _names.checked_config(found.folder / _names.CONFIG_NAME)
    there = [n for n in _HUB_WEIGHTS if (found.folder / n).is_file()]
    checkpoint = found.folder / there[0]
    return Source(
        config["model_cfg"],
        config.get("preprocess_cfg", {}),
        checkpoint,
        tokenizer=found.folder if own_text(config, "hf_tokenizer_name") else None,
        tower=found.folder if own_text(config, "hf_model_name") else None,
        files=(found.folder / _names.CONFIG_NAME, checkpoint),
        **provenance(found),
    )


def _files(repo: str, revision: str | None, wanted: Wanted) -> Snapshot:
    return model_files(repo, revision, wanted, hint=_names.OFFLINE_WAYS)


def _first_of(repo: str, files: Sequence[str], names: Sequence[str]) -> str:
    first = next((n for n in names if n in files), None)
    if first is None:
        raise ModelError(
            f"the hub repository '{repo}' holds none of {', '.join(names)}",
            hint="use a repository that holds its weights in one such file",
        )
    return first


def _of_tag(name: _names.Name, model_cfg: dict[str, Any]) -> Source:
    """Return the source of one of open_clip's pretrained tags; the activation must be the one of the training."""
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
    """Find a tag's weights as open_clip does, in its order: a file, the hub, a URL."""
    from open_clip import pretrained

    if tag_cfg.get("file"):
        path = Path(tag_cfg["file"])
        return Source({}, checkpoint=path, files=(path,))
    if tag_cfg.get("hf_hub"):
        repo, _, file = tag_cfg["hf_hub"].rpartition("/")
        names = _tag_names(file or _HUB_WEIGHTS[1])
        try:
            found = _files(repo, None, lambda files, _: [_first_of(repo, files, names)])
        except ModelError as err:
            raise ModelError(f"'{name.shown}': {err.problem}", hint=err.hint) from None
        path = next(found.folder / n for n in names if (found.folder / n).is_file())
        return Source({}, checkpoint=path, files=(path,), **provenance(found))
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
    """Return the possible names of a tag's file: open_clip prefers the safetensors file to the one that it names."""
    if file == _HUB_WEIGHTS[1]:
        return _HUB_WEIGHTS[:2]
    stem, _, suffix = file.rpartition(".")
    return (f"{stem}.safetensors", file) if suffix in {"bin", "pth"} else (file,)


def _matches(path: Path, url: str) -> bool:
    """Return whether a cached file has the sha256 in the URL of OpenAI, or the start of it in that of mlfoundations."""
    digest = ""
    if "openaipublic" in url:
        digest = url.split("/")[-2]
    elif "mlfoundations" in url:
        digest = path.stem.split("-")[-1]
    if not digest:
        return True
    return sha256_file(path).startswith(digest)


def require_network(url: str, shown: str) -> None:
    """Check within a few seconds that the server of ``url`` answers.

    Raises:
        ModelError: If it does not; the message names what works without a network.
    """
    offline = {"1", "true", "yes", "on"}
    if any(
        os.environ.get(v, "").lower() in offline for v in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    ):
        raise ModelError(
            f"'{shown}' is not on this machine, and HF_HUB_OFFLINE is set, so it cannot be downloaded",
            hint=f"unset HF_HUB_OFFLINE; {_names.OFFLINE_WAYS}",
        )
    why = unreachable(url)
    if why:
        host = url.split("/")[2] if "//" in url else url
        raise ModelError(
            f"'{shown}' is not on this machine, and {host} cannot be reached ({why})",
            hint=f"check the network; {_names.OFFLINE_WAYS}",
        )


def _failed(shown: str, what: str, err: BaseException) -> ModelError:
    first = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
    return ModelError(
        f"'{shown}': {what} could not be downloaded: {first}",
        hint=f"try again; {_names.OFFLINE_WAYS}",
    )
