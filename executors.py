"""Run work on threads, on processes, and on every machine you can `ssh` into, through `concurrent.futures.Executor`.

    import executors

    def simulate(seed):
        ...

    with executors.RemoteExecutor(["8/me@bigbox", "4/lab2", ":"]) as pool:      # ':' is this machine, without ssh
        for result in pool.map(simulate, range(1000)):
            print(result)

A worker needs Python of this minor version, a login by key, and nothing else. How a call travels:

     caller ── submit ──► pickle ──► Bundle                                     worker machine
                                       │                                   ┌──────────────────────────┐
                                ┌──────▼──────┐   launch    ┌──────┐  ssh  │ shim ──► slot (child)    │
     heartbeat ── tick ────────►│  Scheduler  ├────────────►│ Link ├──────►│  │  ◄── run, pickle      │
                                │ (pure state)│◄────────────┤      │◄──────┤  └──► slot (child)       │
                                └──────┬──────┘   outcome   └──────┘       └──────────────────────────┘
                                    settle
                                       ▼
                                    Future

Every thread enters through one door: it takes the supervisor's lock, lets the scheduler decide, releases the lock, and only
then performs the actions that were decided: launch, kill, recall, settle, connect, finish.

    thread              waits for                        enters the door to
    the callers'        room in nothing; results         submit, cancel, shut down
    one reader a link   its machine's frames             finish attempts, report its machine up or down
    one writer a link   room in its machine's pipe       (never: it writes what did not go at once)
    one heartbeat       the clock; the main thread       find stragglers and time-outs, connect, give up; and whatever the
                                                         main thread wants, which Ctrl-C might interrupt half-way
    one scoreboard      something to print; a terminal   (never)

    state                                        who writes it          guarded by
    queues, attempts, workers, quarantine        _Scheduler             the supervisor's one lock
    outbox, functions known to a machine         its _Link              the link's own
    a future                                     who performs its settle, once, or the base class's own condition

An execution is *at least once*: a bundle is retried if its machine is lost, and raced by a backup if it straggles. With
`schedule_backups=False, max_bundle_failures=1` it starts at most once unless its machine is lost. Pickles run code, in both
directions: connect only to machines you trust. Logs are under the logger `executors`.
"""

from __future__ import annotations

import _thread
import atexit
import base64
import concurrent.futures
import concurrent.futures.process
import concurrent.futures.thread
import dataclasses
import enum
import functools
import hashlib
import importlib.util
import itertools
import json
import logging
import math
import multiprocessing
import multiprocessing.context
import os
import pickle
import random
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import types
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from queue import Empty, Queue, SimpleQueue
from typing import Any, ClassVar, NamedTuple, TypeVar

import remote_worker as wire

__all__ = [
    "BaseExecutor", "BundleError", "BundleTimeoutError", "DefaultExecutors", "ExecutorError", "Histogram", "Method",
    "NoWorkersError", "PoolExecutor", "ProcessExecutor", "RemoteExecutor", "RemoteExecutorStatus", "RemoteWorkerRecord",
    "RemoteWorkerSelectionPolicy", "RoundRobinRemoteWorkerSelectionPolicy", "ThreadExecutor",
    "WeightedRandomRemoteWorkerSelectionPolicy", "WorkerStatus", "parallelize", "wait_all",
]

SSH, SCP = "/usr/bin/ssh", "/usr/bin/scp"
TICK_SECONDS = 0.25             # between two looks at the clock: what "at once" means for stragglers and time-outs
MISSED_BEATS = 3                # unanswered pings after which a link is lost
LEASE_BEATS = 12                # heartbeats a shim lives on without hearing from us
HELLO_SECONDS = 30.0            # from starting ssh to the shim's greeting, login files included
CLOSE_SECONDS = 3.0             # for ssh to end after its input was closed
HANDSHAKES = 8                  # at once; sshd's MaxStartups (10:30:100) refuses crowds
QUARANTINE_SECONDS = 1.0, 60.0  # after the first failure; at most
GIVE_UP_SECONDS = 60.0          # without any worker, however transient the causes
AHEAD_SECONDS = 0.002           # of work kept in front of each slot when bundles are shorter than that
AHEAD_DEPTH = 128               # bundles kept in front of each slot, at most
KNOWN_FUNCTIONS = 256, 1 << 29  # that a machine keeps for us: number, bytes
BACKUP_AGE = 0.5, 1.5           # a straggler is older than this many seconds, and this many medians of its function
BACKUP_SHARE = 0.1              # of all slots that backups may hold
SCP_RATE = 1e5                  # bytes a second; what is slower than that is stuck
SPANS = 1 << 15                 # attempts that the trace remembers, a quarter of a kilobyte each
REPORT_BEATS = 3                # heartbeats between two reports in the log

_T = TypeVar("_T")
_log = logging.getLogger("executors")


# ───────────────────────────────────────────────────── errors ─────────────────────────────────────────────────────


class ExecutorError(Exception):
    """The base of this module's errors. They carry data and say it in `str()`."""


class BundleError(ExecutorError):
    """A bundle cannot be completed, through a fault of its own.

    Arguments:
        name: the function's name.
        reason: what went wrong, a sentence.
        attempts: `(machine, how it ended, last words on stderr)` of each attempt that failed.
    """

    def __init__(self, name: str, reason: str, attempts: Sequence[tuple[str, str, str]] = ()) -> None:
        super().__init__(name, reason, attempts)
        self.name, self.reason, self.attempts = name, reason, tuple(attempts)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.reason}"]
        for machine, ending, words in self.attempts:
            lines.append(f"  on {machine}: {ending}")
            lines += [f"    | {line}" for line in words.splitlines()[-10:]]
        return "\n".join(lines)


class BundleTimeoutError(BundleError):
    """A bundle ran longer than the executor's `bundle_timeout` and was killed."""


class NoWorkersError(ExecutorError):
    """No machine of the pool can be reached. `causes` is a list of `(machine, cause)`."""

    def __init__(self, causes: Sequence[tuple[str, str]]) -> None:
        super().__init__(causes)
        self.causes = list(causes)

    def __str__(self) -> str:
        width = max((len(machine) for machine, _ in self.causes), default=0)
        lines = [f"  {machine:{width}}  {cause}" for machine, cause in self.causes]
        return "\n".join(["no worker can be reached:", *lines] if lines else ["the pool has no workers"])


class _RemoteTraceback(Exception):
    """The text of a traceback from another machine, shown as the cause of the exception that came from there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


# ─────────────────────────────────────────────────── measurement ──────────────────────────────────────────────────


def _seconds(value: float) -> str:
    """Say a duration as a person would: three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.9995 * size or unit == "µs":
            if unit == "s" and value >= 120:
                minutes, rest = divmod(round(value), 60)
                return f"{minutes // 60} h {minutes % 60} min" if minutes >= 120 else f"{minutes} min {rest} s"
            return f"{value / size:.3g} {unit}"
    raise AssertionError


class Histogram:
    """Count latencies in logarithmic buckets: constant memory, O(1) to add, percentiles to within 10 %.

    Each power of two is split into four buckets, from a microsecond to twelve days; beyond, the end buckets count.

    >>> h = Histogram()
    >>> for n in range(1, 101):
    ...     h.add(n / 1000)
    >>> h.count, round(h.mean, 4)
    (100, 0.0505)
    >>> print(h)
       977 µs - 1.95 ms  #                                        1
      1.95 ms - 3.91 ms  ##                                       2
      3.91 ms - 7.81 ms  ####                                     4
      7.81 ms - 15.6 ms  ########                                 8
      15.6 ms - 31.2 ms  ################                        16
      31.2 ms - 62.5 ms  ##############################          31
       62.5 ms - 125 ms  ####################################    38
    count 100   p50 50.8 ms   p95 98.2 ms   p99 100 ms
    """

    _LOWEST, _OCTAVES, _SPLIT = -20, 40, 4
    __slots__ = ("_buckets", "count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.minimum, self.maximum = math.inf, 0.0
        self._buckets = [0] * (self._OCTAVES * self._SPLIT)

    def add(self, seconds: float) -> None:
        """Count one latency, in seconds."""
        mantissa, exponent = math.frexp(seconds or 1e-9)
        index = (exponent + 19) * 4 + int(mantissa * 8) - 4     # with the constants above
        self._buckets[0 if index < 0 else index if index < 160 else 159] += 1
        self.count += 1
        self.total += seconds
        if seconds < self.minimum:
            self.minimum = seconds
        if seconds > self.maximum:
            self.maximum = seconds

    def merge(self, other: Histogram) -> None:
        """Count all that `other` has counted."""
        self._buckets = [a + b for a, b in zip(self._buckets, other._buckets)]
        self.count += other.count
        self.total += other.total
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)

    @property
    def mean(self) -> float:
        """The arithmetic mean in seconds; 0 if nothing has been counted."""
        return self.total / self.count if self.count else 0.0

    def percentile(self, p: float) -> float:
        """Return the latency, in seconds, that `p` per cent of the counted ones do not exceed; 0 if there are none."""
        rank = self.count * p / 100
        for index, count in enumerate(self._buckets):
            if count and rank <= count:
                low, high = self._bound(index), self._bound(index + 1)
                return min(max(low + (high - low) * rank / count, self.minimum), self.maximum)
            rank -= count
        return self.maximum if self.count else 0.0

    def _bound(self, index: int) -> float:
        octave, part = divmod(index, self._SPLIT)
        return math.ldexp(1 + part / self._SPLIT, octave + self._LOWEST)

    def __str__(self) -> str:
        octaves = [sum(self._buckets[at:at + self._SPLIT]) for at in range(0, len(self._buckets), self._SPLIT)]
        used = [index for index, count in enumerate(octaves) if count]
        if not used:
            return "nothing counted"
        lines = []
        for before, octave in zip([used[0], *used], used):
            if octave - before > 1:
                lines.append(f"{'...':>19}")
            low, high = (_seconds(self._bound((octave + end) * self._SPLIT)) for end in (0, 1))
            bar = "#" * math.ceil(36 * octaves[octave] / max(octaves))
            lines.append(f"{f'{low} - {high}':>19}  {bar:<36} {octaves[octave]:>5}")
        return "\n".join([*lines, "  ".join([f"count {self.count} ", *self._percentiles()])])

    def _percentiles(self) -> list[str]:
        return [f"p{p} {_seconds(self.percentile(p))} " for p in (50, 95)] + [f"p99 {_seconds(self.percentile(99))}"]


# ───────────────────────────────────────────────── local executors ────────────────────────────────────────────────


class BaseExecutor(concurrent.futures.Executor):
    """The face that all executors here share: `concurrent.futures.Executor` with a title, a histogram and a count.

    Attributes:
        title: a name for logs and displays.
    """

    def __init__(self, title: str = "") -> None:
        self.title = title or type(self).__name__

    @property
    def histogram(self) -> Histogram:
        """How many seconds tasks took: on their workers, for remote executors; from submission to completion, for others."""
        raise NotImplementedError

    @property
    def task_count(self) -> int:
        """The number of tasks that are submitted and not done."""
        raise NotImplementedError

    def get_task_count(self) -> int:
        """Return the number of tasks that are submitted and not done."""
        return self.task_count

    def map(self, fn: Callable[..., _T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1,
            buffersize: int | None = None) -> Iterator[_T]:
        """Return an iterator over `fn(*items)` for the items of the iterables, in their order, computed concurrently.

        Arguments:
            fn: what to call; it is pickled once, where it is pickled at all.
            timeout: seconds from now after which waiting for a result raises TimeoutError.
            chunksize: items that travel as one task.
            buffersize: at most so many tasks are submitted and not yet yielded, and the iterables are read no further
                ahead (as in Python 3.14, on every Python); None submits all of them now.

        What `fn` raises is raised where its result would have been yielded; the tasks after it are then cancelled.
        """
        if chunksize < 1 or (buffersize is not None and buffersize < 1):
            raise ValueError(f"chunksize ({chunksize}) and buffersize ({buffersize}) must be at least 1")
        items: Iterator[tuple[Any, ...]] = zip(*iterables)
        submit: Callable[..., Future[Any]] = self._submitter(fn)
        if chunksize > 1:
            singles = items
            items = ((chunk,) for chunk in iter(lambda: tuple(itertools.islice(singles, chunksize)), ()))
            submit = self._submitter(functools.partial(wire.run_chunk, fn))
        deadline = None if timeout is None else time.monotonic() + timeout
        futures = deque(submit(*item) for item in itertools.islice(items, buffersize))
        results = _in_order(futures, items, submit, deadline)
        return results if chunksize == 1 else itertools.chain.from_iterable(results)

    def _submitter(self, fn: Callable[..., _T]) -> Callable[..., Future[_T]]:
        """Return `submit` for one function that is to be called many times."""
        return functools.partial(self.submit, fn)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, quiet: bool = False) -> None:
        """Accept no more work and let go of what the executor holds. May be called again.

        Arguments:
            wait: return only when all tasks are done and everything is released.
            cancel_futures: cancel the tasks that have not started.
            quiet: print and log no summary.
        """
        raise NotImplementedError

    def shutdown_if_idle(self) -> bool:
        """Shut down if no task is pending or running; return whether it was so."""
        if self.task_count:
            return False
        self.shutdown()
        return True


def _in_order(futures: deque[Future[_T]], items: Iterator[Any], submit: Callable[..., Future[_T]],
              deadline: float | None) -> Iterator[_T]:
    """Yield results in order, replacing each task that is yielded by the next; cancel what is left when left early."""
    try:
        while futures:
            future = futures.popleft()
            try:
                result = [future.result(None if deadline is None else deadline - time.monotonic())]
            except BaseException:
                future.cancel()
                raise
            del future
            for item in itertools.islice(items, 1):
                futures.append(submit(*item))
            yield result.pop()      # not to keep it while its consumer looks at it
    finally:
        for future in futures:
            future.cancel()


class PoolExecutor(BaseExecutor):
    """Adopt any `concurrent.futures.Executor`: a Dask `client.get_executor()`, an `MPIPoolExecutor`, and so on.

    >>> with PoolExecutor(concurrent.futures.ThreadPoolExecutor(2), title="borrowed") as pool:
    ...     list(pool.map(str.upper, ["a", "b"], chunksize=2))
    ['A', 'B']
    """

    def __init__(self, pool: concurrent.futures.Executor, *, title: str = "") -> None:
        super().__init__(title)
        self._pool = pool
        self._started: dict[Future[Any], float] = {}     # when those that are not done were submitted
        self._seconds: deque[float] = deque()       # of those that are done and not yet counted
        self._lock = threading.Lock()               # guards the rest, and which pool it is
        self._histogram = Histogram()
        self._closed = False

    @property
    def histogram(self) -> Histogram:
        with self._lock:
            for _ in range(len(self._seconds)):
                self._histogram.add(self._seconds.popleft())
        return self._histogram

    @property
    def task_count(self) -> int:
        return len(self._started)

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        return self._watch(self._pool.submit(fn, *args, **kwargs))

    def _watch(self, future: Future[_T]) -> Future[_T]:
        self._started[future] = time.monotonic()
        future.add_done_callback(self._count)
        return future

    def _count(self, future: Future[Any]) -> None:
        self._seconds.append(time.monotonic() - self._started.pop(future))
        if len(self._seconds) > 10_000:
            _ = self.histogram      # counts them

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, quiet: bool = False) -> None:
        with self._lock:
            self._closed = True
        # Not every adopted pool knows cancel_futures.
        self._pool.shutdown(wait, **({"cancel_futures": True} if cancel_futures else {}))
        if not quiet and self.histogram.count:
            _log.info("%s: %d tasks, %s", self.title, self.histogram.count, "  ".join(self.histogram._percentiles()))


class ThreadExecutor(PoolExecutor):
    """Run tasks on threads of this process.

    Arguments:
        max_workers: the number of threads; by default $EXECUTORS_THREADPOOL_SIZE, else the standard library's choice.
    """

    def __init__(self, max_workers: int | None = None, *, title: str = "") -> None:
        size = _from_environment("EXECUTORS_THREADPOOL_SIZE", int) if max_workers is None else max_workers
        super().__init__(concurrent.futures.ThreadPoolExecutor(size), title=title)


