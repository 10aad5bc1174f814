"""Recipe × sources → weights: in place on a resident model, or streamed to disk."""

from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import MergeRule, TensorStep

__all__ = ["Kernel", "MergeRule", "TensorStep"]
