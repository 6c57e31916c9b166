"""Parse model names, without an ML framework.

``ARCH/TAG``, ``ARCH/PATH.safetensors``, ``hf-hub:ORG/NAME``, ``local-dir:PATH``, ``random:ARCH``.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from clipadapt.core.api.errors import ModelError, did_you_mean
from clipadapt.core.api.registry import MODELS
from clipadapt.core.api.user_input import user_path
from clipadapt.core.files import hub
from clipadapt.models import _transformers_clip

ALIASES: Final = {
    "openai/clip-vit-base-patch16": "ViT-B-16-quickgelu/openai",
    "openai/clip-vit-base-patch32": "ViT-B-32-quickgelu/openai",
}
WEIGHT_SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin")
FORMS: Final = (
    "ARCH/TAG, ARCH/PATH.safetensors, hf-hub:ORG/NAME (optionally @REVISION), local-dir:PATH, random:ARCH "
    "or stitched"
)
OFFLINE_WAYS: Final = (
    "without a network use 'stitched' (pip install \"clipadapt[offline]\"), or weights on this machine: "
    "ARCH/PATH.safetensors or local-dir:PATH"
)
META_NAME: Final = "stitched.json"
"""File with the recipe and the hashes of the model ``stitched``."""
CONFIG_NAME: Final = "open_clip_config.json"
# open_clip's own order of preference
CHECKPOINT_NAMES: Final = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


@dataclass(frozen=True, slots=True)
class Name:
    """A model name in parts.

    Attributes:
        form: Which of the five forms.
        arch: open_clip architecture, of ``tag``, ``file`` and ``random``.
        tag: Pretrained tag.
        path: Absolute path of the weights file or of the folder.
        repo: Hub repository.
        revision: Commit, tag or branch of it, or None.
    """

    form: Literal["tag", "file", "hub", "dir", "random"]
    arch: str = ""
    tag: str = ""
    path: Path = Path()
    repo: str = ""
    revision: str | None = None

    @property
    def shown(self) -> str:
        """The name in tables and records; of a path, only the last part."""
        return {
            "tag": f"{self.arch}/{self.tag}",
            "file": f"{self.arch}/{self.path.name}",
            "hub": f"hf-hub:{self.repo}" + (f"@{self.revision}" if self.revision else ""),
            "dir": f"local-dir:{self.path.name}",
            "random": f"random:{self.arch}",
        }[self.form]

    @property
    def key(self) -> str:
        """Key under which the facts of a tag or of random weights are cached."""
        return f"{self.form}|{self.arch}|{self.tag}"


def parse(name: str) -> Name:
    """Parse a name and check the parts that need no ML framework.

    Raises:
        ModelError: If it has none of the forms, or architecture, file or folder do not exist.
    """
    name = ALIASES.get(name.strip(), name.strip())
    scheme, colon, rest = name.partition(":")
    if colon and scheme in {"hf-hub", "local-dir", "random"}:
        rest = rest.strip()
        if not rest:
            raise ModelError(
                f"'{name}' has nothing after '{scheme}:'", hint=f"accepted are {FORMS}"
            )
        if scheme == "random":
            return Name("random", arch=known_architecture(rest))
        if scheme == "local-dir":
            return Name("dir", path=_folder(rest))
        return _hub_name(name, rest)
    arch, slash, rest = name.partition("/")
    if slash and rest.endswith(WEIGHT_SUFFIXES):
        return Name("file", arch=known_architecture(arch), path=_weights_file(rest))
    if slash and rest:
        if arch not in architectures() and user_path(name).is_dir():
            raise ModelError(f"'{name}' is a folder", hint=f"write local-dir:{name}")
        return Name("tag", arch=known_architecture(arch), tag=rest)
    if name in architectures():
        raise ModelError(
            f"the model '{name}' does not say which weights to load",
            hint=f"write {name}/TAG, {name}/PATH.safetensors or random:{name}; "
            "tags are on open_clip's page of pretrained models",
        )
    near = did_you_mean(name, ("stitched", *architectures()))
    other = MODELS.elsewhere(name, "clip")
    hint = f"{other}; accepted are {FORMS}" if other else f"accepted are {FORMS}"
    raise ModelError(f"unknown model '{name}'{near}", hint=hint)


def _hub_name(name: str, rest: str) -> Name:
    repo, at, revision = rest.partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ModelError(
            f"'{name}' is not a hub repository",
            hint="write hf-hub:ORGANISATION/NAME, optionally @REVISION",
        )
    if at and revision in {"", "main"}:
        what = ": main is a branch that moves" if revision else " has no revision after '@'"
        raise ModelError(
            f"'{name}'{what}",
            hint=f"write hf-hub:{repo}, whose first use pins the commit, or hf-hub:{repo}@COMMIT",
        )
    return Name("hub", repo=repo, revision=revision or None)


@cache
def architectures() -> tuple[str, ...]:
    """Return open_clip's architectures, from its config files."""
    return tuple(sorted(p.stem for p in _config_folder().glob("*.json")))


