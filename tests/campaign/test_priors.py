"""Priors propose weights and densities by layer, by their papers' formulas."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import yaml
from calibrated_data import calibrate
from running import evaluations, run

from evomerge.campaign.calibrate import calibrate_campaign
from evomerge.campaign.calibration_needs import check_needs, needed_digests, needed_kinds
from evomerge.campaign.initial_points import initial_points
from evomerge.campaign.priors import (
    fim_coefficients,
    lewis_densities,
    sens_shares,
    sens_weights,
    wsm_weights,
)
from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.models.checks.checked_models import check_models
from evomerge.models.files.calibration_file import open_calibration, write_calibration
from evomerge.search.spaces.build import space_of

TIES = {"method": "ties", "genes": {"weight": [0, 1.5], "density": [0.1, 1]}}
BY_LAYER = TIES | {"granularity": "layer"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A campaign's folder with made-up calibration files in `statistics/`. Only to be read."""
    folder = tmp_path_factory.mktemp("campaign")
    calibrate(check_models(load_campaign(tiny.save_campaign(folder)).models), folder / "statistics")
    return folder


def prepared(folder, start, weights=BY_LAYER, of=("base", "math", "lang")):
    """What `campaign.setup` makes of it, without tasks."""
    data = tiny.campaign_data(space={"weights": weights}, initial=[start])
    data["models"]["statistics"] = {one: f"statistics/{one}.safetensors" for one in of}
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    config = load_campaign(path)
    models = check_models(config.models)
    check_needs(config, models.sources)
    space = space_of(config, models)
    return SimpleNamespace(
        config=config, models=models, space=space, starts=initial_points(config, space, models)
    )


def proposed(folder, start, weights=BY_LAYER):
    """What a prior proposes, by gene, and the set-up."""
    setup = prepared(folder, start, weights)
    [genome] = setup.starts
    return setup.space.params(genome), setup


def statistic(setup, name, kind, layer):
    """The statistics of a layer's tensors, by tensor's name."""
    layout, file = setup.models.layout, setup.models.sources[name].calibration
    found = {s.name: file.read(kind, s.name) for s in layout.tensors_of_layer(layer)}
    return {tensor: value.double().numpy() for tensor, value in found.items() if value is not None}


def test_sens_weights_are_a_softmax_over_experts_of_their_shares_of_sensitivity():
    s = np.array([[3.0, 4.0], [0.0, 0.0]])
    alpha = sens_shares(s)
    np.testing.assert_allclose(alpha, [[0.6, 0.8], [0, 0]])
    found = sens_weights(alpha, np.array([3.0, 1.0]), 0.5)
    powers = np.exp([[0.75 * 0.6 / 0.5, 0.75 * 0.8 / 0.5], [0, 0]])
    np.testing.assert_allclose(found, powers / powers.sum(axis=0))
    np.testing.assert_allclose(sens_weights(alpha, np.array([0.0, 1.0]), 1e-3)[:, 0], [0.5, 0.5])


def test_fim_gives_layers_of_high_scores_small_weights_and_unchanged_ones_all():
    found = fim_coefficients(np.array([[1.0, 10.0, 100.0, 0.0]]), 1.0)
    z = np.log([1.0, 10.0, 100.0])
    z = (z - z.mean()) / z.std()
    np.testing.assert_allclose(found, [[*1 / (1 + np.exp(z)), 1.0]])
    assert found[0, 1] == pytest.approx(0.5)
    np.testing.assert_allclose(fim_coefficients(np.full((1, 3), 7.0), 5.0), 0.5)
    np.testing.assert_allclose(fim_coefficients(np.array([[1.0, 9.0]]), 0.0), 0.5)


def test_lewis_densities_are_shares_within_components_stretched_to_the_bounds():
    changes = np.array([1.0, 5.0, 3.0, 5.0])
    found = lewis_densities(changes, ["q", "up", "q", "up"], 0.5, 0.8)
    np.testing.assert_allclose(found, [0.5, 0.65, 0.8, 0.65])  # shares .25, .5, .75, .5
    np.testing.assert_allclose(lewis_densities(np.zeros(3), ["q"] * 3, 0.2, 0.4), 0.3)


@pytest.mark.parametrize("decay", ["linear", "cosine", "sqrt"])
def test_wsm_weights_are_a_run_whose_rate_decayed(decay):
    """Σ c_j θ_j = θ_0 + Σ w_j (θ_j − θ_(j−1)), with the decay's own w."""
    rng, count = np.random.default_rng(0), 6
    updates = rng.normal(size=(count, 5))
    checkpoints = np.cumsum(updates, axis=0)
    x = np.arange(count) / count
    rates = {"linear": 1 - x, "cosine": 0.5 + 0.5 * np.cos(np.pi * x), "sqrt": 1 - np.sqrt(x)}
    found = wsm_weights(count, decay)
    np.testing.assert_allclose(found @ checkpoints, rates[decay] @ updates)
    assert found.sum() == pytest.approx(1)
    assert (found > 0).all()


