"""Every layout of mini-ImageNet gives the same files, and what is wrong with one is named."""

import csv
import io
import json
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from data_prep import build, output
from tests.data_prep.helpers import RAW_DATA, built, contents, needs_raw, pack, splits_of
from tests.data_prep.miniimagenet_layouts import (
    LAYOUTS,
    WNIDS,
    class_folders_under_another_split,
    ilsvrc_folder,
    ilsvrc_folder_and_csv,
    images_and_csv,
    pixels,
    write_csv,
)


def assert_built(folder: Path, jpegs) -> None:
    for split, (images, starts, names) in splits_of(folder).items():
        assert names == WNIDS[split]
        assert starts.tolist() == list(range(0, 4 * len(names) + 1, 4))
        expected = np.stack([pixels(jpeg) for wnid in names for jpeg in jpegs[wnid].values()])
        np.testing.assert_array_equal(images, expected.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", ["", ".zip", ".tar", ".tar.gz", ".tar.xz"])
def test_every_layout_of_miniimagenet_builds_the_same_images_and_leaves_the_raw_files_alone(
    layout, suffix, jpegs, tmp_path, capsys
):
    raw = layout(jpegs, tmp_path / "raw")
    raw = pack(raw, tmp_path / f"archive{suffix}") if suffix else raw
    before = contents(tmp_path)
    assert build.main(["--dataset", "miniimagenet", "--raw", str(raw), "--data-dir", str(tmp_path / "data")]) == 0
    assert_built(tmp_path / "data" / "miniimagenet", jpegs)
    assert contents(tmp_path).items() >= before.items()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("miniimagenet: train 3 classes, 12 images · val 1 classes, 4 images · test 1 classes, 4 im")
    assert {p.name for p in (tmp_path / "data").iterdir()} == {"miniimagenet"}
    assert {p.name for p in (tmp_path / "data" / "miniimagenet").iterdir()} == set(output.FILES)


@pytest.mark.parametrize("nested", [True, False])
def test_ilsvrc_tars_of_classes_build_the_same_images_with_csv_files_from_elsewhere(nested, jpegs, tmp_path):
    train = ilsvrc_folder(jpegs, tmp_path / "raw") / "train"
    tars = tmp_path / "tars"
    tars.mkdir()
    for folder in train.iterdir():
        pack(folder, tars / f"{folder.name}.tar")
    raw = pack(tars, tmp_path / "ILSVRC2012_img_train.tar") if nested else tars
    write_csv(tmp_path / "ravi")
    assert_built(built("miniimagenet", raw, tmp_path / "data", "--csv", tmp_path / "ravi"), jpegs)


def test_images_of_another_size_are_resized_to_84(jpegs, tmp_path):
    raw = images_and_csv(jpegs, tmp_path / "raw")
    large = Image.new("L", (300, 200), 200)
    large.save(raw / "images" / "n0153282900000002.jpg")
    images, _, _ = splits_of(built("miniimagenet", raw, tmp_path / "data"))["train"]
    assert images.shape == (12, 3, 84, 84)
    np.testing.assert_array_equal(images[0], 200)


def test_missing_and_extra_images_of_miniimagenet_are_named(jpegs, tmp_path, refused):
    raw = images_and_csv(jpegs, tmp_path / "raw")
    for number in (2, 3, 5, 10):
        (raw / "images" / f"n01532829{number:08d}.jpg").unlink()
    line = refused("--dataset", "miniimagenet", "--raw", raw)
    assert "4 of the 20 images" in line and "n0153282900000002.jpg, n0153282900000003.jpg" in line and "..." in line
    images_and_csv(jpegs, tmp_path / "whole")
    (tmp_path / "whole" / "images" / "cat.jpg").write_bytes(b"")
    line = refused("--dataset", "miniimagenet", "--raw", tmp_path / "whole")
    assert "1 images that no csv file lists: cat.jpg" in line


def test_classes_missing_extra_or_short_are_named(jpegs, tmp_path, refused):
    raw = class_folders_under_another_split(jpegs, tmp_path / "raw")
    (raw / "test" / "n01532829").rename(raw / "test" / "n00000001")
    (raw / "train" / "n01558993" / "n0155899300000002.jpg").unlink()
    line = refused("--dataset", "miniimagenet", "--raw", raw)
    assert "1 classes missing: n01532829" in line and "aren't mini-ImageNet's: n00000001" in line
    assert "n01558993 has 3" in line and "5 classes of 4 images" in line


def test_an_ilsvrc_folder_without_csv_files_says_which_option_is_missing(jpegs, tmp_path, refused):
    assert "--csv FOLDER" in refused("--dataset", "miniimagenet", "--raw", ilsvrc_folder(jpegs, tmp_path / "raw"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,size\na.jpg,small\n", "filename,label"),
        ("", "filename,label"),
        ("filename,label\nn0153282900000002.jpg,17\n", "line 2"),
        ("filename,label\nn0153282900000002.jpg\n", "line 2"),
        ("filename,label\nn0153282900000002.jpg,n01558993\n", "line 2"),
        ("filename,label\n" + 2 * "n0153282900000002.jpg,n01532829\n", "listed twice"),
        (None, "train.csv missing"),
        ("<html>" + "x" * 200_000, "expected filename,label"),
    ],
)
def test_a_wrong_csv_file_is_refused(text, expected, jpegs, tmp_path, refused):
    raw = images_and_csv(jpegs, tmp_path / "raw")
    (raw / "train.csv").unlink() if text is None else (raw / "train.csv").write_text(text)
    line = refused("--dataset", "miniimagenet", "--raw", raw)
    assert expected in line and "train.csv" in line or expected == "listed twice" in line


def test_a_table_with_line_ends_of_any_system_is_read(jpegs, tmp_path, refused):
    """As far as the image that isn't there."""
    raw = images_and_csv(jpegs, tmp_path / "raw")
    for end in ("\r", "\r\n"):
        (raw / "train.csv").write_bytes(f"filename,label{end}nowhere.jpg,n01532829{end}".encode())
        assert "nowhere.jpg" in refused("--dataset", "miniimagenet", "--raw", raw)


def test_an_unreadable_image_is_named_and_a_good_build_survives_it(jpegs, tmp_path, refused):
    raw = images_and_csv(jpegs, tmp_path / "raw")
    found = built("miniimagenet", raw, tmp_path / "data")
    before = contents(found)
    broken = raw / "images" / "n0193011200000010.jpg"  # the last image of the last split
    broken.write_bytes(broken.read_bytes()[:300])
    assert "images/n0193011200000010.jpg" in refused("--dataset", "miniimagenet", "--raw", raw)
    assert contents(found) == before


def test_class_folders_are_built_beside_csv_files_of_other_projects(jpegs, tmp_path):
    """class_name,image_name of pictures that were renamed; and csv files whose columns say something else."""
    raw = class_folders_under_another_split(jpegs, tmp_path / "raw")
    for split, wnids in WNIDS.items():
        lines = [f"{wnid},{wnid}_{i}.JPEG" for wnid in wnids for i in range(4)]
        (raw / f"{split}.csv").write_text("\n".join(["class_name,image_name", *lines]))
    assert_built(built("miniimagenet", raw, tmp_path / "data"), jpegs)
    for split in WNIDS:
        (raw / f"{split}.csv").write_text("width,height\n84,84\n")
    assert_built(built("miniimagenet", raw, tmp_path / "data"), jpegs)


@pytest.mark.parametrize(
    ("head", "line"),
    [
        ("filename,label,wnid\n", "{file},house finch,{wnid}"), ("label,picture of it,synset\n", "7,{file},{wnid}"),
        ("", "{file},{wnid}"), ("", "{wnid};{file}"),
    ],
)  # fmt: skip
def test_csv_files_may_have_other_columns_or_no_names_of_columns(head, line, jpegs, tmp_path):
    raw = images_and_csv(jpegs, tmp_path / "raw")
    for split, wnids in WNIDS.items():
        lines = [line.format(file=file, wnid=wnid) for wnid in wnids for file in jpegs[wnid]]
        (raw / f"{split}.csv").write_text(head + "\n".join(lines))
    assert_built(built("miniimagenet", raw, tmp_path / "data"), jpegs)


@pytest.mark.parametrize(
    "line", ["images/{file},{wnid}", "{wnid}/{file},{wnid}", "./{file};{wnid}", "{wnid}\\{file},{wnid}"]
)
def test_a_csv_file_may_give_more_of_the_path(line, jpegs, tmp_path):
    raw = images_and_csv(jpegs, tmp_path / "raw")
    if line.startswith("{wnid}"):
        for wnid, names in jpegs.items():
            (raw / "images" / wnid).mkdir()
            for name in names:
                (raw / "images" / name).rename(raw / "images" / wnid / name)
    for split, wnids in WNIDS.items():
        lines = [line.format(file=file, wnid=wnid) for wnid in wnids for file in jpegs[wnid]]
        head = ";".join(("filename", "label")) if ";" in line else "filename,label"
        (raw / f"{split}.csv").write_text("\n".join([head, *lines]))
    assert_built(built("miniimagenet", raw, tmp_path / "data"), jpegs)


def test_torchmetas_hdf5_files_build_the_same(jpegs, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for split, wnids in WNIDS.items():
        with h5py.File(raw / f"{split}_data.hdf5", "w") as file:
            for wnid in wnids:
                file[f"datasets/{wnid}"] = np.stack([pixels(jpeg) for jpeg in jpegs[wnid].values()])
        (raw / f"{split}_labels.json").write_text(json.dumps(wnids))
    assert_built(built("miniimagenet", raw, tmp_path / "data"), jpegs)
    assert_built(built("miniimagenet", pack(raw, tmp_path / "raw.zip"), tmp_path / "data"), jpegs)
    assert_built(built("miniimagenet", raw / "val_data.hdf5", tmp_path / "data"), jpegs)


def test_two_files_of_one_name_are_refused_where_they_differ(jpegs, tmp_path, refused):
    raw = images_and_csv(jpegs, tmp_path / "raw")
    (raw / "more").mkdir()
    first, second = list(jpegs["n01532829"])[:2]
    (raw / "more" / first).write_bytes(jpegs["n01532829"][first])
    assert_built(built("miniimagenet", raw, tmp_path / "data"), jpegs)
    (raw / "more" / first).write_bytes(jpegs["n01532829"][second])
    line = refused("--dataset", "miniimagenet", "--raw", raw)
    assert f"images/{first}, more/{first}, which differ" in line


def test_an_ilsvrc_class_that_lacks_images_is_refused_as_numbers_would_mean_other_images(
    jpegs, tmp_path, refused, capsys
):
    raw = ilsvrc_folder_and_csv(jpegs, tmp_path / "raw")
    built("miniimagenet", raw, tmp_path / "data")
    assert "5 classes have fewer than 1300 images" in capsys.readouterr().out
    numbers = sorted((raw / "train" / "n01532829").iterdir(), key=lambda path: int(path.stem.split("_")[1]))
    for path in numbers[:3]:
        path.unlink()
    line = refused("--dataset", "miniimagenet", "--raw", raw)
    assert "1 classes have fewer images than the csv files number: n01532829 has 9 of 10" in line


@needs_raw("miniimagenet")
@pytest.mark.slow
def test_the_real_miniimagenet_has_64_16_and_20_classes_of_600(tmp_path):
    raw = RAW_DATA / "miniimagenet" / "mini-imagenet.tar.xz"
    assert build.main(["--dataset", "miniimagenet", "--raw", str(raw), "--data-dir", str(tmp_path)]) == 0
    with tarfile.open(raw, "r|xz") as archive:  # as far as the csv files and the first images, which are n01532829's
        members = {}
        for member in archive:
            if member.isfile():
                members[member.name.removeprefix("./").rsplit("/", 1)[-1]] = archive.extractfile(member).read()
            if len(members) == 3 + 5:
                break
    tables = {s: list(csv.DictReader(io.StringIO(members.pop(f"{s}.csv").decode()))) for s in ("train", "val", "test")}
    for split, count in (("train", 64), ("val", 16), ("test", 20)):
        with h5py.File(tmp_path / "miniimagenet" / f"{split}.h5") as file:
            assert file["images"].shape == (600 * count, 3, 84, 84) and set(np.diff(file["class_start"][:])) == {600}
            assert [n.decode() for n in file["class_names"][:]] == sorted({row["label"] for row in tables[split]})
            if split == "train":
                order = sorted(row["filename"] for row in tables["train"])
                for name, jpeg in members.items():
                    np.testing.assert_array_equal(file["images"][order.index(name)], pixels(jpeg).transpose(2, 0, 1))
