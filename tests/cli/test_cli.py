"""The command line as a user meets it: what is printed, and with which exit code."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import optuna
import pytest
import tiny
import torch
import yaml
from command_line import evomerge
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a finished run in `run/`."""
    folder = tmp_path_factory.mktemp("done")
    tiny.save_campaign(folder)
    result = evomerge("search", folder / "campaign.yaml", "--out", folder / "run")
    assert "winner" in result.stdout
    return folder


def test_best_prints_one_json_object_in_the_documented_form(done):
    best = json.loads(evomerge("best", done / "run", "--json").stdout)
    assert {"trial", "digest", "recipe", "scores", "parents", "baselines"} <= set(best)
    assert set(best["scores"]) == {"search", "select", "test"}
    for scores in (best["scores"], *best["parents"].values(), *best["baselines"].values()):
        for split in scores.values():
            assert {"mean", "low", "high", "tasks"} <= set(split)
            assert set(split["tasks"]["pick"]) == {"mean", "n"}


def test_compare_prints_one_json_object_and_writes_page_picture_and_data(tiny_folder):
    out = tiny_folder / "compare"
    arguments = ["--optimizers", "cma,random", "--seeds", 1, "--trials", 2, "--out", out]
    found = evomerge("compare", tiny_folder / "campaign.yaml", *arguments, "--json")
    assert set(json.loads(found.stdout)["optimizers"]) == {"cma", "random"}
    assert {path.suffix for path in out.glob("compare.*")} == {".html", ".png", ".json"}
    evomerge("best", out / "cma" / "seed-0")
    evomerge("compare", tiny_folder / "campaign.yaml", "--optimizers", "cmaa", code=2)


def test_status_prints_one_json_object_in_the_documented_form(done):
    status = json.loads(evomerge("status", done / "run", "--json").stdout)
    assert status["trials"] == status["completed"] == len(status["digests"]) == 12
    assert status["done"] is True
    assert status["item_evaluations"] == 19 * 30 + 10 * 12 + 8 * 18
    assert {"pruned", "failed", "failures", "best", "seconds"} <= set(status)


def test_tables_name_every_parent_and_baseline(done):
    text = evomerge("best", done / "run").stdout
    for name in ("winner", "base", "math", "lang", "task_arithmetic default", "average"):
        assert name in text
    assert "done" in evomerge("status", done / "run").stdout


