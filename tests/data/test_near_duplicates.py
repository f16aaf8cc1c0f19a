"""Laws of near_duplicates.py: planted near-duplicates are found in any script, other tasks are not, in any order."""

import random
import time
from string import ascii_lowercase

import numpy as np
import pytest

from modeling.data.near_duplicates import BANDS, DEFAULT_THRESHOLD, ROWS, DuplicateIndex, group_texts, normalize_text

# Words as a reader would count them; the last two languages are written without spaces.
WORDS = {
    "English": "explain to my younger sister how a bicycle stays upright while she is riding slowly around the garden",
    "Korean": "우리 동네 도서관에서 주말마다 열리는 독서 모임에 처음 참가하는 사람을 위한 안내문을 정중하게 써 주세요",
    "Russian": "напиши короткое письмо соседу который слишком громко слушает музыку по ночам и предложи поговорить",
    "Japanese": "来週 の 会議 で 使う 資料 を 三枚 の スライド に まとめる 方法 を 誰 にも 分かる よう に 教えて",
    "Chinese": "请 帮 我 写 一份 周末 去 海边 露营 的 准备 清单 并且 说明 每件 物品 为什么 必须 带上 谢谢",
}
OTHER_WORDS = {
    "English": "lantern copper seventeen whisper valley orbit thunder marble window forest",
    "Korean": "고양이 기차표 열일곱 속삭임 골짜기 구리로 천둥이 창문을 숲에서 등불",
    "Russian": "фонарь медный семнадцать шёпот долина орбита гром мрамор окно лесной",
    "Japanese": "提灯 銅貨 十七 囁き 渓谷 軌道 雷鳴 大理石 窓辺 森林",
    "Chinese": "灯笼 铜币 十七 耳语 山谷 轨道 雷声 石头 窗户 森林",
}
NUM_WORDS = (10, 50, 500)


def join_words(words: list[str], language: str) -> str:
    return ("" if language in ("Japanese", "Chinese") else " ").join(words)


def build_words(language: str, num_words: int) -> list[str]:
    """Returns the words of the language's sentence, continued by made-up words of the same letters."""
    words = WORDS[language].split()
    letters, choose = sorted(set("".join(words))), random.Random(num_words)
    lengths = [len(word) for word in words]
    made_up = ["".join(choose.choices(letters, k=choose.choice(lengths))) for _ in range(num_words)]
    return (words + made_up)[:num_words]


def replace_last_tenth(words: list[str], language: str) -> str:
    kept, others = len(words) - len(words) // 10, OTHER_WORDS[language].split()
    return join_words([*words[:kept], *random.Random(0).choices(others, k=len(words) - kept)], language)


