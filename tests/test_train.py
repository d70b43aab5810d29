"""Training: packing leaks nothing, a loss does not depend on how a step is cut, a killed run ends in the same bits."""

import json
import math
import re

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from acclimate.engines import train as engine
from acclimate.engines import words
from acclimate.engines.forward import logits, packs
from acclimate.engines.optimizers import muon_adamw
from acclimate.engines.score import bits_per_byte
from acclimate.engines.train import Training, train
from acclimate.errors import AcclimateError
from acclimate.kinds import Objective
from acclimate.method import load
from acclimate.model import Model, fingerprint
from worlds import domain_of, model_of, network, sentences

FAMILIES = {"llama": "causal", "gpt2": "causal", "bert": "masked", "roberta": "masked"}
LM = load("objectives.causal_lm")


def settings(**given):
    return Training(
        **{
            "steps": 4,
            "batch_tokens": 256,
            "row_tokens": 64,
            "lr": 3e-3,
            "warmup": 0.0,
            "precision": "fp32",
            "checkpoint_every": 2,
            **given,
        }
    )


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.net.state_dict().items()}


def same(one, other) -> bool:
    a, b = (each if isinstance(each, dict) else weights(each) for each in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(done) -> list[float]:
    return [row["loss"] for row in done.curve if "loss" in row]


class StoppedError(Exception):
    """Stands for a kill inside this process."""


@pytest.fixture
def stop_at(monkeypatch):
    """``stop_at(k)``: training breaks off after the log of step k, before that step's checkpoint; ``stop_at(0)`` = never."""
    plain = engine.Watcher.on_log

    def choose(step):
        def on_log(self, args, state, control, logs=None, **rest):
            plain(self, args, state, control, logs, **rest)
            if step and state.global_step == step:
                raise StoppedError

        monkeypatch.setattr(engine.Watcher, "on_log", on_log)

    return choose


# ---------------------------------------------------------------- packing


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_document_gets_the_logits_it_gets_alone(family, attention, mask_tokenizer):
    net = network(family, mask_tokenizer)
    net.set_attn_implementation(attention)
    draw = torch.Generator().manual_seed(0)
    documents = [torch.randint(6, len(mask_tokenizer), (n,), generator=draw) for n in (9, 14, 1, 7)]
    ids = torch.cat([*documents, torch.full((5,), 2)])[None]  # five pads at the end
    positions = torch.cat([*(torch.arange(len(d)) for d in documents), torch.zeros(5, dtype=torch.long)])[None]
    with torch.no_grad():
        packed = logits(net, {"input_ids": ids, "position_ids": positions}, FAMILIES[family])[0]
        at = 0
        for document in documents:
            alone = net(input_ids=document[None]).logits[0]  # plain transformers, no mask at all
            assert torch.allclose(packed[at : at + len(document)], alone, atol=2e-5), (family, len(document))
            at += len(document)
        joined = net(input_ids=ids).logits[0]
    assert not torch.allclose(joined[9:23], packed[9:23], atol=1e-3)  # without the block mask documents do see each other
    assert packs(model_of(net, mask_tokenizer, FAMILIES[family]))


class Leaky(torch.nn.Module):
    """A network that takes a mask and does not look at it."""

    def __init__(self, net, refuses=False):
        super().__init__()
        self.net, self.refuses, self.config = net, refuses, net.config

    def get_input_embeddings(self):
        return self.net.get_input_embeddings()

    def forward(self, input_ids, attention_mask=None, position_ids=None, **rest):
        if self.refuses and attention_mask is not None and attention_mask.dim() == 4:
            raise ValueError("no 4-D masks here")
        return self.net(input_ids=input_ids, position_ids=position_ids)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_network_that_leaks_or_refuses_block_masks_is_not_packed(refuses, tokenizer, pipes, tmp_path):
    net = network("llama", tokenizer)
    assert packs(model_of(net, tokenizer))
    model = model_of(Leaky(net, refuses), tokenizer)
    assert not packs(model)
    source = engine.rows_for(pipes, model, LM, 64, 0, packs(model))
    assert "position_ids" not in source.collate([source[0], source[1]])


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_loss_of_a_step_depends_neither_on_packing_nor_on_micro_batches(family, mask_tokenizer, pipes, tmp_path):
    """One step over the whole domain, as packed rows and as padded ones, in one piece and in many: same loss, same gradient."""
    kind = FAMILIES[family]
    model = model_of(network(family, mask_tokenizer, **({} if family == "llama" else {"hidden_dropout_prob": 0.0})), mask_tokenizer, kind)
    objective = LM if kind == "causal" else load("objectives.masked_lm", probability=1.0, random_share=0.0, mask_share=1.0)
    found = []
    for pack in ("auto", "no"):
        rows = engine.rows_for(pipes, model, objective, 64, 0, pack == "auto").size
        for micro in (0, 3):
            plan = settings(steps=1, batch_rows=rows, micro_rows=micro, pack=pack)
            done = train(model, objective, pipes, plan, tmp_path / f"{pack}{micro}")
            assert done.cost["packed"] == (pack == "auto")
            found.append((done.curve[-1]["loss"], done.curve[-1]["grad_norm"]))
    for loss, norm in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=2e-4)
        assert norm == pytest.approx(found[0][1], rel=1e-3)
    if kind == "causal":  # and it is the mean over all tokens, by hand
        nats = count = 0.0
        for text in pipes.texts():
            ids = torch.tensor([[0, *mask_tokenizer(text, add_special_tokens=False).input_ids, 1]])
            for start in range(0, ids.shape[1], 64):
                piece = ids[:, start : start + 64]
                if piece.shape[1] > 1:
                    with torch.no_grad():
                        out = model.net(piece).logits[0, :-1]
                    nats += cross_entropy(out, piece[0, 1:], reduction="sum").item()
                    count += piece.shape[1] - 1
        assert found[0][0] == pytest.approx(nats / count, abs=2e-4)


