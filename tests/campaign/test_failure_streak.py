"""A metric that begins to fail is no candidate's fault: the run stops, and tries them again."""

from __future__ import annotations

import json

import pytest
import tiny
from command_line import evomerge
from running import evaluations, facts, run

from evomerge.common.errors import EvomergeError, StoppedError
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run

METRIC = '''
"""How far the model's next word is from the one that is wanted; as a folder's files say, it fails.
"""

from pathlib import Path

import torch

HERE = Path(__file__).parent


def closeness(model, tokenizer, items):
    calls = HERE / "calls"
    nth = int(calls.read_text()) + 1 if calls.exists() else 1
    calls.write_text(str(nth))
    tokens = torch.tensor([tokenizer.encode(item["text"]) for item in items])
    found = -model(tokens).logits[:, -1].argmax(-1) / 64
    fault, first, end = (HERE / "fault").read_text().split()
    if int(first) <= nth < int(end):
        if fault == "raise":
            raise ConnectionError(f"the judge at 0x{nth:x} is down ({nth})")
        return found * float(fault)
    return found
'''
TASKS = [{"callable": "metrics:closeness", "documents": "closeness.jsonl"}]
REFERENCES = 7
"""Parents and baselines, which come before the trials."""


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A campaign that nothing befell."""
    folder = tmp_path_factory.mktemp("origin")
    tiny.save_campaign(folder)
    make(folder)
    run(folder)
    return folder


def make(folder, **changes):
    (folder / "metrics.py").write_text(METRIC)
    mend(folder)
    lines = [{"text": f"w{i} w{3 * i % 60}"} for i in range(20)]
    (folder / "closeness.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    splits = {"search": 0.5, "select": 0.2, "test": 0.3}
    tiny.save_campaign(
        folder, fitness={"tasks": TASKS, "splits": splits, "select_top": 3, **changes}
    )


@pytest.fixture
def folder(tiny_folder):
    make(tiny_folder)
    return tiny_folder


def fail(folder, fault, start, end=10_000):
    (folder / "fault").write_text(f"{fault} {start} {end}")


def mend(folder):
    (folder / "fault").write_text("none 0 0")


def search(folder, code=0):
    return evomerge("search", folder / "campaign.yaml", "--out", folder / "run", code=code)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise", "ConnectionError: the judge at"),
        pytest.param("nan", "is nan on", marks=pytest.mark.slow),
        pytest.param("inf", "is -inf on", marks=pytest.mark.slow),
    ],
)
def test_a_metric_that_begins_to_fail_stops_the_run_and_costs_no_trial(folder, origin, fault, said):
    fail(folder, fault, 15)
    stopped = search(folder, code=3).output
    assert "cannot be scored any more" in stopped
    assert said in stopped
    assert len(evaluations(folder / "run")) == 14, "what failed is withdrawn"
    calls = int((folder / "calls").read_text())
    assert calls == 14 + 3 + 1, "three trials, then the base"
    search(folder, code=3)  # not mended: it stops again, as soon
    assert len(evaluations(folder / "run")) == 14
    mend(folder)
    search(folder)
    assert facts(folder / "run") == facts(origin / "run"), "as if nothing had happened"
    status = json.loads(evomerge("status", folder / "run", "--json").stdout)
    assert (status["trials"], status["failed"], status["done"]) == (12, 0, True)


@pytest.mark.parametrize("last", [2])
def test_a_fault_that_begins_with_the_last_trials_is_not_laid_on_them(folder, origin, last):
    fail(folder, "raise", REFERENCES + 12 - last + 1)
    with pytest.raises(StoppedError, match=f"the {last} evaluations that failed so"):
        run(folder)
    mend(folder)
    run(folder)
    assert facts(folder / "run") == facts(origin / "run")


@pytest.mark.parametrize("at", [22, *(pytest.param(at, marks=pytest.mark.slow) for at in (27, 33))])
def test_so_it_is_on_the_later_splits(folder, origin, at):
    fail(folder, "raise", at)
    with pytest.raises(StoppedError, match="cannot be scored any more"):
        run(folder)
    mend(folder)
    run(folder)
    assert facts(folder / "run") == facts(origin / "run")


def test_a_base_that_was_never_scored_is_refused_as_before(folder):
    fail(folder, "raise", 1)
    with pytest.raises(EvomergeError, match="base model itself cannot be scored") as caught:
        run(folder)
    assert not isinstance(caught.value, StoppedError)
    fail(folder, "raise", 1)
    assert "failed:" in search(folder, code=1).output


def test_candidates_that_fail_by_themselves_go_on_failing_alone(folder):
    """Five trials fail, the base is scored in between: the campaign goes on, and they stay so."""
    fail(folder, "raise", 12, 15)  # three; the next call is the base's
    out = run(folder)
    failed = [e for e in evaluations(out) if e.failed]
    assert [e.ask for e in failed] == [4, 5, 6]
    assert int((folder / "calls").read_text()) == len(evaluations(out)) + 1
    assert Results(open_run(out)[1]).status()["failed"] == 3


def test_earlier_failures_for_the_same_reason_are_tried_again_with_their_genomes(folder):
    fail(folder, "raise", 10, 12)  # two trials: too few for the base to be scored again
    out = run(folder, overrides=["budget.trials=6"])
    lost = [e.digest for e in evaluations(out) if e.failed]
    assert len(lost) == 2
    fail(folder, "raise", 1)
    with pytest.raises(StoppedError):
        run(folder)
    assert not any(e.failed for e in evaluations(out))
    mend(folder)
    run(folder)
    own = [e for e in evaluations(out) if e.optimizers_own]
    assert sorted(e.ask for e in own) == list(range(12))
    assert set(lost) <= {e.digest for e in own if e.measured}


@pytest.mark.slow
def test_with_rungs_the_base_is_scored_on_the_items_that_failed(folder, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    for one in (folder, whole):
        (one / "zoo").exists() or tiny.save_campaign(one)
        make(one, rungs=[4, "all"], race={"keep": 0.3})
    run(whole)
    fail(folder, "raise", 13)
    with pytest.raises(StoppedError):
        run(folder)
    mend(folder)
    run(folder)
    assert facts(folder / "run") == facts(whole / "run")
