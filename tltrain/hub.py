"""Where a pretrained model lies: a file with its neighbours, a folder, or a repository of the Hugging Face Hub.

The Hub is asked by its own library, which resumes and caches what it fetches and honours `HF_ENDPOINT`,
`HF_HUB_OFFLINE` and `HF_TOKEN`; what it cached is verified by the hash that the Hub published, whenever it is used.
"""

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from tltrain import places
from tltrain.errors import WeightsError, foreign_errors, reason_of

SAFETENSORS = "model.safetensors"
MAX_HEADER = 2**20  # bytes, of a safetensors file; that of BERT large has 50 thousand
_WEIGHTS = (SAFETENSORS, "model.weights.h5", "model.keras")  # of a folder, the first that is there
_KINDS = (".safetensors", ".h5", ".keras")
_TOKENIZERS = ("assets/tokenizer/vocabulary.txt", "tokenizer.json", "vocab.txt")  # KerasHub's, then those of the Hub
_POOLING = "1_Pooling/config.json"  # how sentence-transformers pools
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_PLACE = re.compile(r"hf:([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Pretrained(NamedTuple):
    """Files of a pretrained model, each None where there is none: arrays, sizes, tokenizer, and how it pools."""

    weights: Path | None
    config: Path | None
    tokenizer: Path | None
    pooling: Path | None


def is_random(source: str) -> bool:
    """Whether `source`, a value of `model.weights`, asks for random weights."""
    return source == "random" or source.startswith("random:")


def place_of(source: str) -> str | None:
    """The place within `source`, a value of `model.weights`, that `files` takes; None where it names none."""
    return None if source in ("pretrained", "imagenet", "random") else source.removeprefix("random:")


def files(place: str, weights: bool = True) -> Pretrained:
    """The files at `place`; without `weights`, which are large, only the others, and only they are fetched.

    Args:
        place: path of a weight file, its neighbours beside it; of the folder of them; or `hf:OWNER/NAME[@REVISION]`.
        weights: whether they are wanted.

    Raises:
        WeightsError: nothing is there, or it is pickled, divided into several files or damaged; or the Hub cannot be
            reached, or does not give the files.
    """
    if place.startswith("hf:"):
        return _of_hub(place, weights)
    path = places.local(place, "model.weights of the config")
    with foreign_errors(WeightsError, f"cannot read {path}", "check the path and its permissions"):
        return _of_path(path, weights)


def is_here(place: str) -> bool:
    """Whether nothing large has to be fetched for the weights at `place`, be they there or not."""
    if not place.startswith("hf:"):
        return True
    from huggingface_hub import try_to_load_from_cache

    repo, revision = _parsed(place)
    return isinstance(try_to_load_from_cache(repo, SAFETENSORS, revision=revision), str)


def header_of(path: Path) -> bytes:
    """The header of a safetensors file, JSON with a key an array; raises ValueError where it is too long to be one."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            raise ValueError(f"its header has {size} bytes, at most {MAX_HEADER} are read")
        return file.read(size)


def published_sha256(path: Path) -> str | None:
    """What the Hub published as the sha256 of a large file in its cache; None of any other file."""
    etag = _etag(path)
    return etag if etag and len(etag) == 64 else None


def _of_path(path, weights):
    if not (path.is_dir() or path.is_file()) and path.suffix not in _PICKLES:
        raise WeightsError(
            f"no weight file at {path}; set model.weights to a Keras .h5 or .keras, to a model.safetensors or its "
            "folder, to 'hf:OWNER/NAME' or to 'imagenet'"
        )
    folder = path if path.is_dir() else path.parent
    found = path
    if weights or not path.is_dir():
        found = _in_folder(path) if path.is_dir() else path
        _check_kind(found, folder)

    def beside(*names):
        return next((folder / name for name in names if (folder / name).is_file()), None)

    return Pretrained(found if weights else None, beside("config.json"), beside(*_TOKENIZERS), beside(_POOLING))


def _in_folder(folder):
    """The weight file of `folder`, or what stands in its place."""
    names = sorted(entry.name for entry in folder.iterdir())
    kinds = [name for name in names if Path(name).suffix in _KINDS]
    chosen = [name for name in _WEIGHTS if name in names] or kinds[: len(kinds) == 1]
    chosen += [name for name in names if name == _INDEX or Path(name).suffix in _PICKLES]
    if not chosen:
        raise WeightsError(
            f"no weight file in {folder}; it needs one of {', '.join(_WEIGHTS)}, or a single file of another name"
            + (f", and has {len(kinds)} of them, of which model.weights may name one" if kinds else "")
        )
    return folder / chosen[0]


def _check_kind(path, place):
    """Raises where a weight file, of a folder or a repository `place`, is one that is not read."""
    if path.suffix in _PICKLES:
        raise WeightsError(
            f"{path.name} is pickled, and reading it could run code; of {place}; with transformers, AutoModel."
            f"from_pretrained({str(place)!r}).save_pretrained('converted', safe_serialization=True) writes the folder "
            "'converted', which model.weights takes"
        )
    if path.name == _INDEX or re.search(r"-\d{5}-of-\d{5}\.safetensors$", path.name):
        raise WeightsError(
            f"weights in several files are not read; of {place}, {path.name}; save them as one {SAFETENSORS}, by "
            "save_pretrained('converted', max_shard_size='100GB') of transformers"
        )


def _parsed(place):
    if found := _PLACE.fullmatch(place):
        return found[1], found[2]
    raise WeightsError(f"{place!r} names no repository; in model.weights; allowed: 'hf:OWNER/NAME[@REVISION]'")


def _of_hub(place, weights):
    repo, revision = _parsed(place)
    config = _fetched(repo, revision, "config.json")
    if config is not None and _COMMIT.fullmatch(config.parent.name):
        revision = config.parent.name  # all files are of one commit, whatever is pushed meanwhile
    tokenizer = _fetched(repo, revision, "tokenizer.json")
    if tokenizer is None and (tokenizer := _fetched(repo, revision, "vocab.txt")):
        _fetched(repo, revision, "tokenizer_config.json")  # it says whether vocab.txt is of lower case
    pooling = _fetched(repo, revision, _POOLING)
    path = _fetched(repo, revision, SAFETENSORS) if weights else None
    if weights and path is None:
        for name in (_INDEX, "pytorch_model.bin"):
            if _is_there(repo, revision, name):
                _check_kind(Path(name), repo)
        raise WeightsError(f"{place} has no {SAFETENSORS}, which is what is read; name another repository")
    return Pretrained(path, config, tokenizer, pooling)


def _fetched(repo, revision, name):
    """The verified file `name` in the cache of the Hub; None where the repository has no such file."""
    from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    try:
        # a path, None where nothing is known of it, or what says that there is no such file
        known = try_to_load_from_cache(repo, name, revision=revision)
        is_absent = not (known is None or isinstance(known, str))
        if is_absent and _COMMIT.fullmatch(revision or ""):
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


def _is_there(repo, revision, name):
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
