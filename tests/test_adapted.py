"""Adapters as inputs of merges: what plain peft makes of the same files, and errors for people."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import acclimate
from acclimate.engines.merging import adapted as engine
from acclimate.engines.merging.adapted import open_model
from acclimate.engines.merging.checkpoint import Buffer
from acclimate.errors import AcclimateError
from acclimate.files import read_json, write_json
from acclimate.model import Model
from adapter_tools import GPT2, LLAMA, close, logits, save_bases, train

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tokenizer):
    """Saved models: llama, gpt2, tied."""
    return save_bases(tmp_path_factory.mktemp("bases"), tokenizer)


KINDS = {
    "lora": ("llama", {"target_modules": LLAMA}),
    "rslora and patterns": (
        "llama",
        {"target_modules": LLAMA, "use_rslora": True, "rank_pattern": {"down_proj": 5}, "alpha_pattern": {"layers.1.self_attn.q_proj": 9}},
    ),
    "dora": ("llama", {"target_modules": LLAMA, "use_dora": True, "rank_pattern": {"down_proj": 5}}),
    "rsdora of the embedding": ("llama", {"target_modules": [*LLAMA, "embed_tokens"], "use_dora": True, "use_rslora": True}),
    "embedding and output": ("llama", {"target_modules": ["embed_tokens", "q_proj", "lm_head"]}),
    "whole layers": ("llama", {"target_modules": LLAMA, "modules_to_save": ["embed_tokens", "norm"]}),
    "transposed": ("gpt2", {"target_modules": GPT2, "use_rslora": True, "rank_pattern": {"c_fc": 2}}),
    "transposed dora": ("gpt2", {"target_modules": GPT2, "use_dora": True}),
    "transposed and not": ("gpt2", {"target_modules": [*GPT2, "lm_head"]}),
    "biases of its layers": ("gpt2", {"target_modules": GPT2, "bias": "lora_only"}),
    "all biases and a whole layer": ("gpt2", {"target_modules": ["c_attn"], "bias": "all", "modules_to_save": ["ln_f"]}),
    "biases of the factors": ("gpt2", {"target_modules": GPT2, "lora_bias": True}),
    "dora with biases": ("gpt2", {"target_modules": GPT2, "use_dora": True, "bias": "all"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_reads_as_what_peft_merges(kind, bases, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK", 100)  # the lengths of DoRA's rows come from many blocks
    base, config = KINDS[kind]
    net = train(bases / base, tmp_path / "adapter", **config)
    wanted = net.merge_and_unload().state_dict()
    opened = open_model(str(tmp_path / "adapter"))
    plain = load_file(bases / base / "model.safetensors")
    assert opened.slots.keys() == plain.keys()
    for name in plain:
        close(opened.tensor(name), wanted[name])
        assert (name in opened.changed) == (not torch.equal(wanted[name], plain[name])), name
        close(opened.change(name), wanted[name] - plain[name], 2e-6)

    again = open_model(str(tmp_path / "adapter"))  # read from several threads, in pieces that cut rows

    def piece(at):
        name, first = at
        slot = again.slots[name]
        out = torch.empty(min(777, slot.size - first))
        again.read(slot, first, first + len(out), Buffer(), out)
        close(out, wanted[name].flatten()[first : first + len(out)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(piece, [(name, first) for name, slot in again.slots.items() for first in range(0, slot.size, 777)]))


@pytest.mark.parametrize("kind", ["dora", "transposed dora", "all biases and a whole layer"])
def test_a_merge_of_one_adapter_folds_it(kind, bases, tmp_path):
    base, config = KINDS[kind]
    net = train(bases / base, tmp_path / "adapter", **config)
    acclimate.merge("linear", [str(tmp_path / "adapter")], out=tmp_path / "out")
    assert float((logits(Model.load(str(tmp_path / "out")).net) - logits(net)).abs().max()) < 2e-4


TIES = {
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, False),
    "output layer": ({"target_modules": ["lm_head", "q_proj"]}, False),
    "both as one": ({"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}, True),
    "whole embedding": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, False),
    "whole, as one": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "neither": ({"target_modules": ["q_proj"], "use_dora": True}, True),
}


@pytest.mark.parametrize("kind", TIES)
def test_tied_weights_come_apart_where_the_adapter_parts_them(kind, bases, tmp_path):
    """What peft computes with the adapter in place; its merge would add the change of one of two tied weights to both."""
    config, stays = TIES[kind]
    net = train(bases / "tied", tmp_path / "adapter", **config)
    acclimate.merge("linear", [str(tmp_path / "adapter")], out=tmp_path / "out")
    assert ("lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")) == stays
    assert float((logits(Model.load(str(tmp_path / "out")).net) - logits(net)).abs().max()) < 2e-4
    found = acclimate.combine([str(tmp_path / "adapter")] * 2, tmp_path / "sum", weights=[0.25, 0.75], energy=float("dora" in str(config)))
    assert list(found["cosine"].values()) == pytest.approx([1, 1], abs=1e-5)
    assert float((logits(Model.load(str(tmp_path / "sum")).net) - logits(net)).abs().max()) < 2e-4


def test_new_rows_of_a_vocabulary_come_with_the_adapter(bases, tmp_path, tokenizer):
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["<tool>", "<end>"])
    for base in ("llama", "tied"):
        net = AutoModelForCausalLM.from_pretrained(bases / base)
        net.resize_token_embeddings(len(own), mean_resizing=False)
        net = get_peft_model(net, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        net.save_pretrained(tmp_path / base)
        own.save_pretrained(tmp_path / base)
        acclimate.merge("linear", [str(tmp_path / base)], out=tmp_path / f"{base} out")
        merged = Model.load(str(tmp_path / f"{base} out"))
        assert merged.tokenizer.convert_tokens_to_ids("<end>") == len(own) - 1
        assert float((logits(merged.net) - logits(net)).abs().max()) < 2e-4
        with pytest.raises(AcclimateError, match=r"rows of .* but its base"):
            acclimate.combine([str(tmp_path / base)], tmp_path / "none")


def test_names_with_and_without_the_models_prefix(bases, tmp_path):
    """GPT-2 on the hub is stored without the prefix that its adapters have."""
    net = train(bases / "gpt2", tmp_path / "adapter", target_modules=GPT2, bias="lora_only")
    plain = load_file(bases / "gpt2" / "model.safetensors")
    (tmp_path / "bare").mkdir()
    write_json(tmp_path / "bare" / "config.json", read_json(bases / "gpt2" / "config.json"))
    save_file({name.removeprefix("transformer."): tensor for name, tensor in plain.items()}, tmp_path / "bare" / "model.safetensors")
    config = read_json(tmp_path / "adapter" / "adapter_config.json")
    write_json(tmp_path / "adapter" / "adapter_config.json", config | {"base_model_name_or_path": str(tmp_path / "bare")})
    opened = open_model(str(tmp_path / "adapter"))
    wanted = {name.removeprefix("transformer."): tensor for name, tensor in net.merge_and_unload().state_dict().items()}
    assert opened.changed
    for name in opened.slots:
        close(opened.tensor(name), wanted[name])
    acclimate.combine([str(tmp_path / "adapter")], tmp_path / "same")
    theirs, ours = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "same"))
    assert theirs.keys() == ours.keys()


def test_an_adapter_on_an_adapted_base(bases, tmp_path):
    train(bases / "llama", tmp_path / "first", target_modules=LLAMA)
    acclimate.merge("linear", [str(tmp_path / "first")], out=tmp_path / "folded")
    net = train(tmp_path / "folded", tmp_path / "second", seed=2, target_modules=["q_proj", "up_proj"], use_dora=True)
    config = read_json(tmp_path / "second" / "adapter_config.json")
    write_json(tmp_path / "second" / "adapter_config.json", config | {"base_model_name_or_path": str(tmp_path / "first")})
    opened = open_model(str(tmp_path / "second"))
    for name, weight in net.merge_and_unload().state_dict().items():
        close(opened.tensor(name), weight, 1e-5)


def test_the_hash_is_the_adapters_too(bases, tmp_path):
    train(bases / "llama", tmp_path / "a", seed=1, target_modules=["q_proj"])
    train(bases / "llama", tmp_path / "b", seed=2, target_modules=["q_proj"])
    hashes = {open_model(str(place)).hash for place in (tmp_path / "a", tmp_path / "b", bases / "llama")}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "a IA3 adapter; only LoRA and DoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, r"LoRA \(pissa_niter_4, which changed the base"),
        ({"target_parameters": ["mlp.experts"]}, "LoRA of single parameters"),
        ({"trainable_token_indices": [1]}, "LoRA with trained tokens"),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"base_model_name_or_path": None}, "names no base"),
    ],
)
def test_other_makes_are_refused_in_one_line(change, said, bases, tmp_path):
    train(bases / "llama", tmp_path / "adapter", target_modules=["q_proj"])
    write_json(tmp_path / "adapter" / "adapter_config.json", read_json(tmp_path / "adapter" / "adapter_config.json") | change)
    with pytest.raises(AcclimateError, match=said) as raised:
        open_model(str(tmp_path / "adapter"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "shape", "said"),
    [
        ("model.layers.0.self_attn.q_proj.lora_E", (3,), "holds more than LoRA factors"),
        ("model.layers.9.self_attn.q_proj.lora_A.weight", (3, 32), "lacks .*lora_B.weight"),
        ("score.weight", (2, 32), "holds score.weight, which has no place in"),
        ("model.norm.weight", (16,), r"changes model.norm.weight as \[16\], but it is \[32\]"),
    ],
)
def test_files_that_do_not_fit_are_refused(key, shape, said, bases, tmp_path):
    train(bases / "llama", tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(path), f"base_model.model.{key}": torch.zeros(shape)}, path)
    with pytest.raises(AcclimateError, match=said):
        open_model(str(tmp_path / "adapter"))
