"""Members as stock models: read by an interpreter that never imports this package, and what cannot be one."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, Gemma2Config, Gemma3TextConfig, LlamaConfig, Qwen2Config, set_seed

from modeling.encoding.encoder import BattleEncoder, build_encoding
from modeling.judging.canaries import (
    CANARY_TOKENS,
    CanaryMismatch,
    compute_canary_logits,
    load_canaries,
    record_canaries,
)
from modeling.judging.loading import load_judge
from modeling.network.base import BaseFiles, find_base, load_base, save_base
from modeling.network.classifier import Gemma2PreferenceConfig, PreferenceHead, find_stock_class
from modeling.publishing import stock
from modeling.publishing.stock import (
    FACTS_FILE,
    build_messages,
    check_head,
    choose_padding,
    export_member,
    measure_bias,
)
from modeling.settings.train_arguments import TrainArguments
from tests.helpers import REPOSITORY, SMALL
from tests.hub_stub import USER

CONFIGS = (Gemma2Config, Gemma3TextConfig, LlamaConfig, Qwen2Config)
FORMS = ("merged", "adapter")
LINEAR = {"head_hidden_size": 0, "head_bias": False}

# What a program without this package does: loads each folder and reads rows of ids, padded on the right.
PROGRAM = """
import json, sys, torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification
tasks, found = json.load(open(sys.argv[1])), []
for task in tasks:
    base = task["folder"] + ("/base" if task["form"] == "adapter" else "")
    pad = {"num_labels": 2, "pad_token_id": task["pad"]} if task["form"] == "adapter" else {}
    model = AutoModelForSequenceClassification.from_pretrained(base, **pad)
    if task["form"] == "adapter":
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, task["folder"])
    rows = [torch.tensor(row) for row in task["rows"]]
    ids = pad_sequence(rows, batch_first=True, padding_value=task["pad"])
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    with torch.inference_mode():
        logits = model.eval()(input_ids=ids, attention_mask=mask).logits
    found.append({"name": type(getattr(model, "base_model", model)).__name__, "p": logits.softmax(-1).tolist()})
assert "modeling" not in sys.modules
json.dump(found, open(sys.argv[2], "w"))
"""


@pytest.fixture
def publish(monkeypatch):
    """Runs scripts/publish.py in this process."""

    def run(*flags) -> None:
        monkeypatch.setattr(sys, "argv", ["publish.py", *map(str, flags)])
        runpy.run_path(str(REPOSITORY / "scripts" / "publish.py"), run_name="__main__")

    return run


def run_outside(program: str, folder: Path, *arguments: str) -> None:
    """Runs a program in a new interpreter, in another folder, without this clone on its path."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def linear_members(tmp_path_factory, make_member, tokenizer) -> dict[str, Path]:
    """A float32 member of each family with a linear head without a bias, on a plain base; one reads b first."""
    folders = {}
    for config in CONFIGS:
        folder = tmp_path_factory.mktemp(config.model_type)
        set_seed(0)
        plain = find_stock_class(config.model_type)(config(**SMALL, initializer_range=0.3, num_labels=1))
        plain.save_pretrained(folder / "plain")
        tokenizer.save_pretrained(folder / "plain")
        orientation = "ba" if config is LlamaConfig else "ab"
        make_member(folder / "member", BaseFiles(folder / "plain"), orientation, **LINEAR)
        folders[config.model_type] = folder / "member"
    return folders


