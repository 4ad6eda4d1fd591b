//! Reports why readers are missing: each reason is one log line, once.

use claviger_apdu::TransportErrorKind;
use claviger_driver::ReaderSnapshot;

/// The relation of a backend to the other backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// While pcscd runs, it has the readers on the USB.
    Pcscd,
    /// While pcscd does not run, the `usb` backend has the readers on the USB.
    Usb,
    /// The backend has readers of its own.
    Own,
}

/// The last report of each backend, and the absence of pcscd.
#[derive(Debug, Default)]
pub(crate) struct ErrorReports {
    reported: Vec<(usize, Option<String>)>,
    /// The reason why pcscd is absent, while it is.
    absent: Option<String>,
}

impl ErrorReports {
    /// Returns the log line for a new snapshot of a backend, unless the line was reported last. The absence of pcscd is
    /// reported only if the USB has no reader either.
    pub(crate) fn next_report(
        &mut self,
        backend: usize,
        role: Role,
        snapshot: &ReaderSnapshot,
    ) -> Option<String> {
        let error = snapshot.error.as_ref();
        let what = error.map(ToString::to_string);
        let line = match role {
            Role::Own => what,
            Role::Pcscd => {
                let is_absent = |kind| kind == TransportErrorKind::NoService;
                let absent = error.is_some_and(|error| is_absent(error.kind));
                self.absent = what.clone().filter(|_| absent);
                what.filter(|_| !absent)
            }
            Role::Usb => match (&self.absent, what) {
                (Some(absent), what) if snapshot.readers.is_empty() => {
                    let usb = what.unwrap_or_else(|| "none is on the USB".to_owned());
                    Some(format!("no reader: {usb}; {absent}"))
                }
                (_, what) => what,
            },
        };
        self.is_new(backend, &line).then_some(line)?
    }

    fn is_new(&mut self, backend: usize, line: &Option<String>) -> bool {
        match self.reported.iter_mut().find(|(of, _)| *of == backend) {
            Some((_, reported)) => std::mem::replace(reported, line.clone()) != *line,
            None => {
                self.reported.push((backend, line.clone()));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use claviger_apdu::TransportError;
    use claviger_driver::{Presence, ReaderId, ReaderState};

    use super::*;

    fn snapshot(readers: usize, error: Option<(TransportErrorKind, &str)>) -> ReaderSnapshot {
        let state = |number: usize| ReaderState {
            id: ReaderId::new("usb", &number.to_string()),
            name: number.to_string(),
            presence: Presence::Empty,
            change_count: 0,
            stable_name: String::new(),
        };
        ReaderSnapshot {
            readers: (0..readers).map(state).collect(),
            error: error.map(|(kind, what)| TransportError::before_card(kind, what)),
            service_instance: Some(0),
        }
    }

    const ABSENT: Option<(TransportErrorKind, &str)> =
        Some((TransportErrorKind::NoService, "pcscd does not run"));

    fn of_usb(pcscd: &ReaderSnapshot, usb: &ReaderSnapshot) -> Option<String> {
        let mut reports = ErrorReports::default();
        reports.next_report(0, Role::Pcscd, pcscd);
        reports.next_report(1, Role::Usb, usb)
    }

    #[test]
    fn unchanged_error_is_reported_once() {
        let mut reports = ErrorReports::default();
        let denied = snapshot(0, Some((TransportErrorKind::Denied, "polkit")));
        assert!(reports.next_report(0, Role::Own, &denied).is_some());
        assert_eq!(reports.next_report(0, Role::Own, &denied), None);
        assert_eq!(reports.next_report(0, Role::Own, &snapshot(0, None)), None);
        assert!(reports.next_report(0, Role::Own, &denied).is_some());
    }

    #[test]
    fn absent_pcscd_is_not_reported_when_its_readers_are_reached_over_usb() {
        let mut reports = ErrorReports::default();
        let absent = snapshot(0, ABSENT);
        assert_eq!(reports.next_report(0, Role::Pcscd, &absent), None);
        assert_eq!(of_usb(&absent, &snapshot(1, None)), None);
        assert!(reports.next_report(0, Role::Own, &absent).is_some());
    }

    #[test]
    fn missing_readers_are_reported_in_one_line_with_both_reasons() {
        let denied = Some((TransportErrorKind::Denied, "the udev rule is missing"));
        let line = of_usb(&snapshot(0, ABSENT), &snapshot(0, denied)).unwrap();
        assert!(line.contains("the udev rule is missing") && line.contains("pcscd does not run"));
        assert_eq!(line.lines().count(), 1);
        let line = of_usb(&snapshot(0, ABSENT), &snapshot(0, None)).unwrap();
        assert!(line.contains("none is on the USB") && line.contains("pcscd does not run"));
        assert_eq!(
            of_usb(&snapshot(0, None), &snapshot(0, None)),
            None,
            "pcscd is there"
        );
    }

    #[test]
    fn refusal_by_pcscd_is_reported_at_once() {
        let mut reports = ErrorReports::default();
        let denied = snapshot(0, Some((TransportErrorKind::Denied, "polkit")));
        let line = reports.next_report(0, Role::Pcscd, &denied).unwrap();
        assert!(line.contains("polkit"));
    }
}
