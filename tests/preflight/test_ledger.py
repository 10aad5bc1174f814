"""Rehearsals: products are counted and not computed, memory is what would be taken."""

from __future__ import annotations

import pytest
import torch
from configs import small_config
from torch.utils.flop_counter import FlopCounterMode

from evomerge.preflight.ledger import Ledger, Product
from evomerge.preflight.products import Products
from evomerge.preflight.stand_in import Shallow


def flops(products):
    return sum(2 * p.rows * p.inner * p.columns * n for p, n in products.items())


def forward(model, **options):
    tokens = torch.arange(40).reshape(4, 10)
    with torch.inference_mode():
        return model(input_ids=tokens, **options)


@pytest.fixture
def shallow():
    return Shallow(small_config(), 4, torch.float32, "cpu", False)


def test_the_products_are_those_of_the_forward_pass(shallow):
    with Ledger(shallow.model.parameters()) as ledger:
        forward(shallow.model)
    with FlopCounterMode(display=False) as counter:
        forward(shallow.model)
    counted = counter.get_flop_counts()["Global"]
    linear = sum(n for op, n in counted.items() if str(op) in ("aten.mm", "aten.addmm"))
    assert flops(ledger.products) == linear > 0


def test_a_weight_for_a_whole_batch_is_a_product_for_each_of_its_matrices():
    linear = torch.nn.Linear(16, 8)
    with Ledger(linear.parameters()) as ledger, torch.inference_mode():
        linear(torch.ones(4, 5, 16)[:, -1:])  # as the last positions of a prompt
        torch.bmm(torch.ones(4, 5, 16), torch.ones(4, 16, 8))  # no weight: computed
    assert ledger.products == {Product(1, 16, 8, torch.float32): 4}


def test_weights_are_never_read(shallow):
    for parameter in shallow.model.parameters():
        parameter.fill_(torch.nan)
    shallow.model.model.norm.weight.zero_()
    for layer in shallow.model.model.layers:
        layer.input_layernorm.weight.zero_()
        layer.post_attention_layernorm.weight.zero_()
    shallow.model.model.embed_tokens.weight.zero_()
    with Ledger(shallow.model.parameters()):
        assert torch.isfinite(forward(shallow.model).logits).all()


def test_a_cut_model_asks_for_as_many_products_as_it_has_layers(shallow):
    counts = []
    for depth in (1, 2, 4):
        shallow.cut(depth)
        with Ledger() as ledger:
            forward(shallow.model)
        counts.append(sum(ledger.products.values()))
    assert counts[1] - counts[0] == (counts[2] - counts[1]) / 2 == 7


def test_what_lives_is_counted_while_it_lives():
    with Ledger() as ledger:
        kept = torch.ones(1000)
        for _ in range(3):
            torch.ones(500).exp()
    assert ledger.live == kept.nbytes == 4000
    assert ledger.peak == 4000 + 2 * 2000


def test_given_tensors_and_their_views_do_not_count():
    given = torch.ones(1000)
    with Ledger([given]) as ledger:
        assert given.view(10, 100)[0].t().shape == (100,)
    assert ledger.peak == 0


def test_a_head_prefers_the_token_that_it_is_told(shallow):
    with Ledger(choice=(64, 7)):
        assert (forward(shallow.model).logits.argmax(-1) == 7).all()


def test_the_cache_is_what_grows_with_depth(shallow):
    bytes_ = []
    for depth in (3, 4):
        shallow.cut(depth)
        with Ledger(shallow.model.parameters()) as ledger:
            out = forward(shallow.model, use_cache=True)
        bytes_.append(ledger.live)
        del out
    assert bytes_[1] - bytes_[0] == 2 * 4 * 10 * 2 * 8 * 4  # K and V, rows, tokens, heads, size


def test_more_rows_than_are_measured_take_in_proportion(monkeypatch):
    products = Products("cpu")
    measured = []
    monkeypatch.setattr(
        products, "_seconds", lambda *shape: measured.append(shape) or shape[0] * 1e-6
    )

    def seconds(rows, columns=8):
        return products.seconds({Product(rows, 16, columns, torch.float32): 1})

    assert seconds(5120) == pytest.approx(10 * seconds(512))
    assert seconds(64, 1 << 15) == pytest.approx(2 * seconds(64, 1 << 14))
    assert seconds(96) == pytest.approx(96e-6)  # between 64 and 128
    assert max(rows for rows, *_ in measured) == 512
    assert seconds(0) == 0


def test_a_real_product_is_measured():
    found = Products("cpu").seconds({Product(64, 64, 64, torch.float32): 2})
    assert 1e-7 < found < 0.1
