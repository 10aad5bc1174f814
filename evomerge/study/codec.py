"""Evaluations and markers as attributes of Optuna trials and studies, and back.

Small facts stay plain, so that optuna-dashboard and pandas show them. Large ones (recipe, genome,
item scores) are packed: zlib, then base64, in chunks under 60 kB, because MySQL's TEXT holds
64 kB. Every attribute is a row (about .8 ms on SQLite), so those at their default are left out.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, astuple
from datetime import datetime
from typing import Any

import numpy as np

from evomerge.judging.answer_facts import AnswerFacts
from evomerge.judging.corpus_values import CorpusValues, is_corpus
from evomerge.study.record import (
    DescentRecord,
    Evaluation,
    Marker,
    RungProgress,
    RungResult,
)

CHUNK = 59_000
"""Characters per packed attribute: a multiple of 4, so that each chunk is base64 by itself."""
PLAIN = "plain/"
"""Begins the names of packed attributes that would be plain if they were shorter."""
SMALL = (
    *("digest", "split", "role", "name", "se", "n", "estimated", "steps", "asked", "reason"),
    *("ask", "tells", "parents", "attempt", "seconds"),
)
"""The plain facts that are read of every trial; others are read when they are asked for."""


def pack(key: str, data: bytes) -> dict[str, str]:
    """Bytes as text attributes `key:0`, `key:1`, …, each under 60 kB."""
    text = base64.b64encode(zlib.compress(data)).decode()
    starts = range(0, len(text), CHUNK)
    return {f"{key}:{i}": text[start : start + CHUNK] for i, start in enumerate(starts)}


def unpack(key: str, attributes: Mapping[str, Any]) -> bytes | None:
    """Read the bytes that `pack` wrote under `key`; None when there are none.

    Chunks left over from a longer value written earlier under the same key are passed over.

    Raises:
        ValueError: a chunk is missing or damaged.
    """
    if f"{key}:0" not in attributes:
        return None
    inflate = zlib.decompressobj()
    data = b""
    index = 0
    try:
        while not inflate.eof:
            data += inflate.decompress(base64.b64decode(attributes[f"{key}:{index}"]))
            index += 1
    except (KeyError, TypeError, zlib.error) as error:
        raise ValueError(f"{key}: chunk {index} is missing or damaged") from error
    return data


def pack_json(key: str, value: Any) -> dict[str, str]:
    """`pack` of the value's JSON text."""
    return pack(key, json.dumps(value, separators=(",", ":")).encode())


def unpack_json(key: str, attributes: Mapping[str, Any]) -> Any:
    """Read the value that `pack_json` wrote under `key`, or None; raises as `unpack`."""
    data = unpack(key, attributes)
    return None if data is None else json.loads(data)


