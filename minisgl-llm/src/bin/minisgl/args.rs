//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use minisgl_llm::{AttentionBackend, CacheType, DType, Device, LLM, LLMBuilder, SamplingParams};

/// Generate text with large language models, offline and in batches.
///
/// A model is a directory of Hugging Face files (config.json, *.safetensors, tokenizer.json) or a model id like
/// org/name or org/name@revision, which is fetched once into the usual cache.
#[derive(Debug, Parser)]
#[command(name = "minisgl", version, max_term_width = 100, after_long_help = ENVIRONMENT)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const ENVIRONMENT: &str = "\
Environment:
  RUST_LOG          what is logged to standard error, as in RUST_LOG=minisgl_engine=debug (default: warn)
  HF_HOME           home of the model cache (default: ~/.cache/huggingface); HF_HUB_CACHE names the cache itself
  HF_ENDPOINT       the server that models are fetched from (default: https://huggingface.co)
  HF_TOKEN          token for private and gated models; else the token file in HF_HOME
  HF_HUB_OFFLINE=1  use the cache alone

Exit codes:
  0  done
  1  something failed, and one sentence on standard error says what
  2  the command line is wrong

Examples:
  minisgl generate --model models/rust-docs-6m --prompt 'Ownership is' --max-tokens 64
  minisgl generate --model org/name --input prompts.jsonl --output answers.jsonl --resume
  minisgl chat --model org/name --system 'Be brief.'
  minisgl bench --model models/rust-docs-6m --num-requests 64 --input-len 128 --output-len 128
  minisgl info --model models/rust-docs-6m";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Continue prompts: from the command line, or from a file of JSON lines.
    #[command(after_long_help = GENERATE)]
    Generate(GenerateArgs),
    /// Talk to a model, answer by answer.
    #[command(after_long_help = CHAT)]
    Chat(ChatArgs),
    /// Measure offline throughput with random prompts.
    #[command(after_long_help = BENCH)]
    Bench(BenchArgs),
    /// Say what this machine has, what a model directory holds and what it will cost in memory.
    Info(InfoArgs),
    /// Ask a model a question, then continue a few prompts in one batch, with the speed of each.
    Demo(DemoArgs),
}

const GENERATE: &str = "\
Input lines:
  Each line of --input is an object with one of
    \"prompt\": \"text\"               encoded with the tokenizer's special tokens, no chat template
    \"token_ids\": [1, 2, 3]         used as they are
    \"messages\": [{\"role\": \"user\", \"content\": \"text\"}]    rendered by the model's chat template
  and maybe an \"id\" (any JSON, copied to the output) and sampling fields, by the names of the flags with
  underscores, which go before the flags: \"temperature\", \"top_k\", \"top_p\", \"min_p\", \"max_tokens\",
  \"ignore_eos\", \"stop\", \"stop_token_ids\", \"presence_penalty\", \"frequency_penalty\",
  \"repetition_penalty\", \"seed\", \"logprobs\", \"n\", \"skip_special_tokens\". Empty lines are skipped.

