"""Episodes: N-way K-shot tasks, drawn in whole batches by indexing, from the .h5 files that data_prep/ builds.

T tasks, N ways, K shots, S = N K support images and Q query images a task, B images in the batch.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.shards import VERSION, build_command


class UsageError(ValueError):
    """What the person at the keyboard can mend: one line with the value, what was expected, and the mend."""


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


class Warp(NamedTuple):
    """Random augmentation: an affine map and a change of colour for each training image; the defaults change nothing.

    What all images of a class in a batch undergo alike makes it another class, of which there are never enough.
    """

    flip: bool = False  # mirror left and right, half of the time
    rotate: float = 0.0  # by up to so many degrees either way
    zoom: float = 0.0  # by a factor of up to 1 + zoom either way, log-uniform
    shift: float = 0.0  # by up to this share of the image either way
    flip_class: bool = False  # mirror all images of a class alike, half of the classes
    rotate_class: float = 0.0  # turn all images of a class alike, by up to so many degrees either way
    jitter: float = 0.0  # change brightness, contrast and saturation by up to this share either way

    @classmethod
    def of(cls, options) -> "Warp":
        """As options of these names say."""
        return cls(*(getattr(options, name) for name in cls._fields))


VIEWED = ("flip", "rotate", "zoom", "shift", "jitter")  # what leaves an image in its class: views of it differ by them


class EpisodeLoader:
    """Draws batches of episodes from one .h5 file.

    The images stay on `device` as uint8; those too large for it are read from the memory-mapped file by a thread,
    one batch ahead (`memory` "auto", "device" or "mapped"). Support and query never share an image, every class of a
    task has `shots` and `queries` of them, and which class gets which label, like the order of the images, is random.

    image_size: pixels a side that images are resized to; 0: as they are in the file.
    pool: (classes, images a class). None draws every task by itself. Otherwise every batch draws that many images (no
    more than the smallest class has), and all its tasks from them: a method whose backbone knows no task embeds each
    image once for many tasks.

    named: the options for ways, shots and queries, for what is raised.
    halved: give images of half the side, the means of 2 x 2 pixels; may be set at any time.

    A batch depends on `seed` and its position alone. `offset` and `stride` share positions out to ranks.

    Raises UsageError for a file that isn't whole, more ways than classes, or more shots + queries than a class has.
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
        named: tuple[str, str, str] = ("--ways", "--shots", "--queries"),
        memory: str = "auto",
        offset: int = 0,
        stride: int = 1,
    ):
        self.path, self.ways, self.shots, self.queries, self.tasks = Path(path), ways, shots, queries, tasks
        self.device, self.seed, self.warp = torch.device(device), seed, warp
        self.offset, self.stride, self.position = offset, stride, offset
        self.halved = False
        pixels, starts, self.class_names, mean, std = read_shard(self.path)
        self.image_shape = (pixels.shape[1], image_size, image_size) if image_size else pixels.shape[1:]  # (C, H, W)
        counts = np.diff(starts)
        smallest, n = int(counts.min()), self.path.stem
        if ways > len(counts):
            raise UsageError(
                f"{named[0]} {ways}: {n} of {self.path.parent.name} has {len(counts)} classes; ask for fewer ways"
            )
        if shots + queries > smallest:
            name = self.class_names[int(counts.argmin())]
            raise UsageError(
                f"{named[1]} {shots} and {named[2]} {queries}: class {name} of {self.path.parent.name} {n} "
                f"has {smallest} images; ask for no more together"
            )
        self.pool = pool and (min(max(pool[0], ways), len(counts)), min(max(pool[1], shots + queries), smallest))
        self.mapped = memory == "mapped" or (memory == "auto" and pixels.nbytes > _free_memory(self.device) / 2)
        self.pixels = pixels if self.mapped else self._resized(torch.from_numpy(np.array(pixels)).to(self.device))
        self.largest = int(counts.max())
        self.start = torch.from_numpy(starts[:-1]).to(self.device)
        self.count = torch.from_numpy(counts).to(self.device)
        self.mean = torch.as_tensor(mean, dtype=torch.float32, device=self.device)[:, None, None] * 255
        self.std = torch.as_tensor(std, dtype=torch.float32, device=self.device)[:, None, None] * 255
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
            images_a_class = self.pool[1] if self.pool else self.shots + self.queries
            episode.images = warp(episode.images, self.warp, images_a_class, generator)
        return episode

    def _draw(self, position: int) -> tuple[Episode, torch.Generator]:
        generator = torch.Generator(self.device).manual_seed((self.seed * 1_000_003 + position) * 1_000_003 % 2**63)
        T, N, K, Q = self.tasks, self.ways, self.shots, self.queries
        if self.pool is None:
            classes = _choose(len(self.count), N, generator, T)  # (T, N)
            within = _choose(self.largest, K + Q, generator, T * N, self.count[classes].flatten())  # (T N, K + Q)
            rows = (self.start[classes].flatten()[:, None] + within).flatten()  # (B,)
            places = torch.arange(len(rows), device=self.device).view(T, N, K + Q)
        else:
            C, M = self.pool
            drawn = _choose(len(self.count), C, generator, 1)[0]  # (C,)
            rows = (self.start[drawn][:, None] + _choose(self.largest, M, generator, C, self.count[drawn])).flatten()
            slots = _choose(C, N, generator, T)  # (T, N)
            within = _choose(M, K + Q, generator, T * N).view(T, N, K + Q)
            classes, places = drawn[slots], slots[:, :, None] * M + within
        support, y_support = _shuffle(places[:, :, :K], generator)
        query, y_query = _shuffle(places[:, :, K:], generator)
        images = self._pixels(rows).float().sub_(self.mean).div_(self.std)
        return Episode(images, support, query, y_support, y_query, classes, rows), generator

    def _pixels(self, rows: Tensor) -> Tensor:
        if not self.mapped:
            return self.pixels.index_select(0, rows)  # on a CPU ten times faster than pixels[rows]
        order = rows.argsort()  # a file is read fastest in its own order
        block = torch.from_numpy(self.pixels[rows[order].cpu().numpy()]).to(self.device)
        return self._resized(block)[order.argsort()]

    def _resized(self, pixels: Tensor) -> Tensor:
        """uint8 (n, C, H, W) at this loader's size, by bilinear interpolation over what a new pixel covers."""
        size = self.image_shape[1:]
        if pixels.shape[2:] == size:
            return pixels
        parts = (F.interpolate(x.float(), size, mode="bilinear", antialias=True) for x in pixels.split(1000))
        return torch.cat([part.round().clamp(0, 255).byte() for part in parts])


