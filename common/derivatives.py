"""The network without this file gives the same numbers, slower: second derivatives of its three layers in closed form.

Methods that differentiate through gradient steps, or multiply vectors by a Hessian, differentiate the backward pass of
batch norm, convolution and max-pooling. torch does so by chains of slow or badly laid out operations, which took half
of a second-order MAML step on two cores. `batch_norm`, `convolve` and `max_pool` compute what torch's own functions do;
only their derivatives are written out here. Each backward pass is a function of its own, whose derivative is given.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    momentum: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """F.batch_norm of x (B, C, H, W) with its own statistics, which move the running ones where these are given.

    Returns the result, and x's mean and reciprocal standard deviation, (C,) each, through which no gradient goes.
    """
    return _BatchNorm.apply(x, weight, bias, running_mean, running_var, momentum, eps)


def convolve(x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """F.conv2d of x (B, C, H, W) with 3x3 filters (K, C / groups, 3, 3), its border padded with zeros."""
    return _Convolution.apply(x, weight, groups)


def max_pool(x: Tensor, keep_border: bool) -> Tensor:
    """F.max_pool2d over 2x2 pixels; keep_border: odd sizes are rounded up and not down."""
    return _MaxPool.apply(x, keep_border)[0]


class _BatchNorm(Function):
    """With n values a channel, "mean" over them, x^ = (x - mean x) rstd, y = weight x^ + bias and g = dL/dy:

    dL/dx = weight rstd (g - mean g - x^ mean(g x^))      dL/dweight = n mean(g x^)      dL/dbias = n mean g
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
        dx, dweight, dbias = _BatchNormBackward.apply(g, *ctx.saved_tensors, ctx.eps)
        return dx, dweight, dbias, None, None, None, None


class _BatchNormBackward(Function):
    """(dL/dx, dL/dweight, dL/dbias) as a function of g, x and weight; mean and rstd are functions of x here."""

    @staticmethod
    def forward(ctx, g, x, weight, mean, rstd, eps):
        g = g.contiguous(memory_format=_layout(x))  # another one than x's takes ten times as long
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            g, x, weight, None, None, mean, rstd, True, eps, [True, True, True]
        )
        ctx.save_for_backward(g, x, weight, mean, rstd, dweight, dbias)
        ctx.eps = eps
        return dx, dweight, dbias

    @staticmethod
    @once_differentiable
    def backward(ctx, to_dx, to_dweight, to_dbias):
        """The cotangents of dL/dx (u below), dL/dweight and dL/dbias go on to g, x and weight."""
        g, x, weight, mean, rstd, dweight, dbias = ctx.saved_tensors
        u, n = to_dx, x.numel() // x.shape[1]

        def channels(values):  # (C,) beside (B, C, H, W)
            return values.to(x.dtype)[:, None, None]

        def affine(scale, shift):  # scale x^ + shift, in one pass
            return F.batch_norm(x, mean, rstd**-2 - ctx.eps, scale, shift, False, 0.0, ctx.eps)

        sum_u_xhat, sum_u = _sums(u, x, mean, rstd, ctx.eps)
        sum_u_g, _ = _sums(u, g, torch.zeros_like(mean), torch.ones_like(rstd), ctx.eps)
        mean_g, mean_g_xhat = dbias / n, dweight / n
        mean_u, mean_u_xhat, mean_u_g = sum_u / n, sum_u_xhat / n, sum_u_g / n
        s = mean_u_g - mean_u * mean_g - mean_u_xhat * mean_g_xhat  # <u, dL/dx> = n weight rstd s
        scale = weight * rstd
        to_g = affine(to_dweight - scale * mean_u_xhat, to_dbias - scale * mean_u).addcmul_(channels(scale), u)
        # x^ is reached through dL/dweight and both means with x^, x through x^ as in any batch norm, and through rstd
        of_u, of_g = -scale * mean_g_xhat, to_dweight - scale * mean_u_xhat
        constant = of_u * mean_u + of_g * mean_g
        of_xhat = of_u * mean_u_xhat + of_g * mean_g_xhat + scale * s
        to_x = affine(-rstd * of_xhat, -rstd * constant)
        to_x.addcmul_(channels(rstd * of_u), u).addcmul_(channels(rstd * of_g), g)
        return to_g, to_x, n * rstd * s, None, None, None


