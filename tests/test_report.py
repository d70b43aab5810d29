"""The report: a true headline, one page that loads nothing, the same bytes twice, and no crash where parts are missing."""

import copy
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from acclimate import report
from acclimate.errors import AcclimateError
from acclimate.report.summary import Estimate, add, summarise

MODELS = ("plain", "replay", "lora")
CHANGES = {"plain": (-0.89, 0.18), "replay": (-0.86, 0.02), "lora": (-0.51, 0.021)}
HOSTILE = '</script><img src=http://evil.example/x onerror=alert(1)> & "quoted" $x^2$ [red]'


def result(model, domain, value, change=None, half=0.02, **other):
    row = {"model": model, "domain": domain, "metric": "bits_per_byte", "better": "lower", "value": value, "n": 100}
    row |= {"low": value - 0.05, "high": value + 0.05}
    if change is not None:
        row |= {"change": change, "change_low": change - half, "change_high": change + half, "p": 0.0005}
    return row | other


@pytest.fixture
def data():
    results = [result("seedling", "numpy", 2.3), result("seedling", "stdlib", 2.0)]
    for model, (inside, outside) in CHANGES.items():
        results += [result(model, "numpy", 2.3 + inside, inside), result(model, "stdlib", 2.0 + outside, outside, half=0.005)]
    cost = {"how": "trained", "trained_parameters": 200_000, "total_parameters": 5_000_000, "tokens": 4_000_000, "seconds": 400.0}
    [{"tokens": 1000 * i, "loss": 3 - i / 9, "numpy": 2.3 - i / 10, "stdlib": 2 + i / 99} for i in range(9)]
    return {
        "title": "numpy expert",
        "created": "2026-11-24T10:02:11+00:00",
        "base": "seedling",
        "command": "acclimate adapt seedling numpy",
        "recipe": "base: seedling\nsteps:\n  - use: adapt\n",
        "models": {"seedling": {}} | {m: cost | {"flops": 1e14 * i, "peak_memory_bytes": 2**30} for i, m in enumerate(MODELS, start=1)},
        "domains": {"numpy": {"role": "in", "documents": 141, "source": "docstrings"}, "stdlib": {"role": "out"}},
        "results": results,
        "curves": {
            m: [{"tokens": 1000 * i, "loss": 3 - i / 9, "numpy": 2.3 - i / 10, "stdlib": 2 + i / 99} for i in range(9)] for m in MODELS
        },
        "samples": [{"domain": "numpy", "prompt": "Return the", "texts": {"replay": "cumulative sum", "seedling": "first of the file"}}],
        "contamination": {
            "checked": 4321,
            "removed": 17,
            "spans": [{"domain": "numpy", "origin": "a:1", "text": "Return", "found_in": "t:2"}],
        },
        "provenance": {
            "torch": "2.13.0",
            "models": dict.fromkeys(MODELS, "aa") | {"seedling": "bb"},
            "domains": {"numpy": "cc", "stdlib": "dd"},
        },
    }


class Page(HTMLParser):
    """Refuses tags that do not pair up; collects ids, addresses and text."""

    VOID = {"meta", "br", "img", "link", "input", "hr"}

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.addresses, self.words = [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.addresses.append(value)
            assert not name.startswith("on"), f"{tag} has {name}"

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, text):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(data, tmp_path):
    path = report.write(data, tmp_path / "run")
    html = path.read_text(encoding="utf-8")
    found = Page(html)
    assert all(address.startswith("#") for address in found.addresses), "only places inside the page may be named"
    assert len(found.ids) == len(set(found.ids)), "ids are unique"
    assert {address[1:] for address in found.addresses} <= set(found.ids), "what is named is there"
    assert set(re.findall(r"url\(([^)]*)", html)) <= {f"#{name}" for name in found.ids}
    assert "@import" not in html
    assert "var(--" in html
    assert path.stat().st_size < 1_500_000
    assert json.loads((tmp_path / "run" / "report.json").read_text())
    return found


def shown(data, width=100):
    console = Console(width=width, file=io.StringIO())
    console.print(report.table(data))
    return console.file.getvalue()


