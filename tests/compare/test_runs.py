"""A comparison is ordinary runs that share what they measure."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import tiny
from silent import Silent

from evomerge.campaign import open as opened
from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.compare.arms import parse_arms
from evomerge.compare.page import comparison_page, rows, write_comparison
from evomerge.compare.runs import compare_optimizers
from evomerge.config import OptimizerConfig, load_campaign
from evomerge.study.run_folder import open_run
from evomerge.workers.worker import Worker

OWN = OptimizerConfig(kind="cma", population=4)


def run(folder, text="cma,random", seeds=2, trials=5):
    """Compare on the folder's campaign, into `folder/compare`."""
    config = load_campaign(folder / "campaign.yaml", [f"budget.trials={trials}"])
    arms = parse_arms(text, config.optimizer)
    return compare_optimizers(prepare(config), arms, seeds, folder / "compare", Silent())


@pytest.fixture(scope="module")
def measured():
    """What the workers of `compared` measured: (digest, split) → how often."""
    return Counter()


@pytest.fixture(scope="module")
def compared(tmp_path_factory, measured):
    """A folder with a finished comparison, and what it says."""
    folder = tmp_path_factory.mktemp("compared")
    tiny.save_campaign(folder)
    measure = Worker.measure

    def counted(self, recipe, split):
        measured[recipe.digest, split] += 1
        return measure(self, recipe, split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "measure", counted)
        return folder, run(folder)


def studies(folder):
    found = sorted((folder / "compare").glob("*/seed-*"))
    return {str(path.relative_to(folder / "compare")): open_run(path)[1] for path in found}


def test_every_optimizer_and_seed_is_a_run_of_its_own_with_equal_budgets(compared):
    folder, comparison = compared
    runs = studies(folder)
    assert list(runs) == ["cma/seed-0", "cma/seed-1", "random/seed-0", "random/seed-1"]
    for study in runs.values():
        own = [e for e in study.evaluations() if e.optimizers_own]
        assert sum(e.n for e in own) == 5 * comparison["search_items"] == 150
    assert runs["cma/seed-0"].campaign["optimizer"]["population"] == 4


def test_no_recipe_is_measured_twice_whichever_runs_ask_for_it(compared, measured):
    folder, _ = compared
    assert set(measured.values()) == {1}
    asked = [(e.digest, e.split) for s in studies(folder).values() for e in s.evaluations()]
    assert len(asked) > len(set(asked)) == len(measured)


def test_the_curve_is_the_select_score_of_the_best_by_search(compared):
    folder, comparison = compared
    for name, study in studies(folder).items():
        found = study.evaluations()
        own = [e for e in found if e.optimizers_own]
        last = max(own, key=lambda e: e.value)
        on_select = next(e for e in found if e.split == "select" and e.digest == last.digest)
        label, _, seed = name.partition("/seed-")
        final = comparison["optimizers"][label]["final"]["runs"][seed]
        assert final == pytest.approx(on_select.value)


def test_select_is_never_told_and_test_stays_shut(compared):
    for study in studies(compared[0]).values():
        found = study.evaluations()
        assert not [e for e in found if e.split == "test"]
        assert [e.tells for e in found if e.optimizers_own] == list(range(5))


def test_a_finished_comparison_is_not_repeated_and_says_the_same(compared, monkeypatch):
    folder, comparison = compared
    monkeypatch.setattr(Worker, "measure", lambda *_: pytest.fail("measured again"))
    assert run(folder) == comparison


