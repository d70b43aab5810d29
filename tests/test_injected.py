"""Adapters of our own beside the layers of frozen networks: places, composition, switching, folding, saving, training."""

import copy

import pytest
import torch
from torch import nn

from acclimate.checks import tiny as small
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model import Injected, Model
from acclimate.model.composition import Average, BatchSplit, Fuse, Parallel, Rows, Split, Stack, parse
from acclimate.model.roles import find

IDS = small.tokens()
MADE = {
    "b": ("adapters.bottleneck", {"reduction": 4}),
    "h": ("adapters.hydra", {}),
    "p": ("adapters.bottleneck", {"target": "ff", "parallel": True, "reduction": 2}),
    "l": ("adapters.lora", {"target": "linear", "r": 2}),
    "o": ("adapters.lora", {"target": "linear", "r": 3, "alpha": 1.0}),
    "k": ("adapters.bottleneck", {"target": "block", "norm": True, "activation": "silu"}),
}


def logits(net, ids=IDS):
    extra = {"decoder_input_ids": ids} if net.config.is_encoder_decoder else {}
    with torch.no_grad():
        return net(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits


def trained(net, *names):
    """Adapters whose weights are drawn, as if they had been trained."""
    made = Injected(net).eval()
    for name in names:
        use, settings = MADE[name]
        made.add(name, load(use, **settings))
    return draw(made)


def draw(made):
    generator = torch.Generator().manual_seed(0)
    for weight in made.adapters.parameters():
        weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return made


def families():
    from transformers import RobertaConfig, RobertaForMaskedLM, ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    roberta = RobertaForMaskedLM(RobertaConfig(vocab_size=48, max_position_embeddings=20, pad_token_id=0, **sizes))
    vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))
    return {**{name: make() for name, make in small.FAMILIES.items()}, "roberta": roberta, "vit": vit}


@pytest.mark.parametrize("role", ["attn.out", "ff.in", "ff.out", "attn", "ff", "block", "embedding", "norm"])
def test_every_family_has_its_layers_by_role(role):
    for name, net in families().items():
        sites = find(net, role)
        assert sites, name
        if role in ("attn.out", "ff.out", "ff.in"):
            blocks = len(find(net, "block"))
            crossed = blocks // 2 if name == "encoder_decoder" and role == "attn.out" else 0  # a decoder's block attends twice
            assert len(sites) == blocks + crossed, name
        if role in ("attn", "ff", "block"):
            assert all((site.inputs, site.outputs) == (16, 16) for site in sites), (name, sites)


def test_addresses_by_end_by_pattern_by_layer_and_what_is_left_out():
    net = small.decoder()
    assert [site.target for site in find(net, "self_attn.q_proj", layers="1")] == ["model.layers.1.self_attn.q_proj"]
    assert len(find(net, "[r].*layers\\.0\\..*_proj")) == 7
    assert len(find(net, ["attn.q", "attn.v"])) == 4
    assert len(find(net, "linear", exclude=["ff.out"])) == 12
    with pytest.raises(AcclimateError, match=r"q_prj.*nearest: q_proj"):
        find(net, "q_prj")
    with pytest.raises(AcclimateError, match="no regular expression"):
        find(net, "[r](")
    with pytest.raises(AcclimateError, match="left after layers = '7'"):
        find(net, "attn.q", layers="7")


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("family", small.FAMILIES)
def test_identity_at_the_start_and_bit_equal_after(family, name):
    net = small.FAMILIES[family]().eval().requires_grad_(False)
    before, keys = logits(net), list(net.state_dict())
    made = Injected(net).add(name, load(MADE[name][0], **MADE[name][1])).eval()
    assert torch.equal(logits(made), before)
    draw(made)
    assert (logits(made) - before).abs().max() > 1e-3
    assert list(net.state_dict()) == keys
    assert torch.equal(logits(made.detach()), before)
    made.attach()
    assert not torch.equal(logits(made), before)


@pytest.mark.parametrize("name", ["h", "l"])
@pytest.mark.parametrize("family", small.FAMILIES)
def test_folded_is_not_folded(family, name):
    made = trained(small.FAMILIES[family](), name)
    apart = logits(made)
    folded = copy.deepcopy(made).merge_and_unload()
    assert (logits(folded) - apart).abs().max() < 1e-5 * apart.abs().max().clamp(min=1)
    assert not torch.equal(logits(made.detach()), apart)  # the copy was folded, not the original


def test_folded_for_a_while_and_bit_equal_afterwards():
    made = trained(small.decoder(), "h", "b")  # biases are added to layers that have none
    apart, before = logits(made.activate("h")), {name: value.clone() for name, value in made.net.state_dict().items()}
    with made.folded("h") as net:
        assert torch.allclose(logits(net), apart, atol=1e-5)
    after = made.net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(logits(made), apart)


