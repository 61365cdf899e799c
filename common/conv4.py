"""Conv4, the backbone of the field: four blocks of 3x3 convolution, batch norm, ReLU and 2x2 max-pooling.

Which statistics batch norm uses is a choice that every call states:
  `net(x, "batch")`    this batch's own, which also move the running averages when the network is in training mode
  `net(x, "running")`  the running averages, so that an image is judged by itself (inductive)
  `net(x, statistics)` those of another batch, as `with_own_statistics` returns them (the query's, for the support)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = ("norm-pool", "pool-norm")
Statistics = list[tuple[Tensor, Tensor]]  # (mean, variance) a block, each (width,)


class BatchNorm(nn.Module):
    """Batch norm over (B, H, W) (Ioffe & Szegedy 2015), scale and shift learned, the statistics named in the call."""

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.momentum, self.eps = momentum, eps

    def forward(self, x: Tensor, statistics: str | tuple[Tensor, Tensor]) -> Tensor:
        """x: (B, width, H, W), and so the result."""
        if statistics == "batch":
            running = (self.running_mean, self.running_var) if self.training else (None, None)
            return F.batch_norm(x, *running, self.weight, self.bias, True, self.momentum, self.eps)
        if statistics == "running":
            statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, False, 0.0, self.eps)


class Block(nn.Module):
    """Convolution, then batch norm and pooling in the order that `order` names, then ReLU.

    "norm-pool" is the usual Conv4. There pooling comes before ReLU (max and ReLU commute) and the convolution has no
    bias (batch norm removes it): the same function with fewer passes over the block's largest tensors. "pool-norm" is
    another function with the same parameters, that of Reptile's published network: batch norm sees the pooled values.
    """

    def __init__(self, channels: int, width: int, order: str):
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = BatchNorm(width)
        self.order = order

    def forward(self, x: Tensor, statistics: str | tuple[Tensor, Tensor]) -> Tensor:
        """x: (B, channels, H, W) -> (B, width, H // 2, W // 2)."""
        return self.after_norm(self.norm(self.before_norm(x), statistics))

    def before_norm(self, x: Tensor) -> Tensor:
        x = self.convolution(x)
        return F.max_pool2d(x, 2) if self.order == "pool-norm" else x

    def after_norm(self, x: Tensor) -> Tensor:
        return F.relu(x if self.order == "pool-norm" else F.max_pool2d(x, 2))


class Conv4(nn.Module):
    """The four blocks, flattened: images (B, C, H, W) -> features (B, d), d = width * (H // 16) * (W // 16).

    `shape` is an image's (C, H, W). channels_last: keep that memory layout, which is faster on CPU and CUDA.
    precision: torch.bfloat16 runs convolutions in it (autocast); features come back as float32 whatever it is.
    Raises ValueError for images below 16 x 16, of which nothing would be left.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int,
        order: str,
        channels_last: bool = False,
        precision: torch.dtype = torch.float32,
    ):
        super().__init__()
        channels, height, W = shape
        if min(height, W) < 16:
            raise ValueError(f"images are {height}x{W}, expected 16x16 or more: Conv4 halves them four times")
        self.blocks = nn.ModuleList(Block(c, width, order) for c in (channels, width, width, width))
        self.size = width * (height // 16) * (W // 16)  # d
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.precision = precision
        self.to(memory_format=self.layout)

    def forward(self, x: Tensor, statistics: str | Statistics) -> Tensor:
        with self._autocast(x):
            x = x.contiguous(memory_format=self.layout)
            for i, block in enumerate(self.blocks):
                x = block(x, statistics if isinstance(statistics, str) else statistics[i])
        return x.flatten(1).to(self.blocks[0].convolution.weight.dtype)

    @torch.no_grad()
    def with_own_statistics(self, x: Tensor) -> tuple[Tensor, Statistics]:
        """Features of a batch normalised by itself, as `net(x, "batch")` has them, and the statistics that did it."""
        statistics = []
        with self._autocast(x):
            x = x.contiguous(memory_format=self.layout)
            for block in self.blocks:
                x = block.before_norm(x)
                mean = x.to(block.norm.weight.dtype).mean((0, 2, 3))
                var = (x - mean[:, None, None]).square().mean((0, 2, 3))
                statistics.append((mean, var))
                x = block.after_norm(block.norm(x, statistics[-1]))
        return x.flatten(1).to(self.blocks[0].convolution.weight.dtype), statistics

    def _autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16)
