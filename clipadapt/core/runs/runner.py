"""The runner: from an experiment to records. The only code that sees test labels.

``prepare`` finds every user's mistake it can before any work is done; ``execute`` fits, evaluates and writes.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.errors import (
    ClipAdaptError,
    DivergedError,
    ModelError,
)
from clipadapt.core.api.flags import registered
from clipadapt.core.api.method import Selected, SelfCalibrated, ZeroShotStart
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.progress import Silent
from clipadapt.core.api.registry import MODELS, tracks
from clipadapt.core.data import draws, leakage
from clipadapt.core.data.classnames import classnames_sha256, token_warnings
from clipadapt.core.data.targets import OpenDatasets
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.files.atomic import scratch_folder
from clipadapt.core.files.folders import refusal
from clipadapt.core.files.hardware import free_device_memory, set_threads
from clipadapt.core.files.identity import require_same
from clipadapt.core.records import environment as env
from clipadapt.core.records import predictions, schema
from clipadapt.core.records.schema import RunRecord
from clipadapt.core.runs import leftovers
from clipadapt.core.runs.claims import Claims
from clipadapt.core.runs.leftovers import WORK
from clipadapt.core.runs.plan import (
    USER_ERROR,
    Job,
    for_classes,
    prepare,
    refits_on_val,
    refuse_namesakes,
)
from clipadapt.core.runs.schedule import Local, work_through
from clipadapt.core.scoring import calibration, metrics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Split
    from clipadapt.core.api.method import Classifier
    from clipadapt.core.api.model import Backbone
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.data import sampling
    from clipadapt.core.data.targets import Target
    from clipadapt.core.experiments.config import Experiment
    from clipadapt.core.runs.plan import (
        Prepared,
    )


class Backbones:
    """Loads a model once for consecutive experiments that share it."""

    def __init__(self, services: Services) -> None:
        """Begin without a model.

        Args:
            services: What models need to encode.
        """
        self.services = services
        self._stores = {"on": FeatureCache(), "off": FeatureCache(enabled=False)}
        self._key: tuple[Any, ...] | None = None
        self._loaded: Backbone | None = None
        self._threads: int | None = None
        self.load_seconds = 0.0

    def use(self, prepared: Prepared) -> None:
        """Apply an experiment's settings of store, workers and threads."""
        config = prepared.experiment.config
        self.services.store = self._stores[config.store]
        self.services.fast = config.fast == "on"
        self.services.compile = config.compile == "on"
        self.services.workers = config.workers
        count = prepared.threads
        self.services.threads = count
        if count != self._threads:
            self._threads = count
            set_threads(count)

    def get(self, prepared: Prepared) -> Backbone | None:
        """Return the backbone of an experiment, or None where its method needs none.

        Raises:
            ModelError: If the model lacks what the method requires.
        """
        model = prepared.experiment.config.model
        if prepared.provider is None or model is None:
            return None
        weights = prepared.identity.weights_sha256 if prepared.identity else ""
        key = (prepared.experiment.track, model.name, model.precision, model.device, weights)
        if key != self._key:
            self._loaded = None  # let go of the last one before the next is built
            free_device_memory()
            begun = time.perf_counter()
            options = ModelOptions(model.precision, model.device)
            resolved = MODELS.resolve(model.name, prepared.experiment.track)
            self._loaded = prepared.provider.load(resolved.argument, options, self.services)
            self.load_seconds = time.perf_counter() - begun
            self._key = key
        if prepared.identity is not None and self._loaded is not None:
            require_same(self._loaded, prepared.identity)
        requires = prepared.method.requires
        if requires is not None and not isinstance(self._loaded, requires):
            raise ModelError(
                f"the method {prepared.experiment.method_name} needs a model that is a "
                f"{requires.__name__}; '{model.name}' is not",
                hint="list methods with 'clipadapt ls methods'",
            )
        return self._loaded


def run(
    experiments: Sequence[Experiment], out: Path, progress: Progress | None = None
) -> list[RunRecord]:
    """Run experiments one after another; what is complete is read, not run again.

    Args:
        experiments: Valid experiments; every one is prepared before the first begins.
        out: Folder of the records.
        progress: Where bars are shown.

    Returns:
        One record per experiment, seed and target, in order; failed ones too.

    Raises:
        DivergedError: If a seed's scores are not finite, after all others have run.
        ClipAdaptError: For a user's mistake; records written until then stay.
    """
    return Session(out, progress).run(experiments)


