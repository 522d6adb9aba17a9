//! The meter that reads nothing: energy is null, with its reason.

use crate::meter::{Build, Meter, Unmeasured};
use std::collections::BTreeMap;
use whimbrel_model::Entry;

pub(super) const ENTRY: Entry<Build> = Entry {
    name: "null",
    summary: "reads nothing: every row's energy is null, with this as its reason",
    parameters: &[],
    source: "Whimbrel, the floor of the measurement",
    build: || Box::new(Null),
};

struct Null;

impl Meter for Null {
    fn read(&mut self) -> Result<BTreeMap<String, u64>, Unmeasured> {
        Err(Unmeasured { why: "no meter was chosen".to_owned() })
    }
}
