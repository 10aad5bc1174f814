"""Engines are plugs: one class answers a campaign's requests, and says what it found out."""

from __future__ import annotations

import hashlib

import pytest
import tiny
from silent import Silent

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.fitness import engines
from evomerge.fitness.engines import Engine, Response, engine
from evomerge.fitness.inference.memory import ON_CPU
from evomerge.study.run_folder import open_run
from evomerge.workers.worker import Worker, WorkerSpec


@pytest.fixture
def oracle():
    """An engine that draws its answers from recipes and requests, and needs no model."""
    asked = []

    @engine("oracle")
    class Oracle(Engine):
        """Answers without a model."""

        lm = None

        def __init__(self, context, *, salt: str = ""):
            super().__init__(context)
            asked.append(dict(context.facts))
            self._salt = salt

        def load(self, recipe):
            self._recipe = recipe.digest

        def prepare(self, requests):
            self._prepared = len(requests)

        def answer(self, requests, counted=False):
            return [Response((self._drawn(request.args), False)) for request in requests]

        def _drawn(self, args):
            text = self._salt + self._recipe + repr(args)
            return -int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32

        @property
        def facts(self):
            return {"calls": len(asked), "requests": self._prepared}

    yield asked
    del engines.REGISTRY.known["oracle"]


def run(folder, engine, trials=3, out="run"):
    fitness = {"include_path": "tasks", "tasks": [{"task": "pick"}], "select_top": 1}
    if engine:
        fitness["engine"] = engine
    tiny.save_campaign(folder, fitness=fitness, budget={"trials": trials})
    config = load_campaign(folder / "campaign.yaml")
    with open_campaign(prepare(config), folder / out, Silent()) as campaign:
        campaign.run()
    return open_run(folder / out)[1]


def test_another_engine_is_one_class(oracle, tiny_folder):
    study = run(tiny_folder, {"kind": "oracle", "salt": "a"})
    scores = [e.scores["pick"].tolist() for e in study.evaluations() if e.split == "search"]
    assert len({tuple(one) for one in scores}) > len(scores) / 2
    other = run(tiny_folder, {"kind": "oracle", "salt": "b"}, out="other")
    assert other.evaluations()[0].scores["pick"].tolist() != scores[0]


def test_what_an_engine_found_out_is_recorded_and_given_back_on_resume(oracle, tiny_folder):
    study = run(tiny_folder, {"kind": "oracle"}, trials=2)
    assert oracle == [{}]
    assert study.note("engine") == {"calls": 1, "requests": 240}
    study = run(tiny_folder, {"kind": "oracle"}, trials=3)
    assert oracle == [{}, {"calls": 1, "requests": 240}]
    assert study.note("engine") == {"calls": 1, "requests": 240}  # of several, the least


def test_the_stock_engine_records_its_batches_and_takes_them_up_again(tiny_folder):
    study = run(tiny_folder, {"kind": "hf", "batch_tokens": 50}, trials=1)
    assert study.note("engine") == {"batch_tokens": 50}
    setup = prepare(load_campaign(tiny_folder / "campaign.yaml", ["fitness.engine={kind: hf}"]))
    for facts, expected in (({}, ON_CPU), ({"batch_tokens": 50}, 50)):
        worker = Worker(WorkerSpec(setup.config, setup.items, threads=1, facts=facts))
        assert worker._engine.facts == {"batch_tokens": expected}


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"kind": "hg"}, r"engine.kind: no engine is called 'hg'; there are api, hf"),
        ({"kind": "hf", "batch_token": 3}, r"fitness.engine.batch_token: unknown option of hf"),
        ({"kind": "hf", "batch_tokens": 0}, "fitness.engine.batch_tokens: expected at least 1"),
        ({"kind": "api"}, "fitness.engine.url: required, but not given"),
    ],
)
def test_an_engine_that_is_not_there_is_named_before_any_work(engine, said, tiny_folder):
    with pytest.raises(InputError, match=said):
        run(tiny_folder, engine)
