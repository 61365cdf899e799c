"""Class folders of a person's own images: splits, sizes and colours, and what is no data set."""

import numpy as np
import pytest
from PIL import Image

from data_prep import build
from tests.data_prep.helpers import COUNTS, class_folders, contents, pack, splits_of


@pytest.mark.parametrize("suffix", ["", ".zip", ".tar.gz"])
def test_a_folder_of_class_folders_may_have_unequal_classes_and_any_sizes(suffix, tmp_path):
    raw = class_folders(tmp_path / "raw", COUNTS)
    raw = pack(raw, tmp_path / f"archive{suffix}") if suffix else raw
    before = contents(tmp_path)
    arguments = ["--dataset", "birds", "--raw", str(raw), "--size", "16", "--split", "0.5,0.2,0.3"]
    assert build.main([*arguments, "--data-dir", str(tmp_path / "data")]) == 0
    assert contents(tmp_path).items() >= before.items()
    built = splits_of(tmp_path / "data" / "birds")
    assert [len(built[s][2]) for s in ("train", "val", "test")] == [3, 1, 2]
    assert sorted(sum((names for _, _, names in built.values()), [])) == sorted(COUNTS)
    for images, starts, names in built.values():
        assert names == sorted(names) and images.shape[1:] == (3, 16, 16)
        for name, start, stop in zip(names, starts, starts[1:], strict=False):
            assert stop - start == COUNTS[name]
            colours = images[start:stop].reshape(stop - start, 3, -1)
            assert (colours == colours[:, :, :1]).all()
            c = list(COUNTS).index(name)
            assert colours[:, :, 0].tolist() == [[10 * c, 10 * i, 50] for i in range(COUNTS[name])]


def test_the_seed_draws_the_classes_of_a_split(tmp_path):
    raw = class_folders(tmp_path / "raw", dict.fromkeys("abcdefgh", 1))
    names = []
    for data, seed in (("one", 1), ("two", 2), ("again", 1)):
        arguments = ["--dataset", "letters", "--raw", str(raw), "--size", "8", "--seed", str(seed)]
        assert build.main([*arguments, "--data-dir", str(tmp_path / data)]) == 0
        names.append({split: content[2] for split, content in splits_of(tmp_path / data / "letters").items()})
    assert names[0] == names[2] != names[1]


def test_train_val_and_test_folders_are_kept_as_they_are(tmp_path):
    for split, counts in (("train", {"ant": 2, "bee": 3}), ("valid", {"cat": 1}), ("test", {"dog": 2})):
        class_folders(tmp_path / "raw" / "birds" / split, counts)
    (tmp_path / "raw" / "birds" / "README.txt").write_text("not an image")
    assert build.main(["--dataset", "birds", "--raw", str(tmp_path / "raw"), "--data-dir", str(tmp_path / "data")]) == 0
    built = splits_of(tmp_path / "data" / "birds")
    names = {split: content[2] for split, content in built.items()}
    assert names == {"train": ["ant", "bee"], "val": ["cat"], "test": ["dog"]}
    assert built["train"][1].tolist() == [0, 2, 5] and built["train"][0].shape == (5, 3, 84, 84)


def test_grayscale_gives_one_channel(tmp_path):
    raw = class_folders(tmp_path / "raw", COUNTS)
    arguments = ["--dataset", "birds", "--raw", str(raw), "--grayscale", "--data-dir", str(tmp_path / "data")]
    assert build.main(arguments) == 0
    built = splits_of(tmp_path / "data" / "birds")
    assert built["train"][0].shape[1:] == (1, 84, 84)
    expected = np.asarray(Image.new("RGB", (1, 1), (0, 10, 50)).convert("L"))[0, 0]
    images, starts, names = next(content for content in built.values() if "ant" in content[2])
    assert (images[starts[names.index("ant")] + 1] == expected).all()


def test_folders_that_are_no_data_set_are_refused(tmp_path, refused):
    def raw(name, counts):
        return class_folders(tmp_path / name, counts)

    def line(path, *more):
        return refused("--dataset", "birds", "--raw", path, *more)

    (tmp_path / "empty").mkdir()
    assert "no images" in line(tmp_path / "empty")
    assert "only one folder" in line(raw("one", {"ant": 2}))
    assert "2 classes (ant, bee), too few" in line(raw("two", {"ant": 2, "bee": 2}))
    stray = raw("stray", COUNTS)
    Image.new("L", (8, 8)).save(stray / "stray.png")
    assert "stray.png" in line(stray)
    nested = raw("nested", {**COUNTS, "ant/young": 2})
    assert "ant/00.png" in line(nested)
    overlap = raw("overlap", {f"{s}/ant": 1 for s in ("train", "val", "test")})
    assert "1 classes in train as well as val: ant" in line(overlap)
    assert "its own train" in line(overlap, "--split", "0.6,0.2,0.2")
    assert "expected train, val and test" in line(raw("half", {"train/ant": 1, "train/bee": 1, "test/cat": 1}))
    broken = raw("broken", COUNTS)
    (broken / "fox" / "04.png").write_bytes(b"no image")
    assert "fox/04.png" in line(broken)
