"""Whether memory stays flat: resident memory and page faults a meta-step over thousands of them, for each algorithm.

Each runs in a process of its own: whole training steps, with its settings for the data set but for the tasks a step and
the width. A step that faults no page in works on memory that the process has already; a leak, such as a graph that a
logged tensor keeps alive, shows as growth between the quarters.

    python benchmarks/steady.py --steps 5000 --out results/benchmarks
"""

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import trange

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import SCRIPTS, save, training  # noqa: E402
from common import meters  # noqa: E402
from common.command import command  # noqa: E402
from common.shards import UsageError  # noqa: E402

SKIPPED = 50  # first steps, in which memory is faulted in


@dataclass
class Options:
    dataset: str = "omniglot"
    data_dir: Path = ROOT / "data"
    algorithms: tuple[str, ...] = SCRIPTS
    steps: int = 5000
    tasks: int = 2
    """of a meta-step: few, as memory's growth doesn't depend on them"""
    width: int = 64
    out: Path | None = None
    """folder for steady-DATASET.md and .json"""
    one: str | None = None
    """one algorithm, measured in this process"""

    def __post_init__(self):
        if self.steps < 4 or self.steps % 4:
            raise UsageError(f"--steps {self.steps}: expected a multiple of 4, as growth is shown by quarters")


def measure(options: Options) -> None:
    """Print resident MiB after the skipped steps and after each quarter, and page faults a step in each, as JSON."""
    shared = {"data_dir": options.data_dir, "device": "cpu", "tasks": options.tasks, "width": options.width}
    step, _ = training(options.one, options.dataset, **shared)
    logged = []  # statistics of the steps since the last row, as a run keeps them
    resident, faults, quarter = [], [], options.steps // 4
    for i in trange(SKIPPED + options.steps, leave=False, desc=options.one):
        if i >= SKIPPED and (i - SKIPPED) % quarter == 0:
            resident.append(meters.resident_mib())
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        logged = [*(logged if i % 50 else []), step()]
    resident.append(meters.resident_mib())
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    per_step = [(b - a) / quarter for a, b in zip(faults, faults[1:])]
    print(json.dumps({"algorithm": options.one, "resident_mib": resident, "faults_a_step": per_step}))


def as_table(cells: list[dict], steps: int) -> str:
    ends = [f"{SKIPPED + steps * i // 4:,}" for i in range(5)]
    heads = ["resident MiB after steps", *ends, "growth", "page faults a step, last quarter"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for cell in cells:
        mib = cell["resident_mib"]
        growth = f"{100 * (mib[-1] / mib[0] - 1):+.1f} %"
        shown = [cell["algorithm"], *(f"{m:.0f}" for m in mib), growth, f"{cell['faults_a_step'][-1]:.2f}"]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    options = tyro.cli(Options)
    if options.one:
        return measure(options)
    given = [
        f"--{k.replace('_', '-')}={getattr(options, k)}" for k in ("dataset", "data_dir", "steps", "tasks", "width")
    ]
    cells = []
    for name in options.algorithms:
        done = subprocess.run([sys.executable, __file__, *given, "--one", name], stdout=subprocess.PIPE, check=True)
        cells.append(json.loads(done.stdout))
    table = as_table(cells, options.steps)
    print(table)
    if options.out:
        about = {k: getattr(options, k) for k in ("dataset", "steps", "tasks", "width")}
        save(options.out, f"steady-{options.dataset}", about | {"cells": cells}, table)


if __name__ == "__main__":
    command(main)
