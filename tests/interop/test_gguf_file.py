"""GGUF files: what a right one holds, and that no wrong one gets further than one line."""

import os
import pickle
import struct

import numpy as np
import pytest

pytest.importorskip("gguf")

from posenc_jax.interop.gguf_file import GgufFile

from support.gguf_files import (
    ARRAY,
    BOOL,
    F16,
    F32,
    FLOAT,
    I32,
    Q4_1,
    Q8_0,
    STRING,
    U8,
    U32,
    U64,
    Gguf,
    Tensor,
    plain,
    text,
    value,
)

A = np.arange(32, dtype=np.float32).reshape(4, 8)
KEYS = [("general.architecture", value(STRING, "llama")), ("n", value(U32, 7))]


def right(**changes):
    return Gguf(**({"metadata": KEYS, "tensors": [plain("a", A), plain("b", A + 1)]} | changes))


def written(tmp_path, content):
    path = tmp_path / "x.gguf"
    path.write_bytes(content if isinstance(content, bytes) else content.bytes())
    return path


def test_metadata_of_every_kind_and_tensors_are_read(tmp_path):
    metadata = [
        *KEYS,
        ("t", value(BOOL, 1)),
        ("f", value(FLOAT, 0.5)),
        ("i", value(I32, -3)),
        ("big", value(U64, 2**40)),
        ("words", value(ARRAY, (STRING, ["é", ""]))),
        ("numbers", value(ARRAY, (I32, [1, -2]))),
    ]
    file = GgufFile(written(tmp_path, right(metadata=metadata)))
    numbers = file.metadata.pop("numbers")
    assert numbers.tolist() == [1, -2]
    assert file.metadata == {
        "general.architecture": "llama",
        "n": 7,
        "t": True,
        "f": 0.5,
        "i": -3,
        "big": 2**40,
        "words": ["é", ""],
    }
    np.testing.assert_array_equal(file.array("a"), A)
    np.testing.assert_array_equal(file.array("b"), A + 1)
    with pytest.raises(ValueError, match="no tensor 'c'"):
        file.array("c")


@pytest.mark.parametrize("alignment", [8, 64])
def test_another_alignment_is_followed(tmp_path, alignment):
    metadata = [*KEYS, ("general.alignment", value(U32, alignment))]
    file = GgufFile(written(tmp_path, right(metadata=metadata, alignment=alignment)))
    np.testing.assert_array_equal(file.array("b"), A + 1)


