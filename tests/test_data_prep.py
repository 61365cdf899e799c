"""From raw files to data/NAME/{train,val,test}.h5: each layout, what is refused, and that raw files stay the same."""

import csv
import functools
import hashlib
import http.server
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from common import shards
from data_prep import build, files, miniimagenet, omniglot, output, unpickle

ROOT = Path(__file__).resolve().parent.parent

RAW_DATA = Path(os.environ.get("RAW_DATA", ROOT.parent / "shared" / "data"))
WNIDS = {"train": ["n01532829", "n01558993", "n01704323"], "val": ["n01855672"], "test": ["n01930112"]}
NUMBERS = [2, 3, 5, 10]  # Ravi's indices of the images that mini-ImageNet takes from each class of the fake ILSVRC


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def splits_of(built: Path) -> dict[str, tuple[np.ndarray, np.ndarray, list[str]]]:
    result = {}
    for split in ("train", "val", "test"):
        with h5py.File(built / f"{split}.h5") as file:
            names = [name.decode() for name in file["class_names"][:]]
            result[split] = file["images"][:], file["class_start"][:], names
    return result


def pack(folder: Path, archive: Path) -> Path:
    """The folder's content as an archive, the kind by its suffix."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, {".tar": "w", ".gz": "w:gz", ".xz": "w:xz"}[archive.suffix]) as file:
            for path in sorted(folder.iterdir()):
                file.add(path, path.name)
    return archive


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that must fail: returns its one line, having checked the exit status and that nothing changed."""

    def run(*arguments, data_dir: Path = tmp_path / "data") -> str:
        before = contents(data_dir)
        existed = data_dir.exists()
        assert build.main(["--data-dir", str(data_dir), *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n") and out == "", err
        assert contents(data_dir) == before and data_dir.exists() == existed
        assert not list(data_dir.glob(".*"))
        return err

    return run


# ---------------------------------------------------------------------------------------------------- mini-ImageNet


@pytest.fixture
def jpegs(monkeypatch) -> dict[str, dict[str, bytes]]:
    """WordNet id -> Ravi's file name -> JPEG, of a mini-ImageNet with 3/1/1 classes of four images."""
    monkeypatch.setattr(miniimagenet, "known_split", lambda: WNIDS)
    monkeypatch.setattr(miniimagenet, "PER_CLASS", len(NUMBERS))
    rng = np.random.default_rng(0)
    made = {}
    for wnid in sum(WNIDS.values(), []):
        for number in NUMBERS:
            buffer = io.BytesIO()
            image = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8)).resize((84, 84), Image.BICUBIC)
            image.save(buffer, "JPEG")
            made.setdefault(wnid, {})[f"{wnid}{number:08d}.jpg"] = buffer.getvalue()
    return made


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def write_csv(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, wnids in WNIDS.items():
        rows = [(f"{wnid}{number:08d}.jpg", wnid) for wnid in wnids for number in NUMBERS]
        with open(folder / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("filename", "label"), *rows[::-1]])


def images_and_csv(jpegs, folder):
    write_csv(folder)
    (folder / "images").mkdir()
    for names in jpegs.values():
        for name, data in names.items():
            (folder / "images" / name).write_bytes(data)
    return folder


def class_folders_under_another_split(jpegs, folder):
    for i, (wnid, names) in enumerate(jpegs.items()):
        place = folder / ("test", "train", "val")[i % 3] / wnid
        place.mkdir(parents=True)
        for name, data in names.items():
            (place / name).write_bytes(data)
    return folder


def cache_pickles(jpegs, folder):
    folder.mkdir()
    for split, wnids in (("train", WNIDS["train"]), ("validation", WNIDS["val"]), ("test", WNIDS["test"])):
        images = np.stack([pixels(jpeg) for wnid in wnids for jpeg in jpegs[wnid].values()])
        rows = {wnid: list(range(4 * i, 4 * i + 4)) for i, wnid in enumerate(wnids)}
        path = folder / f"mini-imagenet-cache-{split}.pkl"
        path.write_bytes(pickle.dumps({"image_data": images, "class_dict": rows}))
    return folder


