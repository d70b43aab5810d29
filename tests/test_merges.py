"""Merging models on disk: peers' files and results, adapters, vocabularies, recipes, faults."""

import copy
import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import acclimate
from acclimate.cli import main
from acclimate.errors import AcclimateError
from acclimate.model import Model
from worlds import model_of, network, varied


@pytest.fixture(scope="module")
def family(tmp_path_factory, tokenizer):
    """A Llama of four layers, three tunes of it, all saved with the tokenizer."""
    root = tmp_path_factory.mktemp("family")
    base = network("llama", tokenizer, num_hidden_layers=4, tie_word_embeddings=False)
    nets = {"base": base, **{f"m{i}": varied(base, i) for i in (1, 2, 3)}}
    for name, net in nets.items():
        model_of(net, tokenizer, name=name).save(root / name)
    return root


def weights(folder):
    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}


def both(config, root, tmp_path, dtype="float32"):
    """The same mergekit file through mergekit and through us."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = {**config, "dtype": dtype}
    text = yaml.safe_dump(config).replace("ROOT", str(root))
    path = tmp_path / "merge.yaml"
    path.write_text(text)
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, random_seed=0)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(tmp_path / "theirs"), options)
    acclimate.merge(str(path), out=tmp_path / "ours", check=False)
    return weights(tmp_path / "ours"), weights(tmp_path / "theirs")


def entry(name, **parameters):
    return {"model": f"ROOT/{name}", "parameters": parameters}


CONFIGS = {
    "linear": {"merge_method": "linear", "models": [entry("m1", weight=1.0), entry("m2", weight=0.3), entry("m3", weight=0.5)]},
    "gradient slerp": {
        "merge_method": "slerp",
        "base_model": "ROOT/m1",
        "slices": [{"sources": [{"model": "ROOT/m1", "layer_range": [0, 4]}, {"model": "ROOT/m2", "layer_range": [0, 4]}]}],
        "parameters": {
            "t": [
                {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
                {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
                {"value": 0.5},
            ]
        },
    },
    "ties with gradients": {
        "merge_method": "ties",
        "base_model": "ROOT/base",
        "models": [
            entry("m1", density=[1, 0.7, 0.1], weight=1.0),
            entry("m2", density=0.5, weight=[0, 0.3, 0.7, 1]),
            entry("m3", density=0.33, weight=[{"filter": "mlp", "value": 0.5}, {"value": 0}]),
        ],
        "parameters": {"normalize": True, "int8_mask": True},
    },
    "ties with the base among the models": {
        "merge_method": "ties",
        "base_model": "ROOT/base",
        "models": [{"model": "ROOT/base"}, entry("m1", density=0.5, weight=0.5), entry("m2", density=0.5, weight=0.5)],
        "parameters": {"normalize": False, "lambda": 0.7},
    },
    "stack": {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": "ROOT/m1", "layer_range": [0, 3]}]}, {"sources": [{"model": "ROOT/m2", "layer_range": [1, 4]}]}],
    },
    "task arithmetic": {
        "merge_method": "task_arithmetic",
        "base_model": "ROOT/base",
        "models": [entry("m1", weight=0.5), entry("m2", weight=-0.2)],
        "parameters": {"lambda": 1.5},
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs",
        "base_model": "ROOT/base",
        "models": [entry("m1", weight=0.5, density=0.8, gamma=0.05), entry("m2", weight=0.7, density=0.6)],
    },
    "model stock": {"merge_method": "model_stock", "base_model": "ROOT/base", "models": [{"model": "ROOT/m1"}, {"model": "ROOT/m2"}]},
    "multislerp": {
        "merge_method": "multislerp",
        "models": [entry("m1", weight=0.5), entry("m2", weight=0.3), entry("m3", weight=0.2)],
    },
    "nearswap": {"merge_method": "nearswap", "base_model": "ROOT/base", "models": [{"model": "ROOT/m1"}], "parameters": {"t": 0.01}},
    "fusion": {"merge_method": "arcee_fusion", "base_model": "ROOT/m1", "models": [{"model": "ROOT/m1"}, {"model": "ROOT/m2"}]},
    "sce": {
        "merge_method": "sce",
        "base_model": "ROOT/base",
        "models": [{"model": "ROOT/m1"}, {"model": "ROOT/m2"}],
        "parameters": {"select_topk": 0.4},
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_mergekit_files_give_what_mergekit_gives(name, family, tmp_path):
    ours, theirs = both(CONFIGS[name], family, tmp_path)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.allclose(ours[key], theirs[key], atol=2e-5), key


@pytest.mark.parametrize("name", ["linear", "gradient slerp", "ties with gradients", "task arithmetic"])
def test_in_bf16_they_differ_by_one_step_where_changes_are_not_ranked(name, family, tmp_path):
    """mergekit computes changes in bf16; ranks near the threshold may differ then, so TIES may move few entries by more."""
    for folder in sorted(family.iterdir()):
        model = Model.load(str(folder), dtype=torch.bfloat16)
        model.net.config.dtype = torch.bfloat16
        model.save(tmp_path / folder.name)
    ours, theirs = both(CONFIGS[name], tmp_path, tmp_path, "bfloat16")
    apart = total = 0
    for key in ours:
        a, b = ours[key].float(), theirs[key].float()
        apart += int(((a - b).abs() > 2**-7 * a.abs().clamp(min=0.1)).sum())
        total += a.numel()
    assert apart / total < (0.02 if "ties" in name else 1e-3)


def test_a_merge_is_proved_and_documented(family, tmp_path):
    report = acclimate.merge(
        "ties", [str(family / "m1"), str(family / "m2")], base=str(family / "base"), out=tmp_path / "out", settings={"keep": "0.2,0.5"}
    )
    assert report["probe"]["finite"]
    assert {len(parent["sha256"]) for parent in report["made"]["parents"]} == {16}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "merging.ties" in card
    assert report["made"]["parents"][0]["sha256"] in card
    assert "keep:" in card
    model = Model.load(str(tmp_path / "out"))
    assert model.kind == "causal"
    assert 0 < report["changed"] < 1
    facts = report["tensors"]["model.layers.0.mlp.up_proj.weight"]
    assert len(facts["cosine"]) == 3
    assert not list(tmp_path.glob(".*"))


def test_models_of_one_half_precision_type_stay_in_it(family, tmp_path, tokenizer):
    for name in ("m1", "m2"):
        model = Model.load(str(family / name), dtype=torch.bfloat16)
        model.net.config.dtype = torch.bfloat16
        model.save(tmp_path / name)
    acclimate.merge("linear", [str(tmp_path / "m1"), str(tmp_path / "m2")], out=tmp_path / "out")
    assert {value.dtype for value in weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_tied_and_untied_output_layers(family, tmp_path, tokenizer):
    tied = network("llama", tokenizer, num_hidden_layers=4, tie_word_embeddings=True)
    model_of(tied, tokenizer).save(tmp_path / "tied")
    acclimate.merge("linear", [str(tmp_path / "tied"), str(tmp_path / "tied")], out=tmp_path / "same")
    assert "lm_head.weight" not in weights(tmp_path / "same")
    acclimate.merge("linear", [str(tmp_path / "tied"), str(family / "m1")], out=tmp_path / "mixed")
    found, other = weights(tmp_path / "mixed"), weights(family / "m1")
    expected = (tied.model.embed_tokens.weight + other["lm_head.weight"]) / 2
    assert torch.allclose(found["lm_head.weight"], expected, atol=1e-6)
    assert not json.loads((tmp_path / "mixed" / "config.json").read_text())["tie_word_embeddings"]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, family):
    """A trained-looking LoRA adapter on the base, in peft's own format, and the base with it folded in."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("adapted")
    model = Model.load(str(family / "base"))
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj", "down_proj"], rank_pattern={"up_proj": 2}, use_rslora=True)
    net = get_peft_model(model.net, config)
    generator = torch.Generator().manual_seed(5)
    for key, weight in net.named_parameters():
        if "lora_" in key:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    net.save_pretrained(root / "adapter")
    model.net = net.merge_and_unload()
    model.save(root / "folded")
    return root


