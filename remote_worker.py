# SPDX-License-Identifier: MIT
"""The worker's side of `executors`: it unpickles calls, runs them and pickles what they return.

The wire format, which both sides speak, is defined here too. Nothing is installed on a worker:
`executors.py` sends the text of this file over ssh to a bare Python, which makes a module of it and
calls `serve()`. An example of what follows; a user's script says

    LIMIT = 10

    def clip(x):
        return min(x, LIMIT)

    future = pool.submit(clip, 12)

1.  The controller (the process that runs the script) pickles the code of `clip`, the value of LIMIT
    and the arguments `(12,)`, each by itself. It sends the first two to the worker in a FUNCTION
    and the arguments in a CALL. Later calls of `clip` are a CALL only, until it or LIMIT changes.
2.  On the worker, the shim keeps the FUNCTION and writes the CALL into the pipe of a slot.
3.  The slot does not know the function yet, so it asks the shim for it. With the answer it defines
    LIMIT and `clip` in its own `__main__`. Then it unpickles the arguments and calls `clip(12)`.
4.  The slot pickles 10 and writes it as a RESULT, which the shim passes on to the controller.

*Processes.* A worker runs four kinds of process, each forked from the one before it. Only slots run
users' code:

    guardian ──► shim ──► keeper, keeper, ... ──► slot (one for each keeper)

- A *slot* runs one call at a time.
- A *keeper* is the parent of one slot. It leads the session that both are in and, on Linux, adopts
  the processes that the slot's processes leave behind. It exits the way its slot exits.
- The *shim* is one thread around `poll`. It assigns calls to slots, passes on their results and
  their output, and replaces a slot that died or was killed. It never unpickles a call or a result.
  It exits when the link to the controller ends, or has been silent for the length of a lease.
- The *guardian* waits. When the shim dies, it kills the processes that the shim left. When the
  controller's end of the link vanishes, or the shim is stopped, and the shim does not exit within
  two seconds, it kills the shim.

*Frames.* All that is sent is cut into frames, each a header and a payload (sizes in bytes, numbers
in network byte order):

    ┌────────┬──────────────┬──────────┬────────────────────────────┐
    │ kind 1 │ identifier 8 │ length 8 │ payload, at most MAX_FRAME │
    └────────┴──────────────┴──────────┴────────────────────────────┘

*Messages.* Some kinds (see `_MESSAGE_KINDS`) carry a pickle, of any length. The first frame of
such a message has a tag and a count at the start of its payload:

    ┌────────┬───────┬─────────┬────────────────────────────────────┐
    │ header │ tag 8 │ count 1 │ if 0: the pickle                   │
    │   17   │       │         │ if n: n lengths, 8 each            │
    └────────┴───────┴─────────┴────────────────────────────────────┘

- The tag of a CALL is the identifier of its FUNCTION. The tag of a RESULT or an ERROR holds the
  slot's number and for how long the call ran (see SLOT_SHIFT). Other tags mean nothing.
- Count 0: the message is this one frame. For example, the RESULT above.
- Count n: n *segments* follow, the pickle and its out-of-band buffers. (A large NumPy array is such
  a buffer, so that it is not copied into the pickle.) Their bytes come in PART frames with the same
  identifier. Frames of other messages may come in between: a long message delays no short one.

*Pipes.* Between the shim and each slot there are five, besides the slot's stdout and stderr:

             ── calls ─────►    CALL and FORGET, but no PART
             ── permits ───►    the identifier of each CALL, 8 bytes
    shim     ◄── questions ─    for what the slot lacks: a FUNCTION, the PARTs of its CALL, or one
                                of QUESTIONS, which the controller answers; and REPORTS         slot
             ── answers ───►    the answers to these: whole messages
             ◄── results ───    RESULT, ERROR and the like, with their PARTs

What a slot lacks, it *pulls*: it asks when it needs it, and waits for the answer. So the pipe of
calls holds nothing long, and several calls can wait in it.

A call that waits in the pipe can be taken back, for another slot or because it was cancelled. That
is what permits are for. A slot reads the permit of a call before it starts the call. The shim can
read that pipe too, and the kernel gives each permit to one reader only. If the shim gets it, the
call has not started and never will. If the slot gets it, the call starts. So when a slot dies, the
shim reads all permits that are left; the one call with neither a permit nor a result is the call
that was running.
"""

from __future__ import annotations

import _thread
import collections
import copyreg
import fcntl
import functools
import importlib.machinery as machinery
import io
import itertools
import mmap
import operator
import os
import pickle
import resource
import select
import signal
import stat
import struct
import sys
import time
import types
import weakref

# Bound here because a slot serves its pipes with them, and a task may patch their modules.
from os import _exit, getpid, read, readv, urandom, write
from pickle import PickleBuffer, dumps, loads
from signal import pthread_sigmask, valid_signals
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:       # importing typing would take a tenth of the time to the first result
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    Buffer = Any        # bytes, bytearray or memoryview
    Packed = Any        # what `pack` returns: bytes, or (lengths, buffers)

__version__ = "0.2.0"      # of executors, which this file belongs to
__all__ = [
    "ABSENT", "DECODE_ERRORS", "LOOK_UP_BY_NAME", "UNPICKLE_EACH_CALL", "UNPICKLE_ONCE",
    "FrameError", "FrameReader", "MessageReader", "Outbox", "PackageLoader", "Pickled",
    "Prepacked", "Script", "describe", "digest_file", "enlarge_pipe", "frame",
    "importable_name", "is_data", "is_plain", "main", "message", "open_nameless_file", "pack",
    "pack_call", "pack_for_process", "pack_for_slot", "pack_function", "pack_outcome",
    "pack_without_arrays", "pickle_definition", "process_tree", "remove_entries", "run_call",
    "run_chunk", "run_items", "run_plain", "run_shipped", "run_with_arrays", "script",
    "script_module", "script_path", "send_signal", "serve", "signal_tree", "unpack",
    "unpack_series", "write_all",
]

MAX_FRAME = 1 << 20     # bytes of payload; a longer frame means that the stream is garbled
# Bytes. A longer pickle is sent in PARTs; a buffer of at least this size leaves its pickle.
MAX_INLINE = 1 << 16
READ_SIZE = 1 << 16     # bytes requested by one read, which may bring many small frames
MAX_CALLS_IN_SLOT = 64  # calls in a slot, the running one too: busy until our next turn
MAX_BACKLOG = 4 << 20   # bytes queued for one descriptor; while there are more, we stop reading
TERM_SECONDS = 0.5      # between SIGTERM and SIGKILL
UNPACKERS = 4           # threads that unpack what was copied
STALL_SECONDS = 120.0   # a copy has failed if nothing arrives for this long
LOCK_POLL_SECONDS = 0.05    # between two checks whether another process has finished a copy
MOVED_SHARE = 24        # reports per lease to the controller while bytes arrive
PROGRESS_SECONDS = 1.0  # between two states of a progress bar that are passed on
STDERR_TAIL = 2000      # bytes of stderr kept to explain a slot's death
MAX_KEEPERS = 4096      # that the guardian can find without /proc
MAX_SHARED_CACHES = 64  # cached functions without a name that a slot keeps
NEVER = float("inf")

HEADER = struct.Struct("!BQQ")      # kind, identifier, length
HEADER_SIZE = HEADER.size
TAG = struct.Struct("!QB")              # tag and count, behind a message's first header
SINGLE_FRAME = struct.Struct("!BQQQB")  # HEADER and TAG of a message that is a single frame
BODY_START = SINGLE_FRAME.size          # where the pickle, or the lengths, begin in the first frame
COUNT_INDEX = BODY_START - 1
IDENTIFIER = struct.Struct("!Q")    # an identifier
GREETING = struct.Struct("!IQQ")    # number of cores, process IDs of shim and guardian
DEATH = struct.Struct("!qi")        # number of a slot, or NO_SLOT, and its wait status
NO_SLOT = -1
PROCESS = struct.Struct("!q")       # a process ID, or 0
SLOT_SHIFT = 48         # the tag of a result is (slot number << SLOT_SHIFT) + microseconds

# Identifiers. Attempts count from 1, functions from INITIALIZER_ID + 1, a shim's questions from
# FIRST_QUESTION_ID.
INITIALIZER_ID = 1 << 62
FIRST_QUESTION_ID = 1 << 63

# Kinds of frames from the controller to the shim. Slots are sent CALL and FORGET.
CONFIG = 1      # pickled settings of the pool
CALL = 2        # a message: the pickled arguments
FUNCTION = 3    # a message: see `pack_function`
FORGET = 4      # drop a function
KILL = 5        # end an attempt; answered by KILLED, unless its result comes first
RECALL = 6      # return up to `identifier` calls that have not started
PING = 7
ANSWER = 8      # a message: the answer to one of QUESTIONS
OUTPUT_ACK = 9  # `identifier` bytes of OUTPUT have been printed
QUIT = 10       # let every slot exit the way a process does, then exit

# Kinds of frames from the shim to the controller, most of which it passes on from a slot. PARTs go
# both ways.
HELLO = 32                  # GREETING, then the lines of `platform_facts`
RESULT = 33                 # a message: the pickled return value
ERROR = 34                  # a message: see `pack_outcome`
DIED = 35                   # DEATH and the end of stderr: a slot died while it ran this attempt
KILLED = 36                 # DEATH: the answer to KILL
RECALLED = 37               # IDENTIFIER of each call that is returned
PONG = 38                   # the answer to PING
FIND_MODULE = 39            # a question: a module, by name
OUTPUT = 40                 # text that a call printed; the identifier is 1 for stdout, 2 for stderr
STORED = 41                 # from the first slot: `files=` are there; or why they are not
SLOT_COUNT = 42             # no more than `identifier` slots can be started, and why
INITIALIZER_FAILED = 43     # a message: what the pool's initializer raised
COPY = 44                   # a question: copy entries of the cache into a folder, as JSON
PART = 45                   # bytes of the message with this identifier
MISSING_MODULE = 46         # a message: the name of a missing module, a zero byte, as in ERROR
FIND_NAME = 47              # a question: a definition in the controller's `__main__`, by name
FIND_METADATA = 48          # a question: the metadata of a distribution, by name
LIST_MODULES = 49           # a question: the modules in a package, by name
RETIRED = 50                # from a slot to the shim only: it has run as many calls as it may
# Bytes have arrived: of an unfinished message, if there is no text; or so many, a space, and the
# folder that they are in.
MOVED = 51
WAITING = 52                # a slot waits for a copy, and what becomes of it now; or no longer, ""
COPIED = 53                 # a question: whether all has been sent to a folder, or why it cannot be

QUESTIONS = FIND_MODULE, COPY, COPIED, FIND_NAME, FIND_METADATA, LIST_MODULES
REPORTS = MOVED, WAITING    # of slots, which get no answer
_MESSAGE_KINDS = {CALL, FUNCTION, ANSWER, RESULT, ERROR, MISSING_MODULE, INITIALIZER_FAILED}


# ───────────────────────────────────────────── frames ─────────────────────────────────────────────


class FrameError(Exception):
    """The stream does not hold valid frames: it ended inside one, or one has invalid content."""


# What reading and decoding invalid frames may raise.
DECODE_ERRORS = FrameError, struct.error, ValueError, LookupError, ArithmeticError, TypeError


def frame(kind: int, ident: int = 0, payload: bytes = b"") -> bytes:
    """Return one frame as bytes."""
    return HEADER.pack(kind, ident, len(payload)) + payload


def message(kind: int, ident: int, tag: int, packed: Packed) -> list[Buffer]:
    """Return the frames of a message, as buffers to be written one after the other.

    Arguments:
        packed: what `pack` returned. Its buffers are not copied.
    """
    if type(packed) is bytes:
        return [SINGLE_FRAME.pack(kind, ident, TAG.size + len(packed), tag, 0) + packed]
    lengths, segments = packed
    head = struct.pack("!QB%dQ" % len(lengths), tag, len(lengths), *lengths)
    buffers: list[Buffer] = [frame(kind, ident, head)]
    for segment in segments:
        view = memoryview(segment).cast("B")
        for start in range(0, len(view), MAX_FRAME):
            part = view[start:start + MAX_FRAME]
            buffers += HEADER.pack(PART, ident, len(part)), part
    return buffers


def _segment_lengths(data: Buffer) -> tuple[int, ...]:
    """Return the lengths of the segments that follow a message's first frame, in PARTs."""
    return struct.unpack_from("!%dQ" % data[COUNT_INDEX], data, BODY_START)


_CUT_OFF_MESSAGE = "the stream ended inside a frame: expected %d bytes, got %d"


class FrameReader:
    """Cut frames out of a descriptor, blocking or not, with one `read` system call at a time.

    Only one thread at a time may call `read`.

    Arguments:
        fd: the descriptor.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # The start of a frame whose rest has not come. Never long: see `_begin_long_frame`.
        self._incomplete_frame = b""
        # A long frame, (kind, identifier, data), and the part of its buffer that is still to be
        # filled, if any.
        self._long_frame: Any = None
        self._unfilled = memoryview(b"")

    def read(self) -> list[Any]:
        """Read once. Return the frames that this completed: `(kind, identifier, data)` of each.

        `data` is the whole frame, with its header. Raises EOFError if the stream ended between
        frames, FrameError if it ended inside one, and OSError.
        """
        if self._unfilled:
            return self._read_in_place()
        chunk = read(self.fd, READ_SIZE)
        data = self._incomplete_frame + chunk
        frames = []
        start = 0
        length = len(data)
        kind = ident = 0
        size = 0        # of the payload that is incomplete; 0 if not even its header is complete
        unpack_from = HEADER.unpack_from
        while length - start >= HEADER_SIZE:
            kind, ident, size = unpack_from(data, start)
            if size > MAX_FRAME:
                raise FrameError(
                    "a frame of kind %d announces %d bytes, more than %d" % (kind, size, MAX_FRAME))
            end = start + HEADER_SIZE + size
            if end > length:
                break
            frames.append((kind, ident, data[start:end]))
            start = end
            size = 0
        self._incomplete_frame = data[start:]
        if not chunk:
            if data:
                raise FrameError(_CUT_OFF_MESSAGE % (HEADER_SIZE + size, length))
            raise EOFError
        # Before `_begin_long_frame`: these frames may open the message that it is a PART of.
        complete = self._handle_frames(frames)
        if size > MAX_INLINE:
            self._begin_long_frame(kind, ident, size, self._incomplete_frame)
            self._incomplete_frame = b""
        return complete

    def _begin_long_frame(self, kind: int, ident: int, size: int, start: bytes) -> None:
        """Have the rest of a long frame read straight into its buffer, so it is not copied again.

        Arguments:
            size: of the frame's payload, in bytes.
            start: what has been read of the frame, its header included.
        """
        data = bytearray(HEADER_SIZE + size)
        data[:len(start)] = start
        self._long_frame = kind, ident, data
        self._unfilled = memoryview(data)[len(start):]

    def _read_in_place(self) -> list[Any]:
        count = readv(self.fd, [self._unfilled])
        if not count:
            raise FrameError(_CUT_OFF_MESSAGE % (len(self._unfilled), 0))
        self._unfilled = self._unfilled[count:]
        if self._unfilled:
            return []
        return self._handle_frames([self._long_frame])

    def _handle_frames(self, frames: list[Any]) -> list[Any]:
        """Return what `read` is to return for these frames; MessageReader makes messages of them.
        """
        return frames


class MessageReader(FrameReader):
    """Like FrameReader, but `read` returns messages: `(kind, identifier, tag, segments)` of each.

    `unpack` takes the segments. Frames that are not messages come as `(kind, identifier, 0,
    payload)`. If there is no memory for a message, its segments are a MemoryError, which `unpack`
    raises.

    Arguments:
        is_expected: returns whether a message of this kind and identifier may come now. One that
            may not is a FrameError.
    """

    def __init__(self, fd: int, is_expected: Callable[[int, int], bool] = lambda *_: True) -> None:
        super().__init__(fd)
        self.is_expected = is_expected
        # Messages with PARTs to come, by identifier: (message, views of what is to be filled).
        self._unfinished: dict[int, Any] = {}

    def forget(self, ident: int) -> None:
        """Drop what has been received of a message whose sender is gone."""
        self._unfinished.pop(ident, None)

    def _begin_long_frame(self, kind: int, ident: int, size: int, start: bytes) -> None:
        """Have a long PART read straight into its segment; see FrameReader."""
        if kind == PART and ident in self._unfinished:
            place = self._next_place(ident, size)
            count = len(start) - HEADER_SIZE
            place[:count] = start[HEADER_SIZE:]
            self._long_frame = kind, ident, b""       # no data: `_add_part` has nothing to copy
            self._unfilled = place[count:]
        else:
            super()._begin_long_frame(kind, ident, size, start)

    def _handle_frames(self, frames: list[Any]) -> list[Any]:
        messages = []
        for kind, ident, data in frames:
            # Four cases: a PART of a message; a frame that is not a message; the first frame of a
            # message with PARTs to come; a message that is a single frame.
            if kind == PART:
                finished = self._add_part(ident, data)
                if finished:
                    messages.append(finished)
                continue
            if kind not in _MESSAGE_KINDS:
                messages.append((kind, ident, 0, data[HEADER_SIZE:]))
                continue
            if len(data) < BODY_START:
                raise FrameError("a message of kind %d has only %d bytes" % (kind, len(data)))
            if not self.is_expected(kind, ident):
                raise FrameError("unexpected message of kind %d, identifier %d" % (kind, ident))
            tag = IDENTIFIER.unpack_from(data, HEADER_SIZE)[0]
            if data[COUNT_INDEX]:
                segments, views = _make_segments(data)
                self._unfinished[ident] = (kind, ident, tag, segments), views
            else:
                messages.append((kind, ident, tag, (data[BODY_START:],)))
        return messages

    def _add_part(self, ident: int, data: bytes) -> Any:
        """Add a PART to its message. Return the message if it is complete, otherwise None."""
        if ident not in self._unfinished:       # `forget` has dropped the message
            return None
        if data:        # otherwise it was read in place
            self._next_place(ident, len(data) - HEADER_SIZE)[:] = data[HEADER_SIZE:]
        finished, views = self._unfinished[ident]
        if views:
            return None
        del self._unfinished[ident]
        return finished

    def _next_place(self, ident: int, size: int) -> memoryview:
        """Return the memory that the next PART of a message fills, `size` bytes."""
        views = self._unfinished[ident][1]
        view: Any = views.pop(0)
        if size > len(view):
            raise FrameError(
                "a part of %d bytes overruns its segment, which has %d left" % (size, len(view)))
        if size < len(view):
            views.insert(0, view[size:])
        if isinstance(view, range):     # there was no memory: these bytes are read and dropped
            return memoryview(bytearray(size))
        place: memoryview = view[:size]
        return place


def _make_segments(data: Buffer) -> tuple[Any, list[Any]]:
    """Make room for the segments of a message.

    Return the buffers and a view of each. If there is no memory for them, return a MemoryError and
    a range of each one's length in place of the views.

    Arguments:
        data: the first frame of the message.
    """
    if len(data) < BODY_START + 8 * data[COUNT_INDEX]:
        raise FrameError("the first frame of a message with %d segments has only %d bytes" % (
            data[COUNT_INDEX], len(data)))
    lengths = _segment_lengths(data)
    total = sum(lengths)
    if total >> 48:
        raise FrameError("a message announces %d bytes" % total)
    try:
        segments = [*map(_make_segment, lengths)]
        return segments, [memoryview(segment) for segment in segments]
    except (MemoryError, OSError):
        error = MemoryError("no memory for a message of %d bytes" % total)
        return error, [range(length) for length in lengths]


def _make_segment(size: int) -> Any:
    """Return a buffer to read into. A long one is mapped, which saves filling it with zeros."""
    if size < MAX_FRAME:
        return bytearray(size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class Outbox:
    """A queue of frames to be written to a descriptor. Only one thread at a time may use it.

    Arguments:
        fd: the descriptor. If it is non-blocking, call `flush` until nothing is left.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = 0       # bytes queued
        self._queue: collections.deque[Buffer] = collections.deque()

    def put(self, buffers: Iterable[Buffer]) -> None:
        """Queue buffers, which must not change until they are written."""
        for buffer in buffers:
            self._queue.append(buffer)
            self.size += len(buffer)

    def flush(self) -> bool:
        """Write as much as the descriptor takes. Return whether nothing is left. Raises OSError."""
        queue = self._queue
        while queue:
            batch: list[Buffer] = []
            size = 0
            while queue and size < MAX_FRAME and len(batch) < 512:
                buffer = queue.popleft()
                batch.append(buffer)
                size += len(buffer)
            try:
                if size <= MAX_INLINE:      # copying this little is faster than writev
                    batch = [b"".join(batch)]
                    wrote = os.write(self.fd, batch[0])
                else:
                    wrote = os.writev(self.fd, batch)
            except BlockingIOError:
                wrote = 0
            self.size -= wrote
            if wrote < size:
                while wrote >= len(batch[0]):
                    wrote -= len(batch.pop(0))
                batch[0] = memoryview(batch[0])[wrote:]
                queue.extendleft(reversed(batch))
                return False
        return True


def write_all(fd: int, buffers: Iterable[Buffer]) -> None:
    """Write buffers to a blocking descriptor, even if a signal cuts a write short."""
    for buffer in buffers:
        wrote = write(fd, buffer)
        while wrote < len(buffer):
            wrote += write(fd, memoryview(buffer)[wrote:])


