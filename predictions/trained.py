"""What a run folder holds of a trained model, and the model itself, ready to label pictures."""

import dataclasses
import importlib.util
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from common import meters
from common.command import config_of
from common.episodes import Episode
from common.folder import data_of
from common.images import converted, normalised, per_channel
from common.options import check
from common.shards import ROOT, Preparation, UsageError
from data_prep.files import a_few

PIXELS_AT_A_TIME = 2**22  # of query pictures: what a network holds of them takes some hundred times the memory
MOST_SUPPORT = 500  # pictures, up to which those of smaller classes are repeated


@dataclass
class Trained:
    """A run: its script's source, what config.json tells, its best weights, and how its data set's images were made."""

    name: str
    """of its folder, for messages"""
    source: str
    about: dict
    weights: dict[str, Tensor]
    data: dict
    """as common.shards.describe gives it"""

    @property
    def algorithm(self) -> str:
        return self.about["options"]["algorithm"]

    @property
    def dataset(self) -> str:
        return self.about["options"]["dataset"]

    @property
    def preparation(self) -> Preparation:
        return Preparation(self.data["preparation"], tuple(self.data["levels"]))


def read(folder: Path, data_dir: Path | None) -> Trained:
    """A run folder, or what docs/release.py made of one: without a script.py, it is of the script of its name here.

    data_dir: holds the run's data set, where the run is from before config.json described it; None: where it was.
    Raises UsageError where something is missing or damaged.
    """
    try:
        about = json.loads((folder / "config.json").read_text())
        options = about["options"]
        algorithm = options["algorithm"]
        former = ROOT / options["data_dir"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder} is no run folder (it has no whole config.json); runs are under runs/") from None
    script = folder / "script.py"
    script = script if script.exists() else ROOT / f"{algorithm}.py"
    if not script.exists():
        raise UsageError(f"{folder} has no script.py, and {script} isn't there; put the script that trained it there")
    try:
        checkpoint = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        weights = dict(checkpoint["best_state"])
    except FileNotFoundError:
        raise UsageError(
            f"{folder} has no checkpoint.pt, expected the folder of a training, not of a test, or a released run that "
            "has one; train a run, such as by python convex_imaml.py"
        ) from None
    except Exception:  # of a damaged file, torch raises what it comes upon
        raise UsageError(f"{folder}/checkpoint.pt is damaged; start the run again") from None
    data = data_of(about, data_dir or former)
    if lacking := {"shape", "mean", "std", "preparation", "levels"} - set(data):
        raise UsageError(f"{folder}/config.json doesn't tell the data's {a_few(sorted(lacking))}; start the run again")
    return Trained(str(folder), script.read_text(), about, weights, data)


class Learner:
    """A trained model that adapts to a support set of so many classes, and labels pictures: inductively, with the
    script's own `predict`, as in its tests.

    views: of each picture, instead of as many as the run had. Raises UsageError where the script can't be run or has no
    views, or its model has another fixed number of classes.
    """

    def __init__(self, trained: Trained, ways: int, device: torch.device, views: int | None = None):
        self.trained, self.ways, self.device = trained, ways, device
        self.script = _module(trained)
        config = config_of(self.script.Config, trained.about, Path(trained.name), at_test=True)
        precision = meters.settled_precision(config.precision, device)
        self.config = dataclasses.replace(config, device=str(device), precision=precision)
        if views is not None:
            if not hasattr(config, "views"):
                raise UsageError(f"--views {views}: {trained.algorithm}.py looks at a picture once; leave --views out")
            self.config = dataclasses.replace(self.config, views=views)
            check(self.config)
        channels, height, width = trained.data["shape"]
        size = config.image_size or height, config.image_size or width
        self.shape = (channels, *size)
        self.model = self._model(ways)
        self.model.eval()  # as `evaluate` of the scripts does
        self.mean, self.std = (per_channel(trained.data[name], device) for name in ("mean", "std"))

    def _model(self, ways: int) -> nn.Module:
        trained = self.trained
        for n in dict.fromkeys((ways, self.config.ways)):
            try:
                config = dataclasses.replace(self.config, ways=n)
                model = self.script.Model(self.shape, config, self.device)
                model.load_state_dict(trained.weights)
            except (UsageError, RuntimeError):
                continue
            if n != ways:
                raise UsageError(
                    f"{trained.name}: {trained.algorithm}.py has an output for each of {n} classes, not for {ways}; "
                    f"give {n} class folders, or a run of convex_imaml.py or convex_maml.py, which take any number"
                )
            self.config = config
            return model
        raise UsageError(
            f"{trained.name}: its weights don't fit its script's Model; use the version of this project that its "
            "config.json names"
        )

    def logits(self, support: Tensor, y_support: Tensor, query: Tensor, progress=iter) -> Tensor:
        """uint8 pictures (S, C, H, W) with labels (S,), and (Q, C, H, W), as the data set's images are -> (Q, N).

        Every query picture is judged by itself, so a part of them after the other gives the same numbers.
        progress: is given the parts, and yields them.
        """
        at_a_time = max(1, PIXELS_AT_A_TIME // (self.shape[1] * self.shape[2]))
        parts = [self._predicted(support, y_support, part) for part in progress(query.split(at_a_time))]
        return torch.cat(parts)

    def _predicted(self, support: Tensor, y_support: Tensor, query: Tensor) -> Tensor:
        S, Q = len(support), len(query)
        places = evenly(y_support)
        pixels = converted(torch.cat([support, query]).to(self.device), self.shape)
        episode = Episode(
            images=normalised(pixels, self.mean, self.std),
            support=places.to(self.device)[None],
            query=torch.arange(S, S + Q, device=self.device)[None],
            y_support=y_support[places].to(self.device)[None],
            y_query=torch.full((1, Q), -1, device=self.device),  # nobody knows
            classes=torch.arange(self.ways, device=self.device)[None],
            rows=torch.arange(S + Q, device=self.device),
        )
        logits = self.script.predict(self.model, episode, self.config)  # (1, Q, N)
        return logits[0].detach().float().cpu()


def evenly(labels: Tensor) -> Tensor:
    """Places of support pictures with labels (S,), those of smaller classes several times, so that no class is the more
    likely for having more pictures, as a run is trained with equal numbers. Those of equal numbers stay in their order.
    Classes are filled up to MOST_SUPPORT pictures in all, as some methods adapt to each of them."""
    counts = labels.bincount()
    most = min(int(counts.max()), max(1, MOST_SUPPORT // len(counts)))
    again = [
        torch.where(labels == c)[0].repeat(most // n + 1)[: most - n] for c, n in enumerate(counts.tolist()) if n < most
    ]
    places = torch.cat([torch.arange(len(labels)), *again])
    return places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))] if again else places


def _module(trained: Trained) -> ModuleType:
    """The script, as it was run. Raises UsageError where it doesn't fit this version of common/."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{trained.algorithm}.py")
        path.write_text(trained.source)
        spec = importlib.util.spec_from_file_location(f"script_of_a_run.{trained.algorithm}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where a dataclass looks for its types
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever a script may raise
            raise UsageError(
                f"{trained.name}: its script can't be loaded ({type(error).__name__}: {error}); use the version of "
                "this project that its config.json names"
            ) from None
    return module
