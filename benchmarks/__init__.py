"""This project beside its peers, the machine's limit and itself: commands, and what they share."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from common import meters
from common.run import Run, outer_optimizer
from common.shards import ROOT

SCRIPTS = ("convex_imaml", "convex_maml", "maml", "imaml", "reptile", "cavia")


def training(name: str, dataset: str, **options) -> tuple[Callable[[], dict[str, Tensor]], torch.device]:
    """A whole training step of a script with its settings for the data set, but for `options`, and the device.

    It draws episodes, augments their images, adds the meta-gradient, clips it, moves the weights, and returns what
    `meta_step` did of the last batch. Images have their full size, as in the last part of training.
    """
    script = importlib.import_module(name)
    settings = script.SETTINGS.get(dataset, script.SETTINGS["other"])
    config = script.Config(**{**settings, "dataset": dataset, **options})
    run = Run(config, script.__file__)
    train, _, _ = run.loaders()
    model = script.Model(train.image_shape, config, run.device)
    optimizer = outer_optimizer(model, config)
    run.progress = 1.0

    def step():
        optimizer.zero_grad()
        for episode in run.draw(train):
            statistics = script.meta_step(model, episode, config)
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        run.step += 1
        return statistics

    return step, run.device


def machine(device: str = "cpu") -> dict[str, object]:
    """What a figure depends on beside the code."""
    return {"torch": torch.__version__, **meters.hardware(torch.device(device))}


def origin(device: str = "cpu") -> dict[str, object]:
    """The commit, and the machine."""
    return {"commit": meters.commit(ROOT), **machine(device)}


def save(out: Path, name: str, content: dict, table: str, device: str = "cpu") -> None:
    """Write OUT/NAME.json, of `content` and its origin, and OUT/NAME.md, the table below a line on that."""
    out.mkdir(parents=True, exist_ok=True)
    about = origin(device)
    (out / f"{name}.json").write_text(json.dumps(about | content, indent=1))
    described = ", ".join(f"{key}: {value}" for key, value in about.items())
    (out / f"{name}.md").write_text(f"{described}\n\n{table.rstrip()}\n")
