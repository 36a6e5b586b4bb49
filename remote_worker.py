"""The worker's side of `executors`: unpickle, run, pickle; and the wire format that both sides speak.

Nothing of this is installed anywhere. `executors.py` sends this file's own text over ssh to a bare Python, which makes a
module of it and calls `serve()`. From then on the machine runs three kinds of process, one inside the other:

    guardian ──► shim ──► slot, slot, ...          (each forked from the one before; only slots run users' code)

- A *slot* runs one call at a time. It is the leader of its own session and, on Linux, the reaper of everything it starts.
- The *shim* is one thread around `poll`. It feeds slots, passes their results and their output on, and replaces a slot that
  died or was killed. It never unpickles a call or a result. It ends when its controller does: at end of file, or when it has
  heard nothing for the length of its lease.
- The *guardian* only waits: for the shim to die, after which it kills whatever the shim left behind; or for the controller's
  end of the connection to vanish while the shim cannot act on it.

A frame is a header and a payload:

    ┌────────┬──────────────┬──────────────┬───────────────────────────┐
    │ kind 1 │ identifier 8 │ length 8     │ payload, at most MAX_FRAME│      (network byte order, sizes in bytes)
    └────────┴──────────────┴──────────────┴───────────────────────────┘

CALL, FUNCTION, RESULT and ERROR are *messages*. Their payload begins with a tag (CALL: which function; RESULT: the slot's number
and the microseconds run, see SLOT_SHIFT) and a count n. With n = 0 the rest is a pickle. Otherwise n lengths follow, of a
pickle and its out-of-band buffers, and their bytes come after in PART frames of the same identifier, cut so that no frame is
long enough to keep another waiting.

A call that waits in a slot's pipe can still be taken back. Beside its data pipe each slot has a *permit* pipe, into which the
shim writes the identifier of every short call it sends; a slot starts one only after it has read its permit. The shim holds
the reading end too: what it reads back out of that pipe has not been started and, the kernel having handed each permit to one
reader only, never will be. So when a slot dies, the call it leaves without a result or a permit is the one that ran. A call
of more than one frame goes to an idle slot only, counts as started, and needs no permit.

This file must parse on any Python from 3.6, and imports little: it is compiled at the start of every connection.
"""

import collections
import fcntl
import functools
import io
import itertools
import mmap
import os
import pickle
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time
import types
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    import importlib.abc
    from typing import Any
    Buffer = Any        # bytes, bytearray or memoryview
    Packed = Any        # from `pack`: bytes, all in one; or lengths and buffers
    Prctl = Callable[[int, int], object]
    class _List(list[Any]): ...
    class _Loader(importlib.abc.Loader): ...
else:       # importing typing would take a tenth of the time to the first result
    Any = Buffer = Packed = Prctl = _Loader = object
    _List = list

__all__ = ["FrameError", "FrameReader", "MessageReader", "Outbox", "Shipped", "digest_file", "frame", "is_plain", "main", "message",
           "pack", "pack_call", "pack_outcome", "run_call", "run_chunk", "run_plain", "run_shipped", "serve", "unpack"]

MAX_FRAME = 1 << 20       # bytes of payload; a longer one on the wire means that the stream is garbled
INLINE = 1 << 16          # bytes of pickle up to which a message is one frame; buffers from this size leave the pickle
READ_SIZE = 1 << 16       # bytes asked of one read; small frames come many to a read
SLOT_DEPTH = 64           # calls in a slot's pipe, the running one included: enough to keep it busy through our own turn
BACKLOG = 4 << 20         # bytes queued towards one descriptor at which its source is no longer read
TERM_SECONDS = 0.5        # between SIGTERM and SIGKILL
LAST_WORDS = 2000         # bytes of stderr kept to explain a slot's death
HEADER = struct.Struct("!BQQ")
TAG = struct.Struct("!QB")
SHORT = struct.Struct("!BQQQB")     # HEADER and TAG of a message that is one frame
IDENT = struct.Struct("!Q")
SLOT_SHIFT = 48           # the tag of a result is (slot's number << SLOT_SHIFT) + microseconds

# Controller to shim; CALL, FUNCTION, FORGET and PART go on to slots.
CONFIG, CALL, FUNCTION, FORGET, KILL, RECALL, PING, MODULE, FILES = range(1, 10)
# Shim to controller; RESULT, ERROR and PART come from slots.
HELLO, RESULT, ERROR, DIED, KILLED, RECALLED, PONG, WANTED, OUTPUT, STORED = range(32, 42)
PART = 64


# ───────────────────────────────────────────────────── frames ─────────────────────────────────────────────────────


class FrameError(Exception):
    """The stream cannot be one of frames: it ended inside one, or announces an absurd length."""


def frame(kind: int, ident: int = 0, payload: bytes = b"") -> bytes:
    """Return one frame as bytes."""
    return HEADER.pack(kind, ident, len(payload)) + payload


def message(kind: int, ident: int, tag: int, packed: Packed) -> list[Buffer]:
    """Return the frames of a message as a list of buffers; `packed` comes from `pack` and is not copied."""
    if type(packed) is bytes:
        return [SHORT.pack(kind, ident, 9 + len(packed), tag, 0) + packed]
    lengths, buffers = packed
    head = TAG.pack(tag, len(lengths)) + struct.pack("!%dQ" % len(lengths), *lengths)
    out: list[Buffer] = [frame(kind, ident, head)]
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        for at in range(0, len(view), MAX_FRAME):
            part = view[at:at + MAX_FRAME]
            out += HEADER.pack(PART, ident, len(part)), part
    return out


