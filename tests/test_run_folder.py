"""What a run leaves behind, whatever happens to it: whole files, one writer, the best weights, the same run again."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import convex_imaml
import maml
from common import folder, lock, log, meters
from common.options import flag
from common.shards import ROOT, UsageError
from tests.runs import SMALL, TINY, interrupt, rows_of, state_of


def test_a_resumed_run_goes_on_with_the_optimiser_that_it_had(command, tmp_path, monkeypatch):
    assert command(f"{TINY} --steps 6 --out whole") == 0
    with monkeypatch.context() as patch:
        interrupt(patch, convex_imaml, at_call=4)
        assert command(f"{TINY} --steps 6 --out parts") != 0
    assert state_of(tmp_path / "parts")["step"] == 2
    assert command("--resume parts") == 0
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert all(torch.equal(whole["model"][key], parts["model"][key]) for key in whole["model"])
    moments = [state["optimizer"]["state"][0]["exp_avg_sq"] for state in (whole, parts)]
    assert torch.equal(*moments) and moments[0].norm() > 0


def test_the_weights_that_validation_found_best_are_tested(command, tmp_path, monkeypatch):
    """Of validations at 0.9, 0.4 and 0.3 the first; what the test is given are its weights."""
    accuracies = iter([0.9, 0.4, 0.3])
    monkeypatch.setattr(meters, "mean_ci95", lambda values: (next(accuracies, 0.0), 0.0))
    tested, evaluate = [], convex_imaml.evaluate

    def recorded(model, loader, *arguments, **options):
        tested.append({key: value.clone() for key, value in model.state_dict().items()})
        return evaluate(model, loader, *arguments, **options)

    monkeypatch.setattr(convex_imaml, "evaluate", recorded)
    assert command(f"{TINY} --steps 6 --out best") == 0
    first, _, last, inductive, transductive = tested
    key = "backbone.blocks.0.convolution.weight"
    assert torch.equal(inductive[key], first[key]) and torch.equal(transductive[key], first[key])
    state = state_of(tmp_path / "best")
    assert not torch.equal(last[key], first[key]) and state["best"] == (0.9, 0.0)
    assert not torch.equal(state["best_state"][key], state["model"][key])


@pytest.mark.slow
def test_before_a_validation_the_last_weights_are_tested_also_of_a_resumed_run(command, tmp_path, monkeypatch):
    options = f"{TINY} --eval-every 100 --steps 100 --tasks 1 --out started"
    for words, at_call in ((options, 1), ("--resume started", 52)):
        with monkeypatch.context() as patch:
            interrupt(patch, convex_imaml, at_call)
            assert command(words) != 0
    state = state_of(tmp_path / "started")
    assert state["step"] == 50
    assert all(torch.equal(value, state["best_state"][key]) for key, value in state["model"].items())
    assert command("--evaluate started --out tested") == 0
    result = json.loads((tmp_path / "tested" / "result.json").read_text())
    assert result["steps"] == 50 and result["val_accuracy"] is None


# log.csv


@pytest.mark.slow
def test_rows_that_are_not_whole_or_came_after_the_checkpoint_are_dropped_on_resume(command, tmp_path, monkeypatch):
    assert command(f"{TINY} --steps 6 --out whole") == 0
    with monkeypatch.context() as patch:
        interrupt(patch, convex_imaml, at_call=6)
        assert command(f"{TINY} --steps 6 --out killed") != 0
    text = (tmp_path / "killed" / "log.csv").read_text()
    header, second, fourth = text.splitlines()
    for i, left in enumerate((
        f"{header}\n{second}\n{fourth}\n\n",  # a blank line
        f"{header}\n{second}\n{fourth}\n6,1.5,0.3",  # cut off within a row
        f"{header}\n{second}\n{fourth}\n4{fourth[1:-1]}",  # within a row's last number
        f"{header}\n{second}\n{second}\n{fourth}\n",  # a row twice
        f"{header}\n{second}\n{fourth}\n6{fourth[1:]}\n",  # after the checkpoint
        f"{header}\n{second}\n{fourth}\n4,1.5,\n",  # too short
    )):  # fmt: skip
        shutil.copytree(tmp_path / "killed", tmp_path / str(i))
        (tmp_path / str(i) / "log.csv").write_text(left)
        assert command(f"--resume {i}") == 0
        rows, expected = rows_of(tmp_path / str(i)), rows_of(tmp_path / "whole")
        for key in ("step", "train_loss", "gradient_norm", "val_accuracy"):
            assert [row[key] for row in rows] == [row[key] for row in expected]


def test_a_log_reads_back_what_it_wrote_with_columns_that_come_later(tmp_path):
    written = log.Log()
    written.add({"step": 1, "seconds": 0.5})
    written.add({"step": 2, "seconds": 1.25, "mine": 0.123456789})
    (tmp_path / "log.csv").write_text(written.text())
    rows = list(csv.DictReader(open(tmp_path / "log.csv")))
    assert [row["mine"] for row in rows] == ["", "0.123457"] and rows[1]["seconds"] == "1.25"
    again = log.read(tmp_path / "log.csv", last_step=2)
    assert again.text() == written.text()
    assert len(log.read(tmp_path / "log.csv", last_step=1).rows) == 1
    (tmp_path / "log.csv").write_text(written.text() + 200_000 * "\0")
    assert log.read(tmp_path / "log.csv", last_step=2).text() == written.text()
    for damaged in ("a,b\n1,2\n", "", "step,secon"):
        (tmp_path / "log.csv").write_text(damaged)
        with pytest.raises(ValueError, match="expected .'step', 'seconds'"):
            log.read(tmp_path / "log.csv", last_step=1)


def test_a_column_whose_name_has_a_comma_is_read_back(tmp_path):
    written = log.Log()
    written.add({"step": 1, "seconds": 0.5, "a, b": 2.5})
    (tmp_path / "log.csv").write_text(written.text())
    assert log.read(tmp_path / "log.csv", last_step=1).rows == written.rows


def test_a_run_whose_log_is_damaged_goes_on_and_says_so(command, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt(patch, convex_imaml, at_call=4)
        assert command(f"{TINY} --steps 6 --out run") != 0
    (tmp_path / "run" / "log.csv").write_text("step,seco")
    assert command("--resume run") == 0
    assert "note: run/log.csv is damaged" in capsys.readouterr().err
    assert [row["step"] for row in rows_of(tmp_path / "run")] == ["4", "6"]


def test_a_resumed_run_tells_what_it_has_otherwise_than_it_began(command, tmp_path, monkeypatch, data_dir):
    with monkeypatch.context() as patch:
        interrupt(patch, convex_imaml, at_call=4)
        assert command(f"{TINY} --steps 6 --out run") != 0
    began = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "moved").symlink_to(data_dir)
    assert command("--resume run --test-episodes 5 --data-dir moved") == 0
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_episodes"] == 5
    assert about["options"] == began["options"] | {"test_episodes": 5, "data_dir": "moved"} != began["options"]
    assert about | {"options": {}} == began | {"options": {}}


def test_a_resumed_run_says_that_its_script_has_changed(command, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt(patch, convex_imaml, at_call=4)
        assert command(f"{TINY} --steps 6 --out run") != 0
    capsys.readouterr()
    began = tmp_path / "run" / "script.py"
    began.write_text(began.read_text() + "# of another day\n")
    assert command("--resume run") == 0
    said = capsys.readouterr().err
    assert "note: convex_imaml.py isn't what it was when the run began, which run/script.py still is" in said
    assert began.read_text().endswith("# of another day\n")


def test_what_some_processes_return_is_logged_too(monkeypatch):
    """Values of each process side by side, means averaged over those that have them."""
    ours = {"loss": torch.tensor(1.0), "gradient_norm": torch.tensor(1.0), "mine": torch.tensor([1.0, 2.0])}
    theirs = {"loss": torch.tensor(3.0), "gradient_norm": torch.tensor(1.0), "other": torch.tensor(5.0)}
    for first, second in ((ours, theirs), (theirs, ours)):
        monkeypatch.setattr(log.ranks, "gathered", lambda mine, first=first, second=second: [[first], [second]])
        row = log.Log().summary(last_step=1)
        assert (row["train_loss"], row["mine"], row["other"]) == (2.0, 1.5, 5.0)


def test_a_row_says_of_all_tasks_since_the_last_and_only_loss_and_gradient_must_be_numbers():
    kept = log.Log()
    for loss, residual, mine in ((1.0, 3.0, [1.0, 2.0]), (2.0, float("nan"), [3.0, 6.0])):
        batch = {"loss": torch.tensor(loss), "residual": torch.tensor([residual]), "mine": torch.tensor(mine)}
        kept.keep([batch], torch.tensor(0.5))
    row = kept.summary(last_step=2)
    assert (row["train_loss"], row["mine"], row["gradient_norm"]) == (1.5, 3.0, 0.5) and not kept.pending
    kept.keep([{"loss": torch.tensor(float("inf"))}], torch.tensor(0.5))
    with pytest.raises(UsageError, match="step 3: a loss or gradient is no finite number"):
        kept.summary(last_step=3)
    for wrong in ({"step": torch.tensor(1.0)}, {"mine": "a word"}):
        with pytest.raises(UsageError, match=f"'{next(iter(wrong))}'"):
            kept.keep([wrong], torch.tensor(0.5))


# The machine


@pytest.mark.parametrize("file", ("log.csv", "checkpoint.pt", "result.json", "episodes.npz", "curves.png"))
@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_whole_files_and_no_litter(file, command, tmp_path, monkeypatch, capsys):
    write_bytes, writes = Path.write_bytes, []

    def full(self, content):
        writes.append(self.name)
        if file in self.name and writes.count(self.name) == (3 if file in ("log.csv", "checkpoint.pt") else 1):
            write_bytes(self, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert command(f"{TINY} --steps 6 --out full") == 1
    said = capsys.readouterr().err.strip().rpartition("error: ")[2]
    assert "No space left on device" in said and file in said and "\n" not in said
    assert not [path for path in (tmp_path / "full").iterdir() if path.name.startswith(".")]
    assert state_of(tmp_path / "full")["step"] == (2 if file in ("log.csv", "checkpoint.pt") else 6)
    assert command("--resume full") == 0
    assert [row["step"] for row in rows_of(tmp_path / "full")] == ["2", "4", "6"]


@pytest.mark.parametrize("file", ("config.json", "log.csv", "checkpoint.pt"))
def test_a_disk_that_is_full_at_the_start_leaves_nothing(file, command, tmp_path, monkeypatch, capsys):
    write_bytes = Path.write_bytes

    def full(self, content):
        if file in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert command(f"{TINY} --steps 2") == 1
    assert f"No space left on device: '{tmp_path}/runs/" in capsys.readouterr().err
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_file_is_replaced_and_not_written_over(tmp_path):
    """Who has the old one open, or is killed meanwhile, has a whole file."""
    folder.write_whole(tmp_path / "file", "the old content")
    with open(tmp_path / "file") as old:
        folder.write_whole(tmp_path / "file", "new")
        assert old.read() == "the old content" and (tmp_path / "file").read_text() == "new"


def test_a_disk_that_became_read_only_is_named_as_a_disk(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("write_bytes", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(folder.DiskError, match="Read-only file system"):
        folder.write_whole(tmp_path / "file", "new")


def test_an_error_of_a_scripts_own_keeps_its_traceback(command, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("more than one element of the written-to tensor refers to a single memory location")

    monkeypatch.setattr(convex_imaml, "meta_step", broken)
    with pytest.raises(RuntimeError, match="memory location"):
        command(f"{TINY} --steps 2")
    monkeypatch.setattr(convex_imaml, "meta_step", lambda *arguments: open("nowhere"))
    with pytest.raises(FileNotFoundError):
        command(f"{TINY} --steps 2")


@pytest.mark.parametrize("error", (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")))
def test_want_of_memory_is_one_line_and_leaves_the_last_checkpoint(error, command, tmp_path, monkeypatch, capsys):
    interrupt(monkeypatch, convex_imaml, at_call=4, error=error)
    assert command(f"{TINY} --steps 6 --out greedy") == 1
    said = capsys.readouterr().err.strip().rpartition("error: ")[2]
    assert "memory" in said and "\n" not in said and state_of(tmp_path / "greedy")["step"] == 2
    assert said.endswith("; --resume greedy goes on from its last checkpoint")


def test_what_is_said_of_resuming_names_the_run_and_is_said_of_no_test(command, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, convex_imaml, at_call=4)
        assert command(f"{TINY} --steps 6 --out run") == "interrupted; --resume run goes on from its last checkpoint"
    interrupt(monkeypatch, convex_imaml, 1, function="predict")
    assert command("--evaluate run --out test") == "interrupted"


def test_a_second_process_is_told_who_writes_into_a_run_folder(command, tmp_path, capsys):
    assert command(f"{TINY} --steps 2 --out held") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "held").iterdir()}
    hold = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from common import lock\n"
    hold += "lock.hold(Path('held')); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        capsys.readouterr()
        assert command("--resume held") == 2
        assert f"held is being written by process {other.pid} on " in capsys.readouterr().err
        other.kill()
    assert command("--resume held") == 0  # a lock ends with its process
    for path in (tmp_path / "held" / "log.csv", tmp_path / "held" / "config.json"):
        assert path.read_bytes() == before[path]
    assert not (tmp_path / "held" / ".lock").exists()


def test_a_run_that_trains_holds_its_folder(command, tmp_path, monkeypatch):
    """Also one that was just begun: another process can't lock it."""
    asked = []
    ask = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from common import lock\n"
    ask += "lock.hold(Path('fresh'))"
    meta_step = convex_imaml.meta_step

    def asking(*arguments):
        if not asked:
            asked.append(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True))
        return meta_step(*arguments)

    monkeypatch.setattr(convex_imaml, "meta_step", asking)
    assert command(f"{TINY} --steps 2 --out fresh") == 0
    assert "fresh is being written by process" in asked[0].stderr and asked[0].returncode


