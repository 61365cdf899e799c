"""predict.py as a command: the runs that it takes, what it refuses in one line, its sheets, and the docs' example."""

import base64
import csv
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import convex_imaml
import maml
from common.shards import ROOT
from docs.release import small
from predictions import sheet
from predictions.labelled import Labelled
from predictions.task import Task
from tests.labels import draw, refused
from tests.test_prepare import trained_on

EXAMPLE = ROOT / "docs" / "example"


@pytest.fixture
def folders(data_dir, tmp_path):
    """Words for predict.py: a support folder of three classes, and a query folder."""
    support = draw(tmp_path / "support", (2, 1, 3), data_dir)
    return ["--support", support, "--query", draw(tmp_path / "query", (2, 2, 2), data_dir, first=10)]


def test_a_copied_script_labels_with_its_own_predict(train, predicted, folders, tmp_path):
    """The copy's predict gives the classes in another order; its source is in the run folder alone."""
    run = train()
    _, _, before = predicted(run, *folders)
    source, tail = (run / "script.py").read_text(), "episode.y_support, episode.ways, config).value)\n"
    assert source.count(tail) == 1
    (run / "script.py").write_text(source.replace(tail, f"{tail.strip()}.flip(-1)\n"))
    about = json.loads((run / "config.json").read_text())
    about["options"]["algorithm"] = "mine"
    (run / "config.json").write_text(json.dumps(about))
    status, _, after = predicted(run, *folders)
    assert status == 0 and [row["p(class0)"] for row in before] == [row["p(class2)"] for row in after]
    assert before != after
    (run / "script.py").write_text("import nowhere")
    assert "its script can't be loaded (ModuleNotFoundError: No module named 'nowhere')" in refused(
        predicted, run, *folders
    )
    (run / "script.py").unlink()
    assert "mine.py isn't there; put the script that trained it there" in refused(predicted, run, *folders)


def test_a_released_checkpoint_labels_as_its_run_does(train, predicted, folders, tmp_path):
    run = train()
    _, _, before = predicted(run, *folders)
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    (run / "script.py").unlink()
    for dtype in (torch.float32, torch.float16):
        (run / "checkpoint.pt").write_bytes(small(checkpoint, dtype))
        status, _, after = predicted(run, *folders)
        values = [
            np.array([[float(row[f"p(class{c})"]) for c in range(3)] for row in rows]) for rows in (before, after)
        ]
        np.testing.assert_allclose(*values, atol=0 if dtype == torch.float32 else 2e-2)


@pytest.mark.slow
def test_a_run_from_before_config_json_described_the_data_finds_it_in_its_data_set(
    train, predicted, folders, data_dir, tmp_path
):
    run = train()
    _, _, before = predicted(run, *folders)
    about = json.loads((run / "config.json").read_text())
    del about["data"]
    (run / "config.json").write_text(json.dumps(about))
    assert predicted(run, *folders)[2] == before
    about["options"]["data_dir"] = str(tmp_path / "nowhere")
    (run / "config.json").write_text(json.dumps(about))
    assert "toy/train.h5 isn't there" in refused(predicted, run, *folders)
    assert predicted(run, *folders, "--data-dir", data_dir)[2] == before


def test_what_a_run_can_not_do_or_is_not_is_one_line(train, predicted, folders, data_dir, tmp_path):
    run = train(maml)
    said = refused(predicted, run, *folders)
    assert (
        "maml.py has an output for each of 5 classes, not for 3; give 5 class folders, or a run of convex_imaml" in said
    )
    assert "is no run folder" in refused(predicted, tmp_path / "query", *folders)
    said = refused(predicted, run / "checkpoint.pt", *folders)
    assert "checkpoint.pt: expected a run folder, not a file in it, or a file that predict.py --save wrote" in said
    (run / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:5000])
    assert "checkpoint.pt is damaged" in refused(predicted, run, *folders)
    (run / "checkpoint.pt").unlink()
    assert "has no checkpoint.pt, expected the folder of a training" in refused(predicted, run, *folders)


