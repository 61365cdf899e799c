"""Fixtures that several files of these tests use.

This folder has no __init__.py: with one, it would be found as data_prep instead of the package that it tests.
"""

from pathlib import Path

import pytest

from data_prep import build, miniimagenet
from tests.data_prep.helpers import contents
from tests.data_prep.miniimagenet_layouts import NUMBERS, WNIDS, random_jpegs


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that must fail: returns its one line, having checked the exit status and that nothing changed."""

    def run(*arguments, data_dir: Path = tmp_path / "data") -> str:
        capsys.readouterr()  # what was said before
        before = contents(data_dir)
        existed = data_dir.exists()
        assert build.main(["--data-dir", str(data_dir), *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n") and out == "", err
        assert contents(data_dir) == before and data_dir.exists() == existed
        assert not list(data_dir.glob(".*"))
        return err

    return run


@pytest.fixture
def jpegs(monkeypatch) -> dict[str, dict[str, bytes]]:
    """WordNet id -> Ravi's file name -> JPEG, of a mini-ImageNet with 3/1/1 classes of four images."""
    monkeypatch.setattr(miniimagenet, "known_split", lambda: WNIDS)
    monkeypatch.setattr(miniimagenet, "PER_CLASS", len(NUMBERS))
    return random_jpegs()
