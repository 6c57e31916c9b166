"""Published numbers, shown next to one's own: ``configs/references/*.yaml``.

A number matches a run if dataset, training data, model, method, shots, prompt templates and the settings it names are
the same; :func:`differences` lists what is not. A number that matches may still not be comparable: another split or a
subset of it, other classes or class names, unreadable images, another dtype. :func:`caveats` lists these reasons, and
every table repeats them.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from clipadapt.core.api.registry import template_sets
from clipadapt.core.api.strict import StrictModel
from clipadapt.core.experiments.dotted import get

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from clipadapt.core.records.schema import RunRecord

UNLIKE: Final = {
    "not_the_official_split": "not the official split",
    "not_the_official_data": "not the official data",
    "allow_fewer": "a class had fewer examples than shots",
}


class Reference(StrictModel):
    """One published result.

    Attributes:
        source: Paper and table, or repository and file.
        note: Remark for readers, or an empty string.
        dataset: Dataset evaluated, as given to ``--dataset``.
        trained_on: Dataset trained on, None for the same.
        models: Equivalent names of the backbone.
        method: Registered name.
        shots: Training examples per class, None for all.
        templates: Prompt templates, in any order, or the name of a template set; None if there are none.
        where: Settings that must have these values, by dotted key.
        n_test: Evaluated examples, None if not published.
        n_classes: Number of classes, None if not published.
        classnames_sha256: Hash of the class names in their order, as in a record; None if they are not in prompts.
        dtypes: Dtypes of the model with which the number is comparable: the one used, and more precise ones.
        val: Metrics on val, by name, as in a record.
        test: Metrics on test, by name, as in a record.
        n_trainable_params: Trainable parameters, or None.
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
        """The prompt templates, with the name of a set resolved."""
        return (
            template_sets()[self.templates] if isinstance(self.templates, str) else self.templates
        )

    @field_validator("templates")
    @classmethod
    def _known(cls, templates: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(templates, str) and templates not in template_sets():
            raise ValueError(f"there is no template set '{templates}'")
        return templates

    def value(self, metric: str, split: str) -> float | None:
        """Return a metric on ``val`` or ``test``, None if it was not published."""
        return {"val": self.val, "test": self.test}.get(split, {}).get(metric)

    @property
    def cited(self) -> str:
        """Source and note on one line."""
        return f"{self.source} ({self.note})" if self.note else self.source


@dataclass(frozen=True, slots=True)
class Published:
    """A published number for a row of runs.

    Attributes:
        reference: The number and its source.
        differences: What does not match; empty if the number matches.
        caveats: Why the number is not comparable even so.
    """

    reference: Reference
    differences: tuple[str, ...]
    caveats: tuple[str, ...]

    @property
    def not_comparable(self) -> tuple[str, ...]:
        """Every reason against a comparison."""
        return tuple(dict.fromkeys([*self.differences, *self.caveats]))


def published_for(records: Sequence[RunRecord]) -> tuple[Published, ...]:
    """Return the published numbers that match runs which differ in their seed, or else the nearest one.

    The nearest is of the same method, shots and dataset family (``rotten_tomatoes:offline`` belongs to
    ``rotten_tomatoes``) and has the fewest :func:`differences`; of several, it is the first in the files.
    """
    first = records[0]
    found = [(r, differences(first, r)) for r in all_references() if _same_kind(first, r)]
    matching = [(r, unlike) for r, unlike in found if not unlike]
    nearest = sorted(found, key=lambda pair: len(pair[1]))[:1]
    return tuple(
        Published(
            reference,
            unlike,
            tuple(dict.fromkeys(words for r in records for words in caveats(r, reference))),
        )
        for reference, unlike in matching or nearest
    )


def differences(record: RunRecord, reference: Reference) -> tuple[str, ...]:
    """Return what does not match between a run and a published number, in words; empty if it matches."""
    model = record.model.name if record.model else None
    found = []
    if _plain(record.evaluation.dataset) != _plain(reference.dataset):
        found.append(f"data {record.evaluation.dataset}, published on {reference.dataset}")
    trained_on = reference.trained_on or reference.dataset
    if record.method.uses_train and _family(record.data.name) != _family(trained_on):
        found.append(f"trained on {record.data.name}, published for training on {trained_on}")
    if model not in reference.models:
        found.append(f"model {model or 'none'}, published with {reference.models[0]}")
    if reference.prompts is not None:
        found += _other_templates(record.evaluation.templates, reference.prompts)
        if get(record.config, "method.prompts") is not None:
            found.append("prompts in words, published with templates")
    for key, wanted in reference.where.items():
        got = get(record.config, key)
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
    return [f"{len(own)} templates, {others} of them not among those published"]


def caveats(record: RunRecord, reference: Reference) -> tuple[str, ...]:
    """Return why a number that matches is not comparable; empty if it is.

    It depends on the examples, the classes and their names, and the dtype.
    """
    found = [words for flag, words in UNLIKE.items() if flag in record.flags]
    # The published size is that of test; the size of val is unknown.
    evaluation, data = record.evaluation, record.data
    if evaluation.split == "test" and reference.n_test not in {None, data.n_test}:
        found.append(f"evaluated on {data.n_test:,} examples, published on {reference.n_test:,}")
    elif get(record.config, "data.limit") is not None:
        found.append(f"evaluated on {data.n_test:,} examples only")
    if data.skipped:
        found.append(f"{data.skipped:,} examples could not be read")
    if evaluation.classes != "all":
        found.append(f"evaluated on the {evaluation.classes} classes, published on all")
    elif reference.n_classes not in {None, _n_classes(record)}:
        found.append(
            f"evaluated on {_n_classes(record):,} classes, published on {reference.n_classes:,}"
        )
    elif reference.classnames_sha256 not in {None, evaluation.classnames_sha256}:
        found.append("other class names, or in another order")
    elif reference.prompts is not None and get(record.config, "data.classnames") is not None:
        found.append("your own class names")
    trained = get(record.config, "data.classes")
    if record.method.uses_train and trained not in {None, "all"} and evaluation.classes == "all":
        found.append(f"trained on the {trained} classes, published on all")
    if record.model is not None and record.model.dtype not in reference.dtypes:
        found.append(f"computed in {record.model.dtype}, published in {reference.dtypes[-1]}")
    return tuple(found)


def _n_classes(record: RunRecord) -> int:
    """Return the number of evaluated classes, which may differ from those trained on."""
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
    """Return the references in groups of numbers.

    Args:
        groups: Groups as in a file; their keys hold for each of their numbers, unless the number overrides them.
        origin: Name of the file, for messages.
        datasets: Default keys of every number on a dataset, by its name.

    Raises:
        ConfigError: If a number is not valid.
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
                    f"{origin} is not a valid file of published numbers: {where}: {fault['msg']} in {number}"
                ) from None
    return out


def _same_kind(record: RunRecord, reference: Reference) -> bool:
    return (
        record.method.name == reference.method
        and (record.data.shots == reference.shots or not record.method.uses_train)
        and _family(record.evaluation.dataset) == _family(reference.dataset)
    )


def _family(dataset: str) -> str:
    return _plain(dataset).partition(":")[0]


def _plain(dataset: str) -> str:
    return dataset.replace("-", "_")
