"""tieredImageNet, CIFAR-FS, FC100 and CUB in the forms that people have, made small, and torchmeta's HDF5 files."""

import io
import json
import pickle

import h5py
import numpy as np
import pytest
from PIL import Image

from data_prep import named
from tests.data_prep.helpers import built, class_folders, classes_of, pack, splits_of

SIDE = 8
CLASSES = {"train": 3, "val": 1, "test": 2}
IMAGES = 4


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Each set with 3 / 1 / 2 classes, and pictures of 8 pixels a side."""
    for name, known in named.SETS.items():
        monkeypatch.setitem(named.SETS, name, known._replace(side=SIDE, classes=tuple(CLASSES.values())))


@pytest.fixture
def images():
    """uint8 (classes, images, 8, 8, 3) of each split."""
    rng = np.random.default_rng(0)
    return {s: rng.integers(0, 256, (n, IMAGES, SIDE, SIDE, 3), np.uint8) for s, n in CLASSES.items()}


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def flattened(array):
    return array.reshape(-1, SIDE, SIDE, 3)


def labels_of(n, order=None):
    return np.repeat(np.arange(n), IMAGES) if order is None else np.repeat(np.arange(n), IMAGES)[order]


def cifar(folder, images, name="CIFAR_FS"):
    first = 0
    for split, array in images.items():
        labels = [first + c for c in range(len(array)) for _ in range(IMAGES)]
        content = {"data": flattened(array), "labels": labels}
        (folder / f"{name}_{split}.pickle").write_bytes(pickle.dumps(content, protocol=2))
        first += len(array)


def tiered_labels(folder, split, n):
    content = {"label_specific": labels_of(n), "label_specific_str": [f"{split}ish {c}" for c in range(n)]}
    (folder / f"{split}_labels.pkl").write_bytes(pickle.dumps(content, protocol=2))


def tiered_png(folder, images):
    for split, array in images.items():
        encoded = [np.frombuffer(png(image), np.uint8)[:, None] for image in flattened(array)]
        (folder / f"{split}_images_png.pkl").write_bytes(pickle.dumps(encoded, protocol=4))
        tiered_labels(folder, split, len(array))


def tiered_npz(folder, images, saving=np.savez):
    for split, array in images.items():
        saving(folder / f"{split}_images.npz", images=flattened(array)[..., ::-1])  # blue first
        tiered_labels(folder, split, len(array))


def tiered_torchmeta(folder, images):
    for split, array in images.items():
        with h5py.File(folder / f"{split}_data.hdf5", "w") as file:
            for c, of_class in enumerate(array):
                encoded = file.create_dataset(f"datasets/{split}ish {c}", (IMAGES,), h5py.vlen_dtype(np.uint8))
                for i, image in enumerate(of_class):
                    encoded[i] = np.frombuffer(png(image), np.uint8)


def class_folders_of(folder, images, name="{split}/{split}ish {c}"):
    for split, array in images.items():
        for c, of_class in enumerate(array):
            place = folder / name.format(split=split, c=c)
            place.mkdir(parents=True)
            for i, image in enumerate(of_class):
                (place / f"{i}.png").write_bytes(png(image))


def few_shot_npz(folder, images):
    for split, array in images.items():
        np.savez_compressed(folder / f"few-shot-{split}.npz", features=flattened(array), targets=labels_of(len(array)))


FORMS = {
    "CIFAR-FS": ("cifarfs", cifar),
    "FC100": ("fc100", lambda folder, images: cifar(folder, images, "FC100")),
    "FC100, folders": ("fc100", class_folders_of),
    "FC100, npz": ("fc100", few_shot_npz),
    "tieredImageNet, PNG": ("tieredimagenet", tiered_png),
    "tieredImageNet, npz": ("tieredimagenet", tiered_npz),
    "tieredImageNet, npz, compressed": ("tieredimagenet", lambda f, i: tiered_npz(f, i, np.savez_compressed)),
    "tieredImageNet, torchmeta": ("tieredimagenet", tiered_torchmeta),
    "tieredImageNet, folders": ("tieredimagenet", class_folders_of),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["", ".zip", ".tar.gz"])
def test_each_form_gives_every_image_in_its_class(form, suffix, images, tmp_path):
    name, write = FORMS[form]
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw, images)
    raw = pack(raw, tmp_path / f"archive{suffix}") if suffix else raw
    found = splits_of(built(name, raw, tmp_path / "data"))
    for split, array in images.items():
        assert found[split][1].tolist() == list(range(0, len(array) * IMAGES + 1, IMAGES))
        np.testing.assert_array_equal(found[split][0], flattened(array).transpose(0, 3, 1, 2))
        assert all(split in class_name for class_name in found[split][2])
    assert len(set(sum((names for _, _, names in found.values()), []))) == 6


@pytest.mark.parametrize("form", FORMS)
def test_another_number_of_classes_is_refused_with_both_numbers(form, images, tmp_path, refused):
    name, write = FORMS[form]
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw, images | {"train": images["train"][:2]})
    line = refused("--dataset", name, "--raw", raw)
    assert "2 / 1 / 2 classes in train / val / test" in line and "3 / 1 / 2" in line


def test_images_whose_labels_are_mixed_come_into_their_classes(images, tmp_path):
    order = np.random.default_rng(1).permutation(3 * IMAGES)
    cifar(tmp_path, images)
    content = {"data": flattened(images["train"])[order], "labels": labels_of(3, order).tolist()}
    (tmp_path / "CIFAR_FS_train.pickle").write_bytes(pickle.dumps(content))
    found = splits_of(built("cifarfs", tmp_path / "CIFAR_FS_val.pickle", tmp_path / "data"))["train"][0]
    for c in range(3):
        rows = sorted(image.tobytes() for image in found[c * IMAGES : (c + 1) * IMAGES].transpose(0, 2, 3, 1))
        assert rows == sorted(image.tobytes() for image in images["train"][c])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c | {"data": c["data"][..., :1]}, "expected uint8 (N, 8, 8, 3)"),
        (lambda c: c | {"data": c["data"].astype(float)}, "float64"),
        (lambda c: c | {"labels": c["labels"][:-1]}, "labels for 4 images"),
        (lambda c: c | {"labels": [[0]] * 4}, "labels for 4 images"),
        (lambda c: {"labels": c["labels"]}, "without data and labels"),
        (lambda c: c | {"labels": None}, "no labels for 4 images"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(change, expected, images, tmp_path, refused):
    raw = tmp_path / "raw"
    raw.mkdir()
    cifar(raw, images)
    path = raw / "CIFAR_FS_val.pickle"
    path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()))))
    line = refused("--dataset", "cifarfs", "--raw", raw)
    assert "CIFAR_FS_val.pickle" in line and expected in line


def test_what_a_set_of_arrays_lacks_is_named(images, tmp_path, refused):
    raw = tmp_path / "raw"
    raw.mkdir()
    tiered_png(raw, images)
    (raw / "val_labels.pkl").unlink()
    assert "expected val_labels.pkl beside it" in refused("--dataset", "tieredimagenet", "--raw", raw)
    (raw / "val_images_png.pkl").unlink()
    assert "no arrays for val" in refused("--dataset", "tieredimagenet", "--raw", raw)
    (raw / "test_images_png.pkl").write_bytes(pickle.dumps([b"x"] * 8))
    tiered_png(raw, {"val": images["val"]})
    assert "8 pictures are unreadable: test_images_png.pkl[0]" in refused("--dataset", "tieredimagenet", "--raw", raw)


def test_a_pickle_of_pictures_runs_no_code(images, tmp_path, refused):
    class Hostile:
        def __reduce__(self):
            return print, ("it ran",)

    raw = tmp_path / "raw"
    raw.mkdir()
    tiered_png(raw, images)
    (raw / "train_labels.pkl").write_bytes(pickle.dumps({"label_specific": Hostile()}))
    assert "asks for builtins.print" in refused("--dataset", "tieredimagenet", "--raw", raw)
    tiered_npz(raw, images)
    np.savez(raw / "val_images.npz", images=np.array([Hostile()]))
    tiered_labels(raw, "train", 3)
    assert "expected numbers" in refused("--dataset", "tieredimagenet", "--raw", raw)


def test_a_preview_beside_arrays_is_passed_over(images, tmp_path, capsys):
    cifar(tmp_path, images)
    (tmp_path / "preview.png").write_bytes(png(images["val"][0, 0]))
    built("cifarfs", tmp_path, tmp_path / "data")
    assert "1 files passed over (1 .png)" in capsys.readouterr().out


# CIFAR-FS and CUB as class folders, with class lists


def test_cifarfs_is_built_from_class_folders_and_its_lists_or_says_what_is_missing(images, tmp_path, refused):
    raw = tmp_path / "raw"
    class_folders_of(raw, images, "cifar100/data/{split}ish {c}")
    line = refused("--dataset", "cifarfs", "--raw", raw)
    assert "class folders without a split" in line and "--split FOLDER" in line
    place = raw / "cifar100" / "splits" / "bertinetto"
    place.mkdir(parents=True)
    for split, n in CLASSES.items():
        (place / f"{split}.txt").write_text("".join(f"{split}ish {c}\n" for c in range(n)))
    assert {s: len(names) for s, names in classes_of(built("cifarfs", raw, tmp_path / "data")).items()} == CLASSES
    place = place.rename(tmp_path / "lists")
    found = classes_of(built("cifarfs", raw, tmp_path / "data", "--split", place))
    assert {s: len(names) for s, names in found.items()} == CLASSES


BIRDS = [f"{i:03d}.Bird_{i}" for i in range(1, 9)]


@pytest.fixture
def cub(monkeypatch, tmp_path):
    """CUB with eight classes, as its archive holds them, with the masks beside them."""
    monkeypatch.setitem(named.SETS, "cub", named.SETS["cub"]._replace(classes=(4, 2, 2)))
    raw = class_folders(tmp_path / "cub" / "CUB_200_2011" / "images", dict.fromkeys(BIRDS, 2)).parent
    class_folders(raw.parent / "segmentations", dict.fromkeys(BIRDS, 2))
    (raw / "images.txt").write_text("".join(f"{i} {bird}/00.png\n" for i, bird in enumerate(BIRDS, 1)))
    (raw / "classes.txt").write_text("".join(f"{i} {bird}\n" for i, bird in enumerate(BIRDS, 1)))
    (raw / "train_test_split.txt").write_text("".join(f"{i} {i % 2}\n" for i in range(1, 9)))
    return raw.parent


def test_cub_without_lists_has_the_split_of_chen_et_al(cub, tmp_path, capsys):
    found = classes_of(built("cub", cub, tmp_path / "data"))
    assert found == {"train": BIRDS[::2], "val": BIRDS[1::4], "test": BIRDS[3::4]}
    assert "Chen et al." in capsys.readouterr().out
    assert splits_of(tmp_path / "data" / "cub")["train"][0].shape == (8, 3, SIDE, SIDE)


@pytest.mark.parametrize("form", ["json of pictures", "csv", "txt"])
def test_cub_follows_the_lists_that_people_have(form, cub, tmp_path):
    chosen = {"train": BIRDS[:4], "val": BIRDS[4:6], "test": BIRDS[6:]}
    place = tmp_path / "lists"
    place.mkdir()
    for split, names in chosen.items():
        if form == "json of pictures":
            content = {
                "label_names": BIRDS, "image_names": [f"/data/CUB_200_2011/images/{name}/00.png" for name in names],
                "image_labels": [BIRDS.index(name) for name in names],
            }  # fmt: skip
            file = {"train": "base", "val": "val", "test": "novel"}[split]
            (place / f"{file}.json").write_text(json.dumps(content))
        elif form == "csv":
            (place / f"{split}.csv").write_text("filename,label\n" + "".join(f"{n}/00.png,{n}\n" for n in names))
        else:
            (place / f"{split}.txt").write_text("\n".join(names))
    assert classes_of(built("cub", cub, tmp_path / "data", "--split", place)) == chosen
    place.rename(cub / "lists")
    assert classes_of(built("cub", cub, tmp_path / "data")) == chosen


def test_lists_that_cannot_be_used_have_a_mend_that_the_set_takes(cub, refused):
    for text in ("\n".join(BIRDS), "none of these"):
        for split in ("train", "val", "test"):
            (cub / f"{split}.txt").write_text(text)
        line = refused("--dataset", "cub", "--raw", cub)
        assert "or give others with --split FOLDER" in line and "0.64" not in line


def test_a_set_under_a_name_that_is_like_a_known_one_is_asked_for(tmp_path, refused):
    for name, meant in (
        ("CIFAR-FS", "cifarfs"),
        ("tiered_ImageNet", "tieredimagenet"),
        ("CUB", "cub"),
        ("FC-100", "fc100"),
    ):
        assert f"did you mean --dataset {meant}" in refused("--dataset", name, "--raw", tmp_path)
    assert "no such folder or file" in refused("--dataset", "cub", "--raw", tmp_path, "--split", "0.6,0.2,0.2")
