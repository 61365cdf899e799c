"""Like for like: the six scripts on one network and the same tasks, so that the inner loop is all that differs.

The scripts' settings differ in ways, pools of images, augmentation, views and width. Here all have Conv4 with 64
filters and batch norm before pooling, in float32, disjoint 5-way 1-shot tasks, as many of them and as many images a
step as maml.py has for the data set, no augmentation and one view. What belongs to the inner loop (its steps, rate or
strength) is each script's own; the outer rate is chosen for each on validation, over seeds, in short trainings.

    python -m benchmarks.alike --dataset omniglot --steps 5000
    python report.py runs results --out report

Trainings go to RUNS/SCRIPT-DATASET, the rates' tables to OUT. Given again, the command goes on where it was stopped.
`python -m benchmarks.steps --alike` measures what a step of these settings takes.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import maml
from benchmarks import SCRIPTS, OnData, compare, start
from common.shards import ROOT

# Reptile's rate is the share of the way to where the tasks' steps end, at most the whole.
RATES = {"reptile": (0.25, 0.5, 1.0)}
ADAMS_RATES = (0.001, 0.003, 0.01)


@dataclass
class Options(OnData):
    algorithms: tuple[str, ...] = SCRIPTS
    steps: int = 5000
    """of every training"""
    rate_steps: int = 500
    """of the trainings that choose the rate"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of those; the training itself has seed 0"""
    eval_every: int = 250
    val_episodes: int = 1000
    """of a validation that chooses a rate"""
    test_episodes: int = 1000
    device: str = "cpu"
    runs: Path = ROOT / "runs" / "alike"
    """folder for the run folders"""
    out: Path = ROOT / "results" / "compare"
    """folder for rates-ALGORITHM-DATASET.md and .json, the tables that choose the rates"""


def options_of(algorithm: str, dataset: str) -> dict:
    """What a script is told, beside the rate, to be like the others."""
    tasks = maml.SETTINGS.get(dataset, maml.SETTINGS["other"])
    queries = tasks["train_queries"]
    options = {
        "width": 64, "first_width": 0, "block": "norm-pool", "keep_border": tasks.get("keep_border", False),
        "position_mean": 0.0, "plain_averages": 0,
        "precision": "float32", "shots": 1, "tasks": tasks["tasks"], "train_ways": 0, "train_shots": 0,
        "train_queries": queries, "pool_classes": 0, "pool_images": 20, "half_size": 0.0, "weight_decay": 0.0,
        "flip": False, "rotate": 0.0, "zoom": 0.0, "shift": 0.0, "flip_class": False, "rotate_class": 0.0,
        "jitter": 0.0,
    }  # fmt: skip
    if algorithm in ("convex_imaml", "convex_maml"):
        options["views"] = 1
    if algorithm == "reptile":  # which trains on the support set alone: as many images in that
        options |= {"train_shots": 1 + queries, "train_queries": 1}
    return options


def words(options: dict) -> list[str]:
    """option=value, as benchmarks/compare.py has them; a flag is its name."""
    flags = {name: value for name, value in options.items() if isinstance(value, bool)}
    named = {name: value for name, value in options.items() if name not in flags}
    said = [f"{name}={value}" for name, value in named.items()]
    said += [name if value else f"no-{name}" for name, value in flags.items()]
    return [word.replace("_", "-") for word in said]


def best_rate(algorithm: str, options: Options) -> float:
    """The rate with the highest mean validation accuracy over the seeds."""
    shared = options_of(algorithm, options.dataset) | {
        "dataset": options.dataset, "device": options.device, "steps": options.rate_steps,
        "eval_every": options.rate_steps, "test_episodes": 2,
    }  # fmt: skip
    if options.data_dir != OnData.data_dir:
        shared["data_dir"] = options.data_dir.absolute()
    rates = RATES.get(algorithm, ADAMS_RATES)
    compared = compare.Options(
        name=f"rates-{algorithm}-{options.dataset}", variants=tuple(f"learning-rate={rate:g}" for rate in rates),
        scripts=(f"{algorithm}.py",), options=tuple(words(shared)), seeds=options.seeds,
        val_episodes=options.val_episodes, out=options.out,
    )  # fmt: skip
    compare.main(compared)
    runs = json.loads((compared.out / f"{compared.name}.json").read_text())["runs"]

    def reached(rate: float) -> float:
        return statistics.mean(r["val_accuracy"] for r in runs if r["variant"] == f"learning-rate={rate:g}")

    return max(rates, key=reached)


def train(algorithm: str, rate: float, options: Options) -> None:
    """The training with that rate, or the rest of it."""
    folder = options.runs / f"{algorithm}-{options.dataset}"
    if (folder / "result.json").exists():
        return
    given = options_of(algorithm, options.dataset) | {
        "dataset": options.dataset, "learning_rate": rate, "steps": options.steps, "eval_every": options.eval_every,
        "test_episodes": options.test_episodes, "data_dir": options.data_dir.absolute(), "device": options.device,
    }  # fmt: skip
    new = [f"--{word}" for word in words(given)] + ["--out", str(folder)]
    resumed = ["--resume", str(folder), "--data-dir", str(options.data_dir.absolute())]
    chosen = resumed if (folder / "checkpoint.pt").exists() else new
    subprocess.run([sys.executable, ROOT / f"{algorithm}.py", *chosen], check=True)


def main(options: Options) -> None:
    for algorithm in options.algorithms:
        train(algorithm, best_rate(algorithm, options), options)


if __name__ == "__main__":
    start(main, Options)
