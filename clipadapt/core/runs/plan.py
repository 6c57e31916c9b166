"""TODO."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipadapt.core.api.errors import (
    ConfigError,
    DataError,
)
from clipadapt.core.api.method import OpenVocabulary
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.progress import Silent
from clipadapt.core.api.registry import METHODS, MODELS, tracks
from clipadapt.core.api.user_input import user_path
from clipadapt.core.data import sampling
from clipadapt.core.data.classnames import classnames_sha256
from clipadapt.core.data.targets import OpenDatasets, open_target
from clipadapt.core.experiments.run_id import evaluation_part, fit_part
from clipadapt.core.files.folders import check_writable
from clipadapt.core.files.hardware import default_threads
from clipadapt.core.records import schema
from clipadapt.core.records.run_store import RunStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from clipadapt.core.api.method import Classifier, Method
    from clipadapt.core.api.model import ModelIdentity, ModelProvider
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.data.targets import Target
    from clipadapt.core.experiments.config import Experiment
    from clipadapt.core.records.schema import RunRecord


MAX_ATTEMPTS = 2  # a failed run is tried once more


USER_ERROR = (
    "user_error"  # flag of a failed run whose cause the user can mend: it is tried every time
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An experiment whose data are open and whose model is identified; nothing heavy is loaded.

    Attributes:
        experiment: The experiment.
        method: The method's class.
        targets: Where the fit is judged; the first is also where it learns.
        provider: Where the model comes from, or None where the method needs none.
        identity: What tells the model apart, or None.
        store: Where records are written.
        manifest: A draw given by the user, or None.
        threads: Threads of the numeric libraries; sums are split among them, which decides the last bits.
    """

    experiment: Experiment
    method: type[Method]
    targets: tuple[Target, ...]
    provider: ModelProvider | None
    identity: ModelIdentity | None
    store: RunStore
    manifest: sampling.Manifest | None
    threads: int

    @property
    def device(self) -> str:
        """Device that the model is on."""
        return "cpu" if self.identity is None else self.identity.device

    def run_id(self, seed: int, target: Target) -> str:
        """Return the id of one fit and evaluation; equal ids mean equal results."""
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
        return schema.make_fit_id(fit=self._fit_part(seed))

    def _fit_part(self, seed: int) -> dict[str, Any]:
        home, manifest = self.targets[0], self.manifest
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
        return fit_part(self.experiment, self.method.version, facts)

    def _model_key(self) -> dict[str, str] | None:
        """Return what decides the results of the model; what else its identity holds says where it comes from."""
        own = self.identity
        if own is None:
            return None
        return {
            "name": own.name,
            "weights_sha256": own.weights_sha256,
            "dtype": own.dtype,
            "device": own.device.partition(":")[0],
        }

    def missing(self, seed: int) -> list[Target]:
        """Return the targets of a seed still to be judged: not complete, and not failed twice."""
        found = [(t, self.store.find(self.run_id(seed, t))) for t in self.targets]
        return [
            t
            for t, r in found
            if r is None
            or (r.status == "failed" and (r.attempt < MAX_ATTEMPTS or USER_ERROR in r.flags))
        ]


def prepare(
    experiment: Experiment,
    out: Path,
    progress: Progress | None = None,
    opened: OpenDatasets | None = None,
    threads: int | None = None,
) -> Prepared:
    """Open the data, identify the model and check everything that can be checked before work.

    Args:
        experiment: The experiment.
        out: Folder of the records.
        progress: Where warnings are shown.
        opened: Data sets that are open already; more are added.
        threads: Threads of a config that names none; None takes :func:`default_threads`.

    Raises:
        ClipAdaptError: For any mistake of the user's.
    """
    progress = progress or Silent()
    config, track = experiment.config, experiment.track
    check_writable(out)
    method = METHODS.get(experiment.method_name)
    provider, identity = None, None
    if method.requires is not None:
        if config.model is None:
            raise ConfigError(
                f"the method {experiment.method_name} needs a model and none is named",
                hint=f"for example --set model.name={tracks()[track].examples.model}",
            )
        resolved = MODELS.resolve(config.model.name, track)
        provider = resolved.provider
        options = ModelOptions(config.model.precision, config.model.device)
        identity = provider.identify(resolved.argument, options)
        for note in identity.notes:
            progress.note(f"warning: {identity.name}: {note}")
    if config.compile == "on" and not tracks()[track].compiles:
        raise ConfigError(
            "compile is on, and only image towers are compiled", hint="leave out compile=on"
        )
    opened = opened or OpenDatasets()
    home = open_target(
        config.data.name, config.evaluation.split, config.data, track, progress, opened
    )
    targets = [home]
    for also in config.evaluation.also:
        name = also.dataset or config.data.name
        content = opened.get(name, config.data, track, progress).fingerprint
        changed: dict[str, Any] = {"name": name, "classes": also.classes or config.data.classes}
        if content != home.dataset.fingerprint:
            changed = {"name": name, "classnames": None, "classes": also.classes or "all"}
        data = config.data.model_copy(update=changed)
        targets.append(open_target(name, also.split, data, track, progress, opened))
        # Under a protocol the other targets are worth judging; the runner records what cannot be.
        if config.evaluation.protocol == "standard" and not getattr(
            method, "open_vocabulary", True
        ):
            _columns(home, targets[-1])
    manifest = None
    if config.data.manifest is not None:
        manifest = sampling.Manifest.read(user_path(config.data.manifest))
        if config.data.shots not in {None, manifest.shots}:
            raise ConfigError(
                f"data.shots is {config.data.shots}, but the manifest holds {manifest.shots} shots",
                hint="leave data.shots away; the manifest says what is drawn",
            )
        if manifest.dataset_sha256 != home.dataset.fingerprint:
            progress.note(
                f"warning: the manifest was drawn from another state of '{manifest.dataset}'; "
                "its ids are taken from the data as they are now"
            )
    if refits_on_val(method, experiment):
        targets = [home, *(t for t in targets[1:] if not _is_refitted(t, home, progress))]
    return Prepared(
        experiment=experiment,
        method=method,
        targets=tuple(targets),
        provider=provider,
        identity=identity,
        store=RunStore(out),
        manifest=manifest,
        threads=config.threads or threads or default_threads(),
    )


