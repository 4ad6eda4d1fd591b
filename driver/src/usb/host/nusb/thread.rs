//! nusb's thread. nusb starts it with its first device, and panics if it cannot. nusb keeps its epoll descriptor then, and a
//! device opened later would wait for a thread that does not exist.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
    thread,
};

/// Whether nusb can be used in this process.
#[derive(Debug)]
pub(super) struct EventThread(Mutex<State>);

#[derive(Clone, Copy, Debug)]
enum State {
    Unknown,
    Running,
    /// nusb is not used in this process any more.
    Disabled,
}

impl EventThread {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(State::Unknown))
    }

    /// Runs `open`, in which nusb starts its thread if there is none yet. Returns `None` if that failed, now or earlier.
    /// Until the thread runs, one caller opens at a time.
    pub(super) fn with<T, E>(
        &self,
        can_start: impl FnOnce() -> bool,
        open: impl FnOnce() -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Disabled => return None,
            State::Running => {
                drop(state);
                let opened = catch_panic(open);
                if opened.is_none() {
                    *self.0.lock().unwrap_or_else(PoisonError::into_inner) = disabled();
                }
                return opened;
            }
            State::Unknown => {}
        }
        let opened = if can_start() { catch_panic(open) } else { None };
        *state = match &opened {
            Some(Ok(_)) => State::Running,
            // Perhaps before there was a need for the thread.
            Some(Err(_)) => State::Unknown,
            None => disabled(),
        };
        opened
    }
}

fn catch_panic<T>(open: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(open)).ok()
}

fn disabled() -> State {
    tracing::warn!("usb: nusb's thread cannot be started; libusb is used instead");
    State::Disabled
}

/// Returns whether this process may start a thread now.
pub(super) fn can_start() -> bool {
    let probe = thread::Builder::new().name("claviger-probe".to_owned());
    probe.spawn(|| ()).is_ok_and(|probe| probe.join().is_ok())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn b15_nusb_opens_nothing_where_no_thread_can_start_and_is_not_tried_again() {
        let events = EventThread::new();
        let opened = Cell::new(false);
        let open = || Ok::<_, ()>(opened.replace(true));
        assert!(events.with(|| false, open).is_none());
        assert!(events.with(|| panic!("not to be asked"), open).is_none());
        assert!(!opened.get());
    }

    #[test]
    fn b15_panic_in_the_first_open_is_caught_and_nusb_is_not_tried_again() {
        let events = EventThread::new();
        let panics = || -> Result<(), ()> { panic!("no thread") };
        assert!(events.with(|| true, panics).is_none());
        assert!(events.with(|| true, || Ok::<_, ()>(())).is_none());
    }

    #[test]
    fn thread_check_is_skipped_once_a_device_was_opened() {
        let events = EventThread::new();
        assert_eq!(events.with(|| true, || Err::<(), _>(1)), Some(Err(1)));
        assert_eq!(events.with(|| true, || Ok::<_, ()>(2)), Some(Ok(2)));
        let asked = || panic!("it runs");
        assert_eq!(events.with(asked, || Err::<(), _>(3)), Some(Err(3)));
        assert_eq!(events.with(asked, || Ok::<_, ()>(4)), Some(Ok(4)));
    }

    #[test]
    fn a_thread_can_be_started_here() {
        assert!(can_start());
    }
}