@pytest.mark.slow
def test_a_stopped_comparison_goes_on_and_ends_as_if_it_had_not(compared, tmp_path, monkeypatch):
    _, comparison = compared
    tiny.save_campaign(tmp_path)
    measure, left = Worker.measure, [23]

    def interrupted(self, recipe, split):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measure(self, recipe, split)

    monkeypatch.setattr(Worker, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    left[0] = 1000
    resumed = run(tmp_path)
    assert resumed["optimizers"] == comparison["optimizers"]


def test_the_page_the_picture_and_the_data_are_written(compared, tmp_path):
    _, comparison = compared
    page, picture, data = write_comparison(comparison, tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(data.read_text()) == comparison
    text = page.read_text()
    assert "http://" not in text.partition("<script>")[0]
    for label, cells in rows(comparison).items():
        assert f"<th>{label}</th>" in text
        assert f'<td class="number">{cells[0]}</td>' in text


def test_labels_are_escaped_in_the_page(compared):
    _, comparison = compared
    odd = {**comparison, "campaign": "<b>x</b>"}
    assert "<b>x</b>" not in comparison_page(odd)


def test_an_unknown_optimizer_is_refused_before_any_work(tiny_folder):
    with pytest.raises(InputError, match=r"--optimizers randam: .*did you mean 'random'"):
        run(tiny_folder, "cma,randam")
    with pytest.raises(InputError, match=r"--optimizers cma:\{sigme: 1\}: optimizer.sigme"):
        run(tiny_folder, "cma:{sigme: 1}")
    assert not (tiny_folder / "compare").exists()


def test_the_start_of_ray_is_said_before_it(tiny_folder, monkeypatch):
    heard = []

    class Ear(Silent):
        def said(self, message):
            heard.append(message)

    def refuses(spec):
        raise InputError("no workers here")

    monkeypatch.setattr(opened, "build_executor", refuses)
    config = load_campaign(tiny_folder / "campaign.yaml", ["workers.kind=ray"])
    arms = parse_arms("cma", config.optimizer)
    with pytest.raises(InputError, match="no workers here"):
        compare_optimizers(prepare(config), arms, 1, tiny_folder / "compare", Ear())
    assert heard == ["starting Ray on this machine, and workers, which load models and tasks"]


def test_arms_may_differ_in_their_rungs_and_spend_the_same_items(tiny_folder):
    """With rungs a candidate costs what it was asked for, so there is budget for more of them."""
    rungs = "cma:{fitness.rungs: [15, all], fitness.race: {keep: 0.25, confidence: 0.5}}"
    changes = ["budget={items: 240}", "optimizer.plain=true"]
    config = load_campaign(tiny_folder / "campaign.yaml", changes)
    arms = parse_arms(f"cma,{rungs}", config.optimizer)
    assert arms[1].optimizer == config.optimizer
    found = compare_optimizers(prepare(config), arms, 1, tiny_folder / "compare", Silent())
    trials = {}
    for arm in arms:
        _, study = open_run(tiny_folder / "compare" / arm.folder / "seed-0")
        own = [e for e in study.evaluations() if e.optimizers_own]
        trials[arm.label] = len(own)
        assert 240 <= sum(e.cost(30) for e in own) < 240 + 30
        assert found["optimizers"][arm.label]["curve"]["spent"][-1] >= 240
    assert trials["cma"] == 8
    assert trials[rungs] > 8
    assert "240 evaluations" in comparison_page(found)


def test_screening_is_a_row_of_its_own(tiny_folder):
    found = run(tiny_folder, "cma,cma:{screen: 4}", seeds=1, trials=13)
    assert list(found["optimizers"]) == ["cma", "cma:{screen: 4}"]
    plain, screened = studies(tiny_folder).values()
    assert plain.campaign["optimizer"] | {"screen": 4} == screened.campaign["optimizer"]
    asked = [[e.digest for e in s.evaluations() if e.optimizers_own] for s in (plain, screened)]
    assert asked[0][:5] == asked[1][:5]  # before there is enough to go by
    assert asked[0][5:] != asked[1][5:]


def test_what_is_compared_must_be_scored_alike():
    with pytest.raises(InputError, match=r"fitness\.objective must be the same"):
        parse_arms("cma:{fitness.objective: mean}", OWN)
