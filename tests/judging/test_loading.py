import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Gemma2ForSequenceClassification

from modeling.judging import loading
from modeling.judging.canaries import CanaryMismatch
from modeling.judging.judge import Judge
from modeling.judging.loading import load_judge
from modeling.judging.member import JUDGE_FILE, MEMBER_FILE, read_member
from modeling.network.base import BaseFiles, find_base, fingerprint_base, load_base, load_tokenizer, save_base
from modeling.network.lora import add_adapters, merge_adapter
from modeling.runtime.files import hash_file
from tests.helpers import make_batch

QUANTIZATIONS = ["float32", "bfloat16", "8bit", "4bit"]


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_saved_base_loads_to_the_same_logits(name, plain_backbone, tmp_path, tokenizer):
    """Law 6 for bases: a freshly quantised model and the one loaded from its folder give the same logits."""
    dtype = "float32" if name == "float32" else "bfloat16"
    quantization = name if name.endswith("bit") else "none"
    model = load_base(BaseFiles(plain_backbone), dtype=dtype, quantization=quantization).eval()
    save_base(tmp_path, model, tokenizer)
    again = load_base(BaseFiles(tmp_path), dtype=dtype).eval()
    assert torch.equal(again(**make_batch()).logits, model(**make_batch()).logits)


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_saved_member_loads_to_the_same_logits(name, bases, tmp_path, make_member):
    """Law 6 for an adapter and its head, on every kind of base."""
    dtype = "float32" if name == "float32" else "bfloat16"
    model = make_member(tmp_path / "ab", bases[name], "ab", dtype=dtype)
    (member,) = load_judge([str(tmp_path / "ab")])
    assert torch.equal(member.activate()(**make_batch()).logits, model(**make_batch()).logits)


def test_two_members_share_one_base_and_keep_their_own_answers(members, bases):
    first, second = load_judge([str(folder) for folder in members.values()])
    assert first.model is second.model and first.encoder is second.encoder
    for member, folder in ((first, "ab"), (second, "ba"), (first, "ab")):
        alone = PeftModel.from_pretrained(load_base(bases["float32"], dtype="float32"), members[folder]).eval()
        assert torch.equal(member.activate()(**make_batch()).logits, alone(**make_batch()).logits)
    assert not torch.equal(first.activate()(**make_batch()).logits, second.activate()(**make_batch()).logits)


def test_merging_in_float32_keeps_the_logits(members, bases):
    """Law 6 after a merge in float32, for which a change of 5e-7 was measured."""
    (member,) = load_judge([str(members["ab"])])
    before = member.activate()(**make_batch()).logits
    after = member.model.merge_and_unload()(**make_batch()).logits
    assert (after - before).abs().max() <= 1e-5


def test_an_adapter_of_another_number_of_labels_merges_and_leaves_its_head_behind(plain_backbone, tmp_path):
    """As the seed does with its 3-label adapter: the LoRA is merged, and a fresh head replaces the adapter's."""
    lmsys = Gemma2ForSequenceClassification.from_pretrained(plain_backbone, num_labels=3)
    peft_model = get_peft_model(lmsys, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    peft_model.save_pretrained(tmp_path)
    merged = merge_adapter(load_base(BaseFiles(plain_backbone), dtype="float32"), str(tmp_path))
    expected = peft_model.merge_and_unload().model(**make_batch()).last_hidden_state
    assert torch.allclose(merged.model(**make_batch()).last_hidden_state, expected, atol=1e-5)
    assert merged(**make_batch()).logits.shape == (3, 2)
    untouched = load_base(BaseFiles(plain_backbone), dtype="float32")
    assert not torch.allclose(untouched.model(**make_batch()).last_hidden_state, expected, atol=1e-2)


def test_adapters_that_cannot_be_merged_are_refused(bases, members, tmp_path):
    """For a quantised base, an adapter of another architecture, and one with more than LoRA and a head."""
    with pytest.raises(ValueError, match="--merge_adapter: expected an unquantised base"):
        merge_adapter(load_base(bases["8bit"], dtype="bfloat16"), str(members["ab"]))
    shutil.copytree(members["ab"], tmp_path / "ab")
    tensors = load_file(members["ab"] / "adapter_model.safetensors")
    wide = {name: torch.cat([value, value], dim=-1) if "lora_A" in name else value for name, value in tensors.items()}
    more = tensors | {"base_model.model.model.projector.weight": torch.zeros(64, 64)}
    for changed, expected in ((wide, "have another shape"), (more, "1 belong to no layer")):
        save_file(changed, tmp_path / "ab" / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=expected):
            merge_adapter(load_base(bases["float32"], dtype="float32"), str(tmp_path / "ab"))


@pytest.mark.parametrize("name", ["8bit", "4bit"])
def test_quantised_bases_train_and_predict_with_one_kernel_on_a_cpu(name, bases):
    """In eval mode bitsandbytes would use other kernels on a CPU: in 8 bit the logits would depend on the rest of the
    batch, and in 4 bit all later gradients would be wrong. Without dropout, train and eval must agree exactly."""
    model = add_adapters(load_base(bases[name], dtype="bfloat16", head_dropout=0.0), r=4, alpha=4, dropout=0.0)

    def compute_gradient():
        model.train().zero_grad()
        model(**make_batch(), labels=torch.tensor([[1.0, 0.0]] * 3)).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None])

    before = compute_gradient()
    with torch.no_grad():
        trained_like = model.train()(**make_batch()).logits
        assert torch.equal(model.eval()(**make_batch()).logits, trained_like)
        alone = model(**make_batch((5,))).logits
        assert (alone - model(**make_batch((5, 5))).logits[:1]).abs().max() <= 2e-3  # bf16, another matrix shape
    assert torch.equal(compute_gradient(), before)


