"""How a script starts and ends: its log, its import path, and one clear line for a user's mistake."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

STOPPED = (
    "Stopped. The same command goes on from here: training from its last checkpoint, if it saved one, and prediction "
    "after its last batch. Finished files are whole."
)

OUT_OF_MEMORY = (
    "The device's memory ran out. `--dry_run true` of train.py and predict.py says what is needed. Less is needed with "
    "fewer --tokens_per_batch; in training with a smaller --per_device_train_batch_size and more "
    "--gradient_accumulation_steps; in prediction with --merge never; or on a base in 4 bit."
)


def run_script(main: Callable[[], None]) -> None:
    """Calls a script's main. A user's mistake ends it with one line and exit code 2 instead of a traceback.

    BOTHWAYS_TRACEBACK=1 shows the traceback.
    """
    # The processes of a launch would all log the same progress, so only the first one does. All of them log errors.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    # Without this, MKL's sums differ in the last bit with the number of threads, and so with the number of processes.
    # It costs no time.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    for chatty, level in (("httpx", logging.WARNING), ("datasets", logging.WARNING), ("bitsandbytes", logging.ERROR)):
        logging.getLogger(chatty).setLevel(level)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("BOTHWAYS_TRACEBACK") == "1":
            raise
        logging.getLogger("bothways").critical(f"error: {error}")
        raise SystemExit(2) from error
    except (RuntimeError, MemoryError) as error:
        if os.environ.get("BOTHWAYS_TRACEBACK") == "1" or not _is_out_of_memory(error):
            raise
        logging.getLogger("bothways").critical(f"error: {OUT_OF_MEMORY} {str(error).partition(chr(10))[0]}")
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        logging.getLogger("bothways").critical(STOPPED)
        raise SystemExit(130) from error  # as a shell reports a program that Ctrl-C ended


def _is_out_of_memory(error: Exception) -> bool:
    """Returns whether memory ran out on a GPU or on the CPU."""
    # By name, because torch may not be imported yet; on a CPU its error is a plain RuntimeError.
    names = [each.__name__ for each in type(error).__mro__]
    return "OutOfMemoryError" in names or "MemoryError" in names or "DefaultCPUAllocator" in str(error)


def forget_script_folder() -> None:
    """Removes the script's folder from the front of the import path, where Python puts it.

    Otherwise `import evaluate` would import scripts/evaluate.py instead of the Hugging Face library.
    """
    # Only the first entry, and not an empty one, which is the current folder of `python -c`: elsewhere the same folder
    # may be wanted, as site-packages is in a notebook, whose script lies there.
    first = sys.path[0] if sys.path else ""
    if first and Path(first).resolve() == Path(sys.argv[0]).resolve().parent:
        del sys.path[0]


def show_text(text: str) -> None:
    """Prints a long text. The reader may close the pipe before its end, as in `train.py --help | head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes stdout when it exits and would fail there again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# When this module is imported, which a script does before it imports anything else of ours: that may need the standard
# library's `select`, as `email` does, and would get scripts/select.py.
forget_script_folder()
