"""The same meta-step in other libraries, as their own examples write it, on the textbook network.

Each returns (step, info) as worker.py has it; info is the signature of its meta-gradient on the same weights and
episode, or how many episodes a step draws.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from worker import (
    Episode,
    EpisodeLoader,
    Textbook,
    Work,
    episodes_of,
    images_and_labels,
    signature_in_float64,
    textbook_of,
)


def _work(net: torch.nn.Module, episode: Episode, backward: Callable[[], None]) -> Work:
    """Steps of Adam on net's parameters, whose meta-gradient `backward` adds to .grad, from the episode's images."""

    def gradients():
        net.zero_grad()
        backward()

    info = signature_in_float64(net, episode, gradients)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5)

    def step():
        gradients()
        optimizer.step()

    return step, info


def _a_task_at_a_time(spec: dict, meta_step: Callable) -> Work:
    """meta_step(net, x, y, x_query, y_query) -> query loss of a task, whose backward reaches net's parameters."""
    net, episode = textbook_of(spec), episodes_of(spec)

    def backward():
        for task in zip(episode.x_support, episode.y_support, episode.x_query, episode.y_query):
            (meta_step(net, *task) / spec["tasks"]).backward()

    return _work(net, episode, backward)


def learn2learn(spec: dict) -> Work:
    from learn2learn.algorithms import MAML

    def meta_step(net: Textbook, x, y, x_query, y_query):
        learner = MAML(net, lr=spec["inner_rate"], first_order=spec.get("first_order", False)).clone()
        for _ in range(spec["inner_steps"]):
            learner.adapt(F.cross_entropy(learner(x), y))
        return F.cross_entropy(learner(x_query), y_query)

    return _a_task_at_a_time(spec, meta_step)


def learn2learn_anil(spec: dict) -> Work:
    """The head alone adapts, from zero, on features divided by sqrt d, as convex_maml.py has it. All tasks' images are
    one batch: its example embeds a task's images at a time, which batch norm would tell from ours."""
    from learn2learn.algorithms import MAML

    net, episode = textbook_of(spec), episodes_of(spec)
    head = torch.nn.Linear(net.head.in_features, 5)
    for p in head.parameters():
        torch.nn.init.zeros_(p)

    def backward():
        f = net.features(episode.images) / head.in_features**0.5
        head.to(f.dtype)
        losses = []
        for support, y, query, y_query in zip(episode.support, episode.y_support, episode.query, episode.y_query):
            learner = MAML(head, lr=spec["inner_rate"]).clone()
            for _ in range(spec["inner_steps"]):
                learner.adapt(F.cross_entropy(learner(f[support]), y))
            losses.append(F.cross_entropy(learner(f[query]), y_query))
        torch.stack(losses).mean().backward()

    return _work(torch.nn.ModuleDict({"features": net.features}), episode, backward)


def higher(spec: dict) -> Work:
    import higher

    def meta_step(net: Textbook, x, y, x_query, y_query):
        inner = torch.optim.SGD(net.parameters(), lr=spec["inner_rate"])
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (learner, steps):
            for _ in range(spec["inner_steps"]):
                steps.step(F.cross_entropy(learner(x), y))
            return F.cross_entropy(learner(x_query), y_query)

    return _a_task_at_a_time(spec, meta_step)


def torchopt(spec: dict) -> Work:
    import torchopt

    inner = {}  # by type: the first meta-gradient is in float64

    def meta_step(net: Textbook, x, y, x_query, y_query):
        if x.dtype not in inner:
            inner[x.dtype] = torchopt.MetaSGD(net, lr=spec["inner_rate"])
        optimizer = inner[x.dtype]
        start = torchopt.extract_state_dict(net, by="reference")
        optimizer_start = torchopt.extract_state_dict(optimizer, by="reference")
        for _ in range(spec["inner_steps"]):
            optimizer.step(F.cross_entropy(net(x), y))
        loss = F.cross_entropy(net(x_query), y_query)
        torchopt.recover_state_dict(net, start)
        torchopt.recover_state_dict(optimizer, optimizer_start)
        return loss

    return _a_task_at_a_time(spec, meta_step)


