use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Encoded with the tokenizer's special tokens and without the chat template.
    Text(String),
    /// Used as it is.
    TokenIds(Vec<u32>),
    /// Rendered by the model's chat template.
    Chat(Vec<Message>),
}

/// One message of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// What was said. A template may take more than text: a list of parts, or null beside tool calls.
    #[serde(default)]
    pub content: Value,
    /// Further fields that the template may read, as `tool_calls` or `reasoning_content`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Value::String(content.into()), extra: Map::new() }
    }

    /// Instructions to the model.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt::Text(text.into())
    }
}

impl From<&&str> for Prompt {
    fn from(text: &&str) -> Self {
        Prompt::Text((*text).into())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Prompt::Text(text)
    }
}

impl From<&String> for Prompt {
    fn from(text: &String) -> Self {
        Prompt::Text(text.clone())
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(token_ids: Vec<u32>) -> Self {
        Prompt::TokenIds(token_ids)
    }
}

impl From<&Vec<u32>> for Prompt {
    fn from(token_ids: &Vec<u32>) -> Self {
        Prompt::TokenIds(token_ids.clone())
    }
}

impl From<&[u32]> for Prompt {
    fn from(token_ids: &[u32]) -> Self {
        Prompt::TokenIds(token_ids.into())
    }
}

impl<const N: usize> From<[u32; N]> for Prompt {
    fn from(token_ids: [u32; N]) -> Self {
        Prompt::TokenIds(token_ids.into())
    }
}

impl<const N: usize> From<&[u32; N]> for Prompt {
    fn from(token_ids: &[u32; N]) -> Self {
        Prompt::TokenIds(token_ids.to_vec())
    }
}

impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Prompt::Chat(messages)
    }
}

impl From<&[Message]> for Prompt {
    fn from(messages: &[Message]) -> Self {
        Prompt::Chat(messages.into())
    }
}

/// The prompts of one call: strings, token-id lists or conversations, one kind a call, or a single string.
pub trait IntoPrompts {
    /// The prompts in order.
    fn into_prompts(self) -> Vec<Prompt>;
}

impl<P: Into<Prompt>> IntoPrompts for Vec<P> {
    fn into_prompts(self) -> Vec<Prompt> {
        self.into_iter().map(Into::into).collect()
    }
}

impl<P: Into<Prompt>, const N: usize> IntoPrompts for [P; N] {
    fn into_prompts(self) -> Vec<Prompt> {
        self.into_iter().map(Into::into).collect()
    }
}

impl<P> IntoPrompts for &[P]
where
    for<'a> &'a P: Into<Prompt>,
{
    fn into_prompts(self) -> Vec<Prompt> {
        self.iter().map(Into::into).collect()
    }
}

impl<P> IntoPrompts for &Vec<P>
where
    for<'a> &'a P: Into<Prompt>,
{
    fn into_prompts(self) -> Vec<Prompt> {
        self.as_slice().into_prompts()
    }
}

impl<P, const N: usize> IntoPrompts for &[P; N]
where
    for<'a> &'a P: Into<Prompt>,
{
    fn into_prompts(self) -> Vec<Prompt> {
        self.as_slice().into_prompts()
    }
}

impl IntoPrompts for &str {
    fn into_prompts(self) -> Vec<Prompt> {
        vec![self.into()]
    }
}

impl IntoPrompts for String {
    fn into_prompts(self) -> Vec<Prompt> {
        vec![self.into()]
    }
}

impl IntoPrompts for &String {
    fn into_prompts(self) -> Vec<Prompt> {
        vec![self.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_list() {
        let texts = vec![Prompt::Text("a".into()), Prompt::Text("b".into())];
        let strings = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(["a", "b"].into_prompts(), texts);
        assert_eq!((&["a", "b"]).into_prompts(), texts);
        assert_eq!(["a", "b"].as_slice().into_prompts(), texts);
        assert_eq!(vec!["a", "b"].into_prompts(), texts);
        assert_eq!((&strings).into_prompts(), texts);
        assert_eq!(strings.into_prompts(), texts);
        let ids = vec![Prompt::TokenIds(vec![1, 2]), Prompt::TokenIds(vec![3, 4])];
        assert_eq!([[1, 2], [3, 4]].into_prompts(), ids);
        assert_eq!(vec![vec![1, 2], vec![3, 4]].into_prompts(), ids);
        assert_eq!((&vec![vec![1, 2], vec![3, 4]]).into_prompts(), ids);
        assert_eq!("a".into_prompts(), texts[..1]);
    }

    #[test]
    fn messages_keep_unknown_fields_in_order() {
        let text = r#"{"role":"tool","content":"4","tool_call_id":"x","name":"add"}"#;
        let message: Message = serde_json::from_str(text).unwrap();
        assert_eq!(message.extra.keys().collect::<Vec<_>>(), ["tool_call_id", "name"]);
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
    }
}
