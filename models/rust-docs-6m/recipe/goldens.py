"""Computes greedy continuations in f32 with Hugging Face transformers.

usage: goldens.py MODEL_DIR OUT.json

Each entry: text or chat (a list of messages), prompt_ids, greedy_ids (with the EOS that ended it, if one did),
ended_by_eos, decoded, the five best log probabilities of the first eight steps, and the smallest distance between the
best and the second-best logit met on the way.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 96
TOP_STEPS = 8
TEXTS = [
    "Ownership is",
    "The `Vec` type",
    "fn main() {",
    "What is the capital of France?",
    "Explain quantum computing in simple terms.",
    "## Iterators\n\n",
    "Once upon a time",
    "A `HashMap` stores 世界 — naïve café 🙂 text",
    "fn main() {\n    let v = vec![1, 2, 3];\n" * 12,
]
# Ids with no text behind them.
TOKEN_IDS = [4091, 265, 1000, 33, 2047, 7]
CHATS = [
    [{"role": "user", "content": "What does `Vec::push` do?"}],
    [{"role": "user", "content": "Explain `Option::map`."}],
    [{"role": "user", "content": "How does `insert` work on `HashMap`?"}],
]


def prompts(tokenizer):
    for text in TEXTS[:7]:
        yield text, None, tokenizer(text).input_ids
    yield None, None, TOKEN_IDS
    for text in TEXTS[7:]:
        yield text, None, tokenizer(text).input_ids
    for chat in CHATS:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        yield text, chat, tokenizer(text, add_special_tokens=False).input_ids


@torch.inference_mode()
def continue_greedily(model, prompt, eos):
    tokens, top5, margins = list(prompt), [], []
    for step in range(NEW_TOKENS):
        logits = model(torch.tensor([tokens])).logits[0, -1].float()
        best = logits.topk(5)
        margins.append((best.values[0] - best.values[1]).item())
        if step < TOP_STEPS:
            logprobs = logits.log_softmax(-1)
            top5.append([[i, round(logprobs[i].item(), 6)] for i in best.indices.tolist()])
        tokens.append(best.indices[0].item())
        if tokens[-1] in eos:
            break
    return tokens[len(prompt):], top5, min(margins)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    eos = model.generation_config.eos_token_id
    entries = []
    for text, chat, ids in prompts(tokenizer):
        greedy, top5, margin = continue_greedily(model, ids, eos)
        entries.append({
            "text": text,
            "chat": chat,
            "prompt_ids": ids,
            "greedy_ids": greedy,
            "ended_by_eos": greedy[-1] in eos,
            "decoded": tokenizer.decode(greedy, skip_special_tokens=True),
            "top5_logprobs": top5,
            "min_margin": margin,
        })
        print(f"{len(ids)} + {len(greedy)} tokens, smallest margin {margin:.4f}")
    with open(sys.argv[2], "w") as file:
        json.dump(entries, file, indent=1)


if __name__ == "__main__":
    main()
