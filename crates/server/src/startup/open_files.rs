//! How many files the server may have open: connections to agents and clients, logs, the database.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// With fewer, a thousand machines and their clients are too many.
const ENOUGH: u64 = 8192;

/// Raises the limit as far as this process may, and says so if that is little.
pub(super) fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
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
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 256, hard).unwrap();
        raise_limit();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
