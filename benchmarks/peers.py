"""evomerge against its peers: one table, kept as JSON, drawn as a page; and a small form.

`python benchmarks/peers.py` (`make bench`) runs, one after the other, `materialize.py` and
`merge_command.py` and `source_statistics.py` against mergekit, and `scoring.py` against lm-eval,
the first and the last once more beside a process that keeps one core busy. It prints a line for
each comparison and writes `bench.json` and `bench.html` into `--to`. A ratio is the peer's time
over evomerge's, both measured in one run; `wanted` is its bar: of candidates beside the busy core
half of their ratio without it, of scoring the same as without. Exits with 1 when a bar is missed.

`--small` (`make bench-small`) runs small forms on one thread and counts processor time, which other
work on the machine hardly moves. It exits with 1 when a ratio is less than two thirds of the one in
`benchmarks/peers.json`, which `--small --record` writes; those of which that file says nothing, and
all on another processor than its own, are printed alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

HERE = Path(__file__).parent
RECORD = HERE / "peers.json"
FALLEN = 2 / 3
"""The share of a recorded ratio below which the small form fails."""
BUSY = "while True: pass"
LIMIT = 1500
"""Seconds after which one script is given up."""

Row = dict[str, Any]


def run(script: str, *options: str, **variables: str) -> Any:
    """Run a benchmark and return its JSON; one that misses its bar is no failure here.

    Args:
        variables: of the environment.

    Raises:
        SystemExit: it printed none; with what it said.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    command = [sys.executable, str(HERE / script), *options, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"{script} failed:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")


@contextmanager
def one_busy_core() -> Iterator[None]:
    """Keep one core busy meanwhile, as another user's program would."""
    busy = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def row(what: str, peer: str, ours: float, theirs: float, wanted: float | None) -> Row:
    ratio = theirs / ours
    return {
        "what": what,
        "peer": peer,
        "evomerge": ours,
        "theirs": theirs,
        "ratio": ratio,
        "wanted": wanted,
    }


def candidates(
    *options: str, suffix: str = "", quiet: Mapping[str, float] = MappingProxyType({})
) -> Iterator[Row]:
    """Compare one candidate's weights with mergekit's `merge_tensors`; with the copy floor, too.

    Args:
        suffix: of what is measured beside other work.
        quiet: the ratios without it.
    """
    variables = (
        {} if suffix else {"OMP_PROC_BIND": "true"}
    )  # a thread may leave a core that is busy
    found = run("materialize.py", *options, **variables)
    for one in found["methods"]:
        theirs = min(one["mergekit bf16"], one["mergekit fp32"])
        name = f"candidate, {one['method']}{suffix}"
        before = quiet.get(f"candidate, {one['method']}")
        made = row(name, "mergekit", one["evomerge"], theirs, before / 2 if before else one["bar"])
        # the floor is one of wall time
        yield made if "cpu" in options else {**made, "floors": one["evomerge"] / found["floor"]}


def commands(*options: str) -> Iterator[Row]:
    """Compare `evomerge merge` with `mergekit-yaml`, as whole processes."""
    found = run("merge_command.py", *options)
    for one in found["methods"]:
        name, theirs = f"evomerge merge, {one['method']}", one["mergekit seconds"]
        yield row(f"{name}, first", "mergekit-yaml", one["first seconds"], theirs, None)
        again = row(f"{name}, again", "mergekit-yaml", one["evomerge seconds"], theirs, one["bar"])
        yield {**again, "memory": one["memory"]}


def statistics(*options: str) -> Iterator[Row]:
    """Compare the statistics that TIES needs, made once a campaign, with three merges."""
    found = run("source_statistics.py", *options)
    what = "statistics for TIES, against three merges"
    yield row(what, "mergekit", found["first"], found["merges"], 1.0)


def scoring(*options: str, suffix: str = "") -> Iterator[Row]:
    """Compare the scoring of a candidate with lm-eval's, item by item alike."""
    for one in run("scoring.py", *options)["cases"]:
        theirs = one[one["against"]]
        yield row(f"{one['case']}{suffix}", "lm-eval", one["evomerge"], theirs, 1 / one["target"])


def whole() -> Iterator[Row]:
    quiet = {}
    for one in candidates("--repeats", "2"):
        quiet[one["what"]] = one["ratio"]
        yield one
    yield from commands("--repeats", "2")
    yield from statistics()
    yield from scoring("--threads", "2", "--repeats", "2")
    with one_busy_core():
        beside = ", one core busy"
        yield from candidates("--repeats", "1", suffix=beside, quiet=quiet)
        yield from scoring("--threads", "2", "--repeats", "1", suffix=beside)


