//! The entry points of all functions, the tables that hold them, and the exported symbols.

mod entry_points;
mod function_table;
mod interfaces;
mod layout;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::function_table::NAMES;
    use crate::functions::unsupported::UNSUPPORTED;

    #[test]
    fn unsupported_functions_are_listed_once_with_a_reason() {
        for (name, reason) in UNSUPPORTED {
            assert!(NAMES.contains(name), "{name} is no function");
            assert!(!reason.is_empty(), "{name}");
        }
        let names: BTreeSet<_> = UNSUPPORTED.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), UNSUPPORTED.len());
    }

    /// Finds a refused function without a reason, and a reason without a refused function.
    #[test]
    fn refused_functions_are_those_with_a_reason() {
        let rows = include_str!("function_table.rs").lines();
        let refused = rows.filter(|row| row.contains("| refuse("));
        let refused: BTreeSet<_> = refused.filter_map(|row| row.split('"').nth(1)).collect();
        let listed: BTreeSet<_> = UNSUPPORTED.iter().map(|(name, _)| *name).collect();
        assert_eq!(refused, listed);
    }
}
