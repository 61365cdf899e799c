"""Damaged and forged files of every kind that is read: python -m tests.data_prep.fuzz"""

import re
import subprocess
import sys

import pytest

from common.shards import ROOT
from tests.data_prep.fuzz import KINDS

FILES = 100  # of each kind, every third of which is forged: each forgery is tried twice or more


@pytest.mark.slow
def test_no_damaged_file_ends_in_a_traceback_a_hang_much_memory_or_a_file_elsewhere():
    words = f"-m tests.data_prep.fuzz --count {FILES}".split()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    counts = re.findall(r"^(\S.*?) +(\d+) files: (\d+) built, (\d+) refused, 0 fault", done.stdout, re.MULTILINE)
    assert [kind for kind, *_ in counts] == list(KINDS)
    for _, files, built, refused in counts:
        assert int(built) + int(refused) == int(files) == FILES and int(built) > 0 and int(refused) > 0
