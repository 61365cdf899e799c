"""docs/release.py: what of a run goes into results/, and that it can be tested and used from there."""

import json
import sys

import pytest
import torch

from common.shards import UsageError
from docs import release
from tests.runs import TINY, state_of


def test_a_released_run_is_small_and_is_tested_as_it_was_but_not_resumed(command, tmp_path, monkeypatch, capsys):
    assert command(f"{TINY} --width 16 --steps 2 --test-episodes 20 --out run") == 0
    monkeypatch.setattr(
        sys, "argv", ["release.py", "run", "released", "--into", str(tmp_path / "results"), "--apart", "1"]
    )

    def tested_again(folder, options):
        assert command(f"--evaluate {folder} --device cpu --out again") == 0
        return json.loads((tmp_path / "again" / "result.json").read_text())["test_accuracy"]

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


def test_half_precision_is_held_against_float32_on_the_same_episodes(command, tmp_path, monkeypatch):
    """Which are others on a GPU, where this run is said to have been."""
    assert command(f"{TINY} --steps 2 --out run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").write_text(json.dumps(result | {"device": "cuda:0", "test_accuracy": 0.0}))
    tested = []

    def tested_again(folder, options):
        tested.append(state_of(folder)["best_state"]["backbone.blocks.0.convolution.weight"].dtype)
        return 0.5

    monkeypatch.setattr(release, "tested_again", tested_again)
    monkeypatch.setattr(sys, "argv", ["release.py", "run", "released", "--into", str(tmp_path / "results")])
    release.main()
    assert tested == [torch.float32, torch.float16]


def test_weights_stay_in_float32_where_half_of_it_changes_the_accuracy(command, tmp_path, monkeypatch):
    assert command(f"{TINY} --steps 2 --out run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    told = iter((result["test_accuracy"] - 0.01, result["test_accuracy"]))
    monkeypatch.setattr(release, "tested_again", lambda folder, options: next(told))
    monkeypatch.setattr(sys, "argv", ["release.py", "run", "released", "--into", str(tmp_path / "results")])
    release.main()
    best = state_of(tmp_path / "results" / "released")["best_state"]
    assert {value.dtype for value in best.values() if value.is_floating_point()} == {torch.float32}
    with pytest.raises(UsageError, match="is there already"):
        release.main()


@pytest.mark.slow
def test_the_release_command_tests_what_it_has_written(command, data_dir, tmp_path, monkeypatch):
    assert command(f"{TINY} --steps 2 --out run") == 0
    words = ["release.py", "run", "released", "--into", str(tmp_path / "results"), "--data-dir", str(data_dir)]
    monkeypatch.setattr(sys, "argv", words)
    release.main()
    assert (tmp_path / "results" / "released" / "checkpoint.pt").exists()
    monkeypatch.setattr(sys, "argv", [*words[:2], "other", *words[3:-1], str(tmp_path / "nowhere")])
    with pytest.raises(UsageError, match="can't be tested again"):
        release.main()
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["released"]
