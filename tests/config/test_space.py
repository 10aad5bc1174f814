import pytest
from campaign_data import parsed, refusal


def weights(**changes):
    return {"weights": {"method": "ties", "genes": {"weight": [0, 1]}} | changes}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (weights(genes={"weight": [1.5, 0]}), "genes: weight: bounds [1.5, 0.0] cross"),
        (weights(genes={"weight": [0, 1, 2]}), "weight: write [low, high] to search it"),
        (weights(genes={"weight": {"low": 2, "high": 1}}), "bounds [2, 1] cross"),
        (weights(genes={"weight": {"low": 0, "high": 1, "log": True}}), "needs low > 0"),
        (weights(method=["ties", "ties"]), "ties is listed twice"),
        (weights(methods_per="group"), "methods_per: group needs a list of methods"),
        (weights(chunks={}), "chunks: cuts single tensors, and granularity is layer; write"),
        (
            weights(chunks={}, granularity="tensor", method=["a", "b"], methods_per="group"),
            "chunks: leaves some tensors without genes, and methods_per: group",
        ),
        (
            weights(chunks={"budget": 0}, granularity="tensor"),
            "chunks.budget: expected more than 0",
        ),
        (weights(chunks={"power": -1}, granularity="tensor"), "chunks.power: expected at least 0"),
        (weights(chunks={"kappa": 1}, granularity="tensor"), "chunks.kappa: unknown key"),
        (weights(lines={"alpha": [1, 0]}), "cross; write [low, high] with low < high"),
        (weights(dare={"density": 0}), "density is 0.0; write numbers above 0, up to 1"),
        (weights(dare={"density": [0.5, 0.5]}), "cross; write low < high"),
        (weights(sparsify={"kind": "della", "gamma": 0.1}), "della has no gamma; it has density"),
        (weights(sparsify={"kind": "magnitude", "rescale": "l1"}), "magnitude has no rescale"),
        (weights(sparsify={"kind": "dare", "rescale": "probability"}), "dare has no rescale: prob"),
        (weights(sparsify={"kind": "trim"}), "kind"),
        (weights(dare={}, sparsify={"kind": "dare"}), "dare and sparsify are one thing; give one"),
        ({"path": "none"}, "nothing to search; give weights, path, or both"),
        ({"path": {"kind": "slices"}, "grid": 3}, "grid: is of coefficients"),
        (weights() | {"path": {"kind": "none", "count": 2}}, "kind none has no options (count)"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_with_the_way_out(space, message):
    assert message in refusal(space=space)


def test_a_name_is_a_kind_of_path_and_one_method_is_a_list_of_one():
    space = parsed(space=weights() | {"path": "slices"}).space
    assert (space.path.kind, space.path.options) == ("slices", {})
    assert space.weights.methods == ["ties"]
