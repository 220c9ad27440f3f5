"""Where the demonstration's model comes from: a file of yours, or a hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

PREFIX = "hf://"
SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


class ModelError(Exception):
    """A model that cannot be had. The text says what to write instead."""


@dataclass(frozen=True)
class Source:
    """A GGUF file on this machine, and its sha256 where the hub knows it."""

    path: Path
    sha256: str | None = None


def split_address(address: str) -> tuple[str, str]:
    """The repository and the file of `hf://owner/repo/file`.

    Raises ModelError when it has another form.
    """
    parts = address.removeprefix(PREFIX).split("/", 2)
    if not address.startswith(PREFIX) or len(parts) != 3 or not all(parts) or not parts[2].endswith(".gguf"):
        raise ModelError(f"MODEL={address}: write hf://owner/repo/file.gguf")
    return "/".join(parts[:2]), parts[2]


def shards(filename: str) -> list[str]:
    """All files of the set that `filename` belongs to, in order; itself where it is not one of several."""
    match = SHARD.match(filename)
    if match is None:
        return [filename]
    count = int(match["count"])
    return [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def local(text: str) -> Source:
    """A file of this machine. Raises ModelError when it is not there or is not GGUF."""
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise ModelError(
            f"MODEL={text}: there is no such file; write a path to a GGUF file, or {PREFIX}owner/repo/file"
        )
    with path.open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise ModelError(f"MODEL={text}: not a GGUF file (it does not begin with the bytes GGUF)")
    return Source(path)


def known_sha256(api: HfApi, repo: str, filename: str) -> str | None:
    """The sha256 that the hub knows of a file; None when it does not keep one or does not answer now."""
    try:
        entries = api.get_paths_info(repo, filename)
    except HTTPError:
        return None
    return next((entry.lfs.sha256 for entry in entries if isinstance(entry, RepoFile) and entry.lfs), None)


def from_hub(address: str, directory: Path, endpoint: str | None = None) -> Source:
    """Download `hf://owner/repo/file` (all shards of it) below `directory`, unless it is there already.

    `endpoint` is the hub's address; without it HF_ENDPOINT's or the public one is used. A file that was downloaded
    before is used when the hub does not answer, without a sha256 then.
    Raises ModelError with what to do when the hub says no or does not answer.
    """
    repo, filename = split_address(address)
    names = shards(filename)
    api = HfApi(endpoint=endpoint)
    try:
        paths = [Path(api.hf_hub_download(repo, name, local_dir=directory / repo)) for name in names]
        # The sha256 of a set is one for each of its files; only that of a single file can be declared.
        sha256 = known_sha256(api, repo, filename) if len(names) == 1 else None
    except GatedRepoError as error:
        raise ModelError(
            f"MODEL={address}: accept the model's licence on its page, then set HF_TOKEN to a token of yours"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"MODEL={address}: the hub has no model {repo} (or it is private: set HF_TOKEN)") from error
    except RemoteEntryNotFoundError as error:
        raise ModelError(f"MODEL={address}: {repo} has no such file; look at its page for the names") from error
    except HFValidationError as error:
        raise ModelError(f"MODEL={address}: {error}") from error
    except (HTTPError, OSError) as error:
        raise ModelError(
            f"MODEL={address}: the hub could not be used ({error}). Try again, name another hub with HF_ENDPOINT, or "
            "give a file: MODEL=/path/to/model.gguf"
        ) from error
    return Source(paths[0], sha256)


def find(model: str, directory: Path) -> Source:
    """The model that MODEL names. Raises ModelError."""
    return from_hub(model, directory) if model.startswith(PREFIX) else local(model)
