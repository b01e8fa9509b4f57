"""Interventions through the whole command: vectors that were trained, their controls, features; and what is refused."""

import contextlib
import copy
import functools
import io
import json
import shutil
import types

import jax
import numpy as np
import pytest

import ceiling
from ceiling import experiment, stages
from ceiling.config import ConfigError
from ceiling.evals.records import Samples
from ceiling.ledger import forward_flops
from ceiling.model import Policy, make_mesh, place
from ceiling.model.config import table, unflatten
from ceiling.model.sae import residuals
from ceiling.model.steering import vectors
from ceiling.stages import mechanisms
from ceiling.tasks.base import Document, Problem
from ceiling.train.checkpoint import save_params

SMALL = dict(prompts_per_step=2, samples_per_prompt=2, pool=8)


def lab():
    arm = ceiling.arm
    config = ceiling.defaults("lab", arms={
        "steered": arm("sft", lr=0.1, steering=True, **SMALL),
        "random": arm("sft", start="steered", spend=0.0, vectors="random", **SMALL),
        "shuffled": arm("sft", start="steered", spend=0.0, vectors="shuffled", **SMALL),
        "feature": arm("sft", start="steered", spend=0.0, vectors="sae", strength=3.0, feature=1, **SMALL),
        "feature_random": arm("sft", start="steered", spend=0.0, vectors="sae_random", strength=3.0, **SMALL),
    })  # fmt: skip
    config.seeds = (1,)
    config.train.mix = {"C": 1.0}
    config.prior.update(pool=1, mix={"C": 1.0})
    config.task.update(evaluation_per_group=1, training_per_group=8, gate_problems=2, gate_accuracy=0.0)
    config.model.update(width=16, ffn=16, layers=2, heads=2, kv_heads=1, head_dim=8, tied=False, embed_std=1.0)
    config.sae.update(layer=1, latents=32, k=4, documents=32, steps=60, tokens_per_step=64, lr=1e-2, words="S P D")
    config.budget.flops = 4e6
    config.eval.update(n=4, ks=(1, 2, 4), verdict_k=2, likelihood_samples=0)
    config.report.html = False
    return config


def untrained(context):
    """A prior that costs no compilation."""
    rng = np.random.default_rng(0)
    draw = lambda row: np.ones(row.shape) if row.std is None else rng.normal(0, row.std, row.shape)  # noqa: E731
    rows = {path: draw(row).astype(np.float32) for path, row in table(context.model).items()}
    save_params(context.out / "params", place(unflatten(rows), context.model, context.mesh))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(planned stages by name, a function of a stage's name to its directory, result) of a finished run."""
    workdir, config = tmp_path_factory.mktemp("run"), lab()
    planned = {stage.name.removeprefix("seed1/"): stage for stage in experiment.plan(ceiling.validate(config))}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setitem(stages.STAGES, "prior", untrained)
        result = ceiling.run(config, workdir)
    return planned, lambda name: planned[name].directory(workdir), result


def policy_of(done, name):
    planned, home, _ = done
    settings = planned[name].settings
    task = ceiling.schema.load_task(settings)
    model = ceiling.schema.architecture(settings["model"], task.tokenizer.vocab_size)
    return stages.load_policy(home(name), model, make_mesh())


# ---- a run from end to end


def test_BO3_every_arm_has_the_base_weights_and_its_own_vectors(done):
    base = policy_of(done, "prior").params
    policies = {name: policy_of(done, name) for name in ("steered", "random", "shuffled", "feature", "feature_random")}
    for policy in policies.values():
        rest = {k: v for k, v in policy.params["layers"].items() if k != "steer"}
        assert policy.config.steering and rest.keys() == base["layers"].keys()
        for a, b in zip(jax.tree.leaves({**policy.params, "layers": rest}), jax.tree.leaves(base), strict=True):
            np.testing.assert_array_equal(a, b)
    own, random, moved, feature, other = (vectors(policy.params) for policy in policies.values())
    norm = lambda v: np.linalg.norm(v, axis=1)  # noqa: E731
    assert norm(own).min() > 1e-3
    np.testing.assert_allclose(norm(random), norm(own), rtol=1e-5)
    np.testing.assert_array_equal(moved, own[::-1])
    assert not (feature - own)[0].any() and not (other - own)[0].any()
    np.testing.assert_allclose(norm(feature - own), norm(other - own) / about(done)["features"][0]["f_max"]
                               * about(done)["features"][1]["f_max"], rtol=1e-4)  # fmt: skip
    cosine = np.sum((feature - own)[1] * (other - own)[1]) / norm(feature - own)[1] / norm(other - own)[1]
    assert abs(cosine) < 0.99


def about(done):
    return json.loads((done[1]("steered.sae") / "sae.json").read_text())


def test_a_feature_is_added_at_its_strength_times_its_largest_value(done):
    added_LD = vectors(policy_of(done, "feature").params) - vectors(policy_of(done, "steered").params)
    chosen = about(done)["features"][1]
    with np.load(done[1]("steered.sae") / "autoencoder" / "weights.npz") as weights:
        np.testing.assert_allclose(added_LD[1], 3.0 * chosen["f_max"] * weights["w_dec"][chosen["feature"]], atol=1e-5)


def test_the_samples_of_no_two_policies_are_the_same(done):
    names = ("base", "steered", "random", "shuffled", "feature", "feature_random")
    seen = [Samples.load(done[1](f"{name}.evaluate") / "records.parquet").table["tokens"].to_pylist() for name in names]
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i])


