"""Engine api with a real vLLM server, which loads every candidate's weights in place."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import requests
import yaml
from lm_eval.api.instance import Instance

from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.workers.worker import Worker, WorkerSpec

SETTINGS = {"until": ["w5"], "max_gen_toks": 12, "do_sample": False}
# Longer than a block of the prefix cache, of which only whole ones are remembered.
PROMPTS = [" ".join(f"w{(i * j + 7) % 60}" for j in range(1, 41)) for i in range(8)]
SAID = [Instance("generate_until", {}, (prompt, SETTINGS), i) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """Yield the root address of a server that was started with the base model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    words += ["--model", folder / "models" / "base", "--served-model-name", "candidate"]
    words += ["--host", "127.0.0.1", "--port", port, "--dtype", "float32"]
    words += ["--max-model-len", "64", "--enforce-eager"]
    words += ["--enable-prefix-caching", "--block-size", "32"]
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    said = tmp_path_factory.mktemp("server") / "log"
    with said.open("w") as log:
        running = subprocess.Popen(
            [*map(str, words)], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    root = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 600
        while not healthy(root):
            assert running.poll() is None, said.read_text()[-3000:]
            assert time.monotonic() < deadline, said.read_text()[-3000:]
            time.sleep(0.5)
        yield root
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)


def healthy(root):
    try:
        return requests.get(f"{root}/health", timeout=5).ok
    except requests.ConnectionError:
        return False


def hits(root):
    """Count the tokens that the server found in its prefix cache."""
    lines = requests.get(f"{root}/metrics", timeout=60).text.splitlines()
    found = [line for line in lines if line.startswith("vllm:prefix_cache_hits_total")]
    return sum(float(line.split()[-1]) for line in found)


@pytest.fixture(scope="module")
def workers(folder, server, tmp_path_factory):
    """One with the model in itself, and one that asks the server."""
    api = {
        "kind": "api",
        "url": f"{server}/v1/completions",
        "checkpoint": str(tmp_path_factory.mktemp("served") / "candidate"),
        "reload": {"vllm": server},
        "args": {"max_retries": 1, "num_concurrent": 4},
    }
    found = []
    for engine in ({"kind": "hf"}, api):
        text = yaml.safe_dump(engine, default_flow_style=True, width=1000)
        config = load_campaign(folder / "campaign.yaml", [f"fitness.engine={text}"])
        setup = prepare(config)
        found.append((setup, Worker(WorkerSpec(setup.config, setup.items, threads=1))))
    return found


def texts(worker):
    """Answers without the space that vLLM, which decodes them behind the prompt, begins with."""
    return [one.value.lstrip() for one in worker._engine.answer(SAID, True)]


def test_candidates_in_turn_give_their_own_answers(workers, server):
    (setup, here), (_, there) = workers
    parents = setup.space.parents()
    first, second = list(parents.values())[:2]
    wanted, found = [], []
    for recipe in (first, second, first):
        for worker, answers in ((here, wanted), (there, found)):
            worker._engine.load(recipe)
            answers.append(texts(worker))
            before = hits(server)
            assert texts(worker) == answers[-1]
            assert worker is here or hits(server) > before, "the prefix cache was used"
    assert found == wanted
    assert found[0] != found[1]


def test_scores_are_those_of_the_model_in_the_worker(workers):
    (setup, here), (_, there) = workers
    for name in setup.space.parents():
        recipe = setup.space.parents()[name]
        ours, theirs = (worker.measure(recipe, "search").scores for worker in (here, there))
        assert {task: values.tolist() for task, values in theirs.items()} == {
            task: values.tolist() for task, values in ours.items()
        }
