"""Seconds of training to an accuracy: our six scripts, and learn2learn's MAML with the settings of its own example.

All train on the same files, and are validated on the same episodes. Ours have their default settings for the data set,
budget and learning rate's schedule among them; they are validated inductively, as the scripts do, and transductively,
which is the only way that the peer's example knows. Each training has a process of its own, one after the other, on a
machine where nothing else should run. It ends where validation has reached --until in every way that it is measured,
with its budget, or after --minutes.

    benchmarks/learn2learn.sh
    python -m benchmarks.beside --dataset omniglot

Seconds are of training alone: validations aren't in them, nor the first steps of a process, in which memory is faulted
in and which are thrown away. A command that was stopped goes on, given again at the same commit, behind the last
training that was done.
"""

import importlib.util
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import SCRIPTS, OnData, in_own_process, markdown, origin, save, say_if_busy, seconds_of, start
from benchmarks.trainings import Training, of_learn2learn, of_script
from common.meters import mean_ci95
from common.shards import ROOT, UsageError

PEER = "learn2learn"
WARMUP = 10  # steps of a process that are thrown away


@dataclass
class Options(OnData):
    algorithms: tuple[str, ...] = (PEER, *SCRIPTS)
    shots: int = 1
    until: float = 0.95
    """validation accuracy at which a training ends"""
    levels: tuple[float, ...] = (0.90, 0.95, 0.98)
    """accuracies of which the table says when validation first reached them"""
    minutes: float = 60.0
    """of a training, at most"""
    eval_seconds: float = 15.0
    """of training, between validations"""
    val_episodes: int = 200
    seed: int = 0
    device: str = "cpu"
    out: Path = ROOT / "results" / "benchmarks"

    def __post_init__(self):
        for name in self.algorithms:
            if name not in (PEER, *SCRIPTS):
                raise UsageError(f"--algorithms {name}: expected some of {', '.join((PEER, *SCRIPTS))}")
        for option, value in (("minutes", self.minutes), ("eval-seconds", self.eval_seconds)):
            if not value > 0:
                raise UsageError(f"--{option} {value}: expected more than 0")


def begin(name: str, options: Options) -> Training:
    kept = ("data_dir", "shots", "val_episodes", "seed", "device")
    given = {key: getattr(options, key) for key in kept}
    if name == PEER:
        return of_learn2learn(options.dataset, **given)
    return of_script(name, options.dataset, **given)


def measure(name: str, options: Options) -> dict:
    """The row of a training: its `curve` has a validation an entry, the steps and seconds of training before it, and
    accuracy and 95 % interval in each way."""
    warm_up = begin(name, options)
    for _ in range(WARMUP):
        warm_up.step()
    del warm_up
    training = begin(name, options)
    curve, done, seconds = [], 0, 0.0
    while True:
        pause = min(seconds + options.eval_seconds, 60 * options.minutes)
        while seconds < pause and done < training.budget:
            seconds += seconds_of(training.step, training.device)
            done += 1
        found = {way: mean_ci95(accuracies) for way, accuracies in training.validate().items()}
        curve.append({"step": done, "seconds": seconds, **found})
        said = ", ".join(f"{way} {accuracy:.4f} ± {ci95:.4f}" for way, (accuracy, ci95) in found.items())
        print(f"{name}: step {done}, {seconds:.0f} s, {said}", file=sys.stderr, flush=True)
        reached = all(accuracy >= options.until for accuracy, _ in found.values())
        if reached or done == training.budget or seconds >= 60 * options.minutes:
            return {"algorithm": name, "curve": curve}


def seconds_to(level: float, way: str, curve: list[dict]) -> str:
    """Of training, until the first validation that reached the accuracy, or `> s` where none did in s seconds."""
    seconds = [at["seconds"] for at in curve if at[way][0] >= level]
    return f"{seconds[0]:.0f}" if seconds else f"> {curve[-1]['seconds']:.0f}"


def as_table(rows: list[dict], options: Options) -> str:
    heads = ["training", "steps", "ms a step", "seconds", *(f"to {level:.2f}" for level in options.levels)]
    heads.append("accuracy at the end")
    shown = []
    for row in rows:
        if "reason" in row:
            shown.append([row["algorithm"], row["reason"], *[""] * (len(heads) - 2)])
            continue
        curve = row["curve"]
        end = curve[-1]
        ways = [way for way in ("inductive", "transductive") if way in end]
        times = [" · ".join(seconds_to(level, way, curve) for way in ways) for level in options.levels]
        accuracies = " · ".join("{:.4f} ± {:.4f} {}".format(*end[way], way) for way in ways)
        ms = 1e3 * end["seconds"] / end["step"]
        shown.append([row["algorithm"], f"{end['step']:,}", f"{ms:.0f}", f"{end['seconds']:.0f}", *times, accuracies])
    about = f"{options.dataset}, 5-way {options.shots}-shot: seconds of training until a validation, of "
    about += f"{options.val_episodes} episodes every {options.eval_seconds:g} seconds, first reached an accuracy in "
    about += f"the ways that stand at the end (± 95 % interval). Trainings ended at {options.until:g}, with their "
    about += f"budget, or after {options.minutes:g} minutes."
    return f"{about}\n\n{markdown(heads, shown)}"


def main(options: Options) -> None:
    say_if_busy()
    name = f"beside-{options.dataset}-5w{options.shots}s"
    path = options.out / f"{name}.json"
    asked = {key: value for key, value in asdict(options).items() if key not in ("out", "data_dir")}
    about = json.loads(json.dumps({"options": asked, **origin(options.device)}))  # lists for tuples, as when read back
    before = json.loads(path.read_text()) if path.exists() else {"rows": []}
    begun = len(before["rows"]) < len(options.algorithms) and all(before.get(key) == about[key] for key in about)
    rows = before["rows"] if begun else []
    for algorithm in options.algorithms[len(rows) :]:
        if algorithm == PEER and importlib.util.find_spec(PEER) is None:
            rows.append({"algorithm": PEER, "reason": "not run: it isn't installed (benchmarks/learn2learn.sh)"})
        else:
            rows.append(in_own_process(measure, algorithm, options))
        save(options.out, name, about | {"rows": rows}, as_table(rows, options), options.device)
    print(as_table(rows, options))


if __name__ == "__main__":
    start(main, Options)
