"""How the time of newton_head, solve and implicit gradient, grows with tasks, ways, shots and features.

One of them grows at a time from a middle setting; the exponent is the slope of log time against log size over the
larger half of the sizes, of the whole time and of the time a Newton step. Expected for the latter is what the operation
count says for large sizes, by the solver that `method="auto"` picks there: conjugate gradient's products W f_s are
T N S d = T N^2 K d a step, and factorisations in sample space, where S = N K <= LARGEST_FACTOR, N blocks of S^3.

    python benchmarks/heads.py --out results/benchmarks
"""

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from worker import a_head_problem  # noqa: E402

from benchmarks import save  # noqa: E402
from common.command import command  # noqa: E402
from common.meters import keep_memory  # noqa: E402
from common.newton import newton_head  # noqa: E402
from common.shards import UsageError  # noqa: E402

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
    """largest size of any kind"""
    out: Path | None = None
    """folder for heads.json, .md and .png"""

    def __post_init__(self):
        if self.most < 64 or self.repeats < 1:
            raise UsageError(f"--most {self.most}, --repeats {self.repeats}: expected 64 or more, and 1 or more")


def seconds_of(setting: dict) -> tuple[float, float]:
    """(seconds of a solve and its implicit gradient, median number of Newton steps)"""
    f, y, strength = a_head_problem(setting)
    f.requires_grad_()
    W0, strength_ = f.new_zeros(setting["ways"], f.shape[2]), torch.tensor(strength)
    v = torch.randn(len(f), *W0.shape, generator=torch.Generator().manual_seed(1))
    start = time.perf_counter()
    solved = newton_head(f, y, W0, strength_)
    solved.value.backward(v)
    return time.perf_counter() - start, float(solved.iterations.median())


def exponent(sizes: list[int], times: list[float]) -> float:
    half = min(len(sizes) // 2, len(sizes) - 2)
    return float(np.polyfit(np.log(sizes[half:]), np.log(times[half:]), 1)[0])


def plot(rows: list[dict], picture: Path) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(rows), figsize=(13, 3.4), layout="constrained", sharey=True)
    for axes, row in zip(panels, rows):
        axes.loglog(row["sizes"], row["ms"], marker="o", label=f"measured, exponent {row['exponent']:.2f}")
        last = np.array(row["sizes"][len(row["sizes"]) // 2 :])
        axes.loglog(last, row["ms"][-1] * (last / last[-1]) ** row["expected"], "--", color="tab:gray",
                    label=f"expected, {row['expected']}")  # fmt: skip
        axes.set(xlabel=row["grows"])
        axes.set_xticks(row["sizes"], row["sizes"])
        axes.minorticks_off()
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="ms, solve and implicit gradient")
    figure.suptitle(", ".join(f"{v} {k}" for k, v in MIDDLE.items()) + ", but for the one that grows", fontsize=10)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def main() -> None:
    options = tyro.cli(Options)
    keep_memory()
    rows = []
    for name, sizes in tqdm(SIZES.items(), leave=False):
        sizes = [size for size in sizes if size <= options.most]
        measured = {size: [] for size in sizes}
        for _ in range(options.repeats + 1):
            for size in sizes:
                measured[size].append(seconds_of(MIDDLE | {name: size}))
        ms = [1e3 * statistics.median(seconds for seconds, _ in measured[size][1:]) for size in sizes]
        steps = [measured[size][0][1] for size in sizes]
        row = {"grows": name, "sizes": sizes, "ms": ms, "newton_steps": steps, "expected": EXPECTED[name]}
        a_step = [t / n for t, n in zip(ms, steps)]
        rows.append(row | {"exponent": exponent(sizes, ms), "exponent_of_a_step": exponent(sizes, a_step)})
    lines = ["| grows | ms (Newton steps) at each size | exponent | of a Newton step | expected |", "| --- " * 5 + "|"]
    for row in rows:
        cells = ", ".join(f"{s}: {t:.1f} ({n:.0f})" for s, t, n in zip(row["sizes"], row["ms"], row["newton_steps"]))
        shown = [row["grows"], cells, *(f"{row[key]:.2f}" for key in ("exponent", "exponent_of_a_step"))]
        lines.append(f"| {' | '.join(shown)} | {row['expected']} |")
    table = "\n".join(lines) + "\n"
    print(table)
    if options.out:
        save(options.out, "heads", {"middle": MIDDLE, "rows": rows}, table)
        plot(rows, options.out / "heads.png")


if __name__ == "__main__":
    command(main)
