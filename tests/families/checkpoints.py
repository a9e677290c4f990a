"""Small models of random weights in the exact files of each family's repository.

In: an empty folder. Out: what the family's repository holds, small: the same module types, config
files in the same spelling, tokenizer files, prompts and special files.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    BertConfig,
    Gemma3TextConfig,
    GteConfig,
    ModernBertConfig,
    NomicBertConfig,
    PretrainedConfig,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from tests.families import vocabularies
from tests.families.vocabularies import write_json

WIDTH = 32
OLD = "sentence_transformers.models"
_NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Router": "sentence_transformers.base.modules.router.Router",
    "StaticEmbedding": (
        "sentence_transformers.sentence_transformer.modules.static_embedding.StaticEmbedding"
    ),
}
_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
ARCTIC_PROMPT = "Represent this sentence for searching relevant passages: "
QWEN_PROMPT = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)


def kind(name: str, spelling: str) -> str:
    return f"{OLD}.{name}" if spelling == "old" else _NEW[name]


def write_modules(folder: Path, modules: list[tuple[str, str]], spelling: str = "old") -> None:
    """Write modules.json; `modules` are class names and paths."""
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": kind(name, spelling)}
        for number, (name, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)


def write_transformer(folder: Path, max_length: int | None, spelling: str = "old") -> None:
    """Write a Transformer module's own file."""
    if spelling == "old":
        content: dict[str, Any] = {"max_seq_length": max_length, "do_lower_case": False}
    else:
        output = {"method": "forward", "method_output_name": "last_hidden_state"}
        content = {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": output},
            "module_output_name": "token_embeddings",
        }
    write_json(folder / "sentence_bert_config.json", content)


def write_pooling(folder: Path, mode: str, spelling: str = "old", width: int = WIDTH) -> None:
    if spelling == "old":
        flags = {flag: name == mode for name, flag in _FLAGS.items()}
        content = {"word_embedding_dimension": width} | flags | {"include_prompt": True}
    else:
        content = {"embedding_dimension": width, "pooling_mode": mode, "include_prompt": True}
    write_json(folder / "config.json", content)


