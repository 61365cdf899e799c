"""Archives read in place: zip, tar, and either of them packed again by gzip, bzip2 or xz; told apart by what they hold.

Nothing is extracted to a place on disk. What can't be read at random is expanded to a nameless temporary file first.
"""

import bz2
import gzip
import lzma
import os
import re
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import BinaryIO

from tqdm import tqdm

from common.shards import UsageError

SUFFIXES = (".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".lzma")
NOT_READ = (".7z", ".rar", ".zst")
READ = "zip, tar, tar.gz, tar.bz2, tar.xz"
# By the bytes that a file begins with: what reads it, and what isn't read.
STREAMS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open, b"]\0\0": lzma.open}
OTHERS = {b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"(\xb5/\xfd": "zstd"}
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError)
# What the standard library raises for an archive whose fields make no sense, beside what it has names for.
NONSENSE = (ValueError, OverflowError, IndexError, RuntimeError, NotImplementedError, MemoryError)
# A file that expands to more than both is a bomb: pictures, and arrays of pictures, never shrink that much.
LARGE, RATIO = 2**28, 200

Opener = Callable[[], BinaryIO]


def is_archive(name: str) -> bool:
    """By its name alone."""
    return name.lower().endswith((*SUFFIXES, *NOT_READ))


def without_suffix(name: str) -> str:
    """images.tar.gz -> images"""
    return re.sub(r"(\.tar)?\.[^./]+$", "", name, flags=re.IGNORECASE)


class Members:
    """The files of an archive by name, with "/" between its parts, and the names of its folders."""

    def __init__(self, where: str):
        self.where, self.files, self.folders = where, {}, []

    def add(self, name: str, opener: Opener, is_folder: bool, is_file: bool) -> None:
        """Take a member in. Raises UsageError for one that climbs out, is no file, or has another's name."""
        refused = f"{self.where}: refused, its member {name!r}"
        name = name.replace("\\", "/")  # as some programs on Windows write it
        if ".." in name.split("/") or name.startswith("/") or re.match("[A-Za-z]:/", name):
            # No member is ever written under its name; but such an archive isn't what it claims to be.
            raise UsageError(f"{refused} climbs out; expected relative names; fetch it again")
        if not (is_folder or is_file):
            raise UsageError(f"{refused} is a link or device; expected files; pack it again")
        is_folder = is_folder or name.endswith("/")
        name = PurePosixPath(name).as_posix()
        if is_folder:
            self.folders.append(name)
        else:
            self.add_file(name, opener)

    def add_file(self, name: str, opener: Opener) -> None:
        """Raises UsageError where another file has that name and other content."""
        first = self.files.setdefault(name, opener)
        if first is opener:
            return
        with first() as one, opener() as other:
            if not _same(one, other):
                raise UsageError(f"{self.where}: {name} is there twice, with different content; remove one of the two")


def open_archive(file: BinaryIO, where: str, stack: ExitStack, depth: int = 3) -> Members:
    """The members of an archive that `file` reads, which stays open until `stack` ends; it may be packed `depth` times.

    A file that is compressed and is no archive within has one member, named as it without the suffix. Raises UsageError
    where it is damaged or no archive, or has a member that is a link, climbs out, or is there twice.
    """
    try:
        if isinstance(file, zipfile.ZipExtFile):  # which goes back by beginning anew
            file = expanded(file, where, stack)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(512)
        file.seek(0)
        for start, name in OTHERS.items():
            if head.startswith(start):
                raise UsageError(f"{where}: a {name} archive, expected {READ}; unpack it, and give the folder")
        for start, opened in STREAMS.items():
            if head.startswith(start) and depth:
                return _stream(file, opened, where, stack, size, depth)
        # A zip may begin with something else, such as the program that unpacks it.
        is_zip = head.startswith(ZIP) or where.lower().endswith((".zip", ".exe")) and zipfile.is_zipfile(file)
        return _zip(file, where, stack) if is_zip else _tar(file, where, stack)
    except (*BROKEN, *NONSENSE) as error:
        raise UsageError(f"{where}: damaged, or not an archive ({error}); fetch it again") from None


def _stream(file: BinaryIO, opened: Callable, where: str, stack: ExitStack, size: int, depth: int) -> Members:
    plain = expanded(opened(file), where, stack, size)
    head = plain.read(512)
    plain.seek(0)
    if head.startswith((*ZIP, *STREAMS)):
        return open_archive(plain, where, stack, depth - 1)
    if head[257:262] == b"ustar" or re.search(r"\.(tar\.[^./]+|t[^./]*)$", where.lower()):
        return _tar(plain, where, stack)

    def reopened() -> BinaryIO:
        again = open(os.dup(plain.fileno()), "rb")
        again.seek(0)
        return again

    members = Members(where)
    members.add_file(PurePosixPath(without_suffix(where)).name, reopened)
    return members


def _zip(file: BinaryIO, where: str, stack: ExitStack) -> Members:
    archive = stack.enter_context(zipfile.ZipFile(file))
    members = Members(where)
    for member in archive.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the zip wasn't written on Unix
        plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
        members.add(_name_of(member), _zip_opener(archive, member, where), member.is_dir(), plain)
    return members


def _name_of(member: zipfile.ZipInfo) -> str:
    """Its name, which in a zip from a Mac is UTF-8 without saying so; zipfile reads that as code page 437."""
    try:
        return member.filename if member.flag_bits & 0x800 else member.filename.encode("cp437").decode()
    except UnicodeError:
        return member.filename


def _zip_opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> Opener:
    def opened() -> BinaryIO:
        refuse_bomb(f"{where}: {member.filename}", member.file_size, member.compress_size)
        return archive.open(member)

    return opened


def _tar(file: BinaryIO, where: str, stack: ExitStack) -> Members:
    archive = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
    members = Members(where)
    for member in archive:
        members.add(member.name, lambda member=member: archive.extractfile(member), member.isdir(), member.isfile())
    file.seek(archive.offset)
    if any(mark := file.read(tarfile.BLOCKSIZE)) or not mark:  # tarfile itself would take half a tar for a whole one
        raise tarfile.ReadError("it stops before its end")
    return members


def expanded(packed: BinaryIO, where: str, stack: ExitStack, size: int | None = None) -> BinaryIO:
    """What `packed` reads as a temporary file. Raises UsageError for a bomb, where it reads from `size` bytes."""
    plain = stack.enter_context(tempfile.TemporaryFile())
    length = 0
    with tqdm(
        desc=f"expanding {PurePosixPath(where).name}", unit="B", unit_scale=True, leave=False, disable=None
    ) as bar:
        while block := packed.read(1 << 20):
            length += len(block)
            if size is not None:
                refuse_bomb(where, length, size)
            plain.write(block)
            bar.update(len(block))
    plain.seek(0)
    return plain


def refuse_bomb(where: str, length: int, packed: int) -> None:
    if length > LARGE and length > RATIO * packed:
        raise UsageError(
            f"{where}: refused, it expands to more than {RATIO} times its {packed:,} bytes, expected pictures; "
            "fetch it again"
        )


def _same(first: BinaryIO, second: BinaryIO) -> bool:
    while block := first.read(1 << 20):
        if block != second.read(len(block)):
            return False
    return not second.read(1)


def looks_like_one(head: bytes) -> bool:
    """By its first 512 bytes, whatever it is called."""
    starts = (*ZIP, *STREAMS, *OTHERS)
    return head.startswith(starts) or head[257:262] == b"ustar"
