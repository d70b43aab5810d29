"""Token ids equal the tokenizer's own on every text, are made once, and survive kills and broken files."""

import ast
import json
import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
import tracemalloc
import unicodedata
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from acclimate.engines import tokens
from acclimate.engines.bpe import SEPARATOR, ByteLevelBPE, ConversionError
from acclimate.engines.tokens import encode
from acclimate.errors import AcclimateError

LLAMA_SPLIT = (  # the pattern that Llama 3's tokenizer.json holds
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HARD = [
    "",
    "plain words, 12345 and 3.14",
    "Ünïcödé naïve cafe\u0301 Ελληνικά русский 中文字符 日本語 العربية हिन्दी",
    "emoji 👩‍👩‍👧‍👦 🇪🇺 👍🏽 and a flag 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "line\r\nline\r\n\r\n  indented\tby tab\n\n\n",
    "   leading and trailing   ",
    "\u00a0\u2003\u3000odd\u200bspaces\x85\x1c here",
    "I'LL you'Re it's o'\u017f don\u2019t",
    "<|end|>at the start, inside <|end|> and twice<|end|><|end|>",
    "almost <|end| >|end|> <|en",
    "x" * 20_000,
    "abcdefghij" * 3_000 + " " * 5_000 + "end",
    "\x00\x01\x7f\ufffd\ufdd0 \U0010ffff",
    "\ufdd0\ufdd1 two noncharacters in a row \ufdd0\ufdd1",
    "a\u0308\u0323 not composed \u1100\u1161\u11a8",
    "",
]


@pytest.fixture(scope="module")
def corpus():
    """Docstrings of the standard library."""
    found = []
    for name in ("argparse", "inspect", "typing", "os", "pathlib", "logging/__init__", "unittest/mock", "tarfile", "statistics"):
        tree = ast.parse(Path(sysconfig.get_path("stdlib"), f"{name}.py").read_text(encoding="utf-8"))
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found += [doc for node in ast.walk(tree) if isinstance(node, nodes) and (doc := ast.get_docstring(node))]
    assert len(found) > 600
    return found


def byte_level(corpus, split=None, normalizer=None, alphabet=True, ignore_merges=False, prefix=False):
    raw = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split is None)
    raw.pre_tokenizer = last if split is None else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), last])
    raw.decoder = decoders.ByteLevel()
    if normalizer:
        raw.normalizer = normalizer
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    raw.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=1000, initial_alphabet=letters, special_tokens=["<|end|>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")


