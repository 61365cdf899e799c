"""Pictures in one folder, whose classes a table says."""

import unicodedata

import pytest
from PIL import Image

from data_prep import files
from tests.data_prep.helpers import built, splits_of

ROWS = [(f"{c}{i}", c, f"p{i}.jpg") for i, c in enumerate(("ant", "bee", "cat", "ant", "dog", "bee", "cat", "dog"))]


@pytest.fixture
def flat(tmp_path):
    """images/p0.jpg to p7.jpg, each of its own grey."""
    (tmp_path / "raw" / "images").mkdir(parents=True)
    for i, (_, _, file) in enumerate(ROWS):
        Image.new("L", (8, 8), 20 * i).save(tmp_path / "raw" / "images" / file)
    return tmp_path / "raw"


def greys(folder):
    """Class name -> the greys of its pictures, in tens."""
    found = {}
    for images, starts, names in splits_of(folder).values():
        for name, start, stop in zip(names, starts, starts[1:], strict=False):
            found[name] = [round(int(image[0, 0, 0]) / 20) for image in images[start:stop]]
    return found


EXPECTED = {"ant": [0, 3], "bee": [1, 5], "cat": [2, 6], "dog": [4, 7]}
TABLES = {
    "Meta-Album": ("labels.csv", "FILE_NAME,CATEGORY,SUPER_CATEGORY\n", "{file},{c},animal\n", "utf-8"),
    "semicolons": ("labels.csv", "Class Name;Image\n", "{c};images/{file}\n", "utf-8"),
    "tabs, UTF-16": ("table.tsv", "path\tlabel\n", "/home/me/images/{file}\t{c}\n", "utf-16"),
    "without names": ("table.txt", "", "{file},{c}\n", "utf-8"),
    "without suffixes": ("train_labels.csv", "id,breed\n", "{stem},{c}\n", "utf-8"),
    "blanks": ("labels.txt", "", "images/{file} {c}\n", "utf-8"),
    "backslashes": ("labels.csv", "filename,label\r\n", ".\\images\\{file},{c}\r\n", "latin-1"),
    "Excel": ("labels.csv", "sep=;\n", "{file};{c}\n", "utf-8"),
    "a BOM and blanks": ("labels.csv", "\ufefffilename, label\n", '"{file}" , {c}\n\n', "utf-8"),
}


def write(place, table, rows=ROWS):
    name, head, line, encoding = TABLES[table]
    text = head + "".join(line.format(file=file, stem=file.partition(".")[0], c=c) for _, c, file in rows)
    (place / name).write_bytes(text.encode(encoding))
    return place / name


@pytest.mark.parametrize("table", TABLES)
def test_a_table_beside_the_pictures_says_their_classes_in_any_usual_form(table, flat, tmp_path, capsys):
    write(flat, table)
    assert greys(built("x", flat, tmp_path / "data", "--size", "8")) == EXPECTED
    assert "passed over" not in capsys.readouterr().out


def test_a_table_is_given_by_hand(flat, tmp_path):
    place = tmp_path / "my tables"
    place.mkdir()
    table = write(place, "Meta-Album")
    assert greys(built("x", flat, tmp_path / "data", "--size", "8", "--table", table)) == EXPECTED


def test_names_with_accents_are_found_however_these_are_encoded(flat, tmp_path):
    for _, _, file in ROWS:
        (flat / "images" / file).rename(flat / "images" / unicodedata.normalize("NFD", f"ö{file}"))
    write(flat, "tabs, UTF-16", [(about, c, f"ö{file}") for about, c, file in ROWS])
    assert greys(built("x", flat, tmp_path / "data", "--size", "8")) == EXPECTED


def test_what_the_table_says_and_by_which_columns_is_said(flat, tmp_path, capsys):
    write(flat, "Meta-Album")
    built("x", flat, tmp_path / "data", "--size", "8")
    assert "labels.csv: pictures by FILE_NAME, classes by CATEGORY" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("head", "line"),
    [
        (",filename,label", "{i},{picture}.jpg,{c}"),
        (",picture,label", "{i},{picture},{c}"),
        ("label,id", "{number},{picture}"),
        ("label,picture", "{number},{picture}"),
    ],
)
def test_numbers_of_lines_or_classes_are_not_taken_for_the_pictures_of_these_names(head, line, tmp_path):
    (tmp_path / "raw").mkdir()
    lines = [head]
    for i, (_, c, _) in enumerate(ROWS):
        picture = len(ROWS) - 1 - i
        Image.new("L", (8, 8), 20 * picture).save(tmp_path / "raw" / f"{picture}.jpg")
        lines.append(line.format(i=i, picture=picture, c=c, number=sorted(EXPECTED).index(c)))
    (tmp_path / "raw" / "labels.csv").write_text("\n".join(lines))
    found = greys(built("x", tmp_path / "raw", tmp_path / "data", "--size", "8"))
    assert list(dict(sorted(found.items())).values()) == [[4, 7], [2, 6], [1, 5], [0, 3]]


