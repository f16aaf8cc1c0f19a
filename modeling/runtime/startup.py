"""How a script begins: what is logged, how a user's mistake ends it, and when torch is loaded."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path


def run_script(main: Callable[[], None]) -> None:
    """Calls a script's main; a user's mistake ends it with one clear line and exit code 2, not a traceback.

    BOTHWAYS_TRACEBACK=1 shows where it was found.
    """
    forget_script_folder()
    # Of what goes well, the other processes of a launch would only repeat what the main one says.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    # Otherwise a sum's last bit depends on the number of threads, and so on that of the processes. Costs no time.
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


def forget_script_folder() -> None:
    """Takes the script's folder off the import path, where Python puts it first.

    Otherwise `import evaluate` would find scripts/evaluate.py instead of the Hugging Face library.
    """
    folder = str(Path(sys.argv[0]).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if str(Path(entry).resolve()) != folder or not entry]


def show_text(text: str) -> None:
    """Prints a long text; whoever reads it may go before its end, as in `train.py --help | head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more as it ends


def start_torch() -> bool:
    """Loads torch, gives it this process's share of the cores, and says whether it may compute on an accelerator."""
    import torch  # here: what can be answered without it is answered before

    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        # That is what accelerate launch gives each process where there is no GPU; share the cores out instead.
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return torch.accelerator.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"
