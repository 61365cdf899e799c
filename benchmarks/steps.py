"""What a training step of each script takes, all measured in turns on one idle machine: the time axis of report.py.

A step is all of it: drawing the episodes, augmentation, meta-gradient, clipping and the optimiser's step, with a
script's settings for the data set. Scripts are processes of their own that take turns, step by step, so that a machine
that slows down slows them alike. Where a script begins training on images of half the side, those steps are measured
too.

    python -m benchmarks.steps --dataset omniglot --out results/benchmarks
    python -m benchmarks.steps --dataset omniglot --alike --out results/benchmarks

The second line is of the settings of benchmarks/alike.py. Nothing else should run on the machine meanwhile. The table
also says how many steps each script makes in --minutes, which is what to train it with.
"""

import dataclasses
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks import SCRIPTS, OnData, markdown, report, say_if_busy, settings, start, training
from benchmarks.alike import options_of
from benchmarks.problems import Work
from benchmarks.trainings import PEER, of_learn2learn, settings_of_learn2learn
from benchmarks.worker import Worker, side_by_side
from common import meters
from common.shards import UsageError


@dataclass
class Options(OnData):
    algorithms: tuple[str, ...] = SCRIPTS
    shots: tuple[int, ...] = (1, 5)
    alike: bool = False
    """with one network and the same tasks for all, as benchmarks/alike.py trains them; 1 shot"""
    minutes: float = 20.0
    """of a training: the table has the steps that it makes"""
    turns: int = 20
    """steps of each script that count, with each number of shots"""
    warmup: int = 10
    """steps before those, in which memory is faulted in"""
    device: str = "cpu"
    images: Literal["device", "mapped"] = "device"
    """where the pictures are: mapped, so that processes share them, where memory is too small for a copy in each"""

    def __post_init__(self):
        if self.turns < 2:
            raise UsageError(f"--turns {self.turns}: expected 2 or more, as times have quartiles")
        if self.alike:
            self.shots = (1,)


def whole_step(name: str, dataset: str, progress: float, options: dict) -> Work:
    """A training step that is over when the device is done with it."""
    if name == PEER:
        peer = of_learn2learn(dataset, **options)
        step, device = peer.step, peer.device
    else:
        step, device = training(name, dataset, progress, **options)

    def finished():
        step()
        meters.clock(device)

    return finished, {}


def measure(shots: int, options: Options) -> list[dict]:
    """A row a script: milliseconds of a step, median and quartiles, `half_ms` on images of half the side or None, and
    all its options, by which report.py finds the row of a run."""
    pieces, configs = {}, {}
    for name in options.algorithms:
        given = {"shots": shots, "data_dir": options.data_dir, "device": options.device, "images": options.images}
        given |= options_of(name, options.dataset) if options.alike else {}
        configs[name] = (
            settings_of_learn2learn(options.dataset, **given)
            if name == PEER
            else settings(name, options.dataset, **given)[1]
        )
        pieces[name, 1.0] = partial(whole_step, name, options.dataset, 1.0, given)
        if configs[name].half_size:
            pieces[name, 0.0] = partial(whole_step, name, options.dataset, 0.0, given)
    workers = side_by_side(pieces, options.turns, options.warmup)
    rows = []
    for name, config in configs.items():
        ms = quartiles(workers[name, 1.0])
        half = quartiles(workers[name, 0.0]) if config.half_size else (None, None, None)
        kept = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}
        kept["data_dir"] = ""  # of the machine, and not of the step
        rows.append({
            "algorithm": name, "dataset": options.dataset, "shots": shots, "alike": options.alike,
            "ms": ms[1], "ms_low": ms[0], "ms_high": ms[2], "half_ms": half[1], "options": kept,
        })  # fmt: skip
    return rows


def quartiles(worker: Worker) -> tuple[float, float, float]:
    """Of a worker's turns, in milliseconds. Raises SystemExit where it failed."""
    if worker.error:
        raise SystemExit(f"a step failed: {worker.error}")
    return tuple(1e3 * seconds for seconds in statistics.quantiles(worker.seconds, n=4))


def steps_in(minutes: float, row: dict) -> int:
    """The steps that a training of so many minutes makes, on small images first where it has them."""
    half = row["options"]["half_size"]
    mean = row["ms"] if row["half_ms"] is None else half * row["half_ms"] + (1 - half) * row["ms"]
    return int(60e3 * minutes / mean)


def as_table(rows: list[dict], minutes: float) -> str:
    shown = []
    for row in rows:
        maml = [other["ms"] for other in rows if (other["algorithm"], other["shots"]) == ("maml", row["shots"])]
        times = f"{maml[0] / row['ms']:.2f}" if maml else ""
        half = "" if row["half_ms"] is None else f"{row['half_ms']:.1f}"
        ms = f"{row['ms']:.1f} ({row['ms_low']:.1f} to {row['ms_high']:.1f})"
        shown.append([row["algorithm"], row["shots"], ms, half, times, f"{steps_in(minutes, row):,}"])
    heads = ["script", "shots", "ms a step (quartiles)", "on images of half the side", "MAML's / this"]
    return markdown([*heads, f"steps in {minutes:g} minutes"], shown)


def main(options: Options) -> None:
    say_if_busy()
    rows = [row for shots in options.shots for row in measure(shots, options)]
    kind = "-alike" if options.alike else ""
    content = {"turns": options.turns, "warmup": options.warmup, "rows": rows}
    report(options.out, f"steps-{options.dataset}{kind}", content, as_table(rows, options.minutes), options.device)


if __name__ == "__main__":
    start(main, Options)
