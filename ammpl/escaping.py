"""Strings of a study as text in each format that people open: nothing in them is a command, markup or a formula there.

Every format has its one function. All of them show control characters, C1 among them, directions of writing (bidi) and
what no file in UTF-8 or XML can hold as escapes, ``\\x1b``.
"""

from __future__ import annotations

import html as _html
import re

from rich.text import Text

_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but tab and line feed
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions of writing
    r"\u2028\u2029\ud800-\udfff\ufffe\uffff]"  # line separators, surrogates, no characters
)


def visible(text: str) -> str:
    """Return the text with escapes for what has no sign of its own; tabs and line feeds stay."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def terminal(text: str) -> str:
    """Return text for ``print``, on as many lines as it has."""
    return visible(text)


def terminal_line(text: str) -> str:
    """Return text for a line of the terminal that no string in it can end."""
    return visible(text).replace("\n", "\\n")


def rich_text(text: str, style: str = "") -> Text:
    """Return text for rich's tables and views, where a string would be markup."""
    return Text(visible(text), style)


def html(text: str) -> str:
    """Return text for an HTML element or a quoted attribute."""
    return _html.escape(visible(text))


_MARKDOWN = {
    **{sign: "\\" + sign for sign in "\\`*[]|~!"},
    **{"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"},  # not every dialect has a backslash for these
}
_BEGINS_BLOCK = re.compile(r"[#=]|[+-](?=\s|$)|-(?=-)|\d+(?=[.)](?:\s|$))")
_NOT_IN_WORD = re.compile(r"(?<![^\W_])_|_(?![^\W_])")


def markdown(text: str) -> str:
    """Return text for a paragraph or a table's cell in Markdown, on one line."""
    line = "".join(_MARKDOWN.get(sign, sign) for sign in " ".join(visible(text).split()))
    line = _NOT_IN_WORD.sub(r"\\_", line).replace("://", r"\://")  # a bare address would be a link
    line = re.sub(r"(?i)\bwww\.", r"www\\.", line)
    if begin := _BEGINS_BLOCK.match(line):
        end = begin.end()
        line = f"{line[:end]}\\{line[end:]}" if line[0].isdigit() else f"\\{line}"
    return line


def markdown_code(text: str) -> str:
    """Return text as code in Markdown; plain where a code span could not hold it."""
    return f"`{text}`" if re.fullmatch(r"[\w.,:;/@+=() -]+", text, re.ASCII) else markdown(text)


def csv(text: str) -> str:
    """Return text for a cell of a CSV file; a spreadsheet takes what begins like a formula as text.

    Numbers are not written through this. A number as text stays one.
    """
    shown = visible(text)
    return "'" + shown if re.match(r"\s*[=+\-@＝＋－＠]|[\t\n]", shown) and not _is_number(shown) else shown


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII) is not None


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
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "–": "--",
    "…": r"\dots{}",
}


def latex(text: str) -> str:
    """Return text for a cell or caption in LaTeX with the package fontenc (T1), on one line."""
    parts = re.split("(?<=-)(?=-)|(?<=')(?=')", " ".join(visible(text).split()))  # neighbours would become one sign
    line = "{}".join("".join(_LATEX.get(letter, letter) for letter in part) for part in parts)
    return "{}" + line if line.startswith(("[", "*")) else line  # after a line's end they would be its options


def file_name(text: str) -> str:
    """Return text as part of a file's name, of a label in LaTeX, of an identity in HTML."""
    return re.sub(r"[^A-Za-z0-9_.,+=@-]", "_", text)[:100]
