"""Pictures of any format, depth and orientation come out as a person sees them, or are named."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image

from data_prep import pictures
from tests.data_prep.helpers import COUNTS, built, class_folders, splits_of

SIZE = 16


def ramp(low, high, dtype):
    """Columns from dark to light."""
    return np.tile(np.linspace(low, high, SIZE), (SIZE, 1)).astype(dtype)


def set_of(folder, save, classes="abcd"):
    """Class folders of a picture each, as `save(path without suffix)` writes them."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        save(folder / name / "0")
    return folder


def images_of(folder):
    return np.concatenate([images for images, _, _ in splits_of(folder).values()])


@pytest.mark.parametrize(
    "suffix", [".jfif", ".jpe", ".JPG", ".jif", ".dib", ".tiff", ".pbm", ".tga", ".jp2", ".avif", ".apng"]
)
def test_pictures_with_any_usual_suffix_are_read(suffix, tmp_path):
    formats = {".jif": "JPEG", ".JPG": "JPEG"}
    picture = Image.fromarray(ramp(0, 255, np.uint8)).convert("1" if suffix == ".pbm" else "RGB")

    def save(path):
        with open(f"{path}{suffix}", "wb") as file:
            picture.save(file, formats.get(suffix) or Image.registered_extensions()[suffix])

    if suffix == ".avif" and "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    images = images_of(built("x", set_of(tmp_path / "raw", save), tmp_path / "data", "--size", SIZE))
    assert images.shape == (4, 3, SIZE, SIZE) and np.ptp(images) > 200


DEPTHS = {
    "16 bits": (np.uint16, 0, 65535, None), "12 bits": (np.uint16, 0, 4095, "4095 white"),
    "10 bits": (np.uint16, 0, 1023, "1023 white"), "8 bits in 16": (np.uint16, 0, 255, "255 white"),
    "32 bits": (np.int32, 0, 100_000, "100000 white"), "negative": (np.int32, -500, 500, "-500 becomes black"),
    "floats to 1": (np.float32, 0, 1, "1 white"), "floats to 255": (np.float32, 0, 255, "255 white"),
    "floats": (np.float32, -3, 3, "-3 becomes black and 3 white"),
}  # fmt: skip


@pytest.mark.parametrize("depth", DEPTHS)
def test_pictures_of_any_depth_keep_their_range_and_a_guess_is_said(depth, tmp_path, capsys):
    dtype, low, high, said = DEPTHS[depth]
    picture = Image.fromarray(ramp(low, high, dtype))
    raw = set_of(tmp_path / "raw", lambda path: picture.save(f"{path}.tif"))
    images = images_of(built("x", raw, tmp_path / "data", "--size", SIZE, "--grayscale"))
    expected = np.tile(np.linspace(0, 255, SIZE), (SIZE, 1))
    assert np.abs(images.astype(float) - expected).max() <= 1.01
    out = capsys.readouterr().out
    assert (said in out and "range is guessed" in out) if said else "guessed" not in out


def test_deep_pictures_of_one_set_share_one_range(tmp_path):
    """A dark picture stays darker than a light one."""
    levels = iter((1000, 2000, 3000, 4000))
    raw = set_of(tmp_path / "raw", lambda path: Image.fromarray(ramp(0, next(levels), np.uint16)).save(f"{path}.png"))
    images = images_of(built("x", raw, tmp_path / "data", "--size", SIZE, "--grayscale"))
    assert sorted(images.max((1, 2, 3)).tolist()) == [62, 125, 187, 250]


def test_deep_pictures_whose_names_say_that_they_have_8_bits_are_refused_together(tmp_path, refused):
    """Their range isn't looked for, as most sets have a great many JPEG files."""
    picture = Image.fromarray(ramp(0, 4095, np.uint16))
    raw = set_of(tmp_path / "raw", lambda path: picture.save(f"{path}.jpg", "PNG"))
    line = refused("--dataset", "x", "--raw", raw)
    assert f"{len(list(raw.rglob('*.jpg')))} pictures are unreadable" in line and "call it .png or .tif" in line


def test_a_pgm_of_16_bits_has_the_range_that_its_head_says(tmp_path, capsys):
    def save(path):
        data = ramp(0, 900, ">u2").tobytes()
        with open(f"{path}.pgm", "wb") as file:
            file.write(f"P5 {SIZE} {SIZE} 1000\n".encode() + data)

    images = images_of(built("x", set_of(tmp_path / "raw", save), tmp_path / "data", "--size", SIZE, "--grayscale"))
    assert images.max() == round(255 * 0.9) and "guessed" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["label mask", "one colour", "12 bits in 16 bits of colour", "14 bits, scaled"])
