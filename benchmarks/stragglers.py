"""Simulate what stragglers cost, with the real scheduler and an injected clock.

Prints a table; asserts nothing.

    python benchmarks/stragglers.py [--runs 30] [--machines 20] [--slots 4] [--tasks 200]

Per scenario and rule: makespan over the mean makespan of the clean runs without backups, and busy
time over what the same tasks need when each runs once where it was first put. Rules: no backups;
Spark's defaults (spark.speculation.multiplier 3, spark.speculation.quantile 0.9); and ours (DESIGN
section 7).
"""

from __future__ import annotations

import argparse
import heapq
import math
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterable
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import executors
import remote_worker as wire


class SparkScheduler(executors._Scheduler):
    """Back up only when 90 % of the tasks are done, those that have run three times the median."""

    total = 0

    def _launch_backups(self, running: Iterable[tuple[float, Any]]) -> None:
        if self.tally.settled[wire.RESULT] < 0.9 * self.total:
            return
        for age, attempt in running:
            bundle, machine = attempt.bundle, attempt.worker.machine
            if bundle.attempts == (attempt,) and age > 3 * bundle.function.durations.median:
                fit = [other for other in self._idle if other.machine != machine]
                if fit:
                    self._launch(bundle, fit[0], backup=True)


class Simulation:
    """Run tasks of given durations on machines of given slowness.

    `math.inf` is a machine whose tasks hang.
    """

    def __init__(self, scheduler: executors._Scheduler, slowness: list[float], slots: int,
                 durations: list[float]) -> None:
        self.scheduler, self.time, self.busy, self.events = scheduler, 0.0, 0.0, []
        self.slowness = {f"m{n}": factor for n, factor in enumerate(slowness)}
        self.running: dict[int, Any] = {}
        self.launched: dict[int, float] = {}
        self.work: dict[Any, float] = {}
        self.settled_at = 0.0
        for n in range(len(slowness)):
            record = executors.RemoteWorkerRecord(None, f"m{n}", count=slots)
            self.decide(scheduler.add_worker, record)
        function = executors._Function(1, "task", b"", executors._Durations())
        for duration in durations:
            bundle = executors._Bundle(function, b"")
            self.work[bundle] = duration
            self.decide(scheduler.submit, bundle)

    def decide(self, decision: Callable[..., Any], *operands: Any) -> None:
        decision(*operands)
        for verb, target, operand in self.scheduler.take_actions():
            if verb is executors._CONNECT:
                self.hear(target, executors._Scheduler.on_link_up, 1)
            elif verb is executors._LAUNCH:
                attempt = operand
                self.running[attempt.ident], self.launched[attempt.ident] = attempt, self.time
                takes = self.work[attempt.bundle] * self.slowness[attempt.worker.machine]
                heapq.heappush(self.events, (self.time + takes, attempt.ident))
            elif verb is executors._KILL:
                heapq.heappush(self.events, (self.time + 0.01, -operand))
            elif verb is executors._SETTLE:
                self.settled_at = self.time

    def hear(self, worker: Any, report: Callable[..., Any], *operands: Any) -> None:
        self.decide(self.scheduler.on_report, worker, worker.link, report, *operands)

    def run(self) -> tuple[float, float]:
        """Return the makespan and the slot-seconds that were spent."""
        tick = 0.0
        while self.scheduler.unfinished:
            at = min(self.events[0][0] if self.events else math.inf, tick)
            self.time = self.scheduler.now = at
            if at == tick:
                self.decide(self.scheduler.tick)
                tick = at + executors.TICK_SECONDS
                if at > 100_000:
                    return math.inf, math.inf      # something hangs for ever
                continue
            _, ident = heapq.heappop(self.events)
            attempt = self.running.pop(abs(ident), None)
            if attempt is None:
                continue
            seconds = self.time - self.launched[attempt.ident]
            self.busy += seconds
            if ident < 0:
                self.hear(attempt.worker, executors._Scheduler.on_attempt_killed, -ident, 0)
            else:
                results = [(wire.RESULT, ident, int(seconds * 1e6), None)]
                self.hear(attempt.worker, executors._Scheduler.on_results, results)
        self.busy += sum(self.settled_at - self.launched[ident] for ident in self.running)
        return self.settled_at, self.busy


def scenarios(machines: int, tasks: int,
              source: random.Random) -> dict[str, tuple[list[float], list[float]]]:
    """Return {name: (slowness of each machine, duration of each task)}."""
    even = [source.uniform(9, 11) for _ in range(tasks)]
    heavy = [min(source.lognormvariate(math.log(5), 1), 60) for _ in range(tasks)]
    return {
        "clean": ([1.0] * machines, even),
        "one machine 5x slow": ([5.0] + [1.0] * (machines - 1), even),
        "one machine hangs": ([math.inf] + [1.0] * (machines - 1), even),
        "heavy-tailed tasks": ([1.0] * machines, heavy),
        "speeds from 1 to 2": ([source.uniform(1, 2) for _ in range(machines)], even),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("runs", 30), ("machines", 20), ("slots", 4), ("tasks", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rules: dict[str, tuple[type[executors._Scheduler], bool]] = {
        "off": (executors._Scheduler, False), "Spark": (SparkScheduler, True),
        "ours": (executors._Scheduler, True)}
    costs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in range(options.runs):
        settings = scenarios(options.machines, options.tasks, random.Random(run))
        for name, (slowness, durations) in settings.items():
            base = 0.0, 0.0
            for rule, (kind, backups) in rules.items():
                source = random.Random(f"not the {run} that the durations come of")
                policy = executors.WeightedRandomRemoteWorkerSelectionPolicy(source)
                scheduler = kind(policy, executors._Limits(schedule_backups=backups))
                scheduler.total = options.tasks     # type: ignore[attr-defined]
                makespan, busy = Simulation(scheduler, slowness, options.slots, durations).run()
                if rule == "off":
                    clean = executors._Scheduler(policy, executors._Limits(schedule_backups=False))
                    even = [1.0 if factor == math.inf or "slow" in name else factor
                            for factor in slowness]
                    base = Simulation(clean, even, options.slots, durations).run()
                cost = makespan / base[0] - 1, busy / base[1] - 1
                costs.setdefault((name, rule), []).append(cost)
    print(f"{options.tasks} tasks on {options.machines} machines of {options.slots} slots, "
          f"{options.runs} runs: mean extra makespan / mean extra busy time, against the same "
          "tasks with no machine slow and no backups\n")
    print(f"{'':22}" + "".join(f"{rule:>20}" for rule in rules))
    for name in scenarios(1, 1, random.Random(0)):
        cells = []
        for rule in rules:
            makespan, busy = map(statistics.mean, zip(*costs[name, rule], strict=True))
            cells.append("never ends" if makespan == math.inf else f"{makespan:+.1%} / {busy:+.1%}")
        print(f"{name:22}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
