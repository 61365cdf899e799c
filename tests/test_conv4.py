"""The backbone: the same function as the textbook one, and statistics that are those that were named."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from common import conv4
from common.conv4 import BLOCKS, Conv4
from common.derivatives import batch_norm, convolve, max_pool
from common.shards import UsageError


def a_network(order, shape=(3, 32, 48), width=8, **options):
    torch.manual_seed(0)
    net = Conv4(shape, width, order, **options).double()
    for parameter in net.parameters():  # scales of both signs: pooling before ReLU must hold for these too
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter)
    return net, torch.randn(10, *shape, dtype=torch.float64)


def textbook(net, x, order):
    """Convolution with a bias, batch norm, ReLU and pooling in the order that papers print."""

    def pool(x):
        if net.blocks[0].keep_border:
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-torch.inf)
        return F.max_pool2d(x, 2)

    for block in net.blocks:
        norm = block.norm
        x = F.conv2d(x, block.convolution.weight, torch.randn(len(norm.bias), dtype=x.dtype), padding=1)
        x = pool(x) if order == "pool-norm" else x
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        x = F.relu(x * norm.weight[:, None, None] + norm.bias[:, None, None])
        x = x if order == "pool-norm" else pool(x)
    return x.flatten(1)


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("order", BLOCKS)
def test_blocks_equal_the_textbook_order_with_bias_and_late_pooling(order, channels_last):
    net, x = a_network(order, channels_last=channels_last)
    f = net(x, "batch")
    assert f.shape == (10, net.size) == (10, 8 * 2 * 3) and f.std() > 0.1
    torch.testing.assert_close(f, textbook(net, x, order), rtol=0, atol=1e-9)


def test_outside_training_position_mean_adds_the_mean_over_positions_with_weights_of_tasks_too():
    net, x = a_network("pool-norm", running=0)
    plain = net(x, "batch").unflatten(1, (8, 6))  # 2 x 3 positions
    net.position_mean = 0.5
    torch.testing.assert_close(net(x, "batch"), plain.flatten(1))
    net.eval()
    expected = (plain + 0.5 * plain.mean(2, keepdim=True)).flatten(1)
    torch.testing.assert_close(net(x, "batch"), expected)
    weights = {name: p.expand(2, *p.shape) for name, p in net.named_parameters()}
    of_tasks = functional_call(net, weights, (torch.stack([x, x]), "batch"))
    torch.testing.assert_close(of_tasks, torch.stack([expected, expected]))


def plain_batch_norm(x, weight, bias, running_mean, running_var, momentum, eps):
    y = F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    var, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
    return y, mean, (var + eps).rsqrt()


@pytest.mark.parametrize("tasks", (False, True))
@pytest.mark.parametrize("order", BLOCKS)
def test_without_the_closed_form_derivatives_the_network_gives_the_same_numbers(order, tasks, monkeypatch):
    """Features, statistics, running averages, gradients, and products with the Hessian, by torch's functions alone."""
    net, x = a_network(order, running=0 if tasks else 4, channels_last=True)
    weights = dict(net.named_parameters())
    if tasks:
        weights = {n: torch.stack([p, p.flip(0)]).detach().requires_grad_() for n, p in weights.items()}
        x = x.view(2, 5, *x.shape[1:])

    def numbers():
        f = functional_call(net, weights, (x, "batch", statistics := []))
        first = torch.autograd.grad(f.sin().sum(), tuple(weights.values()), create_graph=True)
        second = torch.autograd.grad(sum(g.cos().sum() for g in first), tuple(weights.values()))
        return [f, *first, *second, *(v for pair in statistics for v in pair), *(b.clone() for b in net.buffers())]

    start = copy.deepcopy(net.state_dict())
    ours = numbers()
    net.load_state_dict(start)
    monkeypatch.setattr(conv4, "batch_norm", plain_batch_norm)
    monkeypatch.setattr(conv4, "convolve", lambda x, weight, groups: F.conv2d(x, weight, padding=1, groups=groups))
    monkeypatch.setattr(conv4, "max_pool", lambda x, keep_border: F.max_pool2d(x, 2, ceil_mode=keep_border))
    for a, b in zip(ours, numbers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
        assert a.norm() > 0


@pytest.mark.parametrize("order", BLOCKS)
def test_keeping_the_border_pools_odd_sizes_up(order):
    net, x = a_network(order, shape=(1, 28, 28), keep_border=True)
    f = net(x, "batch")
    assert f.shape == (10, net.size) == (10, 8 * 2 * 2)
    torch.testing.assert_close(f, textbook(net, x, order), rtol=0, atol=1e-9)


def test_the_first_block_may_be_narrower():
    net, x = a_network("pool-norm", first_width=3)
    assert [len(block.convolution.weight) for block in net.blocks] == [3, 8, 8, 8]
    torch.testing.assert_close(net(x, "batch"), textbook(net, x, "pool-norm"), rtol=0, atol=1e-9)


def test_running_statistics_judge_an_image_by_itself():
    net, x = a_network("pool-norm")
    net(x, "batch")
    alone = torch.cat([net(image[None], "running") for image in x])
    torch.testing.assert_close(alone, net(x, "running"), rtol=0, atol=1e-12)
    assert not torch.allclose(torch.cat([net(image[None], "batch") for image in x]), net(x, "batch"))


def test_renewed_averages_are_the_mean_statistics_of_the_batches_of_blocks_that_keep_any():
    net, x = a_network("pool-norm", running=3)
    batches = x[:4], x[4:]
    of_batches = []
    for images in batches:
        net(images, "batch", collected := [])
        of_batches.append(collected)
    net.renew_averages(iter(batches))
    for block, *pairs in zip(net.blocks[:3], *of_batches):
        for average, parts in zip((block.norm.running_mean, block.norm.running_var), zip(*pairs)):
            torch.testing.assert_close(average, (parts[0] + parts[1]) / 2)
    assert net.blocks[3].norm.running_mean is None
    before = [b.clone() for b in net.buffers()]
    net.renew_averages(())
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers()))


