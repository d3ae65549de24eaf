//! What a backend can do, as data.

/// Plain facts about a backend that callers, tests and documents read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// It launches machines; otherwise it only knows those it was given.
    pub launches: bool,
    /// Its machines can form a cluster with a network of their own.
    pub cluster: bool,
    /// It has zones, and each launch is into one of them.
    pub zonal: bool,
    /// What it lists is what is there: one absence proves that a machine is gone.
    pub consistent_list: bool,
    /// Its jobs run beside the server's secrets, so only global admins may use it.
    pub admins_only: bool,
    /// It sells machines that may be taken back at any time.
    pub spot: bool,
    /// It can buy from a reservation that the user names.
    pub reservations: bool,
    /// Jobs without an image run as plain processes there; elsewhere every job is a container.
    pub processes_without_image: bool,
    /// Longest time from launch to a joined agent, in seconds.
    pub provisioning_timeout_secs: u64,
}
