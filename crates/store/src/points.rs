//! The moments between a reconciler and the database at which a simulation may stop it or let another one go first.
//! Only there is something to see: in every other build a point is nothing.

/// Where a reconciler is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// It is about to run a statement by itself, or to begin a transaction.
    Apart,
    /// It is about to run a statement of an open transaction, or to commit it.
    Within,
}

#[cfg(feature = "points")]
mod hook {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::task::Poll;

    use super::Point;

    /// Says whether a reconciler goes on. It is asked again when the reconciler is polled again; `again` tells.
    pub type Hook = Rc<dyn Fn(Point, bool) -> Poll<()>>;

    thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    /// Asks `hook` at every point of this thread; without one, nothing stops anybody.
    pub fn set_hook(hook: Option<Hook>) {
        HOOK.set(hook);
    }

    /// Goes on when the hook says so.
    pub async fn reach(point: Point) {
        super::crash::count_down();
        let mut again = false;
        std::future::poll_fn(move |_| {
            let hook = HOOK.with_borrow(Clone::clone);
            let answer = hook.map_or(Poll::Ready(()), |hook| hook(point, again));
            again = true;
            answer
        })
        .await;
    }
}

/// Lets a test end a real server between two statements, as a power cut would.
#[cfg(feature = "points")]
mod crash {
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::{env, fs, process};

    /// A file that says at how many points from now the process ends.
    static ORDER: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| env::var_os("DSTACK_TEST_CRASH_ORDER").map(PathBuf::from));

    /// At how many points the process ends; 0 where nobody has ordered it.
    static LEFT: AtomicU64 = AtomicU64::new(0);

    pub(super) fn count_down() {
        let Some(order) = &*ORDER else { return };
        match LEFT.load(Ordering::Relaxed) {
            0 => {
                let number = fs::read_to_string(order).ok().and_then(|text| text.trim().parse().ok());
                // The file is gone when the order is taken.
                if let Some(number) = number.filter(|_| fs::remove_file(order).is_ok()) {
                    LEFT.store(number, Ordering::Relaxed);
                }
            }
            _ => {
                if LEFT.fetch_sub(1, Ordering::Relaxed) == 1 {
                    process::abort();
                }
            }
        }
    }
}

#[cfg(feature = "points")]
pub use hook::{Hook, reach, set_hook};

/// Goes on.
#[cfg(not(feature = "points"))]
pub(crate) async fn reach(_point: Point) {}
