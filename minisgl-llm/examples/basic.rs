//! Basic generation: load a model, continue two prompts, print what came out.
//!
//! `cargo run --release -p minisgl-llm --example basic [MODEL]`

use minisgl_llm::{LLM, SamplingParams};

fn main() -> Result<(), minisgl_llm::Error> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "models/rust-docs-6m".into());
    let llm = LLM::builder(model).build()?;

    let prompts = ["Ownership is", "The `Vec` type is"];
    let params = SamplingParams { temperature: 0.8, top_p: 0.95, max_tokens: 64, ..Default::default() };
    let outputs = llm.generate(prompts, params)?;

    for (prompt, output) in prompts.iter().zip(&outputs) {
        println!("Prompt: {prompt}");
        println!("Text: {}", output.text);
        println!("Generated {} tokens\n", output.token_ids.len());
    }
    Ok(())
}
