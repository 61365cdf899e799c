"""Pickles from the internet, read without running what they ask for."""

import pickle
import warnings
from typing import BinaryIO

import numpy as np

from data_prep.files import BROKEN
from data_prep.shards import DataError

# What Unpickler raises for bytes that are no pickle, or lead numpy astray.
UNREADABLE = (pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError, ImportError, ArithmeticError)
UNREADABLE += (MemoryError,)
NUMPY_1 = np.__version__.startswith("1.")

# What numpy arrays, numpy scalars and plain containers need, by the names of numpy 1 and 2. `_codecs.encode` is how
# Python 3 writes bytes for protocol 2; it turns text into bytes and can do no more.
ALLOWED = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    *((builtins, name) for builtins in ("builtins", "__builtin__") for name in ("set", "frozenset", "bytearray")),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise DataError(f"asks for {module}.{name}")
        if module.startswith("numpy."):  # a pickle of numpy 1 names numpy.core, one of numpy 2 numpy._core
            module = module.replace("._core" if NUMPY_1 else ".core", ".core" if NUMPY_1 else "._core")
        return super().find_class(module, name)


def load(file: BinaryIO, name: str):
    """What the pickle `file` holds: numpy arrays, numbers, text and containers; Python 2's text is read as latin1.

    Raises DataError where it isn't whole, or asks for another function or class, which is then not even imported.
    """
    try:
        with warnings.catch_warnings():  # numpy 2.4 warns of the dtypes in every pickle of numpy 1
            warnings.simplefilter("ignore")
            return _ArraysOnly(file, encoding="latin1").load()
    except DataError as error:
        raise DataError(
            f"{name}: refused, the pickle {error}, expected numpy arrays and plain containers only; get it from "
            "elsewhere, or build from the images"
        ) from None
    except (*BROKEN, *UNREADABLE) as error:
        raise DataError(f"{name}: not a whole pickle ({error}); fetch it again") from None
