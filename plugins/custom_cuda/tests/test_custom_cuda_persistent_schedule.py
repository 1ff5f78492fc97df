from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginecmp_custom_cuda.engine.persistent.faults import NAMES
from enginecmp_custom_cuda.engine.persistent.layout import Layout, Shape, chunk_bytes
from enginecmp_custom_cuda.engine.persistent.order import _mixed, _Paper
from enginecmp_custom_cuda.engine.persistent.schedule import (
    NO_COUNTER,
    Counter,
    Kind,
    Row,
    Schedule,
    copies,
    default_splits,
    generate,
    tiles,
)
from enginecmp_custom_cuda.engine.persistent.validate import check, check_positions
from enginecmp_custom_cuda.weights.packing import locate, packed_bytes, tile_bytes

LLAMA_1B = Shape(16, 2048, 32, 8, 64, 8192, 128256, "Q8_0", True)
TINY = Shape(2, 64, 4, 2, 32, 1056, 100, "Q8_0", True)
H200 = (132, 232448)


def planned(shape: Shape, multiprocessors: int, shared_bytes: int = H200[1], **more: int) -> Schedule:
    bases = 0x7F00_0000_0000 + (1 << 30) * np.arange(4 * shape.layers, dtype=np.int64).reshape(-1, 4)
    return generate(shape, multiprocessors, shared_bytes, bases, 1 << 40, **{"splits": 2, **more})


def changed(schedule: Schedule, multiprocessor: int, index: int, **fields: Any) -> Schedule:
    """A schedule with one row changed."""
    rows = schedule.rows.copy()
    at = int(schedule.offsets[multiprocessor]) + index
    rows[at] = replace(Row.unpack(rows[at]), **fields).pack()
    return replace(schedule, rows=rows)


def find(schedule: Schedule, kind: Kind, layer: int = 0, multiprocessor: int = 0) -> tuple[int, Row]:
    return next(
        (index, row)
        for index, row in enumerate(schedule.plan(multiprocessor))
        if row.kind == kind and row.layer == layer
    )


