//! What to do about a host, given what it has: decided here, done elsewhere.

use std::collections::BTreeSet;

use api::ids::{InstanceId, ServerId};
use sha2::{Digest, Sha256};

use super::layout::{Layout, program_name};
use super::{HostAccess, JoinError, JoinStep};

/// What a host should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The hash of the program.
    pub(super) program: String,
    /// It is not ours, but one that the host has.
    pub(super) is_kept: bool,
    pub(super) instance: InstanceId,
    /// What starts the agent, and its hash.
    pub(super) start_text: String,
    pub(super) start: String,
}

impl Wanted {
    pub(super) fn new(access: &HostAccess, layout: &Layout, sha256: &str) -> Wanted {
        let start_text = layout.start_text(access, sha256);
        // The file ends with a line, like every text.
        let start = hex::encode(Sha256::digest(format!("{start_text}\n")));
        Wanted { program: sha256.to_owned(), is_kept: false, instance: access.instance, start_text, start }
    }

    /// The record of it, once it works.
    pub(super) fn record(&self, seen: &Seen) -> Installed {
        let before = seen.installed.as_ref();
        let is_other = |program: &String| *program != self.program;
        let previous = before.map(|before| before.program.clone()).filter(is_other);
        let previous = previous.or_else(|| before.and_then(|before| before.previous.clone()));
        Installed {
            program: self.program.clone(),
            previous: previous.filter(is_other),
            instance: self.instance,
            start: self.start.clone(),
        }
    }
}

/// The record of what runs on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installed {
    /// The hash of the program.
    pub(super) program: String,
    /// That of the one before, which is kept.
    pub(super) previous: Option<String>,
    pub(super) instance: InstanceId,
    /// The hash of what starts the agent: its arguments and its environment.
    pub(super) start: String,
}

impl Installed {
    pub(super) fn text(&self) -> String {
        let Installed { program, previous, instance, start } = self;
        let previous = previous.as_ref().map(|previous| format!("previous {previous}\n")).unwrap_or_default();
        format!("program {program}\n{previous}instance {instance}\nstart {start}")
    }

    /// Reads the lines; none if they are not all there.
    fn read(lines: &[&str]) -> Option<Installed> {
        let value = |key: &str| {
            lines.iter().filter_map(|line| line.split_once(' ')).find(|(found, _)| *found == key).map(|(_, it)| it)
        };
        let hash = |key: &str| value(key).filter(|hash| is_hash(hash)).map(str::to_owned);
        let instance = value("instance")?.parse().ok()?;
        Some(Installed { program: hash("program")?, previous: hash("previous"), instance, start: hash("start")? })
    }
}

/// The records are root's, but their words become paths.
fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What a host has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) installed: Option<Installed>,
    /// The hash of what starts the agent.
    pub(super) start: Option<String>,
    /// The hash of the file where our program belongs, if there is one.
    pub(super) program: Option<String>,
    /// The programs that are there, by name.
    pub(super) kept: BTreeSet<String>,
    /// Whether the agent seems to run.
    pub(super) is_running: bool,
    /// Other servers whose agents run there.
    pub(super) others: BTreeSet<String>,
    /// Where things lie.
    pub(super) programs: String,
    pub(super) root: String,
}

impl Seen {
    /// Reads what the host says; an error says what is missing.
    pub(super) fn read(said: &str) -> Result<Seen, String> {
        let mut seen = Seen::default();
        let (mut installed, mut is_whole) = (Vec::new(), false);
        for line in said.lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            let text = || value.trim().to_owned();
            match key {
                "programs" => seen.programs = text(),
                "root" => seen.root = text(),
                "installed" => installed.push(value),
                "start" => seen.start = Some(text()),
                "program" => seen.program = Some(text()),
                "kept" => _ = seen.kept.insert(text()),
                "running" => seen.is_running = true,
                "other" => _ = seen.others.insert(text()),
                "end" => is_whole = true,
                _ => return Err(format!("it says `{line}`")),
            }
        }
        if !is_whole || !seen.programs.starts_with('/') || !seen.root.starts_with('/') {
            return Err(format!("it says only `{}`", said.trim().replace('\n', "; ")));
        }
        seen.installed = Installed::read(&installed);
        Ok(seen)
    }

    /// The program that answered last, if it is still there.
    pub(super) fn working_program(&self) -> Option<&str> {
        let installed = self.installed.as_ref()?;
        self.kept.contains(program_name(&installed.program)).then_some(&*installed.program)
    }
}