def category_split_pickles(jpegs, folder, names=False, as_list=False):
    folder.mkdir()
    first = 0
    for split, wnids in WNIDS.items():
        images = [pixels(jpeg) for wnid in wnids for jpeg in jpegs[wnid].values()]
        labels = [first + i for i in range(len(wnids)) for _ in NUMBERS]
        content = {"data": images if as_list else np.stack(images), "labels": labels}
        if names:  # numbered backwards, so that only the names tell
            last = first + len(wnids) - 1
            content["labels"] = [last + first - label for label in labels]
            content["catname2label"] = {wnid: last - i for i, wnid in enumerate(wnids)}
        phase = "train_phase_train" if split == "train" else split
        path = folder / f"miniImageNet_category_split_{phase}.pickle"
        # As Python 2 and numpy 1 wrote them: protocol 2, with numpy.core's names.
        data = pickle.dumps(content, protocol=2)
        path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
        first += len(wnids)
    (folder / "miniImageNet_category_split_train_phase_val.pickle").write_bytes(b"not read")
    return folder


def named_category_split_pickles(jpegs, folder):
    return category_split_pickles(jpegs, folder, names=True, as_list=True)


def ilsvrc_folder(jpegs, folder):
    """ILSVRC's own names, whose numbers aren't padded, in a class of twelve images, beside classes of no interest."""
    for wnid, names in [*jpegs.items(), ("n99999999", {})]:
        place = folder / "train" / wnid
        place.mkdir(parents=True)
        chosen = dict(zip(NUMBERS, names.values(), strict=False))
        for position in range(1, 13):  # numbers 3, 10, 17 ...: as text, 10 comes before 3
            number = 7 * position - 4
            data = chosen.get(position) or next(iter(jpegs["n01855672"].values()))
            (place / f"{wnid}_{number}.JPEG").write_bytes(data)
    return folder


def ilsvrc_folder_and_csv(jpegs, folder):
    write_csv(folder)
    return ilsvrc_folder(jpegs, folder)


LAYOUTS = [
    images_and_csv,
    class_folders_under_another_split,
    cache_pickles,
    category_split_pickles,
    named_category_split_pickles,
    ilsvrc_folder_and_csv,
]


def assert_built(built: Path, jpegs) -> None:
    for split, (images, starts, names) in splits_of(built).items():
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
    built = miniimagenet.build(tmp_path / "data", raw, tmp_path / "ravi")
    assert_built(built, jpegs)


def test_images_of_another_size_are_resized_to_84(jpegs, tmp_path):
    raw = images_and_csv(jpegs, tmp_path / "raw")
    large = Image.new("L", (300, 200), 200)
    large.save(raw / "images" / "n0153282900000002.jpg")
    images, _, _ = splits_of(miniimagenet.build(tmp_path / "data", raw))["train"]
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
        ("image,class\na.jpg,n01532829\n", "filename,label"),
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


def test_an_unreadable_image_is_named_and_a_good_build_survives_it(jpegs, tmp_path, refused):
    raw = images_and_csv(jpegs, tmp_path / "raw")
    built = miniimagenet.build(tmp_path / "data", raw)
    before = contents(built)
    broken = raw / "images" / "n0193011200000010.jpg"  # the last image of the last split
    broken.write_bytes(broken.read_bytes()[:300])
    assert "images/n0193011200000010.jpg" in refused("--dataset", "miniimagenet", "--raw", raw)
    assert contents(built) == before


# ---------------------------------------------------------------------------------------------------------- pickles


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


class Evaluated(Hostile):
    def __reduce__(self):
        return (eval, (f"__import__('os').mkdir({str(self.path)!r})",))


@pytest.mark.parametrize("kind", [Hostile, Evaluated])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_is_refused_and_does_not_run(kind, protocol, tmp_path, refused):
    (tmp_path / "raw").mkdir()
    mark = tmp_path / "it-ran"
    data = pickle.dumps({"image_data": kind(mark), "class_dict": {}}, protocol)
    (tmp_path / "raw" / "mini-imagenet-cache-train.pkl").write_bytes(data)
    line = refused("--dataset", "miniimagenet", "--raw", tmp_path / "raw")
    assert "mini-imagenet-cache-train.pkl: refused" in line and ("mkdir" in line or "eval" in line)
    assert not mark.exists()
    kind(mark).__reduce__()[0](kind(mark).__reduce__()[1][0])
    assert mark.exists()  # so it would have


class Call:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


OBJECTS = Call(np.dtype, ("O", False, True))
LIES = Call(np.dtype, ("u1", False, True), (3, "|", None, None, None, 8, 8, 63))  # that its bytes are pointers