def word_piece(corpus):
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    raw.train_from_iterator(corpus, trainers.WordPieceTrainer(vocab_size=1000, special_tokens=["[UNK]", "<|end|>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", eos_token="<|end|>")


MAKERS = {
    "gpt2": ("bpe", byte_level),
    "llama3": ("bpe", lambda c: byte_level(c, LLAMA_SPLIT, ignore_merges=True)),
    "nfc": ("bpe", lambda c: byte_level(c, LLAMA_SPLIT, normalizers.NFC())),
    "few bytes": ("bpe", lambda c: byte_level(c, alphabet=False)),
    "prefix space": ("batch", lambda c: byte_level(c, prefix=True)),
    "lowercase": ("batch", lambda c: byte_level(c, normalizer=normalizers.Lowercase())),
    "wordpiece": ("batch", word_piece),
}


@pytest.fixture(scope="module")
def made(corpus):
    return {name: (way, make(corpus)) for name, (way, make) in MAKERS.items()}


@pytest.fixture
def gpt2(made):
    return made["gpt2"][1]


def own(tokenizer, texts):
    return [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]


def lists(found):
    return [ids.tolist() for ids in found]


def converted(tokenizer, prove=True):
    """The tiktoken form alone, and the documents it handed to the tokenizers library."""
    handed = []

    def exact(documents):
        handed.extend(documents)
        return tokens._flat(own(tokenizer, documents))

    form = ByteLevelBPE(tokenizer.backend_tokenizer.to_str(), exact, prove)

    def run(texts):
        ids, lengths = form.encode(texts)
        return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]

    return run, handed


@pytest.mark.parametrize("name", MAKERS)
def test_ids_equal_the_tokenizers_own(made, name, corpus, tmp_path):
    way, tokenizer = made[name]
    texts = [*HARD, *corpus[:300]]
    found = encode(texts, tokenizer, cache=tmp_path)
    expected = own(tokenizer, texts)
    assert lists(found) == expected
    assert found.lengths.tolist() == [len(ids) for ids in expected]
    assert found.lengths.dtype == np.int64
    assert found[0].dtype == np.int32
    assert found.total == sum(map(len, expected))
    assert json.loads(next(tmp_path.rglob("way.json")).read_text())["way"] == way


@pytest.mark.parametrize("name", [name for name, (way, _) in MAKERS.items() if way == "bpe"])
def test_the_tiktoken_form_is_exact_without_any_check_after_it(made, name, corpus):
    tokenizer = made[name][1]
    run, handed = converted(tokenizer)
    texts = [*(text for text in HARD if SEPARATOR not in text), *corpus]
    assert run(texts) == own(tokenizer, texts)
    if name == "nfc":
        assert handed == [text for text in texts if not unicodedata.is_normalized("NFC", text)] != []
    elif name == "few bytes":
        assert handed == [text for text in texts if not set(text) <= set("".join(corpus))] != []
    else:
        assert handed == []


def test_a_document_that_holds_the_separator(gpt2):
    run, handed = converted(gpt2)
    texts = ["one", f"two{SEPARATOR}three", SEPARATOR, SEPARATOR[0], SEPARATOR[1]]
    assert run(texts) == own(gpt2, texts)
    assert handed == texts
    assert run([SEPARATOR[0], SEPARATOR[1], "", "z"]) == own(gpt2, [SEPARATOR[0], SEPARATOR[1], "", "z"])


def test_text_that_the_split_pattern_leaves_out_is_kept_as_the_tokenizer_keeps_it(corpus):
    tokenizer = byte_level(corpus, r"\p{L}+")
    run, handed = converted(tokenizer)
    texts = ["only", "words", "and more, 12 or so"]
    assert run(texts) == own(tokenizer, texts)
    assert run(texts[:2]) == own(tokenizer, texts[:2])
    assert handed == texts


@pytest.mark.parametrize("name", ["gpt2", "llama3", "nfc", "few bytes"])
def test_any_text_at_all(made, name):
    tokenizer = made[name][1]
    run, _ = converted(tokenizer)
    bits = st.sampled_from(
        ["<|end|>", "<|end", "|>", " ", "  ", "\n", "\r\n", "'s", "'LL", "the", "return", "123", "\u0301", "é", "👍🏽", "\ufdd0", "\ufdd1"]
    )

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.lists(st.one_of(bits, st.text(max_size=5)), max_size=12).map("".join), min_size=1, max_size=6))
    def check(texts):
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        assert run(texts) == own(tokenizer, texts)

    check()


@pytest.mark.parametrize(
    "behaviour", [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}, {"normalized": False}]
)
def test_added_tokens_of_every_kind(corpus, behaviour):
    tokenizer = byte_level(corpus)
    words = ["ab", "abc", "cd<|end|>", "x<|", "|>y", "end", "zz zz", "return"]
    tokenizer.add_tokens([AddedToken(word, **behaviour) for word in words])
    tokenizer.add_tokens([AddedToken("bcd", normalized=False), AddedToken("q", normalized=True), AddedToken("pq", normalized=False)])
    texts = [
        a + b + c for a in ("", " ", "abc", "x") for b in [*words, "ab cd", "abcd", "pq"] for c in ("", "<|end|>", " cd", "d", "<|end|>y")
    ]
    run, _ = converted(tokenizer)
    assert run(texts) == own(tokenizer, texts)


def test_plain_added_tokens_stay_on_the_fast_way(corpus):
    tokenizer = byte_level(corpus)
    tokenizer.add_tokens(["Hamilton", "telecom word"])
    run, handed = converted(tokenizer)
    texts = ["a Hamilton is a telecom word", "Hamiltonian<|end|>", "no such word"]
    assert run(texts) == own(tokenizer, texts)
    assert handed == []


def test_a_tokenizer_told_to_split_special_tokens(corpus, tmp_path):
    tokenizer = byte_level(corpus)
    whole = encode(["<|end|>"], tokenizer, cache=tmp_path)
    tokenizer.split_special_tokens = True
    apart = encode(["<|end|>"], tokenizer, cache=tmp_path)
    assert (len(whole[0]), len(apart[0])) == (1, len(own(tokenizer, ["<|end|>"])[0]))
    assert len(apart[0]) > 1
    assert "it splits special tokens" in {json.loads(note.read_text())["why"] for note in tmp_path.rglob("way.json")}