def _sums(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(sum of g x^, sum of g) a channel, in one pass; of g x where mean is 0 and rstd is 1."""
    weight = torch.ones_like(rstd)  # CUDA asks for one, though these sums don't depend on it
    _, sum_g_xhat, sum_g = torch.ops.aten.native_batch_norm_backward(
        g, x, weight, None, None, mean, rstd, True, eps, [False, True, True]
    )
    return sum_g_xhat, sum_g


class _Convolution(Function):
    """dL/dx is linear in g = dL/dy and the filters, dL/dweight in g and x: what reaches them in the double backward
    goes on by the same three products."""

    @staticmethod
    def forward(ctx, x, weight, groups):
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        return F.conv2d(x, weight, padding=1, groups=groups)

    @staticmethod
    def backward(ctx, g):
        needs_x, needs_weight, _ = ctx.needs_input_grad
        dx, dweight = _ConvolutionBackward.apply(g, *ctx.saved_tensors, ctx.groups, needs_x, needs_weight)
        return dx, dweight, None


class _ConvolutionBackward(Function):
    """(dL/dx, dL/dweight) as a function of g, x and weight; None for one that isn't needed."""

    @staticmethod
    def forward(ctx, g, x, weight, groups, needs_x, needs_weight):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, weight)
        ctx.groups = groups
        return _gradients(g, x, weight, groups, needs_x, needs_weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, to_dx, to_dweight):
        g, x, weight = ctx.saved_tensors
        groups = ctx.groups
        to_g = to_x = to_weight = None
        if to_dx is not None:
            to_g = F.conv2d(to_dx, weight, padding=1, groups=groups)
            _, to_weight = _gradients(g, to_dx, weight, groups, False, ctx.needs_input_grad[2])
        if to_dweight is not None:
            through_dweight = F.conv2d(x, to_dweight, padding=1, groups=groups)
            to_g = through_dweight if to_g is None else to_g + through_dweight
            to_x, _ = _gradients(g, x, to_dweight, groups, ctx.needs_input_grad[1], False)
        return to_g, to_x, to_weight, None, None, None


def _gradients(g, x, weight, groups: int, needs_x: bool, needs_weight: bool):
    stride = padding = dilation = [1, 1]
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        g, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [needs_x, needs_weight, False]
    )
    return dx, dweight


class _MaxPool(Function):
    """torch's double backward gives a contiguous tensor, which has to be laid out anew, a fifth of the double backward
    of MAML's inner steps; and its backward keeps all of x, of which only the shape is needed."""

    @staticmethod
    def forward(ctx, x, keep_border):
        y, places = F.max_pool2d(x, 2, ceil_mode=keep_border, return_indices=True)
        ctx.save_for_backward(places)
        ctx.mark_non_differentiable(places)
        ctx.shape, ctx.keep_border = x.shape, keep_border
        return y, places

    @staticmethod
    def backward(ctx, g, _):
        (places,) = ctx.saved_tensors
        return _MaxPoolBackward.apply(g, places, ctx.shape, ctx.keep_border), None


class _MaxPoolBackward(Function):
    """dL/dx as a function of g: its values at their places among zeros."""

    @staticmethod
    def forward(ctx, g, places, shape, keep_border):
        ctx.save_for_backward(places)
        dx = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=_layout(places))
        size, stride, padding, dilation = [2, 2], [2, 2], [0, 0], [1, 1]
        return torch.ops.aten.max_pool2d_with_indices_backward(
            g, dx, size, stride, padding, dilation, keep_border, places, grad_input=dx
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, to_dx):
        (places,) = ctx.saved_tensors
        if places.is_contiguous():
            to_g = to_dx.flatten(2).gather(2, places.flatten(2)).view(places.shape)
        else:  # as channels_last tensors lie
            u, places = to_dx.permute(0, 2, 3, 1), places.permute(0, 2, 3, 1)
            to_g = u.flatten(1, 2).gather(1, places.flatten(1, 2)).view(places.shape).permute(0, 3, 1, 2)
        return to_g, None, None, None


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
