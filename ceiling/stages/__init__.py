"""What each stage of an experiment does: settings and input directories in, one output directory out.

A stage sees nothing but its own settings (the part of the configuration that it depends on) and the
outputs of the stages it needs, so its identity is a hash of exactly those. `experiment.py` decides
which stages there are; `STAGES` maps their kinds to functions.
"""

from ceiling.stages.context import Context, load_policy
from ceiling.stages.labels import label
from ceiling.stages.measuring import evaluate, gain
from ceiling.stages.mechanisms import autoencoder
from ceiling.stages.training import arm, prior, teacher
from ceiling.stages.tuning import tune

STAGES = {"prior": prior, "teacher": teacher, "arm": arm, "evaluate": evaluate, "gain": gain, "sae": autoencoder,
          "labels": label, "trial": arm, "tune": tune}  # fmt: skip

__all__ = ["STAGES", "Context", "load_policy"]
