"""Compacter, low-rank, BitFit, LoReFT, VeRA, MAM, UniPELT: what sets each apart, on real shapes of networks and in compositions."""

import copy
import math

import pytest
import torch
from torch import nn

from acclimate.checks import tiny as small
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model import Injected
from acclimate.model.composition import Average, Stack
from acclimate.model.roles import Site
from acclimate.parts.phm import PhmLinear, Rule, kronecker

IDS = small.tokens()


def logits(net, ids=IDS, mask=None, **extra):
    with torch.no_grad():
        return net(input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask, **extra).logits


def injected(make, use, **settings):
    made = Injected(make().eval()).add("a", load(use, **settings))
    generator = torch.Generator().manual_seed(0)
    for weight in (*made.adapters.parameters(), *made.common.parameters()):
        weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return made.eval()


def count(held):
    return sum(weight.numel() for weight in held.parameters())


def test_kronecker_sums():
    generator = torch.Generator().manual_seed(0)
    rule, rows, columns = (torch.randn(shape, generator=generator) for shape in ((4, 4, 4), (4, 3, 2), (4, 2, 5)))
    wanted = sum(torch.kron(rule[i], rows[i] @ columns[i]) for i in range(4))
    assert torch.allclose(kronecker(rule, rows, columns), wanted, atol=1e-5)
    with pytest.raises(AcclimateError, match=r"width of 10 cannot be cut into n = 4"):
        PhmLinear(8, 10, 4)


def test_a_shared_rule_is_stored_once_and_learns_from_every_layer(tmp_path):
    made = injected(small.decoder, "adapters.compacter")
    assert count(made.common) == 64
    assert not [key for key in made.state_dict() if ".own." in key]
    made.learn("a")(input_ids=IDS).logits.square().mean().backward()
    assert made.common["a"]["rule"].weight.grad.abs().sum() > 0
    made.save_pretrained(tmp_path)
    assert torch.equal(logits(Injected.from_pretrained(small.decoder(), tmp_path).eval()), logits(made.requires_grad_(False)))
    twin = copy.deepcopy(made)
    with torch.no_grad():
        twin.common["a"]["rule"].weight.mul_(2)  # the copy's layers read the copy's rule
    assert not torch.equal(logits(twin), logits(made))
    assert count(injected(small.decoder, "adapters.compacter", shared=False).adapters) == count(made.adapters) + 4 * 2 * 64


def test_rule_outside_is_no_weight_of_the_layer():
    layer = PhmLinear(8, 8, 4, rule=Rule(4, 0.1))
    assert sorted(dict(layer.named_parameters())) == ["bias", "columns", "rows"]


def test_sizes_of_the_small_ones():
    site = Site("x", "x", 384, 384, nn.Linear(384, 384))
    assert count(load("adapters.low_rank").wrap(site)) == 384 + 12 + 12 + 12 + 384 + 384
    assert count(load("adapters.bitfit").wrap(site)) == 384
    assert count(load("adapters.loreft").wrap(site)) == 384 + 384 + 1


def test_bitfit_folds_into_biases_that_were_not_there():
    made = injected(small.decoder, "adapters.bitfit")
    apart = logits(made)
    folded = made.merge_and_unload()
    assert folded.model.layers[0].mlp.down_proj.bias is not None
    assert torch.allclose(logits(folded), apart, atol=1e-5)
    norms = injected(small.encoder, "adapters.bitfit", target=["linear", "norm"])
    assert torch.isfinite(logits(norms)).all()
    with pytest.raises(AcclimateError, match="no matrix"):
        norms.fold("a")


def test_loreft_edits_its_positions_alone_in_a_subspace():
    part = load("adapters.loreft", r=2, prefix_positions=2, suffix_positions=1).wrap(Site("x", "x", 8, 8, nn.Identity())).eval()
    with torch.no_grad():
        part.w.add_(torch.randn(part.w.shape, generator=torch.Generator().manual_seed(1)))
    rotation = part.rotation()
    assert torch.allclose(rotation @ rotation.T, torch.eye(2), atol=1e-6)
    change = part(None, torch.ones(3, 6, 8))
    assert change[:, [2, 3, 4]].abs().max() == 0
    assert change[:, [0, 1, 5]].abs().min() > 0
    assert torch.linalg.matrix_rank(change.reshape(-1, 8)) <= 2
    everywhere = load("adapters.loreft", prefix_positions=0).wrap(Site("x", "x", 8, 8, nn.Identity()))
    assert everywhere.first == everywhere.last == 0
    assert part(None, torch.ones(3, 8)).shape == (3, 8)


