"""Tasks of a MAML meta-step, second and first order, one after the other, by vmap, or as groups of one convolution.

Three ways to the same meta-gradient, which is compared in float64 before anything is timed; in one process, in turn on
the same episodes, the first steps left out. First order is what the inner steps of iMAML and Reptile do too.

    python benchmarks/tasks.py --out results/benchmarks
"""

import itertools
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tqdm import trange

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from worker import in_batches  # noqa: E402

import maml  # noqa: E402
from benchmarks import save  # noqa: E402
from common import meters  # noqa: E402
from common.command import command  # noqa: E402
from common.episodes import Episode, EpisodeLoader  # noqa: E402
from common.meters import keep_memory  # noqa: E402


@dataclass
class Options:
    dataset: str = "omniglot"
    data_dir: Path = ROOT / "data"
    tasks: tuple[int, ...] = (4, 16)
    inner_steps: int = 0
    """0: as maml.py has for the data set"""
    queries: int = 0
    """a class; 0: as maml.py has for the data set"""
    width: int = 64
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    """of the backbone, each measured; vmap, whose network is written out here, in float32 alone"""
    device: str = "cpu"
    warmup: int = 5
    """meta-steps of each kind that aren't counted"""
    repeats: int = 10
    out: Path | None = None
    """folder for tasks-DATASET.md and .json"""


def logits(phi: dict[str, Tensor], x: Tensor, keep_border: bool) -> Tensor:
    """maml.Model's function of one task's images, norm-pool, with batch norm written out: torch's own, under vmap, is
    off by 1e-3 in float64."""
    for i in range(4):
        at = f"backbone.blocks.{i}."
        x = F.conv2d(x, phi[at + "convolution.weight"], padding=1)
        weight, bias = (phi[at + f"norm.{name}"][:, None, None] for name in ("weight", "bias"))
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) * (weight * (variance + 1e-5).rsqrt()) + bias
        x = F.relu(F.max_pool2d(x, 2, ceil_mode=keep_border))
    return F.linear(x.flatten(1), phi["head.weight"], phi["head.bias"])


def by_vmap(model: maml.Model, episode: Episode, config: maml.Config) -> None:
    def query_loss(x, y, x_query, y_query, theta):
        phi = theta
        for _ in range(config.inner_steps):
            gradients = torch.func.grad(lambda phi: F.cross_entropy(logits(phi, x, config.keep_border), y))(phi)
            if config.first_order:
                gradients = {name: g.detach() for name, g in gradients.items()}
            phi = {name: p - config.inner_rate * gradients[name] for name, p in phi.items()}
        return F.cross_entropy(logits(phi, x_query, config.keep_border), y_query)

    task = (episode.x_support, episode.y_support, episode.x_query, episode.y_query)
    torch.func.vmap(query_loss, (0, 0, 0, 0, None))(*task, dict(model.named_parameters())).mean().backward()


def one_by_one(model: maml.Model, episode: Episode, config: maml.Config) -> None:
    """As --batches with the number of tasks does."""
    for own in in_batches(episode, len(episode.classes)):
        maml.meta_step(model, own, config)
    for p in model.parameters():
        p.grad /= len(episode.classes)


WAYS = {"loop": one_by_one, "vmap": by_vmap, "groups": maml.meta_step}


def gradient(way, model, episode, config) -> Tensor:
    model.zero_grad()
    way(model, episode, config)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def main() -> None:
    options = tyro.cli(Options)
    device = torch.device(options.device)
    if device.type == "cpu":
        keep_memory()
    rows, table = [], ["| a meta-step of MAML | " + " | ".join(WAYS) + " |", "| --- " * (len(WAYS) + 1) + "|"]
    for tasks, first_order, precision in itertools.product(options.tasks, (False, True), options.precisions):
        ways = {name: way for name, way in WAYS.items() if name != "vmap" or precision == "float32"}
        settings = maml.SETTINGS.get(options.dataset, maml.SETTINGS["other"])
        given = dict(inner_rate=0.01, width=options.width, tasks=tasks, first_order=first_order, precision=precision)
        config = maml.Config(**settings | given)
        config.inner_steps = options.inner_steps or config.inner_steps
        queries = options.queries or config.train_queries or config.queries
        path = options.data_dir / options.dataset / "train.h5"
        loader = EpisodeLoader(path, 5, 1, queries, tasks, device)
        torch.manual_seed(0)
        model = maml.Model(loader.image_shape, config, device)
        model.double()  # in which rounding can't hide a difference, nor make one at the kinks of ReLU and pooling
        episode = loader.sample()
        episode.images = episode.images.double()
        expected = gradient(maml.meta_step, model, episode, config)
        errors = {
            name: float((gradient(way, model, episode, config) - expected).norm() / expected.norm())
            for name, way in ways.items()
        }
        if max(errors.values()) > 1e-9:
            raise SystemExit(f"the ways' meta-gradients differ: relative errors {errors}")
        model.float()
        seconds = {name: [] for name in ways}
        for _ in trange(options.warmup + options.repeats, leave=False):
            episode = loader.sample()
            for name, way in ways.items():
                start = meters.clock(device)
                gradient(way, model, episode, config)
                seconds[name].append(meters.clock(device) - start)
        ms = {name: 1e3 * statistics.median(times[options.warmup :]) for name, times in seconds.items()}
        rows.append({"tasks": tasks, "first_order": first_order, "precision": precision, "queries": queries,
                     "inner_steps": config.inner_steps, "ms": ms, "relative_error": errors})  # fmt: skip
        setting = f"{options.dataset} 5w1s, {'first' if first_order else 'second'} order, {tasks} tasks, "
        setting += f"{config.inner_steps} steps, {queries} queries, Conv4-{options.width}, {precision}"
        table.append(f"| {setting} | " + " | ".join(f"{ms[name]:.0f} ms" if name in ms else "" for name in WAYS) + " |")
        print(table[-1])
    if options.out:
        content = {"dataset": options.dataset, "width": options.width, "rows": rows}
        save(options.out, f"tasks-{options.dataset}", content, "\n".join(table), options.device)


if __name__ == "__main__":
    command(main)
