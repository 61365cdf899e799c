"""Folders of pictures: what a person has labelled, and what is to be labelled."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.shards import UsageError, storable
from data_prep.files import a_few, is_picture, kinds_of, walk
from data_prep.omniglot import on_white
from data_prep.pictures import Pictures, plain
from data_prep.prepare import prepare
from predictions.trained import Trained

AT_A_TIME = 25  # pictures, between which the bar moves
COLOURED = 48  # grey levels that a picture's red, green and blue are apart, in the mean of its most coloured tenth
GREY = range(64, 192)  # levels that are neither ink nor paper
MOSTLY_GREY = 0.3  # share of such pixels, above which a picture isn't one of ink; of glyphs none has over 0.17


@dataclass
class Support:
    """Pictures with classes: `files[i]` is of class `classes[labels[i]]`, in random order as in an episode."""

    classes: list[str]
    files: list[Path]
    labels: np.ndarray


def support_in(folder: Path) -> Support:
    """A folder that holds a folder for each class, of one or more pictures. Raises UsageError for any other."""
    if not folder.is_dir():
        raise UsageError(f"--support {folder}: no such folder, expected one that holds a folder for each class")
    if stray := [path.name for path in sorted(folder.iterdir()) if path.is_file() and is_picture(path.name)]:
        raise UsageError(f"--support {folder}: pictures outside of class folders ({a_few(stray)}); move each into one")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {name: list(_pictures_below(folder / name)) for name in classes}
    if empty := [name for name in classes if not found[name]]:
        raise UsageError(f"--support {folder}: no picture in {a_few(empty)}; add one or more, or remove the folder")
    if len(classes) < 2:
        one = f"{classes[0]} alone" if classes else "no class folder"
        raise UsageError(f"--support {folder}: {one}, expected two or more folders of pictures, one a class")
    files = [file for name in classes for file in found[name]]
    labels = np.repeat(np.arange(len(classes)), [len(found[name]) for name in classes])
    order = np.random.default_rng(0).permutation(len(files))  # Reptile's steps take a few at a time, of several classes
    return Support([storable(name) for name in classes], [files[i] for i in order], labels[order])


def query_in(folder: Path, without: Path) -> list[Path]:
    """All pictures below a folder, or a picture itself, but for a sheet in the folder `without`. Raises UsageError
    where there are none."""
    if folder.is_file() and is_picture(folder.name):
        return [folder]
    files = list(_pictures_below(folder, without))
    if not files:
        kinds = f" ({kinds})" if (kinds := kinds_of(others_below(folder, without))) else ""
        what = f"no picture in it{kinds}" if folder.is_dir() else "no such folder"
        what = "no picture of a kind that is known" if folder.is_file() else what
        raise UsageError(f"--query {folder}: {what}, expected pictures such as .jpg or .png, in folders or not")
    return files


def others_below(folder: Path, without: Path) -> list[str]:
    """What is in a folder beside pictures, such as .heic, which can't be read; links that lead nowhere, too."""
    return [file.name for file in _files_below(folder, without) if not _is_readable(file)]


def shown(file: Path, folder: Path) -> str:
    """A picture's name in predictions.csv: its path below the folder that was given."""
    return storable(file.name if file == folder else file.relative_to(folder).as_posix())


def true_labels(files: list[Path], folder: Path, classes: list[str]) -> np.ndarray:
    """Of each query picture the class that a folder which it lies in is called like; -1 where none is."""
    places = {name: label for label, name in enumerate(classes)}
    above = [shown(file, folder).split("/")[:-1] for file in files]
    return np.array([next((places[part] for part in parts if part in places), -1) for parts in above])


def in_both(support: list[Path], query: list[Path], query_folder: Path) -> list[str]:
    """The query pictures that are support pictures too, by what is in the files."""
    known = {_digest(file) for file in support}
    return [shown(file, query_folder) for file in query if _digest(file) in known]


