"""Record the scoreboard of a real run in which a machine is lost and comes back; draw it as SVG.

    pip install -e '.[test]'
    python benchmarks/picture.py        # writes benchmarks/scoreboard.svg and benchmarks/trace.svg

The run is real: two private sshds on loopback, one of whose links is cut; the program has a
terminal of its own (a pty), which pyte reads as a person does. The second picture is the trace of
that run.
"""

from __future__ import annotations

import html
import json
import os
import pty
import select
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

COLUMNS, ROWS = 100, 16
PROGRAM = """
import executors, os, signal, sys, threading, time
python, options, trace = sys.argv[1], sys.argv[2:-1], sys.argv[-1]

def simulate(seed):
    time.sleep(0.2 + seed % 7 / 20)
    if seed % 40 == 0:
        print("seed", seed, "converged")
    return seed

def cut():
    for login in pool._supervisor.logins.values():
        if login.record.machine == "lab2":
            os.kill(login.processes[0].pid, signal.SIGKILL)

with executors.RemoteExecutor([f"4/bigbox python={python}", f"2/lab2 python={python}"],
                              ssh_options=options, title="farm") as pool:
    threading.Timer(4, cut).start()
    for _ in pool.map(simulate, range(1, 241)):
        pass
    pool.status.trace(trace)
"""
FONT = "font-family='ui-monospace, Menlo, Consolas, monospace' font-size='13'"


def record(trace: str) -> list[str]:
    """Run the program on a terminal; return what its screen showed while a machine was away."""
    import pyte
    from test_executors import Sshd
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    found: list[str] = []
    with Sshd(["bigbox", "lab2"]) as sshd:
        ours, theirs = pty.openpty()
        os.environ.update(TERM="xterm", COLUMNS=str(COLUMNS), LINES=str(ROWS))
        subprocess.run(["stty", "rows", str(ROWS), "cols", str(COLUMNS)], stdin=theirs, check=True)
        command = [sys.executable, "-c", PROGRAM, sys.executable, *sshd.ssh_options, trace]
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs,
                                   cwd=os.path.dirname(HERE))
        os.close(theirs)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    stream.feed(os.read(ours, 1 << 16))
                except OSError:
                    break
            shown = "\n".join(screen.display)
            if "waiting, next try" in shown and " left" in shown:
                found = found or [line.rstrip() for line in screen.display]
        process.wait()
    assert found, "no machine was seen to be away"
    # The scrolling region is taller than what has been printed yet.
    return [line for line, before in zip(found, ["", *found]) if line or before]


def svg(width: int, height: int, body: str) -> str:
    return (f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
            f"viewBox='0 0 {width} {height}' {FONT}>"
            f"<rect width='100%' height='100%' rx='6' fill='#1b1f24'/>{body}</svg>\n")


def draw_screen(lines: list[str]) -> str:
    body = ""
    for row, line in enumerate(lines):
        is_head = line.startswith("farm: ") and " done" in line
        style = " font-weight='bold'" if is_head else ""
        body += (f"<text x='14' y='{28 + 19 * row}' fill='#d6dbe1' xml:space='preserve'{style}>"
                 f"{html.escape(line)}</text>")
    return svg(20 + 8 * COLUMNS, 24 + 19 * len(lines), body)


def draw_trace(path: str) -> str:
    """A row for each slot, a box for each attempt; red what was lost, with its next attempt."""
    with open(path) as file:
        events = json.load(file)["traceEvents"]
    names = {one["pid"]: one["args"]["name"].split()[0] for one in events
             if one["name"] == "process_name"}
    spans = [one for one in events if one["ph"] == "X"]
    end = max(one["ts"] + one["dur"] for one in spans)
    rows = sorted({(one["pid"], one["tid"]) for one in spans})
    body = ""
    for row, (pid, tid) in enumerate(rows):
        label = f"{names[pid]} {'slot ' + str(tid) if tid < 1000 else 'lost'}"
        body += f"<text x='14' y='{28 + 22 * row}' fill='#d6dbe1'>{html.escape(label)}</text>"
        for one in spans:
            if (one["pid"], one["tid"]) == (pid, tid):
                colour = "#e5534b" if one["cat"] == "lost" else "#57ab5a"
                body += (f"<rect x='{130 + 670 * one['ts'] / end:.1f}' y='{15 + 22 * row}' "
                         f"width='{max(670 * one['dur'] / end - 1, 1):.1f}' height='16' "
                         f"fill='{colour}'/>")
    return svg(20 + 8 * COLUMNS, 20 + 22 * len(rows), body)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        trace = os.path.join(folder, "trace.json")
        lines = record(trace)
        for name, text in (("scoreboard", draw_screen(lines)), ("trace", draw_trace(trace))):
            with open(os.path.join(HERE, f"{name}.svg"), "w") as file:
                file.write(text)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
