"""Transducers: the loss against all alignments, decoding, frozen statistics, the choice under a bound on damage, and its experiment."""

import copy
from itertools import combinations

import numpy as np
import pytest
import torch

from acclimate import datasets
from acclimate.domain.speech import Speech
from acclimate.engines.speech import SpeechTraining, error_rate, heard, prepare, tune
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model.injected import Injected
from acclimate.models.transducer import Transducer, loss_of, padded
from acclimate.parts.damage import ConstrainedSelector
from acclimate.parts.speech import log_mel, masked, mel_filters, noisy, pitched, word_errors
from acclimate.parts.transducer import transducer_loss
from strategy_tools import Notes

WORDS = ("low", "high", "both")
TONES = {"low": (400,), "high": (1700,), "both": (400, 1700)}


def tones(count, seed=0, shift=1.0, longest=3):
    """Words as notes of a tenth of a second: a language that a network learns in seconds."""
    draw = torch.Generator().manual_seed(seed)
    waves, words = [], []
    for _ in range(count):
        said = [WORDS[i] for i in torch.randint(3, (int(torch.randint(1, longest + 1, (), generator=draw)),), generator=draw)]
        time = torch.arange(1200) / 8000
        fade = torch.hann_window(1200)
        waves.append(torch.cat([fade * sum(torch.sin(6.2832 * shift * pitch * time) for pitch in TONES[word]) for word in said]))
        words.append(tuple(said))
    return Speech("tones", waves, words, 8000)


def network(seed=0, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transducer(WORDS, **{"width": 16, "blocks": 1, "heads": 2, "bands": 16, "dropout": 0.0, **settings}).eval()


def by_hand(logps, said):
    """Minus log of the sum over all alignments of one row, each walked through on its own."""
    frames, steps, total = len(logps), len(logps) - 1 + len(said), []
    for places in combinations(range(steps), len(said)):
        t, u, path = 0, 0, 0.0
        for step in range(steps):
            if step in places:
                path, u = path + logps[t, u, said[u]], u + 1
            else:
                path, t = path + logps[t, u, 0], t + 1
        assert t == frames - 1
        total.append(path + logps[t, u, 0])
    return -torch.logsumexp(torch.stack(total), 0)


def lattice():
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    return logits, torch.randint(1, 4, (4, 3)), torch.tensor([5, 3, 1, 2]), torch.tensor([3, 0, 2, 1])


def test_loss_and_gradient_are_those_of_all_alignments():
    logits, targets, frames, lengths = lattice()
    ours = transducer_loss(logits, targets, frames, lengths)
    logps = logits.log_softmax(-1)
    rows = [by_hand(logps[i, : frames[i], : lengths[i] + 1], targets[i, : lengths[i]].tolist()) for i in range(4)]
    assert torch.allclose(ours, torch.stack(rows), atol=1e-12)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((weights * loss).sum(), logits)[0] for loss in (ours, torch.stack(rows)))
    assert torch.allclose(mine, theirs, atol=1e-12)
    assert mine[1, 3:].abs().sum() == mine[0, :, :, 0].isnan().sum() == 0  # nothing comes from padding


def test_gradient_against_finite_differences():
    logits, targets, frames, lengths = lattice()
    assert torch.autograd.gradcheck(lambda values: transducer_loss(values, targets, frames, lengths), logits)


def test_loss_does_not_see_padding_and_refuses_what_does_not_fit():
    logits, targets, frames, lengths = lattice()
    wider = torch.nn.functional.pad(logits, (0, 0, 0, 2, 0, 3), value=7.0)
    longer = torch.nn.functional.pad(targets, (0, 2), value=3)
    assert torch.allclose(transducer_loss(wider, longer, frames, lengths), transducer_loss(logits, targets, frames, lengths))
    with pytest.raises(AcclimateError, match="targets have the shape"):
        transducer_loss(logits, longer, frames, lengths)
    with pytest.raises(AcclimateError, match="1 to 5 frames"):
        transducer_loss(logits, targets, frames * 0, lengths)
    with pytest.raises(AcclimateError, match="blank = 9"):
        transducer_loss(logits, targets, frames, lengths, blank=9)


