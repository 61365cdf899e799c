"""Tables of results/benchmarks/table.json: meta-steps, beside peers, and against what the project set out for."""

import functools
import json
import re
from typing import NamedTuple

from benchmarks import markdown
from common.shards import ROOT

COLUMNS = {
    "Omniglot, 4 tasks": ("omniglot", 4),
    "Omniglot, 16 tasks": ("omniglot", 16),
    "mini-ImageNet, 4 tasks": ("miniimagenet", 4),
    "mini-ImageNet, 16 tasks": ("miniimagenet", 16),
}
STEPS = {
    "convex_imaml": "Convex iMAML",
    "convex_maml": "Convex MAML",
    "maml": "MAML, second order, 5 steps",
    "maml, first order": "MAML, first order, 5 steps",
    "imaml": "iMAML, 16 steps",
    "reptile": "Reptile, 50 images a task for 80",
    "cavia": "CAVIA",
}
OURS_TOO = ", our allocator setting"  # a peer run with it


@functools.cache
def measured() -> list[dict]:
    return json.loads((ROOT / "results" / "benchmarks" / "table.json").read_text())["rows"]


def found(measure: str, algorithm: str, setting: str, against: str) -> list[dict]:
    """Rows with a ratio whose setting and peer match these regular expressions."""
    alike = [row for row in measured() if (row["measure"], row["algorithm"]) == (measure, algorithm)]
    alike = [row for row in alike if re.fullmatch(setting, row["setting"]) and re.fullmatch(against, row["against"])]
    return [row for row in alike if row["ratio"] is not None]


def meta_step_rows(algorithm: str, column: str, against: str) -> list[dict]:
    """In float32 and norm-pool, which peers have too."""
    dataset, tasks = COLUMNS[column]
    return found("meta_step", algorithm, rf"{dataset} Conv4-\d+, {tasks} tasks( \(--batches \d+\))?", against)


def spread(low: float, middle: float, high: float, digits: int = 2) -> str:
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def over_plain(row: dict) -> tuple[float, float, float]:
    """Our time over theirs: quartile, median, quartile."""
    return 1 / row["ratio_high"], 1 / row["ratio"], 1 / row["ratio_low"]


def meta_steps() -> str:
    lines = []
    for algorithm, name in STEPS.items():
        cells = [[spread(*over_plain(r)) for r in meta_step_rows(algorithm, c, "plain")] for c in COLUMNS]
        lines.append([name, *(" ".join(cell) or "not run" for cell in cells)])
    return markdown(["our meta-step / plain step", *COLUMNS], lines)


def fastest(algorithm: str, column: str, ending: str) -> dict | None:
    """The row of the peer that takes the least time, among those that users run as they are, or with our setting."""
    peers = meta_step_rows(algorithm, column, r"(?!plain|operation).*")
    peers = [row for row in peers if row["against"].endswith(OURS_TOO) == bool(ending)]
    return min(peers, key=lambda row: row["ratio"], default=None)


def peers() -> str:
    lines = []
    for algorithm, name in STEPS.items():
        cells, names = [], set()
        for column in COLUMNS:
            both = [fastest(algorithm, column, ending) for ending in ("", OURS_TOO)]
            names |= {row["against"] for row in meta_step_rows(algorithm, column, r"(?!plain|operation).*")}
            cells.append(" · ".join(f"{row['ratio']:.2f}" if row else "not run" for row in both))
        if names:
            who = ", ".join(sorted(name for name in names if not name.endswith(OURS_TOO)))
            lines.append([f"{name}: {who}", *cells])
    return markdown(["peer / ours", *COLUMNS], lines)


class Goal(NamedTuple):
    text: str
    rows: list[dict | None]
    least: float | None = None  # of how many times longer the other takes
    most: float | None = None  # of our time over the other's


def goals() -> str:
    """What the project set out for on two cores, and what was found."""

    def plain(algorithm, columns=COLUMNS):
        return [row for column in columns for row in meta_step_rows(algorithm, column, "plain")]

    def fastest_peers(algorithm):
        return [fastest(algorithm, column, "") for column in COLUMNS]

    def backbone(kind):
        return found("backbone", kind, ".*", "contiguous float32")

    mini = [column for column in COLUMNS if column.startswith("mini")]
    heads = found("head", "newton_head", ".*", ".*")
    small = [
        min(found("head", "newton_head", f"16 tasks, {ways} ways, 1 shots, 64 features", "scikit-learn.*"),
            key=lambda row: row["ratio"])
        for ways in (5, 20)
    ]  # fmt: skip
    wanted = [
        Goal("Convex iMAML takes at most 1.10 times the plain step", plain("convex_imaml"), most=1.10),
        Goal("Convex MAML takes at most 1.15 times the plain step", plain("convex_maml"), most=1.15),
        Goal("second-order MAML at most 2.5 times, on mini-ImageNet", plain("maml", mini), most=2.5),
        Goal("the fastest peer takes 2 times as long for MAML", fastest_peers("maml"), least=2),
        Goal("the fastest peer takes 3 times as long for iMAML", fastest_peers("imaml"), least=3),
        Goal("contiguous float32 takes 2.7 times as long, on Omniglot", backbone("norm-pool, float32")[:1], least=2.7),
        Goal("and 3.2 times, on mini-ImageNet", backbone("norm-pool, float32")[1:], least=3.2),
        Goal("and 3 times as long as bfloat16 on both", backbone("norm-pool, bfloat16"), least=3),
        Goal("no library solves heads faster: the closest", [min(heads, key=lambda row: row["ratio"])], least=1),
        Goal("scikit-learn takes 20 times as long for 16 small heads of 5 and 20 ways", small, least=20),
        Goal(
            "episodes are drawn at 0.8 times the speed of plain indexing",
            found("episodes", "EpisodeLoader", ".*16 at a time", "plain indexing"), least=0.8,
        ),
    ]  # fmt: skip
    lines = []
    for goal in wanted:
        values = [(row["ratio_low"], row["ratio"], row["ratio_high"]) for row in goal.rows if row]
        if goal.most is not None:
            values = [over_plain(row) for row in goal.rows]
        met = [v[1] >= goal.least if goal.most is None else v[1] <= goal.most for v in values]
        reached = "yes" if all(met) else f"in {sum(met)} of {len(met)}" if any(met) else "no"
        lines.append([goal.text, "; ".join(spread(*v) for v in values), reached])
    return markdown(["goal", "measured", "reached"], lines)
