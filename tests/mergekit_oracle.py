"""mergekit 0.1.5 itself, run in this process on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import load_file


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {
        k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }


def merged_by_mergekit(text: str, out: Path) -> dict[str, torch.Tensor]:
    """The tensors that mergekit makes of a file's text."""
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    run_merge(config, str(out), MergeOptions(quiet=True, write_model_card=False))
    return tensors_in(out)
