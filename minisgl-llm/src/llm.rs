use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minisgl_engine::request::Request;
use minisgl_engine::{Engine, EngineInfo, Stats};

use crate::builder::LLMBuilder;
use crate::error::{Error, InvalidPrompts, Problem, Result};
use crate::flight::{Flight, Job};
use crate::generate_iter::GenerateIter;
use crate::output::Output;
use crate::params::{ParamsList, SamplingParams, derive_seed};
use crate::parts::LLMParts;
use crate::progress::Progress;
use crate::prompt::{IntoPrompts, Message, Prompt};
use crate::stream::Stream;
use crate::template::{ChatOptions, ChatTemplate};
use crate::tokenizer::{Detokenizer, Tokenizer};

/// A loaded model that continues prompts.
///
/// Calls from several threads run in one shared batch. Every prompt of a call is checked before anything runs.
/// Dropping it, and the streams that it started, releases everything; several can live in one process.
#[derive(Clone, Debug)]
pub struct LLM {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) engine: Engine,
    /// Or why there is none.
    pub(crate) tokenizer: std::result::Result<Arc<Tokenizer>, String>,
    /// Or why there is none.
    pub(crate) template: std::result::Result<ChatTemplate, String>,
    pub(crate) seed: u64,
    /// Requests submitted so far that chose no seed of their own.
    pub(crate) num_requests: AtomicU64,
    pub(crate) progress: bool,
}

impl LLM {
    /// Settings for a model: a directory of Hugging Face files, or a model id like `org/name` or `org/name@revision`.
    pub fn builder(model: impl Into<String>) -> LLMBuilder {
        LLMBuilder::new(model)
    }

    /// The model with the default settings.
    ///
    /// # Errors
    /// As [`LLMBuilder::build`].
    pub fn new(model: impl Into<String>) -> Result<Self> {
        Self::builder(model).build()
    }

    /// An LLM around an engine that runs already: on a backend of the caller's own, or with a tokenizer that is no
    /// file.
    pub fn from_parts(parts: LLMParts) -> Self {
        let none = |what: &str| format!("this LLM was put together without a {what}");
        let LLMParts { engine, tokenizer, template, seed, progress } = parts;
        Self::from_inner(Inner {
            engine,
            tokenizer: tokenizer.ok_or_else(|| none("tokenizer: only token ids can be used as prompts")),
            template: template.ok_or_else(|| none("chat template")),
            seed,
            num_requests: AtomicU64::new(0),
            progress,
        })
    }

