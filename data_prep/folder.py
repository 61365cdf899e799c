"""Any image set: a folder or an archive of class folders, or of train, val and test folders that hold class folders."""

import os.path
from pathlib import Path

import numpy as np

from common.shards import SPLITS, Split, UsageError
from data_prep.files import a_few, is_image, open_files, read_images, squared
from data_prep.output import write

SHARES = "0.64,0.16,0.20"  # of the classes, as in mini-ImageNet


def build(
    data_dir: Path, name: str, raw: Path, shares: str | None = None, seed: int = 0, size: int = 84, gray: bool = False
) -> Path:
    """Build `DATA_DIR/NAME`: a class is a folder with images, of any number and size, scaled to size x size.

    shares: "TRAIN,VAL,TEST" of the classes, drawn with `seed`; None is `SHARES`, or the source's own train, val and
    test folders where it has them. Classes and images are in the order of their names. Returns the folder.
    Raises UsageError where there are too few classes, images outside class folders, or one that is unreadable.
    """
    with open_files(raw) as files:
        classes = {}
        for file in filter(is_image, files):
            classes.setdefault(os.path.dirname(file), []).append(file)
        if not classes:
            raise UsageError(f"--raw {raw}: no images, expected a folder (or an archive) of class folders of images")
        if len(classes) == 1:
            raise UsageError(f"--raw {raw}: only one folder of images, expected one a class, and three classes or more")
        common = "" if "" in classes else os.path.commonpath(classes)
        classes = {os.path.relpath(c, common) if common else c: classes[c] for c in sorted(classes)}
        outer = sorted(c for c in classes if any(other.startswith(f"{c}/") or c in ("", ".") for other in classes))
        if outer:
            stray = classes[outer[0]]
            raise UsageError(
                f"--raw {raw}: {len(stray)} images beside class folders rather than in one: {a_few(stray)}; move them "
                "into a class folder, or out"
            )
        chosen = _own_split(classes, raw, shares) or _drawn_split(list(classes), raw, shares or SHARES, seed)
        mode = "L" if gray else "RGB"
        splits = {
            s: Split(
                list(chosen[s]),
                [len(classes[folder]) for folder in chosen[s].values()],
                (
                    read_images(files, classes[folder], lambda image: squared(image, size, mode))
                    for folder in chosen[s].values()
                ),
            )
            for s in SPLITS
        }
        return write(data_dir, name, splits, raw.name)


def parse_shares(text: str) -> tuple[float, float, float]:
    """Three shares that sum to one; raises UsageError."""
    try:
        shares = tuple(float(share) for share in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or not all(0 < share < 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(f"--split {text}: expected three shares of the classes that sum to 1, as in --split {SHARES}")
    return shares


def _own_split(classes: dict[str, list[str]], raw: Path, shares: str | None) -> dict[str, dict[str, str]] | None:
    """Class name -> folder for each split where the folders' first level is train, val and test; otherwise None."""
    tops = sorted({c.split("/")[0] for c in classes})
    split_of = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
    if "train" not in tops or not all("/" in c for c in classes):
        return None
    if sorted(split_of.get(top, top) for top in tops) != sorted(SPLITS):
        raise UsageError(
            f"--raw {raw}: folders {a_few(tops)}, expected train, val and test; rename, add or remove some"
        )
    if shares:
        raise UsageError(f"--split {shares}: {raw} has its own train, val and test folders; leave --split out")
    chosen = {s: {} for s in SPLITS}
    for folder in classes:
        top, name = folder.split("/", 1)
        chosen[split_of[top]][name] = folder
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := sorted(chosen[a].keys() & chosen[b].keys()):
            raise UsageError(
                f"--raw {raw}: {len(both)} classes in {a} as well as {b}: {a_few(both)}; few-shot splits share no "
                f"class; take the folders out of {a}, val and test, and --split will draw classes"
            )
    return chosen


def _drawn_split(classes: list[str], raw: Path, shares: str, seed: int) -> dict[str, dict[str, str]]:
    """Class name -> folder for each split, the classes of a split drawn with `seed` and sorted."""
    counts = [max(1, round(share * len(classes))) for share in parse_shares(shares)[1:]]
    if len(classes) <= sum(counts):
        raise UsageError(
            f"--raw {raw}: {len(classes)} classes ({a_few(classes)}), too few for --split {shares}; expected at least "
            "one a split; add some"
        )
    order = np.random.default_rng(seed).permutation(len(classes))
    ends = {"val": order[: counts[0]], "test": order[counts[0] : sum(counts)], "train": order[sum(counts) :]}
    return {s: {classes[i]: classes[i] for i in sorted(ends[s])} for s in SPLITS}
