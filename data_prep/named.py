"""Sets whose classes and split are fixed by a paper: tieredImageNet, CIFAR-FS, FC100 and CUB-200-2011.

  tieredimagenet  {split}_images_png.pkl or {split}_images.npz (BGR), with {split}_labels.pkl; torchmeta's hdf5 files
  cifarfs, fc100  {CIFAR_FS,FC100}_{split}.pickle with data and labels; class folders with class lists
  cub             images/NNN.NAME/*.jpg, with class lists or without
Class folders below train, val and test serve too. The number of classes of each split is verified in every form.
"""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from common.shards import SPLITS, UsageError
from data_prep import folder, splits
from data_prep.files import RawFiles, a_few
from data_prep.named_arrays import ArraySet
from data_prep.output import write


class Known(NamedTuple):
    """What is known of a set: its title, the pixels a side, the classes of train, val and test, and what holds it."""

    title: str
    side: int
    classes: tuple[int, int, int]
    needs: str


SETS = {
    "tieredimagenet": Known(
        "tieredImageNet",
        84,
        (351, 97, 160),
        "{train,val,test}_images_png.pkl or _images.npz with _labels.pkl; torchmeta's {train,val,test}_data.hdf5; or "
        "{train,val,test}/CLASS/*",
    ),
    "cifarfs": Known(
        "CIFAR-FS", 32, (64, 16, 20), "CIFAR_FS_{train,val,test}.pickle, or class folders with class lists"
    ),
    "fc100": Known("FC100", 32, (60, 20, 20), "FC100_{train,val,test}.pickle, or {train,val,test}/CLASS/*"),
    "cub": Known("CUB-200-2011", 84, (100, 50, 50), "CUB_200_2011.tgz or its images/, with class lists or without"),
}
CUB_CLASS = re.compile(r"\d{3}\.\w+")


def build(data_dir: Path, name: str, files: RawFiles, split: str | None = None) -> Path:
    """Build `DATA_DIR/NAME` from files in any form above; `split`: the folder or file of a class list.

    Returns the folder. Raises UsageError where a split has another number of classes, or a picture can't be read.
    """
    known = SETS[name]
    names = files.arrays()
    if names:
        if split:
            raise UsageError(f"--split {split}: {a_few(names)} are split already; leave --split out")
        with ExitStack() as stack:
            content = ArraySet(files, known.side, stack)
            classes = {s: content.classes(s, names, known.needs) for s in SPLITS}
            splits.refuse_shared({s: list(classes[s]) for s in SPLITS}, files.shown, "get another copy")
            _refuse_other_counts(files.shown, {s: len(classes[s]) for s in SPLITS}, known)
            built = write(data_dir, name, {s: content.split(classes[s]) for s in SPLITS}, known.title)
            files.said += content.pictures.said()
            return built
    if name == "cub":
        chosen = _cub(files, split)
    else:
        chosen = folder.choose(files, split=split, drawing=False)
        if chosen is None:
            raise UsageError(
                f"--raw {files.shown}: class folders without a split, expected {known.needs}; give the class "
                "lists with --split FOLDER"
            )
    _refuse_other_counts(files.shown, {s: len(chosen[s]) for s in SPLITS}, known)
    return folder.write_pictures(data_dir, name, files, chosen, known.side, False, known.title)


def _refuse_other_counts(shown: str, counts: dict[str, int], known: Known) -> None:
    if tuple(counts[s] for s in SPLITS) != known.classes:
        has, expected = (" / ".join(map(str, numbers)) for numbers in ((counts[s] for s in SPLITS), known.classes))
        raise UsageError(
            f"--raw {shown}: {has} classes in train / val / test, expected {known.title}'s {expected}; complete it, or "
            "give the set another name to build it as your own"
        )


def _cub(files: RawFiles, split: str | None) -> folder.Chosen:
    """CUB's classes by class lists; without any, as A Closer Look at Few-shot Classification (Chen et al., ICLR 2019)
    numbers them: every second class trains, and the others are val and test in turn."""
    pictures = [
        name for name in files.pictures()
        if CUB_CLASS.fullmatch(name.split("/")[-2] if "/" in name else "") and "segmentations" not in name.split("/")
    ]  # fmt: skip
    if not pictures:
        raise UsageError(f"--raw {files.shown}: no NNN.NAME/*.jpg, expected {SETS['cub'].needs}; fetch it again")
    chosen = folder.choose(files, split=split, drawing=False, pictures=pictures)
    if chosen is not None:
        return chosen
    classes: dict[str, list[str]] = {}
    for name in pictures:
        classes.setdefault(name.split("/")[-2], []).append(name)
    chosen = {s: {} for s in SPLITS}
    for i, name in enumerate(sorted(classes)):
        chosen["train" if i % 2 == 0 else "val" if i % 4 == 1 else "test"][name] = classes[name]
    files.said.append("no class lists: split as in A Closer Look at Few-shot Classification (Chen et al., 2019)")
    return chosen
