//! The contract of the memory strategies: every member, every combination, the published curves, the encodings.

mod encodings;
mod members;
mod pure_engine;
mod reference_curve;
