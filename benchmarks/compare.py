"""Measure this library beside its peers, in one run, over real ssh to a private sshd.

Prints a table; asserts nothing.

    pip install -e '.[bench,test]'
    python benchmarks/compare.py [--repeat 5] [--only ours,Thread,...] [--json FILE] [--smoke]

Everyone has one machine (this one) with two processes, or two threads. Each repetition runs every
contestant once, in a process of its own, so that what the machine does meanwhile hits all alike;
the table holds medians.

    calls/s     20 000 calls of an importable function that does nothing, submitted one by one, all
                awaited (slow ones: fewer)
    CPU         microseconds of this process's own processor time for each of these calls, which
                other programs do not touch
    trip        microseconds for one such call, submitted and awaited, one at a time
    first       seconds from making the pool to its first result
    item        microseconds for an item of `sum(pool.map(neg, range(1_000_000)))`, or of fewer, as
                the pool does it if nobody says a chunksize
    mixed       5000 naps of 0.2 ms and eight of 0.3 s by `map`, as a multiple of what two slots
                need
    shared      seconds for 20 joblib tasks on one array of 64 MiB
    back, there megabytes a second of a NumPy array of 256 MiB as a result, and as an argument
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import datetime
import functools
import importlib
import json
import operator
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

import executors

CALLS, ARRAY = 20_000, 256 << 20
MEASURES = "calls/s", "CPU", "trip", "first", "item", "mixed", "shared", "back", "there"
MORE_IS_BETTER = "calls/s", "back", "there"
SECONDS = 60        # for one contestant, once


# ────────────────────────────────────────── contestants ───────────────────────────────────────────
#
# A contestant is a context manager that yields `submit`, which returns something with `result()`.
# One that works another way yields an object with methods of its own for what is measured.


def ours(worker: str) -> executors.RemoteExecutor:
    return executors.RemoteExecutor([worker], show_status=False, ssh_options=["-F", CONFIG])


def ours_over_ssh() -> executors.RemoteExecutor:
    return ours(f"2/bench python={sys.executable}")


@contextlib.contextmanager
def pool_of(make: Callable[[], Any]) -> Iterator[Any]:
    with make() as pool:
        yield pool.submit


def run_cloudpickle(call: bytes) -> Any:
    import cloudpickle
    fn, args = cloudpickle.loads(call)
    return fn(*args)


@contextlib.contextmanager
def multiprocessing_pool() -> Iterator[Any]:
    import multiprocessing

    class Result:
        def __init__(self, result: Any) -> None:
            self.result = result.get

    def submit(fn: Any, *args: Any) -> Result:
        return Result(pool.apply_async(fn, args))

    with multiprocessing.Pool(2) as pool:
        submit.map = pool.map       # type: ignore[attr-defined]
        yield submit


@contextlib.contextmanager
def loky() -> Iterator[Any]:
    from loky import ProcessPoolExecutor
    with ProcessPoolExecutor(2) as pool:
        yield pool.submit


@contextlib.contextmanager
def pebble() -> Iterator[Any]:
    from pebble import ProcessPool
    with ProcessPool(2) as pool:
        yield lambda fn, *args: pool.schedule(fn, args)


class Execnet:
    """Two channels, on each of which a loop answers."""

    LOOP = """
        import operator, os
        for name, arg in channel:
            if name == "neg":
                channel.send(operator.neg(arg))
            else:
                channel.send(os.urandom(1) * arg if name == "back" else len(arg))
    """

    def __init__(self) -> None:
        import execnet
        self._group = execnet.Group()
        spec = f"ssh=-F {CONFIG} bench//python={sys.executable}"
        self._channels = [self._group.makegateway(spec).remote_exec(self.LOOP) for _ in range(2)]

    def calls(self, number: int) -> None:
        for n in range(number):
            self._channels[n % 2].send(("neg", n))
        for n in range(number):
            assert self._channels[n % 2].receive() == -n

    def trip(self) -> None:
        self._channels[0].send(("neg", 1))
        self._channels[0].receive()

    def back(self, size: int) -> None:
        self._channels[0].send(("back", size))
        assert len(self._channels[0].receive()) == size

    def there(self, block: Any) -> None:
        self._channels[0].send(("there", block.tobytes()))
        assert self._channels[0].receive() == block.nbytes

    def close(self) -> None:
        self._group.terminate(1)


@contextlib.contextmanager
def mitogen() -> Iterator[Any]:
    from mitogen.master import Broker, Router
    broker = Broker()
    router = Router(broker)
    contexts = [router.ssh(hostname="bench", ssh_args=["-F", CONFIG], python_path=sys.executable,
                           check_host_keys="ignore", identities_only=False) for _ in range(2)]
    turn = iter(range(1 << 60))

    class Result:
        def __init__(self, receiver: Any) -> None:
            self.result = lambda: receiver.get().unpickle()

    try:
        yield lambda fn, *args: Result(contexts[next(turn) % 2].call_async(fn, *args))
    finally:
        broker.shutdown()
        broker.join()


@contextlib.contextmanager
def dask(over_ssh: bool) -> Iterator[Any]:
    import dask
    import distributed
    dask.config.set({"distributed.worker.memory.terminate": False})
    if over_ssh:
        key = os.path.join(os.path.dirname(CONFIG), "user")
        hosts = os.path.join(os.path.dirname(CONFIG), "known_hosts")
        with open(CONFIG) as file:
            port = int(file.read().partition("Port ")[2].split()[0])
        cluster: Any = distributed.SSHCluster(
            ["127.0.0.1", "127.0.0.1"],
            connect_options={"port": port, "client_keys": [key], "known_hosts": hosts},
            worker_options={"nthreads": 1, "n_workers": 2}, remote_python=sys.executable)
    else:
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        yield functools.partial(client.submit, pure=False)


@contextlib.contextmanager
def ray() -> Iterator[Any]:
    import ray
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR",
             object_store_memory=1 << 30)
    remotes: dict[Any, Any] = {}

    class Result:
        def __init__(self, reference: Any) -> None:
            self.result = functools.partial(ray.get, reference)

    def submit(fn: Any, *args: Any) -> Result:
        if fn not in remotes:
            remotes[fn] = ray.remote(lambda *arguments: fn(*arguments))
        return Result(remotes[fn].remote(*args))

    yield submit
    ray.shutdown()


class Distex:
    """A pool over ssh, as its README has it; its program must be on a login shell's PATH there.

    Arguments:
        qsize: calls on their way to each worker.
    """

    def __init__(self, qsize: int = 2) -> None:
        from distex import Pool
        self._pool = Pool(0, "ssh://bench/2", qsize=qsize)

    def calls(self, number: int) -> None:
        for n, answer in enumerate(self._pool.map(operator.neg, range(number))):
            assert answer == -n

    def trip(self) -> None:
        self._pool.run(operator.neg, 1)

    def back(self, size: int) -> None:
        assert self._pool.run(make_array, size).nbytes == size

    def there(self, block: Any) -> None:
        assert self._pool.run(measure_array, block) == block.nbytes

    def close(self) -> None:
        self._pool.shutdown()


class Parallel:
    """GNU parallel: a login and a process for each call."""

    def __init__(self, *options: str) -> None:
        if not shutil.which("parallel"):
            raise ImportError("GNU parallel is not installed")
        self._command = ["parallel", *options, "--will-cite", "-S", "2/bench", "-k"]

    def calls(self, number: int) -> None:
        done = subprocess.run([*self._command, "echo", ":::", *map(str, range(number))],
                              check=True, capture_output=True)
        assert len(done.stdout.split()) == number

    def trip(self) -> None:
        self.calls(1)

    def close(self) -> None:
        pass


class Lambdas:
    """A lambda instead of an importable function: pickled once by `map`, each time by `submit`."""

    def __init__(self, pool: Any, by_map: bool) -> None:
        self._pool, self._by_map = pool, by_map

    def calls(self, number: int) -> None:
        offset = 1
        if self._by_map:
            answers = list(self._pool.map(lambda n: offset - n, range(number)))
        else:
            futures = [self._pool.submit(lambda n: offset - n, n) for n in range(number)]
            answers = [future.result() for future in futures]
        assert answers == [1 - n for n in range(number)]

    def trip(self) -> None:
        self._pool.submit(lambda: 1).result()

    def close(self) -> None:
        self._pool.shutdown()


class Cloudpickled(concurrent.futures.ProcessPoolExecutor):
    def submit(self, fn: Any, /, *args: Any) -> Any:        # type: ignore[override]
        import cloudpickle
        return super().submit(run_cloudpickle, cloudpickle.dumps((fn, args)))


CONTESTANTS: dict[str, Callable[[], Any]] = {
    "ours, over ssh": lambda: pool_of(ours_over_ssh),
    "ours, over ':'": lambda: pool_of(lambda: ours("2/:")),
    "ours, a lambda by map": lambda: Lambdas(ours_over_ssh(), True),
    "ours, a lambda by submit": lambda: Lambdas(ours_over_ssh(), False),
    "ProcessPoolExecutor, a lambda cloudpickled": lambda: Lambdas(Cloudpickled(2), False),
    "ThreadExecutor(2)": lambda: pool_of(lambda: executors.ThreadExecutor(2)),
    "ThreadPoolExecutor(2)": lambda: pool_of(lambda: concurrent.futures.ThreadPoolExecutor(2)),
    "ProcessExecutor(2)": lambda: pool_of(lambda: executors.ProcessExecutor(2)),
    "ProcessPoolExecutor(2)": lambda: pool_of(lambda: concurrent.futures.ProcessPoolExecutor(2)),
    "the same, cloudpickled": lambda: pool_of(lambda: Cloudpickled(2)),
    "multiprocessing.Pool(2)": multiprocessing_pool,
    "loky": loky,
    "pebble": pebble,
    "execnet, over ssh": Execnet,
    "distex, over ssh": Distex,
    "distex, over ssh, qsize=100": lambda: Distex(100),
    "mitogen, over ssh": mitogen,
    "dask, local": lambda: dask(False),
    "dask, over ssh": lambda: dask(True),
    "ray, local": ray,
    "GNU parallel -S": Parallel,
    "GNU parallel, one master": lambda: Parallel("--controlmaster"),
}


# ────────────────────────────────────────── measurement ───────────────────────────────────────────


def make_array(size: int) -> Any:
    import numpy
    return numpy.zeros(size // 8)


def measure_array(array: Any) -> int:
    return int(array.nbytes)


class Submitting:
    """What is measured, for those who have `submit`."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._submit = context.__enter__()

    def calls(self, number: int) -> None:
        futures = [self._submit(operator.neg, n) for n in range(number)]
        if isinstance(futures[0], concurrent.futures.Future):
            concurrent.futures.wait(futures)
        for n, future in enumerate(futures):
            assert future.result() == -n

    def trip(self) -> None:
        self._submit(operator.neg, 1).result()

    def back(self, size: int) -> None:
        assert self._submit(make_array, size).result().nbytes == size

    def there(self, block: Any) -> None:
        assert self._submit(measure_array, block).result() == block.nbytes

    @property
    def map(self) -> Any:
        pool = getattr(self._submit, "__self__", self._submit)
        return getattr(pool, "map", None)

    def backend(self, name: str) -> Any:
        """Return what joblib is to run on; None if it does not know this one."""
        if name.startswith("ours"):
            return executors.joblib_backend(self._submit.__self__)
        return {"loky": "loky", "dask": "dask", "ThreadPoolExecutor(2)": "threading"}.get(
            name.partition(",")[0])

    def close(self) -> None:
        self._context.__exit__(None, None, None)


