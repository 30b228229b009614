//! Pre-tokenized input: prompts as token ids, which also works for models without a tokenizer.
//!
//! `cargo run --release -p minisgl-llm --example pretokenized [MODEL]`

use minisgl_llm::{LLM, SamplingParams};

fn main() -> Result<(), minisgl_llm::Error> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "models/rust-docs-6m".into());
    let llm = LLM::builder(model).build()?;

    // With the special tokens that the model's prompts begin with, here BOS.
    let tokenizer = llm.tokenizer()?;
    let prompts = vec![tokenizer.encode("A slice is", true)?, tokenizer.encode("A trait is", true)?];
    let outputs = llm.generate(&prompts, SamplingParams::greedy(32))?;

    for (prompt, output) in prompts.iter().zip(&outputs) {
        println!("Prompt ids: {prompt:?}");
        println!("Output ids: {:?}", output.token_ids);
        println!("Text: {}\n", output.text);
    }
    Ok(())
}
