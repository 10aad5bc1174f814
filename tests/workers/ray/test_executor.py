"""Ray for real, with several nodes on one machine: nodes come and go, workers die, hang and fail.

The actors do as they are told and load no models, so that it is quick; `test_cluster.py` has the
real ones.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError

from evomerge.common.errors import InputError
from evomerge.config import WorkersConfig
from evomerge.workers.job import Job, Outcome, attempt
from evomerge.workers.ray import executor as on_ray
from evomerge.workers.ray import nodes
from evomerge.workers.ray.actor import Actor, Refusal, own_versions
from evomerge.workers.ray.cluster import death
from evomerge.workers.ray.executor import RayExecutor
from evomerge.workers.worker import Measurement, WorkerSpec

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import tests

PATIENCE = 120.0
"""Seconds for anything to happen, on a machine that others use."""


class Told(Actor):
    """Does what a recipe, or its node's order, says."""

    def build(self, spec, versions, file_sets, file_server):
        self.bad = spec.digests
        if self.bad.get("build") in (self.where(), "everywhere"):
            return Refusal("models.base: no such folder", given=True)
        return None

    def measure(self, job):
        return attempt(job, lambda job: Outcome(job, self.obey(job.recipe, job.split)))

    def obey(self, recipe, split):
        order = recipe.digest.partition(" ")[0]
        if order == "die":
            os._exit(1)
        if order == "sleep":
            time.sleep(1000)
        if order == "fill":
            kept = []
            while True:
                kept.append(bytearray(os.urandom(1 << 20)) * 64)
                time.sleep(0.02)
        if self.bad.get("disk") == self.where():
            raise OSError(errno.ENOSPC, "No space left on device")
        return Measurement({"t": self.where()}, {"materialize": 0.0, "score": 0.1})


def job(ticket, order="go"):
    recipe = SimpleNamespace(digest=f"{order} {ticket}", merges=())
    return Job(ticket, recipe, "search")


@pytest.fixture(scope="module")
def cluster():
    """A head without room, and two nodes with room for one worker each."""
    quick = {"health_check_period_ms": 1000, "health_check_failure_threshold": 2}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def open_executor(cluster, monkeypatch):
    """Opens executors on the cluster, and closes them."""
    monkeypatch.setattr(on_ray, "Actor", Told)
    opened = []

    def open_one(bad=None, **workers):
        settings = {"kind": "ray", "address": cluster.address, "cpus_per_worker": 1, **workers}
        config = SimpleNamespace(workers=WorkersConfig(**settings))
        opened.append(
            RayExecutor(WorkerSpec(config, {"search": {"t": ["i"]}}, 1, digests=bad or {}))
        )
        return opened[-1]

    yield open_one
    for executor in opened:
        executor.close()


def until(executor, happened):
    """The outcomes and events until something has happened."""
    outcomes, events, end = [], [], time.monotonic() + PATIENCE
    while not happened(outcomes, events):
        assert time.monotonic() < end, (outcomes, events, executor._slots)
        outcome = executor.wait()
        outcomes += [outcome] if outcome else []
        events += executor.drain_events()
    return outcomes, [event.kind for event in events], " ".join(event.text for event in events)


def finished(count):
    return lambda outcomes, events: len(outcomes) == count


def nodes_of(cluster):
    return {node.node_id: node for node in cluster.worker_nodes}


@pytest.mark.slow
def test_workers_come_and_go_with_their_nodes_and_nothing_in_flight_is_forgotten(
    cluster, open_executor
):
    executor = open_executor(count=3)
    until(executor, lambda *_: executor.free == 2)
    third = cluster.add_node(num_cpus=1)
    _, kinds, text = until(executor, lambda *_: executor.free == 3)
    assert kinds.count("nodes joined") == 1
    assert f"/{third.node_id[:6]} joined" in text
    for ticket in range(3):
        executor.submit(job(ticket, "sleep"))
    assert executor.free == 0
    cluster.remove_node(third, allow_graceful=False)
    [outcome], kinds, _ = until(executor, finished(1))
    assert (outcome.retryable, outcome.machine_fault) == (True, False)
    assert outcome.reason == "its node was lost"
    assert "workers lost with their node" in kinds
    _, kinds, text = until(executor, lambda _, events: "nodes lost" in {e.kind for e in events})
    assert f"/{third.node_id[:6]} is lost" in text
    assert executor.workers == 2
    [placed] = [slot for slot in executor._slots if slot.state == "placed"]
    executor._record_death(placed, RayActorError("id", "its node has died."))  # not known yet
    assert "" not in executor._nodes.quarantined


