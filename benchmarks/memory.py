"""Peak memory and time of a meta-step against the number of inner steps, or of tasks, for all six algorithms.

Every cell runs in a process of its own, whose peak resident memory (on CUDA: peak allocated memory) is read after a
few meta-steps. MAML keeps the graph of its inner steps and grows with them; iMAML and Convex iMAML don't. Freed memory
goes back to the system here, so that the peak is of memory in use, the same to 1 MiB in every process; the faults that
come of it make a meta-step slower than in training.

    python benchmarks/memory.py --out results/benchmarks
    python benchmarks/memory.py --over tasks --out results/benchmarks
"""

import dataclasses
import importlib
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import SCRIPTS, save  # noqa: E402
from common import meters  # noqa: E402
from common.command import command  # noqa: E402
from common.episodes import EpisodeLoader  # noqa: E402
from common.shards import UsageError  # noqa: E402


@dataclass
class Options:
    dataset: str = "omniglot"
    data_dir: Path = ROOT / "data"
    algorithms: tuple[str, ...] = SCRIPTS
    over: Literal["inner_steps", "tasks"] = "inner_steps"
    """what grows"""
    inner_steps: tuple[int, ...] = ()
    """1 5 10 20 50 where they grow, else 5"""
    tasks: tuple[int, ...] = ()
    """of a meta-step: 1 4 16 64 where they grow, else 4"""
    width: int = 64
    meta_steps: int = 3
    """measured; the first of them is left out of the time"""
    device: str = "cpu"
    out: Path | None = None
    """folder for memory-DATASET.md, .json and .png, or memory-tasks-DATASET.md and so on"""
    cell: tuple[str, int, int] | None = None
    """one algorithm, number of inner steps and of tasks, measured in this process"""

    def __post_init__(self):
        self.inner_steps = self.inner_steps or ((1, 5, 10, 20, 50) if self.over == "inner_steps" else (5,))
        self.tasks = self.tasks or ((1, 4, 16, 64) if self.over == "tasks" else (4,))
        fixed = "tasks" if self.over == "inner_steps" else "inner_steps"
        if len(getattr(self, fixed)) > 1 or self.meta_steps < 2:
            raise UsageError(
                f"--{fixed.replace('_', '-')} {getattr(self, fixed)}, --meta-steps {self.meta_steps}: expected one "
                f"value of what doesn't grow, and 2 meta-steps or more"
            )


def settings(name: str, steps: int) -> dict:
    """The same network for all, and so many inner steps: Convex iMAML's solver, for want of a tolerance, takes them, or
    as many as there are until rounding lets it move no further, and then, as it hasn't converged, again in float64."""
    own = {"newton_steps": steps, "tolerance": 0.0} if name == "convex_imaml" else {"inner_steps": steps}
    return {"block": "norm-pool", "precision": "float32", **own}


# glibc otherwise raises the size from which a block is returned when freed, and what it keeps differs by chance
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(options: Options) -> None:
    """Print one cell as JSON."""
    name, steps, tasks = options.cell
    script, device = importlib.import_module(name), torch.device(options.device)
    config = script.Config(width=options.width, **settings(name, steps))
    path = options.data_dir / options.dataset / "train.h5"
    loader = EpisodeLoader(path, 5, 1, 15, tasks, device, memory="mapped")
    model = script.Model(loader.image_shape, config, device)
    before, seconds, taken = meters.peak_mib(device), [], steps
    for _ in range(options.meta_steps):
        episode = loader.sample()
        start = meters.clock(device)
        statistics_ = script.meta_step(model, episode, config)
        seconds.append(meters.clock(device) - start)
        if name == "convex_imaml":
            taken = int(statistics_["iterations"].max())
        model.zero_grad()
    cell = {
        "algorithm": name,
        "inner_steps": steps,
        "tasks": tasks,
        "taken": taken,
        "peak_mib": meters.peak_mib(device),
    }
    cell |= {"above_start_mib": cell["peak_mib"] - before, "ms": 1e3 * statistics.median(seconds[1:])}
    print(json.dumps(cell))


def main() -> None:
    options = tyro.cli(Options)
    if options.cell:
        return measure(options)
    cells = []
    arguments = [f"--{k.replace('_', '-')}={getattr(options, k)}" for k in ("dataset", "data_dir", "width")]
    arguments += [f"--meta-steps={options.meta_steps}", f"--device={options.device}"]
    wanted = [(name, k, t) for name in options.algorithms for k in options.inner_steps for t in options.tasks]
    for name, steps, tasks in tqdm(wanted):
        worker = [sys.executable, __file__, *arguments, "--cell", name, str(steps), str(tasks)]
        done = subprocess.run(worker, capture_output=True, text=True, env=os.environ | RETURNED)
        if done.returncode:
            raise SystemExit(done.stderr)
        cells.append(json.loads(done.stdout.splitlines()[-1]))
    table = as_table(cells, options)
    print(table)
    if options.out:
        name = f"memory-{'tasks-' if options.over == 'tasks' else ''}{options.dataset}"
        described = {k: str(v) for k, v in dataclasses.asdict(options).items() if k not in ("cell", "out", "data_dir")}
        save(options.out, name, {"options": described, "cells": cells}, table, options.device)
        plot(cells, options.out / f"{name}.png", options)


def as_table(cells: list[dict], options: Options) -> str:
    """Rows of MiB at the peak (ms a meta-step) for each number of what grows, and the growth from least to most; and
    the steps that were taken, where a solver stopped before."""
    sizes, unit = getattr(options, options.over), options.over.replace("_", " ")
    lines = ["| peak MiB (ms a meta-step) | " + " | ".join(f"{k} {unit}" for k in sizes) + " | growth |"]
    lines.append("| --- " * (len(sizes) + 2) + "|")
    for name in options.algorithms:
        row = [cell for cell in cells if cell["algorithm"] == name]
        peaks = [cell["peak_mib"] for cell in row]
        shown = [
            f"{cell['peak_mib']:.0f} ({cell['ms']:.0f})"
            + (f", {cell['taken']} taken" if cell["taken"] != cell["inner_steps"] else "")
            for cell in row
        ]
        lines.append(f"| {name} | {' | '.join(shown)} | {100 * (peaks[-1] / peaks[0] - 1):+.1f} % |")
    return "\n".join(lines)


def plot(cells: list[dict], picture: Path, options: Options) -> None:
    import matplotlib.pyplot as plt

    sizes, unit = getattr(options, options.over), options.over.replace("_", " ")
    fixed = f"{options.tasks[0]} tasks" if options.over == "inner_steps" else f"{options.inner_steps[0]} inner steps"
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name in options.algorithms:
        row = [cell for cell in cells if cell["algorithm"] == name]
        for axes, key in zip(panels, ("peak_mib", "ms")):
            axes.plot(sizes, [cell[key] for cell in row], marker="o", label=name)
    panels[0].set(xlabel=unit, ylabel="peak memory, MiB", title=f"{options.dataset}, {fixed}")
    panels[1].set(xlabel=unit, ylabel="ms a meta-step")
    panels[0].legend()
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    command(main)
