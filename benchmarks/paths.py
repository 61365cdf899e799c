"""Path independence: any convex routine leads to the same final layer and, through it, to the same meta-gradient.

The paper's section 3.4 says so in its second point. Heads of real episodes are solved by each routine of
benchmarks/routines.py, to a tolerance that shrinks tenfold each time, and the table has the time, the distance from the
optimum, and that of the implicit meta-gradient, both relative and the largest of all tasks. The optimum is Newton's to
the last digit, in float64, as everything here.

    python -m benchmarks.paths --dataset omniglot --run results/convex_imaml-omniglot --out results/benchmarks

scikit-learn is left out with a note where it isn't installed (benchmarks/requirements.txt).
"""

import statistics
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks import markdown, real, report, seconds_of, start
from benchmarks.real import Heads
from benchmarks.routines import ROUTINES, newton
from common.meters import keep_memory
from common.newton import ProximalHead
from common.shards import UsageError

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#000000", "#E69F00", "#CC79A7")  # of Okabe and Ito's palette
MARKS = "osv^D*"


@dataclass
class Options(real.Options):
    tasks: int = 16
    digits: int = 8
    """d: the smallest tolerance is 10 to the power -d"""
    repeats: int = 5
    """of which the median time counts, after one that doesn't"""

    def __post_init__(self):
        if not 1 <= self.digits <= 12:
            raise UsageError(f"--digits {self.digits}: expected 1 to 12, as float64 has no more")


def meta_gradient(heads: Heads, W: Tensor) -> Tensor:
    """Of the mean query loss through heads W, as implicit differentiation has it at W, whatever led there: to every
    task's support features, its part of W0's, and of the strength's, in one row.   (T, n)"""
    f = heads.features.clone().requires_grad_()
    method = "cholesky" if f.shape[1] <= 200 else "cg"
    problem = ProximalHead(f, heads.labels, heads.W0, heads.strength, method)
    at = W.detach().clone().requires_grad_()
    loss = F.cross_entropy((heads.scale * heads.f_query @ at.mT).flatten(0, 1), heads.y_query.flatten())
    (v,) = torch.autograd.grad(loss, at)
    u = problem.solve(problem.probabilities(W), v, tolerance=1e-14).detach()
    (to_features,) = torch.autograd.grad(-(u * problem.gradient(W, problem.probabilities(W))).sum(), f)
    to_strength = -(u * (W - heads.W0)).sum((1, 2))
    return torch.cat([to_features.flatten(1), heads.strength * u.flatten(1), to_strength[:, None]], 1)


def apart(value: Tensor, exact: Tensor, scale: Tensor | None = None) -> float:
    """The largest relative distance of all tasks."""
    scale = exact if scale is None else scale
    return float(((value - exact).flatten(1).norm(dim=1) / scale.flatten(1).norm(dim=1)).max())


def measure(heads: Heads, options: Options) -> list[dict]:
    """A row a routine and tolerance."""
    optimum = newton(heads, None, 1e-14)
    way = (optimum - heads.W0).flatten(1).norm(dim=1)  # (T,)
    exact = meta_gradient(heads, optimum)
    rows = []
    for name, solve in tqdm(ROUTINES.items(), leave=False):
        for digit in range(1, options.digits + 1):
            tolerance = 10.0**-digit
            found = []

            def work():
                found.append(solve(heads, way, tolerance))

            try:
                seconds = [seconds_of(work, heads.W0.device) for _ in range(options.repeats + 1)][1:]
            except ImportError as error:
                print(
                    f"note: {name} is left out ({error}); pip install -r benchmarks/requirements.txt", file=sys.stderr
                )
                break
            rows.append({
                "routine": name, "tolerance": tolerance, "ms": 1e3 * statistics.median(seconds),
                "distance": apart(found[-1], optimum, optimum - heads.W0),
                "gradient_distance": apart(meta_gradient(heads, found[-1]), exact),
            })  # fmt: skip
    return rows


def as_table(rows: list[dict]) -> str:
    """Every second tolerance, for people."""
    shown = [
        [row["routine"], f"{row['tolerance']:.0e}", f"{row['ms']:.1f}", f"{row['distance']:.1e}",
         f"{row['gradient_distance']:.1e}"]
        for row in rows
        if round(1 / row["tolerance"]) in (100, 10**4, 10**6, 10**8, 10**10)
    ]  # fmt: skip
    heads = ["routine", "tolerance", "ms, all tasks", "distance from the optimum", "of the meta-gradient"]
    return markdown(heads, shown or [["none"] * len(heads)])


def plot(rows: list[dict], title: str) -> bytes:
    """Distances against time and tolerance, and of the meta-gradient against that of W."""
    from matplotlib import pyplot as plt

    from reports.drawing import plain, png

    axes_of = {
        "ms": ("ms, all tasks", "distance"), "tolerance": ("tolerance asked for", "distance"),
        "distance": ("distance of W from the optimum", "gradient_distance"),
    }  # fmt: skip
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained")
    for axes, (x, (label, y)) in zip(panels, axes_of.items()):
        for (name, colour), mark in zip(zip(ROUTINES, COLOURS), MARKS):
            mine = [row for row in rows if row["routine"] == name]
            if mine:
                values = [[max(row[key], 1e-17) for row in mine] for key in (x, y)]
                axes.loglog(*values, color=colour, marker=mark, markersize=4, linewidth=1.2, label=name)
        axes.set(xlabel=label, ylabel="distance of W" if y == "distance" else "distance of the meta-gradient")
        plain(axes)
    panels[1].invert_xaxis()
    panels[2].invert_xaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.suptitle(title, fontsize=11)
    return png(figure)


def main(options: Options) -> None:
    keep_memory()
    rows = measure(next(real.heads(options, options.tasks)), options)
    task = f"{options.dataset} {options.ways}-way {options.shots}-shot, {options.tasks} test episodes"
    title = f"{task}, features of {options.whose}"
    name = f"paths-{options.dataset}-{options.shots}shot"
    report(options.out, name, {"task": title, "rows": rows}, f"{title}\n\n{as_table(rows)}")
    if options.out:
        (options.out / f"{name}.png").write_bytes(plot(rows, title))


if __name__ == "__main__":
    start(main, Options)
