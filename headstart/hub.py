"""Download and upload of models on the Hugging Face hub, or a compatible server (``HF_ENDPOINT``)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from headstart.errors import HubError

_ADDRESS = re.compile(r"hf:/{1,2}(?P<repo>[^/@\s]+/[^/@\s]+)(?:@(?P<revision>\S+))?")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Address:
    """Address of a model on the hub.

    Attributes:
        repository: "OWNER/NAME".
        revision: a branch, tag or commit; None for the main branch.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


def hub_endpoint() -> str | None:
    """URL of the server that is used instead of huggingface.co; None for that."""
    return os.environ.get("HF_ENDPOINT")


def is_address(text: str) -> bool:
    """Whether a text starts with the ``hf:`` scheme."""
    return text.startswith("hf:/")


def read_address(text: str | os.PathLike[str]) -> Address | None:
    """Parses ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``; None for any other text or path.

    ``Path`` collapses the double slash, so "hf:/" is accepted too.

    Raises:
        HubError: the text starts with the ``hf:`` scheme but is not a valid address.
    """
    address = os.fspath(text) if isinstance(text, (str, os.PathLike)) else text
    if not isinstance(address, str) or not is_address(address):
        return None
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise HubError(f"{address}: expected hf://OWNER/NAME, or hf://OWNER/NAME@REVISION.")
    return Address(found["repo"], found["revision"])


def fetch(address: Address, *files: str) -> Path:
    """Downloads a file of a repository to the local cache of the hub, and returns its path there.

    Args:
        address: the repository and revision.
        *files: names of the file in the repository; the first one that exists is downloaded.

    Raises:
        HubError: no such repository or file, or the hub cannot be reached and the file is not cached.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return _first_of(address, files)
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"{address}: cannot be reached, and is not in the local cache of the hub. Check the network connection."
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{address}: no such repository, or it is private and this machine is not logged in (hf auth login)."
        ) from error
    except EntryNotFoundError as error:
        raise HubError(
            f"{address}: contains no {' or '.join(files)}, so it is not a Headstart model. Check the name."
        ) from error
    except Exception as error:  # huggingface_hub passes on errors of its HTTP client
        raise HubError(f"{address}: cannot be downloaded ({_line(error)}).") from error


def _first_of(address: Address, files: Sequence[str]) -> Path:
    """The first of some files that exists.

    Raises:
        EntryNotFoundError: there is none; also if the hub cannot be reached and none is in the local cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for file in files[:-1]:
        with suppress(EntryNotFoundError):
            return Path(hf_hub_download(address.repository, file, revision=address.revision, endpoint=hub_endpoint()))
    return Path(hf_hub_download(address.repository, files[-1], revision=address.revision, endpoint=hub_endpoint()))


def check_repository(repository: str) -> None:
    """Checks the name of a repository.

    Raises:
        HubError: it is not "OWNER/NAME".
    """
    if not isinstance(repository, str) or not _REPOSITORY.fullmatch(repository):
        raise HubError(f"{repository}: expected OWNER/NAME.")


def push(
    repository: str, files: Mapping[str, Path | bytes], *, removed: Sequence[str] = (), private: bool, message: str
) -> str:
    """Uploads files to a repository of the hub in one commit.

    Args:
        repository: "OWNER/NAME"; created if it does not exist.
        files: name in the repository -> a local file, or the content.
        removed: names of files to delete in the repository if they exist.
        private: whether a new repository is private.
        message: the commit message.

    Returns:
        URL of the repository.

    Raises:
        HubError: not logged in, or the hub refuses access.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    check_repository(repository)
    api = HfApi(endpoint=hub_endpoint(), library_name="headstart")
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
            for name, content in files.items()
        ]
        operations += [CommitOperationDelete(name) for name in removed if api.file_exists(repository, name)]
        api.create_commit(repository, operations, commit_message=message)
        return str(url)
    except LocalTokenNotFoundError as error:
        raise HubError(f"{repository}: not logged in to the hub. Run hf auth login, or set HF_TOKEN.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise HubError(
                f"{repository}: the hub refuses access ({status}). Run hf auth login with a token that may write "
                "to this repository."
            ) from error
        raise HubError(f"{repository}: the hub refuses access ({_line(error)}).") from error
    except Exception as error:  # huggingface_hub passes on errors of its HTTP client
        raise HubError(f"{repository}: cannot be uploaded ({_line(error)}).") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