def measure_maps(one: Submitting, name: str) -> Iterator[tuple[str, float]]:
    """Yield what is measured of those that have a `map`, or run under joblib."""
    if one.map and "Executor(2)" not in name or one.map and "Process" in name:
        number, seconds = 1000, 0.0
        while seconds < 1 and number < 1_000_000:
            number = min(1_000_000, number * 10)
            seconds = timed(lambda: sum(one.map(operator.neg, range(number))))
        yield "item", 1e6 * seconds / number
        naps = [0.0002] * 5000
        naps[::625] = [0.3] * 8
        yield "mixed", timed(lambda: list(one.map(time.sleep, naps))) / (sum(naps) / 2)
    if backend := one.backend(name):
        import joblib
        block = make_array(64 << 20)
        block += 1
        with joblib.parallel_config(backend=backend, n_jobs=2):
            run = joblib.Parallel()
            run(joblib.delayed(measure_array)(block[:1000]) for _ in range(20))
            yield "shared", timed(
                lambda: run(joblib.delayed(measure_array)(block) for _ in range(20)))


def timed(run: Callable[..., Any], *args: Any) -> float:
    started = time.perf_counter()
    run(*args)
    return time.perf_counter() - started


def measure(name: str, number: int, size: int) -> dict[str, float]:
    """Run one contestant once; leave out what it does not have, or what would take for ever."""
    started = time.perf_counter()
    made = CONTESTANTS[name]()
    one = made if hasattr(made, "calls") else Submitting(made)
    one.trip()
    found = {"first": time.perf_counter() - started}
    try:
        fit = max(10, min(number, int(2 / timed(one.trip))))
        one.calls(fit)      # warm
        found["calls/s"] = fit / timed(one.calls, fit)
        if fit < number and found["calls/s"] * 3 > fit:
            fit = min(number, int(found["calls/s"] * 3))
        spent = time.process_time()
        found["calls/s"] = fit / timed(one.calls, fit)
        found["CPU"] = 1e6 * (time.process_time() - spent) / fit
        trips = sorted(timed(one.trip) for _ in range(max(3, min(500, int(1 / timed(one.trip))))))
        found["trip"] = 1e6 * statistics.median(trips)
        if isinstance(one, Submitting) and number == CALLS:
            found.update(measure_maps(one, name))
        if size and hasattr(one, "back"):
            block = make_array(size)
            block += 1
            for measure, argument in (("back", size), ("there", block)):
                with contextlib.suppress(Exception):        # it cannot carry arrays
                    getattr(one, measure)(argument if measure == "back" else block[:1000])
                    found[measure] = size / timed(getattr(one, measure), argument) / 1e6
    finally:
        one.close()
    return found


