"""The scripts as commands: what they write, resume, test again and refuse."""

import copy
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import cavia
import convex_imaml
import convex_maml
import imaml
import maml
import reptile
from common import command as command_line
from common import log, meters
from common.episodes import EpisodeLoader
from common.options import of_tests
from common.ranks import MeanOverBatches
from common.run import Run
from common.shards import ROOT
from tests.conftest import write_set
from tests.runs import SMALL, TINY, interrupt, rows_of, state_of

# Every script, with settings at which it learns `toy` in a moment; all but the first are tested among the slow ones.
SCRIPTS = {
    convex_imaml: "",
    convex_maml: "",
    maml: "--inner-steps 1 --inner-rate 0.4",
    imaml: "--inner-steps 2 --test-inner-steps 4 --inner-rate 0.3 --strength 0.5 --cg-steps 2",
    reptile: "--train-shots 6 --inner-steps 4 --test-inner-steps 5 --inner-rate 0.01",
    cavia: "--inner-rate 10 --learning-rate 0.01 --tasks 8 --keep-border --train-queries 8",
}
each_script = pytest.mark.parametrize(
    "script",
    [s if s is convex_imaml else pytest.param(s, marks=pytest.mark.slow) for s in SCRIPTS],
    ids=lambda s: s.__name__,
)


@each_script
def test_a_run_leaves_files_that_agree_with_each_other_and_with_what_it_printed(script, command, tmp_path, capsys):
    assert command(f"{SMALL} --steps 80 --seed 3 {SCRIPTS[script]}", script) == 0
    name = script.__name__
    folder = tmp_path / "runs" / f"{name}-toy-5w1s-s3"
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "script.py", "log.csv", "checkpoint.pt", "result.json", "episodes.npz", "curves.png"
    }  # fmt: skip
    config, result = (json.loads((folder / f"{f}.json").read_text()) for f in ("config", "result"))
    assert config["options"]["steps"] == 80 and config["options"]["width"] == 8 and config["hardware"]["processor"]
    assert (folder / "script.py").read_text() == open(script.__file__).read()

    rows = rows_of(folder)
    assert [int(row["step"]) for row in rows] == [50, 80] and tuple(rows[0])[: len(log.COLUMNS)] == log.COLUMNS
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert all(float(row["seconds"]) > 0 and float(row["peak_mib"]) > 50 for row in rows)

    episodes = np.load(folder / "episodes.npz")
    correct = (episodes["predicted"] == episodes["query_labels"]).mean(1)
    assert correct.shape == (60,) and result["test_episodes"] == 60
    assert result["test_accuracy"] == pytest.approx(correct.mean())
    assert result["test_ci95"] == pytest.approx(1.96 * correct.std(ddof=1) / 60**0.5)
    assert result["test_accuracy"] > 0.2 + 2 * result["test_ci95"]
    promised = "algorithm dataset ways shots test_accuracy_transductive test_ci95_transductive steps train_seconds "
    assert set((promised + "step_ms peak_mib parameters device seed").split()) <= set(result)
    assert all(result[name] == config["options"][name] for name in of_tests(script.Config))
    assert (result["algorithm"], result["steps"], result["seed"]) == (name, 80, 3)
    printed = capsys.readouterr().out.strip().splitlines()[-1]
    assert printed.startswith(
        f"test {result['test_accuracy']:.4f} ± {result['test_ci95']:.4f} (95 % CI, 60 episodes, inductive)"
    )
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
@each_script
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(script, command, tmp_path, monkeypatch, glyphs_folder):
    """On glyphs, where the run is then tested again and its files are read back."""
    options = f"{SMALL} {SCRIPTS[script]} --dataset glyphs --steps 20 --eval-every 10 --shift 0.1"
    assert command(f"{options} --out whole", script, glyphs_folder.parent) == 0

    with monkeypatch.context() as patch:
        interrupt(patch, script, at_call=14)
        assert command(f"{options} --out parts", script, glyphs_folder.parent) != 0
    assert [row["step"] for row in rows_of(tmp_path / "parts")] == ["10"]
    with open(tmp_path / "parts" / "log.csv", "a") as file:
        file.write("12,1,,,,,,,,,,,\n")  # a row that came after the checkpoint, as a killed process may leave it
    assert command("--resume parts", script, glyphs_folder.parent) == 0

    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    for key in ("model", "best_state"):
        assert all(torch.equal(whole[key][k], parts[key][k]) for k in whole[key])
    timed = {"seconds", "step_ms", "peak_mib"}
    a, b = (
        [{k: v for k, v in row.items() if k not in timed} for row in rows_of(tmp_path / f)] for f in ("whole", "parts")
    )
    assert a == b and [row["step"] for row in a] == ["10", "20"]

    assert command("--evaluate parts --out again", script, glyphs_folder.parent) == 0
    results = [json.loads((tmp_path / f / "result.json").read_text()) for f in ("whole", "parts", "again")]
    assert len({result["test_accuracy"] for result in results}) == 1
    assert len({result["test_accuracy_transductive"] for result in results}) == 1
    first, second = (np.load(tmp_path / f / "episodes.npz") for f in ("whole", "again"))
    assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_evaluate_repeats_the_runs_result_and_takes_other_shots(command, tmp_path):
    assert command(f"{SMALL} --steps 60 --flip --views 2 --out first") == 0
    before = (tmp_path / "first" / "result.json").read_text()
    assert command("--evaluate first") == 0
    assert command("--evaluate first --shots 3 --out more") == 0
    assert (tmp_path / "first" / "result.json").read_text() == before
    assert command("--evaluate first --views 1") == 0
    assert command("--evaluate first --ways 9 --out many") == 0  # of validation's classes there are 8
    first, again, one, more = (
        json.loads((tmp_path / f / "result.json").read_text())
        for f in ("first", "first/test-toy-5w1s-s0", "first/test-toy-5w1s-s0-2", "more")
    )
    assert first | {"peak_mib": again["peak_mib"]} == again and (first["views"], one["views"]) == (2, 1)
    assert json.loads((tmp_path / "more" / "config.json").read_text())["options"]["shots"] == 3
    assert more["shots"] == 3 and more["test_accuracy"] != first["test_accuracy"]


