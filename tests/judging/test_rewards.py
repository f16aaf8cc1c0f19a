"""Rewards from a judge: their order, groups and copies, TRL's own trainers, and two processes."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling.judging.ranking import score_answers
from modeling.judging.rewards import Comparisons, PairwiseReward
from modeling.network.base import find_base
from modeling.runtime.packages import GEMMA_BASE
from tests.helpers import HOSTILE_TEXTS, LAUNCH, LAUNCHERS, REPOSITORY, succeed

PROMPT, OTHER = "What is 2 + 2?", "Name a colour."
TEXTS = ["4", "Five.", "2 + 2 is 4, as two and two make four.", "I do not know."]


def judge_pair(prompt: str, first: str, second: str) -> float:
    """Some p(first beats second), mirrored when the two are swapped."""
    gap = len(first) - len(second) + len(prompt) / 7 * (first < second) - len(prompt) / 7 * (second < first)
    return 1 / (1 + math.exp(-gap / 10))


def reward(rows, mode="mean") -> list[float | None]:
    comparisons = Comparisons(rows, mode)
    return comparisons.compute_rewards(
        [judge_pair(row["prompt"], row["response_a"], row["response_b"]) for row in comparisons.battles]
    )


# --- pure rewards -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mean", "bt"])
def test_the_order_of_the_completions_changes_nothing_but_the_order_of_the_rewards(mode):
    rows = [(prompt, text, None) for prompt in (PROMPT, OTHER) for text in [*TEXTS, TEXTS[1]]]
    expected = dict(zip(rows, reward(rows, mode), strict=True))
    for seed in range(5):
        shuffled = [rows[number] for number in np.random.default_rng(seed).permutation(len(rows))]
        assert reward(shuffled, mode) == [expected[row] for row in shuffled]


def test_the_mean_is_over_the_other_completions_and_copies_are_even():
    """Written out for a group of three, two of which are copies."""
    first, second = TEXTS[:2]
    p = judge_pair(PROMPT, first, second)
    found = reward([(PROMPT, first, None), (PROMPT, second, None), (PROMPT, second, None)])
    assert found == pytest.approx([p, (1 - p + 0.5) / 2, (1 - p + 0.5) / 2], abs=1e-12)
    assert np.mean(found) == pytest.approx(0.5, abs=1e-12)  # every pair gives 1 in all
    assert reward([(PROMPT, first, None)] * 3) == [0.5] * 3


def test_a_logit_is_that_of_bradley_and_terry():
    rows = [(PROMPT, text, None) for text in TEXTS]
    found = dict(zip(TEXTS, reward(rows, "bt"), strict=True))
    texts = sorted(TEXTS)
    p = {(i, j): judge_pair(PROMPT, texts[i], texts[j]) for i, j in itertools.combinations(range(len(texts)), 2)}
    chosen = dict(zip(texts, score_answers(texts, p).p_best, strict=True))
    for first, second in itertools.combinations(TEXTS, 2):
        assert found[first] - found[second] == pytest.approx(math.log(chosen[first] / chosen[second]), abs=1e-9)
    assert sum(found.values()) == pytest.approx(0, abs=1e-9)
    assert reward([(PROMPT, "4", None)] * 2, "bt") == [0, 0]


def test_a_reference_takes_the_place_of_the_group():
    rows = [(PROMPT, TEXTS[0], TEXTS[2]), (PROMPT, TEXTS[1], TEXTS[2]), (PROMPT, TEXTS[2], TEXTS[2])]
    expected = [*(judge_pair(PROMPT, text, TEXTS[2]) for text in TEXTS[:2]), 0.5]
    assert reward(rows) == pytest.approx(expected, abs=1e-12)
    assert reward(rows, "bt") == reward(rows)


def test_a_single_completion_has_no_reward():
    assert reward([(PROMPT, "4", None), (OTHER, "Red.", None), (OTHER, "Blue.", None)])[0] is None
    assert reward([]) == []


def test_no_pair_is_read_twice():
    rows = [(PROMPT, text, None) for text in TEXTS * 2] + [(PROMPT, TEXTS[0], TEXTS[1])]
    assert len(Comparisons(rows).battles) == math.comb(len(TEXTS), 2)


# --- with a judge -----------------------------------------------------------------------------------------------------


def test_rewards_are_the_judges_probabilities(judge):
    row = judge.predict([{"id": 0, "prompt": PROMPT, "response_a": "4", "response_b": "Five."}], readings="both")
    p = row["p_a"][0]
    found = PairwiseReward(judge)([PROMPT] * 2, ["Five.", "4"], completion_ids=[[1], [2]], trainer_state=None)
    assert found == pytest.approx([1 - p, p], abs=1e-5)
    messages = [{"role": "user", "content": PROMPT}]
    completions = [[{"role": "assistant", "content": text}] for text in ("Five.", "4")]
    assert PairwiseReward(judge)([messages] * 2, completions) == found
    reward = PairwiseReward(judge, reference="answer")
    assert reward([PROMPT] * 3, ["4", "4", "Five."], answer=["Five.", None, " "]) == pytest.approx(
        [p, p, 1 - p], abs=1e-5
    )


def test_hostile_and_blank_completions_are_compared(judge):
    texts = ["", " \n", '[{"role": "user", "content": "Hi"}]', *HOSTILE_TEXTS]
    found = PairwiseReward(judge)([PROMPT] * len(texts), texts)
    assert len(found) == len(texts) and all(0 <= p <= 1 for p in found)
    assert np.mean(found) == pytest.approx(0.5, abs=1e-6)


def test_wrong_arguments_are_refused(judge):
    with pytest.raises(ValueError, match="mode: expected one of mean, bt; found 'elo'"):
        PairwiseReward(judge, "elo")
    with pytest.raises(ValueError, match="found 2 prompts, 1 completions"):
        PairwiseReward(judge)([PROMPT] * 2, ["4"])
    with pytest.raises(ValueError, match=r"row 2: completion must be text .*found 7"):
        PairwiseReward(judge)([PROMPT] * 2, ["4", 7])
    with pytest.raises(ValueError, match=r"row 1: completion must be text or one message of the assistant"):
        PairwiseReward(judge)([PROMPT], [[{"role": "user", "content": "4"}]])
    with pytest.raises(ValueError, match="column answer; found solution"):
        PairwiseReward(judge, reference="answer")([PROMPT], ["4"], solution=["4"])


def test_completions_are_gathered_from_all_processes(members, judge, tmp_path):
    """Two processes with two completions each of one prompt, and one of their own."""
    mine = {0: [TEXTS[0], TEXTS[1], "Red."], 1: [TEXTS[2], TEXTS[0]]}
    wrong = {0: TEXTS[:1], 1: [7]}  # on one process only: all must say so, and none may wait
    script = tmp_path / "rewards.py"
    script.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "from accelerate import PartialState\n"
        "from modeling import Judge, PairwiseReward\n"
        "state = PartialState(cpu=True)\n"
        f"mine = {mine!r}[state.process_index]\n"
        f"judge = Judge.from_pretrained({[str(folder) for folder in members.values()]!r}, dtype='float32')\n"
        f"prompts = [{OTHER!r} if text == 'Red.' else {PROMPT!r} for text in mine]\n"
        "reward = PairwiseReward(judge)\n"
        "found = reward(prompts, mine)\n"
        "try:\n"
        f"    reward([{PROMPT!r}], {wrong!r}[state.process_index])\n"
        "except ValueError as error:\n"
        "    found.append(str(error))\n"
        f"Path({str(tmp_path)!r}, f'{{state.process_index}}.json').write_text(json.dumps(found))\n",
        encoding="utf-8",
    )
    succeed(*LAUNCH, *LAUNCHERS["ddp"], script)
    found = [json.loads((tmp_path / f"{process}.json").read_text()) for process in (0, 1)]
    expected = PairwiseReward(judge)([PROMPT] * 4, [*mine[0][:2], *mine[1]])
    assert "found 7" in found[0].pop() and "found 7" in found[1].pop()
    assert found[0].pop() is None
    assert [*found[0], *found[1]] == pytest.approx(expected, abs=1e-5)


# --- TRL's trainers ---------------------------------------------------------------------------------------------------


def train(trainer: str, judge, folder, output, rewards: list) -> dict:
    """Two steps of a trainer on a small language model; collects the rewards. Returns the last entries of its log."""
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'bothways[dev]'")
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    kinds = {"GRPO": (trl.GRPOTrainer, trl.GRPOConfig), "OnlineDPO": (OnlineDPOTrainer, OnlineDPOConfig)}
    own = {"GRPO": {"num_generations": 4, "max_completion_length": 8}, "OnlineDPO": {"max_new_tokens": 8}}
    make_trainer, make_config = kinds[trainer]
    config = make_config(
        output_dir=str(output),
        per_device_train_batch_size=4,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        temperature=5.0,  # the tiny model is nearly certain of every token
        **own[trainer],
    )
    pairwise = PairwiseReward(judge)

    def reward(prompts, completions, **columns):
        """Notes what the judge says."""
        rewards.append((prompts, completions, found := pairwise(prompts, completions, **columns)))
        return found

    made = make_trainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [PROMPT, OTHER, "Why?", "How?"] * 2}),
        processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
    )
    made.train()
    return {key: value for entry in made.state.log_history for key, value in entry.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("base", ["tiny", pytest.param("demo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("trainer", ["GRPO", "OnlineDPO"])
def test_trl_trains_on_the_rewards(trainer, base, judge, plain_backbone, tmp_path):
    rewards: list = []
    folder = plain_backbone if base == "tiny" else find_base(GEMMA_BASE).folder
    log = train(trainer, judge, folder, tmp_path, rewards)
    assert len(rewards) == 2
    for prompts, completions, found in rewards:
        assert found == PairwiseReward(judge)(prompts, completions) and None not in found
        assert np.mean(found) == pytest.approx(0.5, abs=1e-6)  # as everywhere within a group
        assert len(set(found)) > 1
    shown = log["reward" if trainer == "GRPO" else "rewards/margins"]
    assert shown == pytest.approx(0.5, abs=1e-6) if trainer == "GRPO" else shown > 0


@pytest.mark.slow  # half a minute: the real base writes, and the default judge reads
@pytest.mark.filterwarnings("ignore")
def test_the_example_of_the_documentation_runs(monkeypatch, tmp_path):
    page = (REPOSITORY / "docs" / "rewards.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(code, found)
    log = {key: value for entry in found["trainer"].state.log_history for key, value in entry.items()}
    assert log["reward"] == pytest.approx(0.5, abs=1e-6)
