"""Pictures of a run's errors: distributions, the worst episodes and the worst images, and confusion (PNG)."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from reports.drawing import plain, png
from reports.errors import LOW, Outcomes, confusion, of_pictures

RIGHT, WRONG = "#0072B2", "#D55E00"  # told apart by the colour-blind, and by the cross in print


def distributions(outcomes: Outcomes) -> bytes:
    """How accuracy is distributed over episodes, and over the pictures that were queries."""
    drawing, panels = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    _, pictures, count = of_pictures(outcomes)
    of_episodes = outcomes.right.mean(1)
    whats = (f"{len(of_episodes):,} episodes", f"{len(pictures):,} pictures, {np.median(count):.0f} queries each")
    for axes, values, what in zip(panels, (of_episodes, pictures), whats):
        axes.axvspan(0, LOW, color=WRONG, alpha=0.15, linewidth=0)
        axes.hist(values, bins=np.linspace(0, 1, 26), color=RIGHT)
        axes.axvline(values.mean(), color="black", linewidth=1)
        low = f"mean {values.mean():.3f}; below {LOW}: {(values < LOW).sum():,}"
        axes.set(xlabel="accuracy", ylabel="number", title=f"{what}\n{low}", xlim=(0, 1))
        plain(axes)
    return png(drawing)


def confusions(outcomes: Outcomes) -> bytes:
    """The share of each class's queries that were taken for each other class where an episode had both."""
    share, offered = confusion(outcomes)
    n = len(share)
    drawing, axes = plt.subplots(figsize=(0.33 * n + 2.6, 0.33 * n + 2), layout="constrained")
    shown = axes.imshow(np.where(offered > 0, share, np.nan), cmap="cividis", vmin=0)
    axes.set_xticks(range(n), outcomes.names, rotation=90, fontsize=8)
    axes.set_yticks(range(n), outcomes.names, fontsize=8)
    axes.set(xlabel="taken for", ylabel="class")
    drawing.colorbar(shown, shrink=0.8, label="share of its queries")
    return png(drawing)


def worst_episodes(outcomes: Outcomes, shown: int, most_queries: int = 6) -> bytes:
    """The episodes with the lowest accuracy: a row a class, its support left, queries right with what they were taken
    for."""
    chosen = np.argsort(outcomes.right.mean(1), kind="stable")[:shown]
    most_support = min(5, max(np.bincount(outcomes.support_labels[e]).max() for e in chosen))
    drawing = plt.figure(figsize=(10, 0.98 * outcomes.ways * len(chosen) + 0.45 * len(chosen)), layout="constrained")
    for part, e in zip(np.atleast_1d(drawing.subfigures(len(chosen), 1)), chosen):
        grid = part.subplots(outcomes.ways, most_support + most_queries, squeeze=False)
        accuracy = outcomes.right[e].mean()
        part.suptitle(f"episode {e}: accuracy {accuracy:.2f}; support left, queries right", fontsize=10)
        for label, row in enumerate(grid):
            support = outcomes.support_rows[e][outcomes.support_labels[e] == label][:most_support]
            queries = np.flatnonzero(outcomes.query_labels[e] == label)[:most_queries]
            for axes in row:
                axes.axis("off")
            name = outcomes.names[outcomes.classes[e, label]]
            row[0].set_title(f"{letter(label)}: {short(name)}", fontsize=8, loc="left")
            for axes, picture in zip(row, support):
                show(axes, outcomes.images[picture])
            for axes, q in zip(row[most_support:], queries):
                show(axes, outcomes.images[outcomes.query_rows[e, q]])
                mark(axes, outcomes.right[e, q], letter(outcomes.predicted[e, q]))
    return png(drawing)


def worst_pictures(outcomes: Outcomes, shown: int) -> bytes:
    """The pictures that were named wrongest: each left, then a support picture of every class of an episode in which it
    was wrong, its own class and the one that it was taken for marked."""
    rows, accuracy, count = of_pictures(outcomes)
    chosen = np.lexsort((-count, accuracy))[:shown]
    drawing, grid = plt.subplots(
        len(chosen), 1 + outcomes.ways, figsize=(1.7 * (1 + outcomes.ways), 1.75 * len(chosen)), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for i, line in zip(chosen, grid):
        episodes, queries = np.nonzero((outcomes.query_rows == rows[i]) & ~outcomes.right)
        for axes in line:
            axes.axis("off")
        times = "once" if count[i] == 1 else f"{count[i]} times"
        show(line[0], outcomes.images[rows[i]])
        if not len(episodes):  # it was always right
            line[0].set_title(f"asked {times}, right {accuracy[i]:.2f}", fontsize=8)
            continue
        e, q = episodes[0], queries[0]
        name = short(outcomes.names[outcomes.classes[e, outcomes.query_labels[e, q]]])
        line[0].set_title(f"{name}\nasked {times}, right {accuracy[i]:.2f}", fontsize=8)
        for label, axes in enumerate(line[1:]):
            show(axes, outcomes.images[outcomes.support_rows[e][outcomes.support_labels[e] == label][0]])
            said = {outcomes.query_labels[e, q]: "its class", outcomes.predicted[e, q]: "taken for"}.get(label, "")
            axes.set_title(f"{short(outcomes.names[outcomes.classes[e, label]])}\n{said}", fontsize=8)
            if said:
                frame(axes, RIGHT if said == "its class" else WRONG)
    return png(drawing)


def show(axes: Axes, image: np.ndarray) -> None:
    """A picture (C, H, W) uint8, grey or in colours."""
    axes.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)


def mark(axes: Axes, right: bool, predicted: str) -> None:
    """A frame, and below it what was predicted: a tick where that is right, else a cross."""
    frame(axes, RIGHT if right else WRONG)
    axes.set_title(f"{'✓' if right else '✗'} {predicted}", fontsize=8, color=RIGHT if right else WRONG, pad=2)


def frame(axes: Axes, colour: str) -> None:
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2.5)


def letter(label: int) -> str:
    return chr(ord("A") + label) if label < 26 else str(label)


def short(name: str, most: int = 22) -> str:
    """A class's name without its middle, if it is long: alphabets and synsets are told by the beginning."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
