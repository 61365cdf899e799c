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


@pytest.mark.parametrize("second_order", (False, True))
def test_context_steps_are_those_of_gradient_descent_written_out(data_dir, second_order):
    """Three steps from zero at another rate than 1, each task by itself, on the plain blocks."""
    config = Config(width=4, context=6, inner_rate=3.0)
    model, episode = a_model(cavia, config).double(), an_episode(data_dir, torch.float64)
    h, y = model.backbone.below(episode.images, "batch")[episode.support].detach(), episode.y_support
    found = adapt(model, h, y, 3, config, second_order)
    for task in range(3):
        c, losses = torch.zeros(6, dtype=torch.float64), []
        for _ in range(3):
            c.requires_grad_()
            gamma, beta = (model.film.weight @ c + model.film.bias).chunk(2)
            x = (1 + gamma)[:, None, None] * h[task] + beta[:, None, None]
            x = model.backbone.blocks[3](model.backbone.blocks[2].after_norm(x), "batch")
            loss = F.cross_entropy(model.head(x.flatten(1)), y[task])
            losses.append(loss.item())
            c = c.detach() - 3.0 * torch.autograd.grad(loss, c)[0]
        assert losses[2] < losses[0]
        torch.testing.assert_close(found[task], c, rtol=1e-9, atol=1e-12)


def test_first_order_leaves_out_the_inner_gradients_derivative(data_dir):
    """It is the gradient of the query loss at c_k, with c_k a constant."""
    config = Config(width=4, context=6, first_order=True)
    model, episode = a_model(cavia, config).double(), an_episode(data_dir, torch.float64)
    first = gradients_of(cavia, model, episode, config)
    h = model.backbone.below(episode.images, "batch")
    context = adapt(model, h[episode.support], episode.y_support, 2, config).detach()
    logits = model.logits(h[episode.query], context)
    loss = F.cross_entropy(logits.flatten(0, 1), episode.y_query.flatten())
    for (name, gradient), expected in zip(first.items(), torch.autograd.grad(loss, list(model.parameters()))):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12, msg=name)
    config.first_order = False
    second = gradients_of(cavia, model, episode, config)
    assert sum((first[k] - second[k]).norm() for k in first) > 0.01 * sum(second[k].norm() for k in first)


def test_context_is_zero_for_a_fresh_task_and_each_tasks_own(data_dir):
    config = Config(width=4, context=6)
    model, episode = a_model(cavia, config).double(), an_episode(data_dir)
    model.eval()
    h, y = model.backbone.below(episode.images.double(), "running")[episode.support], episode.y_support
    assert torch.equal(adapt(model, h, y, 0, config), torch.zeros(3, 6, dtype=h.dtype))
    together = adapt(model, h, y, 2, config)
    assert together.norm(dim=1).min() > 1e-4 and (together[0] - together[1]).norm() > 1e-5
    for task in range(3):
        alone = adapt(model, h[task : task + 1], y[task : task + 1], 2, config)
        torch.testing.assert_close(alone[0], together[task], rtol=1e-9, atol=1e-12)
    again = adapt(model, h, y, 2, config)
    torch.testing.assert_close(again, together)  # nothing of a task is left behind


def test_a_context_of_zero_is_the_plain_network_before_training(data_dir):
    config = Config(width=4, context=6)
    model, episode = a_model(cavia, config), an_episode(data_dir)
    h = model.backbone.below(episode.images, "batch")
    logits = model.logits(h[None], torch.zeros(1, 6))[0]  # one task, normalised by itself as below
    plain = model.head(model.backbone(episode.images, "batch"))
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-5)


def test_layers_below_the_context_see_every_image_once(data_dir):
    config = Config(width=4, context=6)
    model, episode = a_model(cavia, config), an_episode(data_dir, tasks=12, pool=(9, 6))
    seen = []
    model.backbone.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    cavia.meta_step(model, episode, config)
    assert seen == [54]


def test_a_query_is_normalised_above_the_context_by_the_support_at_the_adapted_context(data_dir):
    """Inductive; with the transductive one, both written out on the plain blocks."""
    config = Config(width=4, context=6, inner_rate=5.0, precision="float32")
    model, episode = a_model(cavia, config).eval(), an_episode(data_dir, tasks=1)
    net = model.backbone

    def third_and_fourth(h, c, statistics, collected=None):
        gamma, beta = model.film(c)[0].chunk(2)
        x = (1 + gamma)[:, None, None] * h + beta[:, None, None]
        x = net.blocks[3](net.blocks[2].after_norm(x), statistics, collected)
        return model.head(x.flatten(1))

    for transductive in (False, True):
        below = "batch" if transductive else "running"
        h, h_query = (model.backbone.below(x[0], below) for x in (episode.x_support, episode.x_query))
        c = adapt(model, h[None], episode.y_support, 2, config)
        third_and_fourth(h, c, "batch", support := [])
        expected = third_and_fourth(h_query, c, "batch" if transductive else support[0])
        at_zero = third_and_fourth(h, 0 * c, "batch", fresh := [])
        assert at_zero.shape == (5, 5) and not torch.allclose(fresh[0][0], support[0][0], rtol=1e-3, atol=1e-5)
        predicted = cavia.predict(model, episode, config, transductive)[0]
        torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-5)
