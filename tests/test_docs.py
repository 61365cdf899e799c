"""README and docs/ say what the committed results and the tree say."""

import dataclasses
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from common import meters
from common.command import parse
from common.options import of_tests
from common.shards import ROOT
from docs import of_claims, of_results, tables
from predictions import trained
from reports.runs import like_for_like
from reports.shown import shown_trainings
from reports.tables import last, minutes_to

PAGES = {name: (ROOT / name).read_text() for name in (*tables.PAGES, "CONTRIBUTING.md")}
RESULTS = sorted((ROOT / "results").glob("*/result.json"))
TRAININGS = [path for path in RESULTS if path.with_name("log.csv").exists()]


def each(results):
    return pytest.mark.parametrize("path", results, ids=lambda path: path.parent.name)


each_page = pytest.mark.parametrize("page", PAGES)


def row_of(name):
    """The cells of a result's line in the table of every run."""
    lines = [line for line in PAGES["docs/results.md"].splitlines() if line.startswith(f"| [{name}](")]
    assert len(lines) == 1
    return lines[0].strip("| ").split(" | ")


def command_of(name):
    return re.fullmatch(r"`python (.+)`", row_of(name)[-1])[1].split()


def test_there_are_results():
    assert len(TRAININGS) >= 6 and len(RESULTS) > len(TRAININGS)


@each(RESULTS)
def test_every_committed_result_stands_in_the_table_as_it_was_measured(path):
    result = json.loads(path.read_text())
    row = row_of(path.parent.name)
    for key in ("test", "test_transductive"):
        accuracy = result["test_accuracy" + key.removeprefix("test")]
        ci95 = result["test_ci95" + key.removeprefix("test")]
        assert f"{accuracy:.4f} ± {ci95:.4f}" in row
    assert of_results.DATASETS[result["dataset"]] + f" {result['ways']}w{result['shots']}s" in row
    assert f"{result['steps']:,}" in row and str(result["width"]) in row[5] and str(result["seed"]) in row
    assert str(result.get("views", 1)) == row[6]
    assert result["test_episodes"] == 1000  # which the page says of all of them
    assert ("--evaluate" in row[-1]) == (path not in TRAININGS)
    files = [path.with_name(name) for name in ("config.json", "log.csv", "curves.png")]
    assert path not in TRAININGS or all(file.exists() for file in files)


@each(TRAININGS)
def test_a_rows_command_means_what_was_run(path, monkeypatch):
    words = command_of(path.parent.name)
    saved = json.loads((path.parent / "config.json").read_text())
    monkeypatch.setattr(sys, "argv", words)
    hardware = saved["hardware"]  # settles what "auto" is, of device and precision
    device = torch.device("cpu" if hardware["device"] == "cpu" else "cuda")
    monkeypatch.setattr(meters, "settled_device", lambda name: device)
    monkeypatch.setattr(meters, "has_bfloat16", lambda: hardware["avx512_bf16"] or hardware["amx_bf16"])
    script = importlib.import_module(saved["options"]["algorithm"])
    now = dataclasses.asdict(parse(script.Config, script.SETTINGS))
    then = dataclasses.asdict(script.Config()) | saved["options"]  # an option that is newer had its default
    then["precision"] = saved["precision"]
    then["device"] = {"auto": "cpu"}.get(then["device"], then["device"])
    elsewhere = {"data_dir", "out", "print_config"} | of_results.REDEFINED
    assert {k: v for k, v in now.items() if k not in elsewhere} == {k: then[k] for k in now if k not in elsewhere}
    assert "--minutes" in words or "--steps" in words


@each([path for path in RESULTS if path not in TRAININGS])
def test_an_evaluations_command_means_what_was_tested(path, monkeypatch, tmp_path):
    words = command_of(path.parent.name)
    run = words[words.index("--evaluate") + 1]
    training = ROOT / "results" / Path(run).name
    assert command_of(training.name)[-2:] == ["--out", f"runs/{training.name}"]
    assert run.startswith("results/") == (training / "checkpoint.pt").exists()
    shutil.copytree(training, tmp_path / run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words)
    script = importlib.import_module(words[0].removesuffix(".py"))
    config = parse(script.Config, script.SETTINGS)
    result, trained = (json.loads((folder / "result.json").read_text()) for folder in (path.parent, training))
    for name in ("dataset", "ways", "shots", "seed", "width"):
        assert getattr(config, name) == result[name]
    assert getattr(config, "views", 1) == result.get("views", 1)
    assert config.precision == result.get("precision", config.precision)
    for name in set(of_tests(script.Config)) & set(result):
        assert result[name] in (None, getattr(config, name))
    for name in ("algorithm", "steps", "train_seconds", "val_accuracy"):  # of the same run
        assert result[name] == trained[name]


