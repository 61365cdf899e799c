"""Class lists: text, csv or json files that say which classes are for training, validation and test.

They lie beside the pictures, as train.txt, val.txt and test.txt (or base.json, val.json and novel.json, ...), or are
given by hand: such a folder, or one file with `name,split` on each line. An entry names a class, or a picture of it.
"""

import json
import shlex
from pathlib import Path, PurePosixPath

from common.shards import SPLITS, UsageError
from data_prep import splits, tables
from data_prep.entries import Classes, Entry, Lists
from data_prep.files import RawFiles, a_few, is_picture, open_files, table_of

SUFFIXES = (*tables.SUFFIXES, ".lst", ".list", ".names", ".json")
EXPECTED = "train.txt, val.txt and test.txt with the name of a class on each line, or one file of lines name,split"


def given(path: Path, pictures: dict[str, list[str]], files: RawFiles, otherwise: str) -> dict[str, list[str]]:
    """The classes of each split as the folder or file `path` lists them; `otherwise`: what to do without, as a message
    says it. Raises UsageError."""
    where = f"--split {path}"
    place = path.parent if path.is_file() else path
    groups = {}
    if path.is_file():
        try:
            groups = {where: _one_file(table_of(path), where)}
        except UsageError:
            if not splits.meaning(path.stem):  # not one of three
                raise
    if not groups:
        with open_files([place]) as listing:
            groups = {
                shown: _lists(listing, names)
                for shown, names in _named_after_splits(listing).items()
                if path == place or path.name in names.values()
            }
            groups = groups or _single_files(listing, Classes(pictures))
    if not groups:
        raise UsageError(f"{where}: no class list, expected {EXPECTED}")
    return _chosen_of(groups, pictures, files, where, place, otherwise)


def found(files: RawFiles, pictures: dict[str, list[str]], otherwise: str) -> dict[str, list[str]] | None:
    """The classes of each split as lists beside the pictures say; None where there are none. `otherwise` as of `given`.

    Raises UsageError where lists disagree, can't be read, or name classes that aren't there.
    """
    classes = Classes(pictures)
    groups, odd = {}, []
    for shown, names in _named_after_splits(files).items():
        whole = len(names) == len(SPLITS)
        try:
            lists = _lists(files, names)
        except UsageError as error:
            odd += [str(error)] * whole
            continue
        if not whole:
            _refuse_a_list_too_few(files, shown, lists, classes, otherwise)
        elif classes.are_in(lists):
            groups[shown] = lists
        else:
            entry = next((entry[0] for entries in lists.values() for entry in entries), "nothing")
            odd.append(f"{shown} name none of the classes, but {entry[:60]!r}")
    groups = groups or _single_files(files, classes)
    if odd and not groups:
        raise UsageError(f"{odd[0]}; if they are class lists, correct them; otherwise take them out, or {otherwise}")
    files.said += [f"passed over: {text}" for text in odd]
    if not groups:
        return None
    files.said.append(f"the split is that of {next(iter(groups))}")
    return _chosen_of(groups, pictures, files, f"--raw {files.shown}", Path(files.shown), otherwise)


def _refuse_a_list_too_few(files: RawFiles, shown: str, lists: Lists, classes: Classes, otherwise: str) -> None:
    """Raise UsageError where two lists share out the classes; as two lists of pictures of all classes they say none."""
    named = [{name for entry in entries for name in classes.find(entry)} for entries in lists.values() if entries]
    if len(named) == 2 and all(named) and named[0].isdisjoint(named[1]):
        missing = next(split for split in SPLITS if not lists[split])
        raise UsageError(
            f"--raw {files.shown}: {shown} list classes, but there is no list for {missing}; add it, or {otherwise}"
        )
    if any(named):
        files.said.append(f"{shown} share out pictures, not classes, and are passed over")


def _chosen_of(
    groups: dict[str, Lists], pictures: dict[str, list[str]], files: RawFiles, where: str, place: Path, otherwise: str
) -> dict[str, list[str]]:
    classes = Classes(pictures)
    chosen = {name: _resolved(lists, classes, name) for name, lists in groups.items()}
    first = next(iter(chosen))
    others = [name for name in chosen if chosen[name] != chosen[first]]
    if others:
        one = place / first.split(", ")[0]
        which = f"say which, as in --split {shlex.quote(str(one))}" if one.exists() else "unpack them, and give one"
        raise UsageError(f"{where}: class lists that differ, {first} and {others[0]}; {which}")
    splits.refuse_shared(chosen[first], files.shown, f"list each class once, or {otherwise}")
    listed = {name for names in chosen[first].values() for name in names}
    left = [name for name in pictures if name not in listed]
    if left:
        files.said.append(f"{len(left)} classes that no list names are left out: {a_few(left)}")
    return chosen[first]


def _resolved(lists: Lists, classes: Classes, where: str) -> dict[str, list[str]]:
    chosen = {}
    for split, entries in lists.items():
        found, missing = {}, []
        for entry in entries:
            meant = classes.find(entry)
            if len(meant) > 1:
                raise UsageError(
                    f"{where}: {entry[0]!r} may be {a_few(meant)}; write the whole path of the class folder"
                )
            found |= dict.fromkeys(meant)
            missing += [] if meant else [entry[0]]
        if missing:
            raise UsageError(
                f"{where}: {len(missing)} of {len(entries)} entries for {split} name no class or picture that is "
                f"there: {a_few(missing)}; complete the pictures, or correct the list"
            )
        chosen[split] = sorted(found)
    return chosen


