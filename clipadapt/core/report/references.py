"""Published numbers, shown next to one's own: ``configs/references/*.yaml``.

A number matches a run if evaluation protocol, dataset and its split, training data, model, method, shots, prompt
templates and the settings it names are the same; :func:`differences` lists what is not. A number that matches may
still not be comparable: a subset of the split, other classes or class names, unreadable images, another dtype.
:func:`caveats` lists these reasons. A table shows a number only if there is no reason against it, and otherwise says
what differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.registry import template_sets
from clipadapt.core.api.strict import StrictModel
from clipadapt.core.experiments.dotted import get

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from clipadapt.core.records.schema import RunRecord

UNLIKE: Final = {
    "not_the_official_split": "not the official split",
    "not_the_official_data": "not the official data",
    "allow_fewer": "a class had fewer examples than shots",
}

Protocol = Literal["standard", "base_to_new", "cross_dataset", "domain_shift"]
HConvention = Literal["dataset", "of_means", "mean_of_h"]
Share = Annotated[float, Field(ge=0, le=1)]


class Reference(StrictModel):
    """One published result.

    Attributes:
        source: Paper and table, or repository, file and commit.
        note: Remark for readers, or an empty string.
        selected_on_test: What was selected on the test split, such as ``epoch``; empty if nothing was.
        dataset: Dataset evaluated, as in a record: CoOp's split of a dataset is ``NAME:coop``.
        also: Other datasets of the same images with another split, in which the number is near but does not match.
        over: Datasets that a published mean is over; empty for a number of one dataset. ``dataset`` is its title.
        protocol: Evaluation protocol: ``standard`` (trained and evaluated on all classes), ``base_to_new`` (trained on
            the base classes), ``cross_dataset`` or ``domain_shift`` (trained on ``trained_on``).
        h: Convention of H: of the means over seeds on one ``dataset``, or over datasets ``of_means`` of base and new
            accuracies or as ``mean_of_h``; None without H.
        trained_on: Dataset trained on, None for the same.
        models: Equivalent names of the backbone.
        method: Registered name.
        shots: Training examples per class, None for all.
        templates: Prompt templates, in any order, or the name of a template set; None if there are none.
        not_published: What the number depends on and the source does not say, such as ``templates``.
        where: Settings that must have these values, by dotted key.
        n_test: Evaluated examples, None if not published.
        n_classes: Number of classes, None if not published.
        classnames_sha256: Hash of the class names in their order, as in a record; None if they are not in prompts.
        dtypes: Dtypes of the model with which the number is comparable: the one used, and more precise ones.
        val: Metrics on val, by name, as in a record.
        test: Metrics on test, by name, as in a record.
        base_to_new: Accuracy on test of the ``base`` and of the ``new`` classes, and ``H``, their harmonic mean.
        n_trainable_params: Trainable parameters, or None.
        n_total_params: Parameters of the whole classifier, or None.
    """

    source: str = Field(min_length=1)
    note: str = ""
    selected_on_test: str = ""
    dataset: str
    also: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    protocol: Protocol = "standard"
    h: HConvention | None = None
    trained_on: str | None = None
    models: tuple[str, ...] = Field(min_length=1)
    method: str
    shots: PositiveInt | None = None
    templates: str | tuple[str, ...] | None = None
    not_published: tuple[str, ...] = ()
    where: dict[str, JsonValue] = Field(default_factory=dict)
    n_test: PositiveInt | None = None
    n_classes: PositiveInt | None = None
    classnames_sha256: str | None = None
    dtypes: tuple[str, ...] = ("fp32",)
    val: dict[str, FiniteFloat] = Field(default_factory=dict)
    test: dict[str, FiniteFloat] = Field(default_factory=dict)
    base_to_new: dict[Literal["base", "new", "H"], Share] = Field(default_factory=dict)
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

    @model_validator(mode="after")
    def _conventions_agree(self) -> Self:
        if (self.protocol == "base_to_new") != bool(self.base_to_new):
            raise ValueError("base, new and H belong to the protocol base_to_new, and to no other")
        if (self.protocol in {"cross_dataset", "domain_shift"}) != (self.trained_on is not None):
            raise ValueError("trained_on belongs to the protocols cross_dataset and domain_shift")
        if ("H" in self.base_to_new) != (self.h is not None):
            raise ValueError("H needs its convention, h, and h needs H")
        if self.h is not None and (self.h == "dataset") == bool(self.over):
            raise ValueError("h is 'dataset' for one dataset, 'of_means' or 'mean_of_h' for a mean")
        return self

    def values(self, metric: str, split: str) -> dict[str, float]:
        """Return a metric on ``val`` or ``test`` by classes: ``all``, or ``base``, ``new`` and ``H``."""
        if self.base_to_new:
            found = self.base_to_new if (metric, split) == ("accuracy", "test") else {}
            return {str(classes): value for classes, value in found.items()}
        value = {"val": self.val, "test": self.test}.get(split, {}).get(metric)
        return {} if value is None else {"all": value}

    def value(self, metric: str, split: str, classes: str = "all") -> float | None:
        """Return a metric on ``val`` or ``test``, None if it was not published for these classes."""
        return self.values(metric, split).get(classes)

    @property
    def cited(self) -> str:
        """Source, note and what was selected on test, on one line."""
        selected = f"{self.selected_on_test} selected on test" if self.selected_on_test else ""
        remarks = "; ".join(filter(None, (self.note, selected)))
        return f"{self.source} ({remarks})" if remarks else self.source


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
    ``rotten_tomatoes``) and has the fewest :func:`differences`; of several, it is the first in the files. A mean over
    datasets is the nearest only if no number of one dataset is.
    """
    first = records[0]
    found = [(r, differences(first, r)) for r in all_references() if _same_kind(first, r)]
    matching = [(r, unlike) for r, unlike in found if not unlike]
    nearest = sorted(found, key=lambda pair: (bool(pair[0].over), len(pair[1])))[:1]
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
    found = list(_other_classes(record, reference))
    if reference.over:
        found.append(f"one dataset, published as the mean over {len(reference.over)}")
    elif _plain(record.evaluation.dataset) != _plain(reference.dataset):
        found.append(f"data {record.evaluation.dataset}, published on {reference.dataset}")
    trained_on = reference.trained_on or (None if reference.over else reference.dataset)
    if (
        record.method.uses_train
        and trained_on is not None
        and _family(record.data.name) != _family(trained_on)
        and record.data.name not in reference.also
    ):
        found.append(f"trained on {record.data.name}, published for training on {trained_on}")
    if model not in reference.models:
        found.append(f"model {model or 'none'}, published with {reference.models[0]}")
    if reference.prompts is not None:
        found += _other_templates(record.evaluation.templates, reference.prompts)
        if record.method.prompts:
            found.append(f"{record.method.prompts}, published with templates")
    for key, wanted in reference.where.items():
        got = get(record.config, key)
        if got != wanted:
            found.append(f"{key}={got}, published with {wanted}")
    return tuple(found)


