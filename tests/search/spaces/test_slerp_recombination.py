"""Recombining genomes is recombining weights: checked against the weights themselves."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from evomerge.config import OptimizerConfig, SpaceConfig
from evomerge.judging.scores import Scores
from evomerge.materialize.statistics import grams
from evomerge.models.layout import Layout, TensorSpec
from evomerge.search.optimizers import build_optimizer
from evomerge.search.spaces.slerp_recombination import slerp_at, slerp_factors
from evomerge.search.spaces.weights import WeightSpace

EXPERTS = ("math", "lang", "code")


@dataclass
class Tensors:
    """A source held in memory, which counts how often it is read."""

    tensors: dict[str, torch.Tensor]
    digest: str
    reads: list[str] = field(default_factory=list)

    def read(self, name):
        self.reads.append(name)
        return self.tensors[name]


def layout(layers=3):
    tensors = [TensorSpec("embed.weight", (8, 4), None, "embeddings", "embed.weight", 0)]
    for i in range(layers):
        for module, suffix in (("attention", "attn.w"), ("mlp", "mlp.w"), ("norms", "norm.w")):
            tensors.append(TensorSpec(f"layers.{i}.{suffix}", (5, 4), i, module, suffix, None))
    tensors.append(TensorSpec("norm.weight", (4,), None, "final_norm", "norm.weight", None))
    tensors.append(TensorSpec("head.weight", (8, 4), None, "head", "head.weight", 0))
    return Layout("Tiny", layers, "layers", tuple(tensors), {}, 8)


def models(seed=0):
    """A base and three experts that share part of what they learnt; float64 for the comparison."""
    generator = torch.Generator().manual_seed(seed)

    def weights():
        return {
            spec.name: torch.randn(spec.shape, generator=generator, dtype=torch.float64)
            for spec in layout().tensors
        }

    base, common = weights(), weights()
    found = {"base": Tensors(base, "0")}
    for name in EXPERTS:
        own = weights()
        learnt = {n: base[n] + 0.1 * (0.5 * common[n] + own[n]) for n in base}
        found[name] = Tensors(learnt, f"digest of {name}")
    return found


def space(sources, method="task_arithmetic", genes=None, granularity="module", **options):
    genes = genes or {"weight": [-3, 3]}
    weights = {"method": method, "granularity": granularity, "genes": genes}
    digests = {name: source.digest for name, source in sources.items()}
    config = SpaceConfig(weights=weights)
    return WeightSpace(config, layout(), digests, seed=0, sources=sources, **options)


def groups_of(granularity):
    """The tuned groups as lists of tensor names, in depth order, written out by hand."""
    inside = [[f"layers.{i}.{m}.w" for m in ("attn", "mlp", "norm")] for i in range(3)]
    if granularity == "module":
        inside = [[name] for layer in inside for name in layer]
    return [["embed.weight"], *inside, ["norm.weight"], ["head.weight"]]


def flat(weights, names):
    return np.concatenate([weights[name].numpy().reshape(-1) for name in names])


def great_circle(x, y, share):
    """SLERP as in any textbook, on the vectors themselves."""
    cosine = np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1)
    omega = np.arccos(cosine)
    if np.sin(omega) <= 1e-6:
        return share * x + (1 - share) * y
    return (np.sin(share * omega) * x + np.sin((1 - share) * omega) * y) / np.sin(omega)


def merged(recipe, sources, spec, method):
    """The tensor that a recipe's merge makes, by the methods' definitions."""
    merges = {(m.slot, m.group): m for m in recipe.merges}
    merge = merges.get((spec.layer, spec.group)) or merges[spec.layer, "layer"]
    base = sources["base"].tensors[spec.name]
    if method == "linear":
        total = base * merge.parameters["base_weight"]
        return total + sum(
            sources[n].tensors[spec.name] * v["weight"] for n, v in merge.experts.items()
        )
    return base + sum(
        (sources[n].tensors[spec.name] - base) * v["weight"] for n, v in merge.experts.items()
    )


@pytest.mark.parametrize("granularity", ["module", "layer"])
@pytest.mark.parametrize(
    ("method", "genes"),
    [
        ("task_arithmetic", {"weight": [-3, 3]}),
        ("linear", {"weight": [-3, 3], "base_weight": [-3, 3], "normalize": False}),
    ],
)
def test_thirty_generations_equal_the_same_recombination_of_full_weights(
    method, genes, granularity
):
    sources = models()
    s = space(sources, method, genes, granularity)
    groups = groups_of(granularity)
    origin = {n: t * (method != "linear") for n, t in sources["base"].tensors.items()}
    genomes = [s.seeds[name] for name in EXPERTS]
    weights = [
        [flat(sources[name].tensors, g) - flat(origin, g) for g in groups] for name in EXPERTS
    ]
    rng = np.random.default_rng(5)
    for _ in range(30):
        a, b = rng.choice(len(genomes), 2, replace=False)
        cut, w = int(rng.integers(len(s.cuts))), float(rng.random())
        genomes.append(s.recombine(genomes[a], genomes[b], s.cuts[cut], w))
        shares = [w if group < cut else 1 - w for group in range(len(groups))]
        weights.append(
            [great_circle(x, y, v) for x, y, v in zip(weights[a], weights[b], shares, strict=True)]
        )
        genomes, weights = genomes[-6:], weights[-6:]
    recipe = s.decode(genomes[-1])
    assert 0.02 < genomes[-1].min() < genomes[-1].max() < 0.98  # nothing was clipped
    made = {spec.name: merged(recipe, sources, spec, method) for spec in layout().tensors}
    for names, expected in zip(groups, weights[-1], strict=True):
        assert np.abs(flat(made, names) - flat(origin, names) - expected).max() < 1e-6


def test_seeds_are_the_sources_themselves():
    sources = models()
    s = space(sources)
    assert list(s.seeds) == ["base", *EXPERTS]
    for name, genome in s.seeds.items():
        for spec in layout().tensors:
            found = merged(s.decode(genome), sources, spec, "task_arithmetic")
            assert torch.allclose(found, sources[name].tensors[spec.name], atol=1e-12)


def test_sources_out_of_the_bounds_are_no_seeds():
    assert list(space(models(), genes={"weight": [0, 0.9]}).seeds) == ["base"]
    assert list(space(models(), genes={"weight": [0.1, 1]}).seeds) == []


def test_children_beyond_the_bounds_are_clipped_and_still_what_their_genome_says():
    s = space(models(), genes={"weight": [0, 1]})
    a, b = np.full(s.dimension, 1.0), np.tile([1.0, 0.9, 0.0], s.dimension // 3)
    free = space(models())
    child = s.recombine(a, b, 0, 0.5)
    wide = [(free.genes[0].unit(v)) for v in (0.0, 0.9, 1.0)]
    unbounded = free.recombine(
        np.full(s.dimension, wide[2]),
        np.tile([wide[2], wide[1], wide[0]], s.dimension // 3),
        0,
        0.5,
    )
    values = np.clip(-3 + 6 * unbounded, 0, 1)
    assert (-3 + 6 * unbounded).max() > 1
    assert child == pytest.approx(values)


@pytest.mark.parametrize(
    ("method", "genes"),
    [
        ("ties", {"weight": [0, 1]}),
        ("task_arithmetic", {"weight": [0, 1], "lambda": [0, 2]}),
        ("task_arithmetic", {"weight": [0, 1], "lambda": 0.5}),
        ("task_arithmetic", {"weight": [0, 1], "normalize": True}),
        ("linear", {"weight": [0, 1], "base_weight": [0, 1]}),
        ("linear", {"weight": [0, 1], "normalize": False}),
    ],
)
def test_genes_that_are_not_linear_coefficients_recombine_linearly(method, genes):
    sources = models()
    s = space(sources, method, genes)
    a, b = np.full(s.dimension, 0.2), np.full(s.dimension, 0.6)
    child = s.recombine(a, b, s.cuts[1], 0.25)
    assert child[: s.cuts[1]] == pytest.approx(0.5)
    assert child[s.cuts[1] :] == pytest.approx(0.3)
    assert not any(source.reads for source in sources.values())


def test_grams_are_read_at_the_first_recombination_and_kept_for_the_next_start(tmp_path):
    def child(sources):
        s = space(sources)
        s.keep_in(tmp_path / "run")
        assert not any(source.reads for source in sources.values())
        return s.recombine(s.seeds["math"], s.seeds["lang"], s.cuts[4], 0.3)

    first, second = models(), models()
    made = child(first)
    assert len(first["math"].reads) == len(layout().tensors)
    assert child(second).tobytes() == made.tobytes()
    assert not any(source.reads for source in second.values())
    other = models(seed=1)
    other["math"].digest = "another"
    assert child(other).tobytes() != made.tobytes()
    (tmp_path / "run" / "grams.npz").write_bytes(b"cut short")
    assert child(models()).tobytes() == made.tobytes()


def test_grams_are_summed_exactly_over_slices_of_any_size(monkeypatch):
    sources, specs = models(), list(layout().tensors)
    names = [spec.name for spec in specs]
    taus = np.stack(
        [flat(sources[n].tensors, names) - flat(sources["base"].tensors, names) for n in EXPERTS]
    )
    monkeypatch.setattr(grams, "CHUNK", 7)
    found = grams.grams(sources, [specs], task_vectors=True)
    assert found.shape == (1, 3, 3)
    assert found[0] == pytest.approx(taus @ taus.T, rel=1e-12)


def test_an_archive_of_a_seven_billion_parameter_campaign_takes_kilobytes():
    digests = {"base": "0", "math": "1", "lang": "2"}
    weights = {"method": "task_arithmetic", "granularity": "module", "genes": {"weight": [-1, 2]}}
    s = WeightSpace(SpaceConfig(weights=weights), layout(layers=32), digests, seed=0)
    optimizer = build_optimizer(OptimizerConfig(kind="m2n2", population=15), s, 0)
    for index in range(30):
        proposal = optimizer.ask(index)
        optimizer.tell(proposal, Scores(float(proposal.genome[0]), 0.0, 1))
    assert len(optimizer._members) == 15
    assert len(pickle.dumps(optimizer._members)) < 50_000


def test_statistics_are_means_over_groups():
    s = space(models(), genes={"weight": [0, 2]})
    genome = s.initial.copy()
    genome[::3] = 0.25
    assert s.statistics(genome) == pytest.approx(
        {"weight.math": 0.5, "weight.lang": 1 / 3, "weight.code": 1 / 3}
    )


def test_flat_networks_cross_over_on_one_great_circle():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50)).astype(np.float32)
    child = slerp_at(a, b, 20, 0.3)
    assert child[:20] == pytest.approx(great_circle(a, b, 0.3)[:20], abs=1e-6)
    assert child[20:] == pytest.approx(great_circle(a, b, 0.7)[20:], abs=1e-6)
    assert child.dtype == np.float32
    assert slerp_at(a, a, 7, 0.3)[:7] == pytest.approx(a[:7])


def test_slerp_is_linear_where_there_is_no_angle():
    for dot, aa, bb in ((0.0, 0.0, 4.0), (6.0, 4.0, 9.0), (-6.0, 4.0, 9.0)):
        first, second = slerp_factors(dot, aa, bb, 0.3)
        assert (float(first), float(second)) == pytest.approx((0.3, 0.7))
