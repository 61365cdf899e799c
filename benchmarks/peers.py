"""The same work in torch alone and in other libraries, as tutorials and their own examples write it.

A meta-step is of the textbook network; its meta-gradient is on the same weights and episode as ours.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import problems
from benchmarks.problems import Work
from common.meters import keep_memory


def with_our_allocator(piece: Callable[[], Work]) -> Work:
    """The piece with this project's allocator setting."""
    keep_memory()
    return piece()


def a_task_at_a_time(query_loss: Callable, dataset: str, width: int, tasks: int, **inner) -> Work:
    """Meta-steps whose gradient is that of query_loss(net, x, y, x_query, y_query, **inner), task after task."""
    net, episode = problems.textbook_of(dataset, width), problems.random_episode(dataset, tasks)

    def backward():
        for task in zip(episode.x_support, episode.y_support, episode.x_query, episode.y_query):
            (query_loss(net, *task, **inner) / tasks).backward()

    return problems.adam_steps(net, episode, backward)


def learn2learn(net, x, y, x_query, y_query, **inner) -> Tensor:
    return F.cross_entropy(learn2learn_adapted(net, x, y, **inner)(x_query), y_query)


def learn2learn_adapted(net, x, y, inner_steps: int, inner_rate: float, first_order: bool = False) -> nn.Module:
    from learn2learn.algorithms import MAML

    learner = MAML(net, lr=inner_rate, first_order=first_order).clone()
    for _ in range(inner_steps):
        learner.adapt(F.cross_entropy(learner(x), y))
    return learner


def learn2learn_anil(dataset: str, width: int, tasks: int, **inner) -> Work:
    """The head alone adapts, from zero, on features divided by sqrt d, as convex_maml.py has it. All tasks' images are
    one batch: its example embeds a task's images at a time, which batch norm would tell from ours."""
    net, episode = problems.textbook_of(dataset, width), problems.random_episode(dataset, tasks)
    head = nn.Linear(net.head.in_features, 5)
    for p in head.parameters():
        nn.init.zeros_(p)

    def backward():
        f = net.features(episode.images) / head.in_features**0.5
        head.to(f.dtype)
        parts = zip(f[episode.support], episode.y_support, f[episode.query], episode.y_query)
        torch.stack([learn2learn(head, *part, **inner) for part in parts]).mean().backward()

    return problems.adam_steps(nn.ModuleDict({"features": net.features}), episode, backward)


def higher(net, x, y, x_query, y_query, inner_steps: int, inner_rate: float) -> Tensor:
    import higher

    inner = torch.optim.SGD(net.parameters(), lr=inner_rate)
    with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (learner, steps):
        for _ in range(inner_steps):
            steps.step(F.cross_entropy(learner(x), y))
        return F.cross_entropy(learner(x_query), y_query)


def torchopt(net, x, y, x_query, y_query, inner_steps: int, inner_rate: float) -> Tensor:
    import torchopt

    start = torchopt.extract_state_dict(net, by="reference")
    inner = torchopt.MetaSGD(net, lr=inner_rate)
    for _ in range(inner_steps):
        inner.step(F.cross_entropy(net(x), y))
    loss = F.cross_entropy(net(x_query), y_query)
    torchopt.recover_state_dict(net, start)
    return loss


