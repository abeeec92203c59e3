//! As much JSON (RFC 8259) as the status answer needs, for its writing and for its reading by the live view.

use std::fmt;

/// Deeper values than this are refused: the answer needs four levels.
const MAX_DEPTH: usize = 16;

/// A JSON value. Numbers are whole and not negative, as all that is counted here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A number.
    Number(u64),
    /// A string.
    Text(String),
    /// `[...]`
    List(Vec<Value>),
    /// `{...}` in the order of its writing.
    Object(Vec<(String, Value)>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Value::Number(number)
    }
}

impl From<Option<u64>> for Value {
    fn from(number: Option<u64>) -> Self {
        number.map_or(Value::Null, Value::Number)
    }
}

impl Value {
    /// An object of these members.
    pub fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
        Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The member of this name, if this is an object that has one.
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Object(members) => members.iter().find(|(member, _)| member == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if this is one.
    pub fn number(&self) -> Option<u64> {
        match self {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The list's values; none if this is no list.
    pub fn list(&self) -> &[Value] {
        match self {
            Value::List(values) => values,
            _ => &[],
        }
    }

    /// Reads one value.
    ///
    /// # Errors
    /// The text is no JSON, is followed by something, is nested deeply, or holds a number that is negative, fractional or
    /// over 64 bits.
    pub fn parse(text: &str) -> Result<Value, ParseError> {
        let mut parser = Parser { text, position: 0 };
        let value = parser.value(0)?;
        parser.blanks();
        if parser.position < text.len() { Err(ParseError(parser.position)) } else { Ok(value) }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Number(number) => write!(f, "{number}"),
            Value::Text(text) => quote(text, f),
            Value::List(values) => {
                f.write_str("[")?;
                for (position, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if position > 0 { "," } else { "" })?;
                }
                f.write_str("]")
            }
            Value::Object(members) => {
                f.write_str("{")?;
                for (position, (name, value)) in members.iter().enumerate() {
                    f.write_str(if position > 0 { "," } else { "" })?;
                    quote(name, f)?;
                    write!(f, ":{value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn quote(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("\"")?;
    for character in text.chars() {
        match character {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\0'..='\x1f' | '\x7f' => write!(f, "\\u{:04x}", u32::from(character))?,
            _ => write!(f, "{character}")?,
        }
    }
    f.write_str("\"")
}

/// The text is no JSON from this byte on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseError(pub usize);

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no JSON from byte {} on", self.0)
    }
}

impl std::error::Error for ParseError {}

struct Parser<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.position..).unwrap_or_default()
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.position += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn take(&mut self, token: &str) -> bool {
        self.blanks();
        let found = self.rest().starts_with(token);
        if found {
            self.position += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), ParseError> {
        if self.take(token) { Ok(()) } else { Err(ParseError(self.position)) }
    }

    fn value(&mut self, depth: usize) -> Result<Value, ParseError> {
        self.blanks();
        if depth > MAX_DEPTH {
            return Err(ParseError(self.position));
        }
        match self.rest().bytes().next() {
            Some(b'{') => self.members(depth),
            Some(b'[') => self.values(depth),
            Some(b'"') => self.string().map(Value::Text),
            Some(b'0'..=b'9') => self.number(),
            _ if self.take("null") => Ok(Value::Null),
            _ if self.take("true") => Ok(Value::Bool(true)),
            _ if self.take("false") => Ok(Value::Bool(false)),
            _ => Err(ParseError(self.position)),
        }
    }

    fn members(&mut self, depth: usize) -> Result<Value, ParseError> {
        self.expect("{")?;
        let mut members = Vec::new();
        if self.take("}") {
            return Ok(Value::Object(members));
        }
        loop {
            self.blanks();
            let name = self.string()?;
            self.expect(":")?;
            members.push((name, self.value(depth + 1)?));
            if !self.take(",") {
                break;
            }
        }
        self.expect("}")?;
        Ok(Value::Object(members))
    }

    fn values(&mut self, depth: usize) -> Result<Value, ParseError> {
        self.expect("[")?;
        let mut values = Vec::new();
        if self.take("]") {
            return Ok(Value::List(values));
        }
        loop {
            values.push(self.value(depth + 1)?);
            if !self.take(",") {
                break;
            }
        }
        self.expect("]")?;
        Ok(Value::List(values))
    }

    fn number(&mut self) -> Result<Value, ParseError> {
        let rest = self.rest();
        let end = rest.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        let (digits, behind) = rest.split_at(end);
        if behind.starts_with(['.', 'e', 'E']) || (digits.len() > 1 && digits.starts_with('0')) {
            return Err(ParseError(self.position));
        }
        let number = digits.parse().map_err(|_| ParseError(self.position))?;
        self.position += end;
        Ok(Value::Number(number))
    }

    fn string(&mut self) -> Result<String, ParseError> {
        self.expect("\"")?;
        let mut string = String::new();
        loop {
            let at = self.position;
            let character = self.character()?;
            match character {
                '"' => return Ok(string),
                '\\' => string.push(self.escape()?),
                '\0'..='\x1f' => return Err(ParseError(at)),
                _ => string.push(character),
            }
        }
    }

    fn character(&mut self) -> Result<char, ParseError> {
        let character = self.rest().chars().next().ok_or(ParseError(self.position))?;
        self.position += character.len_utf8();
        Ok(character)
    }

    fn escape(&mut self) -> Result<char, ParseError> {
        let at = self.position;
        Ok(match self.character()? {
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => match self.code_unit()? {
                high @ 0xd800..=0xdbff if self.rest().starts_with("\\u") => {
                    self.position += 2;
                    let low = self.code_unit()?;
                    let low = Some(low).filter(|low| (0xdc00..0xe000).contains(low)).ok_or(ParseError(at))?;
                    char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)).ok_or(ParseError(at))?
                }
                code => char::from_u32(code).ok_or(ParseError(at))?,
            },
            character @ ('"' | '\\' | '/') => character,
            _ => return Err(ParseError(at)),
        })
    }

