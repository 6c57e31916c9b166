"""Registry: the name of a file is the registered name, and a file is imported only when it is used.

A provider package is an entry point (``[project.entry-points."clipadapt.methods"] clip = "clipadapt.methods"``),
so ``clipadapt/methods/coop.py`` is ``clip/coop``. Each module exports one object, ``METHOD``, ``DATASET`` or
``MODEL``. ``CLIPADAPT_PLUGINS=DIR[:DIR]`` adds folders of such files; a file there belongs to the default track unless
it assigns another one, as in ``TRACK = "text"``.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from clipadapt.core.api.errors import ConfigError, UnknownNameError, unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from clipadapt.core.api.data import DatasetProvider
    from clipadapt.core.api.method import Method
    from clipadapt.core.api.model import ModelProvider
    from clipadapt.core.api.tracks import Track

T = TypeVar("T")
PLUGINS_ENV = "CLIPADAPT_PLUGINS"
DEFAULT_TRACK = "clip"
EXPORTS = ("METHOD", "DATASET", "MODEL")
MAX_PLUGIN_BYTES = 10 << 20
_COMPUTED: Any = object()  # stands for a value that is not a literal


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
    """A name as typed by a user, split into the registered file and its argument.

    Attributes:
        entry: Registered name, as in ``clip/folder``.
        argument: The part after the scheme, or the whole name if the kind's default file serves it.
        provider: The exported object.
    """

    entry: str
    argument: str
    provider: T


class Registry(Generic[T]):
    """The registered names of one kind (methods, datasets, models), listed without importing them."""

    def __init__(self, kind: str, group: str, export: str, has: tuple[str, ...]) -> None:
        self.kind = kind
        self.group = group
        self.export = export
        self.has = has  # attributes that the exported object must have

    def entries(self) -> dict[str, Entry]:
        """Return every registered file by name; only the providers' packages are imported.

        Raises:
            ConfigError: If a plug-in is not valid; the message names every such file.
        """
        found, faults = self.survey()
        refuse_plugins(faults)
        return found

    def survey(self) -> tuple[dict[str, Entry], list[str]]:
        """Return the valid files by name, and what is wrong with each plug-in that is not valid."""
        found = dict(_package_entries(self.group))
        faults: list[str] = []
        for folder in filter(None, os.environ.get(PLUGINS_ENV, "").split(os.pathsep)):
            for entry in _plugin_entries(folder, self.export, faults):
                if entry.name in found:
                    faults.append(
                        f"the plug-in {entry.path} would replace '{entry.name}' ({found[entry.name].path})"
                    )
                else:
                    found[entry.name] = entry
        return found, faults

    def names(self, track: str | None = None) -> tuple[str, ...]:
        """Return the registered names in order, of one track or of all."""
        names = sorted(self.entries())
        return tuple(n for n in names if track is None or n.startswith(f"{track}/"))

    def typed(self, names: Iterable[str], track: str) -> list[str]:
        """Return the names of one track as a user types them, in order.

        They have no track, and the default file is replaced by the names it serves (``DEFAULT_NAMES`` of its package).
        """
        own = {name.partition("/")[2] for name in names if name.startswith(f"{track}/")}
        default = _stated_by(self.group, track, "DEFAULT")
        served = _stated_by(self.group, track, "DEFAULT_NAMES") or ()
        return sorted({*own, *served} - ({default} if served else set()))

    def default(self, track: str) -> str | None:
        """Return the file that serves the names without a file of their own, None if there is none."""
        found: str | None = _stated_by(self.group, track, "DEFAULT")
        return found

    def served(self, track: str) -> dict[str, tuple[str, str, str]]:
        """Return a sentence, the source and the needs of each name that the default file serves, for lists."""
        listed = _stated_by(self.group, track, "served")
        return dict(listed()) if listed else {}

    def complete(self, name: str, track: str | None = None) -> str:
        """Return the full name of ``name``, which may omit the track's prefix.

        Raises:
            UnknownNameError: If no file has that name; the message lists the nearest ones.
        """
        entries = self.entries()
        plain = name.strip().replace("-", "_")
        for candidate in (plain, f"{track}/{plain}") if track else (plain,):
            if candidate in entries:
                return candidate
        known = self.names(track) if track and "/" not in name else self.names()
        shown = name if "/" in name or not track else f"{track}/{name}"
        raise self._unknown(shown, known, track)

    def get(self, name: str, track: str | None = None) -> T:
        """Import one file and return what it exports.

        Raises:
            UnknownNameError: If no file has that name.
            ConfigError: If the file cannot be imported, or does not export a valid object.
        """
        entry = self.entries()[self.complete(name, track)]
        module = importlib.import_module(entry.module) if entry.module else _import_file(entry.path)
        found = getattr(module, self.export, None)
        lacks = [name for name in self.has if not hasattr(found, name)]
        config = getattr(found, "Config", None)
        if self.kind == "method" and not lacks and not _is_config(config):
            lacks = ["a Config that is a MethodConfig"]
        if found is None or lacks:
            what = "nothing" if found is None else repr(found)
            raise ConfigError(
                f"{entry.path}: {self.export} is {what[:100]}, without {', '.join(lacks)}",
                hint=f"end the file with '{self.export} = ...', as CONTRIBUTING.md shows",
            )
        return cast("T", found)

    def resolve(self, name: str, track: str) -> Resolved[T]:
        """Split ``scheme:argument`` and return the file that serves it.

        A name whose scheme has no file is passed unchanged to the default file of the kind.

        Raises:
            UnknownNameError: If no file serves the name.
        """
        entries = self.entries()
        scheme, _, argument = name.strip().partition(":")
        own = f"{track}/{scheme.strip().replace('-', '_')}"
        default: str | None = _stated_by(self.group, track, "DEFAULT")
        if own in entries and (argument or own != f"{track}/{default}"):
            return Resolved(own, argument, self.get(own))
        if default and f"{track}/{default}" in entries and own not in entries:
            full = f"{track}/{default}"
            return Resolved(full, name.strip(), self.get(full))
        if own in entries:
            raise ConfigError(
                f"'{name}' is the file that serves the names of other {self.kind}s, not the name of a {self.kind}",
                hint=f"write the name of the {self.kind}",
            )
        known = tuple(n.partition("/")[2] for n in self.names(track))
        raise self._unknown(name, known, track)

    def elsewhere(self, name: str, track: str) -> str:
        """Return which command has a name that is unknown to a track, for hints; "" if none has it."""
        scheme = name.partition(":")[0].strip().rpartition("/")[2].replace("-", "_")
        found = (t for t in tracks() if t != track and f"{t}/{scheme}" in self.entries())
        other = next(found, None)
        return f"'{scheme}' is a {self.kind} of {program(other)}" if other else ""

    def _unknown(self, name: str, known: Sequence[str], track: str | None) -> UnknownNameError:
        from clipadapt.core.api.user_input import user_path

        hint = f"list them with '{program(track)} ls {self.kind}s'"
        if os.sep in name and user_path(name).exists():
            hint = f"write what it is before the path: one of these names, then :{name}"
        if other := self.elsewhere(name, track or DEFAULT_TRACK):
            hint = f"{other}; {hint}"
        return unknown(self.kind, name, known, hint=hint)


@cache
def tracks() -> Mapping[str, Track]:
    """Return the registered tracks by name."""
    found: dict[str, Track] = {}
    for point in entry_points(group="clipadapt.methods"):
        track: Track | None = getattr(importlib.import_module(point.value), "TRACK", None)
        if track is not None:  # a package may add methods to the track of another one
            found.setdefault(point.name, track)
    return found


def template_sets() -> Mapping[str, tuple[str, ...]]:
    """Return the sets of prompt templates of all tracks by name."""
    return {name: t for track in tracks().values() for name, t in track.template_sets.items()}


def dataset_key(name: str, track: str) -> str:
    """Return the name of a dataset without its argument, spelled as its file: ``imagenet_v2`` for ``imagenet-v2:DIR``.

    Two names of the same dataset, which the provider's package lists in ``ALIASES``, have the same key. A file that the
    package lists in ``COLLECTIONS`` serves several datasets: the key of ``coop:dtd:DIR`` is ``dtd``.
    """
    scheme, _, rest = name.strip().partition(":")
    if scheme in (_stated_by(DATASETS.group, track, "COLLECTIONS") or ()):
        scheme = rest.partition(":")[0].rpartition("/")[2]
    scheme = scheme.strip().replace("-", "_")
    aliases = _stated_by(DATASETS.group, track, "ALIASES") or {}
    known = {_plain(other): key for other, key in aliases.items()}
    return str(known.get(_plain(scheme), scheme))


def dataset_keys(track: str) -> list[str]:
    """Return the key of every known dataset of a track, in order; see :func:`dataset_key`."""
    collections = set(_stated_by(DATASETS.group, track, "COLLECTIONS") or ())
    names = set(DATASETS.typed(DATASETS.names(track), track)) - collections
    aliases = _stated_by(DATASETS.group, track, "ALIASES") or {}
    return sorted({*(dataset_key(name, track) for name in names), *aliases.values()})


def _plain(name: str) -> str:
    """Return a name in lower case without marks."""
    return "".join(filter(str.isalnum, name.casefold()))


def program(track: str | None) -> str:
    """Return the name of a track's command, for hints."""
    return tracks()[track or DEFAULT_TRACK].program


