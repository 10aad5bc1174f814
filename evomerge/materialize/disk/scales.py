"""Input scales in a checkpoint, as far as its tensors can express them exactly.

A scale s on the input of slot t multiplies the whole residual stream there, not only what the layer
reads: h' = s·h + attention(norm(s·h)) + … . A standard decoder has no place for such a factor
between layers. The stream could be stored in another unit (c_t·h, with every earlier output
projection scaled by c), but then the norms read c·h instead of h, and norm(c·h) = norm(h) only
without their epsilon: that is not exact, so it is not done. Two cases are: all scales are 1, and a
scale on slot 0 alone, where h is a sum of embeddings, which can be multiplied themselves (unless a
tied head would be multiplied with them).
"""

from __future__ import annotations

import re

from evomerge.common.errors import InputError
from evomerge.models.layout import Layout
from evomerge.recipe import Recipe

_TABLE = re.compile(r"emb|wte|wpe")


def embedding_factor(recipe: Recipe, layout: Layout) -> float:
    """Return the factor of the embeddings with which a checkpoint computes the recipe's path.

    Exact in the arithmetic; the products are rounded to the checkpoint's dtype.

    Raises:
        InputError: the path's scales cannot be said exactly; names the slot and the reason.
    """
    scaled = [index for index, slot in enumerate(recipe.path) if slot.scale != 1]
    if not scaled:
        return 1.0
    if scaled != [0]:
        index = next(index for index in scaled if index > 0)
        raise InputError(
            f"recipe: path[{index}] scales its input by {recipe.path[index].scale:g}, which a "
            "standard checkpoint cannot say: the scale multiplies all that earlier layers gave, "
            "and moving it into their weights changes what the norms' epsilon does. Only a scale "
            "on path[0] can be folded, into the embeddings; search without scales to export"
        )
    embeddings = [spec for spec in layout.tensors if spec.group == "embeddings"]
    tied = set(layout.tied.values()) & {spec.name for spec in embeddings}
    if tied:
        raise InputError(
            f"recipe: path[0] scales its input by {recipe.path[0].scale:g}, which cannot be folded "
            f"into {min(tied)}: the head is tied to it and would be scaled too"
        )
    for spec in embeddings:
        if len(spec.shape) != 2 or not _TABLE.search(spec.name.lower()):
            raise InputError(
                f"recipe: path[0] scales its input by {recipe.path[0].scale:g}, which cannot be "
                f"folded into the embeddings: {spec.name} stands between them and the first layer"
            )
    return recipe.path[0].scale
