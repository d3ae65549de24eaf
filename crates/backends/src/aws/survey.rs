//! Looks at all regions that may have something of ours. One that does not answer keeps nobody from the others.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

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
    if survey.silent.is_empty() || survey.silent.len() < regions {
        return Ok(survey);
    }
    // One that may answer the next time says more than one that never will.
    let passing = survey.silent.iter().find(|silent| silent.error.kind.is_transient());
    let SilentRegion { region, error } = passing.unwrap_or(&survey.silent[0]).clone();
    Err(Error { message: format!("{error} (in {region})"), ..error })
}

/// How long a region may take to answer, so that those that do are not kept waiting; and one that was silent just before.
/// A region with a thousand machines takes ten seconds or twenty to list them.
const PATIENCE: Duration = Duration::from_secs(40);
const LITTLE_PATIENCE: Duration = Duration::from_secs(20);

/// For how long a region that was silent is not waited for so long again.
const SILENT_FOR: Duration = Duration::from_mins(1);

/// When regions did not answer a kind of question in time.
#[derive(Debug, Default)]
pub(super) struct Silence(Mutex<HashMap<String, Instant>>);

/// The same for each kind of question: some take longer than others.
#[derive(Debug, Default)]
pub(super) struct Silences {
    offers: Silence,
    list: Silence,
    tidy: Silence,
}

impl Silence {
    /// The answer of a region, if it comes in time.
    async fn wait<T>(&self, region: &str, answer: impl Future<Output = Result<T>>) -> Result<T> {
        let since = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(region).copied();
        let is_slow = since.is_some_and(|at| at.elapsed() < SILENT_FOR);
        let patience = if is_slow { LITTLE_PATIENCE } else { PATIENCE };
        let answered = tokio::time::timeout(patience, answer).await;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(answer) = answered {
            all.remove(region);
            return answer;
        }
        // Now and then it is waited for as long as ever, or one that is only slow would never be heard again.
        if !is_slow {
            all.insert(region.to_owned(), Instant::now());
        }
        Err(Error::new(ErrorKind::Unavailable, format!("AWS has not answered for {} s", patience.as_secs())))
    }
}

impl Account {
    /// What all regions offer, cheapest first.
    pub(super) async fn offers(&self, wanted: &OffersWanted) -> Result<Survey<BackendOffer>> {
        let regions = &self.config.regions;
        let asked =
            regions.iter().map(|region| self.silences.offers.wait(region, self.region_facts(region, wanted)));
        let facts = join_all(asked).await;
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
        let regions = watched.iter().map(|region| self.silences.list.wait(region, self.list_region(region)));
        let listed = survey(watched.iter().zip(join_all(regions).await).collect())?;
        self.topology.keep(&listed.found);
        if let Some(one) = listed.found.first() {
            self.regions.note_account(&one.machine.region, self.identity().await);
        }
        Ok(self.seen.listed(listed))
    }

    async fn list_region(&self, region: &str) -> Result<Vec<machines::Sighting>> {
        let ec2 = self.clients.ec2(region).await;
        let mut listed = machines::list(&ec2, self.owner, region).await?;
        self.topology.add(&ec2, region, &mut listed).await;
        Ok(listed)
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
        let uses = self.regions.uses();
        let due = self.untidy(living);
        let tidied = due.iter().map(|region| {
            let tidied = async move { Ok(self.tidy_region(region, living).await) };
            self.silences.tidy.wait(region, tidied)
        });
        let left = join_all(tidied).await.into_iter().map(|tidied| {
            tidied.unwrap_or_else(|error: Error| vec![format!("what could not be looked at ({error})")])
        });
        let mut all = vec![];
        for (region, left) in due.iter().zip(left) {
            if left.is_empty() {
                let next = Instant::now() + TIDY_PERIOD;
                self.tidied.lock().unwrap_or_else(PoisonError::into_inner).insert(region.clone(), next);
            }
            all.extend(left.into_iter().map(|what| format!("{what} in {region}")));
        }
        if living.launches.is_empty() && living.machines.is_empty() && self.has_no_machine().await {
            self.regions.leave_account(uses);
        }
        all
    }

    /// Whether no machine of ours is in any region where there may be one.
    async fn has_no_machine(&self) -> bool {
        if self.regions.account().is_none() {
            return false;
        }
        let Ok(survey) = self.list().await else { return false };
        let knows_all = self.regions.used().iter().all(|region| survey.knows(region));
        knows_all && survey.found.iter().all(|machine| machine.state == MachineState::Gone)
    }

    async fn tidy_region(&self, region: &String, living: &Living) -> Vec<String> {
        let ec2 = self.clients.ec2(region).await;
        let mut left = tidy::tidy(&ec2, self.owner, region, living, &self.unclaimed).await;
        // Also a region that is not configured any more is left without a trace once it has no machine.
        let is_left = !self.config.regions.contains(region);
        let mut is_empty = false;
        if living.is_leaving || is_left {
            match machines::list(&ec2, self.owner, region).await {
                Ok(listed) => {
                    let there = listed.iter().filter(|one| one.machine.state != MachineState::Gone).count();
                    is_empty = there == 0;
                    // Also one that no row knows needs the credentials until it is gone.
                    let machines = if there == 1 { "machine" } else { "machines" };
                    left.extend((living.is_leaving && there > 0).then(|| format!("{there} {machines}")));
                }
                Err(error) => left.push(format!("what could not be listed ({error})")),
            }
        }
        let is_over = is_left && is_empty;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_region_that_hangs_is_given_up_and_not_waited_for_so_long_again() {
        let silence = Silence::default();
        let hang = async || silence.wait("east", std::future::pending::<Result<()>>()).await.unwrap_err();
        let told = async || hang().await.message;
        assert_eq!(hang().await.kind, ErrorKind::Unavailable);
        for _ in 0..3 {
            assert_eq!(told().await, "AWS has not answered for 20 s");
        }
        // One that is only slow is heard after a while, whatever it did before.
        assert_eq!(told().await, "AWS has not answered for 40 s");
        assert_eq!(told().await, "AWS has not answered for 20 s");
        // Others are waited for as ever, and so is that one once it has answered.
        let late = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            Ok(2)
        };
        assert_eq!(silence.wait("west", late).await, Ok(2));
        assert_eq!(silence.wait("east", async { Ok(1) }).await, Ok(1));
        assert_eq!(told().await, "AWS has not answered for 40 s");
    }

    #[test]
    fn what_may_pass_is_told_before_what_never_will() {
        let (east, west) = ("east".to_owned(), "west".to_owned());
        let denied = || Err::<Vec<()>, _>(Error::new(ErrorKind::PermissionDenied, "denied"));
        let limited = || Err(Error::new(ErrorKind::RateLimited, "later"));
        let error = survey(vec![(&east, denied()), (&west, limited())]).unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::RateLimited, "later (in west)"));
        let error = survey(vec![(&east, denied()), (&west, denied())]).unwrap_err();
        assert_eq!(error.message, "denied (in east)");
        let half = survey(vec![(&east, denied()), (&west, Ok(vec![()]))]).unwrap();
        assert!(half.knows("west") && !half.knows("east") && half.found.len() == 1);
    }
}