def test_of_two_added_tokens_with_one_start_the_longer_is_found(corpus):
    tokenizer = byte_level(corpus)
    words = [f"k{i}{end}" for i in range(10) for end in ("", "x", "xy")]  # many, since tiktoken tries them in the order of a hash
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    run, _ = converted(tokenizer)
    assert run([*words, " ".join(words)]) == own(tokenizer, [*words, " ".join(words)])


def letters_only(merges, extra=(), **options):
    """A byte-level BPE tokenizer with these merges."""
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for token in [*map("".join, merges), *extra]:
        vocabulary.setdefault(token, len(vocabulary))
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **options))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def ambiguous():
    """Merges that the rule "spell the token of lowest rank" does not reproduce: "bc" forms first, and is no part of "abc"."""
    return letters_only([("b", "c"), ("a", "b"), ("ab", "c")])


def test_the_proof_over_all_small_sets_of_merges():
    pairs = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("a", "a"), ("aa", "a"), ("aa", "b")]
    texts = ["".join(letters) for length in range(2, 6) for letters in product("abc", repeat=length)]
    accepted, needed = 0, 0
    for merges in permutations(pairs, 3):
        made = {"a", "b", "c", *map("".join, merges)}
        if not all(piece in made for pair in merges for piece in pair):
            continue
        backend = letters_only(merges).backend_tokenizer
        true = [coded.ids for coded in backend.encode_batch_fast(texts)]
        ids, lengths = ByteLevelBPE(backend.to_str(), lambda documents: pytest.fail("in doubt"), prove=False).encode(texts)
        same = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] == true
        try:
            ByteLevelBPE(backend.to_str(), tokens._flat)
        except ConversionError:
            needed += not same
        else:
            accepted += 1
            assert same, merges
    assert accepted > 20
    assert needed > 5


def test_a_token_with_several_pairs_in_a_row():
    """As in tokenizers that were themselves made from tiktoken's ranks."""
    tokenizer = letters_only([("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")])
    run, _ = converted(tokenizer)
    texts = ["".join(letters) for length in range(1, 7) for letters in product("abc", repeat=length)]
    assert run(texts) == own(tokenizer, texts)


def test_merges_in_an_order_that_is_no_order_are_refused():
    with pytest.raises(ConversionError, match="abc"):
        converted(letters_only([("ab", "c"), ("a", "b")]))


def test_whole_words_without_a_merge_are_refused(tmp_path):
    tokenizer = letters_only([("a", "b")], extra=["xyz"], ignore_merges=True)
    assert len(own(tokenizer, ["xyz"])[0]) == 1
    with pytest.raises(ConversionError, match="no merge makes"):
        converted(tokenizer)
    assert lists(encode(["xyz", "ab"], tokenizer, cache=tmp_path)) == own(tokenizer, ["xyz", "ab"])
    run, _ = converted(letters_only([("a", "b")], extra=["xyz"]))
    assert run(["xyz"]) == own(letters_only([("a", "b")], extra=["xyz"]), ["xyz"])


def test_merges_that_tiktoken_reads_otherwise_are_refused(tmp_path):
    tokenizer = ambiguous()
    with pytest.raises(ConversionError, match="abc"):
        converted(tokenizer)
    run, _ = converted(tokenizer, prove=False)
    assert run(["abc"]) != own(tokenizer, ["abc"])  # so the refusal is needed
    assert lists(encode(["abc", "ab c"], tokenizer, cache=tmp_path)) == own(tokenizer, ["abc", "ab c"])


