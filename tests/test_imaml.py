"""iMAML's inner optimum and implicit gradient, in float64 on a small network.

It is smooth: gradient descent on Conv4 with four filters runs in circles around kinks of ReLU and max-pooling, where
no gradient vanishes and Eq 5 has nothing to say.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import imaml
from benchmarks import implicit
from common.conv4 import BatchNorm
from imaml import Config, adapt, implicit_gradient
from tests.gradients import a_model, an_episode, assert_gradients_are_those_of_the_loss, gradients_of, hessian

TIGHT = dict(strength=2.0, inner_rate=0.2, inner_steps=100, cg_steps=100, tolerance=1e-13)


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


class Smooth(nn.Module):
    """In the place of Conv4: convolution, batch norm, tanh and average pooling.   (T, B, 1, 28, 28) -> (T, B, 8)"""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 2, 7, stride=7, bias=False), BatchNorm(2, running=False)

    def forward(self, x, statistics, collected=None):
        x = F.conv2d(x.transpose(0, 1).flatten(1, 2), self.convolution.weight.flatten(0, 1), stride=7, groups=len(x))
        x = F.avg_pool2d(self.norm(x, statistics, collected).tanh(), 2)
        return x.unflatten(1, (-1, 2)).transpose(0, 1).flatten(2)


def a_task(data_dir, config, **options):
    model, episode = a_model(imaml, config), an_episode(data_dir, torch.float64, **options)
    model.backbone, model.head = Smooth(), nn.Linear(8, 5)
    nn.init.normal_(model.backbone.convolution.weight)  # long filters: curvature falls with their squared length
    model.double()
    return model, episode, episode.x_support[:1], episode.y_support[:1]


def dense_meta_gradient(model, episode, config):
    """(I + H / strength)^-1 grad L_query of one task, with the Hessian from differences of gradients."""
    x, y = episode.x_support, episode.y_support
    tight = Config(**TIGHT)
    phi = adapt(model, x, y, tight.inner_steps, config)
    parameters = list(phi.values())
    loss = F.cross_entropy(functional_call(model, phi, (episode.x_query, "batch"))[0], episode.y_query[0])
    v = flat(torch.autograd.grad(loss, parameters))

    def support():
        return F.cross_entropy(functional_call(model, dict(zip(phi, parameters)), (x, "batch"))[0], y[0])

    H = hessian(support, parameters)
    H = (H + H.T) / 2
    assert H.norm() > 0.1
    return torch.linalg.solve(torch.eye(len(v), dtype=v.dtype) + H / config.strength, v), v


def test_the_inner_problem_is_solved_where_its_gradient_vanishes(data_dir):
    """grad L(phi*) + strength (phi* - theta) = 0 (Eq 4)."""
    config = Config(**TIGHT)
    model, _, x, y = a_task(data_dir, config)
    phi = adapt(model, x, y, config.inner_steps, config)
    loss = F.cross_entropy(functional_call(model, phi, (x, "batch"))[0], y[0])
    gradient = flat(torch.autograd.grad(loss, tuple(phi.values())))
    moved = flat(phi.values()) - flat(model.parameters())
    assert moved.norm() > 0.01
    torch.testing.assert_close(gradient, -config.strength * moved, rtol=0, atol=1e-9)


def test_meta_gradient_equals_the_dense_solution_and_finite_differences(data_dir):
    config = Config(**TIGHT)
    model, episode, *_ = a_task(data_dir, config, tasks=1)
    expected, v = dense_meta_gradient(model, episode, config)
    gradient = flat(gradients_of(imaml, model, episode, config).values())
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
    assert (gradient - v).norm() > 0.01 * v.norm()  # so that forgetting the Hessian would be seen
    assert_gradients_are_those_of_the_loss(imaml, model, episode, config, rtol=1e-4)


def test_the_implicit_gradient_is_the_one_through_steps_that_settle_and_not_through_steps_that_dont(data_dir):
    model, episode, *_ = a_task(data_dir, Config(**TIGHT))
    cosines = {}
    for steps in (100, 1):
        config = Config(**{**TIGHT, "inner_steps": steps, "inner_rate": 0.1})
        phi = adapt(model, episode.x_support, episode.y_support, steps, config)
        v = imaml.flat(torch.autograd.grad(implicit.query_loss(model, phi, episode), tuple(phi.values())))
        u = implicit_gradient(model, phi, episode.x_support, episode.y_support, v, config).value
        cosines[steps] = F.cosine_similarity(u, implicit.through_the_steps(model, episode, config))
    assert (cosines[100] > 1 - 1e-6).all() and (cosines[1] < 1 - 1e-4).all()


@pytest.mark.parametrize("growing", ("inner_steps", "cg_steps"))
def test_error_falls_as_inner_and_cg_steps_grow(data_dir, growing, record_property):
    """One of the two grows, the other is large. The table is printed at the end of the tests (conftest.py)."""
    config = Config(**TIGHT)
    model, episode, *_ = a_task(data_dir, config, tasks=1)
    expected, _ = dense_meta_gradient(model, episode, config)
    errors = {}
    for steps in (1, 4, 16, 40):
        gradient = flat(gradients_of(imaml, model, episode, Config(**{**TIGHT, growing: steps})).values())
        errors[steps] = float((gradient - expected).norm() / expected.norm())
    shown = ", ".join(f"{steps}: {error:.1e}" for steps, error in errors.items())
    record_property("table", f"iMAML, relative error of the meta-gradient against {growing.replace('_', ' ')}: {shown}")
    values = list(errors.values())
    assert all(b < a / 2 for a, b in zip(values, values[1:]) if a > 1e-7) and values[0] > 1e-3 and values[-1] < 1e-3


def test_a_step_that_makes_the_gradient_longer_is_followed_by_one_that_fits_the_curvature():
    """On quadratics that curve alike in all directions; where they curve down, the rate stays."""
    curvature = torch.tensor([[50.0], [4.0], [-3.0], [0.0]])
    before = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    rate = torch.full((4, 1), 0.2)
    after = imaml.step_size(rate, before - curvature * rate * before, before)
    torch.testing.assert_close(after, torch.tensor([[1 / 50], [0.2], [0.2], [0.2]]))


def test_no_graph_is_kept_and_the_model_is_left_alone(data_dir):
    config = Config()
    model, _, x, y = a_task(data_dir, config)
    before = flat(model.parameters()).clone()
    phi = adapt(model, x, y, 3, config)
    assert all(p.is_leaf and p.grad_fn is None for p in phi.values())
    assert torch.equal(flat(model.parameters()), before) and not torch.equal(flat(phi.values()), before)


def test_a_system_that_is_not_solved_says_so(data_dir):
    config = Config(cg_steps=1, strength=0.1)
    model, _, x, y = a_task(data_dir, config)
    phi = adapt(model, x, y, 3, config)
    v = torch.randn_like(flat(phi.values()))[None]
    solution = implicit_gradient(model, phi, x, y, v, config)
    assert not solution.converged.any() and solution.residual > 1e-3 and solution.iterations == 1
    statistics = imaml.meta_step(model, an_episode(data_dir, torch.float64), config)
    assert statistics["residual"].shape == (3,) and not statistics["converged"].any()


@pytest.mark.parametrize("strength", (0.01, 0.1))
def test_no_solution_is_longer_than_the_query_gradient(data_dir, strength):
    """Where H curves downwards, more than strength does upwards, the system has no minimum: Steihaug's rule ends it."""
    config = Config(strength=strength, inner_steps=1, cg_steps=50)
    model, episode = a_model(imaml, config), an_episode(data_dir, torch.float64, tasks=8)
    x, y = episode.x_support, episode.y_support
    phi = adapt(model, x, y, 1, config)
    v = torch.randn(8, sum(p[0].numel() for p in phi.values()), dtype=torch.float64)
    solution = implicit_gradient(model, phi, x, y, v, config)
    at_edge, length, most = solution.more["at_edge"], solution.value.norm(dim=1), v.norm(dim=1)
    assert at_edge.any() and not (at_edge & solution.converged).any()
    torch.testing.assert_close(length[at_edge], most[at_edge], rtol=2e-4, atol=0)
    assert (length < (1 + 2e-4) * most).all() and ((solution.value * v).sum(1) > 0).all()
    torch.testing.assert_close(imaml.meta_step(model, episode, config)["at_edge"].shape, torch.Size([8]))


