"""Draw a support and a query folder from the characters of `glyphs` that no run has trained on.

    python -m predictions.example FOLDER

The pictures are black ink on white paper, as one would draw them. docs/example was made so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from common.command import command, read
from common.shards import ROOT, UsageError, read_shard


@dataclass
class Options:
    folder: Annotated[Path, tyro.conf.Positional]
    """Gets the folders support and query, each with a folder for every class."""
    ways: int = 5
    """The number of classes."""
    shots: int = 3
    """The most support pictures of a class: the first class has one, the second two, and so on, and then again."""
    queries: int = 5
    """The number of query pictures of a class."""
    seed: int = 0
    """Says which classes and pictures."""
    data_dir: Path = ROOT / "data"
    """The folder that holds the data set glyphs."""


def main() -> None:
    options = read(Options, __doc__.partition("\n\n")[0])
    images, starts, names, *_ = read_shard(options.data_dir / "glyphs" / "test.h5")
    most, smallest = options.shots + options.queries, int(np.diff(starts).min())
    if not 2 <= options.ways <= len(names) or min(options.shots, options.queries) < 1 or most > smallest:
        raise UsageError(
            f"--ways {options.ways} --shots {options.shots} --queries {options.queries}: expected 2 to {len(names)} "
            f"classes of 1 or more shots and queries, {smallest} together at most"
        )
    if options.folder.exists() and any(options.folder.iterdir()):
        raise UsageError(f"{options.folder} isn't empty; name a new folder")
    rng = np.random.default_rng(options.seed)
    for number, c in enumerate(sorted(rng.choice(len(names), options.ways, replace=False))):
        rows = starts[c] + rng.choice(starts[c + 1] - starts[c], most, replace=False)
        shots = 1 + number % options.shots
        parts = {"support": rows[:shots], "query": rows[options.shots :]}
        class_name = names[c].split(" ", 1)[1].lower().replace(" ", "-")  # of "Georgian/U+10D0 GEORGIAN LETTER AN"
        for part, chosen in parts.items():
            folder = options.folder / part / class_name
            folder.mkdir(parents=True)
            for i, row in enumerate(chosen, 1):
                Image.fromarray(255 - images[row, 0]).save(folder / f"{i}.png", optimize=True)
    print(options.folder)


if __name__ == "__main__":
    command(main)
