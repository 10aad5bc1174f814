"""Where a search may begin: mergekit files and the trials of any Optuna study."""

from __future__ import annotations

import hashlib
import json

import optuna
import pytest
import tiny
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from running import evaluations, run

from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts")
    tiny.save_campaign(folder)
    return folder


def space_with(folder, *starts, **weights):
    """The space of a campaign with these starts, and their genes' natural values."""
    weights = {"method": "task_arithmetic", "genes": {"weight": [0, 1.5]}, **weights}
    text = [yaml.safe_dump(start, default_flow_style=True).strip() for start in starts]
    changes = [
        "initial=[" + ", ".join(t.removesuffix("\n...") for t in text) + "]",
        "space=" + yaml.safe_dump({"weights": weights}, default_flow_style=True, width=10_000),
    ]
    space = prepare(load_campaign(folder / "campaign.yaml", changes)).space
    return space, [space.params(genome) for genome in space.starts]


def save_mergekit(folder, name="merge.yaml", **changes):
    data = {
        "merge_method": "task_arithmetic",
        "base_model": "models/base",
        "models": [
            {"model": "models/lang", "parameters": {"weight": [0.25, 0.75]}},
            {"model": str(folder / "models" / "math"), "parameters": {"weight": 0.5}},
        ],
        "dtype": "float16",
        **changes,
    }
    (folder / name).write_text(yaml.safe_dump(data))
    return name


def test_a_mergekit_file_is_tried_first_whatever_it_calls_the_models(folder):
    space, [params] = space_with(folder, save_mergekit(folder))
    assert params["weight.layer_0.lang"] == pytest.approx(0.25)
    assert params["weight.layer_1.lang"] == pytest.approx(0.75)
    assert params["weight.embeddings.lang"] == pytest.approx(0.25)
    assert {params[f"weight.{g}.math"] for g in ("layer_0", "head")} == {0.5}
    experts = {name for m in space.decode(space.starts[0]).merges for name in m.experts}
    assert experts == {"math", "lang"}


def test_a_file_of_a_method_that_mergekit_lacks_is_a_start_too(folder):
    entries = [{"model": f"models/{name}"} for name in ("math", "lang")]
    parameters = {"density": [0.25, 0.75]}
    name = save_mergekit(folder, merge_method="pcb", models=entries, parameters=parameters)
    _, [params] = space_with(
        folder, name, method="pcb", genes={"density": [0, 1], "lambda": [0, 2]}
    )
    assert params["density.layer_0"] == pytest.approx(0.25)
    assert params["density.layer_1"] == pytest.approx(0.75)
    assert params["lambda.layer_0"] == pytest.approx(1.2)


def test_a_filter_of_a_mergekit_file_reaches_the_tensors_genes(folder):
    weight = [{"filter": "q_proj", "value": 0.125}, {"value": 0.5}]
    models = [
        {"model": "models/lang", "parameters": {"weight": weight}},
        {"model": "models/math", "parameters": {"weight": 1}},
    ]
    _, [params] = space_with(folder, save_mergekit(folder, models=models), granularity="tensor")
    assert params["weight.layer_1.self_attn.q_proj.weight.lang"] == pytest.approx(0.125)
    assert params["weight.layer_1.self_attn.k_proj.weight.lang"] == pytest.approx(0.5)


def test_a_linear_mergekit_file_needs_no_base_and_may_list_it_anywhere(folder):
    linear = {"method": "linear", "genes": {"weight": [0, 1], "base_weight": [0, 1]}}
    entries = [
        {"model": f"models/{name}", "parameters": {"weight": weight}}
        for name, weight in (("math", 0.5), ("base", 0.125), ("lang", 0.25))
    ]
    name = save_mergekit(folder, merge_method="linear", base_model=None, models=entries)
    _, [params] = space_with(folder, name, **linear)
    assert params["weight.layer_0.math"] == 0.5
    assert params["weight.layer_0.lang"] == 0.25
    assert params["base_weight.layer_0"] == 0.125


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model": "models/other"}, r"merges models/other, which the campaign has not.*math"),
        (
            {"base_model": "models/math", "models": [{"model": "models/lang"}]},
            "its base is models/math, which is 'math' of the campaign",
        ),
        ({"merge_method": "ties"}, "merges with ties; this space searches task_arithmetic"),
        ({"parameters": {"normalize": True}}, "has normalize True where this space has False"),
        ({"merge_method": "cabs"}, "'cabs' is unknown"),
    ],
)
def test_a_mergekit_file_that_is_no_point_of_the_space_is_refused(folder, changes, message):
    entries = [{"model": "models/lang", "parameters": {"weight": 0.5}}]
    if changes.get("merge_method") == "ties":
        changes["parameters"] = {"density": 0.5}
    changes.get("models", [{}])[0].setdefault("parameters", {"weight": 0.5})
    name = save_mergekit(folder, **{"models": entries, **changes})
    with pytest.raises(InputError, match=rf"initial\[0\]: .*{message}"):
        space_with(folder, name)


