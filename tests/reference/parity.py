"""Reference numbers computed by official code: fixtures, their contents, and their tolerances.

``CLIPADAPT_PARITY`` selects another folder of fixtures in the same format; by default the compact copies in
``tests/reference/data`` are used, or the folder ``parity`` of ``CLIPADAPT_SHARED``.
"""

from __future__ import annotations

import json
import os
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

CHECKOUT: Final = Path(__file__).parents[2]
INPUT: Final = "input"
EXPECTED: Final = "expected output"
_DTYPES: Final = {"int64": np.int64, "float64": np.float64, "float32": np.float32}


def parity_dir(name: str) -> Path:
    """Return the folder of a fixture; without one, the test is skipped."""
    given = os.environ.get("CLIPADAPT_PARITY")
    if given:
        directory = Path(given).expanduser() / name
        if not directory.is_dir():
            raise FileNotFoundError(f"no fixture '{name}' in '{given}' (from CLIPADAPT_PARITY)")
        return directory
    shared = Path(os.environ.get("CLIPADAPT_SHARED", CHECKOUT.parent / "shared"))
    for root in (Path(__file__).parent / "data", shared / "parity"):
        if (root / name).is_dir():
            return root / name
    pytest.skip(
        f"no fixture '{name}' in the checkout or in '{shared / 'parity'}' (CLIPADAPT_SHARED)",
        allow_module_level=True,
    )


@cache
def fixture(name: str) -> Fixture:
    """Load a fixture once per process."""
    return Fixture(parity_dir(name))


class _Copies(dict[str, NDArray[Any]]):
    """Mapping that returns copies, so that a test that trains in place does not affect other tests."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        return super().__getitem__(name).copy()


class Fixture:
    """One folder ``spec.json`` + ``tensors.safetensors``; the spec says what every tensor is for.

    Attributes:
        directory: The folder.
        spec: The whole of ``spec.json``.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.spec: dict[str, Any] = json.loads(
            (directory / "spec.json").read_text(encoding="utf-8")
        )
        self._stored: dict[str, NDArray[Any]] = load_file(directory / "tensors.safetensors")
        self._compared: set[str] = set()
        missing = sorted(set(self.spec["tensors"]) - set(self._stored))
        assert not missing, f"{directory}: spec.json lists tensors that are not stored: {missing}"

    @cached_property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """Input tensors: int64, float64 or float32 (stored half-precision tensors are cast)."""
        return self._of_role(INPUT)

    @cached_property
    def expected(self) -> dict[str, NDArray[Any]]:
        """Expected tensors, in the order of the spec; informational tensors are in neither dictionary."""
        return self._of_role(EXPECTED)

    def _of_role(self, role: str) -> dict[str, NDArray[Any]]:
        tensors = self.spec["tensors"]
        return _Copies(
            (
                name,
                self._stored[name].astype(_DTYPES.get(str(self._stored[name].dtype), np.float32)),
            )
            for name in tensors
            if tensors[name]["role"] == role
        )

    def assert_close(self, name: str, got: Any, *, where: NDArray[np.bool_] | None = None) -> None:
        """Assert ``|got - expected| <= atol + rtol * |expected|`` with the tolerances of the spec.

        Args:
            name: An expected tensor.
            got: Tensor, array or number of the same shape; nan passes only where nan is expected.
            where: Entries to compare; all of them if left out.

        Raises:
            AssertionError: With the entry whose excess over its tolerance is largest.
        """
        expected = self.expected[name].astype(np.float64)
        self._compared.add(name)
        if hasattr(got, "detach"):
            got = got.detach().cpu()
            got = got.double().numpy() if got.is_floating_point() else got.numpy()
        got = np.asarray(got).astype(np.float64)
        assert got.shape == expected.shape, f"{name}: shape {got.shape}, expected {expected.shape}"
        tolerance = self.spec["tensors"][name]["tolerance"]
        allowed = tolerance["atol"] + tolerance["rtol"] * np.abs(expected)
        excess = np.abs(got - expected) - allowed
        # A nan on one side only, or an infinity, counts as an infinite difference.
        excess = np.where(np.isfinite(excess), excess, np.inf)
        excess[(got == expected) | (np.isnan(got) & np.isnan(expected))] = -np.inf
        if where is not None:
            excess = np.where(where, excess, -np.inf)
        failed = int((excess > 0).sum())
        if failed:
            worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
            raise AssertionError(
                f"{name}: {failed} of {excess.size} entries are out of tolerance ({tolerance}); the worst "
                f"{[int(i) for i in worst]}: got {got[worst]:.9g}, expected {expected[worst]:.9g}, "
                f"beyond what is allowed by {excess[worst]:.3g}"
            )

    def assert_complete(self) -> None:
        """Assert that every expected tensor was compared; for the last test of a file."""
        left = [name for name in self.expected if name not in self._compared]
        assert not left, f"{self.directory}: expected tensors that no test compared: {left}"
