"""Tokenizers of every kind that the families use, trained in memory, as their repositories' files.

In: a folder. Out: the tokenizer's files in it, in the layout of the real repositories.
"""

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.processors import RobertaProcessing, TemplateProcessing

_TEXT = (
    "a the of and to in is that for it as was with be by on not he his but at are this have from "
    "or had an they which one you were all her she there would their we him been has when who will "
    "more no if out so up said what its about than into them can only other time new some could "
    "these two may first then do any like my now over such our man me even most made after also "
    "did many off before must well back through years where much your way down should because each "
    "long those people state how vector prefix nested useful search query document text length "
    "attention window position number packing padding boundary model token sentence question answer"
)
WORDS = _TEXT.split()


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _corpus() -> list[str]:
    return [" ".join(WORDS[i : i + 12]) for i in range(0, len(WORDS), 3)] * 4


def _save(tokenizer: Tokenizer, folder: Path, config: dict, max_length: int) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", config | {"model_max_length": max_length})
    named = {key: value for key, value in config.items() if key.endswith("_token")}
    write_json(folder / "special_tokens_map.json", named)
    return tokenizer.get_vocab_size()


def wordpiece_tokenizer() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({letter for word in WORDS for letter in word} | set("?_:"))
    # Every third word is left out, so that words of several pieces are common.
    words = [word for number, word in enumerate(WORDS) if number % 3]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def wordpiece(folder: Path, max_length: int = 512) -> int:
    """BERT's: tokenizer.json and vocab.txt."""
    tokenizer = wordpiece_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(word for word, _ in vocabulary) + "\n")
    config = {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "pad_token": "[PAD]",
        "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
    }  # fmt: skip
    return _save(tokenizer, folder, config, max_length)


def unigram(folder: Path, max_length: int = 512) -> int:
    """XLM-RoBERTa's: sentence pieces, <s> and </s>, padding with 1."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        _corpus(),
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    config = {
        "tokenizer_class": "XLMRobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
        "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
        "mask_token": "<mask>",
    }  # fmt: skip
    return _save(tokenizer, folder, config, max_length)


def _byte_pairs(special: list[str], prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


QWEN_SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip


def qwen(folder: Path, max_length: int = 512, ends: bool = True) -> int:
    """Qwen's: byte pairs, an end of text after each text, padding on the left."""
    tokenizer = _byte_pairs(QWEN_SPECIAL)
    tokenizer.normalizer = normalizers.NFC()
    if ends:
        tokenizer.post_processor = TemplateProcessing(
            single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
        )
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "padding_side": "left",
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
        "additional_special_tokens": QWEN_SPECIAL[1:],
    }  # fmt: skip
    size = _save(tokenizer, folder, config, max_length)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return size


def modern(folder: Path, max_length: int = 512) -> int:
    """ModernBERT's: byte pairs with BERT's special tokens."""
    tokenizer = _byte_pairs(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]",
        "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
        "model_input_names": ["input_ids", "attention_mask"],
    }  # fmt: skip
    return _save(tokenizer, folder, config, max_length)


def roberta(folder: Path, max_length: int = 512) -> int:
    """RoBERTa's: byte pairs, and two separators between two texts."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = _byte_pairs(special)
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    config = {
        "tokenizer_class": "RobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
        "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
        "mask_token": "<mask>",
    }  # fmt: skip
    return _save(tokenizer, folder, config, max_length)


def gemma(folder: Path, max_length: int = 512) -> int:
    """Gemma's: pieces with bytes to fall back on, <bos> and <eos> around each text."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
            show_progress=False,
            max_token_length=8,
        ),
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    config = {
        "tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>",
        "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>",
        "add_bos_token": True, "add_eos_token": True, "padding_side": "right",
    }  # fmt: skip
    return _save(tokenizer, folder, config, max_length)


def phobert(folder: Path, max_length: int = 256) -> int:
    """PhoBERT's: vocab.txt and bpe.codes, read by Python code, and no tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted({letter for word in WORDS for letter in word} | set("ăâđêôơư_"))
    pieces = [f"{letter}@@" for letter in letters] + letters
    merges = ["t h", "th e</w>", "i n", "in g</w>", "o f</w>", "a n", "an d</w>"]
    pieces += ["th@@", "the", "in@@", "ing", "of", "an@@", "and"]
    (folder / "vocab.txt").write_text("".join(f"{piece} 1\n" for piece in dict.fromkeys(pieces)))
    (folder / "bpe.codes").write_text("".join(f"{merge} 1\n" for merge in merges))
    write_json(folder / "added_tokens.json", {"<mask>": 4 + len(dict.fromkeys(pieces))})
    special = {
        "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>",
        "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>",
    }  # fmt: skip
    config = {"tokenizer_class": "PhobertTokenizer", "model_max_length": max_length}
    write_json(folder / "tokenizer_config.json", special | config)
    write_json(folder / "special_tokens_map.json", special)
    return 5 + len(dict.fromkeys(pieces))
