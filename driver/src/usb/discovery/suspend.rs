//! Detects a suspend of the machine. Readers may have lost power, and cards may have been exchanged.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::Ordering,
    time::Duration,
};

use rustix::{
    io::Errno,
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec,
        timerfd_create, timerfd_settime,
    },
};

use super::sysfs::{EventSource, UsbBus};
use crate::fork_closed::ForkClosed;

/// Detects suspends: the boot clock advances during a suspend, the monotonic clock does not.
#[derive(Debug)]
pub(crate) struct SuspendDetector {
    bus: UsbBus,
    suspended: Duration,
}

/// Shortest suspend. Reading two clocks takes less.
const MIN_SUSPEND: Duration = Duration::from_millis(500);

impl SuspendDetector {
    /// Detects suspends from now on.
    #[must_use]
    pub(crate) fn new(bus: UsbBus) -> Self {
        let asleep = time_suspended(bus.source());
        Self {
            bus,
            suspended: asleep,
        }
    }

    /// Returns whether the machine was suspended since the last call.
    #[must_use]
    pub(crate) fn was_suspended(&mut self) -> bool {
        let before = std::mem::replace(&mut self.suspended, time_suspended(self.bus.source()));
        self.suspended > before + MIN_SUSPEND
    }
}

/// Total time in suspend.
fn time_suspended(news: &EventSource) -> Duration {
    match news {
        EventSource::System => time(ClockId::Boottime).saturating_sub(time(ClockId::Monotonic)),
        EventSource::Test(events) => Duration::from_millis(events.suspended.load(Ordering::SeqCst)),
    }
}

fn time(clock: ClockId) -> Duration {
    let now = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Becomes readable after a resume: a timer that never expires, and is cancelled when the wall clock jumps
/// (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
#[derive(Debug)]
pub(crate) struct ResumeTimer(ForkClosed<OwnedFd>);

/// The year 2242.
const NEVER: Timespec = Timespec {
    tv_sec: 1 << 33,
    tv_nsec: 0,
};

impl ResumeTimer {
    /// Returns `None` for the bus of a test, and where the kernel has no such timers.
    pub(crate) fn new(bus: &UsbBus) -> Option<Self> {
        if matches!(bus.source(), EventSource::Test(_)) {
            return None;
        }
        let set = Self::set();
        set.inspect_err(|errno| tracing::debug!("usb: suspends cannot be detected ({errno})"))
            .ok()
    }

    fn set() -> Result<Self, Errno> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let alarm = Self(ForkClosed::new(timerfd_create(
            TimerfdClockId::Realtime,
            flags,
        )?));
        alarm.start()?;
        Ok(alarm)
    }

    fn start(&self) -> Result<(), Errno> {
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        let never = Itimerspec {
            it_interval: Timespec::default(),
            it_value: NEVER,
        };
        timerfd_settime(&self.0, flags, &never).map(drop)
    }

    /// Waits for the next jump.
    pub(crate) fn clear(&self) {
        if rustix::io::read(&self.0, &mut [0_u8; 8]) != Err(Errno::AGAIN) {
            let _ = self.start();
        }
    }
}

impl AsFd for ResumeTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags};

    use super::*;

    #[test]
    fn resume_timer_stays_silent_while_the_machine_is_awake() {
        let alarm = ResumeTimer::new(&UsbBus::system()).unwrap();
        for _ in 0..2 {
            let mut polled = [PollFd::new(&alarm, PollFlags::IN)];
            let ready = rustix::event::poll(&mut polled, Some(&Timespec::default()));
            assert_eq!(ready, Ok(0));
            alarm.clear();
        }
    }

    #[test]
    fn suspend_detector_reports_nothing_while_the_machine_is_awake() {
        let mut slept = SuspendDetector::new(UsbBus::system());
        assert!(!slept.was_suspended() && !slept.was_suspended());
    }
}
