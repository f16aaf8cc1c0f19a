"""What users send: checked against limits before the judge sees it. Knows no judge and no web framework."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from modeling.data.battles import TEXTS, load_battles
from modeling.data.text import replace_surrogates
from modeling.runtime.paths import BATTLE_ENDINGS
from modeling.runtime.sources import iterate_columns

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


Text = Annotated[str, BeforeValidator(lambda text: replace_surrogates(text) if isinstance(text, str) else text)]


class BattleRequest(BaseModel):
    """One battle. Other fields are refused, so that a misspelt one is noticed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Text = Field(description="Question or task.")
    response_a: Text = Field(description="The first answer.")
    response_b: Text = Field(description="The second answer.")
    id: Text | int = Field("", description="Returned unchanged.")


class FileRequest(BaseModel):
    """An uploaded file of battles, as Gradio's API sends it."""

    model_config = ConfigDict(extra="forbid")

    file: object


def find_wrong_fields(sent: Mapping, model: type[BaseModel]) -> list[dict]:
    """Returns the missing and unknown fields of a JSON object, as `describe_faults` does."""
    try:
        model.model_validate(sent)
    except ValidationError as error:
        return describe_faults([f for f in error.errors() if f["type"] in ("missing", "extra_forbidden")], model)
    return []


def describe_faults(faults: Sequence[Mapping], model: type[BaseModel]) -> list[dict]:
    """Returns pydantic's errors in FastAPI's format, without repeating what was sent: it may be long.

    A misspelt field gets the name of the nearest known one.
    """
    described = []
    for fault in faults:
        loc = ["body", *(str(part)[:MAX_ID_LENGTH] for part in fault["loc"] if part != "body")]
        message = f"{loc[-1]}: {fault['msg']}."
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(loc[-1], model.model_fields, 1)
            message += f" Did you mean {near[0]}?" if near else f" Known are {', '.join(model.model_fields)}."
        described.append({"type": fault["type"], "loc": loc, "msg": message})
    return described


class InvalidRequestError(ValueError):
    """A request that cannot be answered as it is.

    Attributes:
        detail: One dictionary per fault, in FastAPI's format: loc (path of the field), msg, type.
    """

    def __init__(self, message: str, *field: str):
        super().__init__(message)
        self.detail = [{"loc": ["body", *field], "msg": message, "type": "value_error"}]


def check_battle(texts: Mapping[str, object], limits: RequestLimits, id: object = "") -> dict:
    """Returns a battle with the texts unchanged, except that lone surrogates become U+FFFD.

    Raises:
        InvalidRequestError: If a text is missing or too long, or the id is neither a short text nor a whole number.
    """
    if isinstance(id, bool) or not isinstance(id, str | int) or len(str(id)) > MAX_ID_LENGTH:
        raise InvalidRequestError(
            f"id: expected a text of at most {MAX_ID_LENGTH} characters, or a whole number. Shorten it.", "id"
        )
    battle = {"id": replace_surrogates(id) if isinstance(id, str) else id}
    for name, title in TITLES.items():
        text = texts.get(name)
        if text is not None and not isinstance(text, str):
            found = type(text).__name__
            raise InvalidRequestError(f"{title}: expected text; found {found}. Send {name} as a string.", name)
        if not text or not text.strip():
            raise InvalidRequestError(f"{title}: expected some text; found none. Type or paste it.", name)
        check_bound(title, len(text), limits.max_characters, "characters", name)
        battle[name] = replace_surrogates(text)  # JSON lets lone ones in; the tokenizer refuses them
    return battle


def check_bound(where: str, found: int, most: int, unit: str, *field: str) -> None:
    """Raises an InvalidRequestError for the field if a request exceeds a limit."""
    if found > most:
        raise InvalidRequestError(
            f"{where}: expected at most {most:,} {unit}; found {found:,}. Send less at a time, or run "
            "scripts/predict.py, which has no limit.",
            *field,
        )


def load_upload(path: Path, limits: RequestLimits) -> Dataset:
    """Returns the battles of an uploaded file, in any schema that `load_battles` reads.

    Raises:
        ValueError: If the file exceeds a limit, or `load_battles` refuses it. The message is one line and names the
            file without its folder: users need not know where the server keeps uploads.
    """
    try:
        check_upload(path, limits)
        battles = load_battles(path)
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
