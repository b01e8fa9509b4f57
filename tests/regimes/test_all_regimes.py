"""What every regime must satisfy, whatever it is: found by listing `ceiling/regimes`, so a new one is tested too.

Loss, gradient and updated parameters do not depend on padding, packing, empty sequences, the split into
micro-batches or the devices (X-3, X-4); constants carry no gradient (X-5); every declared key is read.
"""

import math
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ceiling.regimes
from ceiling.config import plain
from ceiling.data.packing import Layout, micro_batches, pack, stack
from ceiling.model.policy import Policy
from ceiling.model.sequences import Forward
from ceiling.model.sharding import batch_sharding, make_mesh, place
from ceiling.regimes.base import Material, Regime, Sample, load, summary_line
from ceiling.tasks.base import Outcome, Verdict
from ceiling.tasks.rewards import Label
from ceiling.train import loop
from ceiling.train.step import init_state, make_step

REGIMES = sorted(m.name for m in pkgutil.iter_modules(ceiling.regimes.__path__) if m.name != "base")
CASES = [(name, {}) for name in REGIMES] + [
    ("distill", {"loss": "divergence", "beta": 0.5, "keep": "all"}),
    ("grpo", {"kl": "k3", "kl_beta": 0.5, "entropy_bonus": 0.1, "aggregation": "constant", "ratio": "sequence",
              "minibatches": 2, "temperature": 0.7}),
]  # fmt: skip
IDS = [f"{name}-{'-'.join(map(str, o.values())) or 'default'}" for name, o in CASES]
WIDEST = 80  # longest prompt + longest response of the toy task, rounded up


@pytest.fixture(scope="module", params=CASES, ids=IDS)
def case(request, toy):
    """(regime, cfg, model, params, frozen, examples) of one real step."""
    name, overrides = request.param
    regime, model, params, models = load(name), toy.model, toy.params, toy.models
    cfg = toy.arm(name, **overrides)
    _, examples = toy.gather(regime, cfg, toy.task, model, params, models)
    assert len(examples) >= 4, "too few examples to split"
    return regime, cfg, model, params, {n: Policy(models[n], model, ()) for n in regime.frozen(cfg)}, examples


def update(case, batch, mesh=None, live=None):
    """One plain gradient step through the real train step: (loss, metrics, gradient)."""
    regime, cfg, model, params, frozen, _ = case
    if mesh is not None:
        params = place(params, model, mesh)
        frozen = {k: p.replace(params=place(p.params, model, mesh)) for k, p in frozen.items()}
        batch = jax.device_put(batch, batch_sharding(mesh, leading=1))
    after = regime.after_update
    step = make_step(
        lambda p, b, fr: regime.loss(p, b, fr, Forward(model), cfg), optax.identity(),
        after and (lambda aux, p: after(aux, p, cfg)),
    )  # fmt: skip
    start = jax.tree.map(jnp.array, params)  # the step donates its state
    aux = regime.init_aux(start, cfg) if regime.init_aux else None
    state = init_state(start, optax.identity(), aux)
    state, metrics = step(state, batch, frozen, np.float32(1.0), live and np.int32(live))
    metrics = {k: float(v) for k, v in metrics.items()}
    return metrics.pop("loss"), metrics, jax.tree.map(lambda a, b: np.asarray(b) - np.asarray(a), state.params, params)


def rows_of(examples, sequences, *, row_tokens=WIDEST, rows=None):
    return pack(examples, sequences=sequences, max_tokens=WIDEST, row_tokens=row_tokens, rows=rows)


def one_per_row(examples, rows):
    """Batch with example i alone in row i."""
    singles = [rows_of([e], 1, rows=1) for e in examples]
    empty = jax.tree.map(np.zeros_like, singles[0])
    singles += [empty] * (rows - len(singles))
    batch = jax.tree.map(lambda *x: np.concatenate(x), *singles)
    return batch.replace(index_BT=batch.index_BT + (batch.mask_BT > 0) * WIDEST * np.arange(rows)[:, None])


@pytest.fixture(scope="module")
def reference(case):
    return update(case, stack([one_per_row(case[-1], len(case[-1]))]))


