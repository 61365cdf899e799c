"""What tests of predict.py share: picture files of `toy`, and a refusal read back."""

import h5py
from PIL import Image


def draw(folder, counts, data_dir, first=0, split="test", turn=lambda pixels: pixels):
    """PNG files of the first images of a split's classes, as many a class as `counts` says, from number `first` on."""
    with h5py.File(data_dir / "toy" / f"{split}.h5") as file:
        for c, count in enumerate(counts):
            start = file["class_start"][c] + first
            (folder / f"class{c}").mkdir(parents=True)
            for i, image in enumerate(file["images"][start : start + count]):
                Image.fromarray(turn(image[0])).save(folder / f"class{c}" / f"{i}.png")
    return folder


def refused(predicted, *words):
    status, said, _ = predicted(*words)
    assert status == 2 and said.count("\n") == 1 and said.startswith("error: ")
    return said
