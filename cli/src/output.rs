//! Answers on standard output: a table for people, JSON or YAML for programs.

use std::{
    fmt,
    io::{self, Write},
};

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::error::CliError;

/// `print!`, for an output whose reader may leave, as `head` does.
macro_rules! out {
    ($($text:tt)*) => {
        $crate::output::write(format_args!($($text)*))
    };
}

/// `println!`, for an output whose reader may leave.
macro_rules! outln {
    () => {
        $crate::output::write(format_args!("\n"))
    };
    ($($text:tt)*) => {
        $crate::output::write(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// Writes to standard output; ends the process where that cannot be done. The standard macros
/// panic then.
pub(crate) fn write(text: fmt::Arguments<'_>) {
    if let Err(error) = io::stdout().write_fmt(text) {
        std::process::exit(unwritable(&error));
    }
}

/// The same for bytes that are not ours, shown as soon as they are there.
pub(crate) fn write_bytes(bytes: &[u8]) {
    let mut out = io::stdout();
    if let Err(error) = out.write_all(bytes).and_then(|()| out.flush()) {
        std::process::exit(unwritable(&error));
    }
}

/// The exit code. A reader that has left has what it wants: as quiet as SIGPIPE, with the code
/// that a shell shows for it.
fn unwritable(error: &io::Error) -> i32 {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return 141;
    }
    eprintln!("coracle: cannot write the answer: {error}");
    1
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    #[default]
    Table,
    Json,
    Yaml,
}

/// A column: its heading and where its text comes from.
pub(crate) type Column = (&'static str, fn(&Value) -> String);

impl Output {
    /// Prints one value; `table` is called only for [`Output::Table`].
    pub(crate) fn print(self, value: &Value, table: impl FnOnce(&Value)) -> Result<(), CliError> {
        match self {
            Self::Table => table(value),
            Self::Json => outln!("{value:#}"),
            Self::Yaml => out!(
                "{}",
                serde_norway::to_string(value)
                    .map_err(|error| CliError::failed("cannot write YAML", error))?
            ),
        }
        Ok(())
    }

    /// What a change came to. People read a sentence beside the output; programs get the value.
    pub(crate) fn done(self, value: &Value, sentence: &str) -> Result<(), CliError> {
        eprintln!("{sentence}");
        self.print(value, |_| ())
    }

    /// One of many results, each whole by itself as it comes: JSON a line, or YAML documents.
    pub(crate) fn item(self, value: &Value, table: impl FnOnce(&Value)) -> Result<(), CliError> {
        match self {
            Self::Json => outln!("{value}"),
            Self::Yaml => {
                outln!("---");
                self.print(value, |_| ())?;
            }
            Self::Table => table(value),
        }
        Ok(())
    }

    /// Prints the `items` of a list answer.
    pub(crate) fn list(self, answer: &Value, columns: &[Column]) -> Result<(), CliError> {
        let items = answer
            .get("items")
            .cloned()
            .unwrap_or_else(|| answer.clone());
        self.print(&items, |items| {
            out!(
                "{}",
                table(items.as_array().map_or(&[][..], Vec::as_slice), columns)
            );
        })
    }
}

pub(crate) fn table(rows: &[Value], columns: &[Column]) -> String {
    let mut lines: Vec<Vec<String>> = vec![
        columns
            .iter()
            .map(|(heading, _)| (*heading).to_owned())
            .collect(),
    ];
    lines.extend(
        rows.iter()
            .map(|row| columns.iter().map(|(_, cell)| cell(row)).collect()),
    );
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            row.push_str(&format!("{cell:width$}   "));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

/// One value as a table: a line for each thing in it, named by its path. Texts of several lines are
/// only counted; JSON and YAML have them whole.
pub(crate) fn fields(value: &Value) -> String {
    let mut rows = Vec::new();
    flatten(String::new(), value, &mut rows);
    table(
        &rows,
        &[
            ("FIELD", |row| text(row, "/field")),
            ("VALUE", |row| text(row, "/value")),
        ],
    )
}

fn flatten(path: String, value: &Value, rows: &mut Vec<Value>) {
    let shown = match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                let separator = if path.is_empty() { "" } else { "." };
                flatten(format!("{path}{separator}{name}"), member, rows);
            }
            return;
        }
        Value::Object(_) => Value::Null,
        Value::Array(items) => items
            .iter()
            .map(|item| text(item, ""))
            .collect::<Vec<_>>()
            .join(" ")
            .into(),
        Value::String(long) if long.contains('\n') => {
            let (lines, characters) = (long.lines().count(), long.chars().count());
            format!("({lines} lines, {characters} characters)").into()
        }
        other => other.clone(),
    };
    rows.push(json!({"field": path, "value": shown}));
}

/// The text at a JSON pointer; `-` where there is none.
pub(crate) fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(s)) if s.is_empty() => "-".to_owned(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_left_is_no_failure_to_tell_of() {
        assert_eq!(unwritable(&io::ErrorKind::BrokenPipe.into()), 141);
        assert_eq!(unwritable(&io::ErrorKind::StorageFull.into()), 1);
    }

    #[test]
    fn a_value_is_a_line_for_each_thing_in_it() {
        let value = json!({
            "name": "a",
            "code": "def main():\n    return 1\n",
            "scale": {"min": 0, "max": 2},
            "keys": ["one", "two"],
            "env": {},
            "reason": null,
        });
        let shown = fields(&value);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines,
            [
                "FIELD       VALUE",
                "name        a",
                "code        (2 lines, 25 characters)",
                "scale.min   0",
                "scale.max   2",
                "keys        one two",
                "env         -",
                "reason      -",
            ]
        );
    }

    #[test]
    fn columns_line_up_and_missing_values_show() {
        let rows = [json!({"name": "a", "n": 10}), json!({"name": "longer"})];
        let columns: [Column; 2] = [("NAME", |v| text(v, "/name")), ("N", |v| text(v, "/n"))];
        assert_eq!(
            table(&rows, &columns),
            "NAME     N\na        10\nlonger   -\n"
        );
    }
}
