"""Trackers: runs logged to another program, such as TensorBoard.

One file per tracker: its name is what ``--tracker`` takes, and it exports a :class:`Tracker` class as ``TRACKER``. A
tracker changes no result and is not part of a run's identity. Runs are logged from their records when they are
complete, each one once per output folder; a tracker that fails is reported once and not used any more.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from clipadapt.core.api.errors import ClipAdaptError, ConfigError, RecordError, unknown
from clipadapt.core.experiments.dotted import flatten
from clipadapt.core.files.atomic import write_text
from clipadapt.core.records.history import run_folder
from clipadapt.core.records.reading import read_file
from clipadapt.core.records.run_store import HISTORY, RunStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from clipadapt.core.api.progress import Progress
    from clipadapt.core.records.schema import RunRecord

LEDGER: Final = ".trackers"
"""Folder in an output folder that remembers which runs were logged: ``<tracker>/<run id>-<attempt>``."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker logs of one run.

    Attributes:
        record: The record.
        title: Name for people: method, recipe, dataset, shots and seed.
        group: The same without the seed.
        settings: Settings and facts by dotted key: numbers, text, booleans or None.
        steps: What the method logged, one mapping of numbers per step, in order.
        metrics: Final metrics; ``NAME_low`` and ``NAME_high`` are the bounds of the 95 % interval.
        flags: Flags of the run.
    """

    record: RunRecord
    title: str
    group: str
    settings: dict[str, Any]
    steps: tuple[dict[str, float], ...]
    metrics: dict[str, float]
    flags: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether the run failed."""
        return self.record.status != "ok"


class Tracker(Protocol):
    """Logs runs to another program. ``__init__`` is called before the first fit, with the output folder.

    Attributes:
        package: What is imported; without it there is a message with the ``pip`` command.
        where: Where the results are, for the user.
    """

    package: ClassVar[str]
    where: str

    def __init__(self, out: Path, /) -> None: ...

    def log_run(self, run: TrackedRun, /) -> None:
        """Log a complete or failed run."""
        ...

    def log_page(self, page: Path, /) -> None:
        """Log the report page, where the tracker has artifacts."""
        ...


