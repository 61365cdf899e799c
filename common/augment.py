"""Random augmentation of training images, and fixed views of test images.

B images of C channels, H x W pixels; all maps are drawn from a generator that is passed in.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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


def views(x: Tensor, n: int, how: Warp) -> Tensor:
    """n views of every image of x (B, C, H, W): the image itself, then fixed draws of `how`, every other one mirrored
    with `flip`. They are the same for all images, so that an image's views depend on nothing but itself, and differ
    by what VIEWED names alone.   (n B, C, H, W), view by view"""
    if n == 1:
        return x
    generator = torch.Generator().manual_seed(0)  # the same draws on every device
    single = Warp(**{name: getattr(how, name) for name in VIEWED if name != "flip"})
    drawn = [warp(x, single, len(x), generator, alike=len(x)) for _ in range(n - 1)]
    return torch.cat([x, *(view.flip(3) if how.flip and i % 2 == 0 else view for i, view in enumerate(drawn))])


def parts(x: Tensor, n: int) -> tuple[Tensor, ...]:
    """Images of x (B, C, H, W), as many at a time as n views of each fit a CPU's caches, or take a GPU to fill."""
    pixels = 2**23 if x.is_cuda else 2**18
    return x.split(max(1, pixels // x[0, 0].numel() // n))


def warp(x: Tensor, how: Warp, images_a_class: int, generator: torch.Generator, alike: int = 1) -> Tensor:
    """Every image of x (B, C, H, W) through its own random affine map and change of colour, or every `alike` images
    through one.

    What comes in from outside repeats the edge. Runs of `images_a_class` images are of one class.
    """
    B, C, H, W = x.shape

    def uniform(limit, repeats=alike):  # (B,) in -limit..limit
        values = torch.rand(B // repeats, generator=generator, device=generator.device).to(x.device)
        return (2 * values.repeat_interleave(repeats) - 1) * limit

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
        x = sample(x, grid, x.device.type != "mps")
    elif how.flip or how.flip_class:
        x = torch.where(mirror[:, None, None, None] > 0, x, x.flip(3))
    if how.jitter:
        brightness, contrast, saturation = (uniform(how.jitter)[:, None, None, None] for _ in range(3))
        grey = x.mean(1, keepdim=True)
        level = grey.mean((2, 3), keepdim=True)
        # normalised images: a brightness of 0.1 is a tenth of the training images' standard deviation
        x = level + brightness + (1 + contrast) * (grey - level + (1 + saturation) * (x - grey))
    return x


def sample(x: Tensor, grid: Tensor, has_border: bool) -> Tensor:
    """x (B, C, H, W) at the places of grid (B, H, W, 2), -1..1 across the image; outside, the nearest edge repeats.

    has_border: whether the device has that padding. Metal doesn't in torch 2.4 to 2.10; there the places are clamped
    to the middles of the outermost pixels, which gives the same values but for rounding.
    """
    if has_border:
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    most = 1 - 1 / grid.new_tensor([x.shape[3], x.shape[2]])
    return F.grid_sample(x, grid.clamp(-most, most), padding_mode="zeros", align_corners=False)
