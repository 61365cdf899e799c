"""Peers without a package: their repositories are cloned, and found where PYTHONPATH names them.

    git clone https://github.com/prolearner/hypertorch PEERS/hypertorch
    git clone https://github.com/lmzintgraf/cavia PEERS/cavia
    PYTHONPATH=PEERS/hypertorch:PEERS/cavia python -m benchmarks.run

What is absent is a row without a time, whose note says so.
"""

import importlib
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from benchmarks import problems
from benchmarks.problems import Work


def checkout(module: str, repository: str) -> ModuleType:
    """The module of a clone. Raises RuntimeError where PYTHONPATH leads to none."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise RuntimeError(f"not run: PYTHONPATH names no clone of github.com/{repository}") from None


def hypertorch(
    dataset: str, width: int, tasks: int, inner_steps: int, inner_rate: float, strength: float, cg_steps: int,
    tolerance: float,
) -> Work:  # fmt: skip
    """iMAML as examples/iMAML.py has it, but with functional_call in place of higher's copy of the network."""
    hypergrad = checkout("hypergrad", "prolearner/hypertorch")
    net, episode = problems.textbook_of(dataset, width), problems.random_episode(dataset, tasks)
    names, theta = zip(*net.named_parameters())

    def loss(phi, x, y):
        return F.cross_entropy(functional_call(net, dict(zip(names, phi)), x), y)

    def task_backward(x, y, x_query, y_query):
        def inner(phi, theta):
            distance = sum((p - start).square().sum() for p, start in zip(phi, theta))
            return loss(phi, x, y) + strength / 2 * distance

        def outer(phi, theta):
            return loss(phi, x_query, y_query) / tasks

        descent = hypergrad.GradientDescent(inner, step_size=inner_rate)
        phi = [p.detach().clone().requires_grad_() for p in theta]
        for _ in range(inner_steps):
            phi = descent(phi, theta, create_graph=False)
        fixed_point_map = hypergrad.GradientDescent(inner, step_size=1.0)
        hypergrad.CG(phi, theta, K=cg_steps, fp_map=fixed_point_map, outer_loss=outer, tol=tolerance)

    def backward():
        for task in zip(episode.x_support, episode.y_support, episode.x_query, episode.y_query):
            task_backward(*task)

    return problems.adam_steps(net, episode, backward)


def cavia(dataset: str, width: int, tasks: int, inner_steps: int, inner_rate: float) -> Work:
    """The meta-step of the authors' classification/main.py on their own network, whose first convolution has as many
    channels as the images here.

    Its meta-gradient isn't ours: it normalises support and query images of every task by themselves, below the context
    too, where cavia.py has one batch of all; and scales by gamma where cavia.py scales by 1 + gamma.
    """
    models = checkout("classification.models", "lmzintgraf/cavia")
    episode = problems.random_episode(dataset, tasks)
    torch.manual_seed(0)
    net = models.CondConvNet(
        num_classes=5, num_filters=width, max_pool=True, num_context_params=100,
        context_in=[False, False, True, False, False], num_film_hidden_layers=0, imsize=episode.images.shape[-1],
        initialisation="kaiming", device=torch.get_default_device(),
    )  # fmt: skip
    net.conv1 = nn.Conv2d(episode.images.shape[1], width, 3, padding=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5)

    def step():
        optimizer.zero_grad()
        for x, y, x_query, y_query in zip(episode.x_support, episode.y_support, episode.x_query, episode.y_query):
            net.reset_context_params()
            for _ in range(inner_steps):
                loss = F.cross_entropy(net(x), y)
                gradient = torch.autograd.grad(loss, net.context_params, create_graph=True)[0]
                net.context_params = net.context_params - inner_rate * gradient
            (F.cross_entropy(net(x_query), y_query) / tasks).backward()
        optimizer.step()

    return step, {"note": "the authors' network and batches: no gradient is compared"}
