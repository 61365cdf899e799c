"""A split that a person made is respected, whatever its folders are called, or the set is refused."""

import json
import shlex

import pytest

from data_prep import splits
from tests.data_prep.helpers import built, class_folders, classes_of, pack

CLASSES = {"train": ("ant", "bee"), "val": ("cat",), "test": ("dog",)}


def split_folders(folder, names, classes=CLASSES):
    """Class folders below folders for train, val and test of these names."""
    for name, of_split in zip(names, classes.values(), strict=True):
        class_folders(folder / name, dict.fromkeys(of_split, 2))
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Val", "Test"), ("TRAINING", "Valid", "Testing"), ("training_set", "validation_set", "test_set"),
        ("01-train", "02-dev", "03-eval"), ("train", "evaluation", "test"), ("train", "val", "evaluation"),
        ("base", "val", "novel"), ("meta-train", "meta-val", "meta-test"), ("metaTrain", "metaVal", "metaTest"),
        ("birds_train", "birds_val", "birds_test"), ("TrainImages", "ValImages", "TestImages"),
        ("Entrenamiento", "Validación", "Prueba"), ("a/train", "a/val", "b/test"),
    ],
)  # fmt: skip
def test_folders_that_mean_train_val_and_test_are_the_split(names, tmp_path):
    raw = split_folders(tmp_path / "raw", names)
    found = classes_of(built("birds", raw, tmp_path / "data"))
    assert {s: {name.rsplit("/", 1)[-1] for name in found[s]} for s in found} == {s: set(CLASSES[s]) for s in CLASSES}


def test_a_data_folder_inside_the_raw_one_is_refused_as_built_sets_would_be_read_as_classes(tmp_path, refused):
    raw = class_folders(tmp_path / "raw", dict.fromkeys("abc", 2))
    said = refused("--dataset", "birds", "--raw", raw, "--data-dir", raw / "data")
    assert "it lies in --raw" in said and "name a folder elsewhere" in said


def test_a_split_within_class_folders_is_refused_as_the_same_classes(tmp_path, refused):
    raw = class_folders(tmp_path / "raw", {f"{c}/{s}": 2 for c in ("ant", "bee", "cat") for s in ("Train", "Test")})
    assert "3 classes in train as well as test: ant, bee, cat" in refused("--dataset", "birds", "--raw", raw)


@pytest.mark.parametrize("again", ["ant", "Ant", " ant", "ANT"])
def test_a_class_in_two_splits_is_refused_however_it_is_spelt(again, tmp_path, refused):
    raw = split_folders(tmp_path / "raw", ("Training", "Val", "Test"), CLASSES | {"test": ("dog", again)})
    line = refused("--dataset", "birds", "--raw", raw)
    assert "1 classes in train as well as test: ant" in line and f"--raw {raw}/Training" in line and "--split" in line


@pytest.mark.parametrize("other", ["extra", "holiday photos"])
def test_a_folder_beside_train_that_means_no_split_is_refused_by_name(other, tmp_path, refused):
    raw = split_folders(tmp_path / "raw", ("Train", "Val", "Test"))
    class_folders(raw / other, {"eel": 2})
    line = refused("--dataset", "birds", "--raw", raw)
    assert f"folder {other}/eel beside" in line and "expected train, val and test" in line


def test_a_split_that_lacks_a_part_is_refused(tmp_path, refused):
    for name, left_out in (("two", "test"), ("three", "val")):
        raw = class_folders(tmp_path / name, {f"{s}/{c}": 1 for s in CLASSES if s != left_out for c in CLASSES[s]})
        assert f"no classes for {left_out}" in refused("--dataset", "birds", "--raw", raw)


def test_pictures_in_the_split_folders_themselves_are_refused(tmp_path, refused):
    raw = class_folders(tmp_path / "raw", {"Train": 2, "Val": 2, "Test": 2})
    assert "2 images in Test itself" in refused("--dataset", "birds", "--raw", raw)
    raw = class_folders(tmp_path / "tiny", {"train/ant/images": 2, "val/images": 2, "test/images": 2})
    assert "itself, expected class folders" in refused("--dataset", "birds", "--raw", raw)


def test_a_class_that_is_called_train_is_a_class(tmp_path):
    raw = class_folders(tmp_path / "raw", dict.fromkeys(("bus", "car", "ship", "train"), 2))
    found = classes_of(built("vehicles", raw, tmp_path / "data"))
    assert sorted(sum(found.values(), [])) == ["bus", "car", "ship", "train"]


