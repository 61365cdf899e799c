"""What the tests of data_prep share: raw files made by the tests, and built sets read back."""

import hashlib
import os
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from common.shards import ROOT
from data_prep import build

RAW_DATA = Path(os.environ.get("RAW_DATA", ROOT.parent / "shared" / "data"))  # the real raw sets, where there are any
COUNTS = {"ant": 3, "bee": 1, "cat": 7, "dog": 2, "elk": 4, "fox": 5}


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def splits_of(built: Path) -> dict[str, tuple[np.ndarray, np.ndarray, list[str]]]:
    result = {}
    for split in ("train", "val", "test"):
        with h5py.File(built / f"{split}.h5") as file:
            names = [name.decode() for name in file["class_names"][:]]
            result[split] = file["images"][:], file["class_start"][:], names
    return result


def built(name: str, raw: Path | list[Path], data_dir: Path, *options: str) -> Path:
    """The folder of a set that the command builds."""
    raws = raw if isinstance(raw, list) else [raw]
    arguments = ["--dataset", name, "--raw", *map(str, raws), "--data-dir", str(data_dir), *map(str, options)]
    assert build.main(arguments) == 0
    return data_dir / name


def pack(folder: Path, archive: Path) -> Path:
    """The folder's content as an archive, the kind by its suffix."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, path.relative_to(folder))
    else:
        with tarfile.open(
            archive, {".tar": "w", ".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}[archive.suffix]
        ) as file:
            for path in sorted(folder.iterdir()):
                file.add(path, path.name)
    return archive


def class_folders(folder: Path, counts: dict[str, int]) -> Path:
    """Class folders of plain images in many sizes; image i of class c has one colour, (10 c, 10 i, 50)."""
    for c, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20 + 5 * c, 30 + i), (10 * c, 10 * i, 50)).save(folder / name / f"{i:02d}.png")
    return folder


def needs_raw(name: str) -> pytest.MarkDecorator:
    """Skips a test where the real raw set isn't on this machine."""
    reason = f"no {name} in {RAW_DATA}; set RAW_DATA to the folder that holds it"
    return pytest.mark.skipif(not (RAW_DATA / name).is_dir(), reason=reason)


def classes_of(folder: Path) -> dict[str, list[str]]:
    """The class names of each split of a built set."""
    return {split: names for split, (_, _, names) in splits_of(folder).items()}
