"""Audit of prompts: what each template adds, which templates to keep, and which class names are hard to distinguish.

Everything is measured on one labelled split: val, or train if there is no val, unless the caller chooses another. The
test split is only read to confirm a selection that is already made.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs
from clipadapt.core.api.errors import ConfigError, DataError, ModelError
from clipadapt.core.api.registry import MODELS
from clipadapt.core.api.user_input import shortened, visible
from clipadapt.core.data.classnames import token_warnings
from clipadapt.core.data.targets import OpenDatasets, open_target
from clipadapt.core.data.templates import prompts_of
from clipadapt.core.experiments import config, dotted, shipped
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.report.formats import format_difference, format_interval
from clipadapt.core.scoring import statistics
from clipadapt.core.scoring.scores import nll
from clipadapt.methods._text import score_kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Dataset, Split, SplitName
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.scoring.statistics import Interval
    from clipadapt.models import ImageTextModel

_OF_RUNS: Final = frozenset({"method", "seeds", "data.shots", "data.manifest", "data.allow_fewer"})
"""Settings without a use where nothing is trained, beside those of whole sections."""
MOST_PAIRS: Final = 10
"""Class pairs that are listed."""
MOST_SELECTED: Final = 16
"""Maximum number of templates that the greedy selection keeps."""
SIGNIFICANT: Final = 0.05
OFTEN: Final = 0.1
"""Share of the examples of two classes above which their confusion is worth a suggestion."""
BLOCK_BYTES: Final = 64 << 20
MOST_CHARACTERS: Final = 80
"""Characters of a template or prompt that are shown; JSON has all."""
_IDENTIFIER: Final = re.compile(r"n\d{8}|\d+|.*_.*|[a-z]+[A-Z].*")


@dataclass(frozen=True, slots=True)
class TemplateGain:
    """The contribution of one template.

    Attributes:
        template: The template.
        accuracy: Accuracy of this template alone.
        gain: Accuracy of the whole ensemble minus its accuracy without this template, paired by example.
        p_value: Exact McNemar test of that difference, adjusted for the number of templates (Holm).
    """

    template: str
    accuracy: float
    gain: Interval
    p_value: float


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the greedy selection: the template that was added, and the accuracy and loss with it.

    The loss is that of a softmax, or of one sigmoid per class if the model was trained with a sigmoid loss.
    """

    template: str
    accuracy: float
    nll: float


@dataclass(frozen=True, slots=True)
class ClassPair:
    """Two classes whose names are close to each other in the text tower.

    Attributes:
        first: One class name.
        second: The other.
        cosine: Cosine of their text features.
        confused: Examples of either class that are predicted as the other.
        n: Examples of both classes.
        share: Share of confused examples, with an interval for as many pairs as are listed (Bonferroni); None without
            examples.
    """

    first: str
    second: str
    cosine: float
    confused: int
    n: int
    share: Interval | None


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """A prompt that the model cannot read whole; the message says how many tokens it has."""

    prompt: str
    problem: str