def test_a_mergekit_path_is_no_point_of_a_space_of_weights(folder):
    slices = [
        {"sources": [{"model": f"models/{name}", "layer_range": [0, 1]}]}
        for name in ("base", "lang")
    ]
    name = save_mergekit(folder, merge_method="passthrough", models=None, slices=slices)
    with pytest.raises(InputError, match=r"initial\[0\]: the recipe has a path of its own"):
        space_with(folder, name)


def save_study(folder, values, direction="maximize", name="theirs", **params):
    """A study that evomerge did not write: params are given as lists, one value a trial."""
    url = f"sqlite:///{folder / 'theirs.db'}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=url, study_name=name, direction=direction)
    for index, value in enumerate(values):
        own = {key.replace("__", "."): of[index] for key, of in params.items()}
        failed = value is None
        study.add_trial(
            create_trial(
                params=own,
                distributions={
                    key: CategoricalDistribution((v, "x"))
                    if isinstance(v, str)
                    else FloatDistribution(-9, 9)
                    for key, v in own.items()
                },
                value=value,
                state=TrialState.FAIL if failed else TrialState.COMPLETE,
                system_attrs={"constraints": [1.0]} if value == 99 else {},
            )
        )
    return url


GENE = "weight__layer_0__math"


@pytest.mark.parametrize(
    ("direction", "expected"), [("maximize", [0.75, 0.25]), ("minimize", [0.5, 0.25])]
)
def test_the_best_trials_of_any_optuna_study_come_first_by_its_direction(
    folder, tmp_path, direction, expected
):
    values = [0.2, 0.1, 0.3, None] + [99] * (direction == "maximize")
    url = save_study(
        tmp_path, values, direction, lr=[1, 2, 3, 4, 5], **{GENE: [0.25, 0.5, 0.75, 1, 1]}
    )
    before = hashlib.sha256((tmp_path / "theirs.db").read_bytes()).hexdigest()
    space, found = space_with(folder, {"study": url, "name": "theirs", "trials": 2})
    assert [params["weight.layer_0.math"] for params in found] == expected
    rest = space.params(space.initial)
    assert all(p["weight.head.math"] == rest["weight.head.math"] for p in found)
    assert hashlib.sha256((tmp_path / "theirs.db").read_bytes()).hexdigest() == before


def test_values_out_of_bounds_go_to_the_nearest(folder, tmp_path):
    url = save_study(tmp_path, [1.0], **{GENE: [7.0], "weight__head__math": [-1.0]})
    _, [params] = space_with(folder, {"study": url})
    assert params["weight.layer_0.math"] == 1.5
    assert params["weight.head.math"] == 0.0


def test_of_several_objectives_the_front_is_taken(folder, tmp_path):
    url = f"sqlite:///{tmp_path / 'pareto.db'}"
    study = optuna.create_study(storage=url, directions=["maximize", "minimize"])
    gene, numbers = "weight.layer_0.math", FloatDistribution(0, 1)
    for weight, values in ((0.1, (1, 1)), (0.2, (0, 2)), (0.3, (2, 2))):
        study.add_trial(
            create_trial(params={gene: weight}, distributions={gene: numbers}, values=values)
        )
    _, found = space_with(folder, {"study": url, "trials": 9})
    assert [params[gene] for params in found] == pytest.approx([0.1, 0.3])


def test_a_study_of_evomerges_gives_its_genes_too(folder, tmp_path):
    genes = "genes: {weight: [0, 1], density: [0, 1]}"
    weights = f"space.weights={{method: [linear, ties], granularity: tensor, {genes}}}"
    out = run(folder, tmp_path / "run", [weights, "budget.trials=3"])
    url = f"sqlite:///{out / 'study.db'}"
    space, found = space_with(
        folder,
        {"study": url, "trials": 3},
        {"run": str(out), "trials": 3},
        method=["ties", "linear"],
        granularity="tensor",
        genes={"weight": [0, 1], "density": [0, 1]},
    )
    assert len(space.genes) > 64
    assert len(found) == 3
    assert {params["method"] for params in found} <= {"linear", "ties"}
    assert len({params["weight.layer_1.mlp.up_proj.weight.math"] for params in found}) == 3


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"name": "mine"}, "no study 'mine'; found 'theirs'"),
        ({"study": "sqlite:///nowhere.db"}, "nowhere.db: no study here"),
        ({"study": "nonsense"}, "not a database URL"),
        ({}, r"params \(lr, …\) have no name in common with this space's genes"),
    ],
)
def test_a_study_that_cannot_help_is_refused_before_the_search(folder, tmp_path, start, message):
    url = save_study(tmp_path, [1.0], lr=[1.0])
    with pytest.raises(InputError, match=rf"initial\[0\]: .*{message}"):
        space_with(folder, {"study": url, **start})


