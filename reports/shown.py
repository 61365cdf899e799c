"""Which of several runs of a task and method a report shows."""

import numpy as np

from reports.methods import as_published
from reports.runs import Run, Task, in_order

TASK = {"dataset", "ways", "shots"}


def shown_trainings(runs: list[Run], varied: bool = False) -> dict[Task, dict[str, list[Run]]]:
    """Of every task and algorithm the training that is shown, as its runs by seed. With `varied` also, by its name, a
    method that isn't as published.

    Where there are several, of the method as published before others, the one with the highest validation accuracy, the
    mean of its seeds' best; the test decides nothing.
    """
    shown: dict[Task, dict[str, list[Run]]] = {task: {} for task in in_order(run.trained_on for run in runs)}
    groups: dict[tuple, dict[int, Run]] = {}  # of each seed the one that came furthest
    for run in runs:
        if np.isfinite(run.column("val_accuracy")).any():
            name = run.method if varied and not as_published(run.options) else run.algorithm
            of_seeds = groups.setdefault((run.trained_on, name, run.alike), {})
            known = of_seeds.setdefault(run.seed, run)
            of_seeds[run.seed] = max(known, run, key=lambda run: (bool(run.result), len(run.rows)))
    best: dict[tuple, tuple[bool, float]] = {}
    for (task, name, _), of_seeds in groups.items():
        group = sorted(of_seeds.values(), key=lambda run: run.seed)
        reached = float(np.mean([np.nanmax(run.column("val_accuracy")) for run in group]))
        rank = as_published(group[0].options), reached
        if (task, name) not in best or rank > best[task, name]:
            best[task, name] = rank
            shown[task][name] = group
    return {task: of_task for task, of_task in shown.items() if of_task}


def shown_tests(runs: list[Run]) -> dict[Task, dict[str, list[Run]]]:
    """Of every task and algorithm the test that is shown, by seed: of the training for this task, or where there is
    none, of another one of `shown_trainings` on the data set, with the options that it has."""
    chosen = shown_trainings(runs)
    shown: dict[Task, dict[str, list[Run]]] = {}
    for task in in_order(run.tested_on for run in runs if run.result):
        of_task = {}
        for algorithm in dict.fromkeys(run.algorithm for run in runs):
            own = [_best_known(run, runs) for run in chosen.get(task, {}).get(algorithm, []) if run.result]
            others = _tests_of_others(task, [run for run in runs if run.algorithm == algorithm], chosen)
            if group := own or others[:1]:
                of_task[algorithm] = group
        shown[task] = of_task
    return {task: of_task for task, of_task in shown.items() if of_task}


def _best_known(run: Run, runs: list[Run]) -> Run:
    """Of a training's own test and others of it with the same options, that of most episodes."""
    same = [test for test in runs if test.again == run.folder and not test.differing]
    return max([run, *same], key=lambda test: test.result["test_episodes"])


def _tests_of_others(task: Task, runs: list[Run], chosen: dict[Task, dict[str, list[Run]]]) -> list[Run]:
    """Tests on the task that are no training's own, first those with the training's options, and of most episodes."""
    trained = [run for groups in chosen.values() for group in groups.values() for run in group]
    alike = {run.alike for run in trained if run in runs and run.trained_on[0] == task[0]}
    tests = [run for run in runs if run.result and not run.rows and run.tested_on == task]
    if any(run in trained for run in runs):
        tests = [run for run in tests if run.alike in alike]
    return sorted(tests, key=lambda run: (len(run.differing.keys() - TASK), -run.result["test_episodes"]))
