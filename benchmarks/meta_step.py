"""What Convex iMAML's meta-step costs above one plain forward and backward of its backbone over the same images.

In one process, in turn on the same episodes, the first steps left out: the plain step, the meta-step, and the head
solver alone (its solve and its implicit gradient).

    python -m benchmarks.meta_step --dataset omniglot --out results/benchmarks
"""

import statistics
from dataclasses import dataclass

import torch
from tqdm import trange

from benchmarks import OnData, report, seconds_of, start
from common.episodes import EpisodeLoader
from common.meters import keep_memory
from convex_imaml import SETTINGS, Config, Model, adapt, meta_step


@dataclass
class Options(OnData):
    tasks: int = 16
    """of 5 ways, 1 shot and 15 queries"""
    width: int = 64
    device: str = "cpu"
    warmup: int = 10
    """steps of each kind that aren't counted"""
    repeats: int = 30


def main(options: Options) -> None:
    keep_memory()
    device = torch.device(options.device)
    settings = SETTINGS.get(options.dataset, SETTINGS["other"])
    config = Config(**{**settings, "dataset": options.dataset, "width": options.width, "first_width": 0})
    task = {"ways": 5, "shots": 1, "queries": 15, "tasks": options.tasks}
    loader = EpisodeLoader(options.train_file, **task, device=device)
    model = Model(loader.image_shape, config, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # so that the heads to solve change from step to step

    plain, whole, solver = [], [], []  # seconds
    for _ in trange(options.warmup + options.repeats, leave=False):
        episode = loader.sample()
        work = lambda: model.backbone(episode.images, "batch").square().mean().backward()
        plain.append(seconds_of(work, device))
        optimizer.zero_grad()
        whole.append(seconds_of(lambda: meta_step(model, episode, config), device))
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            f = model.features(episode.images, "batch")[episode.support]
        f.requires_grad_()
        v = torch.randn(len(episode.classes), episode.ways, f.shape[-1], device=device)
        work = lambda: adapt(model, f, episode.y_support, episode.ways, config).value.backward(v)
        solver.append(seconds_of(work, device))
        optimizer.zero_grad()
    plain, whole, solver = (times[options.warmup :] for times in (plain, whole, solver))
    low, median, high = statistics.quantiles([w / p for w, p in zip(whole, plain)], n=4)
    result = {
        "dataset": options.dataset, **task, "width": options.width, "block": config.block,
        "images": len(episode.images), "precision": str(model.backbone.precision).removeprefix("torch."),
        "plain_ms": 1e3 * statistics.median(plain), "meta_step_ms": 1e3 * statistics.median(whole),
        "solver_ms": 1e3 * statistics.median(solver), "ratio": median, "ratio_quartiles": [low, high],
        "solver_share": statistics.median(s / w for s, w in zip(solver, whole)),
    }  # fmt: skip
    line = (
        f"{options.dataset} 5-way 1-shot, {options.tasks} tasks, Conv4-{options.width} "
        f"{config.block}, {result['precision']}, {len(episode.images)} images: plain {result['plain_ms']:.1f} ms, "
        f"meta-step {result['meta_step_ms']:.1f} ms, ratio {median:.3f} (quartiles {low:.3f} to {high:.3f}), "
        f"solver {result['solver_ms']:.1f} ms = {100 * result['solver_share']:.1f} % of the meta-step"
    )
    report(options.out, f"meta_step-{options.dataset}", result, line, options.device)


if __name__ == "__main__":
    start(main, Options)
