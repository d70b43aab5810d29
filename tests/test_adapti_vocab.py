"""New tokens: the choice by hand, the rewritten tokenizer against a trie over ids, first rows, light tuning, files, what is refused."""

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from acclimate.domain import Domain
from acclimate.engines.new_tokens import NewTokens, compare, count, rewritten, words
from acclimate.engines.partial import partial
from acclimate.engines.settings import Training
from acclimate.engines.train import train
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model import Model
from acclimate.model.difference import load_difference, save_difference
from acclimate.parts.ngrams import Vocabulary, candidates, choose, replaced, shares
from strategy_tools import Bench
from worlds import model_of, network, sentences

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TRAPS = [
    " of theory and of the", "in of the'other' of the's", "of the\u0301 x", "  of the\n\n of the 12 of the 123 of the1",
    "The court's Act.\nThe", "(the court) [the court] the-court", "\t of the", "ofthe oF The of  the",
    "Section 1234, section 12; section 12.5", "naïve of the 東京 of the café", "", " ", "\n\n\n", "a\U0001f600 of the\U0001f600",
    "The courtThe court", "x of the/ y",
]  # fmt: skip


def legal(count: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    nouns, verbs = ["court", "tribunal", "Minister", "registrar"], ["shall hear", "may dismiss", "adjourns"]
    return [
        " ".join(
            f"{draw.choice(['The', 'If the', 'A'])} {draw.choice(nouns)} {draw.choice(verbs)} the appeal of the {draw.choice(nouns)}, "
            f"section {draw.integers(1, 200)}({draw.integers(1, 9)}), of the Act.{draw.choice(['', chr(10)])}"
            for _ in range(3)
        )
        for _ in range(count)
    ]


def bpe(pattern: str, size: int = 560) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), level]
    inner.pre_tokenizer = pre_tokenizers.Sequence(steps) if pattern else level
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(legal(20, 1) + sentences("kitchen", 300), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>", model_max_length=256)


@pytest.fixture(scope="module")
def world():
    """A model with a table for each side, and its domain."""
    tokenizer = bpe(LLAMA3)
    return model_of(network("llama", tokenizer), tokenizer), Domain.from_texts("law", legal(200))


@pytest.fixture(scope="module")
def plugin(world):
    return load("inputs.adapti_vocab", tokens=60).fit(world[0], world[0].tokenizer, world[1])


# the choice


def test_candidates_are_those_that_stand_between_borders():
    ids = np.array([1, 2, 3, 1, 2, 3, -1, 1, 2, 4])
    begins = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 1], bool)  # 1 2 is a word, 3 and 4 are
    found = {tuple(gram): np.diff(each.starts)[g] for each in candidates(ids, begins, 4, 2) for g, gram in enumerate(each.ids.tolist())}
    assert found == {(1, 2): 3, (1, 2, 3): 2}  # 2 3 begins in a word; 3 1 ends in one; 1 2 3 1 does too


def test_an_overlapped_gram_is_counted_again_and_loses_its_place():
    text = [1, 2, 3] * 6 + [3, 9] * 5 + [8, 1, 2]  # 1 2: 7, 2 3: 6, 3 1: 5, 3 9: 5, 9 3: 4
    ids = np.array(text)
    grams = candidates(ids, np.ones(len(ids), bool), 2, 4)
    assert sum(len(each.ids) for each in grams) == 5
    halves = {20: (10, 11), 21: (10, 11), 22: (10, 11)}
    counts = np.bincount(ids, minlength=30)
    choice = choose(grams, len(ids), 10, Vocabulary(counts, halves, ()), least=2)
    assert choice.grams == [(1, 2), (3, 9)]  # the others all overlap these
    assert choice.saved == [7, 5]
    assert choice.cost == [0, 0]


def test_swaps_stop_when_they_do_not_pay_and_halves_inherit_the_cost():
    ids = np.array([1, 2] * 6 + [5, 6] * 5 + [7] * 4)
    counts = np.bincount(ids, minlength=12)
    halves = {7: (3, 4), 8: (7, 9)}  # 8, which does not occur, is made of 7, and 7 of 3 and 4
    vocabulary = Vocabulary(counts, halves, ())
    choice = choose(candidates(ids, np.ones(len(ids), bool), 2, 5), len(ids), 10, vocabulary)
    assert choice.dropped == [8, 7]  # 7 could not go before 8 did
    assert choice.cost == [0, 4]
    assert choice.saved == [6, 5]
    assert vocabulary.counts[3] == 4
    choice = choose(candidates(ids, np.ones(len(ids), bool), 2, 5), len(ids), 10, Vocabulary(counts + 2 * (np.arange(12) == 7), halves, ()))
    assert choice.dropped == [8]  # the other would cost 6 and save 5
    choice = choose(candidates(ids, np.ones(len(ids), bool), 2, 5), len(ids), 10, Vocabulary(counts, halves, {8}))
    assert not choice.grams  # 8 may not go, so 7 is needed


