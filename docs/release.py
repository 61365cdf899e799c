"""Copy a finished run into results/, with a small checkpoint: the best weights alone, in half precision.

    python docs/release.py runs/maml-omniglot-5w1s-s0 maml-omniglot      writes results/maml-omniglot

`--evaluate results/NAME` then tests these weights on the episodes that the run was tested on, which the command does
itself once: where half precision changes the accuracy by more than --apart, weights stay in float32. A GPU draws other
episodes. So of a run that was tested on one, the two precisions are compared on a hundred episodes, and the result that
is released is that of a test on the CPU.

A script that was copied and changed goes with its run, as script.py. The project's own six don't: the project has them,
and keeps them fit for its common/, which a script of an older version may no longer be.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script, from anywhere

from common.command import command, read
from common.folder import data_of, write_whole
from common.options import flag
from common.shards import ROOT, UsageError
from reports.methods import ALGORITHMS

FILES = ("config.json", "log.csv", "result.json", "curves.png")  # and script.py, where it isn't one of the project's


@dataclass
class Options:
    run: Annotated[Path, tyro.conf.Positional]
    """A run folder whose training and test are done."""
    name: Annotated[str, tyro.conf.Positional]
    """Of the folder in --into."""
    into: Path = ROOT / "results"
    """The folder that holds what is released."""
    data_dir: Path | None = None
    """The folder that holds the data sets; by default the run's."""
    apart: float = 0.0005
    """By how much the accuracy of the same test may change."""


def small(checkpoint: dict, dtype: torch.dtype) -> bytes:
    """What --evaluate reads of a checkpoint.pt, matrices and filters in `dtype`. Biases, batch norm's statistics and
    single numbers, such as a learned strength, are few, and stay in float32."""
    weights = {
        name: value.to(dtype) if value.is_floating_point() and value.dim() > 1 else value
        for name, value in checkpoint["best_state"].items()
    }
    kept = {"best_state": weights, **{name: checkpoint[name] for name in ("step", "seconds", "best")}}
    content = io.BytesIO()
    torch.save(kept, content)
    return content.getvalue()


def without_paths(about: dict) -> dict:
    """config.json for any machine: in options and command, a path of the machine becomes its last part, and one of the
    data sets the project's own `data`. Paths below the project are relative to it already."""
    options = {name: _portable(value, flag(name)) for name, value in about["options"].items()}
    words = []
    for before, word in zip(["", *about["command"]], about["command"]):
        option, given, value = word.partition("=")
        joined = given and option.startswith("--")
        words.append(f"{option}={_portable(value, option)}" if joined else _portable(word, before))
    return about | {"options": options, "command": words}


def _portable(value, option: str):
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    if not path.is_absolute() and ".." not in path.parts:
        return value
    return "data" if option.replace("_", "-") == "--data-dir" else path.name


def tested_again(folder: Path, data_dir: Path, *more: str) -> dict:
    """The result of a test of a released folder's weights on the CPU, by its own script where it has one."""
    algorithm = json.loads((folder / "config.json").read_text())["options"]["algorithm"]
    with tempfile.TemporaryDirectory() as test:
        script = ROOT / f"{algorithm}.py"
        if (folder / "script.py").exists():
            script = Path(shutil.copy(folder / "script.py", Path(test, script.name)))  # a run is its script's by name
        words = ["--evaluate", folder, "--device", "cpu", "--data-dir", data_dir, "--out", Path(test, "test"), *more]
        done = subprocess.run(
            [sys.executable, script, *words], stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        if done.returncode:
            raise UsageError(
                f"{folder} can't be tested again by {script.name}, which says why above; nothing is released"
            )
        return json.loads(Path(test, "test", "result.json").read_text())


def main() -> None:
    options = read(Options, __doc__.partition("\n\n")[0])
    folder = options.into / options.name
    if lacking := [name for name in (*FILES, "script.py", "checkpoint.pt") if not (options.run / name).exists()]:
        raise UsageError(f"{options.run} has no {', '.join(lacking)}, expected a run that is done; train it to its end")
    if folder.exists():
        raise UsageError(f"{folder} is there already; give another name, or remove it")
    checkpoint = torch.load(options.run / "checkpoint.pt", map_location="cpu", weights_only=True)
    about = json.loads((options.run / "config.json").read_text())
    data_dir = options.data_dir or ROOT / about["options"]["data_dir"]
    result = json.loads((options.run / "result.json").read_text())
    partial = options.into / f".{options.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name in FILES if about["options"]["algorithm"] in ALGORITHMS else (*FILES, "script.py"):
            shutil.copy(options.run / name, partial)
        described = {"data": data_of(about, data_dir)}  # which an older run's config.json doesn't tell
        write_whole(partial / "config.json", json.dumps(without_paths(about) | described, indent=1))
        before, few = result, ()
        if result["device"] != "cpu":
            few = ("--test-episodes", "100")
            write_whole(partial / "checkpoint.pt", small(checkpoint, torch.float32))
            before = tested_again(partial, data_dir, *few)
        for dtype in (torch.float16, torch.float32):
            write_whole(partial / "checkpoint.pt", small(checkpoint, dtype))
            after = tested_again(partial, data_dir, *few)
            if abs(after["test_accuracy"] - before["test_accuracy"]) <= options.apart:
                break
        if few:
            after = tested_again(partial, data_dir)
            write_whole(partial / "result.json", json.dumps(after, indent=1))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    kib = (folder / "checkpoint.pt").stat().st_size / 1024
    print(
        f"{folder}: {kib:.0f} KiB in {str(dtype).removeprefix('torch.')}, test {after['test_accuracy']:.4f}, was "
        f"{result['test_accuracy']:.4f}"
    )


if __name__ == "__main__":
    command(main)
