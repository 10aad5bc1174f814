"""Weights & Biases itself: what its files hold after kills and resumes."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import tenacity

from evomerge.results import Results


@tenacity.retry(  # wandb's own process may still be writing
    retry=tenacity.retry_if_result(lambda history: len(history) < 20),
    stop=tenacity.stop_after_delay(30),
    wait=tenacity.wait_fixed(0.2),
    retry_error_callback=lambda state: state.outcome.result(),
)
def wandb_history(study):
    """[(run, step, {key: value})] of all offline runs, in order, out of wandb's own files."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    found = []
    for path in sorted((study.folder / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in log_records(path.read_bytes()):
            record = pb.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                values = {
                    (i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items
                }
                found.append((path.stem, record.history.step.num, values))
    return found


def log_records(data, header=7, block=32768):
    """The records of a LevelDB log, as wandb writes it: blocks of chunks, each with a header."""
    place, parts = header, []
    while place + 7 <= len(data):
        left = block - place % block
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts.append(data[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


@pytest.mark.slow
def test_wandb_offline_keeps_every_step_once_under_one_run(study):
    pytest.importorskip("wandb")
    offline = [{"kind": "wandb", "mode": "offline", "project": "merges"}]
    with study.run(trackers=offline):
        study.references().search([0.3, 0.9])
    with study.run(trackers=offline):
        study.search([0.2]).finish(0.05)
    assert study.ear.lines == []
    history = wandb_history(study)
    files = (study.folder / "wandb").glob("offline-run-*/run-*.wandb")
    told = b"".join(record for path in files for record in log_records(path.read_bytes()))
    assert b"No merge of the search beats `" in told
    assert Counter(step for _, step, _ in history) == Counter(range(study.recorded))
    assert {run for run, _, _ in history} == {f"run-{study.study.note('uid')}"}
    own = [e for e in study.study.evaluations() if e.optimizers_own]
    values = {step: row["search/value"] for _, step, row in history if "search/value" in row}
    assert values == {e.number: e.value for e in own}


def wandb_summary(study):
    """The summary of the offline run, as its file ends."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    found = {}
    for path in (study.folder / "wandb").glob("offline-run-*/run-*.wandb"):
        for data in log_records(path.read_bytes()):
            record = pb.Record.FromString(data)
            if record.WhichOneof("record_type") == "summary":
                for item in record.summary.update:
                    found[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "said"), [(0.05, "No merge beats `lang`: trial 5"), (0.95, "Trial 5 beats the best")]
)
def test_wandb_has_verdict_scores_and_recipe_of_the_winner_in_its_summary(study, level, said):
    pytest.importorskip("wandb")
    with study.run(trackers=[{"kind": "wandb", "mode": "offline"}]):
        study.references().search([0.3]).finish(level)
    assert study.ear.lines == []
    best = Results(study.study).best()
    found = wandb_summary(study)
    assert found["verdict"].startswith(said)
    assert best["verdict"]["text"] in found["verdict"]
    assert (best["verdict"]["kind"] == "wins") == (level > 0.5)
    assert found["winner"] == best["recipe"]
    assert found["scores"]["test"]["mean"] == pytest.approx(best["scores"]["test"]["mean"])


def test_wandb_without_a_key_is_switched_off_instead_of_asking_for_one(
    study, monkeypatch, tmp_path
):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with study.run(trackers=["wandb"]):
        study.references()
    (line,) = study.ear.lines
    assert "tracker wandb is switched off" in line
    assert "wandb login" in line
