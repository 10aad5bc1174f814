"""Files of several merges, as mergekit-multi takes them, and methods known by their names alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pytest
import yaml

from evomerge.common.errors import InputError
from evomerge.mergekit import from_mergekit, stages_from, to_mergekit
from evomerge.methods import PerExpert, Range, Tensor, merge_method, methods
from evomerge.methods.core import registry
from evomerge.models.layout import derive_layout


def stage(*models, **keys):
    return {"merge_method": "linear", "models": [{"model": model} for model in models], **keys}


def stages(*documents):
    return stages_from(yaml.safe_dump_all(documents), "file.yaml")


def test_stages_come_in_an_order_in_which_they_can_be_made():
    found = stages(stage("two", "one"), stage("org/a", name="one"), stage("one", name="two"))
    assert [merge.name for merge in found] == ["one", "two", None]


def test_a_stage_that_the_result_does_not_need_is_not_made():
    found = stages(stage("org/a", name="idle"), stage("org/a", "org/b"))
    assert [merge.name for merge in found] == [None]


def test_without_an_unnamed_document_the_last_is_the_files_result():
    found = stages(stage("org/a", name="one"), stage("./models/x", "one", out_path="./models/y"))
    assert [merge.name for merge in found] == ["one", "./models/y"]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([stage("one"), stage("a")], "2 documents have no name; only the last may"),
        ([stage("a", name="x"), stage("b", name="x"), stage("x")], "several documents have one"),
        ([stage("x"), stage("y", name="x"), stage("x", name="y")], "x is made of itself"),
        ([stage("x"), stage("a", name="x", colour=1)], "document 2: colour: evomerge does not"),
        ([stage("x"), stage("a", name="x") | {"merge_method": "no"}], "document 2: merge_method"),
    ],
)
def test_stages_that_cannot_be_made_are_refused_before_any_is(documents, message):
    with pytest.raises(InputError, match=f"^file.yaml: {message}"):
        stages(*documents)


@pytest.fixture
def another_method(monkeypatch):
    """A method of mergekit's name and parameters, as if it had just been added to a file."""
    known = {name: method for name, method in methods().items() if name != "breadcrumbs"}
    monkeypatch.setattr(registry.REGISTRY, "known", known)

    @merge_method(reference="a test")
    def breadcrumbs(
        base: Tensor,
        experts: Sequence[Tensor],
        *,
        weight: Annotated[Sequence[float], PerExpert(1.0, low=0.0, high=2.0)],
        gamma: Annotated[Sequence[float], PerExpert(0.5, low=0.0, high=1.0)],
        lambda_: Annotated[float, Range(0.0, 2.0)] = 0.3,
        ours: Annotated[float, Range(0.0, 2.0)] = 0.7,
    ) -> Tensor:
        return base


TEXT = """
merge_method: breadcrumbs
base_model: org/base
models:
- {model: org/a, parameters: {weight: 0.5}}
"""


@pytest.fixture(scope="module")
def layout():
    import tiny

    return derive_layout(tiny.llama_config())


@pytest.mark.usefixtures("another_method")
def test_a_registered_method_is_read_and_written_by_its_signature_alone(layout):
    recipe = from_mergekit(TEXT).recipe(layout, {"base": "b", "a": "a"})
    merge = recipe.merges[0]
    assert merge.experts == {"a": {"weight": 0.5, "gamma": 0.01}}, "mergekit's default, not ours"
    assert merge.parameters == {"lambda": 1.0}
    specs = {"base": "org/base", "a": "org/a"}
    text = to_mergekit(recipe, layout, specs, "float32").text
    assert from_mergekit(text).recipe(layout, {"base": "b", "a": "a"}).digest == recipe.digest
    told = [m.model_copy(update={"parameters": {"ours": 0.6}}) for m in recipe.merges]
    other = recipe.model_copy(update={"merges": tuple(told)})
    with pytest.raises(InputError, match="has no parameter 'ours' like evomerge's and does what 0"):
        to_mergekit(other, layout, specs, "float32")


@pytest.mark.usefixtures("another_method")
def test_a_parameter_that_our_method_lacks_is_read_only_as_mergekits_default():
    from_mergekit(TEXT + "parameters: {density: 1, normalize: false, int8_mask: true}")
    with pytest.raises(InputError, match=r"parameters\.density: evomerge's .* has no such"):
        from_mergekit(TEXT + "parameters: {density: [1, 0.5]}")