def test_check_counts_items_and_genes(done):
    text = evomerge("check", done / "campaign.yaml", "--no-measure").stdout
    assert "LlamaForCausalLM, 2 layers" in text
    assert "10 genes" in text
    assert "mapped from their files, on the CPU" in text
    assert "pick" in text


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("methods", ["ties", "density", "dare_linear", "2306.01708"]),
        ("optimizers", ["cma", "population", "random"]),
        ("objectives", ["mean", "temperature", "normalized", "prefer"]),
        ("engines", ["hf", "batch_tokens", "api", "checkpoint"]),
        ("trackers", ["tensorboard", "mlflow", "experiment = none", "wandb"]),
    ],
)
def test_list_shows_every_plug_with_its_parameters(what, words):
    text = evomerge("list", what).stdout
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "list methods",
        "list optimizers",
        "list engines",
        "list trackers",
        "status run",
        "best run",
    ],
)
def test_quick_commands_do_not_import_torch(done, command):
    code = (
        "import sys; from evomerge.cli import app\n"
        f"try: app({command.split()!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=done, check=False).returncode == 0


def test_stock_lm_eval_on_the_export_prints_the_campaigns_score_item_for_item(done, tmp_path):
    result = evomerge("export", done / "run", "--to", tmp_path / "out")
    [command] = [line.strip() for line in result.stderr.splitlines() if "lm_eval --model" in line]
    command += f" --log_samples --output_path {shlex.quote(str(tmp_path / 'log'))}"
    stock = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert stock.returncode == 0, stock.stderr
    [samples] = (tmp_path / "log").rglob("samples_pick_*.jsonl")
    theirs = {s["doc_hash"]: s["acc"] for s in map(json.loads, samples.read_text().splitlines())}

    from evomerge.study.run_folder import open_run

    _, study = open_run(done / "run")
    items, digest = (
        study.items(),
        json.loads(evomerge("best", done / "run", "--json").stdout)["digest"],
    )
    ours = {}
    for evaluation in study.evaluations():
        if evaluation.digest == digest:
            ids = items[evaluation.split]["pick"]
            ours.update(zip(ids, evaluation.scores["pick"].tolist(), strict=True))
    assert len(ours) == 60
    assert ours == theirs
    [results] = (tmp_path / "log").rglob("results_*.json")
    printed = json.loads(results.read_text())["results"]["pick"]["acc,none"]
    assert printed == pytest.approx(sum(ours.values()) / 60)


def test_an_exported_folder_is_complete(done, tmp_path):
    evomerge("export", done / "run", "--to", tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "recipe.json", "tokenizer.json"} <= found
    best = json.loads(evomerge("best", done / "run", "--json").stdout)
    assert json.loads((tmp_path / "out" / "recipe.json").read_text()) == best["recipe"]


def test_any_trial_can_be_exported(done, tmp_path):
    from evomerge.study.run_folder import open_run

    evaluations = open_run(done / "run")[1].evaluations()
    [number] = [e.number for e in evaluations if (e.name, e.split) == ("math", "search")]
    evomerge("export", done / "run", "--trial", number, "--to", tmp_path / "math")
    ours = load_file(tmp_path / "math" / "model.safetensors")
    theirs = load_file(done / "models" / "math" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    text = evomerge("export", done / "run", "--trial", 999, "--to", tmp_path / "x", code=2).output
    assert "no such trial" in text


def test_optuna_pandas_and_its_command_line_read_the_study(done):
    url = f"sqlite:///{done / 'run' / 'study.db'}"
    study = optuna.load_study(study_name="tiny", storage=url)
    frame = study.trials_dataframe()
    own = frame[frame["params_weight.layer_0.math"].notna()]
    assert len(own) == 12
    assert own["value"].between(0, 1).all()
    best = json.loads(evomerge("status", done / "run", "--json").stdout)["best"]
    assert study.best_trial.number == best["trial"]
    optuna_cli = os.path.join(os.path.dirname(sys.executable), "optuna")
    command = [optuna_cli, "trials", "--storage", url, "--study-name", "tiny", "-f", "json"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    trials = json.loads(listed.stdout)
    assert len(trials) == len(frame)
    listed_params = [t["params"] for t in trials if t["params"]]
    assert len(listed_params) == 12
    assert all("weight.layer_0.math" in params for params in listed_params)


def _heeding_interrupts():
    """A shell that starts the tests in the background has SIGINT ignored, and children inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_interrupting_is_exit_code_three_and_resumable(tiny_folder):
    command = [sys.executable, "-m", "evomerge", "search", "campaign.yaml", "--out", "run"]
    command += ["--trials", "4000"]
    process = subprocess.Popen(
        command,
        cwd=tiny_folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heeding_interrupts,
    )
    while process.poll() is None and not (tiny_folder / "run" / "study.db.driver").exists():
        time.sleep(0.02)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert "nothing recorded is lost" in errors
    assert "Traceback" not in errors
    done = json.loads(evomerge("status", tiny_folder / "run", "--json").stdout)["trials"]
    evomerge(
        "search", tiny_folder / "campaign.yaml", "--out", tiny_folder / "run", "--trials", done + 1
    )
    after = json.loads(evomerge("status", tiny_folder / "run", "--json").stdout)
    assert (after["trials"], after["done"]) == (done + 1, True)


def test_run_search_is_the_search_command(tiny_folder):
    script = os.path.join(os.path.dirname(__file__), "..", "..", "run_search.py")
    process = subprocess.run(
        [sys.executable, script, "campaign.yaml", "--trials", "1"],
        cwd=tiny_folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert (tiny_folder / "runs" / "tiny" / "study.db").exists()


def edit(folder, change):
    path = folder / "campaign.yaml"
    data = yaml.safe_load(path.read_text())
    change(data)
    path.write_text(yaml.safe_dump(data))


def weights(data):
    return data["space"]["weights"]


def unknown_key(folder):
    edit(folder, lambda d: weights(d).update(granularty="layer"))


def unknown_task(folder):
    edit(folder, lambda d: d["fitness"]["tasks"][0].update(task="pik"))


def unknown_metric(folder):
    edit(folder, lambda d: d["fitness"]["tasks"][0].update(metric="accuracy"))


def splits_smaller_than_an_item(folder):
    edit(
        folder,
        lambda d: d["fitness"].update(splits={"search": 0.98, "select": 0.01, "test": 0.01}),
    )


def expert_equal_to_the_base(folder):
    edit(folder, lambda d: d["models"]["experts"].update(math="models/base"))


def missing_folder(folder):
    edit(folder, lambda d: d["models"]["experts"].update(math="./models/maths"))


def missing_weights(folder):
    (folder / "models" / "math" / "model.safetensors").unlink()


def corrupt_shard(folder):
    path = folder / "models" / "math" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def wrong_shape(folder):
    path = folder / "models" / "math" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(47, 32, dtype=torch.float16)
    save_file(tensors, path, metadata={"format": "pt"})


def not_yaml(folder):
    (folder / "campaign.yaml").write_text("name: [")


def unknown_optimizer(folder):
    edit(folder, lambda d: d.update(optimizer={"kind": "cmaes"}))


def unknown_objective(folder):
    edit(folder, lambda d: d["fitness"].update(objective="meen"))


BAD = [
    (unknown_key, "space.weights.granularty: unknown key; did you mean 'granularity'?"),
    (unknown_task, "'pik'"),
    (unknown_metric, "'accuracy'"),
    (splits_smaller_than_an_item, "would be empty: 0.01 of the 60 items"),
    (expert_equal_to_the_base, "models.experts.math: equal to the base"),
    (missing_folder, "maths"),
    (missing_weights, "models.experts.math"),
    (corrupt_shard, "model.safetensors"),
    (wrong_shape, "model.layers.0.mlp.up_proj.weight has shape [47, 32]"),
    (not_yaml, "campaign.yaml: not valid YAML"),
    (unknown_optimizer, "optimizer.kind: no optimizer is called 'cmaes'; did you mean 'cma'?"),
    (unknown_objective, "fitness.objective: no objective is called 'meen'"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
@pytest.mark.parametrize("command", ["check", "search"])
def test_bad_input_is_one_clear_message_before_any_work(tiny_folder, command, spoil, message):
    spoil(tiny_folder)
    extra = ["--out", tiny_folder / "run"] if command == "search" else []
    result = evomerge(command, tiny_folder / "campaign.yaml", *extra, code=2)
    assert message in result.stderr.replace("\n", "")
    assert result.stdout == ""
    assert not (tiny_folder / "run").exists()


def test_a_study_of_another_campaign_or_lm_eval_is_refused_and_untouched(done, monkeypatch):
    before = (done / "run" / "study.db").read_bytes()
    search = ["search", done / "campaign.yaml", "--out", done / "run"]
    text = evomerge(*search, "--seed", 5, code=2).stderr.replace("\n", "")
    assert "belongs to another campaign: seed is 0 in the study, 5 in the campaign file" in text
    monkeypatch.setattr("evomerge.campaign.setup.version", lambda _: "9.9")
    text = evomerge(*search, code=2).stderr.replace("\n", "")
    assert "lm-eval" in text
    assert "9.9" in text
    assert (done / "run" / "study.db").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_refused(tiny_folder):
    (tiny_folder / "file").write_text("in the way")
    out = tiny_folder / "file" / "run"
    text = evomerge("search", tiny_folder / "campaign.yaml", "--out", out, code=2).stderr
    assert "cannot be written" in text.replace("\n", " ")
    assert str(out) in text.replace("\n", "")


def test_an_export_without_room_is_refused(done, tmp_path, monkeypatch):
    from evomerge.materialize.disk import stream

    usage = stream.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: usage)
    text = evomerge("export", done / "run", "--to", tmp_path / "out", code=2).stderr
    assert "make room or choose another folder" in text.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["status", "best", "export"])
def test_a_folder_without_a_run_is_refused(tmp_path, command):
    extra = ["--to", tmp_path / "out"] if command == "export" else []
    assert "no run here" in evomerge(command, tmp_path, *extra, code=2).stderr.replace("\n", " ")


def test_overrides_reach_the_campaign_and_misspelt_ones_are_refused(done):
    quick = ["check", done / "campaign.yaml", "--no-measure"]
    text = evomerge(*quick, "--set", "space.weights.method=ties").stdout
    assert "ties, 10 genes" in text
    check = ["check", done / "campaign.yaml", "--set"]
    assert "budgt: unknown key" in evomerge(*check, "budgt.trials=3", code=2).stderr
    assert "key.path=value" in evomerge(*check, "budget", code=2).stderr
    assert "not a section" in evomerge(*check, "name.first=x", code=2).stderr


def test_until_must_be_a_time_of_day(done):
    command = ["search", done / "campaign.yaml", "--until", "8 o'clock"]
    assert "HH:MM" in evomerge(*command, code=2).stderr
