"""Record what commit d1ad876 makes of small campaigns and recipes, into the folder of this file.

    git worktree add ../d1ad876 d1ad876
    python tests/recorded/make.py ../d1ad876

It runs that checkout's code and its tests' helpers, and calls them by their names of that commit.
Everything is made in `PLACE` and then copied, so that no other folder's name is on record.
"""

# ruff: noqa: I001 (the modules are another commit's)
from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMIT = "d1ad876"
PLACE = Path("/tmp/recorded")
HERE = Path(__file__).parent
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
EXPERTS = ("math", "lang", "code")

# Campaigns

METRIC = '''"""A metric of one's own, which refuses some candidates."""

import torch


def closeness(model, tokenizer, items):
    """Score how near the model's next word is to the one that is wanted: 0 at best, above -1."""
    if float(model.lm_head.weight.float().std()) > 0.0235:
        raise ValueError("the head has grown too large")
    tokens = torch.tensor([tokenizer.encode(item["text"]) for item in items])
    wanted = torch.tensor([tokenizer.encode(item["word"])[0] for item in items])
    found = model(tokens.to(model.device)).logits[:, -1].argmax(-1).cpu()
    return -(found - wanted).abs() / 32
'''
WEIGHTS = {"weights": {"method": "task_arithmetic", "genes": {"weight": [0, 1.5]}}}
CHOICE = {
    "weights": {
        "method": ["ties", "dare_linear"],
        "genes": {"weight": [0, 2], "density": [0.2, 1]},
    }
}
PICK, CHOOSE = {"task": "pick", "num_fewshot": 0}, {"task": "choose", "num_fewshot": 0}
CLOSENESS = {"callable": "metrics:closeness", "documents": "closeness.jsonl"}
HYBRID = [
    {"name": "blend", "space": WEIGHTS, "trials": 4},
    {
        "name": "flow",
        "space": {"path": {"kind": "indicator", "a": "blend", "others": ["math"], "repeats": 2}},
        "optimizer": {"kind": "random"},
        "trials": 4,
    },
]
CAMPAIGNS: dict[str, dict[str, Any]] = {
    "killed": {
        "optimizer": {"kind": "cma", "population": 4},
        "budget": {"trials": 16},
    },
    "stopped": {
        "space": CHOICE,
        "tasks": [PICK, {**CLOSENESS, "weight": 2.0}],
        "fitness": {"rungs": [12, 30, "all"], "race": {"keep": 0.5, "confidence": 0.5}},
        "optimizer": {"kind": "m2n2", "population": 4, "mutation": 0.2},
        "budget": {"trials": 24},
    },
    "finished": {
        "tasks": [PICK, CLOSENESS],
        "fitness": {"constraints": [{"negative_flips": {"against": "math", "at_most": 0.3}}]},
        "optimizer": {"kind": "cma", "population": 4},
        "initial": ["uniform", "lang"],
        "budget": {"trials": 14},
    },
    "fronted": {
        "tasks": [PICK, CHOOSE],
        "fitness": {"objective": {"kind": "pareto", "of": ["pick", "choose"]}},
        "optimizer": {"kind": "nsga2", "population": 4},
        "budget": {"trials": 10},
    },
    "staged": {"stages": HYBRID, "optimizer": {"kind": "cma", "population": 4}},
}
STOPPED = {"killed": ("SIGKILL", 8), "stopped": ("SIGINT", 12)}
"""Campaign → the signal that ends its run, and the number of trials that are on record then."""


def campaign(name: str, space: Any = WEIGHTS, **changes: Any) -> dict[str, Any]:
    """Return a campaign's data, whose dtype is the same with a GPU, so that it can go on there."""
    fitness = {
        "include_path": "tasks",
        "tasks": changes.pop("tasks", [PICK]),
        "splits": {"search": 0.5, "select": 0.2, "test": 0.3},
        "select_top": 3,
        **changes.pop("fitness", {}),
    }
    return {
        "name": name,
        "models": {
            "base": "models/base",
            "experts": {"math": "models/math", "lang": "models/lang"},
        },
        "dtype": {"compute": "float32"},
        **({} if "stages" in changes else {"space": space}),
        "fitness": fitness,
        **changes,
    }


