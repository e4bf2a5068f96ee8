"""lm-eval's `local-completions` on the tasks beside this file; prints the results, and each item's loglikelihoods."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager
from target import BASE_URL, MODEL

source, folder = Path(__file__).parent / "lm_eval_tasks", Path(sys.argv[1])
shutil.copytree(source, folder)
for task in folder.glob("*.yaml"):  # data_files must be absolute
    task.write_text(task.read_text().replace("DATA", str(folder)))
found = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={"model": MODEL, "base_url": BASE_URL + "/completions", "num_concurrent": 1, "max_retries": 1},
    tasks=["octavo_choices", "octavo_series"],
    batch_size=4,
    bootstrap_iters=0,
    task_manager=TaskManager(include_path=str(folder), include_defaults=False),
)
assert found is not None
scores = [[choice[0][0] for choice in item["resps"]] for item in found["samples"]["octavo_choices"]]
print(json.dumps({"results": found["results"], "loglikelihoods": scores}, default=str))