class Session:
    """Runs experiments that share an output folder and, one after another, loaded models."""

    def __init__(
        self,
        out: Path,
        progress: Progress | None = None,
        opened: OpenDatasets | None = None,
        threads: int | None = None,
    ) -> None:
        self.out = out
        self.progress: Progress = progress or Silent()
        self.opened = opened or OpenDatasets()
        self.threads = threads
        self.backbones = Backbones(Services(FeatureCache(enabled=False), self.progress))
        self.planned: list[Job] = []

    def prepare(self, experiment: Experiment) -> Prepared:
        """Prepare an experiment; see :func:`prepare`."""
        return prepare(experiment, self.out, self.progress, self.opened, self.threads)

    def jobs(self, prepared: Sequence[Prepared]) -> list[list[Job]]:
        """Return the jobs of each experiment, and find every draw that cannot be made before the first fit.

        Raises:
            ClipAdaptError: If a draw cannot be made, or two data sets have one name.
        """
        for item in prepared:
            self.note_damage(item)
        jobs = [[Job.plan(p, seed) for seed in p.experiment.config.seeds] for p in prepared]
        for job in (job for of_one in jobs for job in of_one if job.is_open()):
            draw = draws.draw_task(
                job.prepared.targets[0], job.prepared.experiment, job.prepared.manifest, job.seed
            )
            job.prepared.experiment.method.check(draw.task)
        refuse_namesakes(prepared)
        return jobs

    def note_damage(self, prepared: Prepared) -> None:
        """Look at every file of the runs that are there, and say which are damaged: those are not complete."""
        for seed in prepared.experiment.config.seeds:
            for run_id in dict.fromkeys(prepared.run_id(seed, t) for t in prepared.targets):
                if damage := prepared.store.damage(run_id):
                    self.progress.note(
                        f"warning: {damage}; the run is repeated, and its damaged folder is kept beside it as "
                        f".damaged-{run_id}"
                    )

    def run(self, experiments: Sequence[Experiment]) -> list[RunRecord]:
        """Run experiments; see :func:`run`."""
        jobs = self.jobs([self.prepare(e) for e in experiments])
        for of_one in jobs:
            self.note_skipped(of_one)
        flat = self.planned = [job for of_one in jobs for job in of_one]
        diverged: list[DivergedError] = []
        with (
            self.progress.track("runs", len(flat), "runs") as bar,
            Claims(self.out) as claims,
        ):
            leftovers.clear(self.out, claims, {job.key for job in flat if not job.is_open()})
            for done in work_through(flat, claims, Local(self.execute), self.progress):
                if isinstance(done.error, DivergedError):
                    diverged.append(done.error)
                elif done.error is not None:
                    raise done.error
                bar.advance(1)
        if diverged:
            raise diverged[0]
        return self.records()

    def records(self) -> list[RunRecord]:
        """Return the records there are of what :meth:`run` was given, in order; failed ones too."""
        return [record for job in self.planned for record in job.records()]

    def execute(self, job: Job) -> None:
        """Do one job; see :func:`execute`."""
        execute(job.prepared, job.seed, self.backbones)

    def note_skipped(self, jobs: Sequence[Job]) -> None:
        """Say how many jobs of one experiment are complete already."""
        skipped = sum(not job.is_open() for job in jobs)
        if skipped:
            item = jobs[0].prepared
            self.progress.note(
                f"{item.experiment.method_name} on {item.targets[0].dataset.name}: "
                f"{skipped} of {len(jobs)} runs were complete already, skipped"
            )


def execute(prepared: Prepared, seed: int, backbones: Backbones) -> None:
    """Fit one seed, evaluate it on every target that lacks a record, and write the records.

    A failure that is no user's mistake is recorded as a failed run, then raised again.

    Raises:
        DivergedError: If scores are not finite.
    """
    backbones.use(prepared)
    run = _Run(prepared, seed, backbones.services.progress)
    env.reset_peak_memory(prepared.device)
    try:
        run.go(backbones)
    except DivergedError as err:
        run.flags.append("nan")
        run.record_failure(err.problem)
        raise
    except ClipAdaptError:
        raise
    except Exception as err:
        refused = refusal(err)
        if refused is not None:
            raise refused from err  # no fault of the run: it counts as no attempt
        run.record_failure(f"{type(err).__name__}: {err}")
        raise
    finally:
        free_device_memory()


def record_mistake(job: Job, err: ClipAdaptError) -> None:
    """Record a user's mistake that came to light in a fit; such a run is tried whenever it is asked for.

    Args:
        job: The fit.
        err: The mistake.
    """
    run = _Run(job.prepared, job.seed)
    run.flags.append(USER_ERROR)
    run.record_failure(err.problem)