@pytest.mark.slow
def test_minutes_end_training_and_the_rate_falls(command, tmp_path):
    assert command(f"{SMALL} --minutes 0.02 --out timed") == 0
    result = json.loads((tmp_path / "timed" / "result.json").read_text())
    assert 1.2 <= result["train_seconds"] < 10 and result["steps"] == int(rows_of(tmp_path / "timed")[-1]["step"])
    assert state_of(tmp_path / "timed")["optimizer"]["param_groups"][0]["lr"] < 0.05 * 3e-3


def test_a_gradient_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    command, tmp_path, capsys, monkeypatch
):
    meta_step = convex_imaml.meta_step
    calls = []

    def spoiled(model, *args):
        calls.append(1)
        statistics = meta_step(model, *args)
        if len(calls) == 17:  # and with it every later step's strength, features and loss
            for p in model.parameters():
                p.grad *= float("nan")
        return statistics

    monkeypatch.setattr(convex_imaml, "meta_step", spoiled)
    assert command(f"{SMALL} --steps 30 --eval-every 10 --out spoiled") == 2
    assert "step 17" in capsys.readouterr().err
    state = state_of(tmp_path / "spoiled")
    assert state["step"] == 10 and all(v.isfinite().all() for v in state["model"].values())


BAD = {
    "--dataset nowhere": "data_prep/build.py --dataset nowhere --raw PATH",
    "--ways 10": "--ways 10: val of toy has 8 classes",
    "--ways 1": "--ways 1: expected 2 or more",
    "--shots 20": "has 20 images",
    "--shots x": "--shots",
    "--block pool": "invalid choice 'pool' for argument '--block'. Expected one of ('norm-pool', 'pool-norm')",
    "--device tpu": "--device tpu",
    "--no-such-option 3": "--no-such-option",
    "--tasks 3 --batches 2": "--tasks 3 in 2 batches",
    "--resume nowhere": "nowhere is no run folder",
    "--evaluate nowhere": "nowhere is no run folder",
    "--half-size 0.5": "--half-size 0.5: toy's images are below 32x32",
    "--half-size 1.5": "--half-size 1.5: expected 1 or less",
    "--image-size 8": "--image-size 8: expected 0, or 16 or more",
    "--repeat-support": "--repeat-support: classes have equal numbers of images; add --unequal-shots, or --no-repeat",
    "--learning-rate -1": "--learning-rate -1.0: expected 0 or more",
    "--clip 0": "--clip 0.0: expected a positive number",
    "--rotate inf": "--rotate inf: expected a finite number",
    "--dataset ../toy": "--dataset ../toy: expected a name",
    "--out /proc/run": "--out /proc/run: ",
    "--device meta": "--device meta: ",
    "--steps 0": "--steps 0: expected 1 or more",
    "--views 0": "--views 0: expected 1 or more",
    "--views 2": "--views 2: more than 1 would be alike; add --views 1, or one of --flip, --rotate",
    "--flip --views 3": "--views 3: more than 2 would be alike; add --views 2, or one of --rotate, --zoom",
    "--minutes 0": "--minutes 0.0: expected a positive number",
    "--strength 0": "--strength 0.0: expected a positive number",
    "--train-shots 15 --train-queries 8": "--train-shots 15 and --train-queries 8: class",
    "--seed 100000000000000000000": "expected 9223372036854775807 or less",
    f"--out {__file__}/run": "is a file, expected a folder or a new name",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_input_is_one_line_and_exit_status_2_and_nothing_written(options, command, tmp_path, capsys):
    given = options if "--dataset" in options else f"--dataset toy --steps 5 {options}"
    assert command(given) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error and BAD[options] in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", (maml, imaml, reptile, cavia), ids=lambda s: s.__name__)
def test_a_head_with_an_output_a_class_wants_training_tasks_of_as_many_ways_and_features_as_tests(
    script, command, tmp_path, capsys
):
    for options, expected in {
        "--train-ways 7": "--train-ways 7: expected 0 or 5",
        "--image-size 32 --half-size 0.5": "--half-size 0.5: expected 0, as",
        "--position-mean 0.5": "--position-mean 0.5: expected 0, as the model has weights for training's features",
    }.items():
        assert command(f"--dataset toy --steps 5 {options}", script) == 2
        assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", (convex_imaml, convex_maml, cavia), ids=lambda s: s.__name__)
@pytest.mark.slow
def test_plain_averages_are_those_of_training_images_without_augmentation_and_change_nothing_else(
    script, command, tmp_path, data_dir
):
    options = (
        f"{TINY} --steps 4 --rotate 90 --zoom 0.5 --first-width 0 --pool-classes 0 --train-shots 0 --precision float32"
    )
    for batches in (0, 3):
        assert command(f"{options} {SCRIPTS[script]} --plain-averages {batches} --out {batches}", script) == 0
    augmented, plain = (state_of(tmp_path / name)["model"] for name in ("0", "3"))
    moved = {name for name in plain if not torch.equal(plain[name], augmented[name])}
    assert moved == {name for name in plain if "running" in name}
    queries, tasks = (8, 8) if script is cavia else (3, 4)  # of a training task, and of these a meta-step
    loader = EpisodeLoader(data_dir / "toy" / "train.h5", 5, 1, queries, tasks)
    config = script.Config(width=4, precision="float32", keep_border=script is cavia)
    model = script.Model((1, 28, 28), config, torch.device("cpu"))
    model.load_state_dict(plain)
    model.backbone.renew_averages(loader.sample().images for _ in range(3))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, plain[name])


