"""Public benchmarks by name: tasks of lm-evaluation-harness (Gao et al., https://doi.org/10.5281/zenodo.12608602) on one of our models.

The tasks, prompts, few-shot examples, metrics and seeds are the harness's own, so figures stand beside published ones and equal
those of ``lm_eval --model hf`` on the saved model. Text is tokenised as the harness does it: a begin token comes first only
where the tokenizer adds it by itself (our own scores always put it first where there is one).
"""

import logging
from pathlib import Path
from typing import Any

from ..errors import AcclimateError, MissingExtraError, nearest


def lm_eval(ref: str, tasks: list[str], limit: int | None = None, include_path: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Run tasks on a model; task (and group) name -> ``version``, ``n`` (items), ``shots`` and each metric with its standard error.

    Metrics carry the harness's names: ``acc,none`` is accuracy without an answer filter, ``acc_stderr,none`` its standard error.

    Args:
        ref: whatever ``Model.load`` takes; causal models and encoder-decoders.
        tasks: tasks, groups or tags by name.
        limit: items per task, for trials only.
        include_path: folder of further task files (YAML) in the harness's format.

    Raises:
        MissingExtraError: lm-eval is not installed.
        AcclimateError: an unknown task, a model of another kind, or a task whose data cannot be had.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtraError("lm-eval", "lmeval") from error
    from ..model import Model

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=include_path)
    for task in tasks:
        if task not in manager.task_index:
            raise AcclimateError(f"lm-eval has no task {task!r}{nearest(task, manager.all_tasks)}")
    model = Model.load(ref)
    if model.kind not in ("causal", "seq2seq"):
        raise AcclimateError(f"lm-eval asks models to continue text, and {model.name} is {model.kind}; give a causal model")
    model.net.eval()
    harness = HFLM(pretrained=model.net, tokenizer=model.tokenizer, max_length=model.context, batch_size=8)
    try:
        found = simple_evaluate(harness, tasks=list(tasks), limit=limit, task_manager=manager, log_samples=False)
    except OSError as error:  # the hub cannot be reached, or has no such dataset
        raise AcclimateError(f"the data of {', '.join(tasks)} cannot be had: {str(error).splitlines()[0]}") from error
    return {name: _plain(name, metrics, found) for name, metrics in found["results"].items()}


def _plain(name: str, metrics: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    leaves = found.get("group_subtasks", {}).get(name) or [name]
    facts = {
        "version": found["versions"].get(name),
        "n": sum(found["n-samples"][leaf]["effective"] for leaf in leaves if leaf in found["n-samples"]),
        "shots": found["n-shot"].get(name),
    }
    # a metric without a standard error has the text "N/A" in its place
    return facts | {key: None if isinstance(value, str) else value for key, value in metrics.items() if "," in key}
