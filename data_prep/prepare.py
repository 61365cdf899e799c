"""Other pictures prepared as a set's were: what a build does to a file, for one picture."""

import numpy as np
from PIL import Image, ImageOps

from common.shards import Preparation
from data_prep import omniglot
from data_prep.pictures import Range, plain, squared


def prepare(
    image: Image.Image, like: Preparation, shape: tuple[int, int, int], invert: bool | None = None
) -> Image.Image:
    """A picture as an image (C, H, W) of a set that was prepared so: mode L of H x W where C is 1, else RGB.

    invert: whether black and white change places. None decides as the build did: it looks at each picture of ink
    whether the paper is white, and leaves all others as they are.
    """
    channels, side, _ = shape
    levels = Range(*like.levels)
    if like.how == "whole":
        image = squared(image, side, "L" if channels == 1 else "RGB", levels)
        return ImageOps.invert(image) if invert else image
    if like.how == "ink":
        return omniglot.ink(image, invert)
    return _centred(omniglot.light(plain(image, "L", levels), invert), side)


def _centred(ink: Image.Image, side: int) -> Image.Image:
    """Light ink on dark, of any size, as one of the drawings of `glyphs`: what is inked in the middle, as large as they
    are in the mean. A picture of their size is left as it is."""
    from data_prep import glyphs  # here, because nothing else needs matplotlib

    if ink.size == (side, side):
        return ink
    brightest = ink.getextrema()[1]
    box = ink.point(lambda level: 255 * (level > brightest / 2)).getbbox()  # what is fainter is paper
    left, top, right, bottom = box or (0, 0, *ink.size)
    scale = np.mean(glyphs.LONGER) / max(right - left, bottom - top)
    width, height = (max(1, round(length * scale)) for length in (right - left, bottom - top))
    result = Image.new("L", (side, side))
    result.paste(
        ink.resize((width, height), Image.BOX, (left, top, right, bottom)), ((side - width) // 2, (side - height) // 2)
    )
    return result
