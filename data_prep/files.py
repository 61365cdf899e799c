"""Raw files read in place: a folder and an archive look the same, and what a build reads of them is counted."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from common.shards import UsageError
from data_prep import archives
from data_prep.archives import Members, Opener

PICTURE_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k", ".avif", ".ico", ".pcx", ".sgi", ".qoi",
)  # fmt: skip
PICKLE_SUFFIXES = (".pkl", ".pickle")
HDF5_SUFFIXES = (".h5", ".hdf5")
ARRAY_SUFFIXES = (*PICKLE_SUFFIXES, *HDF5_SUFFIXES, ".npz")
LARGEST_PICTURE = 2**28  # bytes; arrays may be larger
LARGEST_TABLE = 2**25  # as its cells take more memory than they have letters
FEW_PICTURES = 10  # which may lie beside arrays
NESTED = 4  # how deep archives may lie in archives
MOST_ARCHIVES = 2000  # at each depth; ILSVRC has a thousand


class RawFiles:
    """The files below `shown` by name, with "/" between its parts, sorted; hidden ones are left out.

    used: the names that were opened. said: what the person who builds should know beside the summary.
    """

    def __init__(self, shown: str, openers: dict[str, Opener], hidden: list[str], folders: list[str]):
        self.shown, self.hidden, self.folders = shown, hidden, folders
        self.openers = {name: openers[name] for name in sorted(openers)}
        self.used: set[str] = set()
        self.said: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self.openers)

    def __contains__(self, name: str) -> bool:
        return name in self.openers

    def pictures(self) -> list[str]:
        return [name for name in self if is_picture(name)]

    def arrays(self) -> list[str]:
        """The files of arrays; none where there are pictures, but for a few such as a preview."""
        found = [name for name in self if name.lower().endswith(ARRAY_SUFFIXES)]
        return found if len(self.pictures()) < FEW_PICTURES else []

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Raises UsageError, in the opening and within, where the archive that holds the file is damaged."""
        self.used.add(name)
        try:
            with self.openers[name]() as file:
                yield file
        except archives.BROKEN as error:
            raise UsageError(f"{name}: can't be read from its archive ({error}); fetch the archive again") from None
        except (RuntimeError, NotImplementedError) as error:  # an encrypted zip, or one packed in an unusual way
            raise UsageError(
                f"{name}: can't be read from its archive ({error}); unpack it, and give the folder"
            ) from None

    def read(self, name: str) -> bytes:
        """The content of a picture. Raises UsageError where that can't be read or is too large."""
        with self.open(name) as file:
            return _no_more_than(LARGEST_PICTURE, file, name)

    def table(self, name: str) -> bytes:
        """The content of a table or list. Raises UsageError where that can't be read or is too large."""
        with self.open(name) as file:
            return _no_more_than(LARGEST_TABLE, file, name)

    def passed_over(self) -> str:
        """What was not opened, for the summary line: how many files with which suffixes, and folders without any."""
        left = [name for name in self if name not in self.used]
        parts = [f"{len(left):,} files passed over ({kinds_of(left)})"] if left else []
        if self.hidden:
            parts.append(f"{len(self.hidden):,} hidden files passed over")
        folders = _with_those_above({*self.folders, *(name.rpartition("/")[0] for name in self)})
        empty = folders - _with_those_above({name.rpartition("/")[0] for name in self.used})
        # Of folders in one another, the innermost: a class that vanished, not the folders that hold it.
        empty = sorted(empty - {above for folder in empty for above in _with_those_above({folder}) - {folder}})
        if empty:
            parts.append(f"{len(empty):,} folders nothing was read from ({a_few(empty)})")
        return " · ".join(parts)


@contextmanager
def open_files(paths: list[Path], always: tuple[str, ...] = (), arrays: bool = True) -> Iterator[RawFiles]:
    """The files of folders and archives; those of the second and later ones as if they lay in a folder of its name.

    An archive within a folder or another archive reads as a folder named after it, where it is called as in `always`,
    or where pictures outside of archives make no data set, nor do `arrays`, where the set may be made of them.
    Raises UsageError where a path isn't there, is no archive or a damaged one, and for a member that is a link, climbs
    out, or is there twice.
    """
    with ExitStack() as stack:
        joined, hidden = Members(" ".join(map(str, paths))), []
        for path in paths:
            members = _opened(path, stack)
            for _ in range(NESTED):
                within = [name for name in members.files if archives.is_archive(name) and not _hidden(name)]
                if _makes_no_set(members.files, arrays):
                    chosen = [name for name in within if not name.lower().endswith(archives.NOT_READ)] or within
                else:
                    chosen = [name for name in within if PurePosixPath(name).name in always]
                if not chosen:
                    break
                if len(chosen) > MOST_ARCHIVES:
                    raise UsageError(f"--raw {path}: {len(chosen):,} archives within it, expected no more than a class")
                _allow_open_files(3 * len(chosen))
                for name in chosen:
                    _replace_by_content(members, name, path, stack)
            name = path.name if path.is_dir() else archives.without_suffix(path.name)
            prefix = f"{name}/" if len(paths) > 1 else ""
            for name, opener in members.files.items():
                if _hidden(name):
                    hidden.append(name)
                else:
                    joined.add_file(prefix + name, opener)
            joined.folders += [prefix + name for name in members.folders if not _hidden(name)]
        yield RawFiles(joined.where, joined.files, hidden, joined.folders)


