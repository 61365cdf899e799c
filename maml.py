"""MAML: adapt all weights by a few gradient steps, and differentiate through the steps.

    phi_0 = theta,   phi_j = phi_(j-1) - alpha grad L_support(phi_(j-1)),   j = 1..k
    dL_query(phi_k)/dtheta = (I - alpha H_0) ... (I - alpha H_(k-1)) grad L_query(phi_k)                     (Eq 3)

with H_j the Hessian of the support loss at phi_j. --first-order leaves the Hessians out. Time and memory grow with k.
--learn-rates makes alpha a meta-parameter too, of each layer (as in MAML++) or weight (Meta-SGD); it isn't plain MAML.

    python maml.py --dataset omniglot --shots 1

reaches 0.9766 ± 0.0024 (inductive, 95 % CI) in 10,000 steps, which take 18 minutes on two idle cores of an AMD EPYC
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
    """Options of maml.py, beside those that all scripts share (common/options.py)."""

    inner_steps: int = option(1, least=0)
    """k, the number of gradient steps on a training task."""
    test_inner_steps: int = option(3, least=0, at_test=True)
    """The number of gradient steps on a task in validation and test."""
    inner_rate: float = option(0.4, above=0)
    """alpha, the learning rate of the gradient steps."""
    learn_rates: Literal["no", "layer", "weight"] = "no"
    """Meta-learn alpha, from --inner-rate on: one for each tensor of weights (layer), or one for each weight."""
    first_order: bool = False
    """The inner gradients count as constants (first-order MAML): cheaper, and another meta-gradient."""
    block: Literal["norm-pool", "pool-norm"] = "norm-pool"
    """norm-pool is the usual Conv4 (convolution, batch norm, ReLU, pool); pool-norm pools before batch norm."""


# What serves a data set best, where it isn't the default; "other" is for a set of your own.
SETTINGS = {
    "glyphs": dict(steps=1500, tasks=8, train_queries=5, keep_border=True),
    "omniglot": dict(steps=10_000, tasks=8, train_queries=5, keep_border=True),
    "miniimagenet": dict(
        steps=19_000, tasks=4, train_queries=5, inner_rate=0.1, width=32, learning_rate=1e-3, flip=True, eval_every=1000
    ),
    "other": dict(steps=9500, tasks=4, train_queries=5, inner_rate=0.1, width=32, learning_rate=1e-3, flip=True),
}


class Model(nn.Module):
    """The meta-parameters: theta, that is backbone and head, and alpha where it is learned."""

    def __init__(self, shape: tuple[int, int, int], config: Config, device: torch.device):
        super().__init__()
        self.backbone = backbone(shape, config, device, running=0)
        self.head = nn.Linear(self.backbone.size, fixed_ways(config), device=device)
        each = {"no": [], "layer": [p.new_ones(()) for p in self.parameters()], "weight": self.parameters()}
        self.rates = nn.ParameterList(torch.full_like(p, config.inner_rate) for p in each[config.learn_rates])

    def forward(self, images: Tensor, statistics: str | Statistics, collected: Statistics | None = None) -> Tensor:
        """Logits (B, N) of images (B, C, H, W); with the weights of T tasks (T, B, N) of (T, B, C, H, W)."""
        f = self.backbone(images, statistics, collected)
        return f @ self.head.weight.mT + self.head.bias[..., None, :]


def support_loss(model: Model, phi: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The sum over tasks of a task's mean loss at its phi: each task has its own."""
    logits = functional_call(model, phi, (x, "batch"))  # (T, S, N)
    return len(x) * F.cross_entropy(logits.flatten(0, 1), y.flatten())


def adapt(
    model: Model, x: Tensor, y: Tensor, steps: int, config: Config, second_order: bool = False
) -> dict[str, Tensor]:
    """phi of T tasks after so many steps, by name, (T, ...) each, from support images (T, S, C, H, W), labels (T, S).

    Its graph leads back to theta, with second_order through the inner gradients too. Batch norm has the statistics of
    a task's support set.
    """
    theta = {name: p for name, p in model.named_parameters() if not name.startswith("rates.")}
    rates = list(model.rates) or len(theta) * [config.inner_rate]
    phi = {name: p.expand(len(x), *p.shape) for name, p in theta.items()}
    for _ in range(steps):
        loss = support_loss(model, phi, x, y)
        gradients = torch.autograd.grad(loss, tuple(phi.values()), create_graph=second_order)
        phi = {name: p - rate * g for (name, p), rate, g in zip(phi.items(), rates, gradients)}
    return phi


def meta_step(model: Model, episode: Episode, config: Config) -> dict[str, Tensor]:
    """Add the meta-gradient of the tasks' mean query loss to .grad; return loss and accuracy.

    A task's query batch is normalised by its own statistics. Tasks are groups of each convolution: on two cores 1.2 to
    1.9 times faster than one task after the other on Omniglot, 1.1 to 1.2 on mini-ImageNet; vmap is slower on both
    (benchmarks/tasks.py). Memory grows with the tasks: --batches of as many has one in it at a time.
    """
    x, y = episode.x_support, episode.y_support
    phi = adapt(model, x, y, config.inner_steps, config, second_order=not config.first_order)
    logits = functional_call(model, phi, (episode.x_query, "batch"))  # (T, Q, N)
    loss = F.cross_entropy(logits.flatten(0, 1), episode.y_query.flatten())
    loss.backward()
    accuracy = (logits.detach().argmax(-1) == episode.y_query).float().mean()
    return {"loss": loss.detach(), "accuracy": accuracy}


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