class ProcessExecutor(PoolExecutor):
    """Run tasks on processes of this machine; lambdas, closures and functions of `__main__` work too.

    A process that dies takes its pool's tasks with it (BrokenProcessPool, as in the standard library); the next submission
    gets a new pool.

    Processes are started as `multiprocessing` does by default, but for one case: a fork beside other threads (those of a
    RemoteExecutor, say) copies whatever locks they hold, and may hang. From Python 3.12, which warns of it, they then come from
    a fork server, as always from 3.14. That imports the main script: guard it with `if __name__ == "__main__"`.

    Arguments:
        max_workers: the number of processes; by default $EXECUTORS_PROCESSPOOL_SIZE, else one per core.
        mp_context: one of `multiprocessing.get_context`, to choose otherwise.
    """

    def __init__(self, max_workers: int | None = None, *, title: str = "",
                 mp_context: multiprocessing.context.BaseContext | None = None) -> None:
        self._size = _from_environment("EXECUTORS_PROCESSPOOL_SIZE", int) if max_workers is None else max_workers
        self._context = mp_context
        self._has_begun = False     # nothing is forked before the first submission
        super().__init__(self._make(), title=title)

    def _make(self) -> concurrent.futures.ProcessPoolExecutor:
        context = self._context or multiprocessing.get_context()
        is_unsafe = sys.version_info >= (3, 12) and context.get_start_method() == "fork" and threading.active_count() > 1
        if self._context is None and is_unsafe:
            context = multiprocessing.get_context("forkserver")
        return concurrent.futures.ProcessPoolExecutor(self._size, context)

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        if kwargs or not wire.is_plain(args) or not _reference(fn):
            fn, args, kwargs = wire.run_shipped, (wire.Shipped((fn, args, kwargs)),), {}
        else:
            fn, args = wire.run_plain, (fn, *args)
        if not self._has_begun:
            self._replace(self._pool)
        pool = self._pool
        try:
            return self._watch(pool.submit(fn, *args))
        except concurrent.futures.process.BrokenProcessPool:
            self._replace(pool)
            pool.shutdown(wait=False)
            return self._watch(self._pool.submit(fn, *args))

    def _replace(self, pool: concurrent.futures.Executor) -> None:
        """Make a new pool in place of one that is broken, or that was made when other threads were alive than now."""
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown") from None
            if self._pool is pool:      # otherwise another thread has replaced it already
                self._pool = self._make()
            self._has_begun = True


def _from_environment(name: str, convert: Callable[[str], _T]) -> _T | None:
    text = os.environ.get(name, "").strip()
    try:
        return convert(text) if text else None
    except (KeyError, ValueError):
        raise ValueError(f"the environment variable {name} is {text!r}, which is not a {convert.__name__}") from None


def _reference(fn: Callable[..., Any]) -> tuple[str, str] | None:
    """Return `(module, name)` if that is enough to find `fn` on another machine, so that no pickler has to look inside."""
    if type(fn) not in (types.FunctionType, types.BuiltinFunctionType):
        return None
    module, name = fn.__module__, fn.__qualname__
    if module == "__main__" or getattr(sys.modules.get(module), name, None) is not fn:
        return None
    return module, name


# ──────────────────────────────────────────────── records and policies ────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class RemoteWorkerRecord:
    """Describe one worker. `RemoteWorkerRecord.parse` reads the text form, GNU parallel's sshlogin widened.

    Arguments:
        username: whom to log in as; None leaves it to ssh's configuration.
        machine: a host name, address or alias of ssh's configuration; ':' is this machine, without ssh.
        weight: how often it is chosen, relative to others that have room.
        count: its slots; None means one per core, asked of the machine.
        python: its interpreter; None finds the controller's version on its PATH.

    >>> RemoteWorkerRecord.parse("8/me@bigbox weight=2 python=~/venv/bin/python")
    RemoteWorkerRecord(username='me', machine='bigbox', weight=2.0, count=8, python='~/venv/bin/python')
    >>> str(RemoteWorkerRecord.parse("4/lab2")), str(RemoteWorkerRecord(None, ":"))
    ('4/lab2', ':')
    """

    username: str | None
    machine: str
    weight: float = 1
    count: int | None = None
    python: str | None = None

    def __post_init__(self) -> None:
        for what, value in (("machine", self.machine), ("username", self.username)):
            if value is not None and not re.fullmatch(r"[^\s\-@/\x00-\x20][^\s@/\x00-\x20]*", value):
                raise ValueError(f"{what} {value!r}: must not be empty, begin with '-', or hold spaces, '@' or '/'")
        if self.machine == ":" and self.username:
            raise ValueError(f"username {self.username!r}: ':' is this machine, as the user you are; name it to log in to it")
        if re.fullmatch(r"[^:]+:\d+|\[.*\].*", self.machine):
            raise ValueError(f"machine {self.machine!r}: a port belongs into ~/.ssh/config; an IPv6 address has no brackets")
        if not self.weight > 0:
            raise ValueError(f"weight {self.weight!r} of {self.machine}: must be more than 0")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count {self.count!r} of {self.machine}: must be at least 1, or None for one per core")
        if self.python is not None and not re.fullmatch(r"[\w~./+][\w~./+@%:,=-]*", self.python, re.ASCII):
            raise ValueError(f"python {self.python!r} of {self.machine}: must be a plain path; make a link to it if it is not")

    @classmethod
    def parse(cls, text: str) -> RemoteWorkerRecord:
        """Read `[COUNT/][USER@]MACHINE [weight=N] [python=PATH]`. Raises ValueError that quotes what is wrong."""
        login, *settings = text.split() or [""]
        count, slash, login = login.rpartition("/")
        username, at, machine = login.rpartition("@")
        given: dict[str, Any] = {}
        try:
            if slash:
                given["count"] = int(count)
            for setting in settings:
                name, _, value = setting.partition("=")
                given[name] = {"weight": float, "python": str}[name](value)
            return cls(username if at else None, machine, **given)
        except (KeyError, ValueError) as error:
            why = f"no setting {error}; there are weight= and python=" if isinstance(error, KeyError) else error
            raise ValueError(f"worker {text!r}: {why} (like: 8/me@bigbox weight=2 python=~/venv/bin/python)") from None

    @property
    def login(self) -> str:
        """What ssh is told: `user@machine`."""
        return f"{self.username}@{self.machine}" if self.username else self.machine

    def __str__(self) -> str:
        parts = [(f"{self.count}/" if self.count else "") + self.login]
        parts += [f"weight={self.weight:g}"] * (self.weight != 1) + [f"python={self.python}"] * bool(self.python)
        return " ".join(parts)


class RemoteWorkerSelectionPolicy(ABC):
    """Choose who gets the next attempt. A policy sees only workers that have room, and keeps no count of anything."""

    @abstractmethod
    def choose(self, ready: Sequence[RemoteWorkerRecord], avoid: Container[str] = ()) -> int | None:
        """Return the index in `ready` (never empty) of the worker to use, or None if all their machines are in `avoid`.

        It is called under the executor's lock: it must neither block nor call the executor.
        """


class WeightedRandomRemoteWorkerSelectionPolicy(RemoteWorkerSelectionPolicy):
    """Choose at random, in proportion to weight. Takes the same time however many workers there are."""

    def __init__(self, random_source: random.Random | None = None) -> None:
        self._random = (random_source or random.Random()).random
        self._heaviest = 0.0

    def choose(self, ready: Sequence[RemoteWorkerRecord], avoid: Container[str] = ()) -> int | None:
        for _ in range(16):
            index = int(self._random() * len(ready))
            record = ready[index]
            self._heaviest = max(self._heaviest, record.weight)
            if record.weight >= self._random() * self._heaviest and record.machine not in avoid:
                return index
        fit = [(self._random() ** (1 / record.weight), index)       # Efraimidis and Spirakis 2006
               for index, record in enumerate(ready) if record.machine not in avoid]
        return max(fit)[1] if fit else None


class RoundRobinRemoteWorkerSelectionPolicy(RemoteWorkerSelectionPolicy):
    """Choose those that have room in turn."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, ready: Sequence[RemoteWorkerRecord], avoid: Container[str] = ()) -> int | None:
        for index in itertools.chain(range(self._next % len(ready), len(ready)), range(len(ready))):
            if ready[index].machine not in avoid:
                self._next = index + 1
                return index
        return None


def _parse_workers(workers: Iterable[RemoteWorkerRecord | str]) -> list[RemoteWorkerRecord]:
    if isinstance(workers, str):
        workers = workers.split(",")
    return [w if isinstance(w, RemoteWorkerRecord) else RemoteWorkerRecord.parse(w) for w in workers]


def _default_workers() -> list[RemoteWorkerRecord]:
    """Read the pool's own list: $EXECUTORS_REMOTE_WORKERS, else ~/.config/executors/workers."""
    texts = os.environ.get("EXECUTORS_REMOTE_WORKERS", "").split(",")
    path = os.path.expanduser("~/.config/executors/workers")
    if not any(map(str.strip, texts)) and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            texts = [line.partition("#")[0] for line in file]
    records = _parse_workers(text for text in texts if text.strip())
    if not records:
        raise ValueError(f"no remote workers: list them in $EXECUTORS_REMOTE_WORKERS (comma-separated) or {path} (one a line)")
    return records


# ───────────────────────────────────────────────────── scheduling ─────────────────────────────────────────────────
#
# A pure state machine: no I/O, no threads, no clock, no logging. Whoever calls it holds the supervisor's lock, passes the
# time in, and afterwards performs what `take_actions` returns:
#
#     (CONNECT, worker)                open a link to it, then call `up` or `down`
#     (LAUNCH, link, attempt)          send the attempt
#     (KILL, link, identifier)         end an attempt; `freed`, `finish` or `died` follows
#     (RECALL, link, number)           take back so many attempts that have not started; `recalled` follows
#     (SETTLE, bundle, kind, body)     resolve its future; happens once for every bundle
#     (LEAVE, link)                    close a link
#     (FINISH,)                        the scheduler was closed, and every bundle is settled

_CONNECT, _LAUNCH, _KILL, _RECALL, _SETTLE, _LEAVE, _FINISH = "connect launch kill recall settle leave finish".split()

# How a bundle was settled, besides wire.RESULT and wire.ERROR; the body is then an exception, or None.
_FAILED, _CANCELLED = -1, -2
_MICROSECONDS = (1 << wire.SLOT_SHIFT) - 1


class _Durations(Histogram):
    """A histogram whose median is at hand: of the last few dozen additions' time, None before the third."""

    __slots__ = ("median",)

    def __init__(self) -> None:
        super().__init__()
        self.median: float | None = None

    def add(self, seconds: float) -> None:
        Histogram.add(self, seconds)
        if self.count < 16 or not self.count % 64:
            self.median = self.percentile(50) if self.count >= 3 else None


class _Function:
    """A pickled function, shared by the bundles that call it."""

    __slots__ = ("__weakref__", "durations", "ident", "name", "packed", "size")

    def __init__(self, ident: int, name: str, packed: Any, durations: _Durations) -> None:
        self.ident, self.name, self.packed, self.durations = ident, name, packed, durations
        self.size = len(packed) if type(packed) is bytes else sum(packed[0])


class _Bundle:
    """One submitted call."""

    __slots__ = ("attempts", "failures", "function", "future", "origin", "packed", "settled")

    def __init__(self, function: _Function, packed: Any) -> None:
        self.function: Any = function
        self.packed = packed        # `(args, kwargs)`, from `wire.pack`
        self.future: Any = None
        self.attempts: Any = None       # a tuple of those that may still settle it, once it is submitted
        self.failures: tuple[tuple[str, str, str], ...] = ()
        self.origin = 0                 # the attempt that the next one follows
        self.settled = False


class _Attempt:
    """One execution of a bundle on one worker."""

    __slots__ = ("backup", "bundle", "ident", "name", "origin", "since", "worker")

    def __init__(self, ident: int, bundle: _Bundle, worker: _Worker, backup: bool) -> None:
        self.ident, self.bundle, self.worker, self.backup = ident, bundle, worker, backup
        self.name, self.origin = bundle.function.name, bundle.origin
        self.since: float | None = None     # when it started, as far as one can tell from here


class _Span(NamedTuple):
    """An attempt that has left its worker, for the trace. Times are the controller's, in seconds; `ran` is the slot's."""

    worker: _Worker
    slot: int | None        # None: it is not known which, or it never had one
    name: str
    ident: int
    origin: int
    since: float | None
    until: float
    ran: float | None
    outcome: str


class _Worker:
    """What the scheduler knows of one machine. `count` slots hold the oldest attempts in flight; the rest wait there."""

    WAITING, CONNECTING, UP, FAILED, REMOVED = "waiting", "connecting", "up", "failed", "removed"

    def __init__(self, record: RemoteWorkerRecord, now: float) -> None:
        self.record, self.machine = record, record.machine
        self.state = self.WAITING
        self.link: Any = None
        self.count = record.count or 0
        self.inflight: dict[int, _Attempt] = {}
        self.started = 0                        # of them, those with `since`
        self.unstarted: deque[_Attempt] = deque()      # the others, and some that are gone
        self.idle_at = -1                       # where it stands among the idle workers; -1 if it is not idle
        self.recalling = False
        self.ahead_seconds = AHEAD_SECONDS
        self.durations = _Durations()
        self.was_up = False
        self.failures = 0                       # in a row
        self.retry_at = now
        self.cause = ""
        self.died = self.backups = 0