def test_a_support_loss_that_is_no_number_leaves_the_first_order_gradient(data_dir):
    model, _, x, y = a_task(data_dir, Config())
    phi = adapt(model, x, y, 1, Config())
    v = torch.randn_like(flat(phi.values()))[None]
    solution = implicit_gradient(model, phi, x * float("nan"), y, v, Config())
    torch.testing.assert_close(solution.value, v, rtol=2e-4, atol=0)
    assert solution.more["at_edge"].all() and not solution.converged.any()


def test_an_exact_solution_that_rounding_makes_as_long_as_v_is_not_at_the_edge(data_dir):
    """Where H is next to nothing u is v but for rounding, which may make it the longer one."""
    config = Config(strength=1e6)
    model, episode = a_model(imaml, Config(width=4)), an_episode(data_dir, tasks=8)
    x, y = episode.x_support, episode.y_support
    phi = adapt(model, x, y, 0, config)
    longer = 0
    for seed in range(4):
        v = torch.randn(8, sum(p[0].numel() for p in phi.values()), generator=torch.Generator().manual_seed(seed))
        solution = implicit_gradient(model, phi, x, y, v, config)
        assert solution.converged.all() and not solution.more["at_edge"].any()
        longer += int((solution.value.norm(dim=1) > v.norm(dim=1)).sum())
    assert longer > 0


@pytest.mark.parametrize("rate", (0.05, 0.1))
def test_proximal_term_pulls_towards_the_start(data_dir, rate):
    model, _, x, y = a_task(data_dir, Config())
    theta = flat(model.parameters())
    far, near = (
        (flat(adapt(model, x, y, 50, Config(strength=s, inner_rate=rate)).values()) - theta).norm() for s in (0.1, 5.0)
    )
    assert 0 < near < far / 2
