"""DAM: teachers per domain, words about the learner, MoFO, the merged network, and the strategy on networks that are really trained."""

import copy
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cosine_similarity

from acclimate.domain import Domain
from acclimate.engines import train as engine
from acclimate.engines import words
from acclimate.engines.optimizers import MoFO
from acclimate.engines.train import Training, train
from acclimate.errors import AcclimateError
from acclimate.kinds import Objective
from acclimate.method import load
from acclimate.model import Model
from acclimate.models.dam import FILE, coefficients, collapsed, column_angles, merged
from acclimate.runs import Run
from worlds import model_of, network, sentences

LM = load("objectives.causal_lm")


def settings(**given):
    small = {"steps": 3, "batch_tokens": 256, "row_tokens": 64, "lr": 3e-3, "warmup": 0.0, "precision": "fp32", "checkpoint_every": 2}
    return Training(**{**small, **given})


def losses(done) -> list[float]:
    return [row["loss"] for row in done.curve if "loss" in row]


def moved(model, size, seed, name):
    """A copy whose weights are moved a little, as a tune's are."""
    made = model.copy(name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.net.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator) * weight.std(correction=0).clamp(min=0.1))
    made.net.eval()
    return made


@pytest.fixture(scope="module")
def base(tokenizer):
    return model_of(network("llama", tokenizer, tie_word_embeddings=True), tokenizer, name="base")


@pytest.fixture(scope="module")
def pair(base):
    return [moved(base, 0.3, 1, "one"), moved(base, 0.3, 2, "two")]


@pytest.fixture(scope="module")
def both():
    return {topic: Domain.from_texts(topic, sentences(topic, 40)) for topic in ("pipes", "kitchen")}


def weighted(domains):
    return {name: (domain, 1.0) for name, domain in domains.items()}


# ---------------------------------------------------------------- the train engine


def test_rows_of_each_domain_are_taught_by_its_own_teacher(base, pair, both, tmp_path, cache, monkeypatch):
    """A learner that is one of the teachers agrees with it on its domain and with the other on none."""
    seen = {}
    plain = words.Supply._objective

    def spy(self, net, batch, items, where):
        for source, _ in where:
            seen.setdefault(self.sources[source].name, []).append(plain(self, net, batch, None, where).item())
        return plain(self, net, batch, items, where)

    monkeypatch.setattr(words.Supply, "_objective", spy)
    objective = load("objectives.distill", weight=1.0)
    plan = settings(steps=4, batch_rows=2, micro_rows=1, lr=0.0, teacher_k=384)
    teacher = {"pipes": pair[0], "kitchen": pair[1]}
    train(pair[0], objective, weighted(both), plan, tmp_path / "a", teacher=teacher)
    assert max(seen["pipes"]) < 1e-3
    assert min(seen["kitchen"]) > 0.01
    assert len(list((cache / "teacher").glob("*.ids.npy"))) == 2
    monkeypatch.setattr(words.Taught, "_fill", lambda *_: pytest.fail("a teacher was asked again"))
    train(pair[0], objective, weighted(both), plan, tmp_path / "b", teacher=teacher)


def test_one_teacher_is_the_same_as_that_teacher_for_each(base, pair, both, tmp_path, cache):
    objective = load("objectives.distill")
    found = [
        losses(train(base, objective, weighted(both), settings(), tmp_path / str(i), teacher=teacher))
        for i, teacher in enumerate((pair[0], dict.fromkeys(both, pair[0])))
    ]
    assert found[0] == found[1]


def test_teachers_that_do_not_fit_the_domains_are_refused(base, pair, both, tmp_path):
    objective = load("objectives.distill")
    for teacher, line in (
        ({"pipes": pair[0]}, "'kitchen' has none"),
        ({**dict.fromkeys(both, pair[0]), "pipe": pair[0]}, "no domain 'pipe'"),
    ):
        with pytest.raises(AcclimateError, match=line):
            train(base, objective, weighted(both), settings(), tmp_path, teacher=teacher)


