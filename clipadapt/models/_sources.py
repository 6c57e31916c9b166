"""Where a model's config, weights and tokenizer are.

They are looked for on this machine first, then on the network, with a short wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.errors import ModelError, did_you_mean
from clipadapt.models import _names, _transformers_clip

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROBE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Source:
    """All that is needed to build one model.

    Attributes:
        model_cfg: open_clip's ``model_cfg``.
        preprocess_cfg: open_clip's ``preprocess_cfg``; may hold ``resize_size``, see the adapter.
        checkpoint: Weights file, or None for random weights.
        folder: Folder that holds tokenizer and text tower config, or None.
        arch: open_clip architecture, or empty.
        files: Files whose bytes are the model's identity.
    """

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    folder: Path | None = None
    arch: str = ""
    files: tuple[Path, ...] = ()


def find(name: _names.Name) -> Source:
    """Find everything; fetch what is not on this machine.

    Raises:
        ModelError: If something cannot be had; the message says what would work.
    """
    if name.form == "dir":
        return _of_folder(name.path)
    if name.form == "hub":
        return _of_hub(name)
    model_cfg = _names.architecture_config(name.arch)
    if name.form == "random":
        return Source(model_cfg, arch=name.arch)
    if name.form == "file":
        check_weights_file(name.path)
        return Source(model_cfg, checkpoint=name.path, arch=name.arch, files=(name.path,))
    return _of_tag(name, model_cfg)


def check_weights_file(path: Path) -> None:
    """Read the header of a safetensors file.

    Raises:
        ModelError: If it is not one.
    """
    if path.suffix != ".safetensors":
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            empty = not list(file.keys())
    except (SafetensorError, OSError) as err:
        raise ModelError(
            f"'{path}' is not a safetensors file: {err}",
            hint="save it with safetensors, or fetch it again",
        ) from err
    if empty:
        raise ModelError(f"'{path}' holds no tensors")


def hf_folder(source: Source) -> Path | None:
    """Return the source's folder if it holds the config of a Hugging Face text tower."""
    if source.folder is not None and (source.folder / "config.json").is_file():
        return source.folder
    return None


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
    check_weights_file(checkpoint)
    text_cfg = config["model_cfg"]["text_cfg"]
    files = [folder / _names.CONFIG_NAME, checkpoint]
    if text_cfg.get("hf_model_name") or text_cfg.get("hf_tokenizer_name"):
        files += _names.tokenizer_files(folder)
    return Source(
        config["model_cfg"],
        config.get("preprocess_cfg", {}),
        checkpoint,
        folder,
        files=tuple(files),
    )


def _of_transformers(folder: Path) -> Source:
    """Return the source of a CLIP that transformers saved; its tensors are renamed where they are read."""
    model, preprocess = _transformers_clip.configs(folder)
    checkpoint = folder / _transformers_clip.weights_name(folder)
    check_weights_file(checkpoint)
    preprocessor = folder / _transformers_clip.PREPROCESSOR
    files = [folder / _transformers_clip.CONFIG, checkpoint]
    return Source(
        model,
        preprocess,
        checkpoint,
        files=(*files, *([preprocessor] if preprocessor.is_file() else [])),
    )


def _of_hub(name: _names.Name) -> Source:
    config_path = _hub_file(name.repo, (_names.CONFIG_NAME,), name.shown)
    config = _names.checked_config(config_path)
    checkpoint = _hub_file(
        name.repo, (*_names.CHECKPOINT_NAMES[1:4], _names.CHECKPOINT_NAMES[0]), name.shown
    )
    # The snapshot folder holds tokenizer and text config if they were fetched before.
    text_cfg = config["model_cfg"]["text_cfg"]
    files: tuple[Path, ...] = (config_path, checkpoint)
    if text_cfg.get("hf_model_name") or text_cfg.get("hf_tokenizer_name"):
        files += tuple(_names.tokenizer_files(config_path.parent))
    return Source(
        config["model_cfg"],
        config.get("preprocess_cfg", {}),
        checkpoint,
        config_path.parent,
        files=files,
    )


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
    checkpoint = _tag_file(name, tag_cfg)
    check_weights_file(checkpoint)
    keys = ("mean", "std", "interpolation", "resize_mode")
    preprocess = {k: tag_cfg[k] for k in keys if tag_cfg.get(k) is not None}
    return Source(model_cfg, preprocess, checkpoint, arch=name.arch, files=(checkpoint,))


