"""Label pictures of your own: a trained run adapts to a few that you have labelled, and names the class of the others.

    python predict.py runs/convex_imaml-glyphs-5w1s-s0 --support FOLDER_OF_CLASSES --query FOLDER

--support holds a folder for each class, of one or more pictures; --query any pictures, in folders or not. What comes
out is predictions.csv, sheet.html and sheet.png, in --out. docs/predict.md has an example.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from common import meters
from common.command import command, read
from common.shards import UsageError
from data_prep.files import a_few, kinds_of
from predictions import folders, sheet, task, trained
from predictions.labelled import Labelled


@dataclass
class Options:
    run: Annotated[Path, tyro.conf.Positional]
    """A run folder of any script, a released one under results/, or a file that --save wrote."""
    query: Path
    """The pictures to label: a folder, with folders in it or without, or one picture."""
    support: Path | None = None
    """A folder that holds a folder for each class, with one or more pictures. A file of --save has its own."""
    out: Path = Path("predicted")
    """The folder for predictions.csv, sheet.html and sheet.png, which are overwritten."""
    save: Path | None = None
    """A file to keep the task in, so that it can be given in place of the run and --support."""
    invert: bool = False
    """Black and white of all pictures change places. Otherwise ink on white paper is detected, where a run needs it."""
    as_is: bool = False
    """Black and white stay as they are, whatever would be detected."""
    views: int | None = None
    """The number of views of each picture, where the script averages over several; by default as many as the run had.
    With one it is done sooner, and a little less accurate."""
    data_dir: Path | None = None
    """The folder of the data sets, for runs older than the description in their config.json; by default the run's."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


def what_is_shown(options: Options) -> tuple[trained.Trained, folders.Support]:
    """The run and the support folder that are named, before a picture is read."""
    if options.support is None:
        raise UsageError("--support is missing: a folder that holds a folder of pictures for each class")
    if options.support.is_file():
        raise UsageError(
            f"--support {options.support}: a file, expected a folder; what --save wrote is given in place of the run: "
            f"python predict.py {options.support} --query {options.query}"
        )
    support = folders.support_in(options.support)
    return trained.read(options.run, options.data_dir), support


def main() -> None:
    options = read(Options, __doc__.partition("\n\n")[0])
    if options.invert and options.as_is:
        raise UsageError("--invert --as-is: expected one of them, as one is the other's opposite")
    asked = task.load(options.run) if options.run.is_file() else None
    if asked and options.support:
        raise UsageError(f"--support {options.support}: {options.run} has its own support set; leave --support out")
    started = time.perf_counter()
    device = meters.settled_device(options.device)
    invert = True if options.invert else False if options.as_is else None
    files = folders.query_in(options.query, without=options.out)
    if asked:
        shown_files = []
        pictures = folders.Prepared(asked.trained, asked.invert if invert is None else invert)
        query = torch.from_numpy(pictures.images(files))
    else:
        run, support = what_is_shown(options)
        shown_files = support.files
        pictures = folders.Prepared(run, invert)
        shown, query = torch.from_numpy(pictures.images([*shown_files, *files])).tensor_split([len(shown_files)])
        asked = task.Task(run, support.classes, shown, torch.from_numpy(support.labels), invert)
    learner = trained.Learner(asked.trained, len(asked.classes), device, options.views)
    notes = list(pictures.notes())
    below = [folder for folder in (options.support, options.query) if folder and folder.is_dir()]
    if others := [name for folder in below for name in folders.others_below(folder, options.out)]:
        notes.append(
            f"{len(others)} files are passed over, as they are no pictures of a known kind: {kinds_of(others)}"
        )
    if (numbers := asked.labels.bincount()).max() >= 2 * numbers.min():
        notes.append(
            f"the classes have {numbers.min()} to {numbers.max()} support pictures; those of smaller classes count "
            "several times, but such a class may still be named too seldom; give all the same number"
        )
    if both := folders.in_both(shown_files, files, options.query):
        notes.append(f"{len(both)} of the query pictures are in the support set too: {a_few(both)}")
    for note in notes:
        print(f"note: {note}")
    if options.save:
        task.save(asked, options.save)

    def bar(parts):
        return tqdm(parts, desc="labelling", unit="part", leave=False, disable=None)

    labelled = Labelled(
        asked.classes,
        [folders.shown(file, options.query) for file in files],
        learner.logits(asked.support, asked.labels, query, bar).softmax(1).numpy(),
        folders.true_labels(files, options.query, asked.classes),
    )
    sheet.write(options.out, labelled, asked, query.numpy(), f"{len(files)} pictures, labelled by {options.run}")
    for line in labelled.accuracy_lines():
        print(line)
    print(
        f"{len(files)} pictures labelled, {labelled.doubtful.sum()} of them doubtful · {len(asked.labels)} support "
        f"pictures of {len(asked.classes)} classes · {time.perf_counter() - started:.1f} s · {options.out}/sheet.html"
    )


if __name__ == "__main__":
    command(main)