def test_what_cannot_be_folded_says_so():
    with pytest.raises(AcclimateError, match=r"'b'.*no linear map"):
        trained(small.decoder(), "b").fold("b")
    with pytest.raises(AcclimateError, match=r"'k'.*no matrix"):
        trained(small.decoder(), "k").fold("k")


def test_compositions_are_what_their_names_say():
    made = trained(small.decoder(), "b", "h", "p")
    alone = {name: logits(made.activate(name)) for name in "bhp"}
    plain = logits(made.activate(None))
    assert torch.equal(logits(made.activate(Parallel("b", "h"))), torch.cat([alone["b"], alone["h"]]))
    assert torch.equal(logits(made.activate(BatchSplit("b", "h", sizes=(1, 1)))), torch.cat([alone["b"][:1], alone["h"][1:]]))
    assert torch.equal(logits(made.activate(Average("b", "h", sizes=(1.0, 0.0)))), alone["b"])
    first = logits(made.activate(Split("b", "h", sizes=(3, 2))))
    assert torch.allclose(first[:, :3], alone["b"][:, :3], atol=1e-6)  # a decoder's first tokens do not see the later ones
    assert not torch.allclose(first[:, 3:], alone["b"][:, 3:], atol=1e-3)
    assert not torch.equal(logits(made.activate(Stack("b", "h"))), logits(made.activate(Stack("h", "b"))))
    assert torch.equal(logits(made.activate(Stack("b"))), alone["b"])
    with made.using("p"):
        assert torch.equal(logits(made), alone["p"])
    assert torch.equal(logits(made), alone["b"])
    assert torch.equal(logits(made.drop(2)), plain)  # AdapterDrop: both layers
    assert not torch.equal(logits(made.drop(1)), alone["b"])


def test_fusion_of_one_adapter_is_that_adapter_and_learns():
    made = trained(small.decoder(), "b", "h")
    alone = logits(made.activate("b"))
    assert torch.allclose(logits(made.activate(Fuse("b"))), alone, atol=1e-3)  # its values start at the identity plus 1e-6
    made.activate(Fuse("b", "h")).learn(fusions=True)
    assert not any(weight.requires_grad for weight in (*made.net.parameters(), *made.adapters.parameters()))
    learned = [
        weight for name, weight in made.fused["1"].named_parameters() if not name.endswith("key.bias")
    ]  # which moves all scores alike
    made(input_ids=IDS).logits.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in learned)
    held = next(iter(made.fused["1"].values()))
    assert held.penalty() < 1e-6


def test_a_batch_with_an_adapter_for_each_row():
    for group in (["l", "o"], ["b", "h", "l"]):  # low rank in one product, others row by row
        made = trained(small.decoder(), *group)
        names = [*group, "", group[0], group[-1]]
        ids = IDS[:1].repeat(len(names), 1) + torch.arange(len(names))[:, None] % 3
        mixed = logits(made.activate(Rows(names)), ids)
        for i, name in enumerate(names):
            alone = logits(made.activate(name or None), ids[i : i + 1])
            assert torch.allclose(mixed[i : i + 1], alone, atol=1e-5), (group, i)
    made.activate(Rows(["b"] * 5))
    with pytest.raises(AcclimateError, match="named for 5 rows, but the batch has 2"):
        logits(made)


def test_averaged_weights():
    made = trained(small.decoder(), "b")
    made.add("c", load(*MADE["b"][:1], **MADE["b"][1]))
    made.average("mean", {"b": 0.25, "c": 0.75})
    for key, value in made.adapters["mean"].state_dict().items():
        mine, other = (made.adapters[name].state_dict()[key] for name in "bc")
        assert torch.allclose(value, 0.25 * mine + 0.75 * other)
    made.add("h", load("adapters.hydra"))
    with pytest.raises(AcclimateError, match="different makes"):
        made.average("no", {"b": 1.0, "h": 1.0})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stack(b, fuse(split(b, h; 1, 2)))", "Split cannot stand inside Fuse; Fuse holds names of adapters, Stack"),
        ("batchsplit(b, h)", "BatchSplit needs rows"),
        ("average(b, h; 1)", "2 parts but 1 weights"),
        ("stak(b, h)", "no block is named 'stak'.*stack"),
        ("stack(b, h", "not closed"),
        ("stack(b, x)", "no adapter is named 'x'"),
        ("split(b, h; 1, two)", "numbers"),
    ],
)
def test_bad_compositions_are_one_line(text, said):
    made = trained(small.decoder(), "b", "h")
    with pytest.raises(AcclimateError, match=said):
        made.activate(text)


def test_a_composition_reads_what_it_writes():
    tree = Stack("a", Fuse(Stack("b", "c"), "d"))
    assert parse(str(tree)) == tree
    assert parse("split(a, b; 3, 4)").sizes == (3, 4)


