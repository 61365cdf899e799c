"""Everything that is to be known of one GPU, in one command: tests, meta-steps, and time to accuracy.

    python -m benchmarks.gpu --out results/benchmarks/cuda

tests: tests/test_cuda.py.   steps: meta-steps of all scripts as they are and as replayed CUDA graphs, each in turns
with one plain forward and backward of the backbone over the same images, which is captured too, and with those of its
peers that are installed (benchmarks/requirements.txt, benchmarks/cloned.py), in float32.
accuracy: seconds of training until validation on Omniglot is at .95, .98 and .99, each script with its own settings.
What is measured is saved at once. With --device cpu nothing can be captured, and tests/test_cuda.py skips itself.
"""

import functools
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import SCRIPTS, markdown, ours, problems, report, save, seconds_of, start
from benchmarks.meta_step_rows import OURS, PEERS, WIDTHS
from benchmarks.rows import SAME, apart
from common import log, meters
from common.capture import Captured, as_it_is
from common.episodes import Episode
from common.shards import ROOT, UsageError

PLAIN = "plain step"
CONTIGUOUS = "contiguous"  # stands where a peer's name does
LEVELS = (0.95, 0.98, 0.99)  # of validation accuracy


@dataclass
class Options:
    parts: tuple[Literal["tests", "steps", "accuracy"], ...] = ("tests", "steps", "accuracy")
    device: str = "cuda"
    algorithms: tuple[str, ...] = SCRIPTS
    datasets: tuple[str, ...] = tuple(WIDTHS)
    """whose shapes the meta-steps have; their images are random"""
    tasks: tuple[int, ...] = (4, 16, 64)
    """of the meta-steps"""
    peer_tasks: tuple[int, ...] = (4,)
    """of those with which peers are measured too: most of them take one task after the other"""
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    contiguous: bool = False
    """measure each script also with contiguous memory in place of channels_last"""
    turns: int = 5
    """that count, after one that doesn't"""
    repeats: int = 10
    """steps in a turn, at whose end the device is waited for; fewer where they take longer than a quarter second"""
    data_dir: Path = ROOT / "data"
    """with Omniglot in it, for the part on accuracy"""
    seconds: float = 30.0
    """of each script's training on Omniglot"""
    train_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """of these trainings"""
    eval_every: int = 200
    """steps between validations in it"""
    out: Path | None = None
    """folder for gpu-PART.md and .json"""

    def __post_init__(self):
        if self.turns < 1 or self.repeats < 1:
            raise UsageError(f"--turns {self.turns} --repeats {self.repeats}: expected 1 or more")


def tests(options: Options) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_cuda.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    summary = "\n".join([*told, done.stdout.strip().splitlines()[-1]])
    content = {"status": done.returncode, "summary": summary}
    report(options.out, "gpu-tests", content, f"`pytest tests/test_cuda.py`\n\n{summary}", options.device)


def plain_step(model: nn.Module, episode: Episode, config) -> dict[str, Tensor]:
    loss = model.backbone(episode.images, "batch").square().mean()
    loss.backward()
    return {"loss": loss.detach()}


def ready(
    name: str, layout: str, dataset: str, tasks: int, precision: str, captured: bool, device: torch.device
) -> Callable:
    """A script's meta-step, or the plain step, and a step of Adam; it raises UsageError where it can't be captured."""
    algorithm = "maml" if name == PLAIN else name
    given = {"precision": precision, "channels_last": layout != CONTIGUOUS, **OURS[algorithm]}
    with device:
        script, config, model = problems.our_model(algorithm, dataset, WIDTHS[dataset], **given)
        episode = problems.episode_for(algorithm, dataset, tasks)
    meta_step = plain_step if name == PLAIN else script.meta_step
    launch = Captured() if captured else as_it_is
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)

    def step():
        optimizer.zero_grad()
        launch(meta_step, model, episode, config)
        optimizer.step()

    return step


