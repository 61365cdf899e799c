"""The command data_prep/build.py: what it says, its exit status, and its list of the sets."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from data_prep import build
from tests.data_prep.helpers import COUNTS, ROOT, class_folders, splits_of


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
        (["--dataset", "birds", "--raw", ""], "--raw: expected a path, not an empty word"),
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
    assert done.returncode == 0 and done.stderr == "", done
    assert done.stdout.splitlines()[-1].startswith("birds: train 4 classes, ")
    assert splits_of(tmp_path / "data" / "birds")["train"][0].shape[1:] == (3, 84, 84)
    done = run("--dataset", "bids")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "--dataset bids" in done.stderr


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


def test_a_path_may_begin_with_a_tilde_and_hold_blanks(tmp_path, monkeypatch):
    class_folders(tmp_path / "my raw", COUNTS)
    (tmp_path / "my lists").mkdir()
    for split, name in (("train", "ant"), ("val", "bee"), ("test", "cat")):
        (tmp_path / "my lists" / f"{split}.txt").write_text(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["--dataset", "birds", "--raw=~/my raw", "--data-dir=~/my data", "--split=~/my lists", "--size", "8"]
    assert build.main(arguments) == 0
    assert splits_of(tmp_path / "my data" / "birds")["val"][2] == ["bee"]
    (tmp_path / "table.csv").write_text("file,label\n" + "".join(f"{c}/00.png,{c}\n" for c in ("ant", "cat", "dog")))
    assert build.main([*arguments[:4], "--table=~/table.csv", "--size", "8"]) == 0
    assert sorted(sum((names for _, _, names in splits_of(tmp_path / "my data" / "birds").values()), [])) == [
        "ant", "cat", "dog",
    ]  # fmt: skip


def test_names_that_are_no_unicode_are_built_and_printed(tmp_path):
    raw = tmp_path / "raw"
    for name in (b"caf\xe9", b"two\nlines", "学".encode(), b"plain"):
        path = raw / os.fsdecode(name)
        path.mkdir(parents=True)
        shutil.copy(class_folders(tmp_path / os.urandom(4).hex(), {"a": 1}) / "a" / "00.png", path)
    command = [sys.executable, str(ROOT / "data_prep" / "build.py"), "--dataset", "x", "--raw", str(raw), "--size", "8"]
    command += ["--least-images", "2", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    command[command.index("2")] = "1"
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stderr == "", done.stderr
    names = sum((names for _, _, names in splits_of(tmp_path / "data" / "x").values()), [])
    assert sorted(names) == ["caf\\udce9", "plain", "two\nlines", "学"]


def test_the_page_on_data_has_every_set_and_commands_that_are_understood():
    page = (ROOT / "docs" / "data.md").read_text()
    commands = re.findall(r"`python data_prep/build.py( [^`]+)`", page)
    parsed = [build.parse(command.split()) for command in commands]
    assert {options.dataset for options in parsed} == {*build.NEEDS, "NAME"}
    for option in ("--csv", "--table", "--split", "--size", "--grayscale", "--least-images"):
        assert option in page
