"""Exports on the hub: what is sent, and that nothing is unless it is meant."""

from __future__ import annotations

import pytest
import yaml
from fake_hub import TOKEN, hub_running
from huggingface_hub import constants
from typer.testing import CliRunner

from evomerge.cli import app

SCREEN = {"COLUMNS": "200"}


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine, and somebody who is logged in to it."""
    with hub_running() as running:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def export(folder, to, *options, code=0):
    one = [] if "--front" in options else ["--anyway"]
    command = ["export", folder / "run", *one, "--to", to, *options]
    result = CliRunner().invoke(app, [str(word) for word in command], env=SCREEN)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_push_makes_a_private_repository_with_every_file(finished, tmp_path, hub):
    out = tmp_path / "out"
    result = export(finished, out, "--push", "me/model", "--shard-size", "20KB")
    assert result.stdout.splitlines()[-1] == f"{hub.url}/me/model"
    assert hub.private == {"me/model": True}
    sent = {name: content for name, content in hub.repos["me/model"].items() if name[0] != "."}
    assert sent == files_of(out)
    assert len([name for name in sent if name.endswith(".safetensors")]) > 1
    card = yaml.safe_load(sent["README.md"].decode().split("---")[1])
    assert "merge" in card["tags"]


def test_a_public_repository_has_to_be_asked_for(finished, tmp_path, hub):
    export(finished, tmp_path / "out", "--push", "me/model", "--public")
    assert hub.private == {"me/model": False}


def test_a_push_that_failed_goes_on_without_writing_the_export_again(finished, tmp_path, hub):
    out = tmp_path / "out"
    hub.refused["/commit/"] = 400
    result = export(finished, out, "--push", "me/model", code=1)
    assert "--push me/model: the hub refused" in result.stderr
    assert "Traceback" not in result.output
    written = (out / "model.safetensors").stat().st_mtime_ns
    hub.refused.clear()
    export(finished, out, "--push", "me/model")
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert hub.repos["me/model"].keys() >= files_of(out).keys()


def test_a_repository_with_other_files_is_refused_and_left_as_it_is(finished, tmp_path, hub):
    hub.repos["me/model"] = {".gitattributes": b"", "model-00001-of-00002.safetensors": b"theirs"}
    result = export(finished, tmp_path / "out", "--push", "me/model", code=2)
    assert "holds model-00001-of-00002.safetensors" in result.stderr
    assert len(hub.repos["me/model"]) == 2


def test_without_a_token_nothing_is_written(finished, tmp_path, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    result = export(finished, tmp_path / "out", "--push", "me/model", code=2)
    assert "run `hf auth login`, or add --dry-run" in result.stderr
    hub.refused["whoami"] = 401
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    result = export(finished, tmp_path / "out", "--push", "me/model", code=2)
    assert "lets nobody in with this token" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached_is_one_message(finished, tmp_path, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    result = export(finished, tmp_path / "out", "--push", "me/model", code=1)
    assert "the hub cannot be reached" in result.stderr


@pytest.mark.parametrize("options", [["--dry-run"], []], ids=["dry run", "offline"])
def test_what_would_be_sent_is_shown_and_nothing_is(finished, tmp_path, hub, monkeypatch, options):
    if not options:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = export(finished, tmp_path / "out", "--push", "me/model", *options)
    assert hub.repos == {}
    for shown in ("model.safetensors", "README.md", "private if it is new", "nothing was sent"):
        assert shown in result.stderr
    size = (tmp_path / "out" / "recipe.json").stat().st_size / 1000
    assert f"{size:.1f} kB" in result.stderr
    assert "tags:\n- merge" in result.stderr
    assert str(finished / "models" / "base") in result.stderr.replace("\n", "")


def test_a_front_is_sent_as_one_repository(finished, tmp_path, hub):
    export(finished, tmp_path / "front", "--front", "--push", "me/front")
    sent = {name for name in hub.repos["me/front"] if name != ".gitattributes"}
    assert sent == set(files_of(tmp_path / "front"))
    assert "README.md" in sent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push", "a b"], "--push a b: "),
        (["--push", "me/model", "--format", "recipe"], "--push sends checkpoints"),
        (["--dry-run"], "add --push NAME/MODEL"),
        (["--front", "--trial", "1"], "give one of --trial, --front"),
        (["--front", "--archive"], "give one of --front, --archive"),
        (["--shard-size", "5 apples"], "--shard-size 5 apples: write a size such as 5GB"),
        (["--shard-size", "0GB"], "--shard-size 0GB: write a size"),
        (["--front", "--format", "mergekit"], "--front writes checkpoints or recipes"),
    ],
)
def test_what_does_not_go_together_is_one_clear_message(finished, tmp_path, options, message):
    result = export(finished, tmp_path / "out", *options, code=2)
    assert message in result.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()
