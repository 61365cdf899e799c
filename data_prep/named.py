"""Sets whose classes and split are fixed by a paper: tieredImageNet, CIFAR-FS, FC100 and CUB-200-2011.

  tieredimagenet  {split}_images_png.pkl or {split}_images.npz (BGR), with {split}_labels.pkl; torchmeta's hdf5 files
  cifarfs, fc100  {CIFAR_FS,FC100}_{split}.pickle with data and labels; class folders with class lists
  cub             images/NNN.NAME/*.jpg, with class lists or without
Class folders below train, val and test serve too. The number of classes of each split is verified in every form.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import h5py
import numpy as np

from common.shards import SPLITS, Split, UsageError
from data_prep import arrays, folder, hdf5, splits
from data_prep.files import ARRAY_SUFFIXES, RawFiles, a_few, is_hdf5, is_pickle
from data_prep.output import write
from data_prep.pictures import Pictures, squared


class Known(NamedTuple):
    """What is known of a set: its title, the pixels a side, the classes of train, val and test, and what holds it."""

    title: str
    side: int
    classes: tuple[int, int, int]
    needs: str


SETS = {
    "tieredimagenet": Known(
        "tieredImageNet", 84, (351, 97, 160), "{train,val,test}_images_png.pkl or _images.npz with _labels.pkl"
    ),
    "cifarfs": Known(
        "CIFAR-FS", 32, (64, 16, 20), "CIFAR_FS_{train,val,test}.pickle, or class folders with class lists"
    ),
    "fc100": Known("FC100", 32, (60, 20, 20), "FC100_{train,val,test}.pickle, or {train,val,test}/CLASS/*.png"),
    "cub": Known("CUB-200-2011", 84, (100, 50, 50), "CUB_200_2011.tgz or its images/, with class lists or without"),
}
CUB_CLASS = re.compile(r"\d{3}\.\w+")
# The rows of a class, and what gives them as uint8 (n, 3, side, side); None where they are names of encoded pictures.
Class = tuple[Sequence, Callable[[Sequence], np.ndarray] | None]


def build(data_dir: Path, name: str, files: RawFiles, split: str | None = None) -> Path:
    """Build `DATA_DIR/NAME` from files in any form above; `split`: the folder or file of a class list.

    Returns the folder. Raises UsageError where a split has another number of classes, or a picture can't be read.
    """
    known = SETS[name]
    names = [file for file in files if file.lower().endswith(ARRAY_SUFFIXES)]
    if names and not files.pictures():
        if split:
            raise UsageError(f"--split {split}: {a_few(names)} are split already; leave --split out")
        with ExitStack() as stack:
            return _build_arrays(data_dir, name, files, names, known, stack)
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


def _build_arrays(data_dir: Path, name: str, files: RawFiles, names: list[str], known: Known, stack: ExitStack) -> Path:
    encoded: dict[str, Callable[[], bytes]] = {}  # pictures that an array holds as files, by the name to call them
    pictures = Pictures(lambda name: encoded[name](), (), lambda image: squared(image, known.side))
    content = {}
    for s in SPLITS:
        of_split = [n for n in names if (meant := splits.meaning(PurePosixPath(n).stem)) and meant[0] == s]
        images = [n for n in of_split if "label" not in PurePosixPath(n).stem.lower()]
        if not images:
            raise UsageError(f"--raw {files.shown}: no arrays for {s}, expected {known.needs}; complete it")
        chosen = next((n for n in images if n.lower().endswith(".npz")), images[0])
        labels = next((n for n in of_split if n not in images), None)
        reading = _of_hdf5 if is_hdf5(chosen) else _of_pickle if is_pickle(chosen) else _of_npz
        content[s] = reading(files, s, chosen, labels, known, stack, encoded)
    pictures.pending |= dict.fromkeys(encoded)
    splits.refuse_shared({s: list(content[s]) for s in SPLITS}, files.shown, "get another copy")
    _refuse_other_counts(files.shown, {s: len(content[s]) for s in SPLITS}, known)
    written = {
        s: Split(
            list(content[s]),
            [len(rows) for rows, _ in content[s].values()],
            (pictures.block(rows) if give is None else give(rows) for rows, give in content[s].values()),
        )
        for s in SPLITS
    }
    result = write(data_dir, name, written, known.title)
    files.said += pictures.said()
    return result


def _of_hdf5(files, split, name, labels, known, stack, encoded) -> dict[str, Class]:
    """As torchmeta writes them: a data set for each class, of pixels, or of the bytes of picture files."""
    content = {}
    for path, dataset in hdf5.datasets(stack.enter_context(hdf5.opened(files, name)), name):
        class_name = path.rsplit("/", 1)[-1]
        if class_name in content:
            raise UsageError(f"{name}: class {class_name} is there twice; get another copy")
        if dataset.dtype == np.uint8 and dataset.shape[1:] == (known.side, known.side, 3):
            rows = range(len(dataset))
            content[class_name] = rows, lambda rows, d=dataset: hdf5.rows(d, slice(None)).transpose(0, 3, 1, 2)
        elif h5py.check_vlen_dtype(dataset.dtype) == np.uint8 and dataset.ndim == 1:
            rows = [f"{name}: {path}[{i}]" for i in range(len(dataset))]
            encoded |= {row: lambda d=dataset, i=i: bytes(hdf5.rows(d, i)) for i, row in enumerate(rows)}
            content[class_name] = rows, None
        else:
            raise UsageError(
                f"{name}: {path} holds {dataset.dtype} {dataset.shape}, expected uint8 (n, {known.side}, {known.side}, "
                "3) or picture files; get another copy"
            )
    return content


def _of_pickle(files, split, name, labels, known, stack, encoded) -> dict[str, Class]:
    """data and labels in one pickle; or a list of PNG files in one, and their labels in another."""
    content = arrays.pickled(files, name)
    if isinstance(content, list):
        if not all(
            isinstance(image, bytes) or isinstance(image, np.ndarray) and image.dtype == np.uint8 for image in content
        ):
            raise UsageError(f"{name}: a list of other things than the bytes of pictures; get another copy")
        result = {}
        for class_name, rows in _labelled(files, split, labels, len(content), name).items():
            shown = [f"{name}[{i}]" for i in rows]
            encoded |= {row: lambda i=i: bytes(content[i]) for i, row in zip(rows.tolist(), shown, strict=True)}
            result[class_name] = shown, None
        return result
    if not isinstance(content, dict) or not {"data", "labels"} <= set(content):
        raise UsageError(f"{name}: a {type(content).__name__} without data and labels; expected {known.needs}")
    images = arrays.images_of(content["data"], name, known.side)
    by_label = arrays.rows_by_label(content["labels"], len(images), name)
    return {
        label if isinstance(label, str) else f"{split}/{label}": (rows, lambda rows: arrays.block(images, rows))
        for label, rows in by_label.items()
    }


def _of_npz(files, split, name, labels, known, stack, encoded) -> dict[str, Class]:
    """images (N, side, side, 3) in OpenCV's order of colours, blue first, or features in the usual one, red first."""
    images = arrays.npz_array(files, name, ("images",), stack)
    blue_first = images is not None
    if not blue_first:
        images = arrays.npz_array(files, name, ("features", "data"), stack)
    images = arrays.images_of(images, name, known.side)
    own = arrays.npz_array(files, name, ("labels", "targets"), stack)
    if own is not None:
        by_class = {f"{split}/{label}": rows for label, rows in arrays.rows_by_label(own, len(images), name).items()}
    else:
        by_class = _labelled(files, split, labels, len(images), name)

    def give(rows: np.ndarray) -> np.ndarray:
        return arrays.block(images, rows)[:, :: -1 if blue_first else 1]

    return {class_name: (rows, give) for class_name, rows in by_class.items()}


def _labelled(files: RawFiles, split: str, labels: str | None, count: int, name: str) -> dict[str, np.ndarray]:
    """Class name -> rows, by a pickle of labels with or without their names."""
    if labels is None:
        raise UsageError(f"{name}: the labels are missing, expected {split}_labels.pkl beside it; complete it")
    content = arrays.pickled(files, labels)
    names = None
    if isinstance(content, dict):
        for key, key_of_names in (("label_specific", "label_specific_str"), ("labels", "label_str")):
            if key in content:
                content, names = content[key], content.get(key_of_names)
                break
    by_label = arrays.rows_by_label(content, count, labels)
    names = list(names) if isinstance(names, list | tuple | np.ndarray) else []
    numbered = all(isinstance(label, int) and 0 <= label < len(names) for label in by_label)
    if numbered and len({str(names[label]) for label in by_label}) == len(by_label):
        return {str(names[label]): rows for label, rows in by_label.items()}
    return {label if isinstance(label, str) else f"{split}/{label}": rows for label, rows in by_label.items()}
