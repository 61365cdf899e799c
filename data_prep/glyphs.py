"""`glyphs`: a few-shot set in the spirit of Omniglot, drawn from the fonts that matplotlib ships.

A class is a character, drawn 20 times: the faces that have it take turns, each drawing is turned, slanted, stretched
and bent, and its strokes vary. An image is 28x28 uint8, ink 255 on 0. A script lies in exactly one split:

  train   727  Mathematics 185, Canadian syllabics 121, Shapes 115, Latin 82, Technical 78, Cyrillic 64, Arrows 57,
               Punctuation 12, Greek 8, Coptic 5
  val     143  Arabic 59, Armenian 37, Old Italic 18, Ogham 16, Lisu 13
  test    167  Georgian 63, Tifinagh 36, Lao 32, N'Ko 20, Hebrew 16

(counted with matplotlib 3.11). Training mirrors its classes and turns them by up to 45 degrees, so a training character
is left out where it would then look like a class of val or test, or like a training class before it. By nearest
neighbour on raw pixels, 5-way 1-shot test episodes are 61 % right.
"""

import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from common.shards import SPLITS, Preparation, Split
from data_prep.output import write

SIZE = 28  # pixels a side
DRAWINGS = 20  # a class, as in Omniglot
SEED = 0
CANVAS = 84  # pixels a side where a glyph is warped, before it shrinks to SIZE
BOX = 40  # pixels of the glyph's longer side on the canvas, before the warp
LONGER = range(19, 24)  # pixels of a drawing's longer side
CELLS = 3  # of the warp's mesh, a side
AFFINE = np.array([0.15, 0.2, 0.1, 0.15, 0.15])[:, None]  # at most: turn (radians), slants, logarithms of the stretches
ELASTIC = 0.034  # at most: a wave's amplitude, in canvases
ALIKE = 0.81  # characters whose plain drawings correlate more than this are one class
TURNS = range(-45, 46, 5)  # degrees by which a training character may look like another, as training turns classes
SMALLEST = 0.3  # of an em, the longer side: a dot enlarged to a letter's size is only a blot

# Script: its split, the categories of Unicode that count (letters and numbers, or symbols and punctuation), and the
# first and last code point of its blocks. Where two characters look alike, the one that stands first here stays: test
# and val come first, so that their scripts stay nearly whole, and training has enough without their O and X.
# Rows of dots and box drawing are left out: they are Tifinagh and Ogham letters, in other proportions.
SCRIPTS = {
    "Georgian": ("test", "LN", [(0x10A0, 0x10FF), (0x2D00, 0x2D2F)]),
    "Hebrew": ("test", "LN", [(0x590, 0x5FF)]),
    "Lao": ("test", "LN", [(0xE80, 0xEFF)]),
    "Tifinagh": ("test", "LN", [(0x2D30, 0x2D7F)]),
    "N'Ko": ("test", "LN", [(0x7C0, 0x7FF)]),
    "Armenian": ("val", "LN", [(0x530, 0x58F)]),
    "Arabic": ("val", "LN", [(0x600, 0x6FF), (0x750, 0x77F)]),
    "Old Italic": ("val", "LN", [(0x10300, 0x1032F)]),
    "Ogham": ("val", "LN", [(0x1680, 0x169F)]),
    "Lisu": ("val", "LN", [(0xA4D0, 0xA4FF)]),
    "Latin": ("train", "LN", [(0x30, 0x2AF), (0x1D00, 0x1DBF), (0x1E00, 0x1EFF), (0x2C60, 0x2C7F), (0xA720, 0xA7FF)]),
    "Greek": ("train", "LN", [(0x370, 0x3E1), (0x3F0, 0x3FF)]),
    "Cyrillic": ("train", "LN", [(0x400, 0x52F), (0xA640, 0xA69F)]),
    "Coptic": ("train", "LN", [(0x3E2, 0x3EF), (0x2C80, 0x2CFF)]),
    "Canadian syllabics": ("train", "LN", [(0x1400, 0x167F)]),
    "Punctuation": ("train", "SP", [(0x21, 0xBF)]),
    "Arrows": ("train", "SP", [(0x2190, 0x21FF), (0x27F0, 0x27FF), (0x2900, 0x297F), (0x2B00, 0x2BFF)]),
    "Mathematics": ("train", "SP", [(0x2200, 0x22FF), (0x27C0, 0x27EF), (0x2980, 0x2AFF)]),
    "Technical": ("train", "SP", [(0x20A0, 0x20CF), (0x2100, 0x214F), (0x2300, 0x23FF)]),
    "Shapes": ("train", "SP", [(0x2580, 0x27BF)]),
}

