"""The CPU formulations equal the plain convolution, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tltrain.models import convolution, layers

SIZES = [(7, 7), (8, 8), (8, 33)]


def plain(x, kernel, strides, groups):
    padding = convolution.same_padding(x.shape[1:3], kernel.shape[:2], strides)
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


CASES = {
    "depthwise": (12, (3, 3, 1, 12), 12),
    "depthwise_5x5": (12, (5, 5, 1, 12), 12),
    "pointwise": (12, (1, 1, 12, 5), 1),
    "stem": (3, (3, 3, 3, 8), 1),
    "dense_3x3": (12, (3, 3, 12, 5), 1),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_conv2d_and_its_gradients_equal_the_plain_convolution(case, stride, size, dtype):
    channels, kernel_shape, groups = CASES[case]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, channels)), dtype)
    kernel = jnp.asarray(rng.normal(size=kernel_shape), dtype)
    strides = (stride, stride)

    def run(function):
        def objective(x, kernel):
            y = function(x, kernel, strides, groups).astype(jnp.float32)
            return (y * jnp.sin(jnp.arange(y.size).reshape(y.shape))).sum(), y

        (_, y), grads = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(x, kernel)
        return [y, *grads]

    tolerance = 2e-5 if dtype == "float32" else 3e-2
    for ours, theirs in zip(run(convolution.conv2d), run(plain), strict=True):
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize("batch", [1, 5, 12])
def test_map_chunks_equals_one_call(batch):
    x = np.random.default_rng(0).normal(size=(batch, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(layers.map_chunks(lambda part: part.sum(1) * 2, x, 8), x.sum(1) * 2)


def test_batch_norm_in_training_moves_its_statistics_by_keras_rule():
    norm = layers.BatchNorm(4, epsilon=1e-3, momentum=0.9)
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (5, 6, 7, 4)), jnp.float32)
    variables = norm.init(jax.random.key(0), x)
    y, updated = norm.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-4)


def test_dropout_of_a_row_depends_on_its_own_key_alone():
    keys = jax.random.split(jax.random.key(0), 6)
    x = jnp.ones((6, 1000))
    whole = layers.dropout(x, 0.4, keys)
    np.testing.assert_array_equal(layers.dropout(x[2:4], 0.4, keys[2:4]), whole[2:4])
    assert 0.55 < float((whole > 0).mean()) < 0.65
    np.testing.assert_allclose(float(whole.mean()), 1.0, atol=0.05)
