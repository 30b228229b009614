#!/usr/bin/env python3
"""Compares this project with Hugging Face transformers on random-weight models of every family.

For each model, dtype and setting the project continues a few prompts greedily and hands out its tokens and the logits
behind them. transformers then reads the same tokens, once in f64 and once in the dtype itself, and

* the logits may be off from f64 by twice what transformers is off in the same dtype, plus one rounding to the dtype:
  another order of summation may round as badly twice, no more;
* in f32 every token must have the largest logit of f64, and the tokens must be those of `generate` in f32. A token
  passes that is not if f32 cannot tell it from the largest: closer than two logits that are both off by the above.

    python3 tests/parity/parity.py --program target/release/parity --device cpu

It needs torch and transformers 5, and nothing from the network. `--lie` shows that the comparison can fail.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy
import torch
import transformers

import models

EPSILON = {"f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}
TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
PROMPT_LENS = [1, 2, 16, 17, 63, 100, 200]
MAX_TOKENS = 12


def settings(dtype, device):
    """Page size, chunk of a prefill, attention kernels."""
    yield 16, 8192, "auto"
    if dtype != "f16":
        yield 1, 7, "auto"
    if device != "cpu" and dtype != "f32":
        yield 64, 50, "fi"
        yield 256, 8192, "fa"


def has_trtllm(config):
    return config["head_dim"] in (64, 96, 128, 256)


class ExactNorm:
    """RMSNorm in the dtype of its input: that of transformers computes in f32, also for f64."""

    def __init__(self, norm):
        self.norm = norm

    def __call__(self, x):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.norm.variance_epsilon)
        return self.norm.weight * (x * scale)


def make_exact(model):
    """Takes the f32 steps out of an f64 model."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = ExactNorm(module)
    return model


class ExactSoftmax:
    """While entered, softmax of f64 is not computed in f32."""

    def __enter__(self):
        self.softmax = torch.nn.functional.softmax

        def softmax(x, dim=None, dtype=None, **rest):
            return self.softmax(x, dim=dim, dtype=x.dtype if x.dtype == torch.float64 else dtype, **rest)

        torch.nn.functional.softmax = softmax

    def __exit__(self, *_):
        torch.nn.functional.softmax = self.softmax


def forward(model, tokens):
    with torch.no_grad(), ExactSoftmax():
        ids = torch.tensor([tokens], device=model.device)
        return model(ids, use_cache=False).logits[0].double().cpu().numpy()


class Oracle:
    """transformers on one model: logits of token lists, each computed once."""

    def __init__(self, name, directory, seed, device):
        self.exact = make_exact(models.build(name, directory, seed)).to(device)
        self.directory, self.device = directory, device
        self.of_dtype = {}
        self.known = {}

    def model(self, dtype):
        if dtype not in self.of_dtype:
            family, config, _ = self.family
            model = getattr(transformers, f"{family}ForCausalLM")(self.exact.config)
            model.load_state_dict(self.exact.state_dict())
            self.of_dtype[dtype] = model.to(TORCH[dtype]).to(self.device).eval()
        return self.of_dtype[dtype]

    def logits(self, dtype, tokens):
        key = (dtype, tuple(tokens))
        if key not in self.known:
            self.known[key] = forward(self.exact if dtype == "f64" else self.model(dtype), tokens)
        return self.known[key]

    def generate(self, prompt):
        with torch.no_grad():
            ids = torch.tensor([prompt], device=self.device)
            out = self.model("f32").generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False
            )
        return out[0, len(prompt):].tolist()


def compare(oracle, dtype, prompts, tokens, logits, generated):
    """A line of figures, and what is wrong."""
    own = theirs = share = 0.0
    exact_rows = []
    for prompt, output, found in zip(prompts, tokens, logits):
        sequence = prompt + output[:-1]
        rows = slice(len(prompt) - 1, len(sequence))
        exact = oracle.logits("f64", sequence)[rows]
        naive = oracle.logits(dtype, sequence)[rows]
        exact_rows.append(exact)
        theirs = max(theirs, float(abs(naive - exact).max()))
    wrong = []
    for prompt, found, exact in zip(prompts, logits, exact_rows):
        error = abs(found - exact)
        allowed = 2 * theirs + EPSILON[dtype] * abs(exact)
        own = max(own, float(error.max()))
        share = max(share, float((error / allowed).max()))
        if not (error <= allowed).all():
            where = numpy.unravel_index((error / allowed).argmax(), error.shape)
            wrong.append(
                f"prompt of {len(prompt)}, token {where[0]}: logit {where[1]} is {found[where]}, f64 says "
                f"{exact[where]}, allowed {allowed[where]:.3e}"
            )
    figures = f"error {own:.2e}, transformers {theirs:.2e}, share of tolerance {share:.2f}"
    if dtype == "f32":
        equal, close = 0, 0
        for prompt, output, exact, expected in zip(prompts, tokens, exact_rows, generated):
            for step, (token, row, other) in enumerate(zip(output, exact, expected)):
                slack = 2 * (2 * theirs + EPSILON[dtype] * abs(row).max())
                gap = row.max() - row[token]
                if gap > slack:
                    wrong.append(f"prompt of {len(prompt)}: token {step} is {token}, {gap:.3e} below the best")
                if token != other:
                    # From here on the two continue different texts.
                    close += 1
                    if abs(row[token] - row[other]) > slack:
                        wrong.append(f"prompt of {len(prompt)}: token {step} is {token}, generate says {other}")
                    break
                equal += 1
        figures += f", {equal} tokens equal, {close} too close to tell"
    return figures, wrong