def small() -> Iterator[Row]:
    """A few of them, by processor time on one thread; some two minutes of it.

    A linear candidate is none of them: others' use of the memory moves its ratio by a quarter.
    """
    cpu = ("--clock", "cpu", "--threads", "1")
    yield from commands(*cpu, "--repeats", "2", "--parameters", "0.05e9", "--methods", "linear")
    yield from scoring("--cpu", "--repeats", "1", "--cases", "4 choices of one token")
    yield from candidates(*cpu, "--repeats", "1", "--layers", "10", "--methods", "ties")


def show(one: Row) -> None:
    wanted = f"{one['wanted']:6.1f}" if one["wanted"] else " " * 6
    more = f"{one['floors']:5.1f} x copying" if "floors" in one else ""
    more += f"{one['memory']:5.1f} x less memory" if "memory" in one else ""
    print(
        f"{one['what']:58} {one['evomerge']:9.3f} s {one['peer']:>14} {one['theirs']:9.3f} s "
        f"{one['ratio']:7.1f}x {wanted} {more}",
        flush=True,
    )


def machine() -> dict[str, Any]:
    """Say where and with what it was measured."""
    found = {name: version(name) for name in ("torch", "transformers", "mergekit", "lm_eval")}
    lines = Path("/proc/cpuinfo")
    text = lines.read_text(encoding="utf-8") if lines.is_file() else ""
    models = [
        line.partition(": ")[2] for line in text.splitlines() if line.startswith("model name")
    ]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load before": load,
        "python": platform.python_version(),
        **found,
    }


def draw(data: Any, to: Path) -> None:
    """Draw a bar from 1 to each ratio, with a tick where it is wanted, as a page of its own."""
    from plotly import graph_objects

    rows = list(reversed(data["rows"]))
    wanted = [one for one in rows if one["wanted"]]
    below = [bool(one["wanted"]) and one["ratio"] < one["wanted"] for one in rows]
    figure = graph_objects.Figure(
        [
            graph_objects.Bar(
                base=1,
                x=[one["ratio"] - 1 for one in rows],
                y=[f"{one['what']} ({one['peer']})" for one in rows],
                text=[f"{one['ratio']:.1f}" for one in rows],
                textposition="outside",
                marker={"color": ["#d9822b" if missed else "#4c78a8" for missed in below]},
                orientation="h",
                name="measured; orange: less than wanted",
            ),
            graph_objects.Scatter(
                x=[one["wanted"] for one in wanted],
                y=[f"{one['what']} ({one['peer']})" for one in wanted],
                mode="markers",
                marker={"symbol": "line-ns-open", "size": 16, "color": "black"},
                name="wanted",
            ),
        ]
    )
    on = data["machine"]
    figure.update_layout(
        title=f"The peer's time over evomerge's: {on['processor']}, {on['cores']} cores",
        xaxis={
            "type": "log",
            "title": "ratio",
            "tickvals": [0.2, 0.5, 1, 2, 5, 10, 20, 50, 100],
            "range": [-0.5, 2.1],
        },
        legend={"orientation": "h", "y": 1.02},
        height=120 + 24 * len(rows),
        margin={"l": 420},
        template="plotly_white",
    )
    figure.write_html(to, include_plotlyjs=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="a few minutes, by processor time")
    parser.add_argument("--record", action="store_true", help="keep the small form's ratios")
    parser.add_argument("--to", type=Path, default=Path("runs/bench"), help="a folder")
    arguments = parser.parse_args()
    began, on, rows = time.monotonic(), machine(), []
    for one in small() if arguments.small else whole():
        show(one)
        rows.append(one)
    data = {"machine": on, "seconds": round(time.monotonic() - began), "rows": rows}
    if arguments.small:
        return judge(rows, on["processor"], arguments.record)
    arguments.to.mkdir(parents=True, exist_ok=True)
    (arguments.to / "bench.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    draw(data, arguments.to / "bench.html")
    print(f"{data['seconds']} s; {arguments.to / 'bench.json'}, {arguments.to / 'bench.html'}")
    return int(any(one["wanted"] and one["ratio"] < one["wanted"] for one in rows))


def judge(rows: list[Row], processor: str, record: bool) -> int:
    """Compare ratios with those on record; return 1 where one has fallen by a third.

    Processors differ by more than that, so those of another one are not compared.
    """
    if record:
        ratios = {one["what"]: round(one["ratio"], 2) for one in rows}
        text = json.dumps({"processor": processor, "ratios": ratios}, indent=2)
        RECORD.write_text(text + "\n", encoding="utf-8")
        return 0
    kept = json.loads(RECORD.read_text(encoding="utf-8"))
    if kept["processor"] != processor:
        print(f"not compared: on record are ratios on {kept['processor']}, this is {processor}")
        return 0
    known = kept["ratios"]
    fallen = [one for one in rows if one["ratio"] < FALLEN * known.get(one["what"], 0)]
    for one in fallen:
        print(f"{one['what']}: {one['ratio']:.2f}x, and {known[one['what']]:.2f}x on record")
    return int(bool(fallen))


if __name__ == "__main__":
    raise SystemExit(main())
