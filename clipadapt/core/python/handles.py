"""Models and datasets by name, as ``load_model`` and ``load_dataset`` return them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.data.targets import OpenDatasets
from clipadapt.core.experiments.settings import DataConfig
from clipadapt.core.python import show
from clipadapt.core.runs.models import ModelLoader

if TYPE_CHECKING:
    from clipadapt.core.api.data import Dataset, OnBadImage, Split, SplitName
    from clipadapt.core.api.model import Backbone, Precision
    from clipadapt.core.api.progress import Progress


class ModelHandle:
    """A model that was found and identified by its name; its weights are loaded when they are first used.

    Args:
        track: Name of the track, ``clip`` or ``text``.
        name: Any name that ``--model`` accepts.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``auto``; None is ``auto`` for encoding, and what the recipe
            says for a fit.
        device: ``cpu``, ``cuda``, ``mps`` or ``auto``; None is ``auto``.
        progress: Where bars and warnings are shown.

    Attributes:
        identity: Name, hash of the weights, dtype, device, licence and citation.

    Raises:
        ModelError: If the model is not available; the message says what would work.
    """

    def __init__(
        self,
        track: str,
        name: str,
        precision: Precision | None,
        device: str | None,
        progress: Progress,
    ) -> None:
        if not isinstance(name, str):
            raise ModelError(f"a model is given by its name, got {name!r:.80}")
        self.name, self.precision, self.device = name, precision, device
        self.loader = ModelLoader(progress)
        self._options = ModelOptions(precision or "auto", device or "auto")
        self._resolved = MODELS.resolve(name, track)
        self.identity = self._resolved.provider.identify(self._resolved.argument, self._options)
        for note in self.identity.notes:
            progress.note(f"warning: {self.identity.name}: {note}")

    @property
    def backbone(self) -> Backbone:
        """The model itself; it reads frozen features through the feature cache."""
        services = self.loader.services()
        found = self.loader.backbone(self._resolved, self._options, self.identity, services)
        return found.with_services(services)

    def settings(self) -> dict[str, Any]:
        """Return the config keys that stand for this model."""
        chosen = {"name": self.name, "precision": self.precision, "device": self.device}
        return {f"model.{key}": value for key, value in chosen.items() if value is not None}

    def __repr__(self) -> str:
        own = self.identity
        return f"<model {own.name}: {own.dtype} on {own.device}, weights {own.weights_sha256[:16]}>"

    def facts(self) -> dict[str, str]:
        """Return what describes the model, by name."""
        own = self.identity
        return {
            "model": own.name,
            "dtype": own.dtype,
            "device": own.device,
            "weights": own.weights_sha256[:16],
            "licence": own.licence,
        }


class HasModel(Protocol):
    """A model of a package, which encodes that package's inputs."""

    @property
    def handle(self) -> ModelHandle:
        """The model."""
        ...


class DatasetHandle:
    """An open dataset, as every method sees it; what is on the disk is read once.

    Args:
        track: Name of the track, ``clip`` or ``text``.
        name: Any name that ``--dataset`` accepts.
        progress: Where bars and warnings are shown.
        options: Keys of the section ``data`` of a config, such as ``templates`` and ``classnames``.

    Attributes:
        name: Name as given.
        data: The dataset: names, templates, licence, splits.
        opened: The open datasets that fits with this handle use.

    Raises:
        DataError: If the dataset cannot be opened.
    """

    def __init__(self, track: str, name: str, progress: Progress, **options: Any) -> None:
        self.name = name
        self.options = {key: value for key, value in options.items() if value is not None}
        self.opened = OpenDatasets()
        on_bad: OnBadImage = self.options.get("on_bad_image", "error")
        section = DataConfig(name=name, on_bad_image=on_bad)
        self.data: Dataset[Any] = self.opened.get(name, section, track, progress)

    @property
    def classnames(self) -> tuple[str, ...]:
        """Class names by label, as the dataset itself names them."""
        return self.data.classnames

    @property
    def splits(self) -> dict[SplitName, int]:
        """The splits with their numbers of examples."""
        return {name: len(self.data.split(name)) for name in self.data.splits}

    def split(self, name: SplitName) -> Split[Any]:
        """Return one split: ``inputs.examples`` (loaded lazily), ``inputs.ids``, ``labels`` and ``classnames``.

        Raises:
            DataError: If the dataset has no such split.
        """
        return self.data.split(name)

    def settings(self) -> dict[str, Any]:
        """Return the config keys that stand for this dataset."""
        return {f"data.{key}": value for key, value in {"name": self.name, **self.options}.items()}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {n:,}" for name, n in self.splits.items())
        return f"<dataset {self.data.name}: {len(self.classnames)} classes; {sizes}>"

    def _repr_html_(self) -> str:
        names = ", ".join(self.classnames[:10]) + (" ..." if len(self.classnames) > 10 else "")
        facts = {
            "dataset": self.data.name,
            "classes": f"{len(self.classnames)}: {names}",
            **{f"{name} split": f"{n:,} examples" for name, n in self.splits.items()},
            "templates": "; ".join(self.data.templates),
            "licence": self.data.licence,
            "source": self.data.source,
        }
        return show.html_facts(facts)