def test_a_study_without_success_and_one_among_several_without_a_name_are_refused(folder, tmp_path):
    url = save_study(tmp_path, [None], **{GENE: [1.0]})
    with pytest.raises(InputError, match="'theirs' has no trial that succeeded"):
        space_with(folder, {"study": url})
    save_study(tmp_path, [1.0], name="second", **{GENE: [1.0]})
    with pytest.raises(InputError, match="say which study; found 'theirs', 'second'"):
        space_with(folder, {"study": url})


@pytest.mark.parametrize(
    ("params", "weights", "message"),
    [
        ({GENE: ["much"]}, {}, "weight.layer_0.math is 'much' there; here it is a number"),
        (
            {"method": ["slerp"]},
            {"method": ["linear", "ties"]},
            "method is 'slerp' there; here it is of linear, ties",
        ),
    ],
)
def test_values_that_no_gene_can_have_are_refused(folder, tmp_path, params, weights, message):
    url = save_study(tmp_path, [1.0], **params)
    with pytest.raises(InputError, match=message):
        space_with(folder, {"study": url}, **weights)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("{study: 'sqlite:///x.db', trial: 3}", r"initial.0.study.trial: unknown key"),
        ("{study: 'sqlite:///x.db', trials: 0}", r"initial.0.study.trials"),
    ],
)
def test_wrong_keys_of_a_start_are_refused(folder, start, message):
    with pytest.raises(InputError, match=message):
        load_campaign(folder / "campaign.yaml", [f"initial=[{start}]"])


def test_a_search_begins_where_it_is_told_to(tiny_folder):
    linear = "space.weights={method: task_arithmetic, genes: {weight: [0, 1.5]}}"
    first = run(tiny_folder, tiny_folder / "first", [linear, "budget.trials=6"])
    ranked = [e for e in evaluations(first) if e.optimizers_own and e.value is not None]
    ranked.sort(key=lambda e: -e.value)
    (tiny_folder / "one.json").write_text(json.dumps(ranked[0].recipe))
    initial = f"initial=[one.json, math, uniform, {{run: {first}, trials: 3}}]"
    out = run(tiny_folder, tiny_folder / "second", [linear, "budget.trials=8", initial])
    own = [e for e in evaluations(out) if e.optimizers_own]
    assert own[0].digest == ranked[0].digest
    assert set(own[1].params.values()) == {0.0, 1.0}
    assert {e.digest for e in own[:5]} >= {e.digest for e in ranked[:3]}
    assert [e.ask for e in own] == list(range(8))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("mathe", r"initial\[0\]: 'mathe' is no point of this space; write one of uniform"),
        ("nowhere.json", r"initial\[0\]: .*nowhere.json: cannot be read"),
        ("{run: nowhere}", r"initial\[0\]: .*nowhere: no run here"),
        ("{run: nowhere, trial: 3}", "initial.0.*trial"),
    ],
)
def test_a_start_that_is_none_is_refused_before_the_search(tiny_folder, start, message):
    with pytest.raises(InputError, match=message):
        prepare(load_campaign(tiny_folder / "campaign.yaml", [f"initial=[{start}]"]))


def test_values_of_genes_are_a_start_and_the_others_stay(folder):
    _, [params] = space_with(
        folder,
        {"genes": {"method": "ties", "weight": 0.4, "weight.layer_1.lang": 1, "ties.density": 0.3}},
        method=["task_arithmetic", "ties"],
        granularity="layer",
        genes={"weight": [0, 1.5], "ties.density": [0.1, 1]},
    )
    assert params["method"] == "ties"
    assert params["weight.layer_1.lang"] == pytest.approx(1.0)
    weights = {params[name] for name in params if name.startswith("weight.")}
    assert sorted(weights) == pytest.approx([0.4, 1.0])
    assert params["ties.density.layer_0.math"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("genes", "said"),
    [
        (
            {"wieght": 1},
            r"genes\.wieght: no gene is called so .*; they begin with weight",
        ),
        ({"weight": 2}, r"genes\.weight: 2 is outside of weight\..*'s bounds, 0 to 1\.5"),
    ],
)
def test_values_of_no_gene_or_out_of_bounds_are_refused(folder, genes, said):
    with pytest.raises(InputError, match=r"^initial\[0\]: " + said):
        space_with(folder, {"genes": genes})
