"""The command of a script: its words become a Config, and what goes wrong becomes one line."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import tyro
from tqdm import tqdm

from common import lock, meters, ranks
from common.augment import VIEWED
from common.folder import DiskError
from common.options import Options, check, flag
from common.shards import ROOT, UsageError, channels


def command(main: Callable[[], None]) -> None:
    """Run a script's main. A person's mistake is one line on standard error and exit status 2; what the machine can't
    do, as when the disk is full, is one line too and exit status 1: the last checkpoint stays whole."""
    try:
        main()
    except UsageError as error:
        _close_bars()
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # who read what is printed, as `head` does, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (DiskError, MemoryError, RuntimeError) as error:
        lacks = isinstance(error, DiskError | MemoryError | torch.cuda.OutOfMemoryError)
        if not lacks and "can't allocate memory" not in str(error):  # as torch says on a CPU
            raise
        _close_bars()
        said = " ".join(str(error).splitlines()) or "no memory left"
        print(f"error: {said}{_how_to_go_on()}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        _close_bars()
        sys.exit(f"interrupted{_how_to_go_on()}")
    finally:
        lock.release()
        if dist.is_initialized():
            dist.destroy_process_group()


def _close_bars() -> None:
    """So that a progress bar isn't drawn once more behind the message."""
    for bar in list(tqdm._instances):
        bar.close()


def _how_to_go_on() -> str:
    """With a run that this process trains; nothing where it trains none."""
    training = [folder for folder in lock.held() if (folder / "checkpoint.pt").exists()]
    return "".join(f"; --resume {shlex.quote(str(folder))} goes on from its last checkpoint" for folder in training)


def parse(config_type: type, settings: dict[str, dict]):
    """Read the command line into `config_type`, whose defaults for a data set are `settings[dataset]`, or those of
    "other"; with --resume and --evaluate they are the run's own. Device and precision are settled: never "auto".

    Raises UsageError where an option disagrees with the run's, or a value is out of its bounds.
    """
    argv = sys.argv[1:]
    first = {name: _value_of(argv, name) for name in ("dataset", "resume", "evaluate")}
    origin = os.path.expanduser(first["resume"] or first["evaluate"] or "")
    if origin:
        default = _saved_config(config_type, Path(origin), at_test=not first["resume"])
    else:
        dataset = first["dataset"] or Options.dataset
        data_dir = Path(os.path.expanduser(_value_of(argv, "data-dir") or Options.data_dir))
        default = config_type(**{"dataset": dataset, **_settings_of(settings, dataset, data_dir)})
        given = _options_of(argv)
        if "--minutes" in given and "--steps" not in given:
            default = dataclasses.replace(default, steps=None)
    config = _command_line(config_type, default, argv)
    if origin:
        may_differ = "at_resume" if config.resume else "at_test"
        unused = VIEWED if getattr(config, "views", 1) == 1 else ()  # by a test, which sees them in views alone
        for field in dataclasses.fields(config):
            value, saved, name = getattr(config, field.name), getattr(default, field.name), flag(field.name)
            if value != saved and (not field.metadata.get(may_differ) or field.name in unused):
                raise UsageError(
                    f"{name} {value}: {origin} was started with {saved}; leave {name} out, or start another run"
                )
    check(config)
    device = meters.settled_device(config.device)
    settled = device.type if config.device in ("auto", "cuda") else config.device
    precision = meters.settled_precision(config.precision, device)
    config = dataclasses.replace(config, device=settled, precision=precision)
    if config.print_config:
        _print(config, settings if not origin else {}, argv, origin)
        sys.exit(0)
    if precision == "bfloat16" and device.type == "cpu" and not meters.has_bfloat16():
        ranks.say("this processor imitates bfloat16, which takes longer than --precision float32")
    return config


def _settings_of(settings: dict[str, dict], dataset: str, data_dir: Path) -> dict:
    """The settings for a data set; a person's own one in grey holds characters or drawings, which aren't mirrored."""
    of_set = settings.get(dataset, settings.get("other", {}))
    if dataset not in settings and channels(data_dir / dataset) == 1:
        of_set = {name: value for name, value in of_set.items() if name not in ("flip", "views")}
    return of_set


