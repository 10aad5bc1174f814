"""The page as a reader meets it: whole, offline, with the study's own numbers, and harmless."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from invented import REFERENCES, Invented
from plotly.offline import get_plotlyjs
from report_pages import page_of, trace
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.common.errors import InputError
from evomerge.judging.intervals import interval
from evomerge.judging.scores import Judge
from evomerge.report.figures.progress import _apart
from evomerge.report.figures.style import shown
from evomerge.report.pages.report import report_page, write_report


def measured(run, split, **facts):
    """The one evaluation on a split with these facts."""
    [found] = [
        e
        for e in run.study.evaluations()
        if e.split == split and all(getattr(e, k) == v for k, v in facts.items())
    ]
    return found


def test_the_page_loads_nothing_from_anywhere(finished):
    page = page_of(finished)
    assert [a for _, a in page.tags if {"src", "href", "srcset", "data"} & set(a)] == []
    assert not {"link", "iframe", "img", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    [policy] = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'"), "the browser itself refuses to fetch"
    assert page.scripts.count(get_plotlyjs()) == 1
    assert "url(" not in report_page(finished.study).replace(get_plotlyjs(), "")


def test_every_figure_has_its_place_and_every_place_its_figure(finished):
    page = page_of(finished)
    places = {a["id"] for _, a in page.tags if a.get("class") == "figure"}
    assert places == set(page.figures)
    made = {f"{kind}-{i}" for kind in ("coefficients", "population", "spread") for i in (1, 2)}
    whole = {"scores", "progress", "failures", "niches", "items", "pace", "busy", "cost"}
    assert places == {f"figure-{name}" for name in whole | made | {"task-1", "task-2"}}


def test_scores_stand_on_the_test_split_with_their_intervals(finished):
    figure = page_of(finished).figures["figure-scores"]
    assert figure["layout"]["yaxis"]["ticktext"] == ["winner", *(name for _, name in REFERENCES)]
    best = finished.results.best()
    shown = {
        name: (mean, mean - down, mean + up)
        for t in figure["data"]
        for (name, *_), mean, up, down in zip(
            t["customdata"], t["x"], t["error_x"]["array"], t["error_x"]["arrayminus"], strict=True
        )
    }
    scores = {"winner": best["scores"], **best["parents"], **best["baselines"]}
    assert set(shown) == set(scores)
    for name, found in scores.items():
        test = found["test"]
        assert shown[name] == pytest.approx((test["mean"], test["low"], test["high"]))
    base = measured(finished, "test", name="base")
    assert shown["base"][0] == pytest.approx(base.value)


def test_tasks_show_their_own_metric_with_its_interval(tmp_path):
    run = Invented(tmp_path / "run", lower_is_better=("mul",), budget=3)
    run.references().search([0.3, 0.8, 0.6]).finish()
    figure = page_of(run).figures["figure-task-2"]
    assert figure["layout"]["xaxis"]["title"]["text"] == "acc (lower is better)"
    items = measured(run, "test", name="math").scores["mul"]
    parents = trace(figure, "parent")
    assert parents["x"][1] == pytest.approx(items.mean()), "as measured: no sign turned"
    plain = Judge(run.judge.objective, ["mul"], np.ones(1), np.ones(1))
    span = interval(plain, {"mul": items})
    assert parents["customdata"][1] == ["math", span.low, span.high]


def test_progress_shows_points_failures_running_best_and_parents_and_baselines(finished):
    figure = page_of(finished).figures["figure-progress"]
    own = [e for e in finished.study.evaluations() if e.optimizers_own]
    done = [e for e in own if not e.failed]
    points = trace(figure, "trial")
    assert (points["x"], points["y"]) == ([e.number for e in done], [e.value for e in done])
    failed = trace(figure, "failed (2)")
    assert failed["x"] == [own[2].number, own[4].number]
    assert failed["customdata"] == ["out of memory"] * 2
    reached = np.maximum.accumulate([e.value for e in done]).tolist()
    assert trace(figure, "best so far")["y"] == [*reached, reached[-1]]
    leader = max(done, key=lambda e: e.value)
    upper = trace(figure, "its 95 % interval")
    assert upper["y"][-1] == pytest.approx(leader.value + 1.96 * leader.se)
    assert trace(figure, f"trial {leader.number} (winner)")["x"] == [leader.number]
    base = measured(finished, "search", name="base")
    [line] = [t for t in figure["data"] if (t.get("name") or "").startswith("parent base")]
    assert line["y"] == [base.value] * 2
    labels = [note["text"] for note in figure["layout"]["annotations"]]
    assert sorted(label.rsplit(" ", 1)[0] for label in labels) == sorted(n for _, n in REFERENCES)


def test_heat_maps_hold_the_winners_coefficients_in_depth_order(finished):
    page = page_of(finished)
    merges = finished.results.best()["recipe"]["merges"]
    maps = {i: page.figures[f"figure-coefficients-{i}"] for i in (1, 2)}
    rows = ["embeddings", "layer 0", "layer 1", "layer 2", "final norm"]
    for figure in maps.values():
        assert figure["layout"]["yaxis"]["ticktext"] == rows
    weight, shared = maps[1], maps[2]
    assert weight["layout"]["xaxis"]["ticktext"] == ["math", "lang"]
    assert weight["data"][0]["z"] == [
        [m["experts"][e]["weight"] for e in ("math", "lang")] for m in merges
    ]
    assert (weight["data"][0]["zmin"], weight["data"][0]["zmax"]) == (0, 1.5)
    assert shared["layout"]["xaxis"]["ticktext"] == ["all experts"]
    assert shared["data"][0]["z"] == [[m["parameters"]["lambda"]] for m in merges]
    assert "figure-coefficients-3" not in page.figures, "density is fixed, not searched"


def test_two_hundred_genes_are_all_there(tmp_path):
    run = Invented(tmp_path / "run", layers=33, granularity="module", tasks=("add",))
    page = page_of(run.references().search([0.5]))
    z = page.figures["figure-coefficients-1"]["data"][0]["z"]
    assert (len(z), len(z[0])) == (68, 2)
    rows = page.figures["figure-coefficients-1"]["layout"]["yaxis"]["ticktext"]
    assert rows[1:4] == ["layer 0 attention", "layer 0 mlp", "layer 1 attention"]
    assert "204: weight in 0 … 1.5, lambda in 0.5 … 1.5" in page.text
    assert "Task by task" not in page.text, "one task is the objective"


def test_facts_and_tables_name_everything(finished):
    text = page_of(finished).text
    best = finished.results.best()
    for name in (*best["parents"], *best["baselines"]):
        assert f" {name} " in text
    for fact in (
        "Done: 6 of 6 trials, 2 failed",
        "zoo/math digest-of-math",
        "ties, tuned per layer",
        "density = 0.4",
        "torch 2.0",
        "add acc 1 40 16 24",
        "The test split was opened once (after 6 trials)",
        "95 % intervals over items",
        "2 out of memory",
        '"digest-of-lang"',  # in the recipe
    ):
        assert fact in text, fact
    difference = best["parents"]["base"]["test"]["winner_minus_this"]["difference"]
    assert f"+{difference:.3f}".replace("0.", ".") in text


def test_before_the_test_the_page_stands_on_search_and_says_so(midway):
    page = page_of(midway)
    assert "Not finished: 3 of 20 trials" in page.text
    assert "its score and intervals flatter it" in page.text
    assert "The test split has not been opened" in page.text
    assert "winner" not in page.text
    best = trace(page.figures["figure-scores"], "best so far")
    leader = max(midway.study.evaluations(), key=lambda e: e.value * e.optimizers_own)
    assert best["x"] == [leader.value]


def test_a_campaign_extended_after_its_test_shows_the_merge_of_then(extensible):
    extensible.search([0.95])
    page = page_of(extensible)
    assert "Not finished" in page.text
    assert "shown is the merge it was last opened for" in page.text
    extensible.opened({"trials": 7, "winner": "another"})
    assert "The test split was opened 2 times (after 6, 7 trials)" in page_of(extensible).text


def test_names_and_reasons_are_text_and_never_markup(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    run = Invented(tmp_path / "run", tasks=(evil, "<b>bold</b>"))
    run.references().search([0.5, 0], {1: evil})
    harmless = page_of(Invented(tmp_path / "plain").references().search([0.5, 0], {1: "oom"}))
    page = page_of(run)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert page.scripts == harmless.scripts
    assert f"1 {evil}" in page.text
    [reason] = trace(page.figures["figure-progress"], "failed (1)")["customdata"]
    assert "<" not in reason, "plotly would read it as mark-up"


def test_no_trial_yet_is_one_clear_message(tmp_path):
    run = Invented(tmp_path / "run").references()
    with pytest.raises(InputError, match="no trial has succeeded yet; `evomerge status` says"):
        report_page(run.study)
    run.search([0, 0], {0: "oom", 1: "oom"})
    with pytest.raises(InputError, match="no trial has succeeded yet"):
        report_page(run.study)


def test_a_file_that_cannot_be_written_is_one_clear_message(finished, tmp_path):
    with pytest.raises(InputError, match=r"--out .*nowhere.*: cannot be written \(No such file"):
        write_report(finished.study, tmp_path / "nowhere" / "report.html")


def test_the_command_writes_beside_the_study_or_where_it_is_told(finished, tmp_path):
    result = CliRunner().invoke(app, ["report", str(finished.folder)])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(finished.folder / "report.html")
    elsewhere = tmp_path / "page.html"
    CliRunner().invoke(app, ["report", str(finished.folder), "--out", str(elsewhere)])
    assert elsewhere.read_text() == (finished.folder / "report.html").read_text()
    assert CliRunner().invoke(app, ["report", str(tmp_path)]).exit_code == 2


def test_the_command_does_not_import_torch(finished):
    code = (
        "import sys; from evomerge.cli import app\n"
        f"try: app(['report', {str(finished.folder)!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_long_names_lose_their_middle_and_labels_never_overlap():
    assert shown("a" * 30 + "z", 9) == "aaaa…aaaz"
    places = _apart([0.5, 0.5, 0.5, 0.51, 0.98], 0.1, (0.0, 1.0))
    assert np.diff(places).min() > 0.1 - 1e-9
    assert max(places) <= 1


def test_a_losing_campaign_says_so_in_the_headline(losing):
    page = page_of(losing)
    assert "No merge beats lang : trial 5 is behind it, -." in page.text
    assert "More trials, other genes" in page.text
    assert "The best merge, trial 5 of the study, number 1 of 2 tried, scores" in page.text
    assert "winner" not in page.text
    assert ("p", {"class": "headline verdict loses"}) in page.tags
    assert page.figures["figure-scores"]["layout"]["yaxis"]["ticktext"][0] == "best merge"


def test_a_winning_campaign_says_so_as_plainly(finished):
    page = page_of(finished)
    assert "Trial 8 beats the best parent, math , by +." in page.text
    assert ("p", {"class": "headline verdict wins"}) in page.tags


def test_the_audit_of_tasks_that_generate_nothing_shows_items_alone(finished):
    text = page_of(finished).text
    assert "Trust audit" in text
    assert "not readable" not in text
    assert "the winner has better or worse than each parent" in " ".join(text.split())
