"""How often does a decision flip when its two options are swapped? The default judge against transformers' pipeline.

    python -m benchmarks.studies.decision_flips --votes battles_test.parquet

Each battle is asked as a System One choice, with the prompt as the state and the two answers as the options, and again
with the options swapped. The pipeline reads the next-token logits of the options' letters, from the judge's own base or
from an instruct model. Both sides see the same texts, cut to the same number of tokens. Gemma-3-270M has no chat
template: it gets PLAIN_TEMPLATE. Writes benchmarks/results/decision_flips.json.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, pipeline
from transformers.decision import DecisionConfig

from benchmarks import RESULTS
from benchmarks.speed.machine import describe_machine
from modeling.data.battles import DEMO_FOLDER, TEXTS, load_battles
from modeling.encoding.encoder import share_room
from modeling.evaluation.bootstrap import Estimate, Resampler, bound_share
from modeling.evaluation.metrics import compute_accuracy
from modeling.judging.judge import Judge, describe_members
from modeling.judging.verdicts import average_by_order
from modeling.network.gguf import build_packaged
from modeling.runtime.packages import GEMMA_BASE, WEIGHTS

# Jinja drops a line break at the end of a template. After it come the tokens A and B, which have no space in front.
PLAIN_TEMPLATE = "{{ bos_token }}{{ messages[0].content }}\n\nAnswer:{{ '\\n' }}"
INSTRUCTIONS = "Which of the two answers would people prefer?"
QUESTION = "best"


def draw_battles(files: Sequence[str], count: int, seed: int) -> list[dict]:
    """Returns decided battles of all files together, drawn without replacement."""
    battles = [battle for file in files for battle in load_battles(file, require_labels=True, tie_policy="drop")]
    order = np.random.default_rng(seed).permutation(len(battles))[:count]
    return [battles[number] for number in order]


def cut_battle(battle: Mapping, tokenizer: PreTrainedTokenizerBase, room: int) -> dict:
    """Returns a battle with the beginnings of its texts, `room` tokens together, as `share_room` divides them."""
    ids = [tokenizer(battle[name], add_special_tokens=False)["input_ids"] for name in TEXTS]
    shares = share_room([len(each) for each in ids], room)
    texts = {
        name: battle[name] if len(each) <= share else tokenizer.decode(each[:share])
        for name, each, share in zip(TEXTS, ids, shares, strict=True)
    }
    return {**texts, "label": battle["label"]}


def write_request(battle: Mapping, swapped: bool) -> dict:
    """Returns the System One request about a battle; the first option is answer a, or b if swapped."""
    _, a, b = (battle[name] for name in TEXTS)
    criteria = dict(zip(("first", "second"), (b, a) if swapped else (a, b), strict=True))
    question = {"type": "choice", "instructions": INSTRUCTIONS, "criteria": criteria}
    return {"state": battle["prompt"], "questions": {QUESTION: question}}


def read_p_a(answers: Mapping, swapped: bool) -> float:
    """Returns the probability of answer a from the answers to a request."""
    return answers[QUESTION]["probabilities"]["second" if swapped else "first"]


def ask_judge(judge: Judge, battles: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the judge's p_a, with the answers as they are and swapped, and its p_a in each order alone.

    Both have the shape (2, battles).
    """
    swapped = [{**battle, "response_a": battle["response_b"], "response_b": battle["response_a"]} for battle in battles]
    verdicts = judge.predict([{**row, "id": id} for id, row in enumerate([*battles, *swapped])], readings="both")
    p_a, p_b = verdicts["p_a"].to_numpy(), verdicts["p_b"].to_numpy()
    by_order = average_by_order(verdicts)
    one_order = np.array(list(by_order.values()))[:, : len(battles)]
    return np.array([p_a[: len(battles)], p_b[len(battles) :]]), one_order


def ask_pipeline(folder: Path, battles: Sequence[Mapping]) -> np.ndarray:
    """Returns p_a by transformers' decision pipeline, shape (2, battles): as they are, and with swapped options."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template or PLAIN_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    decide = pipeline("decision", model=model, tokenizer=tokenizer, decision_config=DecisionConfig())
    return np.array(
        [
            [read_p_a(decide(write_request(battle, swapped)), swapped) for battle in tqdm(battles, folder.name)]
            for swapped in (False, True)
        ]
    )


def measure_flips(p_a: np.ndarray, labels: np.ndarray) -> dict:
    """Measures what a swap of the two options changes.

    Args:
        p_a: The probability of answer a, as the options are and swapped, shape (2, battles).
        labels: Shape (battles, labels).

    Returns:
        flips: Share of the battles whose winner changes, with Wilson's interval.
        change: Mean absolute change of p_a, with a bootstrap interval.
        accuracy, accuracy_swapped: With the options as they are and swapped.
    """
    flips = (p_a[0] >= 0.5) != (p_a[1] >= 0.5)
    share = Estimate(float(flips.mean()), *bound_share(flips.mean(), len(flips)), len(flips))
    (change,) = Resampler(range(len(flips))).estimate_means(np.abs(p_a[0] - p_a[1])[:, None])
    accuracies = [compute_accuracy(np.stack([p, 1 - p], axis=1), labels).to_dict() for p in p_a]
    return {
        "flips": share.to_dict(),
        "change": change.to_dict(),
        "accuracy": accuracies[0],
        "accuracy_swapped": accuracies[1],
    }


def format_table(found: Mapping[str, Mapping]) -> str:
    """Returns a Markdown table with a row per decider."""
    lines = ["| | flips [95%] | mean change of p | accuracy [95%] | swapped |", "|---" * 5 + "|"]
    for name, row in found.items():
        cells = ["{value:.3f} [{low:.3f}, {high:.3f}]".format(**row[key]) for key in ("flips", "accuracy")]
        swapped = f"{row['accuracy_swapped']['value']:.3f}"
        lines.append(f"| {name} | {cells[0]} | {row['change']['value']:.3f} | {cells[1]} | {swapped} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    demo = [str(DEMO_FOLDER / f"{part}.jsonl") for part in ("test", "train")]
    parser.add_argument("--votes", nargs="+", default=demo, help="Files of labelled battles. Default: the demo's.")
    parser.add_argument("--count", type=int, default=500, help="Battles drawn from the files.")
    parser.add_argument("--seed", type=int, default=0, help="Of the draw.")
    parser.add_argument("--max_tokens", type=int, default=192, help="Tokens of a battle's three texts together.")
    parser.add_argument("--bases", nargs="+", default=[GEMMA_BASE], choices=list(WEIGHTS), help="Of the pipeline.")
    parser.add_argument("--output", type=Path, default=RESULTS / "decision_flips.json", help="Result file.")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(build_packaged(GEMMA_BASE))
    drawn = draw_battles(arguments.votes, arguments.count, arguments.seed)
    battles = [cut_battle(battle, tokenizer, arguments.max_tokens) for battle in drawn]
    labels = np.array([battle["label"] for battle in battles])
    found = {
        f"pipeline, {WEIGHTS[base].title}": measure_flips(ask_pipeline(build_packaged(base), battles), labels)
        for base in arguments.bases
    }
    judge = Judge.from_pretrained()
    both, one = ask_judge(judge, battles)
    found |= {"default judge": measure_flips(both, labels), "default judge, one order": measure_flips(one, labels)}
    print(format_table(found))
    settings = {"battles": len(battles), "seed": arguments.seed, "max_tokens": arguments.max_tokens}
    members = describe_members(judge.members)
    results = {**settings, "members": members, "machine": describe_machine(), "deciders": found}
    arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