def _refuse_other_activation(name: _names.Name, models: list[str]) -> None:
    plain = name.arch.removesuffix("-quickgelu")
    if plain != name.arch and plain in models:
        raise ModelError(
            f"the weights {plain}/{name.tag} were trained with GELU, "
            f"and the architecture {name.arch} computes QuickGELU",
            hint=f"write {plain}/{name.tag}",
        )


def _tag_file(name: _names.Name, tag_cfg: dict[str, Any]) -> Path:
    from open_clip import pretrained

    if tag_cfg.get("hf_hub"):
        repo, _, file = tag_cfg["hf_hub"].rpartition("/")
        wanted = [file or "open_clip_pytorch_model.bin"]
        stem, dot, suffix = wanted[0].rpartition(".")
        if dot and suffix in {"bin", "pth"}:
            wanted.insert(0, f"{stem}.safetensors")
        return _hub_file(repo, tuple(wanted), name.shown)
    if tag_cfg.get("file"):
        return Path(tag_cfg["file"])
    url = str(tag_cfg["url"])
    there = Path("~/.cache/clip").expanduser() / url.rpartition("/")[2]
    if there.is_file() and _matches(there, url):
        return there
    require_network(url, name.shown)
    try:
        return Path(pretrained.download_pretrained_from_url(url))
    except (OSError, RuntimeError) as err:
        raise _failed(name.shown, url, err) from err


def _matches(path: Path, url: str) -> bool:
    """Tell whether a cached file has the sha256 that OpenAI's address carries (in part, mlfoundations')."""
    digest = ""
    if "openaipublic" in url:
        digest = url.split("/")[-2]
    elif "mlfoundations" in url:
        digest = path.stem.split("-")[-1]
    if not digest:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(digest)


def _hub_file(repo: str, names: tuple[str, ...], shown: str) -> Path:
    """Return the first of ``names`` that the local hub cache or the hub has."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

    for file in names:
        there = try_to_load_from_cache(repo, file)
        if isinstance(there, str):
            return Path(there)
    require_network(hub_endpoint(), shown)
    for file in names:
        try:
            return Path(hf_hub_download(repo, file))
        except RepositoryNotFoundError as err:
            raise ModelError(
                f"the hub has no public repository '{repo}'",
                hint="check the name, or log in with 'hf auth login'",
            ) from err
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as err:
            raise _failed(shown, f"{repo}/{file}", err) from err
    raise ModelError(
        f"the hub repository '{repo}' holds none of {', '.join(names)}",
        hint="hf-hub: takes repositories of open_clip checkpoints",
    )


def local_first(load: Callable[[bool], Any], what: str, shown: str) -> Any:
    """Call ``load(True)``, which may read this machine only; if that fails, ask the network.

    Raises:
        ModelError: If neither has it.
    """
    try:
        return load(True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        # transformers reports a file that is not in the cache in all these ways
        require_network(hub_endpoint(), f"{shown}: {what}")
    try:
        return load(False)
    except (OSError, ValueError) as err:
        raise _failed(shown, what, err) from err


def hub_endpoint() -> str:
    """Return the address of the hub."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


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
    failure: list[str] = []
    reached = threading.Event()

    def probe() -> None:
        try:
            # Any answer will do; a proxy of the environment is used.
            urllib.request.urlopen(  # noqa: S310
                urllib.request.Request(url, method="HEAD"),  # noqa: S310
                timeout=PROBE_SECONDS,
            ).close()
        except urllib.error.HTTPError as err:
            if err.code in {407, 502, 503, 504}:  # the proxy's own answer
                failure.append(f"HTTP {err.code}")
        except (OSError, ValueError) as err:
            failure.append(str(getattr(err, "reason", err)))
        reached.set()

    # A thread, for name resolution knows no time limit.
    threading.Thread(target=probe, daemon=True).start()
    if reached.wait(PROBE_SECONDS + 1.0) and not failure:
        return
    host = url.split("/")[2] if "//" in url else url
    why = failure[0] if failure else f"no answer in {PROBE_SECONDS:.0f} s"
    raise ModelError(
        f"'{shown}' is not on this machine, and {host} cannot be reached ({why})",
        hint=f"check the network; {_names.OFFLINE_WAYS}",
    )


def _failed(shown: str, what: str, err: BaseException) -> ModelError:
    first = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
    return ModelError(
        f"'{shown}': {what} could not be fetched: {first}", hint=f"try again; {_names.OFFLINE_WAYS}"
    )
