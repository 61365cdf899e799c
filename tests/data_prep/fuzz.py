"""Damaged and forged files for everything that build.py and the loader read: python -m tests.data_prep.fuzz

Each file is read in another process. A fault is a traceback, an answer other than one line, a hang, more than 2 GiB, a
file outside the output folder, or a pickle that has run code. Prints how many files of each kind were tried, were
built, and were refused, and each fault; its exit status is 1 where there is one.
"""

import argparse
import contextlib
import io
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from data_prep import build, miniimagenet, named
from tests.data_prep import miniimagenet_layouts, mutations

SETS = 3  # of each kind, that differ
HANG = 30  # seconds without an answer
MEMORY = 2 << 30  # bytes
KINDS = {
    "built set": (mutations.pictures, mutations.forged_hdf5),
    "pictures": (mutations.pictures, mutations.forged_pictures),
    "tables": (mutations.tables, mutations.forged_tables),
    "csv": (mutations.csv_files, mutations.forged_csv),
    "class lists": (mutations.class_lists, mutations.forged_lists),
    "pickles": (mutations.pickles, mutations.forged_pickles),
    "pickled PNG": (mutations.encoded_pickles, mutations.forged_pickles),
    "npz": (mutations.npz_files, mutations.forged_npz),
    "zip": (mutations.zips, mutations.forged_zips),
    "tar": (mutations.tars, mutations.forged_tars),
    "HDF5": (mutations.torchmeta, mutations.forged_hdf5),
}


class Sandbox:
    """Raw sets of one kind, of which a file is replaced by a damaged one, built, and put back."""

    def __init__(self, kind: str, seed: int, top: Path):
        self.kind, self.seed, self.top = kind, seed, top
        self.folder = top / "a" / "b"  # so that what climbs out is seen
        self.data, self.mark = self.folder / "data", top / "it-ran"
        self.sets = []
        for i in range(SETS):
            raw = self.folder / f"raw{i}"
            raw.parent.mkdir(parents=True, exist_ok=True)
            options, files = KINDS[kind][0](raw, random.Random(seed + i))
            if kind == "built set":
                assert self._build([*options, "--raw", str(raw)]) == 0
                shutil.rmtree(raw)
                (self.data / "x").rename(raw)
                files = sorted(raw.glob("*.h5"))
            self.sets.append((raw, options, files))

    def run(self, number: int) -> str:
        """ "built" or "refused"; raises AssertionError for an answer other than one line, or a file elsewhere."""
        rng = random.Random(f"{number} {self.seed}")
        turn = number // 3  # of three files one is forged, and of each set both kinds are tried
        raw, options, files = self.sets[turn % SETS]
        original = file = rng.choice(files)
        content = file.read_bytes()
        forged = KINDS[self.kind][1](rng, self.mark) if number % 3 == 0 else []
        if forged:
            suffix, make = forged[turn % len(forged)]
            damaged = make()
            file = file.with_suffix(suffix or file.suffix)
        else:
            damaged = mutations.damaged(content, rng)
        original.unlink()
        file.write_bytes(damaged)
        try:
            if self.kind == "built set":
                status = self._load(file)
            else:
                status = self._build([*options, "--raw", str(file if self.kind in ("zip", "tar") else raw)])
        finally:
            file.unlink()
            original.write_bytes(content)
            shutil.rmtree(self.data, ignore_errors=True)
        assert not self.mark.exists(), "it ran, or left its folder"
        there = {path.name for place in (self.top, self.top / "a", self.folder) for path in place.iterdir()}
        assert there == {"a", "b", *(raw.name for raw, _, _ in self.sets)}, f"left {there}"
        return "built" if status == 0 else "refused"

    def _build(self, arguments: list[str]) -> int:
        said, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(error):
            status = build.main([*arguments, "--data-dir", str(self.data)])
        lines = error.getvalue()
        assert (
            status == 0 and not lines or status in (1, 2) and lines.startswith("error: ") and lines.count("\n") == 1
        ), f"status {status}: {lines}"
        return status

    def _load(self, file: Path) -> int:
        from common.episodes import EpisodeLoader  # here: torch takes seconds, and only this kind needs it
        from common.shards import UsageError

        try:
            loader = EpisodeLoader(file, 1, 1, 1, 1)
            assert loader.sample().images.isfinite().all()
            return 0
        except UsageError as error:
            assert str(error)
            return 2


def work(kind: str, numbers: list[int], seed: int, folder: str, answers) -> None:
    """Run cases one after the other, and put (number, outcome) into `answers` before and after each."""
    for name, known in named.SETS.items():
        named.SETS[name] = known._replace(side=mutations.SIDE, classes=(2, 1, 1))
    miniimagenet.known_split = lambda: miniimagenet_layouts.WNIDS
    miniimagenet.PER_CLASS = len(miniimagenet_layouts.NUMBERS)
    sandbox = Sandbox(kind, seed, Path(folder))
    for number in numbers:
        answers.put((number, None))
        try:
            outcome = sandbox.run(number)
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MEMORY:
                outcome = "fault: more than 2 GiB of memory"
        except Exception:
            outcome = f"fault: {traceback.format_exc()}"
        answers.put((number, outcome))


def fuzz(kind: str, count: int, seed: int) -> tuple[Counter, list[str]]:
    """How many files were built or refused; and the faults."""
    outcomes, faults = Counter(), []
    context = multiprocessing.get_context("fork")
    left = list(range(count))
    while left:
        with tempfile.TemporaryDirectory() as folder:
            answers = context.Queue()
            worker = context.Process(target=work, args=(kind, left, seed, folder, answers))
            worker.start()
            number, answered = left[0], time.monotonic()
            while left:
                try:
                    number, outcome = answers.get(timeout=0.2)
                    answered = time.monotonic()
                except Exception:  # queue.Empty
                    if worker.is_alive() and time.monotonic() - answered < HANG:
                        continue
                    outcome = f"fault: {'hangs' if worker.is_alive() else f'dies with {worker.exitcode}'}"
                if outcome is None:
                    continue
                left.remove(number)
                outcomes[outcome.partition(":")[0]] += 1
                if outcome.startswith("fault"):
                    faults.append(f"{kind} {number}: {outcome}")
                    if "hangs" in outcome or "dies" in outcome or "memory" in outcome:
                        break
            worker.kill()
            worker.join()
    return outcomes, faults


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    options = parser.parse_args(arguments)
    found = []
    for kind in options.kinds:
        started = time.monotonic()
        outcomes, faults = fuzz(kind, options.count, options.seed)
        counts = ", ".join(f"{outcomes[name]} {name}" for name in ("built", "refused", "fault"))
        print(f"{kind:12} {outcomes.total():4} files: {counts}, {time.monotonic() - started:.1f} s", flush=True)
        found += faults
    for fault in found:
        print(fault)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
