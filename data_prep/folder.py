"""Any image set: class folders, with a split of its own or not, or pictures whose classes a table says."""

import os.path
import re
import shlex
from pathlib import Path, PurePosixPath

from common.shards import SPLITS, Preparation, Split, UsageError
from data_prep import lists, picture_table, splits
from data_prep.files import RawFiles, a_few, kinds_of
from data_prep.output import write
from data_prep.pictures import Pictures, range_of, squared

GENERIC = re.compile(r"[a-z]*[\W_]*\d{1,4}|\w")  # character01, class_3, 7, a: such names don't say what the class is
IN_ITSELF = ("", "image", "images", "img", "imgs", "photos", "pictures")  # what no class is called

Chosen = dict[str, dict[str, list[str]]]  # split -> class name -> the names of its pictures


def build(
    data_dir: Path, name: str, files: RawFiles, table: Path | None = None, split: str | None = None, seed: int = 0,
    size: int = 84, gray: bool = False, least: int = 1,
) -> Path:  # fmt: skip
    """Build `DATA_DIR/NAME`: a class is a folder with images, of any number and size, scaled to size x size.

    table: says the class of each picture, where folders don't. split: "TRAIN,VAL,TEST" shares of the classes, drawn
    with `seed`, or the folder or file of a class list; None is the source's own split, or else `splits.SHARES`. least:
    classes with fewer pictures are left out. Classes and images are in the order of their names. Returns the folder.
    Raises UsageError where there are too few classes, images outside class folders, or one that is unreadable.
    """
    chosen = choose(files, table, split, seed, least)
    return write_pictures(data_dir, name, files, chosen, size, gray, Path(files.shown).name)


def write_pictures(
    data_dir: Path, name: str, files: RawFiles, chosen: Chosen, size: int, gray: bool, source: str
) -> Path:
    """Decode the pictures and write the set; returns its folder."""
    names = [picture for s in SPLITS for of_class in chosen[s].values() for picture in of_class]
    levels = range_of(files, names)
    mode = "L" if gray else "RGB"
    pictures = Pictures(files.read, names, lambda image: squared(image, size, mode, levels))
    content = {
        s: Split(list(chosen[s]), [len(p) for p in chosen[s].values()], map(pictures.block, chosen[s].values()))
        for s in SPLITS
    }
    folder = write(data_dir, name, content, source, Preparation("whole", levels))
    files.said += pictures.said()
    return folder


def choose(
    files: RawFiles, table: Path | None = None, split: str | None = None, seed: int = 0, least: int = 1,
    pictures: list[str] | None = None, drawing: bool = True,
) -> Chosen | None:  # fmt: skip
    """The classes of each split with their pictures, sorted by name: arguments as of `build`. Raises UsageError.

    pictures: the pictures to take, where not all. drawing: a set that isn't split gets one; otherwise it gives None.
    """
    listed = Path(os.path.expanduser(split)) if split else None
    shares = None
    if split and not listed.exists():
        splits.parse_shares(split)
        listed, shares = None, split
    otherwise = f"draw the classes with --split {splits.SHARES}" if drawing else "give others with --split FOLDER"
    found = None
    if table:
        found = picture_table.read(files, table)
    elif not pictures:
        found = picture_table.find(files)
    found = found or _class_folders(files, pictures or files.pictures(), by_hand=listed is not None)
    merged = {name: [p for of_split in by_split.values() for p in of_split] for name, by_split in found.items()}
    large = _large_enough(files, merged, least)
    if listed:
        chosen = lists.given(listed, merged, files, otherwise)
    elif any(set(by_split) != {None} for by_split in found.values()):
        chosen = _own_split(files, found, shares)
    else:
        chosen = None if shares else lists.found(files, merged, otherwise)
        if chosen is None and not drawing:
            return None
        if chosen is None:
            chosen = splits.drawn(large, files.shown, shares, seed)
            _say_how_it_was_drawn(files, chosen)
    chosen = {s: {name: merged[name] for name in chosen[s] if name in large} for s in SPLITS}
    if empty := [s for s in SPLITS if not chosen[s]]:
        raise UsageError(f"--least-images {least}: leaves no class in {a_few(empty)}; give a smaller number")
    return chosen


