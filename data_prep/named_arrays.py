"""The arrays in which people have tieredImageNet, CIFAR-FS and FC100: pickles, npz and HDF5 files, a few a split."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import PurePosixPath

import h5py
import numpy as np

from common.shards import Split, UsageError
from data_prep import arrays, hdf5, splits
from data_prep.files import RawFiles, is_hdf5, is_pickle
from data_prep.pictures import Pictures, squared


@dataclass
class Class:
    """The images of a class: `give(rows)` is uint8 (n, 3, side, side)."""

    rows: Sequence
    give: Callable[[Sequence], np.ndarray]


class ArraySet:
    """A set's classes of RGB images of one side, read from arrays; files stay open until `stack` ends."""

    def __init__(self, files: RawFiles, side: int, stack: ExitStack):
        self.files, self.side, self.stack = files, side, stack
        self.encoded: dict[str, Callable[[], bytes]] = {}  # pictures that an array holds as files
        self.pictures = Pictures(lambda name: self.encoded[name](), (), lambda image: squared(image, side))

    def classes(self, split: str, names: list[str], needs: str) -> dict[str, Class]:
        """The classes of a split, from those of the files `names` that are called after it. Raises UsageError."""
        meant = {name: splits.meaning(PurePosixPath(name).stem) for name in names}
        of_split = [name for name in names if meant[name] and meant[name][0] == split]
        images = [name for name in of_split if "label" not in PurePosixPath(name).stem.lower()]
        if not images:
            raise UsageError(f"--raw {self.files.shown}: no arrays for {split}, expected {needs}; complete it")
        chosen = next((name for name in images if name.lower().endswith(".npz")), images[0])
        labels = next((name for name in of_split if name not in images), None)
        if is_hdf5(chosen):
            return self._of_hdf5(chosen)
        return self._of_pickle(split, chosen, labels) if is_pickle(chosen) else self._of_npz(split, chosen, labels)

    def split(self, classes: dict[str, Class]) -> Split:
        """What is written of them."""
        blocks = (of_class.give(of_class.rows) for of_class in classes.values())
        return Split(list(classes), [len(of_class.rows) for of_class in classes.values()], blocks)

    def _of_hdf5(self, name: str) -> dict[str, Class]:
        """As torchmeta writes them: a data set for each class, of pixels, or of the bytes of picture files."""
        classes = {}
        for path, dataset in hdf5.datasets(self.stack.enter_context(hdf5.opened(self.files, name)), name):
            class_name = path.rsplit("/", 1)[-1]
            if class_name in classes:
                raise UsageError(f"{name}: class {class_name} is there twice; get another copy")
            if dataset.dtype == np.uint8 and dataset.shape[1:] == (self.side, self.side, 3):
                classes[class_name] = Class(range(len(dataset)), lambda _, dataset=dataset: _pixels(dataset))
            elif h5py.check_vlen_dtype(dataset.dtype) == np.uint8 and dataset.ndim == 1:
                classes[class_name] = self._encoded(
                    {f"{name}: {path}[{i}]": lambda d=dataset, i=i: bytes(hdf5.rows(d, i)) for i in range(len(dataset))}
                )
            else:
                raise UsageError(
                    f"{name}: {path} holds {dataset.dtype} {dataset.shape}, expected uint8 (n, {self.side}, "
                    f"{self.side}, 3) or picture files; get another copy"
                )
        return classes

    def _of_pickle(self, split: str, name: str, labels: str | None) -> dict[str, Class]:
        """data and labels in one pickle; or a list of PNG files in one, and their labels in another."""
        content = arrays.pickled(self.files, name)
        if isinstance(content, list):
            if not all(map(_is_bytes, content)):
                raise UsageError(f"{name}: a list of other things than the bytes of pictures; get another copy")
            return {
                class_name: self._encoded({f"{name}[{i}]": lambda i=i: bytes(content[i]) for i in rows.tolist()})
                for class_name, rows in self._labelled(split, labels, len(content), name).items()
            }
        if not isinstance(content, dict) or not {"data", "labels"} <= set(content):
            raise UsageError(f"{name}: a {type(content).__name__} without data and labels; get another copy")
        images = arrays.images_of(content["data"], name, self.side)
        by_label = arrays.rows_by_label(content["labels"], len(images), name)
        return _named(by_label, split, lambda rows: arrays.block(images, rows))

    def _of_npz(self, split: str, name: str, labels: str | None) -> dict[str, Class]:
        """images (N, side, side, 3) in OpenCV's order of colours, blue first, or features in the usual one."""
        blue_first = arrays.npz_array(self.files, name, ("images",), self.stack)
        usual = arrays.npz_array(self.files, name, ("features", "data"), self.stack)
        images = arrays.images_of(usual if blue_first is None else blue_first, name, self.side)
        order = [0, 1, 2] if blue_first is None else [2, 1, 0]
        own = arrays.npz_array(self.files, name, ("labels", "targets"), self.stack)
        if own is None:
            by_class = self._labelled(split, labels, len(images), name)
        else:
            by_class = arrays.rows_by_label(own, len(images), name)
        return _named(by_class, split, lambda rows: arrays.block(images, rows)[:, order])

    def _labelled(self, split: str, labels: str | None, count: int, name: str) -> dict[int | str, np.ndarray]:
        """Class -> its rows of `count` images, by a pickle of labels with or without their names."""
        if labels is None:
            raise UsageError(f"{name}: the labels are missing, expected {split}_labels.pkl beside it; complete it")
        content = arrays.pickled(self.files, labels)
        names = None
        if isinstance(content, dict):
            for key, key_of_names in (("label_specific", "label_specific_str"), ("labels", "label_str")):
                if key in content:
                    names, content = content.get(key_of_names), content[key]
                    break
        by_label = arrays.rows_by_label(content, count, labels)
        names = list(map(str, names)) if isinstance(names, list | tuple | np.ndarray) else []
        numbered = all(isinstance(label, int) and 0 <= label < len(names) for label in by_label)
        if numbered and len({names[label] for label in by_label}) == len(by_label):
            return {names[label]: rows for label, rows in by_label.items()}
        return {label if isinstance(label, str) else f"{split}/{label}": rows for label, rows in by_label.items()}

    def _encoded(self, files: dict[str, Callable[[], bytes]]) -> Class:
        """A class of pictures that are called so, and what gives the content of each."""
        self.encoded |= files
        self.pictures.pending |= dict.fromkeys(files)
        return Class(list(files), self.pictures.block)


def _named(by_label: dict[int | str, np.ndarray], split: str, give: Callable) -> dict[str, Class]:
    """Classes by name: a label that is a number is one of its split's."""
    return {
        label if isinstance(label, str) else f"{split}/{label}": Class(rows, give) for label, rows in by_label.items()
    }


def _pixels(dataset: h5py.Dataset) -> np.ndarray:
    return hdf5.rows(dataset, slice(None)).transpose(0, 3, 1, 2)


def _is_bytes(value) -> bool:
    return isinstance(value, bytes) or isinstance(value, np.ndarray) and value.dtype == np.uint8
