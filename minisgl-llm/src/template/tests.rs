use serde::Deserialize;

use super::*;

/// One rendering by Python's jinja2 3.1 in the environment of transformers (`trim_blocks`, `lstrip_blocks`, its
/// `tojson`), recorded in `tests/cases.json`.
#[derive(Deserialize)]
struct Case {
    template: String,
    case: String,
    messages: Vec<Message>,
    tools: Vec<serde_json::Value>,
    add_generation_prompt: bool,
    variables: Map<String, serde_json::Value>,
    text: Option<String>,
    error: Option<String>,
}

fn compile(text: &str) -> Result<ChatTemplate> {
    let tokens = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>"});
    ChatTemplate::new(vec![("default".into(), text.into())], tokens.as_object().unwrap().clone())
}

fn user(content: &str) -> Vec<Message> {
    vec![Message::user(content)]
}

#[test]
fn renders_as_python_does() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("tests/cases.json")).unwrap();
    let template = |name: &str| match name {
        "llama3" => include_str!("tests/llama3.jinja"),
        "qwen2.5" => include_str!("tests/qwen2.5.jinja"),
        "qwen3" => include_str!("tests/qwen3.jinja"),
        _ => include_str!("tests/mistral.jinja"),
    };
    for case in cases {
        let options = ChatOptions {
            add_generation_prompt: case.add_generation_prompt,
            tools: case.tools,
            variables: case.variables,
        };
        let rendered = compile(template(&case.template)).unwrap().render(&case.messages, &options);
        match (rendered, case.text, case.error) {
            (Ok(text), Some(expected), _) => assert_eq!(text, expected, "{} {}", case.template, case.case),
            (Err(error), None, Some(why)) => {
                let error = error.to_string();
                assert!(error.contains(&why), "{} {}: {error}", case.template, case.case);
            }
            (rendered, ..) => panic!("{} {}: {rendered:?}", case.template, case.case),
        }
    }
}

#[test]
fn a_refusal_carries_the_templates_words() {
    let template = compile("{{ raise_exception('roles must alternate') }}").unwrap();
    let error = template.render(&user("x"), &ChatOptions::default()).unwrap_err().to_string();
    assert_eq!(error, "the chat template failed: roles must alternate (line 1)");
}

#[test]
fn a_broken_template_names_its_line() {
    let error = compile("a\n{% if x %}").unwrap_err().to_string();
    assert!(error.starts_with("the model's chat template cannot be compiled: "), "{error}");
    assert!(error.contains("line 2"), "{error}");
}

#[test]
fn generation_tags_print_their_body() {
    let template =
        compile("{%- generation -%} a {%- endgeneration %}|{% for m in messages %}{{ m.role }}{% endfor %}");
    assert_eq!(template.unwrap().render(&user("x"), &ChatOptions::default()).unwrap(), "a|user");
}

#[test]
fn tools_choose_their_template() {
    let templates = vec![("default".into(), "plain".into()), ("tool_use".into(), "tools".into())];
    let template = ChatTemplate::new(templates, Map::new()).unwrap();
    let with_tools = ChatOptions { tools: vec![serde_json::json!({})], ..ChatOptions::default() };
    assert_eq!(template.render(&user("x"), &ChatOptions::default()).unwrap(), "plain");
    assert_eq!(template.render(&user("x"), &with_tools).unwrap(), "tools");
    let only_named =
        ChatTemplate::new(vec![("a".into(), String::new()), ("b".into(), String::new())], Map::new());
    let error = only_named.unwrap().render(&user("x"), &ChatOptions::default()).unwrap_err().to_string();
    assert_eq!(error, "the model has no default chat template, only a, b");
}

#[test]
fn dates_come_from_the_clock() {
    let template = compile("{{ strftime_now('%Y') }}").unwrap();
    let year: u32 = template.render(&user("x"), &ChatOptions::default()).unwrap().parse().unwrap();
    assert!((2024..3000).contains(&year));
}
