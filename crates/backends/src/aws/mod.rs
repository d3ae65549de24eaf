//! AWS: machines of EC2, with EFA between them.
//!
//! | file | |
//! |---|---|
//! | `config`, `clients`, `errors`, `tags` | the account, the SDK, its refusals in our words, our marks |
//! | `types`, `prices`, `quotas`, `reservations`, `network`, `images` | what is asked of AWS and kept for a while |
//! | `layout`, `user_data`, `prepare` | what a machine gets; pure |
//! | `offers`, `launch`, `machines`, `placement_groups`, `security_groups`, `addresses`, `terminate`, `tidy` | the verbs, in one region |
//! | `survey` | the verbs in all regions, of which some may not answer |
//! | `topology` | where machines are in the network |
//!
//! A launch is put together first (`prepare`) and recorded by the caller; from then on its token comes with exactly that
//! request, however often it is repeated. Everything made carries marks by which it is found again.

mod addresses;
mod cached;
mod check;
mod clients;
mod config;
mod errors;
mod files;
mod images;
mod launch;
mod layout;
mod machines;
mod network;
mod offers;
mod placement_groups;
mod prepare;
mod prices;
mod quotas;
mod regions;
mod reservations;
mod security_groups;
mod survey;
mod tags;
mod terminate;
mod tidy;
mod topology;
mod types;
mod user_data;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use api::agent::Cloud;
use api::backends::BackendType;
use api::ids::{BackendId, FleetId, LaunchId};
use async_trait::async_trait;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::time::Instant;

use self::cached::Cached;
use self::clients::Clients;
use self::config::AwsConfig;
use self::images::{AskedImage, FoundImage};
use self::machines::Seen;
use self::network::RegionNetwork;
use self::offers::RegionFacts;
use self::prepare::{OfferData, Prepared};
use self::prices::{Prices, SpotPrices};
use self::quotas::Quotas;
use self::regions::Regions;
use self::tags::Owner;
use self::terminate::Ends;
use self::topology::Topology;
use self::types::{TypeFacts, Types};
use crate::keys::invalid;
use crate::registry::{Entry, OpenContext};
use crate::{
    AgentAccess, Backend, BackendOffer, Capabilities, Error, ErrorKind, FirstStart, Jump, LaunchOrder, Living,
    Machine, MachineKey, OffersWanted, Result, Survey,
};

/// What the list of backends knows of this folder.
pub(crate) static ENTRY: Entry = Entry {
    kind: "aws",
    check: |config| config::check(config).map(|()| config.clone()),
    wire_type: |_| BackendType::Aws,
    is_hidden: false,
    is_for_tests: false,
    open,
};

/// How long a machine may take to answer. Those with eight GPUs and terabytes of memory boot for many minutes.
const PROVISIONING_TIMEOUT_SECS: u64 = 20 * 60;

/// How long networks and images are believed to be as they were.
const SHORT: Duration = Duration::from_mins(10);

/// How long AWS may take to tell whose the credentials are.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it is believed where a type is offered.
const LONG: Duration = Duration::from_hours(1);

/// How long a reservation is believed to have room.
const MOMENT: Duration = Duration::from_secs(15);

/// How often everything is looked through for what is nobody's, unless something ended.
const TIDY_PERIOD: Duration = Duration::from_mins(5);

fn open(config: &Value, context: &OpenContext, id: BackendId) -> Result<Arc<dyn Backend>> {
    let config = config::parse(config)?;
    let dir = context.state_dir.join("aws");
    Ok(Arc::new(Aws(Arc::new(Account {
        clients: Clients::new(&config),
        owner: Owner { server: context.server_id, backend: id },
        regions: Regions::open(&dir, id, &config.regions),
        types: Types::open(&dir),
        prices: Prices::open(&dir, &config.regions),
        networks: Cached::new(SHORT),
        offerings: Cached::new(LONG),
        spot_prices: Cached::new(SHORT),
        quotas: Cached::new(SHORT),
        addresses: Cached::new(MOMENT),
        new_addresses: addresses::Made::default(),
        images: Cached::new(SHORT),
        reservations: Cached::new(MOMENT),
        seen: Seen::default(),
        ends: Ends::default(),
        topology: Topology::default(),
        tidied: Mutex::default(),
        served: Mutex::default(),
        unclaimed: tidy::Unclaimed::default(),
        identity: OnceLock::new(),
        identities: Cached::remembering(LONG, SHORT),
        silences: survey::Silences::default(),
        lost_images: Mutex::default(),
        config,
    }))))
}

