"""Mixtures of experts: gates, losses, grouped against dense computation, and the two networks made of dense decoders."""

import copy

import pytest
import torch
from torch import nn

from acclimate.engines.forward import block_mask, packs
from acclimate.errors import AcclimateError
from acclimate.model import Model, fingerprint
from acclimate.models.moe import MoEForCausalLM, expert_shares, layers_of
from acclimate.models.projected import ProjectedForCausalLM
from acclimate.parts.moe import Held, MoEFFN, balance_loss, gate_weights, mixture, per_document, perplexity_weights, z_loss
from worlds import domain_of, model_of, network, sentences

IDS = torch.tensor([[0, 40, 71, 33, 90, 12, 64, 255], [0, 33, 90, 12, 40, 40, 71, 5]])


@pytest.fixture(scope="module")
def dense(tokenizer):
    """A base and two experts of it, far enough apart that every mistake shows."""
    return [network("llama", tokenizer, seed, tie_word_embeddings=True) for seed in range(3)]


def moe(dense, **settings):
    return MoEForCausalLM.from_dense(dense[0], dense, **{"experts_per_token": 2, "prompt_tokens": 0, **settings})


def projected(dense, tokenizer, **settings):
    thin = network("llama", tokenizer, 7, hidden_size=16, num_hidden_layers=1)
    return ProjectedForCausalLM.from_dense(dense[0], [*dense[:2], thin], **{"experts_per_token": 2, "prompt_tokens": 0, **settings})


# maths


def test_gate_weights_by_hand():
    scores = torch.tensor([[1.0, 2.0, 0.0]])
    e = torch.tensor([1.0, 2.0, 0.0]).exp()
    assert torch.allclose(gate_weights(scores, 2), torch.tensor([[e[0], e[1], 0]]) / (e[0] + e[1]))
    assert torch.allclose(gate_weights(scores, 2, over="all"), torch.tensor([[e[0], e[1], 0]]) / e.sum())
    assert torch.allclose(gate_weights(scores, 9), scores.softmax(1))


def test_perplexity_weights_by_hand():
    first, second = torch.tensor(1 / 4).exp(), torch.tensor(1 / 10).exp()
    found = perplexity_weights(torch.tensor([20.0, 4.0, 10.0]), 2)
    assert torch.allclose(found, torch.tensor([0, first, second]) / (first + second))


def test_balance_loss_by_hand_and_against_transformers():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    scores = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    weights = gate_weights(scores, 2)
    share = torch.bincount(scores.topk(2, 1).indices.flatten(), minlength=4) / 100
    assert torch.allclose(balance_loss(scores, weights), 4 * (share * scores.softmax(1).mean(0)).sum())
    theirs = load_balancing_loss_func((scores,), 4, 2)  # counts choices per item, which is top_k times the share
    assert torch.allclose(balance_loss(scores, weights) * 2, theirs)


def test_losses_give_the_gate_a_gradient():
    scores = torch.randn(20, 4, requires_grad=True)
    (balance_loss(scores, gate_weights(scores, 1)) + z_loss(scores)).backward()
    assert scores.grad.abs().sum() > 0


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_grouped_equals_dense(top_k):
    torch.manual_seed(0)
    experts = [nn.Linear(6, 6) for _ in range(4)]
    x, weights = torch.randn(30, 6), gate_weights(torch.randn(30, 4), top_k)
    reference = torch.stack([expert(x) for expert in experts], 1).mul(weights[..., None]).sum(1)
    assert torch.allclose(mixture(x, weights, experts), reference, atol=1e-6)


def test_only_chosen_experts_compute():
    seen = []

    def counting(x):
        seen.append(len(x))
        return x

    def never(x):
        raise AssertionError("an expert that nobody chose was computed")

    weights = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    mixture(torch.ones(3, 2), weights, [counting, counting, never])
    assert seen == [3, 1]


def test_a_weight_for_every_feature():
    x = torch.ones(5, 3)
    weights = torch.rand(5, 2, 3)
    found = mixture(x, weights, [lambda x: x, lambda x: 10 * x])
    assert torch.allclose(found, weights[:, 0] + 10 * weights[:, 1])


def test_bases_that_are_always_on():
    torch.manual_seed(0)
    experts, base, gate = [nn.Linear(4, 4) for _ in range(3)], nn.Linear(4, 4), nn.Linear(4, 3)
    x = torch.randn(2, 5, 4)
    weights = gate_weights(gate(x), 1, over="all")
    mixed = torch.stack([expert(x) for expert in experts], -2).mul(weights[..., None]).sum(-2)
    beside = MoEFFN(experts, gate, top_k=1, over="all", base=base)
    assert torch.allclose(beside(x), base(x) + mixed, atol=1e-6)
    relative = MoEFFN(experts, gate, top_k=1, over="all", base=base, relative=True)
    differences = torch.stack([expert(x) - base(x) for expert in experts], -2)
    assert torch.allclose(relative(x), base(x) + differences.mul(weights[..., None]).sum(-2), atol=1e-6)


