"""The parts of the page: each claim of the paper beside what our runs say of it."""

from pathlib import Path

import numpy as np

from common.shards import ROOT, UsageError
from reports import curves, errors, pictures, tables
from reports.page import Page
from reports.runs import Run, Task, task_name
from reports.shown import shown_trainings
from reports.tables import Table
from reports.times import Times

MOST_CLASSES = 60  # of a confusion matrix that is drawn


def training(page: Page, task: Task, of_task: dict[str, list[Run]], times: Times) -> None:
    """The figure of one data set and number of shots, time to accuracy, and the gradients' oscillation."""
    page.heading(f"Training: {task_name(task)}")
    seeds = {len(group) for group in of_task.values()} != {1}
    band = "Bands are the 95 % interval of a validation's episodes, which takes them for independent"
    band += "; of several seeds, the least and the most." if seeds else "."
    caption = f"Loss and norm are running medians. {band} {times.of(run for g in of_task.values() for run in g)}"
    page.figure(f"curves-{file_name(task)}", curves.figure(task, of_task, times), caption)
    page.heading("Time to accuracy", 3)
    page.say(
        "The paper says that the convex methods train up to 10 times faster than MAML. These are the minutes of "
        "training until validation is first at 95 % of a method's own last, and as high as MAML's last; of several "
        "seeds, the first one's."
    )
    page.table(tables.time_to_accuracy(of_task, times))
    page.heading("Oscillation of the meta-gradient", 3)
    page.say(
        "The paper says that convexity smooths the gradients. These are standard deviations of the logarithm of the "
        "meta-gradient's norm, so that its size doesn't count, with 95 % intervals: the smaller, the smoother."
    )
    page.table(tables.smoothness(of_task))


def table_2(page: Page, tests: dict[Task, dict[str, list[Run]]], times: Times) -> None:
    page.heading("Table 2: test accuracy")
    page.say(
        "Inductive: every query image is judged by itself. Transductive: batch norm has the statistics of the query "
        "images. Intervals are of 95 %, over episodes. Bold is what lies above all others with its whole interval. The "
        "column “above the paper” says whether our whole inductive interval lies above the paper's number."
    )
    for task, of_task in tests.items():
        page.heading(task_name(task), 3)
        page.table(tables.table_2(task, of_task, times))
        first = [group[0] for group in of_task.values()]
        page.say(tables.not_run(first) + times.of(first))


def like_for_like(page: Page, runs: list[Run], times: Times) -> None:
    times = times.together(runs)
    page.heading("Like for like")
    page.say(
        "The methods' settings differ in more than the inner loop. These runs have one network, the same disjoint "
        "tasks, as many images a step, no augmentation and one view of a test image: what the inner loop alone brings."
    )
    for task, of_task in shown_trainings(runs, varied=True).items():
        of_task = {algorithm: [run for run in group if run.result] for algorithm, group in of_task.items()}
        of_task = {algorithm: group for algorithm, group in of_task.items() if group}
        if of_task:
            table, said = tables.like_for_like(task, of_task, times)
            page.heading(task_name(task), 3)
            page.table(table)
            first = [group[0] for group in of_task.values()]
            page.say(f"{said} {tables.not_run(first)}{times.of(first)}")
            caption = f"Like for like: {task_name(task)}."
            page.figure(f"like-for-like-{file_name(task)}", curves.figure(task, of_task, times), caption)


