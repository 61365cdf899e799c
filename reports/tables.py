"""The report's tables: Table 2, time to accuracy, how smooth the gradients are, and like for like."""

from dataclasses import dataclass

import numpy as np

from common.options import flag
from reports.methods import ALGORITHMS, PAPER, PUBLISHED
from reports.runs import Run, Task, task_name
from reports.smoothness import deviations, root_mean_square, within_rows
from reports.times import Times


@dataclass
class Table:
    """Cells as text; what is bold stands in **."""

    heads: list[str]
    rows: list[list[str]]


@dataclass
class Interval:
    """A mean and half of its 95 % confidence interval."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.half:.4f}"

    def above(self, other: "Interval") -> bool:
        return self.mean - self.half > other.mean + other.half


def accuracy(run: Run, kind: str = "") -> Interval:
    return Interval(run.result[f"test_accuracy{kind}"], run.result[f"test_ci95{kind}"])


def papers(task: Task, method: str) -> float | None:
    """Accuracy of the paper's Table 2, which is of 5 ways."""
    dataset, ways, shots = task
    for p in PUBLISHED:
        if (p.dataset, p.method, p.source, ways) == (dataset, method, PAPER, 5) and shots in (1, 5):
            return (p.one_shot if shots == 1 else p.five_shot) / 100
    return None


def published(task: Task, method: str) -> str:
    """Others' figures for a method, in per cent as they are published."""
    dataset, ways, shots = task
    found = []
    for p in PUBLISHED:
        value = {1: p.one_shot, 5: p.five_shot}.get(shots) if ways == 5 else None
        if (p.dataset, p.method) == (dataset, method) and p.source != PAPER and value is not None:
            found.append(f"{value} ({p.query}, {p.filters} filters; {p.source})")
    return "; ".join(found)


def bold(values: list[Interval]) -> list[str]:
    """As text, the largest in bold where its interval lies above each other's."""
    best = max(values, key=lambda value: value.mean)
    alone = len(values) > 1 and all(best.above(value) for value in values if value is not best)
    return [f"**{value}**" if alone and value is best else str(value) for value in values]


def table_2(task: Task, of_task: dict[str, list[Run]], times: Times) -> Table:
    """The paper's number, ours with intervals, what they cost, and others' figures. Ours is of the first seed."""
    first = [group[0] for group in of_task.values()]
    inductive, transductive = (bold([accuracy(run, kind) for run in first]) for kind in ("", "_transductive"))
    rows = []
    for run, group, *ours in zip(first, of_task.values(), inductive, transductive):
        paper = papers(task, run.method)
        margin = "" if paper is None else "yes" if accuracy(run).mean - accuracy(run).half > paper else "no"
        seeds = [other.result["test_accuracy"] for other in group]
        spread = f"{min(seeds):.4f} to {max(seeds):.4f} ({len(seeds)})" if len(seeds) > 1 else ""
        peak = max(other.result["peak_mib"] for other in group)
        trained = "this task" if run.trained_on == task else task_name(run.trained_on)
        spent = [f"{run.result['steps']:,}", f"{times.total(run):.1f}", f"{peak:.0f}", trained]
        cells = ["" if paper is None else f"{paper:.2f}", *ours, margin, spread, *spent, published(task, run.method)]
        rows.append([run.method, *cells])
    heads = ["method", "paper", "inductive", "transductive", "above the paper", "seeds", "steps", "minutes"]
    return Table([*heads, "peak MiB", "trained for", "published by others, %"], rows)


def time_to_accuracy(of_task: dict[str, list[Run]], times: Times) -> Table:
    """Minutes until validation first reaches MAML's last value, and 95 % of a method's own last one; of the first seed.

    Validation comes every so many steps: what it reached at its first is "at most" the time of that.
    """
    maml = of_task["maml"][0] if "maml" in of_task else None
    rows = []
    for group in of_task.values():
        run = group[0]
        own = minutes_to(run, 0.95 * last(run), times)
        cells = [run.method, f"{0.95 * last(run):.4f}", shown(own)]
        if maml:
            to_mamls = minutes_to(run, last(maml), times)
            cells.append(ratio(minutes_to(maml, 0.95 * last(maml), times), own))
            cells += [f"{last(maml):.4f}", shown(to_mamls), ratio(minutes_to(maml, last(maml), times), to_mamls)]
        rows.append(cells)
    heads = ["method", "95 % of its own last", "minutes to that"]
    of_maml = ["MAML's minutes to its own / these", "MAML's last", "minutes to that", "MAML's minutes / these"]
    return Table(heads + of_maml if maml else heads, rows)


