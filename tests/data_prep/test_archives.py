"""Archives in archives, of any compression and from any system, and what one of them may hold that it shouldn't."""

import bz2
import gzip
import io
import subprocess
import sys
import tarfile
import zipfile
import zlib

import numpy as np
import pytest

from common.shards import ROOT
from data_prep import archives, build
from tests.data_prep.helpers import COUNTS, built, class_folders, pack, splits_of


def zip_of(path, members):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def zipped(path):
    """A zip that holds a file."""
    return zip_of(path.with_name(f"{path.name}.zip"), {path.name: path.read_bytes()})


def gzipped(path):
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def prefixed(path):
    path.write_bytes(b"MZ" + bytes(1000) + path.read_bytes())
    return path


def below(path, folder):
    (folder / "deep" / "er").mkdir(parents=True)
    path.rename(folder / "deep" / "er" / path.name)
    (folder / "README.txt").write_text("about")
    return folder


WRAPPED = {
    "tar.bz2": lambda raw, place: pack(raw, place / "set.tar.bz2"),
    "zip in a zip": lambda raw, place: zipped(pack(raw, place / "set.zip")),
    "zip in a zip in a zip": lambda raw, place: zipped(zipped(pack(raw, place / "set.zip"))),
    "tar.gz in a zip": lambda raw, place: zipped(pack(raw, place / "set.tar.gz")),
    "zip below folders": lambda raw, place: below(pack(raw, place / "set.zip"), place / "folder"),
    "tar.bz2 below folders": lambda raw, place: below(pack(raw, place / "set.tar.bz2"), place / "folder"),
    "zip in a tar": lambda raw, place: pack(below(pack(raw, place / "set.zip"), place / "folder"), place / "outer.tar"),
    "tar that is called tar.gz": lambda raw, place: pack(raw, place / "set.tar").rename(place / "set.tar.gz"),
    "zip without a suffix": lambda raw, place: pack(raw, place / "set.zip").rename(place / "download"),
    "tar.gz without a suffix": lambda raw, place: pack(raw, place / "set.tar.gz").rename(place / "download"),
    "tar.gz packed twice": lambda raw, place: gzipped(pack(raw, place / "set.tar.gz")),
    "zip.gz": lambda raw, place: gzipped(pack(raw, place / "set.zip")),
    "a program that unpacks itself": lambda raw, place: prefixed(pack(raw, place / "set.zip")),
    "capitals": lambda raw, place: pack(raw, place / "set.zip").rename(place / "SET.ZIP"),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_archives_are_found_and_read_however_they_are_packed(how, tmp_path):
    raw = class_folders(tmp_path / "raw", COUNTS)
    expected = splits_of(built("birds", raw, tmp_path / "data", "--size", "8"))
    (tmp_path / "place").mkdir()
    wrapped = WRAPPED[how](raw, tmp_path / "place")
    found = splits_of(built("birds", wrapped, tmp_path / "data", "--size", "8"))
    for split, (images, _, names) in expected.items():
        np.testing.assert_array_equal(found[split][0], images)
        assert found[split][2] == names


def test_there_may_be_more_archives_than_a_process_may_open_files_at_first(tmp_path):
    picture = (class_folders(tmp_path, {"one": 1}) / "one" / "00.png").read_bytes()
    for c in range(70):
        zip_of(tmp_path / "raw" / f"class {c}.zip", {"0.png": picture})
    command = [sys.executable, ROOT / "data_prep" / "build.py", "--dataset", "x", "--size", "8"]
    command += ["--raw", tmp_path / "raw", "--data-dir", tmp_path / "data"]
    done = subprocess.run(["sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_zip_for_each_split_is_the_split(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for split, name in (("Train", "ant"), ("Val", "bee"), ("Test", "cat")):
        pack(class_folders(tmp_path / split, {name: 2}), raw / f"{split}.zip")
    found = splits_of(built("birds", raw, tmp_path / "data", "--size", "8"))
    assert [found[split][2] for split in ("train", "val", "test")] == [["ant"], ["bee"], ["cat"]]


def test_backslashes_between_folders_as_windows_writes_them_are_folders(tmp_path):
    raw = class_folders(tmp_path / "raw", COUNTS)
    members = {str(p.relative_to(raw)).replace("/", "\\"): p.read_bytes() for p in sorted(raw.rglob("*.png"))}
    found = splits_of(built("birds", zip_of(tmp_path / "windows.zip", members), tmp_path / "data", "--size", "8"))
    assert sorted(sum((names for _, _, names in found.values()), [])) == sorted(COUNTS)


def test_names_that_are_utf_8_without_saying_so_as_macs_write_them_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile.ZipInfo, "_encodeFilenameFlags", lambda self: (self.filename.encode(), self.flag_bits))
    raw = class_folders(tmp_path / "raw", dict.fromkeys(("Bär", "Äpfel", "Öl"), 2))
    found = splits_of(built("fruit", pack(raw, tmp_path / "mac.zip"), tmp_path / "data", "--size", "8"))
    assert sorted(sum((names for _, _, names in found.values()), [])) == ["Bär", "Äpfel", "Öl"]


def test_the_zip_of_a_set_of_ones_own_is_opened_beside_arrays_of_something_else(tmp_path):
    (tmp_path / "raw").mkdir()
    pack(class_folders(tmp_path / "birds", COUNTS), tmp_path / "raw" / "birds.zip")
    (tmp_path / "raw" / "features.npz").write_bytes(b"not read")
    built("birds", tmp_path / "raw", tmp_path / "data", "--size", "8")


def test_an_archive_beside_whole_class_folders_is_passed_over_and_counted(tmp_path, capsys):
    raw = class_folders(tmp_path / "raw", COUNTS)
    pack(class_folders(tmp_path / "other", {"gnu": 2}), raw / "more.zip")
    built("birds", raw, tmp_path / "data", "--size", "8")
    assert "1 files passed over (1 .zip)" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_two_members_of_one_name_are_refused_where_they_differ_and_one_where_they_agree(suffix, tmp_path, refused):
    raw = class_folders(tmp_path / "raw", COUNTS)
    for other in ("ant/00.png", "ant/01.png"):
        path = pack(raw, tmp_path / f"archive{suffix}")
        content = (raw / other).read_bytes()
        if suffix == ".zip":
            with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("ant/00.png", content)
        else:
            with tarfile.open(path, "a") as archive:
                member = tarfile.TarInfo("ant/00.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        if other == "ant/00.png":
            built("birds", path, tmp_path / "data", "--size", "8")
        else:
            assert "ant/00.png is there twice, with different content" in refused("--dataset", "birds", "--raw", path)


@pytest.mark.parametrize(
    ("head", "kind"), [(b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07", "rar"), (b"(\xb5/\xfd", "zstd")]
)
def test_an_archive_of_a_kind_that_is_not_read_says_what_to_do(head, kind, tmp_path, refused):
    (tmp_path / "set.zip").write_bytes(head + bytes(100))
    line = refused("--dataset", "birds", "--raw", tmp_path / "set.zip")
    assert f"a {kind} archive" in line and "unpack it, and give the folder" in line


def test_a_member_that_is_encrypted_says_so(tmp_path, refused):
    path = pack(class_folders(tmp_path / "raw", COUNTS), tmp_path / "archive.zip")
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2")
    while at >= 0:
        data[at + 8] |= 1  # the flag of encryption, in the central directory
        at = data.find(b"PK\1\2", at + 1)
    path.write_bytes(data)
    line = refused("--dataset", "birds", "--raw", path)
    assert "encrypted" in line and "unpack it" in line


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.bz2"])
def test_an_archive_that_expands_to_far_more_than_pictures_do_is_refused(suffix, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(archives, "LARGE", 1 << 20)
    content = bytes(3 << 20)
    path = tmp_path / f"bomb{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("ant", "bee", "cat"):
                archive.writestr(f"{name}/00.png", content)
    else:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            member = tarfile.TarInfo("ant/00.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        path.write_bytes((gzip if suffix == ".tar.gz" else bz2).compress(buffer.getvalue()))
    assert "expands to more than 200 times" in refused("--dataset", "birds", "--raw", path)


def test_a_member_that_is_not_read_may_expand_to_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGE", 1 << 20)
    raw = class_folders(tmp_path / "raw", COUNTS)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(raw.rglob("*.png")):
            archive.write(path, path.relative_to(raw))
        archive.writestr("log.txt", bytes(3 << 20))
    built("birds", tmp_path / "set.zip", tmp_path / "data", "--size", "8")


def test_a_damaged_archive_within_another_is_named_by_its_whole_path(tmp_path, refused):
    path = zip_of(tmp_path / "outer.zip", {"inner.zip": b"PK\3\4" + zlib.compress(b"x" * 100)})
    assert f"{path}/inner.zip: damaged" in refused("--dataset", "birds", "--raw", path)


def test_what_was_passed_over_is_counted_in_the_summary_line(tmp_path, capsys):
    raw = class_folders(tmp_path / "raw", COUNTS)
    (raw / "ant" / "notes.txt").write_text("x")
    (raw / "ant" / "00.heic").write_bytes(b"x")
    (raw / "gnu").mkdir()
    (raw / "gnu" / "00.heic").write_bytes(b"x")
    (raw / "hen").mkdir()
    (raw / "LICENSE").write_text("x")
    (raw / "ant" / "._00.png").write_bytes(b"")
    assert (
        build.main(["--dataset", "birds", "--raw", str(raw), "--data-dir", str(tmp_path / "data"), "--size", "8"]) == 0
    )
    last = capsys.readouterr().out.splitlines()[-1]
    assert "4 files passed over (2 .heic, 1 no suffix, 1 .txt) · 1 hidden files passed over" in last
    assert "2 folders nothing was read from (gnu, hen)" in last
