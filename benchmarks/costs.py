"""Where a training step's time goes: the operations that cost each script most, by torch.profiler.

A step here is all of it: drawing the episodes, augmentation, meta-gradient, clipping and the optimiser's step, with a
script's settings for the data set. Time is an operation's own, without what it calls; on a GPU that of its kernels.

    python -m benchmarks.costs --dataset omniglot --out results/benchmarks
"""

from dataclasses import dataclass

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks import SCRIPTS, OnData, markdown, report, seconds_of, start, training


@dataclass
class Options(OnData):
    algorithms: tuple[str, ...] = SCRIPTS
    operations: int = 3
    """shown of each script"""
    warmup: int = 10
    steps: int = 10
    """profiled"""
    device: str = "cpu"


def costs(name: str, options: Options) -> dict:
    """{"algorithm", "ms": of a step, "operations": [[name, calls a step, share of the time], ...]}, on a GPU also
    "busy", the share of a step in which it works, which the operations' shares are of."""
    step, device = training(name, options.dataset, data_dir=options.data_dir, device=options.device)

    def steps(count: int = options.steps):
        for _ in range(count):
            step()

    steps(options.warmup)
    seconds = seconds_of(steps, device)
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiled:
        seconds_of(steps, device)
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"  # microseconds
    times = [
        (getattr(event, own), event.key.removeprefix("aten::"), event.count / options.steps)
        for event in profiled.key_averages()
        if event.device_type == DeviceType.CPU
    ]
    total = sum(time for time, _, _ in times)
    largest = [[key, calls, time / total] for time, key, calls in sorted(times, reverse=True)[: options.operations]]
    row = {"algorithm": name, "ms": 1e3 * seconds / options.steps, "operations": largest}
    return row | ({"busy": 1e-6 * total / seconds} if on_gpu else {})


def as_table(rows: list[dict], operations: int) -> str:
    shown = []
    for row in rows:
        busy = f", GPU at work {100 * row['busy']:.0f} %" if "busy" in row else ""
        cells = [f"{key}, {calls:.0f} calls: {100 * share:.0f} %" for key, calls, share in row["operations"]]
        shown.append([row["algorithm"], f"{row['ms']:.0f}{busy}", *cells])
    return markdown(["script", "ms a step", *(f"cost {i + 1}" for i in range(operations))], shown)


def main(options: Options) -> None:
    rows = [costs(name, options) for name in tqdm(options.algorithms, leave=False)]
    content = {"dataset": options.dataset, "rows": rows}
    report(options.out, f"costs-{options.dataset}", content, as_table(rows, options.operations), options.device)


if __name__ == "__main__":
    start(main, Options)
