"""The functions of the Python API: each builds the experiment of a command and runs it, so the records are the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import (
    ClipAdaptError,
    ConfigError,
    DataError,
    ModelError,
    RecordError,
)
from clipadapt.core.api.registry import METHODS, program
from clipadapt.core.api.user_input import user_path
from clipadapt.core.cli.progress import on_stderr
from clipadapt.core.experiments import config, dotted, shipped
from clipadapt.core.experiments.sweep import load_sweep
from clipadapt.core.python.frame import frame_of
from clipadapt.core.python.handles import DatasetHandle
from clipadapt.core.python.results import Results
from clipadapt.core.python.run import Run
from clipadapt.core.records.history import run_folder
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs import inference
from clipadapt.core.runs.find import SCHEME, find_run
from clipadapt.core.runs.reuse import evaluate_saved
from clipadapt.core.runs.session import Session
from clipadapt.core.runs.sweep import run_sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pandas as pd

    from clipadapt.core.api.data import Classes, Inputs, OnBadImage, SplitName
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.experiments.config import Experiment
    from clipadapt.core.python.handles import HasModel
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.runs.models import ModelLoader

PathLike = str | os.PathLike[str]
DEFAULT_OUT: Final = "runs"
"""Folder of the records, the same as that of the commands."""


class Library:
    """The Python API of one track.

    Every function that runs something writes the records that the command writes, by default into ``runs`` below the
    working directory: ``table``, ``report`` and ``predict`` work on them, and what is complete is read, not repeated.
    Bars and warnings are shown on stderr, as the commands show them; ``progress=Silent()`` shows nothing.

    Args:
        track: Name of the track, ``clip`` or ``text``.
        inputs: Turns the examples of a caller into inputs.
    """

    def __init__(self, track: str, inputs: Callable[[Any], Inputs[Any]]) -> None:
        self.track = track
        self.inputs = inputs

    # ------------------------------------------------------------ what is run

    def load_dataset(
        self,
        name: PathLike,
        *,
        templates: str | None = None,
        classnames: PathLike | None = None,
        limit: int | None = None,
        on_bad_image: OnBadImage | None = None,
        progress: Progress | None = None,
    ) -> DatasetHandle:
        """Open a dataset by name.

        Args:
            name: Any name that ``--dataset`` accepts, such as ``folder:PATH``; the path of a folder stands for it.
            templates: ``single``, ``clip``, ``7``, ``80``, one template such as ``a photo of a {}.``, or a file.
            classnames: File of class names that replace the dataset's own.
            limit: Evaluate on at most this many examples.
            on_bad_image: ``error`` stops at an unreadable example, ``skip`` leaves it out.
            progress: Where bars and warnings are shown.

        Raises:
            UnknownNameError: If there is no such dataset.
            DataError: If it cannot be opened.
        """
        return DatasetHandle(
            self.track,
            _dataset_name(name),
            progress or on_stderr(),
            templates=templates,
            classnames=None if classnames is None else os.fspath(classnames),
            limit=limit,
            on_bad_image=on_bad_image,
        )

    def fit(
        self,
        method: str,
        model: HasModel | str | None,
        dataset: DatasetHandle | PathLike,
        *,
        shots: int | None = None,
        seed: int = 1,
        out: PathLike = DEFAULT_OUT,
        settings: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        **params: Any,
    ) -> Run:
        """Fit a method, evaluate it on the test split and write its record; a complete run is read, not repeated.

        ``fit("coop", "stitched", "openmoji:line", shots=16, n_ctx=4)`` is ``clipadapt run coop --model stitched
        --dataset openmoji:line --shots 16 --seeds 1 --set method.n_ctx=4``.

        Args:
            method: Name of a recipe, such as ``coop`` or ``coop-quick``, a config file, or a method without a recipe.
            model: A loaded model or its name; None for methods without a model.
            dataset: An open dataset, its name, or the path of a folder.
            shots: Training examples per class; None leaves it to the recipe, usually the whole split.
            seed: Seed of the few-shot draw and of the fit.
            out: Folder of the records.
            settings: Other config keys by dotted name, such as ``{"evaluation.split": "val"}``.
            progress: Where bars and warnings are shown.
            **params: Settings of the method.

        Raises:
            ConfigError: If a setting is not valid; one message names every fault.
            DivergedError: If the scores are not finite.
            ClipAdaptError: For any other mistake of the user.
        """
        own: dict[str, Any] = {"seeds": [seed]} | ({} if shots is None else {"data.shots": shots})
        own |= {f"method.{key}": value for key, value in params.items()}
        configs, of_method = self._recipe(method)
        keys = self.keys(model, dataset, {**of_method, **own, **(settings or {})})
        experiment = config.load(configs, keys, track=self.track)
        if len(experiment.config.seeds) > 1:
            raise ConfigError(
                f"fit takes one seed, got {list(experiment.config.seeds)}",
                hint="use sweep(..., seeds=[1, 2, 3])",
            )
        return self.run(experiment, model, dataset, out=out, progress=progress)

    @staticmethod
    def keys(
        model: HasModel | str | None, dataset: DatasetHandle | PathLike, own: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the config keys of a model, a dataset and further settings, as nested plain data.

        Raises:
            ConfigError: If a key has both a value and keys below it.
        """
        found = {**_keys(model, dataset), **{key: plain(value) for key, value in own.items()}}
        return dotted.nested(found)

    def run(
        self,
        experiment: Experiment,
        model: HasModel | str | None,
        dataset: DatasetHandle | PathLike,
        *,
        out: PathLike,
        progress: Progress | None,
    ) -> Run:
        """Run an experiment with one seed on what is open already.

        Raises:
            RecordError: If the run failed twice.
            ClipAdaptError: For any mistake of the user.
        """
        folder, progress = user_path(os.fspath(out)), progress or on_stderr()
        models = _loader(model, progress)
        datasets = dataset.opened if isinstance(dataset, DatasetHandle) else None
        found = Session(folder, progress, datasets=datasets, models=models).run([experiment])
        return self._run(found[0], folder, progress, models)

    def evaluate(
        self,
        classifier: Run,
        dataset: DatasetHandle | PathLike | None = None,
        *,
        split: SplitName = "test",
        classes: Classes | None = None,
        out: PathLike | None = None,
        progress: Progress | None = None,
    ) -> Run:
        """Evaluate a fitted classifier on another dataset, split or half of the classes, and write the record.

        Nothing is fitted again. The record is that of the same fit with this target in ``evaluation.also``.

        Args:
            classifier: What ``fit``, ``zero_shot`` or ``load_run`` returned.
            dataset: An open dataset, its name, or the path of a folder; None is the dataset of the fit.
            split: Split to evaluate.
            classes: ``all``, ``base`` or ``new`` classes; None is the training classes, or all of another dataset.
            out: Folder of the records; None is that of the run.
            progress: Where bars and warnings are shown.

        Raises:
            RecordError: If the training data or the model have changed since the fit.
            DataError: If the classifier cannot score the classes of the dataset.
        """
        if not isinstance(classifier, Run):
            raise ConfigError(
                f"evaluate takes a run, got {type(classifier).__name__}",
                hint="give what fit(...) or load_run(...) returned",
            )
        progress = progress or classifier.progress
        name = None
        if dataset is not None:
            name = _keys(None, dataset)["data.name"]
            if isinstance(dataset, DatasetHandle) and dataset.options:
                raise ConfigError(
                    f"evaluate does not use {', '.join(dataset.options)} of the dataset '{name}': the prompts are "
                    "those of the dataset itself",
                    hint="load it without them, or fit on it",
                )
        folder = _store_of(classifier) if out is None else user_path(os.fspath(out))
        record = evaluate_saved(
            classifier.record,
            classifier.path,
            folder,
            {"dataset": name, "split": split, "classes": classes},
            progress,
            datasets=dataset.opened if isinstance(dataset, DatasetHandle) else None,
            models=classifier.models,
        )
        return self._run(record, folder, progress, classifier.models)

    def sweep(
        self,
        sweep: str | None = None,
        *,
        methods: Sequence[str | Mapping[str, Any]] | None = None,
        models: Sequence[HasModel | str] | None = None,
        datasets: Sequence[DatasetHandle | PathLike] | None = None,
        shots: Sequence[int | None] | None = None,
        seeds: Sequence[int] | None = None,
        protocol: str | None = None,
        settings: Mapping[str, Any] | None = None,
        out: PathLike = DEFAULT_OUT,
        progress: Progress | None = None,
    ) -> Results:
        """Run every combination of methods, models, datasets, shots and seeds; complete runs are read, not repeated.

        A run that fails is recorded and does not stop the others.

        Args:
            sweep: A shipped sweep or a sweep file, as ``bench`` takes it; the axes given here replace its own.
            methods: Recipes; a mapping has ``recipe`` and ``set``, ``shots`` or ``seeds``, as in a sweep file.
            models: Models.
            datasets: Datasets.
            shots: Training examples per class; None in it is the whole split.
            seeds: Seeds.
            protocol: An evaluation protocol, such as ``few_shot``; the axes given here replace its own.
            settings: Config keys of every run by dotted name.
            out: Folder of the records.
            progress: Where bars and warnings are shown.

        Raises:
            ClipAdaptError: If something is wrong before the first fit; then nothing is run.
        """
        axes: dict[str, Any] = {
            "protocol": protocol,
            "methods": None if methods is None else list(methods),
            "models": None if models is None else [_name_in_sweep(m) for m in models],
            "datasets": None if datasets is None else [_name_in_sweep(d) for d in datasets],
            "shots": shots,
            "seeds": seeds,
        }
        axes = {key: plain(value) for key, value in axes.items() if value is not None}
        own = {key: plain(value) for key, value in (settings or {}).items()}
        if sweep is None:
            experiments = load_sweep(axes, own, track=self.track)
        else:
            experiments = load_sweep(sweep, {**own, **axes}, track=self.track)
        folder, progress = user_path(os.fspath(out)), progress or on_stderr()
        done = run_sweep(experiments, folder, progress)
        shown: Progress = progress

        def run_of(record: RunRecord, path: Path) -> Run:
            return Run(record, path, self.inputs, shown)

        return Results(done.records, RunStore(folder), done.failures, run_of)

    # ------------------------------------------------------------ what was run

    def load_run(self, path: PathLike, *, progress: Progress | None = None) -> Run:
        """Return a run; its classifier is loaded when it is used.

        Args:
            path: Its folder ``<out>/<dataset>/<method>/<run id>``, or ``hf:ORG/NAME[@REVISION]``.
            progress: Where bars and warnings are shown.

        Raises:
            RecordError: If there is no such run, or it failed.
            ConfigError: If it is of the other package.
        """
        progress = progress or on_stderr()
        given = os.fspath(path)
        folder = find_run(given if given.startswith(SCHEME) else user_path(given), progress)
        return Run(inference.record_of(folder, self.track), folder, self.inputs, progress)

    def records(self, path: PathLike = DEFAULT_OUT) -> pd.DataFrame:
        """Return all records below a folder as a table, one row per run (extra ``pandas``).

        See :mod:`clipadapt.core.python.frame` for the columns.

        Raises:
            RecordError: If there is no such folder.
            ClipAdaptError: If pandas is not installed.
        """
        store = RunStore(user_path(os.fspath(path)))
        return frame_of(store.load_all(), store)

    # ------------------------------------------------------------ helpers

    def _recipe(self, method: str) -> tuple[list[str], dict[str, Any]]:
        """Return the config of a recipe, or the settings of a method that has none."""
        if not isinstance(method, str):
            raise ConfigError(
                f"a method is given by the name of its recipe, got {method!r:.80}",
                hint=f"list them with '{program(self.track)} ls configs'",
            )
        try:
            shipped.find_config(method, self.track)
        except ConfigError:
            try:
                return [], {"method.name": METHODS.complete(method, self.track)}
            except ClipAdaptError:
                pass  # the message about the recipe is the better one
            raise
        return [method], {}

    def _run(
        self, record: RunRecord, out: Path, progress: Progress, models: ModelLoader | None
    ) -> Run:
        folder = run_folder(RunStore(out), record)
        if record.status != "ok":
            raise RecordError(
                f"the run {record.run_id} failed twice: {record.error}",
                hint=f"delete '{folder}' to try it again",
            )
        return Run(record, folder, self.inputs, progress, models)


