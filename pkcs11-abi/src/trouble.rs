//! What is said of readers that cannot be shown: once each, in one line.

use claviger_apdu::TransportErrorKind;
use claviger_driver::ReaderSnapshot;

/// What a backend is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// pcscd, which has the readers on the USB while it is there.
    Pcscd,
    /// The USB, where pcscd's readers are reached without it.
    Usb,
    /// It has readers of its own.
    Own,
}

/// What was said last of each backend, and what is known of pcscd.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    told: Vec<(usize, Option<String>)>,
    /// Why pcscd is not there.
    absent: Option<String>,
}

impl Troubles {
    /// What is to be said of a backend after its new picture, if it is not what was said last. That pcscd is absent is
    /// said only where readers are not reached without it either.
    pub(crate) fn hear(
        &mut self,
        backend: usize,
        role: Role,
        snapshot: &ReaderSnapshot,
    ) -> Option<String> {
        let trouble = snapshot.error.as_ref();
        let what = trouble.map(ToString::to_string);
        let line = match role {
            Role::Own => what,
            Role::Pcscd => {
                let is_absent = |kind| kind == TransportErrorKind::NoService;
                let absent = trouble.is_some_and(|trouble| is_absent(trouble.kind));
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
        match self.told.iter_mut().find(|(of, _)| *of == backend) {
            Some((_, told)) => std::mem::replace(told, line.clone()) != *line,
            None => {
                self.told.push((backend, line.clone()));
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

    fn picture(readers: usize, trouble: Option<(TransportErrorKind, &str)>) -> ReaderSnapshot {
        let state = |number: usize| ReaderState {
            id: ReaderId::new("usb", &number.to_string()),
            name: number.to_string(),
            presence: Presence::Empty,
            change_count: 0,
            stable_name: String::new(),
        };
        ReaderSnapshot {
            readers: (0..readers).map(state).collect(),
            error: trouble.map(|(kind, what)| TransportError::before_card(kind, what)),
            service_instance: Some(0),
        }
    }

    const ABSENT: Option<(TransportErrorKind, &str)> =
        Some((TransportErrorKind::NoService, "pcscd does not run"));

    fn of_usb(pcscd: &ReaderSnapshot, usb: &ReaderSnapshot) -> Option<String> {
        let mut troubles = Troubles::default();
        troubles.hear(0, Role::Pcscd, pcscd);
        troubles.hear(1, Role::Usb, usb)
    }

    #[test]
    fn unchanged_error_is_reported_once() {
        let mut troubles = Troubles::default();
        let denied = picture(0, Some((TransportErrorKind::Denied, "polkit")));
        assert!(troubles.hear(0, Role::Own, &denied).is_some());
        assert_eq!(troubles.hear(0, Role::Own, &denied), None);
        assert_eq!(troubles.hear(0, Role::Own, &picture(0, None)), None);
        assert!(troubles.hear(0, Role::Own, &denied).is_some());
    }

    #[test]
    fn absent_pcscd_is_not_reported_when_its_readers_are_reached_over_usb() {
        let mut troubles = Troubles::default();
        let absent = picture(0, ABSENT);
        assert_eq!(troubles.hear(0, Role::Pcscd, &absent), None);
        assert_eq!(of_usb(&absent, &picture(1, None)), None);
        assert!(troubles.hear(0, Role::Own, &absent).is_some());
    }

    #[test]
    fn missing_readers_are_reported_in_one_line_with_both_reasons() {
        let denied = Some((TransportErrorKind::Denied, "the udev rule is missing"));
        let line = of_usb(&picture(0, ABSENT), &picture(0, denied)).unwrap();
        assert!(line.contains("the udev rule is missing") && line.contains("pcscd does not run"));
        assert_eq!(line.lines().count(), 1);
        let line = of_usb(&picture(0, ABSENT), &picture(0, None)).unwrap();
        assert!(line.contains("none is on the USB") && line.contains("pcscd does not run"));
        assert_eq!(
            of_usb(&picture(0, None), &picture(0, None)),
            None,
            "pcscd is there"
        );
    }

    #[test]
    fn refusal_by_pcscd_is_reported_at_once() {
        let mut troubles = Troubles::default();
        let denied = picture(0, Some((TransportErrorKind::Denied, "polkit")));
        let line = troubles.hear(0, Role::Pcscd, &denied).unwrap();
        assert!(line.contains("polkit"));
    }
}
