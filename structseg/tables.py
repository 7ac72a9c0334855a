"""Tables of text, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_GAP = "  "


@dataclass(frozen=True)
class TextTable:
    """A table with a title above and notes below.

    Attributes:
        header: names of the columns; a newline breaks one for the terminal.
        lines: a text for each column; in a terminal a line with a single text spans all columns.
        left: number of columns that are left-aligned; the others are right-aligned.
        title: may be empty.
        notes: paragraphs.
    """

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    left: int = 1
    title: str = ""
    notes: Sequence[str] = ()

    def text(self) -> str:
        """The table for a terminal."""
        names = [name.split("\n") for name in self.header]
        high = max(map(len, names))
        head = list(zip(*([*[""] * (high - len(parts)), *parts] for parts in names), strict=True))
        whole = [line for line in self.lines if len(line) == len(names)]
        widths = [max(map(len, column)) for column in zip(*head, *whole, strict=True)]

        def row(cells: Sequence[str]) -> str:
            if len(cells) < len(names):
                return "".join(cells)
            pairs = list(zip(cells, widths, strict=True))
            left = [cell.ljust(width) for cell, width in pairs[: self.left]]
            return _GAP.join([*left, *(cell.rjust(width) for cell, width in pairs[self.left :])]).rstrip()

        rule = _GAP.join("-" * width for width in widths)
        table = [*map(row, head), rule, *map(row, self.lines)]
        return "\n".join([*filter(None, [self.title]), *table, *self.notes])

    def markdown(self) -> str:
        """The table as Markdown, with the title in bold."""
        rules = ["---" if number < self.left else "---:" for number in range(len(self.header))]
        cells = (
            [cell.replace("\n", " ").replace("|", "\\|") for cell in line] for line in (self.header, rules, *self.lines)
        )
        table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        return "\n\n".join([*([f"**{self.title}**"] if self.title else []), table, *self.notes])
