"""What a gradient descent and plain cma need with 28, 276 and 980 genes on the same models.

    python benchmarks/many_genes.py

On `benchmarks/zoos/deep.py`, which is made if it is not there, task vectors are searched by blocks
of six layers, by module and by tensor. A descent from the uniform merge follows a bounded loss, 24
documents a step; after every third step it is scored on the search split, which is not counted.
Plain `cma` begins at the same merge. Printed are the items until a score `--share` (.9) of the way
from the start to the best of the descent with 28 genes, by the same seed; a document of a step
counts as three.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from searches import Found, campaign_of, run

from evomerge.campaign.descents import Chain
from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.search.descent import begin
from evomerge.study.record import Descend
from evomerge.workers.job import perform
from evomerge.workers.worker import Worker, WorkerSpec

GRANULARITIES = {
    "block": ("space.weights.granularity=block", "space.weights.block=6"),
    "module": (),
    "tensor": ("space.weights.granularity=tensor",),
}
BATCH, RATE, POWER = 24, 0.05, 0.7
"""Documents of a step, its length as a share of a gene's range, and what bounds the loss."""
EVERY = 3
"""Steps between two scores of a descent."""


def descend(campaign: Path, changes: tuple[str, ...], seed: int, steps: int) -> dict[str, Any]:
    """Descend from the uniform merge.

    Returns:
        `genes`, and of each look the `items` spent by then and the `scores` on the search split.
    """
    own = [*changes, "initial=[]", f"fitness.surrogate_loss.power={POWER}"]
    setup = prepare(load_campaign(campaign, own))
    worker = Worker(WorkerSpec(setup.config, setup.items, threads=1))
    asked = Descend("uniform", steps, RATE, BATCH, 0.0, 0, 0)
    chain, record = Chain(setup, asked, [seed]), begin("uniform", setup.space.initial, asked)
    items, scores = [], []
    while True:
        if record.step % EVERY == 0:
            recipe = setup.space.decode(np.array(record.genome))
            found = worker.measure(recipe, "search").scores
            items.append(record.items)
            scores.append(float(np.mean([values.mean() for values in found.values()])))
        if record.done:
            return {"genes": setup.space.dimension, "items": items, "scores": scores}
        job = chain.next_job(record)
        gradient = perform(worker, job).gradient
        assert gradient is not None
        record = chain.after(record, job, gradient)


def main() -> None:
    """Run what is not on record yet, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60, help="of a descent")
    parser.add_argument("--trials", type=int, default=150, help="of plain cma; 0 for none")
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--out", type=Path, default=Path("runs/many_genes"))
    given = parser.parse_args()
    campaign = campaign_of("deep", given.out / "zoos")
    for seed in range(given.seeds):
        target = math.inf
        for name, changes in GRANULARITIES.items():
            # 1. the descent; the first sets the score that all are to reach
            path = given.out / f"{name}-{seed}.json"
            if not path.is_file():
                path.write_text(json.dumps(descend(campaign, changes, seed, given.steps)))
            found = json.loads(path.read_text())
            items, scores, start = found["items"], found["scores"], found["scores"][0]
            if name == "block":
                target = start + given.share * (max(scores) - start)
            own = Found(items, scores, start, items[-1], math.nan, math.nan)  # no test split
            print(
                f"seed {seed}, {found['genes']} genes: from {start:.3f} to {max(scores):.3f} in "
                f"{items[-1]:,} items; {target:.3f} after {own.reached(target):,}",
                flush=True,
            )
            if not given.trials:
                continue
            # 2. plain cma
            plain = ["optimizer.plain=true", f"seed={seed}", "workers={isolated: false}"]
            folder = given.out / "cma" / name / str(seed)
            cma = run(campaign, folder, [*changes, *plain], given.trials, None)
            print(
                f"  plain cma: {cma.best[-1]:.3f} in {cma.asked:,} items; {target:.3f} after "
                f"{cma.reached(target):,}",
                flush=True,
            )


if __name__ == "__main__":
    main()
