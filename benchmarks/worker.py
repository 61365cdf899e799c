"""Pieces of work in processes of their own, which take turns.

So what is compared shares the machine's moments, and no process has another's allocator settings.
"""

import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from benchmarks.problems import Work
from common import meters

LIMIT = 60  # seconds that a turn may take


def serve(connection: Connection, piece: Callable[[], Work], least: float) -> None:
    """Send what is known of the work, or an exception's text; then, at each message, the seconds that the work takes:
    once, or as often as fits into `least` seconds, whose average is sent, after once that isn't counted."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # libraries' messages and warnings
    os.dup2(nowhere, 2)
    try:
        before, start = meters.resident_mib(), time.perf_counter()
        step, info = piece()
        if "episodes" in info:
            step()
            info["start_ms"] = 1e3 * (time.perf_counter() - start)
            info["mib"] = meters.resident_mib() - before
        connection.send(info)
        while True:
            connection.recv()
            if least:
                step()
            start, count = time.perf_counter(), 0
            while not count or time.perf_counter() - start < least:
                step()
                count += 1
            connection.send((time.perf_counter() - start) / count)
    except (EOFError, ConnectionError):
        pass  # no more turns
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


class Worker:
    """A process of a piece of work: what is known of it, and the seconds of its turns, or the `error` that ended it."""

    def __init__(self, piece: Callable[[], Work], least: float = 0.0):
        self.info, self.seconds, self.error = {}, [], None
        spawn = multiprocessing.get_context("spawn")  # a new Python, with nothing of this one's
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, piece, least))
        self.process.start()
        theirs.close()
        self.info = self._answer(10 * LIMIT) or {}

    def _answer(self, limit: float) -> dict | float | None:
        try:
            answer = self.connection.recv() if self.connection.poll(limit) else f"no answer in {limit:.0f} s"
        except (EOFError, ConnectionError):
            self.process.join()
            answer = f"ended with status {self.process.exitcode}, perhaps for want of memory"
        if not isinstance(answer, str):
            return answer
        self.error = re.sub(r" \(/[^)]*\)", "", answer.splitlines()[-1])[:160]  # without a library's path here
        return None

    def turn(self) -> None:
        if self.error is None:
            time.sleep(0.02)  # the threads of the turn before wait for more work for some milliseconds, at full speed
            try:
                self.connection.send("turn")
            except ConnectionError:
                pass  # and so there is no answer
            self.seconds.append(self._answer(LIMIT))

    def close(self) -> None:
        self.connection.close()  # at which it ends, and its own processes with it
        self.process.join(5)
        self.process.kill()
        self.process.join()

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
            worker.close()
    for worker in workers.values():
        worker.seconds = [] if worker.error else worker.seconds[warmup:]
    return workers
