"""Lists the flags of a command line: a script's own, from its dataclass, and the Trainer's, from its source text.

The Trainer's flags are parsed from the text of transformers' files, because importing transformers takes seconds and a
mistyped flag must be answered at once. Converting their values is left to transformers.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_origin, get_type_hints

# Files of transformers that define TrainingArguments and the choices of its fields.
SOURCES = ("training_args.py", "trainer_utils.py")
TRAINER_CLASS = "TrainingArguments"
# The one flag of the Trainer that is listed among the script's own, with its group and its meaning here.
OUTPUT_DIR = {"group": "output", "help": "Folder of the member. {orientation} in it is replaced by --orientation."}
# The Trainer's flags that --dtype replaces: the --dtype to write instead of true, and instead of false.
PRECISION_FLAGS = {
    "bf16": ("bfloat16", "float32"),
    "fp16": ("auto", "auto"),  # nothing trains in float16
    "bf16_full_eval": ("bfloat16", "auto"),
    "fp16_full_eval": ("auto", "auto"),
}
# The Trainer's flags about evaluating in padded batches, which this project does in packed sequences instead.
EVALUATION_FLAGS = (
    "per_device_eval_batch_size",
    "eval_accumulation_steps",
    "batch_eval_metrics",
    "include_for_metrics",
    "prediction_loss_only",
)
# The Trainer's flags that would break a promise of this project, with the reason.
REFUSED_FLAGS = {
    "save_only_model": "a restart would begin with a fresh optimizer and train another member",
    "ignore_data_skip": "a restart would read the epoch's first battles again and never its last",
    "auto_find_batch_size": "where memory is short it would train with another batch size than the member records. "
    "--tokens_per_batch splits a batch with the same gradients",
    "neftune_noise_alpha": "its noise is scaled by the length of a row, and a packed row holds many battles",
}
COMPILED = "packed batches have another shape at each step, and each would be compiled anew"
REFUSED_FLAGS |= {name: COMPILED for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode")}
# The packages of which each of the Trainer's reporters needs one.
REPORTERS = {name: (name,) for name in ("wandb", "trackio", "mlflow", "comet_ml", "neptune", "clearml", "dvclive")}
REPORTERS |= {name: (name,) for name in ("codecarbon", "swanlab")}
REPORTERS |= {"azure_ml": ("azureml",), "tensorboard": ("tensorboard", "tensorboardX")}
KINDS = {"int": int, "float": float, "bool": bool, "str": str}


@dataclass(frozen=True)
class Flag:
    """One flag. `kind` is the type of one value, `many` allows several, `choices` are the values allowed.

    `path` names the check in modeling.runtime.paths for what the value must point to; `is_trainers` marks a flag of
    TrainingArguments.
    """

    name: str
    kind: type
    default: object
    help: str
    group: str
    many: bool = False
    choices: tuple | None = None
    path: str | None = None
    is_trainers: bool = False


def list_flags(kind: type) -> list[Flag]:
    """Returns the flags of an argument dataclass, its own before the inherited ones."""
    hints = get_type_hints(kind)
    by_name = {field.name: field for field in fields(kind)}
    flags = {}
    for owner in kind.__mro__[:-1]:
        group = "other"  # a group is named once, at its first field, and holds until the next
        for name in (name for name in vars(owner).get("__annotations__", {}) if name in by_name):
            metadata = by_name[name].metadata
            group = metadata.get("group", group)
            if name not in flags:
                values = {"choices": metadata.get("choices"), "path": metadata.get("path"), "group": group}
                value, many = _find_kind(hints[name])
                flags[name] = Flag(name, value, by_name[name].default, metadata["help"], many=many, **values)
    return list(flags.values())


def _find_kind(hint: object) -> tuple[type, bool]:
    """The type of one value of an annotation such as `list[str] | None`, and whether it takes several."""
    (whole,) = [part for part in get_args(hint) if part is not NoneType] if isinstance(hint, UnionType) else [hint]
    return (get_args(whole)[0], True) if get_origin(whole) is list else (whole, False)


# --- the Trainer's ----------------------------------------------------------------------------------------------------


def read_trainer_flags() -> list[Flag]:
    """Returns the flags of the installed transformers' TrainingArguments, without importing it."""
    folder = Path(find_spec("transformers").submodule_search_locations[0])
    trees = [ast.parse((folder / name).read_text(encoding="utf-8")) for name in SOURCES]
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    enums = {name: _list_members(node) for name, node in classes.items()}
    return list(_read_fields(classes[TRAINER_CLASS], enums))


def _list_members(node: ast.ClassDef) -> tuple[str, ...]:
    """The texts that a class body assigns; for an enumeration, its values."""
    values = (part.value for part in node.body if isinstance(part, ast.Assign))
    return tuple(value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str))


def _read_fields(node: ast.ClassDef, enums: Mapping[str, tuple[str, ...]]) -> Iterator[Flag]:
    """Yields a flag for each `name: annotation = field(...)` of a class body."""
    for part in node.body:
        if not isinstance(part, ast.AnnAssign) or not isinstance(part.value, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in part.value.keywords}
        metadata = given.get("metadata")
        entries = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
        described = {key.value: _read_value(value) for key, value in entries}
        names = [name.strip() for name in ast.unparse(part.annotation).split("|")]
        kinds = [name for name in names if name in KINDS and name != "str"]
        lists = [name for name in names if name.startswith("list[")]
        choices = described.get("choices") or (next((enums[name] for name in names if name in enums), None))
        name = part.target.id
        # transformers writes these texts for argparse, which needs %% for %.
        shown = {"group": "training", "help": str(described.get("help", "")).replace("%%", "%")}
        if name in PRECISION_FLAGS:
            shown["help"] = "Not accepted: --dtype sets the precision."
        elif name in REFUSED_FLAGS:
            shown["help"] = f"Not accepted: {REFUSED_FLAGS[name]}."
        yield Flag(
            name=name,
            kind=KINDS[kinds[0]] if kinds else str,
            default=_read_value(given["default"]) if "default" in given else None,
            **(OUTPUT_DIR if name == "output_dir" else shown),
            is_trainers=True,
            # transformers accepts only one value where a field may be a list, a text or None.
            many=bool(lists) and not {"str", "None"} <= set(names),
            choices=tuple(choices) if isinstance(choices, tuple | list) and not lists else None,
        )


def _read_value(node: ast.expr) -> object:
    """The value of a literal, or the source text of any other expression."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