@pytest.mark.parametrize("script", (maml, imaml, reptile), ids=lambda s: s.__name__)
def test_a_model_without_running_averages_has_no_plain_ones(script, command, tmp_path, capsys):
    assert command(f"{TINY} --steps 2 --plain-averages 3", script) == 2
    assert "--plain-averages 3: expected 0, as this model keeps no running averages" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_folder_in_use_and_options_that_disagree_with_a_run_are_refused(command, tmp_path, capsys):
    assert command(f"{TINY} --steps 2 --out used") == 0
    assert command("--evaluate used --out tested") == 0
    files = {p: p.read_bytes() for p in (tmp_path / "used").iterdir()}
    for options, message in {
        f"{TINY} --steps 2 --out used": "used holds a run already",
        "--resume used --ways 4": "--ways 4: used was started with 5",
        "--resume used --steps 70": "--steps 70: used was started with 2",
        "--resume tested": "tested is the folder of a test; name that of its training, used",
        "--evaluate tested": "tested is the folder of a test; name that of its training, used",
    }.items():
        capsys.readouterr()
        assert command(options) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
    assert files == {p: p.read_bytes() for p in (tmp_path / "used").iterdir()}


def test_a_folder_that_is_no_whole_run_of_this_script_is_refused(command, tmp_path, capsys):
    assert command(f"{TINY} --steps 2 --out whole") == 0
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    half = (tmp_path / "whole" / "checkpoint.pt").read_bytes()[:5000]
    other = {"options": {**config["options"], "algorithm": "mine"}}
    worded = {"options": {**config["options"], "width": "big"}}
    without = {"options": {k: v for k, v in config["options"].items() if k != "data_dir"}}
    for file, content, expected in (
        ("config.json", b"[]", "is no run folder"),
        ("config.json", json.dumps(config | without).encode(), "is no run folder"),
        ("config.json", json.dumps(config | worded).encode(), "is no run folder (width is 'big' in its config.json)"),
        ("config.json", json.dumps(config | other).encode(), "a run of mine.py, expected one of convex_imaml.py"),
        ("config.json", json.dumps(config | {"processes": 2}).encode(), "1 processes, expected the 2"),
        ("checkpoint.pt", half, "is no whole run folder"),
        ("checkpoint.pt", b"garbage", "is no whole run folder"),
        ("log.csv", None, "is no whole run folder"),
    ):
        shutil.rmtree(tmp_path / "part", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "part")
        if content is None:
            (tmp_path / "part" / file).unlink()
        else:
            (tmp_path / "part" / file).write_bytes(content)
        files = {p: p.read_bytes() for p in (tmp_path / "part").iterdir()}
        assert command("--resume part") == 2
        error = capsys.readouterr().err.strip()
        assert expected in error and "\n" not in error.rpartition("error: ")[2], file
        assert files == {p: p.read_bytes() for p in (tmp_path / "part").iterdir()}


