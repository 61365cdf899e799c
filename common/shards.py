"""The .h5 files of a data set, DATA_DIR/NAME/{train,val,test}.h5, written and read. Nothing else knows their format.

Each file holds
  images       uint8 (n, C, H, W), sorted by class, stored as one contiguous block so that it can be memory-mapped
  class_start  int64 (classes + 1), class c owns images[class_start[c]:class_start[c + 1]]
  class_names  one string a class
and the attributes `source`, `split`, `mean` and `std` (of the training images, a channel, on the scale 0..1), `version`
(of this format), `checksum` (SHA-256 of the three arrays), and `preparation` and `levels`, which older files lack.
"""

import errno
import hashlib
import math
import os
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
VERSION = 1
NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]*"  # of a data set, as it becomes a folder
SPLITS = ("train", "val", "test")


class UsageError(Exception):
    """What the person at the keyboard can mend: one line with the value, what was expected, and the mend."""


def build_command(folder: Path, raw: Path | str | None = None) -> str:
    """What builds a data set into its folder, to be pasted where one is; `raw` is where from."""
    script = "data_prep/build.py" if Path.cwd() == ROOT else shlex.quote(str(ROOT / "data_prep" / "build.py"))
    if raw is None and folder.name not in ("glyphs", "omniglot"):
        raw = "PATH"
    command = f"python {script} --dataset {shlex.quote(folder.name)}"
    if raw is not None:
        command += f" --raw {shlex.quote(str(raw))}"
    if folder.parent.absolute() != ROOT / "data":
        command += f" --data-dir {shlex.quote(str(folder.parent))}"
    return command


def storable(name: str) -> str:
    """A name as HDF5 can hold it: what a file's name has beyond Unicode is written as an escape."""
    return name.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


PREPARATIONS = ("whole", "ink", "centred ink")


@dataclass(frozen=True)
class Preparation:
    """How a set's images were made of picture files, so that other pictures can be made like them.

    how: "whole", the picture is scaled to the size of the set's images; "ink", likewise, after one on white paper was
    inverted; "centred ink", the same with the ink alone, in the middle of the image. data_prep/prepare.py does it.
    levels: of pictures with more than 8 bits a pixel, the value that became black, and the one that became white.
    """

    how: str = "whole"
    levels: tuple[float, float] = (0, 65535)


# Of sets that were built before it was stored; all others were "whole".
FORMER = {"glyphs": Preparation("centred ink"), "omniglot": Preparation("ink")}


@dataclass
class Split:
    """The classes of one split: `counts[c]` images of `class_names[c]`, as `images` yields them class by class.

    images: uint8 (n_c, C, H, W) a class, read lazily so that a set needn't fit into memory.
    """

    class_names: list[str]
    counts: list[int]
    images: Iterable[np.ndarray]


def write_shard(
    path: Path, split: str, content: Split, source: str, moments: tuple | None = None,
    preparation: Preparation = Preparation(),
) -> tuple:  # fmt: skip
    """Write one file. `moments` are the training images' (mean (C,), std (C,)), computed from these images when None,
    and returned.

    Raises UsageError where a class has another number of images, or images of another size, than was promised.
    """
    starts = np.concatenate([[0], np.cumsum(content.counts)]).astype(np.int64)
    class_names = [storable(name) for name in content.class_names]
    names = np.array(class_names, dtype=object)
    digest = hashlib.sha256()
    histogram = 0  # of each channel's 256 grey levels: exact moments, and faster than sums of squares
    with h5py.File(path, "w", locking=False) as file:
        images = None
        rows = zip(class_names, starts[:-1], starts[1:], content.images, strict=True)
        for class_name, start, stop, block in tqdm(rows, split, len(names), unit="class", leave=False, disable=None):
            if images is None:
                if shutil.disk_usage(path.parent).free < starts[-1] * block[0].size:  # h5py fails badly on a full disk
                    raise OSError(errno.ENOSPC, "no space left on the device for", str(path))
                images = file.create_dataset("images", (starts[-1], *block.shape[1:]), np.uint8)
            if block.dtype != np.uint8 or block.shape != (stop - start, *images.shape[1:]):
                raise UsageError(
                    f"{split} class {class_name}: images {block.dtype} {block.shape}, expected uint8 "
                    f"{(int(stop - start), *images.shape[1:])}"
                )
            images[start:stop] = block
            digest.update(np.ascontiguousarray(block))
            if moments is None:
                histogram = histogram + np.stack(
                    [np.bincount(block[:, c].ravel(), minlength=256) for c in range(block.shape[1])]
                )
        if moments is None:
            levels = np.arange(256) / 255
            share = histogram / histogram.sum(1, keepdims=True)  # (C, 256)
            mean = share @ levels
            moments = mean, np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
        file["class_start"] = starts
        file["class_names"] = names
        digest.update(starts)
        digest.update("\n".join(class_names).encode())
        file.attrs.update(
            source=storable(source),
            split=split,
            mean=moments[0],
            std=moments[1],
            version=VERSION,
            checksum=digest.hexdigest(),
            preparation=preparation.how,
            levels=preparation.levels,
        )
    return moments


