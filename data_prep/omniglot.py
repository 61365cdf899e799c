"""Omniglot (Lake et al., 2015): 1623 characters x 20 drawings, 28x28, ink 255 on 0, rotations are classes."""

import contextlib
import http.client
import io
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
from PIL import Image, ImageOps

from common.shards import SPLITS, Preparation, Split, UsageError, build_command
from data_prep import hdf5
from data_prep.files import RawFiles, a_few, is_hdf5
from data_prep.output import write
from data_prep.pictures import Pictures, plain, png_of

PARTS = ("images_background", "images_evaluation")
ZIPS = tuple(f"{part}.zip" for part in PARTS)
DRAWING = re.compile(r"(?:^|/)([^/]+/character\d+)/[^/]+\.(?:png|jpe?g|bmp|gif|tiff?)$", re.IGNORECASE)
DRAWINGS = 20
SIZE = 28
ROTATIONS = (0, 90, 180, 270)  # degrees, anticlockwise
SPLIT_FILE = Path(__file__).with_name("omniglot_split.txt")
LAKE_VAL = 0.2  # share of the background alphabets that the lake split holds out: 6 of 30


def build(data_dir: Path, files: RawFiles, split: str = "vinyals", seed: int = 0) -> Path:
    """Build `DATA_DIR/omniglot` from its drawings, wherever in `files` they lie, or from torchmeta's data.hdf5.

    split: "vinyals" takes the 1028 / 172 / 423 base characters of Vinyals et al. (2016); "lake" tests on
    images_evaluation, and holds a fifth of the alphabets of images_background out as val, drawn with `seed`. In both a
    character gives four classes, one a rotation. Returns the folder.
    Raises UsageError where a character or a drawing is missing or unknown, or a drawing is unreadable.
    """
    with ExitStack() as stack:
        arrays = [name for name in files if is_hdf5(name)]
        if arrays and not any(DRAWING.search(name) for name in files):
            read, characters = _of_hdf5(files, arrays, stack)
        else:
            read, characters = files.read, _characters(files)
        chosen, part_of = known_characters()
        _refuse_others(files.shown, characters, part_of)
        if split == "lake":
            chosen = _lake(part_of, seed)
        names = [name for s in SPLITS for character in chosen[s] for name in characters[character]]
        pictures = Pictures(read, names, ink)
        splits = {
            s: Split(
                [f"{character}/rot{angle:03d}" for character in chosen[s] for angle in ROTATIONS],
                [DRAWINGS] * len(chosen[s]) * len(ROTATIONS),
                _rotated(pictures, [characters[character] for character in chosen[s]]),
            )
            for s in SPLITS
        }
        source = f"Omniglot, {split} split" + (f" with seed {seed}" if split == "lake" else "")
        folder = write(data_dir, "omniglot", splits, source, Preparation("ink"))
        files.said += pictures.said()
        return folder


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
            f"{build_command(folder.with_name('omniglot'), raw=folder)}"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return folder


def parts(raws: list[Path]) -> list[Path]:
    """What to open: a part of Omniglot given alone (a zip or a folder) brings the other along if it lies beside it."""
    if len(raws) == 1 and raws[0].name.removesuffix(".zip") in PARTS:
        suffix = raws[0].suffix
        return [path for part in PARTS if (path := raws[0].with_name(part + suffix)).exists()] or raws
    if len(raws) == 1 and all((raws[0] / name).exists() for name in ZIPS):
        # As torchvision leaves them, extracted and not; whoever has the zips has every drawing.
        return [raws[0] / name for name in ZIPS]
    return raws


def known_characters() -> tuple[dict[str, list[str]], dict[str, str]]:
    """Of omniglot_split.txt: the characters of each split in its order, and the part that each character is in."""
    chosen, part_of = {s: [] for s in SPLITS}, {}
    for line in SPLIT_FILE.read_text().splitlines():
        if not line.startswith("#"):
            s, alphabet, numbers, part = line.split()
            first, last = map(int, numbers.split("-"))
            characters = [f"{alphabet}/character{n:02d}" for n in range(first, last + 1)]
            chosen[s] += characters
            part_of |= dict.fromkeys(characters, f"images_{part}")
    return chosen, part_of


def _characters(files: RawFiles) -> dict[str, list[str]]:
    """Maps "ALPHABET/characterNN" to its sorted file names; what lies above the alphabet may differ."""
    characters: dict[str, dict[str, str]] = {}  # file name -> name
    for name in files:
        if match := DRAWING.search(name):
            first = characters.setdefault(match[1], {}).setdefault(name.rsplit("/", 1)[-1], name)
            if first != name and files.read(first) != files.read(name):
                raise UsageError(f"--raw {files.shown}: {first} and {name} differ; keep one of the two copies")
    return {character: list(names.values()) for character, names in characters.items()}


