"""Episodes: N-way K-shot tasks, drawn in whole batches by indexing, from the .h5 files that data_prep/ builds.

T tasks, N ways, K shots, S = N K support images and Q query images a task, B images in the batch.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.augment import Warp, warp
from common.images import converted, normalised, per_channel, with_channels
from common.shards import UsageError, build_command, read_shard


@dataclass
class Episode:
    """A batch of T tasks, which refer to `images` by position, so that tasks drawn from one pool may share them."""

    images: Tensor  # (B, C, H, W) float, normalised by the training images' mean and standard deviation
    support: Tensor  # (T, S) positions in images
    query: Tensor  # (T, Q)
    y_support: Tensor  # (T, S) labels 0..N-1
    y_query: Tensor  # (T, Q)
    classes: Tensor  # (T, N) the data set's class that each label stands for
    rows: Tensor  # (B,) the data set's row that each image is

    @property
    def ways(self) -> int:
        return self.classes.shape[1]

    @property
    def x_support(self) -> Tensor:
        """(T, S, C, H, W)"""
        return self.images[self.support]

    @property
    def x_query(self) -> Tensor:
        """(T, Q, C, H, W)"""
        return self.images[self.query]


class EpisodeLoader:
    """Draws batches of episodes from one .h5 file.

    The images stay on `device` as uint8; those too large for it are read from the memory-mapped file by a thread,
    one batch ahead (`memory` "auto", "device" or "mapped"). Support and query never share an image, every class of a
    task has `shots` and `queries` of them, and which class gets which label, like the order of the images, is random.

    image_size: pixels a side that images are resized to; 0: as they are in the file. shape: (C, H, W) that they are
    brought to, whatever they are in the file, for a network that was trained on such ones; None: nothing else.
    pool: (classes, images a class). None draws every task by itself. Otherwise every batch draws that many images (no
    fewer than a task has, no more than the smallest class), and all its tasks from them: a method whose backbone knows
    no task embeds each image once for many tasks.

    unequal: a class of a task has 1 to 2 shots - 1 support images, and its task's classes `shots` in the mean: two at a
    time have k and 2 shots - k, every k as likely. Those that a class doesn't keep stay among the batch's images.
    repeated: then those that it keeps count several times, in turn, so that every class has 2 shots - 1.

    named: the options for ways, shots and queries, for what is raised.
    halved: give images of half the side, the means of 2 x 2 pixels; may be set at any time.

    A batch depends on `seed` and its position alone, and on whether rows are drawn on a GPU or the CPU. `offset` and
    `stride` share positions out to ranks.

    Raises UsageError for a file that isn't whole, more ways than classes, more shots + queries than a class has, or one
    shot where they shall be unequal.
    """

    def __init__(
        self,
        path: Path,
        ways: int,
        shots: int,
        queries: int,
        tasks: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        pool: tuple[int, int] | None = None,
        warp: Warp = Warp(),
        image_size: int = 0,
        shape: tuple[int, int, int] | None = None,
        unequal: bool = False,
        repeated: bool = False,
        named: tuple[str, str, str] = ("--ways", "--shots", "--queries"),
        memory: str = "auto",
        offset: int = 0,
        stride: int = 1,
    ):
        self.path, self.ways, self.shots, self.queries, self.tasks = Path(path), ways, shots, queries, tasks
        self.most_shots = 2 * shots - 1 if unequal else shots
        self.unequal, self.repeated = unequal, repeated
        self.device, self.seed, self.warp = torch.device(device), seed, warp
        self.offset, self.stride, self.position = offset, stride, offset
        self.halved = False
        pixels, starts, self.class_names, mean, std = read_shard(self.path)
        size = (image_size, image_size) if image_size else pixels.shape[2:]
        self.stored_shape = tuple(pixels.shape[1:])
        self.image_shape = tuple(shape or (pixels.shape[1], *size))  # (C, H, W)
        if self.image_shape[0] != pixels.shape[1] and {self.image_shape[0], pixels.shape[1]} != {1, 3}:
            raise UsageError(
                f"{self.path}: images of {pixels.shape[1]} channels, expected {self.image_shape[0]}; only grey and RGB "
                "can take each other's place"
            )
        counts = np.diff(starts)
        smallest, n = int(counts.min()), self.path.stem
        if ways > len(counts):
            raise UsageError(
                f"{named[0]} {ways}: {n} of {self.path.parent.name} has {len(counts)} classes; ask for fewer ways, "
                "or, of a set of your own, build another split: build.py's --split"
            )
        if unequal and shots == 1:
            raise UsageError(f"{named[1]} 1: expected 2 or more with --unequal-shots, as no class has fewer than 1")
        if self.most_shots + queries > smallest:
            name = self.class_names[int(counts.argmin())]
            most = f" (up to {self.most_shots} with --unequal-shots)" if unequal else ""
            short = (counts < self.most_shots + queries).sum()
            raise UsageError(
                f"{named[1]} {shots}{most} and {named[2]} {queries}: class {name} of {self.path.parent.name} {n} "
                f"has {smallest} images, and {short} of {len(counts)} classes have too few; "
                "ask for no more together, or, of a set of your own, leave such classes out: "
                f"{build_command(self.path.parent)} --least-images {self.most_shots + queries}"
            )
        self.pool = pool and (
            min(max(pool[0], ways), len(counts)),
            min(max(pool[1], self.most_shots + queries), smallest),
        )
        images_bytes = len(pixels) * math.prod(self.image_shape)
        self.mapped = memory == "mapped" or (memory == "auto" and images_bytes > _free_memory(self.device) / 2)
        self.pixels = (
            pixels if self.mapped else converted(torch.from_numpy(np.array(pixels)).to(self.device), self.image_shape)
        )
        self.largest = int(counts.max())
        # Rows of a mapped file are drawn on the CPU, which reads them, so that no step waits for the device.
        self.drawn_on = torch.device("cpu") if self.mapped else self.device
        self.start = torch.from_numpy(starts[:-1]).to(self.drawn_on)
        self.count = torch.from_numpy(counts).to(self.drawn_on)
        moments = (per_channel(values, self.device) for values in (mean, std))
        self.mean, self.std = (with_channels(values, self.image_shape[0], dim=0) for values in moments)
        self.reader = ThreadPoolExecutor(1) if self.mapped else None
        self.ahead = {}  # position -> the batch that the thread is reading

    def rewind(self) -> None:
        """Start again, so that the same episodes follow."""
        self.position = self.offset

    def sample(self) -> Episode:
        """The next batch of `tasks` episodes."""
        position, self.position = self.position, self.position + self.stride
        if self.reader is None:
            episode, generator = self._draw(position)
        else:
            batch = self.ahead.pop(position, None) or self.reader.submit(self._draw, position)
            self.ahead = {self.position: self.reader.submit(self._draw, self.position)}
            episode, generator = batch.result()
        if self.halved:
            episode.images = F.avg_pool2d(episode.images, 2)
        if self.warp != Warp():
            images_a_class = self.pool[1] if self.pool else self.most_shots + self.queries
            episode.images = warp(episode.images, self.warp, images_a_class, generator)
        return episode

    def plain_images(self, batches: int) -> Iterator[Tensor]:
        """Images (B, C, H, W) of this loader's first batches, of whole size and without augmentation."""
        for position in range(batches):
            yield self._draw(position)[0].images

    def _draw(self, position: int) -> tuple[Episode, torch.Generator]:
        generator = torch.Generator(self.drawn_on).manual_seed((self.seed * 1_000_003 + position) * 1_000_003 % 2**63)
        T, N, K, Q = self.tasks, self.ways, self.most_shots, self.queries
        if self.pool is None:
            classes = _choose(len(self.count), N, generator, T)  # (T, N)
            within = _choose(self.largest, K + Q, generator, T * N, self.count[classes].flatten())  # (T N, K + Q)
            rows = (self.start[classes].flatten()[:, None] + within).flatten()  # (B,)
            places = torch.arange(len(rows), device=self.drawn_on).view(T, N, K + Q)
        else:
            C, M = self.pool
            drawn = _choose(len(self.count), C, generator, 1)[0]  # (C,)
            rows = (self.start[drawn][:, None] + _choose(self.largest, M, generator, C, self.count[drawn])).flatten()
            slots = _choose(C, N, generator, T)  # (T, N)
            within = _choose(M, K + Q, generator, T * N).view(T, N, K + Q)
            classes, places = drawn[slots], slots[:, :, None] * M + within
        support, y_support = _shuffle(places[:, :, :K], generator)
        if self.unequal:
            kept = _unequal(y_support, N, self.shots, self.repeated, generator)
            support, y_support = support.gather(1, kept), y_support.gather(1, kept)
        query, y_query = _shuffle(places[:, :, K:], generator)
        images = normalised(self._pixels(rows), self.mean, self.std)
        of_tasks = (x.to(self.device, non_blocking=True) for x in (support, query, y_support, y_query, classes, rows))
        return Episode(images, *of_tasks), generator

    def _pixels(self, rows: Tensor) -> Tensor:
        if not self.mapped:
            return self.pixels.index_select(0, rows)  # on a CPU ten times faster than pixels[rows]
        order = rows.argsort()  # a file is read fastest in its own order
        block = torch.from_numpy(self.pixels[rows[order].numpy()]).to(self.device)
        return converted(block, self.image_shape)[order.argsort().to(self.device)]