    fn code_unit(&mut self) -> Result<u32, ParseError> {
        let digits = self.rest().get(..4).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).ok_or(ParseError(self.position))?;
        self.position += 4;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_json_says() {
        let value = Value::object([
            ("a", Value::Null),
            ("b", Value::List(vec![Value::Bool(true), 7_u64.into(), "x".into()])),
            ("c\"", Value::from("'|\\\"\n\u{1f}\u{7f}\u{fc}\u{1f600}")),
            ("d", Value::Object(Vec::new())),
        ]);
        assert_eq!(value.to_string(), r#"{"a":null,"b":[true,7,"x"],"c\"":"'|\\\"\u000a\u001f\u007fü😀","d":{}}"#);
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        fn make(random: &mut impl FnMut(u64) -> u64, depth: u64) -> Value {
            let text = |random: &mut dyn FnMut(u64) -> u64| -> String {
                (0..random(9)).filter_map(|_| char::from_u32(random(0x3000) as u32)).collect()
            };
            match random(if depth == 0 { 4 } else { 6 }) {
                0 => Value::Null,
                1 => Value::Bool(random(2) == 0),
                2 => Value::Number(u64::MAX >> random(64)),
                3 => Value::Text(text(random)),
                4 => Value::List((0..random(4)).map(|_| make(random, depth - 1)).collect()),
                _ => Value::Object((0..random(4)).map(|_| (text(random), make(random, depth - 1))).collect()),
            }
        }
        for _ in 0..2000 {
            let value = make(&mut random, 4);
            assert_eq!(Value::parse(&value.to_string()), Ok(value));
        }
    }

    #[test]
    fn other_writers_blanks_and_escapes_are_read() {
        let value = Value::parse(" { \"a\" : [ 1 , \"\\u00fc\\uD83D\\ude00\\/\\b\\f\\n\\r\\t\" ] } \n").unwrap();
        let values = value.get("a").unwrap().list();
        assert_eq!(values[0].number(), Some(1));
        assert_eq!(values[1].text(), Some("\u{fc}\u{1f600}/\x08\x0c\n\r\t"));
        assert_eq!(value.get("b"), None);
    }

    #[test]
    fn what_is_no_json_is_an_error_and_never_a_panic() {
        let bad = [
            "",
            "{",
            "[1",
            "[1,]",
            "{\"a\"}",
            "{\"a\":}",
            "{,}",
            "nul",
            "\"a",
            "\"\\x\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\\u00\u{fc}\"",
            "-1",
            "1.5",
            "1e3",
            "01",
            "18446744073709551616",
            "1 2",
            "\"\n\"",
            "\u{fc}",
        ];
        for text in bad {
            assert!(Value::parse(text).is_err(), "{text}");
        }
        assert!(Value::parse(&"[".repeat(100_000)).is_err());
        assert!(Value::parse(&format!("{}{}", "[".repeat(16), "]".repeat(16))).is_ok());
    }
}
