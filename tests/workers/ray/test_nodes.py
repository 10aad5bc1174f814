"""Workers' shares of nodes."""

from __future__ import annotations

import pytest

from evomerge.config import WorkersConfig
from evomerge.workers.ray.nodes import holds, threads_on


@pytest.mark.parametrize(
    ("nodes", "workers", "threads"),
    [
        ([{"CPU": 8}, {"CPU": 8}], {"count": 2}, 8),
        ([{"CPU": 8}, {"CPU": 8}], {"count": 3}, 4),  # no node has a share of 16 / 3
        ([{"CPU": 8}, {"CPU": 8}], {"count": 64}, 1),  # the others come with further nodes
        ([{"CPU": 8}, {}], {"count": 2}, 4),
        ([{"CPU": 32, "GPU": 8}], {"count": 8, "gpus_per_worker": 1}, 4),
        ([{"CPU": 32, "GPU": 8}], {"count": "auto", "gpus_per_worker": 1}, 4),
        ([{"CPU": 32, "GPU": 8}], {"count": "auto", "gpus_per_worker": 0.5}, 2),
        ([{"CPU": 64}, {"CPU": 16, "GPU": 2}], {"count": "auto", "gpus_per_worker": 1}, 8),
        ([{"CPU": 8}], {"count": 2, "cpus_per_worker": 3}, 3),
    ],
)
def test_a_worker_has_as_many_threads_as_leave_all_a_place(nodes, workers, threads):
    assert threads_on(nodes, WorkersConfig(kind="ray", **workers)) == threads


def test_a_node_holds_what_its_scarcest_resource_allows():
    assert holds({"CPU": 8, "GPU": 2}, 2, 1) == 2
    assert holds({"CPU": 3, "GPU": 2}, 2, 1) == 1
    assert holds({"CPU": 8, "GPU": 2}, 2, 0.5) == 4
    assert holds({"CPU": 8}, 2, 1) == 0
    assert holds({}, 1, 0) == 0


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"gpus_per_worker": 1}, "gpus_per_worker needs kind: ray"),
        ({"address": "auto"}, "address needs kind: ray"),
        ({"count": "auto"}, "count: auto needs kind: ray"),
        ({"kind": "ray", "count": "auto"}, "needs cpus_per_worker or gpus_per_worker"),
        ({"kind": "ray", "gpus_per_worker": 2, "model_parallel": False}, "one is used"),
        ({"kind": "ray", "gpus_per_worker": 1.5}, "whole number"),
        ({"kind": "ray", "model_parallel": True}, "needs gpus_per_worker: 2 or more"),
        ({"kind": "ray", "copy_to": "scratch"}, "absolute path"),
        ({"kind": "ray", "timeout": 0}, "greater than 0"),
    ],
)
def test_workers_that_cannot_be_are_refused(workers, message):
    with pytest.raises(ValueError, match=message):
        WorkersConfig(**workers)
