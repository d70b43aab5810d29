"""Adapters in a bank, and batches whose rows use different ones: equal to peft's, whole or absent, seen by those who may."""

import json
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from acclimate.engines.adapters.bank import KEEPER, Bank, prototypes
from acclimate.engines.adapters.resident import Resident
from acclimate.engines.generate import generate
from acclimate.engines.merging.patches import Low, Patch
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model import Injected, Model
from acclimate.model.composition import Rows
from acclimate.parts.beside import LowRank, MixedRows
from worlds import model_of, network

SIZES = {"a": {"r": 2}, "b": {"r": 5, "use_rslora": True}, "c": {"r": 3, "rank_pattern": {"PLACE": 6}, "alpha_pattern": {"PLACE": 1}}}
PLACE = {"llama": "layers.1.self_attn.q_proj", "gpt2": "h.1.attn.c_attn", "bert": "layer.1.attention.self.query"}
FILE = "adapter_model.safetensors"


def peft_adapter(net, folder, seed=0, **settings):
    """A LoRA adapter drawn at random, as peft saves it."""
    with warnings.catch_warnings(action="ignore"):
        made = get_peft_model(net, LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": "all-linear", **settings}))
        draw = torch.Generator().manual_seed(seed)
        for weight in made.parameters():
            if weight.requires_grad:
                weight.data.copy_(0.2 * torch.randn(weight.shape, generator=draw))
        made.save_pretrained(folder)
    return folder


def a_base(tokenizer, family="llama", seed=0):
    kind = "masked" if family == "bert" else "causal"
    return model_of(network(family, tokenizer, seed), tokenizer, kind, family)


@pytest.fixture
def base(tokenizer):
    return a_base(tokenizer)


@pytest.fixture
def bank(base, tmp_path):
    """A bank with adapters a, b, c."""
    made = Bank.make(tmp_path / "bank", base)
    for seed, name in enumerate("abc"):
        made.add(name, peft_adapter(base.copy().net, tmp_path / name, seed))
    return made


def logits(net, ids, **extra):
    with torch.no_grad():
        return net(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits


@pytest.mark.parametrize("family", PLACE)
def test_a_mixed_batch_is_pefts(family, tokenizer, tmp_path):
    base = a_base(tokenizer, family)
    bank = Bank.make(tmp_path / "bank", base)
    for seed, (name, sizes) in enumerate(SIZES.items()):
        settings = json.loads(json.dumps(sizes).replace("PLACE", PLACE[family]))
        target = "all-linear" if name != "b" else [PLACE[family].rpartition(".")[2]]
        folder = peft_adapter(base.copy().net, tmp_path / name, seed, target_modules=target, **settings)
        assert bank.add(name, folder, base=base).probed == "answers"
    theirs = PeftModel.from_pretrained(base.copy().net, bank.get("a").folder, "a")  # a bank's adapter is peft's own
    for name in "bc":
        theirs.load_adapter(bank.get(name).folder, name)
    names = ["c", "a", "", "b", "a"]
    ids = torch.arange(45).view(5, 9) * 7 % 300
    want = logits(theirs.eval(), ids, adapter_names=[name or "__base__" for name in names])
    net = bank.load_onto(base, ["a", "b", "c"]).net
    plain = logits(net, ids)
    for many in (100, 0):  # side by side, and gathered
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MixedRows, "MANY", many)
            mine = logits(net.activate(Rows(names)), ids)
        assert torch.allclose(mine, want, atol=2e-5 * float(want.abs().max()))
    assert torch.equal(plain, logits(base.net, ids))
    assert torch.equal(plain[2], mine[2]) or torch.allclose(plain[2], mine[2], atol=1e-5)
    assert (plain - mine)[[0, 1, 3]].abs().amax((1, 2)).min() > 1e-2


def test_factors_are_laid_out_once_and_anew_when_a_weight_changes(base, bank):
    net = bank.load_onto(base, ["a", "b", "c"]).net
    ids = torch.arange(12).view(3, 4)
    with torch.inference_mode():
        first = net.activate(Rows(["a", "b", "c"]))(input_ids=ids).logits
    held = next(iter(net._mixtures.values()))
    kept = held._factors
    assert torch.equal(logits(net, ids), first)
    assert held._factors is kept
    part = next(iter(net.parts("b").values()))
    with torch.no_grad():
        part.b.add_(1.0)
    changed = logits(net, ids)
    assert torch.equal(changed[0], first[0])
    assert not torch.equal(changed[1], first[1])
    net.activate(Rows(["a", "a", "a"]))
    assert not net._mixtures
    assert torch.allclose(logits(net, ids)[0], first[0], atol=1e-5)
    with torch.no_grad():
        half = net.to(torch.bfloat16)(input_ids=ids).logits
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("many", [100, 0])
def test_what_learns_in_a_mixed_batch_learns_by_row(base, bank, many, monkeypatch):
    monkeypatch.setattr(MixedRows, "MANY", many)
    net = bank.load_onto(base, ["a", "b"]).net.learn("a")
    ids = torch.arange(8).view(2, 4)
    net.activate(Rows(["a", "b"]))(input_ids=ids).logits[0].square().mean().backward()
    part = next(iter(net.parts("a").values()))
    want = net.activate("a")(input_ids=ids[:1]).logits.square().mean()
    grads = torch.autograd.grad(want, [part.a, part.b])
    assert torch.allclose(part.a.grad, grads[0], atol=1e-6, rtol=1e-3)
    assert torch.allclose(part.b.grad, grads[1], atol=1e-6, rtol=1e-3)
    assert not net._mixtures or not any(held._factors for held in net._mixtures.values())


def test_dropout_drops_in_the_rows_of_its_part():
    parts = [LowRank(4, 3, 2, 1.0, 0.5), LowRank(4, 3, 2, 1.0)]
    for part in parts:
        torch.nn.init.ones_(part.a), torch.nn.init.ones_(part.b)
    torch.manual_seed(0)
    x, y = torch.ones(2, 2000, 4), torch.zeros(2, 2000, 3)
    out = MixedRows(parts, torch.tensor([0, 1])).add(x, y)
    assert set(out[0].unique().tolist()) == {0.0, 4.0, 8.0, 12.0, 16.0}
    assert abs(out[0].mean().item() - 8) < 0.2
    assert out[1].unique().tolist() == [8.0]


def test_writing_with_rows_greedy_and_by_beams(base, bank):
    model = bank.load_onto(base, ["a", "b"])
    prompts = ["The valve opens", "The pump cools"]  # of like length, so that they stay in order
    width = {len(base.tokenizer(prompt).input_ids) for prompt in prompts}
    ids = base.tokenizer([prompt[: 6 * min(width)] for prompt in prompts], return_tensors="pt", padding=True).input_ids
    for options in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": base.tokenizer.pad_token_id, **options}
        count = options.get("num_return_sequences", 1)
        both = model.net.activate(Rows(["a", "b"])).generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        for i, name in enumerate("ab"):
            row = ids[i : i + 1]
            alone = model.net.activate(name).generate(input_ids=row, attention_mask=torch.ones_like(row), **options)
            assert alone.tolist() == both[i * count : (i + 1) * count, : alone.shape[1]].tolist()
    model.net.activate(Rows(["a", "b"]))
    assert len(generate(model, prompts, tokens=4)) == 2
    with pytest.raises(AcclimateError, match="named for 2 rows, but the batch has 6"):
        logits(model.net, ids[:1].repeat(6, 1))
    with pytest.raises(AcclimateError, match=r"write Rows\(\['ab', ...\]\)"):
        Rows("ab")


def test_our_own_adapters_and_saved_models_go_in(base, bank, tmp_path):
    base.save(tmp_path / "base")
    base = Model.load(str(tmp_path / "base"))
    low = {"model.layers.0.mlp.up_proj": Low(torch.randn(64, 2), torch.randn(2, 32), 0.5)}
    patched = Patch(low).attach(base)
    patched.save(tmp_path / "patched")
    assert bank.add("patched", tmp_path / "patched", base=base).kind == "peft"
    own = base.copy("hydra", share=True)
    own.net = Injected(own.net).add("task", load("adapters.hydra")).eval()
    own.notes |= {"base": base.source, "base_fingerprint": base.fingerprint}
    own.save(tmp_path / "untrained")
    with pytest.raises(AcclimateError, match="changes nothing of what"):
        bank.add("hydra", tmp_path / "untrained", base=base)
    for weight in own.net.adapters.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(0))
    own.save(tmp_path / "hydra")
    assert bank.add("hydra", tmp_path / "hydra", base=base).kind == "acclimate"
    model = bank.load_onto(base, ["patched", "hydra", "a"])
    ids = torch.arange(20).view(4, 5)
    mixed = logits(model.net.activate(Rows(["hydra", "patched", "", "a"])), ids)
    assert torch.allclose(mixed[:1], logits(own.net, ids[:1]), atol=1e-4)
    assert torch.allclose(mixed[1:2], logits(patched.net, ids[1:2]), atol=1e-4)
    model.net.activate("patched")
    model.save(tmp_path / "all")  # and what was loaded can be saved again
    assert torch.equal(Model.load(str(tmp_path / "all")).probe(), model.probe())


