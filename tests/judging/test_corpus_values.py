"""Corpus scores from documents' parts: the figures of the libraries that define them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import sacrebleu.metrics
from sklearn.metrics import f1_score
from sklearn.metrics import matthews_corrcoef as mcc

from evomerge.judging.corpus_values import AGGREGATES, CorpusValues, is_corpus, with_items


def some(documents: int = 40, seed: int = 0) -> np.ndarray:
    """Log-likelihoods and words of some documents."""
    rng = np.random.default_rng(seed)
    words = rng.integers(3, 30, documents)
    return np.stack([-words * rng.uniform(1, 3, documents), words], axis=-1).astype(float)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("classes", "of_one"), [(2, False), (2, True), (4, False)])
def test_f1_and_mcc_are_scikit_learns(seed, classes, of_one):
    rng = np.random.default_rng(seed)
    labels, answers = rng.integers(classes, size=(2, 30))
    if of_one:
        answers[:] = 0  # nothing found: both are 0
    one_hot = np.eye(classes)
    row = [(labels == answers).sum(), *one_hot[labels].sum(0), *one_hot[answers].sum(0)]
    found = AGGREGATES["matthews_corrcoef"](np.array(row, float))
    assert found == pytest.approx(mcc(labels, answers), abs=1e-12)
    if classes == 2:
        counts = [labels @ answers, (1 - labels) @ answers, labels @ (1 - answers)]
        assert AGGREGATES["f1"](np.array(counts, float)) == pytest.approx(f1_score(labels, answers))


@pytest.mark.parametrize("seed", range(20))
def test_bleu_chrf_and_ter_are_sacrebleus(seed):
    rng = np.random.default_rng(seed)
    total = np.sort(rng.integers(0, 9, 4))[::-1]
    row = [*rng.integers(1, 12, 2), *(rng.integers(0, count + 1) for count in total), *total]
    expected = sacrebleu.metrics.BLEU()._compute_score_from_stats(list(map(int, row))).score
    assert AGGREGATES["bleu"](np.array(row, float)) == pytest.approx(expected, abs=1e-9)
    counts = rng.integers(0, 5, (6, 3)).ravel()
    expected = sacrebleu.metrics.CHRF()._compute_f_score(counts.tolist())
    assert AGGREGATES["chrf"](counts.astype(float)) == pytest.approx(expected, abs=1e-9)
    edits = rng.integers(0, 3, 2)
    expected = sacrebleu.metrics.TER()._compute_score_from_stats(edits.tolist()).score
    assert AGGREGATES["ter"](edits.astype(float)) == pytest.approx(expected)


@pytest.mark.parametrize("aggregate", ["weighted_perplexity", "bits_per_byte", "nanmean"])
def test_the_mean_is_the_score_of_all_and_of_any_documents(aggregate):
    parts, score = some(), AGGREGATES[aggregate]
    values = CorpusValues.of(aggregate, parts)
    assert values.mean() == pytest.approx(score(parts.sum(0)), rel=1e-12)
    for taken in (slice(3, 17), [1, 5, 30], np.arange(40) % 3 == 0):
        assert values[taken].mean() == pytest.approx(score(parts[taken].sum(0)), rel=1e-12)
    assert values[[7]].tolist() == [pytest.approx(score(parts[7]))]


def test_the_standard_error_is_that_of_the_jackknife():
    parts = some()
    values = CorpusValues.of("weighted_perplexity", parts)
    without = np.array(
        [AGGREGATES["perplexity"](np.delete(parts, i, axis=0).sum(0)) for i in range(40)]
    )
    expected = np.sqrt(39 / 40 * np.square(without - without.mean()).sum())
    assert np.std(values, ddof=1) / np.sqrt(40) == pytest.approx(expected)


def test_what_is_not_measured_counts_for_nothing():
    parts = some()
    values = CorpusValues.of("bits_per_byte", parts)
    known = with_items(np.full(40, np.nan), np.arange(0, 40, 2), values[::2])
    assert np.isnan(known[1::2]).all()
    assert known[np.isfinite(known)].mean() == pytest.approx(values[::2].mean())
    both = with_items(known, np.arange(1, 40, 2), values[1::2])
    assert both.tolist() == values.tolist()
    assert np.isnan(known[1])  # as it was


def test_values_outlive_a_process_and_arithmetic_is_plain():
    values = CorpusValues.of("weighted_perplexity", some())
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(values, protocol))
        assert is_corpus(back)
        assert back.parts.tolist() == values.parts.tolist()
    for plain in (-values, values * 2, np.stack([values, values]), copy.copy(values) + 1):
        assert not is_corpus(plain)