def test_gradient_checkpointing_changes_memory_not_weights(tiny, pipes, tmp_path):
    ends = [train(tiny, LM, pipes, settings(steps=2, gradient_checkpointing=way), tmp_path / str(way)).model for way in (False, True)]
    for name, tensor in weights(ends[0]).items():
        assert torch.allclose(tensor, weights(ends[1])[name], atol=1e-6), name


# ---------------------------------------------------------------- killed and resumed

KILLED = """
from acclimate.domain import Domain
from acclimate.engines import train as engine
from acclimate.method import load
from acclimate.model import Model

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

if at == "half":  # the weights are written, the optimizer's state is not
    plain = engine._Trainer._save_optimizer_and_scheduler
    engine._Trainer._save_optimizer_and_scheduler = lambda self, folder: kill() if "checkpoint-6" in folder else plain(self, folder)
elif at == "unmarked":  # all is written, and not yet known to be on the disk
    engine._sync = lambda handle: kill() if "checkpoint-6" in handle.name else None
else:
    plain = engine.Watcher.on_log
    def on_log(self, args, state, control, logs=None, **rest):
        plain(self, args, state, control, logs, **rest)
        if state.global_step == at:
            kill()
    engine.Watcher.on_log = on_log
engine.train(Model.load(model), load("objectives.causal_lm"), Domain.from_texts("pipes", texts), engine.Training(**plan), folder)
"""


@pytest.fixture(scope="module")
def dropped(places, tokenizer):
    """A saved tiny GPT-2 with dropout, so that the random state counts, and what eight unbroken steps make of it."""
    folder = places / "gpt2"
    model_of(network("gpt2", tokenizer), tokenizer).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def unbroken(dropped, places):
    from acclimate.domain import Domain

    domain = Domain.from_texts("pipes", sentences("pipes", 80))
    done = train(Model.load(dropped), LM, domain, settings(steps=8), places / "unbroken")
    assert len(list((places / "unbroken/checkpoints").glob("checkpoint-*"))) == 2  # the last two of four
    assert not same(done.model, Model.load(dropped))
    return domain, done


@pytest.mark.parametrize("kills", [[1], ["half"], [3, "unmarked", 7]], ids=str)
def test_a_run_killed_at_any_moment_ends_in_the_same_bits(kills, child, dropped, unbroken, tmp_path):
    domain, whole = unbroken
    folder = tmp_path / "run"
    for at in kills:
        plan = settings(steps=8).values()
        code, said = child(KILLED, at=at, model=dropped, texts=sentences("pipes", 80), plan=plan, folder=str(folder))
        assert code == -9, said
        stored = sorted(path.name for path in (folder / "checkpoints").glob("checkpoint-*"))
        marked = [path.parent.name for path in folder.glob(f"checkpoints/*/{engine.COMPLETE}")]
        if at == 1:
            assert stored == []
        if at == 7:
            assert "checkpoint-6" in marked
        if at in ("half", "unmarked"):
            assert "checkpoint-6" in stored
            assert "checkpoint-6" not in marked  # half a checkpoint lies there
            assert "checkpoint-4" in marked
    again = train(Model.load(dropped), LM, domain, settings(steps=8), folder)
    assert same(again.model, whole.model)
    assert losses(again) == losses(whole)
    assert [row["step"] for row in again.curve] == list(range(9))
    assert [row["step"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())] == list(range(9))
    assert again.cost["tokens"] == whole.cost["tokens"]


