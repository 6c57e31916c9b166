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
from clipadapt.core.cli.options import JsonOption, RunDirArgument, TopOption, check_top
from clipadapt.core.cli.output import print_facts, print_json, print_predictions, say
from clipadapt.core.cli.streams import run_app

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textsent.datasets._explore import Tokenize

SKIP_SETTING = "--set data.on_bad_image=skip"

app = build_app("text", "Adapt text encoders to sentiment and compare the ways to do it.")


class BadRow(StrEnum):
    """What happens to a row without a text or label."""

    error = "error"
    skip = "skip"


@app.command(
    "explore",
    epilog="Example: textsent explore --dataset rotten_tomatoes:offline --model minilm --max-length 64",
)
def explore(
    dataset: Annotated[str, typer.Option("--dataset", metavar="NAME", help="Data set.")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Count the pieces of this model's tokenizer."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Count texts of more pieces; the model's own by default.")
    ] = None,
    on_bad_row: Annotated[
        BadRow, typer.Option(help="Stop at a row without a text or label, or leave it out.")
    ] = BadRow.error,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the picture.", parser=user_path)
    ] = Path("runs/explore"),
    as_json: JsonOption = False,
) -> None:
    """Say what a data set holds: splits, balance, lengths, truncation, duplicates, first texts."""
    from clipadapt.core.api.data import DatasetOptions
    from clipadapt.core.api.registry import DATASETS
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.files.folders import check_writable
    from clipadapt.core.records.schema import slug
    from textsent.datasets import _explore

    if max_length is not None and max_length < 1:
        raise ConfigError(
            f"--max-length must be at least 1 (got {max_length})",
            hint="leave it out for the model's own",
        )
    if max_length is not None and model is None:
        raise ConfigError(
            "--max-length counts the pieces of a model's tokenizer, and no model is named",
            hint="add --model NAME, for example --model minilm",
        )
    check_writable(out)
    resolved = DATASETS.resolve(dataset, "text")
    try:
        found = resolved.provider(resolved.argument, DatasetOptions(on_bad_row.value))
    except DataError as err:
        hint = err.hint.replace(SKIP_SETTING, "--on-bad-row skip")  # this command takes no --set
        raise DataError(err.problem, hint=hint) from None
    progress = on_stderr()
    for note in getattr(found, "notes", ()):
        progress.note(f"warning: {note}")
    tokenize, max_length = (None, None) if model is None else _tokenizer(model, max_length)
    lengths = _explore.text_lengths(found, tokenize)
    facts = _explore.explore(found, tokenize=tokenize, max_length=max_length, lengths=lengths)
    facts["model"] = model
    facts["histogram"] = None
    if facts["duplicates"]["near"] is None:
        progress.note(
            "note: near-duplicates are not searched: it would take about "
            f"{facts['duplicates']['comparisons']:.1e} comparisons; equal texts are counted"
        )
    if find_spec("matplotlib") is None:
        progress.note("no histogram: pip install 'clipadapt[report]' for matplotlib")
    else:
        picture = out / slug(found.name) / "lengths.png"
        title = f"Text lengths of {found.name}"
        _explore.histogram_png(picture, lengths, title=title, max_length=max_length)
        facts["histogram"] = str(picture)
    if as_json:
        print_json(facts)
        return
    say(_explore.render(facts), nl=False)
    if facts["histogram"]:
        say(f"\nhistogram: {facts['histogram']}")


@app.command(
    "inspect", epilog='Example: textsent inspect --model minilm "a fine film" "a dull one"'
)
def inspect(
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Model.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="Texts to follow through it.")
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="Build from the configuration, without weights.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a model is, and what it makes of texts: pieces, ids, mask, shapes, first values."""
    from textsent.models._inspect import describe

    print_facts(describe(model, tuple(texts or ()), random=random), as_json=as_json)


@app.command("predict", epilog='Example: textsent predict RUN_DIR "a fine film" --json')
def predict(
    run_dir: RunDirArgument,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", help="Texts; none, or '-', reads stdin."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Read one text a line.", parser=user_path),
    ] = None,
    top: TopOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Predict label and probability of texts, given as words, as lines of a file, or on stdin."""
    from clipadapt.core.api.data import Inputs
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.runs.inference import load_run

    if texts and file is not None:
        raise ConfigError("texts and --file were both given", hint="give one of them")
    check_top(top)
    if texts == ["-"] or file == Path("-"):  # stdin, as other programs have it
        texts, file = None, None
    given = list(texts) if texts else _lines_of(file)
    if not given or any(not text.strip() for text in given):
        raise DataError(
            "there is an empty text" if given else "there is no text to predict",
            hint="give texts as words, --file FILE, or one a line on stdin",
        )
    run = load_run(run_dir, on_stderr(), track="text")
    found = run.predict(Inputs(given, tuple(str(i) for i in range(len(given)))), top)
    predictions = [{**p, "input": text} for p, text in zip(found, given, strict=True)]
    print_predictions(run, predictions, as_json=as_json)


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
            f"cannot read '{file}': {err.strerror}", hint="name a UTF-8 text file"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"'{file or 'stdin'}' is not UTF-8 text", hint="save it as UTF-8") from None
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def _tokenizer(name: str, max_length: int | None) -> tuple[Tokenize, int]:
    """Return a model's tokenizer and the length at which texts are cut.

    Raises:
        ModelError: If the model cannot be had, or cannot read ``max_length`` pieces.
    """
    from clipadapt.core.api.context import Services
    from clipadapt.core.api.model import ModelOptions
    from clipadapt.core.api.registry import MODELS
    from clipadapt.core.features.cache import FeatureCache

    resolved = MODELS.resolve(name, "text")
    services = Services(FeatureCache(enabled=False))
    encoder: Any = resolved.provider.load(resolved.argument, ModelOptions(), services)
    cut = encoder.max_length if max_length is None else max_length
    encoder.tokenize(["text"], cut)  # refuses what the model cannot read, before the whole is done

    def tokenize(texts: Sequence[str], length: int | None) -> Mapping[str, Sequence[Sequence[int]]]:
        columns = encoder.tokenizer(
            list(texts), truncation=length is not None, max_length=length, verbose=False
        )
        return dict(columns)

    return tokenize, cut
