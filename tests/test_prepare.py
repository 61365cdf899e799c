"""Pictures are prepared as the builds prepared a set's, and predict.py says where they don't fit."""

import re

import h5py
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from common import shards
from common.shards import Preparation, describe
from data_prep import build, omniglot
from data_prep.prepare import prepare
from predictions.folders import Prepared
from predictions.trained import Trained
from tests.data_prep.helpers import COUNTS, class_folders

GREY, COLOUR = (1, 28, 28), (3, 84, 84)


def ring(size=(120, 90), box=(20, 10, 60, 70), paper=255, ink=0):
    """A ring of ink on paper."""
    image = Image.new("L", size, paper)
    ImageDraw.Draw(image).ellipse(box, outline=ink, width=8)
    return image


def trained_on(dataset, shape, preparation, mean=0.5):
    data = {"shape": shape, "mean": [mean] * shape[0], "preparation": preparation, "levels": [0, 65535]}
    return Trained("runs/a", "", {"options": {"algorithm": "maml", "dataset": dataset}}, {}, data)


def prepared(tmp_path, pictures, trained, invert=None):
    """The images (n, C, H, W) that files of pictures become, and the notes on them."""
    files = [tmp_path / f"{i}.png" for i in range(len(pictures))]
    for file, picture in zip(files, pictures):
        picture.save(file)
    how = Prepared(trained, invert)
    return how.images(files), " | ".join(how.notes())


@pytest.mark.parametrize("gray", [False, True])
def test_a_file_of_a_built_set_becomes_the_image_that_the_build_made_of_it(gray, tmp_path):
    raw = class_folders(tmp_path / "raw", COUNTS)
    words = ["--dataset", "birds", "--raw", str(raw), "--data-dir", str(tmp_path), "--size", "20"]
    assert build.main([*words, *["--grayscale"] * gray]) == 0
    about = describe(tmp_path / "birds" / "test.h5")
    assert about["preparation"] == "whole" and about["shape"] == [1 if gray else 3, 20, 20]
    like = Preparation(about["preparation"], tuple(about["levels"]))
    compared = 0
    with h5py.File(tmp_path / "birds" / "test.h5") as file:
        for c, name in enumerate(file["class_names"].asstr()[:]):
            images = file["images"][file["class_start"][c] : file["class_start"][c + 1]]
            for path, image in zip(sorted((raw / name).iterdir()), images, strict=True):
                ours = np.asarray(prepare(Image.open(path), like, about["shape"]))
                assert np.array_equal(ours, image[0] if gray else image.transpose(1, 2, 0))
                compared += 1
    assert compared > 5


def test_deep_pictures_have_the_range_that_the_set_had(tmp_path):
    rng = np.random.default_rng(0)
    for c in range(6):
        (tmp_path / "raw" / f"species{c}").mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 4096, (9, 9), dtype=np.uint16)
            Image.fromarray(pixels).save(tmp_path / "raw" / f"species{c}" / f"{i}.png")
    words = ["--dataset", "deep", "--raw", str(tmp_path / "raw"), "--data-dir", str(tmp_path), "--size", "9"]
    assert build.main([*words, "--grayscale"]) == 0
    about = describe(tmp_path / "deep" / "train.h5")
    assert about["levels"] == [0, 4095]
    with h5py.File(tmp_path / "deep" / "train.h5") as file:
        first, image = file["class_names"].asstr()[0], file["images"][0, 0]
    like = Preparation("whole", tuple(about["levels"]))
    assert np.array_equal(prepare(Image.open(tmp_path / "raw" / first / "0.png"), like, (1, 9, 9)), image)


@pytest.mark.parametrize("how", ["ink", "centred ink"])
def test_ink_is_light_on_dark_whatever_the_paper_unless_one_says_otherwise(how):
    like, picture = Preparation(how), ring()
    seen = np.asarray(prepare(picture, like, GREY))
    assert seen.shape == (28, 28) and seen.mean() < 80 < 120 < seen.max()
    assert np.array_equal(seen, prepare(ImageOps.invert(picture), like, GREY))
    assert np.array_equal(seen, prepare(picture, like, GREY, invert=True))
    as_is = np.asarray(prepare(picture, like, GREY, invert=False))
    assert as_is[14, 14] > 200 and as_is.mean() > 1.2 * seen.mean()  # the paper is light