@pytest.mark.slow
def test_a_test_on_another_data_set_has_images_like_the_trainings_and_says_how(command, tmp_path, capsys, data_dir):
    """Grey becomes RGB and the other way round, sizes change, and a run from before config.json told the shape of its
    images finds it in its data set."""
    sets = tmp_path / "sets"
    shutil.copytree(data_dir / "toy", sets / "toy")
    write_set(sets, "wide", shape=(3, 32, 32))
    assert command(f"{TINY} --steps 2 --out grey") == 0
    about = json.loads((tmp_path / "grey" / "config.json").read_text())
    assert about["data"]["shape"] == [1, 28, 28] and about["data"]["preparation"] == "whole"
    assert command(f"{TINY} --steps 2 --dataset wide --out colour", data=sets) == 0
    older = {key: value for key, value in about.items() if key != "data"}
    for changes in ("mixed to grey and resized from 32x32 to 28x28", None):
        capsys.readouterr()
        assert command(f"--evaluate grey --dataset wide --out on-wide-{changes is None}", data=sets) == 0
        assert f"note: wide's images are {changes or 'mixed'}" in capsys.readouterr().err
        (tmp_path / "grey" / "config.json").write_text(json.dumps(older))
    results = [json.loads((tmp_path / f"on-wide-{o}" / "result.json").read_text()) for o in (False, True)]
    assert results[0] | {"peak_mib": 0} == results[1] | {"peak_mib": 0} and results[0]["dataset"] == "wide"
    capsys.readouterr()
    assert command("--evaluate colour --dataset toy --out on-toy", data=sets) == 0
    assert "toy's images are repeated to RGB and resized from 28x28 to 32x32, as colour" in capsys.readouterr().err
    assert command("--evaluate grey --dataset toy --out again", data=sets) == 0
    assert "note" not in capsys.readouterr().err


def test_a_test_with_other_options_or_in_another_runs_folder_is_refused(command, tmp_path, capsys, data_dir):
    assert command(f"{TINY} --steps 2 --out whole") == 0
    capsys.readouterr()
    assert command("--evaluate whole --strength 5") == 2
    assert "--strength 5.0: whole was started with 0.002; leave --strength out" in capsys.readouterr().err
    before = (tmp_path / "whole" / "result.json").read_text()
    assert command("--evaluate whole --shots 2 --out whole") == 2
    assert "whole holds a run already" in capsys.readouterr().err
    assert (tmp_path / "whole" / "result.json").read_text() == before


@pytest.mark.parametrize("script,option", [(imaml, "tolerance 7.0"), (maml, "rotate 90.0"), (convex_imaml, "zoom 0.5")])
def test_an_option_that_a_test_has_no_use_for_is_refused(script, option, train, command, capsys):
    run = train(script)
    capsys.readouterr()
    assert command(f"--evaluate {run} --{option}", script) == 2
    assert f"--{option}: {run} was started with 0.0" in capsys.readouterr().err
    if script is convex_imaml:  # whose views differ by it
        assert command(f"--evaluate {run} --{option} --views 2", script) == 0


def test_splits_whose_images_differ_in_size_are_refused(command, tmp_path, data_dir, capsys):
    shutil.copytree(data_dir / "toy", tmp_path / "sets" / "mixed")
    write_set(tmp_path, "larger", shape=(1, 32, 32))
    shutil.copy(tmp_path / "larger" / "test.h5", tmp_path / "sets" / "mixed")
    assert command("--dataset mixed --steps 5", data=tmp_path / "sets") == 2
    assert "images are [(1, 28, 28), (1, 32, 32)], expected one" in capsys.readouterr().err


