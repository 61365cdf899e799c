"""Small raw sets of each kind that data_prep reads, and what may be wrong with one of their files."""

import bz2
import functools
import gzip
import io
import json
import lzma
import os
import pickle
import random
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from tests.data_prep.miniimagenet_layouts import images_and_csv, random_jpegs

SIDE = 8  # pixels of the sets' pictures
CLASSES = {"train": 2, "val": 1, "test": 1}
IMAGES = 2  # a class


def pixels(rng: random.Random, mode: str = "RGB") -> Image.Image:
    array = np.frombuffer(rng.randbytes(SIDE * SIDE * 3), np.uint8).reshape(SIDE, SIDE, 3)
    if mode == "I;16":
        return Image.fromarray(array[:, :, 0].astype(np.uint16) * 200)
    if mode == "F":
        return Image.fromarray(array[:, :, 0].astype(np.float32))
    return Image.fromarray(array).convert(mode)


def encoded(rng: random.Random, suffix: str = ".png", mode: str = "RGB", **how) -> bytes:
    buffer = io.BytesIO()
    pixels(rng, mode).save(buffer, Image.registered_extensions()[suffix], **how)
    return buffer.getvalue()


# The sets: each writes its files into a folder, and returns the command's options and the files to damage.


def pictures(folder: Path, rng: random.Random) -> tuple[list[str], list[Path]]:
    """Class folders of a picture of each format and depth."""
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [(".jpg", "RGB", {"exif": exif}), (".png", "RGBA", {}), (".gif", "P", {}), (".bmp", "RGB", {})]
    kinds += [(".webp", "RGB", {}), (".tif", "RGB", {}), (".png", "I;16", {}), (".tif", "F", {}), (".ppm", "RGB", {})]
    kinds += [(".tga", "RGB", {}), (".jp2", "RGB", {}), (".ico", "RGB", {}), (".pcx", "RGB", {}), (".png", "P", {})]
    kinds += [(".jpg", "CMYK", {}), (".tif", "RGB", {"compression": "tiff_lzw"})]
    files = []
    for i, (suffix, mode, how) in enumerate(kinds):
        file = folder / f"class{i % 4}" / f"{i}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(rng, suffix, mode, **how))
        files.append(file)
    return ["--dataset", "x", "--size", str(SIDE)], files