def headline(data):
    return summarise(report.check(data)).headline


def test_the_headline_says_gain_loss_and_rank(data):
    assert headline(data) == (
        "'replay' gains 0.86 bits per byte in numpy [0.84, 0.88] and loses 0.020 outside [0.015, 0.025]; best trade-off of 3 models."
    )


def test_the_headline_is_honest_when_nothing_is_gained(data):
    for row in data["results"]:
        if row["domain"] == "numpy" and row["model"] != "seedling":
            row.update(change=0.001, change_low=-0.01, change_high=0.012)
    assert "shows no clear change in numpy (0.00 bits per byte [-0.01, 0.01])" in headline(data)
    assert headline(data).endswith("none of 3 models beats the base 'seedling'.")


def test_equal_models_are_called_equal(data):
    summary = summarise(report.check(data))
    assert "cannot be told apart" not in summary.remark
    for row in data["results"]:
        if row["model"] == "plain" and row["domain"] == "stdlib":
            row.update(change=0.04, change_low=0.03, change_high=0.05)
    assert "The lead over 'replay' lies within the intervals" in summarise(report.check(data)).remark


def test_ranking_and_front(data):
    standings = summarise(report.check(data)).standings
    assert [s.model for s in standings] == ["replay", "plain", "lora"]
    assert {s.model: s.front for s in standings} == {"replay": True, "plain": True, "lora": False}  # lora gains less and loses more


def test_gains_count_in_the_direction_of_better(data):
    for row in data["results"]:
        row.update(metric="accuracy", better="higher")
        for key in ("change", "change_low", "change_high"):
            if key in row:
                row[key] = -row[key]
    for row in data["results"]:
        if "change" in row:
            row["change_low"], row["change_high"] = row["change_high"], row["change_low"]
    assert headline(data).startswith("'replay' gains 0.86 accuracy in numpy [0.84, 0.88] and loses 0.020 outside")


def test_different_units_are_ranked_by_shares_of_the_base(data):
    for row in data["results"]:
        if row["domain"] == "stdlib":
            row["metric"] = "perplexity"
    summary = summarise(report.check(data))
    assert "each as a share" in summary.remark
    assert summary.standings[0].net.value == pytest.approx(0.86 / 2.3 - 0.02 / 2.0)
    assert "loses 0.020 perplexity outside" in summary.headline


def test_only_sets_that_all_models_share_are_averaged(data):
    data["domains"]["scipy"] = {"role": "in"}
    data["results"] += [result("seedling", "scipy", 2.0), result("lora", "scipy", 0.5, -1.5)]
    assert summarise(report.check(data)).gain.domains == ["numpy"]
    data["results"] += [result("plain", "scipy", 1.0, -1.0), result("replay", "scipy", 1.0, -1.0)]
    summary = summarise(report.check(data))
    assert summary.gain.domains == ["numpy", "scipy"]
    assert next(s for s in summary.standings if s.model == "lora").gain.value == pytest.approx((0.51 + 1.5) / 2)


def test_a_mean_of_sets_has_the_interval_of_independent_parts():
    generator = np.random.default_rng(0)
    draws = generator.normal([1.0, 2.0], [0.1, 0.3], (20_000, 2))
    low, high = np.percentile(draws.mean(axis=1), [2.5, 97.5])
    found = add([Estimate(m, m - 1.96 * s, m + 1.96 * s) for m, s in ((1.0, 0.1), (2.0, 0.3))])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    assert add([Estimate(1, 0.5, 2)]) == Estimate(1, 0.5, 2)
    assert add([Estimate(1, 0.5, 2), Estimate(1)]) == Estimate(1)


def test_a_change_that_is_not_given_is_the_difference_without_interval(data):
    for row in data["results"]:
        for key in ("change", "change_low", "change_high", "p"):
            row.pop(key, None)
    assert headline(data).startswith("'replay' gains 0.860 bits per byte in numpy and loses 0.020 outside;")


