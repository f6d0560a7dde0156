"""Dependencies point one way: report -> study -> training -> model, data -> config. Imports in functions count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ammpl"

# What each part of the package may import from the others, besides errors and redaction, which are everybody's.
MAY_IMPORT: dict[str, set[str]] = {
    "redaction": set(),
    "errors": {"redaction"},
    "escaping": set(),
    "yaml_file": set(),
    "config": set(),
    "model": {"config"},
    "data": {"config", "yaml_file"},
    "training": {"model", "data", "config"},
    "study": {"escaping", "training", "model", "data", "config", "yaml_file"},
    "report": {"escaping", "study", "training", "model", "data", "config"},
    "pretrain": {"model", "data", "config"},  # a tool beside the studies: makes the embedded backbone
    "before": {"study", "model", "data", "config"},
    "api": {"escaping", "report", "study", "training", "model", "data", "config", "yaml_file"},
    "commands": {"escaping", "before", "api", "report", "study", "training", "model", "data", "config", "yaml_file"},
    "cli": {"commands"},
}

# The rooms of a study, each using those before it only; the modules beside them use all.
NOUNS = ("trial", "addresses", "reachable")
ROOMS = ("space", "record", "plan", "result", "views", "engine")

# What people call from Python; nothing inside imports from it. It is above the package that it names.
FACE = PACKAGE / "study" / "__init__.py"

# One trial is a pure function of its configuration: it knows nothing of what schedules, samples, tracks or keeps it.
MAY_NOT_IMPORT: dict[str, set[str]] = {
    "model": {"ray", "optuna", "mlflow", "pyarrow", "rich"},
    "training": {"ray", "optuna", "mlflow", "rich"},
    "data": {"ray", "optuna", "mlflow", "rich"},
}


HEAVY = {"torch", "open_clip", "ray", "mlflow", "matplotlib", "sklearn", "scipy", "pandas"}


def parts() -> list[str]:
    found = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/*.py")}
    return sorted(found - {"__init__"})


def imports(part: str) -> Iterator[tuple[str, str]]:
    """Yield (file and line, imported module) of a part of the package."""
    folder = PACKAGE / part
    for path in sorted(set(folder.rglob("*.py")) - {FACE}) if folder.is_dir() else [PACKAGE / f"{part}.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                yield from ((where, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{where}: imports are absolute here"
                module = node.module or ""
                if module == "ammpl":
                    yield from ((where, f"ammpl.{alias.name}") for alias in node.names)
                else:
                    yield where, module


def test_files_can_be_read_at_a_sitting() -> None:
    sources = [path for root in ("ammpl", "tests", "docs") for path in (PACKAGE.parent / root).rglob("*.py")]
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    assert {path: lines for path, lines in lengths.items() if lines > 450} == {}


def test_every_part_has_its_place() -> None:
    assert set(parts()) <= MAY_IMPORT.keys()


@pytest.mark.parametrize("part", parts())
def test_dependencies_point_one_way(part: str) -> None:
    allowed = MAY_IMPORT[part] | {part, "errors", "redaction"}
    wrong = [
        f"{where} imports {module}"
        for where, module in imports(part)
        if module.startswith("ammpl.") and module.split(".")[1] in MAY_IMPORT.keys() - allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("room", [*NOUNS, *ROOMS])
def test_rooms_of_a_study_use_those_before_them(room: str) -> None:
    allowed = set(NOUNS) | ({room, *ROOMS[: ROOMS.index(room)]} if room in ROOMS else set())
    wrong = [
        f"{where} imports {module}"
        for where, module in imports(f"study/{room}")
        if module.startswith("ammpl.study") and [*module.split("."), ""][2] not in allowed
    ]
    assert wrong == []


def test_every_room_has_its_place() -> None:
    assert {path.parent.name for path in PACKAGE.glob("study/*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("part", MAY_NOT_IMPORT)
def test_a_trial_knows_nothing_of_the_study_around_it(part: str) -> None:
    wrong = [
        f"{where} imports {module}" for where, module in imports(part) if module.split(".")[0] in MAY_NOT_IMPORT[part]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("process", "code", "needless"),
    [
        ("--help", "import sys; from ammpl.cli import main; main(['--help'])", HEAVY),
        ("status", "from ammpl.study.status import status", HEAVY),
        ("driver", "import ammpl.study.study", {"torch", "open_clip", "mlflow", "matplotlib", "sklearn"}),
        ("worker", "import ammpl.study.engine.ray_worker", HEAVY - {"ray", "pandas"} | {"optuna"}),
        (
            "trials",
            "import ammpl.study.engine.worker, ammpl.training.run",
            HEAVY - {"torch", "open_clip"} | {"optuna"},
        ),
        ("warm", "import ammpl.study.engine.warm_process", HEAVY | {"optuna"}),
        ("MLflow's writer", "import ammpl.study.views.mlflow_writer", HEAVY),
        ("Optuna's writer", "import ammpl.study.views.optuna_writer", HEAVY),
    ],
)
def test_a_process_imports_what_it_needs(process: str, code: str, needless: set[str]) -> None:
    """Seconds of imports belong to the processes that need them, and to the moment when they do."""
    quiet = "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):"
    program = f"import contextlib, io, sys\n{quiet}\n    {code}\nprint(*{needless!r} & sys.modules.keys())"
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == []
