//! T=1 by transcripts. `t1-scenarios.txt` describes their format.

use claviger_driver::protocol::{
    Failure, Step, T1, TransmissionParameters, parameters::ErrorDetection,
};

use crate::notation::{block, hex};

const SCENARIOS: &str = include_str!("t1-scenarios.txt");

#[test]
fn t1_scenarios_of_annex_a_and_others_pass() {
    let mut played = 0;
    let scenarios = SCENARIOS.split("\nscenario ").skip(1);
    for scenario in scenarios {
        let (name, lines) = scenario.split_once('\n').unwrap();
        Player::new(name, lines).play();
        played += 1;
    }
    let annex = SCENARIOS.matches("\nscenario A.").count();
    assert_eq!(annex, 32, "one of 33, A.25, is played in t1_limits");
    assert!(played > annex);
}

/// Plays one scenario.
struct Player<'a> {
    name: &'a str,
    lines: Vec<&'a str>,
    parameters: TransmissionParameters,
    ifsd: u8,
}

impl<'a> Player<'a> {
    fn new(name: &'a str, text: &'a str) -> Self {
        Self {
            name,
            lines: text
                .lines()
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .collect(),
            parameters: TransmissionParameters::default(),
            ifsd: 32,
        }
    }

    fn play(mut self) {
        let settings = self.lines.iter().position(|line| line.starts_with("begin"));
        let exchange = self.lines.split_off(settings.unwrap());
        for setting in std::mem::take(&mut self.lines) {
            match setting.split_once(' ') {
                Some(("ifsc", value)) => self.parameters.ifsc = value.parse().unwrap(),
                Some(("ifsd", value)) => self.ifsd = value.parse().unwrap(),
                None if setting == "crc" => {
                    self.parameters.error_detection = ErrorDetection::Crc;
                }
                _ => panic!("{}: {setting}", self.name),
            }
        }
        let mut t1 = T1::new(&self.parameters, self.ifsd);
        let mut step: Option<Step> = None;
        for line in exchange {
            step = self.line(line, &mut t1, step);
        }
        assert!(step.is_none(), "{}: ends in {step:?}", self.name);
    }

    /// Plays one line. A line of the card or of the host yields a step. A line of expected bytes consumes the step.
    fn line(&self, line: &str, t1: &mut T1, step: Option<Step>) -> Option<Step> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        if !matches!(verb, ">" | "=" | "!") {
            assert!(step.is_none(), "{}: {step:?} before {line}", self.name);
        }
        let detection = self.parameters.error_detection;
        match (verb, step) {
            ("begin", None) => Some(t1.begin(&hex(rest))),
            ("<", None) => Some(t1.receive(&block(rest, detection))),
            ("<x", None) => {
                let mut damaged = block(rest, detection);
                *damaged.last_mut().unwrap() ^= 0x10;
                Some(t1.receive(&damaged))
            }
            ("<-", None) => Some(t1.response_timeout()),
            ("<!", None) => Some(t1.transmission_error()),
            (
                ">",
                Some(Step::Send {
                    block: bytes,
                    waiting_time_multiplier,
                }),
            ) => {
                let (expected, multiplier) = rest.split_once(" x").unwrap_or((rest, "1"));
                let expected = block(expected, detection);
                let sent = bytes.expose();
                assert_eq!(sent, expected, "{}: {sent:02X?} for {line}", self.name);
                assert_eq!(waiting_time_multiplier.to_string(), multiplier);
                None
            }
            ("=", Some(Step::Done(answer))) => {
                assert_eq!(answer.expose(), hex(rest), "{}: {line}", self.name);
                None
            }
            ("!", Some(Step::Failed(Failure { reason, sent }))) => {
                assert_eq!(format!("{reason:?} {sent:?}"), rest, "{}", self.name);
                None
            }
            (_, step) => panic!("{}: {line} but {step:?}", self.name),
        }
    }
}