def torchopt_implicit(spec: dict) -> Work:
    import torchopt
    from torchopt.diff.implicit import ImplicitMetaGradientModule

    strength, rate = spec["strength"], spec["inner_rate"]

    class Learner(
        ImplicitMetaGradientModule,
        linear_solve=torchopt.linear_solve.solve_cg(maxiter=spec["cg_steps"], rtol=0.0, atol=0.0),
    ):
        def __init__(self, meta_net):
            super().__init__()
            self.meta_net = meta_net
            self.net = torchopt.module_clone(meta_net, by="deepcopy", detach_buffers=True)
            for p, start in zip(self.net.parameters(), self.meta_net.parameters()):
                p.data.copy_(start.data)
                p.detach_().requires_grad_()

        def forward(self, x):
            return self.net(x)

        def objective(self, x, y):
            distance = sum(
                (p - start).square().sum() for p, start in zip(self.net.parameters(), self.meta_net.parameters())
            )
            return F.cross_entropy(self(x), y) + strength / 2 * distance

        def solve(self, x, y):
            inner = torch.optim.SGD(self.net.parameters(), lr=rate)
            with torch.enable_grad():
                for _ in range(spec["inner_steps"]):
                    loss = self.objective(x, y)
                    inner.zero_grad()
                    loss.backward(inputs=tuple(self.net.parameters()))
                    inner.step()
            return self

    def meta_step(net: Textbook, x, y, x_query, y_query):
        learner = Learner(net)
        learner.solve(x, y)
        return F.cross_entropy(learner(x_query), y_query)

    return _a_task_at_a_time(spec, meta_step)


def _images_and_labels(spec: dict):
    return images_and_labels(EpisodeLoader(Path(spec["path"]), 5, 1, 15, 1, memory="device"))


def easyfsl_episodes(spec: dict) -> Work:
    from easyfsl.samplers import TaskSampler
    from torch.utils.data import DataLoader, TensorDataset

    images, labels = _images_and_labels(spec)

    class Labelled(TensorDataset):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return image, int(label)

        def get_labels(self):
            return labels.tolist()

    data = Labelled(images, labels)
    sampler = TaskSampler(data, n_way=5, n_shot=1, n_query=15, n_tasks=10**6)
    drawn = iter(DataLoader(data, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn))
    return lambda: [next(drawn) for _ in range(spec["tasks"])], {"episodes": spec["tasks"]}


def learn2learn_episodes(spec: dict) -> Work:
    from learn2learn.data import MetaDataset, TaskDataset
    from learn2learn.data.transforms import ConsecutiveLabels, KShots, LoadData, NWays, RemapLabels
    from torch.utils.data import TensorDataset

    data = MetaDataset(TensorDataset(*_images_and_labels(spec)))
    how = [NWays(data, 5), KShots(data, 16), LoadData(data), RemapLabels(data), ConsecutiveLabels(data)]
    tasks = TaskDataset(data, how, num_tasks=-1)
    return lambda: [tasks.sample() for _ in range(spec["tasks"])], {"episodes": spec["tasks"]}


def torchmeta_episodes(spec: dict) -> Work:
    from torchmeta.transforms import Categorical, ClassSplitter
    from torchmeta.utils.data import BatchMetaDataLoader, ClassDataset, CombinationMetaDataset
    from torchmeta.utils.data.task import Dataset as ClassImages

    images, labels = _images_and_labels(spec)
    parts = [images[labels == c] for c in range(int(labels.max()) + 1)]

    class OneClass(ClassImages):
        def __len__(self):
            return len(parts[self.index])

        def __getitem__(self, i):
            return parts[self.index][i], self.target_transform(self.index) if self.target_transform else self.index

    class Characters(ClassDataset):
        num_classes = len(parts)

        def __init__(self):
            super().__init__(meta_train=True, meta_split="train")

        def __getitem__(self, index):
            return OneClass(index, target_transform=self.get_target_transform(index))

    tasks = CombinationMetaDataset(
        Characters(), 5, target_transform=Categorical(5),
        dataset_transform=ClassSplitter(num_train_per_class=1, num_test_per_class=15),
    )  # fmt: skip
    drawn = iter(BatchMetaDataLoader(tasks, batch_size=spec["tasks"], num_workers=0))
    return lambda: next(drawn), {"episodes": spec["tasks"]}
