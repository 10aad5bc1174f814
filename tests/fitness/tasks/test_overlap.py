"""Copies and near copies of search documents among the test documents."""

from __future__ import annotations

import random
import time

import pytest

from evomerge.fitness.tasks.overlap import near_copies


def texts(count, seed, words=40):
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(5000)}" for _ in range(words)) for _ in range(count)]


def test_copies_and_near_copies_are_found_and_nothing_else():
    search = texts(50, seed=0)
    edited = search[3].split()
    edited[20] = "changed"
    half = " ".join([*search[4].split()[:20], *texts(1, seed=2, words=20)[0].split()])
    test = [*texts(20, seed=1), search[7], " ".join(edited), half, "too short"]
    assert near_copies(search, test) == ([20], [20, 21])


def test_what_a_template_says_makes_no_near_copy():
    template = " ".join(f"please{i}" for i in range(30))
    search = [f"{template} {text}" for text in texts(40, seed=0, words=9)]
    test = [f"{template} {text}" for text in texts(40, seed=1, words=9)]
    assert near_copies(search, test) == ([], [])
    assert near_copies([], test) == ([], [])


@pytest.mark.slow
def test_20000_documents_take_seconds():
    pool = texts(300, seed=0, words=200)
    draw = random.Random(1)
    documents = [" ".join(draw.sample(pool[i % 300].split(), 200)) for i in range(20_000)]
    started = time.process_time()
    exact, near = near_copies(documents[:13_000], documents[13_000:] + documents[:5])
    assert near == exact == list(range(7000, 7005))
    assert time.process_time() - started < 60