def track_of(name: str) -> str:
    """Return the track of a full method name: ``clip`` for ``clip/coop``."""
    track, slash, _ = name.partition("/")
    if not slash:
        raise UnknownNameError(
            f"'{name}' has no track; write {' or '.join(f'{t}/{name}' for t in tracks())}"
        )
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
def _stated_by(group: str, track: str, name: str) -> Any:
    """Return what the provider's package assigns to a name, without importing its files; None if it does not."""
    for point in entry_points(group=group):
        if point.name == track:
            return getattr(importlib.import_module(point.value), name, None)
    return None


def refuse_plugins(faults: Sequence[str]) -> None:
    """Raise if plug-ins are not valid.

    Raises:
        ConfigError: With what is wrong with each.
    """
    if faults:
        raise ConfigError(
            "\n  ".join(faults),
            hint=f"fix it, or move it out of the folder that {PLUGINS_ENV} names",
        )


def _plugin_entries(folder: str, export: str, faults: list[str]) -> list[Entry]:
    """Return the valid plug-ins of one kind in a folder; what is wrong with others is added to ``faults``."""
    from clipadapt.core.api.user_input import user_path

    try:
        paths = sorted(p for p in user_path(folder).iterdir() if p.suffix == ".py")
    except (OSError, ConfigError) as err:
        why = err.problem if isinstance(err, ConfigError) else err.strerror
        what = "cannot be read" if isinstance(err, PermissionError) else "is not a folder"
        faults.append(
            f"{PLUGINS_ENV} names '{folder}', which {what} ({why}); "
            f"it must list folders of .py files, separated by '{os.pathsep}'"
        )
        return []
    entries = []
    for path in paths:
        if path.stem.startswith("_") or path.is_dir():
            continue
        try:
            names = _assigned(path)
            track = _checked_track(path, names)
        except ConfigError as err:
            faults.append(err.problem)
            continue
        if export in names:
            entries.append(Entry(f"{track}/{path.stem}", path, None))
    return entries


