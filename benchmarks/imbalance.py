"""Imbalanced episodes: what each method loses where the classes of a task have unequal numbers of support images.

The paper names them as future work. With --unequal-shots, 5 shots are the mean of a task's classes, each of which has 1
to 9. Every script is trained with equal and with unequal shots, and each of these runs is tested with both, and with
those unequal ones of which images are repeated until all classes have nine (--repeat-support), as predict.py does.

    python -m benchmarks.imbalance --dataset omniglot --steps 2000 --out results/benchmarks
    python -m benchmarks.imbalance --dataset omniglot --of results/maml-omniglot results/reptile-omniglot

A test image has one view, also where a script would average over several, as that takes many times as long. Runs are
RUNS/SCRIPT-DATASET-equal and -unequal, and their tests lie in them. What is there isn't made again. With --of, runs
that exist are tested, and none is trained.
"""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import SCRIPTS, OnData, markdown, report, settings, start
from common.meters import mean_ci95
from common.shards import ROOT
from reports.methods import ALGORITHMS

TRAININGS = {"equal": [], "unequal": ["--unequal-shots"]}
TESTS = {
    "equal": ["--no-unequal-shots"],
    "unequal": ["--unequal-shots"],
    "repeated": ["--unequal-shots", "--repeat-support"],
}


@dataclass
class Options(OnData):
    algorithms: tuple[str, ...] = SCRIPTS
    shots: int = 5
    """of a class, in the mean"""
    queries: int = 10
    """of a class in validation and test: a class of Omniglot has 20 images"""
    steps: int | None = None
    """of every training; by default the script's own for the data set"""
    test_episodes: int = 1000
    device: str = "cpu"
    of: tuple[Path, ...] = ()
    """run folders to test, one a script, in place of trainings; they had equal shots, of any number"""
    runs: Path = ROOT / "runs" / "imbalance"
    """folder for the run folders"""


def command(script: str, *words: object) -> None:
    subprocess.run([sys.executable, ROOT / f"{script}.py", *map(str, words)], check=True)


def asked(script: str, options: Options) -> list:
    """What is the same in all runs and tests of a script."""
    views = hasattr(settings(script, options.dataset)[1], "views")
    words = ["--shots", options.shots, "--queries", options.queries, *(["--views", 1] if views else [])]
    return [*words, "--data-dir", options.data_dir.absolute(), "--device", options.device]


def training(script: str, trained: str, options: Options) -> Path:
    """The folder of a training, which is made or finished unless it is there."""
    run = folder(script, trained, options)
    if (run / "checkpoint.pt").exists() and not (run / "result.json").exists():
        command(script, "--resume", run, "--data-dir", options.data_dir.absolute(), "--device", options.device)
    elif not run.exists():
        words = ["--dataset", options.dataset, *asked(script, options)]
        words += ["--steps", options.steps] if options.steps else []
        command(script, *words, *TRAININGS[trained], "--test-episodes", 2, "--out", run)  # its tests are made below
    return run


def test_of(run: Path, script: str, trained: str, tested: str, options: Options) -> Path:
    """The folder of a run's test, which is made unless it is there."""
    test = folder(script, trained, options) / f"test-{tested}"
    if not (test / "result.json").exists():
        words = ["--evaluate", run, *TESTS[tested], *asked(script, options), "--test-episodes", options.test_episodes]
        command(script, *words, "--out", test)
    return test


def folder(script: str, trained: str, options: Options) -> Path:
    return options.runs / f"{script}-{options.dataset}-{trained}"


def by_shots(test: Path) -> dict[int, tuple[float, float]]:
    """Accuracy, and half of its 95 % interval, of the queries of classes with 1, 2, ... support images, in a test."""
    with np.load(test / "episodes.npz") as kept:
        support, query, predicted = (kept[name] for name in ("support_labels", "query_labels", "predicted"))
        ways = kept["classes"].shape[1]
    counts = (support[:, :, None] == np.arange(ways)).sum(1)  # (E, N)
    of_query = np.take_along_axis(counts, query, 1)  # (E, Q)
    right = predicted == query
    found = {}
    for shots in np.unique(counts):
        chosen = of_query == shots
        some = chosen.any(1)
        of_episodes = (right * chosen).sum(1)[some] / chosen.sum(1)[some]  # queries of an episode aren't independent
        found[int(shots)] = mean_ci95(of_episodes)
    return found


