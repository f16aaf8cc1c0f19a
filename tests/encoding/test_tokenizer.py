"""Tokenising a text once for all the templates in which it stands changes no id and no count."""

import bisect
import itertools
import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from modeling.data.battles import TEXTS
from modeling.encoding.encoder import BattleEncoder, build_encoding
from modeling.encoding.tokenizer import QWEN_SPLIT, find_boundary
from tests.helpers import HOSTILE_TEXTS, battle


@pytest.fixture(scope="module")
def qwen_tokenizer(sample_battles):
    """A tiny one with Qwen's normaliser and pre-tokenizer, whose pre-tokens take newlines after punctuation along."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["a.\n\n b>:\n\n" * 9, *sample_battles["response_a"]], trainer)
    backend.add_tokens(["<think>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@pytest.fixture(params=["tokenizer", "gemma_tokenizer", "smollm_tokenizer", "qwen_tokenizer"])
def every_tokenizer(request):
    """All kinds for which cutting a text before its tokenisation is proven exact."""
    return request.getfixturevalue(request.param)


def make_awkward_battles(count, seed=0):
    """Fields that begin and end in what merges with its neighbours, and whole fields of it."""
    rng = random.Random(seed)
    edges = [
        "",
        "",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r",
        "<",
        ">",
        ":",
        "▁",
        "▁▁",
        "\u3000",
        "\xa0",
        "\u200b",
        "\u0301",
        "。",
    ]
    edges += [".", "...", "'", "'s", "7", "\x85", "\x1c", "é", "e\u0301", "\ufeff", "</b>", "<table>", "<h1>", "<0x0A>"]
    words = [
        *HOSTILE_TEXTS,
        *edges,
        "the",
        " cat",
        "sat. ",
        "123",
        " I'm",
        "안녕",
        "하세요. ",
        "日本語",
        "です。",
        "😀",
        "  x",
        ";\n",
    ]

    def make_field():
        return "".join(
            rng.choices(edges, k=2) + rng.choices(words, k=rng.choice([0, 1, 3, 30])) + rng.choices(edges, k=2)
        )

    return [battle(*(make_field() for _ in TEXTS)) for _ in range(count)]


def read_whole(tokenizer, battles, order, max_length, truncation):
    """The straightforward way: transformers on the whole string; the spans by the end of each token."""
    encoding = build_encoding(tokenizer, max_length, truncation)
    encoder = BattleEncoder(tokenizer, encoding)
    for row in battles:
        pieces = [piece for pair in zip(encoding.markers, (row[name] for name in order), strict=True) for piece in pair]
        options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
        tokens = tokenizer("".join(pieces), **options)
        ends, bounds = [end for _, end in tokens["offset_mapping"]], [0, *itertools.accumulate(map(len, pieces))]
        counts = [bisect.bisect_right(ends, bound) if bound else 0 for bound in bounds]
        assert ends == sorted(ends)
        spans = [slice(counts[place], counts[place + 1]) for place in (1, 3, 5)]
        yield encoder._close(*encoder._truncate(tokens["input_ids"], lambda spans=spans: spans), order)


def test_sharing_the_work_changes_no_id_and_no_count(every_tokenizer):
    """Law: cut where the tokenizer's data allow it, a battle has the ids of its whole string, in either order."""
    raw = make_awkward_battles(1500)
    for max_length, truncation in ((4096, "balanced"), (96, "balanced"), (96, "left")):
        encoder = BattleEncoder(every_tokenizer, build_encoding(every_tokenizer, max_length, truncation))
        assert encoder.template.cut
        # Not cleaned too: ftfy would take most awkward characters out.
        for battles in (encoder.clean_battles(raw), raw[:500]):
            found = encoder.encode_orders(battles, ["ab", "ba"])
            for orientation, order in (("ab", TEXTS), ("ba", (TEXTS[0], TEXTS[2], TEXTS[1]))):
                expected = list(read_whole(every_tokenizer, battles, order, max_length, truncation))
                assert found[orientation] == expected == encoder.encode(battles, orientation)


def test_without_proof_every_order_is_tokenised_whole(every_tokenizer, monkeypatch):
    monkeypatch.setattr("modeling.encoding.tokenizer.find_boundary", lambda tokenizer: None)
    battles = make_awkward_battles(300, seed=1)
    encoder = BattleEncoder(every_tokenizer, build_encoding(every_tokenizer, 96, "balanced"))
    assert not encoder.template.cut and "whole" in encoder.template.method
    assert encoder.encode(battles, "ab") == list(read_whole(every_tokenizer, battles, TEXTS, 96, "balanced"))


@pytest.mark.parametrize(
    "change", ["reaching token", "stripping token", "dropout", "Metaspace", "trimmed", "lower case"]
)
def test_no_cut_is_taken_for_exact_without_proof(change, tokenizer):
    """What would let a token, or an offset, reach over the cut; the same tokenizer without it is proven."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    assert find_boundary(backend)
    if change == "reaching token":
        backend.add_tokens(["a>:\n"])
    elif change == "stripping token":
        backend.add_tokens([AddedToken("word", lstrip=True)])
    elif change == "dropout":
        backend.model.dropout = 0.1
    elif change == "Metaspace":
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    elif change == "trimmed":
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    else:
        backend.normalizer = normalizers.Lowercase()
    assert find_boundary(backend) is None


def test_merge_over_a_space_rules_the_cut_out():
    """Without a pre-tokenizer, as Gemma's, it is the vocabulary that decides."""
    for entry, proven in (("▁a", True), ("a▁", False), ("▁▁", True), ("a\n", False)):
        vocabulary = {piece: id for id, piece in enumerate(["a", "▁", "\n", entry])}
        backend = Tokenizer(models.BPE(vocabulary, [tuple(entry)]))
        backend.normalizer = normalizers.Replace(" ", "▁")
        assert bool(find_boundary(backend)) is proven


def test_repeated_texts_and_many_parts_keep_their_order(tokenizer, monkeypatch):
    monkeypatch.setattr("modeling.encoding.encoder.TOKENIZER_BATCH", 7)
    battles = make_awkward_battles(40) * 2 + [battle(str(number)) for number in range(40, 0, -1)]
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, 128, "balanced"))
    found = encoder.encode_orders(battles, ["ba", "ab"])
    for orientation in ("ab", "ba"):
        assert found[orientation] == [encoder.encode([row], orientation)[0] for row in battles]
    assert encoder.encode_orders([], ["ab"]) == {"ab": []}
