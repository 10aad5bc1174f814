"""Every command of every page is run as it stands, or read as the command line reads it."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from command_line import evomerge
from pages import PAGES, ROOT, SHELL, Command, blocks, commands, mentions

from evomerge.cli import app

EVOMERGE = typer.main.get_command(app)
FOREIGN = {
    "convert_hf_to_gguf.py": "llama.cpp's",
    "sglang.launch_server": "SGLang's server",
}
"""Scripts and modules that are not evomerge's, and whose they are."""
OTHERS = ("cd", "export", "source", ".", "pip", "pipx", "uv", "docker", "ray", "hf")
"""Programs of others."""
ONLY_READ = {
    r"make .*": "installs what the tests run with, or takes many minutes; CI calls the targets",
    r"evomerge init (BASE|mistralai/).*": "its models and tasks are on the hub",
    r"evomerge init --from .*": "its tasks are on the hub; tests/mergekit converts such files",
    r"evomerge \w+ search_spaces/evollm_jp\.yaml": "its models are on the hub and need a GPU",
    r"evomerge compare search_spaces/quickstart/.*--items 67500.*": "takes an hour; the tutorial's "
    "comparison is run, with smaller budgets",
    r"evomerge search search_spaces/gallery/.*": "tests/docs/test_gallery.py runs them",
    r"evomerge report runs/(niches|front|layer-swap|lora|own-metric|gradient)": "it draws their "
    "figures, too",
    r"evomerge calibrate .*": "needs texts; tests/cli/test_calibrate.py gives it some",
    r"evomerge merge recipe\.json --base models/mixture .*": "its model is anybody's mixture; "
    "tests/materialize/test_expert_groups.py merges some",
    r"evomerge dashboard .*": "serves until Ctrl-C; tests/report/pages/test_dashboard.py asks it",
    r"(\.venv/bin/)?python3? -m (pytest|venv) .*": "the whole suite, or an environment of its own",
    r"python benchmarks/coverage\.py": "takes minutes; tests/benchmarks/test_coverage.py runs it",
    r"python benchmarks/gpu\.py .*": "needs a GPU, or takes minutes; tests/benchmarks/test_gpu.py "
    "runs it",
}
"""Commands of shell blocks that no test runs from the page, and why."""

BLOCKS = list(blocks(*SHELL))
TYPED = [command for block in BLOCKS for command in commands(block)]
RUN_BY_US = [c for c in TYPED if re.search(r"(^|/)(evomerge|python3?|make)$", c.words[0])]


def reason_not_to_run(command: Command) -> str | None:
    return next((why for form, why in ONLY_READ.items() if re.fullmatch(form, command.line)), None)


def options_of(script: Path) -> set[str]:
    """The options that a script's `add_argument` names."""
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    named = [c for c in calls if getattr(c.func, "attr", "") == "add_argument"]
    return {a.value for c in named for a in c.args if isinstance(a, ast.Constant)}


def read_python(command: Command) -> None:
    """Check that the module or script is there, and that it has the options."""
    first, *arguments = command.words[1:]
    if first == "-m":
        module, *paths = arguments
        assert module in FOREIGN or importlib.util.find_spec(module), command
        for path in paths if module == "pytest" else []:
            assert not path.startswith("tests") or (ROOT / path).exists(), command
        return
    if first in FOREIGN:
        return
    page = ROOT / command.place.partition(":")[0]
    script = next((p for p in (ROOT / first, page.parent / first) if p.is_file()), None)
    assert script is not None, command
    given = {word for word in arguments if word.startswith("--")}
    assert given <= options_of(script), command


def read_make(command: Command) -> None:
    """Let make say what it would do in a fresh clone, where no environment is installed yet."""
    caller = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of the make that runs these tests
    own = {name: value for name, value in os.environ.items() if name not in caller}
    wanted = ["make", "--dry-run", "VENV=not-there", *command.words[1:]]
    made = subprocess.run(wanted, cwd=ROOT, env=own, capture_output=True, text=True)
    assert made.returncode == 0, f"{command}: {made.stderr}"


@pytest.mark.parametrize("command", RUN_BY_US, ids=str)
def test_commands_of_blocks_are_whole(command):
    program, *arguments = command.words
    if program == "evomerge":
        name, *rest = arguments
        EVOMERGE.commands[name].make_context(name, rest)  # reads all, and runs nothing
    elif program == "make":
        read_make(command)
    else:
        read_python(command)


