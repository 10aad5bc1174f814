"""Items of all tasks stand in columns of one row."""

from __future__ import annotations

import math

import numpy as np

from evomerge.search.archives import ItemColumns

NAN = math.nan


def test_columns_stay_where_they_are_when_a_task_grows():
    columns = ItemColumns()
    first = columns.row({"a": np.array([1.0, 0.0]), "b": np.array([0.5])}, {"b": -1})
    assert first.tolist() == [1, 0, -0.5]
    second = columns.row({"a": np.array([0.0, 1.0, 1.0])}, {})
    assert np.array_equal(second, [0, 1, NAN, 1], equal_nan=True)
    assert columns.tasks.tolist() == [0, 0, 1, 0]
