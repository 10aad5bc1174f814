"""The model card: the recipe, its scores, how to make it again, and the hub's metadata."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData

from evomerge.common.version import __version__
from evomerge.config import SPLITS
from evomerge.export.parents import Parent
from evomerge.materialize.plan import keeps_layers
from evomerge.mergekit import MergekitFile
from evomerge.recipe import BASE, Merge, Recipe

if TYPE_CHECKING:
    from evomerge.models.layout import Layout

Cells = dict[str, str]
"""Column → the text of its cell."""


@dataclass(frozen=True)
class TaskScore:
    """A task's own metric as it was measured on documents that decided nothing.

    Attributes:
        dataset: the task's data set on the hub, if it is one.
        mean: over `documents`; `low`, `high`: its 95 % interval.
    """

    task: str
    metric: str
    mean: float
    low: float
    high: float
    documents: int
    dataset: str | None = None


def model_card(
    recipe: Recipe,
    layout: Layout,
    title: str,
    parents: Sequence[Parent],
    mergekit: MergekitFile | str,
    summary: Mapping[str, Any] | None,
    commands: Sequence[str],
    scores: Sequence[TaskScore] = (),
) -> str:
    """Return the text of the export's `README.md`.

    Args:
        mergekit: the recipe for mergekit, or the reason why there is none.
        summary: the trial's table as `Results` gives it; None when the recipe is not a run's.
        commands: the lm_eval commands that give its scores.
        scores: the evaluation results that the hub shows.
    """
    sections = [
        front_matter(title, parents, scores, isinstance(mergekit, MergekitFile)),
        f"# {title}",
        f"A merge of {_list(parents)}, made with evomerge {__version__}.",
        *_recipe(recipe, layout),
        *(_scores(summary) if summary else ()),
        *_parents(parents),
        *_reproduction(recipe, mergekit, commands),
        *_gguf(title),
    ]
    return "\n\n".join(sections) + "\n"


def front_matter(
    title: str, parents: Sequence[Parent], scores: Iterable[TaskScore] = (), mergekit: bool = False
) -> str:
    """Return the YAML with which a model card begins, between its two rules.

    `base_model` names models of the hub only. `scores` are measured ones, no estimates.
    """
    on_hub = list(dict.fromkeys(parent.hub_id for parent in parents if parent.hub_id))
    results = [_result(score) for score in scores]
    data = ModelCardData(
        base_model=on_hub or None,
        base_model_relation="merge" if on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["merge", "evomerge", *(["mergekit"] if mergekit else [])],
        model_name=title if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _result(score: TaskScore) -> EvalResult:
    """Return a score as the hub has it, which tells tasks of one data set apart by its config."""
    return EvalResult(
        task_type="text-generation",
        task_name="Text generation",
        dataset_type=score.dataset or score.task,
        dataset_name=score.task,
        dataset_config=score.task if score.dataset else None,
        metric_type=score.metric,
        metric_name=f"{score.metric} on {score.documents} documents held out from the search",
        metric_value=score.mean,
        metric_args={"interval": [score.low, score.high], "confidence": 0.95},
    )


def _list(parents: Sequence[Parent]) -> str:
    names = [f"`{parent.name}`" for parent in parents]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _recipe(recipe: Recipe, layout: Layout) -> Iterator[str]:
    constant = _constants(recipe)
    straight = keeps_layers(recipe, layout)
    rows = dict(_places(recipe, constant, straight))
    yield "## Recipe"
    if constant:
        yield f"Merge methods: {'; '.join(_kind(*item) for item in constant.items())}."
    outside = {merge.group for merge in recipe.merges if merge.slot is None}
    first = next(iter(rows.values()))
    alike = all(cells == first for cells in rows.values())
    if outside == set(layout.outside_groups) and straight and alike:
        rows = {"all": first}
    yield table("tensors", rows)
    if recipe.mixture is not None:
        yield (
            f"The experts of each mixture are then merged into {recipe.mixture.experts} (M-SMoE, "
            f"`groups: {recipe.mixture.groups}`)."
        )
    if any(merge.pieces for merge in recipe.merges):
        yield (
            "Some tensors are cut in equal pieces with coefficients of their own (Expert "
            "Merging++); their rows are the means over the pieces."
        )
    yield (
        "Tensors that no row names are the base's. The numbers are rounded; `recipe.json` has them "
        "in full."
    )


def _kind(method: str, shared: Cells) -> str:
    return f"`{method}`" + (f" ({', '.join(f'{k} {v}' for k, v in shared.items())})" * bool(shared))


def _constants(recipe: Recipe) -> dict[str, Cells]:
    """Return method → its shared parameters that have one value in the whole recipe."""
    found: dict[str, dict[str, set[str]]] = {}
    for merge in recipe.merges:
        shared = found.setdefault(merge.method, {})
        for name, value in merge.parameters.items():
            shared.setdefault(name, set()).add(_short(value))
    return {
        method: {name: min(values) for name, values in shared.items() if len(values) == 1}
        for method, shared in found.items()
    }


def _places(
    recipe: Recipe, constant: Mapping[str, Cells], straight: bool
) -> Iterator[tuple[str, Cells]]:
    """Yield the recipe's rows in depth order, each with its coefficients.

    Unless the path is `straight`, a row names the layer of the parents that stands there.
    """
    found: dict[int | None, list[Merge]] = {}
    for merge in recipe.merges:
        found.setdefault(merge.slot, []).append(merge)
    outside = {merge.group: merge for merge in found.get(None, [])}
    if "embeddings" in outside:
        yield "embeddings", _cells(outside.pop("embeddings"), constant)
    for index, slot in enumerate(recipe.path):
        place = f"layer {index}" if straight else f"layer {index}, from layer {slot.layer}"
        if slot.scale != 1:
            place += f", its input × {_short(slot.scale)}"
        merges = found.get(index, [])
        if all(merge.group != "layer" for merge in merges):
            yield place, {"method": f"copy of {slot.source}"}
        for merge in merges:
            module = "" if merge.group == "layer" else f", {merge.group}"
            yield place + module, _cells(merge, constant)
    for group, merge in outside.items():
        yield group.replace("_", " "), _cells(merge, constant)


def _cells(merge: Merge, constant: Mapping[str, Cells]) -> Cells:
    copied = next(iter(merge.experts), BASE) if merge.method == "passthrough" else None
    cells = {"method": f"copy of {copied}" if copied else merge.method}
    for expert, values in merge.experts.items():
        cells |= {f"{expert} {name}": _short(value) for name, value in values.items()}
    if merge.sparsifier is not None:
        kind = {"dare": "DARE", "della": "DELLA"}.get(merge.sparsifier.kind, merge.sparsifier.kind)
        given = merge.sparsifier.model_dump(exclude={"kind"})
        cells |= {f"{kind} {name}": _short(value) for name, value in given.items()}
    if merge.aim is not None:
        cells |= {f"AIM {name}": _short(value) for name, value in merge.aim.model_dump().items()}
    varying = merge.parameters.keys() - constant[merge.method].keys()
    return cells | {name: _short(merge.parameters[name]) for name in sorted(varying)}


def _scores(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield means with intervals on every split, against each parent and baseline."""
    # Needed for trials of a run alone: `evomerge merge` need not import the study's packages.
    from evomerge.results.selection_bias import choice_line, test_sets_line, tests_line
    from evomerge.results.verdict_words import begun, verdict_lines
    from evomerge.results.written_numbers import trial_line

    shown = "test" if summary["scores"]["test"] else "search"
    rows: dict[str, Cells] = {"this merge": _means(summary["scores"])}
    for role, kind in (("parents", "parent"), ("baselines", "baseline"), ("grid", "grid")):
        for name, scores in summary[role].items():
            rows[f"{name} ({kind})"] = {
                **_means(scores),
                f"this merge's lead ({shown})": _lead(scores[shown]),
            }
    tasks = summary["scores"][shown]["tasks"]
    yield "## Verdict"
    yield "\n\n".join(verdict_lines(summary["verdict"])) or "It was not measured on all items."
    yield "## Scores"
    yield (
        f"{begun(trial_line(summary))}. The campaign's objective over "
        + ", ".join(f"{_plain(task)} ({found['n']} items)" for task, found in tasks.items())
        + f" (item counts of the {shown} split), with 95 % intervals. The search saw the "
        "search split, the choice was made on select, and test was opened at the end; leads are "
        f"paired; {tests_line(summary, shown)}."
    )
    if verdict := (summary.get("audit") or {}).get("verdict"):
        yield _plain(verdict)
    if summary["choice"]:
        yield choice_line(summary["choice"], lambda value: f"{value:.3f}")
    if summary["test_sets"]:
        yield test_sets_line(summary["test_sets"])
    yield table("model", rows)


