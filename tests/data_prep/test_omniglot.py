"""Omniglot from its zips, from folders and over the network: images, splits, and what is missing."""

import functools
import hashlib
import http.server
import shutil
import threading
import zipfile
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image, ImageOps

from data_prep import build, files, omniglot
from tests.data_prep.helpers import RAW_DATA, built, contents, needs_raw, pack, splits_of

CHARACTERS = {
    "images_background": [f"{name}/character01" for name in ("Ant", "Bee", "Cat", "Dog")] + ["Ant/character02"],
    "images_evaluation": ["Elk/character01"],
}
LINES = ("train Ant 1-2", "train Bee 1-1", "train Dog 1-1", "val Cat 1-1")
LINES = (*(f"{line} background" for line in LINES), "test Elk 1-1 evaluation")


def drawing(index: int, number: int) -> Image.Image:
    """Dark ink on white, 105x105, 1 bit: a bar that tells drawings apart, in the upper left."""
    array = np.full((105, 105), 255, np.uint8)
    array[15:30, 15 : 40 + 2 * number] = 0
    array[15 : 40 + 4 * index, 15:30] = 0
    return Image.fromarray(array).convert("1")


@pytest.fixture
def drawings(tmp_path, monkeypatch) -> Path:
    """A small Omniglot, extracted; four characters train, one val, one test."""
    split = tmp_path / "split.txt"
    split.write_text("# comment\n" + "".join(f"{line}\n" for line in LINES))
    monkeypatch.setattr(omniglot, "SPLIT_FILE", split)
    for part, characters in CHARACTERS.items():
        for index, character in enumerate(characters):
            folder = tmp_path / "raw" / part / character
            folder.mkdir(parents=True)
            for number in range(20):
                drawing(index, number).save(folder / f"{index:04d}_{number + 1:02d}.png")
    return tmp_path / "raw"


def zipped(drawings: Path, folder: Path) -> Path:
    folder.mkdir()
    for part in CHARACTERS:
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as file:
            for path in sorted((drawings / part).rglob("*"), reverse=True):
                file.write(path, path.relative_to(drawings))
    return folder


def test_omniglot_has_ink_255_on_0_and_each_rotation_is_a_class(drawings, tmp_path):
    before = contents(drawings)
    found = splits_of(built("omniglot", [drawings], tmp_path / "data"))
    assert contents(drawings) == before
    images, starts, names = found["train"]
    assert images.shape == (4 * 4 * 20, 1, 28, 28) and starts.tolist() == list(range(0, 321, 20))
    assert names[:5] == [f"Ant/character01/rot{angle:03d}" for angle in (0, 90, 180, 270)] + ["Ant/character02/rot000"]
    assert [found[s][2][0] for s in ("val", "test")] == ["Cat/character01/rot000", "Elk/character01/rot000"]
    assert images.max() == 255 and np.median(images) == 0
    assert images[0, 0, 5, 5] == 255 and images[0, 0, 20, 20] == 0  # the bar is ink, the paper isn't
    for turns in range(4):
        np.testing.assert_array_equal(images[20 * turns : 20 * turns + 20, 0], np.rot90(images[:20, 0], turns, (1, 2)))
    assert len(np.unique(images[:80].reshape(80, -1), axis=0)) == 80


def test_omniglot_resizes_with_antialiasing_to_grey_levels(drawings, tmp_path):
    images, _, _ = splits_of(built("omniglot", [drawings], tmp_path / "data"))["train"]
    whole = 255.0 - np.asarray(drawing(0, 0).convert("L"), float)
    assert len(np.unique(images[0])) > 8
    assert images[0].mean() == pytest.approx(whole.mean(), rel=0.02)  # as much ink as there was


@pytest.mark.parametrize("kind", ["16 bits", "transparent", "inverted", "colour"])
def test_a_drawing_of_another_kind_gives_the_same_ink(kind):
    plain = drawing(2, 3).convert("L")
    array = np.asarray(plain)
    other = {
        "16 bits": lambda: Image.fromarray(array.astype(np.uint16) * 257),
        "transparent": lambda: Image.merge("LA", (Image.new("L", plain.size, 0), ImageOps.invert(plain))),
        "inverted": lambda: ImageOps.invert(plain),
        "colour": lambda: plain.convert("RGB"),
    }[kind]()
    np.testing.assert_array_equal(np.asarray(omniglot.ink(other)), np.asarray(omniglot.ink(plain)))


