import random
import re

import ftfy
import pytest

from modeling.data.battles import TEXTS
from modeling.encoding.collator import encode_dataset
from modeling.encoding.encoder import CUT_COLUMNS, ELISION, BattleEncoder, Encoding, build_encoding, share_room
from tests.helpers import HOSTILE_TEXTS, battle

MARKERS = ("<prompt>:", "<response_a>:", "<response_b>:")


# What users type to break out of their field; ftfy would even make a marker of the escaped one.
@pytest.fixture(params=["tokenizer", "gemma_tokenizer", "smollm_tokenizer"])
def any_tokenizer(request):
    """The tests' own tokenizer, the real Gemma-2's (which has no pre-tokenizer) and SmolLM2's (whose pad is eos)."""
    return request.getfixturevalue(request.param)


def encode(tokenizer, battles, orientation="ab", max_length=512, truncation="balanced"):
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, max_length, truncation))
    return encoder.encode(encoder.clean_battles(battles), orientation)


def make_hostile_battles(count):
    rng = random.Random(0)
    words = [*HOSTILE_TEXTS, "the", " cat", "sat. ", "\n", "123", "<", ">", ":", "response_b", "<resp", "onse_b>:"]
    return [battle(*("".join(rng.choices(words, k=rng.randint(1, 90))) for _ in TEXTS)) for _ in range(count)]


def test_left_truncation_reproduces_the_seeds_ids(any_tokenizer, sample_battles):
    """The seed: ftfy on each field, one string from the template, bos, the last max_length - 2 tokens of it, eos."""
    for orientation, first, second in (("ab", "response_a", "response_b"), ("ba", "response_b", "response_a")):
        for max_length in (128, 512):
            found = encode(any_tokenizer, sample_battles.to_list(), orientation, max_length, "left")
            for row, encoded in zip(sample_battles, found, strict=True):
                prompt, one, two = (ftfy.fix_text(row[name]) for name in ("prompt", first, second))
                text = f"<prompt>: {prompt}\n\n<response_a>: {one}\n\n<response_b>: {two}"
                ids = any_tokenizer(text, add_special_tokens=False)["input_ids"][-(max_length - 2) :]
                assert encoded["input_ids"] == [any_tokenizer.bos_token_id, *ids, any_tokenizer.eos_token_id]


@pytest.mark.parametrize("truncation", ["balanced", "left"])
def test_every_battle_begins_with_bos_and_ends_with_eos(any_tokenizer, truncation, sample_battles):
    for max_length in (96, 256):
        for encoded in encode(any_tokenizer, sample_battles.to_list(), "ba", max_length, truncation):
            assert encoded["input_ids"][0] == any_tokenizer.bos_token_id
            assert encoded["input_ids"][-1] == any_tokenizer.eos_token_id
            assert encoded["length"] == len(encoded["input_ids"]) <= max_length


@pytest.mark.parametrize("truncation", ["balanced", "left"])
def test_user_text_never_becomes_a_special_token_or_a_marker(any_tokenizer, truncation):
    """Law 9, seed fault 8: special ids stand at the two ends only, and each marker at most once, at its place."""
    special = {id for id, token in any_tokenizer.added_tokens_decoder.items() if token.special}
    for max_length in (128, 4096):
        for encoded in encode(any_tokenizer, make_hostile_battles(200), "ab", max_length, truncation):
            body = encoded["input_ids"][1:-1]
            assert special.isdisjoint(body)
            text = any_tokenizer.decode(body)
            counts = [text.count(marker) for marker in MARKERS]
            assert counts == [1, 1, 1] or (truncation == "left" and max(counts) <= 1)
            assert [text.find(marker) for marker in MARKERS if marker in text] == sorted(
                text.find(marker) for marker in MARKERS if marker in text
            )


def test_balanced_truncation_keeps_tokens_of_every_field(any_tokenizer):
    """Law 8, seed fault 5: the seed's left truncation loses the prompt, then all of answer A, and never any of B."""
    long = "word " * 3000
    for texts in ((long, "first", "second"), ("why", long, long), (long, long, long), ("why", "first", long)):
        encoded = encode(any_tokenizer, [battle(*texts)], max_length=200)[0]
        text = any_tokenizer.decode(encoded["input_ids"])
        fields = [text.split(marker)[1].split("<")[0].strip() for marker in MARKERS]
        assert all(fields)
        for name, original, kept in zip(CUT_COLUMNS, texts, fields, strict=True):
            assert (encoded[name] > 0) == (ELISION.strip() in kept) == (len(original) > 10)
    lost = encode(any_tokenizer, [battle(long, long, long)], max_length=200, truncation="left")[0]
    assert "<response_a>:" not in any_tokenizer.decode(lost["input_ids"])
    assert lost["cut_response_b"] < lost["cut_response_a"]