Output lines:
  {\"index\": 0, \"id\": ..., \"text\": \"...\", \"token_ids\": [...], \"finish_reason\": \"stop\",
   \"num_prompt_tokens\": 5, \"num_cached_tokens\": 0}
  in input order; \"index\" counts the input lines from 0. With logprobs there is \"logprobs\", with n above 1
  \"alternatives\". A line that cannot be run becomes {\"index\": 3, \"error\": \"...\"} and stops no other; the exit
  code is 1 then.

  Lines are read as there is room for them and written as soon as all lines before them are: memory is bounded
  whatever the size of the file. No line is read that is more than 32 x max-running-req ahead of the oldest
  unfinished one. What a line samples depends on --seed and its index alone, or on its own \"seed\".

  A run that was killed goes on with --resume: whole lines are kept, a torn last line is redone.

Examples:
  minisgl generate --model models/rust-docs-6m --prompt 'A vector is' --temperature 0.8 --seed 7
  minisgl generate --model org/name --input prompts.jsonl --output answers.jsonl --resume
  cat prompts.jsonl | minisgl generate --model org/name --input - --max-tokens 64 | jq -r .text";

const CHAT: &str = "\
Commands:
  /reset   forget the conversation (the system message stays)
  /exit    leave, as does the end of the input
  /help    this list

  Ctrl-C stops an answer; what was said so far stays in the conversation. A second Ctrl-C, or one at the prompt,
  leaves. When standard input is no terminal each line is a message and only answers are printed.

Examples:
  minisgl chat --model models/rust-docs-6m
  echo 'What does Vec::push do?' | minisgl chat --model models/rust-docs-6m";

const BENCH: &str = "\
Workload file:
  {\"prompt_len\": [964, 724], \"max_tokens\": [100, 1024], \"temperature\": 0.6, \"ignore_eos\": true}
  One request for each pair of lengths. Prompts are random token ids, new ones in each repeat, so that the prefix
  cache cannot answer them.

Examples:
  minisgl bench --model models/rust-docs-6m --workload bench/workloads/offline256.json
  minisgl bench --model DIR --use-dummy-weight --num-requests 1 --input-len 128 --output-len 256 --json out.json";

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// A prompt; give it several times for several prompts
    #[arg(long, value_name = "TEXT", required_unless_present = "input", conflicts_with = "input")]
    pub(crate) prompt: Vec<String>,
    /// A file of JSON lines, one request a line; - is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Where JSON lines are written, one a request, in input order [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Go on with an --output that an earlier run left behind
    #[arg(long, requires = "output", requires = "input")]
    pub(crate) resume: bool,
    /// Replace an --output that exists
    #[arg(long, requires = "output", conflicts_with = "resume")]
    pub(crate) overwrite: bool,
    /// What is printed [default: text for --prompt without --output, else jsonl]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The generated text alone
    Text,
    /// One JSON object a line
    Jsonl,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Instructions that every conversation begins with
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// A variable of the chat template, as in enable_thinking=false; the value is JSON, or else text
    #[arg(long = "template-var", value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) variables: Vec<(String, serde_json::Value)>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// A workload file, instead of the three lengths below
    #[arg(long, value_name = "FILE", conflicts_with_all = ["input_len", "output_len"])]
    pub(crate) workload: Option<PathBuf>,
    /// Requests [default: 32, or all of the workload]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) num_requests: Option<usize>,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value = "128", value_parser = positive)]
    pub(crate) input_len: usize,
    /// Tokens generated for each prompt
    #[arg(long, value_name = "N", default_value = "128", value_parser = positive)]
    pub(crate) output_len: usize,
    /// 0 is greedy [default: 0, or the workload's]
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f32>,
    /// Measured runs, of which the median is printed
    #[arg(long, value_name = "N", default_value = "3", value_parser = positive)]
    pub(crate) repeats: usize,
    /// Write the figures to a file too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// Directory of Hugging Face files, or model id; without it only the machine is described
    #[arg(long, short, value_name = "DIR|ID")]
    pub(crate) model: Option<String>,
    /// Dtype to reckon with: bf16, f16, f32, or auto (the checkpoint's)
    #[arg(long, value_name = "DTYPE", default_value = "bf16", value_parser = parse_dtype)]
    pub(crate) dtype: DTypeArg,
    /// Tokens in a KV page
    #[arg(long, value_name = "N", default_value = "16", value_parser = positive)]
    pub(crate) page_size: usize,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Model and engine")]
pub(crate) struct EngineArgs {
    /// Directory of Hugging Face files, or model id: org/name or org/name@revision
    #[arg(long, short, value_name = "DIR|ID")]
    pub(crate) model: String,
    /// Dtype of weights, activations and KV: bf16, f16, f32, or auto (the checkpoint's)
    #[arg(long, value_name = "DTYPE", default_value = "bf16", value_parser = parse_dtype)]
    pub(crate) dtype: DTypeArg,
    /// Where to compute: auto (the first GPU if there is one), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: Device,
    /// Sequences in flight
    #[arg(long, value_name = "N", default_value = "256", value_parser = positive)]
    pub(crate) max_running_req: usize,
    /// Prefill token budget of a step: the chunk size [default: 16384 on a GPU of 64 GiB and more, else 8192]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_extend_tokens: Option<usize>,
    /// Tokens in a KV page: a power of two from 1 to 256
    #[arg(long, value_name = "N", default_value = "16", value_parser = positive)]
    pub(crate) page_size: usize,
    /// Attention kernels: auto, fa, fi or trtllm, or one for prefill and one for decode as in fa,fi
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(crate) attention_backend: AttentionBackend,
    /// Decode batch sizes captured as CUDA graphs, as in 1,2,4,8; an empty list turns graphs off
    #[arg(long, value_name = "LIST", value_parser = parse_sizes)]
    pub(crate) cuda_graph_bs: Option<Sizes>,
    /// Largest decode batch captured as a CUDA graph; 0 turns graphs off
    #[arg(long, value_name = "N", conflicts_with = "cuda_graph_bs")]
    pub(crate) cuda_graph_max_bs: Option<usize>,
    /// On a GPU, in 16 bits: own kernels for linear layers where they are faster than cuBLASLt
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = true)]
    pub(crate) own_linear_kernels: bool,
    /// Share of the device's memory to use in all, above 0, at most 1 [default: 0.9 on a GPU, 0.5 on the CPU]
    #[arg(long, value_name = "SHARE")]
    pub(crate) memory_ratio: Option<f64>,
    /// Exact number of KV pages
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) num_page_override: Option<usize>,
    /// Longest sequence, prompt and output together
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_seq_len_override: Option<usize>,
    /// Prefix cache: radix, or naive (none)
    #[arg(long, value_name = "TYPE", default_value = "radix")]
    pub(crate) cache_type: CacheType,
    /// Random weights from config.json alone
    #[arg(long)]
    pub(crate) use_dummy_weight: bool,
    /// CPU threads [default: all]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) threads: Option<usize>,
    /// Base of the random numbers
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) seed: u64,
    /// A tokenizer.json to use instead of the model's
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// No progress bars
    #[arg(long)]
    pub(crate) no_progress: bool,
}

