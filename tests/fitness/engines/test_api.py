"""A model served elsewhere: candidates go out as checkpoints, answers come back over HTTP."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from types import SimpleNamespace

import pytest
import requests
import tiny
import torch
import yaml
from serving import Server
from silent import Silent
from transformers import AutoTokenizer

from evomerge.campaign.in_flight import ATTEMPTS
from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.common.errors import CandidateError, InputError
from evomerge.config import load_campaign
from evomerge.study.run_folder import open_run
from evomerge.workers.worker import Worker, WorkerSpec

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@pytest.fixture
def folder(tiny_folder):
    """The tiny campaign's, with a generation task `say` beside `pick`."""
    tiny.save_task(tiny_folder / "tasks", items=16)
    documents = [json.loads(line) for line in (tiny_folder / "tasks" / "pick.jsonl").open()]
    for document in documents:
        document["word"] = document["options"][0]
    text = "".join(json.dumps(document) + "\n" for document in documents)
    (tiny_folder / "tasks" / "say.jsonl").write_text(text)
    task = tiny.generation_task("say", "{{word}}", tokens=4)
    (tiny_folder / "tasks" / "say.yaml").write_text(yaml.safe_dump(task))
    return tiny_folder


def engine(server, folder, **keys):
    return {
        "kind": "api",
        "url": server.address("v1/completions"),
        "checkpoint": str(folder / "candidate"),
        "reload": server.address("reload"),
        "args": {"max_retries": 1, "batch_size": 32},
        **keys,
    }


def fitness(engine, *tasks, **keys):
    return {
        "include_path": "tasks",
        "tasks": [{"task": task, **more} for task, more in tasks] or [{"task": "pick"}],
        "splits": {"search": 8, "select": 4, "test": 4},
        "select_top": 1,
        **({"engine": engine} if engine else {}),
        **keys,
    }


SAY = ("say", {"metric": "exact_match", "measures": ["response_tokens"]})


def opened(folder, engine, *tasks, **sections):
    tiny.save_campaign(folder, fitness=fitness(engine, *tasks), **sections)
    return prepare(load_campaign(folder / "campaign.yaml"))


def worker_of(setup):
    return Worker(WorkerSpec(setup.config, setup.items, threads=1))


def parent(setup, name="math"):
    return setup.space.parents()[name]


def values(worker, task):
    """What the requests of a task were answered with, last."""
    return [one.resps for group in worker._tasks._sources[task].requests for one in group]


def test_scores_are_those_of_the_model_in_the_worker(server, folder):
    tasks = (("pick", {}), SAY)
    here = opened(folder, None, *tasks)
    there = opened(folder, engine(server, folder), *tasks)
    recipe, workers = parent(here), [worker_of(here), worker_of(there)]
    ours, theirs = (worker.measure(recipe, "search").scores for worker in workers)
    for task in ("pick", "say"):
        assert theirs[task].tolist() == ours[task].tolist()
    one, other = (values(worker, "pick") for worker in workers)
    asked = [(a[0], b[0]) for a, b in zip(one, other, strict=True) if a]
    assert [b[0] for _, b in asked] == pytest.approx([a[0] for a, _ in asked], abs=1e-4)
    assert [b[1] for _, b in asked] == [a[1] for a, _ in asked]
    assert values(workers[0], "say") == values(workers[1], "say")
    assert server.loaded == [str(folder / "candidate")]


def test_a_server_says_which_answers_the_limit_cut_off(server, folder):
    here, there = opened(folder, None, SAY), opened(folder, engine(server, folder), SAY)
    recipe = parent(here)
    ours, theirs = (
        worker_of(setup).measure(recipe, "search", counted=True).answers["say"]
        for setup in (here, there)
    )
    assert theirs.cut.tolist() == ours.cut.tolist()
    assert ours.cut.sum() > 0
    assert (ours.tokens[ours.cut == 1] == 4).all()


def test_every_candidate_takes_the_place_of_the_last_and_is_loaded_once(server, folder):
    setup = opened(folder, engine(server, folder))
    worker = worker_of(setup)
    first = worker.measure(parent(setup, "math"), "search").scores["pick"]
    again = worker.measure(parent(setup, "math"), "search", setup.items["search"]).scores["pick"]
    assert (again == first).all()
    assert len(server.loaded) == 1
    worker.measure(parent(setup, "lang"), "search")
    assert server.loaded == [str(folder / "candidate")] * 2
    held = json.loads((folder / "candidate" / "recipe.json").read_text())
    assert held == json.loads(json.dumps(parent(setup, "lang").to_json()))


