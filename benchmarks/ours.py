"""This project's pieces of work, and the machine's limit: the same images forward and backward, and bare indexing.

A piece is a function that makes what it needs and returns a Work.
"""

from pathlib import Path
from unittest import mock

import torch

import imaml
from benchmarks import problems
from benchmarks.problems import Work
from common.conv4 import Conv4
from common.meters import keep_memory
from common.newton import newton_head


def meta_steps(algorithm: str, dataset: str, width: int, tasks: int, batches: int = 1, **options) -> Work:
    """A script's meta-step, in so many batches as --batches has it, and a step of Adam, with this project's allocator
    setting.

    iMAML's peers have no rule that shortens inner steps: the gradient that theirs is compared with is of steps of one
    length. What is timed has the rule.
    """
    keep_memory()
    script, config, model = problems.our_model(algorithm, dataset, width, **options)
    episode = problems.episode_for(algorithm, dataset, tasks)
    meta_step = problems.in_batches(script.meta_step, batches)
    with mock.patch.object(imaml, "step_size", lambda rate, gradient, before: rate):
        return problems.adam_steps(model, episode, lambda: meta_step(model, episode, config))


def plain(
    dataset: str, width: int, tasks: int, block: str, precision: str, channels_last: bool = True, chunk: int = 10**9
) -> Work:
    """One forward and backward of our backbone over a meta-step's images, in batches of `chunk`."""
    keep_memory()
    net = Conv4(problems.SHAPES[dataset], width, block, channels_last, getattr(torch, precision))
    images = problems.random_episode(dataset, tasks).images.split(chunk)
    return problems.forward_and_backward(lambda x: net(x, "batch"), net.parameters(), images)


def heads(tasks: int, ways: int, shots: int, features: int) -> Work:
    keep_memory()
    f, y = problems.head_problem(tasks, ways, shots, features)
    W0, strength = f.new_zeros(ways, features), torch.tensor(problems.STRENGTH)

    def step():
        return newton_head(f, y, W0, strength, tolerance=problems.TOLERANCE, iterations=50).value

    return step, {"reached": problems.relative_gradient(f, y, step())}


def episodes(path: Path, tasks: int) -> Work:
    keep_memory()
    return problems.loader_of(path, tasks).sample, {"episodes": tasks}


def indexed_episodes(path: Path, tasks: int, select: bool) -> Work:
    """The lower bound: as many random rows of the same tensor, made float and normalised; no tasks drawn. `select`:
    with index_select, which copies a row of bytes at a time, instead of tensor[rows]."""
    keep_memory()
    loader = problems.loader_of(path)

    def step():
        rows = torch.randint(len(loader.pixels), (tasks * 80,))
        pixels = loader.pixels.index_select(0, rows) if select else loader.pixels[rows]
        return (pixels.float() - loader.mean) / loader.std

    return step, {"episodes": tasks}
