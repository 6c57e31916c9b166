"""Options and arguments that several commands share."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from clipadapt.core.api.errors import ClipAdaptError, ConfigError
from clipadapt.core.api.registry import DATASETS, MODELS, Registry
from clipadapt.core.api.user_input import shown, user_path

if TYPE_CHECKING:
    from clipadapt.core.api.tracks import Track

DEFAULT_OUT: Final = Path("runs")


def _beginning_with(start: str, names: Callable[[str], Iterable[str]], track: str) -> list[str]:
    with contextlib.suppress(ClipAdaptError):  # a plug-in's fault is reported when it is used
        return sorted(name for name in names(track) if name.startswith(start))
    return []


def complete_recipe(context: typer.Context, incomplete: str) -> list[str]:
    """Return the shipped recipes that begin with what was typed, for the shell."""
    from clipadapt.core.experiments.shipped import config_names

    return _beginning_with(incomplete, config_names, track_of(context).name)


def complete_sweep(context: typer.Context, incomplete: str) -> list[str]:
    """Return the shipped sweeps that begin with what was typed, for the shell."""
    from clipadapt.core.experiments.shipped import sweep_names

    return _beginning_with(incomplete, sweep_names, track_of(context).name)


def complete_model(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of models that begin with what was typed, for the shell."""
    return _complete_typed(MODELS, context, incomplete)


def complete_dataset(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of datasets that begin with what was typed, for the shell."""
    return _complete_typed(DATASETS, context, incomplete)


def _complete_typed(kind: Registry[Any], context: typer.Context, incomplete: str) -> list[str]:
    def names(track: str) -> list[str]:
        return kind.typed(kind.names(track), track)

    return _beginning_with(incomplete, names, track_of(context).name)


ConfigsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG...", help="Recipe names or files, merged.", autocompletion=complete_recipe
    ),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, for example data.shots=4."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Model; the setting model.name.",
        autocompletion=complete_model,
    ),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="Dataset; the setting data.name.",
        autocompletion=complete_dataset,
    ),
]
ModelsOption = Annotated[
    list[str],
    typer.Option(
        "--model", metavar="NAME", help="Model; may be repeated.", autocompletion=complete_model
    ),
]
DatasetsOption = Annotated[
    list[str],
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="Dataset; may be repeated.",
        autocompletion=complete_dataset,
    ),
]
ShotsOption = Annotated[
    int | None,
    typer.Option("--shots", help="Training examples per class; the setting data.shots."),
]
SeedsOption = Annotated[
    str | None,
    typer.Option("--seeds", metavar="1,2,3|1-3", help="Seeds, one run each; the setting seeds."),
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out", metavar="DIR", help="Folder of the records.", show_default=True, parser=user_path
    ),
]
RunDirArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_DIR", help="Folder of a run, or hf:ORG/NAME of a pushed one.", parser=user_path
    ),
]
RecordsArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of the records.", parser=user_path)
]
TopOption = Annotated[int, typer.Option("--top", help="Classes to show for each input.")]
CoverageOption = Annotated[
    float | None,
    typer.Option(
        "--coverage",
        metavar="P",
        help="Also give a set of classes that contains the true one with this probability, for example 0.9.",
    ),
]
SetScoreOption = Annotated[
    str,
    typer.Option(
        "--set-score", metavar="lac|aps|raps", help="How sets are made; lac gives the smallest."
    ),
]
RejectRateOption = Annotated[
    float | None,
    typer.Option(
        "--reject-rate",
        metavar="P",
        help="Answer 'none of these' below a confidence that this share of inputs of known classes does not reach.",
    ),
]
CalibrateOnOption = Annotated[
    str | None,
    typer.Option(
        "--calibrate-on",
        metavar="PATH|DATASET",
        help="Labelled examples that were not trained on, to calibrate sets on instead of the run's val split.",
    ),
]
TrackerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker",
        metavar="wandb|tensorboard|mlflow",
        help="Log the runs there, too; may be repeated.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def track_of(context: typer.Context) -> Track:
    """Return the track that a command belongs to."""
    track: Track = context.obj
    return track


def check_top(top: int) -> None:
    """Check ``--top``.

    Raises:
        ConfigError: If it is below 1.
    """
    if top < 1:
        raise ConfigError(
            f"--top must be at least 1 (got {top})", hint="omit it for the best class only"
        )


MOST_SEEDS: Final = 10_000
"""Seeds that a range may have."""


def named_settings(
    model: str | None, dataset: str | None, shots: int | None, seeds: str | None
) -> dict[str, tuple[str, Any]]:
    """Return the settings that have an option of their own and were given: option -> key and value.

    Raises:
        ConfigError: If the seeds are not numbers.
    """
    given = {
        "--model": ("model.name", model),
        "--dataset": ("data.name", dataset),
        "--shots": ("data.shots", shots),
        "--seeds": ("seeds", None if seeds is None else read_seeds(seeds)),
    }
    return {option: (key, value) for option, (key, value) in given.items() if value is not None}


def read_seeds(text: str) -> list[int]:
    """Return the seeds that ``1,2,3`` or ``1-3`` lists.

    Raises:
        ConfigError: If it is not a list of whole numbers and ranges.
    """
    found: list[int] = []
    listed = re.fullmatch(r"\[([^\[\]]*)\]", text.strip())  # as --set seeds=[1,2,3] has them
    for part in (listed[1] if listed else text).split(","):
        match = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + MOST_SEEDS:
            raise ConfigError(
                f"--seeds takes whole numbers such as 1,2,3, or a range such as 1-3 (got {shown(text)})",
                hint="one run is made for each seed: --seeds 3 is one run with seed 3",
            )
        found += range(first, last + 1)
    return found


def given(context: typer.Context, keys: Mapping[str, str]) -> dict[str, str]:
    """Return those of the options that the user gave, of a mapping from options to the keys that they set."""
    name_of = {o: p.name for p in context.command.params for o in p.opts if p.name}
    default = ("DEFAULT", "DEFAULT_MAP")
    sources = {o: context.get_parameter_source(name_of[o]) for o in keys}
    return {o: keys[o] for o, s in sources.items() if s is not None and s.name not in default}


def refuse_twice(options: Mapping[str, str], settings: Sequence[str] | None) -> None:
    """Check that no setting is given by its option and by ``--set``.

    Args:
        options: Options that were given, with the keys that they set.
        settings: What ``--set`` got.

    Raises:
        ConfigError: Naming the option and the key.
    """
    from clipadapt.core.experiments.config import parse_settings
    from clipadapt.core.experiments.dotted import flatten

    keys = flatten(parse_settings(settings or ()))
    for option, key in options.items():
        section = key.partition(".")[0]
        if key in keys or section in keys:
            raise ConfigError(
                f"{option} and --set {key if key in keys else section} set the same value",
                hint=f"give only one of them; {option} is short for --set {key}=VALUE",
            )
