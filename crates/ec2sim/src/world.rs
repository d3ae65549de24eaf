//! All of the simulated cloud's state, and how it moves on with time.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::addresses::Address;
use crate::auth::Credential;
use crate::capacity::{Capacity, Reservation};
use crate::catalog::catalog;
use crate::error::ApiError;
use crate::faults::Faults;
use crate::ids::Ids;
use crate::images::Image;
use crate::instances::Instance;
use crate::interfaces::Interface;
use crate::key_pairs::KeyPair;
use crate::launch::Token;
use crate::ledger::Ledger;
use crate::machines::{HostTrouble, MachineEvent};
use crate::network::Network;
use crate::placement_groups::PlacementGroup;
use crate::security_groups::SecurityGroup;
use crate::settings::Settings;
use crate::spot::SpotRequest;
use crate::throttle::Throttle;
use crate::volumes::Volume;

/// The most calls that are remembered one by one; the counts go on.
const MAX_CALLS: usize = 20_000;

/// The simulated cloud.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) settings: Settings,
    /// The time of the request, or of the event, that is dealt with.
    pub(crate) now: Timestamp,
    pub(crate) ids: Ids,
    pub(crate) credentials: Vec<Credential>,
    /// Profiles that instances may be given, by their names, each with its role.
    pub(crate) profiles: BTreeMap<String, String>,
    pub(crate) regions: BTreeMap<String, Region>,
    pub(crate) ledger: Ledger,
    pub(crate) faults: Faults,
    pub(crate) throttle: Throttle,
    pub(crate) calls: Calls,
    /// On-demand prices that are not those of the data, by type and region.
    pub(crate) changed_prices: BTreeMap<(String, String), f64>,
    /// Launches that will be taken and ended all the same.
    pub(crate) late_refusals: Vec<LateRefusal>,
    /// Launches whose machines will run and be of little use.
    pub(crate) host_faults: Vec<HostFault>,
    /// What happens by itself, by time and order.
    due: BTreeMap<(Timestamp, u64), Due>,
    /// How many things were ever put into order.
    order: u64,
    /// What whoever plays the machines is still to be told.
    pub(crate) outbox: Vec<MachineEvent>,
}

/// Something that happens to an instance by itself.
#[derive(Debug)]
struct Due {
    region: String,
    instance_id: String,
    step: Step,
}

/// The next step of an instance.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// It is running.
    Run,
    /// It is taken away after the notice.
    Interrupt,
    /// AWS ends it, for that code and text.
    Fail(String, String),
    /// It is gone.
    End,
    /// Nobody is told of it any more.
    Forget,
}

/// What an account has in a region.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) name: String,
    pub(crate) network: Network,
    pub(crate) images: BTreeMap<String, Image>,
    pub(crate) security_groups: BTreeMap<String, SecurityGroup>,
    pub(crate) key_pairs: BTreeMap<String, KeyPair>,
    /// By name.
    pub(crate) placement_groups: BTreeMap<String, PlacementGroup>,
    pub(crate) instances: BTreeMap<String, Instance>,
    pub(crate) interfaces: BTreeMap<String, Interface>,
    pub(crate) addresses: BTreeMap<String, Address>,
    pub(crate) volumes: BTreeMap<String, Volume>,
    pub(crate) spot_requests: BTreeMap<String, SpotRequest>,
    pub(crate) reservations: BTreeMap<String, Reservation>,
    pub(crate) capacity: Capacity,
    /// Quotas that were set by hand, by their codes.
    pub(crate) quotas: BTreeMap<String, f64>,
    /// What was asked for under a client's token.
    pub(crate) tokens: BTreeMap<String, Token>,
}

/// Launches that are taken, and whose instances AWS ends before they run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LateRefusal {
    /// The region.
    pub region: String,
    /// The type.
    pub instance_type: String,
    /// The zone, where it matters.
    #[serde(default)]
    pub zone: Option<String>,
    /// How many instances it hits.
    pub times: u32,
    /// The code of the reason, as `Server.InsufficientInstanceCapacity`.
    pub code: String,
    /// The text of the reason.
    pub message: String,
}

/// Launches that are taken, and whose machines have some trouble.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFault {
    /// The type, where it matters.
    #[serde(default)]
    pub instance_type: Option<String>,
    /// How many instances it hits.
    pub times: u32,
    /// What is wrong with them.
    pub what: HostTrouble,
}

/// A call, as it is remembered.
#[derive(Debug, Clone, Serialize)]
pub struct CallRecord {
    /// When it came.
    pub at: Timestamp,
    /// The service, by the name in signatures.
    pub service: String,
    /// The region.
    pub region: String,
    /// The action.
    pub action: String,
    /// The key that signed it.
    pub access_key: String,
    /// What was asked, by the model's names.
    pub parameters: Value,
    /// The code of the refusal, or nothing.
    pub error: Option<String>,
}

