"""Hugging Face transformers: continuous batching for many requests, a static cache and a compiled step for one."""

import torch
import transformers


class Runner:
    """A model with random weights on the first GPU, or on the CPU where there is none."""

    def __init__(self, shape, _longest):
        transformers.logging.set_verbosity_error()
        config = transformers.AutoConfig.from_pretrained(shape)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.device(self.device):
            torch.set_default_dtype(torch.bfloat16)
            self.model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
        self.vocab = config.vocab_size
        self.temperature_of_manager = None

    def run(self, prompts, max_tokens, temperature):
        """Output tokens of each request."""
        if len(prompts) == 1:
            return [self.one(prompts[0], max_tokens[0], temperature)]
        return self.many(prompts, max_tokens, temperature)

    def sampling(self, temperature):
        chosen = dict(do_sample=True, temperature=temperature, top_k=0) if temperature > 0 else dict(do_sample=False)
        return dict(chosen, eos_token_id=-1, pad_token_id=0)

    def one(self, prompt, max_tokens, temperature):
        ids = torch.tensor([prompt], device=self.device)
        config = transformers.GenerationConfig(
            max_new_tokens=max_tokens,
            min_new_tokens=max_tokens,
            # `generate` compiles the decode step of a static cache by itself.
            cache_implementation="static" if self.device == "cuda" else None,
            **self.sampling(temperature),
        )
        with torch.inference_mode():
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return out.shape[1] - len(prompt)

    def many(self, prompts, max_tokens, temperature):
        if self.device == "cpu":
            return [self.one(p, n, temperature) for p, n in zip(prompts, max_tokens)]
        config = transformers.GenerationConfig(max_new_tokens=max(max_tokens), **self.sampling(temperature))
        if self.temperature_of_manager != temperature:
            # It samples as it was told first.
            self.model.destroy_cached_continuous_batching_manager()
            self.temperature_of_manager = temperature
        # Kept from run to run, so that graphs are captured once.
        context = self.model.continuous_batching_context_manager(generation_config=config, persistent_manager=True)
        lengths = {}
        with context as manager:
            names = [
                manager.add_request(prompt, max_new_tokens=n, eos_token_id=-1) for prompt, n in zip(prompts, max_tokens)
            ]
            while len(lengths) < len(names):
                result = manager.get_result(timeout=60)
                if result is None:
                    raise RuntimeError("continuous batching gave nothing for a minute")
                if result.is_finished():
                    lengths[result.request_id] = len(result.generated_tokens)
        return [lengths[name] for name in names]
