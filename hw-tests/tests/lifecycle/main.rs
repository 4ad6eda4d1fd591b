//! C_Initialize to C_Finalize: what a process, its children and its end have of the module, and what the module leaves.

mod alone;
mod end;
mod exit;
mod fork;
mod library;
mod life;
