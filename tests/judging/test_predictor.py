import json
import os
import shutil

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from modeling.data.battles import swap_responses
from modeling.encoding.packing import pack_sequences
from modeling.judging import predictor
from modeling.judging.calibration import Calibration
from modeling.judging.judge import Judge
from modeling.judging.loading import load_judge, name_member
from modeling.judging.predictor import build_batches, choose_budget, predict_battles

# Largest change of a probability when the same battle is read in another batch, at another place, padded on another
# side. In bf16 a matrix product of another shape rounds otherwise.
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02, "8bit": 0.02, "4bit": 0.02}


def read(member, battles, orientation, **options):
    encoder = member.encoder
    encoded = encoder.encode(encoder.clean_battles(battles), orientation)
    return predict_battles(member.activate(), encoded, orientation, **options)


@pytest.fixture(scope="module")
def member(members):
    return load_judge([str(members["ab"])])[0]


def test_batches_hold_every_sequence_once_within_the_budget():
    """Sequences with a shared prefix share a pack; one that exceeds the budget has a pack of its own."""
    rng = np.random.default_rng(0)
    prefixes = rng.integers(9, size=(4, 40)).tolist()
    sequences = [[*prefixes[n % 4][: 20 + n % 21], *rng.integers(9, size=n).tolist()] for n in range(60)]
    sequences.append([1] * 500)
    for budget in (100, 300, 10_000):
        batches = build_batches(sequences, budget)
        assert sorted(row for batch in batches for row in batch) == list(range(61))
        for batch in batches:
            size = len(pack_sequences([sequences[row] for row in batch]).input_ids)
            assert size <= budget or batch == [60]
    assert len(pack_sequences(sequences[:60]).input_ids) < 0.7 * sum(map(len, sequences[:60]))
    assert build_batches([], 18) == []


def test_predictions_belong_to_their_battle_whatever_the_batching(member, sample_battles):
    """Law 1, seed fault 1: its predictions, made in order of length, were written back onto the unsorted table.

    Each battle alone is the truth; then all of them, shuffled, under several budgets."""
    battles = sample_battles.to_list()
    alone = np.concatenate([read(member, [battle], "ab") for battle in battles])
    assert len({round(p, 6) for p in alone[:, 0]}) > 60  # else a mix-up would not show
    order = np.random.default_rng(0).permutation(len(battles))
    for budget in (1, 500, 4096, 10**6):
        found = read(member, [battles[row] for row in order], "ab", tokens_per_batch=budget)
        assert np.abs(found - alone[order]).max() <= TOLERANCE["float32"]


@pytest.mark.parametrize("name", TOLERANCE)
def test_neither_its_pack_nor_padding_changes_a_probability(name, bases, make_member, tmp_path, sample_battles):
    """Law 3, in every dtype and quantisation."""
    dtype = "float32" if name == "float32" else "bfloat16"
    make_member(tmp_path / "ab", bases[name], "ab", dtype=dtype)
    (member,) = load_judge([str(tmp_path / "ab")])
    battles = sample_battles.select(range(16)).to_list()
    reference = read(member, battles, "ab", tokens_per_batch=1)
    assert reference[:, 0].std() > 0.05
    # One thread per test worker would leave the default with one; two threads must share an 8-bit layer's state.
    for options in ({}, {"num_workers": 1}, {"num_workers": 2}, {"tokens_per_batch": 700}):
        for rows in (battles, battles[::-1]):
            found = read(member, rows, "ab", **options)
            found = found if rows is battles else found[::-1]
            assert np.abs(found - reference).max() <= TOLERANCE[name]
    # Padded batches, which other software that serves the model will pass to it.
    encoded = member.encoder.encode(member.encoder.clean_battles(battles), "ab")
    rows = [torch.tensor(battle["input_ids"]) for battle in encoded]
    for side in ("left", "right"):
        with torch.inference_mode():
            ids = pad_sequence(rows, batch_first=True, padding_side=side)
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
            logits = member.activate()(input_ids=ids, attention_mask=mask).logits
        assert np.abs(logits.double().softmax(-1).numpy() - reference).max() <= TOLERANCE[name]


