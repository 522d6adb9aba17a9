//! The seam of a virtual machine and its kinds, what executes a guest's operations, and the twin that judges.
//!
//! Reading order: [`machine`] (the seam), [`execute`] (what an operation does, the same code for machines and the twin),
//! [`fill`] (what a guest holds before operation 0), [`brought`] (a guest of the user's own), [`saved`] (the device state),
//! [`machines`] (the kinds) and [`twin`] (the check by which every migration is judged).

#![deny(unsafe_code)]

pub mod brought;
pub mod clock;
pub mod error;
pub mod execute;
pub mod fill;
pub mod machine;
pub mod machines;
pub mod saved;
pub mod twin;

pub use brought::{Brought, BroughtError, Probe};
pub use clock::monotonic;
pub use error::MachineError;
pub use fill::{fill_disk, fill_ram};
pub use machine::{
    Asked, Begin, Departure, Hints, Machine, MachineSetup, Operations, OwnEnds, OwnMove, Paused, Progress, Silence,
    Software, Testimony,
};
pub use machines::MACHINES;
pub use saved::SavedState;
pub use twin::{GuestPages, Twin, TwinSetup, Verdict, Verification};
