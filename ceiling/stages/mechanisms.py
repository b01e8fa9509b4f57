"""Interventions: the sparse autoencoder of a policy, and a policy steered by a feature or by a control.

An autoencoder is trained on documents of the prior's corpus and its features are scored there. Documents that show an
evaluation problem are left out, so nothing of those problems decides which feature is chosen (invariant SV-6). The
stage leaves `autoencoder/`, the weights with a SHA-256 manifest, sae.json and ledger.json.
"""

import bisect
import dataclasses
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from ceiling import hosts
from ceiling import ledger as accounts
from ceiling.model import sae, steering
from ceiling.model.policy import Policy
from ceiling.model.sharding import batch_sharding, constrain, put
from ceiling.rollout.scoring import batch_rows
from ceiling.stages.context import Context
from ceiling.train import manifest
from ceiling.train.loop import stream

FEATURES = 16  # listed in sae.json, best first
HELD_OUT = 10  # one document in so many measures the autoencoder and does not train it
PHASE = "sae"  # of the ledger; like an evaluation it is no part of an arm's budget


def autoencoder(context: Context) -> None:
    """Train a sparse autoencoder on a policy's activations and score its features by the configured words."""
    cfg, ledger, began = context.settings["sae"], accounts.Ledger(), time.perf_counter()
    policy = context.policy("start")
    documents, left_out = _documents(context, cfg["documents"])
    # Without first tokens: models park attention there, and the norm is some hundred times that of any other.
    words, near_MW = _near_words(context, documents)
    x_MD = np.concatenate([x_TD[1:] for x_TD in activations(policy, cfg["layer"], documents)])
    lengths = [len(document) for document in documents]
    below = dataclasses.replace(policy.config, layers=cfg["layer"] + 1)
    ledger.charge(
        PHASE, "policy", flops=accounts.forward_flops(below, lengths, head_tokens=0), tokens=sum(lengths),
        sequences=len(lengths), seconds=time.perf_counter() - began,
    )  # fmt: skip
    began = time.perf_counter()
    held_M = np.repeat(np.arange(len(documents)) % HELD_OUT == HELD_OUT - 1, np.array(lengths) - 1)
    config = sae.SAEConfig(**{key: cfg[key] for key in ("layer", "latents", "kind", "k", "l1")})
    key, size = jax.random.key(stream(context.seed, 12, 1)), {key: cfg[key] for key in ("steps", "tokens_per_step")}
    weights, loss_S = jax.device_get(sae.train(config, jnp.asarray(x_MD[~held_M]), key, lr=cfg["lr"], **size))
    quality = sae.statistics(config, weights, x_MD[held_M], near_MW[held_M])
    means = sae.statistics(config, weights, x_MD, near_MW)
    trained, seen = cfg["steps"] * cfg["tokens_per_step"], len(x_MD) + int(held_M.sum())
    flops = sae.forward_flops(config, policy.config.width, accounts.TRAIN_FACTOR * trained + seen)
    ledger.charge(PHASE, "sae", flops=flops, tokens=trained + seen, seconds=time.perf_counter() - began)
    context.write_json("sae.json", {
        **dataclasses.asdict(config), "words": words, "documents": len(documents), "left_out": left_out,
        "tokens": len(x_MD), "near_words": float(near_MW.any(axis=1).mean()), "l0": quality.l0, "dead": means.dead,
        "variance_explained": quality.variance_explained, "loss": [float(loss_S[0]), float(loss_S[-1])],
        "features": _best(means, cfg["alpha"]),
    })  # fmt: skip
    context.write_json("ledger.json", ledger.to_json())
    if hosts.leader():
        home = context.out / "autoencoder"
        home.mkdir()
        np.savez(home / "weights.npz", **weights)
        manifest.write(home, dataclasses.asdict(config))


def intervene(context: Context, policy: Policy, cfg: dict) -> Policy:
    """The policy with the vectors that an arm asks for, times its strength: "random" and "shuffled" stand in for the
    policy's own; "sae", a feature's direction, and "sae_random", a random one of its norm, are added to them."""
    config = dataclasses.replace(policy.config, steering=True)
    own_LD, key = np.zeros((config.layers, config.width), np.float32), jax.random.key(stream(context.seed, 11))
    if policy.config.steering:
        own_LD = steering.vectors(policy.params)
    if cfg["vectors"] == "random":
        vectors_LD = cfg["strength"] * steering.random_like(own_LD, key)
    elif cfg["vectors"] == "shuffled":
        vectors_LD = cfg["strength"] * steering.shuffled(own_LD, key)
    else:
        feature_LD = feature_vectors(context.needs["sae"], cfg["feature"], cfg["strength"], config.layers)
        vectors_LD = own_LD + (feature_LD if cfg["vectors"] == "sae" else steering.random_like(feature_LD, key))
    return policy.replace(params=steering.with_vectors(policy.params, config, vectors_LD), config=config)