DEJAVU = [f"DejaVuSans{mono}{style}" for mono in ("", "Mono") for style in ("", "-Bold", "-Oblique", "-BoldOblique")]
DEJAVU += [f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")]
STIX = ["STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"]
COMPUTER_MODERN = ["cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"]  # only their letters and digits lie at ASCII places
UPRIGHT = ["DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral"]  # the faces that are compared


@cache
def _face(face: str) -> tuple[ImageFont.FreeTypeFont, frozenset[str]]:
    """The font, and the characters that its map gives a glyph."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    characters = {chr(code) for code, glyph in FT2Font(str(path)).get_charmap().items() if glyph}
    if face in COMPUTER_MODERN:
        characters = {c for c in characters if c.isascii() and c.isalnum()}
    return ImageFont.truetype(path, BOX, layout_engine=ImageFont.Layout.BASIC), frozenset(characters)  # no libraqm


@cache
def _glyph(face: str, character: str) -> Image.Image | None:
    """The character's ink, cropped tight; None where there is none."""
    font = _face(face)[0]
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), character, 255, font)
    box = image.getbbox()
    return image.crop(box) if box else None


def faces_of(character: str) -> list[str]:
    """The faces that have the character: in their map, with ink, and other than the box for a missing one."""
    found = [face for face in DEJAVU + STIX + COMPUTER_MODERN if character in _face(face)[1]]
    glyphs = [(face, _glyph(face, character), _glyph(face, "\uffff")) for face in found]
    glyphs = [(face, glyph, box) for face, glyph, box in glyphs if glyph and max(glyph.size) >= SMALLEST * BOX]
    return [face for face, glyph, box in glyphs if not (box and glyph.size == box.size and glyph == box)]


def _shrink(image: Image.Image, width: int, height: int, shift: tuple[int, int]) -> Image.Image:
    """The ink of an image, `width` x `height` pixels and `shift` off the middle of a SIZE x SIZE image."""
    result = Image.new("L", (SIZE, SIZE))
    place = (SIZE - width) // 2 + shift[0], (SIZE - height) // 2 + shift[1]
    result.paste(image.resize((width, height), Image.BOX, image.getbbox()), place)
    return result


def _forms(glyph: Image.Image) -> list[Image.Image]:
    """The ink stretched to a square (where its longer side is up to 4 times the shorter) or to a bar (from 2 times).

    Drawings vary in proportion, but a bar is no block: most characters have one form, those between have both.
    """
    long, short = SIZE - 6, (SIZE - 6) // 3
    ratio = glyph.size[0] / glyph.size[1]
    sizes = [(long, long)] if 1 / 4 < ratio < 4 else []
    sizes += [(long, short)] if ratio > 2 else [(short, long)] if ratio < 1 / 2 else []
    return [glyph.resize(size, Image.BOX) for size in sizes]


