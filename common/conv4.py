"""Conv4, the backbone of the field: four blocks of 3x3 convolution, batch norm, ReLU and 2x2 max-pooling.

Which statistics batch norm uses is a choice that every call states:
  `net(x, "batch")`    this batch's own, which also move the running averages when the network is in training mode
  `net(x, "running")`  the running averages, so that an image is judged by itself (inductive)
  `net(x, statistics)` those of another batch, which `net(other, "batch", statistics := [])` collected

Weights with a further dimension in front, as `functional_call` may give them, are T tasks' own: images are then
(T, B, C, H, W), and every task is a group of each convolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = ("norm-pool", "pool-norm")
Statistics = list[tuple[Tensor, Tensor]]  # (mean, variance) a block, each (width,)


class BatchNorm(nn.Module):
    """Batch norm over (B, H, W) (Ioffe & Szegedy 2015), scale and shift learned, the statistics named in the call.

    running: keep running averages; without them "running" can't be asked for.
    """

    def __init__(self, width: int, running: bool = True, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width) if running else None)
        self.register_buffer("running_var", torch.ones(width) if running else None)
        self.momentum, self.eps = momentum, eps

    def forward(
        self, x: Tensor, statistics: str | tuple[Tensor, Tensor], collected: Statistics | None = None
    ) -> Tensor:
        """x: (B, width, H, W), and so the result. A batch normalised by itself adds its statistics to `collected`."""
        weight, bias = self.weight.flatten(), self.bias.flatten()  # of all tasks
        if statistics == "batch":
            running = (self.running_mean, self.running_var) if self.training else (None, None)
            y, mean, rstd = Normalise.apply(x, weight, bias, *running, self.momentum, self.eps)
            if collected is not None:
                collected.append((mean, rstd**-2 - self.eps))
            return y
        if statistics == "running":
            statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, weight, bias, False, 0.0, self.eps)


class Normalise(torch.autograd.Function):
    """torch's batch norm with a batch's own statistics, whose double backward is in closed form.

    torch differentiates its backward as a chain of slow reductions (its issue 3076), which was 40 % of a second-order
    MAML step. With n values a channel, M their mean, y = weight x^ + bias, x^ = (x - M x) rstd and g = dL/dy:

        dL/dx = weight rstd (g - M g - x^ M(g x^))      dL/dweight = n M(g x^)      dL/dbias = n M g
    """

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps):
        y, mean, rstd = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, rstd)
        return y, mean, rstd

    @staticmethod
    def backward(ctx, g, *_):
        return *_NormaliseBackward.apply(g, *ctx.saved_tensors, ctx.eps), None, None, None, None


class _NormaliseBackward(torch.autograd.Function):
    """(dL/dx, dL/dweight, dL/dbias) as a function of g, x and weight. mean and rstd are functions of x here."""

    @staticmethod
    def forward(ctx, g, x, weight, mean, rstd, eps):
        needed = [True, True, True]
        g = g.contiguous(memory_format=_layout(x))  # another one than x's takes ten times as long
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            g, x, weight, None, None, mean, rstd, True, eps, needed
        )
        ctx.save_for_backward(g, x, weight, mean, rstd, dweight, dbias)
        ctx.eps = eps
        return dx, dweight, dbias

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, u, a, b):
        """u, a, b: cotangents of dL/dx, dL/dweight and dL/dbias."""
        g, x, weight, mean, rstd, dweight, dbias = ctx.saved_tensors
        n = x.numel() // x.shape[1]

        def channels(values):  # (width,) beside (B, width, H, W)
            return values.to(x.dtype)[:, None, None]

        def affine(scale, shift):  # scale x^ + shift, in one pass
            return F.batch_norm(x, mean, rstd**-2 - ctx.eps, scale, shift, False, 0.0, ctx.eps)

        Mux, Mu = _sums(u, x, mean, rstd, ctx.eps)
        Mug, _ = _sums(u, g, torch.zeros_like(mean), torch.ones_like(rstd), ctx.eps)
        Mg, Mgx, Mu, Mux, Mug = (v / n for v in (dbias, dweight, Mu, Mux, Mug))
        s = Mug - Mu * Mg - Mux * Mgx  # <u, dL/dx> = n weight rstd s
        scale = weight * rstd
        to_g = affine(a - scale * Mux, b - scale * Mu).addcmul_(channels(scale), u)
        # to x^: a g - scale (Mgx u + Mux g); from there as in any batch norm; and to rstd: n weight s
        of_u, of_g = -scale * Mgx, a - scale * Mux
        constant, of_normalised = of_u * Mu + of_g * Mg, of_u * Mux + of_g * Mgx + scale * s
        to_x = affine(-rstd * of_normalised, -rstd * constant)
        to_x.addcmul_(channels(rstd * of_u), u).addcmul_(channels(rstd * of_g), g)
        return to_g, to_x, n * rstd * s, None, None, None


def _layout(x):
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _sums(g, x, mean, rstd, eps):
    """(sum of g x^, sum of g) a channel, in one pass. Of g x and g, where mean is 0 and rstd is 1."""
    weight = torch.ones_like(rstd)  # CUDA asks for one, though these sums don't depend on it
    return torch.ops.aten.native_batch_norm_backward(
        g, x, weight, None, None, mean, rstd, True, eps, [False, True, True]
    )[1:]


class Convolve(torch.autograd.Function):
    """3x3 convolution, its border padded with zeros, whose double backward is convolutions of the same sizes.

    torch's own takes two to four times as long in the first block, whose images need no gradient. With y = w * x and
    g = dL/dy, dL/dx is linear in g and w, and dL/dw in g and x: so what reaches them in the double backward goes on by
    the three products that there are.
    """

    @staticmethod
    def forward(ctx, x, weight, groups=1):
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        return F.conv2d(x, weight, padding=1, groups=groups)

    @staticmethod
    def backward(ctx, g):
        return *_ConvolveBackward.apply(g, *ctx.saved_tensors, ctx.groups, *ctx.needs_input_grad[:2]), None


class _ConvolveBackward(torch.autograd.Function):
    """(dL/dx, dL/dweight) as a function of g, x and weight."""

    @staticmethod
    def forward(ctx, g, x, weight, groups, of_x, of_weight):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, weight)
        ctx.groups = groups
        return _convolution_backward(g, x, weight, groups, of_x, of_weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, u, v):
        """u, v: cotangents of dL/dx and dL/dweight, or None."""
        (g, x, weight), groups = ctx.saved_tensors, ctx.groups
        to_g = to_x = to_weight = None
        if u is not None:
            to_g = F.conv2d(u, weight, padding=1, groups=groups)
            _, to_weight = _convolution_backward(g, u, weight, groups, False, ctx.needs_input_grad[2])
        if v is not None:
            of_v = F.conv2d(x, v, padding=1, groups=groups)
            to_g = of_v if to_g is None else to_g + of_v
            to_x, _ = _convolution_backward(g, x, v, groups, ctx.needs_input_grad[1], False)
        return to_g, to_x, to_weight, None, None, None


def _convolution_backward(g, x, weight, groups: int, of_x: bool, of_weight: bool):
    one = [1, 1]  # stride, padding, dilation
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, one, one, one, False, [0, 0], groups, [of_x, of_weight, False]
    )[:2]


class Pool(torch.autograd.Function):
    """The largest of 2 x 2 values, whose double backward keeps the memory layout.

    torch's own gives a contiguous tensor, which has to be laid out anew, and takes longer for it: a fifth of the
    double backward of MAML's inner steps. And its backward keeps all of x, of which only the shape is needed.
    """

    @staticmethod
    def forward(ctx, x, keep_border):
        y, places = F.max_pool2d(x, 2, ceil_mode=keep_border, return_indices=True)
        ctx.save_for_backward(places)
        ctx.mark_non_differentiable(places)
        ctx.shape, ctx.keep_border = x.shape, keep_border
        return y, places

    @staticmethod
    def backward(ctx, g, _):
        return _PoolBackward.apply(g, *ctx.saved_tensors, ctx.shape, ctx.keep_border), None


class _PoolBackward(torch.autograd.Function):
    """dL/dx as a function of g: its values at their places among zeros."""

    @staticmethod
    def forward(ctx, g, places, shape, keep_border):
        ctx.save_for_backward(places)
        dx = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=_layout(places))
        return torch.ops.aten.max_pool2d_with_indices_backward(
            g, dx, [2, 2], [2, 2], [0, 0], [1, 1], keep_border, places, grad_input=dx
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, u):
        (places,) = ctx.saved_tensors
        if places.is_contiguous():
            return u.flatten(2).gather(2, places.flatten(2)).view(places.shape), None, None, None
        u, places = (v.permute(0, 2, 3, 1) for v in (u, places))  # as channels_last tensors lie
        return u.flatten(1, 2).gather(1, places.flatten(1, 2)).view(places.shape).permute(0, 3, 1, 2), None, None, None


class Block(nn.Module):
    """Convolution, then batch norm and pooling in the order that `order` names, then ReLU.

    "norm-pool" is the usual Conv4. There pooling comes before ReLU (max and ReLU commute) and the convolution has no
    bias (batch norm removes it): the same function with fewer passes over the block's largest tensors. "pool-norm" is
    another function with the same parameters, that of Reptile's published network: batch norm sees the pooled values.
    """

    def __init__(self, channels: int, width: int, order: str, running: bool, keep_border: bool):
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = BatchNorm(width, running)
        self.order, self.keep_border = order, keep_border

    def forward(
        self, x: Tensor, statistics: str | tuple[Tensor, Tensor], collected: Statistics | None = None
    ) -> Tensor:
        """x: (B, channels, H, W) -> (B, width, H / 2, W / 2), rounded up with keep_border, else down."""
        return self.after_norm(self.norm(self.before_norm(x), statistics, collected))

    def before_norm(self, x: Tensor) -> Tensor:
        """What batch norm is given."""
        weight = self.convolution.weight
        groups = len(weight) if weight.dim() == 5 else 1
        weight = weight.reshape(-1, *weight.shape[-3:])
        if torch.is_autocast_enabled(x.device.type) and weight.dtype == torch.float32:
            x, weight = (v.to(torch.get_autocast_dtype(x.device.type)) for v in (x, weight))
        x = Convolve.apply(x, weight, groups)
        return self.pool(x) if self.order == "pool-norm" else x

    def after_norm(self, x: Tensor) -> Tensor:
        """What follows batch norm."""
        return F.relu(x if self.order == "pool-norm" else self.pool(x))

    def pool(self, x: Tensor) -> Tensor:
        """The largest of 2 x 2 values."""
        return Pool.apply(x, self.keep_border)[0]


class Conv4(nn.Module):
    """The four blocks, flattened: images (B, C, H, W) -> features (B, d); with T tasks' weights (T, B, d).

    d = width * (H // 16) * (W // 16), or with keep_border those quotients rounded up: pooling then keeps the last row
    and column of an odd size, and leaves 2 x 2 of 28 x 28, as MAML's network for Omniglot does, instead of 1 x 1.

    `shape` is an image's (C, H, W). channels_last: keep that memory layout, which is faster on CPU and CUDA.
    precision: torch.bfloat16 runs convolutions in it (autocast); features come back in the weights' type.
    running: blocks, from the first, that keep running averages, for which weights that a task adapts have no use.
    first_width: filters of the first block, which works on the largest images, if not `width`. The second block's
    convolution is two thirds of the arithmetic for 84 x 84 images, and half that for half the channels.
    Raises ValueError for images below 16 x 16, of which nothing would be left.
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
    ):
        super().__init__()
        channels, height, W = shape
        if min(height, W) < 16:
            raise ValueError(f"images are {height}x{W}, expected 16x16 or more: Conv4 halves them four times")
        widths = [channels, first_width or width, width, width, width]
        self.blocks = nn.ModuleList(
            Block(c, w, order, i < running, keep_border) for i, (c, w) in enumerate(zip(widths, widths[1:]))
        )
        sides = [-(-side // 16) if keep_border else side // 16 for side in (height, W)]
        self.size = width * sides[0] * sides[1]  # d
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.precision = precision
        self.to(memory_format=self.layout)

    def forward(self, x: Tensor, statistics: str | Statistics, collected: Statistics | None = None) -> Tensor:
        """With "batch", `collected` (a list) receives the statistics of every block."""
        tasks = x.shape[:-4]  # (T,) or none
        with self.autocast(x):
            x = x.transpose(0, 1).flatten(1, 2) if tasks else x  # (B, T C, H, W)
            x = self.laid_out(x)
            for i, block in enumerate(self.blocks):
                x = block(x, statistics if isinstance(statistics, str) else statistics[i], collected)
        x = x.unflatten(1, (*tasks, -1)).transpose(0, 1).flatten(2) if tasks else x.flatten(1)
        return x.to(self.blocks[0].convolution.weight.dtype)

    def laid_out(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in the network's memory layout: for one channel, of which torch sees no other layout than
        contiguous, by strides that say channels_last."""
        if x.shape[1] == 1 and self.layout == torch.channels_last:
            return x.squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=self.layout)

    def autocast(self, x: Tensor) -> torch.autocast:
        """The context that gives convolutions their precision."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16)