def test_parts_of_what_was_chosen_stay():
    ids = np.array([1, 2] * 6)
    vocabulary = Vocabulary(np.bincount(ids, minlength=6) * 0, {2: (3, 4), 5: (3, 4)}, ())
    assert vocabulary.cheapest((2,)) == (0, 5)
    vocabulary.keep((2,))
    vocabulary.drop(5)
    assert vocabulary.cheapest() is None


def test_a_gram_that_overlaps_itself_is_counted_from_the_left():
    ids = np.array([4] * 7)
    choice = choose(candidates(ids, np.ones(7, bool), 2, 2), 7, 1, Vocabulary(np.zeros(9), {8: (0, 1)}, ()))
    assert choice.saved == [3]


# the tokenizer


@pytest.mark.parametrize("pattern", ["", LLAMA3, O200K], ids=["gpt2", "llama3", "o200k"])
def test_the_rewritten_tokenizer_is_the_old_one_with_grams_in_place_of_their_parts(pattern):
    tokenizer = bpe(pattern)
    model = model_of(network("llama", tokenizer), tokenizer)
    made = load("inputs.adapti_vocab", tokens=80, least=5).fit(model, tokenizer, Domain.from_texts("law", legal(150), splits=False))
    assert len(made.parts) > 20
    assert sum("Ġ" in made.tokenizer.backend_tokenizer.id_to_token(number)[1:] for number in made.parts) > 8  # of several words
    without = rewritten(tokenizer, {}, made.dropped)  # tokens given up, nothing new
    grams = {parts: number for number, parts in made.parts.items()}
    same = 0
    for text in [*legal(40, 3), *sentences("kitchen", 20, 5), *TRAPS]:
        ids = made.tokenizer(text, add_special_tokens=False).input_ids
        old, begins = words(without, [text])
        assert made.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert made.expand(ids) == old[:-1].tolist()  # the last is the border
        best = replaced(old[:-1].tolist(), grams, begins[:-1].tolist())
        same += best == ids
        if text not in TRAPS:
            assert ids == best
    assert same >= 55  # before combining marks and the like the rewritten one holds back


def test_no_gram_begins_or_ends_inside_a_word(plugin, world):
    encode = plugin.tokenizer.tokenize
    phrases = [token for token in map(plugin.tokenizer.convert_ids_to_tokens, plugin.parts) if "Ġ" in token[1:] and token[-1].isalpha()]
    assert len(phrases) > 5
    for phrase in phrases:
        text = plugin.tokenizer.convert_tokens_to_string([phrase])
        assert encode(text) == [phrase]
        assert encode(f"{text} x")[0] == phrase
        assert encode(f"{text}x")[0] != phrase
        assert phrase not in encode(f"x{text.lstrip()}") or not text.lstrip()[0].isalpha()


def test_what_is_counted_is_what_is_saved(plugin, world):
    model, law = world
    before, after = count(model.tokenizer, law.texts("train")), count(plugin.tokenizer, law.texts("train"))
    assert plugin.report["saved"] == before - after > 0.3 * before
    assert plugin.report["saved as chosen"] == pytest.approx(before - after, rel=0.05)  # greedy choice, longest match
    assert len(plugin.dropped) == len(plugin.parts) == plugin.report["swapped"]
    assert not {part for parts in plugin.parts.values() for part in parts} & set(plugin.dropped)
    assert len(plugin.tokenizer) == len(model.tokenizer)


def test_it_reloads_as_an_ordinary_model_with_its_template(world, plugin, tmp_path):
    model, law = world
    template = "{{ messages[0]['content'] }}"
    model.tokenizer.chat_template = template
    again = load("inputs.adapti_vocab", tokens=60).fit(model, model.tokenizer, law).apply(model)
    again.save(tmp_path / "made")
    tokenizer, net = AutoTokenizer.from_pretrained(tmp_path / "made"), AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert tokenizer.chat_template == template
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|end|>", "<|end|>", 256)
    for text in [*legal(10, 4), *TRAPS]:
        assert tokenizer(text).input_ids == again.tokenizer(text).input_ids
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), again.net.parameters(), strict=True))
    assert Model.load(str(tmp_path / "made")).fingerprint == again.fingerprint
    model.tokenizer.chat_template = None


# first rows


