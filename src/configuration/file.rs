//! The TOML file of a service: one key a line, with the name of a flag.

use std::{fs::File, io::Read as _, path::Path};

use toml_edit::{Document, Item, Value};

/// Maximum size of a file, in bytes: far more than all settings together.
const MAX_SIZE: u64 = 1024 * 1024;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileSetting {
    pub(super) key: String,
    /// The line of the key, from 1.
    pub(super) line: usize,
    pub(super) value: FileValue,
}

/// A value, in the words of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FileValue {
    Bool(bool),
    One(String),
    Many(Vec<String>),
}

/// Reads the settings of a file.
///
/// # Errors
/// A message without the name of the file.
pub(super) fn read(path: &Path) -> Result<Vec<FileSetting>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    let read = file.take(MAX_SIZE + 1).read_to_string(&mut text);
    read.map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_SIZE {
        return Err("the file has more than 1 MiB".to_owned());
    }
    parse(&text)
}

/// Parses the text of a file.
pub(super) fn parse(text: &str) -> Result<Vec<FileSetting>, String> {
    let document =
        Document::parse(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    let line_of = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
    let mut settings = Vec::new();
    for (key, item) in document.iter() {
        let span = document
            .key(key)
            .and_then(toml_edit::Key::span)
            .or_else(|| item.span());
        let line = line_of(span.map_or(0, |span| span.start));
        let value = value_of(item).ok_or_else(|| {
            format!("line {line}: `{key}` is not text, a number, true, false, or a list of text")
        })?;
        settings.push(FileSetting {
            key: key.to_owned(),
            line,
            value,
        });
    }
    Ok(settings)
}

fn value_of(item: &Item) -> Option<FileValue> {
    match item.as_value()? {
        Value::Boolean(value) => Some(FileValue::Bool(*value.value())),
        Value::Array(values) => {
            let values: Option<Vec<String>> = values.iter().map(text_of).collect();
            values.map(FileValue::Many)
        }
        value => text_of(value).map(FileValue::One),
    }
}

/// Text or a number as text.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.value().clone()),
        Value::Integer(number) => Some(number.value().to_string()),
        Value::Float(number) => Some(number.value().to_string()),
        _ => None,
    }
}
