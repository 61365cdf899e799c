"""What several tests of runs share: small settings, and what a run folder holds."""

import csv

import torch

SMALL = "--dataset toy --width 8 --tasks 4 --queries 8 --train-queries 3 --eval-every 50 --val-episodes 10"
SMALL += " --test-episodes 60 --device cpu --no-keep-memory"
TINY = f"{SMALL} --width 4 --val-episodes 2 --test-episodes 2 --eval-every 2"  # where nothing need be learned


def interrupt(monkeypatch, script, at_call, error=KeyboardInterrupt(), function="meta_step"):
    """A function of the script raises, at its call of this number: by default what Ctrl-C does."""
    whole, calls = getattr(script, function), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == at_call:
            raise error
        return whole(*arguments)

    monkeypatch.setattr(script, function, interrupted)


def rows_of(folder):
    return list(csv.DictReader(open(folder / "log.csv")))


def state_of(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)
