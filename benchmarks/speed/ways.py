"""What all ways of prediction and training share: their names in the results, their battles, and the plain backbone."""

from pathlib import Path

from transformers import AutoModelForCausalLM

from modeling.data.battles import load_battles
from modeling.network.base import find_base, load_tokenizer, unpack_gguf
from modeling.network.precision import DTYPES

# Keys of the result files and rows of the published tables.
NOTEBOOK, OURS = "the notebook's way", "ours"


def draw_slices(battles: str, count: int, num_rounds: int) -> list[list[dict]]:
    """Returns `count` random battles for each round; no battle is in two rounds.

    Raises:
        ValueError: If the file has too few battles.
    """
    drawn = load_battles(battles, tie_policy="drop", blank_policy="keep").shuffle(seed=0)
    if count * num_rounds > len(drawn):
        raise ValueError(
            f"--count {count} --repeats {num_rounds}: expected {count * num_rounds} battles in {battles}; found "
            f"{len(drawn)}. Give fewer of one, or another file."
        )
    return [drawn.select(range(number * count, (number + 1) * count)).to_list() for number in range(num_rounds)]


def unpack_backbone(backbone: str, folder: Path, dtype: str) -> str:
    """Writes a plain language model with its tokenizer, as peers need it, and returns its folder."""
    files = find_base(backbone)
    with unpack_gguf(files) as unpacked:
        model = AutoModelForCausalLM.from_pretrained(unpacked.folder, dtype=DTYPES[dtype])
    target = folder / "backbone"
    model.save_pretrained(target)
    tokenizer = load_tokenizer(files.folder, **files.source)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(target)
    return str(target)
