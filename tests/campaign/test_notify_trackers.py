"""How trackers are told: every trial once, in order, and at nobody's expense."""

from __future__ import annotations

import pytest
from diary import Diary, Other
from told import Told, time_enough

from evomerge.common.errors import EvomergeError

DIARY = [{"kind": "diary:Diary"}]


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch):
    time_enough(monkeypatch)


@pytest.fixture
def study(tmp_path):
    return Told(tmp_path / "run")


@pytest.fixture(autouse=True)
def _empty_diaries():
    Diary.heard.clear()
    Other.heard.clear()


def numbers(diary=Diary):
    return [what[1].number for what in diary.heard if what[0] == "record"]


def bests():
    return [what[2] and what[2].number for what in Diary.heard if what[0] == "record"]


def outcomes():
    return [what[1] for what in Diary.heard if what[0] == "end"]


def test_every_trial_is_told_once_and_in_order_however_often_the_campaign_is_resumed(study):
    with study.run(trackers=DIARY):
        study.references().search([0.3, 0.6])
    with study.run(trackers=DIARY):
        study.search([0.4])
    with study.run(trackers=DIARY):
        study.search([0.8, 0.2]).finish()
    assert numbers() == list(range(len(study.study.evaluations())))
    assert len({what[1].uid for what in Diary.heard if what[0] == "begin"}) == 1


def test_a_tracker_that_comes_late_is_told_what_is_on_record(study):
    study.references().search([0.3, 0.6])
    with study.run(trackers=DIARY):
        study.search([0.9])
    assert numbers() == list(range(8))


def test_a_trial_during_which_a_tracker_went_down_is_not_told_again(study):
    with study.run(trackers=[{"kind": "diary:Diary", "fails_in": "record"}]):
        study.references()
    with study.run(trackers=DIARY):
        study.search([0.5])
    assert numbers() == [1, 2, 3, 4, 5]


def test_the_best_by_then_comes_with_every_trial(study):
    with study.run(trackers=DIARY):
        study.references().search([0.3, 0.9, 0, 0.2], {2: "out of memory"})
    assert bests() == [None] * 5 + [5, 6, 6, 6]
    with study.run(trackers=DIARY):
        study.search([0.4, 1.0])
    assert bests()[-2:] == [6, 10]


def test_trackers_are_told_how_the_run_ended(study):
    with study.run(trackers=DIARY):
        study.references().search([0.3])
    with pytest.raises(KeyboardInterrupt), study.run(trackers=DIARY):
        raise KeyboardInterrupt
    with pytest.raises(EvomergeError), study.run(trackers=DIARY):
        raise EvomergeError("no trial succeeded")
    with study.run(trackers=DIARY):
        study.finish()
    assert [outcome.kind for outcome in outcomes()] == ["stopped", "stopped", "failed", "finished"]
    assert outcomes()[2].reason == "no trial succeeded"
    assert outcomes()[3].summary["trial"] == 5


@pytest.mark.parametrize("where", ["begin", "record", "end"])
def test_a_tracker_that_fails_is_switched_off_with_a_message_and_the_others_go_on(study, where):
    failing = {"kind": "diary:Diary", "fails_in": where}
    with study.run(trackers=[failing, {"kind": "diary:Other"}]):
        study.references().search([0.3, 0.6])
    assert study.ear.lines == [
        "tracker diary:Diary is switched off (ConnectionError: nobody answers); "
        "the campaign goes on"
    ]
    assert numbers() == (list(range(7)) if where == "end" else [])
    assert numbers(Other) == list(range(7))


def test_a_tracker_that_hangs_holds_nobody_up(study, monkeypatch):
    monkeypatch.setattr("evomerge.campaign.notify_trackers.CLOSE_SECONDS", {"stopped": 0.3})
    with study.run(trackers=[{"kind": "diary:Diary", "hangs": True}]):
        study.references().search([0.3] * 20)
    Diary.patience.set()
    assert study.ear.lines == ["tracker diary:Diary has not taken in all, and is left behind"]


def test_two_trackers_of_one_kind_are_counted_apart(study):
    with study.run(trackers=DIARY * 2):
        study.references()
    with study.run(trackers=DIARY * 2):
        study.search([0.3])
    assert sorted(numbers()) == sorted([*range(6), *range(6)])


def test_without_trackers_the_study_is_left_as_it_is(study):
    with study.run():
        study.references()
        assert study.listener is study.ear
    assert study.study.note("uid") is None
    assert not (study.folder / "trackers").exists()
