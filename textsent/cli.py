"""Command line of textsent."""

from __future__ import annotations

import sys
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipadapt.core.api.errors import ConfigError, DataError
from clipadapt.core.api.user_input import user_path
from clipadapt.core.cli.app import build_app
from clipadapt.core.cli.options import (
    CalibrateOnOption,
    CoverageOption,
    JsonOption,
    RejectRateOption,
    RunDirArgument,
    SetScoreOption,
    TopOption,
    check_top,
)
from clipadapt.core.cli.output import print_facts, print_json, print_predictions, say
from clipadapt.core.cli.streams import run_app

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clipadapt.core.api.progress import Progress
    from textsent.datasets._explore import Lengths, Tokenize

SKIP_SETTING = "--set data.on_bad_image=skip"

app = build_app(
    "text", "Fine-tune text encoders for sentiment classification and compare the methods."
)


class BadRow(StrEnum):
    """What to do with a row without a text or label."""

    error = "error"
    skip = "skip"


@app.command(
    "explore",
    epilog="Example: textsent explore --dataset rotten_tomatoes:offline --model minilm --max-length 64",
)
def explore(
    dataset: Annotated[str, typer.Option("--dataset", metavar="NAME", help="Dataset.")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Count the tokens of this model's tokenizer."),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Count texts with more tokens than this; the model's limit by default."),
    ] = None,
    on_bad_row: Annotated[
        BadRow, typer.Option(help="Stop at a row without a text or label, or skip it.")
    ] = BadRow.error,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder for the histogram.", parser=user_path),
    ] = Path("runs/explore"),
    as_json: JsonOption = False,
) -> None:
    """Show a dataset: splits, class balance, text lengths, truncation, duplicates and first texts."""
    from clipadapt.core.api.data import DatasetOptions
    from clipadapt.core.api.registry import DATASETS
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.files.folders import check_writable
    from textsent.datasets import _explore, _explore_output

    _check_max_length(max_length, model)
    check_writable(out)
    resolved = DATASETS.resolve(dataset, "text")
    try:
        found = resolved.provider(resolved.argument, DatasetOptions(on_bad_row.value))
    except DataError as err:
        hint = err.hint.replace(SKIP_SETTING, "--on-bad-row skip")  # this command has no --set
        raise DataError(err.problem, hint=hint) from None
    progress = on_stderr()
    for note in getattr(found, "notes", ()):
        progress.note(f"warning: {note}")
    tokenize, max_length = (None, None) if model is None else _tokenizer(model, max_length)
    lengths = _explore.text_lengths(found, tokenize)
    facts = _explore.explore(found, tokenize=tokenize, max_length=max_length, lengths=lengths)
    if facts["duplicates"]["near"] is None:
        progress.note(
            "note: near-duplicates are not searched for: it would take about "
            f"{facts['duplicates']['comparisons']:.1e} comparisons; equal texts are counted"
        )
    picture = _histogram(out, found.name, lengths, max_length, progress)
    facts |= {"model": model, "histogram": picture}
    if as_json:
        print_json(facts)
        return
    say(_explore_output.render(facts), nl=False)
    if picture:
        say(f"\nhistogram: {picture}")


def _check_max_length(max_length: int | None, model: str | None) -> None:
    """Raise a ConfigError for a length that is not positive, or one without a model."""
    if max_length is not None and max_length < 1:
        raise ConfigError(
            f"--max-length must be at least 1 (got {max_length})",
            hint="leave it out to use the model's own",
        )
    if max_length is not None and model is None:
        raise ConfigError(
            "--max-length counts the tokens of a model's tokenizer, but no model is given",
            hint="add --model NAME, for example --model minilm",
        )


def _histogram(
    out: Path, name: str, lengths: Lengths, max_length: int | None, progress: Progress
) -> str | None:
    """Draw the text lengths of a dataset; return the path of the picture, or None without matplotlib."""
    from clipadapt.core.records.schema import slug
    from textsent.datasets._explore_output import histogram_png

    if find_spec("matplotlib") is None:
        progress.note("no histogram: pip install 'clipadapt[report]' for matplotlib")
        return None
    picture = out / slug(name) / "lengths.png"
    histogram_png(picture, lengths, title=f"Text lengths of {name}", max_length=max_length)
    return str(picture)