def test_our_own_adapters_that_cannot_go_in(base, bank, tmp_path):
    made = Injected(base.copy(share=True).net).add("task", load("adapters.hydra"))
    (tmp_path / "one").mkdir()
    made.save_pretrained(tmp_path / "one")
    with pytest.raises(AcclimateError, match="does not say which base"):
        bank.add("one", tmp_path / "one")
    (tmp_path / "one" / "acclimate.json").write_text(json.dumps({"base_fingerprint": base.fingerprint}))
    save_file({key: torch.zeros_like(value) for key, value in made.state_dict().items()}, tmp_path / "one" / "adapters.safetensors")
    with pytest.raises(AcclimateError, match="no weights but zeros"):
        bank.add("one", tmp_path / "one")
    (tmp_path / "two").mkdir()
    made.add("other", load("adapters.hydra")).save_pretrained(tmp_path / "two")
    (tmp_path / "two" / "acclimate.json").write_text(json.dumps({"base_fingerprint": base.fingerprint}))
    with pytest.raises(AcclimateError, match="holds 2 adapters, but a bank takes them one by one"):
        bank.add("two", tmp_path / "two")
    (tmp_path / "two" / "adapters.json").write_text("{}")
    with pytest.raises(AcclimateError, match="does not describe adapters"):
        bank.add("two", tmp_path / "two")
    (tmp_path / "two" / "adapters.safetensors").unlink()
    with pytest.raises(AcclimateError, match=r"holds no adapters\.safetensors"):
        bank.add("two", tmp_path / "two")


