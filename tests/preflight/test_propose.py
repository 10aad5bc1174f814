"""What `init` proposes: few genes, splits that exist, workers for the GPUs, and the reasons."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import tiny

from evomerge.common.errors import InputError
from evomerge.models.layout import derive_layout
from evomerge.preflight.propose import (
    Asked,
    Cost,
    config_folders,
    propose,
    propose_rungs,
    propose_splits,
    propose_weights,
    propose_workers,
)

LLAMA_7B = derive_layout(tiny.llama_config(num_hidden_layers=32))


def task(name, items, excluded=()):
    ids = tuple(f"{name}-{i:05d}" for i in range(items))
    return SimpleNamespace(
        task=name,
        ids=ids,
        excluded=frozenset(excluded),
        marks=tuple((item,) for item in ids),
        weight=1.0,
    )


def grain(experts, cost=None, hours=8.0):
    names = [f"e{i}" for i in range(experts)]
    weights, genes, why = propose_weights(LLAMA_7B, names, cost, hours)
    return weights["granularity"], weights.get("block"), genes, why


def test_genes_are_the_finest_of_at_most_forty():
    assert grain(2)[:3] == ("block", 2, 38)
    assert grain(3)[:3] == ("block", 4, 33)
    assert grain(5)[:3] == ("block", 8, 35)
    assert grain(20)[:3] == ("model", None, 20)


def test_fewer_hours_mean_fewer_genes():
    cost = Cost(trial=8 / 320, before=0.0, memory=0)
    name, block, genes, why = grain(2, cost)
    assert (name, block, genes) == ("block", 8, 14)
    assert "too many for the 320 trials that 8 hours are enough for" in why
    assert "short even for these" in grain(2, cost, hours=0.5)[3]


def test_splits_are_of_documents_that_there_are():
    splits, why = propose_splits([task("big", 9000), task("small", 1319)])
    assert splits == {"search": 300, "select": 100, "test": 919}
    assert "small has the fewest, 1319" in why
    assert propose_splits([task("tiny", 100, ["tiny-00000"])])[0] == {
        "search": 49,
        "select": 19,
        "test": 31,
    }


def test_many_tasks_share_the_search_documents():
    splits, _ = propose_splits([task(f"t{i}", 500) for i in range(20)])
    assert splits["search"] == 60


def test_few_documents_are_called_few():
    assert "too few to be sure" in propose_splits([task("few", 20)])[1]
    splits, why = propose_splits([task("enough", 300)])
    assert why == "documents of enough, which has 300"
    assert splits["test"] == 90


def test_counts_that_were_wished_for_stay_where_there_are_so_many():
    wished = {"search": 40, "select": 10, "test": 40}
    assert propose_splits([task("a", 100)], wished)[0] == wished
    assert propose_splits([task("a", 60)], wished)[0] == {"search": 30, "select": 12, "test": 18}


def test_tasks_with_hardly_a_document_have_shares():
    assert propose_splits([task("a", 4)])[0] == {"search": 0.5, "select": 0.2, "test": 0.3}


def test_rungs_rise_and_are_for_large_splits_alone():
    assert propose_rungs(100, 1)[0] is None
    assert propose_rungs(300, 1)[0] == [32, 100, "all"]
    assert propose_rungs(1200, 40)[0] == [160, 400, "all"]


def test_workers_are_as_many_as_gpus_have_room_for():
    gigabyte = 10**9
    assert propose_workers(None, [])[0] is None
    assert propose_workers(None, [24 * gigabyte])[0] is None
    four = [24 * gigabyte] * 4
    small, large = Cost(1, 0, 10 * gigabyte), Cost(1, 0, 40 * gigabyte)
    assert propose_workers(small, four)[0] == {"kind": "ray", "count": 4, "gpus_per_worker": 1}
    assert propose_workers(large, four)[0] == {"kind": "ray", "count": 2, "gpus_per_worker": 2}
    assert "too small together" in propose_workers(Cost(1, 0, 200 * gigabyte), four)[1]


def asked(folder, **changes):
    models = folder / "models"
    given = {
        "base": str(models / "base"),
        "experts": {"math": str(models / "math"), "lang": str(models / "lang")},
        "tasks": [(str(folder / "tasks" / "pick.yaml"), None)],
        "folder": folder,
        "measure": False,
    }
    return Asked(**{**given, **changes})


def test_a_proposal_is_told_with_its_reasons(tiny_folder):
    draft, choices = propose(asked(tiny_folder))
    assert draft.data["fitness"]["tasks"] == [{"task": "pick", "metric": "acc"}]
    assert draft.data["fitness"]["include_path"] == str(tiny_folder / "tasks")
    assert draft.data["fitness"]["splits"] == {"search": 30, "select": 12, "test": 18}
    assert draft.data["space"]["weights"]["granularity"] == "layer"
    assert draft.data["budget"]["trials"] == 200
    assert all(choice.why for choice in choices)
    assert "10 genes for 2 layers and 2 experts" in draft.text()


def test_what_cannot_be_is_refused_by_name(tiny_folder):
    with pytest.raises(InputError, match="has no metric 'accuracy'"):
        propose(asked(tiny_folder, tasks=[(str(tiny_folder / "tasks/pick.yaml"), "accuracy")]))
    with pytest.raises(InputError, match="a front needs two tasks"):
        propose(asked(tiny_folder, goal="pareto"))
    with pytest.raises(InputError, match="no such folder"):
        propose(asked(tiny_folder, base=str(tiny_folder / "nowhere")))
    with pytest.raises(InputError, match="--download-configs"):
        propose(asked(tiny_folder, base="some-org/not-cached"))
    with pytest.raises(InputError, match=r"no such folder; did you mean '.*math'"):
        propose(asked(tiny_folder, experts={"mat": str(tiny_folder / "models" / "maht")}))
    same = str(tiny_folder / "models" / "base")
    with pytest.raises(InputError, match="is the base already; name a model once"):
        propose(asked(tiny_folder, base=same, experts={"again": same}))


def test_experts_of_another_shape_are_refused_under_their_own_path(tiny_folder):
    tiny.save_family(tiny_folder / "wide", experts=(), hidden_size=64)
    other = str(tiny_folder / "wide" / "base")
    with pytest.raises(InputError, match=r"models\.experts\.other"):
        propose(asked(tiny_folder, experts={"other": other}))


def test_hub_ids_in_the_cache_need_no_leave(tiny_folder, monkeypatch):
    commit = "0" * 40
    for name in ("base", "math"):
        repo = tiny_folder / "hub" / f"models--org--{name}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
        shutil.copytree(tiny_folder / "models" / name, repo / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tiny_folder / "hub"))
    draft, _ = propose(asked(tiny_folder, base="org/base", experts={"math": "org/math"}))
    assert draft.data["models"] == {"base": "org/base", "experts": {"math": "org/math"}}


@pytest.mark.slow  # lm-eval's list of its own tasks takes 10 s to build
def test_an_unknown_task_is_refused_with_the_nearest(tiny_folder):
    with pytest.raises(InputError, match="no task 'pik'"):
        propose(asked(tiny_folder, tasks=[("pik", None)], include_path=tiny_folder / "tasks"))


def test_weights_are_never_opened(tiny_folder):
    for file in tiny_folder.rglob("*.safetensors"):
        file.write_bytes(b"")
    with config_folders(asked(tiny_folder).models, download=False) as here:
        assert "evomerge-init-" in here.base
    assert propose(asked(tiny_folder))[0].data["name"] == "math-lang"
