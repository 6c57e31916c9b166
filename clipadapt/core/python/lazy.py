"""What a package exports, imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def lazy(
    package: str, names: Sequence[str], elsewhere: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Name of the package.
        names: Names that it exports, ``__version__`` included; its module ``_api`` defines them.
        elsewhere: Names that another module defines, with that module.
    """

    def get(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("clipadapt")  # both packages are one distribution
        if name in names:
            module = importlib.import_module(elsewhere.get(name, f"{package}._api"))
            return getattr(module, name)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return get, lambda: sorted(names)