def test_two_runs_that_start_at_once_with_the_same_name_get_two_folders(tmp_path):
    made = [folder._new_folder(tmp_path / "runs" / "a") for _ in range(3)]
    assert [path.name for path in made] == ["a", "a-2", "a-3"] and all(path.is_dir() for path in made)
    lock.hold(made[0])
    lock.release()
    assert list(made[0].iterdir()) == []


@pytest.mark.slow
def test_auto_is_settled_once_and_a_resumed_run_and_a_test_keep_it(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(meters, "has_bfloat16", lambda: True)
    with monkeypatch.context() as patch:
        interrupt(patch, maml, at_call=4)
        assert command(f"{TINY} --steps 6 --train-queries 2 --out run", maml) != 0
    options = json.loads((tmp_path / "run" / "config.json").read_text())["options"]
    assert (options["precision"], options["device"]) == ("bfloat16", "cpu")
    monkeypatch.setattr(meters, "has_bfloat16", lambda: False)  # another machine
    assert command("--resume run", maml) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["precision"] == "bfloat16"
    capsys.readouterr()
    assert command("--evaluate run --out same", maml) == 0
    said = capsys.readouterr().err
    assert "this processor imitates bfloat16" in said and "was trained in" not in said
    assert command("--evaluate run --precision float32 --out other", maml) == 0
    said = capsys.readouterr().err
    assert "run was trained in bfloat16, this test is in float32" in said and "imitates" not in said
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("same", "other")]
    assert [result["precision"] for result in results] == ["bfloat16", "float32"]


