"""Python code that builds a model and computes its features with open_clip only, for the README of an export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer

from clipadapt.core.api.errors import ModelError
from clipadapt.models import _blocks, _names, _pixels, _projection

if TYPE_CHECKING:
    import torch

    from clipadapt.models import Layer
    from clipadapt.models._sources import Source

CREATE = "model, _, preprocess = open_clip.create_model_and_transforms"


def code(
    name: str,
    source: Source,
    visual: torch.nn.Module,
    layer: Layer,
    *,
    saved: bool,
    adapter: bool,
    seed: int,
) -> tuple[str, tuple[str, ...]]:
    """Return the code and notes for its user.

    Args:
        name: Name of the model in records.
        source: The source that the model was built from.
        visual: Its image tower.
        layer: Which features.
        saved: Whether the export's folder holds the model.
        adapter: Whether it holds a PEFT adapter of the model.
        seed: Seed of random weights.
    """
    build, notes = _build(name, source, saved=saved, seed=seed)
    larger = source.preprocess_cfg.get("resize_size")
    if larger is not None:
        size = visual.image_size
        crop = size[0] if isinstance(size, tuple | list) else size
        resizing = (
            f"the resizing: open_clip's config cannot express 'resize to {larger}, then crop {crop}'; open_clip "
            f"resizes to {crop}, and scores differ; set 'preprocess.transforms[0].size = {larger}', as README.md does"
        )
        notes += (resizing,)
    peft = ["from peft import PeftModel"] if adapter else []
    lines = [
        "import json",
        "",
        "import numpy as np",
        "import open_clip",
        "import torch",
        *peft,
        "from PIL import Image, ImageOps",
        "from safetensors.numpy import load_file",
        "",
        'FOLDER = "."  # this folder',
        'IMAGES = ["photo.jpg"]',
        "",
        *build,
        *([f"preprocess.transforms[0].size = {larger}"] if larger is not None else []),
        *(
            ["model = PeftModel.from_pretrained(model, FOLDER).merge_and_unload()"]
            if adapter
            else []
        ),
        "model.eval()",
        f"\n\n{_pixels.UPRIGHT}\n\n",
        "pixels = torch.stack([preprocess(upright(Image.open(f))) for f in IMAGES])",
        "with torch.no_grad():",
        *(f"    {line}" for line in _features(visual, layer)),
        "x = x.numpy()  # (n, D)",
    ]
    return "\n".join(lines), notes


def _build(
    name: str, source: Source, *, saved: bool, seed: int
) -> tuple[list[str], tuple[str, ...]]:
    """Return the code that creates ``model`` and ``preprocess``, and notes."""
    if saved:
        return _of_folder("FOLDER", source)
    scheme, _, rest = name.partition(":")
    # open_clip cannot read a hub repository of transformers.
    own_layout = any(file.name == _names.CONFIG_NAME for file in source.files)
    if scheme == "hf-hub" and own_layout:
        repo, _, revision = rest.partition("@")
        at = f", at the revision {revision}, which open_clip cannot select" if revision else ""
        return [f'{CREATE}("hf-hub:{repo}")'], (f"the base model, '{name}'{at}",)
    if source.arch and source.checkpoint is None:
        note = f"the base model, '{name}', whose weights are random; --format openclip also writes the model"
        return [f"torch.manual_seed({seed})", f'{CREATE}("{source.arch}")'], (note,)
    if source.arch and not name.endswith(_names.WEIGHT_SUFFIXES):
        arch, _, tag = name.partition("/")
        return [f'{CREATE}("{arch}", pretrained="{tag}")'], (f"the base model, '{name}'",)
    where = "the weights file" if source.arch else "the open_clip folder"
    note = (
        f"the base model: BASE stands for {where} of '{name}'; --format openclip writes model and "
        "classifier together"
    )
    base = [f'BASE = "base"  # {where} of {name}']
    if source.arch:
        stated = {k: v for k, v in source.preprocess_cfg.items() if k != "resize_size"}
        given = "".join(f", image_{k}={v!r}" for k, v in stated.items())
        return [*base, f'{CREATE}("{source.arch}", pretrained=BASE{given})'], (note,)
    build, notes = _of_folder("BASE", source)
    return [*base, *build], (note, *notes)


def _of_folder(place: str, source: Source) -> tuple[list[str], tuple[str, ...]]:
    plain = f'{CREATE}(f"local-dir:{{{place}}}"'
    if not source.model_cfg["text_cfg"].get("hf_model_name"):
        return [f"{plain})"], ()
    note = (
        "the config of its text tower, if the folder is moved: open_clip looks for it in the folder 'hf_model_name' of "
        "open_clip_config.json, the path that the export was written to; the code in README.md passes the folder "
        "itself, so it works anywhere"
    )
    return [
        f'with open(f"{{{place}}}/open_clip_config.json", encoding="utf-8") as file:',
        '    text_cfg = json.load(file)["model_cfg"]["text_cfg"]',
        f'text_cfg |= {{"hf_model_name": {place}, "hf_model_pretrained": False}}',
        f"{plain}, text_cfg=text_cfg)",
    ], ((note,) if place == "FOLDER" else ())


def _features(visual: Any, layer: Layer) -> list[str]:
    """Return the code that computes ``x`` from ``pixels``.

    Raises:
        ModelError: If open_clip does not compute these features.
    """
    if layer == "output":
        return ["x = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)"]
    if layer == "projected":
        return ["x = model.encode_image(pixels, normalize=False)"]
    if isinstance(visual, VisionTransformer):
        pooled = "[0]" if visual.output_tokens else ""
        return [
            "model.visual.proj = None  # what the projection reads",
            "x = model.visual(pixels)" + pooled,
        ]
    if isinstance(visual, ModifiedResNet) and layer == _projection.ATTENTION:
        return [
            "projection = model.visual.attnpool.c_proj  # replaced by the identity",
            "projection.weight = torch.nn.Parameter(torch.eye(projection.in_features))",
            "projection.bias = torch.nn.Parameter(torch.zeros(projection.in_features))",
            "x = model.visual(pixels)",
        ]
    if _blocks.projects_in_trunk(visual):
        return [
            "trunk = model.visual.trunk  # its last layer is the projection",
            "x = trunk.forward_head(trunk.forward_features(pixels), pre_logits=True)",
        ]
    if isinstance(visual, TimmModel):
        return [
            "x = model.visual.trunk(pixels)  # what the projection reads",
            "x = x if x.ndim == 2 else x.flatten(2).mean(-1)",
        ]
    if isinstance(visual, ModifiedResNet):
        return ["x = model.visual(pixels)"]
    raise ModelError(f"a {type(visual).__name__} has no features before the projection")
