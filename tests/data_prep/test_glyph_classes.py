"""Which characters become classes of `glyphs`, on four small scripts; test_glyphs.py looks at the whole set."""

import importlib

import numpy as np
import pytest

from data_prep import glyphs


@pytest.fixture
def four_scripts(monkeypatch):
    """Two scripts of val and two of training, whose letters often are another's mirrored or turned."""
    few = {name: glyphs.SCRIPTS[name] for name in ("Lisu", "Ogham", "Greek", "Coptic")}
    monkeypatch.setattr(glyphs, "SCRIPTS", few)


def as_training_draws(row) -> np.ndarray:
    """The looks of a class under all that training does to classes."""
    _, character, faces = row
    return glyphs.looks(character, faces, glyphs.TURNS, (False, True))


def plain(rows) -> np.ndarray:
    return np.concatenate([glyphs.looks(character, faces) for _, character, faces in rows])


@pytest.mark.slow
def test_no_training_class_mirrored_or_turned_looks_like_a_class_before_it(four_scripts):
    chosen = glyphs.classes()
    assert len(chosen["val"]) > 20 and len(chosen["train"]) > 20
    for n, row in enumerate(chosen["train"]):
        before = plain(chosen["val"] + chosen["train"][:n])
        assert (as_training_draws(row) @ before.T).max() <= glyphs.ALIKE, row


def test_a_training_character_is_left_out_where_only_its_mirror_image_or_turning_looks_like_a_class(four_scripts):
    chosen = glyphs.classes()
    everything = plain(chosen["val"] + chosen["train"])
    rows = [row for row in glyphs._candidates() if row[0] in ("Greek", "Coptic") and row not in chosen["train"]]
    unlike = [row for row in rows if (plain([row]) @ everything.T).max() <= glyphs.ALIKE]
    mirrored = [glyphs.looks(character, faces, mirrors=[True]) for _, character, faces in unlike]
    by_mirroring = [(looks @ everything.T).max() > glyphs.ALIKE for looks in mirrored]
    assert any(by_mirroring) and not all(by_mirroring)


def test_a_character_is_turned_before_it_is_stretched_to_its_forms():
    bar, diagonal = (glyphs.looks("|", ["DejaVuSans"], [angle]) for angle in (0, 45))
    assert len(bar) == 1 and len(diagonal) == 1
    upright, turned = bar.reshape(glyphs.SIZE, glyphs.SIZE), diagonal.reshape(glyphs.SIZE, glyphs.SIZE)
    assert np.ptp(np.flatnonzero((upright > 0).any(0))) < 10  # columns of a bar
    assert np.ptp(np.flatnonzero((turned > 0).any(0))) > 20  # columns from edge to edge


@pytest.mark.parametrize("script", ["convex_imaml", "maml", "imaml", "convex_maml", "reptile", "cavia"])
def test_no_script_turns_classes_by_more_than_they_are_compared(script):
    settings = importlib.import_module(script).SETTINGS["glyphs"]
    assert settings.get("rotate_class", 0) <= max(glyphs.TURNS) == -min(glyphs.TURNS)
