"""A report as one HTML page that holds its pictures, and as Markdown with PNG files beside it."""

import base64
import html
import re
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import markdown
from common.folder import made, write_whole
from reports.tables import Table

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #111; }
img { max-width: 100%; } figure { margin: 1.5em 0; } figcaption { font-size: .9em; }
table { border-collapse: collapse; font-size: .85em; margin: 1em 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #bbb; padding: .3em .6em; text-align: left; vertical-align: top; }
@media print { body { max-width: none; } h2 { break-before: page; } figure, tr { break-inside: avoid; } }
"""


@dataclass
class Figure:
    name: str
    """of its PNG file, without the ending"""
    picture: bytes
    caption: str


@dataclass
class Page:
    title: str
    parts: list[tuple[str, object]] = field(default_factory=list)

    def heading(self, text: str, level: int = 2) -> None:
        self.parts.append((f"h{level}", text))

    def say(self, text: str) -> None:
        """A paragraph; **bold** is all the markup there is."""
        self.parts.append(("p", text))

    def table(self, table: Table) -> None:
        self.parts.append(("table", table))

    def figure(self, name: str, picture: bytes, caption: str) -> None:
        self.parts.append(("figure", Figure(name, picture, caption)))

    def write(self, folder: Path) -> None:
        """FOLDER/index.html, report.md and the pictures. Raises UsageError where there can be no such folder."""
        made(folder)
        for kind, part in self.parts:
            if kind == "figure":
                write_whole(folder / f"{part.name}.png", part.picture)
        write_whole(folder / "report.md", self.as_markdown())
        write_whole(folder / "index.html", self.as_html())

    def as_markdown(self) -> str:
        blocks = [f"# {self.title}"]
        for kind, part in self.parts:
            if kind == "table":
                blocks.append(markdown(part.heads, part.rows))
            elif kind == "figure":
                blocks += [f"![{part.name}]({part.name}.png)", part.caption]
            else:
                blocks.append("#" * int(kind[1]) + f" {part}" if kind != "p" else part)
        return "\n\n".join(blocks) + "\n"

    def as_html(self) -> str:
        blocks = [f"<h1>{text(self.title)}</h1>"]
        for kind, part in self.parts:
            if kind == "table":
                rows = "".join(row("td", cells) for cells in part.rows)
                blocks.append(f"<table><thead>{row('th', part.heads)}</thead><tbody>{rows}</tbody></table>")
            elif kind == "figure":
                source = f"data:image/png;base64,{base64.b64encode(part.picture).decode()}"
                caption = text(part.caption)
                blocks.append(
                    f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
                )
            else:
                blocks.append(f"<{kind}>{text(part)}</{kind}>")
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{STYLE}</style>'
        return (
            f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(blocks) + "\n</body></html>\n"
        )


def text(words: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(words))


def row(tag: str, cells: list[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{text(str(cell))}</{tag}>" for cell in cells) + "</tr>\n"
