"""Command line of clipadapt."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from clipadapt.core.cli import (
    DEFAULT_OUT,
    JsonOption,
    OutOption,
    SettingOption,
    build_app,
    print_records,
    run_app,
)
from clipadapt.core.errors import ConfigError

app = build_app("clip", "clipadapt", "Adapt CLIP to new image tasks and compare the ways to do it.")


class BadImage(StrEnum):
    """What to do with an image that cannot be read."""

    error = "error"
    skip = "skip"


class SplitChoice(StrEnum):
    """Which split is evaluated."""

    train = "train"
    val = "val"
    test = "test"


@app.command(
    "zeroshot",
    epilog="Example: clipadapt zeroshot --model stitched --dataset folder:PATH --templates 7 --json",
)
def zeroshot(
    models: Annotated[
        list[str], typer.Option("--model", metavar="NAME", help="Model; may be repeated.")
    ],
    datasets: Annotated[
        list[str], typer.Option("--dataset", metavar="NAME", help="Data set; may be repeated.")
    ],
    split: Annotated[SplitChoice, typer.Option(help="Split to evaluate.")] = SplitChoice.test,
    templates: Annotated[
        str, typer.Option(metavar="single|7|80|FILE", help="Prompt templates.")
    ] = "single",
    classnames: Annotated[
        str | None, typer.Option(metavar="FILE", help="Class names, one a line in class order.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Evaluate on at most this many images.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Print recall per class.")] = False,
    on_bad_image: Annotated[
        BadImage, typer.Option(help="Stop at an unreadable image, or skip and count it.")
    ] = BadImage.error,
    settings: SettingOption = None,
    out: OutOption = DEFAULT_OUT,
    as_json: JsonOption = False,
) -> None:
    """Evaluate models zero-shot: class names in, accuracy with its interval out."""
    from clipadapt.core import config, runner
    from clipadapt.core.progress import on_stderr

    if limit is not None and limit < 1:
        raise ConfigError(
            f"--limit must be at least 1 (got {limit})", hint="leave it out for all images"
        )
    own = config.parse_settings(settings or ())
    experiments = []
    for model in models:
        for dataset in datasets:
            options = {
                "data": {
                    "name": dataset,
                    "templates": templates,
                    "classnames": classnames,
                    "limit": limit,
                    "on_bad_image": on_bad_image.value,
                },
                "model": {"name": model},
                # Nothing but the evaluated split is looked at.
                "evaluation": {"split": split.value, "calibrate": False, "leakage": "off"},
                "method": {"name": "clip/zero_shot"},
                "seeds": [1],
            }
            fragments = [("zero_shot", options), ("--set", own)]
            experiments.append(config.build(fragments, source="zeroshot", track="clip"))
    found = runner.run(experiments, out, on_stderr())
    print_records(found, out, as_json=as_json)
    if per_class and not as_json:
        from clipadapt.core import tables

        for record in found:
            typer.echo(f"\n{tables.render_per_class(record)}", nl=False)


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
