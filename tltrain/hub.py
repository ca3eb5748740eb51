"""Where a pretrained model lies: a file with its neighbours, a folder, or a repository of the Hugging Face Hub."""

import re
from pathlib import Path
from typing import NamedTuple

from tltrain import hub_download, places
from tltrain.errors import WeightsError, foreign_errors

SAFETENSORS = "model.safetensors"
MAX_HEADER = 2**20  # bytes, of a safetensors file; that of BERT large has 50 thousand
_WEIGHTS = (SAFETENSORS, "model.weights.h5", "model.keras")  # of a folder, the first that is there
_KINDS = (".safetensors", ".h5", ".keras", ".npz")
_TOKENIZERS = ("assets/tokenizer/vocabulary.txt", "tokenizer.json", "vocab.txt")  # KerasHub's, then those of the Hub
_POOLING = "1_Pooling/config.json"  # how sentence-transformers pools
_PIXELS = "preprocessor_config.json"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_PLACE = re.compile(r"hf:([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")


class Pretrained(NamedTuple):
    """Files of a pretrained model, each None where there is none.

    Arrays, sizes, tokenizer, how it pools, and how its images were made ready.
    """

    weights: Path | None
    config: Path | None
    tokenizer: Path | None
    pooling: Path | None
    preprocessor: Path | None


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
    repo, revision = _parsed(place)
    return hub_download.is_cached(repo, revision, SAFETENSORS)


def header_of(path: Path) -> bytes:
    """The header of a safetensors file, JSON with a key an array; raises ValueError where it is too long to be one."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            raise ValueError(f"its header has {size} bytes, at most {MAX_HEADER} are read")
        return file.read(size)


def _of_path(path, weights):
    if not (path.is_dir() or path.is_file()) and path.suffix not in _PICKLES:
        raise WeightsError(
            f"no weight file at {path}; set model.weights to a Keras .h5 or .keras, to a model.safetensors or its "
            "folder, to an .npz of Flax, to 'hf:OWNER/NAME' or to 'imagenet'"
        )
    folder = path if path.is_dir() else path.parent
    found = path
    if weights or not path.is_dir():
        found = _in_folder(path) if path.is_dir() else path
        _check_kind(found, folder)

    def beside(*names):
        return next((folder / name for name in names if (folder / name).is_file()), None)

    return Pretrained(
        found if weights else None, beside("config.json"), beside(*_TOKENIZERS), beside(_POOLING), beside(_PIXELS)
    )


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
    config = hub_download.fetched(repo, revision, "config.json")
    if config is not None and hub_download.COMMIT.fullmatch(config.parent.name):
        revision = config.parent.name  # all files are of one commit, whatever is pushed meanwhile
    tokenizer = hub_download.fetched(repo, revision, "tokenizer.json")
    if tokenizer is None and (tokenizer := hub_download.fetched(repo, revision, "vocab.txt")):
        hub_download.fetched(repo, revision, "tokenizer_config.json")  # it says whether vocab.txt is of lower case
    pooling = hub_download.fetched(repo, revision, _POOLING)
    path = hub_download.fetched(repo, revision, SAFETENSORS) if weights else None
    if weights and path is None:
        for name in (_INDEX, "pytorch_model.bin"):
            if hub_download.is_there(repo, revision, name):
                _check_kind(Path(name), repo)
        raise WeightsError(f"{place} has no {SAFETENSORS}, which is what is read; name another repository")
    return Pretrained(path, config, tokenizer, pooling, hub_download.fetched(repo, revision, _PIXELS))
