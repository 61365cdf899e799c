"""Reptile's update, against its definition written out."""

import copy

import pytest
import torch
import torch.nn.functional as F

import reptile
from common.run import outer_optimizer
from reptile import Config, adapt
from tests.gradients import a_model, an_episode, gradients_of


@pytest.mark.parametrize("inner_optimizer", ("adam", "sgd"))
def test_the_update_moves_the_start_towards_the_mean_of_where_the_tasks_end(data_dir, inner_optimizer):
    """theta + epsilon mean(phi - theta), every phi from its own loop over minibatches."""
    config = Config(width=4, inner_steps=4, inner_batch=6, inner_rate=0.01, inner_optimizer=inner_optimizer)
    config.learning_rate = 0.3
    model, episode = a_model(reptile, config).double(), an_episode(data_dir, torch.float64, shots=2)
    model.steps += 7  # of an Adam that has been on its way
    for moment in model.moments():
        moment.uniform_(0, 1e-4)
    theta = copy.deepcopy(model.state_dict())
    ends = []
    for x, y in zip(episode.x_support, episode.y_support):
        learner = copy.deepcopy(model)
        second, rate = learner.moments(), 0.01
        for step in range(4):
            chosen = [(step * 6 + i) % 10 for i in range(6)]
            learner.zero_grad()
            F.cross_entropy(learner(x[chosen], "batch"), y[chosen]).backward()
            for p, v in zip(learner.parameters(), second):
                scale = 1.0
                if inner_optimizer == "adam":  # with beta1 = 0, written out
                    v.mul_(0.999).add_(0.001 * p.grad.square())
                    scale = (v / (1 - 0.999 ** (step + 8))).sqrt() + 1e-8
                p.data -= rate * p.grad / scale
        learner.steps += 4
        ends.append(learner.state_dict())
    gradients_of(reptile, model, episode, config)
    outer_optimizer(model, config).step()
    for name, value in model.state_dict().items():
        rate = 0.3 if name.startswith(("backbone", "head")) else 1.0  # the inner Adam's moments become the mean
        expected = theta[name] + rate * sum(end[name] - theta[name] for end in ends) / 3
        assert name.startswith("moment") or not torch.equal(value, theta[name])
        torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-10)


def test_training_uses_no_query_image(data_dir):
    config = Config(width=4, inner_steps=2)
    model, episode = a_model(reptile, config), an_episode(data_dir)
    first = gradients_of(reptile, copy.deepcopy(model), episode, config)
    episode.images[episode.query.flatten()] = 7.0
    assert all(torch.equal(g, first[name]) for name, g in gradients_of(reptile, model, episode, config).items())


def test_minibatches_go_through_all_images_in_turn(data_dir, monkeypatch):
    config = Config(width=4, inner_steps=2, inner_batch=6, test_inner_steps=3, test_inner_batch=4)
    model, episode = a_model(reptile, config), an_episode(data_dir, shots=3, tasks=1)
    seen = []
    forward = reptile.Model.forward

    def noting(self, x, *others):
        seen.append(x)
        return forward(self, x, *others)

    monkeypatch.setattr(reptile.Model, "forward", noting)
    adapt(model, episode.x_support, episode.y_support, 4, 10, config)
    assert [x.shape[:2] for x in seen] == [(1, 10)] * 4
    assert torch.equal(torch.cat(seen, 1)[0, :30], episode.x_support[0].repeat(2, 1, 1, 1))
    seen.clear()
    reptile.meta_step(model, episode, config)
    assert [x.shape[1] for x in seen] == [6, 6]
    seen.clear()
    reptile.predict(model, episode, config)  # at last the support, whose statistics normalise the query images
    assert [x.shape[1] for x in seen] == [4, 4, 4, 15, 15]
