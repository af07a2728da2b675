"""Models of given shapes with random weights, for the Python that has torch and transformers; see gpu_check.py.

    python random_model.py FOLDER small|large|tiny-small|tiny-large

The vocabulary is made up: 256 bytes, and words without a meaning, so that each token shows in a stream at once. No
network is used.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch  # type: ignore[import-not-found]  # in the environment that gpu_check makes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # type: ignore[import-not-found]
from transformers import (  # type: ignore[import-not-found]
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

# Of https://huggingface.co/Qwen/Qwen3-1.7B and Qwen3-32B (config.json), the latter with 52 of its 64 layers: 27 billion
# parameters. As Llama models: of Qwen's, transformers sends the prompt of an unknown template before the answer.
SHAPES = {
    "small": {
        "hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True, "vocab_size": 151_936,
    },
    "large": {
        "hidden_size": 5120, "num_hidden_layers": 52, "intermediate_size": 25_600, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False, "vocab_size": 151_936,
    },
    "tiny-small": {
        "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 192, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True, "vocab_size": 2048,
    },
    "tiny-large": {
        "hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 1024, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 32, "tie_word_embeddings": False, "vocab_size": 2048,
    },
}  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def main(folder: Path, shape: str) -> None:
    """Write the model, and print its number of parameters."""
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, bos_token_id=None, eos_token_id=None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(2)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    # Without an end token an answer has as many tokens as were asked for.
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, pad_token_id=0)
    model.save_pretrained(folder, max_shard_size="4GB")
    _tokenizer(config.vocab_size).save_pretrained(folder)
    print(sum(parameter.numel() for parameter in model.parameters()))


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġ{_word(number)}" for number in range(size - len(alphabet))]
    vocabulary = {token: number for number, token in enumerate([*alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = TEMPLATE
    return fast


def _word(number: int) -> str:
    letters = ""
    while True:
        number, letter = divmod(number, 26)
        letters += chr(ord("a") + letter)
        if not number:
            return letters.rjust(3, "x")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
