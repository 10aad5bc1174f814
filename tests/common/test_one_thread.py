"""Waiting threads sleep soon, unless the user says otherwise."""

import os

import pytest

from evomerge.common.one_thread import let_waiting_threads_sleep


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_says_of_waiting_threads_stays(monkeypatch, said):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    let_waiting_threads_sleep()
    found = {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    assert {name: value for name, value in found.items() if value is not None} == said


def test_waiting_threads_spin_for_a_hundredth_of_their_own_time(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    let_waiting_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "3000"
