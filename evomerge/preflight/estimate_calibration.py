"""Estimate what `evomerge calibrate` will take for a campaign: time, and bytes of disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.campaign.calibrate import Planned, plan_calibration
from evomerge.campaign.calibration_needs import needed_kinds
from evomerge.config import CampaignConfig
from evomerge.fitness.calibration.calibrate import BACKWARD, FORWARD, sizes_of, states_bytes
from evomerge.models.tokens.tokenizer import load_tokenizer
from evomerge.preflight.machine import Rates
from evomerge.preflight.problems import size_of

PASSES = {FORWARD: 3, BACKWARD: 6}
"""Kinds of statistics → forward passes of the texts that they take, at most."""
_ROWS = 512


@dataclass(frozen=True)
class CalibrationEstimate:
    """What a model's calibration takes, at most.

    Attributes:
        name: the model's.
        kinds: of statistics.
        target: the file.
        texts: how many are read.
        seconds: of all passes.
        size: bytes of the file.
        states: bytes of hidden states on disk while it is made.
    """

    name: str
    kinds: Sequence[str]
    target: Path
    texts: int
    seconds: float
    size: int
    states: int

    def __str__(self) -> str:
        minutes = self.seconds / 60
        time = f"{minutes:.0f} min" if minutes >= 1 else f"{max(1, round(self.seconds))} s"
        return (
            f"{', '.join(self.kinds)} of {self.texts} texts: at most {time} and "
            f"{size_of(self.size)}, beside {size_of(self.states)} while it is made; made by "
            f"evomerge calibrate, in {self.target}"
        )


def calibration_estimates(config: CampaignConfig) -> Iterator[CalibrationEstimate]:
    """Yield what is still to be made for a campaign's methods.

    Raises:
        InputError: models or texts cannot be used.
    """
    if config.calibration is None or not needed_kinds(config):
        return
    for one in plan_calibration(config):
        if not one.target.exists():
            yield _estimate(one)


def _estimate(one: Planned) -> CalibrationEstimate:
    layout, asked = one.source.layout, one.asked
    # 1. tokens, as the model will read them
    reader = load_tokenizer(one.tokenizer)
    lengths = [
        min(asked.tokens, len(reader(text.text)["input_ids"]) if reader else asked.tokens)
        for text in asked.texts
    ]
    # 2. a forward pass multiplies each weight with each token, at this machine's measured rate
    hidden = int(getattr(one.source.config.get_text_config(decoder=True), "hidden_size", 1024))
    forward = sum(lengths) * layout.parameters / _rate(asked.device, hidden)
    passes = sum(most for kinds, most in PASSES.items() if {*kinds} & {*asked.kinds})
    models = max(1, len(asked.together))
    passes += PASSES[FORWARD] * (models - 1)  # they are run side by side
    return CalibrationEstimate(
        name=one.name,
        kinds=asked.kinds,
        target=one.target,
        texts=len(asked.texts),
        seconds=passes * forward,
        size=sum(sizes_of(layout, asked.kinds, len(lengths)).values()),
        states=states_bytes(layout.layers, hidden, asked.kinds, lengths, models),
    )


def _rate(device: str, hidden: int) -> float:
    import torch

    return Rates(device, torch.float32, (hidden, 4 * hidden)).multiplications(_ROWS)
