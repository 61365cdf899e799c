"""Convex iMAML's meta-gradient and predictions, in float64 where gradients are compared."""

import pytest
import torch

import convex_imaml
from common.episodes import EpisodeLoader
from common.options import ROOT
from convex_imaml import Config, Model, meta_step, predict

CPU = torch.device("cpu")


def a_model(config, shape=(1, 28, 28), seed=0):
    torch.manual_seed(seed)
    return Model(shape, config, CPU)


def an_episode(data_dir, dtype=torch.float32, name="toy", ways=5, shots=1, queries=3, tasks=3, **options):
    episode = EpisodeLoader(data_dir / name / "test.h5", ways, shots, queries, tasks, **options).sample()
    episode.images = episode.images.to(dtype)
    return episode


@pytest.mark.parametrize("block", ("pool-norm", "norm-pool"))
def test_meta_gradient_equals_finite_differences_in_every_kind_of_parameter(data_dir, block):
    config = Config(width=4, block=block, learn_start=True, tolerance=1e-13, precision="float32")
    model, episode = a_model(config).double(), an_episode(data_dir, torch.float64)
    torch.nn.init.normal_(model.W0, std=0.3)
    meta_step(model, episode, config)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert len(gradients) == 4 * 3 + 3
    for name, parameter in model.named_parameters():
        gradient = gradients[name]
        assert gradient.norm() > 1e-6, f"{name} gets no meta-gradient"
        direction = torch.randn_like(parameter)  # and a short step, so that no ReLU or maximum changes sides
        losses = []
        for step in (1e-7, -1e-7):
            with torch.no_grad():
                parameter += step * direction
            losses.append(meta_step(model, episode, config)["loss"])
            with torch.no_grad():
                parameter -= step * direction
        numeric = (losses[0] - losses[1]) / 2e-7
        torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-7)


def test_features_term_is_part_of_the_backbones_gradient(data_dir):
    """Without the implicit gradient through the support features the backbone's gradient is another one."""
    config = Config(width=4)
    model, episode = a_model(config), an_episode(data_dir)
    meta_step(model, episode, config)
    whole = model.backbone.blocks[0].convolution.weight.grad.clone()
    model.zero_grad()
    f = model.features(episode.images, "batch")
    head = convex_imaml.adapt(model, f[episode.support].detach(), episode.y_support, 5, config).value.detach()
    logits = model.logits(f[episode.query], head)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), episode.y_query.flatten()).backward()
    without = model.backbone.blocks[0].convolution.weight.grad
    assert (whole - without).norm() > 0.1 * whole.norm()


def test_gradients_are_a_mean_over_tasks(data_dir):
    """The same tasks twice give the same meta-gradient as once."""
    config = Config(width=4, tolerance=1e-12)
    model, episode = a_model(config).double(), an_episode(data_dir, torch.float64)
    meta_step(model, episode, config)
    once = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for field in ("support", "query", "y_support", "y_query", "classes"):
        setattr(episode, field, getattr(episode, field).repeat(2, 1))
    meta_step(model, episode, config)
    for a, p in zip(once, model.parameters()):
        torch.testing.assert_close(a, p.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_before_adaptation_accuracy_is_chance_on_every_data_set(data_dir, glyphs_folder):
    """An untrained model whose head stays at its start knows nothing: labels leak through no part of an episode.

    toy, glyphs, and whatever is built in the project's data folder.
    """
    built = [file.parent for file in sorted((ROOT / "data").glob("*/test.h5"))]
    for folder in [data_dir / "toy", glyphs_folder, *built]:
        config = Config(width=16, learn_start=True, newton_steps=0)
        loader = EpisodeLoader(folder / "test.h5", 5, 1, 5, 50, seed=1, pool=(9, 6))
        model = a_model(config, loader.image_shape).eval()
        torch.nn.init.normal_(model.W0)
        correct = []
        for _ in range(6):
            episode = loader.sample()
            correct.append((predict(model, episode, config).argmax(-1) == episode.y_query).float().mean(1))
        accuracy = torch.cat(correct)
        assert abs(accuracy.mean() - 0.2) < 4 * accuracy.std() / len(accuracy) ** 0.5 + 0.005, folder.name


def test_labels_permuted_permute_the_predictions(data_dir):
    """From W0 = 0 no class is named first: renaming the classes renames the predictions and nothing else."""
    config = Config(width=4)
    model, episode = a_model(config).eval(), an_episode(data_dir)
    logits = predict(model, episode, config)
    order = torch.tensor([3, 0, 4, 1, 2])
    episode.y_support = order[episode.y_support]
    torch.testing.assert_close(predict(model, episode, config)[..., order], logits, rtol=1e-3, atol=1e-4)


def test_a_shuffled_or_single_query_gives_the_same_inductive_prediction(data_dir):
    config = Config(width=8)
    model, episode = a_model(config), an_episode(data_dir)
    for _ in range(60):
        meta_step(model, episode, config)  # moves the running averages
    model.eval()
    logits, loud = predict(model, episode, config), predict(model, episode, config, transductive=True)
    assert logits.std() > 0.01
    order = torch.randperm(15)
    query = episode.query
    episode.query = query[:, order]
    torch.testing.assert_close(predict(model, episode, config), logits[:, order], rtol=1e-4, atol=1e-5)
    for q in range(15):
        episode.query = query[:, q : q + 1]
        torch.testing.assert_close(predict(model, episode, config), logits[:, q : q + 1], rtol=1e-4, atol=1e-5)
    # and the transductive one does depend on the other query images
    assert not torch.allclose(predict(model, episode, config, transductive=True), loud[:, -1:], atol=1e-4)


def test_transductive_predictions_use_the_statistics_of_the_query_batch_alone(data_dir):
    config = Config(width=8)
    model, episode = a_model(config).eval(), an_episode(data_dir)
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
    model = a_model(config)
    episode = an_episode(data_dir, tasks=40, pool=(9, 10))
    seen = []
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    meta_step(model, episode, config)
    assert seen == [90] and episode.query.shape == (40, 15)
