"""Whole trainings at their start: a script's, and that of learn2learn's example. Both have our files and episodes."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks import one_step, peers, settings
from common.options import Options
from common.results import gather, outcome
from common.run import Run, outer_optimizer

PEER = "learn2learn"
# What examples/vision/maml_omniglot.py and maml_miniimagenet.py of learn2learn's repository (0.2.0) both have, by their
# names. Neither calls eval(), so that their batch norm takes every batch's own statistics: they are transductive.
META_BATCH_SIZE = 32
NUM_ITERATIONS = 60_000
META_LR = 0.003
FAST_LR = 0.5
ADAPTATION_STEPS = 1


@dataclass
class Training:
    step: Callable[[], None]
    """makes the next meta-step"""
    validate: Callable[[], dict[str, np.ndarray]]
    """accuracies of the validation episodes (E,), "inductive" and "transductive", or the latter alone"""
    budget: int
    """of steps, after which the learning rate has come to its end"""
    device: torch.device


def of_script(name: str, dataset: str, **options) -> Training:
    """As `main` of the script has it, with its settings for the data set, but for `options`."""
    script, config = settings(name, dataset, **options)
    run = Run(config, script.__file__)
    train, val, _ = run.loaders()
    torch.manual_seed(config.seed)
    model = script.Model(train.image_shape, config, run.device)
    optimizer = outer_optimizer(model, config)

    def step():
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate
        run.count(*one_step(run, script, model, optimizer, train))

    def accuracies(transductive: bool) -> np.ndarray:
        return script.evaluate(model, val, config.val_episodes, config, transductive)["accuracy"]

    def validate():
        if config.plain_averages:
            model.backbone.renew_averages(train.plain_images(config.plain_averages))
        return {"inductive": accuracies(False), "transductive": accuracies(True)}

    return Training(step, validate, config.steps, run.device)


def settings_of_learn2learn(dataset: str, **options) -> Options:
    """Those of its example, where ours have such an option."""
    config = Options(dataset=dataset, tasks=META_BATCH_SIZE, steps=NUM_ITERATIONS, keep_memory=False, **options)
    config.train_queries = config.shots
    return config


def of_learn2learn(dataset: str, **options) -> Training:
    """MAML as `main` of its example has it: second order, a query image a shot, Adam at one rate, its own network.

    Two things of the example are left out. It tries a task of the validation set at every training task, to print its
    accuracy, which nearly doubles its time. And it turns Omniglot's classes by random quarter turns, which are classes
    of their own in our files.
    """
    from learn2learn.vision.models import MiniImagenetCNN, OmniglotFC

    config = settings_of_learn2learn(dataset, **options)
    run = Run(config, __file__)
    train, val, _ = run.loaders()
    for seed in (random.seed, np.random.seed, torch.manual_seed):  # the network's weights are drawn by scipy
        seed(config.seed)
    grey = train.image_shape[0] == 1
    net = OmniglotFC(math.prod(train.image_shape), config.ways) if grey else MiniImagenetCNN(config.ways)
    net.to(run.device)
    optimizer = torch.optim.Adam(net.parameters(), META_LR)
    inner = {"inner_steps": ADAPTATION_STEPS, "inner_rate": FAST_LR}

    def step():
        optimizer.zero_grad()
        for episode in run.draw(train):
            for task in zip(episode.x_support, episode.y_support, episode.x_query, episode.y_query):
                peers.learn2learn(net, *task, **inner).backward()
        for p in net.parameters():
            p.grad.mul_(1 / META_BATCH_SIZE)
        optimizer.step()
        run.step += 1

    def validate():
        val.rewind()
        batches = []
        for _ in range(math.ceil(config.val_episodes / val.tasks)):
            episode = val.sample()
            tasks = zip(episode.x_support, episode.y_support, episode.x_query)
            logits = [peers.learn2learn_adapted(net, x, y, **inner)(x_query).detach() for x, y, x_query in tasks]
            batches.append(outcome(episode, torch.stack(logits)))
        return {"transductive": gather(batches, config.val_episodes)["accuracy"]}

    return Training(step, validate, NUM_ITERATIONS, run.device)