def refits_on_val(method: type[Method], experiment: Experiment) -> bool:
    """Tell whether a fit ends by learning from val too, where there is one."""
    asked = getattr(method(experiment.method), "refits_on_val", None)
    return asked is not None and asked(few_shot=experiment.config.data.few_shot)


def _is_refitted(target: Target, home: Target, progress: Progress) -> bool:
    """Return whether a target is the val that the fit is trained on, under any name; report that it is left out."""
    aliases = getattr(home.dataset, "aliases", {})
    name = aliases.get(target.split, target.split)
    same = target.dataset.fingerprint == home.dataset.fingerprint
    refitted = same and name == aliases.get("val", "val")
    if refitted:
        progress.note(
            f"warning: {target.title} is not evaluated: the final fit is trained on it too (method.refit)"
        )
    return refitted


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One fit to be done: an experiment and a seed.

    Attributes:
        prepared: The experiment.
        seed: The seed.
        failures: Failed attempts of each run there were when the job was planned.
    """

    prepared: Prepared
    seed: int
    failures: dict[str, int]

    @classmethod
    def plan(cls, prepared: Prepared, seed: int) -> Job:
        """Note what there is of a fit, to tell apart what fails from now on."""
        ids = [prepared.run_id(seed, t) for t in prepared.targets]
        found = {i: record for i in ids if (record := prepared.store.find(i)) is not None}
        failures = {i: r.attempt for i, r in found.items() if r.status == "failed"}
        return cls(prepared, seed, failures)

    @property
    def key(self) -> str:
        """Name of the fit, by which it is claimed."""
        return self.prepared.fit_id(self.seed)

    @property
    def title(self) -> str:
        """What people call it."""
        experiment = self.prepared.experiment
        shots = experiment.config.data.shots
        few = "" if shots is None else f", {shots} shots"
        name = experiment.recipe or experiment.method_name
        return f"{name} on {experiment.config.data.name}{few}, seed {self.seed}"

    def is_open(self) -> bool:
        """Tell whether something is still to be done; a run that another process saw fail meanwhile is not."""
        for target in self.prepared.missing(self.seed):
            run_id = self.prepared.run_id(self.seed, target)
            record = self.prepared.store.find(run_id)
            if record is None or record.attempt <= self.failures.get(run_id, 0):
                return True
        return False

    def records(self) -> list[RunRecord]:
        """Return the records there are, one per target."""
        prepared = self.prepared
        ids = dict.fromkeys(prepared.run_id(self.seed, t) for t in prepared.targets)
        return [r for i in ids if (r := prepared.store.find(i)) is not None]


def refuse_namesakes(prepared: Sequence[Prepared]) -> None:
    """Raise where two data sets would stand under one name in the table.

    Raises:
        ConfigError: Naming both.
    """
    seen: dict[str, str] = {}
    for target in (t for p in prepared for t in p.targets):
        name, sha = target.dataset.name, target.dataset.fingerprint
        if seen.setdefault(name, sha) != sha:
            raise ConfigError(
                f"two different data sets are called '{name}'",
                hint="rename one folder, or give each a run folder of its own with --out",
            )


def for_classes(
    classifier: Classifier, home: Target, target: Target
) -> tuple[Classifier, list[int] | None]:
    """Return the classifier for a target's classes, and the columns to take where its order differs.

    Raises:
        DataError: If a closed classifier never learnt one of the target's classes.
    """
    if target.classnames == home.classnames and target.templates == home.templates:
        return classifier, None
    if isinstance(classifier, OpenVocabulary):
        return classifier.with_classnames(target.classnames, target.templates), None
    return classifier, _columns(home, target)


def _columns(home: Target, target: Target) -> list[int]:
    """Return where the classes of a target stand among those that were learnt.

    Raises:
        DataError: If one was not learnt, or which is meant cannot be told by its name.
    """
    if target.classnames == home.classnames:
        return list(range(len(home.classnames)))
    index = {name: i for i, name in enumerate(home.classnames)}
    unlearnt = [name for name in target.classnames if name not in index]
    if unlearnt:
        raise DataError(
            f"{target.dataset.name} has classes that were not learnt on {home.dataset.name}: "
            f"{', '.join(unlearnt[:5])}{' ...' if len(unlearnt) > 5 else ''}",
            hint="take a data set with the same class names, or a method with an open vocabulary",
        )
    counts = Counter(home.classnames)
    twice = [name for name in target.classnames if counts[name] > 1]
    if twice:
        raise DataError(
            f"the class name '{twice[0]}' stands twice in {home.dataset.name}, so a class of "
            f"{target.dataset.name} cannot be matched by it",
            hint="take a method with an open vocabulary, or name the classes apart with data.classnames",
        )
    return [index[name] for name in target.classnames]
