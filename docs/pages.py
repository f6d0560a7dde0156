"""What the site has beside the pages of this folder, made when it is built: hooks of MkDocs.

- Files of the repository that pages link to are pages of the site, under ``source/``.
- References are made from the code (:mod:`references`), where a page says so.
- Formulas between dollars become MathML, which browsers draw by themselves: nothing is fetched.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import references  # beside this file: MkDocs looks there, too

ROOT = Path(__file__).resolve().parents[1]
CODE = r"(?P<code>^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)$|`[^`\n]+`)"
LINK = re.compile(CODE + r"|(?<=\]\()(?P<target>[^)#\s:]+)(?=[)#])", re.DOTALL | re.MULTILINE)
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?(?:[\w.]+\.)?(\w+)</code>")
MADE = re.compile(r"<!-- made from the code: (\w+) -->")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside this folder that pages link to, and those that these link to in turn."""
    from mkdocs.structure.files import File

    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()] + ["CHANGELOG.md"]
    known = set(waiting)
    while waiting:
        path = waiting.pop()
        text = (ROOT / path).read_text(encoding="utf-8")
        if path.endswith(".md"):
            new = set(linked(path, text)) - known
            known |= new
            waiting += sorted(new)
        else:
            text = f"# {path}\n\n~~~~~~{Path(path).suffix.removeprefix('.')}\n{text}~~~~~~\n"
        if not path.startswith("docs/"):
            files.append(File.generated(config, site_path(path), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put in what is made from the code, and let links lead to where the site has what they name."""
    here = page.file.src_uri
    markdown = MADE.sub(lambda match: getattr(references, match[1])(), markdown)

    def target(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        to = site_path(named(repository_path(here), match["target"]))
        return posixpath.relpath(to, posixpath.dirname(here) or ".")

    return LINK.sub(target, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Draw formulas, and show what docstrings refer to as code."""
    from latex2mathml.converter import convert

    def drawn(match: re.Match[str]) -> str:
        kind = {"span": "inline", "div": "block"}[match[1]]
        return convert(html.unescape(match[2]), display=kind)

    return ROLE.sub(r"<code>\1</code>", FORMULA.sub(drawn, content))


def linked(path: str, text: str) -> Iterator[str]:
    """Yield the repository's files outside ``docs/`` that a page of it links to."""
    for match in LINK.finditer(text):
        if match["target"]:
            to = named(path, match["target"])
            if not to.startswith("docs/") and (ROOT / to).is_file():
                yield to


def named(path: str, target: str) -> str:
    """Return the path in the repository of what a file at ``path`` calls ``target``."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def site_path(path: str) -> str:
    """Return where the site has a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.md"


def repository_path(page: str) -> str:
    """Return which file of the repository a page of the site is."""
    if not page.startswith("source/"):
        return f"docs/{page}"
    path = page.removeprefix("source/")
    return path if (ROOT / path).is_file() else path.removesuffix(".md")