@pytest.mark.parametrize(
    "forged",
    [
        Call(np.ndarray, ((2,), OBJECTS, b"\x41" * 16)),
        Call(np.ndarray, ((2,), np.dtype("u1"), b"\x41" * 16)),
        Call(np.array([1]).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (2,), OBJECTS, False, b"\x41" * 16)),
        Call(np.array([1]).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (2,), OBJECTS, False, ["a", "b"])),
        Call(np.array([1]).__reduce__()[0], (np.ndarray, (10**6,), b"O")),
        Call(np.int64(1).__reduce__()[0], (OBJECTS, b"\x41" * 8)),
    ],
)
def test_a_pickle_that_forges_an_arrays_memory_is_refused(forged):
    data = pickle.dumps({"data": forged}, 2)
    try:
        read = unpickle.load(io.BytesIO(data), "name")
    except shards.UsageError:
        return
    assert read["data"].shape == (0,) and read["data"].dtype == np.int8  # which no other content followed


def test_what_a_pickle_says_of_a_dtypes_flags_and_fields_is_not_believed():
    array = Call(np.array([1]).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (16,), LIES, False, b"\x41" * 16))
    read = unpickle.load(io.BytesIO(pickle.dumps([array], 2)), "name")[0]
    assert read.dtype == np.uint8 and read.tolist() == [0x41] * 16


def test_a_table_with_line_ends_of_any_system_is_read(jpegs, tmp_path, refused):
    """As far as the image that isn't there."""
    raw = images_and_csv(jpegs, tmp_path / "raw")
    for end in ("\r", "\r\n"):
        (raw / "train.csv").write_bytes(f"filename,label{end}nowhere.jpg,n01532829{end}".encode())
        assert "nowhere.jpg" in refused("--dataset", "miniimagenet", "--raw", raw)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_arrays_of_text_other_byte_orders_and_other_layouts_are_read(protocol):
    for array in (
        np.array(["n01532829", "x"]), np.array([b"ab", b"c"]), np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array([True, False]),
    ):  # fmt: skip
        read = unpickle.load(io.BytesIO(pickle.dumps(array, protocol)), "name")
        assert read.dtype.kind == array.dtype.kind
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_pickles_of_arrays_scalars_and_containers_are_read_under_both_names_of_numpy(protocol, core):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    content = {"a": array, "b": [np.int64(3), "x", 1.5, None, {4}], "c": b"\xff\x00"}
    data = pickle.dumps(content, protocol)
    if protocol < 4:  # later ones store a name's length
        data = data.replace(b"cnumpy._core.", b"c" + core + b".")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = unpickle.load(io.BytesIO(data), "name")
    np.testing.assert_array_equal(read["a"], content["a"])
    assert read["b"] == content["b"] and read["c"] == content["c"]


def test_text_of_python_2_is_read_as_latin1():
    assert unpickle.load(io.BytesIO(b"\x80\x02}U\x04dataU\x02\xe9\x00s."), "name") == {"data": "\xe9\x00"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"images": 1}, "holds images"),
        ([1, 2], "no dictionary"),
        ({"image_data": np.zeros((2, 32, 32, 3), np.uint8), "class_dict": {}}, "(2, 32, 32, 3)"),
        ({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"n01532829": [0, 9]}}, "n01532829"),
        ({"data": np.zeros((2, 84, 84, 3), np.uint8), "labels": [0, 1]}, "2 labels without catname2label"),
        ({"data": np.zeros((3, 84, 84, 3), np.uint8), "labels": [0, 1, 5]}, "3 labels without catname2label"),
        ({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": [1]}, "not the arrays of mini-ImageNet"),
        ({"image_data": [[1], [1, 2]], "class_dict": {}}, "not the arrays of mini-ImageNet"),
        ({"data": [0], "labels": [0], "catname2label": {"n01532829": [0]}}, "not the arrays"),
        (None, "not a whole pickle"),
    ],
)
def test_a_pickle_from_which_wordnet_ids_do_not_follow_is_refused(content, expected, jpegs, tmp_path, refused):
    path = tmp_path / "raw" / "mini-imagenet-cache-train.pkl"
    path.parent.mkdir()
    path.write_bytes(b"\x80\x04garbage" if content is None else pickle.dumps(content))
    assert expected in refused("--dataset", "miniimagenet", "--raw", path)


# --------------------------------------------------------------------------------------------------------- Omniglot


