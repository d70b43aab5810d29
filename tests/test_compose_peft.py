"""Peft's LoRA in compositions of ours: the outputs are those of the peft models, also after saving."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model

from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model import Model
from worlds import model_of, network

IDS = torch.arange(18).view(3, 6) * 5 % 300
SIZES = {
    "law": {"r": 2, "lora_alpha": 6, "target_modules": "all-linear"},
    "med": {"r": 5, "lora_alpha": 4, "use_rslora": True, "target_modules": ["LAST"]},
}
LAST = {"llama": "q_proj", "gpt2": "c_attn", "bert": "query"}
TOOLS = SimpleNamespace(seed=0)


def logits(net, ids=IDS, **extra):
    with torch.no_grad():
        return net.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits


def close(mine, theirs):
    assert torch.allclose(mine, theirs, atol=2e-5 * float(theirs.abs().max()))


def drawn(net, seed):
    draw = torch.Generator().manual_seed(seed)
    for weight in net.parameters():
        if weight.requires_grad:
            weight.data.copy_(0.2 * torch.randn(weight.shape, generator=draw))
    return net


@pytest.fixture(params=LAST)
def world(request, tokenizer, mask_tokenizer, tmp_path):
    """A saved base, two LoRA models of it (one saved by peft, one made by our method), and peft's model with both."""
    family = request.param
    kind, own = ("masked", mask_tokenizer) if family == "bert" else ("causal", tokenizer)
    model_of(network(family, own), own, kind, family).save(tmp_path / "base")
    base = Model.load(str(tmp_path / "base"))
    config = {**SIZES["med"], "target_modules": [LAST[family]]}
    with warnings.catch_warnings(action="ignore"):
        med = drawn(get_peft_model(base.copy().net, LoraConfig(**config)), 1)
        med.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
        med.save_pretrained(tmp_path / "med")
        method = load("adapters.lora", r=2, alpha=6.0)
        law = base.copy("law")
        law.net = drawn(get_peft_model(law.net, method.peft(law.net)), 2)
        law.notes |= {"base": base.source, "base_fingerprint": base.fingerprint}
        law.save(tmp_path / "law")
        both = PeftModel.from_pretrained(base.copy().net, tmp_path / "law", "law")
        both.load_adapter(tmp_path / "med", "med")
    return base, [law, Model.load(str(tmp_path / "med"))], both.eval()


def composed(world, tree):
    base, tuned, _ = world
    return load("adapters.compose", tree=tree).run(TOOLS, start=base, tuned=tuned)["composed"]


def test_average_is_pefts_combination_of_changes(world, tmp_path):
    """Peft's "cat" sums the changes of weights, as the average of outputs does; its "linear" does where no factor meets another's."""
    base, _, both = world
    both.add_weighted_adapter(["law", "med"], [0.25, 0.75], "mean", combination_type="cat")
    both.set_adapter("mean")
    want = logits(both)
    made = composed(world, "average(law, med; 0.25, 0.75)")
    close(logits(made.net), want)
    assert (want - logits(base.net)).abs().max() > 1e-2
    made.save(tmp_path / "made")
    again = Model.load(str(tmp_path / "made"))
    assert str(again.net.active) == "Average(law, med; 0.25, 0.75)"
    assert torch.equal(logits(again.net), logits(made.net))


def test_linear_where_it_is_the_same_maths(world, tmp_path):
    """Adapters that use ranks of their own: A of one has zeros where B of the other has values, so the cross terms vanish."""
    base = world[0]
    with warnings.catch_warnings(action="ignore"):
        both = get_peft_model(base.copy().net, LoraConfig(r=4, lora_alpha=6, target_modules="all-linear"), "law")
        both.add_adapter("med", LoraConfig(r=4, lora_alpha=2, target_modules="all-linear"))
    for name, seed, ranks in (("law", 3, slice(2, 4)), ("med", 4, slice(0, 2))):
        both.set_adapter(name)
        drawn(both, seed)
        with torch.no_grad():
            for key, weight in both.named_parameters():
                if f"lora_A.{name}" in key:
                    weight[ranks] = 0
                elif f"lora_B.{name}" in key:
                    weight[:, ranks] = 0
        both.save_pretrained(tmp_path, selected_adapters=[name])
        (tmp_path / name / "acclimate.json").write_text(f'{{"base": "{base.source}"}}')
    tuned = [Model.load(str(tmp_path / name)) for name in ("law", "med")]
    both.add_weighted_adapter(["law", "med"], [0.5, 0.5], "mean", combination_type="linear")
    both.set_adapter("mean")
    close(logits(composed((base, tuned, both), "average(law, med)").net), logits(both))


