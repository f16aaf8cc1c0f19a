"""A fork server for Python commands: it imports torch and its companions once, and each command runs in a fork of it.

Importing them takes 6 to 8 CPU seconds, and the tests start about a hundred interpreters. `multiprocessing`'s fork
server does not fit: a command that it started could not start others, as `accelerate launch` does, and would see
multiprocessing's own `__main__`, start method and arguments. This module knows nothing of what the commands do.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, NoReturn

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCHER = "accelerate.commands.launch"
# Imported before the first fork, besides every module of `modeling`: what libraries import only when they are used.
PRELOADED = (
    LAUNCHER,
    "torch.distributed.run",
    "torch._dynamo",
    "deepspeed",
    "transformers.integrations.bitsandbytes",
    "transformers.integrations.deepspeed",
    "transformers.models.gemma2.modeling_gemma2",
    "transformers.models.llama.modeling_llama",
    "peft.tuners.lora.bnb",
    "sklearn.linear_model",
    "sklearn.feature_extraction.text",
    "scipy.stats",
)
NOT_PRELOADED = {"modeling.serving.page"}  # Gradio: 3 CPU seconds, and one command needs it
SERVER = "from tests.warm import serve; serve()"
RANK = "rank of {}"  # a process's name, of which Linux keeps 15 bytes: with the launcher's process id

_address = ""  # of the server; a fork inherits it, so that a launcher can start its ranks there


class WarmProcess:
    """A Python command in a fork of the server, with the part of subprocess.Popen's interface that is used here."""

    def __init__(
        self,
        command: list[str],
        *,
        cwd: Path | str | None = None,
        env: dict[str, str] | None = None,
        stdout: IO | None = None,
        stderr: IO | None = None,
        start_new_session: bool = False,
        name: str = "",
    ):
        self.args, self.returncode = command, None
        request = {
            "argv": command[1:],
            "cwd": str(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
            "new_session": start_new_session,
            "name": name,
        }
        body = json.dumps(request).encode()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(_address or start_server())
        files = [1 if stdout is None else stdout.fileno(), 2 if stderr is None else stderr.fileno()]
        socket.send_fds(self._server, [len(body).to_bytes(8, "big")], files)
        self._server.sendall(body)
        self.pid = self._receive()

    def _receive(self) -> int:
        """The server's next number: the process id, later the exit code."""
        found = self._server.recv(8, socket.MSG_WAITALL)
        if len(found) < 8:
            raise RuntimeError("The fork server is gone: see its message above.")
        return int.from_bytes(found, "big", signed=True)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._server, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = self._receive()
            self._server.close()
        return self.returncode

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def list_ranks(self) -> list[int]:
        """The running processes that this launcher has started; they are the server's children, so their name tells."""
        found = []
        for path in Path("/proc").glob("[0-9]*/comm"):
            with suppress(OSError):  # it has ended meanwhile
                if path.read_text().strip() == RANK.format(self.pid):
                    found.append(int(path.parent.name))
        return sorted(found)


@cache
def start_server() -> str:
    """The address of this process's server, which imports everything now and ends with this process."""
    folder = tempfile.mkdtemp(prefix="warm-")
    address = f"{folder}/socket"
    server = subprocess.Popen([sys.executable, "-c", SERVER, address], cwd=REPOSITORY, stdin=subprocess.PIPE)

    def stop() -> None:
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(stop)
    while not os.path.exists(address):
        assert server.poll() is None, "the fork server did not start: see its message above"
        time.sleep(0.02)
    return address


def is_python(command: list[str]) -> bool:
    """Whether a fork can stand in for the command: this Python with a script or a module.

    Not with -c: such programs ask what an interpreter imports by itself."""
    return command[0] == sys.executable and (command[1] in ("-m", "-u") or command[1][0] != "-")


# --- in the server ----------------------------------------------------------------------------------------------------


def serve() -> None:
    """Imports everything, then forks a process for each request, until the process that started it is gone."""
    global _address
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the commands by themselves
    for name in PRELOADED:
        with suppress(ModuleNotFoundError):  # DeepSpeed, where it is not installed
            importlib.import_module(name)
    import modeling

    for module in pkgutil.walk_packages(modeling.__path__, "modeling."):
        if module.name not in NOT_PRELOADED:
            importlib.import_module(module.name)
    # A thread pool does not survive a fork: what it holds is locked for ever in the child. Imports start none.
    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()  # else the first collection in each fork would write to, and so copy, every page
    _address = sys.argv[1]
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        # Bound under another name first: the file's appearance says that the server is ready.
        listener.bind(f"{_address}.new")
        listener.listen(64)
        os.rename(f"{_address}.new", _address)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == 0:
                    return
                if key.fileobj is listener:
                    _accept(listener.accept()[0], selector)
                else:
                    _report_end(key, selector)


def _accept(client: socket.socket, selector: selectors.BaseSelector) -> None:
    """Forks one command and tells the client its process id."""
    head, files, _, _ = socket.recv_fds(client, 8, 2)
    request = json.loads(client.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
    pid = os.fork()
    if pid == 0:
        for key in list(selector.get_map().values()):
            os.close(key.fd)
        selector.close()
        client.close()
        _become(files, **request)
    for file in files:
        os.close(file)
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, client))
    client.sendall(pid.to_bytes(8, "big"))


def _report_end(key: selectors.SelectorKey, selector: selectors.BaseSelector) -> None:
    """Tells the client of an ended process its exit code, negative for a signal."""
    pid, client = key.data
    selector.unregister(key.fd)
    os.close(key.fd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with client, suppress(BrokenPipeError):  # a launcher that was killed asks no more
        client.sendall(code.to_bytes(8, "big", signed=True))


# --- in a fork --------------------------------------------------------------------------------------------------------


def _become(files: list[int], argv: list[str], cwd: str, env: dict[str, str], new_session: bool, name: str) -> NoReturn:
    """Makes this fork what `python *argv` would be, and ends with its exit code."""
    code = 1
    try:
        if new_session:
            os.setsid()
        if name:
            Path("/proc/self/comm").write_text(name)
        for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), *files)):
            os.dup2(source, target)
            os.close(source)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # OpenMP read the variable when torch was imported, in the server.
        torch.set_num_threads(int(env.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
        code = _run(argv)
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread():
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)  # not sys.exit: what the server holds is not this process's to tear down


def _run(argv: list[str]) -> int:
    """Runs a command line of Python's; its exit code."""
    argv = argv[1:] if argv[0] == "-u" else argv
    try:
        if argv[0] == "-m":
            sys.argv, sys.path[0] = ["-m", *argv[2:]], os.getcwd()
            sys.modules.pop(argv[1], None)  # else runpy warns that it was imported before
            if argv[1] == LAUNCHER:
                _start_ranks_warm()
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = list(argv), str(Path(argv[0]).resolve().parent)
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    return 0


def _start_ranks_warm() -> None:
    """Lets this launcher start its processes as forks of the server too; all else of the launcher is the real one."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    cold = subprocess.Popen

    def start(args: list[str], **options: object) -> subprocess.Popen | WarmProcess:
        if not is_python(list(args)):
            return cold(args, **options)
        return WarmProcess(list(args), name=RANK.format(os.getpid()), **options)

    subprocess.Popen = subprocess_handler.Popen = start
