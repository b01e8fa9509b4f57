"""Weights in and out of the Hugging Face layout: parity with transformers (N6), exact round trips, refusals (C2)."""

import json
import pathlib
import shutil
import struct
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from ceiling.model import ModelConfig, Policy, forward, hf, init, make_mesh, shards, table
from ceiling.model.sharding import param_shardings
from ceiling.rollout import generate

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
NAMES = ("gemma3", "llama", "llama_tied", "olmo2", "qwen2", "qwen3")
run = jax.jit(forward, static_argnums=1)


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


def golden(name):
    with np.load(GOLDENS / name / "expected.npz", allow_pickle=False) as file:
        return dict(file)


def logits_of(params, config, expected):
    """Our logits at the real tokens of the three batches, as expected.npz holds them."""
    out = {}
    for side in ("left", "right"):
        mask_BT = expected[f"{side}_mask"]
        out[side] = run(params, config, expected[f"{side}_tokens"], segments_BT=mask_BT)[mask_BT > 0]
    out["packed"] = run(params, config, expected["packed_tokens"], segments_BT=expected["packed_segments"])[0]
    return out


def greedy(params, config, expected):
    options = dict(n=1, max_new_tokens=len(expected["greedy"]), temperature=0.0, top_p=1.0, seed=0)
    return generate(Policy(params, config, ()), [expected["prompt"]], **options).tokens[0, 0]


def tensors(folder):
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def same_bytes(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype and one[name].shape == other[name].shape, name
        assert one[name].tobytes() == other[name].tobytes(), name


# --- parity -------------------------------------------------------------------------------------------------


def test_N6_goldens_cover_every_family():
    from ceiling.model.families import FAMILIES

    folders = {p.name for p in GOLDENS.iterdir()}
    assert folders == set(NAMES)
    kinds = {json.loads((GOLDENS / n / "config.json").read_text())["model_type"] for n in NAMES}
    assert kinds == set(FAMILIES)
    assert sum(p.stat().st_size for p in GOLDENS.rglob("*")) < 2_000_000


@pytest.mark.parametrize("name", NAMES)
def test_N6_logits_and_greedy_tokens_equal_transformers(name):
    config, params = hf.load(GOLDENS / name)
    expected = golden(name)
    for batch, logits in logits_of(params, config, expected).items():
        wanted = expected[f"{batch}_logits"]
        assert logits.shape == wanted.shape and np.std(wanted) > 0.3
        assert np.abs(logits - wanted).max() < 1e-4, batch
    np.testing.assert_array_equal(greedy(params, config, expected), expected["greedy"])


# --- exact round trips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000, 1])
@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_bit_exact_in_one_file_and_in_many(name, shard_bytes, tmp_path):
    config, params = hf.load(GOLDENS / name)
    hf.save(tmp_path / "out", config, params, shard_bytes=shard_bytes)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 1 if shard_bytes > 10**9 else len(files) > 3
    same_bytes(tensors(GOLDENS / name), tensors(tmp_path / "out"))
    again, params_again = hf.load(tmp_path / "out")
    assert again == config
    same_bytes(*({path: np.asarray(leaf) for path, leaf in flat(tree).items()} for tree in (params, params_again)))


def test_an_index_names_every_tensor_and_the_total_size(tmp_path):
    config, params = hf.load(GOLDENS / "qwen2")
    hf.save(tmp_path, config, params, shard_bytes=30_000)
    index = json.loads((tmp_path / shards.INDEX).read_text())
    for file in sorted(tmp_path.glob("*.safetensors")):
        content = load_file(file)
        assert {n for n, f in index["weight_map"].items() if f == file.name} == content.keys()
        assert sum(x.nbytes for x in content.values()) <= 30_000
        with shards.safetensors.safe_open(file, "numpy") as handle:
            assert handle.metadata() == {"format": "pt"}
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors(tmp_path).values())
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_any_dtype_is_kept_or_cast(dtype, tmp_path):
    copy = tmp_path / "in"
    shutil.copytree(GOLDENS / "qwen3", copy)
    stored = {k: v.astype(jnp.dtype(dtype)) for k, v in load_file(copy / shards.SINGLE).items()}
    save_file(stored, copy / shards.SINGLE)
    config, params = hf.load(copy)
    assert config.param_dtype == config.compute_dtype == dtype
    assert {str(x.dtype) for x in flat(params).values()} == {dtype}
    hf.save(tmp_path / "out", config, params)
    same_bytes(stored, tensors(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype
    config, wide = hf.load(copy, dtype=jnp.float32)
    assert config.param_dtype == "float32"
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(jnp.float32), b), params, wide)


