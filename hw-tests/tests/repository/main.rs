//! The repository: its tree, and what it installs.

mod install;
mod tree;
