"""Which classes of models each engine registers, read off its own source, as the tests of exports read it.

python infra/benchmarks/engine_classes.py WHEEL…

Of vLLM, SGLang and mlx-lm, as `pip download --no-deps` brings them; writes
tests/unit/export/engine_classes.json.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from zipfile import ZipFile

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "tests" / "unit" / "export" / "engine_classes.json"
REGISTRY = "vllm/model_executor/models/registry.py"
MLX = "mlx_lm/utils.py"
"""loads a module that is called as the model_type, or as it renames that"""


def registered(wheel: Path) -> set[str]:
    """Names of the classes that the engine serves, vLLM's through transformers among them; mlx-lm's of
    model_types."""
    with ZipFile(wheel) as files:
        if REGISTRY in files.namelist():
            tables = [
                node.value
                for node in ast.walk(ast.parse(files.read(REGISTRY)))
                if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict)
            ]
            keys = [key for table in tables for key in table.keys if isinstance(key, ast.Constant)]
            return {str(key.value) for key in keys}
        if MLX in files.namelist():
            modules = {Path(name).stem for name in files.namelist() if name.startswith("mlx_lm/models/")}
            (renames,) = [
                node.value
                for node in ast.parse(files.read(MLX)).body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODEL_REMAPPING"
            ]
            return modules | {name for name, module in ast.literal_eval(renames).items() if module in modules}
        models = [name for name in files.namelist() if re.fullmatch(r"sglang/srt/models/\w+\.py", name)]
        entries = [
            re.search(rb"^EntryClass\s*=\s*(\[[^\]]*\]|\w+)", files.read(name), re.M) for name in models
        ]
        return {name.decode() for entry in entries if entry for name in re.findall(rb"\w+", entry[1])}


def main(wheels: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    from yarn_ops.rope.architectures import ARCHITECTURES

    classes = {model_type: str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]) for model_type in ARCHITECTURES}
    found = {}
    for wheel in map(Path, wheels):
        known = registered(wheel)
        found["-".join(wheel.name.split("-")[:2])] = sorted(
            model_type for model_type, name in classes.items() if {name, model_type} & known
        )
    PAGE.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