CHARACTERS = {
    "images_background": [f"{name}/character01" for name in ("Ant", "Bee", "Cat", "Dog")] + ["Ant/character02"],
    "images_evaluation": ["Elk/character01"],
}


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
    split.write_text("# comment\ntrain Ant 1-2\ntrain Bee 1-1\ntrain Dog 1-1\nval Cat 1-1\ntest Elk 1-1\n")
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
    built = splits_of(omniglot.build(tmp_path / "data", [drawings]))
    assert contents(drawings) == before
    images, starts, names = built["train"]
    assert images.shape == (4 * 4 * 20, 1, 28, 28) and starts.tolist() == list(range(0, 321, 20))
    assert names[:5] == [f"Ant/character01/rot{angle:03d}" for angle in (0, 90, 180, 270)] + ["Ant/character02/rot000"]
    assert [built[s][2][0] for s in ("val", "test")] == ["Cat/character01/rot000", "Elk/character01/rot000"]
    assert images.max() == 255 and np.median(images) == 0
    assert images[0, 0, 5, 5] == 255 and images[0, 0, 20, 20] == 0  # the bar is ink, the paper isn't
    for turns in range(4):
        np.testing.assert_array_equal(images[20 * turns : 20 * turns + 20, 0], np.rot90(images[:20, 0], turns, (1, 2)))
    assert len(np.unique(images[:80].reshape(80, -1), axis=0)) == 80


def test_omniglot_resizes_with_antialiasing_to_grey_levels(drawings, tmp_path):
    images, _, _ = splits_of(omniglot.build(tmp_path / "data", [drawings]))["train"]
    whole = 255.0 - np.asarray(drawing(0, 0).convert("L"), float)
    assert len(np.unique(images[0])) > 8
    assert images[0].mean() == pytest.approx(whole.mean(), rel=0.02)  # as much ink as there was


def test_omniglot_builds_the_same_from_zips_a_folder_of_them_and_extracted_folders(drawings, tmp_path):
    zips = zipped(drawings, tmp_path / "zips")
    background, evaluation = (zips / f"{part}.zip" for part in CHARACTERS)
    both = pack(drawings, tmp_path / "both.tar.gz")
    reference = splits_of(omniglot.build(tmp_path / "data0", [drawings]))
    part = drawings / "images_evaluation"
    for i, raws in enumerate([[zips], [background], [evaluation, background], [part], [both]]):
        built = splits_of(omniglot.build(tmp_path / f"data{i + 1}", raws))
        for split in reference:
            np.testing.assert_array_equal(built[split][0], reference[split][0])
            assert built[split][2] == reference[split][2]


def test_lake_split_keeps_alphabets_apart_and_follows_the_seed(drawings, tmp_path):
    held_out = set()
    for seed in range(4):
        arguments = ["--dataset", "omniglot", "--raw", str(drawings), "--split", "lake", "--seed", str(seed)]
        assert build.main([*arguments, "--data-dir", str(tmp_path / "data")]) == 0
        built = splits_of(tmp_path / "data" / "omniglot")
        alphabets = {split: {name.split("/")[0] for name in names} for split, (_, _, names) in built.items()}
        assert alphabets["test"] == {"Elk"} and len(alphabets["val"]) == 1 and len(alphabets["train"]) == 3
        assert alphabets["train"] | alphabets["val"] == {"Ant", "Bee", "Cat", "Dog"}
        assert all(len(names) == 4 * len({n.rsplit("/", 1)[0] for n in names}) for _, _, names in built.values())
        held_out |= alphabets["val"]
    assert len(held_out) > 1


def test_what_omniglot_lacks_is_named(drawings, tmp_path, refused):
    (drawings / "images_background" / "Ant" / "character02" / "0004_07.png").unlink()
    assert "Ant/character02 has 19" in refused("--dataset", "omniglot", "--raw", drawings)
    for path in (drawings / "images_background" / "Ant" / "character02").iterdir():
        path.unlink()
    assert "1 characters missing: Ant/character02" in refused("--dataset", "omniglot", "--raw", drawings)
    (drawings / "images_evaluation").rename(drawings / "evaluation")
    assert "images_evaluation.zip" in refused("--dataset", "omniglot", "--raw", drawings)


def test_the_split_that_ships_has_1028_172_and_423_characters_and_no_two_alike():
    chosen = {}
    for line in omniglot.SPLIT_FILE.read_text().splitlines()[1:]:
        split, alphabet, numbers = line.split()
        first, last = map(int, numbers.split("-"))
        chosen.setdefault(split, []).extend((alphabet, n) for n in range(first, last + 1))
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
    expected = splits_of(omniglot.build(tmp_path / "expected", [drawings]))
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


# ------------------------------------------------------------------------------------------------------ other folders