def read_shard(path: Path) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray, np.ndarray]:
    """(images as a memory map (n, C, H, W) uint8, class_start (classes + 1,), class names, mean (C,), std (C,)).

    Raises UsageError, with the command that builds the file, where it is missing, cut short or not of this format.
    """
    build = f"build it: {build_command(path.parent)}"
    if not os.path.isfile(path):
        there = ", ".join(sorted(file.parent.name for file in path.parent.parent.glob("[!.]*/test.h5"))) or "none"
        raise UsageError(f"{path} isn't there (built data sets: {there}); {build}")
    try:
        length = path.stat().st_size
        with opened(path) as file:
            stored = {name: _stored(file, name, length) for name in ("images", "class_start", "class_names")}
            images = stored["images"]
            offset, shape, dtype = images.id.get_offset(), images.shape, images.dtype
            starts = stored["class_start"][:]
            names = [str(name) for name in stored["class_names"].asstr()[:]]
            mean, std = (np.asarray(file.attrs[name], dtype=np.float64) for name in ("mean", "std"))
            version = file.attrs["version"]
    except Exception as error:  # h5py raises errors of many types, for whatever it comes upon in a damaged file
        raise UsageError(f"{path} is no whole data file ({str(error).partition(chr(10))[0]}); {build}") from None
    whole = (
        np.all(version == VERSION) and dtype == np.uint8 and len(shape) == 4 and min(shape) > 0 and offset is not None
        and offset + math.prod(shape) <= length and starts.dtype.kind in "iu" and starts.ndim == 1
        and len(starts) == len(names) + 1 > 1 and starts[0] == 0 and starts[-1] == shape[0]
        and (starts[1:] > starts[:-1]).all() and mean.shape == std.shape == shape[1:2]
        and np.isfinite([mean, std]).all()
    )  # fmt: skip
    if not whole:
        raise UsageError(f"{path} holds images {dtype} {shape}, {len(names)} names: not the format expected; {build}")
    return np.memmap(path, np.uint8, "r", offset, shape), starts.astype(np.int64), names, mean, np.maximum(std, 1e-3)


def describe(path: Path) -> dict:
    """What config.json keeps of a data file, so that pictures can be made like its images where it isn't: their shape
    (C, H, W), the training images' mean and standard deviation, and the preparation. Raises UsageError."""
    images, _, _, mean, std = read_shard(path)
    former = FORMER.get(path.parent.name, Preparation())
    try:
        with opened(path) as file:
            how = str(file.attrs.get("preparation", former.how))
            low, high = map(float, file.attrs.get("levels", former.levels))
        if how not in PREPARATIONS or not low < high:
            raise ValueError(f"{how}, levels from {low:g} to {high:g}")
    except Exception as error:  # as in read_shard
        raise UsageError(
            f"{path}: its preparation isn't one of {', '.join(PREPARATIONS)} with two levels ({error}); build it: "
            f"{build_command(path.parent)}"
        ) from None
    moments = {"mean": mean.tolist(), "std": std.tolist()}
    return {"shape": list(images.shape[1:]), **moments, "preparation": how, "levels": [low, high]}


def opened(path: Path) -> h5py.File:
    """A file for reading, without a lock: built sets never change, and some network file systems have no locks."""
    return h5py.File(path, "r", locking=False)


def _stored(file: h5py.File, name: str, length: int) -> h5py.Dataset:
    """A data set that lies in the file of `length` bytes itself. Raises ValueError for any other."""
    stored = file[name]
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or stored.is_virtual or stored.external:
        raise ValueError(f"{name} is elsewhere")
    if math.prod(stored.shape) * stored.dtype.itemsize > length:
        raise ValueError(f"{name} is larger than the file")
    return stored


def channels(folder: Path) -> int | None:
    """How many a built set's images have; None where it isn't built."""
    try:
        return read_shard(folder / "train.h5")[0].shape[1]
    except UsageError:
        return None