def test_a_kind_of_thing_that_may_mean_a_split_is_none_without_another(tmp_path):
    raw = class_folders(tmp_path / "raw", dict.fromkeys(("novel/crime", "novel/love", "poem/ode", "poem/haiku"), 2))
    assert "novel/crime" in sum(classes_of(built("books", raw, tmp_path / "data")).values(), [])


@pytest.mark.parametrize("again", ["Ant", "ant ", "ANT"])
def test_a_class_that_is_spelt_in_two_ways_is_not_drawn_into_two_splits(again, tmp_path, refused):
    raw = class_folders(tmp_path / "raw", dict.fromkeys(("ant", again, "bee", "cat", "dog"), 2))
    assert "1 classes are spelt in two ways: " in refused("--dataset", "birds", "--raw", raw)


def test_letters_that_differ_in_case_alone_are_two_classes(tmp_path):
    raw = split_folders(
        tmp_path / "raw", ("train", "val", "test"), {"train": ("a", "b"), "val": ("A",), "test": ("B",)}
    )
    assert classes_of(built("letters", raw, tmp_path / "data")) == {"train": ["a", "b"], "val": ["A"], "test": ["B"]}


@pytest.mark.parametrize(
    ("first", "second"),
    [("images", "masks"), ("birds/images", "annotations"), ("photos 2019", "photos 2020"), ("a", "b")],
)
def test_the_same_classes_below_two_folders_are_refused(first, second, tmp_path, refused):
    names = ("albatross", "cormorant", "gull", "tern")
    raw = class_folders(tmp_path / "my  raw", {f"{root}/{name}": 2 for root in (first, second) for name in names})
    line = refused("--dataset", "birds", "--raw", raw)
    assert "the same 4 class names below" in line and f"--raw '{raw}/{first}'" in line
    line = refused("--dataset", "birds", "--raw", pack(raw, tmp_path / "birds.zip"))
    assert f"unpack it and give one of these folders, such as {first}, or" in line


@pytest.mark.parametrize("second", ["masks", "other"])
def test_numbered_classes_below_two_folders_are_refused(second, tmp_path, refused):
    raw = class_folders(tmp_path / "raw", {f"{root}/{n}": 2 for root in ("images", second) for n in range(4)})
    assert "the same 4 class names below" in refused("--dataset", "birds", "--raw", raw)


def test_kinds_of_pictures_in_each_class_folder_are_refused(tmp_path, refused):
    raw = class_folders(tmp_path / "raw", {f"{c}/{kind}": 2 for c in ("ant", "bee", "cat") for kind in ("rgb", "mask")})
    assert "the same" in refused("--dataset", "birds", "--raw", raw)
    raw = class_folders(tmp_path / "flat", {"images": 2, "masks": 2, "labels": 2})
    assert "what kind of pictures" in refused("--dataset", "birds", "--raw", raw)


def test_characters_that_are_numbered_in_each_alphabet_are_classes(tmp_path):
    names = [
        f"{alphabet}/character{n:02d}" for alphabet, count in (("Greek", 4), ("Latin", 3)) for n in range(1, count + 1)
    ]
    found = classes_of(built("letters", class_folders(tmp_path / "raw", dict.fromkeys(names, 1)), tmp_path / "data"))
    assert sorted(sum(found.values(), [])) == names


def test_class_folders_in_others_which_may_be_the_classes_are_said(tmp_path, capsys):
    names = [f"{c}/session{n}" for c in ("ant", "bee", "cat", "dog", "elk") for n in (1, 2)]
    built("birds", class_folders(tmp_path / "raw", dict.fromkeys(names, 1)), tmp_path / "data")
    assert "2 of them in ant, in any split: if ant is one class" in capsys.readouterr().out


def test_folders_that_mean_no_split_are_said(tmp_path, capsys):
    names = [f"{top}/{c}{top}" for top in ("north", "south", "west") for c in ("ant", "bee")]
    built("birds", class_folders(tmp_path / "raw", dict.fromkeys(names, 1)), tmp_path / "data")
    assert "north, south, west, which don't mean train, val and test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("classes", "expected"), [(15, [5, 5, 5]), (20, [10, 5, 5]), (31, [20, 5, 6]), (100, [64, 16, 20])]
)
def test_without_a_split_each_has_five_classes_where_there_are_enough(classes, expected):
    drawn = splits.drawn([f"{c:03d}" for c in range(classes)], "raw", None, 0)
    assert [len(drawn[s]) for s in ("train", "val", "test")] == expected
    assert len(set(sum(drawn.values(), []))) == classes


