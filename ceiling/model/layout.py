"""Where every weight of our table lives in a checkpoint of the Hugging Face layout, and in which shape.

transformers stores a linear map as [outputs, inputs], heads flattened, one tensor per layer; our table has
[inputs, heads, head_dim], stacked on a layer axis. `stored(config)` is the one map between the two: it is
read to load, to save and to check names and shapes. No value is ever computed, so both directions are exact.
"""

import dataclasses
import math

import numpy as np

from ceiling.model.config import ModelConfig, table

# Our name -> (tensor of the checkpoint, which of our axes make up each stored axis).
WHOLE_MODEL = {
    "embed": ("model.embed_tokens.weight", ((0,), (1,))),
    "final_norm": ("model.norm.weight", ((0,),)),
    "head": ("lm_head.weight", ((1,), (0,))),
}
PER_LAYER = {
    "wq": ("self_attn.q_proj.weight", ((1, 2), (0,))),
    "wk": ("self_attn.k_proj.weight", ((1, 2), (0,))),
    "wv": ("self_attn.v_proj.weight", ((1, 2), (0,))),
    "wo": ("self_attn.o_proj.weight", ((2,), (0, 1))),
    "bq": ("self_attn.q_proj.bias", ((0, 1),)),
    "bk": ("self_attn.k_proj.bias", ((0, 1),)),
    "bv": ("self_attn.v_proj.bias", ((0, 1),)),
    "q_norm": ("self_attn.q_norm.weight", ((0,),)),
    "k_norm": ("self_attn.k_norm.weight", ((0,),)),
    "w_gate": ("mlp.gate_proj.weight", ((1,), (0,))),
    "w_up": ("mlp.up_proj.weight", ((1,), (0,))),
    "w_down": ("mlp.down_proj.weight", ((1,), (0,))),
    "attn_norm": ("input_layernorm.weight", ((0,),)),
    "attn_post_norm": ("post_attention_layernorm.weight", ((0,),)),
    "mlp_norm": ("pre_feedforward_layernorm.weight", ((0,),)),
    "mlp_post_norm": ("post_feedforward_layernorm.weight", ((0,),)),
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """One weight of our table in the checkpoint. `names` has a tensor per layer, or one for a weight that is
    not stacked; `sizes` are our axes of one tensor, without the layer axis."""

    names: tuple[str, ...]
    stacked: bool
    sizes: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of each tensor in the checkpoint."""
        return tuple(math.prod(self.sizes[axis] for axis in group) for group in self.groups)

    def window(self, part: tuple[slice, ...]) -> tuple[slice, ...]:
        """The block of a stored tensor that holds `part` (slices of our axes). Of a flattened pair of axes
        only the first may be cut: head_dim is never sharded."""
        out = []
        for first, *rest in self.groups:
            inner = math.prod(self.sizes[axis] for axis in rest)
            start, stop, _ = part[first].indices(self.sizes[first])
            out.append(slice(start * inner, stop * inner))
        return tuple(out)

    def copy(self, block: np.ndarray, out: np.ndarray) -> None:
        """Write a block of the stored tensor into `out`, in our axes and dtype, some 64 stored rows at a time:
        transposing stays in the processor's cache, which is three times faster than in one go."""
        order = [axis for group in self.groups for axis in group]
        split = []
        for size, (_, *rest) in zip(block.shape, self.groups, strict=True):
            inner = [self.sizes[axis] for axis in rest]
            split += [size // math.prod(inner), *inner]
        ours = block.reshape(split).transpose(np.argsort(order))
        first, *rest = self.groups[0]
        step = max(1, 64 // math.prod(self.sizes[axis] for axis in rest))
        for start in range(0, ours.shape[first], step):
            strip = (*[slice(None)] * first, slice(start, start + step))
            out[strip] = ours[strip]

    def theirs(self, weight: np.ndarray) -> np.ndarray:
        """A whole tensor of ours as it is stored."""
        return np.ascontiguousarray(weight.transpose([a for g in self.groups for a in g])).reshape(self.shape)


def stored(config: ModelConfig) -> dict[str, Stored]:
    """{path of our table: where it is stored}. Adapters have no place in a checkpoint: merge them first."""
    out = {}
    for path, spec in table(config).items():
        name = path.removeprefix("layers/")
        if path in WHOLE_MODEL:
            tensor, groups = WHOLE_MODEL[path]
            out[path] = Stored((tensor,), False, spec.shape, groups)
            continue
        tensor, groups = PER_LAYER[name]
        if name == "mlp_norm" and config.norms == "pre":  # their name tells the place, not the purpose
            tensor, _ = PER_LAYER["attn_post_norm"]
        if name in ("q_norm", "k_norm") and config.qk_norm == "width":
            groups = ((0, 1),)
        names = tuple(f"model.layers.{layer}.{tensor}" for layer in range(config.layers))
        out[path] = Stored(names, True, spec.shape[1:], groups)
    return out
