"""The breadth of the final layer: --width against accuracy, time and the solver's iterations.

The paper says that the convex methods may only grow in breadth, as the inner loop stays convex for the final layer
alone, and asks how they scale with it. Trainings of equal steps with each width, over seeds, are made as in
benchmarks/compare.py, which also says how the command goes on where it was stopped. When they are done, what a step
takes is measured for all of them in turns, each time that the command is given: nothing else should run then.

    python -m benchmarks.widths --dataset omniglot --steps 2000
"""

import itertools
import json
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import OnData, compare, described, markdown, origin, say_if_busy, start, steps
from benchmarks.worker import side_by_side
from common.shards import ROOT, UsageError
from reports.methods import ALGORITHMS


@dataclass
class Options(OnData):
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    scripts: tuple[str, ...] = ("convex_imaml", "convex_maml")
    steps: int = 1000
    seeds: tuple[int, ...] = (0, 1, 2)
    val_episodes: int = 1000
    turns: int = 20
    """steps of each by which its time is measured"""
    warmup: int = 10
    """steps before those, in which memory is faulted in"""
    device: str = "cpu"
    out: Path = ROOT / "results" / "compare"
    """folder for widths-DATASET.md, .json and .png"""

    def __post_init__(self):
        if len(set(self.widths)) < 2:
            raise UsageError(f"--widths {self.widths}: expected two or more")
        if self.turns < 2:
            raise UsageError(f"--turns {self.turns}: expected 2 or more, as times have quartiles")


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


def times(options: Options) -> list[dict]:
    """Milliseconds of a step, median and quartiles, of each script with each width: a row each."""
    shared = {"first_width": 0, "views": 1, "data_dir": options.data_dir, "device": options.device}
    pieces = {
        (script, width): partial(steps.whole_step, script, options.dataset, 1.0, shared | {"width": width})
        for script, width in itertools.product(options.scripts, options.widths)
    }
    rows = []
    for (script, width), worker in side_by_side(pieces, options.turns, options.warmup).items():
        low, ms, high = steps.quartiles(worker)
        rows.append({"algorithm": script, "width": width, "ms_low": low, "ms": ms, "ms_high": high})
    return rows


def values(runs: list[dict], timed: list[dict], script: str, width: int) -> dict[str, list[float]]:
    """What the picture and the table show of a script with a width: a value a seed, and a step's quartiles."""
    runs, timed = (
        [row for row in rows if (row["algorithm"], row["width"]) == (script, width)] for rows in (runs, timed)
    )
    found = {name: [run[name] for run in runs if name in run] for name in ("val_accuracy", "iterations")}
    return found | {"step_ms": [row[name] for row in timed for name in ("ms_low", "ms", "ms_high")]}


PANELS = {
    "val_accuracy": "validation accuracy",
    "step_ms": "ms a step",
    "iterations": "Newton steps of a head, median",
}


def plot(runs: list[dict], timed: list[dict], options: Options) -> bytes:
    """A line a script over the width: the median of its seeds or steps, and a band from the least to the most of the
    seeds, or from quartile to quartile of the steps."""
    from matplotlib import pyplot as plt

    from reports.drawing import name_lines, plain, png

    figure, panels = plt.subplots(1, 3, figsize=(14, 3.8))
    figure.subplots_adjust(left=0.05, right=0.91, top=0.88, bottom=0.14, wspace=0.7)
    widths = sorted(options.widths)
    for axes, (name, label) in zip(panels, PANELS.items()):
        ends = {}
        for script in options.scripts:
            method = ALGORITHMS[script]
            shown = [values(runs, timed, script, width)[name] for width in widths]
            if not all(shown):  # Convex MAML solves nothing
                continue
            middle, low, high = ([of(its) for its in shown] for of in (statistics.median, min, max))
            axes.plot(widths, middle, color=method.colour, dashes=method.dashes, marker="o", markersize=4)
            axes.fill_between(widths, low, high, color=method.colour, alpha=0.15, linewidth=0)
            ends[method.name] = widths[-1], middle[-1], method.colour
        axes.set(xscale="log", xlabel="filters in a block", ylabel=label)
        axes.set_xticks(widths, widths)
        axes.minorticks_off()
        if name != "val_accuracy":
            axes.set_ylim(bottom=0)
        plain(axes)
        name_lines(axes, ends)
    title = f"{options.dataset}, {options.steps:,} steps, {len(options.seeds)} seeds"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return png(figure)


def as_table(runs: list[dict], timed: list[dict], options: Options) -> str:
    rows = []
    for script, width in itertools.product(options.scripts, sorted(options.widths)):
        shown = values(runs, timed, script, width)
        solver = f"{statistics.median(shown['iterations']):g}" if shown["iterations"] else ""
        low, ms, high = shown["step_ms"]
        accuracies = [
            f"{accuracy:.4f}" for accuracy in (*shown["val_accuracy"], statistics.mean(shown["val_accuracy"]))
        ]
        rows.append([ALGORITHMS[script].name, width, *accuracies, solver, f"{ms:.0f} ({low:.0f} to {high:.0f})"])
    heads = ["method", "filters", *(f"seed {seed}" for seed in options.seeds), "mean", "Newton steps"]
    return markdown([*heads, "ms a step (quartiles)"], rows)


def main(options: Options) -> None:
    its = compared(options)
    compare.main(its)
    say_if_busy()
    timed = times(options)
    path = options.out / f"{its.name}.json"
    content, here = json.loads(path.read_text()), origin(options.device)
    content["times"] = {**here, "rows": timed}
    path.write_text(json.dumps(content, indent=1))
    runs = [run for run in content["runs"] if run["seed"] in options.seeds]
    path.with_suffix(".png").write_bytes(plot(runs, timed, options))
    trained = described({key: content[key] for key in here})
    table = as_table(runs, timed, options)
    print(table)
    about = f"Validation accuracy (inductive, {options.val_episodes:,} episodes) after {options.steps:,} steps"
    about += f" ({', '.join(content['options'])}). Times: {described(here)}"
    path.with_suffix(".md").write_text(f"{trained}\n\n{about}\n\n{table}\n")


if __name__ == "__main__":
    start(main, Options)
