"""Tests of `executors` and `remote_worker`, against real processes and real ssh.

A real OpenSSH sshd, started here on a loopback port with throw-away keys, is logged in to by the
real ssh and scp. One set of contract tests runs over every executor. The scheduler alone is tested
in isolation, with an injected clock. Waiting in tests is always for a condition, with a deadline
that only a failure reaches.
"""

from __future__ import annotations

import ast
import asyncio
import concurrent.futures as cf
import copy
import dataclasses
import fcntl
import functools
import gc
import grp
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import json
import logging
import multiprocessing
import os
import pathlib
import pickle
import pwd
import py_compile
import random
import re
import resource
import select
import shutil
import signal
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import termios
import textwrap
import threading
import time
import types
import unittest
import venv
import weakref
import zipfile
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager, suppress
from operator import neg
from queue import SimpleQueue
from typing import NamedTuple

import cloudpickle
import joblib
import numpy
import pyte
import pytest
import tqdm

import executors
import remote_worker as wire
from executors import BundleError, NoWorkersError, RemoteExecutor, RemoteWorkerRecord

HERE = os.path.dirname(os.path.abspath(__file__))
# Importing this file and pytest in every slot would take a third of the time of all tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PATIENCE = 60       # seconds after which what we wait for is not going to happen


# ─────────────────────────────────────────── machinery ────────────────────────────────────────────


@contextmanager
def in_room(factory, how):
    """Be in a room that those processes share which run these tests: with others, or alone.

    Who enters stands in the door for a moment; who wants to be alone stays there until the others
    have left.
    """
    folder = factory.getbasetemp().parent
    with open(folder / "door", "w") as door, open(folder / "room", "w+") as room:
        fcntl.lockf(door, fcntl.LOCK_EX)        # these locks are not inherited by forked children
        fcntl.lockf(room, how)
        fcntl.lockf(door, fcntl.LOCK_UN)
        yield


@pytest.fixture(autouse=True, scope="class")
def alone(request, tmp_path_factory):
    """Let a class that is marked `alone` run while no other process of this run tests anything."""
    if "PYTEST_XDIST_WORKER" in os.environ and request.node.get_closest_marker("alone"):
        with in_room(tmp_path_factory, fcntl.LOCK_EX):
            yield True
    else:
        yield False


@pytest.fixture(autouse=True)
def together(alone, tmp_path_factory):
    """Let any other test run while no such class does."""
    if "PYTEST_XDIST_WORKER" in os.environ and not alone:
        with in_room(tmp_path_factory, fcntl.LOCK_SH):
            yield
    else:
        yield


class Sshd:
    """An sshd of our own: on a free loopback port, with throw-away keys, as this user.

    Arguments:
        names: host aliases that all lead to it.
        settings: further lines for its configuration.
        address: where it listens.
        prefix: a command that is to run it.
        has_home: whether who logs in finds the login files of whoever runs the tests.
    """

    def __init__(self, names=("localhost",), settings=(), address="127.0.0.1", prefix=(),
                 has_home=False):
        self.names, self.settings, self.address, self.prefix = names, settings, address, prefix
        self.has_home = has_home
        places = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin:/sbin"
        self.binary = shutil.which("sshd", path=places)
        assert self.binary, "there is no sshd here: apt-get install openssh-server"

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="executors-sshd-")
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        os.makedirs("/run/sshd", 0o755, exist_ok=True)      # it insists on it, if root starts it
        for key in ("host", "user"):
            path = self.path(key)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.write("sshd_config", f"""
            Port {self.port}
            ListenAddress {self.address}
            HostKey {self.path('host')}
            PidFile none
            StrictModes no
            AuthorizedKeysFile {self.path('user.pub')}
            PasswordAuthentication no
            UsePAM no
            KbdInteractiveAuthentication no
            {'' if 'Subsystem' in str(self.settings) else 'Subsystem sftp internal-sftp'}
            {'' if self.has_home else f'SetEnv HOME={self.folder}'}
            """ + "\n".join(self.settings))
        self.write("known_hosts", f"[{self.address}]:{self.port} {read(self.path('host.pub'))}")
        self.write("config", f"""
            Host {' '.join(self.names)}
            HostName {self.address}
            Port {self.port}
            IdentityFile {self.path('user')}
            IdentitiesOnly yes
            UserKnownHostsFile {self.path('known_hosts')}
            StrictHostKeyChecking yes
            """)
        self.ssh_options = ["-F", self.path("config")]
        command = [self.binary, "-D", "-f", self.path("sshd_config"), "-E", self.path("log")]
        self.process = subprocess.Popen([*self.prefix, *command], stdin=subprocess.DEVNULL,
                                        start_new_session=True)
        until(lambda: self.process.poll() is not None or self.log().count("Server listening"),
              "an sshd that listens")
        assert self.process.poll() is None, self.log()

    def log(self):
        return read(self.path("log")) if os.path.exists(self.path("log")) else ""

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(textwrap.dedent(text))

    def __exit__(self, *_):
        process = getattr(self, "process", None)
        if process is not None:
            wire.signal_tree(process.pid, signal.SIGKILL)      # with the sessions
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def sshds():
    """Two private sshds, which the aliases alpha and beta lead to."""
    with Sshd(["alpha"]) as alpha, Sshd(["beta"]) as beta:
        with open(alpha.path("config"), "a") as both:
            both.write("\n" + read(beta.path("config")))
        yield alpha, beta


@contextmanager
def maker(ssh_options=()):
    """Yield what makes remote executors that end with the test, with all that a failed one left."""
    with ExitStack() as stack:
        def make(*workers, **options):
            options = {"show_status": False, "heartbeat_seconds": 0.5, "ssh_options": ssh_options,
                       **options}
            pool = RemoteExecutor(workers or ["2/:"], **options)
            stack.callback(pool._give_up)
            return pool
        yield make


@pytest.fixture
def ssh(sshds):
    """Make remote executors over ssh: `ssh("2/alpha", "2/beta", ...)`, on this interpreter."""
    with maker(sshds[0].ssh_options) as make:
        def on(*workers, python=sys.executable, **options):
            suffix = f" python={python}" if python else ""
            return make(*(worker + suffix for worker in workers), **options)
        yield on


@pytest.fixture
def local():
    """Make remote executors over plain pipes."""
    with maker() as make:
        yield make


@pytest.fixture(scope="session")
def shared(sshds):
    """Executors of four threads, processes or slots, for all tests that leave them whole."""
    pools = {}
    with maker(sshds[0].ssh_options) as make:
        def get(kind):
            if kind not in pools:
                pools[kind] = make_pool(kind, make)
            return pools[kind]
        yield get
        for kind in pools:
            pools[kind].shutdown(cancel_futures=True)


def make_pool(kind, make):
    if kind == "thread":
        return executors.ThreadExecutor(4)
    if kind == "process":
        return executors.ProcessExecutor(4)
    if kind in ("pipe", "slot"):
        return make("4/:" if kind == "pipe" else "1/:")
    return make(f"2/alpha python={sys.executable}", f"2/beta python={sys.executable}")


@pytest.fixture
def by_name():
    """Have slots import this file after all, as they do with other modules of a project."""
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(params=["thread", "process", "pipe", "ssh"])
def pool(request, shared):
    """Each executor in turn, with four threads, processes or slots."""
    yield shared(request.param)


@pytest.fixture(params=["thread", "process", "pipe", "ssh"])
def own_pool(request, sshds):
    """The same, for tests that need one of their own."""
    with maker(sshds[0].ssh_options) as make:
        pool = make_pool(request.param, make)
        yield pool
        pool.shutdown(cancel_futures=True)


@pytest.fixture(params=["pipe", "ssh"])
def remote(request, shared):
    """A remote executor of four slots."""
    yield shared(request.param)


def until(condition, what="it"):
    """Wait for a condition of the world outside, which nothing notifies us of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)


def run(program, *arguments, **options):
    """Run a script, or a command given as a list, as a user would; return how it ended."""
    if isinstance(program, str):
        program = [sys.executable, "-c", textwrap.dedent(program)]
    options = {"capture_output": True, "text": True, "timeout": 60, "cwd": HERE, **options}
    if "env" in options:
        options["env"] = {**os.environ, **options["env"]}
    return subprocess.run([*program, *map(str, arguments)], **options)


def freeze_scp(pool):
    """Freeze the scp that copies to a pool's only machine; return its process."""
    def processes():
        return [process.pid for login in [*pool._supervisor.logins.values()]
                for process in login.processes[1:]]
    until(processes, "an scp")
    pid = processes()[0]
    os.killpg(pid, signal.SIGSTOP)
    return pid


def slow_line(sshd, bytes_a_second):
    """Return ssh's options for an sshd behind a line that takes so much of what is sent to it."""
    sshd.write("line.py", f"""
        import os, socket, sys, threading, time
        line = socket.create_connection(("{sshd.address}", {sshd.port}))
        def come_back():
            while data := line.recv(1 << 16):
                os.write(1, data)
            os._exit(0)
        threading.Thread(target=come_back).start()
        while data := os.read(0, {bytes_a_second} // 50):
            line.sendall(data)
            time.sleep(0.02)
        line.shutdown(socket.SHUT_WR)
        """)
    proxy = f"ProxyCommand={sys.executable} -IS {sshd.path('line.py')}"
    return [*sshd.ssh_options, "-o", proxy]


def alive(pid):
    try:
        return read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def parent(pid):
    return int(read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])


def read(path):
    with open(path, errors="replace") as file:
        return file.read()


def descendants(pid=None):
    tree, pids = wire.process_tree(), [pid or os.getpid()]
    for one in pids:
        pids += tree.get(one, ())
    return set(pids[1:])


def command_line(pid):
    try:
        return read(f"/proc/{pid}/cmdline").replace("\0", " ")
    except OSError:
        return ""


class Machine(NamedTuple):
    """The processes on the way to one machine of a pool, all of which run here."""

    shim: int
    guardian: int
    ssh: int
    session: int        # sshd's; where there is no ssh, the shell that started Python

    @classmethod
    def of(cls, pool, name=":"):
        """Return a machine's, once it is up."""
        def login():
            logins = [*pool._supervisor.logins.values()]
            return next((one for one in logins if one.record.machine == name and one.shim), None)

        until(login, f"{name} is up")
        one = login()
        ssh = one.processes[0].pid
        session = parent(parent(one.guardian)) if name != ":" else ssh
        return cls(one.shim, one.guardian, ssh, session)


class Network:
    """A host of our own: a network namespace behind a veth pair.

    Its address is reserved for documentation (RFC 5737); each process of a run has its own.
    """

    _FIRST = 4 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    NEAR, FAR = f"198.51.100.{_FIRST + 1}", f"198.51.100.{_FIRST + 2}"

    def __init__(self):
        # They take a while to go, so names must not come again.
        self.name = f"x{os.getpid()}{random.choice('abcdefghijkl')}{time.monotonic_ns() % 1000}"
        self.inside = ["ip", "netns", "exec", self.name]
        self._dropped = []

    def __enter__(self):
        ip = functools.partial(subprocess.run, check=True)
        near, far = self.name + "a", self.name + "b"
        ip(["ip", "netns", "add", self.name])
        ip(["ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", self.name])
        for prefix, end, address in ([], near, self.NEAR), (self.inside, far, self.FAR):
            ip([*prefix, "ip", "address", "add", f"{address}/30", "dev", end])
            ip([*prefix, "ip", "link", "set", end, "up"])
        return self

    def drop(self, direction):
        ways = {"to the worker": ([], self.FAR), "from the worker": (self.inside, self.NEAR)}
        for way in ways if direction == "both" else [direction]:
            prefix, address = ways[way]
            route = ["blackhole", f"{address}/32"]
            subprocess.run([*prefix, "ip", "route", "add", *route], check=True)
            self._dropped.append([*prefix, "ip", "route", "del", *route])

    def mend(self):
        while self._dropped:
            subprocess.run(self._dropped.pop(), check=True)

    def __exit__(self, *_):
        self.mend()
        command = ["ip", "netns", "pids", self.name]
        for pid in subprocess.check_output(command, text=True).split():
            os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", self.name], check=True)


@pytest.fixture(scope="session")
def namespaces():
    """Skip a test that needs mount or network namespaces of its own where they are not allowed."""
    command = ["unshare", "-mn", "true"]
    if not shutil.which(command[0]) or run(command).returncode:
        pytest.skip("namespaces need root on Linux, and in most containers more than that")


# What runs on workers. Everything here is found by name in this module, which follows to them.
def crash(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def wait_for(path):
    """Leave word that this has begun; return once the file is there."""
    open(f"{path}-{os.getpid()}", "w").close()
    while not os.path.exists(path):
        time.sleep(0.01)
    return os.getpid()


def begun(path, number=1):
    """Wait until so many calls of `wait_for` run, there: `running()` is true before that."""
    until(lambda: len(list(path.parent.glob(f"{path.name}-*"))) >= number, "their beginning")


def touch_and_wait(path):
    open(path, "w").close()
    while True:
        time.sleep(1)


def raise_it(error):
    raise error


def exit_unless_in_a_slot(guardian):
    if parent(parent(parent(os.getpid()))) != guardian:
        sys.exit("not at home")


def refuse_at(pid, value):
    if os.getpid() == pid:
        raise LookupError("not at home")
    return value


class TwoArguments(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Bomb:
    """Does something when it is unpickled."""

    def __init__(self, action, *args):
        self.action, self.args = action, args

    def __reduce__(self):
        return self.action, self.args


class Unwilling:
    """Raises what a closed pool raises, when it is pickled."""

    def __reduce__(self):
        raise RuntimeError("I will not")


class BombOnPickle:
    def __init__(self, action, *args):
        self.action, self.args = action, args

    def __reduce__(self):
        self.action(*self.args)


def recurse(obj):
    for _ in range(100_000):
        obj = [obj]
    return obj


# ────────────────────────────────────────── measurement ───────────────────────────────────────────


class TestHistogram:
    def test_percentiles_are_within_ten_per_cent(self):
        source = random.Random(7)
        values = sorted(source.lognormvariate(-3, 2) for _ in range(5000))
        histogram = executors.Histogram()
        for value in values:
            histogram.add(value)
        for p in (1, 25, 50, 75, 95, 99):
            expected = values[int(len(values) * p / 100)]
            assert histogram.percentile(p) == pytest.approx(expected, rel=0.1)
        assert histogram.percentile(0) == values[0] and histogram.percentile(100) == values[-1]

    def test_extremes_and_nothing(self):
        histogram = executors.Histogram()
        assert str(histogram) == "nothing counted"
        assert histogram.percentile(50) == 0 and histogram.mean == 0
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


# ────────────────────────────────────── records and policies ──────────────────────────────────────


class TestRecords:
    @pytest.mark.parametrize("text", [
        "8/me@bigbox weight=2 python=~/venv/bin/python", "4/lab2", ":", "lab", "me@::1", "1/:"])
    def test_round_trip(self, text):
        assert str(RemoteWorkerRecord.parse(text)) == text

    @pytest.mark.parametrize("text, complaint", [
        ("", "machine must not be empty"), ("-oProxyCommand=evil", "begin with '-'"),
        ("-x@host", "username must not be empty, begin with '-'"), ("-x@host", "got '-x'"),
        ("x/host", "x/host"), ("0/host", "at least 1"),
        ("host weight=0", "above 0, got 0"), ("host weight=inf", "a finite number"),
        ("host wight=1", "unknown setting 'wight'; expected weight="),
        ("host python=a;b", "without spaces and quotes"), ("me@", "machine"),
        ("me@:", "write me@localhost instead"), ("host:2222", "as `Port` in"),
        ("[::1]", "without brackets"), ("a@b@c", "contain spaces, '@'"),
        ("host weight=x", "could not convert")])
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

    def test_the_sum_of_weights_may_be_too_large(self):
        policy = executors.WeightedRandomRemoteWorkerSelectionPolicy()
        records = [RemoteWorkerRecord(None, name, weight=sys.float_info.max) for name in "ab"]
        assert {policy.choose(records) for _ in range(100)} == {0, 1}

    @pytest.mark.parametrize("policy", [
        executors.WeightedRandomRemoteWorkerSelectionPolicy(),
        executors.RoundRobinRemoteWorkerSelectionPolicy()])
    def test_avoidance(self, policy):
        records = [RemoteWorkerRecord(None, name) for name in "abc"]
        assert {policy.choose(records, {"a", "c"}) for _ in range(50)} == {1}
        assert policy.choose(records, {"a", "b", "c"}) is None

    def test_round_robin_takes_turns(self):
        policy = executors.RoundRobinRemoteWorkerSelectionPolicy()
        records = [RemoteWorkerRecord(None, name) for name in "abc"]
        assert [policy.choose(records) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]

    @pytest.mark.parametrize("options", [
        {"workers": []}, {"heartbeat_seconds": 0}, {"max_bundle_failures": -1},
        {"bundle_timeout": 0}])
    def test_bad_options(self, options):
        before = {*threading.enumerate()}
        with pytest.raises(ValueError):
            RemoteExecutor(**{"workers": ["1/:"], **options})
        assert {*threading.enumerate()} <= before

    @pytest.mark.parametrize("workers, options, words", [
        ([5], {}, "must be a text like '8/me@bigbox' or a RemoteWorkerRecord, got 5"),
        ("eight/host", {}, "worker 'eight/host': the slot count must be a number, got 'eight'"),
        (":", {"policy": "round"}, "RoundRobinRemoteWorkerSelectionPolicy(), got 'round'"),
        (":", {"policy": executors.RoundRobinRemoteWorkerSelectionPolicy},
         "policy must be a RemoteWorkerSelectionPolicy, such as"),
        (":", {"output": "yes"}, "a function of (machine, stream, line), got 'yes'"),
        (5, {}, "workers must be a list like ['8/me@bigbox', ':'], got 5"),
        (":", {"ssh_options": "-F x"}, "ssh_options must be a list, got '-F x'; write ['-F', 'x']"),
        (":", {"ssh_options": ["-F x"]}, "ssh_options: '-F x' must be two items: ['-F', 'x']"),
        (":", {"env": ["A=1"]}, "env must be a mapping like {'NAME': 'value'}, got ['A=1']"),
        (":", {"bundle_timeout": "3"}, "bundle_timeout must be a number above 0, got '3'"),
        (":", {"heartbeat_seconds": float("nan")}, "must be a number above 0, got nan"),
        (":", {"max_bundle_failures": False}, "must be a number above 0, got False"),
        (":", {"max_tasks_per_child": 0}, "must be a whole number above 0, got 0"),
        (":", {"modules": "no"}, "modules must be True or False, got 'no'"),
        (":", {"initializer": 5}, "initializer must be a function, got 5")])
    def test_bad_arguments_are_quoted(self, workers, options, words):
        with pytest.raises(ValueError, match=re.escape(words)):
            RemoteExecutor(workers, **options)

    @pytest.mark.parametrize("name, words", [
        ("max_workers", "slots stands in a worker's text, such as 4/lab2"), ("n_jobs", "4/lab2"),
        ("timeout", "bundle_timeout= limits"), ("title_", "help(executors.RemoteExecutor) lists")])
    def test_arguments_of_other_executors(self, name, words):
        words = f"RemoteExecutor has no argument '{name}'; .*{re.escape(words)}"
        with pytest.raises(TypeError, match=words):
            RemoteExecutor(":", **{name: 4})

    def test_a_missing_file_is_told_at_once(self):
        before = {*threading.enumerate()}
        with pytest.raises(FileNotFoundError, match="no-such-file"):
            RemoteExecutor(["1/:"], files=["no-such-file"])
        assert {*threading.enumerate()} <= before

    def test_patched_threads_are_refused_at_once(self, monkeypatch):
        """By gevent, or what looks like it: a pool would hang at its first call."""
        monkey = types.ModuleType("gevent.monkey")
        monkey.is_module_patched = lambda name: name == "threading"
        monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
        with pytest.raises(RuntimeError, match="gevent.monkey has replaced the threads"):
            RemoteExecutor("1/:")
        monkey.is_module_patched = lambda name: False
        RemoteExecutor("1/:", show_status=False).shutdown()


# ───────────────────────────────── the contract of every executor ─────────────────────────────────


class TestContract:
    def test_a_histogram_stands_still(self, pool):
        pool.submit(neg, 1).result(PATIENCE)
        until(lambda: pool.histogram.count)
        before = pool.histogram
        count = before.count
        pool.submit(neg, 1).result(PATIENCE)
        until(lambda: pool.histogram.count > count)
        assert before.count == count

    def test_what_is_alive_is_listed_while_threads_add_to_it(self):
        things = [threading.Event() for _ in range(20_000)]
        known = weakref.WeakValueDictionary()
        adder = threading.Thread(target=lambda: [known.setdefault(id(one), one) for one in things])
        adder.start()
        while adder.is_alive():
            executors._list_alive(known)
        adder.join()
        assert {*executors._list_alive(known)} == {*things}

    def test_submit_and_the_base_class(self, pool):
        assert isinstance(pool, cf.Executor)
        future = pool.submit(pow, 2, exp=10)
        assert isinstance(future, cf.Future)
        assert future.result(PATIENCE) == 1024 and future.exception() is None
        assert future.done() and not future.running() and not future.cancelled()

    def test_keyword_arguments_named_like_ours(self, pool):
        future = pool.submit(dict, self=1, fn=2, pool=3)
        assert future.result(PATIENCE) == dict(self=1, fn=2, pool=3)

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

    def test_a_buffer_is_of_whole_items(self, pool):
        with pytest.raises(TypeError, match="buffersize must be an integer or None, not 2.0"):
            pool.map(neg, [1], buffersize=2.0)

    def test_it_says_how_many_slots_it_has(self, pool):
        assert pool.slots == pool.size == pool._max_workers == 4

    def test_a_pool_stays_where_it_is(self, pool, remote):
        class Holder:
            def __init__(self, pool):
                self.pool, self.number = pool, 7

            def get(self):
                return self.number

        class Careful(Holder):
            def __getstate__(self):
                return {"number": self.number}

        for attempt in (lambda: pickle.dumps(pool), lambda: remote.submit(print, pool),
                        lambda: remote.submit(Holder(pool).get),
                        lambda: remote.submit(lambda: pool)):
            with pytest.raises(TypeError, match="a pool stays where it is: leave it out of what"):
                attempt()
        assert remote.submit(Careful(pool).get).result(PATIENCE) == 7

    @pytest.mark.parametrize("kind", ["process", "pipe", "ssh"])
    @pytest.mark.parametrize("error", [
        pickle.PicklingError("why"), AttributeError("why"), TypeError("why"), OSError(5, "why"),
        TwoArguments("x", "y"), type("Mine", (pickle.PicklingError,), {})("why"),
    ], ids=lambda error: type(error).__name__)
    def test_what_pickling_an_argument_raises_keeps_its_type(self, shared, kind, error):
        class Bad:
            def __reduce__(self):
                raise error

        pool, bad = shared(kind), Bad()
        for attempt in (lambda: pool.submit(repr, bad).result(PATIENCE),
                        lambda: pool.submit(dict, key=bad).result(PATIENCE),
                        lambda: list(pool.map(repr, [bad])),
                        lambda: list(pool.map(repr, [1, 2, bad] * 10)),
                        lambda: list(pool.map(repr, [bad], chunksize=1)),
                        lambda: list(pool.map(repr, [1, 2, bad], chunksize=3))):
            with pytest.raises(type(error)) as found:
                attempt()
            assert type(found.value) is type(error)

    @pytest.mark.parametrize("options", [
        {}, {"chunksize": 1}, {"chunksize": 2}, {"buffersize": 3},
        {"chunksize": 2, "buffersize": 3}])
    def test_a_map_is_a_generator(self, pool, options):
        for number in (0, 1, 3, 10):
            results = pool.map(neg, range(10), **options)
            assert list(itertools.islice(results, number)) == [-n for n in range(number)]
            results.close()
            assert list(results) == []

    def test_map_reads_no_further_ahead_than_its_buffer(self, pool):
        taken = []
        results = pool.map(neg, (taken.append(n) or n for n in itertools.count()), buffersize=4)
        assert [next(results) for _ in range(10)] == [-n for n in range(10)]
        assert len(taken) == 14
        results.close()

    def test_map_times_out(self, pool, tmp_path):
        assert pool.submit(wait_for, str(tmp_path)).result(PATIENCE)    # what it imports is there
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
            one = loop.run_in_executor(pool, neg, 1)
            return await asyncio.gather(one, asyncio.wrap_future(pool.submit(neg, 2)))
        assert asyncio.run(both()) == [-1, -2]

    @pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
    def test_callbacks_may_raise_anything(self, pool, error, tmp_path):
        futures = [pool.submit(wait_for, str(tmp_path / "go")) for _ in range(8)]
        for future in futures:
            future.add_done_callback(lambda _: raise_it(error))
        (tmp_path / "go").touch()
        futures += [pool.submit(neg, n) for n in range(8)]
        assert not cf.wait(futures, PATIENCE).not_done

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

    def test_waiters_of_every_kind_while_results_arrive(self, pool):
        """Whoever comes first, the result or who waits for it, each is told of each, once."""
        def one(seed):
            source, asked, told = random.Random(seed), [], []
            futures = [pool.submit(neg, n) for n in range(100)]
            for n, future in enumerate(futures):
                kind = source.randrange(5)
                if kind == 0:
                    assert future.result(PATIENCE) == -n
                elif kind == 1:
                    future.add_done_callback(told.append)
                    asked.append(future)
                elif kind == 2:
                    assert future.exception(PATIENCE) is None and future.done()
            for return_when in (cf.FIRST_COMPLETED, cf.ALL_COMPLETED):
                done, left = cf.wait(futures, PATIENCE, return_when)
                assert done and all(future.done() for future in done)
            assert not left and {*cf.as_completed(futures, PATIENCE)} == {*futures}
            assert [future.result(0) for future in futures] == [-n for n in range(100)]
            until(lambda: len(told) >= len(asked), "the last callback")
            assert sorted(map(id, told)) == sorted(map(id, asked))

        with cf.ThreadPoolExecutor(6) as threads:
            list(threads.map(one, range(30)))

    def test_shutdown_drains_and_may_be_repeated(self, own_pool):
        futures = [own_pool.submit(neg, n) for n in range(50)]
        own_pool.shutdown()
        assert all(future.done() for future in futures) and own_pool.task_count == 0
        own_pool.shutdown()
        with pytest.raises(RuntimeError):
            own_pool.submit(neg, 1)

    def test_shutdown_without_waiting(self, own_pool):
        futures = [own_pool.submit(neg, n) for n in range(20)]
        own_pool.shutdown(wait=False)
        assert [future.result(PATIENCE) for future in futures] == [-n for n in range(20)]

    def test_shutdown_cancels(self, own_pool, tmp_path):
        running = [own_pool.submit(wait_for, str(tmp_path / "go")) for _ in range(4)]
        waiting = [own_pool.submit(neg, n) for n in range(100)]
        until(lambda: all(future.running() for future in running), "starting")
        own_pool.shutdown(wait=False, cancel_futures=True)
        (tmp_path / "go").touch()
        assert all(future.result(PATIENCE) for future in running)
        until(lambda: all(future.done() for future in waiting))
        # The standard process pool has a few in its pipe.
        assert sum(future.cancelled() for future in waiting) >= 90

    def test_shutdown_with_a_timeout(self, own_pool, tmp_path):
        """What runs is killed, where it can be; what waits is cancelled."""
        running = [own_pool.submit(wait_for, str(tmp_path / "go")) for _ in range(4)]
        waiting = [own_pool.submit(neg, n) for n in range(100)]
        until(lambda: all(future.running() for future in running), "starting")
        assert own_pool.shutdown(timeout=0.2) is False
        if isinstance(own_pool, executors.ThreadExecutor):
            assert all(future.running() for future in running)
            (tmp_path / "go").touch()
            assert all(future.result(PATIENCE) for future in running)
        errors = (BrokenProcessPool, cf.CancelledError)
        for future in [*running, *waiting]:
            with suppress(*errors):
                assert future.result(0) and future in running
        assert sum(future.cancelled() for future in waiting) >= 90
        with pytest.raises(RuntimeError):
            own_pool.submit(neg, 1)

    @pytest.mark.parametrize("how", ["submit", "map"])
    def test_shutdown_in_time(self, own_pool, how, tmp_path):
        if how == "submit":
            results = [own_pool.submit(neg, n) for n in range(50)]
        else:
            results = own_pool.map(neg, range(300))
        assert own_pool.shutdown(timeout=PATIENCE) is True and own_pool.task_count == 0
        assert len([*results]) in (50, 300)
        assert own_pool.shutdown(timeout=0) is own_pool.shutdown() is True
        assert own_pool.shutdown(wait=False) is False

    def test_a_map_that_is_cut_off_by_a_timeout(self, own_pool, tmp_path):
        found = own_pool.map(lambda n: n < 5 or wait_for(str(tmp_path / "go")), range(300))
        begun(tmp_path / "go")
        assert own_pool.shutdown(timeout=0.2) is False
        (tmp_path / "go").touch()
        with pytest.raises((BrokenProcessPool, cf.CancelledError)):
            list(found)

    def test_with_and_counts(self, own_pool):
        with own_pool as same:
            assert same is own_pool
            future = own_pool.submit(neg, 1)
            assert future.result(PATIENCE) == -1
        assert own_pool.get_task_count() == 0
        assert own_pool.histogram.count == 1

    def test_what_is_done_before_it_is_watched_counts(self, monkeypatch):
        with executors.ProcessExecutor(1) as pool:
            watch = pool._watch
            monkeypatch.setattr(pool, "_watch", lambda started, future: (
                cf.wait([future]) and watch(started, future)))
            assert pool.submit(neg, 1).result(PATIENCE) == -1
            assert pool.histogram.count == 1

    def test_the_histogram_is_of_what_ran(self, own_pool):
        """Of what raised, too; of slots, not of what waited for one."""
        def work(n):
            time.sleep(0.05)
            return n or 1 // 0
        cf.wait([own_pool.submit(work, n) for n in range(24)])
        until(lambda: own_pool.histogram.count == 24)
        assert own_pool.histogram.minimum >= 0.05
        if isinstance(own_pool, RemoteExecutor):
            assert own_pool.histogram.percentile(50) < 0.12

    def test_shutdown_if_idle_is_quiet_if_asked(self, own_pool, caplog):
        caplog.set_level("INFO", "executors")
        own_pool.submit(neg, 1).result(PATIENCE)
        until(lambda: own_pool.shutdown_if_idle(quiet=True))
        assert "p50" not in caplog.text

    def test_shutdown_if_idle(self, own_pool, tmp_path):
        future = own_pool.submit(wait_for, str(tmp_path / "go"))
        assert own_pool.shutdown_if_idle() is False
        (tmp_path / "go").touch()
        assert future.result(PATIENCE)
        until(lambda: own_pool.task_count == 0)
        assert own_pool.shutdown_if_idle() is True

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


def count_backups(pool):
    """A chunk of a map that is late gets one, on a busy machine."""
    return pool.status.backups if isinstance(pool, RemoteExecutor) else 0


class TestChunks:
    """A map that chooses its chunks itself is like one that sends each item alone."""

    @pytest.fixture(params=["process", "pipe", "ssh"])
    def pool(self, request, shared):
        yield shared(request.param)

    @pytest.mark.parametrize("seconds", [
        [0.0] * 5000, [0.0] * 200 + [0.05] * 12, [n / 3000 for n in range(60)],
        [0.2 * (n % 500 == 250) for n in range(2500)], []])
    def test_whatever_the_items_take(self, pool, seconds):
        def work(n, wait):
            if wait:
                time.sleep(wait)
            return n * n
        assert list(pool.map(work, itertools.count(), seconds)) == [
            n * n for n in range(len(seconds))]
        until(lambda: not pool.task_count)

    @pytest.mark.parametrize("bad", [0, 1, 777, 2999])
    @pytest.mark.parametrize(
        "how", ["raises", "argument", "refusal", "exit", "result", "unpickling"])
    def test_what_fails_is_its_item(self, pool, bad, how, tmp_path):
        """With the values before it, and once."""
        def work(n, extra):
            if n == bad:
                open(f"{tmp_path}/{time.monotonic_ns()}", "w").close()
                return threading.Lock() if how == "result" else 1 // 0
            return -n

        backups, extras = count_backups(pool), [None] * 3000
        extras[bad] = {"argument": threading.Lock(), "refusal": Unwilling(),
                       "exit": BombOnPickle(sys.exit, 1),
                       "unpickling": Bomb(raise_it, KeyError())}.get(how)
        found, results = [], None
        errors = (ZeroDivisionError, BundleError, TypeError, LookupError, RuntimeError,
                  SystemExit)
        with pytest.raises(errors) as caught:
            results = pool.map(work, range(3000), extras)
            found.extend(results)
        if how == "exit":       # the main thread raises it at once, should it be a signal handler's
            assert type(caught.value) is SystemExit
            assert pool.submit(neg, 1).result(PATIENCE) == -1
            return
        assert found == [-n for n in range(bad)], caught.value
        started = how in ("raises", "result")
        ran = len(os.listdir(tmp_path))
        assert ran == started or started < ran and count_backups(pool) > backups
        if how == "raises":
            assert "in work" in str(caught.value.__cause__)

    @pytest.mark.parametrize("bad", [0, 11, 2999])
    @pytest.mark.parametrize("size", [3, 30_000])
    def test_a_result_that_cannot_be_unpickled_here(self, pool, bad, size, tmp_path):
        """The values before it are kept, and nothing runs again."""
        here = os.getpid()

        backups = count_backups(pool)

        def work(n):
            open(f"{tmp_path}/{n}-{time.monotonic_ns()}", "w").close()
            array = numpy.full(size if n < 20 else 3, n)
            return Bomb(refuse_at, here, n) if n == bad else array
        found = []
        with pytest.raises(BundleError, match="result cannot be unpickled here: LookupError"):
            found.extend(pool.map(work, range(3000)))
        assert [int(array[0]) for array in found] == [*range(bad)]
        until(lambda: not pool.task_count)
        begun = [int(name.partition("-")[0]) for name in os.listdir(tmp_path)]
        assert len(begun) == len({*begun}) or count_backups(pool) > backups

    def test_results_of_a_chunk_may_be_of_any_kind(self, pool):
        """Some plain, some not; and all that one refers to is one object, as in one pickle."""
        def work(n):
            return [n, {n}, "x" * n, numpy.arange(n), (n, None)][n % 5]
        for n, found in enumerate(pool.map(work, range(2000))):
            assert type(found) is type(work(n)) and numpy.array_equal(found, work(n))

    def test_a_missing_module_is_explained(self, remote):
        def work(n):
            return n if n < 50 else importlib.import_module("no_such_module")
        with pytest.raises(ModuleNotFoundError) as caught:
            list(remote.map(work, range(100)))
        text = " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
        assert sys.executable in text

    def test_who_kills_its_slot_is_convicted(self, remote, tmp_path):
        """The item, that is; the others come to their ends, more than once perhaps."""
        def work(n):
            if n == 600:
                crash()
            open(f"{tmp_path}/{n}", "w").close()
            return n
        results = remote.map(work, range(1000))
        assert list(itertools.islice(results, 600)) == [*range(600)]
        with pytest.raises(BundleError, match="killed the process that ran it") as caught:
            next(results)
        assert len(caught.value.attempts) == 3 and "work" in str(caught.value)

    def test_a_dead_process_breaks_the_pool_as_ever(self):
        with executors.ProcessExecutor(2) as pool:
            with pytest.raises(BrokenProcessPool):
                list(pool.map(lambda n: crash() if n == 600 else n, range(1000)))
            assert list(pool.map(neg, range(100))) == [-n for n in range(100)]

    def test_one_at_a_time_where_that_was_asked_for(self, local, tmp_path):
        """So that it starts once; or to have each its time."""
        def work(n):
            open(f"{tmp_path}/{n}-{time.monotonic_ns()}", "w").close()
            return crash() if n == 30 else n
        pool = local("2/:", max_bundle_failures=1, schedule_backups=False)
        results = pool.map(work, range(60))
        assert list(itertools.islice(results, 30)) == [*range(30)]
        with pytest.raises(BundleError):
            next(results)
        names = [name.partition("-")[0] for name in os.listdir(tmp_path)]
        assert len(names) == len(set(names))
        assert not local("2/:", bundle_timeout=9)._has_chunks()

    def test_it_is_finished_after_a_shutdown(self, own_pool, tmp_path):
        """What was mapped is done, whether anybody looks at it or not."""
        def work(n):
            time.sleep(0.001)
            open(f"{tmp_path}/{n}", "w").close()
            return n
        with own_pool:
            own_pool.map(work, range(1000, 1500))
            results = own_pool.map(work, range(500))
        assert list(results) == [*range(500)]
        assert len(os.listdir(tmp_path)) == 1000
        with pytest.raises(RuntimeError, match="after shutdown"):
            own_pool.map(work, range(10))

    def test_a_shutdown_that_does_not_wait_or_cancels(self, own_pool):
        results = own_pool.map(time.sleep, [0.001] * 500)
        own_pool.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="after shutdown"):
            own_pool.submit(neg, 1)
        assert list(results) == [None] * 500

    def test_nothing_is_read_after_a_shutdown(self, own_pool):
        """What has been read is finished; the rest cannot be, and must not be waited for."""
        results = own_pool.map(neg, range(100), buffersize=3)
        assert next(results) == 0
        own_pool.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            list(results)

    def test_two_maps_and_a_shutdown(self, own_pool):
        """Those that have begun are finished, also when one asks for more than it may have."""
        first = own_pool.map(time.sleep, [0.002] * 400)
        greedy = own_pool.map(neg, range(100), buffersize=50)
        second = own_pool.map(neg, range(400))
        assert next(greedy) == 0
        own_pool.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="after shutdown"):
            list(greedy)
        assert list(first) == [None] * 400 and list(second) == [-n for n in range(400)]
        until(lambda: not own_pool.task_count)

    @pytest.mark.parametrize("kind", ["pipe", "process"])
    def test_ctrl_c_while_it_is_being_sent(self, kind):
        """Nobody holds its results yet: what was promised is taken back, or nothing would end."""
        make = {"pipe": "RemoteExecutor('2/:', show_status=False)", "process": "ProcessExecutor(2)"}
        done = run(f"""
            import executors, signal, time

            class Slow:
                def __reduce__(self):
                    signal.raise_signal(signal.SIGINT)
                    return Slow, ()

            if __name__ == "__main__":
                pool = executors.{make[kind]}
                try:
                    pool.map(id, [1, 2, Slow()] * 50)
                except KeyboardInterrupt:
                    print("interrupted")
                pool.shutdown()
                print("ended")
            """)
        assert done.stdout.split() == ["interrupted", "ended"], done

    def test_a_callback_that_shuts_down(self, own_pool):
        results = own_pool.map(time.sleep, [0.002] * 200)
        own_pool.submit(neg, 1).add_done_callback(lambda _: own_pool.shutdown())
        assert list(results) == [None] * 200

    def test_a_child_that_is_forked_meanwhile_ends(self, own_pool):
        results = own_pool.map(neg, range(50_000))
        for n, _ in enumerate(results):
            if n % 10_000 == 1:
                child = os.fork()
                if child == 0:
                    del results
                    gc.collect()
                    os._exit(7)
                until(lambda: os.waitpid(child, os.WNOHANG)[0])

    def test_a_shutdown_that_cancels(self, own_pool, caplog):
        results = own_pool.map(time.sleep, [0.01] * 5000)
        own_pool.shutdown(cancel_futures=True)
        until(lambda: not own_pool.task_count)      # before anybody looks
        with pytest.raises(cf.CancelledError):
            list(results)
        assert "exception calling callback" not in caplog.text

    @pytest.mark.parametrize("kind", ["pipe", "process"])
    def test_nobody_looks_and_the_program_ends(self, kind, tmp_path):
        make = {"pipe": "RemoteExecutor('2/:')", "process": "ProcessExecutor(2)"}[kind]
        done = run(f"""
            import executors, time
            def work(n):
                time.sleep(0.001)
                open(f"{tmp_path}/{{n}}", "w").close()
            if __name__ == "__main__":
                pool = executors.{make}
                pool.map(work, range(700))
            """)
        assert not done.stderr and len(os.listdir(tmp_path)) == 700, done

    def test_the_program_ends_before_the_first_call_is_sent(self, tmp_path):
        done = run(f"""
            import executors, threading, time
            def work(n):
                open(f"{tmp_path}/{{n}}", "w").close()
            def delay_the_first(frame, event, argument, seen=[]):
                if frame.f_code.co_name == "add_call_item_to_queue" and not seen:
                    seen.append(frame)
                    time.sleep(0.5)
            if __name__ == "__main__":
                threading.setprofile(delay_the_first)       # for threads that are started later
                executors.ProcessExecutor(2).submit(work, 0)
            """)
        assert not done.stderr and os.listdir(tmp_path) == ["0"], done

    def test_who_leaves_early_cancels_the_rest(self, pool, tmp_path):
        def work(n):
            time.sleep(0.002)
            open(f"{tmp_path}/{n}", "w").close()
            return n
        results = pool.map(work, range(5000))
        assert next(results) == 0
        results.close()
        until(lambda: not pool.task_count)
        assert len(os.listdir(tmp_path)) < 2500

    def test_it_times_out(self, pool, tmp_path):
        results = pool.map(lambda n: wait_for(str(tmp_path / "go")) if n == 400 else n, range(900),
                           timeout=1.5)
        try:
            with pytest.raises(cf.TimeoutError):
                list(results)
        finally:
            (tmp_path / "go").touch()

    def test_arguments_that_are_long_go_alone(self, remote):
        blocks = [numpy.full(30_000, n) for n in range(60)]
        found = remote.map(lambda n, block: n + int(block[0]), range(60), blocks)
        assert list(found) == [2 * n for n in range(60)]

    def test_what_is_told_of_it(self, local, tmp_path):
        """Items are counted, not what they travel in; and what is left is known."""
        pool = local("2/:")
        assert sum(pool.map(abs, range(3000))) == sum(range(3000))
        until(lambda: pool.status.done == 3000)     # an item is counted after it is given out
        assert pool.status.waiting == pool.task_count == 0
        path = str(tmp_path / "go")
        results = pool.map(lambda n: wait_for(path) if n == 2000 else n, range(4000))
        until(lambda: pool.status.running and pool.status.done > 4000)
        status = pool.status
        assert status.waiting + status.done + status.running in range(6900, 7001)
        open(path, "w").close()
        assert len(list(results)) == 4000
        until(lambda: pool.status.done == 7000)

    def test_every_figure_counts_items(self, local, tmp_path):
        """Each item is done, failed or cancelled, once; only what starts again is retried."""
        def count():
            until(lambda: not pool.task_count)
            status = pool.status
            assert not status.retried and not status.waiting
            return status.done, status.failed, status.cancelled
        pool = local("2/:", schedule_backups=False)
        assert sum(pool.map(abs, range(5000))) and count() == (5000, 0, 0)
        results = pool.map(lambda n: 1 // (n - 300), range(5000))
        with pytest.raises(ZeroDivisionError):
            list(results)
        done, failed, cancelled = count()
        assert (failed, done + cancelled) == (1, 9999) and done >= 5300
        path = str(tmp_path / "go")
        stuck = pool.map(wait_for, [path] * 700)
        single = pool.submit(wait_for, path)
        status = pool.status
        assert pool.task_count == 701 == status.waiting + status.running
        pool.shutdown(wait=False, cancel_futures=True)
        open(path, "w").close()
        with pytest.raises(cf.CancelledError):
            list(stuck)
        pool.shutdown()
        assert single.cancelled() and sum(count()) == 10_701

    def test_several_at_once_and_inside_callbacks(self, pool):
        with cf.ThreadPoolExecutor(4) as threads:
            sums = threads.map(lambda n: sum(pool.map(abs, range(n, n + 2000))), range(8))
            assert list(sums) == [sum(range(n, n + 2000)) for n in range(8)]


def test_a_broken_process_pool_is_replaced():
    with executors.ProcessExecutor(1) as pool:
        with pytest.raises(cf.process.BrokenProcessPool):
            pool.submit(os._exit, 1).result(PATIENCE)
        until(lambda: pool._pool._broken)
        assert pool.submit(neg, 1).result(PATIENCE) == -1


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_what_one_task_pickles_does_not_break_a_process_pool(start):
    """As with a RemoteExecutor; the standard library's pool loses all its tasks by most of them."""
    cases = [
        (lambda: raise_it(TwoArguments("x", "y")), "cannot be pickled: TwoArguments: x and y"),
        (lambda: raise_it(ValueError(Bomb(divmod, 1, 0))), "that cannot be pickled: ValueError"),
        (lambda: Bomb(divmod, 1, 0), "result cannot be unpickled: ZeroDivisionError"),
        (lambda: [Bomb(sys.exit, 3)], "result cannot be unpickled: SystemExit: 3"),
        (functools.partial(neg, Bomb(divmod, 1, 0)),
         "arguments cannot be unpickled on the worker: ZeroDivisionError"),
    ]
    with executors.ProcessExecutor(1, mp_context=multiprocessing.get_context(start)) as pool:
        for work, words in cases:
            bad, good = pool.submit(work), pool.submit(neg, 1)
            error = bad.exception(PATIENCE)
            assert type(error) is BundleError and words in str(error), str(error)
            assert error.name.endswith(("<lambda>", "neg"))
            assert "Traceback" in str(error.__cause__)
            assert good.result(PATIENCE) == -1


@pytest.mark.parametrize("error", [
    KeyError("bad"), FileNotFoundError(2, "no such file", __file__),    # which is here
    json.JSONDecodeError("bad", "{", 1)])
def test_the_traceback_from_a_process_is_of_what_it_ran(error):
    def work():
        try:
            return 1 // 0
        except ZeroDivisionError:
            raise error from None

    with executors.ProcessExecutor(1) as pool:
        found = pool.submit(work).exception(PATIENCE)
    assert type(found) is type(error) and not hasattr(found, "__notes__")
    words = str(found.__cause__)
    assert "in work\n" in words and type(error).__name__ + ": " in words
    assert "remote_worker" not in words and "ZeroDivisionError" not in words


@pytest.mark.parametrize("how", ["returns", "raises"])
def test_what_only_a_process_can_import_breaks_no_pool(how, tmp_path):
    def work():
        (tmp_path / "only_there.py").write_text("class Error(Exception):\n    pass\n")
        sys.path.insert(0, str(tmp_path))
        import only_there
        return raise_it(only_there.Error(5)) if how == "raises" else [only_there.Error(5)]

    with executors.ProcessExecutor(1) as pool:
        bad, never = pool.submit(work), pool.submit(wait_for, str(tmp_path / "go"))
        assert cf.wait([bad, never], PATIENCE, cf.FIRST_EXCEPTION).done == {bad}
        (tmp_path / "go").touch()
        good = pool.submit(neg, 1)
        error = bad.exception(PATIENCE)
        assert type(error) is BundleError and "unpickled here: ModuleNotFoundError" in str(error)
        with pytest.raises(BundleError, match="only_there"):
            bad.result()
        assert bad.exception() is error and good.result(PATIENCE) == -1


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_a_module_that_a_process_cannot_import(start, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text(f"import os\nassert os.getpid() == {os.getpid()}\n"
                                           "def work(value):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with executors.ProcessExecutor(1, mp_context=multiprocessing.get_context(start)) as pool:
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        work = importlib.import_module("only_here").work
        for value in 1, [1]:
            bad, good = pool.submit(work, value), pool.submit(neg, 1)
            error = bad.exception(PATIENCE)
            assert type(error) is BundleError and error.name == "work", error
            assert "function or arguments cannot be unpickled" in str(error)
            assert good.result(PATIENCE) == -1


def test_sizes_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("EXECUTORS_THREADPOOL_SIZE", "3")
    with executors.ThreadExecutor() as pool:
        assert pool._pool._max_workers == 3
    monkeypatch.setenv("EXECUTORS_THREADPOOL_SIZE", "many")
    with pytest.raises(ValueError, match="EXECUTORS_THREADPOOL_SIZE must be .* got 'many'"):
        executors.ThreadExecutor()


class Foreign(cf.Executor):
    """A pool of somebody else's, which pickles its calls."""

    def __init__(self):
        self.calls = []

    def submit(self, fn, /, *args, **kwargs):
        self.calls.append(cloudpickle.dumps((fn, args, kwargs)))
        future = cf.Future()
        fn, args, kwargs = pickle.loads(self.calls[-1])
        future.set_result(fn(*args, **kwargs))
        return future


def test_an_adopted_pool_has_the_size_that_it_says():
    with cf.ThreadPoolExecutor(3) as threads:
        assert executors.PoolExecutor(threads).size == 3
    assert executors.PoolExecutor(Foreign()).size == os.cpu_count()


def test_dask_fills_a_pool():
    """In a process of its own: what dask imports has every exception pickled its way (tblib)."""
    ended = run("""
        import dask, executors, threading
        all_at_once = threading.Barrier(12)

        @dask.delayed
        def meet(n):
            all_at_once.wait(30)
            return n

        with executors.ThreadExecutor(12) as pool:
            print(dask.compute(*map(meet, range(12)), scheduler=pool))
    """)
    assert ended.stdout.strip() == str((*range(12),)), ended.stderr


# ─────────────────────────────────── the end of the interpreter ───────────────────────────────────

MAKE = {
    "thread": "ThreadExecutor(3)", "process": "ProcessExecutor(3)",
    "pipe": "RemoteExecutor(['3/:'])",
    "ssh": "RemoteExecutor([f'3/alpha python={sys.executable}'], ssh_options=sys.argv[1:])"}


@pytest.mark.parametrize("kind", MAKE)
class TestExits:
    """What happens to an executor when its interpreter ends, each in an interpreter of its own."""

    def run(self, sshds, kind, text):
        head = "import atexit, executors, os, sys, time\n"
        text = textwrap.dedent(text).replace("MAKE", f"executors.{MAKE[kind]}")
        done = run(head + text, *sshds[0].ssh_options)
        return done.returncode, done.stdout, done.stderr

    def test_functions_of_main_and_an_exit_without_shutdown(self, sshds, kind):
        """A script without a guard, whose functions are its own: all is done, and it ends."""
        status, out, err = self.run(sshds, kind, """
            FACTOR = 3
            def scale(n):
                time.sleep(0.2)
                return n * FACTOR
            def say(future):
                print(f"{future.result()}\\n", end="", flush=True)
            pool = MAKE
            for n in range(5):
                pool.submit(scale, n).add_done_callback(say)
        """)
        assert (status, sorted(out.split()), err) == (0, ["0", "12", "3", "6", "9"], "")

    def test_after_a_shutdown_that_did_not_wait(self, sshds, kind):
        assert self.run(sshds, kind, """
            pool = MAKE
            future = pool.submit(time.sleep, 0.5)
            future.add_done_callback(lambda future: os.write(1, b"done"))
            pool.shutdown(wait=False)
        """) == (0, "done", "")

    def test_cancelled_right_before(self, sshds, kind):
        assert self.run(sshds, kind, """
            with MAKE as pool:
                future = pool.submit(time.sleep, 0.5)
                future.cancel()
            print("done")
        """) == (0, "done\n", "")

    @pytest.mark.parametrize("when", ["an exit function", "a callback"])
    def test_submitting_too_late(self, sshds, kind, when):
        """An error, and no hang."""
        status, out, err = self.run(sshds, kind, """
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
        assert status == 0 and "cannot schedule new futures" in out and not err, (out, err)

    def test_an_executor_inside_a_task(self, sshds, kind):
        assert self.run(sshds, kind, """
            def nested():
                import executors
                with executors.ThreadExecutor(2) as threads:
                    with executors.RemoteExecutor(["2/:"]) as pool:
                        return [*threads.map(pow, [2, 3], [5, 2]), *pool.map(pow, [2, 3], [5, 2])]
            with MAKE as pool:
                print(pool.submit(nested).result())
        """) == (0, "[32, 9, 32, 9]\n", "")

    def test_a_controller_that_forks(self, sshds, kind):
        if kind in ("thread", "process"):
            pytest.skip("the standard library's pools do not promise it")
        _, out, err = self.run(sshds, kind, """
            import warnings
            # From Python 3.12, of any fork beside threads.
            warnings.simplefilter("ignore", DeprecationWarning)
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
        assert out.splitlines() == [
            "this executor belongs to the parent process; make another one after a fork",
            "64", "128"], (out, err)


# ────────────────────────────────── CPython's own executor tests ──────────────────────────────────


def cpythons_tests():
    """Return CPython's test classes for executors; not every distribution of Python has them."""
    try:
        from test.test_concurrent_futures.executor import ExecutorTest
        from test.test_concurrent_futures.test_as_completed import AsCompletedTests
        from test.test_concurrent_futures.test_shutdown import ExecutorShutdownTest
        from test.test_concurrent_futures.test_wait import WaitTests
    except ImportError:
        try:
            from test.test_concurrent_futures import (
                AsCompletedTests,
                ExecutorShutdownTest,
                ExecutorTest,
                WaitTests,
            )
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
            worker = f"{max_workers}/alpha python={sys.executable}"
            return RemoteExecutor([worker], ssh_options=self.ssh_options, show_status=False)
        if self.kind == "pipe":
            return RemoteExecutor([f"{max_workers}/:"], show_status=False)
        kinds = {"thread": executors.ThreadExecutor, "process": executors.ProcessExecutor}
        return kinds[self.kind](max_workers)

    def setUp(self):
        self.executor = self.executor_type(self.worker_count)
        if self.kind in ("pipe", "ssh"):        # before anything can have started
            self.executor.submit(pow, 1, 1).result()

    def tearDown(self):
        self.executor.shutdown()
        self.executor = None

    # These start a program that makes an executor of concurrent.futures by its name; TestExits does
    # the same with ours.
    test_interpreter_shutdown = test_submit_after_interpreter_shutdown = None
    test_hang_gh83386 = test_hang_gh94440 = None


for base, kind in itertools.product(cpythons_tests(), MAKE):
    name = f"Test{base.__name__}{kind}"
    globals()[name] = type(name, (CPythons, base), {"kind": kind, "__test__": True})
    if kind in ("pipe", "ssh"):     # what a record says of a negative number is tested with records
        globals()[name].test_max_workers_negative = None

if not cpythons_tests():
    @pytest.mark.skip(reason="this Python has no tests of its own (test.test_concurrent_futures)")
    def test_cpythons_own():
        pass


# ────────────────────────────────────── the scheduler, alone ──────────────────────────────────────


class Farm:
    """A scheduler with a clock of ours. Launched attempts wait in `running` to be ended."""

    def __init__(self, *workers, **rules):
        self.time = 0.0
        policy = executors.RoundRobinRemoteWorkerSelectionPolicy()
        rules = executors._Limits(**rules)
        self.scheduler = executors._Scheduler(policy, rules, jitter=lambda: 0.5)
        self.running, self.killed, self.settled, self.recalls = {}, [], {}, []
        self.connects, self.left, self.finished, self.warnings = [], [], 0, []
        self.functions = {}
        for text in workers:
            self.decide(self.scheduler.add_worker, RemoteWorkerRecord.parse(text))
        for worker in [*self.connects]:
            self.up(worker)

    def up(self, worker):
        self.connects.remove(worker)
        self.tell(worker, self.scheduler.on_link_up, 1)

    def tell(self, worker, report, *operands):
        """Report something of a worker, as its link does."""
        return self.decide(
            self.scheduler.on_report, worker, worker.link, report.__func__, *operands)

    def decide(self, decision, *operands):
        self.scheduler.now = self.time
        answer = decision(*operands)
        for verb, target, operand in self.scheduler.take_actions():
            if verb is executors._LAUNCH:
                assert target == operand.worker.link
                self.running[operand.ident] = operand
            elif verb is executors._KILL:
                self.killed.append(operand)
            elif verb is executors._SETTLE:
                assert target not in self.settled, "settled twice"
                self.settled[target] = operand
            elif verb is executors._RECALL:
                self.recalls.append((target, operand))
            elif verb is executors._CONNECT:
                assert operand == target.link
                self.connects.append(target)
            elif verb is executors._LEAVE:
                self.left.append(target)
            elif verb is executors._FINISH:
                self.finished += 1
            elif verb is executors._WARN:
                self.warnings.append(operand)
        self.check()
        return answer

    def check(self):
        """Conservation: each slot is free or taken, each bundle waiting, running or settled."""
        scheduler, running, ahead = self.scheduler, set(), 0
        for worker in scheduler.workers:
            is_up, has_room = worker.state is executors._UP, len(worker.running) < worker.count
            assert (worker in scheduler.up) == is_up
            assert (worker in scheduler._idle) == (is_up and has_room and not worker.is_reserved)
            assert not (worker.ahead and has_room)
            assert is_up or not worker.running
            attempts = [*worker.running.values(), *worker.ahead.values()]
            running |= {one.bundle for one in attempts if one in one.bundle.attempts}
            ahead += len(worker.ahead)
        assert ahead == scheduler._ahead
        live = executors._LIVE
        queues = (scheduler._queues.new, scheduler._queues.suspects,
                  *scheduler._queues.again.values())
        queued = [bundle for queue in queues for bundle in queue if bundle.phase is live]
        assert len(queued) == scheduler.waiting
        assert len(running) + len(queued) == scheduler.unfinished
        assert not running & set(queued)

    def function(self, name="f"):
        if name not in self.functions:
            self.functions[name] = executors._Function(
                len(self.functions), name, b"", executors._Durations())
        return self.functions[name]

    def submit(self, name="f", number=1):
        bundles = [executors._Bundle(self.function(name), b"") for _ in range(number)]
        for bundle in bundles:
            self.decide(self.scheduler.submit, bundle)
        return bundles if number > 1 else bundles[0]

    def attempts(self, bundle):
        return [attempt for attempt in self.running.values() if attempt.bundle is bundle]

    def finish(self, *attempts, seconds=1.0):
        for attempt in attempts:
            del self.running[attempt.ident]
            results = [(wire.RESULT, attempt.ident, int(seconds * 1e6), None)]
            self.tell(attempt.worker, self.scheduler.on_results, results)

    def die(self, attempt):
        del self.running[attempt.ident]
        self.tell(attempt.worker, self.scheduler.on_slot_exit, attempt.ident, 0, "killed", "")

    def free(self, ident):
        attempt = self.running.pop(ident)
        self.tell(attempt.worker, self.scheduler.on_attempt_killed, ident, 0)

    def give_back(self, worker, *attempts):
        for attempt in attempts:
            del self.running[attempt.ident]
        idents = [attempt.ident for attempt in attempts]
        self.tell(worker, self.scheduler.on_attempts_recalled, idents)

    def lose(self, worker, permanent=False):
        for ident in (*worker.running, *worker.ahead):
            self.running.pop(ident, None)
        if worker in self.connects:
            self.connects.remove(worker)
        kind = executors._LossKind.UNUSABLE if permanent else executors._LossKind.LOST
        return self.tell(worker, self.scheduler.on_link_lost, executors._Loss(kind, "lost"))

    def tick(self, seconds=0.0, *held_up):
        self.time += seconds
        self.decide(self.scheduler.tick, [worker.link for worker in held_up])

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
        bundles = farm.submit(number=50)
        assert sum(len(farm.attempts(bundle)) for bundle in bundles) in (4, 5)
        assert [bundle.is_running() for bundle in bundles] == [True] + [False] * 49

    def test_what_was_sent_ahead_is_recalled_for_an_idle_slot(self):
        farm = Farm("1/a", "1/b")
        farm.teach(seconds=0.0005)
        a, b = farm.scheduler.workers
        farm.submit(number=6)
        on_a, on_b = ([one for one in farm.running.values() if one.worker is w] for w in (a, b))
        farm.finish(*on_b, seconds=0.0005)
        assert farm.recalls[-1] == (a.link, 1)
        given = on_a[-1]
        farm.give_back(a, given)
        again, = farm.attempts(given.bundle)
        assert again.worker is b and not given.bundle.failures
        assert farm.scheduler.tally.retried == 0        # it starts there for the first time

    def test_what_is_cancelled_is_no_progress(self):
        farm = Farm("1/a")
        for bundle in farm.submit(number=100):
            farm.tick(0.1)
            farm.decide(farm.scheduler.cancel, bundle)
        assert farm.scheduler.tally.rate(farm.time) == 0

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
        _, error = farm.settled[bundle]
        assert isinstance(error, BundleError) and len(error.attempts) == 3
        assert "f: killed the process" in str(error)

    def test_a_lost_machine_costs_its_bundles_nothing(self):
        farm = Farm("2/a")
        first, second, third = farm.submit(number=3)
        worker = farm.attempts(first)[0].worker
        for expected in (1.0, 2.0, 4.0):
            farm.lose(worker)
            assert worker.retry_at == pytest.approx(farm.time + expected)
            farm.tick(expected)
            farm.up(worker)
            running = [one for one in (first, second) if farm.attempts(one)]
            assert len(running) == (2 if expected == 1.0 else 1)        # suspects run alone
            assert not farm.attempts(third)
        farm.finish(*farm.attempts(running[0]))
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
        scheduler = farm.scheduler
        results = [(wire.RESULT, old.ident, 1, None)]
        farm.decide(scheduler.on_report, old.worker, link, executors._Scheduler.on_results, results)
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

    def test_how_many_handshakes_there_may_be_is_found_out(self):
        """One more for each that works; half as many, once, when an sshd hangs up."""
        farm = Farm()
        for n in range(500):
            record = RemoteWorkerRecord(None, f"m{n}", count=1)
            farm.decide(farm.scheduler.add_worker, record)
        connecting = farm.scheduler._login_window.links
        rounds = []
        for _ in range(4):
            rounds.append(len(connecting))
            for worker in [worker for worker in farm.connects if worker.link in connecting]:
                farm.up(worker)
        assert rounds == [8, 16, 32, 64] and len(connecting) == 64
        for worker in [worker for worker in farm.connects if worker.link in connecting][:20]:
            farm.decide(farm.scheduler.on_report, worker, worker.link,
                        executors._Scheduler.on_link_lost,
                        executors._Loss(executors._LossKind.TOO_MANY_LOGINS, "closed"))
        assert len(connecting) == 44        # none has been added
        for worker in [worker for worker in farm.connects if worker.link in connecting][:20]:
            farm.decide(farm.scheduler.on_report, worker, worker.link,
                        executors._Scheduler.on_link_lost,
                        executors._Loss(executors._LossKind.LOST, "timed out"))
        assert len(connecting) == 32

    def test_hopeless_at_once_when_every_cause_is_permanent(self):
        farm = Farm()
        for name in "ab":
            farm.decide(farm.scheduler.add_worker, RemoteWorkerRecord(None, name))
        bundle = farm.submit()
        a, b = farm.scheduler.workers
        farm.lose(a, permanent=True)
        assert bundle not in farm.settled
        farm.lose(b, permanent=True)
        _, error = farm.settled[bundle]
        assert isinstance(error, NoWorkersError) and "a  lost" in str(error)
        with pytest.raises(NoWorkersError):
            farm.scheduler.check_open()
        farm.decide(farm.scheduler.add_worker, RemoteWorkerRecord(None, "c", count=1))
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

    def test_a_pool_that_has_worked_is_waited_for(self):
        """A network that is away for some minutes costs nothing but these."""
        farm = Farm("1/a")
        farm.finish(farm.attempts(farm.submit())[0])
        farm.lose(farm.scheduler.workers[0])
        bundle = farm.submit()
        for _ in range(590):
            farm.tick(1)
        assert bundle not in farm.settled
        for _ in range(20):
            farm.tick(1)
        assert isinstance(farm.settled[bundle][1], NoWorkersError)

    def test_cancel(self):
        farm = Farm("1/a")
        running, waiting = farm.submit(number=2)
        cancel = farm.scheduler.cancel
        assert farm.decide(cancel, waiting) and farm.settled[waiting][0] == executors._CANCELLED
        assert farm.decide(cancel, running) and not farm.decide(cancel, running)
        third = farm.submit()
        assert not farm.attempts(third)         # the slot is not free before the machine says so
        farm.free(farm.killed[0])
        assert farm.attempts(third)

    def test_a_submission_that_loses_the_race_with_close(self):
        farm = Farm("1/a")
        farm.decide(farm.scheduler.close, False)
        bundle = farm.submit()
        kind, error = farm.settled[bundle]
        assert kind == executors._FAILED and "cannot schedule new futures" in str(error)
        assert not farm.decide(farm.scheduler.cancel, bundle)

    def test_a_cancellation_that_overtakes_its_submission(self):
        farm = Farm("1/a")
        bundle = executors._Bundle(farm.function(), b"")
        assert farm.decide(farm.scheduler.cancel, bundle)
        farm.decide(farm.scheduler.submit, bundle)
        assert farm.settled[bundle][0] == executors._CANCELLED and not farm.attempts(bundle)

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

    def test_a_machine_with_fewer_slots_than_it_said(self):
        farm = Farm("4/a")
        worker, = farm.scheduler.workers
        farm.tell(worker, farm.scheduler.on_slot_count, 2)
        assert sum(len(farm.attempts(bundle)) for bundle in farm.submit(number=4)) == 2

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

    def test_what_runs_on_a_machine_that_finishes_nothing_is_raced_first(self):
        """Backups are weighed by how slow machines were; one of which that is not known is slow."""
        farm = Farm("1/a", "1/b", "1/c")
        farm.teach(seconds=1.0, number=2)
        quick, silent, idle = farm.scheduler.workers
        quick.durations.add(1.0)
        on_quick, on_silent, other = farm.submit(number=3)
        assert [farm.attempts(one)[0].worker for one in (on_quick, on_silent, other)] == [
            idle, quick, silent]
        farm.finish(*farm.attempts(on_quick))
        farm.tick(100)
        assert len(farm.attempts(other)) == 2 and len(farm.attempts(on_silent)) == 1

    @pytest.mark.parametrize("why", ["backups are off", "no completions yet", "too short to bother",
                                     "no idle slot", "work waits"])
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
        farm.decide(farm.scheduler.add_worker, RemoteWorkerRecord.parse("1/b"))
        farm.up(farm.connects[0])
        farm.running.clear()
        worker, _ = farm.scheduler.workers
        link = worker.link
        remove, record = farm.scheduler.remove_worker, RemoteWorkerRecord.parse("1/a")
        assert farm.decide(remove, record) and farm.left == [link]
        assert farm.attempts(bundle)[0].worker.machine == "b"
        assert not farm.decide(remove, record)

    def test_a_machine_that_is_removed_while_it_connects(self):
        farm = Farm()
        record = RemoteWorkerRecord(None, "a", count=1)
        farm.decide(farm.scheduler.add_worker, record)
        worker, = farm.connects
        link = worker.link
        assert farm.decide(farm.scheduler.remove_worker, record) and farm.left == [link]
        scheduler = farm.scheduler
        farm.decide(scheduler.on_report, worker, link, executors._Scheduler.on_link_up, 1)
        assert not farm.attempts(farm.submit()) and not scheduler.up

    def test_close(self):
        farm = Farm("1/a")
        running, waiting = farm.submit(number=2)
        farm.decide(farm.scheduler.close, True)
        assert farm.settled[waiting][0] == executors._CANCELLED and not farm.finished
        with pytest.raises(RuntimeError):
            farm.scheduler.check_open()
        farm.finish(*farm.attempts(running))
        assert farm.finished == 1

    def test_close_cancels_what_was_only_sent_ahead(self):
        farm = Farm("1/a")
        farm.teach(seconds=0.0005)
        bundles = farm.submit(number=9)
        worker, = farm.scheduler.workers
        ahead = [*worker.ahead.values()]
        assert ahead
        farm.decide(farm.scheduler.close, True)
        assert farm.recalls[-1] == (worker.link, len(ahead))
        farm.give_back(worker, *ahead[1:])      # one has started meanwhile
        started = {bundles[0], ahead[0].bundle}
        assert {*farm.settled} >= {*bundles} - started and not started & {*farm.settled}
        farm.finish(*farm.running.values())
        assert farm.finished == 1

    def recover(self, farm):
        """Let time pass until all machines are up."""
        while any(worker.state is not executors._UP for worker in farm.scheduler.workers):
            farm.tick(1.0)
            for worker in [*farm.connects]:
                farm.up(worker)

    @pytest.mark.parametrize("workers", [["2/a"], ["2/a", "2/b"], ["1/a", "1/b", "1/c"]])
    def test_a_bundle_that_takes_its_machines_down_is_convicted(self, workers):
        """It alone: what runs beside it, ever so often, completes."""
        farm = Farm(*workers)
        guilty, innocent = farm.submit("guilty"), farm.submit(number=12)
        losses = 0
        while guilty not in farm.settled:
            attempt, = farm.attempts(guilty) or [None]
            if attempt:
                losses += 1
                farm.lose(attempt.worker)
                self.recover(farm)
            else:
                farm.finish(next(iter(farm.running.values())))
            assert losses < 6
        kind, error = farm.settled[guilty]
        assert kind == executors._FAILED and losses == 4 == len(error.attempts)
        assert "took its machine down" in str(error) and "the machine was lost: lost" in str(error)
        while farm.running:
            farm.finish(next(iter(farm.running.values())))
        assert all(farm.settled[one][0] == wire.RESULT for one in innocent)

    @pytest.mark.parametrize("seed", range(20))
    def test_machines_that_go_up_and_down_convict_nobody(self, seed):
        """Tasks of 10 s on machines that hold out for a minute: some are lost again and again."""
        source = random.Random(seed)
        farm = Farm("2/a", "2/b")
        bundles = farm.submit(number=100)
        ends, lost_at = {}, {worker: source.expovariate(1 / 60) for worker in farm.scheduler.up}
        while len(farm.settled) < 100:
            farm.tick(0.5)
            for worker in [*farm.connects]:
                farm.up(worker)
                lost_at[worker] = farm.time + source.expovariate(1 / 60)
            for attempt in [*farm.running.values()]:
                until = ends.setdefault(attempt, farm.time + source.uniform(1, 19))
                if farm.time > until and attempt.ident in attempt.worker.running:
                    farm.finish(attempt)
            for worker in [*farm.scheduler.up]:
                if farm.time > lost_at[worker]:
                    farm.lose(worker)
            assert farm.time < 10_000
        assert all(farm.settled[one][0] == wire.RESULT for one in bundles)

    @pytest.mark.parametrize("seed", range(20))
    def test_one_long_task_is_not_convicted_however_steady_its_machine_was(self, seed):
        """Cuts after more than ten minutes; or at random, four an hour, after a day without any."""
        source = random.Random(seed)
        farm = Farm("1/a")
        worker, = farm.scheduler.workers
        farm.tick(86_400 * (seed % 2))
        bundle = farm.submit()
        for _ in range(100):
            farm.tick(source.uniform(601, 2000) if seed % 2 else source.expovariate(1 / 900))
            farm.lose(worker)
            self.recover(farm)
        assert not farm.settled
        farm.finish(*farm.attempts(bundle))
        assert farm.settled[bundle][0] == wire.RESULT

    def test_who_was_suspended_suspects_nobody(self):
        farm = Farm("1/a")
        bundle = farm.submit()
        for _ in range(20):
            farm.tick(1.0)
            farm.decide(farm.scheduler.on_suspension)
            farm.lose(farm.scheduler.workers[0])
            self.recover(farm)
        assert not bundle.losses and farm.attempts(bundle)

    def test_while_work_waits_and_nothing_is_up_machines_are_tried_soon(self):
        """But not those that broke the protocol."""
        farm = Farm("1/a", "1/b")
        a, b = farm.scheduler.workers
        for _ in range(8):
            farm.lose(a)
            farm.tick(60)
        assert a.retry_at > farm.time - 60 + 59
        farm.lose(a)
        broken = executors._Loss(executors._LossKind.BROKE_PROTOCOL, "lies")
        farm.tell(b, farm.scheduler.on_link_lost, broken)
        farm.connects.clear()
        farm.tick(6)
        assert not farm.connects
        farm.submit()
        farm.tick(0.25)
        assert farm.connects == [a]
        farm.lose(a)
        farm.tick(4)
        assert not farm.connects
        farm.tick(1.25)
        assert farm.connects == [a] and b.retry_at > farm.time

    def test_a_loss_is_news_when_its_cause_is(self):
        farm = Farm("1/a")
        worker, = farm.scheduler.workers
        news = []
        for cause in ("refused", "refused", "no route", "no route", "refused"):
            loss = executors._Loss(executors._LossKind.LOST, cause)
            news.append(farm.tell(worker, farm.scheduler.on_link_lost, loss))
            farm.tick(70)
        farm.up(worker)
        news.append(farm.lose(worker))
        assert news == [True, False, True, False, True, True]

    def test_what_only_waited_is_no_suspect(self):
        farm = Farm("1/a")
        farm.teach(seconds=0.0001)
        bundles = farm.submit(number=8)
        for _ in range(6):
            farm.lose(farm.scheduler.workers[0])
            self.recover(farm)
            farm.finish(next(iter(farm.running.values())))
            farm.submit()
        assert all(len(one.losses) <= 1 for one in bundles)

    @pytest.mark.parametrize("answer", [None, 7, -1, 0.5, "x", ZeroDivisionError(), SystemExit()])
    def test_a_policy_that_misbehaves_is_replaced_and_told(self, answer):
        class Bad(executors.RemoteWorkerSelectionPolicy):
            def choose(self, ready, avoid=()):
                return raise_it(answer) if isinstance(answer, BaseException) else answer

        farm = Farm("1/a", "1/b")
        farm.scheduler._policy = Bad()
        bundles = farm.submit(number=2)
        assert len(farm.running) == 2 and len(farm.warnings) == 1
        assert "the policy Bad failed" in farm.warnings[0]
        farm.finish(*farm.running.values())
        assert all(farm.settled[one][0] == wire.RESULT for one in bundles)

    def test_time_stands_still_for_those_whose_link_is_held_up(self):
        farm = Farm("1/a", "1/b", bundle_timeout=3.0)
        first, second = farm.submit(number=2)
        slow = farm.attempts(first)[0].worker
        farm.tick()
        for _ in range(4):
            farm.tick(1.0, slow)
        assert first not in farm.settled and second in farm.settled
        farm.tick(3.5)
        assert type(farm.settled[first][1]) is executors.BundleTimeoutError

    def test_files_that_take_long_are_not_the_want_of_workers(self):
        farm = Farm()
        farm.decide(farm.scheduler.add_worker, RemoteWorkerRecord.parse("a"))
        bundle, worker = farm.submit(), farm.connects[0]
        for _ in range(300):
            farm.tick(1.0, worker)
        assert bundle not in farm.settled
        for _ in range(62):
            farm.tick(1.0)
        assert bundle in farm.settled

    def test_what_has_no_slot_after_all_has_not_started(self):
        farm = Farm("3/a", bundle_timeout=2.0)
        bundles, (worker,) = farm.submit(number=3), farm.scheduler.up
        farm.tell(worker, farm.scheduler.on_slot_count, 1)
        assert farm.recalls == [(worker.link, 2)]
        farm.give_back(worker, *farm.attempts(bundles[1]), *farm.attempts(bundles[2]))
        assert [*farm.running.values()] == farm.attempts(bundles[0])
        farm.tick(1.5)
        farm.finish(*farm.attempts(bundles[0]))
        farm.tick(1.5)
        assert len(farm.settled) == 1

    def test_far_machines_are_sent_more_ahead_and_long_calls_too(self):
        farm = Farm("1/a")
        farm.teach(seconds=0.0001, number=20)
        farm.tell(farm.scheduler.up[0], farm.scheduler.on_round_trip, 0.3)
        farm.submit(number=9000)
        assert len(farm.scheduler.up[0].ahead) > 5000
        farm = Farm("1/a")
        farm.teach(seconds=0.01)
        for _ in range(3):
            bundle = executors._Bundle(farm.function(), ([100_000], [b""]))
            farm.decide(farm.scheduler.submit, bundle)
        assert len(farm.scheduler.up[0].ahead) == 1
        farm = Farm("1/a")
        farm.teach(seconds=0.01)
        for _ in range(3):
            bundle = executors._Bundle(farm.function(), ([executors.AHEAD_BYTES + 1], [b""]))
            farm.decide(farm.scheduler.submit, bundle)
        assert not farm.scheduler.up[0].ahead       # the machine need not have room for two

    def test_a_removed_machine_keeps_its_handshakes_place_until_it_has_ended(self):
        farm = Farm()
        for n in range(30):
            record = RemoteWorkerRecord.parse(f"m{n}")
            farm.decide(farm.scheduler.add_worker, record)
            farm.decide(farm.scheduler.remove_worker, record)
        assert len(farm.connects) == 8 == len([*filter(bool, farm.left)])
        record = RemoteWorkerRecord.parse("late")
        farm.decide(farm.scheduler.add_worker, record)
        assert len(farm.connects) == 8
        farm.decide(farm.scheduler.on_link_ended, farm.left[0])
        assert farm.connects[-1].record == record

    @pytest.mark.parametrize("seed", range(20))
    def test_random_histories_conserve_everything(self, seed):
        """Anything may happen in any order; all is settled once; `Farm.check` holds each time."""
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
            elif roll < 0.78:
                farm.lose(source.choice(farm.scheduler.workers))
            elif roll < 0.85 and farm.killed:
                ident = farm.killed.pop()
                if ident in farm.running:
                    farm.free(ident)
            elif roll < 0.9 and running:
                worker = source.choice(running).worker
                farm.give_back(worker, *[*worker.ahead.values()][:3])
            else:
                farm.tick(source.choice([0.1, 1, 5]))
                for worker in [*farm.connects]:
                    farm.up(worker)
        if seed % 2:
            farm.decide(farm.scheduler.close, bool(seed % 4 == 1))
        while farm.scheduler.unfinished:
            farm.finish(*farm.running.values())
            farm.tick(60)
            for worker in [*farm.connects]:
                farm.up(worker)
        assert set(farm.settled) == set(bundles) and bool(farm.finished) == bool(seed % 2)
        assert not farm.scheduler._backups


# ──────────────────────────────────────── a channel, alone ────────────────────────────────────────


class Far:
    """A channel over two pipes, and the far ends of these: no ssh, no process, no machine."""

    def __init__(self):
        self.fd, stdin = os.pipe()
        stdout, self.out = os.pipe()
        self.stuck = SimpleQueue()
        self.writer = threading.Thread(target=executors._run_writer, args=(self.stuck,))
        self.writer.start()
        self.stdin = os.fdopen(stdin, "wb", 0)
        self.reader = wire.FrameReader(self.fd)
        self.channel = executors._Channel(wire.MessageReader(stdout), self.stdin, self.stuck)
        self._stdout = stdout

    def read(self, number):
        """Return the next frames that were sent, without their headers."""
        frames = []
        while len(frames) < number:
            frames += self.reader.read()
        return [(kind, ident, bytes(data[wire.HEADER_SIZE:])) for kind, ident, data in frames]

    def attempt(self, ident, function, phase=executors._LIVE):
        bundle = executors._Bundle(function, b"arguments", phase=phase)
        return executors._Attempt(ident, bundle, None, 0.0, False, "", 0)

    def launch(self, *attempts):
        self.channel.queue.extend((executors._LAUNCH, attempt) for attempt in attempts)
        self.channel.pump()

    def close(self):
        self.channel.close()
        self.stuck.put(None)
        self.writer.join(PATIENCE)
        assert not self.writer.is_alive() and self.stdin.closed
        for fd in (self.fd, self.out, self._stdout):
            with ExitStack() as stack:
                stack.push(lambda *_: True)     # a test may have closed it
                os.close(fd)


@pytest.fixture
def far():
    with closing(Far()) as far:
        yield far


class TestChannel:
    def function(self, ident, size=10):
        return executors._Function(ident, "f", b"x" * size, executors._Durations())

    def test_many_threads_and_a_slow_machine(self, far):
        """Nobody waits for room, not even in a full pipe; what each sends arrives in its order."""
        def send(thread):
            for n in range(100):
                far.channel.send([wire.frame(wire.KILL, thread, b"%d" % n + b" " * 5000)])

        threads = [threading.Thread(target=send, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        frames = far.read(800)
        for thread in range(8):
            assert [int(body) for _, ident, body in frames if ident == thread] == [*range(100)]

    def test_closing_while_the_writer_is_stuck(self, far):
        far.channel.send([bytes(10_000_000)])
        assert not far.stdin.closed
        far.channel.close()
        until(lambda: far.stdin.closed, "closing")

    def test_a_machine_that_is_gone(self, far):
        """Whoever finds out ends it; who comes later does no harm."""
        os.close(far.fd)
        far.channel.send([b"x"])
        assert far.stdin.closed and far.channel.pipe is executors._BROKEN
        far.channel.send([b"y"])
        assert far.stuck.empty()

    def test_a_machine_that_goes_while_the_writer_is_stuck(self, far):
        far.channel.send([bytes(10_000_000)])
        os.close(far.fd)
        until(lambda: far.stdin.closed)

    def test_a_function_goes_over_once_and_is_forgotten_in_turn(self, far, monkeypatch):
        monkeypatch.setattr(executors, "MAX_KNOWN_FUNCTIONS", (2, 1 << 20))
        one, two, three = (self.function(n) for n in (101, 102, 103))
        far.launch(*(far.attempt(n, fn) for n, fn in enumerate([one, one, two, three, one])))
        kinds = [(kind, ident) for kind, ident, _ in far.read(11)]
        assert kinds == [
            (wire.FUNCTION, 101), (wire.CALL, 0), (wire.CALL, 1),
            (wire.FUNCTION, 102), (wire.CALL, 2),
            (wire.FUNCTION, 103), (wire.CALL, 3), (wire.FORGET, 101),
            (wire.FUNCTION, 101), (wire.CALL, 4), (wire.FORGET, 102)]

    def test_what_is_settled_is_not_sent(self, far):
        settled = far.attempt(1, self.function(101), executors._OVER)
        far.launch(settled, far.attempt(2, self.function(101)))
        assert [ident for kind, ident, _ in far.read(2) if kind == wire.CALL] == [2]

    def test_silence_is_counted_in_beats(self, far):
        reader = threading.Thread(target=far.channel.read)
        assert [far.channel.beat() for _ in range(5)] == [True] * 5     # it is we who do not read
        reader.start()
        until(lambda: far.channel._is_reading)
        assert [far.channel.beat() for _ in range(3)] == [True, True, False]
        os.write(far.out, wire.frame(wire.PONG))
        reader.join(PATIENCE)
        assert far.channel.beat()
        assert {kind for kind, _, _ in far.read(9)} == {wire.PING}


# ───────────────────────────────────── what follows: modules ──────────────────────────────────────


class TestModules:
    def project(self, folder, files, main):
        """Run a project as a user would: `python main.py` in its folder. Return what it printed."""
        for name, text in {**files, "main.py": main}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(textwrap.dedent(text))
        done = run([sys.executable, "main.py"], cwd=folder, env={"PYTHONPATH": HERE})
        assert not done.stderr, done.stderr
        return done.stdout

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have no notes before")
    def test_data_beside_what_was_sent_gets_a_hint(self, tmp_path):
        """Where the code itself is not; elsewhere, what is missing was never there."""
        printed = self.project(tmp_path, {"alone.py": """
            def load():
                return open(__file__ + ".no_such_file")
            """, "space/pkg/__init__.py": """
            import pathlib
            def load():
                return (pathlib.Path(__file__).parent / "no_such_file").read_text()
            """, "proj/__init__.py": "", "proj/data/names.txt": "", "proj/inner.py": """
            import importlib.resources, pathlib, pkgutil
            def by_path():
                return (pathlib.Path(__file__).parent / "data" / "no_such_file").read_text()
            def by_resources():
                return importlib.resources.files("proj").joinpath("no_such_file").read_text()
            def by_pkgutil():
                return pkgutil.get_data("proj", "no_such_file")
            def by_all():
                return [*(importlib.resources.files("proj") / "no_such_folder").iterdir()]
            def by_namespace():
                return importlib.resources.files("proj.data").joinpath("names.txt").read_text()
            def there():
                return len(pkgutil.get_data("proj", "inner.py"))
            """}, """
            import os, pathlib, shutil, tempfile
            import alone, executors, proj.inner as inner, space.pkg
            FOLDER = pathlib.Path(__file__).parent
            def own():
                return (FOLDER / "no_such_file").read_text()
            def without_a_folder():
                with tempfile.TemporaryDirectory() as folder:
                    os.chdir(folder)
                open("no_such_file")
            calls = inner.by_path, inner.by_resources, inner.by_pkgutil, inner.by_all
            if __name__ == "__main__":
                with executors.RemoteExecutor("1/:", show_status=False) as pool:
                    print(pool.submit(inner.there).result() > 100)
                    for call in (*calls, alone.load, space.pkg.load, own):
                        print(hasattr(pool.submit(call).exception(), "__notes__"), end=" ")
                    namespace = pool.submit(inner.by_namespace).exception()
                    for name in "proj", "space":
                        shutil.rmtree(FOLDER / name)
                    os.remove(FOLDER / "alone.py")
                    os.rename(FOLDER / "main.py", FOLDER / "away.py")
                    for call in (*calls, space.pkg.load, alone.load, own):
                        print(*pool.submit(call).exception().__notes__)
                    print(namespace)
                    for name in "/no_such_file", "no_such_file":
                        print(hasattr(pool.submit(open, name).exception(), "__notes__"), end=" ")
                    print(repr(pool.submit(without_a_folder).exception()))
            """)
        there, *lines, space, alone, own, namespace, elsewhere = printed.splitlines()
        assert there == "True"
        words = ("{0} was sent without its data files; to copy all of it, pass files=['{1}/{0}'] "
                 "to RemoteExecutor")
        assert lines == ["False " * 7 + words.format("proj", tmp_path),
                         *[words.format("proj", tmp_path)] * 3]
        assert space == words.format("space", tmp_path)
        for note, name in (alone, "alone.py.no_such_file"), (own, "no_such_file"):
            assert note == ("code is sent without the data files beside it; to copy this one, pass "
                            f"files=['{tmp_path}/{name}'] to RemoteExecutor, and open it as "
                            f"'{name}'")
        assert "namespace package proj.data was sent without its data" in namespace
        assert elsewhere == "False False FileNotFoundError(2, 'No such file or directory')"

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have no notes before")
    def test_a_module_that_cannot_follow_says_why(self, local, tmp_path, monkeypatch):
        """And what its note says to do helps."""
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "half").mkdir()
        for name in "compiled_here", "half/compiled_too", "plain_here":
            (tmp_path / f"{name}.py").write_text("value = 7")
        for name in "compiled_here", "half/compiled_too":       # a .pyc stands for a .so
            source = tmp_path / f"{name}.py"
            py_compile.compile(source, source.with_suffix(".pyc"))
            source.unlink()
        made = types.ModuleType("made_here")
        exec("def value(): return 7", made.__dict__)
        monkeypatch.setitem(sys.modules, "made_here", made)
        made = made.value

        def use(name):
            return importlib.import_module(name).value

        pool = local("1/:")
        notes = {name: "".join(pool.submit(use, name).exception(PATIENCE).__notes__)
                 for name in ("compiled_here", "half.compiled_too", "made_here")}
        compiled = str(tmp_path / "compiled_here.pyc")
        assert f"it is compiled, and only source follows by itself; pass files=['{compiled}']" in (
            notes["compiled_here"])
        assert f"pass files=['{tmp_path / 'half'}']" in notes["half.compiled_too"]
        assert "by types.ModuleType, without a file: write made_here.py, or" in notes["made_here"]
        pool = local("1/:", modules=False)
        error = pool.submit(use, "plain_here").exception(PATIENCE)
        assert "it is here, but modules=False was passed" in error.__notes__[0]
        pool = local("1/:", files=[compiled, tmp_path / "half"])
        assert pool.submit(use, "compiled_here").result(PATIENCE) == 7
        assert pool.submit(use, "half.compiled_too").result(PATIENCE) == 7
        cloudpickle.register_pickle_by_value(sys.modules["made_here"])
        assert pool.submit(lambda: made()).result(PATIENCE) == 7
        cloudpickle.unregister_pickle_by_value(sys.modules["made_here"])

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have no notes before")
    def test_a_file_that_is_here_gets_a_hint(self, ssh, tmp_path, monkeypatch):
        """Relative paths and others; not where it is missing here, too."""
        (tmp_path / "here/data").mkdir(parents=True)
        for name in "here/data/params.csv", "aside.csv":
            (tmp_path / name).write_text(name)
        monkeypatch.chdir(tmp_path / "here")
        pool = ssh("1/alpha", files=["../aside.csv"])

        def note(path):
            error = pool.submit(open, path).exception(PATIENCE)
            return "".join(getattr(error, "__notes__", "")).partition(": ")[2]

        for path in "data/params.csv", "./data/params.csv":
            assert note(path) == "pass files=['data'] to RemoteExecutor"
            assert list(pool.map(os.path.exists, [path])) == [False]
            with pytest.raises(FileNotFoundError) as caught:
                list(pool.map(lambda path: open(path).close(), [path]))
            assert "files=['data']" in caught.value.__notes__[0]
        assert note("../aside.csv").endswith("files=['../aside.csv'] to RemoteExecutor, and open "
                                             "it as 'aside.csv'")
        assert note("data/none.csv") == note("none.csv") == note("/no_such_file") == ""
        pool = ssh("1/alpha", files=["data"])
        assert pool.submit(read, "data/params.csv").result(PATIENCE) == "here/data/params.csv"

    def test_data_of_a_package_follows_by_files(self, tmp_path):
        printed = self.project(tmp_path, {"proj/__init__.py": """
            import importlib.resources, pathlib
            def load():
                found = importlib.resources.files("proj").joinpath("data/names.txt").read_text()
                beside = pathlib.Path(__file__).parent
                assert found == (beside / "data/names.txt").read_text()
                return found, str(beside) != str(pathlib.Path("proj").resolve())
            """, "proj/data/names.txt": "Ada"}, """
            import executors, proj
            if __name__ == "__main__":
                with executors.RemoteExecutor("1/:", files=proj.__path__) as pool:
                    print(pool.submit(proj.load).result())
            """)
        assert printed == "('Ada', True)\n", printed

    def test_modules_of_the_project(self, tmp_path):
        """Packages, relative and lazy imports, a namespace package; each once, unconfigured."""
        printed = self.project(tmp_path, {
            "proj/__init__.py": "", "proj/two.py": """
                def g(n):
                    if n < 0:
                        raise ValueError('negative')  # here
                    return n * 2
                """,
            "proj/one.py": """
                from . import two
                from .deep.three import T
                def f(n):
                    import lazily
                    return two.g(n) + lazily.N + T
                """,
            "proj/deep/__init__.py": "from ..two import g\n",
            "proj/deep/three.py": "from . import g\nT = g(50)\n", "lazily.py": "N = 1\n",
            "space/inner/leaf.py": "from space.other import V\ndef leaf():\n    return V\n",
            "space/other.py": "V = 7\n",
        }, """
            import executors, os, proj.one, space.inner.leaf
            asked, find = [], executors._find_source
            executors._find_source = lambda name: asked.append(name) or find(name)
            with executors.RemoteExecutor(["4/:"], show_status=False) as pool:
                os.chdir("/")
                print(set(pool.map(proj.one.f, [20] * 50)))
                print(pool.submit(space.inner.leaf.leaf).result())
                print(pool.submit(proj.one.f, -1).exception().__cause__)
            assert len(asked) == len(set(asked)) and "proj.deep.three" in asked, asked
        """)
        assert printed.startswith("{141}\n7\n"), printed
        assert "raise ValueError('negative')  # here" in printed

    def test_edits_are_never_stale_and_the_projects_copy_wins(self, tmp_path):
        """A worker with an older copy installed, which its Python would find first, runs ours."""
        (tmp_path / "there").mkdir()
        (tmp_path / "there/thing.py").write_text("ANSWER = 'installed'\n")
        python = tmp_path / "there/python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/there exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        for answer in ("one", "two"):
            files = {"thing.py": f"ANSWER = {answer!r}\n"}
            assert self.project(tmp_path / "here", files, f"""
                import executors
                def ask():
                    import thing
                    return thing.ANSWER
                with executors.RemoteExecutor([": python={python}"], show_status=False) as pool:
                    print(pool.submit(ask).result())
            """) == f"{answer}\n"

    def test_a_module_that_is_pickled_by_value(self, tmp_path):
        """When it changes, the new one runs: its name does not say what its functions do."""
        assert self.project(tmp_path, {"thing.py": "N = 1\ndef f():\n    return N\n"}, """
            import cloudpickle, executors, thing
            cloudpickle.register_pickle_by_value(thing)
            with executors.RemoteExecutor(["1/:"], show_status=False) as pool:
                print(pool.submit(thing.f).result())
                thing.N = 2
                print(pool.submit(thing.f).result())
        """) == "1\n2\n"

    def test_namespace_packages_with_parts_here_and_parts_installed_there(self, tmp_path):
        there = tmp_path / "site-packages"
        (there / "acme").mkdir(parents=True)
        (there / "acme/installed.py").write_text("I = 1\n")
        ours = "from acme.installed import I\ndef f():\n    return I + 1\n"
        assert self.project(tmp_path / "here", {"acme/ours.py": ours}, f"""
            import sys
            sys.path.append({str(there)!r})
            import executors, os, acme.ours
            os.environ["PYTHONPATH"] = {str(there)!r}
            with executors.RemoteExecutor([":"], show_status=False) as pool:
                print(pool.submit(acme.ours.f).result())
        """) == "2\n"

    def test_a_module_longer_than_a_frame(self, tmp_path):
        text = "T = '" + "x" * 3_000_000 + "'\ndef f(n):\n    return len(T) + n\n"
        assert self.project(tmp_path, {"big.py": text}, """
            import executors, big
            with executors.RemoteExecutor(["2/:"], show_status=False) as pool:
                print(set(pool.map(big.f, [1] * 10)))
        """) == "{3000001}\n"

    def test_an_import_that_a_signal_handler_breaks_off(self, tmp_path):
        """What was asked for then is not taken for what is asked for next."""
        files = {f"mod_{n}.py": f"NAME = 'mod_{n}'\n" for n in range(30)}
        assert self.project(tmp_path, files, """
            import executors
            def work():
                import importlib, signal
                def ring(_, frame):
                    if frame.f_code.co_name != "cb":    # a callback, from which nothing is raised
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
        """) == "[]\n"

    def test_threads_that_import_at_once_and_imports_while_unpickling(self, tmp_path):
        files = {f"mod{n}.py": f"import threading, time\nfrom base import B\nV = B + {n}\n"
                 for n in range(8)}
        assert self.project(tmp_path, {**files, "base.py": "B = 100\n", "klass.py": """
            import mod7
            class K:
                def __init__(self, v):
                    self.v = v
                def __reduce__(self):
                    return make, (self.v,)
            def make(v):
                import mod6
                return K(v + mod6.V)
            """,
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
                print(pool.submit(together).result() == list(range(100, 108)))
                print(pool.submit(lambda k: k.v, klass.K(1)).result())
        """) == "True\n107\n"

    def test_a_large_closure_crosses_once(self, local):
        pool = local("2/:")
        block = numpy.random.default_rng(0).bytes(8 << 20)

        def use(n):
            return len(block) + n

        futures = [pool.submit(use, n) for n in range(20)]
        expected = [len(block) + n for n in range(20)]
        assert [future.result(PATIENCE) for future in futures] == expected
        channel, = pool._supervisor.channels.values()
        assert len(channel._known) == 1

    @pytest.mark.parametrize("size", [
        0, 1, 65_535, 65_536, 65_537, 1 << 20, (1 << 20) + 1, 20_000_000])
    def test_sizes_at_the_seams(self, remote, size):
        data, array = bytes(size), numpy.arange(size // 8)
        assert remote.submit(lambda d: d, data).result(PATIENCE) == data
        assert (remote.submit(lambda a: a[::-1], array).result(PATIENCE) == array[::-1]).all()

    def test_many_large_ones_at_once(self, remote):
        arrays = [numpy.full(300_000, n) for n in range(30)]
        assert [a[0] for a in remote.map(lambda a: a + 1, arrays)] == list(range(1, 31))


# ────────────────────────────────────── what follows: files ───────────────────────────────────────


class TestFiles:
    @pytest.fixture
    def home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        (tmp_path / "home").mkdir()
        return tmp_path / "home"

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
        for logins in (2, 3):       # one scp for all, once
            pool = ssh("1/odd", files=["data.bin", "pkg"], ssh_options=sshd.ssh_options)
            data, output, folder = pool.submit(use).result(PATIENCE)
            assert data == (tmp_path / "data.bin").read_bytes() and output == b"ran\n"
            pool.shutdown()
            assert sshd.log().count("Accepted ") == logins
            assert not os.path.exists(folder)
            assert not [name for name in os.listdir(cache) if name.startswith("incoming")]
        assert os.stat(cache).st_mode & 0o777 == 0o700

    def test_directories_keep_their_modes_and_the_cache_is_pruned(self, local, tmp_path, home):
        tree = tmp_path / "tree"
        (tree / "sub").mkdir(parents=True, mode=0o750)
        (tree / "secret").write_text("x")
        (tree / "secret").chmod(0o600)
        (tree / "link").symlink_to("secret")

        def look(folder="."):
            return {name: oct(os.lstat(f"{folder}/tree/{name}").st_mode)
                    for name in ("", "sub", "secret", "link")}

        cache = home / ".cache/executors"
        for content in ("old", "new"):
            (tree / "secret").write_text(content)
            pool = local("1/:", files=[tree])
            assert pool.submit(look).result(PATIENCE) == look(tmp_path)
            pool.shutdown()
            (kept,) = cache.iterdir()       # at the second time: the first has gone by
            past = time.time() - 31 * 86400
            os.utime(kept, (past, past))
        pool = local("1/:", files=[tree])       # it is found, and so used, and so kept
        assert pool.submit(os.path.exists, "tree/secret").result(PATIENCE)
        assert [*cache.iterdir()] == [kept] and time.time() - kept.stat().st_mtime < 1000

    def test_relative_paths_and_a_directory_that_changes(self, local, tmp_path, monkeypatch):
        (tmp_path / "data").write_text("data")
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path)
        pool = local("1/:", files=["data"])
        os.utime("data")        # which changes nothing
        monkeypatch.chdir(tmp_path / "other")
        assert pool.submit(read, "data").result(PATIENCE) == "data"

    def test_importing_a_package_here_does_not_change_it(self, local, tmp_path, monkeypatch, home):
        package = tmp_path / "a_package_of_mine"
        package.mkdir()
        (package / "__init__.py").write_text("value = 7")
        before = local("1/:", files=[package])._supervisor.setup.cargo.keys
        py_compile.compile(str(package / "__init__.py"))
        assert os.listdir(package) != ["__init__.py"]
        pool = local("1/:", files=[package])
        assert pool._supervisor.setup.cargo.keys == before
        assert pool.submit(os.listdir, package.name).result(PATIENCE) == ["__init__.py"]

    def test_links_that_lead_out_of_a_directory_are_followed(self, local, tmp_path, home):
        """So what they led to is there even without them; others stay links."""
        data, aside = tmp_path / "data", tmp_path / "aside"
        (data / "inner").mkdir(parents=True)
        aside.mkdir()
        (data / "file").write_text("file")
        (aside / "model").write_text("model")
        for name, target in {
                "by_absolute": aside / "model", "inner/by_parents": "../../aside/model",
                "folder": aside, "inside": data / "file", "inner/inside": "../file",
                "nowhere": "/no_such_file", "inner/above": tmp_path}.items():
            os.symlink(target, data / name)
        pool = local("1/:", files=[data])
        shutil.rmtree(aside)
        (data / "file").unlink()
        names = ("by_absolute", "inner/by_parents", "folder/model", "inside", "inner/inside")

        def look():
            links = [name for name in names if os.path.islink(f"data/{name}")]
            return [read(f"data/{name}") for name in names], links, os.path.islink("data/folder")

        expected = ["model"] * 3 + ["file"] * 2, ["inside", "inner/inside"], False
        assert pool.submit(look).result(PATIENCE) == expected

    def test_a_file_that_is_gone_is_our_fault_and_for_good(self, local, tmp_path, home):
        python, data, go = tmp_path / "python", tmp_path / "data", tmp_path / "go"
        python.write_text(f"#!/bin/sh\nwhile ! test -e {go}; do sleep 0.1; done\n"
                          f'exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        data.write_text("data")
        pool = local(f"1/: python={python}", files=data)
        data.unlink()
        go.touch()
        until(lambda: pool.status.workers[0].state == "failed")
        assert f"No such file or directory: '{data}'" in pool.status.workers[0].cause
        with pytest.raises(executors.NoWorkersError):
            pool.submit(neg, 1)

    def test_names_that_a_tar_might_have(self, ssh, tmp_path, monkeypatch):
        """scp is given tars by the numbers of our open files."""
        monkeypatch.chdir(tmp_path)
        names = [str(n) for n in range(100)]
        for name in names:
            pathlib.Path(name).write_text(name)
        pathlib.Path("tree").mkdir()
        pathlib.Path("tree/file").write_text("x")
        pool = ssh("1/alpha", files=["tree", *names])
        found = pool.submit(lambda: [read(name) for name in [*names, "tree/file"]])
        assert found.result(PATIENCE) == [*names, "x"]

    @pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "fifo"])
    def test_what_is_no_file_is_refused(self, tmp_path, monkeypatch, path):
        monkeypatch.chdir(tmp_path)
        os.mkfifo("fifo")
        with pytest.raises(ValueError, match=f"{path}, which is neither a regular file nor a dir"):
            RemoteExecutor(["1/:"], files=path)

    @pytest.mark.parametrize("protocol", ["-q", "-O"])
    def test_names_of_any_kind(self, login, ssh, tmp_path, monkeypatch, protocol):
        """Some of which scp's older protocol would not bear; two that differ by an ending."""
        (tmp_path / "scp").write_text(f'#!/bin/sh\nexec {executors.SCP} {protocol} "$@"\n')
        (tmp_path / "scp").chmod(0o755)
        monkeypatch.setattr(executors, "SCP", str(tmp_path / "scp"))
        names = ["a b", "new\nline", "-q", "x", "x.d", "*", "ö:ü"]
        for name in names:
            (tmp_path / name).write_text(name)
        pool = ssh("1/odd", ssh_options=login().ssh_options, files=map(tmp_path.joinpath, names))
        found = pool.submit(lambda: [open(name).read() for name in names]).result(PATIENCE)
        assert found == names

    def test_a_shutdown_does_not_wait_for_copies(self, login, ssh, tmp_path):
        (tmp_path / "data").write_bytes(os.urandom(1 << 20))
        pool = ssh("1/odd", ssh_options=login().ssh_options, files=tmp_path / "data")
        freeze_scp(pool)
        started = time.monotonic()
        pool.shutdown()
        assert time.monotonic() - started < 5

    def test_the_same_content_and_many_machines_with_one_home(self, login, ssh, tmp_path, caplog):
        caplog.set_level("INFO", "executors")
        (tmp_path / "one").touch()
        (tmp_path / "two").touch()
        (tmp_path / "big").write_bytes(os.urandom(3 << 20))
        config, text = tmp_path / "config", read(login().path("config"))
        config.write_text(text.replace("Host odd", "Host odd odd1 odd2 odd3 odd4"))
        names = ["one", "two", "big"]
        pool = ssh(*(f"1/odd{n}" for n in range(1, 5)), ssh_options=["-F", str(config)],
                   files=map(tmp_path.joinpath, names))
        until(lambda: all(worker.state == "up" for worker in pool.status.workers))
        sizes = pool.submit(lambda: list(map(os.path.getsize, names))).result(PATIENCE)
        assert sizes == [0, 0, 3 << 20]
        assert len(each_copy(caplog)) == 1      # for all four

    def test_a_file_to_which_scp_does_something_more_once_it_is_complete(
            self, login, ssh, tmp_path, caplog, monkeypatch):
        """That of OpenSSH 9 sets its size once more, and so its time."""
        caplog.set_level("INFO", "executors")
        (tmp_path / "big").write_bytes(os.urandom(3 << 20))
        (tmp_path / "slow_scp").write_text(f"""#!/bin/sh
            {executors.SCP} "$@" || exit
            sleep 1
            find {login.args[1]}/home/.cache/executors -type f -size +2000k -exec touch '{{}}' +
            """)
        (tmp_path / "slow_scp").chmod(0o755)
        monkeypatch.setattr(executors, "SCP", str(tmp_path / "slow_scp"))
        for _ in range(2):
            with ssh("1/odd", ssh_options=login().ssh_options, files=tmp_path / "big") as pool:
                assert pool.submit(os.path.getsize, "big").result(PATIENCE) == 3 << 20
        assert each_copy(caplog) == [["big"]]

    def test_many_files_without_ssh_beside_busy_threads(self, local, tmp_path, home):
        """They are taken as they come, while this process makes the others."""
        is_over = threading.Event()
        def burn():
            while not is_over.is_set():
                sum(range(1000))
        for n in range(8):
            (tmp_path / f"file{n}").write_bytes(os.urandom(200_000))
            (tmp_path / f"file{n}").chmod(0o755)
        threads = [threading.Thread(target=burn) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                with local("1/:", files=[tmp_path / f"file{n}" for n in range(8)]) as pool:
                    modes = pool.submit(lambda: [os.stat(f"file{n}").st_mode & 0o100
                                                 for n in range(8)]).result(PATIENCE)
                    assert modes == [0o100] * 8
                for n in range(8):
                    (tmp_path / f"file{n}").write_bytes(os.urandom(200_000))
        finally:
            is_over.set()
            for thread in threads:
                thread.join()

    def test_an_executable_and_a_tar_that_is_gone_when_the_pool_ends(self, local, tmp_path, home,
                                                                     monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        (tmp_path / "temporary").mkdir()
        (tmp_path / "run.sh").write_text("#!/bin/sh\necho ran\n")
        (tmp_path / "run.sh").chmod(0o755)
        (tmp_path / "tree").mkdir()
        pool = local("1/:", files=[tmp_path / "run.sh", tmp_path / "tree"])
        assert pool.submit(subprocess.check_output, ["./run.sh"]).result(PATIENCE) == b"ran\n"
        shutil.rmtree(tmp_path / "temporary")       # as a cleaner might; on Linux it is empty
        pool.shutdown()

    def test_what_a_task_writes_does_not_reach_the_next_run(self, local, tmp_path, home):
        (tmp_path / "data").write_text("original")
        for _ in range(2):
            pool = local("1/:", files=tmp_path / "data")
            assert pool.submit(read, "data").result(PATIENCE) == "original"
            pool.submit(lambda: open("data", "a").write("spoilt")).result(PATIENCE)
            pool.shutdown()

    def test_what_a_task_writes_only_its_own_pool_sees(self, local, tmp_path, home):
        """Two pools at the same time; each machine of one has a copy, which its tasks share."""
        (tmp_path / "tree/sub").mkdir(parents=True)
        for name in ("data", "tree/sub/db"):
            (tmp_path / name).write_text("original")
        (tmp_path / "tree/sub").chmod(0o555)

        def spoil():
            for name in ("data", "tree/sub/db"):
                with open(name, "a") as file:
                    file.write(" and more")
            os.chmod("tree/sub", 0o755)
            open("tree/sub/new", "w").close()

        def look():
            return read("data"), read("tree/sub/db"), os.listdir("tree/sub"), os.getcwd()

        files = [tmp_path / "data", tmp_path / "tree"]
        pools = [local("2/:", files=files) for _ in range(2)]
        folders = [pool.submit(look).result(PATIENCE)[-1] for pool in pools]
        pools[0].submit(spoil).result(PATIENCE)
        spoilt = ("original and more",) * 2
        assert pools[0].submit(look).result(PATIENCE)[:2] == spoilt
        pools.append(local("1/:", files=files))
        for pool in pools[1:]:
            assert pool.submit(look).result(PATIENCE)[:3] == ("original", "original", ["db"])
        pools[0].shutdown()
        pools[1].shutdown()
        until(lambda: not any(map(os.path.exists, folders)))

    def test_another_account_that_can_write_to_the_cache(self, local, tmp_path, home):
        """It could put its own code there: nothing of it is used, and what to do is said."""
        (tmp_path / "data").write_text("data")
        (home / ".cache/executors").mkdir(parents=True)
        (home / ".cache/executors").chmod(0o777)
        pool = local("1/:", files=tmp_path / "data")
        until(lambda: pool.status.workers[0].state == "failed")
        assert f"run `chmod go-w {home}/.cache/executors`" in pool.status.workers[0].cause

    def test_no_home_and_the_cache_of_the_environment(self, local, tmp_path, home, monkeypatch):
        (tmp_path / "data").write_text("data")
        monkeypatch.setenv("HOME", "/proc/nonexistent")
        pool = local("1/:", files=tmp_path / "data")
        until(lambda: pool.status.workers[0].state == "failed")
        assert "'/proc/nonexistent'" in pool.status.workers[0].cause
        assert "set XDG_CACHE_HOME there" in pool.status.workers[0].cause
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        pool = local("1/:", files=tmp_path / "data")
        assert pool.submit(read, "data").result(PATIENCE) == "data"
        assert os.listdir(tmp_path / "xdg") == ["executors"]

    def test_the_cache_of_the_environment_there(self, login, ssh, tmp_path):
        (tmp_path / "data").write_text("data")
        sshd = login("bash", {".bashrc": f"export XDG_CACHE_HOME={tmp_path}/xdg"})
        pool = ssh("1/odd", ssh_options=sshd.ssh_options, files=tmp_path / "data")
        assert pool.submit(read, "data").result(PATIENCE) == "data"
        assert os.listdir(tmp_path / "xdg") == ["executors"]
        assert os.listdir(tmp_path / "home") == [".bashrc"]

    @pytest.mark.parametrize("mounts", [
        'rm -r "$1/tmp"', 'mount -t tmpfs -o ro tmpfs "$1/tmp"', 'chmod 777 "$1/tmp"',
        'mount -t tmpfs -o nr_inodes=1 tmpfs "$1/tmp"', 'mount -t tmpfs -o size=1m tmpfs "$1/tmp"'])
    def test_a_temporary_directory_that_is_none(self, login, ssh, tmp_path, mounts):
        """It is missing, read-only or open to all, or has no inode or no room: the next one is
        used. Nothing is left there, either."""
        size = 2 << 20
        (tmp_path / "data").write_bytes(bytes(size))
        (tmp_path / "home/tmp").mkdir(parents=True)
        sshd = login("bash", {".bashrc": "export TMPDIR=~/tmp"}, mounts)

        def look():
            return os.environ["TMPDIR"], os.path.getsize("data"), os.path.realpath("data")

        pool = ssh("1/odd", ssh_options=sshd.ssh_options, files=tmp_path / "data")
        folder, found, path = pool.submit(look).result(PATIENCE)
        assert folder == f"{tmp_path}/home/tmp" and found == size
        scratch, _, _ = path.partition("/.files/")
        assert os.path.dirname(scratch) == "/tmp"
        pool.shutdown()
        until(lambda: not os.path.exists(scratch))

    def test_a_read_only_cache_that_has_it(self, login, ssh, tmp_path):
        (tmp_path / "data").write_text("data")
        for mounts in (":", 'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"'):
            sshd = login(mounts=mounts)
            pool = ssh("1/odd", ssh_options=sshd.ssh_options, files=tmp_path / "data")
            assert pool.submit(read, "data").result(PATIENCE) == "data"
            pool.shutdown()
        assert sshd.log().count("Accepted ") == 1       # nothing was copied

    def test_packages_by_files_have_their_data(self, local, tmp_path, monkeypatch):
        (tmp_path / "real/sub").mkdir(parents=True)
        (tmp_path / "real/__init__.py").write_text(textwrap.dedent("""
            import importlib.resources
            def f():
                return (importlib.resources.files(__name__) / 'sub/data').read_text()
        """))
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
        shutil.rmtree(tmp_path / "home/.cache")
        os.kill(Machine.of(pool, "odd").ssh, signal.SIGKILL)
        words = "has changed here since the pool was made"
        until(lambda: words in pool.status.workers[0].cause)

    @pytest.mark.parametrize("subsystem, words", [
        ("/bin/sleep 30", "scp of data stalled: nothing has arrived for 2 s"),
        ("/bin/echo hello, dear user", "which breaks SFTP"),
        ("/no/such/server", "offers no SFTP")])
    def test_an_sftp_that_does_not_work(self, ssh, tmp_path, monkeypatch, subsystem, words):
        (tmp_path / "data").touch()
        monkeypatch.setattr(wire, "STALL_SECONDS", 2.0)
        monkeypatch.setattr(executors, "SCP_RETRY_SECONDS", (0.1, 0.0))
        with Sshd(["late"], [f"Subsystem sftp {subsystem}"]) as sshd:
            pool = ssh("1/late", ssh_options=sshd.ssh_options, files=[tmp_path / "data"])
            until(lambda: words in pool.status.workers[0].cause, words)
            pool.shutdown()

    def test_a_copy_that_is_cut_off_is_made_again(self, ssh, tmp_path, sshds, monkeypatch):
        """Only what scp says of the disk there is for good."""
        (tmp_path / "data").write_bytes(os.urandom(600_000))
        monkeypatch.setattr(executors, "SCP_RETRY_SECONDS", (0.1, 0.1, 0.0))
        options = slow_line(sshds[0], 300_000)
        pool = ssh("1/alpha", ssh_options=options, files=[tmp_path / "data"])
        login, = pool._supervisor.logins.values()
        until(lambda: login.processes[1:], "an scp")
        scp = login.processes[1].pid

        def lines():
            return [pid for pid in descendants(scp) if "line.py" in command_line(pid)]

        until(lines)
        os.kill(lines()[0], signal.SIGKILL)
        assert pool.submit(os.path.getsize, "data").result(PATIENCE) == 600_000

    def test_a_copy_may_take_as_long_as_it_moves(self, ssh, sshds, tmp_path, monkeypatch):
        """A machine that it moves to is one that is reached: nothing is given up meanwhile."""
        monkeypatch.setattr(wire, "STALL_SECONDS", 4.0)
        monkeypatch.setattr(executors, "GIVE_UP_SECONDS", (5.0, 5.0))
        (tmp_path / "data").write_bytes(os.urandom(2_000_000))
        options = slow_line(sshds[0], 300_000)
        pool = ssh("1/alpha", ssh_options=options, files=[tmp_path / "data"])
        assert pool.submit(os.path.getsize, "data").result(PATIENCE) == 2_000_000
        assert not pool.status.workers[0].lost

    def test_no_scp(self, ssh, tmp_path, monkeypatch):
        (tmp_path / "data").touch()
        monkeypatch.setattr(executors, "SCP", "/no/such/scp")
        pool = ssh("1/alpha", files=[tmp_path / "data"])
        until(lambda: pool.status.workers[0].state == "failed")
        assert "install it on this machine" in pool.status.workers[0].cause

    def test_what_another_pool_copies_is_waited_for(self, local, tmp_path, home):
        """As long as that moves, which its lock's file tells; it is shown, and not the task's time.
        """
        (tmp_path / "data").write_text("data")
        cache = home / ".cache/executors"
        cache.mkdir(parents=True)
        path = cache / f"incoming-{wire.digest_file(tmp_path / 'data')}.lock"
        with open(path, "w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            pool = local("1/:", files=[tmp_path / "data"])
            until(lambda: "copying data (another process there does)" in str(pool.status))
        assert pool.submit(read, "data").result(PATIENCE) == "data"
        assert "copying" not in str(pool.status)

    def test_a_copy_by_another_pool_that_comes_to_nothing(self, tmp_path, monkeypatch):
        """Who waits for it makes its own, one after the other; who is told to wait longer does."""
        monkeypatch.setattr(wire, "STALL_SECONDS", 0.3)
        path, waits = str(tmp_path / "incoming-key.lock"), []
        with open(path, "w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)

            def on_wait():
                waits.append(time.monotonic())
                if len(waits) < 4:
                    os.utime(path)
            with wire._lock_key(str(tmp_path), "key", on_wait) as lock:
                assert len(waits) == 4
                assert os.path.samestat(os.stat(path), os.fstat(lock.fileno()))

    def test_a_cache_that_hangs(self, local, tmp_path, home, monkeypatch):
        """Between hello and work there is a limit too; the machine's place is free again."""
        (tmp_path / "data").write_text("data")
        monkeypatch.setattr(wire, "STALL_SECONDS", 1.0)
        entry = home / ".cache/executors" / wire.digest_file(tmp_path / "data")
        entry.mkdir(parents=True)
        os.mkfifo(entry / "seal")
        pool = local("1/:", files=[tmp_path / "data"])
        until(lambda: "storing files did not go on for 1 s" in pool.status.workers[0].cause)

    def test_what_a_pool_uses_is_not_pruned_whatever_the_clock_says(self, local, tmp_path, home):
        for name in "ab":
            (tmp_path / name).write_text(name)
        pool = local("1/:", files=tmp_path / "a")
        assert pool.submit(read, "a").result(PATIENCE) == "a"
        cache = home / ".cache/executors"
        for entry in cache.iterdir():
            os.utime(entry, (1, 1))     # as if the clock had been put forward
        other = local("1/:", files=tmp_path / "b")
        assert other.submit(read, "b").result(PATIENCE) == "b"
        assert pool.submit(read, "a").result(PATIENCE) == "a" and len([*cache.iterdir()]) == 2

    def test_a_relative_temporary_directory(self, local, tmp_path, home, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TMPDIR", "temporary")
        (tmp_path / "temporary").mkdir()
        (tmp_path / "a").write_text("a")
        pool = local("1/:", files="a")
        assert pool.submit(read, "a").result(PATIENCE) == "a"
        assert os.listdir("temporary")
        pool.shutdown()
        until(lambda: not os.listdir("temporary"))


# ───────────────────────────────────── what follows: packages ─────────────────────────────────────


def make_wheel(folder, name, version, files, tag="py3-none-any", requires=()):
    """Make a wheel, as PEP 427 has it; return its path."""
    info = f"{name}-{version}.dist-info"
    others = "".join(f"Requires-Dist: {one}\n" for one in requires)
    files = {**files, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\n"
                                          f"Version: {version}\n{others}",
             f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"}
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(file, text)
    return path


def install(target, *wheels):
    run([sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile",
         "--target", target, *wheels], check=True)
    return target


class Bare(NamedTuple):
    """A machine whose Python has nothing but itself, and what is installed here in its stead."""

    sshd: Sshd
    python: str
    site: str           # of the controller
    own: str            # the machine's site-packages

    @property
    def cache(self):
        return os.path.join(self.sshd.folder, ".cache/executors")

    def incoming(self):
        """Return what is there of copies, but for the locks of those that were cut off."""
        return [name for name in os.listdir(self.cache) if re.match("incoming.*(?<!lock)$", name)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Distributions of every kind, in a site-packages of their own."""
    folder = tmp_path_factory.mktemp("wheels")
    script = "def main():\n    return 'from the entry point'\n"
    wheels = [
        make_wheel(folder, "Pure.Thing", "1.5", {
            "purething.py": "import helper\nVERSION = 1.5\n",
            "Pure.Thing-1.5.dist-info/top_level.txt": "purething\n"}, requires=["helper"]),
        make_wheel(folder, "helper", "3", {"helper/__init__.py": "from .deep import VALUE\n",
                                           "helper/deep.py": "VALUE = 'helped'\n"}),
        make_wheel(folder, "space_one", "1", {"space/inner/one.py": "NAME = 'one'\n"}),
        make_wheel(folder, "space_two", "1", {
            "space/inner/two/__init__.py": "from space.inner.one import NAME\n",
            "space/other.py": "NAME = 'other'\n",
            "space/further.py": "NAME = 'further'\n"}),
        make_wheel(folder, "duo", "1", {"duo/__init__.py": "", "duo/main.py": "PART = 'main'\n"}),
        make_wheel(folder, "duo_extra", "1", {"duo/extra.py": "from .main import PART\n"}),
        make_wheel(folder, "withdata", "1", {"withdata/__init__.py": "", "withdata/text": "data"}),
        make_wheel(folder, "withentry", "1", {
            "withentry.py": script, "withentry-1.dist-info/entry_points.txt":
                "[things]\nthing = withentry:main\n"}),
        make_wheel(folder, "ours", "2.1", {"ours.py": "VERSION = '2.1'\n"}),
        make_wheel(folder, "labelled", "2.1", {"labelled.py": "WHOSE = 'the controller'\n"}),
        make_wheel(folder, "needy", "1", {"needy.py": ""}, requires=[
            "pure_thing>=1", "ours[fast] (==2.1)", "binary", "labelled; python_version > '3'",
            "condas", "absent; python_version < '3'", "lost ; extra == 'more'"]),
        make_wheel(folder, "lost", "1", {"lost.py": ""}),
        make_wheel(folder, "condas", "7", {"condas.py": ""}),
        make_wheel(folder, "binary", "1", {"binary.py": "", "binary.so": "no library"},
                   tag="cp310-abi3-manylinux_2_99_x86_64"),
    ]
    site = install(str(tmp_path_factory.mktemp("controller") / "site-packages"), *wheels)
    os.unlink(f"{site}/lost-1.dist-info/RECORD")
    os.unlink(f"{site}/space/other.py")         # an image that was made slim
    os.mkdir(f"{site}/left_by_pip-1.dist-info")
    with open(f"{site}/condas-7.dist-info/INSTALLER", "w") as file:
        file.write("conda\n")
    theirs = [make_wheel(folder, "ours", "2.0", {"ours.py": "VERSION = '2.0'\n"}),
              make_wheel(folder, "labelled", "2.1+cu121", {"labelled.py": "WHOSE = 'mine'\n"}),
              make_wheel(folder, "condas", "6", {"condas.py": "VERSION = 6\n"}),
              make_wheel(folder, "space_one", "0.9", {"space/inner/one.py": "NAME = 'old'\n"})]
    return site, theirs


@pytest.fixture
def bare(installed, tmp_path, monkeypatch):
    site, theirs = installed
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    own = str(next((tmp_path / "venv/lib").glob("python*/site-packages")))
    install(own, *theirs)
    with Sshd(["bare"]) as sshd:
        yield Bare(sshd, str(tmp_path / "venv/bin/python"), site, own)


@pytest.fixture
def on_bare(bare):
    """Make pools of the bare machine: `on_bare(slots, ...)`."""
    with maker(bare.sshd.ssh_options) as make:
        yield lambda slots=2, **options: make(f"{slots}/bare python={bare.python}", **options)


def each_copy(caplog):
    """Return what went together, for each copy that was logged."""
    return [record.args[2].removeprefix("gets ").split(" (")[0].split(", ")
            for record in caplog.records if record.levelname == "INFO"
            and len(record.args or ()) > 2 and str(record.args[2]).startswith("gets ")]


def copies(caplog):
    return sorted(itertools.chain(*each_copy(caplog)))


class TestPackages:
    def test_binaries(self, bare, on_bare, caplog):
        """NumPy's libraries lie beside it; SciPy needs it. Once, for the next pool, too."""
        def solve():
            import scipy.linalg
            return scipy.__file__, scipy.linalg.solve([[2.0, 0], [0, 4]], [1.0, 1]).tolist()

        caplog.set_level("INFO", "executors")
        for _ in range(2):
            with on_bare() as pool:
                where, solution = pool.submit(solve).result(60)
                assert solution == [0.5, 0.25] and where.startswith(bare.cache)
                array = pool.submit(numpy.arange, 3).result(PATIENCE)
                assert array.tolist() == [0, 1, 2]
        copied = copies(caplog)     # they look for others, too, which may be here
        scipy = f"scipy {importlib.metadata.version('scipy')}"
        assert len(copied) == len({*copied})
        assert [scipy, f"numpy {numpy.__version__}"] in each_copy(caplog)
        assert not bare.incoming()

    def test_kinds(self, bare, on_bare, caplog):
        def use():
            import importlib.metadata as metadata
            import importlib.resources
            import purething
            import withdata
            import withentry
            from duo import extra
            from space import further
            from space.inner import two
            entry, = metadata.entry_points(group="things")
            return (purething.VERSION, purething.helper.VALUE, two.NAME,
                    further.NAME, extra.PART,
                    (importlib.resources.files(withdata) / "text").read_text(), entry.load()(),
                    metadata.version("pure-thing"), withentry.__file__)
        caplog.set_level("INFO", "executors")
        *found, where = on_bare().submit(use).result(PATIENCE)
        assert found == [1.5, "helped", "one", "further", "main", "data", "from the entry point",
                         "1.5"]
        assert where.startswith(bare.cache)
        assert copies(caplog) == ["Pure.Thing 1.5", "duo 1", "helper 3", "space_one 1",
                                  "space_two 1", "withdata 1", "withentry 1"]

    def test_what_pools_share_cannot_be_written(self, on_bare):
        """Except for bytecode, which each first import adds."""
        def look():
            import helper.deep
            modes = [os.stat(module.__file__).st_mode for module in (helper, helper.deep)]
            return [mode & 0o222 for mode in modes], os.path.exists(helper.deep.__cached__)
        assert on_bare().submit(look).result(PATIENCE) == ([0, 0], True)

    def test_versions(self, on_bare, caplog):
        """The controller's counts; a local label makes no difference, and needs no copy."""
        def use():
            import labelled
            import ours
            return ours.VERSION, labelled.WHOSE
        caplog.set_level("INFO", "executors")
        assert on_bare().submit(use).result(PATIENCE) == ("2.1", "mine")
        assert copies(caplog) == ["ours 2.1"]

    def test_what_it_requires_comes_with_it(self, bare, on_bare, caplog):
        """As far as it is installed here, may follow, and is not there; and what that requires."""
        def use():
            import needy
            import helper
            import binary
            return needy.__name__, helper.deep.VALUE
        caplog.set_level("INFO", "executors")
        for _ in range(2):
            with on_bare(1) as pool:
                error = pool.submit(use).exception(PATIENCE)
                assert isinstance(error, ModuleNotFoundError) and error.name == "binary"
                places = pool.submit(lambda: [sys.modules[name].__file__
                                              for name in ("needy", "helper")]).result(PATIENCE)
                assert all(place.startswith(bare.cache) for place in places)
        assert each_copy(caplog) == [["needy 1", "Pure.Thing 1.5", "ours 2.1", "helper 3"]]

    def test_it_is_in_a_namespace_that_was_imported_before(self, on_bare, monkeypatch, tmp_path,
                                                           caplog):
        """That has its path already. Of an editable install, nothing comes: it is elsewhere."""
        project = tmp_path / "project/company"
        project.mkdir(parents=True)
        (project / "app.py").write_text("")
        wheels = [make_wheel(tmp_path, "company_core", "1", {"company/core.py": "WHO = 'core'\n"}),
                  make_wheel(tmp_path, "edited", "1", {"edited.py": ""}),
                  make_wheel(tmp_path, "outer", "1", {"outer.py": "from company import core\n"},
                             requires=["company-core", "edited"])]
        site = install(str(tmp_path / "site-packages"), *wheels)
        pathlib.Path(site, "edited-1.dist-info/direct_url.json").write_text(
            '{"dir_info": {"editable": true}, "url": "file:///"}')
        monkeypatch.syspath_prepend(site)
        monkeypatch.syspath_prepend(project.parent)
        def use():
            import company.app
            import outer
            return company.app.__name__, outer.core.WHO
        caplog.set_level("INFO", "executors")
        with on_bare(1) as pool:
            assert pool.submit(use).result(PATIENCE) == ("company.app", "core")
        assert each_copy(caplog) == [["outer 1", "company_core 1"]]

    def test_a_copy_is_shown_and_is_not_its_tasks_time(self, on_bare):
        pool = on_bare(1)
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        future = pool.submit(lambda: importlib.import_module("numpy").__version__)
        scp = freeze_scp(pool)
        assert re.search(r"copying numpy \(\d+ of [1-9]\d+ MB\)", str(pool.status))
        time.sleep(3)
        os.killpg(scp, signal.SIGCONT)
        until(lambda: "copying numpy (unpacking)" in str(pool.status) or future.done())
        assert future.result(PATIENCE) == numpy.__version__ and "copying" not in str(pool.status)
        assert pool.histogram.percentile(100) < 3

    def test_what_was_edited_in_place_is_copied_again(self, on_bare, tmp_path, monkeypatch):
        site = install(str(tmp_path / "site-packages"), make_wheel(
            tmp_path, "edited", "1", {"edited/__init__.py": "from .deep import VALUE\n",
                                      "edited/deep.py": "VALUE = 1\n"}))
        monkeypatch.syspath_prepend(site)
        deep = pathlib.Path(site, "edited/deep.py")
        found = []
        for text in "VALUE = 1\n", "VALUE = 2\n", "VALUE = 1\n":      # of the same size
            deep.write_text(text)
            os.utime(deep, (0, 0))
            with on_bare(1) as pool:
                value = pool.submit(lambda: importlib.import_module("edited").VALUE)
                found.append(value.result(PATIENCE))
        assert found == [1, 2, 1]

    def test_child_processes_find_what_followed(self, bare, on_bare):
        """As does whatever they start: it stands in PYTHONPATH."""
        def use(n_jobs):
            import helper
            code = "import helper, numpy; print(helper.VALUE, numpy.zeros(2).sum())"
            numpy.zeros(1)
            said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            found = joblib.Parallel(n_jobs)(joblib.delayed(numpy.square)(n) for n in range(3))
            return said.stdout + said.stderr, [int(n) for n in found], helper.VALUE
        found = on_bare(1).submit(use, 2).result(60)
        assert found == ("helped 0.0\n", [0, 1, 4], "helped")

    def test_metadata_before_any_import(self, bare, on_bare, tmp_path, monkeypatch):
        """Of what may follow, and of the project itself, if it is an editable install."""
        def use(name):
            import importlib.metadata as metadata
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                return None
        info = tmp_path / "editable/project_e-0.7.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: project-e\nVersion: 0.7\n")
        (info / "direct_url.json").write_text('{"dir_info": {"editable": true}, "url": "file:///"}')
        monkeypatch.syspath_prepend(str(info.parent))
        names = "Pure.Thing", "pure_thing", "ours", "project-e", "labelled", "condas", "nothing"
        pool = on_bare()
        assert list(pool.map(use, names)) == [
            "1.5", "1.5", "2.1", "0.7", "2.1+cu121", "6", None]
        assert not os.path.exists(bare.cache)       # nothing was copied for that
        pool = on_bare(packages=False, modules=False)
        assert list(pool.map(use, names)) == [None, None, "2.0", None, "2.1+cu121", "6", None]

    def test_looking_for_a_package_copies_nothing(self, bare, on_bare):
        def look():
            import importlib.util
            spec = importlib.util.find_spec("duo")
            there = os.path.exists(os.path.expanduser("~/.cache/executors"))
            missing = importlib.util.find_spec("no_such_thing")
            import duo.main
            return bool(spec), there, missing, duo.main.PART, duo.__file__, duo.__spec__.origin
        *found, file, origin = on_bare(1).submit(look).result(PATIENCE)
        assert found == [True, False, None, "main"]
        assert file == origin and file.startswith(bare.cache)

    @pytest.mark.usefixtures("namespaces")
    @pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="no wheel of numba")
    def test_numba_in_a_project_module(self, bare, on_bare, tmp_path, monkeypatch):
        """It may ask for its cache where there is no file of the source: it compiles, then."""
        (tmp_path / "project").mkdir()
        (tmp_path / "project/fast.py").write_text(textwrap.dedent("""
            import numba
            @numba.njit(cache=True)
            def add(a, b):
                return a + b
            """))
        monkeypatch.syspath_prepend(str(tmp_path / "project"))
        import fast
        with Sshd(["hidden"], prefix=["unshare", "-m", "sh", "-c", textwrap.dedent(f"""
                mount -t tmpfs tmpfs {tmp_path}/project && exec "$@\""""), "sh"]) as hidden:
            with maker(hidden.ssh_options) as make:
                pool = make(f"1/hidden python={sys.executable}")
                assert pool.submit(os.path.exists, fast.__file__).result(PATIENCE) is False
                assert pool.submit(fast.add, 1, 2).result(120) == 3

    def test_a_storm(self, bare, caplog, tmp_path):
        """Many slots, and threads in each, of two machines that share a home: it is copied once."""
        def use(_):
            with cf.ThreadPoolExecutor(3) as threads:
                names = "numpy", "purething", "space.inner.two"
                modules = threads.map(importlib.import_module, names)
                return [module.__name__ for module in modules]
        caplog.set_level("INFO", "executors")
        config = tmp_path / "config"
        config.write_text(read(bare.sshd.path("config")).replace("Host bare", "Host bare1 bare2"))
        with maker(["-F", str(config)]) as make:
            pool = make(*(f"8/{name} python={bare.python}" for name in ("bare1", "bare2")))
            found = list(pool.map(use, range(64)))
        assert found == [["numpy", "purething", "space.inner.two"]] * 64
        assert copies(caplog) == ["Pure.Thing 1.5", "helper 3", f"numpy {numpy.__version__}",
                                  "space_one 1", "space_two 1"]

    def test_a_full_cache_gets_one_copy_at_a_time_and_keeps_nothing(self, bare, login, caplog):
        """Of all slots of a machine, one tries; what came is removed at once."""
        caplog.set_level("INFO", "executors")
        sshd = login(mounts='mount -t tmpfs -o size=4m tmpfs "$1"')

        def use(_):
            try:
                import numpy        # some 40 MB
            except ModuleNotFoundError as error:
                path = os.path.expanduser("~/.cache/executors")
                time.sleep(0.1)     # so that other slots get a task, too
                return os.getpid(), [name for name in os.listdir(path) if "lock" not in name]

        with maker(sshd.ssh_options) as make:
            pool = make(f"4/odd python={bare.python}")
            found = list(pool.map(use, range(8), chunksize=1))
        assert len({pid for pid, _ in found}) == 4 and not any(left for _, left in found)
        assert len(copies(caplog)) == 1

    def test_a_machine_that_comes_later(self, bare, on_bare):
        def use():
            import purething
            return purething.VERSION, os.environ["EXECUTORS_MACHINE"]
        with Sshd(["later"]) as later:
            with open(bare.sshd.path("config"), "a") as both:
                both.write("\n" + read(later.path("config")))
            pool = on_bare()
            assert pool.submit(use).result(PATIENCE) == (1.5, "bare")
            pool.add_worker(f"1/later python={bare.python}")
            pool.remove_worker(f"2/bare python={bare.python}")
            assert pool.submit(use).result(PATIENCE) == (1.5, "later")

    def test_a_task_that_is_a_controller(self, on_bare):
        def use():
            import executors
            with executors.RemoteExecutor(["1/:"], show_status=False) as pool:
                return pool.submit(get).result(PATIENCE)

        def get():
            import purething
            return purething.VERSION, os.environ["EXECUTORS_MACHINE"]
        assert on_bare().submit(use).result(PATIENCE) == (1.5, ":")

    @pytest.mark.parametrize("module, packages, words", [
        ("lost", True, "lost 1 does not follow (its installer here has left no list of its files), "
                       "and it has none"),
        ("purething", True, "are not sent unasked: name all that is to follow, "
                            "packages=['Pure.Thing', ...]"),
        ("binary", ["binary"], "its binaries need glibc 2.99, and no other could be downloaded: "
                               "ERROR: No matching distribution found for binary==1"),
        ("purething", False, "install it there"),
        ("purething", ["helper"], "install it there")])
    def test_what_does_not_follow(self, bare, on_bare, monkeypatch, module, packages, words):
        monkeypatch.setattr(executors, "MAX_UNASKED_BYTES", 40)
        pool = on_bare(packages=packages)
        error = pool.submit(importlib.import_module, module).exception(PATIENCE)
        assert type(error) is ModuleNotFoundError
        said = " ".join([str(error), *getattr(error, "__notes__", ())])
        assert words in said and f"on bare, with {bare.python}: " in said
        version = {"lost": "lost==1", "binary": "binary==1"}.get(module)
        assert not version or f"`{bare.python} -m pip install {version}` there mends it" in said

    def test_a_wheel_that_fits_is_downloaded(self, bare, on_bare, tmp_path, monkeypatch, caplog):
        wheel = make_wheel(tmp_path, "binary", "1", {
            "binary.py": "import beside\nWHOSE = beside.WHOSE\n", "binary-1.data/scripts/x": "",
            "binary-1.data/platlib/beside.py": "WHOSE = 'the index'\n"})
        tag = f"cp310-abi3-manylinux_2_17_{os.uname().machine}"
        wheel.rename(tmp_path / f"binary-1-{tag}.whl")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        caplog.set_level("INFO", "executors")
        for _ in range(2):
            with on_bare() as pool:
                whose = pool.submit(lambda: importlib.import_module("binary").WHOSE)
                assert whose.result(PATIENCE) == "the index"
        assert copies(caplog) == [f"binary 1 for {os.uname().machine}"]

    def test_a_download_ends_with_the_pool(self, on_bare, tmp_path, monkeypatch):
        began = tmp_path / "began"
        pip = tmp_path / "site/pip"
        pip.mkdir(parents=True)
        (pip / "__init__.py").touch()
        (pip / "__main__.py").write_text(
            f"import time\nopen({str(began)!r}, 'w')\ntime.sleep(100)\n")
        monkeypatch.setenv("PYTHONPATH", str(pip.parent))
        pool = on_bare()
        future = pool.submit(importlib.import_module, "binary")
        until(began.exists)
        future.cancel()
        pool.shutdown(cancel_futures=True)

    @pytest.mark.usefixtures("namespaces")
    def test_no_room_here_for_a_while(self, bare, tmp_path):
        """It is said that it is here; the next task tries again."""
        room = tmp_path / "room"
        room.mkdir()
        script = f"""
            import executors, importlib, os, sys
            def use():
                import helper
                return helper.VALUE
            with executors.RemoteExecutor(["1/bare python={bare.python}"],
                                          ssh_options=sys.argv[1:]) as pool:
                print(pool.submit(use).exception())
                os.system("mount -o remount,size=500m {room}")
                print(pool.submit(use).result())
            """
        done = run(["unshare", "-m", "sh", "-c",
                    f'mount -t tmpfs -o size=4k,nr_inodes=9 none {room} && TMPDIR={room} exec "$@"',
                    "sh", sys.executable, "-c", textwrap.dedent(script),
                    *bare.sshd.ssh_options], env={"PYTHONPATH": f"{HERE}:{bare.site}"})
        assert "it cannot be sent from here, where the pool is: [Errno 28]" in done.stderr, done
        assert done.stdout.startswith("No module named 'helper'")
        assert done.stdout.endswith("\nhelped\n")

    def test_another_version_that_cannot_be_had(self, on_bare, caplog):
        """What the machine has must do; that it is another is told."""
        assert on_bare().submit(lambda: importlib.import_module("condas").VERSION).result(
            PATIENCE) == 6
        assert "condas does not follow: conda has installed it here" in caplog.text
        assert "it has 6" in caplog.text

    @pytest.mark.parametrize("how", ["submit", "map"])
    def test_a_machine_without_a_module_gets_no_tasks_that_need_it(self, bare, how, tmp_path):
        """It would fail quickly, and so be given nearly all. It is told once."""
        config = tmp_path / "config"
        config.write_text(read(bare.sshd.path("config")).replace("Host bare", "Host bare full"))

        def work(n):
            import ours, purething      # the machine has the first alone
            return purething.VERSION, os.environ["EXECUTORS_MACHINE"]
        with open(os.path.join(tmp_path, "full"), "w") as file:
            file.write(f"#!/bin/sh\nPYTHONPATH={bare.site} exec {bare.python} \"$@\"\n")
        os.chmod(file.name, 0o755)
        with maker(["-F", str(config)]) as make:
            pool = make(f"2/bare python={bare.python}", f"1/full python={file.name}",
                        packages=False)
            if how == "map":
                found = list(pool.map(work, range(300)))
            else:
                found = [one.result(PATIENCE) for one in [pool.submit(work, n) for n in range(100)]]
            assert {*found} == {(1.5, "full")}
            assert isinstance(pool.submit(neg, 1).result(PATIENCE), int)
            pool.remove_worker(f"1/full python={file.name}")
            error = pool.submit(work, 1).exception(PATIENCE)        # now it is nobody's fault
            said = " ".join([str(error), *getattr(error, "__notes__", ())])
            assert "No module named 'purething'" in said and "on bare, with" in said

    def test_names(self, on_bare, monkeypatch):
        monkeypatch.setattr(executors, "MAX_UNASKED_BYTES", 40)
        pool = on_bare(packages=["pure_thing", "HELPER"])
        assert pool.submit(lambda: importlib.import_module("purething").VERSION).result(
            PATIENCE) == 1.5
        with pytest.raises(ValueError, match="packages is 'numpy'"):
            on_bare(packages="numpy")

    def test_a_long_copy_holds_nothing_up(self, bare, on_bare, tmp_path, monkeypatch):
        """Neither pings, other imports and results, nor is its time the task's."""
        pool = on_bare(2, heartbeat_seconds=0.1, bundle_timeout=7.0)      # the lease: 1.2 seconds
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        future = pool.submit(lambda: importlib.import_module("numpy").__version__)
        scp = freeze_scp(pool)
        assert "numpy" in str(pool.status) and "copying" in str(pool.status)
        end = time.monotonic() + 8
        while time.monotonic() < end:
            assert pool.submit(lambda: importlib.import_module("purething").VERSION).result(
                PATIENCE) == 1.5
        os.killpg(scp, signal.SIGCONT)
        assert future.result(PATIENCE) == numpy.__version__
        assert pool.status.workers[0].lost == 0 and pool.status.retried == 0

    def test_waiting_for_another_pools_copy_is_not_the_tasks_time(self, on_bare):
        def use():
            return importlib.import_module("purething").VERSION

        first = on_bare(1)
        copied = first.submit(use)
        scp = freeze_scp(first)
        second = on_bare(1, bundle_timeout=1.0)
        waits = second.submit(use)
        # Which of the two it waits for first is told by their keys.
        waiting = re.compile(r"copying (Pure\.Thing|helper) \(another process there does\)")
        until(lambda: waiting.search(str(second.status)))
        time.sleep(1.5)
        assert not waits.done()
        os.killpg(scp, signal.SIGCONT)
        assert copied.result(PATIENCE) == waits.result(PATIENCE) == 1.5

    @pytest.mark.parametrize("victim", ["task", "scp", "link", "controller"])
    def test_a_copy_that_is_cut_off(self, bare, on_bare, victim):
        """Nothing half is used, nor does it stay; whoever comes next is served."""
        def use():
            import purething
            return purething.VERSION
        if victim == "controller":
            controller = subprocess.Popen([sys.executable, "-c", textwrap.dedent(f"""
                import importlib, os, signal, sys, time
                sys.path.insert(0, {bare.site!r})
                import executors
                pool = executors.RemoteExecutor(["1/bare python={bare.python}"], show_status=False,
                                                ssh_options={bare.sshd.ssh_options})
                future = pool.submit(importlib.import_module, "numpy")
                logins = pool._supervisor.logins
                while not any(login.processes[1:] for login in [*logins.values()]):
                    time.sleep(0.001)
                os.kill(os.getpid(), signal.SIGKILL)
                """)], cwd=HERE)
            controller.wait(PATIENCE)
            until(lambda: not [pid for pid in descendants(bare.sshd.process.pid)])
        else:
            pool = on_bare(1)
            future = pool.submit(use)
            scp = freeze_scp(pool)
            if victim == "task":
                assert future.cancel()
            os.killpg(scp, signal.SIGKILL if victim == "scp" else signal.SIGCONT)
            if victim == "link":
                os.kill(Machine.of(pool, "bare").ssh, signal.SIGKILL)
                assert future.result(PATIENCE) == 1.5
            pool.shutdown()
        pool = on_bare(1)
        assert pool.submit(use).result(PATIENCE) == 1.5
        pool.shutdown()
        until(lambda: not bare.incoming())

    @pytest.mark.parametrize("mounts, words", [
        ('mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"', "Read-only file system"),
        ('mount -t tmpfs -o size=64k tmpfs "$1"', "check that there is room")])
    def test_a_home_that_takes_nothing(self, bare, login, mounts, words):
        sshd = login(mounts=mounts)
        with maker(sshd.ssh_options) as make:
            pool = make(f"1/odd python={bare.python}")
            assert pool.submit(neg, 1).result(PATIENCE) == -1
            error = pool.submit(importlib.import_module, "numpy").exception(PATIENCE)
        said = " ".join([str(error), *getattr(error, "__notes__", ())])
        assert words in said
        assert f"-m pip install numpy=={numpy.__version__}` there mends it" in said

    def test_programs_in_a_wheel_can_be_executed(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "wheel", "w") as wheel:
            for name, mode in ("tool/run", 0o755), ("tool/data", 0o644):
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                wheel.writestr(info, "text")
        found = executors._unpack_wheel(str(tmp_path / "wheel"), str(tmp_path / "content"))
        assert found == [(str(tmp_path / "content/tool"), "tool")]
        assert os.access(tmp_path / "content/tool/run", os.X_OK)
        assert not (tmp_path / "content/tool/data").stat().st_mode & 0o111

    def test_which_wheels_are_looked_for(self):
        assert executors._platform_tags((".so", "aarch64", "glibc 2.19")) == [
            "manylinux_2_19_aarch64", "manylinux_2_18_aarch64", "manylinux_2_17_aarch64",
            *(f"manylinux_2_{minor}_aarch64" for minor in range(16, 4, -1)),
            "manylinux2014_aarch64", "manylinux2010_aarch64", "manylinux1_aarch64"]
        assert executors._platform_tags((".so", "arm64", "Darwin 23.1.0")) == ["macosx_14_0_arm64"]
        assert executors._platform_tags((".so", "x86_64", "Linux 6.1")) == []

    @pytest.mark.parametrize("tags, facts, problem", [
        ([], ("x", "y", "z"), ""),
        ([["manylinux_2_17_x86_64"]], (".so", "x86_64", "glibc 2.17"), ""),
        ([["manylinux_2_17_x86_64"]], (".so", "x86_64", "glibc 2.9"), "need glibc 2.17"),
        ([["manylinux1_x86_64", "manylinux_2_28_x86_64"]], (".so", "x86_64", "glibc 2.5"), ""),
        ([["manylinux1_x86_64"], ["manylinux_2_28_x86_64"]], (".so", "x86_64", "glibc 2.5"),
         "need glibc 2.28"),
        ([["linux_x86_64"]], (".so", "x86_64", "glibc 2.35"), "need glibc 2.36"),
        ([["linux_x86_64"]], (".so", "x86_64", "glibc 2.36"), ""),
        ([["manylinux_2_17_x86_64"]], (".so", "aarch64", "glibc 2.17"), "for x86_64"),
        ([["manylinux_2_17_x86_64"]], (".t.so", "x86_64", "glibc 2.17"), "for x86_64"),
        ([["macosx_11_0_arm64"]], ("", "", ""), "for x86_64")])
    def test_which_binaries_run_where(self, monkeypatch, tags, facts, problem):
        monkeypatch.setattr(wire, "platform_facts", lambda: (".so", "x86_64", "glibc 2.36"))
        found = executors._misfit(tags, facts)
        assert problem in found and bool(problem) == bool(found)


# ─────────────────────────────────────────── connecting ───────────────────────────────────────────


class TestConnecting:
    def cause(self, pool):
        with pytest.raises(NoWorkersError) as caught:
            pool.submit(neg, 1).result(PATIENCE)
        (machine, cause), = caught.value.causes
        assert machine in str(caught.value) and cause in str(caught.value)
        return cause

    def edited(self, sshds, tmp_path, old, new):
        """Return options that name alpha's configuration, with something else in it."""
        config, text = tmp_path / "config", read(sshds[0].path("config"))
        assert old in text
        config.write_text(text.replace(old, new))
        return ["-F", str(config)]

    def test_no_such_host(self, ssh):
        assert "resolve hostname" in self.cause(ssh("no-such-host.invalid"))

    def test_no_key(self, ssh, sshds, tmp_path):
        key = str(tmp_path / "key")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        options = self.edited(sshds, tmp_path, sshds[0].path("user"), key)
        cause = self.cause(ssh("alpha", ssh_options=options))
        assert "Permission denied (publickey)" in cause and "ssh-copy-id alpha" in cause
        assert "if it has a passphrase, run `ssh-add`" in cause

    def test_an_unknown_host_key(self, ssh, sshds, tmp_path):
        options = self.edited(sshds, tmp_path, sshds[0].path("known_hosts"), str(tmp_path / "none"))
        cause = self.cause(ssh("alpha", ssh_options=options))
        assert "Host key verification failed" in cause and "ssh alpha" in cause

    def test_a_host_key_that_has_changed(self, ssh, sshds, tmp_path):
        """Nobody is told to accept it, as one that is unknown."""
        key = str(tmp_path / "key")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        host = read(sshds[0].path("known_hosts")).split()[0]
        (tmp_path / "known").write_text(f"{host} {read(key + '.pub')}")
        options = self.edited(
            sshds, tmp_path, sshds[0].path("known_hosts"), str(tmp_path / "known"))
        cause = self.cause(ssh("alpha", ssh_options=options))
        assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in cause and "accept" not in cause
        assert "whether its key was replaced" in cause and "ssh-keygen" in cause and "-R" in cause

    def test_a_banner_does_not_decide_what_is_wrong(self, ssh, tmp_path, monkeypatch):
        (tmp_path / "ssh").write_text(
            "#!/bin/sh\necho Permission denied to others. Invalid users are prosecuted. >&2\n"
            "echo 'Unauthorised use of this system is an offence.' >&2\n"
            "echo 'ssh: connect to host alpha port 22: Connection timed out' >&2\nexit 255\n")
        (tmp_path / "ssh").chmod(0o755)
        monkeypatch.setattr(executors, "SSH", str(tmp_path / "ssh"))
        pool = ssh("alpha")
        until(lambda: pool.status.workers[0].cause)
        cause = pool.status.workers[0].cause
        assert "timed out -- check that the machine is up" in cause and "ssh-copy-id" not in cause

    def test_what_an_interpreter_prints_is_not_run(self, ssh, tmp_path, monkeypatch):
        """That of an environment is tried on machines, too, whatever it prints when it starts."""
        evil, python, ran = (tmp_path / name for name in ("evil", "python", "ran"))
        ours = sys.executable
        evil.write_text(f"#!/bin/sh\ntouch {ran}\nexit 127\n")
        python.write_text(f"#!/bin/sh\necho {evil}\nexec {sys.executable} \"$@\"\n")
        for path in (evil, python):
            path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        pool = ssh("1/alpha", python="")
        assert pool.submit(neg, 1).result(PATIENCE) == -1 and not ran.exists()
        assert pool.status.workers[0].found["interpreter"] == ours

    def test_no_python(self, ssh):
        cause = self.cause(ssh("alpha", python="/no/such/python"))
        assert "found none)" in cause and "Looked in: /no/such/python" in cause
        assert "python=" in cause
        assert "uv python install" in cause

    def test_the_wrong_python(self, ssh):
        ours = "{}.{}".format(*sys.version_info)
        others = [f"/root/.pyenv/versions/{version}/bin/python" for version in (
            "2.7.18", "3.6.15", "3.12.1", "3.10.13") if not version.startswith(ours)]
        other = next(filter(os.path.exists, others), None)
        if other is None:
            pytest.skip("there is only one Python here")
        cause = self.cause(ssh("alpha", python=other))
        assert "cpython" in cause or "python 2" in cause
        assert other in cause and f"no cpython {ours} on " in cause

    @pytest.mark.parametrize("machine", ["alpha", ":"])
    def test_a_python_that_cannot_start(self, ssh, tmp_path, machine):
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nPYTHONHOME=/none exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        cause = self.cause(ssh(machine, python=python))
        assert f"{python} ended there with status 1" in cause and "PYTHONHOME" in cause
        assert "Fatal Python error: " in cause and "<no Python frame>" not in cause
        assert (f"`ssh alpha {python} -c pass`" if machine == "alpha" else f"`{python} -c") in cause

    def test_a_python_that_hangs_is_no_login_file(self, ssh, tmp_path, monkeypatch):
        monkeypatch.setattr(executors, "HELLO_SECONDS", 1.0)
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\nexec sleep 30\n")
        python.chmod(0o755)
        pool = ssh("alpha", python=python)
        until(lambda: "no Python answered" in pool.status.workers[0].cause)
        cause = pool.status.workers[0].cause
        assert f"{python} was started there" in cause and f"`ssh alpha {python} -c pass`" in cause

    def test_a_shell_that_prints_for_ever(self, ssh, monkeypatch):
        monkeypatch.setattr(executors, "HELLO_SECONDS", 1.0)
        with Sshd(["talker"], ["ForceCommand yes all work and no play"]) as sshd:
            pool = ssh("talker", ssh_options=sshd.ssh_options)
            until(lambda: "no Python answered" in pool.status.workers[0].cause)
            cause = pool.status.workers[0].cause
        size = re.search("the login has printed ([0-9,]+) bytes", cause)[1]
        assert int(size.replace(",", "")) > 100_000 and "the last line is 'a" in cause
        assert "`ssh talker echo hello`" in cause

    def test_a_python_that_does_not_know_where_it_is(self, ssh, tmp_path):
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; '
                          'sys.executable = str(); '
                          'sys.argv[:] = sys.argv[1:]; exec(sys.argv.pop(1))" "$@"\n')
        python.chmod(0o755)
        pool = ssh("1/alpha", python=python)
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        assert pool.status.workers[0].found["interpreter"] == "?"

    def test_bad_ssh_options(self, ssh):
        assert "nonsense" in self.cause(ssh("alpha", ssh_options=["-o", "nonsense=1"])).lower()

    def test_words_of_ssh_that_nobody_has_heard(self, ssh, tmp_path, monkeypatch):
        """They reach the user; that nothing is known about them is no reason to hide them."""
        (tmp_path / "ssh").write_text("#!/bin/sh\necho the moon is full >&2\nexit 255\n")
        (tmp_path / "ssh").chmod(0o755)
        monkeypatch.setattr(executors, "SSH", str(tmp_path / "ssh"))
        pool = ssh("alpha")
        until(lambda: "the moon is full -- try `ssh alpha`" in pool.status.workers[0].cause)

    def test_words_of_machines_move_no_cursor(self, ssh, local, tmp_path, monkeypatch, caplog):
        """What ssh, a slot and an initializer say: in the log, in the status and in errors."""
        odd, plain = "\x1b[2J\x1b]0;title\x07odd \x1b[31mwords\x9b", "odd words"

        def die():
            os.write(2, odd.encode() + b"\n")
            os._exit(9)

        error = local("1/:", max_bundle_failures=1).submit(die).exception(PATIENCE)
        assert error.attempts[0][2] == plain + "\n"
        pool = local("1/:", initializer=raise_it, initargs=(ValueError(odd),))
        error = pool.submit(neg, 1).exception(PATIENCE)
        assert f"the initializer raised ValueError: {plain} (" in str(error)
        (tmp_path / "ssh").write_text(f"#!/bin/sh\necho '{odd}' >&2\nexit 255\n")
        (tmp_path / "ssh").chmod(0o755)
        monkeypatch.setattr(executors, "SSH", str(tmp_path / "ssh"))
        pool = ssh("alpha")
        until(lambda: f"{plain} -- try `ssh alpha`" in pool.status.workers[0].cause)
        until(lambda: f"{plain} -- try `ssh alpha`" in caplog.text)
        assert not re.search("[\x1b\x9b\x07]", caplog.text)

    def test_nobody_listens(self, ssh):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pool = ssh("127.0.0.1", ssh_options=["-p", str(port), "-F", "none"])
        future = pool.submit(neg, 1)
        until(lambda: "Connection refused" in pool.status.workers[0].cause)
        assert "check that sshd runs" in pool.status.workers[0].cause
        assert not future.done()        # it may start yet
        pool.shutdown(cancel_futures=True)

    def test_a_cause_is_told_once(self, ssh, local, caplog, monkeypatch):
        """Not at each attempt, nor twice on stderr."""
        caplog.set_level("INFO", "executors")
        monkeypatch.setattr(executors, "QUARANTINE_SECONDS", (0.05, 0.05))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pool = ssh("127.0.0.1", ssh_options=["-p", str(port), "-F", "none"])
        until(lambda: pool.status.workers[0].lost > 3)
        assert caplog.text.count("Connection refused") == 1
        assert list(local("2/:").map(neg, [1])) == [-1]
        assert ": 2/: is up" in caplog.text and "::" not in caplog.text

    def test_what_is_shown_is_not_logged_too(self):
        done = run("""
            import executors, logging
            logging.basicConfig(level="INFO")
            with executors.RemoteExecutor(["1/:"], show_status=True) as pool:
                pool.submit(len, "abc").result()
        """)
        assert done.stderr.count("1 done, p50") == 1, done

    def test_a_shutdown_while_it_connects(self, ssh, local):
        """At whatever stage of connecting it comes, nothing is left."""
        before = {*threading.enumerate()}
        mine = {pid for pid in descendants() if "b64decode" in command_line(pid)}
        for n in range(12):
            pool = ssh("1/alpha", "1/beta") if n % 3 == 0 else local("1/:")
            time.sleep(n * n / 500)
            pool.shutdown()
        until(lambda: {*threading.enumerate()} <= before, "the end of all threads")
        until(lambda: not [pid for pid in descendants() - mine if "b64decode" in command_line(pid)])

    def test_one_bad_machine_does_not_stop_the_others(self, ssh):
        pool = ssh("1/no-such-host.invalid", "1/alpha")
        assert list(pool.map(neg, range(10))) == [-n for n in range(10)]

    def test_the_environment_that_the_controller_runs_in_is_found(self, ssh, monkeypatch):
        """Homes are often shared: what is its `sys.executable` may be there too."""
        monkeypatch.setattr(sys, "base_prefix", "/elsewhere")       # whether it is one or not
        pool = ssh("1/alpha", python=None)
        assert pool.submit(lambda: sys.executable).result(PATIENCE) == sys.executable

    def test_what_starts_a_worker_is_small(self):
        """Machines may share a slow line, and have half a minute to start."""
        assert len(executors._bootstrap()) < 90_000

    def test_whatever_habits_the_users_configuration_has(self, ssh, sshds, tmp_path):
        """Each would break a link, or scp, if it were not overruled; a machine for each."""
        habits = [
            "RequestTTY force", "RemoteCommand echo hello", "StdinNull yes", "SessionType none",
            "PermitLocalCommand yes\nLocalCommand echo hello", "ForkAfterAuthentication yes",
            "ControlMaster auto\nControlPath /tmp/" + "long/" * 40 + "%C\nControlPersist yes",
            "LogLevel QUIET", "LogLevel DEBUG3", "ForwardX11 yes\nForwardAgent yes", "BatchMode no",
            "LocalForward 127.0.0.1:1 127.0.0.1:2\nExitOnForwardFailure yes", "Compression yes",
            "SendEnv LANG LC_*"]
        config, data = tmp_path / "config", tmp_path / "data"
        data.write_bytes(os.urandom(100))
        hosts = [f"Host h{n}\n{habit}\n" for n, habit in enumerate(habits)]
        text = read(sshds[0].path("config")).replace("Host alpha", "Host h*")
        config.write_text("".join(hosts) + text)
        pool = ssh(*(f"1/h{n}" for n in range(len(habits))), ssh_options=["-F", str(config)],
                   files=[str(data)])

        def look():
            time.sleep(0.1)
            return read("data")

        def working():
            list(pool.map(look, *[[]]))
            futures = [pool.submit(look) for _ in habits]
            assert {future.result(PATIENCE) for future in futures} == {read(data)}
            return all(worker.done for worker in pool.status.workers)

        until(working, "work on every machine")

    def test_a_port_by_an_option(self, ssh, sshds, tmp_path):
        port = f"Port {sshds[0].port}\n"
        options = self.edited(sshds, tmp_path, port, "Port 1\n")
        (tmp_path / "data").write_text("data")
        pool = ssh("1/alpha", ssh_options=[*options, "-p", str(sshds[0].port)],
                   files=[tmp_path / "data"])
        assert pool.submit(read, "data").result(PATIENCE) == "data"     # scp has it too

    @pytest.mark.parametrize("address", ["::1", "127.0.0.1"])
    def test_addresses_and_jump_hosts(self, ssh, sshds, tmp_path, address):
        """A worker at an IPv6 or IPv4 address, without an alias, by way of another."""
        data, config = tmp_path / "data", tmp_path / "config"
        data.write_bytes(b"data")
        with Sshd([address], address=address) as far:
            config.write_text(f"Host {address}\nProxyJump alpha\n{read(far.path('config'))}\n"
                              f"{read(sshds[0].path('config'))}")
            pool = ssh(f"1/{address}", ssh_options=["-F", str(config)], files=[str(data)])
            assert pool.submit(os.path.getsize, "data").result(PATIENCE) == 4
            pool.shutdown()

    def test_what_a_jump_host_says(self, ssh, sshds):
        options = ["-J", "alpha", *sshds[0].ssh_options]
        cause = self.cause(ssh("1/no-such-host.invalid", ssh_options=options))
        assert "open failed" in cause and "UNKNOWN" not in cause

    def test_banners(self, ssh, tmp_path, caplog):
        banner = "Permission denied to the unauthorised! No such file or directory.\n"
        (tmp_path / "banner").write_text(banner * 50)
        with Sshd(["proud"], [f"Banner {tmp_path / 'banner'}", "PrintMotd yes"]) as sshd:
            pool = ssh("1/proud", ssh_options=sshd.ssh_options)
            assert pool.submit(neg, 1).result(PATIENCE) == -1
            assert "unauthorised" not in caplog.text
            pool.shutdown()
            pool = ssh("1/proud", python="/no/python", ssh_options=sshd.ssh_options)
            assert "No such host" not in self.cause(pool)

    @pytest.mark.timeout(240)
    @pytest.mark.parametrize("number, limit", [(40, "10:30:100"), (12, "2:50:4")])
    def test_many_machines_behind_one_sshd(self, ssh, number, limit):
        """The first limit is sshd's default. Under the other some are refused, and tried again."""
        names = [f"m{n}" for n in range(number)]
        with Sshd(names, [f"MaxStartups {limit}"]) as sshd:
            pool = ssh(*(f"1/{name}" for name in names), ssh_options=sshd.ssh_options,
                       heartbeat_seconds=5)
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

    def test_a_program_that_forks_while_it_connects(self):
        """A child that is forked meanwhile must not hold what tells that ssh has started."""
        done = run("""
            import executors, operator, os, threading, time
            done, children = threading.Event(), []
            def fork():
                while not done.is_set():
                    pid = os.fork()
                    if pid == 0:
                        time.sleep(100)
                        os._exit(0)
                    children.append(pid)
                    time.sleep(0.001)
            forker = threading.Thread(target=fork)
            forker.start()
            started = time.monotonic()
            for n in range(6):
                with executors.RemoteExecutor(["1/:"], show_status=False) as pool:
                    assert pool.submit(operator.neg, n).result(15) == -n
            done.set()
            forker.join()
            for pid in children:
                os.kill(pid, 9)
            print("done")
        """, env={"PYTHONWARNINGS": "ignore"})
        assert done.stdout == "done\n", done


# ────────────────────────────────── logins as they are out there ──────────────────────────────────

RC_FILES = {"sh": ".profile", "dash": ".profile", "bash": ".bashrc", "zsh": ".zshenv",
            "tcsh": ".tcshrc", "fish": ".config/fish/config.fish"}
READING = {"tcsh": "set line = $<", "fish": "read line"}
NOISES = {
    "nothing": "", "no newline": "printf noise", "reading": "read line",
    "a megabyte": "awk 'BEGIN { for (i = 0; i < 20000; i++) print \"a login file that prints "
                  "without end, no one knows why\" }'",
}


def odd_login(stack, folder, shell="sh", files=(), mounts=":", name="odd"):
    """Start an sshd that sees another /etc/passwd than everyone else.

    In it, we have the shell and the home that a test wants. `mounts` is shell code that runs there,
    in a mount namespace of its own, with the home as $1.
    """
    path = shutil.which(shell)
    assert path, f"apt-get install {shell}"
    home, passwd = folder / "home", folder / "passwd"
    home.mkdir(exist_ok=True, parents=True)
    for file, text in dict(files).items():
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text(text + "\n")
    us = f"root:x:0:0:root:{home}:{path}\n"
    lines = read("/etc/passwd").splitlines(keepends=True)
    passwd.write_text("".join(us if line.startswith("root:") else line for line in lines))
    script = f'mount --bind "$0" /etc/passwd; {mounts}; shift; exec "$@"'
    prefix = ["unshare", "-m", "sh", "-c", script, str(passwd), str(home)]
    return stack.enter_context(Sshd([name], prefix=prefix, has_home=True))


@pytest.fixture
def login(tmp_path, namespaces):
    """Make odd logins: `login(shell, files, mounts)`."""
    with ExitStack() as stack:
        yield functools.partial(odd_login, stack, tmp_path)


class TestLoginShells:
    @pytest.mark.parametrize("shell", RC_FILES)
    def test_it_connects(self, login, ssh, tmp_path, shell):
        """Whatever noise the login file makes; a machine for each kind."""
        # Debian's sh reads .profile only as a login shell; what sshd starts reads $ENV if it is
        # set. So each has what it reads.
        config = ""
        for n, (noise, text) in enumerate(NOISES.items()):
            text = READING.get(shell, text) if noise == "reading" else text
            sshd = login.func(*login.args[:1], tmp_path / str(n), shell,
                              {RC_FILES[shell]: text}, name=f"odd{n}")
            config += read(sshd.path("config")) + "\n"
        (tmp_path / "config").write_text(config)
        pool = ssh(*(f"1/odd{n}" for n in range(len(NOISES))),
                   ssh_options=["-F", str(tmp_path / "config")])
        until(lambda: all(worker.state == "up" for worker in pool.status.workers), pool.status)
        futures = [pool.submit(time.sleep, 0.2) for _ in NOISES]
        assert [future.result(PATIENCE) for future in futures] == [None] * len(NOISES)
        if shell in ("bash", "zsh", "tcsh", "fish"):        # it did come, and did no harm
            assert "noisy" in [worker.found["shell"] for worker in pool.status.workers]
            noises = [login._noise for login in pool._supervisor.logins.values()]
            assert any(b"no one knows why" in noise for noise in noises)

    @pytest.mark.parametrize("shell, words", [
        ("false", "ended with status 1"), ("nologin", "This account is currently not available")])
    def test_a_login_that_is_none(self, login, shell, words):
        with RemoteExecutor(["1/odd"], ssh_options=login(shell).ssh_options,
                            show_status=False) as pool:
            with pytest.raises(NoWorkersError, match=words) as caught:
                pool.submit(neg, 1).result(PATIENCE)
            assert "check that `ssh odd echo hello` prints hello" in str(caught.value)

    @pytest.mark.parametrize("shell", ["bash", "zsh"])
    def test_noise_is_quoted_when_it_is_all_there_is(self, login, ssh, shell):
        sshd = login(shell, {RC_FILES[shell]: "echo today nobody works here; exit 3"})
        words = "status 3 before Python started: today nobody works here"
        with pytest.raises(NoWorkersError, match=words):
            ssh("1/odd", ssh_options=sshd.ssh_options).submit(neg, 1).result(PATIENCE)

    @pytest.mark.parametrize("python", [
        "~/venv/bin/python", "~/.pyenv/versions/3/bin/python", "~/.pyenv/shims/python"])
    def test_interpreters_in_the_home(self, login, ssh, tmp_path, python):
        configuration = f"home = {os.path.dirname(sys.executable)}"
        sshd = login("dash", {"venv/pyvenv.cfg": configuration, ".pyenv/versions/3/bin/x": ""})
        (tmp_path / "home/venv/bin").mkdir()
        (tmp_path / "home/venv/bin/python").symlink_to(sys.executable)
        (tmp_path / "home/.pyenv/versions/3/bin/python").symlink_to(sys.executable)
        (tmp_path / "home/.pyenv/shims").mkdir()
        shim = tmp_path / "home/.pyenv/shims/python"
        shim.write_text(f'#!/usr/bin/env bash\nset -e\nexec {sys.executable} "$@"\n')
        shim.chmod(0o755)
        pool = ssh("1/odd", python=python, ssh_options=sshd.ssh_options)
        prefix = pool.submit(lambda: sys.prefix).result(PATIENCE)
        assert "/venv/" not in python or prefix == str(tmp_path / "home/venv")

    OURS = "python{}.{}".format(*sys.version_info)
    # What runs as a Python says of itself; the second is real, but for its version.
    SHIM = "echo 'pyenv: command not found' >&2; exit 127"
    OLD = (f"exec {sys.executable} -c 'import sys; sys.version_info = 3, 8, 1; code = sys.argv[2]; "
           "sys.argv[1:] = sys.argv[3:]; exec(code)' \"$@\"")
    RIGHT = f'exec {sys.executable} "$@"'

    @pytest.mark.parametrize("place, before", [
        ("bin/python3", SHIM), ("bin/python3", OLD), (f".local/bin/{OURS}", OLD),
        (f".pyenv/versions/9.9.9/bin/{OURS}", OLD),
        (f".local/share/uv/python/cpython-9.9.9-linux/bin/{OURS}", OLD), ("", OLD)])
    def test_an_interpreter_is_looked_for(self, login, ssh, tmp_path, monkeypatch, place, before):
        """What is ours by its name and yet does not fit is passed over; where none fits, all that
        was found is named, and what to do."""
        monkeypatch.setattr(sys, "prefix", sys.base_prefix)     # it is no environment
        monkeypatch.setattr(executors, "_PYTHON_PLACES", [     # none but those of this home
            path for path in executors._PYTHON_PLACES if path[0] in "~p"])
        sshd = login("bash", {".bashrc": f"PATH={tmp_path}/home/bin:{tmp_path}/tools"})
        (tmp_path / "tools").mkdir()
        for tool in ("sh", "test"):
            (tmp_path / "tools" / tool).symlink_to(shutil.which(tool))
        for name, text in ((f"bin/{self.OURS}", before), (place, self.RIGHT)):
            if name:
                path = tmp_path / "home" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"#!/bin/sh\n{text}\n")
                path.chmod(0o755)
        pool = ssh("1/odd", python=None, ssh_options=sshd.ssh_options)
        if place:
            version = sys.version_info[:3]
            assert pool.submit(lambda: sys.version_info[:3]).result(PATIENCE) == version
        else:
            with pytest.raises(NoWorkersError) as caught:
                pool.submit(neg, 1).result(PATIENCE)
            said = str(caught.value)
            assert f"found cpython 3.8.1 {sys.executable})" in said
            assert f"Looked in: {self.OURS}, " in said
            assert "uv python install" in said

    @pytest.mark.parametrize("mounts, words", [
        ('mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"', "Read-only file system"),
        ('mount -t tmpfs -o size=64k tmpfs "$1"; cat /dev/zero > "$1/full" 2>/dev/null',
         "check that there is room"),
    ])
    def test_a_home_that_takes_nothing(self, login, ssh, sshds, tmp_path, mounts, words):
        """Work needs no disk. Files do: that machine stays out, with the reason; others work."""
        sshd, data, config = login(mounts=mounts), tmp_path / "data", tmp_path / "config"
        data.write_bytes(os.urandom(1 << 20))
        config.write_text(read(sshd.path("config")) + "\n" + read(sshds[0].path("config")))
        options = ["-F", str(config)]
        pool = ssh("1/odd", ssh_options=options)
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        pool.shutdown()
        pool = ssh("1/odd", "1/alpha", ssh_options=options, files=[str(data)])
        until(lambda: pool.status.workers[0].state == "failed")
        assert words in pool.status.workers[0].cause
        assert pool.submit(os.path.getsize, "data").result(PATIENCE) == 1 << 20
        check = run([sys.executable, "-m", "executors", "--check", "--workers",
                     f"odd python={sys.executable}", "--ssh_options", " ".join(options)])
        assert check.returncode == 1 and "odd: scp: " in check.stdout, check.stdout


@pytest.fixture
def on_nothing(login):
    """Make pools of machines that have no Python: `on_nothing(*names, shell="sh", **options)`.

    It has attributes: the `home` of those machines, and the `cache` there.
    """
    hide = f"""
        for place in /usr/bin /usr/local/bin /bin; do
            for python in $place/python3*; do
                if test -f $python; then mount --bind /dev/null $python; fi
            done
        done
        case {sys.base_prefix} in
            /usr|/usr/local) ;;
            *) mount -t tmpfs none {sys.base_prefix};;
        esac
        """
    with maker([]) as make:
        def on(slots=1, shell="sh", mounts=":", **options):
            sshd = login(shell, mounts=hide + mounts)
            return make(f"{slots}/odd", ssh_options=sshd.ssh_options, **options)
        on.home = login.args[1] / "home"
        on.cache = on.home / ".cache/executors"
        yield on


@pytest.mark.timeout(300)      # sending an interpreter takes several seconds
class TestInterpreters:
    def test_ours_is_sent_once(self, on_nothing, caplog):
        caplog.set_level("INFO", "executors")
        def look():
            import multiprocessing
            import ssl
            import sqlite3
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                child, = pool.map(abs, [-1])
            said = subprocess.run([sys.executable, "-c", "import sys; print(sys.prefix)"],
                                  capture_output=True, text=True)
            return sys.version, sys.executable, sys.prefix, child, said.stdout.strip()

        version_here = re.escape("{}.{}.{}".format(*sys.version_info))
        for found in r" \(sent, [1-9]\d* MB\)", "":
            with on_nothing() as pool:
                version, executable, prefix, child, grandchild = pool.submit(look).result(PATIENCE)
                assert version == sys.version and child == 1
                assert executable.startswith(str(on_nothing.cache)) and prefix == grandchild
                python = pool.status.workers[0].found["python"]
                assert re.fullmatch(version_here + found, python)
        assert caplog.text.count("(sent, ") == 1
        assert len([*on_nothing.cache.glob("python-*")]) == 1
        assert not [*on_nothing.cache.glob("incoming-*")]

    @pytest.mark.parametrize("shell", ["tcsh", "fish"])
    def test_through_another_shell(self, on_nothing, shell):
        assert on_nothing(shell=shell).submit(neg, 1).result(PATIENCE) == -1

    @pytest.mark.parametrize("tool, says, words", [
        ("uname", "Darwin arm64", f"it is for {os.uname().sysname} on {os.uname().machine}"),
        ("getconf", "glibc 2.5", "there is 2.5"), ("getconf", "", "it needs glibc")])
    def test_it_stays_where_it_would_not_run(self, on_nothing, tmp_path, tool, says, words):
        path = tmp_path / tool
        path.write_text(f"#!/bin/sh\necho {says}\n")
        path.chmod(0o755)
        pool = on_nothing(mounts=f"mount --bind {path} {shutil.which(tool)}")
        error = str(pool.submit(neg, 1).exception(PATIENCE))
        assert "it was not sent there: " in error and words in error
        assert "uv python install" in error
        assert not [*on_nothing.cache.glob("*python-*")]

    @pytest.mark.parametrize("packages", [False, ["numpy"]])
    def test_it_goes_where_packages_may_go(self, on_nothing, packages):
        pool = on_nothing(packages=packages)
        if packages:
            assert pool.submit(neg, 1).result(PATIENCE) == -1
        else:
            error = str(pool.submit(neg, 1).exception(PATIENCE))
            assert "(found none)" in error and "sent there" not in error

    def test_a_small_disk(self, on_nothing):
        pool = on_nothing(mounts='mount -t tmpfs -o size=9m none "$1"')
        error = str(pool.submit(neg, 1).exception(PATIENCE))
        assert "ours cannot be used there" in error and "No space left" in error

    def test_what_it_lacks_there_is_named(self, on_nothing, caplog):
        import _sqlite3
        needed = run(["ldd", _sqlite3.__file__], check=True).stdout
        library, = re.findall(r"(libsqlite3.so\S*) => (\S+)", needed)
        caplog.set_level("INFO", "executors")
        pool = on_nothing(mounts=f"mount --bind /dev/null {library[1]}")
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        assert re.search(rf"\(sent, \d+ MB; it lacks {library[1]}: file too short\)", caplog.text)
        error = pool.submit(importlib.import_module, "sqlite3").exception(PATIENCE)
        assert library[1] in str(error)

    @pytest.mark.parametrize("change", ["os.chmod(copy, 0o777)", "os.chown(copy, 1234, -1)",
                                        "os.chmod(copy.parent, 0o777)"])
    def test_a_copy_that_others_may_have_written_is_not_run(self, on_nothing, change):
        """Another is made beside it, unless they may write into the cache itself."""
        copy = on_nothing.cache / f"python-{executors._find_interpreter().key}"
        binary = copy / f"bin/python{sys.version_info[0]}.{sys.version_info[1]}"
        binary.parent.mkdir(parents=True)
        binary.write_text("#!/bin/sh\ntouch ~/run\nexit 127\n")
        for path in copy.parent, copy, binary:
            path.chmod(0o700)
        exec(change)
        future = on_nothing().submit(neg, 1)
        if "parent" in change:
            error = str(future.exception(PATIENCE))
            assert f"{on_nothing.cache} must be yours" in error
            assert binary.exists()
        else:
            assert future.result(PATIENCE) == -1
            beside, = on_nothing.cache.glob(f"{copy.name}.*")
            assert beside.stat().st_mode & 0o777 == 0o700
        assert not (on_nothing.home / "run").exists()

    @pytest.mark.parametrize("lost", ["bin", "lib"])
    def test_a_copy_of_which_something_is_lost(self, on_nothing, lost):
        """Another is made beside it, once: a cleaner may have been there."""
        with on_nothing() as pool:
            assert pool.submit(neg, 1).result(PATIENCE) == -1
        copy, = on_nothing.cache.glob("python-*")
        shutil.rmtree(copy / lost)
        for _ in range(2):
            with on_nothing() as pool:
                assert pool.submit(neg, 1).result(PATIENCE) == -1
            beside, = on_nothing.cache.glob(f"{copy.name}.*")
        assert (beside / lost).exists() and not [*on_nothing.cache.glob("*/incoming*")]

    def test_a_copy_that_was_cut_off(self, on_nothing, tmp_path):
        """The login is tried again, and sends it again."""
        tar, began = tmp_path / "tar", tmp_path / "began"
        tar.write_text(f"#!/bin/sh\ntest -e {began} && exec {tmp_path}/real_tar \"$@\"\n"
                       f"touch {began}\nexec head -c 1000000 >/dev/null\n")
        tar.chmod(0o755)
        shutil.copy(shutil.which("tar"), tmp_path / "real_tar")
        pool = on_nothing(mounts=f"mount --bind {tar} {shutil.which('tar')}")
        future = pool.submit(neg, 1)
        until(began.exists)
        for login in [*pool._supervisor.logins.values()]:
            os.killpg(login.processes[0].pid, signal.SIGKILL)
        assert future.result(PATIENCE) == -1

    def test_it_is_kept_while_it_is_used(self, on_nothing):
        def prune():
            import remote_worker
            os.utime(sys.base_prefix, (0, 0))
            remote_worker._prune(remote_worker._cache_path())
            return os.path.exists(sys.executable)
        with on_nothing() as pool:
            assert pool.submit(prune).result(PATIENCE)
        copy, = on_nothing.cache.glob("python-*")
        wire._prune(str(on_nothing.cache))
        assert not copy.exists()

    def test_many_machines_with_one_home(self, on_nothing, tmp_path):
        """A login that is slower than the others does not remove what they have put there."""
        tool = tmp_path / "rm"
        tool.write_text(f"#!/bin/sh\nmkdir {tmp_path}/first 2>/dev/null && sleep 3\n"
                        f"exec {tmp_path}/real_rm \"$@\"\n")
        tool.chmod(0o755)
        shutil.copy(shutil.which("rm"), tmp_path / "real_rm")
        pool = on_nothing(mounts=f"mount --bind {tool} {shutil.which('rm')}")
        for _ in range(3):
            pool.add_worker("1/odd")

        def count_up():
            return [worker.state for worker in pool.status.workers].count("up")

        until(lambda: count_up() >= 2)
        copy, = on_nothing.cache.glob("python-*")
        inode = copy.stat().st_ino
        until(lambda: count_up() == 4)
        assert [*on_nothing.cache.glob("python-*")] == [copy] and copy.stat().st_ino == inode
        assert not [*copy.glob("incoming-*")]


@pytest.fixture
def arm_python(tmp_path):
    """The path of a Python of our version for aarch64, in an emulator. It is Debian's own."""
    name = "python{}.{}".format(*sys.version_info)
    packages = [f"{name}-minimal", f"lib{name}-minimal", f"lib{name}-stdlib", "libc6", "zlib1g",
                "libexpat1", "libffi8", "libgcc-s1", "libstdc++6", "libssl3", "libbz2-1.0",
                "liblzma5", "libuuid1", "libcrypt1"]
    options = [word for option in (
        "APT::Architecture=arm64", "APT::Architectures=arm64", f"Dir::State={tmp_path}/state",
        f"Dir::Cache={tmp_path}/cache", "Dir::State::status=/dev/null",
        "APT::Sandbox::User=root") for word in ("-o", option)]
    for folder in "state/lists/partial", "cache/archives/partial", "deb":
        (tmp_path / folder).mkdir(parents=True)
    if not (shutil.which("qemu-aarch64") and shutil.which("apt-get")):
        pytest.skip("no emulator of another platform here: apt-get install qemu-user")
    for command in ["update"], ["download", *packages]:
        done = run(["apt-get", *options, "-qq", *command], cwd=tmp_path / "deb")
        if done.returncode:
            pytest.skip(f"no {name} for aarch64 can be had here: {done.stderr.strip()[-200:]}")
    for package in (tmp_path / "deb").glob("*.deb"):
        run(["dpkg", "-x", package, tmp_path / "root"], check=True)
    python = tmp_path / "python"
    root = tmp_path / "root"
    python.write_text(f'#!/bin/sh\nexec qemu-aarch64 -L {root} {root}/usr/bin/{name} "$@"\n')
    python.chmod(0o755)
    return python


class TestOtherPlatforms:
    @pytest.mark.timeout(180)       # the emulator is slow
    def test_packages_for_aarch64(self, arm_python, login):
        """A small one that is all in a compiled module."""
        def use():
            import platform
            import rpds
            return platform.machine(), rpds.HashTrieMap({"a": 1})["a"], rpds.rpds.__file__
        with maker([]) as make:
            pool = make(f"1/odd python={arm_python}", ssh_options=login().ssh_options)
            machine, value, where = pool.submit(use).result(120)
        assert (machine, value) == ("aarch64", 1) and "aarch64" in where


# ──────────────────────────────────────────── futures ─────────────────────────────────────────────


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
        orphan = path + ".orphan"
        future = remote.submit(family, path)
        until(lambda: all(os.path.exists(one) and os.path.getsize(one) for one in (path, orphan)))
        assert future.running() and not future.done()
        pids = [int(pid) for pid in f"{read(path)} {read(orphan)}".split()]
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
        del waiting[5]
        results = [future.result(PATIENCE) for future in waiting]
        assert results == [-n for n in range(10) if n != 5]
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

    def test_what_was_only_sent_ahead_has_not_started(self, local, tmp_path):
        """It is not running, and cancel_futures does not spare it; what runs is spared."""
        def work(path=None):
            return wait_for(path) if path else 0

        pool = local("1/:", schedule_backups=False)
        list(pool.map(work, [None] * 50, chunksize=1))       # it is known to be short
        first = pool.submit(work, str(tmp_path / "go"))
        others = [pool.submit(work) for _ in range(20)]
        until(lambda: pool.status.workers[0].ahead, "sending ahead")
        until(first.running)
        assert not any(future.running() for future in others)
        pool.shutdown(wait=False, cancel_futures=True)
        cf.wait(others, PATIENCE)
        assert all(future.cancelled() for future in others)
        (tmp_path / "go").touch()
        assert first.result(PATIENCE)

    def test_a_submission_that_loses_the_race_with_close(self, local):
        pool = local("1/:")
        pool.submit(neg, 1).result(PATIENCE)
        supervisor = pool._supervisor
        # As when another thread shuts down between our look at the door and our turn there.
        supervisor.events.put((supervisor.scheduler.close, (False,), None))
        future = pool.submit(neg, 2)
        assert "cannot schedule" in str(future.exception(PATIENCE))
        assert not future.cancel() and not future.cancelled()


    def test_whatever_threads_do_to_futures_as_they_are_settled(self, local):
        """Wait, add callbacks, cancel, ask: at the very moment that results arrive."""
        pool, source = local("4/:"), random.Random(3)
        told, problems = SimpleQueue(), []

        def use(futures):
            try:
                for n, future in futures:
                    kind = source.randrange(6)
                    if kind == 0:
                        future.add_done_callback(told.put)
                    elif kind == 1:
                        done, left = cf.wait([future for _, future in futures], PATIENCE)
                        assert len(done) == len(futures) and not left
                    elif kind == 2:
                        assert len([*cf.as_completed([one for _, one in futures], PATIENCE)]) == 50
                    elif kind == 3:
                        assert not future.cancel() or future.cancelled()
                    elif kind == 4:
                        assert not future.done() or future in cf.wait([future], 0)[0]
                    try:
                        assert future.result(PATIENCE) == -n and future.done()
                    except cf.CancelledError:
                        assert future.cancelled() and future.done()
                    added.append(kind == 0)
            except BaseException as problem:
                problems.append(problem)

        added = []
        for _ in range(20):
            futures = [(n, pool.submit(neg, n)) for n in range(50)]
            threads = [threading.Thread(target=use, args=(futures,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(2 * PATIENCE)
            assert not problems, problems
        assert len(added) == 4000
        until(lambda: told.qsize() >= sum(added), "the last callback")
        assert told.qsize() == sum(added)


class TestEveryFutureIsSettled:
    @dataclasses.dataclass(frozen=True)
    class NotFound(Exception):
        """An exception that takes no attributes."""

    @dataclasses.dataclass(frozen=True)
    class NotThere(Exception):
        """One that even pickle cannot give any."""

        name: str

    def test_an_exception_that_takes_no_attributes(self, remote):
        error = remote.submit(raise_it, self.NotFound()).exception(PATIENCE)
        assert type(error).__name__ == "NotFound" and "raise_it" in str(error.__cause__)
        kind = self.NotThere
        error = remote.submit(lambda: raise_it(kind("x"))).exception(PATIENCE)
        assert type(error) is BundleError and "NotThere" in str(error)

    @pytest.mark.parametrize("error", ["ValueError()", "SystemExit(3)"])
    def test_a_log_that_fails_decides_nothing(self, error):
        done = run(f"""
            import executors, logging, time
            def fail(record):
                raise {error}
            logging.getLogger("executors").addFilter(fail)
            logging.getLogger("executors").setLevel(logging.DEBUG)
            with executors.RemoteExecutor("2/:", show_status=True) as pool:
                numbers = [*pool.map(abs, [-1, -2, -3])]
                while pool.status.done < 3:     # counted after it is given out
                    time.sleep(0.01)
                print(*numbers, pool.status.done)
            with executors.ThreadExecutor(2) as pool:
                print(pool.submit(abs, -4).result())
        """)
        assert (done.returncode, done.stdout) == (0, "1 2 3 3\n4\n"), done.stderr

    def test_what_fails_at_the_end_keeps_nobody_waiting(self, local, monkeypatch, caplog):
        pool = local("1/:")
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        monkeypatch.setattr(pool._supervisor, "_finish_scoreboard", lambda: 1 // 0)
        pool.shutdown()
        assert "unexpected error after all tasks ended" in caplog.text

    def test_only_the_pool_gives_its_futures_an_outcome(self, remote, tmp_path):
        called, go = [], tmp_path / "go"
        future = remote.submit(wait_for, str(go))
        future.add_done_callback(called.append)
        for state in "pending", "done":
            for give in (lambda: future.set_result(1), lambda: future.set_exception(OSError()),
                         future.set_running_or_notify_cancel):
                with pytest.raises(cf.InvalidStateError, match="its outcome from its pool"):
                    give()
            assert future.done() is (state == "done")
            go.touch()
            assert future.result(PATIENCE)
        until(lambda: called == [future])

    def test_a_future_is_neither_pickled_nor_copied(self, remote):
        future = remote.submit(neg, 1)
        for state in "pending", "done":
            for carry in pickle.dumps, copy.copy, copy.deepcopy:
                with pytest.raises(TypeError, match="cannot be pickled or copied"):
                    carry(future if carry is copy.copy else [future])
            assert future.result(PATIENCE) == -1
        with pytest.raises(TypeError, match="argument 1 of neg, a list, .* a future belongs"):
            remote.submit(neg, [future])

    @pytest.mark.parametrize("body", [b"", b"\x80\x05", pickle.dumps(5), pickle.dumps((1,) * 5)])
    def test_an_error_that_cannot_be_decoded(self, local, body):
        pool = local("1/:")
        future = pool.submit(time.sleep, 100)
        until(future.running)
        supervisor = pool._supervisor
        (link, worker), = ((one.link, one) for one in supervisor.scheduler.workers)
        ident, = worker.running
        supervisor.decide(supervisor.scheduler.on_report, worker, link,
                          executors._Scheduler.on_results, [(wire.ERROR, ident, 0, (body,))])
        assert "cannot be unpickled here" in str(future.exception(PATIENCE))

    OUTCOMES = {"result": (wire.RESULT, (pickle.dumps(7),)), "cancelled": (-2, ()),
                "failed": (-1, ValueError()),
                "error": (wire.ERROR, (pickle.dumps(("run", b"", "X", "y", "z")),))}

    @pytest.mark.parametrize("outcome, is_running", [
        *((outcome, False) for outcome in ("result", "cancelled", "failed", "error")),
        ("cancelled", True)])
    def test_whatever_raises_between_a_decision_and_its_future(
            self, local, tmp_path, monkeypatch, outcome, is_running):
        """A fault in the n-th call of ours, for each n, outside the lock."""
        monkeypatch.setattr(executors, "QUARANTINE_SECONDS", (0.05, 0.1))   # of broken links
        pool = local("1/:", heartbeat_seconds=0.1)
        for number in itertools.count():
            busy = pool.submit(wait_for, str(tmp_path / "go"))
            until(busy.running)
            future = busy if is_running else pool.submit(neg, 1)
            future.add_done_callback(lambda _: None)
            is_reached = self.inject(pool._supervisor, number, future, self.OUTCOMES[outcome])
            assert cf.wait([future], PATIENCE)[0]
            assert busy.cancel() or is_running
            if not is_reached:
                break
        assert number > 1

    def inject(self, supervisor, number, future, ending):
        """Settle a future while the n-th call raises; return whether there was such a call."""
        count, armed, reached = itertools.count(), [], []

        def fault(frame, event, _):
            ours = frame.f_code.co_filename in (executors.__file__, wire.__file__)
            if (event == "call" and ours and armed and not reached
                    and not supervisor._lock._is_owned() and next(count) == number):
                reached.append(True)
                raise MemoryError("injected")

        def decide():
            armed.append(True)
            supervisor.scheduler._settle(bundle, *ending)

        def settle():
            sys.settrace(fault)
            try:
                supervisor._process_events([(decide, (), None)])
            except MemoryError:
                pass        # in what runs the callbacks
            sys.settrace(None)

        until(lambda: future._bundle.phase is executors._LIVE)
        bundle = future._bundle
        thread = threading.Thread(target=settle)
        thread.start()
        thread.join(PATIENCE)
        return bool(reached)

    def test_iterators_that_the_collector_ends(self):
        """A partly read `map` in a cycle is finalised in any thread, under any lock."""
        done = run("""
            import executors, gc, operator, threading
            gc.set_threshold(50)
            pool = executors.RemoteExecutor(["2/:"], show_status=False)
            def use():
                for _ in range(60):
                    cycle = [pool.map(operator.neg, range(30))]
                    next(cycle[0])
                    cycle.append(cycle)
            threads = [threading.Thread(target=use) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            pool.shutdown()
            print("done")
        """, timeout=45)
        assert done.stdout == "done\n", done

    def test_callbacks_run_where_the_standard_library_runs_them(self, local):
        """Under a lock of the caller's that the callback takes once more."""
        pool, lock, where = local("1/:"), threading.RLock(), []

        def note(_):
            with lock:
                where.append(threading.current_thread())

        with lock:
            for _ in range(3):
                future = pool.submit(time.sleep, 1000)
                future.add_done_callback(note)
                assert future.cancel()
        assert where == [threading.current_thread()] * 3

    def test_a_callback_that_raises_keeps_nobody_from_his(self, local):
        pool, told = local("1/:"), SimpleQueue()
        busy = pool.submit(time.sleep, 1000)
        until(busy.running)
        futures = [pool.submit(neg, n) for n in range(3)]
        futures[0].add_done_callback(lambda _: sys.exit())
        for future in futures:
            future.add_done_callback(told.put)
        with pytest.raises(SystemExit):
            pool.shutdown(wait=False, cancel_futures=True)
        assert {told.get(timeout=PATIENCE) for _ in range(2)} == {*futures[1:]}
        assert busy.cancel()

    def test_a_forked_child_is_told_so(self, local):
        pool = local("1/:")
        pool.submit(neg, 1).result(PATIENCE)
        child = os.fork()
        if child == 0:
            refused = 0
            for ask in (lambda: pool.status, lambda: pool.task_count, pool.shutdown_if_idle,
                        lambda: pool.add_worker(":"), lambda: pool.submit(neg, 1)):
                try:
                    ask()
                except RuntimeError as error:
                    refused += "parent process" in str(error)
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5


# ──────────────────────────────────── what calls are sent with ────────────────────────────────────


class TestState:
    """Nothing is carried from call to call but what is meant to be: modules and functools.cache."""

    @pytest.mark.parametrize("habit", [
        "a bound method", "a closure", "a mutable default", "a global", "an attribute",
        "a nonlocal", "a keyword default", "an array", "a large array", "a builtin method",
        "a function that another one calls", "a partial"])
    def test_nothing_is_carried_on(self, local, habit):
        class Simulation:
            def __init__(self):
                self.seen = []

            def run(self, n):
                self.seen.append(n)
                return len(self.seen)

        seen, count, small, large = [], 0, numpy.zeros(3), numpy.zeros(300_000)

        def attribute(n):
            attribute.count = getattr(attribute, "count", 0) + 1
            return attribute.count

        def nonlocal_(n):
            nonlocal count
            count += 1
            return count

        def array(which):
            def use(n):
                which[0] += 1
                return int(which[0])
            return use

        def indirect(n):
            return attribute(n)

        space = {"COUNT": 0}
        exec("def global_(n):\n    global COUNT\n    COUNT += 1\n    return COUNT", space)
        call = {
            "a bound method": Simulation().run, "a closure": lambda n: seen.append(n) or len(seen),
            "a mutable default": lambda n, seen=[]: seen.append(n) or len(seen),
            "a global": space["global_"], "an attribute": attribute, "a nonlocal": nonlocal_,
            "a keyword default": lambda n, *, seen=[]: seen.append(n) or len(seen),
            "an array": array(small), "a large array": array(large),
            "a builtin method": [1, 1, 1].pop, "a partial": functools.partial(remember, seen=[]),
            "a function that another one calls": indirect}[habit]
        pool = local("1/:")
        assert [pool.submit(call, 0).result(PATIENCE) for _ in range(9)] == [1] * 9
        for chunksize in (None, 1, 3):      # a map has one function in each slot, and no more
            found = list(pool.map(call, [0] * 3, chunksize=chunksize))
            assert found == [1, 2, 3] or habit == "a builtin method" and found == [1] * 3

    def test_what_is_kept(self, local, by_name):
        """A function of which nothing can have changed is unpickled once."""
        pool, factor = local("1/:"), 3
        assert pool.submit(remember, 1).result(PATIENCE) == 1     # a module keeps its own state
        assert pool.submit(remember, 1).result(PATIENCE) == 2

        def who(n):
            return id(sys._getframe().f_code), n * factor

        assert len(set(pool.map(who, [1] * 20))) == 1


# What a function is made of, and then a change of it; `f()` tells.
CHANGES = {
    "a global": ("n = 1\ndef f(): return n", "n = 2"),
    "a global that goes": ("n = None\ndef f():\n try: return n\n except NameError: return 0",
                           "del n"),
    "a global that hides a builtin": ("def f(): return len('ab')", "len = str"),
    "a list": ("n = [1]\ndef f(): return n", "n.append(2)"),
    "a dictionary": ("n = {}\ndef f(): return n", "n[1] = 2"),
    "a set": ("n = set()\ndef f(): return n", "n.add(2)"),
    "a bytearray": ("n = bytearray(1)\ndef f(): return n", "n[0] = 2"),
    "an array": ("import numpy\nn = numpy.zeros(2)\ndef f(): return n.tolist()", "n[0] = 2"),
    "a tuple's list": ("n = ([1],)\ndef f(): return n", "n[0].append(2)"),
    "an instance": ("class C: a = 1\nc = C()\ndef f(): return c.a", "c.a = 2"),
    "a class": ("class C: a = 1\ndef f(): return C.a", "C.a = 2"),
    "a method": ("class C:\n def m(self): return 1\ndef f(): return C().m()",
                 "C.m = lambda self: 2"),
    "a function in it": ("def g(): return 1\ndef f(): return g()", "def g(): return 2"),
    "a global further down": ("n = 1\ndef h(): return n\ndef g(): return h()\n"
                              "def f(): return g()", "n = 2"),
    "a default further down": ("def g(n=1): return n\ndef f(): return g()",
                               "g.__defaults__ = (2,)"),
    "a default": ("def f(n=1): return n", "f.__defaults__ = (2,)"),
    "a default's list": ("def f(n=[1]): return n", "f.__defaults__[0].append(2)"),
    "a keyword's default": ("def f(*, n=1): return n", "f.__kwdefaults__['n'] = 2"),
    "its code": ("def f(): return 1", "f.__code__ = (lambda: 2).__code__"),
    "the code further down": ("def g(): return 1\ndef f(): return g()",
                              "g.__code__ = (lambda: 2).__code__"),
    "an attribute": ("def f(): return 1\nf.a = 1\ng = f\ndef f(): return g.a", "g.a = 2"),
    "its name": ("import sys\ndef f(): return f.__name__", "f.__name__ = 'g'"),
    "its text": ("def f(): return f.__doc__", "f.__doc__ = 'new'"),
    "an annotation": ("def f() -> int: return f.__annotations__['return']",
                      "f.__annotations__['return'] = str"),
    "a cell": ("def outer():\n n = 1\n def change():\n  nonlocal n\n  n = 2\n"
               " return (lambda: n), change\nf, change = outer()", "change()"),
    "a cell's list": ("def outer():\n n = []\n return (lambda: n), n.append\n"
                      "f, change = outer()", "change(1)"),
    "an empty cell": ("def outer():\n def change():\n  nonlocal n\n  n = 2\n"
                      " def f():\n  try: return n\n  except NameError: return 0\n n = 1\n del n\n"
                      " return f, change\nf, change = outer()", "change()"),
    "a module of its own": ("import types\nm = types.ModuleType('m')\nm.a = 1\n"
                            "def f(): return m.a", "m.a = 2"),
    "a partial": ("import functools\ng = functools.partial(lambda n: n, [1])\n"
                  "def f(): return g()", "g.args[0].append(2)"),
    "a bound method": ("class C:\n n = 1\n def m(self): return self.n\nc = C()\ng = c.m\n"
                       "def f(): return g()", "c.n = 2"),
    "what a cache wraps": ("import functools\nn = 1\n@functools.cache\ndef g(): return n\n"
                           "def f(): return g()", "n = 2\ng.cache_clear()"),
    "a big number": ("n = 10 ** 30\ndef f(): return n", "n = 10 ** 30 + 1"),
}


@pytest.fixture
def module():
    """A module whose functions go by value, like those of a script."""
    module = types.ModuleType("a_script")
    sys.modules["a_script"] = module
    cloudpickle.register_pickle_by_value(module)
    yield module
    cloudpickle.unregister_pickle_by_value(module)
    del sys.modules["a_script"]


class TestWhatIsSentAgain:
    @pytest.mark.parametrize("kind", CHANGES)
    @pytest.mark.parametrize("where", ["module", "elsewhere"])
    def test_what_changes_is(self, shared, module, kind, where):
        """Whatever it is, what is called next is the function as it was when it was submitted."""
        pool, (setup, change) = shared("slot"), CHANGES[kind]
        space = vars(module) if where == "module" else {"__name__": "__main__"}
        exec(setup, space)
        sent = []
        for _ in range(3):
            for step in (change, "0"):
                self.submit(pool, space["f"], sent)
                exec(step, space)
            exec(setup, space)
            self.submit(pool, space["f"], sent)
        for future, expected in sent:
            assert future.result(PATIENCE) == expected

    def submit(self, pool, f, sent):
        def look():
            return repr(f()), f.__name__, f.__doc__, repr(f.__annotations__)
        sent += (pool.submit(look), look()), (pool.submit(f), copy.deepcopy(f()))

    def test_what_does_not_is_not(self, module):
        """A script's functions are one each, however often they are submitted."""
        exec("""if True:
            import math, functools, os.path
            N, S, T = 1000, "text", (1, (2.0, None))
            @functools.cache
            def load(n: int = 3) -> list:
                return [N] * n
            def helper(x):
                return math.sqrt(x) + N
            def f(x, y=2):
                return helper(x) if x else f(os.path.join(S, str(T)), load())
            def make(k):
                return lambda x: helper(x) + k
            """, vars(module))
        functions = executors._FunctionCache()
        first = functions.get(module.f)
        assert all(functions.get(module.f) is first for _ in range(5))
        one = functions.get(module.make(1))
        assert functions.get(module.make(1)) is one is not functions.get(module.make(2))

    def test_little_is_kept_alive(self):
        """Of long closures nothing, and of short ones no more than a few hundred."""
        functions, living = executors._FunctionCache(), weakref.WeakSet()
        for n in range(2000):
            exec("def f(): return n", space := {"__name__": "__main__", "n": n})
            functions.get(space["f"])
            living.add(space["f"])
            space.clear()
        gc.collect()
        assert len(functions._pickles._cached) <= executors.MAX_KNOWN_FUNCTIONS[0]
        assert executors.MAX_KNOWN_FUNCTIONS[0] >= len(living) - 1
        exec("def f(): return n", space := {"__name__": "__main__", "n": "x" * 10 ** 6})
        functions.get(space["f"])
        gone = weakref.ref(space.pop("f"))
        gc.collect()
        assert gone() is None


SCRIPT = """
    {future}
    import concurrent.futures, functools, os, pickle, sys
    import multiprocessing as mp
    from pools import get, make
    {setup}
    if __name__ == "__main__":
        with make() as pool:
            {main}
"""

POOLS = """
    import concurrent.futures, multiprocessing, os, sys
    import executors

    KIND = os.environ["KIND"]

    def make():
        if KIND == "std":       # what others are to be like
            return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
        if KIND in ("spawn", "forkserver"):
            return executors.ProcessExecutor(1, mp_context=multiprocessing.get_context(KIND))
        if KIND == "process":
            return executors.ProcessExecutor(1)
        if KIND == "pipe":
            return executors.RemoteExecutor(["1/:"], show_status=False)
        return executors.RemoteExecutor(
            [f"1/alpha python={sys.executable}"], show_status=False,
            ssh_options=["-F", os.environ["SSH_CONFIG"]])

    def get(future):
        try:
            return future.result(30)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
"""


def needs(module):
    """Skip a test if a package that has no wheel for every Python is not there."""
    return pytest.mark.skipif(not importlib.util.find_spec(module), reason=f"needs {module}")


class TestTheScript:
    """A task finds the script that its author wrote, as in a process pool of the standard library.

    Each test runs a script on several pools of one process or slot each.
    """

    BY_NAME = "std", "process", "pipe"      # the script does nothing that the first cannot
    ALL = "process", "pipe"
    FRESH = "spawn", "forkserver"           # whose processes import the script

    @pytest.fixture
    def check(self, tmp_path, request):
        def check(setup, main, expected, kinds=self.BY_NAME, future=""):
            """Run a script: in `main`, `pool` is a pool. Assert that it prints the same on all."""
            (tmp_path / "pools.py").write_text(textwrap.dedent(POOLS))
            text = textwrap.dedent(SCRIPT).format(
                future=future, setup=textwrap.dedent(setup),
                main=textwrap.indent(textwrap.dedent(main), " " * 8).strip())
            (tmp_path / "main.py").write_text(text)
            env = {"PYTHONPATH": HERE}
            if "ssh" in kinds:
                env["SSH_CONFIG"] = request.getfixturevalue("sshds")[0].path("config")
            for kind in kinds:
                done = run([sys.executable, "main.py"], cwd=tmp_path, env={**env, "KIND": kind})
                printed = done.stdout.splitlines()
                assert printed == expected.splitlines(), (kind, printed, done.stderr[-2000:])
        return check

    def test_a_proxy_that_is_not_used_is_left_alone(self, check):
        check("""
            class Proxy:
                @property
                def __class__(self):
                    raise RuntimeError("not set up yet")
            proxy = Proxy()
            def work(n):
                return n + 1
            """, "print(get(pool.submit(work, 1)), get(pool.submit(lambda: work(2))))", "2 3",
              kinds=self.ALL)

    # The rows of issue 20.

    def test_a_result_never_changes_a_class_here(self, check):
        check("""
            class Config:
                level = 1
            def work():
                Config.level = 99
                return Config()
            """, """
            get(pool.submit(work))
            Config.level = 5
            found = get(pool.submit(work))
            print(Config.level, type(found) is Config, found.level)
            """, "5 True 5", [*self.BY_NAME, "ssh"])

    def test_sentinels_keep_their_identity(self, check):
        check("""
            import dataclasses, inspect
            from dataclasses import dataclass, field, fields
            @dataclass
            class Base:
                a: int
                b: list = field(default_factory=list)
                _: dataclasses.KW_ONLY
                c: int = 3
            def look():
                return ([one.default is dataclasses.MISSING for one in fields(Base)],
                        [one.default_factory is dataclasses.MISSING for one in fields(Base)],
                        [one.kw_only for one in fields(Base)],
                        all(one._field_type is dataclasses._FIELD for one in fields(Base)))
            def derive():
                @dataclass
                class Child(Base):
                    d: int = 4
                try:
                    Child()
                except TypeError as error:
                    return "required" in str(error), Child(1, c=2).c
            def inspected():
                parameter = inspect.signature(Base).parameters["a"]
                return parameter.default is inspect.Parameter.empty
            """, """
            for function in look, derive, inspected:
                print(get(pool.submit(function)))
            """, "([True, True, False], [True, False, True], [False, False, True], True)\n"
                 "(True, 2)\nTrue", [*self.BY_NAME, "ssh"])

    def test_a_generator_goes_on(self, check):
        """Whatever function, method, partial or object draws: there is one."""
        numbers = [float(one) for one in numpy.random.default_rng(1).random(21)]
        check("""
            import numpy
            rng = numpy.random.default_rng(1)
            def draw(*_):
                return float(rng.random())
            class Drawer:
                def draw(self):
                    return float(rng.random())
                __call__ = draw
                @classmethod
                def of_class(cls):
                    return cls().draw()
            drawer = Drawer()
            """, """
            ways = draw, functools.partial(draw, 1), Drawer(), drawer, drawer.draw, Drawer.of_class
            for way in ways:
                for _ in range(3):
                    print(get(pool.submit(way)))
            print(*pool.map(draw, range(3)), sep="\\n")
            """, "\n".join(map(str, numbers)), [*self.BY_NAME, "ssh"])

    def test_a_generator_goes_on_beside_what_changes(self, check):
        numbers = [random.Random(1)]
        numbers = [numbers[0].random() for _ in range(8)]
        check("""
            import random
            rng = random.Random(1)
            level = 0
            def leveled():
                return level, rng.random()
            def draw():
                return rng.random()
            """, """
            sent = []
            for level in range(4):
                sent += pool.submit(leveled), pool.submit(draw), pool.submit(lambda: level)
            print([one if one.__class__ is float else one[1]
                   for one in map(get, sent) if one.__class__ is not int])
            print([get(one) for one in sent[2::3]], [get(one)[0] for one in sent[::3]])
            """, f"{numbers}\n[0, 1, 2, 3] [0, 1, 2, 3]", ["pipe"])

    def test_there_is_one_world(self, check):
        check("""
            state = None
            def callback():
                return state
            def work(callback_):
                global state
                state = 42
                return callback_(), callback_ is callback
            """, "print(get(pool.submit(work, callback)), state)", "(42, True) None")

    def test_a_global_may_be_empty(self, check):
        """All that is empty is something, and not an absent name."""
        check("""
            EMPTY, NONE, TEXT, ROWS, DONE = b"", None, "", (), False
            def work():
                return EMPTY, NONE, TEXT, ROWS, DONE
            """, "print(get(pool.submit(work)))", "(b'', None, '', (), False)")

    def test_a_task_unpickles_what_the_script_has(self, check):
        check("""
            class Thing:
                def __init__(self, n):
                    self.n = n
                def __eq__(self, other):
                    return isinstance(other, Thing) and self.n == other.n
            class Other:
                pass
            def load(data, thing):
                found = pickle.loads(data)
                return found == thing, isinstance(found, Thing), found
            def name(data):         # which does not say that it needs a class
                return type(pickle.loads(data)).__name__
            """, """
            same, is_one, found = get(pool.submit(load, pickle.dumps(Thing(3)), Thing(3)))
            print(same, is_one, type(found) is Thing)
            print(get(pool.submit(name, pickle.dumps(Other()))))
            print(get(pool.submit(pickle.loads, pickle.dumps(Thing(2)))) == Thing(2))
            print(get(pool.submit(name, b"c__main__\\nNope\\n."))[:14])
            """, "True True True\nOther\nTrue\nAttributeError", [*self.BY_NAME, "ssh"])

    def test_a_task_pickles_and_forks(self, check):
        check("""
            class Thing:
                def __init__(self, n):
                    self.n = n
            def square(n):
                return Thing(n * n)
            def dump():
                data = pickle.dumps([Thing(1), Thing, square])
                found = pickle.loads(data)
                return type(found[0]) is Thing, found[1] is Thing, found[2] is square
            def fork():
                with mp.get_context("fork").Pool(1) as inner:
                    return [type(one) is Thing and one.n for one in inner.map(square, range(3))]
            def std():
                context = mp.get_context("fork")
                with concurrent.futures.ProcessPoolExecutor(1, context) as inner:
                    return [type(one) is Thing and one.n for one in inner.map(square, range(3))]
            """, "print(*[get(pool.submit(one)) for one in (dump, fork, std)])",
              "(True, True, True) [0, 1, 4] [0, 1, 4]", [*self.BY_NAME, "ssh"])

    def test_pools_in_a_task(self, check):
        """Of this project's, too: what came here goes on to theirs, and back."""
        check("""
            import executors
            class Thing:
                def __init__(self, n):
                    self.n = n
            def square(thing):
                return Thing(thing.n ** 2)
            def inner(kind, *args):
                with kind(*args) as pool:
                    found = get(pool.submit(square, Thing(3)))
                    return type(found) is Thing, found.n, get(pool.submit(lambda: Thing(2))).n
            """, """
            print(get(pool.submit(inner, executors.RemoteExecutor, ["1/:"])))
            print(get(pool.submit(inner, executors.ProcessExecutor, 1)))
            """, "(True, 9, 2)\n(True, 9, 2)")

    @pytest.mark.parametrize("kind", [*BY_NAME, "ssh", *FRESH])
    def test_names_come_home(self, check, kind):
        check("""
            import typing
            UserId = typing.NewType("UserId", int)
            P = typing.ParamSpec("P")
            T = typing.TypeVar("T")
            K = typing.TypeVar("K", bound=int)
            class Sentinel:
                def __init__(self, name):
                    self.name = name
                def __reduce__(self):
                    return self.name
            NOT_GIVEN = Sentinel("NOT_GIVEN")
            class Slotted(Sentinel):
                __slots__ = ("more",)
                def __init__(self, name):
                    super().__init__(name)
                    self.more = 1
            SLOTTED = Slotted("SLOTTED")
            class Box(typing.Generic[T]):
                pass
            def use(given=NOT_GIVEN):
                return (given is NOT_GIVEN, UserId(3), P.__name__, K.__bound__.__name__,
                        SLOTTED.more, SLOTTED.name)
            def take(*found):
                return [a is b for a, b in zip(found, [NOT_GIVEN, UserId, P, T, K, SLOTTED])]
            def give():
                return NOT_GIVEN, UserId, P, T, K, SLOTTED
            """, """
            print(get(pool.submit(use)), all(get(pool.submit(take, *give()))))
            print(all(a is b for a, b in zip(get(pool.submit(give)), give())))
            print(get(pool.submit(eval, "Box[int]", {"Box": Box})) == Box[int])
            """, "(True, 3, 'P', 'int', 1, 'SLOTTED') True\nTrue\nTrue", [kind])

    @needs("cachetools")
    def test_what_cachetools_has_cached(self, check):
        check("""
            import cachetools
            calls = []
            @cachetools.cached({})
            def slow(n):
                calls.append(n)
                return n * 2
            def work():
                return [slow(3), slow(3)], len(calls)
            """, "print(*[get(pool.submit(*call)) for call in [(work,), (slow, 4), (work,)]])",
              "([6, 6], 1) 8 ([6, 6], 2)", [*self.BY_NAME, "ssh", *self.FRESH])

    def test_annotations_are_resolved(self, check):
        check("""
            import typing
            from dataclasses import dataclass
            class Unit:
                pass
            @dataclass
            class Thing:
                unit: Unit
                others: list[Other]
            class Other:
                pass
            def function(unit: Unit) -> Other: ...
            def hints():
                return typing.get_type_hints(Thing), typing.get_type_hints(function)
            """, """
            found = get(pool.submit(hints))
            print(found == hints(), found[0]["unit"] is Unit, found[1]["return"] is Other)
            """, "True True True", [*self.BY_NAME, "ssh"], "from __future__ import annotations")

    @pytest.mark.parametrize("kind", [*BY_NAME, "ssh", *FRESH])
    def test_slots(self, check, kind):
        check("""
            from dataclasses import dataclass
            @dataclass(slots=True)
            class A:
                x: int
            @dataclass(slots=True)
            class B(A):
                y: int = 2
            @dataclass(slots=True, frozen=True, kw_only=True)
            class F:
                z: int
            class S:
                __slots__ = ("a", "__p", "__dict__")
                def __init__(self):
                    self.a, self.__p = 1, 2
                def get(self):
                    return self.a, self.__p
            class T(S):
                __slots__ = ["b"]
            class U:
                __slots__ = "one"
            class V(U):
                __slots__ = ("__weakref__",)
            class W:
                __slots__ = {"documented": "so"}
            TYPES = A, B, F, S, T, U, V, W
            def work(*given):
                t, u, v, w = T(), U(), V(), W()
                t.b = t.extra = u.one = v.one = w.documented = 4
                try:
                    A(1).nope = 1
                except AttributeError:
                    return A(1), B(1), F(z=3), given[0], t, u, v, w
            """, """
            found = get(pool.submit(work, S()))
            print(*found[:3], found[3].get(), found[4].get(), found[4].b, found[4].extra)
            print(found[5].one, found[6].one, found[7].documented, [*map(type, found)] == [*TYPES])
            """, "A(x=1) B(x=1, y=2) F(z=3) (1, 2) (1, 2) 4 4\n4 4 4 True", [kind])

    @pytest.mark.parametrize("kind", [*BY_NAME, "ssh", *FRESH])
    def test_the_script_catches_its_own_exceptions(self, check, kind):
        check("""
            class MyErr(Exception):
                def __init__(self, code):
                    super().__init__(code)
                    self.code = code
            class Two(MyErr, KeyError):
                def __init__(self, a, b):
                    super().__init__(a)
                    self.b = b
                def __reduce__(self):
                    return Two, (self.code, self.b)
            def bad(n):
                raise MyErr(n)
            def worse(n):
                try:
                    bad(n)
                except MyErr as error:
                    raise ValueError(error, Two(n, n)) from error
            """, """
            get(pool.submit(len, "first"))
            for n in range(2):
                try:
                    pool.submit(bad, n).result()
                except MyErr as error:
                    print("caught", error.code)
            try:
                list(pool.map(bad, [2]))
            except MyErr as error:
                print("caught", error.code)
            found = pool.submit(worse, 3).exception().args
            print(type(found[0]) is MyErr, type(found[1]) is Two, found[1].b)
            """, "caught 0\ncaught 1\ncaught 2\nTrue True 3", [kind])

    STATE = {
        "functools": ("""
            import weakref
            @functools.singledispatch
            def show(x):
                return "any"
            class A:
                known = weakref.WeakValueDictionary()
                def __init__(self, n):
                    A.known[n] = self
            @show.register
            def _(x: int):
                return "int"
            @show.register(A)
            def _(x):
                return "A"
            kept = A(1)
            def work():
                return show(kept), show(1), show(""), len(A.known)
            """, "('A', 'int', 'any', 1)"),
        "sqlalchemy": ("""
            from sqlalchemy import create_engine, select
            from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
            class Base(DeclarativeBase):
                pass
            class User(Base):
                __tablename__ = "users"
                id: Mapped[int] = mapped_column(primary_key=True)
            def work():
                engine = create_engine("sqlite://")
                Base.metadata.create_all(engine)
                with Session(engine) as session:
                    session.add(User(id=3))
                    session.commit()
                    return session.scalars(select(User.id)).one()
            """, "3"),
        "pydantic": ("""
            import pydantic
            @pydantic.validate_call
            def twice(n: int):
                return n * 2
            class Model(pydantic.BaseModel):
                a: int
            def work():
                return twice("4"), Model(a="3")
            """, "(8, Model(a=3))"),
        "rich": ("""
            import rich.console
            console = rich.console.Console()
            def work():
                with console.capture() as captured:
                    console.print("hi")
                return captured.get().strip()
            """, "hi"),
        "httpx": ("""
            import httpx
            client = httpx.Client()
            def work():
                return client.build_request("GET", "http://host/").url.host
            """, "host"),
        "msgspec": ("""
            import msgspec
            class P(msgspec.Struct):
                x: int
            class Q(P, frozen=True, tag=True):
                y: float = 1.0
            def work():
                return msgspec.json.decode(b'{"x": 3}', type=P), Q(2)
            """, "(P(x=3), Q(x=2, y=1.0))"),
        "threading": ("""
            import threading
            lock = threading.Lock()
            def work():
                with lock:
                    return "locked"
            """, "locked")}

    @pytest.mark.parametrize("kind", ["std", "process", *FRESH])
    @pytest.mark.parametrize("what", [pytest.param(one, marks=needs(one)) for one in STATE])
    def test_what_cannot_be_pickled_is_there_already(self, check, what, kind):
        setup, expected = self.STATE[what]
        check(setup, "print(get(pool.submit(work)))", expected, [kind])

    @pytest.mark.parametrize("what", [
        pytest.param("msgspec", marks=needs("msgspec")), "threading"])
    def test_what_cannot_be_sent_is_named(self, check, what):
        check(self.STATE[what][0], """
            try:
                pool.submit(work)
            except TypeError as error:
                words = str(error)
                print(words.startswith("work cannot be sent: "), "which it uses" in words,
                      "module of its own" in words, "lock" in words)
            """, {"msgspec": "True True True False",
                  "threading": "True True False True"}[what], ["pipe"])

    @needs("pydantic")
    def test_models(self, check):
        check("""
            import pydantic
            class Model(pydantic.BaseModel):
                a: int
                inner: list["Model"] = []
            def work(model):
                return Model(a=model.a + 1, inner=[model])
            """, """
            found = get(pool.submit(work, Model(a="1")))
            print(found == Model(a=2, inner=[Model(a=1)]), type(found) is Model)
            """, "True True", [*self.BY_NAME, "ssh"])

    def test_a_module_that_goes_by_value(self, check, tmp_path):
        (tmp_path / "module.py").write_text(textwrap.dedent("""
            N = 0
            def f(): return N
            class A:
                def __init__(self): self.n = N
            """))
        check("""
            import cloudpickle, module
            cloudpickle.register_pickle_by_value(module)
            """, """
            sent = []
            for n in range(1, 6):
                module.N = n
                sent.append(pool.submit(module.f))
            found = get(pool.submit(module.A))
            print([get(one) for one in sent], found.n, type(found) is module.A)
            """, "[1, 2, 3, 4, 5] 5 True", [*self.ALL, "ssh"])

    def test_what_is_large_goes_with_its_map(self, check):
        check("""
            import numpy
            @functools.cache
            def load():
                return os.urandom(4)
            def use(_):
                return load()
            def memory():
                with open("/proc/self/statm") as file:
                    return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
            """, """
            model = {*pool.map(use, range(3))}
            before = get(pool.submit(memory))
            for n in range(10):
                text, array, table = os.urandom(10**7), numpy.full(10**6, n), [os.urandom(10**7)]
                def carry(_):
                    return len(text) + len(array) + len(table[0])
                assert {*pool.map(carry, range(3))} == {21 * 10**6}
                closure = (lambda data: lambda _: len(data))(os.urandom(10**7))
                assert {*pool.map(closure, range(3))} == {10**7}
            get(pool.submit(use, 1))
            print(get(pool.submit(memory)) - before < 35, {*pool.map(use, range(3))} == model)
            """, "True True", ["pipe"])

    # What is like them.

    def test_identity(self, check):
        """Of sentinels, of data that two globals share, of what refers to itself."""
        check("""
            MISSING = object()
            def f(x=MISSING, *, y=MISSING):
                return x is MISSING, y is MISSING
            def closure():
                local = object()
                return lambda x=local: x is local
            inner = closure()
            class Holder:
                none = MISSING
                def method(self, x=MISSING):
                    return x is self.none is MISSING
            partial = functools.partial(f)
            table = {"missing": MISSING}
            table["self"] = table
            alias = table
            def defaults():
                return f(), inner(), Holder().method(), partial(), table["missing"] is MISSING
            def tables():
                return alias is table is table["self"], [] is table
            class Model:
                def __init__(self):
                    self.weights = [0]
            class Optimizer:
                def __init__(self, model):
                    self.model, self.weights = model, model.weights
            model = Model()
            optimizer = Optimizer(model)
            def loss():
                return model.weights[0]
            def step():
                optimizer.weights[0] += 1
                return optimizer.model is model, optimizer.weights is model.weights
            appended = []
            def append(to=appended):
                to.append(1)
                return len(to), to is appended
            appended_to = functools.partial(append, appended)
            def both():
                return appended_to(), append()
            """, """
            print(get(pool.submit(defaults)), get(pool.submit(tables)))
            print(*[get(pool.submit(one)) for one in (loss, step, step, loss, step, loss)])
            print(get(pool.submit(both)), get(pool.submit(append)))
            """, "((True, True), True, True, (True, True), True) (True, False)\n"
                 "0 (True, True) (True, True) 2 (True, True) 3\n"
                 "((1, True), (2, True)) (3, True)")

    def test_kinds_of_classes(self, check):
        check("""
            import abc, collections, dataclasses, enum, typing
            class Node:
                def leaf(self):
                    return Leaf()
            class Leaf(Node):
                parent = Node
                def back(self):
                    return super().leaf(), __class__
            Node.child = Leaf
            class Color(enum.Enum):
                RED = 1
                def low(self):
                    return self.name.lower()
            class Bits(enum.IntFlag):
                A = enum.auto()
                B = enum.auto()
            class Point(typing.NamedTuple):
                x: int
                y: float = 2.0
            Pair = collections.namedtuple("Pair", "a b", defaults=[3])
            T = typing.TypeVar("T")
            class Stack(typing.Generic[T]):
                items: list = []
            class Shape(abc.ABC):
                @abc.abstractmethod
                def area(self): ...
            class Square(Shape):
                def area(self):
                    return super().area() or 4
            @Shape.register
            class Virtual:
                pass
            @typing.runtime_checkable
            class HasArea(typing.Protocol):
                def area(self) -> int: ...
            class Typed(typing.TypedDict):
                k: int
            @dataclasses.dataclass(frozen=True, kw_only=True, order=True)
            class Data:
                a: int
                b: list = dataclasses.field(default_factory=list, compare=False)
            class Outer:
                class Inner:
                    pass
            def work():
                leaf = Leaf()
                yield_, own = leaf.back()
                try:
                    Shape()
                except TypeError:
                    return (type(yield_) is Leaf is own is Node.child, leaf.parent is Node,
                            Color(1) is Color.RED, Color.RED.low(), Bits.A | Bits.B == 3,
                            Point(1), Pair(1), Stack[int]().items, Square().area(),
                            isinstance(Virtual(), Shape), isinstance(Square(), HasArea),
                            Typed(k=1), Data(a=1) < Data(a=2))
            def give():
                return (Color.RED, Bits.A, Leaf, Outer.Inner, Node.leaf, Square.area, Shape,
                        Point, Pair, HasArea, Data), (Point(1), Pair(1), Data(a=1), Stack[int])
            """, """
            print(str(get(pool.submit(work))) == str(work()))
            same, equal = get(pool.submit(give))
            print([a is b for a, b in zip(same, give()[0])].count(False), equal == give()[1])
            print(type(get(pool.submit(Outer.Inner))) is Outer.Inner)
            """, "True\n0 True\nTrue")

    def test_hooks_of_classes_run_once(self, check):
        """They are in no slot what they are not here; those that need arguments had them here."""
        check("""
            import abc
            class Plugin:
                keys = []
                plugins = {}
                def __init_subclass__(cls, *, key, **more):
                    super().__init_subclass__(**more)
                    Plugin.keys.append(key)
                    Plugin.plugins[key] = cls
            class One(Plugin, key="one"):
                pass
            class Two(One, key="two"):
                pass
            class Meta(abc.ABCMeta):
                known = {}
                def __new__(meta, name, bases, space, *, tag):
                    cls = super().__new__(meta, name, bases, space)
                    meta.known[name] = cls
                    return cls
                def __init__(cls, *args, tag):
                    super().__init__(*args)
                    cls.inits = getattr(cls, "inits", 0) + 1
                def __call__(cls):
                    made = super().__call__()
                    made.is_called = True
                    return made
            class M(metaclass=Meta, tag="m"):
                pass
            class N(M, tag="n"):
                pass
            def work(_):
                class Local(Plugin, key="local"):
                    pass
                class Last(N, tag="last"):
                    pass
                return (Plugin.keys, Plugin.plugins["two"] is Two, Meta.known["N"] is N, N.inits,
                        N().is_called, Last.inits, sorted(Meta.known))
            """, """
            print(get(pool.submit(work, Two())))
            One.changed = True
            print(type(get(pool.submit(Two))) is Two, Plugin.keys, sorted(Meta.known))
            """, "(['one', 'two', 'local'], True, True, 2, True, 3, ['Last', 'M', 'N'])\n"
                 "True ['one', 'two'] ['M', 'N']")

    def test_what_calls_leave(self, check):
        """In globals, defaults, closures, attributes of functions and classes: as in a process."""
        check("""
            import collections
            counts = collections.Counter()
            def counted(function):
                @functools.wraps(function)
                def wrapper(*args):
                    counts[function.__name__] += 1
                    return function(*args), counts[function.__name__]
                return wrapper
            @counted
            def add(a, b):
                return a + b
            def default(x, seen=[]):
                seen.append(x)
                return len(seen)
            def attribute():
                attribute.calls = getattr(attribute, "calls", 0) + 1
                return attribute.calls
            total = 0
            def globally():
                global total
                total += 1
                return total
            def counter():
                n = 0
                def count():
                    nonlocal n
                    n += 1
                    return n
                return count
            count = counter()
            def closure():
                return count()
            class A:
                n, items = 0, []
                def method(self):
                    A.n += 1
                    self.items.append(1)
                    return A.n + len(self.items)
            a = A()
            def even(n):
                return n == 0 or odd(n - 1)
            def odd(n):
                return n != 0 and even(n - 1)
            """, """
            for call in [(add, 1, 2), (default, 1), (attribute,), (globally,), (closure,),
                         (a.method,)]:
                print([get(pool.submit(*call)) for _ in range(3)])
            print(list(pool.map(default, range(3))), get(pool.submit(even, 10)))
            print(total, A.n, A.items, default.__defaults__)
            """, "[(3, 1), (3, 2), (3, 3)]\n[1, 2, 3]\n[1, 2, 3]\n[1, 2, 3]\n[1, 2, 3]\n[2, 4, 6]\n"
                 "[4, 5, 6] True\n0 0 [] ([],)")

    def test_what_is_sent_with_each_call(self, check):
        """Partials, bound methods and callable objects: no call sees what another has left."""
        check("""
            class Sum:
                n = 0
                def add(self):
                    self.n += 1
                    return self.n
                __call__ = add
            total = Sum()
            def append(to):
                to.append(1)
                return len(to)
            items = []
            """, """
            ways = total, total.add, Sum(), functools.partial(append, items)
            print([[get(pool.submit(way)) for _ in range(2)] for way in ways])
            print([get(pool.submit(append, items)) for _ in range(2)])
            """, "[[1, 1], [1, 1], [1, 1], [1, 1]]\n[1, 1]")

    def test_each_call_sees_what_was_current_at_its_submit(self, check):
        check("""
            N, data = 0, [0]
            def f():
                return N
            def g():
                return N, f(), helper()
            def helper():
                return 0
            class A:
                level = 0
                def method(self):
                    return A.level, N, data[0], getattr(A, "extra", None)
            def gone():
                try:
                    return there
                except NameError:
                    return None
            """, """
            sent = []
            for n in range(20):
                N, A.level, data[0] = n, n, n
                exec(f"def helper(): return {n}")
                if n % 2:
                    A.extra = there = n
                else:
                    A.__dict__.get("extra") and delattr(A, "extra")
                    globals().pop("there", None)
                odd = n if n % 2 else None
                for call, expected in [
                        (f, n), (g, (n, n, n)), (A().method, (n, n, n, odd)), (gone, odd),
                        (lambda: (N, f(), data), (n, n, [n])), (functools.partial(f), n),
                        (A().method, (n, n, n, odd))]:
                    sent.append((pool.submit(call), expected))
                N, A.level, data[0] = -1, -1, -1
            print([(get(one), expected) for one, expected in sent if get(one) != expected])
            """, "[]", ["pipe"])

    def test_a_class_of_another_content(self, check):
        """Tasks that wait have the old one."""
        check("""
            import time
            class A:
                def method(self):
                    return "old"
            def work(a):
                time.sleep(0.02)
                return A(), A().method(), a.method(), isinstance(a, A)
            old = A
            """, """
            before = [pool.submit(work, A()) for _ in range(2)]
            class A:
                def method(self):
                    return "new"
            after = [pool.submit(work, A()) for _ in range(2)]
            mixed = pool.submit(work, old())
            for one in before:
                made, *rest = get(one)
                print(type(made) is old, rest)
            for one in (*after, mixed):
                made, *rest = get(one)
                print(type(made) is A, rest)
            """, "True ['old', 'old', True]\n" * 2 + "True ['new', 'new', True]\n" * 2
              + "True ['new', 'old', False]", ["pipe"])

    @pytest.mark.parametrize("kind", [*ALL, *FRESH])
    def test_cells_of_a_notebook(self, check, kind):
        check("""
            space = vars(sys.modules["__main__"])
            def cell(text):
                exec(compile(text, "<cell>", "exec"), space)
            """, """
            cell("class P:\\n  def area(self): return 2\\n"
                 "def make_one(): return P()\\n"
                 "def use(p): return p.area()")
            first = get(pool.submit(make_one))
            print(type(first) is P, get(pool.submit(use, first)))
            cell("class P:\\n  def area(self): return 3")
            second = get(pool.submit(make_one))
            print(get(pool.submit(use, P())), get(pool.submit(use, first)))
            cell("class Err(Exception): pass\\ndef work(n): raise Err(n)")
            try:
                pool.submit(work, 1).result()
            except Err as error:
                print("caught", error)
            cell("X = 3\\ndef work(n): return [X * n for _ in range(2)]")
            print(list(pool.map(work, range(2))))
            """, "True 2\n3 2\ncaught 1\n[[0, 0], [3, 3]]", [kind])

    @pytest.mark.parametrize("kind", ["process", "pipe", *FRESH])
    def test_what_stands_under_the_guard(self, check, kind):
        check("", """
            import dataclasses, enum
            class Color(enum.Enum):
                RED = 1
            @dataclasses.dataclass
            class Data:
                color: Color
                def twin(self):
                    return Data(self.color)
            class MyErr(Exception):
                pass
            def twin(data):
                return data.twin(), data.color is Color.RED, isinstance(data, Data)
            def bad():
                raise MyErr(3)
            found, *rest = get(pool.submit(twin, Data(Color.RED)))
            print(type(found) is Data, found == Data(Color.RED), *rest)
            try:
                pool.submit(bad).result()
            except MyErr as error:
                print("caught", error)
            """, "True True True True\ncaught 3", [kind])

    def test_code_that_looks_into_main(self, check):
        check("""
            import unittest.mock
            N = 1
            def helper():
                return "real"
            class A:
                def method(self):
                    return "real"
            def look():
                import __main__
                return __main__.helper is helper, __main__.A is A, __name__, A.__module__
            def attributes():
                import __main__
                return __main__.N, __main__.helper(), sys.modules["__main__"].LATE
            LATE = [2]
            def patched():
                with unittest.mock.patch("__main__.helper", lambda: "mock"), \\
                        unittest.mock.patch.object(A, "method", lambda self: "mock"), \\
                        unittest.mock.patch("__main__.N", 5):
                    return helper(), A().method(), N
            def after():
                return helper(), A().method(), N, globals()["N"], eval("N + 1")
            def by_name(name):      # which it does not say
                return getattr(sys.modules["__main__"], name)()
            """, """
            for function in attributes, look, patched, after:
                print(get(pool.submit(function)))
            print(get(pool.submit(by_name, "helper")), get(pool.submit(by_name, "nope"))[:14])
            """, "(1, 'real', [2])\n(True, True, '__main__', '__main__')\n('mock', 'mock', 5)\n"
                 "('real', 'real', 1, 1, 2)\nreal AttributeError")

    def test_what_comes_back_is_what_is_here(self, check):
        check("""
            class A:
                n = 0
                def method(self):
                    return self.n
                @classmethod
                def make(cls):
                    return cls
            def f():
                return 3
            @functools.lru_cache
            def cached(n):
                return n
            def wrap(function):
                @functools.wraps(function)
                def wrapper():
                    return function()
                return wrapper
            @wrap
            def wrapped():
                return 5
            def give():
                return (f, A, A.method, cached, wrapped, A.make(), functools.partial(f).func), (
                    [A, {"a": A, A: f}], A.make)
            def go(a):
                a.n += 1
                return a
            """, """
            same, equal = get(pool.submit(give))
            print([a is b for a, b in zip(same, give()[0])].count(False), equal == give()[1])
            found = list(pool.map(go, [A() for _ in range(30)]))
            print({*map(type, found)} == {A}, sum(one.n for one in found))
            print(list(pool.map(A.method, found[:3])), type(get(pool.submit(A))) is A)
            """, "0 True\nTrue 30\n[1, 1, 1] True", [*self.BY_NAME, "ssh", *self.FRESH])

    def test_an_initializer(self, tmp_path, check):
        """What it binds and changes stays, whatever arrives later."""
        check("""
            import executors
            state, tags = None, []
            class A:
                level = 0
            def start():
                global state
                state, A.level = "ready", 9
                tags.append(1)
            def look():
                return state, tags, A.level
            """, """
            with executors.RemoteExecutor(["1/:"], show_status=False, initializer=start) as other:
                print(get(other.submit(look)))
                tags.append(2)
                print(get(other.submit(look)), get(other.submit(lambda: look())))
            """, "('ready', [1], 9)\n('ready', [1], 9) ('ready', [1], 9)", ["pipe"])


# ──────────────────────────────────────── faults, for real ────────────────────────────────────────


def remember(n, seen=[]):     # noqa: B006 -- a module keeps its state
    seen.append(n)
    return len(seen)


class TestBlame:
    def test_an_exception_comes_with_its_remote_traceback(self, remote, by_name):
        error = remote.submit(raise_it, ValueError("so far away")).exception(PATIENCE)
        assert type(error) is ValueError and error.args == ("so far away",)
        assert "raise error" in str(error.__cause__) and "in raise_it" in str(error.__cause__)
        assert "run_call" not in str(error.__cause__)

    def test_a_traceback_shows_the_lines_of_a_script(self, tmp_path):
        """The file is known here alone, as that of a notebook's cell is."""
        (tmp_path / "script.py").write_text(textwrap.dedent("""
            import executors, linecache, os
            def inner(n):
                return 1 // n
            work = lambda n: inner(n - 1)
            if __name__ == "__main__":
                linecache.getlines(__file__)
                os.rename(__file__, "away.py")
                with executors.RemoteExecutor("1/:", show_status=False) as pool:
                    print(pool.submit(work, 1).exception().__cause__)
            """))
        done = run([sys.executable, "script.py"], cwd=tmp_path, env={"PYTHONPATH": HERE})
        path = os.path.join(tmp_path, "script.py")
        assert f'  File "{path}", line 5, in <lambda>\n    work = lambda n: inner(n - 1)\n' \
               f'  File "{path}", line 4, in inner\n    return 1 // n\n' in done.stdout, done

    def test_an_argument_that_cannot_be_pickled_is_named(self, remote):
        for args, options, words in (
                ((1, threading.Lock()), {}, "argument 2 of print, a lock, cannot be pickled ("),
                ((), {"value": (n for n in ())}, "argument value of print, a generator, cannot"),
                ((cf.Future(),), {}, "it is a future: pass what its result() returns")):
            with pytest.raises(TypeError, match=re.escape(words)):
                remote.submit(print, *args, **options)
        with pytest.raises(TypeError, match="argument 1 of print, a lock"):
            list(remote.map(print, [1, threading.Lock(), 2]))

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
    def test_no_exception_is_too_base(self, remote, error):
        assert type(remote.submit(raise_it, error).exception(PATIENCE)) is type(error)
        assert remote.submit(neg, 1).result(PATIENCE) == -1

    @pytest.mark.parametrize("make, words", [
        (lambda: raise_it(TwoArguments("x", "y")),
         "exception that cannot be pickled: TwoArguments"),
        (lambda: raise_it(TwoArguments("x", "y")), "x and y"),
        (lambda: raise_it(ValueError(threading.Lock())), "that cannot be pickled: ValueError"),
        (threading.Lock, "result cannot be pickled: TypeError: cannot pickle '_thread.lock'"),
        (lambda: asyncio.sleep(0), "an async function makes one; submit a function that runs it"),
        (lambda: [n for n in [(1 for _ in "a")]], "'generator' object: use a list of what it"),
        (lambda: recurse([]), "result cannot be pickled: RecursionError: maximum recursion"),
        (lambda: BombOnPickle(sys.exit, 1), "result cannot be pickled: SystemExit"),
        (lambda: Bomb(sys.exit, "boom"), "result cannot be unpickled: SystemExit: boom"),
        (lambda: Bomb(raise_it, KeyboardInterrupt()), "cannot be unpickled: KeyboardInterrupt"),
        (lambda: Bomb(divmod, 1, 0), "result cannot be unpickled: ZeroDivisionError"),
        (lambda: Bomb(exit_unless_in_a_slot, parent(parent(parent(os.getpid())))),
         "result cannot be unpickled here: SystemExit"),
    ])
    def test_what_cannot_be_pickled_is_one_clear_error(self, remote, make, words):
        retried = remote.status.retried
        error = remote.submit(make).exception(PATIENCE)
        # Pickler's own words may differ from Python to Python.
        if "recursion" in words and "recursion" in str(error):
            words = "result cannot be pickled"
        assert type(error) is BundleError and words in str(error), str(error)
        assert remote.submit(neg, 1).result(PATIENCE) == -1     # slot, link and threads live on
        assert remote.status.retried == retried

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no groups before")
    def test_the_member_of_a_group_is_blamed(self, remote):
        def work():
            inner = ExceptionGroup("inner", [KeyError(1), TwoArguments("x", "y")])  # noqa: F821
            raise ExceptionGroup("outer", [ValueError("fine"), inner])      # noqa: F821
        error = remote.submit(work).exception(PATIENCE)
        assert type(error) is BundleError
        assert "that cannot be pickled: TwoArguments: x and y" in str(error)

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have no notes before")
    def test_a_queue_of_a_manager_says_what_to_do_instead(self, remote):
        with multiprocessing.Manager() as manager:
            error = remote.submit(neg, manager.Queue()).exception(PATIENCE)
        assert type(error) is BundleError and "arguments cannot be unpickled" in str(error)
        assert "a Queue of a multiprocessing.Manager works only" in str(error)

    @pytest.mark.parametrize("bomb, words", [
        (Bomb(divmod, 1, 0), "ZeroDivisionError"), (Bomb(sys.exit, 4), "SystemExit: 4")])
    def test_arguments_that_cannot_be_unpickled_there(self, remote, bomb, words):
        error = remote.submit(neg, bomb).exception(PATIENCE)
        assert type(error) is BundleError and words in str(error)
        assert "arguments cannot be unpickled on the worker" in str(error)

    def test_arguments_that_cannot_be_pickled_are_told_by_submit(self, remote):
        before = remote.task_count
        with pytest.raises(TypeError, match="lock"):
            remote.submit(neg, threading.Lock())
        assert remote.task_count == before

    @pytest.mark.parametrize("how, name", [
        ("closure", "lock"), ("global", "LOCK"), ("method", "self.pool"), ("map", "lock")])
    def test_what_cannot_be_pickled_is_named_by_its_variable(self, remote, how, name):
        lock = threading.Lock()

        class Holder:
            def __init__(self):
                self.pool = remote

            def work(self):
                return self.pool
        space = {"__name__": "__main__", "LOCK": lock}
        exec("def work(): return LOCK", space)
        call = {"closure": lambda: lock, "map": lambda n: lock, "global": space["work"],
                "method": Holder().work}[how]
        with pytest.raises(TypeError, match=f"cannot be sent: {re.escape(name)}, which it uses"):
            if how == "map":
                remote.map(call, [1])
            else:
                remote.submit(call)

    def test_a_missing_module_is_named_with_its_machine_and_the_remedy(self, remote):
        def needs():
            import no_such_module
            return no_such_module
        error = remote.submit(needs).exception(PATIENCE)
        assert type(error) is ModuleNotFoundError and error.name == "no_such_module"
        text = " ".join([str(error), *getattr(error, "__notes__", ())])
        assert sys.executable in text and "python=" in text

    @pytest.mark.parametrize("how, words", [
        (functools.partial(crash, signal.SIGSEGV), "SIGSEGV"),
        (functools.partial(crash, signal.SIGKILL), "SIGKILL"),
        (lambda: os._exit(3), "exited with status 3"),
        (lambda: os.write(2, b"last words\n") and os._exit(9), "last words")])
    def test_a_death_is_charged_to_its_bundle(self, remote, how, words):
        others = [remote.submit(neg, n) for n in range(20)]
        error = remote.submit(how).exception(PATIENCE)
        assert type(error) is BundleError and len(error.attempts) == 3 and words in str(error)
        assert [future.result(PATIENCE) for future in others] == [-n for n in range(20)]

    def test_it_is_retried_on_another_machine(self, ssh):
        pool = ssh("1/alpha", "1/beta", max_bundle_failures=2)
        error = pool.submit(os._exit, 1).exception(PATIENCE)
        assert sorted(machine for machine, _, _ in error.attempts) == ["alpha", "beta"]

    def test_innocents_in_the_same_pipe_are_not_charged(self, local):
        """Short calls are sent ahead into a slot's pipe; if one kills it, the next lose nothing."""
        pool = local("1/:", max_bundle_failures=1, schedule_backups=False)
        list(pool.map(neg, range(100), chunksize=1))
        futures = [pool.submit(neg, n) if n % 50 else pool.submit(os._exit, 7) for n in range(300)]
        outcomes = [future.exception(PATIENCE) for future in futures]
        assert [n for n, error in enumerate(outcomes) if error] == [0, 50, 100, 150, 200, 250]

    def test_the_first_call_of_a_slot_is_charged_alone(self, local):
        def work(n):
            os._exit(7) if n is None else None
            return n

        pool = local("1/:", max_bundle_failures=1)
        list(pool.map(work, range(20), chunksize=1))
        futures = [pool.submit(work, n) for n in (None, None, *range(20))]
        is_well = [future.exception(PATIENCE) is None for future in futures]
        assert is_well == [False, False, *[True] * 20]

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
        list(pool.map(len, ["x"] * 20, chunksize=1))
        arguments = [numpy.zeros(200_001) if n % 5 == 0 else "x" * n for n in range(200)]
        futures = [pool.submit(len, x) for x in arguments]
        assert [future.result(PATIENCE) for future in futures] == [*map(len, arguments)]
        assert all(worker.died == 0 for worker in pool.status.workers)

    def test_a_function_that_arrives_while_its_slot_is_busy(self, local, tmp_path):
        pool = local("1/:", heartbeat_seconds=0.2)

        def make(array):
            def use(path=None):
                if path:
                    wait_for(path)
                return len(array)
            return use

        list(pool.map(make(numpy.zeros(10)), [None] * 20, chunksize=1))
        busy = pool.submit(make(numpy.zeros(11)), str(tmp_path / "go"))
        behind = pool.submit(make(numpy.zeros(2_000_000)))
        channel, = pool._supervisor.channels.values()
        pings = channel._reads
        until(lambda: channel._reads > pings + 8, "eight answers to pings")
        (tmp_path / "go").touch()
        assert busy.result(PATIENCE) == 11 and behind.result(PATIENCE) == 2_000_000
        assert pool.status.retried == 0

    def test_a_child_that_a_call_forked_is_no_slot(self, remote):
        def fork():
            if os.fork() == 0:
                sys.exit(0)
            return os.wait()[1]

        assert remote.submit(fork).result(PATIENCE) == 0
        assert list(remote.map(len, [bytes(200_000)] * 10)) == [200_000] * 10

    def test_a_child_that_a_call_forked_imports_as_usual(self, remote):
        def fork():
            if os.fork() == 0:
                import colorsys
                os._exit(colorsys.hsv_to_rgb(0, 0, 0)[0] != 0)
            return os.wait()[1]

        assert remote.submit(fork).result(PATIENCE) == 0

    def test_many_large_buffers(self, remote):
        arrays = [numpy.full(10_000, n) for n in range(300)]
        result = remote.submit(lambda a: a, arrays).result(PATIENCE)
        assert [a[0] for a in result] == [*range(300)]

    def test_a_slot_without_room_for_a_function_or_its_arguments(self, local):
        def limit():
            size = int(read("/proc/self/statm").split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + (100 << 20), size + (100 << 20)))
            return os.getpid()

        pool, block = local("1/:"), bytes(200 << 20)
        pid = pool.submit(limit).result(PATIENCE)
        for future in pool.submit(lambda: len(block)), pool.submit(len, block):
            error = future.exception(PATIENCE)
            assert "MemoryError: no memory for a message of 209" in str(error)
        assert pool.submit(os.getpid).result(PATIENCE) == pid

    def test_bundle_timeout(self, ssh, tmp_path):
        pool = ssh("1/alpha", bundle_timeout=1)
        error = pool.submit(touch_and_wait, str(tmp_path / "started")).exception(PATIENCE)
        assert type(error) is executors.BundleTimeoutError and "bundle_timeout=1" in str(error)
        assert pool.submit(neg, 1).result(PATIENCE) == -1

    def test_a_machine_that_cannot_fork_all_its_slots(self, local, tmp_path, caplog):
        """It says so; what it has works, and time-outs begin when a call does."""
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nulimit -n 50\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        pool = local(f"9/: python={python}", bundle_timeout=1.5)
        futures = [pool.submit(time.sleep, 0.5) for _ in range(12)]
        assert [future.result(PATIENCE) for future in futures] == [None] * 12
        count = pool.status.workers[0].slots
        assert 1 <= count < 9
        assert caplog.text.count("only ") == 1
        assert f"only {count} slots: [Errno 24] Too many open files" in caplog.text

    def limited(self, tmp_path, number):
        """Return an interpreter for which there may be so many processes (which root escapes)."""
        python, caps = tmp_path / "python", "--{}=-all,+dac_override"
        caps = " ".join(caps.format(name) for name in ("inh-caps", "bounding-set"))
        uid = 1_000_000 + os.getpid()
        python.write_text(
            f"#!/bin/sh\nexec setpriv --reuid={uid} {caps} --ambient-caps=+dac_override "
            f'prlimit --nproc={number} {sys.executable} "$@"\n')
        python.chmod(0o755)
        return python

    def test_a_slot_that_cannot_be_forked_is_no_tasks_fault(self, local, tmp_path, caplog):
        """A slot is two processes, and either may be the one too many."""
        pool = local(f"5/: python={self.limited(tmp_path, 6)}", max_bundle_failures=1)
        futures = [pool.submit(neg, n) for n in range(12)]
        assert [future.result(PATIENCE) for future in futures] == [-n for n in range(12)]
        status = pool.status
        assert 1 <= status.workers[0].slots <= 2 and not status.workers[0].died
        assert caplog.text.count("only ") == 1 and "Resource temporarily" in caplog.text

    @pytest.mark.parametrize("limit", ["processes", "descriptors"])
    def test_a_machine_that_cannot_fork_any_slot(self, ssh, sshds, tmp_path, limit):
        """That is its own fault: it is left alone, and what it was sent has never begun."""
        python = self.limited(tmp_path, 3)
        if limit == "descriptors":
            python.write_text(f'#!/bin/sh\nulimit -n 24\nexec {sys.executable} "$@"\n')
        pool = ssh(f"1/: python={python}", python=None, max_bundle_failures=1)
        future = pool.submit(neg, 1)
        until(lambda: pool.status.workers[0].cause)
        status = pool.status
        assert "cannot start a process for tasks" in status.workers[0].cause
        assert "ulimit -a" in status.workers[0].cause and status.workers[0].retry_in > 10
        assert not status.retried and not pool._supervisor.scheduler.tally.spans
        pool.add_worker(f"1/alpha python={sys.executable}")
        assert future.result(PATIENCE) == -1


class TestDeadlockMatrix:
    """CPython's test_concurrent_futures/test_deadlock.py: what may go wrong, times where."""

    DOINGS = {"crash": (crash, ()), "exit": (os._exit, (1,)), "error": (divmod, (1, 0)),
              "sys.exit": (sys.exit, (1,))}

    @pytest.mark.parametrize("doing", DOINGS)
    @pytest.mark.parametrize("where", [
        "unpickling the task", "running", "pickling the result", "unpickling the result"])
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
            assert type(error) is BundleError
            assert len(error.attempts) == (3 if doing in ("crash", "exit") else 0)
        assert [future.result(PATIENCE) for future in bystanders] == [-n for n in range(10)]
        assert remote.submit(neg, 1).result(PATIENCE) == -1

    def test_shutting_down_afterwards(self, local):
        pool = local("4/:")
        for doing in self.DOINGS.values():
            pool.submit(doing[0], *doing[1]).exception(PATIENCE)
        pool.shutdown()


class TestLostMachines:
    @pytest.mark.parametrize("victim", ["shim", "ssh", "session", "guardian"])
    def test_a_lost_link_costs_nothing(self, ssh, tmp_path, victim):
        pool = ssh("1/alpha", "1/beta", max_bundle_failures=1, schedule_backups=False)
        futures = [pool.submit(wait_for, str(tmp_path / "go")) for _ in range(2)]
        begun(tmp_path / "go", 2)
        machine = Machine.of(pool, "alpha")
        left = descendants(machine.guardian)
        os.kill(getattr(machine, victim), signal.SIGKILL)
        until(lambda: not any(map(alive, left)), "the end of what the machine ran")
        (tmp_path / "go").touch()
        assert all(future.result(PATIENCE) for future in futures)
        until(lambda: all(worker.state == "up" for worker in pool.status.workers), "reconnection")

    def test_a_task_that_takes_its_machine_down(self, local, tmp_path, monkeypatch):
        """It is convicted in the end; those beside it complete, and are not suspected for long."""
        monkeypatch.setattr(executors, "QUARANTINE_SECONDS", (0.05, 0.1))
        pool = local("1/:", "1/: weight=2", schedule_backups=False)

        def guilty(path):
            open(f"{path}-{time.monotonic_ns()}", "w").close()
            os.kill(parent(os.getppid()), signal.SIGKILL)
            time.sleep(1000)

        future = pool.submit(guilty, str(tmp_path / "run"))
        innocent = [pool.submit(time.sleep, 0.05) for _ in range(60)]
        error = future.exception(PATIENCE)
        assert type(error) is BundleError and "took its machine down" in str(error)
        assert len(os.listdir(tmp_path)) == 4 == len(error.attempts)
        assert [one.result(PATIENCE) for one in innocent] == [None] * 60

    def test_no_thread_outlives_its_link(self, local):
        """Whoever finds out first that a machine is gone: its writer thread, or another."""
        before = {*threading.enumerate()}
        pool = local("1/:", schedule_backups=False, heartbeat_seconds=0.1)
        for n in range(4):
            machine = Machine.of(pool)
            future = pool.submit(len, bytes(20_000_000 * (n % 2)))
            for process in machine.ssh, machine.guardian:       # it may have ended already
                wire.send_signal(process, signal.SIGKILL)
            pool.submit(neg, n)
            until(lambda: pool.status.retried or pool.status.workers[0].state == "up")
            assert future.result(PATIENCE) in (0, 20_000_000)
        pool.shutdown()
        until(lambda: {*threading.enumerate()} <= before, "the end of all threads")

    def test_too_many_files_for_all_machines(self, tmp_path):
        """Those that fit work, the others are down with words, and nothing is lost or hangs."""
        done = run("""
            import executors, operator, resource, time
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            pool = executors.RemoteExecutor([": weight=%d" % n for n in range(1, 41)],
                                            show_status=False)
            print(len(list(pool.map(operator.neg, range(200)))))
            pool.add_worker(":")
            until, causes = time.monotonic() + 20, []
            while time.monotonic() < until and not any("Too many" in cause for cause in causes):
                causes = [worker.cause for worker in pool.status.workers]
            print(any("Too many open files" in cause for cause in causes), "" in causes)
            pool.shutdown()
        """)
        assert done.stdout.split() == ["200", "True", "True"], done
        assert "Traceback" not in done.stderr, done     # the loss is an ordinary one

    def test_processes_that_have_ended_are_not_signalled(self):
        """Their numbers may be somebody else's by now."""
        victim = subprocess.Popen(["sleep", "1000"])
        ended = subprocess.Popen(["true"])
        ended.wait()
        executors._kill_group(ended, [(victim.pid, signal.SIGKILL)])
        assert victim.poll() is None
        executors._kill_group(victim, [(victim.pid, signal.SIGKILL)])
        assert victim.wait(PATIENCE) == -signal.SIGKILL

    def test_ctrl_c_reaches_only_the_controller(self, sshds, tmp_path):
        done = run("""
            import executors, os, signal, sys, time
            pool = executors.RemoteExecutor(sys.argv[3:], ssh_options=["-F", sys.argv[1]],
                                            show_status=False)
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
        """, sshds[0].ssh_options[1], tmp_path / "go", f"1/alpha python={sys.executable}", "1/:",
                   start_new_session=True)
        assert done.stdout == "7 7 0\n", done

    def test_a_grandchild_that_keeps_stdout_open_holds_nothing_up(self, ssh):
        pool = ssh("1/alpha")
        child = pool.submit(lambda: subprocess.Popen(["sleep", "1000"]).pid).result(PATIENCE)
        assert pool.submit(neg, 1).result(PATIENCE) == -1 and alive(child)
        pool.shutdown()
        until(lambda: not alive(child))

    @pytest.mark.usefixtures("namespaces")
    @pytest.mark.parametrize("direction", ["to the worker", "from the worker", "both"])
    def test_a_network_that_drops(self, tmp_path, direction):
        """A host of our own behind a veth pair. Dropping is a blackhole route, on either side."""
        with Network() as net, Sshd(["far"], address=net.FAR, prefix=net.inside) as sshd, maker(
                sshd.ssh_options) as make:
            pool = make(f"1/far python={sys.executable}", "1/:", heartbeat_seconds=0.15,
                        max_bundle_failures=1, schedule_backups=False)
            futures = [pool.submit(wait_for, str(tmp_path / "go")) for _ in range(2)]
            begun(tmp_path / "go", 2)
            shim = Machine.of(pool, "far").shim
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
        begun(tmp_path / "go")
        pool.shutdown(wait=False)
        os.kill(Machine.of(pool, "alpha").shim, signal.SIGKILL)
        (tmp_path / "go").touch()
        assert all(future.result(PATIENCE) for future in futures)

    def test_ctrl_c_at_any_moment_breaks_nothing(self):
        """Interrupt a loop of submissions at random; what was submitted is done; the pool ends."""
        done = run("""
            import concurrent.futures, executors, operator, random, signal
            for trial in range(25):
                pool = executors.RemoteExecutor(["2/:"], show_status=False)
                pool.submit(operator.neg, 1).result()
                futures, armed = [], True
                def ring(*_):       # again and again: Python drops what a finalizer raises
                    if armed:
                        raise KeyboardInterrupt
                signal.signal(signal.SIGALRM, ring)
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.02), 0.05)
                    while True:
                        futures.append(pool.submit(operator.neg, len(futures)))
                        len(futures) % 10 or futures[-5].cancel()
                except KeyboardInterrupt:
                    armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
                # A cancel() that was interrupted may take effect yet.
                concurrent.futures.wait(futures, 20)
                assert all(f.cancelled() or f.result(0) == -n for n, f in enumerate(futures))
                pool.shutdown()
            print("all done")
        """)
        assert done.stdout == "all done\n", done

    def test_what_our_own_callbacks_take_is_charged_to_nobody(self, local):
        """The reader thread is held up; `bundle_timeout` counts what tasks take."""
        pool = local("4/:", bundle_timeout=1.0, schedule_backups=False)
        list(pool.map(neg, range(8), chunksize=1))
        first = pool.submit(neg, 1)
        first.add_done_callback(lambda _: time.sleep(2.5))
        futures = [pool.submit(time.sleep, 0.4) for _ in range(3)]
        assert [future.result(PATIENCE) for future in futures] == [None] * 3
        error = pool.submit(time.sleep, 50).exception(PATIENCE)
        assert type(error) is executors.BundleTimeoutError

    def test_a_policy_that_raises_is_told_once(self, local, caplog):
        class Bad(executors.RemoteWorkerSelectionPolicy):
            def choose(self, ready, avoid=()):
                raise ZeroDivisionError("as always")

        pool = local("1/:", "1/:", policy=Bad())
        until(lambda: all(worker.state == "up" for worker in pool.status.workers))
        assert list(pool.map(neg, range(20), timeout=PATIENCE)) == [-n for n in range(20)]
        words = "the policy Bad failed (ZeroDivisionError: as always)"
        until(lambda: words in caplog.text)
        assert caplog.text.count(words) == 1

    def test_what_ssh_adds_is_not_why_it_ended(self):
        text = "Warning: Permanently added 'x' (ED25519) to the list of known hosts.\r\nreal words"
        assert executors._without_chatter(text) == "real words"

    def test_how_many_slots_there_are(self, local):
        """Those of machines that are up or may still come up, whatever Dask or joblib finds up."""
        pool = local("3/:", "2/:", "7/127.0.0.1", ssh_options=["-p", "1"])
        assert pool.slots == pool.size == pool._max_workers == 12
        until(lambda: [one.state == "up" for one in pool.status.workers] == [True, True, False])
        until(lambda: pool.status.workers[2].lost)
        assert pool.slots == 12         # it is tried again
        pool.add_worker("4/: python=/no/such/python")
        until(lambda: pool.status.workers[3].state == "failed")
        assert pool.slots == 12
        for number, left in ((7, 5), (3, 2), (2, 1)):
            pool.remove_worker(f"{number}/127.0.0.1" if number == 7 else f"{number}/:")
            assert pool.slots == left

    def test_who_asks_first_waits_for_machines_to_say_how_many_slots_they_have(self, ssh):
        cores = wire._count_cores()
        pool = ssh("alpha", "6/beta")
        assert "0 of 2 machines up, 7 slots" in repr(pool)      # which does not wait
        assert pool.slots == cores + 6
        pool.add_worker(f": python={sys.executable}")
        assert pool.slots == 2 * cores + 6

    def test_slots_are_known_before_files_are_copied(self, ssh, tmp_path):
        (tmp_path / "data").write_bytes(os.urandom(20_000_000))
        pool = ssh("alpha", files=tmp_path / "data")
        assert pool.slots == wire._count_cores()
        assert pool.status.workers[0].state == "connecting"

    def test_who_asks_for_slots_waits_once_and_not_for_ever(self, local, monkeypatch, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as mute:
            port = str(mute.getsockname()[1])
            pool = local("1/:", "127.0.0.1", ssh_options=["-p", port])
            monkeypatch.setattr(executors, "SLOT_COUNT_SECONDS", 1000.0)
            told = SimpleQueue()
            future = pool.submit(wait_for, str(tmp_path / "go"))
            future.add_done_callback(lambda _: told.put(pool.slots))
            (tmp_path / "go").touch()
            assert told.get(timeout=PATIENCE) == 2      # by a thread of the pool
            assert pool._supervisor.decide(lambda: pool.slots) == 2     # with its lock
            assert list(pool.map(neg, range(1000))) == [-n for n in range(1000)]
            monkeypatch.setattr(executors, "SLOT_COUNT_SECONDS", 0.1)
            assert pool.slots == 2
            monkeypatch.setattr(executors, "SLOT_COUNT_SECONDS", 1000.0)
            assert pool.slots == 2
            pool.add_worker("127.0.0.1 python=python3")
            threading.Thread(target=pool._give_up).start()      # all is known, then
            assert pool.slots == 3

    def test_a_busy_controller_condemns_nobody(self, local):
        pool = local("1/:", heartbeat_seconds=0.05)
        release = threading.Event()
        future = pool.submit(neg, 1)
        future.add_done_callback(lambda _: release.wait(1))     # holds the reader up for 20 beats
        assert future.result(PATIENCE) == -1
        assert pool.submit(neg, 2).result(PATIENCE) == -2
        assert pool.status.retried == 0 and pool.histogram.count == 2

    def test_a_straggler_is_raced_for_real(self, ssh, tmp_path):
        pool = ssh("1/alpha", "1/beta")
        mark = str(tmp_path / "mark")

        def work(path, n):      # hangs on whoever comes first, and only there
            if n == 99:
                try:
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    return "backup"
                time.sleep(1000)

        list(pool.map(work, [mark] * 4, range(4), chunksize=1))
        before = pool.status.backups        # on a slow machine, these may have been raced, too
        assert pool.submit(work, mark, 99).result(PATIENCE) == "backup"
        assert pool.status.backups == before + 1
        until(lambda: not any(worker.busy for worker in pool.status.workers), "the straggler's end")


@pytest.mark.alone
class TestFrozen:
    """Processes are stopped on the way; and at the end, whatever befalls them."""

    @pytest.mark.parametrize("whom", ["shim", "ssh", "session"])
    def test_a_frozen_one_is_found_out_by_its_silence(self, ssh, tmp_path, whom):
        pool = ssh("1/alpha", max_bundle_failures=1, heartbeat_seconds=0.15)
        future = pool.submit(wait_for, str(tmp_path / "go"))
        begun(tmp_path / "go")
        machine = Machine.of(pool, "alpha")
        frozen = getattr(machine, whom)
        os.kill(frozen, signal.SIGSTOP)
        until(lambda: pool.status.workers[0].state != "up", "condemnation")
        assert "heartbeats" in pool.status.workers[0].cause
        (tmp_path / "go").touch()
        assert future.result(PATIENCE)
        until(lambda: not alive(machine.shim), "the end of the shim, at the latest with its lease")
        if whom == "session":
            os.kill(frozen, signal.SIGKILL)

    def test_a_frozen_shim_and_a_frozen_guardian(self, local):
        pool = local("1/:", heartbeat_seconds=0.2)
        slot = pool.submit(os.getpid).result(PATIENCE)
        machine = Machine.of(pool)
        os.kill(machine.guardian, signal.SIGSTOP)
        os.kill(machine.shim, signal.SIGSTOP)
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        until(lambda: not any(map(alive, [machine.guardian, machine.shim, slot])))

    def test_a_frozen_shim_whose_guardian_is_killed(self, local, tmp_path):
        pool = local("1/:", heartbeat_seconds=0.2)
        future = pool.submit(wait_for, str(tmp_path / "go"))
        begun(tmp_path / "go")
        machine = Machine.of(pool)
        slots = descendants(machine.shim)
        os.kill(machine.guardian, signal.SIGSTOP)
        os.kill(machine.shim, signal.SIGSTOP)
        os.kill(machine.guardian, signal.SIGKILL)
        until(lambda: not any(map(alive, [machine.shim, *slots])))
        (tmp_path / "go").touch()
        assert future.result(PATIENCE)

    def test_what_a_suspended_controller_loses_is_not_the_tasks_fault(self):
        """The machine's lease has ended meanwhile."""
        done = run("""
            import executors, os, signal, subprocess, sys, time
            pool = executors.RemoteExecutor(["1/:"], show_status=False, heartbeat_seconds=0.1)
            future = pool.submit(time.sleep, 1000)
            while not future.running():
                time.sleep(0.01)
            subprocess.Popen(["sh", "-c", f"sleep 2.5; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
            while not (pool.status.retried and future.running()):
                time.sleep(0.01)
            print(len(future._bundle.losses))
            pool._give_up()
        """)
        assert done.stdout == "0\n", done

    def test_a_suspended_controller_condemns_nobody(self, sshds):
        done = run("""
            import executors, os, signal, subprocess, sys, time
            pool = executors.RemoteExecutor(sys.argv[2:], ssh_options=["-F", sys.argv[1]],
                                            show_status=False, heartbeat_seconds=0.15)
            future = pool.submit(lambda: __import__("time").sleep(1.3) or 7)
            while not future.running():
                time.sleep(0.01)
            subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)        # for seven beats; the lease is twelve
            print(future.result(), pool.status.retried, pool.status.backups)
            pool.shutdown()
        """, sshds[0].ssh_options[1], f"1/alpha python={sys.executable}",
                   f"1/: python={sys.executable}")
        assert done.stdout == "7 0 0\n", done

    def test_a_slow_line_is_not_dead(self, ssh, sshds):
        """An argument takes as long as eight heartbeats; all pings meanwhile wait behind it."""
        options = slow_line(sshds[0], 200_000)
        pool = ssh("1/alpha", heartbeat_seconds=0.3, ssh_options=options, schedule_backups=False)
        assert pool.submit(len, os.urandom(500_000)).result(PATIENCE) == 500_000
        assert pool.status.retried == 0

    def test_the_lease_covers_what_no_end_of_file_tells(self):
        """The controller is frozen: every connection stays open, and nothing is heard over it."""
        script = textwrap.dedent("""
            import executors, os, time
            pool = executors.RemoteExecutor(["1/:"], show_status=False, heartbeat_seconds=0.1)
            print(pool.submit(os.getppid).result(), flush=True)     # the slot's keeper
            time.sleep(1000)
        """)
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                              cwd=HERE) as controller:
            shim = parent(int(controller.stdout.readline()))
            assert alive(shim)
            os.kill(controller.pid, signal.SIGSTOP)
            try:
                until(lambda: not alive(shim), "the end of the lease")
            finally:
                controller.kill()

    def test_a_slot_that_dies_while_it_writes_a_long_result(self, local, tmp_path):
        pool = local("1/:")
        path = str(tmp_path / "pid")

        def work(path):
            tries = len(os.listdir(os.path.dirname(path)))
            open(f"{path}{tries}.{os.getpid()}", "w").close()
            return bytes(40_000_000), tries

        pool.submit(neg, 1).result(PATIENCE)
        machine = Machine.of(pool)
        os.kill(machine.guardian, signal.SIGSTOP)       # or it would end its frozen shim
        os.kill(machine.shim, signal.SIGSTOP)
        future = pool.submit(work, path)
        os.kill(machine.shim, signal.SIGCONT)
        until(lambda: os.listdir(tmp_path), "starting")
        os.kill(machine.shim, signal.SIGSTOP)
        slot = int(os.listdir(tmp_path)[0].rpartition(".")[2])
        assert read(f"/proc/{slot}/stat")
        os.kill(slot, signal.SIGKILL)
        os.kill(machine.shim, signal.SIGCONT)
        os.kill(machine.guardian, signal.SIGCONT)
        data, tries = future.result(PATIENCE)
        assert len(data) == 40_000_000 and tries == 1
        assert pool.submit(neg, 1).result(PATIENCE) == -1

    def test_a_slot_that_is_interrupted_while_it_writes(self, local, tmp_path):
        """A signal handler of the user's cuts a write into a full pipe short; all of it arrives."""
        def ring():
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            return os.getpid()

        pool = local("1/:", heartbeat_seconds=5)
        slot = pool.submit(ring).result(PATIENCE)
        list(pool.map(bytes, [100] * 50, chunksize=1))      # it is known to be short: sent ahead
        machine = Machine.of(pool)
        os.kill(machine.guardian, signal.SIGSTOP)
        futures = [pool.submit(bytes, 60_000) for _ in range(60)]
        until(lambda: all(future._bundle.attempts for future in futures) or futures[-1].done())
        os.kill(machine.shim, signal.SIGSTOP)
        time.sleep(0.2)     # for it to fill the pipe, and be interrupted there
        os.kill(machine.shim, signal.SIGCONT)
        os.kill(machine.guardian, signal.SIGCONT)
        assert all(future.result(PATIENCE) == bytes(60_000) for future in futures)
        assert pool.status.retried == 0 and alive(slot)

    def test_a_machine_slowed_tenfold_holds_nobody_up(self, ssh, sshds):
        slow, fast = (str(sshd.port) for sshd in sshds)

        def work(n):
            port = os.environ["SSH_CONNECTION"].split()[3]
            time.sleep(2 if port == slow else 0.2)
            return n, port

        pool = ssh("2/alpha", "2/beta")
        until(lambda: all(worker.state == "up" for worker in pool.status.workers))
        futures = [pool.submit(work, n) for n in range(8)]
        # What the slow one had taken was done by the other meanwhile.
        assert [future.result(PATIENCE) for future in futures] == [(n, fast) for n in range(8)]
        assert pool.status.backups == 2 and pool.status.retried == 0
        until(lambda: sum(worker.busy for worker in pool.status.workers) == 0, "the losers' end")

    @pytest.mark.timeout(180)
    def test_nothing_is_lost_nothing_is_wrong_nothing_is_left(self, sshds):
        """Hundreds of bundles on four machines, while what runs on the way is killed or frozen."""
        source, others = random.Random(os.environ.get("CHAOS_SEED", "5")), descendants()
        names = ("alpha", "beta", "gamma", "delta")
        with Sshd(["gamma"]) as gamma, Sshd(["delta"]) as delta:
            servers = (*sshds, gamma, delta)
            spared = {sshd.process.pid for sshd in servers} | others
            gamma.write("all", "\n".join(read(sshd.path("config")) for sshd in servers))
            pool = RemoteExecutor([f"2/{name} python={sys.executable}" for name in names],
                                  ssh_options=["-F", gamma.path("all")], show_status=False,
                                  heartbeat_seconds=0.3, max_bundle_failures=50)
            machines = [Machine.of(pool, name) for name in names]
            data = [source.randbytes(source.choice([10, 1000, 200_000])) for _ in range(150)]
            seconds = [source.choice([0, 0.001, 0.05, 0.3]) for _ in data]
            seen, frozen = {*itertools.chain(*machines)}, set()

            def work(data, seconds):
                time.sleep(seconds)
                return len(data), data[::-1]

            futures = [pool.submit(work, *one) for one in zip(data, seconds)]
            for _ in range(30):
                time.sleep(source.uniform(0.05, 0.3))
                try:
                    login = source.choice([*pool._supervisor.logins.values()])
                    if not login.shim:
                        continue
                    machine = Machine.of(pool, login.record.machine)
                    below = descendants(machine.shim)
                    seen.update(below, machine)
                    kind = source.choice(["slot", "slot", "slot", *Machine._fields])
                    slots = sorted(below) or [machine.shim]
                    victim = source.choice(slots) if kind == "slot" else getattr(machine, kind)
                    number = source.choice([signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGSTOP])
                    if victim not in spared and "listener" not in command_line(victim):
                        os.kill(victim, number)
                    if number == signal.SIGSTOP:
                        frozen.add(victim)
                except (OSError, IndexError):
                    pass        # it has gone by itself
            for future, sent in zip(futures, data):
                assert future.result(PATIENCE) == (len(sent), sent[::-1])
            pool.shutdown()
            seen |= descendants() - spared
            for pid in frozen:
                if alive(pid) and ("b64decode" in command_line(pid) or "sshd" in command_line(pid)):
                    # Who watched it was killed before: while it is frozen, nobody can tell.
                    os.kill(pid, signal.SIGCONT)
            until(lambda: not [pid for pid in seen
                               if alive(pid) and "b64decode" in command_line(pid)],
                  "the end of everything")


class TestNothingIsLeft:
    SCRIPT = """
        import executors, os, sys, time
        pool = executors.RemoteExecutor(sys.argv[2:4], ssh_options=["-F", sys.argv[1]],
                                        show_status=False, heartbeat_seconds=0.5,
                                        files=[sys.argv[5]])
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
        print(*(login.shim for login in pool._supervisor.logins.values()), flush=True)
        input()
        {then}
    """

    @pytest.mark.parametrize("then", [
        "time.sleep(1000)  # until killed", "os._exit(1)", "os.abort()",
        "pool.shutdown(wait=False); os._exit(0)", "[f.cancel() for f in futures]; pool.shutdown()",
        "[f.cancel() for f in futures]"])
    def test_after_the_controller(self, sshds, tmp_path, then):
        python = f"python={sys.executable}"
        folder, temporary, tree = (tmp_path / name for name in ("pids", "temporary", "tree"))
        for path in folder, temporary, tree:
            path.mkdir()
        script = textwrap.dedent(self.SCRIPT.format(then=then))
        with ExitStack() as stack:
            controller = stack.enter_context(subprocess.Popen(
                [sys.executable, "-c", script, sshds[0].ssh_options[1], f"1/alpha {python}",
                 f"1/: {python}", f"{folder}/", tree], stdout=subprocess.PIPE, text=True, cwd=HERE,
                stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={**os.environ, "TMPDIR": str(temporary)}))
            stack.callback(controller.kill)
            shims = [int(pid) for pid in controller.stdout.readline().split()]
            assert len(shims) == 2
            orphans = [int(name) for name in os.listdir(folder)]
            others = set().union(*map(descendants, [*shims, controller.pid]))
            assert all(map(alive, orphans)) and len(orphans) == 2 and others >= set(orphans)
            if "killed" in then:
                controller.kill()
            else:
                controller.stdin.write("\n")
                controller.stdin.flush()
            controller.wait(PATIENCE)
        until(lambda: not any(map(alive, [*shims, *orphans, *others])), "the end of everything")
        assert not os.listdir(temporary)

    @pytest.mark.parametrize("how", ["shutdown", "remove", "the shim dies", "the shim is stuck"])
    def test_where_there_is_no_proc(self, ssh, tmp_path, how):
        """As on macOS: a task that ignores SIGTERM ends with its slot, soon and with its children.

        There, nothing tells a slot that the shim has died.
        """
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\nexec unshare -m sh -c 'mount -t tmpfs none /proc && "
                          f'exec "$@"\' sh {sys.executable} "$@"\n')
        python.chmod(0o755)

        def stay(path):
            libc = __import__("ctypes").CDLL(None)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            libc.prctl(1, 0)        # PR_SET_PDEATHSIG
            child = subprocess.Popen(["sleep", "1000"])
            pathlib.Path(path, str(child.pid)).touch()
            pathlib.Path(path, str(os.getpid())).touch()
            time.sleep(1000)

        pool = ssh(f"1/alpha python={python}", python=None, heartbeat_seconds=5)
        (tmp_path / "pids").mkdir()
        future = pool.submit(stay, tmp_path / "pids")
        until(lambda: len(os.listdir(tmp_path / "pids")) == 2)
        pids = [int(name) for name in os.listdir(tmp_path / "pids")]
        machine = Machine.of(pool, "alpha")
        assert all(map(alive, [*pids, machine.guardian]))
        if how == "shutdown":
            future.cancel()
            pool.shutdown()
        elif how == "remove":
            pool.remove_worker(f"1/alpha python={python}")
        else:
            number = signal.SIGKILL if how == "the shim dies" else signal.SIGSTOP
            os.kill(machine.shim, number)
        until(lambda: not any(map(alive, [*pids, machine.shim, machine.guardian])))

    def test_a_forked_child_does_not_keep_links_open(self, local):
        pool = local("1/:")
        pool.submit(neg, 1).result(PATIENCE)
        shim = Machine.of(pool).shim
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
        begun(tmp_path / "go")
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
        shim = Machine.of(pool).shim
        supervisor = pool._supervisor
        del pool
        assert supervisor.all_ended.wait(PATIENCE) and not alive(shim)


# ───────────────────────────────── what comes back: output, lies ──────────────────────────────────


class TestLies:
    """What a worker sends is checked where it is read."""

    LIAR = """
        import base64, os, re, sys
        magic = re.search("[0-9a-f]{24}", base64.b64decode(sys.argv[-1]).decode())[0]
        print(f"\\n{magic} {'.'.join(map(str, sys.version_info[:3]))} cpython /liar", flush=True)
        with open(__file__ + ".lie", "rb") as file:
            hello, lies = file.read().split(b"THEN")
        data = os.read(0, 65536)
        os.write(1, hello)
        while b"\\x05lease" not in data:
            more = os.read(0, 65536)
            data += more or sys.exit()
        os.write(1, lies)
        while os.read(0, 65536):
            pass
    """
    HELLO = wire.frame(wire.HELLO, 0, wire.GREETING.pack(2, 2, 2)) + b"THEN"
    HUGE = struct.pack("!BQQQBQ", wire.RESULT, 9, 17, 0, 1, 2 ** 60)
    LIES = {
        "no cores": wire.frame(wire.HELLO, 0, wire.GREETING.pack(0, 2, 2)) + b"THEN",
        "many cores": wire.frame(wire.HELLO, 0, wire.GREETING.pack(2 ** 31, 2, 2)) + b"THEN",
        "a short greeting": wire.frame(wire.HELLO, 0, b"x") + b"THEN",
        "an unknown kind": HELLO + wire.frame(99, 1, b"x"),
        "a kind of the other side": HELLO + wire.frame(wire.CONFIG, 1, b"x"),
        "a result nobody asked for": HELLO + b"".join(wire.message(wire.RESULT, 9999, 0, b"x")),
        "a huge result": HELLO + HUGE,
        "a module nobody asked for": HELLO + b"".join(wire.message(wire.ANSWER, 1, 0, b"x")),
        "a short message": HELLO + wire.frame(wire.RESULT, 1, b"x"),
        "a huge frame": HELLO + wire.HEADER.pack(wire.OUTPUT, 1, 2 ** 40),
        "a short death": HELLO + wire.frame(wire.DIED, 1, b"xx"),
        "a long kill": HELLO + wire.frame(wire.KILLED, 1, b"x" * 50),
        "half an identifier": HELLO + wire.frame(wire.RECALLED, 1, b"xxx"),
        "many slots": HELLO + wire.frame(wire.SLOT_COUNT, 2 ** 40, b"why"),
        "no name": HELLO + wire.frame(wire.FIND_MODULE, 1, b"\xff\xfe"),
        "files that it was not given": HELLO + wire.frame(wire.STORED),
        "no question": HELLO + wire.frame(wire.COPY, 1, b'["there"]'),
        "a folder that leads out": HELLO + wire.frame(
            wire.COPY, 1, b'[".cache/executors/../../.ssh", [["key", "name", ""]]]'),
        "the same module by the thousand": HELLO + wire.frame(wire.FIND_MODULE, 1, b"json") * 3000,
        "noise": HELLO + random.Random(1).randbytes(5000)}

    def test_a_worker_that_lies_is_left_alone_with_words(self, local, tmp_path):
        """Each is quarantined for more than a second; the honest one does the work."""
        workers = ["1/:"]
        for n, lie in enumerate(self.LIES.values()):
            path = tmp_path / f"liar{n}"
            path.write_text(f"#!{sys.executable}\n" + textwrap.dedent(self.LIAR))
            path.chmod(0o755)
            (tmp_path / f"liar{n}.lie").write_bytes(lie)
            workers.append(f"1/: python={path}")
        pool = local(*workers, schedule_backups=False)
        assert list(pool.map(neg, range(200), timeout=PATIENCE)) == [-n for n in range(200)]

        def liars():
            return pool.status.workers[1:]

        until(lambda: all(one.cause for one in liars()), "that all lies are found out")
        for lie, one in zip(self.LIES, liars()):
            assert "something that no shim sends" in one.cause, (lie, one)
            assert one.state == "waiting" and one.retry_in > 10, (lie, one)

    @pytest.mark.parametrize("seed", range(4))
    def test_random_streams(self, seed):
        """Frames, whole and spoilt, one after the other: messages, an error of ours, the end."""
        source = random.Random(seed)
        for _ in range(300):
            frames = [wire.frame(source.choice([wire.RESULT, wire.PART, wire.PONG, wire.ERROR]),
                                 source.choice([0, 1, 2 ** 64 - 1]),
                                 source.randbytes(source.choice([0, 8, 9, 17, 300])))
                      for _ in range(source.randrange(1, 9))]
            data = bytearray(b"".join(frames))
            for _ in range(source.randrange(3)):
                data[source.randrange(len(data))] = source.randrange(256)
            with stream(bytes(data)) as fd:
                reader = wire.MessageReader(fd)
                with pytest.raises((EOFError, wire.FrameError)):
                    while True:
                        reader.read()

    def test_what_ssh_says_is_bounded(self, local):
        pool = local("1/:")
        pool.submit(neg, 1).result(PATIENCE)
        login, = pool._supervisor.logins.values()
        os.write(login._errors.fileno(), b"x" * (5 << 20))
        until(lambda: os.fstat(login._errors.fileno()).st_size == 0, "that it is cut")

    def test_a_result_without_room_is_its_futures_error_alone(self):
        """The controller may have 600 MB more than it has; the result takes a gigabyte."""
        done = run("""
            import executors, operator, resource
            pool = executors.RemoteExecutor(["2/:"], show_status=False)
            pool.submit(operator.neg, 1).result()
            with open("/proc/self/statm") as file:
                size = int(file.read().split()[0]) * resource.getpagesize() + (600 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
            import numpy
            future = pool.submit(eval, "__import__('numpy').zeros(1 << 27)")
            print(type(future.exception(30)).__name__, "no memory" in str(future.exception()))
            print(pool.submit(operator.neg, 2).result(30), pool.status.retried)
            pool.shutdown()
        """)
        assert done.stdout == "BundleError True\n-2 0\n", done

    def test_modules_that_are_not_for_workers(self, local, tmp_path, monkeypatch):
        (tmp_path / "secrets_of_ours.py").write_text("password = 1")
        monkeypatch.syspath_prepend(tmp_path)
        ask = functools.partial(__import__, "secrets_of_ours")
        assert local("1/:").submit(lambda: ask().password).result(PATIENCE) == 1
        error = local("1/:", modules=False).submit(lambda: ask().password).exception(PATIENCE)
        assert type(error) is ModuleNotFoundError
        assert "modules=False" in " ".join([str(error), *getattr(error, "__notes__", ())])

    @pytest.mark.parametrize("options, word", [
        (["-n"], "-n cannot be used"), (["-vN"], "-N cannot"), (["-tt"], "-t cannot"),
        (["-E", "log"], "-E cannot"), (["host"], "got 'host'"), (["-p"], "needs a value"),
        (["-L", "1:x:1"], "-L cannot"), (["--"], "expected an option")])
    def test_options_that_break_a_link_are_refused(self, options, word):
        with pytest.raises(ValueError, match=re.escape(word)):
            RemoteExecutor(["1/x"], ssh_options=options)

    def test_what_scp_is_told_of_ssh_options(self):
        record = RemoteWorkerRecord.parse("me@box")
        argv = executors._scp_argv(record, ["-vp2222", "-F", "/c", "-4", "-i/k", "-b", "1.2.3.4"],
                                   ["/data", "/more"], "there")
        words = " ".join(argv)
        assert "-v" not in argv and " -F /c " in words
        assert words.endswith(" -- /data /more me@box:there/")
        for option in "Port=2222", "AddressFamily=inet", "IdentityFile=/k", "BindAddress=1.2.3.4":
            assert f"-o {option}" in words


class TestOutput:
    def test_output_comes_home_in_whole_lines(self, capfd, ssh):
        def talk(n):
            print("out", n)
            print("err", n, file=sys.stderr)
            subprocess.run(["echo", "child", str(n)])

        with ssh("2/alpha", "2/beta", schedule_backups=False) as pool:     # each prints once
            list(pool.map(talk, range(20), chunksize=1))
        out, err = capfd.readouterr()
        lines = [line.partition(": ") for line in out.splitlines()]
        assert {machine for machine, _, _ in lines} <= {"alpha", "beta"}
        expected = [f"{what} {n}" for n in range(20) for what in ("out", "child")]
        assert sorted(text for _, _, text in lines) == sorted(expected)
        lines = [line.partition(": ")[2] for line in err.splitlines()]
        assert sorted(lines) == sorted(f"err {n}" for n in range(20))

    def test_a_function_that_is_slow_holds_up_only_who_prints(self, local):
        """Nor does its output grow here: a machine sends no more than has been shown."""
        seen, gate = [], threading.Event()

        def show(machine, stream, line):
            seen.append(line)
            gate.wait(PATIENCE)

        def talk():
            for n in range(60_000):
                print(n, "x" * 60)
            return "said"

        pool = local("2/:", output=show)
        talker = pool.submit(talk)
        until(lambda: seen, "the first line")
        answers = list(pool.map(neg, range(300), timeout=PATIENCE))
        waiting, is_done = pool._supervisor.scoreboard._queue.qsize(), talker.done()
        gate.set()
        assert answers == [-n for n in range(300)] and not is_done
        assert waiting < 2 * (wire.MAX_FRAME + wire.READ_SIZE) / 60     # entries, of a line each
        assert talker.result(PATIENCE) == "said"
        until(lambda: len(seen) == 60_000, "the last line")

    def test_a_stream_that_was_closed_is_not_the_fault_of_a_machine(self, local, monkeypatch):
        closed = io.StringIO()
        closed.close()
        monkeypatch.setattr(sys, "stdout", closed)
        pool = local("1/:")
        assert pool.submit(print, "lost").result(PATIENCE) is None
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        status = pool.status
        assert status.workers[0].cause == "" and not status.retried

    def test_a_function_that_never_returns_does_not_hold_up_the_end(self, monkeypatch):
        monkeypatch.setattr(executors, "CLOSE_SECONDS", 0.3)
        forever = threading.Event()
        pool = RemoteExecutor(["1/:"], show_status=False, output=lambda *_: forever.wait(1000))
        pool.submit(print, "x").result(PATIENCE)
        pool.shutdown()
        forever.set()

    def test_a_function_that_exits_and_a_stream_without_flush(self, local, caplog, monkeypatch):
        pool = local("1/:", output=lambda *_: sys.exit())
        pool.submit(print, "a").result(PATIENCE)
        pool.submit(print, "b").result(PATIENCE)
        until(lambda: caplog.text.count("output= names raised") == 2, "both")
        lines = []

        class Plain:
            def write(self, text):
                lines.append(text)

        pool = local("1/:")
        monkeypatch.setattr(sys, "stdout", Plain())
        for n in range(3):
            pool.submit(print, n).result(PATIENCE)
        until(lambda: lines == ["here: 0\n", "here: 1\n", "here: 2\n"], "all three")

    def test_what_reaches_a_terminal(self):
        """Tabs and colours; not titles, movements, the clipboard, or half a sequence."""
        text = ("a\tb\x1b[1;31mred\x1b[m\x1b]0;title\x07c\x1b[2Jd\x1b]52;c;eHh4\x1b\\e\x07f\x1bcg"
                "\x1b[3Ah\x9bi\x1bPq\x1b\\j\x1b")
        clean = executors._CONTROLS.sub(lambda match: match[1] or "", text)
        assert clean == "a\tb\x1b[1;31mred\x1b[mcdefghij"

    @pytest.mark.parametrize("body", [
        "time.sleep(50)", "pass", "pool.shutdown()",
        "mapped = pool.map(time.sleep, [50] * 9)", "asyncio.run(wait(futures[0]))"])
    def test_ctrl_c_ends_what_runs(self, body):
        """Inside `with`, at its end, where it waits for what was submitted, or in asyncio."""
        done = run(f"""
            import asyncio, executors, os, signal, threading, time
            async def wait(future):
                with pool:
                    while not future.done():
                        await asyncio.sleep(0.1)
            def interrupt():
                while not futures[0].running():
                    time.sleep(0.01)
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGINT)
            try:
                with executors.RemoteExecutor(["1/:"], show_status=False) as pool:
                    futures = [pool.submit(time.sleep, 50) for _ in range(5)]
                    threading.Thread(target=interrupt).start()
                    {body}
            except KeyboardInterrupt:
                print(all(future.cancelled() for future in futures))
        """, timeout=30)
        assert done.stdout == "True\n" and not done.stderr, done

    @pytest.mark.parametrize("handler, code, words", [
        ("signal.default_int_handler", -signal.SIGINT, "True"),
        ("lambda *_: sys.exit(3)", 3, "False\nTrue")])
    def test_sigterm(self, handler, code, words):
        """As README says."""
        done = run(f"""
            import executors, os, signal, sys, time
            signal.signal(signal.SIGTERM, {handler})
            with executors.RemoteExecutor(["1/:"], show_status=False) as pool:
                futures = [pool.submit(time.sleep, 50) for _ in range(5)]
                try:
                    while not futures[0].running():
                        time.sleep(0.01)
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(50)
                except SystemExit:
                    print(pool.shutdown(timeout=0.1))
                    raise
                finally:
                    pool.__exit__(*sys.exc_info())
                    print(all(future.cancelled() for future in futures), flush=True)
        """, timeout=30)
        assert done.stdout == f"{words}\n" and done.returncode == code, done

    def test_a_pool_that_is_made_too_late_says_so(self):
        done = run("""
            import atexit, executors, operator
            class Late:
                def __del__(self, executors=executors):
                    try:
                        executors.RemoteExecutor(["1/:"], show_status=False)
                    except BaseException as error:
                        print(type(error).__name__, error)
            late = Late()
            @atexit.register
            def end():
                try:
                    with executors.RemoteExecutor(["1/:"], show_status=False) as pool:
                        print(pool.submit(operator.neg, 1).result())
                except RuntimeError as error:       # from Python 3.12 on, no thread can start
                    print(-1)
        """, timeout=30)
        first, second = done.stdout.splitlines()
        assert first == "-1" and second.startswith("RuntimeError"), done

    def test_output_at_length(self, ssh, capfd):
        """Megabytes from several slots and their children at once: every line whole, in order."""
        def talk(who):
            logging.basicConfig(format="%(message)s")
            script = f"for n in $(seq 300); do echo {who} child $n of its own; done"
            child = subprocess.Popen(["sh", "-c", script])
            for n in range(6000):
                print(who, "out", n, "ä" * 40)
                if n % 10 == 0:
                    logging.warning("%s err %d %s", who, n, "x" * 80)
            child.wait()

        with ssh("2/alpha", "2/beta", schedule_backups=False) as pool:
            list(pool.map(talk, "abcd", chunksize=1))
        out, err = (text.splitlines() for text in capfd.readouterr())
        out, err = ([line.partition(": ")[2] for line in lines] for lines in (out, err))
        for who in "abcd":
            def said(lines, what, who=who):
                return [line for line in lines if line.startswith(f"{who} {what}")]
            assert said(out, "out") == [f"{who} out {n} {'ä' * 40}" for n in range(6000)]
            assert said(out, "child") == [f"{who} child {n} of its own" for n in range(1, 301)]
            assert said(err, "err") == [f"{who} err {n} {'x' * 80}" for n in range(0, 6000, 10)]
        assert len(out) == 4 * 6300

    def test_an_endless_line_is_cut_between_characters(self, ssh, capfd):
        with ssh("1/alpha") as pool:
            pool.submit(lambda: print("xä" * 100_000)).result(PATIENCE)
        out = capfd.readouterr().out
        assert out.replace("alpha: ", "").replace("\n", "") == "xä" * 100_000

    @pytest.mark.parametrize("text", ["日本語" * 700_000, "\\udcff" * 300_000],
                             ids=["characters", "escapes"])
    def test_output_without_any_newline_or_ascii(self, local, capfd, text):
        with local("1/:") as pool:
            data = text.encode("utf-8", "backslashreplace")
            pool.submit(lambda: os.write(1, data)).result(PATIENCE)
            pool.submit(print, text[:3]).result(PATIENCE)
        out = capfd.readouterr().out
        assert out.replace("\n", "").replace("here: ", "") == text + text[:3]

    def test_the_output_of_each_call_ends_with_a_line(self, local, capfd):
        with local("1/:") as pool:
            list(pool.map(lambda n: print(f"<{n}>", end=""), range(100)))
            pool.submit(print, "a\n\n\nb\n").result(PATIENCE)
        expected = [f"here: {one}" for one in (
            *(f"<{n}>" for n in range(100)), "a", "", "", "b", "")]
        assert capfd.readouterr().out.splitlines() == expected

    def test_output_that_this_terminal_cannot_show(self):
        done = run("""
            import executors
            with executors.RemoteExecutor(["1/:"]) as pool:
                pool.submit(print, "café").result()
        """, env={"PYTHONIOENCODING": "ascii"})
        assert done.stdout == "here: caf\\xe9\n" and not done.stderr

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
        assert capfd.readouterr().out == "alpha: second\n"

    def test_a_progress_bar(self, local):
        """A line that is written anew is passed on once a second at most, and as it was last."""
        from tqdm import tqdm

        def work(seconds):
            for _ in tqdm(range(30), ncols=60, mininterval=0):
                time.sleep(seconds / 30)
            print("done\r\nand\rover")

        def count(number):
            for n in range(number):
                print(f"{n}%", end="\r", flush=True)
                time.sleep(0.05)
            print("counted")
            for text in "\rlong line here", "\r              \r", "after\n":
                print(text, end="", flush=True)
                time.sleep(0.05)
        lines = []
        with local("1/:", output=lambda *line: lines.append(line)) as pool:
            pool.submit(work, 0.3).result(PATIENCE)
            pool.submit(work, 2.4).result(PATIENCE)
        bars = [line for _, stream, line in lines if stream == "stderr"]
        assert [line for _, stream, line in lines if stream == "stdout"] == ["done", "over"] * 2
        assert "30/30" in bars[0] and 2 <= len(bars[1:]) <= 4, bars
        assert "30/30" in bars[-1] and not any("30/30" in line for line in bars[1:-1])
        lines.clear()
        with local("1/:", output=lambda *line: lines.append(line[2])) as pool:
            pool.submit(count, 30).result(PATIENCE)
        assert re.fullmatch(r"(\d+% )?counted after", " ".join(lines)), lines

    def test_output_can_be_turned_off_or_redirected(self, local, capfd):
        lines = []
        for output in (False, lambda *line: lines.append(line)):
            with local("1/:", output=output) as pool:
                pool.submit(print, "one\ntwo").result(PATIENCE)
                pool.submit(lambda: print("three", file=sys.stderr)).result(PATIENCE)
        assert lines == [(":", "stdout", "one"), (":", "stdout", "two"), (":", "stderr", "three")]
        assert capfd.readouterr() == ("", "")

    def test_a_redirection_that_raises_is_logged_and_harms_nothing(self, local, caplog):
        with local("1/:", output=lambda *line: 1 // 0) as pool:
            assert pool.submit(print, "one").result(PATIENCE) is None
        assert "ZeroDivisionError" in caplog.text

    def test_the_log_has_sizes_where_it_might_have_content(self, local, caplog):
        """At DEBUG, too; and nothing at all while there is nothing to do."""
        def greet(name, _more=b""):
            return "good day " + name

        caplog.set_level("DEBUG", "executors")
        pool = local("1/:", heartbeat_seconds=0.1)
        for more in b"", bytes(2 << 20):        # in one frame, and in many
            assert pool.submit(greet, "hunter2", more).result(PATIENCE) == "good day hunter2"
        assert list(pool.map(greet, ["hunter2"], timeout=PATIENCE)) == ["good day hunter2"]
        with pytest.raises(ValueError, match="hunter2"):
            pool.submit(int, "hunter2").result(PATIENCE)
        until(lambda: caplog.text.count(" SETTLE ") == 4)
        assert re.search(r"LAUNCH \d+ : \S+greet <0\.\d{3} kB>\n", caplog.text)
        assert re.search(r"SETTLE \S+greet \d+ <0\.\d{3} kB>\n", caplog.text)
        assert "hunter" not in caplog.text and "good day" not in caplog.text
        channel, = pool._supervisor.channels.values()
        logged, reads = caplog.text, channel._reads
        until(lambda: channel._reads > reads + 5, "answers to pings")
        assert caplog.text == logged


# ─────────────────────────────────────────── scoreboard ───────────────────────────────────────────


class Terminal:
    """A script in a real pseudo-terminal, seen by a terminal emulator."""

    def __init__(self, folder, script, columns=80, rows=24, **environment):
        (folder / "script.py").write_text(textwrap.dedent(script))
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream, self._raw = pyte.ByteStream(self.screen), b""
        self._fd, far = os.openpty()
        self.resize(columns, rows)
        environment = {**os.environ, "PYTHONPATH": HERE, "TERM": "xterm", **environment}
        self.process = subprocess.Popen([sys.executable, "script.py"], cwd=folder, stdin=far,
                                        stdout=far, stderr=far, env=environment,
                                        start_new_session=True)
        os.close(far)

    def resize(self, columns, rows):
        self.screen.resize(rows, columns)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, condition=lambda: False):
        """Take what comes until a condition holds, or until the script has ended; return it all."""
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
        columns = range(self.screen.columns)
        gone = ["".join(row[column].data for column in columns) for row in self.screen.history.top]
        return [line.rstrip() for line in [*gone, *self.screen.display]]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


@pytest.fixture
def terminal(tmp_path):
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(
            closing(Terminal(tmp_path, *args, **options)))


class TestScoreboard:
    SCRIPT = """
        import executors, os, sys, time, logging, pathlib
        def work(n):
            while not os.path.exists("go"):
                time.sleep(0.01)
            print("from task", n)
        workers = ["2/:", "1/no-such-host.invalid"]
        with executors.RemoteExecutor(workers, title="farm", heartbeat_seconds=0.5) as pool:
            futures = [pool.submit(work, n) for n in range(12)]
            while pool.status.running < 2 or pool.status.workers[1].state != "failed":
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

    def test_it_stands_below_all_that_is_printed_and_leaves_a_summary(self, terminal, tmp_path):
        seen = terminal(self.SCRIPT)
        seen.read(lambda: any("half a" in line for line in seen.lines)
                  and "longest" in seen.screen.display[-2])
        head, up, down = (line.rstrip() for line in seen.screen.display[-3:])
        assert head == "farm: 0 done, 2 running, 10 waiting"
        assert up.split()[:3] == ["2/:", "2/2", "slots"] and up.split()[-1] == "work"
        assert "failed: ssh: Could not res" in down
        seen.read(lambda: "half a line" in seen.lines)
        (tmp_path / "go").touch()
        seen.read()
        lines = seen.lines
        printed = [line for line in lines if line.startswith("line")]
        assert printed == [f"line {n}" for n in range(30)]
        at = lines.index("ERROR:root:an error")
        said = ["of two lines", "from a child", "also from a child", "half a line"]
        assert lines[at + 1:at + 5] == said
        from_tasks = sorted(line for line in lines if line.startswith("here:"))
        assert from_tasks == sorted(f"here: from task {n}" for n in range(12))
        assert not [line for line in lines if "slots" in line]
        at, = (n for n, line in enumerate(lines) if line.startswith("farm: 12 done, "))
        assert any("##" in line for line in lines[at:]) and "bye" in lines[at:]
        assert "count 12" in "\n".join(lines[at:])
        margins = seen.screen.margins
        assert margins is None or margins.bottom == 23      # the whole screen scrolls again

    def test_it_survives_resizing_and_narrow_terminals(self, terminal, tmp_path):
        seen = terminal(self.SCRIPT)

        def is_drawn():
            display, margins = seen.screen.display, seen.screen.margins
            return (display[-1].startswith("  1/no-") and "2/2 slots" in display[-2]
                    and margins and margins.bottom < len(display) - 2
                    and sum("slots" in line for line in display) == 1)

        for columns, rows in ((80, 24), (40, 20), (100, 30), (25, 8), (60, 12)):
            seen.resize(columns, rows)
            seen.read(is_drawn)
            assert all(len(line.rstrip()) < columns for line in seen.screen.display[-3:])
        (tmp_path / "go").touch()
        seen.read()
        assert "bye" in seen.lines
        assert not [line for line in seen.screen.display if "slots" in line]

    def test_a_program_that_resets_the_terminal(self, terminal, tmp_path):
        reset = "os.system(\"printf '\\033[r\\033[H\\033[J'; "
        seen = terminal(self.SCRIPT.replace('os.system("', reset))
        seen.read(lambda: "half a line" in seen.lines and seen.screen.margins
                  and "2/2 slots" in seen.screen.display[-2])
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
        assert "half a line" in seen.lines
        assert not [line for line in seen.lines if "slots" in line]

    # A shell that has a job and the terminal; the job gets the terminal only if it is in front.
    SHELL = """
        import fcntl, os, signal, subprocess, sys, termios

        def begin():
            os.setpgrp()
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)

        def wait_in_front():
            os.tcsetpgrp(0, job.pid)
            os.killpg(job.pid, signal.SIGCONT)
            _, status = os.waitpid(job.pid, os.WUNTRACED)
            os.tcsetpgrp(0, os.getpgrp())
            return status

        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        job = subprocess.Popen([sys.executable, "job.py"], preexec_fn=begin)
        """

    def test_ctrl_z_gives_the_terminal_back(self, terminal, tmp_path):
        (tmp_path / "job.py").write_text(textwrap.dedent(self.SCRIPT))
        seen = terminal(self.SHELL + """
        print("stopped:", os.WIFSTOPPED(wait_in_front()), flush=True)
        input()
        print("ended:", os.WIFEXITED(wait_in_front()), flush=True)
        """)

        def is_drawn():
            return (seen.screen.margins and seen.screen.margins.bottom < 23
                    and "2/2 slots" in seen.screen.display[-2])

        seen.read(lambda: "half a line" in seen.lines and is_drawn())
        os.write(seen._fd, b"\x1a")
        seen.read(lambda: "stopped: True" in "\n".join(seen.lines) and not is_drawn())
        assert seen.screen.margins is None or seen.screen.margins.bottom == 23
        assert not [line for line in seen.lines if "slots" in line]
        os.write(seen._fd, b"\n")
        seen.read(is_drawn)
        assert sum("slots" in line for line in seen.lines) == 1
        (tmp_path / "go").touch()
        seen.read()
        assert "bye" in seen.lines and seen.lines.index("ended: True") > seen.lines.index("bye")
        assert not [line for line in seen.lines if "slots" in line]

    def test_a_job_in_the_background_leaves_the_terminal_alone(self, terminal, tmp_path):
        """It is not even stopped where those are that write there (`stty tostop`)."""
        (tmp_path / "job.py").write_text(
            "import executors, time\n"
            "with executors.RemoteExecutor('1/:', heartbeat_seconds=0.1) as pool:\n"
            "    pool.submit(time.sleep, 1).result()\n")
        seen = terminal(self.SHELL.replace("job =", """
        settings = termios.tcgetattr(0)
        settings[3] |= termios.TOSTOP
        termios.tcsetattr(0, termios.TCSANOW, settings)
        job =""") + """
        _, status = os.waitpid(job.pid, os.WUNTRACED)
        print("ended:", os.WIFEXITED(status), flush=True)
        """)
        assert seen.read() == b"ended: True\r\n"

    @pytest.mark.parametrize("environment, color", [({}, True), ({"NO_COLOR": "1"}, False)])
    def test_no_color(self, terminal, tmp_path, environment, color):
        seen = terminal(self.SCRIPT, **environment)
        seen.read(lambda: "2/2 slots" in seen.screen.display[-2])
        (tmp_path / "go").touch()
        assert (b"\x1b[1m" in seen.read()) == color

    @pytest.mark.parametrize("script, environment", [
        (SCRIPT.replace("title=", "show_status=False, title="), {}), (SCRIPT, {"TERM": "dumb"}),
        (SCRIPT, {"TERM": ""})])
    def test_it_can_be_turned_off(self, terminal, tmp_path, script, environment):
        seen = terminal(script, **environment)
        seen.read(lambda: any("line 29" in line for line in seen.lines))
        (tmp_path / "go").touch()
        assert b"\x1b" not in seen.read() and "farm: 12 done" not in "".join(seen.lines)

    def test_it_can_be_exported(self, ssh):
        pool = ssh("1/alpha", "1/no-such-host.invalid", title="farm")
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        until(lambda: pool.status.workers[1].state == "failed")
        status = pool.status
        found = json.loads(json.dumps(status.as_dict()))
        assert found == status.as_dict() and found["title"] == "farm" and found["done"] == 1
        assert [worker["state"] for worker in found["workers"]] == ["up", "failed"]
        assert found["workers"][0]["found"]["cores"] == str(wire._count_cores())
        assert found["left"] is None
        for one, known in (status, found), (status.workers[0], found["workers"][0]):
            assert all(re.search(rf"^ +(.*, )?{name}[,:]|`{name}`", type(one).__doc__, re.MULTILINE)
                       for name in known)       # each is documented
        assert json.dumps(dataclasses.asdict(status))

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

    def test_a_full_queue_does_not_hold_up_the_heartbeat(self):
        """What is printed may be stuck (Ctrl-S); pings go on."""
        board, stuck = executors._Scoreboard(True, True), threading.Event()
        status = executors.RemoteExecutorStatus("farm", running=1)
        board._queue.put((stuck.wait,))
        while board._queue.qsize() < 1000:
            board._queue.put((str,))
        ticks = threading.Thread(
            target=lambda: [board.tick(lambda: status, True) for _ in range(9)])
        ticks.start()
        ticks.join(PATIENCE)
        assert not ticks.is_alive()
        stuck.set()
        board.quiet = True
        board.finish(status, executors.Histogram())

    @pytest.mark.parametrize("columns, rows", [(80, 24), (40, 24), (20, 5), (12, 3)])
    def test_layout(self, columns, rows):
        workers = [executors.WorkerStatus(f"8/me@machine{n}", "up", 8, 8, 3, 10_000, 1.24, 2.5, 3.9,
                                          "simulate", 1, 2) for n in range(30)]
        workers.insert(1, executors.WorkerStatus("lab", "waiting", retry_in=5, lost=2,
                                                 cause="no\x1b[2J\nroute"))
        status = executors.RemoteExecutorStatus(
            "farm", 40, 8, 112, 1, 2, 3, 4, 3.21, 12.5, 1.24, 2.5, tuple(workers))
        lines = status._lay_out(columns, rows)
        assert len(lines) <= rows and max(map(len, lines)) <= columns
        assert "\x1b" not in "".join(lines)
        if columns == 80:
            assert lines[-1] == "  ... and 10 more up, 0 not up"
            assert "next try in 5 s: no [2J route" in lines[3]
            assert "longest" in lines[2] and "simulate" in lines[2]

    @pytest.mark.parametrize("columns", [80, 41, 12])
    def test_layout_of_wide_characters(self, columns):
        """East Asian ones take two columns, accents that follow their letter none."""
        from wcwidth import wcswidth
        waiting = executors.WorkerStatus("研究室の機械", "waiting", cause="接続できません" * 20)
        up = executors.WorkerStatus("8/me@e\u0301te\u0301", "up", 8, 8, 3, longest=3.9,
                                    function="模擬実験")
        status = executors.RemoteExecutorStatus("農場" * 30, done=3, workers=(waiting, up))
        lines = status._lay_out(columns, 24)
        assert max(map(wcswidth, lines)) in (columns, columns - 1)
        *_, first, second = lines
        if columns == 80:
            assert wcswidth(first.partition("waiting")[0]) == wcswidth(second.partition("  8/8")[0])
            assert "模擬実験" in second

    def test_time_left_only_when_it_can_be_known(self):
        farm = Farm("1/a")
        bundles = [farm.submit() for _ in range(10)]
        farm.tick()

        def status():
            return executors._take_status("t", farm.scheduler, {})

        for _ in range(3):
            assert status().left is None
            farm.tick(1)
            farm.finish(*farm.running.values())
        farm.tick()
        assert status().rate == pytest.approx(1.0) and status().left == pytest.approx(6 + 1)
        assert len(bundles) == status().done + status().running + status().waiting


class TestNotebooks:
    def test_what_a_pool_says_it_is(self, local):
        pool = local("2/:", "1/no-such-host.invalid", title="<farm>")
        assert pool.submit(neg, 1).result(PATIENCE) == -1
        until(lambda: pool.status.workers[1].state == "failed")
        until(lambda: not pool.task_count)
        assert repr(pool) == "<RemoteExecutor '<farm>': 1 of 2 machines up, 2 slots, 0 tasks>"
        table = pool._repr_html_()
        assert table.count("<tr>") == 2 and "&lt;farm&gt;: 1 done" in table
        assert "Could not resolve hostname" in table

    def run_cells(self, *cells):
        """Run cells in a real kernel; return each one's outputs, as `(kind, text)`."""
        import nbclient
        import nbformat
        book = nbformat.v4.new_notebook()
        first = f"""
            import os, signal, sys, threading, time
            sys.path.insert(0, {HERE!r})
            import executors"""
        book.cells = [nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in (first, *cells)]
        nbclient.NotebookClient(book, timeout=60, allow_errors=True).execute()
        return [[(one.output_type, str(one.get("data", one.get("text", one.get("ename")))))
                 for one in cell.outputs] for cell in book.cells[1:]]

    INTERRUPT = """
        began = os.path.abspath("began")
        def interrupt():
            while not os.path.exists(began):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)
        def work():
            open(began, "w").close()
            time.sleep(100)
        def submit():
            threading.Thread(target=interrupt).start()
            return [pool.submit(work) for _ in range(3)]
        pool = executors.RemoteExecutor("2/:")
        """

    @pytest.mark.parametrize("cell", [
        "futures[0].result()",
        "import asyncio\nwhile not futures[0].done(): await asyncio.sleep(0.1)",
        "try: futures[0].result()\nfinally: 1 // 0", "get_ipython().run_cell('1'); time.sleep(50)"])
    def test_an_interrupted_cell_takes_what_it_submitted(self, tmp_path, cell):
        """And nothing else: what came from another cell, and what a thread submits, is done."""
        *_, interrupted, later, last = self.run_cells(
            f"os.chdir({str(tmp_path)!r})", self.INTERRUPT, """
            mapped = pool.map(lambda n: time.sleep(0.05), range(100), chunksize=1, buffersize=4)
            earlier = pool.submit(time.sleep, 3)""",
            "futures = submit()\n" + cell,
            "print([future.cancelled() for future in futures])", """
            print(earlier.result(), len([*mapped]))
            pool.shutdown(quiet=True)""")
        assert "error" in [kind for kind, _ in interrupted]     # the status may be drawn after it
        assert ("stream", "[True, True, True]\n") in later
        assert ("stream", "None 100\n") in last

    def test_an_interrupted_cell_shows_when_its_kills_are_done(self, tmp_path):
        *_, interrupted = self.run_cells(
            f"os.chdir({str(tmp_path)!r})",
            self.INTERRUPT.replace("time.sleep(100)", "signal.signal(signal.SIGTERM, "
                                   "signal.SIG_IGN)\n            time.sleep(100)"),
            "futures = submit()\ntime.sleep(50)")
        shown = dict(interrupted)["display_data"]
        assert "3 cancelled" in shown and "0/2 slots" in shown and "longest" not in shown

    def test_in_a_kernel(self, tmp_path):
        """The status stands in the cell that has work done, and what tasks print below it."""
        _, first, second, idle, pool, last = self.run_cells(
            "pool = executors.RemoteExecutor('2/:', title='one')",
            "print(sum(1 for _ in pool.map(time.sleep, [0.5] * 6)))",
            "print(sum(1 for _ in pool.map(time.sleep, [0.5] * 6)))",
            "time.sleep(1.5)",
            "pool",
            """
            def say(n):
                print("said")
                time.sleep(1)
            pool.submit(say, 1).result()
            pool.shutdown(quiet=True)""")
        for outputs in first, second:
            assert sorted(kind for kind, _ in outputs) == ["display_data", "stream"] and not idle
        assert "<caption>one: 6 done," in dict(first)["display_data"]
        assert "running" not in dict(first)["display_data"]
        assert "<caption>one: 12 done" in dict(second)["display_data"]
        assert "'text/plain': 'one: 12 done" in dict(second)["display_data"]
        assert "1 of 1 machines up" in str(pool) and "<table>" in str(pool)
        assert "<caption>one: 13 done" in dict(last)["display_data"]
        assert "here: said" in dict(last)["stream"]

    def test_where_there_is_no_terminal_a_line_is_written_now_and_then(self, tmp_path):
        done = run(f"""
            import executors, time
            executors.STATUS_LINE_SECONDS = 0.4
            for show in None, False:
                with executors.RemoteExecutor("1/:", show_status=show, heartbeat_seconds=9) as pool:
                    pool.submit(time.sleep, 1.5).result()
            """)
        assert "RemoteExecutor: 0 done, 1 running\n" in done.stderr, done.stderr
        assert done.stderr.count("RemoteExecutor: 1 done") == 1 == done.stderr.count("count 1")


class TestTrace:
    def test_every_attempt_is_a_span_per_machine_and_slot(self, ssh, tmp_path):
        pool = ssh("2/alpha", "1/beta", max_bundle_failures=2, schedule_backups=False)
        until(lambda: all(worker.state == "up" for worker in pool.status.workers))
        list(pool.map(time.sleep, [0.001] * 200, chunksize=1))
        pool.submit(crash).exception(PATIENCE)
        future = pool.submit(touch_and_wait, str(tmp_path / "began"))
        until((tmp_path / "began").exists)
        future.cancel()
        until(lambda: not any(worker.busy for worker in pool.status.workers))
        pool.status.trace(tmp_path / "run.json")
        events = json.loads(read(tmp_path / "run.json"))["traceEvents"]
        spans = [event for event in events if event["ph"] == "X"]
        assert len(spans) == 203
        crashed = "killed by SIGKILL (out of memory?)"
        others = sorted(event["cat"] for event in spans if event["cat"] != "returned")
        assert others == ["killed", crashed, crashed]
        names = {event["pid"]: event["args"]["name"].split()[0] for event in events
                 if event["name"] == "process_name"}
        rows = {}
        for event in spans:
            row = rows.setdefault((names[event["pid"]], event["tid"]), [])
            row.append((event["ts"], event["dur"]))
        assert {*rows} == {("2/alpha", 0), ("2/alpha", 1), ("1/beta", 0)}
        for row in rows.values():       # nothing overlaps in a slot
            row.sort()
            assert all(ts + dur <= after + 1 for (ts, dur), (after, _) in itertools.pairwise(row))
        again = [event for event in events if event["name"] == "again"]
        assert [event["ph"] for event in again] == ["s", "f"]
        assert again[0]["pid"] != again[1]["pid"]
        assert min(event["ts"] for event in spans) >= 0

    def test_what_was_lost_and_what_still_runs(self, ssh, tmp_path):
        pool = ssh("3/alpha", schedule_backups=False)
        futures = [pool.submit(wait_for, str(tmp_path / "go")) for _ in range(3)]
        begun(tmp_path / "go", 3)
        time.sleep(0.5)     # for them to have a length
        os.kill(Machine.of(pool, "alpha").ssh, signal.SIGKILL)
        until(lambda: pool.status.retried == 3 and pool.status.workers[0].busy == 3)
        pool.status.trace(tmp_path / "run.json")
        events = json.loads(read(tmp_path / "run.json"))["traceEvents"]
        spans = [event for event in events if event["ph"] == "X"]
        assert sorted(span["cat"] for span in spans) == ["lost"] * 3 + ["running"] * 3
        assert all(span["dur"] > 400_000 for span in spans if span["cat"] == "lost")
        assert len({span["tid"] for span in spans}) == 6
        (tmp_path / "go").touch()
        executors.wait_all(futures)

    def test_its_memory_is_bounded_and_a_snapshot_stands_still(self, local, tmp_path, monkeypatch):
        pool = local("2/:")
        list(pool.map(neg, range(10), chunksize=1))
        early = pool.status
        list(pool.map(neg, range(executors.TRACE_LENGTH + 1000), chunksize=1))
        assert len(pool.status._spans) == executors.TRACE_LENGTH
        early.trace(tmp_path / "run.json")
        events = json.loads(read(tmp_path / "run.json"))["traceEvents"]
        assert sum(event["ph"] == "X" for event in events) == 10


# ──────────────────────────────────── defaults and parallelize ────────────────────────────────────


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
        assert first.process_pool() is second.process_pool()
        assert first.remote_pool() is second.remote_pool()
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
                total(total(["x"])).result(PATIENCE)

    def test_many_futures_among_the_arguments(self):
        @executors.parallelize()
        def add(*numbers):
            return sum(numbers)

        gate = threading.Event()
        slow = executors.DefaultExecutors().thread_pool().submit(lambda: gate.wait(PATIENCE) and 5)
        total = add(slow, *(add(n) for n in range(20)), slow)
        assert not total.done()
        gate.set()
        assert total.result(PATIENCE) == 200

    def test_a_call_that_waited_is_cancelled_as_any_other(self, local, tmp_path):
        pool, awaited = local("1/:"), cf.Future()
        call = executors.parallelize(pool)(touch_and_wait)
        running, queued = call(awaited), call(awaited)
        assert not running.running()
        awaited.set_result(str(tmp_path / "began"))
        until((tmp_path / "began").exists)
        assert running.running() and running.cancel() and running.cancelled()
        assert queued.cancel() and not queued.running()
        assert cf.wait([running, queued], PATIENCE).done == {running, queued}
        with pytest.raises(cf.CancelledError):
            running.result(PATIENCE)
        assert pool.submit(neg, 1).result(PATIENCE) == -1       # what ran is killed

    def test_a_call_that_waited_and_cannot_be_cancelled_any_more(self, tmp_path):
        with executors.ThreadExecutor(1) as pool:
            early, awaited = cf.Future(), cf.Future()
            call = executors.parallelize(pool)(wait_for)
            running, never = call(awaited), call(early)
            assert never.cancel()
            early.set_result(None)
            assert cf.wait([never], PATIENCE).done
            awaited.set_result(tmp_path / "go")
            begun(tmp_path / "go")
            assert running.running() and not running.cancel() and not running.done()
            (tmp_path / "go").touch()
            assert running.result(PATIENCE) == os.getpid() and not running.cancel()

    def test_an_awaited_call_fails_if_its_executor_cannot_be_made(self, monkeypatch, tmp_path):
        monkeypatch.delenv("EXECUTORS_REMOTE_WORKERS")
        monkeypatch.setenv("HOME", str(tmp_path))
        one = executors.parallelize()(lambda: 1)
        two = executors.parallelize(executors.Method.REMOTE)(neg)
        with pytest.raises(ValueError, match="no remote workers"):
            two(one()).result(PATIENCE)

    def test_wait_all_raises_at_once(self, tmp_path):
        pool = executors.DefaultExecutors().thread_pool()
        slow = pool.submit(wait_for, str(tmp_path / "go"))
        with pytest.raises(ZeroDivisionError):
            executors.wait_all([slow, pool.submit(divmod, 1, 0)])
        assert not slow.done()
        (tmp_path / "go").touch()

    def test_a_child_forked_while_a_pool_is_made(self):
        done = run("""
            import executors, os, threading
            default = executors.DefaultExecutors()
            made, forked = threading.Event(), threading.Event()
            class Slow(executors.ThreadExecutor):
                def __init__(self, **options):
                    made.set()
                    forked.wait()
                    super().__init__(**options)
            executors.ThreadExecutor, original = Slow, executors.ThreadExecutor
            maker = threading.Thread(target=default.thread_pool)
            maker.start()
            made.wait()
            pid = os.fork()
            if not pid:
                executors.ThreadExecutor = original
                os._exit(default.thread_pool().submit(abs, -7).result())
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            forked.set()
            maker.join()
        """, timeout=30, env={"PYTHONWARNINGS": "ignore"})      # of a fork beside threads
        assert (done.stdout, done.stderr) == ("7\n", ""), done

    def test_a_pool_is_asked_for_while_this_thread_makes_it(self):
        """A finalizer or a signal handler may do so at any time."""
        done = run("""
            import executors
            default, made = executors.DefaultExecutors(), []
            class Nested(executors.ThreadExecutor):
                def __init__(self, **options):
                    super().__init__(**options)
                    made.append(self)
                    if len(made) == 1:
                        print(default.thread_pool().submit(abs, -7).result())
            executors.ThreadExecutor = Nested
            print(default.thread_pool() is default.thread_pool() is made[1])
            try:
                made[0].submit(abs, -7)
            except RuntimeError as error:
                print(error)
        """, timeout=30)
        assert done.stdout.splitlines() == [
            "7", "True", "cannot schedule new futures after shutdown"], done

    @pytest.mark.parametrize("how", ["fails", "cancelled", "succeeds"])
    def test_a_chain_of_calls_that_is_longer_than_the_stack(self, how):
        go = threading.Event()
        with executors.ThreadExecutor(1) as pool:
            @executors.parallelize(pool)
            def start():
                go.wait(PATIENCE)
                return 1 // (how != "fails")

            @executors.parallelize(pool)
            def add(total, number):
                return total + number

            blocker, chain = start(), [start()]
            for _ in range(1500):
                chain.append(add(chain[-1], 1))
            if how == "cancelled":
                assert chain[0].cancel()
            go.set()
            expected = {"fails": ZeroDivisionError, "cancelled": cf.CancelledError}.get(how)
            assert len(cf.wait([blocker, *chain], PATIENCE).done) == 1502
            if expected:
                with pytest.raises(expected):
                    chain[-1].result()
            else:
                assert chain[-1].result() == 1501

    def test_parentheses_are_asked_for(self):
        with pytest.raises(TypeError, match="parentheses"):
            executors.parallelize(neg)
        with pytest.raises(TypeError, match="such as Method.PROCESS, got 'process'"):
            executors.parallelize("process")

    def test_no_workers_configured(self, monkeypatch, tmp_path):
        monkeypatch.delenv("EXECUTORS_REMOTE_WORKERS")
        monkeypatch.setenv("HOME", str(tmp_path))
        words = r"EXECUTORS_REMOTE_WORKERS.*\.config/executors/workers"
        with pytest.raises(ValueError, match=words):
            executors.DefaultExecutors().remote_pool()
        (tmp_path / ".config/executors").mkdir(parents=True)
        text = "# the lab\n1/:   # this one\n\n"
        (tmp_path / ".config/executors/workers").write_text(text)
        with RemoteExecutor(show_status=False) as pool:
            assert pool.submit(neg, 1).result(PATIENCE) == -1
        pool = executors.DefaultExecutors().remote_pool()
        assert pool.submit(neg, 1).result(PATIENCE) == -1

    def test_running_work_is_finished_at_exit(self):
        done = run("""
            import executors
            @executors.parallelize(executors.Method.REMOTE)
            def inner(n):
                return n + 1
            @executors.parallelize(executors.Method.THREAD)
            def outer(n):
                print(f"{inner(n).result()}\\n", end="", flush=True)
            for n in range(3):
                outer(n)
        """, env={"EXECUTORS_REMOTE_WORKERS": "2/:"})
        assert sorted(done.stdout.split()) == ["1", "2", "3"] and not done.stderr, done


# ────────────────────────────────────────── integrations ──────────────────────────────────────────


class TestJoblib:
    @pytest.fixture
    def parallel(self, remote):
        with joblib.parallel_config(backend=executors.joblib_backend(remote)):
            yield lambda function, *columns, **options: joblib.Parallel(**options)(
                joblib.delayed(function)(*row) for row in zip(*columns))

    def test_shared_arrays_go_with_their_call(self, local):
        """A machine forgets them when `Parallel` is done."""
        pool, array = local("1/:"), numpy.ones(3_000_000)
        with joblib.parallel_config(backend=executors.joblib_backend(pool)):
            found = joblib.Parallel()(joblib.delayed(numpy.sum)(array) for _ in range(3))
        assert found == [3_000_000] * 3
        channel, = pool._supervisor.channels.values()
        until(lambda: max(map(executors._size, (
            function.packed for function in channel._known.values())), default=0) < 10_000)
        assert pool.submit(neg, 1).result(PATIENCE) == -1

    def test_results_errors_and_batches(self, parallel, remote):
        def work(n):
            return n * n if n < 900 else 1 // 0
        assert parallel(work, range(800)) == [n * n for n in range(800)]
        assert parallel(work, range(10), n_jobs=2) == [n * n for n in range(10)]
        with pytest.raises(ZeroDivisionError):
            parallel(work, range(890, 910))
        assert sorted(parallel(work, range(50), return_as="generator_unordered")) == [
            n * n for n in range(50)]

    def test_the_rest_is_aborted(self, parallel, remote, tmp_path):
        def work(path, n):
            return wait_for(path) if n else 1 // 0
        with pytest.raises(ZeroDivisionError):
            parallel(work, [str(tmp_path / "never")] * 50, range(50))
        until(lambda: not remote.task_count)

    def test_what_is_nested_stays_in_its_slot(self, parallel):
        def outer(n):
            inner = joblib.Parallel(n_jobs=-1)(joblib.delayed(os.getpid)() for _ in range(5))
            return {*inner} == {os.getpid()}
        assert parallel(outer, range(4)) == [True] * 4

    def test_what_is_nested_gets_the_jobs_it_asks_for(self, parallel):
        def outer():
            meeting = threading.Barrier(3)

            def inner(n):
                meeting.wait(PATIENCE)
                return n, joblib.effective_n_jobs(3)
            calls = map(joblib.delayed(inner), range(3))
            return joblib.effective_n_jobs(None), joblib.Parallel(n_jobs=3)(calls)
        assert parallel(lambda _: outer(), range(4)) == [(1, [(n, 1) for n in range(3)])] * 4

    @pytest.mark.parametrize("worker", ["alpha", "1/alpha"])
    def test_nothing_runs_here_while_machines_come_up(self, ssh, worker):
        with joblib.parallel_config(backend=executors.joblib_backend(ssh(worker))):
            pids = joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(4))
        assert os.getpid() not in pids

    def test_no_jobs_and_a_name(self, parallel, remote, capsys):
        with pytest.raises(ValueError, match="n_jobs == 0 in Parallel has no meaning"):
            parallel(abs, [1], n_jobs=0)
        assert parallel(abs, [-1, -2], verbose=10) == [1, 2]
        assert f"backend ExecutorsBackend with {remote.size} concurrent" in capsys.readouterr().err

    def test_an_adopted_pool_needs_no_module_of_ours(self):
        foreign = Foreign()
        backend = executors.joblib_backend(executors.PoolExecutor(foreign))
        with joblib.parallel_config(backend=backend, n_jobs=2):
            found = joblib.Parallel()(joblib.delayed(len)(numpy.ones(n)) for n in (2, 200_000))
        assert found == [2, 200_000] and foreign.calls
        for call in foreign.calls:
            assert b"executors" not in call and b"remote_worker" not in call

    def test_shared_arrays_go_over_once(self, local):
        """Wherever in the arguments they are; and others do not stand in line."""
        shared = numpy.arange(300_000)

        def look(n, where, own):
            return os.getpid(), where["array"][0].ctypes.data, int(where["array"][0][n]), own[0]

        pool = local("2/:")
        with joblib.parallel_config(backend=executors.joblib_backend(pool)):
            found = joblib.Parallel()(joblib.delayed(look)(n, {"array": [shared]}, [n])
                                      for n in range(40))
            assert [one[2:] for one in found] == [(n, n) for n in range(40)]
            assert len({one[:2] for one in found}) == len({one[0] for one in found}) <= 2
            sums = joblib.Parallel()(joblib.delayed(numpy.sum)(numpy.full(200_000, n))
                                     for n in range(40))
        assert sums == [200_000 * n for n in range(40)]

    def test_arrays_that_are_copied_to_be_pickled(self, local):
        """They die at once, and the next one may have the same number."""
        block = numpy.arange(16 * 200_000).reshape(200_000, 16)
        with joblib.parallel_config(backend=executors.joblib_backend(local("2/:"))):
            found = joblib.Parallel()(joblib.delayed(lambda column: int(column[0, 0]))(
                block[:, n:n + 1]) for n in range(16))
        assert found == [*range(16)]

    def test_threads_and_processes_too(self, shared):
        for kind in ("thread", "process"):
            with joblib.parallel_config(backend=executors.joblib_backend(shared(kind))):
                assert joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(9)) == [*range(9)]

    def test_numbers_of_jobs(self, local):
        backend = executors.joblib_backend(local("3/:"))
        numbers = (-1, -2, -9, 1, 5, None)      # never 1, unless it is asked for
        assert [backend.effective_n_jobs(n) for n in numbers] == [3, 2, 2, 1, 5, 3]


# ────────────────────────────────────────── command line ──────────────────────────────────────────


class TestCommandLine:
    def run(self, *arguments, **options):
        return run([sys.executable, "-m", "executors"], *arguments, **options)

    def test_selftest(self, tmp_path):
        done = self.run("--selftest", env={"TMPDIR": str(tmp_path)})
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("results are right\n") == 3
        assert done.stdout.endswith("all checks passed\n")
        assert "private sshd" in done.stdout and "p95" in done.stdout
        assert "\x1b" not in done.stdout and not done.stderr
        assert not os.listdir(tmp_path)

    def test_selftest_on_named_workers(self):
        done = self.run("--selftest", "--workers", "2/:")
        assert done.returncode == 0 and "RemoteExecutor: 2/:" in done.stdout

    def test_selftest_fails_honestly(self):
        done = self.run("--selftest", "--workers", "no-such-host.invalid")
        assert done.returncode == 1 and "some checks FAILED" in done.stdout, done.stdout
        assert "resolve" in done.stdout

    # What each stage found, in one line if there is room for it.
    FOUND = {"name": "ok", "TCP": "ok", "login": "ok", "shell": "quiet",
             "python": "{}.{}.{}".format(*sys.version_info), "interpreter": sys.executable,
             "start": r"\S+ \S+", "cores": r"\d+", "trip": r"\S+ \S+",
             "MB/s": r"[\d.]+ there and [\d.]+ back", "scp": "ok"}

    def paragraph(self, machine, **found):
        """Return a pattern for what is said of a machine, which found all this."""
        return f"{machine}: " + ", ".join(f"{stage} {text}" for stage, text in found.items())

    @pytest.mark.parametrize("columns", [80, 40])
    def test_check(self, columns):
        """A paragraph for each machine, in lines that fit; and what did not do is below it."""
        done = self.run("--check", "--workers", ":,no-such-host.invalid",
                        env={"COLUMNS": str(columns)})
        assert done.returncode == 1, done.stdout
        assert max(map(len, done.stdout.splitlines())) < columns
        words = " ".join(done.stdout.split())
        assert "name: ssh: Could not resolve hostname" in words and "check the name" in words
        assert words.endswith("some checks FAILED: see above")
        reached = {stage: text for stage, text in self.FOUND.items()
                   if stage not in ("name", "TCP", "login", "scp")}     # there is no ssh to here
        reached["interpreter"] = ".*"
        # What is wider than a line is broken anywhere.
        assert re.search(self.paragraph("here", **reached).replace(" ", ""),
                         words.replace(" ", "")), words
        paragraphs = re.split(r"\n(?! )", done.stdout)
        assert "no-such-host.invalid: name FAILED" in paragraphs

    def test_check_of_this_machine_alone(self):
        assert self.run("--check", "--workers", "1/:").returncode == 0

    def test_check_passes_every_stage(self, sshds):
        cache = pathlib.Path(sshds[0].folder, ".cache/executors")     # alpha's
        before = {*cache.glob("*")}
        done = self.run("--check", "--workers", f"alpha python={sys.executable}",
                        "--ssh_options", f"-F {sshds[0].path('config')}",
                        env={"COLUMNS": "1000"})
        assert done.returncode == 0, done.stdout + done.stderr
        paragraph = self.paragraph("alpha", **self.FOUND)
        assert re.fullmatch(f"{paragraph}\nall checks passed\n", done.stdout), done.stdout
        assert {*cache.glob("*")} <= before

    @pytest.mark.parametrize("stage, worker, options, words", [
        ("login", "alpha", "-o IdentityFile=none", "Permission denied"),
        ("TCP", "alpha", "-p 1", "Connection refused"),
        ("python", "alpha python=/no/python", "", "Looked in: /no/python"),
    ])
    def test_check_names_the_stage_that_fails(self, sshds, tmp_path, stage, worker, options, words):
        config, text = tmp_path / "config", read(sshds[0].path("config"))
        hidden = "#" if stage == "login" else "IdentityFile"
        config.write_text(text.replace("IdentityFile", hidden))
        done = self.run("--check", "--workers", worker, "--ssh_options", f"{options} -F {config}")
        assert done.returncode == 1 and f"alpha: {stage}: " in done.stdout, done.stdout
        assert words in " ".join(done.stdout.split()), done.stdout

    def test_check_imports(self, sshds):
        done = self.run("--check", "--workers", f"alpha python={sys.executable}", "--import",
                        "numpy,no_such_module", "--ssh-options", f"-F {sshds[0].path('config')}",
                        env={"COLUMNS": "1000"})
        stages, why, *_ = done.stdout.splitlines()
        assert stages.startswith("alpha: ") and done.returncode == 1
        assert stages.split(", ")[-2:] == [
            f"import numpy {numpy.__version__}", "import no_such_module FAILED"]
        assert why.startswith("alpha: import no_such_module: No module named 'no_such_module'")

    def test_without_cloudpickle(self, tmp_path):
        """What is to be done is said at once, wherever one begins."""
        venv.create(tmp_path / "env", symlinks=True)
        for how, code in (["-m", "executors", "--selftest"], 2), (
                ["-c", "import executors; executors.RemoteExecutor(':')"], 1), (
                ["-c", "import executors; executors.ProcessExecutor()"], 1):
            done = run([str(tmp_path / "env/bin/python"), *how], cwd=HERE)
            assert done.returncode == code, done
            assert done.stderr.endswith("not installed here: pip install cloudpickle\n"), done

    def test_check_has_a_limit_for_each_stage(self, tmp_path):
        (tmp_path / "hangs.py").write_text("import time\ntime.sleep(1000)\n")
        done = run("""
            import executors, sys
            executors.CHECK_SECONDS = 20, 1
            sys.exit(executors._main(["--check", "--workers", "1/:", "--import", "hangs"]))
            """, cwd=tmp_path, env={"PYTHONPATH": f"{HERE}:{tmp_path}"})
        assert "here: import hangs: not done after 1 s\n" in done.stdout, done
        assert done.returncode == 1

    def test_check_interrupted_in_a_stage(self, tmp_path):
        (tmp_path / "hangs.py").write_text(
            f"import time\nopen({str(tmp_path / 'began')!r}, 'w')\ntime.sleep(1000)\n")
        process = subprocess.Popen(
            [sys.executable, "-m", "executors", "--check", "--workers", "1/:", "--import", "hangs"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": f"{HERE}:{tmp_path}"})
        until((tmp_path / "began").exists)
        children = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE)[1] == "interrupted\n"
        assert children and not any(map(alive, children))

    def test_check_interrupted(self):
        """Who is done has been told; one line, and no ssh is left where a login leads nowhere."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            options = f"-p {silent.getsockname()[1]}"
            script = ("import executors; executors._main("
                      f"['--check', '--workers', '127.0.0.1,:', '--ssh_options', '{options}'])")
            process = subprocess.Popen([sys.executable, "-c", script], cwd=HERE, text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            with silent.accept()[0]:
                said = process.stdout.readline()
                assert said.startswith("here: shell quiet, ")
                while "MB/s " not in said:      # the last stage of a machine without ssh
                    said += process.stdout.readline()
                children = descendants(process.pid)
                process.send_signal(signal.SIGINT)
                assert process.communicate(timeout=PATIENCE) == ("", "interrupted\n")
        assert children and not any(map(alive, children))

    def test_check_without_a_list(self, tmp_path):
        done = self.run("--check", env={"HOME": str(tmp_path), "EXECUTORS_REMOTE_WORKERS": ""})
        assert done.returncode == 2 and "--workers" in done.stderr, done.stderr

    def test_check_of_this_machine_without_a_cache(self):
        done = self.run("--check", "--workers", "1/:", env={"HOME": "/dev/null"})
        assert done.returncode == 1 and "some checks FAILED" in done.stdout, done.stdout
        assert "here: scp: cannot store files: " in " ".join(done.stdout.split()), done.stdout

    def test_nonsense(self):
        done = self.run("--check", "--workers", "x/y")
        assert done.returncode == 2 and "'x/y'" in done.stderr
        assert self.run().returncode == 2


# ───────────────────────────────────────────── frames ─────────────────────────────────────────────


def read_all(reader):
    out = []
    try:
        while True:
            out += reader.read()
    except EOFError:
        return out


@contextmanager
def stream(data):
    """Yield a descriptor that gives these bytes, then ends."""
    fd, out = os.pipe()

    def write():
        with os.fdopen(out, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    yield fd
    while os.read(fd, 1 << 20):
        pass
    writer.join()
    os.close(fd)


class TestFrames:
    def test_round_trip(self):
        frames = [(wire.PING, 0, b""), (wire.KILL, 2 ** 64 - 1, b"x"),
                  (wire.OUTPUT, 1, b"y" * 70_000), (wire.PONG, 1, b"")] * 3
        with stream(b"".join(wire.frame(*frame) for frame in frames)) as fd:
            read = read_all(wire.FrameReader(fd))
        assert frames == [
            (kind, ident, bytes(data[wire.HEADER_SIZE:])) for kind, ident, data in read]

    @pytest.mark.parametrize("length", range(1, 17 + 5))
    def test_truncation_says_what_was_expected(self, length):
        data = wire.frame(wire.KILL, 7, b"12345")
        with stream(data + data[:length]) as fd, pytest.raises(wire.FrameError) as caught:
            read_all(wire.FrameReader(fd))
        expected = 17 if length < 17 else 22
        assert f"expected {expected} bytes, got {length}" in str(caught.value)

    def test_truncation_inside_a_long_frame(self):
        data = wire.frame(wire.OUTPUT, 1, b"x" * 500_000)[:-1]
        with stream(data) as fd, pytest.raises(wire.FrameError, match="ended inside"):
            read_all(wire.FrameReader(fd))

    @pytest.mark.parametrize("size", [wire.MAX_FRAME + 1, 2 ** 63, 2 ** 64 - 1])
    def test_absurd_lengths(self, size):
        data = struct.pack("!BQQ", wire.OUTPUT, 0, size)
        with stream(data) as fd, pytest.raises(wire.FrameError, match=f"announces {size} bytes"):
            read_all(wire.FrameReader(fd))

    @pytest.mark.parametrize("size", [99_000, 60_000])
    def test_a_part_that_overruns(self, size):
        """It is told, whether it is read in place or not."""
        part = 100_000 if size == 99_000 else 60_001
        data = b"".join(map(bytes, wire.message(wire.RESULT, 1, 0, ([part], [b"x" * part]))))
        broken = data.replace(struct.pack("!Q", part), struct.pack("!Q", size), 1)
        with stream(broken) as fd, pytest.raises(wire.FrameError, match="overruns"):
            read_all(wire.MessageReader(fd))

    @pytest.mark.parametrize("value", [
        None, 1.5, "é" * 10, (1, (2, b"x")), list(range(50_000)), b"x" * 3_000_000, "y" * 200_000,
        {"a": numpy.arange(1_000_000), "b": numpy.ones(300_000), "c": [1, 2]},
        [numpy.full(n * 997 % 20_000 + 8192, n) for n in range(300)]])
    def test_messages(self, value):
        data = b"".join(map(bytes, wire.message(wire.RESULT, 5, 77, wire.pack(value))))
        with stream(data) as fd:
            (kind, ident, tag, segments), = read_all(wire.MessageReader(fd))
        assert (kind, ident, tag) == (wire.RESULT, 5, 77)
        assert pickle.dumps(wire.unpack(segments)) == pickle.dumps(value)

    def test_large_buffers_are_not_copied_into_the_pickle(self):
        lengths, _ = wire.pack(numpy.zeros(1_000_000))
        assert lengths[0] < 1000 and lengths[1] == 8_000_000

    def test_messages_interleave(self):
        one = wire.message(wire.RESULT, 1, 0, wire.pack(numpy.full(400_000, 1.0)))
        two = wire.message(wire.RESULT, 2, 0, wire.pack(numpy.full(400_000, 2.0)))
        mixed = [one[0], two[0]]
        for at in range(1, len(one), 2):
            mixed += [*one[at:at + 2], wire.frame(wire.PONG), *two[at:at + 2]]
        with stream(b"".join(map(bytes, mixed))) as fd:
            messages = read_all(wire.MessageReader(fd))
        results = {ident: wire.unpack(body) for kind, ident, _, body in messages
                   if kind == wire.RESULT}
        assert results[1].sum() == 400_000 and results[2].sum() == 800_000
        assert sum(kind == wire.PONG for kind, *_ in messages) == len(range(1, len(one), 2))

    def test_forgetting_half_a_message(self):
        head, *parts = wire.message(wire.RESULT, 1, 0, wire.pack(b"x" * 3_000_000))
        reader = wire.MessageReader(-1)
        reader.fd, out = os.pipe()
        os.write(out, head)
        assert reader.read() == []
        os.close(out)
        os.close(reader.fd)
        reader.forget(1)
        with stream(b"".join(map(bytes, parts)) + wire.frame(wire.PONG)) as reader.fd:
            assert [kind for kind, *_ in read_all(reader)] == [wire.PONG]

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


# ────────────────────────────────────── what a slot is told ───────────────────────────────────────

LEVEL = None        # what an initializer sets
LEVELS = {}         # and what it changes


class TestProcesses:
    """What a task starts, and what stays of it."""

    def run_on_hidden(self, folder):
        """Run `main.py` of a folder with the options of a machine that cannot see that folder."""
        hide = f'mount -t tmpfs tmpfs {folder} && cd / && exec "$@"'
        with Sshd(["hidden"], prefix=["unshare", "-m", "sh", "-c", hide, "sh"]) as hidden:
            return run([sys.executable, "main.py", *hidden.ssh_options], cwd=folder, env={
                "PYTHONPATH": HERE})

    def test_orphans_are_reaped_elsewhere(self, remote):
        """A slot has no children but its task's, whatever these leave behind."""
        def leave(number):
            for _ in range(number):
                subprocess.run("sleep 0.01 &", shell=True, check=True)
            until(lambda: len(descendants(os.getppid()) - {os.getpid()}) == 0)
            with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
                return file.read().split()
        assert remote.submit(leave, 30).result(PATIENCE) == []

    def test_waiting_for_any_child_finds_ones_own(self, remote):
        def wait_for_any():
            subprocess.run("sleep 0.01 &", shell=True, check=True)
            until(lambda: len(descendants(os.getppid()) - {os.getpid()}) == 0)
            pid = os.fork()
            if not pid:
                os._exit(7)
            found, status = os.wait()
            return found == pid, os.waitstatus_to_exitcode(status)
        assert remote.submit(wait_for_any).result(PATIENCE) == (True, 7)

    @pytest.mark.parametrize("kind", ["pipe", "ssh", "process"])
    @pytest.mark.parametrize("how", ["thread", "pool"])
    def test_threads_are_waited_for(self, sshds, tmp_path, kind, how):
        def start():
            def write():
                while not (tmp_path / "go").exists():
                    time.sleep(0.01)
                (tmp_path / "written").touch()
            if how == "thread":
                threading.Thread(target=write).start()
            else:
                cf.ThreadPoolExecutor(1).submit(write)
        with maker(sshds[0].ssh_options) as make:
            pool = make_pool(kind, make)
            pool.submit(start).result(PATIENCE)
            pool.shutdown(wait=False)
            time.sleep(1.5)     # a slot that is not waited for is killed after a third of that
            (tmp_path / "go").touch()
            pool.shutdown()
            until((tmp_path / "written").exists)    # the standard library has stopped waiting
            assert kind == "process" or pool._supervisor.all_ended.is_set()

    def test_a_killed_pool_waits_for_no_thread(self, local, tmp_path):
        def start():
            threading.Thread(target=touch_and_wait, args=[tmp_path / "began"]).start()
            return os.getpid()
        pool = local("1/:")
        pid = pool.submit(start).result(PATIENCE)
        closer = threading.Thread(target=pool.shutdown)
        closer.start()
        until((tmp_path / "began").exists)
        pool._give_up()
        closer.join(PATIENCE)
        assert not closer.is_alive() and not alive(pid)

    @pytest.mark.usefixtures("namespaces")
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_pools_in_a_task(self, tmp_path, sshds, method):
        """Of functions of the script, and of a module of the project, which is nowhere there."""
        (tmp_path / "proj").mkdir()
        (tmp_path / "proj/__init__.py").touch()
        (tmp_path / "proj/empty.py").touch()
        (tmp_path / "proj/deep.py").write_text("import proj.empty\ndef cube(n): return n ** 3\n")
        (tmp_path / "main.py").write_text(textwrap.dedent(f"""
            import concurrent.futures, executors, multiprocessing, sys
            from proj.deep import cube
            class Shape:
                def __init__(self, n): self.n = n
                def __eq__(self, other): return self.n == other.n
            def square(shape): return Shape(shape.n ** 2)
            def use():
                context = multiprocessing.get_context("{method}")
                with context.Pool(2) as pool:
                    found = pool.map(cube, range(3))
                with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
                    shape = pool.submit(square, Shape(3)).result()
                return found, shape == Shape(9), type(shape) is Shape
            if __name__ == "__main__":
                worker = "1/hidden python=" + sys.executable
                with executors.RemoteExecutor([worker], ssh_options=sys.argv[1:]) as pool:
                    print(pool.submit(use).result())
            """))
        done = self.run_on_hidden(tmp_path)
        assert done.stdout == "([0, 1, 8], True, True)\n", done

    @pytest.mark.usefixtures("namespaces")
    def test_modules_of_a_package(self, tmp_path):
        """Those of a package that was sent are found by pkgutil, as plug-ins are."""
        for name in ("proj/__init__.py", "proj/one.py", "proj/two.py", "proj/sub/__init__.py"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "main.py").write_text(textwrap.dedent("""
            import executors, pkgutil, proj, sys
            def use():
                found = [(one.name, one.ispkg) for one in pkgutil.iter_modules(proj.__path__)]
                return found, [m.name for m in pkgutil.walk_packages(proj.__path__, "proj.")]
            if __name__ == "__main__":
                worker = "1/hidden python=" + sys.executable
                with executors.RemoteExecutor([worker], ssh_options=sys.argv[1:]) as pool:
                    print(pool.submit(use).result())
            """))
        done = self.run_on_hidden(tmp_path)
        assert eval(done.stdout) == (
            [("one", False), ("sub", True), ("two", False)],
            ["proj.one", "proj.sub", "proj.two"]), done

    @pytest.mark.parametrize("chunksize", [None, 1])
    def test_a_map_is_of_the_script_as_it_was(self, tmp_path, chunksize):
        """Also where its items are of a class that its function does not name."""
        (tmp_path / "main.py").write_text(textwrap.dedent(f"""
            import executors, operator
            g = [0]
            class P:
                x = 0
                def __init__(self, n): self.n = n
            def f(p): return g[0]
            if __name__ == "__main__":
                with executors.RemoteExecutor(["1/:"], show_status=False) as pool:
                    for fn in f, lambda p: g[0]:
                        g[0] = 0
                        found = pool.map(fn, [P(n) for n in range(300)], chunksize={chunksize})
                        g[0] = 99
                        print({{*found}})
                    for P.x in 1, 2:
                        get = operator.attrgetter("x")
                        print(*pool.map(getattr, [P(1)], ["x"], chunksize={chunksize}))
            """))
        done = run([sys.executable, "main.py"], cwd=tmp_path, env={"PYTHONPATH": HERE})
        assert done.stdout.split() == ["{0}", "{0}", "1", "2"], done

    def test_a_stopped_slot_ends_too(self, local):
        pool = local("1/:")
        pid = pool.submit(os.getpid).result(PATIENCE)
        os.kill(pid, signal.SIGSTOP)
        pool.shutdown()
        assert not alive(pid)

    def test_a_module_that_asks_for_a_name_while_it_is_imported(self, tmp_path):
        (tmp_path / "slow.py").write_text(
            "import sys, time\nif 'remote_worker' in sys.modules and not hasattr("
            "sys.modules['__main__'], '__file__'):\n    time.sleep(1)\n"
            "    import __main__\n    v = __main__.helper()\n")
        (tmp_path / "main.py").write_text(textwrap.dedent("""
            import executors, slow, threading, time
            def helper(): return 5
            def spawn(n):
                threading.Thread(target=lambda: __import__("slow"), daemon=True).start()
            def use(n): return slow.v + n
            if __name__ == "__main__":
                with executors.RemoteExecutor("1/:", show_status=False, bundle_timeout=15) as pool:
                    pool.submit(spawn, 0).result()
                    time.sleep(0.3)
                    print(pool.submit(use, 1).result())
            """))
        done = run([sys.executable, "main.py"], cwd=tmp_path, env={"PYTHONPATH": HERE})
        assert done.stdout == "6\n", done

    def test_what_is_needed_to_unpickle_data_is_there_before_it(self, tmp_path):
        (tmp_path / "main.py").write_text(textwrap.dedent("""
            import executors, math, threading
            class Grid:
                def __init__(self): self.a = [4.0]
                def __getstate__(self): return {"a": self.a}
                def __setstate__(self, state):
                    self.a, self.lock = [math.sqrt(x) for x in state["a"]], threading.Lock()
            class K:
                def __init__(self, x): self.x = x
                def __hash__(self): return hash(key_of(self))
                def __eq__(self, other): return key_of(self) == key_of(other)
            def key_of(k): return k.x
            grid, table, names = Grid(), {K(1): "one"}, []
            class Plugin:
                def __init_subclass__(cls, **_): names.append(cls.__name__)
            class A(Plugin): pass
            class Meta(type):
                def __new__(meta, name, bases, space, **_):
                    return super().__new__(meta, name, bases, {**space, "e": math.pi})
            class C(metaclass=Meta): pass
            if __name__ == "__main__":
                with executors.RemoteExecutor("1/:", show_status=False) as pool:
                    for fn in (lambda: grid.a, lambda: table[K(1)], lambda: A.__name__,
                               lambda: C.e > 3, lambda: names):
                        print(pool.submit(fn).result())
            """))
        done = run([sys.executable, "main.py"], cwd=tmp_path, env={"PYTHONPATH": HERE})
        assert done.stdout.splitlines() == ["[2.0]", "one", "A", "True", "['A']"], done

    def test_a_fresh_slot_after_so_many_tasks(self, remote, sshds):
        with maker(sshds[0].ssh_options) as make:
            pool = make(*(["1/:"] if remote._supervisor.scheduler.workers[0].machine == ":"
                          else [f"1/alpha python={sys.executable}"]), max_tasks_per_child=3)

            def who(_):
                return os.getpid()
            pids = [pool.submit(who, n).result(PATIENCE) for n in range(7)]
            assert [len({*pids[n:n + 3]}) for n in (0, 3)] == [1, 1] and len({*pids}) == 3
            futures = [pool.submit(who, n) for n in range(30)]
            counts = [f.result(PATIENCE) for f in futures]
            assert max(map(counts.count, counts)) <= 3
            for chunksize in (None, 1, 3):
                found = list(pool.map(who, range(60), chunksize=chunksize))
                assert max(map(found.count, found)) <= 3
            assert pool.status.retried == 0

    def test_a_fresh_process_after_so_many_tasks(self):
        if sys.version_info < (3, 11):
            with pytest.raises(ValueError, match="3.11"):
                executors.ProcessExecutor(1, max_tasks_per_child=2)
            return
        with executors.ProcessExecutor(1, max_tasks_per_child=2) as pool:
            pids = [pool.submit(os.getpid).result(PATIENCE) for _ in range(4)]
        assert len({*pids}) == 2

    @pytest.mark.parametrize("number", [0, -1, 1.5, "2"])
    def test_bad_numbers_of_tasks(self, number):
        with pytest.raises(ValueError, match="max_tasks_per_child"):
            RemoteExecutor(":", max_tasks_per_child=number)

    @pytest.mark.parametrize("files, expected", [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "100000 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 1),
        ({"proc/self/cgroup": "4:cpuacct,cpu:/x\n1:name=systemd:/\n0::/\n",
          "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"proc/self/cgroup": "4:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None)])
    def test_the_quota_of_a_container(self, tmp_path, monkeypatch, files, expected):
        """Of both versions of cgroups, and of the groups further up."""
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        assert wire._count_cores(str(tmp_path)) == (expected or 64)


class Arrivals:
    """In place of the controller, copies files to where `wire._fetch` asks for them."""

    def __init__(self, scratch="executors-1"):
        self.scratch, self.asked = scratch, 0
        self.put = lambda folder: (folder / "file").write_text("content")
        self.refusal = ""
        self.is_tar = False

    def __call__(self, kind, question):
        if kind in wire.REPORTS:
            return None
        answer = None
        if kind == wire.COPY:
            self.asked += 1
            folder, _ = json.loads(question)
            path = pathlib.Path.home() / folder / "file"
            self.put(path.parent)
            if path.exists():
                digest = "another" if self.refusal else wire.digest_file(path)
                answer = [(path.name, digest, self.is_tar, path.stat().st_size)]
        if self.refusal and not answer:
            answer = self.refusal, False
        return (wire.pack(answer),)

    def fetch(self, key="key"):
        """Have an entry copied, unless it is there; return its path."""
        place = wire._fetch(self, self.scratch, [(key, "a file", "")])[key]
        return pathlib.Path(place).parent


class TestCache:
    @pytest.fixture
    def home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        (tmp_path / "home").mkdir(0o700)
        yield tmp_path / "home"
        self.release()

    @staticmethod
    def release():
        while wire._locks:
            os.close(wire._locks.pop())

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
    @pytest.mark.parametrize("folder, mode, owner, group", [
        (".cache/executors", 0o777, 0, 0), (".cache/executors", 0o1777, 0, 0),
        (".cache/executors", 0o700, 12345, 0), (".cache/executors", 0o775, 0, 12345),
        (".cache", 0o777, 0, 0), (".cache", 0o700, 12345, 0), (".cache", 0o1777, 12345, 0),
        (".", 0o777, 0, 0)])
    def test_it_is_refused_where_others_can_write(self, home, folder, mode, owner, group):
        (home / ".cache/executors").mkdir(0o700, parents=True)
        os.chown(home / folder, owner, group)
        (home / folder).chmod(mode)
        arrivals, path = Arrivals(), (home / folder).resolve()
        with pytest.raises(OSError, match=f"other accounts can write to {path};.*run `chmod go-w "
                                          f"{path}` there; or set XDG_CACHE_HOME there"):
            arrivals.fetch()
        assert not arrivals.asked

    @pytest.mark.parametrize("mode", [0o755, 0o775, 0o1777])
    def test_it_is_used_where_others_cannot_replace_it(self, home, mode):
        """Not below /tmp, either, nor where everybody has a group of his own and umask 002."""
        home.chmod(mode)
        if mode == 0o775 and grp.getgrgid(os.getgid()).gr_name != pwd.getpwuid(os.getuid()).pw_name:
            pytest.skip("this account has no private group")
        assert (Arrivals().fetch() / "content").read_text() == "content"

    @pytest.mark.parametrize("umask", [0o000, 0o077])
    def test_what_we_make_is_ours_alone_whatever_the_umask(self, home, umask):
        def put(folder):
            with tarfile.open(folder / "file", "w") as tar:
                for name in ("content", "content/a/b/file"):
                    info = tarfile.TarInfo(name)
                    info.type = tarfile.REGTYPE if "file" in name else tarfile.DIRTYPE
                    info.mode = 0o7777
                    tar.addfile(info)

        arrivals = Arrivals()
        arrivals.put, arrivals.is_tar = put, True
        before = os.umask(umask)
        try:
            entry = arrivals.fetch()
            # As if a task's first import had made it.
            (entry / "content/a/__pycache__").mkdir()
        finally:
            os.umask(before)
        assert arrivals.fetch() == entry and arrivals.asked == 1
        for path in (home / ".cache", home / ".cache/executors", entry):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        modes = [path.stat().st_mode for path in entry.rglob("*") if path.name != "__pycache__"]
        assert not any(mode & 0o7022 for mode in modes) and len(modes) == 5

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
    @pytest.mark.parametrize("change", [
        lambda entry: os.chown(entry, 12345, 0), lambda entry: entry.chmod(0o770),
        lambda entry: (entry / "content").write_text("spoilt"),
        lambda entry: (entry / "content").chmod(0o666)])
    def test_what_was_changed_is_made_anew_beside_what_is_used(self, home, change):
        arrivals = Arrivals()
        first = arrivals.fetch()
        change(first)
        before = (first / "content").stat().st_ctime_ns, read(first / "content")
        second = arrivals.fetch()
        assert second != first and (second / "content").read_text() == "content"
        assert ((first / "content").stat().st_ctime_ns, read(first / "content")) == before
        assert arrivals.fetch() == second and arrivals.asked == 2
        self.release()
        change(second)
        third = arrivals.fetch()
        assert [*(home / ".cache/executors").iterdir()] == [third]      # nobody used the others

    def test_what_is_used_or_on_its_way_outlives_any_clock(self, home):
        """A month and more, as when the clock of a file server is wrong."""
        arrivals, others = Arrivals(), Arrivals("executors-2")
        used = others.fetch("used")

        def put(folder):
            (folder / "file").write_text("content")
            for path in (used, folder.parent, *(home / ".cache/executors").iterdir()):
                os.utime(path, (1, 1))
            others.fetch("another")     # which prunes

        arrivals.put = put
        entry = arrivals.fetch()
        assert (entry / "content").read_text() == (used / "content").read_text() == "content"
        self.release()
        os.utime(used, (1, 1))
        others.fetch("yet another")
        assert not used.exists() and entry.exists()

    def test_many_processes_that_fetch_alter_and_prune(self, home, monkeypatch):
        """Even if each entry that is not locked counts as old, what one uses stays as it is."""
        monkeypatch.setattr(wire, "KEEP_SECONDS", -1)

        def fetch_and_look(number):
            arrivals, source = Arrivals(f"executors-{number}"), random.Random(number)
            for _ in range(60):
                content = arrivals.fetch(source.choice("abc")) / "content"
                for _ in range(source.randrange(20)):
                    assert content.read_text().startswith("content")
                if source.random() < 0.1:
                    with open(content, "a") as file:
                        file.write(", altered")
                self.release()

        pids = []
        for number in range(4):
            pids.append(os.fork())
            if not pids[-1]:
                wire._exit_after(lambda number=number: fetch_and_look(number))
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4

    def test_age_is_told_by_the_clock_of_the_file_server(self, home, monkeypatch):
        entry = Arrivals().fetch("one")
        self.release()
        monkeypatch.setattr(time, "time", lambda: entry.stat().st_mtime + 40 * 86400)
        Arrivals().fetch("two")
        assert entry.exists()

    def test_a_full_disk_is_tried_once_and_what_came_is_removed(self, home, monkeypatch):
        arrivals, other, words = Arrivals(), Arrivals("executors-2"), "scp: No space left on device"
        arrivals.refusal = other.refusal = words
        for one, asked in (arrivals, 1), (arrivals, 1), (other, 1):
            with pytest.raises(OSError, match=words):
                one.fetch()
            assert one.asked == asked
            assert [path.suffix for path in (home / ".cache/executors").iterdir()] == [".lock"]
        monkeypatch.setattr(wire, "monotonic", lambda: time.monotonic() + wire.RETRY_SECONDS)
        other.refusal = ""
        assert other.fetch().exists() and other.asked == 2

    def test_what_has_come_is_unpacked_while_the_rest_comes(self, home):
        arrivals, seen = Arrivals(), []
        def answer(kind, question):
            if kind == wire.COPY:
                folder, _ = json.loads(question)
                here = pathlib.Path.home() / folder
                with tarfile.open(here / "file", "w") as tar:
                    info = tarfile.TarInfo("content")
                    info.size = 7
                    tar.addfile(info, io.BytesIO(b"content"))
                sent = wire.digest_file(here / "file"), True, (here / "file").stat().st_size
                digest = hashlib.sha256(b"content").hexdigest()
                return (wire.pack([("file", *sent), ("later", digest, False, 7)]),)
            if kind == wire.COPIED:
                here = pathlib.Path.home() / question.decode()
                (here / "later").write_text("cont")
                until(lambda: [*home.glob(".cache/executors/one.*/content")])
                seen.extend(path.name.partition(".")[0] for path in here.parent.parent.iterdir())
                (here / "file").write_text("changed, for it is sent again")
                (here / "later").write_text("content")
                return (wire.pack(None),)
            return None
        places = wire._fetch(answer, arrivals.scratch, [("one", "a", ""), ("two", "b", "")])
        assert [read(places[key]) for key in ("one", "two")] == ["content"] * 2
        assert "one" in seen and "two" not in seen

    def test_what_did_not_come_is_asked_for_again(self, home):
        arrivals = Arrivals()
        put, arrivals.put, arrivals.refusal = arrivals.put, lambda folder: None, "not now"
        arrivals.is_tar = False
        for asked in (1, 2):
            with pytest.raises(OSError, match="not now"):
                arrivals.fetch()
            assert arrivals.asked == asked
        arrivals.put, arrivals.refusal = put, ""
        assert arrivals.fetch().exists()

    def test_a_package_that_could_not_be_had_is_tried_again_after_a_while(self, home, monkeypatch):
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setenv("PYTHONPATH", "")
        arrivals, distribution = Arrivals(), ("thing", "1", "thing-1.dist-info", "key")
        arrivals.refusal = "No space left on device"
        packages = wire._Packages(arrivals, arrivals.scratch)
        question = "thing", None, *distribution
        assert packages.must_be_copied(*question) and not packages.get(distribution)
        assert arrivals.asked == 1
        arrivals.refusal = ""
        assert not packages.must_be_copied(*question) and not packages.get(distribution)
        monkeypatch.setattr(wire, "monotonic", lambda: time.monotonic() + wire.RETRY_SECONDS)
        assert packages.must_be_copied(*question)
        assert packages.get(distribution).startswith(str(home)) and arrivals.asked == 2

    @pytest.mark.parametrize("name, kind, target", [
        ("/content/file", tarfile.REGTYPE, ""), ("content/../../file", tarfile.REGTYPE, ""),
        ("seal", tarfile.REGTYPE, ""), ("content//file", tarfile.REGTYPE, ""),
        ("content/device", tarfile.CHRTYPE, "content/plain"),
        ("content/fifo", tarfile.FIFOTYPE, ""),
        ("content/hard", tarfile.LNKTYPE, "/etc/passwd"),
        ("content/hard", tarfile.LNKTYPE, "content/outside"),
        ("content/outside/file", tarfile.REGTYPE, ""), ("content/outside", tarfile.REGTYPE, ""),
        ("content/outside", tarfile.DIRTYPE, ""),
        ("content/plain", tarfile.SYMTYPE, "plain"), ("content/folder", tarfile.REGTYPE, "")])
    def test_archives_stay_in_their_place(self, home, tmp_path, name, kind, target):
        """On every Python: those before 3.12 need not have a filter for that."""
        members = [("content", tarfile.DIRTYPE, ""), ("content/plain", tarfile.REGTYPE, ""),
                   ("content/folder", tarfile.DIRTYPE, ""),
                   ("content/twin", tarfile.LNKTYPE, "content/plain"),
                   ("content/outside", tarfile.SYMTYPE, str(tmp_path))]

        def put(folder):
            with tarfile.open(folder / "file", "w") as tar:
                for name, kind, target in members:
                    info = tarfile.TarInfo(name)
                    info.type, info.linkname = kind, target
                    tar.addfile(info)

        arrivals = Arrivals()
        arrivals.put, arrivals.is_tar = put, True
        entry = arrivals.fetch()
        assert os.readlink(entry / "content/outside") == str(tmp_path)
        before = {*tmp_path.iterdir()}
        members.append((name, kind, target))
        with pytest.raises(OSError):
            arrivals.fetch("bad")
        assert {*tmp_path.iterdir()} == before
        assert {path.name.partition(".")[0] for path in entry.parent.iterdir()} <= {
            "key", "incoming-bad"}

    def test_no_home(self, home, monkeypatch):
        monkeypatch.setenv("HOME", "/proc/nonexistent")
        words = "No such file or directory: '/proc/nonexistent'.* set XDG_CACHE_HOME there"
        with pytest.raises(OSError, match=words):
            Arrivals().fetch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
        assert Arrivals().fetch().parent == home / "xdg/executors"
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "x d g"))
        with pytest.raises(OSError, match="scp would have to quote .*; set XDG_CACHE_HOME there"):
            Arrivals().fetch()


class TestSlots:
    def test_a_task_that_leaves_functions_patched(self, local):
        """A mock that somebody forgot is found by the tasks that follow, not by the slot."""
        def patch(names):
            def refuse(*_, **__):
                raise AssertionError("a forgotten mock")
            for name in names:
                for key, value in [*vars(sys.modules[name]).items()]:
                    if isinstance(value, types.BuiltinFunctionType):
                        setattr(sys.modules[name], key, refuse)
            return refuse        # by value

        pool = local("1/:")
        pid = pool.submit(lambda: numpy.zeros(1) is None or os.getpid()).result(PATIENCE)
        modules = ["os", "pickle", "signal", "time", "select"]
        pool.submit(patch, modules).result(PATIENCE)
        assert pool.submit(lambda: numpy.arange(100_000)).result(PATIENCE).sum() == 4999950000
        assert pool.submit(len, numpy.zeros(100_000)).result(PATIENCE) == 100_000
        assert isinstance(pool.submit(lambda: 1 / 0).exception(PATIENCE), ZeroDivisionError)
        assert [*pool.map(neg, range(100))] == [-n for n in range(100)]
        error = pool.submit(eval, "__import__('os').getpid()").exception(PATIENCE)
        assert "a forgotten mock" in str(error) and not pool.status.workers[0].died
        pool.shutdown()
        assert not alive(pid)

    def test_environment_variables_that_must_be_acted_on(self, remote, local):
        """The time zone is set; PYTHONPATH holds for the slot, too; a share of the cores."""
        pool = local("2/:", env={"TZ": "Asia/Tokyo", "PYTHONPATH": "/no/such:/nor/this"})

        def look():
            names = ["NUMBA_NUM", "POLARS_MAX", "BLIS_NUM", "VECLIB_MAXIMUM", "NUMEXPR_NUM"]
            return (time.tzname[0], sys.path[:2], os.environ["PYTHONPATH"].split(":")[-2:],
                    {os.environ[name + "_THREADS"] for name in names})
        share = str(max(1, wire._count_cores() // 2))
        paths = ["/no/such", "/nor/this"]
        assert pool.submit(look).result(PATIENCE) == ("JST", paths, paths, {share})

    @pytest.mark.parametrize("name", [
        "PYTHONHASHSEED", "PYTHONWARNINGS", "PYTHONUTF8", "PYTHONOPTIMIZE", "PYTHON_GIL"])
    def test_environment_variables_that_would_come_too_late(self, name):
        with pytest.raises(ValueError, match=f"env: Python reads {name} only when it starts"):
            RemoteExecutor(":", env={name: "0"})

    def test_places(self, ssh, monkeypatch):
        """Numbers from 0, which a slot that died leaves to the next; numerical threads share."""
        names = "EXECUTORS_SLOT", "EXECUTORS_MACHINE", "GPU", "OMP_NUM_THREADS", "MKL_NUM_THREADS"

        def look(end=False):
            time.sleep(0.1)
            found = [os.environ.get(name) for name in names]
            return os._exit(1) if end else found
        pool = ssh("2/alpha nice=7", env={"GPU": "{slot:02d}@{machine}", "MKL_NUM_THREADS": "5"},
                   max_bundle_failures=1)
        threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
        expected = [[n, "alpha", f"0{n}@alpha", threads, "5"] for n in "01"]
        assert sorted(pool.map(look, [False] * 2)) == expected
        assert isinstance(pool.submit(look, True).exception(PATIENCE), BundleError)
        assert sorted(pool.map(look, [False] * 2)) == expected
        assert pool.submit(os.nice, 0).result(PATIENCE) == os.nice(0) + 7

    @pytest.mark.parametrize("env", [
        {"A": "{gpu}"}, {"A": "{"}, {"A": 1}, {"A=B": ""}, {"": ""}, {"A": "\0"}, {"A": "{0}"},
        {"A": "{machine:02d}"}])
    def test_bad_environments(self, env):
        with pytest.raises(ValueError, match=r"^env: "):
            RemoteExecutor(":", env=env)

    @pytest.mark.parametrize("how", ["by value", "by name"])
    def test_an_initializer(self, remote, local, request, how):
        """It runs once in each slot, before the first task; what it sets is there for all."""
        if how == "by name":
            request.getfixturevalue("by_name")
        pool = local("2/:", initializer=set_level, initargs=([how],))
        if how == "by value":
            assert pool.submit(lambda: LEVELS).result(PATIENCE) == {"level": [how]}
        found = list(pool.map(get_level, [0.02] * 10))
        assert {level for level, _, _ in found} == {how}
        assert len({pid for _, pid, _ in found}) == len({ident for _, _, ident in found}) == 2
        if how == "by value":
            assert pool.submit(lambda: LEVEL).result(PATIENCE) == [how]

    def test_an_initializer_that_raises(self, local, caplog):
        """Told once, with the place; that machine is done with, and the pool with its last one."""
        def fail():
            raise OSError("no GPU")
        pool = local("2/:", initializer=fail)
        futures = [pool.submit(neg, n) for n in range(20)]
        for future in futures:
            error = future.exception(PATIENCE)
            assert isinstance(error, cf.BrokenExecutor) and isinstance(error, NoWorkersError)
            assert "the initializer raised OSError: no GPU (" in str(error)
            assert ", in fail)" in str(error)
        with pytest.raises(NoWorkersError):
            pool.submit(neg, 1)
        until(lambda: caplog.text.count("no GPU") == 1)

    def test_an_initializer_that_raises_on_one_machine(self, ssh):
        def fail():
            assert os.environ["EXECUTORS_MACHINE"] == "beta"
        def work(_):
            time.sleep(0.02)
            return os.environ["EXECUTORS_MACHINE"]
        pool = ssh("2/alpha", "2/beta", initializer=fail)
        until(lambda: all(worker.state == "up" for worker in pool.status.workers))
        assert list(pool.map(work, range(30), chunksize=1)) == ["beta"] * 30
        assert [worker.state for worker in pool.status.workers] == ["failed", "up"]

    def test_an_initializer_that_cannot_be_pickled(self):
        with pytest.raises(TypeError, match="lock"):
            RemoteExecutor(":", initializer=print, initargs=(threading.Lock(),))

    @pytest.mark.parametrize("kind", ["pipe", "process"])
    def test_caches_outlive_calls(self, kind):
        """In each process, one for the same contents; its settings stay, and so do its results."""
        @functools.cache
        def load(name):
            return [name, os.getpid(), time.monotonic_ns()]

        @functools.lru_cache(maxsize=2, typed=True)
        def fibonacci(n):
            return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

        class Model:
            @functools.cached_property
            def size(self):
                return 5

            @functools.lru_cache(1)     # noqa: B019 -- what users do
            def double(self, n):
                return 2 * n

        with maker() as make:
            pool = make("1/:") if kind == "pipe" else executors.ProcessExecutor(1)
            first = pool.submit(load, "model").result(PATIENCE)
            tasks = [lambda n: load("model") + [n] * 0, lambda n: load("model")]
            for task in tasks:
                assert all(found == first for found in pool.map(task, range(5)))
            settings = pool.submit(lambda: (fibonacci(20), fibonacci.cache_parameters()))
            assert settings.result(PATIENCE) == (6765, {"maxsize": 2, "typed": True})
            assert pool.submit(lambda: (Model().size, Model().double(4))).result(PATIENCE) == (5, 8)

            cached = [functools.cache(one) for one in (abs, json.loads, Bomb)]
            assert pool.submit(lambda: cached[0](-3) + cached[1]("4")).result(PATIENCE) == 7

            def other():
                @functools.cache
                def load(name):
                    return name
                return load
            assert pool.submit(other(), "another").result(PATIENCE) == "another"
            pool.shutdown()


def set_level(level):
    global LEVEL
    assert LEVEL is None
    LEVEL = LEVELS["level"] = level


def get_level(seconds):
    time.sleep(seconds)
    return *LEVEL, os.getpid(), id(LEVEL)


# ───────────────────────────────────────── a shim, alone ──────────────────────────────────────────


class Controller:
    """A shim in a process of its own, and the controller's ends of two pipes to it."""

    def __init__(self, scratch, **config):
        (far_in, self._to), (self._from, far_out) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._to)
            os.close(self._from)
            wire._exit_after(lambda: wire.Shim(
                far_in, far_out, {}, scratch, bytearray(1 << 16)).run())
        os.close(far_in)
        os.close(far_out)
        self._reader, self._seen, self._functions = wire.MessageReader(self._from), [], {}
        config = {"slots": 2, "lease": 60.0, "machine": "here", "output": True, "env": {},
                  "nice": 0, "initializer": False, "max_tasks_per_child": 0, "files": {},
                  "modules": True,
                  **config}
        self.send(wire.frame(wire.CONFIG, 0, pickle.dumps(config)))

    def send(self, *buffers):
        wire.write_all(self._to, buffers)

    def function(self, function):
        ident = (1 << 62) + len(self._functions)
        self._functions[ident] = function
        packed = executors._FunctionCache().get(function).packed
        self.send(*wire.message(wire.FUNCTION, ident, 0, packed))
        return ident

    def call(self, ident, function, *args):
        self.send(*wire.message(wire.CALL, ident, function, wire.pack_call(args, {})[0]))

    def await_(self, kind, ident=0):
        """Return what comes of a kind, about somebody; leave the rest for later."""
        while True:
            for message in self._seen:
                if message[:2] == (kind, ident):
                    self._seen.remove(message)
                    return message
            assert select.select([self._from], [], [], PATIENCE)[0], f"no {kind} about {ident}"
            self._seen += self._reader.read()

    def result(self, ident):
        _, _, _, body = self.await_(wire.RESULT, ident)
        return wire.unpack(body)

    def close(self):
        os.close(self._to)
        os.waitpid(self.pid, 0)
        os.close(self._from)


@pytest.fixture
def controller(tmp_path):
    with closing(Controller(str(tmp_path / "scratch"))) as controller:
        yield controller


class TestShim:
    def test_it_greets_and_answers(self, controller):
        hello = controller.await_(wire.HELLO)[3]
        cores, shim, guardian = wire.GREETING.unpack_from(hello)
        assert tuple(hello[wire.GREETING.size:].decode().split("\n")) == wire.platform_facts()
        assert (shim, guardian) == (controller.pid, os.getpid()) and cores >= 1
        controller.send(wire.frame(wire.PING, 12345))
        controller.await_(wire.PONG, 12345)

    def test_it_acknowledges_bytes_of_a_message_that_takes_long(self, tmp_path):
        """The controller's pings wait behind it. On an idle line, it only answers them."""
        with closing(Controller(str(tmp_path / "scratch"), lease=2.4)) as controller:
            for n in range(3):
                controller.send(wire.frame(wire.PING, n))
                controller.await_(wire.PONG, n)
                time.sleep(0.15)
            assert [kind for kind, *_ in controller._seen] == [wire.HELLO]
            packed, _ = wire.pack_call((os.urandom(500_000),), {})
            data = b"".join(wire.message(wire.CALL, 1, controller.function(len), packed))
            for start in range(0, 400_000, 50_000):
                controller.send(data[start:start + 50_000])
                time.sleep(0.05)
            controller.await_(wire.MOVED)
            controller.send(data[400_000:])
            assert controller.result(1) == 500_000

    def test_what_a_call_prints_comes_before_its_result(self, controller):
        say = controller.function(print)
        for n in range(1, 200):
            controller.call(n, say, f"line {n}")
            assert controller.result(n) is None
            text = controller.await_(wire.OUTPUT, 1)[3]
            assert text == b"line %d\n" % n and not controller._seen[1:]

    def test_what_many_calls_print_comes_before_their_results(self, controller):
        """However they bunch: a result may come when poll has seen only the one before."""
        def say(n):
            print(f"<{n}>", file=(sys.stdout, sys.stderr)[n % 2])
        function, source = controller.function(say), random.Random(3)
        last, printed, wrong = 0, set(), []
        while last < 4000:
            idents = range(last + 1, last + 1 + source.choice([1, 2, 3, 50]))
            last = idents[-1]
            for n in idents:
                controller.call(n, function, n)
            missing = {*idents}
            while missing:
                for kind, ident, _, body in controller._reader.read():
                    if kind == wire.OUTPUT:
                        printed.update(map(int, re.findall(rb"<(\d+)>", body)))
                    elif kind == wire.RESULT:
                        missing.remove(ident)
                        wrong += {ident} - printed
                    if kind == wire.OUTPUT:
                        controller.send(wire.frame(wire.OUTPUT_ACK, len(body)))
        assert not wrong

    def test_long_calls_and_functions_are_pulled(self, controller):
        block = numpy.arange(500_000)
        add = controller.function(lambda n, extra: block.sum() + extra.sum() + n)
        for n in range(6):
            controller.call(n + 1, add, n, block)
        results = [controller.result(n + 1) for n in range(6)]
        assert results == [2 * block.sum() + n for n in range(6)]

    def test_calls_that_wait_are_given_back_and_those_that_run_are_not(self, controller, tmp_path):
        wait = controller.function(wait_for)
        for n in range(1, 7):
            controller.call(n, wait, str(tmp_path / "go"))
        controller.call(7, controller.function(len), bytes(2_000_000))      # long ones too
        controller.send(wire.frame(wire.PING))
        controller.await_(wire.PONG)
        until(lambda: len(descendants(controller.pid)) == 4)     # slots, each with its keeper
        (tmp_path / "go").touch()
        controller.result(1)        # so that there are slots that have begun
        controller.send(wire.frame(wire.RECALL, 100))
        recalled = controller.await_(wire.RECALLED)[3]
        given = {ident for ident, in wire.IDENTIFIER.iter_unpack(recalled)}
        for ident in {*range(2, 8)} - given:
            controller.result(ident)
        controller.send(wire.frame(wire.PING, 1))
        controller.await_(wire.PONG, 1)
        assert not [message for message in controller._seen if message[0] == wire.RESULT]

    def test_killing_what_runs_what_waits_and_what_is_gone(self, controller, tmp_path):
        wait = controller.function(touch_and_wait)
        for n in range(1, 3):
            controller.call(n, wait, str(tmp_path / str(n)))
            until((tmp_path / str(n)).exists)
        controller.call(3, wait, str(tmp_path / "3"))
        for ident in (3, 1, 99):
            controller.send(wire.frame(wire.KILL, ident))
        slots = [wire.DEATH.unpack(controller.await_(wire.KILLED, n)[3])[0] for n in (3, 1, 99)]
        assert slots == [wire.NO_SLOT, 0, wire.NO_SLOT]
        controller.call(4, controller.function(neg), 4)
        assert controller.result(4) == -4

    def test_a_function_that_is_forgotten_while_a_call_of_it_waits(self, controller, tmp_path):
        wait, late = controller.function(wait_for), controller.function(neg)
        for n in (1, 2):
            controller.call(n, wait, str(tmp_path / "go"))
        controller.call(3, late, 3)
        controller.send(wire.frame(wire.FORGET, late))
        (tmp_path / "go").touch()
        assert controller.result(3) == -3

    def test_a_slot_that_is_stopped_while_it_is_answered_holds_nobody_up(self, controller):
        """Three megabytes of a module for a slot that takes nothing cost the others nothing."""
        def ask_and_stop():
            os.write(wire._QUESTIONS_FD, wire.frame(wire.FIND_MODULE, 1 << 40, b"big"))
            os.kill(os.getpid(), signal.SIGSTOP)

        controller.call(1, controller.function(ask_and_stop))
        while not any(message[0] == wire.FIND_MODULE for message in controller._seen):
            controller._seen += controller._reader.read()
        ident = next(message[1] for message in controller._seen if message[0] == wire.FIND_MODULE)
        answer = wire.pack(("big.py", "x" * 8_000_000, False))
        controller.send(*wire.message(wire.ANSWER, ident, 0, answer))
        controller.call(2, controller.function(neg), 2)
        assert controller.result(2) == -2

    def test_it_answers_while_files_are_copied(self, tmp_path, monkeypatch):
        """Its first slot waits for them, as for a package. If that dies, the shim says so."""
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "data").write_text("data")
        key = wire.digest_file(tmp_path / "data")
        scratch = str(tmp_path / "scratch")
        os.mkdir(scratch)
        with closing(Controller(scratch, files={"data": key}, lease=0.5)) as controller:
            _, ident, _, question = controller.await_(wire.COPY, wire.FIRST_QUESTION_ID)
            folder, entries = json.loads(question)
            assert entries == [[key, "data", ""]]
            for n in range(10):
                controller.send(wire.frame(wire.PING, n))
                controller.await_(wire.PONG, n)
                time.sleep(0.1)
            answer = wire.pack([("data", key, False, 4)])
            controller.send(*wire.message(wire.ANSWER, ident, 0, answer))
            _, ident, _, question = controller.await_(wire.COPIED, wire.FIRST_QUESTION_ID + 1)
            assert question.decode() == folder
            shutil.copy(tmp_path / "data", tmp_path / folder)
            controller.send(*wire.message(wire.ANSWER, ident, 0, wire.pack(None)))
            assert controller.await_(wire.STORED)[3] == b""
            controller.call(1, controller.function(read), "data")
            assert controller.result(1) == "data"
            until(lambda: not alive(controller.pid), "the end of the lease")
        shutil.rmtree(tmp_path / ".cache")
        with closing(Controller(scratch, files={"data": key})) as controller:
            controller.await_(wire.COPY, wire.FIRST_QUESTION_ID)
            slot, = [pid for pid in descendants(controller.pid)
                     if parent(pid) != controller.pid]
            os.kill(slot, signal.SIGKILL)
            until(lambda: not alive(controller.pid))

    def test_a_slot_that_has_closed_its_descriptors_costs_no_processor(self, controller):
        def close_and_wait():
            os.closerange(3, 64)
            time.sleep(1)

        def used():
            fields = read(f"/proc/{controller.pid}/stat").rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        controller.call(1, controller.function(close_and_wait))
        controller.call(2, controller.function(time.sleep), 0.8)
        controller.result(2)
        before = used()
        _, status = wire.DEATH.unpack_from(controller.await_(wire.DIED, 1)[3])
        assert used() - before < 0.1 and os.waitstatus_to_exitcode(status) == 1
        assert b"descriptors" in b"".join(
            body for kind, _, _, body in controller._seen if kind == wire.OUTPUT)


# ───────────────────────────────────────── one-shot mode ──────────────────────────────────────────


class TestOneShot:
    def run(self, tmp_path, code, result="result"):
        path = tmp_path / "code"
        if code is not None:
            path.write_bytes(code if type(code) is bytes else cloudpickle.dumps(code))
        return run([sys.executable, os.path.join(HERE, "remote_worker.py"), "--code_file", path,
                    "--result_file", tmp_path / result], cwd=tmp_path)

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


# ───────────────────────────────────────────── README ─────────────────────────────────────────────


def readme_examples():
    """Return README's Python examples by the heading or the words in bold that they stand under."""
    examples, title = {}, ""
    parts = re.split(r"^(```python\n.*?^```\n)", read(os.path.join(HERE, "README.md")),
                     flags=re.MULTILINE | re.DOTALL)
    for part in parts:
        if part.startswith("```python"):
            examples.setdefault(title, part[10:-4])
        else:
            titles = re.findall(r"^#+ (.*)|^\*\*(.*?)\*\*", part, flags=re.MULTILINE)
            title = "".join(titles[-1]) if titles else title
    return examples


class TestReadme:
    @pytest.mark.parametrize("title", readme_examples())
    def test_the_example_runs(self, tmp_path, title):
        self.run_program(tmp_path, readme_examples()[title])

    ENVIRONMENT = {
        "PYTHONPATH": HERE, "EXECUTORS_REMOTE_WORKERS": "2/:", "PYTHONWARNINGS": "ignore"}

    def write_program(self, folder, text):
        """Write a program with two slots of this machine as its workers; return its name."""
        text = re.sub(r"RemoteExecutor\(\s*\[.*?\]", "RemoteExecutor(['2/:']",
                      textwrap.dedent(text))
        (folder / "example.py").write_text(text)
        return "example.py"

    def run_program(self, folder, text):
        """Run such a program; return what it prints."""
        done = run([sys.executable, self.write_program(folder, text)], cwd=folder,
                   env=self.ENVIRONMENT)
        assert done.returncode == 0 and done.stdout.strip(), done
        return done.stdout

    def test_there_are_examples(self):
        assert len(readme_examples()) >= 9

    def test_the_long_run_is_resumed(self, tmp_path):
        title, = (title for title in readme_examples() if "resumed" in title)
        text = readme_examples()[title]
        first = self.run_program(tmp_path, text.replace("range(100)", "range(10)"))
        assert "seed 0: ZeroDivisionError" in first and first.endswith("9 done\n"), first
        assert self.run_program(tmp_path, text).endswith("99 done\n")

    @pytest.mark.parametrize("python", [sys.executable, "/usr/bin/python3"])
    def test_the_long_run_survives_a_kill(self, tmp_path, python):
        """What was done stays done, each seed of it; also with Debian's own Python."""
        check = "import sqlite3, sys; sys.exit(sys.version_info < (3, 10))"
        if not os.path.exists(python) or run([python, "-c", check]).returncode:
            pytest.skip("there is no such Python here, or an old one")
        (tmp_path / "lib").mkdir()
        for module in cloudpickle, tqdm:
            (tmp_path / "lib" / module.__name__).symlink_to(os.path.dirname(module.__file__))
        environment = {**os.environ, **self.ENVIRONMENT,
                       "PYTHONPATH": f"{HERE}:{tmp_path / 'lib'}"}
        title, = (title for title in readme_examples() if "resumed" in title)
        text = readme_examples()[title].replace("    return 1 / seed", f"""
    import os, time
    while seed > 20 and "HELD_UP" in os.environ:
        time.sleep(0.01)
    open({str(tmp_path)!r} + f"/{{seed}} ran", "x").close()      # raises at the second time
    return 1 / seed
""")
        command = [python, self.write_program(tmp_path, text)]

        def seeds():
            with closing(sqlite3.connect(tmp_path / "done.db")) as table:
                with suppress(sqlite3.OperationalError):     # it is not there yet
                    return sorted(seed for seed, in table.execute("SELECT seed FROM done"))

        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL,
                              env={**environment, "HELD_UP": "yes"}) as process:
            try:
                until(lambda: seeds() == [*range(1, 21)], "a result of each seed up to 20")
            finally:
                process.kill()
        assert seeds() == [*range(1, 21)]
        done = run(command, cwd=tmp_path, env=environment)
        assert done.stdout.endswith("99 done\n") and seeds() == [*range(1, 100)], done

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have no notes before")
    def test_the_long_run_prints_notes(self, tmp_path):
        title, = (title for title in readme_examples() if "resumed" in title)
        text = readme_examples()[title].replace("range(100)", "range(2)")
        printed = self.run_program(tmp_path, text.replace("1 / seed", "__import__('no_module')"))
        assert "seed 1: ModuleNotFoundError: No module named 'no_module'\non :, with " in printed

    def test_numpy_arrays_arrive_writable(self, tmp_path):
        printed = self.run_program(tmp_path, """
            import numpy, executors

            def double(array):
                array *= 2
                return array

            with executors.RemoteExecutor(["8/me@bigbox", ":"]) as pool:
                parts = numpy.array_split(numpy.arange(1_000_000.0), 8)
                joined = numpy.concatenate(list(pool.map(double, parts)))
                joined += 1
                print(joined.sum())
            """)
        assert printed == "1000000000000.0\n"

    def test_a_slurm_allocation(self, tmp_path):
        """Run the command word for word; of Slurm there are its variable and its list of hosts."""
        command, = re.findall(r"^EXECUTORS_REMOTE_WORKERS=.*$",
                              read(os.path.join(HERE, "README.md")), re.MULTILINE)
        (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf ':\\n:\\n'\n")
        (tmp_path / "scontrol").chmod(0o755)
        (tmp_path / "program.py").write_text(
            "import executors\n"
            "with executors.RemoteExecutor(show_status=False) as pool:\n"
            "    print(*[one.worker for one in pool.status.workers])\n"
            "    print(pool.submit(abs, -1).result())\n")
        done = run(["/bin/sh", "-c", command], cwd=tmp_path, env={
            "PATH": f"{tmp_path}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            "PYTHONPATH": HERE, "SLURM_CPUS_ON_NODE": "2"})
        assert done.stdout == "2/: 2/:\n1\n", done

    def test_every_argument_is_in_the_table(self):
        part = read(os.path.join(HERE, "README.md")).partition("## Arguments of RemoteExecutor")[2]
        rows = re.findall(r"^\| (`.*?) \|", part.partition("\n## ")[0], re.MULTILINE)
        names = re.findall("`(.*?)`", " ".join(rows))
        expected = {*inspect.signature(executors.RemoteExecutor).parameters} - {"unknown"}
        assert len(names) == len(expected) and {*names} == expected

    def test_a_dask_cluster(self, tmp_path):
        printed = self.run_program(tmp_path, """
            import distributed, executors

            if __name__ == "__main__":
                with distributed.LocalCluster(n_workers=2) as cluster:
                    with distributed.Client(cluster) as client:
                        with executors.PoolExecutor(client.get_executor()) as pool:
                            print(list(pool.map(lambda n: n * n, range(10))))
            """)
        assert printed == f"{[n * n for n in range(10)]}\n"

    def test_the_same_program_on_dask(self, sshds):
        """One decorated program on threads, processes, ssh and Dask, by changing one argument."""
        done = run("""
            import sys, executors, time

            def program(method):
                @executors.parallelize(method)
                def count(shard):
                    return sum(n % 7 == 0 for n in shard)

                numbers = list(range(10_000))
                return sum(executors.wait_all(count(numbers[start::4]) for start in range(4)))

            if __name__ == "__main__":
                import distributed
                print(program(executors.Method.THREAD), program(executors.Method.PROCESS))
                workers = [f"2/alpha python={sys.executable}"]
                with executors.RemoteExecutor(workers, ssh_options=sys.argv[1:]) as pool:
                    print(program(pool))
                with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False,
                                              dashboard_address=None) as cluster:
                    with distributed.Client(cluster) as client:
                        with executors.PoolExecutor(client.get_executor(), title="dask") as pool:
                            print(program(pool))
                            while pool.histogram.count < 4:     # counted after it is given out
                                time.sleep(0.01)
                            print(pool.histogram.count)
        """, *sshds[0].ssh_options, env={"PYTHONWARNINGS": "ignore"})
        assert done.stdout.split() == ["1429", "1429", "1429", "1429", "4"], done


# ──────────────────────────────────── copies in other projects ────────────────────────────────────


class TestCopies:
    MAIN = """
        from myproj.vendor import executors

        def work(n):
            return n + 1

        def nested():
            with executors.RemoteExecutor("1/:", show_status=False) as pool:
                return pool.submit(lambda: executors.__name__).result()

        def fail():
            raise executors.BundleError("a", "b")

        if __name__ == "__main__":
            with executors.RemoteExecutor("2/:", show_status=False) as pool:
                print(*pool.map(work, range(3)), pool.submit(nested).result())
                print(type(pool.submit(fail).exception()) is executors.BundleError)
            with executors.ProcessExecutor(1) as pool:
                print(pool.submit(lambda: 5).result())
        """

    @pytest.fixture
    def project(self, tmp_path):
        """A project with a copy in a package that imports nothing of it."""
        vendor = tmp_path / "myproj/vendor"
        vendor.mkdir(parents=True)
        for folder in (vendor.parent, vendor):
            (folder / "__init__.py").touch()
        for name in ("executors.py", "remote_worker.py"):
            shutil.copy(os.path.join(HERE, name), vendor)
        (tmp_path / "main.py").write_text(textwrap.dedent(self.MAIN))
        return tmp_path

    def check(self, done):
        expected = ["1", "2", "3", "myproj.vendor.executors", "True", "5"]
        assert done.stdout.split() == expected and not done.stderr, done

    def test_in_a_package(self, project):
        self.check(run([sys.executable, "main.py"], cwd=project))
        done = run([sys.executable, "-m", "myproj.vendor.executors", "--selftest"], cwd=project)
        assert done.returncode == 0 and "all checks passed" in done.stdout, done

    def test_in_a_zip(self, project):
        with zipfile.ZipFile(project / "all.pyz", "w") as file:
            for path in [*project.rglob("*.py")]:
                file.write(path, path.relative_to(project))
            file.writestr("__main__.py", textwrap.dedent(self.MAIN))
            for path in os.scandir(os.path.dirname(cloudpickle.__file__)):
                if path.name.endswith(".py"):
                    file.write(path, f"cloudpickle/{path.name}")
        self.check(run([sys.executable, "-I", "-S", project / "all.pyz"], cwd="/"))

    def test_without_its_source(self, project):
        """It is told at once, as ours: no machine could be blamed for it."""
        run([sys.executable, "-m", "compileall", "-q", "-b", "myproj"], cwd=project, check=True,
            env={"PYTHONDONTWRITEBYTECODE": ""})
        (project / "myproj/vendor/remote_worker.py").unlink()
        done = run([sys.executable, "main.py"], cwd=project)
        assert "RuntimeError: workers need the source of myproj.vendor.remote_worker" in done.stderr

    def test_several_at_once(self, project):
        """Of two versions, one of them not in a package; each is its own, here and there."""
        text = read(project / "myproj/vendor/executors.py")
        version = f'__version__ = "{executors.__version__}"'
        assert version in text and executors.__version__ == wire.__version__
        (project / "myproj/vendor/executors.py").write_text(
            text.replace(version, '__version__ = "9"'))
        done = run("""
            import executors as outer
            from myproj.vendor import executors as inner

            def versions():
                import executors as outer
                from myproj.vendor import executors as inner
                error = outer.BundleError("a", "b")
                return inner.__version__, outer.__version__, error, inner.Method

            if __name__ == "__main__":
                for one, other in (inner, outer), (outer, inner):
                    with one.RemoteExecutor("1/:", show_status=False) as pool:
                        *found, error, method = pool.submit(versions).result()
                        print(*found, type(error) is outer.BundleError, method is inner.Method)
        """, cwd=project, env={"PYTHONPATH": f"{project}:{HERE}"})
        expected = f"9 {executors.__version__} True True\n" * 2
        assert done.stdout == expected, done

    @pytest.mark.parametrize("place", ["beside it", "installed"])
    def test_what_a_type_checker_sees(self, place, tmp_path):
        """A script with mistakes in calls, against the copy that it imports."""
        (tmp_path / "script.py").write_text(textwrap.dedent("""
            import executors

            def simulate(n: int, scale: float = 1.0) -> float:
                return n * scale

            @executors.parallelize()
            def total(n: int, *, scale: float = 1.0) -> float:
                return n * scale

            class Model:
                @executors.parallelize()
                def run(self, n: int) -> int:
                    return n

            def join(n: int, text: str, m: int) -> str:
                return text

            with executors.RemoteExecutor(["2/:"]) as pool:
                one: float = pool.submit(simulate, 3, scale=2.0).result()
                print(sum(pool.map(simulate, range(3))), *pool.map(print, *[[1]]))
                print(*pool.map(simulate, range(3), (0.5, 1), timeout=3))
                print(*pool.map(max, [1], [2], [3], buffersize=2))
                print(*pool.map(join, [1], ["2"], [3]))
                two: float = total(3, scale=total(total(3), scale=2.0)).result()
                three: int = Model().run(total(4)).result()
                wrong: str = pool.submit(simulate, 3).result()          # line 27
                pool.submit(simulate, "three")
                pool.submit(simulate, 3, m=4)
                pool.map(simulate, ["three"])
                pool.map(simulate, [3], ["four"])
                pool.map(join, [1], [2], [3])
                total("three")
                total(3, m=4)
                total()
                Model().run("three")
                false: str = total(3).result()
            """))
        options, folders = [], HERE
        if place == "installed":
            venv.create(tmp_path / "env", symlinks=True)
            site, = tmp_path.glob("env/lib/python*/site-packages")
            for name in ("executors.py", "remote_worker.py"):
                shutil.copy(os.path.join(HERE, name), site)
            python = str(tmp_path / "env/bin/python")
            options, folders = ["--follow-untyped-imports", "--python-executable", python], ""
        done = run([sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, *options,
                    "script.py"], cwd=tmp_path, env={"MYPYPATH": folders})
        assert "executors.py:" not in done.stdout and "worker.py:" not in done.stdout, done.stdout
        lines = re.findall(r"^script.py:(\d+): error", done.stdout, re.MULTILINE)
        assert lines == [*map(str, range(27, 38))], done.stdout


    @pytest.mark.timeout(300)
    @pytest.mark.parametrize("checker", ["mypy --strict --cache-dir=/dev/null", "pyright"])
    @pytest.mark.parametrize("place", ["myproj/vendor", "."])
    def test_no_type_checker_complains_of_it(self, project, checker, place):
        """Neither in a package nor beside the program."""
        name, *options = checker.split()
        if not importlib.util.find_spec(name):
            pytest.skip(f"{name} is installed with one Python only: see setup.cfg")
        for file in ("executors.py", "remote_worker.py"):
            shutil.move(project / "myproj/vendor" / file, project / place / file)
        package = "from myproj.vendor " if place != "." else ""
        (project / "main.py").write_text(f"{package}import executors\nprint(executors.SSH)\n")
        done = run([sys.executable, "-m", name, *options, "."], cwd=project, timeout=300)
        assert not done.returncode, done.stdout


# ─────────────────────────────────────────── the house ────────────────────────────────────────────


class TestStyle:
    # Errors, names, imports, likely bugs, what newer Pythons spell better, logging, blind spots;
    # and not: zip's strict, whose iterables here are of one length by construction, and f-strings
    # in the file that is compiled at the start of every connection.
    RULES = "E,F,W,I,N,UP,A,B,C4,FLY,FURB,G,ISC,LOG,PERF,PIE,PLE,PLW,RET,RUF,T10"
    EXCEPT = "B905,N818,PERF203,RUF005,RUF021,UP031"
    OURS = "executors.py", "remote_worker.py"

    def test_ruff(self):
        run([sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--target-version",
             "py310", "--line-length", "100", "--select", self.RULES, "--ignore", self.EXCEPT,
             *self.OURS], check=True)

    @pytest.mark.timeout(300)
    def test_types(self):       # strict, by setup.cfg
        run([sys.executable, "-m", "mypy", "--cache-dir", os.devnull], check=True, timeout=300)

    def test_functions_fit_on_a_screen(self):
        for name in self.OURS:
            for node in ast.walk(ast.parse(read(os.path.join(HERE, name)))):
                if isinstance(node, ast.FunctionDef):
                    docstring = ast.get_docstring(node, clean=False) or ""
                    length = node.end_lineno - node.lineno + 1 - docstring.count("\n")
                    assert length <= 40, f"{name}: {node.name} has {length} lines"

    def test_lines_are_no_wider_than_a_page(self):
        paths = [name for name in os.listdir(HERE) if name.endswith(".py")]
        paths += [f"benchmarks/{name}" for name in os.listdir(os.path.join(HERE, "benchmarks"))
                  if name.endswith(".py")]
        for path in paths:
            for number, line in enumerate(read(os.path.join(HERE, path)).splitlines(), 1):
                assert len(line) <= 100, f"{path}:{number} has {len(line)} columns"

    @pytest.mark.parametrize("name", OURS)
    def test_no_room_names_one_below_it(self, name):
        """So a file's order is its table of contents. An annotation may name a room's owner."""
        text = read(os.path.join(HERE, name))
        banners = [n for n, line in enumerate(text.splitlines(), 1) if line.startswith("# ───")]
        tree = ast.parse(text)
        defined = {}
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names = [node.name]
            else:
                names = [one.id for one in ast.walk(node)
                         if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]
            room = sum(banner < node.lineno for banner in banners)
            defined.update((one, room) for one in names if one not in defined)
        for node in tree.body:
            room = sum(banner < node.lineno for banner in banners)
            annotations = {one for part in ast.walk(node)
                           for field in ("annotation", "returns") if getattr(part, field, None)
                           for one in ast.walk(getattr(part, field))}
            own = {one.id for one in ast.walk(node)
                   if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
            below = [(one.lineno, one.id) for one in ast.walk(node)
                     if isinstance(one, ast.Name) and one not in annotations
                     and one.id not in own and defined.get(one.id, 0) > room]
            assert not below, f"{name}: {below[0][1]} in line {below[0][0]} is of a room below"
        assert len(banners) > 10

    def test_conditional_expressions_are_values_and_do_not_nest(self):
        for name in self.OURS:
            for node in ast.walk(ast.parse(read(os.path.join(HERE, name)))):
                inner = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
                assert not isinstance(inner, ast.IfExp), f"{name}:{node.lineno}"
                if isinstance(node, ast.IfExp):
                    nested = [one for one in (node.body, node.orelse, node.test)
                              if isinstance(one, ast.IfExp)]
                    assert not nested, f"{name}:{node.lineno}"

    def test_what_is_public_is_documented(self):
        for module in (executors, wire):
            for name in module.__all__:
                thing = getattr(module, name)
                assert thing.__doc__, name
                for method in vars(thing).values() if isinstance(thing, type) else ():
                    if (callable(method) and method.__module__ == module.__name__
                            and not method.__name__.startswith("_")):
                        assert inspect.getdoc(getattr(thing, method.__name__)), f"{name}.{method}"
