"""Quantised checkpoints: numbers of the libraries that write them, merging from codes, and what is left once quantised again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import acclimate
from acclimate.engines.merging import requantised
from acclimate.engines.merging.adapted import open_model
from acclimate.engines.merging.checkpoint import Buffer, Checkpoint
from acclimate.errors import AcclimateError
from acclimate.parts import quantisation as q
from worlds import model_of, network

REFERENCE = json.loads((Path(__file__).parent / "reference" / "quantisation.json").read_text())
VALUES, NESTED = torch.tensor(REFERENCE["values"]).view(4, 72), torch.tensor(REFERENCE["nested_levels"])
ROWS = {f"{row['format']}{' nested' if row.get('nested') else ''}": row for row in REFERENCE["formats"]}
BLOCK, OUTER, TILE = 64, 4, (16, 24)
CONFIGS = {
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "nf4 nested": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": list(TILE), "activation_scheme": "dynamic"},
    "fbgemm": {"quant_method": "fbgemm_fp8"},
    "tensor": {"quant_method": "compressed-tensors", "format": "float-quantized"},
}


def packed(name, weight, form):
    """The tensors that one weight is stored as, and the values they stand for."""
    kind, _, twice = form.partition(" ")
    flat, module = weight.flatten(), name.removesuffix(".weight")
    if kind in ("nf4", "fp4"):
        table, peaks = q.levels(kind), q.block_peaks(flat, BLOCK)
        codes = q.block_encode(flat, peaks, BLOCK, table)
        state = {"quant_type": kind, "blocksize": BLOCK, "dtype": "bfloat16", "shape": list(weight.shape)}
        found = {name: q.pack_pairs(codes)[:, None], f"{name}.absmax": peaks, f"{name}.quant_map": table}
        if twice:
            mean = peaks.mean()
            own = q.block_peaks(peaks - mean, OUTER)
            found |= {f"{name}.absmax": q.block_encode(peaks - mean, own, OUTER, NESTED), f"{name}.nested_absmax": own}
            found |= {f"{name}.nested_quant_map": NESTED.clone()}
            state |= {"nested_blocksize": OUTER, "nested_dtype": "float32", "nested_offset": mean.item()}
            peaks = q.nested(peaks, OUTER, NESTED)
        found[f"{name}.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        return found, q.block_decode(codes, peaks, BLOCK, table).view(weight.shape)
    dtype = torch.int8 if kind == "int8" else torch.float8_e4m3fn
    tile = {"int8": (1, weight.shape[1]), "fbgemm": (1, weight.shape[1]), "tensor": tuple(weight.shape)}.get(kind, TILE)
    scales = q.grid_peaks(weight, tile) / q.top(dtype)
    codes = q.grid_encode(weight, scales, tile, dtype)
    side = {
        "int8": {f"{module}.SCB": scales.flatten() * 127, f"{name}_format": torch.tensor(0, dtype=torch.uint8)},
        "fp8": {f"{name}_scale_inv": scales},
        "fbgemm": {f"{name}_scale": scales, f"{module}.input_scale_ub": torch.ones(1)},
        "tensor": {f"{name}_scale": scales.flatten(), f"{module}.input_scale": torch.ones(1)},
    }[kind]
    return {name: codes, **side}, q.grid_decode(codes, scales, tile)


def quantised(source, place, form, dtype=torch.bfloat16):
    """A folder with the layers of a saved model quantised, as others save them, and one with the same values in fp32."""
    stored, plain = {}, {}
    for name, weight in load_file(source / "model.safetensors").items():
        if "_proj." in name:
            found, plain[name] = packed(name, weight.float(), form)
            stored |= found
        else:
            stored[name] = plain[name] = weight.to(dtype)
    config = json.loads((source / "config.json").read_text())
    for folder, tensors, more in (
        (place, stored, {"dtype": "bfloat16", "quantization_config": CONFIGS[form]}),
        (place.parent / f"{place.name}-plain", {k: v.float() for k, v in plain.items()}, {"dtype": "float32"}),
    ):
        folder.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config | more))
        for path in source.glob("*token*"):
            (folder / path.name).write_bytes(path.read_bytes())
    return place, place.parent / f"{place.name}-plain"


@pytest.fixture(scope="module")
def family(tmp_path_factory, tokenizer):
    """A base and two tunes of it in fp32."""
    root = tmp_path_factory.mktemp("quantised")
    base = network("llama", tokenizer, tie_word_embeddings=False)
    for i, name in enumerate(("base", "m1", "m2")):
        net = network("llama", tokenizer, tie_word_embeddings=False)
        generator = torch.Generator().manual_seed(i)
        for own, weight in zip(net.parameters(), base.parameters(), strict=True):
            own.data = weight.data + (0.02 * torch.randn(weight.shape, generator=generator) if i else 0)
        model_of(net, tokenizer, name=name).save(root / name)
    return root


@pytest.fixture(scope="module")
def bases(family):
    """The base in every format: (folder with codes, folder with their values)."""
    return {form: quantised(family / "base", family / form.replace(" ", "-"), form) for form in CONFIGS}


def spoil(folder, place, change):
    """A copy of a folder whose tensors and config went through ``change``."""
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    tensors, config = load_file(place / "model.safetensors"), json.loads((place / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(config))
    return str(place)


@pytest.mark.parametrize("name", ["nf4", "fp4", "nf4 nested", "fp4 nested"])
def test_four_bits_as_bitsandbytes(name):
    row, flat = ROWS[name], VALUES.flatten()
    table, peaks = q.levels(row["format"]), q.block_peaks(flat, 64)
    codes = q.block_encode(flat, peaks, 64, table)
    theirs = q.unpack_pairs(torch.tensor(row["packed"], dtype=torch.uint8))[: len(flat)]
    scales = peaks
    if row["nested"]:
        own = torch.tensor(row["nested_absmax"])
        absmax = torch.tensor(row["absmax"], dtype=torch.uint8)
        scales = q.block_decode(absmax, own, row["nested_blocksize"], NESTED) + row["nested_offset"]
        assert torch.allclose(q.nested(peaks, row["nested_blocksize"], NESTED), scales, atol=1e-7)
    else:
        assert torch.equal(peaks, torch.tensor(row["absmax"]))
    assert torch.equal(table[codes.int()], table[theirs.int()])  # fp4 has two zeros
    assert torch.allclose(q.block_decode(theirs, scales, 64, table), torch.tensor(row["dequantised"]), atol=1e-7)
    assert torch.equal(q.pack_pairs(theirs), torch.tensor(row["packed"], dtype=torch.uint8))


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_eight_bits_as_their_libraries(name):
    row = ROWS[name]
    dtype, tile = (torch.int8, (1, 72)) if name == "int8" else (torch.float8_e4m3fn, tuple(row["tile"]))
    scales = q.grid_peaks(VALUES, tile) / q.top(dtype)
    theirs = torch.tensor(row["scales"]).view(scales.shape) / (127 if name == "int8" else 1)
    raw = torch.tensor(row["codes"], dtype=torch.int8 if name == "int8" else torch.uint8).view(dtype).view(4, 72)
    assert torch.allclose(scales, theirs, rtol=1e-6)
    assert torch.equal(q.grid_encode(VALUES, scales, tile, dtype).float(), raw.float())
    assert torch.allclose(q.grid_decode(raw, theirs, tile).flatten(), torch.tensor(row["dequantised"]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_grouped_words_as_their_libraries(name, tmp_path):
    row = ROWS[name]
    tensors = {f"a.{key}": torch.tensor(row[key], dtype=torch.int32) for key in ("qweight", "qzeros")}
    save_file({**tensors, "a.scales": torch.tensor(row["scales"]).half()}, tmp_path / "model.safetensors")
    about = {"quant_method": name, "bits": 4, "group_size": row["group"]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "float32", "quantization_config": about}))
    opened, expected = Checkpoint.open(str(tmp_path)), torch.tensor(row["dequantised"])
    assert opened.slots["a.weight"].shape == expected.shape
    assert torch.allclose(opened.tensor("a.weight"), expected, atol=1e-6)
    slot, part = opened.slots["a.weight"], torch.empty(37)
    opened.read(slot, 21, 58, Buffer(), part)
    assert torch.allclose(part, expected.flatten()[21:58], atol=1e-6)
    again = slot.codes.again(expected.flatten()[32:96], None, None, 32)[1]  # the same scales give the same values
    assert torch.allclose(again, expected.flatten()[32:96], atol=1e-6)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {**about, "bits": 8}}))
    with pytest.raises(AcclimateError, match=f"is quantised as {name} 8 bits, which is not read here"):
        Checkpoint.open(str(tmp_path))


@pytest.mark.parametrize("form", CONFIGS)
def test_a_span_is_what_the_whole_holds(form, bases):
    folder, plain = bases[form]
    opened, expected = Checkpoint.open(str(folder)), load_file(plain / "model.safetensors")
    assert opened.slots.keys() == expected.keys()
    assert opened.dtype.name == "bfloat16"
    for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.k_proj.weight"):
        slot, flat = opened.slots[name], expected[name].flatten()
        assert slot.shape == expected[name].shape
        for first, last in ((0, slot.size), (3, 5), (63, 190), (slot.size - 70, slot.size), (129, 130)):
            out = torch.empty(last - first)
            opened.read(slot, first, last, Buffer(), out)
            assert torch.allclose(out, flat[first:last], rtol=1e-6, atol=1e-8), (name, first)
        assert torch.equal(opened.tensor(name), opened.tensor(name).bfloat16())
    assert opened.holds({name: value.bfloat16() for name, value in expected.items()}) or form in ("int8", "fp8", "fbgemm", "tensor")


@pytest.mark.parametrize(
    ("form", "method"), [("nf4 nested", "linear"), ("nf4", "ties"), ("int8", "ties"), ("fp8", "linear"), ("tensor", "ties")]
)
def test_merging_codes_is_merging_their_values(form, method, bases, family, tmp_path, monkeypatch):
    monkeypatch.setattr(requantised, "CHUNK", 500)
    folder, plain = bases[form]
    found = []
    for start, place in ((folder, "codes"), (plain, "values")):
        models, more = (
            ([str(family / "m1"), str(family / "m2")], {"base": str(start)}) if method == "ties" else ([str(start), str(family / "m1")], {})
        )
        settings = {"keep": 0.5} if method == "ties" else {}
        report = acclimate.merge(method, models, out=tmp_path / place, dtype="bfloat16", settings=settings, **more)
        found.append((load_file(tmp_path / place / "model.safetensors"), report))
    (codes, report), (values, other) = found
    assert codes.keys() == values.keys()
    assert all(torch.allclose(codes[name].float(), values[name].float(), rtol=2**-7) for name in values)
    assert sum((codes[name] != values[name]).sum().item() for name in values) < 20  # a scale's last bit may tip a rounding
    config = json.loads((tmp_path / "codes" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert report["probe"]["finite"]
    assert "requantised" not in other
    again = report["requantised"]
    assert again.keys() == {"format", "parents", "weights", "kept", "relative_error", "unchanged_codes", "tensors"}
    assert again["parents"] == [str(folder)]
    assert len(again["tensors"]) == 14
    assert 0 < again["unchanged_codes"] < 1
    assert again["format"] in (tmp_path / "codes" / "README.md").read_text()
    for name, fact in again["tensors"].items():  # the same figures from whole tensors
        w0, w = load_file(plain / "model.safetensors")[name].bfloat16().float(), codes[name].float()
        quant = packed(name, w, form)[1].bfloat16().float()
        kept = ((quant - w0) * (w - w0)).sum() / (w - w0).square().sum()
        assert fact["kept"] == pytest.approx(kept.item(), rel=1e-2, abs=1e-3)
        assert fact["relative_error"] == pytest.approx(((quant - w).norm() / w.norm()).item(), rel=1e-2)


@pytest.mark.parametrize("form", ["gptq", "awq"])
def test_merging_grouped_words_is_merging_their_values(form, family, tmp_path):
    """Weights of four bits, packed here by hand: eight numbers in a word, along inputs (GPTQ) or along outputs in AWQ's order."""
    group, order = 16, q.AWQ_ORDER if form == "awq" else q.IN_ORDER
    stored, plain, grids = {}, load_file(family / "base" / "model.safetensors"), {}
    for name, weight in load_file(family / "base" / "model.safetensors").items():
        if "_proj." not in name:
            stored[name] = weight.bfloat16()
            plain[name] = stored[name].float()
            continue
        module, turned = name.removesuffix(".weight"), weight.T  # [in, out]
        groups = torch.arange(len(turned)) // group
        scales = (turned.view(-1, group, turned.shape[1]).abs().amax(1) / 7).half()
        codes = (turned / scales.float()[groups] + 8).round().clamp(0, 15).long()
        zeros = torch.full_like(scales, 8 if form == "awq" else 7).long()  # GPTQ stores one less
        stored |= {f"{module}.scales": scales, f"{module}.qzeros": words(zeros, 1, order)}
        stored[f"{module}.qweight"] = words(codes, 1, order) if form == "awq" else words(codes, 0, order)
        plain[name], grids[name] = ((codes - 8) * scales.float()[groups]).T.contiguous(), scales.float()[groups].T
    config = json.loads((family / "base" / "config.json").read_text())
    about = {"quant_method": form, "bits": 4, "group_size": group}
    for place, tensors, more in (("codes", stored, {"quantization_config": about, "dtype": "bfloat16"}), ("values", plain, {})):
        (tmp_path / place).mkdir()
        save_file(tensors, tmp_path / place / "model.safetensors", {"format": "pt"})
        (tmp_path / place / "config.json").write_text(json.dumps(config | more))
        for path in (family / "base").glob("*token*"):
            (tmp_path / place / path.name).write_bytes(path.read_bytes())
    models = [str(family / "m1"), str(family / "m2")]
    reports = {
        place: acclimate.merge("task_arithmetic", models, base=str(tmp_path / place), out=tmp_path / f"{place}-merged", dtype="float32")
        for place in ("codes", "values")
    }
    found, expected = (load_file(tmp_path / f"{place}-merged" / "model.safetensors") for place in ("codes", "values"))
    assert all(torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-6) for name in expected)
    assert reports["codes"]["requantised"]["format"] == f"{form}, groups of {group}, its own scales"
    for name, fact in reports["codes"]["requantised"]["tensors"].items():
        again = (found[name] / grids[name] + 8).round().clamp(0, 15).sub(8) * grids[name]
        kept = ((again - plain[name]) * (found[name] - plain[name])).sum() / (found[name] - plain[name]).square().sum()
        assert fact["kept"] == pytest.approx(kept.item(), rel=1e-2, abs=1e-3)


