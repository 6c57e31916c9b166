"""The evaluation transform of a model as plain facts, and as code of Pillow and numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from torchvision.transforms import CenterCrop, Normalize, Resize

from clipadapt.core.api.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

UPRIGHT: Final = """
def upright(image):
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:  # transparent areas on white
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
""".strip()
CODE: Final = """
def pixels_of(image):
    size = facts["resize"]
    if isinstance(size, int):  # the shorter side
        width, height = image.size
        short, long = sorted(image.size)
        long = int(size * long / short)
        size = (size, long) if width <= height else (long, size)
    else:
        size = (size[1], size[0])
    image = image.resize(size, Image.Resampling[facts["interpolation"].upper()])
    height, width = facts["crop"]
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    x = np.asarray(image, dtype=np.float32) / 255
    x = (x - np.float32(facts["mean"])) / np.float32(facts["std"])
    return x.transpose(2, 0, 1)  # (3, H, W)
""".strip()


def facts_of(transform: Callable[..., Any], name: str) -> dict[str, Any]:
    """Return the steps of an evaluation transform.

    Args:
        transform: What :meth:`~clipadapt.models.ImageTextModel.preprocess` returns.
        name: Name of the model, for the message.

    Returns:
        ``resize`` (the shorter side, or height and width), ``interpolation``, ``crop`` (height and width), ``mean``
        and ``std`` of values in [0, 1].

    Raises:
        ModelError: If it has other steps, such as padding.
    """
    found: dict[str, Any] = {}
    steps: Any = transform
    for step in steps.transforms:
        if isinstance(step, Resize):
            size: Any = step.size
            size = list(size) if isinstance(size, tuple | list) else int(size)
            found["resize"] = size[0] if isinstance(size, list) and len(size) == 1 else size
            found["interpolation"] = step.interpolation.value
        elif isinstance(step, CenterCrop):
            found["crop"] = [int(side) for side in step.size]
        elif isinstance(step, Normalize):
            found["mean"], found["std"] = (
                [float(v) for v in part] for part in (step.mean, step.std)
            )
    if isinstance(found.get("resize"), list):
        found.setdefault("crop", found["resize"])
    if set(found) != {"resize", "interpolation", "crop", "mean", "std"}:
        raise ModelError(
            f"'{name}' has a preprocessing that the onnx export cannot describe: {transform}",
            hint="use --format openclip",
        )
    return found
