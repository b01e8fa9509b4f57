"""The table of claims: python -m ceiling.claims [C1 C4 ...] --workdir runs/claims [--scale quick] [--seeds 61,62,...].

Without names, all of them. A claim that was stopped continues; a finished one is only judged again. --docs DIR rewrites
DIR/claims.md and a page per claim from what lies in the work directory.
"""

import dataclasses
import json
import pathlib

from absl import flags

from ceiling import cli
from ceiling.claims import base, lab, pages
from ceiling.claims import run as runner
from ceiling.config import ConfigError

_WORKDIR = flags.DEFINE_string("workdir", "runs/claims", "Where stages and verdicts lie")
_SCALE = flags.DEFINE_enum("scale", "quick", sorted(lab.SCALES), "Size of every experiment")
_SEEDS = flags.DEFINE_list("seeds", None, "Training seeds instead of the scale's, separated by commas")
_WORKERS = flags.DEFINE_integer("workers", None, "Stages run at once, instead of the scale's", lower_bound=1)
_DOCS = flags.DEFINE_string("docs", None, "Folder whose claims.md and claims/ are written")


def main(names: list[str]) -> None:
    claims = [base.load(name) for name in names or base.ids()]
    scale, workdir = _scale(), pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    for claim in claims:
        content = runner.run(claim, scale, workdir, _SCALE.value)
        print(f"\n{content['id']}  {content['title']}: {content['verdict']}")
        for test in content["tests"]:
            print(f"    {test['test']:28s} {pages.effect(test):34s} {test['verdict']}")
    if _DOCS.value:
        contents = [json.loads(path.read_text()) for path in sorted(workdir.glob("*/claim.json"))]
        pages.write(contents, pathlib.Path(_DOCS.value))


def _scale() -> base.Scale:
    scale = lab.SCALES[_SCALE.value]
    if _SEEDS.value:
        try:
            scale = dataclasses.replace(scale, seeds=tuple(int(seed) for seed in _SEEDS.value))
        except ValueError:
            raise ConfigError(f"--seeds={','.join(_SEEDS.value)}: use whole numbers separated by commas") from None
    return dataclasses.replace(scale, workers=_WORKERS.value) if _WORKERS.value else scale


if __name__ == "__main__":
    cli.start(main, [], names=True)
