"""Attributes of trials and studies: short enough for every database, under keys that stay."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.judging import AnswerFacts
from evomerge.judging.corpus_values import CorpusValues, with_items
from evomerge.study import codec
from evomerge.study.record import Evaluation, Marker, RungProgress, RungResult


def test_packed_chunks_stay_under_60_kb_and_survive_a_shorter_rewrite():
    long, short = np.random.default_rng(0).bytes(300_000), b"short"
    packed = codec.pack("items", long)
    assert len(packed) > 5
    assert all(len(chunk) < 60_000 for chunk in packed.values())
    assert codec.unpack("items", packed) == long
    assert codec.unpack("items", packed | codec.pack("items", short)) == short


def test_a_damaged_chunk_is_noticed():
    packed = codec.pack("items", np.random.default_rng(0).bytes(100_000))
    cut = {key: value for key, value in packed.items() if key != "items:1"}
    with pytest.raises(ValueError, match="items: chunk 1 is missing"):
        codec.unpack("items", cut)
    with pytest.raises(ValueError, match="damaged"):
        codec.unpack("items", packed | {"items:1": packed["items:0"]})


def test_markers_are_stored_under_the_keys_that_older_studies_have():
    progress = RungProgress(
        (RungResult(6, 0.5, 0.1),), {"t": np.array([1.0, np.nan])}, {"score": 2.0}
    )
    marker = Marker(3, "d", "search", 2, 7, 5, np.array([0.25]), (1,), progress, not_counted=True)
    stored = codec.unpack_json("marker/3", codec.encode_marker(marker))
    assert stored.keys() >= {"slot", "digest", "split", "attempt", "ask", "tells", "genome"}
    assert (stored["parents"], stored["blameless"]) == ([1], True)
    assert stored["climb"]["steps"] == [[6, 0.5, 0.1]]
    (back,) = codec.decode_markers(codec.encode_marker(marker))
    assert (back.not_counted, back.progress.results) == (True, progress.results)
    assert np.array_equal(back.progress.scores["t"], progress.scores["t"], equal_nan=True)
    older = {key: stored[key] for key in stored if key not in ("blameless", "climb")}
    (back,) = codec.decode_markers(codec.pack_json("marker/3", older))
    assert (back.not_counted, back.progress, back.ask) == (False, None, 7)


def test_a_corpus_score_comes_back_with_its_documents_parts():
    parts = np.random.default_rng(0).uniform(1, 9, (5, 2))
    words, share = CorpusValues.of("weighted_perplexity", parts), np.array([0.0, 1.0, 1.0])
    told = Evaluation("test", "d", {}, scores={"a": share, "words": words}, n=8, value=1.0)
    plain, packed = codec.attributes(told, with_params=False)
    assert plain["tasks"]["words"]["aggregate"] == "weighted_perplexity"
    assert "aggregate" not in plain["tasks"]["a"]
    decoded = {"value": 1.0, "params": {}, "number": 0, "finished": None}
    back = codec.decode_evaluation(plain, packed, **decoded).scores
    assert (back["words"].aggregate, back["words"].parts.tolist()) == (
        "weighted_perplexity",
        parts.tolist(),
    )
    assert back["a"].tolist() == share.tolist()
    # on a rung, of some documents
    known = with_items(np.full(9, np.nan), np.arange(5), words)
    marker = Marker(0, "d", "search", progress=RungProgress((), {"words": known}))
    (back,) = codec.decode_markers(codec.encode_marker(marker))
    found = back.progress.scores["words"]
    assert np.array_equal(found.parts, known.parts, equal_nan=True)
    assert found[np.isfinite(found)].mean() == pytest.approx(words.mean())


def test_facts_about_answers_come_back_with_what_is_not_known():
    nan = np.nan
    facts = AnswerFacts(np.array([3, 12.5, nan]), np.array([0, 1, nan]), np.full(3, nan))
    told = Evaluation("test", "d", {}, answers={"t": facts}, n=3, value=1.0)
    plain, packed = codec.attributes(told, with_params=False)
    decoded = {"value": 1.0, "params": {}, "number": 0, "finished": None}
    back = codec.decode_evaluation(plain, packed, **decoded)
    for key, values in vars(facts).items():
        assert np.array_equal(vars(back.answers["t"])[key], values, equal_nan=True)
    older = {key: text for key, text in packed.items() if not key.startswith("answers")}
    assert codec.decode_evaluation(plain, older, **decoded).answers == {}
