"""Which classes are for training, validation and test: as folders say, or drawn."""

import re
import unicodedata
from collections.abc import Iterable

import numpy as np

from common.shards import SPLITS, UsageError
from data_prep import tables
from data_prep.files import a_few

SHARES = "0.64,0.16,0.20"  # of the classes, as in mini-ImageNet
WAYS = 5  # what a split should have classes for

# What people call the folders, lists and columns of a split, in lower case without accents.
WORDS = {
    "train": "train training trainings trn base treino entrenamiento entrainement apprentissage addestramento 训练",
    "val": "val valid validation validate validating dev devel development validierung validierungs validacion "
    "validacao validazione 验证",
    "test": "test testing tests tst novel holdout heldout teste prueba prufung 测试",
    "evaluation": "eval evaluation evaluate evaluating",  # the test, unless that has a folder of its own
}
# What may be a kind of thing as well, such as novels beside poems: a split only beside another one.
DOUBTFUL = {"base", "novel", "dev", "development", "eval", "evaluation", "validate", "evaluate"}
MEANING = {word: split for split, words in WORDS.items() for word in words.split()}
FILLERS = (
    "bilder class classes cls data dataset daten few files final fold folder image images img imgs meta mini my new "
    "original part phase photo photos picture pictures raw sample samples set shot split subset the"
).split()
_FILLED = "|".join(sorted(FILLERS, key=len, reverse=True))
_TOKEN = re.compile(f"(?:{_FILLED})*({'|'.join(sorted(MEANING, key=len, reverse=True))})(?:{_FILLED})*")


def same(name: str) -> str:
    """What two spellings of one class name have in common: without case, accents' encoding and blanks around it."""
    name = unicodedata.normalize("NFC", name).strip()
    return name.casefold() if len(name) > 1 else name  # a and A are two letters


def meaning(name: str) -> tuple[str, tuple[str, ...]] | None:
    """(split, other words) that a name such as Train, 02_valid, metaTest or birds-training means; None for others."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    words = [word.lower() for word in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![^\W\d_A-Z])", plain)]
    if match := _TOKEN.fullmatch("".join(c for c in plain.lower() if c.isalpha())):
        return MEANING[match[1]], ()
    found = [match[1] for word in words if (match := _TOKEN.fullmatch(word))]
    if len(found) != 1:
        return None
    others = tuple(word for word in words if not _TOKEN.fullmatch(word) and word not in FILLERS)
    return MEANING[found[0]], others


def splits_of_names(names: Iterable[str]) -> dict[str, str]:
    """The names that mean a split, and which; those with other words in them, as birds-train, where two differ."""
    meant = {name: found for name in names if (found := meaning(name))}
    kinds = {}
    for split, others in meant.values():
        kinds.setdefault(others, set()).add(split)
    result = {name: split for name, (split, others) in meant.items() if not others or len(kinds[others]) > 1}
    if len(set(result.values())) < 2 and {same(name) for name in result} <= DOUBTFUL:
        return {}
    evaluation = "val" if "test" in result.values() and "val" not in result.values() else "test"
    return {name: evaluation if split == "evaluation" else split for name, split in result.items()}


def column(rows: list[list[str]], others: Iterable[int] = ()) -> int | None:
    """The column of a table that says the split: by its name, or as all of its values mean one, and not all the same.

    others: columns that say something else. None where there is no such column.
    """
    header = tables.header_of(rows[0])
    named = tables.column(header, tables.SPLIT_COLUMNS)
    if named is not None:
        return named
    for c in sorted(set(range(len(header))) - set(others)):
        values = {row[c] for row in rows[1:] if len(row) > c}
        meant = splits_of_names(values)
        if len(meant) == len(values) and len(set(meant.values())) > 1:
            return c
    return None


def without_split(folders: list[str], shown: str, by_hand: bool) -> dict[str, tuple[str, str | None]]:
    """Class folder -> (class name, split): the parts of the path that mean a split are taken out of the name.

    by_hand: a class list will say the split. Otherwise it raises UsageError where some folders mean one, others don't.
    """
    parts = {folder: folder.split("/") for folder in folders}
    inner = splits_of_names({part for path in parts.values() for part in path[:-1]})
    last = splits_of_names({path[-1] for path in parts.values()})
    if not inner and len(set(last.values())) < 2:  # such as train, beside car and bus
        return {folder: (folder, None) for folder in folders}
    result = {}
    for folder, path in parts.items():
        place = next((i for i, part in enumerate(path[:-1]) if part in inner), None)
        if place is None and path[-1] in last:
            place = len(path) - 1
        if place is None and by_hand:
            return {folder: (folder, None) for folder in folders}
        if place is None:
            words = sorted(inner) or sorted(last)
            raise UsageError(
                f"--raw {shown}: folder {folder} beside {a_few(words)}, expected train, val and test; rename, add or "
                "remove some"
            )
        split = inner.get(path[place]) or last[path[place]]
        # A download page's archive may hold train/train.
        name = [
            part for i, part in enumerate(path) if i != place and not (i < len(path) - 1 and inner.get(part) == split)
        ]
        result[folder] = "/".join(name), split
    return result


def refuse_shared(classes: dict[str, list[str]], shown: str, mend: str) -> None:
    """Raise UsageError unless there are train, val and test, and no class, however it is spelt, is in two of them."""
    there = [split for split in SPLITS if classes.get(split)]
    known = {split: {same(name): name for name in classes.get(split, ())} for split in SPLITS}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := sorted(known[first].keys() & known[second].keys()):
            raise UsageError(
                f"--raw {shown}: {len(both)} classes in {first} as well as {second}: "
                f"{a_few(known[first][name] for name in both)}; few-shot splits share no class; {mend}"
            )
    if len(there) < len(SPLITS):
        missing = " and ".join(split for split in SPLITS if split not in there)
        raise UsageError(
            f"--raw {shown}: no classes for {missing}, expected train, val and test; rename, add or move some"
        )


def parse_shares(text: str) -> tuple[float, float, float]:
    """Three shares that sum to one; raises UsageError."""
    try:
        shares = tuple(float(share) for share in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or not all(0 < share < 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(
            f"--split {text}: expected three shares of the classes that sum to 1, as in --split {SHARES}, or the "
            "folder or file of a class list"
        )
    return shares


def drawn(classes: list[str], shown: str, shares: str | None, seed: int) -> dict[str, list[str]]:
    """The classes of each split, drawn with `seed` and sorted.

    shares: "TRAIN,VAL,TEST" of the classes; None is SHARES, but at least five classes a split where there are fifteen.
    """
    spelt: dict[str, list[str]] = {}
    for name in classes:
        spelt.setdefault(same(name), []).append(name)
    if twice := [names for names in spelt.values() if len(names) > 1]:
        raise UsageError(
            f"--raw {shown}: {len(twice)} classes are spelt in two ways: {a_few(' and '.join(n) for n in twice)}; "
            "make each one class, or rename one of the two"
        )
    counts = [max(1, round(share * len(classes))) for share in parse_shares(shares or SHARES)[1:]]
    if shares is None and len(classes) >= 3 * WAYS:
        counts = [max(WAYS, count) for count in counts]
    if len(classes) <= sum(counts):
        raise UsageError(
            f"--raw {shown}: {len(classes)} classes ({a_few(classes)}), too few for --split {shares or SHARES}; "
            "expected at least one a split; add some"
        )
    order = np.random.default_rng(seed).permutation(len(classes))
    ends = {"val": order[: counts[0]], "test": order[counts[0] : sum(counts)], "train": order[sum(counts) :]}
    return {split: [classes[i] for i in sorted(ends[split])] for split in SPLITS}