def test_versions_and_identity(base, bank, tmp_path):
    first = bank.get("a").version
    assert bank.add("a", tmp_path / "a") == first  # the same bytes
    with pytest.raises(AcclimateError, match=rf"other bytes is named 'a' already \({first.hash}.*version=True"):
        bank.add("a", tmp_path / "b")
    second = bank.add("a", tmp_path / "b", version=True, metadata={"data": "law"})
    assert [made.hash for made in bank.list()["a"].versions] == [first.hash, second.hash]
    assert second.hash == bank.get("b").version.hash  # one set of files under two names
    assert bank.get("a").version.metadata == {"data": "law"}
    assert bank.get("a", first.hash).version == first
    bank.remove("b")
    assert bank.get("a").folder.is_dir()
    bank.remove("a", second.hash)
    assert bank.get("a").version == first
    assert not (bank.folder / "adapters" / second.hash).exists()
    bank.remove("a")
    assert sorted(bank.list()) == ["c"]
    assert len(list((bank.folder / "adapters").iterdir())) == 1
    for call in (lambda: bank.get("c", "0" * 16), lambda: bank.remove("c", "0" * 16)):
        with pytest.raises(AcclimateError, match="'c' has no version"):
            call()


def damaged(folder, to, change=None, **settings):
    """A copy of an adapter with other tensors or another configuration."""
    shutil.copytree(folder, to)
    config = json.loads((to / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps(config | settings))
    tensors = load_file(to / FILE)
    if change:
        change(tensors)
        save_file(tensors, to / FILE)
    return to


def set_all(value, part="lora_B"):
    def change(tensors):
        for key in tensors:
            if part in key:
                tensors[key].fill_(value)

    return change


def renamed(old, new):
    def change(tensors):
        for key in list(tensors):
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (dict.clear, {}, "holds no LoRA factors: the adapter is empty"),
        (set_all(0.0), {}, "changes nothing .* never trained"),
        (set_all(float("nan")), {}, "no numbers"),
        (renamed("q_proj", "q_prj"), {}, r"q_prj, which the base does not have; nearest: .*q_proj"),
        (lambda tensors: tensors.pop(next(key for key in tensors if "lora_A" in key)), {}, r"lacks .*lora_A\.weight"),
        (None, {"r": 4}, "have ranks 2 and 2, but the configuration says 4"),
        (None, {"peft_type": "LOHA"}, "LOHA"),
        (None, {"use_dora": True}, "use_dora = True"),
        (None, {"bias": "all"}, "bias = all"),
        (None, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        (
            lambda tensors: tensors.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 3)}),
            {},
            "LoRA of embeddings",
        ),
        (lambda tensors: tensors.update({"base_model.model.x.lora_magnitude_vector": torch.ones(2)}), {}, "DoRA"),
    ],
)
def test_a_damaged_adapter_is_one_line_and_leaves_no_trace(bank, tmp_path, change, settings, said):
    before = (bank.folder / "bank.json").read_bytes()
    with pytest.raises(AcclimateError, match=said) as caught:
        bank.add("new", damaged(tmp_path / "a", tmp_path / "damaged", change, **settings))
    assert "\n" not in str(caught.value)
    assert (bank.folder / "bank.json").read_bytes() == before
    assert len(list((bank.folder / "adapters").iterdir())) == 3


