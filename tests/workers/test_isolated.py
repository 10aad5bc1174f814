"""The worker in a process of its own: what kills it, hangs it or fills it costs one evaluation."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import signal
import time
from types import MappingProxyType, SimpleNamespace

import numpy as np
import psutil
import pytest

from evomerge.common.errors import CandidateError, EvomergeError, InputError, StoppedError
from evomerge.models.checks.unchanged import weight_files
from evomerge.workers import isolated
from evomerge.workers.isolated import IsolatedExecutor, measure_isolated
from evomerge.workers.job import Job
from evomerge.workers.worker import Measurement, WorkerSpec

held = []


class Stub:
    """A worker whose recipes say what becomes of it."""

    def __init__(self, spec):
        self.calls = 0
        if spec.statistics == "refused":
            raise InputError("fitness.tasks: there is none")
        if spec.statistics == "deadly":
            os._exit(1)

    def measure(self, recipe, split, items=None):
        self.calls += 1
        recipe.do()
        seconds = {"materialize": 0.01, "score": 0.01}
        return Measurement({"t": np.array([os.getpid(), self.calls])}, seconds, {"batch": 8})


def nothing():
    pass


def leave():
    os._exit(3)


def segfault():
    ctypes.string_at(0)


def hang():
    time.sleep(600)


def fail():
    raise CandidateError("the weights are not finite")


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def read_past_the_end(path):
    # a fork has the handlers of Ray too, where a test before this one has used it
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    os.truncate(path, 0)
    mapped[0]


def take(megabytes):
    held.append(np.ones(megabytes << 17))


def take_and_hang():
    take(400)
    hang()


class Recipe:
    digest, merges = "0123456789abcdef", ()

    def __init__(self, do, *arguments):
        self.done, self.arguments = do, arguments

    def do(self):
        self.done(*self.arguments)


@pytest.fixture
def start(monkeypatch):
    """Build an executor of a stub, which is forked from here: nothing is imported."""
    monkeypatch.setattr(isolated, "_method", lambda config: "fork")
    monkeypatch.setattr(isolated, "Worker", Stub)
    built = []

    def of(statistics=None, files=None, **workers):
        built.append(IsolatedExecutor(spec(statistics, files or {}, **workers)))
        return built[-1]

    yield of
    for executor in built:
        executor.close()


def spec(statistics=None, files=MappingProxyType({}), timeout="auto", memory="auto"):
    workers = SimpleNamespace(timeout=timeout, memory=memory)
    config = SimpleNamespace(workers=workers)
    return WorkerSpec(config, {"search": {"t": ["a", "b"]}}, 1, statistics=statistics, files=files)


def measured(executor, do=nothing, *arguments):
    executor.submit(Job(0, Recipe(do, *arguments), "search"))
    while True:
        if (outcome := executor.wait()) is not None:
            return outcome


def process_and_calls(outcome):
    assert outcome.reason is None
    return tuple(outcome.measurement.scores["t"])


def test_one_process_serves_all_jobs(start):
    executor = start()
    first, second = (process_and_calls(measured(executor)) for _ in range(2))
    assert first[0] == second[0] != os.getpid()
    assert (first[1], second[1]) == (1, 2)
    assert executor.drain_events() == []
    assert (executor.workers, executor.free) == (1, 1)


def test_a_candidates_own_failure_costs_no_worker(start):
    executor = start()
    process, _ = process_and_calls(measured(executor))
    failed = measured(executor, fail)
    assert (failed.reason, failed.retryable) == ("the weights are not finite", False)
    assert process_and_calls(measured(executor)) == (process, 3)


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        (leave, r"its worker ended itself \(exit code 3\)"),
        (segfault, "its worker died of SIGSEGV"),
        (be_killed, "SIGKILL: by the system if memory ran out"),
    ],
)
def test_a_worker_that_dies_costs_one_attempt_and_the_next_goes_on(start, do, reason, capfd):
    executor = start()
    process, _ = process_and_calls(measured(executor))
    lost = measured(executor, do)
    assert lost.retryable
    assert re.search(reason, lost.reason)
    (event,) = executor.drain_events()
    assert event.kind == "workers died"
    assert event.text.endswith("(recipe 0123456789ab)")
    other, calls = process_and_calls(measured(executor))
    assert other != process
    assert calls == 1


def test_a_worker_that_died_while_idle_is_replaced(start):
    executor = start()
    process, _ = process_and_calls(measured(executor))
    os.kill(process, signal.SIGKILL)
    outcome = measured(executor)  # an attempt may be lost, if it died after the job was sent
    assert outcome.retryable or outcome.reason is None
    assert process_and_calls(measured(executor))[0] != process


def test_a_hung_worker_is_ended_at_its_time_out(start):
    executor = start(timeout=0.2)
    process, _ = process_and_calls(measured(executor))
    hung = measured(executor, hang)
    assert (hung.reason, hung.retryable) == ("not done within 0 s", True)
    assert [event.kind for event in executor.drain_events()] == ["timed out"]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert process_and_calls(measured(executor))[0] != process


def test_a_worker_that_outgrows_its_limit_is_ended_in_the_middle_of_a_job(start):
    here = psutil.Process().memory_info()  # a fork begins with what this process has
    executor = start(memory=(here.rss - getattr(here, "shared", 0)) / 1e9 + 0.3)
    process_and_calls(measured(executor))
    lost = measured(executor, take_and_hang)
    assert lost.retryable
    assert re.search(r"its worker took \S+ GB of memory \(workers\.memory: ", lost.reason)
    assert [event.kind for event in executor.drain_events()] == ["workers out of memory"]
    process_and_calls(measured(executor))


def test_by_itself_a_worker_that_grew_is_replaced_between_two_jobs(start, monkeypatch):
    monkeypatch.setattr(isolated, "LEAST_GROWTH", 16 << 20)
    monkeypatch.setattr(isolated, "GROWTH", 1.0)
    executor = start()
    process, _ = process_and_calls(measured(executor))
    assert process_and_calls(measured(executor, take, 64))[0] == process, "nothing is lost"
    assert [event.kind for event in executor.drain_events()] == ["workers replaced"]
    assert process_and_calls(measured(executor))[0] != process


def test_a_file_cut_short_under_the_worker_kills_it_and_is_named(start, tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(1 << 16))
    executor = start(files=weight_files([tmp_path]))
    with pytest.raises(StoppedError) as caught:
        measured(executor, read_past_the_end, weights)
    assert "model.safetensors: has 0 bytes instead of 65536" in str(caught.value)


def test_a_bus_error_without_a_changed_model_says_what_it_is(start, tmp_path):
    other = tmp_path / "cache.bin"
    other.write_bytes(bytes(1 << 16))
    executor = start()
    lost = measured(executor, read_past_the_end, other)
    assert lost.retryable
    assert lost.reason.startswith("its worker died of SIGBUS: a file under it was cut short")


def test_what_is_wrong_for_every_candidate_is_said_by_the_driver(start):
    with pytest.raises(InputError, match=r"fitness\.tasks: there is none"):
        start("refused")


def test_a_worker_that_never_stands_is_given_up(start):
    with pytest.raises(EvomergeError, match=r"\(exit code 1\), 3 times before it stood"):
        start("deadly")


def test_the_next_worker_knows_what_the_engine_found_out(start):
    executor = start()
    measured(executor)
    assert executor._spec.facts == {"batch": 8}


def test_what_a_worker_prints_is_passed_on(start, capfd):
    executor = start()
    measured(executor, print, "a word of the metric")
    executor.close()
    deadline = time.monotonic() + 60
    errors = ""
    while "a word of the metric" not in errors and time.monotonic() < deadline:
        errors += capfd.readouterr().err
        time.sleep(0.02)
    assert "a word of the metric\n" in errors


def test_one_job_may_have_a_process_for_itself(start):
    job = Job(0, Recipe(nothing), "search", last=True)
    assert process_and_calls(measure_isolated(job, spec()))[1] == 1
    lost = measure_isolated(Job(0, Recipe(leave), "search", last=True), spec())
    assert (lost.reason, lost.retryable) == ("its worker ended itself (exit code 3)", True)
