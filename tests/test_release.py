"""docs/release.py: what of a run goes into results/, and that it can be tested and used from there."""

import json
import sys

import pytest
import torch

from common.shards import ROOT, UsageError
from docs import release
from tests.labels import draw
from tests.runs import TINY, state_of

LAST = "episode.y_support, episode.ways, config).value)\n"  # of convex_imaml.py's predict


@pytest.fixture
def copied(train):
    """Makes a run of a copied script, whose predict ends otherwise."""

    def run(end):
        folder = train()
        source = (folder / "script.py").read_text()
        assert source.count(LAST) == 1
        (folder / "script.py").write_text(source.replace(LAST, LAST.strip() + end))
        about = json.loads((folder / "config.json").read_text())
        about["options"]["algorithm"] = "mine"
        (folder / "config.json").write_text(json.dumps(about))
        return folder

    return run


def test_a_released_run_is_small_and_is_tested_as_it_was_but_not_resumed(command, tmp_path, monkeypatch, capsys):
    assert command(f"{TINY} --width 16 --steps 2 --test-episodes 20 --out run") == 0
    monkeypatch.setattr(
        sys, "argv", ["release.py", "run", "released", "--into", str(tmp_path / "results"), "--apart", "1"]
    )

    def tested_again(folder, data_dir):
        assert command(f"--evaluate {folder} --device cpu --out again") == 0
        return json.loads((tmp_path / "again" / "result.json").read_text())

    monkeypatch.setattr(release, "tested_again", tested_again)
    release.main()
    folder = tmp_path / "results" / "released"
    assert {path.name for path in folder.iterdir()} == {*release.FILES, "checkpoint.pt"}
    whole, small = (state_of(path) for path in (tmp_path / "run", folder))
    sizes = [(path / "checkpoint.pt").stat().st_size for path in (tmp_path / "run", folder)]
    assert sizes[1] < sizes[0] / 3
    for name, value in small["best_state"].items():
        assert value.dtype == (torch.float16 if value.dim() > 1 else whole["best_state"][name].dtype)
        torch.testing.assert_close(
            value.to(whole["best_state"][name].dtype), whole["best_state"][name], rtol=1e-3, atol=1e-4
        )
    assert "in float16" in capsys.readouterr().out
    assert command(f"--resume {folder}") == 2
    assert "a released run, which has nothing but its best weights" in capsys.readouterr().err


def test_a_gpus_run_is_tested_on_the_cpu_in_both_precisions_and_then_whole(command, tmp_path, monkeypatch):
    """A GPU, where this run is said to have been, draws other episodes."""
    assert command(f"{TINY} --steps 2 --out run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").write_text(json.dumps(result | {"device": "cuda:0", "test_accuracy": 0.0}))
    tested = []

    def tested_again(folder, data_dir, *more):
        tested.append((state_of(folder)["best_state"]["backbone.blocks.0.convolution.weight"].dtype, *more))
        return {"test_accuracy": 0.5 if more else 0.6}

    monkeypatch.setattr(release, "tested_again", tested_again)
    monkeypatch.setattr(sys, "argv", ["release.py", "run", "released", "--into", str(tmp_path / "results")])
    release.main()
    few = ("--test-episodes", "100")
    assert tested == [(torch.float32, *few), (torch.float16, *few), (torch.float16,)]
    assert json.loads((tmp_path / "results" / "released" / "result.json").read_text()) == {"test_accuracy": 0.6}


