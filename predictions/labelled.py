"""What predict.py says of pictures: predictions.csv, and how right it is where the classes are known."""

import csv
import io
from dataclasses import dataclass

import numpy as np

DOUBTFUL = 2  # a label is doubtful unless it is so many times as probable as the second


@dataclass
class Labelled:
    """Q pictures of N classes."""

    classes: list[str]
    files: list[str]  # of the pictures, below the folder that was given
    probabilities: np.ndarray  # (Q, N)
    true: np.ndarray  # (Q,) labels, -1 where nobody knows

    @property
    def predicted(self) -> np.ndarray:
        """(Q,)"""
        return self.probabilities.argmax(1)

    @property
    def doubtful(self) -> np.ndarray:
        """(Q,)"""
        second, first = np.sort(self.probabilities, 1)[:, -2:].T
        return first < DOUBTFUL * second

    def as_csv(self) -> str:
        content = io.StringIO()
        writer = csv.writer(content, lineterminator="\n")
        writer.writerow(["file", "predicted", *(f"p({name})" for name in self.classes)])
        for file, label, row in zip(self.files, self.predicted, self.probabilities):
            writer.writerow([file, self.classes[label], *(f"{p:.6f}" for p in row)])
        return content.getvalue()

    def confusion(self) -> np.ndarray:
        """The number of pictures known to be of class i that were named class j.   (N, N)"""
        known = self.true >= 0
        counts = np.zeros((len(self.classes), len(self.classes)), int)
        np.add.at(counts, (self.true[known], self.predicted[known]), 1)
        return counts

    def accuracy_lines(self) -> list[str]:
        """Accuracy and confusion for people, where classes are known."""
        counts = self.confusion()
        total = counts.sum()
        if not total:
            return []
        right = np.trace(counts)
        lines = [f"accuracy {right / total:.4f}: {right} of {total} pictures in folders that are named like a class"]
        width = max(len("class"), *map(len, self.classes))
        letters = [chr(ord("A") + i) if len(counts) <= 26 else str(i + 1) for i in range(len(counts))]
        columns = max(len(str(counts.max())), *map(len, letters)) + 1
        head = "".join(letter.rjust(columns) for letter in letters)
        lines.append(f"{'class':{width}}   {head}  right   named, by letter")
        for i, row in enumerate(counts):
            cells = "".join(str(count).rjust(columns) for count in row)
            share = f"{row[i] / row.sum():5.2f}" if row.sum() else "    -"
            lines.append(f"{self.classes[i]:{width}} {letters[i]:>2}{cells}  {share}".rstrip())
        return lines
