//! The imports between the files of a crate, and the circles of imports.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{
    modules::{Child, Module, Path},
    tokens::{shipped, tokens},
};

/// Longest chain of re-exports that is followed.
const MAX_DEPTH: usize = 16;

/// The modules of a crate by their paths: "" is its root, "a::b" the module `b` in `a`. Modules for tests are left out.
pub(crate) struct Crate {
    modules: BTreeMap<String, Module>,
}

/// The target of a path.
enum Target {
    Module(String),
    /// An item, in the module that defines it.
    ItemOf(String),
}

/// For each file the files that it imports, each with the path and the line of one import.
pub(crate) type Imports = BTreeMap<String, BTreeMap<String, String>>;

/// Files that import each other, directly or through other files of the circle.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Circle {
    pub(crate) files: BTreeSet<String>,
    /// The imports that make it.
    pub(crate) imports: Vec<String>,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: Vec<&str> = self.files.iter().map(String::as_str).collect();
        write!(f, "[{}]", files.join(", "))?;
        self.imports
            .iter()
            .try_for_each(|import| write!(f, "\n    {import}"))
    }
}

impl Crate {
    /// Reads the crate whose root is the file `root`. `read` gives the content of a file, if there is one.
    pub(crate) fn read(root: &str, read: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut modules = BTreeMap::new();
        let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder);
        add_file(&mut modules, "", root, folder, read);
        Self { modules }
    }

    pub(crate) fn files(&self) -> BTreeSet<&str> {
        let files = self.modules.values().map(|module| module.file.as_str());
        files.collect()
    }

    /// The names in the crate that `is_meant` accepts, each with its file.
    pub(crate) fn names(&self, is_meant: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for module in self.modules.values() {
            let names = module.items.union(&module.children);
            let names = names.chain(&module.words).filter(|name| is_meant(name));
            found.extend(names.map(|name| format!("{}: {name}", module.file)));
        }
        found
    }

    /// Each file's imports of other files.
    ///
    /// A module may declare and re-export its children. That is an import only if its own code uses the item.
    pub(crate) fn imports(&self) -> Imports {
        let mut imports = Imports::new();
        for (name, module) in &self.modules {
            let used = module.uses.iter().filter_map(|used| {
                let target = self.resolve(name, &used.path.segments, 0)?;
                let is_used = used
                    .name
                    .as_ref()
                    .is_some_and(|name| module.words.contains(name));
                match target {
                    Target::Module(_) if used.name.is_some() => None,
                    Target::Module(at) | Target::ItemOf(at) => {
                        let is_export = used.is_public && is_below(&at, name);
                        (!is_export || is_used).then_some((at, &used.path))
                    }
                }
            });
            let in_code = module.paths.iter().filter_map(|path| {
                match self.resolve(name, &path.segments, 0)? {
                    Target::ItemOf(at) => Some((at, path)),
                    Target::Module(_) => None,
                }
            });
            for (target, path) in used.chain(in_code) {
                let file = &self.modules[&target].file;
                if *file != module.file {
                    let Path { segments, line } = path;
                    let why = format!("{}, line {line}", segments.join("::"));
                    let of = imports.entry(module.file.clone()).or_default();
                    of.entry(file.clone()).or_insert(why);
                }
            }
        }
        imports
    }

    /// Resolves `path` in the module `from`. Returns `None` for an item of another crate, and for a local name.
    fn resolve(&self, from: &str, path: &[String], depth: usize) -> Option<Target> {
        let mut at = from.to_owned();
        let mut is_first = true;
        for name in path {
            match name.as_str() {
                "crate" if is_first => at.clear(),
                "self" if is_first => {}
                "super" => at = parent(&at).to_owned(),
                name => match self.named(&at, name, depth) {
                    Some(Target::Module(module)) => at = module,
                    Some(item) => return Some(item),
                    // A local name, one of the prelude, or a crate.
                    None if is_first => return None,
                    None if self.is_import(&at, name) => return None,
                    None => return Some(Target::ItemOf(at)),
                },
            }
            is_first = false;
        }
        Some(Target::Module(at))
    }

    /// Resolves `name` in the module `at`: a child module, an item, or an import.
    fn named(&self, at: &str, name: &str, depth: usize) -> Option<Target> {
        let module = self.modules.get(at)?;
        if module.children.contains(name) {
            let child = join(at, name);
            return self
                .modules
                .contains_key(&child)
                .then_some(Target::Module(child));
        }
        if module.items.contains(name) {
            return Some(Target::ItemOf(at.to_owned()));
        }
        if depth == MAX_DEPTH {
            return None;
        }
        let mut named = module.uses.iter();
        if let Some(used) = named.find(|used| used.name.as_deref() == Some(name)) {
            return self.resolve(at, &used.path.segments, depth + 1);
        }
        let globs = module.uses.iter().filter(|used| used.name.is_none());
        for glob in globs {
            if let Some(Target::Module(from)) = self.resolve(at, &glob.path.segments, depth + 1)
                && from != at
                && let Some(target) = self.named(&from, name, depth + 1)
            {
                return Some(target);
            }
        }
        None
    }

    fn is_import(&self, at: &str, name: &str) -> bool {
        let module = self.modules.get(at);
        module.is_some_and(|module| {
            let mut names = module.uses.iter().map(|used| used.name.as_deref());
            names.any(|used| used == Some(name))
        })
    }
}