def save_campaigns() -> None:
    """Write models, tasks and campaign files into `PLACE`."""
    import tiny
    import yaml

    tiny.WORDS[:] = tiny.WORDS[:28]
    tiny.save_family(PLACE / "models", EXPERTS, spread=0.6, **SMALL)
    for seed, name in enumerate(("pick", "choose")):
        tiny.save_task(PLACE / "tasks", name, task_seed=seed)
    lines = [{"text": f"w{i % 28} w{3 * i % 28}", "word": f"w{11 * i % 28}"} for i in range(40)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (PLACE / "closeness.jsonl").write_text(text)
    (PLACE / "metrics.py").write_text(METRIC)
    for name, changes in CAMPAIGNS.items():
        data = campaign(name, **changes)
        (PLACE / f"{name}.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def stop_after(trials: int, how: str) -> None:
    """Let the search get a signal when so many trials are on record and another is in flight."""
    from evomerge.study.study import Study
    from evomerge.workers.worker import Worker

    add, measure, recorded = Study.add, Worker.measure, []

    def counting(self: Study, evaluation: Any) -> Any:
        recorded.extend([evaluation] if evaluation.optimizers_own else [])
        return add(self, evaluation)

    def stopping(self: Worker, *arguments: Any) -> Any:
        if len(recorded) >= trials:
            os.kill(os.getpid(), getattr(signal, how))
        return measure(self, *arguments)

    Study.add, Worker.measure = counting, stopping


def run_campaigns() -> None:
    """Run every campaign to its end, or to where it is stopped, each in a process of its own."""
    codes = {"SIGKILL": -signal.SIGKILL, "SIGINT": 3}
    for name in CAMPAIGNS:
        how, trials = STOPPED.get(name, ("", 0))
        command = [sys.executable, __file__, sys.argv[1], how, str(trials)]
        command += ["search", f"{name}.yaml", "--out", f"runs/{name}"]
        done = subprocess.run(command, cwd=PLACE, check=False)
        assert done.returncode == codes.get(how, 0), done.returncode
    evomerge("export", "runs/finished", "--to", "export")
    for path in PLACE.glob("runs/**/study.db"):
        with sqlite3.connect(path) as study:
            study.execute("pragma wal_checkpoint(truncate)")
        study.close()


# Recipes

PARAMETERS: dict[str, dict[str, Any]] = {
    "consensus": {"agree": 2.0},
    "nearswap": {"t": 0.004},
    "ram": {"epsilon": 0.004},
    "ramplus_tl": {"epsilon": 0.004},
}
"""Where the helper's random numbers would leave nothing to do."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dare_linear_l1": ("dare_linear", {"rescale": "l1"}),
    "dare_ties_l1": ("dare_ties", {"rescale": "l1"}),
    "della_l1": ("della", {"rescale": "l1"}),
    "della_linear_none": ("della_linear", {"rescale": "none"}),
    "karcher_task_vectors": ("karcher", {"task_vectors": True}),
    "linear_sum": ("linear", {"normalize": False}),
    "model_stock_filters": ("model_stock", {"filter_wise": True}),
    "multislerp_task_vectors": ("multislerp", {"task_vectors": True}),
    "nuslerp_rows": ("nuslerp", {"along": "rows", "task_vectors": True}),
    "task_arithmetic_normalized": ("task_arithmetic", {"normalize": True}),
}
DROPS = {"ties": "density", "task_arithmetic": "l1", "magmax": "none", "sce": "density"}
"""Method → how DARE's survivors are rescaled before it."""


def recipes() -> dict[str, Any]:
    """Build name → recipe: every merge method, some with other choices or after DARE; a path."""
    from merges import random_recipe, thin

    from evomerge.config import ModelsConfig
    from evomerge.methods.registry import methods
    from evomerge.models.preflight import preflight
    from evomerge.recipe import Slot

    models = {name: str(PLACE / "models" / name) for name in ("base", *EXPERTS)}
    opened = preflight(ModelsConfig(base=models.pop("base"), experts=models))
    variants = {name: (name, {}) for name in methods()} | VARIANTS
    found = {}
    for name, (method, given) in variants.items():
        recipe, given = random_recipe(opened, method), PARAMETERS.get(method, {}) | given
        merges = [
            merge.model_copy(update={"parameters": merge.parameters | given})
            for merge in recipe.merges
        ]
        found[name] = recipe.model_copy(update={"merges": tuple(merges)})
    for method, rescale in DROPS.items():
        found[f"{method}_after_dare"] = thin(found[method], 0.4, rescale)
    straight = found["task_arithmetic"]
    slots = [("base", 0, 0.9), ("math", 1, 1.0), ("base", 0, 1.0), ("lang", 1, 1.0)]
    [one] = [merge for merge in straight.merges if merge.slot == 0]
    groups = [(0, "layer"), (0, "mlp"), (2, "attention"), (2, "self_attn.q_proj.weight")]
    path = {
        "path": tuple(Slot(source=s, layer=i, scale=x) for s, i, x in slots),
        "merges": tuple(one.model_copy(update={"slot": s, "group": g}) for s, g in groups),
    }
    found["path_of_slots"] = straight.model_copy(update=path)
    return found


def merge_recipes() -> dict[str, Any]:
    """Merge every recipe with the command line.

    What comes out is kept as one digest of all tensors, and whole where other machines may round
    otherwise.
    """
    import torch
    from recorded import digest
    from safetensors.torch import load_file, save_file

    from evomerge.methods.registry import methods

    models = [f"--expert={name}={PLACE / 'models' / name}" for name in EXPERTS]
    known, merged, kept = methods(), {}, {}
    for name, recipe in recipes().items():
        folder, used = PLACE / "recipes" / name, methods_of(recipe)
        folder.mkdir(parents=True)
        (folder / "recipe.json").write_text(json.dumps(recipe.to_json(), indent=2) + "\n")
        out = PLACE / "out" / name
        options = [f"--base={PLACE / 'models' / 'base'}", *models, "--to", str(out)]
        evomerge("merge", str(folder / "recipe.json"), *options)
        tensors = load_file(out / "model.safetensors")
        exact = all(adds_nothing_up(merge, known) for merge in recipe.merges)
        merged[name] = {"methods": used, "exact": exact, "sha256": digest(tensors)}
        if name in known and not exact:
            shutil.copyfile(out / "evomerge.json", folder / "evomerge.json")
        if not exact:
            kept |= {f"{name}/{tensor}": value for tensor, value in tensors.items()}
    assert torch.get_num_threads() == 1
    save_file(kept, PLACE / "merged.safetensors")
    return merged


def adds_nothing_up(merge: Any, known: Any) -> bool:
    """Tell whether a merge is the same on any machine: entry by entry, or by their order alone.

    Sums over a tensor are not: they depend on how many entries a processor adds at once.
    """
    method = known[merge.method]
    statistic = method.statistic.__name__ if method.statistic else None
    by_order = method.elementwise and not method.joint and statistic in (None, "spectrum", "ranks")
    rescale = (merge.drop.rescale if merge.drop else None, merge.parameters.get("rescale"))
    return by_order and "l1" not in rescale


def methods_of(recipe: Any) -> list[str]:
    """Name the merge methods of a recipe."""
    return sorted({merge.method for merge in recipe.merges})


# All of it


def evomerge(*arguments: str) -> str:
    """Run a command in this process; returns its standard output."""
    from typer.testing import CliRunner

    from evomerge.cli import app

    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def printed() -> dict[str, Any]:
    """Collect run → command → what it prints as JSON."""
    found: dict[str, Any] = {}
    for name in CAMPAIGNS:
        for command in ("status", "best"):
            text = evomerge(command, f"runs/{name}", "--json")
            found.setdefault(name, {})[command] = json.loads(text)
    return found


def main() -> None:
    """Make everything anew and put it beside this file."""
    checkout = Path(sys.argv[1]).resolve()
    head = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    assert subprocess.check_output(head, text=True).startswith(COMMIT)
    sys.path[:0] = [str(checkout), str(checkout / "tests")]
    sys.path.append(str(HERE.parent / "helpers"))  # for `recorded`, which that commit has not
    os.environ |= {"HF_HUB_OFFLINE": "1", "EVOMERGE_CACHE": str(PLACE / "cache"), "COLUMNS": "120"}
    if len(sys.argv) > 2:
        how, trials, *arguments = sys.argv[2:]
        if how:
            stop_after(int(trials), how)
        sys.argv = ["evomerge", *arguments]
        from evomerge.cli import main as command

        return command()
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    os.chdir(PLACE)
    save_campaigns()
    run_campaigns()
    from recorded import machine

    made = {"commit": COMMIT, **machine()}
    facts = {"machine": made, "merged": merge_recipes(), "printed": printed()}
    (PLACE / "recorded.json").write_text(json.dumps(facts, indent=1) + "\n")
    left_out = shutil.ignore_patterns(
        "out", "cache", "statistics", "__pycache__", "*.lock", "*.driver", "*-shm", "*-wal"
    )
    for path in HERE.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    shutil.copytree(PLACE, HERE, ignore=left_out, dirs_exist_ok=True)
    return None


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
