"""Say in plain words what pydantic expected of a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.common.data_files import quoted

_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list [...]",
    "tuple_type": "a list [...]",
    "dict_type": "a section with keys of its own",
    "model_type": "a section with keys of its own",
}
_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
_PATTERNS = {
    r"^[\w.-]+$": "a name of letters, digits, '.', '_' and '-'",
    r"^[A-Za-z0-9_-]+$": "a name of letters, digits, '_' and '-'",
}


def what_was_expected(problems: Sequence[Mapping[str, Any]]) -> str:
    """Say what was expected of one value, of which any of the problems' forms would do.

    Args:
        problems: pydantic's error entries about that value, one for each form it might have had.

    Returns:
        `expected a number or a list [...] (found 'x')`, or the message of one of our own checks.
    """
    own = [p["msg"].removeprefix("Value error, ") for p in problems if p["type"] == "value_error"]
    given = problems[0].get("input")
    if own:
        shown = f" (found {quoted(given)})" if isinstance(given, str | float | int) else ""
        return f"{own[0][:1].lower()}{own[0][1:]}{shown}"
    forms = list(dict.fromkeys(map(_form, problems)))
    if "a number" in forms and "a whole number" in forms:
        forms.remove("a whole number")
    wanted = " or ".join([", ".join(forms[:-1]), forms[-1]] if len(forms) > 1 else forms)
    return f"expected {wanted} (found {quoted(given)}){_way_out(forms, given)}"


def _form(problem: Mapping[str, Any]) -> str:
    kind, facts = problem["type"], problem.get("ctx", {})
    if kind in _KINDS:
        return _KINDS[kind]
    if kind in _LIMITS:
        words, key = _LIMITS[kind]
        return f"{words} {facts[key]:g}"
    if kind == "literal_error":
        return str(facts["expected"])
    if kind in ("too_short", "too_long"):
        few = kind == "too_short"
        count = facts["min_length" if few else "max_length"]
        thing = "a list of " if facts["field_type"] == "List" and count > 1 else ""
        entries = "entry" if count == 1 else "entries"
        return f"{thing}{'at least' if few else 'at most'} {count} {entries}"
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(facts["pattern"], f"text of the form {facts['pattern']}")
    return str(problem["msg"]).removeprefix("Input should be ")


def _way_out(forms: Sequence[str], given: Any) -> str:
    """Say how to write what was probably meant."""
    listed = any("list" in form for form in forms)
    if listed and looks_like_tuple(given):
        return "; write a range with square brackets: [low, high]"
    if "text" in forms and isinstance(given, bool | int | float):
        return "; put it in quotes"
    if listed and isinstance(given, str):
        return f"; write [{given}]"
    return ""


def looks_like_tuple(given: Any) -> bool:
    """Tell whether a value is text such as `(0, 1)`, which is a tuple in Python and none in YAML.

    Within braces YAML cuts it in two at its comma: `(0` is such text too.
    """
    return isinstance(given, str) and given.lstrip()[:1] == "("