def test_quantised_tensors_equal_their_definitions(tmp_path):
    """Blocks of 32: Q8_0 is d q; Q4_1 is d q + m, low halves of the bytes first."""
    rng = np.random.default_rng(0)
    raw, want = {Q8_0: b"", Q4_1: b""}, {Q8_0: [], Q4_1: []}
    for _ in range(6):
        d, m = (np.float16(x) for x in rng.normal(size=2))
        q = rng.integers(-128, 128, 32).astype(np.int8)
        raw[Q8_0] += d.tobytes() + q.tobytes()
        want[Q8_0] += [float(d) * int(x) for x in q]
        nibbles = rng.integers(0, 16, 32)
        raw[Q4_1] += d.tobytes() + m.tobytes()
        raw[Q4_1] += bytes(int(nibbles[i] + 16 * nibbles[i + 16]) for i in range(16))
        want[Q4_1] += [float(d) * int(x) + float(m) for x in nibbles]
    half = rng.normal(size=(3, 64)).astype(np.float16)
    tensors = [
        Tensor("q8", (3, 64), Q8_0, raw[Q8_0]),
        Tensor("q4", (3, 64), Q4_1, raw[Q4_1]),
        Tensor("half", (3, 64), F16, half.tobytes()),
    ]
    file = GgufFile(written(tmp_path, right(tensors=tensors)))
    np.testing.assert_allclose(file.array("q8").ravel(), want[Q8_0], rtol=1e-6)
    np.testing.assert_allclose(file.array("q4").ravel(), want[Q4_1], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(file.array("half"), half.astype(np.float32))


def of_type(kind, body=b""):
    return struct.pack("<I", kind) + body


def with_key(raw, key="x"):
    return right(metadata=[*KEYS, (key, raw)])


def with_tensor(**changes):
    base = {"name": "a", "shape": (4, 8), "kind": F32, "raw": A.tobytes()}
    return right(tensors=[Tensor(**(base | changes)), plain("b", A)])


WRONG = {
    "empty": (b"", "ends inside"),
    "text": (b"hello, this is no model at all", "does not begin with GGUF"),
    "a pickle": (pickle.dumps({"weights": A}), "does not begin with GGUF"),
    "another magic": (right(magic=b"GGML"), "does not begin with GGUF"),
    "version 1": (right(version=1), "GGUF version 1"),
    "version 4": (right(version=4), "GGUF version 4"),
    "big endian": (right(version=3 << 24), "big-endian"),
    "endless tensors": (right(claimed_tensors=2**63), "more than the file can hold"),
    "too many tensors": (right(claimed_tensors=500), "more than the file can hold"),
    "a tensor too many": (right(claimed_tensors=3), "x.gguf: "),
    "endless metadata": (right(claimed_metadata=2**62), "more than the file can hold"),
    "a key too many": (right(claimed_metadata=3), "x.gguf: "),
    "a key as long as memory": (
        right(metadata=[(b"", b"")]).bytes()[:24] + struct.pack("<Q", 2**63),
        "x.gguf: ",
    ),
    "a key of 1 MB": (with_key(value(U32, 1), "k" * 2**20), "more than 65536"),
    "a value past the end": (with_key(of_type(STRING, struct.pack("<Q", 2**40))), "more than"),
    "an array past the end": (
        with_key(of_type(ARRAY, struct.pack("<IQ", U32, 2**61))),
        "more than the file can hold",
    ),
    "a list past the end": (
        with_key(of_type(ARRAY, struct.pack("<IQ", STRING, 2**20))),
        "more than the file can hold",
    ),
    "an array of arrays": (
        with_key(of_type(ARRAY, struct.pack("<IQ", ARRAY, 1) + value(ARRAY, (U8, [1])))),
        "array of arrays",
    ),
    "an undefined kind of value": (with_key(of_type(13, b"\0" * 8)), "type 13"),
    "an undefined kind of array": (with_key(of_type(ARRAY, struct.pack("<IQ", 99, 1))), "type 99"),
    "a key that is no UTF-8": (with_key(value(U32, 1), b"\xff\xfe"), "not UTF-8"),
    "a value that is no UTF-8": (with_key(value(STRING, b"\xc3\x28")), "not UTF-8"),
    "a key twice": (with_key(value(U32, 8), "n"), "'n' stands twice"),
    "a truth value of 2": (with_key(value(BOOL, 2)), "truth value"),
    "a value of NaN": (with_key(value(FLOAT, float("nan"))), "not finite"),
    "alignment 0": (with_key(value(U32, 0), "general.alignment"), "power of two"),
    "alignment 24": (with_key(value(U32, 24), "general.alignment"), "power of two"),
    "alignment 2^31": (with_key(value(U32, 2**31), "general.alignment"), "power of two"),
    "alignment in words": (with_key(value(STRING, "32"), "general.alignment"), "power of two"),
    "alignment true": (with_key(value(BOOL, 1), "general.alignment"), "power of two"),
    "a tensor twice": (right(tensors=[plain("a", A), plain("a", A)]), "'a' stands twice"),
    "a name that is no UTF-8": (with_tensor(name=b"\xff"), "not UTF-8"),
    "no dims": (with_tensor(shape=()), "0 dims"),
    "five dims": (with_tensor(shape=(1, 2, 2, 2, 4)), "5 dims"),
    "an empty dim": (with_tensor(shape=(0, 8)), "cannot hold"),
    "dims whose product wraps around": (with_tensor(shape=(2**32, 2**32)), "cannot hold"),
    "dims past the end": (with_tensor(shape=(40, 8)), "ends at byte"),
    "an undefined type": (with_tensor(kind=77), "type 77"),
    "a removed type": (with_tensor(kind=4), "type 4"),
    "rows that blocks do not divide": (with_tensor(kind=Q8_0), "do not divide"),
    "an offset off the grid": (with_tensor(offset=4), "no multiple of 32"),
    "an offset past the end": (with_tensor(offset=2**40), "ends at byte"),
    "an offset that wraps around": (with_tensor(offset=2**64 - 32), "ends at byte"),
    "the same bytes twice": (with_tensor(offset=128), "share bytes"),
    "overlapping tensors": (
        right(tensors=[plain("a", A), Tensor("b", (4, 8), F32, A.tobytes(), 96)]),
        "share bytes",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, name):
    content, message = WRONG[name]
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=r"\A.*" + message) as caught:
        GgufFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["x.gguf"]


def test_a_file_that_is_cut_anywhere_in_front_of_its_last_byte_is_refused(tmp_path):
    whole = right(tensors=[plain("a", A)]).bytes()
    for end in (*range(0, len(whole) - A.nbytes, 3), len(whole) - A.nbytes, len(whole) - 1):
        with pytest.raises(ValueError, match=r"x\.gguf: "):
            GgufFile(written(tmp_path, whole[:end]))
    GgufFile(written(tmp_path, whole))


def test_random_flips_of_the_header_never_raise_anything_else(tmp_path):
    whole, rng = right().bytes(), np.random.default_rng(1)
    head, refused = len(whole) - 2 * A.nbytes, []
    for _ in range(300):
        raw = bytearray(whole)
        for place in rng.integers(0, head, rng.integers(1, 4)):
            raw[place] = rng.integers(256)
        try:
            file = GgufFile(written(tmp_path, bytes(raw)))
            for tensor in file.tensors:
                file.array(tensor)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert not any("\n" in message for message in refused)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, bad):
    array = A.copy()
    array[2, 3] = bad
    with pytest.raises(ValueError, match="a holds NaN or infinity"):
        GgufFile(written(tmp_path, right(tensors=[plain("a", array)]))).array("a")


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait forever
    for path in (tmp_path, tmp_path / "absent", tmp_path / "pipe"):
        with pytest.raises(ValueError, match="is no file"):
            GgufFile(path)


def test_a_header_past_the_limit_is_refused_without_being_read(tmp_path):
    path = tmp_path / "x.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("k") + struct.pack("<I", STRING)
    path.write_bytes(head + struct.pack("<Q", 2**26 - 8))
    os.truncate(path, 2**30)  # sparse
    with pytest.raises(ValueError, match="header has more than"):
        GgufFile(path)
