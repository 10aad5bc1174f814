"""How much of a candidate was merged before: groups of tensors that candidates have in common.

Run `python benchmarks/repeated_groups.py`. No model is merged: CMA-ES (and NSGA-II for comparison)
proposes candidates of the quickstart's models in several spaces, and is told how near each is to a
hidden optimum. Of every candidate, each tensor's rule (method, coefficients, experts, seed) is
digested. Printed is the share of its parameters whose rule is the one of the candidate before, and
the share that any candidate of the last generation had: the merging that a cache by digest would
save at best. A worker already keeps what the candidate before it had in a layer.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.campaign.setup import prepare
from evomerge.common.digest import content_digest
from evomerge.config import load_campaign
from evomerge.judging.scores import Scores
from evomerge.materialize.plan import plan
from evomerge.search.optimizers.build import build_optimizer

CAMPAIGN = Path(__file__).parents[1] / "search_spaces" / "quickstart" / "quickstart.yaml"
LAYER = "space.weights={method: %s, granularity: %s, genes: {weight: [0, 1.5]%s}}"
SPACES = {
    "task arithmetic, a gene a layer": [LAYER % ("task_arithmetic", "layer", "")],
    "task arithmetic, one gene a model": [LAYER % ("task_arithmetic", "model", "")],
    "TIES, genes a layer": [LAYER % ("ties", "layer", ", density: [0.2, 1]")],
    "method chosen a layer": [
        "space.weights={method: [linear, ties, slerp], methods_per: group, granularity: layer}"
    ],
    "layers swapped": [
        "space.weights=null",
        "space.path={kind: layer_swap, outer: base, inner: math}",
    ],
}
"""Name → the campaign's overrides."""


def shares(overrides: list[str], kind: str, generations: int) -> tuple[float, float]:
    """Of candidates after the first generation: shared with the one before, with the generation."""
    options = "{kind: cma, population: 10}" if kind == "cma" else "{kind: nsga2, population: 10}"
    config = load_campaign(CAMPAIGN, [*overrides, f"optimizer={options}"])
    setup = prepare(config, unread=True)
    space, layout = setup.space, setup.models.layout
    optimizer = build_optimizer(config.optimizer, space, 0)
    optimum = np.random.default_rng(0).uniform(size=len(space.initial))
    before: list[dict[Any, int]] = []
    found = []
    for ask in range(10 * generations):
        proposal = optimizer.ask(ask)
        recipe = space.decode(proposal.genome)
        rules = {}
        for step in plan(recipe, layout, setup.models.sources):
            rule = step.rule and (step.rule.method.name, step.rule.experts, step.rule.arguments)
            digest = content_digest([step.name, step.tensor.name, step.source, repr(rule)])
            rules[digest] = math.prod(step.tensor.shape)
        whole = sum(rules.values())
        if ask >= 10:
            last = before[-1]
            any_ = {key for one in before[-10:] for key in one}
            found.append(
                [sum(n for k, n in rules.items() if k in known) / whole for known in (last, any_)]
            )
        before.append(rules)
        off = float(np.square(proposal.genome - optimum).mean())
        optimizer.tell(proposal, Scores(value=-off, se=0.0, n=1))
    last_share, any_share = np.mean(found, axis=0)
    return float(last_share), float(any_share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--generations", type=int, default=20)
    arguments = parser.parse_args()
    print("| space | optimizer | as the candidate before | as one of the last 10 |")
    print("|---|---|---|---|")
    for name, overrides in SPACES.items():
        for kind in ("cma", "nsga2"):
            last, any_ = shares(overrides, kind, arguments.generations)
            print(f"| {name} | {kind} | {last:.0%} | {any_:.0%} |", flush=True)


if __name__ == "__main__":
    main()
