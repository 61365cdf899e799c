"""Turn run folders into one page that holds the paper's figures and tables: index.html, which needs no network.

    python report.py runs --out report               all runs in a folder, beside each other
    python report.py runs/maml-glyphs-5w1s-s0 --out report      one run: its curves, classes and worst pictures

Beside the page, FOLDER gets every picture as PNG, and the text and tables as report.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from common.command import command, read
from common.shards import UsageError
from reports import sections
from reports.page import Page
from reports.runs import apart, task_name
from reports.shown import shown_tests, shown_trainings
from reports.times import Times, tables_of_times


@dataclass
class Options:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or folders that hold some at any depth."""
    out: Path
    """The folder for the page, made if it isn't there."""
    like_for_like: tuple[Path, ...] = ()
    """Folders of runs that differ in the inner loop alone; those named "alike" in RUNS are found by themselves. They
    get a section of their own, and are in no other."""
    times: tuple[Path, ...] = tables_of_times()
    """Tables of `python -m benchmarks.steps`: a step's milliseconds on an idle machine, which minutes are made of."""
    data_dir: Path | None = None
    """The folder that holds the data sets, for pictures of errors; by default the one that each run had."""


def main() -> None:
    options = read(Options, __doc__.partition("\n\n")[0])
    times = Times(options.times)
    runs, alike = apart(options.runs, options.like_for_like)
    if not runs:
        raise UsageError(f"all {len(alike)} runs are like for like; name folders that hold others for the page too")
    shown, tests = shown_trainings(runs), shown_tests(runs)
    one = f"{runs[0].method} on {task_name(runs[0].trained_on)}"
    page = Page("Few-shot meta-learning: the paper's claims and our runs" if len(runs) > 1 else one)
    commits = sorted({str(run.config["commit"])[:10] for run in runs})
    page.say(
        f"Made of {len(runs)} run folders, of commits {', '.join(commits)}. Where a method has several trainings for a "
        "task, the one with the highest validation accuracy is shown, of those as published where there are some."
    )
    if tests:
        sections.table_2(page, tests, times)
    if alike:
        sections.like_for_like(page, alike, times)
    for task, of_task in shown.items():
        sections.training(page, task, of_task, times)
    for task, of_task in tests.items():
        sections.wrong(page, task, of_task, runs, options.data_dir)
    page.write(options.out)
    print(options.out / "index.html")


if __name__ == "__main__":
    command(main)
