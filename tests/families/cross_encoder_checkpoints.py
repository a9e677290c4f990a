"""Small cross-encoders of random weights, in the files of each family's repository.

In: an empty folder. Out: what the family's repository holds, small; the parts that it shares with
embedding models are in `checkpoints.py`.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PretrainedConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from tests.families import vocabularies
from tests.families.checkpoints import randomize, small, write_modules
from tests.families.vocabularies import write_json

IDENTITY = "torch.nn.modules.linear.Identity"
_BERT = ("[CLS]", "[SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
# Without types: its second text is of the first type.
_MODERN = ("[CLS]", "[SEP]", "[CLS] $A [SEP] $B [SEP]")
_ROBERTA = ("<s>", "</s>", "<s> $A </s> </s> $B </s>")


def read_pairs(folder: Path, pattern: tuple[str, str, str]) -> None:
    """Tell a folder's tokenizer how two texts are joined."""
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    first, between, pair = pattern
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {between}",
        pair=pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, between)],
    )
    tokenizer.save(path)


def write_classifier(
    folder: Path, config: PretrainedConfig, num_labels: int = 1, **listed: object
) -> None:
    """Write config.json and weights; `listed` is as for `write_network`."""
    config.num_labels = num_labels
    network = AutoModelForSequenceClassification.from_config(config).float()
    randomize(network)
    network.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    written.pop("dtype", None)
    write_json(folder / "config.json", written | listed)


def bert(folder: Path, num_labels: int = 1, **listed: object) -> None:
    """A plain folder of a BERT, as transformers saves it."""
    config = BertConfig(**small(vocabularies.wordpiece(folder)))
    read_pairs(folder, _BERT)
    write_classifier(folder, config, num_labels, **listed)


def ms_marco(folder: Path) -> None:
    """ms-marco-MiniLM-L6-v2: BERT, its numbers as they are, said as before 4.0."""
    bert(folder, sbert_ce_default_activation_function=IDENTITY)


def since_4(folder: Path) -> None:
    """Any BERT, saved by sentence-transformers 4 or 5: still without modules."""
    bert(folder, sentence_transformers={"activation_fn": IDENTITY, "version": "4.1.0"})


def since_6(folder: Path, **said: object) -> None:
    """Any BERT, saved by sentence-transformers 6: with modules, and here with a prompt."""
    bert(folder)
    write_modules(folder, [("Transformer", "")], "new")
    output = {"method": "forward", "method_output_name": "logits"}
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "sequence-classification",
            "modality_config": {"text": output},
            "module_output_name": "scores",
        },
    )
    content = {
        "__version__": {"sentence_transformers": "6.0.0"},
        "activation_fn": "torch.nn.modules.activation.Tanh",
        "default_prompt_name": "web",
        "model_type": "CrossEncoder",
        "prompts": {"web": "search query: "},
    }
    write_json(folder / "config_sentence_transformers.json", content | said)


def bge_reranker(folder: Path, left: bool = False) -> None:
    """bge-reranker-v2-m3: XLM-RoBERTa, whose numbers go through a sigmoid."""
    config = XLMRobertaConfig(
        **small(vocabularies.unigram(folder), 514), pad_token_id=1, type_vocab_size=1
    )
    read_pairs(folder, _ROBERTA)
    if left:
        path = folder / "tokenizer_config.json"
        written = json.loads(path.read_text())
        write_json(path, written | {"truncation_side": "left"})
    write_classifier(folder, config)


def stsb_roberta(folder: Path) -> None:
    """stsb-roberta-base: RoBERTa with byte pairs."""
    config = RobertaConfig(**small(vocabularies.roberta(folder), 514), type_vocab_size=1)
    write_classifier(folder, config)


def phobert(folder: Path) -> None:
    """PhoRanker: PhoBERT, whose tokenizer is Python code."""
    size = vocabularies.phobert(folder)
    config = RobertaConfig(**small(size, 258), pad_token_id=1, type_vocab_size=1)
    write_classifier(folder, config, tokenizer_class="PhobertTokenizer")


def stsb_distil(folder: Path) -> None:
    """stsb-distilroberta's smaller kin: DistilBERT, which has no types."""
    size = vocabularies.wordpiece(folder)
    config = DistilBertConfig(
        vocab_size=size, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=512
    )
    read_pairs(folder, _BERT)
    write_classifier(folder, config)


def ms_marco_electra(folder: Path) -> None:
    """ms-marco-electra-base, with embeddings narrower than the layers."""
    config = ElectraConfig(**small(vocabularies.wordpiece(folder)), embedding_size=16)
    read_pairs(folder, _BERT)
    write_classifier(folder, config)


def modern_bert(folder: Path, pooling: str = "mean") -> None:
    """gte-reranker-modernbert-base: a mean over the pair, near and far layers."""
    config = ModernBertConfig(
        **small(vocabularies.modern(folder)),
        local_attention=128, global_attn_every_n_layers=2, classifier_pooling=pooling,
        pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    read_pairs(folder, _MODERN)
    write_classifier(folder, config)


def mxbai_v1(folder: Path) -> None:
    """mxbai-rerank-base-v1: DeBERTa, whose attention cannot be packed."""
    config = DebertaV2Config(
        **small(vocabularies.wordpiece(folder)),
        relative_attention=True, position_buckets=64, pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False,
        max_relative_positions=-1, type_vocab_size=0,
    )  # fmt: skip
    read_pairs(folder, _BERT)
    write_classifier(folder, config)
