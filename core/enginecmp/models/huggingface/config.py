"""What a config.json and a GGUF file's metadata say of one and the same model, in either direction.

Whatever one of the two cannot say is refused: a converted model that computes something else would be worse than none.
"""

from __future__ import annotations

from typing import Any

from enginecmp.models.gguf_file import GGUFFile
from enginecmp.models.gguf_keys import GGUFKeys
from enginecmp.models.gguf_write import field
from enginecmp.models.huggingface.config_keys import MAX_HEADS, MAX_LAYERS, ConfigKeys
from enginecmp.models.huggingface.folder import HFFolder
from enginecmp.models.huggingface.layout import ARCHITECTURES, HFShape
from enginecmp.models.huggingface.rope import rope_of_config, rope_of_gguf, rounded

_TYPES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "phi3": "phi3", "gpt2": "gpt2"}
"""`model_type` → GGUF architecture."""

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
_FIX = "convert the model with other tools, or name a file of another"

_KNOWN_KEYS = frozenset(
    {
        *("attention.causal", "attention.head_count", "attention.head_count_kv", "attention.key_length"),
        *("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "attention.sliding_window"),
        *("attention.value_length", "block_count", "context_length", "embedding_length", "feed_forward_length"),
        *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.attn_factor"),
        *("rope.scaling.factor", "rope.scaling.finetuned", "rope.scaling.original_context_length"),
        *("rope.scaling.type", "tensor_data_layout", "vocab_size"),
    }
)


def shape_of_folder(folder: HFFolder) -> HFShape:
    """Return what a folder's config.json says.

    Raises:
        UnsupportedModel: another architecture, or what is not implemented here.
    """
    keys = ConfigKeys(folder.path, folder.config)
    kind = folder.config.get("model_type")
    if not isinstance(kind, str) or kind not in _TYPES:
        keys.refuse(f"model_type {', '.join(_TYPES)}", repr(kind)[:60])
    if kind == "gpt2":
        return _gpt2_of_folder(keys)
    keys.require("hidden_act", "silu")
    keys.require("use_sliding_window", False)
    for kinds in folder.config.get("layer_types") or []:
        if kinds not in ("full_attention", "sliding_attention") or (kinds != "full_attention" and kind == "qwen2"):
            keys.refuse("one kind of attention in 'layer_types'", repr(kinds)[:60])
    heads = keys.integer("num_attention_heads", most=MAX_HEADS)
    kv_heads = keys.integer("num_key_value_heads", default=heads, most=MAX_HEADS)
    hidden = keys.integer("hidden_size")
    head_dim = keys.integer("head_dim", default=max(1, hidden // heads))
    if heads % kv_heads or head_dim % 2:
        keys.refuse("heads in whole groups and an even head_dim", f"{heads}, {kv_heads} and {head_dim}")
    context = keys.integer("max_position_embeddings")
    window = 0 if kind == "qwen2" or keys.get("sliding_window") is None else keys.integer("sliding_window")
    return HFShape(
        architecture=_TYPES[kind],
        layers=keys.integer("num_hidden_layers", most=MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=keys.integer("intermediate_size"),
        context=context,
        epsilon=keys.number("rms_norm_eps", default=1e-6),
        # A window as long as the context cuts nothing.
        window=window if window < context else 0,
        rope=rope_of_config(keys, kind, head_dim, context),
    )


def _gpt2_of_folder(keys: ConfigKeys) -> HFShape:
    keys.require("activation_function", "gelu_new", "gelu_pytorch_tanh")
    keys.require("scale_attn_weights", True)
    keys.require("scale_attn_by_inverse_layer_idx", False)
    heads, hidden = keys.integer("n_head", most=MAX_HEADS), keys.integer("n_embd")
    if hidden % heads:
        keys.refuse("n_embd to be a multiple of n_head", f"{hidden} and {heads}")
    return HFShape(
        architecture="gpt2",
        layers=keys.integer("n_layer", most=MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        feed_forward=keys.integer("n_inner", default=4 * hidden),
        context=keys.integer("n_positions", "n_ctx"),
        epsilon=keys.number("layer_norm_epsilon", default=1e-5),
        window=0,
        rope=None,
    )


def shape_of_gguf(file: GGUFFile) -> HFShape:
    """Return what a GGUF file's metadata says.

    Raises:
        UnsupportedModel: another architecture, or what a config.json of its class cannot say.
    """
    keys = GGUFKeys(f"{file.path}", file, ARCHITECTURES, fix=_FIX)
    keys.refuse_unknown(_KNOWN_KEYS)
    if not keys.flag("attention.causal", True):
        keys.refuse("causal attention", "attention.causal = false")
    gpt2 = keys.architecture == "gpt2"
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count", most=MAX_HEADS)
    kv_heads = keys.integer("attention.head_count_kv", heads)
    head_dim = keys.integer("attention.key_length", hidden // heads)
    value_dim = keys.integer("attention.value_length", head_dim)
    if heads % kv_heads or value_dim != head_dim or (gpt2 and (heads != kv_heads or heads * head_dim != hidden)):
        keys.refuse("heads in whole groups, keys as wide as values", f"{heads}, {kv_heads}, {head_dim}, {value_dim}")
    context = keys.integer("context_length")
    norm = "layer_norm_epsilon" if gpt2 else "layer_norm_rms_epsilon"
    window = keys.integer("attention.sliding_window", 0, least=0)
    if window and keys.architecture == "qwen2":
        keys.refuse("no sliding window", f"{window}")
    return HFShape(
        architecture=keys.architecture,
        layers=keys.integer("block_count", most=MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=keys.integer("feed_forward_length"),
        context=context,
        epsilon=keys.number(f"attention.{norm}", above=0.0),
        window=window if window < context else 0,
        rope=None if gpt2 else rope_of_gguf(file, keys, head_dim, context),
    )


def gguf_fields(shape: HFShape, vocabulary: int) -> list[bytes]:
    """Return a shape as GGUF metadata.

    Args:
        shape: of the model.
        vocabulary: rows of the embedding.
    """
    arch = shape.architecture
    norm = "layer_norm_epsilon" if arch == "gpt2" else "layer_norm_rms_epsilon"
    numbers = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "vocab_size": vocabulary,
    }
    if shape.head_dim * shape.heads != shape.hidden:
        numbers |= {"attention.key_length": shape.head_dim, "attention.value_length": shape.head_dim}
    if shape.window:
        numbers["attention.sliding_window"] = shape.window
    fields = [field(f"{arch}.{key}", "UINT32", value) for key, value in numbers.items()]
    fields.append(field(f"{arch}.attention.{norm}", "FLOAT32", shape.epsilon))
    return fields if shape.rope is None else fields + shape.rope.gguf_fields(arch)


def config_json(shape: HFShape, vocabulary: int, dtype: str, tied: bool, biased: bool) -> dict[str, Any]:
    """Return a shape as the object of a config.json.

    Args:
        shape: of the model.
        vocabulary: rows of the embedding.
        dtype: "float32", "float16" or "bfloat16".
        tied: the head is the embedding.
        biased: llama's attention has biases.
    """
    kind = "mistral" if shape.architecture == "llama" and shape.window else shape.architecture
    common = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if kind == "gpt2":
        return common | {
            "n_layer": shape.layers,
            "n_embd": shape.hidden,
            "n_head": shape.heads,
            "n_inner": shape.feed_forward,
            "n_positions": shape.context,
            "n_ctx": shape.context,
            "layer_norm_epsilon": rounded(shape.epsilon),
            "activation_function": "gelu_new",
        }
    assert shape.rope is not None
    config = common | {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.feed_forward,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": rounded(shape.epsilon),
        "hidden_act": "silu",
        **shape.rope.config_json(kind),
    }
    if kind == "llama":
        config["attention_bias"] = biased
    if kind in ("mistral", "phi3"):
        config["sliding_window"] = shape.window or None
    return config