def tables(folder: Path, rng: random.Random) -> tuple[list[str], list[Path]]:
    """A folder of pictures with a table."""
    (folder / "images").mkdir(parents=True)
    rows = ["FILE_NAME,CATEGORY,SUPER"]
    for c in range(4):
        for i in range(IMAGES):
            (folder / "images" / f"{c}{i}.png").write_bytes(encoded(rng))
            rows.append(f"{c}{i}.png,class{c},{c % 2}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return ["--dataset", "x", "--size", str(SIDE)], [folder / "labels.csv"]


def csv_files(folder: Path, rng: random.Random) -> tuple[list[str], list[Path]]:
    """mini-ImageNet, made small, with its three csv files."""
    images_and_csv(random_jpegs(), folder)
    return ["--dataset", "miniimagenet"], sorted(folder.glob("*.csv"))


def class_lists(folder: Path, rng: random.Random) -> tuple[list[str], list[Path]]:
    """Class folders with lists of the classes of each split, in json, or as text below a long comment."""
    is_json = rng.random() < 0.5
    files = []
    for split, names in {"train": ["class0", "class1"], "val": ["class2"], "test": ["class3"]}.items():
        for name in names:
            (folder / "data" / name).mkdir(parents=True)
            for i in range(IMAGES):
                (folder / "data" / name / f"{i}.png").write_bytes(encoded(rng))
        files.append(folder / f"{split}.{'json' if is_json else 'txt'}")
        files[-1].write_text(json.dumps(names) if is_json else "\n".join([f"# {'a comment ' * 9}", *names]))
    return ["--dataset", "x", "--size", str(SIDE)], files


def pickles(folder: Path, rng: random.Random) -> tuple[list[str], list[Path]]:
    """CIFAR-FS, made small."""
    folder.mkdir()
    files = []
    for split, n in CLASSES.items():
        data = np.frombuffer(rng.randbytes(n * IMAGES * SIDE * SIDE * 3), np.uint8).reshape(-1, SIDE, SIDE, 3)
        content = {"data": data, "labels": [c for c in range(n) for _ in range(IMAGES)]}
        files.append(folder / f"CIFAR_FS_{split}.pickle")
        files[-1].write_bytes(pickle.dumps(content, protocol=rng.choice([2, 4, 5])))
    return ["--dataset", "cifarfs"], files


def encoded_pickles(folder: Path, rng: random.Random) -> tuple[list[str], list[Path]]:
    """tieredImageNet, made small: lists of PNG files, with labels beside them."""
    folder.mkdir()
    files = []
    for split, n in CLASSES.items():
        images = [np.frombuffer(encoded(rng), np.uint8) for _ in range(n * IMAGES)]
        labels = {
            "label_specific": np.arange(n * IMAGES) // IMAGES,
            "label_specific_str": [f"{split}{c}" for c in range(n)],
        }
        for name, content in (("images_png", images), ("labels", labels)):
            files.append(folder / f"{split}_{name}.pkl")
            files[-1].write_bytes(pickle.dumps(content, protocol=2))
    return ["--dataset", "tieredimagenet"], files


def npz_files(folder: Path, rng: random.Random) -> tuple[list[str], list[Path]]:
    """tieredImageNet, made small: arrays of pixels, with labels beside them."""
    _, files = encoded_pickles(folder, rng)
    for split, n in CLASSES.items():
        data = np.frombuffer(rng.randbytes(n * IMAGES * SIDE * SIDE * 3), np.uint8).reshape(-1, SIDE, SIDE, 3)
        (folder / f"{split}_images_png.pkl").unlink()
        np.savez_compressed(folder / f"{split}_images.npz", images=data)
    return ["--dataset", "tieredimagenet"], sorted(folder.glob("*.npz"))


def zips(folder: Path, rng: random.Random) -> tuple[list[str], list[Path]]:
    """A zip of class folders."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "set.zip", "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name, data in _members(rng):
            archive.writestr(name, data)
    return ["--dataset", "x", "--size", str(SIDE)], [folder / "set.zip"]


def tars(folder: Path, rng: random.Random) -> tuple[list[str], list[Path]]:
    """A tar of class folders, packed again or not."""
    folder.mkdir()
    file = folder / rng.choice(["set.tar", "set.tar.gz", "set.tar.bz2", "set.tar.xz"])
    file.write_bytes(_packed(_tar(_members(rng)), file.suffix))
    return ["--dataset", "x", "--size", str(SIDE)], [file]


def torchmeta(folder: Path, rng: random.Random) -> tuple[list[str], list[Path]]:
    """tieredImageNet, made small, in HDF5."""
    folder.mkdir()
    files = []
    for split, n in CLASSES.items():
        files.append(folder / f"{split}_data.hdf5")
        with h5py.File(files[-1], "w") as file:
            for c in range(n):
                data = np.frombuffer(rng.randbytes(IMAGES * SIDE * SIDE * 3), np.uint8)
                file[f"datasets/{split}{c}"] = data.reshape(IMAGES, SIDE, SIDE, 3)
    return ["--dataset", "tieredimagenet"], files


def _members(rng: random.Random) -> list[tuple[str, bytes]]:
    return [(f"class{c}/{i}.png", encoded(rng)) for c in range(4) for i in range(IMAGES)]


def _tar(members: list[tuple[str, bytes]], *more: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in more:
            archive.addfile(member)
    return buffer.getvalue()


def _packed(data: bytes, suffix: str) -> bytes:
    return {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(suffix, bytes)(data)


# What may be wrong with a file: with any, and with one of a kind.


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut short, with other bytes, with numbers that declare huge sizes, with a part twice or not at all."""
    how = rng.randrange(7)
    array = bytearray(data)
    place = rng.randrange(max(1, len(data)))
    length = rng.choice([1, 2, 4, 8, 64, 512])
    if how == 0:
        return data[:place]
    if how == 1:
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            array[rng.randrange(len(array))] ^= 1 << rng.randrange(8)
    elif how == 2:
        array[place : place + length] = rng.randbytes(length)
    elif how == 3:
        array[place : place + 8] = rng.choice(
            [b"\xff" * 4, b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2**40), b"\x7f" * 4]
        )
    elif how == 4:
        del array[place : place + length]
    elif how == 5:
        array[place:place] = array[place : place + length]
    else:
        array += rng.randbytes(length)
    return bytes(array)


Forged = list[tuple[str, Callable[[], bytes]]]  # another suffix or none, and what makes the content


