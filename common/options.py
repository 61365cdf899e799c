"""Options: what all scripts share, and how the command line, a run folder and a data set's settings make a Config."""

import contextlib
import dataclasses
import io
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from common.augment import VIEWED
from common.conv4 import BLOCKS
from common.shards import NAME, ROOT, UsageError

# What may differ from the run's own options: with --resume, and with --evaluate, what training doesn't depend on.
RESUMED = {"resume", "device", "data_dir", "test_episodes"}
TESTED = set(
    "evaluate dataset data_dir ways shots queries test_episodes out device images image_size precision channels_last "
    "keep_memory test_inner_steps test_inner_batch views tolerance newton_steps".split()
).union(VIEWED)


@dataclass
class Options:
    """What all algorithms share."""

    dataset: str = "glyphs"
    """glyphs (built on first use), omniglot, miniimagenet, or a set of your own; see data_prep/build.py"""
    data_dir: Path = ROOT / "data"
    """folder of the data sets"""
    ways: int = 5
    """N, classes a task"""
    shots: int = 1
    """K, support images a class"""
    queries: int = 15
    """query images a class, in validation and test"""
    tasks: int = 16
    """tasks a meta-step, over all processes"""
    batches: int = 0
    """batches that the tasks of a meta-step are drawn and normalised in; 0: one a process"""
    steps: int | None = None
    """meta-steps of training; alone it makes runs repeatable; with --minutes too, the first to be reached ends it"""
    minutes: float | None = None
    """minutes of training, evaluation left out"""
    seed: int = 0
    device: str = "auto"
    """auto (cuda, mps, cpu: the first there is) or a torch device"""
    image_size: int = 0
    """pixels a side that all images, the test's too, are resized to; 0: as the data has them"""
    half_size: float = 0.0
    """share of training, its first, on images of half the side: a quarter of the cost; validation and test never are"""
    width: int = 64
    """filters a block"""
    first_width: int = 0
    """filters of the first block, where images are largest; 0: as --width"""
    block: str = "pool-norm"
    """norm-pool (convolution, batch norm, ReLU, pool: the usual Conv4) or pool-norm (pool before batch norm)"""
    keep_border: bool = False
    """pool odd sizes up instead of down, so that 28x28 images end as 2x2 and not as 1x1 features"""
    pool_classes: int = 0
    """a training batch's tasks share the images of so many classes, each embedded once; 0: every task draws its own"""
    pool_images: int = 20
    """images a class of that pool"""
    train_ways: int = 0
    """ways of training tasks; 0: as --ways"""
    train_shots: int = 0
    """shots of training tasks; 0: as --shots"""
    train_queries: int = 0
    """query images a class of training tasks; 0: as --queries"""
    outer: Literal["adam", "sgd"] = "adam"
    """optimiser of the meta-parameters"""
    learning_rate: float = 3e-3
    """of that optimiser at the start, reached after 20 steps; decays to 0 by a half cosine over the budget"""
    weight_decay: float = 0.0
    """of all weights but biases, batch norm's and single numbers; Adam's is decoupled (AdamW)"""
    clip: float = 10.0
    """largest norm of the meta-gradient; larger ones are scaled down to it"""
    flip: bool = False
    """mirror training images left and right, half of the time"""
    rotate: float = 0.0
    """turn training images by up to so many degrees"""
    zoom: float = 0.0
    """scale training images by a factor of up to 1 + zoom either way"""
    shift: float = 0.0
    """shift training images by up to this share of their side"""
    flip_class: bool = False
    """mirror all images of a training class alike, half of the classes: these are new classes"""
    rotate_class: float = 0.0
    """turn all images of a training class alike, by up to so many degrees either way: new classes too"""
    jitter: float = 0.0
    """change training images' brightness, contrast and saturation by up to this share"""
    eval_every: int = 500
    """meta-steps between validations"""
    val_episodes: int = 200
    """episodes of a validation"""
    test_episodes: int = 1000
    """episodes of the test"""
    out: Path | None = None
    """run folder; default runs/ALGORITHM-DATASET-NwKs-sSEED"""
    resume: Path | None = None
    """run folder to go on with; its options are taken from it"""
    evaluate: Path | None = None
    """run folder whose best checkpoint is tested; --ways, --shots and the like may differ from its training"""
    images: str = "auto"
    """where images are kept: device, mapped (read from the file as needed), or auto (device if they fit)"""
    precision: str = "auto"
    """of the backbone: float32, bfloat16, or auto (bfloat16 on CPUs that have it in hardware, where it is faster)"""
    channels_last: bool = True
    """keep images and filters channels-last on CPU and CUDA, where that is faster"""
    keep_memory: bool = True
    """on Linux CPUs, keep freed memory in the process, in huge pages, instead of faulting it in again at every step"""


