"""Published numbers, to be set beside one's own: ``configs/references/*.yaml``.

A number fits a run where data set, training data, model, method, shots, the very templates and the settings it names
are the same. Where what decides the number still differs (another split or a part of it, other or fewer classes, other
names of them, images that could not be read, other arithmetic), :func:`caveats` says so and a table must repeat it:
such numbers are not comparable.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from pydantic import (
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
)

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.registry import tracks
from clipadapt.core.api.strict import StrictModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from clipadapt.core.records.schema import RunRecord

UNLIKE: Final = {
    "not_the_official_split": "not the official split",
    "not_the_official_data": "not the official data",
    "allow_fewer": "a class had fewer examples than shots",
}


def _template_sets() -> Mapping[str, tuple[str, ...]]:
    return {name: t for track in tracks().values() for name, t in track.template_sets.items()}


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
        templates: Prompt templates, in any order, or the name of a set of them; None where there are none.
        where: Settings that must have these values, by dotted key.
        n_test: Examples judged, None where it is not said.
        n_classes: Classes judged among, None where it is not said.
        classnames_sha256: Hash of the class names in their order, as in a record; None where none go into prompts.
        dtypes: Arithmetic of the model that does not change the number: what was used, and what is at least as exact.
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
    templates: str | tuple[str, ...] | None = None
    where: dict[str, JsonValue] = Field(default_factory=dict)
    n_test: PositiveInt | None = None
    n_classes: PositiveInt | None = None
    classnames_sha256: str | None = None
    dtypes: tuple[str, ...] = ("fp32",)
    val: dict[str, FiniteFloat] = Field(default_factory=dict)
    test: dict[str, FiniteFloat] = Field(default_factory=dict)
    n_trainable_params: NonNegativeInt | None = None
    n_total_params: NonNegativeInt | None = None

    @property
    def prompts(self) -> tuple[str, ...] | None:
        """The templates themselves."""
        return (
            _template_sets()[self.templates] if isinstance(self.templates, str) else self.templates
        )

    @field_validator("templates")
    @classmethod
    def _known(cls, templates: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(templates, str) and templates not in _template_sets():
            raise ValueError(f"no set of templates is called '{templates}'")
        return templates

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
    if reference.prompts is not None:
        found += _other_templates(record.evaluation.templates, reference.prompts)
    for key, wanted in reference.where.items():
        got = _setting(record.config, key)
        if got != wanted:
            found.append(f"{key}={got}, published with {wanted}")
    return tuple(found)


def _other_templates(own: Sequence[str], published: Sequence[str]) -> list[str]:
    if sorted(own) == sorted(published):
        return []
    if len(own) != len(published):
        return [f"{len(own)} templates, published with {len(published)}"]
    if len(own) == 1:
        return [f"template '{own[0]}', published with '{published[0]}'"]
    others = len(set(own) - set(published))
    return [f"{len(own)} templates, {others} of them not the published ones"]


def caveats(record: RunRecord, reference: Reference) -> tuple[str, ...]:
    """Return why a number that fits is not comparable all the same; empty where it is.

    What decides it: the examples, the classes among which is chosen and their names, and the arithmetic.
    """
    found = [words for flag, words in UNLIKE.items() if flag in record.flags]
    # The published size is that of test; nothing is known of val's.
    judged, data = record.evaluation, record.data
    if judged.split == "test" and reference.n_test not in {None, data.n_test}:
        found.append(f"evaluated on {data.n_test:,} examples, published on {reference.n_test:,}")
    elif _setting(record.config, "data.limit") is not None:
        found.append(f"evaluated on {data.n_test:,} examples only")
    if data.skipped:
        found.append(f"{data.skipped:,} examples could not be read and were left out")
    if judged.classes != "all":
        found.append(f"evaluated among the {judged.classes} classes, published among all")
    elif reference.n_classes not in {None, _n_classes(record)}:
        found.append(
            f"evaluated among {_n_classes(record):,} classes, published among {reference.n_classes:,}"
        )
    elif reference.classnames_sha256 not in {None, judged.classnames_sha256}:
        found.append("other class names, or another order of them")
    elif reference.prompts is not None and _setting(record.config, "data.classnames") is not None:
        found.append("your own class names")
    learnt = _setting(record.config, "data.classes")
    if not _learns_nothing(record) and learnt not in {None, "all"} and judged.classes == "all":
        found.append(f"trained on the {learnt} classes, published on all")
    if record.model is not None and record.model.dtype not in reference.dtypes:
        found.append(f"computed in {record.model.dtype}, published in {reference.dtypes[-1]}")
    return tuple(found)


def _n_classes(record: RunRecord) -> int:
    """Return the number of classes judged among; those learnt from may be others."""
    names: Any = (record.per_class or {}).get("classnames")
    return len(names) if names else record.data.n_classes


@cache
def all_references() -> tuple[Reference, ...]:
    """Return every published number, in the order of the files.

    Raises:
        ConfigError: If a file is not valid.
    """
    from clipadapt.core.experiments.shipped import config_folders, read_fragment

    folder = config_folders()[0].parent.parent / "references"
    return tuple(
        reference
        for path in sorted(folder.glob("*.yaml"))
        for reference in _parse_file(path, read_fragment(path))
    )


def _parse_file(path: Path, raw: dict[str, Any]) -> list[Reference]:
    groups, datasets = raw.get("references"), raw.get("datasets", {})
    if not isinstance(groups, list):
        raise ConfigError(f"{path} has no list 'references'")
    return parse(groups, str(path), datasets)


def parse(
    groups: list[dict[str, Any]],
    origin: str,
    datasets: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Reference]:
    """Turn groups of numbers into references: a number's own keys go before those of its group.

    Args:
        groups: Groups as in a file.
        origin: The file's name, for messages.
        datasets: Keys of every number on a data set, by its name; those of group and number go before them.

    Raises:
        ConfigError: If one is not valid.
    """
    out = []
    for group in groups:
        common = {k: v for k, v in group.items() if k != "numbers"}
        for number in group.get("numbers", ()):
            try:
                own = {**common, **number}
                of_set = (datasets or {}).get(str(own.get("dataset")), {})
                out.append(Reference.model_validate({**of_set, **own}))
            except ValidationError as err:
                fault = err.errors(include_url=False)[0]
                where = ".".join(str(part) for part in fault["loc"])
                raise ConfigError(
                    f"{origin} is no file of published numbers: {where}: {fault['msg']} in {number}"
                ) from None
    return out


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
