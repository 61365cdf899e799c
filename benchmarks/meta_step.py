"""What Convex iMAML's meta-step costs above one plain forward and backward of its backbone over the same images.

In one process, in turn on the same episodes, the first steps left out: the plain step, the meta-step, and the head
solver alone (its solve and its implicit gradient). Before that, resident memory over many meta-steps of few tasks.

    python benchmarks/meta_step.py --dataset omniglot --out results/benchmarks
"""

import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import meters  # noqa: E402
from common.episodes import EpisodeLoader  # noqa: E402
from common.options import ROOT  # noqa: E402
from common.run import command, keep_memory  # noqa: E402
from convex_imaml import SETTINGS, Config, Model, adapt, meta_step  # noqa: E402


@dataclass
class Options:
    dataset: str = "glyphs"
    ways: int = 5
    shots: int = 1
    queries: int = 15
    tasks: int = 16
    width: int = 64
    device: str = "cpu"
    warmup: int = 10
    """steps of each kind that aren't counted"""
    repeats: int = 30
    memory_tasks: int = 2
    """tasks of the meta-steps in which memory is watched"""
    memory_steps: int = 2000
    """meta-steps over which resident memory is watched; 0: not at all"""
    out: Path | None = None
    """folder for meta_step-DATASET.json"""


def resident_mib() -> float:
    """Memory of this process now (Linux; its peak elsewhere)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return meters.peak_mib(torch.device("cpu"))


def main() -> None:
    options = tyro.cli(Options)
    device = torch.device(options.device)
    if device.type == "cpu":
        keep_memory()
    settings = SETTINGS.get(options.dataset, SETTINGS["other"])
    config = Config(**{**settings, "dataset": options.dataset, "width": options.width})
    path = ROOT / "data" / options.dataset / "train.h5"

    def loader_of(tasks):
        return EpisodeLoader(
            path, options.ways, options.shots, options.queries, tasks, device, image_size=config.image_size
        )

    loader = loader_of(options.memory_tasks)
    model = Model(loader.image_shape, config, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # so that the heads to solve change from step to step

    resident = {}  # first, before larger batches leave memory behind that a leak could hide in
    for step in trange(1, options.memory_steps + 1, leave=False):
        meta_step(model, loader.sample(), config)
        optimizer.step()
        optimizer.zero_grad()
        if step in (20, options.memory_steps) or step % max(1, options.memory_steps // 4) == 0:
            resident[step] = round(resident_mib())

    loader = loader_of(options.tasks)
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
        timed("solver", lambda: adapt(model, f, episode.y_support, episode.ways, config).value.sum().backward())
        optimizer.zero_grad()
    counted = {name: times[options.warmup :] for name, times in seconds.items()}
    ratios = [m / p for m, p in zip(counted["meta_step"], counted["plain"])]
    shares = [s / m for s, m in zip(counted["solver"], counted["meta_step"])]
    low, median, high = statistics.quantiles(ratios, n=4)
    result = {
        "dataset": options.dataset, "ways": options.ways, "shots": options.shots, "queries": options.queries,
        "tasks": options.tasks, "width": options.width, "block": config.block, "images": len(episode.images),
        "plain_ms": 1e3 * statistics.median(counted["plain"]),
        "meta_step_ms": 1e3 * statistics.median(counted["meta_step"]),
        "solver_ms": 1e3 * statistics.median(counted["solver"]), "ratio": median, "ratio_quartiles": [low, high],
        "solver_share": statistics.median(shares), "memory_tasks": options.memory_tasks, "resident_mib": resident,
        "torch": torch.__version__, **meters.hardware(device),
    }  # fmt: skip

    print(
        f"{options.dataset} {options.ways}-way {options.shots}-shot, {options.tasks} tasks, Conv4-{options.width} "
        f"{config.block}, {len(episode.images)} images: plain {result['plain_ms']:.1f} ms, "
        f"meta-step {result['meta_step_ms']:.1f} ms, ratio {median:.3f} (quartiles {low:.3f} to {high:.3f}), "
        f"solver {result['solver_ms']:.1f} ms = {100 * result['solver_share']:.1f} % of the meta-step"
    )
    if options.memory_steps:
        print("resident MiB after steps: " + ", ".join(f"{k}: {v}" for k, v in resident.items()))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"meta_step-{options.dataset}.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    command(main)
