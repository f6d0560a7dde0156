"""A table of a report: raw values once, shown as HTML, Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table as TerminalTable

from ammpl.escaping import csv as csv_text
from ammpl.escaping import file_name, html, latex, markdown, rich_text
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
        writer.writerow([csv_text(column.title) for column in self.columns])
        writer.writerows([csv_text(v) if isinstance(v, str) else v for v in row] for row in self.rows)
        return text.getvalue()

    def markdown(self) -> str:
        """Return title, table and note."""
        table = markdown_table([column.title for column in self.columns], self._texts())
        return f"**{markdown(self.title)}**\n\n{table}" + (f"\n{markdown(self.note)}\n" if self.note else "")

    def latex(self) -> str:
        """Return a ``table`` for the packages booktabs and fontenc (T1)."""
        align = "".join("r" if self._is_numeric(index) else "l" for index in range(len(self.columns)))
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(self.title + '. ' + self.note if self.note else self.title)}}}",
            rf"\label{{tab:{file_name(self.name)}}}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join(latex(column.title) for column in self.columns) + r" \\",
            r"\midrule",
            *(" & ".join(map(latex, texts)) + r" \\" for texts in self._texts()),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """Return the table with its title as caption."""
        numeric = [self._is_numeric(index) for index in range(len(self.columns))]
        kinds = ["" if not number else ' class="number"' for number in numeric]
        head = "".join(f'<th scope="col"{k}>{html(c.title)}</th>' for c, k in zip(self.columns, kinds, strict=True))
        body = []
        for index, texts in enumerate(self._texts()):
            key = f' data-key="{html(self.keys[index])}"' if self.keys and self.keys[index] else ""
            strong = ' class="strong"' if index in self.strong else ""
            cells = [f'<th scope="row">{html(texts[0])}</th>']
            cells += [f"<td{kind}>{_verdict(text)}</td>" for text, kind in zip(texts[1:], kinds[1:], strict=True)]
            body.append(f"<tr{strong}{key}>{''.join(cells)}</tr>")
        note = f'<p class="note">{html(self.note)}</p>' if self.note else ""
        return (
            f'<div class="scroll"><table><caption>{html(self.title)}</caption><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>{note}"
        )

    def terminal(self) -> TerminalTable:
        """Return the table for a terminal."""
        table = TerminalTable(title_justify="left", caption_justify="left")
        table.title = rich_text(self.title, "table.title")
        table.caption = rich_text(self.note, "table.caption") if self.note else None
        for index, column in enumerate(self.columns):
            number = self._is_numeric(index)
            justify: Literal["left", "right"] = "right" if number else "left"
            table.add_column(rich_text(column.title), justify=justify, no_wrap=number, overflow="fold")
        for texts in self._texts():
            table.add_row(*map(rich_text, texts))
        return table

    def _texts(self) -> list[list[str]]:
        return [[c.show(value) for c, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def _is_numeric(self, index: int) -> bool:
        values: Sequence[Value] = [row[index] for row in self.rows]
        return index > 0 and any(value is not None for value in values) and not any(isinstance(v, str) for v in values)


def _verdict(text: str) -> str:
    word = text.partition(" (")[0]
    kind = {"holds": "holds", "does not": "not", "undecided": "open"}.get(word)
    return f'<span class="verdict {kind}">{html(text)}</span>' if kind else html(text)
