"""Extrapolation: what is asked, which domains and rows come of it, where each row is from, and what is said when something is missing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from acclimate.engines.shift import Data, Learner, Pool, Training, accuracy, fit
from acclimate.errors import AcclimateError
from acclimate.method import load

TOOLS = SimpleNamespace(seed=3)
CLASSES = ["cat", "dog"]
REAL = Pool("photo", torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
PLACES = {"sketch": 1.0, "snow": 2.0, "night": 3.0}


def ask(text: str) -> str:
    if "Domains:" not in text:
        return text.partition(" asks a generator for ")[2].rstrip(".")
    names = ["Photo", "sketch", "Sketch", "night" if " cat " in text else "snow", "photos"]
    return "Domains: none yet.\nDomains:\n" + "\n".join(f"- {name}" for name in names)


def draw(prompt: str, count: int, seed: int) -> torch.Tensor:
    label, _, place = prompt.partition(" in the domain ")
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.1
    return torch.stack([2.0 * CLASSES.index(label) - 1 + noise, torch.full((count,), PLACES.get(place, 9.0))], 1)


def made(**given):
    settings = {"k_domains": 2, "per_class": 5, **given.pop("settings", {})}
    return load("domain_generalization.extrapolation", **settings).run(
        TOOLS, **{"classes": CLASSES, "task": "pets", "domains": [REAL], "ask": ask, "draw": draw, "makers": "script", **given}
    )


def test_each_class_has_domains_of_its_own_and_each_is_an_environment():
    found = made()
    assert [pool.name for pool in found["all"]] == ["photo", "sketch", "night", "snow"]
    assert [pool.y.tolist() for pool in found["synthetic"]] == [[0] * 5 + [1] * 5, [0] * 5, [1] * 5]
    assert found["synthetic"][2].x[:, 1].unique().tolist() == [PLACES["snow"]]
    assert found["dropped"] == {"photo": "known"}
    asked = found["queries"][0]["asked"]
    for part in ("classifier of pets", "cat may be seen", "avoided: photo", "step by step", "exactly 2 lines"):
        assert part in asked
    bare = load("domain_generalization.extrapolation", cot=False, role=False).query("cat", "pets", [])
    assert "step by step" not in bare
    assert "classifier" not in bare


def test_one_list_for_all_classes():
    found = made(settings={"mode": "dataset_wise"})
    assert [pool.name for pool in found["synthetic"]] == ["sketch", "snow"]
    assert all(pool.y.tolist() == [0] * 5 + [1] * 5 for pool in found["synthetic"])
    assert len(found["queries"]) == 1 + 2 * 2


def test_names_too_near_a_known_one_are_dropped():
    vectors = {"photo": (1.0, 0.0), "photos": (1.0, 0.1)}
    found = made(settings={"k_domains": 5}, embed=lambda names: np.array([vectors.get(name, (0.0, 1.0)) for name in names]))
    assert found["dropped"] == {"photo": "known", "photos": "cosine 1.00 to photo"}
    assert "photos" in made(settings={"k_domains": 5})["provenance"]


def test_every_row_says_what_it_was_made_of():
    found = made()
    for pool in found["synthetic"]:
        origins = found["provenance"][pool.name]
        assert len(origins) == len(pool)
        for row, label, origin in zip(pool.x, pool.y.tolist(), origins, strict=True):
            assert (origin["class"], origin["model"]) == (CLASSES[label], "script")
            torch.testing.assert_close(draw(origin["prompt"], 5, origin["seed"])[origin["row"]], row)


def test_the_filter_keeps_rows_whose_class_scores_best():
    plain = made()["synthetic"][0]
    middle = plain.x[:5, 0].median()
    found = made(settings={"filter": True}, score=lambda x: torch.stack([middle - x[:, 0] + 1e-6, torch.zeros(len(x))], 1))
    kept = found["synthetic"][0]
    assert kept.y.tolist() == [0] * 3 + [1] * 5
    assert kept.x[:3, 0].max() <= middle
    assert found["dropped"]["sketch: cat"] == "2 rows unlike it"
    assert [origin["row"] for origin in found["provenance"]["sketch"][:3]] == (plain.x[:5, 0] <= middle).nonzero()[:, 0].tolist()


def test_texts_become_rows_and_are_kept_with_them():
    def written(prompt, count, seed):
        return [f"{prompt} {n}" for n in range(count)]

    found = made(draw=written, encode=lambda texts: [[len(text), 1.0] for text in texts])
    sketch = found["synthetic"][0]
    assert [origin["text"] for origin in found["provenance"]["sketch"]][4:6] == ["cat in the domain sketch 4", "dog in the domain sketch 0"]
    assert sketch.x[:, 0].tolist() == [len(origin["text"]) for origin in found["provenance"]["sketch"]]
    with pytest.raises(AcclimateError, match="encode is needed"):
        made(draw=written)


def test_without_any_data_a_model_learns_the_classes():
    found = made(domains=[], settings={"k_domains": 3, "per_class": 20})
    assert found["all"] == found["synthetic"]
    torch.manual_seed(0)
    learner, erm = Learner(torch.nn.Identity(), CLASSES, width=2), load("domain_generalization.erm")
    fit(erm, learner, Data(found["all"], None, (), CLASSES), Training(steps=150, batch=8, lr=0.05, choose="last", looks=1))
    unseen = Pool("unseen", torch.tensor([[-1.0, 0.5], [1.0, 0.5], [-1.0, 2.5], [1.0, 2.5]]), torch.tensor([0, 1, 0, 1]))
    assert accuracy(erm, learner, unseen) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ask": None}, "needs the classes' names"),
        ({"other": 1}, "takes no other"),
        ({"ask": lambda text: "none"}, "gave no list of domains of cat in 3 replies"),
        ({"settings": {"filter": True}}, "needs score"),
    ],
)
def test_what_is_missing_is_said(given, said):
    with pytest.raises(AcclimateError, match=said):
        made(**given)