def limits() -> dict[str, dict[str, float]]:
    """What ssh itself can do: a login, a bare Python, and bytes in either direction."""
    ssh = ["/usr/bin/ssh", "-F", CONFIG, "bench"]
    quiet = functools.partial(subprocess.run, check=True, stdin=subprocess.DEVNULL)
    bare = f"{sys.executable} -S -E -c pass"
    found = {"limit: ssh true": {"first": timed(quiet, [*ssh, "true"])},
             "limit: ssh python3 pass": {"first": timed(quiet, [*ssh, bare])}}
    with tempfile.TemporaryFile() as file:
        file.truncate(ARRAY)
        back = timed(lambda: quiet([*ssh, f"head -c {ARRAY} /dev/zero"], stdout=subprocess.PIPE))
        there = timed(lambda: subprocess.run([*ssh, "cat >/dev/null"], check=True, stdin=file))
    login = found["limit: ssh true"]["first"]
    found["limit: ssh cat"] = {"back": ARRAY / (back - login) / 1e6,
                               "there": ARRAY / (there - login) / 1e6}
    return found


def run_all(names: list[str], repeat: int, number: int, size: int) -> dict[str, Any]:
    samples: dict[str, dict[str, list[float]]] = {}
    failures: dict[str, str] = {}
    for turn in range(repeat):
        rows = limits()
        for name in names:
            if name in failures:
                continue
            print(f"\r\x1b[K{turn + 1}/{repeat}: {name}", end="", file=sys.stderr, flush=True)
            command = [sys.executable, os.path.abspath(__file__), "--one", name,
                       "--calls", str(number), "--array", str(size)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS,
                                      start_new_session=True)
                rows[name] = json.loads(done.stdout.splitlines()[-1])
            except subprocess.TimeoutExpired:
                failures[name] = f"not done after {SECONDS} s"
            except (IndexError, ValueError):
                failures[name] = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        for name, found in rows.items():
            for what, value in found.items():
                samples.setdefault(name, {}).setdefault(what, []).append(value)
    print(file=sys.stderr)
    medians = {name: {what: statistics.median(values) for what, values in found.items()}
               for name, found in samples.items()}
    return {"date": datetime.date.today().isoformat(), "cores": os.cpu_count(),
            "python": sys.version.split()[0], "repeat": repeat,
            "command": "python benchmarks/compare.py " + " ".join(sys.argv[1:]),
            "medians": medians, "samples": samples, "failures": failures}


