"""Adapters combined into one: what plain peft makes of the same files, and errors for people."""

import copy
import json
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import acclimate
from acclimate.cli import main
from acclimate.engines.merging.adapted import Adapted, open_model
from acclimate.errors import AcclimateError
from acclimate.files import read_json, write_json
from acclimate.model import Model
from adapter_tools import GPT2, LLAMA, close, logits, save_bases, train

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tokenizer):
    """Saved models: llama, gpt2, tied."""
    return save_bases(tmp_path_factory.mktemp("bases"), tokenizer)


def peers(bases, folders, weights, kind, base="llama", **settings):
    """Peft's own weighted combination of saved adapters: the net with it, and the change of each weight."""
    net = AutoModelForCausalLM.from_pretrained(bases / base)
    plain = {name: weight.clone() for name, weight in net.state_dict().items()}
    net = PeftModel.from_pretrained(net, folders[0], adapter_name="0")
    for i, folder in enumerate(folders[1:], 1):
        net.load_adapter(folder, adapter_name=str(i))
    net.base_model.add_weighted_adapter([str(i) for i in range(len(folders))], weights, "all", combination_type=kind, **settings)
    net.base_model.set_adapter("all")
    merged = copy.deepcopy(net).merge_and_unload().state_dict()
    return net, {name: merged[name] - weight for name, weight in plain.items()}


@pytest.fixture(scope="module")
def pair(bases, tmp_path_factory):
    """Two adapters of one Llama with other ranks, scales and layers, and two of one GPT-2."""
    root = tmp_path_factory.mktemp("pair")
    made = {}
    for base, names in (("llama", LLAMA), ("gpt2", GPT2)):
        train(bases / base, root / f"{base}1", 1, target_modules=names, r=3, lora_alpha=5)
        train(bases / base, root / f"{base}2", 2, target_modules=names, r=2, lora_alpha=8, use_rslora=True)
        made[base] = [str(root / f"{base}{i}") for i in (1, 2)]
    return made


def changes(folder):
    opened = open_model(str(folder))
    return {name: opened.change(name) for name in opened.base.slots}


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_a_sum_is_pefts_cat(base, pair, bases, tmp_path):
    """Peft puts scales and weights into A, pads with zero ranks, and writes alpha = r; the products are the same."""
    found = acclimate.combine(pair[base], tmp_path / "out", weights=[0.7, -0.3])
    net, wanted = peers(bases, pair[base], [0.7, -0.3], "cat", base)
    for name, change in changes(tmp_path / "out").items():
        close(change, wanted[name], 2e-6)
    assert set(found["ranks"].values()) == {5}
    assert found["energy_kept"] == 1
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases / base), tmp_path / "out")
    assert float((logits(plain) - logits(net)).abs().max()) < 2e-4
    assert float((logits(Model.load(str(tmp_path / "out")).net) - logits(net)).abs().max()) < 2e-4  # strict: no key more, none less
    config = read_json(tmp_path / "out" / "adapter_config.json")
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (5, 5, {})
    assert sorted(config["target_modules"]) == sorted(LLAMA if base == "llama" else GPT2)
    ones, twos, both = (torch.cat([c.flatten() for c in changes(place).values()]) for place in (*pair[base], tmp_path / "out"))
    assert list(found["cosine"].values()) == pytest.approx([float(torch.cosine_similarity(x, both, 0)) for x in (ones, twos)], abs=1e-4)
    assert read_json(tmp_path / "out" / "combine.json")["layers"].keys() == {name for name in wanted if wanted[name].any()}


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_shortened_it_is_pefts_svd(base, pair, bases, tmp_path):
    """Peft leaves S in B; here both factors carry its root. Singular values of one size may come in another order."""
    found = acclimate.combine(pair[base], tmp_path / "out", weights=[0.6, 0.4], rank=2)
    _, wanted = peers(bases, pair[base], [0.6, 0.4], "svd", base, svd_rank=2)
    _, whole = peers(bases, pair[base], [0.6, 0.4], "cat", base)
    for name, change in changes(tmp_path / "out").items():
        close(change, wanted[name], 1e-5)
    share = sum(float(c.square().sum()) for c in wanted.values()) / sum(float(c.square().sum()) for c in whole.values())
    assert found["energy_kept"] == pytest.approx(share, abs=1e-4)
    assert set(found["ranks"].values()) == {2}
    some = acclimate.combine(pair[base], tmp_path / "some", weights=[0.6, 0.4], energy=0.8)
    assert 0.8 <= some["energy_kept"] < 1
    config = read_json(tmp_path / "some" / "adapter_config.json")
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert float((logits(Model.load(str(tmp_path / "some")).net)).abs().max()) > 0


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_ties_is_pefts_ties_svd(base, pair, bases, tmp_path):
    """With weights of 1, where both agree: peft elects before it weighs and divides by the number of those that agree; we elect what is
    weighed, as mergekit does, and divide by their weights. Peft keeps int(density x n) entries, we all that tie with the last one."""
    settings = {"keep": "0.5", "scope": "tensor"}
    acclimate.combine(pair[base], tmp_path / "out", weights=[1, 1], method="ties", settings=settings, rank=4)
    _, wanted = peers(bases, pair[base], [1.0, 1.0], "ties_svd", base, svd_rank=4, density=0.5)
    for name, change in changes(tmp_path / "out").items():
        close(change, wanted[name], 1e-5)