def test_too_few_classes_for_five_ways_are_said_with_the_mend(tmp_path, capsys):
    raw = class_folders(tmp_path / "raw", {f"class{c:02d}": 1 for c in range(20)})
    built("birds", raw, tmp_path / "data", "--size", "8")
    assert "too few" not in capsys.readouterr().out
    built("birds", raw, tmp_path / "data", "--size", "8", "--split", "0.64,0.16,0.20")
    assert "13 / 3 / 4 classes" in (said := capsys.readouterr().out) and "--split 0.4,0.3,0.3" in said
    built("six", class_folders(tmp_path / "six", {f"{c}": 1 for c in range(6)}), tmp_path / "data", "--size", "8")
    assert "add classes, to 15 or more" in capsys.readouterr().out


# Class lists

LISTS = {
    "txt": lambda names: "\n".join(["# the classes", *names]),
    "csv": lambda names: "filename,label\n" + "".join(f"x.jpg,{name}\n" for name in names),
    "json": json.dumps,
}


def listed(folder, suffix, names=("train", "val", "test"), classes=CLASSES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, of_split in zip(names, classes.values(), strict=True):
        (folder / f"{name}.{suffix}").write_text(LISTS[suffix](list(of_split)))
    return folder


@pytest.fixture
def four_classes(tmp_path):
    """Class folders without a split of their own, 'data/ant' and so on."""
    return class_folders(tmp_path / "raw" / "data", dict.fromkeys(sum(CLASSES.values(), ()), 2)).parent


@pytest.mark.parametrize("suffix", LISTS)
@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("base", "val", "novel"), ("train_split", "valid_split", "Test_split")]
)
def test_class_lists_beside_the_pictures_are_the_split_and_are_named(suffix, names, four_classes, tmp_path, capsys):
    listed(four_classes / "splits" / "ours", suffix, names)
    found = classes_of(built("birds", four_classes, tmp_path / "data"))
    assert found == {s: list(CLASSES[s]) for s in CLASSES}
    assert f"the split is that of splits/ours/{names[0]}.{suffix}" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", LISTS)
def test_class_lists_are_given_by_hand_as_a_folder_or_one_of_its_files(suffix, four_classes, tmp_path):
    place = listed(tmp_path / "lists of mine", suffix)
    for path in (place, place / f"train.{suffix}"):
        found = classes_of(built("birds", four_classes, tmp_path / "data", "--split", path))
        assert found == {s: list(CLASSES[s]) for s in CLASSES}


@pytest.mark.parametrize(
    "text",
    [
        "ant,train\nbee,train\ncat,val\ndog,test\n", "class;split\nant;Training\nbee;Training\ncat;Valid\ndog;Test\n",
        "train,ant\ntrain,bee\nval,cat\ntest,dog\n", "split\tname\ntrain\tant\ntrain\tbee\nval\tcat\ntest\tdog\n",
        "class,dataset\nant,train\nbee,train\ncat,val\ndog,test\n",
    ],
)  # fmt: skip
def test_a_class_list_may_be_one_file_of_names_and_splits(text, four_classes, tmp_path):
    (tmp_path / "mine.csv").write_text(text)
    found = classes_of(built("birds", four_classes, tmp_path / "data", "--split", tmp_path / "mine.csv"))
    assert found == {s: list(CLASSES[s]) for s in CLASSES}


def test_lists_of_pictures_mean_their_classes(four_classes, tmp_path):
    for split, names in CLASSES.items():
        pictures = [f"/home/me/data/{name}/{i:02d}.png" for name in names for i in range(2)]
        content = {"label_names": list("abcd"), "image_names": pictures, "image_labels": [0] * len(pictures)}
        (four_classes / f"{split}.json").write_text(json.dumps(content))
    assert classes_of(built("birds", four_classes, tmp_path / "data")) == {s: list(CLASSES[s]) for s in CLASSES}


def test_a_list_that_names_a_class_that_is_missing_or_in_two_splits_is_refused(four_classes, tmp_path, refused):
    listed(four_classes, "txt", classes=CLASSES | {"val": ("cat", "yak")})
    assert "1 of 2 entries for val" in (line := refused("--dataset", "birds", "--raw", four_classes)) and "yak" in line
    listed(four_classes, "txt", classes=CLASSES | {"val": ("cat", "ant")})
    assert "1 classes in train as well as val: ant" in refused("--dataset", "birds", "--raw", four_classes)


def test_a_list_of_which_one_file_is_damaged_or_misspelt_is_refused_and_not_passed_over(four_classes, refused):
    listed(four_classes, "json", classes=CLASSES | {"val": ("catt",)})
    assert "catt" in refused("--dataset", "birds", "--raw", four_classes)
    (four_classes / "val.json").write_text('["cat"')
    assert "val.json: no whole json file" in refused("--dataset", "birds", "--raw", four_classes)


