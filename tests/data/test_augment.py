"""RandAugment applies the operations of its paper, as many as asked for, each as often as any other."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from test_data import encode

from tltrain.data.kinds.image_augment import OPERATIONS, Augment
from tltrain.data.kinds.image_decoding import load_image

STILL = Augment(False, False, 1.0, 0.0, 0.0, (0, 0), seed=1)
SIZE = (40, 60)


def photo():
    """Colours with some texture, none of them at an end of the range."""
    y, x = np.mgrid[0:40, 0:60]
    texture = np.random.default_rng(0).integers(0, 20, (40, 60, 3))
    return Image.fromarray((np.stack([60 + 2 * x, 50 + 3 * y, 200 - x - y], -1) + texture).astype(np.uint8))


def augmented(randaugment, epoch, image=None):
    augment = dataclasses.replace(STILL, randaugment=randaugment)
    return load_image(encode(image or photo()), SIZE, "stretch", augment, (epoch, 5))


def outcomes(magnitude):
    """Every operation at both signs of `magnitude`."""
    levels = (magnitude / 10, -magnitude / 10)
    return {name: {np.asarray(run(photo(), v)).tobytes() for v in levels} for name, run in OPERATIONS.items()}


def test_the_operations_are_the_14_of_the_paper_and_each_does_something_else():
    found = outcomes(9)
    assert len(found) == 14
    every = [outcome for name in found for outcome in found[name]]
    assert len(set(every)) == len(every)
    assert found["identity"] == {np.asarray(photo()).tobytes()}


def test_at_magnitude_zero_only_the_operations_without_a_strength_change_the_image():
    plain = {np.asarray(photo()).tobytes()}
    assert {name for name, found in outcomes(0).items() if found != plain} == {"autocontrast", "equalize"}


def test_one_operation_is_drawn_with_equal_chance_and_each_sign_too():
    by_outcome = {outcome: name for name, found in outcomes(9).items() for outcome in found}
    counts = dict.fromkeys(OPERATIONS, 0)
    seen = set()
    for epoch in range(700):
        seen.add(outcome := augmented((1, 9), epoch).tobytes())
        counts[by_outcome[outcome]] += 1
    assert seen == set(by_outcome)
    assert all(20 < count < 85 for count in counts.values()), counts


def test_two_operations_are_one_after_the_other():
    once = {outcome for found in outcomes(9).values() for outcome in found}
    results = [augmented((2, 9), epoch).tobytes() for epoch in range(100)]
    assert sum(result in once for result in results) < 50
    assert results == [augmented((2, 9), epoch).tobytes() for epoch in range(100)], "a pure function"


@pytest.mark.parametrize("name", ["rotate", "shear_x", "translate_y", "brightness"])
def test_a_larger_magnitude_changes_more(name):
    plain = np.asarray(photo()).astype(int)
    change = [np.abs(np.asarray(OPERATIONS[name](photo(), level)) - plain).mean() for level in (0.0, 0.3, 1.0)]
    assert change[0] == 0 < change[1] < change[2]


def test_without_it_the_other_draws_are_as_they_were():
    flipped = dataclasses.replace(STILL, horizontal_flip=True, rotation=10.0)
    for epoch in range(20):
        with_it = dataclasses.replace(flipped, randaugment=(1, 0))
        a, b = (load_image(encode(photo()), SIZE, "stretch", x, (epoch, 0)) for x in (flipped, with_it))
        possible = [np.asarray(run(Image.fromarray(a), 0.0)).tobytes() for run in OPERATIONS.values()]
        assert b.tobytes() in possible
