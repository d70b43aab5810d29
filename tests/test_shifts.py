"""``acclimate shift``: sweeps over methods, targets and seeds, backbones by the shape of rows, learners that are kept and read again."""

import json

import numpy as np
import pytest
import torch

from acclimate import shifts
from acclimate.domain.arrays import Arrays
from acclimate.engines.shift import Pool
from acclimate.errors import AcclimateError
from acclimate.shifts.domains import SPLITS, scaled


@pytest.fixture
def folders(tmp_path):
    """Three domains of labelled text, of two classes; one more with a class of its own."""
    words = {"good": "fine lovely great happy bright", "bad": "awful broken sad poor dull"}
    made = []
    for number, name in enumerate(("books", "films", "pans", "odd")):
        draw = np.random.default_rng(number)
        rows = []
        for i in range(80):
            label = ("good", "bad")[i % 2]
            rows.append({"text": f"{name} {i}: " + " ".join(draw.choice(words[label].split(), 4)), "label": label})
        if name == "odd":
            rows += [{"text": f"neither {i} nor {i * i}", "label": "unsure"} for i in range(20)]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made.append(str(path))
    return made


def test_leaving_each_domain_out_gives_a_leaderboard(folders, tmp_path):
    books, films, pans, odd = folders
    training = {"steps": 40, "batch": 8}
    found = shifts.shift(["erm", "shot"], [books, films, pans], training=training, out=tmp_path / "out")
    assert len(found["rows"]) == 6
    assert {row["target"] for row in found["rows"]} == {books, films, pans}
    assert all(row["accuracy"] > 0.8 for row in found["rows"])
    assert found["leaderboard"][0]["targets"] == 3
    assert json.loads((tmp_path / "out" / "shift.json").read_text())["rows"] == found["rows"]
    one = shifts.shift("coral", [books, films], pans, training=training)
    assert one["rows"][0]["low"] <= one["rows"][0]["accuracy"] <= one["rows"][0]["high"]
    with pytest.raises(AcclimateError, match="has the class 'unsure', which no source has"):
        shifts.shift("erm", [books, films], odd, training=training)


def test_a_run_that_cannot_be_made_leaves_the_others_alone(folders, tmp_path):
    books, films, pans, _ = folders
    found = shifts.shift(["erm", "tent"], [books, films], pans, training={"steps": 5, "batch": 8}, out=tmp_path)
    assert [row["method"] for row in found["rows"]] == ["domain_generalization.erm"]
    assert "this network has no such weights" in found["failed"][0]["error"]
    with pytest.raises(AcclimateError, match="this network has no such weights"):
        shifts.shift("tent", [books, films], pans, training={"steps": 5, "batch": 8})


def test_names_that_nobody_knows(folders):
    with pytest.raises(AcclimateError, match=r"no method 'dan'.*nearest: dann"):
        shifts.shift("dan", folders[:2])
    with pytest.raises(AcclimateError, match="at least two domains"):
        shifts.shift("erm", folders[:1])
    with pytest.raises(AcclimateError, match="is given twice, as source and target perhaps"):
        shifts.shift("erm", folders[:1], folders[0])
    with pytest.raises(AcclimateError, match="no dataset has all of"):
        shifts.shift("erm", ["boooks", "dvd"], "kitchen")


def test_backbones_fit_the_rows():
    for shape, name in (((5,), "Mlp"), ((9, 64), "SeriesNet"), ((1, 16, 16), "ConvNet")):
        x = torch.rand(4, *shape)
        learner = shifts.make_learner(x, ["a", "b"])
        assert type(learner.featurizer).__name__ == name
        assert learner(x).shape == (4, 2)
    with pytest.raises(AcclimateError, match="no backbone is made for rows of the shape"):
        shifts.make_learner(torch.rand(2, 3, 4, 5, 6), ["a"])


def test_columns_are_standardised_by_the_sources_or_by_each():
    parts = {}
    for name, middle in (("a", 0.0), ("b", 10.0), ("t", 100.0)):
        rows = Arrays(name, (middle + np.arange(8.0)[:, None]).astype(np.float32), np.arange(8) % 2, ["n", "y"])
        parts[name] = {split: Pool.of(rows, name) for split in SPLITS}
    each = scaled(parts, "t", "each")[0]
    assert all(abs(float(each[name]["train"].x.mean())) < 1e-5 for name in parts)
    source = scaled(parts, "t", "source")[0]
    both = torch.cat([source["a"]["train"].x, source["b"]["train"].x])
    assert abs(float(both.mean())) < 1e-5
    assert float(source["t"]["train"].x.mean()) > 5


