"""Measure memory, and cost as work grows, over real ssh where that matters.

Prints figures; asserts nothing.

    python benchmarks/growth.py [--bundles 1000000] [--workers 200] [--array 268435456]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import heapq
import operator
import os
import random
import statistics
import subprocess
import sys
import time
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import executors
import remote_worker as wire


def resident() -> int:
    """Return this process's resident memory in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pending(number: int) -> None:
    """Memory of bundles that wait, all slots being busy; then the rate at which they drain."""
    with executors.RemoteExecutor(["2/:"], show_status=False) as pool:
        list(pool.map(operator.neg, range(1000)))
        blockers = [pool.submit(time.sleep, 1e6) for _ in range(2)]
        while not all(future.running() for future in blockers):
            time.sleep(0.01)
        before, started = resident(), time.perf_counter()
        futures = [pool.submit(operator.neg, n) for n in range(number)]
        submitted = time.perf_counter() - started
        each = (resident() - before) / number
        pickled = sys.getsizeof(wire.pack_call((number,), {})[0])
        print(f"{number} pending: {each:.0f} bytes each, of which its pickle {pickled}; "
              f"submitted at {number / submitted:.0f}/s", end="")
        started = time.perf_counter()
        for blocker in blockers:
            blocker.cancel()
        concurrent.futures.wait(futures)
        print(f", drained at {number / (time.perf_counter() - started):.0f}/s, "
              f"both {number / (submitted + time.perf_counter() - started):.0f}/s")


def decisions(workers: int, number: int = 20_000) -> None:
    """Cost of a scheduling decision, submit and finish together, on the pure scheduler."""
    scheduler = executors._Scheduler(
        executors.WeightedRandomRemoteWorkerSelectionPolicy(), executors._Limits())
    for n in range(workers):
        scheduler.add_worker(executors.RemoteWorkerRecord(None, f"m{n}", count=2))
        for verb, worker, link in scheduler.take_actions():
            if verb is executors._CONNECT:
                scheduler.on_report(worker, link, executors._Scheduler.on_link_up, 2)
    function = executors._Function(1, "f", b"", executors._Durations())
    started, launched, done = time.perf_counter(), [], 0
    for _ in range(number):
        scheduler.submit(executors._Bundle(function, b""))
        launched += [attempt for verb, _, attempt in scheduler.take_actions()
                     if verb is executors._LAUNCH]
        if len(launched) > 2 * workers - 2:
            attempt = launched.pop(done * 7919 % len(launched))
            worker, results = attempt.worker, [(wire.RESULT, attempt.ident, 1_000_000, None)]
            scheduler.on_report(worker, worker.link, executors._Scheduler.on_results, results)
            done += 1
    each = (time.perf_counter() - started) / number
    print(f"{workers} workers: {1e6 * each:.1f} µs a bundle (submit, launch, finish)")


def peak(pid: int) -> int:
    """Return a process's peak resident memory in bytes, and let it be counted anew."""
    with open(f"/proc/{pid}/status") as status:
        kilobytes = int(status.read().partition("VmHWM:")[2].split()[0])
    with open(f"/proc/{pid}/clear_refs", "w") as file:
        file.write("5")
    return kilobytes << 10


