"""The battles of a study, and what frozen bases give for them. For benchmarks/study.py."""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from arms import measure_arms
from frozen import Reading, load_features

from modeling.battles import load_battles
from modeling.duplicates import DuplicateIndex, group_texts
from modeling.evaluation.baselines import estimate_baselines
from modeling.resampling import Resampler

REPOSITORY = Path(__file__).resolve().parent.parent


class Study:
    """The battles, and what each base gives for them."""

    def __init__(self, arguments: Namespace, settings: Mapping):
        self.arguments, self.settings = arguments, settings
        self.train, self.test = (load_battles(path, tie_policy="drop") for path in (arguments.train, arguments.test))
        self.train = self.train.shuffle(seed=0)
        self.soft = (
            load_battles(arguments.soft, blank_policy="keep").shuffle(seed=0).select(range(self.settings["pool"]))
        )
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
        folder = self.arguments.work_dir / "bases" / base
        if not folder.is_dir():
            flags = [f"--{name}={value}" for name, value in self.settings["bases"][base].items()]
            run("scripts/quantize.py", *flags, "--output_dir", folder)
        return Reading(str(folder), max_length or self.settings["max_length"], **options)

    def load(self, reading: Reading, most: int | None = None, known: Reading | None = None) -> SimpleNamespace:
        """Features, scaled by the training battles', and labels, of those that are trained on and of the scored ones.

        Args:
            most: Of the training battles only so many, less those that are near a scored one's prompt.
            known: See `load_features`.
        """
        sets = {"test": self.test, "train": self.train.select(range(most or len(self.train)))}
        found = {}
        for name, battles in sets.items():
            folder, processes = self.arguments.work_dir / "features", self.arguments.processes
            found[name], cost = load_features(battles, name, reading, folder, processes, known)
            self.read.setdefault(str(reading.find_folder(Path())), {})[name] = cost
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

    def measure_baselines(self) -> dict[str, float]:
        """Accuracy of what needs no language model, fitted on all training battles."""
        train = self.train.select(self.fit)
        found = estimate_baselines(self.resampler, self.test, train)
        return {name: round(figures["accuracy"]["value"], 4) for name, figures in found.items()}

    def measure(self, found: dict, pairs: dict[str, str]) -> dict:
        """See `measure_arms`; the second of a pair is what the first is compared with."""
        shaped = {arm: (size, torch.stack(p).double().numpy()) for arm, (size, p) in found.items()}
        return measure_arms(shaped, pairs.items(), self.truth, self.resampler)


def run(*command: object) -> None:
    """A script of the project, as a user would type it."""
    subprocess.run([sys.executable, *map(str, command)], cwd=REPOSITORY, check=True)
