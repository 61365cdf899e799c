"""One piece of work in a process of its own, done once each time a line arrives on standard input.

run.py starts several such processes and asks them in turn, so that what is compared shares the machine's moments, yet
no process has another's allocator settings. The first line printed describes the work (and holds what its gradient can
be told by, or what it took to draw the first episodes); every further line is the seconds that the work took: once, or
as often as fits into spec["least"] seconds, on average, after once that isn't counted.
"""

import ctypes
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import meters  # noqa: E402
from common.conv4 import Conv4  # noqa: E402
from common.episodes import Episode, EpisodeLoader  # noqa: E402
from common.meters import keep_memory  # noqa: E402
from common.newton import newton_head  # noqa: E402

CPU = torch.device("cpu")
SHAPES = {"omniglot": (1, 28, 28), "miniimagenet": (3, 84, 84)}


class Textbook(nn.Module):
    """Conv4 as tutorials and peers write it: a bias in the convolutions, batch norm, ReLU, then pooling."""

    def __init__(self, channels: int, width: int, size: int, ways: int):
        super().__init__()
        widths = (channels, width, width, width)
        blocks = (
            nn.Sequential(
                nn.Conv2d(c, width, 3, padding=1), nn.BatchNorm2d(width, track_running_stats=False), nn.ReLU(),
                nn.MaxPool2d(2),
            )
            for c in widths
        )  # fmt: skip
        self.features = nn.Sequential(*blocks, nn.Flatten())
        self.head = nn.Linear(size, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def episodes_of(spec: dict, seed: int = 0) -> Episode:
    """Random images in 5-way tasks of 1 support image and 15 queries a class."""
    generator = torch.Generator().manual_seed(seed)
    T, S, Q = spec["tasks"], 5, 75
    images = torch.randn(T * (S + Q), *SHAPES[spec["dataset"]], generator=generator)
    places = torch.arange(len(images)).view(T, S + Q)
    labels = torch.arange(5).expand(T, 5)
    return Episode(images, places[:, :S], places[:, S:], labels, labels.repeat(1, 15), labels, places.flatten())


def in_batches(episode: Episode, batches: int) -> list[Episode]:
    """Its tasks in so many parts."""
    fields = ("support", "query", "y_support", "y_query", "classes")
    parts = zip(*(getattr(episode, field).chunk(batches) for field in fields))
    return [dataclasses.replace(episode, **dict(zip(fields, part))) for part in parts]


def our_model(spec: dict) -> tuple[object, object, nn.Module]:
    """The script, its Config and its Model, with the weights that every peer gets too."""
    script = __import__(spec["algorithm"])
    known = script.Config.__dataclass_fields__
    wanted = {"block": "norm-pool", "precision": "float32", **spec.get("options", {})}
    config = script.Config(width=spec["width"], **{k: v for k, v in wanted.items() if k in known})
    torch.manual_seed(0)
    return script, config, script.Model(SHAPES[spec["dataset"]], config, CPU)


def textbook_of(spec: dict) -> Textbook:
    """A Textbook with the weights of `our_model`."""
    _, _, model = our_model(spec | {"algorithm": "maml"})
    net = Textbook(SHAPES[spec["dataset"]][0], spec["width"], model.backbone.size, 5)
    with torch.no_grad():
        for block, (convolution, norm, *_) in zip(model.backbone.blocks, net.features):
            convolution.weight.copy_(block.convolution.weight)
            convolution.bias.zero_()
        net.head.load_state_dict(model.head.state_dict())
    return net


def signature(model: nn.Module) -> dict:
    """What two processes can tell a gradient by: its norm and its products with 16 random directions, whose
    differences are as large as the gradients' (on average over directions).

    Of the backbone's and the head's parameters that ours and the textbook's network both have, which stand in the same
    order: a bias before batch norm has no gradient.
    """
    g = torch.cat([
        p.grad.flatten().double() for name, p in model.named_parameters()
        if p.grad is not None and "." in name and not _before_norm(name)
    ])  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    products = [float(g @ torch.randn(len(g), generator=generator, dtype=g.dtype)) for _ in range(16)]
    return {"norm": float(g.norm()), "products": products}


def signature_in_float64(model: nn.Module, episode: Episode, gradients: Callable[[], None]) -> dict:
    """signature of what `gradients` leaves in .grad when model and images are in float64: in float32, rounding that
    carries a ReLU or a maximum to its other side sets gradients of the same function apart by some 1e-3."""
    model.double()
    episode.images = episode.images.double()
    gradients()
    info = signature(model)
    model.float()
    episode.images = episode.images.float()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)  # what float64 took, twice the step's own, isn't there for the processes beside otherwise
    return info