@pytest.mark.slow
def test_fewer_views_are_those_of_the_test_with_as_many(train, predicted, folders):
    run = train(options="--flip --views 2")
    _, _, two = predicted(run, *folders)
    assert predicted(run, *folders, "--views", "2")[2] == two
    status, _, one = predicted(run, *folders, "--views", "1")
    assert status == 0 and one != two
    about = json.loads((run / "config.json").read_text())
    about["options"]["views"] = 1
    (run / "config.json").write_text(json.dumps(about))
    assert predicted(run, *folders)[2] == one
    assert "--views 0: expected 1 or more" in refused(predicted, run, *folders, "--views", "0")
    assert "--views 3: more than 2 would be alike" in refused(predicted, run, *folders, "--views", "3")
    assert "maml.py looks at a picture once" in refused(predicted, train(maml), *folders, "--views", "2")


def test_a_bad_folder_is_one_line_that_names_what_is_wrong(train, predicted, folders, data_dir, tmp_path):
    run, support, query = train(), tmp_path / "support", tmp_path / "query"
    assert "--support is missing" in refused(predicted, run, "--query", query)
    assert "no such folder" in refused(predicted, run, "--support", tmp_path / "no", "--query", query)
    assert "no such folder" in refused(predicted, run, "--support", support, "--query", tmp_path / "no")
    assert "expected one of them" in refused(predicted, run, *folders, "--invert", "--as-is")
    (tmp_path / "one" / "a").mkdir(parents=True)
    shutil.copy(support / "class0" / "0.png", tmp_path / "one" / "a")
    assert "a alone, expected two or more" in refused(predicted, run, "--support", tmp_path / "one", "--query", query)
    (tmp_path / "one" / "b").mkdir()
    assert "no picture in b" in refused(predicted, run, "--support", tmp_path / "one", "--query", query)
    assert "no picture in it" in refused(predicted, run, "--support", support, "--query", tmp_path / "one" / "b")
    shutil.copy(support / "class0" / "0.png", support / "stray.png")
    assert "pictures outside of class folders (stray.png)" in refused(predicted, run, *folders)
    (support / "stray.png").unlink()
    (support / "class1" / "torn.png").write_bytes((support / "class1" / "0.png").read_bytes()[:60])
    (query / "text.jpg").write_text("no picture")
    said = refused(predicted, run, *folders)
    assert "2 pictures are unreadable" in said and "torn.png" in said and "text.jpg" in said
    assert not (tmp_path / "predicted").exists()


def test_pictures_that_are_shown_and_asked_are_named(train, predicted, folders, data_dir, tmp_path):
    run = train()
    shutil.copy(tmp_path / "support" / "class0" / "1.png", tmp_path / "query" / "again.png")
    status, said, rows = predicted(run, *folders)
    assert status == 0 and len(rows) == 7
    assert "note: 1 of the query pictures are in the support set too: again.png" in said


def test_the_sheets_may_go_to_the_folder_of_the_query_or_one_above(train, predicted, folders, tmp_path):
    run = train()
    for out in (tmp_path, tmp_path / "query"):
        for _ in range(2):  # the first one's sheet.png is no query picture of the second
            status, said, rows = predicted(run, *folders, "--out", out)
            assert status == 0 and "6 pictures labelled" in said and "passed over" not in said


