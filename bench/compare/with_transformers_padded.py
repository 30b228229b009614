"""Hugging Face transformers without continuous batching: all prompts padded to the longest, one `generate` for all, compiled."""

import torch
import transformers
import with_transformers


class Runner(with_transformers.Runner):
    """Each request runs as long as the longest; what it generates beyond its own length is not counted."""

    def many(self, prompts, max_tokens, temperature):
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.device)
        config = transformers.GenerationConfig(
            max_new_tokens=max(max_tokens),
            min_new_tokens=max(max_tokens),
            cache_implementation="static" if self.device == "cuda" else None,
            **self.sampling(temperature),
        )
        with torch.inference_mode():
            out = self.model.generate(ids, attention_mask=mask, generation_config=config)
        assert out.shape[1] == longest + max(max_tokens), out.shape
        return list(max_tokens)
