"""What a build leaves in its folder, also when it is cut off or finds something there."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from common import shards
from common.shards import SPLITS, read_shard
from data_prep import build, output
from tests.data_prep.helpers import COUNTS, class_folders, contents, splits_of


def test_mean_and_standard_deviation_are_those_of_the_training_images(tmp_path):
    raw = class_folders(tmp_path / "raw", COUNTS)
    assert build.main(["--dataset", "birds", "--raw", str(raw), "--data-dir", str(tmp_path / "data")]) == 0
    images = splits_of(tmp_path / "data" / "birds")["train"][0] / 255
    for split in ("train", "val", "test"):
        with h5py.File(tmp_path / "data" / "birds" / f"{split}.h5") as file:
            np.testing.assert_allclose(file.attrs["mean"], images.mean((0, 2, 3)), rtol=1e-9)
            np.testing.assert_allclose(file.attrs["std"], images.std((0, 2, 3)), rtol=1e-9, atol=1e-9)


def test_a_set_in_a_folder_that_holds_anything_else_is_not_overwritten(tmp_path, refused):
    raw = class_folders(tmp_path / "data" / "birds", COUNTS)
    before = contents(raw)
    assert "holds ant" in refused("--dataset", "birds", "--raw", raw)
    assert contents(raw) == before


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 1)])
def test_a_build_that_is_cut_off_leaves_what_was_there(error, status, tmp_path, capsys, monkeypatch):
    raw = class_folders(tmp_path / "raw", COUNTS)

    def run(data, *more):
        return build.main(["--dataset", "birds", "--raw", str(raw), "--data-dir", str(tmp_path / data), *more])

    assert run("data") == 0
    before = contents(tmp_path)
    capsys.readouterr()

    def cut_off(*arguments):
        raise error

    monkeypatch.setattr(output, "preview", cut_off)  # the last thing before the new files take the old ones' place
    assert run("data", "--seed", "1") == run("new/data") == status
    assert capsys.readouterr().err.count("\n") == 2
    assert contents(tmp_path) == before and not (tmp_path / "new").exists()
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["birds"]


def test_a_set_that_the_disk_has_no_room_for_is_one_line_and_nothing_is_left(tmp_path, capsys, monkeypatch):
    """Before it is written: a full disk leaves HDF5 with a file that it can't even close."""
    raw = class_folders(tmp_path / "raw", COUNTS)
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert build.main(["--dataset", "birds", "--raw", str(raw), "--data-dir", str(tmp_path / "data")]) == 1
    said = capsys.readouterr().err
    assert "no space left on the device for" in said and said.count("\n") == 1 and not (tmp_path / "data").exists()


def test_a_reader_of_an_earlier_build_keeps_its_images_while_the_set_is_built_again(tmp_path):
    arguments = ["--dataset", "birds", "--raw", str(class_folders(tmp_path / "raw", COUNTS))]
    arguments += ["--data-dir", str(tmp_path / "data"), "--seed"]
    folder = tmp_path / "data" / "birds"
    assert build.main([*arguments, "0"]) == 0
    mapped = {split: read_shard(folder / f"{split}.h5")[0] for split in SPLITS}
    copies = {split: np.array(images) for split, images in mapped.items()}
    inodes = {name: (folder / name).stat().st_ino for name in output.FILES}
    assert build.main([*arguments, "1"]) == 0
    for name in output.FILES:
        assert (folder / name).stat().st_ino != inodes[name], name  # another file, the old one is as it was
    for split in SPLITS:
        np.testing.assert_array_equal(mapped[split], copies[split])
    assert not np.array_equal(read_shard(folder / "train.h5")[0], copies["train"])


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("failing", ["preview.png", "train.h5", "val.h5"])
def test_there_is_no_test_h5_the_sign_of_a_built_set_until_all_else_is_new(
    failing, earlier, tmp_path, monkeypatch, capsys
):
    def replace(source, target):
        if target.name == failing:
            raise OSError(28, "No space left on device")
        source.rename(target)

    raw = class_folders(tmp_path / "raw", COUNTS)
    arguments = ["--dataset", "birds", "--raw", str(raw), "--data-dir", str(tmp_path / "data")]
    if earlier:
        assert build.main([*arguments, "--seed", "1"]) == 0
    monkeypatch.setattr(output.os, "replace", replace)
    assert build.main(arguments) == 1
    assert "No space left" in capsys.readouterr().err
    assert not (tmp_path / "data" / "birds" / "test.h5").exists()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["birds"]
