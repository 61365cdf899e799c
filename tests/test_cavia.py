"""CAVIA's context and meta-gradient, in float64 on small networks."""

import pytest
import torch
import torch.nn.functional as F

import cavia
from cavia import Config, adapt
from tests.gradients import a_model, an_episode, assert_gradients_are_those_of_the_loss, gradients_of


@pytest.mark.parametrize("block", ("pool-norm", "norm-pool"))
@pytest.mark.parametrize("steps", (1, 3))
def test_meta_gradient_equals_finite_differences_through_the_context_steps(data_dir, block, steps):
    config = Config(width=4, context=6, block=block, inner_steps=steps)
    model, episode = a_model(cavia, config).double(), an_episode(data_dir, torch.float64)
    assert_gradients_are_those_of_the_loss(cavia, model, episode, config, rtol=1e-4)


def test_first_order_leaves_out_the_inner_gradients_derivative(data_dir):
    """It is the gradient of the query loss at c_k, with c_k a constant."""
    config = Config(width=4, context=6, first_order=True)
    model, episode = a_model(cavia, config).double(), an_episode(data_dir, torch.float64)
    first = gradients_of(cavia, model, episode, config)
    h = model.before_context(episode.images, "batch")
    context = adapt(model, h[episode.support], episode.y_support, 2, config).detach()
    logits = model.after_context(h[episode.query], context)
    loss = F.cross_entropy(logits.flatten(0, 1), episode.y_query.flatten())
    for (name, gradient), expected in zip(first.items(), torch.autograd.grad(loss, list(model.parameters()))):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12, msg=name)
    config.first_order = False
    second = gradients_of(cavia, model, episode, config)
    assert sum((first[k] - second[k]).norm() for k in first) > 0.01 * sum(second[k].norm() for k in first)


def test_context_is_zero_for_a_fresh_task_and_each_tasks_own(data_dir):
    config = Config(width=4, context=6)
    model, episode = a_model(cavia, config), an_episode(data_dir)
    model.eval()
    h, y = model.before_context(episode.images, "running")[episode.support], episode.y_support
    assert torch.equal(adapt(model, h, y, 0, config), torch.zeros(3, 6))
    together = adapt(model, h, y, 2, config)
    assert together.norm(dim=1).min() > 1e-4 and (together[0] - together[1]).norm() > 1e-5
    for task in range(3):
        alone = adapt(model, h[task : task + 1], y[task : task + 1], 2, config)
        torch.testing.assert_close(alone[0], together[task], rtol=1e-4, atol=1e-6)
    again = adapt(model, h, y, 2, config)
    torch.testing.assert_close(again, together)  # nothing of a task is left behind


def test_a_context_of_zero_with_a_generator_of_zero_is_the_plain_network(data_dir):
    config = Config(width=4, context=6)
    model, episode = a_model(cavia, config), an_episode(data_dir)
    torch.nn.init.zeros_(model.film.bias)
    h = model.before_context(episode.images, "batch")
    logits = model.after_context(h[None], torch.zeros(1, 6))[0]  # one task, normalised by itself as below
    plain = model.head(model.backbone(episode.images, "batch"))
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-5)


def test_layers_below_the_context_see_every_image_once(data_dir):
    config = Config(width=4, context=6)
    model, episode = a_model(cavia, config), an_episode(data_dir, tasks=12, pool=(9, 6))
    seen = []
    model.backbone.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    cavia.meta_step(model, episode, config)
    assert seen == [54]
