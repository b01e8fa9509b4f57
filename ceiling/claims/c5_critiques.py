"""Natural-language critiques break the plateau of a numerical reward."""

from ceiling import arm
from ceiling.claims.base import Claim, Test
from ceiling.claims.lab import TRAINED, experiment, grpo
from ceiling.tasks.lab.recipe import LR, ROWS

KINDS = {"indicative": "right or wrong", "indicative_gt": "and the answer", "cot": "the first wrong step"}


def experiments(scale):
    # Every arm has spent two budgets in the end: GRPO both, the others one on GRPO and one on critiques.
    arms = {"grpo": grpo("GRPO, one budget"), "grpo_more": grpo("GRPO, two budgets", start="grpo")}
    for kind, told in KINDS.items():
        arms[f"critique_{kind}"] = arm("critique_grpo", title=f"critiques: {told}", start="grpo", critique_kind=kind,
                                       lr=LR["grpo"], **ROWS)  # fmt: skip
    arms["critique_self"] = arm("critique_grpo", title="its own critiques", start="grpo", critic="policy",
                                critique_kind="cot", lr=LR["grpo"], **ROWS)  # fmt: skip
    return {"main": experiment(scale, arms, critiques=0.4)}


def beyond(kind, groups=TRAINED):
    return lambda e: e["main"].gain(f"critique_{kind}", "grpo_more", 1, groups)


CLAIM = Claim(
    id="C5", title="Critiques", sources=("2506.03106",), experiments=experiments, groups=TRAINED,
    finding="Natural-language critiques break the plateau that a numerical reward reaches, at the same ledger value.",
    tests=(
        Test("plateau", "A second budget of GRPO raises pass@1 on the training groups by less than 0.05.",
             lambda e: -e["main"].gain("grpo_more", "grpo", 1, TRAINED), margin=-0.05),
        Test("first wrong step", "Critiques that name it raise pass@1 above that of GRPO with two budgets.",
             beyond("cot")),
        Test("with the answer", "So do critiques that give the answer.", beyond("indicative_gt")),
        Test("right or wrong", "So do critiques that say no more than the reward.", beyond("indicative")),
        Test("what critiques tell", "Those that name the wrong step give more than those that say right or wrong.",
             lambda e: e["main"].gain("critique_cot", "critique_indicative", 1, TRAINED)),
    ),
    tried="Three kinds of templated critiques and the policy's own, each for one more budget after GRPO's first. GRPO "
          "itself still gained .07 at pass@1 with its second budget, so no plateau was shown and there was nothing to "
          "break through; at pass@256 all critique arms end above it (.58 to .61 against .54), which was no test. "
          "Budgets long enough for a plateau, and critiques by a model, were not tried.",
    refuted_by="Critiques that add nothing to GRPO at the same budget, or that add as much when they say nothing.",
)  # fmt: skip
