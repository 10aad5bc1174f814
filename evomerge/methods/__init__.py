"""How tensors merge: one file per method's name in campaign files, pure functions.

The signature is the schema: `core/registry.py` says what a method may ask for. What methods share
lies in `core/`.
"""

from evomerge.methods.core.masks import At
from evomerge.methods.core.parameters import Density, Lambda, Parameter, PerExpert, Range, Weight
from evomerge.methods.core.registry import Method, find_method, merge_method, methods
from evomerge.methods.core.slices import Entries
from evomerge.methods.core.view import Tensor, View

__all__ = [
    "At",
    "Density",
    "Entries",
    "Lambda",
    "Method",
    "Parameter",
    "PerExpert",
    "Range",
    "Tensor",
    "View",
    "Weight",
    "find_method",
    "merge_method",
    "methods",
]