class FrameReader:
    """Cut frames out of a descriptor, one `read` system call at a time, so that it serves blocking and polled ones alike.

    `read()` returns the frames `(kind, identifier, bytes)` that one read completed, each with its header at the front.
    It raises EOFError where the stream ends between frames and FrameError where it ends inside one.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._rest = b""        # less than one frame, and short
        self._pending: Any = None    # (kind, identifier, buffer) of a long frame that is being read in place
        self._view: Any = None       # what of it is still to come

    def read(self) -> list[Any]:
        """Read once, and return what is complete. Raises EOFError, FrameError or what `os.read` raises."""
        if self._pending is not None:
            return self._read_in_place()
        chunk = os.read(self.fd, READ_SIZE)
        if not chunk:
            self._end(len(self._rest), HEADER.unpack(self._rest[:17])[2] + 17 if len(self._rest) >= 17 else 17)
        data = self._rest + chunk if self._rest else chunk
        frames: list[Any] = []
        at, end, unpack_from = 0, len(data), HEADER.unpack_from
        while end - at >= 17:
            kind, ident, size = unpack_from(data, at)
            if size > MAX_FRAME:
                raise FrameError("a frame of kind %d announces %d bytes, more than %d" % (kind, size, MAX_FRAME))
            stop = at + 17 + size
            if stop > end:
                if size > INLINE:
                    done = self._complete(frames)       # first: where this one goes may depend on those before it
                    self._open(kind, ident, size, data[at:])
                    self._rest = b""
                    return done
                break
            frames.append((kind, ident, data[at:stop]))
            at = stop
        self._rest = data[at:]
        return self._complete(frames)

    def _open(self, kind: int, ident: int, size: int, start: bytes) -> None:
        """Read the rest of a long frame straight into its buffer, so that its bytes are moved once."""
        data = bytearray(17 + size)
        data[:len(start)] = start
        self._view = memoryview(data)[len(start):]
        self._pending = kind, ident, data

    def _read_in_place(self) -> list[Any]:
        count = os.readv(self.fd, [self._view])
        if not count:
            self._end(0, len(self._view))
        self._view = self._view[count:]
        if self._view:
            return []
        done, self._pending, self._view = self._pending, None, None
        return self._complete([done])

    def _end(self, got: int, expected: int) -> None:
        if got or self._pending:
            raise FrameError("the stream ended inside a frame: expected %d bytes, got %d" % (expected, got))
        raise EOFError

    def _complete(self, frames: list[Any]) -> list[Any]:
        return frames


class MessageReader(FrameReader):
    """Like FrameReader, but `read()` returns messages whole, as `(kind, identifier, tag, segments)`, for `unpack`.

    Frames of other kinds come as `(kind, identifier, None, payload)`. PARTs are read into the buffer they are part of.
    """

    def __init__(self, fd: int) -> None:
        FrameReader.__init__(self, fd)
        self._unfinished: dict[int, Any] = {}      # identifier -> [kind, tag, segments, index of the one being filled, how far]

    def forget(self, ident: int) -> None:
        """Drop what has arrived of a message whose sender is gone."""
        self._unfinished.pop(ident, None)

    def _open(self, kind: int, ident: int, size: int, start: bytes) -> None:
        if kind != PART or ident not in self._unfinished:
            FrameReader._open(self, kind, ident, size, start)
            return
        target, start = self._target(ident, size), start[17:]
        target[:len(start)] = start
        self._view = target[len(start):]
        self._pending = kind, ident, size

    def _target(self, ident: int, size: int) -> memoryview:
        _kind, _tag, segments, index, at = self._unfinished[ident]
        if size > len(segments[index]) - at:
            raise FrameError("a part of %d bytes overruns its segment of %d" % (size, len(segments[index])))
        return memoryview(segments[index])[at:at + size]

    def _complete(self, frames: list[Any]) -> list[Any]:
        out: list[Any] = []
        for kind, ident, data in frames:
            if kind == PART:
                if ident in self._unfinished:       # otherwise it is of a message that was forgotten
                    self._advance(out, ident, data)
            elif kind not in (CALL, RESULT, FUNCTION, ERROR):
                out.append((kind, ident, None, data[17:]))
            elif data[25] == 0:
                out.append((kind, ident, IDENT.unpack_from(data, 17)[0], (data[26:],)))
            else:
                tag, count = TAG.unpack_from(data, 17)
                segments = [_segment(n) for n in struct.unpack_from("!%dQ" % count, data, 26)]
                self._unfinished[ident] = [kind, tag, segments, 0, 0]
        return out

    def _advance(self, out: list[Any], ident: int, data: Any) -> None:
        """Account for a part: either its frame, or the size of one that was read in place."""
        size = data if type(data) is int else len(data) - 17
        if size is not data:
            self._target(ident, size)[:] = memoryview(data)[17:]
        kind, tag, segments, index, _at = state = self._unfinished[ident]
        state[4] += size
        if state[4] == len(segments[index]):
            state[3:] = index + 1, 0
        if state[3] == len(segments):
            del self._unfinished[ident]
            out.append((kind, ident, tag, segments))


def _segment(size: int) -> Any:
    """Return a buffer to read into. A long one is mapped: its pages are there when they are written, and are not zeroed before."""
    if size < MAX_FRAME:
        return bytearray(size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class Outbox:
    """Frames on their way into a non-blocking descriptor. The owner calls `flush` when the descriptor takes more."""

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
        """Write what the descriptor takes; return whether nothing is left. Raises OSError when nobody reads any more."""
        queue = self._queue
        while queue:
            batch: list[Buffer] = []
            size = 0
            while queue and size < MAX_FRAME and len(batch) < 512:
                batch.append(queue.popleft())
                size += len(batch[-1])
            if size <= INLINE and len(batch) > 1:
                batch = [b"".join(batch)]
            try:
                wrote = os.writev(self.fd, batch)
            except BlockingIOError:
                wrote = 0
            self.size -= wrote
            for at, buffer in enumerate(batch):
                if wrote < len(buffer):
                    queue.extendleft(reversed([memoryview(buffer)[wrote:]] + batch[at + 1:]))
                    return False
                wrote -= len(buffer)
        return True


def write_all(fd: int, buffers: Iterable[Buffer]) -> None:
    """Write a message to a blocking descriptor."""
    outbox = Outbox(fd)
    outbox.put(buffers)
    while not outbox.flush():
        pass


# ───────────────────────────────────────────────── running a call ─────────────────────────────────────────────────

_SHORT = frozenset([int, float, complex, bool, type(None)])      # but for an int that nobody writes down
_PLAIN = _SHORT | {str, bytes}


class _Chunks(_List):
    """A file to pickle into that keeps large objects as they are instead of copying them."""

    def write(self, data: Any) -> None:
        self.append(data.raw() if type(data) is pickle.PickleBuffer else data)


def is_plain(obj: object) -> bool:
    """Tell whether `pickle` alone does for `obj`: nothing in it can refer to code, and so to `__main__`."""
    return type(obj) in _PLAIN or type(obj) is tuple and (_PLAIN.issuperset(map(type, obj)) or all(map(is_plain, obj)))


def pack(obj: object) -> Packed:
    """Pickle `obj` by value: plain types with pickle, the rest with cloudpickle, large buffers (NumPy arrays) uncopied.

    Returns bytes if that is short, otherwise `(lengths, buffers)` for `message`. Raises what pickling raises.
    """
    return _pack_plain(obj) if is_plain(obj) else _pack_any(obj)


def pack_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Packed:
    """Pickle a call's arguments, as `pack` does, and the usual ones quickly."""
    if not kwargs and _SHORT.issuperset(map(type, args)):
        data = pickle.dumps((args, None), 5)
        if len(data) <= INLINE:
            return data
    return pack((args, kwargs or None))


def _pack_plain(obj: object) -> Packed:
    if _is_long(obj):
        chunks = _Chunks()
        pickle.Pickler(chunks, 5).dump(obj)
        return [sum(map(len, chunks))], chunks
    data = pickle.dumps(obj, 5)
    return data if len(data) <= INLINE else ([len(data)], [data])


def _is_long(obj: object) -> bool:
    if isinstance(obj, tuple):
        return any(map(_is_long, obj))
    return isinstance(obj, (bytes, str)) and len(obj) > INLINE


def _pack_any(obj: object) -> Packed:
    import cloudpickle
    chunks, large = _Chunks(), _Chunks()

    def stays_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < INLINE or len(large) == 254:
            return True
        large.append(raw)
        return False

    cloudpickle.CloudPickler(chunks, protocol=5, buffer_callback=stays_in_band).dump(obj)
    length = sum(map(len, chunks))
    if length <= INLINE and not large:
        return b"".join(chunks)
    return [length] + [raw.nbytes for raw in large], chunks + large


