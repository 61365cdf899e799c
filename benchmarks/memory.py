"""Peak memory and time of a meta-step against the number of inner steps, or of tasks, for all six algorithms.

Every cell runs in a process of its own, whose peak resident memory (on CUDA: peak allocated memory) is read after a
few meta-steps. MAML keeps the graph of its inner steps and grows with them; iMAML and Convex iMAML don't. Freed memory
goes back to the system here, so that the peak is of memory in use, the same to 1 MiB in every process; the faults that
come of it make a meta-step slower than in training.

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

from benchmarks import SCRIPTS, OnData, in_own_process, markdown, picture, report, seconds_of, start
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
    inner_steps: tuple[int, ...] = ()
    """1 5 10 20 50 where they grow, else 5"""
    tasks: tuple[int, ...] = ()
    """of a meta-step: 1 4 16 64 where they grow, else 4"""
    width: int = 64
    meta_steps: int = 3
    """measured; the first of them is left out of the time"""
    device: str = "cpu"

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


def measure(name: str, steps: int, tasks: int, options: Options) -> dict:
    """A cell: an algorithm, with so many inner steps and tasks."""
    script, device = importlib.import_module(name), torch.device(options.device)
    config = script.Config(width=options.width, **settings(name, steps))
    loader = EpisodeLoader(options.train_file, 5, 1, 15, tasks, device, memory="mapped")
    model = script.Model(loader.image_shape, config, device)
    before, seconds, iterations = meters.peak_mib(device), [], []

    def meta_step(episode):
        done = script.meta_step(model, episode, config)
        if name == "convex_imaml":
            iterations.append(int(done["iterations"].max()))

    for _ in range(options.meta_steps):
        episode = loader.sample()
        seconds.append(seconds_of(lambda: meta_step(episode), device))
        model.zero_grad()
    peak = meters.peak_mib(device)
    return {
        "algorithm": name, "inner_steps": steps, "tasks": tasks, "taken": iterations[-1] if iterations else steps,
        "peak_mib": peak, "above_start_mib": peak - before, "ms": 1e3 * statistics.median(seconds[1:]),
    }  # fmt: skip


def measure_all(options: Options) -> list[dict]:
    """All cells, one after the other."""
    wanted = list(itertools.product(options.algorithms, options.inner_steps, options.tasks))
    return [in_own_process(measure, *cell, options, **RETURNED) for cell in tqdm(wanted, leave=False)]


def as_table(cells: list[dict], options: Options) -> str:
    """Rows of MiB at the peak (ms a meta-step) for each number of what grows, and the growth from least to most; and
    the steps that were taken, where a solver stopped before."""
    sizes = [f"{size} {options.over.replace('_', ' ')}" for size in getattr(options, options.over)]
    rows = []
    for name in options.algorithms:
        row = [cell for cell in cells if cell["algorithm"] == name]
        taken = [f", {cell['taken']} taken" if cell["taken"] != cell["inner_steps"] else "" for cell in row]
        shown = [f"{cell['peak_mib']:.0f} ({cell['ms']:.0f}){also}" for cell, also in zip(row, taken)]
        rows.append([name, *shown, f"{100 * (row[-1]['peak_mib'] / row[0]['peak_mib'] - 1):+.1f} %"])
    return markdown(["peak MiB (ms a meta-step)", *sizes, "growth"], rows)


def plot(cells: list[dict], path: Path, options: Options) -> None:
    fixed = f"{options.tasks[0]} tasks" if options.over == "inner_steps" else f"{options.inner_steps[0]} inner steps"
    with picture(path, 2, (10, 3.8)) as (_, panels):
        for axes, key, label in zip(panels, ("peak_mib", "ms"), ("peak memory, MiB", "ms a meta-step")):
            for name in options.algorithms:
                values = [cell[key] for cell in cells if cell["algorithm"] == name]
                axes.plot(getattr(options, options.over), values, marker="o", label=name)
            axes.set(xlabel=options.over.replace("_", " "), ylabel=label)
        panels[0].set(title=f"{options.dataset}, {fixed}")
        panels[0].legend()


def main(options: Options) -> None:
    cells = measure_all(options)
    name = f"memory-{'tasks-' if options.over == 'tasks' else ''}{options.dataset}"
    described = {k: str(v) for k, v in dataclasses.asdict(options).items() if k not in ("out", "data_dir")}
    content = {"options": described, "cells": cells}
    report(options.out, name, content, as_table(cells, options), options.device)
    if options.out:
        plot(cells, options.out / f"{name}.png", options)


if __name__ == "__main__":
    start(main, Options)
