"""A set of one's own, as the scripts take it: where it lies, and whether it is mirrored."""

import importlib
import shutil
import sys

import pytest

from common.command import parse
from tests.conftest import write_set


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with a set of colour pictures and one of grey ones."""
    folder = tmp_path_factory.mktemp("photos")
    write_set(folder, "colour", counts=(2,), shape=(3, 16, 16))
    write_set(folder, "grey", counts=(2,), shape=(1, 16, 16))
    return folder


def config_of(monkeypatch, script, words):
    module = importlib.import_module(script)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
    return parse(module.Config, module.SETTINGS)


@pytest.mark.parametrize("script", ["convex_imaml", "maml", "imaml", "convex_maml", "reptile", "cavia"])
def test_a_grey_set_holds_characters_which_are_not_mirrored_unless_asked(script, photos, monkeypatch):
    where = ["--data-dir", str(photos), "--dataset"]
    assert config_of(monkeypatch, script, [*where, "colour"]).flip
    assert not config_of(monkeypatch, script, [*where, "grey"]).flip
    assert config_of(monkeypatch, script, [*where, "grey", "--flip"]).flip


def test_where_a_value_comes_from_is_shown_as_it_is_for_that_set(photos, monkeypatch, capsys):
    for dataset, expected in (("colour", "SETTINGS for colour"), ("grey", "default")):
        with pytest.raises(SystemExit):
            config_of(monkeypatch, "maml", ["--data-dir", str(photos), "--dataset", dataset, "--print-config"])
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("--flip "))
        assert expected in line


def test_of_an_option_that_is_given_twice_the_last_counts_for_the_settings_too(photos, monkeypatch):
    where = ["--data-dir", "elsewhere", "--dataset", "omniglot", f"--data-dir={photos}", "--dataset"]
    for dataset in ("colour", "grey"):
        again = config_of(monkeypatch, "maml", [*where, dataset])
        assert again == config_of(monkeypatch, "maml", ["--data-dir", str(photos), "--dataset", dataset])


@pytest.mark.parametrize("option", ["--data-dir=~/my data", "--data_dir=~/my data"])
def test_a_tilde_is_the_home_folder_in_every_path(option, photos, tmp_path, monkeypatch):
    shutil.copytree(photos, tmp_path / "my data")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = config_of(monkeypatch, "maml", [option, "--dataset", "grey", "--out", "~/my runs/one"])
    assert config.data_dir == tmp_path / "my data" and config.out == tmp_path / "my runs" / "one"
    assert not config.flip