def unpack(segments: Sequence[Any]) -> Any:
    """Return the object of a message's segments. Runs whatever code the pickle names, so it may raise anything."""
    return pickle.loads(segments[0], buffers=segments[1:])


def _unpack_own(packed: Packed) -> Any:
    """Unpickle what `pack` has just made."""
    if type(packed) is bytes:
        return unpack((packed,))
    lengths, buffers = packed
    chunks = len(buffers) - len(lengths) + 1
    return unpack([b"".join(buffers[:chunks])] + buffers[chunks:])


def run_call(function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[bool, Any]:
    """Call a function; return `(True, its value)` or `(False, what it raised)`, SystemExit and KeyboardInterrupt included."""
    try:
        return True, function(*args, **kwargs)
    except BaseException as error:      # whatever it was, it belongs to the caller's future
        return False, error


def run_chunk(function: Callable[..., Any], chunk: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call a function on each tuple of arguments of a chunk; what `map(..., chunksize=n)` sends."""
    return [function(*args) for args in chunk]


class Shipped:
    """Wrap an object so that plain pickle carries it as cloudpickle would; what arrives is the object itself."""

    def __init__(self, obj: object) -> None:
        import cloudpickle
        self._data = cloudpickle.dumps(obj)

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._data,)


def run_shipped(call: Any) -> Any:
    """Run `(function, args, kwargs)` in a process pool."""
    function, args, kwargs = call
    value = function(*args, **kwargs)
    return value if is_plain(value) else Shipped(value)


def run_plain(function: Callable[..., Any], *args: Any) -> Any:
    """Run a call that plain pickle could carry in a process pool."""
    return run_shipped((function, args, {}))


def pack_outcome(ok: bool, value: Any, stage: str = "run") -> tuple[int, Packed]:
    """Pickle what `run_call` returned. Return `(RESULT or ERROR, packed)`; never raises.

    The payload of an ERROR is a plain tuple `(stage, pickled exception or None, type, text, traceback)`; `stage` is
    "arguments", "run", "result" or "round trip". What is not plain is also unpickled here, before anything is sent: what
    then raises, exits or crashes does it to this slot, and not to the controller.
    """
    if ok:
        try:
            stage = "result"
            if is_plain(value):
                return RESULT, _pack_plain(value)
            packed = _pack_any(value)
            stage = "round trip"
            _unpack_own(packed)
            return RESULT, packed
        except BaseException as error:
            value = error
    import traceback
    try:
        text = "".join(traceback.format_exception(type(value), value, _below(value.__traceback__)))
    except BaseException as error:      # a __str__ or __repr__ that raises
        text = "(the traceback cannot be shown: %s)\n" % type(error).__name__
    pickled = None
    try:
        import cloudpickle
        attempt = cloudpickle.dumps(value)
        if type(pickle.loads(attempt)) is type(value):
            pickled = attempt
    except BaseException:      # a constructor that does not fit its arguments, for one
        pass
    return ERROR, pack((stage, pickled, type(value).__name__, _text(value), text))


def _text(value: object) -> str:
    try:
        return str(value)
    except BaseException as error:
        return "(%s in __str__)" % type(error).__name__


def _below(trace: Any) -> Any:
    """Leave out the frames of this file from the top of a traceback: they tell the user nothing."""
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_globals.get("run_call") is run_call:
        trace = trace.tb_next
    return trace


# ────────────────────────────────────────────────────── modules ───────────────────────────────────────────────────


class ModuleFinder:
    """Import what the controller has in its project: first on `sys.meta_path`, so that the project's copy wins.

    `ask(name)` returns None, or `(file name, source, is a package)`; the file of a namespace package is NAMESPACE. Packages
    that `files=` has put into `folder` are left to the usual import: they may have data and extension modules.
    """

    NAMESPACE = "<namespace>"

    def __init__(self, ask: Callable[[str], Any], folder: str) -> None:
        import importlib.machinery
        import importlib.util
        self._make_spec, self._find_here = importlib.util.spec_from_loader, importlib.machinery.PathFinder.find_spec
        self._ask = ask
        self._ours: set[str] = set()      # top-level names that came from the controller
        entries = os.listdir(folder) if os.path.isdir(folder) else ()
        self._shipped = {name.partition(".")[0] for name in entries
                         if name.endswith((".py", ".so")) or os.path.exists(os.path.join(folder, name, "__init__.py"))}
        standard = getattr(sys, "stdlib_module_names", ())
        self._standard = frozenset(standard) | frozenset(sys.builtin_module_names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        top = name.partition(".")[0]
        if top in self._standard or top in self._shipped or (name != top and top not in self._ours):
            return None
        found = self._ask(name)
        if found is None:
            return None
        self._ours.add(top)
        filename, source, is_package = found
        spec: Any = self._make_spec(name, _SourceLoader(filename, source), origin=filename, is_package=is_package)
        spec.has_location = True
        if filename == self.NAMESPACE:      # other parts of it may be installed here
            here = self._find_here(name, path)
            spec.submodule_search_locations += here and here.submodule_search_locations or ()
        return spec


class _SourceLoader(_Loader):
    def __init__(self, filename: str, source: str) -> None:
        self._filename, self._source = filename, source

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        exec(compile(self._source, self._filename, "exec", dont_inherit=True), module.__dict__)

    def get_source(self, name: str) -> str:      # through this, tracebacks show lines (linecache.lazycache)
        return self._source


def _asker(sock: socket.socket) -> Callable[[str], Any]:
    """Return the function that asks the shim for a module over a slot's import socket."""
    import threading
    lock, owner, numbers = threading.Lock(), os.getpid(), itertools.count(1)
    known: dict[str, Any] = {}

    def exchange(name: str) -> Any:
        number = next(numbers)
        sock.sendall(frame(WANTED, number, name.encode()))
        while True:
            _kind, ident, size = HEADER.unpack(_receive(sock, 17))
            answer = _receive(sock, size)
            if ident == number:         # otherwise it is of a question that was given up
                return pickle.loads(answer)

    def ask(name: str) -> Any:
        # A child that users' code forked shares the socket with its parent, and would take the other's answer.
        if name in known or os.getpid() != owner:
            return known.get(name)
        with lock:      # any thread may import; one question is under way at a time
            if name not in known:
                # A signal handler that raises must not leave half an answer in the socket.
                blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                try:
                    known[name] = exchange(name)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return known[name]
    return ask


def _receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ImportError("the shim is gone")
        data += more
    return data


# ─────────────────────────────────────────────────────── slot ─────────────────────────────────────────────────────

_CALLS_FD, _RESULTS_FD, _PERMITS_FD, _IMPORTS_FD = 3, 4, 5, 6


class _Stream(io.TextIOWrapper):
    """A slot's stdout or stderr. It remembers whether a line was begun, so that each call's output ends with one."""

    is_in_line = False

    def write(self, text: str) -> int:
        count = io.TextIOWrapper.write(self, text)
        self.is_in_line = not text.endswith("\n") if text else self.is_in_line
        return count


def _slot(machine: str, number: int) -> None:
    """Run calls from descriptor 3 until it ends. Everything a slot needs stands at a fixed descriptor, see `_Slot`."""
    reader, permit = MessageReader(_CALLS_FD), b""
    functions: dict[int, Any] = {}
    try:
        while True:
            for kind, ident, tag, body in reader.read():
                if kind == CALL:
                    if type(body) is tuple:     # a short one
                        try:
                            permit = permit or os.read(_PERMITS_FD, 8)
                        except BlockingIOError:
                            continue        # taken back
                        if permit != IDENT.pack(ident):
                            continue        # likewise; the permit in hand is of a call further on
                        permit = b""
                    _serve_call(functions, ident, tag, body, machine, number)
                elif kind == FUNCTION:
                    functions[ident] = body
                elif kind == FORGET:
                    functions.pop(ident, None)
            body = None
    except EOFError:
        pass


def _serve_call(functions: dict[int, Any], ident: int, tag: int, body: Any, machine: str, number: int) -> None:
    started = time.perf_counter()
    try:
        function = functions[tag]
        if type(function) in (tuple, list):
            function = unpack(function)
            if _is_stateless(function):
                functions[tag] = function
        args, kwargs = unpack(body)
        kwargs = kwargs or {}
    except BaseException as error:
        kind, packed = pack_outcome(False, _explain(error, machine), "arguments")
    else:
        del body
        owner = os.getpid()
        ok, value = run_call(function, args, kwargs)
        if os.getpid() != owner:        # a child that the call forked and that came back here: it is no slot
            os._exit(0 if ok or isinstance(value, SystemExit) and not value.code else 1)
        del args, kwargs
        kind, packed = pack_outcome(ok, value if ok else _explain(value, machine))
        del value
    for stream in (sys.stdout, sys.stderr):
        try:
            if getattr(stream, "is_in_line", False):
                stream.write("\n")
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass        # the user closed or replaced it
    tag = (number << SLOT_SHIFT) + int((time.perf_counter() - started) * 1e6)
    if type(packed) is bytes:
        os.write(_RESULTS_FD, SHORT.pack(kind, ident, 9 + len(packed), tag, 0) + packed)
    else:
        write_all(_RESULTS_FD, message(kind, ident, tag, packed))


def _is_stateless(function: object) -> bool:
    """Tell whether one unpickled object serves all calls. One that could change would carry something from call to call."""
    if type(function) is types.BuiltinFunctionType:
        return True
    if type(function) is not types.FunctionType:
        return False
    try:
        return all(is_plain(cell.cell_contents) for cell in function.__closure__ or ())
    except ValueError:      # an empty cell
        return False


def _explain(error: BaseException, machine: str) -> BaseException:
    """Say on a missing third-party module where it is missing and what to do."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        note = "on %s, with %s: install it there, or name another interpreter in the worker's record (python=...)" % (
            machine, sys.executable)
        if hasattr(error, "add_note"):
            error.add_note(note)
        elif isinstance(error.args[0] if error.args else None, str):
            error.args = ("%s (%s)" % (error.args[0], note),) + error.args[1:]
    return error


# ─────────────────────────────────────────────────────── shim ─────────────────────────────────────────────────────


class _Call:
    """A call in the shim's hands: its frames as they came. Those of a long one are passed on and not kept."""

    __slots__ = ("frames", "function", "ident", "is_long", "missing", "slot")

    def __init__(self, ident: int, function: list[bytes], data: bytes) -> None:
        self.ident, self.function, self.frames = ident, function, [data]
        self.slot: Any = None               # the _Slot it was dealt to
        self.is_long = bool(data[25])
        self.missing = _parts_size(data)        # bytes of PARTs still to come


def _parts_size(data: bytes) -> int:
    """Return how many bytes of PARTs follow the first frame of a message."""
    return sum(struct.unpack_from("!%dQ" % data[25], data, 26)) if data[25] else 0


class _Slot:
    """The shim's end of one slot: its process and the pipes to it."""

    def __init__(self, machine: str, number: int, prctl: Prctl, high: int, scratch: str) -> None:
        calls, results, permits, out, err = (os.pipe() for _ in range(5))
        imports = socket.socketpair()
        for fd in (calls[1], results[0], permits[0], out[0], err[0]):
            os.set_blocking(fd, False)
        for fd in (calls[1], results[1]):
            _enlarge(fd)
        self.high = max(high, calls[1], results[1], permits[1], out[1], err[1], imports[1].fileno())
        shim = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            fds = [out[1], err[1], calls[0], results[1], permits[0], imports[1].fileno()]
            _exit_after(lambda: _be_slot(fds, self.high, prctl, shim, machine, number, scratch))
        for fd in (calls[0], results[1], out[1], err[1]):
            os.close(fd)
        imports[1].close()
        self.number = number
        self.imports = imports[0]
        self.outbox = Outbox(calls[1])
        self.results = FrameReader(results[0])
        self.permits = permits                      # both ends: what is read here has been taken back
        self.streams = {out[0]: b"", err[0]: b""}   # descriptor -> what was read of a line that is not whole yet
        self.stderr = err[0]
        self.last_words = b""
        self.calls: collections.OrderedDict[int, _Call] = collections.OrderedDict()      # by identifier, as they were sent
        self.functions: set[int] = set()            # identifiers of those it has been sent
        self.receiving: _Call | None = None         # the last long _Call, which may still be arriving
        self.answering, self.expecting = 0, 0       # the last call it answered, and bytes of PARTs of that still to come
        self.killed = False
        self.kill_at: float | None = None           # when SIGTERM has had its time

    def close(self) -> None:
        for fd in [self.outbox.fd, self.results.fd] + list(self.permits) + list(self.streams):
            os.close(fd)
        self.imports.close()


def _be_slot(fds: list[int], high: int, prctl: Prctl, shim: int, machine: str, number: int, scratch: str) -> None:
    """Turn a fresh fork of the shim into a slot, and run it: its own session and descriptors, and default signals."""
    signal.set_wakeup_fd(-1)
    for one in (signal.SIGCHLD, signal.SIGTERM, signal.SIGCONT):
        signal.signal(one, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    prctl(1, signal.SIGKILL)        # PR_SET_PDEATHSIG: die with the shim, even if it is killed
    prctl(36, 1)                    # PR_SET_CHILD_SUBREAPER: what this slot's children leave behind stays below it
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, high + 1) for fd in fds]
    for place, fd in enumerate(aside, 1):
        os.dup2(fd, place, inheritable=place < 3)
    os.closerange(7, max(aside) + 1)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        stream = _Stream(open(fd, "wb", closefd=False), "utf-8", "backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, "__%s__" % name, stream)
    sys.meta_path.insert(0, ModuleFinder(_asker(socket.socket(fileno=_IMPORTS_FD)), scratch))
    if os.getppid() == shim:        # otherwise it died before its death could be ours
        _slot(machine, number)
        import atexit
        atexit._run_exitfuncs()


class Shim:
    """Supervise the slots of one machine for one controller, in one thread around `poll`."""

    def __init__(self, link_in: int, link_out: int, modules: dict[str, bytes], scratch: str) -> None:
        self._reader, self._outbox = FrameReader(link_in), Outbox(link_out)
        self._modules = modules         # name -> pickled answer to a slot that wants it
        self._answer = b""              # the controller's, as far as it has come
        self._asking: dict[str, list[tuple[_Slot, int]]] = {}     # by name, the questions that the controller has yet to answer
        self._slots: dict[int, _Slot] = {}        # pid -> _Slot
        self._queue: collections.deque[_Call] = collections.deque()       # those without a slot
        self._functions: dict[int, list[bytes]] = {}        # identifier -> frames
        self._arriving: dict[int, Any] = {}     # identifier -> [_Call or frames of a function, bytes of PARTs still to come]
        self._doomed: collections.deque[int] = collections.deque(maxlen=1024)    # killed before they came, if they come at all
        self._config: dict[str, Any] = {"slots": 1, "lease": 60.0, "machine": "worker", "output": True}
        self._heard = time.monotonic()
        self._over = False
        self._handlers: dict[int, Callable[[], object]] = {}      # descriptor -> function(events)
        self._poll = select.poll()
        self._wake, wake_out = os.pipe()
        for fd in (self._wake, wake_out, link_in, link_out):
            os.set_blocking(fd, False)
        self._high = max(link_in, link_out, wake_out)
        self._moved = 0.0               # when it was last seen that slots take what is written to them
        self._prctl: Prctl = _no_prctl
        self._scratch = scratch         # a path nobody has made yet
        self._guardian = os.getppid()
        signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_over", True))
        signal.signal(signal.SIGCONT, self._on_continue)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _on_continue(self, *_: object) -> None:
        self._over = self._over or os.getppid() != self._guardian

    def run(self) -> None:
        """Serve until the controller is gone, then leave nothing behind."""
        self._watch(self._wake, self._on_signal)
        self._watch(self._reader.fd, self._on_link)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._send(HELLO, 0, pickle.dumps({"cores": cores, "pid": os.getpid(), "guardian": self._guardian,
                                           "hostname": socket.gethostname(), "python": sys.executable}))
        try:
            self._flush()
            self._prctl = _find_prctl()     # after the greeting: loading ctypes takes as long as forking a slot
            self._prctl(36, 1)
            self._prctl(1, signal.SIGCONT)      # if the guardian dies; it reaches even a frozen shim
            self._on_continue()
            while not self._over:
                self._turn()
        except (EOFError, BrokenPipeError, ConnectionError):
            pass
        except (FrameError, OSError) as error:
            sys.stderr.write("executors shim: %s\n" % error)
        finally:
            self._end()

    def _turn(self) -> None:
        lease_end = self._heard + self._config["lease"]
        wake_at = min([lease_end] + [slot.kill_at for slot in self._slots.values() if slot.kill_at])
        if self._reader.fd not in self._handlers:       # it is we who do not listen
            self._heard, wake_at = time.monotonic(), min(wake_at, self._moved + TERM_SECONDS)
        for fd, _events in self._poll.poll(max(0, wake_at - time.monotonic()) * 1000 + 1):
            if fd in self._handlers:
                self._handlers[fd]()
        self._dispatch()
        self._flush()
        now = time.monotonic()
        for slot in self._slots.values():
            if slot.kill_at and now >= slot.kill_at:
                slot.kill_at = None
                signal_tree(slot.pid, signal.SIGKILL)
        self._over = self._over or now >= self._heard + self._config["lease"]

    def _end(self) -> None:
        """End every slot: the idle ones leave through their atexit functions, the busy ones get SIGTERM, then SIGKILL."""
        for slot in self._slots.values():
            os.close(slot.outbox.fd)
            if slot.calls:
                signal_tree(slot.pid, signal.SIGTERM)
        deadline = time.monotonic() + TERM_SECONDS
        while self._slots and time.monotonic() < deadline:
            if select.select([self._wake], [], [], max(0, deadline - time.monotonic()))[0]:
                os.read(self._wake, 4096)
            for pid, _status in _changed_children():
                if pid in self._slots:
                    self._drain(self._slots.pop(pid))
        kill_descendants()
        for slot in self._slots.values():
            self._drain(slot)
        self._flush_last_words(deadline + TERM_SECONDS)
        _remove(self._scratch)
        os.kill(self._guardian, signal.SIGCONT)     # in case someone has frozen it: its turn comes now

    def _flush_last_words(self, deadline: float) -> None:
        try:
            while not self._outbox.flush() and time.monotonic() < deadline:
                select.select([], [self._outbox.fd], [], TERM_SECONDS)
        except OSError:
            pass        # nobody is there to hear them

    # Descriptors: what is watched, and what is written

    def _watch(self, fd: int, handler: Callable[[], object], events: int = select.POLLIN) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None):
            self._poll.unregister(fd)

    def _send(self, kind: int, ident: int = 0, payload: bytes = b"") -> None:
        self._outbox.put((frame(kind, ident, payload),))

    def _flush(self) -> None:
        """Write what is queued. Where something stays, watch for room; while the link is slow, do not read what would add to it.

        Neither is the link read while a slot has much to take and goes on taking it; but a slot that takes nothing (somebody has
        stopped it) must not keep us from hearing the controller.
        """
        for slot in self._slots.values():
            if slot.outbox.size:
                self._flush_one(slot.outbox)
        if self._outbox.size:
            self._flush_one(self._outbox)
        slow = self._outbox.size > BACKLOG
        for slot in self._slots.values():
            if slow == (slot.results.fd in self._handlers):
                self._pause(slot) if slow else self._resume(slot)
        full = max([slot.outbox.size for slot in self._slots.values()], default=0) > BACKLOG
        self._moved = self._moved if full else time.monotonic()
        full = full and time.monotonic() < self._moved + TERM_SECONDS
        if full == (self._reader.fd in self._handlers):
            self._unwatch(self._reader.fd) if full else self._watch(self._reader.fd, self._on_link)

    def _flush_one(self, outbox: Outbox) -> None:
        size = outbox.size
        try:
            empty = outbox.flush()
        except OSError:
            if outbox is self._outbox:
                raise
            return      # a slot that died; SIGCHLD tells
        if size > BACKLOG and outbox.size < size:
            self._moved = time.monotonic()
        if empty:
            self._unwatch(outbox.fd)
        elif outbox.fd not in self._handlers:
            self._watch(outbox.fd, lambda: None, select.POLLOUT)

    def _pause(self, slot: "_Slot") -> None:
        for fd in (slot.results.fd,) + tuple(slot.streams):
            self._unwatch(fd)

    def _resume(self, slot: "_Slot") -> None:
        self._watch(slot.results.fd, lambda: self._on_results(slot))
        for fd in slot.streams:
            self._watch(fd, functools.partial(self._on_output, slot, fd))

    # From the controller

    def _on_link(self) -> None:
        self._heard = time.monotonic()
        for kind, ident, data in self._reader.read():
            if kind == CALL:
                self._on_call(ident, data)
            elif kind == PART:
                self._on_part(ident, data)
            elif kind == FUNCTION:
                self._functions[ident] = [data]
                if data[25]:
                    self._arriving[ident] = [self._functions[ident], _parts_size(data)]
            elif kind == FORGET:
                self._functions.pop(ident, None)
                for slot in self._slots.values():
                    if ident in slot.functions:
                        slot.functions.discard(ident)
                        slot.outbox.put((data,))
            elif kind == KILL:
                self._kill(ident)
            elif kind == RECALL:
                self._recall(ident)
            elif kind == PING:
                self._send(PONG, ident)
            elif kind == MODULE:
                self._answer += data[17:]
                if not ident:           # how many frames of it are still to come
                    self._on_module(*pickle.loads(self._answer))
                    self._answer = b""
            elif kind == CONFIG:
                self._config.update(pickle.loads(data[17:]))
            elif kind == FILES:
                self._send(STORED, ident, pickle.dumps(store_files(self._scratch, **pickle.loads(data[17:]))))
                self._heard = time.monotonic()      # that may have taken long

    def _on_call(self, ident: int, data: bytes) -> None:
        if ident in self._doomed:
            return
        call = _Call(ident, self._functions[IDENT.unpack_from(data, 17)[0]], data)
        self._queue.append(call)
        if call.missing:
            self._arriving[ident] = [call, call.missing]

    def _on_part(self, ident: int, data: bytes) -> None:
        if ident not in self._arriving:
            return      # of a call that was killed, or whose slot died while it was being sent
        owner, missing = self._arriving[ident]
        missing -= len(data) - 17
        if type(owner) is list:
            owner.append(data)
        else:
            owner.missing = missing
            (owner.slot.outbox.put if owner.slot else owner.frames.extend)((data,))
        if missing:
            self._arriving[ident][1] = missing
        else:
            del self._arriving[ident]

    def _on_module(self, name: str, answer: bytes) -> None:
        self._modules[name] = answer
        for slot, number in self._asking.pop(name, ()):
            self._reply(slot, number, answer)

    # Calls and slots

    def _dispatch(self) -> None:
        """Deal the queue out evenly, forking slots as they are needed; then see that none waits beside an idle slot."""
        live = [slot for slot in self._slots.values() if not slot.killed]
        if self._queue:
            idle = sum(not slot.calls for slot in live)
            for _ in range(min(self._config["slots"] - len(live), len(self._queue) - idle)):
                live += self._new_slots()
            level = -(-(len(self._queue) + sum(len(slot.calls) for slot in live)) // len(live)) if live else 0
            for slot in live:
                self._fill(slot, min(level, SLOT_DEPTH))
        elif len(live) > 1:
            laden = max(live, key=lambda slot: len(slot.calls))
            if len(laden.calls) > 1 and not all(slot.calls for slot in live) and self._take_back(laden):
                self._dispatch()

    def _fill(self, slot: _Slot, level: int) -> None:
        permits, queue = [], self._queue
        while queue and len(slot.calls) < level:
            call = queue[0]
            tag = IDENT.unpack_from(call.frames[0], 17)[0]
            is_new = tag not in slot.functions
            if slot.receiving and slot.receiving.missing or slot.calls and (call.is_long or is_new and len(call.function) > 1):
                break       # what is long goes to an idle slot only, which reads it, and nothing overtakes it on the way
            queue.popleft()
            if is_new:
                slot.functions.add(tag)
                slot.outbox.put(call.function)
            slot.outbox.put(call.frames)
            slot.calls[call.ident] = call
            if call.is_long:
                call.slot, call.frames, slot.receiving = slot, [], call
            else:
                permits.append(IDENT.pack(call.ident))
        if permits:
            os.write(slot.permits[1], b"".join(permits))      # before the calls are: no permit must mean taken back

    def _take_back(self, slot: "_Slot") -> bool:
        """Take every call that `slot` has not started back into the queue; return whether there was one."""
        try:
            permits = os.read(slot.permits[0], 8 * SLOT_DEPTH)
        except BlockingIOError:
            return False
        self._queue.extendleft([slot.calls.pop(ident) for (ident,) in IDENT.iter_unpack(permits)][::-1])
        return True

    def _recall(self, wanted: int) -> None:
        """Give up to `wanted` calls that no slot has started back to the controller."""
        for slot in self._slots.values():
            if len(slot.calls) > 1 and len(self._queue) < wanted:
                self._take_back(slot)
        given = [self._queue.pop() for _ in range(min(wanted, len(self._queue)))]
        self._send(RECALLED, 0, b"".join(IDENT.pack(call.ident) for call in reversed(given)))

    def _kill(self, ident: int) -> None:
        for slot in self._slots.values():
            if ident in slot.calls:
                # In this order: without permits it can start nothing new, so what then has no result is what runs.
                self._take_back(slot)
                while self._on_results(slot):
                    pass
                if ident in slot.calls:
                    if slot.expecting and slot.answering == ident:
                        return      # too late: it does nothing but write
                    slot.killed, slot.kill_at = True, time.monotonic() + TERM_SECONDS
                    signal_tree(slot.pid, signal.SIGTERM)
                    return
        for call in self._queue:
            if call.ident == ident:
                self._queue.remove(call)
                self._arriving.pop(ident, None)
                self._send(KILLED, ident, pickle.dumps(None))
                return
        self._doomed.append(ident)      # its CALL has been overtaken, or it has just finished
        self._send(KILLED, ident, pickle.dumps(None))

    def _new_slots(self) -> list[_Slot]:
        """Fork one more slot; return it, or none if that is not possible."""
        try:
            taken = {slot.number for slot in self._slots.values()}
            number = next(number for number in itertools.count() if number not in taken)
            slot = _Slot(self._config["machine"], number, self._prctl, self._high, self._scratch)
        except OSError as error:
            if not self._slots:
                raise
            sys.stderr.write("executors shim: only %d slots: %s\n" % (len(self._slots), error))
            self._config["slots"] = len(self._slots)
            return []
        self._high = slot.high
        self._slots[slot.pid] = slot
        self._resume(slot)
        self._watch(slot.imports.fileno(), lambda: self._on_wanted(slot))
        return [slot]

    # From the slots

    def _on_results(self, slot: "_Slot") -> bool:
        """Pass on what one read brought; return whether there may be more. What a call printed goes before its result."""
        try:
            frames = slot.results.read()
        except BlockingIOError:
            return False
        except (EOFError, FrameError):
            self._unwatch(slot.results.fd)
            return False
        for fd in slot.streams:
            self._on_output(slot, fd)
        for kind, ident, data in frames:
            slot.answering = ident
            slot.expecting = slot.expecting - len(data) + 17 if kind == PART else _parts_size(data)
            if not slot.expecting:
                slot.calls.pop(ident, None)
        self._outbox.put([data for _kind, _ident, data in frames])
        if not slot.calls:      # nothing runs there: what it has written is all there is, newline or not
            slot.last_words = b""
            for fd in slot.streams:
                self._pass_output(slot, fd, len(slot.streams[fd]))
        return True

    def _on_output(self, slot: _Slot, fd: int) -> bool:
        """Pass on whole lines; return whether there may be more."""
        try:
            chunk = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return False
        if not chunk:
            self._unwatch(fd)
        elif fd == slot.stderr:
            slot.last_words = (slot.last_words + chunk)[-LAST_WORDS:]
        slot.streams[fd] = text = slot.streams[fd] + chunk
        cut = text.rfind(b"\n") + 1 if chunk else len(text)
        if not cut and len(text) >= INLINE:     # an endless line: cut it, between two characters of UTF-8
            cut = len(text)
            while cut > len(text) - 3 and text[cut - 1] & 0xC0 == 0x80:
                cut -= 1
            cut -= text[cut - 1] >= 0xC0
        self._pass_output(slot, fd, cut)
        return bool(chunk)

    def _pass_output(self, slot: _Slot, fd: int, size: int) -> None:
        text = slot.streams[fd]
        slot.streams[fd] = text[size:]
        if size and self._config["output"]:
            self._send(OUTPUT, 2 if fd == slot.stderr else 1, text[:size])

    def _on_wanted(self, slot: "_Slot") -> None:
        try:
            _kind, number, size = HEADER.unpack(_receive(slot.imports, 17))
            name = _receive(slot.imports, size).decode()
        except (ImportError, OSError):
            self._unwatch(slot.imports.fileno())
            return
        if name in self._modules:
            self._reply(slot, number, self._modules[name])
        elif name in self._asking:
            self._asking[name].append((slot, number))
        else:
            self._asking[name] = [(slot, number)]
            self._send(WANTED, 0, name.encode())

    def _reply(self, slot: _Slot, number: int, answer: bytes) -> None:
        try:
            slot.imports.sendall(frame(MODULE, number, answer))
        except OSError:
            pass        # it died while it waited

    def _on_signal(self) -> None:
        """Learn who died. A slot's death is reported with the call that ran in it; what its children left is killed."""
        os.read(self._wake, 4096)
        for pid, status in _changed_children():
            slot = self._slots.pop(pid, None)
            if slot is not None:
                self._bury(slot, status)
        kill_children(spare=self._slots)

    def _drain(self, slot: "_Slot") -> None:
        """Pass on all that a dead slot has left in its pipes."""
        while self._on_results(slot):
            pass
        for fd in slot.streams:
            while self._on_output(slot, fd):
                pass
            self._pass_output(slot, fd, len(slot.streams[fd]))

    def _bury(self, slot: _Slot, status: int) -> None:
        self._take_back(slot)
        self._drain(slot)
        if not slot.answering and not slot.calls and self._queue:
            call = self._queue.popleft()        # it never came to life: blame its first call, or we fork slots for it for ever
            slot.calls[call.ident] = call
        for ident in slot.calls:        # at most one is left: the one that ran
            self._arriving.pop(ident, None)
            if slot.killed:
                self._send(KILLED, ident, pickle.dumps(slot.number))
            else:
                self._send(DIED, ident, pickle.dumps((slot.number, status, slot.last_words)))
        self._pause(slot)
        self._unwatch(slot.imports.fileno())
        self._unwatch(slot.outbox.fd)
        slot.close()


# ───────────────────────────────────────────────────── processes ──────────────────────────────────────────────────


def _no_prctl(option: int, value: int) -> None:
    pass


def _find_prctl() -> Prctl:
    """Return Linux's `prctl(option, value)`, or something that does nothing."""
    if not sys.platform.startswith("linux"):
        return _no_prctl
    try:
        import ctypes
        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return _no_prctl
    return lambda option, value: prctl(option, value, 0, 0, 0)


def _changed_children(options: int = 0) -> Iterator[tuple[int, int]]:
    """Yield `(pid, status)` of children that have ended, reaping them, until there are no more."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | options)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status


def _process_tree() -> dict[int, list[int]]:
    """Return {parent: [children]} of the living processes on this machine; empty where there is no /proc."""
    tree = collections.defaultdict(list)
    for name in os.listdir("/proc") if os.path.exists("/proc/self/stat") else ():
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name, "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except (OSError, ValueError):
                continue        # it has just ended
            if state not in b"ZX":
                tree[int(parent)].append(int(name))
    return tree


def signal_tree(pid: int, number: int) -> None:
    """Signal a process and all that descends from it; without /proc, its process group."""
    tree, pids = _process_tree(), [pid]
    for parent in pids:
        pids += tree.get(parent, ())
    if not tree:
        pids = [-pid]
    for one in pids:
        try:
            os.kill(one, number)
        except (ProcessLookupError, PermissionError):
            pass


def kill_children(spare: Container[int] = ()) -> None:
    """Kill the children of this process, with all below them, except `spare` and what is below those."""
    for pid in _process_tree().get(os.getpid(), ()):
        if pid not in spare:
            signal_tree(pid, signal.SIGKILL)


def kill_descendants() -> None:
    """Kill all that descends from this process. As a subreaper it inherits what its dead children leave, until none do."""
    while True:
        kill_children()
        try:
            os.wait()
        except ChildProcessError:
            return


def _guard(shim: int, link_in: int, scratch: str) -> None:
    """Wait for the shim's end, then kill what it left. End it if it is frozen, or if its controller is gone and it stays."""
    _find_prctl()(36, 1)
    wake, wake_out = os.pipe()
    os.set_blocking(wake_out, False)
    signal.set_wakeup_fd(wake_out)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    poll.register(link_in, getattr(select, "POLLRDHUP", 0))      # a hang-up is always told
    gone, patience = False, None
    while True:
        events = poll.poll(patience)
        if not events:
            signal_tree(shim, signal.SIGKILL)
        for fd, _event in events:
            if fd == wake:
                os.read(wake, 4096)
            else:
                poll.unregister(link_in)
                gone = True
        frozen = False
        for pid, status in _changed_children(os.WUNTRACED):
            if pid == shim and not os.WIFSTOPPED(status):
                kill_descendants()
                _remove(scratch)
                return
            frozen = frozen or pid == shim
        patience = 4000 * TERM_SECONDS if gone or frozen else patience


def _exit_after(run: Callable[[], object]) -> None:
    """Be a forked child: leave when `run` returns or raises, and never up the parent's stack."""
    status = 1
    try:
        run()
        status = 0
    except SystemExit:
        status = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os._exit(status)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        import shutil
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)


def _enlarge(fd: int) -> None:
    """Give a pipe a megabyte where the platform lets us (Linux: F_SETPIPE_SZ); large arrays then move faster."""
    try:
        fcntl.fcntl(fd, 1031, MAX_FRAME)
    except OSError:
        pass


def serve(modules: dict[str, bytes]) -> None:
    """Become guardian and shim on descriptors 0 and 1; return when all is over.

    modules: {name: pickled answer for `ModuleFinder`}, what slots can import from the start.
    """
    link_in, link_out = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (0, 1))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)       # a stray print must not get between frames
    os.close(null)
    for fd in (link_in, link_out):
        _enlarge(fd)
    try:
        os.setsid()     # so that whoever kills the command that started us does not kill those who clean up
    except OSError:
        pass            # it leads one already
    scratch = os.path.join(os.environ.get("TMPDIR") or "/tmp", "executors-" + os.urandom(8).hex())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 16), hard))
    shim = os.fork()
    if shim == 0:
        _exit_after(lambda: Shim(link_in, link_out, modules, scratch).run())
    os.close(link_out)
    _guard(shim, link_in, scratch)