def feature_vectors(directory, rank: int, strength: float, layers: int) -> np.ndarray:
    """Steering vectors f32[L, D] of the feature of that rank in an autoencoder stage's output directory."""
    about, home = json.loads((directory / "sae.json").read_text()), directory / "autoencoder"
    try:
        config = sae.SAEConfig(**manifest.read(home))
    except manifest.Damaged as error:
        raise ValueError(f"{home}: {error}; delete the stage's folder to have it made again") from None
    chosen = about["features"][rank]
    if not chosen["f_max"]:
        raise ValueError(f"{directory}: feature {chosen['feature']} is never active, steering by it changes nothing")
    with np.load(home / "weights.npz") as weights:
        return sae.direction(config, weights, chosen["feature"], strength=strength, f_max=chosen["f_max"],
                             layers=layers)  # fmt: skip


def near(tokenizer, tokens_T, words: list[str], before: int, after: int) -> np.ndarray:
    """bool[T, W]: whether a token is one of an occurrence of a word, of the `before` tokens before it, or of the
    `after` tokens after it. A word is any part of the text; a token that has a character of it is one of its tokens."""
    text, T = tokenizer.decode(tokens_T), len(tokens_T)
    end = functools.cache(lambda t: len(tokenizer.decode(tokens_T[: t + 1])))
    out = np.zeros((T, len(words)), bool)
    for w, word in enumerate(words):
        start = text.find(word)
        while start >= 0:
            first = bisect.bisect_right(range(T), start, key=end)
            last = bisect.bisect_left(range(T), start + len(word), key=end)
            out[max(0, first - before) : last + after + 1, w] = True
            start = text.find(word, start + 1)
    return out


def _near_words(context: Context, documents) -> tuple[list[str], np.ndarray]:
    """(the words that the documents have, bool[M, W] for all tokens but the first ones of documents)."""
    cfg, words = context.settings["sae"], context.settings["sae"]["words"].split()
    near_TW = functools.partial(near, context.task.tokenizer, words=words, before=cfg["before"], after=cfg["after"])
    near_MW = np.concatenate([near_TW(document)[1:] for document in documents])
    found_W = near_MW.any(axis=0)
    if not found_W.any():
        raise ValueError(f"config.sae.words={cfg['words']!r}: no document has any; name texts of the prior's corpus")
    if not found_W.all():
        absent = " ".join(word for word, found in zip(words, found_W, strict=True) if not found)
        context.log(f"config.sae.words: no document has {absent}; features are scored without")
    return [word for word, found in zip(words, found_W, strict=True) if found], near_MW[:, found_W]


def activations(policy: Policy, layer: int, documents) -> list[np.ndarray]:
    """The residual stream f32[T, D] after a layer for every document of T tokens."""
    longest = max(map(len, documents))
    rows, out = batch_rows(policy.config, policy.mesh, len(documents), longest), []
    for start in range(0, len(documents), rows):
        here = documents[start : start + rows]
        tokens_BT, segments_BT = np.zeros((2, rows, longest), np.int32)
        for b, document in enumerate(here):
            tokens_BT[b, : len(document)], segments_BT[b, : len(document)] = document, 1
        if policy.mesh is not None:
            tokens_BT, segments_BT = put((tokens_BT, segments_BT), batch_sharding(policy.mesh))
        x_BTD = np.asarray(_residuals(policy.params, policy.config, layer, tokens_BT, segments_BT))
        out += [x_BTD[b, : len(document)] for b, document in enumerate(here)]
    return out


@functools.partial(jax.jit, static_argnums=(1, 2))
def _residuals(params, config, layer, tokens_BT, segments_BT):
    x_BTD = sae.residuals(params, config, layer, tokens_BT, segments_BT=segments_BT).astype(jnp.float32)
    return constrain(x_BTD, None, None, None, like=params["embed"])  # whole everywhere, for every host


def _documents(context: Context, count: int) -> tuple[list[np.ndarray], int]:
    """Token ids of documents of the prior's corpus, and how many were left out: they show an evaluation problem."""
    prompts = [problem.prompt for problem in context.task.evaluation()]
    drawn = context.task.corpus("prior", stream(context.seed, 12, 0), count)
    texts = [document.text for document in drawn]
    texts = [text for text in texts if not any(prompt in text for prompt in prompts)]
    if len(texts) < HELD_OUT:
        raise ValueError(
            f"config.sae.documents={count}: {len(texts)} documents show no evaluation problem, {HELD_OUT} are needed"
        )
    return [np.asarray(context.task.tokenizer.encode(text), np.int32) for text in texts], count - len(texts)


def _best(means: sae.Statistics, alpha: float) -> list[dict]:
    """The features of the highest scores, with how active they are."""
    score_U = sae.reason_score(means, alpha)
    return [
        {"feature": int(u), "score": float(score_U[u]), "f_max": float(means.max_U[u]), "near": float(means.near_U[u]),
         "elsewhere": float(means.other_U[u]), "active": float(means.active_U[u])}
        for u in np.argsort(-score_U, kind="stable")[:FEATURES]
    ]  # fmt: skip
