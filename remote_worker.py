# SPDX-License-Identifier: MIT
"""The worker's side of `executors`: unpickle, run, pickle; and the wire format both sides speak.

Nothing of this is installed anywhere. `executors.py` sends this file's own text over ssh to a bare
Python, which makes a module of it and calls `serve()`. From then on the machine runs four kinds of
process, each forked from the one before; only slots run users' code:

    guardian ──► shim ──► keeper, keeper, ... ──► slot (one for each keeper)

- A *slot* runs one call at a time. Its parent is a *keeper*: the leader of their session and, on
  Linux, the reaper of whatever the slot's processes leave behind. It ends as the slot does.
- The *shim* is one thread around `poll`. It deals calls to slots, passes their results and their
  output on, and replaces a slot that died or was killed. It never unpickles a call or a result. It
  ends when its controller does: at end of file, or after a lease without a word.
- The *guardian* only waits: for the shim to die, after which it kills whatever the shim left; or
  for the controller's end of the connection to vanish while the shim cannot act on it.

A frame is a header and a payload:

    ┌────────┬──────────────┬──────────┬────────────────────────────┐
    │ kind 1 │ identifier 8 │ length 8 │ payload, at most MAX_FRAME │   (network byte order, bytes)
    └────────┴──────────────┴──────────┴────────────────────────────┘

CALL, FUNCTION, MODULE, RESULT and ERROR are *messages*. Their payload begins with a tag (CALL:
which function; RESULT and ERROR: the slot's number and the microseconds run, see SLOT_SHIFT) and a
count n. With n = 0 the rest is a pickle. Otherwise n lengths follow, of a pickle and its
out-of-band buffers, and their bytes come after in PART frames of the same identifier, cut so that
no frame is long enough to keep another waiting.

                 calls ►        CALL and FORGET, no parts
                 permits ►      the identifier of each CALL
    shim         ◄ questions    what it has not got: a FUNCTION, the parts of its CALL, or one of
                                QUESTIONS, which the controller answers
                 answers ►      that, as whole messages
                 ◄ results      RESULT and ERROR, with parts; beside them what it prints        slot

What a slot has not got it *pulls*, when it needs it, so that nothing long stands in the way of what
is short. And a call that waits can still be taken back: a slot starts one only after it has read
its permit. The shim holds the reading end of that pipe too: what it reads back has not been started
and, the kernel having handed each permit to one reader only, never will be. So when a slot dies,
the call it leaves without a result or a permit is the one that ran.
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
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:       # importing typing would take a tenth of the time to the first result
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    Buffer = Any        # bytes, bytearray or memoryview
    Packed = Any        # from `pack`: bytes, all in one; or lengths and buffers

__version__ = "0.2.0"      # of executors, which this file belongs to
__all__ = [
    "ABSENT", "EACH", "NAMED", "NONSENSE", "ONCE", "FrameError", "FrameReader", "MessageReader",
    "Outbox", "PackageLoader", "Pickled", "Prepacked", "Script", "Shipped", "describe",
    "digest_file", "enlarge", "frame", "is_data", "is_plain", "main", "message", "module_of",
    "nameless_file", "pack", "pack_apart", "pack_call", "pack_function", "pack_local",
    "pack_outcome", "pack_outward", "path_of", "pickle_definition", "process_tree", "reference",
    "run_call", "run_chunk", "run_plain", "run_shipped", "run_some", "run_with", "script",
    "send_signal", "serve", "signal_tree", "take_seconds", "unpack", "write_all",
]

MAX_FRAME = 1 << 20     # bytes of payload; a longer one on the wire means a garbled stream
INLINE = 1 << 16        # bytes of pickle in one frame; buffers from this size leave the pickle
READ_SIZE = 1 << 16     # bytes asked of one read; small frames come many to a read
SLOT_DEPTH = 64         # calls in a slot's pipe, with the running one: busy through our turn
BACKLOG = 4 << 20       # bytes queued towards one descriptor at which its source is no longer read
TERM_SECONDS = 0.5      # between SIGTERM and SIGKILL
STATE_SECONDS = 1.0     # between two states of a progress bar that are passed on
LAST_WORDS = 2000       # bytes of stderr kept to explain a slot's death
SHARED_CACHES = 64      # cached functions that a slot keeps, which came by value
NEVER = float("inf")
HEADER = struct.Struct("!BQQ")
TAG = struct.Struct("!QB")          # tag and count of a message, behind its header
SHORT = struct.Struct("!BQQQB")     # HEADER and TAG of a message that is one frame
IDENT = struct.Struct("!Q")
GREETING = struct.Struct("!IQQ")    # cores, and the processes of shim and guardian
DEATH = struct.Struct("!qi")        # a slot's number, or NO_SLOT; its wait status
NO_SLOT = -1
HEAD = HEADER.size
BODY_AT = SHORT.size    # in a message's first frame
COUNT_AT = BODY_AT - 1
SLOT_SHIFT = 48         # the tag of a result is (slot's number << SLOT_SHIFT) + microseconds
INITIALIZER = 1 << 62   # identifiers: of attempts from 1, of functions from here, of modules
FIRST_MODULE = 1 << 63

# Controller to shim; slots get CALL and FORGET, and what they ask for with CALL, FUNCTION, WANTED.
CONFIG, CALL, FUNCTION, FORGET, KILL, RECALL, PING, MODULE, PRINTED, QUIT = range(1, 11)
# Shim to controller; RESULT, ERROR, MISSING, UNFIT, PART and STORED come from slots.
HELLO, RESULT, ERROR, DIED, KILLED, RECALLED, PONG, WANTED, OUTPUT, STORED, SLOTS = range(32, 43)
UNFIT, COPY, PART, MISSING, NAME, METADATA, CHILDREN, RETIRED = range(43, 51)
QUESTIONS = WANTED, COPY, NAME, METADATA, CHILDREN       # which MODULE answers
_MESSAGES = {CALL, FUNCTION, MODULE, RESULT, ERROR, MISSING, UNFIT}


# ──────────────────────────────────────────── frames ──────────────────────────────────────────────


class FrameError(Exception):
    """The stream cannot be one of frames: it ended inside one, or says what it may not say."""


# What it raises to read and decode what nobody should have sent.
NONSENSE = FrameError, struct.error, ValueError, LookupError, ArithmeticError, TypeError


def frame(kind: int, ident: int = 0, payload: bytes = b"") -> bytes:
    """Return one frame as bytes."""
    return HEADER.pack(kind, ident, len(payload)) + payload


def message(kind: int, ident: int, tag: int, packed: Packed) -> list[Buffer]:
    """Return the frames of a message, as buffers; `packed` comes from `pack` and is not copied."""
    if type(packed) is bytes:
        return [SHORT.pack(kind, ident, TAG.size + len(packed), tag, 0) + packed]
    lengths, buffers = packed
    head = struct.pack("!QB%dQ" % len(lengths), tag, len(lengths), *lengths)
    out: list[Buffer] = [frame(kind, ident, head)]
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        for at in range(0, len(view), MAX_FRAME):
            part = view[at:at + MAX_FRAME]
            out += HEADER.pack(PART, ident, len(part)), part
    return out


def _lengths(data: Buffer) -> tuple[int, ...]:
    """Return the lengths of the segments that follow a message's first frame, in PARTs."""
    return struct.unpack_from("!%dQ" % data[COUNT_AT], data, BODY_AT)


_CUT_OFF = "the stream ended inside a frame: expected %d bytes, got %d"