def cpu(pid: int) -> float:
    """Return the seconds of processor that a process has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make_array(size: int) -> Any:
    import numpy
    return numpy.zeros(size // 8) + 1


def over_ssh(sshd: Any, *workers: str, **options: Any) -> executors.RemoteExecutor:
    return executors.RemoteExecutor(
        [f"{worker} python={sys.executable}" for worker in workers], show_status=False,
        ssh_options=sshd.ssh_options, **options)


def memory(sshd: Any, size: int) -> None:
    """Peak extra memory, here and in the shim, of an array as a result and as an argument."""
    with over_ssh(sshd, "1/a") as pool:
        block = pool.submit(make_array, 1000).result()
        login, = pool._supervisor.logins.values()
        pids = os.getpid(), login.shim
        measure = operator.attrgetter("nbytes")
        ways = ("back", make_array, size), ("there", measure, make_array(size))
        for way, call, argument in ways:
            before = [(peak(pid), peak(pid))[1] for pid in pids]
            block = pool.submit(call, argument).result()
            extra = [(peak(pid) - start) / size for pid, start in zip(pids, before, strict=True)]
            print(f"array {way}: {extra[0]:.2f} times its size here, "
                  f"{extra[1] * size / (1 << 20):.1f} MiB in the shim")
            del block


def idle(sshd: Any, seconds: float = 10.0) -> None:
    """Processor used by a pool that has nothing to do."""
    with over_ssh(sshd, "2/a") as pool:
        list(pool.map(operator.neg, range(1000)))
        login, = pool._supervisor.logins.values()
        pids = os.getpid(), login.shim
        before = [cpu(pid) for pid in pids]
        time.sleep(seconds)
        used = [100 * (cpu(pid) - start) / seconds
                for pid, start in zip(pids, before, strict=True)]
        print(f"idle: {used[0]:.2f} % of a core here, {used[1]:.2f} % in the shim")


def mixed(sshd: Any, long: int) -> None:
    """Short bundles with long ones scattered among them, against the bound of list scheduling."""
    durations = [0.001] * 10_000 + [5.0] * long
    random.Random(1).shuffle(durations)
    slots = [0.0] * 4
    for duration in durations:
        heapq.heappush(slots, heapq.heappop(slots) + duration)
    for backups in (True, False):
        with over_ssh(sshd, "2/a", "2/b", schedule_backups=backups) as pool:
            concurrent.futures.wait([pool.submit(time.sleep, 0.001) for _ in range(50)])
            started = time.perf_counter()
            concurrent.futures.wait([pool.submit(time.sleep, duration) for duration in durations])
            ratio = (time.perf_counter() - started) / max(slots)
            print(f"10 000 of 1 ms and {long} of 5 s, backups {'on' if backups else 'off'}: "
                  f"{ratio:.3f} times the list-scheduling bound")


def starting(sshd: Any) -> None:
    """First results of one machine and of four, against a bare Python over ssh; and the import."""
    def first(*workers: str) -> float:
        started = time.perf_counter()
        with over_ssh(sshd, *workers) as pool:
            concurrent.futures.wait([pool.submit(time.sleep, 0.3) for _ in workers])
            assert sum(worker.done for worker in pool.status.workers) == len(workers)
            return time.perf_counter() - started - 0.3

    def run(*command: str) -> float:
        started = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""})
        return time.perf_counter() - started

    def median(measure: Any, *arguments: str) -> float:
        return statistics.median(measure(*arguments) for _ in range(7))

    bare = median(run, "ssh", *sshd.ssh_options, "a", f"{sys.executable} -S -E -c pass")
    one, four = median(first, "1/a"), median(first, "1/a", "1/b", "1/c", "1/d")
    print(f"first result: {one:.3f} s, {one / bare:.2f} times a bare Python over ssh; "
          f"of each of four machines {four / one:.2f} times that")
    find = f"import sys; sys.path.insert(0, {os.path.dirname(executors.__file__)!r})"
    peers = "concurrent.futures.process, cloudpickle"
    mine, others = (median(run, sys.executable, "-c", f"{find}; import {what}")
                    for what in ("executors", peers))
    print(f"import executors: {mine / others:.2f} times import {peers}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--array", type=int, default=256 << 20)
    parser.add_argument("--smoke", action="store_true",
                        help="a moment of everything, to see that it works")
    options = parser.parse_args()
    if options.smoke:
        options.bundles, options.array = 1000, 1 << 20
    for number in (20_000, options.bundles):
        pending(number)
    for workers in (2, options.workers):
        decisions(workers)
    from test_executors import Sshd

    with Sshd(["a", "b", "c", "d"], has_home=True) as sshd:
        memory(sshd, options.array)
        starting(sshd)
        idle(sshd, 1.0 if options.smoke else 10.0)
        mixed(sshd, 1 if options.smoke else 10)


if __name__ == "__main__":
    main()
