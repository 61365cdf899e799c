"""What Convex iMAML's meta-step costs above one plain forward and backward of its backbone over the same images.

In one process, in turn on the same episodes, the first steps left out: the plain step, the meta-step, and the head
solver alone (its solve and its implicit gradient).

    python benchmarks/meta_step.py --dataset omniglot --out results/benchmarks
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import save  # noqa: E402
from common import meters  # noqa: E402
from common.command import command  # noqa: E402
from common.episodes import EpisodeLoader  # noqa: E402
from common.meters import keep_memory  # noqa: E402
from common.shards import ROOT  # noqa: E402
from convex_imaml import SETTINGS, Config, Model, adapt, meta_step  # noqa: E402


@dataclass
class Options:
    dataset: str = "glyphs"
    data_dir: Path = ROOT / "data"
    ways: int = 5
    shots: int = 1
    queries: int = 15
    tasks: int = 16
    width: int = 64
    device: str = "cpu"
    warmup: int = 10
    """steps of each kind that aren't counted"""
    repeats: int = 30
    out: Path | None = None
    """folder for meta_step-DATASET.md and .json"""


def main() -> None:
    options = tyro.cli(Options)
    device = torch.device(options.device)
    if device.type == "cpu":
        keep_memory()
    settings = SETTINGS.get(options.dataset, SETTINGS["other"])
    config = Config(**{**settings, "dataset": options.dataset, "width": options.width, "first_width": 0})
    path = options.data_dir / options.dataset / "train.h5"

    loader = EpisodeLoader(path, options.ways, options.shots, options.queries, options.tasks, device)
    model = Model(loader.image_shape, config, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # so that the heads to solve change from step to step
    seconds = {"plain": [], "meta_step": [], "solver": []}

    def timed(name, work):
        start = meters.clock(device)
        work()
        seconds[name].append(meters.clock(device) - start)

    for _ in trange(options.warmup + options.repeats, leave=False):
        episode = loader.sample()
        timed("plain", lambda: model.backbone(episode.images, "batch").square().mean().backward())
        optimizer.zero_grad()
        timed("meta_step", lambda: meta_step(model, episode, config))
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            f = model.features(episode.images, "batch")[episode.support]
        f.requires_grad_()
        v = torch.randn(len(episode.classes), episode.ways, f.shape[-1], device=device)
        timed("solver", lambda: adapt(model, f, episode.y_support, episode.ways, config).value.backward(v))
        optimizer.zero_grad()
    counted = {name: times[options.warmup :] for name, times in seconds.items()}
    ratios = [m / p for m, p in zip(counted["meta_step"], counted["plain"])]
    shares = [s / m for s, m in zip(counted["solver"], counted["meta_step"])]
    low, median, high = statistics.quantiles(ratios, n=4)
    result = {
        "dataset": options.dataset, "ways": options.ways, "shots": options.shots, "queries": options.queries,
        "tasks": options.tasks, "width": options.width, "block": config.block, "images": len(episode.images),
        "precision": str(model.backbone.precision).removeprefix("torch."),
        "plain_ms": 1e3 * statistics.median(counted["plain"]),
        "meta_step_ms": 1e3 * statistics.median(counted["meta_step"]),
        "solver_ms": 1e3 * statistics.median(counted["solver"]), "ratio": median, "ratio_quartiles": [low, high],
        "solver_share": statistics.median(shares),
    }  # fmt: skip

    line = (
        f"{options.dataset} {options.ways}-way {options.shots}-shot, {options.tasks} tasks, Conv4-{options.width} "
        f"{config.block}, {result['precision']}, {len(episode.images)} images: plain {result['plain_ms']:.1f} ms, "
        f"meta-step {result['meta_step_ms']:.1f} ms, ratio {median:.3f} (quartiles {low:.3f} to {high:.3f}), "
        f"solver {result['solver_ms']:.1f} ms = {100 * result['solver_share']:.1f} % of the meta-step"
    )
    print(line)
    if options.out:
        save(options.out, f"meta_step-{options.dataset}", result, line, options.device)


if __name__ == "__main__":
    command(main)
