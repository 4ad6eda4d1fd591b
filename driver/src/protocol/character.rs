//! The character level.