def measure(script: str, given: Path | None, options: Options) -> dict:
    """{"algorithm", "run": of --of, "steps", "tests": {"trained, tested": [accuracy, interval]}, "by_shots": of the run
    with equal shots}."""
    tests = {}
    for trained in ("equal",) if given else TRAININGS:
        run = given or training(script, trained, options)
        for tested in TESTS:
            test = test_of(run, script, trained, tested, options)
            result = json.loads((test / "result.json").read_text())
            tests[f"{trained}, {tested}"] = [result["test_accuracy"], result["test_ci95"]]
    shots = by_shots(folder(script, "equal", options) / "test-unequal")
    about = {"algorithm": script, "run": given.name if given else None, "steps": result["steps"]}
    return about | {"tests": tests, "by_shots": shots}


def as_table(rows: list[dict]) -> str:
    """A line for each training."""
    shown = []
    for row in rows:
        name = ALGORITHMS[row["algorithm"]].name
        about = [f"{name}, {row['run']}" if row["run"] else name, f"{row['steps']:,}"]
        for trained in sorted({kinds.partition(", ")[0] for kinds in row["tests"]}):
            results = [row["tests"][f"{trained}, {tested}"] for tested in TESTS]
            (equal, a), *others = results
            lost = [f"{accuracy - equal:+.4f} ± {math.hypot(a, b):.4f}" for accuracy, b in others]  # independent tests
            shown.append([*about, trained, *("{:.4f} ± {:.4f}".format(*result) for result in results), *lost])
    heads = ["method", "steps", "trained", *(f"tested {tested}" for tested in TESTS)]
    return markdown([*heads, *(f"lost, {tested}" for tested in list(TESTS)[1:])], shown)


def plot(rows: list[dict], title: str) -> bytes:
    """Accuracy of queries against the support images that their class had, in the test of the runs with equal shots."""
    from matplotlib import pyplot as plt

    from reports.drawing import name_lines, plain, png

    figure, axes = plt.subplots(figsize=(7, 4.6))
    figure.subplots_adjust(left=0.1, right=0.78, top=0.9, bottom=0.12)
    ends = {}
    for row in rows:
        method = ALGORITHMS[row["algorithm"]]
        shots = sorted(row["by_shots"])
        values, half = np.array([row["by_shots"][k] for k in shots]).T
        axes.plot(shots, values, color=method.colour, dashes=method.dashes)
        axes.fill_between(shots, values - half, values + half, color=method.colour, alpha=0.15, linewidth=0)
        ends[method.name] = shots[-1], values[-1], method.colour
    axes.set(xlabel="support images of a query's class", ylabel="accuracy", xlim=(min(shots), max(shots)))
    axes.set_xticks(shots)
    axes.set_title(title, fontsize=10, loc="left")
    plain(axes)
    name_lines(axes, ends)
    return png(figure)


def main(options: Options) -> None:
    configs = {run.absolute(): json.loads((run / "config.json").read_text()) for run in options.of}
    given = {about["options"]["algorithm"]: run for run, about in configs.items()}
    rows = [measure(script, given.get(script), options) for script in given or options.algorithms]
    content = {"dataset": options.dataset, "shots": options.shots, "queries": options.queries, "rows": rows}
    title = f"{options.dataset}, 5-way, {options.shots} shots in the mean, {options.test_episodes:,} episodes"
    name = f"imbalance-{options.dataset}{'-released' if options.of else ''}"
    report(options.out, name, content, f"{title}\n\n{as_table(rows)}", options.device)
    if options.out:
        (options.out / f"{name}.png").write_bytes(plot(rows, title))


if __name__ == "__main__":
    start(main, Options)
