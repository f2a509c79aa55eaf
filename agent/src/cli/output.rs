//! Standard output: tables with one header line, or JSON. Everything that is not data goes to stderr.

use super::{
    failure::{Failure, Result},
    model,
};
use serde::Serialize;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal.
    #[default]
    Auto,
    /// Also into files and pipes.
    Always,
    /// Not at all.
    Never,
}

impl ColorChoice {
    /// Whether to colour a stream; `NO_COLOR` counts as `never` unless colour was asked for.
    pub fn on(self, is_terminal: bool) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }
}

/// A column of a table.
pub struct Column {
    title: &'static str,
    right: bool,
}

/// A column whose cells start together.
pub const fn left(title: &'static str) -> Column {
    Column { title, right: false }
}

/// A column whose cells end together.
pub const fn right(title: &'static str) -> Column {
    Column { title, right: true }
}

/// Standard output of one command.
pub struct Output {
    /// JSON instead of tables.
    pub json: bool,
    /// Neither progress nor notes.
    pub quiet: bool,
    /// Colour on stdout.
    pub color: bool,
    /// Not locked: the agent's other threads may print, too.
    stdout: BufWriter<Stdout>,
}

impl Output {
    /// Standard output with the global options.
    pub fn new(json: bool, quiet: bool, color: ColorChoice) -> Self {
        let color = color.on(io::stdout().is_terminal());
        Self { json, quiet, color, stdout: BufWriter::with_capacity(1 << 16, io::stdout()) }
    }

    /// Writes bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stdout.write_all(bytes).map_err(|e| Failure::output(&e))
    }

    /// Writes a line.
    pub fn line(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdout, "{line}").map_err(|e| Failure::output(&e))
    }

    /// Writes what is buffered.
    pub fn flush(&mut self) -> Result<()> {
        self.stdout.flush().map_err(|e| Failure::output(&e))
    }

    /// Writes `value` as one line of JSON.
    pub fn json_line(&mut self, value: &impl Serialize) -> Result<()> {
        let line = model::json(value)?;
        self.line(&line)
    }

    /// Writes a list: a JSON array, or a table of the cells that `row` gives. An empty table is its header.
    pub fn list<T: Serialize>(
        &mut self,
        items: &[T],
        columns: &[Column],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<()> {
        if self.json {
            return self.json_line(&items);
        }
        let rows: Vec<Vec<String>> = items.iter().map(row).collect();
        let text = table(columns, &rows, self.color);
        self.bytes(text.as_bytes())
    }

    /// Writes one thing: a JSON object, or its named properties one a line.
    pub fn object(&mut self, value: &impl Serialize, properties: &[(&str, String)]) -> Result<()> {
        if self.json {
            return self.json_line(value);
        }
        let width = properties.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in properties {
            let line = format!("{name:<width$}  {}", printable(value));
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    /// Tells on stderr what was done; not with `-q` or `--json`.
    pub fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            eprintln!("{}", printable(text));
        }
    }

    /// Tells on stderr what the user should know, also with `-q`.
    pub fn warn(&self, text: &str) {
        if self.json {
            eprintln!("{}", serde_json::json!({ "warning": text }));
        } else {
            eprintln!("warning: {}", printable(text));
        }
    }
}

/// Lays out a table: columns two spaces apart, no trailing blanks.
fn table(columns: &[Column], rows: &[Vec<String>], color: bool) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let width_of = |text: &str| text.chars().count();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(i, column)| {
            let cells = rows.iter().filter_map(|row| row.get(i)).map(|cell| width_of(cell));
            cells.max().unwrap_or(0).max(column.title.len())
        })
        .collect();
    let lay = |cells: &[&str]| {
        let mut line = String::new();
        for ((cell, column), width) in cells.iter().zip(columns).zip(&widths) {
            let blanks = " ".repeat(width - width_of(cell));
            let (before, after) = if column.right { (blanks.as_str(), "") } else { ("", blanks.as_str()) };
            line.push_str(&format!("{before}{cell}{after}  "));
        }
        line.trim_end().to_owned()
    };
    let titles: Vec<&str> = columns.iter().map(|column| column.title).collect();
    let header = lay(&titles);
    let mut text = if color { format!("\x1b[1m{header}\x1b[0m\n") } else { format!("{header}\n") };
    for row in &rows {
        let cells: Vec<&str> = row.iter().map(String::as_str).collect();
        text.push_str(&lay(&cells));
        text.push('\n');
    }
    text
}

/// Bytes as text that no terminal interprets. UTF-8 without control characters stays as it is; in anything
/// else, bytes are `\xNN`, control characters and backslashes are escaped.
pub fn escape(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.contains(is_hidden)
    {
        return text.to_owned();
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str(r"\\"),
                c if is_hidden(c) => text.extend(c.escape_default()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Text without characters that a terminal would interpret.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Control characters, and the marks that reorder text on a terminal.
fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_end_without_blanks() {
        let rows = vec![
            vec!["db".into(), "20G".into(), "-".into()],
            vec!["größe".into(), "4K".into(), String::new()],
        ];
        assert_eq!(
            table(&[left("NAME"), right("SIZE"), left("DEVICE")], &rows, false),
            "NAME   SIZE  DEVICE\ndb      20G  -\ngröße    4K\n"
        );
        assert_eq!(table(&[left("NAME")], &[], false), "NAME\n");
        assert_eq!(table(&[left("NAME")], &[], true), "\x1b[1mNAME\x1b[0m\n");
    }

    #[test]
    fn nothing_reaches_the_terminal_as_a_command() {
        assert_eq!(escape(b"a\x1b[31m\xff\\\xc3\xa4\n"), r"a\u{1b}[31m\xff\\ä\n");
        assert_eq!(escape(br"a\b"), r"a\b");
        assert_eq!(printable("a\u{1b}b\u{202e}\\"), "a\\u{1b}b\\u{202e}\\");
    }

    #[test]
    fn color_follows_the_option_then_the_terminal() {
        assert!(ColorChoice::Always.on(false));
        assert!(!ColorChoice::Never.on(true));
        assert!(!ColorChoice::Auto.on(false));
    }
}
