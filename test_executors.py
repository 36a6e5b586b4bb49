"""Tests of `executors` and `remote_worker`, against real processes, a real OpenSSH sshd, and the real ssh and scp.

One set of contract tests runs over every executor. The scheduler alone is tested in isolation, with an injected clock.
Waiting in tests is always for a condition, with a deadline that only a failure reaches.
"""

from __future__ import annotations

import ast
import asyncio
import concurrent.futures as cf
import fcntl
import functools
import gc
import inspect
import itertools
import json
import os
import pickle
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
import unittest
import weakref
from contextlib import ExitStack, closing
from operator import neg

import cloudpickle
import numpy
import pyte
import pytest

import executors
import remote_worker as wire
from executors import BundleError, NoWorkersError, RemoteExecutor, RemoteWorkerRecord

HERE = os.path.dirname(os.path.abspath(__file__))
PATIENCE = 20       # seconds after which what we wait for is not going to happen


# ───────────────────────────────────────────────────── machinery ──────────────────────────────────────────────────


@pytest.fixture(scope="session")
def sshds():
    """Two private sshds, which the aliases alpha and beta lead to; without an sshd this fails, and says what to install."""
    with executors._PrivateSshd(["alpha"]) as alpha, executors._PrivateSshd(["beta"]) as beta:
        with open(alpha._path("config"), "a") as both, open(beta._path("config")) as other:
            both.write("\n" + other.read())
        yield alpha, beta


