"""Low-rank maths, changes read off adapters and models, patches: what plain peft says on the same input, and errors for people."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model

from acclimate.engines.merging.patches import Patch, changes, combine, differences, distance, fold, grown, save_stack, stack
from acclimate.engines.merging.porting import Portable, gaps
from acclimate.errors import AcclimateError
from acclimate.experiments.fixture import tiny_model
from acclimate.files import read_json
from acclimate.method import load
from acclimate.model import Model
from acclimate.parts import low_rank
from worlds import model_of, network

IDS = torch.tensor([[5, 9, 30, 17, 8, 21]])


def adapted(base, kind="lora", seed=1, **settings):
    """An adapter with random weights on a base whose weights are shared."""
    made = base.copy(f"{kind}{seed}", share=True)
    made.net = get_peft_model(made.net, load(f"adapters.{kind}", **settings).peft(made.net))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.net.named_parameters():
            if "lora_" in name:
                scale = 1 + 0.2 * torch.randn(weight.shape, generator=generator)
                weight.copy_(weight * scale if "magnitude" in name else 0.1 * torch.randn(weight.shape, generator=generator))
    made.net.eval()
    return made


def out(model):
    with torch.no_grad():
        return (model.net if isinstance(model, Model) else model)(input_ids=IDS).logits


def close(a, b, tolerance=2e-5):
    assert torch.allclose(a, b, atol=tolerance), float((a - b).abs().max())


@pytest.fixture
def base():
    return tiny_model("causal")


# maths


def test_energy_rank_by_hand():
    singular = torch.tensor([4.0, 2.0, 2.0, 1.0])  # squares 16, 4, 4, 1 of 25
    assert [low_rank.energy_rank(singular, tau) for tau in (0.5, 0.64, 0.65, 0.8, 0.97, 1.0)] == [1, 1, 2, 2, 4, 4]
    assert low_rank.energy_rank(torch.zeros(3), 0.5) == 0


@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
def test_factors_are_the_svd(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, singular, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
    b, a = low_rank.split(matrix, rank=3)
    close(b @ a, torch.from_numpy(left[:, :3] * singular[:3] @ right[:3]))
    close(b.T @ b, torch.diag(torch.from_numpy(singular[:3])))  # both factors carry sqrt(S)
    close(a @ a.T, torch.diag(torch.from_numpy(singular[:3])))
    whole = low_rank.split(matrix)
    assert whole[0].shape[1] == 7
    close(whole[0] @ whole[1], matrix)
    short = low_rank.shorten(*whole, energy=0.6)
    rank = low_rank.energy_rank(torch.from_numpy(singular), 0.6)
    assert short[0].shape[1] == rank
    close(short[0] @ short[1], torch.from_numpy(left[:, :rank] * singular[:rank] @ right[:rank]))
    close(low_rank.singular_values(*whole), torch.from_numpy(singular))
    norm, top = low_rank.sizes(matrix)
    assert (norm, top) == pytest.approx((float(np.linalg.norm(matrix)), float(singular[0])), rel=1e-5)
    with pytest.raises(AcclimateError, match=r"energy in \(0, 1\]"):
        low_rank.split(matrix, energy=0.0)


def test_a_zero_matrix_has_no_factors():
    b, a = low_rank.split(torch.zeros(3, 4))
    assert b.shape == (3, 0)
    assert (b @ a).abs().sum() == 0
    assert low_rank.singular_values(b, a).tolist() == [0.0]


# changes


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "ia3"])
def test_changes_are_what_peft_merges(base, kind):
    model = adapted(base, kind, **({} if kind == "ia3" else {"r": 3}))
    if kind == "ia3":
        with torch.no_grad():
            for name, weight in model.net.named_parameters():
                if "ia3" in name:
                    weight.mul_(1.3)
    found = dict(changes(model))
    merged = copy.deepcopy(model.net).merge_and_unload()
    for name, change in found.items():
        close(base.net.get_parameter(name) + change, merged.get_parameter(name), 1e-6)
    untouched = {name for name, _ in base.net.named_parameters()} - set(found)
    assert all(torch.equal(base.net.get_parameter(name), merged.get_parameter(name)) for name in untouched)
    close(out(fold(base, (1.0, changes(model)))), out(model))


def test_dora_is_not_b_a(base):
    model = adapted(base, "dora", r=2, target=["q_proj"])
    layer = next(m for n, m in model.net.named_modules() if n.endswith("q_proj"))
    weight, b, a = (t.detach() for t in (layer.base_layer.weight, layer.lora_B["default"].weight, layer.lora_A["default"].weight))
    whole = weight + layer.scaling["default"] * b @ a
    lengths = layer.lora_magnitude_vector["default"].weight.detach()
    wanted = lengths[:, None] / whole.norm(dim=1, keepdim=True) * whole - weight  # equation 5 of DoRA, by rows of [out, in]
    [(name, change)] = list(changes(model))
    assert name == "model.layers.0.self_attn.q_proj.weight"
    close(change, wanted, 1e-6)
    assert torch.linalg.matrix_rank(change, atol=1e-4) > 2
    with pytest.raises(AcclimateError, match="DoRA"):
        Patch.of(model)


def test_changes_of_transposed_layers(tokenizer):
    base = model_of(network("gpt2", tokenizer), tokenizer)
    model = adapted(base, "lora", r=2)
    close(out(fold(base, (1.0, changes(model)))), out(model), 1e-4)
    patch = Patch.of(model)
    close(out(fold(base, (1.0, patch.changes()))), out(model), 1e-4)
    close(out(patch.attach(base)), out(model), 1e-4)


def test_fold_scales_and_leaves_the_base(base):
    before = base.fingerprint
    model, other = adapted(base, seed=1), adapted(base, seed=2)
    made = fold(base, (0.5, changes(model)), (-2.0, changes(other)))
    one, two = dict(changes(model)), dict(changes(other))
    for name in one:
        close(made.net.get_parameter(name), base.net.get_parameter(name) + 0.5 * one[name] - 2 * two[name], 1e-6)
    assert base.fingerprint == before
    assert distance(base, made) == pytest.approx(sum((0.5 * one[n] - 2 * two[n]).square().sum().item() for n in one) ** 0.5, rel=1e-4)
    assert fold(base, (1.0, changes(model)), in_place=True) is base
    with pytest.raises(AcclimateError, match="is absent, but the change has shape"):
        fold(base, (1.0, [("model.nothing.weight", torch.zeros(2))]))


def test_adapters_that_are_no_change_of_weights_are_refused(base):
    prompted = base.copy()
    prompted.net = get_peft_model(prompted.net, load("adapters.prompt", tokens=2).peft(prompted.net))
    with pytest.raises(AcclimateError, match="PROMPT_TUNING adapter, which is no change of weights"):
        list(changes(prompted))
    with pytest.raises(AcclimateError, match="holds no adapter"):
        list(changes(base))


# unequal vocabularies


def with_tokens(model, tokens):
    """A copy whose vocabulary has more tokens."""
    made = model.copy("wider")
    made.tokenizer = copy.deepcopy(model.tokenizer)
    made.tokenizer.add_tokens(tokens)
    torch.manual_seed(0)
    made.net.resize_token_embeddings(len(made.tokenizer), mean_resizing=False)
    return made


def test_unequal_vocabularies_meet_in_common_rows(base):
    tuned = with_tokens(base, ["<tool>", "<end of tool>"])
    with torch.no_grad():
        tuned.net.get_input_embeddings().weight.add_(0.5)
    found = dict(differences(base, tuned))
    name = "model.embed_tokens.weight"
    size = base.net.get_input_embeddings().weight.shape[0]
    assert found[name].shape == base.net.get_parameter(name).shape
    close(found[name][: len(base.tokenizer)], torch.full((len(base.tokenizer), 32), 0.5), 1e-6)
    assert "lm_head.weight" not in found  # tied: once
    wide = grown(base, tuned)
    assert wide.net.get_input_embeddings().weight.shape[0] == size + 2
    assert wide.net.lm_head.weight is wide.net.get_input_embeddings().weight
    assert torch.equal(wide.net.get_parameter(name)[:size], base.net.get_parameter(name))
    assert torch.equal(wide.net.get_parameter(name)[size:], tuned.net.get_parameter(name)[size:])
    assert wide.tokenizer is tuned.tokenizer
    close(out(fold(wide, (1.0, differences(wide, tuned)))), out(tuned), 1e-4)


def test_other_architectures_are_refused(base, tiny):
    with pytest.raises(AcclimateError, match="not of one architecture: only"):
        list(differences(base, tiny))


# patches


def test_a_patch_is_the_adapter_and_peft_loads_it(base, tmp_path):
    base.save(tmp_path / "base")
    base.source = str(tmp_path / "base")
    model = adapted(base, r=3)
    patch = Patch.of(model)
    again = patch.attach(base, "again")
    close(out(again), out(model), 0)
    again.save(tmp_path / "saved")
    close(out(Model.load(str(tmp_path / "saved"))), out(model), 0)
    config = read_json(tmp_path / "saved" / "adapter_config.json")
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 16.0, {})
    half = patch.attach(base, scale=0.5)
    close(out(half), out(fold(base, (0.5, changes(model)))))


@pytest.mark.parametrize("tied", [True, False])
def test_a_difference_as_an_adapter(tokenizer, tmp_path, tied):
    base = model_of(network("llama", tokenizer, tie_word_embeddings=tied), tokenizer)
    tuned = fold(base, (1.0, changes(adapted(base, r=2, target=["q_proj"]))), (1.0, changes(adapted(base, r=3, target=["up_proj"]))))
    with torch.no_grad():
        for name, weight in tuned.net.named_parameters():
            if "norm" in name or "embed" in name:
                weight.add_(0.05)
    patch = Patch.of_changes(base, differences(base, tuned))
    assert patch.facts["energy_kept"] == pytest.approx(1.0, abs=1e-5)
    ranks = {path.rpartition(".")[2]: low.b.shape[1] for path, low in patch.low.items()}
    assert ranks == {"q_proj": 2, "up_proj": 3}
    attached = patch.attach(base)
    close(out(attached), out(tuned), 1e-4)
    attached.save(tmp_path / "patch")
    plain = PeftModel.from_pretrained(copy.deepcopy(base.net), str(tmp_path / "patch"))  # plain peft, nothing of ours
    close(out(plain), out(tuned), 1e-4)
    pattern = read_json(tmp_path / "patch" / "adapter_config.json")["rank_pattern"]
    assert sorted(pattern.values()) == [2, 2, 3, 3]
    less = Patch.of_changes(base, differences(base, tuned), energy=0.5, dense=False)
    assert not less.dense
    assert 0 < less.facts["energy_kept"] < 1
    with pytest.raises(AcclimateError, match="nothing to put into an adapter"):
        Patch.of_changes(base, differences(base, base))


def test_combining_is_exact_and_svd_shortens(base):
    one, two = Patch.of(adapted(base, r=2, seed=1)), Patch.of(adapted(base, r=3, seed=2, target=["q_proj", "up_proj"]))
    both = combine([(one, 0.7), (two, -0.3)])
    first, second, sums = dict(one.changes()), dict(two.changes()), dict(both.changes())
    for name, change in sums.items():
        close(change, 0.7 * first[name] - 0.3 * second.get(name, torch.zeros_like(change)), 1e-6)
    assert {low.b.shape[1] for low in both.low.values()} == {2, 5}
    short = combine([(one, 0.7), (two, -0.3)], rank=2)
    name = "model.layers.0.self_attn.q_proj"
    b, a = low_rank.split(sums[f"{name}.weight"], rank=2)
    close(dict(short.changes())[f"{name}.weight"], b @ a, 1e-5)
    close(out(both.attach(base)), out(fold(base, (0.7, one.changes()), (-0.3, two.changes()))), 1e-4)
    # peft's own weighted combination of the same adapters
    net = stack(base, {"a1": (one, 1.0), "a2": (Patch.of(adapted(base, r=3, seed=2)), 1.0)}).net
    net.base_model.add_weighted_adapter(["a1", "a2"], [0.7, 0.3], "sum", combination_type="cat")
    net.base_model.set_adapter("sum")
    close(out(combine([(one, 0.7), (Patch.of(adapted(base, r=3, seed=2)), 0.3)]).attach(base)), out(net), 1e-4)


def test_two_named_adapters_with_their_scales(base, tmp_path):
    base.save(tmp_path / "base")
    base.source = str(tmp_path / "base")
    domain = Patch.of(adapted(base, r=2))
    instruction = Patch.of(adapted(base, r=3, seed=4))
    instruction.dense["model.norm.weight"] = torch.full((32,), 0.1)
    both = stack(base, {"domain": (domain, 0.5), "instruction": (instruction, 0.25)})
    wanted = out(fold(base, (0.5, domain.changes()), (0.25, instruction.changes())))
    close(out(both), wanted, 1e-4)
    folder = save_stack(base, {"domain": (domain, 0.5), "instruction": (instruction, 0.25)}, tmp_path / "stack")
    assert read_json(folder / "scales.json") == {"domain": 0.5, "instruction": 0.25}
    close(out(Model.load(str(folder / "domain"))), out(domain.attach(base)), 0)
    with pytest.raises(AcclimateError, match="stacks one such adapter"):
        stack(base, {"x": (instruction, 1.0), "y": (instruction, 1.0)})


# portable patches


def test_a_portable_patch_goes_to_a_later_version(base, tmp_path):
    base.save(tmp_path / "base")
    base.source = str(tmp_path / "base")
    model = adapted(base, r=4)
    born = Portable.born(model, base, {"accuracy": 0.8})
    born.save(base, tmp_path / "patch")
    read = Portable.load(tmp_path / "patch")
    assert read.record == born.record
    assert read.record["base_fingerprint"] == base.fingerprint
    assert (read.record["r"], read.record["alpha"], read.record["metric"]) == (4, 16.0, {"accuracy": 0.8})
    later = fold(base, (1.0, changes(adapted(base, r=2, seed=9))), name="later")
    close(out(read.port(later)), out(fold(later, (1.0, changes(model)))), 1e-4)
    with pytest.raises(AcclimateError, match=r"no patch\.json"):
        Portable.load(tmp_path / "base")


def test_rows_of_tokens_follow_their_tokens(base):
    from acclimate.engines.merging.patches import Low

    size, rank = base.net.get_input_embeddings().weight.shape[0], 2
    factors = Low(torch.randn(size, rank, generator=torch.Generator().manual_seed(0)), torch.ones(rank, 32))
    born = Portable.born(adapted(base), base)
    born.patch.low["model.embed_tokens"] = factors
    wider = with_tokens(base, ["<new>"])
    fitted = born.fitted(wider)
    moved = fitted.low["model.embed_tokens"].b
    assert moved.shape == (len(wider.tokenizer), rank)
    assert torch.equal(moved[: len(base.tokenizer)], factors.b[: len(base.tokenizer)])
    assert not moved[-1].any()
    assert out(fitted.attach(wider)).isfinite().all()


def test_a_patch_that_does_not_fit_is_refused(base, tokenizer):
    born = Portable.born(adapted(base), base)
    with pytest.raises(AcclimateError, match="is a gpt2 model, but the patch was born on llama"):
        born.port(model_of(network("gpt2", tokenizer), tokenizer))
    other = base.copy("other")
    other.tokenizer = tokenizer
    with pytest.raises(AcclimateError, match="has another tokenizer, without"):
        born.port(other)
    deeper = model_of(network("llama", base.tokenizer), base.tokenizer)
    with pytest.raises(AcclimateError, match=r"has no layer model\.layers\.1\.self_attn\.q_proj"):
        Portable.born(adapted(deeper), deeper).port(base)
    wider = model_of(network("llama", base.tokenizer, intermediate_size=48), base.tokenizer)
    with pytest.raises(AcclimateError, match=r"has shape \[48, 32\] in tiny, but \[64, 32\] in the patch"):
        Portable.born(adapted(deeper, target=["up_proj"]), deeper).port(wider)


def test_gaps_by_hand(base):
    first, fresh = adapted(base, r=2, seed=1), adapted(base, r=2, seed=2)
    later = fold(base, (1.0, changes(adapted(base, r=4, seed=3))))
    rows = gaps(Patch.of(first), Patch.of(fresh), base, later)
    one, two = dict(changes(first)), dict(changes(fresh))
    assert len(rows) == len(one)
    for row in rows:
        name = f"{row['layer']}.weight"
        moved = (later.net.get_parameter(name) - base.net.get_parameter(name)).detach()
        assert row["gap"] == pytest.approx(float((two[name] - one[name]).norm() / one[name].norm()), rel=1e-4)
        assert row["share"] == pytest.approx(float(one[name].norm() / moved.detach().norm()), rel=1e-3)
        tops = (one[name], two[name], two[name] - one[name], moved)
        wanted = [float(torch.linalg.svdvals(matrix)[0]) for matrix in tops]
        assert [row[f"top_{key}"] for key in ("patch", "fresh", "difference", "evolution")] == pytest.approx(wanted, rel=1e-3)
