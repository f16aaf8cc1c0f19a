"""What an option of a script is: a dataclass field with a help, which is its only description; and those that several
scripts have.

The metadata of a field: `choices`, where they are fixed; `path`, a key of `modeling.paths.CHECKS`, where it names files
or folders; `group`, the heading in --help under which it and the fields after it stand.
"""

from dataclasses import dataclass, field, fields
from typing import ClassVar

from modeling.choices import BAD_ROW_POLICIES, BLANK_POLICIES, MERGES, PRECISIONS, READINGS, TIE_POLICIES
from modeling.schemas import SCHEMA_NAMES

BASE_HELP = (
    "Backbone: a folder, a Hub id (with @revision, if wanted), a .gguf file, or package:<installed package>/<file>."
)
JUDGE_HELP = "Members or whole judges, one or more: folders or Hub ids (with @revision)."
DTYPE_HELP = "Precision to compute in; auto measures what this device does natively and fastest."


def option(default, help: str, **metadata):
    """A dataclass field with a default, a help and more metadata."""
    return field(default=default, metadata={"help": help, **metadata})


def require(arguments: object, *names: str) -> None:
    """Raises a ValueError naming the flags that were not given."""
    missing = [f"--{name}" for name in names if not vars(arguments)[name]]
    if missing:
        metadata = {f"--{field.name}": field.metadata for field in fields(arguments)}
        hints = "; ".join(
            f"{flag}: {metadata[flag]['help']}"
            + (f" ({' or '.join(choices)})" if (choices := metadata[flag].get("choices")) else "")
            for flag in missing
        )
        raise ValueError(f"Expected {', '.join(missing)}; found neither flag nor YAML key. {hints}")


@dataclass
class BattleArguments:
    """How the rows of a file become battles, in train.py, predict.py and pseudolabel.py alike."""

    schema: str = option(
        "auto", "Schema of the files; auto sees it from the columns.", choices=SCHEMA_NAMES, group="data"
    )
    tie_policy: str = option("keep", "Ties: keep them as [0.5, 0.5], or drop them.", choices=TIE_POLICIES)
    blank_policy: str = option(
        "error", "Null or blank texts: stop, drop the battle, or keep it as empty.", choices=BLANK_POLICIES
    )
    bad_row_policy: str = option(
        "error", "Any other row that cannot be read: stop, or drop it.", choices=BAD_ROW_POLICIES
    )

    @property
    def row_policy(self) -> dict[str, str]:
        """What `load_battles` is told."""
        return {field.name: vars(self)[field.name] for field in fields(BattleArguments)}


@dataclass
class ReadingArguments(BattleArguments):
    """How a judge reads battles, in predict.py, pseudolabel.py and evaluate.py alike."""

    own_data: ClassVar[tuple[str, ...]] = ("battles", "judge")

    battles: str = option(None, "Battles to read: parquet, csv or jsonl.", group="data", path="battles")
    judge: list[str] | None = option(None, JUDGE_HELP, group="model", path="judge")
    readings: str | None = option(
        None,
        "Each member reads the order it was trained in, or every member reads both; as the judge says if left out.",
        choices=READINGS,
    )
    calibrated: bool = option(True, "Apply the judge's calibration, if it has one; raw_p_a is what p_a was before.")
    skip_probes: bool = option(False, "Do not check that each member still answers as it did when it was saved.")
    tokens_per_batch: int | None = option(
        None,
        "Most tokens that are read at once, a longer battle by itself; chosen for the device if left out.",
        group="device",
    )
    merge: str = option(
        "auto",
        "Expand quantised weights once and merge adapters into them, for speed: where memory allows and probes agree.",
        choices=MERGES,
    )
    dtype: str = option("auto", DTYPE_HELP, choices=PRECISIONS)
    use_cpu: bool = option(False, "Run on the CPU even where there is a GPU.")

    @property
    def loading(self) -> dict:
        """What `Judge.from_pretrained` is told."""
        return {name: vars(self)[name] for name in ("skip_probes", "dtype", "merge")}