def test_gateless_and_enforced():
    torch.manual_seed(0)
    layer = MoEFFN([nn.Linear(4, 4) for _ in range(3)])
    x = torch.randn(2, 5, 4)
    each = [expert(x) for expert in layer.experts]
    assert torch.allclose(layer(x), sum(each) / 3, atol=1e-6)
    layer.held.weights = torch.eye(3)[[2, 0]]  # a sequence of each of two domains
    assert torch.equal(layer(x), torch.stack([each[2][0], each[0][1]]))
    with pytest.raises(AcclimateError, match=r"are \[2, 3\], but 3 rows"):
        layer(torch.randn(3, 5, 4))


def test_deep_gates_score_every_feature():
    class Deep(nn.Module):
        def forward(self, x):
            return x[:, None] * torch.tensor([1.0, -1.0])[:, None]

    layer = MoEFFN([nn.Identity(), nn.Linear(3, 3)], Deep(), top_k=1)
    x = torch.tensor([[[1.0, -2.0, 3.0]]])
    assert torch.allclose(layer(x)[0, 0, [0, 2]], x[0, 0, [0, 2]])
    assert torch.allclose(layer(x)[0, 0, 1], layer.experts[1](x)[0, 0, 1])


def test_what_belongs_to_a_pass_is_not_copied():
    held = Held(weights=torch.ones(1, 1, requires_grad=True) * 2)
    layers = copy.deepcopy(nn.ModuleList([MoEFFN([nn.Identity()], held=held), MoEFFN([nn.Identity()], held=held)]))
    assert layers[0].held is layers[1].held
    assert layers[0].held.weights is None


def test_means_of_documents():
    values = torch.arange(8.0).view(2, 4, 1)
    document = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])
    counted = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0]]).bool()
    mean, count = per_document(values, document, counted)
    assert mean[..., 0].tolist() == [[0.5, 0.5, 3, 3], [5, 5, 5, 5]]
    assert count.tolist() == [[2, 2, 1, 1], [2, 2, 2, 2]]


# the decoder


@pytest.mark.parametrize("settings", [{"routing": "linear"}, {"routing": "ppl"}, {"routing": "ppl", "separate_attention": True}])
@torch.no_grad()
def test_one_expert_is_the_dense_network(dense, settings):
    net = MoEForCausalLM.from_dense(dense[1], [dense[1]], **settings)
    assert torch.equal(net(input_ids=IDS).logits, dense[1](input_ids=IDS).logits)


@pytest.mark.parametrize("separate", [False, True])
@torch.no_grad()
def test_equal_experts_are_the_dense_network(dense, separate):
    net = MoEForCausalLM.from_dense(dense[1], [dense[1]] * 3, routing="ppl", separate_attention=separate)
    assert torch.allclose(net(input_ids=IDS).logits, dense[1](input_ids=IDS).logits, atol=1e-4)


@torch.no_grad()
def test_the_whole_of_one_expert_is_chosen_by_given_weights(dense):
    net = moe(dense, routing="given", separate_attention=True)
    with pytest.raises(AcclimateError, match="run the network inside"):
        net(input_ids=IDS)
    stem = copy.deepcopy(dense[0])
    for layer, expert in zip(layers_of(stem), layers_of(dense[2]), strict=True):
        layer.mlp, layer.self_attn = expert.mlp, expert.self_attn
    with net.given(torch.eye(3)[[2, 2]]):
        assert torch.allclose(net(input_ids=IDS).logits, stem(input_ids=IDS).logits, atol=1e-5)


@torch.no_grad()
def test_perplexities_are_those_of_the_dense_experts(dense):
    net = moe(dense, routing="ppl")
    found, _ = net.perplexities(IDS)
    for number, expert in enumerate(dense):
        for row in range(2):
            wanted = expert(input_ids=IDS[[row]], labels=IDS[[row]]).loss.exp()
            assert torch.allclose(found[row, :, number], wanted, rtol=1e-4)
    assert torch.allclose(net.route(IDS), perplexity_weights(found, 2))
    net.config.prompt_tokens = 4
    assert torch.allclose(net.perplexities(IDS)[0][:, -1], net.perplexities(IDS[:, :4])[0][:, -1], rtol=1e-5)
    assert torch.allclose(net.perplexities(IDS, whole=True)[0], found)