def _dataset_name(name: PathLike) -> str:
    """Return the name of a dataset; a path object, or a text that is only the path of a folder, is ``folder:PATH``."""
    if isinstance(name, str):
        return name
    if isinstance(name, os.PathLike):
        return f"folder:{os.fspath(name)}"
    raise DataError(
        f"a dataset is given by its name or folder, got {name!r:.80}",
        hint="for images or texts in memory use the scikit-learn estimator",
    )


def _keys(model: HasModel | str | None, dataset: DatasetHandle | PathLike) -> dict[str, Any]:
    """Return the config keys that stand for a model and a dataset."""
    found: dict[str, Any] = {}
    if isinstance(model, str):
        found["model.name"] = model
    elif model is not None:
        if not hasattr(model, "handle"):
            raise ModelError(
                f"a model is given by its name or as load_model returns it, got {model!r:.80}",
                hint="the model comes before the dataset: fit(method, model, dataset)",
            )
        found |= model.handle.settings()
    if isinstance(dataset, DatasetHandle):
        return found | dataset.settings()
    return found | {"data.name": _dataset_name(dataset)}


def _loader(model: HasModel | str | None, progress: Progress) -> ModelLoader | None:
    if model is None or isinstance(model, str):
        return None
    model.handle.loader.show_on(progress)
    return model.handle.loader


def _store_of(run: Run) -> Path:
    """Return the folder of the records that a run is in; the default one for a run that was copied elsewhere."""
    parents = run.path.parents
    if len(parents) > 2 and RunStore(parents[2]).run_dir(run.record) == run.path:
        return parents[2]
    return user_path(DEFAULT_OUT)


def _name_in_sweep(one: HasModel | DatasetHandle | PathLike) -> str:
    """Return the name of a model or dataset of a sweep."""
    if isinstance(one, str | os.PathLike):
        return _dataset_name(one)
    handle = one if isinstance(one, DatasetHandle) else one.handle
    more = [key for key in handle.settings() if not key.endswith(".name")]
    if more:
        raise ConfigError(
            f"a sweep takes '{handle.name}' by its name alone, not with {', '.join(more)}",
            hint="give them to all runs, as in settings={'data.templates': '7', 'model.precision': 'fp32'}",
        )
    return handle.name


def plain(value: Any) -> Any:
    """Return a value as a config file holds it: lists, plain numbers, paths as text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | range | set | frozenset):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # of numpy or torch
        return value.tolist()
    return value
