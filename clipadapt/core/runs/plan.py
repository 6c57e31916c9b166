"""Plan: open the data of an experiment, identify its model, and find out which fits are left to do.

Every mistake that can be found before the first fit is reported here. No model is loaded and nothing is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import ConfigError, unknown
from clipadapt.core.api.progress import Silent
from clipadapt.core.api.registry import (
    DATASETS,
    METHODS,
    MODELS,
    dataset_key,
    dataset_keys,
    program,
    tracks,
)
from clipadapt.core.api.user_input import user_path
from clipadapt.core.data import sampling
from clipadapt.core.data.classnames import classnames_sha256
from clipadapt.core.data.draws import Draws
from clipadapt.core.data.index_files import read_draw
from clipadapt.core.data.published_draws import manifest_of
from clipadapt.core.data.targets import OpenDatasets, choose_split, is_val, open_target
from clipadapt.core.experiments.run_id import evaluation_part, fit_part
from clipadapt.core.files.folders import check_writable
from clipadapt.core.files.hardware import default_threads
from clipadapt.core.records import schema
from clipadapt.core.records.run_store import Place
from clipadapt.core.runs.classes import class_columns
from clipadapt.core.runs.order import order_seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clipadapt.core.api.method import Method
    from clipadapt.core.api.model import ModelIdentity, ModelProvider
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.data.draws import Draw
    from clipadapt.core.data.targets import Target
    from clipadapt.core.experiments.config import Experiment
    from clipadapt.core.experiments.settings import DataConfig, ModelConfig
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.records.schema import RunRecord

MAX_ATTEMPTS: Final = 2
"""A failed run is tried once more."""
USER_ERROR: Final = "user_error"
"""Flag of a failed run whose cause the user can fix; it is tried every time."""


@dataclass(frozen=True, slots=True)
class OpenExperiment:
    """An experiment whose data are open and whose model is identified; the model is not loaded.

    Attributes:
        experiment: The experiment.
        method: The method's class.
        targets: Where each fit is evaluated; it is trained on the dataset of the first.
        provider: Where the model comes from; None if the method needs no model.
        identity: Name and hash of the model; None if the method needs no model.
        store: Where records are written.
        manifests: The few-shot draw that the user gave, by seed; empty if none was given.
        threads: Threads of the numeric libraries. The order of their sums depends on it, and so do the last bits.
        local_ranks: The processes that do each fit together, by their numbers on their machines; empty for one.
        ids: Ids computed so far, of fits and of runs: every step of a sweep asks for them.
    """

    experiment: Experiment
    method: type[Method]
    targets: tuple[Target, ...]
    provider: ModelProvider | None
    identity: ModelIdentity | None
    store: RunStore
    manifests: Mapping[int, sampling.Manifest]
    threads: int
    local_ranks: tuple[int, ...] = ()
    ids: dict[tuple[int, int | None], str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def home(self) -> Target:
        """The target whose dataset is trained on."""
        return self.targets[0]

    @property
    def device(self) -> str:
        """Device of the model."""
        return "cpu" if self.identity is None else self.identity.device

    @property
    def devices(self) -> tuple[str, ...]:
        """Device of each process if several do a fit together."""
        cuda = self.device == "cuda"
        return tuple(f"cuda:{own}" if cuda else self.device for own in self.local_ranks)

    @property
    def refits_on_val(self) -> bool:
        """Whether a fit is trained on val too in the end, if there is a val split."""
        asked = getattr(self.method(self.experiment.method), "refits_on_val", None)
        return asked is not None and asked(few_shot=self.experiment.config.data.few_shot)

    def run_id(self, seed: int, target: Target) -> str:
        """Return the id of one fit and evaluation; equal ids mean equal results."""
        # By identity: two targets that are alike would compare their examples.
        key = seed, next(i for i, own in enumerate(self.targets) if own is target)
        if key not in self.ids:
            self.ids[key] = self._run_id(seed, target)
        return self.ids[key]

    def _run_id(self, seed: int, target: Target) -> str:
        facts = {
            "dataset": target.dataset.name,
            "sha256": target.dataset.fingerprint,
            "split": target.split,
            "classes": target.classes,
            "classnames": classnames_sha256(target.classnames),
            "templates": list(target.templates),
            "protocol": self.experiment.config.evaluation.protocol,
        }
        evaluation = evaluation_part(self.experiment, facts)
        return schema.make_run_id(fit=self._fit_part(seed), evaluation=evaluation)

    def fit_id(self, seed: int) -> str:
        """Return the id of the fit, shared by all its evaluations."""
        if (seed, None) not in self.ids:
            self.ids[seed, None] = schema.make_fit_id(fit=self._fit_part(seed))
        return self.ids[seed, None]

    def _fit_part(self, seed: int) -> dict[str, Any]:
        home, manifest = self.targets[0], self.manifests.get(seed)
        shots = self.experiment.config.data.shots
        facts = {
            "data.sha256": home.dataset.fingerprint,
            "data.held_out": home.split,
            "data.shots": shots if manifest is None else manifest.shots,
            "data.manifest": manifest.sha256 if manifest else None,
            "data.classes": home.classes,
            "data.classnames": classnames_sha256(home.classnames),
            "data.templates": list(home.templates),
            "model": self._model_key(),
            "seed": seed,
            "threads": self.threads,
        }
        found = fit_part(self.experiment, self.method.version, facts)
        if self.local_ranks:  # they differ in the last bits, and in the masks of dropout
            found["processes"] = len(self.local_ranks)
        return found

    def _model_key(self) -> dict[str, str] | None:
        """Return what determines the model's outputs; the rest of its identity says where it comes from."""
        own = self.identity
        if own is None:
            return None
        model = self.experiment.config.model
        arithmetic = model.options.arithmetic(own.device) if model else ""
        return {
            "name": own.name,
            "weights_sha256": own.weights_sha256,
            "dtype": own.dtype,
            "device": own.device.partition(":")[0],
            **({"arithmetic": arithmetic} if arithmetic else {}),
        }

    def place(self, target: Target) -> Place:
        """Return where the store keeps the runs of a target."""
        return Place(target.dataset.name, self.experiment.method_name)

    def record(self, seed: int, target: Target) -> RunRecord | None:
        """Return the record of a run if it exists."""
        return self.store.find(self.run_id(seed, target), self.place(target))

    def missing(self, seed: int) -> list[Target]:
        """Return the targets that still need a run: none is complete, and none has failed twice."""
        found = [(t, self.record(seed, t)) for t in self.targets]
        return [
            t
            for t, r in found
            if r is None
            or (r.status == "failed" and (r.attempt < MAX_ATTEMPTS or USER_ERROR in r.flags))
        ]


