"""Build a data set: raw files -> DATA_DIR/NAME/{train,val,test}.h5 and preview.png; without options, list them all."""

import argparse
import os
import re
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script, from anywhere

from common.shards import NAME, ROOT, SPLITS, UsageError, build_command, read_shard
from data_prep import archives, folder, miniimagenet, named, omniglot, splits
from data_prep.files import ARRAY_SUFFIXES, RawFiles, open_files

NEEDS = {
    "glyphs": "no files: it is drawn from matplotlib's fonts",
    "omniglot": "a network; or --raw with images_background.zip and images_evaluation.zip",
    "miniimagenet": f"a folder or an archive of {miniimagenet.LAYOUTS}; or an ILSVRC-2012 train folder or tar, and "
    "--csv with the folder of the three csv files",
    **{name: known.needs for name, known in named.SETS.items()},
}
SIZES = range(8, 1025)


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UsageError(f"{message}; see python data_prep/build.py --help")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Build a data set: raw files -> DATA_DIR/NAME/{train,val,test}.h5. Without options, list them all.",
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", metavar="NAME", help=f"{', '.join(NEEDS)}, or a name of yours with --raw")
    parser.add_argument(
        "--raw", type=_path, nargs="+", metavar="PATH",
        help=f"a folder or an archive ({archives.READ}), never modified; Omniglot takes its two zips as well, "
        "and is downloaded without --raw; a data set of yours is class folders of images, {train,val,test} folders "
        "of those, or images with a table",
    )  # fmt: skip
    parser.add_argument(
        "--csv", type=_path, metavar="FOLDER", help="miniimagenet: holds {train,val,test}.csv, where --raw doesn't"
    )
    parser.add_argument(
        "--table", type=_path, metavar="FILE", help="a data set of yours: a csv file that says the class of each image"
    )
    parser.add_argument("--data-dir", type=_path, default=ROOT / "data", metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--split",
        help="omniglot: vinyals (default; 1028/172/423 characters) or lake (test on images_evaluation, val a fifth of "
        "the alphabets of images_background, drawn with --seed); other sets: a class list, as a folder of train.txt, "
        "val.txt and test.txt or a file of lines name,split; a data set of yours: or shares of the classes for train, "
        f"val and test, drawn with --seed (default {splits.SHARES})",
    )
    parser.add_argument("--seed", type=int, help="of what --split draws (default 0)")
    parser.add_argument("--size", type=int, help="a data set of yours: pixels a side (default 84)")
    parser.add_argument("--grayscale", action="store_true", help="a data set of yours: one channel instead of RGB")
    parser.add_argument(
        "--least-images", type=int, metavar="N", help="a data set of yours: leave classes with fewer images out"
    )
    return parser.parse_args(arguments)


def _path(text: str) -> Path:
    if not text:  # as of a variable of the shell that has no value; it would mean the folder that one is in
        raise argparse.ArgumentTypeError("expected a path, not an empty word")
    return Path(os.path.expanduser(text))  # the shell doesn't, in --raw=~/x


def build(options: argparse.Namespace) -> tuple[Path, RawFiles | None]:
    """Build `options.dataset`; return its folder, and the raw files with what was read of them.

    Raises UsageError for what doesn't fit together or isn't there.
    """
    name, raw = options.dataset, options.raw
    command = build_command(options.data_dir / name)
    _check(options, command)
    if name == "glyphs":
        from data_prep import glyphs  # here, because nothing else needs matplotlib

        return glyphs.build(options.data_dir), None
    if name == "omniglot":
        raw = omniglot.parts(raw or [omniglot.download(options.data_dir)])
    elif name in NEEDS and raw[0].is_file() and raw[0].name.lower().endswith((*ARRAY_SUFFIXES, ".csv")):
        raw = [raw[0].parent]  # one of three files stands for all of them
    with open_files(raw, omniglot.ZIPS if name == "omniglot" else (), arrays=name in NEEDS) as files:
        if name == "omniglot":
            built = omniglot.build(options.data_dir, files, options.split or "vinyals", options.seed or 0)
        elif name == "miniimagenet":
            built = miniimagenet.build(options.data_dir, files, options.csv)
        elif name in named.SETS:
            built = named.build(options.data_dir, name, files, options.split)
        else:
            built = folder.build(
                options.data_dir, name, files, options.table, options.split, options.seed or 0, options.size or 84,
                options.grayscale, options.least_images or 1,
            )  # fmt: skip
        return built, files


