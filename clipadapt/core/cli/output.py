"""What commands print: text for people, or one JSON document."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from clipadapt.core.api.user_input import visible
from clipadapt.core.cli.terminal import print_table

if TYPE_CHECKING:
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.runs.inference import LoadedRun
    from clipadapt.core.runs.sets import SetRule


def example(command: str) -> str:
    """Return the last line of a command's ``--help``."""
    return f"Example: {command}"


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text with escapes in place of control characters, which names, paths and errors may contain."""
    typer.echo(visible(text, lines=True), err=err, nl=nl)


def print_json(document: Any) -> None:
    """Print exactly one JSON document on stdout."""
    say(json.dumps(document, indent=2, allow_nan=False))


def print_facts(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print nested facts as one JSON document, or as indented lines."""
    if as_json:
        print_json(facts)
    else:
        say("\n".join(_fact_lines(facts)))


def _fact_lines(facts: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in facts.items():
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, dict) and item for item in items):
            for item in items:
                if isinstance(value, list) and _is_flat(item):  # one row of a table
                    row = ", ".join(f"{k} {_shown(v)}" for k, v in item.items())
                    lines.append(f"{indent}{key}: {row}")
                else:
                    lines += [f"{indent}{key}:", *_fact_lines(item, f"{indent}  ")]
        elif isinstance(value, int) and not isinstance(value, bool):
            lines.append(f"{indent}{key}: {value:,}")
        else:
            parts = [_shown(item) for item in items if item != {}]
            shown = ("; " if any(" " in part for part in parts) else " ").join(parts)
            lines.append(f"{indent}{key}: {shown or 'none'}")
    return lines


def _is_flat(item: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, dict | list) for value in item.values())


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else visible(str(value))


def print_predictions(
    run: LoadedRun,
    predictions: Sequence[Mapping[str, Any]],
    *,
    as_json: bool,
    rule: SetRule | None = None,
) -> None:
    """Print predictions as one JSON document, or one line each, and what a user should know about them."""
    if as_json:
        print_json({
            "predictions": predictions,
            **({"prediction_sets": rule.facts()} if rule else {}),
        })
    else:
        for p in predictions:
            say(f"{_prediction_line(p)}\t{visible(p['input'])}")
    for sentence in rule.sentences() if rule else ():
        say(f"note: {sentence}", err=True)
    if note := run.note_of(len(predictions)):
        say(f"note: {note}", err=True)
    if run.sigmoid:
        say("note: the probabilities are one sigmoid per class and need not sum to 1", err=True)
    if run.temperature is None:
        say(
            "the probabilities are not calibrated: the run has no temperature fitted on val",
            err=True,
        )


def _prediction_line(p: Mapping[str, Any]) -> str:
    """Return the ranked classes of an input and, if there is one, its set in braces."""
    from clipadapt.core.report.formats import format_set

    line = ", ".join(f"{visible(t['label'])} {t['probability']:.3f}" for t in p["top"])
    if p.get("none_of_these"):
        line = f"none of these ({line})"
    return f"{line}\t{format_set(p['set'])}" if "set" in p else line


def print_records(found: Sequence[RunRecord], out: Path, *, as_json: bool) -> None:
    """Print records as one JSON document, or as a table and their folder."""
    if as_json:
        print_json({"records": [r.model_dump(mode="json") for r in found]})
        return
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.report import tables

    print_table(tables.build_table(found, store=RunStore(out)))
    say(f"\nrecords: {out}", err=True)