/// What to do, in this order; greeting the agent comes last in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Plan {
    /// Remove what another instance has left.
    pub(super) clean: bool,
    /// Bring the program.
    pub(super) deliver: bool,
    /// Write everything else, and start the agent, whether it runs or not.
    pub(super) start: bool,
}

impl Plan {
    pub(super) fn make(
        wanted: &Wanted,
        seen: &Seen,
        access: &HostAccess,
        layout: &Layout,
    ) -> Result<Plan, JoinError> {
        if let Some(other) = seen.others.first() {
            return Err(JoinError::last(JoinStep::Check, taken(other, access, layout)));
        }
        let before = seen.installed.as_ref().map(|installed| installed.instance);
        let clean = before.is_some_and(|before| before != wanted.instance);
        if let Some(before) = before.filter(|before| clean && access.others.contains(before)) {
            let message = format!(
                "`{}` is already the instance `{before}` of this server: a host belongs to one fleet, so remove it \
                 from one of them",
                access.target.address()
            );
            return Err(JoinError::last(JoinStep::Check, message));
        }
        let is_there = wanted.is_kept || seen.program.as_ref() == Some(&wanted.program);
        let is_installed = seen.installed.as_ref().is_some_and(|installed| installed.start == wanted.start);
        let is_current = is_installed && seen.start.as_ref() == Some(&wanted.start) && seen.is_running;
        // Cleaning takes programs with it that nobody else needs.
        let deliver = !is_there || clean;
        Ok(Plan { clean, deliver, start: deliver || !is_current })
    }
}