def test_reading_the_swapped_battle_the_other_way_mirrors_the_columns(member, sample_battles):
    """Law 2, seed fault 3: what is the same text must give the same numbers, in exchanged columns."""
    battles = sample_battles.select(range(16))
    for orientation, other in (("ab", "ba"), ("ba", "ab")):
        forward = read(member, battles.to_list(), orientation)
        backward = read(member, swap_responses(battles).to_list(), other)
        assert np.array_equal(forward, backward[:, ::-1])
        assert np.abs(forward[:, 0] - forward[:, 1]).max() > 0.05


def test_a_judge_reading_both_orders_does_not_care_which_answer_is_called_a(members, sample_battles):
    """Law 2: p(A, B) = 1 - p(B, A) when every member reads both orders."""
    judge = Judge.from_pretrained(list(members.values()), dtype="float32")
    battles = sample_battles.select(range(16))
    forward, backward = judge.predict(battles), judge.predict(swap_responses(battles))
    assert np.abs(forward["p_a"] - (1 - backward["p_a"])).max() <= TOLERANCE["float32"]
    assert list(forward["p_a"]) == list(judge.predict(battles, readings="both")["p_a"])  # both is the default
    own = [judge.predict(rows, readings="own")["p_a"] for rows in (battles, swap_responses(battles))]
    assert np.abs(own[0] - (1 - own[1])).max() > 0.01  # so it is reading both orders that does it


@pytest.mark.parametrize("options", [{}, {"tokens_per_batch": 1}, {"second_reading": 0.0}, {"second_reading": 0.5}])
def test_two_equal_answers_have_even_odds_exactly(members, sample_battles, options):
    """Whatever is packed with them, calibrated or not. Among them are texts too short to share a prefix in a pack."""
    rows = [{**battle, "response_b": battle["response_a"]} for battle in sample_battles.select(range(8))]
    rows += [{"id": f"short {text}", "prompt": "?", "response_a": text, "response_b": text} for text in ("a", "no")]
    rows += sample_battles.select(range(8, 12)).to_list()
    for calibration in (None, Calibration("temperature", 9, temperature=1.7)):
        judge = Judge(load_judge(list(map(str, members.values())), dtype="float32"), calibration=calibration)
        found = judge.predict(rows, **options)
        assert (found["p_a"][:10] == 0.5).all() and (found["p_b"][:10] == 0.5).all()
        assert np.abs(found["p_a"][10:] - 0.5).min() > 1e-4


@pytest.mark.parametrize("count", [8, 20, 25, 33, 60, 300])
def test_cores_get_packs_of_about_one_size(count):
    """2,000 to 75,000 tokens: if each of two cores takes the next pack when it is done, neither waits for long."""
    sequences = [[row] * (200 + row * 7 % 100) for row in range(count)]
    packs = build_batches(sequences, budget := choose_budget(sequences, "cpu"))
    cores = [0, 0]
    for pack in packs:
        cores[cores.index(min(cores))] += sum(len(sequences[row]) for row in pack)
    assert budget <= 4096 and max(cores) <= 1.12 * sum(cores) / 2
    assert choose_budget([[1] * 200], "cpu") == 1024 and choose_budget(sequences, "cuda") == 16384


def test_equal_texts_are_read_once(member, sample_battles, monkeypatch):
    """Each gets the numbers of the one that was read, in its own place and its own orientation."""
    battles = sample_battles.select(range(3)).to_list()
    order = [0, 1, 0, 2, 1, 0]
    encoded = member.encoder.encode(member.encoder.clean_battles([battles[row] for row in order]), "ab")
    alone = read(member, battles, "ab")
    compute, packs = predictor._predict_pack, []
    monkeypatch.setattr(predictor, "_predict_pack", lambda *given: packs.append(given[1]) or compute(*given))
    orientations = ["ab", "ab", "ba", "ab", "ba", "ab"]
    found = predict_battles(member.activate(), encoded, orientations)
    assert sum(len(pack.ends) for pack in packs) == 3
    expected = [alone[row] if way == "ab" else alone[row][::-1] for row, way in zip(order, orientations, strict=True)]
    assert np.abs(found - expected).max() <= TOLERANCE["float32"]
    assert np.array_equal(found[0], found[2][::-1]) and np.array_equal(found[0], found[5])