class FrameReader:
    """Cut frames out of a descriptor, blocking or polled: one `read` system call at a time.

    `read()` returns the frames `(kind, identifier, bytes)` that one read completed, each with its
    header at the front. It raises EOFError where the stream ends between frames, FrameError where
    it ends inside one.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._rest = b""                # less than one frame, and short
        self._long: Any = ()            # (kind, identifier, data) of one that is read in place
        self._view = memoryview(b"")    # what of it is still to come

    def read(self) -> list[Any]:
        """Read once; return what is complete. Raises EOFError, FrameError or OSError."""
        if self._view:
            return self._read_in_place()
        chunk = os.read(self.fd, READ_SIZE)
        data = self._rest + chunk
        frames = []
        at = size = 0
        end = len(data)
        unpack_from = HEADER.unpack_from
        while end - at >= HEAD:
            kind, ident, size = unpack_from(data, at)
            if size > MAX_FRAME:
                raise FrameError(
                    "a frame of kind %d announces %d bytes, more than %d" % (kind, size, MAX_FRAME))
            stop = at + HEAD + size
            if stop > end:
                break
            frames.append((kind, ident, data[at:stop]))
            at = stop
            size = 0
        self._rest = data[at:]
        if not chunk:
            if data:
                raise FrameError(_CUT_OFF % (HEAD + size, end))
            raise EOFError
        done = self._complete(frames)       # before a long one is begun: they may say where it goes
        if size > INLINE:
            self._begin(kind, ident, size, self._rest)
            self._rest = b""
        return done

    def _begin(self, kind: int, ident: int, size: int, start: bytes) -> None:
        """Read the rest of a long frame straight into its buffer: its bytes are moved once."""
        data = bytearray(HEAD + size)
        data[:len(start)] = start
        self._long = kind, ident, data
        self._view = memoryview(data)[len(start):]

    def _read_in_place(self) -> list[Any]:
        count = os.readv(self.fd, [self._view])
        if not count:
            raise FrameError(_CUT_OFF % (len(self._view), 0))
        self._view = self._view[count:]
        return [] if self._view else self._complete([self._long])

    def _complete(self, frames: list[Any]) -> list[Any]:
        return frames


class MessageReader(FrameReader):
    """Like FrameReader, but `read()` returns `(kind, identifier, tag, segments)`, for `unpack`.

    Frames that are no messages come as `(kind, identifier, 0, payload)`. PARTs are read straight
    into the segment they are part of. If there is no memory for a message, its segments are a
    MemoryError, which `unpack` raises.

    Arguments:
        is_expected: tells whether a message of this kind and identifier may come; one that may not
            is a FrameError.
    """

    def __init__(self, fd: int, is_expected: Callable[[int, int], bool] = lambda *_: True) -> None:
        super().__init__(fd)
        self.is_expected = is_expected
        # By identifier, messages whose parts are still coming, and views of what is still empty.
        self._unfinished: dict[int, Any] = {}

    def forget(self, ident: int) -> None:
        """Drop what has arrived of a message whose sender is gone."""
        self._unfinished.pop(ident, None)

    def _begin(self, kind: int, ident: int, size: int, start: bytes) -> None:
        if kind == PART and ident in self._unfinished:
            view = self._place(ident, size)
            got = len(start) - HEAD
            view[:got] = start[HEAD:]
            self._long = kind, ident, b""       # it is where it belongs
            self._view = view[got:]
        else:
            super()._begin(kind, ident, size, start)

    def _complete(self, frames: list[Any]) -> list[Any]:
        out = []
        for kind, ident, data in frames:
            if kind == PART:
                if ident in self._unfinished:       # otherwise of a message that was forgotten
                    if data:
                        self._place(ident, len(data) - HEAD)[:] = data[HEAD:]
                    if not self._unfinished[ident][1]:
                        out.append(self._unfinished.pop(ident)[0])
            elif kind not in _MESSAGES:
                out.append((kind, ident, 0, data[HEAD:]))
            else:
                if len(data) < BODY_AT or not self.is_expected(kind, ident):
                    raise FrameError("a message of kind %d, number %d, that nobody asked for" % (
                        kind, ident))
                tag = IDENT.unpack_from(data, HEAD)[0]
                if data[COUNT_AT]:
                    segments, views = _segments(data)
                    self._unfinished[ident] = (kind, ident, tag, segments), views
                else:
                    out.append((kind, ident, tag, (data[BODY_AT:],)))
        return out

    def _place(self, ident: int, size: int) -> memoryview:
        """Return where the next part of a message goes, which has so many bytes."""
        views = self._unfinished[ident][1]
        view: Any = views.pop(0)
        if size > len(view):
            raise FrameError("a part of %d bytes overruns its segment of %d" % (size, len(view)))
        if size < len(view):
            views.insert(0, view[size:])
        if isinstance(view, range):
            return memoryview(bytearray(size))      # it goes nowhere
        place: memoryview = view[:size]
        return place


def _segments(data: Buffer) -> tuple[Any, list[Any]]:
    """Return the buffers of a message, or an error, and what its parts fill: views, or ranges."""
    if len(data) < BODY_AT + 8 * data[COUNT_AT]:
        raise FrameError("a message's head is cut short")
    lengths = _lengths(data)
    if sum(lengths) >> 48:
        raise FrameError("a message announces %d bytes" % sum(lengths))
    try:
        segments = [*map(_segment, lengths)]
        return segments, [memoryview(one) for one in segments]
    except (MemoryError, OSError):
        error = MemoryError("there is no memory for %d bytes" % sum(lengths))
        return error, [range(length) for length in lengths]


def _segment(size: int) -> Any:
    """Return a buffer to read into; a long one is mapped, so its pages are not zeroed before."""
    if size < MAX_FRAME:
        return bytearray(size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class Outbox:
    """Frames on their way into a descriptor; if that does not block, call `flush` again."""

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
        """Write what the descriptor takes; return whether nothing is left. Raises OSError."""
        queue = self._queue
        while queue:
            batch: list[Buffer] = []
            size = 0
            while queue and size < MAX_FRAME and len(batch) < 512:
                batch.append(queue.popleft())
                size += len(batch[-1])
            try:
                if size <= INLINE:
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
    """Write to a blocking descriptor, whatever signal handlers cut short."""
    for buffer in buffers:
        wrote = os.write(fd, buffer)
        while wrote < len(buffer):
            wrote += os.write(fd, memoryview(buffer)[wrote:])


# ──────────────────────────────────── how the script is pickled ───────────────────────────────────
#
# What `__main__` defines cannot be imported elsewhere, nor can modules that were given to
# `cloudpickle.register_pickle_by_value`. Here both are called the *script*. A pickle can carry what
# the script defines in three ways:
#
#     to a slot       By name. What the names stand for goes along as *definitions*: each is pickled
#                     by itself, and sent again only when its content changed. A slot binds them in
#                     a `__main__` of its own (Script), which all code there shares.
#     to a process    By name, if that process has it; for ProcessExecutor.
#     back home       By the token that it was sent with. So a result refers to the controller's own
#                     classes and functions, and never changes them.
#
# Lambdas, closures and classes made inside functions have no name; cloudpickle carries them by
# value.

_SHORT = {int, float, complex, bool, type(None)}    # but an int that nobody writes down
_PLAIN = _SHORT | {str, bytes}
CACHED = type(functools.lru_cache(len))
_DEFINITIONS = types.FunctionType, type, CACHED
NOTHING = pickle.dumps(None, 5)     # the answer to a question that has none
ABSENT = b""        # the version of a name that the script does not have


def is_plain(obj: object) -> bool:
    """Return whether `pickle` alone can carry `obj`: nothing in it can refer to the script."""
    return type(obj) in _PLAIN or (
        type(obj) is tuple and (_PLAIN.issuperset(map(type, obj)) or all(map(is_plain, obj))))


def reference(obj: Any) -> tuple[str, ...]:
    """Return `(module, name)` if another machine can import a function or class by that.

    Return `()` for everything else, and for what the script defines.
    """
    if not isinstance(obj, (types.FunctionType, types.BuiltinFunctionType, type, CACHED)):
        return ()
    module = getattr(obj, "__module__", "")
    name = getattr(obj, "__qualname__", "")     # what is cached need not be a function
    is_there = getattr(sys.modules.get(module), name, None) is obj
    return (module, name) if is_there and not _goes_by_value(module) else ()


def _goes_by_value(module: object) -> bool:
    if module == "__main__":
        return True
    registry: Any = getattr(sys.modules.get("cloudpickle"), "list_registry_pickle_by_value", list)
    return isinstance(module, str) and any(
        (module + ".").startswith(one + ".") for one in registry())


def _look_up(module: object, path: str) -> Any:
    """Return what a dotted path leads to in a loaded module, or `ABSENT`."""
    try:
        return operator.attrgetter(path)(sys.modules[module])       # type: ignore[index]
    except (AttributeError, KeyError, TypeError):
        return ABSENT


def path_of(obj: Any) -> tuple[Any, str]:
    """Return the module and the dotted path of a definition of the script, or `(None, "")`."""
    module = getattr(obj, "__module__", None)
    path = getattr(obj, "__qualname__", None)
    if type(path) is str and "<" not in path and _goes_by_value(module) and (
            _look_up(module, path) is obj):
        return module, path
    return None, ""


# A token stands for a definition in what comes back. Both tables are weak.
_tokens: Any = weakref.WeakKeyDictionary()          # definition -> token
_by_token: Any = weakref.WeakValueDictionary()      # token -> definition
_arrived: Any = weakref.WeakSet()       # the definitions that did not begin in this process
_attributes_of: Any = weakref.WeakKeyDictionary()   # class that was sent -> their names


def _token_of(obj: Any) -> bytes:
    token: bytes = _tokens.setdefault(obj, os.urandom(8))
    _by_token[token] = obj
    return token


def _arrive(make: Callable[..., Any], args: Any, token: bytes, *key: str) -> Any:
    """Make a function or class that was sent, and bind it, if it has a key, before its state comes.

    So definitions may refer to each other.
    """
    before = _by_token.get(token)
    try:
        obj = make(*args)
    except Exception as error:
        raise _refuse(error, args[1] if type(args[1]) is str else "a function") from error
    if obj is not before:       # otherwise it is here already, or it began here
        _tokens[obj] = token
        _by_token[token] = obj
        _arrived.add(obj)
    if key:
        script.bind(key, obj)
    return obj


def _come_home(token: bytes, path: str) -> Any:
    """Return what was sent from here with a token, or what a path leads to from there."""
    obj = _by_token.get(token)
    if obj is None:
        raise pickle.UnpicklingError("it refers to a function or class that is gone here")
    return operator.attrgetter(path)(obj) if path else obj


def _set_class(cls: Any, state: Any) -> None:
    """Set the attributes of a class that was sent. What began here never takes them from there.

    An attribute that it had in another version, and has no more, is deleted.
    """
    if cls in _arrived:
        set_state, attributes = state
        try:
            for name in _attributes_of.get(cls, ()):
                if name in vars(cls) and name not in attributes[0]:
                    delattr(cls, name)
            set_state(cls, attributes)
        except Exception as error:
            raise _refuse(error, cls.__name__) from error
        _attributes_of[cls] = {*attributes[0]}


def _refuse(error: Exception, name: str) -> TypeError:
    return TypeError("%s of the script cannot be made anew here (%s: %s); if a module of its own "
                     "defines it, that is sent" % (name, type(error).__name__, error))


def _make_class(make: Callable[..., Any], meta: Any, name: str, bases: Any, *args: Any) -> Any:
    """Make a class without the hooks of the script: they have run where the class began."""
    hooks = [(one, hook) for one in meta.__mro__
             for hook in ("__new__", "__init__", "__call__", "__prepare__")]
    hooks += [(one, "__init_subclass__") for base in bases
              for one in getattr(getattr(base, "__origin__", base), "__mro__", ())]
    hidden = {(one, hook): vars(one)[hook] for one, hook in hooks
              if one in _arrived and hook in vars(one)}
    for one, hook in hidden:
        delattr(one, hook)
    try:
        return make(meta, name, bases, *args)
    finally:
        for (one, hook), value in hidden.items():
            setattr(one, hook, value)


def _make_cached(settings: dict[str, Any], function: Any) -> Any:
    return functools.lru_cache(**settings)(function)


_caches: dict[bytes, Any] = {}      # by digest, the cached functions that have no name


def _share_cached(digest: bytes, settings: dict[str, Any], function: Any) -> Any:
    """Return the one cached function of this content, so that its cache outlives a call."""
    if digest not in _caches:
        _caches[digest] = _make_cached(settings, function)
    while len(_caches) > SHARED_CACHES:
        del _caches[next(iter(_caches))]
    return _caches[digest]


def _remake(make: Callable[..., Any], args: Any, attributes: Mapping[str, Any]) -> Any:
    """Make what has a name in the script, which its pickle would have been."""
    obj = make(*args)
    for name, value in attributes.items():
        try:
            object.__setattr__(obj, name, value)
        except (AttributeError, TypeError):     # it cannot have any
            pass
    return obj


class _Reducers:
    """What our picklers share; mixed into cloudpickle's Pickler by `_pickler`."""

    def refer(self, obj: Any, module: Any, path: str) -> Any:
        """Return what stands for something that the script has at a path, or None: by value."""
        return None

    def reducer_override(self, obj: Any) -> Any:
        """Reduce definitions, and what is known by a name. See `pickle.Pickler`."""
        kind: Any = type(obj)
        if isinstance(obj, _DEFINITIONS):
            found = self.refer(obj, *path_of(obj))
            if found is not None:
                return found
            if kind is CACHED:
                return self.reduce_cached(obj)
            made = super().reducer_override(obj)        # type: ignore[misc]
            if type(made) is not tuple or len(made) != 6:
                return made
            return (self.reduce_function(obj, made) if kind is types.FunctionType
                    else self.reduce_class(obj, made))
        if kind is types.MethodType and isinstance(obj.__self__, type) and (
                getattr(obj.__self__, obj.__name__, None) == obj):
            return obj.__reduce__()     # by its class; cloudpickle would make a second function
        name = _constants_of(kind).get(id(obj))
        if name and _look_up(kind.__module__, name) is obj:
            return name
        return self.reduce_named(obj) if _may_be_a_name(kind) else NotImplemented

    def reduce_cached(self, cached: Any) -> Any:
        """Carry a cached function by value, with its settings, unless it can be imported."""
        module, path = getattr(cached, "__module__", None), getattr(cached, "__qualname__", "")
        if module and not _goes_by_value(module) and _look_up(module, path) is cached:
            return path
        return _share_cached, (
            _digest_cached(cached), cached.cache_parameters(), cached.__wrapped__)

    def reduce_function(self, function: Any, made: tuple[Any, ...]) -> Any:
        """Complete what cloudpickle makes of a function."""
        return made

    def reduce_class(self, cls: Any, made: tuple[Any, ...], key: Any = ()) -> Any:
        """Complete what cloudpickle makes of a class: its `__slots__`, and a setter of our own."""
        make, args, (state, others), _, _, set_state = made
        new = type(cls).__new__
        is_in_c = new is not type.__new__ and not hasattr(new, "__code__")
        if is_in_c and "__slots__" in vars(cls):        # a msgspec.Struct: it takes none
            raise TypeError("its metaclass is not written in Python")
        if vars(cls).get("__slots__") and len(args) == 6:
            slots = cls.__slots__
            make_kwargs = {**args[3], "__slots__": slots}
            args = (*args[:3], make_kwargs, *args[4:])
            private = "_" + cls.__name__.lstrip("_")
            names = (slots,) if isinstance(slots, str) else slots
            hidden = {"__slots__", *names, *(private + name for name in names)}
            state = {name: value for name, value in state.items() if name not in hidden}
        if len(args) == 6:      # it is no Enum
            make, args = _make_class, (make, *args)
        return (_arrive, (make, args, _token_of(cls), *key), (set_state, (state, others)),
                None, None, _set_class)

    def reduce_named(self, obj: Any) -> Any:
        """Reduce what may say that its pickle is a name: a NewType, a ParamSpec, a sentinel."""
        made = obj.__reduce_ex__(5)
        if type(made) is not str:
            return made
        module: Any = getattr(obj, "__module__", None)
        if _look_up(module, made) is not obj:
            module = "__main__"
        if not _goes_by_value(module) or _look_up(module, made) is not obj:
            return made
        found = self.refer(obj, module, made)
        if found is not None:
            return found
        kind = type(obj)
        attributes = {**getattr(obj, "__dict__", {})}
        plain = self.dispatch_table.get(kind)       # type: ignore[attr-defined]
        if kind.__module__ == "typing" and kind.__name__ != "NewType":
            made = plain(obj) if plain else (kind, (obj.__name__,))     # plain is of a TypeVar
            attributes["__module__"] = module
        else:
            made = kind.__new__, (kind,)
            slots = copyreg._slotnames(kind)        # type: ignore[attr-defined]
            attributes.update((name, getattr(obj, name)) for name in slots if hasattr(obj, name))
        return _remake, (*made, attributes)


@functools.lru_cache(1000)
def _constants_of(kind: Any) -> dict[int, str]:
    """Return, by `id`, the names of stateless instances in the module of their class.

    They are compared by identity, as dataclasses.MISSING is, so a pickle must refer to them.
    """
    module = kind.__module__
    if module == "builtins" or _goes_by_value(module) or _reduces_itself(kind):
        return {}
    found = {}
    for name, value in [*vars(sys.modules.get(module, object)).items()]:
        try:
            if type(value) is kind and not any(value.__reduce_ex__(5)[2:]):
                found[id(value)] = name
        except Exception:       # it cannot be pickled at all
            pass
    return found


@functools.lru_cache(1000)
def _may_be_a_name(kind: Any) -> bool:
    """Return whether the pickle of an instance may be the name that the script has it under."""
    if kind.__module__ == "typing":
        return kind.__name__ in ("NewType", "ParamSpec", "TypeVar", "TypeVarTuple")
    import cloudpickle  # type: ignore
    # Others may be those of a library's decorators.
    return kind not in cloudpickle.CloudPickler.dispatch_table and any(
        isinstance(one, types.FunctionType) for one in (kind.__reduce_ex__, kind.__reduce__))


def _reduces_itself(kind: Any) -> bool:
    return (kind.__reduce_ex__ is not object.__reduce_ex__
            or kind.__reduce__ is not object.__reduce__)


class _HomeReducers(_Reducers):
    """For results: they refer to definitions that came from where the result goes."""

    def refer(self, obj: Any, module: Any, path: str) -> Any:
        if obj in _arrived and "<" not in getattr(obj, "__qualname__", "<"):
            return _come_home, (_token_of(obj), "")
        first, _, rest = path.partition(".")
        owner = _look_up(module, first) if rest else ABSENT
        if owner is not ABSENT and owner in _arrived:
            return _come_home, (_token_of(owner), rest)
        is_inherited = first in _inherited and _inherited[first] is _look_up(module, first)
        return path if module == "__main__" and is_inherited else None

    def reduce_named(self, obj: Any) -> Any:
        """Let what came under a name go back as that."""
        return obj.__reduce_ex__(5)