# The descriptors of a slot, besides stdin, stdout and stderr. The file's docstring draws them.
_CALLS_FD, _RESULTS_FD, _PERMITS_FD, _QUESTIONS_FD, _ANSWERS_FD = range(3, 8)
_STARTED = b"!"     # what a slot writes to its results first, before any frame


# ─────────────────────────────────────────── processes ────────────────────────────────────────────

# Options of Linux's prctl(2).
_PR_SET_PDEATHSIG = 1           # the signal that a process gets when its parent dies
_PR_SET_CHILD_SUBREAPER = 36    # 1: it becomes the parent of descendants that lose theirs


def _count_cores(root: str = "/") -> int:
    """Return how many processors this process may use: the smallest of affinity and quotas."""
    number = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        number = len(os.sched_getaffinity(0))
    return max(1, min(number, *_cpu_quotas(root)))


def _cpu_quotas(root: str) -> list[int]:
    """Return the limits of a container, in processors, rounded up. See cgroups(7).

    The first, 65536, is above the number of any machine. So the list is never empty.
    """
    quotas = [1 << 16]
    try:
        with open(os.path.join(root, "proc/self/cgroup")) as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return quotas
    for _, controllers, path in groups:
        # Three cases: a group of version 2 (without controllers), or of version 1, for processors
        # or for something else.
        if not controllers:
            place, names = "sys/fs/cgroup", ["cpu.max"]
        elif "cpu" in controllers.split(","):
            place, names = "sys/fs/cgroup/cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        parts = path.strip("/").split("/")
        for depth in range(len(parts) + 1):     # the limits of the groups above it hold, too
            try:
                words = []
                for name in names:
                    with open(os.path.join(root, place, *parts[:depth], name)) as file:
                        words += file.read().split()
                quota, period = map(int, words)
                if quota > 0:
                    quotas.append(-(-quota // period))
            except (OSError, ValueError, ZeroDivisionError):
                pass        # no limit, or a group that is not visible in the container
    return quotas


def platform_facts() -> tuple[str, str, str]:
    """Return what decides which binaries run here.

    That is Python's own suffix of extension modules, the processor, and the C library.
    """
    system, _, release, _, processor = os.uname()
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""      # "glibc 2.36"
    except (ValueError, OSError):
        libc = "%s %s" % (system, release)
    suffixes = *machinery.EXTENSION_SUFFIXES, ""
    return suffixes[0], processor, libc


def _prctl(option: int, value: int) -> None:
    """Set an option of this process on Linux; elsewhere, do nothing."""
    try:
        import ctypes
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


def _make_wake_pipe() -> tuple[int, int]:
    """Return the ends of a pipe that becomes readable when a child changes. Also ignore Ctrl-C."""
    wake, wake_out = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wake_out, False)
    signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return wake, wake_out


def _reap_children(options: int = 0) -> Iterator[tuple[int, int]]:
    """Yield `(process, wait status)` of children that have ended, and reap them.

    Arguments:
        options: more options of waitpid(2). With WUNTRACED, children that are stopped come, too.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | options)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status


def process_tree() -> dict[int, list[int]]:
    """Return {parent: [children]} of this machine's living processes; empty without /proc."""
    if not os.path.exists("/proc/self/stat"):
        return {}
    tree = collections.defaultdict(list)
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name, "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except (OSError, ValueError):
                continue        # it has just ended
            if state not in b"ZX":      # zombie, dead
                tree[int(parent)].append(int(name))
    return tree


def signal_tree(pid: int, number: int) -> None:
    """Signal a process and all its descendants; without /proc, it and its process group."""
    tree = process_tree()
    if not tree:
        send_signal(-pid, number)
    pids = [pid]
    for parent in pids:     # which grows meanwhile
        pids += tree.get(parent, ())
    for member in pids:
        send_signal(member, number)


def send_signal(pid: int, number: int) -> None:
    """Signal a process, or the process group `-pid`, unless it has ended or is not ours."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_children(spare: Container[int] = ()) -> None:
    """Kill the children of this process, and their descendants, except the trees of `spare`."""
    for pid in process_tree().get(os.getpid(), ()):
        if pid not in spare:
            signal_tree(pid, signal.SIGKILL)


def kill_descendants(leaders: Iterable[int]) -> None:
    """Kill all descendants of this process, which must be a subreaper: it inherits orphans.

    Arguments:
        leaders: of process groups, which are all that can be found without /proc.
    """
    if not process_tree():      # others may be left, so there is nothing to wait for
        for leader in leaders:
            send_signal(-leader, signal.SIGKILL)
        return
    while True:
        kill_children()
        try:
            os.wait()
        except ChildProcessError:
            return


def _exit_after(run: Callable[[], object]) -> None:
    """Run a forked child, and end it. It never returns into the code that forked it.

    The status is 1, after a traceback, if `run` raises anything but SystemExit.
    """
    status = 0
    try:
        run()
    except SystemExit:
        pass
    except BaseException:
        status = 1
        import traceback
        traceback.print_exc()
    finally:
        _exit(status)


def _remove(path: str) -> None:
    """Remove a file, or a directory with all that is in it, if it exists."""
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil
        for folder, _, _ in os.walk(path):
            try:
                os.chmod(folder, 0o700)     # a folder that cannot be written keeps what is in it
            except OSError:
                pass
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _temporary_folders(name: str) -> list[str]:
    """Return the paths that a folder of this name would have in each temporary directory.

    They are those that Python's `tempfile` tries, but for the current one.
    """
    named = map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))
    return [os.path.join(os.path.realpath(place), name)
            for place in (*named, "/tmp", "/var/tmp", "/usr/tmp") if place]


def enlarge_pipe(fd: int) -> None:
    """Enlarge a pipe to 1 MiB where the platform can: arrays then move faster."""
    try:
        fcntl.fcntl(fd, 1031, MAX_FRAME)        # F_SETPIPE_SZ
    except OSError:
        pass


def open_nameless_file() -> Any:
    """Return an open file that has no name, and that lies in memory where the platform can."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("executors"), "r+b")
    import tempfile
    return tempfile.TemporaryFile()


# ──────────────────────────────────── what the script defines ─────────────────────────────────────
#
# What `__main__` defines cannot be imported on another machine. The same holds for modules that
# were given to `cloudpickle.register_pickle_by_value`. All of these are called the *script*, for
# example:
#
#     LIMIT = 10
#
#     class Point: ...
#
#     def clip(x):
#         return min(x, LIMIT)
#
# cloudpickle would copy `clip`, Point and LIMIT into each pickle that uses them. Then no two calls
# would share a global, a cache would be empty in each call, and a result that holds a Point would
# change the attributes of the controller's Point to those it has in the slot. So our pickles name
# what the script defines, instead of copying it. There are three ways to do so, depending on where
# the pickle goes. Each has a subclass of _Reducers:
#
#     to a slot       By name; what the name stands for goes along, as a *definition*.
#                     A pickle that holds `clip` says `_find_in_script("__main__", "clip")`. With
#                     it go the definitions of `clip` and of LIMIT, which it uses. Each is pickled
#                     by itself, and has a *version*: a digest of its content. The slot binds both
#                     in a `__main__` of its own (see Script), and unpickles each version once. When
#                     LIMIT changes, `clip` stays the object that it is.
#
#     to a process    By name if that process has the same definition, otherwise by value.
#                     The processes of a ProcessExecutor have been forked from this one, or have
#                     imported the script themselves.
#
#     back            By token.
#                     When Point is sent, a random token goes along. A result that holds a Point
#                     says `_find_original(token)`, which returns the controller's own class. So a
#                     result never changes a function or a class of the controller.
#
# Lambdas, closures and classes that a function makes have no name that leads to them. cloudpickle
# carries them by value.

# Types that pickle carries as they are. The first are usually short, though an int can be long.
_SCALARS = {int, float, complex, bool, type(None)}
_PLAIN_TYPES = _SCALARS | {str, bytes}
CACHED_TYPE = type(functools.lru_cache(len))
_DEFINITION_TYPES = types.FunctionType, type, CACHED_TYPE
PICKLED_NONE = pickle.dumps(None, 5)     # the answer to a question that has none


class _Absent(bytes):
    """The type of ABSENT, an empty `bytes` that `is` can tell from b"".

    A user's value may be b"", and Python has only one such object.
    """

    def __reduce__(self) -> Any:
        return bytes, ()


ABSENT = _Absent()      # the version of a name that the script does not have; false


def is_plain(obj: object) -> bool:
    """Return whether `pickle` alone can carry `obj`: nothing in it can refer to the script."""
    return type(obj) in _PLAIN_TYPES or (
        type(obj) is tuple and (_PLAIN_TYPES.issuperset(map(type, obj)) or all(map(is_plain, obj))))


def importable_name(obj: Any) -> tuple[str, ...]:
    """Return `(module, name)` if another machine can import a function or class by these.

    Return `()` for everything else, and for what the script defines.
    """
    if not isinstance(obj, (types.FunctionType, types.BuiltinFunctionType, type, CACHED_TYPE)):
        return ()
    module = getattr(obj, "__module__", "")
    name = getattr(obj, "__qualname__", "")     # a cached callable need not have one
    is_there = getattr(sys.modules.get(module), name, None) is obj
    return (module, name) if is_there and not _is_script_module(module) else ()


def _is_script_module(module: object) -> bool:
    """Return whether a module, by name, belongs to the script."""
    if module == "__main__":
        return True
    cloudpickle = sys.modules.get("cloudpickle")
    list_registered = getattr(cloudpickle, "list_registry_pickle_by_value", None)
    if list_registered is None or not isinstance(module, str):
        return False
    return any((module + ".").startswith(package + ".") for package in list_registered())


def _look_up(module: object, path: str) -> Any:
    """Return what a dotted path leads to in a loaded module, or `ABSENT`."""
    try:
        return operator.attrgetter(path)(sys.modules[module])       # type: ignore[index]
    except (AttributeError, KeyError, TypeError):
        return ABSENT


def script_path(obj: Any) -> tuple[Any, str]:
    """Return the module and the dotted path of a definition of the script, or `(None, "")`."""
    module = getattr(obj, "__module__", None)
    path = getattr(obj, "__qualname__", None)
    if type(path) is str and "<" not in path and _is_script_module(module) and (
            _look_up(module, path) is obj):
        return module, path
    return None, ""


def script_module(space: dict[str, Any]) -> Any:
    """Return the name of the script's module that these globals belong to, or None."""
    name = space.get("__name__")
    if not isinstance(name, str) or not _is_script_module(name):
        return None
    return name if getattr(sys.modules.get(name), "__dict__", None) is space else None


def is_data(value: object) -> bool:
    """Return whether a global of the script is neither a constant nor a definition nor a module."""
    return not (is_plain(value) or is_definition(value))


def is_definition(value: object) -> bool:
    """Return whether an object is a function, a class or a module."""
    # Not by `isinstance`, which asks a proxy for its `__class__`: that may load what it stands for.
    return issubclass(
        type(value), (*_DEFINITION_TYPES, types.BuiltinFunctionType, types.ModuleType))


# A token identifies a definition in pickles that go back to where it came from. None of these
# tables keeps a definition alive.
_tokens: Any = weakref.WeakKeyDictionary()          # definition -> token
_definitions_by_token: Any = weakref.WeakValueDictionary()      # token -> definition
_received: Any = weakref.WeakSet()       # definitions that were received, not made in this process
_received_attributes: Any = weakref.WeakKeyDictionary()   # received class -> attribute names


def _token_of(obj: Any) -> bytes:
    """Return the token of a definition, which it gets here if it has none."""
    token: bytes = _tokens.setdefault(obj, urandom(8))
    _definitions_by_token[token] = obj
    return token


# What this process had in `__main__` when it began, if it is one of a ProcessExecutor's.
_inherited: dict[str, object] = {}


# ────────────────────────────────────── the script in a slot ──────────────────────────────────────

# How a slot gets the function of a call. It unpickles it for each call, so that no call sees what
# another did to it; or once; or looks it up by its name in the script.
UNPICKLE_EACH_CALL, UNPICKLE_ONCE, LOOK_UP_BY_NAME = range(3)


class _SlotFunction:
    """A function as a slot knows it, with the definitions that it uses; see `pack_function`.

    Large buffers are kept in a nameless file, and mapped privately for each unpickling: a call may
    write to them, and the next call finds them unchanged.

    Attributes:
        needs: by `(module, name)`, the versions of what it uses of the script.
        modules: names of the modules to import before.
    """

    def __init__(self, segments: Sequence[Any]) -> None:
        head, *buffers = segments
        self._how, self._root, self.needs, self._definitions, self.modules = loads(head)
        self._places: list[slice] = []      # where each buffer lies in the file
        self._unpickled: Any = ABSENT          # the function, if it is unpickled only once
        if not buffers:
            return
        self._file = open_nameless_file()
        for buffer in buffers:
            padding = -self._file.tell() % 64       # align arrays
            start = self._file.seek(padding, os.SEEK_CUR)
            self._places.append(slice(start, start + self._file.write(buffer)))
        self._file.flush()

    def get_function(self) -> Any:
        """Return the function. May raise anything: unpickling runs code that the pickle names."""
        script.bind_needs(self)
        # Three cases: it is looked up in the script, unpickled for each call, or unpickled once.
        if self._how == LOOK_UP_BY_NAME:
            return script.find_object(*self._root)
        if self._unpickled is not ABSENT:
            return self._unpickled
        function = _unpickle_definition(self._segments(self._root))
        if self._how == UNPICKLE_ONCE:
            self._unpickled = function
        return function

    def load_definition(self, version: bytes) -> tuple[Any, int, Any]:
        """Unpickle a definition.

        Return its keys `(module, name)`, its size in bytes, and the value of each key. For a short
        constant, there are no keys, the size is 0, and the value is the only one.
        """
        if version not in self._definitions:        # a short constant, whose version is its pickle
            return (), 0, (loads(version),)
        keys, section = self._definitions[version]
        segments = self._segments(section)
        size = sum(map(len, segments))
        value = _unpickle_definition(segments)
        values = (value,) if len(keys) == 1 else value
        return keys, size, values

    def _segments(self, section: Any) -> Sequence[Any]:
        """Return a pickle and its buffers, from what `pack_function` has made of them.

        Three cases: a range of the buffers in the file, a list of segments, or a single pickle.
        """
        if isinstance(section, tuple):
            whole = memoryview(mmap.mmap(self._file.fileno(), 0, flags=mmap.MAP_PRIVATE))
            return [whole[place] for place in self._places[slice(*section)]]
        if isinstance(section, list):
            return section
        return (section,)


class _Unpickler(pickle.Unpickler):
    """Unpickle a definition, which refers to other globals of the script by their keys."""

    def persistent_load(self, key: Any) -> Any:
        return script.find_object(*key)


def _unpickle_definition(segments: Sequence[Any]) -> Any:
    return _Unpickler(io.BytesIO(segments[0]), buffers=segments[1:]).load()


class Script:
    """The controller's script, as far as this slot has received it.

    An example. The script makes three submissions:

        LIMIT = 10
        pool.submit(clip, 12)           # needs clip, LIMIT = 10
        pool.submit(draw)               # needs draw, and rng, a random generator
        LIMIT = 20
        pool.submit(clip, 12)           # needs clip, LIMIT = 20

    A *key* is `(module, name)`, for instance `("__main__", "LIMIT")`. Each function comes with its
    *needs*: the keys that it uses, each with a version. Before a call, keys that are bound to
    another version than the call needs are bound anew. Before the third call above that is LIMIT
    alone; `clip` keeps its identity, and `rng` goes on where the second call left it, as in a
    process that has all of the script.

    The old version of LIMIT is not dropped but *put aside*, with all that calls have changed in it.
    It is bound again if a call still comes that needs it.

    Unpickling a definition may need others, and runs code of the script. So keys to be bound are
    *pending* first. They are loaded one after the other, or as soon as something refers to them.
    """

    def __init__(self) -> None:
        # Guards all that follows. Threads that the script starts import modules and ask for names,
        # too. Loading a definition may ask for another, so the lock is reentrant.
        self._lock: Any = _thread.RLock()
        self._modules: dict[str, Any] = {}      # name -> module of the script, except `__main__`
        self._bound_versions: dict[Any, bytes] = {}      # key -> the version that it is bound to
        self._set_aside: dict[Any, Any] = {}        # (key, version) -> object bound before
        self._pending_keys: dict[Any, Any] = {}      # key -> (version, function that needs it)
        self._initialized_keys: set[Any] = set()    # set by an initializer, and never rebound
        self._large_versions: set[bytes] = set()         # long versions, not kept without need
        self._unknown_names: set[str] = set()       # that the controller does not have either
        self._bound_for: Any = None               # the function whose needs are all bound, if any

    def namespace(self, module: str) -> dict[str, Any]:
        """Return the globals of a module of the script, which is made if it does not exist yet."""
        if module == "__main__":
            return vars(sys.modules[module])
        if module not in self._modules:
            self._modules[module] = types.ModuleType(module)
        space: dict[str, Any] = vars(self._modules[module])
        return space

    def bind(self, key: Sequence[str], obj: Any) -> None:
        """Bind a key to an object."""
        module, name = key
        self.namespace(module)[name] = obj

    def bind_needs(self, function: _SlotFunction) -> None:
        """Bind all that a function needs, in the versions that it was submitted with.

        Raises whatever unpickling these raises.
        """
        if function is self._bound_for:
            return
        # Import before taking our lock. Another thread may be importing one of these modules, and
        # in doing so ask us for a name: it would wait for our lock, and we for its import.
        for module in function.modules:
            __import__(module)
        with self._lock:
            self._unknown_names.clear()
            self._bound_for = None
            self._bind_versions(function, {key: version for key, version in function.needs.items()
                                  if self._bound_versions.get(key, ABSENT) != version})
            self._bound_for = function

    def bind_missing_needs(self, function: _SlotFunction) -> None:
        """Bind those of a function's needs that have no value here yet; leave the others alone."""
        with self._lock:
            self._bind_versions(function, {key: version for key, version in function.needs.items()
                                  if version and key[1] not in self.namespace(key[0])})

    def _bind_versions(self, function: _SlotFunction, versions: Mapping[Any, bytes]) -> None:
        """Bind keys to other versions, which a function has."""
        is_outermost = not self._pending_keys
        for key, version in versions.items():
            if key not in self._initialized_keys:
                self._put_aside(key)
                if version:     # otherwise the script does not have that name, and nor shall we
                    self._pending_keys[key] = version, function
        try:
            while self._pending_keys:
                self._load_definition(next(iter(self._pending_keys)))
        except BaseException:
            # This may run inside another `_load_definition`. The code that is unpickled there may
            # handle the error, and then needs the keys that are pending. So these stay.
            if is_outermost:
                self._pending_keys.clear()
            raise

    def _put_aside(self, key: Any) -> None:
        """Unbind a key, and keep what it was bound to."""
        module, name = key
        value = self.namespace(module).pop(name, ABSENT)
        version = self._bound_versions.pop(key, ABSENT)
        # A class is one object in all its versions: loading a version sets its attributes.
        if version and value is not ABSENT and not isinstance(value, type):
            self._set_aside[key, version] = value

    def _load_definition(self, key: Any) -> None:
        """Bind a pending key, from what is put aside or by unpickling its definition."""
        version, function = self._pending_keys.pop(key)
        # Unless unpickling fails, the key counts as bound from here: its value may refer to it.
        self._bound_versions[key] = version
        if (key, version) in self._set_aside:
            self.bind(key, self._set_aside.pop((key, version)))
            return
        try:
            keys, size, values = function.load_definition(version)
        except BaseException:
            del self._bound_versions[key]
            raise
        # Data that have parts in common are one definition: two lists, say, that hold the same
        # object. All of them are bound now, so that they go on to share it. Two kinds are left as
        # they are: those bound to another version, and those that an initializer has set.
        for other, value in zip(keys or (key,), values):
            version = function.needs[other]
            is_pending = other in self._pending_keys
            is_bound = (self._bound_versions.get(other) == version
                        and other not in self._initialized_keys)
            if other != key and not is_pending and not is_bound:
                continue
            if other != key:
                self._pending_keys.pop(other, None)
            self._set_aside.pop((other, version), None)
            self._bound_versions[other] = version
            self.bind(other, value)
            if size > MAX_FRAME:
                self._large_versions.add(version)

    def find_object(self, module: str, path: str) -> Any:
        """Return what a dotted path leads to in the script. Raises AttributeError."""
        first, _, rest = path.partition(".")
        with self._lock:
            if (module, first) in self._pending_keys:
                self._load_definition((module, first))
        space = self.namespace(module)
        if first not in space:
            raise AttributeError("module %r of the script has no attribute %r" % (module, first))
        return operator.attrgetter(rest)(space[first]) if rest else space[first]

    def find_or_ask(self, pull: Callable[[int, bytes], Any], name: str) -> Any:
        """Return what the controller's `__main__` has under a name. Raises AttributeError.

        Code asks when it looks up an attribute of `__main__` by itself, as `pickle.loads` does. The
        controller then sends that definition with all that it needs.

        Arguments:
            pull: sends a question to the controller and returns the segments of the answer.
        """
        with self._lock:
            if ("__main__", name) in self._pending_keys:
                self._load_definition(("__main__", name))
        space = self.namespace("__main__")
        if name not in space and name not in self._unknown_names and not name.startswith("__"):
            self._unknown_names.add(name)
            try:
                segments = pull(FIND_NAME, name.encode())
                if bytes(segments[0]) != PICKLED_NONE:
                    self.bind_missing_needs(_SlotFunction(segments))
            except EOFError:        # this process may not ask
                pass
        if name not in space:
            raise AttributeError("module '__main__' has no attribute %r" % name)
        return space[name]

    def drop_unneeded(self, functions: Iterable[_SlotFunction]) -> None:
        """Drop what none of these functions needs, if it is put aside, or bound and large."""
        needed = {need for function in functions for need in function.needs.items()}
        with self._lock:
            self._bound_for = None
            self._set_aside = {
                need: value for need, value in self._set_aside.items() if need in needed}
            for key, version in [*self._bound_versions.items()]:
                if version in self._large_versions and (key, version) not in needed:
                    self._put_aside(key)
                    self._set_aside.pop((key, version), None)
            self._large_versions.intersection_update(self._bound_versions.values())

    def run_initializer(self, function: _SlotFunction) -> None:
        """Call the pool's initializer, and keep what it sets: no later version replaces it.

        That is each global that it binds, each class of the script whose attributes it sets, and
        all data that it uses, since it may have changed these in place.
        """
        self.bind_needs(function)
        modules = {"__main__", *(module for module, _ in function.needs)}
        spaces = {module: self.namespace(module) for module in modules}
        before = {module: {name: (value, _class_attributes(value)) for name, value in space.items()}
                  for module, space in spaces.items()}
        function.get_function()()
        for module, space in spaces.items():
            for name, value in space.items():
                old_value, old_attributes = before[module].get(name, (ABSENT, None))
                is_set = value is not old_value or _class_attributes(value) != old_attributes
                is_used = (module, name) in function.needs and is_data(value)
                if is_set or is_used:
                    self._initialized_keys.add((module, name))


def _class_attributes(value: object) -> Any:
    """Return the attributes of a class of the script, None of anything else."""
    return {**vars(value)} if isinstance(value, type) and value in _received else None


script = Script()


# What pickles for a slot refer to, see _SlotReducers.
def _find_in_script(module: str, path: str) -> Any:
    return script.find_object(module, path)


def _script_namespace(module: str) -> dict[str, Any]:
    return script.namespace(module)


# ──────────────────────────────────────────── pickling ────────────────────────────────────────────


def _make_received(make: Callable[..., Any], args: Any, token: bytes, *key: str) -> Any:
    """Make a function or class that another process sent, and bind it to its name, if it has one.

    Its attributes, defaults and so on are set after this. They may refer to it by name: a method of
    Point may mention Point. That is why the name is bound first.

    Arguments:
        make, args: what makes the bare object.
        token: the object's token in the process that it comes from.
        key: `module, name` of the script, or nothing.
    """
    known = _definitions_by_token.get(token)
    try:
        obj = make(*args)
    except Exception as error:
        name = args[1] if type(args[1]) is str else "a function"
        raise _cannot_recreate(error, name) from error
    # `make` returns the very object that this process has for the token, or a new one. What was
    # defined in this process has a token too, and must not be taken for something received.
    if obj is not known:
        _tokens[obj] = token
        _definitions_by_token[token] = obj
        _received.add(obj)
    if key:
        script.bind(key, obj)
    return obj


def _find_original(token: bytes, path: str) -> Any:
    """Return the definition that this process sent with a token, or what a path leads to from it.

    Raises UnpicklingError if it has been deleted here.
    """
    obj = _definitions_by_token.get(token)
    if obj is None:
        raise pickle.UnpicklingError(
            "the pickle refers to a function or class that has been deleted in this process; keep "
            "it until all results have arrived")
    return operator.attrgetter(path)(obj) if path else obj


def _set_class_attributes(cls: Any, state: Any) -> None:
    """Set the attributes of a class that was received, and delete those it no longer has.

    A class that was defined in this process is left as it is.

    Arguments:
        state: cloudpickle's setter, and the attributes to pass to it.
    """
    if cls not in _received:
        return
    set_state, attributes = state
    try:
        for name in _received_attributes.get(cls, ()):
            if name in vars(cls) and name not in attributes[0]:
                delattr(cls, name)
        set_state(cls, attributes)
    except Exception as error:
        raise _cannot_recreate(error, cls.__name__) from error
    _received_attributes[cls] = {*attributes[0]}


def _cannot_recreate(error: Exception, name: str) -> TypeError:
    return TypeError(
        "cannot recreate %s, which the script defines, in another process (%s: %s). To fix, move "
        "it to a module of its own, which is sent as a file" % (name, type(error).__name__, error))


def _make_class_without_hooks(
        make: Callable[..., Any], meta: Any, name: str, bases: Any, *args: Any) -> Any:
    """Make a class without the hooks that the script defines: they ran when it was first made.

    For example, an `__init_subclass__` that registers each subclass would register it again.
    """
    hooks = [(owner, hook) for owner in meta.__mro__
             for hook in ("__new__", "__init__", "__call__", "__prepare__")]
    for base in bases:
        origin = getattr(base, "__origin__", base)      # of a generic alias
        hooks += [(owner, "__init_subclass__") for owner in getattr(origin, "__mro__", ())]
    hidden = {(owner, hook): vars(owner)[hook] for owner, hook in hooks
              if owner in _received and hook in vars(owner)}
    for owner, hook in hidden:
        delattr(owner, hook)
    try:
        return make(meta, name, bases, *args)
    finally:
        for (owner, hook), value in hidden.items():
            setattr(owner, hook, value)


def _make_cached(settings: dict[str, Any], function: Any) -> Any:
    return functools.lru_cache(**settings)(function)


_shared_caches: dict[bytes, Any] = {}      # cached functions without a name, by digest


def _share_cached(digest: bytes, settings: dict[str, Any], function: Any) -> Any:
    """Return the one cached function with this digest, so that its cache outlives a call."""
    if digest not in _shared_caches:
        _shared_caches[digest] = _make_cached(settings, function)
    while len(_shared_caches) > MAX_SHARED_CACHES:
        oldest = next(iter(_shared_caches))
        del _shared_caches[oldest]
    return _shared_caches[digest]


def _make_named(make: Callable[..., Any], args: Any, attributes: Mapping[str, Any]) -> Any:
    """Make an object anew and set its attributes. (Its own `__reduce__` returns only a name.)"""
    obj = make(*args)
    for name, value in attributes.items():
        try:
            object.__setattr__(obj, name, value)
        except (AttributeError, TypeError):     # it takes no attributes
            pass
    return obj


def _definition_outline(obj: Any) -> Any:
    """Return a value that is equal in two processes if they have imported the same definition."""
    if isinstance(obj, type):
        return sorted(vars(obj))
    code = getattr(getattr(obj, "__wrapped__", obj), "__code__", None)
    return type(obj).__name__, code and (code.co_firstlineno, code.co_code)


def _look_up_or_unpickle(path: str, outline: Any, pickled: bytes) -> Any:
    """Return what `__main__` has at a path if it has this outline, otherwise unpickle the value."""
    obj = _look_up("__main__", path)
    return obj if _definition_outline(obj) == outline else pickle.loads(pickled)


class _BufferList(list["Any"]):
    """A file for a pickler to write to, which keeps large objects as they are, without a copy."""

    def write(self, data: Any) -> None:
        self.append(data.raw() if type(data) is PickleBuffer else data)


class Prepacked:
    """Arguments that `pack_for_slot` has packed. As arguments of another call they arrive as bytes.

    Attributes:
        data: the pickle.
        needs: the keys of what it needs of the script.
    """

    def __init__(self, data: bytes, needs: Any) -> None:
        self.data = data
        self.needs = needs


class Pickled:
    """A definition, or a function, as it is sent: a pickle of its own in the payload of FUNCTION.

    Attributes:
        data: the pickle.
        buffers: its out-of-band buffers.
        used_globals: keys `(module, name)` of the globals that its code uses.
        references: keys that it refers to.
        parts: of data, the mutable objects in it by `id`; other data may have some in common.
        module: the name of the module that it imports where it is unpickled, or "".
    """

    def __init__(self, data: bytes, buffers: Sequence[Any] = (), names: Any = frozenset(),
                 refs: Any = frozenset(), parts: Any = types.MappingProxyType({}),
                 module: str = "") -> None:
        self.data = data
        self.buffers = buffers
        self.used_globals = names
        self.references = refs
        self.parts = parts
        self.module = module

    @functools.cached_property
    def digest(self) -> bytes:
        """The SHA-256 of the pickle and its buffers, computed once."""
        import hashlib
        hashed = hashlib.sha256(self.data)
        for buffer in self.buffers:
            hashed.update(buffer)
        return hashed.digest()


@functools.cache
def _pickler_class(reducers: Any) -> Any:
    """Return a subclass of cloudpickle's Pickler that reduces as a subclass of _Reducers says."""
    import cloudpickle  # type: ignore
    default_table: Any = cloudpickle.CloudPickler.dispatch_table

    def reduce_code(code: types.CodeType) -> Any:
        """Keep the file's name, for tracebacks: cloudpickle replaces it by "<dynamic-code>"."""
        make, args = default_table[types.CodeType](code)
        return make, tuple([
            code.co_filename if isinstance(value, str) and value == "<dynamic-code>" else value
            for value in args])

    def reduce_cached_property(prop: Any) -> Any:
        """Leave out the lock that one has before Python 3.12."""
        return functools.cached_property, (prop.func,), {"attrname": prop.attrname}

    def refuse(remedy: str, obj: Any) -> Any:
        raise TypeError("cannot pickle %r object: %s" % (type(obj).__name__, remedy))

    refuse_coroutine = functools.partial(
        refuse, "an async function makes one; submit a function that runs it, such as "
                "lambda: asyncio.run(work(1))")
    refuse_generator = functools.partial(refuse, "use a list of what it yields")
    table = default_table.new_child({
        types.CodeType: reduce_code, functools.cached_property: reduce_cached_property,
        types.CoroutineType: refuse_coroutine, types.GeneratorType: refuse_generator})
    return type("Pickler", (reducers, cloudpickle.CloudPickler), {"dispatch_table": table})


class _Reducers:
    """What our picklers have in common. `_pickler_class` adds this to cloudpickle's Pickler."""

    def reduce_to_reference(self, obj: Any, module: Any, path: str) -> Any:
        """Return how a pickle refers to a definition. None means: carry it by value.

        Arguments:
            obj: the definition.
            module, path: where the script has it, as `script_path` returns them.

        Returns what `__reduce__` may return.
        """
        return None

    def reducer_override(self, obj: Any) -> Any:
        """Reduce definitions, and objects that have to arrive as a name. See `pickle.Pickler`."""
        kind: Any = type(obj)
        # Functions, classes and cached functions. cloudpickle returns six values for those that it
        # carries by value; anything else is a name, which another machine can import.
        if isinstance(obj, _DEFINITION_TYPES):
            name = self.reduce_to_reference(obj, *script_path(obj))
            if name is not None:
                return name
            if kind is CACHED_TYPE:
                return self.reduce_cached(obj)
            made = super().reducer_override(obj)        # type: ignore[misc]
            if type(made) is not tuple or len(made) != 6:
                return made
            if kind is types.FunctionType:
                return self.reduce_function(obj, made)
            return self.reduce_class(obj, made)
        # A class method goes by its class; cloudpickle would make a second function of it.
        if kind is types.MethodType and isinstance(obj.__self__, type) and (
                getattr(obj.__self__, obj.__name__, None) == obj):
            return obj.__reduce__()
        # A constant of a library, such as dataclasses.MISSING.
        name = _names_of_constants(kind).get(id(obj))
        if name and _look_up(kind.__module__, name) is obj:
            return name
        return self.reduce_named(obj) if _may_reduce_to_name(kind) else NotImplemented

    def reduce_cached(self, cached: Any) -> Any:
        """Carry a cached function by value, with its settings, unless it can be imported."""
        module, path = getattr(cached, "__module__", None), getattr(cached, "__qualname__", "")
        if module and not _is_script_module(module) and _look_up(module, path) is cached:
            return path
        return _share_cached, (
            _digest_cached(cached), cached.cache_parameters(), cached.__wrapped__)

    def reduce_function(self, function: Any, made: tuple[Any, ...]) -> Any:
        """Complete what cloudpickle returns for a function that it carries by value."""
        return made

    def reduce_class(self, cls: Any, made: tuple[Any, ...], key: Any = ()) -> Any:
        """Complete what cloudpickle returns for a class that it carries by value.

        Three things are added: the class's `__slots__`; a token (see `_make_received`); and our own
        setter of its attributes, which spares classes that were defined where the pickle arrives.

        Arguments:
            made: what cloudpickle returns.
            key: `module, name` to bind the class to, or nothing.
        """
        make, args, (state, others), _, _, set_state = made
        is_enum = len(args) != 6
        new = type(cls).__new__
        is_in_c = new is not type.__new__ and not hasattr(new, "__code__")
        # A msgspec.Struct, say: its metaclass sets __slots__ itself, and refuses to be given them.
        if is_in_c and "__slots__" in vars(cls):
            raise TypeError("its metaclass %s is not written in Python" % type(cls).__name__)
        if vars(cls).get("__slots__") and not is_enum:
            slots = cls.__slots__
            make_kwargs = {**args[3], "__slots__": slots}
            args = (*args[:3], make_kwargs, *args[4:])
            # `type` makes the descriptors of slots anew, also of private ones: `_Point__x`.
            private = "_" + cls.__name__.lstrip("_")
            names = (slots,) if isinstance(slots, str) else slots
            hidden = {"__slots__", *names, *(private + name for name in names)}
            state = {name: value for name, value in state.items() if name not in hidden}
        if not is_enum:
            make, args = _make_class_without_hooks, (make, *args)
        return (_make_received, (make, args, _token_of(cls), *key), (set_state, (state, others)),
                None, None, _set_class_attributes)

    def reduce_named(self, obj: Any) -> Any:
        """Reduce an object that may say that its pickle is a name.

        A NewType, a TypeVar or a sentinel does. If the script has it, the name alone would mean
        nothing where it is unpickled.
        """
        made = obj.__reduce_ex__(5)
        if type(made) is not str:
            return made
        module: Any = getattr(obj, "__module__", None)
        if _look_up(module, made) is not obj:
            module = "__main__"
        if not _is_script_module(module) or _look_up(module, made) is not obj:
            return made
        name = self.reduce_to_reference(obj, module, made)
        if name is not None:
            return name
        # By value. Three cases: cloudpickle has a reducer for a TypeVar; a ParamSpec is made from
        # its name; anything else is made without its __init__, and then given its attributes.
        kind = type(obj)
        attributes = {**getattr(obj, "__dict__", {})}
        if kind.__module__ == "typing" and kind.__name__ != "NewType":
            reduce_type_var = self.dispatch_table.get(kind)     # type: ignore[attr-defined]
            made = reduce_type_var(obj) if reduce_type_var else (kind, (obj.__name__,))
            attributes["__module__"] = module
        else:
            made = kind.__new__, (kind,)
            slots = copyreg._slotnames(kind)        # type: ignore[attr-defined]
            attributes.update((slot, getattr(obj, slot)) for slot in slots if hasattr(obj, slot))
        return _make_named, (*made, attributes)


@functools.lru_cache(1000)
def _names_of_constants(kind: Any) -> dict[int, str]:
    """Return the names, by `id`, of the stateless instances that the module of a class defines.

    Code compares them by identity, for example with dataclasses.MISSING. So a pickle must refer to
    them, not copy them.
    """
    module = kind.__module__
    if module == "builtins" or _is_script_module(module) or _has_own_reduce(kind):
        return {}
    loaded = sys.modules.get(module)
    if loaded is None:
        return {}
    names = {}
    for name, value in [*vars(loaded).items()]:
        try:
            if type(value) is kind and not any(value.__reduce_ex__(5)[2:]):
                names[id(value)] = name
        except Exception:       # it cannot be pickled at all
            pass
    return names


@functools.lru_cache(1000)
def _may_reduce_to_name(kind: Any) -> bool:
    """Return whether the pickle of an instance may be the name that the script has it under."""
    if kind.__module__ == "typing":
        return kind.__name__ in ("NewType", "ParamSpec", "TypeVar", "TypeVarTuple")
    import cloudpickle
    if kind in cloudpickle.CloudPickler.dispatch_table:
        return False
    # A reducer written in Python may return a name. That of a library's decorator often does.
    return any(isinstance(reducer, types.FunctionType)
               for reducer in (kind.__reduce_ex__, kind.__reduce__))


def _has_own_reduce(kind: Any) -> bool:
    """Return whether a class defines how its instances are pickled."""
    return (kind.__reduce_ex__ is not object.__reduce_ex__
            or kind.__reduce__ is not object.__reduce__)


class _ResultReducers(_Reducers):
    """For results: refer to the definitions that came from where the result goes."""

    def reduce_to_reference(self, obj: Any, module: Any, path: str) -> Any:
        # Four cases. A definition that was received, unless a function made it: by its token.
        if obj in _received and "<" not in getattr(obj, "__qualname__", "<"):
            return _find_original, (_token_of(obj), "")
        # Something inside a class that was received, say a method: by the token of the class.
        first, _, rest = path.partition(".")
        owner = _look_up(module, first) if rest else ABSENT
        if owner is not ABSENT and owner in _received:
            return _find_original, (_token_of(owner), rest)
        # Something that this process of a ProcessExecutor has from its parent: by its name.
        is_inherited = first in _inherited and _inherited[first] is _look_up(module, first)
        if module == "__main__" and is_inherited:
            return path
        # Something that the call itself has made: by value.
        return None

    def reduce_named(self, obj: Any) -> Any:
        """Reduce an object that may be a name to just that: the controller has it by that name."""
        return obj.__reduce_ex__(5)


class _ProcessReducers(_Reducers):
    """For a process of a ProcessExecutor: refer by name to what that process has in `__main__`.

    Attributes:
        known_names: what it has for certain, by name; None if only the process itself can say.
    """

    known_names: Mapping[str, object] | None = None

    def reduce_to_reference(self, obj: Any, module: Any, path: str) -> Any:
        if module != "__main__":
            return None
        # Two cases. A process that imports the script decides for itself: it is sent the name, and
        # also the value, in case the name stands for something else there.
        first = path.partition(".")[0]
        if self.known_names is None:
            try:
                pickled = _dumps(obj, _Reducers)
            except Exception:       # then the process must have it
                return path
            return _look_up_or_unpickle, (path, _definition_outline(obj), pickled)
        # A process that was forked has what `__main__` had at that time.
        is_there = first in self.known_names and self.known_names[first] is _look_up(module, first)
        return path if is_there else None


class _SlotReducers(_Reducers):
    """For a slot: refer by name to everything that the script defines at its top level.

    A pickle of `(clip, 12)` refers to `clip` by name. A pickle that defines `clip` has the name as
    its `key`, holds the code, and has LIMIT among its `used_globals`. Keys are `(module, name)`.

    Attributes:
        used_globals: keys of the globals that functions in the pickle use.
        references: keys that the pickle itself refers to; they are bound before it is unpickled.
        root: the object that the pickle defines, which is therefore carried by value; or None.
        key: the key to bind `root` to, or ().
        defining: keys of all that the pickle defines, which it does not refer to.
    """

    root: Any = None
    key: tuple[str, ...] = ()
    defining: Container[Any] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.used_globals: set[Any] = set()
        self.references: set[Any] = set()

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Prepacked:
            self.references.update(obj.needs)
            return bytes, (obj.data,)
        return super().reducer_override(obj)

    def reduce_to_reference(self, obj: Any, module: Any, path: str) -> Any:
        key = module, path.partition(".")[0]
        if module is None or key in self.defining:
            return None
        self.references.add(key)
        return _find_in_script, (module, path)

    def reduce_function(self, function: Any, made: tuple[Any, ...]) -> Any:
        """Make a function use the globals of the slot's `__main__`, and note which it needs.

        cloudpickle would send copies of the globals along.
        """
        make, args, (state, others), *rest = made
        module = script_module(function.__globals__)
        if module:
            code = function.__code__
            used = {*_global_names(code)}
            # Code that mentions "__main__" may ask it for any attribute that it mentions.
            if "__main__" in (*code.co_names, *code.co_consts):
                used.update(code.co_names)
            self.used_globals.update((module, name) for name in used)
            self._add_annotations(function, module)
            others = {**others, "__globals__": {}}
            args = (args[0], _NamespaceReference(module), *args[2:])
        if function is self.root:
            args = make, args, _token_of(function), *self.key
            make = _make_received
        return make, args, (state, others), *rest

    def reduce_cached(self, cached: Any) -> Any:
        if cached is not self.root:
            return super().reduce_cached(cached)
        args = cached.cache_parameters(), cached.__wrapped__
        return _make_received, (_make_cached, args, _token_of(cached), *self.key)

    def reduce_class(self, cls: Any, made: tuple[Any, ...], key: Any = ()) -> Any:
        """Reduce a class; if it is what the pickle defines, bind it to its key."""
        self._add_annotations(cls, cls.__module__)
        return super().reduce_class(cls, made, self.key if cls is self.root else ())

    def _add_annotations(self, obj: Any, module: str) -> None:
        """Note the globals that annotations name as text (PEP 563), for `typing.get_type_hints`."""
        if isinstance(obj, type):
            annotations = vars(obj).get("__annotations__", {})
        else:
            annotations = obj.__annotations__
        for text in annotations.values():
            if type(text) is str and _is_script_module(module):
                self.used_globals.update((module, name) for name in _annotation_names(text)
                                  if hasattr(sys.modules[module], name))


class _DigestReducers(_Reducers):
    """For the digest of a cached function: by value, but cached functions in it become numbers.

    Attributes:
        cached_functions: the cached functions, in the order of their numbers; grows.
    """

    cached_functions: list[Any]

    def reduce_cached(self, cached: Any) -> Any:
        if cached not in self.cached_functions:
            self.cached_functions.append(cached)
        return int, (self.cached_functions.index(cached),)


def _digest_cached(cached: Any) -> bytes:
    """Return a digest of a cached function and of all cached functions that it uses."""
    import hashlib
    functions, hashed = [cached], hashlib.sha256()
    for function in functions:      # which grows: pickling one may find others
        settings = function.cache_parameters()
        pickled = _dumps(
            (function.__wrapped__, settings), _DigestReducers, cached_functions=functions)
        hashed.update(pickled)
    return hashed.digest()


class _DefinitionReducers(_SlotReducers):
    """For definitions: refer also to data of the script, by key.

    In `def draw(rng=rng)`, say, the default is an object that a global stands for, too. In the slot
    these must be one object.

    Attributes:
        globals: keys of the script's data, by the `id` of the object.
    """

    globals: Mapping[int, Any] = types.MappingProxyType({})

    def persistent_id(self, obj: Any) -> Any:
        """Return the key of a global, or None; see `pickle.Pickler`."""
        key = self.globals.get(id(obj))
        if key is None or key in self.defining:
            return None
        self.references.add(key)
        return key


class _NamespaceReference:
    """Stands for the globals of a function. In a slot it becomes those of the slot's module."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __reduce__(self) -> tuple[Any, ...]:
        return _script_namespace, (self._module,)


def _global_names(code: types.CodeType) -> Iterable[str]:
    """Return the names of the globals that code uses, with those of functions in it."""
    from cloudpickle import cloudpickle
    names: Iterable[str] = cloudpickle._extract_code_globals(code)
    return names


@functools.lru_cache(1000)
def _annotation_names(text: str) -> Iterable[str]:
    """Return the names of the globals that an annotation uses."""
    try:
        return _global_names(compile("lambda: " + text, "", "eval"))
    except SyntaxError:
        return ()


def _dump(obj: object, reducers: Any, most: int = 254, **settings: Any) -> tuple[Any, Any, Any]:
    """Pickle. Return the pickle in pieces, the large buffers beside it, and the pickler.

    Arguments:
        reducers: a subclass of _Reducers.
        most: how many large buffers may leave the pickle.
        settings: attributes of the pickler.
    """
    chunks, large, pickler = _open_pickle(reducers, most)
    vars(pickler).update(settings)
    pickler.dump(obj)
    return chunks, large, pickler


def _open_pickle(reducers: Any, most: int) -> tuple[Any, Any, Any]:
    chunks = _BufferList()
    large = _BufferList()

    def stays_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < MAX_INLINE or len(large) == most:
            return True
        large.append(raw)
        return False

    pickler = _pickler_class(reducers)(chunks, protocol=5, buffer_callback=stays_in_band)
    return chunks, large, pickler


def _dumps(obj: object, reducers: Any = _ResultReducers, **settings: Any) -> bytes:
    """Pickle in one piece; see `_dump`."""
    chunks, _, _ = _dump(obj, reducers, 0, **settings)
    return b"".join(chunks)


# ───────────────────────────────────────── running a call ─────────────────────────────────────────


class _Stream(io.TextIOWrapper):
    """A slot's stdout or stderr, which knows whether its last line lacks an end."""

    is_in_line = False

    def write(self, text: str) -> int:
        count = super().write(text)
        if text:
            self.is_in_line = not text.endswith("\n")
        return count


def _end_lines() -> None:
    """End the last line that a call has printed, so that the next call begins a line of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if getattr(stream, "is_in_line", False):
                stream.write("\n")
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass        # the user closed or replaced it


def pack_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Packed, Any]:
    """Pickle a call's arguments for a slot. Short plain ones, the usual case, are done quickly.

    Return what `pack` returns, and the keys `(module, name)` of what they need of the script.
    """
    if not kwargs and _SCALARS.issuperset(map(type, args)):
        data = pickle.dumps((args, None), 5)
        if len(data) <= MAX_INLINE:
            return data, ()
    return pack_for_slot((args, kwargs or None))


def pack_for_slot(obj: object) -> tuple[Packed, Any]:
    """Pickle for a slot. Return what `pack` returns, and the keys of what it needs of the script.
    """
    if is_plain(obj):
        return pack(obj), ()
    chunks, large, pickler = _dump(obj, _SlotReducers)
    return _pack_buffers(chunks, large), pickler.used_globals | pickler.references


def _has_long_string(obj: object) -> bool:
    """Return whether there is a long text, or long bytes, in what is plain."""
    if isinstance(obj, tuple):
        return any(map(_has_long_string, obj))
    return isinstance(obj, (bytes, str)) and len(obj) > MAX_INLINE


def pack(obj: object) -> Packed:
    """Pickle a result, or what is plain. Raises what pickling raises.

    Returns bytes if they fit one frame, otherwise `(lengths, buffers)`. These are the segments of a
    message: the first length is that of the pickle, which may be several buffers; each other one is
    that of a large buffer (a NumPy array), which is not copied.
    """
    # Cloudpickle's pickler is slower, but does not copy what is long.
    if is_plain(obj) and not _has_long_string(obj):
        data = dumps(obj, 5)
        if len(data) <= MAX_INLINE:
            return data
        return [len(data)], [data]
    chunks, large, _ = _dump(obj, _ResultReducers)
    return _pack_buffers(chunks, large)


def _pack_buffers(chunks: list[Any], large: list[Any]) -> Packed:
    """Return what `pack` returns, for a pickle in pieces and large buffers beside it."""
    length = sum(map(len, chunks))
    if length <= MAX_INLINE and not large:
        return b"".join(chunks)
    return [length, *map(len, large)], chunks + large


def pickle_definition(obj: object, globals_by_id: Mapping[int, Any], keys: Any = (),
                      is_root: bool = True) -> Pickled:
    """Pickle a definition of the script, or a function that was submitted.

    Arguments:
        obj: what the key stands for; or a list, if there are several keys.
        globals_by_id: keys of the data of the script that the pickle may refer to, by `id`.
        keys: what is defined, `(module, name)` of each; none for a function that was submitted.
        is_root: whether `obj` is bound to its key as soon as it is made; False for data.
    """
    root = {"root": obj, "key": keys[0]} if is_root and keys else {}
    # With `persistent_id`, the pickler calls us for each part of an object. For large data that
    # takes several times as long as pickling it.
    reducers = _DefinitionReducers if globals_by_id else _SlotReducers
    chunks, large, pickler = _dump(
        obj, reducers, 100, globals=globals_by_id, defining=keys, **root)
    parts = {}
    if keys and not root:
        parts = {number: part for number, (_, part) in pickler.memo.copy().items()
                 if _can_be_shared(part)}
    return Pickled(b"".join(chunks), large, pickler.used_globals, pickler.references, parts)


def _can_be_shared(part: Any) -> bool:
    """Return whether it matters that two objects have a part in common.

    It does not if the part is a mere value, such as a string; it does if it is a list.
    """
    if is_definition(part) or type(part).__module__ == "logging":
        return False
    hashing: Any = type(part).__hash__
    # Two cases. A class may hash its instances by identity in Python, as torch.Tensor does. Any
    # other is a value if it has a hash of its own.
    if isinstance(hashing, types.FunctionType):
        try:
            return bool(hash(part) == id(part))
        except TypeError:
            return False
    return hashing in (None, object.__hash__)


def pack_function(how: int, root: Pickled | tuple[str, str], needs: Mapping[Any, bytes],
                  definitions: Mapping[bytes, Any]) -> Packed:
    """Return the payload of FUNCTION: all by which a slot knows a function.

    Arguments:
        how: UNPICKLE_EACH_CALL, UNPICKLE_ONCE or LOOK_UP_BY_NAME.
        root: the pickled function; if LOOK_UP_BY_NAME, its module and path.
        needs: the version of each key that it uses, by key.
        definitions: `(keys, Pickled)` of each definition, by version. A version without one is the
            pickle of a short constant.
    """
    segments: list[Any] = []

    def add(pickled: Pickled) -> Any:
        """Put a pickle where the slot finds it; return that."""
        # Three cases. A short pickle goes into the head. A long one, or one with buffers, becomes
        # segments, from a start to an end. It goes into the head after all, as a list, if there
        # would be more segments than a message can have.
        if len(pickled.data) < MAX_INLINE and not pickled.buffers:
            return pickled.data
        parts = [pickled.data, *pickled.buffers]
        start = len(segments)
        if start + len(parts) > 250:
            return [*map(bytes, parts)]
        segments.extend(parts)
        return start, len(segments)

    place = add(root) if isinstance(root, Pickled) else root
    places = {version: (keys, add(pickled)) for version, (keys, pickled) in definitions.items()}
    modules = [pickled.module for _, pickled in definitions.values() if pickled.module]
    head = pickle.dumps((how, place, dict(needs), places, modules), 5)
    return _pack_buffers([head], segments)


def unpack(segments: Sequence[Any]) -> Any:
    """Return the object of a message's segments. Runs what the pickle names: may raise anything."""
    if isinstance(segments, MemoryError):
        raise segments
    return loads(segments[0], buffers=segments[1:])


def _unpack_packed(packed: Packed) -> Any:
    """Unpickle what `pack` has just returned."""
    if type(packed) is bytes:
        return unpack((packed,))
    lengths, buffers = packed
    large = len(lengths) - 1
    pieces = len(buffers) - large       # of the pickle
    return unpack([b"".join(buffers[:pieces]), *buffers[pieces:]])


def _join(packed: Packed) -> bytes:
    """Return what `pack` has returned, without large buffers, as one block."""
    return packed if type(packed) is bytes else b"".join(packed[1])


def run_call(function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[bool, Any]:
    """Call a function; return `(True, its value)` or `(False, what it raised)`, SystemExit too."""
    try:
        return True, function(*args, **kwargs)
    except BaseException as error:      # whatever it was, it belongs to the caller's future
        return False, error


class _Budget:
    """How many calls this slot may still start before it is replaced."""

    left = NEVER


def run_chunk(function: Callable[..., Any], chunk: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call a function on each tuple of arguments; this is what `map(..., chunksize=n)` sends."""
    values = [function(*args) for args in chunk]
    _Budget.left -= len(values) - 1     # the slot counts one call, but each item is one
    return values


def run_items(function: Callable[..., Any], packed: bytes, seconds: float) -> tuple[Any, ...]:
    """Call a function on the items of a chunk, in order, until one raises or the time is up.

    This is what `map` sends that chooses its chunks itself.

    Arguments:
        packed: a list of columns: first arguments, second arguments...

    Returns the seconds it took; the values so far: a tuple if they are plain, else the list that
    `pack_series` makes of them; and what the next item raised, as ERROR has it, or b"". If a value
    cannot be pickled, its item counts as having raised that error. Raises in two cases only: the
    arguments cannot be unpickled, or the first item raises ModuleNotFoundError.
    """
    rows = zip(*unpack((packed,)))
    values: list[Any] = []
    raised: Packed = b""
    started = time.perf_counter()
    until = started + seconds
    try:
        for args in rows:
            values.append(function(*args))
            if getattr(sys.stdout, "is_in_line", False) or getattr(sys.stderr, "is_in_line", False):
                _end_lines()
            if time.perf_counter() > until or len(values) >= _Budget.left:
                break
    except ModuleNotFoundError:
        if not values:      # perhaps another machine has it
            raise
    except BaseException as error:
        raised = pack_outcome(False, error)[1]
    took = time.perf_counter() - started
    _Budget.left -= max(len(values) - 1, 0)
    found: Any = tuple(values)
    if not is_plain(found):
        found, problem = pack_series(values)
        raised = problem or raised
    return took, found, _join(raised)


def pack_series(values: Sequence[Any]) -> tuple[list[Any], Packed]:
    """Pickle values one after another; if one fails, those before it are returned all the same.

    Return what `unpack_series` takes, up to the first value that cannot be pickled, or not be
    unpickled here; and what that raised, as ERROR has it, or b"".
    """
    chunks, large, pickler = _open_pickle(_ResultReducers, sys.maxsize)
    pickles: list[bytes] = []
    stage, problem = "result", None
    try:
        for value in values:
            pickler.dump(value)
            pickles.append(b"".join(chunks))
            chunks.clear()
    except BaseException as error:
        problem = error
    buffers = [*map(pickle.PickleBuffer, large)]
    found, misfit = unpack_series(pickles, *buffers)
    if misfit is not None:
        stage, problem = "round trip", misfit
    raised = b"" if problem is None else pack_outcome(False, problem, stage)[1]
    return [pickles[:len(found)], *buffers], raised


def unpack_series(pickles: Sequence[bytes],
                  *buffers: Any) -> tuple[list[Any], BaseException | None]:
    """Return the values of a series, up to the first that raises; and what that raises, or None.

    Arguments:
        pickles: one for each value; it may refer to objects in those before it.
        buffers: large ones of all of them.
    """
    unpickler = pickle.Unpickler(io.BytesIO(b"".join(pickles)), buffers=buffers)
    found: list[Any] = []
    try:
        while len(found) < len(pickles):
            found.append(unpickler.load())
    except BaseException as error:
        return found, error
    return found, None


class _ArrayReducers(_SlotReducers):
    """For `pack_without_arrays`.

    Attributes:
        arrays: the large arrays in the pickle, by number; grows.
        array_type: numpy.ndarray, or () if NumPy has not been imported.
    """

    arrays: dict[int, Any]
    array_type: Any

    def persistent_id(self, obj: Any) -> Any:
        """Return the number of a large array, or None; see `pickle.Pickler`."""
        if type(obj) is not self.array_type or obj.nbytes < MAX_FRAME or obj.dtype.hasobject:
            return None
        number = id(obj)
        self.arrays[number] = obj
        return number


def pack_without_arrays(obj: object) -> tuple[Prepacked, dict[int, Any]]:
    """Pickle a callable for a slot, but leave out the large NumPy arrays in it.

    Return the pickle and the arrays by number, to be passed to `run_with_arrays`.
    """
    arrays: dict[int, Any] = {}
    array_type = getattr(sys.modules.get("numpy"), "ndarray", ())
    chunks, _, pickler = _dump(obj, _ArrayReducers, 0, arrays=arrays, array_type=array_type)
    return Prepacked(b"".join(chunks), pickler.used_globals | pickler.references), arrays


def run_with_arrays(_name: str, arrays: Mapping[int, Any], pickled: bytes) -> Any:
    """Call what `pack_without_arrays` has pickled, and return its value.

    Arguments:
        _name: what displays call it.
    """
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, number: int) -> Any:
            return arrays[number]

    return Unpickler(io.BytesIO(pickled)).load()()


def begin_process(open_outcome: Callable[[str, int, Any], Any]) -> None:
    """Begin a process of a ProcessExecutor: record what its `__main__` has.

    Arguments:
        open_outcome: what our parent calls with the name of a function, and RESULT and the pickled
            value or ERROR and what `pack_outcome` has returned. It does not raise.
    """
    _inherited.update(vars(sys.modules["__main__"]))
    _ProcessOutcome.open = staticmethod(open_outcome)


def pack_for_process(obj: object, there: Mapping[str, object] | None) -> bytes:
    """Pickle for a process of a ProcessExecutor.

    Arguments:
        there: what it has in `__main__`, by name; None if only the process itself can say.
    """
    return _dumps(obj, _ProcessReducers, known_names=there)


class _ProcessOutcome:
    """What a call in a process pool returned or raised, until our parent unpickles it."""

    open: Any = None    # see `begin_process`

    def __init__(self, name: str, kind: int, body: bytes) -> None:
        self._operands = name, kind, body

    def __reduce__(self) -> tuple[Any, ...]:
        return self.open, self._operands


def run_shipped(name: str, packed: bytes) -> Any:
    """Run a call in a process pool.

    Arguments:
        name: of the function.
        packed: `(function, args, kwargs)`, by `pack_for_process`.
    """
    return _run(name, functools.partial(pickle.loads, packed))


def run_plain(module: str, name: str, *args: Any) -> Any:
    """Run a call of an importable function, with plain arguments, in a process pool."""
    def find() -> Any:
        __import__(module)
        return getattr(sys.modules[module], name), args, {}

    return _run(name, find)


def _run(name: str, open_call: Callable[[], Any]) -> Any:
    """Run `(function, args, kwargs)`; return a plain value as it is, and else a _ProcessOutcome.

    What a user's objects and modules raise is raised here, for a pool whose queues pickle and
    unpickle them ends by that, and all its tasks with it.
    """
    stage = "arguments"
    try:
        function, args, kwargs = open_call()
        stage = "run"
        value = function(*args, **kwargs)
        if is_plain(value):
            return value
        data = _dumps(value)        # as in the standard library, what this raises is the outcome
        stage = "round trip"
        pickle.loads(data)
    except BaseException as error:
        _, packed = pack_outcome(False, error, stage)
        return _ProcessOutcome(name, ERROR, _join(packed))
    return _ProcessOutcome(name, RESULT, data)


def pack_outcome(ok: bool, value: Any, stage: str = "run") -> tuple[int, Packed]:
    """Pickle what `run_call` returned. Return `(RESULT or ERROR, packed)`; never raises.

    The payload of an ERROR is a plain tuple `(stage, pickled exception or b"", type, text,
    traceback)`.

    Arguments:
        stage: what failed: "arguments" or "run". For ERROR it may become "result", if the value
            cannot be pickled, or "round trip", if its pickle cannot be unpickled.
    """
    if ok:
        try:
            stage = "result"
            packed = pack(value)
            # Unpickle it here, before it is sent. If that raises, exits or crashes, it does so in
            # this slot and not in the controller.
            stage = "round trip"
            if not is_plain(value):
                _unpack_packed(packed)
            return RESULT, packed
        except BaseException as error:
            value = error
    import traceback
    kind = type(value)
    for explain in _explainers:
        explain(value)
    try:
        trace = _skip_own_frames(value.__traceback__)
        text = "".join(traceback.format_exception(kind, value, trace))
    except BaseException as error:      # a __str__ or __repr__ that raises
        text = "(no traceback: formatting it raised %s)\n" % type(error).__name__
    pickled = _pickle_exception(value)
    culprit = value if pickled else _find_culprit(value)
    words = _error_text(culprit)
    return ERROR, pack((stage, pickled, type(culprit).__name__, words, text))


def _pickle_exception(error: BaseException) -> bytes:
    """Return the pickle of an exception; b"" if that cannot be unpickled to an exception."""
    try:
        data = _dumps(error)
        if isinstance(loads(data), BaseException):
            return data
    except BaseException:       # for instance, its constructor does not accept its args
        pass
    return b""


def _find_culprit(error: BaseException) -> BaseException:
    """Return the member that keeps an exception group from being pickled; or the error itself."""
    for member in getattr(error, "exceptions", ()):
        if isinstance(member, BaseException) and not _pickle_exception(member):
            return _find_culprit(member)
    return error


# Functions that add to an exception what this slot knows about it.
_explainers: list[Callable[[BaseException], object]] = []


def _error_text(value: object) -> str:
    """Return the text of an exception, with its notes."""
    try:
        return "\n".join([str(value), *getattr(value, "__notes__", ())])
    except BaseException as error:
        return "(its __str__ raised %s)" % type(error).__name__


def sum_up(names: Sequence[str]) -> str:
    """Return the first name, and how many there are beside it."""
    return names[0] + (" and %d more" % (len(names) - 1) if len(names) > 1 else "")


def describe(error: BaseException) -> str:
    """Return the type and the text of an exception, even if its `__str__` raises."""
    return "%s: %s" % (type(error).__name__, _error_text(error))


def _skip_own_frames(trace: Any) -> Any:
    """Return a traceback without the frames of this file at its top, which tell users nothing."""
    while trace and trace.tb_next and trace.tb_frame.f_globals.get("run_call") is run_call:
        trace = trace.tb_next
    return trace


# ───────────────────────────────────────────── cache ──────────────────────────────────────────────

# What is copied to this machine, for all pools. Each entry is a directory, and its name begins with
# its key, which tells its content. In it, `content` is the file, or the directory that travelled as
# a tar file; `seal` tells whether somebody has written to it since. Whoever uses an entry has a
# shared lock on its seal; nobody removes it without an exclusive one. An entry is never changed: if
# it is not what its seal tells, another one is made beside it.
#
# What lies here is run. So the cache and each entry must belong to us or to root, and nobody else
# may write there, nor to a folder on the way to the cache.
INCOMING_SECONDS = 86400    # how long the leavings of a copy that was cut off stay
KEEP_SECONDS = 30 * 86400   # how long the cache keeps what no run has used
RETRY_SECONDS = 60.0        # from a copy that failed to the next
_copy_waits: list[float] = []       # how many seconds each wait for a copy took, in this process
_NOTE_SIZE = 4096           # bytes of a note on why a copy failed
_Wanted = tuple[str, str, str]  # key of an entry; its name; the version this Python has, or ""
_CACHE_REMEDY = ("set XDG_CACHE_HOME there (say, in ~/.bashrc) to a folder in which this account, "
                 "and no other, can write")


def _store_files(pull: Callable[[int, bytes], Any], scratch: str, files: dict[str, str]) -> bool:
    """Copy what `files=` names to the directory that slots run in, and tell the shim.

    Return whether it could be done.

    Arguments:
        scratch: that directory.
        files: {name: key}.
    """
    problem = ""
    try:
        names = {key: name for name, key in files.items()}      # some may be alike
        places = _fetch(pull, scratch, [(key, name, "") for key, name in names.items()])
        _copy_for_tasks({name: places[key] for name, key in files.items()}, scratch)
        _enter(scratch)
    except Exception as error:
        problem = str(error) or describe(error)
    write_all(_RESULTS_FD, (frame(STORED, 0, problem.encode("utf-8", "replace")),))
    return not problem


def _copy_for_tasks(contents: dict[str, str], scratch: str) -> None:
    """Copy entries to where slots run: no other pool sees what tasks write to these copies.

    If there is no room, they go to another temporary directory. Links lead to them.

    Arguments:
        contents: by name, where the entry's content is.

    Raises OSError if no temporary directory has room.
    """
    import shutil
    problems = []
    for folder in dict.fromkeys([scratch, *_temporary_folders(os.path.basename(scratch))]):
        copies = os.path.join(folder, ".files")
        try:
            if folder != scratch:
                _make_temporary(folder)
            for name, content in contents.items():
                entry = os.path.dirname(content)
                shutil.copytree(entry, os.path.join(copies, name), symlinks=True)
            break
        except OSError as error:
            problems.append(str(error))
            _remove(copies)
    else:
        raise OSError("no temporary directory has room for files=; set TMPDIR there to one that "
                      "has (%s)" % "; ".join(problems))
    for name in contents:
        os.symlink(os.path.join(copies, name, "content"), os.path.join(scratch, name))


def _make_temporary(folder: str) -> None:
    """Make a folder. Raises OSError if it cannot be made, or if others could replace it."""
    os.mkdir(folder, 0o700)
    if _find_open_folder(folder):
        os.rmdir(folder)
        raise PermissionError("other accounts could replace %s" % folder)


def _enter(scratch: str) -> None:
    """Make the directory with `files=` the working directory, and importable."""
    os.chdir(scratch)
    sys.path.insert(0, scratch)


def _fetch(pull: Callable[[int, bytes], Any], scratch: str,
           entries: list[_Wanted]) -> dict[str, str]:
    """Return, by key, where the content of entries is. Have those that are missing copied.

    One process at a time asks for an entry and unpacks it. It holds the key's lock meanwhile, and
    the others wait for that lock. If the holder dies, the kernel releases it. Nobody removes what
    is returned while this process lives. Raises OSError or EOFError.
    """
    locks: dict[str, Any] = {}
    started = monotonic()
    try:
        cache = _open_cache()
        names = {key: name for key, name, _ in entries}
        places = {key: _use_entry(cache, key) for key in names}
        for key in sorted(places):      # in one order, or two might wait for each other
            if not places[key]:
                what = "%s (another process there does)" % names[key]
                locks[key] = _lock_key(cache, key, functools.partial(pull, WAITING, what.encode()))
                pull(WAITING, b"")
                places[key] = _use_entry(cache, key)
        missing = [entry for entry in entries if not places[entry[0]]]
        if missing:
            wanted = [locks[key] for key, _, _ in missing]
            places.update(_copy(pull, cache, scratch, missing, wanted))
        for lock in locks.values():
            _remove(lock.name)      # who waits for it sees that all is done
        return places
    except OSError as error:
        if error.errno is None:     # in our own words
            raise
        raise OSError("%s: check that there is room, or %s" % (error, _CACHE_REMEDY)) from None
    finally:
        for lock in locks.values():
            lock.close()
        pull(WAITING, b"")
        _copy_waits.append(monotonic() - started)


def _copy(pull: Callable[[int, bytes], Any], cache: str, scratch: str, entries: list[_Wanted],
          locks: list[Any]) -> dict[str, str]:
    """Have the controller copy entries into a folder of their own, and admit them.

    Return by key where the content of each is now.

    If that fails although bytes have come (say, the disk is full), the slots of this shim do not
    try again for a while: a note in the locks of the keys tells them.
    """
    import json
    for lock in locks:
        shim, end, words = json.loads(lock.read().strip() or '["", 0, ""]')
        if shim == scratch and monotonic() < end:
            raise OSError(words)
    # The shim keeps answers, and gives the same to equal questions. The new folder makes this a
    # new question: the files of an earlier answer went to the folder of whoever asked.
    folder = _incoming(cache, scratch)
    place = os.path.dirname(os.path.join(os.path.expanduser("~"), folder))
    _make_folders(place + "/content")
    guard = _lock(place, fcntl.LOCK_EX)
    arrivals = _Arrivals(cache, place)
    over = _watch_copy(place, locks, lambda: pull(
        MOVED, b"%d %s" % (arrivals.count_bytes(), folder.encode())))

    names = sum_up([name for _, name, _ in entries])

    def check_copied() -> None:
        _open_answer(pull(COPIED, folder.encode()))
        pull(WAITING, b"%s (unpacking)" % names.encode())

    try:
        sent = _open_answer(pull(COPY, json.dumps([folder, entries]).encode()))
        arrivals.admit_all(entries, sent, check_copied)
    except OSError as error:
        if arrivals.count_bytes():
            note = json.dumps([scratch, monotonic() + RETRY_SECONDS, str(error)[:300]])
            for lock in locks:
                os.pwrite(lock.fileno(), note.encode().ljust(_NOTE_SIZE), 0)
        raise
    finally:
        over.set()
        _remove(place)
        os.close(guard)
    _prune(cache)
    return arrivals.places


def _open_answer(answer: Sequence[Any]) -> Any:
    """Return what the controller says of a copy. Raises OSError if that is a refusal."""
    opened = unpack(answer)
    if isinstance(opened, tuple):
        reason, is_temporary = opened
        raise BlockingIOError(reason) if is_temporary else OSError(reason)
    return opened


class _Arrivals:
    """Files that arrive in a folder one after the other, and become entries of the cache.

    Arguments:
        place: a folder. They arrive in `content` in it, and are unpacked beside that.
    """

    def __init__(self, cache: str, place: str) -> None:
        self._cache = cache
        self._place = place
        self._taken: list[int] = []         # bytes of each file that is complete
        self._have_all_come = False         # or no more will
        self.places: dict[str, str] = {}    # by key, where the content of each entry is

    def count_bytes(self) -> int:
        """Return how many bytes have arrived."""
        folder = self._place + "/content"
        return sum(self._taken) + sum(os.stat(os.path.join(folder, name)).st_size
                                      for name in os.listdir(folder))

    def admit_all(self, entries: Sequence[_Wanted], sent: Sequence[Any],
                  check: Callable[[], None]) -> None:
        """Admit each file once it is complete, while others still arrive.

        Several threads do so: to make small files takes longer than to write to them, and file
        systems make several at once. If no more threads can be started, this thread does it.

        Arguments:
            sent: `(name of its file, SHA-256, whether it is a tar, size)` of each.
            check: returns when all have arrived. Raises OSError or EOFError if they do not.
        """
        from concurrent.futures import ThreadPoolExecutor
        try:
            with ThreadPoolExecutor(UNPACKERS) as pool:
                try:
                    admitted = pool.map(self._admit, entries, sent)
                    check()
                finally:
                    self._have_all_come = True
                list(admitted)
        except RuntimeError:
            check()
            list(map(self._admit, entries, sent))

    def _admit(self, entry: _Wanted, sent: tuple[str, str, bool, int]) -> None:
        key, name, _ = entry
        file, digest, is_tar, size = sent
        path = os.path.join(self._place, "content", file)
        # A tar is complete when it has its size: scp writes from its start to its end, and what is
        # copied without scp is renamed into place. It is then put aside: should the copy fail and
        # be repeated, it is not written to. Another file becomes the entry itself, and scp sets its
        # size once more at its end, which changes its time: that waits until scp has ended.
        whole = os.path.join(self._place, key + ".whole")
        while not (self._have_all_come or is_tar and os.path.exists(path)
                   and os.stat(path).st_size >= size):
            time.sleep(LOCK_POLL_SECONDS)
        if os.path.exists(path):    # otherwise it was taken before, or has not come
            self._taken.append(size)
            os.rename(path, whole)
        if key not in self.places:
            place = os.path.join(self._cache, "%s.%s" % (key, os.urandom(8).hex()))
            self.places[key] = _admit(place, name, whole, digest, is_tar)


def _watch_copy(folder: str, locks: Iterable[Any], on_moved: Callable[[], object]) -> Any:
    """Start a thread that touches locks, and calls a function, as files in a folder grow.

    Return the event that ends it.
    """
    import threading
    over = threading.Event()
    watch = threading.Thread(
        target=_run_copy_watch, args=(folder, locks, on_moved, over), daemon=True)
    try:
        watch.start()
    except RuntimeError:
        pass        # there are too many threads: so a slow copy is taken for one that is stuck
    return over


def _run_copy_watch(folder: str, locks: Iterable[Any], on_moved: Callable[[], object],
                    over: Any) -> None:
    before = 0
    while not over.wait(PROGRESS_SECONDS):
        try:
            size = sum(os.lstat(os.path.join(place, name)).st_size
                       for place, _, names in os.walk(folder) for name in names)
            if size != before:
                before = size
                for lock in locks:
                    os.utime(lock.name)
                on_moved()
        except OSError:
            pass        # a file, or all of it, was removed meanwhile


def _cache_path() -> str:
    """Return the real path of the cache. It cannot be made if the account has no home directory."""
    base = os.environ.get("XDG_CACHE_HOME") or ".cache"
    return os.path.realpath(os.path.join("/", os.path.expanduser("~"), base, "executors"))


def _open_cache() -> str:
    """Make the cache, unless it is there; return its path. Raises OSError if it is not safe."""
    cache = _cache_path()
    _make_folders(cache)
    folder = _find_open_folder(cache)
    if folder:
        raise OSError("%s is not used, because other accounts can write to %s; if that is yours, "
                      "run `chmod go-w %s` there; or %s" % (cache, folder, folder, _CACHE_REMEDY))
    return cache


def _make_folders(path: str) -> None:
    """Make a folder, and those above it, for this account alone, whatever the umask is."""
    if not os.path.isdir(path):
        _make_folders(os.path.dirname(path))
        try:
            os.mkdir(path, 0o700)
            os.chmod(path, 0o700)
        except FileExistsError:     # another process has just made it
            pass


def _find_open_folder(path: str) -> str:
    """Return a folder in which others could replace what lies at a real path; "" if there is none.

    In a sticky one, such as /tmp, only the owners of what lies there can.
    """
    folders = [path]
    while folders[-1] != "/":
        folders.append(os.path.dirname(folders[-1]))
    # In a user namespace, root may be seen as another account: the one that owns the devices.
    owners = os.geteuid(), 0, os.stat(os.devnull).st_uid
    for folder in reversed(folders):
        status = os.stat(folder)
        is_sticky = status.st_mode & stat.S_ISVTX and folder != path
        if status.st_uid not in owners or not is_sticky and _can_others_write(status):
            return folder
    return ""


def _can_others_write(status: os.stat_result) -> bool:
    """Return whether anybody but the owner can write to a folder.

    The owner's private group does not count: where each account has one, umask is often 002.
    """
    writers = status.st_mode & 0o022
    if writers != stat.S_IWGRP:
        return bool(writers)
    import grp
    import pwd
    try:
        group = grp.getgrgid(status.st_gid)
        return {group.gr_name, *group.gr_mem} != {pwd.getpwuid(status.st_uid).pw_name}
    except KeyError:
        return True


def _incoming(cache: str, scratch: str) -> str:
    """Return the path of a folder to copy to, for this shim, whose guardian removes it.

    The path must need no quoting, because scp's two protocols quote differently. If the path of the
    cache does, return one relative to the home directory. That is the second choice: scp starts
    from the account's home directory, which $HOME need not be.
    """
    for place in cache, os.path.relpath(cache, os.path.realpath(os.path.expanduser("~"))):
        is_plain = place.replace("/", "").translate({ord(c): "x" for c in "._-+"}).isalnum()
        if is_plain and place.isascii() and not place.startswith(".."):
            return os.path.join(place, _incoming_of(scratch) + os.urandom(8).hex(), "content")
    raise OSError("scp would have to quote %r; %s" % (cache, _CACHE_REMEDY))


def _incoming_of(scratch: str) -> str:
    return "incoming-%s-" % os.path.basename(scratch)


def _remove_incoming(scratch: str) -> None:
    """Remove the folders of copies that were under way when their shim ended."""
    cache = _cache_path()
    for name in os.listdir(cache) if os.path.isdir(cache) else ():
        if name.startswith(_incoming_of(scratch)):
            _remove(os.path.join(cache, name))


_locks: list[int] = []      # descriptors: each keeps an entry that we use from being removed


def _lock(path: str, how: int) -> int:
    """Lock a folder of the cache, or a lock file; return the descriptor.

    Raises OSError if others have it.
    """
    # Over NFS, an exclusive lock needs a descriptor that can write.
    flags = os.O_RDONLY if how == fcntl.LOCK_SH else os.O_RDWR | os.O_CREAT
    fd = os.open(path + "/seal" if os.path.isdir(path) else path, flags, 0o600)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _lock_key(cache: str, key: str, on_wait: Callable[[], object]) -> Any:
    """Wait until nobody else copies the entry with a key; return the file that is its lock.

    Who has it touches it as bytes arrive. If one has not for STALL_SECONDS, the file is replaced:
    somebody else makes the copy. If one dies, the kernel releases its lock.

    Arguments:
        on_wait: called while it is necessary to wait, whenever the other has touched the file.
    """
    while True:
        lock = open(os.path.join(cache, "incoming-%s.lock" % key), "r+",
                    opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o600))
        if _await_lock(lock, on_wait):
            break
        lock.close()
    if not os.fstat(lock.fileno()).st_size:
        os.pwrite(lock.fileno(), b" " * _NOTE_SIZE, 0)      # now there is room for a note
    return lock


def _await_lock(file: Any, on_wait: Callable[[], object]) -> bool:
    """Lock a file. Return False if another is there in its place, or must be."""
    inode = os.fstat(file.fileno()).st_ino
    touched, deadline = 0, NEVER
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        try:
            status = os.stat(file.name)
        except FileNotFoundError:
            return False
        if status.st_ino != inode:
            return False
        if status.st_mtime_ns != touched:
            touched, deadline = status.st_mtime_ns, monotonic() + STALL_SECONDS
            on_wait()
        elif monotonic() > deadline:
            _remove(file.name)
            return False
        time.sleep(LOCK_POLL_SECONDS)


def _list_entries(cache: str, key: str) -> list[str]:
    """Return the paths of all entries with a key: one that is intact, and those that are not."""
    return [os.path.join(cache, name) for name in os.listdir(cache)
            if name.partition(".")[0] == key]


def remove_entries(key: str) -> None:
    """Remove what the cache has with a key, even if it is used."""
    for place in _list_entries(_cache_path(), key):
        _remove(place)


def _use_entry(cache: str, key: str) -> str:
    """Return where an intact entry's content is; "" if there is none. Lock it while we live."""
    for place in _list_entries(cache, key):
        try:
            lock = _lock(place, fcntl.LOCK_SH)
        except OSError:     # somebody removes it
            continue
        is_intact = _is_intact(place)
        try:        # what was altered is as good as old
            os.utime(place, None if is_intact else (0, 0))
        except OSError:     # it was removed before it was locked; or the cache is read-only
            pass
        if is_intact:
            _locks.append(lock)
            return place + "/content"
        os.close(lock)
    return ""


def _keep_interpreter() -> None:
    """If the interpreter was sent to this machine, keep it from being removed while we live."""
    if os.path.dirname(sys.base_prefix) == _cache_path():
        try:
            os.utime(sys.base_prefix)
            _locks.append(_lock(sys.base_prefix, fcntl.LOCK_SH))
        except OSError:     # the cache is read-only, and so not pruned either
            pass


def _admit(place: str, name: str, temporary: str, digest: str, is_tar: bool) -> str:
    """Move a copied file to its place, if its digest is right. Return where its content is.

    On a full disk, scp leaves a corrupt file of full length.
    """
    staging = os.path.join(os.path.dirname(temporary), os.path.basename(place))
    content = staging + "/content"
    if digest_file(temporary) != digest:
        raise OSError("%s arrived damaged (its SHA-256 differs): is the disk full?" % name)
    _make_folders(staging)
    if is_tar:
        import tarfile
        with tarfile.open(temporary) as tar:
            tar.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
            tar.extractall(staging, _check_members(tar))
        _remove(temporary)
    else:
        os.rename(temporary, content)
    for folder, _, files in os.walk(staging):
        for path in (folder, *[os.path.join(folder, file) for file in files]):
            if not os.path.islink(path):
                os.chmod(path, os.stat(path).st_mode & 0o755)
    with open(staging + "/seal", "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(_seal(content))
    _locks.append(_lock(staging, fcntl.LOCK_SH))
    os.rename(staging, place)
    return place + "/content"


def _check_members(tar: Any) -> Iterator[Any]:
    """Yield the members of a tar file. Raises OSError for one that is not of the kind we send.

    Each is in `content`. A link may lead anywhere, as it did on the controller; but nothing is
    written through it, for nothing lies below what is no directory, and that comes once.
    """
    others: dict[str, Any] = {}     # by name, those that are no directories
    for member in tar:
        parts = member.name.split("/")
        is_at_home = parts[0] == "content" and not {"", ".", ".."} & {*parts}
        ways = ["/".join(parts[:number]) for number in range(1, len(parts) + 1)]
        target = others.get(member.linkname)
        is_known = member.isdir() or member.isreg() or member.issym() or (
            member.islnk() and target and target.isreg())
        if not (is_at_home and is_known) or others.keys() & ways:
            raise OSError("the archive has %r, which is not where it should be" % member.name)
        if not member.isdir():
            others[member.name] = member
        yield member


def _seal(content: str) -> str:
    """Return a text that changes when somebody writes to a file, or adds one to a directory.

    Bytecode may come by importing.
    """
    entries = [(".", os.lstat(content))]
    for folder, folders, files in os.walk(content):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in folders + sorted(files):
            path = os.path.join(folder, name)
            entries.append((path[len(content) + 1:], os.lstat(path)))
    return repr([(name, status.st_mode) if stat.S_ISDIR(status.st_mode)
                 else (name, status.st_mode, status.st_size, status.st_mtime_ns)
                 for name, status in entries])


def _is_intact(place: str) -> bool:
    """Return whether an entry is what its seal tells, and could be changed by nobody else."""
    try:
        status = os.lstat(place)
        with open(place + "/seal") as file:
            return status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022 and (
                file.read() == _seal(place + "/content"))
    except OSError:
        return False


def digest_file(path: str) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    import hashlib
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(MAX_FRAME):
            hashed.update(block)
    return hashed.hexdigest()


def _prune(cache: str) -> None:
    """Remove what is old, unless somebody has locked it."""
    now = os.stat(cache).st_mtime       # by the file server's clock: it has just changed
    for entry in os.scandir(cache):
        keep = INCOMING_SECONDS if entry.name.startswith("incoming-") else KEEP_SECONDS
        try:
            if now - entry.stat().st_mtime > keep:
                lock = _lock(entry.path, fcntl.LOCK_EX)
                try:
                    _remove(entry.path)
                finally:
                    os.close(lock)
        except OSError:
            pass        # somebody uses it


# ────────────────────────────────────── modules and packages ──────────────────────────────────────


def _prepend_to_pythonpath(folder: str) -> None:
    """Put a folder first where processes that a task starts look for modules."""
    paths = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = folder + os.pathsep + paths if paths else folder


class ModuleFinder:
    """Import modules of the controller's project. It is first on `sys.meta_path`, so they win.

    Asked for a module, the controller answers None, or `(file name, source, is a package)`. If the
    file name is NAMESPACE, it is a namespace package. If it is INSTALLED, the module belongs to a
    distribution that may be copied; in place of the source comes then a list of that, and of those
    that it requires (see `_Offered`). If it is REFUSED, the module is there and cannot follow, and
    in place of the source comes what to do about it.

    Arguments:
        pull: asks the shim, see `_ShimClient`.
        folder: the directory that slots run in. Packages that `files=` has put there are left to
            the usual import, for they may have data files and extension modules.
    """

    NAMESPACE = "<namespace>"
    INSTALLED = "<installed>"
    REFUSED = "<refused>"

    def __init__(self, pull: Callable[[int, bytes], Any], folder: str) -> None:
        self._pull = pull
        # Written by any thread that imports. Two that ask the same question get the same answer.
        self._answers: dict[str, Any] = {}        # by module, the controller's answer
        self._metadata: dict[str, Any] = {}     # by distribution, likewise
        self._package_folders: dict[str, str] = {}      # by folder, the project's package there
        self._modules_folder = os.path.join(folder, ".modules")
        self._packages = _Packages(pull, folder)
        self._local_names = {*sys.stdlib_module_names}     # names that are left to the usual import
        if not os.path.isdir(folder):
            return
        for name in os.listdir(folder):
            is_package = os.path.exists(os.path.join(folder, name, "__init__.py"))
            if is_package or name.endswith((".py", ".so")):
                self._local_names.add(name.partition(".")[0])

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find a module; see `importlib.abc.MetaPathFinder`."""
        top = name.partition(".")[0]
        parent = name.rpartition(".")[0]
        if top in self._local_names:
            return None
        # A package that is not of the project has its modules in its folder on this machine.
        if parent:
            parent_answer = self._answers.get(parent)
            if not parent_answer or parent_answer[0] in (self.INSTALLED, self.REFUSED):
                return None
        if name not in self._answers:
            self._answers[name] = self._ask_controller(FIND_MODULE, name)
        answer = self._answers[name]

        # Three cases. The controller does not send the module; it may send the distribution that
        # the module is in; or it has sent the module's source.
        if not answer or answer[0] == self.REFUSED:
            return None
        filename, source, is_package = answer
        if filename == self.INSTALLED:
            if not self._packages.must_be_copied(top, path, *source[0]):
                return None
            copy = functools.partial(self._packages.get, *source)
            loader: Any = PackageLoader(copy, path)
            return machinery.ModuleSpec(name, loader, origin="a copy", is_package=is_package)
        loader = SourceLoader(filename, source)
        spec: Any = machinery.ModuleSpec(name, loader, origin=filename, is_package=is_package)
        spec.has_location = True
        if filename == self.NAMESPACE:      # other parts of it may be installed here
            here = machinery.PathFinder.find_spec(name, path)
            if here and here.submodule_search_locations:
                spec.submodule_search_locations += here.submodule_search_locations
            return spec
        if is_package:
            folder = os.path.dirname(filename)
            spec.submodule_search_locations.append(folder)
            self._package_folders[folder] = name
        self._save_module(name, source, is_package)
        return spec

    def _ask_controller(self, kind: int, name: str) -> Any:
        """Return the controller's answer to a question, or None if nobody answers."""
        try:
            return unpack(self._pull(kind, name.encode()))
        except EOFError:
            return None

    def _save_module(self, name: str, source: str, has_init: bool) -> None:
        """Write a module to where child processes look for modules, as they cannot ask for it.

        If that fails, only they go without it.
        """
        parts = name.split(".")
        if has_init:
            parts.append("__init__")
        path = os.path.join(self._modules_folder, *parts) + ".py"
        try:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(source)
        except OSError:
            pass

    def save_script(self) -> str:
        """Write the script, and all modules that it imports, to where child processes find them.

        Return the script's path, which `multiprocessing` asks for unless it forks. Raises
        AttributeError if the controller has no script.
        """
        import ast
        answer = self._ask_controller(FIND_MODULE, "__main__")
        if not answer:
            raise AttributeError("module '__main__' has no attribute '__file__'")
        source = answer[1]
        self._save_module("__main__", source, False)
        # This module is imported already, so the loop below would not save it.
        loader: Any = vars(sys.modules[__name__])["__loader__"]
        self._save_module(__name__, loader.get_source(__name__), False)
        for node in ast.walk(ast.parse(source)):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                try:
                    __import__(name)        # which saves it
                except Exception:           # the script may import it in a `try`
                    pass
        return os.path.join(self._modules_folder, "__main__.py")

    def get_child_finder(self, folder: str) -> Any:
        """Return what lists the modules of a package that was sent; for `sys.path_hooks`.

        Raises ImportError for any other folder.
        """
        if folder not in self._package_folders or os.path.isdir(folder):
            raise ImportError(folder)
        ask = functools.partial(self._ask_controller, LIST_MODULES, self._package_folders[folder])
        return _ChildFinder(self.find_spec, ask)

    def find_distributions(self, context: Any) -> Iterator[Any]:
        """Find the metadata of a distribution whose modules come from the controller.

        See `importlib.metadata.DistributionFinder`.
        """
        if context.name is None:
            return
        from importlib import metadata
        name = str(context.name).replace("_", "-").lower()
        if name not in self._metadata:
            self._metadata[name] = self._ask_controller(FIND_METADATA, name)
        if not self._metadata[name]:
            return
        version, key, texts = self._metadata[name]
        own_version, _ = _find_own(name)
        # What is installed here stays in use if it has the same version, or if the controller's
        # cannot be copied (it has no key). Its metadata is then found without us.
        if own_version and (not key or _is_same_version(own_version, version)):
            return

        class Distribution(metadata.Distribution):
            def read_text(self, filename: str) -> Any:
                return texts.get(filename)

            def locate_file(self, path: Any) -> Any:
                return None

        yield Distribution()

    def explain_missing_module(self, name: str) -> str:
        """Return why a module, or the distribution with it, did not follow; "" if unknown."""
        for part in (name, name.partition(".")[0]):
            answer = self._answers.get(part)
            if answer and answer[0] == self.REFUSED:
                return str(answer[1])
            if answer and answer[0] == self.INSTALLED:
                distribution = answer[1][0][0]
                return self._packages.problems.get(distribution, "")
        return ""


# A distribution that may be copied: its name, its version, the name of its .dist-info, and the key
# of its content.
_Offered = tuple[str, str, str, str]


class _Packages:
    """Distributions that come from the controller, once for a machine and each key.

    Each is an entry of the cache. Its directory is in `sys.path` before those where this Python has
    what is installed.
    """

    def __init__(self, pull: Callable[[int, bytes], Any], scratch: str) -> None:
        self._pull = pull
        self._scratch = scratch
        self._places: dict[str, str] = {}       # by distribution; so are these
        self._retry_at: dict[str, float] = {}       # when one that could not be had is tried again
        self.problems: dict[str, str] = {}

    def must_be_copied(self, top: str, path: Any, name: str, version: str, info: str,
                       key: str) -> bool:
        """Return whether to copy a distribution: this version is not here, and may be had.

        One that came with another is not yet in the path of a namespace package that was imported
        before; then this returns True, and `PackageLoader` adds it.

        Arguments:
            path: the `__path__` of the package that the module is in, or None.
        """
        if name in self._places:
            return path is not None
        if monotonic() < self._retry_at.get(name, 0):
            return False
        here = machinery.PathFinder.find_spec(top)
        origin = here and here.has_location and here.origin or ""
        folder = os.path.dirname(origin)
        if here and here.submodule_search_locations:
            folder = os.path.dirname(folder)
        if origin and os.path.exists(os.path.join(folder, info)):
            return False        # this is what metadata would find, a tenth of a second later
        return not _is_same_version(_find_own(name)[0], version)

    def get(self, wanted: _Offered, *required: _Offered) -> str:
        """Return where a distribution is now, in `sys.path`; "" if what is here must do.

        What it requires comes with it, if another version of that is here, or none.
        """
        name = wanted[0]
        if name not in self._places and monotonic() >= self._retry_at.get(name, 0):
            self._find(wanted, required)
        return self._places.get(name, "")

    def _find(self, wanted: _Offered, required: Sequence[_Offered]) -> None:
        name, version, _, key = wanted
        own, folder = _find_own(name)
        entries = {name: (key, name, own)}
        for other, its_version, _, its_key in required:
            its_own, _ = _find_own(other)
            if other not in self._places and not _is_same_version(its_own, its_version):
                entries[other] = its_key, other, its_own
        try:
            places = _fetch(self._pull, self._scratch, [*entries.values()])
        except (OSError, EOFError) as error:
            if len(entries) > 1:        # one that it requires may be to blame
                self._find(wanted, ())
                return
            self.problems[name] = (
                "%s %s does not follow (%s), and %s; `%s -m pip install %s==%s` there mends it" % (
                    name, version, str(error) or describe(error),
                    "it has %s" % own if own else "it has none", sys.executable, name, version))
            if not isinstance(error, BlockingIOError):      # the next task tries again
                self._retry_at[name] = monotonic() + RETRY_SECONDS
            return
        at = [n for n, one in enumerate(sys.path) if one.endswith("-packages") or one == folder]
        for name, (key, _, _) in entries.items():
            self._places[name] = place = os.path.join(places[key], "site-packages")
            sys.path.insert((*at, len(sys.path))[0], place)
            _prepend_to_pythonpath(place)


def _find_own(name: str) -> tuple[str, str]:
    """Return the version and the folder of a distribution that this Python has, or `("", "")`."""
    from importlib import metadata
    context = metadata.DistributionFinder.Context(name=name)
    found: Any = next(iter(metadata.MetadataPathFinder.find_distributions(context)), None)
    return (found.version or "", str(found.locate_file(""))) if found else ("", "")


def _is_same_version(one: str, other: str) -> bool:
    return one.partition("+")[0] == other.partition("+")[0]


class PackageLoader:
    """Copy a distribution when a module of it is first imported; then load the module as usual.

    Arguments:
        copy: copies the distribution, unless that is done; returns its folder in `sys.path`, or ""
            if it cannot be copied.
        path: the `__path__` of the namespace package that the module is in, which was computed
            before the copy; or None.
    """

    def __init__(self, copy: Callable[[], str], path: Any) -> None:
        self._copy = copy
        self._path = path

    def create_module(self, spec: Any) -> Any:
        """Copy, and turn the spec into that of the copied module; see `importlib.abc.Loader`.

        Raises ModuleNotFoundError if the module is not there then, either.
        """
        folder = self._copy()
        if folder and self._path is not None:
            portion = os.path.join(folder, *spec.name.split(".")[:-1])
            if portion not in self._path:
                self._path.insert(0, portion)
        found = machinery.PathFinder.find_spec(spec.name, self._path)
        if found is None or found.loader is None:
            raise ModuleNotFoundError("No module named %r" % spec.name, name=spec.name)
        vars(spec).update(vars(found))
        return found.loader.create_module(found)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: by now, the spec names the loader that executes the module."""


class _ChildFinder:
    """Find and list the modules of a package that was sent, in place of a folder; for pkgutil.

    Arguments:
        find_spec: finds a module by its full name.
        ask: returns the controller's list of `(name, is a package)`, or None.
    """

    def __init__(self, find_spec: Callable[[str], Any], ask: Callable[[], Any]) -> None:
        self.find_spec = find_spec
        self._ask = ask

    def iter_modules(self, prefix: str = "") -> list[tuple[str, bool]]:
        """Return `(name, is a package)` of each module."""
        return [(prefix + name, is_package) for name, is_package in self._ask() or ()]


class SourceLoader:
    """Make a module of source text that the controller sent.

    The data files beside the module are not sent: code that opens one fails, with an error that
    names the path which the file has on the controller.

    Arguments:
        path: the module's file on the controller, or NAMESPACE.
        source: its text.
    """

    def __init__(self, path: str, source: str) -> None:
        self.path = path        # importlib.readers expects this name
        self._source = source

    def create_module(self, spec: Any) -> None:
        """Have the import system make an ordinary module."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Execute the source in a module."""
        if "numba" in self._source:
            _register_numba_locator()
        code = compile(self._source, self.path, "exec", dont_inherit=True)
        exec(code, module.__dict__)

    def get_source(self, name: str) -> str:
        """Return the source, so that tracebacks can show its lines (linecache.lazycache)."""
        return self._source

    def get_data(self, path: str) -> bytes:
        """Read a file, for pkgutil. Raises OSError."""
        with open(path, "rb") as file:
            return file.read()

    def get_resource_reader(self, name: str) -> Any:
        """Return a reader of the files beside the module, for importlib.resources.

        Raises FileNotFoundError for a namespace package, which has no folder here.
        """
        if not os.path.isabs(self.path):
            raise FileNotFoundError(
                "the namespace package %s was sent without its data files; to copy its folder, "
                "name that in files=[...] of RemoteExecutor" % name)
        import importlib.readers
        return importlib.readers.FileReader(self)       # type: ignore[arg-type]


class _NumbaLocator:
    """Tell numba where to cache functions of a module that was sent, whose file is not here.

    See `_CacheLocator` in numba.core.caching.

    Attributes:
        folder: the folder of that cache, which exists as long as the slot's shim.
    """

    folder = ""

    def __init__(self, function: Any, source: str) -> None:
        self._line = function.__code__.co_firstlineno
        self._source = source

    @classmethod
    def from_function(cls, function: Any, _path: str) -> Any:
        """Return a locator, or None if the function's module was not sent."""
        loader = getattr(sys.modules.get(function.__module__), "__loader__", None)
        if isinstance(loader, SourceLoader):
            return cls(function, loader.get_source(function.__module__))
        return None

    def ensure_cache_path(self) -> None:
        """Make the folder."""
        os.makedirs(self.get_cache_path(), 0o700, exist_ok=True)

    def get_cache_path(self) -> str:
        """Return the folder."""
        return self.folder

    def get_source_stamp(self) -> Any:
        """Return a value that changes when the source does."""
        return self._source

    def get_disambiguator(self) -> str:
        """Return a text that differs between functions of the same name in one file."""
        return str(self._line)


@functools.cache
def _register_numba_locator() -> None:
    """Add our locator to those that numba tries; do nothing without numba."""
    try:
        caching: Any = __import__("numba.core.caching", fromlist=["caching"])
        base = getattr(caching, "CacheImpl", None) or caching._CacheImpl
        for cache_class in (base, *base.__subclasses__()):
            cache_class._locator_classes = [*cache_class._locator_classes, _NumbaLocator]
    except Exception:       # not installed, or a version that has none of this
        pass


def _explain_missing_file(error: FileNotFoundError) -> str:
    """Return what to do about a missing file that lies beside code on the controller.

    Return "" if the missing file is of any other kind.
    """
    missing = os.fsdecode(error.filename)
    if not os.path.isabs(missing):      # for example, a program that cannot be started
        return ""

    def is_beside(path: str) -> bool:
        """Return whether the missing file lies in the folder of this code, or below."""
        # If the code is a file of this machine, nothing was left behind on the controller.
        if not os.path.isabs(path) or os.path.exists(path):
            return False
        return (missing + os.sep).startswith(os.path.dirname(path) + os.sep)

    # Two cases. The file lies in a package that was sent: the whole package can be copied instead.
    # In sorted order, the outermost package comes first.
    for name, module in sorted([*sys.modules.items()]):
        loader = getattr(getattr(module, "__spec__", None), "loader", None)
        path = loader.path if isinstance(loader, SourceLoader) else ""
        if is_beside(path) and hasattr(module, "__path__"):
            folder = os.path.dirname(path)
            for _ in range(name.count(".")):        # up to the outermost namespace package
                folder = os.path.dirname(folder)
            return ("%s was sent without its data files; to copy all of it, pass files=[%r] to "
                    "RemoteExecutor" % (name.partition(".")[0], folder))

    # Or it lies beside a module, or the script, that the call ran through.
    trace = error.__traceback__
    while trace:
        if is_beside(trace.tb_frame.f_code.co_filename):
            return ("code is sent without the data files beside it; to copy this one, pass "
                    "files=[%r] to RemoteExecutor, and open it as %r" % (
                        missing, os.path.basename(missing)))
        trace = trace.tb_next
    return ""


def _explain_manager(error: BaseException) -> str:
    """Return what to do if unpickling a proxy of a `multiprocessing.Manager` has failed, or ""."""
    trace = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_name == "RebuildProxy":
            kind = trace.tb_frame.f_locals["token"].typeid
            return ("a %s of a multiprocessing.Manager works only in processes that its program "
                    "has started; pass values, and return what is to come back" % kind)
        trace = trace.tb_next
    return ""


# ────────────────────────────────────────────── slot ──────────────────────────────────────────────

_THREAD_VARIABLES = [library + "_THREADS" for library in (
    "OMP_NUM", "MKL_NUM", "OPENBLAS_NUM", "NUMBA_NUM", "BLIS_NUM", "NUMEXPR_NUM", "POLARS_MAX",
    "VECLIB_MAXIMUM")]


class _ShimClient:
    """Ask the shim for what a slot lacks, from any of the slot's threads.

    Of the threads that wait for answers, one reads for all: answers come in any order.
    """

    def __init__(self) -> None:
        import threading
        self._reader = MessageReader(_ANSWERS_FD)      # used by the thread that reads
        self._numbers = itertools.count(1)          # of questions; each `next` is atomic
        self._owner = getpid()
        # Guards the attributes below; notified when a thread has read.
        self._changed = threading.Condition()
        self._reading_thread = 0       # identifier of the thread that reads, or 0
        self._answers: dict[int, Any] = {}      # segments, by the number of the question

    def __call__(self, kind: int, payload: bytes) -> Any:
        """Return the segments of the answer to a question, or None: a report has no answer.

        Raises EOFError if the shim has ended, or if this process is not the slot; MemoryError if
        there is no memory for the answer.
        """
        if kind in REPORTS:
            if getpid() == self._owner:
                write_all(_QUESTIONS_FD, (frame(kind, 0, payload),))
            return None
        # A child that users' code forked shares the pipes, and would take its parent's answers.
        if getpid() != self._owner:
            raise EOFError("only the slot's own process can ask the shim, not one that it forked")
        # A signal handler that raises must not leave half an answer in the pipe.
        blocked = pthread_sigmask(signal.SIG_BLOCK, valid_signals())
        try:
            number = next(self._numbers)
            # A question is short enough for one atomic write, so threads need no lock for it.
            write_all(_QUESTIONS_FD, (frame(kind, number, payload),))
            answer = self._wait_for_answer(number)
        finally:
            pthread_sigmask(signal.SIG_SETMASK, blocked)
        if isinstance(answer, MemoryError):
            raise answer
        return answer

    def _wait_for_answer(self, number: int) -> Any:
        me = _thread.get_ident()
        with self._changed:
            while number not in self._answers:
                # Three cases. Nobody reads: this thread does. Another thread reads: wait until it
                # has. This thread reads already, and a finalizer that ran during that read asks a
                # question of its own: read here, too.
                if self._reading_thread in (0, me):
                    self._read_answers(me)
                else:
                    self._changed.wait()
            return self._answers.pop(number)

    def _read_answers(self, me: int) -> None:
        """Read once, with the lock released, and keep the answers that came for all threads."""
        reading_before = self._reading_thread
        self._reading_thread = me
        self._changed.release()
        try:
            messages = self._reader.read()
        finally:
            self._changed.acquire()
            self._reading_thread = reading_before
            self._changed.notify_all()
        for _kind, number, _tag, segments in messages:
            self._answers[number] = segments


class _Slot:
    """Run calls in this process, one at a time, until no more come.

    Arguments:
        number: the slot's number, from 0.
        config: what CONFIG brought.
    """

    def __init__(self, number: int, pull: _ShimClient, finder: ModuleFinder,
                 config: Mapping[str, Any]) -> None:
        self._machine = config["machine"]
        self._number = number
        self._pull = pull
        self._finder = finder
        self._is_ready = not config["initializer"]      # whether no initializer is left to run
        _Budget.left = config["max_tasks_per_child"] or NEVER
        self._functions: dict[int, _SlotFunction] = {}      # by identifier, as calls name them
        self._permit = b""      # read already, of a call that has still to come

    def run(self) -> None:
        """Serve until the pipe of calls ends, or as many calls have run as one process may run."""
        reader = FrameReader(_CALLS_FD)
        try:
            while True:
                for kind, ident, data in reader.read():
                    if kind == FORGET:
                        self._functions.pop(ident, None)
                        script.drop_unneeded(self._functions.values())
                    elif self._read_permit(ident):
                        self._execute_call(ident, data)
                        _Budget.left -= 1
                        if _Budget.left <= 0:       # the shim takes back the calls that wait here
                            write_all(_RESULTS_FD, (frame(RETIRED),))
                            return
        except EOFError:
            pass
        except OSError as error:
            sys.stderr.write("executors: the slot lost its connection to the shim (%s); did the "
                             "call close file descriptors 3 to 7?\n" % error)
            _exit(1)

    def _read_permit(self, ident: int) -> bool:
        """Read the permit of a call. Return whether there is one: the call was not taken back.

        Permits come in the order of their calls, and the shim removes those of calls that it takes
        back. So the permit that is read may be that of a later call, and is kept for it.
        """
        if not self._permit:
            try:
                self._permit = read(_PERMITS_FD, IDENTIFIER.size)
            except BlockingIOError:
                return False
        if self._permit != IDENTIFIER.pack(ident):
            return False
        self._permit = b""
        return True

    def _execute_call(self, ident: int, data: bytes) -> None:
        """Run a call and send its result."""
        if not self._is_ready:
            self._run_initializer(ident)
        started, waits = monotonic(), len(_copy_waits)
        kind, packed = self._compute_outcome(ident, data)
        _end_lines()
        seconds = monotonic() - started - sum(_copy_waits[waits:])
        microseconds = int(max(seconds, 0) * 1e6)
        tag = (self._number << SLOT_SHIFT) + microseconds
        write_all(_RESULTS_FD, message(kind, ident, tag, packed))

    def _run_initializer(self, ident: int) -> None:
        """Run the pool's initializer, before the first call, `ident`.

        If it raises, report that in place of the call's result, and run no call until the shim
        closes the pipe. Raises EOFError then.
        """
        try:
            segments = self._pull(FUNCTION, IDENTIFIER.pack(INITIALIZER_ID))
            script.run_initializer(_SlotFunction(segments))
            self._is_ready = True
        except BaseException as error:
            import traceback
            *_, place = traceback.extract_tb(error.__traceback__)
            words = "%s (%s, line %s, in %s)" % (
                describe(self.add_remedy(error)), place.filename, place.lineno, place.name)
            packed = words.encode("utf-8", "replace")[:STDERR_TAIL]
            write_all(_RESULTS_FD, message(INITIALIZER_FAILED, ident, 0, packed))
            while read(_CALLS_FD, READ_SIZE):
                pass
            raise EOFError from None

    def _compute_outcome(self, ident: int, data: bytes) -> tuple[int, Packed]:
        """Run a call. Return the kind and the packed body of its result, as `pack_outcome` does."""
        tag, is_long = TAG.unpack_from(data, HEADER_SIZE)
        try:
            if tag not in self._functions:
                self._functions[tag] = _SlotFunction(self._pull(FUNCTION, IDENTIFIER.pack(ident)))
            function = self._functions[tag].get_function()
            body = self._pull(CALL, IDENTIFIER.pack(ident)) if is_long else (data[BODY_START:],)
            args, kwargs = unpack(body)
            del body
        except BaseException as error:
            return _pack_failure(error, "arguments")
        owner = getpid()
        ok, value = run_call(function, args, kwargs or {})
        if getpid() != owner:
            # The call forked, and its child returned here. A child must not serve the slot's pipes.
            is_success = ok or isinstance(value, SystemExit) and not value.code
            _exit(0 if is_success else 1)
        del args, kwargs
        if ok:
            return pack_outcome(True, value)
        return _pack_failure(value)

    def add_remedy(self, error: BaseException) -> BaseException:
        """Add to an error about a missing file or module what to do about it. Return the error."""
        try:
            self._add_remedy(error)
        except Exception:       # attributes of users' modules and errors may raise anything
            pass
        return error

    def _add_remedy(self, error: BaseException) -> None:
        note = _explain_manager(error)
        if isinstance(error, FileNotFoundError) and error.filename is not None:
            note = _explain_missing_file(error)
        if isinstance(error, ModuleNotFoundError) and error.name:
            remedy = self._finder.explain_missing_module(error.name) or (
                "install it there, or name an interpreter that has it by python=/path/to/python in "
                "the worker's record")
            note = "on %s, with %s: %s" % (self._machine, sys.executable, remedy)
        if not note:
            return
        if hasattr(error, "add_note"):
            error.add_note(note)
        elif isinstance(error, ModuleNotFoundError):        # before Python 3.11
            error.args = ("%s (%s)" % (error.msg, note),)


def _pack_failure(error: BaseException, stage: str = "run") -> tuple[int, Packed]:
    """Pack what a call raised, as `pack_outcome` does.

    A missing module is sent as MISSING_MODULE, headed by its name: perhaps another machine has it.
    """
    kind, packed = pack_outcome(False, error, stage)
    if isinstance(error, ModuleNotFoundError) and error.name and type(packed) is bytes:
        return MISSING_MODULE, error.name.encode() + b"\0" + packed
    return kind, packed


def _run_keeper(shim: int, results: int, max_fd: int,
                run_slot: Callable[[int], object]) -> None:
    """Turn a fresh fork of the shim into a keeper: fork the slot, and end in the way it ends.

    The keeper leads a session, which the slot is in. It adopts processes that the slot's processes
    leave behind. So all children of the slot are its own, and killing the keeper with all its
    descendants leaves nothing of the slot.

    Arguments:
        shim: the shim's process.
        results: the slot's descriptor of results. If no slot can be forked, it gets the reason.
        max_fd: the highest descriptor that the shim has had.
        run_slot: runs the slot; its argument is the keeper's process.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):      # they are meant for the slot
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGCHLD, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)       # die with the shim, even if that is killed
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != shim:        # the shim died before we asked to die with it
        return
    keeper = os.getpid()
    try:
        slot = os.fork()
    except OSError as error:
        os.write(results, str(error).encode())
        return
    if slot == 0:
        _exit_after(lambda: run_slot(keeper))
    os.closerange(_CALLS_FD, max_fd + 1)
    pid = status = 0
    while pid != slot:      # the others are processes that were adopted
        pid, status = os.wait()
    if os.WIFSIGNALED(status):
        # Die by the same signal, for the shim to report, without leaving another core file.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        killer = os.WTERMSIG(status)
        if killer != signal.SIGKILL:
            signal.signal(killer, signal.SIG_DFL)
        os.kill(keeper, killer)
    os._exit(os.WEXITSTATUS(status))


def _run_slot(scratch: str, keeper: int, number: int, ends: Sequence[int], max_fd: int,
             config: Mapping[str, Any]) -> None:
    """Turn a fresh fork of its keeper into a slot, and run it until it ends.

    Arguments:
        scratch: the directory that it runs in.
        number: the slot's number, from 0.
        ends: descriptors that become stdout, stderr, and _CALLS_FD to _ANSWERS_FD.
        max_fd: the highest descriptor that is open.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)       # die with the keeper
    for place, fd in enumerate(ends, 1):
        os.dup2(fd, place, inheritable=place < _CALLS_FD)
    os.write(_RESULTS_FD, _STARTED)
    os.closerange(_ANSWERS_FD + 1, max_fd + 1)
    _open_output()
    pull = _ShimClient()
    if config["files"] and not _store_files(pull, scratch, config["files"]):
        return
    _set_environment(number, config, os.path.join(scratch, ".modules"))
    _NumbaLocator.folder = os.path.join(scratch, ".numba")
    os.nice(config["nice"])
    finder = ModuleFinder(pull, scratch)
    main = sys.modules["__main__"] = types.ModuleType("__main__")

    def find(name: str) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if name == "__file__" and caller.endswith(".spawn"):        # of multiprocessing, of loky
            return finder.save_script()
        return script.find_or_ask(pull, name)

    vars(main)["__getattr__"] = find
    sys.meta_path.insert(0, finder)
    sys.path_hooks.insert(0, finder.get_child_finder)
    if os.getppid() != keeper:      # the keeper died before we asked to die with it
        return
    slot = _Slot(number, pull, finder, config)
    _explainers.append(slot.add_remedy)
    slot.run()
    import atexit
    threading: Any = sys.modules["threading"]
    threading._shutdown()       # wait for the task's threads, as any process does when it ends
    atexit._run_exitfuncs()


def _open_output() -> None:
    """Let what is printed leave a slot line by line, whatever characters it has."""
    for fd, name in ((1, "stdout"), (2, "stderr")):
        stream = _Stream(open(fd, "wb", closefd=False), "utf-8", "backslashreplace",
                         line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, "__%s__" % name, stream)


def _set_environment(number: int, config: Mapping[str, Any], modules: str) -> None:
    """Set the environment variables of a slot that differ from the account's own.

    By default, numerical libraries start a thread for each core in each slot. Here, the slots share
    the cores.

    Arguments:
        number: the slot's number, from 0.
        modules: the folder where child processes find the modules that were sent.
    """
    threads = str(max(1, _count_cores() // config["slots"]))
    os.environ.update({name: threads for name in _THREAD_VARIABLES if name not in os.environ})
    place = {"slot": number, "machine": config["machine"]}
    os.environ.update({"EXECUTORS_" + name.upper(): str(value) for name, value in place.items()})
    env = {name: value.format(**place) for name, value in config["env"].items()}
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.path.append(modules)
    os.environ.update(env)
    _prepend_to_pythonpath(modules)
    time.tzset()        # in case TZ is among them


# ────────────────────────────────────────────── shim ──────────────────────────────────────────────


class _StreamedMessage:
    """A message that slots pull: a function, an answer of the controller, or a long call.

    Its frames may still be coming from the controller. A slot that asks gets those that are here at
    once, and the others as they come.

    Arguments:
        frames: the frames of a message that is complete.
        is_kept: whether frames are kept for other slots; not those of a call, which one slot runs.
    """

    def __init__(self, frames: Iterable[bytes] = (), is_kept: bool = True) -> None:
        self._frames = [*frames]
        self._is_kept = is_kept
        self._missing = 0       # bytes of PARTs still to come
        self.held_size = 0           # bytes of frames kept here
        # Slots that get what comes, and the numbers of their questions.
        self._receivers: list[tuple[_SlotProcess, int]] = []

    def add_frame(self, data: bytes) -> bool:
        """Take a frame that has come; return whether it is the last."""
        if data[0] == PART:
            self._missing -= len(data) - HEADER_SIZE
        else:
            self._missing = sum(_segment_lengths(data))
        for child, number in self._receivers:
            child.answer(number, data)
        if self._is_kept or not self._receivers:
            self._frames.append(data)
            self.held_size += len(data)
        is_last = not self._missing
        if is_last:
            self._receivers.clear()
        return is_last

    def send_to(self, child: _SlotProcess, number: int) -> None:
        """Answer a slot's question with the frames that are here, and with those that come."""
        for data in self._frames:
            child.answer(number, data)
        if self._missing or not self._frames:
            self._receivers.append((child, number))
        if not self._is_kept:
            self._frames.clear()
            self.held_size = 0


class _Call:
    """A call that the shim has: its first frame, which goes to a slot, and what the slot pulls.

    Arguments:
        head: the first frame of the message.
        function: the function that it calls.
    """

    __slots__ = ("function", "head", "ident", "streamed")

    def __init__(self, ident: int, head: bytes, function: _StreamedMessage) -> None:
        self.ident = ident
        self.head = head
        self.function = function
        self.streamed = _StreamedMessage(is_kept=False) if head[COUNT_INDEX] else _NO_MESSAGE


_NO_MESSAGE = _StreamedMessage()      # of calls that are a single frame


class _SlotProcess:
    """The shim's end of one slot: its process and the pipes to it.

    Arguments:
        number: the slot's number, from 0.
        max_fd: the highest descriptor that the shim has had.
        scratch: the directory that the slot runs in.
        config: what CONFIG brought.

    Raises OSError if the keeper or the slot cannot be forked.
    """

    def __init__(self, number: int, max_fd: int, scratch: str, config: Mapping[str, Any]) -> None:
        self.number = number
        self.streams: dict[int, bytes] = {}     # by descriptor, a line that has not ended yet
        # By descriptor, when a state of a progress bar was last passed on, and which.
        self.progress_states: dict[int, tuple[float, bytes]] = {}
        self.ended: set[int] = set()            # descriptors that have reached end of file
        self.stderr_tail = b""                   # the end of its stderr, since it was last idle
        self.calls: dict[int, _Call] = {}       # by identifier, in the order they were sent
        self.last_answered = 0                      # the call whose result came last, or is coming
        self.result_bytes_left = 0                      # bytes of that result still to come
        self.is_killed = False                  # because of a KILL
        self.is_retired = False                 # it takes no more calls, and is about to end
        self.kill_at = NEVER                    # when to send SIGKILL after SIGTERM
        self._fork(max_fd, scratch, config)

    def _fork(self, max_fd: int, scratch: str, config: Mapping[str, Any]) -> None:
        shim = os.getpid()
        pipes: list[tuple[int, int]] = []
        try:
            pipes.extend(os.pipe() for _ in _SLOT_ENDS)      # keeps those made before one fails
            self.max_fd = max(max_fd, *map(max, pipes))
            theirs = [pipe[end] for pipe, end in zip(pipes, _SLOT_ENDS)]
            self.pid = os.fork()
        except OSError:
            for fd in itertools.chain(*pipes):
                os.close(fd)
            raise
        if self.pid == 0:
            _exit_after(lambda: _run_keeper(
                shim, theirs[_RESULTS_FD - 1], self.max_fd, lambda keeper: _run_slot(
                    scratch, keeper, self.number, theirs, self.max_fd, config)))
        ours = [pipe[1 - end] for pipe, end in zip(pipes, _SLOT_ENDS)]
        out, err, calls, results, _, questions, answers = ours
        self.permits = pipes[_PERMITS_FD - 1]      # both ends: a permit that is read is taken back
        theirs.remove(self.permits[0])
        for fd in theirs:
            os.close(fd)
        self.fds = [*ours, self.permits[0]]
        # This takes as long as a fork. If we did not wait, we could not tell how many slots fit.
        said = os.read(results, len(_STARTED))      # and no more: a frame may follow
        if said != _STARTED:
            said += os.read(results, STDERR_TAIL)
            for fd in self.fds:
                os.close(fd)
            raise OSError(said.decode() or "its process died at once")
        for fd in self.fds:
            os.set_blocking(fd, False)
        enlarge_pipe(results)
        enlarge_pipe(answers)
        self.outbox = Outbox(calls)
        self.answers = Outbox(answers)
        self.results = FrameReader(results)
        self.questions = FrameReader(questions)
        self.streams = {out: b"", err: b""}
        self.stderr = err

    def close_calls(self) -> None:
        """Close the pipe of calls, so that the slot ends once it has run those it has."""
        if self.outbox.fd in self.fds:
            self.fds.remove(self.outbox.fd)
            os.close(self.outbox.fd)
            self.outbox.fd = -1     # an outbox without a descriptor writes nothing more

    def answer(self, number: int, data: bytes) -> None:
        """Queue a frame as part of the answer to the slot's question of this number."""
        body = memoryview(data)[HEADER_SIZE:]
        self.answers.put((HEADER.pack(data[0], number, len(body)), body))

    def backlog_size(self) -> int:
        """Return how many bytes wait until the slot takes them, for its pipes and its next call."""
        size = self.outbox.size + self.answers.size
        if self.calls:
            next_call = next(iter(self.calls.values()))
            size += next_call.streamed.held_size
        return size


# The end of each pipe that the slot has: 1, to write, or 0, to read. They are stdout and stderr,
# then _CALLS_FD to _ANSWERS_FD.
_SLOT_ENDS = 1, 1, 0, 1, 0, 1, 0


class Shim:
    """Supervise the slots of one machine for one controller, in one thread around `poll`.

    Arguments:
        link_in: descriptor of the frames that come from the controller.
        link_out: descriptor of the frames that go to it.
        modules: {name: packed answer for `ModuleFinder`}, modules that are here from the start.
        scratch: the directory that slots run in.
        keepers: memory that the guardian shares. It holds the process of each slot's keeper.
    """

    def __init__(self, link_in: int, link_out: int, modules: dict[str, Packed],
                 scratch: str, keepers: Any) -> None:
        self._reader = FrameReader(link_in)
        self._outbox = Outbox(link_out)
        self._poll = select.poll()
        self._fd_handlers: dict[int, Callable[[], object]] = {}        # by descriptor
        # By kind and text of the question, what the controller answered; for all slots.
        self._answers: dict[Any, _StreamedMessage] = {
            (FIND_MODULE, name): _StreamedMessage(_make_frames(packed))
            for name, packed in modules.items()}
        self._functions: dict[int, _StreamedMessage] = {}   # of calls; and the initializer
        self._arriving: dict[int, _StreamedMessage] = {}     # by the identifier of their frames
        self._children: dict[int, _SlotProcess] = {}      # by process
        self._queue: collections.deque[_Call] = collections.deque()     # those without a slot
        # Until CONFIG tells the rest.
        self._config: dict[str, Any] = {"lease": 60.0, "is_ending": False, "files": {}}
        self._scratch = scratch
        self._keepers = keepers
        self._guardian = os.getppid()
        self._last_heard = monotonic()       # when bytes of the controller last came
        self._last_said = self._last_heard      # when there was last something to send to it
        self._last_progress = self._last_heard       # when slots last took some of a long backlog
        self._must_end = False              # whether to end; signal handlers set it, too
        self._unprinted_bytes = 0             # bytes of output sent, until OUTPUT_ACK reports them
        self._paused = False, False       # what is not read from slots now: all; output
        # The numbers of a slot's descriptors must not be those of our pipes.
        while os.open(os.devnull, os.O_RDONLY) <= _ANSWERS_FD:
            pass
        os.set_blocking(link_in, False)
        os.set_blocking(link_out, False)
        self._wake_fd, wake_out = _make_wake_pipe()
        self._max_fd = max(link_in, link_out, wake_out)
        self._message_handlers = {
            CALL: self._on_call, PART: self._on_part, FUNCTION: self._on_function,
            FORGET: self._on_forget, KILL: self._on_kill, RECALL: self._on_recall,
            PING: self._on_ping, ANSWER: self._on_part, CONFIG: self._on_config,
            OUTPUT_ACK: self._on_printed, QUIT: self._on_quit}
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGCONT, self._on_continue)

    def _on_terminate(self, *_: object) -> None:
        self._must_end = True

    def _on_continue(self, *_: object) -> None:
        """End if the guardian is dead: the kernel sends SIGCONT then."""
        if os.getppid() != self._guardian:
            self._must_end = True

    def run(self) -> None:
        """Serve until the controller is gone, then leave nothing behind."""
        self._watch(self._wake_fd, self._on_signal)
        self._watch(self._reader.fd, self._on_link)
        greeting = GREETING.pack(_count_cores(), os.getpid(), self._guardian)
        self._send(HELLO, 0, greeting + "\n".join(platform_facts()).encode())
        try:
            self._flush()
            # Only after the greeting, for importing ctypes takes as long as a fork. SIGCONT,
            # because it reaches a stopped process, too.
            _prctl(_PR_SET_CHILD_SUBREAPER, 1)
            _prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
            self._on_continue()     # the guardian may have died before
            while not self._must_end:
                self._run_once()
        except (EOFError, ConnectionError):
            pass
        except (FrameError, OSError) as error:
            sys.stderr.write("executors: the worker's shim ends: %s\n" % error)
        finally:
            self._shut_down()

    def _run_once(self) -> None:
        """Wait for an event, handle it, and write what it has queued."""
        lease = self._config["lease"]
        children = self._children.values()
        if self._reader.fd not in self._fd_handlers:
            # We do not listen, see `_flush`: so the controller's silence says nothing.
            self._last_heard = monotonic()
            lease = TERM_SECONDS
        wake_at = min([self._last_heard + lease, *(child.kill_at for child in children)])
        ready = self._poll.poll(max(0, wake_at - monotonic()) * 1000 + 1)
        for fd, _ in reversed(ready):       # so that output comes before results, see `_on_results`
            if fd in self._fd_handlers:
                self._fd_handlers[fd]()
        self._assign_calls()
        self._acknowledge_bytes()
        self._flush()
        now = monotonic()
        for child in children:
            if now >= child.kill_at:
                child.kill_at = NEVER
                signal_tree(child.pid, signal.SIGKILL)
        is_done = self._config["is_ending"] and not children
        if is_done or now >= self._last_heard + self._config["lease"]:
            self._must_end = True

    def _shut_down(self) -> None:
        """End all slots: idle ones run their atexit functions, busy ones get SIGTERM, SIGKILL."""
        for child in self._children.values():
            child.close_calls()
            if child.calls:
                signal_tree(child.pid, signal.SIGTERM)
        deadline = monotonic() + TERM_SECONDS
        while self._children and monotonic() < deadline:
            if select.select([self._wake_fd], [], [], max(0, deadline - monotonic()))[0]:
                os.read(self._wake_fd, 4096)
            for pid, _ in _reap_children():
                if pid in self._children:
                    self._drain(self._children.pop(pid))
        kill_descendants(self._children)
        for child in self._children.values():
            self._drain(child)
        try:
            while not self._outbox.flush() and monotonic() < deadline + TERM_SECONDS:
                select.select([], [self._outbox.fd], [], TERM_SECONDS)
        except OSError:
            pass        # the controller reads no more
        _remove(self._scratch)
        send_signal(self._guardian, signal.SIGCONT)     # it may be stopped, and acts now

    # What is watched

    def _watch(self, fd: int, handler: Callable[[], object], events: int = select.POLLIN) -> None:
        self._fd_handlers[fd] = handler
        self._poll.register(fd, events)

    def _unwatch(self, fd: int) -> None:
        if self._fd_handlers.pop(fd, None):
            self._poll.unregister(fd)

    # What is written

    def _send(self, kind: int, ident: int, payload: bytes = b"") -> None:
        self._outbox.put((frame(kind, ident, payload),))

    def _acknowledge_bytes(self) -> None:
        """Tell the controller that its bytes arrive, unless there is something else to send.

        Over a slow line, its pings wait for a long time behind long messages.
        """
        if self._outbox.size:
            self._last_said = monotonic()
        elif self._last_heard > self._last_said + self._config["lease"] / MOVED_SHARE:
            self._last_said = self._last_heard
            self._send(MOVED, 0)

    def _flush(self) -> None:
        """Write what is queued; stop reading what would make a long queue longer.

        Two cases. While the link is slow, we do not read from slots. While a slot has a long
        backlog and goes on taking it, we do not read the link. But a slot that takes nothing (say,
        because somebody has stopped it) must not keep us from hearing the controller.
        """
        backlog = 0
        for child in self._children.values():
            for outbox in (child.outbox, child.answers):
                if outbox.size:
                    self._flush_outbox(outbox)
            backlog = max(backlog, child.backlog_size())
        if self._outbox.size:
            self._flush_outbox(self._outbox)
        paused = self._outbox.size > MAX_BACKLOG, self._unprinted_bytes > MAX_FRAME
        if paused != self._paused:
            self._paused = paused
            for child in self._children.values():
                self._watch_slot(child)
        now = monotonic()
        if backlog <= MAX_BACKLOG:
            self._last_progress = now
        is_full = backlog > MAX_BACKLOG and now < self._last_progress + TERM_SECONDS
        if is_full:
            self._unwatch(self._reader.fd)
        elif self._reader.fd not in self._fd_handlers:
            self._watch(self._reader.fd, self._on_link)

    def _flush_outbox(self, outbox: Outbox) -> None:
        """Write what a descriptor takes; wake up when it takes more, if something is left."""
        size = outbox.size
        try:
            is_empty = outbox.flush()
        except OSError:
            if outbox is self._outbox:
                raise
            is_empty = True     # the slot has died, which SIGCHLD reports, or closed its pipes
        if size > MAX_BACKLOG and outbox.size < size:
            self._last_progress = monotonic()
        if is_empty:
            self._unwatch(outbox.fd)
        elif outbox.fd not in self._fd_handlers:
            self._watch(outbox.fd, lambda: None, select.POLLOUT)

    def _watch_slot(self, child: _SlotProcess) -> None:
        """Watch a slot's results and output, except what is not read now."""
        is_all_paused, is_output_paused = self._paused
        for fd in (child.results.fd, *child.streams):       # `_on_results` relies on the order
            is_output = fd in child.streams
            if is_all_paused or is_output and is_output_paused:
                self._unwatch(fd)
            elif fd not in child.ended:
                handler = self._on_output if is_output else self._on_results
                self._watch(fd, functools.partial(handler, child, fd))

    # From the controller

    def _on_link(self) -> None:
        self._last_heard = monotonic()
        for kind, ident, data in self._reader.read():
            self._message_handlers[kind](ident, data)

    def _on_call(self, ident: int, data: bytes) -> None:
        function = self._functions[IDENTIFIER.unpack_from(data, HEADER_SIZE)[0]]
        call = _Call(ident, data, function)
        self._queue.append(call)
        if data[COUNT_INDEX]:
            self._arriving[ident] = call.streamed
            self._on_part(ident, data)

    def _on_function(self, ident: int, data: bytes) -> None:
        self._functions[ident] = self._arriving[ident] = _StreamedMessage()
        self._on_part(ident, data)

    def _on_part(self, ident: int, data: bytes) -> None:
        streamed = self._arriving.get(ident)
        if streamed is None:      # of a call that ended, or was taken back, before all of it came
            return
        is_last = streamed.add_frame(data)
        if is_last:
            del self._arriving[ident]

    def _on_forget(self, ident: int, data: bytes) -> None:
        self._functions.pop(ident, None)        # calls that wait for a slot still refer to it
        for child in self._children.values():
            child.outbox.put((data,))

    def _on_kill(self, ident: int, _data: bytes) -> None:
        """End a call, and report KILLED: at once, or when its slot has died.

        Four cases. The call runs: its slot is killed, and reports. The slot is sending its result
        already: that arrives instead of KILLED. The call waits, in a slot or here: it is dropped.
        Its result has been sent: KILLED follows that.
        """
        for child in self._children.values():
            if ident not in child.calls:
                continue
            # Without permits, the slot starts no other call while we look. So a call that it still
            # has, and that has no result yet, is the one that runs.
            self._take_back(child)
            while self._on_results(child):
                pass
            if ident in child.calls:
                is_sending = child.last_answered == ident and child.result_bytes_left
                if not is_sending:
                    child.is_killed = True
                    child.kill_at = monotonic() + TERM_SECONDS
                    signal_tree(child.pid, signal.SIGTERM)
                return
        for call in self._queue:
            if call.ident == ident:
                self._queue.remove(call)
                self._arriving.pop(ident, None)
                break
        self._send(KILLED, ident, DEATH.pack(NO_SLOT, 0))

    def _on_recall(self, wanted: int, _data: bytes) -> None:
        """Give back up to `wanted` calls that have not started, those that came last."""
        for child in self._children.values():
            if len(child.calls) > 1 and len(self._queue) < wanted:
                self._take_back(child)
        number = min(wanted, len(self._queue))
        idents = [self._queue.pop().ident for _ in range(number)]
        for ident in idents:
            self._arriving.pop(ident, None)
        self._send(RECALLED, 0, b"".join(map(IDENTIFIER.pack, reversed(idents))))

    def _on_ping(self, ident: int, _data: bytes) -> None:
        self._send(PONG, ident)

    def _on_config(self, _ident: int, data: bytes) -> None:
        self._config.update(pickle.loads(data[HEADER_SIZE:]))
        if self._config["files"]:
            self._fork_slot()       # the first has them copied; it says when they are there

    def _on_quit(self, _ident: int, _data: bytes) -> None:
        """End once all slots have ended as processes do, however long their threads may take."""
        self._config["is_ending"] = True
        for child in self._children.values():
            self._unwatch(child.outbox.fd)
            child.close_calls()
            signal_tree(child.pid, signal.SIGCONT)      # in case somebody has stopped it

    def _on_printed(self, size: int, _data: bytes) -> None:
        """Note that the controller has printed `size` bytes, the frame's identifier."""
        self._unprinted_bytes -= size

    # Calls and slots

    def _assign_calls(self) -> None:
        """Share the queue out evenly, forking slots as needed. No slot is idle while calls wait."""
        live = [child for child in self._children.values()
                if not child.is_killed and not child.is_retired]
        if self._queue:
            idle = sum(not child.calls for child in live)
            retired = sum(child.is_retired for child in self._children.values())
            room = self._config["slots"] - len(live) - retired
            for _ in range(min(room, len(self._queue) - idle)):
                new_child = self._fork_slot()
                if not new_child:
                    break
                live.append(new_child)
            waiting = len(self._queue) + sum(len(child.calls) for child in live)
            for child in live:
                share = -(-waiting // len(live))        # rounded up
                self._send_calls(child, min(share, MAX_CALLS_IN_SLOT))
        elif len(live) > 1:
            # All calls are in slots: one that has several may have some for an idle one.
            laden = max(live, key=lambda child: len(child.calls))
            is_uneven = len(laden.calls) > 1 and not all(child.calls for child in live)
            if is_uneven and self._take_back(laden):
                self._assign_calls()

    def _send_calls(self, child: _SlotProcess, level: int) -> None:
        """Give a slot calls from the queue until it has `level` of them."""
        number = min(level - len(child.calls), len(self._queue))
        calls = [self._queue.popleft() for _ in range(number)]
        if not calls:
            return
        # Permits go first: a slot takes a call without a permit for one that was taken back.
        os.write(child.permits[1], b"".join([IDENTIFIER.pack(call.ident) for call in calls]))
        child.outbox.put([call.head for call in calls])
        child.calls.update((call.ident, call) for call in calls)

    def _take_back(self, child: _SlotProcess) -> bool:
        """Return all calls that a slot has not started to the queue; return if there were any."""
        try:
            permits = os.read(child.permits[0], MAX_CALLS_IN_SLOT * IDENTIFIER.size)
        except BlockingIOError:
            return False
        calls = [child.calls.pop(ident) for (ident,) in IDENTIFIER.iter_unpack(permits)]
        self._queue.extendleft(reversed(calls))
        return True

    def _fork_slot(self) -> _SlotProcess | None:
        """Fork one more slot. If that fails, return None and make do with the slots there are."""
        taken = {child.number for child in self._children.values()}
        number = next(number for number in itertools.count() if number not in taken)
        try:
            child = _SlotProcess(number, self._max_fd, self._scratch, self._config)
        except OSError as error:
            self._limit_slots(str(error))
            return None
        self._max_fd = child.max_fd
        self._children[child.pid] = child
        if number < MAX_KEEPERS:
            PROCESS.pack_into(self._keepers, number * PROCESS.size, child.pid)
        self._watch_slot(child)
        self._watch(child.questions.fd, functools.partial(self._on_question, child))
        return child

    def _limit_slots(self, why: str) -> None:
        """Make do with the slots there are, as no more can be started; tell the controller."""
        count = len(self._children)
        if count < self._config["slots"]:       # one that is being killed may have left no room
            self._config["slots"] = count
            self._send(SLOT_COUNT, count, why.encode("utf-8", "replace"))

    # From the slots

    def _on_results(self, child: _SlotProcess, polled: int = -1) -> bool:
        """Pass on the results that one read brings, after what was printed before them.

        A call prints to one pipe, and then sends its result to another. `poll` looks at results
        before output. So with a result it also reports what was printed before that, and
        `_run_once` has passed this on by now. A result that came later may have output that `poll`
        has not seen: that output is read here.

        Arguments:
            polled: the descriptor of results if `poll` has reported it; otherwise -1.

        Return whether there were any.
        """
        try:
            frames = child.results.read()
        except BlockingIOError:
            return False
        except (EOFError, FrameError):      # the slot has ended, or closed its descriptors
            self._on_end_of_file(child, child.results.fd)
            return False
        may_have_more_output = polled < 0 or len(frames) > 1
        _, is_output_paused = self._paused
        if may_have_more_output and not is_output_paused:
            for fd in child.streams:
                self._on_output(child, fd)
        if frames and frames[-1][0] == RETIRED:
            frames.pop()
            child.is_retired = True
            self._take_back(child)
        for kind, ident, data in frames:
            if kind == STORED:
                self._on_stored(data[HEADER_SIZE:])
                continue
            child.last_answered = ident
            if kind == PART:
                child.result_bytes_left -= len(data) - HEADER_SIZE
            else:
                child.result_bytes_left = sum(_segment_lengths(data))
            if not child.result_bytes_left:
                child.calls.pop(ident, None)
                self._arriving.pop(ident, None)
        self._outbox.put([data for _kind, _ident, data in frames])
        if not child.calls:     # nothing runs there, so a line that has not ended will not end
            child.stderr_tail = b""
            for fd, text in child.streams.items():
                self._pass_output(child, fd, len(text))
        return True

    def _on_stored(self, problem: bytes) -> None:
        """Let all other slots run where the first one has linked what `files=` names."""
        if not problem:
            _enter(self._scratch)
        self._config["files"] = {}

    def _on_end_of_file(self, child: _SlotProcess, fd: int) -> None:
        """Stop watching a descriptor that has reached end of file."""
        child.ended.add(fd)
        self._unwatch(fd)

    def _on_output(self, child: _SlotProcess, fd: int) -> bool:
        """Read output once, and pass on the lines that have ended. Return whether there was any."""
        try:
            chunk = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return False
        if not chunk:
            self._on_end_of_file(child, fd)
        elif fd == child.stderr:
            child.stderr_tail = (child.stderr_tail + chunk)[-STDERR_TAIL:]
        text = child.streams[fd] + chunk
        cut = text.rfind(b"\n") + 1 if chunk else len(text)
        # Two cases of a line that does not end: a progress bar, which writes it anew after each
        # `\r`, and one that grows too long to be kept.
        if not cut and b"\r" in text:
            text = self._replace_progress(child, fd, text)
        child.streams[fd] = text
        if not cut and len(text) >= MAX_INLINE:
            cut = _find_cut(text)
        self._pass_output(child, fd, cut)
        return bool(chunk)

    def _replace_progress(self, child: _SlotProcess, fd: int, text: bytes) -> bytes:
        r"""Return what counts of a line that `\r` has begun anew: its last state.

        Pass that on as a line of its own, unless one was passed on less than PROGRESS_SECONDS ago.
        """
        now = monotonic()
        state = _replace_lines(text)
        passed_at, passed = child.progress_states.setdefault(fd, (now, b""))
        if state not in (b"", passed) and now > passed_at + PROGRESS_SECONDS:
            child.progress_states[fd] = now, state
            self._send_output(child, fd, state + b"\n")
        ending = b"\r" if text.endswith(b"\r") else b""
        return b"\r" + state + ending

    def _pass_output(self, child: _SlotProcess, fd: int, size: int) -> None:
        """Pass on `size` bytes of the text that is kept of a stream."""
        text = child.streams[fd][:size]
        child.streams[fd] = child.streams[fd][size:]
        if b"\r" in text:
            text = _replace_lines(text)
            _, passed = child.progress_states.pop(fd, (0.0, b""))
            first, _, rest = text.partition(b"\n")
            if passed and first == passed:      # as the last state of a progress bar
                text = rest
        if text:
            self._send_output(child, fd, text)

    def _send_output(self, child: _SlotProcess, fd: int, text: bytes) -> None:
        if self._config["output"]:
            self._send(OUTPUT, 2 if fd == child.stderr else 1, text)
            self._unprinted_bytes += len(text)

    def _on_question(self, child: _SlotProcess) -> None:
        try:
            for kind, number, data in child.questions.read():
                self._answer_question(child, kind, number, data)
        except BlockingIOError:
            pass
        except (EOFError, *DECODE_ERRORS):       # users' code has written to the pipe, or closed it
            self._unwatch(child.questions.fd)

    def _answer_question(self, child: _SlotProcess, kind: int, number: int, data: bytes) -> None:
        # Three cases. It is a report. The controller answers, once for all slots. Or it is about
        # what is here: the initializer, or a function or the arguments of a call of the slot.
        if kind in REPORTS:
            self._send(kind, child.number, data[HEADER_SIZE:])
            return
        if kind in QUESTIONS:
            key: Any = kind, data[HEADER_SIZE:].decode()
            if kind == FIND_NAME:        # what a name stands for may have changed since
                key = *key, child.pid, number
            if key not in self._answers:
                ident = FIRST_QUESTION_ID + len(self._answers)
                self._answers[key] = self._arriving[ident] = _StreamedMessage()
                self._send(kind, ident, data[HEADER_SIZE:])
            self._answers[key].send_to(child, number)
            return
        ident, = IDENTIFIER.unpack_from(data, HEADER_SIZE)
        if ident == INITIALIZER_ID:
            self._functions[ident].send_to(child, number)
            return
        call = child.calls.get(ident)
        if call:
            streamed = call.streamed if kind == CALL else call.function
            streamed.send_to(child, number)

    def _on_signal(self) -> None:
        """Reap children that have died: report slots, and kill what they left behind."""
        os.read(self._wake_fd, 4096)
        for pid, status in _reap_children():
            if pid in self._children:
                self._on_slot_exit(self._children.pop(pid), status)
        kill_children(spare=self._children)

    def _drain(self, child: _SlotProcess) -> None:
        """Pass on all that a dead slot has left in its pipes."""
        while self._on_results(child):
            pass
        for fd in child.streams:
            while self._on_output(child, fd):
                pass
            self._pass_output(child, fd, len(child.streams[fd]))

    def _on_slot_exit(self, child: _SlotProcess, status: int) -> None:
        """Report the call that a dead slot ran; put those it had not started into the queue."""
        self._send(WAITING, child.number)       # it no longer does, if it did
        if child.number < MAX_KEEPERS:
            PROCESS.pack_into(self._keepers, child.number * PROCESS.size, 0)
        self._take_back(child)
        self._drain(child)
        if self._config["files"]:
            raise OSError("the slot that had files copied died, with wait status %d" % status)
        if not (child.last_answered or child.calls or self._config["is_ending"]):
            # It died before it began a call. That is no call's fault, and the next slot would fare
            # no better.
            lines = child.stderr_tail.decode("utf-8", "replace").split("\n")
            why = next(filter(str.strip, reversed(lines)), "it died with wait status %d" % status)
            self._limit_slots(why)
        for ident in child.calls:       # at most one is left: the one that ran
            self._arriving.pop(ident, None)
            death = DEATH.pack(child.number, status)
            if child.is_killed:
                self._send(KILLED, ident, death)
            else:
                self._send(DIED, ident, death + child.stderr_tail)
        for fd in child.fds:
            self._unwatch(fd)
            os.close(fd)


def _replace_lines(text: bytes) -> bytes:
    r"""Return what a terminal shows of lines: what follows `\r` replaces what precedes it."""
    return b"\n".join([line.rstrip(b"\r").rpartition(b"\r")[2] for line in text.split(b"\n")])


def _find_cut(text: bytes) -> int:
    """Return where UTF-8 text can be cut: before its last character, if that has several bytes.

    That character may be incomplete.
    """
    at = len(text)
    while at > len(text) - 3 and text[at - 1] & 0xC0 == 0x80:       # a byte inside a character
        at -= 1
    if text[at - 1] >= 0xC0:        # the first byte of a character that has several
        at -= 1
    return at


def _make_frames(packed: Packed) -> list[bytes]:
    """Return the frames of a message with a packed object, each with its header."""
    first, *rest = message(ANSWER, 0, 0, packed)
    return [first, *(header + body for header, body in zip(rest[::2], rest[1::2]))]


# ──────────────────────────────────────────── guardian ────────────────────────────────────────────


def _run_guardian(shim: int, link_in: int, scratch: str, keepers: Any) -> None:
    """Run the guardian: wait until the shim has ended, then kill and remove what it left.

    Kill the shim if it stays stopped, or if it stays although its controller is gone.

    Arguments:
        shim: its process.
        link_in: the descriptor of frames from the controller, which is only watched.
        scratch: the directory that slots run in.
        keepers: memory in which the shim notes the process of each slot's keeper.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake, wake_out = _make_wake_pipe()
    os.write(wake_out, b"!")        # the shim may have died before the pipe was there
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    poll.register(link_in, getattr(select, "POLLRDHUP", 0))     # POLLHUP is always reported
    grace = 4 * TERM_SECONDS * 1000     # milliseconds
    patience = -1.0     # the same: no limit, until there is a reason for the shim to end
    while True:
        events = poll.poll(patience)
        if not events:
            signal_tree(shim, signal.SIGKILL)
        for fd, _event in events:
            if fd == wake:
                os.read(wake, 4096)
            else:       # the controller's end of the connection is closed
                poll.unregister(link_in)
                patience = grace
        for pid, status in _reap_children(os.WUNTRACED):
            if pid == shim and os.WIFSTOPPED(status):
                patience = grace
            elif pid == shim:
                kill_descendants(pid for pid, in PROCESS.iter_unpack(keepers) if pid)
                for folder in _temporary_folders(os.path.basename(scratch)):
                    _remove(folder)
                _remove_incoming(scratch)
                return


def _make_scratch(name: str) -> str:
    """Make a folder in the first temporary directory that takes one; return its path.

    If none does, return a path at which nothing can be made. Most tasks need no disk.
    """
    for folder in _temporary_folders(name):
        try:
            _make_temporary(folder)
            return folder
        except OSError:
            pass
    return os.path.join(os.devnull, name)


def serve(modules: dict[str, Packed]) -> None:
    """Turn this process into the guardian of a shim on descriptors 0 and 1.

    Return when both are done.

    Arguments:
        modules: {name: packed answer for `ModuleFinder`}, modules that are here from the start.
    """
    link_in = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 10)
    link_out = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)       # a stray print must not get between frames
    os.close(null)
    enlarge_pipe(link_in)
    enlarge_pipe(link_out)
    try:
        os.setsid()     # a kill of our caller's session must spare us: we clean up
    except OSError:
        pass            # we lead one already
    _keep_interpreter()
    scratch = _make_scratch("executors-" + os.urandom(8).hex())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 16)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    keepers = mmap.mmap(-1, MAX_KEEPERS * PROCESS.size)
    shim = os.fork()
    if shim == 0:
        _exit_after(lambda: Shim(link_in, link_out, modules, scratch, keepers).run())
    os.close(link_out)
    _run_guardian(shim, link_in, scratch, keepers)


# ───────────────────────────────────────── one-shot mode ──────────────────────────────────────────

READING, UNPICKLING, RUNNING, PICKLING, WRITING = range(3, 8)   # exit statuses; 2 is argparse's


def main(arguments: list[str] | None = None) -> int:
    """Run one pickled `(function, args, kwargs)` from a file, for batch queues and debugging.

    The result file gets the pickle of `(True, value)`, or of `(False, exception)` if the function
    raised. It is written whole or not at all.

    Arguments:
        arguments: those of the command line; None takes `sys.argv`.

    Return the exit status: 0 the function returned; 2 usage; 3 cannot read the code file; 4 cannot
    unpickle it; 5 the function raised; 6 cannot pickle the outcome; 7 cannot write the result file.
    Each but 0 comes with a line on stderr.
    """
    import argparse
    parser = argparse.ArgumentParser(description="Run one cloudpickled (function, args, kwargs).")
    parser.add_argument("--code_file", required=True, help="file with the pickled call")
    parser.add_argument("--result_file", required=True, help="file to write the pickled outcome to")
    options = parser.parse_args(arguments)
    stage = READING
    doing = "read %s" % options.code_file
    try:
        with open(options.code_file, "rb") as file:
            code = file.read()
        stage = UNPICKLING
        doing = "unpickle %s" % options.code_file
        function, args, kwargs = pickle.loads(code)
        ok, value = run_call(function, args, kwargs)
        stage = PICKLING
        doing = "pickle the outcome for %s" % options.result_file
        import cloudpickle
        outcome = cloudpickle.dumps((ok, value))
        stage = WRITING
        doing = "write %s" % options.result_file
        _write_atomically(options.result_file, outcome)
        if ok:
            return 0
        stage = RUNNING
        problem = "%s raised %s" % (options.code_file, describe(value))
    except BaseException as error:      # unpickling may raise anything
        problem = "cannot %s: %s" % (doing, describe(error))
    one_line = " ".join(problem.split())
    sys.stderr.write("remote_worker: %s\n" % one_line)
    return stage


def _write_atomically(path: str, data: bytes) -> None:
    """Write a file under another name first, so that nobody sees a part of it."""
    temporary = "%s.%d" % (path, os.getpid())
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


if __name__ == "__main__":
    sys.exit(main())
