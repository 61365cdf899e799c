"""Raw files read in place: a folder, a zip or a tar looks the same, and nothing is extracted to a place on disk."""

import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep.shards import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")

Files = dict[str, Callable[[], BinaryIO]]  # name relative to the root, with "/" between its parts -> opens the file


@contextmanager
def open_files(path: Path) -> Iterator[Files]:
    """The files under a folder or within an archive, sorted by name; hidden ones are left out.

    A compressed tar can't be read at random, so it is first expanded to one nameless temporary file (a tar, still not
    its members). A tar within a tar or folder (as in ILSVRC2012_img_train.tar) reads as a folder named after it.
    Raises DataError where `path` isn't there or is no archive, and for a member that is a link or climbs out.
    """
    with ExitStack() as stack:
        try:
            if path.is_dir():
                files = _folder(path)
            elif not path.exists():
                raise DataError(f"--raw {path}: no such file or folder")
            elif zipfile.is_zipfile(path):
                files = _zip(path, stack)
            elif path.name.lower().endswith(ARCHIVE_SUFFIXES):
                files = _tar(_expanded(path, stack), path, stack)
            else:
                raise DataError(f"--raw {path}: expected a folder or an archive ({', '.join(ARCHIVE_SUFFIXES)})")
        except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, gzip.BadGzipFile, EOFError) as error:
            raise DataError(f"--raw {path}: not a whole archive ({error}); fetch it again") from None
        yield {name: files[name] for name in sorted(files)}


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _folder(path: Path) -> Files:
    files, seen = {}, set()
    for root, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link to a folder above would otherwise be walked for ever
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            file = Path(root, name)
            relative = file.relative_to(path).as_posix()
            if not _hidden(relative):
                files[relative] = lambda file=file: open(file, "rb")
    return files


def _refuse_unsafe(archive: Path, name: str, plain: bool) -> None:
    """Members are never written to disk under their names; one that tries to climb out still says: don't trust this."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or parts.parts and parts.parts[0].endswith(":"):
        raise DataError(f"{archive}: member {name!r} climbs out of the archive, expected names below it; refused")
    if not plain:
        raise DataError(f"{archive}: member {name!r} is a link or device, expected plain files and folders; refused")


def _zip(path: Path, stack: ExitStack) -> Files:
    archive = stack.enter_context(zipfile.ZipFile(path))
    files = {}
    for member in archive.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the zip wasn't written on Unix
        _refuse_unsafe(path, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        if not member.is_dir() and not _hidden(member.filename):
            files[member.filename] = lambda member=member: archive.open(member)
    return files


def _expanded(path: Path, stack: ExitStack) -> BinaryIO:
    """The plain tar within a .tar, .tar.gz or .tar.xz, as a seekable file."""
    name = path.name.lower()
    if name.endswith(".tar"):
        return stack.enter_context(open(path, "rb"))
    plain = stack.enter_context(tempfile.TemporaryFile())
    with open(path, "rb") as packed, tqdm.wrapattr(
        packed, "read", total=path.stat().st_size, desc=f"expanding {path.name}", leave=False
    ) as counted:
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
            inner = _tar(archive.extractfile(member), path / name, stack)
            files.update({f"{name.removesuffix('.tar')}/{n}": opener for n, opener in inner.items()})
        else:
            files[name] = lambda member=member: archive.extractfile(member)
    return files


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def read_images(files: Files, names: Iterable[str], convert: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Decode images of one size in the order of `names`: uint8 (n, C, H, W), C = 1 where `convert` gives grey levels.

    Raises DataError naming the first file that is no image.
    """
    blocks = [_decode(name, data, convert) for name, data in ((name, _read(files, name)) for name in names)]
    return np.stack(blocks)


def _read(files: Files, name: str) -> bytes:
    with files[name]() as file:
        return file.read()


def _decode(name: str, data: bytes, convert: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(convert(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: unreadable image ({error}); fetch it again or remove it") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