def table(report: dict[str, Any]) -> str:
    """The medians in Markdown, each with its ratio to ours over ssh: how many times better."""
    medians = report["medians"]
    base = medians.get("ours, over ssh", {})
    lines = ["| | " + " | ".join(MEASURES) + " |", "|---|" + "---|" * len(MEASURES)]
    for name, found in medians.items():
        cells = []
        for what in MEASURES:
            if what not in found:
                cells.append("–")
                continue
            value = found[what]
            text = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
            if what in base and found is not base:
                ratio = value / base[what] if what in MORE_IS_BETTER else base[what] / value
                text += f" ({ratio:.2g}×)" if ratio < 100 else f" ({ratio:.0f}×)"
            cells.append(text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [f"\n{name}: {why}" for name, why in report["failures"].items()]
    head = (f"{report['date']}, {report['cores']} cores, Python {report['python']}, medians of "
            f"{report['repeat']}: `{report['command']}`. In brackets: how many times better than "
            "ours over ssh.\n\n")
    return head + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", metavar="PREFIX,...", help="contestants whose names begin so")
    parser.add_argument("--json", metavar="FILE", help="where to leave all samples")
    parser.add_argument("--smoke", action="store_true",
                        help="a moment of everything, to see that it works")
    parser.add_argument("--calls", type=int, default=CALLS, help="how many calls to measure by")
    parser.add_argument("--array", type=int, default=ARRAY,
                        help="bytes of the array; 0 leaves it out")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke:
        options.repeat, options.calls, options.array = 1, 200, 1 << 20
    if options.one:
        print(json.dumps(measure(options.one, options.calls, options.array)))
        return
    wanted = tuple(options.only.split(",")) if options.only else ("",)
    names = [name for name in CONTESTANTS if name.startswith(wanted)]
    from test_executors import Sshd

    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        for name in (".profile", ".bash_profile", ".bashrc"):   # for who types into a login shell
            with open(os.path.join(folder, name), "w") as file:
                file.write(f"export PATH={path}\n")
        # sshd heeds but one SetEnv.
        with Sshd(["bench"], [f"SetEnv PATH={path} HOME={folder}"], has_home=True) as sshd:
            # For who does not take ssh's options.
            ssh, config = os.path.join(folder, "ssh"), sshd.path("config")
            with open(ssh, "w") as file:
                file.write(f'#!/bin/sh\nexec /usr/bin/ssh -F {config} "$@"\n')
            os.chmod(ssh, 0o755)
            os.environ.update(PATH=f"{folder}:{path}", BENCH_SSH_CONFIG=config)
            globals()["CONFIG"] = config
            report = run_all(names, options.repeat, options.calls, options.array)
    print(table(report))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)


CONFIG = os.environ.get("BENCH_SSH_CONFIG", "")

if __name__ == "__main__":
    compare = importlib.import_module("compare")    # what contestants pickle is not of __main__
    compare.main()
