"""iMAML: adapt all weights to the optimum of a proximal problem, and differentiate at the optimum, not through the way.

    phi* = argmin_phi L_support(phi) + strength/2 |phi - theta|^2                                            (Eq 4)
    dL_query(phi*)/dtheta = (I + H / strength)^-1 grad L_query(phi*)                                         (Eq 5)

with H the Hessian of the support loss at phi*. Gradient steps that keep no graph find phi*, conjugate gradient on
Hessian-vector products solves Eq 5: memory doesn't grow with the inner steps.

    python imaml.py --dataset omniglot --shots 1

reaches 0.9445 ± 0.0035 (inductive, 95 % CI) in 20 minutes on two cores of an AMD EPYC with AVX-512.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from common.conv4 import Statistics
from common.episodes import Episode, EpisodeLoader
from common.options import Options, fixed_ways, parse
from common.run import Run, backbone, command, gather, outcome, outer_optimizer
from common.solvers import Solution, cg


@dataclass
class Config(Options):
    """Options of imaml.py. What is best for a data set stands in SETTINGS."""

    inner_steps: int = 16
    """gradient steps of a training task"""
    test_inner_steps: int = 16
    """gradient steps of a task in validation and test"""
    inner_rate: float = 0.03
    """learning rate of the gradient steps, which settle below 2 / (strength + H's largest eigenvalue): on Omniglot that
    is some 300 at first and 50 to 120 at phi"""
    strength: float = 2.0
    """lambda, of the proximal term"""
    cg_steps: int = 5
    """of conjugate gradient, at most"""
    tolerance: float = 1e-6
    """of conjugate gradient: residual relative to the right-hand side, at which it stops earlier"""
    block: str = "norm-pool"
    """norm-pool (convolution, batch norm, ReLU, pool: the usual Conv4) or pool-norm (pool before batch norm)"""
    precision: str = "float32"
    """of the backbone: float32, bfloat16, or auto (bfloat16 where the hardware multiplies it)"""


# What is best for a data set; `other` is for a set of your own.
CHARACTERS = dict(keep_border=True, tasks=4, train_queries=5, learning_rate=1e-3)
PICTURES = dict(tasks=4, train_queries=5, strength=0.5, inner_rate=0.05, width=32, learning_rate=1e-3, flip=True)
SETTINGS = {
    "glyphs": dict(CHARACTERS, minutes=3.0),
    "omniglot": dict(CHARACTERS, minutes=20.0),
    "miniimagenet": dict(PICTURES, minutes=60.0, eval_every=250),
    "other": dict(PICTURES, minutes=30.0),
}


class Model(nn.Module):
    """The meta-parameters theta: backbone and head."""

    def __init__(self, shape: tuple[int, int, int], config: Config, device: torch.device):
        super().__init__()
        self.backbone = backbone(shape, config, device, running=0)
        self.head = nn.Linear(self.backbone.size, fixed_ways(config), device=device)

    def forward(self, images: Tensor, statistics: str | Statistics, collected: Statistics | None = None) -> Tensor:
        """Logits of images (B, C, H, W).   (B, N)"""
        return self.head(self.backbone(images, statistics, collected))


def adapt(model: Model, x: Tensor, y: Tensor, steps: int, config: Config) -> dict[str, Tensor]:
    """phi of Eq 4 after so many steps, by name, of one task with support images (S, C, H, W) and labels (S,).

    Leaves without a graph. Batch norm has the statistics of the support set.
    """
    phi = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    for _ in range(steps):
        loss = F.cross_entropy(functional_call(model, phi, (x, "batch")), y)
        gradients = torch.autograd.grad(loss, tuple(phi.values()))
        with torch.no_grad():
            for p, theta, g in zip(phi.values(), model.parameters(), gradients):
                p -= config.inner_rate * (g + config.strength * (p - theta))
    return phi


def implicit_gradient(model: Model, phi: dict, x: Tensor, y: Tensor, v: Tensor, config: Config) -> Solution:
    """u of (I + H / strength) u = v (Eq 5), with H the Hessian of the support loss at phi.   v, value: (1, n)

    At a minimum H has no negative curvature and u is shorter than v. A u that is longer, or 0 as conjugate gradient's
    is where the first direction has none that is positive, comes of inner steps that haven't settled: v takes its
    place, the first-order gradient, and the system counts as not converged.
    """
    loss = F.cross_entropy(functional_call(model, phi, (x, "batch")), y)
    gradient = flat(torch.autograd.grad(loss, tuple(phi.values()), create_graph=True))  # (n,)

    def matvec(p: Tensor) -> Tensor:
        Hp = torch.autograd.grad(gradient, tuple(phi.values()), p[0], retain_graph=True)
        return p + flat(Hp)[None] / config.strength

    solution = cg(matvec, v, tolerance=config.tolerance, iterations=config.cg_steps)
    length = solution.value.norm(dim=1)
    settled = (length > 0) & (length <= v.norm(dim=1))
    return solution._replace(
        value=torch.where(settled[:, None], solution.value, v), converged=solution.converged & settled
    )


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers of some tensors in a row.   (n,)"""
    return torch.cat([tensor.flatten() for tensor in tensors])


def meta_step(model: Model, episode: Episode, config: Config) -> dict[str, Tensor]:
    """Add the meta-gradient of the tasks' mean query loss to .grad; return loss, accuracy and CG's statistics.

    A query batch is normalised by its own statistics. Tasks come one after the other, so that one task's graph is in
    memory at a time. On two cores tasks as groups of one convolution are 1.2 times faster on Omniglot and 2.2 times
    slower on mini-ImageNet, and vmap is slower on both (benchmarks/tasks.py).
    """
    losses, accuracies, solved = [], [], []
    for x, y, x_query, y_query in zip(episode.x_support, episode.y_support, episode.x_query, episode.y_query):
        phi = adapt(model, x, y, config.inner_steps, config)
        logits = functional_call(model, phi, (x_query, "batch"))  # (Q, N)
        loss = F.cross_entropy(logits, y_query)
        v = flat(torch.autograd.grad(loss, tuple(phi.values())))
        solution = implicit_gradient(model, phi, x, y, v[None], config)
        flat(model.parameters()).backward(solution.value[0] / len(episode.classes))
        solved.append(solution.statistics())
        losses.append(loss.detach())
        accuracies.append((logits.detach().argmax(-1) == y_query).float().mean())
    statistics = {key: torch.cat([s[key] for s in solved]) for key in solved[0]}
    return {"loss": torch.stack(losses).mean(), "accuracy": torch.stack(accuracies).mean(), **statistics}


def predict(model: Model, episode: Episode, config: Config, transductive: bool = False) -> Tensor:
    """Logits of the query images at the adapted weights.   (T, Q, N)

    Inductive: a query image is normalised by the support set's statistics at the adapted weights. Transductive: by
    the statistics of the task's query batch.
    """
    logits = []
    for x, y, x_query in zip(episode.x_support, episode.y_support, episode.x_query):
        phi = adapt(model, x, y, config.test_inner_steps, config)
        with torch.no_grad():
            statistics = "batch"
            if not transductive:
                functional_call(model, phi, (x, "batch", statistics := []))
            logits.append(functional_call(model, phi, (x_query, statistics)))
    return torch.stack(logits)


# From here on all scripts are the same.


def evaluate(
    model: nn.Module, loader: EpisodeLoader, episodes: int, config: Options, transductive: bool = False
) -> dict:
    """Accuracy of `episodes` tasks, always the same ones of a loader, and what was drawn and predicted in each."""
    model.eval()
    loader.rewind()
    batches = []
    for _ in range(math.ceil(episodes / (loader.tasks * loader.stride))):
        episode = loader.sample()
        batches.append(outcome(episode, predict(model, episode, config, transductive)))
    model.train()
    return gather(batches, episodes)


def main() -> None:
    config = parse(Config, SETTINGS)
    run = Run(config, __file__)
    train, val, test = run.loaders()
    torch.manual_seed(config.seed)
    model = Model(train.image_shape, config, run.device)
    optimizer = outer_optimizer(model, config)
    run.restore(model, optimizer)

    while run.progress < 1 and not config.evaluate:
        optimizer.zero_grad()
        batches = [meta_step(model, episode, config) for episode in run.draw(train, model)]
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        run.count(optimizer, batches, norm)
        if run.row_due:
            with run.clock_stopped():
                validation = evaluate(model, val, config.val_episodes, config) if run.validation_due else None
                run.write_row(model, optimizer, validation)

    model.load_state_dict(run.best_state)
    inductive = evaluate(model, test, config.test_episodes, config)
    run.report(model, inductive, evaluate(model, test, config.test_episodes, config, transductive=True))


if __name__ == "__main__":
    command(main)
