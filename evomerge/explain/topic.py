"""One thing that can be explained, and its text as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class Topic:
    """One thing that can be explained.

    Attributes:
        name: what is typed after `evomerge explain`.
        kind: `key`, a registry's kind, `option` or `term`.
        text: Markdown: the thing, and when to change it.
        type: the values it takes, with their range, in words; empty where it takes none.
        default: its default as YAML, or `required`; empty where it has none.
        example: a part of a campaign file, as data.
        own: the part of the example that is the thing's own, as YAML in one line.
        source: the paper.
        options: its options, or the keys of its section.
        see: names of related topics.
    """

    name: str
    kind: str
    text: str
    type: str = ""
    default: str = ""
    example: dict[str, Any] | None = None
    own: str = ""
    source: str = ""
    options: tuple[Topic, ...] = ()
    see: tuple[str, ...] = ()

    @property
    def last(self) -> str:
        """The name's last part: `objective` of `fitness.objective`."""
        return self.name.rpartition(".")[2] if self.kind in ("key", "option") else self.name

    @property
    def summary(self) -> str:
        """The first line of the text, with its links and marks taken off."""
        return self.text.partition("\n")[0]

    def markdown(self, level: int = 1) -> str:
        """Write the topic as Markdown, its heading on `level`."""
        blocks = [f"{'#' * level} {self.name}", *self._facts(), self.text]
        if self.options:
            blocks.append("\n".join(self._table()))
        if self.example is not None:
            blocks.append(f"```yaml\n{as_yaml(self.example)}```")
        if self.source:
            blocks.append(f"Source: {self.source.rstrip('.')}.")
        if self.see:
            blocks.append("See also: " + ", ".join(f"`{name}`" for name in self.see) + ".")
        return "\n\n".join(blocks) + "\n"

    def _facts(self) -> Iterator[str]:
        """Yield the line of kind, type and default; nothing for a term."""
        if self.kind != "term":
            facts = [self.kind, self.type, self._default()]
            yield "; ".join(fact for fact in facts if fact)

    def _default(self) -> str:
        if self.default in ("", "required"):
            return self.default
        return f"default `{self.default}`"

    def _table(self) -> Iterator[str]:
        head = "key" if self.kind == "key" else "option"
        yield f"| {head} | values | default | |"
        yield "|---|---|---|---|"
        for option in self.options:
            default = option.default
            shown = default if default in ("", "required") else f"`{default}`"
            text = " ".join(option.text.split())
            cells = [f"`{option.last}`", option.type, shown, text]
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def as_yaml(data: Any) -> str:
    """Write data as YAML, its innermost sections in one line each."""
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=76)
