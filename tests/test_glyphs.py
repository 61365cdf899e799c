"""The embedded set: scripts apart, characters that can be told from each other, drawings that are whole."""

import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

import h5py
import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageOps

from data_prep import glyphs

pytestmark = pytest.mark.slow  # draws the whole set

FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")


@pytest.fixture(scope="session")
def sets(glyphs_folder):
    """split -> (images (n, 1, 28, 28), class_start, class_names), as read back from the files."""
    content = {}
    for split in ("train", "val", "test"):
        with h5py.File(glyphs_folder / f"{split}.h5") as file:
            content[split] = file["images"][:], file["class_start"][:], file["class_names"].asstr()[:].tolist()
    return content


@pytest.fixture(scope="session")
def chosen(sets):
    """split -> (script, character, its faces) of each class: the names of what was built, as choosing takes long."""
    return {
        split: [(name.split("/")[0], c, glyphs.faces_of(c)) for name in names for c in [character(name)]]
        for split, (_, _, names) in sets.items()
    }


def character(class_name: str) -> str:
    return chr(int(class_name.split("/U+")[1].split()[0], 16))


def test_there_are_700_training_classes_of_twenty_drawings(sets):
    assert len(sets["train"][2]) >= 700 and len(sets["val"][2]) >= 100 and len(sets["test"][2]) >= 150
    for images, starts, names in sets.values():
        assert images.dtype == np.uint8 and images.shape == (20 * len(names), 1, 28, 28)
        assert np.all(np.diff(starts) == 20) and len(set(names)) == len(names)


def test_a_script_lies_in_one_split(sets):
    scripts = {split: {name.split("/")[0] for name in names} for split, (_, _, names) in sets.items()}
    # The first word of a letter's Unicode name is its script too, whatever the table of blocks says
    letters = {
        split: {unicodedata.name(c).split()[0] for c in map(character, names) if unicodedata.category(c)[0] == "L"}
        for split, (_, _, names) in sets.items()
    }
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not scripts[one] & scripts[other]
        assert not letters[one] & letters[other]


def test_no_image_is_empty_or_touches_the_edge(sets):
    for images, _, _ in sets.values():
        assert images.max((1, 2, 3)).min() >= 64
        assert (images > 32).sum((1, 2, 3)).min() >= 5
        assert not images[..., [0, -1], :].any() and not images[..., [0, -1]].any()


def test_no_warp_pushes_ink_off_the_canvas(chosen):
    for _, c, faces in sum(chosen.values(), [])[::8]:
        canvas = glyphs.warped(c, faces, np.random.default_rng([glyphs.SEED, ord(c)]))
        margin = canvas.copy()
        margin[:, 2:-2, 2:-2] = 0  # the thickest stroke grows by two pixels
        assert canvas.any((1, 2)).all() and not margin.any(), c


def test_drawings_of_a_class_differ(sets):
    for images, starts, names in sets.values():
        for name, start in zip(names, starts[:-1], strict=True):
            assert len({image.tobytes() for image in images[start : start + 20]}) == 20, name


@pytest.mark.filterwarnings("ignore:Glyph 65535")  # the missing character is asked for on purpose
def test_every_class_is_in_the_character_map_of_its_faces_and_no_box_for_a_missing_one(chosen):
    fonts = {face: TTFont(FONTS / f"{face}.ttf") for face in glyphs.DEJAVU + glyphs.STIX + glyphs.COMPUTER_MODERN}
    maps = {face: opened.getBestCmap() for face, opened in fonts.items()}
    boxes = {face: ink(face, "\uffff").tobytes() for face in glyphs.UPRIGHT}
    for _, c, faces in sum(chosen.values(), []):
        assert all(maps[face].get(ord(c), ".notdef") != ".notdef" for face in faces), c
        face = next(face for face in glyphs.UPRIGHT if face in faces)
        assert ink(face, c).tobytes() != boxes[face], (face, c)


@cache
def font(face: str) -> FT2Font:
    opened = FT2Font(str(FONTS / f"{face}.ttf"))
    opened.set_size(48, 72)
    return opened


def ink(face: str, c: str) -> np.ndarray:
    """The character drawn by matplotlib, not by Pillow: uint8 (H, W), cropped to its ink."""
    font(face).set_text(c, 0)
    font(face).draw_glyphs_to_bitmap()
    image = Image.fromarray(np.array(font(face).get_image()))
    return np.asarray(image.crop(image.getbbox()))


def test_no_class_of_val_or_test_is_one_of_training_mirrored_or_turned(chosen):
    """By the builder's own measure."""
    held_out = np.concatenate([glyphs.looks(c, faces) for _, c, faces in chosen["val"] + chosen["test"]])
    for _, c, faces in chosen["train"]:
        assert (glyphs.looks(c, faces, glyphs.TURNS, (False, True)) @ held_out.T).max() <= glyphs.ALIKE, c


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle", [-45, -20, 0, 20, 45])
def test_no_character_of_test_or_val_overlaps_with_one_of_training_mirrored_or_turned(mirrored, angle, chosen):
    """By another measure, the overlap of the ink that matplotlib draws."""

    def masks(rows, turn):  # (rows, 24 * 24), stretched to a square; (rows), the logarithm of width by height
        faces = [next(face for face in glyphs.UPRIGHT if face in found) for _, _, found in rows]
        images = [turn(Image.fromarray(ink(face, c))) for face, (_, c, _) in zip(faces, rows, strict=True)]
        images = [image.crop(image.getbbox()) for image in images]
        pixels = [np.asarray(image.resize((24, 24), Image.BOX)).ravel() > 127 for image in images]
        return np.stack(pixels).astype(float), np.log([image.width / image.height for image in images])

    def turned(image):
        image = image.rotate(angle, Image.BICUBIC, expand=True)
        return ImageOps.mirror(image) if mirrored else image

    others = chosen["val"] + chosen["test"]
    train, train_ratio = masks(chosen["train"], turned)
    held_out, held_out_ratio = masks(others, lambda image: image)
    common = held_out @ train.T
    overlap = common / (held_out.sum(1)[:, None] + train.sum(1) - common)
    overlap[np.abs(held_out_ratio[:, None] - train_ratio) > np.log(2.5)] = 0  # a bar isn't a block
    worst = np.unravel_index(overlap.argmax(), overlap.shape)
    assert 0.5 < overlap.max() < 0.76, (others[worst[0]], chosen["train"][worst[1]])


def test_no_two_classes_share_a_compatibility_form(chosen):
    forms = Counter(unicodedata.normalize("NFKC", c) for _, c, _ in sum(chosen.values(), []))
    assert max(forms.values()) == 1


def test_two_builds_have_the_same_bytes_and_a_class_does_not_depend_on_the_others(sets, tmp_path, monkeypatch):
    few = {name: glyphs.SCRIPTS[name] for name in ("Hebrew", "Ogham", "Greek")}
    monkeypatch.setattr(glyphs, "SCRIPTS", few)
    folders = [glyphs.build(tmp_path / name) for name in ("one", "two")]
    for split in ("train", "val", "test"):
        with h5py.File(folders[0] / f"{split}.h5") as one, h5py.File(folders[1] / f"{split}.h5") as two:
            assert one.attrs["checksum"] == two.attrs["checksum"]
            images, starts, names = sets[split]
            again = one["class_names"].asstr()[:].tolist()
            name = next(name for name in names if name in again)
            whole, part = starts[names.index(name)], one["class_start"][again.index(name)]
            assert np.array_equal(images[whole : whole + 20], one["images"][part : part + 20])
