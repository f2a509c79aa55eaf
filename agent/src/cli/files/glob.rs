//! Patterns of names as a shell has them: `*`, `?`, `[a-z]`, `[!x]`, `\*`. Names are bytes.

/// A pattern; any bytes are one.
pub struct Glob(Vec<Token>);

enum Token {
    Byte(u8),
    Any,
    Many,
    Class { negated: bool, ranges: Vec<(u8, u8)> },
}

impl Glob {
    /// Parses a pattern. A `[` without its `]` is itself, as in a shell.
    pub fn new(pattern: &[u8]) -> Self {
        let mut tokens = Vec::new();
        let mut rest = pattern;
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            tokens.push(match byte {
                b'*' => Token::Many,
                b'?' => Token::Any,
                b'\\' if !tail.is_empty() => {
                    rest = &tail[1..];
                    Token::Byte(tail[0])
                }
                b'[' => match class(tail) {
                    Some((token, after)) => {
                        rest = after;
                        token
                    }
                    None => Token::Byte(byte),
                },
                byte => Token::Byte(byte),
            });
        }
        Self(tokens)
    }

    /// Whether the whole of `name` matches.
    pub fn matches(&self, name: &[u8]) -> bool {
        let tokens = &self.0;
        let (mut t, mut n) = (0, 0);
        // Where to go on after the last `*`, with one byte more under it.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            match tokens.get(t) {
                Some(Token::Many) => {
                    retry = Some((t, n));
                    t += 1;
                    continue;
                }
                Some(token) if name.get(n).is_some_and(|&byte| token.takes(byte)) => {
                    t += 1;
                    n += 1;
                    continue;
                }
                None if n == name.len() => return true,
                _ => {}
            }
            match retry {
                Some((star, from)) if from < name.len() => {
                    retry = Some((star, from + 1));
                    t = star + 1;
                    n = from + 1;
                }
                _ => return false,
            }
        }
    }
}

impl Token {
    fn takes(&self, byte: u8) -> bool {
        match self {
            Self::Byte(own) => *own == byte,
            Self::Any => true,
            Self::Many => false,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (low..=high).contains(&&byte)) != *negated
            }
        }
    }
}

/// A class, and what follows it; `rest` begins behind the `[`.
fn class(rest: &[u8]) -> Option<(Token, &[u8])> {
    let negated = matches!(rest.first(), Some(b'!' | b'^'));
    let body = if negated { &rest[1..] } else { rest };
    // A `]` at the start is itself.
    let end = body.iter().skip(1).position(|&byte| byte == b']')? + 1;
    let (mut members, mut ranges) = (&body[..end], Vec::new());
    while let Some((&low, tail)) = members.split_first() {
        match tail {
            [b'-', high, after @ ..] => {
                ranges.push((low, *high));
                members = after;
            }
            _ => {
                ranges.push((low, low));
                members = tail;
            }
        }
    }
    Some((Token::Class { negated, ranges }, &body[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name, matches) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "abc", true),
            ("*.txt", "a.txt", true),
            ("*.txt", ".txt", true),
            ("*.txt", "a.txt.gz", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("??", "ab", true),
            ("??", "abc", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[!a-c]x", "dx", true),
            ("[]x]", "]", true),
            ("[x-]", "-", true),
            ("[a", "[a", true),
            (r"\*", "*", true),
            (r"\*", "a", false),
            ("*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(Glob::new(pattern.as_bytes()).matches(name.as_bytes()), matches, "{pattern} {name}");
        }
        assert!(Glob::new(b"?\xff*").matches(b"a\xffb"));
    }
}
