//! The sanitizer's runtime is in this program, and the module it loads needs to find it there.

fn main() {
    println!("cargo::rustc-link-arg-bins=-rdynamic");
}
