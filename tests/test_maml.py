"""MAML's meta-gradient, in float64 on small networks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import maml
from maml import Config, adapt
from tests.gradients import a_model, an_episode, assert_gradients_are_those_of_the_loss, gradients_of, hessian


@pytest.mark.parametrize(
    "block, steps", [("norm-pool", 1), pytest.param("norm-pool", 3, marks=pytest.mark.slow), ("pool-norm", 3)]
)
def test_meta_gradient_equals_finite_differences_through_the_inner_steps(data_dir, block, steps):
    config = Config(width=4, block=block, inner_steps=steps, inner_rate=0.1)
    model, episode = a_model(maml, config).double(), an_episode(data_dir, torch.float64)
    assert_gradients_are_those_of_the_loss(maml, model, episode, config)


@pytest.mark.slow
@pytest.mark.parametrize("first_order", (False, True))
@pytest.mark.parametrize("learned", ("layer", "weight"))
def test_learned_rates_begin_as_plain_maml_and_have_a_meta_gradient_of_their_own(data_dir, learned, first_order):
    config = Config(width=4, inner_steps=3, inner_rate=0.125, first_order=first_order)
    plain, episode = a_model(maml, config).double(), an_episode(data_dir, torch.float64)
    expected = gradients_of(maml, plain, episode, config)
    config.learn_rates = learned
    model = a_model(maml, config).double()
    found = gradients_of(maml, model, episode, config)
    assert len(found) == 2 * len(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    sizes = [rate.numel() for rate in model.rates]
    assert sizes == ([1] * len(expected) if learned == "layer" else [p.numel() for p in plain.parameters()])
    if not first_order:
        assert_gradients_are_those_of_the_loss(maml, model, episode, config)


@pytest.mark.parametrize("second_order", (False, True))
def test_inner_steps_are_those_of_plain_gradient_descent(data_dir, second_order):
    config = Config(width=4, inner_rate=0.2)
    model, episode = a_model(maml, config).double(), an_episode(data_dir, torch.float64)
    phi = adapt(model, episode.x_support, episode.y_support, 3, config, second_order)
    for task, (x, y) in enumerate(zip(episode.x_support, episode.y_support)):
        learner = copy.deepcopy(model)
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.2)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(learner(x, "batch"), y).backward()
            optimizer.step()
        for name, p in learner.named_parameters():
            torch.testing.assert_close(phi[name][task], p, rtol=1e-9, atol=1e-12, msg=name)


def test_first_order_is_the_gradient_at_the_adapted_weights_and_another_than_second_order(data_dir):
    config = Config(width=4, inner_steps=3, inner_rate=0.1, first_order=True)
    model, episode = a_model(maml, config).double(), an_episode(data_dir, torch.float64, tasks=1)
    first = gradients_of(maml, model, episode, config)
    phi = adapt(model, episode.x_support, episode.y_support, 3, config)
    phi = {name: p[0].detach().requires_grad_() for name, p in phi.items()}
    loss = F.cross_entropy(functional_call(model, phi, (episode.x_query[0], "batch")), episode.y_query[0])
    for (name, gradient), expected in zip(first.items(), torch.autograd.grad(loss, tuple(phi.values()))):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12, msg=name)
    config.first_order = False
    second = gradients_of(maml, model, episode, config)
    assert sum((first[k] - second[k]).norm() for k in first) > 0.01 * sum(second[k].norm() for k in first)


@pytest.mark.slow
def test_jacobian_of_one_inner_step_is_identity_minus_alpha_hessian(data_dir):
    """Eq 3, with the Hessian from differences of gradients."""
    config = Config(width=2, inner_rate=0.3)
    model, episode = a_model(maml, config).double(), an_episode(data_dir, torch.float64)
    x, y = episode.x_support[:1], episode.y_support[:1]
    phi = torch.cat([p.flatten() for p in adapt(model, x, y, 1, config, second_order=True).values()])
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(value, parameters, retain_graph=True) for value in phi]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    H = hessian(lambda: F.cross_entropy(model(x[0], "batch"), y[0]), parameters)
    assert H.norm() > 0.1
    torch.testing.assert_close(jacobian, torch.eye(len(phi), dtype=H.dtype) - 0.3 * H, rtol=0, atol=1e-6)


def test_the_graph_is_kept_for_second_order_alone(data_dir):
    """Without it the adapted weights are theta minus constants: the Jacobian is the identity."""
    config = Config(width=2, inner_rate=0.3)
    model, episode = a_model(maml, config).double(), an_episode(data_dir, torch.float64)
    phi = adapt(model, episode.x_support[:1], episode.y_support[:1], 2, config)
    for name, p in model.named_parameters():
        assert not torch.equal(phi[name][0], p)
        v = torch.randn_like(phi[name])
        torch.testing.assert_close(torch.autograd.grad(phi[name], p, v)[0], v[0])
