"""Random recipes written for mergekit and read again are the same recipes, digest for digest."""

from __future__ import annotations

from functools import cache
from itertools import chain

import tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evomerge.mergekit import from_mergekit, to_mergekit
from evomerge.mergekit.methods import BASE_WEIGHT, TASK_VECTORS, pairings
from evomerge.models.layout import derive_layout
from evomerge.recipe import BASE, Merge, Recipe, Slot

LAYERS = 4
LAYOUT = derive_layout(tiny.llama_config(num_hidden_layers=LAYERS))
EXPERTS = ("math", "lang", "code")
SPECS = {name: f"org/{name}" for name in (BASE, *EXPERTS)}
DIGESTS = {name: f"digest of {name}" for name in SPECS}


@cache
def methods():
    """Those that can take the recipe's base for the file's, and whose parameters say all."""
    return {
        name: pairing
        for name, pairing in pairings().items()
        if pairing.form.base == "needed" or pairing.weighs_base or pairing.form.base == "optional"
    }


def sources(*names):
    return {name: DIGESTS[name] for name in (BASE, *names)}


def read_again(recipe):
    file = to_mergekit(recipe, LAYOUT, SPECS, "bfloat16")
    merge = from_mergekit(file.text)
    digests = {name: DIGESTS[spec.removeprefix("org/")] for name, spec in merge.models.items()}
    again = merge.recipe(LAYOUT, digests)
    # a file of copies names its models in the path's order, a recipe in its own
    return again.model_copy(
        update={"sources": {n: d for n, d in recipe.sources.items() if n in again.sources}}
    )


spans = st.tuples(
    st.sampled_from(tuple(SPECS)), st.integers(0, LAYERS - 1), st.integers(1, LAYERS)
).map(lambda s: [Slot(source=s[0], layer=i) for i in range(s[1], min(s[1] + s[2], LAYERS))])
paths = st.lists(spans, min_size=1, max_size=4).map(lambda found: tuple(chain(*found)))


def copies(group):
    """A group outside the layers: the base's without a merge, an expert's, or a multiple."""
    made = st.builds(
        lambda source, scale: Merge(
            slot=None,
            group=group,
            method="passthrough",
            experts={} if source == BASE else {source: {}},
            parameters={"scale": scale},
        ),
        st.sampled_from(tuple(SPECS)),
        st.sampled_from([1.0, 0.5, 1.3]),
    )
    return made.map(lambda m: () if not m.experts and m.parameters["scale"] == 1 else (m,))


@given(path=paths, outside=st.tuples(*map(copies, LAYOUT.outside_groups)))
@settings(deadline=None, max_examples=100)
def test_any_path_of_copied_layers_comes_back(path, outside):
    merges = tuple(chain(*outside))
    used = {slot.source for slot in path} | {name for m in merges for name in m.experts}
    assume(BASE in used or len(used) > 1)  # the only model of a file is the reader's base
    named = sources(*(name for name in EXPERTS if name in used))
    recipe = Recipe(sources=named, path=path, merges=merges)
    assert read_again(recipe).digest == recipe.digest


def number(parameter):
    """Any in the range; adding 0 leaves no −0, which equals 0 and has another digest."""
    return st.floats(parameter.low, parameter.high, allow_subnormal=False).map(lambda x: x + 0.0)


def parameters(pairing):
    """A recipe's parameters of a method, all of those that mergekit has too."""
    chosen = {}
    for name, parameter in pairing.method.parameters.items():
        if parameter.per_expert or name not in {*pairing.theirs, *pairing.choices, BASE_WEIGHT}:
            continue
        if name in pairing.choices:
            switches = pairing.choices[name]
            first = {str(s): value for value, s in reversed(switches.items())}
            chosen[name] = st.sampled_from(sorted(first.values()))
        else:
            chosen[name] = st.booleans() if parameter.type is bool else number(parameter)
    if TASK_VECTORS in pairing.method.parameters:
        chosen[TASK_VECTORS] = st.just(True)
    return st.fixed_dictionaries(chosen)


def values(pairing):
    known = pairing.method.parameters
    own = {n: number(p) for n, p in known.items() if p.per_expert and n in pairing.theirs}
    return st.fixed_dictionaries(own)


@st.composite
def merged(draw):
    """Every tensor merged by one method; each slot as a whole, or module by module."""
    pairing = methods()[draw(st.sampled_from(sorted(methods())))]
    low, high = pairing.method.experts
    if pairing.form.inputs == (2, 2):
        high = 1
    experts = EXPERTS[: draw(st.integers(max(low, 1), min(high or 3, 3)))]
    layers = draw(st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=6))
    if draw(st.booleans()):
        layers = list(range(LAYERS))
    groups = [(None, group) for group in LAYOUT.outside_groups]
    for slot in range(len(layers)):
        whole = draw(st.booleans())
        groups += [(slot, name) for name in (("layer",) if whole else LAYOUT.modules)]
    merges = [
        Merge(
            slot=slot,
            group=group,
            method=pairing.method.name,
            experts={name: draw(values(pairing)) for name in experts},
            parameters=draw(parameters(pairing)),
        )
        for slot, group in groups
    ]
    path = tuple(Slot(source=BASE, layer=layer) for layer in layers)
    return Recipe(sources=sources(*experts), path=path, merges=tuple(merges))


def is_as_read(recipe):
    """Modules that agree are a layer to the reader, and a sum of one model is a copy of it."""
    told = {}
    for merge in recipe.merges:
        told.setdefault(merge.slot, []).append((merge.experts, merge.parameters))
    apart = all(
        slot is None or len(found) == 1 or any(one != found[0] for one in found[1:])
        for slot, found in told.items()
    )
    weights = [
        [m.parameters.get(BASE_WEIGHT, 1.0), *(v.get("weight", 1.0) for v in m.experts.values())]
        for m in recipe.merges
    ]
    return apart and any(sum(w != 0 for w in found) != 1 for found in weights)


@given(recipe=merged())
@settings(deadline=None, max_examples=60)
def test_any_merge_by_one_method_comes_back(recipe):
    assume(is_as_read(recipe))
    assert read_again(recipe).digest == recipe.digest
