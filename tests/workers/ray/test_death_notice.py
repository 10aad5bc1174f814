"""Ray that ends, and the driver with it, is named, with the way out."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from evomerge.workers.ray import death_notice

SCRIPT = Path(death_notice.__file__)


def notice(said, *processes):
    """What is said once the driver's end is there."""
    command = [sys.executable, SCRIPT, "/tmp/logs", *processes]
    done = subprocess.run(command, input=said, capture_output=True, timeout=120, check=True)
    return done.stderr.decode()


@pytest.fixture
def process():
    """A process that lives, and one that has ended."""
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    yield living.pid, ended.pid
    living.communicate(b"\n")


def test_a_driver_that_ray_ended_says_what_ended_and_the_way_out(process):
    living, ended = process
    said = notice(b"", f"raylet={living}", f"gcs_server={ended}")
    assert "error: Ray on this machine has ended, and with it this search: its gcs_server" in said
    assert "run the same command again" in said
    assert "/tmp/logs" in said


def test_nothing_is_said_of_a_driver_that_ended_in_order_or_by_itself(process):
    living, ended = process
    assert notice(b"done", f"raylet={ended}") == ""
    assert notice(b"", f"raylet={living}") == ""


DRIVER = """
    import sys
    from types import SimpleNamespace
    import psutil, ray
    from evomerge.config.workers import WorkersConfig
    from evomerge.workers.job import Job
    from evomerge.workers.ray import executor
    from evomerge.workers.worker import WorkerSpec

    class Sleeping:
        def where(self):
            return ray.get_runtime_context().get_node_id()
        def build(self, *given):
            return None
        def measure(self, job):
            import time
            time.sleep(600)

    executor.Actor = Sleeping
    config = SimpleNamespace(workers=WorkersConfig(kind="ray", cpus_per_worker=1))
    on_ray = executor.RayExecutor(WorkerSpec(config, {"search": {"t": ["i"]}}, 1))
    on_ray.submit(Job(0, SimpleNamespace(digest="d", merges=()), "search"))
    raylet = ray._private.worker._global_node.all_processes["raylet"][0].process
    for child in psutil.Process(raylet.pid).children():
        if "Agent" in child.cmdline()[0]:
            child.kill()
    while True:
        on_ray.wait()
"""


@pytest.mark.slow
def test_agents_of_ray_that_die_end_the_search_with_a_message():
    command = [sys.executable, "-c", textwrap.dedent(DRIVER)]
    done = subprocess.run(command, capture_output=True, timeout=300, text=True, check=False)
    assert done.returncode != 0
    assert "Ray on this machine has ended, and with it this search: its " in done.stderr
    assert "run the same command again" in done.stderr
