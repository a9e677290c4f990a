"""Small models of texts and pictures in the exact files of their repositories."""

from pathlib import Path

from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Qwen3VLConfig,
)

from tests.families import vocabularies
from tests.families.checkpoints import (
    WIDTH,
    small,
    write_modules,
    write_network,
    write_pooling,
    write_prompts,
)
from tests.families.vocabularies import write_json

VL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen3_vl(folder: Path) -> None:
    """qwen3-vl-2b-vdr: texts and pictures through one chat template, cut to a default size."""
    size = vocabularies.qwen(folder, 1024, ends=False)
    special = {name: number for number, name in enumerate(vocabularies.QWEN_SPECIAL)}
    text = small(size, 1024) | {"num_key_value_heads": 1, "head_dim": 16}
    text["rope_parameters"] = {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": WIDTH,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=special["<|image_pad|>"],
        video_token_id=special["<|video_pad|>"],
        vision_start_token_id=special["<|vision_start|>"],
        vision_end_token_id=special["<|vision_end|>"],
    )
    write_network(folder, config)
    (folder / "chat_template.jinja").write_text(VL_TEMPLATE)
    pixels = {"shortest_edge": 64, "longest_edge": 4096}
    image = {
        "patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": pixels,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }  # fmt: skip
    write_json(
        folder / "preprocessor_config.json",
        image | {"image_processor_type": "Qwen2VLImageProcessorFast"},
    )
    write_json(
        folder / "video_preprocessor_config.json",
        image | {"video_processor_type": "Qwen3VLVideoProcessor"},
    )
    output = {"method": "forward", "method_output_name": "last_hidden_state"}
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": output,
                "image": output,
                "image+text": output,
                "message": output | {"format": "structured"},
            },
            "module_output_name": "token_embeddings",
            "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
        },
    )
    write_pooling(folder / "1_Pooling", "lasttoken", "new")
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    write_modules(folder, modules, "new")
    prompts = {"default": "Represent the user's input.", "query": "Find a picture of this."}
    write_prompts(folder, prompts, default_prompt_name="default", truncate_dim=16)


def clip(folder: Path) -> None:
    """CLIP as sentence-transformers saves it today: a network for texts, another for pictures."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{one}</w>" for one in letters)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32).save_pretrained(folder)
    size = {
        "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64,
    }  # fmt: skip
    text = size | {
        "vocab_size": len(tokens), "max_position_embeddings": 32, "bos_token_id": 0,
        "eos_token_id": 1,
    }  # fmt: skip
    vision = size | {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    ways = {
        kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"}
        for kind in ("text", "image")
    }
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction", "modality_config": ways,
            "module_output_name": "sentence_embedding",
        },
    )  # fmt: skip
    write_modules(folder, [("Transformer", "")], "new")
