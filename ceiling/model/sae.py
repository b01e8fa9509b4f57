"""Sparse autoencoders: activations of one layer as sums of a few directions out of many, and steering along one.

    a = (x - b_dec) W_enc + b_enc
    f = ReLU(a), "topk": of the k largest entries of a token alone (arXiv:2406.04093); "l1": of all
    x^ = f W_dec + b_dec
    L = mean over tokens of |x - x^|^2, "l1": + l1 * sum_u f_u |W_dec[u]| (as in arXiv:2503.18878)

x is the residual stream after a layer (counted from 0), as `residuals` gives it: unnormalised, with the layer's
steering vector if there is one. A feature u is a latent with its direction W_dec[u]. `reason_score` says how much more
a feature is active near chosen words than elsewhere, `direction` makes the steering vector x' = x + strength f_max
W_dec[u] of one (arXiv:2503.18878).

Letters: M tokens, D width, U latents, W words, C chunk of tokens.

Example:
    config = SAEConfig(layer=1, latents=256, kind="topk", k=8)
    sae, loss_S = train(config, x_MD, jax.random.key(0), steps=1000, tokens_per_step=1024, lr=1e-3)
    means = statistics(config, sae, x_MD, near_MW)
    best = int(np.argmax(reason_score(means, alpha=0.7)))
    vectors_LD = direction(config, sae, best, strength=2.0, f_max=means.max_U[best], layers=model.layers)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ceiling.model.config import ModelConfig
from ceiling.model.transformer import hidden

KINDS = ("topk", "l1")
CHUNK_TOKENS = 4096  # whose latents are held at once


@dataclasses.dataclass(frozen=True)
class SAEConfig:
    """layer: of the model, from 0; latents: U; k: latents of a token ("topk"); l1: weight of the penalty ("l1"), for
    activations whose mean square norm is the width D."""

    layer: int
    latents: int
    kind: str = "topk"
    k: int = 8
    l1: float = 5.0


def residuals(params, config: ModelConfig, layer: int, tokens_BT, positions_BT=None, segments_BT=None):
    """The residual stream [B, T, D] after layer `layer`, from 0, in the compute dtype. The layers above are not run."""
    below = {**params, "layers": jax.tree.map(lambda w: w[: layer + 1], params["layers"])}
    config = dataclasses.replace(config, layers=layer + 1)
    return hidden(below, config, tokens_BT, positions_BT, segments_BT, normalise=False)


def init(config: SAEConfig, x_MD, key: jax.Array) -> dict:
    """Decoder rows of random directions and norm 1, the encoder their transpose, biases of zero and of the mean."""
    w_dec_UD = _unit(jax.random.normal(key, (config.latents, x_MD.shape[1]), jnp.float32))
    return {"w_enc": w_dec_UD.T, "b_enc": jnp.zeros(config.latents), "w_dec": w_dec_UD, "b_dec": jnp.mean(x_MD, axis=0)}


def encode(config: SAEConfig, sae: dict, x_MD):
    """Latents f [M, U], not negative. "topk": k entries of a token are kept, and those of them below 0 are 0."""
    a_MU = (x_MD - sae["b_dec"]) @ sae["w_enc"] + sae["b_enc"]
    if config.kind == "topk":
        top_Mk, index_Mk = jax.lax.top_k(a_MU, config.k)
        row_M1 = jnp.arange(len(a_MU))[:, None]
        return jnp.zeros_like(a_MU).at[row_M1, index_Mk].set(jax.nn.relu(top_Mk), unique_indices=True)
    return jax.nn.relu(a_MU)


def decode(sae: dict, f_MU):
    """Reconstructions x^ [M, D]."""
    return f_MU @ sae["w_dec"] + sae["b_dec"]


def loss(config: SAEConfig, sae: dict, x_MD, l1):
    """The training loss, a mean over tokens. l1: the penalty's weight at this step."""
    f_MU = encode(config, sae, x_MD)
    error = jnp.mean(jnp.sum(jnp.square(x_MD - decode(sae, f_MU)), axis=1))
    if config.kind == "topk":
        return error
    return error + l1 * jnp.mean(f_MU @ jnp.linalg.norm(sae["w_dec"], axis=1))


@functools.partial(jax.jit, static_argnames=("config", "steps", "tokens_per_step"))
def train(config: SAEConfig, x_MD, key: jax.Array, *, steps: int, tokens_per_step: int, lr):
    """(autoencoder, loss f32[steps]) after `steps` of Adam on tokens drawn with replacement from f32[M, D].

    It is trained on activations scaled to a mean square norm of D, so that lr and l1 mean the same for every model, and
    returned for x as it is. The penalty warms up over the first 5 % of the steps, lr falls to 0 over the last 20 %.
    Decoder rows of "topk" are kept at norm 1."""
    scale = jnp.sqrt(x_MD.shape[1] / jnp.mean(jnp.sum(jnp.square(x_MD), axis=1)))
    x_MD = x_MD * scale
    start_key, draw_key = jax.random.split(key)
    adam = optax.scale_by_adam(b1=0.9, b2=0.999)

    def step(carry, number):
        sae, moments = carry
        drawn_C = jax.random.randint(jax.random.fold_in(draw_key, number), (tokens_per_step,), 0, len(x_MD))
        l1 = config.l1 * jnp.minimum(1.0, (number + 1) / (0.05 * steps))
        value, gradient = jax.value_and_grad(lambda sae: loss(config, sae, x_MD[drawn_C], l1))(sae)
        update, moments = adam.update(gradient, moments)
        rate = lr * jnp.minimum(1.0, (steps - number) / (0.2 * steps))
        sae = jax.tree.map(lambda w, u: w - rate * u, sae, update)
        if config.kind == "topk":
            sae["w_dec"] = _unit(sae["w_dec"])
        return (sae, moments), value

    sae = init(config, x_MD, start_key)
    (sae, _), loss_S = jax.lax.scan(step, (sae, adam.init(sae)), jnp.arange(steps))
    # Both sides of the encoder divided by the scale: f and x^ are too, and the k largest stay the k largest.
    return {**sae, "b_enc": sae["b_enc"] / scale, "b_dec": sae["b_dec"] / scale}, loss_S


