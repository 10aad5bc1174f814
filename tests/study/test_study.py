"""The study as others meet it: Optuna's tools, a resuming campaign, a second driver, a crash."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import optuna_dashboard
import pytest
import sqlalchemy
from drivers import IDENTITY, driver, on_every_database, open_study, refusal, scored
from optuna.distributions import FloatDistribution
from werkzeug.test import Client

from evomerge.common.errors import InputError
from evomerge.study.record import RungResult
from evomerge.study.storage_url import describe
from evomerge.study.study import Study

# Optuna's own tools


@on_every_database
def test_best_trial_is_a_search_trial_whatever_the_parents_and_baselines_score(url):
    with open_study(url) as study:
        study.add(scored(0.3))
        study.add(scored(0.5))
        study.add(scored(0.9, role="parent", name="math"))
        study.add(scored(0.8, role="baseline", name="ties default"))
        study.add(scored(0.99, role="finalist", split="test"))
        study.add(scored(None, reason="out of memory"))
    best = optuna.load_study(study_name="c", storage=url).best_trial
    assert (best.number, best.value) == (1, 0.5)


@on_every_database
def test_pandas_reads_params_and_values(url):
    with open_study(url) as study:
        study.add(scored(0.25, seconds={"score": 2.0}))
        study.add(scored(None, reason="out of memory"))
    frame = optuna.load_study(study_name="c", storage=url).trials_dataframe()
    assert frame["params_weight"].tolist() == [0.5, 0.5]
    assert frame["value"][0] == 0.25
    assert frame["state"].tolist() == ["COMPLETE", "FAIL"]
    assert frame["user_attrs_reason"][1] == "out of memory"
    assert frame["user_attrs_tasks"][0] == {"t": {"mean": 1.0, "n": 3}}
    assert frame["duration"][0].total_seconds() == pytest.approx(2.0)


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_the_optuna_command_line_lists_study_and_trials(url):
    with open_study(url) as study:
        study.add(scored(0.25))
    optuna_bin = Path(sys.executable).parent / "optuna"

    def ask(*words):
        command = [optuna_bin, *words, "--storage", url, "-f", "json"]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    (listed,) = ask("studies")
    assert (listed["name"], listed["direction"], listed["n_trials"]) == ("c", ["MAXIMIZE"], 1)
    (trial,) = ask("trials", "--study-name", "c")
    assert trial["value"] == 0.25
    assert trial["params"] == {"weight": 0.5, "density": 0.25}
    assert trial["user_attrs"]["split"] == "search"


@on_every_database
def test_optuna_dashboard_shows_study_and_trials(url):
    with open_study(url) as study:
        study.add(scored(0.25))
        study.add(scored(0.5, estimated=True, rungs=(RungResult(2, 0.5, 0.1),)))
        study.add(scored(None, reason="out of memory"))
    dashboard = Client(optuna_dashboard.wsgi(url))
    (listed,) = dashboard.get("/api/studies").json["study_summaries"]
    assert (listed["study_name"], listed["directions"]) == ("c", ["maximize"])
    shown = dashboard.get(f"/api/studies/{listed['study_id']}").json
    assert [trial["state"] for trial in shown["trials"]] == ["Complete", "Pruned", "Fail"]
    assert shown["trials"][0]["values"] == [0.25]
    assert {p["name"]: p["param_internal_value"] for p in shown["trials"][0]["params"]} == {
        "weight": 0.5,
        "density": 0.25,
    }
    attributes = {a["key"]: a["value"] for a in shown["trials"][2]["user_attrs"]}
    assert attributes["reason"] == "out of memory"
    assert "<html" in dashboard.get("/dashboard").text.lower()


def test_above_64_genes_optuna_sees_a_summary(url):
    genes = {f"g{i}": i / 100 for i in range(100)}
    distributions = dict.fromkeys(genes, FloatDistribution(0.0, 1.0))
    with open_study(url, genes=distributions) as study:
        study.add(scored(0.25, params=genes))
    (trial,) = optuna.load_study(study_name="c", storage=url).trials
    assert trial.params == pytest.approx({"genes.min": 0, "genes.mean": 0.495, "genes.max": 0.99})
    with Study.read(url, "c") as study:
        assert study.evaluations()[0].params == genes


def test_rounding_past_a_bound_is_no_reason_to_lose_a_trial(url):
    with open_study(url) as study:
        study.add(scored(0.5, params={"weight": np.nextafter(1.5, 2), "density": 0.5}))
    (trial,) = optuna.load_study(study_name="c", storage=url).trials
    assert trial.params["weight"] == 1.5


@on_every_database
def test_trials_that_evomerge_did_not_write_are_passed_over(url):
    with open_study(url) as study:
        study.add(scored(0.1, "a"))
        theirs = optuna.load_study(study_name="c", storage=url)
        theirs.ask()
        theirs.enqueue_trial({"weight": 1.0})
        theirs.add_trial(optuna.create_trial(value=1.0))
        study.add(scored(0.2, "b"))
    with Study.read(url, "c") as study:
        assert [(e.digest, e.number) for e in study.evaluations()] == [("a", 0), ("b", 4)]


def test_opening_a_study_says_nothing_and_leaves_optunas_verbosity_alone(url, capfd):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    with open_study(url) as study:
        study.add(scored(0.1))
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert capfd.readouterr() == ("", "")


@on_every_database
def test_a_reader_follows_a_running_driver(url):
    with open_study(url) as study, Study.read(url, "c") as reader:
        assert reader.evaluations() == []
        for i in range(3):
            study.add(scored(0.1, str(i)))
            assert [e.digest for e in reader.evaluations()] == [str(j) for j in range(i + 1)]
        first = reader.evaluations()
        assert reader.evaluations() == first, "trials already seen are decoded again"


def test_a_reader_that_stands_still_sees_one_moment_of_a_running_driver(url):
    with open_study(url) as study:
        study.add(scored(0.1))
        with Study.read(url, "c") as reader:
            with reader.still():
                study.add(scored(0.2))
                assert [e.value for e in reader.evaluations()] == [0.1]
            assert [e.value for e in reader.evaluations()] == [0.1, 0.2]


# Facts at study level


@on_every_database
def test_notes_items_and_campaign_come_back(url):
    items = {"search": {"t": [f"t/{i:032x}" for i in range(20_000)]}, "test": {"t": ["t/x"]}}
    with open_study(url) as study:
        assert study.items() == {}
        assert study.note("test opened") is None
        study.set_items(items)
        study.set_note("test opened", {"trial": 3})
    with open_study(url, campaign={"name": "c", "budget": {"trials": 9}}) as study:
        study.set_items(items)
    with Study.read(url, "c") as study:
        assert study.items() == items
        assert study.note("test opened") == {"trial": 3}
        assert study.campaign == {"name": "c", "budget": {"trials": 9}}
        assert study.identity == IDENTITY


def test_documents_that_changed_since_the_study_began_are_refused(url):
    with open_study(url) as study:
        study.set_items({"search": {"t": ["a"], "u": ["b"]}})
        study.add(scored(0.1))
        with pytest.raises(InputError, match="documents of task 'u' in split 'search'"):
            study.set_items({"search": {"t": ["a"], "u": ["c"]}})
        assert study.items() == {"search": {"t": ["a"], "u": ["b"]}}


@on_every_database
def test_another_campaign_is_refused_key_by_key_and_nothing_is_touched(url):
    with open_study(url) as study:
        study.add(scored(0.1))
    before = everything(url)
    other = IDENTITY | {"optimizer": {"kind": "random", "sigma": 1}, "seed": 0}
    text = refusal(url, identity=other, campaign={"name": "other"})
    assert text.startswith(f"study 'c' in {describe(url)} belongs to another campaign: ")
    assert "optimizer.kind is 'cma' in the study, 'random' in the campaign file" in text
    assert "optimizer.sigma is absent in the study, 1 in the campaign file" in text
    assert "seed" not in text
    assert text.endswith("begins with this study's best genes")
    assert everything(url) == before
    open_study(url).close()


def test_another_lm_eval_version_is_refused_in_its_own_words(url):
    with open_study(url) as study:
        study.add(scored(0.1))
    text = refusal(url, identity=IDENTITY | {"versions": {"lm_eval": "0.4.14"}})
    assert "scored with lm-eval '0.4.13', but '0.4.14' is installed" in text
    assert "must not be mixed" in text


def test_a_study_without_trials_takes_the_mended_campaign(url):
    with open_study(url) as study:
        study.set_items({"search": {"t": ["a"]}})
    with open_study(url, identity=IDENTITY | {"seed": 5}) as study:
        study.set_items({"search": {"t": ["b"]}})
        assert study.identity["seed"] == 5
        assert study.items() == {"search": {"t": ["b"]}}


def test_a_study_of_a_newer_evomerge_is_refused(url):
    open_study(url).close()
    theirs = optuna.load_study(study_name="c", storage=url)
    theirs.set_user_attr("evomerge", {"schema": 99, "version": "9.0"})
    assert "written by evomerge 9.0, newer than this" in refusal(url)
    with pytest.raises(InputError, match=r"evomerge 9\.0"):
        Study.read(url, "c")


@on_every_database
def test_a_study_that_evomerge_did_not_make_is_refused(url):
    theirs = optuna.create_study(study_name="c", storage=url, direction="maximize")
    theirs.add_trial(optuna.create_trial(value=1.0))
    assert "was not made by evomerge" in refusal(url)
    with pytest.raises(InputError, match="was not made by evomerge"):
        Study.read(url, "c")
    assert theirs.user_attrs == {}


@on_every_database
def test_a_driver_killed_while_making_the_study_leaves_no_trap(url):
    optuna.create_study(study_name="c", storage=url, direction="maximize")
    with open_study(url) as study:
        assert study.identity == IDENTITY


# One driver


@on_every_database
def test_a_second_driver_is_refused_until_the_first_is_gone(url):
    first = driver("study = open_study(url); print('open', flush=True); time.sleep(60)", url)
    try:
        assert first.stdout.readline() == "open\n"
        text = refusal(url)
        assert f"another evomerge search (pid {first.pid}, host " in text
        assert "is running on this study" in text
        with Study.read(url, "c") as reader:
            assert reader.evaluations() == []
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    with open_study(url) as study:
        study.add(scored(0.1))


def test_a_refused_campaign_does_not_keep_the_lock(url):
    with open_study(url) as study:
        study.add(scored(0.1))
    refusal(url, identity=IDENTITY | {"seed": 5})
    open_study(url).close()


# What goes wrong


@on_every_database
def test_a_killed_driver_leaves_whole_trials_only(url):
    body = """
        study = open_study(url)
        for i in range(1000):
            study.add(scored(i / 1000, f"d{len(study.evaluations())}"))
            print(i, flush=True)
    """
    printed = 0
    for run in range(3):
        process = driver(body, url)
        for _ in range(3):
            process.stdout.readline()
        time.sleep(0.005 + 0.009 * run)
        process.send_signal(signal.SIGKILL)
        printed += 3 + len(process.communicate()[0].splitlines())
        with Study.read(url, "c") as study:
            digests = [evaluation.digest for evaluation in study.evaluations()]
            assert all(len(e.scores["t"]) == 3 and e.params for e in study.evaluations())
            assert len(study._storage.get_all_trials(study._id)) == len(digests)
        assert digests == [f"d{i}" for i in range(len(digests))]
        assert printed <= len(digests) <= printed + run + 1, "what add returned must be there"


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("journal.log", "is not a database URL"),
        ("nosuchdialect://host/db", "nosuchdialect"),
        ("mysql+nosuchdriver://user:secret@host/db", "nosuchdriver"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_clear_message(storage, reason):
    text = refusal(storage)
    assert reason in text
    assert "secret" not in text


def test_opening_a_study_imports_no_torch():
    code = "import sys, evomerge.study.study; print('torch' in sys.modules, 'scipy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


def everything(url):
    """What a database holds, as text."""
    engine = sqlalchemy.create_engine(url)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        found = {name: connection.execute(t.select()).all() for name, t in tables.tables.items()}
    engine.dispose()
    return str(found)
