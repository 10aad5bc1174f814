"""mergekit 0.1.5 itself, run in this process on the CPU, and both tools compared on one recipe."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
import yaml
from click.testing import CliRunner
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from mergekit.scripts.multimerge import main as mergekit_multi
from safetensors.torch import load_file

from evomerge.config import DtypeConfig, ModelsConfig
from evomerge.materialize.disk.checkpoint import write_checkpoint
from evomerge.mergekit import from_mergekit, to_mergekit
from evomerge.models.checks.checked_models import check_models


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {
        k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }


def merged_by_mergekit(text: str, out: Path) -> dict[str, torch.Tensor]:
    """The tensors that mergekit makes of a file's text, of one merge or of several."""
    if len(list(yaml.safe_load_all(text))) > 1:
        return _merged_in_stages(text, out)
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    run_merge(config, str(out), MergeOptions(quiet=True, write_model_card=False))
    return tensors_in(out)


def _merged_in_stages(text: str, out: Path) -> dict[str, torch.Tensor]:
    file = out.with_name(f"{out.name}.yaml")
    file.write_text(text)
    stages = str(out.with_name(f"{out.name}-stages"))
    arguments = [str(file), "--out-path", str(out), "-I", stages, "--no-write-model-card"]
    result = CliRunner().invoke(mergekit_multi, arguments)
    if result.exception is not None:
        raise result.exception
    return tensors_in(out)


def open_family(folder, dtype=torch.float32, **changes):
    """Five-layer Llamas, base, math and lang, opened."""
    paths = tiny.save_family(folder, dtype=dtype, **{"num_hidden_layers": 5, **changes})
    experts = {name: str(path) for name, path in paths.items() if name != "base"}
    return check_models(ModelsConfig(base=str(paths["base"]), experts=experts))


def specs(models):
    return {name: source.spec for name, source in models.sources.items()}


def digests(models):
    return {name: source.digest for name, source in models.sources.items()}


def assert_mergekit_agrees(models, recipe, folder, dtype="float32", **tolerance):
    """Merge by both tools and compare every tensor; returns mergekit's file."""
    file = to_mergekit(recipe, models.layout, specs(models), dtype)
    ours = tensors_in(write_checkpoint(recipe, models, DtypeConfig(weights=dtype), folder / "ours"))
    theirs = merged_by_mergekit(file.text, folder / "theirs")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        torch.testing.assert_close(
            ours[name], theirs[name], **{"rtol": 0, "atol": 1e-6, **tolerance}, msg=name
        )
    return file


def assert_round_trip(models, recipe, folder, text):
    """Our reading of the file merges to the same bytes as the recipe it was written from."""
    merge = from_mergekit(text)
    names = {spec: name for name, spec in specs(models).items()}
    known = {name: digests(models)[names[spec]] for name, spec in merge.models.items()}
    again = merge.recipe(models.layout, known)
    base, *experts = merge.models.items()
    make = ModelsConfig if experts else ModelsConfig.model_construct
    opened = check_models(make(base=base[1], experts=dict(experts)))
    one = tensors_in(write_checkpoint(recipe, models, DtypeConfig(), folder / "one"))
    two = tensors_in(
        write_checkpoint(again, opened, DtypeConfig(weights=merge.weights), folder / "two")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