@torch.no_grad()
def test_a_prompt_without_a_token_to_predict_uses_all_experts(dense):
    assert torch.allclose(moe(dense, routing="ppl").route(IDS[:, :1]), torch.tensor(1 / 3))


@pytest.mark.parametrize("settings", [{"routing": "linear"}, {"routing": "ppl"}, {"routing": "ppl", "separate_attention": True}])
@torch.no_grad()
def test_packed_documents_have_their_own_weights(dense, tokenizer, settings):
    net = moe(dense, **settings)
    assert packs(model_of(net, tokenizer))
    first, second = IDS[:1, :5], IDS[1:]
    ids, positions = torch.cat([first, second], 1), torch.cat([torch.arange(5), torch.arange(8)])[None]
    both = net(input_ids=ids, position_ids=positions, attention_mask=block_mask(positions, True), use_cache=False).logits
    for part, alone in ((both[:, :5], first), (both[:, 5:], second)):
        assert torch.allclose(part, net(input_ids=alone).logits, atol=1e-4)
    padded = torch.cat([torch.full((1, 3), 2), first], 1)  # as generation pads
    mask = torch.tensor([[0] * 3 + [1] * 5])
    if net.by_sequence:
        assert torch.allclose(net.route(padded, mask)[:, -1], net.route(first)[:, -1], atol=1e-6)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("cache", [False, True])
@torch.no_grad()
def test_weights_are_held_for_the_whole_generation(dense, separate, cache):
    net = moe(dense, routing="ppl", separate_attention=separate)
    seen = []
    route = net.route
    net.route = lambda *given, **more: seen.append(1) or route(*given, **more)
    out = net.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False, use_cache=cache)
    assert len(seen) == 1
    weights, ids = route(IDS)[:, -1], IDS
    with net.given(weights):
        for _ in range(out.shape[1] - IDS.shape[1]):
            ids = torch.cat([ids, net(input_ids=ids).logits[:, -1:].argmax(2)], 1)
    ended = (out == net.generation_config.eos_token_id).cumsum(1) > 0
    assert torch.equal(out[~ended], ids[~ended])
    beams = net.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, num_beams=2, use_cache=cache, do_sample=False
    )
    assert len(beams) == 2
    cached = net(input_ids=IDS, use_cache=True).past_key_values
    with pytest.raises(AcclimateError, match="come from its prompt"):
        net(input_ids=IDS[:, :1], past_key_values=cached, use_cache=True)


@pytest.mark.parametrize("settings", [{"routing": "linear"}, {"routing": "ppl"}, {"routing": "uniform", "separate_attention": True}])
def test_saved_and_loaded_it_answers_the_same(dense, tokenizer, tmp_path, settings):
    model = model_of(moe(dense, **settings), tokenizer)
    model.save(tmp_path / "moe")
    again = Model.load(str(tmp_path / "moe"))
    assert again.kind == "causal"
    assert again.context == 256
    assert again.fingerprint == model.fingerprint
    assert torch.equal(again.probe(), model.probe())


@pytest.mark.parametrize("separate", [False, True])
@torch.no_grad()
def test_the_judges_of_a_copy_use_the_copys_experts(dense, tokenizer, separate):
    model = model_of(moe(dense, routing="ppl", separate_attention=separate), tokenizer)
    for share in (False, True):
        made = model.copy(share=share)
        before = model.net.perplexities(IDS)[0]
        assert torch.equal(made.net.perplexities(IDS)[0], before)
        layers_of(made.net.body)[0].mlp.experts[1].down_proj.weight = nn.Parameter(torch.zeros(32, 64))
        assert not torch.equal(made.net.perplexities(IDS)[0][..., 1], before[..., 1])
        assert torch.equal(model.net.perplexities(IDS)[0], before)


@torch.no_grad()
def test_given_weights_win_over_a_gate(dense):
    net = moe(dense, routing="linear")
    plain = MoEForCausalLM.from_dense(dense[0], dense, routing="given")
    weights = torch.tensor([[0.5, 0.0, 0.5]])
    with net.given(weights), plain.given(weights):
        found = net(input_ids=IDS).logits
        assert torch.equal(found, plain(input_ids=IDS).logits)
    assert not torch.equal(found, net(input_ids=IDS).logits)


def test_the_type_of_a_saved_network_names_its_module():
    for cls in (MoEForCausalLM, ProjectedForCausalLM):
        assert cls.__module__ == "acclimate.models." + cls.config_class.model_type.removeprefix("acclimate_")