def test_float64_is_read_only_when_told_the_target(tmp_path):
    shutil.copytree(GOLDENS / "qwen2", tmp_path / "in")
    stored = load_file(tmp_path / "in" / shards.SINGLE)
    save_file({k: v.astype(np.float64) for k, v in stored.items()}, tmp_path / "in" / shards.SINGLE)
    with pytest.raises(ValueError, match="float64 is not supported; pass dtype="):
        hf.load(tmp_path / "in")
    _, params = hf.load(tmp_path / "in", dtype="float32")
    np.testing.assert_array_equal(params["embed"], stored["model.embed_tokens.weight"])


def test_a_model_made_here_is_exported_and_comes_back(make_model, tmp_path):
    """The lab's own architecture is a Llama."""
    config, params = make_model()
    hf.save(tmp_path, config, params)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    again, params_again = hf.load(tmp_path)
    assert ModelConfig(**{**vars(again), "embed_std": config.embed_std}) == config
    jax.tree.map(np.testing.assert_array_equal, params, params_again)


def test_tokenizer_files_and_end_tokens_travel(tmp_path):
    config, params = hf.load(GOLDENS / "qwen2")
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "notes.txt").write_text("stays")
    (source / "generation_config.json").write_text('{"eos_token_id": [5, 7], "temperature": 0.7}')

    class Tokenizer:
        pass

    tokenizer = Tokenizer()
    tokenizer.source = source
    for i, given in enumerate((source, str(source), tokenizer)):
        out = tmp_path / str(i)
        hf.save(out, config, params, given)
        assert (out / "tokenizer.json").exists() and not (out / "notes.txt").exists()
        assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [5, 7]}
        assert hf.stop_ids(out) == (5, 7)
        (out / "generation_config.json").unlink()
        assert hf.stop_ids(out) == (5, 7), "config.json says it as well"
    hf.save(tmp_path / "none", config, params)
    assert hf.stop_ids(tmp_path / "none") == () and not (tmp_path / "none" / "generation_config.json").exists()
    with pytest.raises(ValueError, match="^tokenizer: .*nowhere is not a directory"):
        hf.save(tmp_path / "no", config, params, tmp_path / "nowhere")
    assert not (tmp_path / "no").exists()


def test_a_written_checkpoint_is_never_overwritten(tmp_path):
    config, params = hf.load(GOLDENS / "qwen2")
    hf.save(tmp_path, config, params)
    with pytest.raises(ValueError, match="holds weights already"):
        hf.save(tmp_path, config, params)


# --- sharded loading ----------------------------------------------------------------------------------------

WIDE = ModelConfig(vocab_size=64, width=32, ffn=64, layers=3, heads=4, kv_heads=2, head_dim=8, qkv_bias=True,
                   tied=False)  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide") / "checkpoint"
    params = init(WIDE, jax.random.key(0))
    hf.save(path, WIDE, params, shard_bytes=12_000)
    assert len(list(path.glob("*.safetensors"))) > 5
    return path, params


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2), (1, 8, 1), (8, 1, 1)], ids=str)
def test_eight_devices_hold_what_one_holds(wide, sizes):
    path, params = wide
    mesh = make_mesh(*sizes)
    config, loaded = hf.load(path, mesh=mesh)
    wanted = flat(param_shardings(config, mesh))
    for name, leaf in flat(loaded).items():
        assert leaf.sharding == wanted[name], name
        np.testing.assert_array_equal(leaf, flat(params)[name], err_msg=name)
    out = path.parent / f"again{sizes}"
    hf.save(out, config, loaded)
    same_bytes(tensors(path), tensors(out))