def _of_hdf5(
    files: RawFiles, arrays: list[str], stack: ExitStack
) -> tuple[Callable[[str], bytes], dict[str, list[str]]]:
    """A function that reads a drawing, and the names of those of each character, of torchmeta's data.hdf5: uint8
    (20, 105, 105) a character, ink 255."""
    found: dict[str, h5py.Dataset] = {}
    for name in arrays:
        for path, dataset in hdf5.datasets(stack.enter_context(hdf5.opened(files, name)), name):
            character = "/".join(path.split("/")[-2:])
            if character in found or dataset.dtype != np.uint8 or dataset.ndim != 3:
                raise UsageError(
                    f"{name}: {path} holds {dataset.dtype} {dataset.shape}, or is there twice; expected uint8 "
                    f"({DRAWINGS}, 105, 105) for each character; get another copy"
                )
            found[character] = dataset

    def read(name: str) -> bytes:
        character, number = name.rsplit("/", 1)
        return png_of(255 - hdf5.rows(found[character], int(number)))

    return read, {character: [f"{character}/{i}" for i in range(len(found[character]))] for character in found}


def _refuse_others(shown: str, characters: dict[str, list[str]], part_of: dict[str, str]) -> None:
    """Raise UsageError unless there are the characters of both parts, with twenty drawings each, and no other."""
    unknown = sorted(characters.keys() - part_of.keys())
    if unknown:
        raise UsageError(
            f"--raw {shown}: {len(unknown)} characters that aren't Omniglot's: {a_few(unknown)}; expected the "
            f"{len(part_of)} of both zips, not turned or renamed; extract them again, or build it under another name"
        )
    missing = [character for character in part_of if character not in characters]
    for part, zip_name in zip(PARTS, ZIPS, strict=True):
        if {c for c in part_of if part_of[c] == part} <= set(missing):
            raise UsageError(
                f"--raw {shown}: no {part}/ALPHABET/characterNN/*.png, expected both {ZIPS[0]} and {ZIPS[1]}, or what "
                f"they hold; add {zip_name}"
            )
    if missing:
        raise UsageError(
            f"--raw {shown}: {len(missing)} characters missing: {a_few(sorted(missing))}; expected the {len(part_of)} "
            "of both zips; extract them again"
        )
    odd = [f"{c} has {len(names)}" for c, names in characters.items() if len(names) != DRAWINGS]
    if odd:
        raise UsageError(
            f"--raw {shown}: expected {DRAWINGS} drawings a character, but {len(odd)} characters have others: "
            f"{a_few(odd)}; extract the zips again"
        )


def _lake(part_of: dict[str, str], seed: int) -> dict[str, list[str]]:
    """Background alphabets for train and val (whole alphabets, drawn with `seed`), evaluation alphabets for test."""
    background = sorted({c.split("/")[0] for c, part in part_of.items() if part == PARTS[0]})
    val = np.random.default_rng(seed).permutation(background)[: max(1, round(LAKE_VAL * len(background)))]
    chosen = {s: [] for s in SPLITS}
    for character, part in sorted(part_of.items()):
        s = "test" if part == PARTS[1] else "val" if character.split("/")[0] in val else "train"
        chosen[s].append(character)
    return chosen


def ink(image: Image.Image, invert: bool | None = None) -> Image.Image:
    """Any picture of ink as an image of the set: light on dark, SIZE x SIZE, grey. `invert`: whether it is dark ink on
    light paper; None: that is seen."""
    # 105 -> 28 makes one pixel of fourteen. Nearest neighbours, or a threshold afterwards, would break strokes that are
    # two pixels wide; filtered grey levels keep how much ink there was.
    return light(plain(image, "L"), invert).resize((SIZE, SIZE), Image.LANCZOS)


def light(grey: Image.Image, invert: bool | None = None) -> Image.Image:
    """Light ink on dark, of ink in grey levels. `invert` as of `ink`."""
    invert = on_white(grey) if invert is None else invert
    return ImageOps.invert(grey) if invert else grey


def on_white(grey: Image.Image) -> bool:
    """Whether ink is on white paper: some copies have been inverted, and most of a drawing is paper."""
    return np.asarray(grey).mean() > 127


def _rotated(pictures: Pictures, characters: list[list[str]]) -> Iterator[np.ndarray]:
    """Four blocks uint8 (20, 1, 28, 28) a character, one a rotation."""
    for names in characters:
        images = pictures.block(names)
        for angle in ROTATIONS:
            yield np.rot90(images, angle // 90, axes=(2, 3))