def _other_classes(record: RunRecord, reference: Reference) -> Iterator[str]:
    """Yield how the classes trained and evaluated on differ."""
    evaluated = record.evaluation.classes
    trained = get(record.config, "data.classes") or "all" if record.method.uses_train else None
    if reference.protocol == "base_to_new":
        if evaluated == "all":
            yield "evaluated on all classes, published on base and new ones"
        elif trained not in {None, "base"}:
            yield f"trained on {trained} classes, published on the base classes"
    elif evaluated != "all":
        yield f"evaluated on the {evaluated} classes, published on all"
    elif trained not in {None, "all"}:
        yield f"trained on the {trained} classes, published on all"


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
    found = [f"its {what} are not published" for what in reference.not_published]
    found += [words for flag, words in UNLIKE.items() if flag in record.flags]
    # The published size is that of test over all classes; the sizes of val, base and new are unknown.
    evaluation, data = record.evaluation, record.data
    whole = evaluation.split == "test" and evaluation.classes == "all"
    if whole and reference.n_test not in {None, data.n_test}:
        found.append(f"evaluated on {data.n_test:,} examples, published on {reference.n_test:,}")
    elif get(record.config, "data.limit") is not None:
        found.append(f"evaluated on {data.n_test:,} examples only")
    if data.skipped:
        found.append(f"{data.skipped:,} examples could not be read")
    n_classes = _published_classes(record, reference)
    if n_classes not in {None, _n_classes(record)}:
        found.append(f"evaluated on {_n_classes(record):,} classes, published on {n_classes:,}")
    elif evaluation.classes == "all" and reference.classnames_sha256 not in {
        None,
        evaluation.classnames_sha256,
    }:
        found.append("other class names, or in another order")
    elif reference.prompts is not None and get(record.config, "data.classnames") is not None:
        found.append("your own class names")
    if record.model is not None and record.model.dtype not in reference.dtypes:
        found.append(f"computed in {record.model.dtype}, published in {reference.dtypes[-1]}")
    return tuple(found)


