"""The processes of a launch: checks that they work together, and shares what one of them decides.

It must not know what the processes compute.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin, broadcast_object_list, gather_object
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from modeling.runtime.logs import build_logger

logger = build_logger(__name__)

# Elements that DeepSpeed sends at once. Its default, 500 million, takes 2 GB a buffer, more than a 9B base's adapters.
BUCKET_SIZE = 50_000_000
MAX_BUILD = 300  # seconds; the extension that DeepSpeed builds on a CPU takes about one minute


def prepare_deepspeed(plugin: DeepSpeedPlugin) -> None:
    """Makes DeepSpeed shard what is trained, but leave its precision alone, and clears the way to its extensions."""
    if PartialState().is_local_main_process:
        wait_for_extensions()
    for precision in ("bf16", "fp16"):  # DeepSpeed would convert the float32 adapters and head to it
        plugin.deepspeed_config.pop(precision, None)
    zero = plugin.deepspeed_config["zero_optimization"]
    # The sizes of the user's own configuration win over these.
    zero |= {"reduce_bucket_size": BUCKET_SIZE, "allgather_bucket_size": BUCKET_SIZE} | zero
    # Parameters below this size are not sharded. "auto" sets it by the hidden size; the default exempts small bases.
    zero.setdefault("stage3_param_persistence_threshold", "auto")
    plugin.set_deepspeed_weakref()  # transformers reads a copy of the configuration, made here, when it loads weights


def wait_for_extensions(seconds: float = MAX_BUILD) -> None:
    """Waits until no other process builds extensions of torch, as DeepSpeed does when it starts; says for what.

    A process that was killed while it built one leaves its lock behind. Every later run would wait for it for ever, in
    silence, so a lock is removed once it is older than `seconds`.
    """
    from torch.utils.cpp_extension import get_default_build_root  # slow to import, and only DeepSpeed needs it

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in root.glob("**/lock"):
        said = False
        while lock.exists():
            with suppress(FileNotFoundError):  # it was removed in this moment
                if time.time() - lock.stat().st_mtime > seconds:
                    logger.warning(f"Removed the lock of a build that was killed: {lock}")
                    lock.unlink()
                elif not said:
                    said = True
                    logger.info(f"Waiting for another process that builds DeepSpeed's extension ({lock})")
            time.sleep(0.2)


@contextmanager
def suspend_sharding(plugin: DeepSpeedPlugin | None) -> Iterator[None]:
    """Lets transformers build a network whole; under ZeRO-3 it would shard the weights."""
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if plugin:
            plugin.set_deepspeed_weakref()


def check_launch(accelerator: Accelerator) -> None:
    """Raises a ValueError if the launcher did not start what it was asked for. Such runs would end with exit code 0.

    `use_cpu: true` only in the launcher's file starts processes that do not communicate, and ACCELERATE_USE_CPU=1 turns
    DeepSpeed off. One case cannot be seen from inside: MULTI_CPU, which starts a single process.
    """
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise ValueError(
            f"Launcher: expected {expected} processes that train together; found {accelerator.num_processes}. Without "
            "a GPU, pass --use_cpu true to the script, and use configs/accelerate/ddp.yaml without use_cpu in it."
        )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and accelerator.distributed_type.value != "DEEPSPEED":
        raise ValueError(
            f"Launcher: expected DeepSpeed; found {accelerator.distributed_type.value}. Unset ACCELERATE_USE_CPU. "
            "Without a GPU, pass --use_cpu true to the script instead."
        )


def describe_launch(accelerator: Accelerator, wrapped: nn.Module) -> dict:
    """Returns what really ran, as JSON values. It can differ from what the launcher's file asked for."""
    plugin = accelerator.state.deepspeed_plugin
    return {
        "num_processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "zero_stage": plugin.zero_stage if plugin else None,
        "wrapped_as": type(wrapped).__name__,
    }


def share_failure(failure: Exception | None) -> Exception | None:
    """Returns the failure of the first process that had one, or None: all processes then do the same about it."""
    return next((each for each in gather_object([failure]) if each), None)


def call_on_main(function: Callable, *arguments: object) -> object:
    """Calls a function on the main process and returns its result on every process.

    A ValueError or OSError is raised on every process too. If only the main one stopped, the others would wait for it.
    """
    outcome: list = [None]
    if PartialState().is_main_process:
        try:
            outcome = [(function(*arguments), None)]
        except (ValueError, OSError) as error:
            outcome = [(None, error)]
    result, error = broadcast_object_list(outcome)[0]
    if error:
        raise error
    return result


def check_shared_folder(folder: Path) -> None:
    """Raises a ValueError if some machines of the launch do not see the folder of the checkpoints."""
    state = PartialState()
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == state.num_processes:
        return  # all processes are on this machine
    mark = folder / ".shared"
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    state.wait_for_everyone()
    seen = gather_object([mark.exists()])  # waits for all processes, so the mark is not removed too early
    if state.is_main_process:
        mark.unlink()
    if not all(seen):
        raise ValueError(
            f"--output_dir {folder.parent}: expected a folder that all machines of the launch share, because each "
            f"process writes a part of a checkpoint; found {seen.count(False)} of {len(seen)} processes that do not "
            "see it. Give a folder on a shared file system."
        )