class _Scheduler:
    """Decide which bundle runs where and when, and how each one ends."""

    def __init__(self, policy: RemoteWorkerSelectionPolicy, *, schedule_backups: bool = True, max_bundle_failures: int = 3,
                 bundle_timeout: float | None = None, jitter: Callable[[], float] = random.random) -> None:
        self._policy, self._schedule_backups, self._jitter = policy, schedule_backups, jitter
        self._max_bundle_failures, self._bundle_timeout = max_bundle_failures, bundle_timeout
        self._actions: list[Any] = []
        self._idents = itertools.count(1)
        self._queue: deque[_Bundle] = deque()
        self._retries: dict[frozenset[str], deque[_Bundle]] = {}       # by the machines to avoid; they go first
        self.workers: list[_Worker] = []
        self._up: list[_Worker] = []
        self._idle: list[_Worker] = []          # up, with a free slot
        self._idle_records: list[RemoteWorkerRecord] = []       # theirs, for the policy
        self._laden: set[_Worker] = set()       # holds all that have more attempts than slots
        self._saturated = False                 # no worker takes more ahead of need, until something finishes
        self._turn = 0                          # whose turn it is to be sent work ahead of need
        self._backups: dict[int, _Attempt] = {}     # that still matter, oldest first
        self._alone = 0.0                       # seconds that bundles have waited without any worker
        self._ticked: float | None = None
        self.waiting = self.unfinished = 0      # bundles without an attempt; bundles that are not settled
        self.done = self.failed = self.cancelled = self.retried = self.backed_up = 0
        self.closed = False
        self.broken: NoWorkersError | None = None
        self.spans: deque[tuple[Any, ...]] = deque(maxlen=SPANS)     # of what _Spans are made of
        self._progress: deque[tuple[float, int]] = deque()     # when so many bundles were settled, lately

    def take_actions(self) -> list[Any]:
        """Return what has been decided since the last call."""
        actions, self._actions = self._actions, []
        return actions

    # Workers

    def add_worker(self, record: RemoteWorkerRecord, now: float) -> None:
        self.workers.append(_Worker(record, now))
        self.broken = None
        self._connect(now)

    def remove_worker(self, record: RemoteWorkerRecord, now: float) -> bool:
        """Take a worker out; what it ran goes back to the queue. Return whether it was there."""
        for worker in self.workers:
            if worker.record == record:
                link = worker.link
                self._drop(worker, now)
                worker.state = worker.REMOVED
                self.workers.remove(worker)
                if link is not None:
                    self._actions.append((_LEAVE, link))
                self._fill(now)
                return True
        return False

    def _connect(self, now: float) -> None:
        room = HANDSHAKES - sum(worker.state == worker.CONNECTING for worker in self.workers)
        for worker in self.workers:
            if room > 0 and worker.state == worker.WAITING and worker.retry_at <= now and (self.unfinished or not self.closed):
                worker.state, room = worker.CONNECTING, room - 1
                self._actions.append((_CONNECT, worker))

    def up(self, worker: _Worker, link: Any, cores: int, now: float) -> None:
        """A machine has said hello."""
        if worker.state != worker.CONNECTING:
            self._actions.append((_LEAVE, link))        # it was removed meanwhile
            return
        worker.state, worker.link, worker.was_up, worker.cause = worker.UP, link, True, ""
        worker.count = worker.record.count or cores
        worker.recalling, self._alone = False, 0.0
        self._up.append(worker)
        self._connect(now)
        self._has_room(worker, now)

    def down(self, worker: _Worker, link: Any, cause: str, permanent: bool, now: float) -> None:
        """A link has ended, or could not be made. What was in flight there is put back; the machine is left alone for a while."""
        if worker.state == worker.REMOVED or worker.link is not (link if worker.state == worker.UP else None):
            return
        self._drop(worker, now)
        worker.cause = cause
        worker.failures += 1
        first, most = QUARANTINE_SECONDS
        worker.retry_at = now + min(most, first * 2 ** (worker.failures - 1)) * (0.75 + 0.5 * self._jitter())
        worker.state = worker.FAILED if permanent and not worker.was_up else worker.WAITING
        self._connect(now)
        self._fill(now)
        if all(worker.state == worker.FAILED for worker in self.workers):
            self._give_up()

    def _drop(self, worker: _Worker, now: float) -> None:
        attempts = [*worker.inflight.values()]
        worker.inflight.clear()
        worker.unstarted.clear()
        worker.started = 0
        for attempt in attempts:
            if attempt.since is not None:
                self._trace(attempt, None, now, "lost")
        if worker in self._up:
            self._up.remove(worker)
        worker.state, worker.link = worker.WAITING, None
        self._update_idle(worker)
        self._laden.discard(worker)
        for attempt in reversed(attempts):
            self._lose(attempt)

    def _give_up(self) -> None:
        error = NoWorkersError([(str(worker.record), worker.cause or "not reached yet") for worker in self.workers])
        if all(worker.state == worker.FAILED for worker in self.workers):
            self.broken = error
        self._settle_waiting(_FAILED, error)

    # Bundles

    def submit(self, bundle: _Bundle, now: float) -> None:
        """Queue a bundle. Raises RuntimeError after `close`, NoWorkersError when no worker can ever take it."""
        self.check_open()
        if bundle.settled:
            return      # cancelled before it got here
        bundle.attempts = ()
        self.unfinished += 1
        self.waiting += 1
        self._queue.append(bundle)
        if self._idle or not self._saturated:
            self._fill(now)
        if self._backups and not bundle.attempts:
            self._kill(self._backups[next(reversed(self._backups))])        # new work takes precedence

    def check_open(self) -> None:
        """Raise what `submit` would raise."""
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self.broken:
            raise NoWorkersError(self.broken.causes)

    def cancel(self, bundle: _Bundle) -> bool:
        """Settle a bundle as cancelled and kill what runs of it; return whether it was in time."""
        if bundle.settled:
            return False
        if bundle.attempts is None:
            bundle.settled = True
            self._actions.append((_SETTLE, bundle, _CANCELLED, None))
            return True
        self._settle(bundle, _CANCELLED, None)
        return True

    def close(self, cancel: bool) -> None:
        """Accept no more; with `cancel`, settle what has not started."""
        if not self.closed:
            self.closed = True
            if not self.unfinished:
                self._actions.append((_FINISH,))
        if cancel:
            self._settle_waiting(_CANCELLED, None)

    def _settle_waiting(self, kind: int, body: Any) -> None:
        for queue in (*self._retries.values(), self._queue):
            while queue:
                bundle = queue.popleft()
                if not bundle.settled:
                    self._settle(bundle, kind, body)
        self._retries.clear()

    def _settle(self, bundle: _Bundle, kind: int, body: Any) -> None:
        assert not bundle.settled
        bundle.settled = True
        self.unfinished -= 1
        if not bundle.attempts:
            self.waiting -= 1
        for attempt in bundle.attempts:
            if attempt.ident in attempt.worker.inflight:
                self._kill(attempt)
        bundle.attempts = ()
        if kind == wire.RESULT:
            self.done += 1
        elif kind == _CANCELLED:
            self.cancelled += 1
        else:
            self.failed += 1
        self._actions.append((_SETTLE, bundle, kind, body))
        if self.closed and not self.unfinished:
            self._actions.append((_FINISH,))

    # Placing

    def _fill(self, now: float) -> None:
        """Launch from the queues while somebody has room for what is at their heads."""
        if self._retries:
            for avoid, queue in [*self._retries.items()]:
                self._fill_from(queue, avoid, now)
                if not queue:
                    del self._retries[avoid]
        self._fill_from(self._queue, (), now)
        if self._laden and self._idle:
            self._recall()

    def _fill_from(self, queue: deque[_Bundle], avoid: Container[str], now: float) -> None:
        while queue:
            bundle = queue[0]
            if not bundle.settled:
                worker = self._pick_idle(avoid) if self._idle else None if avoid else self._pick_ahead(bundle)
                if worker is None:
                    return
                self.waiting -= 1
                self._launch(bundle, worker, now)
            queue.popleft()

    def _pick_idle(self, avoid: Container[str]) -> _Worker | None:
        if len(self._idle) == 1 and not avoid:
            return self._idle[0]
        index = self._policy.choose(self._idle_records, avoid)
        if index is None and not any(self._is_hopeful(worker) for worker in self.workers if worker.machine not in avoid):
            index = self._policy.choose(self._idle_records)     # it has failed everywhere
        return None if index is None else self._idle[index]

    @staticmethod
    def _is_hopeful(worker: _Worker) -> bool:
        return worker.state in (worker.UP, worker.CONNECTING) or worker.state == worker.WAITING and not worker.failures

    def _pick_ahead(self, bundle: _Bundle) -> _Worker | None:
        """Choose who is sent a bundle although all slots are busy: only while bundles are shorter than a round trip is worth."""
        median = bundle.function.durations.median
        if self._saturated or median is None or type(bundle.packed) is not bytes or self._bundle_timeout is not None:
            return None     # with a time-out, one must know when each began
        up = self._up
        for turn in range(self._turn, self._turn + len(up)):
            worker = up[turn % len(up)]
            depth = int(worker.ahead_seconds / median) if median else AHEAD_DEPTH
            if len(worker.inflight) < worker.count * (1 + min(depth, AHEAD_DEPTH)):
                self._turn = turn + 1
                return worker
        self._saturated = True
        return None

    def _launch(self, bundle: _Bundle, worker: _Worker, now: float, backup: bool = False) -> None:
        ident = next(self._idents)
        attempt = worker.inflight[ident] = _Attempt(ident, bundle, worker, backup)
        bundle.attempts += (attempt,)
        if worker.started < worker.count:
            worker.started += 1
            attempt.since = now
        else:
            worker.unstarted.append(attempt)
            self._laden.add(worker)
        if len(worker.inflight) == worker.count:
            self._update_idle(worker)
        if backup:
            self._backups[ident] = attempt
            worker.backups += 1
            self.backed_up += 1
        self._actions.append((_LAUNCH, worker.link, attempt))

    def _update_idle(self, worker: _Worker) -> None:
        idle = worker.state == worker.UP and len(worker.inflight) < worker.count
        at = worker.idle_at
        if idle and at < 0:
            worker.idle_at = len(self._idle)
            self._idle.append(worker)
            self._idle_records.append(worker.record)
        elif not idle and at >= 0:
            last = self._idle.pop()
            record = self._idle_records.pop()
            if last is not worker:
                self._idle[at], self._idle_records[at], last.idle_at = last, record, at
            worker.idle_at = -1

    def _recall(self) -> None:
        """Ask for what was sent ahead of need to machines that are busy, for those that are not."""
        free = sum(worker.count - len(worker.inflight) for worker in self._idle)
        for worker in [*self._laden]:
            excess = len(worker.inflight) - worker.count
            if excess <= 0:
                self._laden.discard(worker)
            elif not worker.recalling and free > 0:
                worker.recalling = True
                self._actions.append((_RECALL, worker.link, min(free, excess)))
                free -= excess

    def _kill(self, attempt: _Attempt) -> None:
        """End an attempt that no longer matters. Its slot stays taken until the machine says that it is free."""
        self._backups.pop(attempt.ident, None)
        attempt.bundle.attempts = tuple(other for other in attempt.bundle.attempts if other is not attempt)
        self._actions.append((_KILL, attempt.worker.link, attempt.ident))

    # What links report

    def finish(self, worker: _Worker, link: Any, results: Iterable[tuple[int, int, int, Any]], now: float) -> None:
        """Attempts have ended with a value or an exception: `(kind, identifier, slot and microseconds, body)` of each."""
        if worker.link is not link:
            return
        for kind, ident, tag, body in results:
            attempt = self._release(worker, ident)
            if attempt is None:
                continue
            bundle, seconds = attempt.bundle, (tag & _MICROSECONDS) * 1e-6
            self._trace(attempt, tag >> wire.SLOT_SHIFT, now, "returned" if kind == wire.RESULT else "raised", seconds)
            worker.durations.add(seconds)
            if not bundle.settled:
                bundle.function.durations.add(seconds)
                self._settle(bundle, kind, body)
        worker.failures = 0
        self._has_room(worker, now)

    def measured(self, worker: _Worker, link: Any, round_trip: float) -> None:
        """A ping has been answered, after so many seconds: what is sent ahead of need must last at least as long."""
        if worker.link is link:
            worker.ahead_seconds = AHEAD_SECONDS + 2 * round_trip

    def died(self, worker: _Worker, link: Any, ident: int, slot: int, ending: str, words: str, now: float) -> None:
        """A slot has died under an attempt: the bundle's fault, unless we meant to kill it."""
        if worker.link is not link:
            return
        attempt = self._release(worker, ident)
        if attempt is not None:
            self._trace(attempt, slot, now, ending)
        if attempt is not None and attempt in attempt.bundle.attempts:
            bundle = attempt.bundle
            worker.died += 1
            bundle.failures += ((worker.machine, ending, words),)
            if len(bundle.failures) >= self._max_bundle_failures:
                times = "once" if len(bundle.failures) == 1 else f"{len(bundle.failures)} times"
                reason = f"killed the process that ran it {times}"
                self._settle(bundle, _FAILED, BundleError(bundle.function.name, reason, bundle.failures))
            else:
                self._lose(attempt)
        self._has_room(worker, now)

    def freed(self, worker: _Worker, link: Any, ident: int, slot: int | None, now: float) -> None:
        """An attempt that was to be killed is gone; it ran in a slot, or had not started."""
        if worker.link is link:
            attempt = self._release(worker, ident)
            if attempt is not None and slot is not None:
                self._trace(attempt, slot, now, "killed")
            if attempt is not None and attempt in attempt.bundle.attempts:
                self._lose(attempt)
            self._has_room(worker, now)

    def recalled(self, worker: _Worker, link: Any, idents: Sequence[int], now: float) -> None:
        """A machine has given attempts back that it had not started."""
        if worker.link is not link:
            return
        worker.recalling = False
        for ident in reversed(idents):
            attempt = self._release(worker, ident)
            if attempt is not None and attempt in attempt.bundle.attempts:
                self._lose(attempt)
        self._has_room(worker, now)

    def _release(self, worker: _Worker, ident: int) -> _Attempt | None:
        attempt = worker.inflight.pop(ident, None)
        if attempt is not None:
            if attempt.since is not None:
                worker.started -= 1
            self._backups.pop(ident, None)
        return attempt

    def _trace(self, attempt: _Attempt, slot: int | None, now: float, outcome: str, ran: float | None = None) -> None:
        self.spans.append((attempt.worker, slot, attempt.name, attempt.ident, attempt.origin, attempt.since, now, ran, outcome))

    def take_spans(self) -> list[_Span]:
        """Return the attempts that have ended lately, and those that run: until now, as far as a tick can tell."""
        now = self._ticked or 0.0
        running = [_Span(worker, None, attempt.name, attempt.ident, attempt.origin, attempt.since, now, None, "running")
                   for worker in [*self.workers] for attempt in [*worker.inflight.values()] if attempt.since is not None]
        return [*map(_Span._make, self.spans.copy()), *running]

    def _lose(self, attempt: _Attempt) -> None:
        """An attempt came to nothing: put its bundle back, unless another attempt is under way."""
        bundle = attempt.bundle
        bundle.origin = attempt.ident
        self._backups.pop(attempt.ident, None)
        if bundle.settled or attempt not in bundle.attempts:
            return
        bundle.attempts = tuple(other for other in bundle.attempts if other is not attempt)
        for other in bundle.attempts:
            self._backups.pop(other.ident, None)        # now it is all there is
            return
        self.waiting += 1
        self.retried += 1
        if bundle.failures:
            avoid = frozenset(machine for machine, _, _ in bundle.failures)
            self._retries.setdefault(avoid, deque()).append(bundle)
        else:
            self._queue.appendleft(bundle)

    def _has_room(self, worker: _Worker, now: float) -> None:
        """Account for what has left a worker, then use the room."""
        while worker.started < worker.count and worker.unstarted:
            attempt = worker.unstarted.popleft()
            if attempt.ident in worker.inflight:
                attempt.since = now
                worker.started += 1
        self._update_idle(worker)
        self._saturated = False
        self._fill(now)

    # Time

    def tick(self, now: float) -> None:
        """Look at the clock: reconnect, time out, back stragglers up, give up."""
        elapsed = min(now - (now if self._ticked is None else self._ticked), 1.0)
        self._ticked = now
        self._measure_progress(now)
        self._connect(now)
        if self._bundle_timeout is not None:
            self._time_out(now, self._bundle_timeout)
        if self._schedule_backups and self._idle and not self.waiting:
            self._back_up(now)
        self._alone = self._alone + elapsed if self.waiting and not self._up else 0.0
        if self._alone > GIVE_UP_SECONDS:
            self._alone = 0.0
            self._give_up()

    def _measure_progress(self, now: float) -> None:
        """Remember when bundles were settled, for the last ten seconds and at least for the last few; nothing, while idle."""
        progress, settled = self._progress, self.done + self.failed
        if not self.unfinished:
            progress.clear()
        if not progress or settled > progress[-1][1]:
            progress.append((now, settled))
        while len(progress) > 2 and now - progress[1][0] > 10 and settled - progress[1][1] >= 8:
            progress.popleft()

    def rate(self, now: float) -> float:
        """Bundles settled per second, of late; 0 until there are three to judge by."""
        since, settled = self._progress[0] if self._progress else (now, self.done + self.failed)
        number = self.done + self.failed - settled
        return number / (now - since) if number >= 3 and now > since else 0.0

    def _time_out(self, now: float, limit: float) -> None:
        for worker in self._up:
            for attempt in [*worker.inflight.values()]:
                bundle = attempt.bundle
                if attempt.since is not None and now - attempt.since > limit and not bundle.settled:
                    reason = f"ran longer than bundle_timeout={limit:g} s"
                    ending = ((worker.machine, f"killed after {now - attempt.since:.1f} s", ""),)
                    self._settle(bundle, _FAILED, BundleTimeoutError(bundle.function.name, reason, bundle.failures + ending))

    def _back_up(self, now: float) -> None:
        """Launch backups of stragglers (MapReduce, OSDI'04; LATE, OSDI'08; The Tail at Scale, CACM 2013)."""
        counts = [worker.count for worker in self._up]
        room = int(max(2, *counts, BACKUP_SHARE * sum(counts))) - len(self._backups)
        if room <= 0:
            return
        late = []
        for worker in self._up:
            slowness = worker.durations.median or 1.0
            for attempt in worker.inflight.values():
                if attempt.since is not None and len(attempt.bundle.attempts) == 1 and attempt in attempt.bundle.attempts:
                    age, median = now - attempt.since, attempt.bundle.function.durations.median
                    if median is not None and age > max(BACKUP_AGE[0], BACKUP_AGE[1] * median):
                        late.append((age * slowness, attempt.ident, attempt))
        for _, _, attempt in sorted(late, reverse=True)[:room]:
            machines = {attempt.worker.machine, *(machine for machine, _, _ in attempt.bundle.failures)}
            fit = [worker for worker in self._idle if worker.machine not in machines]
            if fit:
                best = min(fit, key=lambda worker: math.inf if worker.durations.median is None else worker.durations.median)
                attempt.bundle.origin = attempt.ident
                self._launch(attempt.bundle, best, now, backup=True)


# ─────────────────────────────────────────────────────── links ────────────────────────────────────────────────────

# The user's own configuration turns each of these on somewhere, and each would break a link. The first value given wins.
_SSH_SETTINGS = [
    "BatchMode=yes", "ClearAllForwardings=yes", "ControlMaster=no", "ControlPath=none", "PermitLocalCommand=no",
    "RemoteCommand=none", "ServerAliveInterval=5", "ServerAliveCountMax=3", "ConnectTimeout=10", "LogLevel=INFO"]