def test_another_teacher_is_another_plan(base, pair, both, tmp_path, cache, monkeypatch):
    objective = load("objectives.distill")
    train(base, objective, both["pipes"], settings(), tmp_path, teacher=pair[0])
    with pytest.raises(AcclimateError, match="unfinished run with other settings or data"):
        train(base, objective, both["pipes"], settings(), tmp_path, teacher=pair[1])
    for teacher in ({"pipes": pair[0]}, pair[0]):
        train(base, objective, both["pipes"], settings(), tmp_path, teacher=teacher)


def test_settings_of_other_optimizers_are_what_they_were():
    assert "mofo_alpha" not in Training().values()
    assert Training(optimizer="mofo", mofo_alpha=0.5).values()["mofo_alpha"] == 0.5
    assert Training(**Training(optimizer="mofo").values()).values() == Training(optimizer="mofo").values()


class Decayed(Objective):
    """Cross-entropy plus the squared length of what learns, once a step."""

    room = "objectives"

    def loss(self, logits, labels, trainable, items=None):
        number = (labels != -100).sum()
        self.names = sorted(trainable)
        share = number if items is None else number / items
        return LM.loss(logits, labels, items=items) + 0.1 * share * sum(weight.square().sum() for weight in trainable.values())


def test_trainable_is_what_learns_by_name(base, both, tmp_path):
    objective = Decayed()
    found = [losses(train(base, objective, both["pipes"], settings(steps=2, micro_rows=m), tmp_path / str(m))) for m in (0, 1)]
    assert objective.names == sorted(name for name, _ in base.net.named_parameters())
    plain = losses(train(base, LM, both["pipes"], settings(steps=2), tmp_path / "plain"))
    length = sum(weight.square().sum().item() for weight in base.net.parameters())
    assert found[0][0] == pytest.approx(plain[0] + 0.1 * length, rel=1e-4)
    assert found[1] == pytest.approx(found[0], rel=1e-4)  # however the step is cut
    train(base, objective, both["pipes"], settings(steps=1), tmp_path / "lora", adapter=load("adapters.lora"))
    assert objective.names
    assert all("lora_" in name for name in objective.names)


class Balanced(nn.Module):
    """A network with a loss of its own."""

    def __init__(self, net):
        super().__init__()
        self.net, self.config, self.calls = net, net.config, 0

    def get_input_embeddings(self):
        return self.net.get_input_embeddings()

    def forward(self, **inputs):
        return self.net(**inputs)

    def auxiliary_loss(self):
        self.calls += 1
        return 0.5 * self.net.lm_head.weight.square().mean()


def test_a_loss_of_the_networks_own_counts_once_a_step_however_it_is_cut(tokenizer, both, tmp_path):
    net = network("llama", tokenizer)
    plain = train(model_of(net, tokenizer), LM, both["pipes"], settings(steps=1), tmp_path / "plain")
    found = [
        train(model_of(Balanced(net), tokenizer), LM, both["pipes"], settings(steps=1, micro_rows=micro), tmp_path / str(micro))
        for micro in (0, 1)
    ]
    extra = 0.5 * net.lm_head.weight.square().mean().item()
    for done, calls in zip(found, (1, 4), strict=True):
        assert losses(done)[0] == pytest.approx(losses(plain)[0] + extra, rel=1e-4)
        assert done.model.net.calls == calls
    assert found[0].curve[-1]["grad_norm"] == pytest.approx(found[1].curve[-1]["grad_norm"], rel=1e-3)


# ---------------------------------------------------------------- MoFO


