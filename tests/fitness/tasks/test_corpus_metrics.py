"""Corpus scores: those of `lm_eval.simple_evaluate` on the same model and documents."""

from __future__ import annotations

import random

import numpy as np
import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from evomerge.common.errors import InputError
from evomerge.fitness.inference.local_model import Local, make_lm
from evomerge.fitness.tasks.corpus_metrics import by_own_function, parts_of
from evomerge.fitness.tasks.lm_eval_quirks import quiet
from evomerge.fitness.tasks.task_set import TaskSet
from evomerge.judging.corpus_values import is_corpus

ROLLING = ("word_perplexity", "byte_perplexity", "bits_per_byte")
TRANSLATION = ("bleu", "chrf", "chrf++", "ter")
CHOICE = ("mcc", "f1", "brier_score")
SOME = [1, 4, 5, 11, 17]


def listed(metrics):
    return [{"metric": metric} for metric in metrics]


def write(tasks, kind, docs):
    """Write task `t` with all corpus metrics of a kind."""
    if kind == "rolling":
        draw = random.Random(0)
        many = [" ".join(f"w{draw.randrange(40)}" for _ in range(n)) for n in (255, 700, 1100)]
        long = [{**docs[0], "question": question} for question in many]  # more than a window each
        text = "{{question}} {{choices | join(' ')}}"
        keys = {"doc_to_text": "", "doc_to_target": text, "metric_list": listed(ROLLING)}
        tasks.write("t", "loglikelihood_rolling", test=[*docs, *long], **keys)
    elif kind == "translation":
        keys = {
            "doc_to_target": "{{question}} {{question}}",
            "process_results": None,
            "doc_to_text": "{{question}}",
            "generation_kwargs": {"until": ["nothing"], "max_gen_toks": 12},
        }
        tasks.write("t", "generate_until", test=docs, metric_list=listed(TRANSLATION), **keys)
    else:
        two = [{**d, "choices": d["choices"][:2], "gold": d["gold"] % 2} for d in docs]
        tasks.write("t", "multiple_choice", test=two, metric_list=listed(CHOICE))


def figures(lm, config, samples=None):
    """lm-eval's own figures: metric → score."""
    with quiet():
        found = simple_evaluate(
            model=lm,
            tasks=["t"],
            task_manager=TaskManager(include_path=config.include_path, include_defaults=False),
            bootstrap_iters=0,
            samples=None if samples is None else {"t": samples},
        )
    return {key.partition(",")[0]: value for key, value in found["results"]["t"].items()}


@pytest.mark.parametrize(
    ("kind", "metrics"),
    [("rolling", ROLLING), ("translation", TRANSLATION), ("choice", CHOICE)],
)
def test_corpus_scores_equal_lm_eval_on_all_documents_and_on_some(kind, metrics, lm, tasks, docs):
    write(tasks, kind, docs(24))
    config = tasks.config({"task": "t", "metric": metrics[0], "measures": list(metrics[1:])})
    scored = TaskSet(config, Local(lm))
    names = dict(zip(metrics, (items.task for items in scored.items), strict=True))
    (ids, *_) = [items.ids for items in scored.items]
    whole, some = figures(lm, config), figures(lm, config, SOME)
    found = scored.score(dict.fromkeys(names.values(), ids))
    few = scored.score({name: [ids[place] for place in SOME] for name in names.values()})
    for metric, name in names.items():
        assert found[name].mean() == pytest.approx(whole[metric], rel=2e-5, abs=1e-9), metric
        assert few[name].mean() == pytest.approx(some[metric], rel=2e-5, abs=1e-9), metric
        # Documents taken out of those that were scored together have the score they have alone.
        assert found[name][SOME].mean() == pytest.approx(float(few[name].mean()), rel=1e-6)
        assert is_corpus(found[name]) == (metric != "brier_score")
        assert whole[metric] != some[metric] != 0


LENGTHS = (1, 31, 32, 33, 63, 64, 65, 96, 97, 200)
"""Words of a text: fewer than the model reads, as many, one more, several windows."""


