"""Images as numbers: normalised, and brought to another size and number of channels."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R 601, as Pillow has it)


def per_channel(values: Sequence[float] | np.ndarray, device: torch.device) -> Tensor:
    """Means or standard deviations, a value a channel on the scale 0..1, as they fit pixels.   (C, 1, 1), 0..255"""
    return torch.as_tensor(values, dtype=torch.float32, device=device)[:, None, None] * 255


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> float32, by mean and std as `per_channel` gives them."""
    return pixels.float().sub_(mean).div_(std)


def converted(pixels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """uint8 (n, C', H', W') as (n, C, H, W) for shape (C, H, W): grey is repeated, colours are mixed to grey, and sizes
    change by bilinear interpolation over what a new pixel covers."""
    channels, size = shape[0], tuple(shape[1:])
    if pixels.shape[1] == channels and tuple(pixels.shape[2:]) == size:
        return pixels
    parts = []
    for part in pixels.split(1000):
        part = with_channels(part.float(), channels, dim=1)
        if tuple(part.shape[2:]) != size:
            part = F.interpolate(part, size, mode="bilinear", antialias=True)
        parts.append(part.round().clamp(0, 255).byte())
    return torch.cat(parts)


def with_channels(values: Tensor, channels: int, dim: int) -> Tensor:
    """Values whose dimension `dim` is that of channels, 1 or 3, with as many as asked."""
    if values.shape[dim] == channels:
        return values
    if channels > 1:
        return values.repeat_interleave(channels, dim)
    return torch.tensordot(values, values.new_tensor(LUMA), ([dim], [0])).unsqueeze(dim)


def changes_to(shape: tuple[int, int, int], stored: tuple[int, int, int]) -> str:
    """What `converted` does to images of shape `stored`, in words; nothing where it leaves them as they are."""
    changes = []
    if shape[0] != stored[0]:
        changes.append("mixed to grey" if shape[0] == 1 else "repeated to RGB")
    if shape[1:] != stored[1:]:
        changes.append(f"resized from {stored[1]}x{stored[2]} to {shape[1]}x{shape[2]}")
    return " and ".join(changes)