def test_mofo_moves_the_strongest_entries_as_adamw_moves_them():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 5, generator=generator)
    gradients = [torch.randn(4, 5, generator=generator) for _ in range(3)]
    options = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
    whole, part, free = (nn.Parameter(start.clone()) for _ in range(3))
    adam = torch.optim.AdamW([whole], weight_decay=0.1, **options)
    all_ = MoFO([free], alpha=1.0, weight_decay=0.1, **options)
    mofo = MoFO([part], alpha=0.3, weight_decay=0.0, **options)
    mean, square = torch.zeros(4, 5), torch.zeros(4, 5)  # by hand
    expected = start.clone()
    for step, gradient in enumerate(gradients, 1):
        for weight, optimizer in ((whole, adam), (free, all_), (part, mofo)):
            weight.grad = gradient.clone()
            optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        change = 0.1 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        chosen = mean.abs() >= mean.abs().flatten().sort(descending=True).values[5]  # 30 % of 20 entries
        expected -= change * chosen
        assert torch.allclose(part, expected, atol=1e-5)
    assert torch.equal(whole, free)


def test_a_run_with_mofo_resumes_to_the_same_bits(base, both, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    plan = settings(steps=4, optimizer="mofo", mofo_alpha=0.2)
    whole = train(base, LM, both["pipes"], plan, tmp_path / "whole")
    changed = [(a != b).float().mean().item() for a, b in zip(whole.model.net.parameters(), base.net.parameters(), strict=True)]
    assert 0.15 < max(changed) < 0.85
    plain = engine.Watcher.on_log

    def stop(self, args, state, control, logs=None, **rest):
        plain(self, args, state, control, logs, **rest)
        if state.global_step == 3:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(engine.Watcher, "on_log", stop)
        with pytest.raises(StoppedError):
            train(base, LM, both["pipes"], plan, tmp_path / "broken")
    again = train(base, LM, both["pipes"], plan, tmp_path / "broken")
    assert again.model.fingerprint == whole.model.fingerprint
    assert losses(again) == losses(whole)


# ---------------------------------------------------------------- the merged network


def families(tokenizer):
    return {"llama": network("llama", tokenizer), "gpt2": network("gpt2", tokenizer)}


@pytest.mark.parametrize("squash", ["none", "tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_at_first_it_is_the_average_of_its_models(family, squash, tokenizer):
    start = model_of(families(tokenizer)[family], tokenizer, name=family)
    members = [moved(start, 0.2, seed, f"m{seed}") for seed in (1, 2, 3)]
    model = merged(start, members, squash=squash, bias="row" if squash == "relu" else "model")
    average = start.copy()
    with torch.no_grad():
        for name, weight in average.net.named_parameters():
            weight.copy_(sum(member.net.get_parameter(name) for member in members) / 3)
    average.net.eval()
    assert torch.allclose(model.probe(), average.probe(), atol=2e-4)
    assert all(torch.allclose(table, torch.full_like(table, 1 / 3), atol=1e-6) for table in coefficients(model).values())
    assert model.net.active_parameters == start.parameters()


def test_columns_are_scaled_in_every_kind_of_layer(tokenizer):
    """Random coefficients, weight by weight against a formula for that layer, on GPT-2: Conv1D, biases, LayerNorm, tied embeddings."""
    start = model_of(network("gpt2", tokenizer), tokenizer)
    members = [moved(start, 0.2, seed, f"m{seed}") for seed in (1, 2)]
    model = merged(start, members)
    with torch.no_grad():
        for c in model.net.parameters():
            c.copy_(torch.rand(c.shape, generator=torch.Generator().manual_seed(c.numel())))
    table, net = coefficients(model), collapsed(model).net
    for name, weight in net.named_parameters():
        one, other = (member.net.get_parameter(name) for member in members)
        (a, b), c = table[name], table[name]
        if name.endswith("bias"):
            assert c.shape == (2, 1)
            expected = a * one + b * other
        elif weight.ndim == 1:
            expected = a * one + b * other
        elif ".c_" in name:  # Conv1D [in, out]
            assert c.shape == (2, weight.shape[0])
            expected = torch.diag(a) @ one + torch.diag(b) @ other
        else:  # embeddings [token, hidden]
            assert c.shape == (2, weight.shape[1])
            expected = one @ torch.diag(a) + other @ torch.diag(b)
        assert torch.allclose(weight, expected, atol=1e-5), name
    assert "lm_head.weight" not in table
    assert net.lm_head.weight is net.transformer.wte.weight


def test_only_coefficients_learn_and_the_models_weights_stay_where_they_are(base, pair):
    model = merged(base, pair, fixed=("embedding", "norm"))
    assert {weight.data_ptr() for weight in pair[0].net.parameters()} == {
        tensor.data_ptr() for name, tensor in model.net.members[0].named_buffers() if "inv_freq" not in name
    }
    learning = [name for name, _ in model.net.named_parameters()]
    assert all(name.endswith(("proj/weight",)) for name in learning)
    assert len(learning) == 2 * 7
    copied = model.copy()
    assert {t.data_ptr() for t in copied.net.members.buffers()} == {t.data_ptr() for t in model.net.members.buffers()}
    with torch.no_grad():
        for c in copied.net.parameters():
            c.add_(1.0)
    assert model.fingerprint != copied.fingerprint
    assert torch.equal(next(model.net.parameters()), torch.full_like(next(model.net.parameters()), 0.5))
    assert merged(base, pair[::-1]).fingerprint != merged(base, pair).fingerprint  # which weights they are is part of the identity
    assert merged(base, pair, fixed=("norm",)).fingerprint != merged(base, pair).fingerprint


def test_it_is_saved_as_an_ordinary_model_with_its_coefficients(base, pair, tmp_path):
    model = merged(base, pair)
    with torch.no_grad():
        for c in model.net.parameters():
            c.mul_(1.1)
    model.save(tmp_path / "model")  # which compares a probe of what it reads back, bit for bit
    again = Model.load(str(tmp_path / "model"))
    plain = collapsed(model)
    assert type(again.net) is type(base.net)
    assert again.fingerprint == plain.fingerprint
    assert torch.equal(again.probe(), model.probe())
    assert {name for name, _ in plain.net.named_parameters()} == {name for name, _ in base.net.named_parameters()}
    assert all(weight.requires_grad for weight in plain.net.parameters())
    stored = load_file(tmp_path / "model" / FILE)
    for found in (stored, coefficients(again)):
        assert {name: table.tolist() for name, table in found.items()} == {n: t.tolist() for n, t in coefficients(model).items()}
    with pytest.raises(AcclimateError, match="has no coefficients"):
        coefficients(base)
    assert collapsed(base) is base


def test_models_that_do_not_fit_are_refused(base, pair, tokenizer, mask_tokenizer):
    wide = model_of(network("llama", tokenizer, tie_word_embeddings=True, intermediate_size=96), tokenizer, name="wide")
    other = model_of(pair[0].net, mask_tokenizer, name="other")
    for members, line in (
        ([pair[0]], "at least 2 models"),
        ([pair[0], wide], r"wide does not fit base: model.layers.0.mlp.down_proj.weight is \(32, 96\) in one and \(32, 64\)"),
        ([pair[0], other], "other has another tokenizer than base"),
    ):
        with pytest.raises(AcclimateError, match=line):
            merged(base, members)
    with pytest.raises(AcclimateError, match="gradient_checkpointing off"):
        merged(base, pair).net.gradient_checkpointing_enable()


def test_angles_are_those_of_the_columns_of_the_changes(base, pair):
    found = merged(base, pair, fixed=("norm",)).net.angles()
    name = "model.layers.1.mlp.up_proj.weight"
    start, one, other = (model.net.get_parameter(name).detach().numpy() for model in (base, *pair))
    a, b = one - start, other - start
    expected = np.arccos((a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0))
    assert np.allclose(found["coefficients." + name.replace(".", "/")][0], expected, atol=1e-4)
    assert len(found) == 2 * 7 + 1
    same = torch.zeros(2, 3)
    assert (column_angles(same, [same, torch.ones(2, 3)]) == 0).all()  # no change, no angle


@pytest.mark.parametrize("way", ["bf16", "in place", "gpt2", "padded"])
def test_the_train_engine_takes_it(way, base, pair, both, tokenizer, tmp_path, cache):
    start, members = base, pair
    if way == "gpt2":
        start = model_of(network("gpt2", tokenizer), tokenizer)
        members = [moved(start, 0.2, seed, f"m{seed}") for seed in (1, 2)]
    model = merged(start, members)
    before, frozen = model.fingerprint, [member.fingerprint for member in members]
    plan = settings(optimizer="mofo", precision="bf16" if way == "bf16" else "fp32", pack="no" if way == "padded" else "auto", lr=1e-2)
    teacher = dict(zip(both, members, strict=True))
    watch = {"pipes": both["pipes"]}
    done = train(model, load("objectives.dam"), weighted(both), plan, tmp_path, teacher=teacher, watch=watch, in_place=way == "in place")
    assert losses(done)[-1] < losses(done)[0]
    assert done.cost["packed"] == (way != "padded")
    assert (model.fingerprint == before) == (way != "in place")
    for member, kept in zip(members, frozen, strict=True):
        member._hashed = None
        assert member.fingerprint == kept


# ---------------------------------------------------------------- the objective


def test_penalties_by_hand():
    generator = torch.Generator().manual_seed(3)
    sets = {"x/weight": torch.randn(3, 6, generator=generator), "y/weight": torch.randn(3, 2, generator=generator)}
    free = {"z/bias": torch.randn(3, 1, generator=generator)}
    angles = {name: torch.rand(3, table.shape[1], generator=generator) for name, table in sets.items()}
    pairs = list(combinations(range(3), 2))
    weigh = {"similarity": 0.0, "l1": 0.0, "l2": 0.0, "overlap": 0.0}
    expected = {
        "similarity": np.mean([cosine_similarity(t[a], t[b], 0).item() for t in sets.values() for a, b in pairs]),
        "l1": sum(table.abs().sum().item() for table in sets.values()),
        "l2": sum(math.sqrt((row**2).sum().item()) for table in sets.values() for row in table),
        "overlap": sum(np.mean([np.minimum(abs(t[a]), abs(t[b])).sum().item() for a, b in pairs]) for t in sets.values()),
    }
    for term, value in expected.items():
        assert load("objectives.dam", **{**weigh, term: 1.0}).penalty({**sets, **free}).item() == pytest.approx(value, rel=1e-5)
    weighted_ = sum(
        np.mean([(np.minimum(abs(t[a]), abs(t[b])) * np.sin(2 * angles[n][p]) ** 2).sum().item() for p, (a, b) in enumerate(pairs)])
        for n, t in sets.items()
    )
    by_angle = load("objectives.dam", **{**weigh, "overlap": 1.0}, by_angle=True)
    assert by_angle.penalty({**sets, **free}, angles).item() == pytest.approx(weighted_, rel=1e-5)
    with pytest.raises(AcclimateError, match="by_angle needs"):
        by_angle.penalty(sets)


def test_penalties_count_once_a_step_however_it_is_cut(base, pair, both, tmp_path):
    objective = load("objectives.dam", similarity=0.3, l1=0.1, l2=0.1, overlap=0.1, by_angle=True)
    model = merged(base, pair)
    found = [
        train(
            model,
            objective,
            weighted(both),
            settings(micro_rows=m, batch_rows=4),
            tmp_path / str(m),
            teacher=dict(zip(both, pair, strict=True)),
        )
        for m in (0, 1)
    ]
    assert losses(found[0]) == pytest.approx(losses(found[1]), rel=1e-3)
    first = losses(
        train(
            model,
            load("objectives.dam", similarity=0.0),
            weighted(both),
            settings(steps=1, batch_rows=4),
            tmp_path / "0l",
            teacher=dict(zip(both, pair, strict=True)),
        )
    )
    trainable = dict(model.net.named_parameters())
    penalty = objective.penalty(trainable, model.net.angles()).item()
    assert losses(found[0])[0] == pytest.approx(first[0] + penalty, rel=1e-3)


# ---------------------------------------------------------------- the strategy


class Tools:
    """The train engine and a run directory, as a strategy is handed them."""

    seed = 0

    def __init__(self, folder):
        self.run, self.notes, self.asked = Run(folder), {}, {}

    def train(self, name, start, objective, domains, *, adapter=None, teacher=None, **given):
        plan = Training(seed=0, **given)
        self.asked = {"domains": domains, "teacher": teacher, "training": plan, "objective": objective}
        parts = [start.fingerprint, objective.values(), {n: m.fingerprint for n, m in teacher.items()}, plan.values()]

        def make(work):
            done = train(start, objective, domains, plan, work, teacher=teacher, name=name)
            self.done = done
            return done.model, {"cost": done.cost}

        return self.run.step(name, parts, make)

    def note(self, name, value):
        self.notes[name] = value


@pytest.fixture(scope="module")
def experts(base, both, places):
    """Two really trained tunes of one base."""
    plan = settings(steps=20, lr=1e-2, checkpoint_every=100)
    return [train(base, LM, domain, plan, places / "dam-experts" / name, name=name).model for name, domain in both.items()]


def divergence(model, experts, both):
    """Mean KL of each expert's predictions from the model's on the expert's own held-out text."""
    from acclimate.engines.rows import padded

    found = []
    for expert, domain in zip(experts, both.values(), strict=True):
        for text in domain.texts("validation")[:6]:
            batch = padded([np.array([0, *model.tokenizer(text).input_ids])], 0)
            with torch.no_grad():
                p, q = (net(**batch).logits[0].log_softmax(1) for net in (expert.net, model.net))
            found.append((p.exp() * (p - q)).sum(1).mean().item())
    return float(np.mean(found))


SMALL = {"steps": 40, "batch": 2, "row_tokens": 64, "teacher_k": 64, "lr": 1e-2}


def test_it_learns_to_predict_as_each_expert_does_on_its_own_text(base, experts, both, tmp_path, cache):
    tools = Tools(tmp_path)
    made = load("merging.dam", **SMALL).run(tools, start=base, tuned=experts, **both)
    assert list(made) == ["merged"]
    model = made["merged"]
    assert type(model.net) is type(base.net)
    average = divergence(collapsed(merged(base, experts)), experts, both)
    assert divergence(model, experts, both) < 0.8 * average
    assert {name: teacher.name for name, teacher in tools.asked["teacher"].items()} == {"pipes": "pipes", "kitchen": "kitchen"}
    note = tools.notes["coefficients"]["model.layers.0.self_attn.q_proj.weight"]
    assert len(note["mean"]) == len(note["std"]) == 2
    assert min(note["std"]) > 0  # columns differ: no single number per model
    assert tools.done.cost["flops"] == 6 * base.parameters() * tools.done.cost["tokens"]
    assert tools.done.cost["trained_parameters"] == sum(table.numel() for table in coefficients(tools.done.model).values())
    stored = load_file(tmp_path / "steps" / "merged" / "model" / FILE)
    assert stored.keys() == tools.notes["coefficients"].keys()
    again = Tools(tmp_path)  # from the run directory, without training
    assert load("merging.dam", **SMALL).run(again, start=base, tuned=experts, **both)["merged"].fingerprint == model.fingerprint
    assert not hasattr(again, "done")
    assert again.notes == tools.notes
    for expert, before in zip(experts, (e.fingerprint for e in experts), strict=True):
        expert._hashed = None
        assert expert.fingerprint == before


def test_a_killed_run_goes_on_to_the_same_bits(base, experts, both, tmp_path, cache, monkeypatch):
    class StoppedError(Exception):
        pass

    method = load("merging.dam", **{**SMALL, "steps": 6}, overlap=1e-3, by_angle=True)
    whole = method.run(Tools(tmp_path / "whole"), start=base, tuned=experts, **both)["merged"]
    plain = engine.Watcher.on_log

    def stop(self, args, state, control, logs=None, **rest):
        plain(self, args, state, control, logs, **rest)
        if state.global_step == 4:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(engine.Watcher, "on_log", stop)
        with pytest.raises(StoppedError):
            method.run(Tools(tmp_path / "broken"), start=base, tuned=experts, **both)
    again = method.run(Tools(tmp_path / "broken"), start=base, tuned=experts, **both)["merged"]
    assert again.fingerprint == whole.fingerprint


def test_settings_reach_the_engine(base, experts, both, tmp_path, cache):
    tools = Tools(tmp_path)
    method = load("merging.dam", base=True, squash="tanh", bias="row", embeddings=False, norms=False, steps=1, row_tokens=32, l1=1e-6)
    method.run(tools, start=base, tuned=experts, **both)
    plan = tools.asked["training"]
    assert (plan.optimizer, plan.mofo_alpha, plan.schedule, plan.lr, plan.weight_decay, plan.warmup) == (
        "mofo",
        0.3,
        "constant",
        1e-3,
        0,
        0,
    )
    assert (plan.batch_rows, plan.epochs, plan.beta2, plan.eps) == (2, 2.0, 0.999, 1e-8)
    assert tools.asked["objective"].l1 == 1e-6
    network_ = tools.done.model.net
    assert len(network_.members) == 3
    assert torch.allclose(coefficients(tools.done.model)["model.norm.weight"], torch.tensor(1 / 3))
    assert all("proj" in name for name, _ in network_.named_parameters())
    more = {**both, "general": Domain.from_texts("general", sentences("pipes", 30, 9))}
    method.run(Tools(tmp_path / "more"), start=base, tuned=experts, **more)  # the third domain is the base's own


def test_numbers_of_domains_and_models_must_agree(base, experts, both, tmp_path):
    for method, domains in ((load("merging.dam"), {"pipes": both["pipes"]}), (load("merging.dam", base=True), {})):
        with pytest.raises(AcclimateError, match=r"2 models are merged \(pipes, kitchen\), but on: names [01] domains"):
            method.run(Tools(tmp_path), start=base, tuned=experts, **domains)
    with pytest.raises(AcclimateError, match="needs the base model and the models"):
        load("merging.dam").run(Tools(tmp_path), start=base, **both)


def test_each_model_reads_conversations_in_its_own_template(base, experts, chats, tmp_path, cache):
    other = Model("other", experts[1].net, copy.deepcopy(experts[1].tokenizer), "causal", "other")
    other.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    tools = Tools(tmp_path)
    load("merging.dam", steps=1, row_tokens=32).run(tools, start=base, tuned=[experts[0], other], first=chats, second=chats)
    first, second = (tools.asked["domains"][role][0].texts("train")[0] for role in ("first", "second"))
    assert first.startswith("<|user|>What does")
    assert "<|assistant|>It" in first
    assert second.startswith("user: What does")
    assert "\nassistant: It" in second


# ---------------------------------------------------------------- the experiment


def test_the_experiment_runs_and_its_verdict_follows_its_figures(tmp_path, cache):
    pytest.importorskip("cma")
    from acclimate.experiments import load as experiment

    module = experiment("dam")
    found = module.run(0, True, tmp_path)
    assert module.run(0, True, tmp_path) == found  # from what lies there
    assert found["details"]["notes"]["dam.coefficients"]
    figures = {
        "average": 3.0,
        "TIES": 3.1,
        "DARE-TIES": 3.2,
        "evolution": 2.95,
        "DAM": 2.9,
        "seconds of DAM": 60,
        "seconds of evolution": 90,
    }
    assert set(figures) < set(found["arms"])

    def judged(**changes):
        return module.verdict({arm: [value] * 3 for arm, value in {**figures, **changes}.items()})

    assert judged() == "holds"
    assert judged(DAM=2.94) == judged(TIES=2.85) == judged(average=3.06) == "does_not_hold"
    assert judged(**{"seconds of DAM": 91}) == "does_not_hold"
    assert "0.050" in module.why({arm: [value] * 3 for arm, value in figures.items()})