def _before_norm(name: str) -> bool:
    return name.startswith("features.") and name.endswith(".0.bias")


Work = tuple[Callable[[], object], dict]


def ours(spec: dict) -> Work:
    """A script's meta-step, in spec["batches"] as --batches has it, and a step of Adam, with this project's allocator
    setting."""
    keep_memory()
    script, config, model = our_model(spec)
    episode = episodes_of(spec)
    if spec["algorithm"] == "reptile":  # its tasks have a training image for each of the inner steps' batches
        episode.support, episode.y_support = episode.query, episode.y_query
    count = spec.get("batches", 1)

    def gradients():
        model.zero_grad()
        for batch in in_batches(episode, count):
            script.meta_step(model, batch, config)
        for p in model.parameters() if count > 1 else ():
            p.grad /= count

    info = signature_in_float64(model, episode, gradients)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)

    def step():
        gradients()
        optimizer.step()

    return step, info


def plain(spec: dict) -> Work:
    """One forward and backward of our backbone over the same images, in batches of spec["chunk"]."""
    keep_memory()
    precision, layout = getattr(torch, spec.get("precision", "float32")), spec.get("channels_last", True)
    net = Conv4(SHAPES[spec["dataset"]], spec["width"], spec.get("block", "norm-pool"), layout, precision)
    chunks = episodes_of(spec).images.split(spec.get("chunk", 10**9))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5)

    def step():
        optimizer.zero_grad()
        for x in chunks:
            net(x, "batch").square().mean().backward()
        optimizer.step()

    return step, {}


def contiguous(spec: dict) -> Work:
    """The same of the textbook network as users run it: one contiguous float32 batch, the allocator left alone."""
    net, x = textbook_of(spec).features, episodes_of(spec).images
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5)

    def step():
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    return step, {}


def a_head_problem(spec: dict) -> tuple[Tensor, Tensor, float]:
    """Features with a class structure (T, S, d), a 1 among them, labels (T, S), and the strength."""
    T, N, K, d = spec["tasks"], spec["ways"], spec["shots"], spec["features"]
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N).repeat_interleave(K).expand(T, N * K)
    means = torch.randn(T, N, d - 1, generator=generator)
    f = torch.relu(means[:, y[0]] + torch.randn(T, N * K, d - 1, generator=generator)) / d**0.5
    return F.pad(f, (0, 1), value=1.0), y, 0.01


def relative_gradient(f: Tensor, y: Tensor, W: Tensor, strength: float) -> float:
    """Largest norm over tasks of the inner objective's gradient at W (T, N, d), relative to that at 0, in float64."""
    f, W, Y = f.double(), W.double(), F.one_hot(y, W.shape[1]).double()

    def norms(W):
        return ((((f @ W.mT).softmax(-1) - Y).mT @ f) / f.shape[1] + strength * W).flatten(1).norm(dim=1)

    return float((norms(W) / norms(torch.zeros_like(W))).max())


TOLERANCE = 1e-5  # of every head solver: norm of the gradient relative to its start


def our_heads(spec: dict) -> Work:
    keep_memory()
    f, y, strength = a_head_problem(spec)
    W0, strength_ = f.new_zeros(spec["ways"], f.shape[2]), torch.tensor(strength)

    def step():
        return newton_head(f, y, W0, strength_, tolerance=TOLERANCE, iterations=50).value

    return step, {"reached": relative_gradient(f, y, step(), strength)}


def at_the_loosest(solve: Callable[[float], Tensor], f: Tensor, y: Tensor, strength: float) -> Work:
    """solve(tol) with the first of 0.1, 0.01, ... that gets to TOLERANCE, as every library counts tol otherwise."""
    for digits in range(1, 12):
        reached = relative_gradient(f, y, solve(10.0**-digits), strength)
        if reached <= TOLERANCE:
            break
    return lambda: solve(10.0**-digits), {"reached": reached}