def test_the_page_holds_everything_in_order(data, tmp_path):
    found = page(data, tmp_path)
    order = ["numpy expert", "'replay' gains 0.86", "gain in the domain", "Gain against loss", "Change on each set", "Learning curves",
             "All results", "Cost", "Samples", "first of the file", "cumulative sum", "Contamination", "17 removed", "Provenance",
             "2.13.0", "use: adapt"]  # fmt: skip
    places = [found.text.index(words) for words in order]
    assert places == sorted(places)
    assert found.tags.count("svg") == 3
    assert "4 321 training documents" in found.text
    assert "\u22120.180" in found.text  # plain's loss, with a true minus sign
    assert "4 % of 5 M" in found.text


def test_same_data_same_bytes(data, tmp_path):
    first = report.write(data, tmp_path / "a").read_bytes()
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": None}):  # whatever the user's own style is
        assert report.write(copy.deepcopy(data), tmp_path / "b").read_bytes() == first
    assert report.write(report.load(tmp_path / "a"), tmp_path / "c").read_bytes() == first


def test_input_is_left_alone(data, tmp_path):
    before = copy.deepcopy(data)
    report.write(data, tmp_path)
    report.table(data)
    report.merge([data, data])
    assert data == before


def test_everything_is_escaped(data, tmp_path):
    text = json.dumps(data).replace("replay", "\0").replace("numpy", "\1")
    names = json.dumps(HOSTILE)[1:-1]
    data = json.loads(text.replace("\0", names).replace("\1", "numpy" + names))
    data["title"] = data["recipe"] = data["command"] = data["created"] = HOSTILE
    data["samples"][0]["texts"]["seedling"] = HOSTILE + "\x00\x1b[31m \ud800"
    data["contamination"]["spans"][0] = dict.fromkeys(("domain", "origin", "text", "found_in"), HOSTILE)
    data["provenance"][HOSTILE] = HOSTILE
    found = page(data, tmp_path)
    assert "img" not in found.tags
    assert found.tags.count("script") == 1
    assert found.text.count("evil.example") > 10
    assert "\x00" not in found.text
    assert "\x1b" not in found.text


@pytest.mark.parametrize(
    ("parts", "absent"),
    [
        (["models"], "peak memory"),
        (["curves"], "Learning curves"),
        (["samples"], "Samples"),
        (["contamination"], "17 removed"),
        (["provenance", "recipe", "command", "title", "created"], "Recipe"),
        (["base"], "(base)"),
    ],
)
def test_any_part_may_be_missing(data, parts, absent, tmp_path):
    assert absent in report.write(data, tmp_path / "whole").read_text()
    for part in parts:
        del data[part]
    text = page(data, tmp_path).text
    assert absent not in text
    assert ("Not checked" in text) == (parts == ["contamination"])
    assert shown(data, 80)


def test_nothing_but_a_base(tmp_path):
    data = {"base": "seedling", "domains": {"law": {"role": "in"}}, "results": [result("seedling", "law", 2.31)]}
    found = report.write(data, tmp_path).read_text()
    assert "stands at 2.31 bits per byte in law [2.26, 2.36]; nothing is compared with it." in Page(found).text
    assert "Gain against loss" not in found


def test_nothing_at_all(tmp_path):
    assert "Nothing was measured." in report.write({}, tmp_path).read_text()
    report.table({})


def test_one_model_one_side(data, tmp_path):
    data["results"] = [row for row in data["results"] if row["model"] in ("seedling", "lora") and row["domain"] == "numpy"]
    found = page(data, tmp_path)
    assert "'lora' gains 0.51 bits per byte in numpy [0.49, 0.53]; what it lost outside was not measured." in found.text
    assert "Gain against loss" not in found.text


def test_numbers_that_are_none_or_nan(data, tmp_path):
    data["results"][2].update(
        value=float("nan"), low=float("nan"), high=None, change=float("nan"), change_low=None, change_high=None, p=float("nan")
    )
    data["results"][3].update(low=None, high=None, change_low=None, change_high=None, n=None)
    data["models"]["plain"] = {"seconds": None, "tokens": np.int64(5), "flops": np.float32(2.0)}
    data["curves"]["plain"][3]["numpy"] = None
    page(data, tmp_path)
    report.table(data)
    kept = json.loads((tmp_path / "run" / "report.json").read_text(), parse_constant=pytest.fail)
    assert kept["results"][2]["value"] is None
    assert kept["models"]["plain"]["tokens"] == 5


