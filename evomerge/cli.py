"""The command line. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from evomerge import __version__
from evomerge.errors import EvomergeError, InputError
from evomerge.signals import terminated_like_interrupted

if TYPE_CHECKING:
    from evomerge.config import CampaignConfig
    from evomerge.stages import Stage

app = typer.Typer(
    name="evomerge",
    help="Find model-merge recipes: search, resume, and export the best.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
stdout = Console()
stderr = Console(stderr=True)

CampaignFile = Annotated[Path, typer.Argument(help="The campaign file (YAML).", show_default=False)]
RunFolder = Annotated[
    Path, typer.Argument(help="A run's folder, such as runs/quickstart.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Override a key of the campaign file; repeatable."
    ),
]
ShardSize = Annotated[
    str, typer.Option(metavar="SIZE", help="The largest file of weights: 5GB, 900MB.")
]
BAD_INPUT, INTERRUPTED, FAILED = 2, 3, 1


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Errors that are the user's to mend: one message, no trace-back, the documented exit code."""
    try:
        yield
    except InputError as error:
        stderr.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from None
    except EvomergeError as error:
        stderr.print(f"failed: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        stdout.print(__version__, highlight=False)
        raise typer.Exit


@app.command()
def search(
    campaign: CampaignFile,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder.", show_default="runs/<name>")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="The study's total.")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="This run's wall time.")] = None,
    until: Annotated[
        str | None, typer.Option(metavar="HH:MM", help="Stop asking at this time of day.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of workers.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search and of masks.")] = None,
    overrides: Override = None,
) -> None:
    """Run a campaign, or go on with what its folder already holds."""
    started = time.monotonic()
    flags = {
        "budget.trials": trials,
        "budget.hours": hours,
        "workers.count": workers,
        "seed": seed,
    }
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    with _exit_codes():
        config = _load(campaign, [*(overrides or []), *given])
        folder = out or Path("runs") / config.name
        deadline = _deadline(started, config, until)
        with _resumable():
            _search(config, folder, deadline)


def _search(config: CampaignConfig, folder: Path, deadline: float | None) -> None:
    from evomerge.report.summary import best_summary
    from evomerge.report.tables import best_table
    from evomerge.runs import check_folder, open_run
    from evomerge.stages import stages_of

    check_folder(config, folder)
    for place in range(max(1, len(config.stages))):
        stages = stages_of(config, folder)  # anew: one stage's winner is a model of the next
        if stages[place].done:
            continue
        if not _run_stage(stages[place:], folder, config, deadline):
            raise KeyboardInterrupt
    _, study = open_run(folder)
    with study:
        stdout.print(best_table(best_summary(study)))
    stderr.print(f"export the winner: evomerge export {folder} --to DIR", highlight=False)


def _run_stage(
    stages: list[Stage], folder: Path, config: CampaignConfig, deadline: float | None
) -> bool:
    """Run the first of the stages that are left; whether the next may begin."""
    from evomerge.progress import ProgressDisplay
    from evomerge.runs import remember_campaign

    with stderr.status("opening models and tasks"):
        from evomerge.setup import prepare
        from evomerge.stages import check_later, run_stage

        setup = prepare(stages[0].config)
        check_later(setup, stages)
    for note in setup.models.notes:
        stderr.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if config.stages:
        remember_campaign(config, folder)
    with ProgressDisplay(stderr) as display:
        if stages[0].name:
            display.begin(stages[0].title)
        return run_stage(stages[0], setup, display, deadline)


@app.command()
def compare(
    campaign: CampaignFile,
    optimizers: Annotated[
        str,
        typer.Option(
            metavar="A,B,…",
            help="Names (`evomerge list optimizers`), each with options or without: "
            "'cma,cma:{screen: 4},cma:{fitness.rungs: [32, all]}'. A name without options that is "
            "the campaign's own optimizer has the campaign's.",
            show_default=False,
        ),
    ],
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each optimizer; the first has the campaign's seed.")
    ] = 5,
    out: Annotated[
        Path | None,
        typer.Option(help="The comparison's folder.", show_default="runs/<name>-compare"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Of each run.", show_default="the campaign's")
    ] = None,
    items: Annotated[
        int | None,
        typer.Option(
            min=1, help="Search items of each run, instead of trials.", show_default=False
        ),
    ] = None,
    overrides: Override = None,
    as_json: AsJson = False,
) -> None:
    """Compare optimizers on a campaign: equal item evaluations, several seeds.

    Each optimizer and seed is a run of its own in OUT/<optimizer>/seed-<n>. Whatever was the best
    by search at some time is scored on select in hindsight; the test split stays shut. Writes
    compare.html, compare.png and compare.json into OUT. Stopped, the same command goes on; with
    more trials, seeds or optimizers it adds what is missing.
    """
    given = [] if trials is None else [f"budget.trials={trials}"]
    if items is not None:
        given = [f"budget={{items: {items}{'' if trials is None else f', trials: {trials}'}}}"]
    with _exit_codes(), _resumable():
        config = _load(campaign, [*(overrides or []), *given])
        _compare(config, optimizers, seeds, out or Path("runs") / f"{config.name}-compare", as_json)


def _compare(
    config: CampaignConfig, optimizers: str, seeds: int, folder: Path, as_json: bool
) -> None:
    from evomerge.compare.arms import parse_arms
    from evomerge.progress import ProgressDisplay

    if config.stages:
        raise InputError("compare takes a campaign of one search; this one has stages")
    arms = parse_arms(optimizers, config.optimizer)
    with stderr.status("opening models and tasks"):
        from evomerge.setup import prepare

        setup = prepare(config)
    from evomerge.compare.page import comparison_table, write_comparison
    from evomerge.compare.runs import compare_optimizers

    with ProgressDisplay(stderr) as display:
        comparison = compare_optimizers(setup, arms, seeds, folder, display)
    written = write_comparison(comparison, folder)
    _print(comparison, as_json, comparison_table)
    for path in written:
        stderr.print(f"{path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def check(
    campaign: CampaignFile,
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Try one candidate, for memory and seconds."),
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder.", show_default="runs/<name>")
    ] = None,
    overrides: Override = None,
) -> None:
    """Check a campaign before its first candidate: what would fail, and what it will take.

    Where no model has its weights here, their configs are enough.
    """
    with _exit_codes():
        config = _load(campaign, overrides or [])
        from evomerge.check.forecast import foresee
        from evomerge.check.observe import observe
        from evomerge.check.problems import problems
        from evomerge.report.preflight import preflight_table
        from evomerge.setup import prepare
        from evomerge.stages import check_later, stages_of

        run = out or Path("runs") / config.name
        with stderr.status("opening models and tasks"):
            stages = stages_of(config, run)
            setup = prepare(stages[0].config, unread=True)
            check_later(setup, stages)
        trials = sum(stage.config.budget.trials for stage in stages)
        with stderr.status("trying one candidate" if measure else "adding up"):
            forecast = foresee(setup, run, trials, observe if measure else None)
        stdout.print(preflight_table(setup, forecast))
        if found := list(problems(setup, forecast, run)):
            raise InputError("\n".join(found))


