"""read_gguf against files that gguf-py wrote, files broken by hand and files broken at random."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginecmp.errors import ModelError
from enginecmp.models.ggml_types import GGML_TYPES
from enginecmp.models.gguf_file import GGUFFile, read_gguf


def write_small(path: Path) -> None:
    """Write a small valid file with gguf-py: every value type, two tensor types, 1 to 3 dimensions."""
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -100)
    writer.add_uint16("t.u16", 60_000)
    writer.add_int16("t.i16", -30_000)
    writer.add_uint32("t.u32", 4_000_000_000)
    writer.add_int32("t.i32", -2_000_000_000)
    writer.add_uint64("t.u64", 2**63)
    writer.add_int64("t.i64", -(2**62))
    writer.add_float32("t.f32", 0.5)
    writer.add_float64("t.f64", 0.1)
    writer.add_bool("t.bool", True)
    writer.add_string("t.text", "żółw")
    writer.add_array("t.numbers", [1, 2, 3])
    writer.add_array("t.words", ["a", "", "Ġthe"])
    writer.add_array("t.flags", [True, False])
    writer.add_tensor("w", rng.standard_normal((3, 4)).astype(np.float32))
    writer.add_tensor("norm", np.arange(5, dtype=np.float32))
    blocks = gguf.quantize(rng.standard_normal((2, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("half", rng.standard_normal((2, 2, 4)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_small(path)
    return path


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")


def header(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensors: int = 0,
    keys: int = 1,
    body: bytes = ARCHITECTURE,
) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys) + body


def tensor(name: str = "w", dimensions: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


def with_tensors(*described: bytes, content: int = 4096, extra: bytes = b"", keys: int = 1) -> bytes:
    start = header(tensors=len(described), keys=keys, body=ARCHITECTURE + extra + b"".join(described))
    return start + bytes(-len(start) % 32 + content)


def test_every_value_type_reads_as_gguf_py_wrote_it(valid: Path) -> None:
    metadata = read_gguf(valid).metadata
    assert {key: value for key, value in metadata.items() if key.startswith("t.")} == {
        "t.u8": 200,
        "t.i8": -100,
        "t.u16": 60_000,
        "t.i16": -30_000,
        "t.u32": 4_000_000_000,
        "t.i32": -2_000_000_000,
        "t.u64": 2**63,
        "t.i64": -(2**62),
        "t.f32": 0.5,
        "t.f64": 0.1,
        "t.bool": True,
        "t.text": "żółw",
        "t.numbers": [1, 2, 3],
        "t.words": ["a", "", "Ġthe"],
        "t.flags": [True, False],
    }
    assert metadata["general.architecture"] == "llama"


def test_tensors_agree_with_gguf_pys_own_reader(valid: Path) -> None:
    ours = read_gguf(valid)
    theirs = {t.name: t for t in gguf.GGUFReader(str(valid)).tensors}
    assert list(ours.tensors) == list(theirs)
    for name, expected in theirs.items():
        mine = ours.tensors[name]
        assert mine.type == expected.tensor_type.name
        assert mine.offset == int(expected.data_offset)
        assert mine.nbytes == int(expected.n_bytes)
        assert mine.shape == tuple(int(n) for n in reversed(expected.shape))
        np.testing.assert_array_equal(ours.float32(name), gguf.dequantize(expected.data, expected.tensor_type))


def test_raw_rows_are_the_files_bytes(valid: Path) -> None:
    file = read_gguf(valid)
    info = file.tensors["q"]
    raw = file.raw("q")
    assert raw.shape == (2, 68)  # two Q8_0 blocks of 34 bytes a row
    assert raw.tobytes() == valid.read_bytes()[info.offset : info.offset + info.nbytes]


def test_float32_of_an_f32_tensor_is_writable(valid: Path) -> None:
    weights = read_gguf(valid).float32("w")
    weights[0, 0] = 3
    assert read_gguf(valid).float32("w")[0, 0] != 3


def test_spans_hold_the_bytes_of_each_key(valid: Path) -> None:
    file = read_gguf(valid)
    start, end = file.spans["t.text"]
    assert valid.read_bytes()[start:end] == text("t.text") + struct.pack("<I", 8) + text("żółw")


def test_asking_for_an_absent_tensor_names_it(valid: Path) -> None:
    with pytest.raises(ModelError, match="expected a tensor 'nope'"):
        read_gguf(valid).raw("nope")


def test_block_sizes_are_gguf_pys() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {number: tuple(kind) for number, kind in GGML_TYPES.items()} == theirs


BROKEN = {
    "empty file": (b"", "at least 24 bytes"),
    "another format": (b"PK\x03\x04" + bytes(40), "magic bytes 'GGUF', got b'PK"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(8), "little-endian GGUF, got a big-endian"),
    "version 1": (header(version=1), "version 2 or 3, got version 1"),
    "absurd tensor count": (header(tensors=2**63), "no more tensors than .* got a count of 9223372036854775808"),
    "absurd key count": (header(keys=2**64 - 1), "no more metadata keys than"),
    "key past the end": (header(body=struct.pack("<Q", 2**40) + bytes(64)), "1099511627776 more bytes"),
    "empty key": (header(body=text("") + struct.pack("<I", 8) + text("x")), "got an empty one"),
    "key not UTF-8": (header(body=struct.pack("<Q", 2) + b"\xff\xfe" + bytes(64)), "expected UTF-8"),
    "same key twice": (header(keys=2, body=ARCHITECTURE * 2), "'general.architecture' twice"),
    "unknown value type": (header(body=text("k") + struct.pack("<I", 99) + bytes(16)), "got type 99"),
    "truth value 7": (header(body=text("k") + struct.pack("<IB", 7, 7) + bytes(16)), "0 or 1 for a truth value"),
    "no architecture": (header(body=text("k") + struct.pack("<II", 4, 1) + bytes(16)), "general.architecture"),
    "architecture is a number": (
        header(body=text("general.architecture") + struct.pack("<II", 4, 1) + bytes(16)),
        "got 1",
    ),
    "absurd array": (
        header(body=text("k") + struct.pack("<IIQ", 9, 4, 2**60) + bytes(64)),
        "at most 4194304 array items",
    ),
    "array past the end": (header(body=text("k") + struct.pack("<IIQ", 9, 4, 1000) + bytes(64)), "4000 more bytes"),
    "strings past the end": (header(body=text("k") + struct.pack("<IIQ", 9, 8, 1000) + bytes(64)), "8000 more bytes"),
    "arrays in arrays": (
        header(body=text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 8 + bytes(64)),
        "at most 4 deep",
    ),
    "key with a line break": (header(body=text("a\nb") + struct.pack("<I", 99) + bytes(16)), "for 'a.b', got type 99"),
    "no dimensions": (with_tensors(tensor(dimensions=())), "1 to 4 dimensions for tensor 'w', got 0"),
    "five dimensions": (with_tensors(tensor(dimensions=(1,) * 5)), "1 to 4 dimensions"),
    "empty dimension": (with_tensors(tensor(dimensions=(32, 0))), "dimensions of at least 1"),
    "product overflow": (with_tensors(tensor(dimensions=(2**32, 2**32))), "at most 9223372036854775807 weights"),
    "unknown tensor type": (with_tensors(tensor(kind=4)), "known type for tensor 'w', got type 4"),
    "half a block": (with_tensors(tensor(dimensions=(33,), kind=8)), "whole Q8_0 blocks of 32, got 33"),
    "crooked offset": (with_tensors(tensor(offset=4)), "multiple of 32, got offset 4"),
    "tensor past the end": (with_tensors(tensor(dimensions=(2048,))), "end within the file's .* fetch it again"),
    "offset past the end": (with_tensors(tensor(offset=2**62)), "end within the file"),
    "overlap": (
        with_tensors(tensor("a", (64,)), tensor("b", (64,), offset=128)),
        "'b' overlaps 'a'",
    ),
    "same tensor twice": (with_tensors(tensor("a"), tensor("a", offset=128)), "'a' twice"),
    "nameless tensor": (with_tensors(tensor("")), "got an empty one"),
    "long tensor name": (with_tensors(tensor("x" * 64)), "at most 63 bytes for tensor name, got 64"),
    "alignment 3": (
        with_tensors(tensor(), extra=text("general.alignment") + struct.pack("<II", 4, 3), keys=2),
        "power of two from 8",
    ),
    "alignment 0": (
        with_tensors(tensor(), extra=text("general.alignment") + struct.pack("<II", 4, 0), keys=2),
        "power of two from 8",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_one_line_that_names_file_and_fault(name: str, tmp_path: Path) -> None:
    content, fault = BROKEN[name]
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=fault) as caught:
        read_gguf(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_handmade_control_file_is_accepted(tmp_path: Path) -> None:
    """The broken files above differ from this one by their fault only."""
    path = tmp_path / "control.gguf"
    path.write_bytes(with_tensors(tensor("a", (64,)), tensor("b", (32, 2), kind=8, offset=256)))
    assert read_gguf(path).tensors["b"].shape == (2, 32)


def test_missing_file_directory_and_fifo_are_model_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(ModelError, match="not a regular file"):
        read_gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelError, match="not a regular file"):
        read_gguf(tmp_path / "pipe.gguf")


def parse_or_refuse(path: Path) -> GGUFFile | None:
    """Read a file that may be broken; anything but success or a ModelError fails the test, as does big memory."""
    tracemalloc.start()
    try:
        return read_gguf(path)
    except ModelError:
        return None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2_000_000, "a file of 4 kB made the reader allocate megabytes"


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, 4000))
def test_truncation_anywhere_is_refused(cut: int, valid: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = valid.read_bytes()
    file = read_gguf(valid)
    end = max(tensor.offset + tensor.nbytes for tensor in file.tensors.values())
    path = tmp_path_factory.getbasetemp() / "cut.gguf"
    path.write_bytes(content[: min(cut, end - 1)])
    assert parse_or_refuse(path) is None


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_random_damage_ends_in_a_parse_or_a_model_error(
    data: st.DataObject, valid: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(valid.read_bytes())
    header_end = min(info.offset for info in read_gguf(valid).tensors.values())
    numbers = st.sampled_from([0, 1, 7, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])
    damage = st.one_of(st.binary(min_size=1, max_size=12), numbers.map(lambda number: struct.pack("<Q", number)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header_end))
        patch = data.draw(damage)
        content[at : at + len(patch)] = patch
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(bytes(content))
    file = parse_or_refuse(path)
    if file is not None:
        for info in file.tensors.values():
            assert 0 < info.offset <= info.offset + info.nbytes <= file.bytes
