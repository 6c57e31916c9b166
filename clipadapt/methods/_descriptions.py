"""Prompts in words: sentences that describe each class, from a file, or random words in their place.

- ``cupl``: the sentences of a class as they are, "A tench looks like a large green fish."
- ``dclip``: one prompt per description, "tench, which has red eyes".
- ``waffle``: the same random words and characters for every class, "A photo of a tench, which has foot paint."; with a
  file, descriptions of the class are mixed in.
"""

from __future__ import annotations

import hashlib
import json
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field

from clipadapt.core.api.context import random_stream
from clipadapt.core.api.data import Inputs
from clipadapt.core.api.effects import Affects
from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.strict import StrictModel
from clipadapt.core.api.user_input import read_text, shown, user_path
from clipadapt.core.data.templates import prompts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.models import ImageTextModel

Form = Literal["cupl", "dclip", "waffle"]
Combine = Literal["features", "scores", "sum", "max"]
MAX_BYTES: Final = 100 << 20
MAX_SHOWN: Final = 8
ROWS: Final = 1024
"""Images whose scores for every prompt are in memory at once."""
SHAPE: Final = '{"class name": ["a sentence", "another sentence"], ...}'
PICKLES: Final = (".pkl", ".pickle", ".pt", ".pth")
# Common English words that name no class in particular.
_WORDS: Final = """
able above after again along also always answer apart around away back begin below better beyond both bring broad
build call careful carry certain change clear close come common corner count cover cross daily deep differ direct
double down draw drift early east edge empty enough equal even every exact extra fair false fast few field final find
firm first fold follow forward free front full gather general gentle give glad grand great half handle happen hard
heavy help high hold hollow idea inner inside join keep kind large last late lead lean learn level lift light line
linger listen little local long loose lower major make many mark matter measure middle minor mix moment most move
narrow near neat never next noise north number often open order other outer over pair partly pass past pause plain
point press proper pull push quick quiet rather reach ready really repeat rest return rich right rise rough round same
second seem send separate several shape share sharp short side silent simple slow small smooth soft some south space
speak spread stand start steady steep still straight strong such sudden supply sure swift tall tell thick thin third
tight together total touch toward true turn under until upper usual value vary wait warm west while whole wide wild
within wonder work yearly yield young
"""


class PromptsConfig(StrictModel):
    """Prompts in words.

    Attributes:
        form: How prompts are made: ``cupl``, ``dclip`` or ``waffle``, see :mod:`clipadapt.methods._descriptions`.
        descriptions: JSON file that maps each class name to a list of sentences; ``waffle`` needs none.
        combine: ``features`` averages the text features of a class and normalizes the mean; ``scores`` averages the
            cosines of its prompts, ``sum`` adds them up, ``max`` takes the largest. None is ``features`` for ``cupl``,
            ``scores`` for the others.
        with_templates: With ``cupl``, average the prompts of the templates and the sentences together.
        start: Words before the class name; None is "A photo of a " for ``waffle``, else nothing.
        end: Words after a description; None is "." for ``waffle``, else nothing.
        count: With ``waffle``, pairs of random words and random characters. With a file there are as many prompts, a
            half of them descriptions on average.
    """

    form: Form = "cupl"
    descriptions: Annotated[
        Annotated[str, Field(min_length=1)] | None,
        Affects("result", facts=("fit.method.prompts.descriptions",)),
    ] = None
    combine: Combine | None = None
    with_templates: bool = False
    start: str | None = None
    end: str | None = None
    count: Annotated[int, Field(ge=1, le=10_000)] = 15

    @property
    def combined(self) -> Combine:
        """How the prompts of a class are combined."""
        return self.combine or ("features" if self.form == "cupl" else "scores")

    def prompt(self, name: str, description: str) -> str:
        """Return the prompt of one description of a class, as ``dclip`` and ``waffle`` write it."""
        waffle = self.form == "waffle"
        start = self.start if self.start is not None else "A photo of a " if waffle else ""
        end = self.end if self.end is not None else "." if waffle else ""
        return f"{start}{name}, {phrase(description)}{end}"


def phrase(description: str) -> str:
    """Return a description as a relative clause, by the rule of the official code.

    Any description that starts with "a", such as "antique valves", becomes "which is antique valves".
    """
    if description.startswith(("a", "used")):
        return f"which is {description}"
    if description.startswith(("has", "often", "typically", "may", "can")):
        return f"which {description}"
    return f"which has {description}"


def plain(name: str) -> str:
    """Return a class name with spaces instead of underscores, under which a file and a dataset agree."""
    return name.replace("_", " ").strip()


