"""Every registered method is compared with another program's, or with its paper's formula."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.methods import methods

HERE = Path(__file__).parent
WITH_ORACLES = sorted(HERE.parent.joinpath("oracles").glob("test_*_against_*.py"))
WITH_FORMULAS = HERE / "test_against_formulas.py"


def compared(text: str, using: str | None = None) -> set[str]:
    """The methods that the tests of a module name, in their bodies or in what they are run over.

    Args:
        using: only tests that use a name, as that of the module of formulas.
    """
    module = ast.parse(text)
    named = {
        target.id: statement.value
        for statement in module.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    tests = [s for s in module.body if isinstance(s, ast.FunctionDef) and s.name[:5] == "test_"]
    found = [set(_words(test, named)) for test in tests]
    return {word for words in found if using is None or using in words for word in words} & set(
        methods()
    )


def _words(tree: ast.AST, named: dict[str, ast.expr]) -> Iterator[str]:
    """Names and strings in a piece of code, and in the module's constants that it uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
            if node.id in named:
                yield from _words(named[node.id], {})
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


COMPARED = set().union(
    *(compared(path.read_text()) for path in WITH_ORACLES),
    compared(WITH_FORMULAS.read_text(), using="reference"),
)


@pytest.mark.parametrize("name", methods())
def test_the_method_has_an_oracle_or_a_formula(name):
    assert name in COMPARED, (
        f"compare {name} with another program in tests/oracles, or with its formula: a function in "
        "tests/helpers/method_formulas.py and a case in test_against_formulas.py"
    )


def test_a_method_is_compared_only_where_a_test_with_a_formula_names_it():
    text = """
CASES = ["ties"]
OTHERS = ["slerp"]

@parametrize("name", CASES)
def test_formula(name):
    assert reference.formula(name) == merged("magmax")

@parametrize("name", OTHERS)
def test_property(name):
    assert linear(name)
"""
    assert compared(text, using="reference") == {"ties", "magmax"}
    assert compared(text) == {"ties", "magmax", "slerp", "linear"}