def test_half_precision_of_scores_stays_finite():
    logits, targets, frames, lengths = lattice()
    assert torch.isfinite(transducer_loss((100 * logits).bfloat16(), targets, frames, lengths)).all()


def test_mel_bands_and_features():
    filters = mel_filters(40, 256, 8000)
    assert filters.shape == (129, 40)
    assert (filters.sum(0) > 0).all()
    centres = filters.argmax(0)
    assert (centres[1:] >= centres[:-1]).all()
    wave = torch.sin(6.2832 * 1000 * torch.arange(8000) / 8000)
    power = np.abs(np.fft.rfft(np.hanning(201)[:-1] * wave[1000:1200].numpy(), 256)) ** 2
    assert abs(int((power @ filters.numpy()).argmax()) - int(filters[32].argmax())) <= 1  # bin 32 is 1000 Hz
    features = log_mel(wave, filters, 8000)
    assert features.shape == (101, 40)
    assert features.mean(0).abs().max() < 1e-3
    assert torch.isfinite(log_mel(torch.zeros(10), filters, 8000)).all()  # silence, and shorter than a window


def test_changes_of_sound():
    draw = torch.Generator().manual_seed(0)
    wave = torch.sin(6.2832 * 500 * torch.arange(8000) / 8000)
    higher = pitched(wave, 1.25)
    assert len(higher) == 6400
    assert int(torch.fft.rfft(higher, 8000).abs().argmax()) == pytest.approx(625, abs=2)
    noise = noisy(wave, 10.0, draw) - wave
    assert float(noise.square().mean() / wave.square().mean()) == pytest.approx(0.1, rel=0.1)
    features = torch.ones(64, 40)
    holes = masked(features, 2, draw)
    assert 0.3 < holes.mean() < 1
    assert (features == 1).all()


def test_word_errors():
    assert word_errors([], ["a", "b"]) == 2
    assert word_errors(["a", "b", "c"], ["a", "c"]) == 1
    assert word_errors(["a", "b"], ["b", "a"]) == 2


def test_a_batch_is_heard_like_each_row_alone():
    net, speech = network(), tones(6)
    with torch.no_grad():
        net.joint.output.weight.mul_(20)  # so that it says many words
    ready = prepare(net, speech)
    alone = [net.hear(*ready.batch([row])[:2])[0] for row in range(6)]
    assert heard(net, ready) == alone
    assert any(alone)
    together = loss_of(net, *ready.batch(range(6)))
    apart = torch.cat([loss_of(net, *ready.batch([row])) for row in range(6)])
    assert torch.allclose(together, apart, atol=1e-4)


def test_greedy_decoding_follows_the_likeliest_symbol_step_by_step():
    net, speech = network(3), tones(4, 1)
    with torch.no_grad():
        net.joint.output.weight.mul_(20)
        for features in prepare(net, speech).features:
            encoded, frames = net.encoder(*padded([features]))
            said = []
            for t in range(int(frames)):
                for _ in range(3):
                    before = net.prediction(torch.tensor([[0, *said]]))[0][:, -1:]  # from the start each time, without a state
                    best = int(net.joint(encoded[:, t : t + 1], before).argmax())
                    if best == 0:
                        break
                    said.append(best)
            assert net.hear(*padded([features])) == [tuple(WORDS[i - 1] for i in said)]


