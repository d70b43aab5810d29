"""AdaLink: low-rank changes of input embeddings, by modality and by task; folded tables; virtual ids laid over a network."""

import copy

import pytest
import torch

from acclimate.checks import adapters as checks
from acclimate.checks import tiny
from acclimate.errors import AcclimateError
from acclimate.method import find, load
from acclimate.model import Injected, Model
from acclimate.model.composition import Rows
from acclimate.model.overlay import Links, Overlay, table_of, with_table
from acclimate.parts.adalink import Link, gathered

IDS = tiny.tokens()
PLACES = {"at": [[0, 5, 0], [0, 2, 17], [1, 1, 5], [1, 5, 40]]}


def link(width=16, rank=4, seed=0, activation="none"):
    made, generator = Link(width, rank, activation), torch.Generator().manual_seed(seed)
    for weight in made.parameters():
        weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return made


@pytest.mark.parametrize("check", ["identity", "frozen", "saved", "taken_out", "families"])
def test_it_is_an_adapter_as_the_others_are(check):
    getattr(checks, check)(find("inputs.adalink"))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("none", [-0.13774913, -0.0011589673, 0.036055251, -0.094111769]),
        ("gelu", [-0.13801527, -0.0019979132, 0.035483366, -0.094501902]),
    ],
)
def test_against_embeddings_changed_by_hand(activation, expected):
    """In float64 on plain transformers 5.23.0, through inputs_embeds; factors by numpy."""
    found = checks.reference_number(load("inputs.adalink", rank=4, activation=activation), PLACES)
    assert found == pytest.approx(expected, abs=2e-6, rel=2e-6)


def test_mixed_tasks_in_one_batch_are_the_separate_runs():
    net = tiny.decoder()
    links = Links(net).eval()
    for i, rank in enumerate((4, 2, 3)):
        links.add("text", f"task{i}", link(rank=rank, seed=i))
    names = ["task2", "", "task0", "task1", "task0"]
    ids = IDS[:1].repeat(5, 1) + torch.arange(5)[:, None]
    with torch.no_grad():
        mixed = links(ids, tasks=names).logits
        for i, name in enumerate(names):
            alone = links(ids[i : i + 1], tasks=[name]).logits
            assert torch.allclose(mixed[i : i + 1], alone, atol=1e-6), name
        assert torch.allclose(mixed[1], net(ids[1:2]).logits[0], atol=1e-6)
        hung = Injected(copy.deepcopy(net)).eval()
        for i, rank in enumerate((4, 2, 3)):
            hung.add(f"task{i}", load("inputs.adalink", rank=rank))
            hung.parts(f"task{i}")["model/embed_tokens"].load_state_dict(links.links["text"][f"task{i}"].state_dict())
        assert torch.allclose(hung.activate(Rows(names))(ids).logits, mixed, atol=1e-6)
    with pytest.raises(AcclimateError, match="no AdaLink is of the task 'task9'"):
        links(ids, tasks="task9")
    with pytest.raises(AcclimateError, match="named for 2 rows, but the batch has 5"):
        links(ids, tasks=["task0", "task1"])


def test_each_modality_has_a_module_of_its_own():
    links = Links(tiny.decoder()).add("text", "a", link(seed=1)).add("image", "a", link(rank=2, seed=2))
    embeddings = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    modality = torch.tensor([[1, 1, 0, 0, -1], [1, 0, 0, 0, -1]])
    found = links.adapt(embeddings, "a", modality)
    assert torch.equal(found[modality == -1], embeddings[modality == -1])
    for number, held in enumerate(links.links.values()):
        rows = embeddings[modality == number]
        assert torch.allclose(found[modality == number], rows + (rows @ held["a"].down) @ held["a"].up, atol=1e-6)
    links.adapt(embeddings, "a", torch.ones_like(modality)).square().sum().backward()
    assert links.links["image"]["a"].up.grad.abs().sum() > 0
    assert not links.links["text"]["a"].up.grad.abs().sum()