def attributes(
    evaluation: Evaluation, *, with_params: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Encode an evaluation as plain and packed attributes; long plain ones are packed, too.

    `with_params`: pack its params, because Optuna gets only a summary of them.
    """
    plain, packed = _plain(evaluation), _packed(evaluation, with_params=with_params)
    for key in [key for key, fact in plain.items() if not fits(fact)]:
        packed |= pack_json(f"{PLAIN}{key}", plain.pop(key))
    return plain, packed


def fits(value: Any) -> bool:
    """Tell whether one attribute can hold the value on every database."""
    return len(json.dumps(value)) <= CHUNK


def _plain(evaluation: Evaluation) -> dict[str, Any]:
    """The small, readable facts of an evaluation; defaults are left out."""
    facts: dict[str, Any] = {
        "name": evaluation.name,
        "se": evaluation.se,
        "n": evaluation.n or None,
        "estimated": evaluation.estimated or None,
        "estimates": {task: list(found) for task, found in evaluation.estimates.items()} or None,
        "steps": [list(astuple(result)) for result in evaluation.rungs] or None,
        "asked": evaluation.asked,
        "tasks": {
            task: _of_task(values, evaluation.estimated)
            for task, values in evaluation.scores.items()
        }
        or None,
        "reason": evaluation.reason,
        "ask": evaluation.ask,
        "tells": evaluation.tells,
        "parents": list(evaluation.parents) or None,
        "optimizer_state": dict(evaluation.state) or None,
        "attempt": evaluation.attempt if evaluation.attempt != 1 else None,
        "seconds": dict(evaluation.seconds) or None,
        "versions": dict(evaluation.versions) or None,
    }
    always = {"digest": evaluation.digest, "split": evaluation.split, "role": evaluation.role}
    return always | {key: value for key, value in facts.items() if value is not None}


def _packed(evaluation: Evaluation, *, with_params: bool) -> dict[str, str]:
    """The large facts of an evaluation."""
    packed = pack_json("recipe", evaluation.recipe)
    if evaluation.genome is not None:
        packed |= pack("genome", _to_bytes(evaluation.genome))
    if evaluation.scores:
        packed |= pack("scores", b"".join(_to_bytes(v) for v in evaluation.scores.values()))
        parts = [_to_bytes(v.parts) for v in evaluation.scores.values() if is_corpus(v)]
        packed |= pack("parts", b"".join(parts)) if parts else {}
    if evaluation.descent is not None:
        packed |= pack_json("descent", asdict(evaluation.descent))
    if evaluation.weights is not None:
        packed |= pack_json("weights", evaluation.weights)
    if evaluation.answers:
        packed |= pack_json("answers", {t: _of_answers(f) for t, f in evaluation.answers.items()})
    if with_params:
        packed |= pack_json("params", dict(evaluation.params))
    return packed


def _of_answers(facts: AnswerFacts) -> dict[str, list[float | None]]:
    """Encode facts about a task's answers; null where one is not known."""
    return {
        key: [None if np.isnan(value) else round(float(value), 3) for value in values]
        for key, values in vars(facts).items()
    }


def _to_answers(columns: Mapping[str, list[float | None]]) -> AnswerFacts:
    return AnswerFacts(**{key: np.array(values, np.float64) for key, values in columns.items()})


def decode_evaluation(
    plain: Mapping[str, Any],
    packed: Mapping[str, Any],
    *,
    value: float | None,
    params: Mapping[str, Any],
    number: int,
    finished: datetime | None,
) -> Evaluation | None:
    """Decode a finished trial; None when evomerge did not write it, or it is damaged."""
    try:
        plain = {**plain, **unpack_plain(packed)}
        all_params = unpack_json("params", packed)
        return Evaluation(
            split=plain["split"],
            digest=plain["digest"],
            recipe=json.loads(unpack("recipe", packed) or ""),
            role=plain["role"],
            name=plain.get("name"),
            value=value,
            se=plain.get("se"),
            n=plain.get("n", 0),
            estimated=plain.get("estimated", False),
            estimates={task: (mean, se) for task, (mean, se) in plain.get("estimates", {}).items()},
            rungs=tuple(RungResult(*result) for result in plain.get("steps", ())),
            asked=plain.get("asked"),
            scores=decode_scores(plain.get("tasks", {}), packed),
            answers=decode_answers(packed),
            reason=plain.get("reason"),
            params=dict(params) if all_params is None else all_params,
            genome=decode_genome(packed),
            ask=plain.get("ask"),
            tells=plain.get("tells"),
            parents=tuple(plain.get("parents", ())),
            state=plain.get("optimizer_state", {}),
            attempt=plain.get("attempt", 1),
            seconds=plain.get("seconds", {}),
            versions=plain.get("versions", {}),
            weights=unpack_json("weights", packed),
            descent=_to_descent(unpack_json("descent", packed)),
            number=number,
            finished=finished,
            violation=violation_of(packed),
        )
    except (KeyError, ValueError):
        return None


def _to_descent(found: Mapping[str, Any] | None) -> DescentRecord | None:
    return None if found is None else DescentRecord.from_json(found)


def decode_genome(packed: Mapping[str, Any]) -> np.ndarray | None:
    """Decode a trial's genome, float64 [genes]; None where it has none."""
    found = unpack("genome", packed)
    return None if found is None else _from_bytes(found)


def decode_answers(packed: Mapping[str, Any]) -> dict[str, AnswerFacts]:
    """Decode task → facts about a trial's generated answers."""
    found = unpack_json("answers", packed) or {}
    return {task: _to_answers(columns) for task, columns in found.items()}


def violation_of(attributes: Mapping[str, Any]) -> float:
    """Read the sum by which constraints are broken from a trial's system attributes."""
    found = attributes.get("constraints:violation", 0.0)
    return float(found) if isinstance(found, int | float) else 0.0


def unpack_plain(packed: Mapping[str, Any]) -> dict[str, Any]:
    """Read the plain facts that were too long to be plain attributes."""
    names = [key.removesuffix(":0") for key in packed if key.endswith(":0")]
    return {
        name.removeprefix(PLAIN): unpack_json(name, packed)
        for name in names
        if name.startswith(PLAIN)
    }


def encode_marker(marker: Marker) -> dict[str, str]:
    """Encode a marker as study attributes `marker/<slot>:…`; a later one overwrites them."""
    facts: dict[str, Any] = {
        "slot": marker.slot,
        "digest": marker.digest,
        "split": marker.split,
        "attempt": marker.attempt,
        "ask": marker.ask,
        "tells": marker.tells,
        "genome": None if marker.genome is None else np.asarray(marker.genome, float).tolist(),
        "parents": list(marker.parents),
        "blameless": marker.not_counted,
    }
    if marker.progress is not None:
        facts["climb"] = _encode_progress(marker.progress)
    if marker.descent is not None:
        facts["descent"] = asdict(marker.descent)
    return pack_json(f"marker/{marker.slot}", facts)


def decode_markers(attributes: Mapping[str, Any]) -> list[Marker]:
    """Decode a study's markers, by slot; one cut short by a crash is left out."""
    markers = []
    for key in attributes:
        name, _, chunk = key.rpartition(":")
        if name.startswith("marker/") and chunk == "0":
            try:
                markers.append(_decode_marker(unpack_json(name, attributes)))
            except ValueError:
                continue
    return sorted(markers, key=lambda marker: marker.slot)


def _decode_marker(facts: Mapping[str, Any]) -> Marker:
    genome = facts["genome"]
    return Marker(
        slot=facts["slot"],
        digest=facts["digest"],
        split=facts["split"],
        attempt=facts["attempt"],
        ask=facts["ask"],
        tells=facts["tells"],
        genome=None if genome is None else np.array(genome, np.float64),
        parents=tuple(facts["parents"]),
        progress=_decode_progress(facts["climb"]) if "climb" in facts else None,
        not_counted=facts.get("blameless", False),
        descent=_to_descent(facts.get("descent")),
    )


def _encode_progress(progress: RungProgress) -> dict[str, Any]:
    scores = {task: np.asarray(values, float).tolist() for task, values in progress.scores.items()}
    results = [astuple(result) for result in progress.results]
    parts = {t: [v.aggregate, v.parts.tolist()] for t, v in progress.scores.items() if is_corpus(v)}
    facts = {"steps": results, "scores": scores, "seconds": dict(progress.seconds)}
    return facts | ({"parts": parts} if parts else {})


def _decode_progress(facts: Mapping[str, Any]) -> RungProgress:
    scores = {task: np.array(values, np.float64) for task, values in facts["scores"].items()}
    for task, (aggregate, parts) in facts.get("parts", {}).items():
        scores[task] = CorpusValues.of(aggregate, np.array(parts, np.float64))
    results = tuple(RungResult(*result) for result in facts["steps"])
    return RungProgress(results, scores, facts["seconds"])


def _to_bytes(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, "<f8").tobytes()


def _from_bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<f8").astype(np.float64)


def decode_scores(tasks: Mapping[str, Any], packed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Decode item scores; a corpus score comes from its documents' parts."""
    scores = _split_scores(tasks, unpack("scores", packed) or b"")
    corpora = {name: task for name, task in tasks.items() if "aggregate" in task}
    parts = _from_bytes(unpack("parts", packed) or b"")
    start = 0
    for name, task in corpora.items():
        end = start + task["n"] * task["parts"]
        found = parts[start:end].reshape(task["n"], task["parts"])
        scores[name] = CorpusValues.of(task["aggregate"], found)
        start = end
    return scores


def _split_scores(tasks: Mapping[str, Any], data: bytes) -> dict[str, np.ndarray]:
    """Cut the concatenated item scores at the tasks' lengths."""
    lengths = [task["n"] for task in tasks.values()]
    values = _from_bytes(data)
    if len(values) != sum(lengths):
        raise ValueError(f"scores: {len(values)} items where {sum(lengths)} were recorded")
    return dict(zip(tasks, np.split(values, np.cumsum(lengths)[:-1]), strict=True)) if tasks else {}


def _of_task(values: np.ndarray, estimated: bool) -> dict[str, float | int | str | None]:
    """Sum a task up for readers: its mean (None if not finite) and its number of items.

    Of an estimated evaluation, the mean is over the items that were measured. A corpus score has
    its aggregation, and how many parts each item has.
    """
    measured = values[~np.isnan(values)] if estimated else values
    mean = float(np.mean(measured)) if len(measured) else float("nan")
    found: dict[str, float | int | str | None] = {
        "mean": mean if np.isfinite(mean) else None,
        "n": len(values),
    }
    if is_corpus(values):
        found |= {"aggregate": values.aggregate, "parts": values.parts.shape[1]}
    return found | ({"measured": len(measured)} if estimated else {})
