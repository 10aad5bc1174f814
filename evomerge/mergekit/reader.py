"""Read mergekit files: merges that both tools can do; anything else is refused by name.

Three differences remain, by choice. mergekit computes in the dtype of `dtype:`, or of the weights;
evomerge computes in float32 and rounds to `out_dtype`, else to `dtype`, else to the base's own.
Filters are matched against transformers' names of tensors. And rows of tokens that not every model
has are found among all models of the file, where mergekit looks at those of the first and the last
slice alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge.common.data_files import read_text
from evomerge.common.errors import InputError
from evomerge.common.plugins import nearest
from evomerge.config import (
    UNION,
    TokenizerConfig,
    TokenOfModel,
    TokenRow,
    adapter_elsewhere,
    model_and_adapter,
    resolve_spec,
)
from evomerge.mergekit.document import Document, ModelEntry, Tokenizer, parse_documents
from evomerge.mergekit.merge import LayerSpan, MergekitMerge, Settings
from evomerge.mergekit.methods import FORMS, Pairing, Parameter, readable
from evomerge.mergekit.settings import Setting, Value, parse_setting
from evomerge.models.tokens.chat_templates import check_template
from evomerge.recipe.recipe import BASE

_DTYPES = ("float32", "float16", "bfloat16")


def load_mergekit(path: Path) -> MergekitMerge:
    """Read a mergekit file of one merge.

    Raises:
        InputError: it cannot be read, is not YAML, has stages, or says what evomerge does not do.
    """
    return _only(load_stages(path))


def from_mergekit(text: str, where: str = "mergekit file") -> MergekitMerge:
    """Read a mergekit file's text; `where` names it in messages.

    Raises:
        InputError: it is not YAML, has stages, or says what evomerge does not do; names the key.
    """
    return _only(stages_from(text, where))


def load_stages(path: Path) -> list[MergekitMerge]:
    """Read a mergekit file of one merge or, as mergekit-multi takes it, of several.

    Raises:
        InputError: as `stages_from`, or the file cannot be read.
    """
    return stages_from(read_text(path), str(path), path.parent)


def stages_from(text: str, where: str, folder: Path = Path()) -> list[MergekitMerge]:
    """Read the merges of a file's text, each after those whose results it names.

    The file's own result comes last: it is the merge without a name or, where all have names, the
    last one. Stages that it does not need are left out.

    Args:
        text: YAML.
        where: names the file in messages.
        folder: the file's, from which relative paths of models start.

    Raises:
        InputError: the text is not YAML, its stages need each other in a circle or have one name,
            or it says what evomerge does not do; names the key.
    """
    documents = parse_documents(text, where)
    one = len(documents) == 1
    merges = [
        _Reader(document, where if one else f"{where}: document {i}", folder).merge()
        for i, document in enumerate(documents, 1)
    ]
    unnamed = [merge for merge in merges if merge.name is None]
    if len(unnamed) > 1:
        raise InputError(f"{where}: {len(unnamed)} documents have no name; only the last may")
    return _ordered(merges, unnamed[0] if unnamed else merges[-1], where)


def _only(merges: list[MergekitMerge]) -> MergekitMerge:
    if len(merges) > 1:
        raise InputError(
            f"{merges[0].where}: it is one stage of {len(merges)}, and a stage's result is no "
            "model yet; make the file's checkpoint by evomerge merge and name that"
        )
    return merges[0]


def _ordered(merges: list[MergekitMerge], final: MergekitMerge, where: str) -> list[MergekitMerge]:
    """Return `final` and the stages it is made of, in an order in which they can be made."""
    by_name = {merge.name: merge for merge in merges if merge.name is not None}
    if len(by_name) + (final.name is None) != len(merges):
        raise InputError(f"{where}: several documents have one name")
    found: list[MergekitMerge] = []

    def visit(merge: MergekitMerge, above: tuple[MergekitMerge, ...]) -> None:
        if merge in above:
            raise InputError(f"{where}: {merge.name} is made of itself")
        for spec in merge.models.values():
            if spec in by_name and by_name[spec] not in found:
                visit(by_name[spec], (*above, merge))
        found.append(merge)

    visit(final, ())
    return found


@dataclass(frozen=True)
class _Reader:
    """The reader of one document: checks it against its method and makes a `MergekitMerge`."""

    file: Document
    where: str
    folder: Path

    def merge(self) -> MergekitMerge:
        file = self.file
        self._check_method()
        names = self._names()
        return MergekitMerge(
            where=self.where,
            models={
                BASE: self._base(),
                **{name: model_and_adapter(spec)[1] or spec for spec, name in names.items()},
            },
            weights=self._dtype(),
            notes=tuple(self._notes()),
            method=file.merge_method,
            settings=self._settings(file.parameters, "parameters"),
            spans=tuple(self._spans(names)),
            tokenizer=self._tokenizer(names),
            chat_template=self._chat_template(),
            name=file.name or file.out_path,
        )

    def _check_method(self) -> None:
        name, known = self.file.merge_method, readable()
        if name in known:
            return
        if name in FORMS:
            told = f"of mergekit is not read; {', '.join(known)} are read"
        else:
            told = f"is unknown; {nearest(name, known)}"
        raise InputError(f"{self.where}: merge_method: {name!r} {told}")

    @cached_property
    def _pairing(self) -> Pairing:
        return readable()[self.file.merge_method]

    def _base(self) -> str:
        """Return the base model: as named, or one of the models where the method needs none.

        Then it is the one that adapters are on, or has the wanted tokenizer, or the first.
        """
        file = self.file
        if file.base_model is not None:
            if "+" in file.base_model:
                raise InputError(
                    f"{self.where}: base_model: {file.base_model}: an adapter is no base; merge it "
                    "into its model first (peft's merge_and_unload) and name the result"
                )
            return file.base_model
        if self._pairing.form.base == "needed":
            raise InputError(f"{self.where}: base_model: {file.merge_method} needs one")
        on = (model for model, adapter in map(model_and_adapter, self._listed()) if adapter)
        return next(on, None) or self._wanted_tokenizer() or self._listed()[0]

    def _tokenizer(self, names: Mapping[str, str]) -> TokenizerConfig | None:
        """Read the tokens that the result shall have, with source names for the file's models."""
        file = self.file
        if file.tokenizer is None and file.tokenizer_source is None:
            return None
        if file.tokenizer and file.tokenizer_source:
            raise InputError(f"{self.where}: give either tokenizer or tokenizer_source")
        asked = file.tokenizer or Tokenizer(source=str(file.tokenizer_source))
        source = asked.source
        if source not in (UNION, BASE):
            key = "tokenizer.source" if file.tokenizer else "tokenizer_source"
            source = self._named(source, names, key, "base, union")
        rows = {
            token: _renamed(row, lambda spec: self._named(spec, names, "tokenizer.tokens"))
            for token, row in (asked.tokens or {}).items()
        }
        # mergekit knows the base's rows only where it is one of the models that are merged
        merged = bool(file.models) or file.base_model in self._listed()
        return TokenizerConfig(
            source=source,
            tokens=rows,
            pad_to_multiple_of=asked.pad_to_multiple_of,
            missing="base" if file.base_model is not None and merged else "mean",
        )

    def _named(self, spec: str, names: Mapping[str, str], key: str, also: str = "") -> str:
        if spec not in names:
            instead = f"{also}, or one of the models" if also else "one of the models"
            raise InputError(
                f"{self.where}: {key}: {spec} is not read, it is none of the file's models; say "
                f"{instead}"
            )
        return names[spec]

    def _wanted_tokenizer(self) -> str | None:
        """Return the model whose tokenizer is wanted, as the file names it, if it is one's."""
        source = self.file.tokenizer.source if self.file.tokenizer else self.file.tokenizer_source
        return source if source in self._listed() else None

    def _chat_template(self) -> str | None:
        template = self.file.chat_template
        if template is not None:
            check_template(template, f"{self.where}: chat_template")
        return template

    def _listed(self) -> list[str]:
        file = self.file
        if bool(file.models) == bool(file.slices):
            raise InputError(f"{self.where}: give either 'models' or 'slices'")
        return [entry.reference for entry in self._entries()]

    def _entries(self) -> list[ModelEntry]:
        file = self.file
        if file.models:
            return file.models
        return [source for entry in file.slices or () for source in entry.sources]

    def _names(self) -> dict[str, str]:
        """Map each model, as the file names it, → source name, the base first."""
        specs = dict.fromkeys(self._listed() if self._apart else [self._base(), *self._listed()])
        if self._apart and self.file.models and self.file.base_model:
            specs[self.file.base_model] = None
        names: dict[str, str] = {}
        for spec in specs:
            model, adapter = model_and_adapter(spec)
            if adapter and not self._is_base(model):
                raise adapter_elsewhere(self.where, spec, self._base())
            taken = {BASE, UNION, *names.values()}
            is_expert = names or self._apart
            names[spec] = expert_name(adapter or spec, taken) if is_expert else BASE
        return names

    def _is_base(self, model: str) -> bool:
        """Tell whether a model is the base, which may be named by another path to its folder."""
        base = self._base()
        return model == base or any(
            resolve_spec(model, folder) == resolve_spec(base, folder)
            for folder in (self.folder.resolve(), Path.cwd())
        )

    @property
    def _apart(self) -> bool:
        """True where the model that serves as the base is one more expert, under its own name."""
        plain = self._pairing.form.base == "ignored" or self.file.base_model is None
        return self._pairing.needs_no_base and plain

    def _spans(self, names: Mapping[str, str]) -> Iterator[LayerSpan]:
        if self.file.models:
            entries = {f"models[{i}]": entry for i, entry in enumerate(self.file.models)}
            yield LayerSpan(0, None, self._inputs(entries, names, "models"), {})
            return
        first = None
        slices = self.file.slices or []
        for index, entry in enumerate(slices):
            key = f"slices[{index}]"
            # 1. one base, and one layer_range for all of its models
            if entry.base_model not in (None, self.file.base_model):
                raise InputError(f"{self.where}: {key}.base_model: a base of its own is not read")
            ranges = {source.layer_range for source in entry.sources}
            if len(ranges) > 1:
                raise InputError(
                    f"{self.where}: {key}: its sources have several layer_range; a layer of "
                    "evomerge's is merged from the same layer of every model"
                )
            [(start, stop)] = ranges
            if not 0 <= start < stop:
                raise InputError(
                    f"{self.where}: {key}: layer_range [{start}, {stop}] has no layers; it begins "
                    "at 0 or later and ends before its second number"
                )
            # 2. its models and settings
            sources = {f"{key}.sources[{i}]": s for i, s in enumerate(entry.sources)}
            settings = self._settings(entry.parameters, f"{key}.parameters")
            span = LayerSpan(start, stop - start, self._inputs(sources, names, key), settings)
            first = first or span
            if entry is slices[-1] and len(span.models) > len(first.models):
                raise InputError(
                    f"{self.where}: {key}: it has more sources than slices[0], of which mergekit "
                    "leaves the last out of the final norm and the head; give both as many"
                )
            yield span

    def _inputs(
        self, entries: Mapping[str, ModelEntry], names: Mapping[str, str], key: str
    ) -> dict[str, Settings]:
        """Read the models of one span with their settings, checked against the method."""
        models: dict[str, Settings] = {}
        for place, entry in entries.items():
            name = names[entry.reference]
            if name in models:
                raise InputError(f"{self.where}: {place}: {entry.reference} is listed twice")
            models[name] = self._settings(
                entry.parameters, f"{place}.parameters", self._pairing.form.per_model
            )
        if key == "models" and self.file.base_model is not None:
            models.setdefault(names[self.file.base_model], {})
        self._check_count(models, key)
        return models

    def _check_count(self, models: Mapping[str, Settings], key: str) -> None:
        form, name = self._pairing.form, self.file.merge_method
        count = len(models)
        if (
            BASE not in models
            and not self._apart
            and (form.base == "needed" or self._pairing.needs_no_base)
        ):
            raise InputError(f"{self.where}: {key}: {name} needs the base_model among its sources")
        low, high = form.inputs
        if count < low or (high is not None and count > high):
            wanted = {None: f"{low} models or more", low: f"{low} models"} | {1: "one model"}
            raise InputError(
                f"{self.where}: {key}: {name} takes {wanted.get(high, f'{low} to {high} models')}, "
                f"the base_model included, not {count}"
            )
        if self._pairing.needs_no_base:
            others = len([name for name in models if name != BASE])
            self._pairing.method.check_experts(others, f"{self.where}: {key}")
        if form.base == "needed" and count < 2:
            raise InputError(f"{self.where}: {key}: {name} needs a model beside the base")

    def _settings(
        self,
        parameters: Mapping[str, Any] | None,
        key: str,
        known: Mapping[str, Parameter] | None = None,
    ) -> Settings:
        """Parse a section's parameters; `known` are those allowed in it, by default all."""
        form = self._pairing.form
        if known is None:
            known = {**form.per_model, **form.shared}
        settings: dict[str, Setting] = {}
        for name, raw in (parameters or {}).items():
            place = f"{self.where}: {key}.{name}"
            if name not in known:
                has = {n: None for n in known if n in self._pairing.read}
                raise InputError(
                    f"{place}: {name!r} of {self.file.merge_method} is not read here; "
                    f"{nearest(name, has)}"
                )
            try:
                setting = parse_setting(raw, known[name].type)
            except ValueError as error:
                raise InputError(f"{place}: {error}") from None
            if self._pairing.is_own:
                self._check_range(setting, name, place)
            if name in self._pairing.read:
                settings[name] = setting
            elif name not in form.idle:
                self._check_default(setting, known[name].default, place)
        return settings

    def _check_range(self, setting: Setting, name: str, place: str) -> None:
        """Refuse a value that evomerge's own method does not take, before the models are read."""
        parameter = self._pairing.method.parameters[name]
        for condition in setting:
            for value in condition.values:
                parameter.check(value, place)

    def _check_default(self, setting: Setting, default: Value | None, place: str) -> None:
        """Refuse a parameter that evomerge's method lacks, unless it has mergekit's default."""
        if any(value != default for condition in setting for value in condition.values):
            only = str(default).lower() if isinstance(default, bool) else default
            raise InputError(
                f"{place}: evomerge's {self.file.merge_method} has no such parameter and does "
                f"what {only} means; leave it out, or choose another method"
            )

    def _dtype(self) -> str:
        for key in ("out_dtype", "dtype"):
            value = getattr(self.file, key)
            if value is not None:
                name = str(value).removeprefix("torch.")
                if name not in _DTYPES:
                    raise InputError(
                        f"{self.where}: {key}: {value} is not written; use {', '.join(_DTYPES)}"
                    )
                return name
        return "checkpoint"

    def _notes(self) -> Iterator[str]:
        file = self.file
        if self._pairing.is_own:
            yield (
                f"{file.merge_method} is evomerge's own extension of mergekit's form: mergekit "
                "itself does not read this file"
            )
        if self._pairing.form.random:
            yield (
                f"{file.merge_method} drops entries by evomerge's own masks; mergekit's differ "
                "with every run"
            )
            if not self._pairing.choices:
                yield (
                    f"{file.merge_method} divides what is left by the density; mergekit rescales "
                    "it to the L1 norm"
                )
        if file.slices and (file.tokenizer or file.tokenizer_source):
            slices = (file.slices[0], file.slices[-1])
            ends = [{source.reference for source in one.sources} for one in slices]
            if any(end != {*self._listed()} for end in ends):
                yield (
                    "a token that the models of the first or the last slice lack has other models' "
                    "rows; mergekit's are zeros"
                )
        if any(entry.lora for entry in self._entries()):
            yield "lora beside model is read as MODEL+ADAPTER; mergekit ignores it there"
        if file.base_model is None:
            whose = "whose tokenizer is wanted" if self._wanted_tokenizer() else "listed first"
            if any("+" in spec for spec in self._listed()):
                whose = "which the adapters are on"
            yield f"no base_model: config and vocabulary are those of {self._base()}, {whose}"


def _renamed(row: TokenRow, name_of: Callable[[str], str]) -> TokenRow:
    """Name the model of a token's row as the recipe does."""
    if row.model is None:
        return row
    source: TokenOfModel | str = name_of(row.model)
    if isinstance(row.source, TokenOfModel):
        source = row.source.model_copy(update={"model": source})
    return row.model_copy(update={"source": source})


def expert_name(spec: str, taken: Container[str]) -> str:
    """Make a source name of the last part of a model's path, with a number where needed."""
    last = spec.partition("@")[0].rstrip("/").rpartition("/")[2]
    stem = name = re.sub(r"[^A-Za-z0-9_-]", "_", last).strip("_-") or "expert"
    number = 2
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    return name
