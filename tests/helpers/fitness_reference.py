"""The reference the room is held to: `lm_eval.simple_evaluate` on the same model."""

from __future__ import annotations

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from evomerge.fitness.inference.local_model import Local
from evomerge.fitness.tasks.lm_eval_quirks import quiet
from evomerge.fitness.tasks.task_set import TaskSet


def stock(lm, config, filter_name="none"):
    """{task: {doc_hash: value}} for the first entry of a config, by lm-eval itself."""
    spec = config.tasks[0]
    with quiet():
        results = simple_evaluate(
            model=lm,
            tasks=[spec.task],
            num_fewshot=spec.num_fewshot,
            task_manager=TaskManager(include_path=config.include_path, include_defaults=False),
            apply_chat_template=spec.apply_chat_template,
            system_instruction=spec.system_instruction,
            fewshot_as_multiturn=spec.multiturn,
            gen_kwargs=dict(spec.gen_kwargs) or None,
            fewshot_random_seed=config.fewshot_seed,
            bootstrap_iters=0,
        )
    metric = spec.metric.partition(",")[0]
    return {
        task: {s["doc_hash"]: float(s[metric]) for s in samples if s["filter"] == filter_name}
        for task, samples in results["samples"].items()
    }


def everything(tasks):
    return {items.task: items.ids for items in tasks.items}


def scores(lm, config):
    tasks = TaskSet(config, Local(lm))
    found = tasks.score(everything(tasks))
    return {i.task: dict(zip(i.ids, found[i.task].tolist(), strict=True)) for i in tasks.items}
