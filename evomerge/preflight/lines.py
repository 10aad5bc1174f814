"""Quantities that grow with a model's depth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """`outside` of the layers, and what each `layer` adds."""

    outside: float
    layer: float

    def at(self, layers: float) -> float:
        """For so many layers."""
        return self.outside + layers * self.layer