@app.command()
def status(
    folder: RunFolder,
    as_json: AsJson = False,
    watched: Annotated[
        bool, typer.Option("--watch", help="Keep it up to date until the campaign is done.")
    ] = False,
) -> None:
    """How far a campaign is."""
    from evomerge.report.summary import status_summary
    from evomerge.report.tables import status_table
    from evomerge.runs import FollowedRun, open_run

    with _exit_codes():
        if watched:
            if as_json:
                raise InputError("--watch --json: choose one; --json prints one object and ends")
            from evomerge.report.watch import watch

            with suppress(KeyboardInterrupt):
                watch(FollowedRun(folder), stdout)
            return
        _, study = open_run(folder)
        summary = status_summary(study)
        _print(summary, as_json, status_table)


@app.command()
def best(folder: RunFolder, as_json: AsJson = False) -> None:
    """The winner, against every parent and baseline, with intervals and paired tests."""
    from evomerge.report.summary import best_summary
    from evomerge.report.tables import best_table
    from evomerge.runs import open_run

    with _exit_codes():
        _, study = open_run(folder)
        summary = best_summary(study)
        _print(summary, as_json, best_table)


@app.command()
def report(
    folder: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The page's file.", show_default="DIR/report.html")
    ] = None,
    to_optuna_dashboard: Annotated[
        bool,
        typer.Option(
            "--to-optuna-dashboard",
            help="Instead of the page, save its figures in the study, where optuna-dashboard shows "
            "them.",
        ),
    ] = False,
) -> None:
    """Write the campaign as one HTML page: scores, search, population, recipe, cost, facts."""
    from evomerge.report.html import write_report
    from evomerge.runs import open_run, run_folder, study_place

    with _exit_codes():
        config, study = open_run(folder)
        if to_optuna_dashboard:
            from evomerge.report.to_optuna import save_figures

            saved = save_figures(study, study_place(config, run_folder(folder))[0])
            stdout.print("\n".join(saved), markup=False, highlight=False)
            return
        page = out or folder / "report.html"
        write_report(study, page)
        stdout.print(f"{page}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def dashboard(
    folder: RunFolder,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8060,
) -> None:
    """Show a campaign in the browser as it goes on. It only reads; Ctrl-C ends it."""
    with _exit_codes():
        from evomerge.report.dashboard import Content, is_loopback, listen, serve

        content = Content(folder)
        listening = listen(host, port)
        if not is_loopback(host):
            stderr.print(
                f"warning: at {host} other machines can read this page, and nothing asks who they "
                "are; without --host only this machine can",
                style="yellow",
                soft_wrap=True,
            )
        shown = f"[{host}]" if ":" in host else host
        stdout.print(
            f"http://{shown}:{listening.getsockname()[1]}/",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        serve(content, listening, host)


@app.command()
def export(
    folder: RunFolder,
    to: Annotated[Path, typer.Option("--to", help="A new folder, or the file's path.")],
    trial: Annotated[
        int | None, typer.Option(help="A trial's number.", show_default="the winner")
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="The whole Pareto front: a folder each, and an index.")
    ] = False,
    archive: Annotated[
        bool, typer.Option("--archive", help="The optimizer's whole archive, likewise.")
    ] = False,
    format: Annotated[
        Literal["hf", "mergekit", "recipe"],
        typer.Option(help="hf: a checkpoint folder; mergekit, recipe: that one file."),
    ] = "hf",
    shard_size: ShardSize = "5GB",
    push: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Send it to the hub: NAME/MODEL.", show_default=False),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public/--private", help="Who sees a repository made by --push.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With --push: write the export, show what would be sent."),
    ] = False,
) -> None:
    """Write the winner, or other trials, as checkpoints that transformers loads."""
    from evomerge.runs import open_run, run_folder

    with _exit_codes(), _resumable():
        _check_one(trial=trial is not None, front=front, archive=archive)
        _check_push(push, dry_run, format)
        config, study = open_run(folder)
        run, shard_bytes = run_folder(folder), _bytes(shard_size)
        from evomerge.driver import export_trial, scoring_commands
        from evomerge.exports import export_many

        with stderr.status(f"writing {to}"):
            if front or archive:
                kind: Literal["front", "archive"] = "front" if front else "archive"
                written = export_many(config, study, kind, to, format, run, shard_bytes)
            else:
                again = push is not None
                written = export_trial(
                    config, study, trial, to, format, run, shard_bytes, again=again
                )
        stdout.print(f"{written}", markup=False, highlight=False, soft_wrap=True)
        if format == "hf" and not (front or archive):
            stderr.print("its scores, with stock lm-eval:", highlight=False)
            for command in scoring_commands(config, study, written):
                stderr.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
        if push is not None:
            _push(written, push, public, dry_run)


