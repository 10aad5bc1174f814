"""Studies with invented scores, written as a driver writes them: no model, no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from optuna.distributions import FloatDistribution

from evomerge.config import SPLITS, parse_campaign
from evomerge.judging.scores import Judge
from evomerge.recipe import Merge, Recipe, Slot
from evomerge.results.results import Results
from evomerge.study.judged import scores_of
from evomerge.study.record import Evaluation
from evomerge.study.run_folder import remember_campaign, study_place
from evomerge.study.study import Study

COUNTS = {"search": 40, "select": 16, "test": 24}
REFERENCES = {
    ("parent", "base"): 0.35,
    ("parent", "math"): 0.45,
    ("parent", "lang"): 0.5,
    ("baseline", "ties default"): 0.55,
    ("baseline", "average"): 0.4,
}


class Invented:
    """A run's folder whose study is filled by hand."""

    def __init__(
        self,
        folder: Path,
        *,
        tasks=("add", "mul"),
        experts=("math", "lang"),
        layers=3,
        method="ties",
        granularity="layer",
        genes=None,
        budget=20,
        lower_is_better=(),
        optimizer="cma",
        workers=1,
        graded=False,
    ):
        """`graded`: an item that is right counts more than a half, each another amount."""
        self.folder, self.graded = folder, graded
        self.tasks, self.experts, self.layers = tasks, experts, layers
        self.granularity = granularity
        self.rng = np.random.default_rng(0)
        weights = {
            "method": method,
            "granularity": granularity,
            "genes": genes or {"weight": [0, 1.5], "lambda": [0.5, 1.5], "density": 0.4},
        }
        config = parse_campaign(
            {
                "name": "invented",
                "models": {"base": "zoo/base", "experts": {e: f"zoo/{e}" for e in experts}},
                "space": {"weights": weights},
                "fitness": {"tasks": [{"task": t} for t in tasks]},
                "optimizer": {"kind": optimizer},
                "budget": {"trials": budget},
                "workers": {"kind": "ray", "count": workers} if workers > 1 else {},
            },
            "campaign",
        )
        remember_campaign(config, folder)
        campaign = config.model_dump(mode="json")
        self.genes = list(self._names())
        self.study = Study.create_or_resume(
            *study_place(config, folder),
            identity={
                "models": {n: f"digest-of-{n}" for n in ("base", *experts)},
                "versions": {"lm_eval": "0"},
            },
            campaign=campaign,
            genes=dict.fromkeys(self.genes, FloatDistribution(-9.0, 9.0)),
        )
        self.study.set_items(
            {s: {t: [f"{t}{s}{i}" for i in range(COUNTS[s])] for t in tasks} for s in SPLITS}
        )
        self.study.set_note(
            "tasks",
            [
                {
                    "task": t,
                    "metric": "acc",
                    "weight": 1.0,
                    "higher_is_better": t not in lower_is_better,
                }
                for t in tasks
            ],
        )
        self.judge: Judge = self.results.judge
        self.asked = 0

    @property
    def results(self):
        """The study's results as it stands."""
        return Results(self.study)

    def _groups(self):
        yield None, "embeddings"
        modules = ("attention", "mlp") if self.granularity == "module" else ("layer",)
        yield from ((layer, module) for layer in range(self.layers) for module in modules)
        yield None, "final_norm"

    def _names(self):
        for slot, group in self._groups():
            yield from (f"weight.{slot}.{group}.{expert}" for expert in self.experts)
            yield f"lambda.{slot}.{group}"

    def recipe(self, coefficients=None):
        """A recipe with one coefficient a gene; random ones when none are given."""
        given = iter(self.rng.random(len(self.genes)) if coefficients is None else coefficients)
        merges = [
            Merge(
                slot=slot,
                group=group,
                method="ties",
                experts={e: {"weight": float(next(given)), "density": 0.4} for e in self.experts},
                parameters={"lambda": float(next(given))},
            )
            for slot, group in self._groups()
        ]
        return Recipe(
            sources={n: f"digest-of-{n}" for n in ("base", *self.experts)},
            path=tuple(Slot(source="base", layer=layer) for layer in range(self.layers)),
            merges=tuple(merges),
        )

    def add(
        self,
        recipe,
        level=None,
        *,
        split="search",
        role="search",
        name=None,
        reason=None,
        items=None,
        pruned=None,
        **facts,
    ):
        """Record one evaluation whose items are right with probability `level`.

        `items` gives them outright; `pruned` is how many of each task were measured, when it was
        pruned at a rung; `facts` are the evaluation's own.
        """
        if items is None:
            items = {t: (self.rng.random(COUNTS[split]) < (level or 0)) * 1.0 for t in self.tasks}
            if self.graded:
                items = {t: v * np.linspace(0.5, 1, len(v)) for t, v in items.items()}
        estimates = {}
        if pruned is not None:
            estimates = {t: (float(v[:pruned].mean()), 0.05) for t, v in items.items()}
            items = {t: np.where(np.arange(len(v)) < pruned, v, np.nan) for t, v in items.items()}
        scores = scores_of(self.judge, items, estimates) if reason is None else None
        own = role == "search"
        evaluation = Evaluation(
            split=split,
            digest=recipe.digest,
            recipe=recipe.to_json(),
            role=role,
            name=name,
            value=scores.value if scores else None,
            se=scores.se if scores else None,
            n=scores.n if scores else 0,
            estimated=pruned is not None,
            estimates=estimates,
            scores=items if scores else {},
            reason=reason,
            params=dict.fromkeys(self.genes, 0.5) if own else {},
            genome=np.zeros(len(self.genes)) if own else None,
            ask=self.asked if own else None,
            tells=self.asked if own else None,
            seconds={"score": 0.5},
            versions={"torch": "2.0"},
        )
        self.asked += own
        return self.study.add(replace(evaluation, **facts))

    def references(self, split="search"):
        """Parents and baselines, each a fixed recipe of its own."""
        for place, ((role, name), level) in enumerate(REFERENCES.items()):
            recipe = self.recipe([place] * len(self.genes))
            self.add(recipe, level, split=split, role=role, name=name)
        return self

    def search(self, levels, fail=None):
        """One trial a level; those in `fail` (index → reason) fail."""
        for place, level in enumerate(levels):
            self.add(self.recipe(), level, reason=(fail or {}).get(place))
        return self

    def finish(self, level=0.9):
        """Select and test for the best trial, and the notes a driver leaves.

        `level`: the chance of an item of select and test to be right.
        """
        trials = [e for e in self.study.evaluations() if e.optimizers_own and not e.failed]
        winner = Recipe.from_json(max(trials, key=lambda e: e.value).recipe)
        for split in ("select", "test"):
            self.references(split)
            self.add(winner, level, split=split, role="finalist")
        count = sum(e.optimizers_own for e in self.study.evaluations())
        self.opened({"trials": count, "winner": winner.digest})
        trials = len([e for e in self.study.evaluations() if e.optimizers_own])
        self.study.set_note("concluded", {"winner": winner.digest, "trials": trials})
        return self

    def opened(self, *entries):
        """Note further openings of the test split."""
        before = self.study.note("test_opened") or []
        self.study.set_note("test_opened", [*before, *entries])
        return self
