"""Where a training step's time goes: the operations that cost each script most, by torch.profiler.

A step here is all of it: drawing the episodes, augmentation, meta-gradient, clipping and the optimiser's step, with a
script's settings for the data set. Time is an operation's own, without what it calls; on a GPU that of its kernels.

    python -m benchmarks.costs --dataset omniglot --out results/benchmarks
"""

import itertools
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks import SCRIPTS, OnData, markdown, report, seconds_of, start, training


@dataclass
class Options(OnData):
    algorithms: tuple[str, ...] = SCRIPTS
    precisions: tuple[str, ...] = ("",)
    """of the backbone, each measured: float32, bfloat16, or nothing for a script's default"""
    operations: int = 3
    """shown of each script"""
    warmup: int = 10
    steps: int = 10
    """profiled"""
    device: str = "auto"


def costs(name: str, precision: str, options: Options) -> tuple[dict, torch.device]:
    """{"algorithm", "ms": of a step, "operations": [[name, calls a step, share of the time], ...]}, on a GPU also
    "busy", the share of a step in which it works, which the operations' shares are of; and the device."""
    given = {"precision": precision} if precision else {}
    step, device = training(name, options.dataset, data_dir=options.data_dir, device=options.device, **given)

    def steps():
        for _ in range(options.steps):
            step()

    for _ in range(options.warmup):
        step()
    seconds = seconds_of(steps, device)
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiled:
        seconds_of(steps, device)
    operations = [event for event in profiled.key_averages() if event.device_type == DeviceType.CPU]
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"  # microseconds
    operations.sort(key=lambda event: -getattr(event, own))
    total = sum(getattr(event, own) for event in operations)
    largest = [
        [event.key.removeprefix("aten::"), event.count / options.steps, getattr(event, own) / total]
        for event in operations[: options.operations]
    ]
    row = {"algorithm": f"{name}, {precision}" if precision else name}
    row |= {"ms": 1e3 * seconds / options.steps, "operations": largest}
    return row | ({"busy": 1e-6 * total / seconds} if on_gpu else {}), device


def as_table(rows: list[dict], operations: int) -> str:
    shown = []
    for row in rows:
        busy = f", GPU at work {100 * row['busy']:.0f} %" if "busy" in row else ""
        cells = [f"{key}, {calls:.0f} calls: {100 * share:.0f} %" for key, calls, share in row["operations"]]
        shown.append([row["algorithm"], f"{row['ms']:.0f}{busy}", *cells])
    return markdown(["script", "ms a step", *(f"cost {i + 1}" for i in range(operations))], shown)


def main(options: Options) -> None:
    rows = []
    for name, precision in tqdm(list(itertools.product(options.algorithms, options.precisions)), leave=False):
        row, device = costs(name, precision, options)
        rows.append(row)
    content = {"dataset": options.dataset, "rows": rows}
    report(options.out, f"costs-{options.dataset}", content, as_table(rows, options.operations), str(device))


if __name__ == "__main__":
    start(main, Options)
