"""Write a campaign file with a comment beside its keys, and check that it reads back as meant."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evomerge.common.errors import InputError
from evomerge.config.load import parse_campaign

WIDTH = 100
"""Columns of a line."""
_FLOW = 72
"""Columns up to which a mapping without comments stands on one line."""
_COMMENTS = 38
"""The column, or a later one, after which comments stand beside keys."""


@dataclass(frozen=True)
class Draft:
    """A campaign before it is written.

    Attributes:
        title: the file's first line, without `#`.
        data: the campaign's keys in the file's order.
        why: key path, such as `space.weights.granularity` → the comment beside it.
        unmatched: what another tool's file says and this one cannot, one line each.
    """

    title: str
    data: Mapping[str, Any]
    why: Mapping[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the file's text.

        Raises:
            InputError: the data is no campaign; names the key.
        """
        parse_campaign(self.data, self.title)
        lines = list(_comment(self.title, ""))
        if self.unmatched:
            lines += ["#", "# Without a counterpart here:"]
            lines += [line for text in self.unmatched for line in _comment(text, "", "- ")]
        return "\n".join([*lines, *_lines(self.data, self.why, "", "")]) + "\n"

    def write(self, path: Path) -> None:
        """Write a new file.

        Raises:
            InputError: it is there already, or cannot be written.
        """
        text = self.text()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise InputError(f"{path}: exists; choose another --out") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def campaign_name(text: str) -> str:
    """Return a name that a campaign may have, as near to the text as can be; empty if that is."""
    return re.sub(r"[^\w.-]", "_", text)


def seen_from(folder: Path, spec: str, *places: Path) -> str:
    """Return a path as a campaign file in `folder` names it; hub ids and absolute paths stay.

    Args:
        folder: where the campaign file will lie.
        spec: a path, or a hub id.
        places: folders that a relative path may begin at; the first where it exists counts.
    """
    if Path(spec).is_absolute():
        return spec
    for place in places or (Path.cwd(),):
        path = place / Path(spec).expanduser()
        if path.exists():
            return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return spec


def _lines(data: Mapping[str, Any], why: Mapping[str, str], at: str, indent: str) -> Iterator[str]:
    """Yield the lines of a section: short parts without comments of their own on one line each."""
    for key, value in data.items():
        place = f"{at}{key}"
        inner = any(name.startswith(f"{place}.") for name in why)
        shown, comment = f"{indent}{in_one_line(key)}:", why.get(place, "")
        flow = in_one_line(value)
        is_section = isinstance(value, Mapping) and bool(value)
        deep = is_section and any(isinstance(part, Mapping) for part in value.values())
        if is_section and (inner or len(flow) > _FLOW or (deep and not at)):
            yield from _with_comment(shown, comment, indent)
            yield from _lines(value, why, f"{place}.", f"{indent}  ")
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            yield from _with_comment(shown, comment, indent)
            yield from (f"{indent}  - {in_one_line(one)}" for one in value)
        else:
            yield from _with_comment(f"{shown} {flow}", comment, indent)


def _with_comment(line: str, comment: str, indent: str) -> Iterator[str]:
    """Yield a line with its comment behind it or, where that is too long, above it."""
    if not comment:
        yield line
    elif max(len(line), _COMMENTS) + len(comment) + 4 <= WIDTH:
        yield f"{line:<{_COMMENTS}}  # {comment}"
    else:
        yield from _comment(comment, indent)
        yield line


def _comment(text: str, indent: str, mark: str = "") -> Iterator[str]:
    width = WIDTH - len(indent) - 2
    for line in textwrap.wrap(
        mark + text,
        width,
        subsequent_indent=" " * len(mark),
        break_on_hyphens=False,
        break_long_words=False,
    ):
        yield f"{indent}# {line}"


def in_one_line(value: Any) -> str:
    """Write a value as YAML in one line."""
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")