@pytest.mark.parametrize("truncation", ["balanced", "left"])
def test_cut_tokens_are_counted(any_tokenizer, truncation, sample_battles):
    """What is read plus what was cut is what was there; the elisions are extra."""
    elision = len(any_tokenizer(ELISION, add_special_tokens=False)["input_ids"])
    full = encode(any_tokenizer, sample_battles.to_list(), max_length=8192, truncation=truncation)
    cut = encode(any_tokenizer, sample_battles.to_list(), max_length=96, truncation=truncation)
    for before, after in zip(full, cut, strict=True):
        assert [before[name] for name in CUT_COLUMNS] == [0, 0, 0]
        lost = [after[name] for name in CUT_COLUMNS]
        added = elision * sum(count > 0 for count in lost) if truncation == "balanced" else 0
        difference = before["length"] - after["length"] + added - sum(lost)
        # From the left whole markers go too, and they belong to no field.
        assert difference == 0 if truncation == "balanced" else difference >= 0
    assert any(sum(after[name] for name in CUT_COLUMNS) for after in cut)


def test_columns_of_a_cut_follow_the_field_not_the_slot(tokenizer):
    for orientation in ("ab", "ba"):
        encoded = encode(tokenizer, [battle(response_b="long " * 500)], orientation, max_length=128)[0]
        assert encoded["cut_response_b"] > 0 == encoded["cut_response_a"] == encoded["cut_prompt"]


def test_room_that_short_fields_leave_passes_on():
    assert share_room([10, 90, 300], 210) == [10, 90, 110]
    assert share_room([300, 10, 90], 210) == [110, 10, 90]
    assert share_room([1, 2, 3], 60) == [1, 2, 3]
    assert share_room([50, 50, 50], 100) == [33, 33, 33]


def test_of_two_cut_answers_the_longer_stays_the_longer():
    """In proportion, 1:2 here, but never more lopsided than 1:3; nothing is given out that is not there."""
    assert share_room([10, 200, 400], 210) == [10, 66, 133]
    assert share_room([10, 400, 200], 210) == [10, 133, 66]
    assert share_room([500, 150, 9000], 300) == [100, 50, 150]
    assert share_room([500, 5000, 5000], 300) == [100, 100, 100]
    for lengths in ((5, 90, 91), (400, 130, 120), (70, 71, 3000)):
        shares = share_room(lengths, 200)
        assert sum(shares) <= 200 and all(0 < share <= length for share, length in zip(shares, lengths, strict=True))
        assert (shares[1] >= shares[2]) == (lengths[1] >= lengths[2])


def test_orientations_exchange_the_answers(tokenizer):
    forward = encode(tokenizer, [battle("Why?", "one", "two")], "ab")
    backward = encode(tokenizer, [battle("Why?", "two", "one")], "ba")
    assert forward[0]["input_ids"] == backward[0]["input_ids"]


def test_text_without_need_of_ftfy_skips_it_and_all_else_goes_through_it(tokenizer):
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, 256, "balanced"))
    odd = ["a &amp; b", "donâ€™t", "ﬁne", "x\r\ny", "plain text\n\twith 2 lines"]
    for text in [*(chr(code) for code in range(0x250)), *odd]:
        assert encoder.clean(text) == ftfy.fix_text(text)


def test_labels_follow_the_orientation(tokenizer, sample_battles):
    """Class 0 is "the first slot wins", so reading b first mirrors the label."""
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, 256, "balanced"))
    assert encode_dataset(sample_battles, encoder, "ab")["label"][:] == sample_battles["label"][:]
    assert encode_dataset(sample_battles, encoder, "ba")["label"][:] == [row[::-1] for row in sample_battles["label"]]


def test_a_prompt_of_a_megabyte_is_read_and_cut(any_tokenizer):
    encoded = encode(any_tokenizer, [battle(prompt="hello world\n" * 90_000)], max_length=256)[0]
    assert encoded["length"] <= 256 and encoded["cut_prompt"] > 100_000 and encoded["cut_response_a"] == 0


def test_encoding_survives_its_own_dictionary(tokenizer):
    encoding = build_encoding(tokenizer, 256, "left")
    assert Encoding.from_dict(encoding.to_dict()) == encoding
    with pytest.raises(ValueError, match=r"expected .*truncation.*; found max_length"):
        Encoding.from_dict({"max_length": 3})


def test_the_smallest_max_length_keeps_tokens_of_every_field(any_tokenizer):
    with pytest.raises(ValueError, match="--max_length 1: expected") as error:
        build_encoding(any_tokenizer, 1, "balanced")
    least = int(re.search(r"expected (\d+) or more", str(error.value))[1])
    long = "word " * 900
    for texts in ((long, long, long), (long, long * 9, long), ("why", long, long)):
        encoded = encode(any_tokenizer, [battle(*texts)], max_length=least)[0]
        assert encoded["length"] <= least
        text = any_tokenizer.decode(encoded["input_ids"])
        assert all("w" in text.split(marker)[1].split("\n\n")[0] for marker in MARKERS)


def test_impossible_settings_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"--max_length 40: expected .* or more"):
        build_encoding(tokenizer, 40, "balanced")
    with pytest.raises(ValueError, match="--truncation: expected one of balanced, left; found 'middle'"):
        build_encoding(tokenizer, 256, "middle")
    with pytest.raises(ValueError, match="expected the fields"):
        Encoding(256, "left", "{first}{prompt}{second}", 2, 1, 0).markers  # noqa: B018