def test_a_difference_in_the_sample_ends_the_fast_way(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("ACCLIMATE_QUIET", raising=False)
    monkeypatch.setattr("acclimate.engines.bpe._prove", lambda *given: None)
    monkeypatch.setattr(tokens, "SHARD_BYTES", 400)
    tokenizer = ambiguous()
    texts = [f"text {i}" for i in range(150)] + ["abc"] * 10  # the difference is in a late shard
    assert lists(encode(texts, tokenizer, cache=tmp_path, what="letters")) == own(tokenizer, texts)
    assert "letters: through the tokenizers library, which is slower" in capfd.readouterr().err

    other = tmp_path / "other"
    with pytest.raises(AcclimateError, match="run it again"):
        encode(iter(texts), tokenizer, cache=other)
    assert lists(encode(iter(texts), tokenizer, cache=other)) == own(tokenizer, texts)


def test_the_slow_way_is_said_once_and_the_fast_one_not(made, corpus, tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("ACCLIMATE_QUIET", raising=False)
    encode(corpus[:5], made["gpt2"][1], cache=tmp_path)
    assert capfd.readouterr().err == ""
    for part in (corpus[:5], corpus[5:10]):
        encode(part, made["wordpiece"][1], cache=tmp_path)
    assert capfd.readouterr().err.count("because its pre-tokenizer is not byte-level") == 1


def test_a_tokenizer_in_python(tmp_path):
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    assert not hasattr(tokenizer, "backend_tokenizer")
    texts = ["some text", "", "é👍🏽"]
    assert lists(encode(texts, tokenizer, cache=tmp_path)) == own(tokenizer, texts)


def test_ids_beyond_16_bits(tmp_path):
    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(70_000)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = encode(["w69999 w1", "w65536"], PreTrainedTokenizerFast(tokenizer_object=raw), cache=tmp_path)
    assert lists(found) == [[69_999, 1], [65_536]]


def test_truncation_and_padding_of_the_caller_are_neither_applied_nor_lost(corpus, tmp_path):
    for name, tokenizer in (("bpe", byte_level(corpus)), ("batch", word_piece(corpus))):
        plain = own(tokenizer, corpus[:9])
        tokenizer.pad_token = "<|end|>"
        tokenizer.backend_tokenizer.enable_truncation(3)
        tokenizer.backend_tokenizer.enable_padding(length=5)
        form = tokens._Batch(tokenizer).encode(corpus[:9])
        assert tokenizer.backend_tokenizer.truncation["max_length"] == 3
        assert form[0].tolist() == [id_ for ids in plain for id_ in ids]
        assert lists(encode(corpus[:9], tokenizer, cache=tmp_path / name)) == plain


def test_a_million_spaces(gpt2):
    """tiktoken's regex overflows on them."""
    text = "a" + " " * 1_200_000 + "b"
    run, _ = converted(gpt2)
    assert run([text, "other"]) == own(gpt2, [text, "other"])


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tokens, "SHARD_BYTES", 20_000)


def shards(folder):
    return sorted(folder.rglob("*.tok"))


@pytest.mark.usefixtures("small")
def test_what_is_in_the_cache_is_not_encoded_again(gpt2, corpus, tmp_path, monkeypatch):
    first = encode(corpus, gpt2, cache=tmp_path)
    assert len(shards(tmp_path)) > 5
    monkeypatch.setattr(tokens._Way, "encode", lambda *given: pytest.fail("encoded again"))
    again = encode(corpus, gpt2, cache=tmp_path)
    assert lists(again) == lists(first) == own(gpt2, corpus)


@pytest.mark.usefixtures("small")
def test_another_tokenizer_has_other_shards(made, corpus, tmp_path):
    for name in ("gpt2", "llama3"):
        assert lists(encode(corpus[:50], made[name][1], cache=tmp_path)) == own(made[name][1], corpus[:50])
    changed = byte_level(corpus)
    before = tokens.fingerprint(changed)
    assert before == tokens.fingerprint(made["gpt2"][1])
    changed.add_tokens(["statistics"])
    assert tokens.fingerprint(changed) != before


def test_where_documents_end_is_part_of_the_key(gpt2, tmp_path):
    assert [len(encode(texts, gpt2, cache=tmp_path)) for texts in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""])] == [2, 2, 1, 2]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("harm", ["cut", "flip", "header", "empty"])
