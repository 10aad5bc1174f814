"""`evomerge explain`: a key of the campaign file, a plug-in, an option or a term, in words."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from evomerge.cli.shared import app, exit_codes, hint, stdout
from evomerge.common.errors import InputError


@app.command()
def explain(
    topic: Annotated[
        str | None,
        typer.Argument(
            metavar="TOPIC",
            help="fitness.objective, ties, m2n2.attraction, baseline …",
            show_default="what there is",
        ),
    ] = None,
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="The schema of campaign files, for editors.")
    ] = False,
) -> None:
    """Explain a key of the campaign file, a method, an optimizer, an option or a term."""
    from evomerge import explain as texts

    with exit_codes():
        if json_schema:
            if topic is not None:
                raise InputError("explain --json-schema: it is of the whole file; give no topic")
            typer.echo(json.dumps(texts.json_schema(), indent=2, ensure_ascii=False))
        elif topic is None:
            _overview()
        else:
            _show(topic)


def _show(asked: str) -> None:
    """Print the text of every topic that is called so."""
    from rich.markdown import Markdown

    from evomerge.explain import find_topics

    found = find_topics(asked)
    for topic in found[:3]:
        stdout.print(Markdown(topic.markdown(level=2), hyperlinks=False))
    for topic in found[3:]:
        hint(f"also: evomerge explain {topic.name}")


def _overview() -> None:
    """Print the names of what can be explained, by kind."""
    from rich.padding import Padding

    from evomerge.explain.topics import overview

    for kind, names in overview():
        stdout.print(f"[bold]{kind}[/]", highlight=False)
        stdout.print(Padding(", ".join(names), (0, 0, 0, 2)), highlight=False, markup=False)
    hint("evomerge explain NAME says more of each")