TRAINING = {"steps": 20, "batch": 8}


def test_a_sweep_goes_on_where_it_was(folders, tmp_path):
    books, films, pans, _ = folders
    first = shifts.shift("erm", [books, films, pans], training=TRAINING, out=tmp_path)
    again = shifts.shift(["erm", "coral"], [books, films, pans], training=TRAINING, out=tmp_path, workers=2)
    assert again["rows"][::2] == first["rows"]  # the seconds too: nothing was run again
    assert [row["method"].partition(".")[2] for row in again["rows"]] == ["erm", "coral"] * 3
    alone = shifts.shift("coral", [books, films, pans], training=TRAINING)
    assert [row["accuracy"] for row in again["rows"][1::2]] == [row["accuracy"] for row in alone["rows"]]
    with pytest.raises(AcclimateError, match="holds a sweep with other options"):
        shifts.shift("erm", [books, films, pans], training={"steps": 5}, out=tmp_path)


@pytest.mark.parametrize("method", ["erm", "dann", "mode", "shot", "t3a", "core_set"])
def test_a_kept_learner_answers_as_before(method, folders, tmp_path):
    books, films, pans, _ = folders
    found = shifts.shift(method, [books, films], pans, training=TRAINING, out=tmp_path, keep=True)
    (saved,) = (tmp_path / "models").rglob("adapted.json")
    adapted = shifts.Adapted.load(saved.parent)
    assert adapted.classes == ["bad", "good"]
    answers = adapted.predict(["a fine lovely great thing", "an awful broken sad thing"])
    if found["rows"][0]["accuracy"] > 0.9:
        assert answers == ["good", "bad"]
    again = adapted.save(tmp_path / "again")
    texts = [f"happy {n}" for n in range(5)]
    assert torch.equal(shifts.Adapted.load(again).scores(texts), adapted.scores(texts))


def test_what_was_kept_is_checked(folders, tmp_path):
    with pytest.raises(AcclimateError, match=r"holds no adapted\.json"):
        shifts.Adapted.load(tmp_path)
    with pytest.raises(AcclimateError, match="name it with out"):
        shifts.shift("erm", folders[:2], keep=True)
    shifts.shift("erm", folders[:2], folders[2], training=TRAINING, out=tmp_path, keep=True)
    (saved,) = (tmp_path / "models").rglob("adapted.json")
    adapted = shifts.Adapted.load(saved.parent)
    with pytest.raises(AcclimateError, match=r"rows have the shape \[3\], but the learner was trained on \[384\]"):
        adapted.scores(torch.zeros(2, 3))
    saved.write_text(saved.read_text().replace('"bad", "good"', '"bad", "good", "so-so"').replace('"good"\n', '"good", "so-so"\n'))
    with pytest.raises(AcclimateError, match=r"learner\.pt does not fit adapted\.json"):
        shifts.Adapted.load(saved.parent)


