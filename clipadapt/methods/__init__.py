"""Methods that adapt CLIP, one file each; the file name is the registered name."""

from clipadapt.core.api.tracks import Examples, HubTask, Track
from clipadapt.datasets._imagenet import TEMPLATES_7, TEMPLATES_80

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
    own_folder="folder",
    capabilities={
        "ImageTextModel": "any model",
        "PromptTunable": "trainable prompts",
        "DeepPromptTunable": "prompts in a ViT",
        "AdapterTunable": "LoRA layers",
        "ProjectionTunable": "linear projection",
    },
    template_sets={"7": TEMPLATES_7, "80": TEMPLATES_80},
)