# ─────────────────────────────────────────────────────── files ────────────────────────────────────────────────────

CACHE = ".cache/executors"      # below the home directory
INCOMING_SECONDS = 86400        # how long the leavings of a copy that was cut off stay
KEEP_SECONDS = 30 * 86400       # how long the cache keeps what no run has used


def store_files(scratch: str, names: dict[str, tuple[str, bool]], arrived: dict[str, str]) -> dict[str, str] | str:
    """Find files in this machine's cache, or check what `scp` has just left in it, and link them into the slots' directory.

    The cache is ~/.cache/executors/<sha256>/, mode 0700. There, `content` is the file, or the directory that travelled as a tar
    file, and `seal` tells whether somebody has written to it since. Temporary paths are relative to the home directory and need
    no quoting, so that scp's two protocols agree on them.

    Arguments:
        scratch: the directory that slots are to run in; made here.
        names: {name: (sha256, is a directory)}, all that slots are to find.
        arrived: {name: temporary path}, those copied in answer to an earlier call.

    Returns {name: temporary path} of what is still to be copied, or a str that says why it cannot be.
    """
    cache = os.path.join(os.path.expanduser("~"), CACHE)
    try:
        os.makedirs(cache, mode=0o700, exist_ok=True)
        for name, temporary in arrived.items():
            _admit(cache, name, os.path.join(os.path.expanduser("~"), temporary), *names[name])
        wanted = {name: os.path.join(CACHE, "incoming-" + os.urandom(8).hex())
                  for name, (digest, _is_tree) in names.items() if not _is_intact(os.path.join(cache, digest))}
        if not wanted:
            os.mkdir(scratch, 0o700)
            for name, (digest, _is_tree) in names.items():
                os.utime(os.path.join(cache, digest))
                os.symlink(os.path.join(cache, digest, "content"), os.path.join(scratch, name))
            os.chdir(scratch)
            sys.path.insert(0, scratch)
            _prune(cache)
        return wanted
    except (OSError, EOFError) as error:
        return str(error)


