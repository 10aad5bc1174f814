"""Scoring rehearsed on the campaign's own tasks."""

from __future__ import annotations

import pytest
import tiny
import torch
import yaml
from configs import small_config

from evomerge.config import FitnessConfig
from evomerge.preflight.products import Products
from evomerge.preflight.scoring import DEPTH, Rehearsal
from evomerge.preflight.stand_in import Shallow, guessed_tokenizer, tokenizer_for

GENERATION = tiny.generation_task("write", "{{answer}}", "pick.jsonl", until="\n")
LAYER = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
"""Operations of one token in a layer of `small_config`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`pick` and `write`; `shots`, `pick` with three examples; `many`, more of the same kind."""
    place = tmp_path_factory.mktemp("tasks")
    tiny.save_task(place)
    tiny.save_task(place, "many", 400)
    shots = yaml.safe_load((place / "pick.yaml").read_text())
    shots |= {"task": "shots", "num_fewshot": 3, "fewshot_config": {"sampler": "first_n"}}
    for task in (GENERATION, shots):
        (place / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    tiny.save_tokenizer(place)
    return place


def rehearsal(folder, *tasks, batch=16, tokens=None):
    """Of these tasks, and all their items."""
    fitness = FitnessConfig(
        include_path=str(folder),
        tasks=[{"task": t, "metric": "exact_match" if t == "write" else "acc"} for t in tasks],
        batch_size=batch,
        engine={"kind": "hf", "batch_tokens": tokens},
    )
    shallow = Shallow(small_config(), DEPTH, torch.float32, "cpu", False)
    found = Rehearsal(fitness, shallow, tokenizer_for(folder, 64, fitness, False))
    return found, {one.task: one.ids for one in found._tasks.items}


class Counted(Products):
    """A second for every multiplication and addition."""

    def _one(self, product):
        return 2.0 * product.rows * product.inner * product.columns


@pytest.mark.parametrize("tasks", [("pick",), ("pick", "shots", "write")], ids=str)
def test_seconds_add_up_to_the_products_of_a_whole_candidate(folder, tasks):
    found, items = rehearsal(folder, *tasks, tokens=64)
    line, asked = found.seconds(items, Counted("cpu"))
    whole = Counted("cpu").seconds(found._run(items, DEPTH)[2])
    count = sum(map(len, items.values()))
    assert line.at(DEPTH) * count == pytest.approx(whole, rel=0.02)
    assert asked < count  # a few stand for all


def test_what_requests_have_in_common_counts_once(folder):
    read = {}
    for task in ("pick", "shots"):
        found, items = rehearsal(folder, task)
        read[task] = found.seconds(items, Counted("cpu"))[0].layer / LAYER
    assert 4.5 < read["pick"] <= 5.5  # five words; the choice is only predicted
    assert read["shots"] < 7  # and once, for all, three times as many of examples


def test_longer_items_stand_for_themselves(folder):
    found, items = rehearsal(folder, "pick", tokens=16)
    sizes = found._tasks.prompts("pick")
    longest = found._longest("pick", items["pick"])
    assert len(longest) < 10
    assert min(max(sizes[item]) for item in longest) >= max(
        max(sizes[item]) for item in items["pick"] if item not in longest
    )


def alive(found, items):
    """The most bytes alive at a time, when the batches have been put together before."""
    return [found._run(items, DEPTH)[1] for _ in range(2)][-1]


def test_log_likelihoods_take_memory_in_proportion_to_a_batchs_tokens(folder):
    lives = []
    for tokens, rows in ((128, 64), (512, 4)):
        found, items = rehearsal(folder, "many", tokens=tokens, batch=rows)
        lives.append(alive(found, {"many": found._longest("many", items["many"])}))
        # Others may have more in common, and so stand in longer packs, with more attention.
        assert lives[-1] == pytest.approx(alive(found, items), rel=0.15)
    assert 3 < lives[1] / lives[0] < 5


def test_a_generation_takes_memory_in_proportion_to_its_rows(folder):
    lives = []
    for rows in (4, 16):
        found, items = rehearsal(folder, "write", batch=rows)
        lives.append(alive(found, {"write": found._longest("write", items["write"])}))
    assert 3 < lives[1] / lives[0] < 5


def test_answers_are_taken_to_be_as_long_as_they_may(folder):
    found, items = rehearsal(folder, "write")
    assert found.bytes(items).layer > 0  # the cache
    scored, others = rehearsal(folder, "pick")
    assert scored.bytes(others).layer == 0
    *_, products = found._run(items, 1)
    heads = sum(product.rows * n for product, n in products.items() if product.columns == 64)
    assert heads == 8 * len(items["write"])  # steps


def test_a_guessed_tokenizer_tells_texts_apart_and_leaves_answers_tokens():
    texts = ["What is the answer? Yes", "What is the answer? No", "数学の問題です。答えは12です"]
    tokenizer = guessed_tokenizer(1000, texts)
    encoded = [tokenizer.encode(text) for text in texts]
    assert encoded[0] != encoded[1]
    assert encoded[0][:-1] == encoded[1][:-1]
    assert 4 <= len(encoded[0]) <= 9
    assert tokenizer.unk_token_id not in encoded[2]
