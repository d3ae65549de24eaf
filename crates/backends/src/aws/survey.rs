//! Looks at all regions that may have something of ours. One that does not answer keeps nobody from the others.

use std::sync::PoisonError;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::time::Instant;

use super::terminate::Fate;
use super::{Account, TIDY_PERIOD, addresses, files, machines, offers, security_groups, tidy};
use crate::keys::invalid;
use crate::{
    BackendOffer, Error, ErrorKind, Living, Machine, MachineKey, MachineState, OffersWanted, Result, SilentRegion,
    Survey,
};

/// What was found in the regions that answered. An error says that none did.
fn survey<T>(answers: Vec<(&String, Result<Vec<T>>)>) -> Result<Survey<T>> {
    let mut survey = Survey::whole(vec![]);
    let regions = answers.len();
    for (region, answer) in answers {
        match answer {
            Ok(found) => survey.found.extend(found),
            Err(error) => survey.silent.push(SilentRegion { region: region.clone(), error }),
        }
    }
    match survey.silent.first() {
        Some(silent) if survey.silent.len() == regions => Err(silent.error.clone()),
        _ => Ok(survey),
    }
}

impl Account {
    /// What all regions offer, cheapest first.
    pub(super) async fn offers(&self, wanted: &OffersWanted) -> Result<Survey<BackendOffer>> {
        let regions = &self.config.regions;
        let facts = join_all(regions.iter().map(|region| self.region_facts(region, wanted))).await;
        let now = Timestamp::try_from(files::now()).unwrap_or(Timestamp::UNIX_EPOCH);
        let mut reserved_type = None;
        let answers = regions.iter().zip(facts).map(|(region, facts)| {
            let offered = facts.map(|facts| {
                reserved_type =
                    reserved_type.take().or(facts.reservations.first().map(|one| one.instance_type.clone()));
                offers::of_region(&self.config, &facts, &self.types, &self.prices, wanted, now)
            });
            (region, offered)
        });
        let mut survey = survey(answers.collect())?;
        survey.found.sort_by(|one, other| one.price_usd_per_hour.total_cmp(&other.price_usd_per_hour));
        if let Some(reservation) = wanted.reservation.as_ref().filter(|_| survey.found.is_empty()) {
            return match reserved_type {
                Some(name) => Err(invalid(format!(
                    "reservation {reservation} is for {name}, and machines of that type cannot be used"
                ))),
                None if survey.silent.is_empty() => Err(invalid(format!(
                    "reservation {reservation} is in none of the backend's regions ({})",
                    regions.join(", ")
                ))),
                None => Ok(survey),
            };
        }
        Ok(survey)
    }

    /// All machines, wherever they may be.
    pub(super) async fn list(&self) -> Result<Survey<Machine>> {
        self.check_account().await?;
        let watched = self.regions.watched();
        let regions = watched.iter().map(|region| async move {
            let ec2 = self.clients.ec2(region).await;
            let mut listed = machines::list(&ec2, self.owner, region).await?;
            self.topology.add(&ec2, region, &mut listed).await;
            Ok::<_, Error>(listed)
        });
        let listed = survey(watched.iter().zip(join_all(regions).await).collect())?;
        self.topology.keep(&listed.found);
        Ok(self.seen.listed(listed))
    }

    /// A machine as it is known, asked for once more if it is not.
    pub(super) async fn find(&self, key: &MachineKey) -> Result<Option<machines::Sighting>> {
        if let Some(known) = self.seen.get(key) {
            return Ok(Some(known));
        }
        let survey = self.list().await?;
        let known = self.seen.get(key);
        match survey.silent.into_iter().next() {
            // It may be there.
            Some(SilentRegion { region, error }) if known.is_none() => {
                Err(Error { message: format!("region {region} could not be asked: {error}"), ..error })
            }
            _ => Ok(known),
        }
    }

    pub(super) async fn terminate(&self, key: &MachineKey) -> Result<()> {
        let Some(known) = self.find(key).await? else { return Ok(()) };
        let region = &known.machine.region;
        let ec2 = self.clients.ec2(region).await;
        self.ended_something(region);
        let fate = self.ends.end(&ec2, region, &known.machine.provider_id).await?;
        if fate == Fate::Unknown && self.seen.is_new(key) {
            let message = format!("AWS does not show {} yet, which it has just made", known.machine.provider_id);
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        if self.config.public_ips && known.interfaces > 1 {
            for address in addresses::list(&ec2, self.owner, Some(key)).await? {
                addresses::release(&ec2, &address).await?;
            }
        }
        Ok(())
    }

    /// Something may be nobody's from now on.
    pub(super) fn ended_something(&self, region: &str) {
        self.tidied.lock().unwrap_or_else(PoisonError::into_inner).remove(region);
    }

    /// The regions that are to be looked through.
    fn untidy(&self, living: &Living) -> Vec<String> {
        let mut tidied = self.tidied.lock().unwrap_or_else(PoisonError::into_inner);
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let serves_less = !served.0.is_subset(&living.fleets) || !served.1.is_subset(&living.launches);
        if serves_less {
            tidied.clear();
        }
        *served = (living.fleets.clone(), living.launches.clone());
        let is_due =
            |region: &String| living.is_leaving || tidied.get(region).is_none_or(|from| *from <= Instant::now());
        self.regions.watched().into_iter().filter(is_due).collect()
    }

    /// Removes what serves nobody any more. What still stands, or may stand in a region that does not answer, is told.
    pub(super) async fn tidy(&self, living: &Living) -> Vec<String> {
        if let Err(error) = self.check_account().await {
            return vec![format!("what cannot be seen ({error})")];
        }
        let due = self.untidy(living);
        let left = join_all(due.iter().map(|region| self.tidy_region(region, living))).await;
        let mut all = vec![];
        for (region, left) in due.iter().zip(left) {
            if left.is_empty() {
                let next = Instant::now() + TIDY_PERIOD;
                self.tidied.lock().unwrap_or_else(PoisonError::into_inner).insert(region.clone(), next);
            }
            all.extend(left.into_iter().map(|what| format!("{what} in {region}")));
        }
        if all.is_empty() && living.launches.is_empty() && living.open_launches.is_empty() && self.seen.has_none()
        {
            self.regions.leave_account();
        }
        all
    }

    async fn tidy_region(&self, region: &String, living: &Living) -> Vec<String> {
        let ec2 = self.clients.ec2(region).await;
        let mut left = tidy::tidy(&ec2, self.owner, region, living, &self.unclaimed).await;
        // Also a region that is not configured any more is left without a trace once it has no machine.
        let is_over = if self.config.regions.contains(region) {
            false
        } else {
            match machines::list(&ec2, self.owner, region).await {
                Ok(listed) => listed.iter().all(|one| one.machine.state == MachineState::Gone),
                Err(error) => {
                    left.push(format!("what could not be listed ({error})"));
                    false
                }
            }
        };
        if living.is_leaving || is_over {
            match security_groups::remove(&ec2, self.owner).await {
                Ok(more) => left.extend(more),
                Err(error) => left.push(format!("security groups ({error})")),
            }
        }
        if left.is_empty() && is_over {
            self.regions.leave(region);
        }
        left
    }
}
