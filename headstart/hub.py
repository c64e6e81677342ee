"""Models on the Hugging Face hub, or on a server that answers like it (``HF_ENDPOINT``): fetching and sharing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headstart.errors import HubError

_ADDRESS = re.compile(r"hf:/{1,2}(?P<repo>[^/@\s]+/[^/@\s]+)(?:@(?P<revision>\S+))?")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Address:
    """Where a model is.

    Attributes:
        repository: "owner/name".
        revision: a branch, tag or commit; None for the main branch.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_address(text: str) -> bool:
    """Whether it begins like the address of a model on the hub."""
    return text.startswith("hf:/")


def read_address(text: str | os.PathLike[str]) -> Address | None:
    """``hf://owner/name`` or ``hf://owner/name@revision``; None for what is no such address.

    A path of such a text, which has one slash less, is read as well.

    Raises:
        HubError: it begins like one and is none.
    """
    address = os.fspath(text) if isinstance(text, (str, os.PathLike)) else text
    if not isinstance(address, str) or not is_address(address):
        return None
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise HubError(f"{address}: expected hf://OWNER/NAME, or hf://OWNER/NAME@REVISION.")
    return Address(found["repo"], found["revision"])


def fetch(address: Address, file: str) -> Path:
    """A file of a repository, from the hub's cache on this machine where it is there already.

    Raises:
        HubError: no such repository or file, or it can neither be reached nor is it in the cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(
            hf_hub_download(address.repository, file, revision=address.revision, endpoint=os.environ.get("HF_ENDPOINT"))
        )
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"{address}: cannot be reached, and is not in the local cache of the hub. Check the network connection."
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{address}: no such repository, or it is private and this machine is not logged in (hf auth login)."
        ) from error
    except EntryNotFoundError as error:
        raise HubError(f"{address}: contains no {file}, so it is not a Headstart model. Check the name.") from error
    except Exception as error:  # the hub's library raises what its client for HTTP does
        raise HubError(f"{address}: cannot be downloaded ({_line(error)}).") from error


def push(repository: str, files: Mapping[str, Path | bytes], *, private: bool, message: str) -> str:
    """Puts files into a repository of the hub, which is made where it is not there.

    Args:
        repository: "owner/name".
        files: name in the repository -> a file, or its content.
        private: whether a new repository is.
        message: of the commit.

    Returns:
        The repository's address for a browser.

    Raises:
        HubError: nobody is logged in, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if not _REPOSITORY.fullmatch(repository):
        raise HubError(f"{repository}: expected OWNER/NAME.")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="headstart")
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        operations = [
            CommitOperationAdd(name, str(own) if isinstance(own, Path) else own) for name, own in files.items()
        ]
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
    except Exception as error:  # the hub's library raises what its client for HTTP does
        raise HubError(f"{repository}: cannot be uploaded ({_line(error)}).") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
