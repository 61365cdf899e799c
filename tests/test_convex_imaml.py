"""Convex iMAML's meta-gradient and predictions, in float64 where gradients are compared."""

import pytest
import torch

import convex_imaml
from convex_imaml import Config, meta_step, predict
from tests.gradients import a_model, an_episode, assert_gradients_are_those_of_the_loss


@pytest.mark.parametrize("block", ("pool-norm", "norm-pool"))
@pytest.mark.parametrize("unit_features", (False, True))
def test_meta_gradient_equals_finite_differences_in_every_kind_of_parameter(data_dir, block, unit_features):
    config = Config(width=4, block=block, unit_features=unit_features, learn_start=True, tolerance=1e-13)
    model, episode = a_model(convex_imaml, config).double(), an_episode(data_dir, torch.float64)
    torch.nn.init.normal_(model.W0, std=0.3)
    assert len(list(model.parameters())) == 4 * 3 + 3
    assert_gradients_are_those_of_the_loss(convex_imaml, model, episode, config)


def test_features_term_is_part_of_the_backbones_gradient(data_dir):
    """Without the implicit gradient through the support features the backbone's gradient is another one."""
    config = Config(width=4)
    model, episode = a_model(convex_imaml, config), an_episode(data_dir)
    meta_step(model, episode, config)
    whole = model.backbone.blocks[0].convolution.weight.grad.clone()
    model.zero_grad()
    f = model.features(episode.images, "batch")
    head = convex_imaml.adapt(model, f[episode.support].detach(), episode.y_support, 5, config).value.detach()
    logits = model.logits(f[episode.query], head)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), episode.y_query.flatten()).backward()
    without = model.backbone.blocks[0].convolution.weight.grad
    assert (whole - without).norm() > 0.1 * whole.norm()


def test_labels_permuted_permute_the_predictions(data_dir):
    """From W0 = 0 no class is named first: renaming the classes renames the predictions and nothing else."""
    config = Config(width=4)
    model, episode = a_model(convex_imaml, config).eval(), an_episode(data_dir)
    logits = predict(model, episode, config)
    order = torch.tensor([3, 0, 4, 1, 2])
    episode.y_support = order[episode.y_support]
    torch.testing.assert_close(predict(model, episode, config)[..., order], logits, rtol=1e-3, atol=1e-4)


def test_transductive_predictions_use_the_statistics_of_the_query_batch_alone(data_dir):
    config = Config(width=8)
    model, episode = a_model(convex_imaml, config).eval(), an_episode(data_dir)
    logits = predict(model, episode, config, transductive=True)
    for task in range(3):
        f_query = model.features(episode.x_query[task], "batch", statistics := [])
        f_support = model.features(episode.x_support[task], statistics)
        head = convex_imaml.adapt(model, f_support[None], episode.y_support[task : task + 1], 5, config).value[0]
        torch.testing.assert_close(logits[task], model.logits(f_query, head), rtol=1e-3, atol=1e-4)
    for name, buffer in model.named_buffers():  # running averages have no part in it
        buffer.fill_(3.0)
    torch.testing.assert_close(predict(model, episode, config, transductive=True), logits)


def test_each_image_is_embedded_once_however_many_tasks_share_it(data_dir):
    config = Config(width=4)
    model = a_model(convex_imaml, config)
    episode = an_episode(data_dir, tasks=40, pool=(9, 10))
    seen = []
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    meta_step(model, episode, config)
    assert seen == [90] and episode.query.shape == (40, 15)


def test_unit_features_leave_the_length_of_an_images_features_without_a_say(data_dir):
    config = Config(width=8, unit_features=True)
    model, episode = a_model(convex_imaml, config).eval(), an_episode(data_dir)
    f = model.features(episode.images, "running")
    torch.testing.assert_close(f[:, :-1].norm(dim=1), torch.ones(len(f)))
    plain = model.backbone(episode.images, "running")
    torch.testing.assert_close(f[:, :-1], plain / plain.norm(dim=1, keepdim=True))