def test_a_command_may_load_it(server, folder):
    script = folder / "load.py"
    script.write_text(
        "import sys, requests\n"
        f"requests.post({server.address('reload')!r}, json={{'checkpoint': sys.argv[1]}})"
        ".raise_for_status()\n"
    )
    command = shlex.join([sys.executable, str(script)]) + " {checkpoint}"
    setup = opened(folder, engine(server, folder, reload=command))
    worker_of(setup).measure(parent(setup), "search")
    assert server.loaded == [str(folder / "candidate")]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_server_may_take_the_weights_in_place(server, folder, kind):
    here = opened(folder, None)
    there = opened(folder, engine(server, folder, reload={kind: server.address("")}))
    ours, theirs = worker_of(here), worker_of(there)
    for name in ("math", "lang"):
        for worker in (ours, theirs):
            worker.measure(parent(here, name), "search")
        found = [[one[0][0] for one in values(w, "pick") if one] for w in (ours, theirs)]
        assert found[1] == pytest.approx(found[0], abs=1e-4), "else they are the last candidate's"
    place = str(folder / "candidate")
    reload = {"method": "reload_weights", "kwargs": {"weights_path": place}}
    update = {"model_path": place, "flush_cache": True}
    assert (
        server.told
        == 2
        * {
            "vllm": [("/collective_rpc", reload), ("/reset_prefix_cache", None)],
            "sglang": [("/update_weights_from_disk", update)],
        }[kind]
    )
    assert server.loaded == [place] * 2


def test_a_prefix_cache_that_is_in_use_is_emptied_when_it_is_free(server, folder):
    server.held = 2
    setup = opened(folder, engine(server, folder, reload={"vllm": server.address("")}))
    worker_of(setup).measure(parent(setup), "search")
    assert [path for path, _ in server.told] == ["/collective_rpc"] + ["/reset_prefix_cache"] * 3
    server.held = 10**6
    setup = opened(folder, engine(server, folder, reload={"vllm": server.address("")}, timeout=0.1))
    with pytest.raises(InputError, match=r"vllm at http.* failed: .*other requests use it"):
        worker_of(setup).measure(parent(setup), "search")


def test_weights_that_are_not_taken_say_why(server, folder):
    for kind, refuses, said in (
        ("vllm", None, r"/collective_rpc is not there \(404\); .*VLLM_SERVER_DEV_MODE=1"),
        ("vllm", (500, {"error": "EngineCore died"}), "answered 500: .*EngineCore died.*its log"),
        ("sglang", (404, {}), "is not there .*give the root of an SGLang server"),
        ("sglang", (400, {"success": False, "message": "no such folder"}), "400: .*no such folder"),
        ("sglang", (200, {"success": False, "message": "busy"}), "failed: busy"),
    ):
        server.refuses, server.dev = refuses, refuses is not None
        setup = opened(folder, engine(server, folder, reload={kind: server.address("")}))
        with pytest.raises(InputError, match=rf"fitness.engine.reload: {kind} at http.*{said}"):
            worker_of(setup).measure(parent(setup), "search")


def test_a_folder_without_room_is_said_before_anything_is_written(server, folder, monkeypatch):
    setup = opened(folder, engine(server, folder))
    worker = worker_of(setup)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"checkpoint: .*candidate needs .* GB, and 1e-06 GB are"):
        worker.measure(parent(setup), "search")
    assert not (folder / "candidate").exists()


def test_requests_may_be_sent_side_by_side(server, folder):
    setup = opened(folder, engine(server, folder), ("pick", {}), SAY)
    alone = worker_of(setup).measure(parent(setup), "search").scores
    args = {"num_concurrent": 4, "max_retries": 1, "batch_size": 2}
    setup = opened(folder, engine(server, folder, args=args), ("pick", {}), SAY)
    together = worker_of(setup).measure(parent(setup), "search").scores
    for task in ("pick", "say", "say.response_tokens"):
        assert together[task].tolist() == alone[task].tolist()


