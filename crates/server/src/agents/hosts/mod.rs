//! Hosts that are joined over SSH: the agent is brought there, started, kept up to date, and spoken to.
//!
//! | lies on the host, with the rights of root | or without them | |
//! |---|---|---|
//! | `/usr/local/lib/dstack/agent-<hash>` | `~/.dstack/agent/agent-<hash>` | the program; shared by all servers |
//! | `/var/lib/dstack/<server>/` | `~/.dstack/agent/<server>/` | everything of one server |
//! | `…/start`, `…/good` | | starts the agent: its arguments and its environment; the one that last answered |
//! | `…/installed` | | what runs there, for the next join |
//! | `…/remove` | | removes all of this again; for whoever owns the host |
//! | `…/home/` | | the agent's own, with its socket |
//! | `dstack-agent-<server>.service` | `…/loop` | starts it again whenever it ends |
//!
//! Every script may be cut anywhere and is repaired by the next one: what an agent needs is written before it is
//! restarted, and the record of it after it has answered.

mod again;
mod install;
mod layout;
mod plan;
mod program;
mod shell;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::agent::Cloud;
use api::ids::{InstanceId, ServerId};
use tunnel::{Command, Error, Facts, HostKey, Limits, Session, Stream, Target};

pub use self::layout::Roots;
pub use self::program::AgentProgram;

use self::install::{Host, Installation, Left as LeftThere};
use self::layout::Place;
use self::plan::{Plan, Seen, Wanted};
use crate::clock::Clock;

/// A clock that is further off than this is told of, in seconds.
const CLOCK_SKEW_SECS: i64 = 60;

/// How long a machine's first start is waited for over one connection.
const FIRST_START: Duration = Duration::from_mins(2);

/// How a host is reached, and what its agent is told.
#[derive(Debug, Clone)]
pub struct HostAccess {
    /// The way there. The keys that [`Joined::keys`] gave belong into it from then on.
    pub target: Target,
    /// The keys that the machines on the way have shown, by address, where the way is told anew each time.
    pub known_keys: BTreeMap<String, HostKey>,
    /// What may take how long on the way.
    pub limits: Limits,
    /// The instance that the host is.
    pub instance: InstanceId,
    /// This server.
    pub server: ServerId,
    /// The address that peers use for the host; unless given, the agent finds one.
    pub address: Option<String>,
    /// The files that a machine's first start leaves when it is over, if that is to be waited for.
    pub first_start: Option<backends::FirstStart>,
    /// The cloud whose machine the host is, so that its agent may ask it; unset: of none.
    pub cloud: Option<Cloud>,
    /// The environment of the agent.
    pub env: BTreeMap<String, String>,
    /// Instances of this server that are wanted. A host that is one of these already is not taken from it; one that
    /// was any other is cleaned first.
    pub others: BTreeSet<InstanceId>,
    /// The instance was joined before, so it is likely that nothing is missing.
    pub was_joined: bool,
    /// Where things lie on the host.
    pub roots: Roots,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum JoinStep {
    /// The connection is made.
    Connect,
    /// The host is looked at.
    Check,
    /// The program goes there.
    Deliver,
    /// The agent is started, or stopped.
    Start,
    /// The agent is spoken to.
    Greet,
}

impl fmt::Display for JoinStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            JoinStep::Connect => "connecting",
            JoinStep::Check => "checking sudo and Docker",
            JoinStep::Deliver => "copying the agent",
            JoinStep::Start => "starting the agent",
            JoinStep::Greet => "waiting for the agent",
        })
    }
}

/// A host whose agent listens.
#[derive(Debug)]
pub struct Joined {
    /// To the agent, after the magic line. Dropping it closes the connection.
    pub stream: Stream,
    /// The keys that the host and its jumps showed, by address. Keep them, and connect with them the next time.
    pub keys: BTreeMap<String, HostKey>,
    /// What is wrong there and does not keep it from working, in sentences for people.
    pub warnings: Vec<String>,
}

/// Why a host was not joined, or not left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct JoinError {
    /// How far it came.
    pub step: JoinStep,
    /// One sentence for the user, with what to do about it.
    pub message: String,
    /// Trying again does not help before somebody has changed something.
    pub is_final: bool,
}

/// How a host was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// The agent, its tasks and its files are gone.
    Removed,
    /// Nothing of this server was there.
    Nothing,
    /// The host does not answer, or another one stands in its place. What is on it is still there: try again for as
    /// long as it may come back.
    HostGone(String),
}