def _named_after_splits(files: RawFiles) -> dict[str, dict[str, str]]:
    """Two or three files of one folder and suffix whose names mean train, val and test, as they are shown."""
    places: dict[tuple, dict[str, str]] = {}
    for name in files:
        path = PurePosixPath(name)
        if path.suffix.lower() in SUFFIXES and (meant := splits.meaning(path.stem)):
            split = "test" if meant[0] == "evaluation" else meant[0]
            places.setdefault((path.parent, path.suffix.lower(), meant[1]), {}).setdefault(split, name)
    several = [by_split for by_split in places.values() if len(by_split) > 1]
    return {", ".join(by_split[s] for s in SPLITS if s in by_split): by_split for by_split in several}


def _lists(files: RawFiles, names: dict[str, str]) -> Lists:
    return {s: _entries(files.table(names[s]), names[s]) if s in names else [] for s in SPLITS}


def _single_files(files: RawFiles, classes: Classes) -> dict[str, Lists]:
    """Files that list all classes, and the split of each."""
    groups = {}
    for name in tables.among(files, SUFFIXES):
        if name in files.used:
            continue
        try:
            lists = _one_file(files.table(name), name)
        except UsageError:  # it is about something else
            lists = {}
        if classes.are_in(lists):
            groups[name] = lists
        else:
            files.used.discard(name)
    return groups


def _entries(data: bytes, where: str) -> list[Entry]:
    """What a file of one split lists: classes, or pictures."""
    if where.lower().endswith(".json"):
        return _json_entries(_json(data, where), where)
    rows = [row for row in tables.rows_of(data, where) if not row[0].startswith("#")]
    if not rows:
        return []
    header = tables.header_of(rows[0])
    label = tables.column(header, tables.CLASS_COLUMNS)
    picture = next((c for c, cell in enumerate(rows[-1]) if is_picture(cell)), None)
    if label is not None and (len(header) > 1 or header[0] in ("label", "class", "classname")):
        rows = rows[1:]
    else:
        label = 0 if picture is None else picture
    if len(rows) == 1 and picture is None and not any(cell.isdigit() for cell in rows[0]):  # all in one line
        return [(cell,) for cell in rows[0] if cell]
    columns = [label] if picture in (None, label) else [label, picture]
    entries = [tuple(row[c] for c in columns if c < len(row)) for row in rows]
    lines = [line for line in tables.text_of(data).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if columns == [0] and len(lines) == len(rows):  # a name may hold a comma, as in "tench, Tinca tinca"
        entries = [(line.strip(), *entry) for line, entry in zip(lines, entries, strict=True)]
    return [entry for entry in dict.fromkeys(entries) if entry]


def _json(data: bytes, where: str):
    try:
        return json.loads(tables.text_of(data))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: no whole json file ({error}); get another copy") from None


def _json_entries(content, where: str) -> list[Entry]:
    if isinstance(content, dict):  # as CUB's lists of pictures, or with classes as keys
        content = content.get("image_names") or list(content)
    if not isinstance(content, list):
        raise UsageError(f"{where}: {type(content).__name__}, expected a list of classes; get another copy")
    entries = []
    for entry in content:
        parts = entry if isinstance(entry, list) else [entry]  # such as a class below its superclass
        if not all(isinstance(part, str) for part in parts):
            raise UsageError(f"{where}: holds {str(type(parts[0]).__name__)}, expected names of classes")
        entries.append(("/".join(parts), parts[-1]) if parts else ("",))
    return entries


def _one_file(data: bytes, where: str) -> Lists:
    """Lines of a class and its split, in any order of columns."""
    if where.lower().endswith(".json"):
        content = _json(data, where)
        items = content.items() if isinstance(content, dict) else ()
        if items and all(isinstance(names, list) for _, names in items):
            pairs = [(name, key) for key, names in items for name in _json_entries(names, where)]
        else:
            pairs = [((name,), str(split)) for name, split in items]
    else:
        rows = [row for row in tables.rows_of(data, where) if not row[0].startswith("#")]
        pairs = _pairs(rows)
    meant = splits.splits_of_names({split for _, split in pairs})
    unknown = sorted({split for _, split in pairs} - set(meant))
    if not pairs or unknown:
        what = f"{a_few(unknown)} means no split" if unknown else "no lines"
        raise UsageError(f"{where}: {what}, expected {EXPECTED}, where split is train, val or test")
    return {s: [name for name, split in pairs if meant[split] == s] for s in SPLITS}


def _pairs(rows: list[list[str]]) -> list[tuple[Entry, str]]:
    """(name, split) of each line, whichever comes first; a first line that names the columns is left out."""
    if not rows:
        return []
    header = tables.header_of(rows[0])
    place = splits.column(rows)
    if place is not None and not splits.meaning(rows[0][place]):
        rows = rows[1:]
    elif len(rows[0]) > 1:
        place = next((c for c in reversed(range(len(rows[0]))) if splits.meaning(rows[0][c])), len(rows[0]) - 1)
    else:
        place = 0
    name = tables.column(header, tables.CLASS_COLUMNS) if place is not None and rows else None
    name = (1 if place == 0 else 0) if name is None else name
    return [((row[name],), row[place]) if max(name, place) < len(row) else ((row[0],), "nothing") for row in rows]