def _check(options: argparse.Namespace, command: str) -> None:
    """Raise UsageError for options that don't fit together, before a large archive is opened."""
    name, raw = options.dataset, options.raw
    alike = [known for known in NEEDS if re.sub(r"[\W_]", "", name.lower()) == known and name != known]
    if alike:
        raise UsageError(f"--dataset {name}: did you mean --dataset {alike[0]}?")
    if not re.fullmatch(NAME, name):
        raise UsageError(f"--dataset {name}: expected a name of letters, digits and . _ + -, as it becomes a folder")
    own = name not in NEEDS
    if own and not raw:
        raise UsageError(
            f"--dataset {name}: unknown; expected {', '.join(NEEDS)}, or "
            f"{build_command(options.data_dir / name, 'FOLDER_OF_CLASSES')}"
        )
    if name not in ("glyphs", "omniglot") and not raw:
        raise UsageError(f"--dataset {name}: --raw is missing; expected {command}, {NEEDS[name]}")
    if options.seed is not None and options.seed < 0:
        raise UsageError(f"--seed {options.seed}: expected 0 or more")
    listable = own or name == "omniglot" or name in named.SETS
    for option, given, fits in (
        ("--raw", raw, name != "glyphs"),
        ("--csv", options.csv, name == "miniimagenet"),
        ("--table", options.table, own),
        ("--split", options.split, listable),
        ("--seed", options.seed is not None, own or options.split == "lake"),
        ("--size", options.size is not None, own),
        ("--grayscale", options.grayscale, own),
        ("--least-images", options.least_images is not None, own),
    ):
        if given and not fits:
            raise UsageError(f"{option}: {name} has no such choice, its format is fixed; leave {option} out")
    for path in raw or ():
        if own and path.resolve() in (options.data_dir.resolve(), *options.data_dir.resolve().parents):
            raise UsageError(
                f"--data-dir {options.data_dir}: it lies in --raw {path}, so what was built would be read as classes; "
                "name a folder elsewhere"
            )
        if not path.exists():
            raise UsageError(f"--raw {path}: no such file or folder; check the path")
    if raw and len(raw) > 1 and name != "omniglot":
        raise UsageError(f"--raw {' '.join(map(str, raw))}: expected one folder or archive; put them into one folder")
    if name == "omniglot" and options.split not in (None, "vinyals", "lake"):
        raise UsageError(f"--split {options.split}: expected vinyals or lake, as in {command} --split lake")
    if options.size is not None and options.size not in SIZES:
        raise UsageError(f"--size {options.size}: expected {SIZES[0]} to {SIZES[-1]} pixels a side, as in --size 84")
    if options.least_images is not None and options.least_images < 1:
        raise UsageError(f"--least-images {options.least_images}: expected 1 or more, as in --least-images 20")
    if options.split and name != "omniglot" and not _path(options.split).exists():
        if name in named.SETS:
            raise UsageError(f"--split {options.split}: no such folder or file, expected that of a class list")
        splits.parse_shares(options.split)


def summary(built: Path) -> str:
    """The classes and images of each split, and the size on disk; raises UsageError where the build isn't whole."""
    parts = []
    for split in SPLITS:
        try:
            images, _, class_names, *_ = read_shard(built / f"{split}.h5")
        except UsageError:
            raise UsageError(f"{built / split}.h5 is missing or damaged") from None
        parts.append(f"{split} {len(class_names):,} classes, {len(images):,} images")
    mib = sum(file.stat().st_size for file in built.iterdir()) / 2**20
    return f"{' · '.join(parts)} · {mib:,.0f} MiB"


def list_all(data_dir: Path) -> None:
    """Print each data set that is known or found in `data_dir`: what it holds, or the command that builds it."""
    found = [path.parent.name for path in sorted(data_dir.glob("[!.]*/train.h5"))]
    for name in [*NEEDS, *(name for name in found if name not in NEEDS)]:
        try:
            if name in found:
                print(f"{name}: {summary(data_dir / name)}")
                continue
            state = "not built"
        except UsageError as error:
            state = str(error)
        needs = NEEDS.get(name, "its class folders of images")
        print(f"{name}: {state}; {build_command(data_dir / name)}\n    needs {needs}")
    print(f"a set of yours: {build_command(data_dir / 'NAME')}\n    needs class folders of images")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status: 2 for what the person at the keyboard can mend."""
    started = time.perf_counter()
    try:
        options = parse(arguments)
        if options.data_dir.exists() and not options.data_dir.is_dir():
            raise UsageError(f"--data-dir {options.data_dir}: is a file, expected a folder or a new name")
        if options.dataset is None:
            given = {
                k: v for k, v in vars(options).items() if k not in ("dataset", "data_dir") and v not in (None, False)
            }
            for name in given:
                raise UsageError(f"--{name.replace('_', '-')}: of which set? add --dataset, one of {', '.join(NEEDS)}")
            list_all(options.data_dir)
            return 0
        built, files = build(options)
        for line in files.said if files else ():
            print(f"note: {' '.join(line.splitlines())}")
        parts = [
            summary(built),
            files.passed_over() if files else "",
            f"{time.perf_counter() - started:.0f} s",
            str(built),
        ]
        print(f"{options.dataset}: {' · '.join(part for part in parts if part)}")
        return 0
    except UsageError as error:
        print("error: " + " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except (OSError, MemoryError) as error:  # no right to write, the disk is full
        print("error: " + (" ".join(str(error).splitlines()) or "no memory left"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was changed", file=sys.stderr)
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the half-built folder goes, as on Ctrl-C
    sys.stdout.reconfigure(errors="backslashreplace")  # names that a terminal, or Unicode, has no characters for
    sys.exit(main())
