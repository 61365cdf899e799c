"""How near iMAML's meta-gradient is to the exact gradient through its inner steps.

Eq 5 holds at the optimum of the inner problem. For several inner problems the table has what the inner steps leave of
its gradient, and the cosine with the gradient through these steps, a task, of three meta-gradients: the first-order one
(the query gradient at phi), conjugate gradient on Eq 5 with Steihaug's rule, as imaml.py has it, and conjugate gradient
on the system of iMAML's published code, whose damping makes it (2 I + H / (strength + 10)).

    python -m benchmarks.implicit --dataset omniglot --run runs/imaml-omniglot-5w1s-s0 --out results/benchmarks
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

import imaml
from benchmarks import OnData, markdown, report, settings, start, trained
from common.episodes import Episode, EpisodeLoader
from common.meters import keep_memory

# (inner_steps, inner_rate, strength): settled, and not.
PROBLEMS = ((8, 0.05, 0.5), (16, 0.05, 0.5), (8, 0.03, 2.0), (16, 0.03, 2.0), (3, 0.05, 0.5), (5, 0.1, 2.0))


@dataclass
class Options(OnData):
    run: Path | None = None
    """a run folder of imaml.py, whose weights these are; by default an untrained network's"""
    episodes: int = 32
    tasks: int = 4
    """at a time"""
    cg_steps: int = 3


def through_the_steps(model: imaml.Model, episode: Episode, config: imaml.Config) -> Tensor:
    """The gradient of every task's query loss through its inner steps, whose rates are constants.   (T, n)"""
    x, y = episode.x_support, episode.y_support
    names = [name for name, _ in model.named_parameters()]
    theta = [p.detach().expand(len(x), *p.shape).clone().requires_grad_() for p in model.parameters()]
    phi = theta
    rate, before = x.new_full((len(x), 1), config.inner_rate), None
    for _ in range(config.inner_steps):
        loss = imaml.support_loss(model, dict(zip(names, phi)), x, y)
        gradients = torch.autograd.grad(loss, phi, create_graph=True)
        gradients = [g + config.strength * (p - start) for p, g, start in zip(phi, gradients, theta)]
        now = imaml.flat(gradients).detach()
        rate = rate if before is None else imaml.step_size(rate, now, before)
        before = now
        phi = [p - rate.view(-1, *[1] * (p.dim() - 1)) * g for p, g in zip(phi, gradients)]
    return imaml.flat(torch.autograd.grad(query_loss(model, dict(zip(names, phi)), episode), theta))


def query_loss(model: imaml.Model, phi: dict[str, Tensor], episode: Episode) -> Tensor:
    """The sum over tasks of a task's mean loss."""
    logits = functional_call(model, phi, (episode.x_query, "batch"))
    return len(logits) * F.cross_entropy(logits.flatten(0, 1), episode.y_query.flatten())


def as_published(model: imaml.Model, phi: dict, x: Tensor, y: Tensor, v: Tensor, config: imaml.Config) -> Tensor:
    """Twice the u of (2 I + H / (strength + 10)) u = v, which is Eq 5 with another strength.   (T, n)"""
    damped = dataclasses.replace(config, strength=2 * (config.strength + 10))
    return imaml.implicit_gradient(model, phi, x, y, v, damped).value


def measure(model: imaml.Model, loader: EpisodeLoader, config: imaml.Config, batches: int) -> dict[str, float]:
    """The mean over tasks of what the table has."""
    loader.rewind()
    found: dict[str, list[Tensor]] = {}
    for _ in range(batches):
        episode = loader.sample()
        x, y = episode.x_support, episode.y_support
        exact = through_the_steps(model, episode, config)
        phi = imaml.adapt(model, x, y, config.inner_steps, config, norms := [])
        v = imaml.flat(torch.autograd.grad(query_loss(model, phi, episode), tuple(phi.values())))
        solution = imaml.implicit_gradient(model, phi, x, y, v, config)
        left = solution.more["inner_gradient"] / norms[0]
        values = {"left": left, "at_edge": solution.more["at_edge"].float()}
        values |= {"first_order": F.cosine_similarity(v, exact), "steihaug": F.cosine_similarity(solution.value, exact)}
        values["published"] = F.cosine_similarity(as_published(model, phi, x, y, v, config), exact)
        values["length"] = solution.value.norm(dim=1) / exact.norm(dim=1)
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: float(torch.cat(value).mean()) for name, value in found.items()}


def as_table(rows: list[dict]) -> str:
    shown = [
        [
            f"{row['inner_steps']} of {row['inner_rate']:g}, strength {row['strength']:g}", f"{row['left']:.3f}",
            f"{100 * row['at_edge']:.0f}", *(f"{row[name]:.3f}" for name in ("first_order", "steihaug", "published")),
            f"{row['length']:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    heads = ["inner steps", "inner gradient left", "% stopped at the edge", "cosine, first order"]
    heads += ["cosine, Steihaug's rule", "cosine, published damping", "length, Steihaug / exact"]
    return markdown(heads, shown)


def main(options: Options) -> None:
    keep_memory()
    _, config = settings("imaml", options.dataset)
    weights = None
    if options.run:
        config, weights = trained(options.run, "imaml")
    loader = EpisodeLoader(options.train_file, 5, 1, config.train_queries, options.tasks, seed=-3)
    torch.manual_seed(0)
    model = imaml.Model(loader.image_shape, config, torch.device("cpu"))
    if weights:
        model.load_state_dict(weights)
    rows = []
    for steps, rate, strength in PROBLEMS:
        problem = {"inner_steps": steps, "inner_rate": rate, "strength": strength, "cg_steps": options.cg_steps}
        its = dataclasses.replace(config, **problem)
        rows.append(problem | measure(model, loader, its, options.episodes // options.tasks))
    whose = f"the weights of {options.run.name}" if options.run else "an untrained network"
    title = (
        f"{options.dataset} 5-way 1-shot, {options.episodes} training tasks, {whose}, {options.cg_steps} steps of "
        "conjugate gradient"
    )
    name = f"implicit-{options.dataset}-{'trained' if options.run else 'untrained'}"
    report(options.out, name, {"task": title, "rows": rows}, f"{title}\n\n{as_table(rows)}")


if __name__ == "__main__":
    start(main, Options)
