"""What this project and its peers are both given: the same weights, images and heads to solve. And what both are asked:
their meta-gradient in float64, and how far their heads are from the optimum. All on torch's default device."""

import ctypes
import dataclasses
import importlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.episodes import Episode, EpisodeLoader

SHAPES = {"omniglot": (1, 28, 28), "miniimagenet": (3, 84, 84)}
STRENGTH = 0.01  # of the heads' regularisation
TOLERANCE = 1e-5  # of every head solver: norm of the gradient relative to its start

# What is timed, and what is known of it before: its meta-gradient, or how many episodes it draws.
Work = tuple[Callable[[], object], dict]


def textbook(channels: int, width: int, size: int, ways: int) -> nn.Sequential:
    """Conv4 as tutorials and peers write it: a bias in the convolutions, batch norm, ReLU, then pooling."""
    blocks = (
        nn.Sequential(
            nn.Conv2d(c, width, 3, padding=1),
            nn.BatchNorm2d(width, track_running_stats=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        for c in (channels, width, width, width)
    )
    features = nn.Sequential(*blocks, nn.Flatten())
    return nn.Sequential(OrderedDict(features=features, head=nn.Linear(size, ways)))


def our_model(algorithm: str, dataset: str, width: int, **options) -> tuple[object, object, nn.Module]:
    """The script, its Config and its Model, with the weights that every peer gets too; options that the script doesn't
    have are left out."""
    script = importlib.import_module(algorithm)
    options = {"block": "norm-pool", "precision": "float32", **options}
    config = script.Config(width=width, **{k: v for k, v in options.items() if k in script.Config.__dataclass_fields__})
    torch.manual_seed(0)
    return script, config, script.Model(SHAPES[dataset], config, torch.get_default_device())


def textbook_of(dataset: str, width: int) -> nn.Sequential:
    """A textbook network with the weights of `our_model`."""
    _, _, model = our_model("maml", dataset, width)
    net = textbook(SHAPES[dataset][0], width, model.backbone.size, 5)
    with torch.no_grad():
        for block, (convolution, norm, *_) in zip(model.backbone.blocks, net.features):
            convolution.weight.copy_(block.convolution.weight)
            convolution.bias.zero_()
        net.head.load_state_dict(model.head.state_dict())
    return net


def random_episode(dataset: str, tasks: int) -> Episode:
    """Random images in 5-way tasks of 1 support image and 15 queries a class."""
    T, S, Q = tasks, 5, 75
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(T * (S + Q), *SHAPES[dataset], generator=generator, device="cpu")  # alike on every device
    images = images.to(torch.get_default_device())
    places = torch.arange(len(images)).view(T, S + Q)
    labels = torch.arange(5).expand(T, 5)
    return Episode(images, places[:, :S], places[:, S:], labels, labels.repeat(1, 15), labels, places.flatten())


def episode_for(algorithm: str, dataset: str, tasks: int) -> Episode:
    """`random_episode`, as this script trains on it: Reptile's tasks have a training image for each of the inner steps'
    batches."""
    episode = random_episode(dataset, tasks)
    if algorithm == "reptile":
        episode.support, episode.y_support = episode.query, episode.y_query
    return episode


def in_batches(meta_step: Callable, batches: int) -> Callable:
    """meta_step(model, episode, config) in so many parts of the tasks, as --batches has it."""
    fields = ("support", "query", "y_support", "y_query", "classes")

    def in_turn(model, episode, config):
        for part in zip(*(getattr(episode, field).chunk(batches) for field in fields)):
            meta_step(model, dataclasses.replace(episode, **dict(zip(fields, part))), config)
        for p in model.parameters():
            p.grad /= batches

    return in_turn if batches > 1 else meta_step


def adam_steps(net: nn.Module, episode: Episode, backward: Callable[[], None]) -> Work:
    """Steps of Adam on net's parameters, whose meta-gradient `backward` adds to .grad, from the episode's images."""

    def gradients():
        net.zero_grad()
        backward()

    info = {"gradient": gradient_in_float64(net, episode, gradients)}
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5)

    def step():
        gradients()
        optimizer.step()

    return step, info


def forward_and_backward(net: Callable[[Tensor], Tensor], parameters: Iterable[nn.Parameter], images: tuple) -> Work:
    """Of one batch of images after the other, and a step of Adam."""
    optimizer = torch.optim.Adam(parameters, lr=1e-5)

    def step():
        optimizer.zero_grad()
        for x in images:
            net(x).square().mean().backward()
        optimizer.step()

    return step, {}


def shared_gradient(model: nn.Module) -> np.ndarray:
    """What .grad holds of the parameters that ours and the textbook's network both have, in one row: those of backbone
    and head, which stand in the same order, but for the textbook's biases before batch norm, which have no gradient."""
    gradients = {
        name: p.grad for name, p in model.named_parameters()
        if p.grad is not None and "." in name and not (name.startswith("features.") and name.endswith(".0.bias"))
    }  # fmt: skip
    return torch.cat([g.flatten() for g in gradients.values()]).numpy(force=True)


def gradient_in_float64(model: nn.Module, episode: Episode, gradients: Callable[[], None]) -> np.ndarray:
    """shared_gradient that `gradients` leaves when model and images are in float64: in float32, rounding that carries a
    ReLU or a maximum to its other side sets gradients of the same function apart by some 1e-3."""
    model.double()
    episode.images = episode.images.double()
    gradients()
    gradient = shared_gradient(model)
    model.float()
    episode.images = episode.images.float()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)  # what float64 took, twice the step's own, isn't there for the processes beside otherwise
    return gradient


def head_problem(tasks: int, ways: int, shots: int, features: int) -> tuple[Tensor, Tensor]:
    """Features with a class structure (T, S, d), a 1 among them, and labels (T, S)."""
    T, N, K, d = tasks, ways, shots, features
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N).repeat_interleave(K).expand(T, N * K)
    means = torch.randn(T, N, d - 1, generator=generator)
    f = torch.relu(means[:, y[0]] + torch.randn(T, N * K, d - 1, generator=generator)) / d**0.5
    return F.pad(f, (0, 1), value=1.0), y


def relative_gradient(f: Tensor, y: Tensor, W: Tensor) -> float:
    """Largest norm over tasks of the inner objective's gradient at W (T, N, d), relative to that at 0, in float64."""
    f, W, Y = f.double(), W.double(), F.one_hot(y, W.shape[1]).double()

    def norms(W):
        return ((((f @ W.mT).softmax(-1) - Y).mT @ f) / f.shape[1] + STRENGTH * W).flatten(1).norm(dim=1)

    return float((norms(W) / norms(torch.zeros_like(W))).max())


def loader_of(path: Path, tasks: int = 1) -> EpisodeLoader:
    """5-way tasks of 1 support image and 15 queries a class."""
    return EpisodeLoader(path, 5, 1, 15, tasks, memory="device")


def images_and_labels(source: EpisodeLoader) -> tuple[Tensor, Tensor]:
    """All its images (n, C, H, W), float, and labels (n,), for libraries that hold single images."""
    labels = torch.repeat_interleave(torch.arange(len(source.count)), source.count)
    return (source.pixels.float() - source.mean) / source.std, labels
