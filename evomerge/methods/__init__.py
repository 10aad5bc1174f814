"""How tensors merge: one file per family, pure functions whose signature is the schema."""

from evomerge.methods.registry import Method, Parameter, methods

__all__ = ["Method", "Parameter", "methods"]