def test_folders_that_are_links_are_read_and_what_is_no_picture_is_said(train, predicted, folders, data_dir, tmp_path):
    run, query = train(), tmp_path / "query"
    linked = draw(tmp_path / "elsewhere", (4,), data_dir, first=12)
    (query / "linked").symlink_to(linked)
    (query / "class0" / "round").symlink_to(query)
    _, said, rows = predicted(run, *folders)
    assert [row["file"] for row in rows][6:] == [f"linked/class0/{i}.png" for i in range(4)]
    assert "passed over" not in said
    for name in ("a.heic", "b.HEIC", "no suffix"):
        shutil.copy(query / "class0" / "0.png", query / name)
    (query / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    status, said, rows = predicted(run, *folders)
    assert status == 0 and len(rows) == 10
    assert "4 files are passed over, as they are no pictures of a known kind: 2 .heic, 1 no suffix, 1 .png" in said
    support = ["--support", tmp_path / "support"]
    assert "no picture of a kind that is known" in refused(predicted, run, *support, "--query", query / "a.heic")
    (tmp_path / "phone").mkdir()
    shutil.copy(query / "a.heic", tmp_path / "phone")
    assert "no picture in it (1 .heic)" in refused(predicted, run, *support, "--query", tmp_path / "phone")


def test_odd_names_and_folders_in_each_other_are_taken(train, predicted, data_dir, tmp_path):
    run = train()
    support = draw(tmp_path / "all" / "support", (2, 1, 3), data_dir)
    for i, name in enumerate((r"$\\frac$", "学 & <b>", "a,b")):
        (support / f"class{i}").rename(support / name)
    shutil.copy(support / "a,b" / "0.png", tmp_path / "all" / "_\udcff.png")
    for _ in range(2):  # the second time, what the first has left isn't labelled
        words = ["--support", support, "--query", tmp_path / "all", "--out", tmp_path / "all" / "out"]
        status, said, _ = predicted(run, *words)
        assert status == 0 and "7 of the query pictures are in the support set" in said
        rows = list(csv.reader(open(tmp_path / "all" / "out" / "predictions.csv")))
        assert rows[0] == ["file", "predicted", r"p($\\frac$)", "p(a,b)", "p(学 & <b>)"] and len(rows) == 8
        assert rows[1][0] == "_\\udcff.png" and "of 6 pictures in folders" in said
    assert "a folder, expected the name of a file" in refused(predicted, run, *words, "--save", tmp_path)
    assert "name a file in a folder that can be made" in refused(
        predicted, run, *words, "--save", support / "a,b" / "0.png" / "x"
    )


def labelled_pictures(count, shape=(3, 30, 30)):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    probabilities = rng.dirichlet((1, 1, 1), count)
    files = [f"{i} & <b>.png" for i in range(count)]
    labels = torch.tensor([0, 1, 2, 2])
    support = torch.from_numpy(pixels[:4])
    task = Task(trained_on("toy", shape, "whole"), ["a", "<i>", "c"], support, labels, None)
    return Labelled(task.classes, files, probabilities, np.full(count, -1)), task, pixels


def test_the_page_holds_every_picture_and_marks_the_doubtful(tmp_path):
    labelled, task, pixels = labelled_pictures(120)
    sheet.write(tmp_path / "out", labelled, task, pixels, "120 pictures")
    page = (tmp_path / "out" / "sheet.html").read_text()
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 124 and "http" not in page and "<i>" not in page and page.count("&lt;b&gt;") >= 120
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[4])))).astype(int)
    assert decoded.shape == (30, 30, 3)
    first, second = np.sort(labelled.probabilities, 1)[:, :0:-1].T
    assert page.count('class="doubtful"') == (first < 2 * second).sum() == labelled.doubtful.sum() > 10
    assert page.count("% ?") == labelled.doubtful.sum()
    assert Image.open(tmp_path / "out" / "sheet.png").size[0] > 500


def test_more_than_26_classes_are_told_apart_by_numbers():
    probabilities = np.eye(30)
    labelled = Labelled([f"class{i}" for i in range(30)], ["x"] * 30, probabilities, np.arange(30))
    lines = labelled.accuracy_lines()
    assert lines[0].startswith("accuracy 1.0000: 30 of 30") and len(lines) == 32 and " 30 " in lines[1]