def words(numbers, side, order):
    """Eight 4-bit numbers to an int32 word along a side."""
    parts = numbers.movedim(side, -1).unflatten(-1, (-1, 8))
    packed = sum(parts[..., each] << (4 * place) for each, place in enumerate(order))
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32).movedim(-1, side).contiguous()


def test_what_a_merge_does_not_change_stays(bases, tmp_path):
    folder, _ = bases["nf4 nested"]
    report = acclimate.merge("linear", [str(folder), str(folder)], out=tmp_path / "out")
    again = report["requantised"]
    assert again["kept"] is None
    assert again["unchanged_codes"] == 1
    assert "nothing changed" in (tmp_path / "out" / "README.md").read_text()
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_half_a_step_is_lost_and_a_step_is_kept(tmp_path):
    """Hand computation: int8 rows with peak 127, so that a step is 1: +0.4 rounds away, +1 stands."""
    base = torch.tensor([[127.0, 3.0, -8.0, 40.0]]).repeat(2, 1)
    for name, change, kept, same in (("small", 0.4, 0.0, 1.0), ("large", 1.0, 1.0, 0.25)):
        tuned = base.clone()
        tuned[:, 1:] += change
        for place, tensors, more in (
            (tmp_path / f"base-{name}", packed("a.weight", base, "int8")[0], {"quantization_config": CONFIGS["int8"]}),
            (tmp_path / f"tuned-{name}", {"a.weight": tuned}, {}),
        ):
            place.mkdir()
            save_file(tensors, place / "model.safetensors")
            (place / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "float32", **more}))
        start, models = str(tmp_path / f"base-{name}"), [str(tmp_path / f"tuned-{name}")]
        report = acclimate.merge("task_arithmetic", models, base=start, out=tmp_path / name, settings={"scale": 1}, check=False)
        assert report["requantised"]["kept"] == pytest.approx(kept, abs=1e-5)
        assert report["requantised"]["unchanged_codes"] == same


