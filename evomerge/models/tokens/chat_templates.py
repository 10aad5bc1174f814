"""Find the chat template that a file asks for: by a name of mergekit's, or by what models have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from evomerge.common.errors import InputError
from evomerge.config.paths import is_template_file
from evomerge.models.tokens.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from evomerge.models.checkpoint import Checkpoint

AUTO = "auto"

NAMED: Mapping[str, str] = MappingProxyType(
    {
        "chatml": (
            "{% for message in messages %}"
            "{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        ),
        "llama3": (
            "{{ bos_token }}{% for message in messages %}"
            "{{ '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' }}"
            "{{ message.content | trim ~ '<|eot_id|>\\n' }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}"
            "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
            "{% endif %}"
        ),
        "mistral": (
            "{% set told = messages[0].role == 'system' %}"
            "{% set turns = messages[1:] if told else messages %}"
            "{{ bos_token }}{% for turn in turns %}"
            "{% if turn.role != ('assistant' if loop.index0 % 2 else 'user') %}"
            "{{ raise_exception('After the optional system message, conversation roles must "
            "alternate user/assistant/user/assistant/...') }}"
            "{% elif turn.role == 'assistant' %}{{ ' ' ~ turn.content ~ eos_token }}"
            "{% elif loop.first and told %}"
            "{{ ' [INST] ' ~ messages[0].content ~ '\\n\\n' ~ turn.content ~ ' [/INST]' }}"
            "{% else %}{{ ' [INST] ' ~ turn.content ~ ' [/INST]' }}{% endif %}"
            "{% endfor %}"
        ),
        "alpaca": (
            "{% set heads = {'user': 'Instruction', 'assistant': 'Response', "
            "'user_context': 'Input'} %}"
            "{% for message in messages if message.role == 'system' %}"
            "{{ message.content | trim if loop.last }}{% endfor %}{{ '\\n\\n' }}"
            "{% for message in messages %}{% if message.role in heads %}"
            "{{ '### ' ~ heads[message.role] ~ ':\\n' ~ message.content | trim }}"
            "{{ '' if loop.last else '\\n\\n' }}"
            "{% endif %}{% endfor %}"
            "{% if add_generation_prompt and messages[-1].role != 'assistant' %}"
            "{{ '### Response:\\n' }}{% endif %}"
        ),
        "exaone": (
            "{% for message in messages %}"
            "{% if loop.first and message.role != 'system' %}"
            "{{ '        [|system|][|endofturn|]\\n\\n' }}{% endif %}"
            "{{ '    [|' ~ message.role ~ '|]' ~ message.content ~ '\\n        ' }}"
            "{{ ('' if message.role == 'user' else '[|endofturn|]') ~ '\\n\\n' }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '    [|assistant|]\\n' }}{% endif %}"
        ),
    }
)
"""mergekit's names → templates that write what those of mergekit 0.1.5 write, to the space."""


def check_template(said: str, where: str) -> None:
    """Refuse what is neither a name that is known, nor `auto`, nor a Jinja template or its file.

    Raises:
        InputError: begins with `where` and lists the names.
    """
    if said not in (AUTO, *NAMED) and "{" not in said and not is_template_file(said):
        raise InputError(
            f"{where}: {said!r} is no template; give one of {', '.join(NAMED)}, auto for what most "
            "of the models have, a Jinja template, or the path of its file (.jinja)"
        )


def template_text(
    said: str | None, sources: Iterable[Checkpoint], trust_remote_code: bool
) -> str | None:
    """Return the template that `said` stands for; None for the tokenizer's own.

    Args:
        said: a name, `auto`, or the template itself.
        sources: the models whose templates `auto` chooses from.
    """
    if said == AUTO:
        return _commonest(sources, trust_remote_code)
    return said if said is None else NAMED.get(said, said)


def _commonest(sources: Iterable[Checkpoint], trust_remote_code: bool) -> str | None:
    """Return the chat template that most of the models have, of several the first."""
    found: Counter[str] = Counter()
    for source in sources:
        tokenizer = load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
        template = getattr(tokenizer, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            found[template.strip()] += 1
    return next((text for text, _ in found.most_common(1)), None)
