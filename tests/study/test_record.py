"""What goes into the study comes out of it, whole, and only what is whole."""

import subprocess
import sys
from dataclasses import fields
from datetime import UTC, datetime

import numpy as np
import pytest
from drivers import on_every_database
from optuna.distributions import FloatDistribution

from evomerge.study.record import Evaluation, Marker
from evomerge.study.study import Study

IDENTITY = {
    "models": {"base": "d0"},
    "optimizer": {"kind": "cma"},
    "versions": {"lm_eval": "0.4.13"},
}


def open_study(url, genes=3, **changes):
    distributions = {f"layer_{i}.weight": FloatDistribution(0.0, 1.5) for i in range(genes)}
    options = {"identity": IDENTITY, "campaign": {"name": "c"}, "genes": distributions} | changes
    return Study.create_or_resume(url, "c", **options)


def search_trial(genes=3, items=4, **changes):
    rng = np.random.default_rng(genes * 1000 + items)
    facts = {
        "split": "search",
        "digest": "d1",
        "recipe": {"path": [["base", 0, 1.0]], "merges": {"é": [0.1, 1 / 3]}, "seed": 3},
        "value": 1 / 3,
        "se": 0.01,
        "n": 2 * items,
        "estimated": True,
        "scores": {"add_b": rng.random(items), "mul": (rng.random(items) < 0.5).astype(float)},
        "params": {f"layer_{i}.weight": float(v) for i, v in enumerate(rng.random(genes))},
        "genome": rng.standard_normal(genes),
        "ask": 7,
        "tells": 5,
        "parents": (2, 4),
        "state": {"coverage": 0.75, "entropy": 0.5},
        "attempt": 2,
        "seconds": {"materialize": 0.25, "score": 1.5},
        "versions": {"lm_eval": "0.4.13", "torch": "2.13"},
        "finished": datetime(2026, 3, 4, 5, 6, 7, 891011, UTC),
    }
    return Evaluation(**facts | changes)


def assert_same(found, expected):
    for key in (field.name for field in fields(Evaluation)):
        value = getattr(expected, key)
        if key == "genome" and value is not None:
            assert found.genome.dtype == np.float64
            assert found.genome.tobytes() == value.tobytes()
        elif key == "scores":
            assert list(found.scores) == list(value)
            for task in value:
                assert found.scores[task].dtype == np.float64
                assert found.scores[task].tobytes() == value[task].tobytes()
        elif key == "finished":
            assert abs(found.finished - value).total_seconds() < 1  # MySQL keeps whole seconds
        else:
            assert getattr(found, key) == value, key


@on_every_database
@pytest.mark.parametrize(
    ("genes", "items"), [(3, 4), (64, 100), (65, 100), (1000, 5000)], ids=lambda n: str(n)
)
def test_an_evaluation_comes_back_bit_for_bit(url, genes, items):
    with open_study(url, genes) as study:
        recorded = study.add(search_trial(genes, items))
        assert recorded.number == 0
    with Study.read(url, "c") as study:
        (found,) = study.evaluations()
    assert_same(found, recorded)


def test_the_driver_sees_what_a_reader_sees(url):
    with open_study(url) as study:
        study.add(search_trial(digest="a"))
        assert [e.digest for e in study.evaluations()] == ["a"]
        study.add(search_trial(digest="b"))
        with Study.read(url, "c") as reader:
            for mine, theirs in zip(study.evaluations(), reader.evaluations(), strict=True):
                assert_same(mine, theirs)


@on_every_database
@pytest.mark.parametrize(
    "evaluation",
    [
        Evaluation(split="search", digest="d", recipe={}, reason="NonFiniteError: lm_head", ask=0),
        Evaluation(split="search", digest="d", recipe={"a": 1}, role="parent", name="m", value=0.0),
        Evaluation(split="test", digest="d", recipe={}, role="finalist", value=0.5, n=2,
                   scores={"t": np.array([np.nan, -np.inf])}),
        Evaluation(split="search", digest="d", recipe={}, value=1.0, scores={"none": np.array([])}),
        Evaluation(split="search", digest="d", recipe={}, value=float("-inf")),
    ],
    ids=["failed", "parent", "finalist", "no items", "-inf"],
)  # fmt: skip
def test_every_kind_of_evaluation_comes_back(url, evaluation):
    with open_study(url) as study:
        recorded = study.add(evaluation)
    with Study.read(url, "c") as study:
        (found,) = study.evaluations()
    assert_same(found, recorded)
    assert found.failed == (evaluation.value is None)


@on_every_database
def test_what_is_long_comes_back_from_databases_whose_text_is_short(url):
    names = [f"task_{i:04d}" for i in range(2000)]
    failed = search_trial(value=None, estimated=False, scores={}, reason="é" * 30_000, se=None)
    broad = search_trial(
        scores={name: np.array([i / 7]) for i, name in enumerate(names)},
        estimates={name: (i / 7, 0.01) for i, name in enumerate(names)},
    )
    with open_study(url) as study:
        recorded = [study.add(failed), study.add(broad)]
        study.set_note("tasks", names * 5)
    with Study.read(url, "c") as study:
        for ours, theirs in zip(study.evaluations(), recorded, strict=True):
            assert_same(ours, theirs)
        assert study.note("tasks") == names * 5
    with open_study(url) as study:
        study.set_note("tasks", ["one"])
        assert study.note("tasks") == ["one"]


@on_every_database
def test_markers_are_one_per_slot_and_go_stale_once_recorded(url):
    genome = np.random.default_rng(1).standard_normal(1000)
    with open_study(url) as study:
        study.mark(Marker(slot=1, digest="old", split="search"))
        study.mark(Marker(1, "b", "search", 2, ask=4, tells=3, genome=genome, parents=(0, 1)))
        study.mark(Marker(slot=0, digest="a", split="search"))
        study.mark(Marker(slot=10, digest="a", split="select"))
        assert [m.digest for m in study.markers()] == ["a", "b", "a"]
        study.add(search_trial(digest="a"))
    with Study.read(url, "c") as study:
        b, a = study.markers()
    assert (a.digest, a.split, a.genome, a.slot) == ("a", "select", None, 10)
    assert (b.slot, b.attempt, b.ask, b.tells, b.parents) == (1, 2, 4, 3, (0, 1))
    assert b.genome.dtype == np.float64
    assert b.genome.tobytes() == genome.tobytes()


def test_record_needs_neither_torch_nor_optuna():
    code = (
        "import sys, evomerge.study.record; "
        "print(sorted({'torch', 'optuna', 'sqlalchemy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