def test_streams_and_budgets_are_measured_by_the_same_verb(folders):
    books, films, pans, _ = folders
    found = shifts.shift(["tent", "source"], [books, films], pans, training=TRAINING, plan={"rows": 8, "lr": 0.0}, options={"norm": True})
    tent, source = found["rows"]
    assert tent["updates"] == -(-tent["rows"] // 8)
    assert source["updates"] == 0
    asked = shifts.shift(["random_sampling", "uncertainty"], [books, films], pans, training=TRAINING, plan={"rounds": 2, "share": 0.1})
    assert all(row["labels"] > 0 and len(row["by_round"]) == 3 for row in asked["rows"])
    with pytest.raises(AcclimateError, match=r"active_learning\.random_sampling takes no 'rouns' in its plan.*nearest: rounds"):
        shifts.shift("random_sampling", [books, films], pans, plan={"rouns": 2})
    with pytest.raises(AcclimateError, match=r"domain_generalization\.erm takes no 'rows' in its plan"):
        shifts.shift("erm", [books, films], pans, plan={"rows": 2})


def test_facts_of_domains_reach_methods_that_use_them(folders):
    names = folders[:3]
    facts = {name: [float(number), 1.0] for number, name in enumerate(names)}
    found = shifts.shift("d3g", names[:2], names[2], training=TRAINING, about=facts)
    assert 0 <= found["rows"][0]["accuracy"] <= 1
    assert shifts.shift("d3g", names[:2], names[2], training=TRAINING, about="names")["rows"]
    with pytest.raises(AcclimateError, match="has no facts of"):
        shifts.shift("d3g", names[:2], names[2], about={names[0]: [1.0]})
    with pytest.raises(AcclimateError, match="must be 'names' or facts"):
        shifts.shift("d3g", names[:2], names[2], about="dates")


@pytest.fixture
def encoder(tmp_path):
    """A tiny BERT with a tokenizer of whole words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    plain = ["fine", "lovely", "great", "happy", "bright", "awful", "broken", "sad", "poor", "dull"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *plain]
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    inner.pre_tokenizer = Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    folder = tmp_path / "bert"
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(folder)
    return str(folder)


def test_a_text_encoder_learns_with_the_rest(folders, encoder, tmp_path):
    books, films, pans, _ = folders
    given = {"backbone": "text", "encoder": encoder, "training": {"steps": 60, "batch": 8, "lr": 3e-3}}
    found = shifts.shift("dann", [books, films], pans, options={"tokens": 12}, out=tmp_path / "out", keep=True, **given)
    assert found["rows"][0]["accuracy"] > 0.9
    (saved,) = (tmp_path / "out" / "models").rglob("adapted.json")
    assert shifts.Adapted.load(saved.parent).predict(["fine lovely", "broken sad"]) == ["good", "bad"]
    with pytest.raises(AcclimateError, match="rows of whole numbers"):
        shifts.shift("domain_generalization.mixup", [books, films], pans, **given)


def test_a_text_encoder_can_learn_in_its_last_layers_only(encoder):
    from acclimate.model.arrays import backbone

    net = backbone("text", {"encoder": encoder, "train_layers": 1})
    learning = {name.split(".")[3] for name, weight in net.named_parameters() if weight.requires_grad}
    assert learning == {"1"}


def test_sound_series_and_images_of_other_networks(tmp_path):
    from transformers import ViTConfig, ViTModel

    from acclimate.model.arrays import backbone

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
    ViTModel(ViTConfig(**size)).save_pretrained(tmp_path / "vit")
    for name, options, rows in (
        ("audio", {}, torch.rand(3, 1, 2000)),
        ("series_transformer", {}, torch.rand(3, 9, 40)),
        ("resnet", {"width": 4}, torch.rand(3, 1, 16, 16)),
        ("vision", {"model": str(tmp_path / "vit")}, torch.rand(3, 3, 24, 24)),
    ):
        learner = shifts.make_learner(rows, ["a", "b"], name, options=options)
        assert learner(rows).shape == (3, 2)
        assert backbone(name, learner.featurizer.settings).features == learner.width
    whole = backbone("resnet", {"width": 64, "small": False})
    assert sum(weight.numel() for weight in whole.parameters()) == 11_176_512  # ResNet-18 without its last layer
    with pytest.raises(AcclimateError, match="sees images of 3 channels"):
        shifts.make_learner(torch.rand(2, 1, 8, 8), ["a"], "vision", options={"model": str(tmp_path / "vit")})
    with pytest.raises(AcclimateError, match="cannot be loaded as a vision model"):
        shifts.make_learner(torch.rand(2, 3, 8, 8), ["a"], "vision", options={"model": str(tmp_path / "none")})


# one after another


def test_domains_are_learned_in_turn(folders, tmp_path):
    books, films, pans, _ = folders
    given = {"training": {"steps": 10, "batch": 8}, "memory": {"rows": 12}}
    found = shifts.continual(["fine_tuning", "replay"], [books, films, pans], out=tmp_path, **given)
    assert [len(row["matrix"]) for row in found["rows"]] == [3, 3]
    assert found["rows"][1]["kept"] == [12, 12, 12]
    assert {row["method"] for row in found["leaderboard"]} == {"continual.fine_tuning", "continual.replay"}
    assert json.loads((tmp_path / "continual.json").read_text())["rows"] == found["rows"]
    again = shifts.continual(["fine_tuning", "replay"], [books, films, pans], out=tmp_path, **given)
    assert again["rows"] == found["rows"]
    mixed = shifts.continual("fine_tuning", [books, films], borderless=True, **given)
    assert len(mixed["rows"][0]["matrix"]) == 1


def test_classes_of_one_domain_are_learned_in_turn(folders):
    odd = folders[3]
    found = shifts.continual("fine_tuning", [odd], order={"classes": 1, "first": 2}, training={"steps": 10, "batch": 8})
    assert found["tasks"] == ["classes 0 to 1", "classes 2 to 2"]
    with pytest.raises(AcclimateError, match="needs two of them; of a single one"):
        shifts.continual("fine_tuning", [odd])
    with pytest.raises(AcclimateError, match="divides one domain, but 2 were given"):
        shifts.continual("fine_tuning", folders[:2], order={"classes": 1})
    with pytest.raises(AcclimateError, match=r"no method 'ewcc' of continual.*nearest: ewc"):
        shifts.continual("ewcc", folders[:2])


def test_a_leaderboard_becomes_a_page(folders, tmp_path, monkeypatch):
    from acclimate.experiments import shift_leaderboards as boards

    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "cache"))
    known = {path.rpartition("/")[2].partition(".")[0]: path for path in folders[:3]}
    monkeypatch.setattr(
        boards, "BENCHMARKS", {"words": boards.Benchmark("Words", "", tuple(known.values()), {"steps": 5, "batch": 8}, about="")}
    )
    found = boards.board("words", only=["erm", "coral", "tent"])
    assert len(found["leaderboard"]) == 2
    assert len(found["failed"]) == 3
    (tmp_path / "words.json").write_text(json.dumps(found))
    text = boards.page(tmp_path)
    assert "## words" in text
    assert "| `domain_generalization.erm` | nothing |" in text
    assert text.count("`test_time.tent` has no figure") == 1
    rooms = ("domain_generalization", "domain_adaptation", "test_time")
    assert all(shifts.arms.method_named(name, {}, rooms).form == "" for name in boards.comparable())  # none is refused by shift
    assert {"domain_adaptation.dann", "test_time.tent"} <= {*boards.comparable()}
    with pytest.raises(AcclimateError, match=r"no benchmark 'wrds'.*nearest: words"):
        boards.board("wrds")


@pytest.fixture
def speakers(tmp_path, monkeypatch):
    """Recordings of two people in the files of spoken_digits: a word is a pitch, and one of them speaks louder."""
    draw = np.random.default_rng(0)
    (tmp_path / "other" / "fsdd_speech").mkdir(parents=True)
    for name, loud in (("george", 3000), ("theo", 9000)):
        y, lengths = np.arange(60) % 10, draw.integers(3000, 9000, 60)
        waves = [loud * np.sin(2 * np.pi * (200 + 300 * digit) * np.arange(n) / 8000) for digit, n in zip(y, lengths, strict=True)]
        offsets = np.concatenate([[0], lengths.cumsum()])
        given = {"audio": np.concatenate(waves).astype(np.int16), "offsets": offsets, "rate": 8000, "y": y, "take": np.arange(60) // 10}
        np.savez(tmp_path / "other" / "fsdd_speech" / f"{name}.npz", **given)
    monkeypatch.setenv("ACCLIMATE_DATA", str(tmp_path))


@pytest.mark.usefixtures("speakers")
def test_recordings_are_rows_of_a_second(tmp_path):
    found = shifts.load_domains(["george", "theo"], "spoken_digits")
    assert found["george"].parts["train"].x.shape == (39, 1, 8000)  # a fifth is held out, and a fifth of what is left
    assert found["george"].classes[:2] == ["eight", "five"]
    given = {"data": "spoken_digits", "training": {"steps": 60, "lr": 0.01}, "options": {"width": 4}}
    swept = shifts.shift(["erm", "t3a"], ["george"], "theo", **given, out=tmp_path, keep=True)
    assert not swept["failed"]
    assert swept["rows"][0]["source_accuracy"] > 0.5
    kept = shifts.Adapted.load(tmp_path / "models" / "domain_generalization.erm" / "theo" / "0")
    assert kept.learner.featurizer.settings["rate"] == 8000
    assert shifts.continual("replay", ["george", "theo"], data="spoken_digits", training={"steps": 5})["rows"]
