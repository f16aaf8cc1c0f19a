"""Members to time judges with: heads of the study on a frozen 8-bit base, which are right more often than chance.

    python benchmarks/members.py --train battles_train.parquet --test battles_test.parquet \
        --soft soft_labels_en.parquet --work_dir outputs/study

Writes --work_dir/members/ab, ba and both. What the base gives for the battles is read once and kept in --work_dir,
where benchmarks/study.py finds it too (40 minutes on two CPU cores). Adapters of rank 16 stand on all layers, so that
a reading costs what it costs with trained ones, and change nothing.
"""

import json

import torch
from frozen import save_frozen_member
from heads import train_head
from real_battles import REPOSITORY, open_study

from modeling.data.battles import ORIENTATIONS

ORDERS = {"ab": (0,), "ba": (1,), "both": (0, 1)}  # of the features that a member's head is trained on
LORA = {"r": 16, "alpha": 16}


def main() -> None:
    torch.set_num_threads(1)  # the heads are too small for more
    recipes = json.loads((REPOSITORY / "benchmarks" / "study.json").read_text(encoding="utf-8"))["recipes"]
    study = open_study(__doc__)
    data, base = study.load(study.name_reading("smollm2")), study.name_reading("smollm2-8bit").base
    for name, places in ORDERS.items():
        orders, recipe = tuple(ORIENTATIONS[place] for place in places), recipes[f"mlp, {len(places)}"][0]
        head = train_head(data.features[:, places], data.targets, 0, recipe, orders=orders)
        folder = study.arguments.work_dir / "members" / name
        save_frozen_member(folder, head, data.scaling, base, name, study.settings["max_length"], **LORA)
        print(f"Written: {folder}")


if __name__ == "__main__":
    main()