def forged_pictures(rng: random.Random, mark: Path) -> Forged:
    """Pictures that declare huge sizes, or hold what they shouldn't."""

    def png() -> bytes:
        sides = rng.choice([(2**31 - 1, 2**31 - 1), (60000, 60000), (0, 0), (11000, 11000)])
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", *sides, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000)))]
        chunks.append((b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )

    return [
        (".png", png),
        (".ppm", lambda: b"P6 999999 999999 255 " + bytes(100)),
        (".png", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(" + str(mark).encode() + b") (w) file\n"),
        (".gif", lambda: encoded(rng, ".gif", "P")[:-1] + b",\0\0\0\0" * 50),
        (".tif", lambda: b"II*\0" + struct.pack("<IH", 8, 65535) + rng.randbytes(500)),
        (".jpg", lambda: b""),
        (".png", lambda: flat_png(11000 if rng.random() < 0.03 else 1000)),
    ]


@functools.cache
def flat_png(side: int) -> bytes:
    """A large picture in a small file."""
    buffer = io.BytesIO()
    Image.new("RGBA", (side, side)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def forged_tables(rng: random.Random, mark: Path) -> Forged:
    """Tables with other types, encodings and paths."""
    head = b"FILE_NAME,CATEGORY\n"
    contents = [
        head + b"x" * 300_000,
        "FILE_NAME;CATEGORY\n../../00.png;a\n/etc/passwd;b\n".encode("utf-16"),
        b"\0\0\0\n\0" * 50,
        head + b"".join(b"%d0.png,\xff\xfe%d\x00\n" % (c, c) for c in range(4)),
        b'FILE_NAME,CATEGORY\n"' + b"00.png,a\n" * 5000,
        head + b"00.png,a\n01.png,a\n" * 5 + b"10.png,b\n20.png,c\n",
        head + b"00.png,a\n" * 20_000 + b"10.png,b\n20.png,\n",
    ]
    return [("", lambda content=content: content) for content in contents]


def forged_csv(rng: random.Random, mark: Path) -> Forged:
    """csv files with other columns, names and paths."""
    heads = ["filename,label", "class_name;image_name", "label,label", "filename", ",,,", "filename,label,filename"]
    lines = [
        "../../x.jpg,n01532829",
        "n0153282900000002.jpg,n01532829",
        "n01532829 99999999.jpg,n01532829",
        "\0,\0",
        '"',
    ]

    def table() -> bytes:
        rows = [rng.choice(lines) for _ in range(rng.choice([0, 1, 5]))]
        return "\n".join([rng.choice(heads), *rows]).encode(rng.choice(["utf-8", "utf-16", "latin-1"]))

    return [("", table)]


def forged_lists(rng: random.Random, mark: Path) -> Forged:
    """Lists with other types, names and depths."""
    values = [[1, None, {"a": 2}], {"image_names": "x", "image_labels": 3}, ["\ud800", "class0\0", "../class1"], "x", 3]
    contents = [b"[" * 100_000, b"[" + b"1" * 10_000 + b"]", *(json.dumps(value).encode() for value in values)]
    return [("", lambda content=content: content) for content in contents]


class Runs:
    """What makes a folder when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def forged_pickles(rng: random.Random, mark: Path) -> Forged:
    """Pickles that run code, declare huge sizes, or hold other shapes and types."""

    def by_reference() -> bytes:
        deep = [0]
        for _ in range(30):
            deep = [deep] * 10  # 10 ** 30 numbers
        return pickle.dumps({"data": deep, "labels": deep}, protocol=2)

    def one_often() -> bytes:
        one = np.zeros((SIDE, SIDE, 3), np.uint8)
        return pickle.dumps({"data": [one] * 50_000, "labels": [0] * 50_000}, protocol=2)

    def other_types() -> bytes:
        data = [np.zeros((4, SIDE, SIDE)), np.zeros((4, SIDE, SIDE, 3)), "x", None, [[1], [1, 2]], np.array([b"ab"])]
        labels = [[0] * 4, np.zeros(4), "abcd", [None] * 4, {0: 1}, [[0]] * 4]
        return pickle.dumps({"data": rng.choice(data), "labels": rng.choice(labels)})

    return [
        ("", lambda: pickle.dumps({"data": Runs(mark), "labels": [0]}, protocol=rng.choice([0, 2, 4]))),
        ("", lambda: f"cbuiltins\neval\n(S'__import__(\"os\").mkdir({str(mark)!r})'\ntR.".encode()),
        ("", lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x"),
        ("", lambda: b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"x."),
        ("", lambda: b"\x80\x02K\x01r" + struct.pack("<I", 2**29) + b"."),  # for which C's memo takes gigabytes
        ("", lambda: b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
        ("", by_reference),
        ("", one_often),
        ("", other_types),
        ("", lambda: pickle.dumps([np.zeros(3), b"x", 7])),
        ("", lambda: b"(" * 50_000 + b"l" * 50_000 + b"."),
    ]


def forged_npz(rng: random.Random, mark: Path) -> Forged:
    """Arrays that declare huge sizes, hold pickles, or have no head."""

    def npy(header: str, data: bytes = b"") -> bytes:
        text = header.encode() + b"\n"
        return zip_of([("images.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data)])

    start = "{'descr': '|u1', 'fortran_order': False, 'shape': "
    return [
        ("", lambda: npy(f"{start}({2**40}, {SIDE}, {SIDE}, 3)}}")),
        ("", lambda: npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps(Runs(mark)))),
        ("", lambda: npy(f"{start}(-1, 3)}}")),
        ("", lambda: npy("[" * 5000)),
        ("", lambda: zip_of([("images.npy", bytes(1000))])),
        ("", lambda: bomb("images.npy")),
    ]


def zip_of(members: list[tuple[str | zipfile.ZipInfo, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, data in members:
                archive.writestr(name, data)
    return buffer.getvalue()


@functools.cache
def bomb(name: str) -> bytes:
    """A zip of 300 MiB of nothing."""
    return zip_of([(name, bytes(300 << 20))])


@functools.cache
def packed_bomb() -> bytes:
    return gzip.compress(_tar([("class0/bomb.png", bytes(300 << 20))]), 1)


def forged_zips(rng: random.Random, mark: Path) -> Forged:
    """Members that climb out, are links, are there twice, are archives, or expand to far more than they are."""
    link = zipfile.ZipInfo("class0/link.png")
    link.external_attr = 0o120777 << 16
    climbing = ["../../evil.png", str(mark), "..\\evil.png", "C:/evil.png", "a/" * 3000 + "x.png"]
    inner = [("0.zip", b"PK\3\4"), ("1.zip", zip_of([("class0/0.png", bytes(5 << 20))]))]
    return [
        *(("", lambda name=name: zip_of([*_members(rng), (name, encoded(rng))])) for name in climbing),
        ("", lambda: zip_of([*_members(rng), (link, b"/etc/passwd")])),
        ("", lambda: zip_of([*_members(rng), ("class0/0.png", encoded(rng))])),  # another picture of that name
        ("", lambda: bomb("class0/bomb.png")),
        ("", lambda: zip_of(inner)),
        ("", lambda: zip_of(_members(rng)).replace(b"class1/0.png", b"class0/0.png")),
        ("", lambda: zip_of(_members(rng), zipfile.ZIP_LZMA)),
    ]


def forged_tars(rng: random.Random, mark: Path) -> Forged:
    """Members that climb out, are links or pipes, declare huge sizes, or are there twice; archives in archives."""

    def with_member(kind: bytes, size: int = 0) -> bytes:
        member = tarfile.TarInfo("class0/other.png")
        member.type, member.linkname, member.size = kind, "/etc/passwd", size
        return _tar(_members(rng), member)

    climbing = ["../../evil.png", str(mark), "class0/../../../evil.png"]
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]
    return [
        *(("", lambda name=name: _tar([*_members(rng), (name, encoded(rng))])) for name in climbing),
        *(("", lambda kind=kind: with_member(kind)) for kind in kinds),
        ("", lambda: with_member(tarfile.REGTYPE, 2**62)),
        ("", lambda: _tar([*_members(rng), ("class0/0.png", encoded(rng))])),
        ("", packed_bomb),
        ("", lambda: _tar([("inner.tar", _tar([("inner.tar", _tar(_members(rng)))]))])),
    ]


def forged_hdf5(rng: random.Random, mark: Path) -> Forged:
    """Other shapes and types, links and huge sizes, in files of torchmeta's names and of this project's."""

    def change(file: h5py.File, which: int) -> None:
        if which < 6:
            del file[(name := ["images", "class_start", "class_names"][which % 3])]
            file[name] = rng.choice([3, "text", np.float32(1.5), np.zeros((2, 2, 2)), np.arange(0)])
        elif which < 8:
            del file["images"]
            file["images"] = h5py.ExternalLink("/etc/passwd", "/x") if which == 6 else h5py.SoftLink("/images")
        elif which == 8:
            del file["class_start"]
            file.create_dataset("class_start", (2**40,), np.int64, chunks=(1024,))
        elif which == 9:
            del file["images"]
            file.create_dataset("images", (2**30, 1, SIDE, SIDE), np.uint8, chunks=(1, 1, SIDE, SIDE))
        elif which == 10:
            file.attrs["mean"] = rng.choice(["text", np.nan, [1, 2, 3]])
        elif which == 11:
            file.attrs["version"] = rng.choice(["1", [1, 2], 2.5])
        elif which == 12:
            file["class_start"][...] = rng.choice([[0, 3, 2], [-1, 0, 4], [0, 0, 4], [0, 2, 2**60]])
        elif which == 13:
            file["datasets/a"] = h5py.SoftLink("/datasets")
            file["datasets/b"] = np.zeros((2, 3), "f8")
        else:
            file.create_dataset("datasets/big", (2**40, SIDE, SIDE, 3), np.uint8, chunks=(1, SIDE, SIDE, 3))

    def changed(which: int) -> bytes:
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file.attrs.update(version=1, mean=[0.5], std=[0.2])
            file["images"], file["class_start"] = np.zeros((4, 1, SIDE, SIDE), np.uint8), [0, 2, 4]
            file["class_names"] = ["a", "b"]
            change(file, which)
        return buffer.getvalue()

    return [("", lambda which=which: changed(which)) for which in range(15)]
