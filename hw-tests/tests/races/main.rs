//! C_Initialize and C_Finalize, thousands of times: against waiters, and one after the other.

mod cycles;
mod waiters;
