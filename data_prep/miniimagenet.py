"""mini-ImageNet by WordNet id (Ravi & Larochelle, 2017): 64 / 16 / 20 classes of 600 images, 84x84 RGB.

Every layout that people have of it ends in the same files, because published numbers are comparable on this split only:
  images/ and {train,val,test}.csv                        Ravi & Larochelle's
  {train,val,test}/WNID/*.jpg, or WNID/*.jpg              class folders, under any split
  mini-imagenet-cache-{train,val,test}.pkl                image_data, class_dict
  miniImageNet_category_split_{train_phase_train,val,test}.pickle     data, labels
  {train,val,test}_data.hdf5                              torchmeta's: a data set for each class
  an ILSVRC-2012 train folder or tar and the csv files    the images as they were, resized
"""

import re
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from common.shards import SPLITS, Split, UsageError
from data_prep import arrays, hdf5, ravi
from data_prep.files import RawFiles, a_few, is_hdf5, is_pickle
from data_prep.output import write
from data_prep.pictures import Pictures, squared

PER_CLASS = 600
SIZE = 84
SPLIT_FILE = Path(__file__).with_name("miniimagenet_split.txt")
LAYOUTS = (
    "images/ with train.csv, val.csv and test.csv; {train,val,test}/WNID/*.jpg; the .pkl or .pickle files; torchmeta's "
    "{train,val,test}_data.hdf5"
)


def build(data_dir: Path, files: RawFiles, csv_folder: Path | None = None) -> Path:
    """Build `DATA_DIR/miniimagenet` from files in any layout above; `csv_folder` brings csv files.

    Classes are sorted by WordNet id, images by file name, or as they stand in an array. Pickles are held in memory
    (1.3 GB). Returns the folder. Raises UsageError naming what is missing, too much, or unreadable.
    """
    wnids = known_split()
    with ExitStack() as stack:
        pictures = None
        if any(map(is_pickle, files.arrays())):
            counts, block = _from_pickles(files, wnids)
        elif any(map(is_hdf5, files.arrays())):
            counts, block = _from_hdf5(files, stack)
        else:
            classes = _from_csv(files, csv_folder) or _from_class_folders(files)
            counts = Counter({wnid: len(names) for wnid, names in classes.items()})
            names = [name for s in SPLITS for wnid in wnids[s] for name in classes.get(wnid, ())]
            pictures = Pictures(files.read, names, lambda image: squared(image, SIZE))

            def block(wnid: str) -> np.ndarray:
                return pictures.block(classes[wnid])

        _refuse_other_counts(counts, [wnid for s in SPLITS for wnid in wnids[s]], files.shown)
        splits = {s: Split(wnids[s], [PER_CLASS] * len(wnids[s]), map(block, wnids[s])) for s in SPLITS}
        folder = write(data_dir, "miniimagenet", splits, "mini-ImageNet, split by WordNet id")
        files.said += pictures.said() if pictures else []
        return folder


def known_split() -> dict[str, list[str]]:
    """The sorted WordNet ids of each split: 64 / 16 / 20."""
    wnids = {s: [] for s in SPLITS}
    for line in SPLIT_FILE.read_text().splitlines():
        if not line.startswith("#"):
            s, *ids = line.split()
            wnids[s] += ids
    return wnids


def _refuse_other_counts(counts: Counter, expected: list[str], shown: str) -> None:
    """Raises UsageError unless there are `PER_CLASS` images of each expected class, and no other class."""
    missing = sorted(set(expected) - set(counts))
    extra = sorted(set(counts) - set(expected))
    other = [f"{wnid} has {counts[wnid]}" for wnid in expected if wnid in counts and counts[wnid] != PER_CLASS]
    faults = []
    if missing:
        faults.append(f"{len(missing)} classes missing: {a_few(missing)}")
    if extra:
        faults.append(f"{len(extra)} classes that aren't mini-ImageNet's: {a_few(extra)}")
    if other:
        faults.append(f"{len(other)} classes with other than {PER_CLASS} images: {a_few(other)}")
    if faults:
        raise UsageError(
            f"--raw {shown}: {'; '.join(faults)}; expected {len(expected)} classes of {PER_CLASS} images; complete it "
            "(an ILSVRC-2012 train folder needs the three csv files too: --csv FOLDER)"
        )


def _from_csv(files: RawFiles, csv_folder: Path | None) -> dict[str, list[str]] | None:
    """WordNet id -> the names of its images, sorted as the csv files name them; None where there are no csv files, or
    they can't be read while class folders hold all there is."""
    try:
        return ravi.listed(files, csv_folder)
    except UsageError as error:
        if csv_folder or not _is_whole(files):
            raise
        files.used -= {name for name in files if name.endswith(".csv")}
        files.said.append(f"the class folders are whole, and the csv files are passed over ({error})")
        return None


def _is_whole(files: RawFiles) -> bool:
    try:
        counts = {wnid: len(names) for wnid, names in _from_class_folders(files).items()}
    except UsageError:
        return False
    return counts == {wnid: PER_CLASS for of_split in known_split().values() for wnid in of_split}


