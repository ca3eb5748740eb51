"""The CPU formulations equal the plain convolution, forward and backward."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import graded
from jax import lax

from tltrain.models import convolution, layers, pooling, winograd

SIZES = [(7, 7), (8, 8), (8, 33)]
PADDINGS = {"same": None, "valid": convolution.VALID, "explicit": ((0, 2), (1, 0))}


def plain(x, kernel, strides, groups):
    padding = convolution.same_padding(x.shape[1:3], kernel.shape[:2], strides)
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


CASES = {
    "depthwise": (12, (3, 3, 1, 12), 12),
    "depthwise_5x5": (12, (5, 5, 1, 12), 12),
    "depthwise_7x7": (12, (7, 7, 1, 12), 12),
    "pointwise": (12, (1, 1, 12, 5), 1),
    "stem": (3, (3, 3, 3, 8), 1),
    "dense_3x3": (12, (3, 3, 12, 5), 1),
    "larger_than_the_map": (12, (1, 9, 12, 5), 1),
}


GRID = [
    *itertools.product(CASES, [1, 2], SIZES, ["float32"]),
    *itertools.product(CASES, [1, 2], [(8, 8)], ["bfloat16"]),
]
ALL_KINDS = [(1, (8, 33), "float32"), (2, (7, 7), "float32"), (2, (8, 8), "bfloat16")]


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("case", "stride", "size", "dtype"), graded(GRID, [(case, *kind) for case in CASES for kind in ALL_KINDS]), ids=str
)
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


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("case", ["pointwise", "stem", "dense_3x3", "depthwise"])
def test_an_explicit_padding_is_the_one_of_the_plain_convolution(case, padding):
    channels, kernel_shape, groups = CASES[case]
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 8, 9, channels), kernel_shape))
    padding = PADDINGS[padding]
    around = "SAME" if padding is None else padding
    expected = lax.conv_general_dilated(
        x, kernel, (1, 1), around, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )
    ours = convolution.conv2d(jnp.asarray(x), jnp.asarray(kernel), (1, 1), groups, padding)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.optimized
@pytest.mark.parametrize("padding", graded(PADDINGS, ["same"]))
@pytest.mark.parametrize("kernel_size", winograd.KERNEL_SIZES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_transformed_kernel_gives_the_plain_convolution(kernel_size, size, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 12)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*kernel_size, 12, 5)), jnp.float32)
    expected = convolution.conv2d(x, kernel, (1, 1), padding=PADDINGS[padding])
    ours = winograd.convolve(x, winograd.transform_kernel(kernel), PADDINGS[padding])
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=3e-6 * float(jnp.abs(expected).max()))


@pytest.mark.optimized
@pytest.mark.parametrize("size", [3, 4, 7, 8, 17])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [(1, 1), *winograd.KERNEL_SIZES, (1, 7), (5, 5)], ids=str)
def test_the_place_of_an_image_in_a_batch_does_not_show(kernel_size, stride, size):
    rng = np.random.default_rng(0)
    images = np.repeat(rng.normal(size=(1, size, size, 64)).astype(np.float32), 8, axis=0)
    kernel = jnp.asarray(rng.normal(size=(*kernel_size, 64, 32)), jnp.float32)
    formulations = [lambda x: convolution.conv2d(x, kernel, (stride, stride))]
    if stride == 1 and kernel_size in winograd.KERNEL_SIZES:
        formulations.append(lambda x: winograd.convolve(x, winograd.transform_kernel(kernel)))
    for convolve in formulations:
        result = np.asarray(jax.jit(convolve, compiler_options=layers.forward_options())(images))
        np.testing.assert_array_equal(result, np.repeat(result[:1], 8, axis=0))


@pytest.mark.parametrize("window, stride, dtype", [(2, 2, "float32"), (3, 2, "bfloat16"), (3, 1, "float32")])
def test_pooling_and_its_gradients_equal_the_plain_ones(window, stride, dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 8, 33, 4)), dtype)  # many are equal
    sizes = ((window, window), (stride, stride))
    plain_mean = functools.partial(nn.avg_pool, count_include_pad=False)

    def run(function):
        def objective(x, padding):
            y = function(x, *sizes, padding).astype(dtype)
            return (y * jnp.sin(jnp.arange(y.size, dtype=dtype)).reshape(y.shape)).sum(), y

        grad = jax.grad(objective, has_aux=True)
        return jax.jit(lambda x: [grad(x, padding) for padding in (convolution.VALID, ((0, 1), (1, 1)))])(x)

    for ours, theirs in ((pooling.max_pool, nn.max_pool), (pooling.avg_pool, plain_mean)):
        for found, wanted in zip(jax.tree.leaves(run(ours)), jax.tree.leaves(run(theirs)), strict=True):
            assert found.dtype == wanted.dtype
            found, wanted = np.asarray(found, np.float32), np.asarray(wanted, np.float32)
            tolerance = 1e-6 if dtype == "float32" else 2e-2
            np.testing.assert_allclose(found, wanted, atol=tolerance * np.abs(wanted).max())


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