_SSH_SETTINGS_8_7 = ["StdinNull=no", "ForkAfterAuthentication=no"]      # unknown to older ones


def _diagnoses(*rows: tuple[str, bool, str]) -> list[tuple[re.Pattern[str], bool, str]]:
    return [(re.compile(pattern, re.IGNORECASE), permanent, remedy) for pattern, permanent, remedy in rows]


# What ssh says, whether trying again is in vain, and what the user can do about it. The first that fits counts.
_SSH_DIAGNOSES = _diagnoses(
    ("host key verification failed|host identification has changed", True,
     "run `ssh {login}` once, check the key it shows and accept it"),
    ("permission denied|too many authentication failures", True,
     "executors never asks for a password: set up a key with `ssh-copy-id {login}`"),
    ("temporary failure in name resolution", False, "is this machine's network up?"),
    ("could not resolve hostname|name or service not known", True, "is the name right? try `ssh {login}`"),
    ("bad configuration option|no such file or directory|unknown option|usage: ssh|invalid", True,
     "look at ssh_options and at your ~/.ssh/config"),
    ("connection refused", False, "is sshd running there, on that port?"),
    ("timed out|no route to host|network is unreachable", False, "is the machine up, and reachable from here?"),
    ("connection closed|connection reset|kex_exchange_identification|broken pipe", False,
     "sshd hung up: too many logins at once (its MaxStartups)? its own log knows; this is tried again"),
    ("", False, "try `ssh {login}`"),
)
# The same for scp, after a login that worked.
_SCP_DIAGNOSES = _diagnoses(
    ("kex_exchange_identification|closed by remote host|connection reset|connection refused|timed out|broken pipe", False,
     "sshd hung up: too many logins at once (its MaxStartups)? this is tried again"),
    ("message too long|produces no output", True,
     "a login file there prints something, which SFTP does not bear: let it be silent where there is no terminal"),
    ("permission denied|read-only", True, "~/.cache/executors must be writable there"),
    ("connection closed|subsystem request failed", True, "its sshd offers no SFTP: see `Subsystem sftp` in its sshd_config"),
    ("", True, "is there room in ~/.cache/executors?"),
)
# What ssh also says: with -v, and behind a jump host, where the reason stands before it.
_CHATTER = re.compile(r"debug\d: |OpenSSH_|Authenticated to |Transferred: |Bytes per second: |Connection to \S+ closed|\*\* ")
_JUMPED = "\nstdio forwarding failed"
# What `ssh -v` says on its way.
_MILESTONES = {"name": r"Connecting to \S+ \[\S+\]", "TCP": "Connection established", "login": "Authenticated to "}

# Runs on whatever Python is found, of any version. It says who it is and waits: what login files print has then gone before,
# and what reads their input finds none.
_FIRST_STAGE = '''import os,sys
sys.path[:]=[p for p in sys.path if p]
v=tuple(sys.version_info[:3])
n=getattr(getattr(sys,"implementation",None),"name","python")
os.write(1,("\\n%s %%d.%%d.%%d %%s %%s\\n"%%(v+(n,sys.executable))).encode("utf-8"))
def r(n):
    b=b""
    while len(b)<n:
        c=os.read(0,n-len(b))
        if not c:os._exit(0)
        b+=c
    return b
c=r(1)
while c==b"\\n":c=r(1)
exec(r(int(c+r(15))))
'''

# Sent to a Python of our own version. Makes a module of `remote_worker` without a file, and hands over.
_SECOND_STAGE = '''import pickle,sys,types
from importlib.machinery import ModuleSpec
file,text,modules=pickle.loads(r(int(r(16))))
module=sys.modules["remote_worker"]=types.ModuleType("remote_worker")
module.__file__=file
exec(compile(text,file,"exec"),module.__dict__)
module.__loader__=module._SourceLoader(file,text)
module.__spec__=ModuleSpec("remote_worker",module.__loader__,origin=file)
module.serve(modules)
'''
_NO_PYTHON = 126, "executors: no python"


class _LinkDown(Exception):
    """A link has ended, or could not be made: `cause` says why, `permanent` that trying again cannot help."""

    def __init__(self, cause: str, permanent: bool = False) -> None:
        super().__init__(cause)
        self.cause, self.permanent = cause, permanent


def _first_command(magic: str) -> str:
    """Return the arguments that make a Python run the first stage: plain characters only, for any shell."""
    stage = base64.b64encode((_FIRST_STAGE % magic).encode()).decode()
    return f'-c "import base64,sys;exec(base64.b64decode(sys.argv[1]))" {stage}'


def _link_argv(record: RemoteWorkerRecord, ssh_options: Sequence[str], magic: str) -> list[str]:
    """Return the command that starts a worker's first stage, with or without ssh.

    The remote part is one word list and one string in single quotes without '!' or a backslash, which sh, bash, dash, zsh,
    csh, tcsh and fish read alike. A pyenv shim for a version that is not active exits with 127: the next one is tried.
    """
    version = "{}.{}".format(*sys.version_info)
    candidates = record.python or f"python{version} python3"
    if record.machine == ":" and not record.python:
        candidates = sys.executable
    script = (f'for p in {candidates}; do command -v $p >/dev/null 2>&1 || continue; '
              f'$p {_first_command(magic)}; r=$?; test $r -eq 127 || exit $r; done; '
              f'echo {_NO_PYTHON[1]}: {candidates} >&2; exit {_NO_PYTHON[0]}')
    if record.machine == ":":
        return ["/bin/sh", "-c", script]
    settings = _ssh_settings()
    settings = settings + ["SessionType=default"] * ("StdinNull=no" in settings)      # of the same age; scp asks for another
    return [SSH, "-T", "-a", "-x", *_dash_o(settings), *ssh_options, "--", record.login, f"exec sh -c '{script}'"]


# Runs a command that is killed when our end of its standard input goes, as it does with this process.
_TIED = ["/bin/sh", "-c", ('exec 3<&0; "$@" </dev/null 3<&- & p=$!; { cat <&3 >/dev/null 2>&1; kill $p; } 2>/dev/null >&2 & '
                            'exec 3<&-; wait $p'), "sh"]


def _dash_o(settings: Iterable[str]) -> list[str]:
    return [word for setting in settings for word in ("-o", setting)]


@functools.cache
def _ssh_settings() -> list[str]:
    """Return the settings that this machine's OpenSSH knows; one which does not tell its version is taken to be new."""
    try:
        told = subprocess.run([SSH, "-V"], stdin=subprocess.DEVNULL, capture_output=True, check=False).stderr
    except OSError:
        told = b""
    found = re.search(rb"OpenSSH_\D*(\d+)\.(\d+)", told)
    return _SSH_SETTINGS + _SSH_SETTINGS_8_7 * (not found or (int(found[1]), int(found[2])) >= (8, 7))


def _scp_argv(record: RemoteWorkerRecord, ssh_options: Sequence[str], source: str, target: str) -> list[str]:
    """Return the command that copies one file; it has letters of its own for two of ssh's options."""
    options, login = _dash_o(_ssh_settings()), record.login
    remaining = iter(ssh_options)
    for option in remaining:
        if option[:2] in ("-p", "-l"):
            value = option[2:] or next(remaining, "")
            options += ["-o", f"{'Port' if option[1] == 'p' else 'User'}={value}"]
        elif not re.fullmatch("-v+", option):       # its chatter would hide what goes wrong
            options.append(option)
    if ":" in record.machine:
        login = login.replace(record.machine, f"[{record.machine}]")
    return [SCP, "-q", *options, "--", os.path.abspath(source), f"{login}:{target}"]