@pytest.mark.parametrize("words", ["tokenizer", "tokenizer_without_bos"])
def test_rolling_figures_equal_lm_eval_at_any_length_of_text(words, tasks, llama, request):
    """Also of texts that repeat themselves, where lm-eval errs with windows side by side.

    Its `Collator` groups windows of the same tokens, and gathers a shorter window's
    log-probabilities from the beginning of the group's longest: one window at a time it cannot.
    """
    texts = [" ".join(f"w{i % period}" for i in range(n)) for period in (8, 7) for n in LENGTHS]
    texts += ["", " ", "w1", "w1 é w2", "w3 日本語 🙂 w4", "w5\nw6\tw7  w8", "w1 w2 " * 40]
    keys = {"doc_to_text": "", "doc_to_target": "{{text}}", "metric_list": listed(ROLLING)}
    docs = [{"text": text, "number": i} for i, text in enumerate(texts)]
    tasks.write("t", "loglikelihood_rolling", test=docs, **keys)
    config = tasks.config({"task": "t", "metric": ROLLING[0], "measures": list(ROLLING[1:])})
    tokenizer = request.getfixturevalue(words)
    many, alone = (make_lm(llama(length=32), tokenizer, batch_size=size) for size in (16, 1))
    scored = TaskSet(config, Local(many))
    names = [items.task for items in scored.items]
    ids = scored.items[0].ids
    some = range(len(texts))[::3]
    for places in (range(len(texts)), some):
        found = scored.score({name: [ids[place] for place in places] for name in names})
        expected = figures(alone, config, list(places))
        for metric, name in zip(ROLLING, names, strict=True):
            assert found[name].mean() == pytest.approx(expected[metric], rel=1e-6), metric


def test_directions_are_those_of_the_metrics(lm, tasks, docs):
    write(tasks, "rolling", docs(24))
    config = tasks.config({"task": "t", "metric": "bits_per_byte"})
    (items,) = TaskSet(config, Local(lm)).items
    assert (items.higher_is_better, items.aggregate) == (False, "bits_per_byte")


def test_perplexity_of_a_loglikelihood_task(lm, tasks, docs):
    tasks.write("t", "loglikelihood", test=docs(24))
    config = tasks.config({"task": "t", "metric": "perplexity"})
    scored = TaskSet(config, Local(lm))
    found = scored.score({"t": scored.items[0].ids})["t"]
    assert found.mean() == pytest.approx(figures(lm, config)["perplexity"], rel=1e-5)


def test_f1_of_more_than_two_classes_is_refused_by_name(lm, tasks, docs):
    tasks.write("t", "multiple_choice", test=docs(24), metric_list=listed(["f1"]))
    config = tasks.config({"task": "t", "metric": "f1"})
    scored = TaskSet(config, Local(lm))
    with pytest.raises(InputError, match=r"t: metric 'f1' is .* two classes"):
        scored.score({"t": scored.items[0].ids})


@pytest.mark.parametrize("documents", [24, 230])
def test_an_aggregation_of_the_tasks_own_gives_lm_evals_figure(documents, lm, tasks, docs):
    (tasks.folder / "own.py").write_text("def spread(items):\n    return max(items) - min(items)\n")
    own = {"metric": "print", "aggregation": "!function own.spread", "higher_is_better": True}
    tasks.write("t", "generate_until", test=docs(documents), metric_list=[own])
    config = tasks.config({"task": "t", "metric": "print"})
    scored = TaskSet(config, Local(lm))
    (items,) = scored.items
    assert (items.aggregate, items.corpus) == ("own", True)
    found = scored.score({"t": items.ids})["t"]
    assert found.mean() == pytest.approx(figures(lm, config)["print"], rel=1e-9)
    assert np.ptp(found) > 0


def test_the_jackknife_of_a_mean_is_the_documents_themselves():
    values = np.random.default_rng(0).uniform(size=50)
    assert by_own_function(np.mean, list(values)) == pytest.approx(values)


@pytest.mark.parametrize("aggregate", ["bleu", "chrf", "ter"])
def test_several_references_a_document_count_as_in_sacrebleu(aggregate):
    import lm_eval.api.metrics

    from evomerge.judging.corpus_values import AGGREGATES

    pairs = [
        (["the cat sat on the mat", "a cat was on the mat"], "the cat was on a mat"),
        (["it rains a lot today .", "today it rains"], "it rains today"),
        (["hello", "hello there"], ""),
    ]
    sums = parts_of(aggregate, pairs, 0).sum(axis=0)
    expected = getattr(lm_eval.api.metrics, aggregate)(pairs)
    assert AGGREGATES[aggregate](sums) == pytest.approx(expected, rel=1e-12)
    assert np.isfinite(expected)
    assert expected > 0
