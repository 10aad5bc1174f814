"""Plug-ins by name: a room's own modules, other packages' entry points, and `module:Name`.

A room has one `Registry` for each kind of plug-in, and a decorator that adds to it. `evomerge list`
shows what was found; a plug-in's signature is the schema of its options.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pydantic import ConfigDict, ValidationError, create_model

from evomerge.common.errors import InputError
from evomerge.common.wrong_values import what_was_expected

T = TypeVar("T")


@dataclass
class Registry(Generic[T]):
    """The plug-ins of one kind by name.

    Attributes:
        kind: the noun in messages, in the singular: `optimizer`.
        package: every module of it is imported, so that each adds what it defines.
        group: the entry points through which other packages add theirs; None: they cannot.
        accept: `(object, name)` → plug-in, for what an entry point or `module:Name` gives; raises
            TypeError, with the reason, for anything else.
        known: name → plug-in, as far as they were added.
        refused: name → why the entry point of that name cannot be used.
    """

    kind: str
    package: str
    group: str | None = None
    accept: Callable[[Any, str], T] | None = None
    known: dict[str, T] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    _imported: dict[str, T] = field(default_factory=dict)
    _discovered: bool = False

    def add(self, name: str, plug: T) -> T:
        """Register a plug-in and return it.

        Raises:
            ValueError: there is another of that name; names both.
        """
        if self.known.get(name, plug) is not plug:
            both = f"{_origin(self.known[name])} and {_origin(plug)}"
            raise ValueError(f"the {self.kind} {name!r} is defined twice, by {both}")
        self.known[name] = plug
        return plug

    def all(self) -> dict[str, T]:
        """Return every usable plug-in by name, in alphabetical order."""
        self._discover()
        usable = {name: plug for name, plug in self.known.items() if name not in self.refused}
        return dict(sorted(usable.items()))

    def find(self, name: str, where: str) -> T:
        """Return the plug-in called `name`, or import `module:Name`.

        Raises:
            InputError: there is none, or it cannot be used; begins with `where` and names the
                nearest, or all.
        """
        self._discover()
        if name in self.refused:
            raise InputError(f"{where}: {self.refused[name]}")
        if name in self.known or name in self._imported:
            return self.known.get(name) or self._imported[name]
        usable = self.all()
        module, colon, attribute = name.partition(":")
        prefixes = {known.partition(":")[0] for known in usable if ":" in known}
        if self.accept is None or not colon or module in prefixes:
            known = nearest(name, usable)
            topic = close[0] if (close := _close(name, usable)) else self.kind
            raise InputError(
                f"{where}: no {self.kind} is called {name!r}; {known}; "
                f"type: evomerge explain {shlex.quote(topic)}"
            )
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise InputError(f"{where}: {name} cannot be imported ({_reason(error)})") from error
        try:
            self._imported[name] = self.accept(found, name)
        except TypeError as error:
            raise InputError(f"{where}: {name} {error}") from error
        return self._imported[name]

    def _discover(self) -> None:
        """Import the room's modules and then load the group's entry points, once."""
        if self._discovered:
            return
        folder = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(folder.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._discovered = True
        if self.group is None:
            return
        of_name: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=self.group):
            of_name.setdefault(entry.name, []).append(entry)
        built_in = dict(self.known)
        for name, entries in sorted(of_name.items()):
            rivals = [_distribution(entry) for entry in entries]
            if name in built_in:
                rivals.insert(0, f"evomerge's own ({_origin(built_in[name])})")
            if len(rivals) > 1:
                self.refused[name] = (
                    f"the {self.kind} {name!r} is defined twice, by {' and by '.join(rivals)}; "
                    "uninstall or rename one"
                )
            else:
                self._load(entries[0])

    def _load(self, entry: EntryPoint) -> None:
        """Register what an entry point gives, or note why it cannot be used."""
        assert self.accept is not None
        before = dict(self.known)
        try:
            self.add(entry.name, self.accept(entry.load(), entry.name))
        except (Exception, SystemExit) as error:  # another package's code may raise anything
            self.known = before
            self.refused[entry.name] = (
                f"the {self.kind} {entry.name!r} cannot be loaded, {_distribution(entry)}: "
                f"{_reason(error)}"
            )


def subclass_of(base: type, public: str) -> Callable[[Any, str], Any]:
    """`Registry.accept` for classes: subclasses of `base`, which messages call `public`."""

    def accept(found: Any, name: str) -> Any:
        if not (isinstance(found, type) and issubclass(found, base)):
            raise TypeError(f"is no subclass of {public}")
        return found

    return accept


def _origin(plug: Any) -> str:
    """Name the module and the name of a class, a function or a wrapped function."""
    made = getattr(plug, "function", plug)
    return f"{made.__module__}.{made.__qualname__}"


def _distribution(entry: EntryPoint) -> str:
    """Describe an entry point in a message: its name, its value, its package."""
    of = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
    return f"the entry point {entry.name} = {entry.value} of {of}"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name for a misspelt one, or list all."""
    known = sorted(known)
    near = _close(name, known)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"


def _close(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, sorted(known), n=1)


def options(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a function or of a class's constructor."""
    parameters = inspect.signature(function, eval_str=True).parameters
    return {k: p for k, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_options(
    function: Callable[..., Any], values: Mapping[str, Any], where: str, of: str
) -> dict[str, Any]:
    """Convert `values` to keyword arguments of the plug-in `of`, in the annotated types.

    Raises:
        InputError: an unknown option, or a value of the wrong type; names `where` and the option.
    """
    known = options(function)
    fields: dict[str, Any] = {
        name: (p.annotation, ... if p.default is p.empty else p.default)
        for name, p in known.items()
    }
    schema = create_model("Options", __config__=ConfigDict(extra="forbid"), **fields)
    try:
        checked = schema.model_validate(dict(values))
        return {name: getattr(checked, name) for name in known if name in values}
    except ValidationError as error:
        problems = error.errors()
        problem = max(problems, key=lambda found: len(found["loc"]))
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
            raise InputError(
                f"{where}.{name}: unknown option of {of}; {nearest(name, known)}; "
                f"type: evomerge explain {of}"
            ) from None
        way_out = f"type: evomerge explain {of}.{name}"
        if name not in values:
            raise InputError(f"{where}.{name}: required, but not given; {way_out}") from None
        same = [
            found
            for found in problems
            if found["loc"][0] == name and found["input"] == problem["input"]
        ]
        raise InputError(f"{where}.{name}: {what_was_expected(same)}; {way_out}") from None