def test_a_device_reads_its_own_block_and_nothing_twice(wide, monkeypatch):
    """Host memory: no buffer larger than one weight's local part, no block larger than one layer of it, and
    with weights split over all devices every byte of the checkpoint is read once."""
    path, _ = wide
    blocks, parts = [], []
    read, read_block = shards.Shards.read, hf.read_block

    def spy_read(self, name, window):
        blocks.append((name, read(self, name, window).nbytes))
        return read(self, name, window)

    def spy_block(files, place, shape, index, dtype):
        out = read_block(files, place, shape, index, dtype)
        parts.append((place.names[0], out.nbytes, int(np.prod(shape)) * out.itemsize))
        return out

    monkeypatch.setattr(shards.Shards, "read", spy_read)
    monkeypatch.setattr(hf, "read_block", spy_block)
    _, params = hf.load(path, mesh=make_mesh(fsdp=4, tensor=2))
    local = {name: leaf.addressable_shards[0].data.nbytes for name, leaf in flat(params).items()}
    assert max(size for _, size, _ in parts) == max(local.values())
    matrices = [(size, whole) for name, size, whole in parts if "proj.weight" in name or "lm_head" in name]
    assert len(matrices) == 8 * 8 and all(size == whole // 8 for size, whole in matrices)
    stored = {name: value.nbytes for name, value in tensors(path).items()}
    by_name = {}
    for name, size in blocks:
        assert size <= max(local.values())
        by_name[name] = by_name.get(name, 0) + size
    split = [name for name in stored if "proj.weight" in name or "lm_head" in name or "embed" in name]
    assert {name: by_name[name] for name in split} == {name: stored[name] for name in split}


def test_host_memory_stays_near_one_weight(tmp_path):
    """Traced allocations while loading 24 MB of weights in bfloat16 from 48 MB of files, one weight at a time:
    what is held besides the weights themselves is about one weight, not the checkpoint."""
    config = ModelConfig(vocab_size=512, width=256, ffn=1024, layers=12, heads=4, kv_heads=4, head_dim=64)
    hf.save(tmp_path, config, init(config, jax.random.key(0)), shard_bytes=4_000_000)
    itemsize = 2
    biggest = max(int(np.prod(s.shape)) for s in table(config).values()) * itemsize
    held = []
    make = jax.make_array_from_callback

    def traced(shape, sharding, callback):
        tracemalloc.start()
        try:
            out = jax.block_until_ready(make(shape, sharding, callback))
            held.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "make_array_from_callback", traced)
        hf.load(tmp_path, dtype="bfloat16")
    one_layer_on_disk = 256 * 1024 * 4
    assert biggest <= max(held) < biggest + 2 * one_layer_on_disk + 1_000_000


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """A copy that a test may break: qwen2 in one file (tied)."""
    path = tmp_path / "checkpoint"
    shutil.copytree(GOLDENS / "qwen2", path)
    return path


def refused(path, message, **options):
    with pytest.raises(ValueError, match=message) as error:
        hf.load(path, **options)
    assert "\n" not in str(error.value)


def rewrite(path, change):
    content = load_file(path / shards.SINGLE)
    change(content)
    save_file(content, path / shards.SINGLE)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "weights.pth", "model.pkl"])
def test_C2_pickled_weights_are_refused_unopened(checkpoint, file):
    (checkpoint / shards.SINGLE).unlink()
    (checkpoint / file).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    refused(checkpoint, f"pickled weights are refused, unpickling {file}")
    refused(checkpoint / file, "not a directory; pickled weights are refused")


def test_C2_safetensors_beside_a_pickle_are_used(checkpoint):
    (checkpoint / "pytorch_model.bin").write_bytes(b"junk")
    hf.load(checkpoint)


def test_C2_no_directory_or_nothing_in_it(tmp_path):
    refused(tmp_path / "Qwen/Qwen3-0.6B", "not a directory; download the checkpoint first")
    refused(tmp_path, "no model.safetensors and no model.safetensors.index.json")


def header(content: bytes, length=None, body=b""):
    return struct.pack("<Q", len(content) if length is None else length) + content + body


def entry(**tensors):
    return json.dumps({k: {"dtype": "F32", "shape": s, "data_offsets": o} for k, (s, o) in tensors.items()}).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header(b"{}", 2**63), "header too large"),
        (header(entry(a=([2], [0, 8]), b=([2], [4, 12])), body=b"0" * 12), "invalid offset"),
        (header(entry(a=([2], [0, 8])), body=b"0" * 4), "not fully covered"),
        (header(entry(a=([2], [8, 0])), body=b"0" * 8), "invalid offset"),
        (header(entry(a=([2**40, 2**40], [0, 8])), body=b"0" * 8), "overflow"),
        (header(entry(a=([3], [0, 8])), body=b"0" * 8), "invalid shape"),
        (header(b"hello"), "invalid JSON"),
        (b"", "header too small"),
    ],
    ids=["length 2^63", "overlap", "beyond the end", "backwards", "overflow", "shape", "not JSON", "empty"],
)
def test_C2_corrupt_headers(checkpoint, content, reason):
    (checkpoint / shards.SINGLE).write_bytes(content)
    refused(checkpoint, rf"model\.safetensors: not a sound safetensors file \(.*{reason}")


def test_C2_a_truncated_file(checkpoint):
    file = checkpoint / shards.SINGLE
    file.write_bytes(file.read_bytes()[:-100])
    refused(checkpoint, "not a sound safetensors file")


def test_C2_missing_extra_and_misshapen_tensors(checkpoint):
    whole = (checkpoint / shards.SINGLE).read_bytes()
    rewrite(checkpoint, lambda c: c.pop("model.layers.1.mlp.up_proj.weight"))
    refused(checkpoint, r"1 tensor\(s\) missing: model\.layers\.1\.mlp\.up_proj\.weight")
    (checkpoint / shards.SINGLE).write_bytes(whole)
    rewrite(checkpoint, lambda c: c.update({"model.layers.0.extra": np.zeros(3, np.float32)}))
    refused(checkpoint, r"1 tensor\(s\) that config.json has no place for: model\.layers\.0\.extra")
    (checkpoint / shards.SINGLE).write_bytes(whole)
    rewrite(checkpoint, lambda c: c.update({"model.norm.weight": np.zeros(31, np.float32)}))
    refused(checkpoint, r"model\.norm\.weight is \(31,\) on disk, config.json wants \(32,\)")
    (checkpoint / shards.SINGLE).write_bytes(whole)
    rewrite(checkpoint, lambda c: c.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}))
    hf.load(checkpoint)  # derived from the config, as transformers sees it