def _admit(cache: str, name: str, temporary: str, digest: str, is_tree: bool) -> None:
    """Move a copied file to its place if its digest is right: scp leaves a full-length corrupt file on a full disk."""
    import tarfile
    staging = temporary + ".d"
    content, place = os.path.join(staging, "content"), os.path.join(cache, digest)
    try:
        if digest_file(temporary) != digest:
            raise OSError("%s arrived damaged (its SHA-256 differs): is the disk full?" % name)
        os.mkdir(staging, 0o700)
        if is_tree:
            with tarfile.open(temporary) as tar:
                tar.extraction_filter = getattr(tarfile, "tar_filter", None)
                tar.extractall(staging)
        else:
            os.rename(temporary, content)
        with open(os.path.join(staging, "seal"), "w") as file:
            file.write(_seal(content))
        if not _is_intact(place):
            _remove(place)
            os.rename(staging, place)
    except OSError:
        if not _is_intact(place):       # another run of ours, or another machine with this home, may have just put it there
            raise
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
        _remove(staging)


def _seal(content: str) -> str:
    """Return a text that changes when somebody writes to a file, or adds one to a directory. Bytecode may come by importing."""
    entries = [(".", os.lstat(content))]
    for folder, folders, files in os.walk(content):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in folders + sorted(files):
            path = os.path.join(folder, name)
            entries.append((os.path.relpath(path, content), os.lstat(path)))
    return repr([(name, status.st_mode) + (() if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns))
                 for name, status in entries])