def read(path: str) -> dict[str, tuple[str, ...]]:
    """Return the sentences of each class in a JSON file; names have spaces instead of underscores.

    Raises:
        ConfigError: If it cannot be read, is not JSON, is not such a mapping, or has a class twice.
    """
    hint = f"write a JSON file of the form {SHAPE}"
    file = user_path(path)
    if file.suffix.lower() in PICKLES:
        raise ConfigError(
            f"the descriptions file '{path}' is a pickle, which can run any code when it is read",
            hint=f"save it again with json.dump, in the form {SHAPE}",
        )
    try:
        pairs = json.loads(
            read_text(file, "descriptions file", MAX_BYTES), object_pairs_hook=_Pairs
        )
    except (ValueError, RecursionError) as err:
        raise ConfigError(f"the descriptions file '{path}' is not JSON: {err}", hint=hint) from None
    if not isinstance(pairs, _Pairs) or not pairs:
        raise ConfigError(
            f"the descriptions file '{path}' contains {shown(pairs)}, expected classes with their sentences",
            hint=hint,
        )
    found: dict[str, tuple[str, ...]] = {}
    faults = []
    for name, sentences in pairs:
        if not isinstance(sentences, list):
            faults.append(f"{shown(name)}: {shown(sentences)} is not a list of sentences")
        elif bad := [s for s in sentences if not isinstance(s, str)]:
            faults.append(f"{shown(name)}: {shown(bad[0])} is not a sentence")
        elif plain(name) in found:
            faults.append(f"{shown(name)} occurs twice")
        else:
            found[plain(name)] = tuple(sentences)
    if faults:
        more = f"\n  and {len(faults) - MAX_SHOWN} more" if len(faults) > MAX_SHOWN else ""
        listed = "".join(f"\n  {fault}" for fault in faults[:MAX_SHOWN])
        raise ConfigError(f"the descriptions file '{path}' is not valid:{listed}{more}", hint=hint)
    return found


class _Pairs(list[Any]):
    """The keys and values of a JSON object, which may repeat a key."""


