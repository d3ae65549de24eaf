//! How many files the server may have open: connections to agents and clients, logs, the database.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// With fewer, a thousand machines and their clients are too many.
const ENOUGH: u64 = 8192;

/// More would help nobody. Programs that the server starts have the same limit, and some of them go through every
/// number below it.
const MOST: u64 = 65_536;

/// Raises the limit as far as this process may and the server needs, and says so if that is little.
pub(super) fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let raised = hard.min(MOST).max(soft);
        if soft < raised {
            setrlimit(Resource::RLIMIT_NOFILE, raised, hard)?;
        }
        Ok(raised)
    });
    match raised {
        Ok(limit) if limit < ENOUGH => tracing::warn!(
            "the server may have only {limit} files open. Raise the limit with `ulimit -Hn`, or `LimitNOFILE` of its unit"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!("cannot raise the limit of open files: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one_but_not_beyond_what_helps() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 256, hard).unwrap();
        raise_limit();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard.min(MOST), hard));
        if MOST < hard {
            setrlimit(Resource::RLIMIT_NOFILE, MOST + 1, hard).unwrap();
            raise_limit();
            assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (MOST + 1, hard), "nothing is taken away");
        }
    }
}