/// Joins a host: brings the agent there if it lacks, starts it if it does not run, updates it if it is not ours, and
/// connects to it. Jobs on the host live on. Safe to repeat after any failure; never at the same time for one host.
pub async fn join(
    access: &HostAccess,
    program: &AgentProgram,
    clock: &Clock,
    told: &(dyn Fn(JoinStep) + Send + Sync),
) -> Result<Joined, JoinError> {
    layout::check_env(&access.env)?;
    told(JoinStep::Connect);
    let loaded = program.load().await?;
    let session = connect(access).await?;
    if access.was_joined {
        told(JoinStep::Greet);
        if let Some(stream) = again::greet(access, &session, &loaded.sha256).await {
            return Ok(Joined { stream, keys: keys(&session, &access.target), warnings: Vec::new() });
        }
    }
    told(JoinStep::Check);
    if let Some(first_start) = &access.first_start {
        first_start_is_over(&session, first_start).await?;
    }
    let facts = probe(&session, clock).await?;
    let place = Place::choose(&facts, access)?;
    let host = Host { access, session: &session, place };
    let mut warnings = skew_warning(&host, &facts).into_iter().collect::<Vec<_>>();
    let (layout, mut seen) = host.look(&loaded.sha256).await?;
    let sha256 = program.choose(access.instance, loaded, &seen);
    if sha256 != loaded.sha256 {
        warnings.push(format!(
            "`{}` keeps the agent that it has, because this server's does not work there",
            session.address()
        ));
    }
    let is_kept = sha256 != loaded.sha256;
    let wanted = Wanted { is_kept, ..Wanted::new(access, &layout, &sha256) };
    let mut plan = Plan::make(&wanted, &seen, access, &layout)?;
    if plan.clean {
        told(JoinStep::Start);
        host.remove(&layout).await?;
        seen = Seen::default();
    }
    if plan.deliver {
        told(JoinStep::Deliver);
        host.deliver(&layout, loaded).await?;
    }
    loop {
        if plan.start {
            told(JoinStep::Start);
            match host.install(&layout, &wanted, &seen).await? {
                Installation::Works => {}
                Installation::Fails(error) => {
                    program.failed(access.instance, &sha256);
                    return Err(error);
                }
            }
        }
        told(JoinStep::Greet);
        match host.greet(&layout.program(&sha256), &layout.socket()).await {
            Ok(stream) => return Ok(Joined { stream, keys: keys(&session, &access.target), warnings }),
            // It looked as if it ran.
            Err(silent) if silent.may_be_down && !plan.start => plan.start = true,
            Err(silent) => return Err(silent.error),
        }
    }
}

/// Connects to the agent of this server that is on a host, whichever program and instance it is, and changes nothing
/// there. None: there is no agent.
pub async fn visit(access: &HostAccess, clock: &Clock) -> Result<Option<Stream>, JoinError> {
    let session = connect(access).await?;
    let facts = probe(&session, clock).await?;
    let host = Host { access, session: &session, place: Place::choose(&facts, access)? };
    let (layout, seen) = host.look("").await?;
    let Some(installed) = seen.installed else { return Ok(None) };
    let greeted = host.greet(&layout.program(&installed.program), &layout.socket()).await;
    greeted.map(Some).map_err(|silent| silent.error)
}

/// Leaves a host: ends the agent, its tasks and their containers, and removes what this server has put there. Safe to
/// repeat.
pub async fn leave(access: &HostAccess, clock: &Clock) -> Result<Left, JoinError> {
    let session = match Session::connect(&access.target, &access.limits).await {
        Ok(session) => session,
        Err(error) if is_gone(&error) => return Ok(Left::HostGone(error.to_string())),
        Err(error) => return Err(JoinError::new(JoinStep::Connect, &error)),
    };
    let facts = probe(&session, clock).await?;
    let host = Host { access, session: &session, place: Place::choose(&facts, access)? };
    let layout = host.look("").await?.0;
    Ok(match host.remove(&layout).await? {
        LeftThere::Removed => Left::Removed,
        LeftThere::Nothing => Left::Nothing,
    })
}

/// Whether an error of connecting says that the host is not there any more, as far as one can tell from here.
fn is_gone(error: &Error) -> bool {
    matches!(
        error,
        Error::Resolve { .. }
            | Error::Refused { .. }
            | Error::Unreachable { .. }
            | Error::TimedOut { .. }
            | Error::JumpFailed { .. }
            | Error::HostKeyChanged { .. }
    )
}