@pytest.mark.parametrize("column", ["subset", "dataset", ""])
def test_a_column_of_splits_is_the_split_whatever_it_is_called(column, flat, tmp_path):
    split = {"ant": "Training", "bee": "Training", "cat": "Valid", "dog": "Testing"}
    lines = [f"file,species,{column}", *(f"{file},{c},{split[c]}" for _, c, file in ROWS)]
    (flat / "meta.csv").write_text("\n".join(lines))
    found = {s: names for s, (_, _, names) in splits_of(built("x", flat, tmp_path / "data", "--size", "8")).items()}
    assert found == {"train": ["ant", "bee"], "val": ["cat"], "test": ["dog"]}


def test_a_table_for_each_split_is_the_split(flat, tmp_path):
    for name, classes in (("train", ("ant", "bee")), ("val", ("cat",)), ("test", ("dog",))):
        rows = [f"{file},{c}" for _, c, file in ROWS if c in classes]
        (flat / f"{name}.csv").write_text("\n".join(["filename,label", *rows]))
    found = {s: names for s, (_, _, names) in splits_of(built("x", flat, tmp_path / "data", "--size", "8")).items()}
    assert found == {"train": ["ant", "bee"], "val": ["cat"], "test": ["dog"]}


def test_folders_of_pictures_for_each_split_are_the_split(flat, tmp_path):
    split = {"ant": "Train", "bee": "Train", "cat": "Val", "dog": "Test"}
    for _, c, file in ROWS:
        (flat / split[c]).mkdir(exist_ok=True)
        (flat / "images" / file).rename(flat / split[c] / file)
    write(flat, "Meta-Album")
    found = {s: names for s, (_, _, names) in splits_of(built("x", flat, tmp_path / "data", "--size", "8")).items()}
    assert found == {"train": ["ant", "bee"], "val": ["cat"], "test": ["dog"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,label\np0.jpg,ant\np0.jpg,bee\n", "'p0.jpg' is in two classes, ant and bee"),
        ("file,label\np0.jpg,ant\np1.jpg,\n", "'p1.jpg' has no class"),
        ("file,label\np0.jpg,ant\np1.jpg,bee\np9.jpg,cat\n", "1 of the 3 pictures that it lists are missing: p9.jpg"),
        ("file,size,date\np0.jpg,ant,x\np1.jpg,bee,y\n", "columns file, size, date, none of which"),
        ("p0.jpg,ant,x\np1.jpg,bee,y\n", "3 columns without names"),
        ("file,label,split\np0.jpg,ant,1\np1.jpg,bee,2\n", "1, 2 in column split, expected train, val and test"),
        ("file,label,split\np0.jpg,ant,train\np3.jpg,ant,test\n", "1 classes in train as well as test: ant"),
        ("file,label\np0.jpg,ham\np1.jpg,egg, ham\n", "'p1.jpg,egg,ham' has more cells than the first line"),
        ("", "expected a table with a column of pictures"),
    ],
)
def test_a_table_that_leaves_a_class_in_doubt_is_refused(text, expected, flat, tmp_path, refused):
    (tmp_path / "table.csv").write_text(text)
    assert expected in refused("--dataset", "x", "--raw", flat, "--size", "8", "--table", tmp_path / "table.csv")


def test_a_cell_that_means_two_pictures_that_differ_is_refused(flat, tmp_path, refused):
    (flat / "masks").mkdir()
    for _, _, file in ROWS:
        Image.new("L", (8, 8), 3).save(flat / "masks" / file)
    table = write(flat, "Meta-Album")
    assert "may be images/p0.jpg, masks/p0.jpg, which differ" in refused("--dataset", "x", "--raw", flat)
    text = table.read_text()
    for _, _, file in ROWS:
        text = text.replace(file, f"images/{file}")
    table.write_text(text)
    assert greys(built("x", flat, tmp_path / "data", "--size", "8")) == EXPECTED


def test_a_table_too_large_to_be_one_is_refused_or_passed_over(flat, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_TABLE", 1000)
    (tmp_path / "table.csv").write_text("," * 2000)
    line = refused("--dataset", "x", "--raw", flat, "--table", tmp_path / "table.csv")
    assert "table.csv: more than" in line
    write(flat, "Meta-Album")
    (flat / "annotations.txt").write_text("," * 2000)
    assert greys(built("x", flat, tmp_path / "data", "--size", "8")) == EXPECTED


def test_two_tables_of_which_either_may_be_meant_are_refused(flat, refused):
    write(flat, "Meta-Album")
    write(flat, "without names")
    assert "2 tables of pictures" in (line := refused("--dataset", "x", "--raw", flat)) and "--table FILE" in line
    assert "no such file" in refused("--dataset", "x", "--raw", flat, "--table", "nowhere.csv")


def test_pictures_in_one_folder_without_a_table_say_what_is_missing(flat, refused):
    assert "only one folder of images" in (line := refused("--dataset", "x", "--raw", flat)) and "--table FILE" in line
