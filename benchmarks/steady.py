"""Whether memory stays flat: resident memory and page faults a meta-step over thousands of them, for each algorithm.

Each runs in a process of its own: whole training steps, with its settings for the data set but for the tasks a step and
the width. A step that faults no page in works on memory that the process has already; a leak, such as a graph that a
logged tensor keeps alive, shows as growth between the quarters.

    python -m benchmarks.steady --steps 5000 --out results/benchmarks
"""

import resource
from dataclasses import dataclass

from tqdm import trange

from benchmarks import SCRIPTS, OnData, in_own_process, markdown, report, start, training
from common import meters
from common.shards import UsageError

SKIPPED = 50  # first steps, in which memory is faulted in


@dataclass
class Options(OnData):
    algorithms: tuple[str, ...] = SCRIPTS
    steps: int = 5000
    tasks: int = 2
    """of a meta-step: few, as memory's growth doesn't depend on them"""
    width: int = 64

    def __post_init__(self):
        if self.steps < 4 or self.steps % 4:
            raise UsageError(f"--steps {self.steps}: expected a multiple of 4, as growth is shown by quarters")


def measure(name: str, options: Options) -> dict:
    """Of an algorithm: resident MiB after the skipped steps and after each quarter, and page faults a step in each."""
    shared = {"data_dir": options.data_dir, "device": "cpu", "tasks": options.tasks, "width": options.width}
    step, _ = training(name, options.dataset, **shared)
    logged = []  # statistics of the steps since the last row, as a run keeps them
    resident, faults, quarter = [], [], options.steps // 4
    for i in trange(SKIPPED + options.steps + 1, leave=False, desc=name):
        if i >= SKIPPED and (i - SKIPPED) % quarter == 0:
            resident.append(meters.resident_mib())
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        logged = [*(logged if i % 50 else []), step()]
    per_step = [(b - a) / quarter for a, b in zip(faults, faults[1:])]
    return {"algorithm": name, "resident_mib": resident, "faults_a_step": per_step}


def as_table(cells: list[dict], steps: int) -> str:
    ends = [f"{SKIPPED + steps * i // 4:,}" for i in range(5)]
    rows = []
    for cell in cells:
        mib = cell["resident_mib"]
        growth = f"{100 * (mib[-1] / mib[0] - 1):+.1f} %"
        rows.append([cell["algorithm"], *(f"{m:.0f}" for m in mib), growth, f"{cell['faults_a_step'][-1]:.2f}"])
    return markdown(["resident MiB after steps", *ends, "growth", "page faults a step, last quarter"], rows)


def main(options: Options) -> None:
    cells = [in_own_process(measure, name, options) for name in options.algorithms]
    content = {key: getattr(options, key) for key in ("dataset", "steps", "tasks", "width")} | {"cells": cells}
    report(options.out, f"steady-{options.dataset}", content, as_table(cells, options.steps))


if __name__ == "__main__":
    start(main, Options)