def test_batch_norm_takes_real_frames_alone():
    net, speech = network().train(), tones(2, longest=3)
    ready = prepare(net, speech)
    features, frames, targets, lengths = ready.batch([0, 1])
    other = copy.deepcopy(net)
    loss_of(net, features, frames, targets, lengths)
    loss_of(other, torch.nn.functional.pad(features, (0, 0, 0, 40), value=9.0), frames, targets, lengths)
    mine, theirs = (made.encoder.blocks[0].convolution.batch_norm.running_mean for made in (net, other))
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_saved_and_loaded(tmp_path):
    net, speech = network(), tones(3)
    net.save_pretrained(tmp_path / "net")
    again = Transducer.from_pretrained(tmp_path / "net")
    ready = prepare(net, speech)
    assert torch.equal(loss_of(again, *ready.batch(range(3))), loss_of(net, *ready.batch(range(3))))
    (tmp_path / "net" / "model.safetensors").write_bytes(b"")
    with pytest.raises(AcclimateError, match="save it again"):
        Transducer.from_pretrained(tmp_path / "net")


def test_what_does_not_fit_is_one_line():
    net = network()
    with pytest.raises(AcclimateError, match="recorded at 16000 Hz"):
        prepare(net, Speech("fast", [torch.zeros(9)], [("low",)], 16000))
    with pytest.raises(AcclimateError, match="no word 'lo'; nearest: low"):
        prepare(net, Speech("odd", [torch.zeros(999)], [("lo",)], 8000))
    with pytest.raises(AcclimateError, match="words for 0"):
        Speech("bare", [torch.zeros(9)], [], 8000)
    with pytest.raises(AcclimateError, match="part = 'head'"):
        tune(net, tones(2), SpeechTraining(), [1], 0, part="head")
    broken = copy.deepcopy(net)
    broken.joint.output.bias.data.fill_(torch.nan)
    with pytest.raises(AcclimateError, match="the loss is nan at step 1"):
        tune(broken, tones(2), SpeechTraining(), [1], 0)


@pytest.fixture(scope="module")
def taught():
    """A network that has learned the language of notes."""
    training = SpeechTraining(lr=5e-3, batch_norm="train", schedule="cosine", masks=0, warmup=30)
    found = tune(network(width=24), tones(60), training, [1, 180], 0, watch={"held": tones(30, 7)})
    assert found[0].rates["held"] > 0.5
    assert found[1].rates["held"] < 0.2
    return found[1].model()


def adapter(**settings):
    return load("adapters.damage_control").adapter(24, "encoder+prediction+joint", 8, **{"dropout": 0.0, "skip": 0.0, **settings})


def test_adapters_start_as_nothing_and_leave_base_and_statistics_bit_equal(taught):
    before, ready = copy.deepcopy(taught.state_dict()), prepare(taught, tones(4))
    made = Injected(copy.deepcopy(taught)).add("a", adapter()).eval()
    assert set(made.adapters["a"]) == {"encoder/blocks/0", "prediction", "joint/input"}
    with torch.no_grad():
        assert torch.equal(loss_of(made, *ready.batch(range(4))), loss_of(taught, *ready.batch(range(4))))
    found = tune(taught, tones(20, 3, 1.2), SpeechTraining(lr=1e-2, masks=0), [2], 0, adapter=adapter(skip=0.3))[0]
    model = found.model()
    assert not torch.equal(loss_of(model, *ready.batch(range(4))), loss_of(taught, *ready.batch(range(4))))
    assert all(torch.equal(before[name], value) for name, value in taught.state_dict().items())
    assert all(torch.equal(before[name], value) for name, value in model.net.state_dict().items())  # weights and running statistics
    moved = [part for part, held in model.adapters["new"].items() if any(weight.abs().sum() > 0 for weight in held.up.parameters())]
    assert len(moved) == 3  # all three places learn through the loss
    learned_on = tune(taught, tones(20, 3, 1.2), SpeechTraining(batch_norm="train", masks=0), [2], 0, adapter=adapter())[0]
    name = "encoder.blocks.0.convolution.batch_norm.running_mean"
    assert not torch.equal(learned_on.learner.net.state_dict()[name], before[name])  # the ablation


