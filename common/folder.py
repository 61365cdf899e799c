"""A run folder: made, described, and read again; nobody else writes into it meanwhile."""

import contextlib
import dataclasses
import json
import os
import pickle
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common import lock, log, meters, ranks
from common.options import Options
from common.shards import ROOT, UsageError, describe


class DiskError(OSError):
    """A file of a run folder can't be written."""


def create(config: Options, script: Path) -> Path:
    """The folder of a run that starts, or of a test, made and locked.

    Raises UsageError where --out can't be made or holds a run.
    """
    task = f"{config.dataset}-{config.ways}w{config.shots}s-s{config.seed}"
    default = config.evaluate / f"test-{task}" if config.evaluate else ROOT / "runs" / f"{script.stem}-{task}"
    folder = made(config.out) if config.out else _new_folder(default)
    lock.hold(folder)
    if (folder / "config.json").exists():
        resume = f"--resume {shlex.quote(str(folder))}"
        raise UsageError(f"--out {folder} holds a run already; go on with {resume}, or name another folder")
    return folder


def write_new(folder: Path, files: dict[str, str | bytes]) -> None:
    """What a run begins with: all of these files, or none, so that half of them aren't taken for a run."""
    try:
        for name, content in files.items():
            write_whole(folder / name, content)
    except DiskError:
        for name in files:
            (folder / name).unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):  # something else is in it
            folder.rmdir()
        raise


def description(config: Options, script: Path, processes: int, device: torch.device) -> str:
    """The config.json of a run."""
    about = {
        "options": {"algorithm": script.stem, **_told(config)},
        "command": [script.name, *sys.argv[1:]],
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__},
        "commit": meters.commit(script.resolve().parent),
        "processes": processes,
        "precision": config.precision,
        "hardware": meters.hardware(device),
        "data": describe(config.data_dir / config.dataset / ("test.h5" if config.evaluate else "train.h5")),
    }
    return json.dumps(about, indent=1)


def tell_changes(folder: Path, config: Options) -> None:
    """Let config.json say what a resumed run has otherwise than it began, such as --data-dir or --test-episodes."""
    about = json.loads((folder / "config.json").read_text())
    told = _told(config)
    names = [field.name for field in dataclasses.fields(config) if field.metadata.get("at_resume")]
    about["options"] |= {name: told[name] for name in names if name in about["options"] and name != "resume"}
    write_whole(folder / "config.json", json.dumps(about, indent=1))


def _told(config: Options) -> dict:
    """The options as config.json has them."""
    options = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}
    del options["print_config"]
    for name in ("data_dir", "evaluate"):
        if given := getattr(config, name):  # whole, or relative to the project, so that a run folder may move with it
            path = given.absolute()
            options[name] = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
    return options


def load(
    source: Path, config: Options, script: Path, processes: int, model: nn.Module, optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> tuple[dict, log.Log]:  # fmt: skip
    """Give the model (and with --resume the optimiser) what a run folder holds; return its checkpoint, and its log up
    to there. Raises UsageError for one that isn't whole, or is of another script, of other processes or shapes."""
    resumed = config.resume is not None
    try:
        about = json.loads((source / "config.json").read_text())
        trained_by = about["options"].get("algorithm")
        checkpoint = torch.load(source / "checkpoint.pt", map_location=device, weights_only=True)
        if resumed and "model" not in checkpoint:
            raise UsageError(
                f"--resume {source}: a released run, which has nothing but its best weights; test them by --evaluate"
            )
        weights = checkpoint["model"] if resumed else checkpoint["best_state"]
        its_log = log.Log()
        try:
            its_log = log.read(source / "log.csv", checkpoint["step"])
        except ValueError as error:
            ranks.say(f"{source}/log.csv is damaged ({error}); its rows are lost")
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise UsageError(f"{source} is no whole run folder ({reason}); start the run again") from None
    if resumed and trained_by != script.stem:
        raise UsageError(
            f"--resume {source}: a run of {trained_by}.py, expected one of {script.name}; go on with the script that "
            "started it"
        )
    if resumed and not config.batches and about.get("processes") != processes:
        raise UsageError(
            f"--resume {source}: {processes} processes, expected the {about.get('processes')} it was started with, as "
            "a meta-step has a batch for each; use as many"
        )
    if resumed and (began := source / "script.py").exists() and began.read_bytes() != script.read_bytes():
        ranks.say(
            f"{script.name} isn't what it was when the run began, which {began} still is; the run goes on with it"
        )
    shapes, others = ({k: v.shape for k, v in state.items()} for state in (model.state_dict(), weights))
    if shapes != others:
        wrong = min(k for k in shapes | others if shapes.get(k) != others.get(k))
        if trained_by != script.stem:
            raise UsageError(f"{source}: a run of {trained_by}.py, whose {wrong} differs")
        if shapes.keys() != others.keys():
            wrong = min(shapes.keys() ^ others.keys())
            raise UsageError(
                f"{source}: a run of another version of {script.name}, one of which has no {wrong}; use the version "
                "that its config.json names"
            )
        raise UsageError(
            f"{source}: its {wrong} has another shape; expected images of as many channels and pixels, and as many "
            "--ways, as it was trained on"
        )
    if not resumed and about.get("precision", config.precision) != config.precision:
        ranks.say(f"{source} was trained in {about['precision']}, this test is in {config.precision}")
    model.load_state_dict(weights)
    if resumed:
        optimizer.load_state_dict(checkpoint["optimizer"])
    return checkpoint, its_log


def data_of(about: dict, data_dir: Path) -> dict:
    """What `describe` says of the images that a run was trained on: by `about`, its config.json, or where that is
    older, by its data set, in `data_dir` or where it was. Raises UsageError where that isn't built."""
    if about.get("data"):
        return about["data"]
    name, former = about["options"]["dataset"], ROOT / about["options"]["data_dir"]
    there = [folder for folder in (data_dir, former) if (folder / name / "train.h5").exists()]
    return describe((there or [data_dir])[0] / name / "train.h5")


def trained_shape(source: Path, config: Options) -> tuple[int, int, int] | None:
    """(C, H, W) of the images that a run was trained on; None where nothing tells it."""
    about = json.loads((source / "config.json").read_text())  # which the command line has read
    try:
        channels, height, width = data_of(about, config.data_dir)["shape"]
    except UsageError:
        return None
    return channels, config.image_size or height, config.image_size or width


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside the file and rename, so that it is never half there. Raises DiskError, and leaves no other file."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # which a disk that became read-only raises here too
            partial.unlink(missing_ok=True)
        raise DiskError(error.errno, error.strerror, str(path)) from error


def made(wanted: Path) -> Path:
    """The folder that --out names, made if it isn't there. Raises UsageError where it can't be."""
    try:
        if above := [path for path in (wanted, *wanted.parents) if path.is_file()]:
            raise UsageError(f"--out {wanted}: {above[0]} is a file, expected a folder or a new name")
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {wanted}: {error.strerror}; name a folder that can be made") from None
    return wanted


def _new_folder(default: Path) -> Path:
    """The default folder with the first free number behind it: made, and nobody else's."""
    try:
        for i in range(1, 10_000):
            folder = default.with_name(f"{default.name}-{i}") if i > 1 else default
            with contextlib.suppress(FileExistsError):  # of a run that starts at this moment, too
                folder.mkdir(parents=True)
                return folder
    except OSError as error:
        raise UsageError(f"--out {default}: {error.strerror}; name a folder that can be made") from None
    raise UsageError(f"--out: {default} and 9,999 like it exist; name another folder")