def read(out, num_prompts):
    done = json.loads(pathlib.Path(f"{out}.json").read_text())
    rows = numpy.fromfile(f"{out}.f32", dtype="<f4").reshape(-1, done["vocab"])
    logits, first = [], 0
    for tokens in done["tokens"]:
        logits.append(rows[first : first + len(tokens)].astype(numpy.float64))
        first += len(tokens)
    assert len(logits) == num_prompts
    return done["tokens"], logits


def prompts_of(name, vocab, seed):
    rng = numpy.random.default_rng([seed, sum(name.encode())])
    return [rng.integers(0, vocab, length).tolist() for length in PROMPT_LENS]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the program `parity` of the crate minisgl-tests")
    parser.add_argument("--device", default="cpu", help="of the project: cpu or cuda")
    parser.add_argument("--torch-device", help="of transformers: cpu or cuda [default: a GPU if the project has one]")
    parser.add_argument("--dtypes", default="f32,bf16,f16")
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--lie", action="store_true", help="mislead the project, and require that it shows")
    args = parser.parse_args()
    if args.torch_device is None:
        args.torch_device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    transformers.logging.set_verbosity_error()
    print(f"seed {args.seed}, transformers {transformers.__version__} on {args.torch_device}, project on {args.device}")
    with tempfile.TemporaryDirectory() as scratch:
        failed = run_lies(args, scratch) if args.lie else run_cases(args, scratch)
    print("FAILED: " + ", ".join(failed) if failed else "all equal")
    sys.exit(bool(failed))


def oracle_of(name, scratch, args):
    oracle = Oracle(name, os.path.join(scratch, name), args.seed, args.torch_device)
    oracle.family = models.CASES[name]
    return oracle


def job(name, scratch, dtype, prompts, page_size=16, chunk=8192, attention="auto"):
    return dict(
        model=os.path.join(scratch, name),
        dtype=dtype,
        page_size=page_size,
        max_extend_tokens=chunk,
        attention_backend=attention,
        prompts=prompts,
        max_tokens=MAX_TOKENS,
        out=os.path.join(scratch, f"{name}.{dtype}.{page_size}.{chunk}.{attention}"),
    )


def run_program(args, scratch, jobs):
    path = os.path.join(scratch, "jobs.json")
    pathlib.Path(path).write_text(json.dumps(jobs))
    subprocess.run([args.program, "--device", args.device, path], check=True)


def run_cases(args, scratch):
    names = [name for name in models.CASES if args.only in name]
    oracles, jobs = {}, []
    for name in names:
        oracles[name] = oracle_of(name, scratch, args)
        config = models.CASES[name][1]
        prompts = prompts_of(name, config["vocab_size"], args.seed)
        for dtype in args.dtypes.split(","):
            for page_size, chunk, attention in settings(dtype, args.device):
                jobs.append((name, job(name, scratch, dtype, prompts, page_size, chunk, attention)))
            if args.device != "cpu" and dtype != "f32" and has_trtllm(config):
                jobs.append((name, job(name, scratch, dtype, prompts, 32, 8192, "trtllm")))
    started = time.time()
    run_program(args, scratch, [one for _, one in jobs])
    print(f"{len(jobs)} runs of the project in {time.time() - started:.1f} s")
    failed = []
    generated = {name: None for name in names}
    for name, one in jobs:
        oracle = oracles[name]
        if generated[name] is None:
            generated[name] = [oracle.generate(prompt) for prompt in one["prompts"]]
        tokens, logits = read(one["out"], len(one["prompts"]))
        figures, wrong = compare(oracle, one["dtype"], one["prompts"], tokens, logits, generated[name])
        what = f"{name} {one['dtype']} page {one['page_size']} chunk {one['max_extend_tokens']} {one['attention_backend']}"
        print(f"{'FAILED' if wrong else 'ok':7}{what:70} {figures}")
        for line in wrong[:3]:
            print(f"       {line}")
        failed += [what] if wrong else []
    return failed


def run_lies(args, scratch):
    jobs = []
    for i, (lie, (name, fields)) in enumerate(models.LIES.items()):
        # Each lie is a directory of its own, named for the seed's sake like the model.
        place = os.path.join(scratch, str(i))
        oracle = oracle_of(name, place, args)
        models.edit(os.path.join(place, name), fields)
        prompts = prompts_of(name, models.CASES[name][1]["vocab_size"], args.seed)
        jobs.append((lie, oracle, job(name, place, "f32", prompts)))
    run_program(args, scratch, [one for _, _, one in jobs])
    believed = []
    for lie, oracle, one in jobs:
        tokens, logits = read(one["out"], len(one["prompts"]))
        generated = [oracle.generate(prompt) for prompt in one["prompts"]]
        figures, wrong = compare(oracle, "f32", one["prompts"], tokens, logits, generated)
        print(f"{'found' if wrong else 'MISSED':7}{lie:40} {figures}")
        believed += [] if wrong else [lie]
    return believed


if __name__ == "__main__":
    main()
