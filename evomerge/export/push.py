"""Pushes an export to the Hugging Face hub, or shows what would be sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from evomerge.common.errors import EvomergeError, InputError
from evomerge.common.version import __version__
from evomerge.materialize.disk.provenance import SOURCES_FILE, load_sources
from evomerge.models.messages import reason

_HUBS_OWN = frozenset({".gitattributes"})


@dataclass(frozen=True)
class Upload:
    """The content of a push.

    Attributes:
        files: path in the repository → size in bytes.
        metadata: the part of the card that the hub reads.
        local: folders of this machine that the texts name, such as the models'.
    """

    repo: str
    files: Mapping[str, int]
    metadata: Mapping[str, Any]
    local: Sequence[str] = ()


def offline() -> bool:
    """Say whether nothing may be sent or fetched (`HF_HUB_OFFLINE`)."""
    return constants.is_offline_mode()


def check_repo(repo: str, dry: bool) -> None:
    """Check before any work the repository's name and, unless `dry`, that the user is logged in.

    Raises:
        InputError: the name will not do, or nobody is logged in.
        EvomergeError: the hub cannot be reached.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"--push {repo}: {reason(error)}; write it as NAME/MODEL") from None
    if not dry:
        with _hub(repo):
            _api().whoami()


def upload_of(folder: Path, repo: str) -> Upload:
    """Return what `push` would send: every file but hidden ones.

    Raises:
        InputError: the folder's card is not one that the hub would take.
    """
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    try:
        metadata = ModelCard.load(folder / "README.md").data.to_dict()
    except ValueError as error:
        raise InputError(f"{folder / 'README.md'}: the hub would refuse it: {error}") from None
    named = (load_sources(path).models for path in folder.rglob(SOURCES_FILE))
    local = sorted({spec for models in named for spec in models.values() if Path(spec).is_dir()})
    return Upload(repo, files, metadata, local)


def push(folder: Path, upload: Upload, private: bool) -> str:
    """Send a folder to its repository, made if there is none, and return its address.

    When it is sent again after a failure, files that have arrived are not sent twice.

    Raises:
        InputError: the repository holds other files than these, or nobody may write to it.
        EvomergeError: the hub refused, or could not be reached.
    """
    api = _api()
    with _hub(upload.repo):
        url = api.create_repo(upload.repo, private=private, exist_ok=True)
        there = set(api.list_repo_files(url.repo_id)) - _HUBS_OWN
        if strange := sorted(there - upload.files.keys()):
            raise InputError(
                f"--push {upload.repo}: the repository holds {', '.join(strange[:3])}, which this "
                "export has not, and a mixture would be no model; choose another repository, or "
                "remove them there"
            )
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            allow_patterns=list(upload.files),
            commit_message=f"Merge made with evomerge {__version__}",
        )
    return str(url)


def upload_table(upload: Upload, public: bool) -> RenderableType:
    """Show the files with their sizes, and the metadata that the hub reads of the card."""
    who = "public" if public else "private"
    files = Table("file", "size", title=f"to {upload.repo} ({who} if it is new)")
    files.columns[1].justify = "right"
    for name, size in upload.files.items():
        files.add_row(name, decimal(size))
    files.add_section()
    files.add_row(f"{len(upload.files)} files", decimal(sum(upload.files.values())))
    card = yaml.safe_dump(dict(upload.metadata), sort_keys=False, allow_unicode=True)
    notes = [
        Text(f"note: its texts name folders of this machine: {', '.join(upload.local)}", "yellow")
    ]
    return Group(files, Text("the card's metadata:"), Text(card), *(notes if upload.local else []))


def _api() -> HfApi:
    return HfApi(library_name="evomerge", library_version=__version__)


@contextmanager
def _hub(repo: str) -> Iterator[None]:
    """Turn errors of the hub into one message."""
    try:
        yield
    except EvomergeError:
        raise
    except LocalTokenNotFoundError:
        raise InputError(
            f"--push {repo}: nobody is logged in to the hub; run `hf auth login`, or add --dry-run "
            "to see what would be sent"
        ) from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise InputError(
                f"--push {repo}: the hub lets nobody in with this token ({reason(error)}); log in "
                "with `hf auth login` as somebody who may write there"
            ) from None
        raise EvomergeError(f"--push {repo}: the hub refused ({reason(error)})") from None
    # A broken connection: each layer below has its own exceptions.
    except Exception as error:
        raise EvomergeError(
            f"--push {repo}: the hub cannot be reached ({reason(error)}); the same command tries "
            "again"
        ) from None
