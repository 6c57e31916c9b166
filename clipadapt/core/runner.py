"""The runner: from an experiment to records. The only code that sees test labels.

``prepare`` finds every user's mistake it can before any work is done; ``execute`` fits, evaluates and writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapt.core import _imagenet, metrics, records, sampling
from clipadapt.core._files import check_writable
from clipadapt.core.context import RunContext, Services
from clipadapt.core.errors import ClipAdaptError, ConfigError, DataError, DivergedError, ModelError
from clipadapt.core.progress import Silent
from clipadapt.core.protocols import (
    DatasetOptions,
    ModelOptions,
    Selected,
    SelfCalibrated,
    Split,
    Task,
)
from clipadapt.core.records import RunRecord, RunStore
from clipadapt.core.registry import DATASETS, METHODS, MODELS
from clipadapt.core.store import FeatureStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clipadapt.core.config import Experiment
    from clipadapt.core.protocols import (
        Backbone,
        Classifier,
        Dataset,
        Method,
        ModelIdentity,
        ModelProvider,
        Progress,
    )

TEMPLATE_SETS: Mapping[str, tuple[str, ...]] = {
    "7": _imagenet.TEMPLATES_7,
    "80": _imagenet.TEMPLATES_80,
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """An experiment whose data are open and whose model is identified; nothing heavy is loaded.

    Attributes:
        experiment: The experiment.
        method: The method's class.
        dataset: The open data set.
        classnames: Class names that go into prompts.
        templates: Templates that go into prompts.
        provider: Where the model comes from, or None where the method needs none.
        identity: What tells the model apart, or None.
        store: Where records are written.
        manifest: A draw given by the user, or None.
        flags: Facts that every record of this experiment carries.
    """

    experiment: Experiment
    method: type[Method]
    dataset: Dataset[Any]
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    provider: ModelProvider | None
    identity: ModelIdentity | None
    store: RunStore
    manifest: sampling.Manifest | None
    flags: tuple[str, ...]

    def run_id(self, seed: int) -> str:
        """Return the id of the run of one seed; equal exactly where the result must be equal."""
        return records.make_run_id(fit=self._fit_key(seed), evaluation=self._evaluation_key())

    def fit_id(self, seed: int) -> str:
        """Return the id of the fit, shared by all evaluations of it."""
        return records.make_fit_id(fit=self._fit_key(seed))

    def _fit_key(self, seed: int) -> dict[str, Any]:
        config = self.experiment.config
        data = config.data
        return {
            "method": {
                "name": self.experiment.method_name,
                "version": self.method.version,
                **self.experiment.method.model_dump(mode="json"),
            },
            "data": {
                "sha256": self.dataset.fingerprint,
                "shots": data.shots,
                "allow_fewer": data.allow_fewer,
                "manifest": self.manifest.sha256 if self.manifest else None,
                "classnames": classnames_sha256(self.classnames),
                "templates": list(self.templates),
            },
            "model": None if self.identity is None else dataclasses.asdict(self.identity),
            "seed": seed,
            "threads": config.threads,
        }

    def _evaluation_key(self) -> dict[str, Any]:
        config = self.experiment.config
        return {
            "dataset": self.dataset.name,
            "sha256": self.dataset.fingerprint,
            "split": config.evaluation.split,
            "protocol": config.evaluation.protocol,
            "limit": config.data.limit,
            "calibrate": config.evaluation.calibrate,
        }

    def pending(self) -> list[int]:
        """Return the seeds that have no complete record yet."""
        seeds = self.experiment.config.seeds
        return [s for s in seeds if not self.store.is_complete(self.run_id(s))]


class Backbones:
    """Loads a model once for consecutive experiments that share it."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._key: tuple[Any, ...] | None = None
        self._loaded: Backbone | None = None
        self.load_seconds = 0.0

    def get(self, prepared: Prepared) -> Backbone | None:
        """Return the backbone of an experiment, or None where its method needs none.

        Raises:
            ModelError: If the model lacks what the method requires.
        """
        model = prepared.experiment.config.model
        if prepared.provider is None or model is None:
            return None
        key = (prepared.experiment.track, model.name, model.precision, model.device)
        if key != self._key:
            self._loaded = None  # let go of the last one before the next is built
            begun = time.perf_counter()
            options = ModelOptions(model.precision, model.device)
            resolved = MODELS.resolve(model.name, prepared.experiment.track)
            self._loaded = prepared.provider.load(resolved.argument, options, self.services)
            self.load_seconds = time.perf_counter() - begun
            self._key = key
        requires = prepared.method.requires
        if requires is not None and not isinstance(self._loaded, requires):
            raise ModelError(
                f"the method {prepared.experiment.method_name} needs a model that is a "
                f"{requires.__name__}; '{model.name}' is not",
                hint="list methods with 'clipadapt ls methods'",
            )
        return self._loaded


