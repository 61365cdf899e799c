"""What a build leaves in DATA_DIR/NAME: the three .h5 files (common/shards.py), and `preview.png` beside them."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from common.shards import SPLITS, Preparation, Split, UsageError, opened, write_shard

# In the order in which they get their names: test.h5 is the sign for the scripts that a set is built.
FILES = ("preview.png", "train.h5", "val.h5", "test.h5")


def write(
    data_dir: Path, name: str, splits: dict[str, Split], source: str, preparation: Preparation = Preparation()
) -> Path:
    """Write the three files and the preview beside the final folder, and rename them into it when all are whole.

    `splits` has the keys train, val and test; `preparation` says how the images were made of pictures. Returns the
    folder. A run that is interrupted leaves what was there before; in the moment of the renaming, a folder without
    test.h5. Raises UsageError where a class has another number of images, or images of another size, than was promised,
    and where the final folder holds anything but an earlier build.
    """
    folder = data_dir / name
    if folder.exists():
        if not folder.is_dir() or (foreign := sorted(p.name for p in folder.iterdir() if p.name not in FILES)):
            what = f"holds {foreign[0]}" if folder.is_dir() else "is a file"
            raise UsageError(f"{folder} {what}, expected nothing there but an earlier build; choose another --data-dir")
    absent = [p for p in (data_dir, *data_dir.parents) if not p.exists()]
    data_dir.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{name}.partial-", dir=data_dir))
    try:
        moments = None
        for split in SPLITS:
            moments = write_shard(partial / f"{split}.h5", split, splits[split], source, moments, preparation)
        preview(partial / "train.h5", partial / "preview.png")
        folder.mkdir(exist_ok=True)
        (folder / "test.h5").unlink(missing_ok=True)  # new files beside old ones, with other splits, are no built set
        for file in FILES:
            os.replace(partial / file, folder / file)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for path in absent:
            if not any(path.iterdir()):
                path.rmdir()
    return folder


def preview(shard: Path, picture: Path, rows: int = 8, columns: int = 8) -> None:
    """Draw a few images of a few classes, evenly spaced over the file, one class a row (the paper's Figure 1)."""
    with opened(shard) as file:
        images, starts = file["images"], file["class_start"][:]
        channels, height, width = images.shape[1:]
        chosen = np.unique(np.linspace(0, len(starts) - 2, rows).astype(int))
        sheet = np.full((len(chosen) * (height + 2), columns * (width + 2), channels), 128, np.uint8)
        for row, c in enumerate(chosen):
            for column, image in enumerate(images[starts[c] : min(starts[c + 1], starts[c] + columns)]):
                y, x = row * (height + 2) + 1, column * (width + 2) + 1
                sheet[y : y + height, x : x + width] = image.transpose(1, 2, 0)
    scale = max(1, 512 // max(sheet.shape[:2]))
    picture_image = Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet)
    picture_image.resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.NEAREST).save(picture)
