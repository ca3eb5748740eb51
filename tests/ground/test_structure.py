"""The rooms stay apart: who may import what, and how long a function may be."""

import ast
import runpy
from pathlib import Path

import pytest

ROOMS_PY = Path(__file__).parents[2] / "docs" / "rooms.py"
DRAWN = runpy.run_path(str(ROOMS_PY))
ROOMS, FILES, PACKAGE = (DRAWN[name] for name in ("ROOMS", "FILES", "PACKAGE"))
room_of, imports_of = DRAWN["room_of"], DRAWN["imports_of"]
HOMES = {"tensorflow": "data.tensorflow", "tensorflow_datasets": "data.tfds_source", "h5py": "weights"}
HOMES |= {"huggingface_hub": "hub_download", "safetensors": "weights", "tokenizers": "data.kinds.text"}
HOMES |= {"pyarrow": "data.table_reader", "absl": "runtime.command_line", "jinja2": "pages"}
HOMES |= dict.fromkeys(("array_record", "google_crc32c"), "data.records") | {"orbax": "runtime.checkpoint"}
HOMES |= dict.fromkeys(("ai_edge_litert", "keras", "onnx", "onnxruntime", "tf2onnx"), "exports")


@pytest.mark.parametrize("module", FILES)
def test_a_file_imports_only_its_own_room_and_those_below_it(module):
    for name in set(imports_of(module)):
        if name in FILES:
            assert ROOMS.index(room_of(name)) >= ROOMS.index(room_of(module)), f"{module} imports {name}"
        elif name in HOMES:
            assert f"{module}.".startswith(f"{HOMES[name]}."), f"{module} imports {name}"


def test_no_files_import_each_other_in_a_circle():
    below = {module: {name for name in imports_of(module) if name in FILES} - {module} for module in FILES}
    while free := {module for module, names in below.items() if not names & below.keys()}:
        below = {module: names for module, names in below.items() if module not in free}
    assert not below


def test_every_room_says_what_it_is_for_and_what_it_must_not_know():
    rooms = [room for room in ROOMS if room not in DRAWN["BESIDE"]]
    assert {path.relative_to(PACKAGE).parts[0] for path in FILES.values() if path.parent != PACKAGE} == set(rooms)
    for room in rooms:
        (text,) = ast.parse(FILES[room].read_text()).body  # and nothing else
        assert "Nothing here" in " ".join(text.value.value.split()) and len(text.value.value.splitlines()) <= 6


def test_the_drawing_is_that_of_the_code():
    assert (ROOMS_PY.parent / "rooms.svg").read_text() == DRAWN["drawing"](), "run python docs/rooms.py"


@pytest.mark.parametrize("module", FILES)
def test_files_and_functions_are_short(module):
    text = FILES[module].read_text()
    assert len(text.splitlines()) <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name
