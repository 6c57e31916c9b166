"""``cache``: inspect and clean the feature cache."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from clipadapt.core.cli.options import JsonOption
from clipadapt.core.cli.output import example, print_json, say


def build(program: str) -> typer.Typer:
    """Return the commands below ``cache``."""
    app = typer.Typer(no_args_is_help=True, help="Inspect and clean the feature cache.")
    app.command("ls", epilog=example(f"{program} cache ls"))(ls)
    app.command("prune", epilog=example(f"{program} cache prune --max-bytes 1000000000"))(prune)
    app.command("verify", epilog=example(f"{program} cache verify"))(verify)
    return app


def ls(as_json: JsonOption = False) -> None:
    """List the contents of the feature cache by model and layer."""
    from clipadapt.core.features.cache import FeatureCache

    store = FeatureCache()
    spaces = [_plain(space) for space in store.ls()]
    if as_json:
        print_json({"directory": str(store.directory), "spaces": spaces})
        return
    say(f"{store.directory}: {len(spaces)} feature spaces")
    for space in spaces:
        say("  ".join(f"{k}={v}" for k, v in space.items()))


def prune(
    max_bytes: Annotated[
        int | None,
        typer.Option(min=0, help="Keep at most this many bytes; the least recently used go first."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove everything.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove the least recently used features, and what killed processes left, checkpoints included."""
    from clipadapt.core.features.cache import FeatureCache
    from clipadapt.core.runs import leftovers

    pruned = _plain(FeatureCache().prune(max_bytes, everything=everything))
    _print_counts(pruned | {"leftovers": leftovers.prune()}, as_json=as_json)


def verify(as_json: JsonOption = False) -> None:
    """Check every stored byte; damaged entries are removed and later recomputed."""
    from clipadapt.core.features.cache import FeatureCache

    _print_counts(_plain(FeatureCache().verify()), as_json=as_json)


def _print_counts(report: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    counts = {k: len(v) if isinstance(v, list) else v for k, v in report.items()}
    say("  ".join(f"{k}={v}" for k, v in counts.items()))
    for path in report["unreadable"]:
        say(f"cannot read or remove {path}: it is left", err=True)


def _plain(value: Any) -> dict[str, Any]:
    """Return a dataclass as JSON-ready data."""
    raw = dataclasses.asdict(value)
    return json.loads(json.dumps(raw, default=str))  # type: ignore[no-any-return]