def test_an_adapter_is_merged_like_the_model_it_makes(adapted, family, tmp_path):
    models = [str(adapted / "adapter"), str(family / "m2")]
    acclimate.merge("ties", models, base=str(family / "base"), out=tmp_path / "a")
    acclimate.merge("ties", [str(adapted / "folded"), models[1]], base=str(family / "base"), out=tmp_path / "b")
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    gaps = torch.cat([(one[key] - other[key]).abs().flatten() for key in one])
    assert (gaps > 1e-5).float().mean() < 1e-4  # an entry at the threshold may fall on either side


def test_an_adapter_of_another_base_is_refused(adapted, family, tmp_path, tokenizer):
    config = json.loads((adapted / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter").mkdir()
    other = network("llama", tokenizer, num_hidden_layers=4, hidden_size=64)
    model_of(other, tokenizer).save(tmp_path / "wide")
    config["base_model_name_or_path"] = str(tmp_path / "wide")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file(load_file(adapted / "adapter" / "adapter_model.safetensors"), tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(AcclimateError, match="another base's adapter"):
        acclimate.merge("linear", [str(tmp_path / "adapter")], out=tmp_path / "out")
    (tmp_path / "adapter" / "acclimate.json").write_text(json.dumps({"base": str(family / "m1"), "base_fingerprint": "0" * 16}))
    with pytest.raises(AcclimateError, match="was trained on"):
        acclimate.merge("linear", [str(tmp_path / "adapter")], out=tmp_path / "out")


def extended(family, tmp_path, tokenizer, token="<|call|>"):
    """A tune with one token more, and one padding row."""
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": [token]})
    net = Model.load(str(family / "m2")).net
    net.resize_token_embeddings(len(own) + 1)
    model_of(net, own).save(tmp_path / "more")
    return tmp_path / "more", len(own)


def test_other_tokenizers_have_to_be_decided_on(family, tmp_path, tokenizer):
    more, size = extended(family, tmp_path, tokenizer)
    models = [str(family / "m1"), str(more)]
    with pytest.raises(AcclimateError, match=r"another tokenizer .*<\|call\|>.*union or tokenizer: base"):
        acclimate.merge("linear", models, out=tmp_path / "out")
    report = acclimate.merge("linear", models, out=tmp_path / "union", tokenizer="union")
    assert report["vocabulary"]["added"] == 1
    merged = Model.load(str(tmp_path / "union"))
    assert merged.tokenizer.convert_tokens_to_ids("<|call|>") == size - 1
    assert merged.tokenizer("<|call|>")["input_ids"] == [size - 1]
    rows = weights(tmp_path / "union")["model.embed_tokens.weight"]
    first, second = (weights(folder)["model.embed_tokens.weight"] for folder in (family / "m1", more))
    assert torch.allclose(rows[: size - 1], (first + second[: size - 1]) / 2, atol=1e-6)
    assert torch.allclose(rows[size - 1], second[size - 1], atol=1e-6)  # which the first model lacks
    acclimate.merge("linear", models, out=tmp_path / "base", tokenizer="base")
    assert weights(tmp_path / "base")["model.embed_tokens.weight"].shape == first.shape


def test_tokens_in_another_order_are_matched_by_name(family, tmp_path, tokenizer):
    """The same tokens under other numbers: rows follow the token, and the merge of a model with itself is the model."""
    data = json.loads((family / "m1" / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    one, two = [token for token in vocabulary if token.isalpha()][:2]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    model = Model.load(str(family / "m1"))
    with torch.no_grad():
        for table in (model.net.model.embed_tokens.weight, model.net.lm_head.weight):
            table[[vocabulary[one], vocabulary[two]]] = table[[vocabulary[two], vocabulary[one]]].clone()
    model.save(tmp_path / "turned")
    (tmp_path / "turned" / "tokenizer.json").write_text(json.dumps(data))
    acclimate.merge("linear", [str(family / "m1"), str(tmp_path / "turned")], out=tmp_path / "out", tokenizer="base")
    found, expected = weights(tmp_path / "out"), weights(family / "m1")
    assert all(torch.allclose(found[key], expected[key], atol=1e-6) for key in expected)


def test_padding_rows_are_kept(family, tmp_path, tokenizer):
    net = Model.load(str(family / "m2")).net
    net.resize_token_embeddings(len(tokenizer) + 24)
    model_of(net, tokenizer).save(tmp_path / "padded")
    report = acclimate.merge("linear", [str(family / "m1"), str(tmp_path / "padded")], out=tmp_path / "out")
    rows = weights(tmp_path / "out")["model.embed_tokens.weight"]
    assert len(rows) == len(tokenizer) + 24 == report["vocabulary"]["rows"]
    assert torch.equal(rows[-24:], net.model.embed_tokens.weight[-24:])


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"models": ["m1", "gpt"]}, "is a gpt2 model, but"),
        ({"models": ["m1", "wide"]}, r"tensor .* is \[.*64\] in .*wide, but"),
        ({"models": ["m1", "short"]}, r"lacks tensor model.layers.3.input_layernorm.weight"),
        ({"models": ["m1", "m2"], "method": "ties"}, "name the model that the others were tuned from"),
        ({"models": ["m1", "m2"], "settings": {"weights": "1,2,3"}}, "weights holds 3 values for 2 models"),
        ({"models": ["m1"], "method": "slerp"}, "slerp takes 2 or more tuned models, but was given 1"),
        ({"models": ["m1"], "method": "tise"}, "nearest: merging.ties"),
        ({"models": ["m1"], "settings": {"weight": 1}}, "no setting 'weight'; nearest: weights"),
        ({"models": ["m1", "gone"]}, "no model"),
        ({"models": ["m1"], "dtype": "int8"}, "must be one of float32"),
        ({"models": ["m1"], "method": "soup"}, "run it in a recipe"),
    ],
)
def test_bad_input_is_one_line(what, said, family, tmp_path, tokenizer):
    made = {"gpt": network("gpt2", tokenizer), "wide": network("llama", tokenizer, hidden_size=64, num_hidden_layers=4)}
    for name, net in made.items():
        if name in what["models"]:
            model_of(net, tokenizer).save(tmp_path / name)
    if "short" in what["models"]:
        model_of(network("llama", tokenizer, num_hidden_layers=3, tie_word_embeddings=False), tokenizer).save(tmp_path / "short")
    given = {**what, "models": [str((family if (family / n).exists() else tmp_path) / n) for n in what["models"]]}
    with pytest.raises(AcclimateError, match=said) as raised:
        acclimate.merge(given.pop("method", "linear"), given.pop("models"), out=tmp_path / "out", **given)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_unknown_keys_of_a_mergekit_file(family, tmp_path):
    good = {"merge_method": "linear", "models": [{"model": str(family / "m1"), "parameters": {"weight": 1.0}}]}
    for change, said in (
        ({"merge_metod": "linear"}, "nearest: merge_method"),
        ({"merge_method": "tis"}, "nearest: "),
        ({"parameters": {"densty": 1}}, "nearest: density"),
        ({"tokenizer_source": "m9"}, "choose base or union"),
        ({"slices": []}, "either models: or slices:"),
        ({"chat_template": "chatml"}, "chat_template"),
        ({"models": [{"model": str(family / "m1")}]}, ""),
    ):
        (tmp_path / "merge.yaml").write_text(yaml.safe_dump({**good, **change}))
        if said:
            with pytest.raises(AcclimateError, match=said):
                acclimate.merge(str(tmp_path / "merge.yaml"), out=tmp_path / "out", check=False)


def test_a_full_disk_is_one_line_and_leaves_nothing(family, tmp_path, monkeypatch):
    import os

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(AcclimateError, match=r"disk full: the merge needs .* free room"):
        acclimate.merge("linear", [str(family / "m1"), str(family / "m2")], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    acclimate.merge("linear", [str(family / "m1"), str(family / "m2")], out=tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_settings_in_text_as_the_command_line_gives_them():
    from acclimate.method import load

    assert load("merging.dare", normalize="false").normalize is False
    with pytest.raises(AcclimateError, match="must be bool"):
        load("merging.dare", normalize="no")


def test_dry_run_writes_nothing(family, tmp_path):
    found = acclimate.merge("ties", [str(family / "m1")], base=str(family / "base"), out=tmp_path / "out", dry_run=True)
    assert found["tensors"] == len(weights(family / "m1"))
    assert 0 < found["chunk_memory_bytes"] < 500e6
    assert not (tmp_path / "out").exists()


def test_the_command_line(family, tmp_path, capsys, monkeypatch):
    command = ["merge", str(family / "m1"), str(family / "m2"), "--method", "ties", "--base", str(family / "base")]
    command += ["--set", "keep=0.5", "--out", str(tmp_path / "out"), "--json"]
    monkeypatch.setattr(sys, "argv", ["acclimate", *command])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["made"]["method"] == "merging.ties"
    done = subprocess.run(
        [sys.executable, "-c", "from acclimate.cli import main; main()", "merge", "--base", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "name the models to merge" in done.stderr


def test_a_folder_that_is_no_merge_is_left_alone(family, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(AcclimateError, match="is no merged model; choose another place"):
        acclimate.merge("linear", [str(family / "m1")], out=tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").exists()
    acclimate.merge("linear", [str(family / "m1")], out=tmp_path / "new", check=False)
    acclimate.merge("linear", [str(family / "m2")], out=tmp_path / "new", check=False)  # a merge may take a merge's place
    assert torch.equal(weights(tmp_path / "new")["model.norm.weight"], weights(family / "m2")["model.norm.weight"])


def test_a_chat_template_comes_from_whoever_has_one(family, tmp_path):
    import shutil

    for name in ("base", "m1"):
        shutil.copytree(family / name, tmp_path / name)
    (tmp_path / "base" / "chat_template.jinja").unlink()
    acclimate.merge("task_arithmetic", [str(tmp_path / "m1")], base=str(tmp_path / "base"), out=tmp_path / "out", check=False)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == (family / "m1" / "chat_template.jinja").read_text()


def test_a_tuned_model_as_an_adapter_that_peft_loads(family, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found = acclimate.extract(str(family / "m1"), str(family / "base"), tmp_path / "adapter", energy=1.0)
    assert found["energy_kept"] == pytest.approx(1, abs=1e-5)
    net = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(family / "base"), tmp_path / "adapter")
    ids = torch.tensor([[5, 9, 30, 7]])
    want = Model.load(str(family / "m1")).net(ids).logits
    assert torch.allclose(net.eval()(ids).logits, want, atol=1e-3)
    few = acclimate.extract(str(family / "m1"), str(family / "base"), tmp_path / "few", rank=2)
    assert set(few["ranks"].values()) == {2}
    assert few["energy_kept"] < 0.9
    with pytest.raises(AcclimateError, match="say how much"):
        acclimate.extract(str(family / "m1"), str(family / "base"), tmp_path / "none")


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_an_extracted_adapter_carries_biases(family, tokenizer, tmp_path):
    """Layers whose weight and bias both changed: factors for the one, the other as it is; plain peft gives the tuned model's answers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    if family == "gpt2":
        base = network("gpt2", tokenizer)
    else:
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        base = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer) + 8, tie_word_embeddings=True, **small)).eval()
    model_of(base, tokenizer).save(tmp_path / "base")
    tuned = model_of(varied(base, 1, 0.02), tokenizer)
    tuned.net.get_input_embeddings().weight.data.copy_(base.get_input_embeddings().weight)  # peft loses track of GPT-2's tied tables
    tuned.save(tmp_path / "tuned")
    acclimate.extract(str(tmp_path / "tuned"), str(tmp_path / "base"), tmp_path / "adapter", energy=1.0)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    ids = torch.arange(9)[None]
    with torch.no_grad():
        expected = tuned.net(ids).logits
        assert torch.allclose(theirs(ids).logits, expected, atol=1e-4)
        ours = Model.load(str(tmp_path / "adapter"))
        assert torch.allclose(ours.net(ids).logits, expected, atol=1e-4)
        assert torch.allclose(ours.copy().net(ids).logits, expected, atol=1e-4)
    acclimate.merge("linear", [str(tmp_path / "adapter")], out=tmp_path / "whole", dtype="float32")
    with torch.no_grad():
        assert torch.allclose(Model.load(str(tmp_path / "whole")).net(ids).logits, expected, atol=1e-4)