@pytest.fixture(scope="module")
def exports(linear_members, tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Each of those members in both forms, in float32."""
    folder = tmp_path_factory.mktemp("exports")
    made = {(family, form): folder / family / form for family in linear_members for form in FORMS}
    for (family, form), output in made.items():
        export_member(str(linear_members[family]), output, form, "float32")
    return made


def encode_canaries(folder: Path) -> tuple[list[list[int]], torch.Tensor]:
    """Ids of the canary battles, whole as the member cuts them and at 64 tokens, and the member's probabilities."""
    (member,) = load_judge([str(folder)])
    order, battles = member.facts.orientation, load_canaries()
    short = BattleEncoder(member.encoder.tokenizer, build_encoding(member.encoder.tokenizer, CANARY_TOKENS, "balanced"))
    ids, found = [], []
    for encoder in (member.encoder, short):
        ids += [row["input_ids"] for row in encoder.encode(encoder.clean_battles(battles), order)]
        found.append(compute_canary_logits(member.activate(), encoder, battles, order).softmax(-1))
    return ids, torch.cat(found)


def test_a_stock_model_gives_the_members_probabilities_without_this_package(exports, linear_members, tmp_path):
    """Four families, merged and as an adapter, in float32: within 1e-5."""
    expected = {family: encode_canaries(folder) for family, folder in linear_members.items()}
    tasks = [
        {"folder": str(folder), "form": form, "rows": expected[family][0], "pad": 0}
        for (family, form), folder in exports.items()
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    run_outside(PROGRAM, tmp_path, str(tmp_path / "tasks.json"), str(tmp_path / "found.json"))
    for (family, form), found in zip(exports, json.loads((tmp_path / "found.json").read_text()), strict=True):
        p = expected[family][1]
        assert p.std(dim=0).min() > 0.02, "the battles must not all look alike"
        assert (torch.tensor(found["p"]) - p).abs().max() <= 1e-5, (family, form)


def test_the_example_in_the_card_reads_a_battle(exports, linear_members, tmp_path):
    """The text's path: tokenizer and chat template give the encoder's ids, with the answers in the member's order."""
    battle = load_canaries()[2]
    (member,) = load_judge([str(linear_members["llama"])])
    cleaned = {name: text[:15] for name, text in member.encoder.clean_battles([battle])[0].items()}  # nothing is cut
    by_slot = compute_canary_logits(member.activate(), member.encoder, [cleaned], "ba").softmax(-1)[0].tolist()
    for form in FORMS:
        folder = exports["llama", form]
        (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
        texts = {"prompt": cleaned["prompt"], "first": cleaned["response_b"], "second": cleaned["response_a"]}
        lines = [f"{name} = {text!r}" for name, text in texts.items()] + [code.replace("DIR", str(folder))]
        lines += ["import json, sys", "assert 'modeling' not in sys.modules"]
        lines += ["json.dump([p_first, p_second], open('found.json', 'w'))"]
        run_outside("\n".join(lines), tmp_path)
        assert json.loads((tmp_path / "found.json").read_text()) == pytest.approx(by_slot, abs=1e-5)


@pytest.mark.parametrize("family", [config.model_type for config in CONFIGS])
def test_what_is_written_is_stock(family, exports):
    """Plain architecture and model type, one linear layer without a bias, and nothing of this machine."""
    merged, adapter = exports[family, "merged"], exports[family, "adapter"]
    name = find_stock_class(family).__name__
    for folder in (merged, adapter / "base"):
        config = json.loads((folder / "config.json").read_text())
        assert (config["architectures"], config["model_type"], config["dtype"]) == ([name], family, "float32")
        assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (2, 1, 0)
        assert config["id2label"] == {"0": "first", "1": "second"} and "head_bias" not in config
        with safe_open(folder / "model.safetensors", "pt") as file:
            heads = {key: file.get_slice(key).get_shape() for key in file.keys() if key.startswith("score")}  # noqa: SIM118
        assert heads == {"score.weight": [2, 64]}
    weights = load_file(adapter / "adapter_model.safetensors")
    assert [key for key in weights if "score" in key] == ["base_model.model.score.weight"]
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["modules_to_save"]) == ("SEQ_CLS", ["score"])
    assert settings["base_model_name_or_path"] == "base" and settings["revision"] is None
    for path in [*merged.rglob("*.*"), *adapter.rglob("*.*")]:
        if path.suffix in (".json", ".md", ".jinja"):
            assert str(merged.parents[1]) not in path.read_text(), path


def test_the_facts_are_enough_to_check_a_server(exports, linear_members):
    """Ids and probabilities by slot of all passes; Llama's member reads b first."""
    facts = json.loads((exports["llama", "merged"] / FACTS_FILE).read_text())
    ids, p = encode_canaries(linear_members["llama"])
    assert [each["input_ids"] for each in facts["canaries"]] == ids[8:]
    found = torch.tensor([each["probabilities"] for each in facts["canaries"]])
    assert (found - p[8:]).abs().max() <= 1e-5
    assert (facts["orientation"], facts["encoding"]["pad_token_id"], facts["slots"]) == ("ba", 0, ["first", "second"])


def test_the_page_on_publishing_has_the_cards_commands_and_the_heads_sizes():
    page = " ".join((REPOSITORY / "docs" / "publishing.md").read_text().split())
    for form, folder in (("merged", "outputs/linear/stock"), ("adapter", "outputs/linear/stock-adapter")):
        names = {"BASE": f"{folder}/base", "DIR": folder, "RANK": str(TrainArguments.lora_r)}
        lines = [line for line in stock.SERVERS[form].splitlines() if re.match(r" *(vllm|python) ", line)]
        for line in lines:
            assert re.sub("BASE|DIR|RANK", lambda found, names=names: names[found[0]], line.strip()) in page
    assert stock.LARGEST_SHIFT == 1e-6 and "by more than 1e-6" in page
    configs = [Gemma2PreferenceConfig(hidden_size=3584, **head) for head in ({}, LINEAR)]
    mlp, linear = (sum(parameter.numel() for parameter in PreferenceHead(config).parameters()) for config in configs)
    assert f"the MLP head has {mlp:,} parameters and the stock head {linear:,}" in page


def test_the_card_says_the_exact_text_and_what_was_not_run(exports):
    for form, server in (("merged", "vllm serve DIR --runner"), ("adapter", "--lora-modules member=DIR")):
        card = (exports["gemma2", form] / "README.md").read_text()
        assert "<prompt>: {prompt}\n\n<response_a>: {first}\n\n<response_b>: {second}" in card
        assert "**not run**" in card and server in card and "`Gemma2ForSequenceClassification`" in card
        assert "between the ids bos 2 and eos 1" in card and "The first answer is answer a." in card
        assert "at most 128 tokens" in card and "license: gemma" in card
    assert "--max-lora-rank 4" in card


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", ["8bit", "4bit"])
def test_a_member_on_a_quantised_base_gets_plain_weights(
    base, form, plain_backbone, tokenizer, make_member, tmp_path, caplog, publish
):
    """A base of our own architecture; the canaries' tolerance is that of bf16."""
    model = load_base(BaseFiles(plain_backbone), dtype="bfloat16", quantization=base, **LINEAR)
    save_base(tmp_path / "base", model, tokenizer)
    make_member(tmp_path / "ab", find_base(str(tmp_path / "base")), "both", dtype="bfloat16")
    caplog.set_level("INFO")
    publish("--member", tmp_path / "ab", "--stock", form, "--output_dir", tmp_path / "out")
    assert "canary probabilities changed by at most" in caplog.text
    folder = tmp_path / "out" / ("base" if form == "adapter" else "")
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    facts = json.loads((tmp_path / "out" / FACTS_FILE).read_text())
    assert [each["order"] for each in facts["canaries"]] == ["ab"] * 8 + ["ba"] * 8


def test_a_stock_base_on_the_hub_is_named_and_not_copied(hub, plain_backbone, make_member, tmp_path):
    repo = f"{USER}/plain"
    hub.put(repo, {path.name: path.read_bytes() for path in plain_backbone.iterdir()})
    base = find_base(repo)
    make_member(tmp_path / "ab", base, "ab", **LINEAR)
    export_member(str(tmp_path / "ab"), tmp_path / "out", "adapter", "float32")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == (repo, base.revision)
    assert not (tmp_path / "out" / "base").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f'"{repo}", revision="{base.revision}", num_labels=2, pad_token_id=0' in card
    assert f"vllm serve {repo} --revision {base.revision} --runner pooling" in card


# --- padding and text -------------------------------------------------------------------------------------------------


def test_a_tokenizer_that_pads_with_eos_gets_another_pad_token(linear_members, tokenizer, tmp_path):
    """Else the stock head would read the token before eos: in a battle too, not only in a padded one."""
    member = shutil.copytree(linear_members["qwen2"].parent, tmp_path / "copy") / "member"
    own = json.loads((member / "tokenizer_config.json").read_text())
    (member / "tokenizer_config.json").write_text(json.dumps(own | {"pad_token": "<eos>"}))
    facts = json.loads((member / "member.json").read_text())
    del facts["files"]["tokenizer_config.json"]
    (member / "member.json").write_text(json.dumps(facts))
    export_member(str(member), tmp_path / "out", "merged", "float32")  # replays the canaries, padded
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.pad_token_id, config.eos_token_id) == (0, 1)
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (written["pad_token"], written["eos_token"]) == ("<pad>", "<eos>")


def test_the_pad_token_is_one_that_no_battle_contains(tokenizer, smollm_tokenizer):
    encoding = build_encoding(tokenizer, 128, "balanced")
    assert choose_padding("M", tokenizer, encoding, 400) == tokenizer.pad_token_id == 0
    smollm = build_encoding(smollm_tokenizer, 128, "balanced")
    assert smollm.pad_token_id == smollm.eos_token_id
    pad = choose_padding("M", smollm_tokenizer, smollm, len(smollm_tokenizer))
    assert pad in smollm_tokenizer.all_special_ids or smollm_tokenizer.added_tokens_decoder[pad].special
    assert pad not in (smollm.bos_token_id, smollm.eos_token_id, smollm_tokenizer.unk_token_id)
    with pytest.raises(ValueError, match="M: expected a special token besides bos and eos, to pad with; found none"):
        choose_padding("M", tokenizer, encoding, 0)  # no embedding for any of them


def test_a_chat_template_that_gives_other_ids_is_left_out(linear_members, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stock, "build_chat_template", lambda encoding: "{{ messages[0]['content'] }}")
    export_member(str(linear_members["qwen2"]), tmp_path / "out", "merged", "float32")
    assert "Chat template: left out" in caplog.text and not list((tmp_path / "out").glob("*.jinja"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "so send token ids" in card and "apply_chat_template" not in card


@pytest.mark.parametrize("name", ["tokenizer", "smollm_tokenizer", "gemma_tokenizer"])
def test_the_chat_template_gives_the_encoders_ids(name, request, sample_battles):
    """For 18 languages, with this project's tokenizers, real ones included."""
    tokenizer = request.getfixturevalue(name)
    encoding = build_encoding(tokenizer, 1 << 20, "balanced")
    encoder = BattleEncoder(tokenizer, encoding)
    cleaned = encoder.clean_battles(sample_battles.to_list())
    template = stock.build_chat_template(encoding)
    for battle, encoded in zip(cleaned, encoder.encode(cleaned, "ab"), strict=True):
        found = tokenizer.apply_chat_template(
            build_messages(battle), chat_template=template, tokenize=True, return_dict=False
        )
        assert found == encoded["input_ids"]


# --- what cannot be stock ---------------------------------------------------------------------------------------------


def test_a_head_that_no_stock_model_has_is_refused_and_nothing_is_written(members, tmp_path, publish, caplog):
    with pytest.raises(SystemExit):
        publish("--member", members["ab"], "--stock", "merged", "--output_dir", tmp_path / "out")
    said = caplog.messages[-1]
    assert "expected a linear head, as stock models have; found an MLP of width 32" in said
    assert "--head_hidden_size 0 --head_bias false" in said and not (tmp_path / "out").exists()


def test_the_head_is_checked_before_anything_is_loaded():
    bias = {"base_model.model.score.out.bias": torch.tensor([0.5, 0.1])}
    linear = {"head_hidden_size": 0, "pooling": "last"}
    with pytest.raises(ValueError, match=r"M: expected a head that reads the last token.*; found --pooling mean"):
        check_head("M", linear | {"pooling": "mean"}, {})
    with pytest.raises(ValueError, match=r"found an MLP of width None"):  # a member of before head_hidden_size
        check_head("M", {}, {})
    with pytest.raises(ValueError, match=r"M: expected a head without a bias, .* moves a probability by up to 0.1\. "):
        check_head("M", linear, bias)
    check_head("M", linear, {"base_model.model.score.out.bias": torch.tensor([7.0, 7.0 + 2e-6])})
    check_head("M", linear, {})


@pytest.mark.parametrize("difference", [0.4, -3.0, 0.0])
def test_a_bias_moves_a_probability_by_at_most_tanh_of_a_quarter_of_the_difference(difference):
    """Against the largest change over a fine grid of logits; it is reached."""
    logits = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    largest = (torch.sigmoid(logits + difference) - torch.sigmoid(logits)).abs().max().item()
    assert measure_bias(torch.tensor([1.0, 1.0 + difference])) == pytest.approx(largest, abs=1e-6)


def test_a_bias_counts_by_the_difference_of_its_two_numbers(plain_backbone, make_member, tmp_path):
    """Softmax over two labels does not see what both have in common, so equal biases can be left out."""
    make_member(tmp_path / "ab", BaseFiles(plain_backbone), "ab", head_hidden_size=0)  # random biases
    with pytest.raises(ValueError, match="expected a head without a bias"):
        export_member(str(tmp_path / "ab"), tmp_path / "out", "merged", "float32")
    weights = load_file(tmp_path / "ab" / "adapter_model.safetensors")
    weights["base_model.model.score.out.bias"][:] = 3.0
    save_file(weights, tmp_path / "ab" / "adapter_model.safetensors", metadata={"format": "pt"})
    facts = json.loads((tmp_path / "ab" / "member.json").read_text())
    (tmp_path / "ab" / "member.json").write_text(json.dumps(facts | {"files": {}}))
    (member,) = load_judge([str(tmp_path / "ab")], skip_probes=True)
    canaries = record_canaries(member.activate(), member.encoder, ["ab"], "float32")
    (tmp_path / "ab" / "probes.json").write_text(json.dumps(canaries))
    export_member(str(tmp_path / "ab"), tmp_path / "out", "merged", "float32")  # replays them


def test_a_stock_model_that_answers_otherwise_is_an_error(linear_members, tmp_path, monkeypatch):
    build = stock.build_stock_config
    monkeypatch.setattr(stock, "build_stock_config", lambda config, pad: build(config, config.eos_token_id))
    monkeypatch.setattr(stock, "load_stock", lambda *given, load=stock.load_stock: load(*given[:3], 1, given[4]))
    with pytest.raises(CanaryMismatch, match=r"as a stock model: expected the probabilities of its canary battles"):
        export_member(str(linear_members["qwen2"]), tmp_path / "out", "merged", "float32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--output_dir", "x", "--repo", "a/b"],
            "--stock: expected only --member, --output_dir and --dtype; found --repo",
        ),
        (["--output_dir", "x", "--merged", "true"], "found --merged. Write the folder first, then upload it with `hf"),
        (["--output_dir", "x", "--report", "r"], "found --report"),
        ([], "Expected --output_dir"),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags, expected, members, publish, caplog):
    with pytest.raises(SystemExit):
        publish("--member", members["ab"], "--stock", "merged", *flags)
    assert expected in caplog.messages[-1]
