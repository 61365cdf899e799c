"""The backbone: the same function as the textbook one, and statistics that are those that were named."""

import pytest
import torch
import torch.nn.functional as F

from common.conv4 import BLOCKS, Conv4


def a_network(order, shape=(3, 32, 48), width=8, **options):
    torch.manual_seed(0)
    net = Conv4(shape, width, order, **options).double()
    for parameter in net.parameters():  # scales of both signs: pooling before ReLU must hold for these too
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter)
    return net, torch.randn(10, *shape, dtype=torch.float64)


def textbook(net, x, order):
    """Convolution with a bias, batch norm, ReLU and pooling in the order that papers print."""
    for block in net.blocks:
        norm = block.norm
        x = F.conv2d(x, block.convolution.weight, torch.randn(len(norm.bias), dtype=x.dtype), padding=1)
        x = F.max_pool2d(x, 2) if order == "pool-norm" else x
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        x = F.relu(x * norm.weight[:, None, None] + norm.bias[:, None, None])
        x = x if order == "pool-norm" else F.max_pool2d(x, 2)
    return x.flatten(1)


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("order", BLOCKS)
def test_blocks_equal_the_textbook_order_with_bias_and_late_pooling(order, channels_last):
    net, x = a_network(order, channels_last=channels_last)
    f = net(x, "batch")
    assert f.shape == (10, net.size) == (10, 8 * 2 * 3) and f.std() > 0.1
    torch.testing.assert_close(f, textbook(net, x, order), rtol=0, atol=1e-9)


def test_running_statistics_judge_an_image_by_itself():
    net, x = a_network("pool-norm")
    net(x, "batch")
    alone = torch.cat([net(image[None], "running") for image in x])
    torch.testing.assert_close(alone, net(x, "running"), rtol=0, atol=1e-12)
    assert not torch.allclose(torch.cat([net(image[None], "batch") for image in x]), net(x, "batch"))


def test_only_training_moves_the_running_averages():
    net, x = a_network("pool-norm")
    before = [b.clone() for b in net.buffers()]
    net.eval()
    net(x, "batch"), net(x, "running"), net.with_own_statistics(x)
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers()))
    net.train()
    net(x, "running"), net.with_own_statistics(x)
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers()))
    net(x, "batch")
    assert not any(torch.equal(a, b) for a, b in zip(before, net.buffers()))


@pytest.mark.parametrize("order", BLOCKS)
def test_a_batchs_own_statistics_reproduce_its_normalisation(order):
    net, x = a_network(order)
    net.eval()
    f, statistics = net.with_own_statistics(x)
    torch.testing.assert_close(f, net(x, "batch"), rtol=0, atol=1e-9)
    torch.testing.assert_close(net(x, statistics), f, rtol=0, atol=1e-9)


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
    with pytest.raises(ValueError, match="15x28.*16x16"):
        Conv4((1, 15, 28), 8, "pool-norm")
