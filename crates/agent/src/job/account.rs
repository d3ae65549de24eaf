//! Whom a job runs as, read from the text of `/etc/passwd` and `/etc/group`: a static program must not ask
//! the C library, which would load code of the image.

use crate::sys::Credentials;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    /// The user's name, or its number where it has none.
    pub(crate) name: String,
    /// Who that is to the kernel.
    pub(crate) credentials: Credentials,
    /// The home directory, if the user has one.
    pub(crate) home: Option<String>,
    /// The shell of the user's logins, if the database names one.
    pub(crate) shell: Option<String>,
}

/// The texts of the user database.
#[derive(Debug, Clone, Default)]
pub(crate) struct Database {
    /// `/etc/passwd`.
    pub(crate) passwd: String,
    /// `/etc/group`.
    pub(crate) group: String,
}

impl Database {
    /// The database of this file system; missing files are empty ones.
    pub(crate) fn read() -> Database {
        Database {
            passwd: std::fs::read_to_string("/etc/passwd").unwrap_or_default(),
            group: std::fs::read_to_string("/etc/group").unwrap_or_default(),
        }
    }

    /// The user with this number, who may be unknown to the database.
    pub(crate) fn by_uid(&self, uid: u32, gid: u32) -> Account {
        match self.users().find(|user| user.uid == uid) {
            Some(user) => self.account(&user),
            None => Account {
                name: uid.to_string(),
                credentials: Credentials { uid, gid, groups: vec![gid] },
                home: None,
                shell: None,
            },
        }
    }

    /// The user that `uid[:gid]` or `name[:group]` names. With a group, only that group is used.
    pub(crate) fn resolve(&self, text: &str) -> Result<Account, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let by_name = self.users().find(|entry| entry.name == user);
        let mut account = match (by_name, user.parse::<u32>()) {
            (Some(entry), _) => self.account(&entry),
            (None, Ok(uid)) => self.by_uid(uid, 0),
            (None, Err(_)) => return Err(format!("user `{user}` is not in /etc/passwd")),
        };
        if let Some(group) = group.filter(|group| !group.is_empty()) {
            let by_name = self.groups().find(|(name, ..)| *name == group).map(|(_, gid, _)| gid);
            let gid = by_name
                .or_else(|| group.parse().ok())
                .ok_or_else(|| format!("group `{group}` is not in /etc/group"))?;
            account.credentials.gid = gid;
            account.credentials.groups = vec![gid];
        }
        Ok(account)
    }

    fn account(&self, user: &PasswdEntry<'_>) -> Account {
        let mut groups = vec![user.gid];
        groups.extend(
            self.groups()
                .filter(|(_, gid, members)| {
                    *gid != user.gid && members.split(',').any(|member| member == user.name)
                })
                .map(|(_, gid, _)| gid),
        );
        let home = user.home.starts_with('/') && user.home != "/nonexistent";
        Account {
            name: user.name.to_owned(),
            credentials: Credentials { uid: user.uid, gid: user.gid, groups },
            home: home.then(|| user.home.to_owned()),
            shell: Some(user.shell.to_owned()).filter(|shell| shell.starts_with('/')),
        }
    }

    fn users(&self) -> impl Iterator<Item = PasswdEntry<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            let home = fields.nth(1).unwrap_or("");
            let shell = fields.next().unwrap_or("").trim();
            Some(PasswdEntry { name, uid, gid, home, shell })
        })
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or("")))
        })
    }
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Database {
        Database {
            passwd: "root:x:0:0:root:/root:/bin/bash\n\
                     nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
                     ann:x:1000:1000:Ann,,,:/home/ann:/bin/sh\n\
                     broken line\n"
                .to_owned(),
            group: "root:x:0:\nann:x:1000:\nvideo:x:44:ann,bob\nrender:x:107:bob\n".to_owned(),
        }
    }

    fn check(text: &str, uid: u32, gid: u32, groups: &[u32], home: Option<&str>) {
        let account = database().resolve(text).unwrap();
        let expected = Credentials { uid, gid, groups: groups.to_vec() };
        assert_eq!((account.credentials, account.home.as_deref()), (expected, home), "{text}");
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        check("ann", 1000, 1000, &[1000, 44], Some("/home/ann"));
        check("1000", 1000, 1000, &[1000, 44], Some("/home/ann"));
        check("ann:video", 1000, 44, &[44], Some("/home/ann"));
        check("1000:7", 1000, 7, &[7], Some("/home/ann"));
        check("4711", 4711, 0, &[0], None);
        check("4711:4712", 4711, 4712, &[4712], None);
        check("nobody", 65534, 65534, &[65534], None);
    }

    #[test]
    fn a_shell_is_known_only_where_the_database_names_one() {
        let shell = |user: &str| database().resolve(user).unwrap().shell;
        assert_eq!(shell("ann").as_deref(), Some("/bin/sh"));
        assert_eq!(shell("4711"), None);
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(database().resolve("bob").is_err());
        assert!(database().resolve("ann:staff").is_err());
    }
}