def _means(scores: Mapping[str, Any]) -> Cells:
    return {split: span(scores[split], "mean") for split in SPLITS if scores[split]}


def _lead(scores: Mapping[str, Any] | None) -> str:
    found = scores and scores.get("winner_minus_this")
    if not found:
        return ""
    lead, p = span(found, "difference"), found["p_holm"]
    return lead if p is None else f"{lead}, {'p < 0.001' if p < 0.001 else f'p = {p:.3f}'}"


def span(found: Mapping[str, float], key: str) -> str:
    """Format a number with its 95 % interval."""
    return f"{found[key]:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _parents(parents: Sequence[Parent]) -> Iterator[str]:
    yield "## Parents and licences"
    rows = {
        parent.name: {
            "model": _literal(parent.spec),
            "licence": _plain(parent.licence),
            "digest": f"`{parent.digest}`",
        }
        for parent in parents
    }
    yield table("name", rows)
    yield (
        "Licences are given as found in the parents' folders; a merge stands under all of them. "
        "Digests are over weights and config."
    )


def _reproduction(
    recipe: Recipe, mergekit: MergekitFile | str, commands: Sequence[str]
) -> Iterator[str]:
    yield "## How to make it again"
    yield (
        "In this folder (`evomerge.json` says where the models lie, and which weights came out: "
        "whether they are the same bytes again is told, and if not, by how much and why):"
    )
    yield _code("evomerge merge recipe.json --to ../again")
    if isinstance(mergekit, str):
        yield f"There is no `mergekit.yaml`: {mergekit}."
    else:
        yield "With mergekit 0.1.5, the same tensors up to rounding in float32:"
        yield _code(mergekit.command)
        if mergekit.caveats:
            yield "But:\n\n" + "\n".join(f"- {caveat}" for caveat in mergekit.caveats)
    if commands:
        yield "Its scores over all items of the three splits, with stock lm-eval:"
        yield _code("\n".join(commands))
    yield f"Recipe digest: `{recipe.digest}`."


def _gguf(title: str) -> Iterator[str]:
    yield "## GGUF"
    yield (
        "For llama.cpp and what is built on it, in a checkout of "
        "[llama.cpp](https://github.com/ggml-org/llama.cpp) with its `requirements.txt` installed:"
    )
    file = shlex.quote(f"{title}.gguf")
    yield _code(f"python convert_hf_to_gguf.py THIS_FOLDER --outfile {file} --outtype auto")


def table(corner: str, rows: Mapping[str, Cells]) -> str:
    """Format rows by name as a Markdown table; columns in the order in which they are first met."""
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [[corner, *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *(cells.get(c, "") for c in columns)] for name, cells in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Escape other people's text, so that it has no mark-up of its own."""
    return re.sub(r"([\\`*<>|!\[\]])", r"\\\1", " ".join(text.split()))


def _literal(text: str) -> str:
    """Put other people's text between backticks."""
    plain = " ".join(text.split()).replace("`", "'").replace("|", r"\|")
    return f"`{plain}`"


def _code(text: str) -> str:
    return f"```sh\n{text}\n```"


def _short(value: bool | float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower()