def _checked_track(path: Path, names: Mapping[str, Any]) -> str:
    """Return the track of a plug-in.

    Raises:
        ConfigError: If the file is not a valid plug-in; it is not imported for this check.
    """
    track = names.get("TRACK", DEFAULT_TRACK)
    if not path.stem.isidentifier():
        raise ConfigError(f"the plug-in {path} must have a name of letters, digits and '_'")
    if track not in tracks():
        raise ConfigError(
            f"the plug-in {path}: TRACK is {track!r}; accepted: {', '.join(tracks())}"
        )
    exported = [name for name in EXPORTS if name in names]
    if not exported:
        raise ConfigError(
            f"the plug-in {path} assigns none of {', '.join(EXPORTS)}; "
            "a file that other files import must have a name that begins with '_'"
        )
    for name in exported:
        if names[name] is not _COMPUTED:
            raise ConfigError(
                f"the plug-in {path}: {name} is {names[name]!r}, not a class or function"
            )
    return str(track)


def _assigned(path: Path) -> dict[str, Any]:
    """Return the names that a file defines at its top level, with the values of literals."""
    from clipadapt.core.api.user_input import read_text

    try:
        tree = ast.parse(read_text(path, "plug-in", MAX_PLUGIN_BYTES))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
        raise ConfigError(
            f"the plug-in {path} is not valid Python: {err or type(err).__name__}"
        ) from None
    names: dict[str, Any] = {}
    for node in tree.body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names[node.name] = _COMPUTED
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name: _COMPUTED for alias in node.names}
        for target in targets:
            if isinstance(target, ast.Name):
                value = getattr(node, "value", None)
                names[target.id] = value.value if isinstance(value, ast.Constant) else _COMPUTED
    return names


def _is_config(config: Any) -> bool:
    from clipadapt.core.api.method import MethodConfig

    return isinstance(config, type) and issubclass(config, MethodConfig)


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
        # What a plug-in prints must not end up in the output of a command.
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except BaseException as err:
        del sys.modules[name]
        if isinstance(err, KeyboardInterrupt):
            raise
        # SystemExit included: importing a file must not end the program.
        raise ConfigError(
            f"the plug-in {path} cannot be imported: {type(err).__name__}: {err}",
            hint="run with --debug to see where",
        ) from err
    return module


METHODS: Registry[type[Method]] = Registry(
    "method", "clipadapt.methods", "METHOD", ("Config", "version", "requires", "fit", "load")
)
DATASETS: Registry[DatasetProvider] = Registry(
    "dataset", "clipadapt.datasets", "DATASET", ("__call__",)
)
MODELS: Registry[ModelProvider] = Registry(
    "model", "clipadapt.models", "MODEL", ("identify", "load")
)
