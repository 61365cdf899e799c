"""Pictures decoded as a person sees them: upright, on white, in 8 bits that keep the range, and one size."""

import functools
import io
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.shards import UsageError
from data_prep.files import RawFiles, a_few, is_picture

# Pillow has more, and some hand the file to another program.
FORMATS = (
    "PNG", "JPEG", "MPO", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF", "ICO", "PCX", "SGI",
    "QOI",
)  # fmt: skip
DEEP_SUFFIXES = (".png", ".apng", ".tif", ".tiff", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k")  # more than 8 bits a pixel
MOST_PIXELS = 2**27  # of a picture; in memory it takes some twelve bytes each
FLAT = 8  # grey levels; a picture that spans fewer looks like nothing
DARK = 64  # what 16-bit colours stay below that have 14 bits or fewer
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's orientation
ORIENTATION = 0x0112


class Range(NamedTuple):
    """Of the values of pictures with more than 8 bits a pixel: what becomes black, and what becomes white."""

    low: float
    high: float


SIXTEEN_BITS = Range(0, 65535)


class Pictures:
    """The pictures of a set, decoded class by class, in the order of `names`.

    read: name -> bytes. convert: makes a picture one size and mode. Those that can't be read are named together: at the
    first one, all that are still to come are tried too.
    """

    def __init__(
        self, read: Callable[[str], bytes], names: Iterable[str], convert: Callable[[Image.Image], Image.Image]
    ):
        self.read, self.convert = read, convert
        self.pending = dict.fromkeys(names)
        self.flat: list[str] = []
        self.with_frames: list[str] = []

    def block(self, names: list[str]) -> np.ndarray:
        """uint8 (n, C, H, W), C = 1 for mode L. Raises UsageError naming the pictures that are unreadable."""
        blocks, unreadable = [], {}
        for name in names:
            self.pending.pop(name, None)
            try:
                blocks.append(self._decoded(name))
            except (OSError, ValueError, UsageError) as error:
                unreadable[name] = error
        if unreadable:
            self._refuse(unreadable)
        return np.stack(blocks)

    def said(self) -> list[str]:
        """What the person who builds should know of the pictures, a line each."""
        lines = []
        if self.flat:
            lines.append(
                f"{len(self.flat):,} pictures come out flat, in few of 256 grey levels: "
                f"{a_few(self.flat)}; look at preview.png"
            )
        if self.with_frames:
            lines.append(
                f"{len(self.with_frames):,} pictures have several frames, of which the first is taken: "
                f"{a_few(self.with_frames)}"
            )
        return lines

    def _opened(self, name: str) -> Image.Image:
        image = opened(io.BytesIO(self.read(name)))
        if is_deep(image) and is_picture(name) and not name.lower().endswith(DEEP_SUFFIXES):
            raise ValueError(f"more than 8 bits a pixel, so no {PurePosixPath(name).suffix}: call it .png or .tif")
        return image

    def _decoded(self, name: str) -> np.ndarray:
        image = self._opened(name)
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a phone's JPEG holds a thumbnail so
            self.with_frames.append(name)
        halved = any(";16" in str(tile) for tile in image.tile) and not is_deep(image)  # Pillow drops the lower bytes
        # As it is, because scaling it overshoots.
        dark = halved and max(high for _, high in decoded(lambda: image.convert("RGB")).getextrema()) < DARK
        image = decoded(lambda: self.convert(image))
        ends = image.getextrema()  # of each band; of grey levels those of the one
        if dark or max(high - low for low, high in ([ends] if image.mode == "L" else ends)) < FLAT:
            self.flat.append(name)
        pixels = np.asarray(image)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def _refuse(self, unreadable: dict[str, Exception]) -> None:
        for name in tqdm(self.pending, "looking for more", unit="picture", leave=False, disable=None):
            try:
                decoded(self._opened(name).load)
            except (OSError, ValueError, UsageError) as error:
                unreadable[name] = error
        named = [f"{name} ({error})" for name, error in unreadable.items()]
        raise UsageError(
            f"{len(named)} pictures are unreadable: {a_few(named, 10)}; fetch them again, or remove them"
        ) from None


def opened(file: BinaryIO) -> Image.Image:
    """A picture whose pixels aren't read yet. Raises ValueError where it isn't one, or has too many pixels."""
    image = decoded(lambda: Image.open(file, formats=_formats()))
    if math.prod(image.size) > MOST_PIXELS:
        raise ValueError(f"{math.prod(image.size) / 1e6:,.0f} megapixels, expected {MOST_PIXELS / 1e6:,.0f} at most")
    return image


@functools.cache
def _formats() -> list[str]:
    """Those that this Pillow can read."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def decoded(step: Callable):
    """`step()`, which is Pillow's work on a picture: raises ValueError for whatever that raises.

    Of a damaged picture Pillow's decoders raise errors of a dozen types, of which its documentation names three.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of what makes no difference here
            return step()
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from None


def squared(image: Image.Image, size: int, mode: str = "RGB", levels: Range = SIXTEEN_BITS) -> Image.Image:
    """Any image as size x size RGB or grey levels (mode "L"), upright, on white where it is transparent.

    levels: of pictures with more than 8 bits a pixel. The sides are scaled apart, as mini-ImageNet's are, so nothing is
    cut off; an image of that size is left as it is.
    """
    image = plain(image, mode, levels)
    return image if image.size == (size, size) else image.resize((size, size), Image.LANCZOS)


def plain(image: Image.Image, mode: str, levels: Range = SIXTEEN_BITS) -> Image.Image:
    """Any image of its own size as RGB or grey levels, upright, on white where it is transparent."""
    image = upright(image)
    if is_deep(image):
        image = Image.fromarray(eight_bits(np.asarray(image), levels))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def upright(image: Image.Image) -> Image.Image:
    """As EXIF says that it was held; what else EXIF says may make no sense, and is never written back."""
    image.load()  # a TIFF is turned by it
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # as of a damaged picture, whatever of it can't be parsed
        orientation = None
    return image.transpose(UPRIGHT[orientation]) if orientation in list(UPRIGHT) else image


def png_of(pixels: np.ndarray) -> bytes:
    """A file of uint8 (H, W) or (H, W, 3), as if the picture had been one; nothing of it is lost."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def is_deep(image: Image.Image) -> bool:
    """Whether it has more than 8 bits a pixel."""
    return image.mode == "F" or image.mode.startswith("I")


def eight_bits(values: np.ndarray, levels: Range) -> np.ndarray:
    """uint8 of values in `levels`. Raises ValueError where one is no number."""
    low, high = levels
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("a pixel that is no number")
    if low == 0 and values.dtype.kind in "iu" and math.log2(high + 1).is_integer():
        return (np.clip(values, 0, int(high)) >> (int(math.log2(high + 1)) - 8)).astype(np.uint8)
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def range_of(files: RawFiles, names: Iterable[str]) -> Range:
    """The range of the deep pictures among `names`, one for the whole set, so that they keep their brightness.

    It is 16 bits where the values use them. Otherwise it is guessed from them, which is said: the fewest bits of 8, 10,
    12 and 14 that hold them all; for floating-point pixels 0..1 or 0..255; else from the least to the greatest.
    """
    found, whole = [], True
    names = [name for name in names if name.lower().endswith(DEEP_SUFFIXES)]
    for name in tqdm(names, "looking for deep pixels", unit="picture", leave=False, disable=None):
        try:
            with files.open(name) as file:
                image = opened(file)  # of most, the head is all that is read
                if is_deep(image):
                    decoded(image.load)
                    values = np.asarray(image)
                    whole = whole and values.dtype.kind in "iu"
                    scaled = image.format == "PPM"  # whose head has the range, to which Pillow scales
                    found.append(SIXTEEN_BITS if scaled else Range(float(values.min()), float(values.max())))
        except (OSError, ValueError, UsageError):
            continue  # named when it is decoded
    if not found:
        return SIXTEEN_BITS
    low, high = min(low for low, _ in found), max(high for _, high in found)
    if whole and low >= 0 and 16383 < high <= 65535:
        return SIXTEEN_BITS
    if not (math.isfinite(low) and math.isfinite(high)):
        return SIXTEEN_BITS
    if whole and low >= 0 and high <= 16383:
        guessed = Range(0, next(2**bits - 1 for bits in (8, 10, 12, 14) if high < 2**bits))
    elif not whole and low >= 0 and high <= 1:
        guessed = Range(0, 1)
    elif not whole and low >= 0 and high <= 255:
        guessed = Range(0, 255)
    else:
        guessed = Range(low, high if high > low else low + 1)
    files.said.append(
        f"{len(found):,} pictures have more than 8 bits a pixel, with values from {low:g} to {high:g}: the range is "
        f"guessed, {guessed.low:g} becomes black and {guessed.high:g} white"
    )
    return guessed