def _check_one(**given: bool) -> None:
    """Refuse options that are given together and say different things."""
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise InputError(f"give one of --{', --'.join(names)}")


def _check_push(repo: str | None, dry_run: bool, format: str) -> None:
    if repo is None:
        if dry_run:
            raise InputError("--dry-run shows what --push would send; add --push NAME/MODEL")
        return
    if format != "hf":
        raise InputError(f"--push sends checkpoints; leave out --format {format}")
    from evomerge.export.push import check_repo, offline

    check_repo(repo, dry_run or offline())


def _push(folder: Path, repo: str, public: bool, dry_run: bool) -> None:
    """Send an export, or show what would be sent."""
    from evomerge.export.push import offline, push, upload_of
    from evomerge.report.upload import upload_table

    upload = upload_of(folder, repo)
    dry = dry_run or offline()
    stderr.print(upload_table(upload, public))
    if dry:
        why = "--dry-run" if dry_run else "HF_HUB_OFFLINE is set"
        stderr.print(f"nothing was sent ({why})", markup=False, highlight=False)
    else:
        url = push(folder, upload, private=not public)
        stdout.print(url, markup=False, highlight=False, soft_wrap=True)


@app.command()
def merge(
    file: Annotated[
        Path,
        typer.Argument(help="A recipe.json, or a mergekit file (.yaml).", show_default=False),
    ],
    to: Annotated[Path, typer.Option("--to", help="A new folder for the checkpoint.")],
    base: Annotated[
        str | None,
        typer.Option(help="The base model.", show_default="as the file says"),
    ] = None,
    experts: Annotated[
        list[str] | None,
        typer.Option("--expert", metavar="NAME=MODEL", help="Where an expert lies; repeatable."),
    ] = None,
    dtype: Annotated[
        Literal["checkpoint", "float32", "float16", "bfloat16"] | None,
        typer.Option(help="The result's dtype.", show_default="as the file says, or the base's"),
    ] = None,
    shard_size: ShardSize = "5GB",
) -> None:
    """Write the checkpoint of a recipe or of a mergekit file, streamed."""
    with _exit_codes(), _resumable():
        given = dict(_named(text) for text in experts or [])
        if base is not None:
            given["base"] = base
        from evomerge.export.merge import merge_file

        with stderr.status(f"writing {to}"):
            written, notes = merge_file(file, to, given, dtype, _bytes(shard_size))
        for note in notes:
            stderr.print(f"note: {note}", style="yellow", markup=False, highlight=False)
        stdout.print(f"{written}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def quickstart(
    to: Annotated[Path, typer.Option("--to", help="A new folder for the files.")],
) -> None:
    """Copy small models, tasks and a campaign to play with."""
    from evomerge.quickstart import copy_quickstart

    with _exit_codes():
        campaign = copy_quickstart(to)
        stdout.print(f"{campaign}", markup=False, highlight=False, soft_wrap=True)
        stderr.print(f"run it: evomerge search {campaign}", markup=False, highlight=False)


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["methods", "optimizers", "objectives", "paths", "engines", "trackers"],
        typer.Argument(show_default=False),
    ],
) -> None:
    """List merge methods, optimizers, objectives, kinds of paths, engines or trackers."""
    from evomerge.report import catalogue

    stdout.print(getattr(catalogue, what)())