def test_curves_without_tokens_or_sets(data, tmp_path):
    data["curves"] = {"plain": [{"step": i, "loss": 2 - i / 10} for i in range(5)], "replay": [{"step": 0, "loss": 2.0}], "lora": []}
    text = page(data, tmp_path).text
    assert "training loss" in text
    assert "optimizer steps" in text


def test_long_curves_and_many_models_stay_small(data, tmp_path):
    data["curves"] = {m: [{"tokens": i, "numpy": 2 + i % 7, "stdlib": 2.0} for i in range(5000)] for m in MODELS}
    data["samples"] = [{"domain": "numpy", "prompt": "p" * 9000, "texts": {m: "x" * 9000 for m in MODELS}}] * 100
    data["contamination"]["spans"] *= 1000
    for number in range(20):
        data["results"] += [result(f"model-{number}", "numpy", 2.0, -0.3), result(f"model-{number}", "stdlib", 2.0, number / 1000)]
    found = page(data, tmp_path)
    assert "76 more in report.json" in found.text
    assert "950 more in report.json" in found.text


def test_tasks_have_the_role_of_their_domain(data):
    data["results"] += [
        result("seedling", "stdlib: questions", 0.5, metric="accuracy", better="higher"),
        result("replay", "stdlib: questions", 0.4, -0.1, metric="accuracy", better="higher", flips=[0.12, 0.1, 0.15]),
    ]
    assert report.check(data)["domains"]["stdlib: questions"] == {"role": "out"}
    merged = report.merge([data, data])
    assert not [note for note in merged["notes"] if "could not be verified" in note]


@pytest.mark.parametrize(
    ("flips", "metric", "words"),
    [
        (0.034, "accuracy", "negative flips 3.4 % right before, wrong now"),
        ([0.034, 0.02, 0.05], "accuracy", "[2 %, 5 %]"),
        (0.034, "bits_per_byte", "texts worse 3.4 % outside"),
    ],
)
def test_flips_are_said_for_what_they_are(data, tmp_path, flips, metric, words):
    for row in data["results"]:
        if row["domain"] == "stdlib":
            row["metric"] = metric
            if row["model"] == "replay":
                row["flips"] = flips
    assert words in page(data, tmp_path).text


def test_the_table_has_a_column_for_what_is_there(data):
    header = next(line for line in shown(data).splitlines() if line.startswith("model"))
    assert header.split() == ["model", "value", "95", "%", "gain", "95", "%", "p", "n"]
    data["results"][2]["flips"] = 0.02
    data["models"]["lora"]["how"] = "[bold]not markup[/bold]"
    lines = shown(data).splitlines()
    assert next(line for line in lines if line.startswith("model")).split()[-1] == "flips"
    row = next(line for line in lines if line.startswith("replay"))
    assert row.split()[:3] == ["replay", "1.440", "[1.390,"]
    assert "+0.860" in row
    assert "<0.001" in row
    assert [line for line in lines if line.startswith("model")][-1].split() == [
        "model",
        "time",
        "tokens",
        "compute",
        "peak",
        "memory",
        "trained",
        "of",
        "all",
    ]
    assert max(len(line.rstrip()) for line in shown(data, 80).splitlines()) <= 80


