"""Rows of tokens as packed batches: nothing is lost, little is padded, and no row depends on its neighbours."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import graded
from small_text import token_rows

from tltrain.data import packing, pipeline
from tltrain.models import bert, zoo
from tltrain.models.attention import rows_of, tokens_of
from tltrain.models.classifier import Classifier, run_frozen
from tltrain.models.layers import forward_options

MANY = 512  # tokens of the longest row of a BERT


def random_rows(seed, lengths):
    rng = np.random.default_rng(seed)
    return [{"a": rng.normal(size=(n, 3)).astype(np.float32), "b": rng.integers(0, 9, n, np.int32)} for n in lengths]


def random_lengths(seed, count, longest=MANY):
    """Rows without tokens among them."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(count) < 0.1, 0, rng.integers(1, longest + 1, count))


@pytest.mark.parametrize(("num_groups", "seed"), [*itertools.product((1, 2, 3), range(4))])
def test_what_is_packed_is_unpacked_and_rows_that_are_masked_have_no_tokens(num_groups, seed):
    count = 6 * num_groups
    lengths = random_lengths(seed, count, 60)
    rows, keep = random_rows(seed, lengths), np.random.default_rng(seed).random(count) < 0.7
    shape = packing.shape_of((lengths * keep).reshape(num_groups, -1))
    packed = packing.pack(rows, keep, shape, num_groups)
    shapes = packing.shapes_of(rows[0], shape, num_groups)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), packed) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)
    assert packing.is_packed(packed) and packing.num_rows(packed) == count
    for row, found, kept in zip(rows, packing.unpack(packed), keep, strict=True):
        for name, leaf in row.items():
            np.testing.assert_array_equal(found[name], leaf if kept else leaf[:0])


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_token_and_slot_say_where_a_token_is_and_undo_each_other(num_groups):
    lengths = random_lengths(7, 4 * num_groups, 60)
    shape = packing.shape_of(lengths.reshape(num_groups, -1))
    packed = packing.pack(random_rows(7, lengths), np.ones(len(lengths), bool), shape, num_groups)
    for length, token, slot in zip(*(packed[name] for name in packing.LAYOUT), strict=True):
        there = np.arange(shape.width) < length[:, None]
        assert token[there].tolist() == list(range(length.sum()))
        assert (token[~there] == shape.tokens).all() and (slot[length.sum() :] == token.size).all()
        np.testing.assert_array_equal(token.reshape(-1)[slot[: length.sum()]], np.arange(length.sum()))


@pytest.mark.parametrize(("num_groups", "seed"), [*itertools.product((1, 2, 3), range(4))])
def test_passes_hold_every_row_once_and_fit_their_shape(num_groups, seed):
    lengths = random_lengths(seed, 300)
    seen = np.zeros(len(lengths), np.int32)
    for index, keep, shape in packing.passes(lengths, num_groups):
        np.add.at(seen, index[keep], 1)
        of_groups = (lengths[index] * keep).reshape(num_groups, shape.rows)
        assert of_groups.sum(1).max() <= shape.tokens and keep.any()
        assert {packing.width(n) for n in lengths[index[keep]].tolist()} == {shape.width}
        packing.pack(random_rows(0, lengths[index]), keep, shape, num_groups)
    assert (seen == 1).all()


def test_the_shape_of_a_pass_follows_from_the_length_of_a_row_alone():
    shapes = {}
    for seed in range(6):
        lengths = random_lengths(seed, 3 + 40 * seed)
        for index, keep, shape in packing.passes(lengths, 1):
            for n in lengths[index[keep]].tolist():
                assert shapes.setdefault(packing.width(n), shape) == shape
    assert len(shapes) <= 9  # so many programs, whatever the texts are


def test_batches_of_the_shortest_rows_or_of_none_have_a_shape():
    for lengths in ([[0, 0], [0, 0]], [[1, 0], [0, 0]], [[2, 2], [0, 0]], [[3, 0], [1, 1]]):
        shape = packing.shape_of(np.asarray(lengths))
        assert shape.tokens == 128 and shape.rows == 2
    ((_, keep, _),) = packing.passes(np.asarray([0, 0]), 1)
    assert keep.sum() == 2
    assert [*packing.passes(np.zeros(0, np.int64), 1)] == []


