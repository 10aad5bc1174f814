from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.common.errors import InputError
from evomerge.recipe import Merge, Recipe, Slot, load_recipe

SOURCES = {"base": "00", "math": "11", "lang": "22"}
PATH = (Slot(source="base", layer=0), Slot(source="lang", layer=1, scale=0.9))


def merge(**changes):
    fields = {
        "slot": 0,
        "group": "mlp",
        "method": "ties",
        "experts": {"math": {"weight": 0.5}, "lang": {"weight": 1.0}},
        "parameters": {"lambda": 1.0, "normalize": True},
    }
    return Merge(**{**fields, **changes})


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=2, max_size=2), finite, st.integers(), st.booleans())
def test_round_trip_through_json_keeps_every_bit_and_the_digest(weights, scale, seed, flag):
    experts = {"math": {"weight": weights[0]}, "lang": {"weight": weights[1]}}
    recipe = Recipe(
        sources=SOURCES,
        path=(Slot(source="base", layer=0, scale=scale),),
        merges=(merge(experts=experts, parameters={"normalize": flag}),),
        seed=seed,
    )
    back = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert back == recipe
    assert back.digest == recipe.digest


def test_digest_does_not_depend_on_the_order_of_merges_or_keys():
    a, b = merge(), merge(slot=None, group="embeddings")
    one = Recipe(sources=SOURCES, path=PATH, merges=(a, b))
    data = Recipe(sources=SOURCES, path=PATH, merges=(b, a)).to_json()
    data = {key: data[key] for key in reversed(data)}
    other = Recipe.from_json(json.loads(json.dumps(data)))
    assert one.digest == other.digest


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"sources": {**SOURCES, "math": "12"}},
        {"sources": {"base": "00", "lang": "22", "math": "11"}},
        {"path": PATH[:1]},
        {"merges": (merge(method="linear"),)},
        {"merges": (merge(parameters={"lambda": 0.999999999}),)},
    ],
)
def test_digest_depends_on_everything_the_recipe_says(change):
    fields = {"sources": SOURCES, "path": PATH, "merges": (merge(),)}
    assert Recipe(**fields).digest != Recipe(**{**fields, **change}).digest


def test_pieces_are_part_of_the_digest_and_a_merge_without_them_is_as_it_was():
    plain = Recipe(sources=SOURCES, path=PATH, merges=(merge(),))
    assert "pieces" not in plain.to_json()["merges"][0]
    pieces = [{"experts": {"math": {"weight": 0.1}}}, {"parameters": {"lambda": 0.5}}]
    cut = Recipe(sources=SOURCES, path=PATH, merges=(merge(pieces=pieces),))
    assert cut.digest != plain.digest
    assert Recipe.from_json(json.loads(json.dumps(cut.to_json()))) == cut
    first, second = cut.merges[0].of_pieces()
    assert (first.experts["math"], first.experts["lang"]) == ({"weight": 0.1}, {"weight": 1.0})
    assert (second.experts["math"], second.parameters["lambda"]) == ({"weight": 0.5}, 0.5)
    assert plain.merges[0].of_pieces() == [plain.merges[0]]


def test_integers_and_floats_of_equal_value_are_one_recipe():
    one = Recipe(sources=SOURCES, path=PATH, merges=(merge(parameters={"lambda": 1}),))
    other = Recipe(sources=SOURCES, path=PATH, merges=(merge(parameters={"lambda": 1.0}),))
    assert one.digest == other.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": [{"source": "art", "layer": 0}]}, "names source 'art'; its sources are base"),
        ({"merges": [{**merge().model_dump(), "experts": {"art": {}}}]}, "names expert 'art'"),
        (
            {"merges": [{**merge().model_dump(), "pieces": [{"experts": {"art": {}}}]}]},
            "names expert 'art'",
        ),
        (
            {
                "merges": [
                    {
                        **merge(experts={"math": {}}).model_dump(),
                        "pieces": [{"experts": {"lang": {}}}],
                    }
                ]
            },
            "piece 0 names expert 'lang', which the merge has not",
        ),
        ({"merges": [{**merge().model_dump(), "slot": 7}]}, "the path has only 2 slots"),
        ({"merges": [merge().model_dump()] * 2}, "slot 0, mlp stands twice"),
        ({"sources": {"math": "11"}}, "no source is called 'base'"),
        ({"colour": 1}, "colour"),
        ({"path": []}, "path"),
    ],
)
def test_a_recipe_that_does_not_hold_together_is_refused_with_the_name(change, message):
    data = Recipe(sources=SOURCES, path=PATH, merges=(merge(),)).to_json()
    with pytest.raises(InputError, match=message):
        Recipe.from_json({**data, **change}, "recipe.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    data = merge(experts={"math": {"weight": value}}).model_dump()
    with pytest.raises(InputError, match="not finite"):
        Recipe.from_json(
            {"sources": SOURCES, "path": [p.model_dump() for p in PATH], "merges": [data]}
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_and_parameters_that_are_not_finite_are_refused(value):
    recipe = {"sources": SOURCES, "path": [p.model_dump() for p in PATH], "merges": []}
    merges = [merge(parameters={"lambda": value}).model_dump()]
    with pytest.raises(InputError, match=r"lambda is .*give a finite number"):
        Recipe.from_json({**recipe, "merges": merges})
    recipe["path"][0]["scale"] = value
    with pytest.raises(InputError, match=r"path\[0\] has scale .*give a finite number"):
        Recipe.from_json(recipe)


def test_a_file_that_is_no_recipe_is_refused_with_its_name(tmp_path):
    path = tmp_path / "recipe.json"
    with pytest.raises(InputError, match=r"recipe\.json: cannot be read"):
        load_recipe(path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"recipe\.json: not valid JSON"):
        load_recipe(path)
    path.write_text("[1]")
    with pytest.raises(InputError, match=r"recipe\.json"):
        load_recipe(path)
    path.write_text('{"models": [], "path": [], "seed": "x"}')
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert str(caught.value).replace(f"{path}: ", "").splitlines() == [
        "sources: required, but not given; is it a recipe.json that evomerge wrote?",
        "path: expected at least 1 entry (found [])",
        "seed: expected a whole number (found 'x')",
        "models: a key that recipes do not have",
    ]


def test_a_changed_copy_of_a_recipe_has_a_digest_of_its_own():
    recipe = Recipe(sources={"base": "b"}, path=(Slot(source="base", layer=0),))
    digests = [recipe.digest, recipe.model_copy(update={"seed": 1}).digest]
    assert len(set(digests)) == 2