def test_an_adapter_on_a_quantised_base(bases, tiny, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder, plain = bases["nf4"]
    torch.manual_seed(0)
    net = get_peft_model(
        AutoModelForCausalLM.from_pretrained(plain), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    net.peft_config["default"].base_model_name_or_path = str(folder)
    net.save_pretrained(tmp_path / "adapter")
    whole = net.merge_and_unload().state_dict()
    opened = open_model(str(tmp_path / "adapter"))
    for name in opened.slots:
        out = torch.empty(opened.slots[name].size)
        opened.read(opened.slots[name], 0, len(out), Buffer(), out)
        assert torch.allclose(out, whole[name].flatten(), atol=1e-5), name
    report = acclimate.merge("linear", [str(tmp_path / "adapter")], out=tmp_path / "out")
    again = report["requantised"]["tensors"]
    assert again["model.layers.0.mlp.down_proj.weight"]["kept"] > 0.5  # the adapter's change is the merge's
    assert again["model.layers.0.mlp.up_proj.weight"]["kept"] is None
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


UP = "model.layers.0.mlp.up_proj"
FAULTS = {
    "another format": (
        "nf4",
        lambda t, c: c.update(quantization_config={"quant_method": "hqq"}),
        "as hqq, which is not read here; load it",
    ),
    "no scales": ("nf4", lambda t, c: t.pop(f"{UP}.weight.absmax"), "up_proj.weight.absmax is missing"),
    "no state": ("nf4", lambda t, c: t.pop(f"{UP}.weight.quant_state.bitsandbytes__nf4"), "quant_state.bitsandbytes__nf4 is missing"),
    "no outer scales": ("nf4 nested", lambda t, c: t.pop(f"{UP}.weight.nested_absmax"), "up_proj.weight.nested_absmax is missing"),
    "short scales": ("nf4", lambda t, c: cut(t, f"{UP}.weight.absmax"), "up_proj.weight.absmax has 31 entries, but .* needs 32"),
    "short codes": ("nf4", lambda t, c: cut(t, f"{UP}.weight"), r"has 1023 bytes, but \[64, 32\] in 4 bits need 1024"),
    "bad state": (
        "nf4",
        lambda t, c: t[f"{UP}.weight.quant_state.bitsandbytes__nf4"].fill_(65),
        "quant_state.bitsandbytes__nf4 cannot be read",
    ),
    "other levels": ("nf4", lambda t, c: t[f"{UP}.weight.quant_map"].mul_(2), "holds other levels than those of nf4"),
    "no row scales": ("int8", lambda t, c: t.pop(f"{UP}.SCB"), "up_proj.weight holds codes, but its scales are missing"),
    "no codes": ("fp8", lambda t, c: t.pop(f"{UP}.weight"), "tensor model.layers.0.mlp.up_proj.weight is missing"),
    "short tiles": ("fp8", lambda t, c: cut(t, f"{UP}.weight_scale_inv"), r"scale_inv has shape \[3, 2\], which fits no tiles"),
    "turned layers": ("fp4", lambda t, c: c.update(model_type="gpt2"), r"bitsandbytes \(gpt2\)"),
}


def cut(tensors, name):
    tensors[name] = tensors[name][:-1].clone()


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name, bases, tmp_path):
    form, change, words = FAULTS[name]
    with pytest.raises(AcclimateError, match=words) as error:
        Checkpoint.open(spoil(bases[form][0], tmp_path / "spoilt", change))
    assert "\n" not in str(error.value)
