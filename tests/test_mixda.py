"""Mixtures of domain adapters: the gate and what it reads, drift of layers' outputs, stages, files apart, exact resume."""

import copy

import numpy as np
import pytest
import torch

from acclimate.checks import tiny as small
from acclimate.engines import staged, terms
from acclimate.engines.staged import Stage, Term, fit, learners, load_apart, save_apart
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model import Injected, Model
from acclimate.model.composition import Stack
from strategy_tools import Bench
from worlds import domain_of, model_of, network, sentences

IDS = small.tokens()


def filled(net, seed=0, **settings):
    """A network with a mixture whose weights are drawn, as if they had been trained."""
    made = Injected(net).add("mixture", load("adapters.mixda", gate_hidden=12, reduction=4, **settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    for weight in made.adapters.parameters():
        weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return made


def hidden(made, ids, **extra):
    with torch.no_grad():
        return made(input_ids=ids, **extra).logits


def by_hand(made, u, f, read, block):
    """The mixture's output at one layer, written down again."""
    held = {key: value.double() for key, value in made.adapters["mixture"][block].state_dict().items()}
    inner = read
    for i in (1, 4, 7):
        inner = (inner @ held[f"gate.{i}.weight"].T + held[f"gate.{i}.bias"]).clamp(min=0)
    g = (inner @ held["gate.10.weight"].T + held["gate.10.bias"]).softmax(-1)
    out = g[..., :1, None] * f
    for k, name in enumerate(("law", "news"), 1):
        a = u @ held[f"domains.{name}.down.weight"].T + held[f"domains.{name}.down.bias"]
        a = 0.5 * a * (1 + torch.erf(a / 2**0.5))
        out = out + g[..., k : k + 1, None] * (a @ held[f"domains.{name}.up.weight"].T + held[f"domains.{name}.up.bias"])
    return out


@pytest.mark.parametrize("reads", ["last", "mean"])
def test_mixture_reads_the_text_without_its_padding(reads):
    made = filled(small.encoder(), domains=["law", "news"], gate_reads=reads)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    block = "bert/encoder/layer/1/output/dense"
    part, seen = dict(made.adapters["mixture"].items())[block], {}
    part.register_forward_hook(lambda _, args, out: seen.update(u=args[0].double(), f=args[1].double(), out=out.double()))
    whole = hidden(made, IDS, attention_mask=mask)
    u = seen["u"]
    read = torch.stack([u[0, 5], u[1, 3]]) if reads == "last" else torch.stack([u[0].mean(0), u[1, :4].mean(0)])
    expected = by_hand(made, u, seen["f"], read, block)
    real = mask.bool()
    assert torch.allclose((seen["f"] + seen["out"])[real], expected[real], atol=1e-5)
    alone = hidden(made, IDS[1:, :4], attention_mask=mask[1:, :4])
    assert torch.allclose(whole[1, :4], alone[0], atol=1e-5)


def test_packed_texts_have_gates_of_their_own():
    from acclimate.engines.forward import logits

    made = filled(small.encoder(), domains="law, news", gate_reads="mean")
    positions = torch.tensor([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5]])
    with torch.no_grad():
        packed = logits(made, {"input_ids": IDS, "position_ids": positions}, "masked")
        alone = logits(made, {"input_ids": IDS[:1, 4:], "attention_mask": torch.ones(1, 2).long()}, "masked")
    assert torch.allclose(packed[0, 4:], alone[0], atol=1e-5)


def test_gate_by_token_is_causal_and_the_others_are_not():
    changed = IDS.clone()
    changed[:, -1] = 11
    for reads, causal in (("token", True), ("last", False)):
        made = filled(small.decoder(), domains=["law", "news"], gate_reads=reads)
        same = torch.allclose(hidden(made, IDS)[:, :-1], hidden(made, changed)[:, :-1], atol=1e-6)
        assert same is causal, reads


def test_shares_at_the_start():
    part = next(
        iter(Injected(small.encoder()).add("m", load("adapters.mixda", original=0.9, domains="a, b, c")).parts("m").values())
    ).eval()
    shares = part.shares(torch.randn(2, 5, 32))
    assert torch.allclose(shares, torch.tensor([0.9] + [1 / 30] * 3).expand(2, 5, 4))
    for bad in ("", "a, a", ["a.b"]):
        with pytest.raises(AcclimateError, match=r"Mixda\.domains"):
            load("adapters.mixda", domains=bad).names()


def test_training_moves_every_weight_and_leaves_the_network_as_it_was():
    for make in (small.decoder, small.encoder):
        net = make()
        made = Injected(net).add("m", load("adapters.mixda", gate_dropout=0.0)).learn("m")
        frozen = copy.deepcopy(net.state_dict())
        start = {name: value.clone() for name, value in made.state_dict().items()}
        optimizer = torch.optim.Adam(made.adapters.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(made(input_ids=IDS).logits.flatten(0, 1), IDS.flatten()).backward()
            optimizer.step()
        assert all(torch.equal(value, frozen[name]) for name, value in net.state_dict().items())
        assert not [name for name, value in made.state_dict().items() if torch.equal(value, start[name])]


# drift


def test_drift_is_the_difference_of_each_block_with_and_without_the_adapter():
    made = filled(small.encoder(), layers="0-1", domains="law").train()
    batch = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
    paths = terms.blocks_of(made, "mixture")
    assert paths == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    for part in made.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    found = terms.drifts(made, paths, batch)
    with torch.no_grad():
        after = made.net.bert(**batch, output_hidden_states=True).hidden_states
        made.detach()
        first = made.net.bert(**batch, output_hidden_states=True).hidden_states[1]
        mask = batch["attention_mask"][:, None, None].bool()
        second = made.net.bert.encoder.layer[1](after[1], mask)
        second = second[0] if isinstance(second, tuple) else second
    real = batch["attention_mask"].bool()
    gaps = [(after[1] - first)[real].square().mean(), (after[2] - second)[real].square().mean()]
    assert torch.allclose(found, sum(gaps) / 2, rtol=1e-5)
    found.backward()
    assert all(weight.grad is not None for weight in made.adapters.parameters())
    assert made.training
    assert made.net.training


# the engine


def toy():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.3), torch.nn.Linear(4, 1))
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))

    def loss(step):
        rows = torch.arange(8) + 8 * (step % 8)
        return (net(x[rows]) - x[rows].sum(1, keepdim=True)).square().mean()

    return net, {"fit": Term(loss, 1.0, "x"), "small": Term(lambda _: sum(w.square().sum() for w in net.parameters()), 1e-3)}