/// How a host is freed whose other server is gone, which only people can know.
fn taken(other: &str, access: &HostAccess, layout: &Layout) -> String {
    let is_server = other.parse::<ServerId>().is_ok();
    let by_hand = if is_server {
        format!("; if that server is gone, run `sudo sh {}/{other}/remove` on the host", layout.root)
    } else {
        String::new()
    };
    format!(
        "`{}` belongs to another dstack server (`{other}`), whose agent runs there: remove the host from its fleets{by_hand}",
        access.target.address()
    )
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::layout::tests::{access, layout};
    use super::*;

    fn wanted() -> Wanted {
        Wanted::new(&access(), &layout(), &"b".repeat(64))
    }

    /// A host that has what is wanted.
    fn current() -> Seen {
        let wanted = wanted();
        Seen {
            installed: Some(wanted.record(&Seen::default())),
            start: Some(wanted.start.clone()),
            program: Some(wanted.program.clone()),
            kept: BTreeSet::from([program_name(&wanted.program).to_owned()]),
            is_running: true,
            programs: "/p".to_owned(),
            root: "/r".to_owned(),
            ..Seen::default()
        }
    }

    fn plan(seen: &Seen) -> Plan {
        Plan::make(&wanted(), seen, &access(), &layout()).unwrap()
    }

    #[test]
    fn only_what_is_missing_is_done() {
        let check = |what: &str, change: &dyn Fn(&mut Seen), (deliver, start): (bool, bool)| {
            let mut seen = current();
            change(&mut seen);
            assert_eq!(plan(&seen), Plan { clean: false, deliver, start }, "{what}");
        };
        check("nothing is missing", &|_| {}, (false, false));
        check("a fresh host", &|seen| *seen = Seen::default(), (true, true));
        check("the agent was killed", &|seen| seen.is_running = false, (false, true));
        check("the program is gone", &|seen| (seen.program, seen.kept) = (None, BTreeSet::new()), (true, true));
        check("the program is damaged", &|seen| seen.program = Some("f".repeat(64)), (true, true));
        check("a host that cannot hash", &|seen| seen.program = Some(String::new()), (true, true));
        check("the start was changed by hand", &|seen| seen.start = Some("0".repeat(64)), (false, true));
        check(
            "an update was cut off",
            &|seen| seen.installed.as_mut().unwrap().start = "0".repeat(64),
            (false, true),
        );
        check("the record is gone", &|seen| seen.installed = None, (false, true));
    }

    #[test]
    fn a_host_keeps_its_program_while_ours_does_not_work_there() {
        let kept = Wanted { is_kept: true, ..wanted() };
        let seen = Seen { program: Some("f".repeat(64)), ..current() };
        assert_eq!(Plan::make(&kept, &seen, &access(), &layout()), Ok(Plan::default()));
    }

    #[test]
    fn what_another_instance_left_is_removed_unless_it_is_wanted() {
        let other = InstanceId::from(Uuid::from_u128(8));
        let mut seen = current();
        seen.installed.as_mut().unwrap().instance = other;
        assert_eq!(plan(&seen), Plan { clean: true, deliver: true, start: true });
        let access = HostAccess { others: BTreeSet::from([other]), ..access() };
        let error = Plan::make(&wanted(), &seen, &access, &layout()).unwrap_err();
        assert!(error.is_final && error.message.contains(&other.to_string()), "{error}");
    }

    #[test]
    fn a_host_of_another_server_is_left_alone() {
        let mut seen = current();
        seen.others.insert(Uuid::from_u128(2).to_string());
        let error = Plan::make(&wanted(), &seen, &access(), &layout()).unwrap_err();
        assert!(error.is_final);
        assert_eq!(
            error.message,
            "`gpu-1:22` belongs to another dstack server (`00000000-0000-0000-0000-000000000002`), whose agent runs \
             there: remove the host from its fleets; if that server is gone, run `sudo sh \
             /var/lib/dstack/00000000-0000-0000-0000-000000000002/remove` on the host"
        );
    }

    #[test]
    fn an_update_remembers_the_program_before() {
        let mut before = current();
        before.installed.as_mut().unwrap().program = "a".repeat(64);
        let updated = wanted().record(&before);
        assert_eq!(updated.previous, Some("a".repeat(64)));
        let repeated = wanted().record(&Seen { installed: Some(updated.clone()), ..Seen::default() });
        assert_eq!(repeated, updated);
    }

    #[test]
    fn what_a_host_says_is_read_back() {
        let installed = Installed { previous: Some("c".repeat(64)), ..current().installed.unwrap() };
        let lines: Vec<String> = installed.text().lines().map(|line| format!("installed {line}\n")).collect();
        let lines = lines.concat();
        let start = "d".repeat(64);
        let said = format!(
            "programs /p\nroot /a b\n{lines}start {start}\nprogram \nkept 0123\nkept 4567\nrunning\nother x\nend\n"
        );
        let expected = Seen {
            installed: Some(installed),
            start: Some(start),
            program: Some(String::new()),
            kept: ["0123", "4567"].map(str::to_owned).into(),
            is_running: true,
            others: BTreeSet::from(["x".to_owned()]),
            programs: "/p".to_owned(),
            root: "/a b".to_owned(),
        };
        assert_eq!(Seen::read(&said), Ok(expected));
        assert!(Seen::read(said.trim_end_matches("end\n")).is_err());
        assert!(Seen::read("programs p\nroot /r\nend\n").is_err());
        let damaged = "programs /p\nroot /r\ninstalled program ../../x\nend\n";
        assert_eq!(Seen::read(damaged).unwrap().installed, None);
    }
}
