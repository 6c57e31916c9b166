"""Command line of clipadapt."""

from __future__ import annotations

import itertools
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipadapt.core.api.errors import ConfigError, DataError
from clipadapt.core.api.user_input import user_path
from clipadapt.core.cli.app import build_app
from clipadapt.core.cli.options import (
    DEFAULT_OUT,
    CalibrateOnOption,
    CoverageOption,
    DatasetsOption,
    JsonOption,
    ModelsOption,
    OutOption,
    RejectRateOption,
    RunDirArgument,
    SetScoreOption,
    SettingOption,
    TopOption,
    check_top,
    given,
    refuse_twice,
)
from clipadapt.core.cli.output import print_facts, print_predictions, print_records, say
from clipadapt.core.cli.run import run_experiments
from clipadapt.core.cli.streams import run_app

if TYPE_CHECKING:
    from clipadapt.core.api.data import SplitName
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.datasets._images import ImageFiles
    from clipadapt.prompts import Audit

app = build_app("clip", "Adapt CLIP to new image tasks and compare methods.")


class BadImage(StrEnum):
    """How to handle an unreadable image."""

    error = "error"
    skip = "skip"


class SplitChoice(StrEnum):
    """The split to evaluate."""

    train = "train"
    val = "val"
    test = "test"


_KEYS = {
    "--model": "model.name",
    "--dataset": "data.name",
    "--split": "evaluation.split",
    "--templates": "data.templates",
    "--classnames": "data.classnames",
    "--limit": "data.limit",
    "--on-bad-image": "data.on_bad_image",
}
"""The settings that options of ``zeroshot`` set."""


@app.command(
    "zeroshot",
    epilog="Example: clipadapt zeroshot --model stitched --dataset folder:PATH --templates 7 --json",
)
def zeroshot(
    context: typer.Context,
    models: ModelsOption,
    datasets: DatasetsOption,
    split: Annotated[
        SplitChoice | None,
        typer.Option(
            help="Split to evaluate; default: test, or all images if they have no train, val and test."
        ),
    ] = None,
    templates: Annotated[
        str, typer.Option(metavar="single|clip|7|80|TEMPLATE|FILE", help="Prompt templates.")
    ] = "single",
    classnames: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Class names: one per line in class order, CLASS<TAB>NAME lines, or YAML or JSON of either.",
        ),
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
    """Evaluate models zero-shot; print the accuracy with its confidence interval."""
    from clipadapt._api import zero_shot_experiment
    from clipadapt.core.experiments import config

    _check_limit(limit)
    refuse_twice(given(context, _KEYS), settings)
    data = {
        "templates": templates,
        "classnames": classnames,
        "limit": limit,
        "on_bad_image": on_bad_image.value,
    }
    own = config.parse_settings(settings or ())
    experiments = []
    for model, dataset in itertools.product(models, datasets):
        options = {"data": {**data, "name": dataset}, "model": {"name": model}}
        experiments.append(zero_shot_experiment(options, own, _name(split)))
    found = run_experiments(experiments, out, as_json=as_json)
    print_records(found, out, as_json=as_json)
    if per_class and not as_json:
        _print_per_class(found, out)


@app.command(
    "predict", epilog="Example: clipadapt predict RUN_DIR photos --top 3 --html sheet.html"
)
def predict(
    run_dir: RunDirArgument,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE|FOLDER...", help="Image files, and folders of images."),
    ],
    top: TopOption = 1,
    coverage: CoverageOption = None,
    set_score: SetScoreOption = "lac",
    reject_rate: RejectRateOption = None,
    calibrate_on: CalibrateOnOption = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a sheet of thumbnails to one HTML file.",
            parser=user_path,
        ),
    ] = None,
    on_bad_image: Annotated[
        BadImage, typer.Option(help="Stop at an unreadable image, or leave it out.")
    ] = BadImage.error,
    as_json: JsonOption = False,
) -> None:
    """Predict the class of images with a calibrated probability, or a set of classes; folders are searched recursively.

    A transductive method predicts all given images together, an online one in the order of their names.
    """
    from clipadapt.core.api.data import Inputs
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.runs.inference import load_run
    from clipadapt.core.runs.sets import SetOptions, make_rule
    from clipadapt.datasets import _images

    check_top(top)
    asked = SetOptions(coverage, set_score, reject_rate, calibrate_on)
    sheet = None if html is None else _sheet_file(html)
    progress = on_stderr()
    for name in images:
        _check_local(name)
    files = _image_files(images, on_bad_image, progress)
    run = load_run(run_dir, progress, track="clip")
    rule = make_rule(run, asked) if asked.wanted else None
    more = rule.apply if rule else None
    found = run.predict(Inputs(files, tuple(map(str, range(len(files))))), top, more)
    predictions = [{**p, "input": name} for p, name in zip(found, files.names, strict=True)]
    if sheet is not None:
        from clipadapt.sheet import write_sheet

        write_sheet(sheet, run.record, predictions, _images.thumbnails(files), rule)
        say(f"sheet: {html}", err=True)
    print_predictions(run, predictions, as_json=as_json, rule=rule)


