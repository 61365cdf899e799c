"""Pickles from the internet, read without running what they ask for."""

import codecs
import pickle
import re
from collections import OrderedDict
from typing import BinaryIO

import numpy as np

from common.shards import UsageError

PLAIN = re.compile(r"[<>|=]?([?bhilqpBHILQPefd]|[biuf][1248]|[SU][0-9]+)")  # numbers and text, as dtypes are written
NDARRAY = object()  # stands for numpy.ndarray, which a pickle may name but not call


class _Dtype:
    """numpy.dtype of numbers or text. numpy's own believes what a pickle says of it, up to where pointers lie."""

    def __init__(self, text: str, *_):
        if not isinstance(text, str) or not PLAIN.fullmatch(text):
            raise UsageError(f"holds an array of dtype {text!r}")
        self.value = np.dtype(text)

    def __setstate__(self, state: tuple):
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array(np.ndarray):
    """numpy.ndarray whose content is of such a dtype."""

    def __setstate__(self, state: tuple):
        *_, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # as Python 2 wrote it
        if not isinstance(data, bytes):
            raise TypeError("an array of objects")
        super().__setstate__((1, shape, dtype.value, fortran, data))


def _reconstruct(kind: object, *_) -> _Array:
    if kind is not NDARRAY:
        raise TypeError("an array of an unknown kind")
    return _Array((0,), np.int8)


def _scalar(dtype: _Dtype, data: bytes | str = b"") -> np.generic:
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype.value, 1)[0]


def _frombuffer(data: bytes, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise TypeError(f"text in {encoding!r}")
    return codecs.encode(text, encoding)


def _bytearray(content: bytes | str = b"", encoding: str = "latin1") -> bytearray:
    """From bytes, not of a length: that would take memory for nothing."""
    return bytearray(content if isinstance(content, bytes) else _encode(content, encoding))


# What numpy arrays, numpy scalars and plain containers ask for, by the names of numpy 1 and 2, and what they get.
# `_codecs.encode` is how Python 3 writes bytes for protocol 2.
GIVEN = {
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): NDARRAY,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    **{(b, kind.__name__): kind for b in ("builtins", "__builtin__") for kind in (set, frozenset)},
    **{(b, "bytearray"): _bytearray for b in ("builtins", "__builtin__")},
}


class _ArraysOnly(pickle._Unpickler):
    """The unpickler in Python: the one in C takes the memory that a pickle declares before it finds it cut short."""

    def find_class(self, module: str, name: str):
        if (module, name) not in GIVEN:
            raise UsageError(f"asks for {module}.{name}")
        return GIVEN[module, name]

    def load_build(self):
        """State is set on arrays and their dtypes alone; on anything else it would set attributes."""
        state, owner = self.stack.pop(), self.stack[-1]
        if not isinstance(owner, _Dtype | _Array):
            raise TypeError(f"state for a {type(owner).__name__}")
        owner.__setstate__(state)

    def load_bytearray8(self):
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def load(file: BinaryIO, name: str):
    """What the pickle `file` holds: numpy arrays of numbers or text, numbers, text and containers; Python 2's text is
    read as latin1.

    Raises UsageError where it isn't whole, or asks for another function or class, which is then not even imported.
    """
    try:
        return _ArraysOnly(file, encoding="latin1").load()
    except UsageError as error:
        raise UsageError(
            f"{name}: refused, the pickle {error}, expected numpy arrays of numbers or text and plain containers only; "
            "get it from elsewhere, or build from the images"
        ) from None
    except Exception as error:  # of bytes that are no pickle, or lead numpy astray, it may be any
        raise UsageError(f"{name}: not a whole pickle ({error}); fetch it again") from None
