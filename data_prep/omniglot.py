"""Omniglot (Lake et al., 2015): 1623 characters x 20 drawings, 28x28, ink 255 on 0, rotations are classes."""

import contextlib
import http.client
import io
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from common.shards import SPLITS, Split, UsageError
from data_prep.files import Files, a_few, open_files, read_images
from data_prep.output import write

PARTS = ("images_background", "images_evaluation")
ZIPS = tuple(f"{part}.zip" for part in PARTS)
DRAWINGS = 20
SIZE = 28
ROTATIONS = (0, 90, 180, 270)  # degrees, anticlockwise
SPLIT_FILE = Path(__file__).with_name("omniglot_split.txt")
LAKE_VAL = 0.2  # share of the background alphabets that the lake split holds out: 6 of 30


def build(data_dir: Path, raws: list[Path], split: str = "vinyals", seed: int = 0) -> Path:
    """Build `DATA_DIR/omniglot` from `raws`: the two zips, a folder that holds them, or the extracted folders.

    split: "vinyals" takes the 1028 / 172 / 423 base characters of Vinyals et al. (2016); "lake" tests on
    images_evaluation, and holds a fifth of the alphabets of images_background out as val, drawn with `seed`. In both a
    character gives four classes, one a rotation. Returns the folder.
    Raises UsageError where a part, a character or a drawing is missing, or a drawing is unreadable.
    """
    with ExitStack() as stack:
        files = {}
        for path in _parts(raws):
            within = stack.enter_context(open_files(path))
            files |= {f"{path.name.removesuffix('.zip')}/{name}": opener for name, opener in within.items()}
        shown = " ".join(map(str, raws))
        characters, part_of = _characters(files, shown)
        chosen = _vinyals(characters, shown) if split == "vinyals" else _lake(part_of, seed)
        splits = {
            s: Split(
                [f"{character}/rot{angle:03d}" for character in chosen[s] for angle in ROTATIONS],
                [DRAWINGS] * len(chosen[s]) * len(ROTATIONS),
                _rotated(files, [characters[character] for character in chosen[s]]),
            )
            for s in SPLITS
        }
        source = f"Omniglot, {split} split" + (f" with seed {seed}" if split == "lake" else "")
        return write(data_dir, "omniglot", splits, source)


def download(data_dir: Path) -> Path:
    """Fetch the two zips through torchvision into `DATA_DIR/omniglot-py`, unless they are there; returns that folder.

    Raises UsageError where that fails, and then leaves nothing behind.
    """
    folder = data_dir / "omniglot-py"
    if all((folder / name).exists() for name in ZIPS):
        return folder
    from torchvision.datasets import Omniglot  # imported here: it takes seconds, and only a download needs it

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds without an answer; torchvision would wait for ever
    try:
        # It fetches into a folder that goes again: with the zips come 32,460 extracted files, or half a zip.
        # Its progress bars are for a terminal only.
        quiet = sys.stderr if sys.stderr.isatty() else io.StringIO()
        with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stderr(quiet):
            for background in (True, False):
                Omniglot(temporary, background=background, download=True)
            folder.mkdir(parents=True, exist_ok=True)
            for name in ZIPS:
                shutil.move(Path(temporary, Omniglot.folder, name), folder / name)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UsageError(
            f"Omniglot couldn't be downloaded ({error}); fetch {ZIPS[0]} and {ZIPS[1]} from "
            f"{Omniglot.download_url_prefix}, put both into {folder}, and run "
            f"python data_prep/build.py --dataset omniglot --raw {folder}"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return folder


def _parts(raws: list[Path]) -> list[Path]:
    """What to open: a part of Omniglot given alone (a zip or a folder) brings the other along if it lies beside it."""
    if len(raws) == 1 and raws[0].name.removesuffix(".zip") in PARTS:
        suffix = raws[0].suffix
        return [path for part in PARTS if (path := raws[0].with_name(part + suffix)).exists()] or raws
    if len(raws) == 1 and all((raws[0] / name).exists() for name in ZIPS):
        # As torchvision leaves them, extracted and not; whoever has the zips has every drawing.
        return [raws[0] / name for name in ZIPS]
    return raws


def _characters(files: Files, shown: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Maps "ALPHABET/characterNN" to its sorted file names, and to the part of Omniglot that it is in."""
    characters, part_of = {}, {}
    for name in files:
        if match := re.search(r"(?:^|/)(images_background|images_evaluation)/([^/]+/character\d+)/[^/]+\.png$", name):
            characters.setdefault(match[2], []).append(name)
            part_of[match[2]] = match[1]
    for part, zip_name in zip(PARTS, ZIPS, strict=True):
        if part not in part_of.values():
            raise UsageError(
                f"--raw {shown}: no {part}/ALPHABET/characterNN/*.png, expected both {ZIPS[0]} and {ZIPS[1]}, or what "
                f"they hold; add {zip_name}"
            )
    odd = [f"{c} has {len(names)}" for c, names in characters.items() if len(names) != DRAWINGS]
    if odd:
        raise UsageError(
            f"--raw {shown}: expected {DRAWINGS} drawings a character, but {len(odd)} characters have others: "
            f"{a_few(odd)}; extract the zips again"
        )
    return characters, part_of


def _vinyals(characters: dict[str, list[str]], shown: str) -> dict[str, list[str]]:
    """The base characters of each split, in the order of omniglot_split.txt; they must be all of `characters`."""
    chosen = {s: [] for s in SPLITS}
    for line in SPLIT_FILE.read_text().splitlines():
        if not line.startswith("#"):
            s, alphabet, numbers = line.split()
            first, last = map(int, numbers.split("-"))
            chosen[s] += [f"{alphabet}/character{n:02d}" for n in range(first, last + 1)]
    expected = {character for s in SPLITS for character in chosen[s]}
    for what, odd in (("missing", expected - set(characters)), ("unknown", set(characters) - expected)):
        if odd:
            raise UsageError(
                f"--raw {shown}: {len(odd)} characters {what}: {a_few(sorted(odd))}; expected the {len(expected)} of "
                "both zips; extract them again"
            )
    return chosen


def _lake(part_of: dict[str, str], seed: int) -> dict[str, list[str]]:
    """Background alphabets for train and val (whole alphabets, drawn with `seed`), evaluation alphabets for test."""
    background = sorted({c.split("/")[0] for c, part in part_of.items() if part == PARTS[0]})
    val = np.random.default_rng(seed).permutation(background)[: max(1, round(LAKE_VAL * len(background)))]
    chosen = {s: [] for s in SPLITS}
    for character, part in sorted(part_of.items()):
        s = "test" if part == PARTS[1] else "val" if character.split("/")[0] in val else "train"
        chosen[s].append(character)
    return chosen


def _ink(image: Image.Image) -> Image.Image:
    # 105 -> 28 makes one pixel of fourteen. Nearest neighbours, or a threshold afterwards, would break strokes that are
    # two pixels wide; filtered grey levels keep how much ink there was.
    return ImageOps.invert(image.convert("L")).resize((SIZE, SIZE), Image.LANCZOS)


def _rotated(files: Files, characters: list[list[str]]) -> Iterator[np.ndarray]:
    """Four blocks uint8 (20, 1, 28, 28) a character, one a rotation."""
    for names in characters:
        images = read_images(files, names, _ink)
        for angle in ROTATIONS:
            yield np.rot90(images, angle // 90, axes=(2, 3))