def sklearn_heads(spec: dict) -> Work:
    """scikit-learn's logistic regression, task after task: the same objective, C = 1 / (S strength), in float64."""
    import warnings

    from sklearn.linear_model import LogisticRegression

    warnings.simplefilter("ignore")  # that it stopped short shows in `reached`
    f, y, strength = a_head_problem(spec)
    size = spec["ways"] * f.shape[2]
    if spec["solver"] == "newton-cholesky" and size > 8000:
        raise RuntimeError(f"not run: it would factor a Hessian of {size:,} x {size:,} in every step of every task")
    images, labels = f.double().numpy(), y.numpy()

    def solve(tol):
        options = {"C": 1 / (f.shape[1] * strength), "fit_intercept": False, "tol": tol, "max_iter": 1000}
        fits = [LogisticRegression(solver=spec["solver"], **options).fit(x, t) for x, t in zip(images, labels)]
        return torch.stack([torch.from_numpy(fit.coef_) for fit in fits])

    return at_the_loosest(solve, f, y, strength)


def lbfgs_heads(spec: dict) -> Work:
    """torch's L-BFGS, task after task, in float64: in float32 it stalls before the tolerance."""
    f, y, strength = a_head_problem(spec)

    def solve(tol):
        heads = []
        for x, labels in zip(f.double(), y):
            W = torch.zeros(spec["ways"], x.shape[1], dtype=x.dtype, requires_grad=True)
            optimizer = torch.optim.LBFGS(
                [W], max_iter=200, tolerance_grad=tol, tolerance_change=0, line_search_fn="strong_wolfe"
            )

            def closure():
                optimizer.zero_grad()
                loss = F.cross_entropy(x @ W.T, labels) + strength / 2 * W.square().sum()
                loss.backward()
                return loss

            optimizer.step(closure)
            heads.append(W.detach())
        return torch.stack(heads)

    return at_the_loosest(solve, f, y, strength)


def our_episodes(spec: dict) -> Work:
    keep_memory()
    loader = EpisodeLoader(Path(spec["path"]), 5, 1, 15, spec["tasks"], memory="device")
    return loader.sample, {"episodes": spec["tasks"]}


def indexed_episodes(spec: dict) -> Work:
    """The lower bound: as many random rows of the same tensor, made float and normalised; no tasks drawn. `select`:
    with index_select, which copies a row of bytes at a time, instead of tensor[rows]."""
    keep_memory()
    loader = EpisodeLoader(Path(spec["path"]), 5, 1, 15, spec["tasks"], memory="device")

    def step():
        rows = torch.randint(len(loader.pixels), (spec["tasks"] * 80,))
        pixels = loader.pixels.index_select(0, rows) if spec["select"] else loader.pixels[rows]
        return (pixels.float() - loader.mean) / loader.std

    return step, {"episodes": spec["tasks"]}


def images_and_labels(source: EpisodeLoader) -> tuple[Tensor, Tensor]:
    """All its images (n, C, H, W), float, and labels (n,), for libraries that hold single images."""
    labels = torch.repeat_interleave(torch.arange(len(source.count)), source.count)
    return (source.pixels.float() - source.mean) / source.std, labels


def loader_episodes(spec: dict) -> Work:
    """torch's DataLoader over a dataset of single images and a sampler of tasks, as most tutorials have it."""
    from torch.utils.data import DataLoader, TensorDataset

    source = EpisodeLoader(Path(spec["path"]), 5, 1, 15, 1, memory="device")

    class Tasks:
        def __iter__(self):
            while True:
                classes = torch.randperm(len(source.count))[:5].tolist()
                yield [
                    int(source.start[c]) + i
                    for c in classes
                    for i in torch.randperm(int(source.count[c]))[:16].tolist()
                ]

    data = TensorDataset(*images_and_labels(source))
    loader = DataLoader(data, batch_sampler=Tasks(), num_workers=spec["workers"])
    drawn = iter(loader)
    return lambda: [next(drawn) for _ in range(spec["tasks"])], {"episodes": spec["tasks"]}


def peer(spec: dict) -> Work:
    import peers

    return getattr(peers, spec["peer"])(spec)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints isn't an answer
    spec = json.loads(sys.argv[1])
    if spec.get("keep_memory"):
        keep_memory()
    before, start = meters.resident_mib(), time.perf_counter()
    step, info = globals()[spec["work"]](spec)
    if "episodes" in info:
        step()
        info["start_ms"] = 1e3 * (time.perf_counter() - start)
        info["mib"] = meters.resident_mib() - before
    print(json.dumps(info), file=answers)
    least = spec.get("least", 0.0)
    for _ in sys.stdin:
        if least:
            step()
        start, count = time.perf_counter(), 0
        while not count or time.perf_counter() - start < least:
            step()
            count += 1
        print((time.perf_counter() - start) / count, file=answers)
