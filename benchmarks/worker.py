"""Pieces of work in processes of their own, which take turns.

So what is compared shares the machine's moments, and no process has another's allocator settings.
"""

import os
import re
import statistics
import time
from collections.abc import Callable

from benchmarks import own_process
from benchmarks.problems import Work
from common import meters

step = None  # of the piece of work that this process has


def begin(piece: Callable[[], Work]) -> dict:
    """Make this process's work; what is known of it."""
    global step
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # libraries' messages and warnings
    os.dup2(nowhere, 2)
    before, start = meters.resident_mib(), time.perf_counter()
    step, info = piece()
    if "episodes" in info:
        step()
        info["start_ms"] = 1e3 * (time.perf_counter() - start)
        info["mib"] = meters.resident_mib() - before
    return info


def seconds_of_step(least: float) -> float:
    """Of one step of the work, or the mean of as many as fit into `least` seconds, after one that isn't counted."""
    if least:
        step()
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() - start < least:
        step()
        count += 1
    return (time.perf_counter() - start) / count


class Worker:
    """A process of a piece of work: what is known of it, and the seconds of its turns, or the `error` that ended it."""

    def __init__(self, piece: Callable[[], Work], least: float = 0.0):
        self.process, self.least = own_process(), least
        self.seconds, self.error = [], None
        self.info = self._answer(begin, piece) or {}

    def _answer(self, function: Callable, given: object) -> dict | float | None:
        try:
            return self.process.submit(function, given).result()
        except Exception as error:  # of a library, or that the process was killed
            text = f"{type(error).__name__}: {error}".splitlines()[-1]
            self.error = re.sub(r" \(/[^)]*\)", "", text)[:160]  # without a library's path here
            self.process.shutdown()  # its memory is for the others
            return None

    def turn(self) -> None:
        if self.error is None:
            time.sleep(0.02)  # the threads of the turn before wait for more work for some milliseconds, at full speed
            self.seconds.append(self._answer(seconds_of_step, self.least))

    @property
    def unit(self) -> str:
        return "episodes/s" if "episodes" in self.info else "ms"

    @property
    def amount(self) -> float:
        """In the unit, the median of its turns."""
        seconds = statistics.median(self.seconds)
        return self.info["episodes"] / seconds if "episodes" in self.info else 1e3 * seconds


def side_by_side(pieces: dict, turns: int, warmup: int, least: float = 0.0) -> dict:
    """Workers by the same names, after so many rounds of turns that don't count and that do, each beginning with
    another; a failed one has an `error` instead of seconds."""
    workers = {}
    try:
        for name, piece in pieces.items():  # one starts after the other
            workers[name] = Worker(piece, least)
        order = list(workers.values())
        for _ in range(warmup + turns):
            for worker in order:
                worker.turn()
            order = order[1:] + order[:1]
    finally:
        for worker in workers.values():
            worker.process.shutdown()
    for worker in workers.values():
        worker.seconds = [] if worker.error else worker.seconds[warmup:]
    return workers
