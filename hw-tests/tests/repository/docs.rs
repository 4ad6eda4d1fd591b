//! Checks that the files, folders and functions named in the documents exist.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The repository, and the relative paths of all its files and folders. A slash ends the path of a folder.
struct Tree {
    root: PathBuf,
    paths: Vec<String>,
}

impl Tree {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut tree = Self {
            root: root.to_owned(),
            paths: Vec::new(),
        };
        tree.add("");
        tree
    }

    fn add(&mut self, folder: &str) {
        for entry in fs::read_dir(self.root.join(folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = format!("{folder}{name}");
            if !entry.file_type().unwrap().is_dir() {
                self.paths.push(path);
            } else if !name.starts_with('.') && name != "target" {
                let path = path + "/";
                self.add(&path);
                self.paths.push(path);
            }
        }
    }

    /// Returns whether `path` exists. It may lack its first folders: `src/lib.rs`.
    fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        self.paths.iter().any(|there| {
            let before = there.trim_end_matches('/').strip_suffix(path);
            before.is_some_and(|before| before.is_empty() || before.ends_with('/'))
        })
    }

    /// Returns whether `text` has the form of a path of the repository: a Rust file, a folder, or a path below a top folder.
    fn is_path(&self, text: &str) -> bool {
        let Some((first, _)) = text.split_once('/') else {
            return false;
        };
        let is_plain = |char: char| char.is_ascii_alphanumeric() || "/-_.".contains(char);
        let is_placeholder = |part: &str| part.len() > 1 && part.chars().all(char::is_uppercase);
        let mut parts = text.split(['/', '.']);
        let is_top = self.paths.contains(&format!("{first}/"));
        text.chars().all(is_plain)
            && !first.is_empty()
            && !parts.any(is_placeholder)
            && (is_top || text.ends_with(".rs") || text.ends_with('/'))
    }
}

/// The spans between backticks in a document. Blocks of code are left out.
fn quoted(document: &str) -> Vec<&str> {
    let blocks = document.split("```").step_by(2);
    blocks
        .flat_map(|text| text.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn every_path_in_a_document_exists() {
    let tree = Tree::read();
    let mut seen = 0;
    let documents = tree.paths.iter().filter(|path| {
        matches!(path.as_str(), "README.md" | "CONTRIBUTING.md")
            || path.starts_with("docs/") && path.ends_with(".md")
    });
    for document in documents {
        let text = fs::read_to_string(tree.root.join(document)).unwrap();
        for path in quoted(&text).into_iter().filter(|path| tree.is_path(path)) {
            assert!(tree.has(path), "{document} names {path}");
            seen += 1;
        }
    }
    assert!(seen >= 20, "only {seen} paths were looked at");
}

/// The functions in the tables of a document that have a column `function` and a column `file`: pairs of both, without backticks.
fn functions(document: &str) -> Vec<(&str, &str)> {
    let mut columns = None;
    let mut found = Vec::new();
    for line in document.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let column = |name| cells.iter().position(|cell| *cell == name);
        match (line.starts_with('|'), columns) {
            (false, _) => columns = None,
            (true, None) => columns = Some((column("function"), column("file"))),
            (true, Some((Some(function), Some(file)))) => {
                let code = |at: usize| cells.get(at)?.split('`').nth(1);
                found.extend(code(function).zip(code(file)));
            }
            (true, Some(_)) => {}
        }
    }
    found
}

/// Returns whether `source` defines the function `path`, which may begin with its type: `Token::sign`.
fn defines(source: &str, path: &str) -> bool {
    let is_word = |word: &str| {
        let mut words = source.split(|char: char| !char.is_alphanumeric() && char != '_');
        words.any(|there| there == word)
    };
    let (types, name) = path.rsplit_once("::").unwrap_or_default();
    let name = if name.is_empty() { path } else { name };
    let defined = ["(", "<"].map(|end| source.contains(&format!("fn {name}{end}")));
    defined.contains(&true) && (types.is_empty() || types.split("::").all(is_word))
}

#[test]
fn every_function_in_a_table_of_the_architecture_is_defined_in_its_file() {
    let tree = Tree::read();
    let text = fs::read_to_string(tree.root.join("docs/architecture.md")).unwrap();
    let functions = functions(&text);
    assert!(functions.len() >= 20, "only {} functions", functions.len());
    for (function, file) in functions {
        let source = fs::read_to_string(tree.root.join(file)).unwrap();
        assert!(defines(&source, function), "{file} has no {function}");
    }
}

#[test]
fn functions_are_read_from_tables_with_a_function_and_a_file() {
    let text = "| hop | function | file |\n|---|---|---|\n| a | `B::c` | `d.rs` |\n| e | | `f.rs` |\n\n| g |\n| `h` |";
    assert_eq!(functions(text), [("B::c", "d.rs")]);
    let source = "impl B { pub fn c(&self) {} } fn d<T>() {}";
    assert!(defines(source, "B::c") && defines(source, "d"));
    assert!(!defines(source, "B::e") && !defines(source, "E::c") && !defines(source, "B"));
}

#[test]
fn paths_are_distinguished_from_other_code() {
    let tree = Tree {
        root: PathBuf::new(),
        paths: ["a/", "a/src/", "a/src/b.rs"].map(str::to_owned).into(),
    };
    let text =
        "`a/src/` ```\n`a/c`\n``` `src/b.rs`, `a/TARGET/`, `a/d`, `e/f.rs`, `g/h`, `/a/b` `b.rs`";
    let paths = quoted(text).into_iter().filter(|path| tree.is_path(path));
    let paths: Vec<_> = paths.map(|path| (path, tree.has(path))).collect();
    let expected = [
        ("a/src/", true),
        ("src/b.rs", true),
        ("a/d", false),
        ("e/f.rs", false),
    ];
    assert_eq!(paths, expected);
}
