//! Splits a source file into tokens: identifiers, punctuation, and a stand-in for each literal. Drops comments.

use std::{iter::Peekable, str::CharIndices};

/// The token for a string, a character or a lifetime.
const LITERAL: &str = "\"";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    pub(crate) text: &'a str,
    pub(crate) line: usize,
}

impl Token<'_> {
    pub(crate) fn is_identifier(self) -> bool {
        self.text.starts_with(is_word)
    }
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// The tokens of `source`.
pub(crate) fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut lexer = Lexer {
        source,
        chars: source.char_indices().peekable(),
    };
    let mut tokens = Vec::new();
    let (mut line, mut counted) = (1, 0);
    while let Some((start, text)) = lexer.token() {
        line += source[counted..start].matches('\n').count();
        counted = start;
        tokens.push(Token { text, line });
    }
    tokens
}

struct Lexer<'a> {
    source: &'a str,
    chars: Peekable<CharIndices<'a>>,
}

impl<'a> Lexer<'a> {
    /// The next token and where it begins.
    fn token(&mut self) -> Option<(usize, &'a str)> {
        loop {
            let (start, char) = self.chars.next()?;
            let rest = &self.source[start..];
            if char.is_whitespace() {
                continue;
            }
            if rest.starts_with("//") {
                self.skip(rest.find('\n').unwrap_or(rest.len()) - 1);
                continue;
            }
            if rest.starts_with("/*") {
                self.skip(block_comment(rest) - 1);
                continue;
            }
            let (len, is_literal) = match char {
                '"' | '\'' => (quoted(rest), true),
                _ if is_word(char) => {
                    let word = rest.find(|char| !is_word(char)).unwrap_or(rest.len());
                    match text_after_prefix(&rest[..word], &rest[word..]) {
                        Some(len) => (word + len, true),
                        None => (word, false),
                    }
                }
                _ if rest.starts_with("::") => (2, false),
                _ => (char.len_utf8(), false),
            };
            self.skip(len - char.len_utf8());
            let text = if is_literal { LITERAL } else { &rest[..len] };
            return Some((start, text));
        }
    }

    fn skip(&mut self, bytes: usize) {
        let Some(&(start, _)) = self.chars.peek() else {
            return;
        };
        while self.chars.next_if(|(at, _)| *at < start + bytes).is_some() {}
    }
}

/// The length of the comment that `rest` begins with, nested comments included.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        let step = match rest.as_bytes()[at..] {
            [b'/', b'*', ..] => {
                depth += 1;
                2
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                2
            }
            _ => 1,
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of the string, the character or the lifetime that `rest` begins with.
fn quoted(rest: &str) -> usize {
    let mut chars = rest.char_indices();
    let quote = chars.next().map(|(_, quote)| quote);
    let mut following = chars.clone().map(|(_, char)| char);
    if quote == Some('\'') && following.next() != Some('\\') && following.next() != Some('\'') {
        return 1 + rest[1..]
            .find(|char| !is_word(char))
            .unwrap_or(rest.len() - 1);
    }
    while let Some((at, char)) = chars.next() {
        if char == '\\' {
            chars.next();
        } else if Some(char) == quote {
            return at + 1;
        }
    }
    rest.len()
}

/// The length of the string that `rest` begins with when `prefix` stands before it: `b`, `r`, `br#` and the like.
fn text_after_prefix(prefix: &str, rest: &str) -> Option<usize> {
    match prefix {
        "b" | "c" if rest.starts_with(['"', '\'']) => Some(quoted(rest)),
        "r" | "br" | "cr" => {
            let hashes = rest.find(|char| char != '#')?;
            let end = format!("\"{}", &rest[..hashes]);
            let text = rest[hashes..].strip_prefix('"')?;
            Some(hashes + 1 + text.find(&end)? + end.len())
        }
        _ => None,
    }
}

/// The number of tokens from the first, a bracket, to the bracket that closes it.
pub(crate) fn group(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// Drops all attributes, and each item that its attributes restrict to tests.
pub(crate) fn shipped<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let mut kept = Vec::new();
    let mut rest = tokens;
    while let [token, after @ ..] = rest {
        if token.text != "#" {
            kept.push(*token);
            rest = after;
            continue;
        }
        let is_inner = after.first().is_some_and(|token| token.text == "!");
        let (attribute, after) = attribute(rest);
        rest = after;
        if is_for_tests(attribute) && !is_inner {
            while rest.first().is_some_and(|token| token.text == "#") {
                rest = self::attribute(rest).1;
            }
            rest = &rest[item(rest)..];
        }
    }
    kept
}

/// Splits the tokens after the attribute that they begin with. In a macro that can be the `#` alone.
fn attribute<'t, 'a>(tokens: &'t [Token<'a>]) -> (&'t [Token<'a>], &'t [Token<'a>]) {
    let bracket = tokens.iter().take(3).position(|token| token.text == "[");
    let end = bracket.map_or(1, |bracket| bracket + group(&tokens[bracket..]));
    tokens.split_at(end)
}

/// Returns whether the attribute is `#[cfg(test)]` or `#[cfg(any(test, feature = "fuzzing"))]`.
fn is_for_tests(attribute: &[Token<'_>]) -> bool {
    let has = |text| attribute.iter().any(|token| token.text == text);
    has("cfg") && has("test") && !has("not")
}

/// The number of tokens of the item, statement, field or arm that the tokens begin with.
fn item(tokens: &[Token<'_>]) -> usize {
    const ITEMS: [&str; 14] = [
        "pub",
        "fn",
        "mod",
        "use",
        "struct",
        "enum",
        "union",
        "trait",
        "impl",
        "const",
        "static",
        "type",
        "unsafe",
        "macro_rules",
    ];
    let is_item = tokens
        .first()
        .is_some_and(|token| ITEMS.contains(&token.text));
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token.text {
            ";" => return at + 1,
            "," if !is_item => return at + 1,
            "{" => return at + group(&tokens[at..]),
            "(" | "[" => at += group(&tokens[at..]),
            ")" | "]" | "}" => return at,
            _ => at += 1,
        }
    }
    at
}

#[test]
fn comments_strings_and_lifetimes_end_where_they_should() {
    let source = "a /* b /* c */ \" */ // d\n'e' f<'g>(r#\"h \" i\"#, b\"\\\"\", '\\'', x::y) \"j";
    let tokens = tokens(source);
    let texts: Vec<&str> = tokens.iter().map(|token| token.text).collect();
    let expected = "a \" f < \" > ( \" , \" , \" , x :: y ) \"";
    assert_eq!(texts.join(" "), expected);
    assert_eq!((tokens[0].line, tokens[1].line), (1, 2));
}

#[test]
fn items_for_tests_are_dropped() {
    let source = r#"
        #[cfg(test)] mod a { fn b() {} }
        #[cfg(any(test, feature = "fuzzing"))] #[doc(hidden)] pub fn c<D, E>(x: [u8; 2]) -> F {}
        struct G { #[cfg(test)] h: I<J>, k: L }
        #[cfg(not(test))] const M: N = N;
        #[derive(O)] enum P {}
    "#;
    let all = tokens(source);
    let texts: Vec<&str> = shipped(&all).iter().map(|token| token.text).collect();
    let expected = "struct G { k : L } const M : N = N ; enum P { }";
    assert_eq!(texts.join(" "), expected);
}
