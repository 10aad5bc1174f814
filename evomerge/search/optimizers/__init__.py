"""Optimizers: ask and tell, one file each."""

from evomerge.search.optimizers.base import Known, Optimizer, Proposal, optimizer, optimizers
from evomerge.search.optimizers.build import build_optimizer

__all__ = ["Known", "Optimizer", "Proposal", "build_optimizer", "optimizer", "optimizers"]
