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

#[cfg(feature = "points")]
pub use hook::{Hook, reach, set_hook};

/// Goes on.
#[cfg(not(feature = "points"))]
pub(crate) async fn reach(_point: Point) {}
