//! The phases of a migration and which may follow which.
//!
//! ```text
//! Setup ──► Push ──► Switchover ──► Pull ──► Complete
//!   │         │           │
//!   └─────────┴───────────┴──► Aborted        (never once the hand-over is said)
//! ```

use serde::{Deserialize, Serialize};

/// A phase of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Connect, negotiate, reserve memory, arm the tracking.
    Setup,
    /// State is sent while the guest runs at the source.
    Push,
    /// From the decision to pause until the guest runs at the destination.
    Switchover,
    /// The guest runs at the destination, which still lacks state.
    Pull,
    /// The destination is whole and the source released.
    Complete,
    /// The guest stays at the source.
    Aborted,
}

impl Phase {
    /// Whether a migration may go from this phase to `next`.
    pub const fn may_become(self, next: Phase) -> bool {
        use Phase::{Aborted, Complete, Pull, Push, Setup, Switchover};
        matches!(
            (self, next),
            (Setup, Push)
                | (Push, Switchover)
                | (Switchover, Pull)
                | (Pull, Complete)
                | (Setup | Push | Switchover, Aborted)
        )
    }
}
