"""How plugs are found: every file of a folder is imported, and a signature is a schema."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError, create_model

from evomerge.common.errors import InputError

T = TypeVar("T")


@cache
def import_all(package: str) -> None:
    """Import every module of a package, once, so that each registers what it defines."""
    folder = importlib.import_module(package)
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{package}.{module.name}")


def enter(known: dict[str, T], name: str, plug: T, kind: str) -> T:
    """Register a plug; `kind` says in the plural what it is.

    Raises:
        ValueError: there is one of that name already.
    """
    if name in known:
        raise ValueError(f"two {kind} are called {name!r}")
    known[name] = plug
    return plug


def registered(known: Mapping[str, T], package: str) -> dict[str, T]:
    """Every plug that the modules of `package` register in `known`, in alphabetical order."""
    import_all(package)
    return dict(sorted(known.items()))


def find(known: Mapping[str, T], name: str, kind: str, where: str) -> T:
    """The entry called `name`.

    Raises:
        InputError: there is none; begins with `where` and names the nearest, or all.
    """
    if name not in known:
        raise InputError(f"{where}: no {kind} is called {name!r}; {nearest(name, known)}")
    return known[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """The way out of a misspelt name: the nearest known one, or the list of all."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"


def options(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function or of a class's constructor."""
    parameters = inspect.signature(function, eval_str=True).parameters
    return {k: p for k, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_options(
    function: Callable[..., Any], values: Mapping[str, Any], where: str, of: str
) -> dict[str, Any]:
    """`values` as keyword arguments of what is called `of`, in the annotated types, defaults left
    out.

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
        problem = max(error.errors(), key=lambda found: len(found["loc"]))
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
            raise InputError(
                f"{where}.{name}: unknown option of {of}; {nearest(name, known)}"
            ) from None
        if name not in values:
            raise InputError(f"{where}.{name}: required, but not given") from None
        reason = problem["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}.{name}: {reason} (found {values[name]!r})") from None