def last(run: Run) -> float:
    """The validation accuracy at the end."""
    values = run.column("val_accuracy")
    return float(values[np.isfinite(values)][-1])


def minutes_to(run: Run, accuracy: float, times: Times) -> tuple[float, bool] | None:
    """(minutes until validation is first as high, whether that was the first validation); None if never."""
    values, steps = run.column("val_accuracy"), run.column("step")
    there = np.isfinite(values)
    values, steps = values[there], steps[there]
    reached = np.flatnonzero(values >= accuracy)
    if not len(reached):
        return None
    return float(times.minutes(run, steps[reached[:1]])[0]), bool(reached[0] == 0)


def shown(spent: tuple[float, bool] | None) -> str:
    return "never" if spent is None else f"{'at most ' * spent[1]}{spent[0]:.2f}"


def ratio(maml: tuple[float, bool], spent: tuple[float, bool] | None) -> str:
    """MAML's minutes over a method's: a bound where one of them was there at its first validation, if it is one."""
    if spent is None:
        return ""
    if maml[1] and spent[1]:
        return "not known"
    bound = "at least " * spent[1] + "at most " * maml[1]
    return f"{bound}{maml[0] / spent[0]:.2f}"


def smoothness(of_task: dict[str, list[Run]]) -> Table:
    """How much the meta-gradient's norm oscillates: the larger the rougher. Of the first seed."""
    rows = []
    for group in of_task.values():
        cells = []
        for measure in (within_rows, deviations):
            value = root_mean_square(measure(group[0]))
            cells.append("too few rows" if value is None else "{:.3f} ({:.3f} to {:.3f})".format(*value))
        rows.append([group[0].method, *cells])
    return Table(["method", "within 50 steps", "of means of 50 steps, from their running median"], rows)


def like_for_like(task: Task, of_task: dict[str, list[Run]], times: Times) -> tuple[Table, str]:
    """The methods on one network and the same tasks, and sentences on the options in which they still differ.

    Where the table of times has some of the methods, the others have no time, as their own clocks aren't its.
    """
    first = [group[0] for group in of_task.values()]
    accuracies = bold([accuracy(run) for run in first])
    timed = [run for run in first if times.row(run)] or first
    maml = of_task["maml"][0] if "maml" in of_task else None
    rows = []
    for run, ours in zip(first, accuracies):
        spent = ["", "", "", ""]
        if run in timed:
            spent[:2] = f"{np.median(times.step_ms(run)):.1f}", f"{times.total(run):.1f}"
            if maml in timed:
                its, mamls = (minutes_to(which, last(maml), times) for which in (run, maml))
                spent[2:] = shown(its), ratio(mamls, its)
        rows.append([run.method, ours, f"{run.result['steps']:,}", *spent, f"{run.options['learning_rate']:g}"])
    heads = ["method", "inductive", "steps", "ms a step", "minutes", "minutes to MAML's last validation"]
    said = [f"A step of {run.method} hasn't been timed." for run in first if run not in timed]
    return Table([*heads, "MAML's minutes / these", "rate"], rows), " ".join([*said, differences(first)])


def differences(runs: list[Run]) -> str:
    """In which of the options that all have the runs differ, but for the rate, which has a column of its own, and those
    that not all have."""
    aside = {"learning_rate", "seed", "out", "data_dir", "algorithm", "device"}
    known = set.intersection(*(set(run.options) for run in runs))
    shared = known - aside
    differing = []
    for name in sorted(shared):
        values = {str(run.options[name]): [] for run in runs}
        for run in runs:
            values[str(run.options[name])].append(run.method)
        if len(values) > 1:
            least = min(values.items(), key=lambda item: len(item[1]))
            differing.append(f"{flag(name)} ({', '.join(least[1])}: {least[0]})")
    own = []
    for run in runs:
        if its := [f"{flag(name)} {value}" for name, value in run.options.items() if name not in known and value]:
            own.append(f"{run.method} has {', '.join(its)}")
    said = f"Of the options that all have, beside the rate, they differ in {', '.join(differing) or 'none'}."
    return f"{said} Of those that not all have, {'; '.join(own)}." if own else said


def not_run(runs: list[Run]) -> str:
    """A sentence on which of the six methods aren't among several, or nothing."""
    there = {run.algorithm for run in runs}
    missing = [algorithm.name for script, algorithm in ALGORITHMS.items() if script not in there]
    return f"Not run: {', '.join(missing)}. " if missing and len(there) > 1 else ""
