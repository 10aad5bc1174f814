"""Optimizers: ask and tell, one file each."""

from evomerge.search.optimizers.base import (
    Optimizer,
    Proposal,
    build_optimizer,
    optimizer,
    optimizers,
)

__all__ = ["Optimizer", "Proposal", "build_optimizer", "optimizer", "optimizers"]