def names(schedule: Schedule) -> set[str]:
    found = {fault.name for fault in check(schedule)}
    assert found <= set(NAMES)
    return found


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_model_on_any_device_gets_a_plan_without_faults(data: st.DataObject) -> None:
    kv_heads, group = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7))
    kind = data.draw(st.sampled_from(["Q8_0", "Q4_0", "F16", "BF16", "F32"]))
    shape = Shape(
        layers=data.draw(st.integers(1, 4)),
        hidden=32 * data.draw(st.integers(1, 40)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=data.draw(st.sampled_from([32, 64, 96, 128])),
        inner=32 * data.draw(st.integers(1, 90)),
        vocabulary=data.draw(st.integers(1, 3000)),
        kind=kind,
        quantized_activations=kind in {"Q8_0", "Q4_0"} and data.draw(st.booleans()),
    )
    schedule = planned(shape, data.draw(st.integers(1, 24)), splits=data.draw(st.integers(1, 4)))
    assert check(schedule) == []


@pytest.mark.parametrize(
    "shape",
    [
        LLAMA_1B,
        Shape(32, 3072, 32, 32, 96, 8192, 32064, "Q8_0", True),
        Shape(24, 896, 14, 2, 64, 4864, 151936, "Q8_0", True),
    ],
    ids=["Llama-3.2-1B", "Phi-3-mini", "Qwen2.5-0.5B"],
)
def test_bytes_are_even_over_a_token_and_tiles_over_each_step(shape: Shape) -> None:
    schedule = planned(replace(shape, layers=4), *H200)
    fetched = [sum(size for _, size in copies(schedule, sm)) for sm in range(132)]
    largest_tile = max(tile_bytes(width, "Q8_0") for width in (shape.hidden, shape.attended, shape.inner))
    assert max(fetched) - min(fetched) <= largest_tile
    for kind in (Kind.QKV, Kind.OUTPUT, Kind.DOWN, Kind.HEAD):
        owned = [
            sum(row.count for row in schedule.plan(sm) if row.kind == kind and row.layer in {1, 4}) for sm in range(132)
        ]
        assert max(owned) == -(-tiles(shape, kind) // 132)
    assert schedule.layout.slots >= 23  # what the ring was designed to hold on this device


def test_copies_cover_every_byte_of_every_matrix_once_in_whole_chunks() -> None:
    schedule = planned(TINY, 5)
    fetched = sorted(copy for sm in range(5) for copy in copies(schedule, sm))
    ends = {address + size for address, size in fetched}
    starts = {address for address, _ in fetched}
    assert len(starts) == len(fetched)
    sizes = [
        packed_bytes(TINY.qkv_rows, 64, "Q8_0"),
        packed_bytes(64, TINY.attended, "Q8_0"),
        packed_bytes(2 * TINY.inner, 64, "Q8_0"),
        packed_bytes(64, TINY.inner, "Q8_0"),
    ]
    total = 0
    for base, size in [
        *zip(schedule.bases.reshape(-1).tolist(), sizes * 2, strict=True),
        (1 << 40, packed_bytes(100, 64, "Q8_0")),
    ]:
        # Each copy begins where another ends, from the first byte to the last.
        inside = {address for address in starts if base <= address < base + size}
        assert inside - {base} == {end for end in ends if base < end < base + size}
        assert base in starts
        assert base + size in ends
        total += size
    assert sum(size for _, size in fetched) == total
    down = int(schedule.bases[1, 3])
    assert down + locate(16, 512, TINY.inner, "Q8_0").weight in starts  # second tile, second chunk
    assert max(size for _, size in fetched) == chunk_bytes(TINY.inner, "Q8_0")


def test_splits_give_each_multiprocessor_at_most_one_item_and_no_item_less_than_a_round() -> None:
    assert default_splits(LLAMA_1B, 132, 1 << 20) == 16
    assert default_splits(LLAMA_1B, 132, 513) == 5
    assert default_splits(LLAMA_1B, 40, 1 << 20) == 5
    assert default_splits(LLAMA_1B, 4, 1 << 20) == 1
    assert default_splits(replace(LLAMA_1B, heads=56), 132, 1 << 20) == 8  # 7 query heads of a kv head are two items


def test_rows_survive_packing() -> None:
    row = Row(Kind.DOWN, 31, 12345, 17, Counter.HIDDEN, 4, NO_COUNTER)
    assert Row.unpack(np.array(row.pack(), np.int32)) == row


def test_a_lost_tile_is_found() -> None:
    schedule = planned(TINY, 4)
    index, row = find(schedule, Kind.DOWN, 1)
    assert "lost_tile" in names(changed(schedule, 0, index, count=row.count - 1))


def test_a_doubled_tile_is_found() -> None:
    schedule = planned(TINY, 4)
    index, row = find(schedule, Kind.QKV, 1)
    assert names(changed(schedule, 0, index, count=row.count + 1)) == {"doubled_tile"}


def test_a_tile_outside_the_matrix_is_found() -> None:
    schedule = planned(TINY, 4)
    index, row = find(schedule, Kind.HEAD, 2, multiprocessor=3)
    assert names(changed(schedule, 3, index, count=row.count + 1)) == {"foreign_tile"}


def test_a_lost_item_of_attention_is_found() -> None:
    schedule = planned(TINY, 4)
    index, row = find(schedule, Kind.ATTENTION, 1, 2)
    assert names(changed(schedule, 2, index, first=row.first + 1)) >= {"lost_tile"}


@pytest.mark.parametrize("kind", [Kind.ATTENTION, Kind.OUTPUT, Kind.GATE_UP, Kind.DOWN, Kind.HEAD, Kind.NEXT])
def test_a_target_one_too_low_is_found(kind: Kind) -> None:
    schedule = planned(TINY, 4)
    index, row = find(schedule, kind, 2 if kind in {Kind.HEAD, Kind.NEXT} else 1)
    assert names(changed(schedule, 0, index, target=row.target - 1)) == {"wrong_target"}


def test_a_target_of_another_layer_is_found() -> None:
    schedule = planned(TINY, 4)
    index, _ = find(schedule, Kind.OUTPUT, 0)
    _, later = find(schedule, Kind.OUTPUT, 1)
    assert names(changed(schedule, 0, index, target=later.target)) == {"wrong_target"}


def test_a_target_that_no_signals_reach_is_found() -> None:
    schedule = planned(TINY, 4)
    index, row = find(schedule, Kind.HEAD, 2)
    assert names(changed(schedule, 0, index, target=row.target + 1)) == {"unreachable_target"}


def test_a_missing_signal_is_found() -> None:
    schedule = planned(TINY, 4)
    index, _ = find(schedule, Kind.QKV, 1, 2)
    assert names(changed(schedule, 2, index, signal=NO_COUNTER)) & {"wrong_target", "unreachable_target"}


def test_a_wrong_growth_of_a_counter_is_found() -> None:
    schedule = planned(TINY, 4)
    assert names(replace(schedule, per_token=schedule.per_token + np.int32(1))) == {"wrong_target"}


def swapped(schedule: Schedule, multiprocessor: int, first: int, second: int) -> Schedule:
    rows = schedule.rows.copy()
    start = schedule.offsets[multiprocessor]
    rows[[start + first, start + second]] = rows[[start + second, start + first]]
    return replace(schedule, rows=rows)


def test_a_circle_of_waits_is_found() -> None:
    # Down before gate_up: this multiprocessor waits for what it would do afterwards.
    schedule = planned(TINY, 4)
    first, _ = find(schedule, Kind.GATE_UP, 1, 3)
    second, _ = find(schedule, Kind.DOWN, 1, 3)
    assert names(swapped(schedule, 3, first, second)) == {"deadlock"}


@pytest.mark.parametrize("kind", [Kind.ATTENTION, Kind.OUTPUT, Kind.GATE_UP, Kind.DOWN, Kind.HEAD, Kind.NEXT])
def test_a_missing_wait_is_found(kind: Kind) -> None:
    schedule = planned(TINY, 4)
    index, row = find(schedule, kind, 2 if kind in {Kind.HEAD, Kind.NEXT} else 1)
    assert row.waits
    assert names(changed(schedule, 0, index, wait=NO_COUNTER)) >= {"race"}


def test_a_multiprocessor_that_nobody_waits_for_is_found() -> None:
    # Its NEXT reads the candidates; without work that it signals it may still do so when they are written anew.
    schedule = planned(TINY, 4)
    plans = [schedule.plan(sm) for sm in range(4)]
    idle = [row for row in plans[3] if row.kind == Kind.NEXT]
    rows = np.array([row.pack() for plan in [*plans, idle] for row in plan], np.int32)
    offsets = np.append(schedule.offsets, np.int32(schedule.offsets[-1] + 1))
    assert names(replace(schedule, multiprocessors=5, offsets=offsets, rows=rows)) == {"race"}


def test_a_small_device_part_is_used_rather_than_idle_multiprocessors() -> None:
    shape = replace(TINY, inner=64)
    schedule = planned(shape, 132)
    assert schedule.multiprocessors == tiles(shape, Kind.GATE_UP) == 8
    assert check(schedule) == []


@pytest.mark.parametrize("slots", [0, 1, 5, 66])
def test_a_ring_of_too_few_or_too_many_slots_is_found(slots: int) -> None:
    assert "ring" in names(planned(TINY, 4, slots=slots) if slots else replace_layout(planned(TINY, 4), slots=0))


def replace_layout(schedule: Schedule, **fields: int) -> Schedule:
    return replace(schedule, layout=replace(schedule.layout, **fields))


def test_slots_smaller_than_a_chunk_are_found() -> None:
    schedule = planned(TINY, 4)
    assert names(replace_layout(schedule, slot_bytes=schedule.layout.slot_bytes - 128)) == {"ring"}


def test_a_block_that_needs_more_memory_than_there_is_is_found() -> None:
    assert names(planned(TINY, 4, 40_000, slots=8)) == {"shared_memory"}
    assert names(planned(TINY, 4, 40_000)) == set()


@pytest.mark.parametrize("name", ["layers", "activation", "results", "scratch", "ring"])
def test_overlapping_regions_are_found(name: str) -> None:
    layout: Layout = planned(TINY, 4).layout
    assert names(replace_layout(planned(TINY, 4), **{name: getattr(layout, name) - 128})) == {"shared_memory"}


def test_a_misaligned_copy_is_found() -> None:
    schedule = planned(TINY, 4)
    bases = schedule.bases.copy()
    bases[1, 2] += 8
    assert names(replace(schedule, bases=bases)) == {"misaligned"}
    assert names(replace(schedule, head=schedule.head + 4)) == {"misaligned"}


def test_rows_that_the_kernel_would_not_understand_are_found() -> None:
    schedule = planned(TINY, 4)
    assert names(changed(schedule, 1, 2, kind=9)) == {"row"}
    assert names(changed(schedule, 1, 2, layer=7)) == {"row"}
    assert names(changed(schedule, 1, 2, signal=40)) == {"row"}
    index, _ = find(schedule, Kind.NEXT, 2, 1)
    assert "row" in names(changed(schedule, 1, index, kind=Kind.HEAD))


def test_tokens_beyond_the_cache_or_the_rotations_are_found() -> None:
    assert check_positions(120, 8, 128, 4096) == []
    assert [fault.name for fault in check_positions(121, 8, 128, 4096)] == ["positions"]
    assert [fault.name for fault in check_positions(0, 129, 1 << 20, 128)] == ["positions"]
    assert "positions 121..128, the cache holds 128" in str(check_positions(121, 8, 128, 4096)[0])


def test_a_wait_for_another_counter_is_found_although_its_target_fits() -> None:
    schedule = planned(TINY, 4)
    index, row = find(schedule, Kind.GATE_UP, 1)
    assert row.target == 8  # four signals a layer, as of the matrix before
    assert names(changed(schedule, 0, index, wait=Counter.QKV)) == {"wrong_target"}


def test_a_signal_that_could_come_before_those_of_an_earlier_step_is_found() -> None:
    def found(later: list[int]) -> list[str]:
        clocks = {(0, 1): np.array([1, 0], np.int32), (1, 1): np.array(later, np.int32)}
        arrived = {(int(Counter.OUTPUT), 0): [(0, 1)], (int(Counter.OUTPUT), 1): [(1, 1)]}
        return [str(fault) for fault in _mixed(_Paper(clocks), arrived)]

    assert found([1, 1]) == []
    assert found([0, 1]) == [f"mixed_epochs ({NAMES['mixed_epochs']}): counter OUTPUT, epochs 0 and 1"]
