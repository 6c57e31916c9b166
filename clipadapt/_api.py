"""The Python API of clipadapt: what ``import clipadapt`` gives, loaded on first use.

>>> import clipadapt
>>> model = clipadapt.load_model("stitched")
>>> data = clipadapt.load_dataset("openmoji:line")
>>> start = clipadapt.zero_shot(model, data)
>>> run = clipadapt.fit("coop-quick", model, data, shots=4, n_ctx=4)  # doctest: +SKIP
>>> run.predict(["cat.png", "dog.png"])  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipadapt.core.api.data import Inputs
from clipadapt.core.cli.progress import on_stderr
from clipadapt.core.experiments import config, shipped
from clipadapt.core.experiments.dotted import nested
from clipadapt.core.python import show
from clipadapt.core.python.handles import DatasetHandle, ModelHandle
from clipadapt.core.python.library import DEFAULT_OUT, Library, plain
from clipadapt.core.python.results import Results
from clipadapt.core.python.run import Run
from clipadapt.datasets._given import image_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.api.data import SplitName
    from clipadapt.core.api.model import Precision
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.experiments.config import Experiment
    from clipadapt.core.python.library import PathLike
    from clipadapt.models import ImageTextModel

__all__ = [
    "DatasetHandle", "Model", "Results", "Run", "evaluate", "fit", "load_dataset", "load_model", "load_run", "records",
    "sweep", "zero_shot",
]  # fmt: skip

library = Library("clip", image_inputs)

load_dataset = library.load_dataset
fit = library.fit
evaluate = library.evaluate
sweep = library.sweep
load_run = library.load_run
records = library.records


class Model:
    """An image-text model; its weights are loaded when they are first used.

    Attributes:
        handle: Name and identity of the model.
    """

    def __init__(self, handle: ModelHandle) -> None:
        self.handle = handle

    @property
    def name(self) -> str:
        """Name as given."""
        return self.handle.name

    @property
    def backbone(self) -> ImageTextModel:
        """The model itself: ``tokenize``, ``encode_image``, ``encode_text``, ``logits``, ``preprocess``, ``module``."""
        found: Any = self.handle.backbone
        return found  # type: ignore[no-any-return]

    def encode(self, images: Any, *, layer: str = "output") -> NDArray[np.float32]:
        """Return the features of images, computed once and then read from the feature cache; shape ``(n, D)``.

        Args:
            images: A list of ``n`` PIL images, paths, arrays and tensors, or one array or tensor of ``n`` images.
            layer: ``output`` (unit norm), ``projected`` or ``pre_projection``.

        Raises:
            DataError: If they are not of an accepted type, or cannot be read.
        """
        return self.backbone.encode(image_inputs(images), "image", layer)

    def encode_text(self, texts: Sequence[str], *, layer: str = "output") -> NDArray[np.float32]:
        """Return the features of ``n`` texts, unit norm at ``output``; shape ``(n, D)``.

        Raises:
            ModelError: If a text is longer than the context.
        """
        given = [texts] if isinstance(texts, str) else list(texts)
        inputs = Inputs(given, tuple(map(str, range(len(given)))))
        return self.backbone.encode(inputs, "text", layer)

    def __repr__(self) -> str:
        return repr(self.handle)

    def _repr_html_(self) -> str:
        return show.html_facts(self.handle.facts())


def load_model(
    name: str,
    *,
    precision: Precision | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Find a model by name; its weights are loaded when they are first used.

    Args:
        name: Any name that ``--model`` accepts, such as ``stitched`` (offline) or ``ViT-B-16-quickgelu/openai``.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``auto``; None leaves it to the recipe of each fit.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        progress: Where bars and warnings are shown.

    Raises:
        ModelError: If the model is not available; the message says what would work.
    """
    return Model(ModelHandle("clip", name, precision, device, progress or on_stderr()))


def zero_shot(
    model: Model | str,
    dataset: DatasetHandle | PathLike,
    *,
    split: SplitName | None = None,
    templates: str | None = None,
    classnames: PathLike | None = None,
    limit: int | None = None,
    out: PathLike = DEFAULT_OUT,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Evaluate a model zero-shot and write the record that ``clipadapt zeroshot`` writes; no other split is read.

    Args:
        model: A loaded model or its name.
        dataset: An open dataset, its name, or the path of a folder.
        split: Split to evaluate; None is test, or all images of a dataset without train, val and test.
        templates: ``single``, ``clip``, ``7``, ``80``, one template, or a file; None is that of the dataset.
        classnames: File of class names; None is that of the dataset.
        limit: Evaluate on at most this many images.
        out: Folder of the records.
        settings: Other config keys by dotted name.
        progress: Where bars and warnings are shown.

    Raises:
        ClipAdaptError: For any mistake of the user.
    """
    data = {"templates": templates, "classnames": classnames, "limit": limit}
    own = {f"data.{key}": value for key, value in data.items() if value is not None}
    options = library.keys(model, dataset, own)
    experiment = zero_shot_experiment(options, nested(plain(settings or {})), split)
    return library.run(experiment, model, dataset, out=out, progress=progress)


def zero_shot_experiment(
    options: Mapping[str, Any], settings: Mapping[str, Any], split: SplitName | None
) -> Experiment:
    """Return the experiment of a zero-shot evaluation, which reads no split other than the evaluated one.

    Args:
        options: Config keys of model and data, nested.
        settings: Further config keys, nested.
        split: Split to evaluate; None is test, or all images of a dataset without train, val and test.

    Raises:
        ConfigError: Naming every fault.
    """
    recipe = shipped.read_fragment(shipped.find_config("zero_shot", "clip"))
    evaluation = {"split": split or "auto", "calibrate": False, "leakage": "off"}
    fragments = [
        ("zero_shot", recipe),
        ("zeroshot", {**options, "evaluation": evaluation}),
        ("--set", settings),
    ]
    return config.build(fragments, source="zeroshot", track="clip")