def test_each_group_learns_at_its_own_rate():
    net, losses = toy()
    before = copy.deepcopy(net.state_dict())
    done = fit(net, losses, {"^0.bias": 0.0, "^0": 1e-2, "^2.weight": 1e-4}, Stage(steps=1, warmup=0.0, weight_decay=0.0, clip=0.0))
    moved = {name: (value - before[name]).abs().max().item() for name, value in net.state_dict().items()}
    assert moved["0.bias"] == moved["2.bias"] == 0
    assert moved["0.weight"] == pytest.approx(1e-2, rel=1e-3)  # Adam's first step is its rate
    assert moved["2.weight"] == pytest.approx(1e-4, rel=1e-2)
    assert set(done.curve[0]) == {"step", "loss", "fit", "small"}
    assert done.curve[0]["loss"] == pytest.approx(done.curve[0]["fit"] + 1e-3 * done.curve[0]["small"], rel=1e-6)
    with pytest.raises(AcclimateError, match="'nothing'"):
        learners(net, {"^0": 1.0, "nothing": 1.0})


def test_a_killed_stage_goes_on_to_the_same_bits_and_a_finished_one_is_read(tmp_path, monkeypatch):
    stage = Stage(steps=9, checkpoint_every=4, precision="fp32")
    rates = {"": 1e-2}
    whole, losses = toy()
    straight = fit(whole, losses, rates, stage, folder=tmp_path / "straight")

    net, losses = toy()
    kept = losses["fit"].loss
    calls = []

    def dies(step):
        calls.append(step)
        if step == 6:
            raise KeyboardInterrupt
        return kept(step)

    with pytest.raises(KeyboardInterrupt):
        fit(net, {**losses, "fit": Term(dies, 1.0, "x")}, rates, stage, folder=tmp_path / "killed")
    again, losses = toy()
    resumed = fit(again, losses, rates, stage, folder=tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert resumed.curve == straight.curve

    third, losses = toy()
    monkeypatch.setattr(staged._Run, "go", None)
    assert fit(third, losses, rates, stage, folder=tmp_path / "killed").curve == straight.curve
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), third.parameters(), strict=True))
    with pytest.raises(AcclimateError, match="other settings"):
        fit(toy()[0], losses, {"": 1e-3}, stage, folder=tmp_path / "killed")