def _published_classes(record: RunRecord, reference: Reference) -> int | None:
    """Return how many classes the publication evaluated; base are the first half, rounded up."""
    n = reference.n_classes
    if n is None or (record.evaluation.classes != "all") != (reference.protocol == "base_to_new"):
        return None  # the classes differ, which is said already
    return {"base": n - n // 2, "new": n // 2}.get(record.evaluation.classes, n)


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
    groups = raw.get("references")
    if not isinstance(groups, list):
        raise ConfigError(f"{path} has no list 'references'")
    return parse(groups, str(path), raw.get("datasets", {}), raw.get("templates", {}))


def parse(
    groups: list[dict[str, Any]],
    origin: str,
    datasets: Mapping[str, Mapping[str, Any]] | None = None,
    templates: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Reference]:
    """Return the references in groups of numbers.

    Args:
        groups: Groups as in a file; their keys hold for each of their numbers, unless the number overrides them.
        origin: Name of the file, for messages.
        datasets: Default keys of every number on a dataset, by its name.
        templates: Names of templates that depend on the dataset, with the templates of each.

    Raises:
        ConfigError: If a number is not valid.
    """
    out = []
    for group in groups:
        common = {k: v for k, v in group.items() if k != "numbers"}
        for written in group.get("numbers", ()):
            try:
                for number in _single({**common, **written}):
                    dataset = str(number.get("dataset"))
                    named = (templates or {}).get(str(number.get("templates")))
                    if named is not None:
                        number["templates"] = named.get(dataset)
                    of_set = (datasets or {}).get(dataset, {})
                    out.append(Reference.model_validate({**of_set, **number}))
            except ValidationError as err:
                fault = err.errors(include_url=False)[0]
                where = ".".join(str(part) for part in fault["loc"])
                raise ConfigError(
                    f"{origin} is not a valid file of published numbers: {where}: {fault['msg']} in {written}"
                ) from None
    return out


def _single(number: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each number of ``by_shots`` or ``by_dataset``, or the number itself."""
    for short, key in (("by_shots", "shots"), ("by_dataset", "dataset")):
        if short in number:
            rest = {k: v for k, v in number.items() if k != short}
            for value, accuracy in number[short].items():
                yield {**rest, key: value, "test": {"accuracy": accuracy}}
            return
    halves = {k: number.pop(k) for k in ("base", "new", "H") if k in number}
    yield {**number, "base_to_new": halves} if halves else number


def _same_kind(record: RunRecord, reference: Reference) -> bool:
    return (
        record.method.name == reference.method
        and (record.data.shots == reference.shots or not record.method.uses_train)
        and _same_data(record.evaluation.dataset, reference)
    )


def _same_data(dataset: str, reference: Reference) -> bool:
    """Return whether a dataset is that of a number, has other splits of it, or belongs to a published mean."""
    names = reference.over or (reference.dataset, *reference.also)
    return _family(dataset) in {_family(name) for name in names}


def _family(dataset: str) -> str:
    return _plain(dataset).partition(":")[0]


def _plain(dataset: str) -> str:
    return dataset.replace("-", "_")
