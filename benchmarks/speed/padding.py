"""The notebook's batches: sequences padded on the left to the longest. It must not know what makes or reads them."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence

from modeling.encoding.collator import list_passes, stack_targets

PREDICTION_BATCH, TRAINING_BATCH = 2, 8  # battles


class PaddedCollator:
    """Pads encoded battles to the longest of the batch.

    Example: battles of 3 and 2 ids give `input_ids` [[5, 6, 7], [0, 5, 6]], `attention_mask` [[1, 1, 1], [0, 1, 1]]
    and, if they have labels (by slot), `labels` of shape (battles, labels).
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, battles: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        passes = [each for battle in battles for each in list_passes(battle)]
        rows = [torch.tensor(each["input_ids"]) for each in passes]
        pad = partial(pad_sequence, batch_first=True, padding_side="left")
        return {
            "input_ids": pad(rows, padding_value=self.pad_token_id),
            "attention_mask": pad([torch.ones_like(row) for row in rows]),
            **stack_targets(passes),
        }
