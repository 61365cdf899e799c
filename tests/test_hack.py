"""A copied script, with an option and a logged number of its own, does all that the others do."""

import importlib.util
import json
import sys

import pytest

import convex_imaml
from tests.runs import SMALL, interrupt, rows_of, state_of

CHANGES = {
    # an option, whose bound and whose role at test stand on its field
    "    unit_features: bool = False\n": '''    temperature: float = option(1.0, above=0, at_test=True)
    """The temperature of the support labels."""
    warmth: int = option(3, least=1, most=5)
    """A number that a test can't change."""
    unit_features: bool = False
''',
    # adapt: other features
    "    strength = model.log_strength.exp()\n": """    strength = model.log_strength.exp()
    f_support = f_support / config.temperature
""",
    # two numbers more, a mean and one a task, and one of the three that the solver has is gone
    '"accuracy": accuracy, **head.statistics()}': """"accuracy": accuracy, "converged": head.converged,
            "support_norm": f[episode.support].detach().norm(dim=-1).mean(), "steps_taken": head.iterations,
            "temperature": config.temperature}""",
    # and its own value for a data set
    "        steps=1000,": "        steps=1000, warmth=4,",
}


@pytest.fixture
def mine(tmp_path):
    source = open(convex_imaml.__file__).read()
    for old, new in CHANGES.items():
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    path = tmp_path / "copies" / "mine.py"
    path.parent.mkdir()
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("mine", path)
    sys.modules["mine"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["mine"])
    yield sys.modules["mine"]
    del sys.modules["mine"]


def test_a_copy_with_an_option_and_logged_numbers_trains_resumes_tests_logs_and_plots(
    mine, command, tmp_path, capsys, monkeypatch
):
    options = f"{SMALL} --width 4 --eval-every 2 --val-episodes 2 --test-episodes 4 --steps 6 --temperature 2"
    assert command(options, mine) == 0
    whole = tmp_path / "runs" / "mine-toy-5w1s-s0"
    assert (whole / "curves.png").read_bytes()[:4] == b"\x89PNG" and "temperature" in (whole / "script.py").read_text()
    assert json.loads((whole / "config.json").read_text())["options"]["temperature"] == 2.0
    rows = rows_of(whole)
    assert all(float(row["support_norm"]) > 0 and float(row["steps_taken"]) >= 1 for row in rows)
    assert [row["temperature"] for row in rows] == ["2"] * 3 and "residual" not in rows[0]
    assert float(rows[0]["converged"]) == 1 and json.loads((whole / "result.json").read_text())["algorithm"] == "mine"

    with monkeypatch.context() as patch:
        interrupt(patch, mine, at_call=4)
        assert command(f"{options} --out parts", mine) != 0
    assert command("--resume parts", mine) == 0
    ends = [state_of(folder)["model"]["backbone.blocks.3.convolution.weight"] for folder in (whole, tmp_path / "parts")]
    assert ends[0].equal(ends[1])
    assert [row["support_norm"] for row in rows_of(tmp_path / "parts")] == [row["support_norm"] for row in rows]

    assert command("--evaluate parts --out warmer --temperature 0.1", mine) == 0
    first, second = (json.loads((f / "result.json").read_text()) for f in (whole, tmp_path / "warmer"))
    assert first["steps"] == second["steps"] == 6
    capsys.readouterr()
    for given, message in {
        "--evaluate parts --warmth 2": "--warmth 2: parts was started with 3",
        "--resume parts --temperature 3": "--temperature 3.0: parts was started with 2.0",
        f"{SMALL} --steps 2 --warmth 6": "--warmth 6: expected 5 or less",
        f"{SMALL} --steps 2 --temperature 0": "--temperature 0.0: expected a positive number",
    }.items():
        assert command(given, mine) == 2
        assert message in capsys.readouterr().err


def test_a_copys_help_and_settings_are_its_own(mine, command, capsys):
    assert command("--print-config", mine) == 0
    shown = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert ["--warmth", "4", "(SETTINGS for glyphs)"] in shown
    assert command("--help", mine) == 0
    assert "The temperature of the support labels." in capsys.readouterr().out
