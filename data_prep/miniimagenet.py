"""mini-ImageNet by WordNet id (Ravi & Larochelle, 2017): 64 / 16 / 20 classes of 600 images, 84x84 RGB."""

import csv
import io
import re
from pathlib import Path

from PIL import Image

from data_prep import files as raw_files
from data_prep.shards import SPLITS, DataError, Split, write

PER_CLASS = 600
SIZE = 84
SPLIT_FILE = Path(__file__).with_name("miniimagenet_split.txt")


def known_split() -> dict[str, list[str]]:
    """The sorted WordNet ids of each split: 64 / 16 / 20."""
    wnids = {s: [] for s in SPLITS}
    for line in SPLIT_FILE.read_text().splitlines():
        if not line.startswith("#"):
            s, *ids = line.split()
            wnids[s] += ids
    return wnids


def build(data_dir: Path, raw: Path, name: str = "miniimagenet"):
    with raw_files.open_files(raw) as files:
        by_name = {n.rsplit("/", 1)[-1]: n for n in files if raw_files.is_image(n)}
        classes = {}
        for n in files:
            if n.endswith(".csv"):
                with files[n]() as file:
                    for row in csv.DictReader(io.TextIOWrapper(file)):
                        classes.setdefault(row["label"], []).append(by_name[row["filename"]])
        splits = {}
        for s, wnids in known_split().items():
            splits[s] = Split(
                wnids,
                [PER_CLASS] * len(wnids),
                (raw_files.read_images(files, sorted(classes[w]), lambda im: im.convert("RGB")) for w in wnids),
            )
        return write(data_dir, name, splits, "mini-ImageNet, split by WordNet id")
