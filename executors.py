# SPDX-License-Identifier: MIT
"""Run work on threads, on processes, and on every machine you can `ssh` into.

    import executors

    def simulate(seed):
        ...

    with executors.RemoteExecutor(["8/me@bigbox", "4/lab2", ":"]) as pool:
        for result in pool.map(simulate, range(1000)):      # ':' is this machine, without ssh
            print(result)

Each of them is a `concurrent.futures.Executor`. A worker needs the same minor version of Python as
this machine, a login by key, and nothing else. The public names, in the order in which most people
meet them:

    ThreadExecutor, ProcessExecutor     threads and processes of this machine
    RemoteExecutor                      slots on machines; see there for its arguments
    PoolExecutor                        the same interface for any other executor, such as Dask's
    RemoteWorkerRecord                  one machine, as an object or as a text: 8/me@bigbox nice=5
    parallelize, Method, wait_all       a decorator that turns calls into futures; DefaultExecutors
    joblib_backend                      joblib and scikit-learn on any of these
    RemoteExecutorStatus, Histogram     progress and timings: `print(pool.status)`, `pool.histogram`
    RemoteWorkerSelectionPolicy         decides which worker gets the next task

What a future or a call may raise, besides what your function raises:

    BundleError             a task cannot be completed and is itself the reason: why, and where
    BundleTimeoutError      a task ran longer than `bundle_timeout` (both are ExecutorErrors)
    NoWorkersError          no machine can be used; it names the cause for each (a BrokenExecutor)
    ValueError              an argument is wrong; raised at once, with the remedy

What a task finds on a worker, and how long it stays there:

    functions, classes, globals of the script   in the slot's `__main__`, until the slot's process
                                                ends; what has changed here is sent again with the
                                                next submission
    modules of the project, packages            imported there; they stay as long
    lambdas, closures, partials, bound methods  unpickled for each call of `submit`; within one
                                                `map`, each slot unpickles the function once
    arguments                                   unpickled for each call
    results                                     refer to the classes and functions here, and never
                                                change them

Tasks are executed *at least once*: if a machine is lost its tasks run again elsewhere, and a task
that takes much longer than others gets a backup on another machine; the first result counts. With
`schedule_backups=False, max_bundle_failures=1` a task starts at most once unless its machine is
lost. Unpickling runs code, on both sides: use only machines that you trust. Logs go to the logger
`executors`. The parts and how they work together are drawn below the constants.
"""

from __future__ import annotations

import _thread
import atexit
import base64
import concurrent.futures
import contextlib
import csv
import dataclasses
import enum
import errno
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import io
import itertools
import json
import linecache
import logging
import math
import multiprocessing.context
import numbers
import operator
import os
import pickle
import pkgutil
import random
import re
import select
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import types
import unicodedata
import weakref
import zlib
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    InvalidStateError,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from queue import Empty, SimpleQueue
from time import monotonic, monotonic_ns, time
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, ParamSpec, TypeVar, overload

if TYPE_CHECKING:       # a type checker does not find it if both files are in a package
    import remote_worker as wire  # type: ignore[import-not-found,import-untyped,unused-ignore]
else:       # it is beside this file, perhaps in the user's package
    wire = importlib.import_module(f"{__package__ or ''}.remote_worker".lstrip("."))

__version__ = "0.2.0"
__all__ = [
    "BaseExecutor", "BundleError", "BundleTimeoutError", "DefaultExecutors", "ExecutorError",
    "Histogram", "Method", "NoWorkersError", "PoolExecutor", "ProcessExecutor", "RemoteExecutor",
    "RemoteExecutorStatus", "RemoteWorkerRecord", "RemoteWorkerSelectionPolicy",
    "RoundRobinRemoteWorkerSelectionPolicy", "ThreadExecutor",
    "WeightedRandomRemoteWorkerSelectionPolicy", "WorkerStatus", "joblib_backend", "parallelize",
    "wait_all",
]

SSH, SCP = "/usr/bin/ssh", "/usr/bin/scp"
TICK_SECONDS = 0.25             # how often the heartbeat thread looks for stragglers and timeouts
MISSED_HEARTBEATS = 3           # unanswered pings after which a link counts as lost
LEASE_HEARTBEATS = 12           # heartbeats without a word from us after which a shim ends
HELLO_SECONDS = 30.0            # from starting ssh to the shim's greeting, login files included
SLOT_COUNT_SECONDS = 5.0        # that `pool.slots` waits for machines to report their cores
CLOSE_SECONDS = 3.0             # that ssh may take to end after its input was closed
LOGIN_WINDOW = 8, 64            # logins at once: at first (sshd starts to refuse at 10); at most
QUARANTINE_SECONDS = 1.0, 60.0  # after the first failure of a machine; at most
URGENT_SECONDS = 5.0            # at most, if tasks wait and no machine is up
FAULT_WEIGHT = 6                # failures that a machine's own fault counts for
GIVE_UP_SECONDS = 60.0, 600.0   # without any worker: in a new pool; once it has had results
AHEAD_SECONDS = 0.002           # of short tasks sent to each slot before it is free
AHEAD_RATE = 64_000             # tasks a second that a slot is assumed to do, at most
AHEAD_BYTES = 4 << 20           # of long arguments sent to each slot before it is free
LONG_TASK_SECONDS = 1.0         # tasks from this median on get no long arguments ahead of need
STEADY_SECONDS = 600.0          # a task that has run for this long does not take machines down
MAX_UNASKED_BYTES = 1 << 30     # bytes; a larger package is copied only if `packages=` names it
SCP_RETRY_SECONDS = 1.0, 2.0, 4.0, 8.0, 0.0     # to wait after each scp that was cut off
MAX_KNOWN_FUNCTIONS = 256, 1 << 29  # functions that a machine keeps for us: number, bytes
BACKUP_AGE = 0.5, 1.5           # a straggler has run for more: seconds, medians of its function
BACKUP_SHARE = 0.1              # of all slots for backups; at least 2, or the largest machine's
UNPACK_RATE = 1e7               # bytes a second; a machine that unpacks files slower is stuck
TRACE_LENGTH = 1 << 15          # attempts that the trace keeps, 250 bytes each
REPORT_HEARTBEATS = 3           # heartbeats between two progress reports in the log
STATUS_LINE_SECONDS = 60.0      # between two status lines on stderr where that is no terminal
RATE_TICKS = 40                 # latest ticks with progress, over which the rate is measured
MAX_NESTING = 20                # calls that await each other and fail, one within the other
UNCOUNTED = 10_000              # durations that local executors keep before they count them
CHUNK_SECONDS = 0.03            # of work in a chunk of a map that chooses its chunks itself
CHECK_SECONDS = 60.0, 600.0     # limit for a stage of --check; for one that may copy a package
SHARED_ARRAYS = 8               # sets of arrays, shared by joblib's calls, that a pool keeps

_T = TypeVar("_T")
_P = ParamSpec("_P")
_A = TypeVar("_A")
_B = TypeVar("_B")
_C = TypeVar("_C")
_Path = str | os.PathLike[str]
_Message = tuple[int, int, int, Any]    # kind, identifier, tag, body


class _Log(logging.LoggerAdapter):      # type: ignore[type-arg]
    """A logger whose methods raise nothing but Ctrl-C, whatever the user's handlers and filters do.

    They run in threads of the pool, which must go on with their work afterwards.
    """

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        try:
            super().log(level, msg, *args, stacklevel=2, **kwargs)
        except KeyboardInterrupt:       # of the main thread
            raise
        except BaseException:       # SystemExit too
            pass


_log = _Log(logging.getLogger("executors"), {})


# ────────────────────────────────────────── how it works ──────────────────────────────────────────
#
# How a call travels:
#
#      caller ── submit ──► pickle ──► Bundle                              worker machine
#                                        │                            ┌──────────────────────────┐
#                                 ┌──────▼──────┐ launch ┌───────┐ ssh│ shim ──► slot (child)    │
#      heartbeat ── tick ────────►│  Scheduler  ├───────►│Channel├───►│  │  ◄── run, pickle      │
#                                 │ (pure state)│◄───────┤       │◄───┤  └──► slot (child)       │
#                                 └──────┬──────┘ outcome└───▲───┘    └──────────────────────────┘
#                                     settle                 │ returns
#                                        ▼                 Login: ssh, interpreter
#                                     Future
#
# Where a new line belongs:
#
#     which task runs where and when, how it ends             _Scheduler
#     the lock, the threads, carrying out what was decided    _Supervisor
#     what a message from a machine means                     _Reader
#     frames to a machine, whether it is alive                _Channel
#     ssh, the interpreter, all until the machine is up       _Login
#     what is copied to machines                              _Cargo
#     pickling a function, and what it uses of the script     _FunctionCache, _ScriptSnapshot
#     what a caller does with a future                        _RemoteFuture
#     arguments and their checks, what a caller may ask       RemoteExecutor
#     what is shown: the status, what tasks print             RemoteExecutorStatus, _Scoreboard
#     a figure of the status                                  _Statistics, _take_status, these two
#     a kind of frame                                         constants, Shim, _Reader, _FRAMES
#     how an exception travels                                pack_outcome there, _rebuild_exception
#     Ctrl-C                                                  RemoteExecutor.__exit__, _give_up
#     what happens on a worker                                Shim and _Slot, in remote_worker.py
#
# Every thread that wants a decision goes through one door, `_Supervisor._process_events`:
#
#     1. take the supervisor's lock;
#     2. have the scheduler decide;
#     3. put what is to be sent into the queues of the channels, in the order of the decisions;
#     4. release the lock;
#     5. carry out the decisions: write, resolve futures, open and close links, warn.
#
# All that may block is in step 5, and so is code of the user, except for a policy.
#
#     thread                  waits for                what it goes through the door for
#     callers                 their results            submit, cancel, shut down
#     reader, one per link    messages, scp of files   to report results, a slot's death, ...
#     writer, one per link    room in ssh's pipe       nothing: it writes what did not fit at once
#     copier, per package     scp                      nothing: it answers the slot that asked
#     heartbeat, one          events, the clock        to find stragglers and overdue tasks, and to
#                                                      reconnect; and in place of the main thread,
#                                                      which Ctrl-C could interrupt halfway
#     scoreboard, one         something to show        nothing
#
#     state                               written by                         guarded by
#     queue, attempts, workers            the scheduler                      the supervisor's lock
#     a channel's queue                   step 3, `send`; who has its baton  nothing: it is atomic
#     a channel's pipe, functions sent    the thread that has its baton      its baton; see _Channel
#     a login, what it has found          its reader                         nothing: others look
#     functions that were pickled         the threads that submit            nothing: twice is fine
#     a future's outcome                  step 5, once                       its own condition


# ───────────────────────────────────────────── errors ─────────────────────────────────────────────


class ExecutorError(Exception):
    """Base class of this module's errors. They carry data, which `str()` puts into words."""


class BundleError(ExecutorError):
    """A task cannot be completed, and the task itself is the reason.

    Arguments:
        name: the function's name.
        reason: what went wrong, as a sentence.
        attempts: `(machine, how it ended, the end of its stderr)` of each failed attempt.

    >>> print(BundleError("simulate", "killed the process that ran it", [
    ...     ("lab2", "killed by SIGKILL (out of memory?)", "allocating 3 GB")]))
    simulate: killed the process that ran it
      on lab2: killed by SIGKILL (out of memory?)
        | allocating 3 GB
    """

    def __init__(self, name: str, reason: str,
                 attempts: Sequence[tuple[str, str, str]] = ()) -> None:
        super().__init__(name, reason, attempts)
        self.name = name
        self.reason = reason
        self.attempts = tuple(attempts)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.reason}"]
        for machine, ending, words in self.attempts:
            lines.append(f"  on {machine}: {ending}")
            lines += [f"    | {line}" for line in words.splitlines()[-10:]]
        return "\n".join(lines)


class BundleTimeoutError(BundleError):
    """A task ran longer than the executor's `bundle_timeout` and was killed."""


class NoWorkersError(ExecutorError, BrokenExecutor):
    """No machine of the pool can be used.

    Arguments:
        causes: `(machine, cause)` of each.

    >>> print(NoWorkersError([("lab2", "Permission denied (publickey)"), ("bigbox", "timed out")]))
    no worker can be used:
      lab2    Permission denied (publickey)
      bigbox  timed out
    """

    def __init__(self, causes: Sequence[tuple[str, str]]) -> None:
        super().__init__(causes)
        self.causes = [*causes]

    def __str__(self) -> str:
        if not self.causes:
            return "the pool has no workers"
        lines = ["no worker can be used:"]
        width = max(len(machine) for machine, _ in self.causes)
        lines += [f"  {machine:{width}}  {cause}" for machine, cause in self.causes]
        return "\n".join(lines)


class _PoolClosedError(RuntimeError):
    """An executor was shut down, and takes no more."""

    def __init__(self, words: str = "cannot schedule new futures after shutdown") -> None:
        super().__init__(words)


