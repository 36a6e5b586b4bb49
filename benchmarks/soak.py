"""Run one pool for long, lose its links under load, open and close many: what stays behind?

Prints figures at the start and the end; asserts nothing.

    python benchmarks/soak.py [--calls 2000000] [--losses 500] [--pools 200] [--smoke]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import operator
import os
import random
import signal
import sys
import threading
import time
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import executors
import remote_worker as wire


def figures() -> str:
    """Say what the controller, and all that descends from it, hold now."""
    tree, pids = wire.process_tree(), [os.getpid()]
    for pid in pids:
        pids += tree.get(pid, ())
    sizes = []
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/statm") as file:
            sizes.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20))
    return (f"controller {sizes[0]:.0f} MiB, {len(os.listdir('/proc/self/fd'))} descriptors, "
            f"{threading.active_count()} threads; {len(sizes) - 1} processes below it, "
            f"{sum(sizes[1:]):.0f} MiB")


class Count:
    """Count how futures end, by their callbacks: what is right, wrong, failed, settled twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: collections.Counter[int] = collections.Counter()
        self.wrong = self.failed = self.submitted = 0

    def watch(self, future: Any, n: int) -> None:
        """Expect `-n` of a future."""
        self.submitted += 1
        future.add_done_callback(lambda done: self._note(done, n))

    def _note(self, future: Any, n: int) -> None:
        with self._lock:
            self._seen[n] += 1
            if future.exception():
                self.failed += 1
            elif future.result() != -n:
                self.wrong += 1

    def __str__(self) -> str:
        twice = sum(number > 1 for number in self._seen.values())
        return (f"{self.submitted} calls: {self.wrong} wrong, {self.failed} failed, "
                f"{self.submitted - len(self._seen)} lost, {twice} settled twice")


def calls(number: int) -> None:
    """No-ops through one pool, with at most 20 000 under way."""
    count = Count()
    with executors.RemoteExecutor(["2/:"], show_status=False) as pool:
        list(pool.map(operator.neg, range(20_000)))
        print(f"before {number} calls: {figures()}")
        for n, value in enumerate(pool.map(operator.neg, range(number), buffersize=20_000)):
            count.wrong += value != -n
        print(f"after: {figures()}, {count.wrong} wrong")


def losses(number: int, config: str) -> None:
    """Kill ssh, shims and slots at random while work runs."""
    source, count = random.Random(1), Count()
    workers = [f"2/bench python={sys.executable}", "2/:"]
    with executors.RemoteExecutor(workers, show_status=False, ssh_options=["-F", config],
                                  max_bundle_failures=1000, heartbeat_seconds=0.5) as pool:
        pool.submit(operator.neg, 1).result()
        print(f"before {number} losses: {figures()}")
        killed = submitted = 0
        while killed < number:
            for _ in range(50):
                count.watch(pool.submit(operator.neg, submitted), submitted)
                submitted += 1
            for login in [*pool._supervisor.logins.values()]:
                if login.shim and source.random() < 0.2:
                    victim = source.choice([login.processes[0].pid, login.shim, login.guardian])
                    with contextlib.suppress(OSError):
                        os.kill(victim, signal.SIGKILL)
                        killed += 1
            time.sleep(0.05)
        while pool.task_count:
            time.sleep(0.1)
        print(f"after: {figures()}; {count}")


def pools(number: int, config: str) -> None:
    """Open and close pools over ssh."""
    print(f"before {number} pools: {figures()}")
    for n in range(number):
        with executors.RemoteExecutor([f"1/bench python={sys.executable}"], show_status=False,
                                      ssh_options=["-F", config]) as pool:
            assert pool.submit(operator.neg, n).result() == -n
    print(f"after: {figures()}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2_000_000)
    parser.add_argument("--losses", type=int, default=500)
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--smoke", action="store_true", help="a minute of everything")
    options = parser.parse_args()
    if options.smoke:
        options.calls, options.losses, options.pools = 200_000, 20, 10
    from test_executors import Sshd

    with Sshd(["bench"], has_home=True) as sshd:
        calls(options.calls)
        losses(options.losses, sshd.path("config"))
        pools(options.pools, sshd.path("config"))


if __name__ == "__main__":
    main()
