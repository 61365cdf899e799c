"""How much a training's meta-gradient oscillates, so that "convexity smooths the gradients" is a number."""

import numpy as np

from reports.runs import Run

WINDOW = 11  # rows of log.csv, of which there is one every 50 steps
BLOCK = 10  # rows that are drawn together, as rows beside each other aren't independent


def running_median(values: np.ndarray) -> np.ndarray:
    """Of each value and those within half a window of it, of which there are fewer at the ends; what is no number is
    left out. The window is WINDOW, or a fifth of all values where there are few."""
    half = min(WINDOW, len(values) // 5) // 2
    return np.array([np.nanmedian(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def deviations(run: Run) -> np.ndarray:
    """Of the logarithm of the meta-gradient's norm from its running median, a value a row of log.csv.

    A row's norm is the mean over its steps, so this is what is left of the oscillation over 50 of them.
    """
    logarithm = np.log(np.maximum(run.column("gradient_norm"), 1e-30))
    return (logarithm - running_median(logarithm))[np.isfinite(logarithm)]


def within_rows(run: Run) -> np.ndarray:
    """The standard deviation of the logarithm of the norm over each row's single steps, where log.csv has it."""
    column = run.column("gradient_log_sd")
    return column[np.isfinite(column)]


def root_mean_square(values: np.ndarray, draws: int = 2000) -> tuple[float, float, float] | None:
    """Of values in the order of training: (it, and the 95 % interval of a bootstrap over blocks of BLOCK of them, from
    a fixed seed); None for fewer than three blocks."""
    blocks = len(values) // BLOCK
    if blocks < 3:
        return None
    squares = np.square(values[: blocks * BLOCK]).reshape(blocks, BLOCK).mean(1)
    drawn = np.random.default_rng(0).integers(0, blocks, (draws, blocks))
    low, high = np.percentile(np.sqrt(squares[drawn].mean(1)), (2.5, 97.5))
    return float(np.sqrt(squares.mean())), float(low), float(high)
