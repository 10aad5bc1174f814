"""`fitness`: tasks, splits, objective, rungs and the engine that scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from evomerge.config.agreement import AgreementTaskConfig
from evomerge.config.base import PlugConfig, Strict
from evomerge.config.compose import ComposeTaskConfig
from evomerge.config.objectives import ConstraintConfig, ObjectiveConfig
from evomerge.config.own_metric import CallableConfig

SPLITS = ("search", "select", "test")
"""The three disjoint sets of documents, in the order in which they are opened."""
PARAMETERS = "parameters"
"""A metric that every lm-eval task has beside its own: the numbers that the candidate's weights
hold, the same for each document; fewer is better."""
AUDIT = "audit"
"""Name, in the place of a split's, of the documents of `fitness.audit`."""


class TaskConfig(Strict):
    """One lm-eval task (or group, or tag) and how it counts; fields mean what lm-eval's mean.

    `metric` may name a filter as lm-eval prints it: `exact_match,strict-match`. A task that
    generates also has `response_tokens`, the length of an answer, and every task `parameters`, the
    numbers that the merge's weights hold; of both fewer are better.

    `measures` are further metrics of the same answers, which cost no second forward pass. Each is
    known elsewhere (to `pareto`, constraints, map_elites) as `task.metric`, without a filter, and
    does not count in the task's score.

    A task may have several entries, each with another metric and a weight; they share its answers.
    All but the first are known as `task.metric`.
    """

    task: str
    """The name of an lm-eval task, group or tag.

    Example: `task: gsm8k, metric: exact_match`
    """
    metric: str = "acc"
    """The metric that counts; `name,filter` as lm-eval prints it. Change it where the task has
    no `acc`.

    Example: `metric: 'exact_match,strict-match'`
    """
    measures: list[str] = Field(default_factory=list)
    """Further metrics of the same answers, for constraints, `pareto` and map_elites; they do
    not count in the score. `parameters` is the size of the merge, for spaces in which it varies.

    Example: `measures: [acc_norm]`
    """
    weight: float = Field(default=1.0, gt=0)
    """How much the task counts in the objective, beside the others. Raise it for the task that
    matters most.

    Example: `weight: 2`
    """
    num_fewshot: int | None = Field(default=None, ge=0)
    """The number of solved examples before each question; the task's own, unless given.

    Example: `num_fewshot: 5`
    """
    apply_chat_template: bool | str = False
    """Put questions in the model's chat template; a text names one of several templates. Turn
    it on for instruction-tuned models.

    Example: `apply_chat_template: true`
    """
    system_instruction: str | None = None
    """A system message before each question.

    Example: `system_instruction: Answer briefly.`
    """
    fewshot_as_multiturn: bool | None = None
    """As in lm_eval's command: on with a chat template, off without, unless said here.

    Example: `apply_chat_template: true, fewshot_as_multiturn: false`
    """
    gen_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of generation, such as a limit of new tokens. Shorten answers that are longer
    than they need be: they take most of the time.

    Example: `gen_kwargs: {max_gen_toks: 256}`
    """

    @property
    def multiturn(self) -> bool:
        """True where few-shot examples are turns of a conversation."""
        if self.fewshot_as_multiturn is None:
            return bool(self.apply_chat_template)
        return self.fewshot_as_multiturn

    @field_validator("measures")
    @classmethod
    def _measures_are_named_once(cls, measures: list[str]) -> list[str]:
        names = [measure.partition(",")[0] for measure in measures]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} listed twice; give each metric once")
        return measures

    @model_validator(mode="after")
    def _multiturn_needs_a_template(self) -> TaskConfig:
        if self.multiturn and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn needs apply_chat_template: true")
        return self


def _kind_of_task(task: Any) -> str:
    kinds = {
        "callable": CallableConfig,
        "agreement": AgreementTaskConfig,
        "compose": ComposeTaskConfig,
    }
    for kind, model in kinds.items():
        if isinstance(task, model) or (isinstance(task, Mapping) and kind in task):
            return f"kind:{kind}"
    return "kind:lm_eval"


AnyTask = Annotated[
    Annotated[TaskConfig, Tag("kind:lm_eval")]
    | Annotated[CallableConfig, Tag("kind:callable")]
    | Annotated[AgreementTaskConfig, Tag("kind:agreement")]
    | Annotated[ComposeTaskConfig, Tag("kind:compose")],
    Discriminator(_kind_of_task),
]


class RaceConfig(Strict):
    """Prune a candidate when at least ⌈keep·n⌉ of n earlier candidates beat it on a rung's items
    (one-sided paired test at `confidence`).
    """

    keep: float = Field(default=0.1, gt=0, lt=1)
    """The share of earlier candidates that may be better before a candidate is pruned. Raise it
    to prune less.

    Example: `keep: 0.2`
    """
    confidence: float = Field(default=0.6, ge=0.5, lt=1)
    """The confidence of the one-sided paired test that a candidate is beaten. Raise it to prune
    less.

    Example: `confidence: 0.8`
    """


class AuditConfig(Strict):
    """Tasks that the search never uses: on them the winner and every parent are measured at the
    end, on all documents, to see what was forgotten. They decide nothing.
    """

    tasks: list[TaskConfig] = Field(min_length=1)
    """The tasks to measure at the end; each is written as in `fitness.tasks`.

    Example: `tasks: [{task: arc_easy}]`
    """


class EngineConfig(PlugConfig):
    """`kind` names the engine (`evomerge list engines`), or a class of yours as `module:Class`; the
    other keys are its options.
    """

    kind: str = "hf"
    """The engine's name, or `module:Class`. Change it to `api` where a server such as vLLM
    answers.

    Example: `kind: hf`
    """


class SurrogateLossConfig(Strict):
    """The loss that gradients follow, where `initial` or `polish` asks for a descent.

    `supervised`: cross-entropy of the right choice, minus the log-likelihood of a target, and, for
    a task that generates, minus the mean log-likelihood of its target's tokens: a surrogate.

    `experts`: the divergence from an expert's own answers to the same prompts, and of its hidden
    states (Expert Merging). `entropy`: how undecided the model is (AdaMerging); it rewards
    confidence, right or wrong. Both need no labels.
    """

    kind: Literal["supervised", "entropy", "experts"] = "supervised"
    """The loss. Change it to `experts` where documents have no right answers.

    Example: `kind: entropy`
    """
    power: float = Field(default=0.0, ge=0, le=1, exclude_if=lambda said: not said)
    """Of `supervised`: a document's loss l counts as (1 - exp(-power · l)) / power, which is
    bounded: what the model is surely wrong about pulls little, as it hardly counts in an accuracy.
    0 is l itself. With the default gradient start it is 0.7.

    Example: `kind: supervised, power: 0.7`
    """
    teachers: dict[str, str] = Field(default_factory=dict, exclude_if=lambda said: not said)
    """Of `experts`: the model that teaches each task, which may be `base`. A task of agreement has
    its own.

    Example: `kind: experts, teachers: {gsm8k: math, arc_easy: lang}`
    """
    tokens: int = Field(default=32, ge=1, exclude_if=lambda said: said == 32)
    """Of `experts`, the most tokens of an expert's answer; of `entropy`, how many of a prompt's
    last places are looked at.

    Example: `kind: entropy, tokens: 64`
    """
    top_k: int = Field(default=64, ge=1, exclude_if=lambda said: said == 64)
    """How many of an expert's likeliest next tokens are kept at each place; all others count as
    one.

    Example: `kind: experts, teachers: {gsm8k: math}, top_k: 128`
    """
    hidden_weight: float = Field(default=1.0, ge=0, exclude_if=lambda said: said == 1)
    """Of `experts`: the weight of the hidden states' mean square error, half-way through the
    layers. 0 leaves it out, and keeps files small.

    Example: `kind: experts, teachers: {gsm8k: math}, hidden_weight: 0`
    """

    @property
    def reads_hidden(self) -> bool:
        """True where experts' hidden states are compared with."""
        return self.kind == "experts" and self.hidden_weight > 0

    @model_validator(mode="after")
    def _options_are_of_the_kind(self) -> SurrogateLossConfig:
        if self.kind != "experts" and self.teachers:
            raise ValueError(f"{self.kind} has no teachers; write kind: experts")
        if self.kind != "supervised" and self.power:
            raise ValueError(f"{self.kind} has no power; write kind: supervised")
        return self


