//! What a test or a demonstration may do to the cloud beside asking it: set capacity, break things, look into its books.
//!
//! Every order is a JSON object; the same orders are methods of [`Simulator`](crate::Simulator).

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::auth::Credential;
use crate::capacity::{Market, NewReservation, Reservation};
use crate::catalog::catalog;
use crate::faults::Fault;
use crate::filters::Tags;
use crate::images::{Image, NewImage};
use crate::instances::{self, Ended};
use crate::ledger::Kind;
use crate::machines::Report;
use crate::network::NewVpc;
use crate::settings::Settings;
use crate::throttle::Rate;
use crate::world::{HostFault, LateRefusal, Region, World};
use crate::{capacity, quotas, types};

/// An order, by the name of its path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ControlError(pub String);

impl From<String> for ControlError {
    fn from(text: String) -> ControlError {
        ControlError(text)
    }
}

impl From<&str> for ControlError {
    fn from(text: &str) -> ControlError {
        ControlError(text.to_owned())
    }
}

impl From<crate::error::ApiError> for ControlError {
    fn from(error: crate::error::ApiError) -> ControlError {
        ControlError(error.message)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetCapacity {
    region: String,
    instance_type: String,
    zone: String,
    #[serde(default = "on_demand")]
    market: Market,
    /// Without a number, there are enough again.
    left: Option<u32>,
}

fn on_demand() -> Market {
    Market::OnDemand
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetQuota {
    region: String,
    code: String,
    value: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetRate {
    bucket: String,
    capacity: f64,
    per_second: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddImage {
    region: String,
    image: NewImage,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddProfile {
    name: String,
    role: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetPrice {
    region: String,
    instance_type: String,
    /// US dollars an hour, on demand.
    price: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TakeAddresses {
    region: String,
    subnet_id: String,
    /// How many addresses others have.
    taken: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetCredentials {
    credentials: Vec<Credential>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expire {
    access_key: String,
    /// When; without a time, the key does not expire.
    at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allow {
    access_key: String,
    /// The actions that the key may be used for; without a list, all.
    allowed: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Interrupt {
    region: String,
    instance_id: String,
    /// How long before the end the notice comes; as the settings say unless told.
    notice_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Terminate {
    region: String,
    instance_id: String,
    /// Who: `console`, as if somebody did it there, or `aws`.
    by: By,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum By {
    Console,
    Aws,
}

fn read<T: DeserializeOwned>(body: &Value) -> Result<T, ControlError> {
    serde_json::from_value(body.clone()).map_err(|error| ControlError(error.to_string()))
}

impl World {
    fn open(&mut self, region: &str) -> Result<&mut Region, ControlError> {
        Ok(self.region(region)?)
    }

    /// Carries out an order.
    pub(crate) fn control(&mut self, name: &str, body: &Value) -> Result<Value, ControlError> {
        match name {
            "settings" => self.set_settings(body)?,
            "capacity" => self.set_capacity(&read(body)?)?,
            "quotas" => self.set_quota(&read(body)?)?,
            "rates" => {
                let asked: SetRate = read(body)?;
                let rate = Rate { capacity: asked.capacity, per_second: asked.per_second };
                self.throttle.set_rate(&asked.bucket, rate);
            }
            "faults" => self.faults.add(read::<Fault>(body)?)?,
            "faults/clear" => self.faults.clear(),
            "host-faults" => self.host_faults.push(read::<HostFault>(body)?),
            "late-refusals" => self.late_refusals.push(read::<LateRefusal>(body)?),
            "images" => return self.add_image(read(body)?),
            "profiles" => {
                let asked: AddProfile = read(body)?;
                self.profiles.insert(asked.name, asked.role);
            }
            "vpcs" => return self.add_vpc(&read(body)?),
            "addresses/taken" => {
                let asked: TakeAddresses = read(body)?;
                self.open(&asked.region)?.network.subnet(&asked.subnet_id)?.taken = asked.taken;
            }
            "prices" => {
                let asked: SetPrice = read(body)?;
                self.changed_prices.insert((asked.instance_type, asked.region), asked.price);
            }
            "reservations" => return self.add_reservation(read(body)?),
            "credentials" => self.credentials = read::<SetCredentials>(body)?.credentials,
            "credentials/expire" => {
                let asked: Expire = read(body)?;
                self.credential(&asked.access_key)?.expires_at = asked.at;
            }
            "credentials/allow" => {
                let asked: Allow = read(body)?;
                self.credential(&asked.access_key)?.allowed = asked.allowed;
            }
            "instances/interrupt" => {
                let asked: Interrupt = read(body)?;
                let notice_ms = asked.notice_ms.unwrap_or(self.settings.spot_notice_ms);
                instances::interrupt(self, &asked.region, &asked.instance_id, notice_ms)?;
            }
            "instances/terminate" => self.terminate(read(body)?)?,
            "instances/report" => instances::report(self, &read::<Report>(body)?)?,
            _ => return Err(ControlError(format!("there is no order `{name}`"))),
        }
        Ok(json!({}))
    }

    /// What can be looked at.
    pub(crate) fn look(&self, name: &str) -> Result<Value, ControlError> {
        let value = match name {
            "health" => json!({"ok": true}),
            "settings" => json!(self.settings),
            "ledger" => json!(self.ledger.entries()),
            "orphans" => json!(self.ledger.alive()),
            "calls" => json!(self.calls.last),
            "counts" => json!(self.calls.counts),
            "faults" => json!(self.faults.waiting()),
            _ => return Err(ControlError(format!("there is nothing called `{name}` to look at"))),
        };
        Ok(value)
    }

    fn set_settings(&mut self, body: &Value) -> Result<(), ControlError> {
        let mut settings = json!(self.settings);
        let change = body.as_object().ok_or("settings are an object")?;
        for (name, value) in change {
            settings[name] = value.clone();
        }
        let settings = read::<Settings>(&settings)?;
        settings.check()?;
        self.settings = settings;
        Ok(())
    }

    fn set_capacity(&mut self, asked: &SetCapacity) -> Result<(), ControlError> {
        if !types::zone_names(&asked.region).contains(&asked.zone) {
            return Err(ControlError(format!("`{}` is no zone of `{}`", asked.zone, asked.region)));
        }
        if !catalog().types.contains_key(&asked.instance_type) {
            return Err(ControlError(format!("there is no type `{}`", asked.instance_type)));
        }
        let region = self.open(&asked.region)?;
        region.capacity.set(&asked.instance_type, &asked.zone, asked.market, asked.left);
        Ok(())
    }

    fn set_quota(&mut self, asked: &SetQuota) -> Result<(), ControlError> {
        if !quotas::is_known(&asked.code) {
            return Err(ControlError(format!("there is no quota `{}`", asked.code)));
        }
        self.open(&asked.region)?.quotas.insert(asked.code.clone(), asked.value);
        Ok(())
    }

    fn add_image(&mut self, asked: AddImage) -> Result<Value, ControlError> {
        asked.image.created_at.parse::<Timestamp>().map_err(|error| ControlError(error.to_string()))?;
        let image = Image::new(asked.image, &mut self.ids);
        let id = image.id.clone();
        self.open(&asked.region)?.images.insert(id.clone(), image);
        Ok(json!({"image_id": id}))
    }

    fn add_vpc(&mut self, new: &NewVpc) -> Result<Value, ControlError> {
        self.open(&new.region)?;
        let offers = &catalog().regions[&new.region];
        let region = self.regions.get_mut(&new.region).expect("it was opened");
        let vpc_id = region.network.add(new, false, offers, &mut self.ids)?;
        let group = crate::security_groups::SecurityGroup::default_of(&vpc_id, &mut self.ids);
        region.security_groups.insert(group.id.clone(), group);
        let subnets = region.network.subnets.values().filter(|subnet| subnet.vpc_id == vpc_id);
        let subnets: Vec<Value> = subnets
            .map(|subnet| json!({"subnet_id": subnet.id, "zone": subnet.zone, "tags": subnet.tags}))
            .collect();
        Ok(json!({"vpc_id": vpc_id, "subnets": subnets}))
    }

    fn add_reservation(&mut self, new: NewReservation) -> Result<Value, ControlError> {
        let now = self.now;
        let account = self.settings.account.clone();
        let id = self.ids.resource("cr");
        let region = self.open(&new.region)?;
        if !catalog().types.contains_key(&new.instance_type) {
            return Err(ControlError(format!("there is no type `{}`", new.instance_type)));
        }
        let group =
            new.placement_group.map(|name| format!("arn:aws:ec2:{}:{account}:placement-group/{name}", new.region));
        let reservation = Reservation {
            id: id.clone(),
            instance_type: new.instance_type,
            zone: new.zone,
            count: new.count,
            is_block: new.block,
            starts_at: new.starts_at.unwrap_or(now),
            ends_at: new.ends_at,
            placement_group_arn: group,
            groups: new.groups.iter().map(|name| capacity::group_arn(&new.region, &account, name)).collect(),
            tenancy: "default".to_owned(),
            tags: Tags::new(),
            made_at: now,
        };
        region.reservations.insert(id.clone(), reservation);
        Ok(json!({"reservation_id": id}))
    }

    fn credential(&mut self, access_key: &str) -> Result<&mut Credential, ControlError> {
        let known = self.credentials.iter_mut().find(|known| known.access_key == access_key);
        known.ok_or_else(|| ControlError(format!("there is no key `{access_key}`")))
    }

    fn terminate(&mut self, asked: Terminate) -> Result<(), ControlError> {
        let is_there = self.open(&asked.region)?.instances.contains_key(&asked.instance_id);
        if !is_there {
            return Err("there is no such instance".into());
        }
        let why = match asked.by {
            By::Console => Ended::ByUser,
            By::Aws => {
                let code = asked.code.unwrap_or_else(|| "Server.InternalError".to_owned());
                let message = asked.message.unwrap_or_else(|| format!("{code}: Internal error on launch"));
                Ended::ByAws(code, message)
            }
        };
        instances::end(self, &asked.region, &asked.instance_id, &why);
        Ok(())
    }

    /// Whether a thing is still there, for those who count.
    pub(crate) fn count_alive(&self, kind: Kind) -> usize {
        self.ledger.alive().iter().filter(|entry| entry.kind == kind).count()
    }
}
