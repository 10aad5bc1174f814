"""What is remembered comes back for the same key, and a damaged cache is no more than a loss."""

import pytest

from evomerge.common.data_files import cache_folder
from evomerge.common.remembered import recall, remember, remembered


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))


def test_a_value_is_found_once_for_each_key():
    calls = []

    def find():
        calls.append(1)
        return {"found": [1, None]}

    assert remembered("things", {"a": 1}, find) == {"found": [1, None]}
    assert remembered("things", {"a": 1}, find) == {"found": [1, None]}
    assert len(calls) == 1
    remembered("things", {"a": 2}, find)
    remembered("others", {"a": 1}, find)
    assert len(calls) == 3


def test_without_a_key_nothing_is_remembered():
    assert [remembered("things", None, iter("ab").__next__) for _ in range(2)] == ["a", "a"]
    assert not cache_folder("things").exists()


def test_none_and_false_are_values_too():
    remembered("things", 1, lambda: None)
    remembered("things", 2, lambda: False)
    assert remembered("things", 1, lambda: "anew") is None
    assert remembered("things", 2, lambda: "anew") is False


def test_a_damaged_file_is_found_anew_and_a_folder_that_cannot_be_made_costs_the_memory(tmp_path):
    remember("things", 1, ["kept"])
    [place] = cache_folder("things").iterdir()
    place.write_text('["ke')
    assert recall("things", 1) is None
    assert remembered("things", 1, lambda: "anew") == "anew"
    (tmp_path / "cache" / "blocked").write_text("a file where the folder would be")
    assert remembered("blocked", 1, lambda: "each time") == "each time"
    assert recall("blocked", 1) is None