@functools.cache
def _bootstrap() -> bytes:
    """Return what makes a shim of a waiting first stage: our own text and cloudpickle's."""
    modules = {}
    for name in ("remote_worker", "cloudpickle"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        names = [name]
        for folder in spec.submodule_search_locations or ():
            names += [f"{name}.{file[:-3]}" for file in os.listdir(folder) if file.endswith(".py") and file[0] != "_"]
        modules.update({one: _find_source(one) for one in names})
    file, text, _ = modules.pop("remote_worker") or ("", "", False)
    answers = {name: pickle.dumps(answer) for name, answer in modules.items()}
    payload = pickle.dumps((file, text, answers))
    return b"%16d%s%16d%s" % (len(_SECOND_STAGE), _SECOND_STAGE.encode(), len(payload), payload)


class _Link:
    """The one ssh connection to a worker. It knows frames and pipes, and nothing of bundles' fates or of its owner.

    `open`, `work` and `discard` belong to the reader thread, `write_on` to the writer; any thread may `launch`, `send`,
    `look_after`, `close` and `abort`.
    """

    def __init__(self, record: RemoteWorkerRecord, ssh_options: Sequence[str], config: Mapping[str, Any]) -> None:
        self.record, self._ssh_options, self._config = record, ssh_options, config
        self._process: Any = None
        self._far_stdin, self._stdin = os.pipe()        # its ends of its pipes, until it is started, and ours
        self._stdout, self._far_stdout = os.pipe()
        self._copier: Any = None            # the scp under way
        self._copied_by = math.inf, ""      # when it is too late, and what to say then
        self._errors: Any = None            # its stderr: a file without a name
        self._noise = b""                   # what came before the magic: the login shell's
        self._reached = ""                  # how far the protocol got
        self.found: dict[str, str] = {}     # what each stage of opening found, for `--check`
        self._reader: Any = None
        self._abort_cause = ""
        self.hello: dict[str, Any] = {}
        self.is_working = False             # from here on, silence counts
        self.started = time.monotonic()
        self.round_trip = 0.0               # seconds, of the last ping
        # Liveness; written by one thread each, and read with no harm from another.
        self._pinged = 0.0
        self._reads = self._writes = 0
        self._seen = (-1, -1)
        self._reading = False               # False while our own code keeps the reader busy: the machine is not to blame
        self._missed = 0
        # Guards the rest. Who sets _writing is the one who writes, until it finds nothing left and clears it; or finds the link
        # closed: then it closes the descriptor, and _writing stays set.
        self._lock = threading.Lock()
        self._queue: list[Any] = []
        self._writing = self._closed = self._over = False
        self._outbox: Any = None
        self._stuck = threading.Semaphore(0)        # wakes the writer: what is left in the outbox is its to write
        self._known: OrderedDict[int, _Function] = OrderedDict()
        self._known_size = 0

    # Opening

    def open(self, files: Mapping[str, tuple[str, str, bool]]) -> None:
        """Start the shim and copy files to it. Raises _LinkDown, with ssh's own words."""
        magic = os.urandom(12).hex()
        argv = _link_argv(self.record, self._ssh_options, magic)
        self._errors = os.fdopen(os.memfd_create("stderr"), "r+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(argv, stdin=self._far_stdin, stdout=self._far_stdout, stderr=self._errors,
                                             start_new_session=True)
        except OSError as error:
            raise _LinkDown(f"cannot run {argv[0]}: {error.strerror}; install openssh-client", True) from None
        finally:
            self._close_far_ends()
        if self._abort_cause:
            self.abort(self._abort_cause)       # it came too early
        try:
            words = self._await_magic(magic.encode())
            self._found_shell()
            self._check_version(words)
            self.found["python"] = words[0]
            self._reached = "start"
            self._start_frames()
            self.send([_bootstrap()])
            self.hello = self._await(wire.HELLO)
            self.found.update(start=_seconds(time.monotonic() - self.started), cores=str(self.hello["cores"]))
            if files:
                self._copy(files)
            self.send([wire.frame(wire.CONFIG, 0, pickle.dumps({
                **self._config, "machine": self.record.machine, "slots": self.record.count or self.hello["cores"]}))])
            self._reached = "work"
            self.is_working = True
        except (OSError, EOFError, wire.FrameError) as error:
            raise self._diagnosis(error) from None

    def _await_magic(self, magic: bytes) -> list[str]:
        """Read past the noise of login files to the line that the first stage prints; return its words."""
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        while True:
            if not poll.poll(1000):
                os.write(self._stdin, b"\n")        # for a login file that reads; the first stage skips what nobody has read
                continue
            data = os.read(self._stdout, wire.READ_SIZE)
            if not data:
                raise EOFError
            self._noise += data
            before, found, line = self._noise.rpartition(magic)
            if found and line.endswith(b"\n"):
                self._noise = before[-2000:]
                return line.decode("utf-8", "replace").split(maxsplit=2)
            self._noise = self._noise[-wire.READ_SIZE:]

    def _found_shell(self) -> None:
        for stage in _MILESTONES:
            self.found.setdefault(stage, "ok")
        self.found["shell"] = "noisy" if self._noise.strip() else "quiet"

    def _check_version(self, words: list[str]) -> None:
        version, implementation, path = words
        ours = "{}.{}".format(*sys.version_info)
        if implementation != sys.implementation.name or version.rpartition(".")[0] != ours:
            raise _LinkDown(f"has {implementation} {version} at {path.strip()}, but needs {sys.implementation.name} {ours}, "
                            "as here (pickled code does not cross versions): install that there, or name it in the worker's "
                            f"record, python=/path/to/python{ours}", True)

    def _start_frames(self) -> None:
        os.set_blocking(self._stdin, False)
        for fd in (self._stdin, self._stdout):
            wire._enlarge(fd)
        self._reader, self._outbox = wire.MessageReader(self._stdout), wire.Outbox(self._stdin)

    def _await(self, kind: int) -> Any:
        while True:
            for got, _, _, payload in self.read():
                if got == kind:
                    return pickle.loads(payload)

    def _copy(self, files: Mapping[str, tuple[str, str, bool]]) -> None:
        """Have files put where slots find them; only what the machine has not got is copied, and it checks the digest."""
        names = {name: (digest, is_tree) for name, (_, digest, is_tree) in files.items()}
        arrived: dict[str, str] = {}
        while True:
            self.send([wire.frame(wire.FILES, 0, pickle.dumps({"names": names, "arrived": arrived}))])
            wanted = self._await(wire.STORED)
            if isinstance(wanted, str):
                for name in arrived:
                    if wire.digest_file(files[name][0]) != names[name][0]:
                        wanted = f"{name} has changed here since the pool was made: make a new pool for it"
                raise _LinkDown(f"cannot store files: {wanted}", True)
            if not wanted:
                return
            for name, target in wanted.items():
                source = files[name][0]
                if self.record.machine == ":":
                    shutil.copyfile(source, os.path.join(os.path.expanduser("~"), target))
                    continue
                self._scp(name, source, target)
            arrived = wanted

    def _scp(self, name: str, source: str, target: str) -> None:
        """Copy one file there. Raises _LinkDown, with scp's own words."""
        patience = HELLO_SECONDS + os.path.getsize(source) / SCP_RATE
        self._copier = subprocess.Popen([*_TIED, *_scp_argv(self.record, self._ssh_options, source, target)],
                                        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                        start_new_session=True)
        self._copied_by = time.monotonic() + patience, f"scp of {name} was not done after {patience:.0f} s"
        with self._copier as copier:
            words = _without_chatter(copier.stderr.read().decode("utf-8", "replace"))
        self._copied_by = math.inf, ""
        if self._abort_cause:
            raise _LinkDown(self._abort_cause)
        if copier.returncode:
            said, permanent = self._judge(words, _SCP_DIAGNOSES)
            raise _LinkDown(f"scp of {name} failed: {said}", permanent)

    def _diagnosis(self, error: Exception) -> _LinkDown:
        """Say why a link ended by how far it got, ssh's words, and its exit status (255 means ten things)."""
        if self._abort_cause:
            return _LinkDown(self._abort_cause)
        try:
            status = self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        words = self._words()
        if self._reached:
            return _LinkDown(f"connection lost ({_last_line(words) or str(error) or 'the other end is gone'})")
        if status == _NO_PYTHON[0] and _NO_PYTHON[1] in words:
            self._found_shell()
            tried = _last_line(words).rpartition(": ")[2]
            return _LinkDown(f"no Python: tried {tried}; install it there, or name it in the worker's record, "
                             "python=/path/to/python", True)
        if status == 255:
            return _LinkDown(*self._judge(words, _SSH_DIAGNOSES))
        said = _last_line(words) or _last_line(self._noise) or "nothing was said"
        return _LinkDown(f"the login ended with status {status} before Python started: {said} -- does `ssh {self.record.login} "
                         "true` work, without a word?", status is not None)

    def _judge(self, words: str, diagnoses: Sequence[tuple[re.Pattern[str], bool, str]]) -> tuple[str, bool]:
        """Return the last words with a remedy, and whether it is in vain to try again. The lines before them count less."""
        said = _last_line(words) or "nothing was said"
        for text in (said, words):
            for pattern, permanent, remedy in diagnoses[:-1] if text is said else diagnoses:
                if pattern.search(text):
                    return f"{said} -- {remedy.format(login=self.record.login)}", permanent
        raise AssertionError("the last pattern fits everything")

    def _words(self) -> str:
        """What ssh, and then the shim, have said on stderr, without the chatter. Notes the milestones that ssh has passed."""
        size = os.fstat(self._errors.fileno()).st_size
        text = os.pread(self._errors.fileno(), 1 << 16, max(0, size - (1 << 16))).decode("utf-8", "replace")
        for stage, pattern in _MILESTONES.items():
            if re.search(pattern, text):
                self.found[stage] = "ok"
        return _without_chatter(text)

    # Working

    def read(self) -> list[tuple[int, int, Any, Any]]:
        """Wait for messages. Raises EOFError, OSError or FrameError at the link's end."""
        self._reading = True
        messages: list[tuple[int, int, Any, Any]] = self._reader.read()
        self._reads += 1
        self._reading = False
        return messages

    def work(self) -> Iterator[list[tuple[int, int, Any, Any]]]:
        """Yield messages for as long as the link lives. Raises _LinkDown at its end."""
        try:
            while True:
                messages = self.read()
                if messages and messages[-1][0] == wire.PONG:
                    self.round_trip = time.monotonic() - self._pinged
                yield messages
        except (OSError, EOFError, wire.FrameError) as error:
            raise self._diagnosis(error) from None

    def forget(self, ident: int) -> None:
        """Drop what has come of an attempt's result whose sender has died."""
        self._reader.forget(ident)

    def launch(self, attempts: Iterable[_Attempt]) -> None:
        """Send attempts, each function ahead of its first call here."""
        with self._lock:
            for attempt in attempts:
                packed = attempt.bundle.packed
                function = attempt.bundle.function      # read last: it is cleared first when a bundle is settled
                if function is None:
                    continue        # cancelled since it was decided; the machine answers the KILL all the same
                if function.ident not in self._known:
                    self._introduce(function)
                if type(packed) is bytes:
                    self._queue.append(wire.SHORT.pack(wire.CALL, attempt.ident, 9 + len(packed), function.ident, 0) + packed)
                else:
                    self._queue += wire.message(wire.CALL, attempt.ident, function.ident, packed)
        self.send(())

    def _introduce(self, function: _Function) -> None:
        self._known[function.ident] = function
        self._known_size += function.size
        self._queue += wire.message(wire.FUNCTION, function.ident, 0, function.packed)
        number, size = KNOWN_FUNCTIONS
        while len(self._known) > 1 and (len(self._known) > number or self._known_size > size):
            ident, oldest = self._known.popitem(last=False)
            self._known_size -= oldest.size
            self._queue.append(wire.frame(wire.FORGET, ident))

    def send(self, buffers: Iterable[Any]) -> None:
        """Send frames: from this thread while the pipe takes them, which saves a switch of threads when the link is idle."""
        with self._lock:
            self._queue += buffers
            if self._writing or self._closed or not self._queue:
                return
            self._writing = True
        self._write()

    def _write(self) -> None:
        """Write what is queued until there is none, or until the pipe is full: then the writer thread goes on from there."""
        outbox = self._outbox
        while True:
            with self._lock:
                queue, self._queue = self._queue, []
                closed = self._closed
                if closed or not queue and not outbox.size:
                    self._writing = closed
                    break
            outbox.put(queue)
            try:
                done = outbox.flush()
            except OSError:         # ssh has ended; the reader will say so
                with self._lock:
                    closed = self._closed = True
                break
            self._writes += 1
            if not done:
                self._stuck.release()
                return
        if closed:
            self._close_stdin()

    def _close_stdin(self) -> None:
        fd, self._stdin = self._stdin, -1       # in this order, for a process that is forked meanwhile
        os.close(fd)

    def _close_far_ends(self) -> None:
        fds, self._far_stdin, self._far_stdout = (self._far_stdin, self._far_stdout), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def write_on(self) -> None:
        """Be the writer thread: go on where others found the pipe full, until the link is closed."""
        while True:
            self._stuck.acquire()
            if self._over:
                return
            poll = select.poll()
            poll.register(self._outbox.fd, select.POLLOUT)
            while not poll.poll(1000) and not self._closed:
                pass        # it is stuck; whether for good is for the heartbeat to say
            self._write()
            if self._closed:
                return

    def look_after(self, now: float, beat: bool) -> None:
        """Cut off a login that leads nowhere; with `beat`, ping a machine that works."""
        copied_by, complaint = self._copied_by
        if now > copied_by:
            self.abort(f"{complaint} -- does `sftp {self.record.login}` work?")
        elif self.is_working and beat:
            self._beat()
        elif not self.hello and now - self.started > HELLO_SECONDS:
            self.abort(f"nothing was heard for {HELLO_SECONDS:g} s but {_last_line(self._noise)!r} -- does `ssh "
                       f"{self.record.login} true` end by itself?")

    def _beat(self) -> None:
        """Ping. A machine that has given no sign of life for three beats is cut off; counted in beats, not seconds, so that a
        controller that was suspended does not condemn everyone when it wakes. Bytes moving either way are signs of life."""
        signs = self._reads, self._writes if self._writing else 0
        if signs != self._seen or not self._reading:
            self._seen, self._missed = signs, 0
        else:
            self._missed += 1
            if self._missed >= MISSED_BEATS:
                self.abort(f"no answer to {self._missed} heartbeats")
                return
        self._pinged = time.monotonic()
        self.send([wire.frame(wire.PING)])

    # Ending

    def close(self) -> None:
        """End the link in peace: the shim sees the end of its input, and goes."""
        self._abort_cause = self._abort_cause or "closed"
        with self._lock:
            self._closed, mine, self._writing = True, not self._writing, True
        if mine:
            self._close_stdin()
            self._over = True
            self._stuck.release()

    def abort(self, cause: str) -> None:
        """End the link at once; the reader thread sees it end."""
        self._abort_cause = self._abort_cause or cause
        victims = [(-process.pid, signal.SIGKILL) for process in (self._process, self._copier) if process is not None]
        if self.record.machine == ":" and self.hello:       # no ssh to cut: end the shim, and see that its guardian is awake
            victims += [(self.hello["pid"], signal.SIGKILL), (self.hello["guardian"], signal.SIGCONT)]
        for pid, number in victims:
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                pass
        self.close()

    def discard(self) -> None:
        """Release everything; called by the reader thread, when nothing else reads."""
        self.close()
        if self._process is not None:
            try:
                self._process.wait(CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self.abort("did not end")
                self._process.wait()
        self._close_far_ends()
        stdout, self._stdout = self._stdout, -1
        os.close(stdout)
        if self._errors is not None:
            self._errors.close()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connection without a word."""
        for fd in (self._stdin, self._stdout, self._far_stdin, self._far_stdout):
            if fd >= 0:
                os.close(fd)


def _without_chatter(text: str) -> str:
    return "\n".join(line for line in text.partition(_JUMPED)[0].splitlines() if line.strip() and not _CHATTER.match(line))


def _last_line(words: str | bytes) -> str:
    text = words if isinstance(words, str) else words.decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


# What follows users' code


_SHIPPABLE = {"executors", "remote_worker", "cloudpickle"}      # wherever they are installed


@functools.cache
def _installed_roots() -> tuple[str, ...]:
    import sysconfig
    paths = sysconfig.get_paths()
    return tuple({os.path.realpath(paths[key]) + os.sep for key in ("stdlib", "platstdlib", "purelib", "platlib")})


def _is_installed(path: str) -> bool:
    path = os.path.realpath(path)
    return path.startswith(_installed_roots()) or not {"site-packages", "dist-packages"}.isdisjoint(path.split(os.sep))


def _find_spec(name: str) -> Any:
    """Find a module without importing its parents."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if isinstance(getattr(spec, "loader", None), wire._SourceLoader):       # we are in a task, and it came from elsewhere itself
        return spec
    parent = name.rpartition(".")[0]
    if not parent:
        return importlib.util.find_spec(name)
    spec = _find_spec(parent)
    locations = spec and spec.submodule_search_locations
    return locations and importlib.machinery.PathFinder.find_spec(name, locations)


def _find_source(name: str) -> tuple[str, str, bool] | None:
    """Return `(file, source, is a package)` of a module of the project; None for any other, which the worker must have."""
    try:
        spec = _find_spec(name)
        if spec is None:
            return None
        locations = spec.submodule_search_locations
        ours = name.partition(".")[0] in _SHIPPABLE
        if isinstance(spec.loader, wire._SourceLoader):
            return spec.loader._filename, spec.loader.get_source(name), locations is not None
        if not spec.has_location:
            is_namespace = locations is not None and not all(map(_is_installed, locations))
            return (wire.ModuleFinder.NAMESPACE, "", True) if is_namespace else None
        if not spec.origin.endswith(".py") or _is_installed(spec.origin) and not ours:
            return None
        with open(spec.origin, "rb") as file:
            return spec.origin, importlib.util.decode_source(file.read()), locations is not None
    except (ImportError, OSError, ValueError, AttributeError, SyntaxError):
        return None


# ─────────────────────────────────────────────────── RemoteExecutor ───────────────────────────────────────────────


class _Condition(threading.Condition):
    """A Condition of a third of the size: a million may be alive, and the garbage collector looks at each of their parts."""

    def __init__(self) -> None:
        self._lock: Any = _thread.RLock()
        self._waiters: deque[Any] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return bool(self._lock.acquire(blocking, timeout))

    def release(self) -> None:
        self._lock.release()

    def _release_save(self) -> Any:
        return self._lock._release_save()

    def _acquire_restore(self, state: Any) -> None:
        self._lock._acquire_restore(state)

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())


class _RemoteFuture(Future):        # type: ignore[type-arg]
    """A future that can be cancelled while it runs, and of which a million may wait.

    What only a waiter needs is made when one comes. The state stays PENDING until the future is settled.
    """

    _state, _result, _exception = concurrent.futures._base.PENDING, None, None
    _LAZY: ClassVar[dict[str, Callable[[], Any]]] = {"_condition": _Condition, "_waiters": list, "_done_callbacks": list}

    def __init__(self, supervisor: _Supervisor, bundle: _Bundle) -> None:
        self._supervisor: _Supervisor | None = supervisor
        self._bundle: _Bundle | None = bundle

    def __getattr__(self, name: str) -> Any:
        make = self._LAZY.get(name)
        if make is None:
            raise AttributeError(name)
        return self.__dict__.setdefault(name, make())       # atomic: several threads may come at once

    def running(self) -> bool:
        bundle = self._bundle
        return bundle is not None and bool(bundle.attempts) and not self.done()

    def cancel(self) -> bool:
        supervisor, bundle = self._supervisor, self._bundle
        return (bundle is not None and supervisor is not None and supervisor.cancel(bundle)) or self.cancelled()


class _Supervisor:
    """Own what a pool owns: the lock, the scheduler behind it, the links, the heartbeat.

    It is apart from `RemoteExecutor` so that its threads do not keep that alive: a pool that nobody holds any more ends.
    """

    def __init__(self, scheduler: _Scheduler, title: str, ssh_options: Sequence[str], files: Iterable[str],
                 heartbeat_seconds: float, show_status: bool | None, output: bool | Callable[[str, str, str], object]) -> None:
        self.title, self._ssh_options, self._heartbeat_seconds = title, ssh_options, heartbeat_seconds
        self._files, self._cleanup = _prepare_files([*files])
        self._config = {"lease": LEASE_BEATS * heartbeat_seconds, "output": bool(output)}
        self._idents = itertools.count(1 << 62)        # of functions; attempts count from 1
        self._references: dict[tuple[str, str], _Function] = {}
        self._durations: dict[str, _Durations] = {}
        self._by_digest: weakref.WeakValueDictionary[bytes, _Function] = weakref.WeakValueDictionary()
        self._lost_seconds = 0.0            # that this process was suspended; written by the heartbeat alone
        self._board = _Scoreboard(show_status, output)
        self.pid, self._main = os.getpid(), threading.main_thread().ident
        self.wake: SimpleQueue[Any] = SimpleQueue()     # for the heartbeat: what has happened, and requests of the main thread
        self.ended = threading.Event()
        # The one lock. It guards the scheduler, the links' set, and the tables of functions.
        self._lock = threading.Lock()
        self._scheduler = scheduler
        self._links: set[_Link] = set()
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._start_thread(f"{title} heartbeat", self._keep_time)

    def _start_thread(self, name: str, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        self._threads.add(thread)
        thread.start()

    # The door

    def decide(self, decision: Callable[..., Any], *operands: Any) -> Any:
        """Let the scheduler decide under the lock; then, without it, do what was decided.

        Ctrl-C may interrupt the main thread between any two bytecodes, and would leave a decision half made or half done. So the
        main thread has the heartbeat pass the door for it, in the order of its calls, and only waits for the answer.
        """
        if threading.get_ident() != self._main or self.ended.is_set():
            with self._lock:
                answer = decision(*operands)
                actions = self._scheduler.take_actions()
            if actions:
                self._perform(actions)
            return answer
        answers: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
        self.wake.put((decision, operands, answers.put))
        while True:
            try:
                right, answer = answers.get(timeout=1.0)
            except Empty:
                if self.ended.is_set():     # the heartbeat missed it by a hair
                    return self.decide(decision, *operands)
            else:
                if right:
                    return answer
                raise answer

    def _decide_for(self, events: Iterable[Any]) -> None:
        """Pass the door for the main thread, with all it asked for at once: bundles to submit, and requests that it waits for."""
        replies: list[tuple[Callable[..., Any], Any]] = []
        submit, now = self._scheduler.submit, self.now()
        with self._lock:
            for event in events:
                try:
                    if type(event) is _Bundle:
                        submit(event, now)
                    elif type(event) is tuple:
                        decision, operands, reply = event
                        replies.append((reply, (True, decision(*operands))))
                except Exception as error:      # of a submission: the pool was closed, or broke, since it was looked at
                    replies.append((event.future.set_exception, error) if type(event) is _Bundle else (event[2], (False, error)))
            actions = self._scheduler.take_actions()
        if actions:
            self._perform(actions)
        for reply, answer in replies:
            reply(answer)

    def now(self) -> float:
        """The time in seconds; it stands still while this process is suspended."""
        return time.monotonic() - self._lost_seconds

    def _perform(self, actions: list[Any]) -> None:
        launches: dict[_Link, list[_Attempt]] = {}
        for verb, *operands in actions:
            if verb is _LAUNCH:
                launches.setdefault(operands[0], []).append(operands[1])
        for link, attempts in launches.items():
            link.launch(attempts)
        for verb, *operands in actions:
            if verb is _SETTLE:
                self._settle(*operands)
            elif verb is not _LAUNCH:
                self._do(verb, *operands)
        if _log.isEnabledFor(logging.DEBUG):
            _log_actions(actions)

    def _do(self, verb: str, *operands: Any) -> None:
        if verb is _CONNECT:
            worker, = operands
            link = _Link(worker.record, self._ssh_options, self._config)
            with self._lock:
                self._links.add(link)
            try:
                self._start_thread(f"{worker.machine} writer", link.write_on)
                self._start_thread(f"{worker.machine} reader", self._serve, worker, link)
            except RuntimeError as error:       # there are too many; and Python 3.12.0 and 3.12.1 start none at exit
                self._end_link(worker, link, str(error), True)
        elif verb is _KILL:
            link, ident = operands
            link.send([wire.frame(wire.KILL, ident)])
        elif verb is _RECALL:
            link, number = operands
            link.send([wire.frame(wire.RECALL, number)])
        elif verb is _LEAVE:
            operands[0].close()
        elif verb is _FINISH:
            self.wake.put("finished")

    def _settle(self, bundle: _Bundle, kind: int, body: Any) -> None:
        """Resolve a future. Unpickling and callbacks are the user's code: nothing they raise may pass."""
        future, name = bundle.future, bundle.function.name
        bundle.function = None
        bundle.packed = bundle.future = future._bundle = future._supervisor = None
        try:
            if kind == wire.RESULT:
                try:
                    value = wire.unpack(body)
                except BaseException as error:
                    kind, body = _FAILED, BundleError(name, f"its result cannot be unpickled here: {_describe(error)}")
                    body.__cause__ = error
                else:
                    future.set_result(value)
                    return
            if kind == wire.ERROR:
                future.set_exception(_rebuild(name, body))
            elif kind == _CANCELLED:
                Future.cancel(future)
                future.set_running_or_notify_cancel()
            else:
                future.set_exception(body)
        except BaseException:
            _log.exception("%s: a callback of the future of %s raised", self.title, name)

    # Threads: a reader and a writer for each link, and the heartbeat

    def _serve(self, worker: _Worker, link: _Link) -> None:
        cause, permanent = "closed", False
        try:
            link.open(self._files)
            _log.info("%s: %s is up: %d cores, %s", self.title, worker.record, link.hello["cores"], link.hello["python"])
            self.decide(self._scheduler.up, worker, link, link.hello["cores"], self.now())
            for messages in link.work():
                self._receive(worker, link, messages)
        except _LinkDown as down:
            cause, permanent = down.cause, down.permanent
        except Exception as error:
            _log.exception("%s: the link to %s failed", self.title, worker.record)
            cause = _describe(error)
        self._end_link(worker, link, cause, permanent)

    def _end_link(self, worker: _Worker, link: _Link, cause: str, permanent: bool) -> None:
        try:
            if cause != "closed":
                _log.log(logging.ERROR if permanent else logging.WARNING, "%s: %s: %s", self.title, worker.record, cause)
            link.discard()
            self.decide(self._scheduler.down, worker, link, cause, permanent, self.now())
        finally:
            with self._lock:
                self._links.discard(link)
            self.wake.put("link ended")

    def _receive(self, worker: _Worker, link: _Link, messages: list[tuple[int, int, Any, Any]]) -> None:
        scheduler, results = self._scheduler, []
        for kind, ident, tag, body in messages:
            if kind == wire.RESULT or kind == wire.ERROR:
                results.append((kind, ident, tag, body))
            elif kind == wire.OUTPUT:
                self._board.show_output(worker.machine, ident, body)
            elif kind == wire.DIED:
                link.forget(ident)
                slot, status, words = pickle.loads(body)
                self.decide(scheduler.died, worker, link, ident, slot, _ending(status), words.decode("utf-8", "replace"), self.now())
            elif kind == wire.KILLED:
                link.forget(ident)
                self.decide(scheduler.freed, worker, link, ident, pickle.loads(body), self.now())
            elif kind == wire.RECALLED:
                idents = [one for one, in wire.IDENT.iter_unpack(body)]
                self.decide(scheduler.recalled, worker, link, idents, self.now())
            elif kind == wire.WANTED:
                name = body.decode()
                answer = pickle.dumps((name, pickle.dumps(_find_source(name))))
                parts = [answer[at:at + wire.MAX_FRAME] for at in range(0, len(answer), wire.MAX_FRAME)]
                link.send([wire.frame(wire.MODULE, len(parts) - number, part) for number, part in enumerate(parts, 1)])
            elif kind == wire.PONG:
                self.decide(scheduler.measured, worker, link, link.round_trip)
        if results:
            self.decide(scheduler.finish, worker, link, results, self.now())

    def _keep_time(self) -> None:
        """Be the heartbeat, until the scheduler has finished and no link is left."""
        period = min(TICK_SECONDS, max(0.1, self._heartbeat_seconds))
        tick_at = beat_at = 0.0
        last, finished_at = time.monotonic(), math.inf
        while finished_at == math.inf or self._current_links():
            events = self._next_events(tick_at - last)
            now = time.monotonic()
            if now - last > 1.0 + period:       # this process was suspended; nobody else's time has passed
                self._lost_seconds += now - last
            last = now
            try:
                self._decide_for(events)
                if "abandoned" in events:       # nobody holds the executor any more
                    self.decide(self._scheduler.close, False)
                if "finished" in events:
                    finished_at = now
                    for link in self._current_links():
                        link.close()
                if now >= tick_at:
                    tick_at = now + period
                    beat = now >= beat_at
                    beat_at = now + self._heartbeat_seconds if beat else beat_at
                    self._look_after_links(now, beat, now - finished_at > CLOSE_SECONDS)
                    self.decide(self._scheduler.tick, self.now())
                    self._board.tick(self.status, beat)
            except Exception:       # without a heartbeat, nothing would ever end
                _log.exception("%s: the heartbeat stumbled", self.title)
        self._cleanup()
        self._board.finish(self.status(), self.histogram)
        self.ended.set()
        self._decide_for(self._next_events(0))

    def _next_events(self, patience: float) -> list[Any]:
        """Wait for something to happen, and return all that has."""
        events = []
        try:
            events.append(self.wake.get(timeout=max(patience, 0)))
            while len(events) < 1000:
                events.append(self.wake.get_nowait())
        except Empty:
            pass
        return events

    def _look_after_links(self, now: float, beat: bool, late: bool) -> None:
        for link in self._current_links():
            if late:
                link.abort("did not end")
            else:
                link.look_after(now, beat)

    def _current_links(self) -> list[_Link]:
        with self._lock:
            return [*self._links]

    # What callers want

    def function(self, fn: Callable[..., Any]) -> _Function:
        """Pickle a function, or find that it is known: by its name if it can be imported, otherwise by its contents."""
        key = _reference(fn)
        if key is not None:
            function = self._references.get(key)
            if function is None:
                import cloudpickle
                by_value = key[0] in cloudpickle.list_registry_pickle_by_value()
                function = self._intern(fn, wire.pack(fn) if by_value else pickle.dumps(fn, 5))
                with self._lock:
                    self._references.setdefault(key, function)
            return function
        return self._intern(fn, wire.pack(fn))

    def _intern(self, fn: Callable[..., Any], packed: Any) -> _Function:
        digest = hashlib.sha256()
        for buffer in (packed,) if type(packed) is bytes else packed[1]:
            digest.update(buffer)
        name, code = _name(fn), getattr(fn, "__code__", None)
        family = f"{getattr(fn, '__module__', '')}.{name}:{getattr(code, 'co_firstlineno', 0)}"
        with self._lock:
            function = self._by_digest.get(digest.digest())
            if function is None:
                durations = self._durations.setdefault(family, _Durations())
                function = self._by_digest[digest.digest()] = _Function(next(self._idents), name, packed, durations)
        return function

    def submit(self, function: _Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        if os.getpid() != self.pid:
            raise RuntimeError("this executor belongs to the parent process; make another one after a fork")
        bundle = _Bundle(function, wire.pack_call(args, kwargs))
        future = bundle.future = _RemoteFuture(self, bundle)
        if threading.get_ident() == self._main:
            self._scheduler.check_open()
            self.wake.put(bundle)
        else:
            self.decide(self._scheduler.submit, bundle, self.now())
        return future

    def cancel(self, bundle: _Bundle) -> bool:
        return os.getpid() == self.pid and bool(self.decide(self._scheduler.cancel, bundle))

    def shutdown(self, wait: bool, cancel_futures: bool, quiet: bool = False) -> None:
        if os.getpid() != self.pid:
            return
        self._board.quiet = self._board.quiet or quiet
        self.decide(self._scheduler.close, cancel_futures)
        # A callback that shuts its own pool down cannot wait for itself.
        if wait and threading.current_thread() not in self._threads and not self._board.runs_here():
            self.ended.wait()

    @property
    def task_count(self) -> int:
        return int(self.decide(lambda: self._scheduler.unfinished))

    @property
    def histogram(self) -> Histogram:
        total = Histogram()
        with self._lock:
            for worker in self._scheduler.workers:
                total.merge(worker.durations)
        return total

    def status(self) -> RemoteExecutorStatus:
        status: RemoteExecutorStatus = self.decide(_take_status, self.title, self._scheduler, self.now())
        return status

    def abandon(self) -> None:
        """In a forked child: the links are the parent's."""
        for link in self._links:
            link.abandon()


def _prepare_files(paths: Sequence[str]) -> tuple[dict[str, tuple[str, str, bool]], Callable[[], None]]:
    """Return `{name: (file to copy, its SHA-256, is it a tar of a directory)}` and what removes the tars."""
    files: dict[str, tuple[str, str, bool]] = {}
    if not paths:
        return files, lambda: None
    folder = tempfile.TemporaryDirectory(prefix="executors-")
    try:
        for path in paths:
            name = os.path.basename(os.path.abspath(path))
            if name in files:
                raise ValueError(f"files has two named {name}; slots could see only one")
            source = _tar(path, os.path.join(folder.name, name)) if os.path.isdir(path) else path
            files[name] = source, wire.digest_file(source), source is not path
    except BaseException:
        folder.cleanup()
        raise
    return files, folder.cleanup


def _tar(path: str, target: str) -> str:
    import tarfile

    def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.mtime = info.uid = info.gid = 0        # the same content makes the same file
        info.uname = info.gname = ""
        return info

    with tarfile.open(target, "w") as tar:
        tar.add(os.path.realpath(path), "content", filter=anonymous)
    return target


def _name(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.args[0] if fn.func is wire.run_chunk else fn.func
    return getattr(fn, "__qualname__", None) or type(fn).__qualname__


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {wire._text(error)}"


def _ending(status: int) -> str:
    """Say how a process ended, from its wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}" + (" (out of memory?)" if number == signal.SIGKILL else "")
        except ValueError:
            return f"killed by signal {number}"
    return f"exited with status {os.WEXITSTATUS(status)}"


def _rebuild(name: str, body: Any) -> BaseException:
    """Return the exception of an ERROR message, with the remote traceback as its cause; see `wire.pack_outcome`."""
    stage, pickled, kind, text, trace = wire.unpack(body)
    error: BaseException | None = None
    if stage == "run" and pickled is not None:
        try:
            error = pickle.loads(pickled)
        except BaseException as problem:
            text += f" (the exception cannot be unpickled here: {_describe(problem)})"
    if not isinstance(error, BaseException):
        what = {"arguments": "its function or arguments cannot be unpickled there", "result": "its result cannot be pickled",
                "round trip": "its result cannot be unpickled", "run": "it raised an exception that cannot be pickled"}[stage]
        error = BundleError(name, f"{what}: {kind}: {text}")
    error.__cause__ = _RemoteTraceback(trace)
    return error


def _log_actions(actions: list[Any]) -> None:
    for verb, *operands in actions:
        if verb is _LAUNCH:
            attempt = operands[1]
            _log.debug("attempt %d of %x on %s: %s", attempt.ident, id(attempt.bundle), attempt.worker.machine,
                       "launched as a backup" if attempt.backup else "launched")
        else:
            _log.debug("%s %s", verb, operands[1:])


_supervisors: weakref.WeakSet[_Supervisor] = weakref.WeakSet()


@functools.cache
def _prepare_process() -> None:
    """Have pools drained at exit, before threads can no longer start, and let go of in forked children. Done once."""
    register = getattr(threading, "_register_atexit", atexit.register)
    def for_all(method: Callable[..., None], *arguments: bool) -> None:
        for supervisor in [*_supervisors]:
            method(supervisor, *arguments)

    register(functools.partial(for_all, _Supervisor.shutdown, True, False))
    os.register_at_fork(after_in_child=functools.partial(for_all, _Supervisor.abandon))


class RemoteExecutor(BaseExecutor):
    """Run tasks on every machine you can `ssh` into.

    Arguments:
        workers: records, or their text form (see RemoteWorkerRecord).
        policy: who gets the next attempt; by default at random, by weight.
        title: a name for logs and displays.
        ssh_options: further arguments for ssh, such as ["-p", "2222"]; they cannot undo what a link needs.
        files: files and directories to be found by name in the working directory of tasks, copied by scp once per content.
        schedule_backups: race stragglers by a second attempt elsewhere; default $EXECUTORS_SCHEDULE_REMOTE_BACKUPS, else True.
        max_bundle_failures: processes that a task may kill before it is given up; default $EXECUTORS_MAX_BUNDLE_FAILURES, else 3.
        bundle_timeout: seconds that an attempt may run before its task is killed with BundleTimeoutError.
        heartbeat_seconds: between pings; a machine that leaves three unanswered is lost.
        show_status: False shows nothing; by default a scoreboard stands at the bottom of the terminal while tasks run, if stderr
            is one; True prints the status every few heartbeats if it is not. The log has it at INFO in any case.
        output: what becomes of what tasks print: by default it is printed here, each line headed by its machine; False drops it;
            a function is called with `(machine, "stdout" or "stderr", line)`, one at a time, in a thread of its own.

    Large buffers (NumPy arrays) are sent from where they are: do not change an array until the task it went to is done.

    Raises ValueError for workers that cannot be parsed, and FileNotFoundError for files that do not exist. That no machine
    can be reached is told by the futures, and then by `submit`, with NoWorkersError.

    >>> with RemoteExecutor(["2/:"], show_status=False) as pool:
    ...     list(pool.map(pow, [2, 3], [5, 2]))
    [32, 9]
    """

    def __init__(self, workers: Iterable[RemoteWorkerRecord | str], policy: RemoteWorkerSelectionPolicy | None = None, *,
                 title: str = "", ssh_options: Sequence[str] = (),
                 files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
                 schedule_backups: bool | None = None, max_bundle_failures: int | None = None,
                 bundle_timeout: float | None = None, heartbeat_seconds: float = 5.0, show_status: bool | None = None,
                 output: bool | Callable[[str, str, str], object] = True) -> None:
        self.title = title or type(self).__name__
        records = _parse_workers(workers)
        if not records:
            raise ValueError("workers is empty: name at least one machine, or ':' for this one")
        if schedule_backups is None:
            schedule_backups = _from_environment("EXECUTORS_SCHEDULE_REMOTE_BACKUPS", _boolean) is not False
        if max_bundle_failures is None:
            max_bundle_failures = _from_environment("EXECUTORS_MAX_BUNDLE_FAILURES", int) or 3
        for name, value in (("max_bundle_failures", max_bundle_failures), ("heartbeat_seconds", heartbeat_seconds),
                            ("bundle_timeout", bundle_timeout)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value!r}; it must be more than 0")
        scheduler = _Scheduler(policy or WeightedRandomRemoteWorkerSelectionPolicy(), schedule_backups=schedule_backups,
                               max_bundle_failures=max_bundle_failures, bundle_timeout=bundle_timeout)
        paths = [files] if isinstance(files, (str, os.PathLike)) else files
        self._supervisor = _Supervisor(scheduler, self.title, list(ssh_options), [os.fspath(path) for path in paths],
                                       heartbeat_seconds, show_status, output)
        _prepare_process()
        _supervisors.add(self._supervisor)
        self._finalizer = weakref.finalize(self, self._supervisor.wake.put, "abandoned")
        for record in records:
            self.add_worker(record)

    @property
    def task_count(self) -> int:
        return self._supervisor.task_count

    @property
    def histogram(self) -> Histogram:
        return self._supervisor.histogram

    @property
    def status(self) -> RemoteExecutorStatus:
        """A snapshot of the pool; `print(pool.status)` shows it."""
        return self._supervisor.status()

    def add_worker(self, worker: RemoteWorkerRecord | str) -> None:
        """Let one more machine join."""
        record, = _parse_workers([worker])
        supervisor = self._supervisor
        supervisor.decide(supervisor._scheduler.add_worker, record, supervisor.now())

    def remove_worker(self, worker: RemoteWorkerRecord | str) -> None:
        """Let a machine leave; what runs there is run elsewhere. Raises ValueError if it is not in the pool."""
        record, = _parse_workers([worker])
        supervisor = self._supervisor
        if not supervisor.decide(supervisor._scheduler.remove_worker, record, supervisor.now()):
            raise ValueError(f"{record} is not in the pool")

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        supervisor = self._supervisor
        return supervisor.submit(supervisor.function(fn), args, kwargs)

    def _submitter(self, fn: Callable[..., _T]) -> Callable[..., Future[_T]]:
        supervisor = self._supervisor
        function = supervisor.function(fn)
        return lambda *args: supervisor.submit(function, args, {})

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, quiet: bool = False) -> None:
        self._supervisor.shutdown(wait, cancel_futures, quiet)


def _boolean(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False,
            "off": False}[text.lower()]


# ───────────────────────────────────────────────────── scoreboard ─────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class WorkerStatus:
    """One machine of a RemoteExecutorStatus. Times are in seconds; `retry_in` and `cause` say why it is not up.

    Of `slots`, `busy` run something; `ahead` more tasks wait there for a slot. `longest` is how long it has been running its
    oldest task, which calls `function`. `died` counts the slots that tasks killed, `lost` the connections that failed in a row.
    """

    worker: str
    state: str
    slots: int = 0
    busy: int = 0
    ahead: int = 0
    done: int = 0
    p50: float = 0.0
    p95: float = 0.0
    longest: float = 0.0
    function: str = ""
    backups: int = 0
    died: int = 0
    lost: int = 0
    retry_in: float = 0.0
    cause: str = ""

    def _parts(self) -> list[str]:
        """Say it in pieces, the most important first."""
        if self.state != _Worker.UP:
            wait = f", next try in {self.retry_in:.0f} s" if self.retry_in > 0 else ""
            return [f"{self.state}{wait}" + (f": {' '.join(_printable(self.cause).split())}" if self.cause else "")]
        parts = [f"{f'{self.busy}/{self.slots}':>5} slots", f"{self.done:>6} done"]
        if self.longest:
            parts.append(f"longest {_seconds(self.longest):>7} {_printable(self.function)}")
        if self.p95:
            parts += [f"p50 {_seconds(self.p50):>7}", f"p95 {_seconds(self.p95):>7}"]
        return parts + [f"{number} {what}" for number, what in ((self.backups, "backups"), (self.died, "died")) if number]


@dataclasses.dataclass(frozen=True)
class RemoteExecutorStatus:
    """A snapshot of a RemoteExecutor. `str()` shows it as a person reads it. Times are in seconds.

    `rate` is tasks finished per second of late, `left` what is left to do at that rate; None if it cannot be known.

    >>> print(RemoteExecutorStatus("farm", waiting=40, running=8, done=112, failed=1, rate=4, left=10, p50=1.24, p95=2.5, workers=(
    ...     WorkerStatus("8/me@bigbox", "up", 8, 8, 0, 112, 1.24, 2.5, 1.9, "simulate"),
    ...     WorkerStatus("lab2", "waiting", retry_in=12.0, cause="connection refused"))))
    farm: 112 done, 1 failed, 8 running, 40 waiting, 4/s, 10 s left, p50 1.24 s, p95 2.5 s
      8/me@bigbox    8/8 slots     112 done  longest   1.9 s simulate  p50  1.24 s  p95   2.5 s
      lab2         waiting, next try in 12 s: connection refused
    """

    title: str
    waiting: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    backups: int = 0
    rate: float = 0.0
    left: float | None = None
    p50: float = 0.0
    p95: float = 0.0
    workers: tuple[WorkerStatus, ...] = ()
    _spans: Callable[[], Sequence[_Span]] = dataclasses.field(default=tuple, repr=False, compare=False)

    def __str__(self) -> str:
        return "\n".join(self._lines(1 << 20, 1 << 20))

    @property
    def _head(self) -> list[str]:
        parts = [f"{self.title}: {self.done} done"]
        kinds = "failed", "cancelled", "retried", "backups", "running", "waiting"
        parts += [f"{getattr(self, kind)} {kind}" for kind in kinds if getattr(self, kind)]
        if self.rate:
            parts.append(f"{self.rate:.3g}/s" if self.rate < 1000 else f"{self.rate:.0f}/s")
        if self.left is not None:
            parts.append(f"{_seconds(self.left)} left")
        if self.p95:
            parts += [f"p50 {_seconds(self.p50)}", f"p95 {_seconds(self.p95)}"]
        return parts

    def _lines(self, columns: int, rows: int) -> list[str]:
        """Lay it out in a rectangle: the head in as many lines as it takes, then machines, each in one line with what fits."""
        lines = _wrap_parts(self._head, columns)
        names = [worker.worker.split()[0] for worker in self.workers]
        width = min(max(map(len, names), default=0), max(8, columns // 3))
        shown = len(self.workers) if len(lines) + len(self.workers) <= rows else max(0, rows - len(lines) - 1)
        for name, worker in zip(names[:shown], self.workers):
            line, *parts = f"  {name[:width]:{width}}", *worker._parts()
            for part in parts:
                if len(line) + 2 + len(part) > columns and part is not parts[0]:
                    break
                line += f"  {part}"
            lines.append(line[:columns])
        if shown < len(self.workers):
            up = sum(worker.state == _Worker.UP for worker in self.workers[shown:])
            lines.append(f"  ... and {up} more up, {len(self.workers) - shown - up} not up")
        return lines[:rows]

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Write every attempt as a span per machine and slot, for https://ui.perfetto.dev or chrome://tracing.

        Arguments:
            path: a JSON file in Google's Trace Event Format. Only the last 32768 attempts are remembered. An arrow leads from an
                attempt to the one that followed or raced it. Durations are the worker's own; when one ended is known from here,
                so it may be late by the time its result took.
        """
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": _trace_events(self._spans()), "displayTimeUnit": "ms"}, file)


def _trace_events(spans: Sequence[_Span]) -> list[dict[str, Any]]:
    """Return spans as events of the Trace Event Format: a process for each machine, a thread for each slot."""
    workers = {worker: pid for pid, worker in enumerate(dict.fromkeys(span.worker for span in spans), 1)}
    rows: dict[tuple[int, int], str] = {}
    events: dict[int, dict[str, Any]] = {}
    zero = min((start for _, start, _ in _times(spans)), default=0.0)
    for span, start, end in _times(spans):
        pid, tid = workers[span.worker], span.slot
        if tid is None:     # it is not known where it ran: in a row of its own
            tid = 1000 + sum(pid == machine and row >= 1000 for machine, row in rows)
        rows[pid, tid] = f"slot {tid}" if tid < 1000 else "slot not known"
        events[span.ident] = {
            "ph": "X", "pid": pid, "tid": tid, "ts": 1e6 * (start - zero), "dur": 1e6 * (end - start), "name": span.name,
            "cat": span.outcome, "args": {"attempt": span.ident, "outcome": span.outcome}}
    arrows = [{"ph": phase, "bp": "e", "id": span.ident, "name": "again", "cat": "again",
               "pid": end["pid"], "tid": end["tid"], "ts": end["ts"]}
              for span in spans if span.origin in events for phase, end in (("s", events[span.origin]), ("f", events[span.ident]))]
    names = [("process_name", pid, 0, str(worker.record)) for worker, pid in workers.items()]
    names += [("thread_name", pid, tid, name) for (pid, tid), name in rows.items()]
    return [*({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}} for what, pid, tid, name in names),
            *events.values(), *arrows]


def _times(spans: Sequence[_Span]) -> list[tuple[_Span, float, float]]:
    """Return each span with its start and end.

    What is known of an end is when the result came, many at a time perhaps. So it ended then, or when its slot began the next.
    """
    times: list[tuple[_Span, float, float]] = []
    next_starts: dict[Any, float] = {}
    for span in reversed(spans):
        place = (span.worker, span.slot if span.slot is not None else span)     # what ran nobody knows where was alone there
        end = min(span.until, next_starts.get(place, math.inf))
        start = next_starts[place] = end - span.ran if span.ran is not None else min(span.since or end, end)
        times.append((span, start, end))
    return times[::-1]


def _take_status(title: str, scheduler: _Scheduler, now: float) -> RemoteExecutorStatus:
    total, workers, youngest = Histogram(), [], math.inf
    for worker in scheduler.workers:
        durations, inflight = worker.durations, worker.inflight.values()
        total.merge(durations)
        oldest = min((attempt for attempt in inflight if attempt.since is not None), default=None, key=lambda one: one.since or 0)
        youngest = min([youngest, *(now - attempt.since for attempt in inflight if attempt.since is not None)])
        workers.append(WorkerStatus(
            str(worker.record), worker.state, worker.count, worker.started, len(inflight) - worker.started, durations.count,
            durations.percentile(50), durations.percentile(95), now - (oldest.since or now) if oldest else 0.0,
            oldest.name if oldest else "", worker.backups, worker.died, worker.failures,
            max(worker.retry_at - now, 0.0) if worker.state == worker.WAITING else 0.0, worker.cause))
    rate, p50, left = scheduler.rate(now), total.percentile(50), None
    if rate and scheduler._up and (scheduler.waiting or youngest < p50):
        left = scheduler.waiting / rate + max(0.0, p50 - youngest)
    return RemoteExecutorStatus(
        title, scheduler.waiting, scheduler.unfinished - scheduler.waiting, scheduler.done, scheduler.failed, scheduler.cancelled,
        scheduler.retried, scheduler.backed_up, rate, left, p50, total.percentile(95), tuple(workers), scheduler.take_spans)


def _wrap_parts(parts: Iterable[str], columns: int) -> list[str]:
    """Join parts with commas into lines that break only between two of them."""
    glued = ", ".join(part.replace(" ", "\0") for part in parts)       # a NUL is no place to break a line at
    return [line.replace("\0", " ") for line in textwrap.wrap(glued, columns, subsequent_indent="  ")]


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


class _Terminal:
    """A few lines at the bottom of a terminal, which everything else that is printed scrolls above.

    That is what the terminal's own scrolling region is for (DEC STD 070, DECSTBM): it keeps the lines clear of prints that we
    know nothing of, those of child processes included, and nothing that anybody printed is ever erased.
    """

    _RESET = "\x1b7\x1b[r\x1b8\x1b[J"       # no region (setting it moves the cursor), and nothing below the cursor
    _in_use: ClassVar[set[int]] = set()         # the one who draws, since two could only overwrite each other

    def __init__(self, stream: Any) -> None:
        self._fd = stream.fileno()
        self._bold, self._plain = ("", "") if os.environ.get("NO_COLOR") else ("\x1b[1m", "\x1b[m")     # https://no-color.org
        self._shape: Any = None        # columns, rows and how many of them are ours, while any are
        self._undertaker: Any = None

    @staticmethod
    def on(stream: Any) -> _Terminal | None:
        """Return what draws on a stream, or None if it is no terminal that could."""
        try:
            is_able = stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
            return _Terminal(stream) if is_able else None
        except (OSError, ValueError, AttributeError):       # it is closed, or not a file
            return None

    def draw(self, status: RemoteExecutorStatus) -> None:
        """Show a status in place of the one before; nothing while another pool shows its own."""
        if self._shape is None and self._in_use:
            return
        columns, rows = os.get_terminal_size(self._fd)
        lines = status._lines(columns - 1, rows // 2) if columns > 10 else []
        text, shape, above = "", (columns, rows, len(lines)), rows - len(lines)
        if shape != self._shape:
            if self._shape is None:
                self._begin()
            self._shape = shape
            text = self._RESET + len(lines) * "\x1bD" + f"\x1b[{len(lines)}A" * bool(lines)      # make room below the cursor
        text += f"\x1b7\x1b[1;{above}r\x1b8" * bool(lines)     # each time, since a program may have reset it
        for row, line in enumerate(lines, above + 1):
            text += f"\x1b7\x1b[{row};1H\x1b[K{self._bold * (row == above + 1)}{line}{self._plain}\x1b8"
        self._write(text)

    def clear(self) -> None:
        """Give the lines back."""
        if self._shape is not None:
            self._shape = None
            self._write(self._RESET)
            self._undertaker.kill()
            self._undertaker.communicate()
            self._in_use.clear()

    def _begin(self) -> None:
        """Let a process give the lines back in case this one is killed: it sees its input end."""
        self._in_use.add(self._fd)
        command = ["/bin/sh", "-c", 'cat >/dev/null; printf "%s" "$1"', "sh", self._RESET]
        self._undertaker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self._fd, stderr=subprocess.DEVNULL,
                                            start_new_session=True)

    def _write(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self._fd, data):]


class _Scoreboard:
    """Bring tasks' output home, and tell how things stand: on a terminal in place, and in the log.

    One thread writes. So lines stay whole, and a terminal that someone has stopped (Ctrl-S) holds up only the tasks that print,
    and not the heartbeat.
    """

    def __init__(self, show: bool | None, output: bool | Callable[[str, str, str], object]) -> None:
        self.quiet = False
        self._show, self._output = show, output
        self._terminal = None if show is False else _Terminal.on(sys.stderr)
        self._beats = 0
        self._queue: Queue[tuple[Any, ...]] = Queue(1000)       # functions, each with its arguments; an empty one at the end
        self._thread = threading.Thread(target=self._run, name="scoreboard", daemon=True)
        self._thread.start()        # now: at exit it may be too late

    def show_output(self, machine: str, number: int, data: bytes) -> None:
        """Show whole lines that a task wrote to its stdout (1) or stderr (2), headed by its machine."""
        lines = re.split(r"\r*\n|\r", data.decode("utf-8", "replace"))
        lines = lines[:-1] if lines[-1] == "" else lines
        if callable(self._output):
            self._put(self._hand_over, machine, "stdout" if number == 1 else "stderr", lines)
        else:
            self._put(self._print, number, "".join(f"{machine}: {line}\n" for line in lines))

    def tick(self, take: Callable[[], RemoteExecutorStatus], beat: bool) -> None:
        """Redraw the status while tasks run, if the terminal keeps up; every few heartbeats, report it."""
        self._beats += beat
        is_due = beat and self._beats % REPORT_BEATS == 0 and (_log.isEnabledFor(logging.INFO) or self._show is True)
        is_drawn = self._terminal is not None and self._queue.empty()
        if self.quiet or not (is_due or is_drawn):
            return
        status = take()
        is_busy = bool(status.running or status.waiting)
        if self._terminal is not None and is_drawn:
            self._put(*(self._terminal.draw, status) if is_busy else (self._terminal.clear,))
        if is_due and is_busy:
            _log.info("%s", status)
            if self._show and self._terminal is None:
                self._put(self._print, 2, f"{status}\n")

    def finish(self, status: RemoteExecutorStatus, histogram: Histogram) -> None:
        """Leave a line and the histogram behind, and end."""
        if self._terminal is not None:
            self._put(self._terminal.clear)
        if not self.quiet and status.done + status.failed:
            summary = ", ".join(status._head)
            _log.info("%s", summary)
            if self._terminal is not None or self._show:
                self._put(self._print, 2, f"{summary}\n{histogram}\n" if status.done else f"{summary}\n")
        self._put()
        self._thread.join()

    def _put(self, *work: Any) -> None:
        self._queue.put(work)

    def _run(self) -> None:
        for function, *arguments in iter(self._queue.get, ()):
            try:
                function(*arguments)
            except (OSError, ValueError):
                pass        # the user closed the stream, or its disk is full

    def _print(self, number: int, text: str) -> None:
        stream = sys.stdout if number == 1 else sys.stderr
        if stream is not None:
            encoding = getattr(stream, "encoding", None) or "utf-8"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()

    def _hand_over(self, machine: str, stream: str, lines: list[str]) -> None:
        assert callable(self._output)
        for line in lines:
            try:
                self._output(machine, stream, line)
            except Exception:
                _log.exception("the function that output= names raised")

    def runs_here(self) -> bool:
        """Tell whether the caller is something that `output=` called: it cannot wait for itself."""
        return threading.current_thread() is self._thread


# ────────────────────────────────────────────────────── defaults ──────────────────────────────────────────────────


class Method(enum.Enum):
    """Where `parallelize` runs things: on the default executor of this kind."""

    THREAD = "thread"
    PROCESS = "process"
    REMOTE = "remote"


class DefaultExecutors:
    """The process-wide executors. Every instance is the same one; each pool is made when first asked for.

    At exit they are shut down in the order threads, processes, remote, each finishing what it runs: what a thread does may
    need the others.
    """

    _lock = threading.Lock()        # guards the pools
    _pools: dict[Method, BaseExecutor] = {}     # noqa: RUF012 -- shared by intention
    _owner = 0                      # the process they belong to; a forked child makes its own

    def thread_pool(self) -> BaseExecutor:
        """Return the default ThreadExecutor."""
        return self._get(Method.THREAD, lambda: ThreadExecutor(title="default threads"))

    def process_pool(self) -> BaseExecutor:
        """Return the default ProcessExecutor."""
        return self._get(Method.PROCESS, lambda: ProcessExecutor(title="default processes"))

    def remote_pool(self) -> BaseExecutor:
        """Return the default RemoteExecutor, on the workers of $EXECUTORS_REMOTE_WORKERS or ~/.config/executors/workers.

        Raises ValueError if there are none.
        """
        return self._get(Method.REMOTE, lambda: RemoteExecutor(_default_workers(), title="default remote"))

    def shutdown(self) -> None:
        """Shut all pools down, as at exit; the next one asked for is a new one."""
        with self._lock:
            pools = self._forget() if self._owner == os.getpid() else {}
        for method in Method:
            if method in pools:
                pools[method].shutdown()

    @classmethod
    def _forget(cls) -> dict[Method, BaseExecutor]:
        pools, cls._pools = cls._pools, {}
        return pools

    @classmethod
    def _get(cls, method: Method, make: Callable[[], BaseExecutor]) -> BaseExecutor:
        _shut_down_at_exit()
        with cls._lock:
            if cls._owner != os.getpid():
                cls._owner, cls._pools = os.getpid(), {}
            if method not in cls._pools:
                cls._pools[method] = make()
            return cls._pools[method]


@functools.cache
def _shut_down_at_exit() -> None:
    _prepare_process()      # first: exit functions run last in, first out, and remote pools must outlive the threads that use them
    getattr(threading, "_register_atexit", atexit.register)(DefaultExecutors().shutdown)


def parallelize(method: Method | concurrent.futures.Executor = Method.THREAD) -> Callable[
        [Callable[..., _T]], Callable[..., Future[_T]]]:
    """Make a function's calls return futures, from the default executor of a kind or from the executor given.

    Futures among the arguments are awaited first, without holding up the caller or a worker.

    >>> @parallelize(Method.THREAD)
    ... def total(numbers):
    ...     return sum(numbers)
    >>> numbers = list(range(100))
    >>> shards = [numbers[start::4] for start in range(4)]
    >>> sum(wait_all(total(shard) for shard in shards))
    4950
    """
    def executor() -> concurrent.futures.Executor:
        if not isinstance(method, Method):
            return method
        pools = DefaultExecutors()
        return {Method.THREAD: pools.thread_pool, Method.PROCESS: pools.process_pool, Method.REMOTE: pools.remote_pool}[method]()

    def decorate(fn: Callable[..., _T]) -> Callable[..., Future[_T]]:
        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Future[_T]:
            awaited = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Future)]
            if not awaited:
                return executor().submit(fn, *args, **kwargs)
            outer: Future[_T] = Future()
            _when_all_done(awaited, lambda: _submit_into(outer, executor, fn, args, kwargs))
            return outer
        return call

    if callable(method):        # used without parentheses
        raise TypeError("write @parallelize() or @parallelize(Method.PROCESS), with parentheses")
    return decorate


