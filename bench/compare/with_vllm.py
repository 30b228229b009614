"""vLLM's offline engine with dummy weights."""

import vllm


class Runner:
    def __init__(self, shape, longest):
        self.llm = vllm.LLM(
            model=shape,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=longest,
            enable_prefix_caching=False,
        )
        self.vocab = self.llm.llm_engine.model_config.get_vocab_size()

    def run(self, prompts, max_tokens, temperature):
        params = [
            vllm.SamplingParams(temperature=temperature, max_tokens=n, ignore_eos=True, detokenize=False)
            for n in max_tokens
        ]
        outputs = self.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]