def assert_same(got, want):
    assert got[0] == pytest.approx(want[0], rel=1e-5, abs=1e-5)
    assert got[1] == pytest.approx(want[1], rel=1e-4, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got[2], want[2])


def test_the_gradient_is_finite_and_not_trivial(reference):
    loss, metrics, gradient = reference
    assert np.isfinite(loss) and all(map(np.isfinite, metrics.values())) and metrics["skipped"] == 0
    assert max(np.abs(g).max() for g in jax.tree.leaves(gradient)) > 1e-3


def test_X3_X4_packing_padding_empty_sequences_and_four_microbatches_change_nothing(case, reference):
    """Several sequences per row, rows longer than needed, whole rows of padding, sequences without tokens, and
    micro-batches of unequal numbers of examples."""
    examples = case[-1]
    each = -(-len(examples) // 4) + 1
    cuts = [0, 1, 1 + each, 1 + 2 * each - 1, len(examples)]
    parts = [examples[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    packed = [rows_of(p, each + 2, row_tokens=2 * WIDEST + 7, rows=each) for p in parts]
    assert max(len(np.unique(row)) for b in packed for row in b.segments_RW) > 2, "some row holds several sequences"
    assert np.any(np.all(packed[0].segments_RW == 0, axis=1)), "and some rows hold none"
    assert_same(update(case, stack(packed)), reference)


@pytest.mark.parametrize("shape", [(2, 2, 2), (8, 1, 1)], ids=str)
def test_X3_devices_and_two_microbatches_change_nothing(shape, case, reference):
    """Eight simulated devices; rows and sequences filled up to a multiple of them."""
    examples = case[-1]
    each = 8 * math.ceil(len(examples) / 16)
    micro = [one_per_row(examples[::2], each), one_per_row(examples[1::2], each)]
    assert_same(update(case, stack(micro), make_mesh(*shape)), reference)


def test_X3_a_group_of_rows_for_each_device_changes_nothing(case, reference):
    """As the loop packs them: samples share prompts, and every group has its own sequences."""
    examples = case[-1]
    micro, live = micro_batches(examples, Layout(len(examples), 2, WIDEST, groups=8))
    asked = micro.mask_BT[:live].reshape(live, 8, -1).any(axis=2)
    assert micro.groups == 8 and asked.any(), "some groups may have none"
    assert_same(update(case, micro, make_mesh(8), live), reference)
    with pytest.raises(ValueError, match="8 groups is for as many devices along data alone, and the mesh is"):
        update(case, micro, make_mesh(4, 2))
    with pytest.raises(ValueError, match="in 8 groups; only make_step takes them"):
        Forward(case[2]).view(jnp.zeros(9), jax.tree.map(lambda leaf: leaf[0], micro))


def test_X5_frozen_models_and_extras_are_constants(case):
    regime, cfg, model, params, frozen, examples = case
    batch = rows_of(examples, len(examples))
    if not frozen and not batch.extra:
        return

    def loss(frozen, extra):
        total, denom, metrics = regime.loss(params, batch.replace(extra=extra), frozen, Forward(model), cfg)
        return total / denom + sum(a for a, _ in metrics.values()) * 0

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(frozen, batch.extra)
    for path, g in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.all(np.asarray(g) == 0), jax.tree_util.keystr(path)


# --- the record itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGIMES)
def test_regime_declares_itself(name):
    regime = load(name)
    assert isinstance(regime, Regime) and regime.name == name and summary_line(name).endswith(".")
    assert not set(regime.config.entries) & set(loop.CONFIG.entries), "keys of the loop are the loop's"
    cfg = ceiling.arm(name).to_dict()
    allowed = {"prompt", "answer", "solution", "text", "teacher text", "teacher logits", "environment"}
    assert regime.reads(cfg) and set(regime.reads(cfg)) <= allowed
    ceiling.validate(ceiling.defaults("lab", arms={"a": ceiling.arm(name, samples_per_prompt=4)}))


def test_unknown_regime_lists_the_known_ones():
    with pytest.raises(ceiling.ConfigError, match=", ".join(REGIMES)):
        load("dpo")


class Recorder(dict):
    def __init__(self, values, seen):
        super().__init__(values)
        self.seen = seen

    def __getitem__(self, key):
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.seen.add(key)
        return super().get(key, default)


def variants(section):
    """Default, everything switched on, and each choice of each text key."""
    on = {
        k: f.default or (2 if f.whole else min(0.5, f.high)) for k, f in section.entries.items() if f.kind == "number"
    }
    on |= {k: True for k, f in section.entries.items() if f.kind == "flag"}
    yield {}
    yield on
    for key, field in section.entries.items():
        for choice in field.choices:
            yield {key: choice}
            if (key, choice) != ("reward", "none"):  # the schema refuses to drop the groups of which nothing is paid
                yield {**on, key: choice}


def dry_run(regime, cfg, toy, params):
    """Every function of the record on made-up samples and scores; the loss is traced, not compiled."""
    rng, task = np.random.default_rng(0), toy.world
    draw = lambda n: rng.integers(4, 27, n).astype(np.int32)  # noqa: E731
    material = Material(task, task.training({}, cfg["prompts_per_step"] * cfg.get("oversample", 1)), [], {},
                        lambda n: task.corpus("prior", 0, n), rng)  # fmt: skip
    for spec in regime.rounds(cfg, task, rng):
        prompts = [material.encode(text) for text in spec.prompts(material)]
        verdicts = [Verdict(Outcome(j % 2), "1" if j % 2 else None, 0.5 * (j % 2), True) for j in range(spec.n)]
        verdicts = verdicts if spec.judged else [None] * spec.n
        ends = spec.stop is not None  # a call, or a thought
        flat = [Sample(p, draw(3), -rng.random(3).astype(np.float32), ends, v) for p in prompts for v in verdicts]
        each = len(flat) // len(material.problems)
        material.samples.append([flat[i : i + each] for i in range(0, len(flat), each)])
    if regime.labels(cfg):
        material.labels = {p.id: Label("1", 0.5, right=False) for p in material.problems}
    for name, request in regime.scores(material, cfg).items():
        material.scores[name] = [-rng.random(int(e.mask.sum())).astype(np.float32) for e in request.examples]
    examples = regime.examples(material, cfg)
    assert 0 < len(examples) <= cfg["minibatches"] * loop.layout(cfg, 1, make_mesh().shape).sequences
    assert all(e.mask.any() and len(e.tokens) == len(e.mask) for e in examples)
    batch = rows_of(examples, len(examples))
    frozen = {n: Policy(params, toy.model, ()) for n in regime.frozen(cfg)}
    shapes = jax.eval_shape(lambda p, b, f: regime.loss(p, b, f, Forward(toy.model), cfg), params, batch, frozen)
    assert shapes[0].shape == shapes[1].shape == () and all(a.shape == b.shape == () for a, b in shapes[2].values())
    assert all(np.isfinite(v) for v in regime.metrics(material, cfg).values())
    assert all(n >= 0 for n in (*regime.counts(material, examples, cfg).values(), regime.longest(cfg, task)))
    regime.reads(cfg)
    if regime.init_aux:
        regime.after_update(regime.init_aux(params, cfg), params, cfg)


@pytest.mark.parametrize("name", REGIMES)
def test_every_declared_key_is_read_and_no_other(name, toy):
    """CG-7: a key that nothing reads is a setting that silently does nothing."""
    regime, seen = load(name), set()
    for overrides in variants(regime.config):
        cfg = {**toy.arm(name), **plain(overrides)}
        regime.config.validate({k: cfg[k] for k in regime.config.entries}, name)
        dry_run(regime, Recorder(cfg, seen), toy, toy.params)
    assert set(regime.config.entries) <= seen, f"never read: {set(regime.config.entries) - seen}"
    loops = {*loop.CONFIG.entries, "max_tokens", "oversample", "responses_per_row"}  # the last two where there are any
    assert seen <= {*regime.config.entries, *loops}, "read but never declared"


@pytest.mark.parametrize("name", REGIMES)
def test_a_step_is_a_function_of_its_seed(name, toy):
    """Same seed, same examples to the bit."""
    cfg = toy.arm(name)
    runs = [toy.gather(load(name), cfg, toy.task, toy.model, toy.params, toy.models, seed=s)[1] for s in (3, 3)]
    assert len(runs[0]) == len(runs[1])
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        jax.tree.map(np.testing.assert_array_equal, a.extra, b.extra)
