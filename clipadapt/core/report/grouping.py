"""Which records make one row of a table: those that differ only in their seed.

Records are grouped by what was evaluated and how: dataset and its state, split, protocol, model, method, recipe,
shots, whether the method is inductive, transductive or online, and every setting that its config key declares to
affect the result. Groups that would look alike in a table are labelled with the settings in which they differ.
:func:`refuse_unlike` rejects a group whose records differ in weights, code or libraries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import RecordError
from clipadapt.core.experiments.settings import settings_that_affect_results
from clipadapt.core.records.environment import LIBRARIES
from clipadapt.core.records.schema import canonical_json
from clipadapt.core.report.formats import method_title
from clipadapt.core.scoring.metrics import METRICS, of_probabilities

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from clipadapt.core.records.schema import RunRecord

CHANGED_METRICS: Final = {m.name for m in METRICS.values() if m.version > 1}
"""Metrics whose meaning changed with :data:`~clipadapt.core.scoring.metrics.METRICS_VERSION`."""


@dataclass(frozen=True, slots=True)
class Group:
    """Records that differ only in their seed.

    Attributes:
        records: One or more, failed ones included, by seed.
        settings: Settings that distinguish the group from those that look alike, as ``key=value``.
    """

    records: tuple[RunRecord, ...]
    settings: tuple[str, ...]

    @property
    def first(self) -> RunRecord:
        """The first record; every field that records are grouped by is the same in all of them."""
        return self.records[0]

    @property
    def ok(self) -> tuple[RunRecord, ...]:
        """The records of runs that did not fail."""
        return tuple(r for r in self.records if r.status == "ok")

    @property
    def label(self) -> str:
        """Method, recipe and the settings that distinguish the group."""
        return ", ".join([
            method_title(self.first.method.name, self.first.method.recipe),
            *self.settings,
        ])


def group_records(records: Iterable[RunRecord]) -> list[Group]:
    """Group distinct records by what was evaluated and how, sorted by their names."""
    members: dict[tuple[Any, ...], list[RunRecord]] = {}
    settings: dict[tuple[Any, ...], dict[str, Any]] = {}
    affecting = _Affecting()
    known: dict[tuple[Any, ...], tuple[tuple[Any, ...], RunRecord]] = {}
    for record in records:
        source = _source(record)
        if source not in known:  # the record is kept, so that its parts keep their ids
            own = _settings(record, affecting)
            key = _key(record, own)
            settings.setdefault(key, own)
            known[source] = key, record
        members.setdefault(known[source][0], []).append(record)
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for key, own in settings.items():
        alike.setdefault(key[:-1], []).append(own)
    differing = {key: _differing(found) for key, found in alike.items()}
    several = several_states(group[0] for group in members.values())
    return [
        Group(
            tuple(sorted(members[key], key=lambda r: (r.seed, r.run_id))),
            _distinguishing(members[key][0], settings[key], differing[key[:-1]], several),
        )
        for key in sorted(members, key=_sortable)
    ]


class _Affecting:
    """Settings that affect results, computed once for the records that share a config."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}

    def of(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a config, sorted by name."""
        known = self._known.get(id(config))
        if known is None:  # the config is kept, so that no other gets its id
            found = dict(sorted(settings_that_affect_results(config).items()))
            known = self._known[id(config)] = config, found
        return known[1]


def several_states(records: Iterable[RunRecord]) -> set[tuple[str, ...]]:
    """Return the datasets that occur in more than one state, as (evaluated, trained on) or (evaluated,)."""
    states: dict[tuple[str, ...], set[str]] = {}
    for record in records:
        for names, state in _states(record).values():
            states.setdefault(names, set()).add(state)
    return {names for names, found in states.items() if len(found) > 1}


def state_of(record: RunRecord, several: Collection[tuple[str, ...]]) -> dict[str, str]:
    """Return the shortened fingerprints of a record's data, of those datasets that occur in several states."""
    return {key: state for key, (names, state) in _states(record).items() if names in several}


def _states(record: RunRecord) -> dict[str, tuple[tuple[str, ...], str]]:
    evaluation, data = record.evaluation, record.data
    found: dict[str, tuple[tuple[str, ...], str]] = {
        "data": ((evaluation.dataset, data.name), data.sha256[:8])
    }
    if evaluation.dataset != data.name and evaluation.sha256 is not None:
        found["evaluation data"] = ((evaluation.dataset,), evaluation.sha256[:8])
    return found


def _key(record: RunRecord, settings: dict[str, Any]) -> tuple[Any, ...]:
    evaluation, model, method = record.evaluation, record.model, record.method
    return (
        evaluation.dataset, evaluation.split, evaluation.protocol, model.name if model else None,
        evaluation.classes, record.data.shots, method.name, method.recipe, method.setting,
        canonical_json(settings),
    )  # fmt: skip


def _settings(record: RunRecord, affecting: _Affecting) -> dict[str, Any]:
    """Return every setting that may affect the result and has no column of its own."""
    evaluation = record.evaluation
    data = record.config.get("data")
    manifest = data.get("manifest") if isinstance(data, Mapping) else None
    return {
        **{key: state for key, (_, state) in _states(record).items()},
        "trained on": record.data.name if record.data.name != evaluation.dataset else None,
        "trained classes": data.get("classes", "all") if isinstance(data, Mapping) else "all",
        "dtype": record.model.dtype if record.model else None,
        "device": record.environment.device.partition(":")[0],
        "threads": record.environment.threads,
        "processes": len(record.environment.devices) or None,
        "templates": list(evaluation.templates),
        "classnames": evaluation.classnames_sha256[:8],
        "manifest": _manifest(record, manifest),
        **affecting.of(record.config),
        **{key: sha256[:8] for key, sha256 in record.method.contents.items()},
    }


def _source(record: RunRecord) -> tuple[Any, ...]:
    """Return what determines key and settings of a record; the records of a folder share equal parts."""
    data, given = record.data, record.config.get("data")
    manifest = given.get("manifest") if isinstance(given, Mapping) else None
    parts = record.config, record.evaluation, record.model, record.method, record.environment
    return (*map(id, parts), data.name, data.sha256, data.shots, _manifest(record, manifest))


def _manifest(record: RunRecord, path: Any) -> str | None:
    """Return the draw that the user gave; one file per seed is named by its pattern."""
    if not path:
        return None
    return path if "{seed}" in path else (record.data.manifest_sha256 or "")[:8]


def _differing(alike: Sequence[dict[str, Any]]) -> set[str]:
    """Return the names of the settings in which some differ."""
    names = {name for own in alike for name in own}
    return {name for name in names if any(x.get(name) != alike[0].get(name) for x in alike)}


def _distinguishing(
    record: RunRecord,
    own: dict[str, Any],
    differing: Collection[str],
    several: Collection[tuple[str, ...]],
) -> tuple[str, ...]:
    """Return the settings in which a record differs from those alike, and those that are always shown.

    A setting that the record does not have is not shown; the others show that they have it. Always shown are a limit
    of the data, and the state of a dataset that occurs in several.
    """
    always = {key for key in ("data.limit",) if own.get(key) is not None}
    always |= state_of(record, several).keys()
    return tuple(
        f"{key}={_short(key, own.get(key))}"
        for key in own
        if key in always or (key != "data" and own[key] is not None and key in differing)
    )


def _short(key: str, value: Any) -> str:
    if key == "templates" and len(value) != 1:
        return str(len(value))
    text = str(value[0]) if key == "templates" else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _sortable(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple((value is not None, value) if value is not None else (False,) for value in key)


# ---------------------------------------------------------------- unlike records


def unlike(first: RunRecord, other: RunRecord) -> list[tuple[str, Any, Any]]:
    """Return the names and both values of all that differs between two records: settings, versions and data."""
    absent = "absent"
    ours, theirs = _compared(first), _compared(other)
    names = (name for name in dict.fromkeys([*ours, *theirs]))
    return [
        (name, ours.get(name, absent), theirs.get(name, absent))
        for name in names
        if ours.get(name, absent) != theirs.get(name, absent)
    ]


def _compared(record: RunRecord) -> dict[str, Any]:
    environment = record.environment
    return {
        "method": record.method.name,
        "recipe": record.method.recipe,
        "model": record.model.name if record.model else None,
        "shots": record.data.shots,
        **_settings(record, _Affecting()),
        **_facts(record, "accuracy"),
        "environment.git_commit": environment.git_commit,
        "environment.python": environment.python,
        "environment.gpu": environment.gpu,
    }


def refuse_unlike(records: Sequence[RunRecord], metric: str) -> None:
    """Check that records whose mean is to be shown differ only in their seed.

    Raises:
        RecordError: If they do not; it names the field and both values.
    """
    if not records:
        return
    first = records[0]
    title = method_title(first.method.name, first.method.recipe)
    ours = _facts(first, metric)
    for other in records[1:]:
        theirs = _facts(other, metric)
        if ours != theirs:
            unlike = _differences(first, other, ours, theirs)
            raise RecordError(
                f"runs of {title} on {first.evaluation.dataset} (seeds {first.seed} and {other.seed}) "
                "cannot be averaged because they differ:\n  " + "\n  ".join(unlike),
                hint="move the folders of one of them elsewhere, or run all seeds again with another --out DIR",
            )
    seed, times = Counter(r.seed for r in records).most_common(1)[0]
    if times > 1:
        ids = ", ".join(r.run_id for r in records if r.seed == seed)
        raise RecordError(
            f"{times} runs of {title} on {first.evaluation.dataset} have the same seed {seed}: {ids}",
            hint="remove the runs that are out of date",
        )


def _differences(
    first: RunRecord, other: RunRecord, ours: dict[str, Any], theirs: dict[str, Any]
) -> list[str]:
    """Return the facts that differ between two records, in words, and the commits of model and data that do."""
    absent = object()
    unlike = [
        f"{name}: {_shown(ours.get(name, absent), absent)} in {first.run_id}, "
        f"{_shown(theirs.get(name, absent), absent)} in {other.run_id}"
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name, absent) != theirs.get(name, absent)
    ]
    return unlike + _commits(first, other)


def _facts(record: RunRecord, metric: str) -> dict[str, Any]:
    """Return everything that must be equal within one row, by the field's name."""
    model, value = record.model, record.metrics.get(metric)
    installed = record.environment.packages
    return {
        "data.n_test": record.data.n_test,
        # Records of schema version 1 do not have it; their figures may be of other data.
        "evaluation.sha256 known": record.evaluation.sha256 is not None,
        "model.weights_sha256": model.weights_sha256 if model else None,
        "method.version": record.method.version,
        f"metrics.{metric}.unit": value.unit if value else None,
        **({"probabilities": record.probabilities} if of_probabilities(metric) else {}),
        **({"metrics_version": record.metrics_version} if metric in CHANGED_METRICS else {}),
        **{f"environment.packages.{name}": installed.get(name) for name in LIBRARIES},
    }


def _commits(first: RunRecord, other: RunRecord) -> list[str]:
    """Return the commits of model and data that two records name, where they differ."""
    pairs = {
        "model.revision": (
            first.model and first.model.revision,
            other.model and other.model.revision,
        ),
        "data.revision": (first.data.revision, other.data.revision),
    }
    return [
        f"{name}: commit {a or 'none'} in {first.run_id}, commit {b or 'none'} in {other.run_id}"
        for name, (a, b) in pairs.items()
        if a != b
    ]


def _shown(value: Any, absent: object) -> str:
    if value is absent:
        return "absent"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