def _named(text: str) -> tuple[str, str]:
    """`NAME=MODEL` in two."""
    name, separator, model = text.partition("=")
    if not separator or not name or not model:
        raise InputError(f"--expert {text}: write it as NAME=MODEL")
    return name, model


def _bytes(size: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        found = TypeAdapter(ByteSize).validate_python(size)
    except ValidationError:
        found = ByteSize(0)
    if found < 1:
        raise InputError(f"--shard-size {size}: write a size such as 5GB or 900MB")
    return int(found)


def _load(campaign: Path, overrides: list[str]) -> CampaignConfig:
    from evomerge.config import load_campaign

    return load_campaign(campaign, overrides)


def _deadline(started: float, config: CampaignConfig, until: str | None) -> float | None:
    """When to stop asking, on the monotonic clock: the earlier of `budget.hours` and `--until`."""
    limits = []
    if config.budget.hours is not None:
        limits.append(started + 3600 * config.budget.hours)
    if until is not None:
        now = datetime.now()
        try:
            clock = datetime.strptime(until, "%H:%M").time()
        except ValueError:
            raise InputError(f"--until {until}: write a time of day as HH:MM") from None
        end = datetime.combine(now.date(), clock)
        if end <= now:
            end += timedelta(days=1)
        limits.append(started + (end - now).total_seconds())
    return min(limits, default=None)


@contextmanager
def _resumable() -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the command in order, and says how to go on."""
    try:
        with terminated_like_interrupted():
            yield
    except KeyboardInterrupt:
        again = shlex.join(["evomerge", *sys.argv[1:]])
        stderr.print(
            f"\nstopped; nothing recorded is lost. The same command goes on:\n  {again}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None


def _print(summary: dict[str, Any], as_json: bool, table: Any) -> None:
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        stdout.print(table(summary))


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
