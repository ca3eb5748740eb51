"""Sums over batches equal the plain formulas over all examples."""

import jax.numpy as jnp
import numpy as np
import pytest

from tltrain.training import metrics


@pytest.mark.parametrize("size", [1, 7, 8, 9, 63, 64, 65])
def test_totals_do_not_depend_on_how_examples_are_batched(size):
    rng = np.random.default_rng(size)
    losses = rng.exponential(size=size).astype(np.float32)
    label, predicted = rng.integers(0, 3, (2, size)).astype(np.int32)
    total = metrics.Total()
    for i in range(0, size, 8):
        rows = np.resize(np.arange(i, min(i + 8, size)), 8)
        mask = np.arange(i, i + 8) < size
        scores = (predicted == label)[rows].astype(np.float32)
        total.add(metrics.of_batch(jnp.asarray(losses[rows]), scores, mask))
    assert total.count == size
    assert total.summary("accuracy")["accuracy"] == (label == predicted).mean()
    assert total.summary("accuracy")["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_a_masked_row_with_an_infinite_loss_does_not_count():
    losses = jnp.asarray([1.0, jnp.inf])
    sums = metrics.of_batch(losses, jnp.ones(2), jnp.asarray([True, False]))
    assert (float(sums.loss), float(sums.score), int(sums.count)) == (1.0, 1.0, 1)


def test_auc_is_the_share_of_pairs_in_order_ties_counted_half():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 10, 200).astype(float), rng.random(200) < 0.3
    pairs = scores[positive][:, None] - scores[~positive][None]
    assert metrics.auc(scores, positive) == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert np.isnan(metrics.auc(scores, np.ones(200, bool)))