    pub(crate) fn from_inner(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Continues every prompt; returns one output a prompt, in order.
    ///
    /// `prompts` are strings, token-id lists or conversations; `params` is one `SamplingParams` for all of them,
    /// or a list with one for each.
    ///
    /// # Errors
    /// [`Error::Invalid`] names every prompt that cannot be run and why, [`Error::Argument`] a number of params
    /// that is not the number of prompts: nothing was run then. [`Error::Failed`] names the first request that
    /// failed while it ran.
    pub fn generate(&self, prompts: impl IntoPrompts, params: impl Into<ParamsList>) -> Result<Vec<Output>> {
        let jobs = self.inner.prepare_all(prompts.into_prompts(), &params.into())?;
        let num_prompts = jobs.len();
        let progress = if self.inner.progress { Progress::on_terminal(Some(num_prompts)) } else { None };
        let mut flight = Flight::new(Arc::clone(&self.inner), progress);
        flight.submit(jobs)?;
        let mut outputs: Vec<Option<Result<Output>>> = (0..num_prompts).map(|_| None).collect();
        while let Some((index, result)) = flight.next_ended() {
            outputs[index] = Some(result);
        }
        outputs.into_iter().flatten().collect()
    }

    /// Continues a conversation, rendered by the model's chat template.
    ///
    /// # Errors
    /// As [`generate`](Self::generate); the model has no chat template, or it refuses the conversation.
    pub fn chat(
        &self,
        messages: impl Into<Vec<Message>>,
        params: impl Into<SamplingParams>,
    ) -> Result<Output> {
        self.chat_with(messages, &ChatOptions::default(), params)
    }

    /// As [`chat`](Self::chat), with tools and variables for the template.
    ///
    /// # Errors
    /// As [`chat`](Self::chat).
    pub fn chat_with(
        &self,
        messages: impl Into<Vec<Message>>,
        options: &ChatOptions,
        params: impl Into<SamplingParams>,
    ) -> Result<Output> {
        let token_ids = self.encode_chat(&messages.into(), options)?;
        let mut outputs = self.generate([token_ids], params.into())?;
        Ok(outputs.remove(0))
    }

    /// Continues a prompt and hands out its text while it is generated.
    ///
    /// # Errors
    /// As [`generate`](Self::generate); `params.n` is not 1.
    pub fn stream(&self, prompt: impl Into<Prompt>, params: impl Into<SamplingParams>) -> Result<Stream> {
        let params = params.into();
        if params.n != 1 {
            return Err(Error::Argument(format!("n is {}, a stream has one completion", params.n)));
        }
        let mut jobs = self.inner.prepare_all(vec![prompt.into()], &ParamsList::All(params))?;
        Stream::start(Arc::clone(&self.inner), jobs.remove(0).1)
    }

    /// Continues any number of prompts with bounded memory: takes them from `prompts` as there is room for them
    /// and yields each output with the index of its prompt as it finishes.
    pub fn generate_iter<I>(
        &self,
        prompts: I,
        params: SamplingParams,
    ) -> GenerateIter<impl Iterator<Item = std::result::Result<(Prompt, SamplingParams), String>> + use<I>>
    where
        I: IntoIterator,
        I::Item: Into<Prompt>,
    {
        self.generate_iter_each(prompts.into_iter().map(move |prompt| Ok((prompt.into(), params.clone()))))
    }

    /// As [`generate_iter`](Self::generate_iter), with params for each prompt. An `Err` stands for a prompt that
    /// could not be read, as a broken line of a file: it is yielded as [`Error::Invalid`] in its place.
    pub fn generate_iter_each<I>(&self, requests: I) -> GenerateIter<I::IntoIter>
    where
        I: IntoIterator<Item = std::result::Result<(Prompt, SamplingParams), String>>,
    {
        GenerateIter::new(Arc::clone(&self.inner), requests.into_iter())
    }

    /// Checks a prompt and its params without running them.
    ///
    /// # Errors
    /// What [`generate`](Self::generate) would say.
    pub fn validate(&self, prompt: impl Into<Prompt>, params: &SamplingParams) -> Result<()> {
        let params = ParamsList::All(params.clone());
        self.inner.prepare_all(vec![prompt.into()], &params).map(|_| ())
    }

    /// The text that the chat template makes of a conversation.
    ///
    /// # Errors
    /// The model has no chat template, or it refuses the conversation.
    pub fn render_chat(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        self.inner.render_chat(messages, options)
    }

    /// The token ids that the chat template makes of a conversation. BOS is where the template writes it.
    ///
    /// # Errors
    /// As [`render_chat`](Self::render_chat); the model has no tokenizer.
    pub fn encode_chat(&self, messages: &[Message], options: &ChatOptions) -> Result<Vec<u32>> {
        let text = self.render_chat(messages, options)?;
        self.tokenizer()?.encode(&text, false)
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// The model has none.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        self.inner.tokenizer.as_ref().map_err(|why| Error::Tokenizer(why.clone()))
    }

    /// What was loaded, and where.
    pub fn info(&self) -> &EngineInfo {
        self.inner.engine.info()
    }

    /// Counters as of the last step.
    pub fn stats(&self) -> Stats {
        self.inner.engine.stats()
    }
}

impl Inner {
    pub(crate) fn detokenizer(&self, skip_special_tokens: bool) -> Option<Detokenizer> {
        let tokenizer = self.tokenizer.as_ref().ok()?;
        Some(Detokenizer::new(Arc::clone(tokenizer), skip_special_tokens))
    }

    fn render_chat(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        let template = self.template.as_ref().map_err(|why| Error::Template(why.clone()))?;
        template.render(messages, options)
    }

