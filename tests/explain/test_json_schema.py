"""The JSON schema takes the campaigns that evomerge takes, and completes their keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import yaml

from evomerge.explain import json_schema, topics

jsonschema = pytest.importorskip("jsonschema")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_campaigns_that_come_along_are_valid(validator):
    texts = [file.read_text() for file in sorted((ROOT / "search_spaces").rglob("*.yaml"))]
    campaigns = [yaml.safe_load(text) for text in texts if "\nmodels:" in text]
    assert len(campaigns) > 5
    for data in campaigns:
        assert list(validator.iter_errors(data)) == [], data["name"]


def test_every_example_is_valid(validator):
    for topic in topics():
        if topic.example is not None:
            data = {**tiny.campaign_data(), **topic.example}
            for key in ("models", "fitness", "space"):
                if key in topic.example:
                    data[key] = {**tiny.campaign_data()[key], **topic.example[key]}
            assert list(validator.iter_errors(data)) == [], topic.name


@pytest.mark.parametrize(
    "wrong",
    [
        {"sed": 1},
        {"budget": {"trials": 0}},
        {"optimizer": {"kind": "cmaa"}},
        {"optimizer": {"kind": "m2n2", "attraction": 3}},
        {"space": {"weights": {"method": "tise"}}},
    ],
)
def test_what_evomerge_refuses_is_marked(validator, wrong):
    assert list(validator.iter_errors({**tiny.campaign_data(), **wrong}))


def test_keys_carry_their_texts_and_examples():
    rungs = json_schema()["$defs"]["FitnessConfig"]["properties"]["rungs"]
    assert "pruned" in rungs["description"]
    assert rungs["examples"] == [[32, 128, "all"]]