impl EngineArgs {
    pub(crate) fn load(&self) -> crate::error::Result<LLM> {
        Ok(self.builder().build()?)
    }

    fn builder(&self) -> LLMBuilder {
        let mut builder = LLM::builder(&self.model)
            .dtype(self.dtype.0)
            .device(self.device)
            .max_running_req(self.max_running_req)
            .page_size(self.page_size)
            .attention_backend(self.attention_backend)
            .own_linear_kernels(self.own_linear_kernels)
            .cache_type(self.cache_type)
            .use_dummy_weight(self.use_dummy_weight)
            .seed(self.seed)
            .progress(!self.no_progress);
        if let Some(sizes) = &self.cuda_graph_bs {
            builder = builder.cuda_graph_bs(sizes.0.clone());
        }
        if let Some(size) = self.cuda_graph_max_bs {
            builder = builder.cuda_graph_max_bs(size);
        }
        if let Some(num_tokens) = self.max_extend_tokens {
            builder = builder.max_extend_tokens(num_tokens);
        }
        if let Some(ratio) = self.memory_ratio {
            builder = builder.memory_ratio(ratio);
        }
        if let Some(num) = self.num_page_override {
            builder = builder.num_page_override(num);
        }
        if let Some(len) = self.max_seq_len_override {
            builder = builder.max_seq_len_override(len);
        }
        if let Some(num) = self.threads {
            builder = builder.threads(num);
        }
        if let Some(path) = &self.tokenizer {
            builder = builder.tokenizer(path);
        }
        builder
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// 0 is greedy: the most likely token
    #[arg(long, value_name = "T", default_value = "0", allow_negative_numbers = true)]
    temperature: f32,
    /// Keep the K most likely tokens; below 1: off
    #[arg(long, value_name = "K", default_value = "-1", allow_negative_numbers = true)]
    top_k: i32,
    /// Keep the most likely tokens whose probabilities sum to P
    #[arg(long, value_name = "P", default_value = "1", allow_negative_numbers = true)]
    top_p: f32,
    /// Drop tokens under P times the largest probability
    #[arg(long, value_name = "P", default_value = "0", allow_negative_numbers = true)]
    min_p: f32,
    /// New tokens at most
    #[arg(long, value_name = "N", default_value = "1024")]
    max_tokens: usize,
    /// Go on past the model's end-of-text tokens
    #[arg(long)]
    ignore_eos: bool,
    /// End before this text; give it several times for several
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// End on these token ids, as in 13,198
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    stop_token_ids: Vec<u32>,
    /// Subtracted from the logit of each token generated so far, from -2 to 2
    #[arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtracted once for each time it was generated, from -2 to 2
    #[arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output
    #[arg(long, value_name = "X", default_value = "1", allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// Report the log probabilities of the chosen and of the N most likely tokens
    #[arg(long, value_name = "N")]
    logprobs: Option<usize>,
    /// Completions of each prompt
    #[arg(long, short, value_name = "N", default_value = "1")]
    n: usize,
    /// Show special tokens in the text
    #[arg(long)]
    show_special_tokens: bool,
}

impl SamplingArgs {
    pub(crate) fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            max_tokens: self.max_tokens,
            ignore_eos: self.ignore_eos,
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            seed: None,
            logprobs: self.logprobs,
            n: self.n,
            skip_special_tokens: !self.show_special_tokens,
        }
    }

    /// The params, or what is wrong with a flag.
    pub(crate) fn checked_params(&self) -> crate::error::Result<SamplingParams> {
        let params = self.params();
        params
            .validate()
            .map_err(|why| crate::error::CliError::Usage(format!("invalid sampling flags: {why}")))?;
        Ok(params)
    }
}

