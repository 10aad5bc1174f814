"""Writes the reference pages from the schemas, the registries and the command line, at build time.

mkdocs calls `on_files`; nothing that it writes is kept, so that no page can fall behind the code.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import griffe
import typer
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click

from evomerge.cli import app
from evomerge.common.plugins import options
from evomerge.config import CampaignConfig
from evomerge.fitness.engines import engines
from evomerge.judging.objectives import objectives
from evomerge.methods import Method, methods
from evomerge.search.optimizers.base import optimizers
from evomerge.search.spaces.paths import path_kinds
from evomerge.trackers.base import trackers

sys.path.insert(0, str(Path(__file__).parent))
import rooms

SOURCE = griffe.load("evomerge")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written here."""
    pages = {
        "campaign": campaign(),
        "command-line": command_line(),
        "methods": merge_methods(),
        "optimizers": plugs("Optimizers", "optimizer", optimizers()),
        "objectives": plugs(
            "Objectives", "objective", {n: o.function for n, o in objectives().items()}
        ),
        "paths": plugs("Paths", "kind of path", path_kinds()),
        "engines": plugs("Engines", "engine", engines()),
        "trackers": plugs("Trackers", "tracker", trackers()),
        "files": rooms.page(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def campaign() -> str:
    """The campaign file, section by section."""
    lines = [
        "# The campaign file",
        "Every key, with its type and its default. An unknown key is an error that names the "
        "nearest valid one. Relative paths start at the folder of the file they stand in.",
    ]
    for place, model in _sections(CampaignConfig, ""):
        lines += [f"## {place or 'The whole file'}", _prose(model)]
        lines += ["| key | type | default | |", "|---|---|---|---|"]
        lines += [_row(model, name, field) for name, field in model.model_fields.items()] + [""]
    return "\n".join(_spaced(lines))


def _sections(model: type[BaseModel], place: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """A section of the file and those within it, each with its place among the keys."""
    yield place, model
    for name, field in model.model_fields.items():
        for nested, listed in _models(field.annotation):
            inner = f"{place}.{name}".lstrip(".") + ("[]" if listed else "")
            if not (place and nested.__name__ in ("SpaceConfig", "OptimizerConfig", "Bounds")):
                yield from _sections(nested, inner)


def _models(annotation: Any, listed: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """The sections that a field's type holds, and whether in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, listed
    inside = listed or typing.get_origin(annotation) is list
    for part in typing.get_args(annotation):
        yield from _models(part, inside)


def _row(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    default = "required"
    if not field.is_required():
        value = field.get_default(call_default_factory=True)
        default = "" if isinstance(value, BaseModel) else _code(_yaml(value))
    return _cells(_code(name), _type(field), default, _docstring(model, name))


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _code(text: str) -> str:
    return f"`{text}`"


def _docstring(model: type[BaseModel], field: str) -> str:
    """The text that stands below a field, in one line."""
    member = SOURCE[model.__module__.partition(".")[2]][model.__name__].members.get(field)
    text = member.docstring.value if member is not None and member.docstring else ""
    return " ".join(text.split())


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False).split("\n...")[0].strip()


def _type(field: FieldInfo) -> str:
    """What a field takes, with the bounds that hold for it."""
    signs = {"Ge": "≥ ", "Gt": "> ", "Le": "≤ ", "Lt": "< ", "MinLen": "at least "}
    bounds = [
        signs[type(bound).__name__] + f"{next(iter(asdict(bound).values()))}"
        for bound in field.metadata
        if type(bound).__name__ in signs
    ]
    return ", ".join([_said(field.annotation), *bounds])


WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    type(None): "`null`",
    Any: "anything",
}


def _said(annotation: Any) -> str:
    """A type in the words of somebody who writes YAML."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _said(parts[0])
    if origin is typing.Literal:
        return " or ".join(_code(str(part)) for part in parts)
    if origin is list:
        return f"list of: {_said(parts[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_said, parts))}]"
    if origin is dict:
        return f"mapping of names to: {_said(parts[1])}"
    if parts:
        return " or ".join(dict.fromkeys(map(_said, parts)))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section"
    return WORDS.get(annotation, str(annotation))


def command_line() -> str:
    """Every command with its options."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="evomerge")
    text = get_docs_for_click(obj=command, ctx=context, name="evomerge", title="The command line")
    return text + (
        "\nExit codes: 0 done, 2 bad input, 3 interrupted but resumable, 1 anything else. "
        "`--json` prints one object on standard output; progress goes to standard error.\n"
    )


def merge_methods() -> str:
    """Every merge method: formula, parameters, source."""
    lines = [
        "# Merge methods",
        "θ₀ is the base, θᵢ the experts, τᵢ = θᵢ − θ₀ their task vectors. Trims are per tensor. "
        "Every parameter can be a gene of a campaign: `genes: {density: [0.2, 1]}`.",
    ]
    for name, method in methods().items():
        lines += [f"## {name}", _prose(method.function), f"Source: {method.reference}."]
        lines += _parameters(method)
    return "\n".join(_spaced(lines))


def _parameters(method: Method) -> Iterator[str]:
    yield "| parameter | default | values | |"
    yield "|---|---|---|---|"
    for p in method.parameters.values():
        values = ", ".join(p.choices) or p.type.__name__
        if p.low is not None:
            values = f"{p.low:g} to {p.high:g}"
        yield _cells(_code(p.name), _code(_yaml(p.default)), values, "per expert" * p.per_expert)
    yield ""


def plugs(title: str, kind: str, found: Mapping[str, Callable[..., Any]]) -> str:
    """Every plug of a registry with its options."""
    lines = [f"# {title}"]
    for name, plug in found.items():
        known, about = options(plug), {}
        lines += [f"## {name}", _prose(plug)]
        if not known:
            lines += [f"This {kind} has no options."]
            continue
        if isinstance(plug, type):
            about = _arguments(plug.__init__)
            lines += [] if about else [_prose(plug.__init__)]
        lines += ["| option | type | default | |", "|---|---|---|---|"]
        for option, parameter in known.items():
            default = "required" if parameter.default is parameter.empty else parameter.default
            shown = default if default == "required" else _code(_yaml(default))
            said = _said(parameter.annotation)
            lines.append(_cells(_code(option), said, shown, about.get(option, "")))
        lines.append("")
    return "\n".join(_spaced(lines))


def _parsed(documented: Any) -> list[griffe.DocstringSection]:
    return griffe.Docstring(inspect.getdoc(documented) or "").parse("google", warnings=False)


def _prose(documented: Any) -> str:
    """A docstring without its lists of arguments and errors."""
    told = [part.value for part in _parsed(documented) if part.kind.value == "text"]
    return "\n\n".join(told)


def _arguments(function: Any) -> dict[str, str]:
    """What a docstring's list of arguments says of each."""
    lists = [part.value for part in _parsed(function) if part.kind.value == "parameters"]
    return {a.name: " ".join(a.description.split()) for found in lists for a in found}


def _spaced(lines: list[str]) -> Iterator[str]:
    """Empty lines between blocks, none within tables."""
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        yield line
        if not (line.startswith("|") and after.startswith("|")):
            yield ""