def test_a_broken_shard_is_made_again(gpt2, corpus, tmp_path, harm):
    expected = lists(encode(corpus, gpt2, cache=tmp_path))
    broken = shards(tmp_path)[2]
    data = bytearray(broken.read_bytes())
    if harm == "cut":
        data = data[:-7]
    elif harm == "empty":
        data = bytearray()
    else:
        data[len(data) // 2 if harm == "flip" else 20] ^= 1
    broken.write_bytes(data)
    assert lists(encode(corpus, gpt2, cache=tmp_path)) == expected


KILLED = """
import os, signal, sys, json, pathlib
from transformers import PreTrainedTokenizerFast
from acclimate.engines import tokens

tokens.SHARD_BYTES = 20_000
folder, when = pathlib.Path(sys.argv[1]), sys.argv[2]
texts = json.loads((folder / "texts.json").read_text())
replace, done = pathlib.Path.replace, []

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def replace_or_die(self, target):
    if str(target).endswith(".tok"):
        done.append(target)
        if len(done) == 4:
            die()
    return replace(self, target)

def reading():
    for number, text in enumerate(texts):
        if number == len(texts) // 2:
            die()
        yield text

if when == "writing":
    pathlib.Path.replace = replace_or_die
tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
tokens.encode(texts if when == "writing" else reading(), tokenizer, cache=folder / "cache")
"""


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("when", ["reading", "writing"])
def test_a_killed_run_goes_on_where_it_was(gpt2, corpus, tmp_path, when, monkeypatch):
    (tmp_path / "texts.json").write_text(json.dumps(corpus))
    gpt2.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), when], env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    made_before = {path: path.stat().st_mtime_ns for path in shards(tmp_path)}
    assert len(made_before) == 3 if when == "writing" else len(made_before) > 3

    written = []
    write = tokens._write
    monkeypatch.setattr(tokens, "_write", lambda path, flat: (written.append(path), write(path, flat)))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    found = encode(corpus, tokenizer, cache=tmp_path / "cache")
    assert lists(found) == own(gpt2, corpus)
    assert {path: path.stat().st_mtime_ns for path in made_before} == made_before
    assert len(written) == len(shards(tmp_path)) - len(made_before) > 0


def test_memory_holds_one_shard_and_not_the_corpus(gpt2, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "SHARD_BYTES", 20_000)
    text = "\n".join(corpus)[:500]

    def stream(documents):
        return (f"{number} {text}" for number in range(documents))

    encode(stream(30), gpt2, cache=tmp_path)  # imports and tables
    tracemalloc.start()
    found = encode(stream(4_000), gpt2, cache=tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 4_000
    assert found.total > 400_000
    assert peak < 1_000_000  # the text alone is 2 MB, its ids as Python lists over 20 MB


def test_more_shards_than_maps_are_kept_open(gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "SHARD_BYTES", 30)
    texts = [f"document number {i} of them" for i in range(300)]
    found = encode(texts, gpt2, cache=tmp_path)
    assert len(shards(tmp_path)) == 300 > tokens._open.cache_info().maxsize
    order = np.random.default_rng(0).permutation(600) - 300
    expected = own(gpt2, texts)
    assert all(found[i].tolist() == expected[i] for i in order)


def test_columns_iterators_and_lists_are_the_same(gpt2, corpus, tmp_path, monkeypatch):
    from datasets import Dataset

    column = Dataset.from_dict({"text": corpus})["text"]
    expected = own(gpt2, corpus)
    for number, texts in enumerate((column, iter(corpus), tuple(corpus))):
        assert lists(encode(texts, gpt2, cache=tmp_path / str(number))) == expected


def test_the_sequence_manners(gpt2, tmp_path):
    found = encode(["one", "", "three of them"], gpt2, cache=tmp_path)
    assert found[-1].tolist() == found[2].tolist() == own(gpt2, ["three of them"])[0]
    assert found[np.int64(1)].tolist() == []
    found[0][:] = 7  # a copy: the cache is not touched
    assert found[0].tolist() == own(gpt2, ["one"])[0]
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            found[wrong]
    none = encode([], gpt2, cache=tmp_path)
    assert (len(none), none.total, lists(none)) == (0, 0, [])
    assert lists(encode(["", ""], gpt2, cache=tmp_path)) == [[], []]


def test_what_is_not_text_is_refused_with_its_place(gpt2, tmp_path):
    with pytest.raises(AcclimateError, match="document 1 of law is NoneType"):
        encode(["fine", None], gpt2, cache=tmp_path, what="law")
    with pytest.raises(AcclimateError, match="document 0 of law: character 3 is half a surrogate pair"):
        encode(["bad\ud83d"], gpt2, cache=tmp_path, what="law")
    with pytest.raises(AcclimateError, match="one str"):
        encode("text", gpt2, cache=tmp_path)


def test_the_default_cache_is_the_users(gpt2, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path))
    encode(["text"], gpt2)
    assert len(shards(tmp_path / "tokens")) == 1
