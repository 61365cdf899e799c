"""Conv4, the backbone of the field: four blocks of 3x3 convolution, batch norm, ReLU and 2x2 max-pooling.

Which statistics batch norm uses is a choice that every call states:
  `net(x, "batch")`    this batch's own, which also move the running averages when the network is in training mode
  `net(x, "running")`  the running averages, so that an image is judged by itself (inductive)
  `net(x, statistics)` those of another batch, which `net(other, "batch", statistics := [])` collected

Weights with a further dimension in front, as `functional_call` may give them, are T tasks' own: images are then
(T, B, C, H, W), and every task is a group of each convolution.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.derivatives import batch_norm, convolve, max_pool
from common.meters import settled_precision
from common.shards import UsageError

BLOCKS = ("norm-pool", "pool-norm")
MOMENTUM, EPS = 0.1, 1e-5  # of batch norm, torch's own
Statistics = list[tuple[Tensor, Tensor]]  # (mean, variance) a block, each (width,)


class BatchNorm(nn.Module):
    """Batch norm over (B, H, W) (Ioffe & Szegedy 2015), scale and shift learned, the statistics named in the call.

    running: keep running averages; without them "running" can't be asked for.
    """

    def __init__(self, width: int, running: bool = True):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width) if running else None)
        self.register_buffer("running_var", torch.ones(width) if running else None)

    def forward(
        self, x: Tensor, statistics: str | tuple[Tensor, Tensor], collected: Statistics | None = None
    ) -> Tensor:
        """x: (B, width, H, W), and so the result. A batch normalised by itself adds its statistics to `collected`."""
        weight, bias = self.weight.flatten(), self.bias.flatten()  # of all tasks
        if statistics == "batch":
            moved = (self.running_mean, self.running_var) if self.training else (None, None)
            y, mean, rstd = batch_norm(x, weight, bias, *moved, MOMENTUM, EPS)
            if collected is not None:
                collected.append((mean, rstd**-2 - EPS))
            return y
        if statistics == "running":
            statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, weight, bias, False, 0.0, EPS)


class Block(nn.Module):
    """Convolution, then batch norm and pooling in the order that `order` names, then ReLU.

    "norm-pool" is the usual Conv4. There pooling comes before ReLU (max and ReLU commute) and the convolution has no
    bias (batch norm removes it): the same function with fewer passes over the block's largest tensors. "pool-norm" is
    another function with the same parameters, that of Reptile's published network: batch norm sees the pooled values.
    """

    def __init__(self, channels: int, width: int, order: str, running: bool, keep_border: bool, precision: torch.dtype):
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = BatchNorm(width, running)
        self.order, self.keep_border, self.precision = order, keep_border, precision

    def forward(
        self, x: Tensor, statistics: str | tuple[Tensor, Tensor], collected: Statistics | None = None
    ) -> Tensor:
        """x: (B, channels, H, W) -> (B, width, H / 2, W / 2), rounded up with keep_border, else down."""
        return self.after_norm(self.norm(self.before_norm(x), statistics, collected))

    def before_norm(self, x: Tensor) -> Tensor:
        """What batch norm is given."""
        weight = self.convolution.weight
        groups = len(weight) if weight.dim() == 5 else 1  # a group a task
        weight = weight.reshape(-1, *weight.shape[-3:])
        if weight.dtype == torch.float32:  # float64 stays what it is
            x, weight = x.to(self.precision), weight.to(self.precision)
        x = convolve(x, weight, groups)
        return max_pool(x, self.keep_border) if self.order == "pool-norm" else x

    def after_norm(self, x: Tensor) -> Tensor:
        """What follows batch norm."""
        return F.relu(x if self.order == "pool-norm" else max_pool(x, self.keep_border))


class Conv4(nn.Module):
    """The four blocks, flattened: images (B, C, H, W) -> features (B, d); with T tasks' weights (T, B, d).

    d = width * (H // 16) * (W // 16), or with keep_border those quotients rounded up: pooling then keeps the last row
    and column of an odd size, and leaves 2 x 2 of 28 x 28, as MAML's network for Omniglot does, instead of 1 x 1.

    `shape` is an image's (C, H, W). channels_last: keep that memory layout, which is faster on CPU and CUDA.
    precision: torch.bfloat16 runs the blocks in it; parameters and features stay float32.
    running: blocks, from the first, that keep running averages, for which weights that a task adapts have no use.
    first_width: filters of the first block, which works on the largest images, if not `width`. The second block's
    convolution is two thirds of the arithmetic for 84 x 84 images, and half that for half the channels.
    position_mean: w >= 0. Outside training, a filter's features z_p at the positions p of the last block become
    z_p + w mean_p(z). So a head sees more of what is in an image, and less of where.
    Raises UsageError for images below 16 x 16, of which nothing would be left.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int,
        order: str,
        channels_last: bool = False,
        precision: torch.dtype = torch.float32,
        running: int = 4,
        keep_border: bool = False,
        first_width: int = 0,
        position_mean: float = 0.0,
    ):
        super().__init__()
        channels, height, breadth = shape
        if min(height, breadth) < 16:
            raise UsageError(
                f"images are {height}x{breadth}, expected 16x16 or more, as Conv4 halves them four times; build the "
                "data set with a larger --size"
            )
        widths = [channels, first_width or width, width, width, width]
        self.blocks = nn.ModuleList(
            Block(widths[i], widths[i + 1], order, i < running, keep_border, precision) for i in range(4)
        )
        sides = [-(-side // 16) if keep_border else side // 16 for side in (height, breadth)]
        self.size = width * sides[0] * sides[1]  # d
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.precision, self.position_mean = precision, position_mean
        self.to(memory_format=self.layout)

    def forward(self, x: Tensor, statistics: str | Statistics, collected: Statistics | None = None) -> Tensor:
        """With "batch", `collected` (a list) receives the statistics of every block."""
        tasks = x.shape[:-4]  # (T,) or none
        x = x.transpose(0, 1).flatten(1, 2) if tasks else x  # (B, T C, H, W)
        h = self.below(x, statistics, collected)
        f = self.above(h, statistics if isinstance(statistics, str) else statistics[3], collected)
        return f.unflatten(1, (*tasks, -1)).transpose(0, 1) if tasks else f

    def below(self, x: Tensor, statistics: str | Statistics, collected: Statistics | None = None) -> Tensor:
        """The network's lower half: up to the third block's batch norm, after which CAVIA's context comes in.

        x: (B, C, H, W) -> (B, width, h, w)."""
        each = [statistics] * 3 if isinstance(statistics, str) else statistics
        x = self.laid_out(x)
        for block, its in zip(self.blocks[:2], each):
            x = block(x, its, collected)
        third = self.blocks[2]
        return third.norm(third.before_norm(x), each[2], collected)

    def above(
        self, h: Tensor, statistics: str | tuple[Tensor, Tensor] | Statistics, collected: Statistics | None = None
    ) -> Tensor:
        """The rest: h (B, width, h, w), as `below` gives it, to features (B, d).

        h of T tasks (T, B, width, h, w), which share the weights, are normalised each by itself, or by `statistics`, a
        pair a task as `collected` receives it, and give (T, B, d).
        """
        third, fourth = self.blocks[2:]
        tasks = h.shape[:-4]  # (T,) or none
        x = self.laid_out(h.flatten(0, 1) if tasks else h)
        x = fourth.before_norm(third.after_norm(x))
        if tasks:
            each = [statistics] * len(h) if isinstance(statistics, str) else statistics
            x = torch.cat([fourth.norm(part, its, collected) for part, its in zip(x.split(h.shape[1]), each)])
        else:
            x = fourth.norm(x, statistics, collected)
        x = fourth.after_norm(x)
        f = x.flatten(1).to(self.blocks[0].convolution.weight.dtype)
        if self.position_mean and not self.training:
            at_positions = f.unflatten(1, (x.shape[1], -1))  # (B, width, positions)
            f = (at_positions + self.position_mean * at_positions.mean(2, keepdim=True)).flatten(1)
        return f.unflatten(0, h.shape[:2]) if tasks else f

    @torch.no_grad()
    def renew_averages(self, batches: Iterable[Tensor]) -> None:
        """Running averages become the mean statistics of these batches of images, each (B, C, H, W)."""
        each = []
        for images in batches:
            self(images, "batch", collected := [])
            each.append(collected)
        for block, of_batches in zip(self.blocks, zip(*each)):
            if block.norm.running_mean is not None:
                means, variances = zip(*of_batches)
                block.norm.running_mean.copy_(torch.stack(means).mean(0))
                block.norm.running_var.copy_(torch.stack(variances).mean(0))

    def laid_out(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in the network's memory layout: for one channel, of which torch sees no other layout than
        contiguous, by strides that say channels_last."""
        if x.shape[1] == 1 and self.layout == torch.channels_last:
            return x.squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=self.layout)


def backbone(shape: tuple[int, int, int], config, device: torch.device, running: int = 4) -> Conv4:
    """Conv4 as the options say, on the device; its first `running` blocks keep running averages.

    Raises UsageError where the options ask for averages that none keeps.
    """
    if config.plain_averages and not running:
        raise UsageError(
            f"--plain-averages {config.plain_averages}: expected 0, as this model keeps no running averages; "
            "add --plain-averages 0"
        )
    channels_last = config.channels_last and device.type in ("cpu", "cuda")
    precision = getattr(torch, settled_precision(config.precision, device))
    net = Conv4(
        shape, config.width, config.block, channels_last, precision, running, config.keep_border, config.first_width,
        config.position_mean,
    )  # fmt: skip
    return net.to(device)
