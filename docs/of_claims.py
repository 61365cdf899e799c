"""Tables and pictures of the paper's claims, from the runs in results/ that report.py would show."""

import textwrap

from benchmarks import markdown
from common.shards import ROOT
from docs import of_results
from reports import curves, tables
from reports.methods import ALGORITHMS, DATASETS
from reports.runs import Run, Task, like_for_like
from reports.shown import shown_tests, shown_trainings
from reports.tables import Table

CELLS = tuple((dataset, 5, shots) for dataset in ("omniglot", "miniimagenet") for shots in (1, 5))


def trainings(dataset: str) -> dict[str, list[Run]]:
    """Of each algorithm that was trained for 5 ways and 1 shot, by seed."""
    return shown_trainings(of_results.runs())[dataset, 5, 1]


def table_2() -> str:
    """Inductive accuracy of every cell of the paper's Table 2, and in brackets the paper's number."""
    tests = shown_tests(of_results.runs())
    lines = []
    for script, algorithm in ALGORITHMS.items():
        cells = []
        for task in CELLS:
            group = tests.get(task, {}).get(script)
            ours = tables.accuracy(group[0]) if group else "not run"
            cells.append(f"{ours} ({tables.papers(task, algorithm.name):.2f})")
        lines.append([algorithm.name, *cells])
    return markdown(["method", *(f"{DATASETS[dataset]}, {ways}w{shots}s" for dataset, ways, shots in CELLS)], lines)


def time_to_accuracy(dataset: str) -> str:
    return written(tables.time_to_accuracy(trainings(dataset), of_results.times()))


def alike(dataset: str) -> str:
    """The methods on one network and the same tasks, and in what they still differ."""
    task: Task = dataset, 5, 1
    runs = like_for_like([ROOT / "results"])
    table, said = tables.like_for_like(
        task, shown_trainings(runs, varied=True)[task], of_results.times().together(runs)
    )
    return f"{written(table)}\n\n{textwrap.fill(said, 120, break_on_hyphens=False)}"


def smoothness(dataset: str) -> str:
    return written(tables.smoothness(trainings(dataset)))


def smoothness_alike(dataset: str) -> str:
    return written(tables.smoothness(shown_trainings(like_for_like([ROOT / "results"]), varied=True)[dataset, 5, 1]))


def written(table: Table) -> str:
    return markdown(table.heads, table.rows)


def drawn(dataset: str) -> dict[str, str]:
    """What a picture of the dataset's trainings shows: the log of each, and the times of their steps."""
    logs = {run.name: str(run.rows) for group in trainings(dataset).values() for run in group}
    return logs | {"times": str(of_results.times().rows)}


def figure(dataset: str) -> bytes:
    """PNG of the paper's figure of the data set and 1 shot."""
    task: Task = dataset, 5, 1
    return curves.figure(task, trainings(dataset), of_results.times())
