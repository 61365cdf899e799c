"""Pictures of a run's errors: distributions, the worst episodes and the worst images, and confusion (PNG)."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from reports.drawing import plain, png
from reports.errors import LOW, Outcomes, confusion, of_pictures

RIGHT, WRONG = "#0072B2", "#D55E00"  # told apart by the colour-blind, and by the cross in print
HEIGHT = 1.22  # of a row of pictures, whose width is 1


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
    columns, rows = most_support + most_queries, outcomes.ways
    drawing, panels = plt.subplots(
        len(chosen), 1, figsize=(columns * 1.1, len(chosen) * (1.3 * rows + 0.4)), squeeze=False
    )
    for axes, e in zip(panels.flat, chosen):
        canvas(axes, columns + 0.4, rows)
        axes.set_title(
            f"episode {e}: accuracy {outcomes.right[e].mean():.2f}; support left, queries right", fontsize=11
        )
        for label in range(rows):
            name = f"{letter(label)}: {short(outcomes.names[outcomes.classes[e, label]])}"
            support = outcomes.support_rows[e][outcomes.support_labels[e] == label][:most_support]
            queries = np.flatnonzero(outcomes.query_labels[e] == label)[:most_queries]
            for column, picture in enumerate(support):
                place(axes, outcomes.images[picture], column, label, name if column == 0 else "")
            for column, q in enumerate(queries):
                right, taken = outcomes.right[e, q], letter(outcomes.predicted[e, q])
                said, colour = f"{'✓' if right else '✗'} {taken}", RIGHT if right else WRONG
                picture = outcomes.images[outcomes.query_rows[e, q]]
                place(axes, picture, most_support + 0.4 + column, label, said, colour)
    drawing.tight_layout()
    return png(drawing)


def worst_pictures(outcomes: Outcomes, shown: int) -> bytes:
    """The pictures that were named wrongest: each left, then a support picture of every class of an episode in which it
    was wrong, its own class and the one that it was taken for marked."""
    rows, accuracy, count = of_pictures(outcomes)
    chosen = np.lexsort((-count, accuracy))[:shown]
    columns = 1 + outcomes.ways
    drawing, axes = plt.subplots(figsize=(1.6 * columns, 1.9 * len(chosen)))
    canvas(axes, columns + 0.2, len(chosen))
    for line, i in enumerate(chosen):
        episodes, queries = np.nonzero(outcomes.query_rows == rows[i])
        wrong = np.flatnonzero(~outcomes.right[episodes, queries])
        e, q = (places[wrong[0] if len(wrong) else 0] for places in (episodes, queries))
        own, taken = outcomes.query_labels[e, q], outcomes.predicted[e, q]
        name = short(outcomes.names[outcomes.classes[e, own]])
        place(axes, outcomes.images[rows[i]], 0, line, f"{name}\nright {accuracy[i]:.2f} of {count[i]}")
        for label in range(outcomes.ways):
            said = "its class" if label == own else "taken for" if label == taken else ""
            colour = {"its class": RIGHT, "taken for": WRONG}.get(said)
            name = f"{short(outcomes.names[outcomes.classes[e, label]])}\n{said}"
            picture = outcomes.images[outcomes.support_rows[e][outcomes.support_labels[e] == label][0]]
            place(axes, picture, label + 1.2, line, name, colour)
    drawing.tight_layout()
    return png(drawing)


def canvas(axes: Axes, columns: float, rows: int) -> None:
    """Room for so many pictures, each 1 wide with some words above it; the first row is the upper one."""
    axes.set(xlim=(0, columns), ylim=(HEIGHT * rows, 0), aspect="equal")
    axes.axis("off")


def place(axes: Axes, image: np.ndarray, column: float, row: int, words: str, colour: str | None = None) -> None:
    """A picture (C, H, W) uint8, grey or in colours, on a canvas: words above it, and a frame if it has a colour."""
    left, top = column + 0.06, HEIGHT * row + HEIGHT - 0.92
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(left, left + 0.88, top + 0.88, top))
    axes.text(left, top - 0.04, words, fontsize=8, va="bottom", color=colour or "black")
    if colour:
        axes.add_patch(plt.Rectangle((left, top), 0.88, 0.88, fill=False, edgecolor=colour, linewidth=2.5))


def letter(label: int) -> str:
    return chr(ord("A") + label) if label < 26 else str(label)


def short(name: str, most: int = 19) -> str:
    """A class's name without its middle, if it is long: alphabets and synsets are told by the beginning."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