def test_omniglots_pictures_are_made_by_its_build_and_glyphs_are_centred():
    picture = ring(size=(105, 105))
    assert np.array_equal(prepare(picture, Preparation("ink"), GREY), omniglot.ink(picture))
    inked = []
    for size, box in (((120, 90), (20, 10, 60, 70)), ((400, 500), (200, 100, 280, 220)), ((60, 60), (0, 0, 40, 59))):
        image = np.asarray(prepare(ring(size, box, paper=235, ink=20), Preparation("centred ink"), GREY))
        rows, columns = np.nonzero(image > 127)
        inked.append((rows.min(), rows.max()))
        assert abs(columns.min() + columns.max() - 27) <= 1
    assert set(inked) <= {(3, 23), (4, 24), (3, 24)}  # 21 pixels in the middle
    drawn = ring((28, 28), (3, 5, 22, 25), paper=0, ink=255)
    assert np.array_equal(prepare(drawn, Preparation("centred ink"), GREY), drawn)


def test_sets_that_were_built_before_are_read_with_what_is_known_of_them(data_dir, tmp_path):
    for name, how in (("glyphs", "centred ink"), ("omniglot", "ink"), ("miniimagenet", "whole"), ("birds", "whole")):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "train.h5"
        file.write_bytes((data_dir / "toy" / "train.h5").read_bytes())
        with h5py.File(file, "r+") as h5:
            checksum = h5.attrs["checksum"]
            del h5.attrs["preparation"], h5.attrs["levels"]
        assert describe(file) | {"mean": 0, "std": 0} == {
            "shape": [1, 28, 28], "mean": 0, "std": 0, "preparation": how, "levels": [0, 65535]
        }  # fmt: skip
        with h5py.File(file, "r+") as h5:
            h5.attrs["preparation"] = "boiled"
            assert h5.attrs["checksum"] == checksum
        with pytest.raises(shards.UsageError, match="its preparation isn't one of whole, ink.*boiled"):
            describe(file)


def test_it_is_said_which_pictures_are_inverted_and_which_are_no_ink(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(90, 150, (40, 40), dtype=np.uint8))
    red = Image.new("RGB", (40, 40), (220, 40, 30))
    trained = trained_on("omniglot", GREY, "ink")
    _, notes = prepared(tmp_path, [ring(), ring(), ring(paper=0, ink=255), noise, red], trained)
    assert "2 of 5 pictures are on white paper, and are inverted, as omniglot is light on dark, and 3 are left" in notes
    assert "2 of 5 pictures don't look like ink on paper" in notes
    assert "1 of 5 pictures are in colours, and become grey" in notes
    _, notes = prepared(tmp_path, [ring(), ring(paper=110, ink=20)], trained)
    assert "it isn't sure whether the paper of 1 of 2 pictures is light or dark" in notes
    images, notes = prepared(tmp_path, [ring(paper=0, ink=255)] * 3, trained)
    assert notes == "" and images.shape == (3, 1, 28, 28)


def test_it_is_said_which_pictures_are_flat_or_have_several_frames(tmp_path):
    white = Image.new("RGBA", (40, 40), (255, 255, 255, 0))  # ink as white as the paper
    ImageDraw.Draw(white).ellipse((5, 5, 30, 30), fill="white")
    ring().save(tmp_path / "moving.gif", save_all=True, append_images=[ring(box=(40, 40, 80, 80))])
    how = Prepared(trained_on("omniglot", GREY, "ink"), None)
    white.save(tmp_path / "white.png")
    ring().save(tmp_path / "ring.png")
    how.images([tmp_path / name for name in ("white.png", "moving.gif", "ring.png")])
    notes = " | ".join(how.notes())
    assert re.search(r"1 of 3 pictures come out flat, .*/white.png", notes)
    assert re.search(r"1 of 3 pictures have several frames, of which the first is taken: .*/moving.gif", notes)


def test_it_is_said_where_black_and_white_seem_exchanged_or_colours_are_missing(tmp_path):
    dark = trained_on("mine", GREY, "whole", mean=0.15)
    images, notes = prepared(tmp_path, [ring()] * 2, dark)
    assert "mean grey level is" in notes and "add --invert" in notes and images.mean() > 200
    images, notes = prepared(tmp_path, [ring()] * 2, dark, invert=True)
    assert notes == "" and images.mean() < 55
    _, notes = prepared(tmp_path, [ring()] * 2, trained_on("miniimagenet", COLOUR, "whole"))
    assert notes == "all pictures are grey or nearly so, and miniimagenet is in colours"
