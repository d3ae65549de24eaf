//! Ctrl-C: what the user presses to be left alone, to be detached, or to have something stopped.

use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// The presses of Ctrl-C. Clones share them; whoever waits first gets the next one.
#[derive(Debug, Clone, Default)]
pub struct Interrupts {
    presses: Arc<Notify>,
    of_process: bool,
}

impl Interrupts {
    /// Those of this process.
    pub(crate) fn of_process() -> Interrupts {
        Interrupts { presses: Arc::default(), of_process: true }
    }

    /// Presses Ctrl-C. One that nobody waits for is kept, so that none falls between two waits.
    pub fn press(&self) {
        self.presses.notify_one();
    }

    /// From now on Ctrl-C does not end the process, but is told here.
    pub(crate) fn listen(&self) -> anyhow::Result<()> {
        if !self.of_process {
            return Ok(());
        }
        let mut signals = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
        let presses = self.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                presses.press();
            }
        });
        Ok(())
    }

    /// Waits for the next press.
    pub(crate) async fn next(&self) {
        self.presses.notified().await;
    }
}