def _unit(w_UD):
    return w_UD / jnp.linalg.norm(w_UD, axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What M tokens show of an autoencoder. Means of each latent over the tokens near each word, near any, and near
    none; its largest value; the share of tokens where it is active. l0: active latents of a token; variance_explained:
    1 - sum |x - x^|^2 / sum |x - mean|^2."""

    word_WU: np.ndarray
    near_U: np.ndarray
    other_U: np.ndarray
    max_U: np.ndarray
    active_U: np.ndarray
    l0: float
    variance_explained: float

    @property
    def dead(self) -> float:
        """Share of latents that are never active."""
        return float(np.mean(self.active_U == 0))


def statistics(config: SAEConfig, sae: dict, x_MD, near_MW) -> Statistics:
    """Statistics over f32[M, D]; near_MW: bool, whether a token lies near a word."""
    x_MD, near_MW = np.asarray(x_MD, np.float32), np.asarray(near_MW, bool)
    M, parts = len(x_MD), []
    chunk = min(CHUNK_TOKENS, M)
    for start in range(0, M, chunk):
        x_CD, near_CW = x_MD[start : start + chunk], near_MW[start : start + chunk]
        padding = ((0, chunk - len(x_CD)), (0, 0))
        real_C = np.arange(chunk) < len(x_CD)
        parts.append(_sums(config, sae, np.pad(x_CD, padding), np.pad(near_CW, padding), real_C))
    gathered = {name: np.stack([np.asarray(part[name], np.float64) for part in parts]) for name in parts[0]}
    largest_U = gathered.pop("max").max(axis=0)
    total = {name: values.sum(axis=0) for name, values in gathered.items()}
    count_W, count = near_MW.sum(axis=0), int(near_MW.any(axis=1).sum())
    spread = np.sum(np.square(x_MD - x_MD.mean(axis=0, dtype=np.float64)))
    return Statistics(
        word_WU=total["word"] / np.maximum(count_W, 1)[:, None], near_U=total["near"] / max(count, 1),
        other_U=total["other"] / max(M - count, 1), max_U=largest_U, active_U=total["active"] / M,
        l0=float(total["active"].sum() / M), variance_explained=float(1 - total["error"] / spread),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="config")
def _sums(config: SAEConfig, sae: dict, x_CD, near_CW, real_C) -> dict:
    f_CU = encode(config, sae, x_CD)
    error_C = jnp.sum(jnp.square(x_CD - decode(sae, f_CU)), axis=1)
    f_CU = jnp.where(real_C[:, None], f_CU, 0)
    near_C = jnp.any(near_CW, axis=1).astype(jnp.float32)
    return {
        "word": near_CW.astype(jnp.float32).T @ f_CU, "near": near_C @ f_CU, "other": (1 - near_C) @ f_CU,
        "max": jnp.max(f_CU, axis=0), "active": jnp.sum(f_CU > 0, axis=0), "error": jnp.sum(error_C * real_C),
    }  # fmt: skip


def reason_score(means: Statistics, alpha: float) -> np.ndarray:
    """ReasonScore f64[U] of arXiv:2503.18878, over latents u:

        near_u / sum_v near_v * H_u^alpha - other_u / sum_v other_v

    near and other are mean activations near the words and elsewhere; H_u in [0, 1] is the entropy of u's mean
    activation over the words, divided by its largest value, log W: a feature of one word alone scores low. With a
    single word there is no such entropy, and H = 1."""
    share_WU = means.word_WU / np.maximum(means.word_WU.sum(axis=0), 1e-300)
    W = len(share_WU)
    entropy_U = -np.sum(share_WU * np.log(np.maximum(share_WU, 1e-300)), axis=0)
    spread_U = entropy_U / np.log(W) if W > 1 else np.ones_like(entropy_U)
    share = lambda mean_U: mean_U / max(mean_U.sum(), 1e-300)  # noqa: E731
    return share(means.near_U) * np.maximum(spread_U, 0) ** alpha - share(means.other_U)


def direction(config: SAEConfig, sae: dict, feature: int, *, strength: float, f_max: float, layers: int) -> np.ndarray:
    """Steering vectors f32[L, D]: strength * f_max * W_dec[feature] after the autoencoder's layer, 0 after others."""
    out = np.zeros((layers, sae["w_dec"].shape[1]), np.float32)
    out[config.layer] = strength * f_max * np.asarray(sae["w_dec"][feature])
    return out


def forward_flops(config: SAEConfig, width: int, tokens: int) -> float:
    """FLOPs of encoding and decoding that many tokens; training takes three times as many."""
    return 4.0 * width * config.latents * tokens
