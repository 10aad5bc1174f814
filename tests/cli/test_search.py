"""`evomerge search` as a user meets it: what is printed, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import optuna
import pytest
from command_line import evomerge


def _heeding_interrupts():
    """A shell that starts the tests in the background has SIGINT ignored, and children inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
def test_interrupting_is_exit_code_three_and_resumable(tiny_folder):
    command = [sys.executable, "-m", "evomerge", "search", "campaign.yaml", "--out", "run"]
    command += ["--trials", "4000"]
    process = subprocess.Popen(
        command,
        cwd=tiny_folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heeding_interrupts,
    )
    while process.poll() is None and not (tiny_folder / "run" / "study.db.driver").exists():
        time.sleep(0.02)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert "nothing recorded is lost" in errors
    assert "Traceback" not in errors
    done = json.loads(evomerge("status", tiny_folder / "run", "--json").stdout)["trials"]
    evomerge(
        "search", tiny_folder / "campaign.yaml", "--out", tiny_folder / "run", "--trials", done + 1
    )
    after = json.loads(evomerge("status", tiny_folder / "run", "--json").stdout)
    assert (after["trials"], after["done"]) == (done + 1, True)


@pytest.mark.slow
def test_run_search_is_the_search_command(tiny_folder):
    script = os.path.join(os.path.dirname(__file__), "..", "..", "run_search.py")
    process = subprocess.run(
        [sys.executable, script, "campaign.yaml", "--trials", "1"],
        cwd=tiny_folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert (tiny_folder / "runs" / "tiny" / "study.db").exists()


def test_a_study_of_another_campaign_or_lm_eval_is_refused_and_untouched(done, monkeypatch):
    before = (done / "run" / "study.db").read_bytes()
    search = ["search", done / "campaign.yaml", "--out", done / "run"]
    text = evomerge(*search, "--seed", 5, code=2).stderr.replace("\n", "")
    assert "belongs to another campaign: seed is 0 in the study, 5 in the campaign file" in text
    monkeypatch.setattr("evomerge.campaign.setup.version", lambda _: "9.9")
    text = evomerge(*search, code=2).stderr.replace("\n", "")
    assert "lm-eval" in text
    assert "9.9" in text
    assert (done / "run" / "study.db").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_refused(tiny_folder):
    (tiny_folder / "file").write_text("in the way")
    out = tiny_folder / "file" / "run"
    text = evomerge("search", tiny_folder / "campaign.yaml", "--out", out, code=2).stderr
    assert "cannot be written" in text.replace("\n", " ")
    assert str(out) in text.replace("\n", "")


def test_until_must_be_a_time_of_day(done):
    command = ["search", done / "campaign.yaml", "--until", "8 o'clock"]
    assert "HH:MM" in evomerge(*command, code=2).stderr


def test_optuna_pandas_and_its_command_line_read_the_study(done):
    url = f"sqlite:///{done / 'run' / 'study.db'}"
    study = optuna.load_study(study_name="tiny", storage=url)
    frame = study.trials_dataframe()
    own = frame[frame["params_weight.layer_0.math"].notna()]
    assert len(own) == 12
    assert own["value"].between(0, 1).all()
    best = json.loads(evomerge("status", done / "run", "--json").stdout)["best"]
    assert study.best_trial.number == best["trial"]
    optuna_cli = os.path.join(os.path.dirname(sys.executable), "optuna")
    command = [optuna_cli, "trials", "--storage", url, "--study-name", "tiny", "-f", "json"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    trials = json.loads(listed.stdout)
    assert len(trials) == len(frame)
    listed_params = [t["params"] for t in trials if t["params"]]
    assert len(listed_params) == 12
    assert all("weight.layer_0.math" in params for params in listed_params)
