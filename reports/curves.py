"""The paper's Figures 2 to 5 from our runs: a data set and a number of shots each, against minutes and steps."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from reports.drawing import name_lines, plain, png, style
from reports.methods import ALGORITHMS
from reports.runs import Run, Task, task_name
from reports.smoothness import running_median
from reports.times import Times

PANELS = {
    "val_accuracy": "validation accuracy",
    "train_loss": "training loss",
    "gradient_norm": "norm of the meta-gradient",
    "step_ms": "ms a step",
}
FIGURES = {  # of the paper
    ("omniglot", 5, 5): 2, ("omniglot", 5, 1): 3, ("miniimagenet", 5, 1): 4, ("miniimagenet", 5, 5): 5,
}  # fmt: skip


def figure(task: Task, of_task: dict[str, list[Run]], times: Times) -> bytes:
    """Four panels below each other, against minutes on the left and steps on the right (PNG).

    A line an algorithm, the mean of its seeds where there are several, in a band from the least to the most of them;
    with one seed the accuracy's band is its 95 % interval. Loss and norm are running medians over rows of log.csv.
    """
    drawing, panels = plt.subplots(4, 2, figsize=(10, 13.5), sharey="row", sharex="col")
    drawing.subplots_adjust(left=0.08, right=0.845, top=0.955, bottom=0.045, hspace=0.1, wspace=0.06)
    others = [name for name in of_task if name not in ALGORITHMS]
    named = []
    for (name, title), row in zip(PANELS.items(), panels):
        ends: list[dict[str, tuple]] = [{}, {}]
        for algorithm, group in of_task.items():
            if not all(np.isfinite(run.column(name)).any() for run in group):
                continue  # a copied script's meta_step needn't return a loss
            how = style(algorithm, others)
            steps, middle, low, high = band(group, name, times)
            for axes, x, its_ends in zip(row, (times.minutes(group[0], steps), steps), ends):
                axes.plot(x, middle, linewidth=1.7, **how)
                axes.fill_between(x, low, high, color=how["color"], alpha=0.15, linewidth=0)
                its_ends[group[0].method] = x[-1], middle[-1], how["color"]
        row[0].set_ylabel(title)
        scale(row[0], name)
        for axes in row:
            axes.set_xscale("log")
            plain(axes)
        named.append((row[1], ends[1]))
    panels[0, 1].set_xlim(right=max(run.column("step")[-1] for group in of_task.values() for run in group))
    for axes, ends_there in named:  # now that the limits are as they stay
        name_lines(axes, ends_there)
    drawing.align_ylabels(panels[:, 0])
    for axes, label in zip(panels[-1], ("minutes of training", "meta-steps")):
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))  # more of them meet at the larger numbers
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    number = f"Figure {FIGURES[task]} of the paper from our runs: " if task in FIGURES else ""
    drawing.suptitle(f"{number}{task_name(task)}", fontsize=13)
    return png(drawing)


def band(group: list[Run], name: str, times: Times) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of the column `name` of several seeds: steps, and there the mean, and the lower and upper edge of its band."""
    lines = [line(run, name, times) for run in group]
    steps = max((steps for steps, _ in lines), key=len)
    steps = steps[steps <= min(its[-1] for its, _ in lines)]
    values = np.stack([np.interp(steps, its, value) for its, value in lines])
    if len(group) > 1 or name != "val_accuracy":
        return steps, values.mean(0), values.min(0), values.max(0)
    its, half = line(group[0], "val_ci95", times)
    return steps, values[0], values[0] - half, values[0] + half


def line(run: Run, name: str, times: Times) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a column, where it has numbers."""
    steps, values = run.column("step"), times.step_ms(run) if name == "step_ms" else run.column(name)
    there = np.isfinite(values)
    steps, values = steps[there], values[there]
    if name in ("train_loss", "gradient_norm") or (name == "step_ms" and times.row(run) is None):
        values = running_median(values)
    return steps, values


def scale(axes: Axes, name: str) -> None:
    """Norms and times of the methods are powers of ten apart; losses fall by some."""
    if name != "val_accuracy":
        axes.set_yscale("log")
        bottom, top = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if top < 20 * bottom else (1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_formatter("{x:.3g}")
