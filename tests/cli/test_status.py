"""`evomerge status`: one JSON object in the documented form."""

from __future__ import annotations

import json

from command_line import evomerge


def test_status_prints_one_json_object_in_the_documented_form(done):
    status = json.loads(evomerge("status", done / "run", "--json").stdout)
    assert status["trials"] == status["completed"] == len(status["digests"]) == 12
    assert status["done"] is True
    assert status["item_evaluations"] == 19 * 30 + 10 * 12 + 8 * 18
    assert {"pruned", "failed", "failures", "best", "seconds"} <= set(status)
