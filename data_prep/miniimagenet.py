"""mini-ImageNet by WordNet id (Ravi & Larochelle, 2017): 64 / 16 / 20 classes of 600 images, 84x84 RGB.

Every layout that people have of it ends in the same files, because published numbers are comparable on this split only:
  images/ and {train,val,test}.csv                        Ravi & Larochelle's
  {train,val,test}/WNID/*.jpg                             class folders, under any split
  mini-imagenet-cache-{train,val,test}.pkl                image_data, class_dict
  miniImageNet_category_split_{train_phase_train,val,test}.pickle     data, labels
  an ILSVRC-2012 train folder or tar and the csv files    the images as they were, resized
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.shards import SPLITS, Split, UsageError
from data_prep import unpickle
from data_prep.files import Files, a_few, is_image, is_pickle, open_files, read, read_images, squared
from data_prep.output import write

PER_CLASS = 600
SIZE = 84
SPLIT_FILE = Path(__file__).with_name("miniimagenet_split.txt")
LAYOUTS = "images/ with train.csv, val.csv and test.csv; {train,val,test}/WNID/*.jpg; the .pkl or .pickle files"
WNID = re.compile(r"n\d{8}")
ILSVRC = re.compile(r"(n\d{8})_(\d+)\.jpe?g", re.IGNORECASE)  # n01532829_10026.JPEG, the number not padded
RAVI = re.compile(r"(n\d{8}) ?(\d{8})\.jpe?g", re.IGNORECASE)  # n0153282900000005.jpg


def build(data_dir: Path, raw: Path, csv_folder: Path | None = None) -> Path:
    """Build `DATA_DIR/miniimagenet` from a folder or an archive in any layout above; `csv_folder` brings csv files.

    Classes are sorted by WordNet id, images by file name, or as they stand in a pickle. Pickles are held in memory
    (1.3 GB). Returns the folder. Raises UsageError naming what is missing, too much, or unreadable.
    """
    if raw.is_file() and (is_pickle(raw.name) or raw.suffix == ".csv"):
        raw = raw.parent  # one of three files stands for all of them
    wnids = known_split()
    with open_files(raw) as files:
        tables = _tables(files, csv_folder, raw)
        if not any(map(is_image, files)) and any(map(is_pickle, files)):
            counts, block = _from_pickles(files, wnids, raw)
        else:
            classes = _from_csv(files, tables, raw) if tables else _from_class_folders(files, raw)
            counts = Counter({wnid: len(names) for wnid, names in classes.items()})

            def block(wnid: str) -> np.ndarray:
                return read_images(files, classes[wnid], lambda image: squared(image, SIZE))

        _refuse_other_counts(counts, [wnid for s in SPLITS for wnid in wnids[s]], raw)
        splits = {s: Split(wnids[s], [PER_CLASS] * len(wnids[s]), map(block, wnids[s])) for s in SPLITS}
        return write(data_dir, "miniimagenet", splits, "mini-ImageNet, split by WordNet id")


def known_split() -> dict[str, list[str]]:
    """The sorted WordNet ids of each split: 64 / 16 / 20."""
    wnids = {s: [] for s in SPLITS}
    for line in SPLIT_FILE.read_text().splitlines():
        if not line.startswith("#"):
            s, *ids = line.split()
            wnids[s] += ids
    return wnids


def _refuse_other_counts(counts: Counter, expected: list[str], raw: Path) -> None:
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
            f"--raw {raw}: {'; '.join(faults)}; expected {len(expected)} classes of {PER_CLASS} images; complete it "
            "(an ILSVRC-2012 train folder needs the three csv files too: --csv FOLDER)"
        )


def _tables(files: Files, csv_folder: Path | None, raw: Path) -> list[tuple[str, str]]:
    """The rows (file name, WordNet id) of train.csv, val.csv and test.csv; empty where there are none."""
    wanted = [f"{s}.csv" for s in SPLITS]
    if csv_folder:
        where = f"--csv {csv_folder}"
        found = {name: csv_folder / name for name in wanted if (csv_folder / name).exists()}
    else:
        where = f"--raw {raw}"
        found = {name.rsplit("/", 1)[-1]: name for name in files if name.endswith(".csv")}
        if not found.keys() & set(wanted):
            return []
    if missing := [name for name in wanted if name not in found]:
        raise UsageError(f"{where}: {a_few(missing)} missing, expected {a_few(wanted)}; add what is missing")
    rows = []
    for name in wanted:
        data = found[name].read_bytes() if csv_folder else read(files, found[name])
        text = io.StringIO(data.decode("utf-8-sig", "replace"), newline=None)  # whatever ends its lines
        try:
            table = csv.DictReader(text)
            header, listed = list(table.fieldnames or ()), list(table)
        except csv.Error as error:
            raise UsageError(f"{found[name]}: {error}, expected filename,label; get Ravi's csv files") from None
        if not {"filename", "label"} <= set(header):
            header = ",".join(header)[:60]
            raise UsageError(f"{found[name]}: starts with {header!r}, expected filename,label; get Ravi's csv files")
        for number, row in enumerate(listed, 2):
            file, wnid = row["filename"] or "", row["label"] or ""
            if not file or not WNID.fullmatch(wnid) or WNID.match(file) and not file.startswith(wnid):
                raise UsageError(
                    f"{found[name]} line {number}: {file!r},{wnid!r}, expected a file name and a WordNet id such as "
                    "n01532829; get Ravi's csv files"
                )
            rows.append((file, wnid))
    if twice := [file for file, count in Counter(file for file, _ in rows).items() if count > 1]:
        raise UsageError(f"{where}: {len(twice)} images listed twice: {a_few(twice)}; get Ravi's csv files")
    return rows


def _from_csv(files: Files, rows: list[tuple[str, str]], raw: Path) -> dict[str, list[str]]:
    """WordNet id -> the names of its images, sorted as the csv files name them."""
    images = {name.rsplit("/", 1)[-1]: name for name in files if is_image(name)}
    ilsvrc = {}
    for name in images:
        if match := ILSVRC.fullmatch(name):
            ilsvrc.setdefault(match[1], []).append((int(match[2]), name))
    ilsvrc = {wnid: [name for _, name in sorted(numbered)] for wnid, numbered in ilsvrc.items()}
    classes, missing = {}, []
    for file, wnid in sorted(rows):
        name = images.get(file)
        if name is None and (match := RAVI.fullmatch(file)):
            # n0153282900000005.jpg is the fifth image of n01532829, counted from 1 in the order of ILSVRC's numbers
            # (not of its file names, whose numbers aren't padded): that is how the usual generators read Ravi's names,
            # and the names agree, as their numbers lie in 1..1300 and no class of ILSVRC has more images.
            position = int(match[2])
            if 1 <= position <= len(ilsvrc.get(wnid, ())):
                name = images[ilsvrc[wnid][position - 1]]
        if name is None:
            missing.append(file)
        else:
            classes.setdefault(wnid, []).append(name)
    if missing:
        raise UsageError(
            f"--raw {raw}: {len(missing)} of the {len(rows)} images that the csv files list are missing: "
            f"{a_few(missing)}; complete it, or get the archive again"
        )
    if not ilsvrc:  # which holds a thousand classes, and of these 1300 images
        if extra := sorted(images.keys() - {file for file, _ in rows}):
            raise UsageError(f"--raw {raw}: {len(extra)} images that no csv file lists: {a_few(extra)}; remove them")
    return classes


def _from_class_folders(files: Files, raw: Path) -> dict[str, list[str]]:
    """WordNet id -> the names of its images, sorted by file name, whatever the split folders above."""
    classes, stray = {}, []
    for name in filter(is_image, files):
        above = [part for part in name.split("/")[:-1] if WNID.fullmatch(part)]
        if above:
            classes.setdefault(above[-1], []).append(name)
        else:
            stray.append(name)
    if stray or not classes:
        what = f"{len(stray)} images outside WNID folders ({a_few(stray)}) and no csv files" if stray else "no images"
        raise UsageError(f"--raw {raw}: {what}; expected a folder or an archive of {LAYOUTS}; complete it")
    return {wnid: sorted(names, key=lambda name: name.rsplit("/", 1)[-1]) for wnid, names in classes.items()}


def _from_pickles(files: Files, known: dict[str, list[str]], raw: Path) -> tuple[Counter, Callable[[str], np.ndarray]]:
    """The number of images of each WordNet id, and a function that gives them as uint8 (n, 3, 84, 84)."""
    rows: dict[str, list[np.ndarray]] = {}  # WordNet id -> (its row numbers of an array), that array
    for name in filter(is_pickle, files):
        if re.search(r"phase_(val|test)", name):  # further images of the training classes, which no few-shot run uses
            continue
        content = unpickle.load(io.BytesIO(read(files, name)), name)
        try:
            images, classes = _pickle_classes(content, name, known)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise UsageError(f"{name}: not the arrays of mini-ImageNet ({error}); get another copy") from None
        for wnid, numbers in classes.items():
            rows.setdefault(wnid, []).append((images, numbers))

    def block(wnid: str) -> np.ndarray:
        return np.concatenate([images[numbers] for images, numbers in rows[wnid]]).transpose(0, 3, 1, 2)

    return Counter({wnid: sum(len(numbers) for _, numbers in parts) for wnid, parts in rows.items()}), block


def _pickle_classes(content, name: str, known: dict[str, list[str]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A pickle's images uint8 (N, 84, 84, 3), and the row numbers of each WordNet id."""
    if not isinstance(content, dict):
        content = {}
    content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    if "image_data" in content and "class_dict" in content:
        images, classes = content["image_data"], content["class_dict"]
    elif "data" in content and "labels" in content:
        images, labels = content["data"], np.asarray(content["labels"])
        wnid_of = _wnid_of_label(labels, content.get("catname2label"), name, known)
        classes = {wnid_of[label]: np.flatnonzero(labels == label) for label in wnid_of}
    else:
        keys = a_few(sorted(map(str, content)))
        raise UsageError(
            f"{name}: holds {keys or 'no dictionary'}, expected image_data and class_dict, or data and labels; "
            "get another copy"
        )
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != (SIZE, SIZE, 3):
        raise UsageError(f"{name}: images {images.dtype} {images.shape}, expected uint8 (N, {SIZE}, {SIZE}, 3)")
    classes = {
        wnid.decode() if isinstance(wnid, bytes) else str(wnid): np.asarray(rows) for wnid, rows in classes.items()
    }
    for wnid, rows in classes.items():
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or not np.all((rows >= 0) & (rows < len(images))):
            raise UsageError(f"{name}: class {wnid} isn't a list of rows of its {len(images)} images; get another copy")
    return images, classes


def _wnid_of_label(labels: np.ndarray, names, name: str, known: dict[str, list[str]]) -> dict:
    """Maps labels to WordNet ids: by the pickle's own catname2label, by themselves, or as sorted ids of its split."""
    if isinstance(names, dict):
        return {label: wnid for wnid, label in names.items() if label in set(labels.tolist())}
    distinct = np.unique(labels).tolist()
    if all(isinstance(label, str) for label in distinct):
        return {label: label for label in distinct}
    if match := re.search(r"(train|val|test)[^/]*$", name):
        wnids = known[match[1]]
        # The authors numbered classes in the order of their WordNet ids, a split after the other; gaps say otherwise.
        if len(distinct) == len(wnids) and distinct[-1] - distinct[0] == len(wnids) - 1:
            return dict(zip(distinct, wnids, strict=True))
    raise UsageError(
        f"{name}: {len(distinct)} labels without catname2label, from which the WordNet ids don't follow; expected "
        f"{' / '.join(str(len(known[s])) for s in SPLITS)} consecutive labels in a file named after train, val or "
        "test; build from the images"
    )
