"""What the way for several processes costs one: the demo's steps by a trainer alone and under torchrun.

    python infra/benchmarks/one_rank.py [--steps 10] [--rounds 4]

In turns, on this machine's CPU; seconds of a step, medians and least of all rounds, the first steps left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bare import Bare

from yarn_ops.recipe import Recipe, load_recipe
from yarn_ops.settings import child_environment
from yarn_ops.shipped import recipe_path
from yarn_ops.train.events import read_events
from yarn_ops.train.job import Job

BASE = Path(__file__).parents[1] / "models" / "base512"
TORCHRUN = (
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--local-addr",
    "127.0.0.1",
    "--nproc-per-node",
    "1",
)
WAYS = {"alone": (), "torchrun": TORCHRUN}
SKIPPED = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    demo = load_recipe(recipe_path("demo"))
    recipe = demo.model_copy(update={"base": demo.base.model_copy(update={"model": str(BASE)})})
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        bare = Bare.prepare(recipe, Path(folder))
        patched = bare.patch(recipe.rope, 4.0, "demo").path
        for number in range(arguments.rounds):
            for way, before in WAYS.items():
                work = Path(folder) / f"{way}-{number}"
                job = job_of(recipe, bare, patched, work, arguments.steps)
                work.mkdir()
                (work / "job.json").write_text(job.model_dump_json())
                command = [sys.executable, *before, "-m", "yarn_ops.train", str(work / "job.json")]
                quiet = child_environment({"OMP_NUM_THREADS": str(os.cpu_count() or 1)})
                subprocess.run(command, env=quiet, check=True, capture_output=True)
                steps = [event["step_s"] for event in read_events(job.events) if event["event"] == "step"]
                seconds[way] += steps[SKIPPED:]
    for way, taken in seconds.items():
        print(
            f"{way:<10} median {statistics.median(taken):.3f} s, least {min(taken):.3f} s, {len(taken)} steps"
        )
    for name, figure in (("median", statistics.median), ("least", min)):
        print(f"torchrun / alone, {name}: {figure(seconds['torchrun']) / figure(seconds['alone']):.4f}")


def job_of(recipe: Recipe, bare: Bare, patched: Path, work: Path, steps: int) -> Job:
    return Job(
        train=recipe.train,
        leg=recipe.curriculum(bare.base.record.context_tokens)[0].model_copy(update={"steps": steps}),
        data=recipe.data,
        base_dir=BASE,
        patched_dir=patched,
        shards_dir=bare.shards.path,
        out_dir=work / "adapter",
        work_dir=work,
        device="cpu",
        threads=os.cpu_count() or 1,
    )


if __name__ == "__main__":
    main()