def record_defect(job: Job, err: Exception) -> None:
    """Record a fit that went down without a word, with the worker that did it.

    Args:
        job: The fit.
        err: What is known of it.
    """
    _Run(job.prepared, job.seed).record_failure(str(err))


@dataclass(frozen=True, slots=True)
class _Fit:
    """A classifier and what it cost."""

    classifier: Classifier
    temperature: float | None
    fit_seconds: float
    encode_seconds: float
    load_seconds: float


class _Run:
    """One fit and its evaluations."""

    def __init__(self, prepared: Prepared, seed: int, progress: Progress | None = None) -> None:
        self.prepared = prepared
        self.seed = seed
        self.progress = progress or Silent()
        self.started = datetime.now(UTC)
        self.target = prepared.targets[0]
        self.sizes = {"n_train": 0, "n_val": 0, "n_test": 0}
        self.manifest: sampling.Manifest | None = None
        self.flags: list[str] = []

    def go(self, backbones: Backbones) -> None:
        prepared = self.prepared
        draw = draws.draw_task(
            prepared.targets[0], prepared.experiment, prepared.manifest, self.seed
        )
        self.manifest = draw.manifest
        self.flags += draw.flags
        told = set(draw.flags) & set(self.target.dataset.flags)  # when the data set was opened
        if draw.untrained_classes and not told and self.seed == prepared.experiment.config.seeds[0]:
            self.progress.note(
                f"warning: {prepared.experiment.method_name} on {self.target.dataset.name}: "
                f"{len(draw.untrained_classes)} of {len(draw.task.classnames)} classes have no training example: "
                f"{', '.join(draw.untrained_classes[:5])}; "
                "nothing is learned of them, and no probability is reliable"
            )
        self.sizes["n_train"] = len(draw.task.train) if draw.task.train else 0
        self.sizes["n_val"] = len(draw.task.val) if draw.task.val else 0
        if self.sizes["n_val"] and refits_on_val(prepared.method, prepared.experiment):
            self.sizes["n_train"] += self.sizes["n_val"]
            self.flags.append("refit_on_val")
        backbone = backbones.get(prepared)
        services = backbones.services
        meter = services.meter
        work = prepared.store.root / WORK / prepared.fit_id(self.seed)
        leftovers.make_work(work)
        ctx = RunContext(self.seed, work, services, prepared.threads)
        method = prepared.method(prepared.experiment.method)
        meter.reset()
        services.flags.clear()
        begun = time.perf_counter()
        classifier = method.fit(backbone, draw.task, ctx)
        fit_seconds = max(time.perf_counter() - begun - meter.spent_seconds, 0.0)
        temperature = self._temperature(classifier, draw.task.val)
        fitted = _Fit(
            classifier, temperature, fit_seconds, meter.used_seconds, backbones.load_seconds
        )
        of_fit = dict(services.flags)
        for target in prepared.missing(self.seed):
            self.target = target
            services.flags = dict(of_fit)
            self._evaluate(fitted, backbone, ctx, target)
        shutil.rmtree(work, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process may still use it
            (prepared.store.root / WORK).rmdir()

    def _evaluate(
        self, fitted: _Fit, backbone: Backbone | None, ctx: RunContext, target: Target
    ) -> None:
        """Judge a classifier on one target and write the record."""
        prepared, meter = self.prepared, ctx.services.meter
        home = target is prepared.targets[0]
        test = target.examples(prepared.experiment.config.data.limit)
        self.sizes["n_test"] = len(test)
        classifier, columns = for_classes(fitted.classifier, prepared.targets[0], target)
        meter.reset()
        begun = time.perf_counter()
        scores = self._scores(classifier, test)
        scores = scores if columns is None else np.ascontiguousarray(scores[:, columns])
        predict_seconds = max(time.perf_counter() - begun - meter.spent_seconds, 0.0)
        encode_seconds = fitted.encode_seconds + meter.used_seconds
        peak = env.peak_memory(prepared.device)
        judged = metrics.compute_metrics(
            scores, test.labels, score_kind=classifier.score_kind, temperature=fitted.temperature
        )
        # Only now, when all that the record states of the classifier is known: its start costs it nothing.
        start = None
        if isinstance(classifier, ZeroShotStart):
            start = _start_accuracy(classifier, test, columns)
            judged["zero_shot_accuracy"] = start
        warnings = _warnings(scores, test.labels, judged["accuracy"].value, start)
        if tracks()[self.prepared.experiment.track].reads_classnames:
            warnings |= token_warnings(backbone, target.classnames)
        for flag, why in warnings.items():
            ctx.progress.note(
                f"warning: {prepared.experiment.method_name} on {target.dataset.name}, "
                f"seed {self.seed}: {flag}: {why}"
            )
        with scratch_folder() as scratch:
            folder = scratch / "classifier"
            fitted.classifier.save(folder)
            saved_bytes = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            record = self._record(
                status="ok",
                selection=_selection(fitted.classifier),
                calibration=schema.Calibration(temperature=fitted.temperature),
                n_trainable_params=classifier.n_trainable_params,
                n_total_params=_total_params(classifier, backbone),
                metrics=judged,
                per_class={"classnames": list(target.classnames)},
                cost=schema.Cost(
                    fit_seconds=fitted.fit_seconds,
                    encode_seconds=encode_seconds,
                    predict_seconds=predict_seconds,
                    cold_seconds=fitted.load_seconds
                    + encode_seconds
                    + fitted.fit_seconds
                    + predict_seconds,
                    peak_memory_bytes=peak,
                    saved_bytes=saved_bytes,
                ),
                flags=(*warnings, *ctx.services.flags),
                device=backbone.device if backbone is not None else "cpu",
            )
            prepared.store.save(
                record,
                predictions.Predictions(test.inputs.ids, test.labels, scores),
                history=ctx.history or None,
                classifier_dir=folder if home else None,
                manifest=self.manifest,
            )

    def _scores(self, classifier: Classifier, split: Split[Any]) -> NDArray[np.float32]:
        """Return checked scores of a split's inputs."""
        scores = classifier.predict_scores(split.inputs)
        _check_scores("predict_scores", scores, (len(split), len(classifier.classnames)))
        if not np.isfinite(scores).all():
            raise DivergedError(
                f"seed {self.seed}: the scores are not finite; the run diverged",
                hint="lower the learning rate, or add --set model.precision=fp32",
            )
        return scores

    def _temperature(self, classifier: Classifier, val: Split[Any] | None) -> float | None:
        """Return the classifier's own temperature, or fit one on val; what val does not determine is flagged."""
        temperature: float | None
        if isinstance(classifier, SelfCalibrated):
            temperature = classifier.temperature
            if val is None or not len(val):
                return temperature
        elif val is None or not len(val):
            return None
        elif self.prepared.experiment.config.evaluation.calibrate:
            temperature = calibration.fit_temperature(self._scores(classifier, val), val.labels)
        else:
            return None
        if temperature is None:
            low, high = calibration.TEMPERATURES
            self.flags.append("temperature_at_bound")
            self.progress.note(
                f"warning: {self.prepared.experiment.method_name}, seed {self.seed}: temperature_at_bound: the softmax "
                f"temperature that suits val best is at the end of [{low:g}, {high:g}]; it is not applied"
            )
        return temperature

    def record_failure(self, error: str) -> None:
        """Write a failed record for every target that has none yet."""
        for target in self.prepared.missing(self.seed):
            self.target = target
            self.prepared.store.save_failure(self._record(status="failed", error=error))

    def _leaks(self, target: Target) -> leakage.LeakageFacts | None:
        """Compare what was judged with what could be learnt from: after the fit, and its memory measured."""
        config, home = self.prepared.experiment.config, self.prepared.targets[0]
        if config.evaluation.leakage == "off":
            return None
        facts = leakage.examine(home.dataset, home.split, target.dataset, target.split)
        if target.classnames != home.classnames:
            both = leakage.class_overlap(home.classnames, target.classnames)
            facts = facts.model_copy(update={"shared_classes": len(both)})
        for overlap in facts.overlaps:
            if overlap.found and self.seed == config.seeds[0]:  # said once is enough
                self.progress.note(
                    f"warning: {target.dataset.name}: {overlap.exact} examples of {overlap.evaluated} have a copy in "
                    f"{overlap.trained}, {overlap.near or 0} more a near one: "
                    + " ~ ".join(overlap.examples[0])
                )
        return facts

    def _record(self, **values: Any) -> RunRecord:
        prepared, experiment, target = self.prepared, self.prepared.experiment, self.target
        config, home = experiment.config, self.prepared.targets[0]
        device = values.pop("device", prepared.device)
        flags = [*home.flags, *target.flags, *self.flags, *values.pop("flags", ())]
        # By content: the same data may go by another spelling of their name, or be a copy.
        same = target.dataset.fingerprint == home.dataset.fingerprint
        if same and target.split in leakage.learnable(home.dataset, home.split):
            flags.append("evaluated_on_" + target.split)
        leaks = self._leaks(target) if values["status"] == "ok" else None
        if leaks is not None:
            flags += leaks.flags(len(target.dataset.split(target.split)))
            # The new classes of base-to-new must be new; a domain shift has the same classes on purpose.
            if leaks.shared_classes and config.evaluation.protocol.startswith("base"):
                flags.append("class_overlap")
        return RunRecord(
            run_id=prepared.run_id(self.seed, target),
            fit_id=prepared.fit_id(self.seed),
            config=experiment.resolved(),
            seed=self.seed,
            data=schema.DataFacts(
                name=home.dataset.name,
                sha256=home.dataset.fingerprint,
                n_classes=len(home.classnames),
                shots=self.manifest.shots if self.manifest else config.data.shots,
                manifest_sha256=self.manifest.sha256 if self.manifest else None,
                skipped=target.dataset.skipped,
                n_found=getattr(target.dataset, "found", None),
                n_read=getattr(target.dataset, "n_read", None),
                left_out={r: n for r, n in getattr(target.dataset, "left_out", {}).items() if n},
                source=home.dataset.source,
                revision=getattr(home.dataset, "revision", None),
                licence=home.dataset.licence,
                citation=home.dataset.citation,
                **self.sizes,
            ),
            evaluation=schema.EvaluationFacts(
                dataset=target.dataset.name,
                split=target.split,
                templates=target.templates,
                classnames_sha256=classnames_sha256(target.classnames),
                protocol=config.evaluation.protocol,
                classes=target.classes,
                sha256=target.dataset.fingerprint,
            ),
            model=None
            if prepared.identity is None
            else schema.ModelFacts(
                name=prepared.identity.name,
                weights_sha256=prepared.identity.weights_sha256,
                dtype=prepared.identity.dtype,
                revision=prepared.identity.revision,
                licence=prepared.identity.licence,
                citation=prepared.identity.citation,
            ),
            method=schema.MethodFacts(
                name=experiment.method_name,
                version=prepared.method.version,
                recipe=experiment.recipe,
                deviations=experiment.deviations,
            ),
            flags=registered(flags),
            leakage=leaks,
            environment=env.environment(device=device, threads=prepared.threads),
            started_at=self.started,
            metrics_version=metrics.METRICS_VERSION,
            **values,
        )


def _check_scores(source: str, scores: NDArray[Any], shape: tuple[int, int]) -> None:
    if scores.shape != shape or scores.dtype != np.float32:
        raise TypeError(f"{source} gave {scores.dtype} {scores.shape}, expected float32 {shape}")


def _start_accuracy(
    classifier: ZeroShotStart, test: Split[Any], columns: list[int] | None
) -> metrics.MetricValue:
    """Judge the zero-shot classifier that the fit began from, on the same examples."""
    scores = classifier.zero_shot_scores(test.inputs)
    _check_scores("zero_shot_scores", scores, (len(test), len(classifier.classnames)))
    scores = scores if columns is None else scores[:, columns]
    return metrics.measure("accuracy", scores, test.labels)


def _warnings(
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    accuracy: float,
    start: metrics.MetricValue | None,
) -> dict[str, str]:
    """Return the flags of a fit that went wrong in silence, each with its reason."""
    n_classes = scores.shape[1]
    found = {}
    taken = np.unique(scores.argmax(axis=1))
    if len(taken) == 1 and len(np.unique(labels)) > 1:
        found["collapse"] = "every example is taken for the same class"
    elif n_classes > 1 and accuracy <= 1 / n_classes:
        found["collapse"] = f"accuracy {accuracy:.1%}, at or below chance ({1 / n_classes:.1%})"
    if start is not None and accuracy < start.value:
        found["below_zero_shot"] = f"accuracy {accuracy:.1%}, its zero-shot start {start.value:.1%}"
    return found


def _total_params(classifier: Classifier, backbone: Backbone | None) -> int | None:
    """Return the classifier's own count where it has one, else backbone and learnt parameters."""
    own: int | None = getattr(classifier, "n_total_params", None)
    if own is not None or backbone is None:
        return classifier.n_trainable_params if own is None else own
    frozen: int | None = getattr(backbone, "n_params", None)
    return None if frozen is None else frozen + classifier.n_trainable_params


def _selection(classifier: Classifier) -> schema.Selection | None:
    chosen = classifier.selection if isinstance(classifier, Selected) else None
    return None if chosen is None else schema.Selection(**chosen)
