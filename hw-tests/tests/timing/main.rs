//! What a call costs, how soon an event is told, and that a blocked process costs nothing.

mod budgets;
mod latency;
mod quiet;