def test_ties_ranks_among_all_layers(pair, tmp_path):
    acclimate.combine(pair["llama"], tmp_path / "out", method="ties", settings={"keep": "0.3"}, energy=1.0)
    both = [changes(folder) for folder in pair["llama"]]
    names = [name for name, change in both[0].items() if change.any()]
    trimmed = []
    for one in both:
        flat = torch.cat([one[name].flatten() for name in names])
        kept = flat.abs().topk(int(0.3 * len(flat))).indices
        trimmed.append(torch.zeros_like(flat).scatter(0, kept, flat[kept]))
    tuned = torch.stack(trimmed)
    sign = torch.where(tuned.sum(0) >= 0, 1.0, -1.0)
    agree = (tuned * sign > 0).float()
    wanted = (tuned * agree).sum(0) / agree.sum(0).clamp(min=1)
    found = changes(tmp_path / "out")
    gaps = (torch.cat([found[name].flatten() for name in names]) - wanted).abs()
    assert float((gaps > 1e-5).float().mean()) < 1e-3  # an entry at the threshold may fall on either side


@pytest.mark.parametrize("method", ["dare", "della", "breadcrumbs", "task_arithmetic", "sce", "model_stock"])
def test_methods_that_work_on_changes(method, pair, tmp_path):
    first = acclimate.combine(pair["llama"], tmp_path / "a", method=method, rank=4, seed=3)
    again = acclimate.combine(pair["llama"], tmp_path / "b", method=method, rank=4, seed=3)
    assert first["cosine"] == again["cosine"] or list(first["cosine"].values()) == list(again["cosine"].values())
    assert max(first["ranks"].values()) <= 4
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert all(torch.equal(one[key], other[key]) for key in one)
    if method == "task_arithmetic":
        wanted = [0.4 * (a + b) for a, b in zip(*(changes(folder).values() for folder in pair["llama"]), strict=True)]
        acclimate.combine(pair["llama"], tmp_path / "all", method=method, energy=1.0)
        for change, want in zip(changes(tmp_path / "all").values(), wanted, strict=True):
            close(change, want, 2e-6)


