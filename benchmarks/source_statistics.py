"""What the statistics of a campaign's sources cost: once computed, and again from the disk.

Run `python benchmarks/source_statistics.py`. The models of `materialize.py` (68 M parameters, base
and three experts in bf16). Timed are all histograms that TIES trims by, counted and written beside
a study (`first`), and mapped and checked by another worker (`again`), against three TIES merges by
mergekit 0.1.5 (`merge_tensors`, the faster of its two arithmetics). Exits with 1 when computing
them takes longer than the three merges.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from materialize import EXPERTS, mergekit_of, save_models, seconds

from evomerge.materialize.statistics.statistics import Statistics
from evomerge.materialize.statistics.store import Store
from evomerge.methods import View
from evomerge.methods.core.magnitude_histograms import magnitude_histogram
from evomerge.models.checkpoint import Checkpoint, open_checkpoint
from evomerge.recipe import BASE

MERGES = 3


def compute(sources: dict[str, Checkpoint], statistics: Statistics) -> None:
    """Every expert's histogram of every tensor."""
    for spec in sources[BASE].layout.tensors:
        base, *experts = (sources[name].read(spec.name).flatten() for name in (BASE, *EXPERTS))
        view = View(base, experts, torch.float32, shape=spec.shape)
        statistics.of(magnitude_histogram, view, spec.name, EXPERTS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        save_models(folder, arguments.layers)
        sources = {n: open_checkpoint(n, f"{name}/{n}") for n in (BASE, *EXPERTS)}
        digests = {n: source.digest for n, source in sources.items()}  # read into the page cache
        kept = folder / "statistics"
        first = seconds(lambda: compute(sources, Statistics(store=Store(kept, digests))))
        again = seconds(lambda: compute(sources, Statistics(store=Store(kept, digests))))
        disk = sum(file.stat().st_size for file in kept.glob("*/*"))
        merge = min(
            seconds(lambda dtype=dtype: mergekit_of("ties", sources, dtype))
            for dtype in (None, torch.float32)
        )
    row = {"first": first, "again": again, "disk": disk, "merges": MERGES * merge}
    if arguments.json:
        print(json.dumps(row))
    else:
        print(
            f"histograms of {len(EXPERTS)} experts: counted and written {first:.2f} s, mapped "
            f"again {again:.2f} s, {disk / 1e6:.1f} MB; {MERGES} TIES merges by mergekit "
            f"{MERGES * merge:.2f} s, {MERGES * merge / first:.1f}x the former"
        )
    return int(first > MERGES * merge)


if __name__ == "__main__":
    raise SystemExit(main())