class _RemoteTraceback(Exception):
    """Holds a traceback's text, as the `__cause__` of an exception from another machine."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


# ────────────────────────────────────────── measurement ───────────────────────────────────────────


def _seconds(value: float) -> str:
    """Return a duration as a person would write it: three digits and a unit."""
    if value >= 119.5:
        minutes, seconds = divmod(round(value), 60)
        if minutes < 120:
            return f"{minutes} min {seconds} s"
        return f"{minutes // 60} h {minutes % 60} min"
    if value >= 0.9995:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 0.9995e-3 else f"{value * 1e6:.3g} µs"


class Histogram:
    """Count durations in logarithmic buckets, four to each power of two.

    Adding one takes constant time and no memory. A percentile is off by 19 % at most, the width of
    a bucket.

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
    count 100   p50 50.3 ms   p95 97.8 ms   p99 100 ms
    """

    __slots__ = ("_buckets", "count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.minimum = math.inf
        self.maximum = 0.0
        self._buckets: Counter[int] = Counter()     # by the exponent of 2 ** (1 / 4), in seconds

    def add(self, seconds: float) -> None:
        """Count one duration, in seconds."""
        self._buckets[math.floor(4 * math.log2(seconds or 1e-9))] += 1
        self.count += 1
        self.total += seconds
        if seconds < self.minimum:
            self.minimum = seconds
        if seconds > self.maximum:
            self.maximum = seconds

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram to this one."""
        self._buckets.update(other._buckets)
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    @property
    def mean(self) -> float:
        """The arithmetic mean in seconds; 0 if nothing was counted."""
        return self.total / max(self.count, 1)

    def percentile(self, p: float) -> float:
        """Return the seconds that `p` per cent of the durations do not exceed; 0 if none."""
        rank = self.count * p / 100
        for index, count in sorted(self._buckets.items()):
            if rank <= count:
                value = math.pow(2, (index + rank / count) / 4)
                return min(max(value, self.minimum), self.maximum)
            rank -= count
        return self.maximum

    def __str__(self) -> str:
        octaves: Counter[int] = Counter()
        for index, count in self._buckets.items():
            octaves[index // 4] += count
        if not octaves:
            return "nothing counted"
        lines: list[str] = []
        for octave, count in sorted(octaves.items()):
            if lines and not octaves[octave - 1]:
                lines.append(f"{'...':>19}")
            span = f"{_seconds(2 ** octave)} - {_seconds(2 ** (octave + 1))}"
            bar = "#" * math.ceil(36 * count / max(octaves.values()))
            lines.append(f"{span:>19}  {bar:<36} {count:>5}")
        lines.append(f"count {self.count}   {self._percentiles()}")
        return "\n".join(lines)

    def _percentiles(self) -> str:
        return "   ".join(f"p{p} {_seconds(self.percentile(p))}" for p in (50, 95, 99))


# ────────────────────────────────────── records and policies ──────────────────────────────────────

# A path that every shell reads as one word, without quotes.
_PLAIN_PATH = re.compile(r"[\w~./+][\w~./+@%:,=-]*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class RemoteWorkerRecord:
    """Describe one worker. `parse` reads its text form, which extends GNU parallel's --sshlogin.

    Arguments:
        username: the account to log in to; None leaves it to ssh's configuration.
        machine: a host name, an address or a Host of ssh's configuration; ':' is this machine,
            without ssh.
        weight: how often it is chosen, relative to other workers with a free slot.
        count: its slots; None means one per core, which the machine reports.
        python: the path of its interpreter; None looks for one of the controller's version.
        nice: the niceness of its tasks, 0 to 19; see nice(1). Higher values slow down other users
            of the machine less.

    >>> RemoteWorkerRecord.parse("8/me@bigbox weight=2 python=~/py")
    RemoteWorkerRecord(username='me', machine='bigbox', weight=2.0, count=8, python='~/py', nice=0)
    >>> str(RemoteWorkerRecord.parse("4/lab2")), str(RemoteWorkerRecord(None, ":"))
    ('4/lab2', ':')
    """

    username: str | None
    machine: str
    weight: float = 1
    count: int | None = None
    python: str | None = None
    nice: int = 0

    def __post_init__(self) -> None:
        machine = self.machine
        for what, value in ("machine", machine), ("username", self.username):
            if value is not None and not re.fullmatch(r"(?!-)[^\s@/\x00-\x20]+", value):
                raise ValueError(f"{what} must not be empty, begin with '-', or contain spaces, "
                                 f"'@' or '/'; got {value!r}")
        if machine == ":" and self.username:
            raise ValueError(f"username {self.username!r} cannot be used with ':', which is this "
                             f"machine without a login; write {self.username}@localhost instead")
        if re.fullmatch(r"[^:]+:\d+|\[.*\].*", machine):
            raise ValueError(f"machine {machine!r}: give a port as `Port` in ~/.ssh/config, and an "
                             "IPv6 address without brackets")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight of {machine} must be a finite number above 0, got "
                             f"{self.weight!r}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"slot count of {machine} must be at least 1, got {self.count!r}; "
                             "leave it out for one per core")
        if self.python is not None and not _PLAIN_PATH.fullmatch(self.python):
            raise ValueError(f"python of {machine} must be a path without spaces and quotes, got "
                             f"{self.python!r}; make a symbolic link to it")
        if self.nice not in range(20):
            raise ValueError(f"nice of {machine} must be an integer from 0 to 19, got "
                             f"{self.nice!r}")

    @classmethod
    def parse(cls, text: str) -> RemoteWorkerRecord:
        """Parse `[COUNT/][USER@]MACHINE [weight=N] [python=PATH] [nice=N]`.

        Raises ValueError, which quotes what is wrong.
        """
        login, *settings = text.split() or [""]
        count, slash, login = login.rpartition("/")
        username, at, machine = login.rpartition("@")
        given: dict[str, Any] = {}
        try:
            if slash:
                if not count.isdecimal():
                    raise ValueError(f"the slot count must be a number, got {count!r}")
                given["count"] = int(count)
            for setting in settings:
                name, _, value = setting.partition("=")
                given[name] = {"weight": float, "python": str, "nice": int}[name](value)
            return cls(username if at else None, machine, **given)
        except KeyError as error:
            why = f"unknown setting {error}; expected weight=, python= or nice="
        except ValueError as error:
            why = str(error)
        raise ValueError(
            f"worker {text!r}: {why}. Example: 8/me@bigbox weight=2 python=~/venv/bin/python")

    @property
    def login(self) -> str:
        """The argument of ssh: `user@machine`, or `machine`."""
        return f"{self.username}@{self.machine}" if self.username else self.machine

    def __str__(self) -> str:
        count = f"{self.count}/" if self.count else ""
        weight = f" weight={self.weight:g}" if self.weight != 1 else ""
        python = f" python={self.python}" if self.python else ""
        nice = f" nice={self.nice}" if self.nice else ""
        return count + self.login + weight + python + nice


class RemoteWorkerSelectionPolicy(ABC):
    """Choose the worker for the next attempt, among those with a free slot.

    It may not be asked where only one worker is free. It is never asked about backups, tasks sent
    to busy workers ahead of need, and tasks that must run alone. The scheduler counts the slots; a
    policy keeps no account of them.

    >>> class Last(RemoteWorkerSelectionPolicy):
    ...     def choose(self, ready, avoid=()):
    ...         fit = [n for n, record in enumerate(ready) if record.machine not in avoid]
    ...         return max(fit, default=None)
    >>> with RemoteExecutor("1/:", Last(), show_status=False) as pool:
    ...     pool.submit(abs, -1).result()
    1
    """

    @abstractmethod
    def choose(self, ready: Sequence[RemoteWorkerRecord],
               avoid: Container[str] = ()) -> int | None:
        """Return the index of the worker to use in `ready`, which is never empty.

        Return None if all their machines are in `avoid`. The executor's lock is held meanwhile, so
        a policy must neither block nor call the executor.
        """


class WeightedRandomRemoteWorkerSelectionPolicy(RemoteWorkerSelectionPolicy):
    """Choose at random, in proportion to weight.

    >>> policy = WeightedRandomRemoteWorkerSelectionPolicy(random.Random(1))
    >>> ready = _parse_workers("bigbox weight=9,lab2")
    >>> sum(policy.choose(ready) == 0 for _ in range(1000)) in range(850, 950)
    True
    """

    def __init__(self, random_source: random.Random | None = None) -> None:
        self._random = random_source or random.Random()

    def choose(self, ready: Sequence[RemoteWorkerRecord],
               avoid: Container[str] = ()) -> int | None:
        # Weights are finite, but the sum of large ones may not be, so they are scaled.
        largest = max(record.weight for record in ready)
        weights = [record.weight / largest * (record.machine not in avoid) for record in ready]
        return self._random.choices(range(len(ready)), weights)[0] if any(weights) else None


class RoundRobinRemoteWorkerSelectionPolicy(RemoteWorkerSelectionPolicy):
    """Choose workers with a free slot in turn.

    >>> policy = RoundRobinRemoteWorkerSelectionPolicy()
    >>> [policy.choose(_parse_workers("a,b,c"), avoid={"b"}) for _ in range(4)]
    [0, 2, 0, 2]
    """

    def __init__(self) -> None:
        self._next = 0

    def choose(self, ready: Sequence[RemoteWorkerRecord],
               avoid: Container[str] = ()) -> int | None:
        for turn in range(len(ready)):
            index = (self._next + turn) % len(ready)
            if ready[index].machine not in avoid:
                self._next = index + 1
                return index
        return None


def _parse_workers(workers: Iterable[RemoteWorkerRecord | str]) -> list[RemoteWorkerRecord]:
    if isinstance(workers, str):
        workers = workers.split(",")
    if not isinstance(workers, Iterable):
        raise ValueError(f"workers must be a list like ['8/me@bigbox', ':'], got {workers!r}")
    records = []
    for one in workers:
        if not isinstance(one, (str, RemoteWorkerRecord)):
            raise ValueError("each of workers must be a text like '8/me@bigbox' or a "
                             f"RemoteWorkerRecord, got {one!r}")
        records.append(RemoteWorkerRecord.parse(one) if isinstance(one, str) else one)
    return records


def _default_workers() -> list[RemoteWorkerRecord]:
    """Read the default list: $EXECUTORS_REMOTE_WORKERS, or else ~/.config/executors/workers."""
    texts = os.environ.get("EXECUTORS_REMOTE_WORKERS", "").split(",")
    path = os.path.expanduser("~/.config/executors/workers")
    if texts == [""] and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            texts = [line.partition("#")[0] for line in file]
    records = _parse_workers(text for text in texts if text.strip())
    if not records:
        raise ValueError("no remote workers: pass some (to a command by --workers), or name them "
                         "in $EXECUTORS_REMOTE_WORKERS, separated by commas, or in "
                         f"{path}, one a line")
    return records


# ─────────────────────────────────────── what a call raises ───────────────────────────────────────


# Escape sequences and control characters. Of what machines send, only tabs, and colours (group 1)
# of what tasks print, may reach a terminal: nothing may move its cursor or change its settings.
_CONTROLS = re.compile(r"(\x1b\[[\d;:]*m)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]P^_X][^\x07\x1b]*"
                       r"(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _words_of(data: Any) -> str:
    """Return a text that a machine has sent, without colours and control characters."""
    return _CONTROLS.sub("", bytes(data).decode("utf-8", "replace"))


def _name_of_function(fn: Any) -> str:
    """Return what a function is called in messages and displays."""
    if isinstance(fn, functools.partial) and fn.func is wire.run_with_arrays:
        return str(fn.args[0])
    fn = _unwrap_partials(fn)
    return getattr(fn, "__qualname__", type(fn).__qualname__)


def _unwrap_partials(fn: Any) -> Any:
    """Return the function that a partial calls, or that a chunk of a map does."""
    while isinstance(fn, functools.partial):
        is_ours = fn.func in (wire.run_chunk, wire.run_items)
        fn = fn.args[0] if is_ours else fn.func
    return fn


class _UnpicklableError(Exception):
    """Something that a function uses cannot be pickled.

    Arguments:
        words: what, and why.
        error: what pickling raised.
    """

    def __init__(self, words: str, error: Exception) -> None:
        super().__init__(words)
        self.error = error


def _unpicklable_error(name: str, value: Any, error: Exception) -> _UnpicklableError:
    remedy = ""
    if isinstance(value, type):
        remedy = "; to use this class, move it into a module of its own and import it from there"
    return _UnpicklableError(f"{name}, which it uses, cannot be pickled "
                         f"({wire.describe(error)}){remedy}", error)


def _pickling_error_like(error: Exception, words: str) -> Exception:
    """Return an error with another message, of a type that callers of pickle expect."""
    if isinstance(error, pickle.PicklingError):
        return pickle.PicklingError(words)
    return TypeError(words)


def _find_unpicklable(fn: Any) -> str:
    """Return the name of the variable that keeps a function from being pickled, or ""."""
    owner = getattr(fn, "__self__", None)
    used = {f"self.{name}": value for name, value in getattr(owner, "__dict__", {}).items()}
    with contextlib.suppress(TypeError, ValueError):    # not a function; an empty cell
        variables = inspect.getclosurevars(fn)
        used.update({**variables.globals, **variables.nonlocals})
    return next((name for name, value in used.items() if _is_unpicklable(value)), "")


def _is_unpicklable(value: Any) -> bool:
    try:
        wire.pack_for_slot(value)
    except Exception:
        return True
    return False


def _blame_arguments(name: str, args: Iterable[Any], kwargs: Mapping[str, Any],
                     error: Exception) -> Exception:
    """Return an error that names the argument that cannot be pickled, instead of pickle's own.

    Arguments:
        name: of the function.
        error: what pickling raised.
    """
    if type(error) not in (AttributeError, TypeError, pickle.PicklingError):
        return error        # other types may not be made from a message alone
    for place, value in (*enumerate(args, 1), *kwargs.items()):
        if _is_unpicklable(value):
            reason = wire.describe(error)
            if isinstance(value, Future):
                reason = ("it is a future: pass what its result() returns, or use `parallelize`, "
                          "which waits for it")
            blamed = type(error)(f"argument {place} of {name}, a {type(value).__name__}, cannot be "
                                 f"pickled ({reason})")
            blamed.__cause__ = error
            return blamed
    return error


def _unpickling_error(name: str, error: BaseException) -> BundleError:
    """Return the error of a future whose result cannot be unpickled."""
    failure = BundleError(name, f"its result cannot be unpickled here: {wire.describe(error)}")
    failure.__cause__ = error
    return failure


# Outcomes of a bundle besides wire.RESULT and wire.ERROR; the body is an exception, or ().
_FAILED, _CANCELLED = -1, -2


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether Ctrl-C raised this: KeyboardInterrupt, or in a coroutine CancelledError."""
    cancelled = getattr(sys.modules.get("asyncio"), "CancelledError", KeyboardInterrupt)
    return isinstance(error, (KeyboardInterrupt, cancelled))


def _interrupts_us(error: BaseException) -> bool:
    """Return whether a signal handler may have raised this: Ctrl-C's KeyboardInterrupt, SystemExit.

    Handlers run in the main thread. In another one, whatever is raised belongs to what was called.
    """
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and not isinstance(error, Exception)


# What an ERROR message reports, by its stage.
_STAGES = {
    "arguments": "its function or arguments cannot be unpickled on the worker",
    "result": "its result cannot be pickled",
    "round trip": "its result cannot be unpickled",
    "run": "it raised an exception that cannot be pickled",
}


def _rebuild_exception(name: str, body: Any, is_remote: bool = True) -> BaseException:
    """Return the exception of an ERROR message, with the remote traceback as its cause.

    Arguments:
        name: of the function.
        body: see `wire.pack_outcome`.
        is_remote: whether it may be about files of another machine.

    Raises whatever a malformed body leads to.
    """
    stage, pickled, kind, text, trace = wire.unpack(body)
    error = None
    # Two cases. The function raised, and its exception arrives. Otherwise a BundleError tells what
    # could not be pickled or unpickled.
    if stage == "run" and pickled:
        try:
            error = pickle.loads(pickled)
        except BaseException as problem:
            text += f" (the exception cannot be unpickled here: {wire.describe(problem)})"
    if not isinstance(error, BaseException):
        reason = f"{_STAGES[stage]}: {kind}: {text}"
        if stage == "run" and not pickled:
            reason += (" -- an exception is made anew from its args: pass all of them to "
                       "super().__init__(), or define __reduce__")
        error = BundleError(name, reason)
    elif is_remote and isinstance(error, FileNotFoundError):
        with contextlib.suppress(Exception):    # of Python 3.10; or it is of the user's own making
            _explain_missing_file(error)
    # Not by assignment: an exception may be a frozen dataclass.
    vars(BaseException)["__cause__"].__set__(error, _RemoteTraceback(_add_source_lines(trace)))
    return error


def _explain_missing_file(error: Any) -> None:
    """If a file that a worker lacks exists here, note in the error how to send it there.

    The worker has already added a note if the file lies beside code that was sent.
    """
    if not os.path.exists(error.filename) or hasattr(error, "__notes__"):
        return
    path = os.path.normpath(error.filename)
    first, *_ = path.split(os.sep)
    remedy = f"pass files=[{first!r}] to RemoteExecutor"
    if first in ("", os.pardir):
        remedy = (f"pass files=[{path!r}] to RemoteExecutor, and open it as "
                  f"{os.path.basename(path)!r}")
    error.add_note(f"it is here, where the pool was made, and does not follow unasked: {remedy}")


def _add_source_lines(trace: str) -> str:
    """Add lines of source to a remote traceback, from files that only this machine has.

    These are the script, and the cells of a notebook.
    """
    def add_line(match: re.Match[str]) -> str:
        line = linecache.getline(match[1], int(match[2])).strip()
        return f"{match[0]}    {line}\n" if line else match[0]
    return re.sub(
        r'^  File "(.+)", line (\d+), in .*\n(?! {4})', add_line, trace, flags=re.MULTILINE)


def _describe_exit(status: int) -> str:
    """Say how a process ended, from its wait status."""
    number = os.waitstatus_to_exitcode(status)
    if number >= 0:
        return f"exited with status {number}"
    if number == -signal.SIGKILL:
        return "killed by SIGKILL (out of memory?)"
    try:
        name = signal.Signals(-number).name
    except ValueError:      # a real-time signal
        name = signal.strsignal(-number) or ""
    return f"killed by {name}"


# ──────────────────────────────────────── local executors ─────────────────────────────────────────

def _list_alive(objects: weakref.WeakValueDictionary[Any, _T]) -> list[_T]:
    """Return the values. Unlike iteration, this may be called while other threads add some."""
    alive = [reference() for reference in objects.valuerefs()]
    return [value for value in alive if value is not None]


# Threading's own hook runs while threads can still be started; functions of `atexit` run too late.
_register_at_exit = getattr(threading, "_register_atexit", atexit.register)


class BaseExecutor(Executor):
    """The face that all executors here share: a title, a histogram, a count, and a better `map`.

    Attributes:
        title: a name for logs and displays.
    """

    def __init__(self, title: str = "") -> None:
        self.title = title or type(self).__name__

    @property
    def histogram(self) -> Histogram:
        """How long tasks took, in seconds.

        A RemoteExecutor counts the time that an attempt ran in its slot. Other pools count from
        submission to outcome. A chunk counts once, however many items it has.
        """
        raise NotImplementedError

    @property
    def task_count(self) -> int:
        """The number of tasks that are submitted and not done."""
        raise NotImplementedError

    def get_task_count(self) -> int:
        """Return the number of tasks that are submitted and not done."""
        return self.task_count

    @property
    def slots(self) -> int:
        """How many tasks run at a time; at least 1.

        A RemoteExecutor counts every machine that is up or may still come up. If some workers were
        given without a number of slots, it first waits up to 5 s for them to report their cores.
        """
        self._await_slots()
        return self._count_slots()

    size = _max_workers = slots         # Dask's scheduler, among others, looks at the latter

    def _await_slots(self) -> None:
        """Wait until it is known how many slots there are, or long enough."""

    def _count_slots(self) -> int:
        """Return how many slots there are, as far as is known now."""
        raise NotImplementedError

    def __reduce__(self) -> Any:
        raise TypeError("a pool stays where it is: leave it out of what is sent, or drop it in the "
                        "__getstate__ of what holds it")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.title!r}: {self.task_count} tasks>"

    # These overloads follow typeshed's of the built-in `map`. Its Executor.map does not check that
    # the iterables fit the function.
    @overload       # type: ignore[override]
    def map(self, fn: Callable[[_A], _T], one: Iterable[_A], /, *, timeout: float | None = ...,
            chunksize: int | None = ..., buffersize: int | None = ...) -> Iterator[_T]: ...

    @overload
    def map(self, fn: Callable[[_A, _B], _T], one: Iterable[_A], two: Iterable[_B], /, *,
            timeout: float | None = ..., chunksize: int | None = ...,
            buffersize: int | None = ...) -> Iterator[_T]: ...

    @overload
    def map(self, fn: Callable[[_A, _B, _C], _T], one: Iterable[_A], two: Iterable[_B],
            three: Iterable[_C], /, *, timeout: float | None = ..., chunksize: int | None = ...,
            buffersize: int | None = ...) -> Iterator[_T]: ...

    @overload
    def map(self, fn: Callable[..., _T], one: Iterable[Any], two: Iterable[Any],
            three: Iterable[Any], four: Iterable[Any], /, *more: Iterable[Any],
            timeout: float | None = ..., chunksize: int | None = ...,
            buffersize: int | None = ...) -> Iterator[_T]: ...

    def map(self, fn: Callable[..., _T], *iterables: Iterable[Any], timeout: float | None = None,
            chunksize: int | None = None, buffersize: int | None = None) -> Iterator[_T]:
        """Return an iterator over `fn(*items)` for the iterables' items, in order, done at once.

        Arguments:
            fn: what to call; it is pickled once, where it is pickled at all.
            timeout: seconds from now after which waiting for a result raises TimeoutError.
            chunksize: the number of items in one task. By default, processes and remote slots get
                as many as take a few hundredths of a second (see `RemoteExecutor`), others get 1.
            buffersize: the most tasks that are submitted and not yet yielded. The iterables are
                read no further ahead. None submits all. It works on every Python, as in 3.14.

        What `fn` raises is raised where its result would have been yielded; the tasks after it are
        then cancelled.
        """
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError(f"buffersize must be an integer or None, not {buffersize!r}")
        for name, value in ("chunksize", chunksize), ("buffersize", buffersize):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        deadline = None if timeout is None else monotonic() + timeout
        items = zip(*iterables)
        if chunksize is None and self._has_chunks():
            free = _ChunkedMap(self, fn, items)
            try:
                free.read(buffersize)
            except BaseException:       # Ctrl-C: nobody will ask for results
                free.close()
                raise
            return free.results(deadline, int(buffersize is not None))
        if chunksize in (None, 1):
            return _in_order(self, fn, items, buffersize, deadline)
        chunks = iter(lambda: tuple(itertools.islice(items, chunksize)), ())
        results = _in_order(
            self, functools.partial(wire.run_chunk, fn), zip(chunks), buffersize, deadline)
        return (result for chunk in results for result in chunk)

    def _submitter(self, fn: Callable[..., _T], owner: Any = None) -> Callable[..., Future[_T]]:
        """Return `submit` for one function that is to be called many times.

        Arguments:
            owner: the `_ChunkedMap` that calls it; it counts its items by itself.
        """
        return functools.partial(self.submit, fn)

    def _pack_items(self, columns: list[tuple[Any, ...]]) -> Any:
        """Return arguments of a chunk packed for `wire.run_items`; () if they are too long."""
        packed, needs = wire.pack_for_slot(columns)
        return wire.Prepacked(packed, needs) if type(packed) is bytes else ()

    def _release(self, submit: Callable[..., Any]) -> None:
        """Let go of what `_submitter` has returned; everything that it submitted is done."""

    def _has_chunks(self) -> bool:
        """Return whether items of a `map` may travel together, without having been asked to."""
        return False

    def _count_items(self, owner: _ChunkedMap, change: int, settled: Mapping[int, int]) -> None:
        """Add `change` to the number of a map's items that have no outcome yet.

        The executor does not end while there are such items. See `_hold`.

        Arguments:
            settled: the number of new outcomes of each kind.
        """

    def shutdown(       # type: ignore[override]
            self, wait: bool = True, *, cancel_futures: bool = False, quiet: bool = False,
            timeout: float | None = None) -> bool:
        """Accept no more work and let go of what the executor holds. May be called again.

        Arguments:
            wait: return only when all tasks are done and everything is released.
            cancel_futures: cancel the tasks that have not started.
            quiet: print and log no summary.
            timeout: seconds to wait. After that, what has not started is cancelled, and what runs
                is killed. Threads, and what an adopted pool runs, cannot be killed and are left.

        Return whether it waited until all tasks were done, and had to cut none short.
        """
        raise NotImplementedError

    def shutdown_if_idle(self, quiet: bool = False) -> bool:
        """Shut down if no task is pending or running; return whether it was so.

        Arguments:
            quiet: as for `shutdown`.
        """
        if self.task_count:
            return False
        self.shutdown(quiet=quiet)
        return True


def _in_order(pool: BaseExecutor, fn: Callable[..., _T], items: Iterator[Any],
              buffersize: int | None, deadline: float | None) -> Iterator[_T]:
    """Submit the first `buffersize` items now, or all if that is None; return results in order.

    One more item is submitted for each result that is yielded.
    """
    submit = pool._submitter(fn)
    futures = deque(submit(*item) for item in itertools.islice(items, buffersize))

    def results() -> Iterator[_T]:
        try:
            while futures:
                result = [futures[0].result(deadline and deadline - monotonic())]
                futures.popleft()
                futures.extend(submit(*item) for item in itertools.islice(items, 1))
                yield result.pop()      # not to keep it while its consumer looks at it
        finally:        # also when it is left early
            for future in futures:
                future.cancel()
            pool._release(submit)

    return results()


class _Chunk(NamedTuple):
    """Consecutive items of a map."""

    start: int                  # the number of the first
    items: deque[tuple[Any, ...]]       # the arguments of each
    is_alone: bool = False      # it is one item, and goes as a call of its own


class _ChunkOutcome(NamedTuple):
    """What became of the first items of a chunk."""

    ended: int                  # how many items have ended; those after them have not begun
    values: Sequence[Any]       # the results of these items, up to the first that failed
    error: Any = None           # what came instead of its result; None if none failed
    failed: int = 0             # how many of the items that ended have failed
    seconds: float = 0.0        # that they took; 0 if that is not known


class _ChunkedMap:
    """A `map` that finds out how many items travel together.

    A chunk gets as many items as take CHUNK_SECONDS at the latest pace. There are three limits:
    four times the items of the largest chunk that came back whole; a third of each slot's share of
    what is left; and one short frame, so a chunk that is too long is halved. A chunk that runs for
    twice CHUNK_SECONDS gives back the items that it has not begun. The thread that brings a chunk
    back sends the next one. Each slot has about one chunk that runs and one that waits.

    The pool's own count of the map's items keeps it from ending before they have their outcomes.
    """

    def __init__(self, pool: BaseExecutor, fn: Callable[..., Any],
                 items: Iterator[tuple[Any, ...]]) -> None:
        self._pool = pool
        self._pid = os.getpid()
        self._name = _name_of_function(fn)
        self._submit_one = pool._submitter(fn, self)
        self._submit_some = pool._submitter(functools.partial(wire.run_items, fn), self)
        self._items = items
        self._changed = threading.Condition()       # guards the rest
        self._queue: deque[_Chunk] = deque()        # items that wait
        self._count = 0                             # items that have been read
        self._ended = 0                             # of these, those that have an outcome
        self._is_feeding = False                    # a thread sends chunks
        self._in_flight: dict[int, Future[Any]] = {}        # by their first item
        self._outcomes: dict[int, _ChunkOutcome] = {}            # likewise
        self._limit = 1                             # items: four times as many as came back whole
        self._pace = CHUNK_SECONDS                  # seconds an item
        self._is_over = False                       # nobody asks for results any more

    def read(self, number: int | None) -> None:
        """Read so many items more, or all, in the thread that asks for results; send them.

        Raises RuntimeError if the pool was shut down meanwhile.
        """
        items = deque(itertools.islice(self._items, number))
        start = self._count
        self._count += len(items)       # first: if Ctrl-C comes next, `close` takes back as many
        if items:
            self._pool._count_items(self, len(items), {})
            with self._changed:
                self._queue.append(_Chunk(start, items))
        self._feed()

    def results(self, deadline: float | None, ahead: int) -> Iterator[Any]:
        """Yield results in order, each after the reading of `ahead` items more."""
        at = 0
        try:
            while at < self._count:
                with self._changed:
                    patience = None if deadline is None else max(deadline - monotonic(), 0)
                    has_come = functools.partial(self._outcomes.__contains__, at)
                    if not self._changed.wait_for(has_come, patience):
                        raise _TimeoutError
                    _, found, error, *_ = self._outcomes.pop(at)
                at += len(found)
                values = deque(found)
                del found
                while values:
                    if ahead:
                        self.read(ahead)
                    yield values.popleft()      # not to keep it while its consumer looks at it
                if error is not None:
                    raise error
        finally:        # also when it is left early
            if os.getpid() == self._pid:    # in a forked child, others' locks may be held for ever
                self.close()

    def close(self) -> None:
        """Cancel what is not done, and take it out of the pool's count."""
        with self._changed:
            self._is_over = True
            dropped, self._queue = self._queue, deque()     # its items are let go without the lock
            left = self._count - self._ended
            futures = [*self._in_flight.values()]
        del dropped
        if left:
            self._pool._count_items(self, -left, {_CANCELLED: left})
        for future in futures:
            future.cancel()
        for submit in (self._submit_one, self._submit_some):
            self._pool._release(submit)

    # Sending

    def _feed(self) -> None:
        """Send chunks while slots want some, unless another thread does: it looks again."""
        with self._changed:
            if self._is_feeding:
                return
            self._is_feeding = True
        try:
            while chunk := self._next_chunk():
                self._send(chunk)
        except BaseException:       # Ctrl-C
            self._is_feeding = False
            raise

    def _next_chunk(self) -> _Chunk | None:
        """Take the next chunk from the queue.

        If there is none, or the slots have enough, stop feeding and return None.
        """
        slots = self._pool._count_slots()
        with self._changed:
            if not self._queue or len(self._in_flight) > 2 * slots:
                self._is_feeding = False
                return None
            share = (self._count - self._ended) // (3 * slots)
            size = min(CHUNK_SECONDS // self._pace, self._limit, share)
            start, waiting, is_alone = self._queue.popleft()
            number = min(len(waiting), max(int(size), 1))
            items = deque([waiting.popleft() for _ in range(number)])
            if waiting:
                self._queue.appendleft(_Chunk(start + number, waiting))
            self._in_flight[start] = Future()       # until it is sent
            return _Chunk(start, items, is_alone)

    def _send(self, chunk: _Chunk) -> None:
        """Submit a chunk if it is short; have its outcome reported here."""
        packed: Any = None
        if not chunk.is_alone:
            try:
                packed = self._pool._pack_items([*zip(*chunk.items)])
            except BaseException as error:      # an item cannot be pickled: it is found alone
                if _interrupts_us(error):
                    raise
            half = len(chunk.items) // 2
            if half and not packed:
                with self._changed:
                    self._limit = half
                    self._put_back(chunk, 0)
                return
        try:
            if packed:
                future = self._submit_some(packed, 2 * CHUNK_SECONDS)
            else:       # it is long; or the call reports what cannot be pickled
                chunk = chunk._replace(is_alone=True)
                future = self._submit_one(*chunk.items[0])
        except (BrokenExecutor, _PoolClosedError) as error:
            self._on_refused(chunk, error)
            return
        except BaseException as error:
            if _interrupts_us(error):
                raise
            future = Future()
            future.set_exception(error)
        with self._changed:
            self._in_flight[chunk.start] = future
            is_over = self._is_over
        future.add_done_callback(functools.partial(self._on_done, chunk))
        if is_over:
            future.cancel()

    def _put_back(self, chunk: _Chunk, ended: int) -> None:
        """With the lock: what is left of a chunk waits again, unless the map is over."""
        self._in_flight.pop(chunk.start, None)
        left = deque(itertools.islice(chunk.items, ended, None))
        if left and not self._is_over:
            self._queue.appendleft(_Chunk(chunk.start + ended, left))

    # What becomes of chunks

    def _on_done(self, chunk: _Chunk, future: Future[Any]) -> None:
        try:
            result = future.result()
            outcome = (_ChunkOutcome(1, (result,)) if chunk.is_alone
                       else _open_results(self._name, *result))
        except BaseException as error:
            self._on_failed(chunk, error)
        else:
            self._on_ended(chunk, outcome)
        self._feed()

    def _on_failed(self, chunk: _Chunk, error: BaseException) -> None:
        """Find out which item is to blame for what happened to a chunk as a whole."""
        # There are three cases. There is only one item; if it goes alone, whatever it raised is its
        # own. Or the pool takes no more. Or it is not known yet: then each item goes alone.
        is_its_own = len(chunk.items) == 1 and isinstance(error, BundleError)
        if chunk.is_alone or is_its_own:
            self._on_ended(chunk, _ChunkOutcome(1, (), error, 1))
        elif isinstance(error, (BrokenExecutor, CancelledError, _PoolClosedError)):
            self._on_refused(chunk, error)
        else:
            singles = [_Chunk(number, deque([item]), True)
                       for number, item in enumerate(chunk.items, chunk.start)]
            with self._changed:
                self._put_back(chunk, len(singles))
                if not self._is_over:
                    self._queue.extendleft(reversed(singles))

    def _on_refused(self, chunk: _Chunk, error: BaseException) -> None:
        """The pool takes no more: that is the outcome of a chunk, and of all that waits."""
        if isinstance(error, _PoolClosedError):
            error = CancelledError()
        with self._changed:
            waiting, self._queue = self._queue, deque()
        for one in (chunk, *waiting):
            number = len(one.items)
            self._on_ended(one, _ChunkOutcome(number, (), error, number))

    def _on_ended(self, chunk: _Chunk, outcome: _ChunkOutcome) -> None:
        """Keep what came of the first items of a chunk; the others wait again."""
        ended, values, error, failed, seconds = outcome
        with self._changed:
            self._put_back(chunk, ended)
            if self._is_over:
                return
            self._outcomes[chunk.start] = outcome
            self._ended += ended
            if seconds and values:
                self._pace = seconds / len(values)
            if len(values) == len(chunk.items):
                self._limit = max(self._limit, 4 * len(values))
            self._changed.notify_all()
        kind = _CANCELLED if isinstance(error, CancelledError) else wire.ERROR
        self._pool._count_items(self, -ended, {wire.RESULT: ended - failed, kind: failed})


def _open_results(name: str, seconds: float, found: Any, raised: bytes) -> _ChunkOutcome:
    """Open what `wire.run_items` returned, up to a value that cannot be unpickled here."""
    number, values = len(found), found
    error: BaseException | None = None
    if type(found) is list:
        number = len(found[0])
        values, problem = wire.unpack_series(*found)
        error = problem and _unpickling_error(name, problem)
    if raised:
        number += 1
        error = error or _rebuild_exception(name, (raised,))
    return _ChunkOutcome(number, values, error, int(error is not None), max(seconds, 1e-9))


class _LocalFuture(Future[_T]):
    """An adopted pool's future. No callback can end the thread that gives it its outcome.

    If that thread ended, no other future of the pool would get an outcome.
    """

    def _invoke_callbacks(self) -> None:
        for callback in self._done_callbacks:       # type: ignore[attr-defined]
            try:
                callback(self)
            except BaseException as error:
                if _interrupts_us(error):
                    raise
                _log.exception("a callback of %r raised", self)


class _Failure(NamedTuple):
    """Stands for the result of a call in a process that has none."""

    error: BaseException


def _open_outcome(name: str, kind: int, body: Any) -> Any:
    """Return the result of a call in a process, or a _Failure.

    A thread of a standard pool calls this, and would end if it raised. See `wire.begin_process`.
    """
    try:
        if kind == wire.RESULT:
            return pickle.loads(body)
        return _Failure(_rebuild_exception(name, (body,), is_remote=False))
    except BaseException as error:
        return _Failure(_unpickling_error(name, error))


class _ProcessFuture(_LocalFuture[_T]):
    """The same of a ProcessPoolExecutor, where a _Failure may be set as the result.

    A race: it may be set before the future is of this class. So who asks for the result looks, too.
    """

    def set_result(self, result: Any) -> None:
        if type(result) is _Failure:
            self.set_exception(result.error)
        else:
            super().set_result(result)

    def result(self, timeout: float | None = None) -> _T:
        value: Any = super().result(timeout)
        if type(value) is _Failure:
            raise value.error
        return value    # type: ignore[no-any-return]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        error = super().exception(timeout)
        value: Any = super().result() if error is None else None
        return value.error if type(value) is _Failure else error


class PoolExecutor(BaseExecutor):
    """Adopt any `concurrent.futures.Executor`: Dask's `client.get_executor()`, mpi4py's, yours.

    >>> with PoolExecutor(ThreadPoolExecutor(2), title="borrowed") as pool:
    ...     list(pool.map(str.upper, ["a", "b"], chunksize=2))
    ['A', 'B']
    """

    _future_type: type[Future[Any]] = _LocalFuture

    def __init__(self, pool: Executor, *, title: str = "") -> None:
        super().__init__(title)
        self._pool = pool
        # Any thread adds and removes, a step at a time, which is atomic.
        self._started: dict[Future[Any], float] = {}    # when those not yet done were submitted
        self._durations: deque[float] = deque()         # seconds, not in the histogram yet
        # Guards the rest, and which pool it is. A finalizer may come while its thread holds it.
        self._lock = threading.RLock()
        self._histogram = Histogram()

    @property
    def histogram(self) -> Histogram:
        copy = Histogram()
        with self._lock:
            self._count_durations()
            copy.merge(self._histogram)
        return copy

    def _count_durations(self) -> None:
        """Move the durations that were kept so far into the histogram."""
        with self._lock:
            while self._durations:
                self._histogram.add(self._durations.popleft())

    @property
    def task_count(self) -> int:
        return len(self._started)

    def _count_slots(self) -> int:
        return int(getattr(self._pool, "_max_workers", None) or os.cpu_count() or 1)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        return self._watch(monotonic(), self._pool.submit(fn, *args, **kwargs))

    def _watch(self, started: float, future: Future[_T]) -> Future[_T]:
        """Count a task until it is done. It may be done already."""
        if type(future) is Future:      # a user's callbacks and waits come after this
            future.__class__ = self._future_type
        self._started[future] = started
        future.add_done_callback(self._on_done)
        if len(self._durations) > UNCOUNTED:
            self._count_durations()
        return future

    def _on_done(self, future: Future[Any]) -> None:
        self._durations.append(monotonic() - self._started.pop(future))

    def _abandon_tasks(self) -> bool:
        """Cancel what waits, and kill what runs; return whether that can be done."""
        for future in [*self._started]:
            future.cancel()
        return False

    def shutdown(       # type: ignore[override]
            self, wait: bool = True, *, cancel_futures: bool = False, quiet: bool = False,
            timeout: float | None = None) -> bool:
        is_done = wait
        if wait and timeout is not None:
            for future in [*self._started] if cancel_futures else ():
                future.cancel()
            is_done = not concurrent.futures.wait([*self._started], timeout).not_done
            wait = is_done or self._abandon_tasks()
        known = {"cancel_futures": True} if cancel_futures else {}
        self._pool.shutdown(wait, **known)      # not every adopted pool knows that word
        histogram = self.histogram
        if not quiet and histogram.count:
            _log.info("%s: %d tasks, %s", self.title, histogram.count, histogram._percentiles())
        return is_done


class ThreadExecutor(PoolExecutor):
    """Run tasks on threads of this process.

    Arguments:
        max_workers: the number of threads; by default $EXECUTORS_THREADPOOL_SIZE, else the standard
            library's choice.

    >>> with ThreadExecutor(2) as pool:
    ...     pool.submit(sum, [1, 2, 3]).result()
    6
    """

    def __init__(self, max_workers: int | None = None, *, title: str = "") -> None:
        super().__init__(ThreadPoolExecutor(
            _or_environment(max_workers, "EXECUTORS_THREADPOOL_SIZE", int)), title=title)


def _require_cloudpickle() -> None:
    if not importlib.util.find_spec("cloudpickle"):
        raise ModuleNotFoundError("what travels is pickled by cloudpickle, which is not installed "
                                  "here: pip install cloudpickle", name="cloudpickle")


class ProcessExecutor(PoolExecutor):
    """Run tasks on processes of this machine; lambdas, closures and functions of `__main__` too.

    A process that dies takes its pool's tasks with it (BrokenProcessPool, as in the standard
    library); the next submission gets a new pool. What cannot be pickled or unpickled is the error
    of its task alone: for that, a result is unpickled in its process, too, before it is sent.

    Processes are started in the default way of `multiprocessing`, with two exceptions. With
    `max_tasks_per_child` they are spawned. If the default is to fork and this process has other
    threads (those of a RemoteExecutor, say), Python 3.12 and later use a fork server: a fork copies
    whatever locks those threads hold, and may hang. Processes that are not forked from this one
    import the main script: guard it with `if __name__ == "__main__"`.

    Arguments:
        max_workers: the number of processes; by default $EXECUTORS_PROCESSPOOL_SIZE, else one per
            core.
        mp_context: one of `multiprocessing.get_context`, to choose otherwise.
        max_tasks_per_child: tasks after which a process is replaced by a new one, as in
            ProcessPoolExecutor (from Python 3.11 on, and not with fork).

    >>> with ProcessExecutor(2) as pool:
    ...     list(pool.map(lambda n: n * n, range(5)))
    [0, 1, 4, 9, 16]
    """

    _future_type = _ProcessFuture

    def __init__(self, max_workers: int | None = None, *, title: str = "",
                 mp_context: multiprocessing.context.BaseContext | None = None,
                 max_tasks_per_child: int | None = None) -> None:
        _require_cloudpickle()
        self._size = _or_environment(max_workers, "EXECUTORS_PROCESSPOOL_SIZE", int)
        self._context = mp_context
        self._more: dict[str, Any] = {}
        if max_tasks_per_child is not None:
            if sys.version_info < (3, 11):
                raise ValueError("max_tasks_per_child needs Python 3.11 or later")
            self._more["max_tasks_per_child"] = max_tasks_per_child
        self._there: Mapping[str, object] | None = None     # of `__main__`, see `_make`
        super().__init__(self._make(), title=title)
        self._pool.shutdown()       # the first submission makes one beside the threads of then
        self._is_started = False
        self._is_closed = False     # to all but maps that have begun
        self._is_shut = False
        self._maps: dict[_ChunkedMap, int] = {}     # that have begun: see `_hold`
        self._drained = threading.Condition(self._lock)     # for these to be none

    def _make(self) -> ProcessPoolExecutor:
        context = self._context or multiprocessing.get_context("spawn" if self._more else None)
        is_fork = context.get_start_method() == "fork"
        is_unsafe = sys.version_info >= (3, 12) and threading.active_count() > 1
        if is_fork and is_unsafe and not self._context:
            context = multiprocessing.get_context("forkserver")
            is_fork = False
        # A forked child has what stands in `__main__` now; others import it, and can tell.
        self._there = {**vars(sys.modules["__main__"])} if is_fork else None
        return ProcessPoolExecutor(
            self._size, context, wire.begin_process, (_open_outcome,), **self._more)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        if self._is_closed:
            raise _PoolClosedError
        return self._submit(fn, *args, **kwargs)

    def _submitter(self, fn: Callable[..., _T], owner: Any = None) -> Callable[..., Future[_T]]:
        if self._is_closed:
            raise _PoolClosedError
        return functools.partial(self._submit, fn)

    def _has_chunks(self) -> bool:
        return True

    def _count_items(self, owner: _ChunkedMap, change: int, settled: Mapping[int, int]) -> None:
        _drain_at_exit()
        _mapping[id(self)] = self
        with self._lock:
            _hold(self._maps, owner, change, not self._is_closed)
            self._drained.notify_all()

    def _abandon_tasks(self) -> bool:
        pool: Any = self._pool
        processes = [*(pool._processes or {}).values()]
        manager = pool._executor_manager_thread
        if manager is None:     # no task has come, or it is shut down already
            return True
        pool.shutdown(wait=False, cancel_futures=True)
        # The manager thread cancels what waits. If it finds a cancelled task once a process has
        # died, it ends by an InvalidStateError in some versions, and leaves the others' futures.
        while manager.is_alive() and pool._cancel_pending_futures:
            manager.join(0.01)
        for process in processes:
            process.kill()
        manager.join()
        return True

    def shutdown(       # type: ignore[override]
            self, wait: bool = True, *, cancel_futures: bool = False, quiet: bool = False,
            timeout: float | None = None) -> bool:
        # A callback that shuts its pool down cannot wait for itself.
        manager = getattr(self._pool, "_executor_manager_thread", None)
        wait = wait and threading.current_thread() is not manager
        with self._lock:
            self._is_closed = True
            is_kept = cancel_futures or not self._maps
        end = functools.partial(self._end, wait, cancel_futures, quiet, timeout)
        if wait or is_kept:
            return end()
        threading.Thread(target=end, name=f"{self.title} end").start()
        return False

    def _end(self, wait: bool, cancel_futures: bool, quiet: bool, timeout: float | None) -> bool:
        started = monotonic()
        is_drained = cancel_futures or self._drain(timeout)
        with self._lock:
            self._is_shut = True
        if timeout is not None:
            timeout = max(timeout + started - monotonic(), 0)
        is_done = super().shutdown(
            wait, cancel_futures=cancel_futures, quiet=quiet, timeout=timeout)
        return is_done and is_drained

    def _drain(self, timeout: float | None = None) -> bool:
        """Wait for what maps are still to send; return whether all was sent in time."""
        with self._lock:
            return self._drained.wait_for(lambda: not self._maps, timeout)

    def _submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        if not self._is_started:
            self._replace(self._pool)
        pool = self._pool
        started = monotonic()
        call = self._pack(fn, args, kwargs)
        try:
            future = pool.submit(*call)
        except RuntimeError:        # it is broken
            self._replace(pool)
            # Packed anew: the processes of another pool may have other things in `__main__`.
            pool = self._pool
            future = pool.submit(*self._pack(fn, args, kwargs))
        _start_feeder(pool)
        return self._watch(started, future)

    def _pack(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, ...]:
        if not kwargs and wire.is_plain(args) and (where := wire.importable_name(fn)):
            return wire.run_plain, *where, *args
        packed = wire.pack_for_process((fn, args, kwargs), self._there)
        return wire.run_shipped, _name_of_function(fn), packed

    def _pack_items(self, columns: list[tuple[Any, ...]]) -> Any:
        packed = wire.pack_for_process(columns, self._there)
        return packed if len(packed) <= wire.MAX_INLINE else ()

    def _replace(self, pool: Executor) -> None:
        """Make a new pool in place of this one, unless another thread has done so."""
        with self._lock:
            if self._is_shut:
                raise _PoolClosedError
            if self._pool is pool:
                self._pool = self._make()
                self._is_started = True
        pool.shutdown(wait=False)


def _start_feeder(pool: Any) -> None:
    """Start the thread that writes a ProcessPoolExecutor's calls to its processes, if need be.

    The pool itself starts it some time after its first call, from a thread of its own. If the
    program has ended by then, Python 3.12 starts no thread, and the pool loses all its calls
    (https://github.com/python/cpython/issues/109047). It cannot be started earlier, for it must not
    be there when the processes are forked.
    """
    queue = pool._call_queue        # None if another thread has shut the pool down
    if queue and queue._thread is None:
        with queue._notempty:       # which guards that, and is held by `put` when it starts one
            if queue._thread is None:
                queue._start_thread()


_TimeoutError = concurrent.futures.TimeoutError      # another than ours before Python 3.11
# By identity, those that have run a map.
_mapping: weakref.WeakValueDictionary[int, ProcessExecutor] = weakref.WeakValueDictionary()


@functools.cache
def _drain_at_exit() -> None:
    """Have maps that have begun send all they have, at exit, before the pools' own threads end."""
    pid = os.getpid()

    def drain() -> None:
        if os.getpid() == pid:
            for pool in _list_alive(_mapping):
                pool._drain()

    with contextlib.suppress(RuntimeError):     # it is too late for that
        _register_at_exit(drain)


def _hold(maps: dict[_ChunkedMap, int], owner: _ChunkedMap, change: int, is_open: bool) -> None:
    """Change the count of a map's items without an outcome; drop the map when none is left.

    A pool that shuts down waits until `maps` is empty, unless it cancels its tasks.

    Arguments:
        maps: the items without an outcome of each map that has some.
        change: how many are read, or, less than 0, have an outcome.
        is_open: whether more may be read; if not, and there are some, RuntimeError is raised.
    """
    if change > 0 and not is_open:
        raise _PoolClosedError
    left = maps.pop(owner, 0) + change
    if left > 0:
        maps[owner] = left


def _or_environment(given: Any, name: str, convert: Any, default: Any = None) -> Any:
    text = os.environ.get(name, "").strip()
    if given is not None or not text:
        return default if given is None else given
    try:
        return convert(text)
    except (KeyError, ValueError):
        what = "a whole number" if convert is int else "yes or no"
        raise ValueError(
            f"the environment variable {name} must be {what}, got {text!r}") from None


# ─────────────────────────────────────────── scheduling ───────────────────────────────────────────
#
# A pure state machine: no I/O, no threads, no clock, no logging. Its caller holds the supervisor's
# lock, which guards all of its state, sets the time, reports events, and afterwards performs the
# actions that `take_actions` returns. The scheduler knows a link by its number only.

# An action, with its target and its operand:
#     CONNECT worker, link: open a link to it; `on_link_up` or `on_link_lost` reports the outcome
#     LAUNCH link, attempt: send the attempt
#     KILL link, identifier: end an attempt; `on_attempt_killed`, `on_results` or `on_slot_exit`
#         reports its end
#     RECALL link, number: ask for up to so many attempts that have not started;
#         `on_attempts_recalled` reports which
#     LEAVE link, (): close it
#     SETTLE bundle, (kind, body): resolve its future; exactly once for every bundle
#     FINISH (), (): the scheduler was closed, and every bundle is settled
#     WARN (), words: log a warning
# Two more are never decided here. They go to a link's queue in the order of the others:
#     SEND link, frames; DROP link, identifier of a function
_Action = enum.IntEnum("_Action", "CONNECT LAUNCH KILL RECALL SEND DROP LEAVE SETTLE FINISH WARN")
_CONNECT, _LAUNCH, _KILL, _RECALL, _SEND, _DROP, _LEAVE, _SETTLE, _FINISH, _WARN = _Action
# The state of a worker.
_State = enum.Enum("_State", "WAITING CONNECTING UP FAILED REMOVED")
_WAITING, _CONNECTING, _UP, _UNUSABLE, _REMOVED = _State
# The state of the scheduler: open; closed, and everything submitted still runs; closed, and only
# what has started still runs; closed, and everything is killed.
_Mode = enum.Enum("_Mode", "OPEN DRAINING CANCELLING KILLING")
_OPEN, _DRAINING, _CANCELLING, _KILLING = _Mode
# The state of a bundle: not yet submitted to the scheduler; waiting or running; settled.
_Phase = enum.Enum("_Phase", "NEW LIVE OVER")
_NEW, _LIVE, _OVER = _Phase
_MICROSECONDS = (1 << wire.SLOT_SHIFT) - 1


class _LossKind(enum.Enum):
    """Why a link ended or could not be opened, as far as it makes a difference to what follows."""

    LOST = enum.auto()                  # the network, the machine, or a task that took it down
    TOO_MANY_LOGINS = enum.auto()       # sshd hung up on one of many logins
    UNUSABLE = enum.auto()              # another try would fail in the same way
    INITIALIZER_FAILED = enum.auto()    # likewise
    NO_SLOTS = enum.auto()              # it could not start a process for any task
    BROKE_PROTOCOL = enum.auto()        # it sent what no shim sends
    STALLED = enum.auto()               # a copy to it no longer moved


class _Loss(NamedTuple):
    """The end of a link that we did not end."""

    kind: _LossKind
    cause: str      # for people

    @property
    def is_permanent(self) -> bool:
        """Whether it is useless to try again."""
        return self.kind in (_LossKind.UNUSABLE, _LossKind.INITIALIZER_FAILED)

    @property
    def is_the_machines_fault(self) -> bool:
        """Whether no task that ran there can have caused it."""
        return self.kind in (
            _LossKind.BROKE_PROTOCOL, _LossKind.INITIALIZER_FAILED, _LossKind.NO_SLOTS)


class _Durations(Histogram):
    """A histogram that keeps its median at hand, updated every 64 durations.

    The median is infinite before the third.
    """

    __slots__ = ("median",)

    def __init__(self) -> None:
        super().__init__()
        self.median = math.inf

    def add(self, seconds: float) -> None:
        Histogram.add(self, seconds)
        if self.count >= 3 and (self.count < 16 or not self.count % 64):
            self.median = self.percentile(50) or 1e-9


@dataclasses.dataclass(eq=False)
class _Function:
    """A pickled function, shared by the bundles that call it."""

    ident: int              # on the wire
    name: str
    packed: Any
    durations: _Durations
    lacking: frozenset[str] = frozenset()       # machines without a module that it needs
    root: Any = None        # the function as it was submitted
    needs: Any = frozenset()        # (module, name) of what it uses of the script
    kept: Sequence[Any] = ()        # objects that results may refer to, kept alive
    script: Any = None      # for a map: the script's values when it began
    # Versions that come with more names of the script, by these names.
    variants: dict[Any, _Function] = dataclasses.field(default_factory=dict)

    def knows(self, names: Iterable[Any]) -> bool:
        """Return whether these names of the script come with it."""
        return not names or bool(self.needs.issuperset(names))


def _size(packed: Any) -> int:
    return len(packed) if type(packed) is bytes else sum(packed[0])


@dataclasses.dataclass(eq=False, slots=True)
class _Bundle:
    """One submitted call: a task, or a chunk of a map."""

    function: _Function
    packed: Any             # `(args, kwargs)`, from `wire.pack`
    future: Any = ()        # for the supervisor; the scheduler does not look at it
    phase: _Phase = _NEW
    attempts: tuple[_Attempt, ...] = ()     # those that may still settle it
    # (machine, how it ended, the end of its stderr) of slots that died while running it.
    failures: tuple[tuple[str, str, str], ...] = ()
    # Machines lost while it ran there, why, and for how many seconds it had run.
    losses: tuple[tuple[_Worker, str, float], ...] = ()
    owner: _ChunkedMap | None = None        # the map that counts its items itself, if any
    origin: int = 0         # the attempt that the next one retries or backs up, for the trace
    cell: int = 0           # the notebook cell that submitted it, if one did

    def is_running(self) -> bool:
        """Return whether an attempt has started. The worker knows better, for a moment."""
        return any(attempt.ident in attempt.worker.running for attempt in self.attempts)

    def machines_to_avoid(self) -> frozenset[str]:
        """Return machines where it has killed a slot, or where a module is missing."""
        if not self.failures:
            return self.function.lacking
        return self.function.lacking.union(machine for machine, _, _ in self.failures)

    def is_suspect(self) -> bool:
        """Return whether it must run alone: links were lost twice while it ran."""
        return len(self.losses) > 1


_SETTLED = _Bundle(_Function(0, "", b"", _Durations()), b"", phase=_OVER)   # any that is


@dataclasses.dataclass(eq=False, slots=True)
class _Attempt:
    """One execution of a bundle on one worker."""

    ident: int
    bundle: _Bundle
    worker: _Worker
    since: float            # when it started; until then, when it was sent
    backup: bool
    name: str
    origin: int

    def span(self, slot: int, outcome: str, now: float, ran: float = 0.0) -> _Span:
        """Return its entry in the trace; `ran` is 0 if the slot has not reported a time."""
        return _Span(self.worker, slot, self.name, self.ident, self.origin, now,
                     ran or now - self.since, outcome)


class _Span(NamedTuple):
    """An attempt that has started and ended, for the trace. Times are the controller's, in seconds.

    `ran` is as the slot measured it, where known: more exact than a difference of our times.
    """

    worker: _Worker
    slot: int               # wire.NO_SLOT if unknown
    name: str
    ident: int
    origin: int
    until: float
    ran: float
    outcome: str


class _Worker:
    """The scheduler's view of one machine."""

    def __init__(self, record: RemoteWorkerRecord, now: float) -> None:
        self.record = record
        self.machine = record.machine
        self.state = _WAITING
        self.link = 0                               # the number of its link; 0 if it has none
        self.count = record.count or 0              # slots
        self.running: dict[int, _Attempt] = {}      # by identifier, in the order of sending
        self.ahead: dict[int, _Attempt] = {}        # sent, and waiting there for a slot
        self.is_reserved = False                    # for a suspect, which runs there alone
        self.is_recalling = False                   # a RECALL is not answered yet
        self.ahead_seconds = AHEAD_SECONDS          # of work to send ahead
        self.durations = _Durations()               # of all attempts that ended there
        self.up_since = 0.0
        self.was_up = False
        self.was_suspended = False                  # we were, since its link is up
        self.losses = 0                             # how often it was lost after it was up
        self.seconds_up = 0.0                       # in all, until its last link was lost
        self.failures = 0                           # in a row
        self.retry_at = now
        self.urgent_at = now                        # if tasks wait and no machine is up
        self.cause = ""                             # why its last link was lost
        self.found: Mapping[str, str] = {}          # by stage of its login
        self.died = 0                               # slots that died while running a task
        self.backups = 0                            # launched there

    def is_hopeful(self) -> bool:
        """Return whether it may have a free slot before long."""
        return self.state in (_UP, _CONNECTING) or self.state is _WAITING and not self.failures


def _summarize(item: Any) -> str:
    """Describe a part of an action for the log, without code, arguments or results."""
    if isinstance(item, (tuple, list)):
        return " ".join(map(_summarize, item))
    if isinstance(item, _Attempt):
        return _summarize((item.ident, item.worker, item.bundle, item.bundle.packed))
    if isinstance(item, _Worker):
        return item.machine
    if isinstance(item, _Bundle):
        return item.function.name
    if isinstance(item, (int, str)):
        return str(item)
    return f"<{len(item) / 1000:.3f} kB>" if hasattr(item, "__len__") else type(item).__name__


class _Statistics:
    """The scheduler's counts and its trace, from which the status is made."""

    def __init__(self) -> None:
        self.settled: dict[int, int]
        self.settled = dict.fromkeys((wire.RESULT, wire.ERROR, _FAILED, _CANCELLED), 0)
        self.maps: dict[_ChunkedMap, int] = {}      # that have begun: see `_hold`
        self.chunks = 0         # of these, bundles that are not settled
        self.retried = 0
        self.backups = 0
        self.spans: deque[_Span] = deque(maxlen=TRACE_LENGTH)
        self._progress: deque[tuple[float, int]] = deque(maxlen=RATE_TICKS)

    def measure(self, now: float, is_busy: int) -> None:
        """Remember how far things are, if they have moved; forget it when nothing is to be done."""
        progress = self._progress
        count = self._count_finished()
        if not is_busy:
            progress.clear()
        if not progress or count > progress[-1][1]:
            progress.append((now, count))

    def rate(self, now: float) -> float:
        """Return tasks finished per second, of late; 0 until there are three to judge by."""
        if self._progress:
            since, count = self._progress[0]
            number = self._count_finished() - count
            if number >= 3 and now > since:
                return number / (now - since)
        return 0.0

    def _count_finished(self) -> int:
        return sum(self.settled.values()) - self.settled[_CANCELLED]


class _Limits(NamedTuple):
    """Limits that the user sets."""

    schedule_backups: bool = True
    max_bundle_failures: int = 3
    bundle_timeout: float = math.inf        # seconds


class _LoginWindow:
    """The logins under way. Their limit adapts as TCP's congestion window does (RFC 5681).

    It grows by one for each login that works, so it doubles in a round. It is halved when an sshd
    hangs up, once for all the logins that were under way at that moment.
    """

    def __init__(self) -> None:
        self.links: set[int] = set()        # being opened
        self._limit = LOGIN_WINDOW[0]
        self._halved = 0                    # the newest link when the limit was last halved

    def is_full(self) -> bool:
        return len(self.links) >= self._limit

    def on_login(self, link: int) -> None:
        """Raise the limit: a login worked."""
        self.links.discard(link)
        self._limit = min(self._limit + 1, LOGIN_WINDOW[1])

    def on_refusal(self, link: int) -> None:
        """Halve the limit: an sshd hung up because of too many logins at once."""
        if link > self._halved:
            self._halved = max(self.links, default=link)
            self._limit = max(self._limit // 2, 2)


class _Queues(NamedTuple):
    """The bundles that wait, in the order in which they are placed."""

    suspects: deque[_Bundle]        # each must run alone
    again: dict[frozenset[str], deque[_Bundle]]     # by the machines that they must avoid
    new: deque[_Bundle]             # all others


class _Scheduler:
    """Decide which bundle runs where and when, and how each one ends.

    The caller sets `now` before each event: monotonic seconds, which stand still meanwhile.
    """

    def __init__(self, policy: RemoteWorkerSelectionPolicy, rules: _Limits,
                 jitter: Callable[[], float] = random.random) -> None:
        self._policy = policy
        self.rules = rules
        self._jitter = jitter
        self.now = 0.0
        self._actions: list[Any] = []
        self._idents = itertools.count(1)       # identifiers of attempts and links
        self._queues = _Queues(deque(), {}, deque())
        self.workers: list[_Worker] = []
        self._login_window = _LoginWindow()
        self.up: list[_Worker] = []
        self._idle: dict[_Worker, RemoteWorkerRecord] = {}      # those with a free slot
        self._ahead = 0                         # attempts waiting on workers, in all
        self._turn = 0                          # the worker to be sent work ahead of need next
        self._backups: dict[int, _Attempt] = {}     # still useful ones, oldest first
        self._alone = 0.0                       # seconds that bundles have waited without a worker
        self._ticked = math.inf                 # the time of the last `tick`
        self.waiting = 0                        # bundles without an attempt
        self.unfinished = 0                     # bundles that are not settled
        self.mode = _OPEN
        self.tally = _Statistics()

    def take_actions(self) -> list[Any]:
        """Return `(act, target, operand)` of each action decided since the last call."""
        actions, self._actions = self._actions, []
        return actions

    def _decide(self, verb: _Action, target: Any = (), operand: Any = ()) -> None:
        self._actions.append((verb, target, operand))

    # Workers

    def add_worker(self, record: RemoteWorkerRecord) -> None:
        """Add a machine to the pool."""
        self.workers.append(_Worker(record, self.now))
        self._open_links()

    def remove_worker(self, record: RemoteWorkerRecord) -> bool:
        """Remove a worker and requeue what it ran. Return whether it was there."""
        for worker in self.workers:
            if worker.record == record:
                self._decide(_LEAVE, worker.link)
                self.on_link_closed(worker)
                worker.state = _REMOVED
                self.workers.remove(worker)
                self._place_bundles()
                return True
        return False

    def _open_links(self) -> None:
        is_urgent = self.waiting and not self.up
        for worker in () if self.is_over() else self.workers:
            if self._login_window.is_full():
                break
            if is_urgent:
                worker.retry_at = min(worker.retry_at, worker.urgent_at)
            if worker.state is _WAITING and worker.retry_at <= self.now:
                worker.state = _CONNECTING
                worker.link = next(self._idents)
                self._login_window.links.add(worker.link)
                self._decide(_CONNECT, worker, worker.link)

    def on_report(self, worker: _Worker, link: int, report: Callable[..., Any],
                  *operands: Any) -> Any:
        """Pass on a report about a link, unless the worker has another link by now.

        Arguments:
            report: one of the methods below.
            operands: its arguments after the worker.
        """
        return report(self, worker, *operands) if worker.link == link else False

    def on_link_ended(self, link: int) -> None:
        """Free a link's place among the logins, whichever worker had it: it has ended."""
        self._login_window.links.discard(link)
        self._open_links()

    def on_greeting(self, worker: _Worker, cores: int) -> None:
        """Note a machine's number of slots, from its greeting; it may still wait for files."""
        worker.count = worker.record.count or cores

    def is_counted(self) -> bool:
        """Return whether the slots of every machine are known, or it has failed to say.

        Any thread may call this, without the lock.
        """
        return self.is_over() or all(
            worker.count or worker.failures for worker in [*self.workers])

    def on_link_up(self, worker: _Worker, cores: int) -> None:
        """Start to use a machine: its login is complete."""
        self._login_window.on_login(worker.link)
        worker.up_since = self.now
        worker.state = _UP
        worker.was_up = True
        worker.was_suspended = False
        worker.cause = ""
        self.on_greeting(worker, cores)
        worker.is_recalling = False
        worker.ahead_seconds = AHEAD_SECONDS
        self.up.append(worker)
        self._open_links()
        self._use_free_slots(worker)

    def on_suspension(self) -> None:
        """Note that this process was suspended: links may end because of that."""
        for worker in self.up:
            worker.was_suspended = True

    def on_link_lost(self, worker: _Worker, loss: _Loss) -> bool:
        """Quarantine a worker whose link ended or could not be opened.

        Return whether the loss should be logged: it has another cause than the one before, since
        the machine was last up; and nobody needs to hear of it once the pool is over.
        """
        if loss.kind is _LossKind.TOO_MANY_LOGINS:
            self._login_window.on_refusal(worker.link)
        self._login_window.links.discard(worker.link)
        # Two cases. Some losses are the machine's own fault, beyond doubt: it is left alone for
        # longer. Otherwise a task that ran there may have taken it down.
        if loss.is_the_machines_fault:
            worker.failures += FAULT_WEIGHT
        else:
            worker.failures += 1
            self._suspect_running_tasks(worker, loss.cause)
        self.on_link_closed(worker, has_started=loss.kind is not _LossKind.NO_SLOTS)
        is_news = loss.cause != worker.cause
        worker.cause = loss.cause
        seconds = self._quarantine_seconds(worker.failures)
        worker.retry_at = worker.urgent_at = self.now + seconds
        if not loss.is_the_machines_fault:
            worker.urgent_at = self.now + min(seconds, URGENT_SECONDS)
        # One that has worked may refuse logins for a while; one that never has will go on refusing.
        if loss.is_permanent and (loss.is_the_machines_fault or not worker.was_up):
            worker.state = _UNUSABLE
        self._open_links()
        self._place_bundles()
        if self._are_all_unusable():
            self._settle_waiting(_FAILED, self._no_workers_error())
        return is_news and not self.is_over()

    def _quarantine_seconds(self, failures: int) -> float:
        """Return how long to leave a worker alone after `failures` in a row: doubled for each."""
        first, most = QUARANTINE_SECONDS
        seconds: float = min(most, first * 2 ** (failures - 1))
        return seconds * (0.75 + 0.5 * self._jitter())      # not all of them at the same moment

    def on_link_closed(self, worker: _Worker, has_started: bool = True) -> None:
        """Requeue everything that was under way on a link that has ended.

        Arguments:
            has_started: whether what had a slot, as far as was known here, may have started.
        """
        running, ahead = [*worker.running.values()], [*worker.ahead.values()]
        worker.running.clear()
        worker.ahead.clear()
        self._ahead -= len(ahead)
        if worker in self.up:
            self.up.remove(worker)
        worker.state = _WAITING
        worker.link = 0
        worker.is_reserved = False
        self._update_idle(worker)
        for attempt in reversed(ahead):
            self._requeue_attempt(attempt, has_started=False)
        for attempt in reversed(running):
            if has_started:
                self._record_span(attempt, wire.NO_SLOT, "lost")
            self._requeue_attempt(attempt, has_started)

    def _suspect_running_tasks(self, worker: _Worker, cause: str) -> None:
        """Remember what ran on a machine that was lost, and fail a task that took it down.

        A task that ran on machines twice when they were lost is a suspect, and runs alone from then
        on. Innocent tasks are cleared by completing. A suspect whose machine is lost again while it
        runs alone is failed if `_is_convicted`. If this process was suspended while the link was
        up, nobody is suspected: that is what has ended it.
        """
        if worker.state is _UP:
            worker.losses += 1
            worker.seconds_up += self.now - worker.up_since
        is_alone = worker.is_reserved and len(worker.running) == 1
        for attempt in () if worker.was_suspended else [*worker.running.values()]:
            bundle = attempt.bundle
            if attempt in bundle.attempts:
                was_alone = is_alone and bundle.is_suspect()
                bundle.losses += ((worker, cause, self.now - attempt.since),)
                if was_alone and self._is_convicted(bundle):
                    self._fail_suspect(bundle)

    def _is_convicted(self, bundle: _Bundle) -> bool:
        """Return whether it is the task that took machines down, and not these that go up and down.

        Losses count against it that came within STEADY_SECONDS from its start. Three conditions:
        they are more than `max_bundle_failures`; they are more than two thirds of all losses of
        these machines; and these were up for longer without it than with it, with STEADY_SECONDS
        for a start.
        """
        number = sum(seconds < STEADY_SECONDS for _, _, seconds in bundle.losses)
        workers = {worker for worker, _, _ in bundle.losses}
        of_all = sum(worker.losses for worker in workers)
        with_it = sum(seconds for _, _, seconds in bundle.losses)
        in_all = sum(worker.seconds_up for worker in workers)
        return (number > self.rules.max_bundle_failures and 2 * of_all < 3 * number
                and 2 * with_it < in_all + STEADY_SECONDS)

    def _fail_suspect(self, bundle: _Bundle) -> None:
        """Fail a bundle that took machines down; these losses no longer count against them."""
        for worker, _, _ in bundle.losses:
            worker.losses -= 1
        losses = [(worker.machine, f"the machine was lost: {cause}", "")
                  for worker, cause, _ in bundle.losses]
        self._settle(bundle, _FAILED, BundleError(
            bundle.function.name, "took its machine down, even when it ran there alone",
            (*bundle.failures, *losses)))

    def on_slot_count(self, worker: _Worker, count: int) -> None:
        """Note that a machine has fewer slots than it said; recall what cannot start there."""
        worker.count = count
        self._update_idle(worker)
        if len(worker.running) > count:
            worker.is_recalling = True
            number = len(worker.running) - count + len(worker.ahead)
            self._decide(_RECALL, worker.link, number)

    def on_login_stages(self, worker: _Worker, found: Mapping[str, str]) -> None:
        """Note what the stages of a login have found."""
        worker.found = found

    def on_round_trip(self, worker: _Worker, round_trip: float) -> None:
        """Note a ping's round trip in seconds: the work sent ahead must last that long.

        The shortest one counts: longer ones were held up by work that was sent ahead, and would
        lead to more of it.
        """
        seconds = AHEAD_SECONDS + 2 * min(max(round_trip, 0.0), 10.0)
        is_first = worker.ahead_seconds == AHEAD_SECONDS
        worker.ahead_seconds = seconds if is_first else min(seconds, worker.ahead_seconds)

    def _update_idle(self, worker: _Worker) -> None:
        has_room = worker.state is _UP and len(worker.running) < worker.count
        if has_room and not worker.is_reserved:
            self._idle[worker] = worker.record
        else:
            self._idle.pop(worker, None)

    def _are_all_unusable(self) -> bool:
        return {worker.state for worker in self.workers} == {_UNUSABLE}

    def _no_workers_error(self) -> NoWorkersError:
        return NoWorkersError([
            (str(worker.record), worker.cause or "not reached yet")
            for worker in self.workers])

    # Bundles

    def check_open(self, owner: _ChunkedMap | None = None) -> None:
        """Raise RuntimeError after `close`, NoWorkersError if no worker can ever take a bundle.

        What is read of a map may still be submitted, unless everything was cancelled.
        """
        is_begun = self.mode is _DRAINING and owner in self.tally.maps
        if self.mode is not _OPEN and not is_begun:
            raise _PoolClosedError
        if not self.up and self._are_all_unusable():
            raise self._no_workers_error()

    def count_items(self, owner: _ChunkedMap, change: int, settled: Mapping[int, int]) -> None:
        """Count items of a map that are read, or have an outcome; see `BaseExecutor`."""
        _hold(self.tally.maps, owner, change, self.mode is _OPEN)
        for kind, count in settled.items():
            self.tally.settled[kind] += count
        if self.is_over():
            self._decide(_FINISH)

    def count_tasks(self) -> int:
        """Return how many tasks have no outcome yet, items of maps counted each."""
        return self.unfinished - self.tally.chunks + sum(self.tally.maps.values())

    def submit(self, bundle: _Bundle) -> None:
        """Queue a bundle. If `check_open` raises, settle the bundle with that error instead."""
        if bundle.phase is not _NEW:
            return      # cancelled before it got here
        try:
            self.check_open(bundle.owner)
        except (RuntimeError, NoWorkersError) as error:
            self._settle(bundle, _FAILED, error)
            return
        bundle.phase = _LIVE
        self.unfinished += 1
        self.tally.chunks += bundle.owner is not None
        self.waiting += 1
        self._queues.new.append(bundle)
        if len(self._queues.new) == 1:      # otherwise there was no room for others either
            self._place_bundles()
        if self._backups and not bundle.attempts:       # new work takes precedence
            self._kill_attempt(self._backups[next(reversed(self._backups))])

    def cancel(self, bundle: _Bundle) -> bool:
        """Settle a bundle as cancelled and kill its attempts; return whether it was in time."""
        is_in_time = bundle.phase is not _OVER
        if is_in_time:
            self._settle(bundle, _CANCELLED)
        return is_in_time

    def close(self, cancel: bool) -> None:
        """Accept no more; with `cancel`, settle what has not started."""
        if cancel:
            self.mode = _KILLING if self.mode is _KILLING else _CANCELLING
            self._settle_waiting(_CANCELLED)
            for worker in self.up:
                self._decide(_RECALL, worker.link, len(worker.ahead))
        elif self.mode is _OPEN:
            self.mode = _DRAINING
        if self.is_over():
            self._decide(_FINISH)

    def kill_all(self) -> bool:
        """Accept no more, settle everything as cancelled, and kill what runs.

        Return whether there was nothing left to cancel.
        """
        was_idle = not self.count_tasks()
        self.mode = _KILLING
        self.close(True)
        self._cancel_where(lambda bundle: True)
        return was_idle

    def cancel_cell(self, cell: int) -> None:
        """Cancel everything that a notebook cell has submitted."""
        self._cancel_where(lambda bundle: bundle.cell == cell)

    def _cancel_where(self, matches: Callable[[_Bundle], bool]) -> None:
        queues = self._queues
        bundles = [*itertools.chain(queues.suspects, *queues.again.values(), queues.new)]
        for worker in self.workers:
            attempts = itertools.chain(worker.running.values(), worker.ahead.values())
            bundles.extend(attempt.bundle for attempt in attempts)
        for bundle in filter(matches, bundles):
            self.cancel(bundle)

    def is_over(self) -> bool:
        """Tell whether it was closed, and every bundle is settled."""
        is_drained = not self.tally.maps or self.mode in (_CANCELLING, _KILLING)
        return self.mode is not _OPEN and not self.unfinished and is_drained

    def histogram(self) -> Histogram:
        """Return the seconds that attempts ran, on all workers."""
        total = Histogram()
        for worker in [*self.workers]:
            total.merge(worker.durations)
        return total

    def _settle_waiting(self, kind: int, body: Any = ()) -> None:
        for queue in (self._queues.suspects, *self._queues.again.values(), self._queues.new):
            while queue:
                bundle = queue.popleft()
                if bundle.phase is _LIVE:
                    self._settle(bundle, kind, body)

    def _settle(self, bundle: _Bundle, kind: int, body: Any = ()) -> None:
        assert bundle.phase is not _OVER
        if bundle.phase is _LIVE:
            self.unfinished -= 1
            self.tally.chunks -= bundle.owner is not None
            self.waiting -= not bundle.attempts
        bundle.phase = _OVER
        for attempt in bundle.attempts:
            worker = attempt.worker
            if attempt.ident in worker.running or attempt.ident in worker.ahead:
                self._kill_attempt(attempt)
        bundle.attempts = ()
        self.tally.settled[kind] += bundle.owner is None
        self._actions.append((_SETTLE, bundle, (kind, body)))
        if not self.unfinished and self.is_over():
            self._decide(_FINISH)

    # Placing

    def _place_bundles(self, *room: _Worker) -> None:
        """Launch from each queue until no worker has room for the bundle at its head.

        Arguments:
            room: the worker that just got room for more; without it, all workers are tried.
        """
        if self._queues.suspects:
            self._place_suspects()
        for avoid, queue in [*self._queues.again.items()]:
            self._place_from(queue, avoid, room)
            if not queue:
                del self._queues.again[avoid]
        while self._place_from(self._queues.new, (), room):
            for avoid, queue in [*self._queues.again.items()]:
                self._place_from(queue, avoid, room)
        if self._ahead and self._idle:
            self._recall()

    def _place_suspects(self) -> None:
        """Launch suspects on machines that are empty; keep half of all machines for them."""
        for bundle in [one for one in self._queues.suspects if one.phase is not _LIVE]:
            self._queues.suspects.remove(bundle)
        while self._queues.suspects:
            bundle = self._queues.suspects[0]
            lost = [worker for worker, _, _ in bundle.losses]
            free = [worker for worker in self.up if worker.is_reserved and not worker.running]
            if not free:
                free = [worker for worker in self.up if not worker.is_reserved]
                reserved = len(self.up) - len(free)
                most = min(len(self._queues.suspects), max(1, len(self.up) // 2))
                if not free or reserved >= most:
                    return
            worker = min(free, key=lambda one: (lost.count(one), len(one.running)))
            worker.is_reserved = True
            self._update_idle(worker)
            if worker.running:
                return      # until it is empty
            self._queues.suspects.popleft()
            self.waiting -= 1
            self._launch(bundle, worker)

    def _place_from(self, queue: deque[_Bundle], avoid: Container[str],
                   room: Sequence[_Worker]) -> bool:
        """Launch from one queue while there is room.

        Return whether bundles were moved to the queues of those that must avoid machines.
        """
        is_aside = False
        while queue:
            bundle = queue[0]
            if bundle.phase is _LIVE and bundle.function.lacking and not avoid:
                self._queue_with_avoidance(bundle)
                is_aside = True
            elif bundle.phase is _LIVE:
                worker = None
                if self._idle:
                    worker = self._choose_idle_worker(avoid)
                elif not avoid:
                    worker = self._choose_busy_worker(bundle, room or self.up)
                if not worker:
                    return is_aside
                self.waiting -= 1
                self._launch(bundle, worker)
            queue.popleft()
        return is_aside

    def _choose_idle_worker(self, avoid: Container[str]) -> _Worker | None:
        """Choose a worker with a free slot.

        If all of these are to be avoided, return None as long as another machine may get a free
        slot. If no other may, choose one of them all the same.
        """
        if len(self._idle) == 1 and not avoid:
            return next(iter(self._idle))
        records = [*self._idle.values()]
        if avoid and all(record.machine in avoid for record in records):
            if any(worker.is_hopeful() for worker in self.workers if worker.machine not in avoid):
                return None
            avoid = ()      # there is no other machine
        index = self._ask_policy(records, avoid)
        return next(itertools.islice(self._idle, index, None))

    def _ask_policy(self, records: Sequence[RemoteWorkerRecord], avoid: Container[str]) -> int:
        """Ask the policy; if it fails or answers nonsense, replace it by the default one.

        What it raises, SystemExit too, must not end the thread, which is one of the pool's.
        """
        try:
            chosen = self._policy.choose(records, avoid)
            index = operator.index(chosen)      # type: ignore[arg-type]
            if not 0 <= index < len(records):
                raise IndexError(f"{index} of {len(records)} was chosen")
            return index
        except BaseException as error:
            name = type(self._policy).__name__
            self._decide(_WARN, (), f"the policy {name} failed ({wire.describe(error)}) and is "
                                 "replaced by the default one")
            self._policy = WeightedRandomRemoteWorkerSelectionPolicy()
            usable = (i for i, record in enumerate(records) if record.machine not in avoid)
            return next(usable, 0)

    def _choose_busy_worker(self, bundle: _Bundle, workers: Sequence[_Worker]) -> _Worker | None:
        """Choose a busy worker to send a bundle to before it has a free slot.

        Return None if each has enough work waiting. Enough is as many calls as fill a round trip,
        by the function's median. Long arguments take time on the way: if the median is below
        LONG_TASK_SECONDS, each slot gets at least one such call, unless its arguments exceed
        AHEAD_BYTES: the machine need not have room for what it has no slot for. With a
        `bundle_timeout` nothing is sent ahead: the timeout counts from the start of an attempt, so
        that must be known here.
        """
        if self.rules.bundle_timeout < math.inf:
            return None
        median = bundle.function.durations.median
        each, most, least = max(median, 1 / AHEAD_RATE), math.inf, 0
        if type(bundle.packed) is not bytes:
            most = AHEAD_BYTES // _size(bundle.packed)
            least = min(most, int(median < LONG_TASK_SECONDS))
        for turn in range(self._turn, self._turn + len(workers)):
            worker = workers[turn % len(workers)]
            depth = max(min(worker.ahead_seconds // each, most), least)
            if len(worker.ahead) < worker.count * depth and not worker.is_reserved:
                self._turn = turn + 1
                return worker
        return None

    def _launch(self, bundle: _Bundle, worker: _Worker, backup: bool = False) -> None:
        ident = next(self._idents)
        attempt = _Attempt(
            ident, bundle, worker, self.now, backup, bundle.function.name, bundle.origin)
        bundle.attempts += (attempt,)
        if len(worker.running) < worker.count:
            worker.running[ident] = attempt
            self._update_idle(worker)
        else:
            worker.ahead[ident] = attempt
            self._ahead += 1
        if backup:
            self._backups[ident] = attempt
            worker.backups += 1
            self.tally.backups += 1
        self._actions.append((_LAUNCH, worker.link, attempt))

    def _recall(self) -> None:
        """Ask busy machines for attempts that were sent ahead, if others have free slots."""
        free = sum(worker.count - len(worker.running) for worker in self._idle)
        for worker in self.up:
            if worker.ahead and not worker.is_recalling and free > 0:
                worker.is_recalling = True
                self._decide(_RECALL, worker.link, min(free, len(worker.ahead)))
                free -= len(worker.ahead)

    def _kill_attempt(self, attempt: _Attempt) -> None:
        """Kill an attempt that no longer matters; its slot counts as taken until that is done."""
        self._detach_attempt(attempt)
        self._decide(_KILL, attempt.worker.link, attempt.ident)

    def _detach_attempt(self, attempt: _Attempt) -> None:
        self._backups.pop(attempt.ident, None)
        bundle = attempt.bundle
        bundle.attempts = tuple(other for other in bundle.attempts if other is not attempt)

    # What links report, to `on_report`

    def on_results(self, worker: _Worker, results: Iterable[_Message]) -> None:
        """Settle the bundles of attempts that have returned or raised.

        Arguments:
            results: `(kind, identifier, slot and microseconds, body)` of each. The body of a
                MISSING_MODULE is `(module, whether this machine has it, body of the error)`.
        """
        for kind, ident, tag, body in results:
            attempt = self._remove_attempt(worker, ident)
            if attempt:
                bundle = attempt.bundle
                seconds = (tag & _MICROSECONDS) * 1e-6
                outcome = "returned" if kind == wire.RESULT else "raised"
                self._record_span(attempt, tag >> wire.SLOT_SHIFT, outcome, seconds)
                worker.durations.add(seconds)
                if kind == wire.MISSING_MODULE:
                    self._on_missing_module(worker, attempt, *body)
                elif bundle.phase is _LIVE:
                    bundle.function.durations.add(seconds)
                    self._settle(bundle, kind, body)
        worker.failures = 0
        self._use_free_slots(worker)

    def _on_missing_module(self, worker: _Worker, attempt: _Attempt, module: str, is_ours: bool,
               body: Any) -> None:
        """Run a call elsewhere if another machine may have the module that this one lacks.

        That is assumed if the module is on the controller, or if a call of the function has already
        returned or raised. Otherwise the call's future raises the error.
        """
        bundle = attempt.bundle
        function = bundle.function
        lacking = function.lacking | {worker.machine}
        is_elsewhere = any(other.is_hopeful() and other.machine not in lacking
                           for other in self.workers)
        if attempt in bundle.attempts and is_elsewhere and (is_ours or function.durations.count):
            if worker.machine not in function.lacking:
                self._decide(_WARN, (), f"{worker.machine} has no module {module} and gets no more "
                                     f"tasks of {function.name}")
            function.lacking = lacking
            self._requeue_attempt(attempt)
        elif bundle.phase is _LIVE:
            self._settle(bundle, wire.ERROR, body)

    def on_slot_exit(self, worker: _Worker, ident: int, slot: int, ending: str, words: str) -> None:
        """Retry or fail a bundle whose slot has died, unless we meant to kill it."""
        attempt = self._remove_attempt(worker, ident)
        if attempt:
            self._record_span(attempt, slot, ending)
            bundle = attempt.bundle
            if attempt in bundle.attempts:
                worker.died += 1
                bundle.failures += ((worker.machine, ending, words),)
                if len(bundle.failures) < self.rules.max_bundle_failures:
                    self._requeue_attempt(attempt)
                else:
                    self._settle(bundle, _FAILED, BundleError(
                        bundle.function.name, "killed the process that ran it", bundle.failures))
        self._use_free_slots(worker)

    def on_attempt_killed(self, worker: _Worker, ident: int, slot: int) -> None:
        """Free the place of an attempt that was killed, or taken back before it started."""
        attempt = self._remove_attempt(worker, ident)
        if attempt:
            if slot != wire.NO_SLOT:
                self._record_span(attempt, slot, "killed")
            self._requeue_attempt(attempt)
        self._use_free_slots(worker)

    def on_attempts_recalled(self, worker: _Worker, idents: Sequence[int]) -> None:
        """Requeue attempts that a machine has given back before they started."""
        worker.is_recalling = False
        for ident in reversed(idents):
            attempt = self._remove_attempt(worker, ident)
            if attempt:
                self._requeue_attempt(attempt, has_started=False)
        self._use_free_slots(worker)

    def _remove_attempt(self, worker: _Worker, ident: int) -> _Attempt | None:
        """Remove an attempt from its worker and return it, if it is there."""
        attempt = worker.running.pop(ident, None)
        if attempt is None:
            attempt = worker.ahead.pop(ident, None)
            self._ahead -= attempt is not None
        self._backups.pop(ident, None)
        return attempt

    def _record_span(self, attempt: _Attempt, slot: int, outcome: str, ran: float = 0.0) -> None:
        """Add an attempt that has ended to the trace."""
        self.tally.spans.append(attempt.span(slot, outcome, self.now, ran))

    def _requeue_attempt(self, attempt: _Attempt, has_started: bool = True) -> None:
        """Requeue the bundle of an attempt that came to nothing, unless it has another attempt."""
        bundle = attempt.bundle
        if attempt not in bundle.attempts:
            return      # we killed it, since it no longer mattered
        self._detach_attempt(attempt)
        if has_started:
            bundle.origin = attempt.ident
        if bundle.attempts:
            self._backups.pop(bundle.attempts[0].ident, None)       # it is the only one now
            return
        self.waiting += 1
        if self.mode in (_CANCELLING, _KILLING) and not has_started:
            self._settle(bundle, _CANCELLED)
            return
        self.tally.retried += has_started
        if bundle.is_suspect():
            self._queues.suspects.append(bundle)
        elif bundle.machines_to_avoid():
            self._queue_with_avoidance(bundle)
        else:
            self._queues.new.appendleft(bundle)

    def _queue_with_avoidance(self, bundle: _Bundle) -> None:
        self._queues.again.setdefault(bundle.machines_to_avoid(), deque()).append(bundle)

    def _use_free_slots(self, worker: _Worker) -> None:
        """Move waiting attempts into free slots of a worker, then place more work."""
        while worker.ahead and len(worker.running) < worker.count:
            ident = next(iter(worker.ahead))
            # In this order: other threads look without the lock, and must find it in one of them.
            attempt = worker.running[ident] = worker.ahead[ident]
            del worker.ahead[ident]
            attempt.since = self.now
            self._ahead -= 1
        if not worker.running:
            worker.is_reserved = False
        self._update_idle(worker)
        self._place_bundles(worker)

    # Time

    def tick(self, held_up: Container[int] = ()) -> None:
        """Do what is due by the clock: reconnect, time out, launch backups, give up.

        Arguments:
            held_up: links whose reader thread was busy with our own code, and links over which
                files are copied. The time that passed is not counted for attempts that run there.
        """
        elapsed = max(self.now - self._ticked, 0.0)
        self._ticked = self.now
        self.tally.measure(self.now, self.unfinished)
        self._open_links()
        late = [worker for worker in self.workers if worker.link in held_up]
        for worker in late:
            for attempt in worker.running.values():
                attempt.since = min(attempt.since + elapsed, self.now)      # it may be younger
        running = [(self.now - attempt.since, attempt) for worker in self.up
                   for attempt in worker.running.values()]
        self._fail_timed_out(running)
        if self.rules.schedule_backups and self._idle and not self.waiting:
            self._launch_backups(running)
        is_alone = self.waiting and not self.up and not late
        self._alone = self._alone + min(elapsed, 1.0) if is_alone else 0.0
        has_worked = self.tally.settled[wire.RESULT] + self.tally.settled[wire.ERROR] > 0
        if self._alone > (GIVE_UP_SECONDS[1] if has_worked else GIVE_UP_SECONDS[0]):
            self._alone = 0.0
            self._settle_waiting(_FAILED, self._no_workers_error())

    def _fail_timed_out(self, running: Iterable[tuple[float, _Attempt]]) -> None:
        limit = self.rules.bundle_timeout
        for age, attempt in running:
            bundle = attempt.bundle
            if age > limit and bundle.phase is _LIVE:
                ending = attempt.worker.machine, f"killed after {age:.1f} s", ""
                reason = f"ran longer than bundle_timeout={limit:g} s"
                self._settle(bundle, _FAILED, BundleTimeoutError(
                    bundle.function.name, reason, (*bundle.failures, ending)))

    def _launch_backups(self, running: Iterable[tuple[float, _Attempt]]) -> None:
        """Launch backups of stragglers, those with the longest time left first.

        The rules are from MapReduce (OSDI 2004), LATE (OSDI 2008), The Tail at Scale (CACM 2013).
        """
        counts = [worker.count for worker in self.up]
        room = int(max(2, *counts, BACKUP_SHARE * sum(counts))) - len(self._backups)
        late = []
        for age, attempt in running:
            bundle = attempt.bundle
            seconds, medians = BACKUP_AGE
            is_alone = bundle.attempts == (attempt,) and not bundle.is_suspect()
            if is_alone and age > max(seconds, medians * bundle.function.durations.median):
                # A machine that has finished nothing is at least as slow as that.
                slowness = min(attempt.worker.durations.median, age)
                late.append((age * slowness, attempt.ident, attempt))
        for _, _, attempt in sorted(late, reverse=True)[:max(room, 0)]:
            bundle = attempt.bundle
            machines = {attempt.worker.machine, *(machine for machine, _, _ in bundle.failures)}
            fit = [worker for worker in self._idle if worker.machine not in machines]
            if fit:
                bundle.origin = attempt.ident
                best = min(fit, key=lambda worker: worker.durations.median)
                self._launch(bundle, best, backup=True)


# ──────────────────────────────────────────── channels ────────────────────────────────────────────

# The state of the pipe that a channel writes to: whole; we want to close it; ssh has ended. In the
# last two cases whoever holds the baton closes it.
_Pipe = enum.Enum("_Pipe", "WHOLE CLOSING BROKEN")
_WHOLE, _CLOSING, _BROKEN = _Pipe


class _Channel:
    """The frames to and from one machine, the functions that it has, and whether it is alive.

    Any thread may append to `queue` and then call `pump`, holding no lock. Whoever gets the baton
    turns everything queued, in order, into frames and writes them. Nobody waits for the baton: its
    holder looks at the queue again after releasing it. When the pipe is full, the baton passes to
    the writer thread.

    Arguments:
        reader: of the frames from the machine; only the reader thread uses it.
        stdin: a raw file to write frames to; closed here.
        stuck: where the channel puts itself for the writer thread to go on.
    """

    def __init__(self, reader: wire.MessageReader, stdin: Any, stuck: SimpleQueue[Any]) -> None:
        self._reader = reader
        self._stdin = stdin
        self._stuck = stuck
        self.queue: deque[tuple[_Action, Any]] = deque()       # appending and popping are atomic
        self._write_baton = threading.Lock()      # only ever tried; it guards the next two
        os.set_blocking(stdin.fileno(), False)
        self._outbox = wire.Outbox(stdin.fileno())
        self._known: OrderedDict[int, _Function] = OrderedDict()    # that the machine has
        self.pipe = _WHOLE                  # set by anybody, and never back to WHOLE
        # Signs of life. The reader thread writes the first two, the holder of the baton the third,
        # the heartbeat the others; an old value does no harm.
        self._is_reading = False            # False while our own code keeps the reader busy
        self._reads = 0                     # reads that have returned
        self._writes = 0
        self._seen = 0, 0                   # reads and writes at the last heartbeat
        self._asked = -1                    # reads when `was_reader_busy` was last called
        self._missed = 0                    # heartbeats without a sign of life

    def send(self, buffers: Iterable[Any]) -> None:
        """Send frames."""
        self.queue.append((_SEND, buffers))
        self.pump()

    def pump(self) -> None:
        """Write what is queued, unless another thread does, until the pipe is full."""
        while (self.queue or self.pipe is not _WHOLE) and self._write_baton.acquire(blocking=False):
            is_kept = False
            try:
                is_kept = self._write()
            finally:
                if not is_kept:
                    self._write_baton.release()
            if is_kept:
                break

    def _write(self) -> bool:
        """Holding the baton, write what is queued.

        Return whether the baton must not be released: the writer thread has it now, or the pipe is
        closed for good.
        """
        outbox = self._outbox
        is_told = _log.isEnabledFor(logging.DEBUG)
        try:
            while self.pipe is _WHOLE and (self.queue or outbox.size):
                while self.queue:
                    verb, operand = self.queue.popleft()
                    if is_told and verb is not _SEND:       # which may be a ping
                        _log.debug("%s %s", verb.name, _summarize(operand))
                    outbox.put(_FRAMES[verb](self, operand))
                is_done = outbox.flush()
                self._writes += 1
                if not is_done:
                    self._stuck.put(self)
                    return True
        except Exception:       # the reader thread reports why, if it was an OSError
            self.pipe = _BROKEN
            if not isinstance(sys.exc_info()[1], OSError):
                _log.exception("a link cannot be written to")
        if self.pipe is not _WHOLE:
            self._stdin.close()
        return self.pipe is not _WHOLE

    def resume_writing(self) -> None:
        """In the writer thread, which has the baton, wait for room in the pipe and go on."""
        poll = select.poll()
        poll.register(self._outbox.fd, select.POLLOUT)
        while self.pipe is _WHOLE and not poll.poll(1000):
            pass        # the heartbeat decides for how long
        if not self._write():
            self._write_baton.release()
            self.pump()

    def call(self, attempt: _Attempt) -> list[Any]:
        """Return an attempt's frames, after those of its function if the machine lacks it."""
        bundle, known = attempt.bundle, self._known
        packed, function = bundle.packed, bundle.function
        if bundle.phase is _OVER:       # its arguments may be gone; a KILL of it follows, which the
            return []                   # machine answers all the same
        frames: list[Any] = wire.message(wire.CALL, attempt.ident, function.ident, packed)
        if function.ident in known:
            return frames
        known[function.ident] = function
        size = sum(_size(one.packed) for one in known.values())
        max_number, max_size = MAX_KNOWN_FUNCTIONS
        while len(known) > 1 and (len(known) > max_number or size > max_size):
            ident, oldest = known.popitem(last=False)
            size -= _size(oldest.packed)
            frames.append(wire.frame(wire.FORGET, ident))
        return [*wire.message(wire.FUNCTION, function.ident, 0, function.packed), *frames]

    def read(self) -> list[_Message]:
        """Wait for messages and return them. Raises EOFError, OSError or FrameError at the end."""
        self._is_reading = True
        messages: list[_Message] = self._reader.read()
        self._reads += 1
        self._is_reading = False
        return messages

    def forget(self, ident: int) -> None:
        """Drop the part of a result that has arrived, since the slot that sent it has died."""
        self._reader.forget(ident)

    def was_reader_busy(self) -> bool:
        """Return whether our own code has kept the reader thread busy since the last call."""
        reads = self._reads
        was_reader_busy = not self._is_reading and reads == self._asked
        self._asked = reads
        return was_reader_busy

    def beat(self) -> bool:
        """Ping; return whether there was a sign of life in the last MISSED_HEARTBEATS heartbeats.

        Bytes that move in either direction are signs of life. Heartbeats are counted, not seconds:
        a controller that was suspended must not give up every machine when it resumes.
        """
        signs = self._reads, self._writes * self._write_baton.locked()
        self._missed += 1
        if signs != self._seen or not self._is_reading:
            self._missed = 0
        self._seen = signs
        self.send([wire.frame(wire.PING, monotonic_ns())])
        return self._missed < MISSED_HEARTBEATS

    def quit(self) -> None:
        """Have the machine end once its slots have; they wait for threads of their tasks."""
        self.send([wire.frame(wire.QUIT)])

    def close(self) -> None:
        """Close the pipe: the shim sees the end of its input, kills what still runs, and ends."""
        if self.pipe is _WHOLE:
            self.pipe = _CLOSING
        self.pump()

    def close_in_child(self) -> None:
        """In a forked child: close our copy of the parent's pipe, and write nothing."""
        self._stdin.close()

    def drop(self, function: _Function) -> None:
        """Have the machine forget a function that will not be called again."""
        self.queue.append((_DROP, function.ident))
        self.pump()

    def _drop(self, ident: int) -> list[Any]:
        return [wire.frame(wire.FORGET, ident)] if self._known.pop(ident, None) else []


_FRAMES: dict[_Action, Callable[[_Channel, Any], Iterable[Any]]] = {
    _LAUNCH: _Channel.call,
    _KILL: lambda _channel, ident: [wire.frame(wire.KILL, ident)],
    _RECALL: lambda _channel, number: [wire.frame(wire.RECALL, number)],
    _SEND: lambda _channel, buffers: buffers,
    _DROP: _Channel._drop,
}


# ───────────────────────────────────── what follows the code ──────────────────────────────────────

# A race: a child that another thread forks while Popen starts a process inherits the pipe by which
# Popen learns that exec has succeeded, so Popen would wait until that child ends. Forks therefore
# wait for this lock; see _install_process_hooks.
_spawning = threading.Lock()


def _spawn(argv: Sequence[str], start_new_session: bool = True, **options: Any) -> Any:
    """Start a process, by default as the leader of a group of its own; return its Popen."""
    with _spawning:
        return subprocess.Popen(argv, start_new_session=start_new_session, **options)


def _kill_group(process: Any, others: Iterable[tuple[int, int]] = ()) -> None:
    """Kill the group of a process that has not ended.

    Once it has ended and was reaped, its pid may belong to somebody else (as in Popen.send_signal).

    Arguments:
        others: `(pid, signal number)` of processes to signal first.
    """
    if process.poll() is None:
        for pid, number in (*others, (-process.pid, signal.SIGKILL)):
            wire.send_signal(pid, number)


_IMPLEMENTATION = sys.implementation.name
_VERSION = "{}.{}".format(*sys.version_info)
_SHIPPABLE = __name__, wire.__name__, "cloudpickle"     # wherever they are installed


@functools.cache
def _is_installed(path: str) -> bool:
    import sysconfig
    path = os.path.realpath(path)
    is_site = {"site-packages", "dist-packages"} & {*path.split(os.sep)}
    return bool(is_site) or path.startswith(tuple(
        os.path.realpath(sysconfig.get_path(key)) + os.sep
        for key in ("stdlib", "platstdlib", "purelib", "platlib")))


def _find_spec(name: str) -> Any:
    """Find a module without importing its parents."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if isinstance(getattr(spec, "loader", None), wire.SourceLoader):
        return spec
    parent = name.rpartition(".")[0]
    if not parent:
        spec = importlib.util.find_spec(name)
        if spec and isinstance(spec.loader, wire.PackageLoader):    # we are in a task
            spec.loader.create_module(spec)     # which has it copied here
        return spec
    # Not by PathFinder: what it says of a namespace needs its parents to have been imported.
    portions: list[str] = []
    for place in getattr(_find_spec(parent), "submodule_search_locations", None) or ():
        importer: Any = pkgutil.get_importer(place)
        found = importer and importer.find_spec(name)
        if found and found.loader:
            return found
        portions += found and found.submodule_search_locations or ()
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = portions
    return spec if portions else None


def _find_source(name: str) -> Any:
    """Return `(file, source, is a package)` of a module of the project.

    Return None for any other, which the worker must have.
    """
    try:
        if name == "__main__":      # for processes that a task spawns
            origin = sys.modules[name].__file__
            with open(str(origin), "rb") as file:
                return origin, importlib.util.decode_source(file.read()), False
        spec = _find_spec(name)
        if not spec:
            return None
        is_package = spec.submodule_search_locations is not None
        origin = spec.origin
        if isinstance(spec.loader, wire.SourceLoader):      # we are in a task: it was sent here
            return origin, spec.loader.get_source(name), is_package
        if not spec.has_location:
            is_ours = not all(map(_is_installed, spec.submodule_search_locations or ()))
            return (wire.ModuleFinder.NAMESPACE, "", True) if is_ours else None
        is_ours = name in _SHIPPABLE or name.startswith("cloudpickle.")
        if _is_installed(origin) and not is_ours or not origin.endswith(".py"):
            return None
        if hasattr(spec.loader, "get_source"):      # which finds it in a zip, too
            return origin, spec.loader.get_source(name), is_package
        with open(origin, "rb") as file:
            return origin, importlib.util.decode_source(file.read()), is_package
    except (ImportError, OSError, ValueError, AttributeError, SyntaxError):
        return None


def _explain_refusal(name: str) -> str:
    """Return what to do about a module of the project that cannot follow; "" for any other."""
    module = sys.modules.get(name)
    if module and module.__spec__ is None and name != "__main__":
        return (f"it was made here by types.ModuleType, without a file: write {name}.py, or call "
                f"cloudpickle.register_pickle_by_value(sys.modules[{name!r}])")
    spec = _find_spec(name)
    if not spec or not spec.has_location or _is_installed(spec.origin):
        return ""
    if spec.origin.endswith(".py"):
        return "it is here, but modules=False was passed to RemoteExecutor"
    whole = _find_spec(name.partition(".")[0])
    path = next(iter(whole.submodule_search_locations or [whole.origin]))
    return (f"it is compiled, and only source follows by itself; pass files=[{path!r}] to "
            "RemoteExecutor")


class _Distribution(NamedTuple):
    """What is installed here under one name; a machine can have it if there is no problem."""

    name: str
    version: str
    info: str = "?"                 # the name of its .dist-info
    key: str = ""                   # tells its content
    size: int = 0                   # bytes
    members: Sequence[tuple[str, str]] = ()     # where each file is, and its place there
    # The platforms of each of its wheels that does not run anywhere.
    tags: Sequence[Sequence[str]] = ()
    requires: Sequence[str] = ()    # the names of others
    problem: str = ""


class _File(NamedTuple):
    """What is copied: a file as it is, or a tar of what it stands for."""

    name: str
    source: str         # its path
    digest: str
    size: int           # bytes
    mtime_ns: int
    is_tar: bool


class _Cargo:
    """What machines may ask for: all that `files=` names, and the distributions installed here.

    Arguments:
        files: paths of files and directories; or one.
        packages: whether distributions, and the interpreter, may follow; or the names of those that
            may, beside the interpreter.

    Raises OSError or ValueError if some files cannot be sent.
    """

    def __init__(self, files: _Path | Iterable[_Path], packages: bool | Iterable[str]) -> None:
        if isinstance(packages, str):
            raise ValueError(f"packages is {packages!r}; it must be True, False, or a list of "
                             "names")
        self._names = set() if isinstance(packages, bool) else {*map(_normal, packages)}
        self._is_on = bool(self._names or packages is True)
        self._known: dict[str, _Distribution] = {}      # by name, as PEP 503 compares it
        # Of distributions and of the interpreter, by key.
        self._tars: dict[str, Future[_File]] = {}
        self._files: dict[str, _File] = {}              # that `files=` names, by key
        self.keys: dict[str, str] = {}                  # of those, by name
        self.size = 0                                   # of all of those, in bytes
        self._made = contextlib.ExitStack()
        with self._made:
            for path in [files] if isinstance(files, (str, os.PathLike)) else files:
                self._add(os.path.abspath(path))
            self._made = self._made.pop_all()

    def _add(self, path: str) -> None:
        name, mode = os.path.basename(path), os.stat(path).st_mode
        if name in self.keys:
            raise ValueError(f"files has two named {name}; slots could see only one")
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError(f"files has {path}, which is neither a regular file nor a directory")
        # In scp's older protocol, no name may have a newline. A number is the name of a tar.
        if stat.S_ISDIR(mode) or "\n" in name or name.isdecimal():
            file = self._pack(name, [(os.path.realpath(path), "")])
        else:
            file = _measure(name, path, False)
        self.keys[name] = file.digest
        self._files[file.digest] = file
        self.size += file.size

    def _pack(self, name: str, members: Iterable[tuple[str, str]],
              place: str = "content") -> _File:
        return _measure(name, self._made.enter_context(_tar(members, place)), True)

    def cleanup(self) -> None:
        """Remove what was made here."""
        with contextlib.suppress(OSError):      # a cleaner of /tmp may have done it
            self._made.close()

    def find(self, key: str, name: str, facts: Sequence[str],
             is_over: Callable[[], bool]) -> _File:
        """Return an entry that a machine has asked for as a file for `scp`.

        Arguments:
            is_over: whether the machine no longer waits for it.

        Raises ValueError if the machine cannot have it, LookupError if it was never offered it.
        """
        return self._files.get(key) or self._pack_distribution(name, facts, is_over)

    def offer(self, module: str, facts: Sequence[str]) -> Any:
        """Return what `wire.ModuleFinder` is told of an installed module, if it may follow.

        Arguments:
            facts: the machine's `wire.platform_facts`.
        """
        try:
            spec = _find_spec(module) if self._is_on else None
        except (ImportError, ValueError, AttributeError):
            spec = None
        if not spec:
            return None
        if not spec.has_location:
            is_namespace = bool(spec.submodule_search_locations)
            return (wire.ModuleFinder.NAMESPACE, "", True) if is_namespace else None
        found, *others = _owners_of(module, spec) or [None]
        if not found or not self._may_follow(found.name):
            return None
        offered = [(one.name, one.version, one.info, _key_on(one, facts))
                   for one in self._with_requirements(self._find_out(found, *others), facts)]
        is_package = spec.submodule_search_locations is not None
        return wire.ModuleFinder.INSTALLED, offered, is_package

    def _may_follow(self, name: str) -> bool:
        return self._is_on and (not self._names or _normal(name) in self._names)

    def _find_out(self, found: Any, *others: Any) -> _Distribution:
        """Return what is known of a distribution; `others` have parts of its packages."""
        name = _normal(found.name)
        if name not in self._known:
            self._known[name] = _examine(found, *others)
        return self._known[name]

    def _with_requirements(self, first: _Distribution,
                           facts: Sequence[str]) -> list[_Distribution]:
        """Return a distribution and those that it requires, and so on, that may follow with it.

        One that must be downloaded comes when it is imported, for it may never be.
        """
        installed = {**_list_installations().by_name}       # and not chosen yet
        installed.pop(_normal(first.name), None)
        chosen = [first]
        for one in chosen:      # which grows
            for name in map(_normal, one.requires):
                found = installed.pop(name, None)
                if found and self._may_follow(name) and not _is_editable(found):
                    other = self._find_out(found)
                    if not self._problem_of(other) and not _misfit(other.tags, facts):
                        chosen.append(other)
        return chosen

    def _problem_of(self, one: _Distribution) -> str:
        """Return why a distribution cannot follow to any machine; "" if it can."""
        if one.size > MAX_UNASKED_BYTES and not self._names:
            return one.problem or (f"{one.size / 1e9:.3g} GB are not sent unasked: name all that "
                                   f"is to follow, packages=[{one.name!r}, ...]")
        return one.problem

    def describe(self, name: str, facts: Sequence[str], is_editable_sent: bool) -> Any:
        """Return a distribution's version, key and metadata, if it may follow, or None.

        What is installed here as editable follows as modules of the project; so does its metadata.
        """
        from importlib import metadata
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return None
        if not (is_editable_sent and _is_editable(found) or self._may_follow(name)):
            return None
        # This is not remembered, for it may lack parts that others have: `offer` asks for these.
        one = self._known.get(_normal(found.name)) or _examine(found)
        texts = {file: found.read_text(file) for file in (
            "METADATA", "PKG-INFO", "entry_points.txt", "top_level.txt")}
        return found.version, _key_on(one, facts), texts

    def _pack_distribution(self, name: str, facts: Sequence[str],
                           is_over: Callable[[], bool]) -> _File:
        one = self._known[_normal(name)]
        problem = self._problem_of(one)
        if problem:
            raise ValueError(problem)
        label, place = f"{name} {one.version}", "content/site-packages"
        misfit = _misfit(one.tags, facts)

        def make() -> _File:
            if not misfit:
                return self._pack(label, one.members, place)
            with tempfile.TemporaryDirectory(prefix="executors-") as folder:
                try:
                    members = _download(one, _platform_tags(facts), folder, is_over)
                except _NotNeededError:
                    raise
                except Exception as error:      # zipfile's are of many types
                    raise ValueError(f"{misfit}, and no other could be downloaded: {error}"
                                     ) from None
                return self._pack(f"{label} for {facts[1]}", members, place)
        return self._make_once(_key_on(one, facts), make)

    def find_interpreter(self) -> _Interpreter | None:
        """Return the interpreter that runs here, if it may follow."""
        return _find_interpreter() if self._is_on else None

    def pack_interpreter(self) -> _File:
        """Return a tar of it. Raises OSError."""
        interpreter = _find_interpreter()

        def make() -> _File:
            file, path = self._made.enter_context(_open_temporary())
            interpreter.pack(file)
            file.flush()
            return _measure(f"python {_VERSION}", path, True)
        return self._make_once(interpreter.key, make)

    def _make_once(self, key: str, make: Callable[[], _File]) -> _File:
        mine: Future[_File] = Future()
        future = self._tars.setdefault(key, mine)
        if future is mine:      # otherwise another thread has made it, or is about to
            try:
                mine.set_result(make())
            except BaseException as error:      # it may be better next time
                del self._tars[key]
                mine.set_exception(error)
        try:
            return future.result()
        except _NotNeededError:
            if future is mine:
                raise
            return self._make_once(key, make)       # other machines may still wait for it


def _measure(name: str, source: str, is_tar: bool) -> _File:
    status = os.stat(source)
    return _File(name, source, wire.digest_file(source), status.st_size, status.st_mtime_ns, is_tar)


def _normal(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class _Installations(NamedTuple):
    """What is installed here."""

    owners: dict[str, list[Any]]        # distributions, by the top-level modules they bring
    by_name: dict[str, Any]     # by normal name, those that share no top-level module with others


def _list_installations() -> _Installations:
    return _read_installations(tuple(
        (folder, os.stat(folder).st_mtime_ns) for folder in sys.path
        if folder.endswith("-packages") and os.path.isdir(folder)))     # pip may have run


@functools.lru_cache(1)
def _read_installations(_state: tuple[Any, ...]) -> _Installations:
    from importlib import metadata
    owners: dict[str, list[Any]] = {}
    names: dict[str, set[str]] = {}         # of the distributions in `owners`, by module too
    by_name: dict[str, Any] = {}
    for found in metadata.distributions():
        try:
            name = _normal(found.name)
            tops = {*(found.read_text("top_level.txt") or found.name.replace("-", "_")).split()}
            for top, slash, _ in [place.partition("/") for place in _places_of(found)]:
                tops.add(top if slash else top.partition(".")[0])
        except Exception:       # what a failed installation has left
            continue
        by_name.setdefault(name, found)
        for top in filter(str.isidentifier, tops - {"__pycache__"}):
            owners.setdefault(top, []).append(found)
            names.setdefault(top, set()).add(name)
    for sharers in names.values():
        if len(sharers) > 1:
            for name in sharers:
                by_name.pop(name, None)
    return _Installations(owners, by_name)


def _owners_of(module: str, spec: Any) -> list[Any]:
    """Return the distribution that a module's file belongs to, and others with parts of it."""
    candidates = _list_installations().owners.get(module.partition(".")[0], ())
    listed = [(found, _places_of(found)) for found in candidates]
    owners: list[Any] = []
    for found, places in listed:
        path = os.path.relpath(spec.origin, str(found.locate_file("")))
        if path in places:
            owners.insert(0, found)
        elif spec.submodule_search_locations and any(
                place.startswith(os.path.dirname(path) + os.sep) for place in places):
            owners.append(found)
    return owners or [found for found, places in listed if not places][:1]


def _places_of(found: Any) -> list[str]:
    """Return the paths of a distribution's files in `site-packages`."""
    # RECORD is the usual case, and `files` takes five times as long.
    return [place for place, _ in _read_record(found)] or [*map(str, found.files or ())]


def _read_record(found: Any) -> list[tuple[str, str]]:
    """Return the place of each file that RECORD lists and its digest there, or ""."""
    rows = csv.reader((found.read_text("RECORD") or "").splitlines())
    return [(row[0], row[1] if len(row) > 1 else "") for row in rows if row and row[0]]


def _is_editable(found: Any) -> bool:
    return '"editable": true' in (found.read_text("direct_url.json") or "")


def _requirements(found: Any) -> list[str]:
    """Return the names of the distributions that one requires, without those of its extras.

    Those for other platforms and Pythons are among them; as a rule they are not installed here.
    """
    parts = [line.partition(";") for line in found.requires or ()]
    return [re.split(r"[^\w.-]", name.strip(), maxsplit=1)[0]
            for name, _, marker in parts if "extra" not in marker]


def _examine(found: Any, *others: Any) -> _Distribution:
    """Find out what a distribution consists of, and whether it can follow, with its others."""
    name, version = found.metadata["Name"], found.version
    members: list[tuple[str, str]] = []
    tags: list[Sequence[str]] = []
    key = hashlib.sha256()
    size = 0
    try:
        for one in (found, *others):
            files = _list_files(one)
            for path, place, digest, length in files:
                key.update(f"{place}\0{digest}\0{length}\n".encode())
                size += length
                members.append((path, place))
            wheel = one.read_text("WHEEL") or ""
            platforms = [tag for tag in re.findall(r"^Tag: *\S+?-\S+?-(\S+)", wheel, re.MULTILINE)
                         if tag != "any"]
            if not platforms and any(place.endswith(".so") for _, place, *_ in files):
                platforms = ["unknown"]
            if platforms:
                tags.append(platforms)
        return _Distribution(
            name, version, found._path.name, key.hexdigest(), size, members, tags,
            _requirements(found))
    except (OSError, ValueError) as error:
        return _Distribution(name, version, problem=str(error))


def _list_files(found: Any) -> list[tuple[str, str, str, int]]:
    """Return the path, the place in site-packages, the digest and the size of each file.

    Raises OSError or ValueError if a distribution cannot follow.
    """
    if (found.read_text("INSTALLER") or "").strip() == "conda":
        raise ValueError("conda has installed it here, with libraries outside of it")
    record = _read_record(found)
    if not record:
        raise ValueError("its installer here has left no list of its files")
    # An installer writes RECORD last. What is newer than that was edited in place.
    installed_at = os.stat(str(found._path / "RECORD")).st_ctime_ns
    root = str(found.locate_file(""))
    files: list[tuple[str, str, str, int]] = []
    for place, recorded in record:
        path = os.path.join(root, place)
        is_outside = ".." in place.split("/") or path == place
        if is_outside or place.endswith(".pyc") or not os.path.exists(path):
            continue
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            path = os.path.realpath(path)
            status = os.stat(path)
        is_known = recorded and status.st_ctime_ns <= installed_at
        digest = recorded if is_known else wire.digest_file(path)
        files.append((path, place, digest, status.st_size))
    return files


def _misfit(tags: Sequence[Sequence[str]], facts: Sequence[str]) -> str:
    """Say why binaries of wheels do not run on a machine; "" if they do.

    Arguments:
        tags: the platforms of each wheel; it runs on any of these.
    """
    ours = wire.platform_facts()
    if not tags:
        return ""
    if tuple(facts[:2]) != ours[:2]:
        return f"its binaries are for {ours[1]} and *{ours[0]}"
    for platforms in tags:
        ages = [_libc_of(tag) for tag in platforms]
        oldest = min(filter(bool, ages), default=_numbers(ours[2]))
        if _numbers(facts[2]) < oldest:
            return f"its binaries need {ours[2].split()[0]} {'.'.join(map(str, oldest))}"
    return ""


def _key_on(one: _Distribution, facts: Sequence[str]) -> str:
    """Return the key that a distribution has on a machine: another one if it must be downloaded."""
    if not _misfit(one.tags, facts):
        return one.key
    return hashlib.sha256(repr((one.name, one.version, *facts)).encode()).hexdigest()


def _platform_tags(facts: Sequence[str]) -> list[str]:
    """Return the tags of wheels that run on a machine, the newest first; none if that is unknown.

    The source of the rules is PEP 600, and for macOS what `packaging.tags` does.
    """
    name, *version = [*facts[2].split(), ""][:2]
    processor = facts[1]
    if name == "glibc":
        _, newest = _numbers(version[0])
        tags = [f"manylinux_2_{minor}_{processor}" for minor in range(newest, 4, -1)]
        old_names = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
        return tags + [f"{old}_{processor}" for minor, old in old_names.items() if newest >= minor]
    if name == "Darwin":
        major, *_ = _numbers(version[0])
        return [f"macosx_{major - 9}_0_{processor}"]        # pip adds the older ones
    return []


def _download(one: _Distribution, tags: Sequence[str], folder: str,
              is_over: Callable[[], bool]) -> list[tuple[str, str]]:
    """Have pip download the wheel of a distribution for another platform, and unpack it.

    Return where each file is and its place in site-packages. Raises OSError, ValueError, what
    zipfile raises, or _NotNeededError.

    Arguments:
        tags: of the platform.
        folder: an empty one, for the wheel and its files.
        is_over: whether nobody waits for it any more.
    """
    if not tags or sys.implementation.name != "cpython":
        raise ValueError("its platform has no wheels")
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--retries", "1",
            "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--dest", folder,
            "--implementation", "cp", "--python-version", _VERSION]
    argv += [word for tag in tags for word in ("--platform", tag)]
    with wire.open_nameless_file() as errors:
        pip = _spawn([*argv, f"{one.name}=={one.version}"], stdin=subprocess.DEVNULL,
                     stdout=errors, stderr=errors)
        while pip.poll() is None and not is_over():
            with contextlib.suppress(subprocess.TimeoutExpired):
                pip.wait(0.2)
        _kill_group(pip)
        if pip.wait():
            if is_over():
                raise _NotNeededError
            said = os.pread(errors.fileno(), 1 << 16, 0).decode("utf-8", "replace").strip()
            raise ValueError(said.rpartition("\n")[2] or f"pip ended with status {pip.returncode}")
    wheel, = os.listdir(folder)
    return _unpack_wheel(os.path.join(folder, wheel), os.path.join(folder, "content"))


def _unpack_wheel(wheel: str, target: str) -> list[tuple[str, str]]:
    """Unpack a wheel; return where each file or folder is, and its place in site-packages."""
    import zipfile
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = archive.extract(member, target)
            if not member.is_dir() and member.external_attr >> 16 & 0o111:
                os.chmod(path, 0o755)
    # All but scripts, headers and data.
    members: list[tuple[str, str]] = []
    for name in os.listdir(target):
        path = os.path.join(target, name)
        if not name.endswith(".data"):
            members.append((path, name))
            continue
        for scheme in "purelib", "platlib":
            inner = os.path.join(path, scheme)
            members += [(os.path.join(inner, file), file)
                        for file in (os.listdir(inner) if os.path.isdir(inner) else ())]
    return members


def _libc_of(tag: str) -> list[int]:
    """Return the oldest glibc that a platform tag promises to do with; see PEP 600."""
    for old, new in ("manylinux1_", "2_5"), ("manylinux2010_", "2_12"), ("manylinux2014_", "2_17"):
        tag = tag.replace(old, f"manylinux_{new}_")
    found = re.match(r"manylinux_(\d+)_(\d+)_", tag)
    return [*map(int, found.groups())] if found else []


def _numbers(text: str) -> list[int]:
    return [*map(int, re.findall(r"\d+", text)[:2])]


# What of the interpreter's own library is not sent: tests, and what belongs to this machine.
_UNSENT_FOLDERS = ("site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib",
                   "turtledemo")

# Two files of an interpreter that is sent with its shared library. The first one starts it; the
# second one, which it executes at its start, has its children started likewise.
_PYTHON_WRAPPER = """#!/bin/sh
bin=${0%%/*}
LD_LIBRARY_PATH=$bin/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$bin/%s.bin" "$@"
"""
_PYTHON_CUSTOMIZATION = """import os, sys
_, _, given = os.environ.pop("LD_LIBRARY_PATH", "").partition(":")
if given:
    os.environ["LD_LIBRARY_PATH"] = given
sys.executable = sys._base_executable = sys.executable.removesuffix(".bin")
"""


class _Interpreter(NamedTuple):
    """The interpreter that runs here, as it follows to machines that have none of its version."""

    binary: str = ""
    library: str = ""       # the folder of its modules
    key: str = ""           # tells which build it is
    problem: str = ""       # why it must stay here

    def find_shared_library(self) -> str:
        """Return the path of its shared library; "" if it needs none."""
        import sysconfig
        folder, name = sysconfig.get_config_vars("LIBDIR", "INSTSONAME")
        with open(self.binary, "rb") as file:
            is_needed = str(name).encode() in file.read()       # Debian's has one and needs none
        # The second place is that of an interpreter that was itself sent.
        places = [os.path.join(str(folder), str(name)),
                  os.path.join(sys.base_prefix, "lib", str(name))]
        return next(filter(os.path.exists, places), "") if is_needed else ""

    def oldest_libc(self) -> list[int]:
        """Return the oldest glibc that it runs with; an empty list if it needs none."""
        oldest: list[int] = []
        for path in filter(None, (self.binary, self.find_shared_library())):
            with open(path, "rb") as file:
                for major, minor in re.findall(rb"\0GLIBC_(\d+)\.(\d+)", file.read()):
                    oldest = max(oldest, [int(major), int(minor)])
        return oldest

    def misfit(self, platform: str) -> str:
        """Return why this interpreter cannot run on a machine; "" if it may. Raises OSError.

        Arguments:
            platform: `uname -sm` of the machine and, if it has glibc, that and its version.
        """
        if self.problem:
            return self.problem
        ours = os.uname()
        system, processor, libc, version = [*platform.split(), "", "", "", ""][:4]
        if (system, processor) != (ours.sysname, ours.machine):
            return f"it is for {ours.sysname} on {ours.machine}"
        oldest = self.oldest_libc()
        if oldest and libc != "glibc":
            return "it needs glibc"
        if oldest and _numbers(version) < oldest:
            return f"it needs glibc {'.'.join(map(str, oldest))}, there is {version}"
        return ""

    def pack(self, target: Any) -> None:
        """Write a compressed tar file of the interpreter to an open file."""
        import tarfile

        def keep(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
            name = os.path.basename(info.name)
            # A link may point to a file that is not sent, such as Debian's sitecustomize.
            is_left_out = name in _UNSENT_FOLDERS or name.endswith(".a") or info.issym()
            return None if is_left_out else info

        def add_text(name: str, text: str, mode: int) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text), mode
            tar.addfile(info, io.BytesIO(text.encode()))

        name = f"python{_VERSION}"
        library = f"{sys.platlibdir}/{name}"
        shared = self.find_shared_library()
        with tarfile.open(fileobj=target, mode="w:gz", compresslevel=1) as tar:
            tar.add(self.library, library, filter=keep)
            add_text("seal", "", 0o600)     # for `wire` to lock
            if shared:
                tar.add(self.binary, f"bin/{name}.bin")
                tar.add(shared, f"lib/{os.path.basename(shared)}")
                add_text(f"bin/{name}", _PYTHON_WRAPPER % name, 0o700)
                add_text(f"{library}/sitecustomize.py", _PYTHON_CUSTOMIZATION, 0o600)
            else:
                tar.add(self.binary, f"bin/{name}")


@functools.cache
def _find_interpreter() -> _Interpreter:
    """Return where the running interpreter is, or why it cannot be sent."""
    import sysconfig
    if os.path.exists(os.path.join(sys.base_prefix, "conda-meta")):
        return _Interpreter(problem="conda has installed it, with libraries outside of it")
    if sysconfig.get_config_var("PYTHONFRAMEWORK"):
        return _Interpreter(problem="it belongs to a framework of macOS")
    binary = os.path.realpath("/proc/self/exe")
    if not os.path.exists(binary):      # there is no /proc
        binary = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    build = (sys.version, sysconfig.get_platform(), os.path.getsize(binary), _UNSENT_FOLDERS,
             _PYTHON_WRAPPER, _PYTHON_CUSTOMIZATION)
    key = hashlib.sha256(repr(build).encode()).hexdigest()[:16]
    return _Interpreter(binary, os.path.dirname(os.__file__), key)


@dataclasses.dataclass(eq=False)
class _Copy:
    """What is being copied to a machine; as text, a part of its line in the displays."""

    what: str
    size: int = 0       # bytes; 0 while that is not known
    arrived: int = 0    # of these

    def __str__(self) -> str:
        if not self.size:
            return self.what
        return f"{self.what} ({min(self.arrived, self.size) / 1e6:.0f} of {self.size / 1e6:.0f} MB)"


class _NotNeededError(Exception):
    """Nobody waits any more for what is being downloaded."""


class _PoolSetup(NamedTuple):
    """What goes to each machine beside the calls."""

    cargo: _Cargo
    modules: bool                   # of this project
    initializer: Any                # a packed function to call without arguments, or None
    config: Mapping[str, Any]       # what shims are told


@contextlib.contextmanager
def _tar(members: Iterable[tuple[str, str]], place: str = "content") -> Iterator[str]:
    """Yield a temporary tar of files and directories; the same content makes the same file.

    Bytecode is left out: importing a package here would change it. A link that stays in its
    directory becomes a relative one; others are followed, if there is something to follow.

    Arguments:
        members: the path of each, and its path below `place`.
    """
    import tarfile

    def prepare(path: str, root: str, info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if os.path.basename(info.name) == "__pycache__":
            return None
        if info.issym():
            link = os.path.join(path, os.path.relpath(info.name, root))
            target = os.path.realpath(link)
            common = os.path.commonpath([path, target])
            if common == path:
                info.linkname = os.path.relpath(target, os.path.dirname(link))
            elif common != target and (os.path.isfile(target) or os.path.isdir(target)):
                info = tar.gettarinfo(target, info.name)
        info.mtime = info.uid = info.gid = 0
        info.uname = info.gname = ""
        # Tasks of several pools share a package: make its files read-only. Bytecode may be added.
        if place != "content" and not info.isdir():
            info.mode &= 0o555
        return info

    with _open_temporary() as (file, path_of_tar):
        with tarfile.open(fileobj=file, mode="w") as tar:
            for path, name in members:
                root = os.path.normpath(os.path.join(place, name))
                tar.add(path, root, filter=functools.partial(prepare, path, root))
        file.flush()
        yield path_of_tar


@contextlib.contextmanager
def _open_temporary() -> Iterator[tuple[Any, str]]:
    """Yield a temporary file, and a path by which scp can read it."""
    # Without a name, it ends with this process, even if that is killed. scp then finds it among our
    # open files; not on macOS, nor if we have given up root, for those are root's from then on.
    folder = f"/proc/{os.getpid()}/fd"
    is_nameless = os.path.exists(folder) and os.stat(folder).st_uid == os.geteuid()
    make = tempfile.TemporaryFile if is_nameless else tempfile.NamedTemporaryFile
    with make(prefix="executors-") as file:
        yield file, f"{folder}/{file.fileno()}" if is_nameless else file.name


# ───────────────────────────────────────────── logins ─────────────────────────────────────────────

# Each of these settings may be turned on in a user's own configuration and would break a link. ssh
# takes the first value that it is given.
_SSH_SETTINGS = [
    "BatchMode=yes", "ClearAllForwardings=yes", "ControlMaster=no", "ControlPath=none",
    "PermitLocalCommand=no", "RemoteCommand=none", "ServerAliveInterval=5",
    "ServerAliveCountMax=12", "ConnectTimeout=10", "LogLevel=INFO"]
_SSH_SETTINGS_8_7 = ["StdinNull=no", "ForkAfterAuthentication=no"]      # unknown to older ones


# A pattern in what ssh prints, what kind of loss that is, and what the user can do about it. The
# first pattern that fits counts; if none does, the last row.
_TOO_MANY_LOGINS = ("probably too many logins at once for its sshd; see its log, and MaxStartups "
                    "in its sshd_config")
_SSH_DIAGNOSES = (
    ("host key verification failed", _LossKind.UNUSABLE,
     "run `ssh {login}` once, check the key it shows and accept it"),
    ("permission denied|too many authentication failures", _LossKind.UNUSABLE,
     ("executors never asks for a password: set up a key with `ssh-copy-id {login}`; if it has a "
      "passphrase, run `ssh-add` first")),
    ("temporary failure in name resolution", _LossKind.LOST,
     "check that this machine's network is up"),
    ("could not resolve hostname|name or service not known", _LossKind.UNUSABLE,
     "check the name: try `ssh {login}`"),
    ("bad configuration option|no such file or directory|unknown option|usage: ssh|invalid",
     _LossKind.UNUSABLE,
     "correct ssh_options or your ~/.ssh/config"),
    ("connection refused", _LossKind.LOST, "check that sshd runs there, on that port"),
    ("timed out|no route to host|network is unreachable", _LossKind.LOST,
     "check that the machine is up, and reachable from here"),
    ("connection closed|connection reset|kex_exchange_identification|broken pipe",
     _LossKind.TOO_MANY_LOGINS, _TOO_MANY_LOGINS),
    ("", _LossKind.LOST, "try `ssh {login}`"),
)
# The same for scp, after a login that worked.
_SCP_DIAGNOSES = (
    ("/scp: (not found|no such file)", _LossKind.UNUSABLE,
     "install it on this machine: apt-get install openssh-client"),
    ("kex_exchange|closed by remote|connection (reset|refused)", _LossKind.TOO_MANY_LOGINS,
     _TOO_MANY_LOGINS),
    ("message too long|produces no output", _LossKind.UNUSABLE,
     "a login file there prints something, which breaks SFTP: it must print only to a terminal"),
    ("permission denied|read-only", _LossKind.UNUSABLE,
     "~/.cache/executors must be writable there"),
    ("not found|no such file|subsystem request failed", _LossKind.UNUSABLE,
     "its sshd offers no SFTP: see `Subsystem sftp` in its sshd_config"),
    ("failure|no space|quota|too large", _LossKind.UNUSABLE,
     "check that there is room in ~/.cache/executors"),
    ("", _LossKind.LOST,
     "check the network; if it is up, its sshd offers no SFTP: see its sshd_config"),
)
# What ssh prints if a known host has another key (in a box, before any banner can come), and the
# command for it that some builds of ssh print.
_CHANGED_KEY = (r"(?m)^@ +WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! +@$"
                r"(?:[^\0]*?^ *(ssh-keygen -f .* -R .*)$)?")
# Lines of ssh that give no reason: those of -v, and of a jump host, which come after the reason.
_SSH_CHATTER = re.compile(
    r"debug\d: |OpenSSH_|Authenticated to |Transferred: |Bytes per second: |"
    r"Warning: Permanently added |executors: starting |"
    r"Connection to \S+ closed|\*\* ")
_JUMP_HOST_FAILED = "\nstdio forwarding failed"
# The stages of a login, as `ssh -v` reports them.
_LOGIN_STAGES = {"name": r"Connecting to \S+ \[\S+\]", "TCP": "Connection established",
               "login": "Authenticated to "}

# Runs on whatever Python is found there. One of another version says so and exits, and the next one
# is tried. The right one prints a line with the magic and waits for the second stage. What login
# files print comes before that line; login files that read their input get only newlines.
_FIRST_STAGE = '''import os,sys
sys.path[:]=[p for p in sys.path if p]
v=(getattr(getattr(sys,"implementation",None),"name","python"),)+tuple(sys.version_info[:3])
s=" %%s %%d.%%d.%%d %%s\\n"%%(v+(sys.executable,))
if v[:3]!=%r:
    os.write(2,("%s"+s).encode("utf-8"))
    os._exit(127)
os.write(1,("\\n%s"+s).encode("utf-8"))
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

# Sent to a Python of our own version: makes a module of remote_worker's text, without a file, and
# calls `serve`.
_SECOND_STAGE = '''import pickle,sys,types,zlib
from importlib.machinery import ModuleSpec
name,file,text,modules=pickle.loads(zlib.decompress(r(int(r(16)))))
module=sys.modules[name]=types.ModuleType(name)
module.__file__=file
exec(compile(text,file,"exec"),module.__dict__)
module.__loader__=module.SourceLoader(file,text)
module.__spec__=ModuleSpec(name,module.__loader__,origin=file)
module.serve(modules)
'''
# Shell code for a machine that may get our interpreter. `own` returns whether folders belong to us,
# and nobody else may write in them; `fit`, whether there is a copy that can be trusted, and starts:
# `k` is its path then.
_COPY_OF_PYTHON = (
    'case "$XDG_CACHE_HOME" in /*) c=$XDG_CACHE_HOME;; *) c=${HOME:-/nonexistent}/.cache;; esac; '
    'c=$c/executors; b=$c/python-%(key)s; '
    'own() { test "$(find "$@" -prune -user "$(id -u)" | wc -l)" -eq $# && '
    'test -z "$(find "$@" -prune "(" -perm -020 -o -perm -002 ")")"; }; '
    'fit() { for k in "$b" "$b".*; do '
    'own "$c/." "$k/." && "$k/bin/%(name)s" -c "import json,socket,subprocess,sys;'
    'sys.exit(not sys.prefix.endswith(sys.argv[1]))" "${k##*/}" && touch "$k" && return; done; '
    'false; } </dev/null >/dev/null 2>&1; '
    'q=; fit && q=$k/bin/%(name)s; ')
# Where no Python was found: tell the platform, read how long a compressed tar is and then the tar,
# unpack it beside its place, try it, and put it there. As in all of the cache, nothing is put in
# place of a copy, not even of one that does not fit: another login may just have put it there. The
# place, `t`, is chosen first: if another login's copy appears after that, `fit` finds it; or `mv`
# puts ours into it, from where it is removed.
_RECEIVE_PYTHON = (
    'echo; echo "%(magic)s none $(uname -sm 2>/dev/null) $(getconf GNU_LIBC_VERSION 2>/dev/null)"; '
    'n=; while test -z "$n"; do read n || exit 126; done; u=$(umask); umask 077; '
    'mkdir -p "$c" || exit 125; '
    'own "$c/." || { echo "$c must be yours, and nobody else may write there" >&2; exit 125; }; '
    'd=$c/incoming-python.%(magic)s; mkdir "$d" && '
    'head -c "$n" | gzip -dc 2>/dev/null | tar -x -o -f - -C "$d" && '
    '"$d/bin/%(name)s" -c "import base64,sys;exec(base64.b64decode(sys.argv[1]))" %(check)s && '
    '{ t=$b; test -e "$t" && t=$t.%(magic)s; fit || { w=$(mv "$d" "$t" 2>&1); '
    'rm -rf "$t/${d##*/}"; fit || { echo "${w:-$t does not start}" >&2; false; }; }; }; '
    'r=$?; rm -rf "$d"; umask $u; test $r -eq 0 || exit 125; p=$k/bin/%(name)s; ')
# Fails if a module that the shim needs is missing; prints the optional ones that are.
_CHECK_PYTHON = """import fcntl,hashlib,json,mmap,pickle,resource,select,socket,subprocess,sys,zlib
for name in %r:
    try:
        __import__(name)
    except ImportError as error:
        print("%s", error, file=sys.stderr)
"""
_OPTIONAL_MODULES = "bz2", "ctypes", "lzma", "readline", "sqlite3", "ssl"
_TAR_ENDS = "tar: Exiting with failure status due to previous errors"       # it gives no reason
_LACKS_LIBRARY = "executors: the python that was sent lacks a library:"
_OTHER_PYTHON = "executors: another python:"
_NO_PYTHON = "executors: no python"
_STARTING = "executors: starting "      # before each Python that is tried
# Where a Python is looked for: on the PATH, and in places that only login shells add to it.
_PYTHON_PLACES = [where.format(f"python{_VERSION}") for where in (
    "{}", "~/.local/bin/{}", "/usr/local/bin/{}", "/opt/homebrew/bin/{}",
    "~/.pyenv/versions/*/bin/{}", "~/.local/share/uv/python/*/bin/{}", "python3")]

# Runs a command and kills it when our end of its standard input closes, at the latest when we die.
_TIED_TO_INPUT = ["/bin/sh", "-c", (
    'exec 3<&0; "$@" </dev/null 3<&- & p=$!; { cat <&3 >/dev/null 2>&1; kill $p; } 2>/dev/null >&2 '
    '& exec 3<&-; wait $p'), "sh"]

class _LinkLost(Exception):
    """A link has ended, or could not be opened."""

    def __init__(self, cause: str, kind: _LossKind = _LossKind.LOST) -> None:
        super().__init__(cause, kind)
        self.loss = _Loss(kind, cause)


def _login_argv(record: RemoteWorkerRecord, ssh_options: list[str], magic: str,
                key: str = "") -> list[str]:
    """Return the command that runs the first stage on a worker, through ssh or here for ':'.

    The login shell there may be any of sh, bash, dash, zsh, csh, tcsh and fish. They all read the
    remote part alike: plain words and one string in single quotes, without '!' and backslashes.
    A candidate that exits with 127 is followed by the next one: a Python of another version, or a
    pyenv shim for a version that is not active.

    Arguments:
        key: of our interpreter, if it is sent to a machine that has none.
    """
    ours = _IMPLEMENTATION, *sys.version_info[:2]
    stage = base64.b64encode(
        (_FIRST_STAGE % (ours, _OTHER_PYTHON, magic)).encode()).decode()
    start = f'"$p" -c "import base64,sys;exec(base64.b64decode(sys.argv[1]))" {stage}'
    tell = f'echo {_STARTING}"$p" >&2; '
    look = (f'command -v "$p" >/dev/null 2>&1 || continue; {tell}{start}; r=$?; '
            'test $r -eq 127 || exit $r; ')
    candidates = _candidate_pythons(record)
    if key:
        words = {"key": key, "name": f"python{_VERSION}", "magic": magic,
                 "check": _encode_python_check()}
        script = (f'for p in {candidates}; do {look}done; '
                  f'{_COPY_OF_PYTHON % words}for p in "$q"; do {look}done; '
                  f'echo {_NO_PYTHON} >&2; {_RECEIVE_PYTHON % words}{tell}exec {start}')
    else:
        script = f'for p in {candidates}; do {look}done; echo {_NO_PYTHON} >&2; exit 126'
    if record.machine == ":":
        return ["/bin/sh", "-c", script]
    return [SSH, "-T", "-a", "-x", *_ssh_settings("SessionType=default"), *ssh_options, "--",
            record.login, f"exec sh -c '{script}'"]


@functools.cache
def _encode_python_check() -> str:
    present = [name for name in _OPTIONAL_MODULES if _find_spec(name)]
    return base64.b64encode((_CHECK_PYTHON % (present, _LACKS_LIBRARY)).encode()).decode()


def _candidate_pythons(record: RemoteWorkerRecord) -> str:
    """Return the interpreters to try on a machine, as words of a shell.

    If our interpreter belongs to an environment, its path comes first: homes are often shared.
    """
    if record.python or record.machine == ":":
        return record.python or shlex.quote(sys.executable)
    is_environment = (sys.prefix != sys.base_prefix
                      or os.path.exists(os.path.join(sys.prefix, "conda-meta")))
    path = sys.executable
    if not is_environment or not _PLAIN_PATH.fullmatch(path):
        return " ".join(_PYTHON_PLACES)
    # In a shared home, it may be for machines of another kind: it is tried only if it runs. What it
    # prints at its start (sitecustomize) must not become words of this list: each word is run.
    return " ".join((f'$({path} -c "" >/dev/null 2>&1 && echo {path})', *_PYTHON_PLACES))


@functools.cache
def _ssh_settings(*of_8_7: str) -> list[str]:
    """Return our settings as arguments for ssh.

    Arguments:
        of_8_7: further settings, left out like some of ours if this machine's OpenSSH is older than
            8.7 and does not know them.
    """
    settings = [*_SSH_SETTINGS, *_SSH_SETTINGS_8_7, *of_8_7]
    argv = [SSH, "-F", os.devnull, "-G", "-o", _SSH_SETTINGS_8_7[0], "host"]
    if _spawn(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait():
        settings = _SSH_SETTINGS
    return [word for setting in settings for word in ("-o", setting)]


# The options that `ssh_options` may contain, and what scp is given instead of each: its letters
# differ. `{}` is the option's value. An empty text means that scp does without the option.
_SSH_LETTERS = {
    "4": "-o AddressFamily=inet", "6": "-o AddressFamily=inet6", "A": "", "a": "",
    "C": "-o Compression=yes", "K": "-o GSSAPIAuthentication=yes",
    "k": "-o GSSAPIDelegateCredentials=no", "q": "", "v": "", "X": "", "x": "", "Y": "",
    "b": "-o BindAddress={}", "B": "-o BindInterface={}", "c": "-o Ciphers={}", "F": "-F {}",
    "I": "-o PKCS11Provider={}", "i": "-o IdentityFile={}", "J": "-o ProxyJump={}",
    "l": "-o User={}", "m": "-o MACs={}", "o": "-o {}", "p": "-o Port={}"}


def _parse_options(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield `(letter, value)` of each option. Raises ValueError for one that would break a link."""
    if isinstance(words, str):
        raise ValueError(f"ssh_options must be a list, got {words!r}; write {shlex.split(words)}")
    remaining = iter(words)
    for word in remaining:
        if re.match(r"-\w\s", word):
            raise ValueError(f"ssh_options: {word!r} must be two items: {word.split(None, 1)}")
        if not re.match("-[^-]", word):
            raise ValueError(f"ssh_options: expected an option like -p, got {word!r}; settings of "
                             "a single machine go into ~/.ssh/config")
        for at, letter in enumerate(word[1:], 2):
            if letter not in _SSH_LETTERS:
                raise ValueError(f"ssh_options: -{letter} cannot be used; executors needs ssh's "
                                 "input, output, errors and command for itself")
            if "{" not in _SSH_LETTERS[letter]:
                yield letter, ""
                continue
            value = word[at:] or next(remaining, "")
            if not value:
                raise ValueError(f"ssh_options: -{letter} needs a value")
            yield letter, value
            break


def _scp_argv(record: RemoteWorkerRecord, ssh_options: list[str], sources: Iterable[str],
              folder: str) -> list[str]:
    """Return the command that copies files into a folder of a machine."""
    options, login = [*_ssh_settings()], record.login
    for letter, value in _parse_options(ssh_options):
        if _SSH_LETTERS[letter]:
            options += _SSH_LETTERS[letter].format(value).split(" ", 1)
    if ":" in record.machine:
        login = login.replace(record.machine, f"[{record.machine}]")
    return [SCP, "-q", *options, "--", *sources, f"{login}:{folder}/"]


@functools.cache
def _bootstrap() -> bytes:
    """Return what a waiting first stage reads: the second stage, and the sources that it needs.

    These are compressed: a third as many bytes, for lines that many machines share.

    Raises RuntimeError if they cannot be read.
    """
    _require_cloudpickle()
    places = getattr(_find_spec("cloudpickle"), "submodule_search_locations", ())
    names = ["cloudpickle", *(f"cloudpickle.{one.name}" for one in pkgutil.iter_modules(places))]
    found = {name: _find_source(name) for name in (wire.__name__, *names)}
    missing = [name for name, one in found.items() if not one]
    if missing:
        raise RuntimeError(f"workers need the source of {' and '.join(missing)}, which cannot be "
                           "read here: run from .py files, not from a frozen program")
    file, text, _ = found[wire.__name__]
    modules = {name: wire.pack(found[name]) for name in names}
    payload = zlib.compress(pickle.dumps((wire.__name__, file, text, modules)))
    stage = _SECOND_STAGE.encode()
    return b"%16d%s%16d%s" % (len(stage), stage, len(payload), payload)


class _Login:
    """One login to a machine: its ssh and, while it copies, its scps.

    The reader thread calls `open` and `end`. Any thread may read `found` and call `check`, `abort`
    and `progress`.
    """

    def __init__(self, record: RemoteWorkerRecord, ssh_options: list[str], cargo: _Cargo) -> None:
        self.record = record
        self._ssh_options = ssh_options
        self._cargo = cargo
        self._is_local = record.machine == ":"
        # The reader thread writes these; where other threads do too, a comment says so. Any thread
        # may read them, and may see old values.
        self.found: dict[str, str] = {}     # what each stage of the login found; also by `words`
        self.cores = 0                      # of the machine
        self.shim = 0                       # process IDs over there
        self.guardian = 0
        self._shim_fd = -1                  # pidfd of a local shim, where the platform has them
        self.facts: Sequence[str] = ()      # wire.platform_facts of the machine
        # By the folder it is copied to, or, of our interpreter, a label; also by copiers.
        self.copies: dict[str, _Copy] = {}
        self.waits: dict[int, str] = {}     # what slots wait for that is done there, by slot
        self.over = threading.Event()
        self.is_ready = False               # tasks may come: what `files=` names is there
        self.processes: list[Any] = []      # ssh, then each scp that runs; also by copying threads
        self._errors = wire.open_nameless_file()         # ssh's stderr
        self._noise = b""                   # what the login shell printed before the magic
        self._printed = 0                   # bytes of that, in all
        self._python = ""                   # the Python that was started last; also by `words`
        self._has_python = False
        # Our interpreter, if it may go there; and why it cannot, once that is known.
        self._interpreter = None if record.python or self._is_local else cargo.find_interpreter()
        self._misfit = ""
        self._is_python_sent = False
        self._cause = ""                    # why we cut it off, if we did; by whoever did
        self._started = monotonic()
        self._last_progress = self._started     # when the stage began; also by the heartbeat
        # Until it is ready: the seconds that a stage may take, and what is wrong otherwise.
        self._limit = HELLO_SECONDS, f"no Python answered for {HELLO_SECONDS:g} s"

    def open(self, config: Mapping[str, Any], stuck: SimpleQueue[Any],
             is_expected: Callable[[int, int], bool]) -> _Channel:
        """Start the shim. Raises _LinkLost, with ssh's own words."""
        magic = os.urandom(12).hex()
        try:
            key = self._interpreter.key if self._interpreter else ""
            argv = _login_argv(self.record, self._ssh_options, magic, key)
            process = self._run(argv, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0)
        except OSError as error:
            is_missing = isinstance(error, FileNotFoundError)
            remedy = "; install it: apt-get install openssh-client" if is_missing else ""
            kind = _LossKind.UNUSABLE if is_missing else _LossKind.LOST
            raise _LinkLost(f"cannot run ssh: {error}{remedy}", kind) from None
        stdin = process.stdin
        fd, out = stdin.fileno(), process.stdout.fileno()
        try:
            self._await_python(magic.encode(), fd, out)
            wire.enlarge_pipe(fd)
            wire.enlarge_pipe(out)
            reader = wire.MessageReader(out, is_expected)
            wire.write_all(fd, [_bootstrap()])
            self._read_hello(self._await(reader, wire.HELLO))
            if self._is_local and hasattr(os, "pidfd_open"):
                self._shim_fd = os.pidfd_open(self.shim)
                weakref.finalize(self, os.close, self._shim_fd)     # `abort` may come after `end`
            start = _seconds(monotonic() - self._started)
            self.found.update(start=start, cores=str(self.cores))
            slots = self.record.count or self.cores
            told = pickle.dumps({**config, "machine": self.record.machine, "slots": slots,
                                 "nice": self.record.nice})
            wire.write_all(fd, [wire.frame(wire.CONFIG, 0, told)])
        except (OSError, EOFError, *wire.DECODE_ERRORS) as error:
            raise self.diagnose(error) from None
        process.stdin = None        # the channel owns and closes it from here on
        return _Channel(reader, stdin, stuck)

    def _read_hello(self, hello: bytes) -> None:
        self.cores, self.shim, self.guardian = wire.GREETING.unpack_from(hello)
        self.facts = [*hello[wire.GREETING.size:].decode().split("\n"), "", ""][:3]
        if not 0 < self.cores < 1 << 16:
            raise wire.FrameError(f"it says that it has {self.cores} cores")

    def _run(self, argv: Sequence[str], **options: Any) -> Any:
        process = _spawn(argv, stdin=subprocess.PIPE, **options)
        self.processes.append(process)
        if self._cause:
            self.abort(self._cause)     # whoever cut us off could not know of this process yet
        return process

    def _await_python(self, magic: bytes, stdin: int, stdout: int) -> None:
        """Wait until a Python of our version waits for the second stage; send ours if need be."""
        implementation, version, where = self._await_magic(magic, stdin, stdout)
        self._record_shell()
        if implementation == "none":
            size = self._send_python(f"{version} {where}", stdin)
            implementation, version, where = self._await_magic(magic, stdin, stdout)
            lacking = [line.removeprefix(_LACKS_LIBRARY).strip()
                       for line in self.words().splitlines() if line.startswith(_LACKS_LIBRARY)]
            lacks = "".join([f"; it lacks {error}" for error in lacking])
            version += f" (sent, {size / 1e6:.0f} MB{lacks})"
        self._has_python = True
        self.found["python"], self.found["interpreter"] = version, where

    def _await_magic(self, magic: bytes, stdin: int, stdout: int) -> list[str]:
        """Read past whatever login files print; return three words that follow the magic."""
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        noise, before, found, line = b"", b"", b"", b""
        while not (found and line.endswith(b"\n")):
            if poll.poll(1000):
                data = os.read(stdout, wire.READ_SIZE)
                if not data:
                    raise EOFError
                self._printed += len(data)
                self._noise = noise = (noise + data)[-2 * wire.READ_SIZE:]
                before, found, line = noise.rpartition(magic)
            else:
                os.write(stdin, b"\n")      # for a login file that reads; the first stage skips it
        self._noise = before[-2000:]
        # The last is missing if that Python does not know where it is.
        return [*_words_of(line).strip().split(maxsplit=2), "?", "?", "?"][:3]

    def _send_python(self, platform: str, stdin: int) -> int:
        """Send our interpreter to a machine that has none of its version; return how many bytes.

        Raises _LinkLost if it does not fit or the line is stuck; OSError if the link ends.
        """
        assert self._interpreter
        self._misfit = self._interpreter.misfit(platform)
        if self._misfit:
            self.processes[0].stdin.close()     # it ends
            raise EOFError
        label = f"python {_VERSION}"
        self.copies[label] = _Copy(f"{label} (packing)")
        try:
            file = self._pack_python()
            self._write_python(file, label, stdin)
        finally:
            del self.copies[label]
            self._last_progress = monotonic()
            self._limit = wire.STALL_SECONDS, f"{label} was sent, and has not started"
        return file.size

    def _pack_python(self) -> _File:
        """Return our interpreter as a tar file. Raises _LinkLost: not the machine is to blame."""
        try:
            return self._cargo.pack_interpreter()
        except OSError as error:
            raise _LinkLost(f"our Python cannot be packed here, where the pool is: {error}"
                            ) from None

    def _write_python(self, file: _File, label: str, stdin: int) -> None:
        """Write the tar file to the login's input, for as long as bytes move."""
        self._is_python_sent = True
        poll = select.poll()
        poll.register(stdin, select.POLLOUT)
        copy = self.copies[label] = _Copy(label, file.size)
        os.write(stdin, b"%d\n" % file.size)
        with open(file.source, "rb") as source:
            while data := source.read(select.PIPE_BUF):      # poll promises room for so much
                if not poll.poll(1000 * wire.STALL_SECONDS):
                    raise _LinkLost(f"{label} was being sent, but nothing moved for "
                                    f"{wire.STALL_SECONDS:g} s")
                os.write(stdin, data)
                copy.arrived += len(data)

    def _record_shell(self) -> None:
        self.found.update(dict.fromkeys(_LOGIN_STAGES, "-" if self._is_local else "ok"))
        self.found["shell"] = "noisy" if self._noise.strip() else "quiet"

    def _await(self, reader: wire.MessageReader, kind: int) -> Any:
        messages: list[Any] = []
        while not messages:
            messages = reader.read()
        if len(messages) > 1 or messages[0][0] != kind:
            raise wire.FrameError(f"expected one message of kind {kind}, not {len(messages)}, of "
                                  f"kinds {sorted({one[0] for one in messages})}")
        return messages[0][3]

    def await_files(self, size: int) -> None:
        """Limit how long storing `files=` of `size` bytes may take without a sign of progress."""
        seconds = wire.STALL_SECONDS + size / UNPACK_RATE
        self._limit = seconds, f"storing files did not go on for {seconds:.0f} s"
        self._last_progress = monotonic()

    def on_arrival(self, folder: str, size: int) -> None:
        """Note that so many bytes have arrived in a folder there."""
        self._last_progress = monotonic()
        copy = self.copies.get(folder)
        if copy:        # otherwise all have, and are unpacked
            copy.arrived = size

    def copy(self, files: Sequence[_File], folder: str) -> None:
        """Copy files into a folder there, from any thread, for as long as bytes arrive.

        Raises _LinkLost, with scp's own words; OSError if a file cannot be read, or has changed.
        """
        for file in files:
            is_old = os.stat(file.source).st_mtime_ns == file.mtime_ns
            if not is_old and wire.digest_file(file.source) != file.digest:
                raise OSError(f"{file.name} has changed here since the pool was made: make a new "
                              "pool")
        if not self._is_local:
            self._scp(files, folder)
            return
        place = os.path.join(os.path.expanduser("~"), folder)
        for file in files:
            # Beside it first: there, a file is taken as soon as it has its size.
            name = os.path.basename(file.source)
            partial = os.path.join(os.path.dirname(place), name + ".partial")
            shutil.copy(file.source, partial)
            os.rename(partial, os.path.join(place, name))

    def _scp(self, files: Sequence[_File], folder: str) -> None:
        what = f"scp of {', '.join([file.name for file in files])}"
        argv = _TIED_TO_INPUT + _scp_argv(self.record, self._ssh_options,
                                 [file.source for file in files], folder)
        with wire.open_nameless_file() as errors:
            copier = self._run(argv, stdout=subprocess.DEVNULL, stderr=errors)
            try:
                if not self._await_scp(copier, folder):
                    _kill_group(copier)
                    copier.wait()
                    raise _LinkLost(f"{what} stalled: nothing has arrived for "
                                    f"{wire.STALL_SECONDS:.0f} s", _LossKind.STALLED)
            finally:
                copier.stdin.close()
                self.processes.remove(copier)
            said = _words_of(os.pread(errors.fileno(), 1 << 16, 0))
        if self._cause:
            raise _LinkLost(self._cause)
        if copier.returncode:
            cause, kind = self._match_diagnosis(_without_chatter(said), _SCP_DIAGNOSES)
            raise _LinkLost(f"{what} failed: {cause}", kind)

    def _await_scp(self, copier: Any, folder: str) -> bool:
        """Wait for an scp to end. Return False if nothing arrives there for STALL_SECONDS.

        Seconds are counted, not measured: those in which this process is suspended do not count.
        """
        copy = self.copies[folder]
        seen, idle = copy.arrived, 0.0
        while idle < wire.STALL_SECONDS:
            try:
                copier.wait(1.0)
                return True
            except subprocess.TimeoutExpired:
                idle += 1.0
            if seen != copy.arrived:
                seen, idle = copy.arrived, 0.0
        return False

    def progress(self) -> dict[str, str]:
        """Return what was found, and what is being copied."""
        # Lists, for other threads change these.
        copying = ", ".join([*map(str, [*self.copies.values()]), *self.waits.values()])
        return {**self.found, **({"copying": copying} if copying else {})}

    def check(self, now: float) -> None:
        """Cut off a login whose stage has taken too long; update the stages found."""
        self.words()
        if self.copies:
            self._last_progress = now       # each copy has a limit of its own
        seconds, complaint = self._limit
        if now > self._last_progress + seconds:
            self.abort(f"{complaint}: {self._explain_delay()}")

    def is_copying(self, now: float) -> bool:
        """Return whether tasks wait for a copy: ours, or one that gives signs of life there."""
        is_alive = now < self._last_progress + wire.STALL_SECONDS
        return bool(self.copies or is_alive and self.waits)

    def on_waiting(self, slot: int, what: str) -> None:
        """Note what a slot waits for now; "" if it no longer waits."""
        self._last_progress = monotonic()
        if what:
            self.waits[slot] = what
        else:
            self.waits.pop(slot, None)

    def _explain_delay(self) -> str:
        """Return what a login waits for, as far as that is known, and what to do."""
        if self._has_python:        # what `files=` names is being copied
            return f"check that `sftp {self.record.login}` works"
        if self._python:
            return (f"{self._python} was started there and does not answer -- check that "
                    f"`{self._command(self._python)} -c pass` ends")
        return (f"the login has printed {self._printed:,} bytes, the last line is "
                f"{_last_line(self._noise)[:200]!r} -- check that `{self._command('echo hello')}` "
                "prints hello and ends")

    def _command(self, command: str) -> str:
        """Return what a user types to run a command on the machine."""
        return command if self._is_local else f"ssh {self.record.login} {command}"

    def limit(self) -> None:
        """Keep at most a megabyte of the stderr of ssh and the shim."""
        with contextlib.suppress(ValueError):       # it has ended
            fd = self._errors.fileno()
            if os.fstat(fd).st_size > wire.MAX_FRAME:
                os.ftruncate(fd, 0)
                os.lseek(fd, 0, os.SEEK_SET)        # for ssh, too: it has the same description

    def abort(self, cause: str) -> None:
        """Kill ssh and scp; the reader thread then sees the link end, with this cause."""
        self._cause = self._cause or cause
        local = []
        if self.shim and self._is_local:        # there is no ssh to cut
            local = [(self.shim, signal.SIGKILL), (self.guardian, signal.SIGCONT)]
        for process in [*self.processes]:
            _kill_group(process, local)
        if self._shim_fd >= 0:          # a stopped shim outlives the shell that started it
            with contextlib.suppress(ProcessLookupError, PermissionError):      # it may have lied
                signal.pidfd_send_signal(self._shim_fd, signal.SIGKILL)

    def end(self) -> None:
        """Wait for ssh to end, or kill it; release everything."""
        self._cause = self._cause or "the link has ended"       # for threads that still copy
        self.over.set()
        for process in self.processes[1:]:
            _kill_group(process)
        if self.processes:
            process = self.processes[0]
            if process.stdin:
                process.stdin.close()
            try:
                process.wait(CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self.abort("it did not end")
                process.wait()
            process.stdout.close()
        self._errors.close()

    def close_in_child(self) -> None:
        """In a forked child: close our copies of the parent's pipes, and write nothing."""
        for process in self.processes:
            for pipe in filter(bool, (process.stdin, process.stdout)):
                pipe.close()

    def diagnose(self, error: Exception) -> _LinkLost:
        """Return why the link ended, with what to do about it.

        The status of ssh tells little (255 stands for ten different things), so the cases are told
        apart by how far the login got, and by ssh's own words.
        """
        if self._cause:
            return _LinkLost(self._cause)
        if isinstance(error, wire.DECODE_ERRORS):
            what = f"it sent something that no shim sends: {wire.describe(error)}"
            self.abort(what)
            return _LinkLost(what, _LossKind.BROKE_PROTOCOL)
        status = "unknown"
        try:
            status = str(self.processes[0].wait(CLOSE_SECONDS))
        except subprocess.TimeoutExpired:
            pass
        words = self.words()
        said = _last_line(words)
        if self._has_python:
            return _LinkLost(f"connection lost ({said or str(error) or 'the other end is gone'})")
        if status == "255":
            return _LinkLost(*self._match_diagnosis(words, _SSH_DIAGNOSES))
        if status == "125":
            why = _last_line(words.replace(_TAR_ENDS, ""))
            return _LinkLost(f"no {_IMPLEMENTATION} {_VERSION} on {self.record.machine}; ours "
                             f"cannot be used there: {why}", _LossKind.UNUSABLE)
        if self._is_python_sent:
            return _LinkLost("connection lost while our Python was being sent")
        if _NO_PYTHON in words.splitlines():
            self._record_shell()
            return _LinkLost(self._no_python(words), _LossKind.UNUSABLE)
        kind = _LossKind.LOST if status == "unknown" else _LossKind.UNUSABLE
        if self._python:
            reason = re.search("Fatal Python error: .*", words)
            return _LinkLost(
                f"{self._python} ended there with status {status} before it ran anything: "
                f"{reason[0] if reason else said} -- try `{self._command(self._python)} -c pass`; "
                "PYTHONHOME and PYTHONPATH may be wrong there", kind)
        said = said or _last_line(self._noise) or "nothing was said"
        return _LinkLost(f"the login ended with status {status} before Python started: {said} -- "
                         f"check that `{self._command('echo hello')}` prints hello and no more",
                         kind)

    def _no_python(self, words: str) -> str:
        """Return which Pythons were found instead, and what to do."""
        versions = ", ".join({line.removeprefix(_OTHER_PYTHON).strip(): 0
                              for line in words.splitlines() if line.startswith(_OTHER_PYTHON)})
        sent = f"; it was not sent there: {self._misfit}" if self._misfit else ""
        machine, looked_in = self.record.machine, self.record.python or ", ".join(_PYTHON_PLACES)
        wanted = f"{_IMPLEMENTATION} {_VERSION}"
        return (f"no {wanted} on {machine} (found {versions or 'none'}), and pickled functions "
                f"need the version that runs here{sent}. Install it there (`uv python install "
                f"{_VERSION}`), or name it: '{machine} python=/path/to/python{_VERSION}'. Looked "
                f"in: {looked_in}")

    def _match_diagnosis(self, words: str, diagnoses: Sequence[tuple[str, _LossKind, str]],
                         ) -> tuple[str, _LossKind]:
        """Return the last line, followed by a remedy, and the kind of loss.

        The patterns are searched for in the last two lines only. Earlier ones may be a banner,
        which may mention passwords and permissions.
        """
        lines = [line.strip() for line in words.splitlines() if line.strip()]
        said = lines[-1] if lines else "nothing was printed"
        changed_key = re.search(_CHANGED_KEY, words)
        if changed_key:
            command = changed_key[1] or f"ssh-keygen -R {self.record.machine}"
            cause = (f"REMOTE HOST IDENTIFICATION HAS CHANGED! {said} -- somebody may be "
                     "intercepting the connection. Ask the machine's administrator whether its key "
                     f"was replaced; only then remove the old one: {command}")
            return cause, _LossKind.UNUSABLE
        _, kind, remedy = next(
            (row for line in reversed(lines[-2:]) for row in diagnoses[:-1]
             if re.search(row[0], line, re.IGNORECASE)), diagnoses[-1])
        return f"{said} -- {remedy.format(login=self.record.login)}", kind

    def words(self) -> str:
        """Return what ssh and the shim have printed, without chatter; update the stages found."""
        try:
            size = os.fstat(self._errors.fileno()).st_size
            data = os.pread(self._errors.fileno(), 1 << 16, max(0, size - (1 << 16)))
        except ValueError:      # it has ended
            return ""
        text = _words_of(data)
        for line in text.splitlines():
            if line.startswith(_STARTING):
                self._python = line.removeprefix(_STARTING)
        for stage, pattern in _LOGIN_STAGES.items():
            if re.search(pattern, text):
                self.found[stage] = "ok"
        return _without_chatter(text)


def _without_chatter(text: str) -> str:
    return "\n".join(line for line in text.partition(_JUMP_HOST_FAILED)[0].splitlines()
                     if line.strip() and not _SSH_CHATTER.match(line))


def _last_line(words: str | bytes) -> str:
    text = words if isinstance(words, str) else _words_of(words)
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


# ──────────────────────────────────────────── futures ─────────────────────────────────────────────


class _Condition(threading.Condition):
    """A Condition that takes a third of the memory, and a third of the time to make."""

    def __init__(self) -> None:
        self._lock: Any = _thread.RLock()
        self._waiters: deque[Any] = deque()


# The base class copies these methods of its lock into each instance; here they are looked up.
for _method in ("acquire", "release", "_release_save", "_acquire_restore", "_is_owned",
                "__enter__", "__exit__"):
    setattr(_Condition, _method, property(operator.attrgetter(f"_lock.{_method}")))


class _NoCondition(contextlib.nullcontext[None]):
    """The condition of a future that was settled before any thread waited: it guards nothing."""

    def acquire(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""


_NO_CONDITION = _NoCondition()


class _RemoteFuture(Future):        # type: ignore[type-arg]
    """A future that can be cancelled while it runs, and small enough for a million to be pending.

    The condition and the two lists of the base class are made when a thread first waits or adds a
    callback. A race: a thread begins to wait while another settles. Both put a condition into
    `__dict__` with `setdefault`, which is atomic. The first one stays: a real condition, which then
    guards the outcome, or _NO_CONDITION, if the future was settled before anybody waited.
    """

    _result, _exception = None, None
    _supervisor: Any = None     # None again once it is settled
    _guarded_state = PENDING            # the state, with a real condition or none yet
    _final_state = FINISHED          # the state, with _NO_CONDITION
    _LAZY_ATTRIBUTES: ClassVar[dict[str, Callable[[], Any]]] = {
        "_condition": _Condition, "_waiters": list, "_done_callbacks": list}

    def __init__(self, supervisor: _Supervisor, bundle: _Bundle) -> None:
        # Replaced by the thread that settles; other threads may read the old values meanwhile.
        self._supervisor = supervisor
        self._bundle = bundle

    def __getattr__(self, name: str) -> Any:
        if name not in self._LAZY_ATTRIBUTES:
            raise AttributeError(name)
        return self.__dict__.setdefault(name, self._LAZY_ATTRIBUTES[name]())

    @property
    def _state(self) -> str:
        is_free = self.__dict__.get("_condition") is _NO_CONDITION
        return self._final_state if is_free else self._guarded_state

    @_state.setter
    def _state(self, state: str) -> None:      # pyright: ignore
        self._guarded_state = state

    def done(self) -> bool:
        return self._state != PENDING

    def running(self) -> bool:
        return self._bundle.is_running() and not self.done()

    def result(self, timeout: float | None = None) -> Any:
        if self._state == FINISHED and self._exception is None:
            return self._result
        return super().result(timeout)

    def cancel(self) -> bool:
        # A race: `settle` replaces first the bundle, then the supervisor. Because they are read in
        # the opposite order, there is a supervisor as long as the bundle is not over.
        supervisor = self._supervisor
        bundle = self._bundle
        if bundle.phase is not _OVER and supervisor.cancel(bundle):
            return True
        return self.cancelled()

    def __reduce__(self) -> Any:
        raise TypeError("a future belongs to its pool and cannot be pickled or copied; pass its "
                        "result(), or call a function that is decorated with parallelize()")

    def _refuse_outcome(self, *_outcome: Any) -> NoReturn:
        """Raise InvalidStateError: only the pool gives an outcome to its futures."""
        raise InvalidStateError(f"{self!r} gets its outcome from its pool; to end it, cancel() it")

    set_result = set_exception = _refuse_outcome        # type: ignore[assignment]
    set_running_or_notify_cancel = _refuse_outcome

    def settle(self, kind: int, value: Any) -> bool:
        """Resolve the future, without running its callbacks. May be called again if it raised.

        Arguments:
            kind: wire.RESULT, _CANCELLED, or anything else for an exception.
            value: the result or the exception.

        Return whether there are callbacks to run.
        """
        self._bundle = _SETTLED
        self._supervisor = None
        if kind == wire.RESULT:
            self._result = value
            report = "add_result"
        elif kind == _CANCELLED:
            self._final_state = CANCELLED_AND_NOTIFIED
            report = "add_cancelled"
        else:
            self._exception = value
            report = "add_exception"
        condition = self.__dict__.setdefault("_condition", _NO_CONDITION)
        if condition is _NO_CONDITION:
            return False
        with condition:
            self._guarded_state = self._final_state
            for waiter in self.__dict__.get("_waiters", ()):
                getattr(waiter, report)(self)
            if condition._waiters:
                condition.notify_all()
        return "_done_callbacks" in self.__dict__


# ──────────────────────────────────── what calls are sent with ────────────────────────────────────

_ScriptName = tuple[str, str]      # a module of the script, and a name in it


class _ScriptSnapshot:
    """What names of the script stand for at this moment, each pickled separately.

    Data that shares mutable parts is the exception: it is pickled together.

    Arguments:
        names: that are needed; all that these refer to is added.
        pickles: of functions that have not changed since an earlier snapshot.

    Attributes:
        versions: by key, a digest of what the name stands for, the pickle of a short constant, or
            wire.ABSENT. The keys are in the order in which a slot binds the names.
        definitions: by version, `(keys, pickle)` of everything but short constants. There are
            several keys if their data shares mutable parts.

    Raises _UnpicklableError, with the name that cannot be pickled.
    """

    def __init__(self, names: Iterable[_ScriptName], pickles: _PickleCache) -> None:
        self._pickle_cache = pickles
        self.versions: dict[_ScriptName, bytes] = {}
        self.definitions: dict[bytes, tuple[Sequence[_ScriptName], wire.Pickled]] = {}
        self._pickles: dict[_ScriptName, wire.Pickled] = {}        # all but short constants
        self._data: dict[_ScriptName, Any] = {}                    # what `wire.is_data`
        self._globals_by_id: dict[int, _ScriptName] = {}
        self._scanned: set[str] = set()                     # modules whose globals are in there
        self._add_names(names)
        for key in self._pickles:
            self.versions[key] = self._compute_version(key)
        for keys in self._group_by_shared_parts():
            if len(keys) == 1:
                pickled = self._pickles[keys[0]]
            else:
                values = [self._data[key] for key in keys]
                pickled = wire.pickle_definition(values, {}, keys, is_root=False)
            for key in keys:
                self.definitions[self.versions[key]] = keys, pickled
        keys = sorted(self.versions, key=self._binding_rank)
        self.versions = {key: self.versions[key] for key in keys}

    def _add_names(self, names: Iterable[_ScriptName]) -> None:
        """Pickle what these names stand for, and all that it refers to."""
        todo = [*names]
        for key in todo:        # which grows meanwhile
            if key in self.versions:
                continue
            value = self._current_value(key)
            self.versions[key] = wire.ABSENT
            # Three cases. A name may be missing, or be one that every module has of its own.
            if value is wire.ABSENT or key[1] in ("__builtins__", "__spec__", "__loader__"):
                continue
            # A constant refers to nothing. A short one is its own version.
            if wire.is_plain(value):
                data = pickle.dumps(value, 5)
                self.versions[key] = data
                if len(data) > 100:
                    self._pickles[key] = wire.Pickled(data)
                continue
            # Anything else may refer to more of the script.
            if wire.is_data(value):
                self._data[key] = value
            pickled = self._pickle_value(key, value)
            self._pickles[key] = pickled
            todo += pickled.used_globals | pickled.references

    def _pickle_value(self, key: _ScriptName, value: Any) -> wire.Pickled:
        """Pickle what a name stands for, unless that is a constant."""
        # Four cases. A function or class that workers can import; a module, likewise.
        if wire.importable_name(value):
            return wire.Pickled(pickle.dumps(value, 5))
        if _is_imported(value):
            return _pickle_module(value.__name__)
        # Data of the script, or a function or class that it defines.
        try:
            if key in self._data:
                return wire.pickle_definition(value, {}, (key,), is_root=False)
            return self._pickle_cache.get(value, self, key)
        except Exception as error:
            raise _unpicklable_error(key[1], value, error) from error

    def globals_by_id(self, module: str) -> dict[int, _ScriptName]:
        """Return the keys of the script's data by `id`, with that of one more module."""
        if module not in self._scanned:
            self._scanned.add(module)
            for name, value in [*vars(sys.modules[module]).items()]:
                if wire.is_data(value) and not name.startswith("__"):
                    self._globals_by_id[id(value)] = module, name
        return self._globals_by_id

    def _group_by_shared_parts(self) -> list[list[_ScriptName]]:
        """Return the keys of all that is pickled, those together that share mutable parts."""
        groups: list[tuple[list[_ScriptName], set[int]]] = []      # keys, and the `id` of each part
        for key, pickled in self._pickles.items():
            keys, parts = [key], {*pickled.parts}
            related = []
            if parts:
                related = [group for group in groups if not parts.isdisjoint(group[1])]
            for group in related:
                groups.remove(group)
                keys = [*group[0], *keys]
                parts |= group[1]
            groups.append((keys, parts))
        return [keys for keys, _ in groups]

    def _compute_version(self, key: _ScriptName) -> bytes:
        """Return a digest of what a name stands for, and of what it depends on.

        Two cases. The results of a cached function depend on all that it refers to or that its code
        uses. Anything else depends on what it refers to, except for classes: a class stays the same
        object in a slot, whatever its content. What its code uses is looked up when it runs.
        """
        is_cached = type(self._current_value(key)) is wire.CACHED_TYPE
        hashed = hashlib.sha256(repr(key).encode())
        todo = [key]
        for part in todo:       # which grows meanwhile
            if part != key and not is_cached and isinstance(self._current_value(part), type):
                continue
            pickled = self._pickles.get(part)
            if pickled is None:
                hashed.update(self.versions[part])
                continue
            hashed.update(pickled.digest)
            needed = pickled.used_globals | pickled.references if is_cached else pickled.references
            todo += sorted(needed.difference(todo))
        return hashed.digest()

    def _binding_rank(self, key: _ScriptName) -> tuple[int, int]:
        """Return what sorts names in the order in which a slot is to bind them.

        A name can be referred to once it is bound, even while its attributes are still to come. So
        metaclasses come first, then classes, after their bases; then functions, which instances may
        need; then data.
        """
        value = self._current_value(key)
        if isinstance(value, type):
            is_metaclass = issubclass(value, type)
            return (0 if is_metaclass else 1), len(value.__mro__)
        return (3 if key in self._data else 2), 0

    @staticmethod
    def _current_value(key: _ScriptName) -> Any:
        """Return what a name stands for now, or wire.ABSENT."""
        return vars(sys.modules[key[0]]).get(key[1], wire.ABSENT)


def _is_imported(value: Any) -> bool:
    # Not by `isinstance`: see `wire.is_definition`.
    return issubclass(type(value), types.ModuleType) and sys.modules.get(value.__name__) is value


@functools.cache
def _pickle_module(name: str) -> wire.Pickled:
    return wire.Pickled(pickle.dumps(_ModuleReference(name), 5), module=name)


class _ModuleReference:
    """Unpickles as the module of a name, which is imported there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> Any:
        return importlib.import_module, (self._name,)


class _PickleCache:
    """A cache of pickled functions, each valid while the function consists of the same objects.

    Only functions are cached in which nothing can change unless it is replaced: they hold no list,
    no instance and no class.
    """

    def __init__(self) -> None:
        # Threads that submit at once may both add to it: what they add is the same.
        self._cached: dict[tuple[Any, ...], tuple[list[Any], wire.Pickled]] = {}

    def get(self, function: Any, snapshot: _ScriptSnapshot, *keys: _ScriptName) -> wire.Pickled:
        """Return the pickle of a function, as `wire.pickle_definition` makes it.

        Arguments:
            snapshot: gives the globals that the function may refer to.
            keys: the name that the function is to be bound to, if any.
        """
        parts = _parts_of_function(function)
        code_id = id(function.__code__) if parts else 0
        # Submodules that its code uses are sent along, as far as they are imported by now.
        place = (code_id, len(sys.modules), *keys)
        known, pickled = self._cached.get(place, ([], None))
        if pickled and len(parts) == len(known) and all(map(operator.is_, parts, known)):
            return pickled
        globals_by_id = {}
        # As in the standard library, a callable object or a partial carries a copy of its data.
        # Only functions may refer to globals of the script instead.
        if keys or isinstance(function, types.FunctionType):
            globals_by_id = snapshot.globals_by_id(keys[0][0] if keys else "__main__")
        pickled = wire.pickle_definition(function, globals_by_id, keys, is_root=bool(keys))
        if len(self._cached) >= MAX_KNOWN_FUNCTIONS[0]:
            self._cached.clear()
        if parts and len(pickled.data) <= wire.MAX_INLINE:
            self._cached[place] = parts, pickled
        return pickled


def _parts_of_function(function: Any) -> list[Any]:
    """Return all objects that make up a function of the script; none if one of them can change."""
    if (type(function) is not types.FunctionType or function.__kwdefaults__ or function.__dict__
            or not wire.script_module(function.__globals__)):
        return []
    values = [*(function.__defaults__ or ()), *function.__annotations__.values()]
    try:
        values += [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:      # the cell is empty
        return []
    if not all(wire.is_plain(value) or wire.importable_name(value) for value in values):
        return []
    # Two cases. A function that has a name in the script must be the same object, because results
    # may refer to it. A lambda is a new object each time it is evaluated, so only its code and its
    # values are compared.
    module, _ = wire.script_path(function)
    named = function if module else None
    return [named, function.__globals__, function.__code__, function.__name__,
            function.__qualname__, function.__module__, function.__doc__,
            *function.__annotations__, *values]


class _SubmittedFunction(NamedTuple):
    """A function as it was submitted, and what it needs of the script."""

    name: str
    durations: _Durations
    how: int                        # wire.UNPICKLE_EACH_CALL, UNPICKLE_ONCE or LOOK_UP_BY_NAME
    pickled: Any                    # a wire.Pickled; if LOOK_UP_BY_NAME, its module and path
    names: frozenset[_ScriptName]          # that it uses
    digest: bytes                   # two are the same function if this and all names are the same
    is_for_map: bool = False


class _FunctionCache:
    """The functions that a pool has pickled, and how long they take.

    No lock guards them. A race: two threads may pickle the same function at once. It then has two
    numbers and is sent twice, which does no harm.
    """

    def __init__(self) -> None:
        self._idents = itertools.count(wire.INITIALIZER_ID + 1)
        self._by_name: dict[tuple[str, ...], _Function] = {}        # of installed modules
        self._by_content: Any = weakref.WeakValueDictionary()       # of the script
        self._pickles = _PickleCache()
        self._durations: dict[Any, _Durations] = {}     # by module, name and line

    def get(self, fn: Callable[..., Any], names: Iterable[_ScriptName] = (),
            is_for_map: bool = False) -> _Function:
        """Pickle a function, unless a worker can import it by a name that was used before.

        Arguments:
            names: what the arguments need of the script.
            is_for_map: have each slot unpickle it once; calls see what earlier ones changed in it.
        """
        key = wire.importable_name(fn)
        function = self._by_name.get(key)
        if function is None:
            root = self._pickle_submitted(fn, is_for_map)
            function = self._with_needs(root, () if key else names)
            if key:
                self._by_name[key] = function
        if is_for_map:      # each map has its own `variants`
            return dataclasses.replace(function, variants={})
        return function if function.knows(names) else self._with_needs(function.root, names)

    def get_definition(self, name: str) -> Any:
        """Return, packed, the definition that `__main__` has under a name; None if there is none.

        Data is no definition.
        """
        value = vars(sys.modules["__main__"]).get(name)
        is_type_hint = type(value).__module__ == "typing"
        if not isinstance(value, (type, types.FunctionType, wire.CACHED_TYPE)) and not is_type_hint:
            return None
        key = "__main__", name
        root = _SubmittedFunction(
            name, _Durations(), wire.LOOK_UP_BY_NAME, key, frozenset([key]), b"")
        return self._with_needs(root, ()).packed

    def extend(self, function: _Function, names: Iterable[_ScriptName]) -> _Function:
        """Return the function of a map with `names` besides, which arguments need.

        All other names stand for what they did when the map began.
        """
        if function.knows(names):
            return function
        key = frozenset(names)
        if key not in function.variants:
            more, known = self._take_snapshot(function.root, names), function.script
            # Both orders matter: slots bind the names that the map began with first, and where both
            # snapshots have a name, the older one counts.
            versions = {**known.versions, **more.versions, **known.versions}
            definitions = {**more.definitions, **known.definitions}
            function.variants[key] = self._make_function(function.root, versions, definitions)
        return function.variants[key]

    def _pickle_submitted(self, fn: Callable[..., Any], is_for_map: bool) -> _SubmittedFunction:
        """Pickle a function by itself. Raises what pickling raises, with the culprit's name."""
        name, inner = _name_of_function(fn), _unwrap_partials(fn)
        line = getattr(getattr(inner, "__code__", None), "co_firstlineno", 0)
        family = getattr(inner, "__module__", ""), name, line
        durations = self._durations.setdefault(family, _Durations())
        # Three cases. The script defines it at its top level; slots find it by its name.
        module, path = wire.script_path(fn) if isinstance(fn, types.FunctionType) else (None, "")
        if module:
            needs = frozenset([(module, path.partition(".")[0])])
            return _SubmittedFunction(name, durations, wire.LOOK_UP_BY_NAME, (module, path), needs,
                                      path.encode(), is_for_map)
        try:
            # An installed module defines it: its pickle is only a reference. It is kept by name,
            # and a map may use it later.
            if wire.importable_name(fn):
                pickled = wire.Pickled(pickle.dumps(fn, 5))
                return _SubmittedFunction(name, durations, wire.UNPICKLE_ONCE, pickled, frozenset(),
                                          pickled.digest, True)
            # A lambda, a closure, a partial, ...: its pickle has all of it.
            pickled = self._pickles.get(fn, _ScriptSnapshot((), self._pickles))
        except Exception as error:
            culprit = _find_unpicklable(inner)
            if not culprit:
                raise
            words = (f"{name} cannot be sent: {culprit}, which it uses, cannot be pickled "
                     f"({wire.describe(error)})")
            raise _pickling_error_like(error, words) from error
        names = frozenset(pickled.used_globals | pickled.references)
        if is_for_map:      # slots keep a copy for each map: equal functions are not the same
            digest = pickled.digest + os.urandom(8)
            return _SubmittedFunction(
                name, durations, wire.UNPICKLE_ONCE, pickled, names, digest, True)
        return _SubmittedFunction(
            name, durations, wire.UNPICKLE_EACH_CALL, pickled, names, pickled.digest)

    def _take_snapshot(self, root: _SubmittedFunction,
                       names: Iterable[_ScriptName]) -> _ScriptSnapshot:
        """Return a snapshot of the script. Raises an error that names the function, too."""
        try:
            return _ScriptSnapshot(names, self._pickles)
        except _UnpicklableError as problem:
            words = f"{root.name} cannot be sent: {problem}"
            raise _pickling_error_like(problem.error, words) from problem.error

    def _with_needs(self, root: _SubmittedFunction, names: Iterable[_ScriptName]) -> _Function:
        """Return the function of a root, with all that it needs of the script as it is now.

        Arguments:
            names: what it needs besides those of the root.
        """
        script = self._take_snapshot(root, {*root.names, *names})
        place = root.pickled if root.how == wire.LOOK_UP_BY_NAME else None
        content = root.how, root.digest, place, frozenset(script.versions.items())
        function = self._by_content.get(content)
        if function is None:
            function = self._make_function(root, script.versions, script.definitions)
            function.script = script if root.is_for_map else None
            self._by_content[content] = function
        return function     # type: ignore[no-any-return]

    def _make_function(self, root: _SubmittedFunction, versions: Mapping[_ScriptName, bytes],
              definitions: Mapping[bytes, Any]) -> _Function:
        """Return a new function; see `wire.pack_function` for the arguments."""
        packed = wire.pack_function(root.how, root.pickled, versions, definitions)
        values = [vars(sys.modules[module]).get(name) for module, name in versions]
        kept = [value for value in values if isinstance(value, (type, types.FunctionType))]
        return _Function(next(self._idents), root.name, packed, root.durations, root=root,
                         needs=frozenset(versions), kept=kept)


# ──────────────────────────────────────────── readers ─────────────────────────────────────────────


# Shortages that may pass: of disk space, descriptors, processes or memory on this machine.
_SHORT_OF_RESOURCES = (
    errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


class _Reader:
    """The reader thread of a link: logs in, then acts on what the machine sends, until the end.

    Arguments:
        link: the number under which the supervisor finds the login and, once it is up, the channel.
        stuck: for the link's writer thread; see `_run_writer`.
    """

    def __init__(self, supervisor: _Supervisor, worker: _Worker, link: int,
                 stuck: SimpleQueue[Any]) -> None:
        self._supervisor = supervisor
        self._worker = worker
        self._link = link
        self._writer_queue = stuck
        self._login = supervisor.logins[link]
        # The reader thread alone uses these.
        self._questions: set[tuple[int, str]] = set()       # what slots have asked for, by kind
        self._copiers: list[threading.Thread] = []
        # Added to by copiers; if two add the same, it is logged twice.
        self._logged_refusals: set[str] = set()        # why packages do not follow
        # The answer to COPIED, by folder; a copier sets its result.
        self._copied: dict[str, Future[Any]] = {}
        self._copy_loss = _LossKind.UNUSABLE        # what a failure to store files is
        # By kind of message, what acts on it: on its identifier and its body.
        self._message_handlers: dict[int, Callable[[int, Any], None]] = {
            wire.OUTPUT: self._on_output, wire.DIED: self._on_slot_exit,
            wire.KILLED: self._on_attempt_killed,
            wire.RECALLED: self._on_attempts_recalled, wire.SLOT_COUNT: self._on_slot_count,
            wire.PONG: self._on_pong, wire.INITIALIZER_FAILED: self._on_initializer_failed,
            wire.COPY: self._on_copy, wire.COPIED: self._on_copied,
            wire.STORED: self._on_stored, wire.FIND_NAME: self._on_name,
            wire.MOVED: self._on_moved, wire.WAITING: self._on_waiting}
        finders = {wire.FIND_MODULE: self._find_module, wire.LIST_MODULES: self._find_children,
                   wire.FIND_METADATA: self._find_metadata}
        for kind, find in finders.items():
            self._message_handlers[kind] = functools.partial(self._on_question, kind, find)

    def _run_reader(self) -> None:
        """Run the reader thread: log in, read until the link ends, and report why it did."""
        supervisor, login = self._supervisor, self._login
        setup = supervisor.setup
        try:
            self._channel = login.open(setup.config, self._writer_queue, self._is_expected)
            supervisor.channels[self._link] = self._channel
            if setup.initializer:
                self._channel.send(
                    wire.message(wire.FUNCTION, wire.INITIALIZER_ID, 0, setup.initializer))
            if setup.cargo.keys:
                self._report(_Scheduler.on_greeting, login.cores)
                login.await_files(setup.cargo.size)
            else:
                self._on_stored(0, b"")
            self._read_until_closed()
        except _LinkLost as lost:
            self._on_link_lost(lost.loss)
        except BaseException as error:
            _log.exception("%s: unexpected error in the reader thread of %s", supervisor.title,
                           self._worker.record)
            self._on_link_lost(_Loss(_LossKind.LOST, wire.describe(error)))
        finally:
            if self._link in supervisor.channels:
                supervisor.channels.pop(self._link).close()
            self._writer_queue.put(None)
            login.end()
            for thread in self._copiers:
                thread.join()
            # In this order: the heartbeat ends when it finds no login after an event.
            del supervisor.logins[self._link]
            supervisor.events.put((supervisor.scheduler.on_link_ended, (self._link,), None))

    def _on_link_lost(self, loss: _Loss) -> None:
        """Report and log that the link ended, or could not be opened, against our will."""
        self._report(_Scheduler.on_login_stages, self._login.found)
        if not self._report(_Scheduler.on_link_lost, loss):
            return
        if loss.is_permanent:
            self._log(logging.ERROR, loss.cause)
            return
        at_first, later = (seconds / 60 for seconds in GIVE_UP_SECONDS)
        self._log(logging.WARNING, f"{loss.cause} (retrying; giving up after {at_first:g} min, "
                                   f"{later:g} min once a task has succeeded)")

    def _log(self, level: int, words: str) -> None:
        machine = str(self._worker.record).removesuffix(":")        # of this one, it is the name
        _log.log(level, "%s: %s: %s", self._supervisor.title, machine, words)

    def _report(self, report: Callable[..., Any], *operands: Any) -> Any:
        """Report something to the scheduler, with one of its methods; return its answer."""
        supervisor = self._supervisor
        return supervisor.decide(
            supervisor.scheduler.on_report, self._worker, self._link, report, *operands)

    def _read_until_closed(self) -> None:
        """Act on messages until we close the link. Raises _LinkLost if it ends otherwise."""
        while True:
            try:
                messages = self._channel.read()
                for kind, group in itertools.groupby(messages, operator.itemgetter(0)):
                    self._on_messages(kind, [*group])
            except (OSError, EOFError, wire.FrameError) as error:
                if self._channel.pipe is not _CLOSING:
                    raise self._login.diagnose(error) from None
                self._report(_Scheduler.on_link_closed)
                return

    def _is_expected(self, kind: int, ident: int) -> bool:
        """Return whether to set memory aside for a long message: it is the outcome of an attempt.

        The attempt must be on this machine; it may be one that is to be killed.
        """
        worker = self._worker
        is_outcome = kind in (wire.RESULT, wire.ERROR, wire.MISSING_MODULE, wire.INITIALIZER_FAILED)
        return is_outcome and (ident in worker.ahead or ident in worker.running)

    def _on_messages(self, kind: int, messages: list[_Message]) -> None:
        """Act on messages of one kind. Raises FrameError for what no shim sends."""
        # Three cases. Outcomes are reported together: so they go through the door once.
        if kind in (wire.RESULT, wire.ERROR):
            self._report(_Scheduler.on_results, messages)
            return
        # Likewise, with what is known here about the module that is missing there.
        if kind == wire.MISSING_MODULE:
            self._report(_Scheduler.on_results, [*map(self._find_missing_module, messages)])
            return
        # Everything else is acted on one by one.
        try:
            for _, ident, _, body in messages:
                self._message_handlers[kind](ident, body)
        except wire.DECODE_ERRORS as error:
            raise wire.FrameError(
                f"invalid message of kind {kind}: {wire.describe(error)}") from None

    def _find_missing_module(self, message: _Message) -> _Message:
        """Add to the body of a MISSING_MODULE message whether the module is here."""
        kind, ident, tag, body = message
        name, _, pickled = bytes(body[0]).partition(b"\0")
        module = _words_of(name)
        try:
            is_ours = bool(_find_spec(module))
        except Exception:
            is_ours = False
        return kind, ident, tag, (module, is_ours, (pickled,))

    def _on_output(self, number: int, body: bytes) -> None:
        printed = wire.frame(wire.OUTPUT_ACK, len(body))
        self._supervisor.scoreboard.show_output(
            self._worker.machine, number, body, lambda: self._channel.send([printed]))

    def _on_slot_exit(self, ident: int, body: bytes) -> None:
        self._channel.forget(ident)
        slot, status = wire.DEATH.unpack_from(body)
        words = _words_of(body[wire.DEATH.size:])
        self._report(_Scheduler.on_slot_exit, ident, slot, _describe_exit(status), words)

    def _on_attempt_killed(self, ident: int, body: bytes) -> None:
        self._channel.forget(ident)
        slot, _ = wire.DEATH.unpack(body)
        self._report(_Scheduler.on_attempt_killed, ident, slot)

    def _on_attempts_recalled(self, _ident: int, body: bytes) -> None:
        idents = [ident for ident, in wire.IDENTIFIER.iter_unpack(body)]
        self._report(_Scheduler.on_attempts_recalled, idents)

    def _on_pong(self, sent_at: int, _body: bytes) -> None:
        self._report(_Scheduler.on_round_trip, (monotonic_ns() - sent_at) * 1e-9)

    def _on_moved(self, _slot: int, body: bytes) -> None:
        """Note what has arrived of a copy. Over the link: nothing; reading it was sign enough."""
        if body:
            size, _, folder = body.decode().partition(" ")
            self._login.on_arrival(folder, int(size))

    def _on_waiting(self, slot: int, body: bytes) -> None:
        self._login.on_waiting(slot, body.decode())

    def _on_slot_count(self, count: int, body: bytes) -> None:
        if not 0 <= count <= self._worker.count:
            raise ValueError(f"{count} slots")
        words = _words_of(body)
        if not count:
            raise _LinkLost(f"it cannot start a process for tasks: {words} -- see the limits of "
                            "its account: `ulimit -a`", _LossKind.NO_SLOTS)
        self._log(logging.WARNING, f"only {count} slots: {words}")
        self._report(_Scheduler.on_slot_count, count)

    def _on_initializer_failed(self, _ident: int, body: Sequence[bytes]) -> None:
        words = _words_of(body[0])
        raise _LinkLost(f"the initializer raised {words}", _LossKind.INITIALIZER_FAILED)

    def _on_question(self, kind: int, find: Callable[[str], Any], ident: int, body: bytes) -> None:
        """Answer what a slot has asked for; with None where there is nothing."""
        name = self._check_question(kind, body)
        answer = None
        try:
            answer = find(name)
        except Exception:       # import hooks of the user may raise anything; the link goes on
            _log.exception("%s: unexpected error while looking for %s", self._supervisor.title,
                           name)
        self._send_answer(ident, answer)

    def _find_module(self, name: str) -> Any:
        """Return a module's source, or the distribution that it belongs to, or None."""
        setup = self._supervisor.setup
        source = _find_source(name) if setup.modules else None
        offered = source or setup.cargo.offer(name, self._login.facts)
        if offered:
            return offered
        remedy = _explain_refusal(name)
        return remedy and (wire.ModuleFinder.REFUSED, remedy, False)

    def _find_children(self, name: str) -> Any:
        """Return what `pkgutil` lists in a package of the project: `(name, is a package)` each."""
        is_ours = self._supervisor.setup.modules and _find_source(name)
        places = _find_spec(name).submodule_search_locations if is_ours else ()
        return [(child.name, child.ispkg) for child in pkgutil.iter_modules(places)]

    def _find_metadata(self, name: str) -> Any:
        """Return what is installed here as distribution `name`, if it may follow, or None."""
        setup = self._supervisor.setup
        return setup.cargo.describe(name, self._login.facts, setup.modules)

    def _on_name(self, ident: int, body: bytes) -> None:
        """Send the definition that the script has under a name now; nothing, if that is data."""
        name = body.decode()
        supervisor = self._supervisor
        packed: Any = None
        try:
            if supervisor.setup.modules:
                packed = supervisor.functions.get_definition(name)
        except Exception:       # it cannot be pickled
            _log.debug("%s: %s cannot be sent", supervisor.title, name, exc_info=True)
        if packed is None:
            packed = wire.PICKLED_NONE
        self._channel.send(wire.message(wire.ANSWER, ident, 0, packed))

    def _check_question(self, kind: int, body: bytes) -> str:
        """Return what is asked for. Raises ValueError if it was before: slots keep answers."""
        text = body.decode()
        if (kind, text) in self._questions:
            raise ValueError(f"{text!r} is asked for twice")
        self._questions.add((kind, text))
        return text

    def _send_answer(self, ident: int, answer: Any) -> None:
        self._channel.send(wire.message(wire.ANSWER, ident, 0, wire.pack(answer)))

    def _on_copy(self, ident: int, body: bytes) -> None:
        """Have what is asked for copied by a thread of its own; everything else goes on."""
        folder, entries = json.loads(self._check_question(wire.COPY, body))
        is_known = folder in self._copied
        if is_known or not _PLAIN_PATH.fullmatch(folder) or ".." in folder.split("/"):
            raise ValueError(f"a path like {folder!r}")
        names = wire.sum_up([name for _, name, _ in entries])
        self._login.copies[folder] = _Copy(f"{names} (packing)")
        self._copied[folder] = Future()
        self._copiers.append(self._supervisor.start_thread(
            f"{self._worker.machine} copier", self._answer_copy, ident, names, folder, entries))

    def _answer_copy(self, ident: int, names: str, folder: str,
                     entries: Sequence[tuple[str, str, str]]) -> None:
        """Answer how entries, `(key, name, own version)`, will travel; then copy them.

        If that cannot be, an answer is `(reason, whether it may soon be otherwise)`: the first, or
        the one to COPIED.
        """
        login, cargo = self._login, self._supervisor.setup.cargo
        send: Callable[[Any], None] = functools.partial(self._send_answer, ident)
        refusal, is_short = "", False
        try:
            files = [cargo.find(key, name, login.facts, login.over.is_set)
                     for key, name, _ in entries]
            size = sum(file.size for file in files)
            login.copies[folder] = _Copy(names, size)
            self._log(logging.INFO, f"gets {', '.join([file.name for file in files])} "
                                    f"({size / 1e6:.3g} MB)")
            send([(os.path.basename(one.source), one.digest, one.is_tar, one.size)
                  for one in files])
            send = self._copied[folder].set_result
            self._copy(files, folder)
        except _LinkLost as lost:
            self._copy_loss, refusal = lost.loss.kind, lost.loss.cause
        except Exception as error:
            refusal = str(error) or wire.describe(error)
            is_short = isinstance(error, OSError) and error.errno in _SHORT_OF_RESOURCES
            if is_short:
                self._copy_loss = _LossKind.LOST
                refusal = f"it cannot be sent from here, where the pool is: {error}"
        finally:
            del login.copies[folder]
        is_news = f"{names} {refusal}" not in self._logged_refusals and not login.over.is_set()
        if refusal and is_news and login.is_ready:
            self._logged_refusals.add(f"{names} {refusal}")     # other slots ask, too
            self._log(logging.WARNING,
                      f"{names} does not follow: {refusal}; it has {entries[0][2] or 'none'}")
        send((refusal, is_short) if refusal else None)

    def _on_copied(self, ident: int, body: bytes) -> None:
        """Answer, once it is so, that all has been copied to a folder; or why it cannot be."""
        copied = self._copied[self._check_question(wire.COPIED, body)]
        copied.add_done_callback(lambda done: self._send_answer(ident, done.result()))

    def _copy(self, files: Sequence[_File], folder: str) -> None:
        over = self._login.over
        for seconds in SCP_RETRY_SECONDS:
            try:
                with self._supervisor.scp_limit:
                    self._login.copy(files, folder)     # which fails if it is over
                return
            except _LinkLost as lost:
                may_work = lost.loss.kind in (_LossKind.TOO_MANY_LOGINS, _LossKind.LOST)
                if not may_work or not seconds or over.is_set():
                    raise
            over.wait(seconds * random.uniform(0.5, 1.5))

    def _on_stored(self, _ident: int, body: bytes) -> None:
        """Report that the machine is up and has its `files=`. Raises _LinkLost if it lacks them."""
        login = self._login
        if login.is_ready:
            raise ValueError("files are stored twice")
        if body:
            words = _words_of(body)
            raise _LinkLost(f"cannot store files: {words}", self._copy_loss)
        login.is_ready = True
        self._report(_Scheduler.on_link_up, login.cores)
        self._log(logging.INFO, f"is up: {login.cores} cores, python {login.found['python']}, "
                                f"{login.found['interpreter']}")
        self._channel.send([wire.frame(wire.PING, monotonic_ns())])


# ───────────────────────────────────────────── status ─────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class WorkerStatus:
    """One machine of a RemoteExecutorStatus. Times are in seconds.

    Attributes:
        worker: its record, as text.
        state: "up", "connecting", "waiting" for the next login, or "failed" for good.
        slots: how many it has.
        busy: how many of them run a task.
        ahead: tasks that wait there for a slot.
        done: tasks that were done there; `p50` and `p95` are percentiles of how long they ran.
        longest: how long its oldest task has been running; that calls `function`.
        backups: backups that were started there.
        died: slots that tasks killed.
        lost: links that failed in a row.
        retry_in: until its next login, if it waits for one.
        cause: why it is not up.
        found: what each stage of its login found.
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
    found: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def _cells(self) -> list[str]:
        """Return the cells of its row after the name, the most important first."""
        copying = _replace_unprintable(self.found.get("copying", ""))
        notes = [f"copying {copying}"] if copying else []
        if self.state == "up":
            busy = f"{self.busy}/{self.slots}"
            parts = [f"{busy:>5} slots", f"{self.done:>6} done", *notes]
            if self.longest:
                name = _replace_unprintable(self.function)
                parts.append(f"longest {_seconds(self.longest):>7} {name}")
            return parts + _format_percentiles(self, 7) + _format_counts(self, "backups", "died")
        if self.retry_in:
            notes.append(f"next try in {self.retry_in:.0f} s")
        text = ", ".join([self.state, *notes])
        if self.cause:
            cause = " ".join(_replace_unprintable(self.cause).split())
            text = f"{text}: {cause}"
        return [text]


@dataclasses.dataclass(frozen=True)
class RemoteExecutorStatus:
    """A snapshot of a RemoteExecutor. `str()` shows it as the scoreboard does.

    Attributes:
        title: the pool's.
        waiting, done, failed, cancelled: numbers of tasks, each item of a `map` counted as one.
            Those that raised have failed.
        running: attempts that have started; one may carry many items of a `map`.
        retried: attempts that replaced one that had started and was lost.
        backups: backups that were started.
        rate: tasks finished per second of late; 0 if too few were to measure it.
        left: seconds until all is done at that rate; None if it cannot be known.
        p50, p95: percentiles of the seconds that tasks ran.
        workers: the status of each machine.

    >>> print(RemoteExecutorStatus(
    ...     "farm", waiting=40, running=8, done=112, failed=1, rate=4, left=10, p50=1.24, p95=2.5,
    ...     workers=(WorkerStatus("8/me@bigbox", "up", 8, 8, 0, 112, 1.24, 2.5, 1.9, "simulate"),
    ...              WorkerStatus("lab2", "waiting", retry_in=12.0, cause="connection refused"))))
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
    _spans: ClassVar[Sequence[_Span]] = ()      # not a field: only `trace` can interpret them

    def __str__(self) -> str:
        return "\n".join(self._lay_out(1 << 20, 1 << 20))     # all of it

    def _repr_pretty_(self, printer: Any, is_in_cycle: bool) -> None:
        """Print it as text, for the plain form of a notebook."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        """Return it as a table, for notebooks."""
        import html
        body = ""
        for worker in self.workers:
            cells = [html.escape(part.strip()) for part in (worker.worker, *worker._cells())]
            body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        return f"<table><caption>{html.escape(self._summary)}</caption>{body}</table>"

    @property
    def is_busy(self) -> bool:
        """Whether tasks wait or run, or are still being killed."""
        return bool(self.running or self.waiting or any(one.busy for one in self.workers))

    @property
    def _summary(self) -> str:
        """The line above the machines."""
        parts = [f"{self.title}: {self.done} done"]
        parts += _format_counts(
            self, "failed", "cancelled", "retried", "backups", "running", "waiting")
        if self.rate:
            parts.append(f"{self.rate:.3g}/s" if self.rate < 1000 else f"{self.rate:.0f}/s")
        if self.left is not None:
            parts.append(f"{_seconds(self.left)} left")
        return ", ".join(parts + _format_percentiles(self, 0))

    def _lay_out(self, columns: int, rows: int) -> list[str]:
        """Lay it out in a rectangle: the head, then a line for each machine.

        A line ends with the last part that fits. Machines that do not fit are counted in the last
        line.
        """
        lines = _wrap_after_commas(self._summary, columns)
        names = [worker.worker.split()[0] for worker in self.workers]
        width = min(max(map(_width, names), default=0), max(8, columns // 3))
        room = rows - len(lines)
        shown = len(names)
        if shown > room:
            shown = max(0, room - 1)
        for name, worker in zip(names[:shown], self.workers):
            first, *others = worker._cells()
            label = _cut(name, width)
            line = f"  {label}{' ' * (width - _width(label))}  {first}"
            for part in others:
                if _width(line) + 2 + _width(part) > columns:
                    break
                line += f"  {part}"
            lines.append(line)
        hidden = [worker.state for worker in self.workers[shown:]]
        if hidden:
            up = hidden.count("up")
            lines.append(f"  ... and {up} more up, {len(hidden) - up} not up")
        return [_cut(line, columns) for line in lines[:rows]]

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes in a form that `json.dumps` takes; `workers` is a list of dicts."""
        return {**dataclasses.asdict(self), "workers": [*map(dataclasses.asdict, self.workers)]}

    def trace(self, path: _Path) -> None:
        """Write a trace of the last 32768 attempts, to open in ui.perfetto.dev or chrome://tracing.

        Each machine is a process, each slot a thread, and each attempt a span. An arrow leads from
        an attempt to the one that repeated or raced it. A span is as long as the slot says; it may
        be late by the time that its result took to arrive.

        Arguments:
            path: the file to write, JSON in Google's Trace Event Format.
        """
        with open(path, "w", encoding="utf-8") as file:
            events = _make_trace_events(self._spans)
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)


def _make_trace_events(spans: Sequence[_Span]) -> list[dict[str, Any]]:
    """Return spans as events of the Trace Event Format. Microseconds are its unit."""
    pids: dict[_Worker, int] = {}
    names: dict[tuple[str, int, int], str] = {}     # of processes and threads
    events: dict[int, dict[str, Any]] = {}          # by attempt
    next_starts: dict[tuple[int, int], float] = {}  # by process and thread
    for span in reversed(spans):
        pid = pids.setdefault(span.worker, len(pids) + 1)
        tid = span.slot
        name = f"slot {tid}"
        if tid == wire.NO_SLOT:     # which one is not known: the attempt has a row of its own
            tid = 1000 + len(names)
            name = "slot not known"
        names["process_name", pid, 0] = str(span.worker.record)
        names["thread_name", pid, tid] = name
        # `until` is when the result arrived, perhaps together with later ones of this slot. So an
        # attempt ended then, or when its slot began the next one.
        end = min(span.until, next_starts.get((pid, tid), math.inf))
        start = end - span.ran
        next_starts[pid, tid] = start
        events[span.ident] = {
            "ph": "X", "pid": pid, "tid": tid, "ts": 1e6 * start, "dur": 1e6 * span.ran,
            "name": span.name, "cat": span.outcome,
            "args": {"attempt": span.ident, "outcome": span.outcome}}
    heads = [{"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
             for (kind, pid, tid), name in names.items()]
    arrows = []
    for span in spans:
        if span.origin in events:
            arrow = {"bp": "e", "id": span.ident, "name": "again", "cat": "again"}
            arrows.append({**events[span.origin], **arrow, "ph": "s"})
            arrows.append({**events[span.ident], **arrow, "ph": "f"})
    return [*heads, *events.values(), *arrows]


def _take_status(title: str, scheduler: _Scheduler,
                 progress: Mapping[int, Mapping[str, str]]) -> RemoteExecutorStatus:
    """Return a snapshot; the supervisor's lock must be held.

    Arguments:
        progress: what each login found so far, by its link.
    """
    now = scheduler.now
    tally = scheduler.tally
    total = scheduler.histogram()
    p50 = total.percentile(50)
    rate = tally.rate(now)
    running = [one for worker in scheduler.workers for one in worker.running.values()]
    youngest = min((now - attempt.since for attempt in running), default=math.inf)
    started = scheduler.unfinished - scheduler.waiting
    # The difference is below 0 while a started chunk is unsettled and all its items are cancelled.
    waiting = max(scheduler.count_tasks() - started, 0)
    # An estimate: waiting tasks finish at the measured rate, and the youngest attempt runs for p50
    # in all. There is none if nothing waits and that attempt has already run for longer than p50.
    left = None
    if rate and scheduler.up and (waiting or youngest < p50):
        left = waiting / rate + max(0.0, p50 - youngest)
    spans = [*tally.spans, *(one.span(wire.NO_SLOT, "running", now) for one in running)]
    settled = tally.settled
    workers = tuple(_take_worker_status(worker, now, progress.get(worker.link, worker.found))
                    for worker in scheduler.workers)
    status = RemoteExecutorStatus(
        title, waiting, started, done=settled[wire.RESULT],
        failed=settled[wire.ERROR] + settled[_FAILED], cancelled=settled[_CANCELLED],
        retried=tally.retried, backups=tally.backups, rate=rate, left=left, p50=p50,
        p95=total.percentile(95), workers=workers)
    vars(status)["_spans"] = spans
    return status


def _take_worker_status(worker: _Worker, now: float, found: Mapping[str, str]) -> WorkerStatus:
    done = worker.durations
    longest, function = max(((now - attempt.since, attempt.name)
                             for attempt in worker.running.values()), default=(0.0, ""))
    return WorkerStatus(
        str(worker.record), worker.state.name.lower(), worker.count, len(worker.running),
        len(worker.ahead), done=done.count, p50=done.percentile(50), p95=done.percentile(95),
        longest=longest, function=function, backups=worker.backups, died=worker.died,
        lost=worker.failures, cause=worker.cause, found=found,
        retry_in=max(worker.retry_at - now, 0.0) if worker.state is _WAITING else 0.0)


def _format_counts(status: Any, *kinds: str) -> list[str]:
    """Return texts like "3 failed" for those attributes that are not 0."""
    return [f"{getattr(status, kind)} {kind}" for kind in kinds if getattr(status, kind)]


def _format_percentiles(status: Any, width: int) -> list[str]:
    """Return the median and the 95th percentile as texts, if anything was measured."""
    if not status.p95:
        return []
    return [f"p50 {_seconds(status.p50):>{width}}", f"p95 {_seconds(status.p95):>{width}}"]


def _wrap_after_commas(text: str, columns: int) -> list[str]:
    """Break a text into lines, only after commas."""
    # textwrap breaks at spaces, so NULs take the place of all others meanwhile. It counts
    # characters, so a wide one is followed by another.
    glued = text.replace(" ", "\0").replace(",\0", ", ")
    glued = "".join(char + "\1" * (_width(char) - 1) for char in glued)
    return [line.replace("\0", " ").replace("\1", "")
            for line in textwrap.wrap(glued, columns, subsequent_indent="  ")]


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes: East Asian characters take two."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def _cut(text: str, columns: int) -> str:
    """Return the longest prefix of a text that fits into `columns` columns."""
    while _width(text) > columns:
        text = text[:-1]
    return text


def _line_prefix(machine: str) -> str:
    """Return what lines about a machine begin with: its name, or "here" for `:`."""
    return "here" if machine == ":" else machine


def _replace_unprintable(text: str) -> str:
    """Return a text with a space for each character that is not printable."""
    return "".join(char if char.isprintable() else " " for char in text)


# ──────────────────────────────────────────── displays ────────────────────────────────────────────


class _Terminal:
    """Lines at the bottom of a terminal, above which everything else that is printed scrolls.

    They lie outside the terminal's scrolling region (DEC STD 070, DECSTBM). So nothing overwrites
    them, not even what child processes print, and they overwrite nothing that was printed.
    """

    # Make the whole screen the scrolling region again, at the same cursor; clear what is below.
    _RESET = "\x1b7\x1b[r\x1b8\x1b[J"
    # Waits until its input ends, because this process has ended, or until Ctrl-Z has stopped this
    # process; then resets the terminal. Ctrl-C is not meant for it.
    _RESTORER = ("trap '' INT QUIT TTOU TSTP; cat <&3 >/dev/null 3<&- & "
                 "trap : TSTP TERM HUP; wait; printf %s \"$1\"")
    # Whoever holds it draws, so that no two pools overwrite each other's lines.
    _display_lock = threading.Lock()

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # See https://no-color.org.
        self._summary_format = "%s" if os.environ.get("NO_COLOR") else "\x1b[1m%s\x1b[m"
        # From here on, the scoreboard thread alone reads and writes these.
        self._drawn_shape = 0, 0, 0           # columns, rows, and how many of the rows are ours
        self._restorer: Any = None    # a process, while we draw; see `_acquire`

    def draw(self, status: RemoteExecutorStatus, cell: int = 0) -> None:
        """Show a status in place of the last one.

        Show nothing in the background, nor while another pool shows its own.
        """
        if self._restorer and self._restorer.poll() is not None:    # after Ctrl-Z
            self.clear(status)
        if not self.is_in_foreground() or self._restorer is None and not self._acquire():
            return
        columns, rows = os.get_terminal_size(self._fd)
        lines = status._lay_out(columns - 1, rows // 2) if columns > 10 else []
        count = len(lines)
        text = ""
        if self._drawn_shape != (columns, rows, count):
            self._drawn_shape = columns, rows, count
            # Scroll until there is room below the cursor, and go back up.
            text = self._RESET + "\x1bD" * count
            if count:
                text += f"\x1b[{count}A"
        if lines:
            # Set the region each time, because a program may have reset the terminal.
            text += f"\x1b7\x1b[1;{rows - count}r\x1b8"
            lines[0] = self._summary_format % lines[0]
        for row, line in enumerate(lines, rows - count + 1):
            text += f"\x1b7\x1b[{row};1H\x1b[K{line}\x1b8"
        self._write(text)

    def clear(self, _status: RemoteExecutorStatus) -> None:
        """Clear the lines, and let the whole screen scroll again."""
        if self._restorer:
            if self.is_in_foreground():
                self._write(self._RESET)
            self._restorer.kill()
            self._restorer.communicate()
            self._restorer = None
            self._drawn_shape = 0, 0, 0
            self._display_lock.release()

    def _acquire(self) -> bool:
        """Return whether we may draw; if so, start a process that resets the terminal after us.

        If this process is killed, the input of that one ends.
        """
        if not self._display_lock.acquire(blocking=False):
            return False
        try:
            # In our own group, for Ctrl-Z to reach it.
            self._restorer = _spawn(
                ["/bin/sh", "-c", f"exec 3<&0; {self._RESTORER}", "sh", self._RESET],
                start_new_session=False, stdin=subprocess.PIPE, stdout=self._fd,
                stderr=subprocess.DEVNULL)
        except OSError:
            self._display_lock.release()
            raise
        return True

    def is_in_foreground(self) -> bool:
        """Return whether the terminal is ours now: another job, such as an editor, may have it."""
        try:
            return os.tcgetpgrp(self._fd) in (0, os.getpgrp())      # 0: in another container
        except OSError:     # it does not control jobs
            return True

    def _write(self, text: str) -> None:
        wire.write_all(self._fd, [text.encode()])


class _Notebook:
    """The status in the output of a cell of a Jupyter notebook, drawn once a second at most.

    The scoreboard thread alone reads and writes its attributes.
    """

    def __init__(self) -> None:
        self._output: Any = None        # IPython's handle of what is shown; None if nothing is
        self._output_cell = 0                  # the cell that it is shown in
        self._drawn_at = 0.0               # when it was drawn last

    @staticmethod
    def find_shell() -> Any:
        """Return IPython's shell if this process is a Jupyter kernel; otherwise None."""
        find = getattr(sys.modules.get("IPython"), "get_ipython", None)
        shell = find() if find else None
        return shell if hasattr(shell, "kernel") else None

    @staticmethod
    def watch_cells(supervisor: _Supervisor) -> None:
        """Cancel what a cell has submitted, and nothing else, when that cell is interrupted."""
        shell = _Notebook.find_shell()
        if not shell:
            return
        board = supervisor.scoreboard
        cells = itertools.count(1)
        board.running_cell = next(cells)        # in which the pool is made
        running: list[Any] = []         # cells that have begun: `run_cell` runs one in another

        def begin(info: Any) -> None:
            if not running:
                board.running_cell = next(cells)
            running.append(info)

        def end(result: Any) -> None:
            while running and running.pop() is not result.info:
                pass        # this one never ended
            if supervisor.all_ended.is_set():
                shell.events.unregister("pre_run_cell", begin)
                shell.events.unregister("post_run_cell", end)
            elif not running:
                # A `finally` may have raised something else in place of the interrupt.
                error = result.error_in_exec
                while error and not _is_interrupt(error):
                    error = error.__cause__ or error.__context__
                if error:
                    supervisor.decide(supervisor.scheduler.cancel_cell, board.running_cell)
                board.running_cell = 0
                if not supervisor.scheduler.unfinished:
                    board.end_display(_Notebook._await_kills(supervisor))
                    # What is sent after a cell has ended is lost to nbconvert, which executes
                    # notebooks without a browser.
                    board.wait_until_shown()

        shell.events.register("pre_run_cell", begin)
        shell.events.register("post_run_cell", end)

    @staticmethod
    def _await_kills(supervisor: _Supervisor) -> RemoteExecutorStatus:
        """Wait until what was cancelled is killed, or CLOSE_SECONDS; return the status then."""
        deadline = monotonic() + CLOSE_SECONDS
        status: RemoteExecutorStatus = supervisor.status()
        while status.is_busy and monotonic() < deadline:
            supervisor.all_ended.wait(0.05)
            status = supervisor.status()
        return status

    def draw(self, status: RemoteExecutorStatus, cell: int) -> None:
        """Show a status in place of the last one, or below the cell, if that is another one."""
        if cell != self._output_cell:
            self._output_cell = cell
            self._output = None
        if self._output and monotonic() - self._drawn_at < 1.0:
            return
        display: Any = importlib.import_module("IPython.display").display
        self._drawn_at = monotonic()
        if self._output:
            self._output.update(status)
        else:
            self._output = display(status, display_id=True)

    def clear(self, status: RemoteExecutorStatus) -> None:
        """Leave a last status where it stands; the next one is shown in a new place."""
        if self._output:
            self._output.update(status)
            self._output = None


class _Scoreboard:
    """Print what tasks print, and show the status: on a terminal, in a notebook, and in the log.

    One thread writes, so that lines stay whole. If it is held up, by a terminal that was stopped
    (Ctrl-S) or by a slow `output` function, only tasks that print are held up with it: a machine
    sends at most a megabyte before it is told that this was printed.
    """

    def __init__(self, show: bool | None, output: bool | Callable[[str, str, str], object]) -> None:
        self._show_status = show
        self._output = output
        self._terminal: _Terminal | _Notebook | None = None
        if show is not False and _Notebook.find_shell():
            self._terminal = _Notebook()
        may_draw = show is not False and os.environ.get("TERM", "") not in ("", "dumb")
        with contextlib.suppress(OSError, ValueError, AttributeError):  # it is closed, or no file
            if may_draw and sys.stderr.isatty():
                self._terminal = _Terminal(sys.stderr.fileno())
        self.quiet = False              # set by `shutdown`, in any thread: show no more status
        # Cells of a notebook, counted since the pool was made. The main thread, which runs them,
        # writes these; the heartbeat reads the second.
        self.running_cell = 0                   # the one that is running, or 0
        self.status_cell = 0                # the last one that submitted; the status is shown there
        # Read and written by the heartbeat alone.
        self._heartbeat_count = 0
        self._line_printed_at = monotonic()     # the last status line, where there is no terminal
        self._has_printed = False       # whether one was
        # What the scoreboard thread is to call: functions, each with its arguments; None ends it.
        self._queue: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._calls_done = 0                  # calls that it has made; others only read this
        self.thread = threading.Thread(target=self._run_scoreboard, name="scoreboard", daemon=True)
        self.thread.start()             # now, because at exit it may be too late

    def show_output(self, machine: str, number: int, data: bytes,
                    then: Callable[[], object]) -> None:
        """Have lines printed that a task has printed; afterwards, have `then` called.

        Arguments:
            number: 1 if it printed to stdout, 2 if to stderr.
            data: whole lines.
        """
        text = re.sub(r"\r*\n|\r", "\n", data.decode("utf-8", "replace"))
        lines = text.removesuffix("\n").split("\n")
        stream = "stdout" if number == 1 else "stderr"
        if callable(self._output):
            for line in lines:
                self._queue.put((self._output, machine, stream, line))
        else:
            self._queue.put((self._print_lines, machine, stream, lines))
        self._queue.put((then,))

    def tick(self, take_status: Callable[[], RemoteExecutorStatus], is_beat: bool) -> None:
        """Show the status while tasks run, and log it every REPORT_HEARTBEATS heartbeats.

        The heartbeat thread calls this and must not wait. So while something else has yet to be
        printed, nothing is shown; the next tick will do.
        """
        if is_beat:
            self._heartbeat_count += 1
        is_report_due = is_beat and self._heartbeat_count % REPORT_HEARTBEATS == 0
        age = monotonic() - self._line_printed_at
        is_line_due = self._show_status is not False and age > STATUS_LINE_SECONDS
        if self.quiet or not (is_report_due or is_line_due or self._terminal):
            return
        status = take_status()
        is_busy = status.is_busy
        if is_report_due and is_busy and not self._show_status:
            _log.info("%s", status)
        if not self._queue.empty():
            return
        if self._terminal and is_busy:
            self._queue.put((self._terminal.draw, status, self.status_cell))
        elif self._terminal:
            self.end_display(status)
        elif not is_busy:
            self._line_printed_at = monotonic()
        elif self._show_status and is_report_due:
            self._queue.put((self._write, "stderr", f"{status}\n"))
        elif is_line_due:       # perhaps into a file, or read by nobody: so not the whole status
            self._line_printed_at = monotonic()
            self._has_printed = True
            self._queue.put((self._write, "stderr", f"{status._summary}\n"))

    def end_display(self, status: RemoteExecutorStatus) -> None:
        """End the display, on a terminal by clearing it, in a notebook with this status."""
        if self._terminal:
            self._queue.put((self._terminal.clear, status))

    def wait_until_shown(self) -> None:
        """Wait until all that was queued is shown, or CLOSE_SECONDS if something holds it up."""
        shown = threading.Event()
        self._queue.put((shown.set,))
        shown.wait(CLOSE_SECONDS)

    def finish(self, status: RemoteExecutorStatus, histogram: Histogram) -> None:
        """Print a summary and end the thread."""
        self.end_display(status)
        if not self.quiet and status.done + status.failed:
            is_hidden = (isinstance(self._terminal, _Terminal)
                         and not self._terminal.is_in_foreground())
            if (self._terminal or self._show_status or self._has_printed) and not is_hidden:
                counted = f"{histogram}\n" if status.done else ""
                self._queue.put((self._write, "stderr", f"{status._summary}\n{counted}"))
            else:
                _log.info("%s", status._summary)
        self._queue.put(None)
        # Wait as long as it makes progress.
        done = -1
        while self.thread.is_alive() and done < self._calls_done:
            done = self._calls_done
            self.thread.join(CLOSE_SECONDS)

    def _run_scoreboard(self) -> None:
        """Run the scoreboard thread: make the calls that are queued, whatever one raises."""
        for function, *arguments in iter(self._queue.get, None):
            try:
                function(*arguments)
            except BaseException as error:      # SystemExit too
                if function is self._output:
                    _log.exception("the function that output= names raised")
                # Otherwise the user closed or replaced the stream, or its disk is full.
                elif not isinstance(error, (OSError, ValueError, AttributeError)):
                    _log.exception("what tasks print cannot be shown")
            self._calls_done += 1

    def _print_lines(self, machine: str, stream: str, lines: Iterable[str]) -> None:
        """Print lines of a machine, on a terminal without what could change its settings."""
        file = getattr(sys, stream)
        if hasattr(file, "isatty") and file.isatty():
            lines = [_CONTROLS.sub(lambda match: match[1] or "", line) for line in lines]
        self._write(stream, "".join(f"{_line_prefix(machine)}: {line}\n" for line in lines))

    def _write(self, stream: str, text: str) -> None:
        file = getattr(sys, stream)
        if file is not None:
            encoding = getattr(file, "encoding", None) or "utf-8"
            file.write(text.encode(encoding, "backslashreplace").decode(encoding))
            file.flush()


# ─────────────────────────────────────────── supervisor ───────────────────────────────────────────

# An answer, or a _DecisionFailure; and futures whose callbacks are to be called.
_Outcome = tuple[Any, list["_RemoteFuture"]]
# A decision, its operands, and a reply: a function that is called with the outcome once the lock is
# released. Without a reply, the thread that goes through the door runs the futures' callbacks.
_Event = tuple[Callable[..., Any], tuple[Any, ...], Callable[[_Outcome], object] | None]
_BELONGS_TO_PARENT = "this executor belongs to the parent process; make another one after a fork"


def _decide_nothing() -> None:
    """Decide nothing: the event only wakes the heartbeat, or has it call the reply."""


_WAKE_UP: _Event = _decide_nothing, (), None


@dataclasses.dataclass
class _DecisionFailure:
    """The answer to a decision that raised; `decide` raises the error in the thread that asked."""

    error: Exception


class _Supervisor:
    """Own all that a pool consists of: the lock, the scheduler behind it, the links, the threads.

    The threads of a pool refer to this object, not to the `RemoteExecutor`. So a `RemoteExecutor`
    that nobody refers to any more is collected, and its finalizer closes the pool.

    Arguments:
        title: of the pool, for logs and names of threads.
        setup: what machines are sent beside the calls.
        heartbeat_seconds: between two pings.
        board: where output and status are shown.
    """

    def __init__(self, scheduler: _Scheduler, title: str, ssh_options: list[str],
                 setup: _PoolSetup, heartbeat_seconds: float, board: _Scoreboard) -> None:
        # These stay as they are.
        self.title = title
        self.ssh_options = ssh_options
        self.heartbeat_seconds = heartbeat_seconds
        self.pid = os.getpid()
        self._main_thread = threading.main_thread().ident
        # The one lock. It guards the scheduler, and the order in which decisions are put into the
        # queues of channels. It is reentrant because the garbage collector runs finalizers in any
        # thread, even in one that has the lock, and they cancel and submit.
        self._lock: Any = threading.RLock()
        self.scheduler = scheduler          # some of its methods need no lock, and say so
        # Each of these can be used by several threads at once.
        self.setup = setup
        self.scoreboard = board
        self.functions = _FunctionCache()
        self.events: SimpleQueue[_Event] = SimpleQueue()    # for the heartbeat, from any thread
        self.all_ended = threading.Event()      # all is over; set by the heartbeat
        self.slots_are_known = threading.Event()    # or somebody has waited for that in vain
        self.scp_limit = threading.Semaphore(LOGIN_WINDOW[0])       # each scp is a login
        # By link. `_open_link` adds a login and its reader removes it; the reader adds and removes
        # its channel. Other threads look, and iterate over a copy.
        self.logins: dict[int, _Login] = {}         # from its start to its end
        self.channels: dict[int, _Channel] = {}     # while it works
        self._threads: Any = weakref.WeakSet()      # added to by the threads that start others
        self._suspended_seconds = 0.0            # that this process was suspended; by the heartbeat
        self._awake_at = math.inf               # time of day of its last turn; by the heartbeat
        # What carries out each action; it returns a future if that has callbacks to run. All other
        # actions are for channels.
        self._performers: dict[_Action, Callable[[Any, Any], _RemoteFuture | None]] = {
            _CONNECT: self._open_link, _SETTLE: self._settle_future, _LEAVE: self._close_link,
            _FINISH: self._wake_heartbeat, _WARN: self._log_warning}
        self.start_thread("heartbeat", self._run_heartbeat)

    def start_thread(self, name: str, target: Callable[..., None], *args: Any) -> threading.Thread:
        """Start a thread that belongs to this pool. Raises RuntimeError if there are too many."""
        thread = threading.Thread(None, target, f"{self.title} {name}", args, daemon=True)
        self._threads.add(thread)
        thread.start()
        return thread

    # The door

    def decide(self, decision: Callable[..., Any], *operands: Any) -> Any:
        """Have the scheduler decide, carry out what it decided, and return its answer.

        Callbacks of futures run in the thread that asked, as in the standard library.

        Raises what the decision raises, and RuntimeError in a forked child. In a finalizer that
        interrupts a thread with the lock, it leaves the decision to the heartbeat and returns None.
        """
        if os.getpid() != self.pid:
            raise RuntimeError(_BELONGS_TO_PARENT)
        if self._lock._is_owned():
            self.events.put((decision, operands, None))
            return None
        outcomes: SimpleQueue[_Outcome] = SimpleQueue()
        try:
            self._route_event((decision, operands, outcomes.put))
            answer, futures = self._await_outcome(outcomes)
        except BaseException:       # Ctrl-C: the heartbeat runs the callbacks
            def call_back(_outcome: _Outcome) -> None:
                if not outcomes.empty():
                    self._call_back(outcomes.get()[1])

            # The heartbeat handles this event after that of the decision. By then `outcomes` has
            # the outcome, unless Ctrl-C came just after this thread took it out.
            self.events.put((_decide_nothing, (), call_back))
            raise
        if not self.slots_are_known.is_set() and self.scheduler.is_counted():
            self.slots_are_known.set()
        self._call_back(futures)
        if isinstance(answer, _DecisionFailure):
            raise answer.error
        return answer

    def _await_outcome(self, outcomes: SimpleQueue[_Outcome]) -> _Outcome:
        """Wait for the outcome of an event that `_route_event` was given."""
        while True:
            # A race: the heartbeat ends just before this event is put. Then nobody else passes it.
            if self.all_ended.is_set():
                self._process_events(self._wait_for_events(0))
            try:
                return outcomes.get(timeout=1.0)
            except Empty:
                pass

    def _route_event(self, event: _Event) -> None:
        """Go through the door with an event, or have the heartbeat do it.

        Two cases in which the heartbeat does. Ctrl-C may interrupt the main thread between any two
        bytecodes, and would leave a decision half made or half carried out. And a thread that has
        the lock is in a finalizer, in the middle of another decision.
        """
        if threading.get_ident() == self._main_thread or self._lock._is_owned():
            self.events.put(event)
        else:
            self._process_events([event])

    def _process_events(self, events: Iterable[_Event]) -> None:
        """Go through the door: decide under the lock; without it, carry out and reply.

        Nothing that fails on the way keeps the rest from being carried out.
        """
        with self._lock:
            outcomes, channels = self._make_decisions(events)
        for channel in channels:
            try:
                channel.pump()
            except Exception:
                _log.exception("%s: unexpected error while writing to a link", self.title)
        for reply, answer, actions in outcomes:
            futures: list[_RemoteFuture] = []
            for verb, target, operand in actions:
                # A future must be settled: somebody may wait for it without a timeout.
                tries = 3 if verb is _SETTLE else 1
                for _ in range(tries):
                    try:
                        future = self._performers[verb](target, operand)
                        if future is not None:
                            futures.append(future)
                        break
                    except BaseException:
                        _log.exception("%s: unexpected error while performing %s", self.title,
                                       verb.name)
            if reply:
                reply((answer, futures))
            else:
                self._call_back(futures)
            for action, *operands in actions if _log.isEnabledFor(logging.DEBUG) else ():
                _log.debug("%s: %s %s", self.title, action.name, _summarize(tuple(operands)))

    def _make_decisions(self, events: Iterable[_Event]) -> tuple[list[Any], dict[_Channel, None]]:
        """Decide, with the lock, one event after the other, and queue what is for channels.

        Return what is left to do without the lock: for each event, the reply, the answer and the
        actions that are not for channels; and the channels that have something to write.
        """
        outcomes: list[Any] = []
        channels: dict[_Channel, None] = {}
        self.scheduler.now = monotonic() - self._suspended_seconds
        # A reader may find its link ended before the heartbeat finds that time has passed. The time
        # of day goes on even while the whole machine is suspended.
        if time() > self._awake_at + 1.0 + TICK_SECONDS:
            self.scheduler.on_suspension()
        for decision, operands, reply in events:
            try:
                answer = decision(*operands)
            except Exception as error:
                answer = _DecisionFailure(error)
            actions = []
            for action in self.scheduler.take_actions():
                verb, target, operand = action
                # Three cases. This thread performs it, once it has released the lock.
                if verb in self._performers:
                    actions.append(action)
                    continue
                # A channel turns it into frames. Or the link has just ended: nothing is to be done.
                channel = self.channels.get(target)
                if channel is not None:
                    channel.queue.append((verb, operand))
                    channels[channel] = None
            if actions or reply:
                outcomes.append((reply, answer, actions))
        return outcomes, channels

    def _call_back(self, futures: Iterable[_RemoteFuture]) -> None:
        """Run the callbacks of futures; if one ends this, the heartbeat runs the others."""
        left = deque(futures)
        try:
            while left:
                left.popleft()._invoke_callbacks()
        except BaseException:       # the standard library has logged those that are Exceptions
            self.events.put((_decide_nothing, (), lambda _: self._call_back(left)))
            if threading.get_ident() == self._main_thread:
                raise
            _log.exception("%s: a callback of a future raised", self.title)

    def _open_link(self, worker: _Worker, link: int) -> None:
        """Perform CONNECT: start the threads of a link, whose reader logs in."""
        stuck: SimpleQueue[Any] = SimpleQueue()
        try:
            self.logins[link] = _Login(worker.record, self.ssh_options, self.setup.cargo)
            reader = _Reader(self, worker, link, stuck)
            self.start_thread(f"{worker.machine} writer", _run_writer, stuck)
            self.start_thread(f"{worker.machine} reader", reader._run_reader)
        except (OSError, RuntimeError) as error:
            # Too many files or threads; and Python 3.12.0 and 3.12.1 start no thread at exit.
            stuck.put(None)
            if self.logins.pop(link, None):
                self.events.put((self.scheduler.on_link_ended, (link,), None))
            loss = _Loss(_LossKind.LOST, wire.describe(error))
            self.decide(self.scheduler.on_report, worker, link, _Scheduler.on_link_lost, loss)

    def _close_link(self, link: int, _operand: Any = ()) -> None:
        """Perform LEAVE: close a link, or give up its login."""
        # A race: the reader thread may remove them, once the link has ended by itself.
        channel, login = self.channels.get(link), self.logins.get(link)
        if channel:
            channel.close()
        elif login:
            login.abort("the link is no longer needed")

    def _wake_heartbeat(self, _target: Any, _operand: Any) -> None:
        """Perform FINISH: have the heartbeat find out that the scheduler is over."""
        self.events.put(_WAKE_UP)

    def _log_warning(self, _target: Any, words: str) -> None:
        """Perform WARN."""
        _log.warning("%s: %s", self.title, words)

    def _settle_future(self, bundle: _Bundle, ending: tuple[int, Any]) -> _RemoteFuture | None:
        """Perform SETTLE: resolve a bundle's future. May be called again if it raised.

        Return the future if it has callbacks to run.
        """
        kind, value = ending
        try:
            if kind == wire.RESULT:
                value = wire.unpack(value)
            elif kind == wire.ERROR:
                value = _rebuild_exception(bundle.function.name, value)
        except BaseException as error:
            kind = _FAILED
            value = _unpickling_error(bundle.function.name, error)
        future: _RemoteFuture = bundle.future
        has_callbacks = future.settle(kind, value)
        bundle.packed = b""
        bundle.future = None
        return future if has_callbacks else None

    # The heartbeat

    def _run_heartbeat(self) -> None:
        """Run the heartbeat thread, until the scheduler is over and every link has ended."""
        period = min(TICK_SECONDS, max(0.1, self.heartbeat_seconds))
        tick_at = beat_at = 0.0
        last = monotonic()
        killed_at = math.inf
        is_over = False
        leaving: dict[int, float] = {}      # by link: when to warn that it takes long to end
        while self.logins or not is_over:
            events = self._wait_for_events(tick_at - last)
            now = monotonic()
            # This process was suspended: the time has passed for nobody else.
            if now - last > 1.0 + period:
                self._suspended_seconds += now - last
            last = now
            try:
                self._process_events(events)
                self._awake_at = time()
                if self.scheduler.is_over():
                    is_over = True
                    self._close_links(leaving, now)
                    if self.scheduler.mode is _KILLING:
                        killed_at = min(killed_at, now)
                if now >= tick_at:
                    tick_at = now + period
                    is_beat = now >= beat_at
                    if is_beat:
                        beat_at = now + self.heartbeat_seconds
                    self._tick(now, is_beat, is_late=now - killed_at > CLOSE_SECONDS)
            except Exception:       # without a heartbeat, nothing would ever end
                _log.exception("%s: unexpected error in the heartbeat thread, which goes on",
                               self.title)
        for finish in (self.setup.cargo.cleanup, self._finish_scoreboard):
            try:
                finish()
            except Exception:       # `shutdown` waits for what comes after this
                _log.exception("%s: unexpected error after all tasks ended", self.title)
        self.all_ended.set()
        while not self.events.empty():
            self._process_events(self._wait_for_events(0))

    def _finish_scoreboard(self) -> None:
        self.scoreboard.finish(self.status(), self.scheduler.histogram())

    def _tick(self, now: float, is_beat: bool, is_late: bool) -> None:
        """Look after the links, have the scheduler look at the clock, and show how things stand.

        Arguments:
            is_beat: whether pings are due.
            is_late: whether links still exist long after everything was to be killed.
        """
        for link, login in [*self.logins.items()]:
            channel = self.channels.get(link)
            login.limit()
            if is_late:
                login.abort("the link did not end after its tasks were killed")
            elif not login.is_ready:
                login.check(now)
            if channel and is_beat and not channel.beat():
                login.abort(f"no answer to {MISSED_HEARTBEATS} heartbeats")
        held_up = [link for link, channel in [*self.channels.items()] if channel.was_reader_busy()]
        held_up += [link for link, login in [*self.logins.items()] if login.is_copying(now)]
        self.decide(self.scheduler.tick, held_up)
        self.scoreboard.tick(self.status, is_beat)

    def _close_links(self, leaving: dict[int, float], now: float) -> None:
        """Leave all machines. May be called again, until no link is left.

        Arguments:
            leaving: for this method to keep, from one call to the next.
        """
        for link, login in [*self.logins.items()]:
            channel = self.channels.get(link)
            # Four cases. It is still being opened, or we kill: at once.
            if channel is None or not login.is_ready or self.scheduler.mode is _KILLING:
                self._close_link(link)
            # It is up: each slot ends once the threads that its tasks started have ended.
            elif link not in leaving:
                leaving[link] = now + CLOSE_SECONDS
                channel.quit()
            # They take long. This is said once.
            elif now > leaving[link]:
                leaving[link] = math.inf
                _log.warning("%s: %s: still waiting for threads that tasks started there; press "
                             "Ctrl-C to kill them", self.title, login.record)

    def _wait_for_events(self, patience: float) -> list[_Event]:
        """Return the events that are queued; none if there is none for `patience` seconds."""
        events = []
        try:
            events.append(self.events.get(timeout=max(patience, 0)))
            while len(events) < 1000:
                events.append(self.events.get_nowait())
        except Empty:
            pass
        return events

    # What callers want

    def submit(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any],
               owner: _ChunkedMap | None = None) -> Future[Any]:
        """Queue a call, and return its future.

        Arguments:
            fn: a function, or a _Function.
            owner: the map that these are items of; if it has begun, a pool that is shutting down
                still takes them.

        Raises RuntimeError if the pool is closed or the parent's, NoWorkersError, or what pickling
        raises.
        """
        if os.getpid() != self.pid:
            raise RuntimeError(_BELONGS_TO_PARENT)
        self.scheduler.check_open(owner)
        # A call belongs to the notebook's cell that is running if the main thread submits it. Other
        # threads outlive the cell that started them.
        cell = 0
        if self.scoreboard.running_cell and threading.get_ident() == self._main_thread:
            cell = self.scoreboard.running_cell
            self.scoreboard.status_cell = cell
        is_pickled = isinstance(fn, _Function)
        try:
            packed, names = wire.pack_call(args, kwargs)
        except Exception as error:
            name = fn.name if is_pickled else _name_of_function(fn)
            blamed = _blame_arguments(name, args, kwargs, error)
            raise blamed from blamed.__cause__
        function = (self.functions.extend(fn, names) if is_pickled
                    else self.functions.get(fn, names))
        bundle = _Bundle(function, packed, owner=owner, cell=cell)
        future = bundle.future = _RemoteFuture(self, bundle)
        self._route_event((self.scheduler.submit, (bundle,), None))
        return future

    def submit_item(self, function: _Function, owner: _ChunkedMap | None,
                    *args: Any) -> Future[Any]:
        """Have the function of a map called, which may go on after a shutdown has begun."""
        return self.submit(function, args, {}, owner)

    def forget_function(self, function: _Function) -> None:
        """Have all machines forget a map's function, if it is large, and its variants."""
        if os.getpid() != self.pid:
            return
        for variant in (function, *function.variants.values()):
            if _size(variant.packed) > wire.MAX_FRAME:
                for channel in [*self.channels.values()]:
                    channel.drop(variant)

    def cancel(self, bundle: _Bundle) -> bool:
        """Cancel a call. Return whether it had no outcome yet."""
        if os.getpid() != self.pid:
            return False
        return bool(self.decide(self.scheduler.cancel, bundle))

    def shutdown(self, wait: bool, cancel_futures: bool, quiet: bool = False,
                 timeout: float | None = None) -> bool:
        """Accept no more calls, and end when all are done; see `BaseExecutor.shutdown`."""
        if os.getpid() != self.pid:
            return False
        self.scoreboard.quiet = self.scoreboard.quiet or quiet
        self.decide(self.scheduler.close, cancel_futures)
        if not wait or not self._may_wait():
            return False
        is_done = True
        try:
            if not self.all_ended.wait(timeout):
                is_done = self.decide(self.scheduler.kill_all)
                self.all_ended.wait()
        except KeyboardInterrupt:       # the user does not want to wait for results
            self.decide(self.scheduler.kill_all)
            self.all_ended.wait()
            raise
        return is_done

    def _may_wait(self) -> bool:
        """Return whether this thread may wait for what the threads of the pool do.

        Two cases in which it may not. A thread of the pool, in a callback, would wait for itself. A
        thread that has the lock, in a finalizer, would keep all others waiting.
        """
        thread = threading.current_thread()
        is_ours = thread in self._threads or thread is self.scoreboard.thread
        return not is_ours and not self._lock._is_owned()

    def await_slot_count(self) -> None:
        """Wait until each machine has reported its slots or failed, or for SLOT_COUNT_SECONDS.

        Later calls do not wait, until another machine is added.
        """
        if not self.slots_are_known.is_set() and os.getpid() == self.pid and self._may_wait():
            self.slots_are_known.wait(SLOT_COUNT_SECONDS)
            self.slots_are_known.set()

    def status(self) -> Any:
        """Return a RemoteExecutorStatus, as of now."""
        stages = {link: login.progress() for link, login in [*self.logins.items()]}
        return self.decide(_take_status, self.title, self.scheduler, stages)

    def close_in_child(self) -> None:
        """In a forked child, close its copies of the pipes: the links are the parent's."""
        for login in self.logins.values():
            login.close_in_child()
        for channel in self.channels.values():
            channel.close_in_child()


def _run_writer(stuck: SimpleQueue[Any]) -> None:
    """Run the writer thread of a link: write what did not fit into the pipe at once.

    Arguments:
        stuck: the channel is put into it when there is something to write; None ends the thread.
    """
    for channel in iter(stuck.get, None):
        channel.resume_writing()


# By identity: the supervisors of all pools of this process.
_supervisors: weakref.WeakValueDictionary[int, _Supervisor] = weakref.WeakValueDictionary()


@functools.cache
def _install_process_hooks() -> None:
    """Have all pools shut down at exit, and abandoned in forked children. Does so once."""
    def for_all(method: Callable[..., object], *arguments: bool) -> None:
        for supervisor in _list_alive(_supervisors):
            method(supervisor, *arguments)

    # RuntimeError: Python is already exiting. Whoever makes a pool that late must shut it down.
    with contextlib.suppress(RuntimeError):
        _register_at_exit(functools.partial(for_all, _Supervisor.shutdown, True, False))
    os.register_at_fork(after_in_child=functools.partial(for_all, _Supervisor.close_in_child))
    os.register_at_fork(before=_spawning.acquire, after_in_parent=_spawning.release,
                        after_in_child=_spawning.release)


# ───────────────────────────────────────── RemoteExecutor ─────────────────────────────────────────


class RemoteExecutor(BaseExecutor):
    """Run tasks on every machine that you can log in to with `ssh`.

    Arguments:
        workers: records, or their text form (see RemoteWorkerRecord). Default: those named in
            $EXECUTORS_REMOTE_WORKERS, or else in ~/.config/executors/workers.
        policy: chooses the worker of each attempt. Default: at random, by weight.
        title: a name for logs and displays.
        ssh_options: further arguments for ssh, such as ["-p", "2222"]. They cannot override the
            options that a link needs.
        files: files and directories that tasks find in their working directory, by the last part
            of each path. They are copied with scp, once per content.
        schedule_backups: whether a straggler is raced by a second attempt on another machine.
            Default: $EXECUTORS_SCHEDULE_REMOTE_BACKUPS, or else True.
        max_bundle_failures: how many processes a task may kill; it then fails with BundleError.
            Default: $EXECUTORS_MAX_BUNDLE_FAILURES, or else 3.
        bundle_timeout: seconds that an attempt may run; it is then killed, and its task fails with
            BundleTimeoutError. Default: no limit.
        heartbeat_seconds: seconds between pings. A machine that leaves 3 unanswered is lost.
        show_status: what to show while tasks run. If stderr is a terminal, it is a scoreboard at
            the bottom; in a notebook, a table in the cell that submitted them. Elsewhere it is a
            line a minute on stderr; True adds the whole status every 3 heartbeats. False shows
            nothing. The log has the status at INFO in any case.
        modules: whether tasks may import the modules of your project. A worker asks for the source
            of those that it lacks, and may ask for any, even for one that contains passwords.
        packages: whether tasks may import packages that pip installed here, if their machine has
            none or another version. They are copied with scp, once per machine. With True, one of
            more than 1 GiB is not copied. A list of distributions allows these alone, of any size.
        output: what happens to what tasks print. True prints it here, each line headed by its
            machine; False drops it. A function is called with each line as
            `output(machine, "stdout" or "stderr", line)`, one at a time, in a thread of its own.
        env: environment variables for tasks. `{slot}` in a value becomes the slot's number on its
            machine, from 0, and `{machine}` the machine's name. Both are also in $EXECUTORS_SLOT
            and $EXECUTORS_MACHINE.
        initializer: a function that each slot calls with `initargs` before its first task. If it
            raises, its machine is not used any more.
        max_tasks_per_child: tasks, or items of a `map`, after which a slot is replaced by a fresh
            process. Default: no limit.

    Large buffers, such as those of NumPy arrays, are not copied before they are sent: do not change
    an array until the task that it was passed to is done.

    In a notebook, interrupting a cell cancels the tasks that it submitted, and no others.

    Raises ValueError for an invalid argument, and FileNotFoundError for a file that does not exist.
    If no machine can be used, futures raise NoWorkersError, which is a BrokenExecutor, and from
    then on so does `submit`.

    >>> with RemoteExecutor(["2/:"], show_status=False) as pool:
    ...     list(pool.map(pow, [2, 3], [5, 2]))
    [32, 9]
    """

    def __init__(self, workers: Iterable[RemoteWorkerRecord | str] | None = None,
                 policy: RemoteWorkerSelectionPolicy | None = None, *, title: str = "",
                 ssh_options: Sequence[str] = (),
                 files: _Path | Iterable[_Path] = (),
                 schedule_backups: bool | None = None, max_bundle_failures: int | None = None,
                 bundle_timeout: float | None = None, heartbeat_seconds: float = 5.0,
                 show_status: bool | None = None, modules: bool = True,
                 packages: bool | Iterable[str] = True,
                 output: bool | Callable[[str, str, str], object] = True,
                 env: Mapping[str, str] | None = None,
                 initializer: Callable[..., object] | None = None,
                 initargs: tuple[Any, ...] = (),
                 max_tasks_per_child: int | None = None, **unknown: NoReturn) -> None:
        _refuse_arguments(unknown)
        super().__init__(title)
        records = _default_workers() if workers is None else _parse_workers(workers)
        if not records:
            raise ValueError("workers must not be empty; name a machine, or ':' for this one")
        _check_process()
        list(_parse_options(ssh_options))       # raises ValueError for an invalid one
        rules = _read_rules(schedule_backups, max_bundle_failures, bundle_timeout)
        _check_limits({"max_bundle_failures": rules.max_bundle_failures,
                       "bundle_timeout": rules.bundle_timeout,
                       "heartbeat_seconds": heartbeat_seconds})
        _check_switches(
            {"schedule_backups": schedule_backups, "modules": modules, "show_status": show_status})
        _check_output(output)
        call = _packed_initializer(initializer, initargs)
        config = {"lease": LEASE_HEARTBEATS * heartbeat_seconds, "output": output is not False,
                  "env": _checked_env(env or {}), "initializer": call is not None,
                  "max_tasks_per_child": _checked_task_limit(max_tasks_per_child)}
        cargo = _Cargo(files, packages)
        self._supervisor = _Supervisor(
            _Scheduler(_checked_policy(policy), rules), self.title, [*ssh_options],
            _PoolSetup(cargo, modules, call, {**config, "files": cargo.keys}),
            heartbeat_seconds, _Scoreboard(show_status, output))
        self._install_hooks()
        for record in records:
            self.add_worker(record)

    def _install_hooks(self) -> None:
        """Register with all that may end the work of the pool, other than `shutdown`."""
        supervisor = self._supervisor
        _install_process_hooks()
        _supervisors[id(supervisor)] = supervisor
        _Notebook.watch_cells(supervisor)
        # The garbage collector may call this in any thread, even in one that has the supervisor's
        # lock. So it only leaves an event for the heartbeat.
        close = supervisor.scheduler.close, (False,), None
        self._finalizer = weakref.finalize(self, supervisor.events.put, close)

    @property
    def task_count(self) -> int:
        supervisor = self._supervisor
        scheduler = supervisor.scheduler
        return int(supervisor.decide(scheduler.count_tasks))

    @property
    def histogram(self) -> Histogram:
        histogram: Histogram = self._supervisor.decide(self._supervisor.scheduler.histogram)
        return histogram

    def _await_slots(self) -> None:
        self._supervisor.await_slot_count()

    def _count_slots(self) -> int:
        workers = [*self._supervisor.scheduler.workers]     # a copy: other threads may add one
        usable = [worker for worker in workers if worker.state is not _UNUSABLE]
        return max(1, sum(worker.count or 1 for worker in usable))

    def __repr__(self) -> str:
        scheduler = self._supervisor.scheduler
        machines = f"{len(scheduler.up)} of {len(scheduler.workers)} machines up"
        return (f"<{type(self).__name__} {self.title!r}: {machines}, {self._count_slots()} slots, "
                f"{self.task_count} tasks>")

    def _repr_html_(self) -> str:
        return self.status._repr_html_()

    @property
    def status(self) -> RemoteExecutorStatus:
        """A snapshot of the pool; `print(pool.status)` shows it."""
        status: RemoteExecutorStatus = self._supervisor.status()
        return status

    def add_worker(self, worker: RemoteWorkerRecord | str) -> None:
        """Add a machine to the pool. Raises ValueError if its text cannot be parsed."""
        record, = _parse_workers([worker])
        self._supervisor.decide(self._supervisor.scheduler.add_worker, record)
        # Have `slots` wait until this machine has reported its count. If its record gives the
        # count, `decide` sets the event again at once.
        self._supervisor.decide(self._supervisor.slots_are_known.clear)

    def remove_worker(self, worker: RemoteWorkerRecord | str) -> None:
        """Remove a machine from the pool; its tasks run elsewhere.

        Raises ValueError if the pool has no such machine.
        """
        record, = _parse_workers([worker])
        if not self._supervisor.decide(self._supervisor.scheduler.remove_worker, record):
            raise ValueError(f"worker '{record}' is not in the pool; print(pool.status) "
                             "shows its workers")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        # Ctrl-C ends what was submitted; after any other exception, as without one, it is finished.
        if _is_interrupt(error):
            self._give_up()
        else:
            self.shutdown()

    def _give_up(self) -> None:
        """Cancel all tasks, kill those that run, and shut down."""
        self._supervisor.decide(self._supervisor.scheduler.kill_all)
        self.shutdown()

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Submit a call; return its future, whose `cancel()` also ends a call that is running.

        Raises the error of pickle if the call cannot be pickled, NoWorkersError if no machine can
        be used, and RuntimeError after a shutdown.
        """
        supervisor = self._supervisor
        return supervisor.submit(fn, args, kwargs)

    def _submitter(self, fn: Callable[..., _T], owner: Any = None) -> Callable[..., Future[_T]]:
        supervisor = self._supervisor
        supervisor.scheduler.check_open()
        function = supervisor.functions.get(fn, is_for_map=True)
        return functools.partial(supervisor.submit_item, function, owner)

    def _release(self, submit: Callable[..., Any]) -> None:
        function: _Function = submit.args[0]        # type: ignore[attr-defined]
        self._supervisor.forget_function(function)

    def _has_chunks(self) -> bool:
        # A chunk is one attempt, but two rules hold for each item: how long it may run, and that
        # it is never started again.
        rules = self._supervisor.scheduler.rules
        return rules.max_bundle_failures > 1 and rules.bundle_timeout == math.inf

    def _count_items(self, owner: _ChunkedMap, change: int, settled: Mapping[int, int]) -> None:
        supervisor = self._supervisor
        supervisor.decide(supervisor.scheduler.count_items, owner, change, settled)

    def shutdown(       # type: ignore[override]
            self, wait: bool = True, *, cancel_futures: bool = False, quiet: bool = False,
            timeout: float | None = None) -> bool:
        return self._supervisor.shutdown(wait, cancel_futures, quiet, timeout)


# For arguments of other executors: what to use here instead.
_SLOTS_ARE_NAMED = "the number of slots stands in a worker's text, such as 4/lab2"
_OTHER_NAMES = {
    "max_workers": _SLOTS_ARE_NAMED, "n_jobs": _SLOTS_ARE_NAMED,
    "timeout": "bundle_timeout= limits each attempt; map() and result() take timeout="}


def _refuse_arguments(unknown: Iterable[str]) -> None:
    """Raise TypeError for an argument that RemoteExecutor does not have."""
    for name in unknown:
        remedy = _OTHER_NAMES.get(name, "help(executors.RemoteExecutor) lists those that it has")
        raise TypeError(f"RemoteExecutor has no argument {name!r}; {remedy}")


def _check_process() -> None:
    """Raise RuntimeError if threads do not work here, or the workers' source cannot be read."""
    if sys.is_finalizing():
        raise RuntimeError("cannot create an executor while the interpreter is shutting down")
    gevent = sys.modules.get("gevent.monkey")
    if gevent and gevent.is_module_patched("threading"):
        raise RuntimeError("gevent.monkey has replaced the threads that a RemoteExecutor needs: it "
                           "would hang. Use it in a process of its own, without patch_all()")
    _bootstrap()


def _read_rules(schedule_backups: bool | None, max_bundle_failures: int | None,
           bundle_timeout: float | None) -> _Limits:
    """Return the limits that the user set, here or in the environment, and defaults for others."""
    return _Limits(
        bool(_or_environment(
            schedule_backups, "EXECUTORS_SCHEDULE_REMOTE_BACKUPS", _boolean, True)),
        _or_environment(max_bundle_failures, "EXECUTORS_MAX_BUNDLE_FAILURES", int, 3),
        math.inf if bundle_timeout is None else bundle_timeout)


def _check_limits(limits: Mapping[str, Any]) -> None:
    """Raise ValueError if one of these arguments is not a number above 0."""
    for name, value in limits.items():
        if not isinstance(value, numbers.Real) or value <= 0 or value != value:     # a NaN
            raise ValueError(f"{name} must be a number above 0, got {value!r}")


def _check_switches(switches: Mapping[str, Any]) -> None:
    """Raise ValueError if one of these arguments is neither a bool nor None."""
    for name, value in switches.items():
        if not isinstance(value, (bool, types.NoneType)):
            raise ValueError(f"{name} must be True or False, got {value!r}")


def _checked_task_limit(value: Any) -> int:
    """Return max_tasks_per_child, or 0 for no limit. Raises ValueError."""
    if value is None:
        return 0
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"max_tasks_per_child must be a whole number above 0, got {value!r}")
    return value


def _packed_initializer(initializer: Any, initargs: Any) -> Any:
    """Return the call of the initializer, packed; None if there is none. Raises ValueError."""
    if initializer is None:
        return None
    if not callable(initializer):
        raise ValueError(f"initializer must be a function, got {initializer!r}; pass what it is to "
                         "be called with as initargs=(...)")
    return _FunctionCache().get(functools.partial(initializer, *initargs)).packed


def _checked_policy(policy: Any) -> RemoteWorkerSelectionPolicy:
    """Return a policy, the default one for None. Raises ValueError."""
    if policy is None:
        return WeightedRandomRemoteWorkerSelectionPolicy()
    if isinstance(policy, type) or not callable(getattr(policy, "choose", None)):
        raise ValueError("policy must be a RemoteWorkerSelectionPolicy, such as "
                         f"RoundRobinRemoteWorkerSelectionPolicy(), got {policy!r}")
    return policy       # type: ignore[no-any-return]


def _check_output(output: Any) -> None:
    """Raise ValueError if `output` is not what RemoteExecutor takes."""
    if not isinstance(output, bool) and not callable(output):
        raise ValueError("output must be True, False, or a function of (machine, stream, line), "
                         f"got {output!r}")


# Variables that Python reads once; see `python --help-env`.
_READ_AT_STARTUP = re.compile(
    "PYTHON(?!(PATH|BREAKPOINT|ASYNCIODEBUG)$)[A-Z0-9]+|PYTHON_(GIL|JIT|CPU_COUNT|FROZEN_MODULES|"
    "TLBC|CONTEXT_AWARE_WARNINGS|THREAD_INHERIT_CONTEXT)")


def _checked_env(env: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of `env`. Raises ValueError for what cannot be a variable of a slot."""
    if not isinstance(env, Mapping):
        raise ValueError(f"env must be a mapping like {{'NAME': 'value'}}, got {env!r}")
    for name, value in env.items():
        if _READ_AT_STARTUP.fullmatch(str(name)):
            raise ValueError(f"env: Python reads {name} only when it starts, and slots are forked "
                             "from one that has started; set it on the machine, in a login file or "
                             "in ~/.ssh/environment")
        if not _is_variable(name, value):
            raise ValueError(f"env: {name!r}: {value!r} must be a name and a text, in which all "
                             "braces are doubled but those of {slot} and {machine}")
    return {**env}


def _is_variable(name: Any, value: Any) -> bool:
    """Return whether these can be the name and the value of an environment variable."""
    try:
        os.fsencode(value.format(slot=0, machine=""))
        return bool(re.fullmatch("[^=\0]+", name)) and "\0" not in value
    except (AttributeError, LookupError, TypeError, ValueError):
        return False


def _boolean(text: str) -> bool:
    """Parse what configuration files write for a bool, such as "yes". Raises KeyError."""
    import configparser
    return configparser.ConfigParser.BOOLEAN_STATES[text.lower()]


# ──────────────────────────────────────────── defaults ────────────────────────────────────────────


class Method(enum.Enum):
    """Where `parallelize` runs calls: on the default executor of this kind."""

    THREAD = "thread"
    PROCESS = "process"
    REMOTE = "remote"


class DefaultExecutors:
    """The executors that all of a process shares. Each is made when it is first asked for.

    At exit they are shut down: threads first, then processes, then remote ones, because what a
    thread runs may need the others. Each finishes its tasks. All instances of this class are alike.

    >>> DefaultExecutors().thread_pool() is DefaultExecutors().thread_pool()
    True
    """

    # Guards the pools. A forked child gets another one: a thread of the parent may hold this. While
    # its thread makes a pool, a finalizer or a signal handler may ask for one, too.
    _lock = threading.RLock()
    # By process and kind: a forked child makes its own.
    _pools: dict[tuple[int, Method], BaseExecutor] = {}     # noqa: RUF012

    def thread_pool(self) -> BaseExecutor:
        """Return the default ThreadExecutor."""
        return self._get(Method.THREAD, ThreadExecutor)

    def process_pool(self) -> BaseExecutor:
        """Return the default ProcessExecutor."""
        return self._get(Method.PROCESS, ProcessExecutor)

    def remote_pool(self) -> BaseExecutor:
        """Return the default RemoteExecutor.

        Its workers are those of $EXECUTORS_REMOTE_WORKERS or ~/.config/executors/workers. Raises
        ValueError if there are none.
        """
        return self._get(Method.REMOTE, RemoteExecutor)

    def shutdown(self) -> None:
        """Shut all of them down, as at exit. Whoever asks for one later gets a new one."""
        for method in Method:
            with self._lock:
                pool = self._pools.pop((os.getpid(), method), None)
            if pool:
                pool.shutdown()

    def _get(self, method: Method, make: Callable[..., BaseExecutor]) -> BaseExecutor:
        _shut_down_defaults_at_exit()
        key = os.getpid(), method
        with self._lock:
            if key in self._pools:
                return self._pools[key]
            made = make(title=f"default {method.value} pool")
            pool = self._pools.setdefault(key, made)
        if made is not pool:
            made.shutdown()
        return pool


@functools.cache
def _shut_down_defaults_at_exit() -> None:
    # What is registered last runs first. Remote pools must outlive the threads that use them.
    _install_process_hooks()
    _register_at_exit(DefaultExecutors().shutdown)
    os.register_at_fork(after_in_child=_replace_lock)


def _replace_lock() -> None:
    DefaultExecutors._lock = threading.RLock()


if TYPE_CHECKING:
    class _FutureArgument(Future[_T], Any):        # type: ignore[misc]
        """A future that may stand for its value among arguments, whatever their type."""


def parallelize(method: Method | Executor = Method.THREAD) -> Callable[
        [Callable[_P, _T]], Callable[_P, _FutureArgument[_T]]]:
    """Return a decorator that makes calls of a function return futures.

    If futures are among the arguments, the call is submitted once they are done, with their
    results. Neither the caller nor a worker waits for that.

    Arguments:
        method: the default executor to use, or an executor.

    >>> @parallelize(Method.THREAD)
    ... def total(numbers):
    ...     return sum(numbers)
    >>> numbers = list(range(100))
    >>> shards = [numbers[start::4] for start in range(4)]
    >>> sum(wait_all(total(shard) for shard in shards))
    4950
    """
    def decorate(fn: Callable[_P, _T]) -> Callable[_P, _FutureArgument[_T]]:
        def submit(*args: Any, **kwargs: Any) -> Future[_T]:
            executor: Any = method
            if isinstance(method, Method):
                executor = getattr(DefaultExecutors(), f"{method.value}_pool")()
            future: Future[_T] = executor.submit(fn, *args, **kwargs)
            return future

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Future[_T]:
            awaited = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Future)]
            if not awaited:
                return submit(*args, **kwargs)
            outer: _AwaitingFuture[_T] = _AwaitingFuture()
            ready = functools.partial(_submit_with_results, submit, args, kwargs)
            _call_when_done(awaited, lambda: outer.submit(ready))
            return outer
        return call     # type: ignore[return-value]

    if callable(method):        # the decorated function: there were no parentheses
        raise TypeError("parallelize needs parentheses: write @parallelize() or "
                        "@parallelize(Method.PROCESS)")
    if not isinstance(method, (Method, Executor)):
        raise TypeError("parallelize takes an executor or a Method, such as Method.PROCESS, got "
                        f"{method!r}")
    return decorate


def _call_when_done(futures: Iterable[Future[Any]], then: Callable[[], None]) -> None:
    """Call `then` once all of these futures are done: now, or in the thread that ends the last."""
    for future in futures:
        if not future.done():
            future.add_done_callback(lambda _: _call_when_done(futures, then))
            return
    if _nesting.depth >= MAX_NESTING:
        # None can be started if there are too many; or, on Python 3.12, once the program has ended.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=then, name="parallelize").start()
            return
    _nesting.depth += 1
    try:
        then()
    finally:
        _nesting.depth -= 1


class _Nesting(threading.local):
    """How many calls of `_call_when_done` this thread is in, one below the other.

    In a chain of calls each of which awaits the one before, a failure goes from one to the next. So
    the chain is as deep as it is long, and another thread goes on where the stack may end.
    """

    depth = 0


_nesting = _Nesting()


class _AwaitingFuture(Future[_T]):
    """The future of a call that is submitted when others are done; then it mirrors that call's.

    A race: it may be cancelled while the call is being submitted. Whoever submits looks again.
    """

    _inner: Future[_T] | None = None    # of the call, once that is submitted

    def cancel(self) -> bool:
        if self._inner is not None and not self._inner.cancel():
            return False
        return super().cancel()

    def running(self) -> bool:
        return self._inner is not None and self._inner.running()

    def submit(self, submit: Callable[[], Future[_T]]) -> None:
        """Submit the call, and pass its outcome on; or pass on what `submit` raises."""
        try:
            if not self.cancelled():
                self._inner = submit()
        except BaseException as error:
            self._inner = Future()
            self._inner.set_exception(error)
        if self._inner is None:
            self.set_running_or_notify_cancel()     # wakes those that wait for it
            return
        if self.cancelled():
            self._inner.cancel()
        self._inner.add_done_callback(self._pass_on)

    def _pass_on(self, inner: Future[_T]) -> None:
        if inner.cancelled():
            super().cancel()
        if not self.set_running_or_notify_cancel():
            return
        error = inner.exception()
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(inner.result())


def _submit_with_results(submit: Callable[..., Future[_T]], args: Iterable[Any],
                         kwargs: Mapping[str, Any]) -> Future[_T]:
    """Submit a call, with each future among its arguments replaced by its result."""
    def value(arg: Any) -> Any:
        return arg.result() if isinstance(arg, Future) else arg

    values = {name: value(arg) for name, arg in kwargs.items()}
    return submit(*map(value, args), **values)


def wait_all(futures: Iterable[Future[_T]]) -> list[_T]:
    """Return the results of futures in their order. Raises the first failure as soon as it occurs.

    >>> with ThreadExecutor(2) as pool:
    ...     wait_all(pool.submit(abs, n) for n in (-1, 2, -3))
    [1, 2, 3]
    """
    futures = list(futures)
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future in done:
            future.result()
    return [future.result() for future in futures]


# ────────────────────────────────────────── integrations ──────────────────────────────────────────


class _SharedArrayCalls:
    """Submit the calls of one joblib `Parallel`; send the large arrays that they share once.

    On a RemoteExecutor, all calls with the same arrays call one function, which holds the arrays.
    It is sent to each machine once, like the function of a `map`. The latest SHARED_ARRAYS of these
    functions are kept.
    """

    def __init__(self, pool: BaseExecutor) -> None:
        self._pool = pool
        # By the name of the function and the identities of the arrays, the oldest first. Guarded by
        # joblib, which holds a lock while it submits.
        self._submitters: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._futures: weakref.WeakValueDictionary[int, Future[Any]] = (
            weakref.WeakValueDictionary())      # by identity

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        is_remote = isinstance(self._pool, RemoteExecutor)
        future = self._submit_sharing(call) if is_remote else self._pool.submit(call)
        self._futures[id(future)] = future
        return future

    def _submit_sharing(self, call: Callable[[], Any]) -> Future[Any]:
        pickled, arrays = wire.pack_without_arrays(call)
        batch = getattr(call, "items", ())      # of `(function, arguments, keywords)`, in joblib
        name = _name_of_function(batch[0][0] if batch else call)
        key = name, *arrays
        if key not in self._submitters:
            submit = self._pool._submitter(functools.partial(wire.run_with_arrays, name, arrays))
            # The arrays are kept, too: otherwise others could get the same identities.
            self._submitters[key] = submit, arrays
            if len(self._submitters) > SHARED_ARRAYS:
                _, (oldest, _) = self._submitters.popitem(last=False)
                self._pool._release(oldest)
        submit, _ = self._submitters[key]
        future: Future[Any] = submit(pickled)
        return future

    def cancel_all(self) -> None:
        """Cancel all calls that are not done."""
        for future in _list_alive(self._futures):
            future.cancel()

    def release_arrays(self) -> None:
        """Have all machines drop the arrays; all calls must be done."""
        for submit, _ in self._submitters.values():
            self._pool._release(submit)


def joblib_backend(pool: BaseExecutor) -> Any:
    """Return a joblib backend that runs on an executor, for joblib and whatever uses it.

        with joblib.parallel_config(backend=executors.joblib_backend(pool)):
            GridSearchCV(model, grid).fit(X, y)

    Arrays of 1 MiB or more that calls of one `Parallel` share are sent to each machine once. A call
    that itself uses joblib does so within its slot: sequentially or, if it asks for a number of
    jobs, on threads. With `n_jobs=1`, joblib uses no backend and runs everything here.

    >>> import joblib
    >>> with RemoteExecutor("2/:", show_status=False) as pool:
    ...     with joblib.parallel_config(backend=joblib_backend(pool)):
    ...         joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(4))
    [0, 1, 2, 3]
    """
    parallel: Any = importlib.import_module("joblib.parallel")

    class ExecutorsBackend(     # joblib's messages contain this name
            parallel.AutoBatchingMixin, parallel.ParallelBackendBase):  # type: ignore[misc]
        supports_retrieve_callback = True
        default_n_jobs = -1

        def effective_n_jobs(self, n_jobs: int | None) -> int:
            if n_jobs == 0:
                raise ValueError("n_jobs == 0 in Parallel has no meaning")
            number = self.default_n_jobs if n_jobs is None else n_jobs
            if number > 0:
                return number
            # -1 stands for all slots, -2 for all but one. If the answer is 1, joblib does not use
            # the backend at all.
            return max(2, pool.slots + 1 + number)

        def start_call(self) -> None:
            self._calls = _SharedArrayCalls(pool)

        def submit(self, func: Callable[[], Any], callback: Any = None) -> Future[Any]:
            future = self._calls.submit(func)
            future.add_done_callback(callback)
            return future

        def retrieve_result_callback(self, out: Future[Any]) -> Any:
            return out.result()

        def abort_everything(self, ensure_ready: bool = True) -> None:
            self._calls.cancel_all()

        def stop_call(self) -> None:
            self._calls.release_arrays()
            del self._calls
            self.reset_batch_stats()

    return ExecutorsBackend()


# ────────────────────────────────────────── command line ──────────────────────────────────────────

# No host key is checked: ssh itself starts the sshd, at the other end of a pipe.
_PRIVATE_SSH = (
    "-F /dev/null -i {folder}/user -o IdentitiesOnly=yes -o UserKnownHostsFile=/dev/null "
    "-o StrictHostKeyChecking=no -o 'ProxyCommand={sshd} -i -f /dev/null -E {folder}/log "
    "-o HostKey={folder}/host -o AuthorizedKeysFile={folder}/user.pub -o StrictModes=no "
    "-o UsePAM=no -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no "
    "-o \"Subsystem=sftp internal-sftp\"'")


def _private_sshd(stack: contextlib.ExitStack) -> list[str]:
    """Return ssh options that lead to an sshd of our own, with throw-away keys, as this user.

    There is neither a daemon nor a port: for each login, ssh starts an sshd (`sshd -i`, by
    ProxyCommand) and talks to it over a pipe. When the stack is closed, all files are removed.
    Raises FileNotFoundError if no sshd is installed.
    """
    sshd = shutil.which(
        "sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin")
    if not sshd:
        raise FileNotFoundError("sshd is not installed on this machine: apt-get install "
                                "openssh-server (or your system's package of OpenSSH's server)")
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="executors-sshd-"))
    if os.getuid() == 0 and not os.path.exists("/run/sshd"):
        os.mkdir("/run/sshd", 0o755)        # an sshd that root starts does not run without it
        stack.callback(os.rmdir, "/run/sshd")
    for key in "host", "user":
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/{key}"],
                       check=True)
    return shlex.split(_PRIVATE_SSH.format(folder=folder, sshd=sshd))


def _count_primes(limit: int) -> tuple[int, str, int]:
    """Return the number of primes below `limit`, the host's name and the process id."""
    primes = [n for n in range(2, limit) if all(n % m for m in range(2, math.isqrt(n) + 1))]
    return len(primes), os.uname().nodename, os.getpid()


def _test_executor(label: str, pool: BaseExecutor) -> bool:
    """Run real work on an executor, print what it did, and return whether all was right."""
    limits = range(1000, 9000, 200)
    offset = 1
    started = monotonic()
    print(f"{label}\n{'-' * len(label)}")
    try:
        with pool:
            counts, hosts, pids = zip(*pool.map(_count_primes, limits, timeout=120, chunksize=1))
            answer = pool.submit(lambda n: n + offset, 41).result(timeout=60)
            pool.shutdown(quiet=True)       # the histogram is printed below
    except Exception as error:
        print(f"FAILED: {wire.describe(error)}\n")
        return False
    seconds = monotonic() - started
    processes = {*zip(hosts, pids)}
    print(f"counted primes below {len(limits)} limits and called a lambda, in {seconds:.2f} s, on "
          f"{', '.join(sorted({*hosts}))}, in {len(processes)} process(es)")
    expected = [_count_primes(limit)[0] for limit in limits]
    is_right = answer == 42 and [*counts] == expected
    print(f"{pool.histogram}\n{'results are right' if is_right else 'WRONG RESULTS'}\n")
    return is_right


def _selftest(workers: str, ssh_options: list[str]) -> bool:
    """Test each kind of executor, the remote one on these workers. Return whether all passed."""
    results = [_test_executor("ThreadExecutor", ThreadExecutor(2)),
               _test_executor("ProcessExecutor", ProcessExecutor(2))]
    with contextlib.ExitStack() as stack:
        how = ""
        if not workers:
            try:
                ssh_options = _private_sshd(stack)
                workers = f"2/localhost python={sys.executable}"
                how = ", by ssh to a private sshd"
            except FileNotFoundError as error:
                print(f"{error}\nThe RemoteExecutor is tested over a pipe instead, without ssh.\n")
                workers = "2/:"
                how = " (no ssh)"
        results.append(_test_executor(f"RemoteExecutor: {workers}{how}",
                                     RemoteExecutor(workers, ssh_options=ssh_options)))
    return all(results)


@dataclasses.dataclass
class _MachineCheck:
    """The check of one machine by `--check`, stage by stage until one fails.

    It makes a pool of that machine alone, and a second one with a file, which needs a cache that
    can be written and, unless the machine is `:`, scp. It runs in a thread of its own; others read
    its attributes only when that is done.
    """

    record: RemoteWorkerRecord
    ssh_options: list[str]
    modules: Sequence[str]              # to import there
    interrupted: threading.Event        # set by the main thread after Ctrl-C
    found: dict[str, str] = dataclasses.field(default_factory=dict)     # by stage
    failure: str = ""

    _STAGES = ("name", "TCP", "login", "shell", "python", "interpreter", "start", "cores", "trip",
               "MB/s", "scp")
    # Shared by all checkups, which may log in by one jump host: its sshd refuses a crowd.
    _login_window = threading.Semaphore(LOGIN_WINDOW[0])

    def run_checks(self) -> _MachineCheck:
        """Go through the stages; return itself once one has failed or all have passed."""
        try:
            with contextlib.ExitStack() as pools, tempfile.NamedTemporaryFile() as file:
                file.write(os.urandom(1000))
                file.flush()
                self._run_stages(pools, file.name)
        except Exception as error:
            notes = getattr(error, "__notes__", ())
            self.failure = "\n".join([str(error) or wire.describe(error), *notes])
        return self

    def _run_stages(self, pools: contextlib.ExitStack, file: str) -> None:
        """Go through the stages. Raises what makes one fail."""
        short, long = CHECK_SECONDS
        found = self.found
        pool = self._open_pool(pools)
        found["trip"] = _seconds(min(self._call_there(pool, short, os.getpid)[1] for _ in range(6)))
        size = 4 << 20
        there = size / 1e6 / self._call_there(pool, short, len, os.urandom(size))[1]
        back = size / 1e6 / self._call_there(pool, short, os.urandom, size)[1]
        found["MB/s"] = f"{there:.1f} there and {back:.1f} back"
        pool = self._open_pool(pools, file)
        self._call_there(pool, short, _remove_cached_file, os.path.basename(file))
        found["scp"] = "-" if self.record.machine == ":" else "ok"
        for module in self.modules:
            found[f"import {module}"] = self._call_there(pool, long, _import_version, module)[0]

    def _open_pool(self, pools: contextlib.ExitStack, *files: str) -> RemoteExecutor:
        """Make a pool of the machine and wait until it is up. A login has limits of its own."""
        with self._login_window:
            if self.interrupted.is_set():
                raise ExecutorError("interrupted before its login")
            pool = RemoteExecutor([self.record], ssh_options=[*self.ssh_options, "-v"],
                                  files=files, show_status=False, output=False)
            pools.callback(pool._give_up)
            self._call_there(pool, math.inf, os.getpid)
        return pool

    def _call_there(self, pool: RemoteExecutor, limit: float, fn: Callable[..., Any],
             *args: Any) -> tuple[Any, float]:
        """Call a function on the machine; return its result and the seconds that it took.

        Raises ExecutorError when the machine is lost, after `limit` seconds, and after Ctrl-C.
        """
        started = monotonic()
        future = pool.submit(fn, *args)
        while True:
            is_done = wait([future], 0.1).done
            seconds = monotonic() - started
            status, = pool.status.workers
            self.found |= status.found
            if status.cause:
                raise ExecutorError(status.cause)
            if is_done:
                return future.result(), seconds
            if seconds > limit or self.interrupted.is_set():
                raise ExecutorError(f"not done after {limit:.0f} s")

    def lines(self, columns: int) -> list[str]:
        """Return what each stage found and, below that, why one failed and what to do."""
        label = _line_prefix(self.record.login)
        stages = [*self._STAGES, *(f"import {module}" for module in self.modules)]
        # "-" is what a stage finds that `:` does not have.
        parts = [f"{stage} {_replace_unprintable(self.found[stage])}" for stage in stages
                 if self.found.get(stage, "-") != "-"]
        reason: list[str] = []
        if self.failure:
            failed = next((stage for stage in stages if stage not in self.found), "end")
            parts.append(f"{failed} FAILED")
            why = _replace_unprintable(self.failure)
            reason = textwrap.wrap(f"{label}: {failed}: {why}", columns, subsequent_indent="  ",
                                   break_on_hyphens=False)
        return _wrap_after_commas(f"{label}: {', '.join(parts)}", columns) + reason


def _import_version(module: str) -> str:
    """Import a module; return its version, or "ok" if it has none. Raises what importing raises."""
    return str(getattr(importlib.import_module(module), "__version__", "ok"))


def _remove_cached_file(name: str) -> None:
    """Remove a file of `files=` from the cache of the machine where this is called."""
    wire.remove_entries(wire.digest_file(name))


def _check_machines(records: Sequence[RemoteWorkerRecord], ssh_options: list[str],
           modules: Sequence[str]) -> bool:
    """Check machines side by side, and print a paragraph for each as soon as it is done.

    Return whether all can be used. After Ctrl-C, return only when each thread has ended its pools.
    """
    are_usable = True
    interrupted = threading.Event()
    columns = shutil.get_terminal_size().columns - 1
    with ThreadPoolExecutor(len(records)) as threads:
        try:
            checks = [_MachineCheck(record, ssh_options, modules, interrupted)
                      for record in records]
            checkups = [threads.submit(check.run_checks) for check in checks]
            for checkup in map(Future.result, as_completed(checkups)):
                are_usable = are_usable and not checkup.failure
                print(*checkup.lines(columns), sep="\n", flush=True)
        finally:
            interrupted.set()       # nobody sees it unless Ctrl-C has left threads running
    return are_usable


def _main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m executors`; return its exit status: 0, 1 if a test failed, 2 for an error."""
    import argparse
    parser = argparse.ArgumentParser(
        prog="python -m executors", description="Test executors on this machine, or on yours.")
    parser.add_argument("--selftest", action="store_true",
                        help="run real work on each kind of executor and print what it did")
    parser.add_argument("--check", action="store_true",
                        help="log in to each worker and print what is wrong with it")
    parser.add_argument("--workers", metavar="TEXT[,TEXT...]", default="",
                        help="the machines, such as 8/me@bigbox,4/lab2")
    parser.add_argument("--import", dest="modules", metavar="NAME[,NAME...]", default="",
                        help="what --check imports on each machine, such as numpy,scipy")
    parser.add_argument("--ssh_options", "--ssh-options", metavar="WORDS", default="",
                        help="further arguments for ssh, such as '-F my_config'")
    options = parser.parse_args(arguments)
    _log.logger.addHandler(logging.NullHandler())      # what would be logged is in what we print
    try:
        ssh_options = shlex.split(options.ssh_options)
        if options.check:
            modules = [name.strip() for name in options.modules.split(",") if name.strip()]
            records = _parse_workers(options.workers or _default_workers())
            is_fine = _check_machines(records, ssh_options, modules)
        elif options.selftest:
            is_fine = _selftest(options.workers, ssh_options)
        else:
            parser.print_help()
            return 2
    except (ValueError, OSError, ImportError, subprocess.SubprocessError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    print("all checks passed" if is_fine else "some checks FAILED: see above")
    return 0 if is_fine else 1


if __name__ == "__main__":
    # Import this file as a module: workers can import the tasks of one, but not those of __main__.
    sys.exit(importlib.import_module(f"{__package__ or ''}.executors".lstrip("."))._main())