def test_weights_stay_in_float32_where_half_of_it_changes_the_accuracy(command, tmp_path, monkeypatch):
    assert command(f"{TINY} --steps 2 --out run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    told = iter((result["test_accuracy"] - 0.01, result["test_accuracy"]))
    monkeypatch.setattr(release, "tested_again", lambda folder, data_dir: {"test_accuracy": next(told)})
    monkeypatch.setattr(sys, "argv", ["release.py", "run", "released", "--into", str(tmp_path / "results")])
    release.main()
    best = state_of(tmp_path / "results" / "released")["best_state"]
    assert {value.dtype for value in best.values() if value.is_floating_point()} == {torch.float32}
    with pytest.raises(UsageError, match="is there already"):
        release.main()


@pytest.mark.slow
def test_the_release_command_tests_what_it_has_written(command, data_dir, tmp_path, monkeypatch):
    assert command(f"{TINY} --steps 2 --out run") == 0
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    described = about.pop("data")  # as in an older run
    (tmp_path / "run" / "config.json").write_text(json.dumps(about))
    words = ["release.py", "run", "released", "--into", str(tmp_path / "results"), "--data-dir", str(data_dir)]
    monkeypatch.setattr(sys, "argv", words)
    release.main()
    assert (tmp_path / "results" / "released" / "checkpoint.pt").exists()
    assert json.loads((tmp_path / "results" / "released" / "config.json").read_text())["data"] == described
    monkeypatch.setattr(sys, "argv", [*words[:2], "other", *words[3:-1], str(tmp_path / "nowhere")])
    with pytest.raises(UsageError, match="can't be tested again"):
        release.main()
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["released"]


def test_a_copied_scripts_run_labels_as_it_did_from_where_it_is_released(
    copied, predicted, data_dir, tmp_path, monkeypatch
):
    """Its predict gives the classes in another order."""
    run = copied(".flip(-1)\n")
    folders = ["--support", draw(tmp_path / "support", (2, 1, 3), data_dir)]
    folders += ["--query", draw(tmp_path / "query", (2, 2, 2), data_dir, first=10)]
    _, _, before = predicted(run, *folders)
    result = json.loads((run / "result.json").read_text())
    monkeypatch.setattr(release, "tested_again", lambda folder, data_dir: result)
    monkeypatch.setattr(sys, "argv", ["release.py", str(run), "mine", "--into", str(tmp_path / "results")])
    release.main()
    released = tmp_path / "results" / "mine"
    assert {path.name for path in released.iterdir()} == {*release.FILES, "script.py", "checkpoint.pt"}
    status, _, after = predicted(released, *folders)
    assert status == 0 and [row["predicted"] for row in after] == [row["predicted"] for row in before]
    for row, former in zip(after, before):
        assert float(row["p(class0)"]) == pytest.approx(float(former["p(class0)"]), abs=2e-2)  # in half precision


@pytest.mark.slow
def test_a_copied_scripts_run_is_tested_by_its_own_script(copied, tmp_path, monkeypatch, capsys):
    """Its predict is always wrong."""
    run = copied(".mul(0) - F.one_hot(episode.y_query, episode.ways)\n")
    words = ["release.py", str(run), "mine", "--into", str(tmp_path / "results"), "--apart", "1"]
    monkeypatch.setattr(sys, "argv", words)
    release.main()
    assert "in float16, test 0.0000, was" in capsys.readouterr().out


def test_no_path_of_the_machine_goes_into_results(command, data_dir, tmp_path, monkeypatch):
    assert command(f"{TINY} --steps 2 --out {tmp_path / 'somewhere' / 'run'}") == 0
    run = tmp_path / "somewhere" / "run"
    about = json.loads((run / "config.json").read_text())
    assert about["options"]["data_dir"] == str(data_dir) and str(data_dir) in about["command"]
    result = json.loads((run / "result.json").read_text())
    tested = []
    monkeypatch.setattr(release, "tested_again", lambda folder, data_dir: tested.append(data_dir) or result)
    monkeypatch.setattr(sys, "argv", ["release.py", str(run), "released", "--into", str(tmp_path / "results")])
    release.main()
    assert tested == [data_dir]  # the run's own
    for file in (tmp_path / "results" / "released").iterdir():
        assert not any(str(path).encode() in file.read_bytes() for path in (data_dir, tmp_path, ROOT)), file
    released = json.loads((tmp_path / "results" / "released" / "config.json").read_text())
    assert released["options"] == about["options"] | {"data_dir": "data", "out": "run"}
    assert released["command"][1:3] == ["--data-dir", "data"] and released["command"][-2:] == ["--out", "run"]
    assert released["command"][3:-2] == about["command"][3:-2]


@pytest.mark.parametrize(
    "words, released",
    [
        (["--data_dir", "/srv/sets"], ["--data_dir", "data"]),
        (["--data-dir=~/sets"], ["--data-dir=data"]),
        (["--data-dir", "../sets", "--out=../a/b"], ["--data-dir", "data", "--out=b"]),
        (["--data-dir", "sets", "--out", "runs/b"], ["--data-dir", "sets", "--out", "runs/b"]),
    ],
)
def test_a_path_of_the_machine_is_known_however_it_was_given(words, released):
    about = {"options": {}, "command": ["maml.py", "--flip", *words]}
    assert release.without_paths(about)["command"] == ["maml.py", "--flip", *released]
