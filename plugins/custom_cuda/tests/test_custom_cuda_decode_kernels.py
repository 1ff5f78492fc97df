"""Every kernel of the decode step alone, over random shapes, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from custom_cuda_decode import CHOICES, PAGE, Array, Choice, Paged, Rig, assert_close, warm
from custom_cuda_oracle import reference

from enginecmp_custom_cuda.device import Device
from enginecmp_custom_cuda.engine.memory import params
from enginecmp_custom_cuda.weights.kinds import decode

EPSILON = 1e-5
COLUMNS = (32, 96, 512, 544, 608, 1056, 1536)
POSITIONS = (0, 63, 64, 200, 5, 127, 128, 90)

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@pytest.fixture(scope="module", params=CHOICES, ids=["-".join(map(str, choice)) for choice in CHOICES])
def choice(request: pytest.FixtureRequest, device: Device) -> Choice:
    warm(device)
    found: Choice = request.param
    return found


def tolerance(choice: Choice) -> float:
    """float32 sums, of whole numbers or of float32 products."""
    return 2e-6 if choice.quantized else 1e-5


def some_positions(rig: Rig) -> Array:
    """Return the batch's positions, one slot empty where there are several."""
    batch = rig.choice.batch
    positions = rig.random.permutation(POSITIONS)[:batch].astype(np.int32)
    if batch > 1:
        positions[rig.random.integers(batch)] = -1
    return positions


def some_split_k(rig: Rig) -> tuple[int, int]:
    """Return how many warps share rows, and the grid."""
    return int(rig.random.choice((1, 2, 4, 8))), int(rig.random.integers(1, 7))


