"""HDF5 files that torchmeta wrote: a data set for each class, in groups."""

from collections.abc import Iterator
from contextlib import contextmanager

import h5py
import numpy as np

from common.shards import UsageError
from data_prep.files import RawFiles

LARGEST_SIDE = 1024  # of a picture


@contextmanager
def opened(files: RawFiles, name: str) -> Iterator[h5py.File]:
    """Raises UsageError where it is no whole HDF5 file."""
    with files.open(name) as content:
        try:
            file = h5py.File(content, "r")
        except Exception as error:  # as of a damaged picture: h5py raises what it comes upon
            raise _refusal(name, error) from None
        with file:
            yield file


def datasets(file: h5py.File, name: str) -> list[tuple[str, h5py.Dataset]]:
    """The data sets of pictures in all groups of a file, by path; links are not followed.

    Raises UsageError for one that holds no pictures, or whose content is in another file.
    """
    found = []

    def take(path: str | bytes, item) -> None:
        if isinstance(item, h5py.Dataset):  # a name that isn't UTF-8 comes as bytes
            found.append((path.decode("latin-1") if isinstance(path, bytes) else path, item))

    try:
        file.visititems(take)
        for path, dataset in found:
            if dataset.is_virtual or dataset.external:
                raise UsageError(f"{name}: refused, {path} refers to other files; get another copy")
            if len(dataset.shape or ()) == 0 or max(dataset.shape[1:3], default=0) > LARGEST_SIDE:
                raise UsageError(f"{name}: {path} holds {dataset.dtype} {dataset.shape}, expected pictures")
    except UsageError:
        raise
    except Exception as error:
        raise _refusal(name, error) from None
    return found


def rows(dataset: h5py.Dataset, selection: int | slice) -> np.ndarray:
    """`dataset[selection]`; raises UsageError where that is damaged."""
    try:
        return dataset[selection]
    except Exception as error:
        raise _refusal(dataset.name, error) from None


def _refusal(name: str, error: Exception) -> UsageError:
    return UsageError(f"{name}: no whole HDF5 file ({str(error).partition(chr(10))[0]}); get another copy")
