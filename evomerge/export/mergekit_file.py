"""mergekit's file of a recipe, where mergekit would make the same of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from evomerge.common.errors import InputError
from evomerge.materialize.disk.provenance import MergeInputs
from evomerge.materialize.disk.scales import embedding_factor
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import keeps_layers
from evomerge.mergekit import MergekitFile, ModelSpec, to_mergekit
from evomerge.methods import find_method
from evomerge.models.adapter import Adapter
from evomerge.models.alignment.git_rebasin import Aligned
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.checks.checked_models import CheckedModels
from evomerge.models.files.shards import read_stored
from evomerge.models.layout import Layout
from evomerge.models.open_models import as_stored
from evomerge.models.path_config import config_of_path
from evomerge.recipe import BASE, Merge, Recipe


def mergekit_file(recipe: Recipe, inputs: MergeInputs) -> MergekitFile:
    """Translate the recipe for mergekit.

    Raises:
        InputError: mergekit would not make the same of it; says why.
    """
    models = inputs.models
    kernel = Kernel(models.sources, inputs.dtype.weights)
    dtypes = {str(kernel.dtype(n)).removeprefix("torch.") for n in models.layout.names}
    if len(dtypes) > 1:
        raise InputError(
            "mergekit cannot express this recipe: the base's tensors have several dtypes "
            f"({', '.join(sorted(dtypes))}), and mergekit writes one"
        )
    for name, source in models.sources.items():
        if source.layout.vocab_size != models.layout.vocab_size:
            raise InputError(
                f"mergekit cannot express this recipe: {name} has another number of vocabulary "
                "rows than the base"
            )
    _check_aligned(recipe, models)
    _check_config(recipe, inputs)
    file = to_mergekit(
        _folded(recipe, models.layout),
        models.layout,
        {n: _model_spec(as_stored(s)) for n, s in models.sources.items()},
        dtypes.pop(),
    )
    if "filter:" in file.text:
        _check_names(inputs)
    used = [as_stored(models.sources[name]) for name in recipe.active_experts()]
    return replace(
        file,
        caveats=(*file.caveats, *_stack_caveat(recipe, models.layout)),
        adapters=any(isinstance(source, Adapter) for source in used),
    )


def _stack_caveat(recipe: Recipe, layout: Layout) -> Iterator[str]:
    whole = sorted({merge.method for merge in recipe.merges if not _entrywise(merge.method)})
    if whole and any(tensor.matrices > 1 for tensor in layout.tensors):
        yield (
            f"where the model stacks its experts, evomerge's {' and '.join(whole)} looks at each "
            "matrix by itself and mergekit's at the stack; these tensors will not be the same"
        )


def _entrywise(method: str) -> bool:
    found = find_method(method, "recipe")
    return found.elementwise and found.measure is None


def _check_aligned(recipe: Recipe, models: CheckedModels) -> None:
    """Refuse aligned experts: mergekit reads every model as it is stored.

    Raises:
        InputError: the recipe uses one whose units are permuted first.
    """
    for name in recipe.active_experts():
        source = models.sources[name]
        if isinstance(source, Aligned) and source.alignment.moves:
            raise InputError(
                f"mergekit cannot express this recipe: {name} is aligned to the base first "
                "(models.align), and mergekit has no step for it"
            )


def _check_config(recipe: Recipe, inputs: MergeInputs) -> None:
    """Refuse a recipe that needs more of the base's config changed than the number of layers.

    Raises:
        InputError: experts are merged, or the config has settings by layer; mergekit leaves them
            as they are.
    """
    if recipe.mixture is not None:
        raise InputError(
            "mergekit cannot express this recipe: it has no step that merges the experts within "
            "one mixture"
        )
    if keeps_layers(recipe, inputs.models.layout):
        return
    config = inputs.models.sources[BASE].config
    layers = [slot.layer for slot in recipe.path]
    trusted = inputs.config.trust_remote_code
    ours = config_of_path(config, layers, trust_remote_code=trusted).to_dict()
    theirs = config.to_dict()
    differing = [name for name in ours if ours[name] != theirs.get(name)]
    if set(differing) - {"num_hidden_layers", "n_layer", "n_layers", "num_layers"}:
        raise InputError(
            f"mergekit cannot express this recipe: it leaves {', '.join(differing)} of the base's "
            "config as they are for layers in another order or number; export a checkpoint, "
            "whose config evomerge writes"
        )


def _folded(recipe: Recipe, layout: Layout) -> Recipe:
    """Fold an input scale of the recipe's first slot into the embeddings, where that is the same.

    Raises:
        InputError: the path has other scales, or the embeddings are merged by a method.
    """
    factor = embedding_factor(recipe, layout)
    if factor == 1:
        return recipe
    outside = (None, "embeddings")
    found = [merge for merge in recipe.merges if (merge.slot, merge.group) == outside]
    if any(merge.method != "passthrough" for merge in found):
        raise InputError(
            f"mergekit cannot express this recipe: path[0] scales the embeddings by {factor:g}, "
            f"and they are merged by {found[0].method}, which has no word for it"
        )
    scale = factor * float(found[0].parameters.get("scale", 1.0)) if found else factor
    embeddings = Merge(
        slot=None,
        group="embeddings",
        method="passthrough",
        experts=found[0].experts if found else {},
        parameters={"scale": scale},
    )
    others = [merge for merge in recipe.merges if merge not in found]
    first = recipe.path[0].model_copy(update={"scale": 1.0})
    return recipe.model_copy(
        update={"path": (first, *recipe.path[1:]), "merges": (*others, embeddings)}
    )


def _model_spec(source: Checkpoint) -> ModelSpec:
    return (source.base.spec, source.spec) if isinstance(source, Adapter) else source.spec


def mergekit_text(file: MergekitFile) -> str:
    """Return the file with its caveats as comments above."""
    caveats = [f"# Note: {caveat}." for caveat in file.caveats]
    return "\n".join(["# For mergekit 0.1.5, written by evomerge.", *caveats, file.text])


def _check_names(inputs: MergeInputs) -> None:
    """Refuse stored names that mergekit's filters, which use transformers' names, may not match.

    Raises:
        InputError: the base stores tensors under other names than transformers has for them.
    """
    stored = read_stored(inputs.models.sources[BASE].folder, inputs.config.allow_pickle)
    for name in inputs.models.layout.names:
        if name not in stored:
            raise InputError(
                f"mergekit cannot express this recipe: the base stores {name} under another name, "
                "so that mergekit's filters may not meet it"
            )