def test_what_learns_in_partial_tuning(taught):
    for part, still in (("encoder", "joint"), ("decoder", "encoder")):
        made = tune(taught, tones(8), SpeechTraining(masks=0, batch_norm="train"), [2], 0, part=part)[0].model()
        changed = {name.split(".")[0] for name, value in made.state_dict().items() if not torch.equal(value, taught.state_dict()[name])}
        assert still not in changed
        assert changed == ({"encoder"} if part == "encoder" else {"prediction", "joint"})


def test_stochastic_depth_adds_its_mean_in_evaluation(taught):
    """In evaluation an adapter adds the mean of what it added in training, also where it was left out three times of four."""
    learner = Injected(copy.deepcopy(taught)).add("a", adapter(skip=0.75)).learn("a")
    part, y = learner.adapters["a"]["joint/input"], torch.randn(5, 24)
    torch.nn.init.normal_(part.up.weight)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        mean = torch.stack([part.train()(y, y) for _ in range(4000)]).mean(0)
        assert torch.allclose(part.eval()(y, y), mean, atol=0.2, rtol=0.1)


def test_a_checkpoint_is_the_run_that_ended_there(taught):
    new, training = tones(12, 3, 1.2), SpeechTraining(lr=5e-3)
    both = tune(taught, new, training, [2, 4], 0, adapter=adapter(dropout=0.2, skip=0.5))
    short = tune(taught, new, training, [2], 0, adapter=adapter(dropout=0.2, skip=0.5))
    assert all(torch.equal(value, short[0].state[name]) for name, value in both[0].state.items())
    assert not all(torch.equal(value, both[1].state[name]) for name, value in both[0].state.items())


def test_score_under_bounds():
    """By the formula of the authors' script (percent there): (3 - min(3, 1.2)) / 3 x (20.69 - 15.5) / 20.69 = 0.1505."""
    chooser = ConstrainedSelector(0.03)
    assert chooser.score({"old": 0.05118}, {"old": 0.06318}, 0.2069, 0.155) == pytest.approx(0.1505, abs=1e-4)
    assert chooser.score({"old": 0.05}, {"old": 0.08}, 0.2, 0.0) == 0
    assert chooser.score({"old": 0.05}, {"old": 0.01}, 0.2, 0.1) == 0.5  # what got better has lost nothing
    assert chooser.score({"old": 0.05}, {"old": 0.05}, 0.2, 0.3) == 0
    assert chooser.score({"old": 0.05}, {"old": 0.05}, 0.0, 0.0) == 0
    own = ConstrainedSelector({"a": 0.1, "b": 0.02})
    assert own.oscale({"a": 0.0, "b": 0.0}, {"a": 0.05, "b": 0.05}) == pytest.approx(0.25)
    with pytest.raises(AcclimateError, match="no kappa for the old set 'c'"):
        own.oscale({"c": 0.0}, {"c": 0.0})
    with pytest.raises(AcclimateError, match="above 0"):
        ConstrainedSelector(0.0)


def test_the_strategy_keeps_the_best_score_or_the_start(taught, monkeypatch):
    given = {"new": tones(16, 3, 1.25), "held": tones(12, 4, 1.25), "old": {"own": tones(12, 5)}}
    few = {
        "places": ["encoder", "joint"],
        "dim": [8],
        "dropout": [0.0],
        "skip": [0.3],
        "steps": [2, 8],
        "lr": 1e-2,
        "batch": 8,
        "tuning_lr": [1e-2, 1e-3],
    }
    bench = Notes()
    made = load("adapters.damage_control", **few, kappa=1.0, baselines=["full"]).run(bench, start=taught, **given)
    assert set(made) == {"adapted", "adapted.unconstrained", "full", "full.unconstrained"}
    rows = bench.notes["table"]["adapted"]
    assert [(row["place"], row["steps"]) for row in rows] == [("encoder", 2), ("encoder", 8), ("joint", 2), ("joint", 8)]
    chosen = bench.notes["chosen"]["adapted"]["constrained"]
    if chosen is None:
        assert made["adapted"] is taught
    else:
        assert chosen["score"] == max(row["score"] for row in rows)
        assert error_rate(made["adapted"], given["held"]) == chosen["new"]
    assert [(row["lr"], row["steps"]) for row in bench.notes["table"]["full"]] == [(1e-2, 2), (1e-2, 8), (1e-3, 2), (1e-3, 8)]
    alone = bench.notes["chosen"]["full"]["unconstrained"]
    assert error_rate(made["full.unconstrained"], given["held"]) == alone["new"] == min(row["new"] for row in bench.notes["table"]["full"])
    worse = load("adapters.damage_control", **few | {"steps": [1], "lr": 0.0}).run(bench, start=taught, **given)
    assert worse["adapted"] is taught  # nothing was gained, so nothing is worth its damage
    assert bench.notes["chosen"]["adapted"]["constrained"] is None