def names() -> list[str]:
    """Return the names of all trackers; none is imported."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def open_tracker(name: str, out: Path) -> Tracker:
    """Return a tracker, ready to log.

    Raises:
        ConfigError: If there is no such tracker, its package is not installed, or it cannot work as it is set up.
    """
    known = names()
    if name not in known:
        raise unknown("tracker", name, known)
    tracker: type[Tracker] = importlib.import_module(f"{__name__}.{name}").TRACKER
    if importlib.util.find_spec(tracker.package) is None:
        raise ConfigError(
            f"--tracker {name} needs {tracker.package}, which is not installed",
            hint='pip install "clipadapt[trackers]"',
        )
    return tracker(out)


class Tracking:
    """The trackers of one command.

    Args:
        names: Names of trackers; the same one twice counts once.
        out: Output folder.
        progress: Where a failing tracker is reported.

    Raises:
        ConfigError: If one of them cannot be used.
    """

    def __init__(self, names: Sequence[str], out: Path, progress: Progress) -> None:
        self.out, self.progress = out, progress
        self.trackers = {name: open_tracker(name, out) for name in dict.fromkeys(names)}
        self.logged = dict.fromkeys(self.trackers, 0)
        self.before = dict.fromkeys(self.trackers, 0)

    def log(self, records: Sequence[RunRecord]) -> None:
        """Log runs that were not logged before; nothing is raised if a tracker fails."""
        for record in records:
            for name in list(self.trackers):
                self._log(name, record)

    def log_page(self, page: Path) -> None:
        """Log the report page to every tracker that logged a run."""
        for name, tracker in list(self.trackers.items()):
            if self.logged[name]:
                self._try(name, lambda tracker=tracker: tracker.log_page(page))  # type: ignore[misc]

    def summaries(self) -> list[str]:
        """Return one line per tracker: how many runs were logged, and where they are."""
        lines = []
        for name, tracker in self.trackers.items():
            n, before = self.logged[name], self.before[name]
            known = f", {before} were logged before" if before else ""
            lines.append(
                f"{name}: {n} {'run' if n == 1 else 'runs'} logged{known}; {tracker.where}"
            )
        return lines

    def _log(self, name: str, record: RunRecord) -> None:
        mark = self.out / LEDGER / name / f"{record.run_id}-{record.attempt}"
        if mark.exists():
            self.before[name] += 1
            return

        def work() -> None:
            self.trackers[name].log_run(describe(record, RunStore(self.out)))
            mark.parent.mkdir(parents=True, exist_ok=True)
            write_text(mark, "")

        if self._try(name, work):
            self.logged[name] += 1

    def _try(self, name: str, work: Callable[[], None]) -> bool:
        """Call ``work`` and return True; if it fails, report that and stop using the tracker."""
        try:
            work()
        except Exception as err:  # noqa: BLE001  a tracker never fails a run
            del self.trackers[name]
            what = (
                err.problem if isinstance(err, ClipAdaptError) else f"{type(err).__name__}: {err}"
            )
            self.progress.note(
                f"warning: the tracker {name} failed and is not used any more: {' '.join(what.split())}; the records "
                "are complete, and the same command logs the missing runs later"
            )
            return False
        return True


def describe(record: RunRecord, store: RunStore) -> TrackedRun:
    """Return what a tracker logs of a run; a history that cannot be read is left out."""
    where = record.evaluation
    method = record.method.recipe or record.method.name
    shots = f", {record.data.shots} shots" if record.data.shots else ""
    group = f"{method} on {where.dataset} ({where.split}){shots}"
    facts = {
        "run_id": record.run_id,
        "fit_id": record.fit_id,
        "status": record.status,
        "seed": record.seed,
        "dataset": where.dataset,
        "split": where.split,
        "protocol": where.protocol,
        "method": record.method.name,
        "method_version": record.method.version,
        "recipe": record.method.recipe,
        "setting": record.method.setting,
        "model": record.model.name if record.model else None,
        "weights_sha256": record.model.weights_sha256 if record.model else None,
        "n_train": record.data.n_train,
        "n_test": record.data.n_test,
        "git_commit": record.environment.git_commit,
        "device": record.environment.device,
        "threads": record.environment.threads,
        "temperature": record.calibration.temperature if record.calibration else None,
        "error": record.error,
    }
    config = {k: _plain(v) for k, v in flatten(record.config).items()}
    return TrackedRun(
        record=record,
        title=f"{group}, seed {record.seed}",
        group=group,
        settings={**facts, **{f"config.{k}": v for k, v in config.items()}},
        steps=_steps(record, store),
        metrics=_metrics(record),
        flags=record.flags,
    )


def _metrics(record: RunRecord) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, metric in record.metrics.items():
        bounds = {"": metric.value, "_low": metric.low, "_high": metric.high}
        found |= {name + suffix: v for suffix, v in bounds.items() if v is not None}
    cost = record.cost.model_dump()
    found |= {f"cost.{name}": float(v) for name, v in cost.items() if v is not None}
    found["n_trainable_params"] = float(record.n_trainable_params)
    return found


def _steps(record: RunRecord, store: RunStore) -> tuple[dict[str, float], ...]:
    try:
        content = read_file(run_folder(store, record), record, HISTORY)
    except RecordError:
        return ()
    lines = [json.loads(line) for line in (content or b"").splitlines()]
    return tuple(_numbers(line) for line in lines)


def _numbers(step: Mapping[str, Any]) -> dict[str, float]:
    return {
        k: float(v)
        for k, v in step.items()
        if isinstance(v, int | float) and not isinstance(v, bool)
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value)