class _LocalReducers(_Reducers):
    """For a process pool on this machine: by name, what its processes have in `__main__`.

    Attributes:
        there: what they surely have, by name; None if only they can say.
    """

    there: Mapping[str, object] | None = None

    def refer(self, obj: Any, module: Any, path: str) -> Any:
        if module != "__main__":
            return None
        first = path.partition(".")[0]
        if self.there is None:
            try:
                pickled = _dumps(obj, _Reducers)
            except Exception:       # it must be there, then
                return path
            return _name_or_value, (path, _outline(obj), pickled)
        is_there = first in self.there and self.there[first] is _look_up(module, first)
        return path if is_there else None


class _OutwardReducers(_Reducers):
    """For a slot: everything that the script defines at its top level goes by name.

    Attributes:
        names: `(module, name)` of the globals that the pickled code uses.
        refs: likewise, of what the pickle refers to.
        root: what is pickled as the definition of `key`, and so not referred to.
        defining: the keys that are being defined.
    """

    root: Any = None
    key: tuple[str, ...] = ()
    defining: Container[Any] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.names: set[Any] = set()
        self.refs: set[Any] = set()

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Prepacked:
            self.refs.update(obj.needs)
            return bytes, (obj.data,)
        return super().reducer_override(obj)

    def refer(self, obj: Any, module: Any, path: str) -> Any:
        key = module, path.partition(".")[0]
        if module is None or key in self.defining:
            return None
        self.refs.add(key)
        return _find, (module, path)

    def reduce_function(self, function: Any, made: tuple[Any, ...]) -> Any:
        """Have a function use the globals of the slot's `__main__`, which get what it needs."""
        make, args, (state, others), *rest = made
        module = module_of(function.__globals__)
        if module:
            code = function.__code__
            used = {*_names_in(code)}
            if "__main__" in (*code.co_names, *code.co_consts):     # it may ask that for them
                used.update(code.co_names)
            self.names.update((module, name) for name in used)
            self._add_annotations(function, module)
            others = {**others, "__globals__": {}}
            args = (args[0], _Space(module), *args[2:])
        if function is self.root:
            return (_arrive, (make, args, _token_of(function), *self.key), (state, others), *rest)
        return make, args, (state, others), *rest

    def reduce_cached(self, cached: Any) -> Any:
        if cached is not self.root:
            return super().reduce_cached(cached)
        args = cached.cache_parameters(), cached.__wrapped__
        return _arrive, (_make_cached, args, _token_of(cached), *self.key)

    def reduce_class(self, cls: Any, made: tuple[Any, ...], key: Any = ()) -> Any:
        """Have a class bound, if it is what is being defined."""
        self._add_annotations(cls, cls.__module__)
        return super().reduce_class(cls, made, self.key if cls is self.root else ())

    def _add_annotations(self, obj: Any, module: str) -> None:
        """Let `typing.get_type_hints` find what annotations name as texts (PEP 563)."""
        for text in (vars(obj) if isinstance(obj, type) else {
                "__annotations__": obj.__annotations__}).get("__annotations__", {}).values():
            if type(text) is str and _goes_by_value(module):
                self.names.update((module, name) for name in _names_in_text(text)
                                  if hasattr(sys.modules[module], name))


class _DigestReducers(_Reducers):
    """For digests of cached functions: by value, but those that they use, which are numbered."""

    found: list[Any]

    def reduce_cached(self, cached: Any) -> Any:
        if cached not in self.found:
            self.found.append(cached)
        return int, (self.found.index(cached),)


def _digest_cached(cached: Any) -> bytes:
    """Return a digest of a cached function and of all cached functions that it uses."""
    import hashlib
    found, hashed = [cached], hashlib.sha256()
    for one in found:       # grows
        settings = one.cache_parameters()
        hashed.update(_dumps((one.__wrapped__, settings), _DigestReducers, found=found))
    return hashed.digest()


class _DefinitionReducers(_OutwardReducers):
    """For definitions: they also refer to other globals of the script, as a default may be one.

    Attributes:
        globals: the keys of these by `id`.
    """

    globals: Mapping[int, Any] = types.MappingProxyType({})

    def persistent_id(self, obj: Any) -> Any:
        """Return the key of a global; see `pickle.Pickler`."""
        key = self.globals.get(id(obj))
        if key is None or key in self.defining:
            return None
        self.refs.add(key)
        return key


class _Space:
    """Stands for the globals that a function finds where it is unpickled."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __reduce__(self) -> tuple[Any, ...]:
        return _space, (self._module,)


def module_of(space: dict[str, Any]) -> Any:
    """Return the name of the script's module whose globals these are, or None."""
    name = space.get("__name__")
    if isinstance(name, str) and _goes_by_value(name):
        return name if getattr(sys.modules.get(name), "__dict__", None) is space else None
    return None


def _names_in(code: types.CodeType) -> Iterable[str]:
    from cloudpickle import cloudpickle
    names: Iterable[str] = cloudpickle._extract_code_globals(code)
    return names


@functools.lru_cache(1000)
def _names_in_text(text: str) -> Iterable[str]:
    try:
        return _names_in(compile("lambda: " + text, "", "eval"))
    except SyntaxError:
        return ()


@functools.cache
def _pickler(reducers: Any) -> Any:
    """Return cloudpickle's pickler with reducers of ours."""
    import cloudpickle
    plain = cloudpickle.CloudPickler.dispatch_table

    def reduce_code(code: types.CodeType) -> Any:
        """Keep the file's name, for tracebacks; cloudpickle writes another one in its place."""
        make, found = plain[types.CodeType](code)
        return make, tuple([code.co_filename if isinstance(one, str) and one == "<dynamic-code>"
                            else one for one in found])

    table = plain.new_child({
        types.CodeType: reduce_code,
        functools.cached_property: lambda one: (    # before Python 3.12, there is a lock in it
            functools.cached_property, (one.func,), {"attrname": one.attrname})})
    return type("Pickler", (reducers, cloudpickle.CloudPickler), {"dispatch_table": table})


# ────────────────────────────────────── the script in a slot ──────────────────────────────────────


class Script:
    """The controller's script as far as it has come to this slot: `__main__`, and modules like it.

    Each function comes with the versions of the names that it needs. Before a call, names that are
    bound to another version are bound anew. What was bound until then, with all that calls have
    left in it, is put aside, for calls may come that were submitted with it. What all versions have
    in common stays what it is: a random generator goes on, a cache is kept.
    """

    def __init__(self) -> None:
        self._lock: Any = _thread.RLock()       # guards the rest: threads of users' code ask, too
        self._modules: dict[str, Any] = {}      # but `__main__`
        self._bound: dict[Any, bytes] = {}      # (module, name) -> version
        self._aside: dict[Any, Any] = {}        # ((module, name), version) -> object
        self._pending: dict[Any, Any] = {}      # (module, name) -> (version, function), to be bound
        self._kept: set[Any] = set()            # names that stay what an initializer has made them
        self._large: set[bytes] = set()         # versions that are worth dropping
        self._missing: set[str] = set()         # names that the controller has not got either
        self._current: Any = None               # the function that all names are bound for

    def namespace(self, module: str) -> dict[str, Any]:
        """Return the globals of a module of the script."""
        if module == "__main__":
            return vars(sys.modules[module])
        if module not in self._modules:
            self._modules[module] = types.ModuleType(module)
        space: dict[str, Any] = vars(self._modules[module])
        return space

    def bind(self, key: Sequence[str], obj: Any) -> None:
        """Let a name stand for an object."""
        self.namespace(key[0])[key[1]] = obj

    def enter(self, function: _Function) -> None:
        """Bind all that a function needs, in the versions that it was submitted with.

        Raises whatever unpickling these raises.
        """
        if function is self._current:
            return
        # Not with our lock: another thread may import one of them, and ask for a name.
        for module in function.modules:
            __import__(module)
        with self._lock:
            self._missing.clear()
            self._current = None
            self._bind(function, {key: version for key, version in function.needs.items()
                                  if self._bound.get(key, ABSENT) != version})
            self._current = function

    def add(self, function: _Function) -> None:
        """Bind what a function needs and has no name here yet."""
        with self._lock:
            self._bind(function, {key: version for key, version in function.needs.items()
                                  if version and key[1] not in self.namespace(key[0])})

    def _bind(self, function: _Function, versions: Mapping[Any, bytes]) -> None:
        is_outermost = not self._pending
        for key, version in versions.items():
            if key not in self._kept:
                self._put_aside(key)
                if version:
                    self._pending[key] = version, function
        try:
            while self._pending:
                self._load(next(iter(self._pending)))
        except BaseException:
            if is_outermost:        # otherwise what was being loaded may catch it
                self._pending.clear()
            raise

    def _put_aside(self, key: Any) -> None:
        value = self.namespace(key[0]).pop(key[1], ABSENT)
        version = self._bound.pop(key, ABSENT)
        # A class is one object in all its versions; its attributes are set anew each time.
        if version and value is not ABSENT and not isinstance(value, type):
            self._aside[key, version] = value

    def _load(self, key: Any) -> None:
        version, function = self._pending.pop(key)
        self._bound[key] = version
        if (key, version) in self._aside:
            self.bind(key, self._aside.pop((key, version)))
            return
        try:
            keys, size, values = function.load(version)
        except BaseException:
            del self._bound[key]
            raise
        for one, value in zip(keys or (key,), values):
            version = function.needs[one]
            # What shares parts with it is bound with it, so that they go on to share them.
            if one == key or self._pending.pop(one, None) or (
                    self._bound.get(one) == version and one not in self._kept):
                self._aside.pop((one, version), None)
                self._bound[one] = version
                self.bind(one, value)
                if size > MAX_FRAME:
                    self._large.add(version)

    def find(self, module: str, path: str) -> Any:
        """Return what a dotted path leads to in the script. Raises AttributeError."""
        first, _, rest = path.partition(".")
        with self._lock:
            if (module, first) in self._pending:
                self._load((module, first))
        space = self.namespace(module)
        if first not in space:
            raise AttributeError("%s has no %r here" % (module, first))
        return operator.attrgetter(rest)(space[first]) if rest else space[first]

    def ask(self, pull: Callable[[int, bytes], Any], name: str) -> Any:
        """Return what the controller's `__main__` has under a name. Raises AttributeError."""
        with self._lock:
            if ("__main__", name) in self._pending:
                self._load(("__main__", name))
        space = self.namespace("__main__")
        if name not in space and name not in self._missing and not name.startswith("__"):
            self._missing.add(name)
            try:
                segments = pull(NAME, name.encode())
                if bytes(segments[0]) != NOTHING:
                    self.add(_Function(segments))
            except EOFError:        # nobody answers
                pass
        if name not in space:
            raise AttributeError("module '__main__' has no attribute %r" % name)
        return space[name]

    def forget(self, functions: Iterable[_Function]) -> None:
        """Drop what none of these functions needs: what is aside, and what is large."""
        needed = {need for function in functions for need in function.needs.items()}
        with self._lock:
            self._current = None
            self._aside = {need: value for need, value in self._aside.items() if need in needed}
            for key, version in [*self._bound.items()]:
                if version in self._large and (key, version) not in needed:
                    self._put_aside(key)
                    self._aside.pop((key, version), None)
            self._large.intersection_update(self._bound.values())

    def initialize(self, function: _Function) -> None:
        """Call an initializer. What it binds stays, and so does all data that it could change."""
        self.enter(function)
        spaces = {module: self.namespace(module)
                  for module in ("__main__", *(module for module, _ in function.needs))}
        before = {module: {name: (value, _attributes(value)) for name, value in space.items()}
                  for module, space in spaces.items()}
        function.get()()
        for module, space in spaces.items():
            for name, value in space.items():
                was, attributes = before[module].get(name, (ABSENT, None))
                if (value is not was or _attributes(value) != attributes
                        or (module, name) in function.needs and is_data(value)):
                    self._kept.add((module, name))


def _attributes(value: object) -> Any:
    return {**vars(value)} if isinstance(value, type) and value in _arrived else None


def is_data(value: object) -> bool:
    """Return whether a global of the script is neither constant nor a definition nor a module."""
    return not (is_plain(value) or is_definition(value))


def is_definition(value: object) -> bool:
    """Return whether an object is a function, a class or a module."""
    return isinstance(value, (*_DEFINITIONS, types.BuiltinFunctionType, types.ModuleType))


script = Script()


def _find(module: str, path: str) -> Any:
    return script.find(module, path)


def _space(module: str) -> dict[str, Any]:
    return script.namespace(module)


# ────────────────────────────────────────── running a call ────────────────────────────────────────


class _Chunks(list["Any"]):
    """A file to pickle into that keeps large objects as they are instead of copying them."""

    def write(self, data: Any) -> None:
        self.append(data.raw() if type(data) is pickle.PickleBuffer else data)


def pack_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Packed, Any]:
    """Pickle a call's arguments for a slot, the usual ones quickly.

    Return what `pack` does, and `(module, name)` of all of the script that it needs there.
    """
    if not kwargs and _SHORT.issuperset(map(type, args)):
        data = pickle.dumps((args, None), 5)
        if len(data) <= INLINE:
            return data, ()
    return pack_outward((args, kwargs or None))


def pack_outward(obj: object) -> tuple[Packed, Any]:
    """Pickle for a slot: return what `pack` does, and what of the script it needs there."""
    if is_plain(obj):
        return pack(obj), ()
    chunks, large, pickler = _dump(obj, _OutwardReducers)
    return _packed(chunks, large), pickler.names | pickler.refs