@dataclass(frozen=True, slots=True, eq=False)
class FitSpec:
    """One fit to do: an experiment and a seed.

    Attributes:
        opened: The experiment.
        seed: The seed.
        draw: The training and validation examples; None if nothing was left to do at planning.
        failures: Failed attempts at planning, by run id.
    """

    opened: OpenExperiment
    seed: int
    draw: Draw | None
    failures: dict[str, int]

    @property
    def experiment(self) -> Experiment:
        """The experiment's configuration."""
        return self.opened.experiment

    @property
    def fit_id(self) -> str:
        """Id of the fit, by which it is claimed."""
        return self.opened.fit_id(self.seed)

    @property
    def title(self) -> str:
        """Name of the fit in messages."""
        shots = self.experiment.config.data.shots
        few = "" if shots is None else f", {shots} shots"
        name = self.experiment.recipe or self.experiment.method_name
        return f"{name} on {self.experiment.config.data.name}{few}, seed {self.seed}"

    def missing(self) -> list[Target]:
        """Return the targets that still need a run."""
        return self.opened.missing(self.seed)

    def is_open(self) -> bool:
        """Return whether a run is left to do; one that failed in another process since planning is not."""
        for target in self.missing():
            run_id = self.opened.run_id(self.seed, target)
            record = self.opened.record(self.seed, target)
            if record is None or record.attempt <= self.failures.get(run_id, 0):
                return True
        return False

    def records(self) -> list[RunRecord]:
        """Return the records that exist, at most one per target."""
        return list(_records(self.opened, self.seed).values())