def test_first_rows_by_hand(world, plugin):
    made = plugin.apply(world[0])
    number, parts = next((number, parts) for number, parts in plugin.parts.items() if len(parts) == 3)
    raised = np.exp(2.0 * np.arange(1, 4))
    for name, weights in (("get_input_embeddings", raised), ("get_output_embeddings", 1 / raised)):
        old, new = (getattr(each.net, name)().weight.detach().double().numpy() for each in (world[0], made))
        assert new[number] == pytest.approx((weights / weights.sum()) @ old[list(parts)], abs=1e-6)
    assert shares(4, 0.0).tolist() == [0.25] * 4


@pytest.mark.parametrize("tied", ["mean", "untie"])
def test_one_table_for_both_sides_gets_the_mean_or_is_made_two(tied, tmp_path):
    tokenizer = bpe(LLAMA3)
    model = model_of(network("llama", tokenizer, tie_word_embeddings=True), tokenizer)
    made = load("inputs.adapti_vocab", tokens=20, tied=tied).fit(model, tokenizer, Domain.from_texts("law", legal(100)))
    after = made.apply(model)
    one = model.net.get_input_embeddings().weight.detach().double()
    number, parts = next(iter(made.parts.items()))
    inward, outward = (torch.tensor(weights[number], dtype=torch.float64) @ one[list(parts)] for weights in (made.inward, made.outward))
    tables = [after.net.get_input_embeddings().weight, after.net.get_output_embeddings().weight]
    assert (tables[0] is tables[1]) == (tied == "mean")
    want = [(inward + outward) / 2] * 2 if tied == "mean" else [inward, outward]
    for table, row in zip(tables, want, strict=True):
        assert torch.allclose(table[number].double(), row, atol=1e-6)
    again = Model.load(str(after.save(tmp_path / "made")))
    assert torch.equal(again.probe(), after.probe())
    restored = load_difference(save_difference(after, model, tmp_path / "difference"), model)
    assert torch.equal(restored.probe(), after.probe())


# the extension


def test_the_extension_adds_rows_behind_the_old_ones(world):
    model, law = world
    made = load("inputs.vocabulary_extension", size=900, tokens=12, terms=[" plaintiff"]).fit(model, model.tokenizer, law)
    after, rows = made.apply(model), len(model.tokenizer)
    assert sorted(made.parts) == list(range(rows, rows + 13))
    assert made.tokenizer.tokenize(" plaintiff") == ["Ġplaintiff"]
    for number in made.parts:
        text = made.tokenizer.decode([number])
        assert made.tokenizer(text, add_special_tokens=False).input_ids == [number]  # none that is never met
        pieces = model.tokenizer(text, add_special_tokens=False).input_ids
        assert made.parts[number] == tuple(pieces)
        mean = model.net.get_input_embeddings().weight[pieces].mean(0)
        assert torch.allclose(after.net.get_input_embeddings().weight[number], mean, atol=1e-6)
        assert not after.net.get_output_embeddings().weight[number].any()
    assert torch.equal(after.net.get_output_embeddings().weight[:rows], model.net.get_output_embeddings().weight)
    assert after.net.config.vocab_size == rows + 13
    for text in [*legal(20, 3), *TRAPS]:
        ids = made.tokenizer(text, add_special_tokens=False).input_ids
        assert made.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert made.expand(ids) == model.tokenizer(text, add_special_tokens=False).input_ids


def test_the_extension_of_one_table_keeps_it_one_where_that_is_asked_for():
    tokenizer = bpe(LLAMA3)
    model = model_of(network("llama", tokenizer, tie_word_embeddings=True), tokenizer)
    made = load("inputs.vocabulary_extension", tokens=5, size=900, tied="input").fit(model, tokenizer, Domain.from_texts("law", legal(99)))
    net = made.apply(model).net
    assert net.get_output_embeddings().weight is net.get_input_embeddings().weight
    number, parts = next(iter(made.parts.items()))
    mean = model.net.get_input_embeddings().weight[list(parts)].mean(0)
    assert torch.allclose(net.get_input_embeddings().weight[number], mean, atol=1e-6)


# tuning and files


def test_frozen_layers_stay_frozen_through_the_train_engine(world, plugin, tmp_path):
    start = plugin.apply(world[0])
    head = partial(start, ["head"])
    assert head.fingerprint != partial(start, ["embeddings"]).fingerprint != start.fingerprint
    plan = Training(steps=2, batch_tokens=128, row_tokens=32, precision="fp32", lr=1e-2)
    for groups, moved in ((["head"], {"lm_head"}), (["embeddings", "first_layer"], {"model.embed_tokens", "model.layers.0"})):
        tuned = train(partial(start, groups), load("objectives.causal_lm"), world[1], plan, tmp_path / groups[0]).model
        changed = {name for name, value in tuned.net.named_parameters() if not torch.equal(value, start.net.get_parameter(name))}
        assert changed
        assert all(any(name.startswith(each) for each in moved) for name in changed)
        assert {each for each in moved if any(name.startswith(each) for name in changed)} == moved