def test_gathered_is_one_by_one():
    parts = [link(rank=rank, seed=rank, activation="gelu") for rank in (1, 5, 3)]
    y = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0))
    own = torch.tensor([2, -1, 0, 1])
    for row, place in zip(range(4), own, strict=True):
        alone = parts[place](None, y[row]) if place >= 0 else torch.zeros_like(y[row])
        assert torch.allclose(gathered(parts, own, y)[row], alone, atol=1e-6)


def test_a_folded_table_answers_alike_and_a_tied_head_keeps_the_original(tiny_folder, tmp_path):
    net = Model.load(str(tiny_folder)).net
    net.config.tie_word_embeddings = True
    net.tie_weights()
    part = link(32)
    with torch.no_grad():
        apart = Links(net).add("text", "a", part)(IDS, tasks="a").logits
        before = net(IDS).logits
        made = with_table(net, table_of(net, part))
        assert torch.allclose(made(IDS).logits, apart, atol=1e-5)
        assert torch.equal(net(IDS).logits, before)
    assert not torch.allclose(apart, before, atol=1e-3)
    assert made.lm_head.weight is net.lm_head.weight
    assert made.model.layers[0].mlp.up_proj.weight is net.model.layers[0].mlp.up_proj.weight
    made.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(type(net).from_pretrained(tmp_path)(IDS).logits, made(IDS).logits)
    with pytest.raises(AcclimateError, match="cannot stand for"):
        with_table(net, torch.zeros(3, 32))


def test_images_and_text_of_one_model():
    from transformers import ViTConfig, ViTForImageClassification

    vit = ViTForImageClassification(
        ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4)
    ).eval()
    made = Injected(vit).add("image", load("inputs.adalink", rank=2, target="[r].*patch_embeddings.projection"))
    picture = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = made(picture).logits
        part = link(rank=2)
        next(iter(made.parts("image").values())).load_state_dict(part.state_dict())
        patches = vit.vit.embeddings.patch_embeddings
        found = patches(picture)
        made.detach()
        plain = patches(picture)
        assert torch.equal(made(picture).logits, before)
    assert torch.allclose(found, plain + plain @ part.down @ part.up, atol=1e-6)


def test_virtual_ids_are_the_vectors_that_stand_for_them():
    net = tiny.decoder()
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    overlay = Overlay(net, lambda numbers: vectors[numbers])
    ids = torch.tensor([[48, 5, 50, 9]])
    with torch.no_grad():
        table = net.get_input_embeddings()
        wanted = torch.stack([vectors[0], table.weight[5], vectors[2], table.weight[9]])[None]
        assert torch.equal(overlay(ids).logits, net(inputs_embeds=wanted).logits)
        assert torch.equal(overlay(IDS).logits, net(IDS).logits)
    with pytest.raises(AcclimateError, match="vectors of width 3 cannot stand in a model of width 16"):
        Overlay(net, lambda numbers: torch.zeros(len(numbers), 3))(ids)


def test_it_trains_with_the_train_engine_and_composes(tiny, pipes, tmp_path):
    from acclimate.engines.settings import Training
    from acclimate.engines.train import train

    training = Training(steps=4, batch_tokens=128, row_tokens=32, lr=1e-2, watch_bytes=200)
    done = train(tiny, load("objectives.causal_lm"), pipes, training, tmp_path / "work", adapter=load("inputs.adalink", rank=4))
    part = next(iter(done.model.net.adapters.values()))["model/embed_tokens"]
    assert part.up.abs().sum() > 0
    made = done.model.net
    name = next(iter(made.adapters))
    alone = made.activate(name)(IDS).logits
    made.add("lora", load("adapters.lora", target="linear", r=2))
    assert torch.equal(made.activate(f"stack({name}, lora)")(IDS).logits, alone)  # LoRA is zero at the start
    with pytest.raises(AcclimateError, match="cannot be folded"):
        made.fold(name)
