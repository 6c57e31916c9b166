"""Registry: a file's name is the registered name, and nothing is imported before it is asked for.

A provider package is an entry point (``[project.entry-points."clipadapt.methods"] clip = "clipadapt.methods"``),
so ``clipadapt/methods/coop.py`` is ``clip/coop``. Each module exports one object, ``METHOD``, ``DATASET`` or
``MODEL``. ``CLIPADAPT_PLUGINS=DIR[:DIR]`` adds folders of such files; a file there belongs to the track ``clip``
unless it says ``TRACK = "text"``.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from clipadapt.core.errors import ConfigError, UnknownNameError, unknown

if TYPE_CHECKING:
    from clipadapt.core.protocols import DatasetProvider, Method, ModelProvider

T = TypeVar("T")
PLUGINS_ENV = "CLIPADAPT_PLUGINS"
DEFAULT_TRACK = "clip"


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered file.

    Attributes:
        name: ``track/file``, as in ``clip/coop``.
        path: The file.
        module: Import name, or None for a plug-in file.
    """

    name: str
    path: Path
    module: str | None


@dataclass(frozen=True, slots=True)
class Resolved(Generic[T]):
    """A user's name, split into the registered file and what is meant for it.

    Attributes:
        entry: Registered name, as in ``clip/folder``.
        argument: What stands after the scheme; the whole name where the kind's default file serves it.
        provider: The exported object.
    """

    entry: str
    argument: str
    provider: T


class Registry(Generic[T]):
    """Names of one kind (methods, data sets, models), listed without importing them."""

    def __init__(self, kind: str, group: str, export: str) -> None:
        self.kind = kind
        self.group = group
        self.export = export

    def entries(self) -> dict[str, Entry]:
        """Return every registered file by name; nothing is imported but the provider's package."""
        found = dict(_package_entries(self.group))
        for folder in filter(None, os.environ.get(PLUGINS_ENV, "").split(os.pathsep)):
            for entry in _plugin_entries(Path(folder), self.export):
                if entry.name in found:
                    raise ConfigError(
                        f"the plug-in {entry.path} would replace '{entry.name}' ({found[entry.name].path})",
                        hint="give the plug-in file another name",
                    )
                found[entry.name] = entry
        return found

    def names(self, track: str | None = None) -> tuple[str, ...]:
        """Return the registered names in order, of one track or of all."""
        names = sorted(self.entries())
        return tuple(n for n in names if track is None or n.startswith(f"{track}/"))

    def complete(self, name: str, track: str | None = None) -> str:
        """Return the full name of ``name``, which may lack the track's prefix.

        Raises:
            UnknownNameError: If no file has that name; the message offers the nearest ones.
        """
        entries = self.entries()
        plain = name.strip().replace("-", "_")
        for candidate in (plain, f"{track}/{plain}") if track else (plain,):
            if candidate in entries:
                return candidate
        known = self.names(track) if track and "/" not in name else self.names()
        shown = name if "/" in name or not track else f"{track}/{name}"
        raise unknown(
            self.kind,
            shown,
            known,
            hint=f"list them with '{program(track)} ls {self.kind.replace(' ', '')}s'",
        )

    def get(self, name: str, track: str | None = None) -> T:
        """Import one file and return what it exports.

        Raises:
            UnknownNameError: If no file has that name.
            ConfigError: If the file exports nothing under the kind's name.
        """
        entry = self.entries()[self.complete(name, track)]
        module = importlib.import_module(entry.module) if entry.module else _import_file(entry.path)
        try:
            return cast("T", getattr(module, self.export))
        except AttributeError:
            raise ConfigError(
                f"{entry.path} exports no {self.export}",
                hint=f"end the file with '{self.export} = YourClass'",
            ) from None

    def resolve(self, name: str, track: str) -> Resolved[T]:
        """Split ``scheme:argument`` and return the file that serves it.

        A name whose scheme has no file of its own goes to the kind's default file, whole.

        Raises:
            UnknownNameError: If no file serves the name.
        """
        entries = self.entries()
        scheme, _, argument = name.strip().partition(":")
        own = f"{track}/{scheme.strip().replace('-', '_')}"
        default = _default_of(self.group, track)
        if own in entries and (argument or own != f"{track}/{default}"):
            return Resolved(own, argument, self.get(own))
        if default and f"{track}/{default}" in entries and own not in entries:
            full = f"{track}/{default}"
            return Resolved(full, name.strip(), self.get(full))
        if own in entries:
            raise ConfigError(
                f"'{name}' is the file that serves other {self.kind}s' names, and no name of its own",
                hint=f"write the {self.kind}'s own name",
            )
        known = tuple(n.partition("/")[2] for n in self.names(track))
        raise unknown(
            self.kind,
            name,
            known,
            hint=f"list them with '{program(track)} ls {self.kind.replace(' ', '')}s'",
        )


