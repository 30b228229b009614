//! JSON into templates, and out of them: the `tojson` filter as transformers defines it: Python's `json.dumps` without HTML escaping.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// The template's view of a JSON value. Keys keep their order.
pub(super) fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64()),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), from_json(value))))
        }
    }
}

struct Style {
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(value: &Value, indent: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let indent = indent.or(kwargs.get("indent")?).filter(|v| !v.is_none() && !v.is_undefined());
    let indent = indent.map(usize::try_from).transpose()?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let [item_separator, key_separator] = match separators.as_deref() {
        Some([item, key]) => [item.clone(), key.clone()],
        _ => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
    };
    let style = Style {
        indent,
        item_separator,
        key_separator,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(Value::from_safe_string(out))
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => write_number(out, value),
            ValueKind::String => self.write_string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_list(out, '[', ']', depth, items.len(), |out, i| {
                    self.write(out, &items[i], depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_list(out, '{', '}', depth, keys.len(), |out, i| {
                    self.write_key(out, &keys[i])?;
                    out.push_str(&self.key_separator);
                    self.write(out, &value.get_item(&keys[i])?, depth + 1)
                })?;
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::BadSerialization,
                    format!("{kind} is not JSON serializable"),
                ));
            }
        }
        Ok(())
    }

    fn write_list(
        &self,
        out: &mut String,
        open: char,
        close: char,
        depth: usize,
        len: usize,
        mut write_item: impl FnMut(&mut String, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for i in 0..len {
            if i > 0 {
                out.push_str(&self.item_separator);
            }
            self.new_line(out, depth + 1);
            write_item(out, i)?;
        }
        if len > 0 {
            self.new_line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    /// Keys of objects are strings: numbers, booleans and null become their JSON in quotes.
    fn write_key(&self, out: &mut String, key: &Value) -> Result<(), Error> {
        if key.kind() == ValueKind::String {
            return self.write(out, key, 0);
        }
        let mut text = String::new();
        self.write(&mut text, key, 0)?;
        self.write_string(out, &text);
        Ok(())
    }

    fn write_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// Integers as they are, floats as Python's `repr`: shortest digits, an exponent below 1e-4 and from 1e16 on.
fn write_number(out: &mut String, value: &Value) {
    if value.is_integer() {
        let _ = write!(out, "{value}");
        return;
    }
    let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    let _ = if number.is_nan() {
        out.write_str("NaN")
    } else if number.is_infinite() {
        out.write_str(if number > 0.0 { "Infinity" } else { "-Infinity" })
    } else if number != 0.0 && !(1e-4..1e16).contains(&number.abs()) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        write!(out, "{digits}e{sign}{exponent:0>2}")
    } else if number.fract() == 0.0 {
        write!(out, "{number:.1}")
    } else {
        write!(out, "{number}")
    };
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    fn render(template: &str, json: &str) -> String {
        let mut env = Environment::new();
        env.add_filter("tojson", super::to_json);
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        env.render_str(template, context! { v => super::from_json(&value) }).unwrap()
    }

    /// Expected texts are those of Python's `json.dumps`.
    #[test]
    fn as_python_writes_it() {
        let cases = [
            (r#"{"b": [1, 2.0, -0.5], "a": {}, "c": []}"#, r#"{"b": [1, 2.0, -0.5], "a": {}, "c": []}"#),
            (r#""<a href='x'>&é😀\u007f""#, "\"<a href='x'>&é😀\u{7f}\""),
            (r#""\"\\\n\r\t\b\f\u0001""#, r#""\"\\\n\r\t\b\f\u0001""#),
            (
                "[1e16, 1e-5, 123456789012345.6, 1e22, 0.0001, 1.5e300]",
                "[1e+16, 1e-05, 123456789012345.6, 1e+22, 0.0001, 1.5e+300]",
            ),
            (
                "[true, false, null, 18446744073709551615, -9223372036854775808]",
                "[true, false, null, 18446744073709551615, -9223372036854775808]",
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(render("{{ v | tojson }}", json), expected);
        }
    }

    #[test]
    fn arguments() {
        let json = r#"{"b": [1, {"é": null}], "a": []}"#;
        let indented = "{\n    \"b\": [\n        1,\n        {\n            \"é\": null\n        }\n    ],\n    \"a\": []\n}";
        assert_eq!(render("{{ v | tojson(indent=4) }}", json), indented);
        assert_eq!(render("{{ v | tojson(4) }}", json), indented);
        assert_eq!(render("{{ v | tojson(separators=(',', ':')) }}", json), r#"{"b":[1,{"é":null}],"a":[]}"#);
        assert_eq!(
            render("{{ v | tojson(sort_keys=true, ensure_ascii=true) }}", json),
            r#"{"a": [], "b": [1, {"\u00e9": null}]}"#
        );
        assert_eq!(render("{{ {1: 2, none: 3} | tojson }}", "0"), r#"{"1": 2, "null": 3}"#);
    }
}
