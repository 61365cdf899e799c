"""The convergence certificate of Convex iMAML's heads over thousands of real episodes, Newton step by Newton step.

The inner objective is strongly convex with modulus `strength`, so that |W - W*| <= |grad G(W)| / strength: a guarantee
that costs one gradient, and needs no knowledge of W*. The table has its quantiles after each number of Newton steps,
relative to the way |W* - W0|, and the share of episodes within the script's tolerance. For some of the episodes the
true distance from the optimum stands beside it, and how often the certificate was smaller: never, but for rounding.

    python -m benchmarks.certificate --dataset omniglot --run results/convex_imaml-omniglot --out results/benchmarks
"""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import markdown, real, report, start
from benchmarks.real import Heads
from common.meters import keep_memory
from common.newton import ProximalHead, newton_head
from common.shards import UsageError

QUANTILES = (50, 90, 99, 100)  # per cent


@dataclass
class Options(real.Options):
    episodes: int = 10_000
    steps: int = 8
    """the largest number of Newton steps"""
    tasks: int = 50
    """solved at a time"""
    checked: int = 500
    """episodes whose true distance from the optimum is found too"""
    tolerance: float = 1e-4
    """the certificate, relative to |W* - W0|, that counts as converged; that of convex_imaml.py by default"""

    def __post_init__(self):
        if self.episodes % self.tasks or self.checked > self.episodes:
            raise UsageError(
                f"--episodes {self.episodes} and --checked {self.checked}: expected a multiple of --tasks "
                f"{self.tasks}, and no more checked than there are"
            )


def certificates(heads: Heads, steps: int, optimum: torch.Tensor | None) -> tuple[np.ndarray, np.ndarray | None]:
    """After 0, 1, ... steps of Newton's method: the certificate and, where the optimum is given, the distance from it,
    relative to the way to it, or to the last head.   (steps + 1, T) each"""
    f, y, W0, strength = heads.features, heads.labels, heads.W0, heads.strength
    problem = ProximalHead(f, y, W0, strength, "cg")
    by_steps = [newton_head(f, y, W0, strength, tolerance=0.0, iterations=count).value for count in range(steps + 1)]
    last = by_steps[-1] if optimum is None else optimum
    way = (last - W0).flatten(1).norm(dim=1)
    found, distance = [], []
    for W in by_steps:
        residual = problem.gradient(W, problem.probabilities(W)).flatten(1).norm(dim=1)
        found.append(residual / strength / way)
        distance.append((W - last).flatten(1).norm(dim=1) / way)
    return torch.stack(found).numpy(), None if optimum is None else torch.stack(distance).numpy()


def measure(options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Certificates (steps + 1, episodes), and distances (steps + 1, checked)."""
    drawn = real.heads(options, options.tasks, queries=1)  # which a certificate has no use for
    found, distances = [], []
    for i in tqdm(range(options.episodes // options.tasks), leave=False):
        heads = next(drawn)
        optimum = None
        if i * options.tasks < options.checked:
            f, y, W0, strength = heads.features, heads.labels, heads.W0, heads.strength
            optimum = newton_head(f, y, W0, strength, tolerance=1e-14, iterations=100).value
        certificate, distance = certificates(heads, options.steps, optimum)
        found.append(certificate)
        if distance is not None:
            distances.append(distance)
    return np.concatenate(found, 1), np.concatenate(distances, 1)[:, : options.checked]


def rows_of(found: np.ndarray, distances: np.ndarray, tolerance: float) -> list[dict]:
    """A row a number of steps. A certificate below the distance by more than rounding would be a false one."""
    rows = []
    for step, (certificate, distance) in enumerate(zip(found, distances)):
        row = {"steps": step, "share": float((certificate <= tolerance).mean())}
        row |= {f"q{q}": float(np.percentile(certificate, q)) for q in QUANTILES}
        row |= {"distance": float(np.median(distance))}
        false = certificate[: len(distance)] < distance * (1 - 1e-9) - 1e-12
        rows.append(row | {"false": int(false.sum())})
    return rows


def as_table(rows: list[dict]) -> str:
    shown = []
    for row in rows:
        quantiles = [f"{row[f'q{q}']:.1e}" for q in QUANTILES]
        shown.append([row["steps"], *quantiles, f"{100 * row['share']:.2f}", f"{row['distance']:.1e}", row["false"]])
    names = ["median", "90 %", "99 %", "largest"]
    heads = ["Newton steps", *(f"certificate, {name}" for name in names), "% within tolerance"]
    return markdown([*heads, "true distance, median", "certificates below it"], shown)


def plot(rows: list[dict], title: str, tolerance: float) -> bytes:
    from matplotlib import pyplot as plt

    from reports.drawing import name_lines, plain, png

    figure, axes = plt.subplots(figsize=(7, 4.6))
    figure.subplots_adjust(left=0.11, right=0.72, top=0.9, bottom=0.12)
    steps = [row["steps"] for row in rows]
    lines = {"largest": ("q100", "#D55E00"), "99 %": ("q99", "#E69F00"), "90 %": ("q90", "#0072B2")}
    lines |= {"median": ("q50", "#000000"), "true distance, median": ("distance", "#777777")}
    ends = {}
    for name, (key, colour) in lines.items():
        values = [max(row[key], 1e-16) for row in rows]
        axes.semilogy(
            steps, values, color=colour, marker="o", markersize=3, linestyle="--" if key == "distance" else "-"
        )
        ends[name] = steps[-1], values[-1], colour
    axes.axhline(tolerance, color="#777777", linewidth=0.8)
    axes.annotate("tolerance of convex_imaml.py", (steps[-1], tolerance), ha="right", va="bottom", fontsize=8)
    axes.set(xlabel="Newton steps", ylabel="residual / strength, relative to the way", xlim=(0, steps[-1]))
    axes.set_title(title.replace(", features", ",\nfeatures"), fontsize=10, loc="left")
    plain(axes)
    name_lines(axes, ends)
    return png(figure)


def main(options: Options) -> None:
    keep_memory()
    found, distances = measure(options)
    rows = rows_of(found, distances, options.tolerance)
    task = f"{options.dataset} {options.ways}-way {options.shots}-shot, {options.episodes:,} test episodes"
    title = f"{task}, features of {options.whose}"
    name = f"certificate-{options.dataset}-{options.shots}shot"
    content = {"task": title, "tolerance": options.tolerance, "checked": options.checked, "rows": rows}
    report(options.out, name, content, f"{title}; {options.checked} checked\n\n{as_table(rows)}")
    if options.out:
        (options.out / f"{name}.png").write_bytes(plot(rows, title, options.tolerance))


if __name__ == "__main__":
    start(main, Options)
