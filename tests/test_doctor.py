"""The doctor finds each planted fault, and none where there is none."""

import io
import shutil

import numpy as np
import pytest
from conftest import write_images
from PIL import Image

from tltrain import doctor
from tltrain.checks import data, machine, memory, pixels, seconds, settings, weights
from tltrain.checks.case import Case
from tltrain.data import inspect, sources
from tltrain.data.preprocess import load_image


@pytest.fixture
def clean(tiny, tmp_path):
    """The tiny config with 200 images of its own, train and val in folders of their own, so that files can be moved."""
    root = tmp_path / "clean"
    write_images(root / "train", {"light": 30, "dark": 30})
    write_textures(root / "val", {"light": 75, "dark": 75})
    tiny.data.update(source=f"folder:{root}", splits=("train", "val"))
    return root


def write_textures(root, counts):
    rng = np.random.default_rng(1)
    for level, (name, count) in zip((170, 85), counts.items(), strict=True):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(rng.normal(level, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}_{i:03}.jpg", quality=90)


def case_of(config, tmp_path, limit=0):
    return Case(settings.repaired(config), tmp_path / "run", limit, lambda: False)


def findings(config, tmp_path, *checks):
    case = case_of(config, tmp_path)
    return [finding for check in checks for finding in check(case)]


def problems(found):
    return [finding for finding in found if finding.level == "problem"]
