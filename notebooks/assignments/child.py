"""Runs students' functions on inputs that it is sent, and knows no answer; `grading.py` starts it.

One process imports what an assignment needs and then forks for every task, so that a task costs no
import and none can touch another. What it sends back are numbers as JSON, one line a call.

Limits that hold for the fork: wall time, processor time, memory above what the imports took, the
size of files, the number of bytes sent back. An audit hook refuses files outside the Python
installation, sockets, processes and foreign libraries. An audit hook is a fence, not a wall: code in
C can pass it. Where Linux lets a user make namespaces, `grading.py` also starts this program without
a network and with empty folders over the checks and the submissions.
"""

import builtins
import copy
import importlib
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress

MAX_REPLY = 4_000_000  # bytes
MAX_NUMBERS = 200_000  # in one result
HOMES = tuple({os.path.realpath(p) + os.sep for p in (sys.prefix, sys.base_prefix)})
FORBIDDEN = (
    "socket.",
    "subprocess.",
    "ctypes.",
    "shutil.",
    "tempfile.",
    "pty.",
    "signal.",
    "urllib.",
    "http.",
)
FILES = {"open", "os.listdir", "os.scandir"}
HARMLESS = {"os.putenv", "os.unsetenv"}


class Printed:
    """Stands for standard output: counts, and keeps nothing."""

    def __init__(self):
        self.characters = 0

    def write(self, text):
        self.characters += len(text)
        return len(text)

    def flush(self):
        pass


def fence(tried: list):
    """Refuse files, network and processes from here on; note in `tried` what was attempted."""

    def hook(event, args):
        if event in FILES:
            path = args[0]
            writes = event == "open" and bool(set(str(args[1] or "r")) & set("wax+"))
            if isinstance(path, bytes | str) and not writes:
                real = os.path.realpath(os.fsdecode(path)) + os.sep
                if real.startswith(HOMES):
                    return
        elif event in HARMLESS or not (event.startswith(FORBIDDEN) or event.startswith("os.")):
            return
        if len(tried) < 5:
            tried.append(event)
        raise PermissionError(f"{event}: a submission may use no files, network or processes")

    sys.addaudithook(hook)


def limit(seconds: float, memory: int) -> None:
    """Set the limits that the system itself holds."""
    with suppress(ImportError):
        import resource

        whole = int(seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError), open("/proc/self/statm") as pages:
            size = int(pages.read().split()[0]) * resource.getpagesize() + memory
            resource.setrlimit(resource.RLIMIT_AS, (size, size))


def guarded_import(allowed: list):
    """Return an `__import__` that knows the allowed modules only."""

    def importer(name, *args, **kwargs):
        if name.split(".")[0] not in allowed:
            raise ImportError(f"{name} may not be used here, only {', '.join(allowed)} and what is given")
        return importlib.__import__(name, *args, **kwargs)

    return importer


def plain(value):
    """Turn a result into numbers and lists of numbers."""
    if hasattr(value, "detach"):
        value = value.detach()
    if hasattr(value, "tolist"):
        count = value.numel() if hasattr(value, "numel") else getattr(value, "size", 1)
        if count > MAX_NUMBERS:
            raise ValueError(f"the result has {count:,} numbers")
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value[:MAX_NUMBERS]]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"the result is of type {type(value).__name__}, not a number, array, tensor, list or tuple"
    )


def arrays(value, kind: str):
    """Turn nested lists, which the grader sends for arrays, into arrays or tensors; leave lists of text."""
    if not isinstance(value, list) or all(isinstance(item, str) for item in value):
        return value
    import numpy

    if kind == "torch":
        import torch

        return torch.tensor(numpy.array(value))
    return numpy.array(value)


def call(function, args: list, kind: str, gradient: bool):
    """Return the result, and the numbers of the arguments that the call changed.

    With `gradient` the result is followed by the derivatives of its sum by every tensor of floats among the
    arguments.
    """
    given = [arrays(value, kind) for value in copy.deepcopy(args)]
    if gradient:
        tensors = [x.requires_grad_() for x in given if hasattr(x, "grad") and x.is_floating_point()]
    result = function(*given)
    if gradient:
        result.sum().backward()
        result = [result, *(tensor.grad for tensor in tensors)]
    changed = [n for n, (now, was) in enumerate(zip(given, args, strict=True)) if plain(now) != was]
    return plain(result), changed


def work(request: dict, pipe: int) -> None:
    """Define the functions, call the one that is asked for, write a line a call. In the fork only."""

    def say(**facts):
        data = (json.dumps(facts) + "\n").encode()
        while data:
            data = data[os.write(pipe, data) :]

    def told(error):
        return f"{type(error).__name__}: {error}"[:400]

    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    printed = sys.stdout = sys.stderr = Printed()
    tried = []
    space = {"__name__": "submission", "__builtins__": dict(vars(builtins))}
    exec(request["given"], space)
    limit(request["seconds"], request["memory"])
    fence(tried)
    space["__builtins__"]["__import__"] = guarded_import(request["allowed"])
    for source in request["code"]:
        try:
            exec(compile(source, "submission", "exec"), space)
        except BaseException as error:
            say(note=told(error))
    exec(request["others"], space)
    function = space.get(request["function"])
    for number, args in enumerate(request["calls"]):
        try:
            value, changed = call(function, args, request["kind"], request["gradient"])
            say(call=number, value=value, changed=changed)
        except BaseException as error:
            say(call=number, error=told(error), refused=isinstance(error, ValueError))
    say(printed=printed.characters, tried=tried, whole=True)


def collect(pid: int, pipe: int, seconds: float) -> dict:
    """Read what a fork writes until it ends, is too slow or says too much; leave no process behind."""
    data, end, why = b"", time.monotonic() + seconds, ""
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            why = f"did not end within {seconds:g} s"
            break
        piece = os.read(pipe, 65536)
        data += piece
        if len(data) > MAX_REPLY:
            why = f"sent more than {MAX_REPLY:,} bytes"
            break
        if not piece:
            break
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return {"text": data.decode(errors="replace"), "why": why, "status": status}


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
        if name == "torch":  # an optimiser imports this when it is made, and reads files that a fork may not
            importlib.import_module("torch._dynamo")
    answers = os.dup(1)
    for line in sys.stdin:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                os.setsid()
                os.close(read)
                os.close(answers)
                work(json.loads(line), write)
            os._exit(0)
        os.close(write)
        reply = json.dumps(collect(pid, read, json.loads(line)["seconds"])) + "\n"
        os.close(read)
        data = reply.encode()
        while data:
            data = data[os.write(answers, data) :]


if __name__ == "__main__":
    main()