def parallel_metalearn(
    dataset: str, width: int, tasks: int, inner_steps: int, inner_rate: float, first_order: bool = False
) -> Work:
    """All tasks at once by vmap; 4 of large images, as ours. Batch norm is its own: of torch's, vmap gets second
    derivatives wrong by some 1e-3. The optimiser in its step has a rate of 0, as Adam's step follows in every piece."""
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss import CategoricalAccuracy, CrossEntropy
    from metalearn.nn_models.basic_layers import BatchNorm

    class Net(nn.Module):
        def __init__(self, features: nn.Module, head: nn.Module):
            super().__init__()
            self.features, self.head = features, head

        def forward(self, x, **of_step):
            return {"logits": self.head(self.features(x))}

        def get_fast_weights(self):
            return OrderedDict(self.named_parameters())

    textbook, episode = problems.textbook_of(dataset, width), problems.random_episode(dataset, tasks)
    for block in textbook.features[:4]:
        block[1] = BatchNorm(width, track_running_stats=False)  # all weights are 1 and biases 0 at first
    net = Net(textbook.features, textbook.head)
    algorithm = MAML(
        model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.0), inner_steps=inner_steps,
        inner_optimizer=InnerSGD(net.get_fast_weights(), first_order, inner_rate, learn_lr=False),
        support_loss_fn=CrossEntropy(CategoricalAccuracy()), device=torch.get_default_device(),
        chunk_size=tasks if dataset == "omniglot" else 4,
    )  # fmt: skip

    def backward():
        y_support, y_query = ({"labels": labels} for labels in (episode.y_support, episode.y_query))
        algorithm.step(iter([(episode.x_support, y_support, episode.x_query, y_query)]))

    return problems.adam_steps(net, episode, backward)


def torchopt_implicit(net, x, y, x_query, y_query, **inner) -> Tensor:
    learner = torchopt_learner(**inner)(net)
    learner.solve(x, y)
    return F.cross_entropy(learner(x_query), y_query)


@functools.cache
def torchopt_learner(inner_steps: int, inner_rate: float, strength: float, cg_steps: int, tolerance: float) -> type:
    """TorchOpt's iMAML: a class of networks that start from another's weights, and stay near them."""
    import torchopt
    from torchopt.diff.implicit import ImplicitMetaGradientModule

    cg = torchopt.linear_solve.solve_cg(maxiter=cg_steps, rtol=tolerance, atol=0.0)

    class Learner(ImplicitMetaGradientModule, linear_solve=cg):
        def __init__(self, meta_net):
            super().__init__()
            self.meta_net = meta_net
            self.net = torchopt.module_clone(meta_net, by="deepcopy", detach_buffers=True)

        def forward(self, x):
            return self.net(x)

        def objective(self, x, y):
            pairs = zip(self.net.parameters(), self.meta_net.parameters())
            distance = sum((p - start).square().sum() for p, start in pairs)
            return F.cross_entropy(self(x), y) + strength / 2 * distance

        def solve(self, x, y):
            inner = torch.optim.SGD(self.net.parameters(), lr=inner_rate)
            with torch.enable_grad():
                for _ in range(inner_steps):
                    loss = self.objective(x, y)
                    inner.zero_grad()
                    loss.backward(inputs=tuple(self.net.parameters()))
                    inner.step()
            return self

    return Learner


def contiguous(dataset: str, width: int, tasks: int) -> Work:
    """Forward and backward as users run it: one contiguous float32 batch, the allocator left alone."""
    net = problems.textbook_of(dataset, width).features
    return problems.forward_and_backward(net, net.parameters(), (problems.random_episode(dataset, tasks).images,))


def dataloader_episodes(path: Path, tasks: int, workers: int) -> Work:
    """torch's DataLoader over a dataset of single images and a sampler of tasks, as most tutorials have it."""
    source = problems.loader_of(path)

    def sampler():
        while True:
            classes = torch.randperm(len(source.count))[:5].tolist()
            images = [source.start[c] + torch.randperm(int(source.count[c]))[:16] for c in classes]
            yield torch.cat(images).tolist()

    data = TensorDataset(*problems.images_and_labels(source))
    drawn = iter(DataLoader(data, batch_sampler=sampler(), num_workers=workers))
    return lambda: [next(drawn) for _ in range(tasks)], {"episodes": tasks}


def learn2learn_episodes(path: Path, tasks: int) -> Work:
    from learn2learn.data import MetaDataset, TaskDataset
    from learn2learn.data.transforms import ConsecutiveLabels, KShots, LoadData, NWays, RemapLabels

    data = MetaDataset(TensorDataset(*problems.images_and_labels(problems.loader_of(path))))
    how = [NWays(data, 5), KShots(data, 16), LoadData(data), RemapLabels(data), ConsecutiveLabels(data)]
    drawn = TaskDataset(data, how, num_tasks=-1)
    return lambda: [drawn.sample() for _ in range(tasks)], {"episodes": tasks}
