"""This project beside its peers, the machine's limit and itself: commands, and what they share.

They run from the project's root, as `python -m benchmarks.NAME`; --help lists a command's options.
"""

import dataclasses
import importlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor, nn

from common import meters
from common.command import command, read
from common.episodes import EpisodeLoader
from common.options import Options
from common.ranks import MeanOverBatches
from common.run import Run, outer_optimizer
from common.shards import ROOT, UsageError

SCRIPTS = ("convex_imaml", "convex_maml", "maml", "imaml", "reptile", "cavia")


@dataclass
class OnData:
    """Options of all commands that measure on a data set."""

    dataset: str = "omniglot"
    data_dir: Path = ROOT / "data"
    out: Path | None = None
    """folder for the table as .md and .json, and the picture where there is one, named after command and data set"""

    @property
    def train_file(self) -> Path:
        return self.data_dir / self.dataset / "train.h5"


def start(main: Callable, options: type) -> None:
    """Run a command's main with what the command line says; a UsageError is one line and exit status 2. --help begins
    with the first paragraph of the module's docstring."""
    about = sys.modules[options.__module__].__doc__.partition("\n\n")[0]
    command(lambda: main(read(options, about)))


def settings(name: str, dataset: str, **options) -> tuple[ModuleType, Options]:
    """A script, and its Config with its settings for the data set, but for `options`."""
    script = importlib.import_module(name)
    of_set = script.SETTINGS.get(dataset, script.SETTINGS["other"])
    return script, script.Config(**{**of_set, "dataset": dataset, **options})


def trained(run: Path, *scripts: str) -> tuple[Options, dict[str, Tensor]]:
    """The Config and best weights of a run folder of one of these scripts, or of a released one, for this machine's
    device, whatever the run's was. Raises UsageError."""
    try:
        saved = json.loads((run / "config.json").read_text())["options"]
        weights = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)["best_state"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"--run {run} is no whole run folder ({type(error).__name__}: {str(error)[:80]})") from None
    if saved.get("algorithm") not in scripts:
        raise UsageError(f"--run {run}: expected a run of {' or '.join(f'{name}.py' for name in scripts)}")
    script = importlib.import_module(saved["algorithm"])
    names = {field.name for field in dataclasses.fields(script.Config)}
    options = {option: value for option, value in saved.items() if option in names} | {"device": "auto"}
    return script.Config(**options), weights


def training(
    name: str, dataset: str, progress: float = 1.0, **options
) -> tuple[Callable[[], dict[str, Tensor]], torch.device]:
    """A whole training step of a script with its settings for the data set, but for `options`, and the device.

    It draws episodes, augments their images, adds the meta-gradient, clips it, moves the weights, and returns what
    `meta_step` did of the last batch. progress: how far training is; where it is less than a script's --half-size,
    images have half their side.
    """
    script, config = settings(name, dataset, **options)
    run = Run(config, script.__file__)
    train, _, _ = run.loaders()
    model = script.Model(train.image_shape, config, run.device)
    optimizer = outer_optimizer(model, config)
    run.progress = progress

    def step():
        batches, _ = one_step(run, script, model, optimizer, train)
        run.step += 1
        return batches[-1]

    return step, run.device


def one_step(
    run: Run, script: ModuleType, model: nn.Module, optimizer: torch.optim.Optimizer, train: EpisodeLoader
) -> tuple[list[dict[str, Tensor]], Tensor]:
    """The meta-step in `main` of every script, with the optimiser's rate as it is; what `meta_step` returned of each
    batch, and the meta-gradient's norm, for the log."""
    optimizer.zero_grad()
    mean = MeanOverBatches(model, run.batches)
    batches = []
    for episode in run.draw(train):
        batches.append(run.launch(script.meta_step, model, episode, run.config))
        mean.add()
    mean.over_processes()
    norm = nn.utils.clip_grad_norm_(model.parameters(), run.config.clip)
    optimizer.step()
    return batches, norm


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that it takes, with all that it queues on the device."""
    before = meters.clock(device)
    work()
    return meters.clock(device) - before


def say_if_busy() -> None:
    """A line on standard error where something else runs on the machine, which times would show."""
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        print(f"note: the machine isn't idle (load {os.getloadavg()[0]:.1f}): times may be too long", file=sys.stderr)


def own_process() -> ProcessPoolExecutor:
    """Runs functions in one new process, a Python with nothing of this one's but the environment."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def in_own_process(function: Callable, *given, **environment: str) -> object:
    """function(*given), computed by a new process, in whose environment these variables are set too."""
    with mock.patch.dict(os.environ, environment), own_process() as process:
        return process.submit(function, *given).result()


def origin(device: str = "cpu") -> dict[str, object]:
    """What a figure depends on: the commit and the machine."""
    return {"commit": meters.commit(ROOT), "torch": torch.__version__, **meters.hardware(torch.device(device))}


def described(about: dict[str, object]) -> str:
    """What `origin` says, as the first line of a table's file."""
    return ", ".join(f"{key}: {value}" for key, value in about.items())


def markdown(heads: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table, a row a line."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)


def save(out: Path, name: str, content: dict, table: str, device: str = "cpu") -> None:
    """Write OUT/NAME.json, of `content` and its origin, and OUT/NAME.md, the table below a line on that."""
    out.mkdir(parents=True, exist_ok=True)
    about = origin(device)
    (out / f"{name}.json").write_text(json.dumps(about | content, indent=1))
    (out / f"{name}.md").write_text(f"{described(about)}\n\n{table.rstrip()}\n")


def report(out: Path | None, name: str, content: dict, table: str, device: str = "cpu") -> None:
    """Print the table, and save it where there is a folder for it."""
    print(table)
    if out:
        save(out, name, content, table, device)
