"""A campaign cuts tensors by importance, once, and goes on with what it cut."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from command_line import evomerge
from running import evaluations, facts, run
from safetensors.torch import load_file

from evomerge.campaign import chunks
from evomerge.campaign.initial_points import initial_points
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.models.checks.checked_models import check_models
from evomerge.search.spaces.build import space_of
from evomerge.study.run_folder import open_run

WEIGHTS = {
    "method": "task_arithmetic",
    "granularity": "tensor",
    "genes": {"weight": [0, 1]},
    "chunks": {"budget": 2, "power": 0.5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and a task. Only to be read."""
    folder = tmp_path_factory.mktemp("campaign")
    tiny.save_campaign(folder)
    return folder


@pytest.fixture(scope="module")
def models(folder):
    return check_models(load_campaign(folder / "campaign.yaml").models)


def config_of(folder, **sections):
    return load_campaign(tiny.save_campaign(folder, **{"space": {"weights": WEIGHTS}, **sections}))


def test_pieces_follow_the_formula_from_the_models_weights(folder, models):
    config = config_of(folder)
    pieces = chunks.pieces_of(config, models)
    sources, layout = models.sources, models.layout
    importance = {}
    for spec in layout.tensors:
        base = sources["base"].read(spec.name).double()
        moved = [(sources[n].read(spec.name).double() - base).abs() for n in ("math", "lang")]
        importance[spec.name] = sum(0.5 * tau.mean().item() * tau.numel() for tau in moved)
    share = np.array(list(importance.values())) / sum(importance.values())
    wanted = np.floor(2 * len(share) * share**0.5 / (share**0.5).sum()).astype(int)
    labels = [
        {"model.embed_tokens.weight": "embeddings", "lm_head.weight": "head"}.get(name, name)
        for name in importance
    ]
    labels = [
        "final_norm" if name == "model.norm.weight" else name.replace("model.layers.", "layer_")
        for name in labels
    ]
    assert pieces == dict(zip(labels, wanted.tolist(), strict=True))
    assert 0 in wanted
    assert max(wanted) > 2
    assert space_of(config, models, pieces).dimension == 2 * wanted.sum()


def test_how_many_genes_and_how_many_tensors_without_is_said(folder, models):
    config = config_of(folder)
    pieces = chunks.pieces_of(config, models)
    counts = [count for count in pieces.values() if count]
    most = max(pieces, key=pieces.get)
    [note] = chunks.notes_of(config, pieces, read=True)
    assert note == (
        f"space.weights.chunks: {len(counts)} of {len(pieces)} tensors have genes, in "
        f"{sum(counts)} pieces, up to {max(counts)} ({most}); the other "
        f"{len(pieces) - len(counts)} stay as in the uniform merge"
    )
    [guess] = chunks.notes_of(config, pieces, read=False)
    assert guess == f"{note}; by tensors' sizes, for the weights that decide it are not here"
    shown = evomerge("check", "--no-measure", folder / "campaign.yaml").output
    assert f"task_arithmetic, {2 * sum(counts)} genes" in shown
    assert "tensors have genes, in" in shown


def test_pieces_are_no_more_than_entries_as_in_torch_chunk(folder, models):
    weights = {**WEIGHTS, "chunks": {"budget": 40, "power": 0}}
    found = chunks.pieces_of(config_of(folder, space={"weights": weights}), models)
    assert found["final_norm"] == len(torch.zeros(32).chunk(40)) == 32
    assert found["embeddings"] == 40


def test_importance_does_not_depend_on_threads(folder, models):
    config, threads = config_of(folder), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = chunks.pieces_of(config, models)
        torch.set_num_threads(1)
        assert chunks.pieces_of(config, models) == two
    finally:
        torch.set_num_threads(threads)


def test_without_weights_every_entry_counts_alike(folder, models):
    found = chunks.pieces_of(config_of(folder), replace(models, configs_only=True))
    sizes = [math.prod(spec.shape) for spec in models.layout.tensors]
    shares = np.sqrt(sizes) / np.sqrt(sizes).sum()
    assert sorted(found.values()) == sorted(np.floor(2 * len(sizes) * shares).astype(int))


def test_weights_that_are_not_finite_have_no_importance(folder, models, monkeypatch):
    broken = [torch.tensor([[0.0], [float("nan")]])]
    monkeypatch.setattr(chunks, "slices_of", lambda *_: broken)
    with pytest.raises(InputError, match=r"^space\.weights\.chunks: model\.\S+ of \w+.*not finite"):
        chunks.pieces_of(config_of(folder), models)


