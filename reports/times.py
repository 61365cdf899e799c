"""Minutes of training, from the steps of a run and what a step takes on an idle machine.

Trainings may share a machine with other work, or run on several, so their own clocks compare nothing. The table that
`python -m benchmarks.steps` writes has the milliseconds of all methods, measured in turns on one idle machine.
"""

import copy
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from common.shards import ROOT, UsageError
from reports.runs import ASIDE, Run, settled

# Options that don't change what a training step costs.
FREE = ASIDE | {
    "steps", "minutes", "learning_rate", "weight_decay", "clip", "eval_every", "val_episodes", "queries", "shots",
    "ways", "test_inner_steps", "test_inner_batch", "views", "data_dir", "inner_rate", "strength", "logit_scale",
    "train_queries", "train_shots", "train_ways", "plain_averages", "position_mean",
}  # fmt: skip
# Options that came later, and what all runs before them did.
LATER = {"learn_rates": "no"}
# Those of which only whether they are 0 does.
SWITCHES = {"half_size", "rotate", "zoom", "shift", "rotate_class", "jitter"}


def tables_of_times() -> tuple[Path, ...]:
    """Those in results/, of the scripts' own settings before those of like for like."""
    return tuple(sorted((ROOT / "results" / "benchmarks").glob("steps-*.json"), key=lambda path: path.stem))


class Times:
    """Rows of one or several tables of benchmarks/steps.py: those of a data set are of one machine, and those of its
    like for like."""

    def __init__(self, tables: Iterable[Path]):
        self.tables: list[list[dict]] = []
        machines = {}
        for path in tables:
            try:
                table = json.loads(Path(path).read_text())
                machine = f"{table['device']}, {table['processor']}, {table['threads']} threads"
                rows = [
                    row | {"machine": machine, "is": settled(row["options"]["precision"], table)}
                    for row in table["rows"]
                ]
                compared = {(row["options"]["dataset"], row["alike"]) for row in rows}
            except (OSError, ValueError, KeyError, TypeError):
                raise UsageError(f"{path} is no table of times; make one by python -m benchmarks.steps") from None
            for kind in compared:
                if machines.setdefault(kind, machine) != machine:
                    raise UsageError(
                        f"{path} was measured on {machine}, expected {machines[kind]} as the others of {kind[0]}; "
                        "leave it out"
                    )
            self.tables.append(rows)

    @property
    def rows(self) -> list[dict]:
        return [row for table in self.tables for row in table]

    def row(self, run: Run) -> dict | None:
        """The first line that is of a run like this."""
        return next((row for row in self.rows if is_of(row, run)), None)

    def together(self, runs: list[Run]) -> "Times":
        """The same, but where several tables have a run's line, that of the table which has most of these runs: they
        were measured in turns."""

        def has(table: list[dict]) -> int:
            return sum(any(is_of(row, run) for row in table) for run in runs)

        ordered = copy.copy(self)
        ordered.tables = sorted(self.tables, key=has, reverse=True)
        return ordered

    def minutes(self, run: Run, steps: np.ndarray) -> np.ndarray:
        """Of training until these steps. By the run's own clock where the table has no line for it."""
        row = self.row(run)
        if row is None:
            return np.interp(steps, run.column("step"), run.column("seconds") / 60)
        return seconds_until(steps, half_steps(run), row) / 60

    def total(self, run: Run) -> float:
        """Minutes of the whole training."""
        steps = run.result.get("steps") or run.column("step")[-1]
        if not run.rows and self.row(run) is None:  # a test, of whose training the result tells the time
            return run.result["train_seconds"] / 60
        return float(self.minutes(run, np.array([float(steps)]))[0])

    def step_ms(self, run: Run) -> np.ndarray:
        """Of every row of log.csv."""
        row = self.row(run)
        if row is None:
            return run.column("step_ms")
        if row["half_ms"] is None:
            return np.full(len(run.rows), row["ms"])
        return np.where(run.column("step") <= half_steps(run), row["half_ms"], row["ms"])

    def of(self, runs: Iterable[Run]) -> str:
        """Where these runs' minutes come from, as a sentence."""
        found = [(run.method, self.row(run)) for run in runs]
        own = [name for name, row in found if row is None]
        measured = sorted({row["machine"] for _, row in found if row})
        idle = f"steps times the milliseconds of a step on one idle machine ({'; or '.join(measured)})"
        if not own:
            return f"Minutes are {idle}."
        names = ", ".join(dict.fromkeys(own))
        others = f" Those of the others are {idle}." if measured else ""
        slowed = "which other work may have slowed"
        return f"Minutes are by the clock of each run's own machine, {slowed}, for {names}.{others}"


def is_of(row: dict, run: Run) -> bool:
    """Whether a line is of the run's algorithm, precision, task and every option that a step's cost depends on. What
    "auto" is on a GPU counts as what it is on the table's machine."""
    if run.options.get("minutes") and run.options.get("half_size"):
        return False  # its small images ended by the clock, at a step that the options don't tell
    precision, machine = run.config["precision"], run.config.get("hardware", {"device": "cpu"})
    automatic = machine["device"] != "cpu" and precision == settled("auto", machine)
    same = row["algorithm"] == run.algorithm
    same &= row["is"] == precision or (automatic and row["options"]["precision"] == "auto")
    return same and same_cost(row["options"], run.options)


def seconds_until(steps: np.ndarray | float, halved: float, row: dict) -> np.ndarray | float:
    """Of training until these steps, of which the first `halved` are on images of half the side, by a line of a table
    of times."""
    half_ms = row["ms"] if row["half_ms"] is None else row["half_ms"]
    return (np.minimum(steps, halved) * half_ms + np.maximum(steps - halved, 0) * row["ms"]) / 1e3


def half_steps(run: Run) -> float:
    """The steps, from the first, on images of half the side."""
    share = run.options.get("half_size", 0.0)
    steps = run.options["steps"] or run.result.get("steps") or run.column("step")[-1]
    return share * steps


def same_cost(options: dict, others: dict) -> bool:
    """Whether a training step's time depends on no option in which they differ. Options that one of them is too old
    to have are left out, but for those whose absence says what it did."""
    options, others = LATER | options, LATER | others
    tasks = [
        [its.get(f"train_{what}") or its[what] for what in ("ways", "shots", "queries")] for its in (options, others)
    ]
    names = set(options) & set(others) - FREE
    return tasks[0] == tasks[1] and all(cost_of(name, options) == cost_of(name, others) for name in names)


def cost_of(name: str, options: dict) -> object:
    return bool(options[name]) if name in SWITCHES else options[name]