def open_experiment(
    experiment: Experiment,
    store: RunStore,
    progress: Progress | None = None,
    datasets: OpenDatasets | None = None,
    threads: int | None = None,
    local_ranks: tuple[int, ...] = (),
) -> OpenExperiment:
    """Open the data, identify the model and check everything that can be checked before the first fit.

    Args:
        experiment: The experiment.
        store: Where records are written.
        progress: Where warnings are shown.
        datasets: Datasets that are already open; more are added.
        threads: Threads if the config does not set them; None means :func:`default_threads`.
        local_ranks: The processes that do each fit together, by their numbers on their machines; empty for one.

    Raises:
        ClipAdaptError: For any mistake of the user.
    """
    progress = progress or Silent()
    config, track = experiment.config, experiment.track
    check_writable(store.root)
    method = METHODS.get(experiment.method_name)
    provider, identity = None, None
    if method.requires is not None:
        provider, identity = _identify(experiment, progress)
    if local_ranks:
        _check_processes(experiment, method, identity, len(local_ranks))
    if config.compile == "on" and not tracks()[track].compiles:
        raise ConfigError("compile=on applies to image towers only", hint="remove compile=on")
    targets = _open_targets(experiment, method, progress, datasets or OpenDatasets())
    opened = OpenExperiment(
        experiment=experiment,
        method=method,
        targets=targets,
        provider=provider,
        identity=identity,
        store=store,
        manifests=read_manifests(experiment, targets[0], progress),
        threads=config.threads or threads or default_threads(),
        local_ranks=local_ranks,
    )
    order_seed(experiment)  # an online method without one is refused before the first fit
    return _without_val(opened, progress) if opened.refits_on_val else opened


def _check_processes(
    experiment: Experiment, method: type[Method], identity: ModelIdentity | None, count: int
) -> None:
    """Check that a method can be fitted by several processes, each on its own device.

    Raises:
        ConfigError: If it cannot.
    """
    if not getattr(method, "several_processes", False):
        raise ConfigError(
            f"{experiment.method_name} is fitted by one process, but {count} were started",
            hint=f"run '{program(experiment.track)} run' without the launcher; to do one fit per GPU, use "
            f"'{program(experiment.track)} bench SWEEP --executor ray'",
        )
    if identity is not None and ":" in identity.device:
        raise ConfigError(
            f"model.device is {identity.device}, but each of the {count} processes takes a GPU of its own",
            hint="set model.device to cuda, or leave it out",
        )


def check_names(experiment: Experiment) -> None:
    """Check the names of the datasets and of the model without opening them.

    Raises:
        UnknownNameError: If there is no such kind of dataset.
        ClipAdaptError: If the model's name is not valid.
    """
    config, track = experiment.config, experiment.track
    names = (config.data.name, *(also.dataset for also in config.evaluation.also))
    for name in filter(None, names):
        if dataset_key(name, track) not in dataset_keys(track):
            known = DATASETS.typed(DATASETS.names(track), track)
            hint = f"list them with '{program(track)} ls datasets'"
            raise unknown("dataset", name.partition(":")[0], known, hint=hint)
    if config.model is not None:
        resolved = MODELS.resolve(config.model.name, track)
        check = getattr(resolved.provider, "check_name", None)
        if check is not None:
            check(resolved.argument)


def plan_fit(opened: OpenExperiment, seed: int, draws: Draws | None = None) -> FitSpec:
    """Find what exists of a fit and, if a run is left to do, draw its examples.

    Args:
        opened: The experiment.
        seed: The seed.
        draws: Draws that were made for other fits; this one is added.

    Raises:
        ClipAdaptError: If the draw is impossible, or the method's settings do not suit it.
    """
    failures = {i: r.attempt for i, r in _records(opened, seed).items() if r.status == "failed"}
    if not opened.missing(seed):
        return FitSpec(opened, seed, None, failures)
    draws = draws or Draws()
    draw = draws.get(opened.home, opened.experiment, opened.manifests.get(seed), seed)
    opened.experiment.method.check(draw.task)
    return FitSpec(opened, seed, draw, failures)


def check_dataset_names(experiments: Sequence[OpenExperiment]) -> None:
    """Raise if two datasets would have the same name in a table.

    Raises:
        ConfigError: Naming both.
    """
    seen: dict[str, str] = {}
    for target in (t for e in experiments for t in e.targets):
        name, sha = target.dataset.name, target.dataset.fingerprint
        if seen.setdefault(name, sha) != sha:
            raise ConfigError(
                f"two different datasets are named '{name}'",
                hint="rename one folder, or give each its own run folder with --out",
            )


def _records(opened: OpenExperiment, seed: int) -> dict[str, RunRecord]:
    """Return the records of a fit that exist, by run id."""
    found = (opened.record(seed, target) for target in opened.targets)
    return {record.run_id: record for record in found if record is not None}


def _identify(experiment: Experiment, progress: Progress) -> tuple[ModelProvider, ModelIdentity]:
    """Find the model of an experiment and hash its weights."""
    config, track = experiment.config, experiment.track
    if config.model is None:
        raise ConfigError(
            f"the method {experiment.method_name} needs a model, but none is set",
            hint=f"name one with --model, for example --model {tracks()[track].examples.model}, or set model.name",
        )
    return identify_model(config.model, track, progress)


