"""Pickles are read without running what they hold, and only arrays of mini-ImageNet come out of them."""

import io
import os
import pickle
import warnings

import numpy as np
import pytest

from common import shards
from data_prep import unpickle


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


class Evaluated(Hostile):
    def __reduce__(self):
        return (eval, (f"__import__('os').mkdir({str(self.path)!r})",))


@pytest.mark.parametrize("kind", [Hostile, Evaluated])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_is_refused_and_does_not_run(kind, protocol, tmp_path, refused):
    (tmp_path / "raw").mkdir()
    mark = tmp_path / "it-ran"
    data = pickle.dumps({"image_data": kind(mark), "class_dict": {}}, protocol)
    (tmp_path / "raw" / "mini-imagenet-cache-train.pkl").write_bytes(data)
    line = refused("--dataset", "miniimagenet", "--raw", tmp_path / "raw")
    assert "mini-imagenet-cache-train.pkl: refused" in line and ("mkdir" in line or "eval" in line)
    assert not mark.exists()
    kind(mark).__reduce__()[0](kind(mark).__reduce__()[1][0])
    assert mark.exists()  # so it would have


class Call:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


OBJECTS = Call(np.dtype, ("O", False, True))
LIES = Call(np.dtype, ("u1", False, True), (3, "|", None, None, None, 8, 8, 63))  # that its bytes are pointers


@pytest.mark.parametrize(
    "forged",
    [
        Call(np.ndarray, ((2,), OBJECTS, b"\x41" * 16)),
        Call(np.ndarray, ((2,), np.dtype("u1"), b"\x41" * 16)),
        Call(np.array([1]).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (2,), OBJECTS, False, b"\x41" * 16)),
        Call(np.array([1]).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (2,), OBJECTS, False, ["a", "b"])),
        Call(np.array([1]).__reduce__()[0], (np.ndarray, (10**6,), b"O")),
        Call(np.int64(1).__reduce__()[0], (OBJECTS, b"\x41" * 8)),
    ],
)
def test_a_pickle_that_forges_an_arrays_memory_is_refused(forged):
    data = pickle.dumps({"data": forged}, 2)
    try:
        read = unpickle.load(io.BytesIO(data), "name")
    except shards.UsageError:
        return
    assert read["data"].shape == (0,) and read["data"].dtype == np.int8  # which no other content followed


def test_what_a_pickle_says_of_a_dtypes_flags_and_fields_is_not_believed():
    array = Call(np.array([1]).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (16,), LIES, False, b"\x41" * 16))
    read = unpickle.load(io.BytesIO(pickle.dumps([array], 2)), "name")[0]
    assert read.dtype == np.uint8 and read.tolist() == [0x41] * 16


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_arrays_of_text_other_byte_orders_and_other_layouts_are_read(protocol):
    for array in (
        np.array(["n01532829", "x"]), np.array([b"ab", b"c"]), np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array([True, False]),
    ):  # fmt: skip
        read = unpickle.load(io.BytesIO(pickle.dumps(array, protocol)), "name")
        assert read.dtype.kind == array.dtype.kind
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_pickles_of_arrays_scalars_and_containers_are_read_under_both_names_of_numpy(protocol, core):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    content = {"a": array, "b": [np.int64(3), "x", 1.5, None, {4}], "c": b"\xff\x00"}
    data = pickle.dumps(content, protocol)
    if protocol < 4:  # later ones store a name's length
        data = data.replace(b"cnumpy._core.", b"c" + core + b".")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = unpickle.load(io.BytesIO(data), "name")
    np.testing.assert_array_equal(read["a"], content["a"])
    assert read["b"] == content["b"] and read["c"] == content["c"]


def test_text_of_python_2_is_read_as_latin1():
    assert unpickle.load(io.BytesIO(b"\x80\x02}U\x04dataU\x02\xe9\x00s."), "name") == {"data": "\xe9\x00"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"images": 1}, "holds images"),
        ([1, 2], "no dictionary"),
        ({"image_data": np.zeros((2, 32, 32, 3), np.uint8), "class_dict": {}}, "(2, 32, 32, 3)"),
        ({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"n01532829": [0, 9]}}, "n01532829"),
        ({"data": np.zeros((2, 84, 84, 3), np.uint8), "labels": [0, 1]}, "2 labels without catname2label"),
        ({"data": np.zeros((3, 84, 84, 3), np.uint8), "labels": [0, 1, 5]}, "3 labels without catname2label"),
        ({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": [1]}, "class_dict is a list"),
        ({"image_data": [[1], [1, 2]], "class_dict": {}}, "not the arrays of images"),
        ({"data": [0], "labels": [0], "catname2label": {"n01532829": [0]}}, "not the arrays"),
        (None, "not a whole pickle"),
    ],
)
def test_a_pickle_from_which_wordnet_ids_do_not_follow_is_refused(content, expected, jpegs, tmp_path, refused):
    path = tmp_path / "raw" / "mini-imagenet-cache-train.pkl"
    path.parent.mkdir()
    path.write_bytes(b"\x80\x04garbage" if content is None else pickle.dumps(content))
    assert expected in refused("--dataset", "miniimagenet", "--raw", path)
