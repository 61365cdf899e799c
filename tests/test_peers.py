"""What peers' meta-gradients are compared with, and what the table says of those that aren't there."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import imaml
from benchmarks import cloned, ours, problems
from benchmarks.meta_step_rows import OURS


@pytest.mark.slow
def test_imamls_peers_are_compared_with_the_implicit_gradient_of_steps_of_one_length():
    """It solves the system of Eq 5 where such steps of the textbook network end. The script's own, which are shortened
    here, end elsewhere."""
    options = {"inner_steps": 16, "inner_rate": 0.005, "strength": 50.0, "cg_steps": 400, "tolerance": 1e-10}
    _, info = ours.meta_steps("imaml", "omniglot", 16, 1, **options)
    episode, net = problems.random_episode("omniglot", 1), problems.textbook_of("omniglot", 16).double()
    episode.images = episode.images.double()
    support = episode.x_support[0], episode.y_support[0]
    query = episode.x_query[0], episode.y_query[0]
    # A convolution's bias before batch norm has no gradient.
    theta = {name: p for name, p in net.named_parameters() if not name.endswith(".0.bias")}
    start = flat(theta.values()).detach()

    def gradient(phi, x, y):  # (n,)
        weights = zip(theta.items(), phi.split([p.numel() for p in theta.values()]))
        loss = F.cross_entropy(functional_call(net, {name: part.view_as(p) for (name, p), part in weights}, x), y)
        return torch.autograd.grad(loss, phi, create_graph=True)[0]

    phi = start.clone().requires_grad_()
    for _ in range(options["inner_steps"]):
        moved = phi - options["inner_rate"] * (gradient(phi, *support) + options["strength"] * (phi - start))
        phi = moved.detach().requires_grad_()
    v, g = gradient(phi, *query), gradient(phi, *support)

    def residual(u):  # of (I + H / strength) u = v
        Hu = torch.autograd.grad(g, phi, torch.from_numpy(u), retain_graph=True)[0]
        left = torch.from_numpy(u) + Hu / options["strength"] - v
        return float((left.norm() / v.norm()).detach())

    assert v.norm() > 0.01 and residual(info["gradient"]) < 1e-8
    _, config, model = problems.our_model("imaml", "omniglot", 16, **options)
    imaml.meta_step(model.double(), episode, config)
    assert residual(problems.shared_gradient(model)) > 0.01


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize(
    ("algorithm", "piece", "module"),
    [("imaml", cloned.hypertorch, "hypergrad"), ("cavia", cloned.cavia, "classification")],
)
def test_a_peer_without_a_clone_says_what_is_absent(algorithm, piece, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeError, match="not run: PYTHONPATH names no clone of github.com/"):
        piece("omniglot", width=2, tasks=1, **OURS[algorithm])
