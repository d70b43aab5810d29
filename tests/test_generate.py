"""Generation: a batch answers as one prompt alone, a seed repeats, and nothing else is disturbed."""

import copy

import pytest
import torch

from acclimate.engines.generate import generate, recall
from acclimate.errors import AcclimateError
from worlds import model_of, network, sentences

PROMPTS = ["The valve", "The pump opens the tank near boiler 12. The", "", "Note 3 on pipes. The gasket", "The", "7"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_batch_answers_as_each_prompt_alone(family, tokenizer):
    model = model_of(network(family, tokenizer), tokenizer)
    together = generate(model, PROMPTS, tokens=8, precision="fp32")
    assert together == [generate(model, [prompt], tokens=8, precision="fp32")[0] for prompt in PROMPTS]
    assert together == generate(model, PROMPTS, tokens=8, precision="fp32", rows=2)
    assert len(set(together)) > 3  # it is no constant


def test_greedy_is_the_likeliest_token_each_time(tiny):
    for prompt, said in zip(PROMPTS[:2], generate(tiny, PROMPTS[:2], tokens=6, precision="fp32"), strict=True):
        ids = [tiny.tokenizer.bos_token_id, *tiny.tokenizer(prompt, add_special_tokens=False).input_ids]
        start = len(ids)
        for _ in range(6):
            with torch.no_grad():
                ids.append(tiny.net(torch.tensor([ids])).logits[0, -1].argmax().item())
            if ids[-1] == tiny.tokenizer.eos_token_id:
                break
        assert said == tiny.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_a_seed_repeats_and_the_global_random_state_stays(tiny):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    one, two, other = (generate(tiny, PROMPTS, tokens=12, temperature=1.0, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.rand(3), expected)
    assert one == two
    assert one != other
    narrow = generate(tiny, PROMPTS, tokens=12, temperature=1.0, top_p=1e-6, seed=4, precision="fp32")
    assert narrow == generate(tiny, PROMPTS, tokens=12, precision="fp32")


def test_an_encoder_decoder_answers(tokenizer):
    model = model_of(network("t5", tokenizer), tokenizer, "seq2seq")
    together = generate(model, PROMPTS, tokens=6, precision="fp32")
    assert together == [generate(model, [prompt], tokens=6, precision="fp32")[0] for prompt in PROMPTS]


def test_a_prompt_longer_than_the_context_keeps_its_end(tokenizer):
    model = model_of(network("gpt2", tokenizer), tokenizer)  # 128 learned positions: one too many is an error
    text = " ".join(sentences("pipes", 40))
    said = generate(model, [text], tokens=10, precision="fp32")
    ids = tokenizer(text, add_special_tokens=False).input_ids[-118:]
    out = model.net.generate(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, 118), max_new_tokens=10, do_sample=False)
    assert said == [tokenizer.decode(out[0, 118:], skip_special_tokens=True)]
    with pytest.raises(AcclimateError, match=r"tokens = 128, but tiny .* 128"):
        generate(model, ["The"], tokens=128)


def test_nothing_to_ask_is_nothing_answered(tiny):
    assert generate(tiny, [], tokens=4) == []


def test_recalled_text_is_the_models_own(tiny):
    texts = recall(tiny, 6, tokens=40, seed=1)
    assert texts == recall(tiny, 6, tokens=40, seed=1)
    assert all(len(text.strip()) > 20 for text in texts)
    assert len(set(texts)) == len(texts) > 3
    assert not any("<|" in text for text in texts)


def test_a_model_without_a_begin_token_writes_from_its_end_token(tiny):
    bare = copy.deepcopy(tiny.tokenizer)
    bare.bos_token = None
    assert len(recall(model_of(tiny.net, bare), 4, tokens=40)) > 1
