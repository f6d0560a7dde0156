"""Between Ray Tune's callbacks and the plan: workers made ready, Ray's ids, repetitions, an end on request."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from ammpl.study.engine.carried import read_files, write_files
from ammpl.study.engine.packing import describe, trials_that_fit
from ammpl.study.engine.ray_worker import Parcel, Resources
from ammpl.study.engine.worker import End, Evaluation, Ready
from ammpl.study.plan.ablation_plan import StudyPlan
from ammpl.study.space.budget import duration_text, trials_text
from ammpl.study.trial import OVERDUE, MachineError, State, Trial

RETRIES = 2  # times that a trial whose worker died is run again

OUT_OF_MEMORY = " (with a GPU to itself; a smaller training.batch_size or training.chunk needs less)"

Value = TypeVar("Value")


class Bridge:
    """What Ray's searcher and scheduler ask and tell.

    With ``prepares`` the first workers get no trial at first: they load what all trials need, side by side, and find
    out what only a worker can see. The plan starts when the first of them is ready.

    An exception in a callback would end as an errored Ray trial; it is kept, ends the run, and is raised after it.

    Args:
        start: returns the plan; called once.
        resources: what a trial gets, and how many run at a time.
        folder: the study's.
        prepares: whether workers prepare themselves.
        asked_to_stop: returns whether no more trials are to be handed out; asked where one could be.
        notice: is told what people should know.

    Attributes:
        resources: what trials get that are handed out from now on.
        plan: None until it has started.
        crash: the exception that ended the run.
        stopping: set to end the run.
        gone: set by another thread: why Ray can no longer be asked anything.
        stopped: whether it handed out no more trials because it was asked to stop.
    """

    def __init__(
        self,
        start: Callable[[], StudyPlan],
        resources: Resources,
        folder: Path,
        prepares: bool,
        asked_to_stop: Callable[[], bool] = lambda: False,
        notice: Callable[[str], None] = lambda text: None,
    ):
        self.plan: StudyPlan | None = None
        self.crash: BaseException | None = None
        self.stopping = threading.Event()
        self.gone: MachineError | None = None
        self.stopped = False
        self._asked_to_stop = asked_to_stop
        self._notice = notice
        self._start = start
        self.resources = resources
        self._folder = folder
        self._to_prepare = self._at_a_time if prepares else 0
        self._preparing: set[str] = set()
        self._ready = not prepares
        self._active: dict[str, Trial] = {}
        self._alone: deque[Trial] = deque()  # out of memory on a shared GPU: to have a whole one
        self._with_whole_gpu: set[str] = set()  # Ray trials
        self._without_worker: str | None = None  # one of those that waits for its GPU
        self._lost: deque[Trial] = deque()
        self._losses: dict[str, int] = {}
        self._since: dict[str, float] = {}  # when an active trial's worker took it
        self._overdue: set[str] = set()

    def suggest(self, ray_id: str) -> Any:
        """Return the configuration of a Ray trial, None for later, or Ray's word for the end."""
        return self._safely(lambda: self._suggest(ray_id), Searcher.FINISHED)

    def report(self, ray_id: str, news: Any) -> Any:
        """Take an evaluation; return Ray's word for going on or stopping."""
        return self._safely(lambda: self._report(ray_id, news), TrialScheduler.STOP)

    def complete(self, ray_id: str, news: Any) -> None:
        """Take the end of a Ray trial: it ran out, failed, or was stopped."""
        self._safely(lambda: self._complete(ray_id, news), None)

    def lose(self, ray_id: str) -> None:
        """Take the death of a Ray trial's worker."""
        self._safely(lambda: self._lose(ray_id), None)

    @property
    def waits_for_gpu(self) -> bool:
        """Whether a trial is to have a GPU that others share: idle workers have to leave it."""
        return bool(self._alone) or self._without_worker is not None

    def has_worker(self, ray_id: str) -> bool:
        """Take note that a Ray trial has a worker; return whether that is to be killed, for the trial takes too long.

        It says so once. The worker may never return from a step.
        """
        if ray_id == self._without_worker:
            self._without_worker = None
        limit = None if self.plan is None else self.plan.space.budget.trial_seconds
        if limit is None or ray_id not in self._active or ray_id in self._overdue:
            return False
        if time.monotonic() - self._since.setdefault(ray_id, time.monotonic()) < limit:
            return False
        self._overdue.add(ray_id)
        return True

    def _suggest(self, ray_id: str) -> Any:
        if self.stopping.is_set():
            return Searcher.FINISHED
        if self._without_worker is not None or self._slots_used() >= self._at_a_time:
            return None
        if self._to_prepare:
            self._to_prepare -= 1
            self._preparing.add(ray_id)
            return {"trial": None, "gpus": self.resources.gpus}
        if not self._ready:
            return None
        if self.plan is None:
            self.plan = self._start()
            self._lost.extend(self.plan.running)  # of a study that goes on: they had begun when its driver died
        if self.stopped or self._asked_to_stop():
            self.stopped = True
            return Searcher.FINISHED
        if self._alone:
            return self._suggest_alone(ray_id)
        trial = self._lost.popleft() if self._lost else self.plan.next()
        if not isinstance(trial, Trial):
            return None if trial is None else Searcher.FINISHED
        self._active[ray_id] = trial
        return {"trial": self._parcel(trial), "gpus": self.resources.gpus}

    def _suggest_alone(self, ray_id: str) -> Any:
        """Hand out a trial that is to have a whole GPU once so many others have ended that one can fall empty.

        Until it has its worker nothing else is handed out, so that none begins on the GPU that falls empty.
        """
        if self._slots_used() + self.resources.trials_a_gpu > self.resources.concurrency:
            return None
        trial = self._alone.popleft()
        self._active[ray_id] = trial
        self._with_whole_gpu.add(ray_id)
        self._without_worker = ray_id
        return {"trial": self._parcel(trial), "gpus": 1.0}

    def _parcel(self, trial: Trial) -> Parcel:
        learned = trial.learnables
        return Parcel(
            trial,
            read_files(trial.folder(self._folder)),  # a checkpoint, where it began before
            learned.read_bytes() if learned is not None and learned.is_file() else None,
        )

    def _take_files(self, trial: Trial, news: Evaluation | End) -> list[str]:
        """Write what a trial sent, if its node does not see the study folder; return the names."""
        folder, names = trial.folder(self._folder), list(news.files)
        write_files(folder, news.files)
        news.files.clear()  # Ray keeps what a trial reported last
        return names

    def _slots_used(self) -> int:
        """Return how many trials at a time those that run count as."""
        more = len(self._with_whole_gpu) * (self.resources.trials_a_gpu - 1)
        return len(self._active) + len(self._preparing) + more

    @property
    def _at_a_time(self) -> int:
        """How many trials run at a time: one, as long as it is to be measured."""
        return self.resources.concurrency if self.resources.repack is None else 1

    def _pack(self, ray_id: str, news: Any) -> None:
        """Let trials share GPUs as the first one's first evaluation allows; it keeps its own to its end."""
        assert self.resources.repack is not None
        trials = trials_that_fit(news.memory)
        self.resources = self.resources.repack(trials)
        self._notice(f"{trials_text(trials)} a GPU: {describe(news.memory)}, {news.seconds:.1f} s to step {news.step}")
        if 0 < self.resources.gpus < 1:
            self._with_whole_gpu.add(ray_id)

    def _report(self, ray_id: str, news: Any) -> Any:
        trial = self._active.get(ray_id)
        if trial is not None and self.resources.repack is not None:
            self._pack(ray_id, news)
        sent = self._take_files(trial, news) if trial else []
        stop = trial is None or self._plan.report(trial, news.step, news.metrics, news.seconds)
        if trial and stop and sent:  # nobody will go on from its checkpoint
            write_files(trial.folder(self._folder), dict.fromkeys(sent))
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

    def _complete(self, ray_id: str, news: Any) -> None:
        if ray_id in self._preparing:
            self._preparing.remove(ray_id)
            if isinstance(news, Ready) and news.error is not None:
                raise news.error
            self._ready = True
            return
        trial, gpus = self._take(ray_id)
        if trial is None:
            return
        if isinstance(news, End):
            self._take_files(trial, news)
        if not isinstance(news, End) or news.failure is None:
            self._plan.finish(trial, news.seconds, gpus=gpus)
        elif news.out_of_memory and 0 < gpus < 1:
            self._alone.append(trial)
        elif news.machine:  # on another node it may run
            if self._count_loss(trial.key) > RETRIES:
                raise MachineError(f"{trial.key} ended {RETRIES + 1} times by {news.failure}")
            self._lost.append(trial)
        else:
            reason = news.failure + (OUT_OF_MEMORY if news.out_of_memory else "")
            self._plan.finish(trial, news.seconds, state=State.FAILED, reason=reason, gpus=gpus)

    def _lose(self, ray_id: str) -> None:
        if ray_id in self._preparing:
            self._preparing.remove(ray_id)
            if self._count_loss("") > RETRIES:
                raise RuntimeError("workers die while they load backbone and data; is there enough memory?")
            self._to_prepare += not self._ready
            return
        overdue = ray_id in self._overdue
        alone = ray_id in self._with_whole_gpu
        trial, gpus = self._take(ray_id)
        if trial is None:
            return
        if overdue:
            limit = self._plan.space.budget.trial_seconds or 0.0
            reason = f"did not end within its time of {duration_text(limit)} {OVERDUE}"
            self._plan.finish(trial, limit, state=State.FAILED, reason=reason, gpus=gpus)
            return
        losses = self._count_loss(trial.key)
        if losses <= RETRIES:
            (self._alone if alone else self._lost).append(trial)
        else:
            reason = f"its worker process died {losses} times"
            self._plan.finish(trial, state=State.LOST, reason=reason, gpus=gpus)

    def _take(self, ray_id: str) -> tuple[Trial | None, float]:
        """Return the trial of a Ray trial that has ended, and the GPUs that it held.

        None if there is none, or the study is ending.
        """
        self._since.pop(ray_id, None)
        self._overdue.discard(ray_id)
        if ray_id == self._without_worker:
            self._without_worker = None
        gpus = 1.0 if ray_id in self._with_whole_gpu else self.resources.gpus
        self._with_whole_gpu.discard(ray_id)
        trial = self._active.pop(ray_id, None)
        return None if self.stopping.is_set() else trial, gpus

    def _count_loss(self, key: str) -> int:
        self._losses[key] = self._losses.get(key, 0) + 1
        return self._losses[key]

    @property
    def _plan(self) -> StudyPlan:
        assert self.plan is not None, "trials come from the plan"
        return self.plan

    def _safely(self, act: Callable[[], Value], otherwise: Value) -> Value:
        if self.crash is not None:
            return otherwise
        try:
            return act()
        except BaseException as error:
            self.crash = error
            self.stopping.set()
            return otherwise
