"""Trains the tokenizer on the extracted text and writes the token files.

usage: tokenize_docs.py WORK_DIR

Reads what extract.py wrote; writes WORK_DIR/tokenizer.json, train.bin, val.bin and chat.bin (uint16).
"""

import json
import pathlib
import random
import sys

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB = 4096
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# Llama 3's pre-tokenizer.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QUESTIONS = [
    "What does `{type}::{method}` do?",
    "Explain `{type}::{method}`.",
    "What is {type}::{method} for?",
    "Tell me about the {method} method of {type}.",
    "How does `{method}` work on `{type}`?",
]
NUM_VALIDATION_DOCS = 120
CHAT_REPEATS = 6


def is_mostly_latin(text):
    far = sum(ord(c) > 0x2FFF for c in text)
    other_scripts = sum(0x400 <= ord(c) < 0x1000 for c in text)
    return far < 0.01 * len(text) and other_scripts < 0.01 * len(text)


def train_tokenizer(docs):
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=24,
    )
    tokenizer.train_from_iterator(docs, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    begin = SPECIAL[0]
    template = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin} $B",
        special_tokens=[(begin, tokenizer.token_to_id(begin))],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    return tokenizer


def conversation(methods):
    text = "<|begin_of_text|>"
    for type_name, method, signature, summary in methods:
        question = random.choice(QUESTIONS).format(type=type_name, method=method)
        answer = summary if random.random() < 0.5 else f"{summary}\n\n```\n{signature}\n```"
        text += (
            f"<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
            f"<|start_header_id|>assistant<|end_header_id|>\n\n{answer}<|eot_id|>"
        )
    return text


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    work = pathlib.Path(sys.argv[1])
    random.seed(0)
    books, std, chat = (json.loads((work / f"{name}.json").read_text()) for name in ("books", "std", "chat"))
    docs = [text for text in books if is_mostly_latin(text)] + [f"## {title}\n\n{text}" for title, text in std]
    tokenizer = train_tokenizer(docs)
    tokenizer.save(str(work / "tokenizer.json"))

    end = tokenizer.token_to_id("<|end_of_text|>")

    def encode(texts):
        ids = []
        for encoding in tokenizer.encode_batch(texts):
            ids += [*encoding.ids, end]
        return ids

    random.shuffle(docs)
    streams = {"val": encode(docs[:NUM_VALIDATION_DOCS]), "train": encode(docs[NUM_VALIDATION_DOCS:]), "chat": []}
    methods = list({(m[0], m[1]): m for m in reversed(chat)}.values())
    for _ in range(CHAT_REPEATS):
        random.shuffle(methods)
        i = 0
        while i < len(methods):
            turns = random.choice([1, 1, 1, 2, 3])
            text = conversation(methods[i:i + turns])
            streams["chat"] += tokenizer.encode(text, add_special_tokens=False).ids
            i += turns
    for name, ids in streams.items():
        np.array(ids, np.uint16).tofile(work / f"{name}.bin")
        print(f"{name}: {len(ids)} tokens")


if __name__ == "__main__":
    main()
