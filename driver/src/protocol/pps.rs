//! Protocol and parameters selection.
