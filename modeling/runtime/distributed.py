"""The processes of a launch: whether all run together, and what one decides for all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin, broadcast_object_list, gather_object
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

# Elements that DeepSpeed sends at once. Its own 500 million would take 2 GB a buffer: more than a 9B base's adapters.
BUCKET_SIZE = 50_000_000


def prepare_deepspeed(plugin: DeepSpeedPlugin) -> None:
    """Lets DeepSpeed share out what is trained, and leave alone in what precision."""
    for precision in ("bf16", "fp16"):  # it would turn the float32 adapters and head into that
        plugin.deepspeed_config.pop(precision, None)
    zero = plugin.deepspeed_config["zero_optimization"]
    zero |= {"reduce_bucket_size": BUCKET_SIZE, "allgather_bucket_size": BUCKET_SIZE} | zero
    zero.setdefault("stage3_param_persistence_threshold", "auto")  # by the hidden size; else small bases are not shared
    plugin.set_deepspeed_weakref()  # transformers loads weights by a copy of it


@contextmanager
def suspend_sharding(plugin: DeepSpeedPlugin | None) -> Iterator[None]:
    """Lets transformers build a network as if there were no ZeRO-3, which would share its weights out."""
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if plugin:
            plugin.set_deepspeed_weakref()


def check_launch(accelerator: Accelerator) -> None:
    """Raises a ValueError where the launcher started something else than it was told to: those runs exit with 0.

    `use_cpu: true` in the launcher alone starts several processes that do not talk to each other, and
    ACCELERATE_USE_CPU=1 turns DeepSpeed off. (That MULTI_CPU starts only one cannot be seen from inside it.)
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise ValueError(
            f"Launcher: expected {asked} processes that train together; found {accelerator.num_processes}. Where there "
            "is no GPU give the script --use_cpu true, and take configs/accelerate/ddp.yaml without use_cpu in it."
        )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and accelerator.distributed_type.value != "DEEPSPEED":
        raise ValueError(
            f"Launcher: expected DeepSpeed; found {accelerator.distributed_type.value}. Unset ACCELERATE_USE_CPU; "
            "where there is no GPU give the script --use_cpu true."
        )


def describe_launch(accelerator: Accelerator, wrapped: nn.Module) -> dict:
    """What really ran, as JSON values: a launcher that was misread starts one process, or several that do not talk."""
    plugin = accelerator.state.deepspeed_plugin
    return {
        "num_processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "zero_stage": plugin.zero_stage if plugin else None,
        "wrapped_as": type(wrapped).__name__,
    }


def call_on_main(function: Callable, *arguments: object) -> object:
    """What the main process's call returns, on every process; a user's mistake it finds is raised on all of them."""
    outcome: list = [None]
    if PartialState().is_main_process:
        try:
            outcome = [(function(*arguments), None)]
        except (ValueError, OSError) as error:
            outcome = [(None, error)]
    result, mistake = broadcast_object_list(outcome)[0]
    if mistake:
        raise mistake
    return result


def check_shared_folder(folder: Path) -> None:
    """Raises a ValueError if the machines of a launch do not all see the folder in which checkpoints are kept."""
    state = PartialState()
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == state.num_processes:
        return
    mark = folder / ".shared"
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    state.wait_for_everyone()
    seen = gather_object([mark.exists()])
    if state.is_main_process:
        mark.unlink()
    if not all(seen):
        raise ValueError(
            f"--output_dir {folder.parent}: expected a folder that all machines of the launch share, as each process "
            f"writes a part of a checkpoint; found that {seen.count(False)} of {len(seen)} processes do not see it. "
            "Give a folder on a shared file system."
        )