def test_stack_is_both_at_once_and_parallel_each_alone(world, tmp_path):
    *_, both = world
    both.base_model.set_adapter(["law", "med"])  # LoRA reads a layer's input, so the order says nothing
    want = logits(both)
    stacked = composed(world, "stack(law, med)")
    close(logits(stacked.net), want)
    made = composed(world, "parallel(law, med)")
    alone = []
    for name in ("law", "med"):
        both.set_adapter(name)
        alone.append(logits(both))
    close(logits(made.net), torch.cat(alone))
    for model in (stacked, made):
        model.save(tmp_path / str(model.net.active))
        again = Model.load(str(tmp_path / str(model.net.active)))
        assert torch.equal(logits(again.net), logits(model.net))


def test_rows_and_tokens_in_parts(world):
    *_, both = world
    alone = {}
    for name in ("law", "med"):
        both.set_adapter(name)
        alone[name] = logits(both)
    close(logits(composed(world, "batchsplit(med, law; 1, 2)").net), torch.cat([alone["med"][:1], alone["law"][1:]]))
    half = logits(composed(world, "split(law, med; 3, 3)").net)
    if both.config.model_type != "bert":  # causal: the first tokens see the first adapter alone
        close(half[:, :3], alone["law"][:, :3])
    fused = logits(composed(world, "fuse(law, med)").net)
    assert fused.isfinite().all()


def test_what_cannot_be_composed_is_one_line(world, tokenizer):
    base, (law, med), _ = world
    family = base.net.config.model_type

    def refused(other, said, tree="stack(law, med)"):
        other.name = "med"
        with pytest.raises(AcclimateError, match=said) as caught:
            load("adapters.compose", tree=tree).run(TOOLS, start=base, tuned=[law, other])
        assert "\n" not in str(caught.value)

    refused(base.copy(), "med holds no single adapter")
    with warnings.catch_warnings(action="ignore"):
        for config, said in (
            (LoraConfig(r=2, target_modules=[LAST[family]]), "med changes nothing .* never trained"),
            (LoraConfig(r=2, target_modules=[LAST[family]], use_dora=True), "med is LoRA with use_dora = True, .* fold it"),
            (LoraConfig(r=2, target_modules=[LAST[family]], bias="all"), "med is LoRA with bias = all"),
            (IA3Config(target_modules=[LAST[family]], feedforward_modules=[]), "med holds a .*IA3 adapter"),
        ):
            other = base.copy()
            other.net = get_peft_model(other.net, config)
            refused(other, said)
        med.net.add_adapter("second", LoraConfig(r=2, target_modules=[LAST[family]]))
    med.net.base_model.set_adapter(["default", "second"])
    refused(med, "med has 2 active peft adapters")
    law.notes["base_fingerprint"] = "0" * 16
    refused(base.copy(), "law was trained on a base with weights 0{16}, but .* start from that base", "stack(law, law)")


def test_a_recipe_composes_lora_with_adapters_of_our_own(tiny_folder, tmp_path, cache):
    from acclimate.execute import run

    (tmp_path / "pumps").mkdir()
    for i in range(30):
        (tmp_path / "pumps" / f"{i}.txt").write_text(" ".join(f"pump {i} was found tight on day {j}" for j in range(8 + i % 5)))
    step = {"use": "objectives.causal_lm", "on": "pumps", "train": {"steps": 2, "batch_tokens": 128, "row_tokens": 64}}
    recipe = {
        "model": str(tiny_folder),
        "domains": {"pumps": str(tmp_path / "pumps")},
        "steps": [
            {"as": "low", **step, "adapter": {"use": "adapters.lora", "with": {"r": 2}}},
            {"as": "own", **step, "adapter": {"use": "adapters.bottleneck", "with": {"reduction": 2}}},
            {"as": "both", "use": "adapters.compose", "from": ["low", "own"], "with": {"tree": "stack(low, own)"}},
        ],
        "evaluate": {"in": ["pumps"]},
    }
    run(recipe, tmp_path / "run")
    made = [Model.load(str(path.parent)) for path in (tmp_path / "run").glob("steps/both*/**/adapters.json")]
    assert {str(model.net.active) for model in made} == {"Stack(low, own)"}
    low = next((tmp_path / "run").glob("steps/low/**/adapter_config.json")).parent
    close(logits(made[0].net.activate("low")), logits(Model.load(str(low)).net))