@pytest.mark.slow
def test_the_docs_commands_label_the_committed_example(glyphs_folder, tmp_path, monkeypatch, capsys):
    """From a clone to labels, as docs/predict.md says, with a shorter training; the example is what its command draws,
    but for what another version of matplotlib may draw otherwise. Training and labelling are processes; the commands
    after them are called here."""
    text = (ROOT / "docs" / "predict.md").read_text()
    commands = [
        shlex.split(line)
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M)
        for line in block.splitlines()
    ]
    training, labelling, drawing, of_drawn, saving, of_saved = commands[:6]
    data = ["--data-dir", str(glyphs_folder.parent)]
    shorter = ["--steps", "100", "--test-episodes", "5", "--val-episodes", "5", "--width", "32", *data]
    shutil.copytree(EXAMPLE, tmp_path / "docs" / "example")

    def run(words, *more):
        words = [sys.executable, str(ROOT / words[1]) if words[1].endswith(".py") else words[1], *words[2:], *more]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def here(words, *more):
        module, rest = (words[2], words[3:]) if words[1] == "-m" else (words[1].removesuffix(".py"), words[2:])
        monkeypatch.setattr(sys, "argv", [module, *rest, *more])
        capsys.readouterr()
        importlib.import_module(module).main()
        return capsys.readouterr().out

    run(training, *shorter)
    said = run(labelling)
    accuracy = float(re.search(r"accuracy (\S+):", said)[1])
    assert accuracy > 0.5 and "34 of 34 pictures are on white paper" in said
    first = (tmp_path / "predicted" / "predictions.csv").read_text()
    monkeypatch.chdir(tmp_path)
    here(drawing, *data)
    assert "accuracy" in here(of_drawn)
    here(saving)
    here(of_saved)
    assert (tmp_path / "predicted" / "predictions.csv").read_text() == first
    here(["python", "-m", "predictions.example", "drawn"], *data)
    drawn, committed = (
        {p.relative_to(f) for f_ in [f] for p in f_.rglob("*.png")} for f in (tmp_path / "drawn", EXAMPLE)
    )
    assert drawn == committed and len(drawn) == 34
    with h5py.File(glyphs_folder / "train.h5") as file:  # the training has no character of these scripts
        scripts = {name.partition("/")[0].lower() for name in file["class_names"].asstr()[:]}
    assert len(scripts) > 5 and not scripts & {path.parts[1].split("-")[0] for path in drawn}


def test_the_example_is_small():
    pictures = [*EXAMPLE.rglob("*.png"), ROOT / "docs" / "predict.png"]
    assert len(pictures) == 35 and sum(file.stat().st_size for file in pictures) < 200_000


@pytest.mark.slow
def test_a_thousand_pictures_take_less_than_ten_seconds(train, predicted, data_dir, tmp_path):
    """25 support pictures, and JPEG files of 400 x 300 pixels: of one core's time, as it may be busy elsewhere."""
    run = train(convex_imaml)
    support = draw(tmp_path / "support", (5,) * 5, data_dir)
    (tmp_path / "query").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for i in range(1000):
        Image.fromarray(np.roll(pixels, i, 0)).resize((400, 300)).save(tmp_path / "query" / f"{i}.jpg")
    started = time.process_time()
    status, _, rows = predicted(run, "--support", support, "--query", tmp_path / "query")
    assert status == 0 and len(rows) == 1000 and time.process_time() - started < 10


@pytest.mark.slow
def test_hundreds_of_classes_have_a_picture_of_some():
    labelled, task, pixels = labelled_pictures(600, (1, 16, 16))
    labelled.classes = [f"class{i}" for i in range(600)]
    labelled.probabilities = np.random.default_rng(1).dirichlet(np.ones(600), 600)
    drawn = sheet.picture(labelled, pixels, np.arange(600), pixels)
    assert max(Image.open(io.BytesIO(drawn)).size) < 10_000