/// An account of AWS, as one project uses it.
#[derive(Debug)]
struct Aws(Arc<Account>);

#[derive(Debug)]
struct Account {
    config: AwsConfig,
    clients: Clients,
    owner: Owner,
    regions: Regions,
    types: Types,
    prices: Prices,
    /// By region.
    networks: Cached<String, RegionNetwork>,
    offerings: Cached<String, BTreeMap<String, BTreeSet<String>>>,
    spot_prices: Cached<String, SpotPrices>,
    quotas: Cached<String, Quotas>,
    addresses: Cached<String, u32>,
    new_addresses: addresses::Made,
    images: Cached<AskedImage, FoundImage>,
    /// By region and identifier.
    reservations: Cached<(String, String), Vec<reservations::ReservationFacts>>,
    seen: Seen,
    ends: Ends,
    topology: Topology,
    /// When each region need not be looked through before; a region in which something ended is taken out.
    tidied: Mutex<HashMap<String, Instant>>,
    /// The fleets and launches that lived when it was last looked.
    served: Mutex<(HashSet<FleetId>, HashSet<LaunchId>)>,
    unclaimed: tidy::Unclaimed,
    /// The account that the credentials are of, once AWS has told it.
    identity: OnceLock<String>,
    /// What AWS said to the question, also if that was no answer.
    identities: Cached<(), String>,
    silences: survey::Silences,
    /// Images that AWS did not know any more when they were launched.
    lost_images: Mutex<HashSet<String>>,
}

#[async_trait]
impl Backend for Aws {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            launches: true,
            cluster: true,
            zonal: true,
            consistent_list: false,
            admins_only: false,
            spot: true,
            reservations: true,
            processes_without_image: false,
            provisioning_timeout_secs: PROVISIONING_TIMEOUT_SECS,
        }
    }

    async fn check(&self) -> Result<()> {
        Box::pin(check::check(&self.0)).await
    }

    async fn offers(&self, wanted: &OffersWanted) -> Result<Survey<BackendOffer>> {
        let offered = self.0.offers(wanted).await;
        self.refresh_prices();
        offered
    }

    async fn prepare(&self, order: &LaunchOrder) -> Result<Value> {
        let prepared = self.0.prepare(order).await?;
        Ok(serde_json::to_value(prepared).expect("numbers and text are JSON"))
    }

    async fn launch(&self, order: &LaunchOrder) -> Result<()> {
        let account = &self.0;
        let prepared: Prepared = serde_json::from_value(order.prepared.clone())
            .map_err(|error| invalid(format!("the launch was not prepared by this backend: {error}")))?;
        let ec2 = account.clients.ec2(&prepared.region).await;
        account.ended_something(&prepared.region);
        // It was asked for when the launch was prepared.
        let identity = account.identity.get().cloned();
        account.regions.use_one(&prepared.region, identity).map_err(|error| {
            let message = format!("cannot keep that {} is used, so nothing is launched: {error}", prepared.region);
            Error::new(ErrorKind::RateLimited, message)
        })?;
        let made = launch::launch(&ec2, order, &prepared).await;
        if let Err(error) = &made {
            account.learn_from(error, &prepared);
        }
        account.seen.made(made?);
        Ok(())
    }

    async fn terminate(&self, machine: &MachineKey) -> Result<()> {
        self.0.terminate(machine).await
    }

    async fn list(&self) -> Result<Survey<Machine>> {
        let account = &self.0;
        let mut survey = account.list().await?;
        for machine in &mut survey.found {
            machine.hostname = account.hostname(machine);
        }
        Ok(survey)
    }

    async fn agent_access(&self, machine: &Machine) -> Result<AgentAccess> {
        self.0.agent_access(machine).await
    }

    async fn tidy(&self, living: &Living) -> Result<Vec<String>> {
        Ok(self.0.tidy(living).await)
    }
}

impl Aws {
    /// Asks for the prices of today behind everybody's back.
    fn refresh_prices(&self) {
        for region in &self.0.config.regions {
            if !self.0.prices.is_due(region) {
                continue;
            }
            let (account, region) = (Arc::clone(&self.0), region.clone());
            tokio::spawn(async move {
                let client = account.clients.pricing().await;
                if let Err(error) = account.prices.refresh(&client, &region).await {
                    let date = prices::SNAPSHOT_DATE;
                    tracing::info!(
                        "prices of {region} are those of {date}, because today's are not told: {error}"
                    );
                }
            });
        }
    }
}

