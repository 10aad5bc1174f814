"""Optimizers: ask and tell, one file each."""

from evomerge.search.optimizers.base import Optimizer, Proposal, optimizer, optimizers
from evomerge.search.optimizers.build import build_optimizer

__all__ = ["Optimizer", "Proposal", "build_optimizer", "optimizer", "optimizers"]
