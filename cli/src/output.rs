//! Answers on standard output: a table for people, JSON or YAML for programs.

use std::{
    fmt,
    io::{self, Write},
};

use clap::ValueEnum;
use serde_json::Value;

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
    fn columns_line_up_and_missing_values_show() {
        let rows = [
            serde_json::json!({"name": "a", "n": 10}),
            serde_json::json!({"name": "longer"}),
        ];
        let columns: [Column; 2] = [("NAME", |v| text(v, "/name")), ("N", |v| text(v, "/n"))];
        assert_eq!(
            table(&rows, &columns),
            "NAME     N\na        10\nlonger   -\n"
        );
    }
}