def identify_model(
    model: ModelConfig, track: str, progress: Progress
) -> tuple[ModelProvider, ModelIdentity]:
    """Find a model, hash its weights and show its notes.

    Raises:
        ModelError: If it is not available; the message says what would work.
    """
    with progress.track(f"find model {model.name}", None):
        resolved = MODELS.resolve(model.name, track)
        identity = resolved.provider.identify(resolved.argument, model.options)
    for note in identity.notes:
        progress.note(f"warning: {identity.name}: {note}")
    return resolved.provider, identity


def open_home(
    experiment: Experiment, method: type[Method], progress: Progress, datasets: OpenDatasets
) -> Target:
    """Open the dataset to train on.

    Raises:
        ClipAdaptError: If it cannot be opened, or does not have what the experiment asks for.
    """
    config, track = experiment.config, experiment.track
    asked = config.evaluation.split
    split = choose_split(
        "test" if asked == "auto" and config.data.few_shot else asked,  # a draw needs a train split
        datasets.get(config.data.name, config.data, track, progress),
        track,
        uses_train=getattr(method(experiment.method), "uses_train", True),
        note=lambda message: datasets.note(progress, message),
    )
    return open_target(config.data.name, split, config.data, track, progress, datasets)


def _open_targets(
    experiment: Experiment, method: type[Method], progress: Progress, datasets: OpenDatasets
) -> tuple[Target, ...]:
    """Open the dataset to train on and every further one to evaluate."""
    config, track = experiment.config, experiment.track
    home = open_home(experiment, method, progress, datasets)
    targets = [home]
    with progress.track(f"read dataset {config.data.name}", None):
        content_of_home = home.dataset.fingerprint  # of every example, once
    for also in config.evaluation.also:
        name = also.dataset or config.data.name
        dataset = datasets.get(name, config.data, track, progress)
        with progress.track(f"read dataset {name}", None):
            content = dataset.fingerprint
        changed: dict[str, Any] = {"name": name, "classes": also.classes or config.data.classes}
        if content != content_of_home:
            changed = {"name": name, "classnames": None, "classes": also.classes or "all"}
        data = config.data.model_copy(update=changed)
        targets.append(open_target(name, also.split, data, track, progress, datasets))
        # Under an evaluation protocol the other targets are still of use; a run that is impossible is recorded.
        is_open = getattr(method(experiment.method), "open_vocabulary", True)
        if config.evaluation.protocol == "standard" and not is_open:
            class_columns(home, targets[-1])
    return tuple(targets)


def read_manifests(
    experiment: Experiment, home: Target, progress: Progress
) -> dict[int, sampling.Manifest]:
    """Read the few-shot draw that the user gave, by seed; ``{seed}`` in the path stands for the seed."""
    data = experiment.config.data
    if data.manifest is None:
        return {}
    paths = {seed: data.manifest.replace("{seed}", str(seed)) for seed in experiment.config.seeds}
    read = {
        path: _read_manifest(path, data, home, progress) for path in dict.fromkeys(paths.values())
    }
    return {seed: read[path] for seed, path in paths.items()}


def _read_manifest(
    path: str, data: DataConfig, home: Target, progress: Progress
) -> sampling.Manifest:
    """Read the draw of an earlier run, or a few-shot index file."""
    draw = read_draw(user_path(path), home.dataset.classnames)
    if not isinstance(draw, sampling.Manifest):
        return manifest_of(draw, home, data)
    if data.shots not in {None, draw.shots}:
        raise ConfigError(
            f"data.shots is {data.shots}, but the manifest has {draw.shots} shots",
            hint="remove data.shots; the manifest says what is drawn",
        )
    if draw.dataset_sha256 != home.dataset.fingerprint:
        progress.note(
            f"warning: the manifest was drawn from another version of '{draw.dataset}'; "
            "its ids are looked up in the current data"
        )
    return draw


def _without_val(opened: OpenExperiment, progress: Progress) -> OpenExperiment:
    """Drop the targets that are the val split, under any name, because the fit is trained on it."""
    home = opened.home
    kept = [home]
    for target in opened.targets[1:]:
        if is_val(home, target):
            progress.note(
                f"warning: {target.title} is not evaluated: the final fit is trained on it too"
            )
        else:
            kept.append(target)
    return replace(opened, targets=tuple(kept), ids={})