def test_experts_that_change_nothing_leave_nothing_to_search(folder, models, monkeypatch):
    monkeypatch.setattr(chunks, "slices_of", lambda *_: [torch.ones(2, 3)])
    config = config_of(folder)
    with pytest.raises(InputError, match=r"^space\.weights\.chunks\.budget: no tensor's share"):
        space_of(config, models, chunks.pieces_of(config, models))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"method": "ties"}, "space.weights.chunks: ties looks at whole tensors"),
        ({"granularity": "layer"}, "space.weights: chunks: cuts single tensors"),
        ({"chunks": {"budget": 0}}, "space.weights.chunks.budget: expected more than 0 (found 0)"),
        (
            {"chunks": {"budget": "many"}},
            "space.weights.chunks.budget: expected a number (found 'many')",
        ),
        ({"chunks": 4}, "space.weights.chunks: expected a section with keys"),
        ({"chunks": {"budget": 0.001}}, "space.weights.chunks.budget: no tensor's share"),
    ],
)
def test_what_cannot_be_cut_ends_with_one_message(folder, weights, message):
    path = tiny.save_campaign(folder, space={"weights": {**WEIGHTS, **weights}})
    shown = " ".join(evomerge("check", "--no-measure", path, code=2).stderr.split())
    assert shown.count(message) == 1, shown


def test_a_prior_of_tensors_is_that_of_their_pieces(folder, models):
    config = config_of(folder, initial=[{"prior": "wsm", "decay": "sqrt"}])
    space = space_of(config, models, chunks.pieces_of(config, models))
    [start] = initial_points(config, space, models)
    by_expert = {gene.rpartition(".")[2]: value for gene, value in space.params(start).items()}
    # the file's experts are sorted by name
    assert by_expert == pytest.approx({"lang": 0.5**0.5, "math": 1 - 0.5**0.5})
    assert any(".piece_" in gene.name for gene in space.genes)


@pytest.mark.slow
def test_a_campaign_without_labels_goes_on_with_its_pieces_and_exports(tmp_path, monkeypatch):
    """Expert Merging++: chunks, the experts' answers, projected descents, a checkpoint."""
    sections = {
        "space": {"weights": WEIGHTS},
        "optimizer": {"kind": "expert_merging", "steps": 2, "batch": 4, "pull": 5, "norm": "l1"},
        "budget": {"trials": 3},
    }
    data = tiny.campaign_data()["fitness"]
    teachers = {"kind": "experts", "teachers": {"pick": "math"}, "tokens": 2}
    tiny.save_campaign(tmp_path, **sections, fitness={**data, "surrogate_loss": teachers})
    # 1. in one session, and in two, of which the second may not look at the models again
    whole = run(tmp_path, tmp_path / "whole")
    first = run(tmp_path, tmp_path / "halves", ["budget.trials=1"])
    _, study = open_run(first)
    with study:
        pieces = study.note("pieces")
    assert max(pieces.values()) > 1

    def never(*_):
        raise AssertionError("importance was computed again")

    with monkeypatch.context() as patched:
        patched.setattr(chunks, "slices_of", never)
        run(tmp_path, tmp_path / "halves")
    assert searched(first) == searched(whole)
    # 2. other chunks are another campaign
    with pytest.raises(InputError, match=r"belongs to another campaign.*space\.weights"):
        run(tmp_path, whole, ["space.weights.chunks.budget=3"])
    # 3. the descents moved pieces of one tensor apart
    trials = [e for e in evaluations(whole) if e.role == "search"]
    merges = [merge for trial in trials for merge in trial.recipe["merges"] if "pieces" in merge]
    assert merges
    assert any(
        len({piece["experts"]["math"]["weight"] for piece in merge["pieces"]}) > 1
        for merge in merges
    )
    # 4. a checkpoint, the same from the recipe's file; no mergekit file
    number = str(trials[-1].number)
    out, again = tmp_path / "out", tmp_path / "again"
    evomerge("export", whole, "--trial", number, "--to", out)
    assert "means over the pieces" in (out / "README.md").read_text()
    evomerge("merge", out / "recipe.json", "--to", again)
    ours, theirs = (load_file(place / "model.safetensors") for place in (out, again))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    refused = evomerge(
        "export", whole, "--trial", number, "--to", tmp_path / "m", "--format", "mergekit", code=2
    )
    assert "mergekit has one coefficient for a whole tensor" in " ".join(refused.output.split())


def searched(out):
    """What must be the same of the trials of two runs."""
    return [fact for fact in facts(out) if fact[0] == "search"]
