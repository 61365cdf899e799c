"""Where a training step's time goes: the operations that cost each script most, by torch.profiler.

A step here is all of it: drawing the episodes, augmentation, meta-gradient, clipping and the optimiser's step, with a
script's settings for the data set. Time is an operation's own, without what it calls; on a GPU that of its kernels.

    python benchmarks/costs.py --dataset omniglot --out results/benchmarks
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import SCRIPTS, save, training  # noqa: E402
from common import meters  # noqa: E402
from common.command import command  # noqa: E402


@dataclass
class Options:
    dataset: str = "omniglot"
    data_dir: Path = ROOT / "data"
    algorithms: tuple[str, ...] = SCRIPTS
    precisions: tuple[str, ...] = ("",)
    """of the backbone, each measured: float32, bfloat16, or nothing for a script's default"""
    operations: int = 3
    """shown of each script"""
    warmup: int = 10
    steps: int = 10
    """profiled"""
    device: str = "auto"
    out: Path | None = None
    """folder for costs-DATASET.md and .json"""


def costs(name: str, precision: str, options: Options) -> tuple[dict, torch.device]:
    """{"algorithm", "ms": of a step, "operations": [[name, calls a step, share of the time], ...]}, on a GPU also
    "busy", the share of a step in which it works, which the operations' shares are of; and the device."""
    given = {"precision": precision} if precision else {}
    step, device = training(name, options.dataset, data_dir=options.data_dir, device=options.device, **given)
    on_device = device.type == "cuda"
    for _ in range(options.warmup):
        step()
    start = meters.clock(device)
    for _ in range(options.steps):
        step()
    seconds = meters.clock(device) - start
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_device
    with profile(activities=activities) as profiled:
        for _ in range(options.steps):
            step()
        meters.clock(device)
    times = {e.key: (e.self_device_time_total if on_device else e.self_cpu_time_total, e.count)
             for e in profiled.key_averages() if e.device_type == DeviceType.CPU}  # fmt: skip
    total = sum(time for time, _ in times.values())
    largest = sorted(times.items(), key=lambda item: -item[1][0])[: options.operations]
    shown = [[key.removeprefix("aten::"), count / options.steps, time / total] for key, (time, count) in largest]
    row = {"algorithm": f"{name}, {precision}" if precision else name}
    row |= {"ms": 1e3 * seconds / options.steps, "operations": shown}
    return row | ({"busy": 1e-6 * total / seconds} if on_device else {}), device


def main() -> None:
    options = tyro.cli(Options)
    heads = ["script", "ms a step", *(f"cost {i + 1}" for i in range(options.operations))]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    print(*lines, sep="\n")
    rows = []
    for name, precision in itertools.product(options.algorithms, options.precisions):
        row, device = costs(name, precision, options)
        cells = [f"{key}, {calls:.0f} calls: {100 * share:.0f} %" for key, calls, share in row["operations"]]
        ms = f"{row['ms']:.0f}" + (f", GPU at work {100 * row['busy']:.0f} %" if "busy" in row else "")
        rows.append(row)
        lines.append("| " + " | ".join([row["algorithm"], ms, *cells]) + " |")
        print(lines[-1])
    if options.out:
        content = {"dataset": options.dataset, "rows": rows}
        save(options.out, f"costs-{options.dataset}", content, "\n".join(lines), str(device))


if __name__ == "__main__":
    command(main)
