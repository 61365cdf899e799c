"""Whether memory stays flat: resident memory and page faults a meta-step over thousands of them, for each algorithm.

Each runs in a process of its own, with its settings for the data set and the allocator setting of a training run. A
step that faults no page in works on memory that the process has already; a leak, such as a graph that a logged tensor
keeps alive, shows as growth between the quarters.

    python benchmarks/steady.py --steps 5000 --out results/benchmarks
"""

import importlib
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tqdm import trange

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import SCRIPTS, save  # noqa: E402
from common import meters  # noqa: E402
from common.episodes import EpisodeLoader  # noqa: E402
from common.run import command, keep_memory, outer_optimizer  # noqa: E402

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


def resident_mib() -> float:
    """Memory of this process now (Linux; its peak elsewhere)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return meters.peak_mib(torch.device("cpu"))


def measure(options: Options) -> None:
    """Print resident MiB after the skipped steps and after each quarter, and page faults a step in each, as JSON."""
    keep_memory()
    script = importlib.import_module(options.one)
    settings = script.SETTINGS.get(options.dataset, script.SETTINGS["other"])
    config = script.Config(**{**settings, "dataset": options.dataset, "width": options.width, "tasks": options.tasks})
    path = options.data_dir / options.dataset / "train.h5"
    shots, queries = config.train_shots or config.shots, config.train_queries or config.queries
    loader = EpisodeLoader(path, config.ways, shots, queries, options.tasks)
    model = script.Model(loader.image_shape, config, torch.device("cpu"))
    optimizer = outer_optimizer(model, config)
    resident, faults, quarter = [], [], options.steps // 4
    for step in trange(SKIPPED + options.steps, leave=False, desc=options.one):
        if step >= SKIPPED and (step - SKIPPED) % quarter == 0:
            resident.append(resident_mib())
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        optimizer.zero_grad()
        script.meta_step(model, loader.sample(), config)
        optimizer.step()
    resident.append(resident_mib())
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
