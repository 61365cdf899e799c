"""Peak memory and time of a meta-step against the number of inner steps, or of tasks, for all six algorithms.

Every cell runs in a process of its own, whose peak resident memory (on CUDA: peak allocated memory) is read after a
few meta-steps. Freed memory goes back to the system here, so that the peak is of memory in use, the same to 1 MiB in
every process; the faults that come of it make a meta-step slower than in training.

    python -m benchmarks.memory --out results/benchmarks
    python -m benchmarks.memory --over tasks --out results/benchmarks
"""

import dataclasses
import importlib
import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from benchmarks import SCRIPTS, OnData, in_own_process, markdown, report, start
from common import meters
from common.episodes import EpisodeLoader
from common.shards import UsageError

# glibc otherwise raises the size from which a block is returned when freed, and what it keeps differs by chance
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass
class Options(OnData):
    algorithms: tuple[str, ...] = SCRIPTS
    over: Literal["inner_steps", "tasks"] = "inner_steps"
    """what grows; the files of tasks are memory-tasks-DATASET.md and so on"""
    sizes: tuple[int, ...] = ()
    """of what grows; without them 1 5 10 20 50 inner steps, or 1 4 16 64 tasks"""
    width: int = 64
    meta_steps: int = 3
    """measured, 2 or more; the first of them is left out of the time"""
    device: str = "cpu"

    def __post_init__(self):
        if self.meta_steps < 2:
            raise UsageError(f"--meta-steps {self.meta_steps}: expected 2 or more, as the first isn't timed")
        self.sizes = self.sizes or ((1, 5, 10, 20, 50) if self.over == "inner_steps" else (1, 4, 16, 64))

    @property
    def grid(self) -> dict[str, tuple[int, ...]]:
        """Numbers of inner steps, and of tasks."""
        return {"inner_steps": (5,), "tasks": (4,), self.over: self.sizes}


def measure(name: str, steps: int, tasks: int, options: Options) -> dict:
    """A cell: an algorithm, with so many inner steps and tasks, and the same network for all.

    Convex iMAML's solver, for want of a tolerance, takes these steps, or as many as there are until rounding lets it
    move no further, and then, as it hasn't converged, again in float64.
    """
    script, device = importlib.import_module(name), torch.device(options.device)
    inner = {"newton_steps": steps, "tolerance": 0.0} if name == "convex_imaml" else {"inner_steps": steps}
    config = script.Config(width=options.width, block="norm-pool", precision="float32", **inner)
    loader = EpisodeLoader(options.train_file, 5, 1, 15, tasks, device, memory="mapped")
    model = script.Model(loader.image_shape, config, device)
    before, seconds = meters.peak_mib(device), []
    for _ in range(options.meta_steps):
        episode = loader.sample()
        start = meters.clock(device)
        done = script.meta_step(model, episode, config)
        seconds.append(meters.clock(device) - start)
        model.zero_grad()
    peak = meters.peak_mib(device)
    return {
        "algorithm": name, "inner_steps": steps, "tasks": tasks,
        "taken": int(done["iterations"].max()) if name == "convex_imaml" else steps,
        "peak_mib": peak, "above_start_mib": peak - before, "ms": 1e3 * statistics.median(seconds[1:]),
    }  # fmt: skip


def measure_all(options: Options) -> list[dict]:
    """All cells, one after the other."""
    wanted = list(itertools.product(options.algorithms, *options.grid.values()))
    return [in_own_process(measure, *cell, options, **RETURNED) for cell in tqdm(wanted, leave=False)]


def as_table(cells: list[dict], options: Options) -> str:
    """Rows of MiB at the peak (ms a meta-step) for each number of what grows, and the growth from least to most; and
    the steps that were taken, where a solver stopped before."""
    rows = []
    for name in options.algorithms:
        row = [name]
        of_script = [cell for cell in cells if cell["algorithm"] == name]
        for cell in of_script:
            taken = f", {cell['taken']} taken" if cell["taken"] != cell["inner_steps"] else ""
            row.append(f"{cell['peak_mib']:.0f} ({cell['ms']:.0f}){taken}")
        row.append(f"{100 * (of_script[-1]['peak_mib'] / of_script[0]['peak_mib'] - 1):+.1f} %")
        rows.append(row)
    sizes = [f"{size} {options.over.replace('_', ' ')}" for size in options.sizes]
    return markdown(["peak MiB (ms a meta-step)", *sizes, "growth"], rows)


def plot(cells: list[dict], path: Path, options: Options) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axes, key, label in zip(panels, ("peak_mib", "ms"), ("peak memory, MiB", "ms a meta-step")):
        for name in options.algorithms:
            values = [cell[key] for cell in cells if cell["algorithm"] == name]
            axes.plot(options.sizes, values, marker="o", label=name)
        axes.set(xlabel=options.over.replace("_", " "), ylabel=label)
        axes.grid(alpha=0.3)
    panels[0].set(title=f"{options.dataset}, {'4 tasks' if options.over == 'inner_steps' else '5 inner steps'}")
    panels[0].legend()
    figure.savefig(path, dpi=110)


def main(options: Options) -> None:
    cells = measure_all(options)
    name = f"memory-{'tasks-' if options.over == 'tasks' else ''}{options.dataset}"
    given = dataclasses.asdict(options) | options.grid
    described = {key: str(value) for key, value in given.items() if key not in ("out", "data_dir", "sizes")}
    content = {"options": described, "cells": cells}
    report(options.out, name, content, as_table(cells, options), options.device)
    if options.out:
        plot(cells, options.out / f"{name}.png", options)


if __name__ == "__main__":
    start(main, Options)
