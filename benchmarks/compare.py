"""Settings of scripts against each other: the same training with each, over seeds, as one table of accuracies.

Settings are chosen by their validation accuracy; the test split stands beside it, and decides nothing.

    python -m benchmarks.compare --name blocks-omniglot --options dataset=omniglot minutes=1 \\
        --variants block=norm-pool block=pool-norm

Variants take turns, seed by seed, so that a machine that slows down slows them alike. What is in the table already
isn't run again: the command goes on where it was stopped.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import markdown, origin, save, start
from common import log
from common.shards import ROOT, UsageError


@dataclass
class Options:
    name: str
    """of the table: OUT/NAME.md and OUT/NAME.json"""
    variants: tuple[str, ...]
    """settings, each compared with the first: option=value or a flag, several with commas between"""
    scripts: tuple[str, ...] = ("convex_imaml.py",)
    """each with every setting, compared with its own first"""
    options: tuple[str, ...] = ("dataset=omniglot", "minutes=1")
    """what all of them share, option=value"""
    seeds: tuple[int, ...] = (0, 1, 2)
    val_episodes: int = 1000
    """of a validation; the scripts' own 200 are too few to choose by"""
    out: Path = ROOT / "results" / "compare"


def train(options: Options, script: str, variant: str, seed: int) -> dict:
    """result.json of a run of its own, its commit, all its options but seed and folder, and at the end of training the
    median of its solver's iterations, where it has one."""
    given = [f"val-episodes={options.val_episodes}", *options.options, *variant.split(","), f"seed={seed}"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        words = [f"--{word}" for word in given]
        subprocess.run([sys.executable, ROOT / script, *words, "--out", run], check=True)
        result = json.loads((run / "result.json").read_text())
        config = json.loads((run / "config.json").read_text())
        iterations = log.read(run / "log.csv", result["steps"]).rows[-1].get("iterations")
    of_all_seeds = {name: value for name, value in config["options"].items() if name not in ("seed", "out")}
    solver = {} if iterations is None else {"iterations": float(iterations)}
    return result | solver | {"commit": config["commit"], "config": of_all_seeds}


def accuracy(run: dict | None) -> str:
    """Validation accuracy and its interval, which older runs don't tell."""
    if run is None:
        return ""
    return f"{run['val_accuracy']:.4f}" + (f" ± {run['val_ci95']:.4f}" if "val_ci95" in run else "")


def as_table(runs: list[dict], options: Options) -> str:
    """Validation accuracy of every run, the difference from the script's first variant, and the mean test accuracy."""
    seeds = sorted({run["seed"] for run in runs})
    rows = []
    for script, variant in itertools.product(options.scripts, options.variants):
        of_script = [run for run in runs if run["algorithm"] == Path(script).stem]
        first = {run["seed"]: run["val_accuracy"] for run in of_script if run["variant"] == options.variants[0]}
        mine = {run["seed"]: run for run in of_script if run["variant"] == variant}
        if not mine:
            continue
        val, test = (statistics.mean(run[f"{split}_accuracy"] for run in mine.values()) for split in ("val", "test"))
        steps, ms = (statistics.median(run[key] for run in mine.values()) for key in ("steps", "step_ms"))
        less = [mine[seed]["val_accuracy"] - first[seed] for seed in mine if seed in first]
        against = f"{statistics.mean(less):+.4f} ({', '.join(f'{d:+.4f}' for d in less)})"
        against = "" if variant == options.variants[0] else against
        name = variant if len(options.scripts) == 1 else f"{script} {variant}"
        shown = [accuracy(mine.get(seed)) for seed in seeds]
        rows.append([name, *shown, f"{val:.4f}", against, f"{test:.4f}", f"{steps:,.0f}", f"{ms:.0f}"])
    heads = ["setting", *(f"seed {seed}" for seed in seeds), "mean", "minus the first (each seed)", "test, mean"]
    interval = "95 % CI of a run's validation episodes; " if any("val_ci95" in run for run in runs) else ""
    about = f"inductive; {interval}the test decides nothing"
    what = ", ".join([*options.scripts, *options.options])
    return f"{what}; {about}.\n\n{markdown([*heads, 'steps', 'ms a step'], rows)}"


def main(options: Options) -> None:
    saved = options.out / f"{options.name}.json"
    what = {"script": " ".join(options.scripts), "options": list(options.options)}
    device = next((o.removeprefix("device=") for o in options.options if o.startswith("device=")), "cpu")
    before = json.loads(saved.read_text()) if saved.exists() else {"runs": []}
    for key, expected in (origin(device) | what).items():
        if key != "commit" and before.get(key, expected) != expected:
            raise UsageError(f"{saved} is of {key} {before[key]}, expected {expected}; give another --name")
    runs = before["runs"]
    for seed, script, variant in itertools.product(options.seeds, options.scripts, options.variants):
        alike = [run for run in runs if (run["algorithm"], run["variant"]) == (Path(script).stem, variant)]
        if any(run["seed"] == seed for run in alike):
            continue
        run = {"variant": variant, **train(options, script, variant, seed)}
        if any(other.get("config", run["config"]) != run["config"] for other in alike):
            raise UsageError(f"{saved}: {variant} has come to mean other settings; give another --name")
        runs.append(run)
        save(options.out, options.name, what | {"runs": runs}, as_table(runs, options), device)
    print(as_table(runs, options))


if __name__ == "__main__":
    start(main, Options)
