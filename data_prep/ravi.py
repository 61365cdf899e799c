"""The csv files of mini-ImageNet (Ravi & Larochelle's, and those of other projects), and ILSVRC's images by number."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from common.shards import SPLITS, UsageError
from data_prep import splits, tables
from data_prep.files import RawFiles, a_few, is_picture, table_of

WNID = re.compile(r"n\d{8}")
ILSVRC = re.compile(r"(n\d{8})_(\d+)\.jpe?g", re.IGNORECASE)  # n01532829_10026.JPEG, the number not padded
RAVI = re.compile(r"(n\d{8}) ?(\d{8})\.jpe?g", re.IGNORECASE)  # n0153282900000005.jpg
ILSVRC_CLASS = 1300  # images in most classes of ILSVRC-2012, and in none more


def listed(files: RawFiles, csv_folder: Path | None) -> dict[str, list[str]] | None:
    """WordNet id -> the names of its images, sorted as the csv files name them; None where there are no csv files.

    csv_folder: holds them, where they don't lie among `files`. Raises UsageError for an image that is missing,
    ambiguous or not listed.
    """
    rows = _tables(files, csv_folder)
    return _images(files, rows) if rows else None


def _tables(files: RawFiles, csv_folder: Path | None) -> list[tuple[str, str]]:
    """The rows (file, WordNet id) of train.csv, val.csv and test.csv; empty where there are none."""
    where = f"--csv {csv_folder}" if csv_folder else f"--raw {files.shown}"
    names = sorted(map(str, csv_folder.glob("*"))) if csv_folder else list(files)
    names = [name for name in names if name.lower().endswith((".csv", ".tsv"))]
    if not names and not csv_folder:
        return []
    found: dict[str, str] = {}
    for name in names:
        meant = splits.meaning(PurePosixPath(name).stem)
        if meant and PurePosixPath(found.get(meant[0], "")).stem != meant[0]:  # train.csv before train_labels.csv
            found[meant[0]] = name
    if len(names) == 1 and not found:  # of all images: their WordNet ids say the split
        found = dict.fromkeys(SPLITS, names[0])
    if missing := [f"{s}.csv" for s in SPLITS if s not in found]:
        raise UsageError(
            f"{where}: {a_few(missing)} missing, expected train.csv, val.csv, test.csv; add what is missing"
        )
    rows = []
    for name in dict.fromkeys(found[s] for s in SPLITS):
        data = table_of(Path(name)) if csv_folder else files.table(name)
        rows += _table(tables.rows_of(data, name), name)
    if twice := [file for file, count in Counter(file for file, _ in rows).items() if count > 1]:
        raise UsageError(f"{where}: {len(twice)} images listed twice: {a_few(twice)}; get Ravi's csv files")
    return rows


def _table(rows: list[list[str]], where: str) -> list[tuple[str, str]]:
    """The file and WordNet id of each row, by what the columns hold, or are called. Raises UsageError."""
    header = tables.header_of(rows[0]) if rows else []
    heads = 0 if rows and any(map(WNID.fullmatch, rows[0])) else 1
    file = tables.column(header, tables.FILE_COLUMNS)
    file = _column_of(rows[heads:], is_picture) if file is None else file
    label = _column_of(rows[heads:], WNID.fullmatch)
    if label is None:  # not in each row; which is refused below
        label = tables.column([name if c != file else "" for c, name in enumerate(header)], tables.CLASS_COLUMNS)
    if file is None or label is None:
        start = ",".join(rows[0])[:60] if rows else ""
        raise UsageError(f"{where}: starts with {start!r}, expected filename,label; get Ravi's csv files")
    result = []
    for number, row in enumerate(rows[heads:], 1 + heads):
        name = row[file].replace("\\", "/") if file < len(row) else ""
        wnid = row[label] if label < len(row) else ""
        base = PurePosixPath(name).name
        if not name or not WNID.fullmatch(wnid) or WNID.match(base) and not base.startswith(wnid):
            raise UsageError(
                f"{where} line {number}: {name!r},{wnid!r}, expected a file name and a WordNet id such as n01532829; "
                "get Ravi's csv files"
            )
        result.append((name, wnid))
    return result


def _column_of(rows: list[list[str]], fits: Callable[[str], object]) -> int | None:
    return next((c for c in range(len(rows[0]) if rows else 0) if all(len(r) > c and fits(r[c]) for r in rows)), None)


def _images(files: RawFiles, rows: list[tuple[str, str]]) -> dict[str, list[str]]:
    """WordNet id -> the names of its images. Raises UsageError for one that is missing, ambiguous or not listed."""
    index = tables.Index(files.pictures())
    ilsvrc = _ilsvrc(files)
    needed: dict[str, int] = {}  # the highest number of an image in the order of ILSVRC's, a class
    classes, missing, taken = {}, [], set()
    for file, wnid in sorted(rows):
        found = index.find(file)
        if len(found) > 1 and len({files.read(name) for name in found}) > 1:
            raise UsageError(f"--raw {files.shown}: {file} may be {a_few(found)}, which differ; keep one of them")
        name = found[0] if found else None
        if name is None and (match := RAVI.fullmatch(PurePosixPath(file).name)):
            # n0153282900000005.jpg is the fifth image of n01532829, counted from 1 in the order of ILSVRC's numbers
            # (not of its file names, whose numbers aren't padded): that is how the usual generators read Ravi's names,
            # and the names agree, as their numbers lie in 1..1300 and no class of ILSVRC has more images.
            position = int(match[2])
            needed[wnid] = max(needed.get(wnid, 0), position)
            if 1 <= position <= len(ilsvrc.get(wnid, ())):
                name = ilsvrc[wnid][position - 1]
        if name is None:
            missing.append(file)
        else:
            taken.update(found)
            classes.setdefault(wnid, []).append(name)
    _refuse_short(files, needed, ilsvrc)
    if missing:
        raise UsageError(
            f"--raw {files.shown}: {len(missing)} of the {len(rows)} images that the csv files list are missing: "
            f"{a_few(missing)}; complete it, or get the archive again"
        )
    if not ilsvrc:  # which holds a thousand classes, and of these 1300 images
        if extra := sorted(name for name in files.pictures() if name not in taken):
            extra = [name.rsplit("/", 1)[-1] for name in extra]
            raise UsageError(
                f"--raw {files.shown}: {len(extra)} images that no csv file lists: {a_few(extra)}; remove them"
            )
    return classes


def _ilsvrc(files: RawFiles) -> dict[str, list[str]]:
    """WordNet id -> the names of ILSVRC's images of that class, in the order of their numbers."""
    numbered: dict[str, dict[int, str]] = {}
    for name in files.pictures():
        if match := ILSVRC.fullmatch(name.rsplit("/", 1)[-1]):
            first = numbered.setdefault(match[1], {}).setdefault(int(match[2]), name)
            if first != name and files.read(first) != files.read(name):
                raise UsageError(f"--raw {files.shown}: {first} and {name} differ; keep one of them")
    return {wnid: [of_class[number] for number in sorted(of_class)] for wnid, of_class in numbered.items()}