def test_wsm_proposes_one_weight_for_each_checkpoint_and_needs_no_data(folder):
    whole = TIES | {"granularity": "model"}
    setup = prepared(folder, {"prior": "wsm", "decay": "cosine"}, whole, of=())
    [genome] = setup.starts
    params = setup.space.params(genome)
    assert [params[f"weight.model.{name}"] for name in ("math", "lang")] == pytest.approx([0.5] * 2)
    skewed = prepared(folder, {"prior": "wsm", "decay": "sqrt"}, whole, of=())
    values = skewed.space.params(skewed.starts[0])
    assert values["weight.model.math"] == pytest.approx(np.sqrt(0.5))
    assert values["weight.model.lang"] == pytest.approx(1 - np.sqrt(0.5))


def test_sens_proposes_weights_from_the_experts_files(folder):
    params, setup = proposed(folder, {"prior": "sens", "temperature": 0.1})
    layout, sources = setup.models.layout, setup.models.sources
    groups = [[s.name for s in layout.tensors_of_layer(layer)] for layer in range(layout.layers)]
    groups += [[s.name] for s in layout.tensors if s.layer is None]
    s = np.array(
        [
            [sum(float(sources[n].calibration.read("sens", t)) for t in g) for g in groups]
            for n in ("math", "lang")
        ]
    )
    expected = sens_weights(sens_shares(s), np.ones(2), 0.1)
    for layer in range(layout.layers):
        for row, expert in enumerate(("math", "lang")):
            found = params[f"weight.layer_{layer}.{expert}"]
            assert found == pytest.approx(expected[row, layer])
    assert params["weight.head.math"] + params["weight.head.lang"] == pytest.approx(1)
    assert (
        params["density.layer_0.math"]
        == setup.space.params(setup.space.initial)["density.layer_0.math"]
    )  # of which it says nothing
    doubled, _ = proposed(folder, {"prior": "sens", "temperature": 0.1, "scale": 1.0})
    assert doubled["weight.layer_1.lang"] == pytest.approx(2 * params["weight.layer_1.lang"])


def test_fim_proposes_weights_from_the_bases_curvature_and_the_length_of_the_change(folder):
    params, setup = proposed(folder, {"prior": "fim", "scale": 1.0})
    layout, sources = setup.models.layout, setup.models.sources
    groups = {f"layer_{i}": layout.tensors_of_layer(i) for i in range(layout.layers)}
    groups |= {s.group: [s] for s in layout.tensors if s.layer is None}
    scores = []
    for specs in groups.values():
        f = [sources["base"].calibration.read("fisher", s.name).double().numpy() for s in specs]
        taus = [sources["math"].read(s.name).double() - sources["base"].read(s.name) for s in specs]
        mean = sum(one.sum() for one in f) / sum(one.size for one in f)
        scores.append(mean * sum(float(tau.square().sum()) for tau in taus))
    expected = fim_coefficients(np.array([scores]), 1.0)[0]
    for name, value in zip(groups, expected, strict=True):
        assert params[f"weight.{name}.math"] == pytest.approx(value)


def test_lewis_proposes_densities_of_matrices_and_of_layers(folder):
    params, setup = proposed(folder, {"prior": "lewis"}, TIES | {"granularity": "tensor"})
    layout, sources = setup.models.layout, setup.models.sources
    norms = {}
    for name in ("base", "math"):
        norms[name] = {}
        for layer in range(layout.layers):
            for tensor, gram in statistic(setup, name, "gram", layer).items():
                weight = sources[name].read(tensor).double().numpy()
                metric = np.abs(weight) * np.sqrt(np.diagonal(gram))
                norms[name][tensor] = np.linalg.norm(metric)
    changes = np.array([abs(norms["math"][t] - norms["base"][t]) for t in norms["base"]])
    suffixes = [layout.tensor(tensor).suffix for tensor in norms["base"]]
    expected = dict(zip(norms["base"], lewis_densities(changes, suffixes, 0.5, 0.8), strict=True))
    for tensor, density in expected.items():
        spec = layout.tensor(tensor)
        assert params[f"density.layer_{spec.layer}.{spec.suffix}.math"] == pytest.approx(density)
    assert params["density.layer_0.input_layernorm.weight.math"] == 1.0
    by_layer, _ = proposed(folder, {"prior": "lewis"})
    sizes = {s.name: np.prod(s.shape) for s in layout.tensors_of_layer(0) if s.name in expected}
    mean = sum(expected[t] * n for t, n in sizes.items()) / sum(sizes.values())
    assert by_layer["density.layer_0.math"] == pytest.approx(mean)