def test_other_bases_names_and_folders(base, bank, tokenizer, tmp_path):
    other = a_base(tokenizer, seed=5)
    other.save(tmp_path / "other")
    low = {"model.layers.0.mlp.up_proj": Low(torch.ones(64, 2), torch.ones(2, 32))}
    Patch(low).attach(Model.load(str(tmp_path / "other"))).save(tmp_path / "theirs")
    with pytest.raises(AcclimateError, match=rf"trained on a base with weights {other.fingerprint}, but .* {base.fingerprint}"):
        bank.add("theirs", tmp_path / "theirs")
    wide = model_of(network("llama", tokenizer, intermediate_size=48), tokenizer)
    with pytest.raises(AcclimateError, match=r"from 48 to 32 numbers, but the base's goes from 64 to 32|from 32 to 48"):
        bank.add("wide", peft_adapter(wide.net, tmp_path / "wide"))
    for call in (lambda: Bank.make(bank.folder, other), lambda: bank.load_onto(other, ["a"])):
        with pytest.raises(AcclimateError, match=f"has weights {other.fingerprint}, but the adapters of"):
            call()
    for name in ("", "a b", "a/b", "x.y", "../z"):
        with pytest.raises(AcclimateError, match="cannot be named"):
            bank.add(name, tmp_path / "a")
    with pytest.raises(AcclimateError, match="does not exist"):
        bank.add("x", tmp_path / "nowhere")
    (tmp_path / "void").mkdir()
    with pytest.raises(AcclimateError, match="holds no adapter"):
        bank.add("x", tmp_path / "void")
    with pytest.raises(AcclimateError, match="is no bank of adapters"):
        Bank(tmp_path / "void")
    with pytest.raises(AcclimateError, match="no adapter 'zyx' for these labels; known: a, b, c"):
        bank.load_onto(base, ["zyx"])
    path = bank.get("a").folder / FILE
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(AcclimateError, match=r"files of adapter 'a' .* were changed or removed"):
        bank.load_onto(base, ["a"])


def test_access_never_leaks(base, bank):
    bank.label("b", "legal")
    near_b = torch.tensor([1.0, 0.0])
    for name, vector in (("a", [0.6, 0.8]), ("b", [1.0, 0.0]), ("c", [0.0, 1.0])):
        bank.set_prototypes(name, torch.tensor([vector, [-1.0, -1.0]]))
    ranked = bank.nearest(near_b)
    assert [found.name for found in ranked] == ["a", "c"]
    assert sum(found.weight for found in ranked) == pytest.approx(1)
    assert ranked[0].similarity == pytest.approx(0.6)
    assert ranked[0].weight == pytest.approx(1 / (1 + torch.exp(torch.tensor(-6.0)).item()))
    full = bank.nearest(near_b, ["legal"])
    assert [found.name for found in full] == ["b", "a", "c"]
    assert len(bank.nearest(near_b, KEEPER)) == 3
    assert sorted(bank.list()) == ["a", "c"]
    assert sorted(bank.list(["legal"])) == ["a", "b", "c"]
    with pytest.raises(AcclimateError) as unknown:
        bank.get("d")
    with pytest.raises(AcclimateError) as hidden:
        bank.get("b")
    assert str(hidden.value) == str(unknown.value).replace("'d'", "'b'")
    for call in (bank.prototypes, lambda name: bank.load_onto(base, [name])):
        with pytest.raises(AcclimateError, match="no adapter 'b' for these labels; known: a, c"):
            call("b")
    with pytest.raises(AcclimateError, match=r"must be a list of labels: \['legal team'\]"):
        bank.list("legal team")
    loaded = Resident(bank, base)
    loaded.rows(["b", "a"], [["legal"], []])  # b is in memory now, for a user who may
    with pytest.raises(AcclimateError, match="no adapter 'b'"):
        loaded.rows(["a", "b"], [["legal"], []])
    for name in "abc":
        bank.label(name, "legal")
    assert bank.nearest(near_b) == ()


