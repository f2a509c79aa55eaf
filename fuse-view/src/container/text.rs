//! The text in which LVM2 keeps its metadata: `name = value` and `name { … }`; values are numbers, strings and lists.

use crate::{Error, Result};

/// Nested sections and lists: a group, its volumes, one of them, its segments and their stripes are six.
const MAX_DEPTH: u32 = 12;
/// Values of all kinds together.
const MAX_VALUES: usize = 1 << 18;

/// What stands behind a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Section(Section),
}

/// What is between braces, in its order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Section(Vec<(String, Value)>);

fn corrupt(what: impl std::fmt::Display) -> Error {
    Error::Corrupt(format!("LVM2 metadata: {what}"))
}

impl Section {
    /// Reads a whole text.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let mut parser = Parser { text, at: 0, values: 0 };
        let section = parser.section(0)?;
        match parser.peek() {
            None => Ok(section),
            Some(_) => Err(parser.unexpected()),
        }
    }

    /// The sections in it, with their names.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((&name[..], section)),
            _ => None,
        })
    }

    /// The section of this name.
    pub fn section(&self, name: &str) -> Option<&Self> {
        self.sections().find(|(own, _)| *own == name).map(|(_, section)| section)
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value)
    }

    pub fn number(&self, name: &str) -> Result<u64> {
        match self.value(name) {
            Some(Value::Number(number)) => Ok(*number),
            _ => Err(corrupt(format!("no number {name}"))),
        }
    }

    pub fn text(&self, name: &str) -> Result<&str> {
        match self.value(name) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(corrupt(format!("no text {name}"))),
        }
    }

    pub fn list(&self, name: &str) -> Result<&[Value]> {
        match self.value(name) {
            Some(Value::List(list)) => Ok(list),
            _ => Err(corrupt(format!("no list {name}"))),
        }
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    values: usize,
}

impl Parser<'_> {
    /// The next byte that is no space and in no comment; a NUL ends the text.
    fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.text.get(self.at).filter(|byte| **byte != 0)?;
            if byte == b'#' {
                let rest = &self.text[self.at..];
                self.at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            } else if byte.is_ascii_whitespace() {
                self.at += 1;
            } else {
                return Some(byte);
            }
        }
    }

    fn take(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn unexpected(&self) -> Error {
        corrupt(format!("byte {} is not what belongs there", self.at))
    }

    fn word(&mut self) -> Result<String> {
        self.peek();
        let rest = self.text.get(self.at..).unwrap_or_default();
        let is_end = |byte: &u8| !(byte.is_ascii_alphanumeric() || b"_.+-".contains(byte));
        let len = rest.iter().position(is_end).unwrap_or(rest.len());
        self.at += len;
        let word = String::from_utf8_lossy(&rest[..len]).into_owned();
        if word.is_empty() { Err(self.unexpected()) } else { Ok(word) }
    }

    fn section(&mut self, depth: u32) -> Result<Section> {
        let mut section = Section::default();
        while self.peek().is_some_and(|byte| byte != b'}') {
            let name = self.word()?;
            let value = if self.take(b'{') {
                self.deeper(depth)?;
                let inner = self.section(depth + 1)?;
                if !self.take(b'}') {
                    return Err(self.unexpected());
                }
                Value::Section(inner)
            } else if self.take(b'=') {
                self.single(depth)?
            } else {
                return Err(self.unexpected());
            };
            section.0.push((name, value));
        }
        Ok(section)
    }

    fn deeper(&mut self, depth: u32) -> Result<()> {
        self.values += 1;
        if depth >= MAX_DEPTH || self.values > MAX_VALUES {
            return Err(corrupt("nested too deeply, or too much of it"));
        }
        Ok(())
    }

    fn single(&mut self, depth: u32) -> Result<Value> {
        self.deeper(depth)?;
        if self.take(b'[') {
            let mut list = Vec::new();
            while !self.take(b']') {
                list.push(self.single(depth + 1)?);
                if !self.take(b',') && self.peek() != Some(b']') {
                    return Err(self.unexpected());
                }
            }
            return Ok(Value::List(list));
        }
        if self.take(b'"') {
            return self.quoted().map(Value::Text);
        }
        let word = self.word()?;
        // Negative and broken numbers say nothing about where volumes lie.
        Ok(word.parse().map_or(Value::Text(word), Value::Number))
    }

    fn quoted(&mut self) -> Result<String> {
        let mut text = Vec::new();
        loop {
            let byte = self.text.get(self.at).copied().ok_or_else(|| self.unexpected())?;
            self.at += 1;
            match byte {
                b'"' => return Ok(String::from_utf8_lossy(&text).into_owned()),
                b'\\' => {
                    text.push(self.text.get(self.at).copied().ok_or_else(|| self.unexpected())?);
                    self.at += 1;
                }
                _ => text.push(byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lvm_writes_is_read() {
        let text = b"vg {\n\tid = \"a\\\"b\" # a comment\n\tseqno = 7\n\tflags = []\n\tstripes = [\n\"pv0\", 12\n]\n\
                     \tinner { negative = -1 }\n}\n# Generated\ncontents = \"Text Format Volume Group\"\n\0rest";
        let all = Section::parse(text).unwrap();
        let vg = all.section("vg").unwrap();
        assert_eq!((vg.text("id").unwrap(), vg.number("seqno").unwrap()), ("a\"b", 7));
        assert_eq!(vg.list("stripes").unwrap(), [Value::Text("pv0".into()), Value::Number(12)]);
        assert!(
            vg.list("flags").unwrap().is_empty() && vg.section("inner").unwrap().number("negative").is_err()
        );
        assert_eq!(all.text("contents").unwrap(), "Text Format Volume Group");
    }

    #[test]
    fn what_nobody_writes_is_an_error() {
        for text in [
            "a",
            "a {",
            "a = ",
            "a = [1",
            "a = [1 2]",
            "a = \"x",
            "a = \"x\\",
            "}",
            "= 1",
            "a { } }",
            "\"a\" = 1",
        ] {
            assert!(matches!(Section::parse(text.as_bytes()), Err(Error::Corrupt(_))), "{text}");
        }
        assert!(Section::parse("a {".repeat(100_000).as_bytes()).is_err());
        assert!(Section::parse(format!("a = {}", "[".repeat(100_000)).as_bytes()).is_err());
        assert!(Section::parse(format!("a = [{}]", "1,".repeat(MAX_VALUES)).as_bytes()).is_err());
    }
}