@pytest.mark.parametrize("where", ("inside", "outside"))
def test_a_relative_data_folder_is_found_again(where, command, tmp_path, monkeypatch, data_dir):
    monkeypatch.setattr(command_line, "ROOT", tmp_path)
    place = tmp_path if where == "inside" else tmp_path.parent / f"{tmp_path.name}-beside"
    place.mkdir(exist_ok=True)
    shutil.copytree(data_dir / "toy", place / "sets" / "toy")
    monkeypatch.chdir(place)
    assert command(f"{TINY} --steps 2 --out run", data="sets") == 0
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setattr(sys, "argv", [convex_imaml.__file__, "--evaluate", str(place / "run")])
    command_line.command(convex_imaml.main)
    assert (place / "run" / "test-toy-5w1s-s0" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has huge pages")
def test_a_run_asks_for_huge_pages_before_torch_makes_a_tensor(data_dir):
    """Which shows in large tensors' addresses: they begin a page."""
    code = f"""if True:
        import torch, convex_imaml as script
        from pathlib import Path
        from common.run import Run
        Run(script.Config(dataset="toy", data_dir=Path({str(data_dir)!r}), device="cpu", steps=1), script.__file__)
        print([torch.empty(10**7).data_ptr() % 4096 for _ in range(8)])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str([0] * 8)


def test_a_default_run_folder_that_exists_is_left_alone(command, tmp_path):
    for _ in range(2):
        assert command(f"{TINY} --steps 2") == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        "convex_imaml-toy-5w1s-s0",
        "convex_imaml-toy-5w1s-s0-2",
    ]


@pytest.mark.parametrize("batches", (2, 4))
def test_gradients_and_running_averages_are_means_over_batches(batches, data_dir):
    """Against every batch's own, from the same start."""
    config = convex_imaml.Config(
        dataset="toy", data_dir=data_dir, device="cpu", width=8, tasks=8, batches=batches, steps=9, keep_memory=False
    )
    run = Run(config, convex_imaml.__file__)
    run.step = 3
    train, *_ = run.loaders()
    torch.manual_seed(0)
    model = convex_imaml.Model(train.image_shape, config, run.device)
    model.register_buffer("count", torch.tensor(2))  # as a copied script's nn.BatchNorm2d has
    start = copy.deepcopy(model)
    mean = MeanOverBatches(model, run.batches)
    for episode in run.draw(train):
        convex_imaml.meta_step(model, episode, config)
        mean.add()
    mean.over_processes()
    train.position = 3 * batches
    apart = []
    for _ in range(batches):
        apart.append(copy.deepcopy(start))
        episode = train.sample()
        assert len(episode.classes) == 8 // batches
        convex_imaml.meta_step(apart[-1], episode, config)
    for i, p in enumerate(model.parameters()):
        mean = sum(list(m.parameters())[i].grad for m in apart) / batches
        torch.testing.assert_close(p.grad, mean, rtol=1e-4, atol=1e-6)
    assert model.count == 2
    averages = [{k: b for k, b in m.named_buffers() if k != "count"} for m in (model, *apart)]
    for name, b in averages[0].items():
        torch.testing.assert_close(b, sum(of[name] for of in averages[1:]) / batches, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_gradient_larger_than_clip_is_scaled_down(command, tmp_path):
    """Two first steps, at a twentieth of the rate (warm-up), in the same direction: they end rate times clips apart."""
    clips = (0.01, 0.001)
    for clip in clips:
        assert command(f"{SMALL} --steps 1 --outer sgd --learning-rate 1 --clip {clip} --out {clip}") == 0
    ends = [state_of(tmp_path / str(clip))["model"] for clip in clips]
    apart = torch.cat([(a - b).flatten() for (name, a), b in zip(ends[0].items(), ends[1].values())
                       if "running" not in name])  # fmt: skip
    assert float(apart.norm()) == pytest.approx((clips[0] - clips[1]) / 20, rel=0.02)


@pytest.mark.slow
def test_the_default_data_set_is_built_on_first_use(first_run):
    assert (first_run / "said.txt").read_text().strip().splitlines()[-1].startswith("test 0.")
    assert (first_run / "data" / "glyphs" / "preview.png").exists() and (first_run / "run" / "result.json").exists()


def test_a_run_names_its_commit_where_there_is_one(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a"]
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert meters.commit(tmp_path) is None
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    assert len(meters.commit(tmp_path)) == 40
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert meters.commit(tmp_path) is None
