"""Several processes, started by torchrun: each has its share of a meta-step's batches and of the test's episodes."""

import importlib
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start(device: torch.device) -> tuple[int, int]:
    """Join the other processes, if there are any. Returns this one's rank and the number of all."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not dist.is_initialized():
        # An optimiser imports this too, and after the group is made its functions' defaults would keep it, and its
        # threads, beyond destroy_process_group: these now and then abort a process that ends.
        importlib.import_module("torch.distributed.nn.functional")
        # The test runs on all ranks, but a rank may wait for another's validation: nothing here takes an hour.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=1))
    return rank, world


def say(note: str) -> None:
    """A line on standard error, once for all processes."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"note: {note}", file=sys.stderr)


def wait() -> None:
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def gathered(mine) -> list:
    """What every process has, in the order of their ranks."""
    if not dist.is_initialized():
        return [mine]
    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    return everyones


def of_the_first(number: float) -> float:
    """Rank 0's number, on all."""
    if not dist.is_initialized():
        return number
    shared = torch.tensor(number, dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)


class MeanOverBatches:
    """The mean over all batches of a meta-step, on all processes, of gradients and of buffers (running averages).

    `add` after each of this process's batches, whose gradients add up in .grad, and `over_processes` at the end. Every
    batch starts from the same buffers: two processes with half the tasks each do what one with two batches does.
    """

    def __init__(self, model: nn.Module, batches: int):
        self.model, self.batches = model, batches
        self.buffers = [b for b in model.buffers() if b.is_floating_point()] if batches > 1 else []  # not counts
        self.before = [buffer.clone() for buffer in self.buffers]
        self.sums: list[Tensor] = [torch.zeros_like(buffer) for buffer in self.buffers]

    def add(self) -> None:
        for buffer, before, total in zip(self.buffers, self.before, self.sums):
            total += buffer
            buffer.copy_(before)

    def over_processes(self) -> None:
        if self.batches == 1:
            return
        for buffer, total in zip(self.buffers, self.sums):
            buffer.copy_(total)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        for tensor in [*gradients, *self.buffers]:
            if dist.is_initialized():
                dist.all_reduce(tensor)
            tensor /= self.batches
