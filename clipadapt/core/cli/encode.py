"""``encode``: fill the feature cache before the runs that read it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.user_input import shown
from clipadapt.core.cli.bench import ExecutorName
from clipadapt.core.cli.options import (
    JsonOption,
    SettingOption,
    complete_dataset,
    complete_model,
    given,
    refuse_twice,
    track_of,
)
from clipadapt.core.cli.output import print_facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.core.api.data import SplitName
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.runs.extraction import Extracted, Extraction, Workers

_KEYS = {
    "--dataset": "data.name",
    "--model": "model.name",
    "--templates": "data.templates",
    "--limit": "data.limit",
}
"""The settings that options of ``encode`` set."""
SPLITS: Final[dict[str, SplitName]] = {"train": "train", "val": "val", "test": "test", "all": "all"}


NamedDataset = Annotated[
    str,
    typer.Option("--dataset", metavar="NAME", help="Dataset.", autocompletion=complete_dataset),
]
NamedModel = Annotated[
    str, typer.Option("--model", metavar="NAME", help="Model.", autocompletion=complete_model)
]
SplitsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--split",
        metavar="train|val|test|all",
        help="Split to encode; may be repeated. Default: every example.",
    ),
]
FeaturesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--features",
        metavar="KEY=VALUE",
        help="Which features, for example layer=projected; may be repeated.",
    ),
]


def encode(
    context: typer.Context,
    dataset: NamedDataset,
    model: NamedModel,
    splits: SplitsOption = None,
    features: FeaturesOption = None,
    templates: Annotated[
        str,
        typer.Option(
            metavar="single|clip|7|80|TEMPLATE|FILE",
            help="Templates of the prompts that are encoded too, if the model reads class names.",
        ),
    ] = "single",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Encode at most this many examples of each split.")
    ] = None,
    executor: Annotated[
        ExecutorName, typer.Option(help="Encode here, or with workers of a Ray cluster.")
    ] = ExecutorName.local,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers with --executor ray, one model each.")
    ] = None,
    settings: SettingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode a dataset into the feature cache; what is stored is skipped, so the same command resumes.

    The runs that follow then read the features and encode nothing. Features depend on the precision: the default is
    that of zero-shot and of the papers' recipes, and --set model.precision=auto is that of the quick recipes.
    """
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.runs.cluster import THREADS
    from clipadapt.core.runs.extraction import extract
    from clipadapt.core.runs.extraction_plan import Asked, plan_extraction

    if workers not in {None, 1} and executor is ExecutorName.local:
        raise ConfigError(
            f"--workers {workers} needs --executor ray; the local executor has one worker",
            hint=f"add --executor ray, or decode with more threads: --set workers={workers}",
        )
    chosen = _splits(splits or ())
    refuse_twice(given(context, _KEYS), settings)
    data = {"name": dataset, "templates": templates, "limit": limit}
    asked = Asked(data, model, chosen, features or (), settings or ())
    progress = on_stderr()
    threads = THREADS if executor is ExecutorName.ray else None
    plan = plan_extraction(asked, track_of(context).name, progress, threads)
    found = extract(plan, _workers(executor, workers, plan, progress), progress)
    print_facts(_facts(plan, found, executor), as_json=as_json)


def _splits(asked: Sequence[str]) -> list[SplitName]:
    """Return the splits of that name.

    Raises:
        ConfigError: If one is unknown.
    """
    found: list[SplitName] = []
    for name in asked:
        if name not in SPLITS:
            raise ConfigError(
                f"--split takes {', '.join(SPLITS)} (got {shown(name)})",
                hint="leave it out for every example",
            )
        found.append(SPLITS[name])
    return list(dict.fromkeys(found))


def _workers(
    name: ExecutorName, workers: int | None, plan: Extraction, progress: Progress
) -> Workers:
    """Return where an extraction is done."""
    if name is ExecutorName.local:
        from clipadapt.core.runs.extraction import Here

        return Here(plan, progress)
    from clipadapt.core.runs.cluster import ray_module
    from clipadapt.core.runs.extraction_ray import Actors

    ray_module()
    return Actors(plan, workers)


def _facts(plan: Extraction, found: Extracted, executor: ExecutorName) -> dict[str, Any]:
    """Return what an extraction did, for people and as JSON."""
    from clipadapt.core.files.folders import cache_dir

    return {
        "dataset": plan.dataset,
        "model": plan.identity.name,
        "dtype": plan.identity.dtype,
        "executor": executor.value,
        "workers": found.workers,
        "examples": sum(part.examples for part in found.parts),
        "encoded": found.encoded,
        "stored_before": sum(part.stored for part in found.parts),
        "repeated_shards": found.lost,
        "seconds": found.seconds,
        "per_second": found.rate,
        "share_of_time": found.shares(),
        "parts": [asdict(part) for part in found.parts],
        "cache": str(cache_dir() / "features"),
    }
