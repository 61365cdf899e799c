"""Reptile: adapt all weights by training on a task, and move the start towards where that ended.

    phi = k steps of Adam (or SGD) on minibatches of the task's images, from theta
    theta <- theta + epsilon mean(phi - theta),   epsilon annealed to 0               (Nichol et al. 2018)

Nothing is differentiated but the training loss; no query set is needed.

    python reptile.py --dataset omniglot --shots 1

reaches 0.9580 ± 0.0030 (inductive, 95 % CI) in 12,400 steps, which take 18 minutes on two idle cores of an AMD EPYC
with AVX-512 and bfloat16.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from common.command import command, parse
from common.conv4 import Statistics, backbone
from common.episodes import Episode, EpisodeLoader
from common.options import Options, fixed_ways, option
from common.ranks import MeanOverBatches
from common.results import gather, outcome, report
from common.run import Run, outer_optimizer


@dataclass
class Config(Options):
    """Options of reptile.py, beside those that all scripts share (common/options.py)."""

    inner_steps: int = option(5, least=0)
    """k, the number of steps on a training task."""
    test_inner_steps: int = option(50, least=0, at_test=True)
    """The number of steps on a task in validation and test."""
    inner_batch: int = option(10, least=1)
    """The number of images in an inner step on a training task."""
    test_inner_batch: int = option(5, least=1, at_test=True)
    """The number of images in an inner step in validation and test."""
    inner_rate: float = option(1e-3, above=0)
    """The learning rate of the inner steps."""
    inner_optimizer: Literal["adam", "sgd"] = "adam"
    """The inner steps' optimiser. Adam is without momentum; its second moments go from task to task, as published."""
    learning_rate: float = option(1.0, least=0)
    """epsilon, the share of the way to phi. It is reached after 20 steps and falls to 0 by a half cosine."""
    outer: Literal["adam", "sgd"] = "sgd"
    """The optimiser of the meta-parameters: AdamW, or plain stochastic gradient descent."""
    clip: float = option(math.inf, above=0, infinite=True)
    """A meta-gradient (theta - phi) whose norm is larger than this is scaled down to it."""


# What serves a data set best, where it isn't the default; "other" is for a set of your own.
SETTINGS = {
    "glyphs": dict(steps=1200, tasks=5, train_shots=10, train_queries=1, keep_border=True),
    "omniglot": dict(steps=12_400, tasks=5, train_shots=10, train_queries=1, keep_border=True, eval_every=1000),
    "miniimagenet": dict(
        steps=5500, tasks=5, train_shots=15, train_queries=1, inner_steps=8, width=32, flip=True, eval_every=500,
    ),
    "other": dict(steps=2700, tasks=5, train_shots=15, train_queries=1, inner_steps=8, width=32, flip=True),
}  # fmt: skip


class Model(nn.Module):
    """The meta-parameters theta, backbone and head, and where the inner Adam is: its second moments and steps."""

    def __init__(self, shape: tuple[int, int, int], config: Config, device: torch.device):
        super().__init__()
        self.backbone = backbone(shape, config, device, running=0)
        self.head = nn.Linear(self.backbone.size, fixed_ways(config), device=device)
        for i, p in enumerate(list(self.parameters())):
            self.register_buffer(f"moment{i}", torch.zeros_like(p))
        self.register_buffer("steps", torch.zeros((), device=device))

    def forward(self, images: Tensor, statistics: str | Statistics, collected: Statistics | None = None) -> Tensor:
        """Logits (B, N) of images (B, C, H, W); with the weights of T tasks (T, B, N) of (T, B, C, H, W)."""
        f = self.backbone(images, statistics, collected)
        return f @ self.head.weight.mT + self.head.bias[..., None, :]

    def moments(self) -> list[Tensor]:
        """The inner Adam's second moment of every parameter."""
        return [self.get_buffer(f"moment{i}") for i, _ in enumerate(self.parameters())]