def wrong(page: Page, task: Task, of_task: dict[str, list[Run]], runs: list[Run], data_dir: Path | None) -> None:
    """Section 4.4 of the paper: numbers of every method, and pictures of the first."""
    read, lacking = {}, {}
    for group in of_task.values():
        run = with_episodes(group[0], runs)
        try:
            read[run.method] = run, errors.read(run, data_dir or ROOT / run.options["data_dir"])
        except UsageError as error:
            lacking[run.method] = str(error)
    page.heading(f"Errors: {task_name(task)}")
    if lacking:
        page.say(f"Not shown of {', '.join(lacking)}, as of the first {next(iter(lacking.values()))}.")
    if not read:
        return
    what = "mean colour"
    if next(iter(read.values()))[1].images.shape[1] == 1:
        what = "amount of ink (mean brightness)"
    page.say(
        "The paper guesses that pictures are named by their colour. Of each wrong prediction this asks whether the "
        f"support of the predicted class lies nearer to the query in {what} than that of its own class. By chance is "
        "what a wrong class that is drawn at random gives for the same queries. “More” is the difference: where it is "
        "above 0 with its whole 95 % interval (of episodes drawn anew), errors go with colour. “Alone” is the accuracy "
        "of naming every query by that alone. “Low” is the share of episodes, and of pictures, below 0.2."
    )
    page.table(colour(read))
    run, outcomes = next(iter(read.values()))
    which = f"{run.method} ({run.name})"
    name = f"{file_name(task)}-{run.algorithm}"
    page.figure(f"accuracy-{name}", pictures.distributions(outcomes), f"Accuracy of {which}.")
    low = int((outcomes.right.mean(1) < errors.LOW).sum())
    none = "" if low else f" None is below {errors.LOW}; these are the lowest."
    caption = f"Figure 6: the worst episodes of {which}. A tick or a cross says what each query was taken for.{none}"
    page.figure(f"episodes-{name}", pictures.worst_episodes(outcomes, min(3, max(low, 2))), caption)
    caption = f"The pictures that {which} named wrongest, each with a support picture of every class on offer."
    page.figure(f"pictures-{name}", pictures.worst_pictures(outcomes, 8), caption)
    page.heading(f"Classes of {which}", 3)
    if len(outcomes.names) <= MOST_CLASSES:
        caption = "How often a query of a class was taken for another, where an episode had both."
        page.figure(f"confusion-{name}", pictures.confusions(outcomes), caption)
    pairs = [[a, b, f"{share:.3f}", str(n)] for a, b, share, n in errors.confused_pairs(outcomes, 15)]
    page.table(Table(["class", "taken for", "share of queries", "of"], pairs))
    every = errors.of_classes(outcomes)
    shown = every if len(every) <= MOST_CLASSES else every[:20]
    page.say("Accuracy of every class:" if shown is every else f"The 20 of {len(every):,} classes that do worst:")
    page.table(Table(["class", "accuracy", "queries"], [[c, f"{share:.3f}", str(n)] for c, share, n in shown]))


def colour(read: dict[str, tuple[Run, errors.Outcomes]]) -> Table:
    """Of each method, of all errors and of those on pictures that are nearly always wrong."""
    rows = []
    for method, (_, outcomes) in read.items():
        pictures_rows, share, count = errors.of_pictures(outcomes)
        low_pictures = pictures_rows[share < errors.LOW]
        low = (outcomes.right.mean(1) < errors.LOW).mean(), len(low_pictures) / len(pictures_rows)
        wanted = {"all": None, f"on pictures below {errors.LOW}": np.isin(outcomes.query_rows, low_pictures)}
        for which, chosen in wanted.items():
            found = errors.colour(outcomes, chosen)
            if found.errors:
                shares = ["{:.3f} ({:.3f} to {:.3f})".format(*part) for part in (found.nearer, found.by_chance)]
                shares += ["{:+.3f} ({:+.3f} to {:+.3f})".format(*found.more), "{:.3f}".format(found.alone[0])]
                rows.append([method, which, f"{found.errors:,}", *shares, *(f"{part:.4f}" for part in low)])
    heads = ["method", "errors", "number", "predicted class nearer", "by chance", "more", "alone"]
    return Table([*heads, "low episodes", "low pictures"], rows)


def with_episodes(run: Run, runs: list[Run]) -> Run:
    """The run, or where its folder has no episodes.npz another test of it that is the same and has them."""
    if (run.folder / "episodes.npz").exists():
        return run
    for other in runs:
        same = (other.alike, other.seed, other.differing) == (run.alike, run.seed, run.differing)
        if same and other.result and other.tested_on == run.tested_on and (other.folder / "episodes.npz").exists():
            return other
    return run


def file_name(task: Task) -> str:
    dataset, ways, shots = task
    return f"{dataset}-{ways}w{shots}s"
