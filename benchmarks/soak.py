"""A campaign under fire: workers, nodes, drivers and the database die; nothing recorded is lost.

Runs the quickstart campaign (2,000 trials) with three workers on a three-node Ray cluster on this
machine. Every 30 s a worker is killed; at .3 of the trials a node is lost without grace, at .45
another joins; the driver is killed (kill -9) five times on the way and started again; and, where
`--storage`, `--stop` and `--start` are given, the database is stopped once, at .6.

Looks into the study all the while and says at the end whether every trial is there, once; whether
any measurement stands there twice; whether anything that was seen in it has gone or changed; and
whether the campaign came to its end. Exits with 1 otherwise.

With a PostgreSQL server of one's own:
  python benchmarks/soak.py --storage postgresql://me@localhost/soak \\
      --stop 'pg_ctl -D data stop -m immediate' --start 'pg_ctl -D data start'
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from evomerge.common.errors import InputError
from evomerge.results.results import Results
from evomerge.study.record import Evaluation
from evomerge.study.run_folder import open_run

QUICKSTART = Path(__file__).parents[1] / "search_spaces" / "quickstart" / "quickstart.yaml"
NODES = 3
LOST, JOINED, DOWN = 0.3, 0.45, 0.6
"""When a node is lost, another joins and the database is stopped, in parts of the trials."""


@dataclass(frozen=True)
class Plan:
    """What is to happen to a campaign.

    Attributes:
        every: seconds between two deaths of a worker.
        drivers: how often the driver is killed.
        stop: the command that stops the database, if it is to be stopped; `start` starts it again.
        down: seconds that it is away.
        limit: seconds after which the campaign has failed.
    """

    campaign: Path
    out: Path
    trials: int = 2000
    every: float = 30.0
    drivers: int = 5
    storage: str | None = None
    stop: str | None = None
    start: str | None = None
    down: float = 20.0
    limit: float = 6 * 3600.0


class Machines:
    """A head without room and nodes with room for one worker each, on this machine."""

    def __init__(self, nodes: int = NODES) -> None:
        head = {"num_cpus": 0, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(nodes):
            self.add()

    def add(self) -> None:
        """A node joins."""
        self.cluster.add_node(num_cpus=1)

    def lose(self) -> None:
        """A node is gone at once, as with its power."""
        self.cluster.remove_node(random.choice([*self.cluster.worker_nodes]), allow_graceful=False)

    def kill_a_worker(self) -> bool:
        """Whether there was one to kill."""
        workers = [*self._workers()]
        if not workers:
            return False
        random.choice(workers).kill()
        return True

    def _workers(self) -> Iterator[psutil.Process]:
        for node in self.cluster.worker_nodes:
            [raylet] = node.all_processes["raylet"]
            for process in psutil.Process(raylet.process.pid).children(recursive=True):
                if "ray::Actor" in " ".join(process.cmdline()):
                    yield process


@dataclass
class Soak:
    """A campaign in the middle of it.

    Attributes:
        happened: how often what was done.
        seen: trial number → what the study said of it when it was first looked at.
        problems: what should not be.
    """

    plan: Plan
    machines: Machines
    driver: subprocess.Popen[bytes] = field(init=False)
    happened: Counter[str] = field(default_factory=Counter)
    seen: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Until the campaign ends, or cannot."""
        plan, began = self.plan, time.monotonic()
        due = self._schedule()
        self.driver, next_death = self._drive(), began + plan.every
        while self.driver.poll() is None:
            time.sleep(0.5)
            if time.monotonic() - began > plan.limit:
                self.problems.append(f"not done within {plan.limit:.0f} s")
                self.driver.kill()
            if time.monotonic() > next_death:
                self.happened["workers killed"] += self.machines.kill_a_worker()
                next_death = time.monotonic() + plan.every
            trials = self._look()
            if due and trials >= due[0][0]:
                what = due.pop(0)[1]
                self.happened[what] += 1
                self._do(what)
        self.happened["seconds"] = round(time.monotonic() - began)
        if code := self.driver.returncode:
            self.problems.append(f"the driver ended with code {code}: {self._log()}")
        self._judge()

    def _schedule(self) -> list[tuple[float, str]]:
        """(trials, what happens when there are so many), in order."""
        plan = self.plan
        parts = [
            (place / (plan.drivers + 1), "drivers killed") for place in range(1, plan.drivers + 1)
        ]
        parts += [(LOST, "nodes lost"), (JOINED, "nodes joined")]
        parts += [(DOWN, "databases stopped")] * (plan.stop is not None)
        return [(part * plan.trials, what) for part, what in sorted(parts)]

    def _do(self, what: str) -> None:
        if what == "nodes lost":
            self.machines.lose()
        elif what == "nodes joined":
            self.machines.add()
        elif what == "databases stopped":
            assert self.plan.stop is not None
            assert self.plan.start is not None
            subprocess.run(shlex.split(self.plan.stop), check=True, stdout=subprocess.DEVNULL)
            time.sleep(self.plan.down)
            subprocess.run(shlex.split(self.plan.start), check=True, stdout=subprocess.DEVNULL)
        else:
            self.driver.kill()
            self.driver.wait()
            self._look()
            self.driver = self._drive()

    def _drive(self) -> subprocess.Popen[bytes]:
        plan = self.plan
        address = self.machines.cluster.address
        workers = {"kind": "ray", "address": address, "count": NODES, "cpus_per_worker": 1}
        given = [f"workers={json.dumps(workers)}", f"budget.trials={plan.trials}"]
        given += [f"study.storage={plan.storage}"] if plan.storage else []
        command = [sys.executable, "-m", "evomerge", "search", plan.campaign, "--out", plan.out]
        command += [part for override in given for part in ("--set", override)]
        plan.out.mkdir(parents=True, exist_ok=True)
        with open(plan.out / "driver.log", "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def _look(self) -> int:
        """Compare the study with what was in it before; how many trials it has."""
        try:
            found = self._record()
        except InputError:  # not there yet, or its database is away
            return 0
        now = {e.number: _facts(e) for e in found if e.number is not None}
        for number, facts in self.seen.items():
            if now.get(number) != facts:
                self.problems.append(f"trial {number} was {facts}, and is {now.get(number)}")
        self.seen = now
        return sum(e.optimizers_own for e in found)

    def _record(self) -> list[Evaluation]:
        _, study = open_run(self.plan.out)
        with study:
            return study.evaluations()

    def _judge(self) -> None:
        """What must hold at the end."""
        _, study = open_run(self.plan.out)
        with study:
            found, status = study.evaluations(), Results(study).status()
            events = (study.note("events") or {}).get("counts", {})
        asks = Counter(e.ask for e in found if e.optimizers_own)
        lost = [ask for ask in range(self.plan.trials) if ask not in asks]
        twice = [ask for ask, times in asks.items() if times > 1]
        measured = Counter((e.digest, e.split) for e in found if e.seconds)
        again = [key for key, times in measured.items() if times > 1]
        for what, wrong in (("lost", lost), ("recorded twice", twice), ("measured twice", again)):
            if wrong:
                self.problems.append(f"{what}: {wrong}")
        if not status["done"]:
            self.problems.append("the campaign has not ended")
        self.happened["trials"] = len(asks)
        self.happened["trials that failed"] = status["failed"]
        self.happened["evaluations"] = len(found)
        self.happened["evaluations that needed another attempt"] = sum(e.attempt > 1 for e in found)
        self.happened.update({f"the study says: {kind}": count for kind, count in events.items()})

    def _log(self) -> str:
        return (self.plan.out / "driver.log").read_text(errors="replace")[-2000:]


def _facts(evaluation: Evaluation) -> tuple[Any, ...]:
    e = evaluation
    return e.digest, e.split, e.role, e.ask, e.value, e.reason


def soak(plan: Plan) -> Soak:
    """Run a campaign through all that its plan has for it."""
    machines = Machines()
    found = Soak(plan, machines)
    try:
        found.run()
        return found
    finally:
        found.driver.kill()
        machines.cluster.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--campaign", type=Path, default=QUICKSTART)
    parser.add_argument("--out", type=Path, help="default: a temporary folder")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between workers' deaths")
    parser.add_argument("--drivers", type=int, default=5, help="how often the driver is killed")
    parser.add_argument("--storage", help="an Optuna URL, instead of SQLite")
    parser.add_argument("--stop", help="the command that stops the database")
    parser.add_argument("--start", help="the command that starts it again")
    parser.add_argument("--down", type=float, default=20.0, help="seconds that it is away")
    given = vars(parser.parse_args())
    if (given["stop"] is None) != (given["start"] is None):
        parser.error("--stop and --start go together")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        given["out"] = given["out"] or Path(folder) / "run"
        found = soak(Plan(**given))
    for what, count in found.happened.items():
        print(f"{what}: {count:,}")
    for problem in found.problems:
        print(f"PROBLEM: {problem}")
    print("not as it should be" if found.problems else "all there, once, and done")
    return int(bool(found.problems))


if __name__ == "__main__":
    raise SystemExit(main())
