"""iMAML: adapt all weights to the optimum of a proximal problem, and differentiate at the optimum, not through the way.

    phi* = argmin_phi L_support(phi) + strength/2 |phi - theta|^2                                            (Eq 4)
    dL_query(phi*)/dtheta = (I + H / strength)^-1 grad L_query(phi*)                                         (Eq 5)

with H the Hessian of the support loss. Gradient steps that keep no graph find phi*, and conjugate gradient solves Eq 5:
memory doesn't grow with the inner steps. Eq 5 holds where these have settled: log.csv says how far (docs/maths.md).

    python imaml.py --dataset omniglot --shots 1

reaches 0.9555 ± 0.0034 (inductive, 95 % CI) in 2,800 steps: 19 minutes on two idle cores of an AMD EPYC with AVX-512.
"""

import math
from collections.abc import Iterable
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
from common.solvers import Solution, cg


@dataclass
class Config(Options):
    """Options of imaml.py, beside those that all scripts share (common/options.py)."""

    inner_steps: int = option(8, least=0)
    """k, the number of gradient steps on a training task."""
    test_inner_steps: int = option(8, least=0, at_test=True)
    """The number of gradient steps on a task in validation and test."""
    inner_rate: float = option(0.05, above=0)
    """alpha, the learning rate of the gradient steps; a task's falls where one of its steps proves too long."""
    strength: float = option(0.5, above=0)
    """lambda, the weight of the proximal term."""
    cg_steps: int = option(3, least=1)
    """The largest number of conjugate gradient's steps."""
    tolerance: float = option(0.01, least=0)
    """Conjugate gradient stops earlier where its residual, relative to the right-hand side, is as small as this."""
    block: Literal["norm-pool", "pool-norm"] = "norm-pool"
    """norm-pool is the usual Conv4 (convolution, batch norm, ReLU, pool); pool-norm pools before batch norm."""
    precision: Literal["auto", "float32", "bfloat16"] = option("float32", at_test=True)
    """The network's precision; auto takes bfloat16 where the CPU multiplies it, which costs accuracy here."""


# What serves a data set best, where it isn't the default; "other" is for a set of your own.
SETTINGS = {
    "glyphs": dict(steps=400, tasks=8, train_queries=5, keep_border=True, clip=1.0),
    "omniglot": dict(steps=2800, tasks=8, train_queries=5, keep_border=True, clip=1.0),
    "miniimagenet": dict(steps=6300, tasks=4, train_queries=5, width=32, learning_rate=1e-3, flip=True, eval_every=700),
    "other": dict(steps=1600, tasks=4, train_queries=5, width=32, learning_rate=1e-3, flip=True),
}


class Model(nn.Module):
    """The meta-parameters theta: backbone and head."""

    def __init__(self, shape: tuple[int, int, int], config: Config, device: torch.device):
        super().__init__()
        self.backbone = backbone(shape, config, device, running=0)
        self.head = nn.Linear(self.backbone.size, fixed_ways(config), device=device)

    def forward(self, images: Tensor, statistics: str | Statistics, collected: Statistics | None = None) -> Tensor:
        """Logits (B, N) of images (B, C, H, W); with the weights of T tasks (T, B, N) of (T, B, C, H, W)."""
        f = self.backbone(images, statistics, collected)
        return f @ self.head.weight.mT + self.head.bias[..., None, :]