def _refuse_short(files: RawFiles, needed: dict[str, int], ilsvrc: dict[str, list[str]]) -> None:
    """Raise UsageError where a class lacks images: every image after the first that is missing would be another."""
    counts = {wnid: len(ilsvrc[wnid]) for wnid in needed if wnid in ilsvrc}
    short = [f"{wnid} has {counts[wnid]} of {needed[wnid]}" for wnid in counts if counts[wnid] < needed[wnid]]
    if short:
        raise UsageError(
            f"--raw {files.shown}: {len(short)} classes have fewer images than the csv files number: {a_few(short)}; "
            "the numbers count a class's images in order, so all of them are needed; complete it"
        )
    over = [f"{wnid} has {count}" for wnid, count in counts.items() if count > ILSVRC_CLASS]
    if over:
        raise UsageError(f"--raw {files.shown}: {a_few(over)} images, expected ILSVRC-2012's {ILSVRC_CLASS} at most")
    unsure = [
        f"{wnid} ({count})" for wnid, count in counts.items() if count < ILSVRC_CLASS and needed[wnid] < ILSVRC_CLASS
    ]
    if unsure:
        files.said.append(
            f"{len(unsure)} classes have fewer than {ILSVRC_CLASS} images: {a_few(unsure)}; most of ILSVRC-2012 have "
            "that many, and if some are missing, images are taken for others: compare with the official archive"
        )