def _large_enough(files: RawFiles, pictures: dict[str, list[str]], least: int) -> list[str]:
    few = [f"{name} ({len(of_class)})" for name, of_class in pictures.items() if len(of_class) < least]
    if few:
        files.said.append(f"{len(few)} classes with fewer than {least} pictures are left out: {a_few(few)}")
    return [name for name, of_class in pictures.items() if len(of_class) >= least]


def _own_split(files: RawFiles, found: picture_table.Found, shares: str | None) -> dict[str, list[str]]:
    """The classes of each split as the source has them. Raises UsageError where a class is in two of them."""
    if shares:
        raise UsageError(f"--split {shares}: {files.shown} has its own train, val and test folders; leave --split out")
    chosen = {s: [name for name, by_split in found.items() if s in by_split] for s in SPLITS}
    of_train = [os.path.dirname(picture) for name in chosen["train"] for picture in found[name]["train"]]
    place = os.path.commonpath(of_train) if of_train else ""
    one = f"{_give_one(files, place)}, or " if place else ""
    splits.refuse_shared(chosen, files.shown, f"{one}say with a class list which split each is in: --split FILE")
    return chosen


def _class_folders(files: RawFiles, pictures: list[str], by_hand: bool) -> picture_table.Found:
    """The classes of `pictures` by the folders that hold them.

    by_hand: a class list will name the classes, so that one of the same name below another folder may be another class.
    Raises UsageError where pictures lie in no class folder, or the same classes below two folders.
    """
    folders: dict[str, list[str]] = {}
    for picture in pictures:
        folders.setdefault(os.path.dirname(picture), []).append(picture)
    if not folders:
        there = f" among its files ({kinds_of(files)})" * any(files)
        raise UsageError(
            f"--raw {files.shown}: no images{there}, expected a folder (or an archive) of class folders of images"
        )
    if len(folders) == 1:
        raise UsageError(
            f"--raw {files.shown}: only one folder of images, expected one a class, and three classes or more; or a "
            "table that says the class of each: --table FILE"
        )
    common = "" if "" in folders else os.path.commonpath(folders)
    folders = {os.path.relpath(f, common) if common else f: folders[f] for f in sorted(folders)}
    above = {"", "."} | {str(parent) for folder in folders for parent in PurePosixPath(folder).parents}
    outer = [folder for folder in folders if folder in above]
    if outer:
        stray = folders[outer[0]]
        raise UsageError(
            f"--raw {files.shown}: {len(stray)} images beside class folders rather than in one: {a_few(stray)}; move "
            "them into a class folder, or out"
        )
    placed = splits.without_split(list(folders), files.shown, by_hand)
    split_only = [f for f, (name, split) in placed.items() if split and name.lower() in IN_ITSELF]
    if split_only:
        raise UsageError(
            f"--raw {files.shown}: {len(folders[split_only[0]])} images in {split_only[0]} itself, expected class "
            "folders in it; or a table that says the class of each: --table FILE"
        )
    classes: picture_table.Found = {}
    for folder, (name, split) in placed.items():
        if split in classes.setdefault(name, {}):
            other = os.path.relpath(os.path.dirname(classes[name][split][0]), common or ".")
            _refuse_roots(files, common, [os.path.dirname(folder), os.path.dirname(other)], [name])
        classes[name][split] = folders[folder]
    if not by_hand:
        _refuse_same_below_two(files, common, list(classes))
    return classes


