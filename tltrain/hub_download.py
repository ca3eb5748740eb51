"""Files of the Hugging Face Hub.

The Hub is asked by its own library, which resumes and caches what it fetches and honours `HF_ENDPOINT`,
`HF_HUB_OFFLINE` and `HF_TOKEN`; what it cached is verified by the hash that the Hub published, whenever it is used.
"""

import hashlib
import os
import re
import sys
from pathlib import Path

from tltrain.errors import WeightsError, foreign_errors, reason_of

COMMIT = re.compile(r"[0-9a-f]{40}")  # a revision that is for ever


def is_cached(repo: str, revision: str | None, name: str) -> bool:
    """Whether the file `name` is in the cache of the Hub."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, name, revision=revision), str)


def published_sha256(path: Path) -> str | None:
    """What the Hub published as the sha256 of a large file in its cache; None of any other file."""
    etag = _etag(path)
    return etag if etag and len(etag) == 64 else None


def fetched(repo: str, revision: str | None, name: str) -> Path | None:
    """The verified file `name` in the cache of the Hub; None where the repository has no such file.

    Raises:
        WeightsError: the Hub does not give it, or what it cached is damaged.
    """
    from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    try:
        # a path, None where nothing is known of it, or what says that there is no such file
        known = try_to_load_from_cache(repo, name, revision=revision)
        is_absent = not (known is None or isinstance(known, str))
        if is_absent and COMMIT.fullmatch(revision or ""):
            return None  # for ever
        try:
            path = Path(hf_hub_download(repo, name, revision=revision))
        except errors.LocalEntryNotFoundError:  # without a network
            if is_absent:
                return None
            raise
        except errors.EntryNotFoundError:
            return None
    except Exception as error:  # the library's, those of its web client, and of the disk
        raise _told(error, repo, revision, name) from error
    _verify(path)
    return path


def is_there(repo: str, revision: str | None, name: str) -> bool:
    """Whether the repository has the file `name`, as far as the Hub can be asked."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repo, name, revision=revision))
    except Exception:  # it only chooses between two lines
        return False
    return True


def _told(error, repo, revision, name):
    """The line about an `error` of the Hub's library."""
    from huggingface_hub import constants, errors

    where, given = constants.ENDPOINT, f"hf:{repo}" + (f"@{revision}" if revision else "")
    by_hand = f"or fetch the files of {where}/{repo} by hand and set model.weights to their folder"
    if isinstance(error, errors.GatedRepoError):
        return WeightsError(f"{given} is gated; at {where}/{repo}; ask for access there, and set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError):
        return WeightsError(
            f"no repository {repo!r}, or it is private; at {where}; check the name, or set HF_TOKEN to a token that "
            "may read it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return WeightsError(f"{repo} has no revision {revision!r}; at {where}; see {where}/{repo}/commits/main")
    if isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return WeightsError(
            f"{name} of {given} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; unset it once, {by_hand}"
        )
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
    reason = reason_of(cause or error)
    return WeightsError(f"cannot fetch {name} of {given} from {where}; {reason}; try again, {by_hand}")


def _etag(path):
    """What the Hub published of a file in its cache: the name of what it links to; None where it is no such link."""
    if not path.is_symlink():
        return None
    target = Path(os.readlink(path))  # noqa: PTH115 - one link: the blob itself may be one, into a store of all repos
    return target.name if target.parent.name == "blobs" else None


def _verify(path):
    etag = _etag(path) or ""
    with foreign_errors(WeightsError, f"cannot read {path}", "check the cache of the Hub"), path.open("rb") as file:
        if len(etag) == 64:  # of a large file
            found = hashlib.file_digest(file, "sha256").hexdigest()
        elif len(etag) == 40:  # of a small one, as git has it
            content = file.read()
            found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        else:
            return
    if found != etag:
        raise WeightsError(
            f"{path} is damaged; its hash is {found}, the Hub's is {etag}; remove {path.resolve()} and start again"
        )
