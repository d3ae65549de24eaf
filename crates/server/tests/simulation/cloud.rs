//! What goes wrong in the pretended cloud.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use api::ids::LaunchId;
use backends::fake::{Call, CallFault, FakeCloud, FakeOffer, FakeSetup, FaultPlan};
use backends::{ErrorKind, MachineKey};
use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use server::clock::Clock;

use crate::drive::Control;
use crate::trace::Trace;

/// A cloud of three kinds of machines, some of them scarce; how truthful its lists are depends on the seed.
pub(crate) fn open(seed: u64, control: &Arc<Control>, clock: &Clock, trace: &Trace) -> (FakeCloud, Late) {
    let late = Late::default();
    let mut rng = StdRng::seed_from_u64(seed ^ 0xc10d);
    let mut setup = FakeSetup {
        offers: vec![
            FakeOffer::cpu("small", 4, 16, 0.1),
            FakeOffer::cpu("medium", 8, 32, 0.2),
            FakeOffer::gpu("large", "H100", 80, 8, 20.0),
        ],
        boot_ticks: rng.random_range(0..8),
        stopping_ticks: rng.random_range(0..10),
        gone_ticks: rng.random_range(0..60),
        list_lag_ticks: rng.random_range(0..8),
        lists_tick: false,
        ..FakeSetup::default()
    };
    setup.capabilities.consistent_list = rng.random_bool(0.4);
    setup.capabilities.provisioning_timeout_secs = 120;
    setup.capabilities.admins_only = rng.random_bool(0.1);
    setup.gives_hints = rng.random_bool(0.5);
    let cloud = FakeCloud::new(setup);
    if rng.random_bool(0.35) {
        for zone in ["fake-1a", "fake-1b"] {
            cloud.set_capacity("small", Some(zone), Some(rng.random_range(0..7)));
        }
    }
    if rng.random_bool(0.1) {
        cloud.end_on_arrival("fake-1a", Some("Server.InsufficientInstanceCapacity"));
    }
    cloud.set_plan(Plan {
        control: control.clone(),
        clock: clock.clone(),
        trace: trace.clone(),
        rng,
        omitted: BTreeMap::new(),
        silent_until: clock.now(),
        limited_until: clock.now(),
        late: late.clone(),
    });
    (cloud, late)
}

/// Faults by chance, and bounded as a real cloud's are: a machine is left out of lists once, for less than a minute.
struct Plan {
    control: Arc<Control>,
    clock: Clock,
    trace: Trace,
    rng: StdRng,
    /// From when to when each machine is left out of lists.
    omitted: BTreeMap<MachineKey, (Timestamp, Timestamp)>,
    /// The cloud does not answer at all before this.
    silent_until: Timestamp,
    /// The cloud asks for patience with every launch before this.
    limited_until: Timestamp,
    late: Late,
}

/// Launches that were on their way when the server crashed, and when they arrive.
pub(crate) type Late = Arc<Mutex<Vec<(Timestamp, LaunchId)>>>;

impl Plan {
    fn some_fault(&mut self, faults: &[(f64, CallFault, &'static str)]) -> CallFault {
        let mut dice = self.rng.random::<f64>();
        for (chance, fault, mark) in faults {
            if dice < *chance {
                self.trace.mark(mark);
                return *fault;
            }
            dice -= chance;
        }
        CallFault::None
    }

    /// The server crashes before its request has an effect, or after it, or while it is on its way.
    fn crash(&mut self, call: &Call) -> CallFault {
        let dice = self.rng.random_range(0..3);
        match (dice, call) {
            (0, Call::Launch(launch)) => {
                self.trace.mark("launch: arrives late");
                let arrives_at = self.clock.now() + SignedDuration::from_secs(self.rng.random_range(1..40));
                self.late.lock().unwrap().push((arrives_at, *launch));
                CallFault::Refuse(ErrorKind::Unavailable)
            }
            (0 | 1, _) => {
                self.trace.mark("crash before a cloud's effect");
                CallFault::Refuse(ErrorKind::Unavailable)
            }
            _ => {
                self.trace.mark("crash after a cloud's effect");
                CallFault::LoseReply
            }
        }
    }
}

impl FaultPlan for Plan {
    fn call(&mut self, call: &Call) -> CallFault {
        use CallFault::{LoseReply, Refuse};
        if self.control.has_crashed() {
            return Refuse(ErrorKind::Unavailable);
        }
        let is_order = matches!(call, Call::Launch(_) | Call::Terminate(_));
        if is_order && self.control.crashes_at_order() {
            return self.crash(call);
        }
        if !self.control.has_chaos() {
            return CallFault::None;
        }
        let now = self.clock.now();
        if now < self.silent_until {
            self.trace.mark("cloud silent");
            return Refuse(ErrorKind::Unavailable);
        }
        if now < self.limited_until && matches!(call, Call::Launch(_)) {
            self.trace.mark("launch: rate limited for a while");
            return Refuse(ErrorKind::RateLimited);
        }
        if self.rng.random_bool(0.01) {
            self.limited_until = now + SignedDuration::from_secs(self.rng.random_range(5..120));
        }
        if self.rng.random_bool(0.004) {
            self.silent_until = now + SignedDuration::from_secs(self.rng.random_range(5..200));
        }
        match call {
            Call::Offers => self.some_fault(&[(0.05, Refuse(ErrorKind::Unavailable), "offers unknown")]),
            Call::Launch(_) => self.some_fault(&[
                (0.10, Refuse(ErrorKind::NoCapacity), "launch: no capacity"),
                (0.03, Refuse(ErrorKind::QuotaExceeded), "launch: quota"),
                (0.03, Refuse(ErrorKind::NoAddresses), "launch: no addresses"),
                (0.02, Refuse(ErrorKind::InvalidRequest), "launch: invalid"),
                (0.01, Refuse(ErrorKind::PermissionDenied), "launch: not permitted"),
                (0.08, Refuse(ErrorKind::RateLimited), "launch: rate limited"),
                (0.08, Refuse(ErrorKind::Unavailable), "launch: lost before its effect"),
                (0.15, LoseReply, "launch: lost after its effect"),
            ]),
            Call::Terminate(_) => self.some_fault(&[
                (0.25, Refuse(ErrorKind::Unavailable), "terminate: lost before its effect"),
                (0.10, LoseReply, "terminate: lost after its effect"),
            ]),
            Call::List => self.some_fault(&[(0.10, Refuse(ErrorKind::Unavailable), "list: no answer")]),
            Call::AgentAccess(_) => CallFault::None,
        }
    }

    fn extra_lag_ticks(&mut self) -> u64 {
        if !self.control.has_chaos() || self.rng.random_bool(0.8) {
            return 0;
        }
        self.trace.mark("list: stale");
        self.rng.random_range(1..15)
    }

    fn omits(&mut self, machine: &MachineKey) -> bool {
        let now = self.clock.now();
        if self.control.has_chaos() && !self.omitted.contains_key(machine) && self.rng.random_bool(0.03) {
            let until = now + SignedDuration::from_secs(self.rng.random_range(1..60));
            self.omitted.insert(machine.clone(), (now, until));
        }
        let omitted = self.omitted.get(machine).is_some_and(|(from, until)| (*from..*until).contains(&now));
        if omitted {
            self.trace.mark("list: a machine left out");
        }
        omitted
    }
}