def known_architecture(arch: str) -> str:
    """Return ``arch``.

    Raises:
        ModelError: If open_clip does not have it; the message names the nearest ones.
    """
    if arch in architectures():
        return arch
    near = did_you_mean(arch, architectures())
    raise ModelError(
        f"unknown architecture '{arch}'{near or ''}",
        hint=f"model names are {FORMS}; open_clip has {len(architectures())} architectures, which "
        "open_clip.list_models() lists",
    )


def architecture_config(arch: str) -> dict[str, Any]:
    """Return open_clip's config of an architecture."""
    config: dict[str, Any] = json.loads(
        (_config_folder() / f"{arch}.json").read_text(encoding="utf-8")
    )
    return config


def folder_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's open_clip config.

    Raises:
        ModelError: If the file is missing or not an open_clip config.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ModelError(
            f"the folder '{folder}' holds no {CONFIG_NAME}{_transformers_clip.what_else(folder)}",
            hint="local-dir: takes a folder as open_clip saves it "
            f"({CONFIG_NAME} beside {CHECKPOINT_NAMES[0]}), or a CLIP as transformers saves it",
        )
    return checked_config(path)


def checked_config(path: Path) -> dict[str, Any]:
    """Return the content of an open_clip config file.

    Raises:
        ModelError: If it is not an open_clip config.
    """
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
        model = config["model_cfg"]
        whole = all(k in model for k in ("embed_dim", "vision_cfg", "text_cfg"))
    except (ValueError, KeyError, TypeError) as err:
        hub.refuse_damaged(path)
        raise ModelError(
            f"'{path}' is not an open_clip config: {type(err).__name__}: {err}"
        ) from err
    if not whole:
        raise ModelError(f"'{path}': model_cfg has no embed_dim, vision_cfg or text_cfg")
    return dict(config)


def folder_checkpoint(folder: Path) -> Path:
    """Return the weights of a checkpoint folder, the same that open_clip loads.

    Raises:
        ModelError: If there are none.
    """
    for name in CHECKPOINT_NAMES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(p for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES)
    if others:
        return others[0]
    raise ModelError(
        f"the folder '{folder}' holds no weights", hint=f"save them as {CHECKPOINT_NAMES[0]}"
    )


def _config_folder() -> Path:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ModelError(
            "the package open_clip is not installed", hint="pip install open_clip_torch"
        )
    return Path(spec.origin).parent / "model_configs"


def _absolute(text: str) -> Path:
    return user_path(text).absolute()


def _folder(text: str) -> Path:
    folder = _absolute(text).resolve()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ModelError(
            f"local-dir: the folder '{text}' {what}",
            hint="name the folder of a checkpoint that open_clip saved",
        )
    return folder


def _weights_file(text: str) -> Path:
    path = _absolute(text)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        hint = "a relative path starts in the current folder; write ARCH//absolute/path for another folder"
        raise ModelError(f"the weights file '{path}' {what}", hint=hint)
    return path