def test_all_that_an_adapter_may_train_is_combined(bases, tmp_path):
    """DoRA, biases, whole layers, embeddings, and layers that only one of them changed: base + the weighted sum of the changes."""
    made = {
        "gpt2": [
            {"target_modules": ["c_attn"], "bias": "all", "modules_to_save": ["ln_f"]},
            {"target_modules": ["c_proj"], "use_dora": True, "bias": "lora_only"},
            {"target_modules": ["c_fc"], "lora_bias": True},
        ],
        "llama": [
            {"target_modules": ["embed_tokens", "q_proj"]},
            {"target_modules": ["lm_head", "q_proj", "layers.1.mlp.up_proj"], "modules_to_save": ["norm"]},
            {"target_modules": ["q_proj"], "modules_to_save": ["norm", "o_proj"]},
        ],
    }
    for base, configs in made.items():
        for i, config in enumerate(configs):
            train(bases / base, tmp_path / f"{base}{i}", seed=i, **config)
        folders = [str(tmp_path / f"{base}{i}") for i in range(3)]
        shares = [0.5, 0.3, -0.2]
        acclimate.combine(folders, tmp_path / base, weights=shares, energy=1.0)
        plain = load_file(bases / base / "model.safetensors")
        sums = {name: sum(w * c for w, c in zip(shares, [open_model(f).change(name) for f in folders], strict=True)) for name in plain}
        net = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases / base), tmp_path / base)
        merged = copy.deepcopy(net).merge_and_unload().state_dict()
        for name, weight in plain.items():
            close(merged[name], weight + sums[name], 1e-5)
        assert float((logits(Model.load(str(tmp_path / base)).net) - logits(net)).abs().max()) < 1e-5
        again = open_model(str(tmp_path / base))
        for name in plain:
            close(again.change(name), sums[name], 1e-5)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"adapters": []}, "name the adapters"),
        ({"weights": [1.0]}, "weights holds 1 values for 2 adapters"),
        ({"method": "ties"}, "ties makes of changes is not of low rank; say how much"),
        ({"method": "tise", "rank": 2}, "nearest: merging.ties"),
        ({"method": "slerp", "rank": 2}, "merging.slerp does not work on changes"),
        ({"method": "linear", "rank": 2}, "merging.linear does not work on changes"),
        ({"method": "soup", "rank": 2}, "run it in a recipe"),
        ({"method": "nearswap", "rank": 2}, "takes 1 tuned models, but was given 2"),
        ({"settings": {"keep": 0.5}}, "a plain sum has no setting 'keep'"),
        ({"energy": 1.5}, "energy from 0 to 1"),
        ({"second": "base"}, "is a whole model, not an adapter"),
        ({"second": "gpt2"}, "only adapters of one base"),
        ({"second": "dora"}, r"\(DoRA\) is not of low rank; say"),
    ],
)
def test_bad_input_is_one_line(what, said, pair, bases, tmp_path):
    given = dict(what)
    adapters = given.pop("adapters", list(pair["llama"]))
    second = given.pop("second", "")
    if second:
        train(bases / "llama", tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
        adapters[1] = {"base": str(bases / "llama"), "gpt2": pair["gpt2"][0], "dora": str(tmp_path / "dora")}[second]
    with pytest.raises(AcclimateError, match=said) as raised:
        acclimate.combine(adapters, tmp_path / "out", **given)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_base_that_moved_is_the_same_base(pair, bases, tmp_path):
    import shutil

    shutil.copytree(bases / "llama", tmp_path / "moved")
    shutil.copytree(pair["llama"][1], tmp_path / "second")
    config = read_json(tmp_path / "second" / "adapter_config.json")
    write_json(tmp_path / "second" / "adapter_config.json", config | {"base_model_name_or_path": str(tmp_path / "moved")})
    assert acclimate.combine([pair["llama"][0], str(tmp_path / "second")], tmp_path / "out")["ranks"]


def test_a_folder_that_is_no_combination_is_left_alone(pair, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for place in (tmp_path / "out", pair["llama"][0]):
        with pytest.raises(AcclimateError, match="is no combined adapter; choose another place"):
            acclimate.combine(pair["llama"], place)
    assert (tmp_path / "out" / "thesis.txt").exists()
    for rank in (1, 2):  # a combination may take a combination's place
        acclimate.combine(pair["llama"], tmp_path / "new", rank=rank)
    assert read_json(tmp_path / "new" / "adapter_config.json")["r"] == 2


def test_the_command_line(pair, tmp_path, capsys, monkeypatch):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["acclimate", "combine", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, *capsys.readouterr()

    code, out, _ = call(*pair["llama"], "--weights", "0.7,0.3", "--out", tmp_path / "a", "--rank", 3)
    assert code == 0
    assert "layers of rank 3 to 3 hold" in out
    assert f"adapter: {tmp_path / 'a'}" in out
    code, out, _ = call(*pair["llama"], "--method=ties", "--set", "keep=0.3", "--energy=0.9", "--out", tmp_path / "b", "--json")
    found = json.loads(out)
    assert (code, found["made"]["method"], found["made"]["settings"]["keep"]) == (0, "merging.ties", [0.3])
    assert found["energy_kept"] >= 0.9
    assert isinstance(open_model(str(tmp_path / "b")), Adapted)
    code, _, err = call(*pair["llama"], "--weights", "0.7;0.3", "--out", tmp_path / "c")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "numbers with commas" in err