class Prepacked:
    """Arguments that `pack_outward` has packed, among those of another call: they stay bytes."""

    def __init__(self, data: bytes, needs: Any) -> None:
        self.data = data
        self.needs = needs


def _is_long(obj: object) -> bool:
    if isinstance(obj, tuple):
        return any(map(_is_long, obj))
    return isinstance(obj, (bytes, str)) and len(obj) > INLINE


def pack(obj: object) -> Packed:
    """Pickle a result, or what is plain.

    Large buffers (NumPy arrays) are not copied. Return bytes if they are short, otherwise
    `(lengths, buffers)` for `message`. Raise what pickling raises.
    """
    if is_plain(obj) and not _is_long(obj):
        data = pickle.dumps(obj, 5)
        return data if len(data) <= INLINE else ([len(data)], [data])
    chunks, large, _ = _dump(obj, _HomeReducers)
    return _packed(chunks, large)


def _packed(chunks: list[Any], large: list[Any]) -> Packed:
    length = sum(map(len, chunks))
    if length <= INLINE and not large:
        return b"".join(chunks)
    return [length, *map(len, large)], chunks + large


def _dump(obj: object, reducers: Any, most: int = 254, **settings: Any) -> tuple[Any, Any, Any]:
    """Pickle; return the pickle in pieces, at most `most` large buffers beside it, the pickler.

    Arguments:
        settings: attributes of the pickler.
    """
    chunks = _Chunks()
    large = _Chunks()

    def stays_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < INLINE or len(large) == most:
            return True
        large.append(raw)
        return False

    pickler = _pickler(reducers)(chunks, protocol=5, buffer_callback=stays_in_band)
    vars(pickler).update(settings)
    pickler.dump(obj)
    return chunks, large, pickler


def _dumps(obj: object, reducers: Any = _HomeReducers, **settings: Any) -> bytes:
    """Pickle in one piece; see `_dump`."""
    chunks, _, _ = _dump(obj, reducers, 0, **settings)
    return b"".join(chunks)


class Pickled:
    """A pickle of its own in a message: its bytes, large buffers, and what it needs of the script.

    Attributes:
        names: `(module, name)` of the globals that its code uses.
        refs: likewise, of what it refers to.
        module: the name of the module that it is, if it is one.
        parts: by `id`, the objects in it; those of data, which other data may share.
    """

    def __init__(self, data: bytes, buffers: Sequence[Any] = (), names: Any = frozenset(),
                 refs: Any = frozenset(), parts: Any = types.MappingProxyType({}),
                 module: str = "") -> None:
        self.data = data
        self.buffers = buffers
        self.names = names
        self.refs = refs
        self.parts = parts
        self.module = module

    @functools.cached_property
    def digest(self) -> bytes:
        """The SHA-256 of all bytes; several names may ask for it."""
        import hashlib
        hashed = hashlib.sha256(self.data)
        for buffer in self.buffers:
            hashed.update(buffer)
        return hashed.digest()


def pickle_definition(obj: object, globals_by_id: Mapping[int, Any], keys: Any = (),
                      is_root: bool = True) -> Pickled:
    """Pickle what names of the script stand for, or a function that was submitted.

    Arguments:
        globals_by_id: keys of the script's globals that it may refer to.
        keys: what is defined, `(module, name)` of each.
        is_root: whether `obj` is what the one key stands for, and so is to be bound to it.
    """
    root = {"root": obj, "key": keys[0]} if is_root and keys else {}
    # To look at each part of large data would take several times as long as to pickle it.
    reducers = _DefinitionReducers if globals_by_id else _OutwardReducers
    chunks, large, pickler = _dump(
        obj, reducers, 100, globals=globals_by_id, defining=keys, **root)
    parts = {}
    if keys and not root:
        parts = {number: part for number, (_, part) in pickler.memo.copy().items()
                 if _can_be_shared(part)}
    return Pickled(b"".join(chunks), large, pickler.names, pickler.refs, parts)


def _can_be_shared(part: Any) -> bool:
    """Return whether it matters that two objects have a part in common: it is no mere value."""
    if is_definition(part) or type(part).__module__ == "logging":
        return False
    hashing: Any = type(part).__hash__
    if isinstance(hashing, types.FunctionType):     # a tensor's is its `id`
        try:
            return bool(hash(part) == id(part))
        except TypeError:
            return False
    return hashing in (None, object.__hash__)


# How a slot gets the function of a call: it unpickles it for each call, or once, or finds it by
# its name in the script.
EACH, ONCE, NAMED = range(3)


def pack_function(how: int, root: Pickled | tuple[str, str], needs: Mapping[Any, bytes],
                  definitions: Mapping[bytes, Any]) -> Packed:
    """Return what a slot knows a function by: the payload of FUNCTION.

    Arguments:
        how: EACH, ONCE or NAMED.
        root: the pickled function; if NAMED, its module and path.
        needs: by `(module, name)`, the versions of what it uses of the script.
        definitions: by version, `(keys, Pickled)` of what these are.
    """
    segments: list[Any] = []

    def add(one: Pickled) -> Any:
        if len(one.data) < INLINE and not one.buffers:
            return one.data
        if len(segments) + 1 + len(one.buffers) > 250:
            return [one.data, *map(bytes, one.buffers)]
        start = len(segments)
        segments.extend((one.data, *one.buffers))
        return start, len(segments)

    modules = [one.module for _, one in definitions.values() if one.module]
    head = pickle.dumps((how, add(root) if isinstance(root, Pickled) else root, dict(needs), {
        version: (keys, add(one)) for version, (keys, one) in definitions.items()}, modules), 5)
    return _packed([head], segments)


def unpack(segments: Sequence[Any]) -> Any:
    """Return the object of a message's segments. Runs what the pickle names: may raise anything."""
    if isinstance(segments, MemoryError):
        raise segments
    return pickle.loads(segments[0], buffers=segments[1:])


def _unpack_own(packed: Packed) -> Any:
    """Unpickle what `pack` has just made."""
    if type(packed) is bytes:
        return unpack((packed,))
    lengths, buffers = packed
    chunks = len(buffers) - len(lengths) + 1
    return unpack([b"".join(buffers[:chunks]), *buffers[chunks:]])


def run_call(function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[bool, Any]:
    """Call a function; return `(True, its value)` or `(False, what it raised)`, SystemExit too."""
    try:
        return True, function(*args, **kwargs)
    except BaseException as error:      # whatever it was, it belongs to the caller's future
        return False, error


class _Budget:
    """How many tasks this slot may still begin, and with it whether it is to be replaced."""

    left = NEVER


def run_chunk(function: Callable[..., Any], chunk: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call a function on each tuple of arguments; this is what `map(..., chunksize=n)` sends."""
    values = [function(*args) for args in chunk]
    _Budget.left -= len(values) - 1
    return values


def run_some(function: Callable[..., Any], packed: bytes, seconds: float) -> tuple[Any, ...]:
    """Call a function on the items of a chunk, in order, until one raises or the time is up.

    This is what `map` sends that chooses its chunks itself.

    Arguments:
        packed: a list of columns: first arguments, second arguments...

    Returns the seconds it took; the values so far, packed if they are short; and what the next item
    raised, as ERROR has it, or b"". What cannot be pickled is that item's, too. It raises only if
    the arguments cannot be unpickled, or the first item finds no module.
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
    kind, found = pack_outcome(True, tuple(values))
    if kind == ERROR:
        outcomes = [pack_outcome(True, value) for value in values]
        bad = next((n for n, (kind, _) in enumerate(outcomes) if kind == ERROR), 0)
        raised = outcomes[bad][1] if outcomes[bad][0] == ERROR else found
        del values[bad:]
        found = pack(tuple(values))
    return (took, found if type(found) is bytes else tuple(values),
            raised if type(raised) is bytes else b"".join(raised[1]))


class _ApartReducers(_OutwardReducers):
    """For `pack_apart`."""

    arrays: dict[int, Any]
    array_type: Any

    def persistent_id(self, one: Any) -> Any:
        """Return the number of a large array; see `pickle.Pickler`."""
        if type(one) is not self.array_type or one.nbytes < MAX_FRAME or one.dtype.hasobject:
            return None
        self.arrays[id(one)] = one
        return id(one)


def pack_apart(obj: object) -> tuple[Prepacked, dict[int, Any]]:
    """Pickle `obj` for a slot without the large NumPy arrays in it; return these, too, by number.

    See `run_with`.
    """
    arrays: dict[int, Any] = {}
    array_type = getattr(sys.modules.get("numpy"), "ndarray", ())
    chunks, _, pickler = _dump(obj, _ApartReducers, 0, arrays=arrays, array_type=array_type)
    return Prepacked(b"".join(chunks), pickler.names | pickler.refs), arrays


def run_with(arrays: Mapping[int, Any], pickled: bytes) -> Any:
    """Call what `pack_apart` has pickled."""
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, number: int) -> Any:
            return arrays[number]

    return Unpickler(io.BytesIO(pickled)).load()()


# What a process of a ProcessExecutor had in `__main__` when it began. Elsewhere, nothing.
_inherited: dict[str, object] = {}


def begin_process() -> None:
    """Begin a process of a ProcessExecutor."""
    _inherited.update(vars(sys.modules["__main__"]))


def pack_local(obj: object, there: Mapping[str, object] | None) -> bytes:
    """Pickle for a process that has these names in `__main__`; None: only it can say."""
    return _dumps(obj, _LocalReducers, there=there)


class Shipped:
    """Wrap an object so that plain pickle carries it as we would; it arrives unwrapped.

    Arguments:
        there: what the other process has in `__main__`, by name; None if only it can say; by
            default, it is the one that we came from.
    """

    def __init__(self, obj: object, *there: Mapping[str, object] | None) -> None:
        self._data = pack_local(obj, *there) if there else _dumps(obj)

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._data,)


