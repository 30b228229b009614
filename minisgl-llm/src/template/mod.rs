//! Chat templates: Jinja as Hugging Face transformers renders it (`apply_chat_template`).

mod json;
mod time;

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::Map;

use crate::error::{Error, Result};
use crate::prompt::Message;

/// What a conversation is rendered with beside its messages.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatOptions {
    /// End with the beginning of the assistant's answer. Default true.
    pub add_generation_prompt: bool,
    /// Tools that the model may call, as JSON schemas. A model with a `tool_use` template gets that one.
    pub tools: Vec<serde_json::Value>,
    /// Further variables of the template, as `enable_thinking` of Qwen3.
    pub variables: Map<String, serde_json::Value>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, tools: Vec::new(), variables: Map::new() }
    }
}

/// A model's chat templates, compiled.
pub struct ChatTemplate {
    env: Environment<'static>,
    special_tokens: Map<String, serde_json::Value>,
}

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// Compiles templates by name: `default`, or the only one. `special_tokens` are variables of every template,
    /// as `bos_token`.
    ///
    /// # Errors
    /// A template that cannot be compiled; names template and line.
    pub fn new(
        templates: Vec<(String, String)>,
        special_tokens: Map<String, serde_json::Value>,
    ) -> Result<Self> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| Error::Template(e.to_string()))?);
        env.set_undefined_behavior(UndefinedBehavior::Lenient);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_filter("tojson", json::to_json);
        env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        env.add_function("strftime_now", |format: &str| time::strftime(format, SystemTime::now()));
        let only = templates.len() == 1;
        for (name, text) in templates {
            let name = if only { DEFAULT.to_owned() } else { name };
            env.add_template_owned(name, without_generation_tags(&text)).map_err(|e| {
                Error::Template(format!("the model's chat template cannot be compiled: {}", describe(&e)))
            })?;
        }
        Ok(Self { env, special_tokens })
    }

    /// The text of a conversation. It holds BOS where the template writes it: encode it without adding special
    /// tokens.
    ///
    /// # Errors
    /// The template refuses the conversation (and says why), or fails.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        let named = |name| self.env.get_template(name);
        let template = match named(TOOL_USE) {
            Ok(template) if !options.tools.is_empty() => Ok(template),
            _ => named(DEFAULT),
        }
        .map_err(|_| {
            let mut names: Vec<_> = self.env.templates().map(|(name, _)| name).collect();
            names.sort_unstable();
            Error::Template(format!("the model has no default chat template, only {}", names.join(", ")))
        })?;
        let mut context = self.special_tokens.clone();
        context.insert("messages".into(), to_value(messages)?);
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        // Templates ask both `tools is not none` and `if tools`.
        let tools =
            if options.tools.is_empty() { serde_json::Value::Null } else { to_value(&options.tools)? };
        context.insert("tools".into(), tools);
        context.insert("documents".into(), serde_json::Value::Null);
        context.extend(options.variables.clone());
        template
            .render(json::from_json(&serde_json::Value::Object(context)))
            .map_err(|e| Error::Template(format!("the chat template failed: {}", describe(&e))))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("special_tokens", &self.special_tokens).finish_non_exhaustive()
    }
}

fn to_value<T: serde::Serialize + ?Sized>(value: &T) -> Result<serde_json::Value> {
    serde_json::to_value(value).map_err(|e| Error::Template(format!("a message cannot be rendered: {e}")))
}

fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// `{% generation %}` marks what the assistant wrote, for training on it alone; it prints its body.
fn without_generation_tags(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + len];
        let name = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(&rest[..start + 2]);
        match name {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = &rest[start + len + 2..];
    }
    out + rest
}

#[cfg(test)]
mod tests;