impl Account {
    /// The account that the credentials are of; none where AWS does not tell.
    async fn identity(&self) -> Option<String> {
        if let Some(known) = self.identity.get() {
            return Some(known.clone());
        }
        // Nobody waits long for what is believed without an answer, nor again and again.
        let ask = async {
            let client = self.clients.sts().await;
            let asked = tokio::time::timeout(IDENTITY_TIMEOUT, client.get_caller_identity().send()).await;
            let told = asked.map_err(|_| Error::new(ErrorKind::Unavailable, "STS does not answer"))?;
            let told = told.map_err(|error| errors::failure("tell who we are", &error))?;
            let account = told.account().map(str::to_owned);
            account.ok_or_else(|| invalid("AWS does not tell the account"))
        };
        let told = self.identities.get(&(), ask).await;
        let account = told.inspect_err(|error| tracing::debug!("the account is not known: {error}")).ok()?;
        Some(self.identity.get_or_init(|| account.as_ref().clone()).clone())
    }

    /// Whether the credentials are of the account where our machines are. With those of another one, all machines would
    /// seem to be gone, and would run on.
    async fn check_account(&self) -> Result<()> {
        let Some(made_in) = self.regions.account() else { return Ok(()) };
        match self.identity().await {
            Some(account) if account != made_in => {
                let message = format!(
                    "the credentials are of account {account}, and what this backend has made is in {made_in}: put the \
                     credentials of {made_in} back until nothing of it is left"
                );
                Err(Error::new(ErrorKind::InvalidCredentials, message))
            }
            _ => Ok(()),
        }
    }

    /// Where a machine answers: in the world, or from within its network.
    fn hostname(&self, machine: &Machine) -> Option<String> {
        if self.config.public_ips { machine.hostname.clone() } else { machine.internal_ip.clone() }
    }

    /// The network of a launch's region, looked at once more if it seems to have no room.
    async fn network_with_room(&self, order: &LaunchOrder) -> Result<Arc<RegionNetwork>> {
        let region = &order.offer.region;
        let known = self.network(region).await?;
        let has_room = order.zone.as_ref().is_none_or(|zone| known.subnet(zone, order.least).is_ok());
        if has_room {
            return Ok(known);
        }
        self.networks.forget(region);
        self.network(region).await
    }

    async fn network(&self, region: &str) -> Result<Arc<RegionNetwork>> {
        let ask = async {
            let ec2 = self.clients.ec2(region).await;
            Box::pin(network::resolve(&ec2, &self.config, region)).await
        };
        self.networks.get(&region.to_owned(), ask).await
    }

    async fn region_facts(&self, region: &str, wanted: &OffersWanted) -> Result<RegionFacts> {
        let ec2 = self.clients.ec2(region).await;
        let key = region.to_owned();
        let offerings = async {
            let offerings = self.offerings.get(&key, types::offerings(&ec2)).await?;
            self.types.learn(&ec2, &offerings.keys().cloned().collect()).await?;
            Ok::<_, Error>(offerings)
        };
        let quotas = self.quotas.get(&key, async {
            let client = self.clients.quotas(region).await;
            quotas::ask(&client).await
        });
        let (offerings, network, quotas) = tokio::join!(offerings, self.network(region), quotas);
        let offerings = offerings?;
        let network = match network {
            Err(error) if error.kind.is_transient() => return Err(error),
            network => network.map_err(|error| error.message),
        };
        let spot_prices = if wanted.spot == Some(false) {
            None
        } else {
            let zones = offerings.values().flatten().map(String::as_str).collect();
            self.spot_prices.get(&key, prices::spot(&ec2, &zones)).await.ok()
        };
        let reservations = match &wanted.reservation {
            None => Arc::default(),
            Some(asked) => {
                let key = (region.to_owned(), asked.clone());
                self.reservations.get(&key, reservations::find(&ec2, region, asked)).await?
            }
        };
        let addresses_in_use = if self.config.public_ips && wanted.cluster {
            self.addresses.get(&key, addresses::count(&ec2)).await.ok().map(|count| *count)
        } else {
            None
        };
        // Quotas that cannot be asked for stop nobody: AWS itself will say so.
        let quotas = quotas.inspect_err(|error| tracing::debug!("quotas of {region}: {error}")).ok();
        Ok(RegionFacts { region: key, network, offerings, spot_prices, quotas, addresses_in_use, reservations })
    }