def _variants(tiny, mask_tokenizer, pipes, kitchen, preferences):
    masked = model_of(network("bert", mask_tokenizer), mask_tokenizer, "masked")  # with dropout
    mixture = {"pipes": (pipes, 0.7), "kitchen": (kitchen, 0.3)}
    return {
        "replay": (tiny, LM, mixture, {}, {}),
        "stages": (tiny, LM, mixture, {}, {"stages": [(0.5, {"pipes": 1.0}), (1.0, {"kitchen": 1.0})]}),
        "masked": (masked, load("objectives.masked_lm"), pipes, {}, {}),
        "lora": (tiny, LM, pipes, {}, {"adapter": load("adapters.lora", dropout=0.1)}),
        "bottleneck": (
            tiny,
            LM,
            pipes,
            {},
            {"adapter": load("adapters.bottleneck", target=["attn.out", "ff.out"], reduction=4, dropout=0.1)},
        ),
        "prompt": (tiny, LM, pipes, {"lr": 0.05}, {"adapter": load("adapters.prompt", tokens=4)}),
        "padded": (tiny, LM, pipes, {"pack": "no"}, {}),
        "dpo": (tiny, load("objectives.dpo"), preferences, {"batch_rows": 4}, {}),
        "muon": (tiny, LM, pipes, {"optimizer": "muon"}, {}),
        "muon-prompt": (tiny, LM, pipes, {"optimizer": "muon", "lr": 0.05}, {"adapter": load("adapters.prompt", tokens=4)}),
    }


@pytest.mark.parametrize("variant", ["replay", "stages", "masked", "lora", "bottleneck", "prompt", "padded", "dpo", "muon", "muon-prompt"])
def test_every_kind_of_training_resumes_to_the_same_bits(
    variant, tiny, mask_tokenizer, pipes, kitchen, preferences, stop_at, tmp_path, cache
):
    model, objective, domains, plan, more = _variants(tiny, mask_tokenizer, pipes, kitchen, preferences)[variant]
    plan = settings(steps=6, **plan)
    stop_at(0)
    whole = train(model, objective, domains, plan, tmp_path / "whole", **more)
    stop_at(5)
    with pytest.raises(StoppedError):
        train(model, objective, domains, plan, tmp_path / "broken", **more)
    stop_at(0)
    again = train(model, objective, domains, plan, tmp_path / "broken", **more)
    assert same(again.model, whole.model)
    assert not same(again.model, model)
    assert losses(again) == losses(whole)
    assert again.cost["tokens"] == whole.cost["tokens"]
    assert [row["tokens"] for row in again.curve] == [row["tokens"] for row in whole.curve]


def test_a_resumed_run_may_be_cut_into_other_micro_batches(tiny, pipes, stop_at, tmp_path):
    whole = train(tiny, LM, pipes, settings(steps=4), tmp_path / "whole")
    stop_at(3)
    with pytest.raises(StoppedError):
        train(tiny, LM, pipes, settings(steps=4), tmp_path / "broken")
    stop_at(0)
    again = train(tiny, LM, pipes, settings(steps=4, micro_rows=2), tmp_path / "broken")
    assert len(losses(again)) == 4
    for name, tensor in weights(whole.model).items():
        assert torch.allclose(tensor, weights(again.model)[name], atol=1e-5), name


