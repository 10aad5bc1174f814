"""A model runs layer by layer as it does as a whole, or is refused before any work."""

from __future__ import annotations

import pytest
import torch
from calibrating import layered, saved, texts
from families import FAMILIES, bloom
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaModel

from evomerge.common.errors import InputError


@pytest.mark.parametrize("family", [*FAMILIES, "bloom"])
def test_logits_are_those_of_the_whole_model(family, tmp_path):
    given = texts((24,))
    model, folder = saved(bloom() if family == "bloom" else family, tmp_path)
    one = layered(folder, given)
    with torch.no_grad():
        hidden = one.first(given[0])
        for layer in range(one.layers):
            with one.loaded(layer):
                hidden = one.through(given[0], hidden)
        found = one.logits(given[0], hidden)
        torch.testing.assert_close(found, model(given[0][None]).logits[0])


def test_only_one_layer_is_in_memory(tmp_path):
    given = texts((24,))
    _, folder = saved("llama", tmp_path)
    one = layered(folder, given)
    sizes = [sum(p.numel() for p in one.inside(layer).values()) for layer in range(one.layers)]
    assert sizes == [0, 0]
    with one.loaded(1):
        sizes = [sum(p.numel() for p in one.inside(layer).values()) for layer in range(one.layers)]
        assert sizes[0] == 0
        assert sizes[1] > 0


def test_layers_that_are_no_chain_are_refused_by_name(tmp_path, monkeypatch):
    def forward(self, input_ids, **kwargs):
        hidden = self.embed_tokens(input_ids)
        places = torch.arange(hidden.shape[1])[None]
        rotary, total = self.rotary_emb(hidden, places), 0
        for layer in self.layers:  # each layer's output is in the result
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
            total = total + hidden
        return BaseModelOutputWithPast(last_hidden_state=self.norm(total))

    given = texts((24,))
    _, folder = saved("llama", tmp_path)
    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(InputError, match=r"the model: LlamaForCausalLM is not calibrated here"):
        layered(folder, given)
