import argparse, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from data_prep import miniimagenet, omniglot
p = argparse.ArgumentParser()
p.add_argument("--dataset"); p.add_argument("--raw", type=Path); p.add_argument("--data-dir", type=Path, default=ROOT / "data")
a = p.parse_args()
t = time.time()
print({"omniglot": omniglot, "miniimagenet": miniimagenet}[a.dataset].build(a.data_dir, a.raw), time.time() - t)