def test_only_training_moves_the_running_averages():
    net, x = a_network("pool-norm")
    before = [b.clone() for b in net.buffers()]
    net.eval()
    net(x, "batch"), net(x, "running")
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers()))
    net.train()
    net(x, "running")
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers()))
    net(x, "batch")
    assert not any(torch.equal(a, b) for a, b in zip(before, net.buffers()))


@pytest.mark.parametrize("order", BLOCKS)
def test_a_batchs_own_statistics_reproduce_its_normalisation(order):
    net, x = a_network(order)
    net.eval()
    f = net(x, "batch", statistics := [])
    torch.testing.assert_close(net(x, statistics), f, rtol=0, atol=1e-9)


def test_statistics_are_collected_without_a_change_to_the_features():
    net, x = a_network("norm-pool")
    assert torch.equal(net(x, "batch", collected := []), net(x, "batch")) and len(collected) == 4
    first = net.blocks[0].before_norm(x)
    torch.testing.assert_close(collected[0][0], first.mean((0, 2, 3)))
    torch.testing.assert_close(collected[0][1], first.var((0, 2, 3), unbiased=False))


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
def test_batch_norm_differentiates_once_and_twice(layout):
    """Against finite differences, and against torch's own batch norm."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 2, 3, dtype=torch.float64, generator=generator).contiguous(memory_format=layout)
    weight, bias = torch.randn(2, 4, dtype=torch.float64, generator=generator)
    inputs = [v.requires_grad_() for v in (x, weight, bias)]

    def ours(x, weight, bias):
        return batch_norm(x, weight, bias, None, None, 0.0, 1e-5)[0]

    assert torch.autograd.gradcheck(ours, inputs) and torch.autograd.gradgradcheck(ours, inputs)
    assert torch.autograd.gradgradcheck(lambda x, w, b: (ours(x, w, b).sin() * x).sum((0, 2, 3)), inputs)

    def second(norm):
        y = norm(*inputs).sin()
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.cos().sum() for g in first), inputs)

    for a, b in zip(second(ours), second(lambda x, w, b: F.batch_norm(x, None, None, w, b, True))):
        torch.testing.assert_close(a, b)
        assert a.norm() > 1e-3


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
@pytest.mark.parametrize("of_images", (True, False))
@pytest.mark.parametrize("groups", (1, 2))
def test_convolution_differentiates_once_and_twice(layout, groups, of_images):
    """Against finite differences, and against torch's own, with and without a gradient for the images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=generator).contiguous(memory_format=layout)
    weight = torch.randn(4, 2 // groups, 3, 3, dtype=torch.float64, generator=generator).requires_grad_()
    inputs = (x.requires_grad_(of_images), weight)

    def ours(x, weight):
        return convolve(x, weight, groups)

    assert torch.autograd.gradcheck(ours, inputs) and torch.autograd.gradgradcheck(ours, inputs)

    def second(convolve, wanted):
        first = torch.autograd.grad(convolve(*inputs).sin().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(g.cos().sum() for g in first), wanted)

    for wanted in (inputs, (x,), (weight,)) if of_images else ((weight,),):
        theirs = second(lambda x, weight: F.conv2d(x, weight, padding=1, groups=groups), wanted)
        for a, b in zip(second(ours, wanted), theirs):
            torch.testing.assert_close(a, b)
            assert a.norm() > 1e-3


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
@pytest.mark.parametrize("keep_border", (False, True))
def test_pooling_differentiates_once_and_twice_and_keeps_the_layout(layout, keep_border):
    generator = torch.Generator().manual_seed(0)
    values = torch.randperm(3 * 4 * 5 * 7, generator=generator).double() / 10
    x = values.view(3, 4, 5, 7).contiguous(memory_format=layout).requires_grad_()

    def ours(x):
        return max_pool(x, keep_border)

    theirs = F.max_pool2d(x, 2, ceil_mode=keep_border)
    assert torch.equal(ours(x), theirs) and ours(x).stride() == theirs.stride()
    assert torch.autograd.gradcheck(ours, x) and torch.autograd.gradgradcheck(lambda x: ours(x).sin(), x)

    g = torch.randn_like(theirs).requires_grad_()
    (dx,) = torch.autograd.grad(ours(x), x, g, create_graph=True)
    (to_g,) = torch.autograd.grad(dx.square().sum(), g)
    torch.testing.assert_close(to_g, 2 * g.detach())
    assert all(v.is_contiguous(memory_format=layout) for v in (dx, to_g))


@pytest.mark.parametrize("channels", (1, 3))
@pytest.mark.parametrize("precision", (torch.float32, torch.bfloat16))
def test_channels_last_holds_in_every_block(channels, precision):
    """torch can't tell the layout of one channel by its strides, and gives a contiguous result."""
    net = Conv4((channels, 28, 28), 8, "norm-pool", channels_last=True, precision=precision)
    shapes = []
    for block in net.blocks:
        block.norm.register_forward_hook(
            lambda _, __, y: shapes.append((y.dtype, y.is_contiguous(memory_format=torch.channels_last)))
        )
    net(torch.randn(4, channels, 28, 28), "batch")
    assert shapes == [(precision, True)] * 4


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("order", BLOCKS)
def test_weights_of_several_tasks_give_what_each_tasks_network_does(order, channels_last):
    """Features, by a batch's own statistics and by another's, and gradients."""
    net, x = a_network(order, channels_last=channels_last, running=0)
    images, others = torch.stack([x[:4], x[4:8], x[2:6]]), torch.stack([x[6:], x[:4], x[5:9]])
    weights = {n: torch.stack([p, 2 * p, p.flip(0)]).detach().requires_grad_() for n, p in net.named_parameters()}
    together = functional_call(net, weights, (images, "batch", statistics := []))
    by_others = functional_call(net, weights, (others, statistics))
    gradients = torch.autograd.grad(together.sin().sum(), tuple(weights.values()))
    for task in range(3):
        own = {name: p[task] for name, p in weights.items()}
        alone = functional_call(net, own, (images[task], "batch", statistics := []))
        torch.testing.assert_close(together[task], alone)
        torch.testing.assert_close(by_others[task], functional_call(net, own, (others[task], statistics)))
        for g, expected in zip(gradients, torch.autograd.grad(alone.sin().sum(), tuple(own.values()))):
            torch.testing.assert_close(g[task], expected)


def test_bfloat16_is_close_and_leaves_parameters_and_features_float32():
    torch.manual_seed(0)
    exact, x = Conv4((1, 28, 28), 16, "pool-norm"), torch.randn(20, 1, 28, 28)
    rounded = Conv4((1, 28, 28), 16, "pool-norm", precision=torch.bfloat16)
    rounded.load_state_dict(exact.state_dict())
    f, g = exact(x, "batch"), rounded(x, "batch")
    assert g.dtype == torch.float32 and not torch.equal(f, g)
    assert (f - g).norm() < 0.05 * f.norm()
    g.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in rounded.parameters())


def test_images_too_small_for_four_halvings_are_refused():
    with pytest.raises(UsageError, match="15x28.*16x16"):
        Conv4((1, 15, 28), 8, "pool-norm")
