#!/usr/bin/env python3
"""The same work under this project and under others, in one sitting, with random weights.

    python3 bench/compare/compare.py --program target/release/minisgl --shapes bench/shapes/qwen3-0.6b

Three measurements, as in bench/README.md: the offline workload (output tokens a second), one request alone (milliseconds a
token, the prompt left out), and prompts alone (tokens a second). Engines that are not installed are left out and named:

* transformers: continuous batching (paged attention, CUDA graphs) for many requests; for one request `generate` with a
  static cache and a compiled decode step. What a careful user of transformers would do.
* transformers-padded: the same library without continuous batching, one padded batch.
* vLLM and SGLang: their offline engines with dummy weights and default settings.

Every engine runs in a process of its own, so that none finds memory or caches of another. Nothing comes from the network.
"""

import argparse
import importlib.util
import json
import pathlib
import random
import statistics
import subprocess
import sys
import time

FOLDER = pathlib.Path(__file__).resolve().parent
ENGINES = ["minisgl", "transformers", "transformers-padded", "vllm", "sglang"]
ALONE = dict(prompt_len=128, max_tokens=256)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/minisgl", help="the command of this project")
    parser.add_argument("--shapes", default="bench/shapes/qwen3-0.6b", help="folders with a config.json, by comma")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--parts", default="offline,alone,prefill")
    parser.add_argument("--workload", default="bench/workloads/offline256.json")
    parser.add_argument("--prefill", default="16x4096", help="prompts and their length")
    parser.add_argument("--requests", type=int, help="only so many requests of the workload")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median counts")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for one engine and shape")
    parser.add_argument("--json", help="a file for the figures")
    parser.add_argument("--run-engine", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run_engine:
        print(json.dumps(measure(args.run_engine, args)))
        return
    results = {}
    for shape in args.shapes.split(","):
        for engine in args.engines.split(","):
            results.setdefault(shape, {})[engine] = run_engine(engine, shape, args)
        print_table(shape, results[shape], args.parts.split(","))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


def run_engine(engine, shape, args):
    """The figures of one engine, or why there are none."""
    if engine not in ENGINES:
        return f"unknown; known are {', '.join(ENGINES)}"
    if engine != "minisgl" and importlib.util.find_spec(engine.split("-")[0]) is None:
        return "not installed"
    command = [sys.executable, __file__, "--run-engine", engine, "--shapes", shape]
    for name in ("program", "parts", "workload", "prefill", "requests", "repeats"):
        value = getattr(args, name)
        command += [f"--{name}", str(value)] if value is not None else []
    print(f"{shape}: {engine}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=args.timeout)
    except subprocess.TimeoutExpired:
        return f"stopped after {args.timeout} s"
    if done.returncode != 0:
        return "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1])


UNITS = {"offline": ("output tok/s", False), "alone": ("ms a token", True), "prefill": ("prompt tok/s", False)}


def print_table(shape, results, parts):
    print(f"\n{shape}")
    own = results.get("minisgl")
    for engine, figures in results.items():
        if isinstance(figures, str):
            print(f"  {engine:20}{figures}")
            continue
        cells = []
        for part in parts:
            unit, less_is_better = UNITS[part]
            cell = f"{figures[part]:>10.2f} {unit}"
            if engine != "minisgl" and isinstance(own, dict):
                ratio = figures[part] / own[part] if less_is_better else own[part] / figures[part]
                cell += f" (minisgl is {ratio:.2f} times as fast)"
            cells.append(cell)
        print(f"  {engine:20}" + "   ".join(cells))


def measure(engine, args):
    """The figures of one engine for one shape, in this process."""
    workload = json.loads(pathlib.Path(args.workload).read_text())
    lengths = list(zip(workload["prompt_len"], workload["max_tokens"]))[: args.requests]
    count, length = (int(part) for part in args.prefill.split("x"))
    work = {
        "offline": (lengths, workload["temperature"]),
        "alone": ([(ALONE["prompt_len"], ALONE["max_tokens"])], 0.0),
        "prefill": ([(length, 1)] * count, 0.0),
    }
    longest = max(a + b for part in args.parts.split(",") for a, b in work[part][0])
    if engine == "minisgl":
        runner = MiniSgl(args.program, args.shapes, longest)
    else:
        sys.path.insert(0, str(FOLDER))
        runner = importlib.import_module(f"with_{engine.replace('-', '_')}").Runner(args.shapes, longest)
    figures = {}
    for part in args.parts.split(","):
        requests, temperature = work[part]
        if part == "alone":
            # The difference leaves out the prompt, and what a call costs once.
            whole = median_seconds(runner, requests, temperature, args.repeats)
            prompt = median_seconds(runner, [(requests[0][0], 1)], temperature, args.repeats)
            figures[part] = 1e3 * (whole - prompt) / (requests[0][1] - 1)
            continue
        seconds = median_seconds(runner, requests, temperature, args.repeats)
        tokens = sum(prompt if part == "prefill" else output for prompt, output in requests)
        figures[part] = tokens / seconds
    return figures


def median_seconds(runner, requests, temperature, repeats):
    """Of runs with new prompts each, after one that does not count."""
    if isinstance(runner, MiniSgl):
        return runner.median_seconds(requests, temperature, repeats)
    times, random_tokens = [], random.Random(0)
    for repeat in range(repeats + 1):
        prompts = [random_tokens.choices(range(runner.vocab), k=length) for length, _ in requests]
        start = time.perf_counter()
        outputs = runner.run(prompts, [output for _, output in requests], temperature)
        times.append(time.perf_counter() - start)
        wrong = [(n, m) for n, (_, m) in zip(outputs, requests) if n != m]
        if wrong:
            raise RuntimeError(f"{len(wrong)} requests ended early: {wrong[0][0]} of {wrong[0][1]} tokens")
    return statistics.median(times[1:])


class MiniSgl:
    """Runs `minisgl bench`, which takes the same file and has its own warm-up, new prompts and median."""

    def __init__(self, program, shape, longest):
        self.base = [program, "bench", "--model", shape, "--use-dummy-weight", "--max-seq-len-override", str(longest)]

    def median_seconds(self, requests, temperature, repeats):
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            workload, report = pathlib.Path(folder, "workload.json"), pathlib.Path(folder, "report.json")
            lengths = dict(prompt_len=[a for a, _ in requests], max_tokens=[b for _, b in requests])
            workload.write_text(json.dumps(dict(lengths, temperature=temperature, ignore_eos=True)))
            command = self.base + ["--workload", workload, "--json", report, "--repeats", str(repeats)]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode != 0:
                raise RuntimeError(done.stderr.strip())
            return json.loads(report.read_text())["median"]["seconds"]


if __name__ == "__main__":
    main()
