//! A token of the control pipe with arbitrary responses.

use super::{
    super::{
        budget,
        message::{Command, Voltage},
    },
    BLOCK, Exchange, FROM_TOKEN, HEADER, Step, TO_TOKEN, Version,
};

/// Runs a command against arbitrary responses. The first byte selects version and command. Each response follows,
/// behind a byte with its length.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Some((choice, mut responses)) = bytes.split_first() else {
        return;
    };
    let version = if choice & 1 == 0 {
        Version::A
    } else {
        Version::B
    };
    let data = [0x00, 0xA4, 0x04, 0x00, 0x02, 0x3F, 0x00, 0x00];
    let command = match choice >> 1 & 3 {
        0 => Command::IccPowerOn {
            voltage: Voltage::Automatic,
        },
        1 => Command::IccPowerOff,
        2 => Command::GetSlotStatus,
        _ => Command::XfrBlock {
            bwi: 0,
            level_parameter: 0,
            data: &data,
        },
    };
    let mut exchange = Exchange::new(version, &command);
    let mut step = exchange.begin();
    loop {
        step = match step {
            Err(_) => return,
            Ok(Step::Done(outcome)) => {
                assert!(
                    outcome.data.len() <= BLOCK
                        && (outcome.error.is_none() || outcome.data.is_empty())
                );
                return;
            }
            Ok(Step::Write { request, data }) => {
                assert!(request.request_type == TO_TOKEN && data.len() <= 255 + HEADER);
                exchange.wrote()
            }
            Ok(Step::Wait(delay)) => {
                assert!(
                    delay >= budget::ICCD_POLL && delay <= budget::ICCD_POLL * u32::from(u16::MAX)
                );
                Ok(exchange.waited())
            }
            Ok(Step::Read { request, room }) => {
                assert!(request.request_type == FROM_TOKEN && (1..=BLOCK).contains(&room));
                let Some((length, rest)) = responses.split_first() else {
                    return;
                };
                let length = usize::from(*length).min(rest.len()).min(room);
                let (response, rest) = rest.split_at(length);
                responses = rest;
                exchange.read(response)
            }
        };
    }
}
