//! A lock-free stack that many push to and one empties: the order of links and head.
//!
//! Items are linked through themselves, by the owner: `link(item, next)` is called before the item
//! can be seen. Taking is all or nothing, so no item can come back while somebody still looks at it
//! (the ABA problem).
use core::{marker::PhantomData, sync::atomic::Ordering};

use crate::atomic::AtomicCell;

/// A stack of `V`s, of which one value means none.
pub struct MailStack<V, A> {
    head: A,
    items: PhantomData<fn(V) -> V>,
}

impl<V: Copy + PartialEq, A: AtomicCell<V>> MailStack<V, A> {
    /// `head` is to be the value for none.
    pub const fn new(head: A) -> Self {
        Self { head, items: PhantomData }
    }

    /// Pushes an item, and gives what was on top. Sequentially consistent with [`MailStack::top`], for
    /// protocols that decide by it whether the receiver has to be told ([`crate::idle_poll`]).
    #[inline]
    pub fn push(&self, item: V, link: impl Fn(V, V)) -> V {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            link(item, head);
            match self.head.compare_exchange(head, item, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return head,
                Err(now) => head = now,
            }
        }
    }

    /// The item on top.
    #[inline]
    pub fn top(&self) -> V {
        self.head.load(Ordering::SeqCst)
    }

    /// Takes the whole chain, newest first.
    #[inline]
    pub fn take_all(&self, none: V) -> V {
        self.head.swap(none, Ordering::Acquire)
    }
}
