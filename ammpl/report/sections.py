"""The parts of a report on one study, in the order in which a reviewer asks for them."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping

import optuna

from ammpl.report import comparison_figures, search_figures
from ammpl.report.comparisons import (
    BASE_AND_NEW,
    FEWEST_DATA_SETS,
    answer,
    base_and_new,
    by_data_set_table,
    data_sets_table,
    differences,
    differences_table,
    front_table,
    harmonic_table,
    means_table,
    rank_rows,
    remarks,
    trade_off,
)
from ammpl.report.masks import distances, pictures
from ammpl.report.page import Answer, Block, Code, Section, Text
from ammpl.report.published import about, published_tables
from ammpl.report.record import cost_table, environment_table, settings_table
from ammpl.report.results import StudyResult, TrialResult
from ammpl.report.signatures import signatures_table
from ammpl.report.statistics import rank
from ammpl.study.result.labels import params_text
from ammpl.study.space.ablation_space import AblationSpace
from ammpl.study.space.search_space import Objective, SearchSpace
from ammpl.study.trial import State

FEWEST_FOR_IMPORTANCE = 4
MOST_CURVES = 300


def study_sections(study: StudyResult) -> list[Section]:
    """Return the sections of a study; one without anything to say has no blocks."""
    return [
        Section("Answer", _answer(study)),
        Section("Results", _results(study)),
        Section("Search", _search(study)),
        Section("Masks", [*pictures(study), *distances(study)]),
        Section("Failure signatures", [signatures_table(study)]),
        Section("Published numbers", _published(study)),
        Section("Cost", [cost_table(study)]),
        Section("Environment and rerun", _rerun(study)),
        Section("Settings", [settings_table(study)], folded=True),
    ]


def _answer(study: StudyResult) -> list[Block]:
    question = study.space.description or f"A study of {study.space.method} without a description."
    return [
        Text(question, "question"),
        Answer(answer(study)),
        *(Text(remark, "warning") for remark in remarks(study)),
        Text(_facts(study), "facts"),
    ]


def _facts(study: StudyResult) -> str:
    counts = Counter(trial.phase for trial in study.trials)
    trials = ", ".join(f"{count} {phase}" for phase, count in counts.items())
    first = study.trials[0].config if study.trials else {}
    shown = f"{first.get('data.validation_shots')} validation images a class to choose by"
    openings = {0: "not opened", 1: "opened once", 2: "opened twice"}
    opened = openings.get(study.test_openings, f"opened {study.test_openings} times")
    kind = "an ablation" if isinstance(study.space, AblationSpace) else "a search"
    where = f"{', '.join(study.data_sets)} with {first.get('backbone.name')}"
    return f"{kind.capitalize()} on {where}. Trials: {trials}. Test split {opened}; {shown}."


def _results(study: StudyResult) -> list[Block]:
    blocks: list[Block | None] = []
    for metric in study.metrics:
        for shots in study.shots:
            if means_table(study, metric, shots) is None:
                continue
            at = f"{metric.replace('/', '-')}-{shots}shots"
            is_main = metric == study.main_metric
            blocks.append(means_table(study, metric, shots))
            if is_main:
                blocks += _forests(study, metric, shots)
            blocks.append(differences_table(study, metric, shots))
            blocks.append(by_data_set_table(study, metric, shots))
            if is_main and len(study.data_sets) == 1 and any(len(row.values(metric, shots)) > 1 for row in study.rows):
                blocks.append(comparison_figures.repeats(f"repeats-{at}", metric, study.rows, shots))
            if is_main:
                blocks.append(data_sets_table(study, metric, shots))
                if (ranks := rank(rank_rows(study, metric, shots))) is not None:
                    blocks.append(comparison_figures.critical_difference(f"ranks-{at}", metric, ranks))
        if metric == study.main_metric and len(study.shots) > 1:
            blocks.append(comparison_figures.by_shots("shots", metric, study.rows, study.shots))
    for shots in study.shots:
        if (found_pair := base_and_new(study, shots)) is not None:
            split, base, new = found_pair
            name = f"base-new-{split}-{shots}shots"
            blocks.append(comparison_figures.base_and_new(name, study.rows, base, new))
            blocks.append(harmonic_table(study, shots))
    return [block for block in blocks if block is not None]


def _forests(study: StudyResult, metric: str, shots: int) -> list[Block]:
    """Return differences drawn over all data sets, where they are the sample, else on each."""
    labels = {row.candidate: row.label for row in study.rows}
    smallest = study.space.smallest_effect if isinstance(study.space, AblationSpace) else None
    several = 1 < len(study.data_sets) < FEWEST_DATA_SETS
    figures: list[Block] = []
    for data_set in study.data_sets if several else [None]:
        if found := differences(study, metric, shots, data_set):
            reference = labels[str(study.reference)].partition(" (")[0]
            at = f"{metric.replace('/', '-')}-{shots}shots" + (f"-{data_set}" if data_set else "")
            shown = f"{metric} on {data_set}" if data_set else metric
            name, way = f"forest-{at.replace('/', '_')}", study.direction
            figures.append(comparison_figures.forest(name, shown, labels, reference, found, smallest, way))
    return figures


def _search(study: StudyResult) -> list[Block]:
    if isinstance(study.space, AblationSpace):
        return []
    metric, parameters = study.space.objective.metric, study.space.parameters
    searched = [t for t in study.searched if t.value is not None and math.isfinite(t.value)]
    complete = [trial for trial in searched if trial.state is State.COMPLETE]
    if not searched:
        return []
    blocks: list[Block] = [search_figures.history(metric, searched, study.direction), *_trade_off(study, complete)]
    weights = importances(study)
    if weights:
        blocks.append(search_figures.importance(weights, len(complete)))
    trained = study.of_phase("search")[:MOST_CURVES]
    several = len(study.space.repeats) > 1
    if any(len(trial.curve) > 1 for trial in trained):
        blocks.append(search_figures.curves(metric, trained, several=several))
    if len(complete) > 1:
        metrics = [objective.metric for objective in study.objectives]
        blocks.append(search_figures.parallel(metric, complete, parameters))
        blocks.append(search_figures.slices(metrics, complete, parameters, study.over_repeats))
    return blocks


def _trade_off(study: StudyResult, complete: list[TrialResult]) -> list[Block]:
    """Return both objectives, or base against new accuracy, with the Pareto front; nothing where there is one."""
    objectives = study.objectives
    if len(objectives) == 1:
        objectives = [Objective(metric=metric, direction="maximize") for metric in BASE_AND_NEW[1]]
    first, second = objectives
    points = trade_off(study, complete, first, second)
    if len(points) < 3:
        return []
    front = search_figures.pareto_front(first, second, points)
    return [search_figures.pareto(first, second, points), front_table(first, second, front)]


def importances(study: StudyResult) -> dict[str, Mapping[str, float]]:
    """Return parameters' importance by evaluator, among the present space's trials; empty where that says nothing."""
    assert isinstance(study.space, SearchSpace)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [objective.direction for objective in study.objectives]
    searched = optuna.create_study(directions=directions)
    for trial in study.searched:
        if trial.state is State.COMPLETE and (told := _as_optuna_has_it(study, study.space, trial)):
            searched.add_trial(told)
    complete = searched.get_trials(deepcopy=False)
    if len(complete) < FEWEST_FOR_IMPORTANCE or len({trial.values[0] for trial in complete}) < 2:
        return {}
    evaluators: dict[str, optuna.importance.BaseImportanceEvaluator] = {
        "fANOVA": optuna.importance.FanovaImportanceEvaluator(seed=0),
        "PED-ANOVA": optuna.importance.PedAnovaImportanceEvaluator(),
    }
    first = None if len(directions) == 1 else _first_value
    found: dict[str, Mapping[str, float]] = {}
    for name, evaluator in evaluators.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PED-ANOVA being experimental
            weights = optuna.importance.get_param_importances(searched, evaluator=evaluator, target=first)
        if weights and all(map(math.isfinite, weights.values())):
            found[name] = weights
    return found


def _as_optuna_has_it(study: StudyResult, space: SearchSpace, trial: TrialResult) -> optuna.trial.FrozenTrial | None:
    """Return a configuration as a trial of the study's present space; None if that cannot give it."""
    given = optuna.trial.FixedTrial(dict(trial.config))
    try:
        with warnings.catch_warnings():  # of values out of range, which are refused below
            warnings.simplefilter("ignore")
            params = space.suggest(given)
        values = [float(trial.metrics[objective.metric]) for objective in study.objectives]
        return optuna.trial.create_trial(values=values, params=params, distributions=given.distributions)
    except (ValueError, KeyError):
        return None


def _first_value(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])


def _published(study: StudyResult) -> list[Block]:
    tables = published_tables(study)
    return [Text(about()), *tables] if tables else []


def _rerun(study: StudyResult) -> list[Block]:
    lines = [f"python tune.py rerun {study.folder} --concurrency 1    # everything, then compared trial by trial"]
    winner = next((row for row in study.rows if row.candidate == study.reference and row.tuned), None)
    if winner is not None:
        lines.append("# the winner, as settings of a space file or of --set:")
        lines.append(f"#   {params_text(winner.params)}")
    commit = study.environments[0].get("code", {}).get("commit") if study.environments else None
    if commit:
        lines.insert(0, f"git checkout {commit}")
    return [environment_table(study), Code("\n".join(lines))]
