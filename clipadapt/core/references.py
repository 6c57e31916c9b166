"""Published numbers, to be set beside one's own: ``configs/references/*.yaml``.

A number fits a run where data set, training data, model, method, shots and the settings it names are the same. Where
the examples still differ (another split, a part of it), :func:`caveats` says so and a table must repeat it: such
numbers are not comparable.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field, FiniteFloat, JsonValue, NonNegativeInt, PositiveInt, ValidationError

from clipadapt.core._strict import StrictModel
from clipadapt.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from clipadapt.core.records import RunRecord

OTHER_EXAMPLES: Final = {
    "not_the_official_split": "not the official split",
    "not_the_official_data": "not the official data",
}


class Reference(StrictModel):
    """One published result.

    Attributes:
        source: Paper and table, or repository and file.
        note: What a reader must know, or an empty string.
        dataset: Data set judged on, as ``--dataset`` takes it.
        trained_on: Data set learnt from, None for the same.
        models: Names of the backbone, any of them.
        method: Registered name.
        shots: Training examples per class, None for all.
        templates: Number of prompt templates, None where it does not matter.
        where: Settings that must have these values, by dotted key.
        n_test: Examples judged, None where it is not said.
        val: Metrics on val, by name, as in a record.
        test: Metrics on test, by name, as in a record.
        n_trainable_params: Parameters learnt, or None.
        n_total_params: Parameters of the whole classifier, or None.
    """

    source: str
    note: str = ""
    dataset: str
    trained_on: str | None = None
    models: tuple[str, ...] = Field(min_length=1)
    method: str
    shots: PositiveInt | None = None
    templates: PositiveInt | None = None
    where: dict[str, JsonValue] = Field(default_factory=dict)
    n_test: PositiveInt | None = None
    val: dict[str, FiniteFloat] = Field(default_factory=dict)
    test: dict[str, FiniteFloat] = Field(default_factory=dict)
    n_trainable_params: NonNegativeInt | None = None
    n_total_params: NonNegativeInt | None = None

    def value(self, metric: str, split: str) -> float | None:
        """Return a figure of ``val`` or ``test``, None where it was not published."""
        return {"val": self.val, "test": self.test}.get(split, {}).get(metric)

    @property
    def cited(self) -> str:
        """Source and note in one line."""
        return f"{self.source} ({self.note})" if self.note else self.source


def references_for(record: RunRecord) -> list[Reference]:
    """Return the published numbers that fit a run in everything but, perhaps, its examples; see :func:`caveats`."""
    return [r for r in all_references() if _same_kind(record, r) and not differences(record, r)]


def nearest_references(record: RunRecord) -> list[Reference]:
    """Return the numbers that fit a run, or else the one of its method, shots and data family that comes nearest.

    ``rotten_tomatoes:offline`` is of the family ``rotten_tomatoes``. The nearest has the fewest
    :func:`differences`; it is the first of the files among equals.
    """
    found = [r for r in all_references() if _same_kind(record, r)]
    nearest = sorted(found, key=lambda r: len(differences(record, r)))[:1]
    return references_for(record) or nearest


def differences(record: RunRecord, reference: Reference) -> tuple[str, ...]:
    """Return what of the key differs between a run and a published number, in words; empty where it fits."""
    model = record.model.name if record.model else None
    found = []
    if _plain(record.evaluation.dataset) != _plain(reference.dataset):
        found.append(f"data {record.evaluation.dataset}, published on {reference.dataset}")
    learnt_from = reference.trained_on or reference.dataset
    if not _learns_nothing(record) and _family(record.data.name) != _family(learnt_from):
        found.append(f"learnt from {record.data.name}, published from {learnt_from}")
    if model not in reference.models:
        found.append(f"model {model or 'none'}, published with {reference.models[0]}")
    n_templates = len(record.evaluation.templates)
    if reference.templates is not None and n_templates != reference.templates:
        found.append(f"{n_templates} templates, published with {reference.templates}")
    for key, wanted in reference.where.items():
        got = _setting(record.config, key)
        if got != wanted:
            found.append(f"{key}={got}, published with {wanted}")
    return tuple(found)


def caveats(record: RunRecord, reference: Reference) -> tuple[str, ...]:
    """Return why a number that fits is not comparable all the same: other examples; empty where it is."""
    found = [words for flag, words in OTHER_EXAMPLES.items() if flag in record.flags]
    # The published size is that of test; nothing is known of val's.
    judged = record.data.n_test
    if record.evaluation.split == "test" and reference.n_test not in {None, judged}:
        found.append(f"judged on {judged:,} examples, published on {reference.n_test:,}")
    elif _setting(record.config, "data.limit") is not None:
        found.append(f"judged on {judged:,} examples only")
    return tuple(found)


@cache
def all_references() -> tuple[Reference, ...]:
    """Return every published number, in the order of the files.

    Raises:
        ConfigError: If a file is not valid.
    """
    from clipadapt.core.config import config_folders, read_fragment

    folder = config_folders()[0].parent.parent / "references"
    return tuple(
        reference
        for path in sorted(folder.glob("*.yaml"))
        for reference in parse(_groups(path, read_fragment(path)), str(path))
    )


def parse(groups: list[dict[str, Any]], origin: str) -> list[Reference]:
    """Turn groups of numbers into references: a number's own keys go before those of its group.

    Raises:
        ConfigError: If one is not valid.
    """
    out = []
    for group in groups:
        common = {k: v for k, v in group.items() if k != "numbers"}
        for number in group.get("numbers", ()):
            try:
                out.append(Reference.model_validate({**common, **number}))
            except ValidationError as err:
                fault = err.errors(include_url=False)[0]
                where = ".".join(str(part) for part in fault["loc"])
                raise ConfigError(
                    f"{origin} is no file of published numbers: {where}: {fault['msg']} in {number}"
                ) from None
    return out


def _groups(path: Path, raw: dict[str, Any]) -> list[dict[str, Any]]:
    groups = raw.get("references")
    if not isinstance(groups, list):
        raise ConfigError(f"{path} has no list 'references'")
    return groups


def _same_kind(record: RunRecord, reference: Reference) -> bool:
    return (
        record.method.name == reference.method
        and (record.data.shots == reference.shots or _learns_nothing(record))
        and _family(record.evaluation.dataset) == _family(reference.dataset)
    )


def _learns_nothing(record: RunRecord) -> bool:
    return record.method.name.endswith("/zero_shot")


def _family(dataset: str) -> str:
    return _plain(dataset).partition(":")[0]


def _plain(dataset: str) -> str:
    return dataset.replace("-", "_")


def _setting(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value