def prepare(experiment: Experiment, out: Path, progress: Progress | None = None) -> Prepared:
    """Open the data, identify the model and check everything that can be checked before work.

    Raises:
        ClipAdaptError: For any mistake of the user's.
    """
    progress = progress or Silent()
    config = experiment.config
    check_writable(out)
    method = METHODS.get(experiment.method_name)
    provider, identity = None, None
    if method.requires is not None:
        if config.model is None:
            raise ConfigError(
                f"the method {experiment.method_name} needs a model and none is named",
                hint="for example --set model.name=stitched",
            )
        resolved_model = MODELS.resolve(config.model.name, experiment.track)
        provider = resolved_model.provider
        options = ModelOptions(config.model.precision, config.model.device)
        identity = provider.identify(resolved_model.argument, options)
    resolved = DATASETS.resolve(config.data.name, experiment.track)
    dataset = resolved.provider(resolved.argument, DatasetOptions(config.data.on_bad_image))
    for note in getattr(dataset, "notes", ()):
        progress.note(f"warning: {note}")
    if config.evaluation.split not in dataset.splits:
        raise DataError(
            f"{dataset.name} has no split '{config.evaluation.split}'; it has {', '.join(dataset.splits)}",
            hint=f"add --split {dataset.splits[-1]}"
            if experiment.method_name.endswith("zero_shot")
            else f"add --set evaluation.split={dataset.splits[-1]}",
        )
    flags = list(dataset.flags)
    classnames = read_classnames(config.data.classnames, dataset)
    pairs = duplicate_names(classnames)
    if pairs and experiment.track == "clip":
        shown = "; ".join(f"'{a}' and '{b}'" for a, b in pairs[:3])
        progress.note(
            f"warning: {dataset.name} has class names that are the same text: {shown}; "
            "no prompt can tell these classes apart"
        )
        flags.append("duplicate_classnames")
    manifest = None
    if config.data.manifest is not None:
        manifest = sampling.Manifest.read(Path(config.data.manifest))
        if manifest.dataset_sha256 != dataset.fingerprint:
            progress.note(
                f"warning: the manifest was drawn from another state of '{manifest.dataset}'; "
                "its ids are taken from the data as they are now"
            )
    return Prepared(
        experiment=experiment,
        method=method,
        dataset=dataset,
        classnames=classnames,
        templates=read_templates(config.data.templates, dataset),
        provider=provider,
        identity=identity,
        store=RunStore(out),
        manifest=manifest,
        flags=tuple(flags),
    )


def run(
    experiments: Sequence[Experiment], out: Path, progress: Progress | None = None
) -> list[RunRecord]:
    """Run experiments one after another; what is complete is read, not run again.

    Args:
        experiments: Valid experiments; every one is prepared before the first begins.
        out: Folder of the records.
        progress: Where bars are shown.

    Returns:
        One record per experiment and seed, in order.

    Raises:
        ClipAdaptError: For a user's mistake; records written until then stay.
    """
    progress = progress or Silent()
    prepared = [prepare(e, out, progress) for e in experiments]
    stores = {"on": FeatureStore(), "off": FeatureStore(enabled=False)}
    services = Services(stores["off"], progress)
    backbones = Backbones(services)
    done: list[RunRecord] = []
    for item in prepared:
        config = item.experiment.config
        services.store = stores[config.store]
        services.workers = config.workers
        services.threads = config.threads
        pending = item.pending()
        for seed in config.seeds:
            if seed in pending:
                execute(item, seed, backbones)
            record = item.store.find(item.run_id(seed))
            assert record is not None
            done.append(record)
        skipped = len(config.seeds) - len(pending)
        if skipped:
            progress.note(
                f"{item.experiment.method_name} on {item.dataset.name}: "
                f"{skipped} of {len(config.seeds)} runs were complete already, skipped"
            )
    return done