class _Raised(Exception):
    """Stands for an exception that plain pickle cannot carry; it arrives as what it stands for."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(describe(error))
        self._error = Shipped(error)

    def __reduce__(self) -> Any:
        return self._error.__reduce__()


def run_shipped(call: Any) -> Any:
    """Run `(function, args, kwargs)` in a process pool; let it be known there how long it ran."""
    function, args, kwargs = call
    started = monotonic()
    try:
        value = function(*args, **kwargs)
    except BaseException as error:
        vars(error)[_SECONDS] = monotonic() - started
        try:
            pickle.dumps(error)
        except Exception:       # of a class that only we can carry
            raise _Raised(error) from error
        raise
    return _Timed(monotonic() - started, value if is_plain(value) else Shipped(value))


def _outline(obj: Any) -> Any:
    """Return what tells whether two processes have imported the same definition."""
    if isinstance(obj, type):
        return sorted(vars(obj))
    code = getattr(getattr(obj, "__wrapped__", obj), "__code__", None)
    return type(obj).__name__, code and (code.co_firstlineno, code.co_code)


def _name_or_value(path: str, outline: Any, pickled: bytes) -> Any:
    """Return what this process has in `__main__` at a path if it is the same, or else unpickle."""
    found = _look_up("__main__", path)
    return found if _outline(found) == outline else pickle.loads(pickled)


_SECONDS = "_executors_seconds"     # of an exception: how long it took to be raised


class _Timed:
    """A value on its way home. It arrives unwrapped, while its seconds stay with `take_seconds`."""

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return _unwrap_timed, self._parts


_times: dict[int, float] = {}       # by thread, of what it has unpickled last


def _unwrap_timed(seconds: float, value: Any) -> Any:
    _times[_thread.get_ident()] = seconds
    return value


def take_seconds(error: BaseException | None) -> Any:
    """Return how long the call ran whose outcome this thread has just unpickled, or ()."""
    seconds = _times.pop(_thread.get_ident(), ())
    return seconds if error is None else vars(error).pop(_SECONDS, ())


def run_plain(function: Callable[..., Any], *args: Any) -> Any:
    """Run a call that plain pickle could carry in a process pool."""
    return run_shipped((function, args, {}))


def pack_outcome(ok: bool, value: Any, stage: str = "run") -> tuple[int, Packed]:
    """Pickle what `run_call` returned. Return `(RESULT or ERROR, packed)`; never raises.

    The payload of an ERROR is a plain tuple `(stage, pickled exception or b"", type, text,
    traceback)`; `stage` is "arguments", "run", "result" or "round trip". What is not plain is also
    unpickled here, before anything is sent: what then raises, exits or crashes does it to this
    slot, and not to the controller.
    """
    if ok:
        try:
            stage = "result"
            packed = pack(value)
            stage = "round trip"
            if not is_plain(value):
                _unpack_own(packed)
            return RESULT, packed
        except BaseException as error:
            value = error
    import traceback
    kind = type(value)
    for explain in _explanations:
        explain(value)
    try:
        text = "".join(traceback.format_exception(kind, value, _below(value.__traceback__)))
    except BaseException as error:      # a __str__ or __repr__ that raises
        text = "(the traceback cannot be shown: %s)\n" % type(error).__name__
    pickled = b""
    try:
        attempt = _dumps(value)
        if type(pickle.loads(attempt)) is kind:
            pickled = attempt
    except BaseException:      # a constructor that does not fit its arguments, for one
        pass
    return ERROR, pack((stage, pickled, kind.__name__, _text(value), text))


_explanations: list[Callable[[BaseException], object]] = []     # what a slot has to add to errors


def _text(value: object) -> str:
    try:
        return "\n".join([str(value), *getattr(value, "__notes__", ())])
    except BaseException as error:
        return "(%s in __str__)" % type(error).__name__


def describe(error: BaseException) -> str:
    """Say what an exception is and what it says, even if it cannot say anything."""
    return "%s: %s" % (type(error).__name__, _text(error))


def _below(trace: Any) -> Any:
    """Leave out the frames of this file from the top of a traceback: they tell the user nothing."""
    while trace and trace.tb_next and trace.tb_frame.f_globals.get("run_call") is run_call:
        trace = trace.tb_next
    return trace


# ────────────────────────────────────── modules and packages ──────────────────────────────────────


class ModuleFinder:
    """Import modules of the controller's project. It is first on `sys.meta_path`, so they win.

    Asked for a module, the controller answers None, or `(file name, source, is a package)`. If the
    file name is NAMESPACE, it is a namespace package. If it is INSTALLED, the module belongs to a
    distribution that may be copied; in place of the source comes then `(name, version, name of its
    .dist-info, key of its content)`, as `_Packages` takes them.

    Arguments:
        pull: asks the shim, see `_Pull`.
        folder: the directory that slots run in. Packages that `files=` has put there are left to
            the usual import, for they may have data files and extension modules.
    """

    NAMESPACE = "<namespace>"
    INSTALLED = "<installed>"

    def __init__(self, pull: Callable[[int, bytes], Any], folder: str) -> None:
        self._pull = pull
        # Written by any thread that imports. Two that ask the same question get the same answer.
        self._known: dict[str, Any] = {}        # by module, the controller's answer
        self._metadata: dict[str, Any] = {}     # by distribution, likewise
        self._folders: dict[str, str] = {}      # by folder, the project's package there
        self._saved = os.path.join(folder, ".modules")
        self._packages = _Packages(pull, folder)
        self._left = {*sys.stdlib_module_names}     # names that are left to the usual import
        if not os.path.isdir(folder):
            return
        for name in os.listdir(folder):
            is_package = os.path.exists(os.path.join(folder, name, "__init__.py"))
            if is_package or name.endswith((".py", ".so")):
                self._left.add(name.partition(".")[0])

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find a module; see `importlib.abc.MetaPathFinder`."""
        top = name.partition(".")[0]
        parent = name.rpartition(".")[0]
        if top in self._left:
            return None
        # A package that is not of the project has its modules in its folder on this machine.
        if parent:
            parent_answer = self._known.get(parent)
            if not parent_answer or parent_answer[0] == self.INSTALLED:
                return None
        if name not in self._known:
            self._known[name] = self._ask(WANTED, name)
        answer = self._known[name]

        # Three cases. The controller does not send the module; it may send the distribution that
        # the module is in; or it has sent the module's source.
        if not answer:
            return None
        filename, source, is_package = answer
        if filename == self.INSTALLED:
            if not self._packages.is_better(top, *source):
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
            self._folders[folder] = name
        self._save(name, source, is_package)
        return spec

    def _ask(self, kind: int, name: str) -> Any:
        """Return the controller's answer to a question, or None if nobody answers."""
        try:
            return unpack(self._pull(kind, name.encode()))
        except EOFError:
            return None

    def _save(self, name: str, source: str, has_init: bool) -> None:
        """Write a module to where child processes look for modules, as they cannot ask for it.

        If that fails, only they go without it.
        """
        parts = name.split(".")
        if has_init:
            parts.append("__init__")
        path = os.path.join(self._saved, *parts) + ".py"
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
        answer = self._ask(WANTED, "__main__")
        if not answer:
            raise AttributeError("module '__main__' has no attribute '__file__'")
        source = answer[1]
        self._save("__main__", source, False)
        # This module is imported already, so the loop below would not save it.
        loader: Any = vars(sys.modules[__name__])["__loader__"]
        self._save(__name__, loader.get_source(__name__), False)
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
        return os.path.join(self._saved, "__main__.py")

    def list_children(self, folder: str) -> Any:
        """Return what lists the modules of a package that was sent; for `sys.path_hooks`.

        Raises ImportError for any other folder.
        """
        if folder not in self._folders or os.path.isdir(folder):
            raise ImportError(folder)
        ask = functools.partial(self._ask, CHILDREN, self._folders[folder])
        return _Children(self.find_spec, ask)

    def find_distributions(self, context: Any) -> Iterator[Any]:
        """Find the metadata of a distribution whose modules come from the controller.

        See `importlib.metadata.DistributionFinder`.
        """
        if context.name is None:
            return
        from importlib import metadata
        name = str(context.name).replace("_", "-").lower()
        if name not in self._metadata:
            self._metadata[name] = self._ask(METADATA, name)
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

    def why_not(self, name: str) -> str:
        """Return why the distribution with a module was not copied; "" if there is no reason."""
        for part in (name, name.partition(".")[0]):
            answer = self._known.get(part)
            if answer and answer[0] == self.INSTALLED:
                distribution = answer[1][0]
                return self._packages.problems.get(distribution, "")
        return ""


class _Packages:
    """Distributions that come from the controller, once for a machine and each key.

    Each is an entry of the cache. Its directory is in `sys.path` before those where this Python has
    what is installed.
    """

    def __init__(self, pull: Callable[[int, bytes], Any], scratch: str) -> None:
        self._pull = pull
        self._scratch = scratch
        self._places: dict[str, str] = {}       # by distribution; so are these
        self.problems: dict[str, str] = {}

    def is_better(self, top: str, name: str, version: str, info: str, key: str) -> bool:
        """Return whether a distribution is to be had, and this Python has not got that version."""
        if name in self._places:        # it is in sys.path, or it could not be had
            return False
        here = machinery.PathFinder.find_spec(top)
        origin = here and here.has_location and here.origin or ""
        folder = os.path.dirname(origin)
        if here and here.submodule_search_locations:
            folder = os.path.dirname(folder)
        if origin and os.path.exists(os.path.join(folder, info)):
            return False        # this is what metadata would find, a tenth of a second later
        return not _is_same_version(_find_own(name)[0], version)

    def get(self, name: str, version: str, info: str, key: str) -> str:
        """Return where a distribution is now, in `sys.path`; "" if what is here must do."""
        if name not in self._places:
            self._places[name] = self._find(name, version, key)
        return self._places[name]

    def _find(self, name: str, version: str, key: str) -> str:
        own, folder = _find_own(name)
        try:
            _fetch(self._pull, self._scratch, [(key, name, own)])
            place = os.path.join(_use(key), "site-packages")
        except (OSError, EOFError) as error:
            self.problems[name] = (
                "%s %s does not follow (%s), and %s; `%s -m pip install %s==%s` there mends it" % (
                    name, version, str(error) or describe(error),
                    "it has %s" % own if own else "it has none", sys.executable, name, version))
            return ""
        at = [n for n, one in enumerate(sys.path) if one.endswith("-packages") or one == folder]
        sys.path.insert((*at, len(sys.path))[0], place)
        _tell_children(place)
        return place


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
            parents = spec.name.split(".")[:-1]
            self._path.insert(0, os.path.join(folder, *parents))
        found = machinery.PathFinder.find_spec(spec.name, self._path)
        if found is None or found.loader is None:
            raise ModuleNotFoundError("No module named %r" % spec.name, name=spec.name)
        vars(spec).update(vars(found))
        return found.loader.create_module(found)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: by now, the spec names the loader that executes the module."""


class _Children:
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
            _teach_numba()
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
def _teach_numba() -> None:
    """Add our locator to those that numba tries; do nothing without numba."""
    try:
        caching: Any = __import__("numba.core.caching", fromlist=["caching"])
        base = getattr(caching, "CacheImpl", None) or caching._CacheImpl
        for cache_class in (base, *base.__subclasses__()):
            cache_class._locator_classes = [*cache_class._locator_classes, _NumbaLocator]
    except Exception:       # not installed, or a version that has none of this
        pass


def _why_no_data(error: FileNotFoundError) -> str:
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


# ────────────────────────────────────────────── slot ──────────────────────────────────────────────

# The descriptors of a slot, besides stdin, stdout and stderr. The file's docstring draws them.
_CALLS, _RESULTS, _PERMITS, _QUESTIONS, _ANSWERS = range(3, 8)
_THREADS = [library + "_THREADS" for library in (
    "OMP_NUM", "MKL_NUM", "OPENBLAS_NUM", "NUMBA_NUM", "BLIS_NUM", "NUMEXPR_NUM", "POLARS_MAX",
    "VECLIB_MAXIMUM")]


class _Pull:
    """Ask the shim for what a slot lacks, from any of the slot's threads.

    Of the threads that wait for answers, one reads for all: answers come in any order.
    """

    def __init__(self) -> None:
        import threading
        self._reader = MessageReader(_ANSWERS)      # used by the thread that reads
        self._numbers = itertools.count(1)          # of questions; each `next` is atomic
        self._owner = os.getpid()
        # Guards the attributes below; notified when a thread has read.
        self._changed = threading.Condition()
        self._reading = 0       # identifier of the thread that reads, or 0
        self._answers: dict[int, Any] = {}      # segments, by the number of the question

    def __call__(self, kind: int, payload: bytes) -> Any:
        """Return the segments of the answer to a question.

        Raises EOFError if the shim has ended, or if this process is not the slot.
        """
        # A child that users' code forked shares the pipes, and would take its parent's answers.
        if os.getpid() != self._owner:
            raise EOFError("only the slot's own process can ask the shim, not one that it forked")
        # A signal handler that raises must not leave half an answer in the pipe.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            number = next(self._numbers)
            # A question is short enough for one atomic write, so threads need no lock for it.
            write_all(_QUESTIONS, (frame(kind, number, payload),))
            return self._wait_for(number)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _wait_for(self, number: int) -> Any:
        me = _thread.get_ident()
        with self._changed:
            while number not in self._answers:
                # Three cases. Nobody reads: this thread does. Another thread reads: wait until it
                # has. This thread reads already, and a finalizer that ran meanwhile imports: read.
                if self._reading in (0, me):
                    self._read(me)
                else:
                    self._changed.wait()
            return self._answers.pop(number)

    def _read(self, me: int) -> None:
        """Read once, with the lock released, and keep the answers that came for all threads."""
        reading_before = self._reading
        self._reading = me
        self._changed.release()
        try:
            messages = self._reader.read()
        finally:
            self._changed.acquire()
            self._reading = reading_before
            self._changed.notify_all()
        for _kind, number, _tag, segments in messages:
            self._answers[number] = segments


class _Function:
    """A function as a slot knows it, with the definitions that it uses; see `pack_function`.

    Large buffers are kept in a nameless file, and mapped privately for each unpickling: a call may
    write to them, and the next call finds them unchanged.

    Attributes:
        needs: by `(module, name)`, the versions of what it uses of the script.
        modules: names of the modules to import before.
    """

    def __init__(self, segments: Sequence[Any]) -> None:
        head, *buffers = segments
        self._how, self._root, self.needs, self._definitions, self.modules = pickle.loads(head)
        self._places: list[slice] = []      # where each buffer lies in the file
        self._object: Any = ABSENT          # the function, if it is unpickled only once
        if not buffers:
            return
        self._file = nameless_file()
        for buffer in buffers:
            padding = -self._file.tell() % 64       # align arrays
            start = self._file.seek(padding, os.SEEK_CUR)
            self._places.append(slice(start, start + self._file.write(buffer)))
        self._file.flush()

    def get(self) -> Any:
        """Return the function. May raise anything: unpickling runs code that the pickle names."""
        script.enter(self)
        # Three cases: it is looked up in the script, unpickled for each call, or unpickled once.
        if self._how == NAMED:
            return script.find(*self._root)
        if self._object is not ABSENT:
            return self._object
        function = _unpickle_definition(self._segments(self._root))
        if self._how == ONCE:
            self._object = function
        return function

    def load(self, version: bytes) -> tuple[Any, int, Any]:
        """Unpickle a definition.

        Return its keys `(module, name)`, its size in bytes, and the value of each key. For a short
        constant, there are no keys, the size is 0, and the value is the only one.
        """
        if version not in self._definitions:        # a short constant, whose version is its pickle
            return (), 0, (pickle.loads(version),)
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
        return script.find(*key)


def _unpickle_definition(segments: Sequence[Any]) -> Any:
    return _Unpickler(io.BytesIO(segments[0]), buffers=segments[1:]).load()


def nameless_file() -> Any:
    """Return an open file that has no name, and that lies in memory where the platform can."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("executors"), "r+b")
    import tempfile
    return tempfile.TemporaryFile()


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


