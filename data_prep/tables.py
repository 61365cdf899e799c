"""Text files that people keep beside pictures: tables, in any of the usual encodings and with any delimiter."""

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from common.shards import UsageError
from data_prep.files import is_picture

SUFFIXES = (".csv", ".tsv", ".txt")
MOST = 100  # tables and lists that are looked at
CLASS_COLUMNS = (
    "label", "class", "category", "classname", "labelname", "categoryname", "classlabel", "species", "wnid", "synset",
    "target", "classid", "labelid", "categoryid", "character", "name",
)  # fmt: skip
FILE_COLUMNS = ("filename", "imagename", "file", "image", "path", "imagepath", "filepath", "name", "id", "imageid")
SPLIT_COLUMNS = ("split", "subset", "partition", "phase", "set", "usage")


def among(files: Iterable[str], suffixes: tuple[str, ...]) -> list[str]:
    """The files with one of these suffixes; of too many, which are about a picture each, the csv files alone."""
    names = [name for name in files if name.lower().endswith(suffixes)]
    return names if len(names) <= MOST else [name for name in names if name.lower().endswith(".csv")][:MOST]


def text_of(data: bytes) -> str:
    """Decoded by its byte order mark, or as UTF-8, or as the Latin-1 that older programs write."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def rows_of(data: bytes, where: str) -> list[list[str]]:
    """The lines of a table that aren't empty, each as its cells, without blanks around them.

    The delimiter is the one of comma, semicolon, tab and bar that the first line has most of, or the blank
    after a picture. Raises UsageError.
    """
    text = re.sub("^\n*sep=.\n", "", text_of(data))  # as Excel writes the delimiter before the table
    first = text.lstrip("\n").partition("\n")[0]
    delimiter = max(",;\t|", key=first.count)
    if delimiter not in first and is_picture(first.split(" ")[0]):  # images/0.jpg 3
        delimiter = " "
    rows = []
    try:
        for row in csv.reader(io.StringIO(text), delimiter=delimiter):
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append(cells)
    except csv.Error as error:
        raise UsageError(f"{where}: {error}, expected filename,label or another table; get another copy") from None
    return rows


def header_of(row: list[str]) -> list[str]:
    """The names of columns as they are compared: Class Name, class_name and CLASSNAME are one."""
    return [re.sub(r"[\W_]", "", cell.lower()) for cell in row]


def column(header: list[str], names: Iterable[str]) -> int | None:
    """The first of `names` that is a column, as its number."""
    return next((header.index(name) for name in names if name in header), None)


class Index:
    """Finds the pictures that a cell of a table means: by path, however much of it is given, with or without suffix."""

    def __init__(self, names: Iterable[str]):
        self.by_file: dict[str, list[str]] = {}
        for name in names:
            file = PurePosixPath(_composed(name)).name.lower()
            for key in {file, file.rsplit(".", 1)[0]}:
                self.by_file.setdefault(key, []).append(name)

    def find(self, cell: str) -> list[str]:
        """The names that agree in most parts of the path; of these, the ones that agree in case, if there are any."""
        parts = [part for part in _composed(cell.strip()).replace("\\", "/").split("/") if part not in ("", ".")]
        candidates = self.by_file.get(parts[-1].lower(), []) if parts else []
        if len(candidates) < 2:
            return candidates
        best = max(_agreeing(parts, name, str.lower) for name in candidates)
        candidates = [name for name in candidates if _agreeing(parts, name, str.lower) == best]
        exact = max(_agreeing(parts, name, str) for name in candidates)
        return [name for name in candidates if _agreeing(parts, name, str) == exact]


def _composed(name: str) -> str:
    """With accents as parts of letters; a Mac's file names have them apart."""
    return unicodedata.normalize("NFC", name)


def _agreeing(parts: list[str], name: str, spelt) -> int:
    """How many parts at the end of both paths are the same; the last one has been compared."""
    agreeing = 0
    for part, other in zip(reversed(parts), reversed(_composed(name).split("/")), strict=False):
        stem = not agreeing and is_picture(other) and spelt(part) == spelt(other.rsplit(".", 1)[0])
        if spelt(part) != spelt(other) and not stem:
            break
        agreeing += 1
    return agreeing


def file_column(rows: list[list[str]], index: Index) -> int | None:
    """The column whose cells mean pictures, in half of the first rows or more; None where there is none.

    A number, such as that of a line or a class, may be the name of a picture too: of several columns it is the one
    whose cells have the suffixes of pictures, or else the one that is called so.
    """
    some = rows[:200]
    header = header_of(rows[0]) if rows else []

    def likeness(c: int) -> tuple[int, bool, bool, int]:
        name = header[c] if c < len(header) else ""
        suffixed = sum(is_picture(row[c]) for row in some if len(row) > c)
        return suffixed, name in FILE_COLUMNS, name not in ("", "index", *CLASS_COLUMNS), hits[c]

    width = max((len(row) for row in some), default=0)
    hits = [sum(len(row) > c and bool(index.find(row[c])) for row in some) for c in range(width)]
    columns = [c for c in range(width) if hits[c] and 2 * hits[c] >= len(some) - 1]
    return max(columns, key=likeness, default=None)
