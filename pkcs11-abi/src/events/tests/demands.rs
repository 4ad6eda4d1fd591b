//! Watches that monitor cards only while a caller waits for events.

use super::*;

/// A demand whose refresh lasts until it is stopped.
#[derive(Debug, Default)]
struct Unanswered {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Demand for Unanswered {
    fn add_waiter(&self) {}

    fn remove_waiter(&self) {}

    fn refresh(&self, _until: Instant) {
        let stopped = self.stopped.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(stopped, STEP_TIMEOUT, |stopped| !*stopped);
        assert!(
            !waited.unwrap().1.timed_out(),
            "the refresh was not stopped"
        );
    }

    fn stop(&self) {
        *self.stopped.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// A backend with such a demand.
#[derive(Debug)]
struct OnDemand(Arc<FakeBackend>);

impl Backend for OnDemand {
    fn name(&self) -> &'static str {
        "usb"
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(DemandingWatch(self.0.watch(), Arc::default()))
    }

    fn connect(&self, reader: &ReaderId, call: Call) -> Result<Box<dyn Transport>, TransportError> {
        self.0.connect(reader, call)
    }

    fn abort_calls(&self) {}

    fn begin_shutdown(&self) {}
}

struct DemandingWatch(Box<dyn Watch>, Arc<Unanswered>);

impl Watch for DemandingWatch {
    fn snapshot(&mut self, call: Call) -> ReaderSnapshot {
        self.0.snapshot(call)
    }

    fn next_snapshot(&mut self) -> Result<ReaderSnapshot, Stopped> {
        self.0.next_snapshot()
    }

    fn stop_handle(&self) -> Arc<dyn StopHandle> {
        self.0.stop_handle()
    }

    fn demand(&self) -> Option<Arc<dyn Demand>> {
        Some(Arc::clone(&self.1) as Arc<dyn Demand>)
    }
}

/// Returns slot events with threads and such a backend.
fn on_demand() -> SlotEvents {
    let backend = FakeBackend::new("usb", with(0, &["A"]));
    events(&[Arc::new(OnDemand(backend))], true, None)
}

#[test]
fn refresh_after_c_finalize_does_not_wait_for_a_watch_that_never_ran() {
    let events = on_demand();
    events.stop();
    events.refresh();
    assert!(events.wait(true).is_err());
}

#[test]
fn c_finalize_ends_a_call_that_waits_for_a_query_of_the_cards() {
    let events = on_demand();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| events.wait(true));
        wait_until(|| slots(&events) > 0);
        events.stop();
        assert!(waiter.join().unwrap().is_err());
    });
}
