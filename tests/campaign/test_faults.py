"""Files that change under a running search are noticed, and stop it in order."""

from __future__ import annotations

import os

import pytest
from executors import crash
from running import evaluations, facts, run

from evomerge.common.errors import EvomergeError, InputError, StoppedError
from evomerge.workers.local import LocalExecutor


class Meddling(LocalExecutor):
    """Does something to the files after one of the measurements, or before the next."""

    at, left, do = 0, 0, None

    def wait(self):
        outcome = super().wait()
        Meddling.left -= 1
        if not Meddling.left:
            Meddling.do()
        return outcome


@pytest.fixture
def meddle(monkeypatch):
    """Let `do` happen after so many measurements of this test's searches."""

    def choose(at, do):
        monkeypatch.setattr(Meddling, "left", at)
        monkeypatch.setattr(Meddling, "do", staticmethod(do))
        monkeypatch.setattr("evomerge.campaign.open.build_executor", Meddling)

    return choose


def test_a_study_that_is_deleted_is_noticed_at_the_next_write(tiny_folder, meddle):
    study = tiny_folder / "run" / "study.db"
    meddle(9, study.unlink)
    with pytest.raises(EvomergeError, match=r"study\.db: was deleted or replaced") as caught:
        run(tiny_folder)
    assert not isinstance(caught.value, InputError)
    assert Meddling.left == 0, "no measurement more"
    assert not study.exists(), "and no empty file was made in its place"


def test_a_study_that_is_replaced_is_noticed_and_the_other_is_not_written(tiny_folder, meddle):
    study = tiny_folder / "run" / "study.db"

    def replace():
        other = study.with_name("other.db")
        other.write_bytes(study.read_bytes())
        os.replace(other, study)
        replace.bytes = study.read_bytes()

    meddle(9, replace)
    with pytest.raises(EvomergeError, match="was deleted or replaced"):
        run(tiny_folder)
    assert study.read_bytes() == replace.bytes


def overwrite(path):
    """Other weights in the same file, of the same size."""
    data = bytearray(path.read_bytes())
    data[-64:] = bytes(64)
    with path.open("r+b") as file:
        file.write(data)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def replace_whole(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (overwrite, "was written again"),
        pytest.param(truncate, r"has \d+ bytes instead of \d+", marks=pytest.mark.slow),
        pytest.param(replace_whole, "was written again", marks=pytest.mark.slow),
        pytest.param(lambda path: path.unlink(), "is gone", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_changes_under_the_search_stops_it_before_it_is_merged(
    tiny_folder, whole, meddle, change, said
):
    weights = tiny_folder / "models" / "math" / "model.safetensors"
    before, times = weights.read_bytes(), weights.stat()
    meddle(10, lambda: change(weights))
    with pytest.raises(StoppedError, match=rf"math/model\.safetensors: {said}"):
        run(tiny_folder)
    assert len(evaluations(tiny_folder / "run")) == 10
    # put back, the campaign is the one that it would have been
    weights.write_bytes(before)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    run(tiny_folder)
    assert facts(tiny_folder / "run") == facts(whole)


@pytest.mark.slow
def test_an_isolated_last_attempt_notices_it_too(tiny_folder, meddle, monkeypatch):
    out = tiny_folder / "run"
    for _ in range(2):  # the driver dies twice with the fourth candidate in flight
        crash(tiny_folder, out, monkeypatch, at=3 - (len(evaluations(out)) if out.exists() else 0))
    weights = tiny_folder / "models" / "math" / "model.safetensors"

    class Late(LocalExecutor):
        def wait(self):
            overwrite(weights)
            return super().wait()

    monkeypatch.setattr("evomerge.campaign.open.build_executor", Late)
    with pytest.raises(StoppedError, match="was written again"):
        run(tiny_folder)


def test_what_is_stored_beside_the_weights_may_change(tiny_folder, whole, meddle):
    folder = tiny_folder / "models" / "math"

    def write():
        (folder / "README.md").write_text("a card")
        (folder / "new.safetensors").write_bytes(b"another file")

    meddle(10, write)
    run(tiny_folder)
    assert facts(tiny_folder / "run") == facts(whole)
