"""Small valid files, turned hostile: data of other types and sizes, and text no one meant."""

from __future__ import annotations

import copy
import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

from evomerge.common.errors import EvomergeError

SECONDS, GIB = 20, 2**30
"""What no refusal may take."""

TEXTS = (
    *("", " ", "..", "../..", "../../etc/passwd", "/etc/passwd", "/dev/zero", "~nobody-here/x"),
    *(
        "a\0b",
        "\ud800",
        "x" * 5000,
        "é" * 300,
        "org/model",
        "org/model@main",
        "\x1b[31m",
        "{{7*7}}",
    ),
    *("nan", "inf", "1e999", "0x10", "true", "None", "!!python/object/apply:os.system", "<script>"),
    *("C:\\x", "base", "math", "lang", "ties", "slerp", "linear", "layer", "all", "mean", "*", "("),
)
NUMBERS = (
    *(0, -1, 1, 2, 7, 10**6, 2**31, 2**63, 2**64, 10**30, -(10**30)),
    *(float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 5e-324, -0.0, 0.5),
)
scalars = st.sampled_from([None, True, False, *NUMBERS, *TEXTS])
values = st.recursive(
    scalars | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TEXTS), inner, max_size=3)
    ),
    max_leaves=6,
) | st.integers(2, 150).map(lambda depth: nested(depth))


def nested(depth: int) -> list[Any]:
    """A list within a list within a list …"""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _places(data: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    inner = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in inner:
        yield from _places(value, (*place, key))


@st.composite
def mutated(draw: st.DrawFn, data: Any, extra: tuple[Any, ...] = ()) -> Any:
    """The data with one to three things in it replaced, removed, added, renamed or doubled."""
    data = copy.deepcopy(data)
    anything = st.sampled_from(extra) | values if extra else values
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        places = [place for place in _places(data) if len(place) < 30]
        *above, last = draw(st.sampled_from(places)) or (None,)
        if last is None:
            if draw(st.integers(0, 19)) == 0:
                return draw(anything)
            continue
        section = data
        for key in above:
            section = section[key]
        what = draw(
            st.sampled_from(["replace", "replace", "replace", "remove", "add", "rename", "wrap"])
        )
        if what == "replace":
            section[last] = copy.deepcopy(draw(anything))
        elif what == "remove":
            del section[last]
        elif what == "wrap":
            section[last] = [section[last], copy.deepcopy(section[last])]
        elif isinstance(section, list):
            section.append(copy.deepcopy(draw(anything | st.just(section[last]))))
        elif what == "add":
            section[draw(st.sampled_from(TEXTS) | st.text(max_size=5))] = copy.deepcopy(
                draw(anything)
            )
        else:
            section[draw(st.sampled_from(TEXTS))] = section.pop(last)
    return data


FRAGMENTS = (
    *("!!python/object/apply:os.system ['touch canary']", "!!python/name:os.system", "!!binary x"),
    *("&a [*a]", "*nowhere", "<<: *b", "!!set {a, b}", "? [a, b]\n: c\n", "2001-99-99", "!!int x"),
    *("!!float x", "!!timestamp x", "%YAML 9.9\n---\n", "---\n", "...\n", "\t", "\0", "﻿", "\x85"),
    *(
        "[" * 3000,
        "{a: " * 1500,
        "- " * 3000,
        '"',
        "'",
        "|",
        "{",
        "}",
        "[",
        "]",
        ":",
        "\\",
        "9" * 6000,
    ),
    *("1e400", "0o9", "NaN", "-Infinity", '"\\ud800"', '"\\u0000"', "!function os.system", "1:2:3"),
    "&a [&b [&c [x,x,x,x,x,x,x,x,x], *c,*c,*c,*c,*c,*c,*c,*c], *b,*b,*b,*b,*b,*b,*b,*b]",
)


@st.composite
def scrambled(draw: st.DrawFn, text: str) -> str:
    """The text with one to three stretches of it replaced, cut out or repeated."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.integers(0, 12))
        put = draw(st.sampled_from(FRAGMENTS) | st.text(max_size=4) | st.just(text[start:end] * 2))
        text = text[:start] + put + text[end:]
    return text


def json_text(data: Any) -> str:
    """JSON as Python's writer has it, NaN, Infinity and lone surrogates included."""
    return json.dumps(data)


class TooLong(BaseException):
    """Not an Exception, which who reads a file may take for what is wrong with it."""


@contextmanager
def refused_or_fine() -> Iterator[None]:
    """Whatever happens inside is no error, or one of evomerge's own with a message that people can
    read; soon, and within little memory.
    """

    def too_long(*_: Any) -> None:
        raise TooLong(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_mapped() + 4 * GIB, hard))
    message = "fine"
    try:
        yield
    except EvomergeError as error:
        message = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert 0 < len(message) < 30_000
    assert "memory" not in message.lower(), "only the limit of this test stopped it"


def _mapped() -> int:
    """Bytes of address space that the process has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
