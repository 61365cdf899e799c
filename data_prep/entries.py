"""What an entry of a class list means: a class, however much of its path is given, or that of a picture."""

import re

from data_prep import splits, tables
from data_prep.files import is_picture

Entry = tuple[str, ...]  # a class or a picture, and what else it may be called
Lists = dict[str, list[Entry]]  # split -> entries


class Classes:
    """Finds the class that an entry of a list means; `pictures`: class name -> the names of its pictures."""

    def __init__(self, pictures: dict[str, list[str]]):
        self.named: dict[str, list[str]] = {}
        self.class_of = {}
        for name, of_class in pictures.items():
            parts = splits.same(name).split("/")
            for start in range(len(parts)):
                self.named.setdefault("/".join(parts[start:]), []).append(name)
            self.class_of |= dict.fromkeys(of_class, name)
        self.index = tables.Index(self.class_of)

    def find(self, entry: Entry) -> list[str]:
        """The classes that it may mean: none where it means none, several where it isn't clear."""
        return next((meant for text in entry if (meant := self._find(text))), [])

    def are_in(self, lists: Lists) -> bool:
        """Whether lists are about these classes at all."""
        return any(self.find(entry) for entries in lists.values() for entry in entries)

    def _find(self, entry: str) -> list[str]:
        plain = splits.same(entry.strip().strip("\"'").replace("\\", "/").strip("/"))
        if is_picture(plain) and plain not in self.named:
            return sorted({self.class_of[name] for name in self.index.find(entry)})
        unnumbered = re.sub(r"^\d+\s+|\s+\d+$", "", plain)  # of "ant 0" the number is a label
        for text in dict.fromkeys([plain, unnumbered]):
            parts = text.split("/")
            for start in range(len(parts)):  # what lies above the class folder may be called otherwise
                named = self.named.get("/".join(parts[start:]), [])
                if named:
                    exact = [name for name in named if splits.same(name) == plain]
                    return exact or named
        return []
