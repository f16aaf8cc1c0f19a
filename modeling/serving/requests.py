"""What users send: checked against limits before the judge sees it. Knows no judge and no web framework."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from modeling.data.battles import TEXTS, load_battles
from modeling.data.outcomes import WITH_TIE
from modeling.data.text import replace_surrogates
from modeling.runtime.paths import BATTLE_ENDINGS
from modeling.runtime.sources import iterate_columns
from modeling.serving.validation import BodyReader, InvalidRequest, describe

TITLES = dict(zip(TEXTS, ("Prompt", "Answer A", "Answer B"), strict=True))
MAX_ID_LENGTH = 200
# Rows of an upload read at once. Few, because a parquet file of some kilobytes can hold the same megabyte on every row.
UPLOAD_CHUNK_ROWS = 16
MAX_EXPANSION = 8  # a compressed file may unpack to this many times the upload limit


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Upper limits of one request: characters per text, battles and bytes per file."""

    max_characters: int
    max_battles: int
    max_bytes: int


@dataclass(frozen=True, kw_only=True)
class PairLimits:
    """Upper limits of one request about many answers: characters per text, and pairs of answers in all."""

    max_characters: int
    max_pairs: int


def check_battle(body: object, limits: RequestLimits) -> dict:
    """Returns a battle with the texts unchanged, except that lone surrogates become U+FFFD.

    Args:
        body: An object with prompt, response_a, response_b and, if wanted, id.
        limits: Upper limits.

    Raises:
        InvalidRequest: For all faults: fields that are missing, unknown, blank, too long or no text, and an id that is
            neither a short text nor a whole number.
    """
    reader = BodyReader(limits.max_characters)
    fields = reader.read_object(body, (), TEXTS, ("id",))
    id = fields.pop("id", "")
    if isinstance(id, bool) or not isinstance(id, str | int) or len(str(id)) > MAX_ID_LENGTH:
        most = f"a text of at most {MAX_ID_LENGTH} characters, or a whole number"
        reader.refuse(("id",), f"expected {most}; found {describe(id)}. Shorten it.")
    texts = {name: reader.read_text(text, (name,)) for name, text in fields.items()}
    reader.finish()
    return {"id": replace_surrogates(id) if isinstance(id, str) else id} | texts


def name_faults(error: InvalidRequest) -> str:
    """Returns what is wrong with a battle in the page's words, one fault per line."""
    places = [".".join(map(str, fault["loc"][1:])) for fault in error.detail]
    return "\n".join(
        f"{TITLES.get(place, place)}: {fault['msg']}" for place, fault in zip(places, error.detail, strict=True)
    )


def check_bound(where: str, found: int, most: int, unit: str) -> None:
    """Raises a ValueError if a file exceeds a limit."""
    if found > most:
        raise ValueError(
            f"{where}: expected at most {most:,} {unit}; found {found:,}. Send less at a time, or run "
            "scripts/predict.py, which has no limit."
        )


def load_upload(path: Path, limits: RequestLimits) -> Dataset:
    """Returns the battles of an uploaded file, in any schema that `load_battles` reads.

    Raises:
        ValueError: If the file exceeds a limit, or `load_battles` refuses it. The message is one line and names the
            file without its folder: users need not know where the server keeps uploads.
    """
    try:
        check_upload(path, limits)
        battles = load_battles(path, labels=WITH_TIE)
    except (ValueError, OSError) as error:
        raise ValueError(" ".join(str(error).replace(str(path), path.name).split())) from error
    if not len(battles):
        raise ValueError(f"{path.name}: expected at least one battle; found none. Send a file with rows.")
    return battles


def check_upload(path: Path, limits: RequestLimits) -> None:
    """Raises a ValueError if the file exceeds a limit. Reads it in small parts, so that a huge one fills no memory."""
    check_bound(str(path), path.stat().st_size, limits.max_bytes, "bytes")
    if path.suffix.lower() not in BATTLE_ENDINGS:  # a small packed file may hold more than the memory
        raise ValueError(
            f"{path}: expected a file ending in {', '.join(BATTLE_ENDINGS)}; found {path.suffix or 'no ending'!r}. "
            "Unpack or convert it."
        )
    if path.suffix.lower() == ".parquet":
        check_bound(str(path), _measure_unpacked(path), MAX_EXPANSION * limits.max_bytes, "bytes once unpacked")
    num_rows = 0
    for columns in iterate_columns(path, UPLOAD_CHUNK_ROWS):
        for name, values in columns.items():
            for number, value in enumerate(values, num_rows + 1):
                where, length = f"{path}, row {number}, {name}", len(value if isinstance(value, str) else str(value))
                check_bound(where, length, limits.max_characters, "characters")
        num_rows += max(map(len, columns.values()), default=0)
        check_bound(str(path), num_rows, limits.max_battles, "battles")


def _measure_unpacked(path: Path) -> int:
    """Bytes of a parquet file's columns before compression, from its metadata; 0 if the file is damaged."""
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return 0  # load_battles will refuse it, with a better message
    return sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