def test_the_best_weights_are_kept():
    net, losses = toy()
    scores, states = iter([0.1, 0.9, 0.5]), []

    def score():
        states.append(copy.deepcopy(net.state_dict()))
        return next(scores)

    done = fit(net, losses, {"": 1e-2}, Stage(steps=6, check_every=2), score=score)
    assert done.kept == 4
    assert all(torch.equal(value, states[1][name]) for name, value in net.state_dict().items())
    assert not net.training


def test_a_loss_that_is_not_finite_is_named():
    net, losses = toy()
    with pytest.raises(AcclimateError, match="'bad' is nan at step 1"):
        fit(net, {**losses, "bad": Term(lambda _: sum(w.sum() for w in net.parameters()) * float("nan"))}, {"": 1e-2}, Stage(steps=2))


# stages


@pytest.fixture
def start(mask_tokenizer, tmp_path):
    net = network("bert", mask_tokenizer)
    model = model_of(net, mask_tokenizer, "masked")
    model.source = str(model.save(tmp_path / "start"))
    return model


@pytest.fixture
def task():
    texts = {
        split: sentences("pipes", 12, seed) + sentences("kitchen", 12, seed)
        for split, seed in (("train", 3), ("validation", 4), ("test", 5))
    }
    made = [
        domain_of("task", "labelled", [{"text": text, "label": "pk"[i // 12]} for i, text in enumerate(some)], split)
        for split, some in texts.items()
    ]
    for other in made[1:]:
        made[0].splits |= other.splits
    return made[0]


FEW = {
    "layers": "0-1", "reduction": 4, "gate_hidden": 16, "steps": 8, "rows": 4, "width": 32, "lr": 1e-2, "gate_lr": 1e-3, "task_steps": 6,
    "task_rows": 4, "task_lr": 1e-2, "shots": 3,
}  # fmt: skip


def test_stages_fill_domains_mix_them_and_learn_a_task(start, task, pipes, kitchen, tmp_path):
    bench = Bench(tmp_path)
    before = copy.deepcopy(start.net.state_dict())
    facts = domain_of("facts", "labelled", [{"text": f"The valve {i} is made of {{}}.", "label": "brass"} for i in range(8)])
    made = load("adapters.mixda_stages", **FEW).run(
        bench, start=start, domains={"pipes": pipes, "facts": facts}, general=kitchen, task=task
    )
    assert list(made) == ["pipes", "facts", "mixture", "task"]
    assert set(bench.notes["pipes.losses"]) == {"knowledge", "sampling"}
    assert 0 <= bench.notes["scores"]["macro_f1"] <= 1
    assert all(torch.equal(value, before[name]) for name, value in start.net.state_dict().items())
    mixed, learned = made["mixture"].net, made["task"].net
    for key, part in mixed.parts("mixture").items():
        assert list(part.domains) == ["pipes", "facts"]
        assert part.gate[-1].out_features == 3  # made anew for two domains
        for name in part.domains:
            for weight, value in part.domains[name].state_dict().items():
                assert torch.equal(value, made[name].net.parts("mixture")[key].domains[name].state_dict()[weight])
                assert torch.equal(value, learned.parts("mixture")[key].domains[name].state_dict()[weight])  # frozen in stage 2
        assert not torch.equal(part.gate[1].weight, learned.parts("mixture")[key].gate[1].weight)
    assert learned.active == Stack("mixture", "task")
    assert all((part.up.weight != 0).any() for part in learned.parts("task").values())
    again = Model.load(made["task"].source)
    assert torch.allclose(again.probe(), made["task"].probe(), atol=1e-6)


def test_one_domain_keeps_its_gate_and_sampling_can_be_left_out(start, pipes, task, tmp_path):
    method = load("adapters.mixda_stages", **FEW, sampling=0.0, task_adapter="houlsby")
    made = method.run(Bench(tmp_path), start=start, domains={"pipes": pipes}, task=task)
    for key, part in made["mixture"].net.parts("mixture").items():
        assert torch.equal(part.gate[1].weight, made["pipes"].net.parts("mixture")[key].gate[1].weight)
    assert len(made["task"].net.parts("task")) == 4
    with pytest.raises(AcclimateError, match="general text"):
        load("adapters.mixda_stages").run(None, start=start, domains={"pipes": pipes})
    with pytest.raises(AcclimateError, match="masked model"):
        load("adapters.mixda_stages").run(None, start=start, domains=None)


def test_sampling_holds_the_layers_where_they_were(start, pipes, kitchen, tmp_path):
    """With the drift in the loss general text moves the blocks far less than without."""
    gaps = {}
    batch = terms.padded_texts(start, kitchen.texts("test"), 32)
    for weight in (0.0, 1.0):
        method = load("adapters.mixda_stages", **{**FEW, "steps": 60}, sampling=weight, original=0.9)
        model = method.run(Bench(tmp_path / str(weight)), start=start, domains={"pipes": pipes}, general=kitchen)["pipes"]
        with torch.no_grad():
            gaps[weight] = terms.drifts(model.net, terms.blocks_of(model.net, "mixture"), batch).item()
    assert gaps[1.0] < 0.5 * gaps[0.0]


def test_facts_hide_the_answer_and_nothing_else(start):
    rows = [{"text": "Brass hardens. Valves of {} hold.", "label": "brass"}, {"text": "Steel rusts near salt.", "label": "rusts"}]
    source = terms.Facts(domain_of("facts", "labelled", rows), start, width=64, seed=0)
    for k in range(2):
        row = source[k]
        tokenizer, given = start.tokenizer, rows[row["index"]]
        asked = row["labels"] != -100
        assert (row["input_ids"][asked] == tokenizer.mask_token_id).all()
        assert tokenizer.decode(row["labels"][asked]).strip() == given["label"]
        whole = np.where(asked, row["labels"], row["input_ids"])
        assert given["text"].replace("{}", given["label"]) in tokenizer.decode(whole)
    with pytest.raises(AcclimateError, match="neither its label"):
        terms.Facts(domain_of("facts", "labelled", [{"text": "Nothing.", "label": "x9"}]), start, width=64, seed=0)[0]


def test_few_shots_are_so_many_of_each_class():
    given = terms.Labelled([str(i) for i in range(30)], ["a"] * 20 + ["b"] * 8 + ["c"] * 2)
    few = given.few(4, 0)
    assert [few.labels.count(label) for label in "abc"] == [4, 4, 2]
    assert few.texts == given.few(4, 0).texts != given.few(4, 1).texts


def test_domains_and_gates_lie_in_files_of_their_own(tmp_path):
    made = filled(small.encoder(), domains=["law", "news"])
    groups = {**{f"domain-{name}": rf"\.domains\.{name}\." for name in ("law", "news")}, "gates": r"\.gate\."}
    counts = save_apart(made, groups, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["domain-law.safetensors", "domain-news.safetensors", "gates.safetensors"]
    assert sum(counts.values()) == sum(weight.numel() for weight in made.adapters.parameters())
    more = filled(small.encoder(), seed=1, domains=["news", "tax", "law"])  # another order, and one domain more: the gate is its own
    gates = {name: value.clone() for name, value in more.state_dict().items() if ".gate." in name}
    load_apart(more, {key: value for key, value in groups.items() if key != "gates"}, tmp_path)
    for key, part in more.parts("mixture").items():
        for name in ("law", "news"):
            assert torch.equal(part.domains[name].down.weight, made.parts("mixture")[key].domains[name].down.weight)
    assert all(torch.equal(value, gates[name]) for name, value in more.state_dict().items() if name in gates)
    with pytest.raises(AcclimateError, match=r"gates\.safetensors does not fit"):
        load_apart(more, {"gates": groups["gates"]}, tmp_path)