def test_a_worker_that_dies_or_hangs_is_replaced_and_its_job_may_be_retried(open_executor):
    executor = open_executor(count=2, timeout=2)
    until(executor, lambda *_: executor.free == 2)
    executor.submit(job(0, "die"))
    executor.submit(job(1, "sleep"))
    outcomes, kinds, text = until(executor, finished(2))
    reasons = {outcome.job.ticket: outcome.reason for outcome in outcomes}
    assert reasons == {0: "its worker died", 1: "not done within 2 s"}
    assert all(outcome.retryable and not outcome.machine_fault for outcome in outcomes)
    assert {"workers died", "timed out"} < {*kinds, "workers joined"}
    assert "its worker died (recipe die 0)" in text
    until(executor, lambda *_: executor.free == 2)
    executor.submit(job(2))
    [outcome], _, _ = until(executor, finished(1))
    assert outcome.measurement


@pytest.mark.slow
def test_a_node_with_a_full_disk_is_quarantined_and_no_candidate_is_blamed(
    cluster, open_executor, monkeypatch
):
    monkeypatch.setattr(nodes, "FIRST_PAUSE", 2.0)
    bad, good = nodes_of(cluster)
    executor = open_executor({"disk": bad}, count=2)
    until(executor, lambda *_: executor.free == 2)
    executor.submit(job(0))
    executor.submit(job(1))
    outcomes, kinds, text = until(executor, finished(2))
    fault = next(outcome for outcome in outcomes if outcome.retryable)
    assert fault.machine_fault
    assert next(o for o in outcomes if not o.retryable).measurement.scores["t"] == good
    assert "nodes left alone" in kinds
    assert f"/{bad[:6]} is quarantined for 2 s: OSError: [Errno 28] No space left" in text
    _, kinds, _ = until(executor, lambda *_: executor.workers == 2)
    assert "workers joined" in kinds, "after the pause there is a worker on it again"


def test_a_node_that_cannot_build_a_worker_is_quarantined_and_the_others_work(
    cluster, open_executor
):
    bad, good = nodes_of(cluster)
    executor = open_executor({"build": bad}, count="auto")
    _, _, text = until(executor, lambda _, e: executor.workers and len(e) > 1)
    assert f"/{bad[:6]} is quarantined for 5 s: models.base: no such folder" in text
    executor.submit(job(0))
    [outcome], _, _ = until(executor, finished(1))
    assert outcome.measurement.scores["t"] == good


@pytest.mark.slow
def test_auto_has_a_worker_for_every_room_there_is(cluster, open_executor):
    executor = open_executor(count="auto")
    until(executor, lambda *_: executor.free == 2)
    node = cluster.add_node(num_cpus=2)
    until(executor, lambda *_: executor.free == 4)
    cluster.remove_node(node, allow_graceful=False)
    until(executor, lambda *_: len(executor._slots) == 2 and executor.free == 2)


def test_what_no_node_can_do_is_said_before_the_search(open_executor):
    with pytest.raises(InputError, match=r"models\.base: no such folder"):
        open_executor({"build": "everywhere"}, count=2)
    with pytest.raises(InputError, match="no node of the cluster has room for one of 8 CPU"):
        open_executor(count=2, cpus_per_worker=8)
    with pytest.raises(InputError, match=r"workers\.address: cannot reach Ray at '127\.0\.0\.1:1'"):
        open_executor(address="127.0.0.1:1")
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_worker_that_fills_the_memory_is_killed_by_ray_and_its_job_may_be_retried(monkeypatch):
    monkeypatch.setattr(on_ray, "Actor", Told)
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + (3 << 30)) / memory.total
    settings = {"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 100}
    own = {"address": "local", "include_dashboard": False, "log_to_driver": False}
    ray.init(num_cpus=1, _system_config=settings, **own)  # never a cluster of another test's
    try:
        config = SimpleNamespace(workers=WorkersConfig(kind="ray"))
        executor = RayExecutor(WorkerSpec(config, {"search": {"t": ["i"]}}, 1))
        executor.submit(job(0, "fill"))
        [outcome], kinds, _ = until(executor, finished(1))
        assert (outcome.retryable, outcome.reason) == (True, "its worker ran out of memory")
        assert "workers out of memory" in kinds
        until(executor, lambda *_: executor.free == 1)
        executor.close()
    finally:
        ray.shutdown()


def test_deaths_are_told_apart():
    assert death(OutOfMemoryError("x"))[1] == "its worker ran out of memory"
    assert death(RayActorError("id", "its node has died."))[1] == "its node was lost"
    assert death(ActorUnavailableError("gone", None))[1] == "its node was lost"
    assert death(RayActorError("id", "exit code 1"))[1] == "its worker died"


def test_other_versions_on_a_node_are_refused():
    theirs = {**own_versions(), "lm_eval": "0.4.0"}
    refusal = Actor().build(None, theirs, {}, None)
    assert refusal.given
    assert "lm_eval is 0.4" in refusal.reason