def _is_intact(place: str) -> bool:
    try:
        with open(os.path.join(place, "seal")) as file:
            return file.read() == _seal(os.path.join(place, "content"))
    except OSError:
        return False


def digest_file(path: str) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    import hashlib
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(MAX_FRAME), b""):
            hashed.update(block)
    return hashed.hexdigest()


def _prune(cache: str) -> None:
    for entry in os.scandir(cache):
        keep = INCOMING_SECONDS if entry.name.startswith("incoming-") else KEEP_SECONDS
        try:
            if time.time() - entry.stat().st_mtime > keep:
                _remove(entry.path)
        except OSError:
            pass        # another run prunes too


# ───────────────────────────────────────────────────── one-shot mode ──────────────────────────────────────────────

READING, UNPICKLING, RUNNING, PICKLING, WRITING = 3, 4, 5, 6, 7     # exit statuses; 2 is argparse's


def main(arguments: list[str] | None = None) -> int:
    """Run one pickled `(function, args, kwargs)` from a file, as batch queues do; return the exit status.

    The result file holds the pickle of `(True, value)`, or of `(False, exception)` if the function raised; it appears whole
    or not at all. Statuses: 0 ran; 2 usage; 3 cannot read the code file; 4 cannot unpickle it; 5 the function raised;
    6 cannot pickle the outcome; 7 cannot write the result file. Each but 0 comes with one line on stderr.
    """
    import argparse
    parser = argparse.ArgumentParser(description="Run one cloudpickled (function, args, kwargs).")
    parser.add_argument("--code_file", required=True, help="the pickled call")
    parser.add_argument("--result_file", required=True, help="where to leave the pickled outcome")
    options = parser.parse_args(arguments)
    stage, path, what = READING, options.code_file, "read"
    try:
        with open(options.code_file, "rb") as file:
            code = file.read()
        stage, what = UNPICKLING, "unpickle"
        function, args, kwargs = pickle.loads(code)
        ok, value = run_call(function, args, kwargs)
        stage, path, what = PICKLING, options.result_file, "pickle the outcome for"
        outcome = _pickle_outcome(ok, value)
        stage, what = WRITING, "write"
        _write_whole(options.result_file, outcome)
    except BaseException as error:      # unpickling may raise anything
        return _fail(stage, "cannot %s %s: %s: %s" % (what, path, type(error).__name__, _text(error)))
    if not ok:
        return _fail(RUNNING, "%s raised %s: %s" % (options.code_file, type(value).__name__, _text(value)))
    return 0


def _pickle_outcome(ok: bool, value: Any) -> bytes:
    import cloudpickle
    outcome: bytes = cloudpickle.dumps((ok, value))
    return outcome


def _write_whole(path: str, data: bytes) -> None:
    temporary = "%s.%d" % (path, os.getpid())
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _fail(status: int, text: str) -> int:
    sys.stderr.write("remote_worker: %s\n" % " ".join(text.split()))
    return status


if __name__ == "__main__":
    sys.exit(main())