def test_lists_that_differ_are_refused_and_one_is_chosen_by_hand(four_classes, tmp_path, refused):
    listed(four_classes / "one", "txt")
    other = listed(four_classes / "two", "txt", classes={"train": ("cat", "dog"), "val": ("ant",), "test": ("bee",)})
    printed = shlex.split(refused("--dataset", "birds", "--raw", four_classes).partition("as in ")[2])
    assert classes_of(built("birds", four_classes, tmp_path / "data", *printed))["train"] == ["ant", "bee"]
    found = classes_of(built("birds", four_classes, tmp_path / "data", "--split", other))
    assert found["train"] == ["cat", "dog"]


def test_of_lists_that_differ_in_one_folder_the_one_whose_file_is_given_is_taken(four_classes, tmp_path, refused):
    lists = listed(tmp_path / "my lists", "txt")
    listed(lists, "json", classes={"train": ("cat", "dog"), "val": ("ant",), "test": ("bee",)})
    line = refused("--dataset", "birds", "--raw", four_classes, "--split", lists)
    printed = shlex.split(line.partition("as in ")[2])
    assert built("birds", four_classes, tmp_path / "data", *printed)
    found = classes_of(built("birds", four_classes, tmp_path / "data", "--split", lists / "val.json"))
    assert found["train"] == ["cat", "dog"]


def test_classes_that_no_list_names_are_left_out_and_said(four_classes, tmp_path, capsys):
    class_folders(four_classes / "data", {"eel": 2})
    listed(four_classes, "txt")
    assert classes_of(built("birds", four_classes, tmp_path / "data")) == {s: list(CLASSES[s]) for s in CLASSES}
    assert "1 classes that no list names are left out: eel" in capsys.readouterr().out


def test_lists_that_name_no_class_are_refused_unless_classes_are_to_be_drawn(four_classes, tmp_path, refused):
    listed(four_classes, "txt", classes={"train": ("one",), "val": ("two",), "test": ("three",)})
    line = refused("--dataset", "birds", "--raw", four_classes)
    assert "train.txt, val.txt, test.txt name none of the classes, but 'one'" in line
    given = ["--split", "0.5,0.25,0.25"]
    assert given[1] not in line and f"--split {splits.SHARES}" in line
    found = classes_of(built("birds", four_classes, tmp_path / "data", *given))
    assert sorted(sum(found.values(), [])) == sorted(sum(CLASSES.values(), ()))


def test_lists_of_something_else_beside_class_lists_are_passed_over_and_said(four_classes, tmp_path, capsys):
    listed(four_classes / "splits", "txt")
    for split in CLASSES:
        (four_classes / f"{split}.json").write_text('[{"width": 3}]')
    assert classes_of(built("birds", four_classes, tmp_path / "data")) == {s: list(CLASSES[s]) for s in CLASSES}
    assert "passed over: train.json: holds dict" in capsys.readouterr().out


def test_two_lists_of_classes_lack_the_third_and_two_of_pictures_say_no_split(four_classes, tmp_path, refused, capsys):
    """As those of Food-101, whose train and test share all classes."""
    (four_classes / "train.txt").write_text("ant\nbee\ncat")
    (four_classes / "test.txt").write_text("dog")
    assert "train.txt, test.txt list classes, but there is no list for val" in refused(
        "--dataset", "x", "--raw", four_classes
    )
    for split, number in (("train", 0), ("test", 1)):
        pictures = [f"{name}/{number:02d}" for names in CLASSES.values() for name in names]
        (four_classes / f"{split}.txt").write_text("\n".join(f"{picture}.png" for picture in pictures))
    built("x", four_classes, tmp_path / "data")
    assert "train.txt, test.txt share out pictures, not classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["{name} 3", "7 {name}", "data/{name}", "{split}/{name}", "{name}/00.png 3", "{name}\t3", '"{name}"']
)
def test_an_entry_may_have_a_label_or_a_path_of_its_own(line, four_classes, tmp_path):
    for split, names in CLASSES.items():
        text = "\n".join(line.format(name=name, split=split) for name in names)
        (four_classes / f"{split}.txt").write_text(text)
    assert classes_of(built("birds", four_classes, tmp_path / "data")) == {s: list(CLASSES[s]) for s in CLASSES}