    async fn facts_of_type(&self, ec2: &aws_sdk_ec2::Client, name: &str) -> Result<Arc<TypeFacts>> {
        self.types.learn(ec2, &BTreeSet::from([name.to_owned()])).await?;
        self.types.get(name).ok_or_else(|| invalid(format!("AWS does not know the instance type {name}")))
    }

    async fn prepare(&self, order: &LaunchOrder) -> Result<Prepared> {
        self.check_account().await?;
        self.identity().await;
        let region = &order.offer.region;
        let ec2 = self.clients.ec2(region).await;
        let facts = self.facts_of_type(&ec2, &order.offer.instance_type.name).await?;
        let network = self.network_with_room(order).await?;
        let image = self.image(&ec2, order, &facts).await?;
        let security_group_ids = if let Some(given) = self.config.network.security_group_ids.get(region) {
            given.clone()
        } else {
            let project = &order.project_name;
            vec![security_groups::ensure(&ec2, self.owner, &self.config, &network, project).await?]
        };
        let data: OfferData = serde_json::from_value(order.offer.backend_data.clone()).unwrap_or_default();
        let around = prepare::Surroundings {
            config: &self.config,
            facts: &facts,
            network: &network,
            image,
            security_group_ids,
            data,
            own_tags: self.owner.tags(),
        };
        prepare::prepare(order, around)
    }

    /// Forgets what a refusal shows to be wrong, so that the next launch is prepared from what is there now.
    fn learn_from(&self, error: &Error, prepared: &Prepared) {
        let code = error.code.as_deref().unwrap_or_default();
        if error.kind == ErrorKind::NoAddresses || code.starts_with("InvalidSubnet") {
            self.networks.forget(&prepared.region);
        }
        if code.starts_with("InvalidAMIID") {
            // A fleet keeps its image, but not one that is gone.
            self.images.forget(&prepared.image.asked);
            self.lost_images.lock().unwrap_or_else(PoisonError::into_inner).insert(prepared.image.id.clone());
        }
    }

    /// What a machine starts from: the same as the fleet's other machines, or else the newest.
    async fn image(
        &self,
        ec2: &aws_sdk_ec2::Client,
        order: &LaunchOrder,
        facts: &TypeFacts,
    ) -> Result<FoundImage> {
        let asked = images::wanted(&self.config, &order.offer.region, facts);
        let before = order.fleet_prepared.iter().filter_map(|prepared| Prepared::deserialize(prepared).ok());
        let is_lost = |image: &FoundImage| {
            self.lost_images.lock().unwrap_or_else(PoisonError::into_inner).contains(&image.id)
        };
        let mut images = before.map(|before| before.image);
        if let Some(image) = images.find(|image| image.asked == asked && !is_lost(image)) {
            return Ok(image);
        }
        let found = self.images.get(&asked, images::find(ec2, &asked)).await?;
        Ok(found.as_ref().clone())
    }

    async fn agent_access(&self, machine: &Machine) -> Result<AgentAccess> {
        let login = machine.login.clone();
        let login =
            login.ok_or_else(|| invalid(format!("nobody knows who logs in to {}", machine.provider_id)))?;
        let address = match self.hostname(machine) {
            Some(address) => address,
            None => self.give_address(machine).await?,
        };
        let jump = self.config.bastion.as_ref().map(|bastion| Jump {
            hostname: bastion.host.clone(),
            port: bastion.port,
            user: bastion.user.clone(),
            private_key: bastion.key.clone(),
        });
        let first_start = FirstStart { done: user_data::DONE.to_owned(), failed: user_data::FAILED.to_owned() };
        Ok(AgentAccess::Ssh { address, login, jump, first_start: Some(first_start), cloud: Some(Cloud::Ec2) })
    }

    /// Gives a machine with several interfaces the address that AWS does not give it.
    async fn give_address(&self, machine: &Machine) -> Result<String> {
        let unknown = || {
            let message = format!("AWS does not tell an address of {} yet", machine.provider_id);
            Error::new(ErrorKind::Unavailable, message)
        };
        let known = self.find(&machine.key).await?.ok_or_else(unknown)?;
        if !self.config.public_ips || known.interfaces < 2 {
            return Err(unknown());
        }
        let interface = known.primary_interface.ok_or_else(unknown)?;
        let ec2 = self.clients.ec2(&machine.region).await;
        let tags = &self.config.tags;
        addresses::give(&ec2, self.owner, &self.new_addresses, (&machine.key, &interface), tags).await
    }
}