    /// Checks every prompt; fails with all that is wrong. The jobs are in order and have their seeds.
    fn prepare_all(&self, prompts: Vec<Prompt>, params: &ParamsList) -> Result<Vec<(usize, Job)>> {
        let num_prompts = prompts.len();
        if let Some(num_params) = params.required_prompts().filter(|&num| num != num_prompts) {
            return Err(Error::Argument(format!(
                "{num_params} sampling params for {num_prompts} prompts: give one for all or one for each"
            )));
        }
        let mut jobs = Vec::with_capacity(num_prompts);
        let mut problems = Vec::new();
        for (index, prepared) in self.prepare_in_parallel(prompts, params).into_iter().enumerate() {
            match prepared {
                Ok(job) => jobs.push((index, job)),
                Err(why) => problems.push(Problem { index, why }),
            }
        }
        if !problems.is_empty() {
            return Err(Error::Invalid(InvalidPrompts { problems, num_prompts }));
        }
        self.assign_seeds(&mut jobs);
        Ok(jobs)
    }

    /// Encoding is the slow part: long lists are spread over all cores.
    fn prepare_in_parallel(
        &self,
        prompts: Vec<Prompt>,
        params: &ParamsList,
    ) -> Vec<std::result::Result<Job, String>> {
        const MIN_CHUNK: usize = 16;
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let chunk_len = prompts.len().div_ceil(num_threads).max(MIN_CHUNK);
        let prepare_chunk = |first: usize, chunk: Vec<Prompt>| -> Vec<_> {
            let indices = first..;
            indices.zip(chunk).map(|(index, prompt)| self.prepare(prompt, params.get(index))).collect()
        };
        if prompts.len() <= chunk_len {
            return prepare_chunk(0, prompts);
        }
        let mut prompts = prompts.into_iter();
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for first in (0..prompts.len()).step_by(chunk_len) {
                let chunk: Vec<Prompt> = prompts.by_ref().take(chunk_len).collect();
                threads.push(scope.spawn(move || prepare_chunk(first, chunk)));
            }
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }

    /// Encodes and checks one prompt.
    pub(crate) fn prepare(
        &self,
        prompt: Prompt,
        params: &SamplingParams,
    ) -> std::result::Result<Job, String> {
        params.validate()?;
        if let (Some(stop), Err(why)) = (params.stop.first(), &self.tokenizer) {
            return Err(format!("stop string {stop:?} needs a tokenizer: {why}"));
        }
        let token_ids = self.encode(prompt)?;
        if token_ids.is_empty() {
            return Err("the prompt is empty".into());
        }
        let request = Request { token_ids, params: params.request_params(params.seed.unwrap_or(0)) };
        self.engine.validate(&request).map_err(|e| e.to_string())?;
        Ok(Job {
            request,
            stop: params.stop.clone(),
            skip_special_tokens: params.skip_special_tokens,
            n: params.n,
            has_seed: params.seed.is_some(),
        })
    }

    fn encode(&self, prompt: Prompt) -> std::result::Result<Vec<u32>, String> {
        let encode = |text: &str, add_special_tokens| {
            let tokenizer = self.tokenizer.as_ref().map_err(Clone::clone)?;
            tokenizer.encode(text, add_special_tokens).map_err(|e| e.to_string())
        };
        match prompt {
            Prompt::TokenIds(token_ids) => Ok(token_ids),
            // A tokenizer that adds BOS would make a prompt of nothing.
            Prompt::Text(text) if text.is_empty() => Ok(Vec::new()),
            Prompt::Text(text) => encode(&text, true),
            Prompt::Chat(messages) => {
                let text = self.render_chat(&messages, &ChatOptions::default()).map_err(|e| e.to_string())?;
                encode(&text, false)
            }
        }
    }

    /// Gives each request without a seed of its own one that depends on how many there were before.
    pub(crate) fn assign_seeds(&self, jobs: &mut [(usize, Job)]) {
        let unseeded = jobs.iter_mut().filter(|(_, job)| !job.has_seed);
        let mut unseeded: Vec<_> = unseeded.map(|(_, job)| &mut job.request.params.seed).collect();
        let first = self.num_requests.fetch_add(unseeded.len() as u64, Ordering::Relaxed);
        for (number, seed) in (first..).zip(&mut unseeded) {
            **seed = derive_seed(self.seed, number);
        }
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("engine", &self.engine).finish_non_exhaustive()
    }
}
