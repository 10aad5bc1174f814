"""A campaign searches merges by calibration data, and its winner is merged again from the files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from calibrated_data import calibrate, some_statistics
from merged_bytes import resident_bytes
from mixtures import mixture
from permuted import permuted
from running import evaluations, run
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge.campaign.calibrate import calibrate_campaign, plan_calibration
from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.export.merge import merge_file
from evomerge.export.trial import export_trial
from evomerge.models.checks.checked_models import check_models
from evomerge.models.files.calibration_file import open_calibration, write_calibration
from evomerge.recipe import load_recipe
from evomerge.study.run_folder import open_run, run_folder

Q = "self_attn.q_proj.weight"
WEIGHTS = {
    "fisher": {"method": "fisher", "genes": {"weight": [0, 1.5]}},
    "regmean": {"method": "regmean", "genes": {"reduce": [0, 1]}},
    "rcp": {"method": "rcp", "genes": {"scale": [0, 1.5]}},
    "pleas": {"method": "pleas", "genes": {"ridge": [0, 1]}},
    "trimmed": {
        "method": "ties",
        "genes": {"weight": [0, 1.5]},
        "sparsify": {"kind": "fisher", "density": [0.2, 1]},
    },
    "aim": {"method": "task_arithmetic", "genes": {"weight": [0, 1.5]}, "aim": {}},
}


@pytest.fixture
def folder(tmp_path):
    """A campaign's folder with made-up calibration files in `statistics/`."""
    return with_files(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The same, for tests that change none of it."""
    return with_files(tmp_path_factory.mktemp("campaign"))


def with_files(folder: Path) -> Path:
    path = tiny.save_campaign(folder)
    calibrate(check_models(load_campaign(path).models), folder / "statistics")
    return folder


def campaign(folder: Path, name: str, statistics: dict[str, str] | None = None) -> Path:
    data = tiny.campaign_data(space={"weights": WEIGHTS[name]})
    own = {one: f"statistics/{one}.safetensors" for one in ("base", "math", "lang")}
    data["models"]["statistics"] = own if statistics is None else statistics
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def prepared(folder, name, statistics=None):
    return prepare(load_campaign(campaign(folder, name, statistics)))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", WEIGHTS)
def test_recipes_say_which_statistics_they_need(shared, name):
    setup = prepared(shared, name)
    needed = {"base"} if name == "aim" else {"math", "lang"}
    middle = 0.5 + 0 * setup.space.initial
    recipe = setup.space.decode(middle)
    files = {one: setup.models.sources[one].calibration for one in needed}
    assert recipe.calibration == {one: file.digest for one, file in files.items()}
    assert recipe.digest != recipe.model_copy(update={"calibration": {}}).digest
    plain = setup.space.baselines()["average"]
    assert plain.calibration == {}
    assert "calibration" not in plain.to_json()


@pytest.mark.parametrize(
    ("name", "kind", "lacking"),
    [
        ("fisher", "the Fisher statistics of 'lang'", {"math": "statistics/math.safetensors"}),
        ("regmean", "the Gram matrices of 'lang'", {}),
        ("pleas", "the cross Gram matrices of 'lang'", {"math": "statistics/math.safetensors"}),
        ("trimmed", "the Fisher statistics of 'lang'", {"base": "statistics/base.safetensors"}),
        ("aim", "the mean activations", {"math": "statistics/math.safetensors"}),
    ],
)
def test_a_campaign_without_statistics_ends_with_one_message(shared, name, kind, lacking):
    with pytest.raises(InputError, match=r"^space\.weights") as caught:
        prepared(shared, name, lacking)
    assert kind in str(caught.value)
    assert "evomerge calibrate" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_statistics_of_another_model_are_refused(shared):
    wrong = {"math": "statistics/lang.safetensors", "lang": "statistics/lang.safetensors"}
    with pytest.raises(InputError, match=r"models\.statistics\.math: .*is of another model"):
        prepared(shared, "fisher", wrong)


def test_statistics_that_are_not_finite_are_refused_by_source_and_tensor(folder):
    path = folder / "statistics" / "math.safetensors"
    opened = open_calibration(path)
    tensors = {key: tensor.clone() for key, tensor in opened.tensors.items()}
    first = next(key for key in tensors if key.startswith("fisher/") and tensors[key].dim() > 1)
    tensors[first][0, 0] = torch.nan
    write_calibration(path, opened.head, tensors)
    with pytest.raises(InputError, match=r"statistics of 'math' hold NaN") as caught:
        prepared(folder, "fisher")
    assert first.removeprefix("fisher/") in str(caught.value)


def test_statistics_of_unknown_models_are_refused(shared):
    own = {one: f"statistics/{one}.safetensors" for one in ("math", "lang")}
    with pytest.raises(InputError, match=r"statistics: no model 'code'"):
        prepared(shared, "fisher", {**own, "code": "statistics/math.safetensors"})


def test_statistics_that_are_not_there_are_refused(shared):
    own = {"math": "statistics/gone.safetensors", "lang": "statistics/lang.safetensors"}
    with pytest.raises(InputError, match=r"models\.statistics\.math: .*no such file"):
        prepared(shared, "fisher", own)
    with pytest.raises(InputError, match=r"3 safetensors files, and none is called"):
        prepared(shared, "fisher", {**own, "math": "./statistics"})


def test_files_that_calibrate_left_are_found_and_those_that_are_named_come_first(shared):
    path = campaign(shared, "fisher", {"math": "statistics/math.safetensors"})
    said = ["calibration={documents: texts.jsonl}"]
    found = load_campaign(path, said).models.statistics
    assert found == {
        name: str((shared / "statistics" / f"{name}.safetensors").resolve())
        for name in ("base", "math", "lang")
    }
    elsewhere = ["calibration={documents: texts.jsonl, folder: nowhere}"]
    assert set(load_campaign(path, elsewhere).models.statistics) == {"math"}
    assert load_campaign(campaign(shared, "fisher", {})).models.statistics == {}


def test_statistics_of_the_hub_that_cannot_be_had_are_refused_by_key(shared):
    own = {"math": "org/none@main", "lang": "statistics/lang.safetensors"}
    with pytest.raises(InputError, match=r"models\.statistics\.math: .*org/none@main"):
        prepared(shared, "fisher", own)
    with pytest.raises(InputError, match=r"models\.statistics\.math: .*not a hub id"):
        prepared(shared, "fisher", {**own, "math": "a/b/c"})


def test_second_moments_of_a_training_run_are_taken_as_fisher(folder):
    layout = check_models(load_campaign(folder / "campaign.yaml").models).layout
    (folder / "run").mkdir()
    moments = some_statistics(layout, 0)
    own = {k.removeprefix("fisher/"): v for k, v in moments.items() if k.startswith("fisher/")}
    save_file(own, folder / "run" / "exp_avg_sq.safetensors")
    files = {"math": "./run", "lang": "statistics/lang.safetensors"}
    assert prepared(folder, "fisher", files).space.dimension > 0
    save_file({"another.weight": torch.ones(2)}, folder / "run" / "exp_avg_sq.safetensors")
    with pytest.raises(InputError, match=r"a tensor another\.weight, which the model lacks"):
        prepared(folder, "fisher", files)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fisher", "regmean", "aim", "pleas"])
def test_the_winner_is_merged_again_to_the_same_bytes_and_not_from_other_files(folder, name):
    campaign(folder, name)
    out = run(folder, overrides=["budget.trials=3"])
    assert len([e for e in evaluations(out) if e.role == "search"]) == 3
    winner = folder / "winner"
    config, study = open_run(out)
    trial = max(e.number for e in evaluations(out) if e.role == "search")
    export_trial(config, study, trial, winner, run=run_folder(out), anyway=True)
    recipe = load_recipe(winner / "recipe.json")
    assert recipe.calibration
    # 1. from where evomerge.json says
    merge_file(winner / "recipe.json", folder / "again", {}, None)
    ours, theirs = weights_of(folder / "again"), weights_of(winner)
    assert all(torch.equal(ours[tensor], value) for tensor, value in theirs.items())
    # 2. from files that were moved: refused by name, and merged from where they are now
    moved = shutil.move(folder / "statistics", folder / "elsewhere")
    source = next(iter(recipe.calibration))
    with pytest.raises(InputError, match=rf"of '{source}' \(digest [0-9a-f]+\): make them"):
        merge_file(winner / "recipe.json", folder / "refused", {}, None)
    given = {one: str(Path(moved) / f"{one}.safetensors") for one in recipe.calibration}
    merge_file(winner / "recipe.json", folder / "third", {}, None, statistics=given)
    ours = weights_of(folder / "third")
    assert all(torch.equal(ours[tensor], value) for tensor, value in theirs.items())
    # 3. from other data
    opened = open_calibration(Path(given[source]))
    other = {key: 2 * tensor for key, tensor in opened.tensors.items()}
    write_calibration(Path(given[source]), replace(opened.head, seed=9), other)
    with pytest.raises(InputError, match=rf"made with other calibration data of '{source}'"):
        merge_file(winner / "recipe.json", folder / "fourth", {}, None, statistics=given)


def test_permuted_copies_of_one_model_are_merged_to_it_exactly(tmp_path):
    """`models.align` undoes the permutation, and statistics are of the aligned models."""
    path = tiny.save_campaign(tmp_path, space={"weights": WEIGHTS["pleas"]})
    models = tmp_path / "models"
    expert = AutoModelForCausalLM.from_pretrained(models / "math", dtype=torch.float16)
    permuted(expert).save_pretrained(models / "lang")
    line = '{"text": "' + " ".join(tiny.WORDS[:20]) + '"}\n'
    (tmp_path / "texts.jsonl").write_text(line)
    given = ["calibration={documents: texts.jsonl}", "models.align=[math, lang]"]
    config = load_campaign(path, given)
    files = calibrate_campaign(config)
    heads = [open_calibration(file).head for file in files]
    assert heads[0].together == heads[1].together == tuple(head.source for head in heads)
    setup = prepare(load_campaign(path, given))
    assert setup.models.sources["lang"].digest != setup.models.sources["lang"].unaligned.digest
    recipe = setup.space.decode(setup.space.initial)
    found = resident_bytes(setup.models, recipe)
    for name, tensor in load_file(models / "math" / "model.safetensors").items():
        assert torch.equal(found[name], tensor), name
    # of the other order they are another model's
    with pytest.raises(InputError, match=r"lang.safetensors is of another model"):
        prepare(load_campaign(path, given[:1]))
    elsewhere = "calibration={documents: texts.jsonl, folder: own}"
    calibrate_campaign(load_campaign(path, [elsewhere]))
    with pytest.raises(InputError, match=r"models\.align permutes 'lang', whose statistics are of"):
        prepare(load_campaign(path, [elsewhere, given[1]]))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("qwen3_moe", "fisher"), ("mixtral", "regmean")])
def test_mixtures_are_calibrated_merged_and_loaded(kind, name, tmp_path):
    places = {one: str(tmp_path / "models" / one) for one in ("base", "math", "lang")}
    for seed, place in enumerate(places.values()):
        model = mixture(kind)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters() if seed else ():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(place)
        tiny.save_tokenizer(Path(place))
    tiny.save_task(tmp_path / "tasks")
    texts = {"task": "pick", "samples": 6, "tokens": 8}
    path = tiny.save_campaign(tmp_path, space={"weights": WEIGHTS[name]}, calibration=texts)
    calibrate_campaign(load_campaign(path))
    setup = prepare(load_campaign(path))
    recipe = setup.space.decode(setup.space.initial)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    files = {one: str(tmp_path / f"statistics/{one}.safetensors") for one in ("math", "lang")}
    out, _ = merge_file(tmp_path / "recipe.json", tmp_path / "out", places, None, statistics=files)
    merged, *experts = (
        AutoModelForCausalLM.from_pretrained(place)
        for place in (out, places["math"], places["lang"])
    )
    assert merged(torch.tensor([[5, 9, 3, 20]])).logits.isfinite().all()
    # stacked experts go by their Fisher information, or are averaged: none has a Gram matrix
    for tensor, averaged in (("mlp.experts.down_proj", name == "regmean"), (Q, False)):
        key = f"model.layers.1.{tensor}"
        found, *own = (one.state_dict()[key] for one in (merged, *experts))
        assert torch.allclose(found, sum(own) / 2, atol=1e-5) is averaged


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["space.weights.choose_experts=true"], r"^space\.weights\.choose_experts: cross Gram"),
        (["models.tokenizer={}"], r"^models\.tokenizer: cross Gram matrices"),
    ],
)
def test_cross_grams_want_all_experts_on_the_same_tokens(shared, changes, message):
    path = campaign(shared, "pleas")
    with pytest.raises(InputError, match=message):
        prepare(load_campaign(path, changes))


def test_cross_grams_of_other_models_or_texts_are_refused(folder):
    path = campaign(folder, "pleas")
    for key, value in (("together", ()), ("documents", "another")):
        file = folder / "statistics" / "lang.safetensors"
        opened = open_calibration(file)
        tensors = {name: tensor.clone() for name, tensor in opened.tensors.items()}
        write_calibration(file, replace(opened.head, **{key: value}), tensors)
        with pytest.raises(
            InputError, match=r"lang and math together, and those of '(lang|math)' are of"
        ):
            prepare(load_campaign(path))
        write_calibration(file, opened.head, tensors)
    (folder / "texts.jsonl").write_text('{"text": "w1 w2 w3"}\n')
    texts = "{math: {task: pick}, lang: {documents: texts.jsonl}}"
    config = load_campaign(path, [f"calibration={{samples: 12, per_expert: {texts}}}"])
    with pytest.raises(InputError, match=r"^calibration\.per_expert: cross Gram matrices"):
        plan_calibration(config)


def test_a_file_of_mergekits_form_takes_statistics(shared, tmp_path):
    text = {
        "merge_method": "fisher",
        "base_model": str(shared / "models" / "base"),
        "models": [{"model": str(shared / "models" / one)} for one in ("math", "lang")],
        "dtype": "float32",
    }
    file = tmp_path / "merge.yaml"
    file.write_text(yaml.safe_dump(text))
    with pytest.raises(InputError, match=r"fisher needs the Fisher statistics of 'math'"):
        merge_file(file, tmp_path / "refused", {}, None)
    given = {one: str(shared / "statistics" / f"{one}.safetensors") for one in ("math", "lang")}
    out, _ = merge_file(file, tmp_path / "out", {}, None, statistics=given)
    assert set(json.loads((out / "recipe.json").read_text())["calibration"]) == {"math", "lang"}
    again, _ = merge_file(out / "recipe.json", tmp_path / "again", {}, None)
    ours, theirs = weights_of(again), weights_of(out)
    assert all(torch.equal(ours[tensor], value) for tensor, value in theirs.items())
    with pytest.raises(InputError, match=r"--statistics code: .* has no such source"):
        merge_file(file, tmp_path / "x", {}, None, statistics={"code": given["math"]})
