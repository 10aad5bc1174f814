"""Scoring rehearsed on the campaign's own tasks."""

from __future__ import annotations

import pytest
import tiny
import torch
import yaml
from configs import small_config

from evomerge.check.products import Products
from evomerge.check.scoring import DEPTH, Rehearsal
from evomerge.check.stand_in import Shallow, guessed_tokenizer, tokenizer_for
from evomerge.config import FitnessConfig

GENERATION = {
    "task": "write",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "pick.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tasks")
    tiny.save_task(place)
    (place / "write.yaml").write_text(yaml.safe_dump(GENERATION))
    tiny.save_tokenizer(place)
    return place


def rehearsal(folder, task="pick", batch=16):
    metric = "acc" if task == "pick" else "exact_match"
    fitness = FitnessConfig(
        include_path=str(folder), tasks=[{"task": task, "metric": metric}], batch_size=batch
    )
    shallow = Shallow(small_config(), DEPTH, torch.float32, "cpu", False)
    found = Rehearsal(fitness, shallow, tokenizer_for(folder, 64, fitness, False))
    return found, {task: found._tasks.items[0].ids}


class Counted(Products):
    """A second for every multiplication and addition."""

    def _one(self, product):
        return 2.0 * product.rows * product.inner * product.columns


def test_seconds_add_up_to_the_products_of_a_whole_candidate(folder):
    found, items = rehearsal(folder)
    line, asked = found.seconds(items, Counted("cpu"))
    found._shallow.cut(DEPTH)
    *_, products = found._run(items, DEPTH)
    whole = Counted("cpu").seconds(products)
    assert line.at(DEPTH) * len(items["pick"]) == pytest.approx(whole, rel=0.02)
    assert asked < len(items["pick"])  # a few stand for all
    layer = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)  # of one token
    tokens = line.layer / layer
    assert 5 <= tokens <= 6  # five words, and what begins a text


def test_longer_items_stand_for_themselves(folder):
    found, items = rehearsal(folder, batch=4)
    sizes = found._tasks.prompts("pick")
    longest = found._longest("pick", items["pick"])
    assert len(longest) == 4
    assert max(max(sizes[item]) for item in items["pick"]) == max(sizes[longest[0]])


def test_a_batch_takes_memory_in_proportion_to_its_rows(folder):
    few, items = rehearsal(folder, batch=8)
    many, _ = rehearsal(folder, batch=32)
    lives = [
        one._run({"pick": one._longest("pick", items["pick"])}, DEPTH)[1] for one in (few, many)
    ]
    assert 3 < lives[1] / lives[0] < 5


def test_answers_are_taken_to_be_as_long_as_they_may(folder):
    found, items = rehearsal(folder, "write")
    assert found.bytes(items).layer > 0  # the cache
    assert rehearsal(folder)[0].bytes({"pick": items["write"]}).layer == 0
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
