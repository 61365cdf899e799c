"""The files that a build leaves: `DATA_DIR/NAME/{train,val,test}.h5`, with `preview.png` beside them.

Each .h5 file holds
  images       uint8 (n, C, H, W), sorted by class, stored as one contiguous block so that it can be memory-mapped
  class_start  int64 (classes + 1), class c owns images[class_start[c]:class_start[c + 1]]
  class_names  one string a class
and the attributes `source`, `split`, `mean` and `std` (of the training images, a channel, on the scale 0..1), `version`
(of this format) and `checksum` (SHA-256 of the three arrays).
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
VERSION = 1
NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]*"  # of a data set, as it becomes a folder
SPLITS = ("train", "val", "test")
FILES = {*(f"{split}.h5" for split in SPLITS), "preview.png"}


class DataError(Exception):
    """Something a person can mend; the message is one line: the value, what was expected, the mend."""


def build_command(folder: Path) -> str:
    """What builds a data set into its folder."""
    raw = "" if folder.name in ("glyphs", "omniglot") else " --raw PATH"
    elsewhere = folder.parent.absolute() != ROOT / "data"
    return f"python data_prep/build.py --dataset {folder.name}{raw}" + f" --data-dir {folder.parent}" * elsewhere


@dataclass
class Split:
    """The classes of one split: `counts[c]` images of `class_names[c]`, as `images` yields them class by class.

    images: uint8 (n_c, C, H, W) a class, read lazily so that a set needn't fit into memory.
    """

    class_names: list[str]
    counts: list[int]
    images: Iterable[np.ndarray]


def write(data_dir: Path, name: str, splits: dict[str, Split], source: str) -> Path:
    """Write the three files and the preview beside the final folder, and rename them into it when all are whole.

    `splits` has the keys train, val and test. Returns the folder. A run that is interrupted leaves what was there
    before. Raises DataError where a class has another number of images, or images of another size, than was promised,
    and where the final folder holds anything but an earlier build.
    """
    folder = data_dir / name
    if folder.exists():
        if not folder.is_dir() or (foreign := sorted(p.name for p in folder.iterdir() if p.name not in FILES)):
            what = f"holds {foreign[0]}" if folder.is_dir() else "is a file"
            raise DataError(f"{folder} {what}, expected nothing there but an earlier build; choose another --data-dir")
    absent = [p for p in (data_dir, *data_dir.parents) if not p.exists()]
    data_dir.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{name}.partial-", dir=data_dir))
    try:
        moments = None
        for split in SPLITS:
            moments = _write_split(partial / f"{split}.h5", split, splits[split], source, moments)
        preview(partial / "train.h5", partial / "preview.png")
        folder.mkdir(exist_ok=True)
        for file in sorted(partial.iterdir()):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for path in absent:
            if not any(path.iterdir()):
                path.rmdir()
    return folder


def _write_split(path: Path, split: str, content: Split, source: str, moments):
    """One .h5 file; `moments` are the training images' (mean, std), computed here when None, and returned."""
    starts = np.concatenate([[0], np.cumsum(content.counts)]).astype(np.int64)
    names = np.array(content.class_names, dtype=object)
    digest = hashlib.sha256()
    histogram = 0  # of each channel's 256 grey levels: exact moments, and faster than sums of squares
    with h5py.File(path, "w") as file:
        images = None
        rows = zip(content.class_names, starts[:-1], starts[1:], content.images, strict=True)
        for class_name, start, stop, block in tqdm(rows, split, len(names), unit="class", leave=False, disable=None):
            if images is None:
                images = file.create_dataset("images", (starts[-1], *block.shape[1:]), np.uint8)
            if block.dtype != np.uint8 or block.shape != (stop - start, *images.shape[1:]):
                raise DataError(
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
        digest.update("\n".join(content.class_names).encode())
        file.attrs.update(
            source=source, split=split, mean=moments[0], std=moments[1], version=VERSION, checksum=digest.hexdigest()
        )
    return moments


def preview(shard: Path, picture: Path, rows: int = 8, columns: int = 8) -> None:
    """Draw a few images of a few classes, evenly spaced over the file, one class a row (the paper's Figure 1)."""
    with h5py.File(shard) as file:
        images, starts = file["images"], file["class_start"][:]
        channels, height, width = images.shape[1:]
        chosen = np.unique(np.linspace(0, len(starts) - 2, rows).astype(int))
        sheet = np.full((len(chosen) * (height + 2), columns * (width + 2), channels), 128, np.uint8)
        for row, c in enumerate(chosen):
            for column, image in enumerate(images[starts[c] : min(starts[c + 1], starts[c] + columns)]):
                y, x = row * (height + 2) + 1, column * (width + 2) + 1
                sheet[y : y + height, x : x + width] = image.transpose(1, 2, 0)
    scale = max(1, 512 // max(sheet.shape[:2]))
    picture_image = Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet)
    picture_image.resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.NEAREST).save(picture)