/// `None` is the checkpoint's. A type of its own, because clap gives `Option` another meaning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DTypeArg(pub(crate) Option<DType>);

/// A type of its own, because clap gives `Vec` another meaning.
#[derive(Clone, Debug)]
pub(crate) struct Sizes(Vec<usize>);

fn parse_dtype(text: &str) -> Result<DTypeArg, String> {
    match text {
        "auto" => Ok(DTypeArg(None)),
        _ => text
            .parse()
            .map(|dtype| DTypeArg(Some(dtype)))
            .map_err(|_| format!("unknown dtype '{text}': expected bf16, f16, f32 or auto")),
    }
}

fn parse_sizes(text: &str) -> Result<Sizes, String> {
    let parts = text.trim_matches(['[', ']']).split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| positive(part).map_err(|why| format!("'{part}' in the list: {why}")))
        .collect::<Result<_, _>>()
        .map(Sizes)
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_variable(text: &str) -> Result<(String, serde_json::Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| serde_json::Value::String(value.into()));
    Ok((name.into(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_library() {
        let cli = Cli::parse_from(["minisgl", "generate", "--model", "m", "--prompt", "p"]);
        let Command::Generate(args) = cli.command else { panic!("{cli:?}") };
        assert_eq!(args.sampling.params(), SamplingParams::default());
        assert_eq!(format!("{:?}", args.engine.builder()), format!("{:?}", LLM::builder("m")));
    }

    #[test]
    fn lists_of_sizes() {
        assert_eq!(parse_sizes("1,2, 4").unwrap().0, [1, 2, 4]);
        assert!(parse_sizes("").unwrap().0.is_empty());
        assert!(parse_sizes("[]").unwrap().0.is_empty());
        assert_eq!(parse_sizes("1,0").unwrap_err(), "'0' in the list: expected at least 1");
    }
}