def test_widths_and_capacities_are_few_and_close():
    widths = [packing.width(n) for n in range(MANY + 1)]
    assert sorted(set(widths)) == [32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(n <= wide and (wide == 32 or wide <= 1.5 * n) for n, wide in enumerate(widths))
    capacities = [packing.capacity(n) for n in range(20_000)]
    assert all(n <= found <= max(128, 1.25 * n + 128) and found > 0 for n, found in enumerate(capacities))
    assert capacities == sorted(capacities) and len(set(capacities)) < 40


def test_batches_of_training_are_those_of_the_order_with_shapes_that_hold_them():
    lengths = random_lengths(3, 50)
    index, mask = pipeline.rows(50, 8, (0, 2))
    for i, keep, shape in pipeline.packed_rows(lengths, index, mask, 2):
        packed = packing.pack(random_rows(0, lengths[i]), keep, shape, 2)
        np.testing.assert_array_equal(packed["length"].reshape(-1), lengths[i] * keep)
        assert shape.width in (64, 128, 256, 512)
    batches = [i.tolist() for i, _, _ in pipeline.packed_rows(lengths, index, mask, 2)]
    assert batches == index.tolist()


def plain_rows(x, packed):
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
    return jnp.stack([group[token] for group, token in zip(padded, packed["token"], strict=True)])


def plain_tokens(y, packed):
    padded = jnp.pad(y.reshape(y.shape[0], -1, y.shape[-1]), ((0, 0), (0, 1), (0, 0)))
    return jnp.stack([group[slot] for group, slot in zip(padded, packed["slot"], strict=True)])


@pytest.mark.parametrize("way", ["rows", "tokens"])
def test_rows_and_tokens_and_their_gradients_are_those_of_a_plain_gather(way):
    ours, plain = {"rows": (rows_of, plain_rows), "tokens": (tokens_of, plain_tokens)}[way]
    lengths = random_lengths(1, 10, 40)
    packed = packing.pack(random_rows(1, lengths), np.ones(10, bool), packing.shape_of(lengths.reshape(2, -1)), 2)
    x = packed["a"] if way == "rows" else plain_rows(packed["a"], packed)
    found, back = jax.vjp(lambda x: ours(x, packed), x)
    wanted, plainly_back = jax.vjp(lambda x: plain(x, packed), x)
    np.testing.assert_array_equal(found, wanted)
    there = rows_of(jnp.ones_like(packed["a"]), packed) if way == "rows" else 1.0
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=found.shape), jnp.float32)
    if way == "tokens":
        gradient *= tokens_of(rows_of(jnp.ones_like(packed["a"]), packed), packed)
    np.testing.assert_array_equal(back(gradient * there)[0], plainly_back(gradient * there)[0])


@functools.cache
def small(pooling):
    sizes = {"vocab_size": 120, "hidden_size": 64, "num_layers": 3, "num_heads": 4, "intermediate_size": 96}
    model = Classifier(bert.Bert(**sizes, num_positions=64, pooling=pooling), 2, 0.0)
    return model, zoo.init(model, 0, None)


@functools.cache
def program(pooling, start, stop):
    """Compiled as those of users are, for programs that are compiled quickly are divided in other ways."""
    model, variables = small(pooling)
    options = (forward_options() or {}) | {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    run = jax.jit(lambda v, x: run_frozen(model, v, x, start, stop), compiler_options=options)
    return functools.partial(run, variables)


def through(pooling, rows, *cuts):
    """What all stages make of `rows`, stored at each of `cuts` between; float32 `[N, C]`."""
    last = len(small(pooling)[0].backbone.stages)
    for start, stop in itertools.pairwise((0, *cuts, last)):
        lengths = np.asarray([len(next(iter(row.values()))) for row in rows])
        found = {}
        for index, keep, shape in packing.passes(lengths, 1):
            result = program(pooling, start, stop)(packing.pack([rows[i] for i in index], keep, shape, 1))
            made = packing.unpack(result) if stop < last else np.asarray(result)
            found |= {index[place]: made[place] for place in np.flatnonzero(keep)}
        rows = [found[i] for i in range(len(rows))]
    return np.stack(rows)


def bits(features):
    return features.view(np.uint32)


@pytest.mark.optimized
@pytest.mark.parametrize("pooling", graded(["pooler", "mean", "cls"], ["mean"]))
def test_features_are_bitwise_the_same_alone_among_short_and_among_long_neighbours(pooling):
    rows = token_rows()
    chosen = [i for i, row in enumerate(rows) if len(row["ids"]) in (1, 7, 31, 32, 33, 40)]
    all_of_them = through(pooling, rows)
    short = [row for row in rows if len(row["ids"]) < 10] * 9
    long = [row for row in rows if len(row["ids"]) > 29] * 9
    for i in chosen:
        for others in ([], short, long):
            for first in (True, False):
                beside = [rows[i], *others] if first else [*others, rows[i]]
                np.testing.assert_array_equal(bits(through(pooling, beside)[0 if first else -1]), bits(all_of_them[i]))


@pytest.mark.optimized
@pytest.mark.parametrize("pooling", graded(["pooler", "mean"], ["mean"]))
def test_features_are_bitwise_the_same_from_a_stored_cut_at_every_stage(pooling):
    rows = token_rows()
    whole, last = bits(through(pooling, rows)), len(small(pooling)[0].backbone.stages)
    for cut in range(1, last):
        np.testing.assert_array_equal(bits(through(pooling, rows, cut)), whole, err_msg=f"at {cut}")
    np.testing.assert_array_equal(bits(through(pooling, rows, 1, 3)), whole)
