"""What the studies rely on: features belong to their battles, heads know their orders, differences are paired."""

import numpy as np
import pytest
import torch

from benchmarks.studies.arms import measure_arms
from benchmarks.studies.frozen import Extraction, extract_part, load_features
from benchmarks.studies.heads import orient, predict, predict_orders, train_head
from modeling.data.battles import ORIENTATIONS
from modeling.evaluation.bootstrap import Resampler

RECIPE = {"learning_rate": 1e-2, "epochs": 200, "head_dropout": 0.0}


@pytest.fixture
def extract(bases, sample_battles, tmp_path):
    """Extracts features in this process, and restores the number of threads afterwards."""
    threads = torch.get_num_threads()

    def extract_rows(
        name: str, rows: list[int], extraction: Extraction, known: Extraction | None = None
    ) -> torch.Tensor:
        battles = sample_battles.select(rows)
        folder = extraction.find_folder(tmp_path)
        folder.mkdir(parents=True, exist_ok=True)
        known_path = known.find_folder(tmp_path) / f"{name}-000.npz" if known else None
        extract_part((folder / f"{name}-000.npz", list(battles), extraction, known_path, known))
        return load_features(battles, name, extraction, tmp_path)[0]

    yield extract_rows
    torch.set_num_threads(threads)


def test_features_belong_to_their_battles_also_when_some_are_reused(bases, extract):
    """Batches are sorted by length, rows are not. Battles that also fit the shorter length are not recomputed."""
    base = str(bases["float32"].folder)
    short, long = Extraction(base, 256), Extraction(base, 512, orders=("ba",))
    few, alone = extract("b", range(12), short), extract("b", range(12), long)
    assert few.shape == (12, 2, alone.shape[-1]) and not torch.isnan(few).any()
    assert torch.allclose(extract("one", [7], short)[0], few[7], atol=0.02)
    reused = extract("b", range(12), long, short)
    assert torch.allclose(reused, alone, atol=0.02)
    same = (reused[:, 0] == few[:, 1]).all(-1)  # the battles of up to 256 tokens
    assert 0 < same.sum() < 12


def test_features_of_other_battles_are_an_error(bases, extract, sample_battles, tmp_path):
    extraction = Extraction(str(bases["float32"].folder), 72)
    extract("b", range(3), extraction)
    with pytest.raises(SystemExit, match="found others"):
        load_features(sample_battles.select([2, 1, 0]), "b", extraction, tmp_path)


@pytest.mark.parametrize("orders", [("ab",), ("ba",), ORIENTATIONS])
@pytest.mark.parametrize("hidden", [4, 0])
def test_a_head_learns_which_slot_wins_and_answers_by_label(orders, hidden):
    """The first feature is the merit of the first slot, which is b in order ba. The answer with merit wins."""
    torch.manual_seed(0)
    merit = torch.randn(64, 1)
    by_order = {"ab": merit, "ba": -merit}
    features = torch.stack([torch.cat([by_order[order], torch.randn(64, 3)], 1) for order in orders], 1)
    targets = torch.cat([merit > 0, merit <= 0], 1).float()
    head = train_head(features, targets, 0, {**RECIPE, "head_hidden_size": hidden}, orders=orders)
    p = predict(head, features, orders)
    assert (p.argmax(1) == targets.argmax(1)).float().mean() > 0.95
    assert torch.allclose(predict_orders(head, features, orders).mean(1), p) and torch.allclose(
        p.sum(1), torch.ones(64)
    )


def test_labels_are_flipped_for_passes_that_show_b_first():
    labels = torch.tensor([[1.0, 0.0], [0.3, 0.7]])
    assert orient(labels, ("ba",)).tolist() == labels.flip(-1).tolist()
    assert torch.equal(orient(labels, ORIENTATIONS), torch.tensor([[1, 0], [0, 1], [0.3, 0.7], [0.7, 0.3]]))


def test_differences_are_paired_and_seeds_averaged():
    """Of four battles the first arm gets 3 right with one seed and 4 with the other: 0.875. The second gets 2: 0.5."""
    sure, unsure = [0.8, 0.2], [0.2, 0.8]
    first = np.array([[sure, sure, sure, unsure], [sure] * 4])
    second = np.array([[sure, sure, unsure, unsure]] * 2)
    truth, resampler = np.zeros(4, int), Resampler(np.arange(4), 200)
    found = measure_arms({"x": (9, first), "y": (9, second)}, [("x", "y")], truth, resampler)
    assert found["x"]["accuracy"][0] == 0.875 and found["x"]["accuracy_by_seed"] == [0.75, 1.0]
    assert found["x"]["against"]["y"]["accuracy"][0] == 0.375 and "against" not in found["y"]
    expected = np.mean([0.5 * np.log(0.8 / 0.2) * k for k in (0, 0, 2, 1)])  # by battle, the mean of both seeds
    assert found["x"]["against"]["y"]["log_loss"][0] == pytest.approx(-expected, abs=1e-4)