def content_sha256(descriptions: Mapping[str, Sequence[str]]) -> str:
    """Return the sha256 of the sentences of every class, whatever the file's name and layout."""
    text = json.dumps({k: list(v) for k, v in descriptions.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Words:
    """What the prompts of any classes are made from.

    Attributes:
        config: The settings.
        descriptions: Sentences by class, those of the whole file; empty without one.
        random: The random words and characters of ``waffle``, shared by all classes.
        seed: Seed of the descriptions that ``waffle`` mixes in.
    """

    config: PromptsConfig
    descriptions: Mapping[str, tuple[str, ...]]
    random: tuple[str, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, config: PromptsConfig) -> Words:
        """Read the file of descriptions, if there is one.

        Raises:
            ConfigError: If it is not valid, or is missing and the form needs one.
        """
        if config.descriptions is None and config.form != "waffle":
            raise ConfigError(
                f"prompts of the form {config.form} need a file of descriptions",
                hint=f"set method.prompts.descriptions=FILE.json; its form is {SHAPE}",
            )
        return cls(config, {} if config.descriptions is None else read(config.descriptions))

    def check(self, classnames: Sequence[str]) -> None:
        """Check that there are descriptions of every class.

        Raises:
            ConfigError: Naming the classes without any.
        """
        if not self.descriptions:
            return
        file = self.config.descriptions
        missing = [name for name in classnames if plain(name) not in self.descriptions]
        folded = {known.casefold(): known for known in self.descriptions}
        other = [(name, folded.get(plain(name).casefold())) for name in missing]
        spelled = [f"'{known}' for '{name}'" for name, known in other if known]
        if spelled:
            raise ConfigError(
                f"the descriptions file '{file}' has no entry for {_listed(missing, len(classnames))}; names that "
                f"differ only in capitals: {', '.join(spelled[:MAX_SHOWN])}",
                hint="write them as the dataset does, or set data.classnames to the names in the file",
            )
        if missing:
            raise ConfigError(
                f"the descriptions file '{file}' has no entry for {_listed(missing, len(classnames))}",
                hint=f"add them, or set data.classnames to names in the file, such as "
                f"{', '.join(list(self.descriptions)[:MAX_SHOWN])}",
            )
        empty = [name for name in classnames if not any(map(str.strip, self.of_class(name)))]
        if empty and self.config.form == "cupl":
            raise ConfigError(
                f"the descriptions file '{file}' has no sentence for {_listed(empty, len(classnames))}",
                hint="add at least one sentence to each",
            )

    def of_class(self, name: str) -> tuple[str, ...]:
        """Return the descriptions of a class; one that is empty stands for none, as in the official code."""
        return self.descriptions[plain(name)] or ("",)

    def with_random(self, classnames: Sequence[str], ctx: RunContext) -> Words:
        """Return the same with random words, drawn from the seed and as long as the class names."""
        if self.config.form != "waffle":
            return self
        n = self._pairs
        drawn = random_texts([plain(c) for c in classnames], n, ctx.rng("zero_shot.random"))
        drawn = [str(text) for text in ctx.initial("random", np.array(drawn))]
        return Words(self.config, self.descriptions, tuple(drawn), ctx.seed)

    @property
    def _pairs(self) -> int:
        """Pairs of random words and random characters."""
        return max(int(2 / 3 * self.config.count), 1) if self.descriptions else self.config.count

    def prompts(
        self, classnames: Sequence[str], templates: tuple[str, ...], ctx: RunContext | None = None
    ) -> list[list[str]]:
        """Return the prompts of each class.

        Args:
            classnames: ``C`` class names.
            templates: The templates of the task, for ``with_templates``.
            ctx: Context of a fit; None for the classes of a later evaluation.

        Raises:
            ConfigError: If a class has no descriptions.
        """
        self.check(classnames)
        return [self._of_class(name, templates, ctx) for name in classnames]

    def _of_class(self, name: str, templates: tuple[str, ...], ctx: RunContext | None) -> list[str]:
        if self.config.form == "cupl":
            own = prompts_of((name,), templates) if self.config.with_templates else []
            return [*own, *self.of_class(name)]
        if self.config.form == "dclip":
            texts: Sequence[str] = self.of_class(name)
        elif self.descriptions:
            mixed = np.array(self._mixed(name))
            texts = [str(t) for t in (ctx.initial(f"mixed.{name}", mixed) if ctx else mixed)]
        else:
            texts = self.random
        return [self.config.prompt(plain(name), text) for text in texts]

    def _mixed(self, name: str) -> list[str]:
        """Return a random three quarters of the random texts and as many descriptions of a class."""
        rng = random_stream(self.seed, f"zero_shot.mixed.{plain(name)}")
        own = self.of_class(name)
        pool = [*self.random, *(own[i] for i in rng.integers(len(own), size=2 * self._pairs))]
        return [pool[i] for i in rng.choice(len(pool), size=3 * self._pairs, replace=False)]

    def facts(self) -> dict[str, Any]:
        """Return all of it as plain data; :meth:`from_facts` reads it."""
        return {
            "config": self.config.model_dump(mode="json"),
            "descriptions": {name: list(texts) for name, texts in self.descriptions.items()},
            "random": list(self.random),
            "seed": self.seed,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Words:
        """Return what :meth:`facts` wrote."""
        texts = {name: tuple(found) for name, found in facts["descriptions"].items()}
        config = PromptsConfig.model_validate(facts["config"])
        return cls(config, texts, tuple(facts["random"]), facts["seed"])


def _listed(names: Sequence[str], n: int) -> str:
    more = ", ..." if len(names) > MAX_SHOWN else ""
    return f"{len(names)} of {n} classes: {', '.join(map(shown, names[:MAX_SHOWN]))}{more}"


def random_texts(classnames: Sequence[str], n: int, rng: np.random.Generator) -> list[str]:
    """Return ``n`` pairs of random words and random characters that look like the class names.

    A text has as many words as a class name on average. Words are cut to the average length of the words in class
    names; groups of characters are about as long as their longest words.
    """
    split = [name.split(" ") for name in classnames]
    n_words = max(round(float(np.mean([len(words) for words in split]))), 1)
    length = max(round(float(np.mean([np.mean([len(w) for w in ws]) for ws in split]))), 1)
    longest = int(np.ceil(np.mean([max(len(w) for w in words) for words in split])))
    group = longest // n_words + 1
    words, letters = [word[:length] for word in _WORDS.split()], list(string.ascii_lowercase)
    found = []
    for _ in range(n):
        found.append(" ".join(rng.choice(words, size=n_words)))
        found.append(", ".join("".join(rng.choice(letters, size=group)) for _ in range(n_words)))
    return found


def class_weights(
    model: ImageTextModel, prompts: Sequence[Sequence[str]], combine: Combine
) -> NDArray[np.float32]:
    """Return the weights of a classifier for the prompts of each class.

    Args:
        model: Dual encoder of joint width ``D``.
        prompts: The prompts of ``C`` classes, ``P`` in all.
        combine: How the prompts of a class are combined.

    Returns:
        Shape ``(C, D)``, for ``max`` ``(P, D)``.
    """
    texts = [text for own in prompts for text in own]
    ids = tuple(map(str, range(len(texts))))
    features = model.encode(Inputs(texts, ids), "text")  # (P, D), unit norm
    if combine == "max":
        return np.ascontiguousarray(features, dtype=np.float32)
    counts = [len(own) for own in prompts]
    weights = np.add.reduceat(features, starts_of(counts), axis=0, dtype=np.float64)  # (C, D)
    if combine != "sum":
        weights /= np.array(counts)[:, None]
    if combine == "features":
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return np.ascontiguousarray(weights, dtype=np.float32)


def starts_of(counts: Sequence[int]) -> NDArray[np.int64]:
    """Return the index of the first prompt of each class."""
    return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)


def rows_of(counts: Sequence[int]) -> NDArray[np.int64]:
    """Return the indices of the prompts of each class, shape ``(C, max(counts))``; the last one fills the row."""
    last = np.array(counts, dtype=np.int64)[:, None] - 1
    return starts_of(counts)[:, None] + np.minimum(np.arange(max(counts)), last)
