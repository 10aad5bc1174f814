"""`evomerge init`: write a commented campaign file, from models or from a file of mergekit's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer

from evomerge.cli.shared import app, exit_codes, hint, note, say, stderr, waiting
from evomerge.common.errors import InputError

if TYPE_CHECKING:
    from evomerge.config import Draft
    from evomerge.preflight.propose import Choice

Goal = Literal["mean", "weakest_link", "pareto"]


@app.command()
def init(
    base: Annotated[
        str | None,
        typer.Argument(
            metavar="BASE", help="The base model: a folder or hub id.", show_default=False
        ),
    ] = None,
    experts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EXPERT", help="Models tuned from it, or NAME=MODEL.", show_default=False
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME[:METRIC]",
            help="An lm-eval task, or a task file; repeatable.",
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            metavar="EXPERT=FILE",
            help="Prompts without labels, to answer as the expert does; repeatable.",
        ),
    ] = None,
    goal: Annotated[Goal, typer.Option(help="The mean, the worst task, or the front.")] = "mean",
    hours: Annotated[float, typer.Option(min=0.01, help="Wall time of the search.")] = 8.0,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("campaign.yaml"),
    include_path: Annotated[
        Path | None, typer.Option(help="A folder of task files.", show_default=False)
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", help="A mergekit-evolve file, or a mergekit recipe."),
    ] = None,
    evolve_options: Annotated[
        str, typer.Option(metavar="TEXT", help="What mergekit-evolve was run with.")
    ] = "",
    download_configs: Annotated[
        bool, typer.Option("--download-configs", help="Fetch configs of hub ids, no weights.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Reckon seconds on this machine.")
    ] = True,
) -> None:
    """Write a commented campaign file for models and tasks, and say what was chosen and why.

    Without models it asks. With --from it turns a file of mergekit-evolve or mergekit into one.
    """
    with exit_codes():
        if out.exists():
            raise InputError(f"{out}: exists; choose another --out")
        if from_ is not None and base is not None:
            raise InputError("--from: its models are the file's; give no others")
        if base is None and from_ is None:
            base, experts, tasks, goal, hours = _ask(tasks or [], prompts or [], goal, hours)
        with waiting("reading configs and tasks"):
            from evomerge.preflight.from_mergekit import convert
            from evomerge.preflight.propose import Asked, propose

            asked = Asked(
                base=base or "",
                experts=_named(experts or []),
                tasks=[_task(text) for text in tasks or []],
                goal=goal,
                hours=hours,
                folder=out.parent,
                include_path=include_path,
                download=download_configs,
                measure=measure,
                prompts=[_prompts(text) for text in prompts or []],
            )
            if from_ is None:
                if not asked.experts:
                    raise InputError("no expert: name one model or more after the base")
                draft, choices = propose(asked)
            else:
                draft, choices = convert(from_, asked, evolve_options)
        draft.write(out)
        _show(draft, choices)
        say(out)
        hint(f"next: evomerge check {out}, then evomerge search {out}")


def _show(draft: Draft, choices: list[Choice]) -> None:
    """Print what was chosen and why, and what has no counterpart."""
    from rich.table import Table

    table = Table(title=f"campaign {draft.data['name']}")
    for column in ("key", "choice", "why"):
        table.add_column(column, overflow="fold")
    for choice in choices:
        table.add_row(choice.key, choice.value, choice.why)
    stderr.print(table)
    for text in draft.unmatched:
        note(f"without a counterpart: {text}")


def _ask(
    tasks: list[str], prompts: list[str], goal: Goal, hours: float
) -> tuple[str, list[str], list[str], Goal, float]:
    """Ask for what was not given.

    Raises:
        InputError: there is nobody to answer.
    """
    from rich.prompt import FloatPrompt, Prompt

    try:
        base = _prompt("base model (a folder or hub id)")
        experts = _many("expert, tuned from the base (or NAME=MODEL)")
        if not tasks and not prompts:
            tasks = _many("lm-eval task or task file (NAME, or NAME:METRIC)")
        if len(tasks) > 1:
            asked = Prompt.ask("goal", console=stderr, choices=list(get_args(Goal)), default=goal)
            goal = cast(Goal, asked)
        hours = FloatPrompt.ask("hours", console=stderr, default=hours)
    except EOFError:
        raise InputError("no models: type evomerge init BASE EXPERT… --task NAME") from None
    return base, experts, tasks, goal, hours


def _prompt(text: str) -> str:
    """Ask until there is an answer."""
    from rich.prompt import Prompt

    while not (answer := Prompt.ask(text, console=stderr).strip()):
        pass
    return answer


def _many(text: str) -> list[str]:
    """Ask for one or more; an empty answer ends it."""
    from rich.prompt import Prompt

    found = [_prompt(text)]
    while more := Prompt.ask("another (empty: no more)", console=stderr, default="").strip():
        found.append(more)
    return found


def _named(experts: list[str]) -> dict[str, str]:
    """Give each expert a name: its own, or the last part of its path."""
    if not experts:
        return {}
    from evomerge.mergekit.reader import expert_name

    found: dict[str, str] = {}
    for text in experts:
        name, separator, model = text.partition("=")
        if not separator:
            name, model = expert_name(text, {"base", "union", "merged", *found}), text
        if name in found:
            raise InputError(f"{text}: two experts are called {name!r}; write another NAME=MODEL")
        found[name] = model
    return found


def _prompts(text: str) -> tuple[str, str]:
    """Split `EXPERT=FILE`.

    Raises:
        InputError: the text is neither; says how it is written.
    """
    expert, separator, file = text.partition("=")
    if not separator:
        raise InputError(f"--prompts {text}: whose are they? write EXPERT={text}")
    return expert, file


def _task(text: str) -> tuple[str, str | None]:
    """Split `NAME:METRIC`."""
    name, _, metric = text.partition(":")
    return name, metric or None