def test_SV7_the_autoencoder_is_measured_and_charged_apart_from_the_budget(done):
    planned, _, result = done
    found = about(done)
    assert found["documents"] == 32 and found["left_out"] == 0 and 0 < found["near_words"] < 0.5
    assert found["l0"] == pytest.approx(4, abs=0.5) and 0.3 < found["variance_explained"] < 1
    assert found["loss"][1] < found["loss"][0] and 0 <= found["dead"] < 0.5
    scores = [row["score"] for row in found["features"]]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0 and len(scores) == 16
    rows = {row["model"]: row for row in result.ledger if row["arm"] == "sae"}
    assert {row["phase"] for row in rows.values()} == {"sae"} and not any(row["student"] for row in rows.values())
    model = policy_of(done, "steered").config  # its upper layer is read: every block is run, and no head
    lengths = [len(d.prompt + d.response) for d in ceiling.schema.load_task(planned["steered.sae"].settings).corpus(
        "prior", ceiling.train.loop.stream(1, 12, 0), 32)]  # fmt: skip
    assert rows["policy"]["flops"] == forward_flops(model, lengths, head_tokens=0)
    assert rows["policy"]["tokens"] == sum(lengths) == found["tokens"] + 32, "first tokens are run and left out"
    held = sum(n - 1 for i, n in enumerate(lengths) if i % 10 == 9)
    assert rows["sae"]["flops"] == 4 * 16 * 32 * (3 * 60 * 64 + found["tokens"] + held)


# ---- the plan


def test_an_autoencoder_is_shared_and_what_does_not_use_it_does_not_know_it():
    config = lab()
    keys = lambda: {s.name: s.key for s in experiment.plan(ceiling.validate(copy.deepcopy(config)))}  # noqa: E731
    before = keys()
    assert [name for name in before if name.endswith(".sae")] == ["seed1/steered.sae"]
    touched = lambda after: {name for name in before if before[name] != after[name]}  # noqa: E731
    config.sae.alpha = 0.5
    fed = {f"seed1/{name}{part}" for name in ("feature", "feature_random") for part in ("", ".evaluate")}
    assert touched(keys()) == {"seed1/steered.sae"} | fed
    config = lab()
    config.arms.random.strength = 2.0
    assert touched(keys()) == {"seed1/random", "seed1/random.evaluate"}


@pytest.mark.parametrize("path, value, words", [
    ("arms.random.start", "", ["arms.random.vectors='random': 'prior' has no vectors"]),
    ("arms.random.spend", 1.0, ["arms.random.vectors='random'", "set spend=0"]),
    ("arms.steered.strength", 2.0, ["arms.steered.strength=2.0: no vectors to scale"]),
    ("model.layers", 1, ["arms.shuffled.vectors='shuffled'", "use 'random'"]),
    ("sae.layer", 2, ["config.sae.layer=2: the model has layers 0 to 1"]),
    ("sae.k", 64, ["config.sae.k=64 is above config.sae.latents=32"]),
    ("sae.words", " ", ["config.sae.words is empty", "arms.feature"]),
    ("sae.latents", 12, ["arms.feature.feature=15: config.sae.latents=12"]),
])  # fmt: skip
def test_refusals(path, value, words):
    config = lab()
    config.arms.feature.feature = 15
    section, _, key = path.rpartition(".")
    functools.reduce(lambda part, name: part[name], section.split("."), config)[key] = value
    with pytest.raises(ConfigError) as error:
        ceiling.validate(config)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_steered_start_of_any_depth_is_not_trained_over():
    """Vectors cannot be merged into weights, so an arm that trains from a steered policy must say that it is one."""
    config = lab()
    config.arms.update({"next": ceiling.arm("sft", start="random", **SMALL)})
    with pytest.raises(ConfigError, match=r"arms.next.steering=False: its start 'random' is steered"):
        ceiling.validate(config)


