"""Built .h5 files: read whatever locks there are, damaged in any way, and with any names in them."""

import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from common import shards
from common.episodes import EpisodeLoader
from common.shards import ROOT, Split, UsageError, read_shard, write_shard
from data_prep import build


@pytest.fixture
def shard(data_dir, tmp_path):
    """A copy of toy's train.h5 in a folder with a blank."""
    path = tmp_path / "my data" / "toy" / "train.h5"
    path.parent.mkdir(parents=True)
    return shutil.copy(data_dir / "toy" / "train.h5", path)


# Locks the file until its input ends.
LOCKING = "import fcntl, sys; f = open(sys.argv[1], 'rb+'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"


def test_a_file_that_another_program_has_locked_is_read(shard, capsys):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", LOCKING, str(shard)], **pipes) as other:
        other.stdout.readline()
        with pytest.raises(OSError, match="lock"):
            h5py.File(shard, "r", locking=True)
        assert len(read_shard(shard)[2]) == 12
        for split in ("val", "test"):
            shutil.copy(shard, shard.with_name(f"{split}.h5"))
        assert build.main(["--data-dir", str(shard.parents[1])]) == 0
        assert "toy: train 12 classes" in capsys.readouterr().out
        other.communicate("\n")


DAMAGE = {
    "no images": lambda f: f.__delitem__("images"),
    "images elsewhere": lambda f: (f.__delitem__("images"), f.__setitem__("images", h5py.ExternalLink("/x.h5", "/x"))),
    "images that are a link": lambda f: (f.move("images", "i"), f.__setitem__("images", h5py.SoftLink("/i"))),
    "images that declare more": lambda f: (
        f.__delitem__("images"), f.create_dataset("images", (2**40, 1, 28, 28), "u1", chunks=(1, 1, 28, 28)),
    ),
    "a group of images": lambda f: (f.__delitem__("images"), f.create_group("images")),
    "starts that declare more": lambda f: (
        f.__delitem__("class_start"), f.create_dataset("class_start", (2**44,), "i8", chunks=(1024,)),
    ),
    "starts that fall": lambda f: f["class_start"].__setitem__(1, 10**6),
    "starts of floats": lambda f: (f.__delitem__("class_start"), f.__setitem__("class_start", np.linspace(0, 264, 13))),
    "one start": lambda f: (f.__delitem__("class_start"), f.__setitem__("class_start", 0)),
    "names that are numbers": lambda f: (f.__delitem__("class_names"), f.__setitem__("class_names", np.arange(12))),
    "too few names": lambda f: (f.__delitem__("class_names"), f.__setitem__("class_names", ["a"])),
    "a mean that is text": lambda f: f.attrs.__setitem__("mean", "grey"),
    "a mean that is no number": lambda f: f.attrs.__setitem__("mean", [np.nan]),
    "two means": lambda f: f.attrs.__setitem__("mean", [0.5, 0.5]),
    "another version": lambda f: f.attrs.__setitem__("version", 7),
    "versions": lambda f: f.attrs.__setitem__("version", [1, 2]),
    "no version": lambda f: f.attrs.__delitem__("version"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_of_another_content_is_refused_with_a_command_to_paste(damage, shard):
    with h5py.File(shard, "r+") as file:
        DAMAGE[damage](file)
    with pytest.raises(UsageError) as refusal:
        read_shard(shard)
    assert f"--dataset toy --raw PATH --data-dir '{shard.parents[1]}'" in str(refusal.value)
    assert str(shard) in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_images_block_that_ends_after_the_file_is_refused(shard):
    whole = shard.read_bytes()
    with h5py.File(shard) as file:
        offset = file["images"].id.get_offset()
    for length in (offset + 100, len(whole) - 1):
        shard.write_bytes(whole[:length])
        with pytest.raises(UsageError, match="--dataset toy"):
            read_shard(shard)
    shard.unlink()
    shard.mkdir()
    with pytest.raises(UsageError, match="isn't there"):
        read_shard(shard)


def test_class_names_that_hdf5_cannot_hold_are_written_as_escapes(tmp_path):
    names = ["caf\udce9", "nul\0", "two\nlines", "学", "\ud800"]
    images = [np.full((2, 1, 8, 8), i, np.uint8) for i in range(5)]
    write_shard(tmp_path / "train.h5", "train", Split(names, [2] * 5, images), "raw\udcff")
    assert read_shard(tmp_path / "train.h5")[2] == ["caf\\udce9", "nul\\0", "two\nlines", "学", "\\ud800"]
    with h5py.File(tmp_path / "train.h5") as file:
        assert file.attrs["source"] == "raw\\udcff"


def test_the_loader_names_the_options_that_mend_a_small_set(shard):
    with pytest.raises(UsageError, match="toy has 12 classes; ask for fewer ways.*build.py's --split"):
        EpisodeLoader(shard, 13, 1, 1, 1)
    with pytest.raises(UsageError) as refusal:
        EpisodeLoader(shard, 5, 5, 16, 1)
    said = str(refusal.value)
    assert "6 of 12 classes have too few" in said and said.endswith(f"'{shard.parents[1]}' --least-images 21")


def test_commands_that_are_printed_can_be_pasted_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert shards.build_command(ROOT / "data" / "glyphs") == "python data_prep/build.py --dataset glyphs"
    monkeypatch.chdir(tmp_path)
    assert shards.build_command(ROOT / "data" / "glyphs") == f"python {ROOT}/data_prep/build.py --dataset glyphs"
    folder = tmp_path / "my data" / "set$1"
    assert shards.build_command(folder, "my raw").endswith(
        f"--dataset 'set$1' --raw 'my raw' --data-dir '{tmp_path}/my data'"
    )
