"""Where a pretrained model lies: files, folders and the Hub, which a local server speaks for; never a damaged copy."""

import contextlib
import hashlib
import http.server
import json
import threading
from pathlib import Path

import huggingface_hub
import pytest
import small_bert
from huggingface_hub import constants
from small_bert import BERT, shapes

from tltrain import config as config_lib
from tltrain import hub, hub_download, places
from tltrain.errors import ConfigError, WeightsError
from tltrain.rules import holds
from tltrain.weights import reader

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "owner/small-bert"
SMALL_FILES = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "1_Pooling/config.json": b'{"b": 2}'}


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's protocol that files are fetched by."""

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_body):
        state = self.server.state
        state["asked"].append((self.command, self.path))
        repo, _, rest = self.path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repo == "owner/gated":
            return self.refuse(403, "GatedRepo")
        if repo != REPO:
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if name not in state["files"]:
            return self.refuse(404, "EntryNotFound")
        content = state["files"][name]
        is_large = name.endswith((".safetensors", ".bin"))
        etag = hashlib.sha256(content).hexdigest() if is_large else git_hash(content)
        self.send_response(200)
        self.send_header("ETag", f'"{etag}"')
        if is_large:
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.head(len(content))
        return self.wfile.write(state["sent"].get(name, content)) if with_body else None

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.head(0)

    def head(self, size):
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(state):
    """The address of a Hub with one repository: its `files`, those `sent` with other bytes, what was `asked` for."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.state = state
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A Hub with a BERT; what it has, sends and was asked for."""
    weights = small_bert.write(tmp_path / "served.safetensors").read_bytes()
    state = {"files": SMALL_FILES | {"model.safetensors": weights}, "sent": {}, "asked": []}
    with serving(state) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield state


def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()


