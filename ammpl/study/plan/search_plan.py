"""What a search runs next, what it makes of each result, and when it ends."""

from __future__ import annotations

import json
import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial

from ammpl.config import Scalar, SeedConfig, TrialConfig
from ammpl.errors import UserError
from ammpl.study.plan.base_plan import BasePlan, Running
from ammpl.study.plan.extension import draw_alike, known_trial, version_seed
from ammpl.study.plan.optuna_search import OptunaSearch
from ammpl.study.space.search_space import SearchSpace
from ammpl.study.space.space_file import StudySpace
from ammpl.study.trial import Observer, Outcome, Phase, State, Trial


@dataclass(frozen=True)
class _Record:
    """What is known of a configuration that ran in the search: a trial is a pure function of it."""

    key: str
    curve: list[tuple[int, Mapping[str, float]]]
    outcome: Outcome


class Plan(BasePlan):
    """Search, then confirmation on fresh repeats, then one look at the test split.

    At any number of trials at a time the order of asking is fixed; with one at a time the whole study is.

    Args:
        space: what to search.
        study_name: of the Optuna study; it decides numbers (Hyperband hashes it), so it belongs to a rerun.
        folder: the study folder; a test trial loads what its confirmation left under it.
        observer: is told of every trial in order.
        clock: seconds since the study began; None counts from now.

    Attributes:
        winner: after confirmation, the candidate with the best mean; None if there is none.
        searches: Optuna's studies, one for each space that the study has had.
        search: the last of them.
        knowledge: of each space but the first: the version that it began, how many of the configurations before that
            it can give, and how many there were.
    """

    def __init__(
        self,
        space: SearchSpace,
        study_name: str,
        folder: Path,
        observer: Observer,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(space.objective.metric, space.objective.direction, folder, observer, space.budget, clock)
        self.second = space.second_objective.metric if space.second_objective else None
        self.space = space
        self.searches = [OptunaSearch(study_name, space.directions, space.sampler, space.pruner, seed=space.seed)]
        self.knowledge: list[tuple[int, int, int]] = []
        self._name = study_name
        if space.first:
            self.search.study.enqueue_trial(space.first)
        self.winner: str | None = None
        self._size = space.search_size
        self._asked = 0  # configurations drawn
        self._outside: set[int] = set()  # numbers of those that the present space cannot give
        self._before: Counter[Phase] = Counter()  # trials of its configurations in earlier versions
        self._several = len(space.repeats) > 1
        self._values: dict[int, list[float]] = {}  # of the configurations that are open, by number: a value a repeat
        self._second: dict[int, list[float]] = {}  # the same of the second objective, if there is one
        self._ran: set[int] = set()  # numbers of configurations that did not come from records alone
        self._due: deque[tuple[int, Mapping[str, Scalar]]] = deque()  # configurations whose next repeat may begin
        self._complete: list[tuple[Trial, float]] = []  # the search's whole configurations, with their objective
        self._records: dict[str, _Record] = {}  # of the search, by the configuration's sha256

    @property
    def search(self) -> OptunaSearch:
        """What draws now."""
        return self.searches[-1]

    def check_extension(self, space: StudySpace) -> None:
        """Raise UserError unless a later version can begin where this one stands, and has something to search."""
        assert isinstance(space, SearchSpace)
        if self._values and not draw_alike(space, self.space):
            fix = "go on with it (tune.py resume), and let it end or stop it (tune.py stop) first"
            raise UserError("--space", "cannot change while configurations of the search have not ended", fix=fix)
        size = self._size_of(space, [found for found in self._known(space).values() if found])
        if size is not None and size <= self._asked:
            rule = f"leaves nothing to search: all {size} configurations of the space have been tried"
            raise UserError("extend", rule, fix="widen the space, with --space")
        self._check_budget(space.budget, self._asked)

    def extend(self, space: StudySpace) -> None:
        """Begin a later version of the study, with a larger budget or another space.

        With the same space the search goes on as if it had had that budget from the start. With another one it is a
        new Optuna study that begins with those trials that the space can give; others are no candidates any more. The
        best are confirmed on the same fresh repeats; what has been confirmed or tested is not run again.
        """
        assert isinstance(space, SearchSpace)
        known = self._known(space)
        fitting = [found for found in known.values() if found]
        self._size = self._size_of(space, fitting)
        if not draw_alike(space, self.space):
            self._outside = {number for number, found in known.items() if not found}
            self.knowledge.append((self.version + 1, len(fitting), self._asked))
            self.searches.append(
                OptunaSearch(
                    f"{self._name}-{self.version + 1}",
                    space.directions,
                    space.sampler,
                    space.pruner,
                    seed=version_seed(space.seed, self.version + 1),
                    known=fitting,
                    first=self._asked,
                )
            )
            if space.first:
                self.search.study.enqueue_trial(space.first)
        self._before = Counter(t.phase for t in (*(t for t, _ in self.finished), *self.running) if t.params)
        self.space = space
        self.winner = None
        self._extend(space.budget)

    @property
    def _look(self) -> object:
        """One for each winner: the rest of a look that an extension came between is no other."""
        return self.winner

    def _known(self, space: SearchSpace) -> dict[int, FrozenTrial | None]:
        """Return each configuration of the search as a trial of another space, by number; None if it is none of it."""
        trials = {trial.number: trial for trial, _ in self.finished if trial.number is not None}
        return {
            number: known_trial(space, trials[number], told)
            for search in self.searches
            for number, told in search.own
            if number in trials and number not in self._values
        }

    def _size_of(self, space: SearchSpace, known: Sequence[FrozenTrial]) -> int | None:
        """Return how many configurations the search has drawn once a later version has ended, None without limit."""
        if draw_alike(space, self.space):
            return space.search_size
        trials, count = space.budget.trials, len({json.dumps(trial.params) for trial in known})
        left = None if trials is None else trials - self._asked + count
        size = space.model_copy(update={"budget": space.budget.model_copy(update={"trials": left})}).search_size
        return None if size is None else size - count + self._asked

    @property
    def totals(self) -> dict[Phase, int | None]:
        """How many trials each phase has at most; None where only time ends it."""
        search = None if self._size is None else self._size * len(self.space.repeats)
        confirm = self.space.confirm
        if confirm is None:
            return {"search": search, "confirm": 0, "test": 0}
        candidates = confirm.top if self._size is None else min(confirm.top, self._size)
        before = self._before  # of other candidates, in earlier versions
        return {
            "search": search,
            "confirm": (candidates + len(confirm.baselines)) * confirm.repeats + before["confirm"],
            "test": (1 + len(confirm.baselines)) * confirm.repeats + before["test"],
        }

    def _prunes(self, trial: Trial, step: int, value: float) -> bool:
        if trial.number is None or self._several or self.space.second_objective is not None:
            return False
        return self.search.report(trial.number, step, value)

    def _completed(self, trial: Trial, value: float) -> State:
        if trial.number is None or not self._several:
            return State.COMPLETE
        return self._repeat_ended(trial.number, value)

    def _learn(self, running: Running, outcome: Outcome) -> None:
        trial = running.trial
        if trial.number is not None:
            self._tell(trial, outcome)
            if running.counts and outcome.duplicate_of is None:
                self._keep(_Record(trial.key, running.curve, outcome), trial.config.sha256)

    def _repeat_ended(self, number: int, value: float) -> State:
        """Take the value of a repeat that ran to its end; return PRUNED if the pruner stops its configuration there.

        After the last repeat there is nothing left to stop.
        """
        values = self._values[number]
        values.append(value)
        if self.space.second_objective is not None:  # nothing is pruned
            return State.COMPLETE
        stop = self.search.report(number, len(values) - 1, value)
        return State.PRUNED if stop and len(values) < len(self.space.repeats) else State.COMPLETE

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        """Tell Optuna of a configuration that has ended; one that has repeats left waits for them."""
        assert trial.number is not None
        values, value = self._values[trial.number], outcome.value
        if outcome.duplicate_of is None:
            self._ran.add(trial.number)
        if self.space.second_objective is not None and outcome.state is State.COMPLETE:
            self._second.setdefault(trial.number, []).append(outcome.metrics[self.space.second_objective.metric])
        if self._several and outcome.state in (State.COMPLETE, State.PRUNED):
            if outcome.state is State.COMPLETE and len(values) < len(self.space.repeats):
                self._due.append((trial.number, trial.params))
                if self._ending is not None:
                    self._abandon(self._ending)
                return
            value = statistics.fmean(values)
        del self._values[trial.number]
        counted = value if outcome.state is State.COMPLETE else None
        if counted is not None:
            self._complete.append((trial, counted))
        if outcome.state is not State.LOST:
            self._spending.configuration_ended(trial.candidate, counted)
        duplicate_of = None if trial.number in self._ran else outcome.duplicate_of
        told = {"reason": outcome.reason, "duplicate_of": duplicate_of}
        seconds = self._second.pop(trial.number, None)
        second = statistics.fmean(seconds) if seconds else None
        self.search.tell(trial.number, outcome.state, value, second, learn=self._several, **told)

    def _abandon(self, reason: str) -> None:
        """Tell Optuna that configurations between two repeats are LOST."""
        while self._due:
            number, _ = self._due.popleft()
            del self._values[number]
            self.search.tell(number, State.LOST, None, reason=reason)

    def _end(self, reason: str) -> None:
        super()._end(reason)
        self._abandon(reason)

    def best(self, count: int) -> list[tuple[Trial, float]]:
        """Return the best different configurations of the present space with their objective, the best first.

        With several repeats the objective is the mean of their last values, and the trial is the last repeat's.
        """
        inside = [pair for pair in self._complete if pair[0].number not in self._outside]
        ranked = sorted(inside, key=lambda pair: (self._cost(pair[1]), pair[0].number))
        first = {trial.config.sha256: trial.key for trial, _ in reversed(ranked)}
        return [(trial, value) for trial, value in ranked if first[trial.config.sha256] == trial.key][:count]

    def _trials(self) -> Iterator[Trial | None]:
        yield from self._search_trials()
        if self.space.confirm is None:
            yield from self._wait("search")
            return
        repeats = self.space.fresh_repeats()
        # Baselines do not depend on the search, so they fill the slots that its last trials leave idle.
        for method in self.space.confirm.baselines:
            for repeat in repeats:
                yield from self._due_repeats()
                if (key := f"confirm-{method}-r{repeat}") not in self._begun:
                    config = self.space.baseline(method, repeat)
                    yield Trial(key, "confirm", method, None, repeat, config)
        yield from self._wait("search")
        for trial, _ in self.best(self.space.confirm.top):
            for repeat in repeats:
                if (key := f"confirm-{trial.number:04d}-r{repeat}") not in self._begun:
                    seeds = SeedConfig.of_repeat(self.space.seed, repeat)
                    config = trial.config.model_copy(update={"seeds": seeds})
                    yield Trial(key, "confirm", trial.candidate, None, repeat, config, trial.params)
        yield from self._wait("confirm")
        # With those that were confirmed in earlier versions: the more is known, the better.
        confirmed = {trial.candidate for trial, _ in self.finished if trial.phase == "confirm"}
        ranked = [trial.candidate for trial, _ in self.best(len(self._complete))]
        self.winner = self._confirmed_best([candidate for candidate in ranked if candidate in confirmed])
        for candidate in filter(None, (self.winner, *self.space.confirm.baselines)):
            trained = self.outcomes("confirm", candidate)
            tests = [self._test(trial) for trial, outcome in trained if outcome.state is State.COMPLETE]
            yield from (test for test in tests if test.key not in self._begun)
        yield from self._wait("test")

    def _keep(self, record: _Record, sha256: str) -> None:
        """Keep the record of a configuration, unless there is one already that goes further."""
        known = self._records.get(sha256)
        lost = record.outcome.state is State.LOST  # says nothing about the configuration
        if not lost and (known is None or len(record.curve) > len(known.curve)):
            self._records[sha256] = record

    def _answer(self, trial: Trial) -> bool:
        """Answer a trial from the record of its configuration, if there is one; return whether that sufficed.

        The pruner is asked at every step, as if the trial ran: what it let pass then it may stop now. A record that it
        had cut short may not suffice now; the trial then runs, and its steps that were told are not told again.
        """
        record = self._records.get(trial.config.sha256)
        if record is None:
            return False
        whole = record.outcome.state is State.COMPLETE or (self._several and record.outcome.state is State.PRUNED)
        self._start(trial)
        stopped = any(self.report(trial, step, metrics) for step, metrics in record.curve)
        if stopped or whole:
            self.finish(trial, 0.0, duplicate_of=record.key)
        elif record.outcome.state is State.FAILED:
            self.finish(trial, 0.0, state=State.FAILED, reason=record.outcome.reason, duplicate_of=record.key)
        else:
            return False
        return True

    def _search_trials(self) -> Iterator[Trial]:
        repeat = self.space.repeats[0]
        while True:
            yield from self._due_repeats()
            if self._asked == self._size or self._ending is not None or self._is_used_up(self._asked):
                return
            self._asked += 1
            number, params = self.search.ask(self.space.suggest)
            self._values[number] = []
            try:
                config = self.space.config(params, repeat)
            except UserError as error:  # values that contradict each other only in this combination
                trial = self._search_trial(number, params, repeat, self.space.config({}, repeat))
                self._start(trial)
                self._running[trial.key].counts = False
                self.finish(trial, state=State.FAILED, reason=str(error))
                continue
            trial = self._search_trial(number, params, repeat, config)
            if not self._answer(trial):
                yield trial

    def _due_repeats(self) -> Iterator[Trial]:
        """Yield the next repeat of each configuration that waits for it."""
        while self._due and self._ending is None:
            number, params = self._due.popleft()
            repeat = self.space.repeats[len(self._values[number])]
            trial = self._search_trial(number, params, repeat, self.space.config(params, repeat))
            if not self._answer(trial):
                yield trial

    def _search_trial(self, number: int, params: Mapping[str, Scalar], repeat: int, config: TrialConfig) -> Trial:
        key = f"search-{number:04d}" + (f"-r{repeat}" if self._several else "")
        return Trial(key, "search", str(number), number, repeat, config, params)

    def _wait(self, phase: Phase) -> Iterator[Trial | None]:
        yield from self._due_repeats()
        for pause in super()._wait(phase):
            yield pause
            yield from self._due_repeats()

    def _confirmed_best(self, candidates: list[str]) -> str | None:
        """Return the candidate with the best mean over its repeats; one with failed repeats only if all have some."""
        means: list[tuple[int, float, int, str]] = []
        for rank, candidate in enumerate(candidates):
            values = [o.value for _, o in self.outcomes("confirm", candidate) if o.state is State.COMPLETE]
            known = [value for value in values if value is not None]
            if known:
                means.append((-len(known), self._cost(statistics.fmean(known)), rank, candidate))
        return min(means)[-1] if means else None

    def _cost(self, value: float) -> float:
        """Return the value so that less is better."""
        return -value if self.space.objective.direction == "maximize" else value