/// The circles of imports: the strongly connected components of more than one file.
pub(crate) fn circles(imports: &Imports) -> Vec<Circle> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = imports
        .keys()
        .map(|file| (file, reachable(imports, file)))
        .collect();
    let mut circles = Vec::new();
    for (file, reach) in &reached {
        let is_listed = circles
            .iter()
            .any(|circle: &Circle| circle.files.contains(*file));
        if is_listed || !reach.contains(file) {
            continue;
        }
        let others = reach.iter().copied();
        let files: BTreeSet<String> = others
            .filter(|other| reached.get(other).is_some_and(|reach| reach.contains(file)))
            .cloned()
            .collect();
        let imports = files.iter().flat_map(|from| {
            let targets = imports[from].iter().filter(|(to, _)| files.contains(*to));
            targets.map(move |(to, why)| format!("{from} -> {to} ({why})"))
        });
        circles.push(Circle {
            imports: imports.collect(),
            files,
        });
    }
    circles
}

/// The files that `from` imports, directly or not. `from` is among them if it is in a circle.
fn reachable<'a>(imports: &'a Imports, from: &String) -> BTreeSet<&'a String> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&String> = imports[from].keys().collect();
    while let Some(file) = open.pop() {
        if reached.insert(file) {
            open.extend(imports.get(file).into_iter().flat_map(BTreeMap::keys));
        }
    }
    reached
}

/// Adds the module `name` in `file`, and all modules below it. The files of its children are in `folder`.
fn add_file(
    modules: &mut BTreeMap<String, Module>,
    name: &str,
    file: &str,
    folder: &str,
    read: &dyn Fn(&str) -> Option<String>,
) {
    let Some(source) = read(file) else { return };
    let all = tokens(&source);
    let (module, children) = Module::read(file, &shipped(&all));
    add(modules, name, module, children, folder, read);
}

fn add(
    modules: &mut BTreeMap<String, Module>,
    name: &str,
    module: Module,
    children: Vec<Child>,
    folder: &str,
    read: &dyn Fn(&str) -> Option<String>,
) {
    modules.insert(name.to_owned(), module);
    for child in children {
        match child {
            Child::Inline(child, module, below) => {
                let folder = format!("{folder}/{child}");
                add(modules, &join(name, &child), module, below, &folder, read);
            }
            Child::File(child) => {
                let below = format!("{folder}/{child}");
                for file in [format!("{below}.rs"), format!("{below}/mod.rs")] {
                    add_file(modules, &join(name, &child), &file, &below, read);
                }
            }
        }
    }
}

fn join(module: &str, name: &str) -> String {
    if module.is_empty() {
        name.to_owned()
    } else {
        format!("{module}::{name}")
    }
}

fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

fn is_below(module: &str, ancestor: &str) -> bool {
    ancestor.is_empty()
        || module
            .strip_prefix(ancestor)
            .is_some_and(|rest| rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The circles of a crate of these files, as lists of their files.
    fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
        let read = |name: &str| {
            let mut files = files.iter();
            let file = files.find(|(file, _)| format!("src/{file}") == name);
            file.map(|(_, content)| (*content).to_owned())
        };
        let circles = circles(&Crate::read("src/lib.rs", &read).imports());
        let lists = circles.into_iter().map(|circle| circle.files);
        lists
            .map(|files| Vec::from_iter(files).join(" ").replace("src/", ""))
            .collect()
    }

    #[test]
    fn import_cycle_is_found_across_files_and_spellings() {
        let found = circles_of(&[
            ("lib.rs", "mod a; mod b; mod c; mod d; pub use a::A;"),
            (
                "a.rs",
                "use crate::{b::{self, B as Other}, d}; pub struct A(Other);",
            ),
            ("b.rs", "pub struct B; fn b() -> u8 { super::c::inner::C }"),
            (
                "c.rs",
                "pub mod inner { use super::super::A; pub const C: u8 = 0; }",
            ),
            ("d.rs", "pub struct D;"),
        ]);
        assert_eq!(found, ["a.rs b.rs c.rs"]);
    }

    #[test]
    fn parent_and_child_module_form_a_cycle_only_if_each_uses_the_other() {
        let child = ("a.rs", "use super::B; pub struct A(B);");
        let declares = "mod a; pub use a::A; pub struct B;";
        assert_eq!(circles_of(&[("lib.rs", declares), child]), [""; 0]);
        for uses in ["fn f(_: A) {}", "fn f(_: a::A) {}", "use a::A as C;"] {
            let declares = format!("{declares} {uses}");
            assert_eq!(circles_of(&[("lib.rs", &declares), child]), ["a.rs lib.rs"]);
        }
    }

    #[test]
    fn a_re_export_leads_to_the_file_that_defines_the_item() {
        let found = circles_of(&[
            ("lib.rs", "mod a; mod b;"),
            (
                "a/mod.rs",
                "mod c; mod d; pub use self::{c::*, d::D}; use crate::b::B;",
            ),
            ("a/c.rs", "pub struct C;"),
            ("a/d.rs", "use crate::b; pub struct D(b::B);"),
            ("b.rs", "use crate::a::{C, D}; pub struct B;"),
        ]);
        assert_eq!(found, ["a/d.rs b.rs"]);
    }

    #[test]
    fn tests_comments_and_visibilities_import_nothing() {
        let found = circles_of(&[
            ("lib.rs", "mod a; mod b; #[cfg(test)] mod fake;"),
            ("a.rs", "use crate::b::B; pub struct A;"),
            (
                "b.rs",
                "//! [`crate::a::A`]\n pub(in crate::a) struct B; #[cfg(test)] mod tests { use crate::a::A; }",
            ),
            ("fake.rs", "use crate::a::A; fn fuzz() {}"),
        ]);
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn names_are_those_of_shipped_code() {
        let read = |_: &str| Some("fn a() { b::c() } #[cfg(test)] mod d {}".to_owned());
        let names = Crate::read("lib.rs", &read).names(|name| name.len() == 1);
        assert_eq!(names, ["lib.rs: a", "lib.rs: b"].map(str::to_owned).into());
    }
}
