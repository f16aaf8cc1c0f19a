"""The battles of a study, and what frozen bases give for them. For benchmarks/study.py."""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from arms import measure_arms
from frozen import Reading, load_features

from modeling.data.battles import load_battles
from modeling.data.near_duplicates import DuplicateIndex, group_texts
from modeling.evaluation.baselines import estimate_baselines
from modeling.evaluation.bootstrap import Resampler

REPOSITORY = Path(__file__).resolve().parent.parent
STUDY = REPOSITORY / "configs" / "study" / "study.yaml"


class Study:
    """The battles, and what each base gives for them."""

    def __init__(self, arguments: argparse.Namespace, settings: Mapping):
        self.arguments, self.settings = arguments, settings
        self.train, self.test = (load_battles(path, tie_policy="drop") for path in (arguments.train, arguments.test))
        self.train = self.train.shuffle(seed=0)
        soft = load_battles(arguments.soft, schema="p_a", blank_policy="keep")
        self.soft = soft.shuffle(seed=0).select(range(settings["pool"]))
        tested, known = DuplicateIndex(), DuplicateIndex()
        tested.add(self.test["prompt"][:])
        for battles in (self.train, self.test):
            known.add(battles["prompt"][:])
        # As train.py's guard: battles whose prompt stands near a scored one are not trained on.
        self.fit = [row for row, near in enumerate(tested.find(self.train["prompt"][:])) if not near]
        self.added = [row for row, near in enumerate(known.find(self.soft["prompt"][:])) if not near]
        self.truth = np.array(self.test["label"][:]).argmax(1)
        self.groups = np.array(group_texts(self.test["prompt"][:]))
        self.resampler = Resampler(self.groups, self.settings["draws"])
        self.read: dict[str, dict] = {}

    def name_reading(self, base: str, max_length: int | None = None, **options) -> Reading:
        """A reading of a base, which is quantised first if it is not there."""
        settings = self.settings["bases"][base]
        folder = self.arguments.work_dir / "bases" / name_settings(base, settings)
        if not folder.is_dir():
            flags = [f"--{name}={value}" for name, value in settings.items()]
            run("scripts/quantize.py", *flags, "--output_dir", folder)
        return Reading(str(folder), max_length or self.settings["max_length"], **options)

    def load(
        self, reading: Reading, most: int | None = None, scored: int | None = None, known: Reading | None = None
    ) -> SimpleNamespace:
        """Features, scaled by the training battles', and labels, of those that are trained on and of the scored ones.

        Args:
            most: Of the training battles only so many, less those that are near a scored one's prompt.
            scored: Of the scored battles only so many.
            known: See `load_features`.
        """
        sets = {
            "test": self.test.select(range(scored or len(self.test))),
            "train": self.train.select(range(most or len(self.train))),
        }
        found = {}
        for name, battles in sets.items():
            folder, processes = self.arguments.work_dir / "features", self.arguments.processes
            found[name], cost = load_features(battles, name, reading, folder, processes, known)
            costs = self.read.setdefault(str(reading.find_folder(Path())), {})
            costs[name] = max(cost, costs.get(name, cost), key=lambda cost: cost["battles"])
        kept = [row for row in self.fit if row < len(sets["train"])]
        features = found["train"][kept]
        mean, scale = features.mean((0, 1)), features.std((0, 1))
        return SimpleNamespace(
            features=(features - mean) / scale,
            test=(found["test"] - mean) / scale,
            targets=torch.tensor(self.train["label"][:])[kept].float(),
            rows=kept,
            scaling=(mean, scale),
        )

    def measure_baselines(self) -> dict[str, dict]:
        """What needs no language model, fitted on all training battles; see `estimate_baselines`."""
        found = estimate_baselines(self.resampler, self.test, self.train.select(self.fit))
        return {name: found[name] for name in ("always a", "longer wins", "tf-idf")}

    def measure(self, found: dict, pairs: dict[str, str]) -> dict:
        """See `measure_arms`; the second of a pair is what the first is compared with."""
        shaped = {arm: (size, torch.stack(p).double().numpy()) for arm, (size, p) in found.items()}
        scored = len(next(iter(shaped.values()))[1][0])
        groups = np.unique(self.groups[:scored], return_inverse=True)[1]
        resampler = Resampler(groups, self.settings["draws"])
        return measure_arms(shaped, pairs.items(), self.truth[:scored], resampler)


def open_study(doc: str) -> Study:
    """The study of configs/study/study.yaml on the battles that a script's flags name.

    Args:
        doc: What the script says of itself.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "test", "soft", "work_dir"):
        parser.add_argument(f"--{name}", required=True, type=Path if name == "work_dir" else str)
    parser.add_argument("--processes", type=int, default=2)
    return Study(parser.parse_args(), yaml.safe_load(STUDY.read_text(encoding="utf-8")))


def name_settings(name: str, settings: Mapping) -> str:
    """A folder's name that is another when the settings are."""
    return f"{name}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"


def run(*command: object) -> None:
    """A script of the project, as a user would type it."""
    subprocess.run([sys.executable, *map(str, command)], cwd=REPOSITORY, check=True)
