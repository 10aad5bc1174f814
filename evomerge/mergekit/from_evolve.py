"""Turn a mergekit-evolve file, and the options it was run with, into a campaign.

Read is what mergekit 0.1.5 takes, with its defaults. Its genome has, for each block of
`layer_granularity` layers and model, a weight and, for ties and dare_ties, a density.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from typing_extensions import override

from evomerge.common.data_files import quoted, yaml_data
from evomerge.common.errors import InputError
from evomerge.config import (
    UNION,
    Draft,
    adapter_elsewhere,
    campaign_name,
    model_and_adapter,
)
from evomerge.mergekit.document import Reference
from evomerge.mergekit.reader import expert_name
from evomerge.methods import find_method
from evomerge.recipe import BASE

_NORMALIZED = ("ties", "dare_ties", "linear")
"""The methods that mergekit-evolve normalizes by default."""
_SIGMA = 0.1667
"""mergekit-evolve's --sigma0, 1/6."""


class _Genome(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    models: list[Reference] = Field(min_length=1)
    merge_method: str
    base_model: Reference | None = None
    tokenizer_source: str | None = None
    layer_granularity: int = 0
    normalize: bool | None = None
    allow_negative_weights: bool = False
    filters: list[str] | None = None
    smooth: bool = False

    @field_validator("merge_method")
    @classmethod
    def _is_one_of_five(cls, name: str) -> str:
        known = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")
        if name not in known:
            raise ValueError(f"mergekit-evolve has {', '.join(known)}")
        return name


class _Task(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    weight: float = 1.0
    metric: str = "acc,none"


class _File(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    genome: _Genome
    tasks: list[_Task] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)
    num_fewshot: int | None = None
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True

    @field_validator("tasks", mode="before")
    @classmethod
    def _a_name_is_a_task(cls, tasks: Any) -> Any:
        if not isinstance(tasks, list):
            return tasks
        return [{"name": task} if isinstance(task, str) else task for task in tasks]


def is_evolve(data: Any) -> bool:
    """Tell a mergekit-evolve file, as plain data, from a mergekit recipe."""
    return isinstance(data, dict) and "genome" in data


def from_evolve(text: str, where: str, options: str = "", gpus: int = 0) -> Draft:
    """Make a campaign of a mergekit-evolve file's text.

    Models, tasks' folders and files are named as the file names them.

    Args:
        text: the file's YAML.
        where: names the file in messages.
        options: mergekit-evolve's command line, or only its options.
        gpus: GPUs of this machine, which it uses where `--num-gpus` is not given.

    Raises:
        InputError: not YAML, no such key's value, or an option that mergekit-evolve has not.
    """
    data = yaml_data(text, where)
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise InputError("\n".join(f"{where}: {line}" for line in lines)) from None
    return _Converter(file, where, _options(options), gpus).draft()


@dataclass
class _Converter:
    """The making of one campaign.

    Attributes:
        lost: what has no counterpart, as it is found.
        why: the comments, as they are found.
    """

    file: _File
    where: str
    options: argparse.Namespace
    gpus: int
    lost: list[str] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)

    def draft(self) -> Draft:
        names = self._models()
        models: dict[str, Any] = {
            BASE: names[BASE],
            "experts": {k: v for k, v in names.items() if k != BASE},
        }
        if tokenizer := self._tokenizer(names):
            models["tokenizer"] = tokenizer
        if self.options.trust_remote_code:
            models["trust_remote_code"] = True
        data: dict[str, Any] = {
            "name": campaign_name(PurePath(self.where).stem) or "evolve",
            "models": models,
            "space": {"weights": self._weights(names)},
            "initial": ["uniform"],
            "fitness": self._fitness(),
            **self._search(),
        }
        self.why["initial"] = "where the search begins: the uniform merge"
        self._list_the_rest()
        title = f"From {PurePath(self.where).name}, a file of mergekit-evolve."
        return Draft(title, data, self.why, tuple(self.lost))

    def _models(self) -> dict[str, str]:
        """Map source name → model: the base, then the experts.

        Without a base_model, as linear and slerp may be, the first model is the base.

        Raises:
            InputError: no base for a method of task vectors, no expert, or an adapter elsewhere.
        """
        genome, found = self.file.genome, dict[str, str]()
        base = genome.base_model
        if base is None:
            if genome.merge_method not in ("linear", "slerp"):
                raise InputError(
                    f"{self.where}: genome.base_model: {genome.merge_method} needs one"
                )
            base = genome.models[0]
            self.why["models.base"] = "the first model: config and vocabulary are its"
        found[BASE] = base
        for spec in dict.fromkeys(genome.models):
            if spec == base:
                continue
            model, adapter = model_and_adapter(spec)
            if adapter and model != base:
                raise adapter_elsewhere(f"{self.where}: genome.models", spec, base)
            found[expert_name(adapter or spec, {BASE, UNION, *found})] = adapter or spec
        if len(found) < 2:
            raise InputError(f"{self.where}: genome.models: no model beside the base {base}")
        if base in genome.models and genome.merge_method not in ("linear", "slerp"):
            self.lost.append(
                f"genome.models: the base {base} is among them; its task vector is zero, so that "
                "it has no gene"
            )
        return found

    def _tokenizer(self, names: Mapping[str, str]) -> dict[str, Any] | None:
        source = self.file.genome.tokenizer_source
        if source is None:
            return None
        source = source.removeprefix("model:")
        named = {spec: name for name, spec in names.items()}
        if source in (UNION, BASE) or source in named:
            return {"source": named.get(source, source)}
        self.lost.append(f"genome.tokenizer_source: {source} is none of the models; name one")
        return None

    def _weights(self, names: Mapping[str, str]) -> dict[str, Any]:
        genome, experts = self.file.genome, len(names) - 1
        method = genome.merge_method
        if method == "slerp" and experts > 1:
            method = "multislerp"
            self.lost.append(
                "genome.merge_method: slerp of the two models that weigh most, block by block; "
                "multislerp of all experts stands in its place"
            )
        weights: dict[str, Any] = {"method": method, **self._granularity()}
        weights["genes"] = {**self._bounds(method), **self._normalize(method)}
        return weights

    def _bounds(self, method: str) -> dict[str, Any]:
        genome, known = self.file.genome, find_method(method, self.where).parameters
        if method == "slerp":
            return {"t": [0, 1]}
        low, high = (-0.5 if genome.allow_negative_weights else 0), 1
        genes: dict[str, Any] = {"weight": [low, high]}
        if low:
            self.why["space.weights.genes.weight"] = "below 0: allow_negative_weights"
        if method == "linear" and (genome.base_model or genome.models[0]) in genome.models:
            genes["base_weight"] = [low, high]
            self.why["space.weights.genes.base_weight"] = "the base is one of the models"
        if "density" in known:
            genes["density"] = [0.1, 1]
        return genes

    def _normalize(self, method: str) -> dict[str, bool]:
        """Fix the method's switch as the genome says it or, in its silence, mergekit-evolve."""
        genome, known = self.file.genome, find_method(method, self.where).parameters
        asked = genome.normalize
        if "normalize" in known:
            return {"normalize": genome.merge_method in _NORMALIZED if asked is None else asked}
        if asked:
            self.lost.append(f"genome.normalize: evomerge's {method} does not normalize weights")
        return {}

    def _granularity(self) -> dict[str, Any]:
        genome, layers = self.file.genome, self.file.genome.layer_granularity
        key = "space.weights.granularity"
        self.why[key] = f"layer_granularity: {layers}; what lies outside the layers is tuned apart"
        if genome.smooth:
            self.lost.append("genome.smooth: blocks have one value each, nothing is interpolated")
        if genome.filters and layers == 1:
            self.why[key] = f"each module of a layer apart, for filters: {genome.filters}"
            return {"granularity": "module"}
        if genome.filters:
            self.lost.append(
                f"genome.filters: {', '.join(genome.filters)}: modules of a block are not tuned "
                "apart; granularity: module tunes those of every layer, with many more genes"
            )
        if layers < 1:
            self.why[key] = "layer_granularity: 0, one coefficient for the whole model"
            return {"granularity": "model"}
        if layers == 1:
            return {"granularity": "layer"}
        return {"granularity": "block", "block": layers}

    def _fitness(self) -> dict[str, Any]:
        file, options = self.file, self.options
        shared: dict[str, Any] = {}
        if file.num_fewshot is not None:
            shared["num_fewshot"] = file.num_fewshot
        if file.apply_chat_template:
            shared["apply_chat_template"] = True
            if not file.fewshot_as_multiturn:
                shared["fewshot_as_multiturn"] = False
            said = "" if "apply_chat_template" in file.model_fields_set else ", by default there"
            self.why["fitness.tasks"] = f"apply_chat_template{said}: leave it out for base models"
        tasks = [self._task(task, shared) for task in file.tasks]
        found: dict[str, Any] = {"tasks": [task for task in tasks if task]}
        if options.task_search_path:
            found["include_path"] = options.task_search_path[0]
            self.lost += [
                f"--task-search-path {path}: one folder is read, {options.task_search_path[0]}"
                for path in options.task_search_path[1:]
            ]
        if options.allow_benchmark_tasks:
            found["allow_test_sets"] = True
            self.why["fitness.allow_test_sets"] = "quote this campaign's own test split alone"
        if file.limit is not None:
            limit = file.limit
            found["splits"] = {"search": limit, "select": max(10, limit // 3), "test": limit}
            self.why["fitness.splits"] = f"limit: {limit}; select and test are documents beside it"
        if options.batch_size:
            found["batch_size"] = options.batch_size
        return found

    def _task(self, task: _Task, shared: Mapping[str, Any]) -> dict[str, Any] | None:
        self.lost += [f"tasks: {task.name}: {key}" for key in task.model_extra or {}]
        if task.weight <= 0:
            reason = "takes no part" if task.weight == 0 else "is to be low; weights are above 0"
            self.lost.append(f"tasks: {task.name}: weight {task.weight:g}: it {reason}")
            return None
        metric = task.metric.removesuffix(",none")
        weight = {} if task.weight == 1 else {"weight": task.weight}
        return {"task": task.name, "metric": metric, **weight, **shared}

    def _search(self) -> dict[str, Any]:
        options = self.options
        optimizer: dict[str, Any] = {"kind": "cma", "sigma": options.sigma0}
        if options.force_population_size:
            optimizer["population"] = options.force_population_size
        budget: dict[str, Any] = {"trials": options.max_fevals or 100}
        self.why["budget"] = (
            "--max-fevals"
            if options.max_fevals
            else "mergekit-evolve's default; 20 a gene is better"
        )
        if options.timeout:
            budget["hours"] = round(options.timeout / 3600, 4)
        found: dict[str, Any] = {"optimizer": optimizer, "budget": budget}
        count = 1 if options.strategy == "serial" else options.num_gpus or self.gpus
        if count > 1:
            found["workers"] = {"kind": "ray", "count": count, "gpus_per_worker": 1}
            self.why["workers"] = "none waits for another, whatever the --strategy"
        if options.random_seed:
            found["seed"] = options.random_seed
            self.why["seed"] = "reaches the optimizer and the masks here"
        if options.wandb:
            given = {"project": options.wandb_project, "entity": options.wandb_entity}
            tracker = {"kind": "wandb", **{key: name for key, name in given.items() if name}}
            found["trackers"] = [tracker]
        return found

    def _list_the_rest(self) -> None:
        """List the keys and options that say nothing to evomerge."""
        file, options = self.file, self.options
        extra = [f"genome.{key}" for key in file.genome.model_extra or {}]
        extra += list(file.model_extra or {})
        self.lost += [f"{key}: not read, mergekit-evolve does not know it either" for key in extra]
        said = {
            "random_init: the search begins at the uniform merge": file.random_init,
            "shuffle: documents are dealt to the splits by their hash, always": file.shuffle,
            "--vllm: transformers scores candidates in place; where evomerge[vllm] is installed, "
            "write fitness.engine: {kind: vllm}": options.vllm,
            "--load-in-8bit, --load-in-4bit: what is scored is what is exported": (
                options.load_in_8bit or options.load_in_4bit
            ),
            "--allow-crimes: models must have one architecture": options.allow_crimes,
            f"--storage-path {options.storage_path}: nothing is stored but the run; give "
            "evomerge search --out": options.storage_path is not None,
            "--no-in-memory, --no-reshard, --no-merge-cuda: merging is always in place": (
                not (options.in_memory and options.reshard and options.merge_cuda)
            ),
            "--save-final-model: type evomerge export": not options.save_final_model,
        }
        self.lost += [text for text, applies in said.items() if applies]


class _Parser(argparse.ArgumentParser):
    @override
    def error(self, message: str) -> NoReturn:
        raise InputError(f"mergekit-evolve's options: {message}")


def _options(text: str) -> argparse.Namespace:
    """Read mergekit-evolve's options; those that are not given have its defaults.

    Raises:
        InputError: an option that it has not, or a value of another type.
    """
    parser = _Parser(prog="mergekit-evolve", add_help=False, allow_abbrev=False)
    parser.add_argument("file", nargs="?")
    for name in ("max-fevals", "num-gpus", "batch-size", "force-population-size", "random-seed"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("storage-path", "wandb-project", "wandb-entity"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--sigma0", type=float, default=_SIGMA)
    parser.add_argument("--timeout", type=float)
    parser.add_argument("-s", "--strategy", choices=("pool", "buffered", "serial"), default="pool")
    parser.add_argument("--task-search-path", action="append", default=[])
    on = ("in-memory", "merge-cuda", "save-final-model", "reshard")
    for name in (*on, "vllm", "trust-remote-code", "allow-crimes", "wandb"):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=name in on)
    for name in ("load-in-8bit", "load-in-4bit"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument(
        "--i-understand-the-depths-of-the-evils-i-am-unleashing",
        dest="allow_benchmark_tasks",
        action="store_true",
    )
    try:
        words = shlex.split(text.replace("\\\n", " "))
    except ValueError as error:
        raise InputError(f"mergekit-evolve's options: {error}") from None
    return parser.parse_args(words[1:] if words[:1] == ["mergekit-evolve"] else words)


def _explain(problem: Any) -> str:
    place = ".".join(map(str, problem["loc"])) or "the file"
    if problem["type"] == "missing":
        return f"{place}: required, but not given"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message[0].lower()}{message[1:]} (found {quoted(problem['input'])})"