class Prepared:
    """Picture files as images of the data set that a run was trained on, and what was seen of them.

    invert: whether black and white change places; None: as the set's build decides.
    """

    def __init__(self, trained: Trained, invert: bool | None):
        self.trained, self.invert = trained, invert
        self.seen: Counter[str] = Counter()
        self.mean = 0.0  # grey level of all pictures
        self.flat: list[str] = []  # files
        self.with_frames: list[str] = []

    def images(self, files: list[Path]) -> np.ndarray:
        """uint8 (n, C, H, W). Raises UsageError naming all that are unreadable."""
        pictures = Pictures(lambda name: Path(name).read_bytes(), map(str, files), self._image)
        blocks = []
        with tqdm(total=len(files), desc="reading", unit="picture", leave=False, disable=None) as bar:
            for first in range(0, len(files), AT_A_TIME):
                blocks.append(pictures.block([str(file) for file in files[first : first + AT_A_TIME]]))
                bar.update(len(blocks[-1]))
        images = np.concatenate(blocks)
        self.mean, self.flat, self.with_frames = images.mean(), pictures.flat, pictures.with_frames
        return images

    def _image(self, picture: Image.Image) -> Image.Image:
        like, shape = self.trained.preparation, self.trained.data["shape"]
        image = prepare(picture, like, shape, self.invert)
        self.seen["pictures"] += 1
        coloured = plain(picture, "RGB", like.levels)
        small = coloured.resize((32, 32), Image.BOX)
        apart = np.ptp(np.asarray(small).astype(int), axis=2)
        self.seen["coloured"] += np.sort(apart, axis=None)[-apart.size // 10 :].mean() > COLOURED
        if like.how != "whole":
            grey = coloured.convert("L")
            self.seen["on white"] += bool(on_white(grey))
            self.seen["unsure"] += on_white(grey) != _lighter_at_its_edge(np.asarray(grey))
            levels = np.asarray(image)
            self.seen["not ink"] += np.mean((levels >= GREY.start) & (levels < GREY.stop)) > MOSTLY_GREY
        return image

    def notes(self) -> Iterator[str]:
        """What a person should know of how the pictures fit the run's data set, a line each."""
        seen, n, dataset = self.seen, self.seen["pictures"], self.trained.dataset
        if self.flat:
            yield (
                f"{len(self.flat)} of {n} pictures come out flat, in few of 256 grey levels, so a label says nothing: "
                f"{a_few(self.flat)}"
            )
        if self.with_frames:
            yield (
                f"{len(self.with_frames)} of {n} pictures have several frames, of which the first is taken: "
                f"{a_few(self.with_frames)}"
            )
        if self.trained.preparation.how != "whole":
            if self.invert is None and seen["on white"]:
                rest = "" if seen["on white"] == n else f", and {n - seen['on white']} are left as they are"
                yield (
                    f"{seen['on white']} of {n} pictures are on white paper, and are inverted, as {dataset} is light "
                    f"on dark{rest}; where that is wrong, add --invert or --as-is"
                )
            if self.invert is None and seen["unsure"]:
                yield (
                    f"it isn't sure whether the paper of {seen['unsure']} of {n} pictures is light or dark; look at "
                    "sheet.html, and add --invert or --as-is where ink isn't light on dark"
                )
            if seen["not ink"]:
                yield (
                    f"{seen['not ink']} of {n} pictures don't look like ink on paper, as those of {dataset} do; more "
                    "contrast may help"
                )
        else:
            mean = 255 * np.mean(self.trained.data["mean"])
            if abs(255 - self.mean - mean) + 64 < abs(self.mean - mean):
                yield (
                    f"the pictures' mean grey level is {self.mean:.0f}, that of {dataset} {mean:.0f}; if black and "
                    f"white change places, {'leave --invert out' if self.invert else 'add --invert'}"
                )
        if self.trained.data["shape"][0] == 1 and seen["coloured"]:
            yield f"{seen['coloured']} of {n} pictures are in colours, and become grey, as {dataset} is"
        if self.trained.data["shape"][0] == 3 and not seen["coloured"]:
            yield f"all pictures are grey or nearly so, and {dataset} is in colours"


def _pictures_below(folder: Path, without: Path | None = None) -> Iterator[Path]:
    return filter(_is_readable, _files_below(folder, without))


def _is_readable(file: Path) -> bool:
    return is_picture(file.name) and file.is_file()


def _files_below(folder: Path, without: Path | None = None) -> Iterator[Path]:
    """In the order of their names, also in folders that are links; hidden ones are left out, and what an earlier
    command has put into the folder `without`."""
    sheets = {without.resolve() / name for name in ("sheet.png", "sheet.html", "predictions.csv")} if without else ()
    for root, folders, names in walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = (root / name for name in names if not name.startswith("."))
        yield from (file for file in files if file.resolve() not in sheets)


def _lighter_at_its_edge(grey: np.ndarray) -> bool:
    """Whether a picture (H, W) is lighter there, where there is paper, than in the mean."""
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return bool(np.median(edge) > grey.mean())


def _digest(file: Path) -> bytes:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError:
        return str(file).encode()  # it is named when it is prepared