@app.command(
    "inspect", epilog='Example: textsent inspect --model minilm "a fine film" "a dull one"'
)
def inspect(
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Model.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="Texts to encode.")
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="Build it from the configuration with random weights.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a model, and its tokens, ids, masks, shapes and first values for texts."""
    from textsent.models._inspect import describe

    print_facts(describe(model, tuple(texts or ()), random=random), as_json=as_json)


@app.command("predict", epilog='Example: textsent predict RUN_DIR "a fine film" --json')
def predict(
    run_dir: RunDirArgument,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", help="Texts; reads stdin without any, or with '-'."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Read one text per line.", parser=user_path),
    ] = None,
    top: TopOption = 1,
    coverage: CoverageOption = None,
    set_score: SetScoreOption = "lac",
    reject_rate: RejectRateOption = None,
    calibrate_on: CalibrateOnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict label and probability of texts, given as arguments, as lines of a file, or on stdin."""
    from clipadapt.core.api.data import Inputs
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.runs.inference import load_run
    from clipadapt.core.runs.sets import SetOptions, make_rule

    if texts and file is not None:
        raise ConfigError("texts and --file were both given", hint="give only one of them")
    check_top(top)
    asked = SetOptions(coverage, set_score, reject_rate, calibrate_on)
    if texts == ["-"] or file == Path("-"):  # stdin, as in other programs
        texts, file = None, None
    given = list(texts) if texts else _lines_of(file)
    if not given or any(not text.strip() for text in given):
        raise DataError(
            "one of the texts is empty" if given else "there are no texts to predict",
            hint="give texts as arguments, with --file FILE, or one per line on stdin",
        )
    for text in texts or ():
        if _is_file(text):
            say(
                f"note: '{text}' is read as a text; for the lines of this file: --file {text}",
                err=True,
            )
    run = load_run(run_dir, on_stderr(), track="text")
    rule = make_rule(run, asked) if asked.wanted else None
    more = rule.apply if rule else None
    found = run.predict(Inputs(given, tuple(str(i) for i in range(len(given)))), top, more)
    predictions = [{**p, "input": text} for p, text in zip(found, given, strict=True)]
    print_predictions(run, predictions, as_json=as_json, rule=rule)


def _is_file(text: str) -> bool:
    """Return whether a text is the name of a file."""
    try:
        return "\n" not in text and Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or a null byte
        return False


def main() -> None:
    """Entry point of the console script."""
    run_app(app)


def _lines_of(file: Path | None) -> list[str]:
    """Return the lines of a file, or of stdin.

    Raises:
        DataError: If the file cannot be read or is not UTF-8.
    """
    if file is None and sys.stdin.isatty():
        return []
    try:
        raw = sys.stdin.buffer.read() if file is None else file.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as err:
        raise DataError(
            f"cannot read '{file}': {err.strerror}", hint="give a UTF-8 text file"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"'{file or 'stdin'}' is not UTF-8 text", hint="save it as UTF-8") from None
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def _tokenizer(name: str, max_length: int | None) -> tuple[Tokenize, int]:
    """Return a model's tokenizer and the number of tokens at which texts are truncated.

    Raises:
        ModelError: If the model is not available, or cannot read ``max_length`` tokens.
    """
    from clipadapt.core.api.context import Services
    from clipadapt.core.api.model import ModelOptions
    from clipadapt.core.api.registry import MODELS
    from clipadapt.core.features.cache import FeatureCache

    resolved = MODELS.resolve(name, "text")
    services = Services(FeatureCache(enabled=False))
    encoder: Any = resolved.provider.load(resolved.argument, ModelOptions(), services)
    limit = encoder.max_length if max_length is None else max_length
    encoder.tokenize(
        ["text"], limit
    )  # rejects a limit above the model's before all texts are tokenized

    def tokenize(texts: Sequence[str], length: int | None) -> Mapping[str, Sequence[Sequence[int]]]:
        columns = encoder.tokenizer(
            list(texts), truncation=length is not None, max_length=length, verbose=False
        )
        return dict(columns)

    return tokenize, limit