@dataclass(frozen=True, slots=True)
class Ensembles:
    """Accuracy of three ensembles on one split.

    Attributes:
        split: The split.
        n: Its examples.
        all: Every template.
        selected: The selected templates.
        own: The dataset's own templates; None if one of them does not fit into the context, or there are none.
        selected_minus_all: Difference, paired by example.
        selected_minus_own: Difference, paired by example; None without ``own``.
    """

    split: str
    n: int
    all: Interval
    selected: Interval
    own: Interval | None
    selected_minus_all: Interval
    selected_minus_own: Interval | None


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of :func:`audit`.

    Attributes:
        model: Name of the model.
        precision: Dtype of its weights: ``fp32``, ``bf16`` or ``fp16``.
        dataset: Name of the dataset.
        n_classes: Number of classes.
        probabilities: Of which the selection reports the loss: ``softmax``, or one ``sigmoid`` per class.
        own: The dataset's own templates.
        templates: What each template adds, in the order given.
        selection: Steps of the greedy selection.
        ensembles: Accuracies on the split of the selection, and on test if that was asked for.
        pairs: Class pairs with the closest names, the closest first.
        median_cosine: Median cosine over all class pairs, for comparison; None for one class.
        long_prompts: Prompts that are longer than the context; their templates were left out.
        suggestions: What to change, one sentence each.
    """

    model: str
    precision: str
    dataset: str
    n_classes: int
    probabilities: str
    own: tuple[str, ...]
    templates: tuple[TemplateGain, ...]
    selection: tuple[Step, ...]
    ensembles: tuple[Ensembles, ...]
    pairs: tuple[ClassPair, ...]
    median_cosine: float | None
    long_prompts: tuple[LongPrompt, ...]
    suggestions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the audit as JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class AuditTask:
    """What is audited.

    Attributes:
        model: Dual encoder of joint width ``D``.
        dataset: Name of the dataset.
        split_name: The split that decides every figure and the selection.
        split: Its ``n`` examples.
        own: The dataset's own templates.
        templates: ``T`` templates, among them the dataset's own.
        test: Examples on which the selection is confirmed, or None.
    """

    model: ImageTextModel
    dataset: str
    split_name: str
    split: Split[Any]
    own: tuple[str, ...]
    templates: tuple[str, ...]
    test: Split[Any] | None = None


def open_audit(
    model: str,
    data: Mapping[str, Any],
    split: SplitName | None,
    settings: Sequence[str],
    progress: Progress,
    *,
    confirm: bool = False,
) -> AuditTask:
    """Open a dataset and load a model for an audit, with the settings of the recipe ``zero_shot``.

    Args:
        model: Model, as ``--model`` takes it.
        data: Keys of the section ``data`` of a config.
        split: The split to measure on; None is val, or train if there is no val.
        settings: Further settings, ``KEY=VALUE``.
        progress: Where warnings are shown.
        confirm: Also read the test split.

    Raises:
        ClipAdaptError: For any mistake of the user.
    """
    recipe = shipped.read_fragment(shipped.find_config("zero_shot", "clip"))
    options = {"data": dict(data), "model": {"name": model}}
    given = config.parse_settings(settings)
    _check_settings(given)
    fragments = [("zero_shot", recipe), ("prompts", options), ("--set", given)]
    found = config.build(fragments, source="prompts", track="clip").config
    assert found.model is not None
    opened = OpenDatasets()
    name = found.data.name
    dataset = opened.get(name, found.data, "clip", progress)
    split = _split_to_measure(dataset, split, progress, confirm=confirm)
    target = open_target(name, split, found.data, "clip", progress, opened)
    examples = target.examples(found.data.limit)
    test = replace(target, split="test").examples(found.data.limit) if confirm else None
    resolved = MODELS.resolve(found.model.name, "clip")
    services = Services(
        FeatureCache(enabled=found.store == "on"),
        progress,
        workers=found.workers,
        threads=found.threads,
        fast=found.fast == "on",
    )
    loaded = resolved.provider.load(resolved.argument, found.model.options, services)
    names = target.classnames
    return AuditTask(
        cast("ImageTextModel", loaded),
        target.dataset.name,
        split,
        replace(examples, classnames=names),
        tuple(target.dataset.templates),
        tuple(dict.fromkeys((*target.dataset.templates, *target.templates))),
        None if test is None else replace(test, classnames=names),
    )


def _check_settings(given: Mapping[str, Any]) -> None:
    """Check that an audit uses every setting.

    Raises:
        ConfigError: If one is only of use to a run.
    """
    unused = [
        key
        for key in dotted.flatten(given)
        if key.startswith(("method.", "evaluation.", "recipe.")) or key in _OF_RUNS
    ]
    if unused:
        raise ConfigError(
            f"clipadapt prompts does not use {', '.join(map(visible, unused))}: nothing is trained or recorded",
            hint="leave it out; accepted are keys of data and model, and store, workers, threads and fast",
        )


def _split_to_measure(
    dataset: Dataset[Any], split: SplitName | None, progress: Progress, *, confirm: bool
) -> SplitName:
    """Return the split to measure on.

    Raises:
        DataError: If the dataset lacks it, or has no test split of other examples to confirm on.
    """
    name, splits = dataset.name, dataset.splits
    aliases: Mapping[str, str] = getattr(dataset, "aliases", {})
    has = f"it has {', '.join(splits)}"
    if confirm and "test" not in splits:
        raise DataError(f"{name} has no split 'test'; {has}", hint="leave out --confirm")
    if split is None:
        own: list[SplitName] = ["val", "train"]
        found = [s for s in own if s in splits and aliases.get(s, s) != "test"]
        if not found:
            raise DataError(
                f"{name} has no split beside test to select templates on",
                hint="add val or train; templates are never selected on test",
            )
        if found[0] == "train":
            progress.note(f"{name} has no split 'val'; templates are measured on train")
        return found[0]
    if split not in splits:
        raise DataError(f"{name} has no split '{split}'; {has}", hint=f"write --split {splits[0]}")
    if aliases.get(split, split) == "test":
        what = "test" if split == "test" else f"'{split}' of {name}, which has the examples of test"
        others = [s for s in splits if aliases.get(s, s) != "test"]
        raise DataError(
            f"templates are not selected on {what}: they would look better than they are",
            hint=f"select on {others[0]}, with --split {others[0]}, and evaluate on test with --confirm"
            if others
            else "add val or train; zeroshot evaluates given templates on test",
        )
    return split


def audit(task: AuditTask, progress: Progress) -> Audit:
    """Audit the prompts of a dataset.

    Raises:
        DataError: If no template fits into the model's context.
    """
    model, split = task.model, task.split
    kept, long_prompts = _readable(model, split.classnames, task.templates)
    if not kept:
        raise DataError(
            f"every template makes a prompt that {model.name} cannot read: {long_prompts[0].problem}",
            hint="shorten the class names or the templates",
        )
    texts = _text_features(model, split.classnames, kept)  # (T, C, D)
    scored = _Scorer(model, split)
    gains = _gains(scored, texts, kept, progress)
    selection = _select(scored, texts, kept, progress)
    chosen = [kept.index(step.template) for step in selection]
    own = [kept.index(t) for t in task.own] if set(task.own) <= set(kept) else []
    ensembles = [_ensembles(scored, task.split_name, texts, chosen, own)]
    if task.test is not None:
        ensembles.append(_ensembles(_Scorer(model, task.test), "test", texts, chosen, own))
    pairs, median = _closest(scored, _ensemble(texts), split.classnames)
    suggestions = _suggestions(task, gains, selection, ensembles, pairs, long_prompts)
    return Audit(
        model.name,
        model.dtype,
        task.dataset,
        len(split.classnames),
        "sigmoid" if scored.sigmoid else "softmax",
        task.own,
        gains,
        selection,
        tuple(ensembles),
        pairs,
        median,
        long_prompts,
        (*suggestions, *token_warnings(model, split.classnames).values()),
    )


def _readable(
    model: ImageTextModel, classnames: Sequence[str], templates: Sequence[str]
) -> tuple[list[str], tuple[LongPrompt, ...]]:
    """Return the templates whose prompts all fit into the context, and the prompts that do not."""
    kept, long_prompts = [], []
    for template in dict.fromkeys(templates):
        prompts = [template.replace("{}", name) for name in classnames]
        try:
            model.tokenize(prompts)
        except ModelError:
            for prompt in prompts:
                try:
                    model.tokenize([prompt])
                except ModelError as err:
                    long_prompts.append(LongPrompt(prompt, err.problem))
        else:
            kept.append(template)
    return kept, tuple(long_prompts)


def _text_features(
    model: ImageTextModel, classnames: Sequence[str], templates: Sequence[str]
) -> NDArray[np.float32]:
    """Return unit-norm features of every prompt, shape ``(T, C, D)``."""
    prompts = prompts_of(tuple(classnames), tuple(templates))
    features = model.encode(Inputs(prompts, tuple(map(str, range(len(prompts))))), "text")
    return np.ascontiguousarray(
        features.reshape(len(classnames), len(templates), -1).transpose(1, 0, 2)
    )


def _ensemble(texts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average features ``(T, C, D)`` over the templates and normalize; shape ``(C, D)``."""
    mean = texts.mean(axis=0)
    weights: NDArray[np.float32] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return weights


