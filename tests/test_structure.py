"""The rooms stay apart: who may import what, and how long a function may be."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tltrain"
# a file imports only files below it in this list
ORDER = (
    "__main__ main find_lr export export_formats export_keras export_resize sweep table doctor checks.data "
    "checks.weights checks.pixels checks.seconds checks.memory checks.machine checks.settings checks.phases "
    "checks.case checks.finding checks together heads train predict evaluate ridge loop evaluation programs inputs "
    "features forward store space finished steps mix optim report compare run_page page charts scores bootstrap "
    "thumbnails scalars workdir record identity checkpoint command parallel data.inspect data.pipeline data.sources "
    "data.folder_source data.tfds_source data.content data.split data.preprocess data.files data.augment data sealed "
    "console models.zoo freeze weights weights_file keras_layout download models.classifier models.densenet "
    "models.resnet_v2 models.resnet models.efficientnet models.mobilenet_v2 models.mobilenet_v1 models.inception_v3 "
    "models.xception models.vgg models.pooling models.backbone models.layers models.winograd models.convolution "
    "metrics config rules places verbs signals errors "
).split()
HOMES = {"tensorflow": "data", "tensorflow_datasets": "data", "h5py": "weights", "orbax": "checkpoint"}
HOMES |= {"absl": "command", "keras": "export_keras"}
HOMES |= {"ai_edge_litert": "export_formats", "onnx": "export_formats", "onnxruntime": "export_formats"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "models" or path.name != "__init__.py")


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_imports_only_what_lies_below_it(path):
    module = module_of(path)
    if not module:
        return
    for name in imports_of(ast.parse(path.read_text())):
        top, _, rest = name.partition(".")
        if top == "tltrain" and rest in ORDER:
            assert ORDER.index(rest) > ORDER.index(module), f"{module} imports {rest}"
        if top in HOMES:
            assert module.startswith(HOMES[top]), f"{module} imports {top}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name
