"""A GPU's meta-step as one launch: recorded once for each shape of its episodes, as a CUDA graph, and replayed.

A meta-step is hundreds to thousands of small kernels, which the host launches more slowly than a GPU runs them. What
is recorded can't wait for a number's value, so code that would asks meters.questions first.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.episodes import Episode
from common.shards import UsageError


def as_it_is(meta_step: Callable, model: nn.Module, episode: Episode, config) -> dict[str, Tensor]:
    return meta_step(model, episode, config)


class Captured:
    """A script's meta_step, which is replayed where it was recorded on an episode of the same shapes before."""

    def __init__(self):
        self.recordings = {}

    def __call__(self, meta_step: Callable, model: nn.Module, episode: Episode, config) -> dict[str, Tensor]:
        """As meta_step(model, episode, config): add the meta-gradient to .grad, and return the step's numbers."""
        given = vars(episode)
        shapes = tuple(value.shape for value in given.values())
        if shapes not in self.recordings:
            self.recordings[shapes] = _record(meta_step, model, episode, config)
        replay, static, gradients, told = self.recordings[shapes]
        for name, value in given.items():
            getattr(static, name).copy_(value)
        replay()
        for name, gradient in gradients.items():
            p = model.get_parameter(name)
            p.grad = gradient.clone() if p.grad is None else p.grad + gradient
        # the next replay writes over them
        return {key: value.clone() if isinstance(value, Tensor) else value for key, value in told.items()}


def _record(meta_step: Callable, model: nn.Module, episode: Episode, config) -> tuple:
    """(what replays the step, the episode that it reads, and the gradients and numbers that it writes)."""
    static = dataclasses.replace(episode, **{name: value.clone() for name, value in vars(episode).items()})
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gradients = [p.grad for p in model.parameters()]  # of the meta-step's batches before this one

    def step() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model.zero_grad(set_to_none=True)  # so that the gradients are tensors of the recording
        told = meta_step(model, static, config)
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, told

    replay, (of_parameters, told) = recorded(step)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])  # which trying it out has moved
    for p, gradient in zip(model.parameters(), gradients):
        p.grad = gradient
    return replay, static, of_parameters, told


def recorded(step: Callable) -> tuple[Callable, tuple]:
    """(what runs a step again, and the tensors that it returns, into which every run writes). Raises UsageError for a
    step that asks the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries make what they need at their first calls, which can't be recorded
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        # a loader's thread may copy the next batch to the GPU meanwhile, which no other mode allows
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            results = step()
    except RuntimeError as error:
        raise UsageError(
            f"meta_step can't be recorded as a CUDA graph: {str(error).splitlines()[0]}; it may not ask the host for a "
            "number, as item(), print or boolean indexing do, nor copy from it; --no-capture runs it as it is"
        ) from error
    return graph.replay, results