@each(sorted((ROOT / "results").glob("*/checkpoint.pt")))
def test_released_weights_label_pictures_without_their_data_set(path, tmp_path):
    run = trained.read(path.parent, tmp_path)
    assert trained.Learner(run, 5, torch.device("cpu"), views=None).shape == tuple(run.data["shape"])


# Tables and picture


def test_no_table_or_picture_is_stale():
    assert tables.stale() == []


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the pages and results that may be changed."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(of_results, "ROOT", tmp_path)
    monkeypatch.setattr(of_claims, "ROOT", tmp_path)
    forget()
    yield tmp_path
    forget()


def forget():
    """What was read of results/."""
    of_results.runs.cache_clear()


def test_a_changed_figure_is_named_as_stale_and_written_anew(copy, monkeypatch):
    before = {page: (copy / page).read_text() for page in ("README.md", "docs/results.md")}
    (copy / "README.md").write_text(before["README.md"].replace("99.2 /", "99.9 /"))
    (copy / "docs" / "results.md").write_text(before["docs/results.md"].replace("0.9918 ± 0.0014", "0.9919 ± 0.0014"))
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit, match=r"^stale: README.md, docs/results.md; .*python docs/tables.py"):
        tables.main()
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    tables.main()
    assert before == {page: (copy / page).read_text() for page in before} and tables.stale() == []


def test_a_run_added_to_results_appears_in_the_tables_and_the_picture(copy):
    """A MAML run on mini-ImageNet, made of the one on Omniglot, with another accuracy at its end."""
    shutil.copytree(copy / "results" / "maml-omniglot", copy / "results" / "maml-new")
    for name in ("config", "result"):
        file = copy / "results" / "maml-new" / f"{name}.json"
        content = json.loads(file.read_text())
        (content if name == "result" else content["options"])["dataset"] = "miniimagenet"
        if name == "result":
            content["test_accuracy"] = 0.4321
        file.write_text(json.dumps(content))
    forget()
    names = ["README.md", "docs/claims.md", "docs/results.md", "docs/accuracy.png", "docs/curves-miniimagenet-5w1s.png"]
    assert tables.stale() == names and "maml" in tables.validations()["miniimagenet"]
    assert re.search(r"\| `maml.py` \|.* 43\.2 \(48\.7 / 63\.1\) \|\n", of_results.algorithms())
    assert "| [maml-new](../results/maml-new) | MAML | mini-ImageNet 5w1s | 0.4321 ±" in of_results.every_run()
    assert "[maml-new](../results/maml-new) | 43.21 ±" in of_results.beside_published("miniimagenet")
    assert re.search(r"\| MAML \| .* \| 0\.4321 ± 0\.\d{4} \(0\.42\) \| not run \(0\.59\) \|\n", of_claims.table_2())


def test_a_copied_scripts_run_in_results_leaves_the_tables_as_they_are(copy):
    shutil.copytree(copy / "results" / "maml-omniglot", copy / "results" / "mine")
    for name in ("config", "result"):
        file = copy / "results" / "mine" / f"{name}.json"
        file.write_text(file.read_text().replace('"algorithm": "maml"', '"algorithm": "mine"'))
    forget()
    assert tables.stale() == []


def test_a_readers_own_test_of_a_released_run_leaves_the_tables_as_they_are(copy):
    """What `--evaluate results/NAME` writes, by its name without --out."""
    mine = copy / "results" / "convex_imaml-omniglot" / "test-omniglot-20w5s-s0"
    mine.mkdir()
    shutil.copy(copy / "results" / "convex_imaml-omniglot-20way-5shot-view1" / "result.json", mine)
    forget()
    assert tables.stale() == []
    assert "/results/*/test-*/" in (ROOT / ".gitignore").read_text().splitlines()


