"""Convex MAML's meta-gradient, in float64 on small networks."""

import pytest
import torch
import torch.nn.functional as F

import convex_imaml
import convex_maml
from common.newton import ProximalHead
from common.shards import UsageError
from convex_maml import Config, adapt
from tests.gradients import a_model, an_episode, assert_gradients_are_those_of_the_loss, differences, gradients_of


def a_task(data_dir, config, **options):
    model, episode = a_model(convex_maml, config).double(), an_episode(data_dir, torch.float64, **options)
    if config.learn_start:
        torch.nn.init.normal_(model.W0, std=0.3)
    return model, episode


@pytest.mark.parametrize("inner", (dict(inner="gradient", inner_rate=1.0), dict(inner="newton", strength=0.1)))
@pytest.mark.parametrize("steps", (1, 3))
def test_meta_gradient_equals_finite_differences_through_the_inner_steps(data_dir, inner, steps):
    config = Config(width=4, inner_steps=steps, learn_start=True, **inner)
    model, episode = a_task(data_dir, config, shots=2)
    assert_gradients_are_those_of_the_loss(convex_maml, model, episode, config, rtol=1e-4)


def test_newton_steps_that_are_shortened_lower_the_loss_and_are_differentiated_at_a_constant_length(data_dir):
    """Features so large that a full step overshoots."""
    torch.manual_seed(0)
    f = (300 * torch.randn(2, 10, 6, dtype=torch.float64)).requires_grad_()
    y = torch.arange(5).repeat(2).expand(2, 10)
    W0, strength = 0.1 * torch.randn(5, 6, dtype=torch.float64), torch.tensor(1e-3, dtype=torch.float64)
    problem = ProximalHead(f, y, W0, strength)

    def loss(W):
        cross_entropy = torch.stack([F.cross_entropy(x @ w.T, labels) for x, w, labels in zip(f, W, y)])
        return cross_entropy + strength / 2 * (W - W0).square().sum((1, 2))

    W = W0.expand(2, 5, 6)
    B, Z = problem.start()
    lengths = []
    for _ in range(4):
        P = problem.probabilities(W)
        D = -problem.solve(P, problem.gradient(W, P), 1e-4)
        B, Z = problem.newton_step(B, Z)
        stepped = problem.weights(B)
        torch.testing.assert_close(Z, stepped @ f.mT)
        lengths.append((((stepped - W) * D).sum((1, 2)) / D.square().sum((1, 2))).detach())
        torch.testing.assert_close(stepped, W + lengths[-1][:, None, None] * D)
        assert (loss(stepped) < loss(W)).all()
        W = stepped
    lengths = torch.stack(lengths)
    assert 0 < lengths.min() < 1

    def after_steps(features):
        problem, W = ProximalHead(features, y, W0, strength), W0.expand(2, 5, 6)
        for length in lengths:
            P = problem.probabilities(W)
            W = W - length[:, None, None] * problem.solve(P, problem.gradient(W, P), 1e-4)
        return W.sum()

    torch.testing.assert_close(torch.autograd.grad(W.sum(), f), torch.autograd.grad(after_steps(f), f))


def test_newton_steps_run_to_convergence_give_convex_imamls_meta_gradient(data_dir):
    """Two scripts, one number: unrolled through the steps, and implicit at the optimum."""
    config = Config(width=4, inner="newton", inner_steps=12, strength=0.05, learn_start=True)
    model, episode = a_task(data_dir, config, shots=2)
    unrolled = gradients_of(convex_maml, model, episode, config)
    other = convex_imaml.Config(width=4, tolerance=1e-13, learn_start=True)
    implicit_model = a_model(convex_imaml, other).double()
    implicit_model.load_state_dict(model.state_dict())
    implicit = gradients_of(convex_imaml, implicit_model, episode, other)
    for name, gradient in unrolled.items():
        assert gradient.norm() > 1e-6, name
        torch.testing.assert_close(gradient, implicit[name], rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("options", (dict(inner="newton", inner_rate=3.0), dict(strength=0.1)))
def test_an_option_of_the_other_kind_of_inner_step_is_refused(options):
    with pytest.raises(UsageError, match="no use for it"):
        Config(**options)


def test_what_is_kept_for_the_backward_grows_with_unrolled_steps_and_not_with_the_implicit_gradients(data_dir):
    """Numbers saved by the heads' graph; beside a backbone's megabytes they wouldn't show in a process's memory."""
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    def saved(script, config):
        model, episode = a_model(script, config).double(), an_episode(data_dir, torch.float64, shots=2)
        f = model.features(episode.images, "batch")[episode.support].detach().requires_grad_()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            if script is convex_maml:
                adapt(model, f, episode.y_support, 5, config.inner_steps, config)
            else:
                convex_imaml.adapt(model, f, episode.y_support, 5, config)
        return sum(kept)

    for inner in ("gradient", "newton"):
        one, many = (saved(convex_maml, Config(width=4, inner=inner, inner_steps=k)) for k in (1, 10))
        assert many > 5 * one
    steps = {"width": 4, "tolerance": 0.0}
    one, many = (saved(convex_imaml, convex_imaml.Config(newton_steps=k, **steps)) for k in (1, 10))
    assert one == many > 0


def test_jacobian_of_the_inner_steps_has_the_blocks_of_eq_6_transposed(data_dir):
    """Of (backbone, W) after one step in (backbone, W0): the backbone stays, W is moved by both.

        [ I                          0                 ]
        [ -alpha d2L/(dW dbackbone)  I - alpha d2L/dW2 ]

    The paper prints it transposed. The second derivatives come from differences of the loss's gradient in W.
    """
    config = Config(width=2, inner_rate=0.7, learn_start=True)
    model, episode = a_task(data_dir, config, tasks=1)
    backbone = list(model.backbone.parameters())
    y = episode.y_support

    def features():
        return model.features(episode.x_support[0], "batch")[None]

    def gradient_in_W(W):
        W = W.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy((features() @ W.mT)[0], y[0])
        return torch.autograd.grad(loss, W)[0].flatten()

    W = adapt(model, features(), y, 5, 1, config)[0].flatten()
    rows = [torch.autograd.grad(value, [*backbone, model.W0], retain_graph=True) for value in W]
    to_backbone = torch.stack([torch.cat([g.flatten() for g in row[:-1]]) for row in rows])
    to_W = torch.stack([row[-1].flatten() for row in rows])

    mixed = differences(lambda: gradient_in_W(model.W0), backbone)
    H = differences(lambda: gradient_in_W(model.W0), [model.W0])
    assert mixed.norm() > 0.01 and H.norm() > 0.01
    torch.testing.assert_close(to_backbone, -0.7 * mixed, rtol=0, atol=1e-7)
    torch.testing.assert_close(to_W, torch.eye(len(W), dtype=W.dtype) - 0.7 * H, rtol=0, atol=1e-7)


def test_gradient_steps_are_those_of_plain_gradient_descent(data_dir):
    config = Config(width=4, inner_rate=2.0)
    model, episode = a_task(data_dir, config, shots=3)
    f, y = model.features(episode.images, "batch").detach()[episode.support], episode.y_support
    W = adapt(model, f, y, 5, 4, config)
    for task in range(3):
        head = torch.zeros(5, f.shape[-1], dtype=f.dtype, requires_grad=True)
        optimizer = torch.optim.SGD([head], lr=2.0)
        for _ in range(4):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(f[task] @ head.T, y[task]).backward()
            optimizer.step()
        torch.testing.assert_close(W[task], head)