async fn connect(access: &HostAccess) -> Result<Session, JoinError> {
    let connected = Session::connect(&access.target, &access.limits).await;
    connected.map_err(|error| JoinError::new(JoinStep::Connect, &error))
}

/// Waits until a machine has done what it does when it starts for the first time: Docker may be restarted until then.
async fn first_start_is_over(session: &Session, files: &backends::FirstStart) -> Result<(), JoinError> {
    let values = shell::variables([("done", files.done.as_str()), ("failed", &files.failed)]);
    let script = format!(
        "{values}until [ -e \"$done\" ] || [ -e \"$failed\" ]; do sleep 0.2; done\n[ -e \"$done\" ] || cat \"$failed\"\n"
    );
    let command = Command::new(script).named("wait for its first start to end").within(FIRST_START);
    match session.exec(command).await {
        Ok(output) if output.stdout.is_empty() => Ok(()),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stdout);
            let message = format!("`{}` failed to prepare itself: {}", session.address(), why.trim());
            Err(JoinError::passing(JoinStep::Check, message))
        }
        Err(Error::CommandTimedOut { .. }) => {
            let message = format!("`{}` has not ended its first start (cloud-init) yet", session.address());
            Err(JoinError::passing(JoinStep::Check, message))
        }
        Err(error) => Err(JoinError::new(JoinStep::Check, &error)),
    }
}

async fn probe(session: &Session, clock: &Clock) -> Result<Facts, JoinError> {
    let now = || {
        let since = Duration::try_from(clock.now().as_duration()).unwrap_or_default();
        SystemTime::checked_add(&UNIX_EPOCH, since).unwrap_or(UNIX_EPOCH)
    };
    tunnel::probe(session, now).await.map_err(|error| JoinError::new(JoinStep::Check, &error))
}

fn skew_warning(host: &Host<'_>, facts: &Facts) -> Option<String> {
    let skew = facts.clock_skew_seconds;
    let direction = if skew < 0 { "behind" } else { "ahead" };
    (CLOCK_SKEW_SECS < skew.abs()).then(|| {
        let address = host.session.address();
        format!(
            "the clock of `{address}` is {} s {direction}: let `chrony` or `systemd-timesyncd` set it",
            skew.abs()
        )
    })
}

/// The keys of all hosts on the way, by address.
fn keys(session: &Session, target: &Target) -> BTreeMap<String, HostKey> {
    let mut addresses = Vec::new();
    add_addresses(target, &mut addresses);
    let keys = session.jump_host_keys().into_iter().chain([session.host_key().clone()]);
    addresses.into_iter().zip(keys).collect()
}

/// In the order in which the hosts are connected to.
fn add_addresses(target: &Target, addresses: &mut Vec<String>) {
    for jump in &target.jumps {
        add_addresses(jump, addresses);
    }
    addresses.push(target.address());
}

impl JoinError {
    /// From what the connection says.
    fn new(step: JoinStep, error: &Error) -> JoinError {
        // Disks are emptied by others than who reads this.
        let may_pass = error.may_pass() || matches!(error, Error::DiskFull { .. });
        JoinError { step, message: error.to_string(), is_final: !may_pass }
    }

    fn last(step: JoinStep, message: String) -> JoinError {
        JoinError { step, message, is_final: true }
    }

    fn passing(step: JoinStep, message: String) -> JoinError {
        JoinError { step, message, is_final: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_belong_to_addresses_in_the_order_of_the_way() {
        let mut target = Target::new("gpu-1", "ada", Vec::new());
        let mut jump = Target::new("inner", "ada", Vec::new());
        jump.jumps.push(Target::new("outer", "ada", Vec::new()));
        target.jumps.push(jump);
        let mut addresses = Vec::new();
        add_addresses(&target, &mut addresses);
        assert_eq!(addresses, ["outer:22", "inner:22", "gpu-1:22"]);
    }

    #[test]
    fn a_host_that_is_gone_is_told_from_one_that_does_not_let_us_in() {
        let address = || "gpu-1:22".to_owned();
        assert!(is_gone(&Error::Refused { address: address() }));
        let user = "ada".to_owned();
        let refused =
            Error::NoKeyAccepted { address: address(), user, tried: String::new(), accepts: String::new() };
        assert!(!is_gone(&refused));
        assert!(JoinError::new(JoinStep::Connect, &refused).is_final);
    }
}