def test_load_reads_what_write_wrote(data, tmp_path):
    report.write(data, tmp_path)
    assert report.load(tmp_path) == report.load(tmp_path / "report.json") == report.check(data)
    with pytest.raises(AcclimateError, match=r"holds no report\.json"):
        report.load(tmp_path / "nowhere")
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(AcclimateError, match="not valid JSON"):
        report.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda d: d["results"][0].pop("value"), r"results\[0\] lacks 'value'"),
        (lambda d: d["results"].append(d["results"][3]), "repeats model 'plain', domain 'stdlib'"),
        (lambda d: d["results"][1].update(domain="law"), "domain 'law', which 'domains' lacks"),
        (lambda d: d["results"][1].update(better="more"), "better='more'"),
        (lambda d: d["domains"]["numpy"].update(role="inside"), "domain 'numpy' needs a role"),
        (lambda d: d.update(results={}), "'results' is a dict, but must be a list"),
        (lambda d: d["results"].append("x"), "lacks 'model'"),
    ],
)
def test_senseless_data_is_one_line_and_nothing_is_written(data, change, line, tmp_path):
    change(data)
    with pytest.raises(AcclimateError, match=line) as caught:
        report.write(data, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(AcclimateError, match="must be an object"):
        report.check([])


def other_run(data):
    other = copy.deepcopy(data)
    other["title"] = "second"
    other["provenance"]["models"] |= dict.fromkeys(MODELS, "ee")
    return other


def test_merge_puts_runs_side_by_side(data, tmp_path):
    merged = report.merge([data, other_run(data)])
    assert list(merged["models"]) == ["seedling", *(f"numpy expert/{m}" for m in MODELS), *(f"second/{m}" for m in MODELS)]
    assert [r["model"] for r in merged["results"]].count("seedling") == 2
    assert len(summarise(merged).standings) == 6
    assert set(merged["samples"][0]["texts"]) == {"seedling", "numpy expert/replay", "second/replay"}
    assert merged["contamination"]["checked"] == 8642
    assert len(merged["contamination"]["spans"]) == 1
    text = page(merged, tmp_path).text
    assert "best trade-off of 6 models" in text
    assert "not between models" in text


def test_merge_knows_one_model_by_its_hash(data):
    assert report.merge([data]) == report.check(data)
    twice = report.merge([data, data])
    assert list(twice["models"]) == ["seedling", *MODELS]
    assert len(twice["results"]) == len(data["results"])


def test_merge_refuses_other_sets_of_one_name(data):
    other = other_run(data)
    other["provenance"]["domains"]["stdlib"] = "changed"
    with pytest.raises(AcclimateError, match=r"set 'stdlib' is not the same in 'numpy expert' \(dd\) and 'second' \(changed\)") as caught:
        report.merge([data, other])
    assert "\n" not in str(caught.value)
    assert any(note.startswith("Forced: set 'stdlib'") for note in report.merge([data, other], force=True)["notes"])


def test_merge_refuses_other_roles_and_notes_missing_hashes(data):
    other = other_run(data)
    other["domains"]["stdlib"]["role"] = "in"
    with pytest.raises(AcclimateError, match="role 'out' in 'numpy expert' but 'in' in 'second'"):
        report.merge([data, other])
    other = other_run(data)
    del other["provenance"]["domains"]["stdlib"]
    assert any("'stdlib'" in note and "could not be verified" in note for note in report.merge([data, other])["notes"])
    with pytest.raises(AcclimateError, match="nothing to compare"):
        report.merge([])


def test_merge_of_different_bases_compares_each_with_its_own(data, tmp_path):
    other = other_run(data)
    other["provenance"]["models"]["seedling"] = "another"
    merged = report.merge([data, other])
    assert merged["base"] == ""
    assert {"numpy expert/seedling", "second/seedling"} <= set(merged["models"])
    assert any("different bases" in note for note in merged["notes"])
    assert len(summarise(merged).standings) == 6
    page(merged, tmp_path)


def test_compare_loads_merges_and_writes(data, tmp_path):
    report.write(data, tmp_path / "a")
    report.write(other_run(data), tmp_path / "b")
    merged = report.compare([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert report.load(tmp_path / "both") == merged
    assert (tmp_path / "both" / "report.html").is_file()


def test_importing_the_report_loads_no_plotting():
    import subprocess
    import sys

    code = "import acclimate.report, sys; print([m for m in ('matplotlib', 'torch', 'jinja2', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_perplexity_stands_beside_bits_per_byte(data, tmp_path):
    assert "perplexity" not in page(data, tmp_path).text
    data["results"][0]["perplexity"] = 41.278
    assert re.search(r"95 % interval perplexity gain .* seedling 2\.300 \[2\.250, 2\.350\] 41\.28", page(data, tmp_path).text)
