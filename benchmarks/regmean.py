"""A candidate by RegMean or PLeaS beside a linear one: the first with a value, and later ones.

Run `python benchmarks/regmean.py`. The models of `materialize.py` (68 M parameters, base and three
experts in bf16) with made-up Gram matrices of every linear layer. Timed are a linear merge of all
tensors into float32, and for each method the merge that solves and keeps its solutions (`first`),
and one that finds them kept (`later`), as all candidates with the value do. It is the processor's
own time, the least of three for `linear` and `later`. Exits with 1 when a later candidate takes
more than 10 times a linear one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from materialize import EXPERTS, recipe_of, save_models

from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import plan
from evomerge.materialize.statistics.statistics import Statistics
from evomerge.materialize.statistics.store import Store
from evomerge.models.checkpoint import Checkpoint, open_checkpoint
from evomerge.models.checks.digests import digests_of
from evomerge.models.files.calibration_file import (
    CalibrationHead,
    open_calibration,
    write_calibration,
)
from evomerge.recipe import BASE

BAR = 10.0
METHODS = ("regmean", "pleas")


def calibrate(folder: Path, source: Checkpoint) -> None:
    """Write Gram matrices of random inputs, one for each linear layer."""
    tensors = {}
    for spec in source.layout.tensors:
        if spec.layer is not None and len(spec.shape) == 2:
            inputs = torch.randn(2 * spec.shape[1], spec.shape[1])
            tensors[f"gram/{spec.name}"] = inputs.T @ inputs / len(inputs)
            tensors[f"cross/{spec.name}"] = tensors[f"gram/{spec.name}"].clone()
    file = folder / f"{source.name}.safetensors"
    source.calibrate_with(open_calibration(write_calibration(file, CalibrationHead(""), tensors)))


def main() -> int:
    """Measure, and print a line for each method."""
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
        for expert in EXPERTS:
            calibrate(folder, sources[expert])
        layout = sources[BASE].layout
        out = {spec.name: torch.empty(spec.shape) for spec in layout.tensors}
        store = Store(folder / "statistics", digests_of(sources))

        def candidate(method: str) -> Callable[[], None]:
            kernel = Kernel(sources, statistics=Statistics(store=store))
            steps = plan(recipe_of(method, sources), layout, sources)
            return lambda: kernel.fill_all([(out[s.tensor.name], s) for s in steps], 0)

        linear = worked(candidate("linear"), 3)
        rows = {}
        for method in METHODS:
            merge = candidate(method)
            rows[method] = {"first": worked(merge, 1), "later": worked(merge, 3)}
    if arguments.json:
        print(json.dumps({"linear": linear, **rows}))
    for method, row in rows.items() if not arguments.json else ():
        print(
            f"{method}: first {row['first']:.1f} s, later {row['later']:.2f} s, "
            f"linear {linear:.2f} s: {row['later'] / linear:.1f}x"
        )
    return int(any(row["later"] > BAR * linear for row in rows.values()))


def worked(work: Callable[[], None], times: int) -> float:
    """Return the least processor time, in seconds."""
    found = []
    for _ in range(times):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


if __name__ == "__main__":
    raise SystemExit(main())