def test_settings_are_part_of_the_fingerprint(dense):
    assert fingerprint(moe(dense, experts_per_token=1)) != fingerprint(moe(dense, experts_per_token=2))


def test_what_learns(dense):
    net = moe(dense, routing="linear", learns="router")
    net.requires_grad_(True)
    assert {name for name, weight in net.named_parameters() if weight.requires_grad} == {
        f"body.model.layers.{i}.mlp.gate.weight" for i in range(2)
    }
    net = moe(dense, routing="ppl")
    net.requires_grad_(True)
    assert not any(weight.requires_grad for weight in net.judges.parameters())
    assert all(weight.requires_grad for weight in net.body.parameters())
    assert all(weight.data_ptr() != own.data_ptr() for weight, own in zip(net.judges.parameters(), dense[0].parameters(), strict=False))


def test_the_auxiliary_loss_is_of_the_last_pass(dense):
    net = moe(dense, routing="linear", balance=0.5)
    net.train()
    net.requires_grad_(True)
    assert net.auxiliary_loss() == 0
    for _ in range(2):
        net(input_ids=IDS)
    losses = [balance for balance, _ in net.held.losses]
    assert len(losses) == 2  # one a layer, of the second pass alone
    found = net.auxiliary_loss()
    assert torch.allclose(found, 0.5 * sum(losses) / 2)
    found.backward()
    assert all(layer.mlp.gate.weight.grad.abs().sum() > 0 for layer in layers_of(net.body))
    assert net.auxiliary_loss() == 0
    with torch.no_grad():
        net(input_ids=IDS)
    assert net.auxiliary_loss() == 0


def test_padding_does_not_count_for_the_load(dense):
    net = moe(dense, routing="linear").train()
    net(input_ids=IDS)
    whole = net.auxiliary_loss()
    net(input_ids=torch.cat([IDS, torch.full((2, 9), 2)], 1), attention_mask=torch.tensor([[1] * 8 + [0] * 9] * 2))
    assert torch.allclose(net.auxiliary_loss(), whole, atol=1e-6)


def test_what_does_not_fit_is_refused(dense, tokenizer):
    with pytest.raises(AcclimateError, match="use routing ppl, given or uniform"):
        moe(dense, routing="linear", separate_attention=True)
    with pytest.raises(AcclimateError, match="routing = 'best'"):
        moe(dense, routing="best")
    with pytest.raises(AcclimateError, match="other shapes need projectors"):
        moe([dense[0], network("llama", tokenizer, 1, intermediate_size=32)])
    with pytest.raises(AcclimateError, match="cannot be mixed"):
        moe([network("gpt2", tokenizer)] * 2)


# whole experts behind projectors


@torch.no_grad()
def test_projected_by_hand(dense, tokenizer):
    net = projected(dense, tokenizer)
    inner = dense[0].get_input_embeddings()(IDS)
    weights = gate_weights(net.router(inner.mean(1)), 2)
    total = 0
    for number, expert in enumerate([*dense[:2], network("llama", tokenizer, 7, hidden_size=16, num_hidden_layers=1)]):
        hidden = expert.model(inputs_embeds=net.into[number](inner)).last_hidden_state
        total = total + net.out[number](hidden) * weights[:, number, None, None]
    assert torch.allclose(net(input_ids=IDS).logits, dense[0].lm_head(total), atol=1e-4)
    assert packs(model_of(net, tokenizer))