def test_lewis_reaches_densities_that_all_experts_share(folder):
    weights = {
        "method": "task_arithmetic",
        "granularity": "layer",
        "genes": {"weight": [0, 1.5]},
        "sparsify": {"kind": "magnitude", "density": [0.2, 1], "per": "group"},
    }
    shared, _ = proposed(folder, {"prior": "lewis"}, weights)
    own, _ = proposed(folder, {"prior": "lewis"})
    mean = np.mean([own[f"density.layer_1.{name}"] for name in ("math", "lang")])
    assert shared["sparsify.density.layer_1"] == pytest.approx(mean)


def test_lewis_wants_the_same_texts_of_all_models(tmp_path):
    calibrate(
        check_models(load_campaign(tiny.save_campaign(tmp_path)).models), tmp_path / "statistics"
    )
    path = tmp_path / "statistics" / "math.safetensors"
    held = open_calibration(path)
    tensors = {key: tensor.clone() for key, tensor in held.tensors.items()}
    write_calibration(path, dataclasses.replace(held.head, documents="1"), tensors)
    with pytest.raises(InputError, match=r"^initial\[0\]: lewis compares .* on the same texts"):
        prepared(tmp_path, {"prior": "lewis"})


@pytest.mark.parametrize(
    ("prior", "of", "said"),
    [
        ("sens", ("base", "math"), r"the prior sens needs the sensitivities \(sens\) of 'lang'"),
        ("fim", ("math", "lang"), r"the prior fim needs the Fisher statistics of 'base'"),
        ("lewis", ("math", "lang"), r"the prior lewis needs the Gram matrices of 'base'"),
    ],
)
def test_a_prior_whose_statistics_are_missing_ends_with_one_message(folder, prior, of, said):
    with pytest.raises(InputError, match=rf"^initial\[0\]: {said}.*evomerge calibrate"):
        prepared(folder, {"prior": prior}, of=of)


def test_what_a_prior_needs_is_what_calibrate_makes(folder):
    setup = prepared(folder, {"prior": "lewis"})
    gram = ("gram",)
    assert needed_kinds(setup.config) == {"base": gram, "math": gram, "lang": gram}
    assert set(needed_digests(setup.config, setup.models.sources)) == {"base", "math", "lang"}
    assert needed_kinds(prepared(folder, "uniform").config) == {}


@pytest.mark.parametrize(
    ("start", "weights", "said"),
    [
        ({"prior": "sens"}, TIES | {"granularity": "model"}, "sens is by layer"),
        (
            {"prior": "lewis"},
            BY_LAYER | {"genes": {"weight": [0, 1.5]}},
            r"lewis proposes density, which has no genes here; search it",
        ),
        ({"prior": "sens", "tau": {"code": 1}}, BY_LAYER, r"tau: no expert 'code'; there are math"),
        ({"prior": "sens", "tau": {"math": 0, "lang": 0}}, BY_LAYER, "tau: is 0 for every expert"),
    ],
)
def test_a_prior_that_does_not_fit_the_space_is_refused_by_its_place(folder, start, weights, said):
    with pytest.raises(InputError, match=rf"^initial\[0\]: {said}"):
        prepared(folder, start, weights)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({"prior": "fim", "temperature": 3}, "fim has no temperature; it has scale, sharpness"),
        ({"prior": "lewis", "low": 0.9}, "low is above high"),
        ({"prior": "acm"}, "sens"),
    ],
)
def test_options_that_a_prior_has_not_are_refused(folder, start, said):
    with pytest.raises(InputError, match=said):
        prepared(folder, start)


def test_a_prior_of_a_later_stage_is_refused(folder):
    data = tiny.campaign_data()
    space = data.pop("space")
    data["stages"] = [
        {"name": "first", "space": space, "trials": 2},
        {"name": "second", "space": space, "initial": [{"prior": "sens"}], "trials": 2},
    ]
    path = folder / "staged.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(InputError, match="give it in the first stage"):
        load_campaign(path)


@pytest.mark.slow
def test_a_campaign_calibrates_for_its_priors_and_begins_there(tmp_path):
    priors = [{"prior": "sens"}, {"prior": "fim"}, {"prior": "lewis"}]
    texts = {"task": "pick", "samples": 10, "tokens": 12}
    space = {"weights": BY_LAYER}
    sections = {"initial": priors, "calibration": texts, "budget": {"trials": 3}}
    path = tiny.save_campaign(tmp_path, space=space, **sections)
    with pytest.raises(InputError, match="the prior sens needs the sensitivities"):
        prepare(load_campaign(path))
    calibrate_campaign(load_campaign(path))
    assert set(open_calibration(tmp_path / "statistics" / "math.safetensors").head.kinds) == {
        "sens",
        "gram",
    }
    starts = prepare(load_campaign(path)).space.starts
    assert len(starts) == 3
    tried = [e for e in evaluations(run(tmp_path)) if e.role == "search"]
    assert [e.genome for e in tried] == [pytest.approx(genome.tolist()) for genome in starts]