def _choose(among: int, k: int, generator: torch.Generator, rows: int, counts: Tensor | None = None) -> Tensor:
    """k different numbers below `among`, or below counts[i] <= among in row i, in random order.   (rows, k)"""
    keys = torch.rand(rows, among, generator=generator, device=generator.device)
    if counts is not None:
        keys.masked_fill_(torch.arange(among, device=keys.device) >= counts[:, None], -1.0)
    return keys.topk(k, dim=1).indices


def _shuffle(places: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(T, N, K) positions -> (T, N K) of them and their labels, in random order within every task."""
    T, N, K = places.shape
    labels = torch.arange(N, device=places.device)[:, None].expand(N, K).flatten().expand(T, N * K)
    order = torch.rand(T, N * K, generator=generator, device=places.device).argsort(1)
    return places.flatten(1).gather(1, order), labels.gather(1, order)


def _unequal(labels: Tensor, ways: int, shots: int, repeated: bool, generator: torch.Generator) -> Tensor:
    """Which of 2 shots - 1 support images a class, whose labels are (T, n) in random order, a task keeps: ways x shots
    of them, of two classes at a time k and 2 shots - k.   (T, ways x shots), in their order

    repeated: one of those instead of each image, of the same class, so that all are as often there.   (T, n)"""
    few = torch.randint(1, 2 * shots, (len(labels), ways // 2), generator=generator, device=generator.device)
    mean = few.new_full((len(labels), ways % 2), shots)
    counts = torch.cat([few, 2 * shots - few, mean], 1)  # (T, N)
    order = torch.rand(counts.shape, generator=generator, device=generator.device).argsort(1)
    number = counts.gather(1, order).gather(1, labels)  # of an image's class
    before = F.one_hot(labels, ways).cumsum(1).gather(2, labels[:, :, None])[:, :, 0] - 1  # of its class, in the order
    if repeated:
        first = labels * (2 * shots - 1)  # of its class, where images lie class by class
        return (first + before).argsort(1).gather(1, first + before % number)
    return (before < number).sort(dim=1, descending=True, stable=True).indices[:, : ways * shots]


def _free_memory(device: torch.device) -> float:
    """Bytes that images may take on the device, or in the host's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except OSError:
        return 8 * 2**30
