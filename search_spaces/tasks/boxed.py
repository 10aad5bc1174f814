r"""Answers in \boxed{…}."""

from lm_eval.tasks.hendrycks_math.utils import is_equiv

_BOX = r"\boxed{"


def process_results(doc, results):
    """Whether the last box holds the answer, written the same way but for LaTeX's variants."""
    found = last_box(results[0])
    return {"exact_match": float(found is not None and is_equiv(found, doc["answer"]))}


def last_box(text):
    r"""What the last closed \boxed{…} holds, braces balanced; None where there is none."""
    start = text.rfind(_BOX)
    while start >= 0:
        depth = 1
        for place in range(start + len(_BOX), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start + len(_BOX) : place]
        start = text.rfind(_BOX, 0, start)
    return None