def _from_class_folders(files: RawFiles) -> dict[str, list[str]]:
    """WordNet id -> the names of its images, sorted by file name, whatever the split folders above."""
    classes, stray = {}, []
    for name in files.pictures():
        above = [part for part in name.split("/")[:-1] if ravi.WNID.fullmatch(part)]
        if above:
            classes.setdefault(above[-1], []).append(name)
        else:
            stray.append(name)
    if stray or not classes:
        what = f"{len(stray)} images outside WNID folders ({a_few(stray)}) and no csv files" if stray else "no images"
        raise UsageError(f"--raw {files.shown}: {what}; expected a folder or an archive of {LAYOUTS}; complete it")
    return {wnid: sorted(names, key=lambda name: name.rsplit("/", 1)[-1]) for wnid, names in classes.items()}


def _from_hdf5(files: RawFiles, stack: ExitStack) -> tuple[Counter, Callable[[str], np.ndarray]]:
    """The number of images of each WordNet id, and a function that gives them as uint8 (n, 3, 84, 84)."""
    found = {}
    for name in filter(is_hdf5, files):
        for path, dataset in hdf5.datasets(stack.enter_context(hdf5.opened(files, name)), name):
            wnid = path.rsplit("/", 1)[-1]
            if dataset.dtype != np.uint8 or dataset.shape[1:] != (SIZE, SIZE, 3) or wnid in found:
                raise UsageError(
                    f"{name}: {path} holds {dataset.dtype} {dataset.shape}, or is there twice; expected uint8 "
                    f"({PER_CLASS}, {SIZE}, {SIZE}, 3) for each class; get another copy"
                )
            found[wnid] = dataset
    counts = Counter({wnid: len(dataset) for wnid, dataset in found.items()})
    return counts, lambda wnid: hdf5.rows(found[wnid], slice(None)).transpose(0, 3, 1, 2)


def _from_pickles(files: RawFiles, known: dict[str, list[str]]) -> tuple[Counter, Callable[[str], np.ndarray]]:
    """The number of images of each WordNet id, and a function that gives them as uint8 (n, 3, 84, 84)."""
    parts: dict[str, list[tuple[arrays.Images, np.ndarray]]] = {}
    for name in filter(is_pickle, files):
        if re.search(r"phase_(val|test)", name):  # further images of the training classes, which no few-shot run uses
            continue
        images, classes = _pickle_classes(arrays.pickled(files, name), name, known)
        for wnid, rows in classes.items():
            parts.setdefault(wnid, []).append((images, rows))

    def block(wnid: str) -> np.ndarray:
        return np.concatenate([arrays.block(images, rows) for images, rows in parts[wnid]])

    return Counter({wnid: sum(len(rows) for _, rows in of_class) for wnid, of_class in parts.items()}), block


def _pickle_classes(content, name: str, known: dict[str, list[str]]) -> tuple[arrays.Images, dict[str, np.ndarray]]:
    """A pickle's images (N, 84, 84, 3), and the rows of each WordNet id."""
    content = content if isinstance(content, dict) else {}
    if "image_data" in content and "class_dict" in content:
        images = arrays.images_of(content["image_data"], name, SIZE)
        return images, arrays.rows_by_class(content["class_dict"], len(images), name)
    if "data" in content and "labels" in content:
        images = arrays.images_of(content["data"], name, SIZE)
        rows = arrays.rows_by_label(content["labels"], len(images), name)
        wnid_of = _wnid_of_label(list(rows), content.get("catname2label"), name, known)
        return images, {wnid_of[label]: rows[label] for label in wnid_of}
    keys = a_few(sorted(key for key in content if isinstance(key, str)))
    raise UsageError(
        f"{name}: holds {keys or 'no dictionary'}, expected image_data and class_dict, or data and labels; "
        "get another copy"
    )


def _wnid_of_label(distinct: list[int | str], names, name: str, known: dict[str, list[str]]) -> dict:
    """Maps labels to WordNet ids: by the pickle's own catname2label, by themselves, or as sorted ids of its split."""
    if isinstance(names, dict) and all(isinstance(label, int | str | np.integer) for label in names.values()):
        wnid_of = {label: str(wnid) for wnid, label in names.items() if label in distinct}
        if len(wnid_of) == len(distinct):
            return wnid_of
    if all(isinstance(label, str) for label in distinct):
        return {label: label for label in distinct}
    if names is None and (match := re.search(r"(train|val|test)[^/]*$", name)):
        wnids = known[match[1]]
        # The authors numbered classes in the order of their WordNet ids, a split after the other; gaps say otherwise.
        if len(distinct) == len(wnids) and distinct[-1] - distinct[0] == len(wnids) - 1:
            return dict(zip(distinct, wnids, strict=True))
    raise UsageError(
        f"{name}: {len(distinct)} labels without catname2label, from which the WordNet ids don't follow; expected "
        f"{' / '.join(str(len(known[s])) for s in SPLITS)} consecutive labels in a file named after train, val or "
        "test; build from the images"
    )