@functools.cache
def our_gradient(algorithm: str, dataset: str, width: int, tasks: int, device: torch.device) -> np.ndarray:
    """What every peer's meta-gradient is compared with."""
    with device:
        return ours.meta_steps(algorithm, dataset, width, tasks, **OURS[algorithm])[1]["gradient"]


def of_peer(algorithm: str, peer: str, dataset: str, tasks: int, device: torch.device) -> Callable:
    """A peer's meta-step and a step of Adam. Raises UsageError where its meta-gradient in float64 isn't ours, and what
    the peer raises: where it isn't installed, ImportError."""
    network = {"dataset": dataset, "width": WIDTHS[dataset], "tasks": tasks}
    with device:
        step, info = PEERS[algorithm][peer](**network, **OURS[algorithm])
    if "gradient" in info:
        error = apart(our_gradient(algorithm, **network, device=device), info["gradient"])
        if error >= SAME:
            raise UsageError(f"not ours: the gradients are apart by {error:.0e}")
    return step


def measure(
    options: Options, algorithm: str, dataset: str, tasks: int, precision: str, device: torch.device
) -> list[dict]:
    """A row a step and way, of one algorithm, its peers, its other layout where that is asked for, and the plain step,
    all taking turns: `ms`, or `error`."""
    rows, steps = [], []
    ways = (False, True) if device.type == "cuda" else (False,)
    own = [(PLAIN, ""), (algorithm, ""), *([(algorithm, CONTIGUOUS)] if options.contiguous else [])]
    pieces = {
        (name, layout, captured): functools.partial(ready, name, layout, dataset, tasks, precision, captured, device)
        for (name, layout), captured in itertools.product(own, ways)
    }
    for peer in PEERS.get(algorithm, {}) if tasks in options.peer_tasks and precision == "float32" else ():
        pieces[algorithm, peer, False] = functools.partial(of_peer, algorithm, peer, dataset, tasks, device)
    for (name, peer, captured), piece in pieces.items():
        row = {"step": name, "peer": peer, "captured": captured, "beside": algorithm}
        row |= {"dataset": dataset, "tasks": tasks, "precision": precision}
        try:
            step = piece()
            step()  # which records it, where it can be
            row["repeats"] = max(1, min(options.repeats, int(0.25 / seconds_of(step, device))))
        except (UsageError, ImportError, RuntimeError) as error:
            if peer in ("", CONTIGUOUS) and not isinstance(error, (UsageError, torch.cuda.OutOfMemoryError)):
                raise
            step, row["error"] = None, str(error).partition("\n")[0]
        steps.append(step)
        rows.append(row | {"seconds": []})
    for turn in range(options.turns + 1):
        for row, step in zip(rows, steps):
            if step:
                seconds = seconds_of(lambda: [step() for _ in range(row["repeats"])], device)
                row["seconds"] += [seconds / row["repeats"]] if turn else []
    for row in rows:
        if "error" not in row:
            row["ms"] = 1e3 * statistics.median(row["seconds"])
    return rows


def steps(options: Options) -> None:
    device = meters.settled_device(options.device)
    rows = []
    shapes = itertools.product(options.datasets, options.tasks, options.precisions)
    for shape, algorithm in tqdm(list(itertools.product(shapes, options.algorithms)), leave=False):
        rows += measure(options, algorithm, *shape, device)
        torch.cuda.empty_cache()  # the steps and recordings are gone, and another algorithm's have room
        if options.out:  # so that a command cut short leaves them
            save(options.out, "gpu-steps", {"rows": rows}, as_table(rows), options.device)
    print(as_table(rows))


