"""Measure memory and cost as work grows. Prints figures; asserts nothing.

    python benchmarks/growth.py [--bundles 1000000] [--workers 200]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import operator
import os
import sys
import time

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
        pickled = sys.getsizeof(wire.pack(((number,), None)))
        print(f"{number} pending: {each:.0f} bytes each, of which its pickle {pickled}; submitted at {number / submitted:.0f}/s", end="")
        started = time.perf_counter()
        for blocker in blockers:
            blocker.cancel()
        concurrent.futures.wait(futures)
        print(f", drained at {number / (time.perf_counter() - started):.0f}/s, "
              f"both {number / (submitted + time.perf_counter() - started):.0f}/s")


class Sink:
    """A link that goes nowhere."""


def decisions(workers: int, number: int = 20_000) -> None:
    """Cost of a scheduling decision, submit and finish together, on the pure scheduler."""
    scheduler = executors._Scheduler(executors.WeightedRandomRemoteWorkerSelectionPolicy())
    for n in range(workers):
        scheduler.add_worker(executors.RemoteWorkerRecord(None, f"m{n}", count=2), 0.0)
        for verb, *rest in scheduler.take_actions():
            if verb == executors._CONNECT:
                scheduler.up(rest[0], Sink(), 2, 0.0)
    function = executors._Function(1, "f", b"", executors._Durations())
    started, launched, done = time.perf_counter(), [], 0
    for _ in range(number):
        scheduler.submit(executors._Bundle(function, b""), 0.0)
        launched += [rest[1] for verb, *rest in scheduler.take_actions() if verb == executors._LAUNCH]
        if len(launched) > 2 * workers - 2:
            attempt = launched.pop(done * 7919 % len(launched))
            scheduler.finish(attempt.worker, attempt.worker.link, [(wire.RESULT, attempt.ident, 1_000_000, None)], 0.0)
            done += 1
    print(f"{workers} workers: {1e6 * (time.perf_counter() - started) / number:.1f} µs a bundle (submit, launch, finish)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=200)
    options = parser.parse_args()
    for number in (20_000, options.bundles):
        pending(number)
    for workers in (2, options.workers):
        decisions(workers)


if __name__ == "__main__":
    main()