def support_loss(model: Model, phi: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The sum over tasks of a task's mean loss at its phi: each task has its own."""
    logits = functional_call(model, phi, (x, "batch"))  # (T, S, N)
    return len(x) * F.cross_entropy(logits.flatten(0, 1), y.flatten())


def adapt(model: Model, x: Tensor, y: Tensor, steps: int, config: Config, norms: list | None = None) -> dict:
    """phi of T tasks after so many steps, by name, (T, ...) each, from support images (T, S, C, H, W), labels (T, S).

    phi has no graph. Batch norm has the support set's statistics. `norms` gets that of Eq 4's gradient, (T,), a step.
    """
    phi = {name: p.detach().expand(len(x), *p.shape).clone().requires_grad_() for name, p in model.named_parameters()}
    theta = flat(p.detach()[None] for p in model.parameters())  # (1, n)
    rate, before = x.new_full((len(x), 1), config.inner_rate), None
    for _ in range(steps):
        gradient = flat(torch.autograd.grad(support_loss(model, phi, x, y), phi.values()))
        with torch.no_grad():
            gradient += config.strength * (flat(phi.values()) - theta)  # Eq 4's
            rate = rate if before is None else step_size(rate, gradient, before)
            for p, move in zip(phi.values(), (rate * gradient).split([p[0].numel() for p in phi.values()], 1)):
                p -= move.view_as(p)
        before = gradient
        if norms is not None:
            norms.append(gradient.norm(dim=1))
    return phi


def step_size(rate: Tensor, gradient: Tensor, before: Tensor) -> Tensor:
    """The rates (T, 1) of tasks, but where the last step made Eq 4's gradient (T, n) longer, it was too long for the
    curvature that it met: from then on at most Barzilai & Borwein's (1988) rate, one over that."""
    change = before - gradient
    fitting = rate * (before * change).sum(1, keepdim=True) / change.square().sum(1, keepdim=True)
    grew = gradient.norm(dim=1, keepdim=True) > before.norm(dim=1, keepdim=True)
    return torch.where(grew & (fitting > 0), torch.minimum(rate, fitting), rate)


def implicit_gradient(model: Model, phi: dict, x: Tensor, y: Tensor, v: Tensor, config: Config) -> Solution:
    """u of (I + H / strength) u = v (Eq 5), with H the Hessian of a task's support loss at phi.   v, value: (T, n)

    Where the support loss curves nowhere downwards, |u| <= |v|. Else I + H / strength may be indefinite; Steihaug's
    rule keeps what conjugate gradient has until it meets that, within |v|: v itself, the first-order gradient, if that
    is at once. `at_edge` says of which tasks; inner_gradient, (T,), is the norm of Eq 4's gradient at phi.
    """
    gradient = flat(torch.autograd.grad(support_loss(model, phi, x, y), phi.values(), create_graph=True))  # (T, n)

    def matvec(p: Tensor) -> Tensor:
        return p + flat(torch.autograd.grad(gradient, phi.values(), p, retain_graph=True)) / config.strength

    radius = (1 + 1e-4) * v.norm(dim=1)  # with what rounding may add where H is next to 0
    solution = cg(matvec, v, tolerance=config.tolerance, iterations=config.cg_steps, radius=radius)
    pull = config.strength * (flat(phi.values()) - flat(p[None] for p in model.parameters()))
    solution.more["inner_gradient"] = (gradient + pull).detach().norm(dim=1)
    return solution


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers of tensors (T, ...), a row a task.   (T, n)"""
    return torch.cat([tensor.flatten(1) for tensor in tensors], 1)


def meta_step(model: Model, episode: Episode, config: Config) -> dict[str, Tensor]:
    """Add the meta-gradient of the tasks' mean query loss to .grad; return loss, accuracy and CG's statistics.

    A task's query batch is normalised by its own statistics. Memory grows with the tasks of a batch (--batches).
    """
    x, y = episode.x_support, episode.y_support
    phi = adapt(model, x, y, config.inner_steps, config, norms := [])
    logits = functional_call(model, phi, (episode.x_query, "batch"))  # (T, Q, N)
    loss = F.cross_entropy(logits.flatten(0, 1), episode.y_query.flatten())
    v = len(x) * flat(torch.autograd.grad(loss, phi.values()))  # (T, n), a row of each task's own loss
    solution = implicit_gradient(model, phi, x, y, v, config)
    flat(p[None] for p in model.parameters()).backward(solution.value.mean(0, keepdim=True))
    accuracy = (logits.detach().argmax(-1) == episode.y_query).float().mean()
    statistics = solution.statistics()
    left = statistics["inner_gradient"] / norms[0] if norms else torch.ones_like(v[:, 0])  # relative to its start
    return {"loss": loss.detach(), "accuracy": accuracy, **statistics, "inner_gradient": left, "unsettled": left > 0.1}


def predict(model: Model, episode: Episode, config: Config, transductive: bool = False) -> Tensor:
    """Logits of the query images at the adapted weights.   (T, Q, N)

    Inductive: a query image is normalised by the support set's statistics at the adapted weights. Transductive: by
    the statistics of the task's query batch.
    """
    phi = adapt(model, episode.x_support, episode.y_support, config.test_inner_steps, config)
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
