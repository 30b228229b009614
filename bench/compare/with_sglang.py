"""SGLang's offline engine with dummy weights."""

import json
import pathlib

import sglang


class Runner:
    def __init__(self, shape, longest):
        self.engine = sglang.Engine(
            model_path=shape,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            context_length=longest,
            disable_radix_cache=True,
        )
        self.vocab = json.loads(pathlib.Path(shape, "config.json").read_text())["vocab_size"]

    def run(self, prompts, max_tokens, temperature):
        params = [dict(temperature=temperature, max_new_tokens=n, ignore_eos=True) for n in max_tokens]
        outputs = self.engine.generate(input_ids=prompts, sampling_params=params)
        return [output["meta_info"]["completion_tokens"] for output in outputs]