def as_table(rows: list[dict]) -> str:
    """Steps as they are and captured, in ms; the better one's share of the plain step beside it and, of a peer's or the
    other layout's, how often ours is done meanwhile; tasks a second. The plain step stands before a shape's first
    algorithm."""
    at, lines, plain = {}, [], set()
    for row in rows:
        what = row["beside"], row["dataset"], row["tasks"], row["precision"]
        at[row["step"], row["peer"], row["captured"], what] = row

    def best(step: str, peer: str, what: tuple) -> dict:
        eager, captured = (at.get((step, peer, captured, what), {}) for captured in (False, True))
        return captured if "ms" in captured else eager

    for (name, peer, captured, what), row in at.items():
        if captured or (name == PLAIN and what[1:] in plain):
            continue
        plain.add(what[1:])
        replayed = at.get((name, peer, True, what))
        mine = best(name, peer, what)
        cells = ["", "", ""]
        if "ms" in mine:
            against = (best(PLAIN, "", what), best(name, "", what) if peer else {})
            cells = [f"{mine['ms'] / other['ms']:.2f}" if "ms" in other else "" for other in against]
            cells.append(f"{1e3 * row['tasks'] / mine['ms']:,.0f}")
        step = f"{name}, {peer}" if peer else name
        lines.append([step, *what[1:], shown(row), shown(replayed) if replayed else "", *cells])
    heads = ["step", "images of", "tasks", "precision", "ms as it is", "ms captured", "/ plain step", "/ ours"]
    return markdown([*heads, "tasks a second"], lines)


def shown(row: dict) -> str:
    return f"{row['ms']:.2f}" if "ms" in row else row["error"]


def accuracy(options: Options) -> None:
    """Each script is a process of its own. Its start doesn't count, recording the step does."""
    if not (options.data_dir / "omniglot" / "val.h5").exists():
        raise UsageError(
            f"--data-dir {options.data_dir}: expected omniglot in it, as build.py builds it; or leave the part "
            "accuracy out"
        )
    rows = []
    for name in options.algorithms:
        rows.append(trained_row(name, options))
        if options.out:
            content = {"seconds": options.seconds, "eval_every": options.eval_every, "rows": rows}
            save(options.out, "gpu-accuracy", content, accuracy_table(rows), options.device)
    print(accuracy_table(rows))


def trained_row(name: str, options: Options) -> dict:
    """What a script's training reached and when, or its `error`."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--dataset", "omniglot", "--data-dir", options.data_dir, "--device", options.device]
        words += ["--minutes", options.seconds / 60, "--eval-every", options.eval_every, "--val-episodes", 500]
        words += ["--precision", options.train_precision, "--test-episodes", 2, "--out", Path(folder, "run")]
        command = [sys.executable, ROOT / f"{name}.py", *map(str, words)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return {"algorithm": name, "error": done.stderr.strip().splitlines()[-1]}
        written = log.read(Path(folder, "run", "log.csv"), 10**9).rows
    validated = [row for row in written if "val_accuracy" in row]
    until = {level: [r for r in validated if float(r["val_accuracy"]) >= level] for level in LEVELS}
    return {
        "algorithm": name, "steps": int(written[-1]["step"]), "step_ms": float(written[-1]["step_ms"]),
        "val_accuracy": max(float(r["val_accuracy"]) for r in validated),
        "seconds": {str(level): float(rs[0]["seconds"]) if rs else None for level, rs in until.items()},
    }  # fmt: skip


def accuracy_table(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        if "error" in row:
            lines.append([row["algorithm"], row["error"]])
            continue
        seconds = ["not reached" if s is None else f"{s:.1f}" for s in row["seconds"].values()]
        best, steps_made = f"{row['val_accuracy']:.4f}", f"{row['steps']:,}"
        lines.append([row["algorithm"], *seconds, best, steps_made, f"{row['step_ms']:.1f}"])
    heads = ["script", *(f"seconds to {level}" for level in LEVELS), "best validation", "steps", "ms of the last steps"]
    return markdown(heads, lines)


def main(options: Options) -> None:
    for part in (tests, steps, accuracy):
        if part.__name__ in options.parts:
            part(options)


if __name__ == "__main__":
    start(main, Options)