def test_chats_are_put_together_by_the_server(server, folder):
    for name in ("base", "math", "lang"):
        tokenizer = AutoTokenizer.from_pretrained(folder / "models" / name)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder / "models" / name)
    chat = engine(server, folder, url=server.address("v1/chat/completions"))
    task = ("say", {**SAY[1], "apply_chat_template": True})
    here, there = opened(folder, None, task), opened(folder, chat, task)
    ours, theirs = (worker_of(setup) for setup in (here, there))
    expected = ours.measure(parent(here), "search").scores["say"]
    assert theirs.measure(parent(there), "search").scores["say"].tolist() == expected.tolist()
    assert server.seen[0]["messages"][0]["role"] == "user"
    assert values(ours, "say") == values(theirs, "say")


def test_what_lm_eval_assumes_of_every_model_is_told_of_this_one(server, folder):
    for name in ("base", "math", "lang"):
        path = folder / "models" / name / "tokenizer.json"
        content = json.loads(path.read_text())
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        }
        path.write_text(json.dumps(content))
    here, there = opened(folder, None, SAY), opened(folder, engine(server, folder), SAY)
    ours, theirs = (worker_of(setup) for setup in (here, there))
    assert theirs._engine.lm.max_length == 64 - 1  # one token is left for the answer
    ours.measure(parent(here), "search")
    theirs.measure(parent(there), "search")
    assert all(payload["prompt"][0][0] == 1 for payload in server.seen)
    assert values(ours, "say") == values(theirs, "say")


def run(folder, out="run"):
    config = load_campaign(folder / "campaign.yaml")
    with open_campaign(prepare(config), folder / out, Silent()) as campaign:
        campaign.run()
    return open_run(folder / out)[1].evaluations()


def facts(evaluations):
    return [
        (e.role, e.name, e.split, e.digest, {t: v.tolist() for t, v in e.scores.items()})
        for e in evaluations
    ]


def test_a_campaign_goes_on_when_its_server_is_back_and_finds_what_the_worker_finds(
    server, folder, monkeypatch
):
    sections = {
        "models": {"base": "models/base", "experts": {"math": "models/math"}},
        "budget": {"trials": 2},
        "optimizer": {"kind": "random"},
    }
    tiny.save_campaign(folder, fitness=fitness(None), **sections)
    here = facts(run(folder, out="here"))
    tiny.save_campaign(folder, fitness=fitness(engine(server, folder)), **sections)
    load = Server.load

    def breaking(self, place):
        """Down for good from the second trial on."""
        load(self, place)
        self.broken = 503 if len(self.loaded) == 6 else None

    monkeypatch.setattr(Server, "load", breaking)
    for _ in range(ATTEMPTS + 1):  # more often than a candidate may be tried
        with pytest.raises(InputError, match=r"fitness.engine.(url|reload)"):
            run(folder)
    assert len(server.loaded) == 6
    server.broken = None
    assert facts(run(folder)) == here


def test_a_reload_that_fails_says_why(server, folder):
    for reload, said in (
        ("echo no room >&2; exit 3 # {checkpoint}", "CalledProcessError: no room"),
        ("http://127.0.0.1:9/reload", "'http://127.0.0.1:9/reload' failed: ConnectionError"),
        (server.address("v1/reload"), "failed: HTTPError"),
        ("sleep 5", "TimeoutExpired"),
    ):
        server.broken = 500
        setup = opened(folder, engine(server, folder, reload=reload, timeout=0.5))
        with pytest.raises(InputError, match=rf"fitness.engine.reload: .*{said}"):
            worker_of(setup).measure(parent(setup), "search")


