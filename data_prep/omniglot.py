"""Omniglot (Lake et al., 2015): 1623 characters x 20 drawings, 28x28, ink 255 on 0, each rotation a class of its own."""

import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data_prep import files as raw_files
from data_prep.shards import SPLITS, DataError, Split, write

PARTS = ("images_background", "images_evaluation")
DRAWINGS = 20
ROTATIONS = (0, 90, 180, 270)
SPLIT_FILE = Path(__file__).with_name("omniglot_split.txt")
LAKE_VAL_SHARE = 0.2  # of the 30 background alphabets: 6 of them


def build(data_dir: Path, raw: Path, split: str = "vinyals", seed: int = 0, size: int = 28, name: str = "omniglot"):
    """Build `DATA_DIR/omniglot` from `raw`: the two zips, a folder that holds them, or the extracted folders.

    split: "vinyals" takes the 1028 / 172 / 423 base characters of Vinyals et al. (2016); "lake" takes images_evaluation
    as test, and holds a fifth of the background alphabets out as val, drawn with `seed`. Either way a character turned
    by 0, 90, 180 and 270 degrees (anticlockwise) gives four classes. Returns the folder.
    Raises DataError where a part, a character or a drawing is missing, or a drawing is unreadable.
    """
    with ExitStack() as stack:
        files = {}
        for path in _parts(raw):
            files.update(stack.enter_context(raw_files.open_files(path)))
        characters, part_of = _characters(files, raw)
        chosen = vinyals_split(characters, raw) if split == "vinyals" else lake_split(part_of, seed)
        splits = {
            s: Split(
                [f"{character}/rot{angle:03d}" for character in chosen[s] for angle in ROTATIONS],
                [len(characters[character]) for character in chosen[s] for _ in ROTATIONS],
                _rotated(files, [characters[character] for character in chosen[s]], size),
            )
            for s in SPLITS
        }
        return write(data_dir, name, splits, f"Omniglot, {split} split" + (f", seed {seed}" * (split == "lake")))


def _parts(raw: Path) -> list[Path]:
    """The paths to open: a folder that holds the zips is its zips, one of the two zips brings its neighbour along."""
    folder = raw.parent if raw.name in {f"{part}.zip" for part in PARTS} and raw.is_file() else raw
    zips = [folder / f"{part}.zip" for part in PARTS]
    if folder.is_dir() and not all((folder / part).is_dir() for part in PARTS) and any(z.exists() for z in zips):
        return zips
    return [raw]


def _characters(files: raw_files.Files, raw: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Maps "ALPHABET/characterNN" to its sorted file names, and to the part of Omniglot that it is in."""
    characters, part_of = {}, {}
    for name in files:
        if match := re.search(r"(?:^|/)(images_background|images_evaluation)/([^/]+/character\d+)/[^/]+\.png$", name):
            characters.setdefault(match[2], []).append(name)
            part_of[match[2]] = match[1]
    for part in PARTS:
        if part not in part_of.values():
            raise DataError(
                f"--raw {raw}: no {part}/ALPHABET/characterNN/*.png found; expected {PARTS[0]}.zip and {PARTS[1]}.zip "
                "or what they hold"
            )
    odd = [f"{c} ({len(names)})" for c, names in characters.items() if len(names) != DRAWINGS]
    if odd:
        raise DataError(
            f"--raw {raw}: {len(odd)} characters with other than {DRAWINGS} drawings: {', '.join(odd[:3])}; "
            "extract the zips again"
        )
    return characters, part_of


def vinyals_split(characters, raw: Path) -> dict[str, list[str]]:
    """The base characters of each split in the order of omniglot_split.txt, which must be all of `characters`."""
    chosen = {s: [] for s in SPLITS}
    for line in SPLIT_FILE.read_text().splitlines():
        if not line.startswith("#"):
            s, alphabet, numbers = line.split()
            first, last = map(int, numbers.split("-"))
            chosen[s] += [f"{alphabet}/character{n:02d}" for n in range(first, last + 1)]
    expected = {character for s in SPLITS for character in chosen[s]}
    for what, names in (("missing", expected - set(characters)), ("not of Omniglot", set(characters) - expected)):
        if names:
            raise DataError(
                f"--raw {raw}: {len(names)} characters {what}: {', '.join(sorted(names)[:3])}; expected the "
                f"{len(expected)} of both zips; extract them again"
            )
    return chosen


def lake_split(part_of: dict[str, str], seed: int) -> dict[str, list[str]]:
    """Background alphabets for train and val (whole alphabets, drawn with `seed`), evaluation alphabets for test."""
    background = sorted({c.split("/")[0] for c, part in part_of.items() if part == PARTS[0]})
    held_out = max(1, round(LAKE_VAL_SHARE * len(background)))
    val = set(np.random.default_rng(seed).permutation(background)[:held_out].tolist())
    chosen = {s: [] for s in SPLITS}
    for character, part in sorted(part_of.items()):
        s = "test" if part == PARTS[1] else "val" if character.split("/")[0] in val else "train"
        chosen[s].append(character)
    return chosen


def _rotated(files: raw_files.Files, classes: list[list[str]], size: int) -> Iterator[np.ndarray]:
    """Four blocks uint8 (20, 1, size, size) a character, one a rotation."""

    def ink(image: Image.Image) -> Image.Image:
        # 105 -> 28 makes one pixel of about 14. Nearest-neighbour, or a threshold afterwards, drops strokes that are
        # a pixel or two wide; filtered grey levels keep how much ink there was.
        return ImageOps.invert(image.convert("L")).resize((size, size), Image.LANCZOS)

    for names in classes:
        images = raw_files.read_images(files, names, ink)
        for angle in ROTATIONS:
            yield np.rot90(images, angle // 90, axes=(2, 3))