def test_files_are_fetched_once_and_are_there_without_a_network(served, monkeypatch, capfd):
    assert not hub.is_here(f"hf:{REPO}")
    small = hub.files(f"hf:{REPO}", weights=False)
    assert small.weights is None and small.config.read_bytes() == b"{}" and not hub.is_here(f"hf:{REPO}")
    found = hub.files(f"hf:{REPO}")
    assert found == small._replace(weights=found.weights) and hub.is_here(f"hf:{REPO}")
    loaded = reader.load(found.weights, BERT, shapes())
    assert small_bert.same(loaded.variables, small_bert.variables())
    assert hub_download.published_sha256(found.weights) == loaded.sha256
    assert reader.verified_by(f"hf:{REPO}", BERT, found.weights, "") == "sha256"
    fetched = [path.rpartition("/")[2] for command, path in served["asked"] if command == "GET" and REPO in path]
    assert sorted(fetched) == [
        "config.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]  # that of 1_Pooling too
    served["asked"].clear()
    offline(monkeypatch)
    assert hub.files(f"hf:{REPO}") == found and not served["asked"]
    assert capfd.readouterr().err == ""  # no bars where there is no terminal


def test_a_revision_that_is_a_commit_is_asked_for_nothing_once_it_is_there(served):
    del served["files"]["1_Pooling/config.json"]
    found = hub.files(f"hf:{REPO}@{COMMIT}")
    assert found.pooling is None and found.tokenizer.name == "tokenizer.json"
    served["asked"].clear()
    assert hub.files(f"hf:{REPO}@{COMMIT}") == found and not served["asked"]


def test_a_vocabulary_alone_comes_with_what_says_its_case(served, monkeypatch):
    del served["files"]["tokenizer.json"]
    served["files"] |= {"vocab.txt": b"[PAD]", "tokenizer_config.json": b"{}"}
    found = hub.files(f"hf:{REPO}", weights=False)
    assert found.tokenizer.name == "vocab.txt" and found.tokenizer.with_name("tokenizer_config.json").exists()
    offline(monkeypatch)
    assert hub.files(f"hf:{REPO}", weights=False) == found


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("when", ["sent", "cached"])
def test_a_damaged_file_is_refused_with_what_to_remove_and_fetched_again_then(name, when, served):
    content = served["files"][name]
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    if when == "sent":
        served["sent"][name] = damaged
    else:
        hub.files(f"hf:{REPO}")
        (Path(constants.HF_HUB_CACHE) / f"models--owner--small-bert/snapshots/{COMMIT}" / name).resolve().write_bytes(
            damaged
        )
    with pytest.raises(
        WeightsError, match=rf"{name} is damaged; its hash is .*, the Hub's is .*; remove .*/blobs/"
    ) as caught:
        hub.files(f"hf:{REPO}")
    Path(str(caught.value).partition("remove ")[2].removesuffix(" and start again")).unlink()
    served["sent"].clear()
    assert hub.files(f"hf:{REPO}").weights.read_bytes() == served["files"]["model.safetensors"]


REFUSED = {
    "repository": ("hf:owner/none", "no repository 'owner/none', or it is private; at http://127.*set HF_TOKEN"),
    "gated": (
        "hf:owner/gated",
        "hf:owner/gated is gated; at http://.*/owner/gated; ask for access there, and set HF_TOKEN",
    ),
    "revision": (f"hf:{REPO}@v9", "owner/small-bert has no revision 'v9'"),
    "no_name": ("hf:", "'hf:' names no repository; in model.weights; allowed: 'hf:OWNER/NAME"),
    "three_parts": ("hf:a/b/c", "'hf:a/b/c' names no repository"),
    "bad_name": ("hf:a--b/c..d", "cannot fetch config.json of hf:a--b/c..d"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hub_does_not_give_is_one_line(case, served):
    place, message = REFUSED[case]
    with pytest.raises(WeightsError, match=message) as caught:
        hub.files(place)
    assert str(caught.value).isprintable()


OTHER_FORMS = {
    "pytorch_model.bin": r"is pickled.* AutoModel.from_pretrained\('.*'\).save_pretrained\('converted', safe_serializa",
    "model.safetensors.index.json": "weights in several files are not read; of .*; save them as one model.safetensors",
    "README.md": "no weight file in .*model; it needs one of model.safe|has no model.safetensors",
}


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_a_repository_and_a_folder_of_another_form_are_refused_in_a_line(name, served, tmp_path):
    del served["files"]["model.safetensors"]
    served["files"][name] = b"x"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_bytes(b"x")
    for place in (f"hf:{REPO}", str(tmp_path / "model")):
        with pytest.raises(WeightsError, match=OTHER_FORMS[name]):
            hub.files(place)


def test_without_a_network_the_line_says_what_to_fetch_by_hand(served, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its tries
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    by_hand = "or fetch the files of http://127.0.0.1:9/owner/small-bert by hand and set model.weights to their folder"
    with pytest.raises(
        WeightsError, match=f"cannot fetch config.json of hf:{REPO} from http://127.*refused.*{by_hand}"
    ):
        hub.files(f"hf:{REPO}")
    offline(monkeypatch)
    with pytest.raises(
        WeightsError, match=f"config.json of hf:{REPO} is not in .*cache, and HF_HUB_OFFLINE is set.*{by_hand}"
    ):
        hub.files(f"hf:{REPO}")


def folder_of(path, *names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"")
    return path


FOLDERS = {
    "safetensors": ("model.safetensors", "config.json", "tokenizer.json", "vocab.txt", "1_Pooling/config.json"),
    "vocabulary": ("model.safetensors", "config.json", "vocab.txt", None),
    "keras_hub": ("model.weights.h5", "config.json", "assets/tokenizer/vocabulary.txt", "tokenizer.json", None),
    "another_name": ("mine.safetensors", None, None),
    "beside_pickles": ("model.safetensors", None, None, "pytorch_model.bin"),
}


@pytest.mark.parametrize("case", FOLDERS)
@pytest.mark.parametrize("by_file", [False, True])
def test_a_folder_and_its_weight_file_name_the_same_files(case, by_file, tmp_path):
    weights, config, tokenizer, *rest = FOLDERS[case]
    folder_of(tmp_path, *(name for name in FOLDERS[case] if name))
    pooling = "1_Pooling/config.json" if "1_Pooling/config.json" in rest else None
    expected = hub.Pretrained(*(name and tmp_path / name for name in (weights, config, tokenizer, pooling, None)))
    place = str(tmp_path / weights if by_file else tmp_path)
    assert hub.files(place) == expected
    assert hub.files(place, weights=False) == expected._replace(weights=None)
    assert hub.is_here(place) and hub_download.published_sha256(expected.weights) is None


def test_a_path_with_nothing_to_read_is_one_line(tmp_path):
    two = folder_of(tmp_path / "two", "a.h5", "b.h5")
    for place, message in {
        tmp_path / "none.h5": "no weight file at .*none.h5; set model.weights to",
        tmp_path / "none.ckpt": "none.ckpt is pickled, and reading it could run code",
        tmp_path / ("9" * 300): "cannot read|no weight file",
        two: "no weight file in .*two; .* and has 2 of them, of which model.weights may name one",
        folder_of(tmp_path, "model-00001-of-00002.safetensors")
        / "model-00001-of-00002.safetensors": "in several files",
    }.items():
        with pytest.raises(WeightsError, match=message):
            hub.files(str(place))
    with pytest.raises(ConfigError, match="remote paths are not supported: s3://x"):
        hub.files("s3://x/model.safetensors")


PLACES = {
    "imagenet": None,
    "random": None,
    "w.h5": "/here/w.h5",
    "random.h5": "/here/random.h5",
    "random:models/bert": "random:/here/models/bert",
    "random:/abs": "random:/abs",
    "random:hf:a/b": None,
    "hf:a/b@main": None,
}


@pytest.mark.parametrize("value", PLACES)
def test_paths_within_model_weights_become_absolute_and_names_stay(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert holds("model.weights", value)
    found = places.absolute({"model.weights": value}).get("model.weights")
    assert found == (PLACES[value] and PLACES[value].replace("/here", str(tmp_path)))
    assert hub.is_random(value) == (value == "random" or value.startswith("random:"))
    assert hub.place_of(value) == {"imagenet": None, "random": None}.get(value, value.removeprefix("random:"))


def test_a_place_that_names_nothing_is_no_value_of_the_key():
    assert not any(holds("model.weights", value) for value in ("", "random:", "hf:", None, 3))


def test_the_pins_of_a_config_are_those_of_files(tiny):
    tiny.model.update(weights="random:hf:a/b", sha256="0" * 64)
    assert any("model.sha256 with model.weights = 'random:hf:a/b'" in text for text in config_lib.problems(tiny))
    assert json.loads(config_lib.to_json(tiny))["model"]["weights"] == "random:hf:a/b"