def _when_all_done(futures: Sequence[Future[Any]], then: Callable[[], None]) -> None:
    lock, left = threading.Lock(), len(futures)

    def one_done(_future: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = not left
        if last:
            then()

    for future in futures:
        future.add_done_callback(one_done)


def _submit_into(outer: Future[_T], executor: Callable[[], concurrent.futures.Executor], fn: Callable[..., _T], args: tuple[Any, ...],
                 kwargs: dict[str, Any]) -> None:
    """Submit a call whose arguments have arrived, and pass its outcome on."""
    def value(arg: Any) -> Any:
        return arg.result() if isinstance(arg, Future) else arg

    def pass_on(inner: Future[_T]) -> None:
        try:
            outer.set_result(inner.result())
        except BaseException as error:
            outer.set_exception(error)

    if not outer.set_running_or_notify_cancel():
        return
    try:
        inner = executor().submit(fn, *map(value, args), **{name: value(arg) for name, arg in kwargs.items()})
    except BaseException as error:
        outer.set_exception(error)
    else:
        inner.add_done_callback(pass_on)


def wait_all(futures: Iterable[Future[_T]]) -> list[_T]:
    """Return the results of futures in their order, or raise the first failure as soon as it happens."""
    futures = list(futures)
    done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
    for future in futures:
        if future in done:
            future.result()
    return [future.result() for future in futures]


# ──────────────────────────────────────────────────── command line ────────────────────────────────────────────────


_INSTALL_SSHD = "apt-get install openssh-server   (or your system's package of OpenSSH's server)"


class _PrivateSshd:
    """An sshd of our own: on a free loopback port, with throw-away keys, as this user. It leaves no trace.

    Arguments:
        names: host aliases that all lead to it.
        settings: further lines for its configuration.
        address: where it listens.
        prefix: a command that is to run it.
    """

    def __init__(self, names: Sequence[str] = ("localhost",), settings: Sequence[str] = (), address: str = "127.0.0.1",
                 prefix: Sequence[str] = ()) -> None:
        self.names, self._settings, self._address, self._prefix = names, settings, address, prefix
        self.binary = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin")
        if self.binary is None:
            raise FileNotFoundError(f"there is no sshd on this machine: {_INSTALL_SSHD}")

    def __enter__(self) -> _PrivateSshd:
        self.folder = tempfile.mkdtemp(prefix="executors-sshd-")
        self._made_run = os.getuid() == 0 and not os.path.exists("/run/sshd")
        if self._made_run:
            os.mkdir("/run/sshd", 0o755)        # sshd insists on it, if root starts it
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._path(key)], check=True)
        shutil.copyfile(self._path("user.pub"), self._path("authorized_keys"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._write("sshd_config", [
            f"Port {self.port}", f"ListenAddress {self._address}", f"HostKey {self._path('host')}", "PidFile none", "StrictModes no",
            f"AuthorizedKeysFile {self._path('authorized_keys')}", "PasswordAuthentication no", "UsePAM no",
            "KbdInteractiveAuthentication no", "Subsystem sftp internal-sftp", *self._settings])
        with open(self._path("host.pub"), encoding="ascii") as file:
            self._write("known_hosts", [f"[{self._address}]:{self.port} {file.read()}"])
        self._write("config", [
            f"Host {' '.join(self.names)}", f"HostName {self._address}", f"Port {self.port}", f"IdentityFile {self._path('user')}",
            "IdentitiesOnly yes", f"UserKnownHostsFile {self._path('known_hosts')}", "StrictHostKeyChecking yes"])
        self.ssh_options = ["-F", self._path("config")]
        command = [str(self.binary), "-D", "-f", self._path("sshd_config"), "-E", self._path("log")]
        self.process = subprocess.Popen([*self._prefix, *command],
                                        stdin=subprocess.DEVNULL, start_new_session=True)
        while True:
            try:
                socket.create_connection((self._address, self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    with open(self._path("log"), encoding="utf-8", errors="replace") as file:
                        raise OSError(f"sshd does not start: {file.read().strip()}") from None

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _write(self, name: str, lines: Sequence[str]) -> None:
        with open(self._path(name), "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")

    def __exit__(self, *_: object) -> None:
        process = getattr(self, "process", None)
        if process is not None:
            wire.signal_tree(process.pid, signal.SIGKILL)      # with the sessions
            process.wait()
        if self._made_run:
            shutil.rmtree("/run/sshd", ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _count_primes(limit: int) -> tuple[int, str, int]:
    """Return how many primes there are below `limit`, and who counted them; what the selftest runs."""
    sieve = bytearray([1]) * limit
    sieve[:2] = b"\0\0"
    for n in range(2, int(limit ** 0.5) + 1):
        if sieve[n]:
            sieve[n * n::n] = bytes(len(range(n * n, limit, n)))
    return sum(sieve), socket.gethostname(), os.getpid()


def _selftest_one(label: str, pool: BaseExecutor) -> bool:
    """Run real work on one executor and say what it saw; return whether all was right."""
    limits = [100_000 + 10_000 * n for n in range(40)]
    print(f"{label}\n{'-' * len(label)}")
    started = time.monotonic()
    try:
        with pool:
            answers = list(pool.map(_count_primes, limits, timeout=120))
            offset = 1
            right = pool.submit(lambda n: n + offset, 41).result(timeout=60) == 42
    except Exception as error:
        print(f"FAILED: {_describe(error)}\n")
        return False
    elapsed = time.monotonic() - started
    right = right and [count for count, _, _ in answers] == [_count_primes(limit)[0] for limit in limits]
    places = {(host, pid) for _, host, pid in answers}
    hosts = ", ".join(sorted({host for host, _ in places}))
    print(f"counted primes below {len(limits)} limits in {elapsed:.2f} s, on {hosts}, in {len(places)} process(es)")
    print(f"{pool.histogram}\n{'right' if right else 'WRONG RESULTS'}\n")
    return right


def _selftest(workers: str | None, ssh_options: Sequence[str]) -> bool:
    results = [_selftest_one("ThreadExecutor", ThreadExecutor(2)), _selftest_one("ProcessExecutor", ProcessExecutor(2))]
    if workers is not None:
        results.append(_selftest_one(f"RemoteExecutor: {workers}", RemoteExecutor(workers.split(","), ssh_options=ssh_options)))
        return all(results)
    try:
        sshd = _PrivateSshd()
    except FileNotFoundError as error:
        print(f"{error}\nso the remote part runs over a plain pipe, without ssh.\n")
        results.append(_selftest_one("RemoteExecutor: 2/: (no ssh)", RemoteExecutor(["2/:"])))
        return all(results)
    with sshd:
        record = RemoteWorkerRecord(None, "localhost", count=2, python=sys.executable)
        label = f"RemoteExecutor: {record}, by ssh to a private sshd on port {sshd.port}"
        results.append(_selftest_one(label, RemoteExecutor([record], ssh_options=sshd.ssh_options)))
    return all(results)


class _Checkup:
    """What `--check` finds out about one machine, stage by stage, in a thread of its own."""

    STAGES = "name", "TCP", "login", "shell", "python", "start", "cores", "trip", "MB/s", "scp"
    _handshakes = threading.Semaphore(HANDSHAKES)

    def __init__(self, record: RemoteWorkerRecord, ssh_options: Sequence[str]) -> None:
        self.record, self.failure = record, ""
        self.link = _Link(record, [*ssh_options, "-v"], {"lease": HELLO_SECONDS, "output": False})
        self.link.started = math.inf        # until it is its turn
        self._is_local = record.machine == ":"
        if self._is_local:
            self.link.found.update(dict.fromkeys(_MILESTONES, "-"))
        self._idents = itertools.count(1)
        self.thread = threading.Thread(target=self._run, name=f"check of {record.machine}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            with self._handshakes:
                self.link.started = time.monotonic()
                threading.Thread(target=self.link.write_on, name=f"{self.record.machine} writer", daemon=True).start()
                self.link.open({})
            self.link._words()
            found = self.link.found
            found["trip"] = _seconds(min(self._call(os.getpid)[0] for _ in range(6)))
            there, back = self._call(len, os.urandom(4 << 20))[0], self._call(os.urandom, 4 << 20)[0]
            found["MB/s"] = f"{4.2 / there:.3g}/{4.2 / back:.3g}"
            with self._handshakes:
                found["scp"] = "-" if self._is_local else self._try_scp()
        except Exception as error:
            self.failure = error.cause if isinstance(error, _LinkDown) else _describe(error)
        self.link.discard()

    def _call(self, fn: Callable[..., Any], *args: Any) -> tuple[float, Any]:
        """Call a function there; return the seconds that took, and its result."""
        ident, name = next(self._idents), _name(fn)
        bundle = _Bundle(_Function(ident, name, pickle.dumps(fn, 5), _Durations()), wire.pack_call(args, {}))
        started = time.monotonic()
        self.link.launch([_Attempt(ident, bundle, _Worker(self.record, 0.0), False)])
        for messages in self.link.work():
            for kind, _, _, body in messages:
                if kind == wire.RESULT:
                    return time.monotonic() - started, wire.unpack(body)
                if kind == wire.ERROR:
                    raise _rebuild(name, body)
                if kind == wire.DIED:
                    _, status, words = pickle.loads(body)
                    raise ExecutorError(f"a process there was {_ending(status)}: {_last_line(words)}")
        raise AssertionError

    def _try_scp(self) -> str:
        data, target = os.urandom(1000), f"executors-check-{os.urandom(6).hex()}"
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            self.link._scp("a test file", file.name, target)
        digest = self._call(wire.digest_file, target)[1]
        self._call(os.unlink, target)
        if digest != hashlib.sha256(data).hexdigest():
            raise ExecutorError("scp delivered a damaged file -- is the disk there full?")
        return "ok"

    def look(self, now: float, beat: bool) -> None:
        """See how far ssh is, and that nobody waits for ever."""
        self.link.look_after(now, beat)
        try:
            self.link._words()
        except (AttributeError, ValueError):
            pass        # ssh has not started, or has just ended

    @property
    def stage(self) -> str:
        """The stage that it is at, or where it failed; "" if it has passed all."""
        return next((stage for stage in self.STAGES if stage not in self.link.found), "")

    def cells(self) -> list[str]:
        """One for each stage."""
        now = "FAIL" if self.failure else "..."
        return [self.link.found.get(stage, now if stage == self.stage else "") for stage in self.STAGES]


def _check_lines(checkups: Sequence[_Checkup], columns: int) -> list[str]:
    """Lay out what is known as a table, or as a list where that is too wide, and the failures in full below."""
    rows = [["", *_Checkup.STAGES], *([checkup.record.login, *checkup.cells()] for checkup in checkups)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    gap = 2 if sum(widths) + 2 * len(widths) <= columns else 1
    widths[0] = min(widths[0], max(12, columns - sum(widths[1:]) - gap * len(widths)))
    lines = [(" " * gap).join(f"{cell[:width]:{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]
    if max(map(len, lines)) > columns:
        lines = []
        for name, *cells in rows[1:]:
            stage, *stages = [f"{stage} {cell}" for stage, cell in zip(_Checkup.STAGES, cells) if cell]
            lines += _wrap_parts([f"{name}: {stage}", *stages], columns)
    for checkup in checkups:
        if checkup.failure:
            text = f"{checkup.record.login}: {checkup.stage}: {_printable(checkup.failure)}"
            lines += textwrap.wrap(text, columns, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def _check(records: Sequence[RemoteWorkerRecord], ssh_options: Sequence[str]) -> bool:
    """Diagnose every machine side by side, as a table while it happens; return whether all are fit."""
    checkups = [_Checkup(record, ssh_options) for record in records]
    drawn, is_live, beat_at = 0, sys.stdout.isatty(), time.monotonic()
    try:
        while True:
            is_over = not any(checkup.thread.is_alive() for checkup in checkups)
            now = time.monotonic()
            beat_at += 5.0 * (beat := now >= beat_at)
            for checkup in checkups:
                checkup.look(now, beat)
            columns, height = shutil.get_terminal_size()
            lines = _check_lines(checkups, columns - 1)
            if not is_over and len(lines) >= height:
                late = [checkup.record.login for checkup in checkups if checkup.thread.is_alive()]
                lines = [f"{len(checkups) - len(late)} of {len(checkups)} done, not yet: {', '.join(late)}"[:columns - 1]]
            if is_over or is_live:
                print(f"\x1b[{drawn}A\x1b[J" * bool(drawn) + "\n".join(lines), flush=True)
                drawn = len(lines)
            if is_over:
                return not any(checkup.failure for checkup in checkups)
            for checkup in checkups:
                checkup.thread.join(0.2 / len(checkups))
    finally:
        for checkup in checkups:
            checkup.link.abort("interrupted")
            checkup.thread.join()


def _main(arguments: Sequence[str] | None = None) -> int:
    """Be `python -m executors`; return the exit status."""
    import argparse
    parser = argparse.ArgumentParser(prog="python -m executors", description="Try the executors on this machine, or on yours.")
    parser.add_argument("--selftest", action="store_true", help="run real work on every executor and say what it saw")
    parser.add_argument("--check", action="store_true", help="log in to each worker and say what is wrong with it")
    parser.add_argument("--workers", metavar="TEXT[,TEXT...]", help="the machines, like 8/me@bigbox,4/lab2")
    parser.add_argument("--ssh_options", metavar="WORDS", default="", help="further arguments for ssh, like '-F my_config'")
    options = parser.parse_args(arguments)
    _log.addHandler(logging.NullHandler())      # what it would say is in what we print
    try:
        records = _parse_workers(options.workers) if options.workers else None
        ssh_options = shlex.split(options.ssh_options)
        if options.check:
            fit = _check(records or _default_workers(), ssh_options)
        elif options.selftest:
            fit = _selftest(options.workers, ssh_options)
        else:
            parser.print_help()
            return 2
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    print("all is well" if fit else "NOT all is well: see above")
    return 0 if fit else 1


if __name__ == "__main__":
    # So that tasks are functions of a module that workers can import, not of __main__.
    import executors

    sys.exit(executors._main())
