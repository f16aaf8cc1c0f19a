"""Builds the members that the speed benchmarks use: the study's heads on a frozen 8-bit base, better than chance.

    python -m benchmarks.speed.members --train battles_train.parquet --test battles_test.parquet \
        --soft soft_labels_en.parquet --work_dir outputs/study

Writes --work_dir/members/ab, ba and both. The base's features of the battles are computed once (40 minutes on two CPU
cores) and kept in --work_dir, which benchmarks.studies.study shares. Rank-16 adapters on all layers make a pass as
expensive as with trained adapters, but do not change its result.
"""

import json

import torch

from benchmarks import RESULTS
from benchmarks.studies.frozen import save_frozen_member
from benchmarks.studies.heads import train_head
from benchmarks.studies.real_battles import open_study
from modeling.data.battles import ORIENTATIONS

ORDERS = {"ab": (0,), "ba": (1,), "both": (0, 1)}  # indices of the orders whose features a head is trained on
LORA = {"r": 16, "alpha": 16}


def main() -> None:
    torch.set_num_threads(1)  # the heads are too small for more
    recipes = json.loads((RESULTS / "study.json").read_text(encoding="utf-8"))["recipes"]
    study = open_study(__doc__)
    data, base = study.load(study.prepare_extraction("smollm2")), study.prepare_extraction("smollm2-8bit").base
    for name, places in ORDERS.items():
        orders, recipe = tuple(ORIENTATIONS[place] for place in places), recipes[f"mlp, {len(places)}"][0]
        head = train_head(data.features[:, places], data.targets, 0, recipe, orders=orders)
        folder = study.arguments.work_dir / "members" / name
        save_frozen_member(folder, head, data.scaling, base, name, study.settings["max_length"], **LORA)
        print(f"Written: {folder}")


if __name__ == "__main__":
    main()