def test_names_and_targets_that_cannot_be():
    made = trained(small.decoder(), "b")
    with pytest.raises(AcclimateError, match="named 'b' already"):
        made.add("b", load("adapters.hydra"))
    with pytest.raises(AcclimateError, match=r"cannot be named 'a.b'"):
        made.add("a.b", load("adapters.hydra"))
    with pytest.raises(AcclimateError, match=r"no layer of the model is named 'ff.ot'"):
        made.add("c", load("adapters.hydra", target="ff.ot"))


def test_other_networks_and_outputs_in_tuples():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x, *, mask=None):
            return self.inner(x), mask

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv1d(3, 6, 3, padding=1)
            self.cells = nn.ModuleList([Cell(), Cell()])

        def forward(self, x):
            x = self.stem(x).movedim(1, -1)
            for cell in self.cells:
                x, _ = cell(x, mask=1)
            return x

    net, x = Net(), torch.randn(2, 3, 5)
    before = net(x)
    for target in ("stem", "[r]cells\\.\\d", "cells.1.inner"):
        made = Injected(copy.deepcopy(net)).add("a", load("adapters.bottleneck", target=target, reduction=2))
        assert torch.allclose(made(x), before)
        assert not torch.allclose(draw(made)(x), before)


def test_trained_by_the_train_engine_on_a_frozen_base(tiny, pipes, tmp_path):
    from acclimate.engines.score import bits_per_byte
    from acclimate.engines.train import Training, train

    plan = Training(steps=20, batch_tokens=256, row_tokens=64, lr=1e-2, precision="fp32")
    method = load("adapters.bottleneck", target=["attn.out", "ff.out"], reduction=2, activation="silu")
    done = train(tiny, load("objectives.causal_lm"), pipes, plan, tmp_path / "run", adapter=method, name="law")
    texts = pipes.texts("train")
    assert bits_per_byte(done.model, texts).value < bits_per_byte(tiny, texts).value - 0.02
    assert done.cost["trained_parameters"] == sum(weight.numel() for weight in done.model.net.adapters.parameters())
    done.model.save(tmp_path / "law")
    again = Model.load(str(tmp_path / "law"))
    assert torch.equal(again.probe(), done.model.probe())
    assert torch.equal(Model("base", again.net.detach(), again.tokenizer, "causal").probe(), tiny.probe())


def test_composed_in_a_recipe_with_a_fusion_that_learns(tiny_folder, tmp_path, cache):
    from acclimate.execute import run

    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text(" ".join(f"pump {i} was found tight on day {j}" for j in range(8 + i % 5)))
    train = {"steps": 3, "batch_tokens": 128, "row_tokens": 64}
    step = {"use": "objectives.causal_lm", "on": "pumps", "train": train}
    recipe = {
        "model": str(tiny_folder),
        "domains": {"pumps": str(folder)},
        "steps": [
            {"as": "b", **step, "adapter": {"use": "adapters.bottleneck", "with": {"reduction": 2}}},
            {"as": "h", **step, "adapter": "adapters.hydra"},
            {"as": "stacked", "use": "adapters.compose", "from": ["b", "h"], "with": {"tree": "stack(b, h)"}},
            {
                "as": "fused",
                "use": "adapters.compose",
                "from": ["b", "h"],
                "on": {"fusion": "pumps"},
                "with": {"tree": "fuse(b, h)", "steps": 2},
            },
        ],
        "evaluate": {"in": ["pumps"]},
    }
    run(recipe, tmp_path / "run")
    saved = sorted((tmp_path / "run").glob("steps/*/**/adapters.json"))
    assert len(saved) >= 4
    loaded = {str(Model.load(str(path.parent)).net.active) for path in saved}
    assert {"Stack(b, h)", "Fuse(b, h)"} <= loaded
    with pytest.raises(AcclimateError, match="the tree names 'x'"):
        run({**recipe, "steps": [*recipe["steps"][:2], {**recipe["steps"][2], "with": {"tree": "stack(b, x)"}}]}, tmp_path / "other")


def test_saved_and_loaded_as_a_model(tiny, tmp_path):
    whole = Model.load(tiny.source)
    model = whole.copy("law", share=True)
    model.net = trained(model.net, "b", "h").activate(Stack("b", Fuse("b", "h"))).eval()
    model.notes |= {"base": whole.source, "base_fingerprint": whole.fingerprint}
    model.save(tmp_path / "law")
    stored = {path.name for path in (tmp_path / "law").iterdir()}
    assert "adapters.safetensors" in stored
    assert "model.safetensors" not in stored
    again = Model.load(str(tmp_path / "law"))
    assert torch.equal(again.probe(), model.probe())
    assert str(again.net.active) == "Stack(b, Fuse(b, h))"
    (tmp_path / "law" / "adapters.safetensors").unlink()
    with pytest.raises(AcclimateError, match=r"holds no adapters.safetensors"):
        Model.load(str(tmp_path / "law"))