def execute(prepared: Prepared, seed: int, backbones: Backbones) -> None:
    """Fit and evaluate one seed and write its record.

    A failure that is no user's mistake is recorded as a failed run, then raised again.

    Raises:
        DivergedError: If scores are not finite.
    """
    started = datetime.now(UTC)
    run = _Run(prepared, seed, started)
    records.reset_peak_memory()
    try:
        run.go(backbones)
    except DivergedError as err:
        run.flags.append("nan")
        prepared.store.save_failure(run.failure(err.problem))
        raise
    except ClipAdaptError:
        raise
    except Exception as err:
        prepared.store.save_failure(run.failure(f"{type(err).__name__}: {err}"))
        raise


class _Run:
    """One fit and its evaluation."""

    def __init__(self, prepared: Prepared, seed: int, started: datetime) -> None:
        self.prepared = prepared
        self.seed = seed
        self.started = started
        self.sizes = {"n_train": 0, "n_val": 0, "n_test": 0}
        self.manifest: sampling.Manifest | None = None
        self.flags = list(prepared.flags)

    def go(self, backbones: Backbones) -> None:
        prepared, config = self.prepared, self.prepared.experiment.config
        task = self._task()
        backbone = backbones.get(prepared)
        services = backbones.services
        meter = services.meter
        with tempfile.TemporaryDirectory(prefix="clipadapt-") as work:
            ctx = RunContext(self.seed, Path(work), services, config.threads)
            method = prepared.method(prepared.experiment.method)
            meter.reset()
            begun = time.perf_counter()
            classifier = method.fit(backbone, task, ctx)
            fit_seconds = time.perf_counter() - begun - meter.spent_seconds
            encode_seconds = meter.used_seconds
            temperature = self._temperature(classifier, task.val)

            test = self._test_split()
            meter.reset()
            begun = time.perf_counter()
            scores = self._scores(classifier, test)
            predict_seconds = time.perf_counter() - begun - meter.spent_seconds
            encode_seconds += meter.used_seconds

            folder = Path(work) / "classifier"
            classifier.save(folder)
            saved_bytes = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            cost = records.Cost(
                fit_seconds=max(fit_seconds, 0.0),
                encode_seconds=encode_seconds,
                predict_seconds=max(predict_seconds, 0.0),
                cold_seconds=backbones.load_seconds
                + encode_seconds
                + max(fit_seconds, 0.0)
                + max(predict_seconds, 0.0),
                peak_memory_bytes=records.peak_memory(),
                saved_bytes=saved_bytes,
            )
            record = self._record(
                status="ok",
                selection=_selection(classifier),
                calibration=records.Calibration(temperature=temperature),
                n_trainable_params=classifier.n_trainable_params,
                metrics=metrics.compute_metrics(
                    scores, test.labels, score_kind=classifier.score_kind, temperature=temperature
                ),
                per_class=_per_class(scores, test.labels, prepared.classnames),
                cost=cost,
                device=backbone.device if backbone is not None else "cpu",
            )
            prepared.store.save(
                record,
                records.Predictions(test.inputs.ids, test.labels, scores),
                history=ctx.history or None,
                classifier_dir=folder,
                manifest=self.manifest,
            )

    def _task(self) -> Task[Any]:
        """Draw the training and validation examples; the test split is not touched."""
        prepared, data = self.prepared, self.prepared.experiment.config.data
        dataset = prepared.dataset
        train = dataset.split("train") if "train" in dataset.splits else None
        val = dataset.split("val") if "val" in dataset.splits else None
        if prepared.experiment.config.evaluation.split == "val":
            val = None  # what is judged is never learnt from
        if prepared.experiment.config.evaluation.split == "train":
            train = None
        if prepared.manifest is not None:
            self.manifest = prepared.manifest
            train = _chosen(train, prepared.manifest, "train", dataset.name)
            val = _chosen(val, prepared.manifest, "val", dataset.name)
        elif data.shots is not None:
            train, val = self._draw(train, val, data.shots, allow_fewer=data.allow_fewer)
        task = Task(
            prepared.classnames,
            prepared.templates,
            _renamed(train, prepared.classnames),
            _renamed(val, prepared.classnames),
        )
        self.sizes["n_train"] = len(task.train) if task.train else 0
        self.sizes["n_val"] = len(task.val) if task.val else 0
        return task

    def _draw(
        self, train: Split[Any] | None, val: Split[Any] | None, shots: int, *, allow_fewer: bool
    ) -> tuple[Split[Any], Split[Any] | None]:
        dataset = self.prepared.dataset
        if train is None:
            raise DataError(
                f"{dataset.name} has no train split to draw {shots} shots from",
                hint="leave data.shots away, or take a data set with a train split",
            )
        names = self.prepared.classnames
        seed = self.seed
        chosen = sampling.draw(
            train.inputs.ids,
            train.labels,
            shots,
            seed,
            role="train",
            allow_fewer=allow_fewer,
            classnames=names,
        )
        fewer: dict[sampling.Role, dict[str, int]] = {
            "train": sampling.short_classes(train.labels, shots, names)
        }
        drawn = train.take(chosen)
        wanted = sampling.val_shots(shots)
        drawn_val = None
        if val is not None:
            chosen = sampling.draw(
                val.inputs.ids,
                val.labels,
                wanted,
                seed,
                role="val",
                allow_fewer=allow_fewer,
                classnames=names,
            )
            fewer["val"] = sampling.short_classes(val.labels, wanted, names)
            drawn_val = val.take(chosen)
        if any(fewer.values()):
            self.flags.append("allow_fewer")
        self.manifest = sampling.Manifest.create(
            dataset=dataset.name,
            dataset_sha256=dataset.fingerprint,
            seed=seed,
            shots=shots,
            train=drawn.inputs.ids,
            val=drawn_val.inputs.ids if drawn_val else (),
            fewer=fewer,
        )
        return drawn, drawn_val

    def _test_split(self) -> Split[Any]:
        prepared, config = self.prepared, self.prepared.experiment.config
        test = prepared.dataset.split(config.evaluation.split)
        limit = config.data.limit
        if limit is not None and limit < len(test):
            order = sorted(range(len(test)), key=lambda i: _digest(test.inputs.ids[i]))
            test = test.take(np.array(sorted(order[:limit]), dtype=np.int64))
        if not len(test):
            raise DataError(
                f"the split '{config.evaluation.split}' of {prepared.dataset.name} is empty"
            )
        self.sizes["n_test"] = len(test)
        return test

    def _scores(self, classifier: Classifier, split: Split[Any]) -> NDArray[np.float32]:
        """Return checked scores of a split's inputs."""
        scores = classifier.predict_scores(split.inputs)
        shape = (len(split), len(self.prepared.classnames))
        if scores.shape != shape or scores.dtype != np.float32:
            raise TypeError(
                f"predict_scores gave {scores.dtype} {scores.shape}, expected float32 {shape}"
            )
        if not np.isfinite(scores).all():
            raise DivergedError(
                f"seed {self.seed}: the scores are not finite; the run diverged",
                hint="lower the learning rate, or add --set model.precision=fp32",
            )
        return scores

    def _temperature(self, classifier: Classifier, val: Split[Any] | None) -> float | None:
        """Return the classifier's own temperature, or fit one on val."""
        if isinstance(classifier, SelfCalibrated):
            return classifier.temperature
        if val is None or not len(val) or not self.prepared.experiment.config.evaluation.calibrate:
            return None
        return metrics.fit_temperature(self._scores(classifier, val), val.labels)

    def failure(self, error: str) -> RunRecord:
        return self._record(status="failed", error=error)

    def _record(self, **values: Any) -> RunRecord:
        prepared, experiment = self.prepared, self.prepared.experiment
        config, dataset = experiment.config, self.prepared.dataset
        device = values.pop("device", None)
        return RunRecord(
            run_id=prepared.run_id(self.seed),
            fit_id=prepared.fit_id(self.seed),
            config=experiment.resolved(),
            seed=self.seed,
            data=records.DataFacts(
                name=dataset.name,
                sha256=dataset.fingerprint,
                n_classes=len(prepared.classnames),
                shots=config.data.shots,
                manifest_sha256=self.manifest.sha256 if self.manifest else None,
                skipped=dataset.skipped,
                **self.sizes,
            ),
            evaluation=records.EvaluationFacts(
                dataset=dataset.name,
                split=config.evaluation.split,
                templates=list(prepared.templates),
                classnames_sha256=classnames_sha256(prepared.classnames),
                protocol=config.evaluation.protocol,
            ),
            model=None
            if prepared.identity is None
            else records.ModelFacts(**dataclasses.asdict(prepared.identity)),
            method=records.MethodFacts(
                name=experiment.method_name,
                version=prepared.method.version,
                recipe=experiment.recipe,
                deviations=list(experiment.deviations),
            ),
            flags=list(dict.fromkeys(self.flags)),
            environment=records.environment(device=device, threads=config.threads),
            started_at=self.started,
            **values,
        )