def walk(folder: Path, onerror: Callable | None = None) -> Iterator[tuple[Path, list[str], list[str]]]:
    """os.walk in the order of names, also into folders that are links; but not into a link to a folder above, which
    would be walked for ever."""
    for root, folders, names in os.walk(folder, onerror=onerror, followlinks=True):
        here = Path(root).resolve()
        folders[:] = sorted(name for name in folders if Path(root, name).resolve() not in (here / name).parents)
        yield Path(root), folders, sorted(names)


def table_of(path: Path) -> bytes:
    """The content of a table or list that was given by hand. Raises UsageError where it is too large."""
    with open(path, "rb") as file:
        return _no_more_than(LARGEST_TABLE, file, str(path))


def _no_more_than(most: int, file: BinaryIO, name: str) -> bytes:
    data = file.read(most + 1)
    if len(data) > most:
        raise UsageError(f"{name}: more than {most >> 20} MiB, expected a picture, a table or a list; take it out")
    return data


def kinds_of(names: Iterable[str]) -> str:
    """How many have which suffix, as in 12 .txt, 3 no suffix."""
    suffixes = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
    kinds = [f"{count:,} {suffix}" for suffix, count in suffixes.most_common(6)]
    return ", ".join(kinds) + ", ..." * (len(suffixes) > 6)


def is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_SUFFIXES)


def is_pickle(name: str) -> bool:
    return name.lower().endswith(PICKLE_SUFFIXES)


def is_hdf5(name: str) -> bool:
    return name.lower().endswith(HDF5_SUFFIXES)


def a_few(names: Iterable, most: int = 3) -> str:
    """The first of them, and that there are more, for messages."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)


def _with_those_above(folders: set[str]) -> set[str]:
    return {str(above) for folder in folders for above in (PurePosixPath(folder), *PurePosixPath(folder).parents)} - {
        "."
    }


def _opened(path: Path, stack: ExitStack) -> Members:
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise UsageError(f"--raw {path}: no such file or folder; check the path")
    if not path.is_file():
        raise UsageError(f"--raw {path}: neither a file nor a folder, expected a folder or an archive")
    if path.name.lower().endswith(ARRAY_SUFFIXES):
        members = Members(str(path))
        members.files[path.name] = _opener(path)
        return members
    with open(path, "rb") as file:
        head = file.read(512)
    if not (archives.is_archive(path.name) or archives.looks_like_one(head)):
        raise UsageError(f"--raw {path}: expected a folder or an archive ({archives.READ})")
    return archives.open_archive(stack.enter_context(open(path, "rb")), str(path), stack)


def _allow_open_files(more: int) -> None:
    """As archives stay open, and a process may often have 1024 files or fewer until it asks for more."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        most = soft + more if hard == resource.RLIM_INFINITY else min(soft + more, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _replace_by_content(members: Members, name: str, path: Path, stack: ExitStack) -> None:
    file = stack.enter_context(members.files.pop(name)())
    within = archives.open_archive(file, f"{path}/{name}", stack)
    place = archives.without_suffix(name)
    for inner, open_inner in within.files.items():
        members.add_file(f"{place}/{inner}", open_inner)
    members.folders += [f"{place}/{inner}" for inner in within.folders]


def _makes_no_set(names: Iterable[str], arrays: bool) -> bool:
    """True where pictures lie in fewer than three folders, as classes of three splits are more."""
    names = [name for name in names if not _hidden(name)]
    if arrays and any(name.lower().endswith(ARRAY_SUFFIXES) for name in names):
        return False
    return len({name.rpartition("/")[0] for name in names if is_picture(name)}) < 3


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _folder(path: Path) -> Members:
    members = Members(str(path))

    def fail(error: OSError):
        raise error

    for root, folders, names in walk(path, fail):
        members.folders += [(root / name).relative_to(path).as_posix() for name in folders]
        members.files |= {(root / name).relative_to(path).as_posix(): _opener(root / name) for name in names}
    return members


def _opener(file: Path) -> Callable[[], BinaryIO]:
    def opened() -> BinaryIO:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for, for ever
            raise UsageError(f"{file}: a pipe or device, expected a file; take it out")
        return open(file, "rb")

    return opened