def test_an_answer_that_is_none_says_so(server, folder):
    setup = opened(folder, engine(server, folder))
    worker = worker_of(setup)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "scored", lambda *_: {"text": "no log-probabilities here"})
        with pytest.raises(InputError, match=r"fitness.engine.url: .*did not answer as an OpenAI"):
            worker.measure(parent(setup), "search")
        patch.setattr(
            Server,
            "scored",
            lambda _, tokens, asked: {
                "logprobs": {
                    "token_logprobs": [None] + [float("nan")] * len(tokens),
                    "top_logprobs": [None] + [{"1": 0.0}] * len(tokens),
                }
            },
        )
        with pytest.raises(CandidateError, match="came back as nan"):
            worker.measure(parent(setup), "search")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoint": "candidate"}, "checkpoint: candidate is relative"),
        ({"checkpoint": "{folder}/models"}, "checkpoint: .*holds something else than a candidate"),
        ({"url": "localhost:8000"}, r"url: localhost:8000 is no http\(s\) address"),
        ({"args": {"num_concurent": 2}}, "args.num_concurent: no such argument; did you mean"),
        ({"args": {"model": "x"}}, "args.model: no such argument"),
        ({"reload": None}, "reload: "),
        ({"reload": {"vlm": "http://x"}}, r"reload: expected 'vllm' or 'sglang' \(found 'vlm'\)"),
        ({"reload": {"vllm": "x:8000"}}, r"reload.vllm: x:8000 is no http\(s\) address"),
        ({"retries": 3}, "retries: unknown option of api"),
        ({"url": "http://x/v1/chat/completions"}, r"fitness.tasks: pick asks for log-likelihoods"),
        ({"kind": "vlm"}, "kind: no engine is called 'vlm'"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(change, said, server, folder):
    change = {
        key: value.format(folder=folder) if isinstance(value, str) else value
        for key, value in change.items()
    }
    with pytest.raises(InputError, match=rf"(fitness.engine.)?{said}"):
        opened(folder, {**engine(server, folder), **change})
    assert not server.loaded


def test_weights_in_place_keep_the_number_of_layers(server, folder):
    with pytest.raises(InputError, match=r"reload: vllm takes weights in place only for as many"):
        opened(
            folder,
            engine(server, folder, reload={"vllm": "http://x"}),
            space={"path": {"kind": "slices"}},
        )


def test_chats_need_their_templates_asked_for(server, folder):
    chat = engine(server, folder, url=server.address("v1/chat/completions"))
    with pytest.raises(InputError, match=r"say needs apply_chat_template: true for chats"):
        opened(folder, chat, SAY)


def test_a_server_holds_one_candidate_at_a_time(server, folder):
    with pytest.raises(InputError, match=r"there can be one worker, not 2; args: {num_concurrent"):
        opened(folder, engine(server, folder), workers={"count": 2})


def test_functions_need_the_model_in_the_worker(server, folder):
    (folder / "mine.py").write_text("def mine(model, tokenizer, items):\n    return []\n")
    own = {"callable": "mine:mine", "documents": "tasks/pick.jsonl"}
    tiny.save_campaign(folder, fitness={**fitness(engine(server, folder)), "tasks": [own]})
    with pytest.raises(InputError, match=r"mine is a callable, which needs the model"):
        prepare(load_campaign(folder / "campaign.yaml"))


def test_an_older_candidate_may_be_replaced(server, folder):
    (folder / "candidate").mkdir()
    setup = opened(folder, engine(server, folder))
    worker_of(setup).measure(parent(setup), "search")
    opened(folder, engine(server, folder))


def test_the_engine_is_part_of_what_must_not_change_and_its_address_is_not(server, folder):
    stock = opened(folder, None).identity
    assert "engine" not in stock["fitness"]
    spelt = opened(folder, {"kind": "hf", "batch_tokens": 100}).identity
    assert spelt == stock
    api = opened(folder, engine(server, folder)).identity
    assert api["fitness"]["engine"] == {"kind": "api", "chat": False, "args": {}}
    moved = engine(server, folder, url="http://elsewhere/v1/completions", args={"timeout": 3})
    assert opened(folder, moved).identity == api
    begun = engine(server, folder, args={"add_bos_token": True})
    assert opened(folder, begun).identity != api


def test_the_server_of_these_tests_answers_as_openai_does(server, folder):
    """Guards the tests above: lm-eval reads other numbers where a server counts otherwise."""
    server.load(str(folder / "models" / "base"))
    payload = {"prompt": [[5, 6, 7]], "echo": True, "logprobs": 1, "max_tokens": 1}
    answer = requests.post(server.address("v1/completions"), json=payload).json()
    (choice,) = answer["choices"]
    with torch.no_grad():
        logprobs = server.model(torch.tensor([[5, 6, 7]])).logits[0].log_softmax(-1)
    assert choice["logprobs"]["token_logprobs"][:3] == pytest.approx(
        [None, float(logprobs[0, 6]), float(logprobs[1, 7])]
    )
    assert len(choice["logprobs"]["token_logprobs"]) == 4
