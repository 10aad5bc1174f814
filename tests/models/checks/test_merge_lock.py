from pathlib import Path

import pytest
import torch
from permuted import logits, permuted

from evomerge.common.errors import InputError
from evomerge.models.checkpoint import open_checkpoint
from evomerge.models.checks.checked_models import check_models
from evomerge.models.checks.merge_lock import lock_of

GROUPED = {"num_attention_heads": 4, "head_dim": 8, "hidden_size": 32}


def lock(model, seed=0):
    """MergeLock on every KV head: a scaling and a rotation per plane of positions for queries and
    keys, any invertible matrix for values and output.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    shared, width = config.num_key_value_heads, config.head_dim
    size, half = config.num_attention_heads // shared, width // 2
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            q, k, v = (getattr(attention, f"{n}_proj").weight for n in "qkv")
            for group in range(shared):
                angle = 6.3 * torch.rand(half, generator=generator)
                scale = 0.5 + torch.rand(half, generator=generator)
                cos, sin = (scale * angle.cos()).diag(), (scale * angle.sin()).diag()
                turn = torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])
                mix = torch.randn(width, width, generator=generator) + 2 * torch.eye(width)
                rows = slice(group * width, (group + 1) * width)
                k[rows], v[rows] = turn @ k[rows], mix @ v[rows]
                for head in range(group * size, (group + 1) * size):
                    rows = slice(head * width, (head + 1) * width)
                    q[rows] = torch.linalg.inv(turn).T @ q[rows]
                    columns = attention.o_proj.weight[:, rows]
                    attention.o_proj.weight[:, rows] = columns @ torch.linalg.inv(mix)
    return model


def disturb(model, size, seed=1):
    """Noise of `size` relative to each weight's own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(noise * size * weight.std())
    return model


@pytest.fixture
def saved_as(add_tokenizer, tmp_path):
    def save(model, name):
        model.save_pretrained(tmp_path / name)
        add_tokenizer(tmp_path / name)
        return open_checkpoint(name, str(tmp_path / name))

    return save


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4}])
@pytest.mark.parametrize("finetuned", [0.0, 0.1, 0.3])
def test_a_locked_expert_computes_the_same_and_is_refused(
    model_of, saved_as, campaign, changes, finetuned
):
    sizes = {**GROUPED, **changes}
    base = saved_as(model_of("llama", **sizes), "base")
    expert = disturb(model_of("llama", **sizes), finetuned)
    before = logits(expert)
    torch.testing.assert_close(logits(lock(expert)), before, rtol=1e-4, atol=1e-4)
    math = saved_as(expert, "math")
    with pytest.raises(InputError, match=r"models\.experts\.math: locked .*MergeLock.* layer 0 "):
        check_models(campaign(base.folder, math=math.folder))
    flags = {"allow_locked": True, "align": ["math"]}
    assert (
        "locked against merging"
        in check_models(campaign(base.folder, flags, math=math.folder)).notes[0]
    )


def test_a_lock_on_values_alone_is_found(model_of, saved_as):
    base = saved_as(model_of("qwen3", **GROUPED), "base")
    expert = model_of("qwen3", **GROUPED)
    other = lock(model_of("qwen3", **GROUPED))
    with torch.no_grad():
        for mine, theirs in zip(expert.model.layers, other.model.layers, strict=True):
            for name in ("v_proj", "o_proj"):
                weight = getattr(theirs.self_attn, name).weight
                getattr(mine.self_attn, name).weight.copy_(weight)
    torch.testing.assert_close(
        logits(expert), logits(model_of("qwen3", **GROUPED)), rtol=1e-4, atol=1e-4
    )
    assert "values and output" in lock_of(base, saved_as(expert, "math"))


@pytest.mark.parametrize("size", [0.01, 0.2, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("rank", [1, 2, 8])
def test_finetunes_however_heavy_are_not_called_locked(model_of, saved_as, size, rank):
    def build():
        model = model_of("llama", **GROUPED)
        with torch.no_grad():  # heads of low rank hide noise in their products
            for layer in model.model.layers:
                for name in "qkvo":
                    weight = getattr(layer.self_attn, f"{name}_proj").weight
                    by_head = weight if name != "o" else weight.T
                    for rows in by_head.split(8):
                        u, s, v = torch.linalg.svd(rows, full_matrices=False)
                        rows.copy_(u[:, :rank] * s[:rank] @ v[:rank])
        return model

    base = saved_as(build(), "base")
    assert lock_of(base, saved_as(disturb(build(), size), "math")) is None


def test_noise_that_a_product_hides_is_not_called_locked(model_of, saved_as):
    """Queries and keys that meet in one direction of 16 let a quarter of the noise through."""
    sizes = {**GROUPED, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 4}

    def build():
        model = model_of("llama", **sizes)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for layer in model.model.layers:
                for queries, keys in zip(
                    layer.self_attn.q_proj.weight.split(16),
                    layer.self_attn.k_proj.weight.split(16),
                    strict=True,
                ):
                    shared = torch.randn(16, 1, generator=generator)
                    queries.copy_(0.1 * shared * torch.randn(32, generator=generator))
                    keys.copy_(0.1 * shared * torch.randn(32, generator=generator))
        return model

    base = saved_as(build(), "base")
    assert lock_of(base, saved_as(disturb(build(), 0.5), "math")) is None


def test_permuted_heads_and_strangers_are_not_called_locked(model_of, saved_as):
    base = saved_as(model_of("llama", **GROUPED), "base")
    for seed in range(4):
        expert = permuted(model_of("llama", **GROUPED), seed)
        assert lock_of(base, saved_as(expert, f"permuted{seed}")) is None
    assert lock_of(base, saved_as(model_of("llama", 1, **GROUPED), "stranger")) is None


def test_scaled_weights_are_not_called_locked(model_of, saved_as):
    base = saved_as(model_of("llama", **GROUPED), "base")
    for factor in (0.0, 0.5, 2.0, -1.0):
        expert = model_of("llama", **GROUPED)
        with torch.no_grad():
            for layer in expert.model.layers:
                layer.self_attn.q_proj.weight.mul_(factor)
        assert lock_of(base, saved_as(expert, f"scaled{factor}")) is None


def test_the_quickstarts_experts_are_not_called_locked():
    zoo = Path(__file__).parents[3] / "search_spaces" / "quickstart" / "zoo"
    base, *experts = (open_checkpoint(n, str(zoo / n)) for n in ("base", "math", "lang"))
    assert [lock_of(base, expert) for expert in experts] == [None, None]