@torch.no_grad()
def test_projected_generates_with_a_cache_as_without(dense, tokenizer):
    net = projected(dense, tokenizer)
    settings = {"attention_mask": torch.tensor([[1] * 8, [0] * 2 + [1] * 6]), "max_new_tokens": 6, "do_sample": False}
    cached, plain = (net.generate(input_ids=IDS, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached, plain)
    assert net.generate(input_ids=IDS, num_beams=2, **settings).shape[0] == 2


def test_projected_saved_and_loaded(dense, tokenizer, tmp_path):
    model = model_of(projected(dense, tokenizer), tokenizer)
    model.save(tmp_path / "projected")
    again = Model.load(str(tmp_path / "projected"))
    assert again.fingerprint == model.fingerprint
    assert torch.equal(again.probe(), model.probe())


def test_phases_of_projected(dense, tokenizer):
    net = projected(dense, tokenizer, learns="bridges")
    net.requires_grad_(True)
    learning = {name.partition(".")[0] for name, weight in net.named_parameters() if weight.requires_grad}
    assert learning == {"into", "out", "router"}
    before = fingerprint(net)
    net.configured(learns="all")
    assert fingerprint(net) != before
    assert all(weight.requires_grad for weight in net.parameters())
    net.train()
    net(input_ids=IDS)
    loss = net.auxiliary_loss()
    loss.backward()
    assert net.router[0].weight.grad.abs().sum() > 0


# both under the train engine


@pytest.mark.parametrize("kind", ["linear", "router", "ppl", "separate", "bridges"])
def test_training_changes_what_should_learn_and_nothing_else(dense, tokenizer, tmp_path, kind):
    from acclimate.engines.train import Training, train
    from acclimate.method import load

    domain = domain_of("pipes", "text", [{"text": text} for text in sentences("pipes", 20)])
    made = {
        "linear": lambda: moe(dense, routing="linear"),
        "router": lambda: moe(dense, routing="linear", learns="router"),
        "ppl": lambda: moe(dense, routing="ppl"),
        "separate": lambda: moe(dense, routing="ppl", separate_attention=True),
        "bridges": lambda: projected(dense, tokenizer, learns="bridges"),
    }[kind]()
    before = {name: weight.clone() for name, weight in made.state_dict().items()}
    settings = Training(steps=2, batch_tokens=128, row_tokens=64, lr=1e-2, watch_every=100, warmup=0.0)
    done = train(model_of(made, tokenizer), load("objectives.causal_lm"), domain, settings, tmp_path)
    assert done.cost["packed"]
    after = done.model.net.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    if kind == "router":
        assert all(".mlp.gate." in name for name in changed)
    if kind == "bridges":
        assert {name.partition(".")[0] for name in changed} == {"into", "out", "router"}
    assert not any(name.startswith("judges") for name in changed)
    assert all(torch.equal(before[name], weight) for name, weight in made.state_dict().items())  # the start is left as it was
    done.model.copy()


def test_the_balance_loss_reaches_the_gates_through_the_engine(dense, tokenizer, tmp_path):
    from acclimate.engines.train import Training, train
    from acclimate.method import load

    domain = domain_of("pipes", "text", [{"text": text} for text in sentences("pipes", 20)])
    settings = Training(steps=20, batch_tokens=256, row_tokens=64, lr=1e-1, watch_every=100, warmup=0.0, schedule="constant")
    uneven = moe(dense, routing="linear", experts_per_token=1, learns="router")
    for layer in layers_of(uneven.body):
        layer.mlp.gate.weight.data[0] += 0.5  # most tokens with a positive sum go to the first expert
    largest = []
    for balance in (0.0, 10.0):
        uneven.config.balance = balance
        made = train(model_of(uneven, tokenizer), load("objectives.causal_lm"), domain, settings, tmp_path / str(balance)).model
        largest.append(max(expert_shares(made, domain.texts()[:5])))
    assert largest[1] < largest[0] - 0.02


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Qwen3", "Gemma", "Olmo2"])
@pytest.mark.parametrize("separate", [False, True])
@torch.no_grad()
def test_other_families(tokenizer, family, separate):
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, max_position_embeddings=64, pad_token_id=2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    net = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    one = MoEForCausalLM.from_dense(net, [net], routing="ppl", separate_attention=separate)
    assert torch.equal(one(input_ids=IDS).logits, net(input_ids=IDS).logits)
    out = one.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, do_sample=False)
    assert torch.equal(out, net.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, do_sample=False))


@pytest.mark.parametrize("settings", [{"routing": "linear"}, {"routing": "ppl", "separate_attention": True}])
def test_with_recomputed_activations_the_gradient_is_the_same(dense, settings):
    net = moe(dense, **settings).train()
    found = []
    for recompute in (False, True):
        if recompute:
            net.gradient_checkpointing_enable({"use_reentrant": False})
        net.zero_grad()
        loss = net(input_ids=IDS, use_cache=False).logits.logsumexp(2).mean() + net.auxiliary_loss()
        loss.backward()
        found.append({name: weight.grad.clone() for name, weight in net.named_parameters() if weight.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])


@torch.no_grad()
def test_half_precision_stays_finite(dense, tokenizer):
    for net in (moe(dense, routing="ppl", separate_attention=True), moe(dense, routing="linear"), projected(dense, tokenizer)):
        assert torch.isfinite(net.to(torch.bfloat16)(input_ids=IDS).logits).all()


def test_shares_of_the_experts(dense, tokenizer):
    for net in (moe(dense, routing="ppl"), moe(dense, routing="linear"), projected(dense, tokenizer)):
        shares = expert_shares(model_of(net, tokenizer), sentences("kitchen", 3))
        assert len(shares) == 3
        assert sum(shares) == pytest.approx(1, abs=1e-5)