@pytest.mark.parametrize("use", ["adapters.mam", "adapters.unipelt"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["decoder", "fused_decoder", "encoder"])
def test_a_prefix_sees_through_padding_caches_and_kinds_of_attention(family, attention, use):
    made = injected(small.FAMILIES[family], use, tokens=3, hidden=5)
    made.net.set_attn_implementation(attention)
    whole = logits(made)
    assert not torch.allclose(whole, logits(made.detach()), atol=1e-3)
    made.attach()
    if family == "encoder":  # padding on the right changes nothing
        padded, mask = torch.cat([IDS, IDS[:, :2]], 1), torch.ones(2, 8, dtype=torch.long)
        mask[:, 6:] = 0
        if use == "adapters.unipelt":  # whose prefix has a gate that takes the mean of the row, padding included
            return
        assert torch.allclose(logits(made, padded, mask)[:, :6], whole, atol=1e-5)
        return
    assert torch.allclose(logits(made, IDS[:, :4]), whole[:, :4], atol=1e-5)  # nobody sees what is to come
    with torch.no_grad():
        first = made(input_ids=IDS[:, :4], use_cache=True)
        assert first.past_key_values.get_seq_length() == 4  # the prefix is not in it
        rest = made(input_ids=IDS[:, 4:], past_key_values=first.past_key_values, use_cache=True).logits
    assert torch.allclose(rest, whole[:, 4:], atol=1e-5)


def test_a_prefix_is_that_of_peft():
    from peft import PrefixTuningConfig, get_peft_model

    made = injected(small.decoder, "adapters.mam", tokens=3, hidden=0)
    with torch.no_grad():
        for part in made.parts("a").values():
            if hasattr(part, "up"):
                part.up.weight.zero_()
                part.up.bias.zero_()
    peft = get_peft_model(small.decoder(), PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")).eval()
    prefixes = [part.weight for part in made.parts("a").values() if hasattr(part, "keys_values")]
    with torch.no_grad():
        peft.prompt_encoder["default"].embedding.weight.copy_(torch.cat(prefixes, 1))
    given = {"attention_mask": torch.ones(2, 9, dtype=torch.long), "past_key_values": peft.get_prompt(2)}
    with torch.no_grad():  # positions as ours: peft's own call counts those of the prefix
        theirs = peft.base_model(input_ids=IDS, position_ids=torch.arange(6)[None], **given).logits
    assert torch.allclose(logits(made), theirs, atol=1e-5)


def test_a_prefix_stands_alone_or_in_a_stack():
    made = injected(small.decoder, "adapters.mam", tokens=2, hidden=0)
    alone = logits(made)
    made.add("b", load("adapters.bottleneck"))
    assert torch.equal(logits(made.activate(Stack("a", "b"))), alone)  # b is zero yet
    with pytest.raises(AcclimateError, match="stands alone or in a Stack"):
        logits(made.activate(Average("a", "b")))
    assert torch.equal(logits(made.activate("a").drop(2)), logits(made.detach()))


def test_a_prefix_refuses_what_takes_no_cache():
    from transformers import ViTConfig, ViTModel

    net = ViTModel(ViTConfig(image_size=8, patch_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(AcclimateError, match="takes no cache of keys and values"):
        Injected(net).add("a", load("adapters.mam", target="[r].*\\.attention"))


def test_packed_texts_share_a_prefix_and_nothing_else():
    made = injected(small.decoder, "adapters.mam", tokens=3, hidden=0)
    with torch.no_grad():
        packed = made(input_ids=IDS.reshape(1, 12), position_ids=torch.arange(6).repeat(2)[None], use_cache=False).logits
    assert torch.allclose(packed.reshape(2, 6, -1), logits(made), atol=1e-5)


def test_gates_of_unipelt():
    site = Site("a.q_proj", "a.q_proj", 4, 4, nn.Linear(4, 4))
    own, mean = (load("adapters.unipelt", gate=gate).wrap(site, nn.ModuleDict()) for gate in ("token", "row"))
    with torch.no_grad():
        for weight, value in ((own.gate.weight, 1.0), (own.part.a, 0.5), (own.part.b, 0.25)):
            weight.fill_(value)
    mean.load_state_dict(own.state_dict())
    x = torch.tensor([[[0.0, 0, 0, 0], [1, 1, 1, 1]]])
    plain, shares = own.part(x, x), [0.5, 1 / (1 + math.exp(-4))]
    assert torch.allclose(own(x, x)[0], torch.tensor(shares)[:, None] * plain[0])
    assert torch.allclose(mean(x, x)[0], sum(shares) / 2 * plain[0])
    decoder, encoder = (injected(make, "adapters.unipelt", hidden=4) for make in (small.decoder, small.encoder))
    stored = [[key.rpartition(".")[2] for key in made.state_dict()] for made in (decoder, encoder)]
    assert stored[0].count("shut") == 2  # the mean of the row would let a decoder look ahead
    assert stored[1].count("shut") == 0


def test_vera_learns_two_vectors_and_shares_the_rest():
    from peft import get_peft_model

    net = get_peft_model(small.decoder(), load("adapters.vera", r=4, target=["q_proj", "v_proj"]).peft(small.decoder()))
    assert {name.split("vera_")[1].split(".")[0] for name, weight in net.named_parameters() if weight.requires_grad} == {
        "lambda_b",
        "lambda_d",
    }
    layers = net.base_model.model.model.layers
    assert layers[0].self_attn.q_proj.vera_A["default"] is layers[1].self_attn.v_proj.vera_A["default"]


def test_every_kind_in_networks_of_all_sorts_by_address():
    from acclimate.experiments.adapters.open_delta import KINDS, conformance
    from acclimate.experiments.backbones import backbones
    from acclimate.experiments.fixture import tiny_model

    places = backbones(tiny_model("masked"), tiny_model("causal"))
    assert len(places) == 6
    for place in ("convolutions", "graph", "two towers"):  # the others are in the experiment's tiny run
        for kind in KINDS:
            found = conformance(places[place], kind)
            assert all(found.values()), (kind, place, found)


def test_side_by_side():
    from acclimate.experiments.adapter_table import page, side_by_side

    found = side_by_side(tiny=True, only=("adapters.bitfit", "adapters.mam", "adapters.prompt"))
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == {"(before)", "(all weights)", "adapters.bitfit", "adapters.mam", "adapters.prompt"}
    assert not [row for row in rows.values() if "error" in row]
    assert rows["(before)"]["forgotten"] == 0
    assert "| adapters.bitfit |" in page(found)