/// Calls, remembered and counted.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    pub(crate) last: VecDeque<CallRecord>,
    /// By action, all of them.
    pub(crate) counts: BTreeMap<String, u64>,
}

impl Calls {
    pub(crate) fn add(&mut self, record: CallRecord) {
        *self.counts.entry(record.action.clone()).or_default() += 1;
        if self.last.len() == MAX_CALLS {
            self.last.pop_front();
        }
        self.last.push_back(record);
    }
}

impl World {
    pub(crate) fn new(settings: Settings, seed: u64, credentials: Vec<Credential>, now: Timestamp) -> World {
        World {
            settings,
            now,
            ids: Ids::new(seed),
            credentials,
            profiles: BTreeMap::new(),
            regions: BTreeMap::new(),
            ledger: Ledger::default(),
            faults: Faults::default(),
            throttle: Throttle::default(),
            calls: Calls::default(),
            changed_prices: BTreeMap::new(),
            late_refusals: Vec::new(),
            host_faults: Vec::new(),
            due: BTreeMap::new(),
            order: 0,
            outbox: Vec::new(),
        }
    }

    /// The region, with what every account finds there the first time that it looks.
    pub(crate) fn region(&mut self, name: &str) -> Result<&mut Region, ApiError> {
        if !self.regions.contains_key(name) {
            let offers = catalog().regions.get(name).ok_or_else(|| {
                ApiError::client("InvalidParameterValue", format!("Region '{name}' does not exist"))
            })?;
            let network = Network::new(name, offers, &self.settings, &mut self.ids)
                .map_err(|error| ApiError::client("InvalidParameterValue", error))?;
            let mut security_groups = BTreeMap::new();
            for vpc_id in network.vpcs.keys() {
                let group = SecurityGroup::default_of(vpc_id, &mut self.ids);
                security_groups.insert(group.id.clone(), group);
            }
            let region = Region {
                name: name.to_owned(),
                network,
                images: crate::images::published(name, &mut self.ids),
                security_groups,
                key_pairs: BTreeMap::new(),
                placement_groups: BTreeMap::new(),
                instances: BTreeMap::new(),
                interfaces: BTreeMap::new(),
                addresses: BTreeMap::new(),
                volumes: BTreeMap::new(),
                spot_requests: BTreeMap::new(),
                reservations: BTreeMap::new(),
                capacity: Capacity::default(),
                quotas: BTreeMap::new(),
                tokens: BTreeMap::new(),
            };
            self.regions.insert(name.to_owned(), region);
        }
        Ok(self.regions.get_mut(name).expect("it is there by now"))
    }

    /// Lets a step happen at a time.
    pub(crate) fn schedule(&mut self, at: Timestamp, region: &str, instance_id: &str, step: Step) {
        self.order += 1;
        let due = Due { region: region.to_owned(), instance_id: instance_id.to_owned(), step };
        self.due.insert((at, self.order), due);
    }

    /// When something happens by itself next.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets everything happen that is due.
    pub(crate) fn advance(&mut self, now: Timestamp) {
        while let Some(entry) = self.due.first_entry() {
            let at = entry.key().0;
            if now < at {
                break;
            }
            let due = entry.remove();
            self.now = at;
            crate::instances::take_step(self, &due.region, &due.instance_id, due.step);
        }
        self.now = now;
    }

    /// Why an instance of that type shall not run, if that was asked for.
    pub(crate) fn take_late_refusal(
        &mut self,
        region: &str,
        instance_type: &str,
        zone: &str,
    ) -> Option<(String, String)> {
        let is_about = |refusal: &&mut LateRefusal| {
            refusal.region == region
                && refusal.instance_type == instance_type
                && refusal.zone.as_deref().is_none_or(|wanted| wanted == zone)
        };
        let refusal = self.late_refusals.iter_mut().find(is_about)?;
        refusal.times = refusal.times.saturating_sub(1);
        let reason = (refusal.code.clone(), refusal.message.clone());
        self.late_refusals.retain(|refusal| 0 < refusal.times);
        Some(reason)
    }

    /// What shall be wrong with an instance of that type, if anything was asked for.
    pub(crate) fn take_host_fault(&mut self, instance_type: &str) -> Option<HostTrouble> {
        let is_about =
            |fault: &&mut HostFault| fault.instance_type.as_deref().is_none_or(|wanted| wanted == instance_type);
        let fault = self.host_faults.iter_mut().find(is_about)?;
        fault.times = fault.times.saturating_sub(1);
        let trouble = fault.what;
        self.host_faults.retain(|fault| 0 < fault.times);
        Some(trouble)
    }

    /// Whether something that was made at a time is seen by other actions yet.
    pub(crate) fn sees_resource(&self, made_at: Timestamp) -> bool {
        made_at + crate::settings::millis(self.settings.resource_unseen_ms) <= self.now
    }
}
