"""How the time of newton_head, solve and implicit gradient, grows with tasks, ways, shots and features.

One of them grows at a time from a middle setting; the exponent is the slope of log time against log size over the
larger half of the sizes, of the whole time and of the time a Newton step. Expected for the latter is what the operation
count says for large sizes, by the solver that `method="auto"` picks there, conjugate gradient: its products are of
S x S matrices by S x N, T N S^2 = T N^3 K^2, and T N S d where S > d; the S x S matrix itself is T S^2 d, once.

    python -m benchmarks.heads --out results/benchmarks
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import markdown, report, seconds_of, start
from benchmarks.problems import STRENGTH, head_problem
from common.meters import keep_memory
from common.newton import newton_head
from common.shards import UsageError

MIDDLE = {"tasks": 16, "ways": 5, "shots": 10, "features": 512}
SIZES = {
    "tasks": (4, 8, 16, 32, 64, 128, 256),
    "ways": (2, 4, 8, 16, 32, 64),
    "shots": (1, 5, 10, 20, 40, 80, 160),
    "features": (16, 64, 128, 256, 512, 1024, 2048, 4096),
}
EXPECTED = {"tasks": 1, "ways": 2, "shots": 1, "features": 1}


@dataclass
class Options:
    repeats: int = 7
    """of each size, in turn, after a first that isn't counted; the median is shown"""
    most: int = 4096
    """largest size of any kind, 64 or more"""
    out: Path | None = None
    """folder for heads.json, .md and .png"""

    def __post_init__(self):
        if self.most < 64 or self.repeats < 1:
            raise UsageError(f"--most {self.most}, --repeats {self.repeats}: expected 64 or more, and 1 or more")


def measure(setting: dict[str, int]) -> tuple[float, float]:
    """(seconds of a solve and its implicit gradient, median number of Newton steps)"""
    f, y = head_problem(**setting)
    f.requires_grad_()
    W0, strength = f.new_zeros(setting["ways"], f.shape[2]), torch.tensor(STRENGTH)
    v = torch.randn(len(f), *W0.shape, generator=torch.Generator().manual_seed(1))
    steps = []

    def solve():
        solved = newton_head(f, y, W0, strength)
        solved.value.backward(v)
        steps.append(solved.iterations)

    return seconds_of(solve, f.device), float(steps[0].median())


def exponent(sizes: list[int], times: list[float]) -> float:
    half = min(len(sizes) // 2, len(sizes) - 2)
    return float(np.polyfit(np.log(sizes[half:]), np.log(times[half:]), 1)[0])


def grown(name: str, options: Options) -> dict:
    """Times and exponents over the sizes of one kind."""
    sizes = [size for size in SIZES[name] if size <= options.most]
    rounds = [[measure(MIDDLE | {name: size}) for size in sizes] for _ in range(options.repeats + 1)]
    steps = [count for _, count in rounds[0]]
    ms = [1e3 * statistics.median(seconds for seconds, _ in of_size) for of_size in zip(*rounds[1:])]
    return {
        "grows": name, "sizes": sizes, "ms": ms, "newton_steps": steps, "expected": EXPECTED[name],
        "exponent": exponent(sizes, ms), "exponent_of_a_step": exponent(sizes, np.divide(ms, steps)),
    }  # fmt: skip


def as_table(rows: list[dict]) -> str:
    shown = []
    for row in rows:
        cells = (f"{s}: {t:.1f} ({n:.0f})" for s, t, n in zip(row["sizes"], row["ms"], row["newton_steps"]))
        exponents = [f"{row[key]:.2f}" for key in ("exponent", "exponent_of_a_step")]
        shown.append([row["grows"], ", ".join(cells), *exponents, row["expected"]])
    return markdown(["grows", "ms (Newton steps) at each size", "exponent", "of a Newton step", "expected"], shown)


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(rows), figsize=(13, 3.4), layout="constrained", sharey=True)
    for axes, row in zip(panels, rows):
        axes.loglog(row["sizes"], row["ms"], marker="o", label=f"measured, exponent {row['exponent']:.2f}")
        last = np.array(row["sizes"][len(row["sizes"]) // 2 :])
        expected = row["ms"][-1] * (last / last[-1]) ** row["expected"]
        axes.loglog(last, expected, "--", color="tab:gray", label=f"expected, {row['expected']}")
        axes.set(xlabel=row["grows"])
        axes.set_xticks(row["sizes"], row["sizes"])
        axes.minorticks_off()
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    panels[0].set(ylabel="ms, solve and implicit gradient")
    figure.suptitle(", ".join(f"{v} {k}" for k, v in MIDDLE.items()) + ", but for the one that grows", fontsize=10)
    figure.savefig(path, dpi=110)


def main(options: Options) -> None:
    keep_memory()
    rows = [grown(name, options) for name in tqdm(SIZES, leave=False)]
    report(options.out, "heads", {"middle": MIDDLE, "rows": rows}, as_table(rows))
    if options.out:
        plot(rows, options.out / "heads.png")


if __name__ == "__main__":
    start(main, Options)
