"""Candidates in a worker's memory: the resident model, its layers, and the GPU's memory plan."""

from evomerge.materialize.memory.gpu_memory import GpuMemoryPlan
from evomerge.materialize.memory.resident import Resident

__all__ = ["GpuMemoryPlan", "Resident"]
