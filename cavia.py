"""CAVIA: adapt a context vector alone, which modulates the network's third layer, and differentiate through the steps.

    c_0 = 0,   c_j = c_(j-1) - alpha grad_c L_support(theta, c_(j-1)),   j = 1..k          (Zintgraf et al. 2019)
    layer 3:   h <- (1 + gamma) h + beta,   (gamma, beta) = A c + a                         (FiLM, Perez et al. 2018)

The weights theta, A and a among them, are shared by all tasks and meta-learned on the query loss at c_k; --first-order
counts the inner gradients as constants.

    python cavia.py --dataset omniglot --shots 1

reaches 0.9603 ± 0.0030 (inductive, 95 % CI) in 12,000 steps, which take 14 minutes on two idle cores of an AMD EPYC
with AVX-512 and bfloat16.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.command import command, parse
from common.conv4 import Statistics, backbone
from common.episodes import Episode, EpisodeLoader
from common.options import Options, fixed_ways, option
from common.ranks import MeanOverBatches
from common.results import gather, outcome, report
from common.run import Run, outer_optimizer


@dataclass
class Config(Options):
    """Options of cavia.py, beside those that all scripts share (common/options.py)."""

    context: int = option(100, least=1)
    """The number of values in the context vector."""
    inner_steps: int = option(2, least=0)
    """k, the number of gradient steps on a training task."""
    test_inner_steps: int = option(2, least=0, at_test=True)
    """The number of gradient steps on a task in validation and test."""
    inner_rate: float = option(10.0, above=0)
    """alpha, the learning rate of the gradient steps."""
    first_order: bool = False
    """The inner gradients count as constants: cheaper, and another meta-gradient."""


# What serves a data set best, where it isn't the default; "other" is for a set of your own.
SETTINGS = {
    "glyphs": dict(steps=1200, tasks=8, train_queries=5, keep_border=True),
    "omniglot": dict(steps=12_000, tasks=8, train_queries=5, keep_border=True),
    "miniimagenet": dict(steps=6500, tasks=16, train_shots=5, train_queries=5, width=32, flip=True, eval_every=500),
    "other": dict(steps=3100, tasks=16, train_queries=5, width=32, flip=True),
}


class Model(nn.Module):
    """The meta-parameters theta: backbone, FiLM generator and head."""

    def __init__(self, shape: tuple[int, int, int], config: Config, device: torch.device):
        super().__init__()
        self.backbone = backbone(shape, config, device, running=3)
        self.film = nn.Linear(config.context, 2 * config.width, device=device)
        nn.init.zeros_(self.film.bias)  # so that a context of zero is the plain network at first
        self.head = nn.Linear(self.backbone.size, fixed_ways(config), device=device)

    def logits(
        self,
        h: Tensor,
        context: Tensor,
        statistics: str | Statistics = "batch",
        collected: Statistics | None = None,
    ) -> Tensor:
        """Of T tasks' images at their contexts: h (T, n, width, h, w), which `backbone.below` gave, context (T, c).
        (T, n, N)

        Every task's images are normalised by themselves, or by `statistics`, a pair a task as `collected` receives it.
        """
        gamma, beta = self.film(context)[:, None, :, None, None].chunk(2, 2)  # (T, 1, width, 1, 1) each
        f = self.backbone.above(torch.addcmul(beta, 1 + gamma, h), statistics, collected)  # (T, n, d)
        return self.head(f)


def adapt(model: Model, h: Tensor, y: Tensor, steps: int, config: Config, second_order: bool = False) -> Tensor:
    """c_k of every task, from `backbone.below` of its support images (T, S, width, h, w) and labels (T, S).   (T, c)

    Batch norm above the context has the statistics of a task's support set.
    """
    context = model.head.weight.new_zeros(len(h), config.context, requires_grad=True)
    for _ in range(steps):
        logits = model.logits(h, context)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten()) * len(h)  # a sum over tasks: each has its own c
        context = context - config.inner_rate * torch.autograd.grad(loss, context, create_graph=second_order)[0]
    return context


def meta_step(model: Model, episode: Episode, config: Config) -> dict[str, Tensor]:
    """Add the meta-gradient of the tasks' mean query loss to .grad; return loss and accuracy.

    Below the context all tasks are one batch, normalised by its statistics, which sees every image once; above it, a
    task's support and query are normalised each by itself, as the tests do, and no task's context moves another's.
    Tasks are one batch of every convolution too, as they share its weights: only normalising goes task by task.
    """
    h = model.backbone.below(episode.images, "batch")  # (B, width, h, w)
    second_order = not config.first_order
    h_support, h_query = h[episode.support], h[episode.query]  # (T, S, width, h, w), (T, Q, width, h, w)
    context = adapt(model, h_support, episode.y_support, config.inner_steps, config, second_order)
    logits = model.logits(h_query, context)  # (T, Q, N)
    loss = F.cross_entropy(logits.flatten(0, 1), episode.y_query.flatten())
    loss.backward()
    accuracy = (logits.detach().argmax(-1) == episode.y_query).float().mean()
    return {"loss": loss.detach(), "accuracy": accuracy}


@torch.no_grad()
def predict(model: Model, episode: Episode, config: Config, transductive: bool = False) -> Tensor:
    """Logits of the query images at the adapted contexts.   (T, Q, N)

    Inductive: batch norm below the context has running averages; above it, where activations differ with the context,
    the support set's statistics at the adapted context. Transductive: support and query each by their own batch's.
    """
    if transductive:
        h_support = torch.stack([model.backbone.below(x, "batch") for x in episode.x_support])
        h_query = torch.stack([model.backbone.below(x, "batch") for x in episode.x_query])
    else:
        h = torch.cat([model.backbone.below(images, "running") for images in episode.images.split(200)])
        h_support, h_query = h[episode.support], h[episode.query]  # (T, S, width, h, w), (T, Q, width, h, w)
    with torch.enable_grad():
        context = adapt(model, h_support, episode.y_support, config.test_inner_steps, config).detach()
    statistics = "batch"
    if not transductive:
        model.logits(h_support, context, "batch", statistics := [])
    return model.logits(h_query, context, statistics)


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