def test_frozen_layers_get_no_adapter_and_the_seeds_counts_come_out(bases):
    model = add_adapters(load_base(bases["float32"], dtype="float32"), r=4, alpha=4, dropout=0.0, freeze_layers=1)
    layers = {name.split("layers.")[1][0] for name, p in model.named_parameters() if p.requires_grad and "lora" in name}
    assert layers == {"1"}
    with pytest.raises(ValueError, match="--freeze_layers 2: expected 0 to 1"):
        add_adapters(load_base(bases["float32"], dtype="float32"), r=4, alpha=4, dropout=0.0, freeze_layers=2)


def test_gemma_2_9b_has_the_seeds_trainable_parameters():
    """222,500,098 = 216,072,192 of the adapter + 6,427,906 of the head, counted on the meta device."""
    from transformers import Gemma2Config

    from modeling.network.classifier import Gemma2ForPreference, Gemma2PreferenceConfig

    sizes = {"hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16}
    config = Gemma2Config(**sizes, num_key_value_heads=8, head_dim=256)
    with torch.device("meta"):
        base = Gemma2ForPreference(Gemma2PreferenceConfig.from_dict({**config.to_dict(), "num_labels": 2}))
        model = add_adapters(base, r=64, alpha=4, dropout=0.05)
    assert model.get_nb_trainable_parameters()[0] == 222_500_098


# --- members that are refused -----------------------------------------------------------------------------------------


@pytest.fixture
def member(members, bases, tmp_path):
    """A copy of a member, to be damaged, and a copy of its base beside it."""
    shutil.copytree(bases["float32"].folder, tmp_path / "base")
    shutil.copytree(members["ab"], tmp_path / "ab")
    config = json.loads((tmp_path / "ab" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "../base"
    (tmp_path / "ab" / "adapter_config.json").write_text(json.dumps(config))
    Judge.from_pretrained(tmp_path / "ab")
    return tmp_path / "ab"


def rewrite_tensors(member, change):
    """Changes the weights and their hash in member.json."""
    tensors = load_file(member / "adapter_model.safetensors")
    save_file(change(tensors), member / "adapter_model.safetensors")
    declare(member, "adapter_model.safetensors")


def declare(member, name):
    """Writes a file's current hash into member.json."""
    facts = json.loads((member / MEMBER_FILE).read_text())
    facts["files"][name] = hash_file(member / name)
    (member / MEMBER_FILE).write_text(json.dumps(facts))


def test_a_member_without_its_head_is_refused(member):
    """Seed fault 6: PEFT alone would silently leave the head at its random values."""
    rewrite_tensors(member, lambda tensors: {name: value for name, value in tensors.items() if "score" not in name})
    with pytest.raises(ValueError, match=r"4 are missing \(such as .*score.dense.bias\)"):
        load_judge([str(member)])


def test_a_member_with_missing_or_foreign_tensors_is_refused(member):
    rewrite_tensors(member, lambda tensors: dict(list(tensors.items())[1:]) | {"other": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 are missing .*, 1 belong to no layer"):
        load_judge([str(member)])


def test_a_member_on_another_base_is_refused(member, plain_backbone, tokenizer):
    torch.manual_seed(7)
    save_base(member.parent / "base", load_base(BaseFiles(plain_backbone), dtype="float32"), tokenizer)
    with pytest.raises(ValueError, match=r"expected the base it was trained on .*; found another in \.\./base"):
        load_judge([str(member)])


def test_a_member_whose_base_is_gone_says_so(member):
    shutil.rmtree(member.parent / "base")
    with pytest.raises(FileNotFoundError, match=r"expected its base in \.\./base; found none"):
        load_judge([str(member)])


@pytest.mark.parametrize("name", [MEMBER_FILE, "probes.json", "adapter_config.json", "adapter_model.safetensors"])
def test_an_incomplete_member_is_refused(member, name):
    (member / name).unlink()
    with pytest.raises(ValueError, match=f"expected a member folder with {name}; found none"):
        load_judge([str(member)])


def test_a_damaged_member_is_refused(member):
    weights = member / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    declare(member, weights.name)
    with pytest.raises(ValueError, match="expected a complete safetensors file; found"):
        load_judge([str(member)])
    for text in ("{", "[]", '{"format": 2}', '{"format": 2, "orientation": "ab", "more": 1}'):
        (member / MEMBER_FILE).write_text(text)
        with pytest.raises(ValueError, match=r"expected the facts of a member in member.json; found"):
            load_judge([str(member)])


def test_a_member_of_another_format_is_refused(member):
    facts = json.loads((member / MEMBER_FILE).read_text())
    (member / MEMBER_FILE).write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(ValueError, match=r"expected format 2 in member.json; found 99"):
        load_judge([str(member)])


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "probes.json", "tokenizer.json"])
def test_a_file_that_is_not_the_one_that_was_saved_is_named(member, name):
    """One changed byte is enough: a tampered or partly downloaded file is never used."""
    content = bytearray((member / name).read_bytes())
    content[-2] ^= 1
    (member / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"expected {name} as it was saved \(\w{{16}}\); found another \(\w{{16}}\)"):
        load_judge([str(member)])


# --- canary battles: law 11 -------------------------------------------------------------------------------------------


def test_loading_logs_how_far_the_canaries_changed(member, caplog):
    caplog.set_level("INFO")
    load_judge([str(member)])
    assert "ab: canary probabilities changed by at most 0 since it was saved" in caplog.text


def test_weights_with_other_answers_are_refused_unless_the_canaries_are_skipped(member, caplog):
    """No hash shows it: every file is the declared one, but the head's last layer is halved."""
    rewrite_tensors(member, lambda t: {n: v / 2 if "score.out.weight" in n else v for n, v in t.items()})
    expected = (
        r"expected the probabilities of its canary battles .* within 0.0001; found a change of 0\.\d+\. "
        r"What changed since: neither versions nor dtype nor device.* pass --skip_probes true"
    )
    with pytest.raises(ValueError, match=expected):
        load_judge([str(member)])
    load_judge([str(member)], skip_probes=True)
    assert "its canary battles are not replayed (--skip_probes)" in caplog.text


def test_a_canary_mismatch_names_the_versions_that_changed(member):
    probes = json.loads((member / "probes.json").read_text())
    probes["computed_with"] |= {"torch": "1.0", "device": "cuda"}
    probes["p_a"]["ab"][3] += 0.01
    (member / "probes.json").write_text(json.dumps(probes))
    declare(member, "probes.json")
    with pytest.raises(
        ValueError, match=r"change of 0.01\. What changed since: device cuda then, cpu now; torch 1.0 then"
    ):
        load_judge([str(member)])
    (member / "probes.json").write_text(json.dumps({**probes, "format": 9}))
    declare(member, "probes.json")
    with pytest.raises(ValueError, match="expected canary battles of format 1"):
        load_judge([str(member)])


def test_another_dtype_is_read_within_its_tolerance(member, caplog):
    """A float32 member in bf16: its canaries change, but by less than bf16's tolerance of 0.02."""
    caplog.set_level("INFO")
    (read,) = load_judge([str(member)], dtype="bfloat16")
    moved = float(re.search(r"changed by at most (\S+) since", caplog.text)[1])
    assert 0 < moved <= 0.02 and read.dtype == "bfloat16" and read.model.compute_dtype == torch.bfloat16


def test_what_fails_on_one_process_fails_on_all(member, monkeypatch, caplog):
    """Otherwise one would read in float32 and the others not, and they would wait for each other in other places."""
    failures = [CanaryMismatch("its canary battles fail on the other card"), None]
    monkeypatch.setattr(loading, "share_failure", lambda own: own or failures.pop(0))
    monkeypatch.setattr(loading, "choose_dtype", lambda *_, **__: "bfloat16")
    (read,) = load_judge([str(member)], dtype="auto")
    assert read.dtype == "float32" and "float32 instead of bfloat16" in caplog.text and failures == []
    failures[:] = [CanaryMismatch("here too")]
    monkeypatch.setattr(loading, "choose_dtype", lambda *_, **__: "float32")
    with pytest.raises(CanaryMismatch, match="here too"):
        load_judge([str(member)], dtype="auto")


# --- judges -----------------------------------------------------------------------------------------------------------


def test_a_judge_folder_loads_its_members(members, bases, tmp_path):
    """In the order of judge.json, each with the logits of the member loaded alone."""
    shutil.copytree(bases["float32"].folder, tmp_path / "base")
    for name, folder in members.items():
        shutil.copytree(folder, tmp_path / "judge" / name)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "../../base"
        (tmp_path / "judge" / name / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "judge" / JUDGE_FILE).write_text(json.dumps({"format": 1, "members": ["ba", "ab"]}))
    judge = load_judge([str(tmp_path / "judge")])
    assert [member.name for member in judge] == ["ba", "ab"] and judge[0].model is judge[1].model
    for member in judge:
        (alone,) = load_judge([str(members[member.name])])
        assert torch.equal(member.activate()(**make_batch()).logits, alone.activate()(**make_batch()).logits)
    for bad in (
        {"format": 2, "members": ["ab"]},
        {"format": 1, "members": ["../ab"]},
        {"format": 1, "members": [".."]},
        {"format": 1, "members": []},
    ):
        (tmp_path / "judge" / JUDGE_FILE).write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=r"expected format 1, readings both or own and the names of folders"):
            load_judge([str(tmp_path / "judge")])


# --- bases that are refused -------------------------------------------------------------------------------------------


def test_bad_bases_are_refused(tmp_path, bases, members):
    with pytest.raises(ValueError, match=r"expected a model folder with config.json; found none"):
        find_base(str(tmp_path))
    with pytest.raises(ValueError, match="expected a base; found an adapter"):
        find_base(str(members["ab"]))
    with pytest.raises(FileNotFoundError, match="expected a folder here or a Hub repository; found neither"):
        find_base("nobody/nothing")
    with pytest.raises(FileNotFoundError, match="expected the installed package no_such"):
        find_base("package:no_such/x.gguf")
    with pytest.raises(ValueError, match="expected unquantised weights; found quantised ones"):
        load_base(bases["8bit"], dtype="bfloat16", quantization="8bit")
    with pytest.raises(ValueError, match=r"found a GGUF file. Run scripts/quantize.py on it first"):
        (tmp_path / "x.gguf").touch()
        load_base(find_base(str(tmp_path / "x.gguf")), dtype="float32")


# --- what a member holds ----------------------------------------------------------------------------------------------


def test_a_member_holds_all_it_needs_and_nothing_else(members):
    """Seed faults 6 and 10: orientation, encoding, labels, dtype, head shape are recorded; no optimizer, no path."""
    folder = members["ba"]
    names = {path.name for path in folder.iterdir()}
    needed = {
        MEMBER_FILE,
        "adapter_config.json",
        "adapter_model.safetensors",
        "probes.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert needed == names
    facts = read_member(folder)
    assert (facts.orientation, facts.labels, facts.dtype) == ("ba", ["a", "b"], "float32")
    assert facts.head == {"head_dropout": 0.1, "head_hidden_size": 32, "head_bias": True, "pooling": "last"}
    assert facts.encoding["max_length"] == 128 and facts.encoding["template"].startswith("<prompt>: ")
    for path in folder.glob("*.json"):
        text = path.read_text()
        assert str(folder.parent) not in text and '"/' not in text.replace('"/"', ""), path.name


def test_fingerprints_tell_bases_apart_and_ignore_where_they_lie(bases, tmp_path):
    prints = {fingerprint_base(files) for files in bases.values()}
    assert len(prints) == len(bases)
    copy = shutil.copytree(bases["8bit"].folder, tmp_path / "copy")
    assert fingerprint_base(BaseFiles(copy)) == fingerprint_base(bases["8bit"])


def test_the_tokenizer_comes_with_the_member(members, tokenizer):
    text = "Warum? 😀 <eos>"
    assert load_tokenizer(members["ab"])(text)["input_ids"] == tokenizer(text)["input_ids"]