def test_only_changed_rows_are_stored(world, plugin, tmp_path):
    from safetensors.torch import load_file

    model, after = world[0], plugin.apply(world[0])
    folder = save_difference(after, model, tmp_path / "difference")
    stored = load_file(folder / "difference.safetensors")
    assert {name.partition("/")[0] for name in stored} == {"rows", "values"}
    assert sorted(stored["rows/model.embed_tokens.weight"].tolist()) == sorted(plugin.parts)
    model.source = str(model.save(tmp_path / "base"))
    again = Model.load(str(save_difference(after, model, folder)))  # with its base from where that lies
    assert torch.equal(again.probe(), after.probe())
    assert again.tokenizer(legal(1)[0]).input_ids == after.tokenizer(legal(1)[0]).input_ids
    other = model.copy()
    with torch.no_grad():
        other.net.get_input_embeddings().weight[3] += 1
    with pytest.raises(AcclimateError, match="was made on"):
        load_difference(folder, other)


def test_stages_and_report(world, tmp_path):
    model, law = world
    bench = Bench(tmp_path, steps=2)
    method = load("inputs.adapti_vocab", tokens=30, lr=1e-2)
    law = Domain("law", "text", {"train": law.rows("train"), "test": law.rows("test").select(range(6))})
    made = method.run(bench, start=model, corpus=law)
    assert set(made) == {"untuned", "tuned"}
    assert len(made["tuned"].tokenizer) == len(model.tokenizer)
    report = bench.notes["report"]
    assert report["untuned"]["tokens per byte after"] < 0.8 * report["untuned"]["tokens per byte before"]
    assert report["tuned"]["bits per byte after"] < report["untuned"]["bits per byte after"]
    assert report["tuned"]["seconds per 1000 bytes written after"] > 0
    with pytest.raises(AcclimateError, match="takes no other"):
        method.run(bench, start=model, corpus=law, other=law)
    with pytest.raises(AcclimateError, match="needs a model and text"):
        method.run(bench, start=model)
    assert set(load("inputs.vocabulary_extension", tokens=9, epochs=0.0).run(Bench(tmp_path / "b"), start=model, corpus=law)) == {"untuned"}


def test_compare_leaves_generation_out_without_prompts(world, plugin):
    found = compare(world[0], plugin.apply(world[0]), legal(2))
    assert {name.rpartition(" ")[0] for name in found} == {"tokens per byte", "bits per byte"}


# bad input


def test_bad_input_in_one_line(world, tiny):
    model, law = world
    small = Domain.from_texts("notes", ["One line of text, and no more."], splits=False)
    with pytest.raises(AcclimateError, match=r"notes is too small.*5 tokens occurs 10 times"):
        load("inputs.adapti_vocab").fit(model, model.tokenizer, small)
    with pytest.raises(AcclimateError, match=r"notes is too small"):
        load("inputs.vocabulary_extension").fit(model, model.tokenizer, small)
    with pytest.raises(AcclimateError, match=r"' of' and 1 more are in the tokenizer already"):
        load("inputs.vocabulary_extension", terms=[" of", " plaintiff", " the"]).fit(model, model.tokenizer, law)
    with pytest.raises(AcclimateError, match="2 words"):
        load("inputs.vocabulary_extension", terms=["of the"]).fit(model, model.tokenizer, law)
    wide = bpe(LLAMA3, 600)
    with pytest.raises(AcclimateError, match=r"ids up to 599, but its embedding has \d+ rows"):
        load("inputs.adapti_vocab").fit(model_of(model.net, wide), wide, law)
    with pytest.raises(AcclimateError, match="another tokenizer"):
        load("inputs.adapti_vocab", tokens=5).fit(model, model.tokenizer, law).apply(tiny)
    with pytest.raises(AcclimateError, match="must name some of"):
        load("inputs.adapti_vocab", train=["heads"]).run(None, start=model, corpus=law)
    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    pieces = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")
    with pytest.raises(AcclimateError, match="it is WordPiece"):
        load("inputs.adapti_vocab").fit(model_of(model.net, pieces), pieces, law)
    with pytest.raises(AcclimateError, match="for causal language models"):
        NewTokens(model.tokenizer, model.tokenizer, {}, {}, {}).apply(model_of(model.net, model.tokenizer, "masked"))
