//! Polls reconcilers by hand: one at a time, or several at once in an order that the seed gives, and drops them in the
//! middle when the server crashes.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::task::{Context, Poll};

use rand::Rng;
use rand::rngs::StdRng;
use store::points::{Point, set_hook};

/// Something that a server does.
pub(crate) type Work<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// When a server crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fuse {
    /// Not now.
    Never,
    /// After that many steps of any kind.
    Steps(i64),
    /// At its order to somebody else of that number: the cloud, or an agent.
    Orders(i64),
}

/// Whether a server got to the end of what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    Crashed,
}

/// What the points between steps, the pretended cloud and the simulated agents share.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// Steps until the server crashes; negative: it does not.
    steps_left: AtomicI64,
    /// The same, and only orders count.
    orders_left: AtomicI64,
    crashed: AtomicBool,
    /// Several reconcilers take turns.
    takes_turns: AtomicBool,
    /// The one that was polled last has stopped at a point.
    stopped: AtomicBool,
    /// Things go wrong.
    chaos: AtomicBool,
}

impl Control {
    pub(crate) fn has_chaos(&self) -> bool {
        self.chaos.load(SeqCst)
    }

    pub(crate) fn set_chaos(&self, on: bool) {
        self.chaos.store(on, SeqCst);
    }

    /// One more step of the server; true: it crashes here, and what it does from now on has no effect.
    fn burns_down(&self) -> bool {
        let burned_down = count_down(&self.steps_left);
        if burned_down {
            self.crashed.store(true, SeqCst);
        }
        burned_down
    }

    /// One more order of the server to the cloud or an agent; true: it crashes here, and what it does from now on
    /// has no effect.
    pub(crate) fn crashes_at_order(&self) -> bool {
        let burned_down = count_down(&self.steps_left) | count_down(&self.orders_left);
        if burned_down {
            self.crashed.store(true, SeqCst);
        }
        burned_down
    }

    fn set(&self, fuse: Fuse) {
        let (steps, orders) = match fuse {
            Fuse::Never => (-1, -1),
            Fuse::Steps(steps) => (steps, -1),
            Fuse::Orders(orders) => (-1, orders),
        };
        self.steps_left.store(steps, SeqCst);
        self.orders_left.store(orders, SeqCst);
    }

    /// The server is gone, although what was polled last does not know it yet.
    pub(crate) fn has_crashed(&self) -> bool {
        self.crashed.load(SeqCst)
    }

    fn hook(&self, point: Point, again: bool) -> Poll<()> {
        if self.has_crashed() {
            return Poll::Pending;
        }
        if again {
            return Poll::Ready(());
        }
        if self.burns_down() {
            return Poll::Pending;
        }
        if point == Point::Apart && self.takes_turns.load(SeqCst) {
            self.stopped.store(true, SeqCst);
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

/// Counts down to 0; true: it was 0.
fn count_down(left: &AtomicI64) -> bool {
    let before = left.load(SeqCst);
    if before > 0 {
        left.store(before - 1, SeqCst);
    }
    before == 0
}

/// Does all of `works`, taking turns at the points between their steps. When the fuse has burned down the server
/// crashes: everything is dropped where it is.
pub(crate) async fn drive(control: &Arc<Control>, rng: &mut StdRng, works: Vec<Work<'_>>, fuse: Fuse) -> Ending {
    control.set(fuse);
    control.crashed.store(false, SeqCst);
    control.takes_turns.store(works.len() > 1, SeqCst);
    let at_points = control.clone();
    set_hook(Some(Rc::new(move |point, again| at_points.hook(point, again))));
    let mut turns = Turns { control, rng, works, turn: 0 };
    std::future::poll_fn(|cx| turns.poll(cx)).await;
    set_hook(None);
    control.set(Fuse::Never);
    if control.crashed.swap(false, SeqCst) { Ending::Crashed } else { Ending::Done }
}

struct Turns<'a, 'w> {
    control: &'a Control,
    rng: &'a mut StdRng,
    works: Vec<Work<'w>>,
    turn: usize,
}

impl Turns<'_, '_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.works.is_empty() && !self.control.has_crashed() {
            self.control.stopped.store(false, SeqCst);
            match self.works[self.turn].as_mut().poll(cx) {
                Poll::Ready(()) => drop(self.works.remove(self.turn)),
                Poll::Pending if self.control.has_crashed() => break,
                Poll::Pending if self.control.stopped.load(SeqCst) => {}
                // It waits for the database, whose answer wakes it. Nobody else may go on meanwhile, or the order
                // would depend on how fast the database is.
                Poll::Pending => return Poll::Pending,
            }
            if !self.works.is_empty() {
                self.turn = self.rng.random_range(0..self.works.len());
            }
        }
        self.works.clear();
        Poll::Ready(())
    }
}
