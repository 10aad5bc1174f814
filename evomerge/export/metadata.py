"""What the hub reads of a model card: parents, tags, and scores in its model-index form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData

from evomerge.export.parents import Parent


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


def front_matter(
    title: str, parents: Sequence[Parent], scores: Iterable[TaskScore] = (), mergekit: bool = False
) -> str:
    """The YAML with which a model card begins, between its two rules.

    `base_model` may name models of the hub only. `scores` are measured ones: estimates have no
    place here.
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
    """Tasks of one data set are kept apart by its config, by which the hub groups them."""
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