def read_shard(path: Path) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray, np.ndarray]:
    """(images as a memory map (n, C, H, W) uint8, class_start (classes + 1,), class names, mean (C,), std (C,)).

    Raises UsageError, with the command that builds the file, where it is missing, cut short or not of this format.
    """
    build = f"build it: {build_command(path.parent)}"
    if not path.exists():
        there = ", ".join(sorted(file.parent.name for file in path.parent.parent.glob("[!.]*/test.h5"))) or "none"
        raise UsageError(f"{path} isn't there (built data sets: {there}); {build}")
    try:
        with h5py.File(path) as file:
            images, starts = file["images"], file["class_start"][:]
            names = [str(name) for name in file["class_names"].asstr()[:]]
            mean, std = file.attrs["mean"], file.attrs["std"]
            offset, shape, dtype, version = images.id.get_offset(), images.shape, images.dtype, file.attrs["version"]
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{path} is no whole data file ({str(error).splitlines()[0]}); {build}") from None
    whole = (
        version == VERSION and dtype == np.uint8 and len(shape) == 4 and offset is not None
        and starts.ndim == 1 and len(starts) == len(names) + 1 > 1 and starts[0] == 0 and starts[-1] == shape[0]
        and (np.diff(starts) > 0).all() and np.shape(mean) == np.shape(std) == shape[1:2]
    )  # fmt: skip
    if not whole:
        raise UsageError(f"{path} holds images {dtype} {shape}, {len(names)} names: not the format expected; {build}")
    return np.memmap(path, np.uint8, "r", offset, shape), starts.astype(np.int64), names, mean, np.maximum(std, 1e-3)


def views(x: Tensor, n: int, how: Warp) -> Tensor:
    """n views of every image of x (B, C, H, W): the image itself, then fixed draws of `how`, every other one mirrored
    with `flip`. They are the same for all images, so that an image's views depend on nothing but itself, and differ
    by what VIEWED names alone.   (n B, C, H, W), view by view"""
    if n == 1:
        return x
    generator = torch.Generator(x.device).manual_seed(0)
    single = Warp(**{name: getattr(how, name) for name in VIEWED if name != "flip"})
    drawn = [warp(x, single, len(x), generator, alike=len(x)) for _ in range(n - 1)]
    return torch.cat([x, *(view.flip(3) if how.flip and i % 2 == 0 else view for i, view in enumerate(drawn))])


def warp(x: Tensor, how: Warp, images_a_class: int, generator: torch.Generator, alike: int = 1) -> Tensor:
    """Every image of x (B, C, H, W) through its own random affine map and change of colour, or every `alike` images
    through one.

    What comes in from outside repeats the edge. Runs of `images_a_class` images are of one class.
    """
    B, C, H, W = x.shape

    def uniform(limit, repeats=alike):  # (B,) in -limit..limit
        values = torch.rand(B // repeats, generator=generator, device=x.device).repeat_interleave(repeats)
        return (2 * values - 1) * limit

    mirror = x.new_ones(B)
    for flip, repeats in ((how.flip, 1), (how.flip_class, images_a_class)):
        mirror = torch.where(uniform(1.0, repeats) > 0, mirror, -mirror) if flip else mirror
    if any((how.rotate, how.zoom, how.shift, how.rotate_class)):
        angle = np.pi / 180 * (uniform(how.rotate) + uniform(how.rotate_class, images_a_class))
        scale = torch.exp(uniform(np.log1p(how.zoom)))
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        rows = [torch.stack([cos * mirror, -sin, 2 * uniform(how.shift)], -1)]
        rows += [torch.stack([sin * mirror, cos, 2 * uniform(how.shift)], -1)]
        grid = F.affine_grid(torch.stack(rows, 1).to(x.dtype), (B, C, H, W), align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    elif how.flip or how.flip_class:
        x = torch.where(mirror[:, None, None, None] > 0, x, x.flip(3))
    if how.jitter:
        brightness, contrast, saturation = (uniform(how.jitter)[:, None, None, None] for _ in range(3))
        grey = x.mean(1, keepdim=True)
        level = grey.mean((2, 3), keepdim=True)
        # normalised images: a brightness of 0.1 is a tenth of the training images' standard deviation
        x = level + brightness + (1 + contrast) * (grey - level + (1 + saturation) * (x - grey))
    return x


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


def _free_memory(device: torch.device) -> float:
    """Bytes that images may take on the device, or in the host's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except OSError:
        return 8 * 2**30