def test_the_strategy_refuses_what_it_cannot_do(taught):
    with pytest.raises(AcclimateError, match="names 'head'"):
        load("adapters.damage_control", places=["encoder+head"])
    with pytest.raises(AcclimateError, match="dim = 32, but the network's width is 24"):
        load("adapters.damage_control").run(Notes(), start=taught, new=tones(2), held=tones(2), old={"own": tones(2)})
    with pytest.raises(AcclimateError, match="names 'all'"):
        load("adapters.damage_control", baselines=["all"])
    with pytest.raises(AcclimateError, match="needs start, new, held, and old"):
        load("adapters.damage_control").run(Notes(), start=taught, new=tones(2), held=tones(2))


def test_an_adapter_is_saved_alone_and_heard_again(taught, tmp_path):
    model = tune(taught, tones(12, 3, 1.2), SpeechTraining(lr=1e-2), [4], 0, adapter=adapter(skip=0.2))[0].model()
    model.save_pretrained(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"adapters.json", "adapters.safetensors"}
    again, ready = Injected.from_pretrained(copy.deepcopy(taught), tmp_path / "new").eval(), prepare(taught, tones(4))
    with torch.no_grad():
        assert torch.equal(loss_of(again, *ready.batch(range(4))), loss_of(model, *ready.batch(range(4))))


def test_spoken_digits_are_cut_at_their_offsets(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCLIMATE_DATA", str(tmp_path))
    (tmp_path / "other" / "fsdd_speech").mkdir(parents=True)
    stored = {"audio": np.array([16384, -32768, 0, 8192], np.int16), "offsets": np.array([0, 1, 4], np.int32), "rate": 8000}
    np.savez(tmp_path / "other" / "fsdd_speech" / "theo.npz", y=np.array([3, 0], np.uint8), take=np.array([0, 7], np.uint8), **stored)
    speech = datasets.load("spoken_digits/theo")
    assert [wave.tolist() for wave in speech.waves] == [[0.5], [-1.0, 0.0, 0.25]]
    assert (speech.words, speech.takes, speech.rate) == ([("three",), ("zero",)], [0, 7], 8000)
    with pytest.raises(AcclimateError, match="nearest: theo"):
        datasets.load("spoken_digits/teo")


def test_joined_recordings_and_takes():
    speech = Speech("s", [torch.full((4,), float(i)) for i in range(6)], [(str(i),) for i in range(6)], 8000, takes=[0, 1, 2, 0, 1, 2])
    assert [words for (words,) in speech.of_takes(1, 3).words] == ["1", "2", "4", "5"]
    joined = speech.joined(20, 1, 3, seed=0)
    assert {len(words) for words in joined.words} == {1, 2, 3}
    assert all(wave[::4].tolist() == [float(word) for word in words] for wave, words in zip(joined.waves, joined.words, strict=True))
    with pytest.raises(AcclimateError, match="do not go together"):
        Speech.together("x", [speech, Speech("fast", [torch.zeros(1)], [("a",)], 16000)])