@pytest.mark.parametrize("command", mentions(), ids=str)
def test_commands_in_running_text_have_the_options_that_they_are_shown_with(command):
    program, *arguments = command.words
    if program == "evomerge":
        name, *rest = arguments
        parameters = EVOMERGE.commands[name].params
        known = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
        assert {word for word in rest if word.startswith("-")} <= known
    elif program == "make":
        read_make(command)
    else:
        read_python(command)


def test_no_other_program_is_typed_than_those_that_are_known():
    known = re.compile(r"(\.venv/bin/)?(evomerge|python3?|make|" + "|".join(OTHERS[4:]) + r")")
    strange = [c for c in TYPED if c.words[0] not in OTHERS and not known.fullmatch(c.words[0])]
    assert strange == []


def test_what_pip_is_told_to_install_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    text = "\n".join(page.read_text() for page in PAGES)
    assert "evomerge[" in text
    for names in re.findall(r"(?:evomerge|\.)\[([\w,-]+)\]", text):
        assert set(names.split(",")) <= set(extras), names
    for file in re.findall(r"(?:-c|--constraint) ([\w./-]+)", text):
        assert (ROOT / file).is_file(), file


def test_every_reason_not_to_run_a_command_is_still_needed():
    lines = [command.line for command in RUN_BY_US]
    unused = [form for form in ONLY_READ if not any(re.fullmatch(form, line) for line in lines)]
    assert unused == []


# What is run: the blocks of a page in their order, in a folder like the repository's, in which
# `campaign.yaml` is a small campaign called my-merge, and `runs/my-merge` is what came of it.

CAMPAIGN = {
    "name": "my-merge",
    "models": {
        "base": "search_spaces/quickstart/zoo/base",
        "experts": {
            "math": "search_spaces/quickstart/zoo/math",
            "ja": "search_spaces/quickstart/zoo/lang",
        },
    },
    "space": {
        "weights": {
            "method": "ties",
            "granularity": "model",
            "genes": {"weight": [0, 1.5], "density": [0.2, 1]},
        }
    },
    "fitness": {
        "include_path": "search_spaces/quickstart/tasks",
        "tasks": [
            {"task": f"{name}", "metric": "acc", "num_fewshot": 0}
            for name in ("listops_en", "translate_eo", "listops_eo")
        ],
        "splits": {"search": 60, "select": 40, "test": 100},
    },
    "budget": {"trials": 4},
    "workers": {"isolated": False},
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder like the repository's, with a small campaign and its finished run."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(ROOT / "search_spaces", folder / "search_spaces")
    (folder / "campaign.yaml").write_text(yaml.safe_dump(CAMPAIGN))
    evomerge("search", folder / "campaign.yaml", "--out", folder / "runs" / "my-merge")
    return folder


def with_small_budgets(folder: Path) -> None:
    """Cut the budgets of the campaign files in a folder down."""
    for file in folder.glob("*.yaml"):
        text = re.sub(r"\b(trials|steps): \d+", r"\1: 4", file.read_text())
        if "name:" in text and "isolated" not in text:
            text = re.sub(r"^workers:.*\n", "", text, flags=re.M)
            text += "\nworkers: {isolated: false}\n"
        file.write_text(text)


def with_small_numbers(words: list[str]) -> list[str]:
    """Cut the numbers of trials and seeds in a command down; so few trials may find no winner."""
    small = {"--trials": "5", "--seeds": "1"}
    if words[0] == "export" and "--format" not in words:
        words = [*words, "--anyway"]
    return [small.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def run(command: Command) -> None:
    program, *words = command.words
    if program == "cd":
        os.chdir(words[0])
    elif program == "evomerge" and reason_not_to_run(command) is None:
        if words[0] == "init":
            Path("campaign.yaml").unlink(missing_ok=True)
        evomerge(*with_small_numbers(words))
        if words[0] == "quickstart":
            with_small_budgets(Path(words[words.index("--to") + 1]))
        if words[0] == "init":
            with_small_budgets(Path())
    if command.then is not None:
        os.chdir(command.then)


def pages_to_run() -> list[str]:
    """Pages with a command that is run."""
    found = [c for c in RUN_BY_US if reason_not_to_run(c) is None]
    return list(dict.fromkeys(command.place.partition(":")[0] for command in found))


def test_whatever_has_no_reason_not_to_is_a_command_of_evomerges():
    """As `run` runs no others."""
    found = [c for c in RUN_BY_US if reason_not_to_run(c) is None]
    assert {command.words[0] for command in found} == {"evomerge"}


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_to_run())
def test_the_commands_of_a_page_do_what_they_are_shown_for(page, prepared, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    for block in BLOCKS:
        if block.page == page:
            for command in commands(block):
                run(command)