@pytest.mark.slow
def test_with_minutes_the_device_is_waited_for_at_rows_alone(command, tmp_path, monkeypatch):
    waits, clock = [], meters.clock
    monkeypatch.setattr(meters, "clock", lambda device: waits.append(1) or clock(device))
    assert command(f"{SMALL} --width 4 --minutes 0.02 --eval-every 1000 --val-episodes 2 --out timed") == 0
    rows = rows_of(tmp_path / "timed")
    assert int(rows[-1]["step"]) > 5 and len(waits) == 1 + 2 * len(rows)


def test_print_config_shows_every_value_with_its_source_and_starts_nothing(command, tmp_path, capsys):
    assert command("--dataset omniglot --print-config --minutes 3 --no-keep-border", maml) == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    shown = {option: (value, source) for option, value, source in lines}
    assert shown["--tasks"] == (str(maml.SETTINGS["omniglot"]["tasks"]), "(SETTINGS for omniglot)")
    assert shown["--keep-border"] == ("False", "(command line)") and shown["--ways"] == ("5", "(default)")
    assert shown["--minutes"] == ("3.0", "(command line)") and shown["--steps"] == ("None", "(--minutes instead)")
    assert shown["--device"][0] != "auto" and shown["--precision"][0] != "auto"
    options = {flag(name) for name in maml.Config.__dataclass_fields__}
    assert options - {"--print-config"} == set(shown)
    assert os.listdir(tmp_path) == []
