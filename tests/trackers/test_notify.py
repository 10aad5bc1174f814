"""Messages: to a real web server on loopback, and to real commands."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tenacity

from evomerge.trackers import notify

WRITE = (
    "import json, os, sys; told = json.load(sys.stdin); "
    "told['environment'] = os.environ['EVOMERGE_EVENT'], os.environ['EVOMERGE_TEXT']; "
    "open(sys.argv[1], 'a').write(json.dumps(told) + chr(10))"
)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(notify._post.retry, "wait", tenacity.wait_none())


@pytest.fixture
def hook():
    """A web server that remembers what is posted; answers with the codes it is given, then 200."""

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.posted.append(body)
            self.send_response(server.codes.pop(0) if server.codes else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        server.posted, server.codes = [], []
        server.address = f"http://127.0.0.1:{server.server_port}/secret"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def to(hook, *when):
    return [{"webhook": hook.address, "when": list(when) or ["finish", "failure", "best"]}]


def events(hook):
    return [(message["event"], message.get("trial")) for message in hook.posted]


def test_a_webhook_hears_of_every_new_best_once_and_of_the_end(study, hook):
    with study.run(notify=to(hook)):
        study.references().search([0.3, 0.9, 0.2])
    assert events(hook) == [("best", 5), ("best", 6)]
    with study.run(notify=to(hook)):
        study.search([1.0]).finish()
    assert events(hook) == [("best", 5), ("best", 6), ("best", 8), ("finish", 8)]
    finish = hook.posted[-1]
    assert finish["scores"]["test"]["mean"] == pytest.approx(0.9, abs=0.15)
    assert finish["text"].startswith("invented: done: trial 8 reaches 0.")
    assert finish["folder"] == str(study.folder)
    best = study.study.evaluations()[8]
    assert (hook.posted[2]["value"], hook.posted[2]["digest"]) == (best.value, best.digest)


def test_what_was_on_record_before_and_a_campaign_that_was_done_are_no_news(study, hook):
    study.references().search([0.3, 0.9]).finish()
    with study.run(notify=to(hook)):
        pass
    assert hook.posted == []


def test_a_failure_is_told_with_its_reason_and_an_interruption_is_not(study, hook):
    with pytest.raises(KeyboardInterrupt), study.run(notify=to(hook)):
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), study.run(notify=to(hook)):
        raise RuntimeError("the disk is full")
    (message,) = hook.posted
    assert (message["event"], message["reason"]) == ("failure", "the disk is full")


def test_only_the_last_stage_tells_of_the_end(study, hook):
    study.study.set_note("stage", {"name": "blend", "place": 1, "of": 2})
    with study.run(notify=to(hook, "finish")):
        study.references().search([0.3]).finish()
    assert hook.posted == []
    study.study.set_note("stage", {"name": "flow", "place": 2, "of": 2})
    with study.run(notify=to(hook, "finish")):
        study.search([0.9]).finish()
    assert [event for event, _ in events(hook)] == ["finish"]


def test_a_webhook_is_tried_again_and_one_that_fails_stops_neither_campaign_nor_later_news(
    study, hook
):
    hook.codes = [503, 503, 200] + [500] * notify.ATTEMPTS
    with study.run(notify=to(hook)):
        study.references().search([0.3, 0.9, 1.0])
    assert [e for e, _ in events(hook)].count("best") == 3 + notify.ATTEMPTS + 1
    assert study.ear.lines == [
        "notify: 'best' could not be delivered (HTTPError); the campaign goes on"
    ]


def test_a_command_gets_the_message_on_its_input_and_in_its_environment(study, tmp_path):
    told = tmp_path / "told"
    command = [sys.executable, "-c", WRITE, str(told)]
    with study.run(notify=[{"command": command, "when": ["best"]}]):
        study.references().search([0.3])
    (message,) = map(json.loads, told.read_text().splitlines())
    assert message["environment"] == ["best", message["text"]]
    assert message["trial"] == 5


def test_a_command_is_run_in_no_shell(study, tmp_path):
    with study.run(notify=[{"command": f"true; touch {tmp_path}/made", "when": ["best"]}]):
        study.references().search([0.3])
    assert not (tmp_path / "made").exists()
    assert len(study.ear.lines) == 1
    assert "No such file" in study.ear.lines[0]


def test_a_command_that_fails_is_said(study):
    with study.run(notify=[{"command": "false", "when": ["best"]}]):
        study.references().search([0.3])
    assert "returned non-zero exit status 1" in study.ear.lines[0]


@pytest.mark.parametrize(
    ("level", "said"), [(0.05, "No merge beats `lang`"), (0.95, "Trial 5 beats the best parent")]
)
def test_the_end_is_told_with_its_verdict(study, hook, level, said):
    with study.run(notify=to(hook, "finish")):
        study.references().search([0.6]).finish(level)
    (message,) = hook.posted
    assert said in message["text"]
    assert message["verdict"]["text"].startswith(said)
