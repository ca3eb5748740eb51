"""Mixup and CutMix: the images, the shares of their labels, and the loss are those of the papers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from test_freeze import BATCH, SMOOTH, batch_of, model_and_variables, step_of
from test_train import run

from tltrain.experiment import together
from tltrain.training import mix

SIZE = (8, 12)


def batch_by_row():
    """Each image is constant at the number of its row, and all rows count."""
    pixels = np.broadcast_to(np.arange(BATCH, dtype=np.uint8)[:, None, None, None], (BATCH, *SIZE, 3))
    return batch_of() | {"inputs": pixels, "label": np.arange(BATCH, dtype=np.int32), "mask": np.ones(BATCH, bool)}


@functools.cache
def many(mixup, cutmix, count=400):
    """Batches mixed by `count` keys, along the first axis."""
    keys = jax.random.split(jax.random.key(1), count)
    mixed = jax.jit(jax.vmap(lambda key: mix.mixed(batch_by_row(), key, mixup, cutmix, None)))(keys)
    return jax.tree.map(np.asarray, mixed)


def own_share(mixed):
    """The weight of a row's own image at each pixel of row 0, whose partner is row 7: `[count, H, W]`."""
    return 1 - mixed["inputs"][:, 0, :, :, 0] / (BATCH - 1)


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)], ids=["mixup", "cutmix", "both"])
def test_the_label_of_a_row_has_the_share_that_its_image_has(alphas):
    mixed = many(*alphas)
    share = own_share(mixed).mean((1, 2))
    np.testing.assert_allclose(mixed["share"][:, 0], np.maximum(share, 1 - share), atol=1e-5)
    clear = np.abs(share - 0.5) > 1e-4
    np.testing.assert_array_equal(mixed["label"][clear, 0], np.where(share > 0.5, 0, BATCH - 1)[clear])
    np.testing.assert_array_equal(mixed["label"] + mixed["other"], BATCH - 1)


def test_cutmix_pastes_one_box_whose_area_is_one_minus_the_share():
    weights = own_share(many(0.0, 1.0))
    assert set(np.unique(weights.round(6))) == {0.0, 1.0}
    for weight, share in zip(weights, many(0.0, 1.0)["share"][:, 0], strict=True):
        rows, columns = (weight == 0).any(1), (weight == 0).any(0)
        assert (weight == 0).sum() == rows.sum() * columns.sum()
        assert min(weight.mean(), 1 - weight.mean()) == pytest.approx(1 - share, abs=1e-5)
        for line in (rows, columns):
            assert np.abs(np.diff(line.astype(int))).sum() <= 2, "without gaps"


@pytest.mark.parametrize("alpha", [0.2, 4.0])
def test_the_share_of_mixup_is_drawn_from_beta_of_alpha(alpha):
    share = own_share(many(alpha, 0.0)).mean((1, 2))
    assert np.ptp(own_share(many(alpha, 0.0)), (1, 2)).max() < 1e-6, "one share for the whole image"
    assert share.mean() == pytest.approx(0.5, abs=0.06)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.2)


def test_where_both_are_on_each_is_drawn_in_half_of_the_steps():
    weights = own_share(many(0.4, 1.0))
    boxes = np.mean([set(np.unique(w.round(6))) <= {0.0, 1.0} for w in weights])
    assert boxes == pytest.approx(0.5, abs=0.1)


def test_a_row_whose_partner_is_masked_stays_as_it_is():
    batch = batch_by_row() | {"mask": np.arange(BATCH) < BATCH - 2}
    mixed = mix.mixed(batch, jax.random.key(3), 1.0, 0.0, None)
    np.testing.assert_array_equal(mixed["inputs"][:2], batch["inputs"][:2])
    np.testing.assert_array_equal(mixed["share"][:2], 1)
    np.testing.assert_array_equal(mixed["label"][:2], [0, 1])
    assert (mixed["share"][2:6] < 1).all()


def test_the_loss_is_that_of_both_labels_by_their_shares_with_smoothing_and_class_weights():
    model, variables = model_and_variables()
    class_weights = np.asarray([1.0, 2.0, 5.0], np.float32)
    task = dataclasses.replace(SMOOTH, class_weights=tuple(class_weights.tolist()))
    step, state, _ = step_of("all", task=task, mixup=0.8)
    batch = batch_of()
    counted = jax.jit(functools.partial(step, model=model.clone(dropout=0.0)))(state, batch)[1][0]
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 2**31)
    share = np.float32(jax.random.beta(jax.random.split(key, 3)[1], 0.8, 0.8))
    share = np.where(batch["mask"][::-1], share, 1)
    pixels = batch["inputs"].astype(np.float32)
    pixels = share[:, None, None, None] * pixels + (1 - share[:, None, None, None]) * pixels[::-1]
    logp = np.asarray(jax.nn.log_softmax(jax.jit(model.apply)(variables, pixels)))
    smooth = 0.9 * np.eye(3) + 0.1 / 3
    losses = [-(smooth[label] * logp).sum(1) * class_weights[label] for label in (batch["label"], batch["label"][::-1])]
    expected = ((share * losses[0] + (1 - share) * losses[1]) * batch["mask"]).sum()
    assert float(counted.loss) == pytest.approx(expected, rel=1e-4)
    larger = np.where(share >= 0.5, batch["label"], batch["label"][::-1])[batch["mask"]]
    right = logp.argmax(1)[batch["mask"]] == larger
    assert (int(counted.score), int(counted.count)) == (right.sum(), len(right))


def test_a_phase_that_mixes_trains_from_images_and_evaluates_from_what_is_stored(tiny, tmp_path, capsys):
    tiny.finetune.epochs = 0
    tiny.probe.update(mixup=0.2, cutmix=1.0)
    assert together.group_of(tiny) is None
    result = run(tiny, tmp_path / "run")
    assert "probe: train from images; probe.mixup and cutmix mix images" in capsys.readouterr().out
    assert sum(map(sum, result["chosen"]["val"]["confusion"])) == 12
    assert [len(np.load(path)) for path in (tmp_path / "features").rglob("rows-*.npy")] == [12]
    tiny.probe.update(mixup=0.0, cutmix=0.0)
    assert together.group_of(tiny) is not None
