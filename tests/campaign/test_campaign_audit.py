"""The trust audit of whole campaigns: a planted artefact is caught, an honest gain is not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import chains
import pytest
from executors import crash
from running import evaluations, run
from silent import Silent
from typer.testing import CliRunner

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.cli import app
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run

KINDS = {"long": 36, "known": 60, "hard": 4}


def audited(folder, tokens, **fitness):
    """Run a campaign of so many tokens an answer; return the table of its winner."""
    config = load_campaign(chains.save_campaign(folder, KINDS, tokens, **fitness))
    with open_campaign(prepare(config), folder / "run", Silent()) as campaign:
        campaign.run()
    return Results(open_run(folder / "run")[1]).best()


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A limit of 12 tokens, where one parent thinks for 22 before it is right."""
    folder = tmp_path_factory.mktemp("short")
    return folder, audited(folder, tokens=12)


def test_a_gain_that_a_short_limit_made_is_called_an_artefact(short):
    _, best = short
    found = best["audit"]
    gain = found["gains"]["knows"]
    assert (found["split"], found["against"]) == ("test", "knows")
    assert gain["cut"] > 0.8
    assert gain["difference"] > 4 * gain["uncut"]["difference"] >= 0
    assert "of the gain is truncation of the parent" in found["verdict"]
    assert "`knows`" in found["verdict"]


def test_the_shares_and_lengths_are_those_of_the_answers(short):
    _, best = short
    found = best["audit"]
    n = best["scores"]["test"]["tasks"]["think"]["n"]
    knows, winner = found["parents"]["knows"]["think"], found["winner"]["think"]
    cut = round(knows["cut"] * n)
    assert cut == found["gains"]["knows"]["tasks"]["think"]["won"] - round(
        found["gains"]["knows"]["uncut"]["difference"] * found["gains"]["knows"]["uncut"]["items"]
    )
    assert knows["unparsed"] == knows["cut"]
    assert knows["tokens"] == pytest.approx((12 * cut + 2 * (n - cut)) / n)
    assert (winner["cut"], winner["unparsed"], winner["tokens"]) == (0, 0, 2)


def test_the_copies_between_search_and_test_are_counted(short):
    _, best = short
    overlap = best["audit"]["overlap"]
    assert overlap["test"] == best["scores"]["test"]["tasks"]["think"]["n"]
    assert (overlap["exact"], overlap["near"]) == (0, 0)


def test_the_verdict_stands_in_best_report_and_card(short, tmp_path):
    folder, best = short
    shown = CliRunner().invoke(app, ["best", str(folder / "run")], env={"COLUMNS": "400"}).stdout
    assert best["audit"]["verdict"] in shown
    page = tmp_path / "report.html"
    CliRunner().invoke(app, ["report", str(folder / "run"), "--out", str(page)])
    text = page.read_text()
    assert "truncation of the parent" in text
    assert "Trust audit" in text
    done = CliRunner().invoke(
        app,
        [
            "export",
            str(folder / "run"),
            "--trial",
            str(best["trial"]),
            "--to",
            str(tmp_path / "out"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert "truncation of the parent" in (tmp_path / "out" / "README.md").read_text()


def test_under_a_long_limit_an_honest_gain_is_not_objected_to(tmp_path):
    best = audited(tmp_path, tokens=40)
    found = best["audit"]
    assert found["gains"]["knows"]["difference"] > 0
    assert found["gains"]["knows"]["cut"] == 0
    assert found["parents"]["knows"]["think"]["tokens"] > 8
    assert found["verdict"] is None


def test_what_was_forgotten_is_measured_on_tasks_the_search_never_used(tmp_path):
    chains.save_questions(tmp_path / "tasks", {"known": 30, "hard": 10}, 12, name="other")
    others = [{"task": "other", "metric": "exact_match"}]
    best = audited(tmp_path, tokens=40, audit={"tasks": others})
    found = best["audit"]["forgetting"]["other"]
    means = {name: row["mean"] for name, row in found["parents"].items()}
    assert (found["n"], found["winner"]) == (40, 1)
    assert means == {"base": 0, "knows": 0.75, "brief": 0.25}
    assert found["parents"]["knows"]["difference"] == 0.25
    assert best["audit"]["verdict"] is None
    config = load_campaign(tmp_path / "campaign.yaml")
    with pytest.raises(InputError, match=r"belongs to another campaign: fitness\.audit"):
        audited(tmp_path, tokens=40)
    assert load_campaign(tmp_path / "campaign.yaml") != config


@pytest.mark.slow
def test_an_audit_task_must_exist_and_not_be_searched_on(tmp_path):
    def refused(task):
        others = [{"task": task, "metric": "exact_match"}]
        path = chains.save_campaign(tmp_path, KINDS, 12, audit={"tasks": others})
        with pytest.raises(InputError) as error:
            prepare(load_campaign(path))
        return str(error.value)

    assert refused("nowhere").startswith("fitness.audit.tasks[0].task: no task 'nowhere'")
    assert "fitness.audit.tasks: think is searched on" in refused("think")


@pytest.fixture(scope="module")
def forgetting(tmp_path_factory):
    """A campaign with a task that the search never uses, run in process; its folder and audit."""
    folder = tmp_path_factory.mktemp("forgetting")
    chains.save_questions(folder / "tasks", {"known": 30, "hard": 10}, 12, name="other")
    audit = {"tasks": [{"task": "other", "metric": "exact_match"}]}
    return folder, audited(folder, tokens=12, audit=audit)["audit"]


@pytest.mark.slow
def test_workers_on_ray_give_the_same_audit(forgetting):
    folder, expected = forgetting
    assert expected["forgetting"]["other"]["winner"] == 1
    workers = "workers={kind: ray, count: 1, cpus_per_worker: 1}"
    out = run(folder, folder / "ray", overrides=[workers])
    assert Results(open_run(out)[1]).best()["audit"] == expected


@pytest.mark.slow
def test_dying_at_any_evaluation_and_resuming_gives_the_same_audit(forgetting, monkeypatch):
    folder, expected = forgetting
    count = len(evaluations(folder / "run"))
    for at in (2, count // 2, count - 6, count - 3, count - 1):
        out = folder / f"died-{at}"
        crash(folder, out, monkeypatch, at)
        assert len(evaluations(out)) == at
        run(folder, out)
        assert Results(open_run(out)[1]).best()["audit"] == expected


@pytest.mark.slow
def test_a_kill_and_a_resume_give_the_same_audit(forgetting):
    folder, expected = forgetting
    out = folder / "killed"
    command = [sys.executable, "-m", "evomerge", "search", "campaign.yaml", "--out", str(out)]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    half = len(evaluations(folder / "run")) // 2
    while process.poll() is None and recorded(out) < half:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(folder, out)
    assert Results(open_run(out)[1]).best()["audit"] == expected


def recorded(out):
    """The number of evaluations on record so far; 0 before there is a study."""
    try:
        return len(evaluations(out))
    except InputError:
        return 0