@app.command(
    "prompts",
    epilog="Example: clipadapt prompts --model stitched --dataset folder:PATH --templates 7 --html prompts.html",
)
def prompts(
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Model.")],
    dataset: Annotated[str, typer.Option("--dataset", metavar="NAME", help="Dataset.")],
    templates: Annotated[
        str,
        typer.Option(
            metavar="single|clip|7|80|TEMPLATE|FILE", help="Templates, beside the dataset's own."
        ),
    ] = "80",
    classnames: Annotated[
        str | None, typer.Option(metavar="FILE", help="Class names, as for zeroshot.")
    ] = None,
    split: Annotated[
        SplitChoice | None,
        typer.Option(help="Split to select on, val or train; default: val, else train."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many images.")] = None,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Evaluate the selected templates on test, once.")
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the selected templates, one per line, for --templates FILE.",
            parser=user_path,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write a page to one HTML file.", parser=user_path
        ),
    ] = None,
    settings: SettingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Audit prompts: the gain of each template, a selection, close class names, prompts that do not fit."""
    from clipadapt import prompts_page
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.files.atomic import write_text
    from clipadapt.core.files.folders import output_file
    from clipadapt.prompts import audit, open_audit

    _check_selection(split)
    _check_limit(limit)
    page = None if html is None else _sheet_file(html)
    chosen = None if write is None else output_file(write, "--write")
    data = {"name": dataset, "templates": templates, "classnames": classnames, "limit": limit}
    progress = on_stderr()
    task = open_audit(model, data, _name(split), settings or (), progress, confirm=confirm)
    found = audit(task, progress)
    if chosen is not None:
        write_text(chosen, "".join(f"{step.template}\n" for step in found.selection))
    if page is not None:
        prompts_page.write_page(page, found)
    _print_audit(found, as_json=as_json)
    for path in filter(None, (write, html)):
        say(f"written: {path}", err=True)


@app.command("inspect", epilog="Example: clipadapt inspect RUN_DIR --json")
def inspect(run_dir: RunDirArgument, as_json: JsonOption = False) -> None:
    """Show a run: the facts of its record, its files and, if the method supports it, the trained parameters."""
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.runs.inference import inspect_run

    facts = inspect_run(run_dir, on_stderr())
    if not as_json:  # one line per metric
        facts["metrics"] = {k: _interval(**m) for k, m in facts["metrics"].items()}
    print_facts(facts, as_json=as_json)


def main() -> None:
    """Entry point of the console script."""
    run_app(app)


def _name(split: SplitChoice | None) -> SplitName | None:
    return None if split is None else split.value


def _print_audit(found: Audit, *, as_json: bool) -> None:
    from clipadapt import prompts_page
    from clipadapt.core.cli.terminal import print_document
    from clipadapt.core.files.atomic import json_text

    if as_json:
        say(json_text(found.as_dict()), nl=False)
    else:
        print_document(lambda form: prompts_page.render(found, form))


def _check_selection(split: SplitChoice | None) -> None:
    if split is SplitChoice.test:
        raise ConfigError(
            "templates are not selected on test: they would look better than they are",
            hint="leave out --split: templates are selected on val, or train, and --confirm evaluates them on test",
        )


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(
            f"--limit must be at least 1 (got {limit})", hint="leave it out for all images"
        )


def _print_per_class(records: list[RunRecord], out: Path) -> None:
    from clipadapt.core.cli.terminal import print_per_class
    from clipadapt.core.records.run_store import RunStore

    store = RunStore(out)
    print_per_class([(r, RunStore.load_predictions(store.run_dir(r), r)) for r in records])


def _check_local(name: str) -> None:
    """Check that a name can be a local file.

    Raises:
        DataError: If it is a URL or ``-`` (stdin).
    """
    if name == "-" and not Path(name).exists():
        raise DataError("predict does not read stdin ('-')", hint="give image files or folders")
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", name) and not Path(name).exists():
        raise DataError(
            f"'{name}' is a URL, and predict only reads local files",
            hint="download the image and give its path",
        )


def _image_files(images: list[str], on_bad_image: BadImage, progress: Progress) -> ImageFiles:
    """Return the images of files and folders, without unreadable ones if they may be skipped.

    Raises:
        DataError: If there is none.
    """
    from collections import Counter

    from clipadapt.datasets import _images
    from clipadapt.datasets._folders import counts_text

    ignored: Counter[str] = Counter()
    files = _images.find_images(images, ignored)
    if ignored:
        progress.note(f"left out: {counts_text(ignored)}")
    if on_bad_image is BadImage.skip:
        keep = _images.readable(files)
        names = [name for name, good in zip(files.names, keep, strict=True) if good]
        if not names:
            raise DataError(f"none of the {len(files)} images can be decoded")
        if len(names) < len(files):
            progress.note(f"left out {len(files) - len(names)} unreadable images")
        files = _images.ImageFiles(files.root, names)
    return files


def _interval(value: float, low: float | None = None, high: float | None = None) -> str:
    return f"{value:.4g}" if low is None else f"{value:.4g} [{low:.4g}, {high:.4g}]"


def _sheet_file(path: Path) -> Path:
    """Return the path of the sheet, checked before any work.

    Raises:
        ClipAdaptError: If it is not the name of an HTML file, or cannot be written.
    """
    from clipadapt.core.files.folders import output_file

    if path.suffix.lower() not in {".html", ".htm"} or path.is_dir():
        raise ConfigError(
            f"--html needs the name of an .html file (got '{path}')", hint="--html sheet.html"
        )
    return output_file(path, "--html")
