"""Tasks of a MAML meta-step, second and first order, one after the other, by vmap, or as groups of one convolution.

Three ways to the same meta-gradient, which is compared in float64 before anything is timed; in one process, in turn on
the same episodes, the first steps left out. First order is what the inner steps of iMAML and Reptile do too.

    python -m benchmarks.tasks --out results/benchmarks
"""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange

import maml
from benchmarks import OnData, markdown, report, seconds_of, start
from benchmarks.problems import in_batches
from common.episodes import Episode, EpisodeLoader
from common.meters import keep_memory


@dataclass
class Options(OnData):
    tasks: tuple[int, ...] = (4, 16)
    inner_steps: int = 0
    """0: as maml.py has for the data set"""
    width: int = 64
    device: str = "cpu"
    warmup: int = 5
    """meta-steps of each kind that aren't counted"""
    repeats: int = 10


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
    in_batches(maml.meta_step, len(episode.classes))(model, episode, config)


WAYS = {"loop": one_by_one, "vmap": by_vmap, "groups": maml.meta_step}


def gradient(way: Callable, model: maml.Model, episode: Episode, config: maml.Config) -> Tensor:
    model.zero_grad()
    way(model, episode, config)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def measure(tasks: int, first_order: bool, precision: str, options: Options) -> dict:
    """A row; vmap, whose network is written out here, in float32 alone. Raises SystemExit where the ways'
    meta-gradients differ."""
    ways = {name: way for name, way in WAYS.items() if name != "vmap" or precision == "float32"}
    device = torch.device(options.device)
    settings = maml.SETTINGS.get(options.dataset, maml.SETTINGS["other"])
    given = dict(inner_rate=0.01, width=options.width, tasks=tasks, first_order=first_order, precision=precision)
    config = maml.Config(**settings | given)
    config.inner_steps = options.inner_steps or config.inner_steps
    queries = config.train_queries or config.queries
    loader = EpisodeLoader(options.train_file, 5, 1, queries, tasks, device)
    torch.manual_seed(0)
    model = maml.Model(loader.image_shape, config, device)
    model.double()  # in which rounding can't hide a difference, nor make one at the kinks of ReLU and pooling
    episode = loader.sample()
    episode.images = episode.images.double()
    gradients = {name: gradient(way, model, episode, config) for name, way in ways.items()}
    expected = gradients["groups"]
    errors = {name: float((g - expected).norm() / expected.norm()) for name, g in gradients.items()}
    if max(errors.values()) > 1e-9:
        raise SystemExit(f"the ways' meta-gradients differ: relative errors {errors}")
    model.float()
    seconds = {name: [] for name in ways}
    for _ in trange(options.warmup + options.repeats, leave=False):
        episode = loader.sample()
        for name, way in ways.items():
            seconds[name].append(seconds_of(lambda: gradient(way, model, episode, config), device))
    return {
        "tasks": tasks, "first_order": first_order, "precision": precision, "queries": queries,
        "inner_steps": config.inner_steps,
        "ms": {name: 1e3 * statistics.median(times[options.warmup :]) for name, times in seconds.items()},
        "relative_error": errors,
    }  # fmt: skip


def as_table(rows: list[dict], options: Options) -> str:
    shown = []
    for row in rows:
        setting = f"{options.dataset} 5w1s, {'first' if row['first_order'] else 'second'} order, {row['tasks']} tasks, "
        setting += f"{row['inner_steps']} steps, {row['queries']} queries, Conv4-{options.width}, {row['precision']}"
        shown.append([setting, *(f"{row['ms'][way]:.0f} ms" if way in row["ms"] else "" for way in WAYS)])
    return markdown(["a meta-step of MAML", *WAYS], shown)


def main(options: Options) -> None:
    keep_memory()
    settings = itertools.product(options.tasks, (False, True), ("float32", "bfloat16"))
    rows = [measure(*setting, options) for setting in settings]
    content = {"dataset": options.dataset, "width": options.width, "rows": rows}
    report(options.out, f"tasks-{options.dataset}", content, as_table(rows, options), options.device)


if __name__ == "__main__":
    start(main, Options)
