"""Options: what all scripts share.

An option's default stands on its field, and in a script's SETTINGS where a data set is served better by another value.
Its bounds, and whether a test or a resumed run may have another value than the training had, stand on the field too.
"""

import dataclasses
import math
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.augment import VIEWED
from common.shards import NAME, ROOT, UsageError


def option(
    default,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    infinite: bool = False,
    at_test: bool = False,
    at_resume: bool = False,
):
    """A field of a Config. Its value is at least `least`, at most `most`, more than `above`, and a finite number unless
    `infinite`. at_test: --evaluate may give another value than the run had; at_resume: --resume may."""
    bounds = {"least": least, "most": most, "above": above, "infinite": infinite}
    return dataclasses.field(default=default, metadata=bounds | {"at_test": at_test, "at_resume": at_resume})


@dataclass
class Options:
    """What all algorithms share."""

    dataset: str = option("glyphs", at_test=True)
    """The data set: glyphs (built on first use), omniglot, miniimagenet, or one of your own; see data_prep/build.py."""
    data_dir: Path = option(ROOT / "data", at_test=True, at_resume=True)
    """The folder that holds the data sets."""
    ways: int = option(5, least=2, at_test=True)
    """N, the number of classes in a task."""
    shots: int = option(1, least=1, at_test=True)
    """K, the number of support images a class."""
    unequal_shots: bool = option(False, at_test=True)
    """Classes of a task share its support images unequally: each has 1 to 2 x shots - 1, and all --shots on average."""
    repeat_support: bool = option(False, at_test=True)
    """With --unequal-shots, images count several times, as predict.py has it, until all classes have 2 x shots - 1."""
    queries: int = option(15, least=1, at_test=True)
    """The number of query images a class, in validation and test."""
    tasks: int = option(16, least=1)
    """The number of tasks in a meta-step, over all processes."""
    batches: int = option(0, least=0)
    """The number of batches in which the tasks of a meta-step are drawn and normalised; 0: one for each process."""
    steps: int | None = option(None, least=1)
    """The number of meta-steps in training. --minutes alone replaces it; with both, the first reached counts."""
    minutes: float | None = option(None, above=0)
    """The minutes of training, evaluation left out. The number of steps then depends on the machine."""
    seed: int = option(0, least=0, most=2**63 - 1)
    """The seed of weights and training tasks. Validation and test tasks are the same for every seed."""
    device: str = option("auto", at_test=True, at_resume=True)
    """The device: auto takes the first there is of cuda, mps and cpu; or any device that torch knows."""
    image_size: int = option(0, least=0, at_test=True)
    """The pixels a side that all images, the test's too, are resized to; 0 leaves them as they are in the data set."""
    half_size: float = option(0.0, least=0, most=1)
    """The share of training, from its start, on images of half the side; tests have whole images."""
    width: int = option(64, least=1)
    """The number of filters in a block of the network."""
    first_width: int = option(0, least=0)
    """The number of filters in the first block, where images are largest; 0 means as many as --width."""
    position_mean: float = option(0.0, least=0, at_test=True)
    """In validation and test, this times a filter's mean over all positions is added to its feature at each."""
    block: Literal["norm-pool", "pool-norm"] = "pool-norm"
    """norm-pool is the usual Conv4 (convolution, batch norm, ReLU, pool); pool-norm pools before batch norm."""
    keep_border: bool = False
    """Pooling rounds odd sizes up instead of down, so that 28x28 images end as 2x2 features instead of 1x1."""
    pool_classes: int = option(0, least=0)
    """The number of classes whose images all tasks of a training batch share (a pool); 0: every task draws its own."""
    pool_images: int = option(20, least=1)
    """The number of images of each class in that pool."""
    train_ways: int = option(0, least=0)
    """The number of classes in a training task; 0 means as many as --ways."""
    train_shots: int = option(0, least=0)
    """The number of support images a class in a training task; 0 means as many as --shots."""
    train_queries: int = option(0, least=0)
    """The number of query images a class in a training task; 0 means as many as --queries."""
    outer: Literal["adam", "sgd"] = "adam"
    """The optimiser of the meta-parameters: AdamW, or plain stochastic gradient descent."""
    learning_rate: float = option(3e-3, least=0)
    """The optimiser's rate. It is reached after 20 steps and falls to 0 by a half cosine over the budget."""
    weight_decay: float = option(0.0, least=0)
    """The decay of all weights but biases, batch norm's and single numbers; Adam's is decoupled (AdamW)."""
    clip: float = option(10.0, above=0, infinite=True)
    """A meta-gradient whose norm is larger than this is scaled down to it."""
    flip: bool = option(False, at_test=True)
    """Training images are mirrored left and right, half of the time."""
    rotate: float = option(0.0, least=0, at_test=True)
    """Training images are turned by up to this many degrees either way."""
    zoom: float = option(0.0, least=0, at_test=True)
    """Training images are scaled by a factor of up to 1 + zoom either way."""
    shift: float = option(0.0, least=0, at_test=True)
    """Training images are shifted by up to this share of their side either way."""
    flip_class: bool = False
    """All images of a training class are mirrored alike, in half of the classes, which makes new classes of them."""
    rotate_class: float = option(0.0, least=0)
    """All images of a training class are turned alike, by up to this many degrees: new classes too."""
    jitter: float = option(0.0, least=0, at_test=True)
    """Brightness, contrast and saturation of training images change by up to this share either way."""
    plain_averages: int = option(0, least=0)
    """The number of batches without augmentation that give batch norm's averages for tests; 0: training's own do."""
    eval_every: int = option(500, least=1)
    """The number of meta-steps between validations."""
    val_episodes: int = option(200, least=2)
    """The number of episodes in a validation."""
    test_episodes: int = option(1000, least=2, at_test=True, at_resume=True)
    """The number of episodes in the test."""
    out: Path | None = option(None, at_test=True)
    """The run folder; by default runs/ALGORITHM-DATASET-NwKs-sSEED, and RUN/test-DATASET-NwKs-sSEED with --evaluate."""
    resume: Path | None = option(None, at_resume=True)
    """A run folder: training goes on from its last checkpoint, with its options."""
    evaluate: Path | None = option(None, at_test=True)
    """A run folder: its best checkpoint is tested again, where --ways, --shots and the like may differ."""
    images: Literal["auto", "device", "mapped"] = option("auto", at_test=True)
    """Images are kept on the device, or mapped (read from the file as needed); auto takes the device if they fit."""
    precision: Literal["auto", "float32", "bfloat16"] = option("auto", at_test=True)
    """The network's precision; auto takes bfloat16 on CPUs that multiply it in hardware, where it is faster."""
    capture: bool = option(True, at_resume=True)
    """On a GPU, what meta_step does is recorded once and replayed; it can't ask for a number's value then."""
    channels_last: bool = option(True, at_test=True)
    """Images and filters are kept channels-last on CPU and CUDA, where that is faster."""
    keep_memory: bool = option(True, at_test=True)
    """On Linux, the process keeps the memory that it frees, in huge pages, instead of faulting it in at every step."""
    print_config: bool = option(False, at_test=True, at_resume=True)
    """Print the value of every option that this command would run with, and where it comes from, and stop."""


