"""Every key, plug-in, option and term is explained, and what is shown is what evomerge takes."""

from __future__ import annotations

import pytest
import tiny

from evomerge.common.errors import InputError
from evomerge.common.plugins import check_options, options
from evomerge.config import CampaignConfig, parse_campaign
from evomerge.explain import REGISTRIES, find_topics, topics
from evomerge.explain.plugins import KEYS, plugin_topics, summaries
from evomerge.explain.topics import glossary
from evomerge.explain.types import models_in
from evomerge.methods import Method

TERMS = (
    "baseline, uniform, default, rung, estimate, niche, front, materialize, select, Holm, trial, "
    "recipe, task vector, expert, base model, density, in flight, prune, archive"
)


def named(name, kind):
    return next((t for t in topics() if t.name == name and t.kind == kind), None)


def keys_of(model, place=""):
    """Every key of the schema at its place, a section within itself once."""
    for name, field in model.model_fields.items():
        key = f"{place}.{field.alias or name}".lstrip(".")
        yield key
        for inner, _ in models_in(field.annotation):
            yield from keys_of(inner, key)


def test_every_key_of_the_schema_is_explained_at_each_of_its_places():
    for key in keys_of(CampaignConfig):
        [first, *_] = find_topics(key)
        assert first.kind == "key"
        assert key.endswith(first.last), key
        assert len(first.text) > 10, key


def test_every_key_says_what_it_takes_and_has_an_example_that_names_it():
    for topic in topics():
        if topic.kind == "key" and not topic.name.endswith((".kind", "campaign")):
            assert topic.type, topic.name
            assert topic.own.startswith(("{" + topic.last, "{'" + topic.last)), topic.name


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_plug_in_and_option_is_explained(kind):
    registry = REGISTRIES[kind]
    for name, plug in registry.all().items():
        topic = named(name, registry.kind)
        assert len(topic.text) > 10, name
        if isinstance(plug, Method):
            known = plug.parameters
            assert topic.source
        else:
            known = options(getattr(plug, "function", plug))
        assert [option.last for option in topic.options] == list(known)
        for option in topic.options:
            assert len(option.text) > 3, option.name
            assert option.type, option.name
            assert option.example, option.name


@pytest.mark.parametrize("term", TERMS.split(", "))
def test_the_terms_of_reports_are_explained(term):
    assert len(named(term, "term").text) > 60


def test_what_the_glossary_points_at_is_there():
    for term in glossary().values():
        for name in term.see:
            assert any(t.name == name for t in topics()), (term.name, name)


def test_every_example_parses_as_a_part_of_a_campaign():
    for topic in topics():
        if topic.example is None:
            assert topic.kind == "term" or topic.name.endswith((".kind", "campaign")), topic.name
            continue
        data = {**tiny.campaign_data(), **topic.example}
        for key in ("models", "fitness", "space"):
            if key in topic.example:
                data[key] = {**tiny.campaign_data()[key], **topic.example[key]}
        if "stages" in data:
            del data["space"]
        parse_campaign(data, topic.name)


def test_examples_of_options_have_values_that_the_plug_in_takes():
    for kind, key in KEYS.items():
        if kind == "methods":
            continue
        for topic in topics():
            if topic.kind == "option" and topic.see[0] in REGISTRIES[kind].all():
                given = topic.example
                for part in key.split("."):
                    given = given[part]
                given = given[0] if kind == "trackers" else given
                given = {} if isinstance(given, str) else {**given}
                given.pop("kind", None)
                plug = REGISTRIES[kind].all()[topic.see[0]]
                check_options(getattr(plug, "function", plug), given, topic.name, of=topic.name)


def test_examples_of_methods_search_within_the_parameters_ranges():
    for name, method in REGISTRIES["methods"].all().items():
        genes = named(name, "merge method").example["space"]["weights"].get("genes", {})
        for parameter, (low, high) in genes.items():
            assert low < high
            method.parameters[parameter].check(low, name)
            method.parameters[parameter].check(high, name)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("Baseline", "baseline"),
        ("objective", "fitness.objective"),
        ("fitness.tasks[].metric", "fitness.tasks.metric"),
        ("fitness.audit.tasks.metric", "fitness.tasks.metric"),
        ("stages.space.weights.method", "space.weights.method"),
        ("merge method", "space.weights.method"),
        ("kind of path", "space.path"),
        ("attraction", "m2n2.attraction"),
    ],
)
def test_topics_are_found_by_what_people_type(asked, name):
    assert find_topics(asked)[0].name == name


def test_a_misspelt_topic_names_the_nearest():
    with pytest.raises(InputError, match=r"explain basline: .*did you mean baseline"):
        find_topics("basline")


def test_a_topic_is_written_with_its_options_example_and_source():
    text = named("ties", "merge method").markdown()
    for part in ("# ties", "| `density` |", "method: ties", "2306.01708"):
        assert part in text


@pytest.mark.parametrize("kind", REGISTRIES)
def test_summaries_are_those_of_the_topics(kind):
    found = {n: t.summary for n, t in plugin_topics(kind).items() if t.kind != "option"}
    assert summaries(kind) == found