def replace_every_tenth(words: list[str], language: str) -> str:
    others = OTHER_WORDS[language].split()
    return join_words(
        [others[i // 10 % len(others)] if i % 10 == 5 else word for i, word in enumerate(words)], language
    )


def change_white_space(words: list[str], language: str) -> str:
    return " \n" + ("\u3000" if language in ("Japanese", "Chinese") else "\t ").join(words) + "\n"


def change_case_and_width(words: list[str], language: str) -> str:
    """Returns upper case, with ASCII characters in the full-width form that Asian keyboards give."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in join_words(words, language).upper()) + "。"


PLANTS = [join_words, change_case_and_width, change_white_space, replace_last_tenth, replace_every_tenth]


@pytest.mark.parametrize("num_words", NUM_WORDS)
@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("language", WORDS)
def test_a_planted_copy_is_found_and_grouped(language, plant, num_words):
    words = build_words(language, num_words)
    text, copy = join_words(words, language), plant(words, language)
    index = DuplicateIndex()
    index.add(["something else", text])
    assert index.find([copy]) == [[1]]
    assert group_texts([text, copy]) == [0, 0]


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Write a poem about a cat.", "Write a poem about a dog."),
        ("What is 2+2?", "What is 2+3?"),
        ("What is the capital of Peru?", "What is the capital of Mali?"),
        ("How do I sort a list in C?", "How do I sort a list in C#?"),
        ("日本の首都はどこですか", "韓国の首都はどこですか"),
        ("请写一首关于猫的诗", "请写一首关于狗的诗"),
        ("Summarise this article: bees sleep.", "Summarise this article: prices rose again in March."),
        (WORDS["English"], "explain to my younger sister why the sea tastes salty although the rivers do not"),
        (WORDS["Korean"], "우리 동네 도서관에서 아르바이트를 하려면 어떤 서류가 필요한지 알려 주세요"),
        (WORDS["Chinese"].replace(" ", ""), "请帮我写一份新产品上市的推广计划并且估计每个月的费用"),
        (WORDS["Japanese"].replace(" ", ""), "来週の旅行で訪ねる京都の寺を三つ選び理由も教えてください"),
    ],
)
def test_different_tasks_stay_apart(text, other):
    index = DuplicateIndex()
    index.add([text])
    assert index.find([other, text]) == [[], [0]]
    assert len(set(group_texts([text, other]))) == 2


def test_long_texts_of_one_language_stay_apart():
    """The longer two texts of a language, the more shingles they share: with 3-letter shingles, it would be half."""
    words = [build_words("English", 200)[:100], build_words("English", 200)[100:]]
    texts = [" ".join(random.Random(0).choices(half, k=500)) for half in words]
    assert len(set(group_texts(texts))) == 2


def test_short_and_blank_texts_are_duplicates_only_when_equal():
    texts = ["hi", "Hi!", " HI\n", "ho", "", " \n", "?", "!", "네", "네.", "a" * 50, "a" * 51]
    assert group_texts(texts[:4]) == [0, 0, 0, 1]
    index = DuplicateIndex()
    index.add(texts)
    assert index.find(texts) == [[0, 1, 2]] * 3 + [[3]] + [[4, 5]] * 2 + [[6], [7], [8, 9], [8, 9], [10], [11]]


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("  Straße\t\nNr. 5 !?", "strasse nr. 5"),
        ("ＡＢＣ　１２３！", "abc 123"),
        ("ｶﾞｲﾄﾞ を 書いて。", "ガイドを書いて"),
        ("用 Python 写 代码", "用python写代码"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        ("C#", "c#"),
        ("5-3", "5-3"),
        ("?!", "?!"),
        ("What’s “it”? ", 'what\'s "it"'),
        ("Tom &amp; Jerry &lt;3", "tom & jerry <3"),
        ("schÃ¶n\u200b und\u00ad \ufefffe\u0301in", "schön und féin"),
        ("\u3164 안녕\ufe0f", "안녕"),
        ("\ud83d", "\ufffd"),
        ("", ""),
    ],
)
def test_normalizing_drops_what_models_do_not_read_and_what_does_not_change_a_task(text, normalized):
    assert normalize_text(text) == normalized == normalize_text(normalized)


def test_numbers_follow_the_order_of_adding_over_several_calls():
    plants = [plant(build_words("English", 30), "English") for plant in PLANTS]
    index = DuplicateIndex()
    assert index.find(plants[:1]) == [[]]
    index.add([])
    index.add([*plants[3:], "hi"])
    index.add(["other"])
    index.add(plants[:3])
    assert index.find([plants[0], "HI", "unseen"]) == [[0, 1, 4, 5, 6], [2], []]


def build_crowd(num_families: int = 40) -> list[str]:
    """Returns families of four copies of 12 words of 6 digits. Each copy has one word of letters, at its own place."""
    choose, crowd = random.Random(1), []
    for _ in range(num_families):
        words = [f"{choose.randrange(10**6):06}" for _ in range(12)]
        crowd += [" ".join([*words[:i], ascii_lowercase[i : i + 6], *words[i + 1 :]]) for i in (0, 3, 6, 9)]
    return crowd


def test_groups_are_the_families_in_any_order():
    crowd = build_crowd()
    groups = np.array(group_texts(crowd))
    assert sorted(set(groups)) == list(range(40))
    assert groups.tolist() == np.repeat(groups[::4], 4).tolist()
    shuffled = np.random.default_rng(0).permutation(len(crowd))
    assert group_texts([crowd[i] for i in shuffled]) == groups[shuffled].tolist()


def test_found_pairs_are_those_of_an_exhaustive_comparison():
    """A copy has 12 x 6 + 11 = 83 letters and 79 shingles of 5. Its own word is in 10 of them, or in 6 if it is first.

    So two copies share 79 - 10 - 10 = 59 of 79 + 20 = 99 (0.596), but the first and another 63 of 95 (0.663).
    """
    crowd = build_crowd()
    shingles = [{text[i : i + 5] for i in range(len(text) - 4)} for text in crowd]
    for threshold, nums_found in [(0.5, [4, 4, 4, 4]), (0.63, [4, 2, 2, 2]), (0.7, [1, 1, 1, 1])]:
        index = DuplicateIndex(threshold)
        index.add(crowd)
        found = index.find(crowd)
        assert found == [[j for j, b in enumerate(shingles) if len(a & b) >= threshold * len(a | b)] for a in shingles]
        assert list(map(len, found)) == nums_found * 40


TEMPLATE = "You are given a product review and must decide whether it is positive or negative. Review: "


def build_near_pairs(num_pairs: int) -> list[tuple[str, str]]:
    """Returns prompts of one template, each with a copy whose last word differs.

    The template has 94 letters; ten words of 7 add 79. A pair differs in the last 7 letters and so in 7 shingles of
    169: similarity 0.92. Others share the template's 90 of 248: similarity 0.36, at which LSH proposes most pairs.
    """
    choose, pairs = random.Random(3), []
    for _ in range(num_pairs):
        words = ["".join(choose.choices(ascii_lowercase, k=7)) for _ in range(11)]
        pairs.append(tuple(TEMPLATE + " ".join([*words[:9], last]) for last in words[9:]))
    return pairs


def test_each_prompt_of_a_large_template_finds_its_own_near_duplicate():
    """Far more prompts are proposed than are compared, and unrelated ones may be the nearest in place."""
    pairs = build_near_pairs(400)
    index = DuplicateIndex()
    index.add([text for text, _ in pairs])
    assert index.find([copy for _, copy in pairs]) == [[number] for number in range(400)]


def test_each_prompt_of_a_large_template_is_grouped_with_its_own_near_duplicate():
    """The template is at the end, so that the two of a pair are not neighbours when sorted."""
    pairs = [[" ".join(reversed(text.split())) for text in pair] for pair in build_near_pairs(300)]
    groups = group_texts([text for pair in pairs for text in pair])
    assert groups[::2] == groups[1::2] and len(set(groups)) == 300


@pytest.mark.parametrize(
    "conversation",
    [
        f"[Turn 1] {WORDS['English']}\n\n[Turn 2] Now in French.",
        f"[User] {WORDS['English']}\n\n[Assistant] It falls.\n\n[User] Now in French.",
        f"[System] Be brief.\n\n[User] {WORDS['English'].upper()}?\n\n[Assistant] It falls.\n\n[User] Why?",
    ],
)
def test_a_conversation_is_a_duplicate_of_its_first_turn_both_ways(conversation):
    for added, asked in ((WORDS["English"], conversation), (conversation, WORDS["English"])):
        index = DuplicateIndex()
        index.add(["something else", added])
        assert index.find([asked]) == [[1]] and asked in index
    assert group_texts([conversation, "something else", WORDS["English"]]) in ([0, 1, 0], [1, 0, 1])


def test_conversations_that_begin_with_a_greeting_stay_apart():
    texts = [f"[Turn 1] Hello\n\n[Turn 2] {words}" for words in (WORDS["English"], WORDS["Korean"])]
    texts += ["Hello", "[Turn 1] 안녕\n\n[Turn 2] 안녕"]
    assert len(set(group_texts(texts))) == 4
    index = DuplicateIndex()
    index.add(texts)
    assert index.find(texts) == [[0], [1], [2], [3]]


def test_joining_is_transitive():
    """Neighbours in the chain share 18 of 20 words; its two ends share none."""
    words = [f"word{i:04}" for i in range(60)]
    chain = [" ".join(words[i : i + 20]) for i in range(0, 41, 2)]
    index = DuplicateIndex()
    index.add(chain)
    assert 20 not in index.find(chain)[0]
    assert group_texts(chain) == [0] * 21


def test_a_crowd_of_one_text_or_template_is_not_quadratic():
    """All pairs of 20,000 texts would be 200 million and take hours. The template's slot is 1 of its 12 words."""
    start = time.process_time()
    template = "please act as an expert travel guide and describe the sights of {}"
    assert set(group_texts([template] * 20_000)) == {0}
    assert set(group_texts([template.format(i) for i in range(3_000)])) == {0}
    index = DuplicateIndex()
    index.add([template.format(i) for i in range(3_000)])
    found = index.find([template.format(i) for i in range(0, 3_000, 25)])
    assert all(i * 25 in numbers and len(numbers) <= 3_000 for i, numbers in enumerate(found))
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("alphabet", "num_characters"),
    [("abcdefghijklmnopqrst ", 1_000_000), ("春夏秋冬山川草木雨雪風花月日星空海河石火土金木水", 333_333)],
)
def test_a_text_of_a_megabyte_is_no_obstacle(alphabet, num_characters):
    text = "".join(random.Random(0).choices(alphabet, k=num_characters))
    start = time.process_time()
    index = DuplicateIndex()
    index.add([text, "short"])
    assert index.find([text[: -num_characters // 20]]) == [[0]]
    assert time.process_time() - start < 6  # 1 s on an idle machine


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01])
@pytest.mark.parametrize("build", [DuplicateIndex, lambda threshold: group_texts(["a"], threshold)])
def test_a_threshold_out_of_range_is_an_error(build, threshold):
    with pytest.raises(ValueError, match=rf"threshold: expected a similarity in \(0, 1\]; found {threshold}"):
        build(threshold)


def test_no_texts_have_no_groups():
    assert group_texts([]) == [] and DuplicateIndex().find([]) == []


def test_chance_misses_few_pairs_at_the_threshold():
    """One in 1,400, as the module says: the probability that no band of ROWS values agrees."""
    missed = (1 - DEFAULT_THRESHOLD**ROWS) ** BANDS
    assert 1 / 1500 < missed < 1 / 1300