def test_words_that_the_tokenizer_cannot_say_are_refused():
    config = lab()
    config.sae.words = "S Wait"
    checked = ceiling.validate(config)
    with pytest.raises(ConfigError, match=r"config.sae.words: .*'W'"):
        ceiling.schema.check_against_task(checked, ceiling.schema.load_task(checked))


# ---- its parts


class Pairs:
    """Tokens of two characters: a word may start and end inside one."""

    def decode(self, ids):
        return "".join(f"{i:02d}" for i in ids)


def test_tokens_near_a_word_are_those_that_share_a_character_and_their_neighbours():
    tokens_T = [11, 12, 34, 55, 67, 89]  # 111234556789
    mark = lambda *args: [int(x) for x in mechanisms.near(Pairs(), tokens_T, *args)[:, 0]]  # noqa: E731
    assert mark(["23"], 0, 0) == [0, 1, 1, 0, 0, 0]
    assert mark(["12"], 0, 0) == [0, 1, 0, 0, 0, 0]
    assert mark(["11"], 0, 0) == [1, 1, 0, 0, 0, 0], "the second occurrence overlaps the first"
    assert mark(["56"], 1, 2) == [0, 0, 1, 1, 1, 1]
    assert mark(["1"], 0, 0) == [1, 1, 0, 0, 0, 0], "every occurrence"
    assert mark(["99"], 5, 5) == [0] * 6
    both = mechanisms.near(Pairs(), tokens_T, ["34", "89"], 0, 0)
    np.testing.assert_array_equal(np.argwhere(both), [[2, 0], [5, 1]])


def test_words_that_no_document_has_are_named_and_scored_without():
    said = []
    settings = {"sae": {"words": "34 00 89", "before": 0, "after": 0}}
    context = types.SimpleNamespace(settings=settings, task=types.SimpleNamespace(tokenizer=Pairs()), log=said.append)
    words, near_MW = mechanisms._near_words(context, [[34, 12, 89], [55, 34]])
    assert words == ["34", "89"] and said == ["config.sae.words: no document has 00; features are scored without"]
    np.testing.assert_array_equal(near_MW, [[0, 0], [0, 1], [1, 0]])  # without the first token of each
    with pytest.raises(ValueError, match="config.sae.words='34 00 89': no document has any"):
        mechanisms._near_words(context, [[12, 55]])


def test_activations_are_those_of_each_document_alone_on_any_mesh(make_model):
    config, params = make_model()
    documents = [np.arange(1, 1 + n, dtype=np.int32) for n in (5, 9, 2)]
    policy = Policy(place(params, config, make_mesh(2, 2, 1)), config, ())
    found = mechanisms.activations(policy, 1, documents)
    alone = jax.jit(residuals, static_argnums=(1, 2))
    for document, x_TD in zip(documents, found, strict=True):
        row_T = np.pad(document, (0, 9 - len(document)))  # what follows changes nothing before it
        np.testing.assert_allclose(x_TD, alone(params, config, 1, row_T[None])[0, : len(document)], atol=2e-5)


def test_SV6_documents_that_show_an_evaluation_problem_are_left_out():
    corpus = [Document("", f"{i:02d}ab=") for i in range(12)]

    def context(prompts):
        task = types.SimpleNamespace(
            evaluation=lambda: [Problem(0, "g", prompt, "") for prompt in prompts],
            corpus=lambda kind, seed, count: corpus[:count],
            tokenizer=types.SimpleNamespace(encode=lambda text: list(text.encode())),
        )  # fmt: skip
        return types.SimpleNamespace(task=task, seed=1)

    kept, left_out = mechanisms._documents(context(["03a", "zz"]), 12)
    assert left_out == 1 and len(kept) == 11 and not any(bytes(d.tolist()).startswith(b"03") for d in kept)
    with pytest.raises(ValueError, match="config.sae.documents=12: 0 documents show no evaluation problem"):
        mechanisms._documents(context(["ab="]), 12)


def test_a_damaged_autoencoder_and_a_dead_feature_are_refused(done, tmp_path):
    home = shutil.copytree(done[1]("steered.sae"), tmp_path / "copy")
    found = about(done)
    found["features"][0]["f_max"] = 0.0
    (home / "sae.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="is never active"):
        mechanisms.feature_vectors(home, 0, 1.0, 2)
    with open(home / "autoencoder" / "weights.npz", "r+b") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"weights.npz is not what was written.*have it made again"):
        mechanisms.feature_vectors(home, 1, 1.0, 2)
