"""Pictures that people have as arrays, in pickles and npz files, with a label for each or rows for each class."""

import os
import zipfile
from contextlib import ExitStack
from typing import BinaryIO

import numpy as np

from common.shards import UsageError
from data_prep import archives, unpickle
from data_prep.files import RawFiles, a_few

Images = np.ndarray | list[np.ndarray]  # uint8 (N, side, side, 3), or N of (side, side, 3)


def pickled(files: RawFiles, name: str):
    """What a pickle holds; keys of a dictionary that are bytes as text. Raises UsageError."""
    with files.open(name) as file:
        content = unpickle.load(file, name)
    if isinstance(content, dict):
        content = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    return content


def images_of(value, name: str, side: int) -> Images:
    """Raises UsageError unless they are RGB images of that side, 8 bits a channel."""
    if isinstance(value, list) and value and all(isinstance(image, np.ndarray) for image in value):
        shapes = {(str(image.dtype), image.shape) for image in value}
        if shapes == {("uint8", (side, side, 3))}:
            return value
        raise UsageError(f"{name}: images {a_few(sorted(map(str, shapes)))}, expected uint8 ({side}, {side}, 3) each")
    if not isinstance(value, np.ndarray):
        raise UsageError(f"{name}: not the arrays of images expected, but {type(value).__name__}; get another copy")
    if value.dtype != np.uint8 or value.shape[1:] != (side, side, 3):
        raise UsageError(f"{name}: images {value.dtype} {value.shape}, expected uint8 (N, {side}, {side}, 3)")
    return value


def block(images: Images, rows: np.ndarray) -> np.ndarray:
    """The images of these rows.   (n, 3, side, side)"""
    chosen = images[rows] if isinstance(images, np.ndarray) else np.stack([images[i] for i in rows.tolist()])
    return chosen.transpose(0, 3, 1, 2)


def rows_by_label(labels, count: int, name: str) -> dict[int | str, np.ndarray]:
    """Label -> the rows that have it, sorted by label, of `count` images. Raises UsageError."""
    if isinstance(labels, list | tuple) and all(isinstance(label, int | str | bytes | np.integer) for label in labels):
        labels = np.array([label.decode("latin1") if isinstance(label, bytes) else label for label in labels])
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iuUS" or labels.size != count:
        shown = f"{len(labels):,}" if isinstance(labels, list | tuple | np.ndarray) and np.ndim(labels[:0]) else "no"
        raise UsageError(f"{name}: {shown} labels for {count:,} images, expected one for each; get another copy")
    values, inverse = np.unique(labels.ravel(), return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    parts = np.split(order, np.searchsorted(inverse[order], np.arange(1, len(values))))
    return dict(zip(values.tolist(), parts, strict=True))


def rows_by_class(classes, count: int, name: str) -> dict[str, np.ndarray]:
    """Class -> its rows of `count` images, from a dictionary of lists of rows. Raises UsageError."""
    if not isinstance(classes, dict):
        raise UsageError(f"{name}: class_dict is a {type(classes).__name__}, expected a dictionary; get another copy")
    result = {}
    for key, rows in classes.items():
        whole = (
            isinstance(rows, np.ndarray)
            or isinstance(rows, list | range)
            and all(isinstance(r, int | np.integer) for r in rows)
        )
        rows = np.asarray(rows) if whole else np.array("")
        text = key.decode("latin1") if isinstance(key, bytes) else str(key)[:80]
        numbers = rows.ndim == 1 and rows.dtype.kind in "iu"
        if not numbers or not np.all((rows >= 0) & (rows < count)) or len(np.unique(rows)) < len(rows):
            raise UsageError(f"{name}: class {text} isn't a list of rows of its {count} images; get another copy")
        result[text] = rows
    return result


def npz_array(files: RawFiles, name: str, keys: tuple[str, ...], stack: ExitStack) -> np.ndarray | None:
    """The first of the arrays `keys` that an npz file holds, mapped from a temporary file until `stack` ends.

    Raises UsageError where it is damaged, or an array of objects, which would run code.
    """
    with files.open(name) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                found = [key for key in keys if f"{key}.npy" in archive.namelist()]
                if not found:
                    return None
                member = archive.getinfo(f"{found[0]}.npy")
                archives.refuse_bomb(f"{name}: {member.filename}", member.file_size, member.compress_size)
                with archive.open(member) as packed:
                    plain = archives.expanded(packed, f"{name}/{member.filename}", stack)
            return _mapped(plain, f"{name}: {found[0]}")
        except UsageError:
            raise
        except Exception as error:  # of a damaged file, zipfile and numpy raise what they come upon
            raise UsageError(f"{name}: no whole npz file ({error}); fetch it again") from None


def _mapped(plain: BinaryIO, name: str) -> np.ndarray:
    version = np.lib.format.read_magic(plain)
    if version not in ((1, 0), (2, 0)):
        raise UsageError(f"{name} is of npy format {version}, expected 1 or 2; get another copy")
    reading = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reading(plain)
    if dtype.hasobject or fortran:
        raise UsageError(f"{name}: refused, an array of {dtype}, expected numbers; get another copy")
    offset = plain.tell()
    if os.fstat(plain.fileno()).st_size - offset != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise UsageError(f"{name}: {dtype} {shape} is more or less than it holds; fetch it again")
    return np.memmap(plain, dtype, "r", offset, shape)
