"""The battles of the study, and the features of frozen bases for them. It must not know the study's tables."""

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

from benchmarks import REPOSITORY
from benchmarks.studies.arms import measure_arms
from benchmarks.studies.frozen import Extraction, load_features
from modeling.data.battles import load_battles
from modeling.data.near_duplicates import DuplicateIndex, group_texts
from modeling.evaluation.baselines import estimate_baselines
from modeling.evaluation.bootstrap import Resampler

STUDY = REPOSITORY / "configs" / "study" / "study.yaml"


class Study:
    """The battles of the study, its settings, and each base's features."""

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
        # As train.py does it: battles whose prompt is a near-duplicate of a scored one are not trained on.
        self.fit = [row for row, near in enumerate(tested.find(self.train["prompt"][:])) if not near]
        self.added = [row for row, near in enumerate(known.find(self.soft["prompt"][:])) if not near]
        self.truth = np.array(self.test["label"][:]).argmax(1)
        self.groups = np.array(group_texts(self.test["prompt"][:]))
        self.resampler = Resampler(self.groups, self.settings["draws"])
        self.read: dict[str, dict] = {}

    def prepare_extraction(self, base: str, max_length: int | None = None, **options) -> Extraction:
        """Returns an extraction from a base of the study; quantises the base first if its folder does not exist."""
        settings = self.settings["bases"][base]
        folder = self.arguments.work_dir / "bases" / name_settings(base, settings)
        if not folder.is_dir():
            flags = [f"--{name}={value}" for name, value in settings.items()]
            run("scripts/quantize.py", *flags, "--output_dir", folder)
        return Extraction(str(folder), max_length or self.settings["max_length"], **options)

    def load(
        self,
        extraction: Extraction,
        most: int | None = None,
        scored: int | None = None,
        known: Extraction | None = None,
    ) -> SimpleNamespace:
        """Returns the features of training and scored battles, normalised by the training battles', and the targets.

        Args:
            most: Use only this many training battles, less those whose prompt is near a scored one's.
            scored: Use only this many scored battles.
            known: See `load_features`.
        """
        sets = {
            "test": self.test.select(range(scored or len(self.test))),
            "train": self.train.select(range(most or len(self.train))),
        }
        found = {}
        for name, battles in sets.items():
            folder, processes = self.arguments.work_dir / "features", self.arguments.processes
            found[name], cost = load_features(battles, name, extraction, folder, processes, known)
            costs = self.read.setdefault(str(extraction.find_folder(Path())), {})
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
        """Returns the baselines without a language model, fitted on all training battles."""
        found = estimate_baselines(self.resampler, self.test, train_battles=self.train.select(self.fit))
        return {name: found[name] for name in ("always a", "longer wins", "tf-idf")}

    def measure(self, found: dict, pairs: dict[str, str]) -> dict:
        """Returns `measure_arms` of the arms; `pairs` maps an arm to the one it is compared with."""
        shaped = {arm: (size, torch.stack(p).double().numpy()) for arm, (size, p) in found.items()}
        scored = len(next(iter(shaped.values()))[1][0])
        groups = np.unique(self.groups[:scored], return_inverse=True)[1]
        resampler = Resampler(groups, self.settings["draws"])
        return measure_arms(shaped, pairs.items(), self.truth[:scored], resampler)


def open_study(doc: str) -> Study:
    """Returns the study of configs/study/study.yaml on the battles that the command line names.

    Args:
        doc: The script's docstring, which --help prints.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="Battles to train on.")
    parser.add_argument("--test", required=True, help="Battles to score.")
    parser.add_argument(
        "--soft", required=True, help="English battles with GPT-4's p_a, to add to the training battles."
    )
    parser.add_argument("--work_dir", required=True, type=Path, help="Folder that caches features and predictions.")
    parser.add_argument("--processes", type=int, default=2, help="Processes that extract features.")
    return Study(parser.parse_args(), yaml.safe_load(STUDY.read_text(encoding="utf-8")))


def name_settings(name: str, settings: Mapping) -> str:
    """Returns a folder name that changes with the settings."""
    return f"{name}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"


def run(*command: object) -> None:
    """Runs a script of the project as a user would."""
    subprocess.run([sys.executable, *map(str, command)], cwd=REPOSITORY, check=True)