def _refuse_same_below_two(files: RawFiles, common: str, names: list[str]) -> None:
    """Raise UsageError where class names are the same below two folders, as those of pictures and of their masks."""
    kinds = [name for name in names if picture_table.is_kind(name)]
    if len(kinds) == len(names) and set(kinds) & {"images", "image", "img", "imgs"}:
        raise UsageError(
            f"--raw {files.shown}: folders {a_few(kinds)} say what kind of pictures they hold, not of what; expected "
            "class folders, or a table that says the class of each: --table FILE"
        )
    without_kind: dict[str, list[str]] = {}
    for name in names:
        parts = name.split("/")
        saying = [part for part in parts if not picture_table.is_kind(part)]
        without_kind.setdefault("/".join(saying) or name, []).append(name)
    twice = [alike for alike in without_kind.values() if len(alike) > 1]
    if twice:
        roots = [os.path.dirname(name) for name in twice[0]]
        roots = roots if len(set(roots)) > 1 else twice[0]  # kinds of pictures in each class folder
        _refuse_roots(files, common, roots, [min(alike, key=len).split("/")[-1] for alike in twice])
    parts = [name.split("/") for name in names]
    while len({path[-1] for path in parts}) == 1 and all(len(path) > 1 for path in parts):
        parts = [path[:-1] for path in parts]  # such as images in each class folder
    below: dict[str, set[str]] = {}  # what holds class folders -> their names
    roots_of: dict[str, list[str]] = {}  # such a name -> what holds it
    for path in parts:
        root, name = "/".join(path[:-1]), splits.same(path[-1])
        below.setdefault(root, set()).add(name)
        roots_of.setdefault(name, []).append(root)
    telling = [name for name, roots in roots_of.items() if len(set(roots)) > 1 and not GENERIC.fullmatch(name)]
    if telling:
        roots = roots_of[telling[0]]
        _refuse_roots(files, common, roots, sorted(name for name in telling if roots_of[name] == roots))
    first = next(iter(below.values()))
    if 1 < len(below) <= 3 and len(first) > 1 and all(names_of_root == first for names_of_root in below.values()):
        _refuse_roots(files, common, list(below), sorted(first))


def _refuse_roots(files: RawFiles, common: str, roots: list[str], names: list[str]) -> None:
    """Raise UsageError: `names` are below each of `roots`, of which "" is the folder that holds the others."""
    if "" in roots:
        mend = f"take {a_few(root for root in roots if root)} out"
    else:
        of_pictures = next((root for root in roots if re.search("ima?g|photo|picture", root.lower())), roots[0])
        mend = _give_one(files, "/".join(part for part in (common, of_pictures) if part))
    shown = [root or "the outermost folder" for root in roots]
    raise UsageError(
        f"--raw {files.shown}: the same {len(names)} class names below {a_few(shown)}: {a_few(names)}; {mend}, or, if "
        "they are different classes, name each by its path in a class list: --split FILE"
    )


def _give_one(files: RawFiles, place: str) -> str:
    folder = Path(files.shown, place)
    if not folder.is_dir():  # it lies in an archive
        return f"unpack it and give one of these folders, such as {place}"
    return f"give one of these folders, as in --raw {shlex.quote(str(folder))}"


def _say_how_it_was_drawn(files: RawFiles, chosen: dict[str, list[str]]) -> None:
    names = [name for s in SPLITS for name in chosen[s]]
    below: dict[str, int] = {}
    for name in names:
        top, _, rest = name.partition("/")
        below[top] = below.get(top, 0) + bool(rest)
    if 1 < len(below) <= 4 and min(below.values()) > 1:
        files.said.append(
            f"the classes lie below {a_few(sorted(below), 4)}, which don't mean train, val and test: drawn over all of "
            "them"
        )
    elif several := [top for top, count in below.items() if count > 1]:
        files.said.append(
            f"each innermost folder is a class, {below[several[0]]} of them in {several[0]}, in any split: if "
            f"{several[0]} is one class, put all of its pictures into one folder"
        )
    unread = [name for name in files if name not in files.used and _may_be_a_list(name)]
    if unread:
        files.said.append(f"{a_few(unread)} may say a split, but not as a class list does; see --split")
    counts = [len(chosen[s]) for s in SPLITS]
    if min(counts) < splits.WAYS:
        if len(names) >= 3 * splits.WAYS:
            mend = "--split 0.4,0.3,0.3 gives each split enough"
        else:
            mend = f"add classes, to {3 * splits.WAYS} or more"
            mend += f", or give --ways {min(counts)} to the scripts" * (min(counts) > 1)
        files.said.append(
            f"{' / '.join(map(str, counts))} classes in train / val / test are too few for {splits.WAYS}-way tasks: "
            f"{mend}"
        )


def _may_be_a_list(name: str) -> bool:
    path = PurePosixPath(name)
    if path.suffix.lower() not in (*lists.SUFFIXES, ".yaml", ".yml", ".xml", ".mat", ".pkl", ".pickle"):
        return False
    return bool(splits.meaning(path.stem) or re.fullmatch("splits?", path.stem.lower()))
