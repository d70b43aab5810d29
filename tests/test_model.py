"""Models: loaded whole or refused in one line, saved whole or not at all, and readable by plain transformers and peft."""

import errno
import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from acclimate import model as module
from acclimate.engines.train import Training, train
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model import Model, fingerprint
from worlds import model_of, network, sentences

FAMILIES = {"llama": "causal", "gpt2": "causal", "bert": "masked", "roberta": "masked", "t5": "seq2seq", "bert body": "encoder"}


def refused(ref, **given) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(AcclimateError) as caught:
        Model.load(str(ref), **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def broken(tiny_folder, tmp_path):
    """A copy of the tiny model to break, and its weights to write back changed."""
    shutil.copytree(tiny_folder, tmp_path / "broken")

    def change(how):
        weights = load_file(tmp_path / "broken/model.safetensors")
        how(weights)
        save_file(weights, tmp_path / "broken/model.safetensors", metadata={"format": "pt"})
        return tmp_path / "broken"

    return change


@pytest.fixture(scope="module")
def lora(_tiny, pipes, tmp_path_factory):
    """A LoRA trained for two steps on the tiny model, and the folder it was saved in."""
    plan = Training(steps=2, batch_tokens=256, row_tokens=64, lr=1e-2, precision="fp32")
    folder = tmp_path_factory.mktemp("lora")
    made = train(_tiny, load("objectives.causal_lm"), pipes, plan, folder / "work", adapter=load("adapters.lora", r=2), name="lora").model
    made.save(folder / "saved")
    return made, folder / "saved"


# ---------------------------------------------------------------- loading


def test_a_model_is_loaded_with_all_it_is(tiny, tiny_folder):
    assert (tiny.kind, tiny.context, tiny.name) == ("causal", 256, "tiny")
    assert tiny.parameters() == sum(p.numel() for p in tiny.net.parameters())
    assert tiny.bytes == 4 * tiny.parameters()
    assert next(Model.load(str(tiny_folder), dtype=torch.bfloat16).net.parameters()).dtype == torch.bfloat16


KEY = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (lambda w: w.pop(KEY), f"lacks 1 weights of a llama causal model, e.g. {KEY}"),
        (
            lambda w: w.update({"model.layers.2.extra": torch.ones(2)}),
            "has extra 1 weights of a llama causal model, e.g. model.layers.2.extra",
        ),
        (lambda w: w.update({"renamed": w.pop(KEY)}), KEY),
        (lambda w: w.update({KEY: torch.ones(3, 3)}), f"has wrong shapes for 1 weights of a llama causal model, e.g. ('{KEY}'"),
    ],
    ids=["missing", "unexpected", "renamed", "misshapen"],
)
def test_weights_that_do_not_fit_are_refused(how, line, broken):
    assert line in refused(broken(how))


@pytest.mark.parametrize("left", [0, 7, 500, -100], ids=str)
def test_a_truncated_weight_file_is_refused(left, broken):
    path = broken(lambda _: None) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    line = refused(path.parent)
    assert line.startswith(f"the weights of {path.parent} cannot be read: ")