class _Scorer:
    """Scores one split with different text classifiers."""

    def __init__(self, model: ImageTextModel, split: Split[Any]) -> None:
        self.images = model.encode(split.inputs, "image")  # (n, D)
        self.labels = split.labels
        self.scale, self.bias = np.float32(model.logit_scale), np.float32(model.logit_bias)
        self.sigmoid = score_kind(model) == "sigmoid"

    def predicted(self, weights: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the predicted classes, shape ``(n,)``."""
        out = np.empty(len(self.images), dtype=np.int64)
        for rows in self._blocks(len(weights)):
            out[rows] = (self.images[rows] @ weights.T).argmax(axis=1)
        return out

    def correct(self, weights: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which examples are predicted correctly, shape ``(n,)``."""
        right: NDArray[np.bool_] = self.predicted(weights) == self.labels
        return right

    def loss(self, weights: NDArray[np.float32]) -> float:
        """Return the mean negative log-likelihood, in nats."""
        total = 0.0
        for rows in self._blocks(len(weights)):
            logits = self.scale * (self.images[rows] @ weights.T) + self.bias
            total += nll(logits, self.labels[rows], sigmoid=self.sigmoid) * len(logits)
        return total / len(self.images)

    def _blocks(self, n_classes: int) -> list[slice]:
        step = max(1, BLOCK_BYTES // (4 * n_classes))
        edges = [*range(0, len(self.images), step), len(self.images)]
        return [slice(a, b) for a, b in pairwise(edges)]


def _gains(
    scored: _Scorer, texts: NDArray[np.float32], templates: Sequence[str], progress: Progress
) -> tuple[TemplateGain, ...]:
    """Measure every template alone, and the ensemble without it."""
    whole, total = scored.correct(_ensemble(texts)), texts.sum(axis=0)  # (n,), (C, D)
    alone, gains, p_values = [], [], []
    with progress.track("leave one template out", len(templates), "templates") as bar:
        for features in texts:
            alone.append(float(scored.correct(features).mean()))
            rest = whole
            if len(texts) > 1:
                without = total - features
                norm = np.linalg.norm(without, axis=1, keepdims=True)
                rest = scored.correct(without / np.maximum(norm, np.finfo(np.float32).tiny))
            difference = whole.astype(np.int64) - rest
            gains.append(statistics.difference_interval(difference[None]))
            p_values.append(statistics.mcnemar_exact(whole, rest).p_value)
            bar.advance(1)
    adjusted = statistics.holm(p_values)
    return tuple(
        TemplateGain(t, a, g, float(p))
        for t, a, g, p in zip(templates, alone, gains, adjusted, strict=True)
    )


def _select(
    scored: _Scorer, texts: NDArray[np.float32], templates: Sequence[str], progress: Progress
) -> tuple[Step, ...]:
    """Add the template that raises the accuracy most, ties by the lower loss, until none does."""
    chosen: list[int] = []
    steps: list[Step] = []
    best = (-1.0, -np.inf)
    most = min(len(templates), MOST_SELECTED)
    with progress.track("select templates", most, "templates") as bar:
        while len(chosen) < most:
            found = (-1.0, -np.inf, -1)
            for i in range(len(templates)):
                if i in chosen:
                    continue
                weights = _ensemble(texts[[*chosen, i]])
                accuracy = float(scored.correct(weights).mean())
                if accuracy >= found[0]:
                    value = (accuracy, -scored.loss(weights), -i)
                    found = max(found, value)
            if found[:2] <= best or (chosen and found[0] <= best[0]):
                break
            best, i = found[:2], -int(found[2])
            chosen.append(i)
            steps.append(Step(templates[i], best[0], -float(best[1])))
            bar.advance(1, accuracy=best[0])
    return tuple(steps)


def _ensembles(
    scored: _Scorer,
    split: str,
    texts: NDArray[np.float32],
    chosen: Sequence[int],
    own: Sequence[int],
) -> Ensembles:
    """Compare all templates, the selected ones and the dataset's own, if any, on one split."""
    every = scored.correct(_ensemble(texts))
    selected = scored.correct(_ensemble(texts[list(chosen)]))
    of_data = scored.correct(_ensemble(texts[list(own)])) if own else None

    def accuracy(correct: NDArray[np.bool_]) -> Interval:
        return statistics.fraction_interval(correct[None])

    def difference(other: NDArray[np.bool_]) -> Interval:
        paired = selected.astype(np.int64) - other
        return statistics.difference_interval(paired[None])

    return Ensembles(
        split,
        len(every),
        accuracy(every),
        accuracy(selected),
        None if of_data is None else accuracy(of_data),
        difference(every),
        None if of_data is None else difference(of_data),
    )


def _closest(
    scored: _Scorer, weights: NDArray[np.float32], classnames: Sequence[str]
) -> tuple[tuple[ClassPair, ...], float | None]:
    """Return the class pairs with the highest cosine, and the median cosine of all pairs."""
    if len(weights) < 2:
        return (), None
    rows, columns = np.triu_indices(len(weights), k=1)
    cosine = (weights @ weights.T)[rows, columns]
    predicted, labels = scored.predicted(weights), scored.labels
    pairs = []
    closest = np.argsort(-cosine, kind="stable")[:MOST_PAIRS]
    level = 1 - SIGNIFICANT / len(closest)
    for k in closest:
        a, b = int(rows[k]), int(columns[k])
        swapped = ((labels == a) & (predicted == b)) | ((labels == b) & (predicted == a))
        n = int(((labels == a) | (labels == b)).sum())
        confused = int(swapped.sum())
        share = statistics.wilson(confused, n, level) if n else None
        pairs.append(ClassPair(classnames[a], classnames[b], float(cosine[k]), confused, n, share))
    return tuple(pairs), float(np.median(cosine))


def _quoted(text: str) -> str:
    return f"'{shortened(text, MOST_CHARACTERS)}'"


def _counted(n: int, one: str, several: str) -> str:
    return f"{n} {one if n == 1 else several}"


def _of_selection(ensembles: Sequence[Ensembles], n: int, n_own: int) -> list[str]:
    """Compare the selected templates with the dataset's own; only other examples than those of the selection count."""
    first, last = ensembles[0], ensembles[-1]
    gain = last.selected_minus_own
    if gain is None:
        return []
    which = "the selected template" if n == 1 else f"the {n} selected templates"
    own = "the dataset's own template" if n_own == 1 else f"the dataset's own {n_own} templates"
    points = f"{format_difference(gain)} points"
    if last is first:
        why = f"which is optimistic because {first.split} was used to select"
        return [
            f"{which} minus {own}: {points} on {first.split}, {why}; --confirm evaluates on test"
        ]
    verdict = "better" if gain.low is not None and gain.low > 0 else "not measurably better"
    return [f"{which} {'is' if n == 1 else 'are'} {verdict} than {own} on {last.split} ({points})"]


def _suggestions(
    task: AuditTask,
    gains: Sequence[TemplateGain],
    selection: Sequence[Step],
    ensembles: Sequence[Ensembles],
    pairs: Sequence[ClassPair],
    long_prompts: Sequence[LongPrompt],
) -> list[str]:
    """Return what to change, one sentence each; only what the figures support."""
    found = []
    if long_prompts:
        which = _counted(len(long_prompts), "prompt is", "prompts are")
        found.append(
            f"{which} longer than the model's context; shorten the class name or the template, for example of "
            f"{_quoted(long_prompts[0].prompt)}"
        )
    classnames = task.split.classnames
    odd = [name for name in classnames if _IDENTIFIER.fullmatch(name)]
    if odd:
        look = "looks like an identifier" if len(odd) == 1 else "look like identifiers"
        found.append(
            f"{len(odd)} of {len(classnames)} class names {look} ({', '.join(odd[:3])}); give names in words with "
            "--classnames"
        )
    harmful = [g for g in gains if g.gain.value < 0 and g.p_value < SIGNIFICANT]
    found += [
        f"leave out {_quoted(g.template)}: on {task.split_name} the other templates are "
        f"{-100 * g.gain.value:.1f} points better without it"
        for g in harmful
    ]
    if {s.template for s in selection} != set(task.own):
        found += _of_selection(ensembles, len(selection), len(task.own))
    found += [
        f"'{p.first}' and '{p.second}' are confused in {p.confused} of {p.n} examples, {format_interval(p.share)} % "
        f"(cosine {p.cosine:.2f}); rename one of them more specifically with --classnames"
        for p in pairs
        if p.share is not None and p.share.low is not None and p.share.low > OFTEN
    ]
    return found
