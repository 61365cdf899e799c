"""Pictures in one folder, and tables that say the class of each: labels.csv with FILE_NAME,CATEGORY and such."""

import os.path
import re
from pathlib import Path, PurePosixPath

from common.shards import UsageError
from data_prep import splits, tables
from data_prep.files import RawFiles, a_few, table_of

# Folders that say what kind of pictures they hold, not of what.
KINDS = """
    annotation annotations bbox bboxes binary bounding boxes color colour crop cropped crops data depth edge edges
    flow frames full gray grayscale grey ground groundtruth gt image images img imgs jpeg jpegs jpg label labels large
    mask masks normals orig original originals photo photos pic pics picture pictures png pngs raw resized rgb seg
    segmentation segmentations segs sketch sketches small thumb thumbnail thumbnails thumbs trimap trimaps truth
"""
Found = dict[str, dict[str | None, list[str]]]  # class name -> split, where the source has one -> pictures


def is_kind(folder: str) -> bool:
    """Whether a folder's name says no more than what kind of pictures it holds, as masks and images_84 do."""
    words = re.findall(r"[^\W\d_]+", folder.lower())
    return bool(words) and set(words) <= set(KINDS.split())


def find(files: RawFiles) -> Found | None:
    """The classes by tables among `files`, where folders say no class and there are such tables; otherwise None."""
    pictures = files.pictures()
    places = {os.path.dirname(name) for name in pictures}
    parts = {part for place in places for part in place.split("/")}
    unsaying = {part for part in parts if is_kind(part)} | set(splits.splits_of_names(parts))
    if len({tuple(part for part in place.split("/") if part not in unsaying) for place in places}) != 1:
        return None
    index = tables.Index(pictures)
    found = {}
    for name in tables.among(files, tables.SUFFIXES):
        try:
            rows = tables.rows_of(files.table(name), name)
        except UsageError:  # it is about something else
            rows = []
        if tables.file_column(rows, index) is not None:
            found[name] = rows
        else:
            files.used.discard(name)
    if len(found) > 1 and not set(map(_split_of_file, found)) >= {"train", "val", "test"}:
        raise UsageError(
            f"--raw {files.shown}: {len(found)} tables of pictures, {a_few(found)}; say which one: --table FILE"
        )
    return _classes(files, found, index) if found else None


def read(files: RawFiles, table: Path) -> Found:
    """The classes by `table`, a file by itself or among `files`. Raises UsageError."""
    if table.is_file():
        data = table_of(table)
    elif table.as_posix() in files:
        data = files.table(table.as_posix())
    else:
        raise UsageError(f"--table {table}: no such file; check the path")
    return _classes(files, {str(table): tables.rows_of(data, str(table))}, tables.Index(files.pictures()))


def _split_of_file(name: str) -> str | None:
    meant = splits.meaning(PurePosixPath(name).stem)
    return meant and meant[0]


def _classes(files: RawFiles, found: dict[str, list[list[str]]], index: tables.Index) -> Found:
    classes: Found = {}
    class_of: dict[str, str] = {}
    for where, rows in found.items():
        names = rows[0] if rows else []
        file, label, split, rows = _columns(where, rows, index)
        if rows and rows[0] is not names:
            files.said.append(f"{where}: pictures by {names[file]}, classes by {names[label]}")
        split_of = splits.splits_of_names({row[split] for row in rows if len(row) > split}) if split is not None else {}
        missing = []
        for row in rows:
            if any(row[len(names) :]):
                raise UsageError(f"{where}: {','.join(row)[:50]!r} has more cells than the first line; use quotes")
            row += [""] * (1 + max(file, label, split or 0) - len(row))
            picture = _picture(files, index.find(row[file]), row[file], where)
            if picture is None:
                missing.append(row[file])
                continue
            if not row[label]:
                raise UsageError(f"{where}: {row[file]!r} has no class; complete the table, or remove the line")
            if class_of.setdefault(picture, row[label]) != row[label]:
                raise UsageError(
                    f"{where}: {row[file]!r} is in two classes, {class_of[picture]} and {row[label]}; expected one"
                )
            own = split_of.get(row[split]) if split is not None else _split_of_file(where) or _split_of_folder(picture)
            pictures = classes.setdefault(row[label], {}).setdefault(own, [])
            if picture not in pictures[-1:]:
                pictures.append(picture)
        if missing:
            raise UsageError(
                f"{where}: {len(missing)} of the {len(rows)} pictures that it lists are missing: {a_few(missing)}; "
                "complete them, or correct the table"
            )
    if len({split for by_split in classes.values() for split in by_split}) == 1:  # such as train_labels.csv alone
        classes = {name: {None: pictures} for name, by_split in classes.items() for pictures in by_split.values()}
    return {
        name: {split: sorted(set(pictures)) for split, pictures in classes[name].items()} for name in sorted(classes)
    }


def _columns(where: str, rows: list[list[str]], index: tables.Index) -> tuple[int, int, int | None, list[list[str]]]:
    """The columns of file, class and split, and the rows without the line that names the columns."""
    file = tables.file_column(rows, index)
    if file is None:
        start = ",".join(rows[0])[:60] if rows else ""
        raise UsageError(f"{where}: starts with {start!r}, expected a table with a column of pictures that are there")
    if index.find(rows[0][file]):
        if len(rows[0]) != 2:
            raise UsageError(
                f"{where}: {len(rows[0])} columns without names; expected a first line such as filename,label"
            )
        return file, 1 - file, None, rows
    header = tables.header_of(rows[0])
    label = tables.column([name if c != file else "" for c, name in enumerate(header)], tables.CLASS_COLUMNS)
    if label is None and len(header) == 2:
        label = 1 - file
    if label is None:
        raise UsageError(
            f"{where}: columns {', '.join(rows[0])[:100]}, none of which is called class, label, category or the like; "
            "rename the one that says the class"
        )
    split = splits.column(rows, (file, label))
    if split is not None:
        values = {row[split] for row in rows[1:] if len(row) > split}
        if unknown := sorted(values - set(splits.splits_of_names(values))):
            raise UsageError(
                f"{where}: {a_few(unknown)} in column {rows[0][split]}, expected train, val and test; rename the "
                "values, or the column"
            )
    return file, label, split, rows[1:]


def _picture(files: RawFiles, candidates: list[str], cell: str, where: str) -> str | None:
    """The picture that a cell means. Raises UsageError where that may be one of several that differ."""
    if len(candidates) > 1 and len({files.read(name) for name in candidates}) > 1:
        raise UsageError(f"{where}: {cell!r} may be {a_few(candidates)}, which differ; write the whole path")
    return candidates[0] if candidates else None


def _split_of_folder(picture: str) -> str | None:
    parts = splits.splits_of_names(picture.split("/")[:-1])
    return next(iter(parts.values()), None)
