"""Runs of a folder's campaign, and what is on record of them."""

from __future__ import annotations

from silent import Silent

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.study.run_folder import open_run


def run(folder, out=None, overrides=(), deadline=None):
    """Run the folder's campaign; returns the run's folder."""
    out = out or folder / "run"
    config = load_campaign(folder / "campaign.yaml", overrides)
    with open_campaign(prepare(config, out), out, Silent()) as campaign:
        campaign.run(deadline)
    return out


def evaluations(out):
    _, study = open_run(out)
    return study.evaluations()


def facts(out):
    """What must be the same in every run of one campaign: order, recipes, scores."""
    return [
        (e.role, e.name, e.split, e.digest, e.value, e.ask, e.tells, _bytes(e.scores))
        for e in evaluations(out)
    ]


def _bytes(scores):
    return {task: values.tobytes() for task, values in scores.items()}
