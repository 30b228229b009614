//! A batch with different params: one `SamplingParams` for each prompt.
//!
//! `cargo run --release -p minisgl-llm --example batch [MODEL]`

use minisgl_llm::{LLM, SamplingParams};

fn main() -> Result<(), minisgl_llm::Error> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "models/rust-docs-6m".into());
    let llm = LLM::builder(model).build()?;

    let requests = [
        ("A reference is", SamplingParams::greedy(32)),
        (
            "A closure is",
            SamplingParams {
                temperature: 0.6,
                top_k: 20,
                max_tokens: 48,
                seed: Some(7),
                ..Default::default()
            },
        ),
        (
            "An iterator is",
            SamplingParams {
                temperature: 1.0,
                top_p: 0.9,
                max_tokens: 64,
                stop: vec![".".into()],
                ..Default::default()
            },
        ),
    ];
    let (prompts, params): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
    let outputs = llm.generate(&prompts, params)?;

    for (prompt, output) in prompts.iter().zip(&outputs) {
        println!("{prompt}{}", output.text);
        println!("({} tokens, {:?})\n", output.token_ids.len(), output.finish_reason);
    }
    Ok(())
}
