"""A table of a report: raw values once, shown as HTML, Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from rich.table import Table as TerminalTable
from rich.text import Text

from ammpl.study.result.summary import markdown_table

Value = str | float | int | None


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: its head.
        form: a format specification of its numbers, as in ``+.4f``; texts are shown as they are.
    """

    title: str
    form: str = ""

    def show(self, value: Value) -> str:
        """Return a cell as people read it; a dash where there is nothing, p-values without a needless 0."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "–"
        if isinstance(value, str):
            return value
        if self.form == "p":
            return "< .0001" if value < 0.0001 else f"{value:.4f}".removeprefix("0")
        return format(value, self.form).replace("-", "−")


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: of its files, without an ending.
        title: a line above it.
        columns: the first one names the rows.
        rows: raw values; each row has one for each column.
        note: what a reader must know, below it.
        keys: by row, what figures call the same thing, so that a page can show them together; empty for none.
        strong: indices of the rows that stand out.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""
    keys: tuple[str, ...] = ()
    strong: tuple[int, ...] = ()

    def csv(self) -> str:
        """Return raw values, in full precision."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.title for column in self.columns])
        writer.writerows(["" if value is None else value for value in row] for row in self.rows)
        return text.getvalue()

    def markdown(self) -> str:
        """Return title, table and note."""
        header = [column.title.replace("|", "\\|") for column in self.columns]
        rows = [[text.replace("|", "\\|") for text in texts] for texts in self._texts()]
        return f"**{self.title}**\n\n{markdown_table(header, rows)}" + (f"\n{self.note}\n" if self.note else "")

    def latex(self) -> str:
        """Return a ``table`` for the packages booktabs and fontenc (T1)."""
        align = "".join("r" if self._is_numeric(index) else "l" for index in range(len(self.columns)))
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(self.title + '. ' + self.note if self.note else self.title)}}}",
            rf"\label{{tab:{self.name}}}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join(_latex(column.title) for column in self.columns) + r" \\",
            r"\midrule",
            *(" & ".join(map(_latex, texts)) + r" \\" for texts in self._texts()),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """Return the table with its title as caption."""
        numeric = [self._is_numeric(index) for index in range(len(self.columns))]
        kinds = ["" if not number else ' class="number"' for number in numeric]
        head = "".join(f'<th scope="col"{k}>{escape(c.title)}</th>' for c, k in zip(self.columns, kinds, strict=True))
        body = []
        for index, texts in enumerate(self._texts()):
            key = f' data-key="{escape(self.keys[index])}"' if self.keys and self.keys[index] else ""
            strong = ' class="strong"' if index in self.strong else ""
            cells = [f'<th scope="row">{escape(texts[0])}</th>']
            cells += [f"<td{kind}>{_verdict(text)}</td>" for text, kind in zip(texts[1:], kinds[1:], strict=True)]
            body.append(f"<tr{strong}{key}>{''.join(cells)}</tr>")
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return (
            f'<div class="scroll"><table><caption>{escape(self.title)}</caption><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>{note}"
        )

    def terminal(self) -> TerminalTable:
        """Return the table for a terminal."""
        table = TerminalTable(title=self.title, title_justify="left", caption=self.note, caption_justify="left")
        for index, column in enumerate(self.columns):
            number = self._is_numeric(index)
            justify: Literal["left", "right"] = "right" if number else "left"
            table.add_column(column.title, justify=justify, no_wrap=number, overflow="fold")
        for texts in self._texts():
            table.add_row(*map(Text, texts))  # brackets would be markup
        return table

    def _texts(self) -> list[list[str]]:
        return [[c.show(value) for c, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def _is_numeric(self, index: int) -> bool:
        values: Sequence[Value] = [row[index] for row in self.rows]
        return index > 0 and any(value is not None for value in values) and not any(isinstance(v, str) for v in values)


def _verdict(text: str) -> str:
    word = text.partition(" (")[0]
    kind = {"holds": "holds", "does not": "not", "undecided": "open"}.get(word)
    return f'<span class="verdict {kind}">{escape(text)}</span>' if kind else escape(text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "–": "--",
    "…": r"\dots{}",
}


def _latex(text: str) -> str:
    text = "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))
    return "{}" + text if text.startswith(("[", "*")) else text  # after a line's end they would be its options