def class_folders(folder: Path, counts: dict[str, int]) -> Path:
    """Class folders of plain images in many sizes; image i of class c has one colour, (10 c, 10 i, 50)."""
    for c, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20 + 5 * c, 30 + i), (10 * c, 10 * i, 50)).save(folder / name / f"{i:02d}.png")
    return folder


COUNTS = {"ant": 3, "bee": 1, "cat": 7, "dog": 2, "elk": 4, "fox": 5}


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


def test_transparent_turned_and_16_bit_images_come_out_as_they_are_seen():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (np.asarray(files.squared(clear, 8)) == 255).all()
    deep = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    assert (np.asarray(files.squared(deep, 8, "L")) == 0x80).all()
    turned = Image.new("L", (16, 8), 0)
    turned.paste(255, (8, 0, 16, 8))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright: turn it clockwise
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    upright = np.asarray(files.squared(Image.open(buffer), 8, "L"))
    assert upright[0].max() < 50 and upright[-1].min() > 200


def test_a_set_in_a_folder_that_holds_anything_else_is_not_overwritten(tmp_path, refused):
    raw = class_folders(tmp_path / "data" / "birds", COUNTS)
    before = contents(raw)
    assert "holds ant" in refused("--dataset", "birds", "--raw", raw)
    assert contents(raw) == before


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


# ------------------------------------------------------------------------------------------- archives and commands


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
    with files.open_files(raw) as found:
        assert list(found) == ["ant/00.png", "ant/01.png"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dataset", "omnigolt"], "--dataset omnigolt: unknown; expected glyphs, omniglot, miniimagenet"),
        (["--dataset", "mini-ImageNet", "--raw", "RAW"], "did you mean --dataset miniimagenet"),
        (["--dataset", "miniimagenet"], "--raw is missing"),
        (["--dataset", "miniimagenet", "--raw", "nowhere"], "nowhere: no such file"),
        (["--dataset", "omniglot", "--raw", "nowhere"], "nowhere: no such file"),
        (["--dataset", "birds", "--raw", "nowhere.zip"], "nowhere.zip: no such file"),
        (["--dataset", "birds", "--raw", __file__], "expected a folder or an archive"),
        (["--dataset", "birds", "--raw", "RAW", "RAW"], "expected one folder"),
        (["--dataset", "../birds", "--raw", "RAW"], "--dataset ../birds"),
        (["--dataset", "birds", "--raw", "RAW", "--size", "0"], "--size 0: expected 8 to 1024"),
        (["--dataset", "birds", "--raw", "RAW", "--size", "big"], "--size: invalid int value: 'big'"),
        (["--dataset", "birds", "--raw", "RAW", "--seed", "-1"], "--seed -1"),
        (["--dataset", "birds", "--raw", "RAW", "--split", "0.5,0.5"], "--split 0.5,0.5: expected three shares"),
        (["--dataset", "birds", "--raw", "RAW", "--split", "0.5,0.5,0.5"], "sum to 1"),
        (["--dataset", "birds", "--raw", "RAW", "--split", "1,0,0"], "sum to 1"),
        (["--dataset", "birds", "--raw", "RAW", "--split", "a,b,c"], "sum to 1"),
        (["--dataset", "omniglot", "--raw", "RAW", "--split", "0.6,0.2,0.2"], "expected vinyals or lake"),
        (["--dataset", "omniglot", "--raw", "RAW", "--size", "32"], "leave --size out"),
        (["--dataset", "miniimagenet", "--raw", "RAW", "--grayscale"], "leave --grayscale out"),
        (["--dataset", "miniimagenet", "--raw", "RAW"], "outside WNID folders"),
        (["--dataset", "miniimagenet", "--raw", "RAW", "--csv", "nowhere"], "train.csv, val.csv, test.csv missing"),
        (["--dataset", "glyphs", "--raw", "RAW"], "leave --raw out"),
        (["--raw", "RAW"], "of which set?"),
        (["--split", "lake"], "--split: of which set?"),
        (["--dataset", "glyphs", "--seed", "1"], "leave --seed out"),
        (["--dataset", "birds", "--raw", "RAW", "--data-dir", __file__], "expected a folder or a new name"),
        (["--datset", "birds"], "unrecognized arguments: --datset birds"),
        (["--dataset"], "--dataset: expected one argument"),
    ],
)
def test_a_wrong_command_gets_one_line_and_writes_nothing(arguments, expected, tmp_path, refused):
    raw = class_folders(tmp_path / "raw", COUNTS)
    assert expected in refused(*(raw if a == "RAW" else a for a in arguments))


