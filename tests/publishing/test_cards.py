"""A model card states the facts in the files and no more. No model is loaded."""

import copy
import html
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt

from modeling.publishing.cards import build_judge_card, build_member_card, write_card

SHA = "0123456789abcdef" * 4
GEMMA_TERMS = "https://ai.google.dev/gemma/terms"


def estimate(value: float | None, half: float = 0.05, count: int = 65) -> dict:
    ends = (None, None) if value is None else (value - half, value + half)
    return {"value": value, "low": ends[0], "high": ends[1], "count": count}


def build_rows(**battles: int) -> list[dict]:
    """Rows of a table in a report, each with different results."""
    return [
        {"name": name, "battles": count, "accuracy": estimate(0.5 + at / 97, 0.11), "log_loss": estimate(0.6 + at / 89)}
        for at, (name, count) in enumerate(battles.items(), 1)
    ]


REPORT = {
    **{"battles": 72, "decided": 65, "prompts": 70, "draws": 1000, "seed": 0, "confidence": 0.95},
    **{"accuracy": estimate(0.5517), "log_loss": estimate(0.6871, count=72), "brier": estimate(0.2468, count=72)},
    **{"ece": estimate(0.0432), "auc": estimate(0.5992)},
    "baselines": {
        "always a": {"accuracy": estimate(0.4923)},
        "longer wins": {"accuracy": estimate(0.6154)},
        "tf-idf": {"accuracy": estimate(0.5846), "difference": estimate(-0.0329), "log_loss": estimate(0.6789)},
    },
    "position_bias": {"mean_p_first": estimate(0.5812, 0.02), "first_wins": estimate(0.6111), "flip_share": None},
    "length_bias": {"correlation": estimate(-0.0312), "accuracy_length_matched": estimate(0.5238)},
    "tables": {
        "language": build_rows(English=40, Japanese=32),
        "length": build_rows(**{"up to 200": 36, "from 201": 36}),
        "cut": build_rows(whole=61, cut=11),
    },
    **{"reliability": [], "selective": []},
    "readings": [{"name": "ab_ab", "accuracy": estimate(0.5517), "log_loss": estimate(0.6871)}],
    "data": {"battles": {"name": "test.jsonl", "sha256": SHA}},
}
COMMAND = "accelerate launch scripts/train.py --orientation ab --train_file train.jsonl"
FACTS = {
    **{"orientation": "ab", "labels": ["a", "b"], "dtype": "bfloat16", "format": 2, "base_fingerprint": "00ff" * 4},
    "encoding": {
        **{"max_length": 384, "truncation": "balanced", "template": "<prompt>: {prompt}\n\n<response_a>: {first}"},
        **{"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 2},
    },
    "head": {"head_dropout": 0.1, "head_hidden_size": 288},
    "files": {"adapter_model.safetensors": SHA},
    "training": {
        **{"orientation": "ab", "base": "base", "train_file": ["train.jsonl"], "num_folds": None, "lora_r": 16},
        **{"learning_rate": 1.5e-4, "seed": 4242, "command": COMMAND, "seconds": 4384.2, "num_battles": 216},
        "data": [
            {
                **{"role": "train", "source": "train.jsonl", "battles": 216, "sha256": SHA},
                **{"languages": {"English": 120, "Japanese": 96}, "outcomes": {"a": 101, "b": 99, "tie": 16}},
            },
            {
                **{"role": "eval", "source": "test.jsonl", "battles": 72, "sha256": None},
                **{"languages": {"Arabic": 72}, "outcomes": {"a": 33, "b": 32, "tie": 7}},
            },
        ],
        "versions": {"bothways": "0.1.0", "torch": "2.13.0"},
        "launch": {"num_processes": 1, "distributed_type": "NO", "zero_stage": 0},
        "metrics": {"train_loss": 0.6931, "eval_accuracy": 0.5517},
    },
}


@pytest.fixture
def make_member(tmp_path):
    """Writes the JSON files and figures of a member folder; returns the folder."""

    def make(name="ab", facts=FACTS, report=REPORT, base="../base", revision=None, figures=("reliability",)) -> Path:
        folder = tmp_path / name
        (folder / "figures").mkdir(parents=True)
        adapter = {"base_model_name_or_path": base, "revision": revision}
        files = {"member.json": facts, "adapter_config.json": adapter, "evaluation.json": report}
        for file, values in files.items():
            if values is not None:
                (folder / file).write_text(json.dumps(values), encoding="utf-8")
        for figure in figures:
            (folder / "figures" / f"{figure}.png").touch()
        return folder

    return make


@pytest.fixture
def make_judge(make_member, tmp_path):
    """Writes a judge folder of two members that differ in orientation."""

    def make(readings="own", **options) -> Path:
        for orientation in ("ab", "ba"):
            make_member(f"judge/{orientation}", {**FACTS, "orientation": orientation}, **options)
        facts = {"format": 1, "members": ["ab", "ba"], "readings": readings}
        (tmp_path / "judge" / "judge.json").write_text(json.dumps(facts))
        return tmp_path / "judge"

    return make


def change(facts: dict, **training) -> dict:
    return {**copy.deepcopy(facts), "training": {**copy.deepcopy(facts["training"]), **training}}


def render_html(card: str) -> str:
    """The body as the Hub renders it, except that raw HTML is kept, so that injected tags show up."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(ModelCard(card).text)


def read_tables(card: str) -> list[list[str]]:
    """The cells of all rows of all tables, as rendered."""
    rows = re.findall(r"<tr>(.*?)</tr>", render_html(card), re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]


def list_tags(card: str) -> list[str]:
    return re.findall(r"<[a-z/][^>]*>", render_html(card))


def list_keys(card: str) -> list[str]:
    return list(ModelCard(card).data.to_dict())


def show(figure: dict) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


# --- facts ------------------------------------------------------------------------------------------------------------


def test_every_result_is_shown_beside_its_name_with_its_interval(make_member):
    card = build_member_card(make_member())
    tables = read_tables(card)
    assert ["this member", show(REPORT["accuracy"]), "", show(REPORT["log_loss"])] in tables
    for name, figures in REPORT["baselines"].items():
        loss = show(figures["log_loss"]) if "log_loss" in figures else ""
        lead = show(figures["difference"]) if "difference" in figures else ""
        assert [f"baseline: {name}", show(figures["accuracy"]), lead, loss] in tables
    for rows in REPORT["tables"].values():
        for row in rows:
            assert [row["name"], str(row["battles"]), show(row["accuracy"]), show(row["log_loss"])] in tables
    for figure in ("ece", "brier", "auc"):
        assert show(REPORT[figure]) in card
    for bias in ("position_bias", "length_bias"):
        for figure in REPORT[bias].values():
            assert figure is None or show(figure) in card
    assert "whose winner changes with the order: not measured" in card


def test_the_results_show_no_number_that_is_not_in_the_report(make_member):
    """Every number with three decimals is a value or an interval's end from the report."""

    def list_numbers(values) -> set[str]:
        if isinstance(values, dict | list):
            parts = values.values() if isinstance(values, dict) else values
            return set().union(*map(list_numbers, parts))
        return {f"{values:.3f}"} if isinstance(values, float) else set()

    card = build_member_card(make_member())
    found = set(re.findall(r"-?\d\.\d{3}\b", card.split("## Results")[1].split("## Data")[0]))
    assert len(found) > 40 and found <= list_numbers(REPORT)


def test_the_card_shows_settings_data_versions_command_and_time(make_member):
    card = build_member_card(make_member())
    tables = read_tables(card)
    for setting in (
        ["learning_rate", "0.00015"],
        ["seed", "4242"],
        ["num_folds", "none"],
        ["train_file", "train.jsonl"],
        ["encoding.max_length", "384"],
        ["head.head_hidden_size", "288"],
        ["launch.distributed_type", "NO"],
        ["metrics.train_loss", "0.6931"],
        ["base_fingerprint", FACTS["base_fingerprint"]],
    ):
        assert setting in tables
    languages, outcomes = "English 120, Japanese 96", "a 101, b 99, tie 16"
    assert ["train", "train.jsonl", "216", languages, outcomes, SHA[:12]] in tables
    assert ["eval", "test.jsonl", "72", "Arabic 72", "a 33, b 32, tie 7", "not recorded"] in tables
    assert f"```bash\n{COMMAND}\n```" in card
    assert "Time: 1 h 13 min. Versions: bothways 0.1.0, torch 2.13.0." in card


def test_a_member_without_recorded_facts_says_so(make_member):
    bare = {name: FACTS[name] for name in ("orientation", "labels")}
    card = build_member_card(make_member(facts=bare, report=None, base=None, figures=()))
    for sentence in (
        "**Not evaluated**",
        "No report on held-out battles",
        "Command: not recorded.",
        "Time: not recorded. Versions: not recorded.",
        "## Data\n\nNot recorded.",
        "languages of its training battles are not recorded",
        "its licence is not recorded. See the base's own page.",
    ):
        assert sentence in card
    assert "None" not in card and ".png" not in card
    data = ModelCard(card).data
    assert not any((data.eval_results, data.language, data.license, data.base_model, data.datasets, data.metrics))


def test_a_run_with_metrics_but_no_report_is_not_called_unevaluated(make_member):
    card = build_member_card(make_member(report=None))
    assert "**No report**" in card and "Not evaluated" not in card and "| metrics.eval_accuracy | 0.5517 |" in card


def test_the_same_facts_give_the_same_bytes_in_any_folder(make_member, tmp_path):
    first, second = (build_member_card(make_member(name)) for name in ("one/ab", "two/.ab.new"))
    assert first == second
    assert str(tmp_path) not in first and not re.search(r"(?<![\w.:/<])/[a-z]+/", first)


def test_write_card_writes_the_card_of_the_folder(make_member):
    """Without a report, README.md is the only new file."""
    folder = make_member(report=None)
    before = set(folder.rglob("*"))
    write_card(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == build_member_card(folder)
    assert set(folder.rglob("*")) - before == {folder / "README.md"}


def test_pictures_are_linked_where_they_exist(make_member):
    one = build_member_card(make_member(figures=("reliability", "unknown")))
    assert re.findall(r"\]\((.*\.png)\)", one) == ["figures/reliability.png"]
    names = ("reliability", "position_bias", "languages", "length_bias", "selective")
    card = build_member_card(make_member("all", figures=names))
    assert re.findall(r"\]\((.*\.png)\)", card) == [f"figures/{name}.png" for name in names]


def test_a_long_table_is_folded_away_and_a_short_one_is_not(make_member):
    report = copy.deepcopy(REPORT)
    report["tables"]["language"] = build_rows(**{f"language {at}": at for at in range(1, 10)})
    assert "<summary>Per language, 9 rows</summary>" in build_member_card(make_member(report=report))
    assert "<summary>Per" not in build_member_card(make_member("short"))


@pytest.mark.parametrize(
    "orientation, said",
    [("ab", "me/judge-one THE_BA_MEMBER"), ("ba", "me/judge-one THE_AB_MEMBER"), ("both", "reads each battle in both")],
)
def test_the_card_says_how_members_are_combined(make_member, orientation, said):
    card = build_member_card(make_member(facts={**FACTS, "orientation": orientation}), "me/judge-one")
    use = card.split("## Use")[1].split("## Limitations")[0]
    assert said in use and ("_MEMBER" in use) == (orientation != "both")
    assert "in both orders and averages them" in use and ("`--readings own`" in use) == (orientation != "both")
    assert ("the results above are of that order alone" in use) == (orientation != "both")
    assert "--judge me/judge-one --output_dir" in use and 'from_pretrained(["me/judge-one"])' in use


@pytest.mark.parametrize("readings", ["own", "both"])
def test_the_snippets_read_as_the_judge_was_published(make_judge, readings):
    card = build_judge_card(make_judge(readings), "me/judge")
    compile(re.search(r"```python\n(.*?)```", card, re.S)[1], "snippet", "exec")
    assert ('readings="both"' in card) == ("--judge me/judge --readings both" in card) == (readings == "both")


def test_a_judge_shows_its_members_and_what_they_share_once(make_judge):
    folder = make_judge()
    card = build_judge_card(folder)
    tables = read_tables(card)
    assert "**Not evaluated** as a whole" in card
    for name, order in (("ab", "answer a first, then b"), ("ba", "answer b first, then a")):
        assert [name, "72", show(REPORT["accuracy"]), show(REPORT["log_loss"])] in tables
        assert [f"Member {name}", f"{order}; LoRA adapter and head, bfloat16"] in tables
        assert f"### Member {name}" in card
    assert sum(row[0] == "Base" for row in tables) == sum(row[0] == "train" for row in tables) == 1
    (folder / "evaluation.json").write_text(json.dumps(REPORT))
    card = build_judge_card(folder)
    assert ["this judge", show(REPORT["accuracy"]), "", show(REPORT["log_loss"])] in read_tables(card)


def test_what_follows_from_the_facts_is_listed_under_limitations(make_member):
    """test_limitations.py tests the sentences themselves."""
    limitations = build_member_card(make_member()).split("## Limitations")[1].split("## Data")[0]
    for sentence in (
        "trained on 2 languages (English 120, Japanese 96)",
        'is below that of the baseline "longer wins", 0.615.',
        "answer shown first: mean probability of the first answer 0.581",
        "longer than 384 tokens",
        "Evaluation battles: whole 61, cut 11.",
        "does not judge whether an answer is true",
    ):
        assert sentence in limitations


# --- the Hub's metadata -----------------------------------------------------------------------------------------------


def test_the_metadata_block_is_what_the_hub_library_reads_and_writes(make_member):
    """huggingface_hub's parser accepts it, and a round trip gives the same facts."""
    content = build_member_card(make_member(base="me/base", revision="f00d" * 10), "me/member")
    data = ModelCard(content).data
    again = ModelCardData(**ModelCard(str(ModelCard(content))).data.to_dict())
    assert again.to_dict() == data.to_dict() and again.eval_results == data.eval_results
    assert (data.library_name, data.pipeline_tag, data.base_model) == ("bothways", "text-classification", "me/base")
    assert data["base_model_relation"] == "adapter" and data.language == ["en", "ja"] and data.model_name == "member"
    figures = {result.metric_type: result for result in data.eval_results}
    assert set(figures) == set(data.metrics) == {"accuracy", "log_loss", "brier_score", "ece", "roc_auc"}
    for name, metric in (("accuracy", "accuracy"), ("auc", "roc_auc"), ("brier", "brier_score")):
        assert figures[metric].metric_value == REPORT[name]["value"]
        assert figures[metric].metric_args == {key: REPORT[name][key] for key in ("low", "high", "count")}
    accuracy = figures["accuracy"]
    assert accuracy.metric_name == "accuracy, 65 battles, 95% interval [0.502, 0.602]"
    assert (accuracy.dataset_type, accuracy.dataset_name) == ("unknown", "test.jsonl, 72 battles")


def test_the_publishers_licence_is_in_text_and_metadata_unless_the_bases_terms_bind(make_member):
    free = make_member("free", base="Qwen/Qwen2.5-7B", revision="f00d" * 10)
    card = build_member_card(free, "me/member", "apache-2.0")
    assert ModelCard(card).data.license == "apache-2.0" and "- This member: apache-2.0, chosen by" in card
    assert ModelCard(build_member_card(free, "me/member")).data.license is None
    bound = make_member("bound", base="me/gemma-2-9b-8bit", revision="f00d" * 10)
    assert ModelCard(build_member_card(bound, "me/member", "gemma")).data.license == "gemma"
    with pytest.raises(ValueError, match="--license mit: expected gemma"):
        build_member_card(bound, "me/member", "mit")


def test_what_the_hub_cannot_look_up_is_left_out(make_member):
    """A local base, local sources, languages without a code, a metric that was not measured."""
    facts = change(FACTS)
    facts["training"]["data"][0]["languages"] = {"Klingon": 3, "ko": 2, "unknown": 1, "Norwegian": 1}
    facts["training"]["data"][0]["source"] = "mine/battles.jsonl"
    data = ModelCard(build_member_card(make_member(facts=facts, report={**REPORT, "auc": estimate(None)}))).data
    assert data.base_model is None and data.datasets is None and data.language == ["ko", "no"]
    assert "base_model_relation" not in data and "roc_auc" not in data.metrics


def test_data_sets_of_the_hub_are_named_without_revision_and_split(make_member):
    facts = change(FACTS)
    facts["training"]["data"][0]["source"] = "lmarena-ai/battles@main:train"
    facts["training"]["data"][1]["source"] = "other/held-out"
    report = {**REPORT, "data": {"battles": {"name": "other/held-out@abc", "sha256": None}}}
    data = ModelCard(build_member_card(make_member(facts=facts, report=report))).data
    assert data.datasets == ["lmarena-ai/battles"]
    assert {(result.dataset_type, result.dataset_revision) for result in data.eval_results} == {
        ("other/held-out", "abc")
    }


def test_a_judge_of_two_bases_names_both(make_judge):
    folder = make_judge(base="me/gemma-2-9b-8bit", revision="f00d")
    adapter = {"base_model_name_or_path": "me/other", "revision": "beef"}
    (folder / "ba" / "adapter_config.json").write_text(json.dumps(adapter))
    card = build_judge_card(folder, "me/judge")
    data = ModelCard(card).data
    assert data.base_model == ["me/gemma-2-9b-8bit", "me/other"] and data.license == "gemma"
    assert "[me/other](https://huggingface.co/me/other) at revision beef" in card


# --- licences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base, licence, said",
    [
        ("google/gemma-2-9b-it", "gemma", GEMMA_TERMS),
        ("me/Gemma3-1b-8bit", "gemma", GEMMA_TERMS),
        ("sfairXC/FsfairX-Gemma2-RM-v0.1", "gemma", GEMMA_TERMS),
        ("google/gemma-4-31b", None, "not recorded"),  # under another licence
        ("Qwen/Qwen2.5-7B-Instruct", None, "Apache-2.0"),
        ("Qwen/Qwen2.5-3B-Instruct", None, "not recorded"),  # for research alone
        ("Qwen/Qwen2.5-72B-Instruct", None, "not recorded"),  # under Qwen's own
        ("HuggingFaceTB/SmolLM2-135M-Instruct", None, "Apache-2.0"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", None, "[MIT]"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", None, "not recorded"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1", "Llama 3.1 Community License"),
        ("me/Meta-Llama-3-8B", "llama3", "Llama 3 Community License"),
        ("TinyLlama/TinyLlama-1.1B", None, "not recorded"),
        ("me/judge-base", None, "not recorded"),
    ],
)
def test_a_licence_is_named_where_the_base_says_it_and_binds_where_it_does(make_member, base, licence, said):
    card = build_member_card(make_member(base=base, revision="f00d"))
    section = card.split("## Licence")[1]
    assert said in section and ModelCard(card).data.license == licence
    assert ("bind what is made" in section) == (licence is not None)
    assert "Training data: licences are not recorded" in section


def test_a_folders_name_is_no_licence_but_a_gemma_tokenizer_is_a_hint(make_member):
    folder = make_member(base="../gemma-base")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    card = build_member_card(folder)
    assert f"if the base was made from Gemma, the [Gemma Terms of Use]({GEMMA_TERMS}) apply" in card
    assert ModelCard(card).data.license is None


def test_a_merged_gemma_is_under_the_gemma_terms(make_member):
    folder = make_member()
    (folder / "adapter_config.json").unlink()
    (folder / "config.json").write_text('{"model_type": "gemma2_preference"}')
    card = build_member_card(folder)
    assert ModelCard(card).data.license == "gemma" and "adapter and base merged" in card
    assert "lora" not in ModelCard(card).data.tags


# --- text is data -----------------------------------------------------------------------------------------------------

HOSTILE = (
    "|",
    "a | b",
    "<script>alert(1)</script>",
    "</details><img src=x onerror=alert(1)>",
    "new\nline\r\n\n---\n# heading",
    "---",
    "```",
    "`code` *bold* _it_ __strong__ ~~gone~~ $$x$$",
    "[link](javascript:alert(1))",
    "![](https://example.org/x.png)",
    "https://example.org www.example.org me@example.org",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt; &#124;",
    "\\| \\( x \\)",
    ": - ? !!python/object:os.system",
    "\x00\u202egnol\u2028",
    "\ud800",
)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_shows_as_it_is_and_changes_nothing_else(make_member, text):
    """In place of every name, it leaves rows, tags and metadata as with a harmless name, and is shown literally."""

    def build(folder: str, word: str) -> str:
        report = copy.deepcopy(REPORT)
        report["tables"] = {"language": build_rows(**{word: 40}), "source": build_rows(**{word: 3})}
        report["baselines"] = {word: {"accuracy": estimate(0.6)}}
        report["data"]["battles"]["name"] = word
        data = [{"role": word, "source": word, "battles": 1, "sha256": word, "languages": {word: 1}, "outcomes": {}}]
        facts = change(FACTS, data=data, versions={"bothways": word, word: word}, **{f"x{word}": [word]})
        facts["dtype"] = facts["base_fingerprint"] = word
        return build_member_card(make_member(folder, facts, report, base=word))

    plain, card = build("plain", "Klingon"), build("hostile", text)
    for read in (list_tags, lambda content: list(map(len, read_tables(content))), list_keys):
        assert read(card) == read(plain)
    if text.isprintable():
        assert html.unescape(render_html(card)).count(text) >= 12


def test_a_command_cannot_leave_its_block(make_member):
    command = "train.py --run_name '```\n<script>\n````'"
    card = build_member_card(make_member(facts=change(FACTS, command=command)))
    assert "<script>" not in render_html(card) and "&lt;script&gt;" in render_html(card)


def test_a_very_long_name_is_cut(make_member):
    card = build_member_card(make_member(facts=change(FACTS, run_name="x" * 10**6)))
    assert len(card) < 20_000


def test_no_token_and_no_folder_of_the_machine_reaches_the_card(make_member):
    secrets = {"hub_token": "secret-1", "output_dir": "/home/me/outputs/ab", "report": {"api_token": "secret-2"}}
    command = "train.py --hub_token secret-3 --train_file /home/me/x.parquet"
    facts = change(FACTS, command=command, **secrets)
    card = build_member_card(make_member(facts=facts, base="/home/me/base"))
    assert "secret" not in card and "/home" not in card and "| output_dir | ab |" in card


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [{"accuracy": "0.5"}, {"tables": None}, {"accuracy": {"value": "x"}}])
def test_a_report_of_another_format_is_an_error_that_names_the_folder(make_member, broken):
    folder = make_member(report={**REPORT, **broken})
    with pytest.raises(ValueError, match=rf"Card {re.escape(str(folder))}: expected .*; found"):
        build_member_card(folder)


def test_mistakes_are_said(make_member, make_judge):
    folder = make_member()
    with pytest.raises(ValueError, match="Repo id"):
        build_member_card(folder, "no id!")
    (folder / "member.json").write_text("{")
    with pytest.raises(ValueError, match="expected the facts of a member"):
        build_member_card(folder)
    for facts in ({}, {"orientation": "ab"}, {"orientation": ["ab"], "labels": ["a", "b"]}):
        (folder / "member.json").write_text(json.dumps(facts))
        with pytest.raises(ValueError, match="expected orientation and labels"):
            build_member_card(folder)
    with pytest.raises(FileNotFoundError):
        build_judge_card(folder)
    judge = make_judge()
    (judge / "judge.json").write_text('{"format": 1, "members": ["../ab"]}')
    with pytest.raises(ValueError, match="names of folders beside it"):
        build_judge_card(judge)


def test_a_card_does_not_name_the_version_of_a_clone_that_was_not_installed(make_member):
    named = build_member_card(make_member("named"))
    versions = {**FACTS["training"]["versions"], "bothways": "not installed"}
    unnamed = build_member_card(make_member("unnamed", facts=change(FACTS, versions=versions)))
    assert "was made with version" in named and "Install Bothways and run" in unnamed