class _Slot:
    """Run calls in this process, one at a time, until no more come.

    Arguments:
        number: the slot's number, from 0.
        config: what CONFIG brought.
    """

    def __init__(self, number: int, pull: _Pull, finder: ModuleFinder,
                 config: Mapping[str, Any]) -> None:
        self._machine = config["machine"]
        self._number = number
        self._pull = pull
        self._finder = finder
        self._is_ready = not config["initializer"]      # whether no initializer is left to run
        _Budget.left = config["max_tasks_per_child"] or NEVER
        self._functions: dict[int, _Function] = {}      # by identifier, as calls name them
        self._permit = b""      # read already, of a call that has still to come

    def run(self) -> None:
        """Serve until the pipe of calls ends, or as many calls have run as one process may run."""
        reader = FrameReader(_CALLS)
        try:
            while True:
                for kind, ident, data in reader.read():
                    if kind == FORGET:
                        self._functions.pop(ident, None)
                        script.forget(self._functions.values())
                    elif self._may_start(ident):
                        self._serve(ident, data)
                        _Budget.left -= 1
                        if _Budget.left <= 0:       # the shim takes back the calls that wait here
                            write_all(_RESULTS, (frame(RETIRED),))
                            return
        except EOFError:
            pass
        except OSError as error:
            sys.stderr.write("executors: the slot lost its connection to the shim (%s); did the "
                             "call close file descriptors 3 to 7?\n" % error)
            os._exit(1)

    def _may_start(self, ident: int) -> bool:
        """Read the permit of a call. Return whether there is one: the call was not taken back.

        Permits come in the order of their calls, and the shim removes those of calls that it takes
        back. So the permit that is read may be that of a later call, and is kept for it.
        """
        if not self._permit:
            try:
                self._permit = os.read(_PERMITS, IDENT.size)
            except BlockingIOError:
                return False
        if self._permit != IDENT.pack(ident):
            return False
        self._permit = b""
        return True

    def _serve(self, ident: int, data: bytes) -> None:
        """Run a call and send its result."""
        if not self._is_ready:
            self._initialize(ident)
        started = monotonic()
        kind, packed = self._outcome(ident, data)
        _end_lines()
        microseconds = int((monotonic() - started) * 1e6)
        tag = (self._number << SLOT_SHIFT) + microseconds
        write_all(_RESULTS, message(kind, ident, tag, packed))

    def _initialize(self, ident: int) -> None:
        """Run the pool's initializer, before the first call, `ident`.

        If it raises, report that in place of the call's result, and run no call until the shim
        closes the pipe. Raises EOFError then.
        """
        try:
            script.initialize(_Function(self._pull(FUNCTION, IDENT.pack(INITIALIZER))))
            self._is_ready = True
        except BaseException as error:
            import traceback
            *_, place = traceback.extract_tb(error.__traceback__)
            words = "%s (%s, line %s, in %s)" % (
                describe(self.explain(error)), place.filename, place.lineno, place.name)
            packed = words.encode("utf-8", "replace")[:LAST_WORDS]
            write_all(_RESULTS, message(UNFIT, ident, 0, packed))
            while os.read(_CALLS, READ_SIZE):
                pass
            raise EOFError from None

    def _outcome(self, ident: int, data: bytes) -> tuple[int, Packed]:
        """Run a call. Return the kind and the packed body of its result, as `pack_outcome` does."""
        tag, is_long = TAG.unpack_from(data, HEAD)
        try:
            if tag not in self._functions:
                self._functions[tag] = _Function(self._pull(FUNCTION, IDENT.pack(ident)))
            function = self._functions[tag].get()
            body = self._pull(CALL, IDENT.pack(ident)) if is_long else (data[BODY_AT:],)
            args, kwargs = unpack(body)
            del body
        except BaseException as error:
            return _pack_failure(error, "arguments")
        owner = os.getpid()
        ok, value = run_call(function, args, kwargs or {})
        if os.getpid() != owner:
            # The call forked, and its child returned here. A child must not serve the slot's pipes.
            is_success = ok or isinstance(value, SystemExit) and not value.code
            os._exit(0 if is_success else 1)
        del args, kwargs
        if ok:
            return pack_outcome(True, value)
        return _pack_failure(value)

    def explain(self, error: BaseException) -> BaseException:
        """Add to an error about a missing file or module what to do about it. Return the error."""
        try:
            self._explain(error)
        except Exception:       # attributes of users' modules and errors may raise anything
            pass
        return error

    def _explain(self, error: BaseException) -> None:
        note = ""
        if isinstance(error, FileNotFoundError) and error.filename is not None:
            note = _why_no_data(error)
        if isinstance(error, ModuleNotFoundError) and error.name:
            remedy = self._finder.why_not(error.name) or (
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

    A missing module is sent as MISSING, headed by its name: perhaps another machine has it.
    """
    kind, packed = pack_outcome(False, error, stage)
    if isinstance(error, ModuleNotFoundError) and error.name and type(packed) is bytes:
        return MISSING, error.name.encode() + b"\0" + packed
    return kind, packed


def _keep_slot(shim: int, high: int, be_slot: Callable[[int], object]) -> None:
    """Turn a fresh fork of the shim into a keeper: fork the slot, and end in the way it ends.

    The keeper leads a session, which the slot is in. It adopts processes that the slot's processes
    leave behind. So all children of the slot are its own, and killing the keeper with all its
    descendants leaves nothing of the slot.

    Arguments:
        shim: the shim's process.
        high: the highest descriptor that the shim has had.
        be_slot: runs the slot; it takes the keeper's process.
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
    slot = os.fork()
    if slot == 0:
        _exit_after(lambda: be_slot(keeper))
    os.closerange(_CALLS, high + 1)
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


def _be_slot(scratch: str, keeper: int, number: int, ends: Sequence[int], high: int,
             config: Mapping[str, Any]) -> None:
    """Turn a fresh fork of its keeper into a slot, and run it until it ends.

    Arguments:
        scratch: the directory that it runs in.
        number: the slot's number, from 0.
        ends: descriptors that become stdout, stderr, and _CALLS to _ANSWERS.
        high: the highest descriptor that is open.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)       # die with the keeper
    for place, fd in enumerate(ends, 1):
        os.dup2(fd, place, inheritable=place < _CALLS)
    os.closerange(_ANSWERS + 1, high + 1)
    _open_output()
    pull = _Pull()
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
        return script.ask(pull, name)

    vars(main)["__getattr__"] = find
    sys.meta_path.insert(0, finder)
    sys.path_hooks.insert(0, finder.list_children)
    if os.getppid() != keeper:      # the keeper died before we asked to die with it
        return
    slot = _Slot(number, pull, finder, config)
    _explanations.append(slot.explain)
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
    os.environ.update({name: threads for name in _THREADS if name not in os.environ})
    place = {"slot": number, "machine": config["machine"]}
    os.environ.update({"EXECUTORS_" + name.upper(): str(value) for name, value in place.items()})
    env = {name: value.format(**place) for name, value in config["env"].items()}
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.path.append(modules)
    os.environ.update(env)
    _tell_children(modules)
    time.tzset()        # in case TZ is among them


def _tell_children(folder: str) -> None:
    """Put a folder first where processes that a task starts look for modules."""
    paths = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = folder + os.pathsep + paths if paths else folder


# ────────────────────────────────────────────── shim ──────────────────────────────────────────────


class _Parcel:
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
        self.held = 0           # bytes of frames kept here
        # Slots that get what comes, and the numbers of their questions.
        self._takers: list[tuple[_Child, int]] = []

    def add(self, data: bytes) -> bool:
        """Take a frame that has come; return whether it is the last."""
        if data[0] == PART:
            self._missing -= len(data) - HEAD
        else:
            self._missing = sum(_lengths(data))
        for child, number in self._takers:
            child.answer(number, data)
        if self._is_kept or not self._takers:
            self._frames.append(data)
            self.held += len(data)
        is_last = not self._missing
        if is_last:
            self._takers.clear()
        return is_last

    def give(self, child: _Child, number: int) -> None:
        """Answer a slot's question with the frames that are here, and with those that come."""
        for data in self._frames:
            child.answer(number, data)
        if self._missing or not self._frames:
            self._takers.append((child, number))
        if not self._is_kept:
            self._frames.clear()
            self.held = 0


class _Call:
    """A call that the shim has: its first frame, which goes to a slot, and what the slot pulls.

    Arguments:
        head: the first frame of the message.
        function: the function that it calls.
    """

    __slots__ = ("function", "head", "ident", "parcel")

    def __init__(self, ident: int, head: bytes, function: _Parcel) -> None:
        self.ident = ident
        self.head = head
        self.function = function
        self.parcel = _Parcel(is_kept=False) if head[COUNT_AT] else _NO_PARCEL


_NO_PARCEL = _Parcel()      # of calls that are a single frame


class _Child:
    """The shim's end of one slot: its process and the pipes to it.

    Arguments:
        number: the slot's number, from 0.
        high: the highest descriptor that the shim has had.
        scratch: the directory that the slot runs in.
        config: what CONFIG brought.

    Raises OSError if no process can be forked.
    """

    def __init__(self, number: int, high: int, scratch: str, config: Mapping[str, Any]) -> None:
        self.number = number
        self.streams: dict[int, bytes] = {}     # by descriptor, a line that has not ended yet
        # By descriptor, when a state of a progress bar was last passed on, and which.
        self.states: dict[int, tuple[float, bytes]] = {}
        self.ended: set[int] = set()            # descriptors that have reached end of file
        self.last_words = b""                   # the end of its stderr, since it was last idle
        self.calls: dict[int, _Call] = {}       # by identifier, in the order they were sent
        self.answering = 0                      # the call whose result came last, or is coming
        self.expecting = 0                      # bytes of that result still to come
        self.is_killed = False                  # because of a KILL
        self.is_retired = False                 # it takes no more calls, and is about to end
        self.kill_at = NEVER                    # when to send SIGKILL after SIGTERM
        self._fork(high, scratch, config)

    def _fork(self, high: int, scratch: str, config: Mapping[str, Any]) -> None:
        shim = os.getpid()
        pipes: list[tuple[int, int]] = []
        try:
            pipes.extend(os.pipe() for _ in _WAYS)      # keeps those made before one fails
            self.high = max(high, *map(max, pipes))
            theirs = [pipe[end] for pipe, end in zip(pipes, _WAYS)]
            self.pid = os.fork()
        except OSError:
            for fd in itertools.chain(*pipes):
                os.close(fd)
            raise
        if self.pid == 0:
            _exit_after(lambda: _keep_slot(shim, self.high, lambda keeper: _be_slot(
                scratch, keeper, self.number, theirs, self.high, config)))
        ours = [pipe[1 - end] for pipe, end in zip(pipes, _WAYS)]
        out, err, calls, results, _, questions, answers = ours
        self.permits = pipes[_PERMITS - 1]      # both ends: a permit that is read is taken back
        theirs.remove(self.permits[0])
        for fd in theirs:
            os.close(fd)
        self.fds = [*ours, self.permits[0]]
        for fd in self.fds:
            os.set_blocking(fd, False)
        enlarge(results)
        enlarge(answers)
        self.outbox = Outbox(calls)
        self.answers = Outbox(answers)
        self.results = FrameReader(results)
        self.questions = FrameReader(questions)
        self.streams = {out: b"", err: b""}
        self.stderr = err

    def end_calls(self) -> None:
        """Close the pipe of calls, so that the slot ends once it has run those it has."""
        if self.outbox.fd in self.fds:
            self.fds.remove(self.outbox.fd)
            os.close(self.outbox.fd)
            self.outbox.fd = -1     # an outbox without a descriptor writes nothing more

    def answer(self, number: int, data: bytes) -> None:
        """Queue a frame as part of the answer to the slot's question of this number."""
        body = memoryview(data)[HEAD:]
        self.answers.put((HEADER.pack(data[0], number, len(body)), body))

    def backlog(self) -> int:
        """Return how many bytes wait until the slot takes them, for its pipes and its next call."""
        size = self.outbox.size + self.answers.size
        if self.calls:
            next_call = next(iter(self.calls.values()))
            size += next_call.parcel.held
        return size


# The end of each pipe that the slot has: 1, to write, or 0, to read. They are stdout and stderr,
# then _CALLS to _ANSWERS.
_WAYS = 1, 1, 0, 1, 0, 1, 0


class Shim:
    """Supervise the slots of one machine for one controller, in one thread around `poll`.

    Arguments:
        link_in: descriptor of the frames that come from the controller.
        link_out: descriptor of the frames that go to it.
        modules: {name: packed answer for `ModuleFinder`}, modules that are here from the start.
        scratch: the path of the directory that slots run in, which nobody has made yet.
    """

    def __init__(self, link_in: int, link_out: int, modules: dict[str, Packed],
                 scratch: str) -> None:
        self._reader = FrameReader(link_in)
        self._outbox = Outbox(link_out)
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], object]] = {}        # by descriptor
        # By kind and text of the question, what the controller answered; for all slots.
        self._answers: dict[Any, _Parcel] = {
            (WANTED, name): _Parcel(_frames(packed)) for name, packed in modules.items()}
        self._functions: dict[int, _Parcel] = {}    # that calls name, and the INITIALIZER
        self._arriving: dict[int, _Parcel] = {}     # by the identifier of their frames
        self._children: dict[int, _Child] = {}      # by process
        self._queue: collections.deque[_Call] = collections.deque()     # those without a slot
        # Until CONFIG tells the rest.
        self._config: dict[str, Any] = {"lease": 60.0, "is_ending": False, "files": {}}
        self._scratch = scratch
        self._guardian = os.getppid()
        self._heard = monotonic()       # when a frame of the controller last came
        self._moved = self._heard       # when slots last took some of a long backlog
        self._over = False              # whether to end; signal handlers set it, too
        self._unprinted = 0             # bytes of output sent, until PRINTED reports them
        self._held = False, False       # what is not read from slots now: all; output
        # The numbers of a slot's descriptors must not be those of our pipes.
        while os.open(os.devnull, os.O_RDONLY) <= _ANSWERS:
            pass
        os.set_blocking(link_in, False)
        os.set_blocking(link_out, False)
        self._wake, wake_out = _wake_pipe()
        self._high = max(link_in, link_out, wake_out)
        self._on = {
            CALL: self._on_call, PART: self._on_part, FUNCTION: self._on_function,
            FORGET: self._on_forget, KILL: self._on_kill, RECALL: self._on_recall,
            PING: self._on_ping, MODULE: self._on_part, CONFIG: self._on_config,
            PRINTED: self._on_printed, QUIT: self._on_quit}
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGCONT, self._on_continue)

    def _on_terminate(self, *_: object) -> None:
        self._over = True

    def _on_continue(self, *_: object) -> None:
        """End if the guardian is dead: the kernel sends SIGCONT then."""
        if os.getppid() != self._guardian:
            self._over = True

    def run(self) -> None:
        """Serve until the controller is gone, then leave nothing behind."""
        self._watch(self._wake, self._on_signal)
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
            while not self._over:
                self._turn()
        except (EOFError, ConnectionError):
            pass
        except (FrameError, OSError) as error:
            sys.stderr.write("executors: the worker's shim ends: %s\n" % error)
        finally:
            self._end()

    def _turn(self) -> None:
        """Wait for an event, handle it, and write what it has queued."""
        lease = self._config["lease"]
        children = self._children.values()
        if self._reader.fd not in self._handlers:
            # We do not listen, see `_flush`: so the controller's silence says nothing.
            self._heard = monotonic()
            lease = TERM_SECONDS
        wake_at = min([self._heard + lease, *(child.kill_at for child in children)])
        ready = self._poll.poll(max(0, wake_at - monotonic()) * 1000 + 1)
        for fd, _ in reversed(ready):       # so that output comes before results, see `_on_results`
            if fd in self._handlers:
                self._handlers[fd]()
        self._deal()
        self._flush()
        now = monotonic()
        for child in children:
            if now >= child.kill_at:
                child.kill_at = NEVER
                signal_tree(child.pid, signal.SIGKILL)
        is_done = self._config["is_ending"] and not children
        if is_done or now >= self._heard + self._config["lease"]:
            self._over = True

    def _end(self) -> None:
        """End all slots: idle ones run their atexit functions, busy ones get SIGTERM, SIGKILL."""
        for child in self._children.values():
            child.end_calls()
            if child.calls:
                signal_tree(child.pid, signal.SIGTERM)
        deadline = monotonic() + TERM_SECONDS
        while self._children and monotonic() < deadline:
            if select.select([self._wake], [], [], max(0, deadline - monotonic()))[0]:
                os.read(self._wake, 4096)
            for pid, _ in _changed_children():
                if pid in self._children:
                    self._drain(self._children.pop(pid))
        kill_descendants()
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
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None):
            self._poll.unregister(fd)

    # What is written

    def _send(self, kind: int, ident: int, payload: bytes = b"") -> None:
        self._outbox.put((frame(kind, ident, payload),))

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
                    self._flush_one(outbox)
            backlog = max(backlog, child.backlog())
        if self._outbox.size:
            self._flush_one(self._outbox)
        paused = self._outbox.size > BACKLOG, self._unprinted > MAX_FRAME
        if paused != self._held:
            self._held = paused
            for child in self._children.values():
                self._listen(child)
        now = monotonic()
        if backlog <= BACKLOG:
            self._moved = now
        is_full = backlog > BACKLOG and now < self._moved + TERM_SECONDS
        if is_full:
            self._unwatch(self._reader.fd)
        elif self._reader.fd not in self._handlers:
            self._watch(self._reader.fd, self._on_link)

    def _flush_one(self, outbox: Outbox) -> None:
        """Write what a descriptor takes; wake up when it takes more, if something is left."""
        size = outbox.size
        try:
            is_empty = outbox.flush()
        except OSError:
            if outbox is self._outbox:
                raise
            is_empty = True     # the slot has died, which SIGCHLD reports, or closed its pipes
        if size > BACKLOG and outbox.size < size:
            self._moved = monotonic()
        if is_empty:
            self._unwatch(outbox.fd)
        elif outbox.fd not in self._handlers:
            self._watch(outbox.fd, lambda: None, select.POLLOUT)

    def _listen(self, child: _Child) -> None:
        """Watch a slot's results and output, except what is not read now."""
        is_all_paused, is_output_paused = self._held
        for fd in (child.results.fd, *child.streams):       # `_on_results` relies on the order
            is_output = fd in child.streams
            if is_all_paused or is_output and is_output_paused:
                self._unwatch(fd)
            elif fd not in child.ended:
                handler = self._on_output if is_output else self._on_results
                self._watch(fd, functools.partial(handler, child, fd))

    # From the controller

    def _on_link(self) -> None:
        self._heard = monotonic()
        for kind, ident, data in self._reader.read():
            self._on[kind](ident, data)

    def _on_call(self, ident: int, data: bytes) -> None:
        function = self._functions[IDENT.unpack_from(data, HEAD)[0]]
        call = _Call(ident, data, function)
        self._queue.append(call)
        if data[COUNT_AT]:
            self._arriving[ident] = call.parcel
            self._on_part(ident, data)

    def _on_function(self, ident: int, data: bytes) -> None:
        self._functions[ident] = self._arriving[ident] = _Parcel()
        self._on_part(ident, data)

    def _on_part(self, ident: int, data: bytes) -> None:
        parcel = self._arriving.get(ident)
        if parcel is None:      # of a call that ended, or was taken back, before all of it came
            return
        is_last = parcel.add(data)
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
                is_sending = child.answering == ident and child.expecting
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
        self._send(RECALLED, 0, b"".join(map(IDENT.pack, reversed(idents))))

    def _on_ping(self, ident: int, _data: bytes) -> None:
        self._send(PONG, ident)

    def _on_config(self, _ident: int, data: bytes) -> None:
        self._config.update(pickle.loads(data[HEAD:]))
        if self._config["files"]:
            self._new_slots()       # the first has them copied; it says when they are there

    def _on_quit(self, _ident: int, _data: bytes) -> None:
        """End once all slots have ended as processes do, however long their threads may take."""
        self._config["is_ending"] = True
        for child in self._children.values():
            self._unwatch(child.outbox.fd)
            child.end_calls()
            signal_tree(child.pid, signal.SIGCONT)      # in case somebody has stopped it

    def _on_printed(self, size: int, _data: bytes) -> None:
        """Note that the controller has printed `size` bytes, the frame's identifier."""
        self._unprinted -= size

    # Calls and slots

    def _deal(self) -> None:
        """Share the queue out evenly, forking slots as needed. No slot is idle while calls wait."""
        live = [child for child in self._children.values()
                if not child.is_killed and not child.is_retired]
        if self._queue:
            idle = sum(not child.calls for child in live)
            retired = sum(child.is_retired for child in self._children.values())
            room = self._config["slots"] - len(live) - retired
            for _ in range(min(room, len(self._queue) - idle)):
                new_child = self._new_slots()
                if new_child:
                    live.append(new_child)
            waiting = len(self._queue) + sum(len(child.calls) for child in live)
            for child in live:
                share = -(-waiting // len(live))        # rounded up
                self._send_calls(child, min(share, SLOT_DEPTH))
        elif len(live) > 1:
            # All calls are in slots: one that has several may have some for an idle one.
            laden = max(live, key=lambda child: len(child.calls))
            is_uneven = len(laden.calls) > 1 and not all(child.calls for child in live)
            if is_uneven and self._take_back(laden):
                self._deal()

    def _send_calls(self, child: _Child, level: int) -> None:
        """Give a slot calls from the queue until it has `level` of them."""
        number = min(level - len(child.calls), len(self._queue))
        calls = [self._queue.popleft() for _ in range(number)]
        if not calls:
            return
        # Permits go first: a slot takes a call without a permit for one that was taken back.
        os.write(child.permits[1], b"".join([IDENT.pack(call.ident) for call in calls]))
        child.outbox.put([call.head for call in calls])
        child.calls.update((call.ident, call) for call in calls)

    def _take_back(self, child: _Child) -> bool:
        """Return all calls that a slot has not started to the queue; return if there were any."""
        try:
            permits = os.read(child.permits[0], SLOT_DEPTH * IDENT.size)
        except BlockingIOError:
            return False
        calls = [child.calls.pop(ident) for (ident,) in IDENT.iter_unpack(permits)]
        self._queue.extendleft(reversed(calls))
        return True

    def _new_slots(self) -> _Child | None:
        """Fork one more slot; return None if that fails, and do with those that there are.

        Raises OSError if there is none.
        """
        taken = {child.number for child in self._children.values()}
        number = next(number for number in itertools.count() if number not in taken)
        try:
            child = _Child(number, self._high, self._scratch, self._config)
        except OSError as error:
            if not self._children:
                raise
            self._config["slots"] = len(self._children)
            self._send(SLOTS, len(self._children), str(error).encode())
            return None
        self._high = child.high
        self._children[child.pid] = child
        self._listen(child)
        self._watch(child.questions.fd, functools.partial(self._on_question, child))
        return child

    # From the slots

    def _on_results(self, child: _Child, polled: int = -1) -> bool:
        """Pass on the results that one read brings, after what was printed before them.

        The race: a call prints to one pipe, and then sends its result to another. `poll` looks at
        results first and at output later, so it has reported the output of the first result that it
        saw, which `_turn` has passed on by now. Results that came since may have output that `poll`
        has not seen.

        Arguments:
            polled: the descriptor of results if `poll` has reported it; otherwise -1.

        Return whether there were any.
        """
        try:
            frames = child.results.read()
        except BlockingIOError:
            return False
        except (EOFError, FrameError):      # the slot has ended, or closed its descriptors
            self._end_of(child, child.results.fd)
            return False
        may_have_more_output = polled < 0 or len(frames) > 1
        _, is_output_paused = self._held
        if may_have_more_output and not is_output_paused:
            for fd in child.streams:
                self._on_output(child, fd)
        if frames and frames[-1][0] == RETIRED:
            frames.pop()
            child.is_retired = True
            self._take_back(child)
        for kind, ident, data in frames:
            if kind == STORED:
                self._on_stored(data[HEAD:])
                continue
            child.answering = ident
            if kind == PART:
                child.expecting -= len(data) - HEAD
            else:
                child.expecting = sum(_lengths(data))
            if not child.expecting:
                child.calls.pop(ident, None)
                self._arriving.pop(ident, None)
        self._outbox.put([data for _kind, _ident, data in frames])
        if not child.calls:     # nothing runs there, so a line that has not ended will not end
            child.last_words = b""
            for fd, text in child.streams.items():
                self._pass_output(child, fd, len(text))
        return True

    def _on_stored(self, problem: bytes) -> None:
        """Let all other slots run where the first one has linked what `files=` names."""
        if not problem:
            _enter(self._scratch, self._config["files"])
        self._config["files"] = {}

    def _end_of(self, child: _Child, fd: int) -> None:
        """Stop watching a descriptor that has reached end of file."""
        child.ended.add(fd)
        self._unwatch(fd)

    def _on_output(self, child: _Child, fd: int) -> bool:
        """Read output once, and pass on the lines that have ended. Return whether there was any."""
        try:
            chunk = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return False
        if not chunk:
            self._end_of(child, fd)
        elif fd == child.stderr:
            child.last_words = (child.last_words + chunk)[-LAST_WORDS:]
        text = child.streams[fd] + chunk
        cut = text.rfind(b"\n") + 1 if chunk else len(text)
        # Two cases of a line that does not end: a progress bar, which writes it anew after each
        # `\r`, and one that grows too long to be kept.
        if not cut and b"\r" in text:
            text = self._replace_progress(child, fd, text)
        child.streams[fd] = text
        if not cut and len(text) >= INLINE:
            cut = _find_cut(text)
        self._pass_output(child, fd, cut)
        return bool(chunk)

    def _replace_progress(self, child: _Child, fd: int, text: bytes) -> bytes:
        r"""Return what counts of a line that `\r` has begun anew: its last state.

        Pass that on as a line of its own, unless one was passed on less than STATE_SECONDS ago.
        """
        now = monotonic()
        state = _replace_lines(text)
        passed_at, passed = child.states.setdefault(fd, (now, b""))
        if state not in (b"", passed) and now > passed_at + STATE_SECONDS:
            child.states[fd] = now, state
            self._send_output(child, fd, state + b"\n")
        ending = b"\r" if text.endswith(b"\r") else b""
        return b"\r" + state + ending

    def _pass_output(self, child: _Child, fd: int, size: int) -> None:
        """Pass on `size` bytes of the text that is kept of a stream."""
        text = child.streams[fd][:size]
        child.streams[fd] = child.streams[fd][size:]
        if b"\r" in text:
            text = _replace_lines(text)
            _, passed = child.states.pop(fd, (0.0, b""))
            first, _, rest = text.partition(b"\n")
            if passed and first == passed:      # as the last state of a progress bar
                text = rest
        if text:
            self._send_output(child, fd, text)

    def _send_output(self, child: _Child, fd: int, text: bytes) -> None:
        if self._config["output"]:
            self._send(OUTPUT, 2 if fd == child.stderr else 1, text)
            self._unprinted += len(text)

    def _on_question(self, child: _Child) -> None:
        try:
            for kind, number, data in child.questions.read():
                self._answer_question(child, kind, number, data)
        except BlockingIOError:
            pass
        except (EOFError, *NONSENSE):       # users' code has written to the pipe, or closed it
            self._unwatch(child.questions.fd)

    def _answer_question(self, child: _Child, kind: int, number: int, data: bytes) -> None:
        # Two cases. The controller answers, once for all slots; or it is about what is here: the
        # initializer, or a function or the arguments of a call that the slot has.
        if kind in QUESTIONS:
            key: Any = kind, data[HEAD:].decode()
            if kind == NAME:        # what a name stands for may have changed since
                key = *key, child.pid, number
            if key not in self._answers:
                ident = FIRST_MODULE + len(self._answers)
                self._answers[key] = self._arriving[ident] = _Parcel()
                self._send(kind, ident, data[HEAD:])
            self._answers[key].give(child, number)
            return
        ident, = IDENT.unpack_from(data, HEAD)
        if ident == INITIALIZER:
            self._functions[ident].give(child, number)
            return
        call = child.calls.get(ident)
        if call:
            parcel = call.parcel if kind == CALL else call.function
            parcel.give(child, number)

    def _on_signal(self) -> None:
        """Reap children that have died: report slots, and kill what they left behind."""
        os.read(self._wake, 4096)
        for pid, status in _changed_children():
            if pid in self._children:
                self._bury(self._children.pop(pid), status)
        kill_children(spare=self._children)

    def _drain(self, child: _Child) -> None:
        """Pass on all that a dead slot has left in its pipes."""
        while self._on_results(child):
            pass
        for fd in child.streams:
            while self._on_output(child, fd):
                pass
            self._pass_output(child, fd, len(child.streams[fd]))

    def _bury(self, child: _Child, status: int) -> None:
        """Report the call that a dead slot ran; put those it had not started into the queue."""
        self._take_back(child)
        self._drain(child)
        if self._config["files"]:
            raise OSError("the slot that had files copied died, with wait status %d" % status)
        if not child.answering and not child.calls and self._queue:
            # It died before it began a call. Blame the first one; or else, if slots always die at
            # once, we would fork them for ever.
            call = self._queue.popleft()
            child.calls[call.ident] = call
        for ident in child.calls:       # at most one is left: the one that ran
            self._arriving.pop(ident, None)
            death = DEATH.pack(child.number, status)
            if child.is_killed:
                self._send(KILLED, ident, death)
            else:
                self._send(DIED, ident, death + child.last_words)
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


def _frames(packed: Packed) -> list[bytes]:
    """Return the frames of a message with a packed object, each with its header."""
    first, *rest = message(MODULE, 0, 0, packed)
    return [first, *(header + body for header, body in zip(rest[::2], rest[1::2]))]


# ──────────────────────────────────────────── processes ───────────────────────────────────────────

# Options of Linux's prctl(2).
_PR_SET_PDEATHSIG = 1           # the signal that a process gets when its parent dies
_PR_SET_CHILD_SUBREAPER = 36    # 1: it becomes the parent of descendants that lose theirs


def _count_cores(root: str = "/") -> int:
    """Return how many processors this process may use: the smallest of affinity and quotas."""
    number = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        number = len(os.sched_getaffinity(0))
    return max(1, min(number, *_quotas(root)))


def _quotas(root: str) -> list[int]:
    """Return the limits of a container, in processors, rounded up. See cgroups(7).

    The first is one that no machine reaches, so there is always one.
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


def _wake_pipe() -> tuple[int, int]:
    """Return the ends of a pipe that becomes readable when a child changes. Also ignore Ctrl-C."""
    wake, wake_out = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wake_out, False)
    signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return wake, wake_out


def _changed_children(options: int = 0) -> Iterator[tuple[int, int]]:
    """Yield `(process, wait status)` of children that have ended, and reap them.

    Arguments:
        options: of waitpid(2), to be told of other changes, too.
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
    """Signal a process and all its descendants; without /proc, its process group."""
    tree = process_tree()
    if not tree:
        send_signal(-pid, number)
        return
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


def kill_descendants() -> None:
    """Kill all descendants of this process, which must be a subreaper: it inherits orphans."""
    while True:
        kill_children()
        try:
            os.wait()
        except ChildProcessError:
            return


def _guard(shim: int, link_in: int, scratch: str) -> None:
    """Run the guardian: wait until the shim has ended, then kill and remove what it left.

    Kill the shim if it stays stopped, or if it stays although its controller is gone.

    Arguments:
        shim: its process.
        link_in: the descriptor of frames from the controller, which is only watched.
        scratch: the directory that slots run in.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake, wake_out = _wake_pipe()
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
        for pid, status in _changed_children(os.WUNTRACED):
            if pid == shim and os.WIFSTOPPED(status):
                patience = grace
            elif pid == shim:
                kill_descendants()
                _remove(scratch)
                _remove_incoming(scratch)
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
        os._exit(status)


def _remove(path: str) -> None:
    """Remove a file, or a directory with all that is in it, if it exists."""
    if os.path.isdir(path):
        import shutil
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)


def enlarge(fd: int) -> None:
    """Enlarge a pipe to 1 MiB where the platform can: arrays then move faster."""
    try:
        fcntl.fcntl(fd, 1031, MAX_FRAME)        # F_SETPIPE_SZ
    except OSError:
        pass


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
    enlarge(link_in)
    enlarge(link_out)
    try:
        os.setsid()     # a kill of our caller's session must spare us: we clean up
    except OSError:
        pass            # we lead one already
    temporary = os.path.abspath(os.environ.get("TMPDIR") or "/tmp")     # TMPDIR may be relative
    scratch = os.path.join(temporary, "executors-" + os.urandom(8).hex())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 16)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    shim = os.fork()
    if shim == 0:
        _exit_after(lambda: Shim(link_in, link_out, modules, scratch).run())
    os.close(link_out)
    _guard(shim, link_in, scratch)


# ────────────────────────────────────────────── cache ─────────────────────────────────────────────

# What is copied to this machine, for all pools: each entry is a directory named by its key, which
# tells its content. In it, `content` is the file, or the directory that travelled as a tar file;
# `seal` tells whether somebody has written to it since.
CACHE = ".cache/executors"      # below the home directory
INCOMING_SECONDS = 86400        # how long the leavings of a copy that was cut off stay
KEEP_SECONDS = 30 * 86400       # how long the cache keeps what no run has used
_Wanted = tuple[str, str, str]  # key and name of an entry, and the version that is here otherwise


def _store_files(pull: Callable[[int, bytes], Any], scratch: str, files: dict[str, str]) -> bool:
    """Link what `files=` names in the directory that slots run in, and tell the shim.

    Return whether it could be done.

    Arguments:
        scratch: that directory; made here.
        files: {name: key}.
    """
    problem = ""
    try:
        names = {key: name for name, key in files.items()}      # some may be alike
        _fetch(pull, scratch, [(key, name, "") for key, name in names.items()])
        os.mkdir(scratch, 0o700)
        for name, key in files.items():
            os.symlink(_use(key), os.path.join(scratch, name))
        _enter(scratch, files)
    except Exception as error:
        problem = str(error) or describe(error)
    write_all(_RESULTS, (frame(STORED, 0, problem.encode("utf-8", "replace")),))
    return not problem


def _enter(scratch: str, files: dict[str, str]) -> None:
    """Run where `files=` are, and keep them in the cache for as long."""
    for key in files.values():
        _use(key)
    os.chdir(scratch)
    sys.path.insert(0, scratch)


def _fetch(pull: Callable[[int, bytes], Any], scratch: str, entries: list[_Wanted]) -> None:
    """Have those entries copied that the cache has not got. Raises OSError or EOFError.

    One process at a time asks for an entry and unpacks it, the others wait: it holds the entry's
    lock, which the kernel takes from those that die.
    """
    cache = _make_cache()
    missing = _find_missing(cache, entries)
    locks: list[Any] = []
    try:
        for key, _, _ in sorted(missing):       # in one order, or two might wait for each other
            locks.append(open(os.path.join(cache, "incoming-%s.lock" % key), "w"))
            fcntl.flock(locks[-1], fcntl.LOCK_EX)
        missing = _find_missing(cache, missing)
        if missing:
            _copy(pull, cache, scratch, missing)
        for lock in locks:
            _remove(lock.name)      # who waits for it sees that all is done
    finally:
        for lock in locks:
            lock.close()


def _find_missing(cache: str, entries: list[_Wanted]) -> list[_Wanted]:
    return [one for one in entries if not _is_intact(os.path.join(cache, one[0]))]


def _copy(pull: Callable[[int, bytes], Any], cache: str, scratch: str,
          entries: list[_Wanted]) -> None:
    """Have the controller copy entries into a folder of their own, and admit them."""
    import json
    # Another folder each time: an answer to who has died since is none to us.
    folder = _incoming(cache, scratch)
    here = os.path.join(os.path.expanduser("~"), folder)
    os.mkdir(here, 0o700)
    try:
        answer = unpack(pull(COPY, json.dumps([folder, entries]).encode()))
        if isinstance(answer, str):
            raise OSError(answer)
        for (key, name, _), (file, digest, is_tar) in zip(entries, answer):
            _admit(os.path.join(cache, key), name, os.path.join(here, file), digest, is_tar)
    finally:
        _remove(here)
    _prune(cache)


def _make_cache() -> str:
    cache = os.path.join(os.path.expanduser("~"), CACHE)
    os.makedirs(cache, mode=0o700, exist_ok=True)
    return cache


def _incoming(cache: str, scratch: str) -> str:
    """Return the path of a folder to copy to, for this shim, whose guardian removes it.

    It needs no quoting, so that scp's two protocols agree on it: it is relative to the home
    directory if that would, for scp knows the account's and not $HOME.
    """
    is_plain = cache.replace("/", "").translate({ord(c): "x" for c in "._-+"}).isalnum()
    place = cache if is_plain and cache.isascii() else CACHE
    return os.path.join(place, _incoming_of(scratch) + os.urandom(8).hex())


def _incoming_of(scratch: str) -> str:
    return "incoming-%s-" % os.path.basename(scratch)


def _remove_incoming(scratch: str) -> None:
    """Remove what was cut off on its way, with its shim."""
    cache = os.path.join(os.path.expanduser("~"), CACHE)
    for name in os.listdir(cache) if os.path.isdir(cache) else ():
        if name.startswith(_incoming_of(scratch)):
            _remove(os.path.join(cache, name))


_locks: list[int] = []      # of what we use: it is not to be pruned, whatever the clocks say


def _lock(place: str, how: int) -> int:
    """Lock an entry of the cache; return the descriptor. Raises OSError if others have it."""
    fd = os.open(place + "/seal", os.O_RDONLY)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _use(key: str) -> str:
    """Keep an entry of the cache from being pruned while we live; return where its content is."""
    place = os.path.join(_make_cache(), key)
    os.utime(place)
    _locks.append(_lock(place, fcntl.LOCK_SH))
    return os.path.join(place, "content")


def _admit(place: str, name: str, temporary: str, digest: str, is_tar: bool) -> None:
    """Move a copied file to its place, if its digest is right.

    On a full disk, scp leaves a corrupt file of full length.
    """
    staging = os.path.dirname(temporary) + ".d"
    content = staging + "/content"
    try:
        if digest_file(temporary) != digest:
            raise OSError("%s arrived damaged (its SHA-256 differs): is the disk full?" % name)
        os.mkdir(staging, 0o700)
        if is_tar:
            import tarfile
            with tarfile.open(temporary) as tar:
                tar.extraction_filter = getattr(tarfile, "tar_filter", None)
                tar.extractall(staging)
        else:
            os.rename(temporary, content)
        with open(staging + "/seal", "w") as file:
            file.write(_seal(content))
        if not _is_intact(place):
            _remove(place)
            os.rename(staging, place)
    except OSError:
        if not _is_intact(place):   # another run, or machine with this home, may have just put it
            raise
    finally:
        _remove(temporary)
        _remove(staging)


def _seal(content: str) -> str:
    """Return a text that changes when somebody writes to a file, or adds one to a directory.

    Bytecode may come by importing.
    """
    entries = [(".", os.lstat(content))]
    for folder, folders, files in os.walk(content):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in folders + sorted(files):
            path = os.path.join(folder, name)
            entries.append((os.path.relpath(path, content), os.lstat(path)))
    return repr([(name, status.st_mode) if stat.S_ISDIR(status.st_mode)
                 else (name, status.st_mode, status.st_size, status.st_mtime_ns)
                 for name, status in entries])


def _is_intact(place: str) -> bool:
    try:
        with open(place + "/seal") as file:
            return file.read() == _seal(place + "/content")
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
    for entry in os.scandir(cache):
        keep = INCOMING_SECONDS if entry.name.startswith("incoming-") else KEEP_SECONDS
        try:
            if time.time() - entry.stat().st_mtime > keep:
                if os.path.exists(entry.path + "/seal"):
                    os.close(_lock(entry.path, fcntl.LOCK_EX))
                _remove(entry.path)
        except OSError:
            pass        # another run prunes too


# ────────────────────────────────────────── one-shot mode ─────────────────────────────────────────

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
        _write_whole(options.result_file, outcome)
        if ok:
            return 0
        stage = RUNNING
        problem = "%s raised %s" % (options.code_file, describe(value))
    except BaseException as error:      # unpickling may raise anything
        problem = "cannot %s: %s" % (doing, describe(error))
    one_line = " ".join(problem.split())
    sys.stderr.write("remote_worker: %s\n" % one_line)
    return stage


def _write_whole(path: str, data: bytes) -> None:
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
