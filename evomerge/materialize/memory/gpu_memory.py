"""A model that is larger than one GPU: whole layers on one after another, by accelerate.

Its hooks move what a layer is given to where the layer is, so that a layer stays there wherever a
path puts it.
"""

from __future__ import annotations

from collections.abc import Mapping

from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from transformers import PreTrainedModel

from evomerge.common.errors import InputError

Device = int | str


def placement(
    model: PreTrainedModel, memory: Mapping[Device, int] | None = None
) -> dict[str, Device]:
    """Where each module is to be: about as much on each GPU, no layer on two.

    Args:
        model: with its weights tied; these may be on any device.
        memory: bytes by device; None: what is free on all GPUs that the process sees.

    Raises:
        InputError: they have not enough.
    """
    whole = sorted(model._no_split_modules or [])
    given = None if memory is None else dict(memory)
    room = get_balanced_memory(model, max_memory=given, no_split_module_classes=whole)
    found = infer_auto_device_map(model, max_memory=room, no_split_module_classes=whole)
    if {"cpu", "disk"} & set(map(str, found.values())):
        gpus = sum(isinstance(device, int) for device in room)
        raise InputError(
            f"workers.gpus_per_worker: the model does not fit on the {gpus} GPUs of a worker "
            "beside what a merge needs; give it more"
        )
    return found


def spread(model: PreTrainedModel, devices: Mapping[str, Device]) -> PreTrainedModel:
    """Move a model's modules to their devices, and let activations follow."""
    return dispatch_model(
        model,
        dict(devices),
        skip_keys=model._skip_keys_device_placement,
        force_hooks=True,
    )
