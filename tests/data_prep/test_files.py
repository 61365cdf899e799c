"""Archives and folders are opened without trusting them, and images come out as a person sees them."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import files, pictures
from tests.data_prep.helpers import COUNTS, class_folders, contents, pack


def tar_with(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, 0
        file.addfile(member)
    return path


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/tmp/evil.png", "..\\evil.png", "C:/evil.png"])
@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_an_archive_member_that_climbs_out_is_refused_by_name(name, suffix, tmp_path, refused):
    path = tmp_path / f"archive{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, b"")
    else:
        tar_with(path, name)
    before = contents(tmp_path)
    line = refused("--dataset", "birds", "--raw", path)
    assert "climbs out" in line and repr(name) in line
    assert contents(tmp_path) == before and not Path("/tmp/evil.png").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_an_archive_are_refused_by_name(kind, tmp_path, refused):
    path = tar_with(tmp_path / "archive.tar", "a/b.png", kind, "/etc/passwd")
    assert "'a/b.png' is a link or device" in refused("--dataset", "birds", "--raw", path)


def test_a_link_in_a_zip_is_refused_by_name(tmp_path, refused):
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as file:
        member = zipfile.ZipInfo("a/b.png")
        member.external_attr = 0o120777 << 16
        file.writestr(member, "/etc/passwd")
    assert "'a/b.png' is a link" in refused("--dataset", "birds", "--raw", tmp_path / "archive.zip")


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz"])
def test_half_an_archive_is_refused(suffix, tmp_path, refused):
    raw = class_folders(tmp_path / "raw", COUNTS)
    (raw / "z.txt").write_bytes(os.urandom(20000))  # so that the end isn't only padding
    path = pack(raw, tmp_path / f"archive{suffix}")
    data = path.read_bytes()
    for length in (0, 100, len(data) // 4, len(data) // 4 // 512 * 512, len(data) // 2, len(data) * 3 // 4):
        path.write_bytes(data[:length])
        assert f"archive{suffix}" in refused("--dataset", "birds", "--raw", path)


def test_hidden_files_and_links_to_folders_above_are_passed_over(tmp_path):
    raw = class_folders(tmp_path / "raw", {"ant": 2})
    (raw / "ant" / "._00.png").write_bytes(b"")
    (raw / "__MACOSX").mkdir()
    (raw / "__MACOSX" / "00.png").write_bytes(b"")
    (raw / "ant" / "loop").symlink_to(raw)
    with files.open_files([raw]) as found:
        assert list(found) == ["ant/00.png", "ant/01.png"]


def test_transparent_turned_and_16_bit_images_come_out_as_they_are_seen():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (np.asarray(pictures.squared(clear, 8)) == 255).all()
    deep = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    assert (np.asarray(pictures.squared(deep, 8, "L")) == 0x80).all()
    turned = Image.new("L", (16, 8), 0)
    turned.paste(255, (8, 0, 16, 8))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright: turn it clockwise
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    upright = np.asarray(pictures.squared(Image.open(buffer), 8, "L"))
    assert upright[0].max() < 50 and upright[-1].min() > 200