def read_classnames(path: str | None, dataset: Dataset[Any]) -> tuple[str, ...]:
    """Return the class names of a file, one a line in class order, or the set's own.

    Raises:
        DataError: If the file cannot be read or does not hold one name per class.
    """
    if path is None:
        return tuple(dataset.classnames)
    names = _lines(path, "class names")
    want = dataset.classnames
    if len(names) != len(want):
        shown = ", ".join(want[:20]) + (" ..." if len(want) > 20 else "")
        raise DataError(
            f"the class-names file {path} has {len(names)} names; {dataset.name} has {len(want)} classes: {shown}",
            hint="write one name a line, in this order",
        )
    return tuple(names)


def read_templates(choice: str, dataset: Dataset[Any]) -> tuple[str, ...]:
    """Return the templates of ``single`` (the set's own), ``7``, ``80`` or a file, one a line.

    Raises:
        DataError: If the file cannot be read, is empty, or a template lacks its ``{}``.
    """
    if choice == "single":
        return tuple(dataset.templates)
    if choice in TEMPLATE_SETS:
        return TEMPLATE_SETS[choice]
    if not Path(choice).expanduser().exists():
        raise DataError(
            f"no templates '{choice}'; accepted: single, {', '.join(TEMPLATE_SETS)}, or a file",
            hint="write a file with one template a line, such as 'a photo of a {}.'",
        )
    lines = _lines(choice, "templates")
    bad = [line for line in lines if line.count("{}") != 1]
    if bad:
        raise DataError(
            f"the template '{bad[0]}' in {choice} needs exactly one '{{}}' for the class name",
            hint="for example 'a photo of a {}.'",
        )
    if not lines:
        raise DataError(f"the templates file {choice} is empty", hint="write one template a line")
    return tuple(lines)