def test_a_torn_last_line_of_the_log_does_not_stop_a_resume(tiny, pipes, stop_at, tmp_path):
    stop_at(3)
    with pytest.raises(StoppedError):
        train(tiny, LM, pipes, settings(), tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 4, "lo')
    stop_at(0)
    assert [row["step"] for row in train(tiny, LM, pipes, settings(), tmp_path).curve] == [0, 1, 2, 3, 4]


def test_a_finished_run_is_not_trained_again(tiny, pipes, tmp_path, monkeypatch):
    first = train(tiny, LM, pipes, settings(), tmp_path)
    monkeypatch.setattr(words.Supply, "loss", lambda *_: pytest.fail("a step was made"))
    assert same(train(tiny, LM, pipes, settings(), tmp_path).model, first.model)


def test_another_plan_in_the_same_folder_is_refused(tiny, pipes, kitchen, stop_at, tmp_path):
    stop_at(3)
    with pytest.raises(StoppedError):
        train(tiny, LM, pipes, settings(), tmp_path)
    stop_at(0)
    for change in ({"training": settings(lr=1e-3)}, {"domains": kitchen}, {"objective": load("objectives.masked_lm")}):
        given = {"objective": LM, "domains": pipes, "training": settings(), **change}
        if "objective" in change:
            continue  # no mask token: refused before the plan is looked at
        with pytest.raises(AcclimateError, match="unfinished run with other settings or data"):
            train(tiny, folder=tmp_path, **given)
    with pytest.raises(AcclimateError, match="unfinished run with other settings or data"):
        train(tiny, LM, pipes, settings(), tmp_path, adapter=load("adapters.lora"))
    assert len(train(tiny, LM, pipes, settings(), tmp_path).curve) == 5  # the first plan still goes on


def test_two_runs_in_one_folder_are_refused(tiny, pipes, tmp_path, monkeypatch):
    errors = []

    def second(*_, **__):
        if not errors:
            with pytest.raises(AcclimateError) as caught:
                train(tiny, LM, pipes, settings(), tmp_path)
            errors.append(str(caught.value))

    monkeypatch.setattr(engine.Watcher, "on_train_end", second)
    train(tiny, LM, pipes, settings(steps=1), tmp_path)
    assert len(errors) == 1
    assert "is in use by process" in errors[0]


# ---------------------------------------------------------------- objectives


def test_training_learns_the_domain_and_leaves_the_start_alone(tiny, pipes, kitchen, tmp_path):
    before = weights(tiny)
    watch = {"pipes": pipes, "kitchen": kitchen}
    done = train(tiny, LM, pipes, settings(steps=12, lr=1e-2, watch_every=5), tmp_path, watch=watch, name="expert")
    assert same(tiny, before)
    assert done.model.name == "expert"
    assert losses(done)[-1] < losses(done)[0] - 0.3
    assert [row["step"] for row in done.curve if "pipes" in row] == [0, 5, 10, 12]
    for name, domain in watch.items():  # a look is the bits per byte of the held-out text
        found = bits_per_byte(done.model, domain.texts("validation"), overlap=0.0).value
        assert done.curve[-1][name] == pytest.approx(found, abs=1e-4)
        assert done.forgetting[name] == pytest.approx(found - done.curve[0][name], abs=1e-4)
    assert done.curve[-1]["pipes"] < done.curve[0]["pipes"] - 0.3
    assert done.cost["trained_parameters"] == done.cost["total_parameters"] == tiny.parameters()
    assert done.cost["tokens"] == 12 * 256
    assert done.model.notes["made"]["steps"] == 12


def test_in_place_trains_the_weights_that_were_given(tokenizer, pipes, tmp_path):
    model = model_of(network("llama", tokenizer), tokenizer)
    before = model.fingerprint
    done = train(model, LM, pipes, settings(steps=2), tmp_path, in_place=True)
    assert model.fingerprint == done.model.fingerprint == fingerprint(model.net) != before


def test_weight_decay_clip_and_schedule_reach_the_optimizer(tiny, pipes, tmp_path):
    seen = [row["lr"] for row in train(tiny, LM, pipes, settings(steps=4, schedule="linear", warmup=0.5), tmp_path / "a").curve[1:]]
    assert seen == pytest.approx([0.0, 1.5e-3, 3e-3, 1.5e-3], abs=1e-9) or seen == pytest.approx([1.5e-3, 3e-3, 1.5e-3, 0.0], abs=1e-9)
    flat = [row["lr"] for row in train(tiny, LM, pipes, settings(steps=3, schedule="constant"), tmp_path / "b").curve[1:]]
    assert flat == pytest.approx([3e-3] * 3)
    ends = [
        sum(
            p.square().sum().item()
            for p in train(tiny, LM, pipes, settings(steps=3, weight_decay=d), tmp_path / f"d{d}").model.net.parameters()
        )
        for d in (0.0, 30.0)
    ]
    assert ends[1] < 0.9 * ends[0]


def test_a_muon_step_is_orthogonal_and_of_adamws_size():
    """First step on a matrix G = U S V^T: the change is U V^T (singular values near 1) times 0.2 sqrt(longer side) times lr."""
    net = torch.nn.Sequential(torch.nn.Embedding(7, 6), torch.nn.Linear(6, 4))
    table, (matrix, bias) = net[0].weight, (net[1].weight, net[1].bias)
    start = [weight.detach().clone() for weight in (table, matrix, bias)]
    optimizer = muon_adamw(net, lr=0.01, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-12, fused=True)
    gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    (net[0](torch.tensor([1])).sum() + (net[1].weight * gradient).sum() + net[1].bias.sum()).backward()
    optimizer.step()
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    step = (start[1] - matrix.detach()) / (0.01 * 0.2 * 6**0.5)
    assert torch.allclose(left.T @ step @ right.T, torch.eye(4), atol=0.35)  # Newton-Schulz leaves singular values in about 0.7 to 1.2
    assert torch.allclose(start[2] - bias.detach(), torch.full((4,), 0.01), atol=1e-6)  # AdamW's first step is lr long
    moved = start[0] - table.detach()
    assert torch.allclose(moved[1], torch.full((6,), 0.01), atol=1e-6)
    assert moved[[0, 2]].abs().sum() == 0


def test_dpo_starts_at_log_2_learns_and_keeps_the_reference_on_disk(tiny, preferences, tmp_path, cache):
    dpo = load("objectives.dpo")
    plan = settings(steps=5, batch_rows=16, micro_rows=4, lr=5e-3)
    first = losses(train(tiny, dpo, preferences, plan, tmp_path / "1"))
    assert first[0] == pytest.approx(math.log(2), abs=1e-4)  # the model is its own reference at the start
    assert first[-1] < first[0] - 0.05
    (stored,) = (cache / "reference").glob("*.npy")
    kept = np.load(stored)
    source = engine.rows_for(preferences, tiny, dpo, 64, 0, False)
    for i in (0, 11):  # by hand, one answer at a time
        pair = source.pair(i)
        for side, column in (("chosen", 0), ("rejected", 1)):
            ids, mask = torch.tensor(pair[side])[None], pair[f"{side}_mask"]
            with torch.no_grad():
                logp = tiny.net(ids).logits[0, :-1].log_softmax(1).gather(1, ids[0, 1:, None])[:, 0]
            assert kept[i, column] == pytest.approx(logp[torch.tensor(mask[1:]) == 1].sum().item(), abs=1e-3)
    np.save(stored, kept + np.array([[3.0, 0.0]], np.float32))  # a second run reads this file and not the model again
    assert losses(train(tiny, dpo, preferences, plan, tmp_path / "2"))[0] == pytest.approx(-np.log(1 / (1 + np.exp(0.3))), abs=1e-4)


def test_preference_answers_are_learned_with_their_end(tiny, preferences):
    source = engine.rows_for(preferences, tiny, load("objectives.orpo"), 64, 0, False)
    pair, row = source.pair(3), preferences.rows()[3]
    said = tiny.tokenizer.decode(pair["chosen"][pair["chosen_mask"] == 1])
    assert said == row["chosen"] + tiny.tokenizer.eos_token
    assert tiny.tokenizer.decode(pair["rejected"]) == f"<|begin|><|user|>{row['prompt'][0]['content']}<|assistant|>{row['rejected']}<|end|>"


def test_orpo_learns(tiny, preferences, tmp_path):
    done = train(tiny, load("objectives.orpo"), preferences, settings(steps=4, batch_rows=16, lr=5e-3), tmp_path)
    assert losses(done)[-1] < losses(done)[0] - 0.2


def test_contrastive_learns_on_an_encoder_and_on_a_decoder(tiny, mask_tokenizer, twins, tmp_path):
    body = model_of(network("bert body", mask_tokenizer), mask_tokenizer, "encoder")
    for model in (body, tiny):
        done = train(model, load("objectives.contrastive"), twins, settings(steps=5, batch_rows=16, lr=3e-3), tmp_path / model.kind)
        assert losses(done)[-1] < losses(done)[0] - 0.1


def test_an_embedding_is_the_mean_of_its_own_tokens_whatever_the_batch(tiny, twins):
    source = engine.rows_for(twins, tiny, load("objectives.contrastive"), 64, 0, False)
    rows = [source[k] for k in range(4)]
    batch = source.collate(rows)
    with torch.no_grad():
        found = words.embed(tiny.net, batch)
        for i, row in enumerate(rows):
            for block, side in enumerate(("anchor", "positive")):
                ids = torch.tensor(row[side])[None]
                alone = tiny.net(ids, output_hidden_states=True).hidden_states[-1].mean(1)[0]
                assert torch.allclose(found[block * 4 + i], alone, atol=1e-5)


def test_distillation_learns_the_teacher_and_keeps_its_view_on_disk(tiny, tokenizer, pipes, tmp_path, cache, monkeypatch):
    teacher = model_of(network("llama", tokenizer, seed=5), tokenizer, name="teacher")
    plan = settings(steps=6, lr=1e-2, teacher_k=16, batch_tokens=1024)
    distill = load("objectives.distill", weight=1.0)
    found = losses(train(tiny, distill, pipes, plan, tmp_path / "1", teacher=teacher))
    assert found[-1] < found[0] / 2
    ids, logprobs = (np.load(next((cache / "teacher").glob(f"*.{part}.npy"))) for part in ("ids", "logprobs"))
    source = engine.rows_for(pipes, tiny, distill, 64, 0, True)
    k = 5
    row = source[k]
    with torch.no_grad():
        batch = source.collate([row])
        view = logits(teacher.net, batch, "causal").log_softmax(2)[0].topk(16)
    length = len(row["input_ids"])
    assert np.array_equal(ids[row["index"]][:length], view.indices.numpy()[:length])
    assert np.allclose(logprobs[row["index"]][:length], view.values.numpy()[:length], atol=0.02)
    monkeypatch.setattr(words.Taught, "_fill", lambda *_: pytest.fail("the teacher was asked again"))
    assert losses(train(tiny, distill, pipes, plan, tmp_path / "2", teacher=teacher)) == found


def test_a_teacher_that_does_not_fit_is_refused(tiny, mask_tokenizer, pipes, tmp_path):
    distill = load("objectives.distill")
    other = model_of(network("llama", mask_tokenizer), mask_tokenizer, name="stranger")
    with pytest.raises(AcclimateError, match=r"the teacher stranger has another tokenizer than tiny"):
        train(tiny, distill, pipes, settings(), tmp_path, teacher=other)
    with pytest.raises(AcclimateError, match=r"objectives.distill needs a teacher .*teacher_logprobs"):
        train(tiny, distill, pipes, settings(), tmp_path)


def test_sft_learns_to_answer(tiny, chats, tmp_path):
    done = train(tiny, load("objectives.sft"), chats, settings(steps=12, lr=1e-2), tmp_path)
    assert losses(done)[-1] < losses(done)[0] - 1


def test_an_encoder_decoder_learns_conversations(tokenizer, chats, tmp_path):
    model = model_of(network("t5", tokenizer), tokenizer, "seq2seq")
    for name in ("sft", "causal_lm"):
        done = train(model, load(f"objectives.{name}"), chats, settings(steps=8, batch_rows=8, lr=1e-2), tmp_path / name)
        assert losses(done)[-1] < losses(done)[0] - 0.5
    row = (source := engine.rows_for(chats, model, LM, 64, 0, False))[0]
    with torch.no_grad():  # the shift is the one transformers makes itself
        batch = source.collate([row])
        mine = logits(model.net, batch, "seq2seq")
        theirs = model.net(input_ids=batch["input_ids"], labels=batch["labels"]).logits
    assert torch.allclose(mine, theirs, atol=1e-5)


# ---------------------------------------------------------------- adapters


@pytest.mark.parametrize(
    ("name", "given", "rate"), [("lora", {"r": 4}, 1e-2), ("prompt", {"tokens": 6}, 0.3), ("prefix", {"tokens": 6}, 0.3)]
)
def test_an_adapter_learns_and_the_base_stays_bit_equal(name, given, rate, tiny, pipes, tmp_path):
    before = weights(tiny)
    adapter = load(f"adapters.{name}", **given)
    done = train(tiny, LM, pipes, settings(steps=10, lr=rate), tmp_path, adapter=adapter, watch={"pipes": pipes})
    assert same(tiny, before)
    assert fingerprint(tiny.net) == done.model.notes["base_fingerprint"]
    inner = {n.removeprefix("base_model."): p for n, p in done.model.net.named_parameters() if not p.requires_grad}
    assert sum(p.numel() for p in inner.values()) == tiny.parameters()  # all frozen weights are the base's ...
    theirs = {p.data_ptr() for p in tiny.net.parameters()}
    assert all(p.data_ptr() in theirs for p in inner.values())  # ... and the very same tensors, not copies
    assert 0 < done.cost["trained_parameters"] < 2 * tiny.parameters() / 3 + 30_000 * (name == "prefix")
    assert losses(done)[-1] < losses(done)[0] - 0.05
    assert done.curve[-1]["pipes"] < done.curve[0]["pipes"]
    assert done.curve[-1]["pipes"] == pytest.approx(bits_per_byte(done.model, pipes.texts("validation"), overlap=0.0).value, abs=1e-4)


@pytest.mark.parametrize("name", ["lora", "prompt"])
def test_what_was_drawn_before_has_no_say(name, tiny, pipes, tmp_path):
    adapter = load(f"adapters.{name}", **({"dropout": 0.2} if name == "lora" else {"tokens": 4}))
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        ends.append(train(tiny, LM, pipes, settings(steps=2), tmp_path / str(seed), adapter=adapter).model)
    assert same(*ends)
    other = train(tiny, LM, pipes, settings(steps=2, seed=5), tmp_path / "other", adapter=adapter).model
    assert not same(ends[0], other)


def test_virtual_words_take_room_in_the_context(tokenizer, pipes, tmp_path):
    model = model_of(network("gpt2", tokenizer), tokenizer)  # learned positions: one too many is an error
    done = train(model, LM, pipes, settings(steps=1, row_tokens=0), tmp_path, adapter=load("adapters.prompt", tokens=30))
    assert done.model.context == model.context - 30
    assert np.isfinite(bits_per_byte(done.model, [" ".join(sentences("pipes", 12))]).value)


def test_dpo_and_contrastive_train_adapters(tiny, preferences, twins, tmp_path, cache):
    for name, domain in (("dpo", preferences), ("contrastive", twins)):
        for adapter in (load("adapters.lora"), load("adapters.prompt", tokens=4)):
            folder = tmp_path / f"{name}-{adapter.name}"
            done = train(tiny, load(f"objectives.{name}"), domain, settings(steps=4, batch_rows=16, lr=2e-2), folder, adapter=adapter)
            assert losses(done)[-1] < losses(done)[0]


def test_an_adapted_model_is_folded_before_it_learns_on(tiny, pipes, tmp_path):
    once = train(tiny, LM, pipes, settings(steps=3, lr=1e-2), tmp_path / "1", adapter=load("adapters.lora", r=2), name="once").model
    assert not torch.allclose(once.probe(), tiny.probe(), atol=1e-2)
    again = train(once, LM, pipes, settings(steps=1, lr=0.0), tmp_path / "2", adapter=load("adapters.lora", r=4)).model
    assert torch.allclose(again.probe(), once.probe(), atol=1e-4)  # it starts where the first ended
    full = train(once, LM, pipes, settings(steps=2), tmp_path / "3")
    assert full.cost["trained_parameters"] == tiny.parameters()  # and without an adapter all weights learn
    assert not full.model.adapted


# ---------------------------------------------------------------- forgetting


@pytest.fixture(scope="module")
def cook(tokenizer, kitchen, places):
    """A model that knows the kitchen, and forgets it when it learns about pipes."""
    model = model_of(network("llama", tokenizer), tokenizer, name="cook")
    return train(model, LM, kitchen, settings(steps=40, lr=2e-2, checkpoint_every=40), places / "cook", in_place=True).model


def test_the_budget_for_forgetting_stops_and_goes_back(cook, pipes, kitchen, tmp_path):
    plan = {"steps": 30, "lr": 3e-3, "schedule": "constant", "watch_every": 1, "checkpoint_every": 3}
    watch = {"watch": {"kitchen": kitchen, "pipes": pipes}, "outside": {"kitchen"}}
    done = train(cook, LM, pipes, settings(**plan, max_forgetting=0.1), tmp_path / "a", **watch)
    found = re.fullmatch(r"kitchen lost ([\d.]+) bits per byte at step (\d+), more than the budget of 0.1", done.stopped)
    assert found, (done.stopped, done.curve)
    stopped = int(found[2])
    assert 1 < stopped < 30
    start, end = (bits_per_byte(m, kitchen.texts("validation"), overlap=0.0).value for m in (cook, done.model))
    assert end - start <= 0.1
    assert done.forgetting["kitchen"] == pytest.approx(end - start, abs=1e-4)
    assert done.model.notes["made"]["steps"] == stopped - 1
    kept = train(cook, LM, pipes, settings(**{**plan, "steps": stopped - 1}), tmp_path / "b")
    assert same(done.model, kept.model)  # the very weights of the last good look
    again = train(cook, LM, pipes, settings(**plan, max_forgetting=0.1), tmp_path / "a", **watch)
    assert same(again.model, done.model)  # naming the folder again neither trains on nor loses them
    assert again.stopped == done.stopped


def test_a_run_stopped_by_its_budget_stays_stopped_when_its_last_checkpoint_is_of_that_step(cook, pipes, kitchen, tmp_path):
    plan = settings(steps=30, lr=3e-3, schedule="constant", watch_every=1, checkpoint_every=1, max_forgetting=0.1)
    ends = [train(cook, LM, pipes, plan, tmp_path, watch={"k": kitchen}, outside={"k"}) for _ in range(2)]
    assert ends[0].stopped == ends[1].stopped != ""
    assert len(ends[0].curve) == len(ends[1].curve)
    assert same(ends[0].model, ends[1].model)


def test_a_budget_that_is_kept_changes_nothing(tiny, pipes, kitchen, tmp_path):
    free = train(tiny, LM, pipes, settings(), tmp_path / "free")
    held = train(tiny, LM, pipes, settings(max_forgetting=9.0, watch_every=1), tmp_path / "held", watch={"k": kitchen}, outside={"k"})
    assert held.stopped == ""
    assert same(free.model, held.model)


def test_a_budget_that_no_look_kept_is_an_error(cook, pipes, kitchen, tmp_path):
    plan = settings(steps=4, lr=2e-2, watch_every=2, max_forgetting=1e-3)
    with pytest.raises(AcclimateError, match=r"k lost .* at step 2, .*no earlier look kept it"):
        train(cook, LM, pipes, plan, tmp_path, watch={"k": kitchen}, outside={"k"})


# ---------------------------------------------------------------- faults


class Poison(Objective):
    """A loss that turns bad at its fourth call: not a number itself, or with a gradient that is none."""

    calls = 0
    way = ""

    def loss(self, logits, labels, items=None):
        type(self).calls += 1
        found = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / items
        if self.calls == 4:
            found = found * float("nan") if self.way == "loss" else found + (logits[0, 0, 0] * 0).sqrt()
        return found


@pytest.mark.parametrize("way", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_no_number_stops_and_keeps_good_weights(way, tiny, pipes, tmp_path, monkeypatch):
    monkeypatch.setattr(Poison, "calls", 0)
    monkeypatch.setattr(Poison, "way", way)
    with pytest.raises(AcclimateError) as caught:
        train(tiny, Poison(), pipes, settings(steps=8, checkpoint_every=1), tmp_path)
    assert "step 4" in str(caught.value)
    assert "checkpoint is kept" in str(caught.value)
    if way == "loss":
        assert re.search(r"pipes: pipes:\d+", str(caught.value)), caught.value  # the rows, by their origin
    marked = sorted(path.parent for path in tmp_path.glob(f"checkpoints/*/{engine.COMPLETE}"))
    assert marked[-1].name == "checkpoint-3"
    from safetensors.torch import load_file

    for folder in marked:
        assert all(torch.isfinite(tensor).all() for tensor in load_file(folder / "model.safetensors").values())


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"lr": -1}, r"Training.lr = -1.*must lie in \[0, ...\]"),
        ({"warmup": 2}, r"Training.warmup = 2.*must lie in \[0, 1\]"),
        ({"schedule": "cosin"}, r"Training.schedule = 'cosin', but must be one of"),
        ({"steps": 1.5}, r"Training.steps = 1.5, but must be int"),
        ({"steps": "many"}, r"Training.steps = 'many', but must be int"),
        ({"batch_token": 5}, r"Training has no setting 'batch_token'; nearest: batch_tokens"),
        ({"max_forgetting": -0.1}, r"Training.max_forgetting = -0.1"),
        ({"pack": True}, r"Training.pack = True, but must be str"),
        ({"micro_rows": -1}, r"Training.micro_rows = -1"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_one_line(given, line):
    with pytest.raises(AcclimateError, match=line):
        Training(**given)


def test_numbers_in_text_are_numbers():
    assert Training(lr="1e-4", steps="20", max_forgetting="0.1").values() | {} == Training(lr=1e-4, steps=20, max_forgetting=0.1).values()


class Moody(Objective):
    def loss(self, logits, labels, mod=None):
        return logits.sum()


def test_what_cannot_be_trained_is_refused_in_one_line(tiny, mask_tokenizer, tokenizer, pipes, chats, preferences, twins, tmp_path):
    encoder = model_of(network("bert body", mask_tokenizer), mask_tokenizer, "encoder")
    seq2seq = model_of(network("t5", tokenizer), tokenizer, "seq2seq")
    empty = domain_of("empty", "text", [{"text": ""}])
    for model, objective, domain, plan, line in (
        (tiny, LM, pipes, {"row_tokens": 300}, "row_tokens = 300, but tiny reads at most 256 tokens"),
        (tiny, Moody(), pipes, {}, "asks for 'mod', which no engine knows"),
        (tiny, load("objectives.sft"), pipes, {}, "objectives.sft learns from conversations, but domain 'pipes' holds text"),
        (tiny, load("objectives.dpo"), chats, {}, "need prompt, chosen and rejected, but domain 'chats' holds messages"),
        (tiny, load("objectives.contrastive"), pipes, {}, "need anchor and positive, but domain 'pipes' holds text"),
        (tiny, load("objectives.masked_lm"), pipes, {}, "masked_lm needs a tokenizer with a mask token"),
        (encoder, load("objectives.masked_lm"), pipes, {}, "load it with kind='masked' and new_head=True"),
        (seq2seq, LM, pipes, {}, "an encoder-decoder learns from prompts with answers, but domain 'pipes' holds text"),
        (tiny, LM, domain_of("held", "text", [{"text": "x"}], "test"), {}, "domain 'held' has no split 'train'; it has: test"),
        (mixed := tiny, LM, {"pipes": (pipes, 0.0)}, {}, "gives no source a weight above 0"),
    ):
        with pytest.raises(AcclimateError) as caught:
            train(model, objective, domain, settings(steps=1, **plan), tmp_path)
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)
    assert mixed is tiny
    assert train(tiny, LM, empty, settings(steps=1), tmp_path / "empty").cost["steps"] == 1  # begin and end token alone


def test_an_adapter_that_does_not_fit_is_one_line(tiny, pipes, tmp_path):
    with pytest.raises(AcclimateError, match=r"adapters\.lora does not fit tiny"):
        train(tiny, LM, pipes, settings(), tmp_path, adapter=load("adapters.lora", target=["nowhere"]))