def looks(
    character: str, faces: list[str], turns: Iterable[int] = (0,), mirrors: Iterable[bool] = (False,)
) -> np.ndarray:
    """What is compared: the character in its upright faces, turned by each of `turns`, mirrored or not, in all its
    forms, each blurred, of mean 0 and length 1: float32 (looks, SIZE * SIZE).

    It is turned before it is stretched to its forms, as training turns a finished drawing.
    """
    glyphs = [_glyph(face, character) for face in UPRIGHT if face in faces]
    turned = [glyph.rotate(angle, Image.BILINEAR, expand=True) for glyph in glyphs for angle in turns]
    turned = [ImageOps.mirror(image) if mirror else image for image in turned for mirror in mirrors]
    forms = [form for image in turned for form in _forms(image.crop(image.getbbox()))]
    strip = Image.new("L", (SIZE, SIZE * len(forms)))  # one below the other, as blurring each by itself takes longer
    for n, form in enumerate(forms):
        strip.paste(form, ((SIZE - form.width) // 2, SIZE * n + (SIZE - form.height) // 2))
    pixels = np.asarray(strip.filter(ImageFilter.GaussianBlur(0.7)), np.float32).reshape(len(forms), SIZE * SIZE)
    pixels = pixels - pixels.mean(1, keepdims=True)
    return pixels / np.linalg.norm(pixels, axis=1, keepdims=True)


def _candidates() -> list[tuple[str, str, list[str]]]:
    """(script, character, its faces): what an upright face has, and Unicode neither decomposes (compatibility forms,
    accents) nor calls a mark or a modifier. Where only one face has it (some of mathematics), the warp alone varies it.
    """
    found = []
    for script, (_, categories, blocks) in SCRIPTS.items():
        for character in (chr(code) for first, last in blocks for code in range(first, last + 1)):
            category = unicodedata.category(character)
            whole = unicodedata.normalize("NFKD", character) == character
            if category[0] in categories and category != "Lm" and whole:
                found.append((script, character, faces_of(character)))
    return [row for row in found if set(row[2]) & set(UPRIGHT)]


def _alike(some: list[np.ndarray], others: list[np.ndarray]) -> np.ndarray:
    """Which of some characters look like which of others, each given by its looks: bool (some, others)."""
    if not some or not others:
        return np.zeros((len(some), len(others)), bool)
    correlation = np.concatenate(some) @ np.concatenate(others).T
    for axis, characters in enumerate((some, others)):
        starts = np.cumsum([0] + [len(its_looks) for its_looks in characters[:-1]])
        correlation = np.maximum.reduceat(correlation, starts, axis)
    return correlation > ALIKE


def classes() -> dict[str, list[tuple[str, str, list[str]]]]:
    """The classes of each split, as (script, character, its faces): those candidates that look unlike all before.

    Training makes more classes of its own by mirroring and turning them (flip_class and rotate_class in the scripts'
    SETTINGS), so a training character must look unlike those before also when it is mirrored and turned. Otherwise
    training would meet classes of val and test, and some of its own classes would be one picture under two labels.
    """
    rows = _candidates()
    kept, kept_looks = [], []
    for first in range(0, len(rows), 64):  # a block of candidates at a time, for the memory
        block = rows[first : first + 64]
        plain = [looks(character, faces) for _, character, faces in block]
        known = _alike(plain, kept_looks).any(1)  # most are, and needn't be turned
        block = [row for row, old in zip(block, known, strict=True) if not old]
        plain = [its_looks for its_looks, old in zip(plain, known, strict=True) if not old]
        drawn = [
            looks(character, faces, TURNS, (False, True)) if SCRIPTS[script][0] == "train" else its_looks
            for (script, character, faces), its_looks in zip(block, plain, strict=True)
        ]
        alike = _alike(drawn, kept_looks + plain)
        before, columns = len(kept), list(range(len(kept)))  # of the classes so far
        for n, row in enumerate(block):
            if not alike[n, columns].any():
                columns.append(before + n)
                kept.append(row)
                kept_looks.append(plain[n])
    return {split: [row for row in kept if SCRIPTS[row[0]][0] == split] for split in SPLITS}


def _grids(rng: np.random.Generator) -> np.ndarray:
    """A warp for each drawing, as where its mesh's corners come from: (DRAWINGS, CELLS + 1, CELLS + 1, 2).

    In canvases off the middle, x before y. An affine map (turn, slant, stretch) and a displacement that is smooth over
    the canvas (three cosines a side).
    """
    turn, slant_x, slant_y, *stretch = rng.uniform(-1, 1, (5, DRAWINGS)) * AFFINE
    cos, sin, one = np.cos(turn), np.sin(turn), np.ones(DRAWINGS)
    affine = np.array([[cos, -sin], [sin, cos]]).transpose(2, 0, 1)  # (DRAWINGS, 2, 2)
    affine = affine @ np.array([[one, slant_x], [slant_y, one]]).transpose(2, 0, 1) * np.exp(stretch).T[:, None]
    line = np.linspace(-0.5, 0.5, CELLS + 1)
    basis = np.cos(np.pi * np.arange(3) * (line[:, None] + 0.5))  # (CELLS + 1, 3)
    waves = rng.uniform(-ELASTIC, ELASTIC, (DRAWINGS, 3, 3, 2))
    grid = np.stack(np.meshgrid(line, line), -1)
    return np.einsum("yxk,djk->dyxj", grid, affine) + np.einsum("yi,xj,dijk->dyxk", basis, basis, waves)


def _thicken(images: np.ndarray) -> np.ndarray:
    """The ink of (DRAWINGS, CANVAS, CANVAS) spread by a pixel to all sides."""
    rows = images.copy()
    np.maximum(rows[:, 1:], images[:, :-1], out=rows[:, 1:])
    np.maximum(rows[:, :-1], images[:, 1:], out=rows[:, :-1])
    result = rows.copy()
    np.maximum(result[..., 1:], rows[..., :-1], out=result[..., 1:])
    np.maximum(result[..., :-1], rows[..., 1:], out=result[..., :-1])
    return result


def _thin(images: np.ndarray) -> np.ndarray:
    return 255 - _thicken(255 - images)


def warped(character: str, faces: list[str], rng: np.random.Generator) -> np.ndarray:
    """A class's drawings before their strokes vary, the faces in turn: uint8 (DRAWINGS, CANVAS, CANVAS)."""
    order = [face for _ in range(-(-DRAWINGS // len(faces))) for face in rng.permutation(faces)][:DRAWINGS]
    edges = np.linspace(0, CANVAS, CELLS + 1).astype(int).tolist()
    cells = [(y, x) for y in range(CELLS) for x in range(CELLS)]
    images = []
    for face, grid in zip(order, _grids(rng), strict=True):
        glyph = _glyph(face, character)
        grid = grid * (CANVAS / BOX * max(glyph.size)) + np.array(glyph.size) / 2
        corners = np.concatenate([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], -1).tolist()
        mesh = [((edges[x], edges[y], edges[x + 1], edges[y + 1]), corners[y][x]) for y, x in cells]
        images.append(np.asarray(glyph.transform((CANVAS, CANVAS), Image.MESH, mesh, Image.BILINEAR)))
    return np.stack(images)


def drawings(character: str, faces: list[str]) -> np.ndarray:
    """The drawings of a class, uint8 (DRAWINGS, 1, SIZE, SIZE), the same whatever the other classes are.

    After the warp, thin strokes are thickened and thick ones thinned, by chance, while the gaps between them stay open.
    """
    rng = np.random.default_rng([SEED, ord(character)])
    images = warped(character, faces, rng)
    levels = [_thin(images), images, _thicken(images), _thicken(_thicken(images))]
    ink = images.mean((1, 2))
    thickness = 2 / (1 - levels[0].mean((1, 2)) / ink)  # of the strokes, in canvas pixels
    lowest = np.select([thickness < 3, thickness < 6], [2, 1], 0)
    filled = [closed.mean((1, 2)) > 1.1 * ink for closed in (_thin(levels[2]), _thin(_thin(levels[3])))]
    highest = np.select(filled, [1, 2], 3)
    lowest = np.minimum(lowest, highest)
    level = rng.integers(lowest, np.minimum(lowest + 2, highest) + 1)
    shifts, longer = rng.integers(-1, 2, (DRAWINGS, 2)).tolist(), rng.integers(LONGER.start, LONGER.stop, DRAWINGS)
    result = []
    for i in range(DRAWINGS):
        image = Image.fromarray(levels[level[i]][i])
        left, top, right, bottom = image.getbbox()
        scale = longer[i] / max(right - left, bottom - top)
        width, height = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
        result.append(np.asarray(_shrink(image, width, height, shifts[i])))
    return np.stack(result)[:, None]


def build(data_dir: Path) -> Path:
    """Draw the set into `data_dir/glyphs`, print how many classes each script gave, and return the folder."""
    chosen = classes()
    splits = {
        split: Split(
            [f"{script}/U+{ord(c):04X} {unicodedata.name(c)}" for script, c, _ in rows],
            [DRAWINGS] * len(rows),
            (drawings(c, found) for _, c, found in rows),
        )
        for split, rows in chosen.items()
    }
    for script, (split, *_) in SCRIPTS.items():
        print(f"{split:6} {script:20} {sum(row[0] == script for row in chosen[split]):5} classes")
    source = f"drawn from matplotlib {matplotlib.__version__}'s fonts, seed {SEED}"
    folder = write(data_dir, "glyphs", splits, source, Preparation("centred ink"))
    _glyph.cache_clear()  # training may go on in this process
    return folder