def _with_home(config):
    """The Config with ~ expanded in its paths: the shell doesn't do it in --out=~/run."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    paths = {name: Path(os.path.expanduser(value)) for name, value in values.items() if isinstance(value, Path)}
    return dataclasses.replace(config, **paths)


def _options_of(argv: list[str]) -> set[str]:
    """The options that a command line names, each in the form that --help shows first."""
    words = [word.split("=")[0].replace("_", "-") for word in argv if word.startswith("--")]
    return {word.replace("--no-", "--", 1) for word in words}


def _value_of(argv: list[str], name: str) -> str | None:
    """The last value of --name on a command line, read before the defaults of everything else are known."""
    for word, following in reversed(list(zip(argv, [*argv[1:], None]))):
        option, given, value = word.partition("=")
        if option.replace("_", "-") == f"--{name}":
            return value if given else following
    return None


def _command_line(config_type: type, default, argv: list[str]):
    """`default` with what the command line changes."""
    about = (sys.modules[config_type.__module__].__doc__ or "").partition("\n\n")[0]
    description = f"{about}\n\nThe defaults are those for --dataset {default.dataset}; another data set has others."
    return read(config_type, description, default=default, args=argv)


def read(options: type, description: str, **how):
    """The options that a command line has, by tyro.cli. Raises UsageError, of one line, for words that it refuses."""
    refused = io.StringIO()
    try:
        with contextlib.redirect_stderr(refused):
            return _with_home(tyro.cli(options, description=description, **how))
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        words = re.sub(r"[─-╿]|-{3,}|\x1b\[[0-9;]*m", " ", refused.getvalue())
        raise UsageError(" ".join(words.split())) from None


def _saved_config(config_type: type, folder: Path, at_test: bool):
    """The Config of a run folder, with the precision that it had; a test's device is settled anew."""
    try:
        about = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        about = None
    return config_of(config_type, about, folder, at_test)


def config_of(config_type: type, about: dict | None, folder: Path, at_test: bool):
    """The Config that a run's config.json, `about`, tells. Raises UsageError where it is none, or another script's."""
    try:
        saved = dict(about["options"])
        if saved.get("evaluate"):
            raise UsageError(f"{folder} is the folder of a test; name that of its training, {saved['evaluate']}")
        saved |= {"data_dir": ROOT / saved["data_dir"], "out": None}
        if saved.get("precision") == "auto":  # of a run before these were saved as settled
            saved["precision"] = about.get("precision", "auto")
        if at_test:
            saved["device"] = "auto"
    except (AttributeError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder} is no run folder (it has no whole config.json); runs are under runs/") from None
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    if unknown := set(saved) - set(fields) - {"algorithm"}:
        raise UsageError(
            f"{folder} is a run of {saved.get('algorithm')}, with options {sorted(unknown)} that aren't here"
        )
    for name, value in saved.items():
        default = fields[name].default if name in fields else None
        if default is not None and isinstance(default, int | float) != isinstance(value, int | float):
            raise UsageError(f"{folder} is no run folder ({name} is {value!r} in its config.json)")
    return config_type(**{name: value for name, value in saved.items() if name in fields})


def _print(config: Options, settings: dict[str, dict], argv: list[str], origin: str | None) -> None:
    """A line an option: its value, and where that comes from."""
    given = _options_of(argv)
    of_set = _settings_of(settings, config.dataset, config.data_dir)
    for field in dataclasses.fields(config):
        if field.name == "print_config":
            continue
        source = "default" if not origin else f"of {origin}"
        if field.name in of_set:
            source = f"SETTINGS for {config.dataset}"
        if field.name == "steps" and config.steps is None and config.minutes is not None:
            source = "--minutes instead"
        if flag(field.name) in given:
            source = "command line"
        elif field.default == "auto" and field.name in ("device", "precision") and not origin:
            source = "auto, on this machine"
        print(f"{flag(field.name)} {getattr(config, field.name)}".ljust(40), f"({source})")
