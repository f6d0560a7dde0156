"""Kill a study's driver at random points, resume it, and compare it with the study that nobody killed.

    python -m tests.campaigns.kill_driver --points 50 --trials 30

Real drivers, Ray and MLflow on SQLite; training is made up and takes no time. Prints a table; exit code 1 if anything
was lost, came twice, or came out otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mlflow.tracking import MlflowClient

from tests.integration.test_resume import check_mlflow, driver, kill_after, outcome


def repeated(folder: Path) -> tuple[int, int]:
    """Return how many trials began or ended twice in the log, and how many steps were recorded twice."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    trials = Counter((e["event"], e["key"]) for e in events if e["event"] in ("started", "finished"))
    steps = Counter((e["key"], e["step"]) for e in events if e["event"] == "reported")
    return sum(n - 1 for n in trials.values()), sum(n - 1 for n in steps.values())


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=50, help="how many kills (default: 50)")
    parser.add_argument("--trials", type=int, default=30, help="of the study's search (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the points (default: 0)")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no kill after so long (default: no limit)")
    arguments = parser.parse_args()
    chance, began, bad = random.Random(arguments.seed), time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="ammpl-campaign-") as name:
        root = Path(name)
        whole = root / "whole"
        process = driver("run", whole, "", arguments.trials)
        said = process.communicate()[0]
        assert process.returncode == 0, said
        expected = outcome(whole)
        MlflowClient(f"sqlite:///{root}/empty.db").search_experiments()
        print("| killed after event | lost trials | trials twice | steps twice | same as whole | MLflow | resume, s |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for number in range(arguments.points):
            if time.monotonic() - began > 60 * arguments.minutes:
                break
            point = chance.randint(1, len(expected["events"]))
            here = root / str(number)
            here.mkdir()
            shutil.copy(root / "empty.db", here / "mlflow.db")
            folder, uri = here / "study", f"sqlite:///{here}/mlflow.db"
            killed = kill_after(driver("run", folder, uri, arguments.trials), folder, point)
            since = time.monotonic()
            process = driver("resume", folder, uri, arguments.trials)
            said = process.communicate()[0]
            seconds = time.monotonic() - since
            if process.returncode:
                print(said, file=sys.stderr)
                bad += 1
                continue
            found = outcome(folder)
            keys = {row["key"] for row in found["trials"]}
            lost = len({row["key"] for row in expected["trials"]} - keys)
            trials, steps = repeated(folder)
            try:
                check_mlflow(uri, folder)
                mlflow = "each once"
            except AssertionError as error:
                mlflow = f"differs: {error}"
            same = found == expected
            bad += bool(lost or trials or steps or not same or mlflow != "each once")
            when = str(point) if killed else f"{point} (had ended)"
            print(f"| {when} | {lost} | {trials} | {steps} | {'yes' if same else 'NO'} | {mlflow} | {seconds:.1f} |")
            sys.stdout.flush()
            shutil.rmtree(here)
    print(f"\n{bad} of the kills left something to mend")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