def test_other_broken_folders_are_refused(broken, tmp_path):
    folder = broken(lambda _: None)
    (folder / "model.safetensors").rename(folder / "elsewhere")
    assert "the weights of" in refused(folder)
    (folder / "elsewhere").rename(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text("{")
    assert "is not a readable model folder" in refused(folder)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nothing_known"}))
    assert "is not a readable model folder" in refused(folder)
    (folder / "config.json").write_text(json.dumps(config))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refused(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no config.json" in refused(empty)
    assert "the folder does not exist" in refused(tmp_path / "nowhere")
    assert "no model was named" in refused("")
    assert "model kind 'causl' is unknown; nearest: causal" in refused(folder, kind="causl")


def test_the_tokenizer_of_another_model_is_refused(broken, tokenizer):
    import copy

    folder = broken(lambda _: None)
    longer = copy.deepcopy(tokenizer)
    longer.add_tokens([f"<word{i}>" for i in range(5)])
    longer.save_pretrained(folder)
    assert "the tokenizer has 389 tokens but the model only 384 rows; it is another model's tokenizer" in refused(folder)


def test_an_unknown_name_is_answered_with_the_nearest_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(module.loading, "embedded", lambda: {"seedling": tmp_path, "minilm": tmp_path})
    line = refused("seedlign")
    assert "no model 'seedlign': no such folder" in line
    assert "cannot be reached" in line
    assert line.endswith("; nearest: seedling")
    assert "no model './nowhere/at all'" in refused("./nowhere/at all")


def test_an_encoder_gets_a_new_output_layer_only_when_asked(mask_tokenizer, tmp_path):
    body = model_of(network("bert body", mask_tokenizer), mask_tokenizer, "encoder")
    body.save(tmp_path / "body")
    assert Model.load(str(tmp_path / "body")).kind == "encoder"
    assert "load it with new_head=True" in refused(tmp_path / "body", kind="masked")
    headed = Model.load(str(tmp_path / "body"), kind="masked", new_head=True)
    assert torch.equal(
        headed.net.bert.encoder.layer[0].output.dense.weight, body.net.encoder.layer[0].output.dense.weight
    )  # the body is the body


# ---------------------------------------------------------------- identity and copies


def test_the_fingerprint_is_of_the_weights_alone(tiny, tokenizer):
    net = network("llama", tokenizer)
    twin = model_of(net, tokenizer, name="another name")
    assert twin.fingerprint == tiny.fingerprint == fingerprint(net)
    with torch.no_grad():
        net.model.layers[0].mlp.up_proj.weight[3, 5] += 1e-6
    assert twin.fingerprint != tiny.fingerprint


def test_a_copy_shares_memory_or_does_not(tiny):
    shared, own = tiny.copy("shared", share=True), tiny.copy("own")
    pairs = list(zip(tiny.net.parameters(), shared.net.parameters(), own.net.parameters(), strict=True))
    assert all(a.data_ptr() == b.data_ptr() != c.data_ptr() for a, b, c in pairs)
    assert all(a is not b for a, b, _ in pairs)
    assert shared.fingerprint == own.fingerprint == tiny.fingerprint


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_what_was_in_memory(family, mask_tokenizer, tmp_path):
    model = model_of(network(family, mask_tokenizer), mask_tokenizer, FAMILIES[family])
    model.notes["made"] = {"base": "nothing", "steps": 3}
    model.save(tmp_path / "saved")
    again = Model.load(str(tmp_path / "saved"))
    assert torch.equal(again.probe(), model.probe())
    assert again.kind == model.kind
    assert again.fingerprint == model.fingerprint
    assert again.notes["made"] == {"base": "nothing", "steps": 3}
    assert "base_model: nothing" in (tmp_path / "saved/README.md").read_text()


def test_plain_transformers_reads_a_saved_model(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny.save(tmp_path / "saved")
    net, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([tokenizer(sentences("pipes", 1)[0]).input_ids])
    with torch.no_grad():
        assert torch.equal(net(ids).logits, tiny.net(ids).logits)
    assert tokenizer.chat_template == tiny.tokenizer.chat_template
    assert tokenizer.get_vocab() == tiny.tokenizer.get_vocab()


@pytest.mark.parametrize("name", ["lora", "prompt", "prefix", "ia3"])
def test_an_adapter_is_saved_whole_and_plain_peft_reads_it(name, tiny, tiny_folder, pipes, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plan = Training(steps=2, batch_tokens=256, row_tokens=64, lr=1e-2, precision="fp32")
    given = {"tokens": 4} if name in ("prompt", "prefix") else {}
    adapter = load(f"adapters.{name}", **given)
    made = train(tiny, load("objectives.causal_lm"), pipes, plan, tmp_path / "work", adapter=adapter, name="made").model
    made.save(tmp_path / "saved")
    again = Model.load(str(tmp_path / "saved"))
    assert again.adapted
    assert torch.equal(again.probe(), made.probe())
    assert not torch.equal(again.probe()[-PROBED:], tiny.probe()[-PROBED:])
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path / "saved").eval()
    ids = torch.tensor([tiny.tokenizer(sentences("pipes", 1)[0]).input_ids])
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, made.net(ids).logits, atol=1e-5)
    again.save(tmp_path / "twice")  # what was loaded can be saved again
    assert torch.equal(Model.load(str(tmp_path / "twice")).probe(), made.probe())


PROBED = 20  # tokens of the probe; virtual words stand before them


def test_an_adapter_on_an_adapted_model_comes_back(lora, pipes, tmp_path):
    first, folder = lora
    base = Model.load(str(folder))
    plan = Training(steps=2, batch_tokens=256, row_tokens=64, lr=1e-2, precision="fp32")
    second = train(base, load("objectives.causal_lm"), pipes, plan, tmp_path / "work", adapter=load("adapters.lora", r=3)).model
    second.save(tmp_path / "second")
    again = Model.load(str(tmp_path / "second"))
    assert torch.allclose(again.probe(), second.probe(), atol=1e-5)
    assert not torch.allclose(again.probe(), first.probe(), atol=1e-3)


def test_an_adapter_of_another_base_is_refused(lora, tiny_folder, tokenizer, tmp_path):
    _, folder = lora
    other = tmp_path / "other"
    model_of(network("llama", tokenizer, seed=9), tokenizer).save(other)
    shutil.copytree(folder, tmp_path / "lora")
    manifest = json.loads((tmp_path / "lora/acclimate.json").read_text())
    (tmp_path / "lora/acclimate.json").write_text(json.dumps({**manifest, "base": str(other)}))
    line = refused(tmp_path / "lora")
    assert f"was trained on {other} with weights {Model.load(str(tiny_folder)).fingerprint}" in line
    assert Model.load(str(other)).fingerprint in line


def test_a_broken_adapter_is_refused(lora, tokenizer, tmp_path):
    _, folder = lora
    place = tmp_path / "lora"
    shutil.copytree(folder, place)
    weights = load_file(place / "adapter_model.safetensors")
    gone = sorted(weights)[3]
    save_file({key: value for key, value in weights.items() if key != gone}, place / "adapter_model.safetensors")
    assert f"does not fit tiny: missing ['{gone}'], unexpected []" in refused(place)
    save_file({**weights, "stray": torch.ones(1)}, place / "adapter_model.safetensors")
    assert "unexpected ['stray']" in refused(place)
    save_file({**weights, gone: torch.ones(7, 7)}, place / "adapter_model.safetensors")
    assert "cannot be put on tiny" in refused(place)
    (place / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes()[:600])
    assert "cannot be put on tiny" in refused(place)
    (place / "adapter_model.safetensors").unlink()
    assert "holds no adapter_model.safetensors" in refused(place)
    (place / "adapter_config.json").write_text("{")
    assert "is not valid JSON" in refused(place)


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_or_forbidden_disk_leaves_what_was_there(full, tokenizer, tmp_path, monkeypatch):
    model = model_of(network("llama", tokenizer), tokenizer)
    model.save(tmp_path / "saved")
    before = contents(tmp_path / "saved")

    def half(folder, **_):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(full, os.strerror(full))

    monkeypatch.setattr(model.net, "save_pretrained", half)
    with pytest.raises(AcclimateError, match=r"disk full while writing|cannot write"):
        model.save(tmp_path / "saved")
    assert contents(tmp_path / "saved") == before
    with pytest.raises(AcclimateError):
        model.save(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]  # neither a new folder nor a half one


KILLED = """
import torch
from acclimate.model import Model
model = Model.load(source)
with torch.no_grad():
    model.net.model.norm.weight += 1
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if at == "tokenizer":
    type(model.tokenizer).save_pretrained = kill  # the weights are written, the rest is not
else:
    Model._compare = kill  # all is written, and not yet compared
model.save(folder)
"""


@pytest.mark.parametrize("at", ["tokenizer", "compare"])
def test_a_kill_while_saving_leaves_no_half_model(at, child, tiny, tiny_folder, tmp_path):
    for name in ("new", "old"):
        if name == "old":
            tiny.save(tmp_path / name)
        before = contents(tmp_path / name) if name == "old" else None
        code, said = child(KILLED, at=at, source=str(tiny_folder), folder=str(tmp_path / name))
        assert code == -9, said
        if name == "new":
            assert not (tmp_path / name).exists()
        else:
            assert contents(tmp_path / name) == before
            assert torch.equal(Model.load(str(tmp_path / name)).probe(), tiny.probe())


def test_a_model_that_reads_back_differently_is_not_kept(tokenizer, tmp_path, monkeypatch):
    model = model_of(network("llama", tokenizer), tokenizer)
    plain = model.net.save_pretrained

    def wrong(folder, **given):
        plain(folder, **given)
        weights = load_file(folder / "model.safetensors")
        weights[KEY] += 0.01
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(model.net, "save_pretrained", wrong)
    with pytest.raises(AcclimateError, match="answers a probe differently from the one in memory"):
        model.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_too_large_to_load_twice_is_compared_tensor_by_tensor(family, tokenizer, tmp_path, monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10_000, "total": 10_000}))
    monkeypatch.setattr(module, "_load_whole", lambda *_: pytest.fail("it was loaded a second time"))
    model = model_of(network(family, tokenizer), tokenizer)  # gpt2 ties its weights
    model.save(tmp_path / "saved")
    plain = model.net.save_pretrained
    for fault, line in (("lost", "was saved without"), ("changed", "was not stored as it is in memory")):

        def wrong(folder, fault=fault, **given):
            plain(folder, **given)
            weights = load_file(folder / "model.safetensors")
            first = sorted(weights)[0]
            if fault == "lost":
                del weights[first]
            else:
                weights[first] += 1
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

        monkeypatch.setattr(model.net, "save_pretrained", wrong)
        with pytest.raises(AcclimateError, match=line):
            model.save(tmp_path / fault)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_the_seedling_answers():
    if "seedling" not in module.embedded():
        pytest.skip("the seedling is not in this checkout")
    from acclimate.engines.score import bits_per_byte

    model = Model.load("seedling")
    assert bits_per_byte(model, ["And it came to pass in those days, that he went out into a mountain to pray."]).value < 3
