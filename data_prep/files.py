"""Raw files read in place: a folder, a zip and a tar look the same, and nothing is extracted to a place on disk."""

import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from common.shards import UsageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
PICKLE_SUFFIXES = (".pkl", ".pickle")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")
BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError)

Files = dict[str, Callable[[], BinaryIO]]  # name below the root, with "/" between its parts -> opens the file


@contextmanager
def open_files(path: Path) -> Iterator[Files]:
    """The files under a folder or within an archive, sorted by name; hidden ones are left out.

    A compressed tar can't be read at random, so it is first expanded to one nameless temporary file (a tar, still not
    its members). A tar within a tar reads as a folder named after it, as does each archive of a folder that has no
    images of its own (as ILSVRC2012_img_train.tar holds a tar a class).
    Raises UsageError where `path` isn't there, is no archive or a damaged one, and for a member that is a link or that
    climbs out.
    """
    with ExitStack() as stack:
        if path.is_dir():
            files = _folder(path)
            if not any(name.lower().endswith(IMAGE_SUFFIXES + PICKLE_SUFFIXES) for name in files):
                for name in sorted(n for n in files if n.lower().endswith(ARCHIVE_SUFFIXES)):
                    within = _archive(path / name, stack)
                    files |= {f"{_without_suffix(name)}/{inner}": opener for inner, opener in within.items()}
        elif not path.exists():
            raise UsageError(f"--raw {path}: no such file or folder; check the path")
        elif path.name.lower().endswith(ARCHIVE_SUFFIXES):
            files = _archive(path, stack)
        else:
            raise UsageError(f"--raw {path}: expected a folder or an archive ({' '.join(ARCHIVE_SUFFIXES)})")
        yield {name: files[name] for name in sorted(files)}


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_pickle(name: str) -> bool:
    return name.lower().endswith(PICKLE_SUFFIXES)


def a_few(names: Iterable) -> str:
    """The first three, and that there are more, for error messages."""
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def read(files: Files, name: str) -> bytes:
    try:
        with files[name]() as file:
            return file.read()
    except (*BROKEN, RuntimeError, NotImplementedError) as error:  # the last two: an encrypted or exotic zip
        raise UsageError(f"{name}: can't be read from its archive ({error}); fetch the archive again") from None


def read_images(files: Files, names: Iterable[str], convert: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Decode images in the order of `names`, which `convert` makes one size: uint8 (n, C, H, W), C = 1 for mode L.

    Raises UsageError naming the first file that is no whole image.
    """
    blocks = []
    for name in names:
        try:
            with Image.open(io.BytesIO(read(files, name))) as image:
                pixels = np.asarray(convert(image))
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            raise UsageError(f"{name}: unreadable as an image ({error}); fetch it again, or remove it") from None
        blocks.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
    return np.stack(blocks)


def squared(image: Image.Image, size: int, mode: str = "RGB") -> Image.Image:
    """Any image as size x size RGB or grey levels (mode "L"), upright, on white where it is transparent.

    The sides are scaled apart, as mini-ImageNet's are, so nothing is cut off; an image of that size is left as it is.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode.startswith("I"):  # 16 bits a pixel, of which Pillow's own conversion would clip all above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(mode)
    return image if image.size == (size, size) else image.resize((size, size), Image.LANCZOS)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _without_suffix(name: str) -> str:
    return next(name[: -len(suffix)] for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix))


def _folder(path: Path) -> Files:
    files = {}
    for root, folders, names in os.walk(path, followlinks=True):
        # A link to a folder above would be walked for ever.
        folders[:] = [f for f in folders if Path(root, f).resolve() not in (Path(root).resolve() / f).parents]
        for name in names:
            file = Path(root, name)
            relative = file.relative_to(path).as_posix()
            if not _hidden(relative):
                files[relative] = lambda file=file: open(file, "rb")
    return files


def _archive(path: Path, stack: ExitStack) -> Files:
    try:
        if path.name.lower().endswith(".zip"):
            return _zip(path, stack)
        return _tar(_plain_tar(path, stack), path, stack)
    except BROKEN as error:
        raise UsageError(f"{path}: damaged, or not an archive ({error}); fetch it again") from None


def _refuse_unsafe(archive: Path, name: str, plain: bool) -> None:
    """No member is ever written under its name; but an archive with one that climbs out isn't what it claims to be."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or parts and (parts[0].startswith("/") or parts[0].endswith(":")):
        raise UsageError(f"{archive}: refused, its member {name!r} climbs out; expected relative names; fetch it again")
    if not plain:
        raise UsageError(f"{archive}: refused, its member {name!r} is a link or device; expected files; pack it again")


def _zip(path: Path, stack: ExitStack) -> Files:
    archive = stack.enter_context(zipfile.ZipFile(path))
    files = {}
    for member in archive.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the zip wasn't written on Unix
        _refuse_unsafe(path, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        name = PurePosixPath(member.filename).as_posix()
        if not member.is_dir() and not _hidden(name):
            files[name] = lambda member=member: archive.open(member)
    return files


def _plain_tar(path: Path, stack: ExitStack) -> BinaryIO:
    """The tar within a .tar, .tar.gz or .tar.xz, as a file that can seek."""
    name = path.name.lower()
    if name.endswith(".tar"):
        return stack.enter_context(open(path, "rb"))
    plain = stack.enter_context(tempfile.TemporaryFile())
    with (
        open(path, "rb") as packed,
        tqdm.wrapattr(
            packed, "read", path.stat().st_size, desc=f"expanding {path.name}", leave=False, disable=None
        ) as counted,
    ):
        with gzip.open(counted) if name.endswith("gz") else lzma.open(counted) as unpacked:
            shutil.copyfileobj(unpacked, plain, 1 << 20)
    plain.seek(0)
    return plain


def _tar(file: BinaryIO, path: Path, stack: ExitStack) -> Files:
    archive = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
    files = {}
    for member in archive:
        _refuse_unsafe(path, member.name, member.isfile() or member.isdir())
        name = PurePosixPath(member.name).as_posix()
        if not member.isfile() or _hidden(name):
            continue
        if name.endswith(".tar"):
            within = _tar(archive.extractfile(member), path / name, stack)
            files |= {f"{name.removesuffix('.tar')}/{inner}": opener for inner, opener in within.items()}
        else:
            files[name] = lambda member=member: archive.extractfile(member)
    file.seek(archive.offset)
    if any(mark := file.read(tarfile.BLOCKSIZE)) or not mark:  # tarfile itself would take half a tar for a whole one
        raise tarfile.ReadError("it stops before its end")
    return files
