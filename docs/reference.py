"""Writes the reference pages from the schemas, the registries and the command line, at build time.

mkdocs calls `on_files`; nothing that it writes is kept, so that no page can fall behind the code.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from evomerge.cli import app
from evomerge.explain import Topic, topics
from evomerge.explain.keys import WHOLE
from evomerge.explain.plugins import plugin_topics
from evomerge.explain.topic import as_yaml
from evomerge.explain.topics import glossary

sys.path.insert(0, str(Path(__file__).parent))
import rooms

METHODS = (
    "θ₀ is the base, θᵢ the experts, τᵢ = θᵢ − θ₀ their task vectors. Trims are per tensor. "
    "Every parameter can be a gene of a campaign: `genes: {density: [0.2, 1]}`."
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written here."""
    pages = {
        "campaign": campaign(),
        "command-line": command_line(),
        "methods": page("methods", "Merge methods", METHODS),
        "optimizers": page("optimizers", "Optimizers"),
        "objectives": page("objectives", "Objectives"),
        "paths": page("paths", "Paths"),
        "engines": page("engines", "Engines"),
        "trackers": page("trackers", "Trackers"),
        "glossary": terms(),
        "files": rooms.page(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def campaign() -> str:
    """The campaign file, section by section, with every key's example."""
    found = [topic for topic in topics() if topic.kind == "key"]
    sections = [topic for topic in found if topic.options]
    sections.sort(key=lambda topic: topic.name != WHOLE)
    lines = [
        "# The campaign file",
        "Every key, with its values and its default. An unknown key is an error that names the "
        "nearest valid one. Relative paths start at the folder of the file they stand in. "
        "`evomerge explain KEY` shows the same in a terminal, and `evomerge explain --json-schema` "
        "gives editors a schema to complete the file by.",
    ]
    for section in sections:
        lines.append(section.markdown(level=2))
        lines += [_example(key) for key in section.options if key.example and not key.options]
    return "\n\n".join(lines)


def _example(key: Topic) -> str:
    """A key's example, folded away."""
    text = textwrap.indent(as_yaml(key.example), "    ")
    return f'??? example "{key.name}"\n\n    ```yaml\n{text}    ```'


def page(kind: str, title: str, about: str = "") -> str:
    """Every plug-in of a kind with its options."""
    found = [t for t in plugin_topics(kind).values() if t.kind != "option"]
    return "\n\n".join([f"# {title}", about, *(topic.markdown(level=2) for topic in found)])


def terms() -> str:
    """The terms of reports, docs and messages."""
    found = [term.markdown(level=2) for term in glossary().values()]
    return "\n\n".join(["# Glossary", "`evomerge explain TERM` shows the same.", *found])


def command_line() -> str:
    """Every command with its options."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="evomerge")
    text = get_docs_for_click(obj=command, ctx=context, name="evomerge", title="The command line")
    return text + (
        "\nExit codes: 0 done, 2 bad input, 3 interrupted but resumable, 1 anything else. "
        "`--json` prints one object on standard output; progress goes to standard error.\n"
    )