def test_C2_mixed_and_quantised_dtypes(checkpoint):
    rewrite(checkpoint, lambda c: c.update({"model.norm.weight": c["model.norm.weight"].astype(np.float16)}))
    refused(checkpoint, r"several dtypes \(float16, float32\); pass dtype=")
    hf.load(checkpoint, dtype="float32")
    refused(checkpoint, "dtype int32 is not supported", dtype="int32")
    rewrite(checkpoint, lambda c: c.update({"model.norm.weight": np.zeros(32, np.int8)}))
    refused(checkpoint, r"model\.norm\.weight is stored as I8", dtype="float32")


def test_tied_checkpoints_may_store_the_head_if_it_is_the_embedding(checkpoint):
    rewrite(checkpoint, lambda c: c.update({"lm_head.weight": c["model.embed_tokens.weight"].copy()}))
    config, params = hf.load(checkpoint)
    assert config.tied and "head" not in params
    rewrite(checkpoint, lambda c: c["lm_head.weight"].__setitem__((60, 31), 9.0))
    refused(checkpoint, "lm_head.weight differs from model.embed_tokens.weight although tie_word_embeddings is true")
    settings = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": False}))
    config, params = hf.load(checkpoint)
    assert not config.tied and params["head"][31, 60] == 9.0
    rewrite(checkpoint, lambda c: c.pop("lm_head.weight"))
    refused(checkpoint, r"1 tensor\(s\) missing: lm_head\.weight")


def test_C2_shards_that_do_not_fit_their_index(checkpoint, tmp_path):
    config, params = hf.load(checkpoint)
    path = tmp_path / "many"
    hf.save(path, config, params, shard_bytes=20_000)
    index = json.loads((path / shards.INDEX).read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]

    def indexed(**changes):
        (path / shards.INDEX).write_text(json.dumps({"weight_map": {**index["weight_map"], **changes}}))

    indexed(**{"model.norm.weight": "../elsewhere.safetensors"})
    refused(path, r"'../elsewhere\.safetensors' is not a safetensors file of the same directory")
    indexed(**{"model.norm.weight": "model.bin"})
    refused(path, "'model.bin' is not a safetensors file")
    indexed(ghost=first)
    refused(path, f"{first}: ghost is not in this shard")
    indexed()
    shutil.move(path / second, path / "away")
    refused(path, f"{second}: a shard that {shards.INDEX} names is missing")
    shutil.copy(path / first, path / second)
    refused(path, "not in this shard|in two shards")
    for text in ("[1]", "{", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "\xff"):
        (path / shards.INDEX).write_text(text, encoding="latin-1")
        refused(path, "JSON|weight_map")


def test_a_missing_or_odd_config_json(checkpoint):
    good = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").unlink()
    refused(checkpoint, r"config\.json: missing")
    for text, message in [("{", "not readable as JSON"), ("[]", "must hold a JSON object"), ("{}", "model_type=None"),
                          (json.dumps({**json.loads(good), "rope_parameters": 5}), "wrong type")]:  # fmt: skip
        (checkpoint / "config.json").write_text(text)
        refused(checkpoint, message)


def test_adapters_and_unfitting_params_are_not_saved(make_model, tmp_path):
    config, params = make_model(lora_rank=2)
    with pytest.raises(ValueError, match="merge_lora first"):
        hf.save(tmp_path / "a", config, params)
    config, params = make_model()
    with pytest.raises(ValueError, match="differ in which weights exist: final_norm"):
        hf.save(tmp_path / "a", config, {k: v for k, v in params.items() if k != "final_norm"})
    with pytest.raises(ValueError, match=r"params: final_norm is \(\(16,\), 'bfloat16'\), the config wants"):
        hf.save(tmp_path / "a", config, {**params, "final_norm": params["final_norm"].astype(jnp.bfloat16)})
    assert not (tmp_path / "a").exists()


def test_read_config_takes_runtime_fields_and_reads_no_weights(checkpoint):
    (checkpoint / shards.SINGLE).unlink()
    config = hf.read_config(checkpoint, remat="dots", lora_rank=4, compute_dtype="bfloat16")
    assert (config.remat, config.lora_rank) == ("dots", 4)
    assert (config.param_dtype, config.compute_dtype) == ("float32", "bfloat16")
