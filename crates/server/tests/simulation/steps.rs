//! The scheduler: what happens next is a matter of chance, and chance is the seed.

use std::time::Duration;

use api::instances::InstanceStatus;
use jiff::SignedDuration;
use lifecycle::run::StopRequest;
use rand::Rng;
use rand::seq::IndexedRandom;
use server::reconcile::TABLES;
use store::leases::Table;

use crate::agents::News;
use crate::checks::next_due;
use crate::drive::{Ending, Fuse};
use crate::world::{Chore, Verdict, World};

/// Steps of the part in which things go wrong.
const STEPS: u32 = 180;

/// How long before it takes a machine back a cloud says so.
const NOTICE_SECS: i64 = 120;

impl World {
    /// Everything goes wrong that can.
    pub(crate) async fn live(&mut self) -> Verdict {
        self.outside.control.set_chaos(true);
        for _ in 0..3 {
            self.submit_run().await;
        }
        for _ in 0..STEPS {
            self.step().await;
            self.check().await?;
        }
        self.outside.control.set_chaos(false);
        Ok(())
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..22 => self.some_pass().await,
            22..36 => self.two_at_once().await,
            36..41 => self.place().await,
            41..43 => self.sweep().await,
            43..67 => self.wait_a_little().await,
            67..79 => self.hear_everybody().await,
            79..89 => self.settle_down().await,
            89..94 => self.use_it().await,
            94 => self.use_a_spare_at_the_last_moment().await,
            95..98 => self.break_an_agent().await,
            98 => self.lose_a_machine(),
            _ => {
                self.say("the server is killed");
                self.restart().await;
            }
        }
    }

    /// Now and then the server crashes in the middle.
    fn some_fuse(&mut self) -> Fuse {
        match self.rng.random_range(0..1000) {
            0..30 => Fuse::Steps(self.rng.random_range(1..40)),
            30..80 => Fuse::Orders(self.rng.random_range(0..3)),
            _ => Fuse::Never,
        }
    }

    /// Like [`World::some_fuse`], and never while nothing goes wrong.
    fn chaos_fuse(&mut self) -> Fuse {
        if self.outside.control.has_chaos() { self.some_fuse() } else { Fuse::Never }
    }

    /// The tables of which something is due.
    async fn due_tables(&self) -> Vec<Table> {
        let due = next_due(&self.server.deps.db, self.now()).await;
        let due = TABLES.into_iter().zip(due).filter(|(_, due)| due.is_some_and(|due| due <= self.now()));
        due.map(|(table, _)| table).collect()
    }

    async fn some_pass(&mut self) {
        let due = self.due_tables().await;
        let Some(table) = due.choose(&mut self.rng).copied() else { return self.wait_a_little().await };
        let fuse = self.some_fuse();
        self.pass_over(table, fuse).await;
    }

    async fn pass_over(&mut self, table: Table, fuse: Fuse) {
        self.say(format_args!("pass over {table:?}{}", shown_fuse(fuse)));
        let ending = self.serve(fuse, &[Chore::Pass(table)]).await;
        self.note_crash(ending);
    }

    /// Two things at the same time, of which one is a reconciler.
    async fn two_at_once(&mut self) {
        let due = self.due_tables().await;
        let Some(table) = due.choose(&mut self.rng).copied() else { return self.wait_a_little().await };
        let other = due.choose(&mut self.rng).copied().unwrap_or(table);
        let first = Chore::Pass(table);
        let second = self.some_chore(table, other);
        let fuse = self.some_fuse();
        self.say(format_args!("{first:?} and {} at once{}", self.shown(second), shown_fuse(fuse)));
        let ending = self.serve(fuse, &[first, second]).await;
        self.trace_chore(second);
        self.note_crash(ending);
    }

    /// A run is submitted when the fleet is about to end the machine that would serve it.
    async fn use_a_spare_at_the_last_moment(&mut self) {
        let ends = self.known.rows.instances.iter().filter_map(|instance| {
            let idle_since = instance.state.idle_since.filter(|_| instance.status == InstanceStatus::Idle)?;
            Some(idle_since + SignedDuration::from_secs(instance.state.idle_duration_secs?))
        });
        let Some(ends_at) = ends.min() else { return };
        let wait = Duration::try_from(ends_at.duration_since(self.now())).unwrap_or(Duration::ZERO);
        self.pass_time(wait.min(Duration::from_secs(90))).await;
        self.hear_everybody().await;
        self.submit_run().await;
        self.say("the fleets and the placement at once");
        self.serve(Fuse::Never, &[Chore::Pass(Table::Fleets), Chore::Place]).await;
        self.outside.trace.mark("a spare is used at the last moment");
    }

    fn some_chore(&mut self, table: Table, other: Table) -> Chore {
        let rng = &mut self.rng;
        let run = self.runs.choose(rng).copied();
        let fleet = self.fleets.choose(rng).copied();
        match (rng.random_range(0..100), run, fleet) {
            (0..25, _, _) => Chore::TakeOver(table),
            (25..32, Some(run), _) => Chore::Stop(run, StopRequest::Stop),
            (32..36, Some(run), _) => Chore::Stop(run, StopRequest::Abort),
            (36..37, _, Some(fleet)) => Chore::Delete(fleet),
            (37..75, _, _) => Chore::Place,
            _ => Chore::Pass(other),
        }
    }

    fn trace_chore(&self, chore: Chore) {
        self.outside.trace.mark(match chore {
            Chore::TakeOver(_) => "two owners of one row",
            Chore::Stop(_, _) | Chore::Delete(_) => "a request meanwhile",
            Chore::Pass(_) | Chore::Place | Chore::Sweep => "two at once",
        });
    }

    fn shown(&self, chore: Chore) -> String {
        let number = |run| self.runs.iter().position(|known| *known == run).unwrap_or_default();
        let fleet_number = |fleet| self.fleets.iter().position(|known| *known == fleet).unwrap_or_default();
        match chore {
            Chore::Stop(run, stop) => format!("{stop:?} run{}", number(run)),
            Chore::Delete(fleet) => format!("Delete fleet{}", fleet_number(fleet)),
            Chore::Pass(_) | Chore::TakeOver(_) | Chore::Place | Chore::Sweep => format!("{chore:?}"),
        }
    }

    pub(crate) async fn place(&mut self) {
        let fuse = self.chaos_fuse();
        self.say(format_args!("placement{}", shown_fuse(fuse)));
        let ending = self.serve(fuse, &[Chore::Place]).await;
        self.note_crash(ending);
    }

    pub(crate) async fn sweep(&mut self) {
        let fuse = self.chaos_fuse();
        self.say(format_args!("sweep{}", shown_fuse(fuse)));
        let ending = self.serve(fuse, &[Chore::Sweep]).await;
        self.note_crash(ending);
    }

    fn note_crash(&self, ending: Ending) {
        if ending == Ending::Crashed {
            self.outside.trace.mark("crash between two steps");
        }
    }

    async fn wait_a_little(&mut self) {
        let millis = match self.rng.random_range(0..10) {
            0..6 => self.rng.random_range(1..3_000),
            6..9 => self.rng.random_range(1_000..15_000),
            _ => self.rng.random_range(15_000..90_000),
        };
        self.pass_time(Duration::from_millis(millis)).await;
    }

    /// Agents come, and tell what is new.
    pub(crate) async fn hear_everybody(&mut self) {
        let mut news = News::default();
        self.server.agents.connect(&mut news);
        for (instance, _, _) in self.connections() {
            let whole = !self.outside.control.has_chaos() || self.rng.random_bool(0.8);
            let heard = !self.outside.control.has_chaos() || self.rng.random_bool(0.8);
            if heard {
                self.server.agents.hear(instance, &self.server.deps.logs, whole, &mut news);
            }
        }
        self.take_news(news).await;
    }

    /// Everything that is due is done, as by a server that works.
    pub(crate) async fn settle_down(&mut self) {
        self.hear_everybody().await;
        for _ in 0..8 {
            let due = self.due_tables().await;
            if due.is_empty() {
                break;
            }
            for table in due {
                let fuse = self.chaos_fuse();
                self.pass_over(table, fuse).await;
            }
            self.hear_everybody().await;
            self.place().await;
        }
    }

    async fn break_an_agent(&mut self) {
        let Some((instance, machine, _)) = self.connections().choose(&mut self.rng).cloned() else { return };
        let mut news = News::default();
        match self.rng.random_range(0..10) {
            0..5 => {
                self.outside.trace.mark("agent: connection broken");
                self.server.agents.disconnect(instance, &mut news);
            }
            5..9 => {
                let long = self.rng.random_bool(0.25);
                let secs = self.rng.random_range(if long { 250..600 } else { 1..60 });
                let until = self.now() + SignedDuration::from_secs(secs);
                self.say(format_args!("an agent is away for {secs} s"));
                self.outside.trace.mark(if long { "agent: away for long" } else { "agent: away for a while" });
                self.outside.hosts.lock().unwrap().go_offline(&machine, until);
                self.server.agents.disconnect(instance, &mut news);
            }
            _ => {
                let seen = self.seen_tasks().await;
                let known = |job| seen.get(&job).copied().unwrap_or(false);
                let lost = self.outside.hosts.lock().unwrap().wipe(&machine, known);
                self.say(format_args!("an agent forgets {lost} tasks"));
                self.outside.trace.mark(if lost > 0 {
                    "agent: forgets its tasks"
                } else {
                    "agent: forgets nothing"
                });
                self.server.agents.disconnect(instance, &mut news);
            }
        }
        self.take_news(news).await;
    }

    fn lose_a_machine(&mut self) {
        let living: Vec<_> = self.outside.cloud.ledger().living().map(|machine| machine.key.clone()).collect();
        let Some(machine) = living.choose(&mut self.rng) else { return };
        if self.rng.random_bool(0.5) {
            let at = self.now() + SignedDuration::from_secs(NOTICE_SECS);
            self.outside.hosts.lock().unwrap().take_back(machine, at);
            self.say(format_args!("machine {} of a launch is to be taken back", machine.index));
            self.outside.trace.mark("machine taken back after a notice");
            return;
        }
        self.outside.cloud.vanish(machine, "taken back");
        self.outside.hosts.lock().unwrap().vanish(machine);
        self.say(format_args!("machine {} of a launch vanishes", machine.index));
        self.outside.trace.mark("machine vanishes");
    }
}

fn shown_fuse(fuse: Fuse) -> String {
    if fuse == Fuse::Never { String::new() } else { format!(", crash after {fuse:?}") }
}
