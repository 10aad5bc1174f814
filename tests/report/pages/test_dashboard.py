"""The live page: what it answers, and what it refuses."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from invented import Invented
from starlette.testclient import TestClient
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.common.errors import InputError
from evomerge.report.pages import dashboard as room
from evomerge.report.pages.dashboard import Content, dashboard, is_loopback, listen


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """The page is made anew at every question."""
    monkeypatch.setattr(room, "SECONDS", 0.0)
    monkeypatch.setattr(room, "SHARE", 1e9)


def client(folder, hosts=("localhost",)):
    return TestClient(dashboard(Content(folder), list(hosts)), base_url="http://localhost")


def test_the_page_names_its_own_scripts_and_no_one_elses(finished):
    page = client(finished.folder)
    answer = page.get("/")
    named = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert named == ["plotly.js", "page.js", "live.js"]
    assert all(page.get(f"/{name}").status_code == 200 for name in named)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy, "nothing inline is run"
    assert "<script>" not in answer.text


def test_the_content_is_the_reports(finished):
    text = client(finished.folder).get("/content").text
    for words in (
        "figure-progress-data",
        "The winner, trial",
        "beats the best parent",
        "out of memory",
        "6 of 6",
    ):
        assert words in text, words
    assert "Workers, cost and time" in text


def test_a_losing_campaign_says_so(losing):
    text = client(losing.folder).get("/content").text
    assert '<p class="headline verdict loses">No merge beats <code>lang</code>: trial 5' in text
    assert "The best merge, trial 5 of the study, number 1 of 2 tried, scores" in text
    assert "The winner" not in text


def test_new_trials_are_seen_and_what_has_not_changed_is_not_sent_again(extensible):
    page = client(extensible.folder)
    first = page.get("/content")
    again = page.get("/content", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    extensible.search([0.9])
    news = page.get("/content", headers={"If-None-Match": first.headers["ETag"]})
    assert news.status_code == 200
    assert "7 of 6" in news.text


def test_a_campaign_that_has_only_begun_is_shown(tmp_path):
    run = Invented(tmp_path / "run")
    page = client(run.folder)
    assert "No trial has succeeded yet" in page.get("/content").text
    run.references().search([0, 0], {0: "oom", 1: "oom"})
    text = page.get("/content").text
    assert "No trial has succeeded yet" in text
    assert "2 trials failed" in text
    run.add(run.recipe(), 0.5, pruned=10)
    text = page.get("/content").text
    assert "No trial has succeeded yet" in text, "an estimate is no best"
    assert "1 pruned" in text


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_there_is_nothing_that_writes(finished, method):
    page = client(finished.folder)
    for path in ("/", "/content", "/page.js"):
        assert page.request(method, path).status_code == 405


def test_other_names_and_other_files_are_refused(finished):
    page = client(finished.folder)
    assert page.get("/", headers={"Host": "evil.example"}).status_code == 400
    for path in ("/study.db", "/../campaign.yaml", "/%2e%2e/campaign.yaml", "/report.html.j2"):
        assert page.get(path).status_code == 404


def test_what_the_campaign_names_is_text(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    run = Invented(tmp_path / "run", tasks=(evil, "mul"))
    run.references().search([0.5, 0], {1: evil})
    text = client(run.folder).get("/content").text
    assert "<img" not in text
    assert "<script>" not in text


def test_a_study_that_cannot_be_read_is_said_and_the_page_stays(extensible):
    page = client(extensible.folder)
    (extensible.folder / "campaign.yaml").rename(extensible.folder / "gone.yaml")
    answer = page.get("/content")
    assert answer.status_code == 503
    assert "no run here" in answer.text
    (extensible.folder / "gone.yaml").rename(extensible.folder / "campaign.yaml")
    assert page.get("/content").status_code == 200


def test_making_the_page_takes_no_more_than_its_share(extensible, monkeypatch):
    monkeypatch.setattr(room, "SHARE", 1e-9)
    page = client(extensible.folder)
    first = page.get("/content").text
    extensible.search([0.4])
    assert page.get("/content").text == first, "not yet"


def test_an_address_that_cannot_be_had_is_one_clear_message():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: cannot listen there"):
            listen("127.0.0.1", port)
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "ten")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_a_folder_without_a_run_is_bad_input(tmp_path):
    result = CliRunner().invoke(app, ["dashboard", str(tmp_path), "--port", "0"])
    assert result.exit_code == 2
    assert "no run here" in result.output


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_the_command_listens_where_it_says_warns_of_others_and_ends_on_ctrl_c(
    finished, host, warned
):
    arguments = ["dashboard", str(finished.folder), "--port", "0", "--host", host]
    code = (
        "import sys; from evomerge.cli import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        url = server.stdout.readline().strip()
        with urllib.request.urlopen(url.replace("0.0.0.0", "localhost") + "content") as answer:
            assert "figure-progress" in answer.read().decode()
        stranger = urllib.request.Request(
            url.replace("0.0.0.0", "localhost"), headers={"Host": "evil.example"}
        )
        if warned:
            urllib.request.urlopen(stranger).close()
        else:
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(stranger)
        server.send_signal(signal.SIGINT)
        _, said = server.communicate(timeout=30)
    assert ("other machines can read this page" in said) == warned
    assert server.returncode == 0
    assert "Traceback" not in said


def test_nothing_is_made_anew_while_the_study_stays_as_it_is(extensible, monkeypatch):
    made = []
    view_of = room.view_of
    monkeypatch.setattr(room, "view_of", lambda study: made.append(1) or view_of(study))
    page = client(extensible.folder)
    page.get("/content")
    page.get("/content")
    assert len(made) == 1
    extensible.search([0.4])
    page.get("/content")
    assert len(made) == 2


def test_a_losing_campaign_says_so_on_the_live_page(losing, midway):
    text = client(losing.folder).get("/content").text
    assert "No merge beats <code>lang</code>: trial 5" in text
    assert "best on search" in text
    text = client(midway.folder).get("/content").text
    assert "Best so far: trial 6" in text
    assert "best so far, on search" in text