def test_runs_in_the_picture_have_the_minutes_that_two_cores_take():
    """As the README says: an idle machine's, where the time of such a step has been measured, or the run's own."""
    runs = [
        of_results.best(script, dataset) for script in of_results.ALGORITHMS for dataset in ("omniglot", "miniimagenet")
    ]
    runs = [run for run in runs if run]
    assert len(runs) >= 6
    for run in runs:
        own, row = run.config["hardware"], of_results.times().row(run)
        assert "2 threads" in row["machine"] if row else (own["device"], own["threads"]) == ("cpu", 2), run.name


# Prose


def test_the_readme_is_short_and_its_first_blocks_run_the_main_job_and_the_tests():
    assert len((ROOT / "README.md").read_bytes()) <= 8000
    setup = "python3 -m venv .venv\n. .venv/bin/activate\npip install -r requirements.txt\n"
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGES["README.md"], re.S | re.M)
    assert blocks[:2] == [f"{setup}python convex_imaml.py\n", f"{setup}python -m pytest\n"]


@each_page
def test_every_link_leads_to_a_file_and_a_heading(page):
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[page])
    for link in links:
        file, _, heading = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        if heading:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            assert heading in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, link
    assert links or page == "CONTRIBUTING.md"


@each_page
def test_every_file_that_a_page_names_is_there(page):
    """Paths in code of files that this repository has."""
    named = re.findall(r"`((?:common|data_prep|benchmarks|tests|docs|\.ci)/[\w./-]+)", PAGES[page])
    named += re.findall(r"`((?:convex_i?maml|i?maml|reptile|cavia)\.py)\b", PAGES[page])
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", ("docs/maths.md",))
def test_every_function_and_test_that_a_page_names_exists(page):
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGES[page])
    assert sum(file.startswith("tests/") for file, _ in named) > 10
    for file, name in named:
        assert re.search(rf"^(def|class) {name}\b", (ROOT / file).read_text(), re.M), f"{file}::{name}"


@each_page
def test_every_option_that_a_page_names_is_one_of_a_command(page):
    from benchmarks import SCRIPTS

    benchmarks = [f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("*.py")]
    commands = map(importlib.import_module, [*benchmarks, "report", "predict", "predictions.example", "docs.release"])
    options = [importlib.import_module(name).Config for name in SCRIPTS]
    options += [command.Options for command in commands if hasattr(command, "Options")]
    known = {name.replace("_", "-") for option in options for name in option.__dataclass_fields__}
    known |= set(re.findall(r'"--([a-z-]+)"', (ROOT / "data_prep" / "build.py").read_text()))
    known |= {"help", "print-config", "nproc-per-node", "check"}  # of every script, of torchrun, of docs/tables.py
    words = re.findall(r"(?<![\w-])--([a-z][a-z-]+)", PAGES[page])
    assert {word.removeprefix("no-") for word in words} <= known


def test_the_citation_names_the_papers_title_and_authors_as_the_readme_does():
    citation = (ROOT / "CITATION.cff").read_text()
    title = "Gradient-based Accelerated Adaptation of Deep Networks"
    for words in (title, "Khullar", "Srivastava"):
        assert words in citation and words in PAGES["README.md"]
    assert (ROOT / "LICENSE").read_text().splitlines()[2].endswith(re.search(r"- name: (.+)", citation)[1])


def test_what_the_readme_says_of_like_for_like_is_what_the_runs_say():
    runs = shown_trainings(like_for_like([ROOT / "results"]), varied=True)["omniglot", 5, 1]
    convex, maml, learned = (runs[name][0] for name in ("convex_imaml", "maml", "MAML, learned rates"))
    ends = [f"{100 * run.result['test_accuracy']:.1f}" for run in (convex, maml, learned)]
    until = [minutes_to(run, last(maml), of_results.times())[0] for run in (maml, convex)]
    said = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    assert 4.5 < until[0] / until[1] < 5.5 and "MAML's last accuracy four to five times as fast" in said
    assert "it has {} %, MAML {}, and {} with learned rates".format(*ends) in said


def test_continuous_integration_runs_the_readmes_test_command():
    """The README's second block, in a virtual environment of its own, and the style beside it."""
    test = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)[1].splitlines()
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert test[-1] == ci[-1] == "python -m pytest" and "pip install -r requirements.txt" in test
    assert [line for line in test if line in ci] == test[2:]  # its first two make .venv and enter it
    assert {"ruff check .", "ruff format --check ."} <= set(ci)
