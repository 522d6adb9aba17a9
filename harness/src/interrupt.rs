//! Ctrl-C: what is finished is kept. The first one asks the run to end; the second one ends the program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// Whether the person wants the program to end.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    raised: AtomicBool,
    told: Notify,
}

impl Interrupt {
    /// One that SIGINT, SIGTERM and SIGHUP (the terminal is closed) raise.
    ///
    /// # Errors
    /// The signals can't be watched.
    pub fn on_signals() -> std::io::Result<Interrupt> {
        let interrupt = Interrupt::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut int, mut term, mut hup) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
        };
        let raised = interrupt.clone();
        let watch = move || {
            runtime.block_on(async {
                loop {
                    tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
                    if raised.raised() {
                        std::process::exit(crate::status::INTERRUPTED.into());
                    }
                    raised.raise();
                }
            });
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
        Ok(interrupt)
    }

    /// Asks the program to end.
    pub fn raise(&self) {
        self.shared.raised.store(true, Ordering::SeqCst);
        self.shared.told.notify_waiters();
    }

    /// Whether it was asked to end.
    pub fn raised(&self) -> bool {
        self.shared.raised.load(Ordering::SeqCst)
    }

    /// Completes when it is asked to end.
    pub async fn wait(&self) {
        let told = self.shared.told.notified();
        tokio::pin!(told);
        // Enabled before the flag is read, so that no word between the two is lost.
        told.as_mut().enable();
        if !self.raised() {
            told.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_told_and_whoever_comes_late_too() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let interrupt = Interrupt::default();
            tokio::join!(interrupt.wait(), async { interrupt.raise() });
            interrupt.wait().await;
            assert!(interrupt.raised());
        });
    }
}