def adapt(
    model: Model, x: Tensor, y: Tensor, steps: int, batch: int, config: Config
) -> tuple[dict[str, Tensor], list[Tensor], Tensor, Tensor]:
    """phi of T tasks, by name, (T, ...) each, from images (T, S, C, H, W) and labels (T, S); the inner Adam's second
    moments, likewise; and the last step's loss and accuracy on its images, before it.

    The images, whose order is random, are gone through in turn, `batch` at a step, and again from the first. Batch
    norm has the statistics of a task's images of a step.
    """
    phi = {name: p.detach().expand(len(x), *p.shape).clone().requires_grad_() for name, p in model.named_parameters()}
    moments = [moment.expand(len(x), *moment.shape).clone() for moment in model.moments()]
    if config.inner_optimizer == "adam":
        optimizer = torch.optim.Adam(
            phi.values(), lr=config.inner_rate, betas=(0.0, 0.999), fused=True, capturable=x.is_cuda
        )
        for p, moment in zip(phi.values(), moments):  # which the steps change in place
            steps_before = model.steps.clone().float()
            optimizer.state[p] = {"step": steps_before, "exp_avg": torch.zeros_like(p), "exp_avg_sq": moment}
    else:
        optimizer = torch.optim.SGD(phi.values(), lr=config.inner_rate)
    loss = accuracy = torch.zeros((), device=x.device)
    for step in range(steps):
        chosen = torch.arange(step * batch, step * batch + min(batch, y.shape[1]), device=y.device) % y.shape[1]
        logits = functional_call(model, phi, (x[:, chosen], "batch"))  # (T, batch, N)
        loss = F.cross_entropy(logits.mT, y[:, chosen])
        accuracy = (logits.argmax(-1) == y[:, chosen]).float().mean()
        optimizer.zero_grad()
        (len(x) * loss).backward()  # a sum over tasks: each has its own phi
        optimizer.step()
    return phi, moments, loss.detach(), accuracy


def meta_step(model: Model, episode: Episode, config: Config) -> dict[str, Tensor]:
    """Add theta - mean(phi) to .grad; return inner loss and accuracy at the last step. Query images train nothing.

    The inner Adam's second moments become the mean of the tasks' too. Tasks are groups of each convolution: for
    MAML's first-order steps 1.1 to 1.9 times faster on two cores than one after the other (benchmarks/tasks.py).
    """
    x, y = episode.x_support, episode.y_support
    phi, moments, loss, accuracy = adapt(model, x, y, config.inner_steps, config.inner_batch, config)
    with torch.no_grad():
        for theta, ends in zip(model.parameters(), phi.values()):
            difference = theta - ends.mean(0)
            theta.grad = difference if theta.grad is None else theta.grad + difference
        for moment, ends in zip(model.moments(), moments):
            moment.copy_(ends.mean(0))
        model.steps += config.inner_steps
    return {"loss": loss, "accuracy": accuracy}


def predict(model: Model, episode: Episode, config: Config, transductive: bool = False) -> Tensor:
    """Logits of the query images at the adapted weights.   (T, Q, N)

    Inductive: a query image is normalised by the support set's statistics at the adapted weights. Transductive: by
    the statistics of the task's query batch.
    """
    x, y = episode.x_support, episode.y_support
    phi, *_ = adapt(model, x, y, config.test_inner_steps, config.test_inner_batch, config)
    with torch.no_grad():
        statistics = "batch"
        if not transductive:
            functional_call(model, phi, (episode.x_support, "batch", statistics := []))
        return functional_call(model, phi, (episode.x_query, statistics))


# From here on all scripts are the same.


def evaluate(model: Model, loader: EpisodeLoader, episodes: int, config: Config, transductive: bool = False) -> dict:
    """Accuracy of `episodes` tasks, always the same ones of a loader, and what was drawn and predicted in each."""
    model.eval()
    loader.rewind()
    drawn = (loader.sample() for _ in range(math.ceil(episodes / (loader.tasks * loader.stride))))
    batches = [outcome(episode, predict(model, episode, config, transductive)) for episode in drawn]
    model.train()
    return gather(batches, episodes)


def main() -> None:
    config = parse(Config, SETTINGS)
    run = Run(config, __file__)
    train, val, test = run.loaders()
    torch.manual_seed(config.seed)
    model = Model(train.image_shape, config, run.device)
    optimizer = outer_optimizer(model, config)
    run.open(model, optimizer)

    while run.progress < 1 and not config.evaluate:
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate
        optimizer.zero_grad()
        mean = MeanOverBatches(model, run.batches)
        batches = []
        for episode in run.draw(train):  # this process's share of the meta-step's batches
            batches.append(run.launch(meta_step, model, episode, config))  # adds the meta-gradient to .grad
            mean.add()
        mean.over_processes()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        run.count(batches, norm)
        if run.row_due:
            with run.clock_stopped():
                if run.validation_due and config.plain_averages:
                    model.backbone.renew_averages(train.plain_images(config.plain_averages))
                validation = evaluate(model, val, config.val_episodes, config) if run.validation_due else None
                run.write_row_and_checkpoint(model, optimizer, validation)

    model.load_state_dict(run.best_state)
    inductive = evaluate(model, test, config.test_episodes, config)
    transductive = evaluate(model, test, config.test_episodes, config, transductive=True)
    report(run, model, inductive, transductive)


if __name__ == "__main__":
    command(main)
