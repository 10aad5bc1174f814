"""A trial that is added by one statement a table leaves the rows that Optuna leaves."""

from __future__ import annotations

import math
import sqlite3
import warnings
from datetime import datetime

import optuna
import pytest
from drivers import on_every_database, open_study, scored
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from evomerge.study import at_once
from evomerge.study.at_once import AtOnceStorage
from evomerge.study.storage_url import sqlite_path, sqlite_url

PARAMS = {
    "float": (0.1 + 0.2, FloatDistribution(0.0, 1.0)),
    "log": (0.01, FloatDistribution(1e-3, 1.0, log=True)),
    "int": (3, IntDistribution(2, 9)),
    "choice": ("ö", CategoricalDistribution((None, True, 3, "ö"))),
}
TRIALS = [
    {"state": TrialState.COMPLETE, "value": 1 / 3},
    {"state": TrialState.COMPLETE, "values": [math.inf, -math.inf]},
    {"state": TrialState.PRUNED, "intermediate_values": {7: math.nan, 2: math.inf, 4: 0.25}},
    {"state": TrialState.FAIL, "user_attrs": {"reason": 'says "no"', "n": [1, None]}},
    {"state": TrialState.COMPLETE, "value": 2.0, "constraints": {"violation": 0.5}},
]


def made():
    """Trials of all kinds, as a driver adds them."""
    found = []
    for place, given in enumerate(TRIALS):
        names = list(PARAMS)[: 4 - place % 2]
        trial = create_trial(
            params={name: PARAMS[name][0] for name in names},
            distributions={name: PARAMS[name][1] for name in names},
            system_attrs={"recipe:0": "x" * 500, "genome:0": "y"},
            **given,
        )
        trial.datetime_start = datetime(2026, 3, 29, 1, 30, place, 7)
        trial.datetime_complete = datetime(2026, 3, 29, 3, 30, place, 123456)
        found.append(trial)
    return found


def rows(url):
    """Every row of every table."""
    connection = sqlite3.connect(sqlite_path(url))
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    found = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for (name,) in names}
    connection.close()
    return found


def filled(storage):
    study = storage.create_new_study([StudyDirection.MAXIMIZE, StudyDirection.MAXIMIZE], "s")
    other = storage.create_new_study([StudyDirection.MAXIMIZE], "other")
    for place, trial in enumerate(made()):
        key = storage.create_new_trial(study, template_trial=trial)
        storage.create_new_trial(other)
        assert storage.get_trial_number_from_id(key) == place
    assert storage.get_n_trials(study) == len(TRIALS)
    storage.engine.dispose()


def test_the_rows_are_those_that_optuna_writes_one_for_one(tmp_path):
    ours, theirs = (sqlite_url(tmp_path / name) for name in ("ours.db", "theirs.db"))
    filled(AtOnceStorage(ours))
    filled(RDBStorage(theirs))
    found, wanted = rows(ours), rows(theirs)
    for table in wanted:
        running = table == "trials"  # the times of those that only began are of this moment
        kept = [[row for row in one[table] if not running or row[3] != "RUNNING"]
                for one in (found, wanted)]  # fmt: skip
        assert kept[0] == kept[1], table
    assert len(found["trial_params"]) > 10
    assert len(found["trial_intermediate_values"]) == 3


def test_a_param_of_another_kind_is_refused_as_optuna_refuses_it(tmp_path):
    storage = AtOnceStorage(sqlite_url(tmp_path / "study.db"))
    study = storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    for distribution in (FloatDistribution(0, 1), FloatDistribution(0, 2)):
        trial = create_trial(value=1.0, params={"x": 1.0}, distributions={"x": distribution})
        storage.create_new_trial(study, template_trial=trial)
    again = AtOnceStorage(sqlite_url(tmp_path / "study.db"))
    whole = create_trial(value=1.0, params={"x": 1}, distributions={"x": IntDistribution(0, 1)})
    for one in (storage, again):
        with pytest.raises(ValueError, match="distribution"):
            one.create_new_trial(study, template_trial=whole)
        assert one.get_n_trials(study) == 2
        one.engine.dispose()


def test_tables_of_another_revision_are_left_to_optuna(tmp_path, monkeypatch):
    monkeypatch.setattr(at_once, "REVISION", "v9.9.9.a")
    refused = lambda *_: pytest.fail("rows were written into tables that are not known")  # noqa: E731
    monkeypatch.setattr(AtOnceStorage, "_insert", refused)
    with open_study(sqlite_url(tmp_path / "study.db")) as study:
        assert study.add(scored(0.25)).number == 0
        study.set_note("seen", [1])
        assert [e.value for e in study.evaluations()] == [0.25]


@on_every_database
def test_a_trial_that_is_refused_leaves_nothing_behind(url):
    with open_study(url) as study:
        study.add(scored(0.1))
        storage = study._access.storage
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = create_trial(value=1.0, user_attrs={"k" * 600: 1}, system_attrs={"a": object})
        with pytest.raises(Exception, match="not JSON serializable"):
            storage.create_new_trial(study._id, template_trial=trial)
        assert study.add(scored(0.2)).number == 1
    names = [trial.number for trial in optuna.load_study(study_name="c", storage=url).trials]
    assert names == [0, 1]