def test_passes_are_averaged_battle_by_battle(members, bases, make_member, tmp_path, sample_battles):
    """Seed fault 2: the passes were sorted apart and averaged by position. Here one member cuts and one does not, so
    that the two passes run in different orders."""
    battles = sample_battles.to_list()
    make_member(tmp_path / "ba", bases["float32"], "ba", seed=5, max_length=1024)
    ab, ba = load_judge([str(members["ab"]), str(tmp_path / "ba")])
    orders = [
        build_batches([e["input_ids"] for e in member.encoder.encode(battles, orientation)], 700)
        for member, orientation in ((ab, "ab"), (ba, "ba"))
    ]
    assert orders[0] != orders[1] and len(orders[1]) > 10
    verdicts = Judge([ab, ba], "own").predict(battles, tokens_per_batch=700)
    assert list(verdicts["id"]) == [battle["id"] for battle in battles]
    for row in range(0, len(battles), 7):
        expected = (read(ab, [battles[row]], "ab") + read(ba, [battles[row]], "ba"))[0] / 2
        assert verdicts.loc[row, ["p_a", "p_b"]].to_numpy(float) == pytest.approx(expected, abs=1e-5)
        assert verdicts["winner"][row] == ("model_a" if expected[0] >= expected[1] else "model_b")


def test_members_are_read_in_the_precision_they_were_trained_in(bases, make_member, tmp_path, sample_battles):
    """Seed fault 7: trained in bf16, predicted in fp16. A judge's numbers are those of the recorded dtype only."""
    make_member(tmp_path / "ab", bases["bfloat16"], "ab", dtype="bfloat16")
    battles = sample_battles.select(range(6)).to_list()
    (member,) = load_judge([str(tmp_path / "ab")])
    verdicts = Judge([member], "own").predict(battles)
    assert np.abs(verdicts[["p_a", "p_b"]] - read(member, battles, "ab")).max(axis=None) <= 1e-12
    facts = json.loads((tmp_path / "ab" / "member.json").read_text())
    (tmp_path / "ab" / "member.json").write_text(json.dumps({**facts, "dtype": "float32"}))
    (plain,) = load_judge([str(tmp_path / "ab")])
    other = read(plain, battles, "ab")
    assert np.abs(verdicts["p_a"] - other[:, 0]).max() > 1e-5


def test_verdicts_say_which_member_read_what_and_what_was_cut(members, sample_battles):
    battles = [*sample_battles.select(range(3)).to_list(), {**sample_battles[3], "prompt": "long " * 2000}]
    judge = Judge.from_pretrained([members["ab"], members["ba"]], dtype="float32")
    own = judge.predict(battles, readings="own")
    cuts = ["tokens", "cut_prompt", "cut_response_a", "cut_response_b"]
    assert list(own) == ["id", "p_a", "p_b", "winner", "p_a_ab_ab", "p_a_ba_ba", *cuts]
    assert own["tokens"].max() <= 128 and own["cut_prompt"][3] > 1000
    both = judge.predict(battles, readings="both")
    assert [name for name in both if name.startswith("p_a_")] == ["p_a_ab_ab", "p_a_ab_ba", "p_a_ba_ab", "p_a_ba_ba"]
    assert np.allclose(both["p_a_ab_ab"], own["p_a_ab_ab"])
    assert len(judge.predict([])) == 0


def test_members_of_one_name_are_told_apart(members):
    names = [member.name for member in load_judge([str(members["ab"])] * 3)]
    assert names == ["ab", "ab-2", "ab-3"]
    assert name_member("user/repo@main", ["repo"]) == "repo-2" and name_member("x/ab", ["ab-2", "ab"]) == "ab-3"


def test_folder_names_do_not_matter(members, sample_battles, tmp_path):
    """peft takes an adapter called "0" or "model" for a part of its parameters' names."""
    for name, orientation in (("0", "ab"), ("model.v1", "ba")):
        copy = shutil.copytree(members[orientation], tmp_path / name)
        config = json.loads((copy / "adapter_config.json").read_text())
        base = (members[orientation] / config["base_model_name_or_path"]).resolve()
        config["base_model_name_or_path"] = os.path.relpath(base, copy)
        (copy / "adapter_config.json").write_text(json.dumps(config))
    battles = sample_battles.select(range(4))
    found = Judge.from_pretrained([tmp_path / "0", tmp_path / "model.v1"], dtype="float32").predict(battles)
    expected = Judge.from_pretrained(list(members.values()), dtype="float32").predict(battles)
    assert list(found["p_a"]) == list(expected["p_a"]) and "p_a_model.v1_ba" in found