@pytest.fixture
def ssh(sshds):
    """Make remote executors over ssh: `ssh("2/alpha", "2/beta", ...)`, on this interpreter."""
    pools = []

    def make(*workers, python=sys.executable, **options):
        records = [RemoteWorkerRecord.parse(f"{worker} python={python}" if python else worker) for worker in workers]
        options = {"show_status": False, "heartbeat_seconds": 0.5, "ssh_options": sshds[0].ssh_options, **options}
        pools.append(RemoteExecutor(records, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def local():
    """Make remote executors over plain pipes."""
    pools = []

    def make(*workers, **options):
        pools.append(RemoteExecutor(workers or ["2/:"], **{"show_status": False, "heartbeat_seconds": 0.5, **options}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown(cancel_futures=True)


@pytest.fixture(params=["thread", "process", "pipe", "ssh"])
def pool(request):
    """Each executor in turn, with four threads, processes or slots."""
    if request.param == "thread":
        made = executors.ThreadExecutor(4)
    elif request.param == "process":
        made = executors.ProcessExecutor(4)
    elif request.param == "pipe":
        made = request.getfixturevalue("local")("4/:")
    else:
        made = request.getfixturevalue("ssh")("2/alpha", "2/beta")
    yield made
    made.shutdown(cancel_futures=True)


@pytest.fixture(params=["pipe", "ssh"])
def remote(request):
    """A remote executor of four slots."""
    if request.param == "pipe":
        return request.getfixturevalue("local")("4/:")
    return request.getfixturevalue("ssh")("2/alpha", "2/beta")


def until(condition, what="it"):
    """Wait for a condition of the world outside, which nothing notifies us of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def parent(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def read(path):
    with open(path) as file:
        return file.read()


def descendants(pid=None):
    tree, pids = wire._process_tree(), [pid or os.getpid()]
    for parent in pids:
        pids += tree.get(parent, ())
    return set(pids[1:])


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def run_script(text, *arguments, **options):
    """Run a script as a user would, in a process of its own; return how it ended."""
    options = {"capture_output": True, "text": True, "timeout": 60, "cwd": HERE, **options}
    return subprocess.run([sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)], **options)


class Network:
    """A host of our own: a network namespace behind a veth pair, at an address reserved for documentation (RFC 5737)."""

    NEAR, FAR = "198.51.100.1", "198.51.100.2"

    def __init__(self):
        self.name = f"x{os.getpid()}{random.choice('abcdefghijkl')}{time.monotonic_ns() % 1000}"      # they take a while to go
        self.inside = ["ip", "netns", "exec", self.name]
        self._dropped = []

    def __enter__(self):
        run = functools.partial(subprocess.run, check=True)
        run(["ip", "netns", "add", self.name])
        run(["ip", "link", "add", f"{self.name}a", "type", "veth", "peer", "name", f"{self.name}b", "netns", self.name])
        for prefix, end, address in (([], "a", self.NEAR), (self.inside, "b", self.FAR)):
            run([*prefix, "ip", "address", "add", f"{address}/30", "dev", self.name + end])
            run([*prefix, "ip", "link", "set", self.name + end, "up"])
        return self

    def drop(self, direction):
        ways = {"to the worker": ([], self.FAR), "from the worker": (self.inside, self.NEAR)}
        for way in ways if direction == "both" else [direction]:
            prefix, address = ways[way]
            subprocess.run([*prefix, "ip", "route", "add", "blackhole", f"{address}/32"], check=True)
            self._dropped.append([*prefix, "ip", "route", "del", "blackhole", f"{address}/32"])

    def mend(self):
        while self._dropped:
            subprocess.run(self._dropped.pop(), check=True)

    def __exit__(self, *_):
        self.mend()
        for pid in subprocess.check_output(["ip", "netns", "pids", self.name], text=True).split():
            os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", self.name], check=True)


# What runs on workers. Everything here is found by name in this module, which follows to them.


def crash(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return os.getpid()


def touch_and_wait(path):
    open(path, "w").close()
    while True:
        time.sleep(1)


def raise_it(error):
    raise error


def exit_unless_in_a_slot(guardian):
    if parent(parent(os.getpid())) != guardian:
        sys.exit("not at home")


class TwoArguments(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Bomb:
    """Does something when it is unpickled."""

    def __init__(self, action, *args):
        self.action, self.args = action, args

    def __reduce__(self):
        return self.action, self.args


class BombOnPickle:
    def __init__(self, action, *args):
        self.action, self.args = action, args

    def __reduce__(self):
        self.action(*self.args)


def recurse(obj):
    for _ in range(100_000):
        obj = [obj]
    return obj


# ──────────────────────────────────────── the contract of every executor ──────────────────────────────────────────


class TestContract:
    def test_submit_and_the_base_class(self, pool):
        assert isinstance(pool, cf.Executor)
        future = pool.submit(pow, 2, exp=10)
        assert isinstance(future, cf.Future)
        assert future.result(PATIENCE) == 1024
        assert future.done() and not future.running() and not future.cancelled() and future.exception() is None

    def test_keyword_arguments_named_like_ours(self, pool):
        assert pool.submit(dict, self=1, fn=2, pool=3).result(PATIENCE) == {"self": 1, "fn": 2, "pool": 3}

    def test_what_plain_pickle_cannot_carry(self, pool):
        offset = 10
        assert pool.submit(lambda n: n + offset, 1).result(PATIENCE) == 11
        assert pool.submit(functools.partial(pow, 2), 5).result(PATIENCE) == 32
        assert pool.submit([3, 1, 2].index, 2).result(PATIENCE) == 2
        assert pool.submit(lambda: lambda n: n * 2).result(PATIENCE)(21) == 42

        class Counter:
            def __init__(self):
                self.n = 5

            def add(self, n):
                return self.n + n

        assert pool.submit(Counter().add, 1).result(PATIENCE) == 6

    def test_map(self, pool):
        assert list(pool.map(pow, range(10), itertools.repeat(2))) == [n * n for n in range(10)]
        assert list(pool.map(neg, range(10), chunksize=3)) == [-n for n in range(10)]
        assert list(pool.map(lambda n: n + 1, range(100), buffersize=3)) == list(range(1, 101))
        assert list(pool.map(neg, [])) == []

    @pytest.mark.parametrize("bad", [{"chunksize": 0}, {"buffersize": 0}])
    def test_map_rejects(self, pool, bad):
        with pytest.raises(ValueError, match="at least 1"):
            pool.map(neg, [1], **bad)

    def test_map_reads_no_further_ahead_than_its_buffer(self, pool):
        taken = []
        results = pool.map(neg, (taken.append(n) or n for n in itertools.count()), buffersize=4)
        assert [next(results) for _ in range(10)] == [-n for n in range(10)]
        assert len(taken) == 14
        results.close()

    def test_map_times_out(self, pool, tmp_path):
        assert pool.submit(wait_for, str(tmp_path)).result(PATIENCE)        # what it imports is there now
        results = pool.map(wait_for, [str(tmp_path), str(tmp_path / "never")], timeout=1.5)
        try:
            assert next(results)
            with pytest.raises(cf.TimeoutError):        # the built-in one from Python 3.11
                next(results)
        finally:
            (tmp_path / "never").touch()        # a thread would wait for ever

    def test_map_raises_where_the_failure_is(self, pool):
        results = pool.map(lambda n: 1 // n, [1, 0, 1])
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)

    def test_an_exception_is_itself(self, pool):
        error = pool.submit(raise_it, KeyError("lost")).exception(PATIENCE)
        assert type(error) is KeyError and error.args == ("lost",)

    def test_wait_and_as_completed(self, pool, tmp_path):
        slow = pool.submit(wait_for, str(tmp_path / "go"))
        fast = [pool.submit(neg, n) for n in range(5)]
        assert next(cf.as_completed([slow, fast[0]], PATIENCE)) is fast[0]
        done, left = cf.wait([slow, *fast], PATIENCE, cf.FIRST_COMPLETED)
        assert slow in left and done
        (tmp_path / "go").touch()
        done, left = cf.wait([slow, *fast], PATIENCE)
        assert not left

    def test_asyncio(self, pool):
        async def both():
            loop = asyncio.get_running_loop()
            return await asyncio.gather(loop.run_in_executor(pool, neg, 1), asyncio.wrap_future(pool.submit(neg, 2)))
        assert asyncio.run(both()) == [-1, -2]

    def test_callbacks_may_submit(self, pool):
        done, results = threading.Event(), []

        def again(future):
            results.append(future.result())
            if len(results) < 5:
                pool.submit(neg, future.result()).add_done_callback(again)
            else:
                done.set()

        pool.submit(neg, 7).add_done_callback(again)
        assert done.wait(PATIENCE) and results == [-7, 7, -7, 7, -7]

    def test_submit_from_many_threads(self, pool):
        with cf.ThreadPoolExecutor(8) as threads:
            futures = threads.map(lambda n: pool.submit(neg, n), range(400))
            assert [future.result(PATIENCE) for future in futures] == [-n for n in range(400)]

    def test_shutdown_drains_and_may_be_repeated(self, pool):
        futures = [pool.submit(neg, n) for n in range(50)]
        pool.shutdown()
        assert all(future.done() for future in futures) and pool.task_count == 0
        pool.shutdown()
        with pytest.raises(RuntimeError):
            pool.submit(neg, 1)

    def test_shutdown_without_waiting(self, pool):
        futures = [pool.submit(neg, n) for n in range(20)]
        pool.shutdown(wait=False)
        assert [future.result(PATIENCE) for future in futures] == [-n for n in range(20)]

    def test_shutdown_cancels(self, pool, tmp_path):
        running = [pool.submit(wait_for, str(tmp_path / "go")) for _ in range(4)]
        waiting = [pool.submit(neg, n) for n in range(100)]
        until(lambda: all(future.running() for future in running), "starting")
        pool.shutdown(wait=False, cancel_futures=True)
        (tmp_path / "go").touch()
        assert all(future.result(PATIENCE) for future in running)
        until(lambda: all(future.done() for future in waiting))
        assert sum(future.cancelled() for future in waiting) >= 90      # the standard process pool has a few in its pipe

    def test_with_and_counts(self, pool):
        with pool as same:
            assert same is pool
            future = pool.submit(neg, 1)
            assert future.result(PATIENCE) == -1
        assert pool.get_task_count() == 0
        assert pool.histogram.count == 1

    def test_shutdown_if_idle(self, pool, tmp_path):
        future = pool.submit(wait_for, str(tmp_path / "go"))
        assert pool.shutdown_if_idle() is False
        (tmp_path / "go").touch()
        assert future.result(PATIENCE)
        until(lambda: pool.task_count == 0)
        assert pool.shutdown_if_idle() is True

    def test_references_are_dropped(self, pool):
        class Thing:
            def method(self):
                pass

        thing = Thing()
        collected = threading.Event()
        watch = weakref.ref(thing, lambda _: collected.set())
        future = pool.submit(thing.method)
        del thing
        future.result(PATIENCE)
        gc.collect()
        assert collected.wait(PATIENCE), watch()

    def test_arrays(self, pool):
        array = numpy.arange(300_000.0).reshape(300, 1000)
        result = pool.submit(lambda a: a * 2, array).result(PATIENCE)
        assert (result == array * 2).all()
        result[0] = 0       # as it could be, had it been computed here


@pytest.mark.parametrize("kind", ["ThreadExecutor(2)", "ProcessExecutor(2)", "RemoteExecutor(['2/:'])"])
def test_functions_of_main_and_an_exit_without_shutdown(kind):
    """A script without a guard, whose functions are its own, and which forgets to shut down: all is done, and it ends."""
    done = run_script("""
        import executors, sys
        FACTOR = 3
        def scale(n):
            return n * FACTOR
        pool = executors.%s
        for n in range(5):
            pool.submit(scale, n).add_done_callback(lambda future: print(f"{future.result()}\\n", end="", flush=True))
    """ % kind)
    assert sorted(done.stdout.split()) == ["0", "12", "3", "6", "9"], done
    assert done.returncode == 0 and not done.stderr


def test_a_broken_process_pool_is_replaced():
    with executors.ProcessExecutor(1) as pool:
        with pytest.raises(cf.process.BrokenProcessPool):
            pool.submit(os._exit, 1).result(PATIENCE)
        until(lambda: pool._pool._broken)
        assert pool.submit(neg, 1).result(PATIENCE) == -1


def test_sizes_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("EXECUTORS_THREADPOOL_SIZE", "3")
    with executors.ThreadExecutor() as pool:
        assert pool._pool._max_workers == 3
    monkeypatch.setenv("EXECUTORS_THREADPOOL_SIZE", "many")
    with pytest.raises(ValueError, match="EXECUTORS_THREADPOOL_SIZE is 'many'"):
        executors.ThreadExecutor()


# ──────────────────────────────────────── defaults and parallelize ────────────────────────────────────────────────


MAKE = {
    "thread": "ThreadExecutor(3)", "process": "ProcessExecutor(3)", "pipe": "RemoteExecutor(['3/:'])",
    "ssh": "RemoteExecutor([f'3/alpha python={sys.executable}'], ssh_options=sys.argv[1:])"}


@pytest.mark.parametrize("kind", MAKE)
class TestExits:
    """What happens to an executor when its interpreter ends, each in an interpreter of its own."""

    def run(self, sshds, kind, text):
        return run_script("import atexit, executors, os, sys, time\n" + textwrap.dedent(text).replace("MAKE", f"executors.{MAKE[kind]}"),
                          *sshds[0].ssh_options)

    def test_without_shutdown(self, sshds, kind):
        done = self.run(sshds, kind, """
            pool = MAKE
            pool.submit(lambda: time.sleep(0.5)).add_done_callback(lambda future: os.write(1, b"done"))
        """)
        assert (done.returncode, done.stdout, done.stderr) == (0, "done", "")

    def test_after_a_shutdown_that_did_not_wait(self, sshds, kind):
        done = self.run(sshds, kind, """
            pool = MAKE
            pool.submit(time.sleep, 0.5).add_done_callback(lambda future: os.write(1, b"done"))
            pool.shutdown(wait=False)
        """)
        assert (done.returncode, done.stdout, done.stderr) == (0, "done", "")

    def test_cancelled_right_before(self, sshds, kind):
        done = self.run(sshds, kind, """
            with MAKE as pool:
                future = pool.submit(time.sleep, 0.5)
                future.cancel()
            print("done")
        """)
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")

    @pytest.mark.parametrize("when", ["an exit function", "a callback"])
    def test_submitting_too_late(self, sshds, kind, when):
        """An error, and no hang."""
        done = self.run(sshds, kind, """
            def late(*_):
                try:
                    pool.submit(id, None)
                except RuntimeError as error:
                    os.write(1, str(error).encode())
            if WHEN == "a callback":
                pool = MAKE
                pool.submit(time.sleep, 0.5).add_done_callback(late)
                pool.shutdown(wait=False)
            else:
                atexit.register(late)
                pool = MAKE
                pool.submit(id, None).result()
        """.replace("WHEN", repr(when)))
        assert done.returncode == 0 and "cannot schedule new futures" in done.stdout and not done.stderr, done

    def test_an_executor_inside_a_task(self, sshds, kind):
        done = self.run(sshds, kind, """
            def nested():
                import executors
                with executors.ThreadExecutor(2) as threads, executors.RemoteExecutor(["2/:"]) as pool:
                    return list(threads.map(pow, [2, 3], [5, 2])) + list(pool.map(pow, [2, 3], [5, 2]))
            with MAKE as pool:
                print(pool.submit(nested).result())
        """)
        assert (done.returncode, done.stdout, done.stderr) == (0, "[32, 9, 32, 9]\n", "")

    def test_a_controller_that_forks(self, sshds, kind):
        if kind in ("thread", "process"):
            pytest.skip("the standard library's pools do not promise it")
        done = self.run(sshds, kind, """
            import warnings
            warnings.simplefilter("ignore", DeprecationWarning)      # from Python 3.12, of any fork beside threads
            pool = MAKE
            assert pool.submit(pow, 2, 5).result() == 32
            pid = os.fork()
            if not pid:
                try:
                    pool.submit(pow, 2, 5)
                except RuntimeError as error:
                    print(error, flush=True)
                with MAKE as own:
                    print(own.submit(pow, 2, 6).result(), flush=True)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            print(pool.submit(pow, 2, 7).result())
            pool.shutdown()
        """)
        assert done.stdout == "this executor belongs to the parent process; make another one after a fork\n64\n128\n", done


# ────────────────────────────────────────── CPython's own executor tests ──────────────────────────────────────────


def cpythons_tests():
    """Return CPython's test classes for executors; not every distribution of Python has them."""
    try:
        from test.test_concurrent_futures.executor import ExecutorTest
        from test.test_concurrent_futures.test_as_completed import AsCompletedTests
        from test.test_concurrent_futures.test_shutdown import ExecutorShutdownTest
        from test.test_concurrent_futures.test_wait import WaitTests
    except ImportError:
        try:
            from test.test_concurrent_futures import AsCompletedTests, ExecutorShutdownTest, ExecutorTest, WaitTests
        except ImportError:
            return ()
    return ExecutorTest, WaitTests, AsCompletedTests, ExecutorShutdownTest


class CPythons(unittest.TestCase):
    """The part of CPython's tests that makes the executors; here, ours."""

    __test__, worker_count = False, 4

    @pytest.fixture(autouse=True)
    def _options(self, sshds):
        self.ssh_options = sshds[0].ssh_options

    def executor_type(self, max_workers=4):
        if self.kind == "ssh":
            return RemoteExecutor([f"{max_workers}/alpha python={sys.executable}"], ssh_options=self.ssh_options, show_status=False)
        if self.kind == "pipe":
            return RemoteExecutor([f"{max_workers}/:"], show_status=False)
        return {"thread": executors.ThreadExecutor, "process": executors.ProcessExecutor}[self.kind](max_workers)

    def setUp(self):
        self.executor = self.executor_type(self.worker_count)
        if self.kind in ("pipe", "ssh"):
            self.executor.submit(pow, 1, 1).result()        # a machine has to be reached before anything can have started

    def tearDown(self):
        self.executor.shutdown()
        self.executor = None

    # These start a program that makes an executor of concurrent.futures by its name; TestExits does the same with ours.
    test_interpreter_shutdown = test_submit_after_interpreter_shutdown = test_hang_gh83386 = test_hang_gh94440 = None


for base, kind in itertools.product(cpythons_tests(), MAKE):
    globals()[f"Test{base.__name__}{kind}"] = type(f"Test{base.__name__}{kind}", (CPythons, base), {"kind": kind, "__test__": True})
    if kind in ("pipe", "ssh"):     # what a record says of a negative number is tested with the records
        globals()[f"Test{base.__name__}{kind}"].test_max_workers_negative = None

if not cpythons_tests():
    @pytest.mark.skip(reason="this Python comes without its own tests (test.test_concurrent_futures)")
    def test_cpythons_own():
        pass


class TestDefaults:
    @pytest.fixture(autouse=True)
    def clean(self, monkeypatch):
        monkeypatch.setenv("EXECUTORS_REMOTE_WORKERS", "2/:")
        yield
        executors.DefaultExecutors().shutdown()

    def test_one_of_each(self):
        first, second = executors.DefaultExecutors(), executors.DefaultExecutors()
        with cf.ThreadPoolExecutor(8) as threads:
            assert len(set(threads.map(lambda _: first.thread_pool(), range(50)))) == 1
        assert first.process_pool() is second.process_pool() and first.remote_pool() is second.remote_pool()
        old = first.remote_pool()
        first.shutdown()
        assert second.remote_pool() is not old

    @pytest.mark.parametrize("method", [*executors.Method, None])
    def test_shard_call_wait(self, method):
        with executors.ThreadExecutor(2) as own:
            @executors.parallelize(method or own)
            def total(numbers, start=0):
                return sum(numbers, start)

            numbers = list(range(100))
            shards = [numbers[n::4] for n in range(4)]
            partial_sums = [total(shard) for shard in shards]
            assert sum(executors.wait_all(partial_sums)) == 4950
            assert total([0], start=total([1, 2])).result(PATIENCE) == 3      # futures are awaited
            with pytest.raises(TypeError):
                total([total(["x"])]).result(PATIENCE) if False else total(total(["x"])).result(PATIENCE)

    def test_an_awaited_call_fails_if_its_executor_cannot_be_made(self, monkeypatch, tmp_path):
        monkeypatch.delenv("EXECUTORS_REMOTE_WORKERS")
        monkeypatch.setenv("HOME", str(tmp_path))
        one, two = executors.parallelize()(lambda: 1), executors.parallelize(executors.Method.REMOTE)(neg)
        with pytest.raises(ValueError, match="no remote workers"):
            two(one()).result(PATIENCE)

    def test_wait_all_raises_at_once(self, tmp_path):
        pool = executors.DefaultExecutors().thread_pool()
        slow = pool.submit(wait_for, str(tmp_path / "go"))
        with pytest.raises(ZeroDivisionError):
            executors.wait_all([slow, pool.submit(divmod, 1, 0)])
        assert not slow.done()
        (tmp_path / "go").touch()

    def test_parentheses_are_asked_for(self):
        with pytest.raises(TypeError, match="parentheses"):
            executors.parallelize(neg)

    def test_no_workers_configured(self, monkeypatch, tmp_path):
        monkeypatch.delenv("EXECUTORS_REMOTE_WORKERS")
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(ValueError, match=r"EXECUTORS_REMOTE_WORKERS.*\.config/executors/workers"):
            executors.DefaultExecutors().remote_pool()
        (tmp_path / ".config/executors").mkdir(parents=True)
        (tmp_path / ".config/executors/workers").write_text("# the lab\n1/:   # this one\n\n")
        assert executors.DefaultExecutors().remote_pool().submit(neg, 1).result(PATIENCE) == -1

    def test_running_work_is_finished_at_exit(self):
        done = run_script("""
            import executors
            @executors.parallelize(executors.Method.REMOTE)
            def inner(n):
                return n + 1
            @executors.parallelize(executors.Method.THREAD)
            def outer(n):
                print(f"{inner(n).result()}\\n", end="", flush=True)
            for n in range(3):
                outer(n)
        """, env={**os.environ, "EXECUTORS_REMOTE_WORKERS": "2/:"})
        assert sorted(done.stdout.split()) == ["1", "2", "3"] and not done.stderr, done


# ───────────────────────────────────────────── records and policies ───────────────────────────────────────────────


class TestRecords:
    @pytest.mark.parametrize("text", ["8/me@bigbox weight=2 python=~/venv/bin/python", "4/lab2", ":", "lab", "me@::1", "1/:"])
    def test_round_trip(self, text):
        assert str(RemoteWorkerRecord.parse(text)) == text

    @pytest.mark.parametrize("text, complaint", [
        ("", "machine ''"), ("-oProxyCommand=evil", "begin with '-'"), ("-x@host", "username '-x'"), ("x/host", "x/host"),
        ("0/host", "at least 1"), ("host weight=0", "more than 0"), ("host wight=1", "no setting 'wight'"),
        ("host python=a;b", "plain path"), ("me@", "machine"), ("me@:", "this machine, as the user you are"), ("host:2222", "a port belongs into"), ("[::1]", "no brackets"), ("a@b@c", "hold spaces, '@'"), ("host weight=x", "could not convert")])
    def test_bad_texts_are_quoted(self, text, complaint):
        with pytest.raises(ValueError) as caught:
            RemoteWorkerRecord.parse(text)
        assert complaint in str(caught.value) and repr(text) in str(caught.value)

    def test_it_is_frozen(self):
        with pytest.raises(AttributeError):
            RemoteWorkerRecord(None, "host").weight = 2

    def test_weights_are_kept_to(self):
        policy = executors.WeightedRandomRemoteWorkerSelectionPolicy(random.Random(1))
        records = [RemoteWorkerRecord(None, "a"), RemoteWorkerRecord(None, "b", weight=3)]
        chosen = [policy.choose(records) for _ in range(4000)]
        assert 2850 < sum(chosen) < 3150

    @pytest.mark.parametrize("policy", [executors.WeightedRandomRemoteWorkerSelectionPolicy(),
                                        executors.RoundRobinRemoteWorkerSelectionPolicy()])
    def test_avoidance(self, policy):
        records = [RemoteWorkerRecord(None, name) for name in "abc"]
        assert {policy.choose(records, {"a", "c"}) for _ in range(50)} == {1}
        assert policy.choose(records, {"a", "b", "c"}) is None

    def test_round_robin_takes_turns(self):
        policy = executors.RoundRobinRemoteWorkerSelectionPolicy()
        records = [RemoteWorkerRecord(None, name) for name in "abc"]
        assert [policy.choose(records) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]

    @pytest.mark.parametrize("options", [{"workers": []}, {"workers": ["1/:"], "heartbeat_seconds": 0},
                                         {"workers": ["1/:"], "max_bundle_failures": -1}, {"workers": ["1/:"], "bundle_timeout": 0}])
    def test_bad_options(self, options):
        before = threading.active_count()
        with pytest.raises(ValueError):
            RemoteExecutor(**options)
        assert threading.active_count() == before

    def test_a_missing_file_is_told_at_once(self):
        before = threading.active_count()
        with pytest.raises(FileNotFoundError, match="no-such-file"):
            RemoteExecutor(["1/:"], files=["no-such-file"])
        assert threading.active_count() == before


class TestHistogram:
    def test_percentiles_are_within_ten_per_cent(self):
        source = random.Random(7)
        values = sorted(source.lognormvariate(-3, 2) for _ in range(5000))
        histogram = executors.Histogram()
        for value in values:
            histogram.add(value)
        for p in (1, 25, 50, 75, 95, 99):
            assert histogram.percentile(p) == pytest.approx(values[int(len(values) * p / 100)], rel=0.1)
        assert histogram.percentile(0) == values[0] and histogram.percentile(100) == values[-1]

    def test_extremes_and_nothing(self):
        histogram = executors.Histogram()
        assert str(histogram) == "nothing counted" and histogram.percentile(50) == 0 and histogram.mean == 0
        for value in (0.0, 1e-9, 1e9):
            histogram.add(value)
        assert histogram.count == 3 and histogram.maximum == 1e9 and histogram.minimum == 0
        assert "count 3" in str(histogram)

    def test_merge(self):
        one, other = executors.Histogram(), executors.Histogram()
        one.add(1)
        other.add(3)
        one.merge(other)
        assert (one.count, one.mean, one.minimum, one.maximum) == (2, 2, 1, 3)


# ──────────────────────────────────────────── the scheduler, alone ────────────────────────────────────────────────


class Farm:
    """A scheduler with a clock of ours. Launched attempts wait in `running` until a test ends them."""

    def __init__(self, *workers, **options):
        self.time = 0.0
        self.scheduler = executors._Scheduler(executors.RoundRobinRemoteWorkerSelectionPolicy(), jitter=lambda: 0.5, **options)
        self.running, self.killed, self.settled, self.recalls, self.connects, self.finished = {}, [], {}, [], [], 0
        self.functions = {}
        for text in workers:
            self.decide(self.scheduler.add_worker, RemoteWorkerRecord.parse(text), self.time)
        for worker in [*self.connects]:
            self.up(worker)

    def up(self, worker):
        self.connects.remove(worker)
        self.decide(self.scheduler.up, worker, f"link to {worker.machine} at {self.time}", 1, self.time)

    def decide(self, decision, *operands):
        answer = decision(*operands)
        for verb, *rest in self.scheduler.take_actions():
            if verb == executors._LAUNCH:
                assert rest[0] == rest[1].worker.link
                self.running[rest[1].ident] = rest[1]
            elif verb == executors._KILL:
                self.killed.append(rest[1])
            elif verb == executors._SETTLE:
                assert rest[0] not in self.settled, "settled twice"
                self.settled[rest[0]] = (rest[1], rest[2])
            elif verb == executors._RECALL:
                self.recalls.append(tuple(rest))
            elif verb == executors._CONNECT:
                self.connects.append(rest[0])
            elif verb == executors._FINISH:
                self.finished += 1
        self.check()
        return answer

    def check(self):
        """Conservation: every slot is free or taken, and every bundle is waiting, running or settled."""
        scheduler = self.scheduler
        running = set()
        for worker in scheduler.workers:
            assert worker.started == min(worker.count, len(worker.inflight)) or worker.state != worker.UP
            assert (worker in scheduler._idle) == (worker.state == worker.UP and len(worker.inflight) < worker.count)
            running |= {attempt.bundle for attempt in worker.inflight.values() if attempt in attempt.bundle.attempts}
        queued = [b for q in (scheduler._queue, *scheduler._retries.values()) for b in q if not b.settled]
        assert len(queued) == scheduler.waiting and len(running) + len(queued) == scheduler.unfinished
        assert not running & set(queued)

    def function(self, name="f"):
        if name not in self.functions:
            self.functions[name] = executors._Function(len(self.functions), name, b"", executors._Durations())
        return self.functions[name]

    def submit(self, name="f", number=1):
        bundles = [executors._Bundle(self.function(name), b"") for _ in range(number)]
        for bundle in bundles:
            self.decide(self.scheduler.submit, bundle, self.time)
        return bundles if number > 1 else bundles[0]

    def attempts(self, bundle):
        return [attempt for attempt in self.running.values() if attempt.bundle is bundle]

    def finish(self, *attempts, seconds=1.0):
        for attempt in attempts:
            del self.running[attempt.ident]
            self.decide(self.scheduler.finish, attempt.worker, attempt.worker.link,
                        [(wire.RESULT, attempt.ident, int(seconds * 1e6), None)], self.time)

    def die(self, attempt):
        del self.running[attempt.ident]
        self.decide(self.scheduler.died, attempt.worker, attempt.worker.link, attempt.ident, 0, "killed", "", self.time)

    def free(self, ident):
        attempt = self.running.pop(ident)
        self.decide(self.scheduler.freed, attempt.worker, attempt.worker.link, ident, 0, self.time)

    def lose(self, worker, permanent=False):
        for attempt in [*worker.inflight.values()]:
            self.running.pop(attempt.ident, None)
        if worker in self.connects:
            self.connects.remove(worker)
        self.decide(self.scheduler.down, worker, worker.link, "lost", permanent, self.time)

    def tick(self, seconds=0.0):
        self.time += seconds
        self.decide(self.scheduler.tick, self.time)

    def teach(self, name="f", seconds=1.0, number=3):
        """Let a function have completions."""
        for _ in range(number):
            self.finish(*self.attempts(self.submit(name)), seconds=seconds)


class TestScheduler:
    def test_first_come_first_served(self):
        farm = Farm("2/a")
        bundles = farm.submit(number=4)
        assert [len(farm.attempts(bundle)) for bundle in bundles] == [1, 1, 0, 0]
        farm.finish(*farm.attempts(bundles[1]))
        assert [len(farm.attempts(bundle)) for bundle in bundles] == [1, 0, 1, 0]

    def test_long_bundles_are_not_sent_ahead_and_short_ones_are(self):
        farm = Farm("1/a")
        farm.teach(seconds=1.0)
        assert sum(len(farm.attempts(bundle)) for bundle in farm.submit(number=5)) == 1
        farm = Farm("1/a")
        farm.teach(seconds=0.0005)
        assert sum(len(farm.attempts(bundle)) for bundle in farm.submit(number=50)) == 5

    def test_what_was_sent_ahead_is_recalled_for_an_idle_slot(self):
        farm = Farm("1/a", "1/b")
        farm.teach(seconds=0.0005)
        bundles = farm.submit(number=6)
        on_b = [farm.attempts(bundle)[0] for bundle in bundles if farm.attempts(bundle)[0].worker.machine == "b"]
        on_a = [attempt for attempt in farm.running.values() if attempt not in on_b]
        farm.finish(*on_b, seconds=0.0005)
        link, number = farm.recalls[-1]
        assert link == on_a[0].worker.link and number == 1
        given = on_a[-1]
        del farm.running[given.ident]
        farm.decide(farm.scheduler.recalled, given.worker, given.worker.link, [given.ident], farm.time)
        again, = farm.attempts(given.bundle)
        assert again.worker.machine == "b" and not given.bundle.failures

    def test_a_retry_goes_elsewhere_while_there_is_an_elsewhere(self):
        farm = Farm("1/a", "1/b")
        blocker = farm.submit()
        bundle = farm.submit()
        first, = farm.attempts(bundle)
        farm.die(first)
        assert not farm.attempts(bundle)        # the other machine is busy: wait for it
        other = farm.submit()
        assert farm.attempts(other)[0].worker is first.worker      # and hold nobody up
        farm.finish(*farm.attempts(blocker))
        second, = farm.attempts(bundle)
        assert second.worker is not first.worker
        farm.die(second)
        farm.finish(*farm.attempts(other))
        farm.die(*farm.attempts(bundle))
        kind, error = farm.settled[bundle]
        assert isinstance(error, BundleError) and len(error.attempts) == 3 and "f: killed the process" in str(error)

    def test_a_lost_machine_costs_its_bundles_nothing(self):
        farm = Farm("2/a", max_bundle_failures=1)
        first, second, third = farm.submit(number=3)
        worker = farm.attempts(first)[0].worker
        for expected in (1.0, 2.0, 4.0):
            farm.lose(worker)
            assert worker.retry_at == pytest.approx(farm.time + expected)
            farm.tick(expected)
            farm.up(worker)
            assert farm.attempts(first) and farm.attempts(second) and not farm.attempts(third)
        farm.finish(*farm.attempts(first))
        farm.lose(worker)
        assert worker.retry_at == pytest.approx(farm.time + 1)     # it had proved itself
        assert not first.failures and not second.failures

    def test_reports_of_an_old_link_are_ignored(self):
        farm = Farm("1/a")
        bundle = farm.submit()
        old, = farm.attempts(bundle)
        link = old.worker.link
        farm.lose(old.worker)
        farm.tick(1)
        farm.up(old.worker)
        farm.decide(farm.scheduler.finish, old.worker, link, [(wire.RESULT, old.ident, 1, None)], farm.time)
        assert bundle not in farm.settled
        farm.finish(*farm.attempts(bundle))
        assert bundle in farm.settled

    def test_quarantine_is_at_most_a_minute(self):
        farm = Farm("1/a")
        worker = farm.scheduler.workers[0]
        for _ in range(20):
            farm.lose(worker)
            assert worker.retry_at - farm.time <= 60
            farm.tick(60)
            if worker in farm.connects:
                farm.up(worker)

    def test_no_more_than_eight_handshakes(self):
        farm = Farm()
        for n in range(20):
            farm.decide(farm.scheduler.add_worker, RemoteWorkerRecord(None, f"m{n}", count=1), 0.0)
        assert len(farm.connects) == 8
        farm.up(farm.connects[0])
        assert len(farm.connects) == 8

    def test_hopeless_at_once_when_every_cause_is_permanent(self):
        farm = Farm()
        for name in "ab":
            farm.decide(farm.scheduler.add_worker, RemoteWorkerRecord(None, name), 0.0)
        bundle = farm.submit()
        a, b = farm.scheduler.workers
        farm.lose(a, permanent=True)
        assert bundle not in farm.settled
        farm.lose(b, permanent=True)
        assert isinstance(farm.settled[bundle][1], NoWorkersError) and "a  lost" in str(farm.settled[bundle][1])
        with pytest.raises(NoWorkersError):
            farm.submit()
        farm.decide(farm.scheduler.add_worker, RemoteWorkerRecord(None, "c", count=1), 0.0)
        farm.up(farm.connects[-1])
        assert farm.attempts(farm.submit())

    def test_giving_up_counts_only_time_we_were_awake(self):
        farm = Farm("1/a")
        farm.lose(farm.scheduler.workers[0])
        bundle = farm.submit()
        farm.tick()
        farm.connects.clear()
        farm.tick(1000)
        assert bundle not in farm.settled
        for _ in range(61):
            farm.tick(1)
        assert isinstance(farm.settled[bundle][1], NoWorkersError)

    def test_cancel(self):
        farm = Farm("1/a")
        running, waiting = farm.submit(number=2)
        assert farm.decide(farm.scheduler.cancel, waiting) and farm.settled[waiting][0] == executors._CANCELLED
        assert farm.decide(farm.scheduler.cancel, running) and not farm.decide(farm.scheduler.cancel, running)
        third = farm.submit()
        assert not farm.attempts(third)         # the slot is not free before the machine says so
        farm.free(farm.killed[0])
        assert farm.attempts(third)

    def test_bundle_timeout(self):
        farm = Farm("1/a", bundle_timeout=5)
        bundle, after = farm.submit(number=2)
        farm.tick(4.9)
        assert bundle not in farm.settled
        farm.tick(0.2)
        assert isinstance(farm.settled[bundle][1], executors.BundleTimeoutError) and farm.killed
        farm.free(farm.killed[0])
        farm.tick(4.9)
        assert after not in farm.settled

    def test_a_straggler_gets_a_backup_and_the_first_wins(self):
        farm = Farm("1/a", "1/b")
        farm.teach(seconds=1.0)
        bundle = farm.submit()
        slow, = farm.attempts(bundle)
        farm.tick(1.4)
        assert len(farm.attempts(bundle)) == 1
        farm.tick(0.3)
        backup = farm.attempts(bundle)[1]
        assert backup.backup and backup.worker is not slow.worker
        farm.tick(10)
        assert len(farm.attempts(bundle)) == 2      # at most two
        farm.finish(backup)
        assert bundle in farm.settled and farm.killed == [slow.ident]
        farm.finish(slow)       # it was too late to be killed: dropped

    @pytest.mark.parametrize("why", ["backups are off", "no completions yet", "too short to bother", "no idle slot", "work waits"])
    def test_no_backup_when(self, why):
        farm = Farm("1/a", "1/b", schedule_backups=why != "backups are off")
        if why != "no completions yet":
            farm.teach(seconds=0.1 if why == "too short to bother" else 1.0)
        bundle = farm.submit()
        if why in ("no idle slot", "work waits"):
            farm.submit(number=1 if why == "no idle slot" else 2)
        farm.tick(0.45 if why == "too short to bother" else 100)
        assert len(farm.attempts(bundle)) == 1

    def test_no_backup_on_the_same_machine(self):
        farm = Farm("2/a")
        farm.teach()
        bundle = farm.submit()
        farm.tick(100)
        assert len(farm.attempts(bundle)) == 1

    def test_new_work_takes_the_youngest_backups_slot(self):
        farm = Farm("2/a", "2/b")
        farm.teach()
        bundles = farm.submit(number=2)
        farm.tick(2)
        backups = [attempt for attempt in farm.running.values() if attempt.backup]
        assert len(backups) == 2
        new = farm.submit()
        assert farm.killed == [max(attempt.ident for attempt in backups)]
        farm.free(farm.killed[0])
        assert farm.attempts(new)
        farm.tick(100)
        assert not any(bundle in farm.settled for bundle in bundles)

    def test_the_number_of_backups_is_bounded(self):
        farm = Farm(*(f"2/m{n}" for n in range(10)))
        farm.teach()
        farm.submit(number=10)
        farm.tick(2)
        assert sum(attempt.backup for attempt in farm.running.values()) == 2

    def test_if_the_slow_one_dies_the_backup_goes_on(self):
        farm = Farm("1/a", "1/b")
        farm.teach()
        bundle = farm.submit()
        slow, = farm.attempts(bundle)
        farm.tick(2)
        farm.lose(slow.worker)
        assert len(farm.attempts(bundle)) == 1
        farm.finish(*farm.attempts(bundle))
        assert bundle in farm.settled

    def test_workers_come_and_go(self):
        farm = Farm("1/a")
        bundle = farm.submit()
        farm.decide(farm.scheduler.add_worker, RemoteWorkerRecord.parse("1/b"), farm.time)
        farm.up(farm.connects[0])
        farm.running.clear()
        assert farm.decide(farm.scheduler.remove_worker, RemoteWorkerRecord.parse("1/a"), farm.time)
        assert farm.attempts(bundle)[0].worker.machine == "b"
        assert not farm.decide(farm.scheduler.remove_worker, RemoteWorkerRecord.parse("1/a"), farm.time)

    def test_close(self):
        farm = Farm("1/a")
        running, waiting = farm.submit(number=2)
        farm.decide(farm.scheduler.close, True)
        assert farm.settled[waiting][0] == executors._CANCELLED and not farm.finished
        with pytest.raises(RuntimeError):
            farm.submit()
        farm.finish(*farm.attempts(running))
        assert farm.finished == 1

    @pytest.mark.parametrize("seed", range(20))
    def test_random_histories_conserve_everything(self, seed):
        """Anything may happen in any order; all is settled once, and `Farm.check` holds after every step."""
        source = random.Random(seed)
        farm = Farm("2/a", "1/b", "3/c", max_bundle_failures=2)
        bundles = []
        for _ in range(400):
            roll, running = source.random(), [*farm.running.values()]
            if roll < 0.35:
                bundles.append(farm.submit(source.choice("fgh")))
            elif roll < 0.65 and running:
                farm.finish(source.choice(running), seconds=source.choice([1e-4, 0.1, 3.0]))
            elif roll < 0.7 and running:
                farm.die(source.choice(running))
            elif roll < 0.75 and bundles:
                farm.decide(farm.scheduler.cancel, source.choice(bundles))
            elif roll < 0.8:
                farm.lose(source.choice(farm.scheduler.workers)) if source.random() < 0.5 else None
            elif roll < 0.85 and farm.killed:
                ident = farm.killed.pop()
                if ident in farm.running:
                    farm.free(ident)
            elif roll < 0.9 and running:
                worker = source.choice(running).worker
                given = [ident for ident in worker.inflight if worker.inflight[ident].since is None][:3]
                for ident in given:
                    del farm.running[ident]
                farm.decide(farm.scheduler.recalled, worker, worker.link, given, farm.time)
            else:
                farm.tick(source.choice([0.1, 1, 5]))
                for worker in [*farm.connects]:
                    farm.up(worker)
        while farm.scheduler.unfinished:
            farm.finish(*farm.running.values())
            farm.tick(60)
            for worker in [*farm.connects]:
                farm.up(worker)
        assert set(farm.settled) == set(bundles)
        assert not farm.scheduler._backups


# ───────────────────────────────────────────────────── frames ─────────────────────────────────────────────────────


def read_all(reader):
    out = []
    try:
        while True:
            out += reader.read()
    except EOFError:
        return out


class Stream:
    """A descriptor that yields given bytes, then ends."""

    def __init__(self, data):
        self.fd, out = os.pipe()
        self._writer = threading.Thread(target=self._write, args=(out, data))
        self._writer.start()

    def _write(self, out, data):
        with os.fdopen(out, "wb") as file:
            file.write(data)

    def __enter__(self):
        return self.fd

    def __exit__(self, *_):
        while os.read(self.fd, 1 << 20):
            pass
        self._writer.join()
        os.close(self.fd)


class TestFrames:
    def test_round_trip(self):
        frames = [(wire.PING, 0, b""), (wire.KILL, 2 ** 64 - 1, b"x"), (wire.OUTPUT, 1, b"y" * 70_000), (wire.PONG, 1, b"")] * 3
        with Stream(b"".join(wire.frame(*frame) for frame in frames)) as fd:
            assert [(kind, ident, bytes(data[17:])) for kind, ident, data in read_all(wire.FrameReader(fd))] == frames

    @pytest.mark.parametrize("length", range(1, 17 + 5))
    def test_truncation_says_what_was_expected(self, length):
        data = wire.frame(wire.KILL, 7, b"12345")
        with Stream(data + data[:length]) as fd, pytest.raises(wire.FrameError) as caught:
            read_all(wire.FrameReader(fd))
        assert f"expected {17 if length < 17 else 22} bytes, got {length}" in str(caught.value)

    def test_truncation_inside_a_long_frame(self):
        with Stream(wire.frame(wire.OUTPUT, 1, b"x" * 500_000)[:-1]) as fd, pytest.raises(wire.FrameError, match="ended inside"):
            read_all(wire.FrameReader(fd))

    @pytest.mark.parametrize("size", [wire.MAX_FRAME + 1, 2 ** 63, 2 ** 64 - 1])
    def test_absurd_lengths(self, size):
        with Stream(struct.pack("!BQQ", wire.OUTPUT, 0, size)) as fd, pytest.raises(wire.FrameError, match=f"announces {size} bytes"):
            read_all(wire.FrameReader(fd))

    def test_a_part_that_overruns(self):
        data = b"".join(map(bytes, wire.message(wire.RESULT, 1, 0, ([100_000], [b"x" * 100_000]))))
        broken = data.replace(struct.pack("!Q", 100_000), struct.pack("!Q", 99_000), 1)
        with Stream(broken) as fd, pytest.raises(wire.FrameError, match="overruns"):
            read_all(wire.MessageReader(fd))

    @pytest.mark.parametrize("value", [None, 1.5, "é" * 10, (1, (2, b"x")), list(range(50_000)), b"x" * 3_000_000, "y" * 200_000,
                                       {"a": numpy.arange(1_000_000), "b": numpy.ones(300_000), "c": [1, 2]},
                                       [numpy.full(n * 997 % 20_000 + 8192, n) for n in range(300)]])
    def test_messages(self, value):
        data = b"".join(map(bytes, wire.message(wire.RESULT, 5, 77, wire.pack(value))))
        with Stream(data) as fd:
            (kind, ident, tag, segments), = read_all(wire.MessageReader(fd))
        assert (kind, ident, tag) == (wire.RESULT, 5, 77)
        assert pickle.dumps(wire.unpack(segments)) == pickle.dumps(value)

    def test_large_buffers_are_not_copied_into_the_pickle(self):
        lengths, buffers = wire.pack(numpy.zeros(1_000_000))
        assert lengths[0] < 1000 and lengths[1] == 8_000_000

    def test_messages_interleave(self):
        one = wire.message(wire.RESULT, 1, 0, wire.pack(numpy.full(400_000, 1.0)))
        two = wire.message(wire.RESULT, 2, 0, wire.pack(numpy.full(400_000, 2.0)))
        mixed = [one[0], two[0]]
        for at in range(1, len(one), 2):
            mixed += [*one[at:at + 2], wire.frame(wire.PONG), *two[at:at + 2]]
        with Stream(b"".join(map(bytes, mixed))) as fd:
            messages = read_all(wire.MessageReader(fd))
        results = {ident: wire.unpack(body) for kind, ident, _, body in messages if kind == wire.RESULT}
        assert results[1].sum() == 400_000 and results[2].sum() == 800_000
        assert sum(kind == wire.PONG for kind, *_ in messages) == len(range(1, len(one), 2))

    def test_forgetting_half_a_message(self):
        head, *parts = wire.message(wire.RESULT, 1, 0, wire.pack(b"x" * 3_000_000))
        reader = wire.MessageReader(-1)
        read_in, out = os.pipe()
        reader.fd = read_in
        os.write(out, head)
        assert reader.read() == []
        reader.forget(1)
        with Stream(b"".join(map(bytes, parts)) + wire.frame(wire.PONG)) as reader.fd:
            assert [kind for kind, *_ in read_all(reader)] == [wire.PONG]
        os.close(read_in), os.close(out)

    def test_an_outbox_survives_a_full_pipe(self):
        read_in, out = os.pipe()
        os.set_blocking(out, False)
        frames = [wire.frame(wire.OUTPUT, n, b"x" * (n * 997 % 70_000)) for n in range(100)]
        outbox, got = wire.Outbox(out), []
        outbox.put(frames)
        while not outbox.flush():
            got.append(os.read(read_in, 50_000))
        os.close(out)
        with os.fdopen(read_in, "rb") as rest:
            got.append(rest.read())
        assert b"".join(got) == b"".join(frames) and outbox.size == 0

    def test_the_wire_parses_on_old_pythons(self):
        with open(wire.__file__, encoding="utf-8") as file:
            ast.parse(file.read(), feature_version=(3, 6))


# ────────────────────────────────────────────────── one-shot mode ─────────────────────────────────────────────────


class TestOneShot:
    def run(self, tmp_path, code, result="result"):
        path = tmp_path / "code"
        if code is not None:
            path.write_bytes(code if type(code) is bytes else cloudpickle.dumps(code))
        return subprocess.run([sys.executable, os.path.join(HERE, "remote_worker.py"), "--code_file", str(path), "--result_file",
                               str(tmp_path / result)], capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path)

    def test_it_runs(self, tmp_path):
        offset = 40
        done = self.run(tmp_path, (lambda n, m: n + m + offset, (1,), {"m": 1}))
        assert (done.returncode, done.stderr) == (0, "")
        assert pickle.loads((tmp_path / "result").read_bytes()) == (True, 42)

    @pytest.mark.parametrize("code, result, status, words", [
        (None, "result", 3, ["code", "No such file"]),
        (b"rubbish", "result", 4, ["unpickle", "code"]),
        ((len, ()), "result", 4, ["unpickle", "code", "not enough values"]),
        ((divmod, (1, 0), {}), "result", 5, ["code", "ZeroDivisionError"]),
        ((lambda: sys.exit(3), (), {}), "result", 5, ["SystemExit"]),
        ((threading.Lock, (), {}), "result", 6, ["pickle", "result"]),
        ((int, (), {}), "no/such/folder", 7, ["write", "no/such/folder"]),
    ])
    def test_each_failure_has_a_status_and_a_line(self, tmp_path, code, result, status, words):
        done = self.run(tmp_path, code, result)
        assert done.returncode == status and done.stderr.count("\n") == 1, done.stderr
        assert all(word in done.stderr for word in words), done.stderr
        if status == 5:
            ok, error = pickle.loads((tmp_path / "result").read_bytes())
            assert not ok and isinstance(error, (ZeroDivisionError, SystemExit))
        else:
            assert not (tmp_path / "result").exists()


# ─────────────────────────────────────────────────── command line ─────────────────────────────────────────────────


class TestCommandLine:
    def run(self, *arguments, **options):
        return subprocess.run([sys.executable, "-m", "executors", *arguments], capture_output=True, text=True, timeout=60, cwd=HERE,
                              **options)

    def test_selftest(self, tmp_path):
        done = self.run("--selftest", env={**os.environ, "TMPDIR": str(tmp_path)})
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("right\n") == 3 and done.stdout.endswith("all is well\n") and not done.stderr
        assert "private sshd" in done.stdout and "p95" in done.stdout and "\x1b" not in done.stdout
        assert not os.listdir(tmp_path)

    def test_selftest_on_named_workers(self):
        done = self.run("--selftest", "--workers", "2/:")
        assert done.returncode == 0 and "RemoteExecutor: 2/:" in done.stdout

    def test_selftest_fails_honestly(self):
        done = self.run("--selftest", "--workers", "no-such-host.invalid")
        assert done.returncode == 1 and "NOT all is well" in done.stdout and "resolve" in done.stdout, done.stdout

    def test_check(self):
        done = self.run("--check", "--workers", ":,no-such-host.invalid")
        assert done.returncode == 1, done.stdout
        stages, fit, unfit, *told, verdict = done.stdout.splitlines()
        assert stages.split() == [*executors._Checkup.STAGES] and fit.split()[:5] == [":", "-", "-", "-", "quiet"]
        assert "no-such-host.invalid".startswith(unfit.split()[0]) and unfit.split()[1] == "FAIL" and verdict.startswith("NOT")
        assert "name: ssh: Could not resolve hostname" in told[0] and "is the name right" in " ".join(told)
        assert self.run("--check", "--workers", "1/:").returncode == 0

    def test_check_passes_every_stage(self, sshds):
        home = set(os.listdir(os.path.expanduser("~")))
        done = self.run("--check", "--workers", f"alpha python={sys.executable}", "--ssh_options", f"-F {sshds[0]._path('config')}")
        assert done.returncode == 0, done.stdout + done.stderr
        login, *cells = done.stdout.splitlines()[1].split()
        assert login == "alpha" and cells[:5] == ["ok", "ok", "ok", "quiet", "{}.{}.{}".format(*sys.version_info)]
        assert cells[-1] == "ok" and done.stdout.endswith("all is well\n")
        assert set(os.listdir(os.path.expanduser("~"))) == home

    @pytest.mark.parametrize("stage, worker, options, words", [
        ("login", "alpha", "-o IdentityFile=none", "Permission denied"), ("TCP", "alpha", "-p 1", "Connection refused"),
        ("python", "alpha python=/no/python", "", "tried /no/python"),
    ])
    def test_check_names_the_stage_that_fails(self, sshds, tmp_path, stage, worker, options, words):
        config = tmp_path / "config"
        config.write_text(read(sshds[0]._path("config")).replace("IdentityFile", "#" if stage == "login" else "IdentityFile"))
        done = self.run("--check", "--workers", worker, "--ssh_options", f"{options} -F {config}")
        assert done.returncode == 1 and f"alpha: {stage}: " in done.stdout, done.stdout
        assert words in " ".join(done.stdout.split()), done.stdout

    def test_check_interrupted(self, sshds, tmp_path):
        """One line, and no ssh is left behind, not even where a login leads nowhere."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            script = f"import executors; executors._main(['--check', '--workers', '127.0.0.1', '--ssh_options', '-p {silent.getsockname()[1]}'])"
            process = subprocess.Popen([sys.executable, "-c", script], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            with silent.accept()[0]:
                children = descendants(process.pid)
                process.send_signal(signal.SIGINT)
                assert process.communicate(timeout=PATIENCE) == ("", "interrupted\n")
        assert children and not any(map(alive, children))

    @pytest.mark.parametrize("columns", [80, 40])
    def test_check_is_a_table_or_a_list(self, columns):
        done = self.run("--check", "--workers", ":,no-such-host.invalid", env={**os.environ, "COLUMNS": str(columns)})
        assert max(map(len, done.stdout.splitlines())) < columns and ("name TCP" in done.stdout) == (columns == 80)

    def test_nonsense(self):
        done = self.run("--check", "--workers", "x/y")
        assert done.returncode == 2 and "'x/y'" in done.stderr
        assert self.run().returncode == 2


# ─────────────────────────────────────────────── faults, for real ─────────────────────────────────────────────────


def worker_processes(pool):
    """Return the pids of the shims of a pool's machines (all of which are this machine)."""
    return [link.hello["pid"] for link in pool._supervisor._current_links() if link.hello]


class TestBlame:
    def test_an_exception_comes_with_its_remote_traceback(self, remote):
        error = remote.submit(raise_it, ValueError("so far away")).exception(PATIENCE)
        assert type(error) is ValueError and error.args == ("so far away",)
        assert "raise error" in str(error.__cause__) and "in raise_it" in str(error.__cause__)
        assert "run_call" not in str(error.__cause__)

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
    def test_no_exception_is_too_base(self, remote, error):
        assert type(remote.submit(raise_it, error).exception(PATIENCE)) is type(error)
        assert remote.submit(neg, 1).result(PATIENCE) == -1

    @pytest.mark.parametrize("make, words", [
        (lambda: raise_it(TwoArguments("x", "y")), ["exception that cannot be pickled", "TwoArguments", "x and y"]),
        (lambda: raise_it(ValueError(threading.Lock())), ["exception that cannot be pickled", "ValueError"]),
        (threading.Lock, ["result cannot be pickled", "lock"]),
        (lambda: recurse([]), ["result cannot be pickled", "recursion"]),
        (lambda: BombOnPickle(sys.exit, 1), ["result cannot be pickled", "SystemExit"]),
        (lambda: Bomb(sys.exit, "boom"), ["result cannot be unpickled", "SystemExit", "boom"]),
        (lambda: Bomb(raise_it, KeyboardInterrupt()), ["result cannot be unpickled", "KeyboardInterrupt"]),
        (lambda: Bomb(divmod, 1, 0), ["result cannot be unpickled", "ZeroDivisionError"]),
        (lambda: Bomb(exit_unless_in_a_slot, parent(parent(os.getpid()))), ["result cannot be unpickled here", "SystemExit"]),
    ])
    def test_what_cannot_be_pickled_is_one_clear_error(self, remote, make, words):
        error = remote.submit(make).exception(PATIENCE)
        assert type(error) is BundleError
        assert all(word in str(error) for word in words), str(error)
        assert remote.submit(neg, 1).result(PATIENCE) == -1     # slot, link and threads live on
        assert remote.status.retried == 0

    @pytest.mark.parametrize("bomb, words", [(Bomb(divmod, 1, 0), "ZeroDivisionError"), (Bomb(sys.exit, 4), "SystemExit: 4")])
    def test_arguments_that_cannot_be_unpickled_there(self, remote, bomb, words):
        error = remote.submit(neg, bomb).exception(PATIENCE)
        assert type(error) is BundleError and "arguments cannot be unpickled there" in str(error) and words in str(error)

    def test_arguments_that_cannot_be_pickled_are_told_by_submit(self, remote):
        with pytest.raises(TypeError, match="lock"):
            remote.submit(neg, threading.Lock())
        assert remote.task_count == 0

    def test_a_missing_module_is_named_with_its_machine_and_the_remedy(self, remote):
        def needs():
            import no_such_module
            return no_such_module
        error = remote.submit(needs).exception(PATIENCE)
        assert type(error) is ModuleNotFoundError and error.name == "no_such_module"
        text = " ".join([str(error), *getattr(error, "__notes__", ())])
        assert sys.executable in text and "python=" in text

    @pytest.mark.parametrize("how, words", [
        (functools.partial(crash, signal.SIGSEGV), "SIGSEGV"), (functools.partial(crash, signal.SIGKILL), "SIGKILL"),
        (lambda: os._exit(3), "exited with status 3"), (lambda: os.write(2, b"last words\n") and os._exit(9), "last words")])
    def test_a_death_is_charged_to_its_bundle(self, remote, how, words):
        others = [remote.submit(neg, n) for n in range(20)]
        error = remote.submit(how).exception(PATIENCE)
        assert type(error) is BundleError and len(error.attempts) == 3 and words in str(error), str(error)
        assert [future.result(PATIENCE) for future in others] == [-n for n in range(20)]

    def test_it_is_retried_on_another_machine(self, ssh):
        pool = ssh("1/alpha", "1/beta", max_bundle_failures=2)
        error = pool.submit(os._exit, 1).exception(PATIENCE)
        assert sorted(machine for machine, _, _ in error.attempts) == ["alpha", "beta"]

    def test_innocents_in_the_same_pipe_are_not_charged(self, local):
        """Short calls are sent ahead into a slot's pipe; when one kills the slot, those behind it have lost nothing."""
        pool = local("1/:", max_bundle_failures=1, schedule_backups=False)
        list(pool.map(neg, range(100)))
        futures = [pool.submit(neg, n) if n % 50 else pool.submit(os._exit, 7) for n in range(300)]
        outcomes = [future.exception(PATIENCE) for future in futures]
        assert [n for n, error in enumerate(outcomes) if error] == [0, 50, 100, 150, 200, 250]

    def test_the_first_call_of_a_slot_is_charged_alone(self, local):
        def work(n):
            os._exit(7) if n is None else None
            return n

        pool = local("1/:", max_bundle_failures=1)
        list(pool.map(work, range(20)))
        futures = [pool.submit(work, n) for n in (None, None, *range(20))]
        assert [future.exception(PATIENCE) is None for future in futures] == [False, False, *[True] * 20]

    def test_a_slot_that_dies_while_it_writes_a_long_result(self, local, tmp_path):
        pool = local("1/:")
        path = str(tmp_path / "pid")

        def work(path):
            tries = len(os.listdir(os.path.dirname(path)))
            open(f"{path}{tries}.{os.getpid()}", "w").close()
            return bytes(40_000_000), tries

        pool.submit(neg, 1).result(PATIENCE)
        shim, = worker_processes(pool)
        os.kill(parent(shim), signal.SIGSTOP)       # or it would end its frozen shim
        os.kill(shim, signal.SIGSTOP)
        future = pool.submit(work, path)
        os.kill(shim, signal.SIGCONT)
        until(lambda: os.listdir(tmp_path), "starting")
        os.kill(shim, signal.SIGSTOP)
        slot = int(os.listdir(tmp_path)[0].rpartition(".")[2])
        with open(f"/proc/{slot}/stat") as file:
            assert file.read()
        os.kill(slot, signal.SIGKILL)
        os.kill(shim, signal.SIGCONT)
        os.kill(parent(shim), signal.SIGCONT)
        data, tries = future.result(PATIENCE)
        assert len(data) == 40_000_000 and tries == 1
        assert pool.submit(neg, 1).result(PATIENCE) == -1

    def test_a_slot_that_dies_before_its_long_call_has_arrived(self, local):
        pool = local("1/:")
        slot = pool.submit(os.getpid).result(PATIENCE)
        os.kill(slot, signal.SIGSTOP)
        future = pool.submit(len, bytes(5_000_000))
        until(future.running)
        os.kill(slot, signal.SIGKILL)
        assert future.result(PATIENCE) == 5_000_000

    def test_short_and_long_calls_mixed(self, local):
        pool = local("2/:")
        def size(x):
            return len(x)
        list(pool.map(size, ["x"] * 20))
        arguments = [numpy.zeros(200_001) if n % 5 == 0 else "x" * n for n in range(200)]
        assert [future.result(PATIENCE) for future in [pool.submit(size, x) for x in arguments]] == [*map(len, arguments)]
        assert pool.status.retried == 0 or all(worker.died == 0 for worker in pool.status.workers)

    def test_a_function_that_arrives_while_its_slot_is_busy(self, local, tmp_path):
        pool = local("1/:", heartbeat_seconds=0.2)
        def make(array):
            def use(path=None):
                if path:
                    wait_for(path)
                return len(array)
            return use
        list(pool.map(make(numpy.zeros(10)), [None] * 20))
        busy = pool.submit(make(numpy.zeros(11)), str(tmp_path / "go"))
        behind = pool.submit(make(numpy.zeros(2_000_000)))
        pings = pool._supervisor._current_links()[0]._reads
        until(lambda: pool._supervisor._current_links()[0]._reads > pings + 8, "eight answers to pings")
        (tmp_path / "go").touch()
        assert busy.result(PATIENCE) == 11 and behind.result(PATIENCE) == 2_000_000
        assert pool.status.retried == 0

    def test_nothing_is_carried_from_call_to_call(self, remote):
        class Simulation:
            def __init__(self):
                self.seen = []

            def run(self, n):
                self.seen.append(n)
                return len(self.seen)

        seen = []
        assert set(remote.map(Simulation().run, range(20))) == {1}
        assert set(remote.map(lambda n: seen.append(n) or len(seen), range(20))) == {1}

    def test_a_child_that_a_call_forked_is_no_slot(self, remote):
        def fork():
            if os.fork() == 0:
                sys.exit(0)
            return os.wait()[1]

        assert remote.submit(fork).result(PATIENCE) == 0
        assert list(remote.map(len, [bytes(200_000)] * 10)) == [200_000] * 10

    def test_many_large_buffers(self, local):
        arrays = [numpy.full(10_000, n) for n in range(300)]
        assert [a[0] for a in local().submit(lambda a: a, arrays).result(PATIENCE)] == [*range(300)]

    def test_bundle_timeout(self, ssh, tmp_path):
        pool = ssh("1/alpha", bundle_timeout=1)
        error = pool.submit(touch_and_wait, str(tmp_path / "started")).exception(PATIENCE)
        assert type(error) is executors.BundleTimeoutError and "bundle_timeout=1" in str(error)
        assert pool.submit(neg, 1).result(PATIENCE) == -1


class TestDeadlockMatrix:
    """CPython's test_concurrent_futures/test_deadlock.py: what may go wrong, times where; over the remote executor."""

    DOINGS = {"crash": (crash, ()), "exit": (os._exit, (1,)), "error": (divmod, (1, 0)), "sys.exit": (sys.exit, (1,))}

    @pytest.mark.parametrize("doing", DOINGS)
    @pytest.mark.parametrize("where", ["unpickling the task", "running", "pickling the result", "unpickling the result"])
    def test_it(self, remote, doing, where):
        action, args = self.DOINGS[doing]
        bystanders = [remote.submit(neg, n) for n in range(10)]
        if where == "unpickling the task":
            future = remote.submit(neg, Bomb(action, *args))
        elif where == "running":
            future = remote.submit(action, *args)
        elif where == "pickling the result":
            future = remote.submit(lambda: BombOnPickle(action, *args))
        else:
            future = remote.submit(lambda: Bomb(action, *args))
        error = future.exception(PATIENCE)
        if where == "running" and doing in ("error", "sys.exit"):
            assert type(error) is {"error": ZeroDivisionError, "sys.exit": SystemExit}[doing]
        else:
            assert type(error) is BundleError and len(error.attempts) == (3 if doing in ("crash", "exit") else 0)
        assert [future.result(PATIENCE) for future in bystanders] == [-n for n in range(10)]
        assert remote.submit(neg, 1).result(PATIENCE) == -1
        remote.shutdown()


class TestCancel:
    def test_a_running_bundle_and_all_it_started_is_killed(self, remote, tmp_path):
        def family(path):
            child = subprocess.Popen([sys.executable, "-c", f"""if 1:
                import os, signal, time
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                if os.fork() == 0:
                    os.setsid()
                    if os.fork():
                        os._exit(0)
                    open({path!r} + ".orphan", "w").write(str(os.getpid()))
                time.sleep(1000)"""])
            with open(path, "w") as file:
                file.write(f"{os.getpid()} {child.pid}")
            time.sleep(1000)

        path = str(tmp_path / "pids")
        future = remote.submit(family, path)
        until(lambda: os.path.exists(path + ".orphan") and os.path.getsize(path + ".orphan") and os.path.getsize(path))
        assert future.running() and not future.done()
        with open(path) as one, open(path + ".orphan") as other:
            pids = [int(pid) for pid in f"{one.read()} {other.read()}".split()]
        assert len(pids) == 3 and all(map(alive, pids))
        assert future.cancel() and future.cancelled() and future.cancel()
        with pytest.raises(cf.CancelledError):
            future.result(PATIENCE)
        until(lambda: not any(map(alive, pids)), "killing")
        assert remote.submit(neg, 1).result(PATIENCE) == -1

    def test_it_spares_its_neighbours(self, local, tmp_path):
        pool = local("2/:")
        kept = pool.submit(wait_for, str(tmp_path / "go"))
        future = pool.submit(touch_and_wait, str(tmp_path / "started"))
        until((tmp_path / "started").exists)
        waiting = [pool.submit(neg, n) for n in range(10)]
        assert future.cancel() and waiting[5].cancel()
        assert [f.result(PATIENCE) for n, f in enumerate(waiting) if n != 5] == [-n for n in range(10) if n != 5]
        (tmp_path / "go").touch()
        assert kept.result(PATIENCE)

    def test_a_finished_one_cannot_be(self, remote):
        future = remote.submit(neg, 1)
        assert future.result(PATIENCE) == -1 and not future.cancel()

    def test_cancelling_at_any_moment(self, remote):
        """Each future is either cancelled or has its value, and the pool is as good as new."""
        source = random.Random(3)
        futures = [remote.submit(time.sleep, source.random() / 100) for _ in range(300)]
        for future in source.sample(futures, 150):
            future.cancel()
        cf.wait(futures, PATIENCE)
        assert all(future.cancelled() or future.result() is None for future in futures)
        until(lambda: sum(worker.busy for worker in remote.status.workers) == 0)
        assert remote.submit(neg, 1).result(PATIENCE) == -1


class TestLostMachines:
    @pytest.mark.parametrize("victim", ["shim", "ssh", "sshd session", "guardian"])
    def test_a_lost_link_costs_nothing(self, ssh, tmp_path, victim):
        pool = ssh("1/alpha", "1/beta", max_bundle_failures=1, schedule_backups=False)
        futures = [pool.submit(wait_for, str(tmp_path / "go")) for _ in range(2)]
        until(lambda: all(future.running() for future in futures))
        link = pool._supervisor._current_links()[0]
        shim = link.hello["pid"]
        guardian = parent(shim)
        session = parent(parent(guardian))
        left = descendants(guardian)
        os.kill({"shim": shim, "ssh": link._process.pid, "sshd session": session, "guardian": guardian}[victim], signal.SIGKILL)
        until(lambda: not any(map(alive, left)), "the end of what the machine ran")
        (tmp_path / "go").touch()
        assert all(future.result(PATIENCE) for future in futures)
        until(lambda: all(worker.state == "up" for worker in pool.status.workers), "reconnection")

    @pytest.mark.parametrize("whom", ["shim", "ssh", "sshd session"])
    def test_a_frozen_one_is_found_out_by_its_silence(self, ssh, tmp_path, whom):
        pool = ssh("1/alpha", max_bundle_failures=1, heartbeat_seconds=0.25)
        future = pool.submit(wait_for, str(tmp_path / "go"))
        until(future.running)
        link, = pool._supervisor._current_links()
        shim = link.hello["pid"]
        frozen = {"shim": shim, "ssh": link._process.pid, "sshd session": parent(parent(parent(shim)))}[whom]
        os.kill(frozen, signal.SIGSTOP)
        until(lambda: pool.status.workers[0].state != "up", "condemnation")
        assert "heartbeats" in pool.status.workers[0].cause
        (tmp_path / "go").touch()
        assert future.result(PATIENCE)
        until(lambda: not alive(shim), "the end of the shim, at the latest with its lease")
        os.kill(frozen, signal.SIGKILL) if whom == "sshd session" else None

    def test_a_frozen_shim_and_a_frozen_guardian(self, local):
        pool = local("1/:", heartbeat_seconds=0.2)
        slot = pool.submit(os.getpid).result(PATIENCE)
        shim, = worker_processes(pool)
        processes = [parent(shim), shim, slot]
        os.kill(parent(shim), signal.SIGSTOP)
        os.kill(shim, signal.SIGSTOP)
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        until(lambda: not any(map(alive, processes)))

    def test_a_frozen_shim_whose_guardian_is_killed(self, local, tmp_path):
        pool = local("1/:")
        future = pool.submit(wait_for, str(tmp_path / "go"))
        until(future.running)
        shim, = worker_processes(pool)
        guardian, slots = parent(shim), descendants(shim)
        os.kill(guardian, signal.SIGSTOP)
        os.kill(shim, signal.SIGSTOP)
        os.kill(guardian, signal.SIGKILL)
        until(lambda: not any(map(alive, [shim, *slots])))
        (tmp_path / "go").touch()
        assert future.result(PATIENCE)

    def test_a_suspended_controller_condemns_nobody(self, sshds):
        script = """
            import executors, os, signal, subprocess, sys, time
            pool = executors.RemoteExecutor(sys.argv[2:], ssh_options=["-F", sys.argv[1]], show_status=False, heartbeat_seconds=0.3)
            future = pool.submit(lambda: __import__("time").sleep(2.5) or 7)
            while not future.running():
                time.sleep(0.01)
            subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)        # for seven beats; the lease is twelve
            print(future.result(), pool.status.retried, pool.status.backups)
            pool.shutdown()
        """
        done = run_script(script, sshds[0].ssh_options[1], f"1/alpha python={sys.executable}", f"1/: python={sys.executable}")
        assert done.stdout == "7 0 0\n", done

    def test_ctrl_c_reaches_only_the_controller(self, sshds, tmp_path):
        script = """
            import executors, os, signal, sys, time
            pool = executors.RemoteExecutor(sys.argv[3:], ssh_options=["-F", sys.argv[1]], show_status=False)
            def wait(path):
                while not os.path.exists(path):
                    time.sleep(0.01)
                return 7
            futures = [pool.submit(wait, sys.argv[2]) for _ in range(2)]
            while not all(future.running() for future in futures):
                time.sleep(0.01)
            try:
                os.killpg(0, signal.SIGINT)     # as a terminal does
                futures[0].result()
            except KeyboardInterrupt:
                open(sys.argv[2], "w").close()
                print(*(future.result() for future in futures), pool.status.retried)
            pool.shutdown()
        """
        done = run_script(script, sshds[0].ssh_options[1], tmp_path / "go", f"1/alpha python={sys.executable}", "1/:",
                          start_new_session=True)
        assert done.stdout == "7 7 0\n", done

    def test_a_grandchild_that_keeps_stdout_open_holds_nothing_up(self, ssh):
        pool = ssh("1/alpha")
        child = pool.submit(lambda: subprocess.Popen(["sleep", "1000"]).pid).result(PATIENCE)
        assert pool.submit(neg, 1).result(PATIENCE) == -1 and alive(child)
        pool.shutdown()
        until(lambda: not alive(child))

    @pytest.mark.skipif(os.getuid() != 0 or not sys.platform.startswith("linux"), reason="network namespaces need root on Linux")
    @pytest.mark.parametrize("direction", ["to the worker", "from the worker", "both"])
    def test_a_network_that_drops(self, tmp_path, direction):
        """A host of our own behind a veth pair. Dropping is a blackhole route, on either side or on both."""
        with Network() as net, executors._PrivateSshd(["far"], address=net.FAR, prefix=net.inside) as sshd:
            pool = RemoteExecutor([f"1/far python={sys.executable}", "1/:"], ssh_options=sshd.ssh_options, show_status=False,
                                  heartbeat_seconds=0.25, max_bundle_failures=1, schedule_backups=False)
            futures = [pool.submit(wait_for, str(tmp_path / "go")) for _ in range(2)]
            until(lambda: all(future.running() for future in futures))
            shim = next(link.hello["pid"] for link in pool._supervisor._current_links() if link.record.machine == "far")
            net.drop(direction)
            until(lambda: pool.status.workers[0].state != "up", "condemnation")
            until(lambda: not alive(shim), "the end of the shim, with its lease or before")
            (tmp_path / "go").touch()
            assert all(future.result(PATIENCE) for future in futures)
            net.mend()
            until(lambda: pool.status.workers[0].state == "up", "reconnection")
            pool.shutdown()

    def test_a_closed_pool_still_drains_through_a_loss(self, ssh, tmp_path):
        pool = ssh("1/alpha")
        futures = [pool.submit(wait_for, str(tmp_path / "go")) for _ in range(3)]
        until(futures[0].running)
        pool.shutdown(wait=False)
        os.kill(worker_processes(pool)[0], signal.SIGKILL)
        (tmp_path / "go").touch()
        assert all(future.result(PATIENCE) for future in futures)

    def test_ctrl_c_at_any_moment_breaks_nothing(self):
        """Interrupt a loop of submissions at random; whatever was submitted is done, and the pool ends."""
        done = run_script("""
            import concurrent.futures, executors, operator, random, signal
            for trial in range(40):
                pool = executors.RemoteExecutor(["2/:"], show_status=False)
                pool.submit(operator.neg, 1).result()
                futures = []
                signal.signal(signal.SIGALRM, signal.default_int_handler)
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.02))
                    while True:
                        futures.append(pool.submit(operator.neg, len(futures)))
                        len(futures) % 10 or futures[-5].cancel()
                except KeyboardInterrupt:
                    pass
                concurrent.futures.wait(futures, 20)        # a cancel() that was interrupted may take effect yet
                assert all(f.cancelled() or f.result(0) == -n for n, f in enumerate(futures))
                pool.shutdown()
            print("all done")
        """)
        assert done.stdout == "all done\n", done

    def test_a_busy_controller_condemns_nobody(self, local):
        pool = local("1/:", heartbeat_seconds=0.05)
        release = threading.Event()
        future = pool.submit(neg, 1)
        future.add_done_callback(lambda _: release.wait(1))     # holds the reader up for twenty beats
        assert future.result(PATIENCE) == -1
        assert pool.submit(neg, 2).result(PATIENCE) == -2
        assert pool.status.retried == 0 and pool.histogram.count == 2

    def test_a_machine_slowed_tenfold_holds_nobody_up(self, ssh, sshds):
        slow, fast = (str(sshd.port) for sshd in sshds)

        def work(n):
            port = os.environ["SSH_CONNECTION"].split()[3]
            time.sleep(4 if port == slow else 0.4)
            return n, port

        pool = ssh("2/alpha", "2/beta")
        until(lambda: all(worker.state == "up" for worker in pool.status.workers))
        results = [future.result(PATIENCE) for future in [pool.submit(work, n) for n in range(8)]]
        assert results == [(n, fast) for n in range(8)]     # what the slow one had taken was done by the other meanwhile
        assert pool.status.backups == 2 and pool.status.retried == 0
        until(lambda: sum(worker.busy for worker in pool.status.workers) == 0, "the end of the losers")

    def test_a_straggler_is_raced_for_real(self, ssh, tmp_path):
        pool = ssh("1/alpha", "1/beta")
        def work(path, n):      # hangs on whoever comes first, and only there
            if n == 99:
                try:
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    return "backup"
                time.sleep(1000)
        list(pool.map(work, [str(tmp_path / "mark")] * 4, range(4)))
        assert pool.submit(work, str(tmp_path / "mark"), 99).result(PATIENCE) == "backup"
        assert pool.status.backups == 1
        until(lambda: sum(worker.busy for worker in pool.status.workers) == 0, "the end of the straggler")


class TestChaos:
    def test_nothing_is_lost_nothing_is_wrong_nothing_is_left(self, sshds):
        """A few hundred bundles on four machines, while slots, shims, guardians, ssh clients and sshd sessions are killed or frozen."""
        source = random.Random(os.environ.get("CHAOS_SEED", "5"))
        with executors._PrivateSshd(["gamma"]) as gamma, executors._PrivateSshd(["delta"]) as delta:
            config = os.path.join(gamma.folder, "all")
            with open(config, "w") as file:
                file.write("\n".join(read(sshd._path("config")) for sshd in (*sshds, gamma, delta)))
            records = [f"2/{name} python={sys.executable}" for name in ("alpha", "beta", "gamma", "delta")]
            pool = RemoteExecutor(records, ssh_options=["-F", config], show_status=False, heartbeat_seconds=0.5, max_bundle_failures=50)
            until(lambda: all(worker.state == "up" for worker in pool.status.workers))
            before = descendants() - {sshd.process.pid for sshd in (*sshds, gamma, delta)}
            data = [source.randbytes(source.choice([10, 1000, 200_000])) for _ in range(300)]
            seconds = [source.choice([0, 0.001, 0.05, 0.3]) for _ in data]
            futures = [pool.submit(lambda d, s: time.sleep(s) or (len(d), d[::-1]), d, s) for d, s in zip(data, seconds)]
            done, seen, frozen = threading.Event(), set(before), set()

            def torment():
                while not done.wait(source.uniform(0.05, 0.3)):
                    links = pool._supervisor._current_links()
                    link = source.choice(links) if links else None
                    if link is None or not link.hello:
                        continue
                    try:
                        shim = link.hello["pid"]
                        below = descendants(shim)
                        seen.update(below, {shim, parent(shim), link._process.pid})
                        victims = {"slot": sorted(below) or [shim], "shim": [shim], "guardian": [parent(shim)],
                                   "ssh": [link._process.pid], "session": [parent(parent(parent(shim)))]}
                        kind = source.choice(["slot", "slot", "slot", *victims])
                        victim, number = source.choice(victims[kind]), source.choice([signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGSTOP])
                        os.kill(victim, number)
                        frozen.update([victim] if number == signal.SIGSTOP and kind in ("guardian", "session") else [])
                    except (OSError, IndexError):
                        pass        # it has gone by itself

            tormentor = threading.Thread(target=torment)
            tormentor.start()
            try:
                for n, future in enumerate(futures):
                    assert future.result(90) == (len(data[n]), data[n][::-1])
            finally:
                done.set()
                tormentor.join()
            pool.shutdown()
            seen |= descendants() - {sshd.process.pid for sshd in (*sshds, gamma, delta)}
            for pid in frozen:
                if alive(pid) and ("b64decode" in command_line(pid) or "sshd" in command_line(pid)):
                    os.kill(pid, signal.SIGCONT)        # its shim was killed meanwhile: as long as it is frozen, nobody else can tell
            until(lambda: not [pid for pid in seen if alive(pid) and "b64decode" in command_line(pid)], "the end of everything")


class TestNothingIsLeft:
    SCRIPT = """
        import executors, os, sys, time
        pool = executors.RemoteExecutor(sys.argv[2:4], ssh_options=["-F", sys.argv[1]], show_status=False, heartbeat_seconds=0.5)
        def busy(path):
            import subprocess, sys, time, os
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    open(path + str(os.getpid()), "w").close()
                    time.sleep(1000)
                os._exit(0)
            time.sleep(1000)
        futures = [pool.submit(busy, sys.argv[4]) for _ in range(2)]
        while len(os.listdir(sys.argv[4])) < 2:
            time.sleep(0.01)
        print(*(link.hello["pid"] for link in pool._supervisor._links), flush=True)
        input()
        {then}
    """

    @pytest.mark.parametrize("then", ["time.sleep(1000)  # until killed", "os._exit(1)", "os.abort()", "pool.shutdown(wait=False); os._exit(0)",
                                      "[f.cancel() for f in futures]; pool.shutdown()", "[f.cancel() for f in futures]"])
    def test_after_the_controller(self, sshds, tmp_path, then):
        python = f"python={sys.executable}"
        folder = tmp_path / "pids"
        folder.mkdir()
        (tmp_path / "tmp").mkdir()
        with subprocess.Popen([sys.executable, "-c", textwrap.dedent(self.SCRIPT.format(then=then)),
                               sshds[0].ssh_options[1], f"1/alpha {python}", f"1/: {python}", f"{folder}/"], stdout=subprocess.PIPE, text=True,
                              stdin=subprocess.PIPE, cwd=HERE, stderr=subprocess.DEVNULL,
                              env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}) as controller:
            shims = [int(pid) for pid in controller.stdout.readline().split()]
            assert len(shims) == 2
            orphans = [int(name) for name in os.listdir(folder)]
            others = {pid for shim in shims for pid in descendants(shim)} | descendants(controller.pid)
            assert all(map(alive, orphans)) and len(orphans) == 2 and others >= set(orphans)
            if "killed" in then:
                controller.kill()
            else:
                controller.stdin.write("\n")
                controller.stdin.flush()
            controller.wait(PATIENCE)
        until(lambda: not any(map(alive, [*shims, *orphans, *others])), "the end of everything")
        assert not os.listdir(tmp_path / "tmp")

    def test_the_lease_covers_what_no_end_of_file_tells(self, sshds, tmp_path):
        """The controller is frozen: every connection stays open, and nothing is heard over it."""
        script = "import executors, time, sys\npool = executors.RemoteExecutor([sys.argv[1]], show_status=False, heartbeat_seconds=0.1)\n" \
                 "print(pool.submit(__import__('os').getppid).result(), flush=True)\ntime.sleep(1000)"
        with subprocess.Popen([sys.executable, "-c", script, "1/:"], stdout=subprocess.PIPE, text=True, cwd=HERE) as controller:
            shim = int(controller.stdout.readline())
            assert alive(shim)
            os.kill(controller.pid, signal.SIGSTOP)
            until(lambda: not alive(shim), "the end of the lease")
            controller.kill()

    def test_a_forked_child_does_not_keep_links_open(self, local, tmp_path):
        pool = local("1/:")
        pool.submit(neg, 1).result(PATIENCE)
        shim, = worker_processes(pool)
        child = os.fork()
        if child == 0:
            try:
                pool.submit(neg, 1)
            except RuntimeError:
                time.sleep(1000)
            os._exit(1)
        try:
            pool.shutdown()
            until(lambda: not alive(shim))
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def test_a_forked_child_cannot_reach_the_parents_links(self, local, tmp_path):
        pool = local("1/:")
        future = pool.submit(wait_for, str(tmp_path / "go"))
        until(future.running)
        child = os.fork()
        if child == 0:
            files = [open(tmp_path / str(n), "wb+") for n in range(20)]
            refused = not future.cancel()
            for file in files:
                file.seek(0)
            os._exit(0 if refused and not any(file.read() for file in files) else 1)
        assert os.waitpid(child, 0)[1] == 0
        (tmp_path / "go").touch()
        assert future.result(PATIENCE)

    def test_an_executor_nobody_holds_ends(self):
        pool = RemoteExecutor(["1/:"], show_status=False)
        pool.submit(neg, 1).result(PATIENCE)
        shim, = worker_processes(pool)
        supervisor = pool._supervisor
        del pool
        assert supervisor.ended.wait(PATIENCE) and not alive(shim)


# ───────────────────────────────────────────── connecting, and what follows ───────────────────────────────────────


class TestConnecting:
    def cause(self, pool):
        with pytest.raises(NoWorkersError) as caught:
            pool.submit(neg, 1).result(PATIENCE)
        (machine, cause), = caught.value.causes
        assert machine in str(caught.value) and cause in str(caught.value)
        return cause

    def test_no_such_host(self, ssh):
        assert "resolve hostname" in self.cause(ssh("no-such-host.invalid"))

    def test_no_key(self, ssh, sshds, tmp_path):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
        config = tmp_path / "config"
        config.write_text(read(sshds[0]._path("config")).replace(sshds[0]._path("user"), str(tmp_path / "key")))
        cause = self.cause(ssh("alpha", ssh_options=["-F", str(config)]))
        assert "Permission denied (publickey)" in cause and "ssh-copy-id alpha" in cause

    def test_an_unknown_host_key(self, ssh, sshds, tmp_path):
        config = tmp_path / "config"
        config.write_text(read(sshds[0]._path("config")).replace(sshds[0]._path("known_hosts"), str(tmp_path / "none")))
        cause = self.cause(ssh("alpha", ssh_options=["-F", str(config)]))
        assert "Host key verification failed" in cause and "ssh alpha" in cause

    def test_no_python(self, ssh):
        cause = self.cause(ssh("alpha", python="/no/such/python"))
        assert "no Python: tried /no/such/python" in cause and "python=" in cause

    def test_the_wrong_python(self, ssh):
        others = [f"/root/.pyenv/versions/{v}/bin/python" for v in ("2.7.18", "3.6.15", "3.12.1", "3.10.13")]
        other = next((path for path in others if os.path.exists(path) and not path.startswith("{}.{}".format(*sys.version_info))), None)
        if other is None:
            pytest.skip("there is only one Python here")
        cause = self.cause(ssh("alpha", python=other))
        assert "cpython" in cause or "python 2" in cause
        assert other in cause and "needs cpython {}.{}".format(*sys.version_info) in cause

    def test_bad_ssh_options(self, ssh):
        assert "nonsense" in self.cause(ssh("alpha", ssh_options=["-o", "nonsense=1"])).lower()

    def test_nobody_listens(self, ssh):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pool = ssh("127.0.0.1", ssh_options=["-p", str(port), "-F", "none"])
        future = pool.submit(neg, 1)
        until(lambda: "Connection refused" in pool.status.workers[0].cause)
        assert not future.done() and "is sshd running" in pool.status.workers[0].cause     # it may start yet
        pool.shutdown(cancel_futures=True)

    def test_a_shutdown_while_it_connects(self, ssh, local):
        """At whatever stage of connecting it comes, nothing is left."""
        before = threading.active_count()
        for n in range(12):
            pool = ssh("1/alpha", "1/beta") if n % 3 == 0 else local("1/:")
            time.sleep(n * n / 500)
            pool.shutdown()
        until(lambda: threading.active_count() == before)
        until(lambda: not [pid for pid in descendants() if "b64decode" in command_line(pid)])

    def test_one_bad_machine_does_not_stop_the_others(self, ssh):
        pool = ssh("1/no-such-host.invalid", "1/alpha")
        assert list(pool.map(neg, range(10))) == [-n for n in range(10)]

    def test_the_default_interpreter_is_found(self, ssh):
        """Which one the login shell finds is the machine's affair: it works, or the reason is told."""
        pool = ssh("1/alpha", python=None)
        try:
            assert pool.submit(neg, 1).result(PATIENCE) == -1
        except NoWorkersError as error:
            assert "python" in str(error)

    @pytest.mark.parametrize("habit", [
        "RequestTTY force", "RemoteCommand echo hello", "PermitLocalCommand yes\nLocalCommand echo hello", "StdinNull yes",
        "ControlMaster auto\nControlPath /tmp/" + "long/" * 40 + "%C\nControlPersist yes", "SessionType none",
        "ForkAfterAuthentication yes", "LogLevel QUIET", "LogLevel DEBUG3", "ForwardX11 yes\nForwardAgent yes", "BatchMode no",
        "LocalForward 127.0.0.1:1 127.0.0.1:2\nExitOnForwardFailure yes", "Compression yes", "SendEnv LANG LC_*", "Port 1",
    ])
    def test_whatever_habits_the_users_configuration_has(self, ssh, sshds, tmp_path, habit):
        config, data = tmp_path / "config", tmp_path / "data"
        data.write_bytes(os.urandom(100))
        port = f"Port {sshds[0].port}\n"
        assert port in read(sshds[0]._path("config"))
        text = f"Host alpha\n{habit}\n" + read(sshds[0]._path("config")).replace(port, port * (habit != "Port 1"))
        config.write_text(text)
        options = ["-F", str(config)] + ["-p", str(sshds[0].port)] * (habit == "Port 1")
        pool = ssh("1/alpha", ssh_options=options, files=[str(data)])
        assert pool.submit(lambda: open("data", "rb").read()).result(PATIENCE) == data.read_bytes()     # scp has them too

    @pytest.mark.parametrize("address", ["::1", "127.0.0.1"])
    def test_addresses_and_jump_hosts(self, ssh, sshds, tmp_path, address):
        """A worker at an IPv6 or IPv4 address, without an alias, by way of another."""
        data = tmp_path / "data"
        data.write_bytes(b"data")
        with executors._PrivateSshd([address], address=address) as far:
            config = tmp_path / "config"
            config.write_text(f"Host {address}\nProxyJump alpha\n" + read(far._path("config")) + "\n" + read(sshds[0]._path("config")))
            pool = ssh(f"1/{address}", ssh_options=["-F", str(config)], files=[str(data)])
            assert pool.submit(os.path.getsize, "data").result(PATIENCE) == 4
            pool.shutdown()

    def test_what_a_jump_host_says(self, ssh, sshds):
        cause = self.cause(ssh("1/no-such-host.invalid", ssh_options=["-J", "alpha", *sshds[0].ssh_options]))
        assert "open failed" in cause and "UNKNOWN" not in cause

    def test_banners(self, ssh, tmp_path, caplog):
        (tmp_path / "banner").write_text("Permission denied to the unauthorised! No such file or directory.\n" * 50)
        with executors._PrivateSshd(["proud"], [f"Banner {tmp_path / 'banner'}", "PrintMotd yes"]) as sshd:
            pool = ssh("1/proud", ssh_options=sshd.ssh_options)
            assert pool.submit(neg, 1).result(PATIENCE) == -1 and "unauthorised" not in caplog.text
            pool.shutdown()
            assert "No such host" not in self.cause(ssh("1/proud", python="/no/python", ssh_options=sshd.ssh_options))

    @pytest.mark.timeout(240)
    @pytest.mark.parametrize("number, limit", [(40, "10:30:100"), (12, "2:50:4")])
    def test_many_machines_behind_one_sshd(self, ssh, number, limit):
        """The first limit is sshd's default. Under the other some are refused, and tried again."""
        names = [f"m{n}" for n in range(number)]
        with executors._PrivateSshd(names, [f"MaxStartups {limit}"]) as sshd:
            pool = ssh(*(f"1/{name}" for name in names), ssh_options=sshd.ssh_options, heartbeat_seconds=5)
            pool.submit(neg, 1).result(PATIENCE)
            deadline = time.monotonic() + 200
            while not all(worker.state == "up" for worker in pool.status.workers):
                assert time.monotonic() < deadline, str(pool.status)
                list(pool.map(neg, range(100)))
            pool.shutdown()

    def test_workers_may_come_and_go(self, ssh):
        pool = ssh("1/alpha")
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        pool.add_worker(f"1/beta python={sys.executable}")
        pool.remove_worker(f"1/alpha python={sys.executable}")
        assert pool.submit(neg, 2).result(PATIENCE) == -2
        assert [worker.worker.split()[0] for worker in pool.status.workers] == ["1/beta"]
        with pytest.raises(ValueError, match="not in the pool"):
            pool.remove_worker("1/alpha")


class TestWhatFollows:
    def project(self, folder, files, main):
        """Run a project as a user would: `python main.py` in its folder. Return what it printed."""
        for name, text in {**files, "main.py": main}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(textwrap.dedent(text))
        environment = {**os.environ, "PYTHONPATH": HERE}
        done = subprocess.run([sys.executable, "main.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
        assert not done.stderr, done.stderr
        return done.stdout

    def test_modules_of_the_project(self, tmp_path):
        """Packages, relative and lazy imports, a namespace package, modules next to the main script; once, without configuration."""
        printed = self.project(tmp_path, {
            "proj/__init__.py": "", "proj/two.py": "def g(n):\n    if n < 0:\n        raise ValueError('negative')  # here\n    return n * 2\n",
            "proj/one.py": "from . import two\nfrom .deep.three import T\ndef f(n):\n    import lazily\n    return two.g(n) + lazily.N + T\n",
            "proj/deep/__init__.py": "from ..two import g\n", "proj/deep/three.py": "from . import g\nT = g(50)\n",
            "lazily.py": "N = 1\n", "space/inner/leaf.py": "from space.other import V\ndef leaf():\n    return V\n", "space/other.py": "V = 7\n",
        }, """
            import executors, os, proj.one, space.inner.leaf
            asked = []
            find, executors._find_source = executors._find_source, lambda name: asked.append(name) or find(name)
            with executors.RemoteExecutor(["4/:"], show_status=False) as pool:
                os.chdir("/")
                print(set(pool.map(proj.one.f, [20] * 50)), pool.submit(space.inner.leaf.leaf).result())
                print(pool.submit(proj.one.f, -1).exception().__cause__)
            assert len(asked) == len(set(asked)) and "proj.deep.three" in asked, asked
        """)
        assert printed.startswith("{141} 7\n") and "raise ValueError('negative')  # here" in printed

    def test_edits_are_never_stale_and_the_projects_copy_wins(self, tmp_path):
        """A worker that has an older copy installed, which its Python would find first, runs ours, as it is on disk now."""
        (tmp_path / "there").mkdir()
        (tmp_path / "there/thing.py").write_text("ANSWER = 'installed'\n")
        (tmp_path / "there/python").write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/there exec {sys.executable} "$@"\n')
        (tmp_path / "there/python").chmod(0o755)
        for answer in ("one", "two"):
            printed = self.project(tmp_path / "here", {"thing.py": f"ANSWER = {answer!r}\n"}, f"""
                import executors
                def ask():
                    import thing
                    return thing.ANSWER
                with executors.RemoteExecutor([": python={tmp_path}/there/python"], show_status=False) as pool:
                    print(pool.submit(ask).result())
            """)
            assert printed == f"{answer}\n"

    def test_namespace_packages_with_parts_here_and_parts_installed_there(self, tmp_path):
        there = tmp_path / "site-packages"
        (there / "acme").mkdir(parents=True)
        (there / "acme/installed.py").write_text("I = 1\n")
        printed = self.project(tmp_path / "here", {"acme/ours.py": "from acme.installed import I\ndef f():\n    return I + 1\n"}, f"""
            import sys
            sys.path.append({str(there)!r})
            import executors, os, acme.ours
            os.environ["PYTHONPATH"] = {str(there)!r}
            with executors.RemoteExecutor([":"], show_status=False) as pool:
                print(pool.submit(acme.ours.f).result())
        """)
        assert printed == "2\n"

    def test_a_module_longer_than_a_frame(self, tmp_path):
        printed = self.project(tmp_path, {"big.py": "T = '" + "x" * 3_000_000 + "'\ndef f(n):\n    return len(T) + n\n"}, """
            import executors, big
            with executors.RemoteExecutor(["2/:"], show_status=False) as pool:
                print(set(pool.map(big.f, [1] * 10)))
        """)
        assert printed == "{3000001}\n"

    def test_an_import_that_a_signal_handler_breaks_off(self, tmp_path):
        """What was asked for then is not taken for what is asked for next."""
        printed = self.project(tmp_path, {f"mod_{n}.py": f"NAME = 'mod_{n}'\n" for n in range(30)}, """
            import executors
            def work():
                import importlib, signal
                def ring(*_):
                    raise TimeoutError
                signal.signal(signal.SIGALRM, ring)
                wrong = []
                for n in range(0, 30, 2):
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0.0001 * (n + 1))
                        importlib.import_module(f"mod_{n}")
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    except TimeoutError:
                        pass
                    if importlib.import_module(f"mod_{n + 1}").NAME != f"mod_{n + 1}":
                        wrong.append(n)
                return wrong
            with executors.RemoteExecutor(["1/:"], show_status=False) as pool:
                print(pool.submit(work).result())
        """)
        assert printed == "[]\n"

    def test_threads_that_import_at_once_and_imports_while_unpickling(self, tmp_path):
        printed = self.project(tmp_path, {
            **{f"mod{n}.py": f"import threading, time\nfrom base import B\nV = B + {n}\n" for n in range(8)}, "base.py": "B = 100\n",
            "klass.py": "import mod7\nclass K:\n    def __init__(self, v):\n        self.v = v\n    def __reduce__(self):\n        return make, (self.v,)\n"
                        "def make(v):\n    import mod6\n    return K(v + mod6.V)\n",
        }, """
            import executors, klass
            def together():
                import importlib, threading
                values, gate = [], threading.Barrier(8)
                def one(n):
                    gate.wait()
                    values.append(importlib.import_module(f"mod{n}").V)
                threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
                for thread in threads: thread.start()
                for thread in threads: thread.join()
                return sorted(values)
            with executors.RemoteExecutor(["2/:"], show_status=False) as pool:
                print(pool.submit(together).result() == list(range(100, 108)), pool.submit(lambda k: k.v, klass.K(1)).result())
        """)
        assert printed == "True 107\n"

    def test_files(self, login, ssh, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        sshd = login()
        (tmp_path / "data.bin").write_bytes(os.urandom(100_000))
        (tmp_path / "pkg/deep").mkdir(parents=True)
        (tmp_path / "pkg/deep/run.sh").write_text("#!/bin/sh\necho ran\n")
        (tmp_path / "pkg/deep/run.sh").chmod(0o755)

        def use():
            with open("data.bin", "rb") as file:
                return file.read(), subprocess.check_output(["pkg/deep/run.sh"]), os.getcwd()

        cache = tmp_path / "home/.cache/executors"
        for _again in (False, True):
            pool = ssh("1/odd", files=["data.bin", "pkg"], ssh_options=sshd.ssh_options)
            data, output, folder = pool.submit(use).result(PATIENCE)
            assert data == (tmp_path / "data.bin").read_bytes() and output == b"ran\n"
            pool.shutdown()
            assert not os.path.exists(folder)
            assert not [name for name in os.listdir(cache) if name.startswith("incoming")]
        assert os.stat(cache).st_mode & 0o777 == 0o700

    def test_directories_keep_their_modes_and_the_cache_is_pruned(self, local, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "home").mkdir()
        (tmp_path / "tree/sub").mkdir(parents=True, mode=0o750)
        (tmp_path / "tree/secret").write_text("x")
        (tmp_path / "tree/secret").chmod(0o600)
        (tmp_path / "tree/link").symlink_to("secret")

        def look():
            return {name: oct(os.lstat(f"tree/{name}").st_mode) for name in ("", "sub", "secret", "link")}

        here = {name: oct(os.lstat(tmp_path / "tree" / name).st_mode) for name in ("", "sub", "secret", "link")}
        cache = tmp_path / "home/.cache/executors"
        for content in ("old", "new"):
            (tmp_path / "tree/secret").write_text(content)
            pool = local("1/:", files=[tmp_path / "tree"])
            assert pool.submit(look).result(PATIENCE) == here
            pool.shutdown()
            (kept,) = cache.iterdir()       # at the second time: the first has gone by
            past = time.time() - 31 * 86400
            os.utime(kept, (past, past))
        pool = local("1/:", files=[tmp_path / "tree"])       # it is found, and so used, and so kept
        assert pool.submit(os.path.exists, "tree/secret").result(PATIENCE) and [*cache.iterdir()] == [kept]
        assert time.time() - kept.stat().st_mtime < 1000

    def test_files_of_the_same_content_and_many_machines_with_one_home(self, login, ssh, tmp_path):
        (tmp_path / "one").touch()
        (tmp_path / "two").touch()
        (tmp_path / "big").write_bytes(os.urandom(3 << 20))
        sshd = login()
        config = tmp_path / "config"
        config.write_text(read(sshd._path("config")).replace("Host odd", "Host odd odd1 odd2 odd3 odd4"))
        pool = ssh(*(f"1/odd{n}" for n in range(1, 5)), ssh_options=["-F", str(config)], files=map(tmp_path.joinpath, ["one", "two", "big"]))
        until(lambda: all(worker.state == "up" for worker in pool.status.workers))
        assert pool.submit(lambda: list(map(os.path.getsize, ["one", "two", "big"]))).result(PATIENCE) == [0, 0, 3 << 20]

    def test_what_a_task_writes_into_a_file_does_not_reach_the_next_run(self, local, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "home").mkdir()
        (tmp_path / "data").write_text("original")
        for _ in range(2):
            pool = local("1/:", files=tmp_path / "data")
            assert pool.submit(read, "data").result(PATIENCE) == "original"
            pool.submit(lambda: open("data", "a").write("spoilt")).result(PATIENCE)
            pool.shutdown()

    def test_packages_by_files_have_their_data(self, local, tmp_path, monkeypatch):
        (tmp_path / "real/sub").mkdir(parents=True)
        (tmp_path / "real/__init__.py").write_text(
            "import importlib.resources\ndef f():\n    return (importlib.resources.files(__name__) / 'sub/data').read_text()\n")
        (tmp_path / "real/sub/data").write_text("data")
        (tmp_path / "linked").symlink_to(tmp_path / "real")
        monkeypatch.syspath_prepend(str(tmp_path))
        pool = local("1/:", files=[tmp_path / "linked"])
        assert pool.submit(lambda: __import__("linked").f()).result(PATIENCE) == "data"

    def test_a_file_that_changes_while_its_pool_lives(self, login, ssh, tmp_path):
        (tmp_path / "data").write_text("one")
        pool = ssh("1/odd", ssh_options=login().ssh_options, files=[tmp_path / "data"])
        assert pool.submit(read, "data").result(PATIENCE) == "one"
        (tmp_path / "data").write_text("two")
        executors.shutil.rmtree(tmp_path / "home/.cache")
        link, = pool._supervisor._current_links()
        os.kill(link._process.pid, signal.SIGKILL)
        until(lambda: "has changed here since the pool was made" in pool.status.workers[0].cause)

    def test_an_sftp_that_hangs_and_one_that_is_spoken_over(self, ssh, tmp_path, monkeypatch):
        (tmp_path / "data").touch()
        monkeypatch.setattr(executors, "HELLO_SECONDS", 2.0)
        for subsystem, words in (("/bin/sleep 1000", "scp of data was not done after 2 s"), ("/bin/echo hello, dear user", "SFTP does not bear"),
                                 ("/no/such/server", "offers no SFTP")):
            with executors._PrivateSshd(["late"]) as sshd:
                config = read(sshd._path("sshd_config")).replace("internal-sftp", subsystem)
                sshd._write("sshd_config", config.splitlines())
                os.kill(sshd.process.pid, signal.SIGHUP)
                until(lambda: read(sshd._path("log")).count("Server listening") == 2)
                pool = ssh("1/late", ssh_options=sshd.ssh_options, files=[tmp_path / "data"])
                until(functools.partial(lambda pool, words: words in pool.status.workers[0].cause, pool, words), words)
                pool.shutdown()

    def test_output_comes_home_in_whole_lines(self, capfd, ssh):
        def talk(n):
            print("out", n)
            print("err", n, file=sys.stderr)
            subprocess.run(["echo", "child", str(n)])

        with ssh("2/alpha", "2/beta") as pool:
            list(pool.map(talk, range(20)))
        out, err = capfd.readouterr()
        lines = [line.partition(": ") for line in out.splitlines()]
        assert {machine for machine, _, _ in lines} <= {"alpha", "beta"}
        assert sorted(text for _, _, text in lines) == sorted([f"out {n}" for n in range(20)] + [f"child {n}" for n in range(20)])
        assert sorted(line.partition(": ")[2] for line in err.splitlines()) == sorted(f"err {n}" for n in range(20))

    def test_output_at_length(self, ssh, capfd):
        """Megabytes from several slots and their children at once: every line whole, in order, and once."""
        def talk(who):
            import logging
            logging.basicConfig(format="%(message)s")
            child = subprocess.Popen(["sh", "-c", f"for n in $(seq 300); do echo {who} child $n of its own; done"])
            for n in range(6000):
                print(who, "out", n, "ä" * 40)
                if n % 10 == 0:
                    logging.warning("%s err %d %s", who, n, "x" * 80)
            child.wait()

        with ssh("2/alpha", "2/beta") as pool:
            list(pool.map(talk, "abcd"))
        out, err = capfd.readouterr()
        lines = [line.partition(": ")[2] for line in out.splitlines()]
        for who in "abcd":
            assert [line for line in lines if line.startswith(f"{who} out")] == [f"{who} out {n} {'ä' * 40}" for n in range(6000)]
            assert [line for line in lines if line.startswith(f"{who} child")] == [f"{who} child {n} of its own" for n in range(1, 301)]
            said = [line.partition(": ")[2] for line in err.splitlines() if line.partition(": ")[2].startswith(who)]
            assert said == [f"{who} err {n} {'x' * 80}" for n in range(0, 6000, 10)]
        assert len(lines) == 4 * 6300

    def test_an_endless_line_is_cut_between_characters(self, ssh, capfd):
        with ssh("1/alpha") as pool:
            pool.submit(lambda: print("xä" * 100_000)).result(PATIENCE)
        out = capfd.readouterr().out
        assert out.replace("alpha: ", "").replace("\n", "") == "xä" * 100_000

    @pytest.mark.parametrize("text", ["日本語" * 700_000, "\\udcff" * 300_000], ids=["characters", "escapes"])
    def test_output_without_any_newline_or_ascii(self, local, capfd, text):
        with local("1/:") as pool:
            pool.submit(lambda: os.write(1, text.encode("utf-8", "backslashreplace"))).result(PATIENCE)
            pool.submit(print, text[:3]).result(PATIENCE)
        assert capfd.readouterr().out.replace("\n", "").replace(":: ", "") == text + text[:3]

    def test_the_output_of_each_call_ends_with_a_line(self, local, capfd):
        with local("1/:") as pool:
            list(pool.map(lambda n: print(f"<{n}>", end=""), range(100)))
            pool.submit(print, "a\n\n\nb\n").result(PATIENCE)
        assert capfd.readouterr().out.splitlines() == [f":: <{n}>" for n in range(100)] + [":: a", ":: ", ":: ", ":: b", ":: "]

    def test_output_that_this_terminal_cannot_show(self):
        done = run_script("""
            import executors
            with executors.RemoteExecutor(["1/:"]) as pool:
                pool.submit(print, "café").result()
        """, env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert done.stdout == ":: caf\\xe9\n" and not done.stderr

    def test_a_redirection_may_shut_its_pool_down(self, local):
        ended = threading.Event()
        pool = local("1/:", output=lambda *_: pool.shutdown() or ended.set())
        pool.submit(print, "that is all")
        assert ended.wait(PATIENCE)

    @pytest.mark.parametrize("ending", ["return", "die", "cancel"])
    def test_output_without_a_newline_comes_home_too(self, ssh, capfd, tmp_path, ending):
        def whisper():
            print("first\rsecond", end="", flush=True)
            if ending == "die":
                crash()
            elif ending == "cancel":
                touch_and_wait(tmp_path / "began")

        with ssh("1/alpha", max_bundle_failures=1) as pool:
            future = pool.submit(whisper)
            if ending == "cancel":
                until((tmp_path / "began").exists)
                assert future.cancel()
            else:
                future.exception(PATIENCE)
        assert capfd.readouterr().out == "alpha: first\nalpha: second\n"

    def test_output_can_be_turned_off_or_redirected(self, local, capfd):
        lines = []
        for output in (False, lambda *line: lines.append(line)):
            with local("1/:", output=output) as pool:
                pool.submit(print, "one\ntwo").result(PATIENCE)
                pool.submit(lambda: print("three", file=__import__("sys").stderr)).result(PATIENCE)
        assert lines == [(":", "stdout", "one"), (":", "stdout", "two"), (":", "stderr", "three")]
        assert capfd.readouterr() == ("", "")

    def test_a_redirection_that_raises_is_logged_and_harms_nothing(self, local, caplog):
        with local("1/:", output=lambda *line: 1 // 0) as pool:
            assert pool.submit(print, "one").result(PATIENCE) is None
        assert "ZeroDivisionError" in caplog.text

    def test_a_large_closure_crosses_once(self, local):
        pool = local("2/:")
        block = numpy.random.default_rng(0).bytes(8 << 20)
        def use(n):
            return len(block) + n
        assert [f.result(PATIENCE) for f in [pool.submit(use, n) for n in range(20)]] == [len(block) + n for n in range(20)]
        link, = pool._supervisor._current_links()
        assert len(link._known) == 1

    @pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 1 << 20, (1 << 20) + 1, 20_000_000])
    def test_sizes_at_the_seams(self, remote, size):
        data = bytes(size)
        assert remote.submit(lambda d: d, data).result(PATIENCE) == data
        array = numpy.arange(size // 8)
        assert (remote.submit(lambda a: a[::-1], array).result(PATIENCE) == array[::-1]).all()

    def test_many_large_ones_at_once(self, remote):
        arrays = [numpy.full(300_000, n) for n in range(30)]
        assert [a[0] for a in remote.map(lambda a: a + 1, arrays)] == list(range(1, 31))

    def test_status_is_readable(self, remote):
        list(remote.map(neg, range(10)))
        until(lambda: all(worker.state == "up" for worker in remote.status.workers))
        text = str(remote.status)
        assert "10 done" in text and text.count("slots") == len(remote.status.workers)


# ───────────────────────────────────────────────────── scoreboard ─────────────────────────────────────────────────


class Terminal:
    """A script in a real pseudo-terminal, seen by a terminal emulator."""

    def __init__(self, folder, script, columns=80, rows=24, **environment):
        (folder / "script.py").write_text(textwrap.dedent(script))
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream, self._raw = pyte.ByteStream(self.screen), b""
        self._fd, far = os.openpty()
        self.resize(columns, rows)
        environment = {**os.environ, "PYTHONPATH": HERE, "TERM": "xterm", **environment}
        self.process = subprocess.Popen([sys.executable, "script.py"], cwd=folder, stdin=far, stdout=far, stderr=far, env=environment,
                                        start_new_session=True)
        os.close(far)

    def resize(self, columns, rows):
        self.screen.resize(rows, columns)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, condition=lambda: False):
        """Take what comes until a condition holds, or until the script has ended; return all of it."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "\n".join(self.screen.display)
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    data = os.read(self._fd, 1 << 16)
                except OSError:     # EIO: nobody is at the other end any more
                    break
                self._raw += data
                self._stream.feed(data)
        return self._raw

    @property
    def lines(self):
        """All lines, from the first that has scrolled away to the last on the screen."""
        gone = ["".join(row[column].data for column in range(self.screen.columns)) for row in self.screen.history.top]
        return [line.rstrip() for line in [*gone, *self.screen.display]]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


@pytest.fixture
def terminal(tmp_path):
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(closing(Terminal(tmp_path, *args, **options)))


class TestScoreboard:
    SCRIPT = """
        import executors, os, sys, time, logging, pathlib
        def work(n):
            while not os.path.exists("go"):
                time.sleep(0.01)
            print("from task", n)
        with executors.RemoteExecutor(["2/:", "1/no-such-host.invalid"], title="farm", heartbeat_seconds=0.5) as pool:
            futures = [pool.submit(work, n) for n in range(12)]
            while pool.status.running < 2:
                time.sleep(0.01)
            for n in range(30):
                print("line", n)
            logging.error("an error\\nof two lines")
            os.system("echo from a child; echo also from a child")
            print("half a ", end="", flush=True)
            time.sleep(1)
            print("line")
            for future in futures:
                future.result()
        print("bye")
    """

    def test_it_stands_below_all_that_is_printed_and_leaves_nothing_but_a_summary(self, terminal, tmp_path):
        seen = terminal(self.SCRIPT)
        seen.read(lambda: any("half a" in line for line in seen.lines) and "longest" in seen.screen.display[-2])
        head, up, down = (line.rstrip() for line in seen.screen.display[-3:])
        assert head == "farm: 0 done, 2 running, 10 waiting"
        assert up.split()[:3] == ["2/:", "2/2", "slots"] and up.split()[-1] == "work" and "failed: ssh: Could not res" in down
        seen.read(lambda: "half a line" in seen.lines)
        (tmp_path / "go").touch()
        seen.read()
        lines = seen.lines
        printed = [line for line in lines if line.startswith("line")]
        assert printed == [f"line {n}" for n in range(30)]
        at = lines.index("ERROR:root:an error")
        assert lines[at + 1:at + 5] == ["of two lines", "from a child", "also from a child", "half a line"]
        assert sorted(line for line in lines if line.startswith(":")) == sorted(f":: from task {n}" for n in range(12))
        assert len([line for line in lines if line.startswith("farm: 12")]) == 1 and not [line for line in lines if "slots" in line]
        at = [line.startswith("farm: 12 done, ") for line in lines].index(True)
        assert lines[at + 1:].index("bye") and any("##" in line for line in lines[at:]) and "count 12" in "\n".join(lines[at:])
        assert seen.screen.margins is None or seen.screen.margins.bottom == 23      # the whole screen scrolls again

    def test_it_survives_resizing_and_narrow_terminals(self, terminal, tmp_path):
        seen = terminal(self.SCRIPT)

        def is_drawn():
            display, margins = seen.screen.display, seen.screen.margins
            return (display[-1].startswith("  1/no-") and "2/2 slots" in display[-2] and margins and margins.bottom < len(display) - 2
                    and sum("slots" in line for line in display) == 1)

        for columns, rows in ((80, 24), (40, 20), (100, 30), (25, 8), (60, 12)):
            seen.resize(columns, rows)
            seen.read(is_drawn)
            assert all(len(line.rstrip()) < columns for line in seen.screen.display[-3:])
        (tmp_path / "go").touch()
        seen.read()
        assert "bye" in seen.lines and not [line for line in seen.screen.display if "slots" in line]

    def test_a_program_that_resets_the_terminal(self, terminal, tmp_path):
        seen = terminal(self.SCRIPT.replace('os.system("', 'os.system("printf \'\\033[r\\033[H\\033[J\'; '))
        seen.read(lambda: "half a line" in seen.lines and seen.screen.margins and "2/2 slots" in seen.screen.display[-2])
        (tmp_path / "go").touch()
        seen.read()
        assert "bye" in seen.lines and not [line for line in seen.lines if "slots" in line]

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_a_program_that_is_killed_leaves_the_terminal_as_it_was(self, terminal, number):
        seen = terminal(self.SCRIPT)
        seen.read(lambda: "half a line" in seen.lines and "2/2 slots" in seen.screen.display[-2])
        seen.process.send_signal(number)
        seen.read()
        assert seen.screen.margins is None or seen.screen.margins.bottom == 23
        assert "half a line" in seen.lines and not [line for line in seen.lines if "slots" in line]

    @pytest.mark.parametrize("environment, color", [({}, True), ({"NO_COLOR": "1"}, False)])
    def test_no_color(self, terminal, tmp_path, environment, color):
        seen = terminal(self.SCRIPT, **environment)
        seen.read(lambda: "2/2 slots" in seen.screen.display[-2])
        (tmp_path / "go").touch()
        assert (b"\x1b[1m" in seen.read()) == color

    @pytest.mark.parametrize("script, environment", [
        (SCRIPT.replace("title=", "show_status=False, title="), {}), (SCRIPT, {"TERM": "dumb"})])
    def test_it_can_be_turned_off(self, terminal, tmp_path, script, environment):
        seen = terminal(script, **environment)
        (tmp_path / "go").touch()
        assert b"\x1b" not in seen.read() and "farm: 12 done" not in "".join(seen.lines)

    def test_where_there_is_no_terminal_the_log_has_it(self, local, tmp_path, caplog, capfd):
        caplog.set_level("INFO", "executors")
        with local("2/:", heartbeat_seconds=0.1, show_status=None) as pool:
            futures = [pool.submit(wait_for, str(tmp_path / "go")) for _ in range(3)]
            until(lambda: "2 running, 1 waiting" in caplog.text and "2/2 slots" in caplog.text)
            (tmp_path / "go").touch()
            executors.wait_all(futures)
        assert "3 done" in caplog.records[-1].getMessage() and capfd.readouterr() == ("", "")

    def test_shown_where_there_is_no_terminal_it_is_plain(self, local, tmp_path, capfd):
        with local("2/:", heartbeat_seconds=0.1, show_status=True) as pool:
            future, text = pool.submit(wait_for, str(tmp_path / "go")), ""
            until(lambda: (text := capfd.readouterr().err) and "1 running" in text)
            (tmp_path / "go").touch()
            future.result(PATIENCE)
        text = capfd.readouterr().err
        assert "1 done" in text and "count 1 " in text and "\x1b" not in text

    @pytest.mark.parametrize("columns, rows", [(80, 24), (40, 24), (20, 5), (12, 3)])
    def test_layout(self, columns, rows):
        workers = [executors.WorkerStatus(f"8/me@machine{n}", "up", 8, 8, 3, 10_000, 1.24, 2.5, 3.9, "simulate", 1, 2) for n in range(30)]
        workers.insert(1, executors.WorkerStatus("lab", "waiting", retry_in=5, lost=2, cause="no\x1b[2J\nroute"))
        status = executors.RemoteExecutorStatus("farm", 40, 8, 112, 1, 2, 3, 4, 3.21, 12.5, 1.24, 2.5, tuple(workers))
        lines = status._lines(columns, rows)
        assert len(lines) <= rows and max(map(len, lines)) <= columns and "\x1b" not in "".join(lines)
        if columns == 80:
            assert lines[-1] == "  ... and 10 more up, 0 not up" and "next try in 5 s: no [2J route" in lines[3]
            assert "longest" in lines[2] and "simulate" in lines[2]

    def test_time_left_only_when_it_can_be_known(self):
        farm = Farm("1/a")
        bundles = [farm.submit() for _ in range(10)]
        farm.tick()
        for _ in range(3):
            assert executors._take_status("t", farm.scheduler, farm.time).left is None
            farm.tick(1)
            farm.finish(*farm.running.values())
        farm.tick()
        status = executors._take_status("t", farm.scheduler, farm.time)
        assert status.rate == pytest.approx(1.0) and status.left == pytest.approx(6 + 1), status
        assert len(bundles) == status.done + status.running + status.waiting


class TestTrace:
    def test_every_attempt_is_a_span_per_machine_and_slot(self, ssh, tmp_path):
        pool = ssh("2/alpha", "1/beta", max_bundle_failures=2)
        list(pool.map(time.sleep, [0.001] * 200))
        pool.submit(crash).exception(PATIENCE)
        future = pool.submit(touch_and_wait, str(tmp_path / "began"))
        until((tmp_path / "began").exists)
        future.cancel()
        until(lambda: not pool.status.workers[0].busy and not pool.status.workers[1].busy)
        pool.status.trace(tmp_path / "run.json")
        events = json.loads(read(tmp_path / "run.json"))["traceEvents"]
        spans = [event for event in events if event["ph"] == "X"]
        assert len(spans) == 203
        assert sorted(event["cat"] for event in spans if event["cat"] != "returned") == [
            "killed", "killed by SIGKILL (out of memory?)", "killed by SIGKILL (out of memory?)"]
        names = {event["pid"]: event["args"]["name"].split()[0] for event in events if event["name"] == "process_name"}
        places = {(names[event["pid"]], event["tid"]) for event in spans}
        assert places == {("2/alpha", 0), ("2/alpha", 1), ("1/beta", 0)}
        for place in places:        # nothing overlaps in a slot
            row = sorted((event["ts"], event["dur"]) for event in spans if (names[event["pid"]], event["tid"]) == place)
            assert all(ts + dur <= after + 1 for (ts, dur), (after, _) in itertools.pairwise(row))
        again = [event for event in events if event["name"] == "again"]
        assert [event["ph"] for event in again] == ["s", "f"] and again[0]["pid"] != again[1]["pid"]
        assert min(event["ts"] for event in spans) >= 0

    def test_what_was_lost_and_what_still_runs(self, ssh, tmp_path):
        pool = ssh("3/alpha", schedule_backups=False)
        futures = [pool.submit(wait_for, str(tmp_path / "go")) for _ in range(3)]
        until(lambda: all(future.running() for future in futures))
        link, = pool._supervisor._current_links()
        time.sleep(0.5)     # for them to have a length
        os.kill(link._process.pid, signal.SIGKILL)
        until(lambda: len(pool._supervisor._scheduler.spans) == 3 and pool.status.workers[0].busy == 3)
        pool.status.trace(tmp_path / "run.json")
        spans = [event for event in json.loads(read(tmp_path / "run.json"))["traceEvents"] if event["ph"] == "X"]
        assert sorted(span["cat"] for span in spans) == ["lost"] * 3 + ["running"] * 3
        assert all(span["dur"] > 400_000 for span in spans if span["cat"] == "lost") and len({span["tid"] for span in spans}) == 6
        (tmp_path / "go").touch()
        executors.wait_all(futures)

    def test_its_memory_is_bounded(self, local, monkeypatch):
        pool = local("2/:")
        list(pool.map(neg, range(executors.SPANS + 1000)))
        assert len(pool._supervisor._scheduler.spans) == executors.SPANS


# ──────────────────────────────────────────── logins as they are out there ────────────────────────────────────────

RC_FILES = {"sh": ".profile", "dash": ".profile", "bash": ".bashrc", "zsh": ".zshenv", "tcsh": ".tcshrc", "fish": ".config/fish/config.fish"}
NOISES = {
    "nothing": "", "no newline": "printf noise", "reading": {"tcsh": "set line = $<", "fish": "read line"}.get,
    "a megabyte": "awk 'BEGIN { for (i = 0; i < 20000; i++) print \"a login file that prints without end, no one knows why\" }'",
}


def odd_login(stack, folder, shell="sh", files=None, mounts=":"):
    """Start an sshd that sees another /etc/passwd than everyone else: in it, we have the shell and the home that a test wants.

    `mounts` is shell code that runs there, in a mount namespace of its own, with the home as $1.
    """
    path = executors.shutil.which(shell)
    assert path, f"apt-get install {shell}"
    home, passwd = folder / "home", folder / "passwd"
    home.mkdir(exist_ok=True)
    for name, text in (files or {}).items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text + "\n")
    with open("/etc/passwd") as ours:
        passwd.write_text("".join(f"root:x:0:0:root:{home}:{path}\n" if line.startswith("root:") else line for line in ours))
    script = f'mount --bind "$0" /etc/passwd; {mounts}; shift; exec "$@"'
    return stack.enter_context(executors._PrivateSshd(["odd"], prefix=["unshare", "-m", "sh", "-c", script, str(passwd), str(home)]))


@pytest.fixture
def login(tmp_path):
    """Make odd logins: `login(shell, files, mounts)`."""
    if os.getuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("a private passwd file needs root on Linux")
    with ExitStack() as stack:
        yield functools.partial(odd_login, stack, tmp_path)


class TestLoginShells:
    @pytest.mark.parametrize("noise", NOISES)
    @pytest.mark.parametrize("shell", RC_FILES)
    def test_it_connects(self, login, shell, noise):
        text = NOISES[noise] if type(NOISES[noise]) is str else NOISES[noise](shell) or "read line"
        # Debian's sh reads .profile only as a login shell; what sshd starts reads $ENV if it is set. So each has what it reads.
        sshd = login(shell, {RC_FILES[shell]: text})
        with RemoteExecutor([f"1/odd python={sys.executable}"], ssh_options=sshd.ssh_options, show_status=False) as pool:
            assert pool.submit(neg, 1).result(PATIENCE) == -1
            link, = pool._supervisor._current_links()
            if noise == "a megabyte" and shell in ("bash", "zsh", "tcsh", "fish"):
                assert b"no one knows why" in link._noise       # it did come, and did no harm

    @pytest.mark.parametrize("shell, words", [("false", "ended with status 1"), ("nologin", "This account is currently not available")])
    def test_a_login_that_is_none(self, login, shell, words):
        with RemoteExecutor(["1/odd"], ssh_options=login(shell).ssh_options, show_status=False) as pool:
            with pytest.raises(NoWorkersError, match=words) as caught:
                pool.submit(neg, 1).result(PATIENCE)
            assert "does `ssh odd true` work" in str(caught.value)

    @pytest.mark.parametrize("shell", ["bash", "zsh"])
    def test_noise_is_quoted_when_it_is_all_there_is(self, login, shell):
        sshd = login(shell, {RC_FILES[shell]: "echo today nobody works here; exit 3"})
        with RemoteExecutor(["1/odd"], ssh_options=sshd.ssh_options, show_status=False) as pool:
            with pytest.raises(NoWorkersError, match="status 3 before Python started: today nobody works here"):
                pool.submit(neg, 1).result(PATIENCE)

    @pytest.mark.parametrize("python", ["~/venv/bin/python", "~/.pyenv/versions/3/bin/python", "~/.pyenv/shims/python"])
    def test_interpreters_in_the_home(self, login, tmp_path, python):
        sshd = login("dash", {"venv/pyvenv.cfg": f"home = {os.path.dirname(sys.executable)}", ".pyenv/versions/3/bin/x": ""})
        (tmp_path / "home/venv/bin").mkdir()
        (tmp_path / "home/venv/bin/python").symlink_to(sys.executable)
        (tmp_path / "home/.pyenv/versions/3/bin/python").symlink_to(sys.executable)
        (tmp_path / "home/.pyenv/shims").mkdir()
        shim = tmp_path / "home/.pyenv/shims/python"
        shim.write_text(f'#!/usr/bin/env bash\nset -e\nexec {sys.executable} "$@"\n')
        shim.chmod(0o755)
        with RemoteExecutor([f"1/odd python={python}"], ssh_options=sshd.ssh_options, show_status=False) as pool:
            prefix = pool.submit(lambda: __import__("sys").prefix).result(PATIENCE)
            assert "/venv/" not in python or prefix == str(tmp_path / "home/venv")

    def test_a_pyenv_shim_of_a_version_that_is_not_active_is_passed_over(self, login, tmp_path):
        """It is on the PATH and does not run; the next candidate does."""
        sshd = login("bash", {".bashrc": f"PATH={tmp_path}/shims:$PATH"})
        (tmp_path / "shims").mkdir()
        for name, text in (("python{}.{}".format(*sys.version_info), "echo 'pyenv: command not found' >&2; exit 127"),
                           ("python3", f'exec {sys.executable} "$@"')):
            (tmp_path / "shims" / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / "shims" / name).chmod(0o755)
        with RemoteExecutor(["1/odd"], ssh_options=sshd.ssh_options, show_status=False) as pool:
            assert pool.submit(neg, 1).result(PATIENCE) == -1

    @pytest.mark.parametrize("mounts, words", [
        ('mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"', "Read-only file system"),
        ('mount -t tmpfs -o size=64k tmpfs "$1"; cat /dev/zero > "$1/full" 2>/dev/null', "is there room"),
    ])
    def test_a_home_that_takes_nothing(self, login, ssh, sshds, tmp_path, mounts, words):
        """Work needs no disk. Files do: then that machine stays out, with the reason, and the others work."""
        sshd, data, config = login(mounts=mounts), tmp_path / "data", tmp_path / "config"
        data.write_bytes(os.urandom(1 << 20))
        config.write_text(read(sshd._path("config")) + "\n" + read(sshds[0]._path("config")))
        pool = ssh("1/odd", ssh_options=["-F", str(config)])
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        pool.shutdown()
        pool = ssh("1/odd", "1/alpha", ssh_options=["-F", str(config)], files=[str(data)])
        until(lambda: pool.status.workers[0].state == "failed")
        assert words in pool.status.workers[0].cause
        assert pool.submit(os.path.getsize, "data").result(PATIENCE) == 1 << 20
        check = subprocess.run([sys.executable, "-m", "executors", "--check", "--workers", f"odd python={sys.executable}", "--ssh_options",
                                f"-F {config}"], cwd=HERE, capture_output=True, text=True, timeout=60)
        assert check.returncode == 1 and "odd: scp: scp of a test file failed" in check.stdout, check.stdout


# ────────────────────────────────────────────────────── README ────────────────────────────────────────────────────


def readme_examples():
    """Return README's Python examples by the heading or the words in bold that they stand under."""
    examples, title = {}, ""
    for part in re.split(r"^(```python\n.*?^```\n)", read(os.path.join(HERE, "README.md")), flags=re.MULTILINE | re.DOTALL):
        if part.startswith("```python"):
            examples.setdefault(title, part[10:-4])
        else:
            title = ([title] + re.findall(r"^#+ (.*)|^\*\*(.*?)\*\*", part, flags=re.MULTILINE))[-1]
            title = title if isinstance(title, str) else "".join(title)
    return examples


class TestReadme:
    @pytest.mark.parametrize("title", readme_examples())
    def test_the_example_runs(self, tmp_path, title):
        text = textwrap.dedent(readme_examples()[title])
        text = re.sub(r"RemoteExecutor\(\[.*?\]", "RemoteExecutor(['2/:']", text)
        (tmp_path / "example.py").write_text(text)
        environment = {**os.environ, "PYTHONPATH": HERE, "EXECUTORS_REMOTE_WORKERS": "2/:", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.strip(), done

    def test_there_are_examples(self):
        assert len(readme_examples()) >= 9

    def test_the_same_program_on_dask(self, sshds):
        """One decorated program on threads, on processes, over ssh and on a Dask cluster, by changing one argument."""
        done = run_script("""
            import sys, executors

            def program(method):
                @executors.parallelize(method)
                def count(shard):
                    return sum(n % 7 == 0 for n in shard)

                numbers = list(range(10_000))
                return sum(executors.wait_all(count(numbers[start::4]) for start in range(4)))

            if __name__ == "__main__":
                import distributed
                print(program(executors.Method.THREAD), program(executors.Method.PROCESS))
                with executors.RemoteExecutor([f"2/alpha python={sys.executable}"], ssh_options=sys.argv[1:]) as pool:
                    print(program(pool))
                with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None, processes=False) as cluster:
                    with distributed.Client(cluster) as client, executors.PoolExecutor(client.get_executor(), title="dask") as pool:
                        print(program(pool), pool.histogram.count)
        """, *sshds[0].ssh_options, env={**os.environ, "PYTHONWARNINGS": "ignore"})
        assert done.stdout.split() == ["1429", "1429", "1429", "1429", "4"], done


# ───────────────────────────────────────────────────── the house ──────────────────────────────────────────────────


class TestStyle:
    # Errors, names, imports, likely bugs, what newer Pythons spell better, logging, blind spots; and not: zip's strict, whose
    # iterables here are of one length by construction, and f-strings in the file that must parse everywhere.
    RULES = "E,F,W,I,N,UP,A,B,C4,FLY,FURB,G,ISC,LOG,PERF,PIE,PLE,PLW,RET,RUF,T10"
    EXCEPT = "B905,N818,PERF203,RUF005,RUF021,UP031"

    def test_ruff(self):
        subprocess.run([sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--target-version", "py310", "--line-length", "135",
                        "--select", self.RULES, "--ignore", self.EXCEPT, "executors.py", "remote_worker.py"], cwd=HERE, check=True)

    @pytest.mark.timeout(300)
    def test_types(self):
        subprocess.run([sys.executable, "-m", "mypy", "--cache-dir", os.devnull], cwd=HERE, check=True)     # strict, by setup.cfg

    def test_functions_fit_on_a_screen(self):
        for name in ("executors.py", "remote_worker.py"):
            for node in ast.walk(ast.parse(read(os.path.join(HERE, name)))):
                if isinstance(node, ast.FunctionDef):
                    length = node.end_lineno - node.lineno + 1 - (ast.get_docstring(node, clean=False) or "").count("\n")
                    assert length <= 42, f"{name}: {node.name} has {length} lines"

    def test_what_is_public_is_documented(self):
        for module in (executors, wire):
            for name in module.__all__:
                thing = getattr(module, name)
                assert thing.__doc__, name
                if isinstance(thing, type):
                    for method in vars(thing).values():
                        is_ours = callable(method) and method.__module__ == module.__name__ and not method.__name__.startswith("_")
                        assert not is_ours or inspect.getdoc(getattr(thing, method.__name__)), f"{name}.{method.__name__}"
