"""Merges and searches as the page shows them, and the page of one merge alone that lies beside its merge.json."""

from typing import Any

from ..errors import AcclimateError
from .merge_facts import condense
from .merge_plots import changes, cosines, outside, trials
from .numbers import NONE, count, number, percent
from .tables import aligned, whole
from .templates import environment

MAX_MERGES = 8  # drawn on one page
READING = {
    "moved": "Left: length of the change, as a share of the base's own length.",
    "rms": "Left: root mean square of the merged weights.",
}


def merge_page(report: dict[str, Any], title: str = "") -> str:
    """The page of one merge, from what its merge.json holds; a page that says why where nothing can be drawn."""
    try:
        facts = condense(report)
    except AcclimateError as error:
        facts = {"broken": str(error)}
    return environment().get_template("merge_page.html").render(title=title or "Merged model", merge=shown_merge(title, facts, "merge"))


def shown_merges(merges: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the template needs of the first merges of a report."""
    return [shown_merge(name, facts, f"merge-{i}") for i, (name, facts) in enumerate(list(merges.items())[:MAX_MERGES])]


def shown_merge(name: str, facts: dict[str, Any], key: str) -> dict[str, Any]:
    """What the template needs of one merge (merge_facts.condense); ``key`` begins the ids of its plots."""
    if facts.get("broken"):
        return {"name": name, "broken": facts["broken"]}
    moved = any(row["moved"] is not None for row in facts["layers"])
    vocabulary = facts["vocabulary"]
    return {
        "name": name,
        "words": _words(facts),
        "cosines": cosines(facts, f"{key}-cosine"),
        "changes": changes(facts, f"{key}-change"),
        "reading": READING["moved" if moved else "rms"] + " Right: share of weights that differ from the base, or from the first parent.",
        "parents": facts["parents"],
        "hashed": any(parent["sha256"] for parent in facts["parents"]),
        "vocabulary_words": _vocabulary(vocabulary),
        "embedding": [{**row, **{k: whole(row[k]) for k in ("rows", "shared", "lacking")}} for row in vocabulary.get("models", [])],
        "facts": _facts(facts),
        "settings": facts["settings"][:4000],
        "short": facts["settings"].count("\n") <= 14,
        "figures": _figures(facts, moved),
        "table": facts["table"],
        "hidden": facts["hidden"],
    }


def shown_searches(searches: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the template needs of the searches of a report."""
    found = []
    for i, (name, search) in enumerate(searches.items()):
        plot = "" if search.get("broken") else trials(search, f"search-{i}")
        broken = search.get("broken") or ("" if plot else "no trial has a finite score")
        shown: dict[str, Any] = {"name": name, "broken": broken}
        if not broken:
            rows = [[str(place), number(score, 6)] for place, score in search["best"][-60:]]
            shown |= {"plot": plot, "words": _search_words(search), "figures": aligned([["trial", "best"], *rows])}
        found.append(shown)
    return found


def _words(facts: dict[str, Any]) -> str:
    parents = ", ".join(parent["name"] for parent in facts["parents"])
    method = facts["method"].removeprefix("merging.")
    share = f"{percent(facts['changed'])} of {count(facts['weights'])} weights" if facts["weights"] else percent(facts["changed"])
    words = f"{method} of {parents}: {share} differ from the base, or from the first parent; {facts['tensors']} tensors."
    return words + (f" {facts['unreadable']} entries of merge.json could not be read." if facts["unreadable"] else "")


def _vocabulary(vocabulary: dict[str, Any]) -> str:
    if not vocabulary:
        return ""
    words = {"shared": "one for all", "union": "union of all", "base": "the base's"}.get(
        str(vocabulary["choice"]), str(vocabulary["choice"])
    )
    words += f", {whole(vocabulary['rows'])} rows"
    words += f" for {whole(vocabulary['tokens'])} tokens" if vocabulary["tokens"] else ""
    words += f", {whole(vocabulary['added'])} of them new" if vocabulary["added"] else ""
    return words + (f" ({whole(vocabulary['special'])} special)" if vocabulary["special"] else "")


def _facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("seed", str(facts["seed"]))] if facts["seed"] is not None else []
    probe, again = facts["probe"], facts["requantised"]
    if probe:
        good = f"loaded again; all logits finite, the largest {probe.get('largest', NONE)}"
        rows.append(("probe", good if probe.get("finite") else f"not made: {probe.get('why', 'unknown')}"))
    if again:
        kept = "nothing had changed" if again["kept"] is None else f"{percent(again['kept'])} of the merge's change kept"
        words = f"{again['format']}: {kept}, {percent(again['unchanged_codes'])} of the codes as they were"
        rows.append(("if quantised again", f"{words}, weights off by {percent(again['relative_error'])} of their norm"))
    return rows


def _figures(facts: dict[str, Any], moved: bool) -> str:
    """The numbers behind the plots, a line for each role in each place."""
    names = [parent["name"] for parent in facts["parents"]]
    rows = [["place", "role", "weights", "changed", *(["moved"] if moved else []), "rms", *(f"cos {i + 1}" for i in range(len(names)))]]
    for row in facts["layers"]:
        cells = [row["place"], row["role"], str(row["weights"]), f"{100 * row['changed']:.2f}%"]
        cells += [_form(row["moved"], ".4g")] if moved else []
        rows.append([*cells, _form(row["rms"], ".4g"), *(_form(row["cosine"].get(name), ".5f") for name in names)])
    return aligned(rows, left=2)


def _form(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _search_words(search: dict[str, Any]) -> str:
    """How a search went: trials, start, best, held out."""
    first, (place, best) = search["best"][0], search["best"][-1]
    words = f"{search['count']} trials by {search['by']}" + (f" over {search['genes']} genes" if search.get("genes") else "")
    words += f": from {number(first[1], 4)} to {number(best, 4)} at trial {place}."
    if search.get("held_out"):
        start, winner = (number(search["held_out"][end], 4) for end in ("start", "best"))
        words += f" On held-out text {start} at the start and {winner} for the winner."
    words += f" Kept: {search['members']}." if search.get("members") else ""
    words += f" Ended early: {search['stopped']}." if search.get("stopped") else ""
    lost = outside(search)
    words += f" {lost} of the trials shown have no finite score." if lost else ""
    return words + (f" {search['broken_lines']} lines of the log could not be read." if search.get("broken_lines") else "")
