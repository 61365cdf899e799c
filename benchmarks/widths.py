"""The breadth of the final layer: --width against accuracy, time and the solver's iterations.

The paper says that the convex methods may only grow in breadth, as the inner loop stays convex for the final layer
alone, and asks how they scale with it. Trainings of equal steps with each width, over seeds, are compared as in
benchmarks/compare.py, which also says how the command goes on where it was stopped; the picture is made of its table.

    python -m benchmarks.widths --dataset omniglot --steps 2000
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from benchmarks import OnData, compare, start
from common.shards import ROOT, UsageError
from reports.methods import ALGORITHMS


@dataclass
class Options(OnData):
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    scripts: tuple[str, ...] = ("convex_imaml", "convex_maml")
    steps: int = 1000
    seeds: tuple[int, ...] = (0, 1, 2)
    val_episodes: int = 1000
    device: str = "cpu"
    out: Path = ROOT / "results" / "compare"
    """folder for widths-DATASET.md, .json and .png"""

    def __post_init__(self):
        if len(set(self.widths)) < 2:
            raise UsageError(f"--widths {self.widths}: expected two or more")


def compared(options: Options) -> compare.Options:
    """All blocks have the width, the first too; one view, as more of them aren't breadth."""
    shared = [f"dataset={options.dataset}", f"steps={options.steps}", f"eval-every={options.steps}", "views=1"]
    shared += ["first-width=0", "test-episodes=300", f"device={options.device}"]
    if options.data_dir != OnData.data_dir:
        shared.append(f"data-dir={options.data_dir.absolute()}")
    return compare.Options(
        name=f"widths-{options.dataset}", variants=tuple(f"width={width}" for width in options.widths),
        scripts=tuple(f"{script}.py" for script in options.scripts), options=tuple(shared), seeds=options.seeds,
        val_episodes=options.val_episodes, out=options.out,
    )  # fmt: skip


PANELS = {
    "val_accuracy": "validation accuracy",
    "step_ms": "ms a step",
    "iterations": "Newton steps of a head, median",
}


def plot(runs: list[dict], title: str) -> bytes:
    """A line a script, the mean of its seeds with the least and the most of them, against the width."""
    from matplotlib import pyplot as plt

    from reports.drawing import name_lines, plain, png

    figure, panels = plt.subplots(1, 3, figsize=(13, 3.8))
    figure.subplots_adjust(left=0.055, right=0.9, top=0.88, bottom=0.14, wspace=0.55)
    widths = sorted({run["width"] for run in runs})
    for axes, (name, label) in zip(panels, PANELS.items()):
        ends = {}
        for script in dict.fromkeys(run["algorithm"] for run in runs if name in run):
            method = ALGORITHMS[script]
            of_script = [run for run in runs if run["algorithm"] == script]
            values = [[run[name] for run in of_script if run["width"] == width] for width in widths]
            means, low, high = ([of(its) for its in values] for of in (statistics.mean, min, max))
            axes.plot(widths, means, color=method.colour, dashes=method.dashes, marker="o", markersize=4)
            axes.fill_between(widths, low, high, color=method.colour, alpha=0.15, linewidth=0)
            ends[method.name] = widths[-1], means[-1], method.colour
        axes.set(xscale="log", xlabel="filters in a block", ylabel=label)
        axes.set_xticks(widths, widths)
        axes.minorticks_off()
        if name != "val_accuracy":
            axes.set_ylim(bottom=0)
        plain(axes)
        name_lines(axes, ends)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return png(figure)


def main(options: Options) -> None:
    its = compared(options)
    compare.main(its)
    runs = json.loads((options.out / f"{its.name}.json").read_text())["runs"]
    title = f"{options.dataset}, {options.steps:,} steps, {len(options.seeds)} seeds"
    (options.out / f"{its.name}.png").write_bytes(plot(runs, title))


if __name__ == "__main__":
    start(main, Options)
