//! The meter that reads nothing: energy is null, with its reason.

use crate::meter::{Open, Unmeasured};
use whimbrel_model::Entry;

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "null",
    summary: "reads nothing: every row's energy is null, with this as its reason",
    parameters: &[],
    source: "Whimbrel, the floor of the measurement",
    build: |_| Err(Unmeasured::because("the null meter was chosen")),
};