def of_tests(config_type: type[Options]) -> list[str]:
    """A script's own options that a test may have otherwise than the training."""
    shared = {field.name for field in dataclasses.fields(Options)}
    return [f.name for f in dataclasses.fields(config_type) if f.name not in shared and f.metadata.get("at_test")]


def fixed_ways(config: Options) -> int:
    """--ways, for a model that has a weight for each class and feature. Raises UsageError where training tasks have
    another number of classes, images of another size, or other features than tests."""
    for name, what in (("half_size", "a size of image"), ("position_mean", "training's features")):
        if value := getattr(config, name):
            raise UsageError(
                f"{flag(name)} {value}: expected 0, as the model has weights for {what}; add {flag(name)} 0"
            )
    if config.train_ways not in (0, config.ways):
        raise UsageError(
            f"--train-ways {config.train_ways}: expected 0 or {config.ways}, as the model has an output for each of "
            f"--ways {config.ways} classes; add --train-ways 0"
        )
    return config.ways


def check(config: Options) -> None:
    """Raise UsageError for a value out of its bounds, or that doesn't fit another's."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, bounds, name = getattr(config, field.name), field.metadata, flag(field.name)
        choices = typing.get_args(hints[field.name]) if typing.get_origin(hints[field.name]) is Literal else ()
        if choices and value not in choices:
            raise UsageError(f"{name} {value}: expected one of {', '.join(choices)}")
        if not isinstance(value, int | float):
            continue
        least, most, above = (bounds.get(key) for key in ("least", "most", "above"))
        if least is not None and not value >= least:
            raise UsageError(f"{name} {value}: expected {least} or more")
        if above is not None and not value > above:
            expected = "a positive number" if above == 0 else f"more than {above}"
            raise UsageError(f"{name} {value}: expected {expected}")
        if most is not None and not value <= most:
            raise UsageError(f"{name} {value}: expected {most} or less")
        if not math.isfinite(value) and not (value > 0 and bounds.get("infinite")):
            raise UsageError(f"{name} {value}: expected a finite number")
    if not re.fullmatch(NAME, config.dataset):
        raise UsageError(f"--dataset {config.dataset}: expected a name, that of a folder in --data-dir")
    differing = [name for name in VIEWED if getattr(config, name)]
    most_views = 1 if not differing else 2 if differing == ["flip"] else math.inf
    if getattr(config, "views", 1) > most_views:
        options = ", ".join(flag(name) for name in VIEWED if name not in differing)
        raise UsageError(
            f"--views {config.views}: more than {most_views} would be alike; add --views {most_views}, or one of "
            f"{options}"
        )
    if config.repeat_support and not config.unequal_shots:
        raise UsageError(
            "--repeat-support: classes have equal numbers of images; add --unequal-shots, or --no-repeat-support"
        )
    if 0 < config.image_size < 16:
        raise UsageError(f"--image-size {config.image_size}: expected 0, or 16 or more as Conv4 halves four times")
    if config.steps is None and config.minutes is None:
        raise UsageError("training has no end: give --steps or --minutes")


def flag(name: str) -> str:
    """As it is written on a command line."""
    return "--" + name.replace("_", "-")
