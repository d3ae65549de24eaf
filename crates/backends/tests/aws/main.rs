//! The backend `aws` against the simulated EC2, which refuses what AWS refuses and keeps a book of all that was made.

mod faults;
mod launches;
mod offers;
mod rig;
