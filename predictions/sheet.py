"""The sheet: support pictures on top, labelled pictures below, as one HTML page and as a picture (PNG)."""

import base64
import html
import io
import warnings
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from common.folder import made, write_whole
from predictions.labelled import DOUBTFUL, Labelled
from predictions.task import Task
from reports.drawing import png
from reports.pictures import RIGHT, WRONG, canvas, place, short

COLUMNS = 10
GAP = 0.5  # rows between support and query
MOST_SHOWN = 100  # pictures in the PNG; the page has all
CLASSES_SHOWN = 40  # in the PNG
SUPPORT_SHOWN = 20  # pictures of a class in either
DOUBT = "#E69F00"
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; max-width: 1100px; margin: 1.5em auto; padding: 0 1em; color: #111; }
.row { display: flex; flex-wrap: wrap; gap: .4em; margin: .3em 0 1em; }
figure { margin: 0; width: 92px; overflow: hidden; } img { width: 84px; height: 84px; border: 4px solid #ddd; }
img { image-rendering: pixelated; } figcaption { font-size: 11px; overflow-wrap: anywhere; }
.right img { border-color: #0072B2; } .doubtful img { border-color: #E69F00; } .wrong img { border-color: #D55E00; }
h3 { margin: .2em 0; font-size: 1em; }
"""


def write(folder: Path, labelled: Labelled, task: Task, query: np.ndarray, about: str) -> None:
    """predictions.csv, sheet.html and sheet.png in a folder that is made if it isn't there. query (Q, C, H, W) uint8.

    Raises DiskError, or UsageError where there can be no such folder.
    """
    made(folder)
    support, labels = task.support.numpy(), task.labels.numpy()
    write_whole(folder / "predictions.csv", labelled.as_csv())
    write_whole(folder / "sheet.html", page(labelled, support, labels, query, about))
    write_whole(folder / "sheet.png", picture(labelled, support, labels, query))


def page(labelled: Labelled, support: np.ndarray, labels: np.ndarray, query: np.ndarray, about: str) -> str:
    """One HTML page that needs no other file. support (S, C, H, W) with labels (S,), query (Q, C, H, W), uint8."""
    parts = ["<h2>Support: what was shown</h2>"]
    for label, name in enumerate(labelled.classes):
        own = support[labels == label]
        more = f", {SUPPORT_SHOWN} of {len(own)} pictures" if len(own) > SUPPORT_SHOWN else ""
        pictures = "".join(f"<figure>{_img(image, name)}</figure>" for image in own[:SUPPORT_SHOWN])
        parts.append(f'<h3>{html.escape(name)}{more}</h3><div class="row">{pictures}</div>')
    parts.append(f"<h2>What was asked</h2><p>{html.escape(_legend(labelled))}</p>")
    figures = []
    for i, image in enumerate(query):
        caption = f"<b>{html.escape(labelled.classes[labelled.predicted[i]])}</b> {_percent(labelled, i)}"
        caption += f"<br>{html.escape(labelled.files[i])}"
        figures.append(
            f'<figure class="{" ".join(_marks(labelled, i))}">{_img(image, labelled.files[i])}'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    parts.append(f'<div class="row">{"".join(figures)}</div>')
    if lines := labelled.accuracy_lines():
        parts.append(f"<pre>{html.escape(chr(10).join(lines))}</pre>")
    head = f'<meta charset="utf-8"><title>{html.escape(about)}</title><style>{STYLE}</style>'
    body = f"<h1>{html.escape(about)}</h1>\n" + "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def picture(labelled: Labelled, support: np.ndarray, labels: np.ndarray, query: np.ndarray) -> bytes:
    """The same as PNG: of many pictures MOST_SHOWN, of which the doubtful ones are the last to be left out."""
    chosen = np.sort(np.argsort(~labelled.doubtful, kind="stable")[:MOST_SHOWN])
    classes = labelled.classes[:CLASSES_SHOWN]
    rows = len(classes) + -(-len(chosen) // COLUMNS)
    drawing, axes = plt.subplots(figsize=(COLUMNS * 1.1, rows * 1.35 + 0.8))
    canvas(axes, COLUMNS, rows + GAP)
    for label, name in enumerate(classes):
        for column, image in enumerate(support[labels == label][:COLUMNS]):
            place(axes, image, column, label, _plain(short(name)) if column == 0 else "")
    for number, i in enumerate(chosen):
        row, column = len(classes) + GAP + number // COLUMNS, number % COLUMNS
        marks = _marks(labelled, i)
        colour = WRONG if "wrong" in marks else DOUBT if "doubtful" in marks else RIGHT if "right" in marks else None
        name = _plain(short(labelled.classes[labelled.predicted[i]], 14))
        place(axes, query[i], column, row, f"{name}\n{_percent(labelled, i)}", colour)
    of_classes = f" ({len(classes)} of {len(labelled.classes)} classes)" if classes != labelled.classes else ""
    of_all = f" ({len(chosen)} of {len(query)} pictures)" if len(chosen) < len(query) else ""
    title = f"Support above, a class a row{of_classes}; labels below{of_all}\n{_legend(labelled)}"
    axes.set_title(title, fontsize=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name's characters that the font doesn't have, which become boxes
        drawing.tight_layout()
        return png(drawing)


def _plain(words: str) -> str:
    """Words that matplotlib takes for no formula."""
    return words.replace("$", r"\$")


def _legend(labelled: Labelled) -> str:
    doubtful = f"a question mark: the label isn't {DOUBTFUL} times as probable as the second"
    return f"{doubtful}; right blue, wrong red" if (labelled.true >= 0).any() else doubtful


def _marks(labelled: Labelled, i: int) -> list[str]:
    marks = ["doubtful"] * bool(labelled.doubtful[i])
    if labelled.true[i] >= 0:
        marks.append("right" if labelled.true[i] == labelled.predicted[i] else "wrong")
    return marks


def _percent(labelled: Labelled, i: int) -> str:
    """Its label's probability, with a question mark where it is doubtful."""
    return f"{labelled.probabilities[i].max():.0%}" + " ?" * bool(labelled.doubtful[i])


def _img(image: np.ndarray, alt: str) -> str:
    """(C, H, W) uint8 as an HTML element that holds it: grey without loss, colours as JPEG, a tenth as large."""
    grey = len(image) == 1
    content = io.BytesIO()
    pixels = Image.fromarray(image[0] if grey else image.transpose(1, 2, 0))
    pixels.save(content, "PNG" if grey else "JPEG", quality=90)
    kind = "png" if grey else "jpeg"
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(alt, quote=True)}">'