@pytest.mark.parametrize("seed", range(3))
def test_qkv_rotates_and_stores(device: Device, choice: Choice, seed: int) -> None:
    with Rig(device, choice, seed) as rig:
        d, batch = choice.head_dim, choice.batch
        kv_heads = int(rig.random.integers(1, 3))
        heads = kv_heads * int(rig.random.integers(1, 4))
        columns = int(rig.random.choice(COLUMNS))
        rope_dims = (d, d // 2)[seed % 2]
        rows = (heads + 2 * kv_heads) * d
        positions = some_positions(rig)
        paged = Paged(rig, kv_heads, positions)
        weights, bias = rig.matrix(rows, columns), rig.normal(rows)
        x, norm, rope = rig.normal(batch, columns), rig.normal(columns), rig.normal(201, rope_dims // 2, 2)
        cache, q = paged.upload(), rig.nans(batch, heads, d)
        arguments = params.Qkv(
            w=weights.on_device,
            x=rig.put(x),
            norm=rig.put(norm),
            bias=rig.put(bias) if seed else 0,
            rope=rig.put(rope),
            position=rig.put(positions),
            q=q,
            cache=cache,
            epsilon=EPSILON,
            heads=heads,
            rope_dims=rope_dims,
        )
        rig.multiply("qkv", arguments, *some_split_k(rig))

        y = rig.normed(x, norm, weights, EPSILON) + (bias if seed else 0)
        y = y.reshape(batch, -1, d)
        turned = y[:, : heads + kv_heads, :rope_dims].reshape(batch, -1, rope_dims // 2, 2)
        turns = rope[np.maximum(positions, 0)].astype(np.float64)  # (B, rope_dims / 2, 2)
        turned = (turned @ [1, 1j] * (turns @ [1, 1j])[:, None])[..., None]
        turned = np.concatenate((turned.real, turned.imag), axis=-1)
        y[:, : heads + kv_heads, :rope_dims] = turned.reshape(batch, -1, rope_dims)
        expected = y[:, :heads].copy()
        expected[positions < 0] = np.nan
        assert_close(rig.get(q, (batch, heads, d)), expected, tolerance(choice))
        for slot, position in enumerate(positions):
            if position >= 0:
                both = y[slot, heads:].reshape(2, kv_heads, d).transpose(1, 0, 2)
                paged.at(slot, position)[...] = both.astype(choice.element)
        # A half differs by one place where float64 and float32 lie on both sides of a middle.
        assert_close(
            paged.download().astype(np.float64),
            paged.pages.astype(np.float64),
            tolerance(choice) if choice.kv == "f32" else 1e-3,
        )


@pytest.mark.parametrize("splits", [1, 2, 3, 16])
def test_attention_reads_what_was_stored_up_to_the_position(device: Device, choice: Choice, splits: int) -> None:
    with Rig(device, choice, splits) as rig:
        d, batch = choice.head_dim, choice.batch
        kv_heads = int(rig.random.integers(1, 3))
        group = (1, 4, 7, 2)[splits % 4]
        heads = kv_heads * group
        positions = some_positions(rig)
        paged = Paged(rig, kv_heads, positions)
        q = rig.normal(batch, heads, d) * 3
        expected = np.full((batch, heads, d), np.nan)
        for slot, position in enumerate(positions):
            if position >= 0:
                keys, values = paged.fill(slot, position + 1)
                expected[slot] = reference.attention(q[slot][None], keys, values)[0]
        partial, ml = rig.nans(batch, heads, splits, d), rig.nans(batch, heads, splits, 2)
        arguments = params.Attention(rig.put(q), paged.upload(), rig.put(positions), partial, ml, heads, splits)
        tile = 4 if d != 96 else 1
        rig.launch("attention", (splits, kv_heads, batch * -(-group // tile)), arguments)

        largest, total = np.moveaxis(rig.get(ml, (batch, heads, splits, 2)).astype(np.float64), -1, 0)
        sums = rig.get(partial, (batch, heads, splits, d)).astype(np.float64)
        full = np.arange(splits) <= positions[:, None] // PAGE  # (B, splits)
        active = positions >= 0
        assert np.isnan(largest[~active]).all()
        assert np.isnan(sums[~active]).all()
        for slot in np.flatnonzero(active).tolist():
            empty = ~full[slot]
            assert (largest[slot][:, empty] == -np.inf).all()
            assert (total[slot][:, empty] == 0).all()
            assert np.isnan(sums[slot][:, empty]).all(), "an empty split's values are not written"
            share = np.exp(largest[slot] - largest[slot].max(-1, keepdims=True))  # (heads, splits)
            merged = np.einsum("hs,hsd->hd", share[:, ~empty], sums[slot][:, ~empty])
            merged /= np.einsum("hs,hs->h", share, total[slot])[:, None]
            assert_close(merged, expected[slot], 5e-6)


@pytest.mark.parametrize("seed", range(3))
def test_output_merges_splits_and_adds(device: Device, choice: Choice, seed: int) -> None:
    with Rig(device, choice, seed) as rig:
        d, batch, splits = choice.head_dim, choice.batch, (1, 2, 5)[seed]
        heads = int(rig.random.integers(1, 9)) * (2 if d == 16 else 1)
        rows = int(rig.random.integers(1, 100))
        positions = some_positions(rig)
        positions[positions >= 0] += 2 * PAGE
        weights, x = rig.matrix(rows, heads * d), rig.normal(batch, rows)
        ml = np.stack((rig.normal(batch, heads, splits) * 4, 1 + rig.random.random((batch, heads, splits))), axis=-1)
        ml = ml.astype(np.float32)
        partial = rig.normal(batch, heads, splits, d)
        # Splits without a page of the positions are not read, an empty one among the others does not count.
        unused = np.arange(splits) > positions[:, None] // PAGE  # (B, splits)
        ml, partial = np.moveaxis(ml, 2, 1), np.moveaxis(partial, 2, 1)  # (B, splits, heads, ...)
        ml[unused], partial[unused] = (-np.inf, 0), np.nan
        empty = 1 if splits > 2 else splits
        ml[:, empty:2], partial[:, empty:2] = (-np.inf, 0), np.nan
        ml, partial = np.moveaxis(ml, 1, 2), np.moveaxis(partial, 1, 2)
        share = np.exp(ml[..., 0] - ml[..., 0].max(-1, keepdims=True)).astype(np.float64)
        merged = np.einsum("bhs,bhsd->bhd", share, np.nan_to_num(partial.astype(np.float64)))
        merged /= np.einsum("bhs,bhs->bh", share, ml[..., 1].astype(np.float64))[..., None]
        address = rig.put(x)
        arguments = params.Output(
            w=weights.on_device,
            partial=rig.put(partial),
            partial_ml=rig.put(ml),
            position=rig.put(positions),
            x=address,
            heads=heads,
            splits=splits,
        )
        rig.multiply("output", arguments, *some_split_k(rig))
        y = rig.product(merged.reshape(batch, -1).astype(np.float32), weights)
        expected = np.where(positions[:, None] >= 0, x + y, x)
        # int8: a merged value beside a middle may round to the other side; one step of one value in a row's sum.
        assert_close(rig.get(address, (batch, rows)), expected, 5e-3 if choice.quantized else 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_gate_up_gates(device: Device, choice: Choice, seed: int) -> None:
    with Rig(device, choice, seed) as rig:
        inner, columns = int(rig.random.integers(1, 80)), int(rig.random.choice(COLUMNS))
        weights, positions = rig.matrix(2 * inner, columns), some_positions(rig)
        x, norm = rig.normal(choice.batch, columns), rig.normal(columns)
        h = rig.nans(choice.batch, inner)
        arguments = params.GateUp(
            w=weights.on_device, x=rig.put(x), norm=rig.put(norm), position=rig.put(positions), h=h, epsilon=EPSILON
        )
        rig.multiply("gate_up", arguments, *some_split_k(rig))
        y = rig.normed(x, norm, weights, EPSILON)
        expected = reference.swiglu(y[:, 0::2], y[:, 1::2])
        expected[positions < 0] = np.nan
        assert_close(rig.get(h, (choice.batch, inner)), expected, 2 * tolerance(choice))


@pytest.mark.parametrize("seed", range(3))
def test_down_adds(device: Device, choice: Choice, seed: int) -> None:
    with Rig(device, choice, seed) as rig:
        rows, columns = int(rig.random.integers(1, 100)), int(rig.random.choice(COLUMNS))
        weights, positions = rig.matrix(rows, columns), some_positions(rig)
        x, h = rig.normal(choice.batch, rows), rig.normal(choice.batch, columns)
        h[:, :32] = 0  # a block of nothing
        address = rig.put(x)
        arguments = params.Down(w=weights.on_device, h=rig.put(h), position=rig.put(positions), x=address)
        rig.multiply("down", arguments, *some_split_k(rig))
        expected = np.where(positions[:, None] >= 0, x + rig.product(h, weights), x)
        assert_close(rig.get(address, (choice.batch, rows)), expected, tolerance(choice))


@pytest.mark.parametrize("seed", range(3))
def test_head_chooses_the_largest_and_of_equals_the_lowest(device: Device, choice: Choice, seed: int) -> None:
    with Rig(device, choice, seed) as rig:
        batch, rows, columns = choice.batch, int(rig.random.integers(40, 200)), 96
        x, norm, positions = rig.normal(batch, columns), np.abs(rig.normal(columns)), some_positions(rig)
        values = rig.normal(rows, columns)
        # Twice the same rows, so that every logit has an equal one; and once all of them below 0.
        values[rows // 2 :] = values[: rows - rows // 2]
        if seed == 2:
            x, values = np.abs(x), -np.abs(values)
        weights = rig.matrix(rows, columns, values)
        logits, best = rig.nans(batch, rows), rig.put(np.zeros(batch, np.uint64))
        arguments = params.Head(
            w=weights.on_device,
            x=rig.put(x),
            norm=rig.put(norm),
            position=rig.put(positions),
            logits=logits,
            best=best,
            epsilon=EPSILON,
        )
        split_k, blocks = some_split_k(rig)
        rig.multiply("head", arguments, split_k, blocks)
        found, keys = rig.get(logits, (batch, rows)), rig.get(best, batch, np.uint64)
        expected = rig.normed(x, norm, weights, EPSILON)
        expected[positions < 0] = np.nan
        assert_close(found, expected, tolerance(choice))
        ids = 0xFFFFFFFF - (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
        for slot, position in enumerate(positions):
            assert ids[slot] == np.argmax(found[slot]) if position >= 0 else keys[slot] == 0
        assert (ids[positions >= 0] < rows // 2).all()
        # Without logits the choice is the same.
        arguments.logits, arguments.best = 0, rig.put(np.zeros(batch, np.uint64))
        rig.multiply("head", arguments, split_k, blocks)
        assert (rig.get(arguments.best, batch, np.uint64) == keys).all()


def test_next_hands_ids_out_and_looks_embeddings_up(device: Device, choice: Choice) -> None:
    with Rig(device, choice, 1) as rig:
        batch, rows, columns, slots, stride = choice.batch, 37, 544, 3, choice.batch + 1
        table, positions = rig.matrix(rows, columns), some_positions(rig)
        ids = rig.random.integers(rows, size=batch)
        count = rig.random.integers(10, size=batch).astype(np.int32)
        active = positions if choice.batch > 1 else np.zeros(1, np.int32)
        best = (np.uint64(0x80000000) << np.uint64(32)) | (0xFFFFFFFF - ids).astype(np.uint64)
        ring = np.full((slots, stride), -1, np.int32)
        state = {"best": best, "token": np.full(batch, -7, np.int32), "position": positions, "count": count}
        at = {name: rig.put(array) for name, array in state.items()} | {"ring": rig.put(ring)}
        x = rig.nans(batch, columns)
        arguments = params.Next(
            table=table.on_device, active=rig.put(active), x=x, ring_slots=slots, ring_stride=stride, **at
        )
        rig.launch("next", batch, arguments)
        on = active >= 0
        for slot in np.flatnonzero(on):
            ring[count[slot] % slots, slot] = ids[slot]
        assert (rig.get(at["ring"], ring.shape, np.int32) == ring).all()
        assert (rig.get(at["best"], batch, np.uint64) == np.where(on, 0, best)).all()
        assert (rig.get(at["token"], batch, np.int32) == np.where(on, ids, -7)).all()
        assert (rig.get(at["position"], batch, np.int32) == positions + on).all()
        assert (rig.get(at["count"], batch, np.int32) == count + on).all()
        expected = np.where(on[:, None], decode(table.raw, choice.kind)[ids], np.nan)
        np.testing.assert_array_equal(rig.get(x, (batch, columns)), expected)


@pytest.mark.parametrize("token", [-1, 0, 5])
def test_begin_puts_one_sequence_in(device: Device, choice: Choice, token: int) -> None:
    with Rig(device, choice) as rig:
        batch = choice.batch
        slot = batch // 2
        nines = np.full(batch, 9, np.int32)
        at = {name: rig.put(nines) for name in ("position", "active", "count")}
        best = rig.put(np.full(batch, 9, np.uint64))
        rig.launch("begin", 1, params.Begin(**at, best=best, slot=slot, at=41, token=token), block=32)
        there = np.arange(batch) == slot
        assert (rig.get(at["position"], batch, np.int32) == np.where(there, 41, 9)).all()
        assert (rig.get(at["active"], batch, np.int32) == np.where(there, 0, -1)).all()
        assert (rig.get(at["count"], batch, np.int32) == np.where(there, 0, 9)).all()
        chosen = 0 if token < 0 else 0xFFFFFFFF - token
        assert (rig.get(best, batch, np.uint64) == np.where(there, chosen, 9)).all()