def test_the_command_runs_from_another_folder_and_ends_with_status_2_and_one_line(tmp_path):
    def run(*arguments):
        command = [sys.executable, str(ROOT / "data_prep" / "build.py"), "--data-dir", str(tmp_path / "data")]
        return subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)

    done = run("--dataset", "birds", "--raw", str(class_folders(tmp_path / "raw", COUNTS)))
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("\n") == 1, done
    assert splits_of(tmp_path / "data" / "birds")["train"][0].shape[1:] == (3, 84, 84)
    done = run("--dataset", "bids")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "--dataset bids" in done.stderr


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


def test_without_options_the_sets_are_listed_built_or_with_the_command_that_builds_them(tmp_path, capsys):
    raw = class_folders(tmp_path / "raw", COUNTS)
    data = tmp_path / "data"
    for name in ("birds", "half"):
        assert build.main(["--dataset", name, "--raw", str(raw), "--data-dir", str(data)]) == 0
    (data / "half" / "test.h5").write_bytes(b"")
    capsys.readouterr()
    assert build.main(["--data-dir", str(data)]) == 0
    out = capsys.readouterr().out
    assert "birds: train 4 classes, " in out and "MiB" in out
    assert "half: " in out and "half/test.h5 is missing or damaged; python data_prep/build.py --dataset half" in out
    for name, options in (("omniglot", ""), ("miniimagenet", " --raw PATH")):
        command = f"python data_prep/build.py --dataset {name}{options} --data-dir {data}"
        assert f"{name}: not built; {command}\n" in out
    assert "images_background.zip and images_evaluation.zip" in out and "train.csv, val.csv and test.csv" in out


def test_mean_and_standard_deviation_are_those_of_the_training_images(tmp_path):
    raw = class_folders(tmp_path / "raw", COUNTS)
    assert build.main(["--dataset", "birds", "--raw", str(raw), "--data-dir", str(tmp_path / "data")]) == 0
    images = splits_of(tmp_path / "data" / "birds")["train"][0] / 255
    for split in ("train", "val", "test"):
        with h5py.File(tmp_path / "data" / "birds" / f"{split}.h5") as file:
            np.testing.assert_allclose(file.attrs["mean"], images.mean((0, 2, 3)), rtol=1e-9)
            np.testing.assert_allclose(file.attrs["std"], images.std((0, 2, 3)), rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------- the real raw sets

real_omniglot = pytest.mark.skipif(
    not (RAW_DATA / "omniglot").is_dir(), reason=f"no raw Omniglot in {RAW_DATA}; set RAW_DATA to its folder"
)
real_miniimagenet = pytest.mark.skipif(
    not (RAW_DATA / "miniimagenet").is_dir(), reason=f"no raw mini-ImageNet in {RAW_DATA}; set RAW_DATA to its folder"
)


@real_omniglot
@pytest.mark.slow
def test_the_real_omniglot_has_4112_688_and_1692_classes_of_20(tmp_path):
    assert build.main(["--dataset", "omniglot", "--raw", str(RAW_DATA / "omniglot"), "--data-dir", str(tmp_path)]) == 0
    for split, (images, starts, names) in splits_of(tmp_path / "omniglot").items():
        listed = (RAW_DATA / "omniglot" / f"vinyals_{split}.txt").read_text().split()
        assert [name.rsplit("/", 1)[0] for name in names[::4]] == listed
        assert len(set(names)) == len(names) == {"train": 4112, "val": 688, "test": 1692}[split]
        assert set(np.diff(starts)) == {20} and images.shape == (20 * len(names), 1, 28, 28)
        assert images.reshape(len(images), -1).max(1).min() > 100 and images.mean() < 40  # ink in each, paper is 0


@real_omniglot
def test_the_real_lake_split_has_24_6_and_20_alphabets():
    with files.open_files(RAW_DATA / "omniglot") as found:
        chosen = omniglot._lake(omniglot._characters(found, "raw")[1], seed=0)
    alphabets = {split: {c.split("/")[0] for c in characters} for split, characters in chosen.items()}
    assert [len(alphabets[s]) for s in ("train", "val", "test")] == [24, 6, 20]
    assert len(set.union(*alphabets.values())) == 50 and len(chosen["test"]) == 659
    assert len(chosen["train"]) + len(chosen["val"]) == 964


@real_miniimagenet
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
