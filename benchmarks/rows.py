"""Lines of the table that `python -m benchmarks.run` makes."""

import math
import statistics
from dataclasses import dataclass, replace

import numpy as np

from benchmarks import markdown
from benchmarks.worker import Worker

SAME = 1e-6  # so far apart, relative to their norm, two libraries' gradients in float64 may be and be the same


@dataclass
class Row:
    """A line of the table. None: not measured, or it doesn't count; of what was measured once no spread is known."""

    measure: str
    algorithm: str
    setting: str
    against: str
    unit: str
    ours: float
    theirs: float | None = None
    ratio: float | None = None
    """theirs / ours, its median and quartiles over the rounds; of rates too, so that more than 1 is faster"""
    ratio_low: float | None = None
    ratio_high: float | None = None
    note: str = ""

    def uncounted(self, note: str) -> "Row":
        """The row without what a comparison would say."""
        return replace(self, theirs=None, ratio=None, ratio_low=None, ratio_high=None, note=note)


def compared(measure: str, algorithm: str, setting: str, us: Worker, against: str, them: Worker, note: str = "") -> Row:
    """The row of two workers that took turns. Raises SystemExit where ours failed."""
    if us.error:
        raise SystemExit(f"{measure}, {algorithm}, {setting}: {us.error}")
    row = Row(measure, algorithm, setting, against, us.unit, us.amount)
    if them.error:
        return row.uncounted(them.error)
    low, median, high = statistics.quantiles([t / o for o, t in zip(us.seconds, them.seconds)], n=4)
    return replace(row, theirs=them.amount, ratio=median, ratio_low=low, ratio_high=high, note=note)


def apart(g: np.ndarray, theirs: np.ndarray) -> float:
    """|g - g'| / |g| of two gradients; infinity where one has other parameters."""
    return float(np.linalg.norm(g - theirs) / np.linalg.norm(g)) if g.shape == theirs.shape else math.inf


def with_gradients(row: Row, g: np.ndarray, theirs: np.ndarray) -> Row:
    """The row with both meta-gradients' norms noted, uncounted where they differ."""
    error = apart(g, theirs)
    norms = (np.linalg.norm(gradient) for gradient in (g, theirs))
    note = "gradient norms {:.6g}, {:.6g}, apart by {:.0e}".format(*norms, error)
    return replace(row, note=note) if error < SAME else row.uncounted(f"not ours: {note}")


def as_table(rows: list[Row]) -> str:
    shown = []
    for row in rows:
        amounts = ["" if amount is None else f"{amount:.4g}" for amount in (row.ours, row.theirs)]
        spread = "" if row.ratio_low is None else f" ({row.ratio_low:.2f}-{row.ratio_high:.2f})"
        ratio = "" if row.ratio is None else f"**{row.ratio:.2f}**{spread}"
        shown.append([row.measure, row.algorithm, row.setting, *amounts, row.unit, row.against, ratio, row.note])
    heads = ("measure", "algorithm", "setting", "ours", "theirs", "unit", "against", "ratio", "note")
    return markdown(heads, shown)