def test_omniglot_builds_the_same_from_zips_a_folder_of_them_and_extracted_folders(drawings, tmp_path):
    zips = zipped(drawings, tmp_path / "zips")
    background, evaluation = (zips / f"{part}.zip" for part in CHARACTERS)
    both = pack(drawings, tmp_path / "both.tar.gz")
    reference = splits_of(built("omniglot", [drawings], tmp_path / "data0"))
    part = drawings / "images_evaluation"
    for i, raws in enumerate([[zips], [background], [evaluation, background], [part], [both]]):
        found = splits_of(built("omniglot", raws, tmp_path / f"data{i + 1}"))
        for split in reference:
            np.testing.assert_array_equal(found[split][0], reference[split][0])
            assert found[split][2] == reference[split][2]


def test_lake_split_keeps_alphabets_apart_and_follows_the_seed(drawings, tmp_path):
    held_out = set()
    for seed in range(4):
        arguments = ["--dataset", "omniglot", "--raw", str(drawings), "--split", "lake", "--seed", str(seed)]
        assert build.main([*arguments, "--data-dir", str(tmp_path / "data")]) == 0
        found = splits_of(tmp_path / "data" / "omniglot")
        alphabets = {split: {name.split("/")[0] for name in names} for split, (_, _, names) in found.items()}
        assert alphabets["test"] == {"Elk"} and len(alphabets["val"]) == 1 and len(alphabets["train"]) == 3
        assert alphabets["train"] | alphabets["val"] == {"Ant", "Bee", "Cat", "Dog"}
        assert all(len(names) == 4 * len({n.rsplit("/", 1)[0] for n in names}) for _, _, names in found.values())
        held_out |= alphabets["val"]
    assert len(held_out) > 1


def test_what_omniglot_lacks_is_named(drawings, tmp_path, refused):
    (drawings / "images_background" / "Ant" / "character02" / "0004_07.png").unlink()
    assert "Ant/character02 has 19" in refused("--dataset", "omniglot", "--raw", drawings)
    for path in (drawings / "images_background" / "Ant" / "character02").iterdir():
        path.unlink()
    assert "1 characters missing: Ant/character02" in refused("--dataset", "omniglot", "--raw", drawings)
    shutil.rmtree(drawings / "images_evaluation")
    assert "images_evaluation.zip" in refused("--dataset", "omniglot", "--raw", drawings)


@pytest.mark.parametrize("split", ["vinyals", "lake"])
def test_both_splits_verify_every_character_and_name_what_is_odd(split, drawings, tmp_path, refused):
    arguments = ("--dataset", "omniglot", "--raw", drawings, "--split", split)
    turned = drawings / "images_background" / "Ant.90" / "character01"
    shutil.copytree(drawings / "images_background" / "Ant" / "character01", turned)
    assert "1 characters that aren't Omniglot's: Ant.90/character01" in refused(*arguments)
    turned.rename(turned.parents[1] / "Ant" / "character03")
    shutil.rmtree(turned.parent)
    assert "1 characters that aren't Omniglot's: Ant/character03" in refused(*arguments)
    (drawings / "images_background" / "Ant" / "character03").rename(tmp_path / "elsewhere")
    shutil.rmtree(drawings / "images_background" / "Bee")
    assert "1 characters missing: Bee/character01" in refused(*arguments)
    (drawings / "images_evaluation" / "Elk" / "character01" / "0000_20.png").unlink()
    (tmp_path / "elsewhere").rename(drawings / "images_background" / "Bee")
    assert "1 characters that aren't" not in (line := refused(*arguments)) and "missing: Bee/character01" in line


@pytest.mark.parametrize("split", ["vinyals", "lake"])
def test_other_layouts_of_omniglot_build_the_same(split, drawings, tmp_path):
    """The authors' repository with its zips, or zipped; both parts in one folder; torchmeta's HDF5; inverted."""
    expected = splits_of(built("omniglot", drawings, tmp_path / "data", "--split", split))
    clone = tmp_path / "omniglot-master"
    clone.mkdir()
    zipped(drawings, clone / "python")
    (clone / "omniglot_grid.jpg").write_bytes(b"not read")
    joined = tmp_path / "omniglot_resized"
    joined.mkdir()
    inverted = tmp_path / "inverted"
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        for part in CHARACTERS:
            for folder in sorted((drawings / part).glob("*/*")):
                shutil.copytree(folder, joined / folder.parent.name / folder.name)
                arrays = [255 - np.asarray(Image.open(p).convert("L")) for p in sorted(folder.iterdir())]
                file[f"{part}/{folder.parent.name}/{folder.name}"] = np.stack(arrays)
                (inverted / part / folder.parent.name / folder.name).mkdir(parents=True)
                for array, path in zip(arrays, sorted(folder.iterdir()), strict=True):
                    Image.fromarray(array).save(inverted / path.relative_to(drawings))
    raws = [clone, pack(clone, tmp_path / "clone.zip"), joined, tmp_path / "data.hdf5", inverted]
    for i, raw in enumerate(raws):
        found = splits_of(built("omniglot", raw, tmp_path / f"data{i}", "--split", split))
        for s in expected:
            assert found[s][2] == expected[s][2], raw
            np.testing.assert_array_equal(found[s][0], expected[s][0], err_msg=str(raw))


