"""Vocabulary rows: every source read with as many as the base has."""

import torch

from evomerge.models.checkpoint import open_checkpoint
from evomerge.models.vocabulary import with_base_rows

EMBEDDING = "model.embed_tokens.weight"


def test_reading_with_the_bases_rows_copies_only_what_it_must(saved):
    base = open_checkpoint("base", str(saved("b")))
    same = open_checkpoint("same", str(saved("s", seed=1)))
    larger = open_checkpoint("larger", str(saved("l", seed=1, vocab_size=40)))
    for source in (base, same, larger):
        tensor = with_base_rows(source, base, base.layout.tensor(EMBEDDING))
        assert tensor.data_ptr() == source.read(EMBEDDING).data_ptr()


def test_rows_filled_from_the_base_have_an_exactly_zero_task_vector(saved):
    base = open_checkpoint("base", str(saved("b")))
    half = open_checkpoint("h", str(saved("h", seed=1, vocab_size=28, dtype=torch.float16)))
    filled = with_base_rows(half, base, base.layout.tensor(EMBEDDING))
    assert torch.count_nonzero(filled[28:].float() - base.read(EMBEDDING)[28:]) == 0
