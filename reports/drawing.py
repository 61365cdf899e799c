"""What all pictures of a report share: names at the ends of lines, sizes for print, PNG bytes."""

import io

import matplotlib

matplotlib.use("agg")  # draws into files, wherever it runs

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from reports.methods import ALGORITHMS, Algorithm  # noqa: E402

# A copied script's lines, in the order of their names: grey, and told apart by their dashes.
OTHERS = [(1, 0), (4, 1), (1, 1), (6, 1, 1, 1)]


def style(algorithm: str, others: list[str]) -> dict:
    """Colour and dashes of an algorithm's lines; `others` are the names that aren't of the six."""
    known = ALGORITHMS.get(algorithm)
    if isinstance(known, Algorithm):
        return {"color": known.colour, "dashes": known.dashes}
    return {"color": "#777777", "dashes": OTHERS[others.index(algorithm) % len(OTHERS)]}


def name_lines(axes: Axes, ends: dict[str, tuple[float, float, str]]) -> None:
    """Write each line's name right of the axes, where the line ends at (x, y, colour), without overlaps. To be called
    when the limits are as they stay."""
    to_axes = axes.transData + axes.transAxes.inverted()
    places = {name: to_axes.transform((x, y)) for name, (x, y, _) in ends.items()}
    inches = axes.get_position().height * axes.figure.get_figheight()
    apart = 0.155 / inches  # of 9 point letters
    order = sorted(places, key=lambda name: -places[name][1])
    heights = []
    for name in order:
        heights.append(min(places[name][1], heights[-1] - apart if heights else 1.0))
    lack = apart / 2 - heights[-1] if heights and heights[-1] < apart / 2 else 0
    if lack:  # pushed out at the bottom: up again, from there
        heights[-1] += lack
        for i in range(len(heights) - 2, -1, -1):
            heights[i] = max(heights[i], heights[i + 1] + apart)
    for name, height in zip(order, heights):
        colour = ends[name][2]
        axes.annotate(
            name, places[name], (1.03, height), xycoords="axes fraction", textcoords="axes fraction", va="center",
            fontsize=9, color="black", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "relpos": (0, 0.5), "shrinkB": 0},
        )  # fmt: skip


def plain(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Figure, dpi: int = 110) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    plt.close(figure)
    return picture.getvalue()