def test_prototypes_are_means_by_group_and_of_one_width(base, bank, tmp_path):
    def encode(texts):
        return torch.tensor([[float(len(text)), 1.0] for text in texts])

    made = prototypes(encode, ["a", "abc"], ["abcd"])
    assert made.tolist() == [[2.0, 1.0], [4.0, 1.0]]
    bank.set_prototypes("a", made)
    assert torch.equal(bank.prototypes("a"), made)
    assert bank.prototypes("b") is None
    with pytest.raises(AcclimateError, match="have 2 numbers each, but these 3; use one encoder"):
        bank.set_prototypes("b", torch.ones(1, 3))
    with pytest.raises(AcclimateError, match="have 2 numbers each, but the vector"):
        bank.nearest(torch.ones(3))
    with pytest.raises(AcclimateError, match="must be finite"):
        bank.set_prototypes("b", torch.full((1, 2), float("nan")))
    with pytest.raises(AcclimateError, match="at least one text in each group"):
        prototypes(encode, [])
    bank.remove("a")
    assert not list((bank.folder / "prototypes").iterdir())


def test_the_longest_unused_is_dropped_over_the_budget(base, bank, tmp_path):
    ids = torch.arange(8).view(2, 4)
    loaded = Resident(bank, base)
    assert not loaded.net.adapters
    want = logits(loaded.rows(["a", "b"]).net, ids)
    one = loaded.bytes // 2
    loaded = Resident(bank, base, budget=2 * one)
    assert torch.equal(logits(loaded.rows(["a", "b"]).net, ids), want)
    held = dict(loaded.net._mixtures)
    loaded.rows(["a", "b"])
    assert loaded.net._mixtures == held  # the same batch again: nothing is laid out anew
    loaded.rows(["a", "a"])
    loaded.rows(["c", "c"])
    assert sorted(loaded.net.adapters) == ["a", "c"]
    assert loaded.bytes == 2 * one == 4 * sum(weight.numel() for weight in loaded.net.adapters.parameters())
    assert torch.equal(logits(loaded.rows(["a", "b"]).net, ids), want)
    with pytest.raises(AcclimateError, match=r"3 adapters of .* do not fit the budget"):
        loaded.rows(["a", "b", "c"])
    assert torch.equal(logits(loaded.net, ids), want)
    bank.add("a", tmp_path / "c", version=True)  # a newer version takes the place of the older
    assert not torch.equal(logits(loaded.rows(["a", "b"]).net, ids), want)


def test_two_processes_that_add_at_once_keep_both(base, bank, tmp_path, child):
    code = "from acclimate.engines.adapters.bank import Bank\n"
    code += "for i in range(4):\n    Bank(folder).add(f'{name}{i}', source, metadata={'by': name})\n"
    running = [child(code, wait=False, folder=str(bank.folder), source=str(tmp_path / name), name=name) for name in "ab"]
    for process in running:
        process.join(60)
        assert process.exitcode == 0, process.log.read_text()
    assert sorted(bank.list()) == sorted(["a", "b", "c", *(f"{name}{i}" for name in "ab" for i in range(4))])


@pytest.mark.parametrize("place", ["copyfile", "write_json"])
def test_a_process_killed_while_it_adds_leaves_the_old_bank(base, bank, tmp_path, child, place):
    before = (bank.folder / "bank.json").read_bytes()
    peft_adapter(base.copy().net, tmp_path / "new", 9)
    code = (
        "import os, signal, shutil\n"
        "from acclimate.engines.adapters import bank\n"
        "def killed(*_, **__):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "setattr(shutil if place == 'copyfile' else bank, place, killed)\n"
        "bank.Bank(folder).add('new', source)\n"
    )
    status, said = child(code, folder=str(bank.folder), source=str(tmp_path / "new"), place=place)
    assert status == -9, said
    assert (bank.folder / "bank.json").read_bytes() == before
    assert sorted(Bank(bank.folder).list()) == ["a", "b", "c"]
    bank.load_onto(base, ["a", "b", "c"])
    bank.add("new", tmp_path / "new")  # the lock is free again, and what the killed one left is gone
    assert sorted(bank.list()) == ["a", "b", "c", "new"]
    assert {path.name for path in (bank.folder / "adapters").iterdir()} == {entry.versions[0].hash for entry in bank.list().values()}
