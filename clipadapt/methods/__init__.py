"""Methods that adapt CLIP, one file each; the file name is the registered name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipadapt.core.api.tracks import Examples, HubTask, Track, Trial
from clipadapt.datasets._imagenet import TEMPLATES_7, TEMPLATES_80

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs


def _inputs_of(paths: Sequence[str]) -> Inputs[Any]:
    from clipadapt.datasets._given import image_inputs

    return image_inputs(paths)


def _features_of(model: Any, inputs: Inputs[Any]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = model.encode(inputs, "image")
    return found


TRACK = Track(
    name="clip",
    program="clipadapt",
    inputs="images",
    examples=Examples(
        dataset="synthetic",
        model="stitched",
        recipe="linear_probe-quick",
        baseline="zero_shot",
        sweep="openmoji",
        export_format="openclip",
        needs_model=True,
    ),
    reads_classnames=True,
    compiles=True,
    hub=HubTask(
        pipeline_tag="image-classification",
        title="image classification",
        argument="photo.jpg",
        examples='["photo.jpg"]',
    ),
    trial=Trial(files=True, inputs=_inputs_of, features=_features_of),
    own_folder="folder",
    capabilities={
        "ImageTextModel": "any model",
        "PromptTunable": "trainable prompts",
        "DeepPromptTunable": "prompts in a ViT",
        "AdapterTunable": "LoRA layers",
        "ProjectionTunable": "linear projection",
    },
    template_sets={"7": TEMPLATES_7, "80": TEMPLATES_80},
    encode_options={"tower": "image"},
    feature_options={"layer": "output", "view": 0},
    prompt_options={"tower": "text"},
)
