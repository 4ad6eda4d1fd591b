//! Reads the modules of one source file: their items, their imports, and the paths in their code.

use std::collections::BTreeSet;

use super::tokens::{Token, group};

/// One module. Its child modules are values of their own.
#[derive(Debug, Default)]
pub(crate) struct Module {
    /// The file it is in.
    pub(crate) file: String,
    /// Names of the modules in it.
    pub(crate) children: BTreeSet<String>,
    /// Names of the functions, types and constants in it.
    pub(crate) items: BTreeSet<String>,
    pub(crate) uses: Vec<Use>,
    /// Paths of two names or more in its code.
    pub(crate) paths: Vec<Path>,
    /// Every identifier of its code.
    pub(crate) words: BTreeSet<String>,
}

/// One name that a `use` declaration brings into a module.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) path: Path,
    /// Its name in the module; `None` for `*`.
    pub(crate) name: Option<String>,
    /// Whether others can import it from the module.
    pub(crate) is_public: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
}

/// A module declared in another: in a file of its own, or in braces with its content.
pub(crate) enum Child {
    File(String),
    Inline(String, Module, Vec<Child>),
}

impl Module {
    /// Reads the tokens of a module in `file`.
    pub(crate) fn read(file: &str, tokens: &[Token<'_>]) -> (Self, Vec<Child>) {
        let mut module = Self {
            file: file.to_owned(),
            ..Self::default()
        };
        let mut children = Vec::new();
        let mut is_public = false;
        let mut depth = 0_usize;
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let rest = &tokens[at..];
            let was_public = std::mem::take(&mut is_public);
            let texts: Vec<&str> = rest.iter().take(3).map(|token| token.text).collect();
            at += match texts[..] {
                ["pub", "(", _] => {
                    is_public = true;
                    1 + group(&rest[1..])
                }
                ["pub", ..] => {
                    is_public = true;
                    1
                }
                ["mod", name, ";"] => {
                    module.children.insert(name.to_owned());
                    children.push(Child::File(name.to_owned()));
                    3
                }
                ["mod", name, "{"] => {
                    let len = group(&rest[2..]);
                    let (inline, below) = Self::read(file, &rest[3..1 + len]);
                    module.children.insert(name.to_owned());
                    children.push(Child::Inline(name.to_owned(), inline, below));
                    2 + len
                }
                ["use", ..] => {
                    let len = rest.iter().position(|token| token.text == ";");
                    let len = len.unwrap_or(rest.len());
                    let tree = &rest[1..len];
                    use_tree(tree, &[], was_public, &mut module.uses);
                    len
                }
                [
                    "fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static",
                    name,
                    ..,
                ] if depth == 0 && rest[1].is_identifier() => {
                    module.items.insert(name.to_owned());
                    1
                }
                _ => {
                    match token.text {
                        "{" => depth += 1,
                        "}" => depth = depth.saturating_sub(1),
                        _ => {}
                    }
                    let before = at.checked_sub(1).map_or("", |at| tokens[at].text);
                    module.word_or_path(before, rest)
                }
            };
        }
        (module, children)
    }

    /// Records the word or the path that `rest` begins with. Returns its number of tokens.
    fn word_or_path(&mut self, before: &str, rest: &[Token<'_>]) -> usize {
        let [first, ..] = rest else { return 1 };
        if !first.is_identifier() || matches!(before, "::" | "." | "$") {
            return 1;
        }
        let mut segments = vec![first.text.to_owned()];
        let mut len = 1;
        while let [colons, next, ..] = &rest[len..]
            && colons.text == "::"
            && next.is_identifier()
        {
            segments.push(next.text.to_owned());
            len += 2;
        }
        self.words.insert(first.text.to_owned());
        if segments.len() > 1 {
            let line = first.line;
            self.paths.push(Path { segments, line });
        }
        len
    }
}

/// The names in `a::{b, c::d as e, self, f::*}`, behind `prefix`.
fn use_tree(tokens: &[Token<'_>], prefix: &[String], is_public: bool, uses: &mut Vec<Use>) {
    let mut segments = prefix.to_vec();
    let mut name = None;
    let mut rest = tokens;
    let line = tokens.first().map_or(0, |token| token.line);
    while let [token, after @ ..] = rest {
        match token.text {
            "{" => {
                let inside = &after[..group(rest) - 2];
                for tree in split_at_commas(inside) {
                    use_tree(tree, &segments, is_public, uses);
                }
                return;
            }
            "*" => break,
            // A path that begins with `::` is another crate's: nothing here has this name.
            "::" if segments.is_empty() => segments.push(String::new()),
            "::" => {}
            "as" => {
                name = after.first().map(|token| token.text.to_owned());
                break;
            }
            "self" if !segments.is_empty() => name = segments.last().cloned(),
            segment => {
                segments.push(segment.to_owned());
                name = segments.last().cloned();
            }
        }
        rest = after;
    }
    let is_glob = rest.first().is_some_and(|token| token.text == "*");
    uses.push(Use {
        path: Path { segments, line },
        name: name.filter(|_| !is_glob),
        is_public,
    });
}

fn split_at_commas<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let mut depth = 0;
    tokens
        .split(|token| {
            match token.text {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            depth == 0 && token.text == ","
        })
        .filter(|tree| !tree.is_empty())
        .collect()
}