def test_two_copies_of_omniglot_are_one_where_they_agree_and_refused_where_they_differ(drawings, tmp_path, refused):
    zipped(drawings, drawings / "again")
    built("omniglot", drawings, tmp_path / "data")
    changed = drawings / "images_background" / "Ant" / "character01" / "0000_01.png"
    drawing(3, 7).save(changed)
    assert "differ; keep one of the two copies" in refused("--dataset", "omniglot", "--raw", drawings)


def test_the_split_that_ships_has_1028_172_and_423_characters_and_no_two_alike():
    chosen, part_of = omniglot.known_characters()
    assert Counter(part_of.values()) == {"images_background": 964, "images_evaluation": 659}
    assert [len(chosen[s]) for s in ("train", "val", "test")] == [1028, 172, 423]
    assert len(set(sum(chosen.values(), []))) == 1623


@pytest.fixture
def site(drawings, tmp_path, monkeypatch):
    """A web server on this machine with the small Omniglot's zips, which torchvision takes for the real one."""
    from torchvision.datasets import Omniglot

    folder = zipped(drawings, tmp_path / "site")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Omniglot, "download_url_prefix", f"http://127.0.0.1:{server.server_port}")
    md5s = {part: hashlib.md5((folder / f"{part}.zip").read_bytes()).hexdigest() for part in CHARACTERS}
    monkeypatch.setattr(Omniglot, "zips_md5", md5s)
    yield folder
    server.shutdown()
    server.server_close()


@pytest.mark.slow  # importing torchvision alone takes seconds
def test_without_raw_omniglot_is_downloaded_once_and_built(site, drawings, tmp_path):
    data = tmp_path / "data"
    assert build.main(["--dataset", "omniglot", "--data-dir", str(data)]) == 0
    expected = splits_of(built("omniglot", [drawings], tmp_path / "expected"))
    np.testing.assert_array_equal(splits_of(data / "omniglot")["train"][0], expected["train"][0])
    assert {p.name for p in (data / "omniglot-py").iterdir()} == {"images_background.zip", "images_evaluation.zip"}
    for path in site.iterdir():
        path.unlink()  # so that a second download would fail
    assert build.main(["--dataset", "omniglot", "--data-dir", str(data), "--split", "lake"]) == 0


@pytest.mark.slow
def test_a_failed_download_names_the_zips_their_place_and_the_command(site, tmp_path, refused):
    def check(line):
        place = tmp_path / "data" / "omniglot-py"
        assert "images_background.zip and images_evaluation.zip" in line and f"put both into {place}" in line
        assert f"--dataset omniglot --raw {place}" in line

    with open(site / "images_evaluation.zip", "ab") as file:  # half a download, or a changed file: the md5 is another
        file.write(b"more")
    check(refused("--dataset", "omniglot"))
    (site / "images_evaluation.zip").unlink()
    check(refused("--dataset", "omniglot"))


@needs_raw("omniglot")
@pytest.mark.slow
def test_the_real_omniglot_has_4112_688_and_1692_classes_of_20(tmp_path):
    assert build.main(["--dataset", "omniglot", "--raw", str(RAW_DATA / "omniglot"), "--data-dir", str(tmp_path)]) == 0
    for split, (images, starts, names) in splits_of(tmp_path / "omniglot").items():
        listed = (RAW_DATA / "omniglot" / f"vinyals_{split}.txt").read_text().split()
        assert [name.rsplit("/", 1)[0] for name in names[::4]] == listed
        assert len(set(names)) == len(names) == {"train": 4112, "val": 688, "test": 1692}[split]
        assert set(np.diff(starts)) == {20} and images.shape == (20 * len(names), 1, 28, 28)
        assert images.reshape(len(images), -1).max(1).min() > 100 and images.mean() < 40  # ink in each, paper is 0


@pytest.mark.slow
@needs_raw("omniglot")
def test_the_real_lake_split_has_24_6_and_20_alphabets():
    _, part_of = omniglot.known_characters()
    with files.open_files([RAW_DATA / "omniglot"], always=omniglot.ZIPS) as found:
        assert omniglot._characters(found).keys() == part_of.keys()
        assert all(part_of["/".join(name.split("/")[-3:-1])] in name for name in found.pictures())
    chosen = omniglot._lake(part_of, seed=0)
    alphabets = {split: {c.split("/")[0] for c in characters} for split, characters in chosen.items()}
    assert [len(alphabets[s]) for s in ("train", "val", "test")] == [24, 6, 20]
    assert len(set.union(*alphabets.values())) == 50 and len(chosen["test"]) == 659
    assert len(chosen["train"]) + len(chosen["val"]) == 964
