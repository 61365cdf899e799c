"""A mini-ImageNet of 3, 1 and 1 classes of four images, in each of the layouts in which people have it."""

import csv
import io
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = {"train": ["n01532829", "n01558993", "n01704323"], "val": ["n01855672"], "test": ["n01930112"]}
NUMBERS = [2, 3, 5, 10]  # Ravi's indices of the images that mini-ImageNet takes from each class of the fake ILSVRC


def random_jpegs() -> dict[str, dict[str, bytes]]:
    """WordNet id -> Ravi's file name -> JPEG."""
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