_OF_AN_ENTRY = {"metric", "measures", "weight"}
"""What may differ between entries of one task."""


def _check_entries(name: str, entries: list[TaskConfig]) -> None:
    """Refuse entries of one task with the same metric, or that would ask it differently."""
    metrics = [m.partition(",")[0] for one in entries for m in (one.metric, *one.measures)]
    named = [metric for one in entries for metric in (one.metric, *one.measures)]
    # All but the first are known by their metric without its filter.
    again = sorted({m for known in (named, metrics[1:]) for m in known if known.count(m) > 1})
    if len(entries) > 1 and again:
        raise ValueError(
            f"{name} listed twice; give each task once, with a weight, or each time with another "
            f"metric than {', '.join(again)}"
        )
    for one in entries[1:]:
        said, first = (e.model_dump(exclude=_OF_AN_ENTRY) for e in (one, entries[0]))
        if differing := [key for key, value in said.items() if value != first[key]]:
            raise ValueError(
                f"{name} listed twice with other {', '.join(differing)}: entries of one task share "
                "its answers, so they differ in metric, measures and weight alone"
            )


class FitnessConfig(Strict):
    """The measure of a merge: tasks, the objective over them, and how documents are split."""

    tasks: list[AnyTask] = Field(min_length=1)
    """What a merge should be good at: lm-eval tasks, alone or joined in one prompt (`compose`), or
    metrics of your own.

    Example: `tasks: [{task: gsm8k, metric: exact_match}, {task: arc_challenge, metric:
    acc_norm}]`
    """
    include_path: str | None = None
    """A folder with task files of your own, as lm-eval's `--include_path`.

    Example: `include_path: tasks`
    """
    allow_test_sets: bool = False
    """Let the search see documents of public test sets, which others report scores on. Leave it
    off where the result is to be compared with published numbers.

    Example: `allow_test_sets: true`
    """
    run_unsafe_code: bool = Field(default=False, exclude_if=lambda on: not on)
    """Let tasks run the code that candidates write (humaneval, mbpp): on every worker's machine,
    with your rights, on your files. Turn it on inside a container or a throw-away machine.

    Example: `run_unsafe_code: true`
    """
    engine: EngineConfig = EngineConfig()
    """The engine that answers lm-eval's requests, with its options.

    Example: `engine: {kind: hf, batch_tokens: 8192}`
    """
    objective: ObjectiveConfig = ObjectiveConfig(kind="mean")
    """How the tasks' scores become one value, or several goals. Change it where no task may
    fall behind (`weakest_link`), where tasks differ in difficulty (`normalized`), or to see the
    trade-off (`pareto`).

    Example: `objective: weakest_link`
    """
    constraints: list[ConstraintConfig] = Field(default_factory=list)
    """Conditions that a winner must meet. Use them where a merge must not lose what a parent
    can do.

    Example: `constraints: [{not_below: {task: gsm8k, by: 0.02}}]`
    """
    splits: dict[str, float | int] = Field(
        default_factory=lambda: {"search": 0.5, "select": 0.2, "test": 0.3}
    )
    """Shares of the documents, which add up to 1, or numbers of them, for `search`, `select`
    and `test`. Give counts where tasks are large: 200 for each split tells most merges apart.

    Example: `splits: {search: 0.5, select: 0.2, test: 0.3}`
    """
    fewshot_seed: int = 1234
    """The seed by which few-shot examples are drawn; lm-eval's.

    Example: `fewshot_seed: 1234`
    """
    batch_size: int = Field(default=64, ge=1)
    """Rows generated at once, and of lm-eval's own batches where an engine leaves work to it.
    Lower it where memory is short.

    Example: `batch_size: 16`
    """
    select_top: int = Field(default=10, ge=1)
    """The number of finalists: so many of the best on `search` are scored on `select`, where
    the winner is chosen.

    Example: `select_top: 20`
    """
    rungs: list[Annotated[int, Field(ge=1)] | Literal["all"]] = Field(default=["all"])
    """Numbers of items over all tasks, then `all`: a candidate that does badly on few is
    pruned. Unless given, with `cma` and 200 search items or more: a twelfth of them, a quarter,
    all. `[all]` turns them off.

    Example: `rungs: [32, 128, all]`
    """
    race: RaceConfig = RaceConfig()
    """When a candidate is pruned on a rung.

    Example: `race: {keep: 0.1, confidence: 0.6}`
    """
    estimator: Literal["mean", "mp_irt", "gmp_irt"] = "gmp_irt"
    """The estimator of a pruned candidate's score: the mean of its items, or an item-response
    model, on all candidates' items. Change it to `mean` where items are very unlike.

    Example: `estimator: mean`
    """
    audit: AuditConfig | None = Field(default=None, exclude_if=lambda audit: audit is None)
    """Tasks that are only measured at the end, to see what was forgotten.

    Example: `audit: {tasks: [{task: arc_easy}]}`
    """

    @property
    def of_audit(self) -> FitnessConfig | None:
        """The section with the tasks of `audit` in the place of its own, which decide nothing."""
        if self.audit is None:
            return None
        return self.model_copy(
            update={
                "tasks": self.audit.tasks,
                "allow_test_sets": True,
                "objective": ObjectiveConfig(kind="mean"),
                "constraints": [],
                "audit": None,
            }
        )

    surrogate_loss: SurrogateLossConfig = SurrogateLossConfig()
    """The loss that gradients follow, where `initial` or `polish` asks for a descent.

    Example: `surrogate_loss: {kind: supervised}`
    """

    @property
    def lm_eval_tasks(self) -> list[TaskConfig]:
        """The entries that are lm-eval's tasks."""
        return [task for task in self.tasks if isinstance(task, TaskConfig)]

    @property
    def agreements(self) -> list[AgreementTaskConfig]:
        """The entries of agreement with an expert."""
        return [task for task in self.tasks if isinstance(task, AgreementTaskConfig)]

    @field_validator("rungs")
    @classmethod
    def _rungs_rise_to_all(cls, rungs: list[int | str]) -> list[int | str]:
        counts = [rung for rung in rungs if isinstance(rung, int)]
        if rungs != [*sorted(set(counts)), "all"]:
            raise ValueError("write rising numbers of items, then all: [32, 128, all]")
        return rungs

    @field_validator("tasks")
    @classmethod
    def _entries_of_a_task_differ_in_metric(cls, tasks: list[AnyTask]) -> list[AnyTask]:
        for name in dict.fromkeys(task.task for task in tasks):
            same = [task for task in tasks if task.task == name]
            entries = [task for task in same if isinstance(task, TaskConfig)]
            if len(same) > len(entries) > 0 or (not entries and len(same) > 1):
                own = ", or a name of its own (task: NAME)" if not entries else ""
                raise ValueError(f"{name} listed twice; give each task once, with a weight{own}")
            _check_entries(name, entries)
        return tasks

    @field_validator("splits")
    @classmethod
    def _splits_add_up(cls, splits: dict[str, float | int]) -> dict[str, float | int]:
        if set(splits) != set(SPLITS):
            raise ValueError(f"name exactly {', '.join(SPLITS)}; found {', '.join(splits)}")
        values = list(splits.values())
        if any(value <= 0 for value in values):
            empty = next(name for name, value in splits.items() if value <= 0)
            raise ValueError(f"{empty} would be empty; every split needs documents")
        counts = all(isinstance(value, int) for value in values)
        if not counts and abs(sum(values) - 1) > 1e-9:
            raise ValueError(
                f"fractions add up to {sum(values):g}, not 1; or give whole numbers for counts"
            )
        return splits
