"""Where a run is wrong, from the episodes of its test and the data set's pictures: the paper's section 4.4 as numbers.

E episodes, N ways, S support and Q query images an episode. "Row" means a picture's row in test.h5.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.shards import UsageError, read_shard
from reports.methods import SYNSETS
from reports.runs import Run

LOW = 0.2  # accuracy below which an episode or a picture is shown: what guessing gives with 5 ways


@dataclass
class Outcomes:
    """A test: what was asked, and what was predicted."""

    images: np.ndarray  # (n, C, H, W) uint8, all pictures of the split
    names: list[str]  # of the split's classes, for people
    classes: np.ndarray  # (E, N) the class that each label stands for
    support_rows: np.ndarray  # (E, S)
    support_labels: np.ndarray  # (E, S)
    query_rows: np.ndarray  # (E, Q)
    query_labels: np.ndarray  # (E, Q)
    predicted: np.ndarray  # (E, Q)

    @property
    def right(self) -> np.ndarray:
        """(E, Q)"""
        return self.predicted == self.query_labels

    @property
    def ways(self) -> int:
        return self.classes.shape[1]

    def class_of(self, labels: np.ndarray) -> np.ndarray:
        """(E, Q) classes that an episode's labels stand for."""
        return np.take_along_axis(self.classes, labels, 1)


def read(run: Run, data_dir: Path) -> Outcomes:
    """A run's episodes.npz with the pictures of its data set.

    Raises UsageError where either isn't there, or where they don't belong together.
    """
    path = run.folder / "episodes.npz"
    if not path.exists():
        raise UsageError(f"{path} isn't there; test the run again by --evaluate {run.folder}, which writes one")
    try:
        with np.load(path) as kept:
            arrays = {name: kept[name] for name in Outcomes.__dataclass_fields__ if name in kept}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path} is damaged ({error}); test the run again by --evaluate {run.folder}") from None
    shard = data_dir / run.result["dataset"] / "test.h5"
    images, starts, names, *_ = read_shard(shard)
    outcomes = Outcomes(images, [SYNSETS.get(name, name) for name in names], **arrays)
    rows, labels = outcomes.query_rows, outcomes.class_of(outcomes.query_labels)
    if rows.max() >= len(images) or (np.searchsorted(starts, rows, "right") - 1 != labels).any():
        raise UsageError(f"{path} was made with another {shard}; name the folder of that one by --data-dir")
    return outcomes


def of_pictures(outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows of the pictures that were queries, the share of times that each was named rightly, the number of times)"""
    rows, places = np.unique(outcomes.query_rows, return_inverse=True)
    count = np.bincount(places.ravel(), minlength=len(rows))
    return rows, np.bincount(places.ravel(), outcomes.right.ravel(), len(rows)) / count, count


def of_classes(outcomes: Outcomes) -> list[tuple[str, float, int]]:
    """(name, accuracy, number of queries) of each class, the worst first."""
    true = outcomes.class_of(outcomes.query_labels).ravel()
    count = np.bincount(true, minlength=len(outcomes.names))
    right = np.bincount(true, outcomes.right.ravel(), len(outcomes.names))
    order = sorted(np.flatnonzero(count), key=lambda c: right[c] / count[c])
    return [(outcomes.names[c], float(right[c] / count[c]), int(count[c])) for c in order]


def confusion(outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    """How often a query of class i was taken for class j, as a share of the times that an episode had both; and the
    number of these.   (classes, classes) each"""
    n = len(outcomes.names)
    true, taken = outcomes.class_of(outcomes.query_labels), outcomes.class_of(outcomes.predicted)
    counts, offered = np.zeros((n, n), dtype=np.int64), np.zeros((n, n), dtype=np.int64)
    np.add.at(counts, (true, taken), 1)
    for other in outcomes.classes.T[:, :, None]:  # (E, 1), one of the classes on offer
        np.add.at(offered, (true, np.broadcast_to(other, true.shape)), 1)
    return counts / np.maximum(offered, 1), offered


def confused_pairs(outcomes: Outcomes, shown: int, least: int = 15) -> list[tuple[str, str, float, int]]:
    """(true class, class that it was taken for, share, of so many queries), the largest shares first, of pairs that
    were asked at least so often."""
    share, offered = confusion(outcomes)
    share = np.where((offered >= least) & ~np.eye(len(share), dtype=bool), share, 0)
    largest = np.argsort(share, axis=None)[::-1][:shown]
    pairs = [np.unravel_index(place, share.shape) for place in largest if share.flat[place] > 0]
    names = outcomes.names
    return [(names[i], names[j], float(share[i, j]), int(offered[i, j])) for i, j in pairs]


def colour_distances(outcomes: Outcomes) -> np.ndarray:
    """Of each query from the mean of each class's support, in mean colour, or in ink where there is one channel.

    (E, Q, N)"""
    rows = np.unique(np.concatenate([outcomes.support_rows.ravel(), outcomes.query_rows.ravel()]))
    mean = np.zeros((len(outcomes.images), outcomes.images.shape[1]))
    for some in np.array_split(rows, len(rows) // 1000 + 1):
        mean[some] = outcomes.images[some].mean((2, 3)) / 255
    belongs = outcomes.support_labels[:, None, :] == np.arange(outcomes.ways)[:, None]  # (E, N, S)
    weights = belongs / belongs.sum(-1, keepdims=True)
    centres = weights @ mean[outcomes.support_rows]  # (E, N, C)
    return np.linalg.norm(mean[outcomes.query_rows][:, :, None] - centres[:, None], axis=-1)


@dataclass
class Colour:
    """Whether the errors go with colour: shares, each with its 95 % interval of a bootstrap over episodes."""

    errors: int
    nearer: tuple[float, float, float]
    """of errors: the predicted class's support is nearer in colour to the query than its own class's"""
    by_chance: tuple[float, float, float]
    """of the same queries: a wrong class that is drawn at random is nearer"""
    more: tuple[float, float, float]
    """the difference of these: above 0 where colour has a part in the errors"""
    alone: tuple[float, float, float]
    """accuracy of naming every query by the class of nearest colour"""


def colour(outcomes: Outcomes, chosen: np.ndarray | None = None, draws: int = 2000) -> Colour:
    """Of all errors, or of those among the `chosen` queries (E, Q)."""
    distance, labels = colour_distances(outcomes), outcomes.query_labels
    own = np.take_along_axis(distance, labels[..., None], 2)  # (E, Q, 1)
    nearer = distance < own
    wrong = ~outcomes.right if chosen is None else ~outcomes.right & chosen
    taken = np.take_along_axis(nearer, outcomes.predicted[..., None], 2)[..., 0]
    sums = np.stack([
        wrong.sum(1),
        (wrong * taken).sum(1),
        (wrong * nearer.sum(2) / (outcomes.ways - 1)).sum(1),
        np.full(len(wrong), wrong.shape[1]),
        (distance.argmin(2) == labels).sum(1),
    ])  # fmt: skip
    drawn = np.random.default_rng(0).multinomial(len(wrong), np.full(len(wrong), 1 / len(wrong)), draws)
    errors, taken, chance, queries, alone = np.concatenate([sums.sum(1)[:, None], sums @ drawn.T], 1)

    def interval(values: np.ndarray) -> tuple[float, float, float]:
        low, high = np.percentile(values[1:], (2.5, 97.5))
        return float(values[0]), float(low), float(high)

    with np.errstate(invalid="ignore"):
        shares = taken / errors, chance / errors, (taken - chance) / errors, alone / queries
    return Colour(int(errors[0]), *map(interval, shares))