@pytest.mark.parametrize("num_processes", [2, 3, 50])
def test_every_process_runs_the_same_number_of_forwards(num_processes, member, sample_battles, monkeypatch):
    """ZeRO-3 collects weights in every forward, from all processes. Whichever process ran a pack, the result is the
    one of a single process; with 50 processes some have no pack of their own."""
    battles, options = sample_battles.to_list(), {"tokens_per_batch": 1000, "num_workers": 1}
    alone = read(member, battles, "ab", **options)
    compute, calls, parts = predictor._predict_pack, [], []
    monkeypatch.setattr(predictor, "_predict_pack", lambda *given: calls.append(1) or compute(*given))

    class Process:
        """One of the launch; the results that it would send are kept in `parts`."""

        is_main_process = False

        def __init__(self, index):
            self.process_index, self.num_processes = index, num_processes

    counts = []
    for index in range(num_processes):
        monkeypatch.setattr(predictor, "PartialState", lambda index=index: Process(index))
        monkeypatch.setattr(predictor, "gather_object", lambda own: parts.extend(own) or list(parts))
        last = index == num_processes - 1
        deadline = {} if last else {"deadline": float("inf")}  # the first processes see only a part of the results
        found = read(member, battles, "ab", **options, **deadline)
        counts.append(len(calls))
        calls.clear()
    assert len(set(counts)) == 1 and counts[0] > 0
    assert np.array_equal(found, alone)


def test_an_interrupted_prediction_resumes_where_it_stopped(member, sample_battles, tmp_path, monkeypatch):
    """Law 1 and 7: only the missing batches are computed, and the numbers are those of an uninterrupted run."""
    battles = sample_battles.to_list()
    options = {"tokens_per_batch": 1000, "num_workers": 1, "name": "ab@x"}
    whole = read(member, battles, "ab", **options)
    compute, calls = predictor._predict_pack, []

    def fail_at_fifth(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(predictor, "_predict_pack", fail_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        read(member, battles, "ab", progress_dir=tmp_path, **options)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text() + "[99, [[0.1")  # what a killed process leaves behind
    # Another order, other weights or other battles must not resume from this progress.
    for other in ({"name": "ab@y"}, {"tokens_per_batch": 700}):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            read(member, battles, "ab", progress_dir=tmp_path, **{**options, **other})
    total = len(build_batches([e["input_ids"] for e in member.encoder.encode(battles, "ab")], 1000))
    calls[:] = [1] * 10
    resumed = read(member, battles, "ab", progress_dir=tmp_path, **options)
    assert len(calls) - 10 == total - 4
    assert np.array_equal(resumed, whole)
    calls.clear()
    assert np.array_equal(read(member, battles, "ab", progress_dir=tmp_path, **options), whole)
    assert not calls  # what is finished is read from there until the caller removes it


def test_progress_files_keep_probabilities_to_the_last_bit(tmp_path):
    record = predictor._ProgressFile(tmp_path, "x", 0)
    rows = np.random.default_rng(0).random((50, 2)).tolist()
    record.append(3, rows)
    assert record.read() == {3: rows} and json.loads(record.path.read_text())[1] == rows


def test_a_judge_needs_members_and_known_readings(members):
    with pytest.raises(ValueError, match="expected at least one member; found none"):
        Judge.from_pretrained([])
    with pytest.raises(ValueError, match="--readings: expected one of both, own; found 'all'"):
        Judge.from_pretrained(members["ab"]).predict([], readings="all")


def test_probabilities_that_are_not_numbers_are_refused(members, sample_battles):
    (damaged,) = load_judge([str(members["ab"])])
    with torch.no_grad():
        next(p for name, p in damaged.model.named_parameters() if "score" in name and "modules_to_save" in name).fill_(
            np.nan
        )
    with pytest.raises(ValueError, match="expected finite probabilities; found NaN"):
        read(damaged, sample_battles.select(range(2)).to_list(), "ab")