def test_a_name_with_a_comma_in_a_list_is_not_cut_off(tmp_path):
    classes = {"train": ("crane, bird", "tench; fish"), "val": ("crane", "dog"), "test": ("elk", "fox|fur")}
    raw = class_folders(tmp_path / "raw" / "data", dict.fromkeys(sum(classes.values(), ()), 2)).parent
    listed(raw, "txt", classes=classes)
    assert classes_of(built("birds", raw, tmp_path / "data")) == {s: list(classes[s]) for s in classes}


def test_all_classes_of_a_split_may_stand_in_one_line(four_classes, tmp_path):
    for split, names in CLASSES.items():
        (four_classes / f"{split}.txt").write_text(", ".join(names))
    assert classes_of(built("birds", four_classes, tmp_path / "data")) == {s: list(CLASSES[s]) for s in CLASSES}


def test_a_class_list_tells_apart_classes_of_one_name_and_joins_the_parts_of_a_split_by_image(tmp_path):
    raw = class_folders(tmp_path / "raw", {f"{place}/{c}": 1 for place in ("north", "south") for c in ("ant", "bee")})
    names = {"train": ("north/ant", "south/ant"), "val": ("north/bee",), "test": ("south/bee",)}
    place = listed(tmp_path / "lists", "txt", classes=names)
    assert classes_of(built("birds", raw, tmp_path / "data", "--split", place)) == {s: sorted(names[s]) for s in names}
    raw = class_folders(
        tmp_path / "fruit", {f"{s}/{c}": 1 for s in ("Train", "Test") for c in sum(CLASSES.values(), ())}
    )
    place = listed(tmp_path / "lists", "txt")
    folder = built("fruit", raw, tmp_path / "data", "--split", place)
    assert classes_of(folder) == {s: list(CLASSES[s]) for s in CLASSES}


@pytest.mark.parametrize(
    ("name", "text"), [("empty.txt", ""), ("mine.csv", "ant,7\nbee,8\n"), ("mine.json", "{"), ("mine.json", "[1, 2]")]
)
def test_what_is_no_class_list_is_refused(name, text, four_classes, tmp_path, refused):
    (tmp_path / name).write_text(text)
    line = refused("--dataset", "birds", "--raw", four_classes, "--split", tmp_path / name)
    assert name in line and ("expected train.txt" in line or "no whole json" in line)
    (tmp_path / "nothing").mkdir()
    assert "no class list" in refused("--dataset", "birds", "--raw", four_classes, "--split", tmp_path / "nothing")


def test_classes_with_too_few_images_are_left_out_and_said(tmp_path, capsys):
    raw = class_folders(tmp_path / "raw", {"ant": 5, "bee": 1, "cat": 5, "dog": 4, "elk": 5})
    found = classes_of(built("birds", raw, tmp_path / "data", "--least-images", "5"))
    assert sorted(sum(found.values(), [])) == ["ant", "cat", "elk"]
    assert "2 classes with fewer than 5 pictures are left out: bee (1), dog (4)" in capsys.readouterr().out


def test_classes_with_too_few_images_are_left_out_of_lists_and_split_folders_too(four_classes, tmp_path, refused):
    (four_classes / "data" / "bee" / "00.png").unlink()
    lists = listed(tmp_path / "lists", "txt")
    folders = split_folders(tmp_path / "split", ("Train", "Val", "Test"))
    (folders / "Train" / "bee" / "00.png").unlink()
    for raw, options in ((four_classes, ("--split", lists)), (folders, ())):
        found = classes_of(built("birds", raw, tmp_path / "data", "--least-images", "2", *options))
        assert found == {"train": ["ant"], "val": ["cat"], "test": ["dog"]}
        (next(raw.rglob("dog")) / "00.png").unlink()
        line = refused("--dataset", "birds", "--raw", raw, "--least-images", "2", *options)
        assert "--least-images 2: leaves no class in test" in line


@pytest.mark.parametrize(
    ("name", "text"), [("split.csv", "ant,train\nbee,train\ncat,val\ndog,test\n"), ("splits.json", json.dumps(CLASSES))]
)
@pytest.mark.parametrize("place", ["beside", "folder", "file"])
def test_one_file_that_lists_all_classes_is_found_or_given(name, text, place, four_classes, tmp_path):
    lists = four_classes if place == "beside" else tmp_path / "lists"
    lists.mkdir(exist_ok=True)
    (lists / name).write_text(text)
    (lists / "notes.txt").write_text("nothing\nof that\n")
    given = {"beside": [], "folder": ["--split", lists], "file": ["--split", lists / name]}[place]
    assert classes_of(built("birds", four_classes, tmp_path / "data", *given)) == {s: list(CLASSES[s]) for s in CLASSES}