def write_dense(folder: Path, width: int, out: int, bias: bool = True) -> None:
    write_json(
        folder / "config.json",
        {
            "in_features": width,
            "out_features": out,
            "bias": bias,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    weights = {"linear.weight": torch.randn(out, width) / width**0.5}
    if bias:
        weights["linear.bias"] = torch.randn(out) * 0.1
    save_file(weights, folder / "model.safetensors")


def write_prompts(folder: Path, prompts: dict[str, str], **more: object) -> None:
    content = {"__version__": {"sentence_transformers": "5.1.0"}, "prompts": prompts}
    content |= {"default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", content | more)


def write_network(folder: Path, config: PretrainedConfig, **listed: object) -> None:
    """Write config.json and weights that are random, and large enough that every part matters.

    Args:
        listed: what the repository's config.json says beside what transformers writes.
    """
    network = AutoModel.from_config(config).float()
    randomize(network)
    network.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    # As a repository saved by an older release, which knew nothing of these.
    written.pop("dtype", None)
    write_json(folder / "config.json", written | listed)


def randomize(network: torch.nn.Module) -> None:
    """Fresh weights of a trained model's size: attention and positions show in the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "embed" in name and parameter.ndim == 2:
                parameter.copy_(noise)
            elif parameter.ndim >= 2:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif name.endswith("weight"):
                parameter.add_(noise * 0.1)
            else:
                parameter.copy_(noise * 0.1)


def small(vocabulary: int, positions: int = 512) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": positions,
    }  # fmt: skip


def bert(
    folder: Path,
    pooling: str,
    prompts: dict[str, str],
    *,
    spelling: str = "old",
    ends: str = "Normalize",
    **listed: object,
) -> None:
    """Any repository of a BERT with one pooling."""
    size = vocabularies.wordpiece(folder)
    write_network(folder, BertConfig(**small(size)), **listed)
    write_transformer(folder, 512, spelling)
    write_pooling(folder / "1_Pooling", pooling, spelling)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if ends:
        modules.append((ends, f"2_{ends}"))
    write_modules(folder, modules, spelling)
    write_prompts(folder, prompts)


def arctic_m(folder: Path) -> None:
    """snowflake-arctic-embed-m-v1.5."""
    bert(folder, "cls", {"query": ARCTIC_PROMPT}, matryoshka_dimensions=[16])


def mxbai(folder: Path) -> None:
    """mxbai-embed-large-v1, which ends in its pooling."""
    bert(folder, "cls", {"query": ARCTIC_PROMPT, "passage": ""}, ends="")


def gte_bert(folder: Path) -> None:
    """gte-base and its like."""
    bert(folder, "mean", {})


def new_spelling(folder: Path) -> None:
    """Any of these, saved by a new sentence-transformers."""
    bert(folder, "mean", {"query": "query: ", "document": "passage: "}, spelling="new")


def leaf(folder: Path) -> None:
    """mdbr-leaf-mt: a small BERT, then Dense to the width of its teacher."""
    bert(folder, "mean", {"query": ARCTIC_PROMPT}, ends="")
    write_dense(folder / "2_Dense", WIDTH, 48)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]
    write_modules(folder, [*modules, ("Normalize", "3_Normalize")])


def xlm_roberta(folder: Path, prompts: dict[str, str], **listed: object) -> None:
    """A repository of XLM-RoBERTa with the first token's pooling."""
    size = vocabularies.unigram(folder)
    # 514 rows for 512 positions: the first is the padding token's id plus one.
    config = XLMRobertaConfig(**small(size, 514), pad_token_id=1, type_vocab_size=1)
    write_network(folder, config, **listed)
    write_transformer(folder, 512)
    write_pooling(folder / "1_Pooling", "cls")
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    write_modules(folder, modules)
    write_prompts(folder, prompts)


def arctic_l(folder: Path) -> None:
    """snowflake-arctic-embed-l-v2.0."""
    xlm_roberta(folder, {"query": "query: "}, matryoshka_dimensions=[16])


def bge_m3(folder: Path) -> None:
    """bge-m3, which is not an MRL model."""
    xlm_roberta(folder, {})


def legal_small(folder: Path) -> None:
    """A small multilingual fine-tune (multilingual-e5-small's kind): BERT, XLM-R's tokenizer."""
    size = vocabularies.unigram(folder)
    write_network(folder, BertConfig(**small(size), pad_token_id=1))
    write_transformer(folder, 512)
    write_pooling(folder / "1_Pooling", "mean")
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    write_modules(folder, modules)
    write_prompts(folder, {"query": "query: ", "document": "passage: "})


def dek21(folder: Path) -> None:
    """DEk21_hcmute_embedding: PhoBERT, whose tokenizer is Python code."""
    size = vocabularies.phobert(folder)
    config = RobertaConfig(**small(size, 258), pad_token_id=1, type_vocab_size=1)
    write_network(folder, config, tokenizer_class="PhobertTokenizer")
    write_transformer(folder, 256)
    write_pooling(folder / "1_Pooling", "mean")
    write_modules(folder, [("Transformer", ""), ("Pooling", "1_Pooling")])
    write_prompts(folder, {})


NOMIC_OLD = {
    "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_inner": 64, "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0, "layer_norm_epsilon": 1e-12, "prenorm": False,
    "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "use_rms_norm": False,
    "parallel_block": False, "activation_function": "swiglu", "n_positions": 8192,
    "auto_map": {
        "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
    },
}  # fmt: skip


def nomic(folder: Path, ends: str = "", **listed: object) -> None:
    """nomic-embed-text-v1.5: it ends in its pooling, layer norm is for the caller."""
    size = vocabularies.wordpiece(folder)
    write_network(folder, NomicBertConfig(**small(size)), **(NOMIC_OLD | listed))
    write_transformer(folder, 512)
    write_pooling(folder / "1_Pooling", "mean")
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    write_modules(folder, [*modules, (ends, f"2_{ends}")] if ends else modules)
    prompts = {"search_query": "search_query: ", "search_document": "search_document: "}
    write_prompts(folder, prompts)


def static(folder: Path) -> None:
    """static-retrieval-mrl-en-v1 and static-similarity-mrl-multilingual-v1: one table."""
    inner = folder / "0_StaticEmbedding"
    inner.mkdir(parents=True)
    tokenizer = vocabularies.wordpiece_tokenizer()
    tokenizer.save(str(inner / "tokenizer.json"))
    table = {"embedding.weight": torch.randn(tokenizer.get_vocab_size(), WIDTH)}
    save_file(table, inner / "model.safetensors")
    write_modules(folder, [("StaticEmbedding", "0_StaticEmbedding")])
    write_prompts(folder, {})


def model2vec(folder: Path) -> None:
    """potion's: files in the root, the table under another key, shared rows with weights."""
    tokenizer = vocabularies.wordpiece_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    table = {
        "embeddings": torch.randn(50, WIDTH),
        "mapping": torch.arange(size) % 50,
        "weights": torch.rand(size),
    }
    save_file(table, folder / "model.safetensors")
    write_json(folder / "config.json", {"model_type": "model2vec", "normalize": True})
    write_modules(folder, [("StaticEmbedding", "."), ("Normalize", "1_Normalize")])


def qwen3(folder: Path) -> None:
    """Qwen3-Embedding: last token, left padding, an instruction before queries."""
    size = vocabularies.qwen(folder)
    sizes = small(size) | {"num_key_value_heads": 1, "head_dim": 16}
    config = Qwen3Config(**sizes, tie_word_embeddings=True)
    write_network(folder, config, architectures=["Qwen3ForCausalLM"])
    write_pooling(folder / "1_Pooling", "lasttoken")
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    write_modules(folder, modules)
    write_prompts(folder, {"query": QWEN_PROMPT, "document": ""})


def embedding_gemma(folder: Path) -> None:
    """embeddinggemma-300m: sees both ways, near and far layers, two Dense after the pooling."""
    size = vocabularies.gemma(folder)
    config = Gemma3TextConfig(
        **(small(size) | {"num_key_value_heads": 1, "head_dim": 16}),
        sliding_window=256,
        layer_types=["sliding_attention", "full_attention"],
        use_bidirectional_attention=True,
        query_pre_attn_scalar=16,
        pad_token_id=0,
    )
    write_network(folder, config)
    # transformers halves the window of a model that sees both ways, and writes what it halved.
    written = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", written | {"sliding_window": 256})
    write_transformer(folder, 512)
    write_pooling(folder / "1_Pooling", "mean")
    write_dense(folder / "2_Dense", WIDTH, 64, bias=False)
    write_dense(folder / "3_Dense", 64, WIDTH, bias=False)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]
    write_modules(folder, [*modules, ("Dense", "3_Dense"), ("Normalize", "4_Normalize")])
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    write_prompts(folder, prompts | {"Clustering": "task: clustering | query: "})


def modern_bert(folder: Path) -> None:
    """ModernBERT's embedders: one layer in some sees all, the others what is near."""
    size = vocabularies.modern(folder)
    config = ModernBertConfig(
        **small(size),
        local_attention=256,
        global_attn_every_n_layers=2,
        pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    write_network(folder, config)
    write_transformer(folder, 512)
    write_pooling(folder / "1_Pooling", "mean")
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    write_modules(folder, modules)
    write_prompts(folder, {"query": "search_query: ", "document": "search_document: "})


def gte_native(folder: Path) -> None:
    """gte-multilingual-base as transformers has taken it over."""
    size = vocabularies.unigram(folder)
    write_network(folder, GteConfig(**small(size), pad_token_id=1))
    write_transformer(folder, 512)
    write_pooling(folder / "1_Pooling", "cls")
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    write_modules(folder, modules)
    write_prompts(folder, {})


def leaf_asym(folder: Path, spelling: str = "old") -> None:
    """mdbr-leaf-mt-asym: a small model reads queries, its teacher reads documents."""
    query, document = folder / "query_0_Transformer", folder / "document_0_Transformer"
    size = vocabularies.wordpiece(query, 128)
    write_network(query, BertConfig(**small(size, 128)))
    write_transformer(query, 128, spelling)
    write_pooling(folder / "query_1_Pooling", "mean", spelling)
    write_dense(folder / "query_2_Dense", WIDTH, 48)
    size = vocabularies.unigram(document, 256)
    config = XLMRobertaConfig(**(small(size, 258) | {"hidden_size": 48}), pad_token_id=1)
    write_network(document, config)
    write_transformer(document, 256, spelling)
    write_pooling(folder / "document_1_Pooling", "cls", spelling, width=48)
    names = {
        "query": ["Transformer", "Pooling", "Dense"],
        "document": ["Transformer", "Pooling"],
    }
    structure = {
        role: [f"{role}_{number}_{name}" for number, name in enumerate(listed)]
        for role, listed in names.items()
    }
    types = {
        module: kind(module.rpartition("_")[2], spelling)
        for listed in structure.values()
        for module in listed
    }
    parameters = {"default_route": "document", "allow_empty_key": True}
    content = {"types": types, "structure": structure, "parameters": parameters}
    write_json(folder / "router_config.json", content)
    write_modules(folder, [("Router", ""), ("Normalize", "1_Normalize")], spelling)
    write_prompts(folder, {"query": ARCTIC_PROMPT, "document": ""})
