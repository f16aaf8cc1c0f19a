"""Laws of folds.py: no prompt is on both sides, folds are balanced, and the order of the rows changes nothing."""

import random
from collections import Counter

import pytest
from datasets import Dataset

from modeling.data.folds import FOLD_METHODS, assign_folds, fingerprint_fold, split_folds

OUTCOMES = {"a": [1.0, 0.0], "b": [0.0, 1.0], "tie": [0.5, 0.5]}


def build_battles(prompts: list[str], **columns) -> Dataset:
    choose = random.Random(0)
    labels = [choose.choice([*OUTCOMES.values(), [0.7, 0.3]]) for _ in prompts]
    languages = [choose.choice(["en", "ko", None]) for _ in prompts]
    ids = list(range(len(prompts)))
    return Dataset.from_dict({"id": ids, "prompt": prompts, "label": labels, "language": languages, **columns})


def build_families(num_families: int = 30) -> Dataset:
    """Returns families of four: a prompt of 12 words, in upper case, with one word replaced, with its end replaced."""
    choose, prompts = random.Random(2), []
    for family in range(num_families):
        words = [f"{choose.randrange(10**6):06}" for _ in range(12)]
        prompts += [
            " ".join(words),
            " \n".join(words).upper() + " ?",
            " ".join([*words[:5], f"other{family}", *words[6:]]),
            " ".join([*words[:-1], f"end{family}"]),
        ]
    return build_battles(prompts, family=[i // 4 for i in range(len(prompts))])


def build_singles(num_battles: int = 200) -> Dataset:
    return build_battles([f"Prompt {i}" for i in range(num_battles)])


def name_stratum(row: dict) -> tuple:
    a, b = row["label"]
    return ("tie" if a == b else "a" if a > b else "b", row["language"])


@pytest.mark.parametrize("method", FOLD_METHODS)
@pytest.mark.parametrize("num_folds", [2, 3, 7])
def test_folds_are_disjoint_and_complete(method, num_folds):
    battles, held_out = build_singles(), []
    for fold in range(num_folds):
        train, evaluation = split_folds(battles, num_folds, fold, method)
        assert sorted(train["id"][:] + evaluation["id"][:]) == battles["id"][:]
        held_out += evaluation["id"][:]
    assert sorted(held_out) == battles["id"][:]


@pytest.mark.parametrize("num_folds", [2, 5])
def test_near_duplicates_of_a_prompt_are_on_one_side(num_folds):
    battles = build_families()
    for fold in range(num_folds):
        train, evaluation = split_folds(battles, num_folds, fold)
        assert not set(train["family"]) & set(evaluation["family"])
        assert len(evaluation) == pytest.approx(len(battles) / num_folds, abs=4)  # a family is 4 battles


@pytest.mark.parametrize("build", [build_singles, build_families])
def test_the_order_of_the_rows_changes_nothing(build):
    battles = build()
    folds = dict(zip(battles["id"], assign_folds(battles, 4), strict=True))
    shuffled = battles.shuffle(seed=1)
    assert shuffled["id"][:] != battles["id"][:]
    assert dict(zip(shuffled["id"], assign_folds(shuffled, 4), strict=True)) == folds


@pytest.mark.parametrize("num_folds", [2, 7, 150])
def test_every_fold_has_its_share_of_every_stratum(num_folds):
    """Each battle goes where its stratum is rarest, so no two folds differ by more than one in any stratum."""
    battles = build_singles()
    counts = Counter(
        (fold, name_stratum(row)) for fold, row in zip(assign_folds(battles, num_folds), battles, strict=True)
    )
    strata = {stratum for _, stratum in counts}
    assert len(strata) == 9
    for stratum in strata:
        shares = [counts[fold, stratum] for fold in range(num_folds)]
        assert max(shares) - min(shares) <= 1
    totals = Counter(assign_folds(battles, num_folds))
    assert max(totals.values()) - min(totals.values()) <= len(strata)


def test_a_group_is_balanced_by_its_most_frequent_stratum():
    """Four groups of three have majorities a, a, b, b. Each fold gets one group with each majority."""
    labels = [OUTCOMES[outcome] for outcome in "aabababbabab"]
    battles = Dataset.from_dict({"prompt": [f"Prompt {i // 3}" for i in range(12)], "label": labels})
    folds = assign_folds(battles, 2)
    assert folds[0] != folds[3] and folds[6] != folds[9]
    assert Counter(folds) == {0: 6, 1: 6}


@pytest.mark.parametrize("left_out", [["label"], ["language"], ["label", "language"]])
def test_label_and_language_may_be_absent(left_out):
    totals = Counter(assign_folds(build_singles().remove_columns(left_out), 4))
    assert max(totals.values()) - min(totals.values()) <= 2


def test_no_battles_have_no_folds():
    assert assign_folds(build_battles([]), 2) == []


def test_modulo_takes_every_nth_row_and_leaks():
    battles = build_battles(["the same prompt"] * 6)
    assert assign_folds(battles, 4, "modulo") == [0, 1, 2, 3, 0, 1]
    train, evaluation = split_folds(battles, 4, 1, method="modulo")
    assert evaluation["id"][:] == [1, 5] and set(train["prompt"]) == set(evaluation["prompt"])


def test_many_folds_of_many_groups_take_seconds():
    counts = Counter(assign_folds(build_singles(10_000), 1000))
    assert len(counts) == 1000 and max(counts.values()) - min(counts.values()) <= 9


@pytest.mark.parametrize(("num_folds", "fold"), [(1, 0), (0, 0), (3, 3), (3, -1)])
def test_a_fold_that_does_not_exist_is_an_error(num_folds, fold):
    with pytest.raises(ValueError, match=f"--num_folds {num_folds} --fold {fold}: expected num_folds >= 2"):
        split_folds(build_singles(), num_folds, fold)


def test_fewer_than_two_folds_are_an_error():
    with pytest.raises(ValueError, match="--num_folds 1: expected num_folds >= 2"):
        assign_folds(build_singles(), 1)


@pytest.mark.parametrize("split", [assign_folds, lambda *options: split_folds(*options[:2], 0, *options[2:])])
def test_an_unknown_method_is_an_error(split):
    with pytest.raises(ValueError, match="method: expected one of prompt, modulo; found 'random'"):
        split(build_singles(), 2, "random")


@pytest.mark.parametrize("prompts", [[], ["one"], ["one", "One", "one."]])
def test_a_fold_without_battles_is_an_error(prompts):
    with pytest.raises(ValueError, match=r"found \d battles to train on and \d to evaluate on; .* Use fewer folds"):
        split_folds(build_battles(prompts), 2, 0)


def test_a_fingerprint_is_that_of_the_set_of_ids():
    _, evaluation = split_folds(build_singles(), 4, 1)
    fingerprint = fingerprint_fold(evaluation)
    assert len(fingerprint) == 16 and int(fingerprint, 16) >= 0
    assert fingerprint_fold(evaluation.shuffle(seed=1)) == fingerprint
    others = [evaluation.select(range(len(evaluation) - 1)), *(split_folds(build_singles(), 4, i)[1] for i in (0, 2))]
    others.append(Dataset.from_dict({"id": [str(id) for id in evaluation["id"]]}))
    others += [Dataset.from_dict({"id": ids}) for ids in (["a", "b"], ["a\nb"], ['a"\n"b'])]
    assert len({fingerprint, *map(fingerprint_fold, others)}) == 1 + len(others)