def parse(config_type: type, settings: dict[str, dict]):
    """Read the command line into `config_type`, whose defaults for a data set are `settings[dataset]`.

    With --resume and --evaluate the defaults are the run's own. Raises UsageError where an option of a resumed run
    disagrees with it, or a value is out of range.
    """
    argv = sys.argv[1:]
    first = {name: _value_of(argv, name) for name in ("dataset", "resume", "evaluate")}
    origin = first["resume"] or first["evaluate"]
    if origin:
        default = _saved_config(config_type, Path(origin))
    else:
        dataset = first["dataset"] or Options.dataset
        default = config_type(**{"dataset": dataset, **settings.get(dataset, settings["other"])})
    if {"--steps", "--minutes"} & {word.split("=")[0] for word in argv} and not origin:
        default = dataclasses.replace(default, steps=None, minutes=None)  # one given by hand replaces both
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            config = tyro.cli(config_type, default=default, args=argv)
    except SystemExit as stop:
        if stop.code:
            words = re.sub(r"[─-╿]|\x1b\[[0-9;]*m", " ", printed.getvalue())
            raise UsageError(" ".join(words.split())) from None
        raise
    if origin:
        changed = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(default, f.name)]
        for name in sorted(set(changed) - (RESUMED if config.resume else TESTED)):
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} {getattr(config, name)}: {origin} was started with {getattr(default, name)}; "
                f"leave {option} out, or start another run"
            )
    _check(config)
    return config


def fixed_ways(config: Options) -> int:
    """--ways, for a model that has a weight for each class and feature. Raises UsageError where training tasks have
    another number of classes, or images of another size."""
    if config.half_size:
        raise UsageError(
            f"--half-size {config.half_size}: expected 0, as the model has weights for a size of image; "
            "add --half-size 0"
        )
    if config.train_ways not in (0, config.ways):
        raise UsageError(
            f"--train-ways {config.train_ways}: expected 0 or {config.ways}, as the model has an output for each of "
            f"--ways {config.ways} classes; add --train-ways 0"
        )
    return config.ways


def _value_of(argv: list[str], name: str) -> str | None:
    """The value of --name on a command line, read before the defaults of everything else are known."""
    for word, following in zip(argv, [*argv[1:], None]):
        if word == f"--{name}":
            return following
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def _saved_config(config_type: type, folder: Path):
    try:
        saved = json.loads((folder / "config.json").read_text())["options"]
        saved |= {"data_dir": ROOT / saved["data_dir"], "out": None}
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder} is no run folder (it has no whole config.json); runs are under runs/") from None
    fields = {f.name: f for f in dataclasses.fields(config_type)}
    if unknown := set(saved) - set(fields) - {"algorithm"}:
        raise UsageError(
            f"{folder} is a run of {saved.get('algorithm')}, with options {sorted(unknown)} that aren't here"
        )
    for name, value in saved.items():
        default = fields[name].default if name in fields else None
        if default is not None and isinstance(default, int | float) != isinstance(value, int | float):
            raise UsageError(f"{folder} is no run folder ({name} is {value!r} in its config.json)")
    return config_type(**{k: v for k, v in saved.items() if k in fields})


def _check(config: Options) -> None:
    least = {
        "ways": 2, "val_episodes": 2, "test_episodes": 2, "seed": 0,
        **dict.fromkeys("shots queries tasks steps width eval_every pool_images".split(), 1),
        **dict.fromkeys("cg_steps inner_batch test_inner_batch context views".split(), 1),
        **dict.fromkeys("batches first_width half_size train_ways train_shots train_queries pool_classes".split(), 0),
        **dict.fromkeys("learning_rate weight_decay rotate zoom shift rotate_class jitter".split(), 0),
        **dict.fromkeys("newton_steps inner_steps test_inner_steps tolerance".split(), 0),
    }  # fmt: skip
    for name, bound in least.items():
        value = getattr(config, name, None)  # some are of one script
        if value is not None and not value >= bound:
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected {bound} or more")
    for name in ("minutes", "strength", "logit_scale", "inner_rate", "clip"):
        value = getattr(config, name, None)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected a positive number")
    for name, value in dataclasses.asdict(config).items():
        if value == math.inf and name != "clip":  # no number has been refused above
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected a finite number")
    if config.half_size > 1:
        raise UsageError(f"--half-size {config.half_size}: expected a share of training, 0 to 1")
    if not re.fullmatch(NAME, config.dataset):
        raise UsageError(f"--dataset {config.dataset}: expected a name, that of a folder in --data-dir")
    if config.seed >= 2**63:
        raise UsageError(f"--seed {config.seed}: expected less than 2^63")
    for name, choices in {"block": BLOCKS, "images": ("auto", "device", "mapped"),
                          "precision": ("auto", "float32", "bfloat16")}.items():  # fmt: skip
        if getattr(config, name) not in choices:
            raise UsageError(f"--{name} {getattr(config, name)}: expected one of {', '.join(choices)}")
    differing = [name for name in VIEWED if getattr(config, name)]
    most = 1 if not differing else 2 if differing == ["flip"] else math.inf
    if getattr(config, "views", 1) > most:
        options = ", ".join(f"--{name}" for name in VIEWED if name not in differing)
        raise UsageError(
            f"--views {config.views}: more than {most} would be alike; add --views {most}, or one of {options}"
        )
    if config.image_size and config.image_size < 16:
        raise UsageError(f"--image-size {config.image_size}: expected 0, or 16 or more as Conv4 halves four times")
    if config.steps is None and config.minutes is None:
        raise UsageError("training has no end: give --steps or --minutes")