def test_pictures_that_come_out_flat_are_said(kind, tmp_path, capsys):
    def save(path):
        if kind == "label mask":
            Image.fromarray(ramp(0, 3, np.uint8)).save(f"{path}.png")
        elif kind == "one colour":
            Image.new("RGB", (SIZE, SIZE), (200, 10, 10)).save(f"{path}.png")
        elif kind == "14 bits, scaled":  # which overshoots beside a line
            stripes = np.array([0, 16383, 16383] * 3, np.uint16)
            write_png_of_16_bits(f"{path}.png", np.stack([np.tile(stripes, (5, 1))] * 3, axis=2))
        else:
            write_png_of_16_bits(f"{path}.png", np.stack([ramp(0, 4095, np.uint16)] * 3, axis=2))

    built("x", set_of(tmp_path / "raw", save), tmp_path / "data", "--size", SIZE)
    assert "4 pictures come out flat" in capsys.readouterr().out


def write_png_of_16_bits(path, pixels):
    """Pillow itself can't."""
    import zlib

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in chunks:
            file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))


def test_the_further_frames_of_a_picture_are_said(tmp_path, capsys):
    frames = [Image.fromarray(ramp(0, level, np.uint8)) for level in (255, 100)]
    raw = set_of(tmp_path / "raw", lambda path: frames[0].save(f"{path}.gif", save_all=True, append_images=frames[1:]))
    images = images_of(built("x", raw, tmp_path / "data", "--size", SIZE))
    assert images.max() == 255 and "4 pictures have several frames" in capsys.readouterr().out


# A photo on its side whose EXIF holds, beside the orientation, a value of a wrong type.
ODD = {
    "srational": (0x11A, 10, 1, struct.pack("<ii", -1, 0)), "negative short": (0x106, 8, 1, struct.pack("<h", -5)),
    "text for a number": (0x100, 2, 5, b"wide\0"), "a type that isn't": (0x11A, 99, 1, b"\1\2\3\4"),
    "a float": (0x11B, 11, 1, struct.pack("<f", float("nan"))), "far away": (0x10E, 2, 2**31, b"\xff\xff\xff\x7f"),
    "no denominator": (0x11A, 5, 1, struct.pack("<II", 1, 0)), "its own table": (0x8769, 4, 1, struct.pack("<I", 8)),
}  # fmt: skip


def exif_of(entries):
    """EXIF of (tag, type, count, bytes), little-endian."""
    table, data, start = b"", b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        if len(value) <= 4:
            table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
        else:
            table += struct.pack("<HHII", tag, kind, count, start + len(data))
            data += value
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", 0) + data


@pytest.mark.parametrize("odd", ODD)
def test_a_picture_is_turned_upright_whatever_else_its_exif_holds(odd):
    on_its_side = Image.new("L", (16, 8), 0)
    on_its_side.paste(255, (8, 0, 16, 8))
    buffer = io.BytesIO()
    on_its_side.save(buffer, "JPEG", exif=exif_of([(0x112, 3, 1, struct.pack("<H", 6)), ODD[odd]]))
    upright = np.asarray(pictures.squared(pictures.opened(buffer), 8, "L"))
    assert upright[0].max() < 60 and upright[-1].min() > 190


def test_unreadable_pictures_are_named_together_with_their_number(tmp_path, refused):
    raw = class_folders(tmp_path / "raw", COUNTS)
    whole = (raw / "ant" / "00.png").read_bytes()
    damaged = {
        "ant/00.png": b"",
        "ant/02.png": whole[:60],
        "cat/03.png": b"no image",
        "fox/04.png": b"\xff\xd8\xff\xe0" * 9,
    }
    for name, content in damaged.items():
        (raw / name).write_bytes(content)
    (raw / "elk" / "00.png").unlink()
    (raw / "elk" / "00.png").symlink_to(raw / "nowhere")
    os.mkfifo(raw / "elk" / "pipe.png")  # which would be waited for
    line = refused("--dataset", "birds", "--raw", raw, "--size", "8")
    assert "6 pictures are unreadable" in line and "a pipe or device" in line
    assert all(name in line for name in (*damaged, "elk/00.png", "elk/pipe.png"))
    for i in range(40):
        (raw / "dog" / f"{i:02d}.png").write_bytes(b"x")
    line = refused("--dataset", "birds", "--raw", raw, "--size", "8")
    assert "46 pictures are unreadable" in line and "..." in line and len(line) < 3000


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_read():
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="144 megapixels, expected 134 at most"):
        pictures.opened(buffer)


def test_only_formats_that_pillow_reads_itself_are_opened():
    """It hands an EPS to Ghostscript, whatever the file is called."""
    with pytest.raises(ValueError, match="cannot identify"):
        pictures.opened(io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"))
