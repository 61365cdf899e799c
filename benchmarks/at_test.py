"""What the options of a test bring to a run that is trained: the same weights with each, on the same validation tasks.

    python -m benchmarks.at_test --run results/convex_imaml-omniglot --variants views=1 views=4 views=16

Options that --evaluate may change can be compared, and plain-averages. Validation decides between them; the test split
isn't read. Tasks are the same for all variants, so a difference is known better than an accuracy.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import SCRIPTS, markdown, report, start, trained
from common.command import read
from common.meters import mean_ci95
from common.options import check, flag
from common.run import Run
from common.shards import ROOT, UsageError


@dataclass
class Options:
    run: Path
    """a run folder of any of the six scripts, or a released one"""
    variants: tuple[str, ...]
    """settings, each compared with the first: option=value or a flag, several with commas between"""
    shots: tuple[int, ...] = (1, 5)
    episodes: int = 1000
    """of a validation"""
    data_dir: Path = ROOT / "data"
    out: Path | None = None
    """folder for at_test-RUN-OPTIONS.md and .json"""


def with_options(config, variant: str):
    """The run's Config with the variant's. Raises UsageError for what can't be changed any more."""
    changed = read(type(config), "", default=config, args=[f"--{word}" for word in variant.split(",")])
    for field in dataclasses.fields(config):
        differs = getattr(changed, field.name) != getattr(config, field.name)
        comparable = field.metadata.get("at_test") and field.name not in ("dataset", "shots")
        if differs and not (comparable or field.name == "plain_averages"):
            raise UsageError(f"{flag(field.name)}: expected an option of tests, not dataset or shots")
    if config.plain_averages and not changed.plain_averages:
        raise UsageError("--plain-averages 0: the run's averages are of plain images, and its training's are lost")
    check(changed)
    return changed


def accuracies(options: Options, variant: str, shots: int) -> np.ndarray:
    """Of the validation's episodes (E,), inductive."""
    config, weights = trained(options.run, *SCRIPTS)
    config = dataclasses.replace(config, data_dir=options.data_dir.absolute(), shots=shots, out=None, resume=None)
    before, config = config, with_options(config, variant)
    script = sys.modules[type(config).__module__]
    run = Run(config, script.__file__)
    train, val, _ = run.loaders()
    model = script.Model(train.image_shape, config, run.device)
    model.load_state_dict(weights)
    if config.plain_averages != before.plain_averages:
        torch.manual_seed(config.seed)
        model.backbone.renew_averages(train.plain_images(config.plain_averages))
    return script.evaluate(model, val, options.episodes, config)["accuracy"]


def as_table(measured: dict[int, dict[str, np.ndarray]], variants: tuple[str, ...]) -> str:
    """Accuracy of each variant and the difference from the first, with 95 % intervals, for each number of shots."""
    rows = []
    for variant in variants:
        cells = []
        for of_variants in measured.values():
            values, first = of_variants[variant], of_variants[variants[0]]
            cells.append("{:.4f} ± {:.4f}".format(*mean_ci95(values)))
            cells.append("" if variant == variants[0] else "{:+.4f} ± {:.4f}".format(*mean_ci95(values - first)))
        rows.append([variant, *cells])
    heads = [head for shots in measured for head in (f"{shots}-shot", "minus the first")]
    return markdown(["setting", *heads], rows)


def main(options: Options) -> None:
    measured = {
        shots: {variant: accuracies(options, variant, shots) for variant in options.variants} for shots in options.shots
    }
    about = f"{options.run.name}, {options.episodes:,} validation episodes; inductive; 95 % CI"
    content = {"run": options.run.name, "episodes": options.episodes} | {
        "variants": [
            {"variant": variant, "accuracies": {n: of[variant].mean().item() for n, of in measured.items()}}
            for variant in options.variants
        ]
    }
    names = sorted({word.partition("=")[0] for variant in options.variants for word in variant.split(",")})
    name = "-".join(["at_test", options.run.name, *names])
    report(options.out, name, content, f"{about}\n\n{as_table(measured, options.variants)}")


if __name__ == "__main__":
    start(main, Options)