def duplicate_names(classnames: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of class names that are one text after normalisation."""
    seen: dict[str, str] = {}
    pairs = []
    for name in classnames:
        key = " ".join(name.replace("_", " ").casefold().split())
        if key in seen:
            pairs.append((seen[key], name))
        seen.setdefault(key, name)
    return pairs


def classnames_sha256(classnames: Sequence[str]) -> str:
    """Return the hash that stands for the class names in their order."""
    return hashlib.sha256("\0".join(classnames).encode()).hexdigest()


def _lines(path: str, what: str) -> list[str]:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as err:
        raise DataError(
            f"cannot read the {what} file '{path}': {err.strerror}", hint="name a UTF-8 text file"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"the {what} file '{path}' is not UTF-8 text") from None
    return [line.strip() for line in text.split("\n") if line.strip()]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _renamed(split: Split[Any] | None, classnames: tuple[str, ...]) -> Split[Any] | None:
    return None if split is None else Split(split.inputs, split.labels, classnames)


def _chosen(
    split: Split[Any] | None, manifest: sampling.Manifest, role: sampling.Role, dataset: str
) -> Split[Any] | None:
    if not getattr(manifest, role):
        return None
    if split is None:
        raise DataError(f"the manifest draws from the split '{role}', which {dataset} lacks")
    return split.take(sampling.apply(manifest, split.inputs.ids, role=role))


def _selection(classifier: Classifier) -> records.Selection | None:
    chosen = classifier.selection if isinstance(classifier, Selected) else None
    return None if chosen is None else records.Selection(**chosen)


def _per_class(
    scores: NDArray[Any], labels: NDArray[Any], classnames: tuple[str, ...]
) -> dict[str, Any]:
    matrix = metrics.confusion_matrix(scores, labels)
    return {"classnames": list(classnames), "confusion": matrix.tolist()}