def program(track: str | None) -> str:
    """Return the command that serves a track, for hints."""
    return "textsent" if track == "text" else "clipadapt"


def track_of(name: str) -> str:
    """Return the track of a full method name: ``clip`` for ``clip/coop``."""
    track, slash, _ = name.partition("/")
    if not slash:
        raise UnknownNameError(f"'{name}' names no track; write clip/{name} or text/{name}")
    return track


@cache
def _package_entries(group: str) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for point in entry_points(group=group):
        spec = importlib.util.find_spec(point.value)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"entry point {group}: '{point.value}' is not an importable package")
        for folder in spec.submodule_search_locations:
            for path in sorted(Path(folder).glob("*.py")):
                if not path.stem.startswith("_"):
                    name = f"{point.name}/{path.stem}"
                    found[name] = Entry(name, path, f"{point.value}.{path.stem}")
    return found


@cache
def _default_of(group: str, track: str) -> str | None:
    """Return the file named by ``DEFAULT`` of the provider's package, without importing its files."""
    for point in entry_points(group=group):
        if point.name == track:
            default: str | None = getattr(importlib.import_module(point.value), "DEFAULT", None)
            return default
    return None


def _plugin_entries(folder: Path, export: str) -> list[Entry]:
    if not folder.is_dir():
        raise ConfigError(
            f"{PLUGINS_ENV} names '{folder}', which is not a folder",
            hint=f"set {PLUGINS_ENV} to folders of .py files, separated by '{os.pathsep}'",
        )
    entries = []
    for path in sorted(folder.glob("*.py")):
        if path.stem.startswith("_") or not path.is_file():
            continue
        names = _assigned(path)
        if export in names:
            track = names.get("TRACK") or DEFAULT_TRACK
            entries.append(Entry(f"{track}/{path.stem}", path, None))
    return entries


def _assigned(path: Path) -> dict[str, str | None]:
    """Return the names a file assigns at its top level, with their text where that is a literal."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as err:
        raise ConfigError(f"the plug-in {path} is not valid Python: {err}") from None
    names: dict[str, str | None] = {}
    for node in tree.body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name):
                value = getattr(node, "value", None)
                text = value.value if isinstance(value, ast.Constant) else None
                names[target.id] = text if isinstance(text, str) else None
    return names


def _import_file(path: Path) -> Any:
    name = f"clipadapt_plugin_{path.stem}_{abs(hash(path.resolve())):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as err:
        del sys.modules[name]
        if isinstance(err, Exception):
            raise ConfigError(
                f"the plug-in {path} cannot be imported: {type(err).__name__}: {err}"
            ) from err
        raise
    return module


METHODS: Registry[type[Method]] = Registry("method", "clipadapt.methods", "METHOD")
DATASETS: Registry[DatasetProvider] = Registry("dataset", "clipadapt.datasets", "DATASET")
MODELS: Registry[ModelProvider] = Registry("model", "clipadapt.models", "MODEL")
