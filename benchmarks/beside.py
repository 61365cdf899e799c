"""How long training takes to an accuracy: our six scripts, and learn2learn's MAML with the settings of its own example.

All train on the same files, and are validated on the same episodes. Ours have their default settings for the data set,
budget and learning rate's schedule among them; they are validated inductively, as the scripts do, and transductively,
which is the only way that the peer's example knows. A training ends where validation has reached --until in every way
that it is measured, with its budget, or after --minutes.

    benchmarks/learn2learn.sh
    python -m benchmarks.beside --dataset omniglot

Trainings are made one after the other, each in a process of its own, and count steps. When all are done, what a step of
each takes is measured in turns, as benchmarks/steps.py does. Seconds are steps times that: of training alone, without
validations and the first steps of a process. A command that was stopped goes on, given again, behind the last training
that was done, with other --algorithms too: the table has all that were trained with the same options. Where all were
done it measures the times anew, and nothing else should run on the machine then.
"""

import importlib.util
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import SCRIPTS, OnData, in_own_process, markdown, origin, save, say_if_busy, seconds_of, start, steps
from benchmarks.trainings import PEER, Training, of_learn2learn, of_script
from common.meters import mean_ci95
from common.shards import ROOT, UsageError
from reports.times import seconds_until


@dataclass
class Options(OnData):
    algorithms: tuple[str, ...] = (PEER, *SCRIPTS)
    shots: int = 1
    until: float = 0.95
    """validation accuracy at which a training ends"""
    levels: tuple[float, ...] = (0.80, 0.90, 0.95)
    """accuracies of which the table says when validation first reached them"""
    minutes: float = 60.0
    """of a training, at most, by its own clock"""
    eval_growth: float = 0.1
    """share by which the steps grow from a validation to the next, from 20 steps on"""
    val_episodes: int = 200
    seed: int = 0
    turns: int = 20
    """steps of each by which its time is measured"""
    device: str = "cpu"
    out: Path = ROOT / "results" / "benchmarks"

    def __post_init__(self):
        for name in self.algorithms:
            if name not in (PEER, *SCRIPTS):
                raise UsageError(f"--algorithms {name}: expected some of {', '.join((PEER, *SCRIPTS))}")
        for option, value in (("minutes", self.minutes), ("eval-growth", self.eval_growth)):
            if not value > 0:
                raise UsageError(f"--{option} {value}: expected more than 0")


def begin(name: str, options: Options) -> Training:
    kept = ("data_dir", "shots", "val_episodes", "seed", "device")
    given = {key: getattr(options, key) for key in kept}
    if name == PEER:
        return of_learn2learn(options.dataset, **given)
    return of_script(name, options.dataset, **given)


def train(name: str, options: Options) -> dict:
    """The row of a training: its `curve` has a validation an entry, the steps before it, and accuracy and 95 % interval
    in each way."""
    training = begin(name, options)
    curve, done, seconds, due = [], 0, 0.0, 20
    while True:
        while done < min(due, training.budget) and seconds < 60 * options.minutes:
            seconds += seconds_of(training.step, training.device)
            done += 1
        due = math.ceil(done * (1 + options.eval_growth))
        found = {way: mean_ci95(accuracies) for way, accuracies in training.validate().items()}
        curve.append({"step": done, **found})
        said = ", ".join(f"{way} {accuracy:.4f} ± {ci95:.4f}" for way, (accuracy, ci95) in found.items())
        print(f"{name}: step {done}, {said}", file=sys.stderr, flush=True)
        reached = all(accuracy >= options.until for accuracy, _ in found.values())
        if reached or done == training.budget or seconds >= 60 * options.minutes:
            return {"algorithm": name, "budget": training.budget, "curve": curve, **origin(options.device)}


def seconds_to(level: float, way: str, curve: list[dict]) -> str:
    """Of training, until the first validation that reached the accuracy, or `> s` where none did in s seconds."""
    seconds = [at["seconds"] for at in curve if at[way][0] >= level]
    return f"{seconds[0]:.0f}" if seconds else f"> {curve[-1]['seconds']:.0f}"


def as_table(rows: list[dict], times: list[dict], options: Options) -> str:
    """times: rows of benchmarks/steps.py, one for each row with a curve."""
    heads = ["training", "ms a step", *(f"seconds to {level:.2f}" for level in options.levels), "steps"]
    heads += ["seconds", "accuracy at the end"]
    time_of = {time["algorithm"]: time for time in times}
    shown = []
    for row in rows:
        if "reason" in row:
            shown.append([row["algorithm"], row["reason"], *[""] * (len(heads) - 2)])
            continue
        time = time_of[row["algorithm"]]
        halved = time["options"]["half_size"] * row["budget"]
        curve = [at | {"seconds": seconds_until(at["step"], halved, time)} for at in row["curve"]]
        end = curve[-1]
        ways = [way for way in ("inductive", "transductive") if way in end]
        waits = [" · ".join(seconds_to(level, way, curve) for way in ways) for level in options.levels]
        accuracies = " · ".join("{:.4f} ± {:.4f} {}".format(*end[way], way) for way in ways)
        ended = [f"{end['step']:,}", f"{end['seconds']:.0f}", accuracies]
        shown.append([row["algorithm"], f"{time['ms']:.0f}", *waits, *ended])
    about = f"{options.dataset}, 5-way {options.shots}-shot: seconds of training until a validation of "
    about += f"{options.val_episodes} episodes, made whenever the steps have grown by {options.eval_growth:.0%}, first "
    about += "reached an accuracy in the ways that stand at the end (± 95 % interval). Seconds are steps times what a "
    about += (
        f"step takes. A training ended at {options.until:g}, with its budget, or after {options.minutes:g} minutes."
    )
    return f"{about}\n\n{markdown(heads, shown)}"


def trained(options: Options, path: Path) -> list[dict]:
    """The rows that the file at `path` has of trainings with these options, and those of the trainings that it lacks,
    each written when it is done."""
    differ = ("algorithms", "levels", "out", "data_dir", "turns")
    asked = {key: value for key, value in asdict(options).items() if key not in differ}
    asked = json.loads(json.dumps(asked))  # lists for tuples, as when read back
    before = json.loads(path.read_text()) if path.exists() else {}
    rows = {row["algorithm"]: row for row in before["rows"]} if before.get("options") == asked else {}
    for name in options.algorithms:
        if "curve" in rows.get(name, ()):
            continue
        if name == PEER and importlib.util.find_spec(PEER) is None:
            rows[name] = {"algorithm": PEER, "reason": "not run: it isn't installed (benchmarks/learn2learn.sh)"}
        else:
            rows[name] = in_own_process(train, name, options)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"options": asked, "rows": list(rows.values())}, indent=1))
    return list(rows.values())


def main(options: Options) -> None:
    name = f"beside-{options.dataset}-5w{options.shots}s"
    rows = trained(options, options.out / f"{name}.json")
    say_if_busy()
    names = tuple(row["algorithm"] for row in rows if "curve" in row)
    of_data = {key: getattr(options, key) for key in ("dataset", "data_dir", "device", "turns")}
    times = steps.measure(options.shots, steps.Options(**of_data, algorithms=names))
    content = json.loads((options.out / f"{name}.json").read_text()) | {"times": times}
    table = as_table(rows, times, options)
    save(options.out, name, content, table, options.device)
    print(table)


if __name__ == "__main__":
    start(main, Options)
