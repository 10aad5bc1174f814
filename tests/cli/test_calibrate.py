"""`evomerge calibrate`, as a user meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import tiny
import yaml
from command_line import evomerge

from evomerge.campaign import calibrate
from evomerge.models.files.calibration_file import open_calibration
from evomerge.preflight import estimate_calibration


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    tiny.save_family(folder / "models", experts=("math",))
    lines = [{"text": " ".join(tiny.WORDS[i : i + 7])} for i in range(10)]
    lines.append({"prompt": "w1 w2", "completion": " w3"})
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_models_file_is_written_and_named(here):
    target = here / "out/math.safetensors"
    model, texts = here / "models/math", here / "texts.jsonl"
    given = ["--kinds", "gram,fisher", "--samples", 6, "--tokens", 5]
    result = evomerge("calibrate", model, "--on", texts, "--to", target, *given)
    assert result.stdout.strip() == str(target)
    head = open_calibration(target).head
    assert (head.kinds, head.samples, head.max_tokens) == (("fisher", "gram"), 6, 5)
    again = evomerge("calibrate", model, "--on", texts, "--to", target, *given)
    assert again.stdout.strip() == str(target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--kinds", "grams"], "--kinds grams: no such statistic; there are fisher, gram"),
        (["--to", "math.bin"], "--to math.bin: name a file that ends in .safetensors"),
        (["--on", "none.jsonl"], "--on: none.jsonl cannot be read"),
    ],
)
def test_what_cannot_work_is_said_at_once(here, tmp_path, changes, message):
    given = {"--on": here / "texts.jsonl", "--to": tmp_path / "x.safetensors"}
    given |= {changes[0]: changes[1]}
    options = [part for pair in given.items() for part in pair]
    result = evomerge("calibrate", here / "models/math", *options, code=2)
    assert message in result.stderr.replace("\n", " ")


def test_a_line_without_a_text_is_named(here, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "w1 w2"}\n{"question": "w3"}\n')
    options = ["--on", tmp_path / "bad.jsonl", "--to", tmp_path / "x.safetensors"]
    result = evomerge("calibrate", here / "models/math", *options, code=2)
    assert "bad.jsonl, line 2: no text; keys: question" in result.stderr.replace("\n", " ")


@pytest.fixture(scope="module")
def campaign(here):
    tiny.save_task(here / "tasks")
    data = tiny.campaign_data(calibration={"task": "pick", "samples": 10})
    del data["models"]["experts"]["lang"]
    (here / "campaign.yaml").write_text(yaml.safe_dump(data))
    return here / "campaign.yaml"


def test_a_campaigns_models_are_calibrated_into_its_folder(campaign):
    result = evomerge("calibrate", campaign, "--kinds", "mean_abs")
    target = campaign.parent / "statistics/math.safetensors"
    assert result.stdout.split() == [str(target)]
    assert open_calibration(target).head.samples == 10
    of_base = ["--source", "base", "--kinds", "mean_abs", "--samples", 11]
    given = ["--on", campaign.parent / "texts.jsonl", "--to", campaign.parent / "given"]
    evomerge("calibrate", campaign, *of_base, *given)
    assert open_calibration(campaign.parent / "given/base.safetensors").head.samples == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no method of this campaign needs data; name what to take with --kinds"),
        (["--source", "code"], "--source code: no such model; the models are base, math"),
    ],
)
def test_a_campaign_that_needs_nothing_is_told_so(campaign, options, message):
    result = evomerge("calibrate", campaign, *options, code=2)
    assert message in result.stderr.replace("\n", " ")


def test_a_campaign_without_texts_is_told_what_to_write(campaign):
    options = ["--set", "calibration=null", "--kinds", "gram"]
    result = evomerge("calibrate", campaign, *options, code=2)
    assert "calibration: {documents: texts.jsonl}" in result.stderr.replace("\n", " ")


@pytest.mark.slow
def test_a_killed_command_goes_on_and_gives_the_same_file(here):
    paths = tiny.save_family(here / "deep", experts=(), num_hidden_layers=12)
    command = [sys.executable, "-m", "evomerge", "calibrate", paths["base"]]
    command += ["--on", here / "texts.jsonl", "--kinds", "fisher,gram", "--to"]

    def begin(target):
        return subprocess.Popen([*command, target], stdout=subprocess.DEVNULL)

    assert begin(here / "whole.safetensors").wait() == 0
    target, work = here / "killed.safetensors", here / ".killed.safetensors.calibrating"
    process = begin(target)
    part = work / "inputs-of-layer-3.safetensors"
    while not part.exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    kept = part.stat().st_mtime_ns
    process = begin(target)
    while process.poll() is None:
        if part.exists():
            with suppress(FileNotFoundError):
                assert part.stat().st_mtime_ns == kept, "a layer that was done is done again"
        time.sleep(0.01)
    assert process.returncode == 0
    assert target.read_bytes() == (here / "whole.safetensors").read_bytes()
    assert not work.exists()


def test_check_says_what_calibration_takes(campaign, monkeypatch):
    monkeypatch.setattr(calibrate, "needed_kinds", lambda _: {"math": ("gram", "fisher")})
    monkeypatch.setattr(estimate_calibration, "needed_kinds", lambda _: {"math": ("gram",)})
    told = evomerge("check", campaign, "--no-measure", "--set", "calibration.folder=none").stdout
    found = re.search(r"calibration of math: gram, fisher of 10 texts: at most (\d+) s and", told)
    assert found, told
    assert "none/math.safetensors" in told
