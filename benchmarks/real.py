"""Heads of real episodes, which Convex iMAML has to solve, as solvers are given them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import OnData, settings, trained
from common.episodes import EpisodeLoader
from common.shards import UsageError
from convex_imaml import Model


class Heads(NamedTuple):
    """T tasks of N ways, S support and Q query images, in float64; the start W0 is 0."""

    features: Tensor  # (T, S, d)
    labels: Tensor  # (T, S)
    f_query: Tensor  # (T, Q, d)
    y_query: Tensor  # (T, Q)
    W0: Tensor  # (N, d)
    strength: Tensor  # ()
    scale: Tensor  # () of the query's logits


@dataclasses.dataclass
class Options(OnData):
    """What says which episodes."""

    run: Path | None = None
    """a run folder of convex_imaml.py, whose network and strength these are; by default an untrained network's, with
    batch norm of the episodes' own pictures"""
    ways: int = 5
    shots: int = 1

    @property
    def whose(self) -> str:
        return f"the network of {self.run.name}" if self.run else "an untrained network"


def heads(options: Options, tasks: int, queries: int = 15) -> Iterator[Heads]:
    """Test episodes, so many at a time, with so many query images a class, without end.

    Raises UsageError for what is no run of convex_imaml.py."""
    _, config = settings("convex_imaml", options.dataset, precision="float32")
    weights = None
    if options.run:
        config, weights = trained(options.run, "convex_imaml")
        if config.learn_start:
            raise UsageError(f"--run {options.run}: expected a run without --learn-start, whose heads start at 0")
    config = dataclasses.replace(config, views=1)
    loader = EpisodeLoader(
        options.data_dir / options.dataset / "test.h5", options.ways, options.shots, queries, tasks, seed=-2,
        image_size=config.image_size,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Model(loader.image_shape, config, torch.device("cpu"))
    if weights:
        model.load_state_dict(weights)
    model.eval()
    while True:
        episode = loader.sample()
        with torch.no_grad():
            parts = episode.images.split(200) if weights else [episode.images]
            f = torch.cat([model.features(x, "running" if weights else "batch") for x in parts]).double()
            yield Heads(
                f[episode.support], episode.y_support, f[episode.query], episode.y_query,
                f.new_zeros(options.ways, f.shape[1]), model.log_strength.exp().double(),
                model.log_logit_scale.exp().double(),
            )  # fmt: skip
